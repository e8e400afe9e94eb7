//! The server's side by raw messages: what comes in as text, and every header of what goes out.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tandem_sip::parse::parse;
use tandem_sip::*;

struct Uas {
    endpoint: Endpoint,
    flow: Flow,
    now: Instant,
}

impl Uas {
    #[allow(clippy::disallowed_methods)]
    fn new() -> Uas {
        let flow = Flow::udp(([127, 0, 0, 1], 4573).into(), ([127, 0, 0, 9], 40_000).into());
        Uas { endpoint: Endpoint::new(EndpointConfig::default()), flow, now: Instant::now() }
    }

    /// Takes one message in, and what it says at once out.
    fn hear(&mut self, text: &str) -> Vec<String> {
        self.endpoint.handle_input(text.as_bytes(), self.flow, self.now);
        self.said()
    }

    fn said(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(transmit) = self.endpoint.poll_transmit() {
            said.push(String::from_utf8(transmit.bytes).unwrap());
        }
        said
    }

    fn pass(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        self.endpoint.handle_timeout(self.now);
        self.said()
    }

    /// A call that waits for its answer.
    fn incoming(&mut self) -> CallHandle {
        self.hear(&invite("1", ""));
        let Some(Event::IncomingInvite { call, .. }) = self.endpoint.poll_event() else { panic!("no call") };
        call
    }

    /// A call that is up, and our tag.
    fn up(&mut self) -> (CallHandle, String) {
        let call = self.incoming();
        self.endpoint.answer(call, Body::sdp("v=0\r\n"), self.now).unwrap();
        let tag = self.endpoint.dialog(call).unwrap().local_tag().to_owned();
        self.said();
        self.hear(&request("ACK", 1, "ack", &tag, ""));
        assert!(matches!(self.endpoint.poll_event(), Some(Event::Acknowledged { .. })));
        (call, tag)
    }
}

fn invite(branch: &str, extra: &str) -> String {
    format!(
        "INVITE sip:echo:demo-key@127.0.0.1:4573 SIP/2.0\r\nVia: SIP/2.0/UDP p;branch=z9hG4bKp{branch};rport\r\n\
         Via: SIP/2.0/UDP 10.1.1.1;branch=z9hG4bKc{branch}\r\nRecord-Route: <sip:127.0.0.7:5070;lr>\r\nMax-Forwards: 69\r\n\
         From: Caller <sip:me@10.1.1.1>;tag=caller\r\nTo: <sip:echo:demo-key@127.0.0.1:4573>\r\nCall-ID: cid\r\n\
         CSeq: 1 INVITE\r\nContact: <sip:me@10.1.1.1:5062>\r\nTimestamp: 54\r\n{extra}Content-Type: application/sdp\r\n\
         Content-Length: 5\r\n\r\nv=0\r\n"
    )
}

fn request(method: &str, cseq: u32, branch: &str, tag: &str, extra: &str) -> String {
    format!(
        "{method} sip:tandem@127.0.0.1:4573 SIP/2.0\r\nVia: SIP/2.0/UDP p;branch=z9hG4bK{branch};rport\r\nMax-Forwards: 69\r\n\
         From: Caller <sip:me@10.1.1.1>;tag=caller\r\nTo: <sip:echo:demo-key@127.0.0.1:4573>;tag={tag}\r\nCall-ID: cid\r\n\
         CSeq: {cseq} {method}\r\nContact: <sip:me@10.1.1.1:5062>\r\n{extra}Content-Length: 0\r\n\r\n"
    )
}

fn first(said: &[String]) -> &str {
    said.first().map_or("", |text| text.lines().next().unwrap_or_default())
}

