//! A call and a server that is played by hand.

use proptest::prelude::*;

use super::*;

fn client() -> Client {
    let request = Request { secure: false, authority: "agent.test:1", path: "/a.B/C" };
    Client::new(request, [("X-Team", "support")].into_iter()).unwrap()
}

fn drain(client: &mut Client) -> Vec<u8> {
    let mut all = Vec::new();
    let mut out = [0; 1_000];
    while client.has_output() {
        let len = client.poll_output(&mut out);
        assert!(len > 0, "has_output does not lie");
        all.extend_from_slice(&out[..len]);
    }
    all
}

fn frame_of(kind: FrameKind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::append(&mut out, kind, flags, stream, payload);
    out
}

/// Settings, then headers with status 200.
fn greeting() -> Vec<u8> {
    let mut octets = frame_of(FrameKind::Settings, 0, 0, &[]);
    octets.extend(frame_of(FrameKind::Headers, flags::END_HEADERS, STREAM, &[0x20, 0x88]));
    octets
}

fn message(body: &[u8]) -> Vec<u8> {
    let mut octets = vec![0];
    octets.extend_from_slice(&(body.len() as u32).to_be_bytes());
    octets.extend_from_slice(body);
    octets
}

/// What came: messages by their octets, the end by its status.
type Came = (Vec<Vec<u8>>, Option<Status>);

fn feed(client: &mut Client, octets: &[u8], piece: usize) -> Result<Came, GrpcError> {
    let (mut messages, mut ended) = (Vec::new(), None);
    for bytes in octets.chunks(piece) {
        client.handle_bytes(bytes, &mut |incoming| match incoming {
            Incoming::Message(body) => messages.push(body.to_vec()),
            Incoming::Ended(status) => ended = Some(status),
        })?;
    }
    Ok((messages, ended))
}

#[test]
fn a_call_begins_with_the_preface_settings_and_its_headers() {
    let mut client = client();
    let octets = drain(&mut client);
    let rest = octets.strip_prefix(frame::PREFACE).unwrap();
    let (settings, rest) = frame::split(frame::Head::read(rest).unwrap(), rest).unwrap();
    assert_eq!((settings.kind, settings.stream, settings.payload.len()), (4, 0, 18));
    let (update, rest) = frame::split(frame::Head::read(rest).unwrap(), rest).unwrap();
    assert_eq!((update.kind, update.number(0)), (8, Some(WINDOW - 65_535)));
    let (headers, rest) = frame::split(frame::Head::read(rest).unwrap(), rest).unwrap();
    assert!(headers.kind == 1 && headers.has(flags::END_HEADERS) && !headers.has(flags::END_STREAM));
    assert!(headers.payload.windows(6).any(|part| part == b"x-team") && rest.is_empty());
}

#[test]
fn messages_come_whole_however_the_octets_are_cut() {
    let mut octets = greeting();
    let bodies: Vec<Vec<u8>> = (0..5).map(|n| vec![n; 300 * usize::from(n)]).collect();
    let data: Vec<u8> = bodies.iter().flat_map(|body| message(body)).collect();
    for part in data.chunks(777) {
        octets.extend(frame_of(FrameKind::Data, 0, STREAM, part));
    }
    for piece in [1, 7, 1_600, octets.len()] {
        let mut client = client();
        assert_eq!(feed(&mut client, &octets, piece), Ok((bodies.clone(), None)), "pieces of {piece}");
        assert_eq!(client.take_received(), data.len());
    }
}

#[test]
fn the_end_is_told_once_with_its_status() {
    let mut client = client();
    let mut octets = greeting();
    let trailers = [0x10, 11, b'g', b'r', b'p', b'c', b'-', b's', b't', b'a', b't', b'u', b's', 1, b'8'];
    octets.extend(frame_of(FrameKind::Headers, flags::END_HEADERS | flags::END_STREAM, STREAM, &trailers));
    octets.extend(frame_of(FrameKind::Reset, 0, STREAM, &[0; 4]));
    let (_, ended) = feed(&mut client, &octets, 1_000).unwrap();
    assert_eq!(ended, Some(Status { code: 8, message: String::new() }));
}

