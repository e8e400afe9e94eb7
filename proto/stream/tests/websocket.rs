//! Our WebSocket against tungstenite's, both roles, delivered in whatever pieces a network makes of it.

use std::io::{self, Read, Write};

use proptest::prelude::*;
use tandem_stream::websocket::{
    ClientHandshake, FrameReader, HandshakeError, Message, Opcode, ProtocolError, Role, UpgradeRequest, Url,
    append_frame, close, write_close, write_refusal,
};
use tungstenite::handshake::HandshakeError as OracleHandshakeError;
use tungstenite::protocol::{Message as OracleMessage, Role as OracleRole, WebSocket};

/// A socket in memory: what the oracle may read, and what it wrote.
#[derive(Debug, Default)]
struct Pipe {
    input: std::collections::VecDeque<u8>,
    output: Vec<u8>,
    /// Octets given to one read.
    piece: usize,
}

impl Pipe {
    fn holding(bytes: &[u8], piece: usize) -> Self {
        Pipe { input: bytes.iter().copied().collect(), output: Vec::new(), piece }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let wanted = buffer.len().min(self.piece.max(1));
        self.input.read(&mut buffer[..wanted])
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A message that owns its content, to compare across both implementations.
#[derive(Debug, Clone, PartialEq)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

impl From<Message<'_>> for Owned {
    fn from(message: Message<'_>) -> Self {
        match message {
            Message::Text(text) => Owned::Text(text.to_owned()),
            Message::Binary(bytes) => Owned::Binary(bytes.to_owned()),
            Message::Ping(bytes) => Owned::Ping(bytes.to_owned()),
            Message::Pong(bytes) => Owned::Pong(bytes.to_owned()),
            Message::Close { code, reason } => Owned::Close(code, reason.to_owned()),
        }
    }
}

/// Everything a reader makes of these bytes, delivered in pieces of these sizes.
fn read_all(reader: &mut FrameReader, bytes: &[u8], pieces: &[usize]) -> Result<Vec<Owned>, ProtocolError> {
    let mut messages = Vec::new();
    let mut sizes = pieces.iter().copied().cycle();
    let mut rest = bytes;
    while !rest.is_empty() {
        let size = sizes.next().unwrap_or(rest.len()).clamp(1, rest.len());
        let taken = reader.push(&rest[..size]);
        rest = &rest[taken..];
        while let Some(message) = reader.poll_message()? {
            messages.push(message.into());
        }
    }
    Ok(messages)
}

fn write(messages: &[Owned], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        let (opcode, payload) = match message {
            Owned::Text(text) => (Opcode::Text, text.as_bytes()),
            Owned::Binary(bytes) => (Opcode::Binary, bytes.as_slice()),
            Owned::Ping(bytes) => (Opcode::Ping, bytes.as_slice()),
            Owned::Pong(bytes) => (Opcode::Pong, bytes.as_slice()),
            Owned::Close(code, reason) => {
                write_close(&mut out, mask, code.unwrap_or(close::NORMAL), reason);
                continue;
            }
        };
        append_frame(&mut out, opcode, mask, payload).expect("control payloads are short");
    }
    out
}

fn oracle_message(message: &Owned) -> OracleMessage {
    match message.clone() {
        Owned::Text(text) => OracleMessage::text(text),
        Owned::Binary(bytes) => OracleMessage::binary(bytes),
        Owned::Ping(bytes) => OracleMessage::Ping(bytes.into()),
        Owned::Pong(bytes) => OracleMessage::Pong(bytes.into()),
        Owned::Close(..) => OracleMessage::Close(None),
    }
}

fn from_oracle(message: OracleMessage) -> Owned {
    match message {
        OracleMessage::Text(text) => Owned::Text(text.as_str().to_owned()),
        OracleMessage::Binary(bytes) => Owned::Binary(bytes.to_vec()),
        OracleMessage::Ping(bytes) => Owned::Ping(bytes.to_vec()),
        OracleMessage::Pong(bytes) => Owned::Pong(bytes.to_vec()),
        OracleMessage::Close(frame) => match frame {
            Some(frame) => Owned::Close(Some(frame.code.into()), frame.reason.as_str().to_owned()),
            None => Owned::Close(None, String::new()),
        },
        OracleMessage::Frame(_) => unreachable!("raw frames are not read"),
    }
}

