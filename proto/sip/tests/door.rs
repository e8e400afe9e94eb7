//! The door: whatever would begin something, or be answered, is asked about first, however it comes.

use std::time::Instant;

use proptest::prelude::*;
use tandem_sip::endpoint::Knock;
use tandem_sip::{Body, ConnectionId, Endpoint, EndpointConfig, Event, Flow, Method, Transport};

fn udp() -> Flow {
    Flow::udp(([192, 0, 2, 1], 5060).into(), ([192, 0, 2, 2], 5060).into())
}

fn stream() -> Flow {
    let (local, remote) = (([192, 0, 2, 1], 5060).into(), ([192, 0, 2, 2], 40_000).into());
    Flow::connected(Transport::Tcp, local, remote, ConnectionId(1))
}

fn endpoint() -> Endpoint {
    Endpoint::new(EndpointConfig { accepted_methods: vec![Method::Register], ..EndpointConfig::default() })
}

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

fn request(method: &str, number: u32, to: &str) -> String {
    format!(
        "{method} sip:100@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.2;branch=z9hG4bK{number}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:x@192.0.2.2>;tag={number}\r\nTo: {to}\r\nCall-ID: c{number}\r\n\
         CSeq: 1 {method}\r\nContact: <sip:x@192.0.2.2>\r\nContent-Length: 0\r\n\r\n"
    )
}

/// What knocked, in words.
fn knocks(endpoint: &mut Endpoint, bytes: &[u8], flow: Flow, lets_in: bool) -> Vec<String> {
    let mut heard = Vec::new();
    endpoint.handle_input_at(bytes, flow, now(), &mut |knock| {
        heard.push(match knock {
            Knock::Request(request) => request.method.as_str().to_owned(),
            Knock::Repeated(request) => format!("{} again", request.method.as_str()),
            Knock::Malformed(_) => "malformed".to_owned(),
            Knock::Garbage => "garbage".to_owned(),
        });
        lets_in
    });
    heard
}

fn leaves_nothing(endpoint: &mut Endpoint) -> bool {
    endpoint.poll_transmit().is_none() && endpoint.transaction_count() == 0 && endpoint.call_count() == 0
}

#[test]
fn empty_lines_before_a_request_hide_it_from_nobody() {
    let mut endpoint = endpoint();
    let text = format!("\r\n\r\n{}", request("INVITE", 1, "<sip:100@192.0.2.1>"));
    assert_eq!(knocks(&mut endpoint, text.as_bytes(), udp(), false), ["INVITE"]);
    assert!(leaves_nothing(&mut endpoint));
}

#[test]
fn tag_of_no_dialog_is_no_pass() {
    let mut endpoint = endpoint();
    for to in ["<sip:100@h;tag=x>", "\"a;tag=b\" <sip:100@h>", "<sip:100@h>;tag=made-up"] {
        for method in ["INVITE", "BYE", "CANCEL", "PRACK"] {
            let text = request(method, 1, to);
            assert_eq!(knocks(&mut endpoint, text.as_bytes(), udp(), false), [method], "{to}");
            assert!(leaves_nothing(&mut endpoint));
        }
    }
}

#[test]
fn each_message_of_a_stream_knocks_however_the_stream_is_cut() {
    let all: String = (0..30).map(|number| request("INVITE", number, "<sip:100@192.0.2.1>")).collect();
    let mut one = endpoint();
    assert_eq!(knocks(&mut one, all.as_bytes(), stream(), true).len(), 30, "in one piece");
    let mut cut = endpoint();
    let (first, rest) = all.split_at(2);
    assert!(knocks(&mut cut, first.as_bytes(), stream(), true).is_empty());
    assert_eq!(knocks(&mut cut, rest.as_bytes(), stream(), true).len(), 30, "IN, and VITE …");
}

#[test]
fn shut_door_ends_the_connection_and_what_stands_behind_the_message() {
    let mut endpoint = endpoint();
    let two: String = (0..2).map(|number| request("INVITE", number, "<sip:100@192.0.2.1>")).collect();
    assert_eq!(knocks(&mut endpoint, two.as_bytes(), stream(), false), ["INVITE"]);
    assert!(leaves_nothing(&mut endpoint));
    assert!(matches!(endpoint.poll_event(), Some(Event::CloseConnection { .. })));
}

