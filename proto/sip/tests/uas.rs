//! The server's side by raw messages: what comes in as text, and every header of what goes out.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tandem_sip::parse::parse;
use tandem_sip::*;

struct Uas {
    endpoint: Endpoint,
    /// Status, rule and detail of what was refused.
    refused: Vec<(u16, &'static str, String)>,
    flow: Flow,
    now: Instant,
}

impl Uas {
    #[allow(clippy::disallowed_methods)]
    fn new() -> Uas {
        let flow = Flow::udp(([127, 0, 0, 1], 4573).into(), ([127, 0, 0, 9], 40_000).into());
        Uas {
            endpoint: Endpoint::new(EndpointConfig::default()),
            refused: Vec::new(),
            flow,
            now: Instant::now(),
        }
    }

    /// Takes one message in, and what it says at once out.
    fn hear(&mut self, text: &str) -> Vec<String> {
        self.endpoint.handle_input(text.as_bytes(), self.flow, self.now);
        self.said()
    }

    /// The next event that is no refusal.
    fn event(&mut self) -> Option<Event> {
        loop {
            match self.endpoint.poll_event() {
                Some(Event::Refused { status, rule, detail, .. }) => {
                    self.refused.push((status, rule, detail))
                }
                other => return other,
            }
        }
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
        let Some(Event::IncomingInvite { call, .. }) = self.event() else { panic!("no call") };
        call
    }

