use std::net::SocketAddr;

use tandem_sip::message::Body;
use tandem_sip::{Endpoint, EndpointConfig, Flow, Method, Uri};

use super::*;

fn target(transport: Transport, host: u8) -> Target {
    Target { transport, address: SocketAddr::from(([192, 0, 2, host], 5060)) }
}

fn name(uri: &str) -> NameAddr {
    NameAddr::new(Uri::parse(uri).unwrap())
}

fn invite(body_len: usize) -> Wanted {
    let to = Uri::parse("sip:+15551234@carrier.example").unwrap();
    let mut invite = InviteRequest::new(to, name("sip:us@tandem.example"), Flow::UNRESOLVED);
    invite.body = Some(Body::sdp("x".repeat(body_len)));
    Wanted::Invite(Box::new(invite))
}

fn flow(target: Target) -> Flow {
    let local = SocketAddr::from(([192, 0, 2, 99], 5060));
    Flow { transport: target.transport, local, remote: target.address, connection: None }
}

/// An endpoint whose requests nobody hears, and the plan of one of them.
struct Bed {
    endpoint: Endpoint,
    outgoing: Outgoing,
    now: Instant,
}

impl Bed {
    fn new() -> Self {
        let endpoint = Endpoint::new(EndpointConfig::default());
        Self { endpoint, outgoing: Outgoing::default(), now: Instant::now() }
    }

    fn plan(&mut self, wanted: Wanted, targets: &[Target]) -> Attempt {
        self.outgoing.plan(Token(1), wanted, None, targets.to_vec(), self.now)
    }

    /// Sends the next hop as the driver would.
    fn send(&mut self, mut attempt: Attempt) -> (Handle, Target) {
        let hop = attempt.next_hop().unwrap();
        let verb = attempt.wanted.clone().verb(attempt.token, flow(hop.target));
        let handle = match verb.perform(&mut self.endpoint, self.now).unwrap().unwrap() {
            crate::sip::SipEvent::Placed { call, .. } => Handle::Call(call),
            crate::sip::SipEvent::Sent { handle, .. } => Handle::Request(handle),
            other => panic!("{other:?}"),
        };
        self.outgoing.placed(handle, attempt, self.now);
        (handle, hop.target)
    }

    /// The endpoint's next event that is not of no interest, as the driver sees it.
    fn next_verdict(&mut self) -> (Event, Verdict) {
        let event = self.endpoint.poll_event().unwrap();
        let verdict = self.outgoing.handle_event(&event, self.now);
        (event, verdict)
    }

    /// A peer's answer to what was sent last.
    fn respond(&mut self, status: u16) {
        let mut last = None;
        while let Some(transmit) = self.endpoint.poll_transmit() {
            last = Some(transmit);
        }
        let sent = last.unwrap();
        let text = String::from_utf8(sent.bytes).unwrap();
        let mut answer = format!("SIP/2.0 {status} X\r\nContent-Length: 0\r\n");
        for line in text.lines().take_while(|line| !line.is_empty()) {
            let name = line.split(':').next().unwrap_or_default();
            if ["Via", "From", "To", "Call-ID", "CSeq"].contains(&name) {
                answer += line;
                answer += if name == "To" { ";tag=t\r\n" } else { "\r\n" };
            }
        }
        answer += "\r\n";
        self.endpoint.handle_input(answer.as_bytes(), sent.flow, self.now);
    }
}

const A: u8 = 1;
const B: u8 = 2;

#[test]
fn host_that_is_not_there_is_left_for_the_next_and_rests() {
    let mut bed = Bed::new();
    let targets = [target(Transport::Udp, A), target(Transport::Udp, B)];
    let attempt = bed.plan(invite(10), &targets);
    let (handle, first) = bed.send(attempt);
    assert_eq!(first, targets[0]);
    bed.endpoint.handle_transport_error(flow(first), bed.now);
    let (_, Verdict::Again(attempt)) = bed.next_verdict() else { panic!("it goes on") };
    let (second, at) = bed.send(*attempt);
    assert_eq!((at, bed.outgoing.poll_timeout()), (targets[1], None));
    assert_eq!(bed.outgoing.newest(handle), second, "who gives it up by its first name means this one");
    let attempt = bed.plan(invite(10), &targets);
    assert_eq!(bed.send(attempt).1, targets[1], "the one that failed comes last");
    bed.now += REST;
    let attempt = bed.plan(invite(10), &targets);
    assert_eq!(bed.send(attempt).1, targets[0], "and has rested");
}

#[test]
fn full_host_is_left_for_the_next_but_a_refusal_is_final() {
    for (status, goes_on) in [(503, true), (486, false), (404, false), (500, false)] {
        let mut bed = Bed::new();
        let attempt = bed.plan(invite(10), &[target(Transport::Udp, A), target(Transport::Udp, B)]);
        bed.send(attempt);
        bed.respond(status);
        let (_, verdict) = bed.next_verdict();
        assert_eq!(matches!(verdict, Verdict::Again(_)), goes_on, "{status}");
    }
}

#[test]
fn host_that_has_rung_is_not_left() {
    let mut bed = Bed::new();
    let attempt = bed.plan(invite(10), &[target(Transport::Udp, A), target(Transport::Udp, B)]);
    let (handle, _) = bed.send(attempt);
    bed.outgoing.handle_event(&provisional(handle), bed.now);
    bed.respond(503);
    assert!(matches!(bed.next_verdict(), (Event::Ended { .. }, Verdict::Pass)));
    assert_eq!(bed.outgoing.poll_timeout(), None);
}

