//! The messages of RFC 4475 (one file each) and the flows of RFC 3665 (one file each, as a TCP stream would carry them),
//! all of them switched on.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use tandem_sip::framing::{Frame, StreamFramer};
use tandem_sip::parse::parse;
use tandem_sip::{Endpoint, EndpointConfig, Event, Flow, HeaderName, Message, Method, Request};

fn read(folder: &str, name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/torture")
        .join(folder)
        .join(format!("{name}.sip"));
    fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

fn names(folder: &str) -> BTreeSet<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/torture").join(folder);
    let entries = fs::read_dir(path).expect("the folder is in the repository");
    entries
        .map(|entry| {
            entry
                .expect("a readable folder")
                .file_name()
                .to_string_lossy()
                .trim_end_matches(".sip")
                .to_owned()
        })
        .collect()
}

fn request(folder: &str, name: &str) -> Request {
    match parse(&read(folder, name)) {
        Ok(Message::Request(request)) => request,
        other => panic!("{name}: {other:?}"),
    }
}

/// What a valid message says: start, top Via's host, From tag, To tag, Call-ID, CSeq number, length of the body.
type Expected =
    (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str, u32, usize);

const VALID: &[Expected] = &[
    ("wsinv", "INVITE", "192.0.2.2", "98asjd8", "1918181833n", "wsinv.ndaksdj@192.0.2.1", 9, 150),
    (
        "intmeth",
        "!interesting-Method0123456789_*+`.%indeed'~",
        "host1.example.com",
        "_token~1'+`*%!-.",
        "",
        "intmeth.word%ZK-!.*_+'@word`~)(><:\\/\"][?}{",
        139122385,
        0,
    ),
    ("esc01", "INVITE", "host5.example.net", "938", "", "esc01.239409asdfakjkn23onasd0-3234", 234234, 150),
    (
        "escnull",
        "REGISTER",
        "host5.example.com",
        "839923423",
        "",
        "escnull.39203ndfvkjdasfkq3w4otrq0adsfdfnavd",
        14398234,
        0,
    ),
    (
        "esc02",
        "RE%47IST%45R",
        "host.example.com",
        "f232jadfj23",
        "",
        "esc02.asdfnqwo34rq23i34jrjasdcnl23nrlknsdf",
        29344,
        0,
    ),
    ("lwsdisp", "OPTIONS", "funky.example.com", "323", "", "lwsdisp.1234abcd@funky.example.com", 60, 0),
    ("dblreq", "REGISTER", "192.0.2.125", "43251j3j324", "", "dblreq.0ha0isndaksdj99sdfafnl3lk233412", 8, 0),
    ("semiuri", "OPTIONS", "192.0.2.1", "33242", "", "semiuri.0ha0isndaksdj", 8, 0),
    ("transports", "OPTIONS", "t1.example.com", "323", "", "transports.kijh4akdnaqjkwendsasfdj", 60, 0),
    (
        "mpart01",
        "MESSAGE",
        "127.0.0.1",
        "2fb0dcc9",
        "",
        "3d9485ad0c49859b@Zmx1ZmZ5LW1hYy0xNi5sb2NhbA..",
        1,
        740,
    ),
    ("unreason", "200", "192.0.2.198", "11141343", "2229", "unreason.1234ksdfak3j2erwedfsASdf", 35, 150),
    ("noreason", "100", "192.0.2.105", "39ansfi3", "902jndnke3", "noreason.asndj203insdf99223ndf", 35, 0),
    ("badbranch", "OPTIONS", "192.0.2.1", "33242", "", "badbranch.sadonfo23i420jv0as0derf3j3n", 8, 0),
    ("unkscm", "OPTIONS", "host9.example.com", "384", "", "unkscm.nasdfasser0q239nwsdfasdkl34", 3923423, 0),
    ("novelsc", "OPTIONS", "host9.example.com", "384", "", "novelsc.asdfasser0q239nwsdfasdkl34", 3923423, 0),
    (
        "unksm2",
        "REGISTER",
        "192.0.2.21",
        "3234233",
        "",
        "unksm2.daksdj@hyphenated-host.example.com",
        234902,
        0,
    ),
    ("bext01", "OPTIONS", "fold-and-staple.example.com", "242etr", "", "bext01.0ha0isndaksdj", 8, 0),
    ("invut", "INVITE", "somehost.example.com", "8392034", "", "invut.0ha0isndaksdjadsfij34n23d", 235448, 40),
    ("regaut01", "REGISTER", "192.0.2.253", "87321hj23128", "", "regaut01.0ha0isndaksdj", 9338, 0),
    ("bcast", "200", "192.0.2.198", "11141343", "2229", "bcast.0384840201234ksdfak3j2erwedfsASdf", 35, 150),
    (
        "zeromf",
        "OPTIONS",
        "host1.example.com",
        "3ghsd41",
        "",
        "zeromf.jfasdlfnm2o2l43r5u0asdfas",
        39234321,
        0,
    ),
    (
        "cparam01",
        "REGISTER",
        "saturn.example.com",
        "DkfVgjkrtMwaerKKpe",
        "",
        "cparam01.70710@saturn.example.com",
        2,
        0,
    ),
    ("cparam02", "REGISTER", "saturn.example.com", "838293", "", "cparam02.70710@saturn.example.com", 3, 0),
    ("regescrt", "REGISTER", "host5.example.com", "8", "", "regescrt.k345asrl3fdbv@192.0.2.1", 14398234, 0),
    ("sdp01", "INVITE", "192.0.2.15", "234", "", "sdp01.ndaksdj9342dasdd", 8, 150),
    ("inv2543", "INVITE", "iftgw.example.com", "", "", "inv2543.1717@ift.client.example.com", 56, 150),
];

