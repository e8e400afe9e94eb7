//! Both sides of the multiplexed link, in virtual time.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use tandem_stream::link::client::{PING_EVERY, RETRY_MAX, RETRY_MIN, SILENT_MAX};
use tandem_stream::link::{
    BODY_MAX, Client, Decoder, HEADER_OCTETS, LinkError, Message, Server, VERSION, append, write_audio,
};

/// A message that owns what it says, to compare what came with what went.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owned(u32, String);

fn owned(call: u32, message: &Message<'_>) -> Owned {
    Owned(call, format!("{message:?}"))
}

#[expect(clippy::disallowed_methods, reason = "a test is its own shell")]
fn now() -> Instant {
    Instant::now()
}

/// Moves what the client has to say to the server, and back what the server answers.
fn exchange(client: &mut Client, server: &mut Server, now: Instant) -> Result<(), LinkError> {
    let mut octets = [0; 4_096];
    let len = client.poll_control(&mut octets);
    let mut answers = Vec::new();
    let outcome = server.handle_bytes(&octets[..len], &mut answers, |_, _| {});
    client.handle_bytes(&answers, now, |_, _| {})?;
    outcome
}

#[test]
fn a_client_with_the_token_is_welcome() {
    let now = now();
    let (mut client, mut server) = (Client::new(b"secret".to_vec(), now), Server::new(b"secret".to_vec()));
    assert!(client.wants_dial(now));
    client.dial(now);
    assert!(!client.wants_dial(now));
    client.handle_connected(now);
    exchange(&mut client, &mut server, now).unwrap();
    assert!(client.is_up() && server.is_up());
}

#[test]
fn a_wrong_token_is_refused_and_the_client_is_told_why() {
    let now = now();
    for token in [&b"secreT"[..], b"secret+", b""] {
        let (mut client, mut server) = (Client::new(token.to_vec(), now), Server::new(b"secret".to_vec()));
        client.dial(now);
        client.handle_connected(now);
        let refused = exchange(&mut client, &mut server, now).unwrap_err();
        assert_eq!(refused, LinkError::Refused("the token is wrong".into()));
        assert!(!client.is_up() && !server.is_up());
    }
}

#[test]
fn the_token_is_not_in_what_is_told_of_an_error() {
    let now = now();
    let (mut client, mut server) = (Client::new(b"swordfish".to_vec(), now), Server::new(b"other".to_vec()));
    client.dial(now);
    client.handle_connected(now);
    let refused = exchange(&mut client, &mut server, now).unwrap_err();
    assert!(!refused.to_string().contains("swordfish") && !refused.to_string().contains("other"));
}

#[test]
fn something_else_than_a_link_is_refused_by_its_first_octets() {
    let mut server = Server::new(Vec::new());
    let mut out = Vec::new();
    assert_eq!(server.handle_bytes(b"GET / HTTP/1.1", &mut out, |_, _| {}), Err(LinkError::Preamble));
}

#[test]
fn frames_before_the_greeting_are_an_error_on_both_sides() {
    let mut frame = Vec::new();
    append(&mut frame, 7, &Message::Accepted);
    let mut client = Client::new(Vec::new(), now());
    client.dial(now());
    client.handle_connected(now());
    assert_eq!(client.handle_bytes(&frame, now(), |_, _| {}), Err(LinkError::Greeting));
    let mut server = Server::new(Vec::new());
    let mut out = Vec::new();
    server.handle_bytes(b"TNDMLINK", &mut out, |_, _| {}).unwrap();
    assert_eq!(server.handle_bytes(&frame, &mut out, |_, _| {}), Err(LinkError::Greeting));
}

#[test]
fn another_version_is_refused() {
    let mut hello = b"TNDMLINK".to_vec();
    append(&mut hello, 0, &Message::Hello { version: VERSION + 1, token: b"" });
    let mut server = Server::new(Vec::new());
    let mut out = Vec::new();
    assert_eq!(server.handle_bytes(&hello, &mut out, |_, _| {}), Err(LinkError::Version(VERSION + 1)));
}

#[test]
fn a_link_that_is_up_is_pinged_and_lost_when_it_is_silent() {
    let begin = now();
    let (mut client, mut server) = (Client::new(Vec::new(), begin), Server::new(Vec::new()));
    client.dial(begin);
    client.handle_connected(begin);
    exchange(&mut client, &mut server, begin).unwrap();
    let due = client.poll_timeout();
    assert_eq!(due, begin + PING_EVERY);
    assert_eq!(client.handle_timeout(due), None);
    assert!(client.has_control(), "a ping");
    exchange(&mut client, &mut server, due).unwrap();
    assert_eq!(client.handle_timeout(due + SILENT_MAX - Duration::from_millis(1)), None);
    assert!(client.handle_timeout(due + SILENT_MAX).is_some());
}

#[test]
fn a_link_that_cannot_be_had_is_dialled_less_and_less_often() {
    let mut at = now();
    let mut client = Client::new(Vec::new(), at);
    let mut waits = Vec::new();
    for _ in 0..9 {
        client.dial(at);
        client.handle_ended(at);
        let next = client.poll_timeout();
        assert!(!client.wants_dial(next - Duration::from_millis(1)) && client.wants_dial(next));
        waits.push(next - at);
        at = next;
    }
    assert_eq!((waits[0], waits[1]), (RETRY_MIN, 2 * RETRY_MIN));
    assert_eq!((waits[7], waits[8]), (RETRY_MAX, RETRY_MAX));
    client.dial(at);
    client.handle_ended(at);
    client.hurry(at + RETRY_MIN);
    assert!(client.wants_dial(at + RETRY_MIN), "a call waits for it");
}