fn oracle_reads(bytes: &[u8], piece: usize, role: OracleRole) -> Vec<Owned> {
    let mut socket = WebSocket::from_raw_socket(Pipe::holding(bytes, piece), role, None);
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(message) => messages.push(from_oracle(message)),
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return messages;
            }
            Err(tungstenite::Error::ConnectionClosed) => return messages,
            Err(other) => panic!("the oracle refuses what we wrote: {other}"),
        }
    }
}

fn oracle_writes(messages: &[Owned], role: OracleRole) -> Vec<u8> {
    let mut socket = WebSocket::from_raw_socket(Pipe::default(), role, None);
    for message in messages {
        socket.send(oracle_message(message)).expect("memory takes everything");
    }
    socket.get_ref().output.clone()
}

/// One of each length class, at its edges.
fn edge_messages() -> Vec<Owned> {
    let sizes = [0, 1, 124, 125, 126, 127, 640, 65_535, 65_536, 70_001];
    let mut messages: Vec<_> = sizes.iter().map(|size| Owned::Binary(vec![0x5A; *size])).collect();
    messages.extend([
        Owned::Text(String::new()),
        Owned::Text("grüße ✆".repeat(30)),
        Owned::Ping(b"are you there".to_vec()),
        Owned::Pong(vec![7; 125]),
        Owned::Close(Some(close::NORMAL), "done".to_owned()),
    ]);
    messages
}

#[test]
fn oracle_reads_what_we_write_as_either_role() {
    let messages = edge_messages();
    for piece in [1, 7, 100_000] {
        assert_eq!(oracle_reads(&write(&messages, Some([1, 2, 3, 4])), piece, OracleRole::Server), messages);
        assert_eq!(oracle_reads(&write(&messages, None), piece, OracleRole::Client), messages);
    }
}

#[test]
fn we_read_what_the_oracle_writes_as_either_role() {
    let mut messages = edge_messages();
    messages.pop();
    for pieces in [&[1][..], &[7], &[100_000]] {
        let from_client = oracle_writes(&messages, OracleRole::Client);
        assert_eq!(read_all(&mut FrameReader::new(Role::Server), &from_client, pieces), Ok(messages.clone()));
        let from_server = oracle_writes(&messages, OracleRole::Server);
        assert_eq!(read_all(&mut FrameReader::new(Role::Client), &from_server, pieces), Ok(messages.clone()));
    }
}

#[test]
fn oracle_server_accepts_our_handshake_and_we_its_answer() {
    let url = Url::parse("ws://127.0.0.1:8766/talk?x=1").unwrap();
    let ours = ClientHandshake::new([9; 16]);
    let mut request = Vec::new();
    ours.write_request(&url.host_header(), &url.path, [("Authorization", "Bearer t")], &mut request).unwrap();
    let Ok(socket) = tungstenite::accept(Pipe::holding(&request, 1000)) else {
        panic!("the oracle refuses our request");
    };
    let response = &socket.get_ref().output;
    for partial in 0..response.len() {
        assert_eq!(ours.read_response(&response[..partial]), Ok(None));
    }
    let mut with_frame = response.clone();
    with_frame.extend_from_slice(b"\x81\x02hi");
    assert_eq!(ours.read_response(&with_frame), Ok(Some(response.len())));
    assert_eq!(
        ClientHandshake::new([8; 16]).read_response(response),
        Err(HandshakeError::Header("Sec-WebSocket-Accept")),
        "an answer to another key must not pass"
    );
}