#[test]
fn what_belongs_to_a_live_dialog_is_not_asked_about() {
    let mut endpoint = endpoint();
    let invite = request("INVITE", 1, "<sip:100@192.0.2.1>");
    assert_eq!(knocks(&mut endpoint, invite.as_bytes(), udp(), true), ["INVITE"]);
    let Some(Event::IncomingInvite { call, .. }) = endpoint.poll_event() else { panic!("no call") };
    endpoint.answer(call, Body::sdp("v=0\r\n"), now()).unwrap();
    let answer = std::iter::from_fn(|| endpoint.poll_transmit()).last().unwrap();
    let text = String::from_utf8(answer.bytes).unwrap();
    let to = text.lines().find_map(|line| line.strip_prefix("To: ")).unwrap().to_owned();
    let ack = request("ACK", 1, &to).replace("z9hG4bK1", "z9hG4bK2");
    let bye = request("BYE", 1, &to).replace("z9hG4bK1", "z9hG4bK3").replace("CSeq: 1", "CSeq: 2");
    for text in [&ack, &bye] {
        assert!(knocks(&mut endpoint, text.as_bytes(), udp(), false).is_empty());
    }
    assert_eq!(endpoint.call_count(), 0, "the BYE has arrived");
    assert_eq!(knocks(&mut endpoint, bye.as_bytes(), udp(), false), ["BYE again"]);
}

#[test]
fn what_does_not_parse_knocks_before_its_400() {
    let mut endpoint = endpoint();
    let text = request("INVITE", 1, "<sip:100@192.0.2.1>").replace("CSeq: 1 INVITE", "CSeq: x");
    assert_eq!(knocks(&mut endpoint, text.as_bytes(), udp(), false), ["malformed"]);
    assert_eq!(knocks(&mut endpoint, b"GET / HTTP/1.1\r\n\r\n", udp(), false), ["garbage"]);
    assert!(leaves_nothing(&mut endpoint));
}

/// A few requests, with octets changed, put in and taken away.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop::sample::select(vec!["INVITE", "REGISTER", "OPTIONS", "BYE", "CANCEL", "NOTIFY", "ACK"]);
    let tos = prop::sample::select(vec!["<sip:100@h>", "<sip:100@h>;tag=a", "\";tag=\" <sip:100@h;tag=b>"]);
    let text = prop::collection::vec((kinds, tos, 0u32..4), 1..4).prop_map(|all| {
        all.into_iter().map(|(method, to, number)| request(method, number, to)).collect::<String>()
    });
    let changes = prop::collection::vec((any::<prop::sample::Index>(), 0u8..3, any::<u8>()), 0..4);
    (prop::sample::select(vec!["", "\r\n", "\r\n\r\n", "\n"]), text, changes).prop_map(
        |(before, text, changes)| {
            let mut bytes = text.into_bytes();
            for (at, how, octet) in changes {
                let at = at.index(bytes.len());
                match how {
                    0 => bytes[at] = octet,
                    1 => bytes.insert(at, octet),
                    _ => drop(bytes.remove(at)),
                }
            }
            [before.as_bytes(), &bytes].concat()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// The only rule that counts: behind a shut door nothing is kept and nothing is answered.
    #[test]
    fn behind_a_shut_door_nothing_is_kept_or_answered(bytes in mutated(), cut in any::<prop::sample::Index>()) {
        for flow in [udp(), stream()] {
            let mut endpoint = endpoint();
            let at = if flow.connection.is_some() { cut.index(bytes.len()) } else { 0 };
            for piece in [&bytes[..at], &bytes[at..]] {
                endpoint.handle_input_at(piece, flow, now(), &mut |_| false);
            }
            while let Some(transmit) = endpoint.poll_transmit() {
                prop_assert_eq!(transmit.bytes, b"\r\n", "a keep-alive is answered, nothing else");
            }
            prop_assert_eq!((endpoint.transaction_count(), endpoint.call_count()), (0, 0));
            while let Some(event) = endpoint.poll_event() {
                prop_assert!(matches!(event, Event::CloseConnection { .. }), "{:?}", event);
            }
        }
    }
}
