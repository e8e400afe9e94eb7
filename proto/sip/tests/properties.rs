//! What holds for any input: nothing panics, and what is written reads back as the same.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use tandem_sip::framing::fuzz_stream;
use tandem_sip::header::fuzz_value;
use tandem_sip::parse::{fuzz_message, parse};
use tandem_sip::{Endpoint, EndpointConfig, Flow, Headers, Message, Method, NameAddr, Request, Uri};

const SEEDS: &[&str] = &[
    "INVITE sip:echo:key@127.0.0.1:4573;transport=udp SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1:5060;rport;branch=z9hG4bK1\r\n\
     Max-Forwards: 70\r\nRecord-Route: <sip:p1;lr>\r\nFrom: \"A \\\"B\\\"\" <sip:a@b>;tag=1\r\nTo: <sip:c@d>\r\nCall-ID: x@y\r\n\
     CSeq: 1 INVITE\r\nContact: <sip:a@10.0.0.1>\r\nContent-Type: application/sdp\r\nContent-Length: 5\r\n\r\nv=0\r\n",
    "SIP/2.0 200 OK\r\nv: SIP/2.0/TCP [::1]:5060;branch=z9hG4bK2;received=::1, SIP/2.0/UDP h;branch=z9hG4bK3\r\n\
     f: <sip:a@b>;tag=1\r\nt: sip:c@d;tag=2\r\ni: x\r\nCSeq: 7 REGISTER\r\nm: <sip:a@b>;expires=60\r\n\
     WWW-Authenticate: Digest realm=\"r\", nonce=\"n\"\r\nDate: Sat, 13 Nov 2010 23:29:00 GMT\r\nl: 0\r\n\r\n",
    "BYE sips:a@b;lr?x=y SIP/2.0\r\nVia: SIP/2.0/TLS h:1;branch=z9hG4bK4\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:c@d>;tag=2\r\n\
     Call-ID: x\r\nCSeq: 9 BYE\r\nRoute: <sip:p;lr>,\r\n <sip:q>\r\nRequire: a, b\r\nContent-Length: 0\r\n\r\n",
    "INVITE sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK5\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:c@d>\r\nCall-ID: y\r\n\
     CSeq: 1 INVITE\r\nContact: <sip:a@10.0.0.1>\r\nRequire: 100rel, timer\r\nSession-Expires: 90;refresher=uac\r\n\
     Allow: UPDATE\r\nReplaces: x@y;to-tag=2;from-tag=1\r\nContent-Length: 0\r\n\r\n",
    "REFER sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK6\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:c@d>\r\nCall-ID: z\r\n\
     CSeq: 1 REFER\r\nContact: <sip:a@10.0.0.1>\r\nRefer-To: <sip:x@y?Replaces=a%3Bto-tag%3D1%3Bfrom-tag%3D2>\r\n\
     Content-Length: 0\r\n\r\n",
];

/// Values of header fields that have a reader of their own.
const VALUES: &[&str] = &[
    "1800;refresher=uac",
    "776656 1 INVITE",
    "98732@sip.example.com;from-tag=r33;to-tag=ff8;early-only",
    "\"C\" <sip:carol@c.example?Replaces=1%402%3Bto-tag%3D7%3Bfrom-tag%3D6>;x=1",
    "Q.850;cause=16;text=\"Normal \\\"call\\\" clearing\"",
    "SIP/2.0 486 Busy Here\r\n",
    "terminated;reason=noresource",
    "<sip:bob@p.example?Reason=SIP%3Bcause%3D302&Privacy=history>;index=1.1",
    "<sip:a@h>;expires=60;q=0.7, *, sip:b@h;expires=x",
    "Digest username=\"u\", realm=\"r\", nonce=\"n\", uri=\"sip:b\", qop=auth, nc=00000001, cnonce=\"c\", response=\"0\"",
    "Digest realm=\"r\", nonce=\"n\", qop=\"auth,auth-int\", algorithm=MD5-sess, stale=true, opaque=\"\"",
];

/// A message with some octets changed, put in or taken out.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    mutated_of(SEEDS)
}

fn mutated_of(seeds: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let edit = (
        0u8..3,
        any::<prop::sample::Index>(),
        prop_oneof![any::<u8>(), prop::sample::select(b";,:<>\"@=%\\ \r\n0".to_vec())],
    );
    (0..seeds.len(), prop::collection::vec(edit, 0..6)).prop_map(|(seed, edits)| {
        let mut bytes = seeds[seed].as_bytes().to_vec();
        for (kind, at, octet) in edits {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = octet,
                1 => bytes.insert(at, octet),
                _ => drop(bytes.remove(at)),
            }
        }
        bytes
    })
}