#[test]
fn oracle_client_accepts_our_answer_to_its_handshake() {
    let Err(OracleHandshakeError::Interrupted(mut pending)) =
        tungstenite::client("ws://h/p", Pipe::default())
    else {
        panic!("the oracle cannot be done before an answer");
    };
    let request = pending.get_ref().get_ref().output.clone();
    let (upgrade, consumed) = UpgradeRequest::parse(&request).unwrap().unwrap();
    assert_eq!((upgrade.path.as_str(), consumed, upgrade.header("HOST")), ("/p", request.len(), Some("h")));
    let mut answer = Vec::new();
    upgrade.write_response(&mut answer);
    *pending.get_mut().get_mut() = Pipe::holding(&answer, 1000);
    assert!(pending.handshake().is_ok());
}

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

#[test]
fn rfc_example_gets_the_rfc_answer() {
    let (request, _) = UpgradeRequest::parse(REQUEST.as_bytes()).unwrap().unwrap();
    let mut answer = Vec::new();
    request.write_response(&mut answer);
    assert!(
        String::from_utf8(answer).unwrap().contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n")
    );
}

#[test]
fn requests_that_do_not_upgrade_are_refused_by_header() {
    let refusal =
        |from: &str, to: &str| UpgradeRequest::parse(REQUEST.replace(from, to).as_bytes()).unwrap_err();
    assert_eq!(refusal("Upgrade: WebSocket", "Upgrade: h2c"), HandshakeError::Header("Upgrade"));
    assert_eq!(refusal("keep-alive, Upgrade", "close"), HandshakeError::Header("Connection"));
    assert_eq!(refusal("Version: 13", "Version: 8"), HandshakeError::Header("Sec-WebSocket-Version"));
    assert_eq!(refusal("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), HandshakeError::Header("Sec-WebSocket-Key"));
    assert_eq!(refusal("GET", "POST"), HandshakeError::Method("POST".to_owned()));
    assert!(matches!(refusal("Host: h", "no colon"), HandshakeError::Http(_)));
}

#[test]
fn endless_handshakes_are_cut_off() {
    let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(8192));
    assert_eq!(UpgradeRequest::parse(long.as_bytes()), Err(HandshakeError::TooLong));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(65));
    assert_eq!(UpgradeRequest::parse(many.as_bytes()), Err(HandshakeError::TooManyHeaders));
}

#[test]
fn servers_refusal_is_told_with_its_status() {
    let mut answer = Vec::new();
    write_refusal(&mut answer, 403, "Forbidden", "no such agent");
    let error = ClientHandshake::new([0; 16]).read_response(&answer).unwrap_err();
    assert_eq!(error.to_string(), "server answered 403 \"Forbidden\" instead of 101");
}

#[test]
fn what_was_not_offered_must_not_be_chosen() {
    let ours = ClientHandshake::new(*b"the sample nonce");
    let answer = |extra: &str| {
        format!(
            "HTTP/1.1 101 ok\r\nUpgrade: websocket\r\nConnection: upgrade\r\n{extra}\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )
    };
    assert!(ours.read_response(answer("").as_bytes()).unwrap().is_some());
    let compressed = answer("Sec-WebSocket-Extensions: permessage-deflate\r\n");
    assert_eq!(
        ours.read_response(compressed.as_bytes()),
        Err(HandshakeError::NotOffered("Sec-WebSocket-Extensions"))
    );
}

#[test]
fn headers_cannot_smuggle_lines_into_the_request() {
    let ours = ClientHandshake::new([0; 16]);
    let mut out = b"before".to_vec();
    for (host, path, header) in [
        ("h", "/", ("X", "a\r\nY: b")),
        ("h", "/", ("X y", "a")),
        ("h\r\nX: y", "/", ("X", "a")),
        ("h", "/ HTTP/1.1\r\n", ("X", "a")),
        ("h", "no-slash", ("X", "a")),
    ] {
        assert!(matches!(
            ours.write_request(host, path, [header], &mut out),
            Err(HandshakeError::Unsendable(_))
        ));
        assert_eq!(out, b"before");
    }
}

/// A frame of a server's, with its first octet as given.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    append_frame(&mut out, Opcode::Binary, None, payload).expect("binary frames are of any length");
    out[0] = first;
    out
}

