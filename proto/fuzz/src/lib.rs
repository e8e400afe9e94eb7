//! One function for each entrance from the network: what must hold whatever the octets are.
//!
//! ```text
//!   corpus/TARGET/*  ──▶ tests/replay.rs        cargo test: the committed inputs, and damaged copies of them
//!                    └─▶ libfuzzer/fuzz_targets  make fuzz TARGET=sdp: libFuzzer, by hand, as long as one likes
//! ```
//!
//! The targets are compiled and run with every test, so they cannot rot. An input that once crashed belongs into its corpus.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tandem_audio::format::{ClockRate, Codec, MAX_PACKET_SAMPLES, MAX_PAYLOAD_OCTETS, Ptime, SampleRate};
use tandem_audio::noise::{NoiseGenerator, Sid};
use tandem_audio::transcode::Decoder;
use tandem_rtp::dtls::{DATAGRAM_LEN_MAX, DtlsSrtp, Fingerprint, Identity, Kind, Setup};
use tandem_rtp::event::EventDetector;
use tandem_rtp::ice::{ANSWER_LEN_MAX, Credentials, IceLite, IceText};
use tandem_rtp::jitter::{Release, ReorderBuffer};
use tandem_rtp::packet::Packet;
use tandem_rtp::receiver::{Receiver, Verdict};
use tandem_rtp::report::{Reports, WallClock};
use tandem_rtp::srtp::{Inbound, MasterKey, Outbound, Suite};
use tandem_rtp::units::Ssrc;
use tandem_sdp::dtls::Secret;
use tandem_sdp::{LocalDtls, LocalMedia, LocalSrtp, SessionDescription, SrtpPolicy};
use tandem_sip::{ConnectionId, Endpoint, EndpointConfig, Flow, Transport};
use tandem_stream::agent::{FromAgent, ToAgent, read_audio};
use tandem_stream::audiosocket::{self, Reader, Server as AudioSocketServer};
use tandem_stream::grpc;
use tandem_stream::link::{BODY_MAX, Client, Decoder as LinkDecoder, Message, Server, append as link_frame};
use tandem_stream::provider::registry::PROVIDERS;
use tandem_stream::provider::{Event, MediaStream, Setup as MediaSetup};
use tandem_stream::twilio::{FromBot, ToBot, decode_payload};
use tandem_stream::websocket::{ClientHandshake, FrameReader, Role, UpgradeRequest, Url};

/// A function that must not panic, whatever it is given.
pub type Target = fn(&[u8]);

/// Every entrance, by the name of its corpus.
pub const TARGETS: [(&str, Target); 19] = [
    ("sip_datagram", sip_datagram),
    ("sip_stream", sip_stream),
    ("sip_value", sip_value),
    ("stun", stun),
    ("sdp", sdp),
    ("rtp", rtp),
    ("rtcp", rtcp),
    ("srtp", srtp),
    ("ice", ice),
    ("dtls", dtls),
    ("payload", payload),
    ("websocket", websocket),
    ("pcm", pcm),
    ("twilio", twilio),
    ("link", link),
    ("audiosocket", audiosocket),
    ("audiosocket_server", audiosocket_server),
    ("provider", provider),
    ("grpc", grpc),
];

/// A datagram at the SIP port; what parses must be written so that it parses to the same.
pub fn sip_datagram(octets: &[u8]) {
    tandem_sip::parse::fuzz_message(octets);
    let mut endpoint = Endpoint::new(EndpointConfig::default());
    endpoint.handle_input(octets, Flow::udp(HERE, THERE), now());
    drain(&mut endpoint);
}

/// The value of a header field that has a reader of its own: timers, PRACK, transfer, identities, digest, contacts.
pub fn sip_value(octets: &[u8]) {
    tandem_sip::header::fuzz_value(octets);
}

/// A SIP connection, cut into pieces whose size the first octet gives.
pub fn sip_stream(octets: &[u8]) {
    let mut endpoint = Endpoint::new(EndpointConfig::default());
    let flow = Flow::connected(Transport::Tcp, HERE, THERE, ConnectionId(1));
    for piece in pieces(octets) {
        endpoint.handle_input(piece, flow, now());
        drain(&mut endpoint);
    }
}