fn uri() -> impl Strategy<Value = String> {
    let user = "([a-zA-Z0-9._~*'()&=+$,;?/!-]|%[0-9a-fA-F]{2}){1,12}";
    let password = "(:([a-zA-Z0-9._~&=+$,!-]|%[0-9A-F]{2}){0,12})?";
    let host = prop_oneof![
        "[a-zA-Z0-9]{1,8}(\\.[a-zA-Z0-9-]{1,8}){0,3}",
        any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|ip| format!("[{ip}]")),
    ];
    let port =
        prop::option::of(1u16..).prop_map(|port| port.map(|port| format!(":{port}")).unwrap_or_default());
    let params = "(;[a-zA-Z0-9-]{1,8}(=[a-zA-Z0-9\\[\\]/:&+$%41-]{1,8})?){0,3}"
        .prop_map(|text| text.replace('%', "%41"));
    ("(sip|sips|SIP)", user, password, host, port, params).prop_map(
        |(scheme, user, password, host, port, params)| {
            format!("{scheme}:{user}{password}@{host}{port}{params}")
        },
    )
}

#[allow(clippy::disallowed_methods)]
fn some_instant() -> Instant {
    Instant::now()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_octets_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz_message(&bytes);
        fuzz_stream(&bytes);
    }

    #[test]
    fn nearly_valid_values_are_read_without_panic_and_written_back(value in mutated_of(VALUES)) {
        fuzz_value(&value);
    }

    #[test]
    fn any_value_is_read_without_panic(value in "\\PC{0,80}") {
        fuzz_value(value.as_bytes());
    }

    #[test]
    fn nearly_valid_octets_are_read_without_panic_and_written_back(bytes in mutated()) {
        fuzz_message(&bytes);
        fuzz_stream(&bytes);
    }

    /// And whatever comes, in whatever order, the endpoint is empty again when the last timer has fired.
    #[test]
    fn endpoint_survives_anything_and_forgets_it(messages in prop::collection::vec(mutated(), 1..8)) {
        let flow = Flow::udp(([10, 0, 0, 1], 5060).into(), ([10, 0, 0, 2], 5060).into());
        let config = EndpointConfig { accepted_methods: vec![Method::Refer], ..EndpointConfig::default() };
        let mut endpoint = Endpoint::new(config);
        let mut now = some_instant();
        for bytes in messages {
            endpoint.handle_input(&bytes, flow, now);
            while endpoint.poll_transmit().is_some() {}
            while let Some(event) = endpoint.poll_event() {
                match event {
                    tandem_sip::Event::IncomingInvite { call, .. } => {
                        let _ = endpoint.ring(call, now);
                        prop_assert!(endpoint.hang_up(call, Headers::new(), now).is_ok());
                    }
                    tandem_sip::Event::Request { handle, .. } => {
                        prop_assert!(endpoint.accept_refer(handle, now).is_err(), "only in a call");
                    }
                    _ => {}
                }
            }
            now += Duration::from_millis(100);
        }
        for _ in 0..1000 {
            while endpoint.poll_transmit().is_some() {}
            let Some(at) = endpoint.poll_timeout() else { break };
            now = now.max(at);
            endpoint.handle_timeout(now);
        }
        prop_assert_eq!((endpoint.poll_timeout(), endpoint.call_count(), endpoint.transaction_count()), (None, 0, 0));
    }

    #[test]
    fn uri_of_the_grammar_is_read_and_its_password_hidden(text in uri()) {
        let uri = Uri::parse(&text).map_err(|why| TestCaseError::fail(format!("{text}: {why}")))?;
        prop_assert_eq!(uri.as_str(), &text);
        prop_assert_eq!(&Uri::parse(&text).unwrap(), &uri);
        prop_assert!(uri.host_ip().is_none() || uri.socket_addr().is_some());
        let bare = uri.without_password();
        prop_assert!(bare.password().is_none() && bare.user() == uri.user() && bare.host() == uri.host());
        let hidden = uri.redacted().to_string();
        prop_assert_eq!(uri.password().is_some(), hidden.contains(":***@"));
    }

    #[test]
    fn any_text_is_a_uri_or_a_reason(text in "\\PC{0,60}") {
        if let Ok(uri) = Uri::parse(&text) {
            prop_assert_eq!(uri.as_str(), &text);
            let _ = (uri.user(), uri.password(), uri.params().count(), uri.redacted().to_string());
        }
    }

    #[test]
    fn name_addr_reads_back(display in "\\PC{0,20}", text in uri()) {
        let addr = NameAddr::new(Uri::parse(&text).unwrap()).with_display(&display);
        prop_assert_eq!(NameAddr::parse(&addr.to_wire()), Ok(addr));
    }

    #[test]
    fn written_request_reads_back_as_the_same(
        text in uri(),
        extra in prop::collection::vec(("X-[A-Za-z0-9-]{1,12}", "([!-~]([ -~]{0,20}[!-~])?)?"), 0..8),
        body in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut headers = Headers::new();
        for (name, value) in [
            ("Via", "SIP/2.0/UDP h:5060;branch=z9hG4bKx"),
            ("From", "<sip:a@b>;tag=1"),
            ("To", "<sip:c@d>"),
            ("Call-ID", "x@y"),
            ("CSeq", "1 MESSAGE"),
        ] {
            headers.push(name, value).unwrap();
        }
        for (name, value) in &extra {
            headers.push(name, value).unwrap();
        }
        headers.push("Content-Length", &body.len().to_string()).unwrap();
        let request = Request::new(Method::Message, Uri::parse(&text).unwrap(), headers, body).unwrap();
        prop_assert_eq!(parse(&request.to_bytes()), Ok(Message::Request(request)));
    }
}