#[test]
fn headers_may_be_continued_and_nothing_may_come_between() {
    let split = |between: &[u8]| {
        let mut octets = frame_of(FrameKind::Settings, 0, 0, &[]);
        octets.extend(frame_of(FrameKind::Headers, flags::END_STREAM, STREAM, &[0x20]));
        octets.extend_from_slice(between);
        octets.extend(frame_of(FrameKind::Continuation, flags::END_HEADERS, STREAM, &[0x8D]));
        octets
    };
    let (_, ended) = feed(&mut client(), &split(&[]), 3).unwrap();
    assert!(ended.unwrap().message.contains("404"));
    let ping = frame_of(FrameKind::Ping, 0, 0, &[0; 8]);
    assert!(feed(&mut client(), &split(&ping), 1_000).is_err());
}

#[test]
fn pings_and_settings_are_answered_and_floods_of_them_end_it() {
    let mut client = client();
    drain(&mut client);
    feed(&mut client, &greeting(), 1_000).unwrap();
    feed(&mut client, &frame_of(FrameKind::Ping, 0, 0, &[7; 8]), 1_000).unwrap();
    let mut wanted = frame_of(FrameKind::Settings, flags::ACK, 0, &[]);
    wanted.extend(frame_of(FrameKind::Ping, flags::ACK, 0, &[7; 8]));
    assert_eq!(drain(&mut client), wanted);
    let flood = frame_of(FrameKind::Ping, 0, 0, &[7; 8]).repeat(WAITING_MAX / 17 + 1);
    assert_eq!(feed(&mut client, &flood, 1_600), Err(GrpcError::NotRead));
}

#[test]
fn nothing_is_sent_beyond_either_window() {
    let mut client = client();
    drain(&mut client);
    let mut settings = 4_u16.to_be_bytes().to_vec();
    settings.extend(100_u32.to_be_bytes());
    let mut octets = frame_of(FrameKind::Settings, 0, 0, &settings);
    octets.extend(frame_of(FrameKind::Headers, flags::END_HEADERS, STREAM, &[0x88]));
    feed(&mut client, &octets, 1_000).unwrap();
    drain(&mut client);
    let mut out = [0; 1_000];
    assert_eq!(client.write_message(&mut out, 96, |_| panic!("too long")), None);
    assert_eq!(client.write_message(&mut out, 50, |body| body.fill(7)), Some(OVERHEAD_OCTETS + 50));
    client.push(&[1; 80]).unwrap();
    assert_eq!(drain(&mut client).len(), FRAME_HEADER_OCTETS + 45);
    assert!(!client.has_output() && !client.takes_message(1), "it waits, and so does what comes after it");
    feed(&mut client, &frame_of(FrameKind::WindowUpdate, 0, STREAM, &1_000_u32.to_be_bytes()), 1_000)
        .unwrap();
    client.finish();
    let rest = drain(&mut client);
    assert_eq!(rest.len(), FRAME_HEADER_OCTETS + 40 + FRAME_HEADER_OCTETS);
    assert_eq!(rest[rest.len() - 5], flags::END_STREAM);
    assert!(!client.takes_message(1), "nothing after the end");
}

#[test]
fn what_is_no_grpc_is_refused_by_name() {
    assert_eq!(feed(&mut client(), b"HTTP/1.1 400 Bad Request\r\n", 1_000), Err(GrpcError::NotHttp2));
    let after = |frame: Vec<u8>| {
        let octets = [greeting(), frame].concat();
        feed(&mut client(), &octets, 1_000).unwrap_err()
    };
    assert_eq!(after(frame_of(FrameKind::Data, 0, STREAM, &[1, 0, 0, 0, 0])), GrpcError::Compressed);
    let long = frame_of(FrameKind::Data, 0, STREAM, &[0, 0xFF, 0, 0, 0]);
    assert_eq!(after(long), GrpcError::MessageTooLong(0xFF00_0000));
    let update = frame_of(FrameKind::WindowUpdate, 0, 0, &0x7FFF_FFFF_u32.to_be_bytes());
    assert_eq!(after(update), GrpcError::Window);
    assert_eq!(after(vec![0x01, 0, 0, 0, 0, 0, 0, 0, 1]), GrpcError::Frame { kind: 0, len: 65_536 });
}

proptest! {
    #[test]
    fn no_octets_make_it_panic_or_hoard(octets in proptest::collection::vec(any::<u8>(), 0..400), piece in 1usize..50) {
        let mut client = client();
        let greeted = feed(&mut client, &greeting(), 1_000);
        prop_assert!(greeted.is_ok());
        let _ = feed(&mut client, &octets, piece);
        prop_assert!(client.partial.len() <= FRAME_HEADER_OCTETS + frame::PAYLOAD_MAX);
    }
}
