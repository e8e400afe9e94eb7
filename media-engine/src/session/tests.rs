//! Sessions in virtual time: a phone, a bot and a clock, all of them plain values.

mod agent;
mod audiosocket;
mod carrier;
mod late;
mod link;
mod pause;

use std::collections::BTreeMap;

use tandem_audio::format::Ptime;
use tandem_rtp::latch::Latching;
use tandem_rtp::packet::{Header, Packet};
use tandem_rtp::units::{PayloadType, SequenceNumber, Ssrc, Timestamp};
use tandem_stream::Dialect;
use tandem_stream::agent::TransferMode;
use tandem_stream::websocket::{FrameReader, Message, Opcode, Role, UpgradeRequest, Url, append_frame};

mod joining;
mod lifetime;
mod outbound;
mod provider;
mod reports;
mod second;
mod secure;
mod speech;
mod srtp;

use super::*;
use crate::leg::agent::{AudioSocketParameters, LinkParameters, Recording, WebSocketParameters};
use crate::leg::rtp::Rtcp;
use crate::session::bridge::SoundParameters;

const MS: Duration = Duration::from_millis(1);
const PHONE: &str = "192.0.2.1:4000";
const NAT: &str = "198.51.100.9:61000";

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn rtp() -> RtpParameters {
    RtpParameters {
        remote: Some(at(PHONE)),
        codec: Some(Codec::Pcmu),
        payload_type: PayloadType::PCMU,
        ptime: Ptime::MS_20,
        event_payload_type: PayloadType::new(101),
        direction: Direction::SendReceive,
        latching: Latching::Auto,
        rtcp: Rtcp::Off,
        srtp: None,
        secure: None,
        sound: SoundParameters::default(),
    }
}

fn with(agent: AgentParameters) -> SessionParameters {
    SessionParameters {
        call: CallInfo { call_id: "0190-ab".into(), tenant_id: "t-1".into(), ..CallInfo::default() },
        rtp: rtp(),
        stream: None,
        agent,
        speech: SpeechParameters::default(),
        media_timeout: Duration::from_secs(60),
        max_session: None,
        seed: 7,
        since_epoch: Duration::from_secs(1_700_000_000),
        identity: None,
    }
}

fn websocket(dialect: Dialect) -> AgentParameters {
    AgentParameters::WebSocket(Box::new(WebSocketParameters {
        url: Url::parse("ws://bot.test/talk").unwrap(),
        dialect,
        tls: None,
        headers: vec![("x-secret".into(), "s".into())],
        custom: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        connect_timeout: Duration::from_secs(5),
    }))
}

/// A packet that left.
#[derive(Debug, Clone)]
struct Sent {
    at: Duration,
    to: SocketAddr,
    header: Header,
    payload: Vec<u8>,
}

/// One session, its phone and the time.
struct Call {
    session: Session,
    began: Instant,
    now: Instant,
    sequence: u16,
    timestamp: u32,
    sent: Vec<Sent>,
    /// Compounds that left, and where from and to.
    reports: Vec<(Transmit, Vec<u8>)>,
    /// What the phone reads protected packets with.
    phone: Option<tandem_rtp::srtp::Inbound>,
}

impl Call {
    fn new(parameters: SessionParameters) -> Self {
        let now = Instant::now();
        let session = Session::new(parameters, now).unwrap();
        Self {
            session,
            began: now,
            now,
            sequence: 65_530,
            timestamp: 0,
            sent: Vec::new(),
            reports: Vec::new(),
            phone: None,
        }
    }

    fn started(parameters: SessionParameters) -> Self {
        let mut call = Self::new(parameters);
        call.session.start(call.now + 5 * MS, call.now);
        call
    }