#[test]
fn fragments_are_joined_and_control_frames_between_them_delivered_at_once() {
    let mut bytes = frame(0x01, "grü".as_bytes());
    bytes.extend(frame(0x89, b"ping"));
    bytes.extend(frame(0x00, b""));
    bytes.extend(frame(0x8A, b"pong"));
    bytes.extend(frame(0x80, "ße".as_bytes()));
    bytes.extend(frame(0x82, b"next"));
    let expected = [
        Owned::Ping(b"ping".to_vec()),
        Owned::Pong(b"pong".to_vec()),
        Owned::Text("grüße".to_owned()),
        Owned::Binary(b"next".to_vec()),
    ];
    for piece in 1..bytes.len() {
        assert_eq!(read_all(&mut FrameReader::new(Role::Client), &bytes, &[piece]).unwrap(), expected);
    }
}

#[test]
fn a_character_split_between_fragments_is_still_text() {
    let bytes = [frame(0x01, &[0xC3]), frame(0x80, &[0xBC])].concat();
    let messages = read_all(&mut FrameReader::new(Role::Client), &bytes, &[1]).unwrap();
    assert_eq!(messages, [Owned::Text("ü".to_owned())]);
}

#[test]
fn broken_frames_close_the_reader_with_the_right_code() {
    let refused = |bytes: &[u8]| {
        let mut reader = FrameReader::with_message_max(Role::Client, 1000);
        let error = read_all(&mut reader, bytes, &[bytes.len()]).unwrap_err();
        assert!(reader.is_closed());
        (error, error.close_code())
    };
    assert_eq!(refused(&frame(0xC2, b"")), (ProtocolError::ReservedBits(4), 1002));
    assert_eq!(refused(&frame(0x83, b"")), (ProtocolError::Opcode(3), 1002));
    assert_eq!(refused(&[0x82, 0x80, 0, 0, 0, 0]), (ProtocolError::Mask { masked: true }, 1002));
    assert_eq!(refused(&frame(0x89, &[0; 126])), (ProtocolError::Control { len: 126, fin: true }, 1002));
    assert_eq!(refused(&frame(0x09, b"")), (ProtocolError::Control { len: 0, fin: false }, 1002));
    assert_eq!(refused(&frame(0x80, b"")), (ProtocolError::Fragment, 1002));
    assert_eq!(refused(&[frame(0x02, b""), frame(0x82, b"")].concat()), (ProtocolError::Fragment, 1002));
    assert_eq!(refused(&frame(0x82, &[0; 1001])), (ProtocolError::TooBig { len: 1001, max: 1000 }, 1009));
    let two = [frame(0x02, &[0; 600]), frame(0x80, &[0; 600])].concat();
    assert_eq!(refused(&two), (ProtocolError::TooBig { len: 1200, max: 1000 }, 1009));
    let huge = [&[0x82, 127][..], &[0xFF; 8]].concat();
    assert_eq!(refused(&huge), (ProtocolError::TooBig { len: u64::MAX, max: 1000 }, 1009));
    assert_eq!(refused(&frame(0x81, b"ok\xFF")), (ProtocolError::Utf8 { valid_up_to: 2 }, 1007));
    assert_eq!(refused(&frame(0x88, b"\x03")), (ProtocolError::Close { code: None }, 1002));
    assert_eq!(
        refused(&frame(0x88, &1005u16.to_be_bytes())),
        (ProtocolError::Close { code: Some(1005) }, 1002)
    );
    assert_eq!(refused(&frame(0x88, b"\x03\xE8\xFF")), (ProtocolError::Utf8 { valid_up_to: 0 }, 1007));
}

#[test]
fn a_server_refuses_frames_without_a_mask() {
    let error = read_all(&mut FrameReader::new(Role::Server), &frame(0x82, b"x"), &[9]).unwrap_err();
    assert_eq!(error, ProtocolError::Mask { masked: false });
}