/// A STUN message at the SIP port: it is answered shortly, or not at all.
pub fn stun(octets: &[u8]) {
    if tandem_sip::stun::is_stun(octets)
        && let Ok(answer) = tandem_sip::stun::answer(octets, THERE)
    {
        assert!(answer.len() <= tandem_sip::stun::ANSWER_LEN_MAX);
    }
}

/// A session description: what parses is written so that it parses to the same media, and is answered or refused.
pub fn sdp(octets: &[u8]) {
    let Ok(offer) = SessionDescription::parse(octets) else { return };
    let again = SessionDescription::parse(offer.to_string().as_bytes()).expect("what we write, we read");
    assert_eq!(again.media, offer.media);
    let mut local = LocalMedia::g711(HERE.ip(), 20_000, 1);
    local.srtp = LocalSrtp::new(SrtpPolicy::Optional, |octets| octets.fill(1));
    local.dtls = Some(LocalDtls {
        fingerprint: Fingerprint::new([1; 32]),
        secret: Secret([1; 32]),
        is_offered: false,
        current: None,
    });
    if let Ok((answer, _)) = tandem_sdp::answer(&offer, &local) {
        assert_eq!(answer.media.len(), offer.media.len());
    }
    let _ = tandem_sdp::accept_answer(&tandem_sdp::offer(&local), &offer);
    if let Some(dtls) = &mut local.dtls {
        dtls.is_offered = true;
        let _ = tandem_sdp::accept_answer(&tandem_sdp::offer(&local), &offer);
    }
}

/// A stream of RTP datagrams, each after its length in one octet.
pub fn rtp(octets: &[u8]) {
    let mut receiver = Receiver::new(ClockRate::HZ_8000);
    let mut reorder = ReorderBuffer::new(MAX_PAYLOAD_OCTETS);
    let mut detector = EventDetector::new(ClockRate::HZ_8000);
    for datagram in records(octets) {
        let Ok(packet) = Packet::parse(datagram) else { continue };
        detector.handle_packet(packet.header.timestamp, packet.payload, now());
        while detector.poll_event().is_some() {}
        let verdict = receiver.handle_packet(&packet.header, packet.payload.len(), now());
        let Verdict::Accepted { sequence, started } = verdict else { continue };
        if started {
            reorder.reset();
        }
        reorder.handle_packet(sequence, &packet.header, packet.payload, now());
        while let Some(release) = reorder.poll_release() {
            assert!(!matches!(release, Release::Gap { packets: 0, .. }));
        }
    }
}

/// Payloads of one codec, each after its length in one octet, at one rate; the first octet says which. An empty one is lost,
/// and the next may bring it back.
pub fn payload(octets: &[u8]) {
    let Some((&which, rest)) = octets.split_first() else { return };
    let codec = Codec::ALL[usize::from(which) % Codec::ALL.len()];
    let rate = SampleRate::ALL[usize::from(which >> 4) % SampleRate::ALL.len()];
    let mut decoder = Decoder::concealing(codec, rate);
    let mut noise = NoiseGenerator::new(1);
    let mut samples = [0; MAX_PACKET_SAMPLES];
    let gap = rate.samples(Ptime::MS_20);
    let mut is_lost = false;
    for payload in records(rest) {
        if payload.is_empty() {
            assert_eq!(decoder.conceal(&mut samples[..gap]), gap);
        } else if is_lost {
            assert!(decoder.recover(payload, &mut samples[..gap]) <= gap);
        }
        is_lost = payload.is_empty();
        let len = decoder.decode(payload, &mut samples);
        assert!(len <= samples.len());
        let _ = (codec.ms_in(payload), codec.ticks_in(payload));
        if let Some(sid) = Sid::parse(payload) {
            noise.set(&sid);
            decoder.fill_noise(&mut noise, &mut samples[..gap]);
        }
    }
}