/// Any provisional of this call: only the handle is looked at.
fn provisional(handle: Handle) -> Event {
    let Handle::Call(call) = handle else { panic!("an INVITE") };
    let text = "SIP/2.0 180 Ringing\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\n\
                To: <sip:c@d>;tag=2\r\nCall-ID: x\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n";
    let Ok(tandem_sip::Message::Response(response)) = tandem_sip::parse::parse(text.as_bytes()) else {
        panic!("a response")
    };
    Event::Provisional { call, response: Box::new(response), wants_prack: false }
}

#[test]
fn silent_host_is_left_and_never_heard_of_again() {
    let mut bed = Bed::new();
    let targets = [target(Transport::Udp, A), target(Transport::Udp, B)];
    let attempt = bed.plan(invite(10), &targets);
    let (handle, _) = bed.send(attempt);
    assert_eq!(bed.outgoing.poll_timeout(), Some(bed.now + SILENCE_MAX));
    assert_eq!(bed.outgoing.handle_timeout(bed.now), None);
    bed.now += SILENCE_MAX;
    assert_eq!(bed.outgoing.handle_timeout(bed.now), Some(handle));
    let Handle::Call(call) = handle else { panic!("an INVITE") };
    assert!(!bed.endpoint.has_heard(call));
    let attempt = bed.outgoing.take(handle, bed.now).unwrap();
    let (_, second) = bed.send(attempt);
    bed.outgoing.leave(handle);
    bed.endpoint.cancel(call, bed.now).unwrap();
    assert_eq!(second, targets[1]);
    bed.now += Duration::from_secs(64);
    bed.endpoint.handle_timeout(bed.now);
    let mut verdicts: Vec<_> = std::iter::from_fn(|| {
        let event = bed.endpoint.poll_event()?;
        Some(matches!(bed.outgoing.handle_event(&event, bed.now), Verdict::Swallow))
    })
    .collect();
    verdicts.sort_unstable();
    assert_eq!(verdicts, [false, true], "one end is told, of the call that the user knows");
    assert!(bed.outgoing.left.is_empty());
}

#[test]
fn request_that_is_given_up_is_not_tried_elsewhere() {
    let mut bed = Bed::new();
    let attempt = bed.plan(invite(10), &[target(Transport::Udp, A), target(Transport::Udp, B)]);
    let (handle, first) = bed.send(attempt);
    bed.outgoing.forget(handle);
    assert_eq!(bed.outgoing.poll_timeout(), None);
    bed.endpoint.handle_transport_error(flow(first), bed.now);
    assert!(matches!(bed.next_verdict(), (Event::Ended { .. }, Verdict::Pass)));
}

#[test]
fn large_request_goes_by_tcp_and_by_a_datagram_only_if_there_is_none() {
    let mut bed = Bed::new();
    let attempt = bed.plan(invite(2_000), &[target(Transport::Udp, A)]);
    let (_, first) = bed.send(attempt);
    assert_eq!(first, target(Transport::Tcp, A));
    bed.endpoint.handle_transport_error(flow(first), bed.now);
    let (_, Verdict::Again(attempt)) = bed.next_verdict() else { panic!("it goes on") };
    assert_eq!(bed.send(*attempt).1, target(Transport::Udp, A));

    let attempt = bed.plan(invite(2_000), &[target(Transport::Udp, B)]);
    bed.send(attempt);
    bed.respond(503);
    assert!(matches!(bed.next_verdict().1, Verdict::Pass), "a full host is not asked again by a datagram");

    let attempt = bed.plan(invite(200), &[target(Transport::Udp, B)]);
    assert_eq!(bed.send(attempt).1, target(Transport::Udp, B));
}

#[test]
fn dead_connection_is_replaced_once_and_its_host_does_not_rest() {
    let mut bed = Bed::new();
    let targets = [target(Transport::Tcp, A)];
    let mut attempt = bed.plan(invite(10), &targets);
    let hop = attempt.next_hop().unwrap();
    attempt.goes_by_old_connection(hop);
    attempt.hops.push_front(hop);
    let (_, first) = bed.send(attempt);
    assert_eq!(bed.outgoing.poll_timeout(), None, "silence is no reason to connect anew");
    bed.endpoint.handle_transport_error(flow(first), bed.now);
    let (_, Verdict::Again(mut attempt)) = bed.next_verdict() else { panic!("it goes on") };
    assert!(bed.outgoing.resting.is_empty());
    let again = attempt.next_hop().unwrap();
    assert_eq!(again.target, targets[0]);
    attempt.goes_by_old_connection(again);
    assert!(attempt.next_hop().is_none(), "once");
}

#[test]
fn length_is_never_underestimated() {
    let mut options = OutgoingRequest::new(
        Method::Options,
        Uri::parse("sip:carrier.example;transport=tcp").unwrap(),
        NameAddr::parse("\"Us\" <sip:us@tandem.example>").unwrap(),
        Flow::UNRESOLVED,
    );
    options.headers = Headers::new().with("X-Account", "12345").unwrap();
    for wanted in [invite(0), invite(700), Wanted::Request(Box::new(options))] {
        let mut endpoint = Endpoint::new(EndpointConfig::default());
        let estimate = wanted.len();
        let verb = wanted.verb(Token(1), flow(target(Transport::Udp, A)));
        verb.perform(&mut endpoint, Instant::now()).unwrap();
        let real = endpoint.poll_transmit().unwrap().bytes.len();
        assert!((real..real + 500).contains(&estimate), "{estimate} for {real}");
    }
}