#[test]
fn nothing_is_read_after_a_close() {
    let mut reader = FrameReader::new(Role::Client);
    let bytes = [frame(0x88, &[]), frame(0x82, b"late")].concat();
    assert_eq!(read_all(&mut reader, &bytes, &[100]).unwrap(), [Owned::Close(None, String::new())]);
    assert!(reader.is_closed());
}

#[test]
fn buffer_stays_small_until_a_frame_needs_more_and_does_not_grow_again() {
    let mut reader = FrameReader::new(Role::Client);
    let small = frame(0x82, &[1; 640]);
    for _ in 0..100 {
        read_all(&mut reader, &small, &[333]).unwrap();
    }
    assert_eq!(reader.capacity(), 4096);
    let large = frame(0x82, &[1; 50_000]);
    for _ in 0..3 {
        read_all(&mut reader, &large, &[1460]).unwrap();
        assert_eq!(reader.capacity(), large.len());
    }
}

#[test]
fn close_reasons_are_cut_at_a_character() {
    let mut out = Vec::new();
    write_close(&mut out, None, close::INTERNAL, &"ü".repeat(100));
    let messages = read_all(&mut FrameReader::new(Role::Client), &out, &[200]).unwrap();
    assert_eq!(messages, [Owned::Close(Some(close::INTERNAL), "ü".repeat(61))]);
}

fn any_message() -> impl Strategy<Value = Owned> {
    let short = proptest::collection::vec(any::<u8>(), 0..=125);
    let long = prop_oneof![0usize..300, 4000usize..4200, 65_500usize..65_600];
    prop_oneof![
        ".{0,200}".prop_map(Owned::Text),
        (long, any::<u8>()).prop_map(|(len, octet)| Owned::Binary(vec![octet; len])),
        short.clone().prop_map(Owned::Ping),
        short.prop_map(Owned::Pong),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn both_implementations_agree_however_the_bytes_are_cut(
        messages in proptest::collection::vec(any_message(), 0..6),
        mask: [u8; 4],
        pieces in proptest::collection::vec(1usize..3000, 1..8),
    ) {
        prop_assert_eq!(oracle_reads(&write(&messages, Some(mask)), pieces[0], OracleRole::Server), messages.clone());
        let from_client = oracle_writes(&messages, OracleRole::Client);
        prop_assert_eq!(read_all(&mut FrameReader::new(Role::Server), &from_client, &pieces), Ok(messages.clone()));
        prop_assert_eq!(read_all(&mut FrameReader::new(Role::Client), &write(&messages, None), &pieces), Ok(messages));
    }

    #[test]
    fn fragments_join_to_what_was_cut(
        payload in proptest::collection::vec(any::<u8>(), 0..9000),
        cuts in proptest::collection::vec(0usize..4000, 0..8),
        piece in 1usize..5000,
    ) {
        let mut bytes = Vec::new();
        let mut rest = payload.as_slice();
        for (index, cut) in cuts.iter().enumerate() {
            let (head, tail) = rest.split_at(*cut.min(&rest.len()));
            bytes.extend(frame(if index == 0 { 0x02 } else { 0x00 }, head));
            bytes.extend(frame(0x89, b"between"));
            rest = tail;
        }
        bytes.extend(frame(if cuts.is_empty() { 0x82 } else { 0x80 }, rest));
        let mut reader = FrameReader::with_message_max(Role::Client, 9000);
        let messages = read_all(&mut reader, &bytes, &[piece]).unwrap();
        prop_assert_eq!(messages.len(), cuts.len() + 1);
        prop_assert_eq!(messages.last(), Some(&Owned::Binary(payload)));
    }

    #[test]
    fn any_octets_are_read_or_refused_within_bounds(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        server: bool,
        piece in 1usize..40,
    ) {
        let role = if server { Role::Server } else { Role::Client };
        let mut reader = FrameReader::with_message_max(role, 5000);
        let _ = read_all(&mut reader, &bytes, &[piece]);
        prop_assert!(reader.capacity() <= 5000 + 14 + 14);
        let _ = UpgradeRequest::parse(&bytes);
        let _ = ClientHandshake::new([0; 16]).read_response(&bytes);
    }
}