/// A compound RTCP datagram, read by itself and by a session whose SSRC it may name.
pub fn rtcp(octets: &[u8]) {
    let readable = tandem_rtp::rtcp::parse(octets).take_while(Result::is_ok).count();
    assert!(readable <= octets.len() / 4, "a packet has four octets at least");
    let mut receiver = Receiver::new(ClockRate::HZ_8000);
    let mut reports = Reports::new(WallClock::new(now(), Duration::ZERO), 1);
    reports.handle_datagram(octets, Ssrc(1), ClockRate::HZ_8000, &mut receiver, now());
    let stats = reports.stats();
    assert!(stats.received + stats.malformed >= 1);
    assert!(reports.peer().fraction_lost < 1.0);
}

/// A STUN message at a media port: without our password it nominates nothing, and its answer is short.
pub fn ice(octets: &[u8]) {
    let Some(remote_ufrag) = IceText::parse("h6vY") else { return };
    let mut side = IceLite::new(Credentials::from_random(&[7; 32]), remote_ufrag);
    let mut answer = [0; ANSWER_LEN_MAX];
    if Kind::of(octets) == Kind::Stun
        && let Ok(checked) = side.handle_datagram(octets, THERE, now(), &mut answer)
    {
        assert!(checked.answer_len <= ANSWER_LEN_MAX && !checked.is_authentic);
    }
    assert_eq!(side.pair(), None);
}

/// Datagrams of a DTLS handshake, each after its length in two octets, in either role: whatever comes, there are no keys for one
/// whose certificate was not signalled, and the answers fit a datagram.
pub fn dtls(octets: &[u8]) {
    static IDENTITY: LazyLock<Identity> = LazyLock::new(|| {
        let made =
            rcgen::generate_simple_self_signed(["fuzz.test".to_owned()]).expect("a certificate can be made");
        Identity::new(made.cert.der().to_vec(), made.signing_key.serialize_der())
    });
    // A client makes its keys before it has heard anything, which takes long: every fourth length has its turn.
    let setup = if octets.len().is_multiple_of(4) { Setup::Active } else { Setup::Passive };
    let nobody = Fingerprint::new([0; 32]);
    if !long_records(octets).any(|datagram| Kind::of(datagram) == Kind::Dtls) {
        return;
    }
    let mut side = DtlsSrtp::new(&IDENTITY, setup, nobody, now()).expect("the settings are good");
    let mut out = [0; DATAGRAM_LEN_MAX];
    for datagram in long_records(octets) {
        side.handle_datagram(datagram, now());
        while let Some(len) = side.poll_transmit(&mut out) {
            assert!(len <= out.len());
        }
        assert_eq!(side.poll_keys(), None);
    }
}

/// SRTP and SRTCP datagrams, each after its length in one octet, under a key that the fuzzer does not have: none is believed.
/// In between some that are authentic, which must be believed whatever came before them.
pub fn srtp(octets: &[u8]) {
    for suite in Suite::ALL {
        let key = MasterKey::new(suite, &vec![7; suite.master_len()]).expect("as long as the suite says");
        let (Ok(mut inbound), Ok(mut outbound)) = (Inbound::new(key), Outbound::new(key)) else { continue };
        for (n, datagram) in records(octets).take(64).enumerate() {
            // A tag of 32 bits is guessed once in a long run of the fuzzer.
            let is_believed = inbound.unprotect_rtp(datagram).is_ok();
            assert!(!is_believed || suite == Suite::AesCm128HmacSha1_32);
            assert!(inbound.unprotect_rtcp(datagram).is_err());
            let mut packet = [0; 64];
            packet[0] = 0x80;
            packet[3] = n as u8;
            let len = outbound.protect_rtp(&mut packet, 32).expect("there is room");
            assert!(inbound.unprotect_rtp(&packet[..len]).is_ok());
        }
    }
}

/// A WebSocket: its handshake in either direction, its frames in either role, and a URL.
pub fn websocket(octets: &[u8]) {
    let _ = UpgradeRequest::parse(octets);
    let _ = ClientHandshake::new([0; 16]).read_response(octets);
    let _ = std::str::from_utf8(octets).map(Url::parse);
    for role in [Role::Client, Role::Server] {
        let mut reader = FrameReader::with_message_max(role, 10_000);
        for mut piece in pieces(octets) {
            while !piece.is_empty() {
                let taken = reader.push(piece);
                piece = &piece[taken..];
                while let Ok(Some(_)) = reader.poll_message() {}
            }
        }
        assert!(reader.capacity() <= 11_000, "the buffer is bounded");
    }
}