#[test]
fn every_header_of_a_ringing_response_is_right() {
    let mut uas = Uas::new();
    let trying = uas.hear(&invite("1", ""));
    assert_eq!(
        trying,
        ["SIP/2.0 100 Trying\r\nVia: SIP/2.0/UDP p;branch=z9hG4bKp1;rport=40000;received=127.0.0.9\r\n\
          Via: SIP/2.0/UDP 10.1.1.1;branch=z9hG4bKc1\r\nFrom: Caller <sip:me@10.1.1.1>;tag=caller\r\nCall-ID: cid\r\n\
          CSeq: 1 INVITE\r\nTimestamp: 54\r\nTo: <sip:echo:demo-key@127.0.0.1:4573>\r\nServer: Tandem/0.1.0\r\n\
          Content-Length: 0\r\n\r\n"]
    );
    let Some(Event::IncomingInvite { call, request, .. }) = uas.endpoint.poll_event() else { panic!() };
    assert_eq!(request.uri.password().as_deref(), Some("demo-key"));
    uas.endpoint.ring(call, uas.now).unwrap();
    let tag = uas.endpoint.dialog(call).unwrap().local_tag().to_owned();
    assert_eq!(
        uas.said(),
        [format!(
            "SIP/2.0 180 Ringing\r\nVia: SIP/2.0/UDP p;branch=z9hG4bKp1;rport=40000;received=127.0.0.9\r\n\
             Via: SIP/2.0/UDP 10.1.1.1;branch=z9hG4bKc1\r\nFrom: Caller <sip:me@10.1.1.1>;tag=caller\r\nCall-ID: cid\r\n\
             CSeq: 1 INVITE\r\nTimestamp: 54\r\nRecord-Route: <sip:127.0.0.7:5070;lr>\r\n\
             To: <sip:echo:demo-key@127.0.0.1:4573>;tag={tag}\r\nContact: <sip:tandem@127.0.0.1:4573>\r\n\
             Allow: INVITE, ACK, BYE, CANCEL, OPTIONS, INFO, UPDATE\r\nServer: Tandem/0.1.0\r\nContent-Length: 0\r\n\r\n"
        )]
    );
}

#[test]
fn bye_goes_along_the_route_to_the_first_proxy() {
    let mut uas = Uas::new();
    let (call, tag) = uas.up();
    uas.endpoint.bye(call, Headers::new(), uas.now).unwrap();
    let transmit = uas.endpoint.poll_transmit().unwrap();
    assert_eq!(transmit.flow.remote, ([127, 0, 0, 7], 5070).into());
    let Ok(Message::Request(bye)) = parse(&transmit.bytes) else { panic!() };
    assert_eq!(bye.uri.as_str(), "sip:me@10.1.1.1:5062");
    assert_eq!(bye.header(HeaderName::Route), Some("<sip:127.0.0.7:5070;lr>"));
    assert_eq!(bye.head.from().tag().as_deref(), Some(&*tag));
    assert_eq!(bye.head.to().tag().as_deref(), Some("caller"));
}

#[test]
fn retransmitted_invite_gets_the_last_response_and_no_second_call() {
    let mut uas = Uas::new();
    let call = uas.incoming();
    assert_eq!(first(&uas.hear(&invite("1", ""))), "SIP/2.0 100 Trying");
    uas.endpoint.ring(call, uas.now).unwrap();
    uas.said();
    assert_eq!(first(&uas.hear(&invite("1", ""))), "SIP/2.0 180 Ringing");
    assert_eq!(uas.endpoint.poll_event(), None);
    assert_eq!(uas.endpoint.counters().retransmits_in, 2);
}

#[test]
fn same_invite_by_another_way_is_a_merged_one() {
    let mut uas = Uas::new();
    uas.incoming();
    assert_eq!(first(&uas.hear(&invite("2", ""))), "SIP/2.0 482 Loop Detected");
    assert_eq!(uas.endpoint.poll_event(), None);
}

#[test]
fn requests_of_no_dialog_get_481_and_a_stray_ack_nothing() {
    let mut uas = Uas::new();
    for method in ["BYE", "INVITE", "INFO", "UPDATE", "OPTIONS"] {
        let said = uas.hear(&request(method, 2, method, "unknown", ""));
        assert_eq!(first(&said), "SIP/2.0 481 Call/Transaction Does Not Exist", "{method}");
    }
    let cancel = invite("9", "").replace("INVITE", "CANCEL");
    assert_eq!(first(&uas.hear(&cancel)), "SIP/2.0 481 Call/Transaction Does Not Exist");
    assert!(uas.hear(&request("ACK", 1, "stray", "unknown", "")).is_empty());
    assert_eq!(uas.endpoint.counters().stray_acks, 1);
}