#[test]
fn a_frame_above_the_bound_ends_the_connection_and_one_at_the_bound_passes() {
    let mut wire = vec![0; HEADER_OCTETS + BODY_MAX];
    let len = write_audio(&mut wire, 1, BODY_MAX, |body| body.fill(1)).unwrap();
    let mut seen = 0;
    Decoder::default()
        .handle_bytes(&wire[..len], |_, message| {
            seen += usize::from(matches!(message, Message::Audio(audio) if audio.len() == BODY_MAX));
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, 1);
    assert_eq!(write_audio(&mut wire, 1, BODY_MAX + 2, |_| {}), None);
    assert_eq!(write_audio(&mut wire[..100], 1, 100, |_| {}), None);
    let [low, high] = (BODY_MAX as u16 + 1).to_le_bytes();
    let refused = Decoder::default().handle_bytes(&[low, high, 18, 0, 1, 0, 0, 0], |_, _| Ok(()));
    assert_eq!(refused, Err(LinkError::TooLong(BODY_MAX + 1)));
}

#[test]
fn a_body_that_makes_no_sense_is_its_calls_matter_and_the_next_frame_is_read() {
    let mut wire = Vec::new();
    for (kind, body) in
        [(18u8, &b"odd"[..]), (19, b"abc"), (20, b""), (21, b"short"), (22, b"X0000"), (23, b"\xff")]
    {
        wire.extend_from_slice(&[body.len() as u8, 0, kind, 0, 5, 0, 0, 0]);
        wire.extend_from_slice(body);
    }
    wire.extend_from_slice(&[0, 0, 99, 0, 5, 0, 0, 0]); // a kind of the future
    append(&mut wire, 6, &Message::Accepted);
    let mut seen = Vec::new();
    Decoder::default()
        .handle_bytes(&wire, |call, message| {
            seen.push(owned(call, &message));
            Ok(())
        })
        .unwrap();
    let mut wanted = vec![owned(5, &Message::Malformed); 6];
    wanted.push(owned(6, &Message::Accepted));
    assert_eq!(seen, wanted);
}

fn any_frame() -> impl Strategy<Value = (u32, Vec<u8>, Owned)> {
    let frame = |call: u32, message: &Message<'_>| {
        let mut wire = Vec::new();
        append(&mut wire, call, message);
        (call, wire, owned(call, message))
    };
    let audio = (any::<u32>(), proptest::collection::vec(any::<[u8; 2]>(), 0..400))
        .prop_map(move |(call, pairs)| frame(call, &Message::Audio(&pairs.concat())));
    let text = (any::<u32>(), ".{0,60}").prop_map(move |(call, text)| frame(call, &Message::Event(&text)));
    let open =
        (any::<u32>(), ".{0,90}").prop_map(move |(call, text)| frame(call, &Message::Open { start: &text }));
    let mark = (any::<u32>(), any::<u64>(), ".{0,60}")
        .prop_map(move |(call, heard_ms, name)| frame(call, &Message::Mark { heard_ms, name: &name }));
    let credit =
        (any::<u32>(), any::<u32>()).prop_map(move |(call, octets)| frame(call, &Message::Credit { octets }));
    let clear = (any::<u32>(), any::<u64>())
        .prop_map(move |(call, heard_ms)| frame(call, &Message::Clear { heard_ms }));
    let dtmf = (any::<u32>(), "[0-9*#A-D]", any::<u32>()).prop_map(move |(call, digit, duration_ms)| {
        frame(call, &Message::Dtmf { digit: digit.as_bytes()[0], duration_ms })
    });
    let close = (any::<u32>(), ".{0,60}")
        .prop_map(move |(call, reason)| frame(call, &Message::Close { reason: &reason }));
    let plain = (any::<u32>(), 0..3u8).prop_map(move |(call, which)| match which {
        0 => frame(call, &Message::Accepted),
        1 => frame(call, &Message::Ping),
        _ => frame(call, &Message::Pong),
    });
    prop_oneof![audio, text, open, mark, credit, clear, dtmf, close, plain]
}

proptest! {
    #[test]
    fn frames_survive_the_wire_however_it_cuts_them(
        frames in proptest::collection::vec(any_frame(), 1..20),
        cuts in proptest::collection::vec(1usize..300, 1..40),
    ) {
        let wire: Vec<u8> = frames.iter().flat_map(|(_, wire, _)| wire.clone()).collect();
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        let (mut rest, mut cuts) = (&wire[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let at = (*cuts.next().expect("a cycle")).min(rest.len());
            decoder.handle_bytes(&rest[..at], |call, message| {
                seen.push(owned(call, &message));
                Ok(())
            }).unwrap();
            rest = &rest[at..];
        }
        prop_assert_eq!(decoder.pending(), 0);
        prop_assert_eq!(seen, frames.into_iter().map(|(_, _, owned)| owned).collect::<Vec<_>>());
    }

    #[test]
    fn whatever_comes_is_read_or_refused(octets in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut decoder = Decoder::default();
        let _ = decoder.handle_bytes(&octets, |_, _| Ok(()));
        prop_assert!(decoder.pending() <= HEADER_OCTETS + BODY_MAX);
        let mut server = Server::new(Vec::new());
        let mut out = Vec::new();
        let _ = server.handle_bytes(&[b"TNDMLINK", &octets[..]].concat(), &mut out, |_, _| {});
        let mut client = Client::new(Vec::new(), now());
        client.dial(now());
        client.handle_connected(now());
        let _ = client.handle_bytes(&octets, now(), |_, _| {});
    }
}