/// The pcm dialect: what parses is written so that it parses to the same.
pub fn pcm(octets: &[u8]) {
    let _ = read_audio(octets).map(Iterator::count);
    let Ok(text) = std::str::from_utf8(octets) else { return };
    if let Ok(Some(event)) = FromAgent::parse(text) {
        assert_eq!(FromAgent::parse(&event.to_json()), Ok(Some(event)));
    }
    if let Ok(Some(event)) = ToAgent::parse(text) {
        assert_eq!(ToAgent::parse(&event.to_json()), Ok(Some(event)));
    }
}

/// The Twilio dialect, in both directions, and its payloads.
pub fn twilio(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else { return };
    let mut scratch = [0; 30];
    for payload in [
        match FromBot::parse(text) {
            Ok(Some(FromBot::Media { payload })) => payload.into_owned(),
            _ => text.to_owned(),
        },
        match ToBot::parse(text) {
            Ok(Some(ToBot::Media { payload, .. })) => payload.into_owned(),
            _ => String::new(),
        },
    ] {
        let mut octets = 0;
        if let Ok(len) = decode_payload(&payload, &mut scratch, |piece| octets += piece.len()) {
            assert_eq!(len, octets);
        }
    }
}

/// The multiplexed link: its frames cut anywhere, and both of its sides.
pub fn link(octets: &[u8]) {
    let mut decoder = LinkDecoder::default();
    for piece in pieces(octets) {
        let read = decoder.handle_bytes(piece, |call, message| {
            let mut again = Vec::new();
            link_frame(&mut again, call, &message);
            let mut same = false;
            LinkDecoder::default().handle_bytes(&again, |of, read| {
                same = of == call && read == message;
                Ok(())
            })?;
            assert!(same || message == Message::Malformed);
            Ok(())
        });
        if read.is_err() {
            break;
        }
        assert!(decoder.pending() <= 8 + BODY_MAX, "the buffer is bounded");
    }
    let (mut client, mut server) = (Client::new(Vec::new(), now()), Server::new(Vec::new()));
    client.dial(now());
    client.handle_connected(now());
    let mut out = Vec::new();
    let _ = pieces(octets).try_for_each(|piece| client.handle_bytes(piece, now(), |_, _| {}));
    let _ = pieces(octets).try_for_each(|piece| server.handle_bytes(piece, &mut out, |_, _| {}));
}

/// AudioSocket: what is read is written as the same octets.
pub fn audiosocket(octets: &[u8]) {
    let mut reader = Reader::default();
    for piece in pieces(octets) {
        let read = reader.handle_bytes(piece, |message| {
            if matches!(message, audiosocket::Message::Unknown(_) | audiosocket::Message::Error(_)) {
                return;
            }
            let (mut again, mut same) = (Vec::new(), false);
            audiosocket::append(&mut again, &message);
            let read = Reader::default().handle_bytes(&again, |read| same = read == message);
            assert!(same && read.is_ok());
        });
        if read.is_err() {
            break;
        }
    }
}

/// The side that Asterisk dials: whatever comes, what it writes is one whole frame, and after the end nothing.
pub fn audiosocket_server(octets: &[u8]) {
    let mut server = AudioSocketServer::new(now());
    let mut is_over = false;
    for piece in pieces(octets) {
        server.handle_bytes(piece, now(), |event| {
            assert!(!is_over, "nothing comes after the end");
            is_over = matches!(event, audiosocket::ServerEvent::End(_));
        });
        let mut out = Vec::new();
        server.write_silence(&mut out);
        assert!(out.is_empty() || out.len() == audiosocket::HEADER_OCTETS + server.format().frame_octets());
        assert!(!is_over || out.is_empty());
    }
}