#[test]
fn wrong_dialog_partner_cannot_hang_up() {
    let mut uas = Uas::new();
    let (_, tag) = uas.up();
    let forged = request("BYE", 2, "forged", &tag, "").replace("tag=caller", "tag=stranger");
    assert_eq!(first(&uas.hear(&forged)), "SIP/2.0 481 Call/Transaction Does Not Exist");
    assert_eq!(uas.endpoint.call_count(), 1);
}

#[test]
fn out_of_order_request_gets_500() {
    let mut uas = Uas::new();
    let (_, tag) = uas.up();
    assert_eq!(first(&uas.hear(&request("OPTIONS", 5, "a", &tag, ""))), "SIP/2.0 200 OK");
    assert_eq!(first(&uas.hear(&request("OPTIONS", 4, "b", &tag, ""))), "SIP/2.0 500 Server Internal Error");
}

#[test]
fn second_reinvite_before_the_answer_gets_500_with_retry_after() {
    let mut uas = Uas::new();
    let (_, tag) = uas.up();
    assert_eq!(first(&uas.hear(&request("INVITE", 2, "a", &tag, ""))), "SIP/2.0 100 Trying");
    assert!(matches!(uas.endpoint.poll_event(), Some(Event::Reinvite { .. })));
    let said = uas.hear(&request("INVITE", 3, "b", &tag, ""));
    assert_eq!(first(&said), "SIP/2.0 500 Server Internal Error");
    assert!(said[0].contains("\r\nRetry-After: "), "{said:?}");
}

#[test]
fn cancelled_reinvite_leaves_the_call_up() {
    let mut uas = Uas::new();
    let (call, tag) = uas.up();
    uas.hear(&request("INVITE", 2, "re", &tag, ""));
    assert!(matches!(uas.endpoint.poll_event(), Some(Event::Reinvite { .. })));
    let said = uas.hear(&request("CANCEL", 2, "re", &tag, ""));
    assert_eq!(first(&said), "SIP/2.0 200 OK");
    assert!(said[1].starts_with("SIP/2.0 487 "));
    assert_eq!(uas.endpoint.poll_event(), Some(Event::ReinviteCancelled { call }));
    assert_eq!(uas.endpoint.call_count(), 1);
}

#[test]
fn retransmitted_bye_gets_its_200_again() {
    let mut uas = Uas::new();
    let (_, tag) = uas.up();
    let bye = request("BYE", 2, "bye", &tag, "Reason: Q.850;cause=16\r\n");
    assert_eq!(first(&uas.hear(&bye)), "SIP/2.0 200 OK");
    assert_eq!(uas.hear(&bye).len(), 1);
    let Some(Event::Ended { why, .. }) = uas.endpoint.poll_event() else { panic!() };
    assert_eq!(why, EndReason::RemoteBye { reason: Some("Q.850;cause=16".to_owned()) });
    assert_eq!(uas.endpoint.poll_event(), None);
}

#[test]
fn refusal_is_repeated_until_its_ack_and_then_forgotten() {
    let mut uas = Uas::new();
    let call = uas.incoming();
    uas.endpoint.reject(call, Reply::new(404), uas.now).unwrap();
    let said = uas.said();
    let Ok(Message::Response(response)) = parse(said[0].as_bytes()) else { panic!() };
    let tag = response.head.to().tag().unwrap().into_owned();
    assert_eq!(first(&uas.pass(Duration::from_millis(500))), "SIP/2.0 404 Not Found");
    assert!(uas.hear(&request("ACK", 1, "p1", &tag, "")).is_empty());
    assert!(uas.pass(Duration::from_secs(1)).is_empty());
    uas.pass(Duration::from_secs(5));
    assert_eq!(uas.endpoint.transaction_count(), 0);
}

#[test]
fn request_that_the_user_forgets_is_let_go() {
    let mut uas = Uas::new();
    let (call, tag) = uas.up();
    uas.hear(&request("INFO", 2, "info", &tag, ""));
    let Some(Event::Request { handle, call: Some(of), .. }) = uas.endpoint.poll_event() else { panic!() };
    assert_eq!(of, call);
    uas.pass(Duration::from_secs(33));
    assert_eq!(uas.endpoint.reply(handle, Reply::new(200), uas.now), Err(CallError::Unknown));
}