    /// A call that is up, and our tag.
    fn up(&mut self) -> (CallHandle, String) {
        let call = self.incoming();
        self.endpoint.answer(call, Body::sdp("v=0\r\n"), self.now).unwrap();
        let tag = self.endpoint.dialog(call).unwrap().local_tag().to_owned();
        self.said();
        self.hear(&request("ACK", 1, "ack", &tag, ""));
        assert!(matches!(self.event(), Some(Event::Acknowledged { .. })));
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
    let Some(Event::IncomingInvite { call, request, .. }) = uas.event() else { panic!() };
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
             Allow: INVITE, ACK, BYE, CANCEL, OPTIONS, NOTIFY, PRACK, INFO, UPDATE\r\n\
             Supported: replaces, norefersub, timer, 100rel\r\nServer: Tandem/0.1.0\r\nContent-Length: 0\r\n\r\n"
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
    assert_eq!(uas.event(), None);
    assert_eq!(uas.endpoint.counters().retransmits_in, 2);
}

#[test]
fn same_invite_by_another_way_is_a_merged_one() {
    let mut uas = Uas::new();
    uas.incoming();
    assert_eq!(first(&uas.hear(&invite("2", ""))), "SIP/2.0 482 Loop Detected");
    assert_eq!(uas.event(), None);
    assert_eq!(uas.refused, [(482, "merged_request", "cid".to_owned())]);
}

#[test]
fn merged_invite_gets_one_answer_when_the_table_is_full() {
    let mut uas = Uas::new();
    uas.endpoint = Endpoint::new(EndpointConfig { max_transactions: 1, ..EndpointConfig::default() });
    uas.incoming();
    let said = uas.hear(&invite("2", ""));
    assert_eq!((said.len(), first(&said)), (1, "SIP/2.0 482 Loop Detected"));
    assert_eq!(uas.event(), None);
    assert_eq!(uas.refused.len(), 1);
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
    assert!(matches!(uas.event(), Some(Event::Reinvite { .. })));
    let said = uas.hear(&request("INVITE", 3, "b", &tag, ""));
    assert_eq!(first(&said), "SIP/2.0 500 Server Internal Error");
    assert!(said[0].contains("\r\nRetry-After: "), "{said:?}");
}

#[test]
fn cancelled_reinvite_leaves_the_call_up() {
    let mut uas = Uas::new();
    let (call, tag) = uas.up();
    uas.hear(&request("INVITE", 2, "re", &tag, ""));
    assert!(matches!(uas.event(), Some(Event::Reinvite { .. })));
    let said = uas.hear(&request("CANCEL", 2, "re", &tag, ""));
    assert_eq!(first(&said), "SIP/2.0 200 OK");
    assert!(said[1].starts_with("SIP/2.0 487 "));
    assert_eq!(uas.event(), Some(Event::ReinviteCancelled { call }));
    assert_eq!(uas.endpoint.call_count(), 1);
}

#[test]
fn retransmitted_bye_gets_its_200_again() {
    let mut uas = Uas::new();
    let (_, tag) = uas.up();
    let bye = request("BYE", 2, "bye", &tag, "Reason: Q.850;cause=16\r\n");
    assert_eq!(first(&uas.hear(&bye)), "SIP/2.0 200 OK");
    assert_eq!(uas.hear(&bye).len(), 1);
    let Some(Event::Ended { why, .. }) = uas.event() else { panic!() };
    assert_eq!(why, EndReason::RemoteBye { reason: Some("Q.850;cause=16".to_owned()) });
    assert_eq!(uas.event(), None);
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
    let Some(Event::Request { handle, call: Some(of), .. }) = uas.event() else { panic!() };
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
    assert_eq!(uas.event(), None);
    assert_eq!(uas.refused, [(503, "transaction_table", "full".to_owned())]);
}

#[test]
fn full_table_still_lets_calls_change_and_end() {
    let mut uas = Uas::new();
    uas.endpoint = Endpoint::new(EndpointConfig { max_transactions: 16, ..EndpointConfig::default() });
    let (call, tag) = uas.up();
    let mut calls = 1;
    loop {
        let branch = format!("n{calls}");
        let said = uas.hear(&invite(&branch, "").replace("Call-ID: cid", &format!("Call-ID: other{calls}")));
        if first(&said).starts_with("SIP/2.0 503 ") {
            break;
        }
        calls += 1;
    }
    assert_eq!(calls, 14, "two of sixteen are for the calls that there are");
    let cancel = invite("n5", "").replace("Call-ID: cid", "Call-ID: other5").replace("INVITE", "CANCEL");
    assert_eq!(first(&uas.hear(&cancel)), "SIP/2.0 200 OK");
    assert_eq!(uas.endpoint.call_count(), 13);
    assert_eq!(first(&uas.hear(&request("INVITE", 2, "re", &tag, ""))), "SIP/2.0 100 Trying");
    uas.endpoint.reject(call, Reply::new(488), uas.now).unwrap();
    uas.said();
    assert_eq!(first(&uas.hear(&request("INFO", 3, "info", &tag, ""))), "");
    assert_eq!(uas.endpoint.transaction_count(), 16);
    assert_eq!(first(&uas.hear(&request("BYE", 4, "bye", &tag, ""))), "SIP/2.0 200 OK", "full to the brim");
    assert_eq!((uas.endpoint.transaction_count(), uas.endpoint.call_count()), (16, 12));
}

#[test]
fn what_needs_no_state_gets_none_and_repetitions_the_same_answer() {
    let mut uas = Uas::new();
    let out_of_dialog = |method: &str| request(method, 1, method, "", "").replace(";tag=\r", "\r");
    let tel = out_of_dialog("OPTIONS").replace("OPTIONS sip:tandem@127.0.0.1:4573", "OPTIONS tel:+15551234");
    let cases = [
        (out_of_dialog("OPTIONS"), 200),
        (out_of_dialog("BREW"), 501),
        (out_of_dialog("SUBSCRIBE"), 489),
        (out_of_dialog("PUBLISH"), 405),
        (tel, 416),
        (out_of_dialog("BYE"), 481),
        (request("BYE", 1, "b", "unknown", ""), 481),
        (request("INVITE", 1, "i", "unknown", ""), 481),
        (invite("c", "").replace("INVITE", "CANCEL"), 481),
        (invite("r", "Require: nothing\r\n"), 420),
        (invite("s", "Content-Encoding: gzip\r\n"), 415),
        (invite("t", "Accept: text/plain\r\n"), 406),
        (invite("u", "").replace("Contact:", "X-Contact:"), 400),
    ];
    for (text, status) in cases {
        let said = uas.hear(&text);
        assert!(first(&said).starts_with(&format!("SIP/2.0 {status} ")), "{said:?} to {text}");
        assert_eq!(uas.hear(&text), said, "and again, with the same tag");
    }
    assert_eq!(uas.endpoint.transaction_count(), 0);
    assert_eq!(uas.event(), None);
    let rules: Vec<_> = uas.refused.iter().step_by(2).map(|(status, rule, _)| (*status, *rule)).collect();
    assert_eq!(
        rules,
        [
            (501, "method_known"),
            (489, "event_package"),
            (405, "method_allowed"),
            (416, "uri_scheme"),
            (481, "dialog_known"),
            (481, "dialog_known"),
            (481, "dialog_known"),
            (481, "dialog_known"),
            (420, "required_extensions"),
            (415, "body_coding"),
            (406, "accepts_sdp"),
            (400, "contact"),
        ]
    );
}

#[test]
fn every_bad_message_of_one_piece_of_a_stream_is_reported_with_its_cause() {
    let mut uas = Uas::new();
    uas.flow = Flow::connected(Transport::Tcp, uas.flow.local, uas.flow.remote, ConnectionId(7));
    let bad = invite("1", "").replace("Max-Forwards: 69", "Max-Forwards: x");
    let old = invite("2", "").replace(" SIP/2.0\r\nVia", " SIP/3.0\r\nVia");
    uas.hear(&[bad.clone(), old, bad].concat());
    assert_eq!(uas.event(), None);
    let expected = [(400, "bad Max-Forwards"), (505, "SIP version is not 2.0"), (400, "bad Max-Forwards")];
    let expected = expected.map(|(status, detail)| (status, "malformed_request", detail.to_owned()));
    assert_eq!(uas.refused, expected);
}

#[test]
fn refusals_that_nobody_fetches_are_bounded() {
    let mut uas = Uas::new();
    for _ in 0..endpoint::MAX_REFUSALS_QUEUED + 10 {
        uas.hear(&request("BYE", 1, "b", "unknown", ""));
    }
    assert_eq!(uas.event(), None);
    assert_eq!(uas.refused.len(), endpoint::MAX_REFUSALS_QUEUED);
    assert_eq!(uas.endpoint.counters().refused, endpoint::MAX_REFUSALS_QUEUED as u64 + 10);
}

#[test]
fn allow_names_only_what_the_configuration_serves() {
    let mut uas = Uas::new();
    uas.endpoint = Endpoint::new(EndpointConfig {
        in_dialog_methods: vec![Method::Update],
        ..EndpointConfig::default()
    });
    let (_, tag) = uas.up();
    let said = uas.hear(&request("INFO", 2, "info", &tag, ""));
    assert_eq!(first(&said), "SIP/2.0 405 Method Not Allowed");
    assert!(
        said[0].contains("\r\nAllow: INVITE, ACK, BYE, CANCEL, OPTIONS, NOTIFY, PRACK, UPDATE\r\n"),
        "{said:?}"
    );
}

#[test]
fn update_moves_the_target_only_when_it_is_accepted() {
    for (status, target) in [(488, "sip:me@10.1.1.1:5062"), (200, "sip:me@10.9.9.9:5062")] {
        let mut uas = Uas::new();
        let (call, tag) = uas.up();
        let update = request("UPDATE", 2, "up", &tag, "");
        uas.hear(&update.replace("Contact: <sip:me@10.1.1.1:5062>", "Contact: <sip:me@10.9.9.9:5062>"));
        let Some(Event::Request { handle, .. }) = uas.event() else { panic!() };
        assert_eq!(uas.endpoint.dialog(call).unwrap().remote_target().as_str(), "sip:me@10.1.1.1:5062");
        uas.endpoint.reply(handle, Reply::new(status), uas.now).unwrap();
        assert_eq!(uas.endpoint.dialog(call).unwrap().remote_target().as_str(), target, "{status}");
    }
}

/// A caller on TCP: its INVITE by connection 7, from a port that is not the one it listens on.
fn tcp_caller(contact: &str) -> (Uas, CallHandle, String) {
    let mut uas = Uas::new();
    let remote = ([127, 0, 0, 9], 40_000).into();
    uas.flow = Flow::connected(Transport::Tcp, uas.flow.local, remote, ConnectionId(7));
    let text = request("INVITE", 1, "tcp", "", "")
        .replace(";tag=\r", "\r")
        .replace("SIP/2.0/UDP p;", "SIP/2.0/TCP 127.0.0.9:5080;")
        .replace("<sip:me@10.1.1.1:5062>", contact);
    uas.hear(&text);
    let Some(Event::IncomingInvite { call, .. }) = uas.event() else { panic!("no call") };
    uas.endpoint.answer(call, Body::sdp("v=0\r\n"), uas.now).unwrap();
    let tag = uas.endpoint.dialog(call).unwrap().local_tag().to_owned();
    uas.said();
    (uas, call, tag)
}

#[test]
fn bye_after_the_connection_is_gone_goes_where_the_caller_listens() {
    for (contact, port) in [("<sip:me@127.0.0.9:5070;transport=tcp>", 5070), ("<sip:me@pc.example>", 5080)] {
        let (mut uas, call, tag) = tcp_caller(contact);
        uas.hear(&request("ACK", 1, "ack", &tag, ""));
        uas.endpoint.handle_closed(ConnectionId(7), uas.now);
        uas.endpoint.bye(call, Headers::new(), uas.now).unwrap();
        let flow = uas.endpoint.poll_transmit().unwrap().flow;
        assert_eq!((flow.connection, flow.remote), (None, ([127, 0, 0, 9], port).into()), "{contact}");
    }
}

#[test]
fn unacknowledged_200_follows_the_caller_when_its_connection_is_gone() {
    let (mut uas, ..) = tcp_caller("<sip:me@127.0.0.9:5070;transport=tcp>");
    uas.endpoint.handle_closed(ConnectionId(7), uas.now);
    uas.now += Duration::from_millis(500);
    uas.endpoint.handle_timeout(uas.now);
    let flow = uas.endpoint.poll_transmit().unwrap().flow;
    assert_eq!((flow.connection, flow.remote), (None, ([127, 0, 0, 9], 5080).into()));
}

fn closed(uas: &mut Uas) -> bool {
    matches!(uas.event(), Some(Event::CloseConnection { connection: ConnectionId(7), .. }))
}

#[test]
fn connection_that_never_finishes_its_message_is_closed() {
    let mut uas = Uas::new();
    uas.flow = Flow::connected(Transport::Tcp, uas.flow.local, uas.flow.remote, ConnectionId(7));
    uas.hear("I");
    for octet in ["N", "V", "I"] {
        uas.pass(Duration::from_secs(10));
        assert!(!closed(&mut uas));
        uas.hear(octet);
    }
    uas.pass(Duration::from_secs(2));
    assert!(closed(&mut uas), "32 s after its first octet, however it drips");
}

#[test]
fn connection_without_a_call_must_be_heard_from_time_to_time() {
    let mut uas = Uas::new();
    uas.flow = Flow::connected(Transport::Tcp, uas.flow.local, uas.flow.remote, ConnectionId(7));
    uas.hear("\r\n\r\n");
    for keep_alive in ["\r\n\r\n", "\r\n"] {
        uas.pass(Duration::from_secs(120));
        assert!(!closed(&mut uas));
        uas.hear(keep_alive);
    }
    uas.pass(endpoint::IDLE_MAX);
    assert!(closed(&mut uas));
}

#[test]
fn silent_connection_with_a_call_stays_open() {
    let (mut uas, call, tag) = tcp_caller("<sip:me@127.0.0.9:5070;transport=tcp>");
    uas.hear(&request("ACK", 1, "ack", &tag, ""));
    uas.event();
    for _ in 0..20 {
        uas.pass(endpoint::IDLE_MAX);
        assert!(!closed(&mut uas));
    }
    uas.endpoint.bye(call, Headers::new(), uas.now).unwrap();
    uas.pass(Duration::from_secs(33));
    assert!(matches!(uas.event(), Some(Event::Ended { .. })));
    uas.pass(endpoint::IDLE_MAX);
    assert!(closed(&mut uas), "and is closed when the call is over");
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
    assert_eq!(uas.event(), None, "a bad message alone does not close");
    let endless =
        request("OPTIONS", 1, "o", "", "").replace("Content-Length: 0\r\n", "").replace(";tag=\r", "\r");
    assert_eq!(first(&uas.hear(&endless)), "SIP/2.0 400 Bad Request: missing Content-Length");
    assert!(matches!(uas.event(), Some(Event::CloseConnection { connection: ConnectionId(7), .. })));
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
    let event = uas.event().unwrap();
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

fn header<'a>(said: &'a str, name: &str) -> Option<&'a str> {
    said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// A request of no dialog.
fn fresh(method: &str, extra: &str) -> String {
    request(method, 1, &format!("f{method}"), "", extra).replace(";tag=\r", "\r")
}

#[test]
fn each_method_gets_its_status() {
    for (method, extra, status, expected) in [
        ("OPTIONS", "", 200, ("Accept", "application/sdp")),
        ("OPTIONS", "Max-Forwards: 0\r\n", 200, ("Accept", "application/sdp")),
        ("SUBSCRIBE", "Event: presence\r\n", 489, ("Allow-Events", "refer")),
        ("SUBSCRIBE", "", 489, ("Allow-Events", "refer")),
        ("PUBLISH", "", 405, ("Allow", "INVITE, ACK, BYE, CANCEL, OPTIONS, NOTIFY, PRACK, INFO, UPDATE")),
        ("MESSAGE", "", 405, ("Allow", "INVITE, ACK, BYE, CANCEL, OPTIONS, NOTIFY, PRACK, INFO, UPDATE")),
        ("REGISTER", "", 405, ("Allow", "INVITE, ACK, BYE, CANCEL, OPTIONS, NOTIFY, PRACK, INFO, UPDATE")),
        ("REFER", "", 405, ("Allow", "INVITE, ACK, BYE, CANCEL, OPTIONS, NOTIFY, PRACK, INFO, UPDATE")),
        ("JUMP", "", 501, ("Allow", "INVITE, ACK, BYE, CANCEL, OPTIONS, NOTIFY, PRACK, INFO, UPDATE")),
        ("NOTIFY", "Event: refer\r\n", 481, ("Server", "Tandem/0.1.0")),
        ("INFO", "", 481, ("Server", "Tandem/0.1.0")),
        ("BYE", "", 481, ("Server", "Tandem/0.1.0")),
        ("PRACK", "RAck: 1 1 INVITE\r\n", 481, ("Server", "Tandem/0.1.0")),
        ("OPTIONS", "Require: path, timer, outbound\r\n", 420, ("Unsupported", "path, outbound")),
        ("INVITE", "Session-Expires: soon\r\n", 400, ("Server", "Tandem/0.1.0")),
        ("INVITE", "Session-Expires: 60\r\nSupported: timer\r\n", 422, ("Min-SE", "90")),
        ("INVITE", "Replaces: nobody;to-tag=1;from-tag=2\r\n", 481, ("Server", "Tandem/0.1.0")),
        ("INVITE", "Replaces: nobody\r\n", 400, ("Server", "Tandem/0.1.0")),
    ] {
        let mut uas = Uas::new();
        let mut text = fresh(method, extra);
        if extra.starts_with("Max-Forwards") {
            text = text.replace("Max-Forwards: 69\r\n", "");
        }
        let said = uas.hear(&text);
        assert_eq!(said.len(), 1, "{method} {extra}");
        assert!(first(&said).starts_with(&format!("SIP/2.0 {status} ")), "{method} {extra}: {said:?}");
        assert_eq!(header(&said[0], expected.0), Some(expected.1), "{method} {extra}: {said:?}");
        assert!(header(&said[0], "To").is_some_and(|to| to.contains(";tag=")), "{said:?}");
        assert_eq!(
            (uas.event(), uas.endpoint.transaction_count()),
            (None, 0),
            "no state for {method} {extra}"
        );
    }
}

#[test]
fn call_without_a_hop_left_is_refused_only_where_calls_are_passed_on() {
    for (forwards, status) in [(false, "SIP/2.0 100 Trying"), (true, "SIP/2.0 483 Too Many Hops")] {
        let mut uas = Uas::new();
        uas.endpoint = Endpoint::new(EndpointConfig { forwards, ..EndpointConfig::default() });
        let spent = |text: String| text.replace("Max-Forwards: 69", "Max-Forwards: 0");
        assert_eq!(first(&uas.hear(&spent(invite("1", "")))), status);
        assert_eq!(first(&uas.hear(&spent(fresh("OPTIONS", "")))), "SIP/2.0 200 OK");
    }
}

#[test]
fn served_methods_and_packages_reach_the_user() {
    let mut uas = Uas::new();
    uas.endpoint = Endpoint::new(EndpointConfig {
        accepted_methods: vec![Method::Message, Method::Subscribe, Method::Notify, Method::Register],
        event_packages: vec!["reg".to_owned()],
        ..EndpointConfig::default()
    });
    for (method, extra) in [
        ("MESSAGE", ""),
        ("REGISTER", ""),
        ("SUBSCRIBE", "Event: reg;id=1\r\n"),
        ("NOTIFY", "Event: message-summary\r\n"),
    ] {
        assert_eq!(uas.hear(&fresh(method, extra)), Vec::<String>::new());
        let Some(Event::Request { request, call: None, .. }) = uas.event() else { panic!("{method}") };
        assert_eq!(request.method.as_str(), method);
    }
    let said = uas.hear(&fresh("SUBSCRIBE", "Event: presence\r\n").replace("fSUB", "other"));
    assert_eq!(header(&said[0], "Allow-Events"), Some("refer, reg"));
}

#[test]
fn caller_who_asks_for_a_timer_gets_it_with_the_refresher_named() {
    for (extra, expires, require) in [
        ("Session-Expires: 600\r\nSupported: timer\r\n", Some("600;refresher=uas"), Some("timer")),
        ("x: 600;refresher=uac\r\nk: timer\r\n", Some("600;refresher=uac"), Some("timer")),
        ("Session-Expires: 600;refresher=uac\r\n", Some("600;refresher=uas"), None),
        ("Session-Expires: 7200\r\nRequire: timer\r\n", Some("1800;refresher=uas"), Some("timer")),
        ("Supported: timer\r\n", Some("1800;refresher=uas"), Some("timer")),
        ("", None, None),
    ] {
        let mut uas = Uas::new();
        uas.hear(&invite("1", extra));
        let Some(Event::IncomingInvite { call, .. }) = uas.event() else { panic!("{extra}") };
        uas.endpoint.answer(call, Body::sdp("v=0\r\n"), uas.now).unwrap();
        let said = uas.said();
        assert_eq!(header(&said[0], "Session-Expires"), expires, "{extra}: {said:?}");
        assert_eq!(header(&said[0], "Require"), require, "{extra}");
    }
}

#[test]
fn reliable_response_is_repeated_until_its_prack_and_the_answer_waits() {
    let mut uas = Uas::new();
    uas.hear(&invite("1", "Require: 100rel\r\n"));
    let Some(Event::IncomingInvite { call, .. }) = uas.event() else { panic!() };
    uas.endpoint.respond(call, Reply::new(183).body(Body::sdp("early")), uas.now).unwrap();
    let said = uas.said();
    let rseq: u32 = header(&said[0], "RSeq").unwrap().parse().unwrap();
    assert_eq!((header(&said[0], "Require"), rseq > 0), (Some("100rel"), true));
    uas.endpoint.ring(call, uas.now).unwrap();
    uas.endpoint.answer(call, Body::sdp("early"), uas.now).unwrap();
    assert!(uas.said().is_empty(), "180 and 200 wait");
    assert_eq!(
        uas.endpoint.answer(call, Body::sdp("again"), uas.now),
        Err(CallError::State("the answer waits for a PRACK"))
    );
    let mut repeated = 0;
    for _ in 0..4 {
        repeated += uas.pass(Duration::from_millis(500)).len();
    }
    assert_eq!(repeated, 2, "after 0.5 and 1.5 s");
    let tag = uas.endpoint.dialog(call).unwrap().local_tag().to_owned();
    let prack = |branch: &str, cseq: u32, rack: &str| {
        request("PRACK", cseq, branch, &tag, &format!("RAck: {rack}\r\n"))
    };
    assert_eq!(first(&uas.hear(&prack("a", 2, "nonsense"))), "SIP/2.0 400 Bad Request");
    let wrong = uas.hear(&prack("b", 3, &format!("{} 1 INVITE", rseq + 1)));
    assert_eq!(first(&wrong), "SIP/2.0 481 Call/Transaction Does Not Exist");
    let right = uas.hear(&prack("c", 4, &format!("{rseq} 1 INVITE")));
    assert_eq!(first(&right), "SIP/2.0 200 OK");
    assert!(right[1].starts_with("SIP/2.0 180 Ringing"), "the next one leaves: {right:?}");
    assert_eq!(header(&right[1], "RSeq"), Some(&*(rseq + 1).to_string()));
    assert!(matches!(uas.event(), Some(Event::Pracked { .. })));
    let answered = uas.hear(&prack("d", 5, &format!("{} 1 INVITE", rseq + 1)));
    assert!(answered[1].starts_with("SIP/2.0 200 OK") && answered[1].contains("INVITE"), "{answered:?}");
    assert!(uas.pass(Duration::from_millis(400)).is_empty(), "nothing reliable is left to repeat");
}

#[test]
fn reliable_response_without_a_prack_ends_the_call_with_504() {
    let mut uas = Uas::new();
    uas.hear(&invite("1", "Require: 100rel\r\n"));
    let Some(Event::IncomingInvite { call, .. }) = uas.event() else { panic!() };
    uas.endpoint.ring(call, uas.now).unwrap();
    uas.said();
    let mut said = Vec::new();
    for _ in 0..64 {
        said.extend(uas.pass(Duration::from_millis(500)));
    }
    assert_eq!(said.iter().filter(|text| text.starts_with("SIP/2.0 180")).count(), 6);
    assert!(said.last().unwrap().starts_with("SIP/2.0 504 Server Time-out"), "{said:?}");
    assert_eq!(uas.event(), Some(Event::Ended { call, why: EndReason::NoPrack }));
}

#[test]
fn reliability_follows_configuration_and_caller() {
    use Reliability::{IfRequired, Never, Prefer, Require};
    for (reliable, extra, expected) in [
        (IfRequired, "Supported: 100rel\r\n", "180 without"),
        (IfRequired, "Require: 100rel\r\n", "180 with"),
        (Prefer, "Supported: 100rel\r\n", "180 with"),
        (Prefer, "", "180 without"),
        (Require, "", "421"),
        (Require, "Supported: 100rel\r\n", "180 with"),
        (Never, "Supported: 100rel\r\n", "180 without"),
        (Never, "Require: 100rel\r\n", "420"),
    ] {
        let mut uas = Uas::new();
        uas.endpoint = Endpoint::new(EndpointConfig { reliable, ..EndpointConfig::default() });
        let mut said = uas.hear(&invite("1", extra));
        if let Some(Event::IncomingInvite { call, .. }) = uas.event() {
            uas.endpoint.ring(call, uas.now).unwrap();
            said = uas.said();
        }
        let has_rseq = header(&said[0], "RSeq").is_some();
        let got = match first(&said).split(' ').nth(1).unwrap() {
            "180" => {
                if has_rseq {
                    "180 with"
                } else {
                    "180 without"
                }
            }
            other => other,
        };
        assert_eq!(got, expected, "{reliable:?} {extra}: {said:?}");
        if got == "421" {
            assert_eq!(header(&said[0], "Require"), Some("100rel"));
        }
    }
}

#[test]
fn refer_needs_one_usable_target() {
    let mut uas = Uas::new();
    uas.endpoint =
        Endpoint::new(EndpointConfig { in_dialog_methods: vec![Method::Refer], ..EndpointConfig::default() });
    let (call, tag) = uas.up();
    let refer = |cseq: u32, extra: &str| request("REFER", cseq, &format!("r{cseq}"), &tag, extra);
    for (cseq, extra) in [(2, ""), (3, "Refer-To: sip:a@b\r\nRefer-To: sip:c@d\r\n"), (4, "r: <sip:a\r\n")] {
        assert_eq!(first(&uas.hear(&refer(cseq, extra))), "SIP/2.0 400 Bad Request", "{extra}");
    }
    assert!(uas.hear(&refer(5, "Refer-To: sip:carol@c.example\r\n")).is_empty());
    let Some(Event::Request { handle, call: Some(of), .. }) = uas.event() else { panic!() };
    assert_eq!(of, call);
    uas.endpoint.accept_refer(handle, uas.now).unwrap();
    let said = uas.said();
    assert_eq!(first(&said), "SIP/2.0 202 Accepted");
    assert_eq!(header(&said[1], "Event"), Some("refer;id=5"));
    assert_eq!(header(&said[1], "Subscription-State"), Some("active;expires=300"));
    assert!(said[1].ends_with("\r\n\r\nSIP/2.0 100 Trying\r\n"), "{said:?}");
    assert_eq!(first(&uas.hear(&refer(6, "Refer-To: sip:x@y\r\n"))), "SIP/2.0 491 Request Pending");
}

#[test]
fn unwanted_notifications_of_a_transfer_get_their_answer() {
    let mut uas = Uas::new();
    uas.endpoint =
        Endpoint::new(EndpointConfig { in_dialog_methods: vec![Method::Refer], ..EndpointConfig::default() });
    let (_, tag) = uas.up();
    let said = uas.hear(&request("REFER", 2, "r", &tag, "Refer-To: sip:a@b\r\nRefer-Sub: false\r\n"));
    assert!(said.is_empty());
    let Some(Event::Request { handle, .. }) = uas.event() else { panic!() };
    uas.endpoint.accept_refer(handle, uas.now).unwrap();
    let said = uas.said();
    assert_eq!((said.len(), header(&said[0], "Refer-Sub")), (1, Some("false")), "no NOTIFY: {said:?}");
    let stray = request("NOTIFY", 3, "n", &tag, "Event: refer\r\nSubscription-State: active\r\n");
    assert_eq!(first(&uas.hear(&stray)), "SIP/2.0 481 Call/Transaction Does Not Exist");
    assert_eq!(first(&uas.hear(&request("NOTIFY", 4, "m", &tag, ""))), "SIP/2.0 489 Bad Event");
}

#[test]
fn advertised_host_of_a_call_stands_in_its_contact() {
    let mut uas = Uas::new();
    let call = uas.incoming();
    uas.endpoint.advertise(call, Some("203.0.113.5:5070".into())).unwrap();
    uas.endpoint.ring(call, uas.now).unwrap();
    assert_eq!(header(&uas.said()[0], "Contact"), Some("<sip:tandem@203.0.113.5:5070>"));
    uas.endpoint.advertise(call, Some("sip.example".into())).unwrap();
    uas.endpoint.answer(call, Body::sdp("v=0\r\n"), uas.now).unwrap();
    assert_eq!(header(&uas.said()[0], "Contact"), Some("<sip:tandem@sip.example:4573>"));
}

#[test]
fn what_the_user_agrees_on_with_a_caller_holds_for_its_call() {
    let timer = SessionTimer { expires_s: 600, min_se_s: 90, refresher: None };
    for (reliable, extra, is_reliable) in [
        (Reliability::Prefer, "Supported: 100rel, timer\r\n", true),
        (Reliability::Prefer, "Supported: timer\r\n", false),
        (Reliability::IfRequired, "Supported: 100rel, timer\r\n", false),
        (Reliability::Never, "Require: 100rel\r\nSupported: timer\r\n", false),
    ] {
        let mut uas = Uas::new();
        uas.hear(&invite("1", extra));
        let Some(Event::IncomingInvite { call, .. }) = uas.event() else { panic!("no call") };
        uas.endpoint.agree(call, reliable, Some(timer)).unwrap();
        uas.endpoint.ring(call, uas.now).unwrap();
        let ringing = uas.said().concat();
        assert_eq!(ringing.contains("RSeq: "), is_reliable, "{reliable:?} {extra}");
        assert!(uas.endpoint.agree(call, reliable, None).is_err(), "too late");
        if !is_reliable {
            uas.endpoint.answer(call, Body::sdp("v=0\r\n"), uas.now).unwrap();
            assert!(uas.said().concat().contains("Session-Expires: 600;"));
        }
    }
}

#[test]
fn session_that_would_end_at_once_is_granted_no_less_than_ninety_seconds() {
    for asked in ["0", "1", "89"] {
        let mut uas = Uas::new();
        uas.hear(&invite("1", &format!("Session-Expires: {asked}\r\n")));
        let Some(Event::IncomingInvite { call, .. }) = uas.event() else { panic!("no call") };
        uas.endpoint.answer(call, Body::sdp("v=0\r\n"), uas.now).unwrap();
        let tag = uas.endpoint.dialog(call).unwrap().local_tag().to_owned();
        assert!(uas.said().concat().contains("Session-Expires: 90;refresher=uas"), "{asked}");
        uas.hear(&request("ACK", 1, "ack", &tag, ""));
        assert!(uas.pass(Duration::from_secs(20)).is_empty(), "neither a BYE nor a refresh");
    }
}

#[test]
fn second_offer_of_theirs_before_our_answer_to_the_first_gets_500_and_a_wait() {
    let mut uas = Uas::new();
    let (_, tag) = uas.up();
    let sdp = "Content-Type: application/sdp\r\nContent-Length: 5\r\n\r\nv=1\r\n";
    let offer = |method: &str, cseq, branch| {
        request(method, cseq, branch, &tag, "").replace("Content-Length: 0\r\n\r\n", sdp)
    };
    uas.hear(&offer("INVITE", 2, "re"));
    let said = uas.hear(&offer("UPDATE", 3, "up"));
    assert_eq!(first(&said), "SIP/2.0 500 Server Internal Error");
    assert!(said[0].contains("\r\nRetry-After: "), "{said:?}");
}