/// What is refused: a part of the reason, and the status of the answer (`None`: silence).
const INVALID: &[(&str, &str, Option<u16>)] = &[
    ("badinv01", "bad Contact: malformed parameter", None),
    ("clerr", "Content-Length 9999 is more than the 150 octets there", Some(400)),
    ("ncl", "bad Content-Length", Some(400)),
    ("scalar02", "bad Max-Forwards", Some(400)),
    ("scalarlg", "bad CSeq: malformed sequence number", None),
    ("quotbal", "bad To: unterminated quoted string", Some(400)),
    ("ltgtruri", "bad Request-URI: URI has no scheme", Some(400)),
    ("lwsruri", "malformed start line", Some(400)),
    ("lwsstart", "malformed start line", Some(400)),
    ("trws", "malformed start line", Some(400)),
    ("escruri", "Request-URI carries headers", Some(400)),
    ("baddate", "bad Date", Some(400)),
    ("regbadct", "bad Contact: URI needs angle brackets", Some(400)),
    ("badaspec", "bad To: URI has no scheme", Some(400)),
    ("baddn", "bad From: display name is neither tokens nor quoted", Some(400)),
    ("badvers", "SIP version is not 2.0", Some(505)),
    ("mismatch01", "CSeq method differs", Some(400)),
    ("mismatch02", "CSeq method differs", Some(400)),
    ("bigcode", "bad status code", None),
    ("insuf", "missing From", Some(400)),
    ("multi01", "repeated", Some(400)),
    ("mcl01", "repeated Content-Length", Some(400)),
];