/// A provider's connection, by the first octet; then messages, each after its length in two octets, whose highest bit says binary.
/// Between them we speak, mark and clear. Sound is in whole samples after a start, heard positions never run back, and nothing
/// comes after the end.
pub fn provider(octets: &[u8]) {
    let Some((&which, mut rest)) = octets.split_first() else { return };
    let of = PROVIDERS[usize::from(which) % PROVIDERS.len()];
    let mut now = now();
    let mut stream = MediaStream::new(of, MediaSetup::new(SampleRate::Hz16000), now);
    let (mut is_started, mut is_over, mut heard) = (false, false, 0);
    let (mut out, mut scratch) = (Vec::new(), [0; 66]);
    let mut turn = 0_u32;
    while let Some((len, more)) = rest.split_first_chunk::<2>() {
        let len = u16::from_be_bytes(*len);
        let (message, more) = more.split_at(more.len().min(usize::from(len & 0x7FFF)));
        rest = more;
        let take = |event: Event<'_>| match event {
            Event::Start(_) => {
                assert!(!is_started && !is_over);
                is_started = true;
            }
            Event::Audio { sound, .. } => assert!(is_started && !is_over && !sound.is_empty()),
            Event::Stop(_) => {
                assert!(!is_over);
                is_over = true;
            }
            _ => {}
        };
        if len & 0x8000 == 0
            && let Ok(text) = std::str::from_utf8(message)
        {
            stream.handle_text(text, now, &mut scratch, take);
        } else {
            stream.handle_binary(message, take);
        }
        turn += 1;
        now += Duration::from_millis(37);
        let is_live = stream.audio(&[7; 482], now, &mut out);
        assert_eq!(is_live, is_started && !is_over);
        let _ = stream.mark("m", now, &mut out);
        match turn % 4 {
            0 => stream.end_utterance(now, &mut out),
            1 => _ = stream.clear(now, &mut out, |_| {}),
            _ => {}
        }
        if is_live {
            assert!(stream.heard_ms(now) >= heard, "heard positions never run back");
            heard = stream.heard_ms(now);
        }
        let mut reader = FrameReader::new(Role::Client);
        for piece in out.chunks(1_000) {
            reader.push(piece);
            while reader.poll_message().expect("what we write is WebSocket").is_some() {}
        }
        out.clear();
    }
}

const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5060);
const THERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5080);

/// The one place that asks for the time; the targets do not depend on what it is.
#[expect(clippy::disallowed_methods, reason = "a fuzz target is its own shell")]
fn now() -> Instant {
    Instant::now()
}

fn drain(endpoint: &mut Endpoint) {
    while endpoint.poll_transmit().is_some() {}
    while endpoint.poll_event().is_some() {}
    let _ = endpoint.poll_timeout();
}

/// The octets after the first, in pieces of the size that it gives.
fn pieces(octets: &[u8]) -> std::slice::Chunks<'_, u8> {
    let (size, rest) = octets.split_first().unwrap_or((&0, &[]));
    rest.chunks(usize::from(*size).max(1))
}

/// Records that each begin with their length in one octet; the last may be cut short.
fn records(mut octets: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = octets.split_first()?;
        let (record, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        octets = rest;
        Some(record)
    })
}

/// A gRPC agent's connection, cut into pieces whose size the first octet gives: every message is bounded, and what waits to be
/// written is, too.
pub fn grpc(octets: &[u8]) {
    let request = grpc::Request { secure: false, authority: "agent:1", path: "/a.B/C" };
    let Ok(mut client) = grpc::Client::new(request, std::iter::empty()) else { return };
    let mut out = [0; 256];
    for piece in pieces(octets) {
        let read = client.handle_bytes(piece, &mut |incoming| {
            if let grpc::Incoming::Message(message) = incoming {
                assert!(message.len() <= grpc::MESSAGE_MAX);
            }
        });
        if read.is_err() {
            return;
        }
        let _ = client.push(&[1; 40]);
        while client.has_output() {
            assert!(client.poll_output(&mut out) > 0);
        }
    }
}

/// Records that each begin with their length in two octets; the last may be cut short.
fn long_records(mut octets: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = octets.split_first_chunk::<2>()?;
        let (record, rest) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes(*len))));
        octets = rest;
        Some(record)
    })
}