    /// Lets time pass, waking the session when it asks for it, as the worker does.
    fn pass(&mut self, ms: u32) {
        let end = self.now + MS * ms;
        while let Some(next) = self.session.poll_timeout().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.tick();
            if self.session.poll_timeout() == Some(next) {
                break;
            }
        }
        self.now = end;
        self.tick();
    }

    fn tick(&mut self) {
        let mut out = [0; 1_472];
        while let Some(transmit) = self.session.poll_transmit(self.now, &mut out) {
            let mut datagram = out[..transmit.len].to_vec();
            let is_report = tandem_rtp::packet::is_rtcp(&datagram);
            if let Some(phone) = &mut self.phone {
                datagram = match is_report {
                    true => phone.unprotect_rtcp(&datagram).unwrap().to_vec(),
                    false => phone.unprotect_rtp(&datagram).unwrap().to_vec(),
                };
            }
            if is_report {
                self.reports.push((transmit, datagram));
                continue;
            }
            let packet = Packet::parse(&datagram).unwrap();
            self.sent.push(Sent {
                at: self.now - self.began,
                to: transmit.to,
                header: packet.header,
                payload: packet.payload.to_vec(),
            });
        }
        self.session.handle_timeout(self.now);
    }

    fn packet(&mut self, payload_type: u8, payload: &[u8]) -> Vec<u8> {
        let header = Header {
            marker: false,
            payload_type: PayloadType::new(payload_type).unwrap(),
            sequence: SequenceNumber(self.sequence),
            timestamp: Timestamp(self.timestamp),
            ssrc: Ssrc(99),
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = header.to_octets().to_vec();
        packet.extend_from_slice(payload);
        packet
    }

    fn says_from(&mut self, source: &str, payload: &[u8]) {
        let packet = self.packet(0, payload);
        self.timestamp = self.timestamp.wrapping_add(payload.len() as u32);
        self.session.handle_datagram(at(source), &packet, self.now);
    }

    fn says(&mut self, code: u8) {
        self.says_from(PHONE, &[code; 160]);
    }

    fn loses_a_packet(&mut self) {
        self.sequence = self.sequence.wrapping_add(1);
        self.timestamp = self.timestamp.wrapping_add(160);
    }

    fn presses(&mut self, key: u8) {
        for n in 1..=6u16 {
            let [high, low] = (160 * n).to_be_bytes();
            let end = if n > 3 { 0x80 } else { 0 };
            let packet = self.packet(101, &[key, end | 10, high, low]);
            self.session.handle_datagram(at(PHONE), &packet, self.now);
        }
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }

    fn payloads(&mut self) -> Vec<u8> {
        self.sent.drain(..).map(|sent| sent.payload[0]).collect()
    }
}

/// The bot's side of the stream.
struct Bot {
    reader: FrameReader,
}

impl Bot {
    /// Connects and upgrades.
    fn meets(call: &mut Call) -> Self {
        call.session.handle_connected(call.now);
        let mut out = [0; 4_096];
        let len = call.session.poll_stream(&mut out);
        let (request, _) = UpgradeRequest::parse(&out[..len]).unwrap().unwrap();
        assert_eq!(request.path, "/talk");
        assert_eq!(request.header("x-secret"), Some("s"));
        let mut answer = Vec::new();
        request.write_response(&mut answer);
        call.session.handle_bytes(&answer, call.now);
        Self { reader: FrameReader::new(Role::Server) }
    }

    fn hears(&mut self, call: &mut Call) -> Vec<Message<'static>> {
        let mut messages = Vec::new();
        let mut out = [0; 4_096];
        loop {
            let len = call.session.poll_stream(&mut out);
            if len == 0 {
                return messages;
            }
            let mut rest = &out[..len];
            while !rest.is_empty() {
                let taken = self.reader.push(rest);
                rest = &rest[taken..];
                while let Some(message) = self.reader.poll_message().unwrap() {
                    messages.push(match message {
                        Message::Text(text) => Message::Text(text.to_owned().leak()),
                        Message::Binary(octets) => Message::Binary(octets.to_vec().leak()),
                        Message::Ping(octets) => Message::Ping(octets.to_vec().leak()),
                        Message::Pong(octets) => Message::Pong(octets.to_vec().leak()),
                        Message::Close { code, .. } => Message::Close { code, reason: "" },
                    });
                }
            }
        }
    }

    fn texts(&mut self, call: &mut Call) -> Vec<&'static str> {
        let texts = self.hears(call).into_iter().filter_map(|message| match message {
            Message::Text(text) => Some(text),
            _ => None,
        });
        texts.collect()
    }

    fn says(&self, call: &mut Call, opcode: Opcode, payload: &[u8]) {
        let mut frame = Vec::new();
        append_frame(&mut frame, opcode, None, payload).unwrap();
        // Cut in two, as TCP may.
        let (first, second) = frame.split_at(frame.len() / 2);
        call.session.handle_bytes(first, call.now);
        call.session.handle_bytes(second, call.now);
    }

    fn asks(&self, call: &mut Call, text: &str) {
        self.says(call, Opcode::Text, text.as_bytes());
    }

    /// Sound that comes out as 0x80 or 0x00 in PCMU: full scale.
    fn speaks(&self, call: &mut Call, ms: usize) {
        let sound = i16::MAX.to_le_bytes().repeat(16 * ms);
        self.says(call, Opcode::Binary, &sound);
    }
}

fn is_sound(payload: u8) -> bool {
    payload == 0x80
}