/// A header and a part of its value.
type Header = (HeaderName, &'static str);

/// How a user agent answers what is well formed: final status, and a header that must be there.
const ANSWERED: &[(&str, u16, Option<Header>)] = &[
    ("intmeth", 501, Some((HeaderName::Allow, "INVITE"))),
    ("esc02", 501, Some((HeaderName::Allow, "INVITE"))),
    ("escnull", 405, Some((HeaderName::Allow, "INVITE"))),
    ("mpart01", 405, Some((HeaderName::Allow, "INVITE"))),
    ("lwsdisp", 200, Some((HeaderName::Accept, "application/sdp"))),
    ("semiuri", 200, None),
    ("transports", 200, None),
    ("badbranch", 200, None),
    ("zeromf", 200, None),
    ("unkscm", 416, None),
    ("novelsc", 416, None),
    ("bext01", 420, Some((HeaderName::Unsupported, "nothingSupportsThis, nothingSupportsThisEither"))),
    ("invut", 415, Some((HeaderName::Accept, "application/sdp"))),
    ("sdp01", 406, None),
    // It has no Contact, so no dialog can come of it.
    ("inv2543", 400, None),
];

/// The INVITEs that ring.
const CALLS: &[&str] = &["wsinv", "esc01", "longreq"];

#[test]
fn every_message_of_rfc_4475_is_in_a_table() {
    let mut known: BTreeSet<String> = VALID.iter().map(|row| row.0.to_owned()).collect();
    known.extend(INVALID.iter().map(|row| row.0.to_owned()));
    known.insert("longreq".to_owned());
    assert_eq!(names("rfc4475"), known);
    assert_eq!(known.len(), 49);
}

#[test]
fn valid_messages_are_read_as_meant() {
    for &(name, start, via, from_tag, to_tag, call_id, cseq, body_len) in VALID {
        let message = parse(&read("rfc4475", name)).unwrap_or_else(|why| panic!("{name}: {why}"));
        let (found, head, body) = match &message {
            Message::Request(request) => (request.method.as_str().to_owned(), &request.head, &request.body),
            Message::Response(response) => (response.status.to_string(), &response.head, &response.body),
        };
        assert_eq!(found, start, "{name}");
        assert_eq!(&*head.via().host, via, "{name}");
        assert_eq!(head.from().tag().unwrap_or_default(), from_tag, "{name}");
        assert_eq!(head.to().tag().unwrap_or_default(), to_tag, "{name}");
        assert_eq!(head.call_id(), call_id, "{name}");
        assert_eq!(head.cseq().number, cseq, "{name}");
        assert_eq!(body.len(), body_len, "{name}");
        let again = parse(&message.to_bytes()).unwrap_or_else(|why| panic!("{name} written: {why}"));
        assert_eq!(again.to_bytes(), message.to_bytes(), "{name}: written and read again");
    }
}

#[test]
fn details_of_the_odd_ones_are_right() {
    let wsinv = request("rfc4475", "wsinv");
    assert_eq!(wsinv.head.from().display.as_deref(), Some(r#"J Rosenberg \""#));
    assert_eq!(wsinv.head.max_forwards(), Some(68));
    assert_eq!(wsinv.head.headers().items(HeaderName::Via).count(), 3);
    assert_eq!(
        wsinv.head.headers().get_named("NewFangledHeader"),
        Some("newfangled value continued newfangled value")
    );
    let contact = wsinv.head.contact().expect("a Contact under its compact name");
    assert_eq!(contact.display.as_deref(), Some(r#"Quoted string """#));
    assert_eq!(contact.params.get("newparam").as_deref(), Some("newvalue"));
    assert_eq!(contact.params.get("q").as_deref(), Some("0.33"));

    let esc01 = request("rfc4475", "esc01");
    assert_eq!(esc01.uri.user().as_deref(), Some("sips:user@example.com"));
    assert_eq!(esc01.head.to().uri.user().as_deref(), Some("user"));
    let escnull = request("rfc4475", "escnull");
    assert_eq!(escnull.head.to().uri.user().as_deref(), Some("null-\0-null"));
    let esc02 = request("rfc4475", "esc02");
    assert_eq!(esc02.head.headers().items(HeaderName::Contact).count(), 2, "C%6Fntact is another header");
    let semiuri = request("rfc4475", "semiuri");
    assert_eq!(semiuri.uri.user().as_deref(), Some("user;par=u@example.net"));
    let intmeth = request("rfc4475", "intmeth");
    assert_eq!(intmeth.head.to().display.as_deref(), Some("BEL:\x07 NUL:\0 DEL:\x7f"));
    assert_eq!(intmeth.head.from().params.get("fromParam''~+*_!.-%").as_deref(), Some("работающий"));
    let longreq = request("rfc4475", "longreq");
    assert_eq!(longreq.head.headers().items(HeaderName::Via).count(), 34);
    assert_eq!(longreq.head.cseq().number, 3882340);
    let plain = request("rfc4475", "cparam01").head.contact().expect("a Contact");
    assert_eq!(
        (plain.uri.param("unknownparam"), plain.params.get("unknownparam").as_deref()),
        (None, Some(""))
    );
    let angled = request("rfc4475", "cparam02").head.contact().expect("a Contact");
    assert_eq!((angled.uri.param("unknownparam"), angled.params.get("unknownparam")), (Some(""), None));
    let regescrt = request("rfc4475", "regescrt").head.contact().expect("a Contact");
    assert_eq!(regescrt.uri.headers(), Some("Route=%3Csip:sip.example.com%3E"));
}

#[allow(clippy::disallowed_methods)]
fn endpoint() -> (Endpoint, Flow, Instant) {
    let flow = Flow::udp(([10, 0, 0, 1], 5060).into(), ([192, 0, 2, 77], 5060).into());
    (Endpoint::new(EndpointConfig::default()), flow, Instant::now())
}

#[test]
fn invalid_messages_are_refused_with_the_reason() {
    for &(name, reason, status) in INVALID {
        let bytes = read("rfc4475", name);
        let why = parse(&bytes).expect_err(name).to_string();
        assert!(why.contains(reason), "{name}: {why}");
        let (mut endpoint, flow, now) = endpoint();
        endpoint.handle_input(&bytes, flow, now);
        let answer = endpoint.poll_transmit().map(|transmit| {
            let text = String::from_utf8_lossy(&transmit.bytes).into_owned();
            assert!(status != Some(400) || text.contains(&why), "{name} says why: {text}");
            text[8..11].parse::<u16>().expect("a status")
        });
        assert_eq!(answer, status, "{name}");
        let told = matches!(endpoint.poll_event(), Some(Event::Refused { status: said, .. }) if Some(said) == status);
        assert_eq!((told, endpoint.poll_event()), (status.is_some(), None), "{name}");
        assert_eq!((endpoint.call_count(), endpoint.transaction_count()), (0, 0), "{name}");
    }
}

#[test]
fn well_formed_messages_are_answered_as_a_user_agent_must() {
    for &(name, status, header) in ANSWERED {
        let (mut endpoint, flow, now) = endpoint();
        endpoint.handle_input(&read("rfc4475", name), flow, now);
        let bytes = endpoint.poll_transmit().unwrap_or_else(|| panic!("{name} gets an answer")).bytes;
        let Ok(Message::Response(response)) = parse(&bytes) else {
            panic!("{name}: {}", String::from_utf8_lossy(&bytes))
        };
        assert_eq!(response.status, status, "{name}");
        assert!(response.head.to().tag().is_some(), "{name}: To has a tag");
        if let Some((header, value)) = header {
            assert!(response.header(header).is_some_and(|found| found.contains(value)), "{name}: {header:?}");
        }
        let told =
            matches!(endpoint.poll_event(), Some(Event::Refused { status: said, .. }) if said == status);
        assert_eq!((told, endpoint.poll_event()), (status >= 300, None), "{name}");
    }
}

#[test]
fn valid_invites_ring() {
    for name in CALLS {
        let (mut endpoint, flow, now) = endpoint();
        endpoint.handle_input(&read("rfc4475", name), flow, now);
        if *name == "wsinv" {
            // Its To has a tag of a dialog that we do not have.
            let bytes = endpoint.poll_transmit().expect("an answer").bytes;
            assert!(bytes.starts_with(b"SIP/2.0 481"), "{}", String::from_utf8_lossy(&bytes));
            continue;
        }
        assert!(matches!(endpoint.poll_event(), Some(Event::IncomingInvite { .. })), "{name}");
        assert!(
            endpoint
                .poll_transmit()
                .is_some_and(|transmit| transmit.bytes.starts_with(b"SIP/2.0 100 Trying\r\n"))
        );
    }
}

#[test]
fn responses_to_nothing_are_dropped_and_counted() {
    for name in ["unreason", "noreason", "bcast"] {
        let (mut endpoint, flow, now) = endpoint();
        endpoint.handle_input(&read("rfc4475", name), flow, now);
        assert_eq!((endpoint.poll_transmit(), endpoint.poll_event()), (None, None), "{name}");
        assert_eq!(endpoint.counters().stray_responses, 1, "{name}");
    }
}

/// Flow, and the start of each message in it.
const FLOWS: &[(&str, &[&str])] = &[
    ("2.1-registration", &["REGISTER", "401", "REGISTER", "200"]),
    ("2.2-update-of-contact-list", &["REGISTER", "200"]),
    ("2.3-request-for-contact-list", &["REGISTER", "200"]),
    ("2.4-cancellation-of-registration", &["REGISTER", "200"]),
    ("2.5-unsuccessful-registration", &["REGISTER", "401", "REGISTER", "401"]),
    ("3.1-successful-session", &["INVITE", "180", "200", "ACK", "BYE", "200"]),
    (
        "3.2-session-through-two-proxies",
        &["INVITE", "407", "ACK", "INVITE", "100", "INVITE", "INVITE", "180", "200", "ACK", "BYE", "200"],
    ),
    (
        "3.3-multiple-proxy-authentication",
        &[
            "INVITE", "407", "ACK", "INVITE", "100", "407", "ACK", "INVITE", "100", "180", "200", "ACK",
            "BYE", "200",
        ],
    ),
    (
        "3.4-session-with-proxy-failure",
        &["INVITE", "INVITE", "407", "ACK", "INVITE", "100", "180", "200", "ACK", "BYE", "200"],
    ),
    ("3.5-session-through-an-alg", &["INVITE", "100", "180", "200", "ACK", "BYE", "200"]),
    (
        "3.6-redirect-and-proxy-sdp-in-ack",
        &["INVITE", "302", "ACK", "INVITE", "100", "180", "200", "ACK", "BYE", "200"],
    ),
    ("3.7-reinvite-with-new-address", &["INVITE", "180", "200", "ACK", "INVITE", "200", "ACK", "BYE", "200"]),
    ("3.8-no-answer-cancelled", &["INVITE", "100", "180", "CANCEL", "200", "487", "ACK"]),
    ("3.9-unsuccessful-busy", &["INVITE", "100", "486", "ACK"]),
    ("3.10-unsuccessful-no-response", &["INVITE", "100", "480", "ACK"]),
    ("3.11-unsuccessful-temporarily-unavailable", &["INVITE", "180", "480", "ACK"]),
];

fn flow(name: &str) -> Vec<Message> {
    let mut framer = StreamFramer::new();
    framer.feed(&read("rfc3665", name));
    let mut messages = Vec::new();
    while let Some(frame) = framer.next_frame().unwrap_or_else(|why| panic!("{name}: {why}")) {
        let Frame::Message(bytes) = frame else { panic!("{name}: a ping") };
        messages.push(parse(bytes).unwrap_or_else(|why| panic!("{name}: {why}")));
    }
    assert_eq!(framer.buffered(), 0, "{name}");
    messages
}

#[test]
fn every_message_of_the_rfc_3665_flows_is_read() {
    assert_eq!(names("rfc3665"), FLOWS.iter().map(|(name, _)| (*name).to_owned()).collect());
    for (name, starts) in FLOWS {
        let messages = flow(name);
        let found: Vec<_> = messages
            .iter()
            .map(|message| match message {
                Message::Request(request) => request.method.as_str().to_owned(),
                Message::Response(response) => response.status.to_string(),
            })
            .collect();
        assert_eq!(&found, starts, "{name}");
        for message in &messages {
            assert_eq!(&parse(&message.to_bytes()).expect("what we write, we read"), message, "{name}");
        }
    }
}

/// Plays the caller's messages of a flow to an endpoint that is the callee; its To tag replaces the flow's.
fn play(name: &str, answer: impl Fn(&mut Endpoint, &Event, Instant)) -> Vec<u16> {
    let (mut endpoint, flow_to_us, now) = endpoint();
    let mut statuses = Vec::new();
    let mut tag = None;
    for message in flow(name) {
        let Message::Request(request) = message else { continue };
        let ours = request.head.to().tag();
        let mut text = String::from_utf8(request.to_bytes()).expect("text");
        if let (Some(theirs), Some(tag)) = (ours, &tag) {
            text = text.replace(&format!(";tag={theirs}"), &format!(";tag={tag}"));
        }
        endpoint.handle_input(text.as_bytes(), flow_to_us, now);
        while let Some(event) = endpoint.poll_event() {
            answer(&mut endpoint, &event, now);
        }
        while let Some(transmit) = endpoint.poll_transmit() {
            let Ok(Message::Response(response)) = parse(&transmit.bytes) else { continue };
            statuses.push(response.status);
            tag = response.head.to().tag().map(|tag| tag.into_owned()).or(tag);
        }
    }
    statuses
}

#[test]
fn cancelled_and_busy_flows_are_played_as_written() {
    let ring = |endpoint: &mut Endpoint, event: &Event, now: Instant| {
        if let Event::IncomingInvite { call, .. } = event {
            endpoint.ring(*call, now).expect("it rings");
        }
    };
    assert_eq!(play("3.8-no-answer-cancelled", ring), [100, 180, 200, 487]);
    let busy = |endpoint: &mut Endpoint, event: &Event, now: Instant| {
        if let Event::IncomingInvite { call, .. } = event {
            endpoint.reject(*call, tandem_sip::Reply::new(486), now).expect("it is refused");
        }
    };
    assert_eq!(play("3.9-unsuccessful-busy", busy), [100, 486]);
}

#[test]
fn flow_with_two_challenges_is_played_as_written() {
    let asked = std::cell::Cell::new(0);
    let challenge_twice = |endpoint: &mut Endpoint, event: &Event, now: Instant| {
        if let Event::IncomingInvite { call, request, .. } = event {
            let given = request.head.headers().all(HeaderName::ProxyAuthorization).count();
            assert_eq!(given, asked.get(), "one answer more each time");
            asked.set(asked.get() + 1);
            if given < 2 {
                endpoint.reject(*call, tandem_sip::Reply::new(407), now).expect("it is challenged");
            } else {
                endpoint.ring(*call, now).expect("it rings");
                endpoint.answer(*call, tandem_sip::Body::sdp("v=0\r\n"), now).expect("it is answered");
            }
        }
    };
    let statuses = play("3.3-multiple-proxy-authentication", challenge_twice);
    assert_eq!(statuses, [100, 407, 100, 407, 100, 180, 200, 200]);
}

#[test]
fn registrations_reach_a_user_who_asks_for_them() {
    let config = EndpointConfig { accepted_methods: vec![Method::Register], ..EndpointConfig::default() };
    let (_, flow_to_us, now) = endpoint();
    let mut endpoint = Endpoint::new(config);
    for message in flow("2.4-cancellation-of-registration") {
        endpoint.handle_input(&message.to_bytes(), flow_to_us, now);
    }
    let Some(Event::Request { call: None, request, .. }) = endpoint.poll_event() else {
        panic!("no request")
    };
    assert_eq!((request.method.clone(), request.header(HeaderName::Contact)), (Method::Register, Some("*")));
}