#[test]
fn full_transaction_table_answers_503_without_state() {
    let mut uas = Uas::new();
    uas.endpoint = Endpoint::new(EndpointConfig { max_transactions: 1, ..EndpointConfig::default() });
    uas.incoming();
    let other = invite("2", "").replace("Call-ID: cid", "Call-ID: other");
    let said = uas.hear(&other);
    assert_eq!(first(&said), "SIP/2.0 503 Service Unavailable");
    assert!(said[0].contains("\r\nRetry-After: 5\r\n"));
    assert_eq!((uas.endpoint.transaction_count(), uas.endpoint.counters().refused_full), (1, 1));
}

#[test]
fn verbs_out_of_turn_are_refused_and_send_nothing() {
    let mut uas = Uas::new();
    let call = uas.incoming();
    assert!(matches!(uas.endpoint.bye(call, Headers::new(), uas.now), Err(CallError::State(_))));
    assert!(matches!(uas.endpoint.reinvite(call, None, uas.now), Err(CallError::State(_))));
    assert!(matches!(uas.endpoint.cancel(call, uas.now), Err(CallError::State(_))));
    assert!(matches!(uas.endpoint.reject(call, Reply::new(200), uas.now), Err(CallError::State(_))));
    uas.endpoint.answer(call, Body::sdp("v=0\r\n"), uas.now).unwrap();
    uas.said();
    assert!(matches!(uas.endpoint.ring(call, uas.now), Err(CallError::State(_))));
    assert!(uas.said().is_empty());
}

#[test]
fn stream_is_pinged_framed_and_closed_when_it_is_no_sip() {
    let mut uas = Uas::new();
    let connection = ConnectionId(7);
    uas.flow = Flow::connected(Transport::Tcp, uas.flow.local, uas.flow.remote, connection);
    uas.endpoint.handle_connected(uas.flow);
    assert_eq!(uas.hear("\r\n\r\n"), ["\r\n"]);
    let bad = invite("1", "").replace("Max-Forwards: 69", "Max-Forwards: x");
    assert_eq!(first(&uas.hear(&bad)), "SIP/2.0 400 Bad Request: bad Max-Forwards");
    assert_eq!(uas.endpoint.poll_event(), None, "a bad message alone does not close");
    let endless =
        request("OPTIONS", 1, "o", "", "").replace("Content-Length: 0\r\n", "").replace(";tag=\r", "\r");
    assert_eq!(first(&uas.hear(&endless)), "SIP/2.0 400 Bad Request: missing Content-Length");
    assert!(matches!(
        uas.endpoint.poll_event(),
        Some(Event::CloseConnection { connection: ConnectionId(7), .. })
    ));
}

#[test]
fn response_finds_its_way_when_the_connection_is_gone() {
    let mut uas = Uas::new();
    uas.flow = Flow::connected(Transport::Tcp, uas.flow.local, uas.flow.remote, ConnectionId(7));
    let call = uas.incoming();
    uas.endpoint.handle_closed(ConnectionId(7), uas.now);
    uas.endpoint.ring(call, uas.now).unwrap();
    let transmit = uas.endpoint.poll_transmit().unwrap();
    assert_eq!((transmit.flow.connection, transmit.flow.remote), (None, ([127, 0, 0, 9], 5060).into()));
}

#[test]
fn keep_alives_and_noise_on_udp_get_no_answer() {
    let mut uas = Uas::new();
    for noise in ["\r\n\r\n", "\r\n", "jaK", "GET / HTTP/1.1\r\n\r\n", ""] {
        assert!(uas.hear(noise).is_empty(), "{noise:?}");
    }
    assert_eq!(uas.endpoint.counters().garbage, 2);
}

#[test]
fn secrets_are_in_no_debug_text() {
    let mut uas = Uas::new();
    uas.hear(&invite("1", "Authorization: Digest username=\"u\", response=\"0badc0de\"\r\n"));
    let event = uas.endpoint.poll_event().unwrap();
    let text = format!(
        "{event:?} {:?}",
        uas.endpoint.dialog(match event {
            Event::IncomingInvite { call, .. } => call,
            _ => panic!(),
        })
    );
    assert!(!text.contains("demo-key") && !text.contains("0badc0de"), "{text}");
}

#[test]
fn endpoint_can_move_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<Endpoint>();
    is_send::<Event>();
}
