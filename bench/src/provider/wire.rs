//! One call's media as the provider writes and reads it: octets in, octets out.
//!
//! The bench's own reading of the providers' pages and not tandem-stream's dialects: the instrument must not share a mistake
//! with what it measures. Only RFC 6455 itself is shared.
//!
//! ```text
//!   codes (8 kHz µ-law) ─▶ write_media ─▶ message ─▶ target
//!   target ─▶ handle_bytes ─▶ Heard::{Sound, Mark, Clear, …}
//! ```
//! Linear sound above 8 kHz repeats each sample, and only the first of each group is read: a target that passes it on as it
//! is leaves the marks alive.
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use base64_simd::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use tandem_stream::websocket::{
    FrameReader, Message, Opcode, Role, append_frame, frame_len, write_close, write_frame,
};

use crate::clock::{Mono, NANOS_PER_MS};
use crate::marker::{FRAME_OCTETS, Signal};

use super::Transport;

/// Octets of the longest message that we send: 100 ms of L16 at 24 kHz in Base64 and JSON.
pub const MESSAGE_MAX: usize = 7_168;

/// Marks that wait to be played, at most; a target that sets more has its oldest forgotten.
const MARKS_MAX: usize = 1_024;

/// AudioSocket's types.
const KIND_HANGUP: u8 = 0x00;
const KIND_UUID: u8 = 0x01;
const KIND_SLIN_8K: u8 = 0x10;

/// Octets of AudioSocket's header.
const TLV_HEADER: usize = 3;

/// Nanoseconds of a sample at 8 kHz.
const SAMPLE_NS: u64 = 125_000;

/// What the provider knows of a call.
#[derive(Debug, Clone, Default)]
pub struct Ids {
    /// The provider's id of the call.
    pub call: String,
    /// The account.
    pub account: String,
    /// The caller.
    pub from: String,
    /// Who is called.
    pub to: String,
}

/// How the media are to be spoken, as the answer document says.
#[derive(Debug, Clone)]
pub struct Speech {
    /// Samples a second of linear sound: 8 000, 16 000 or 24 000.
    pub rate_hz: u32,
    /// Parameters that the start repeats.
    pub parameters: BTreeMap<String, String>,
    /// Of AudioSocket.
    pub uuid: [u8; 16],
}

impl Default for Speech {
    fn default() -> Self {
        Self { rate_hz: 8_000, parameters: BTreeMap::new(), uuid: [0; 16] }
    }
}

/// What the target has said.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// Sound, in the signal's law at 8 kHz.
    Sound(&'a [u8]),
    /// To be echoed when everything before it has been played; of Vonage the payload, as JSON.
    Mark(&'a str),
    /// What waits is not to be played.
    Clear,
    /// To be answered by [`Wire::pong`].
    Ping(&'a [u8]),
    /// The target ends the call.
    Close(Option<u16>),
    /// A word without meaning for the provider.
    Ignored,
}

/// The target broke the provider's rules, which ends the call there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// RFC 6455.
    #[error("WebSocket: {0}")]
    WebSocket(#[from] tandem_stream::websocket::ProtocolError),
    /// A text that is no JSON.
    #[error("a text that is no JSON")]
    Json,
    /// Not Base64.
    #[error("a payload that is no Base64")]
    Base64,
    /// Vonage and AudioSocket close then.
    #[error("a frame of {0} octets, which the provider refuses")]
    Frame(usize),
    /// AudioSocket: Asterisk drops the call then.
    #[error("a message of type {0:#04x}, which Asterisk refuses")]
    Kind(u8),
    /// Twilio and Exotel take none.
    #[error("a binary message, which the provider refuses")]
    Binary,
}

/// See the module.
pub struct Wire {
    transport: Transport,
    speech: Speech,
    ids: Ids,
    stream: String,
    reader: FrameReader,
    /// Of AudioSocket: what has come of a message that is not complete.
    tlv: Vec<u8>,
    /// Messages so far, for the counts in them.
    messages: u64,
    frames: u64,
    mask: u32,
}

#[derive(Deserialize)]
struct Text<'a> {
    #[serde(borrow, default)]
    event: Cow<'a, str>,
    #[serde(borrow, default)]
    action: Cow<'a, str>,
    #[serde(borrow)]
    media: Option<Media<'a>>,
    #[serde(borrow)]
    mark: Option<Mark<'a>>,
    payload: Option<Value>,
}

#[derive(Deserialize)]
struct Media<'a> {
    #[serde(borrow)]
    payload: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Mark<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

/// Buffers that all calls of a thread share.
#[derive(Default)]
pub struct Scratch {
    codes: Vec<u8>,
    linear: Vec<u8>,
    text: String,
}

impl Wire {
    /// A call's wire; `seed` is where its masks begin.
    pub fn new(transport: Transport, speech: Speech, ids: Ids, stream: String, seed: u32) -> Self {
        Self {
            transport,
            speech,
            ids,
            stream,
            reader: FrameReader::new(Role::Client),
            tlv: Vec::new(),
            messages: 0,
            frames: 0,
            mask: seed,
        }
    }

    /// A fresh mask (RFC 6455 §5.3). Whoever wants to predict ours may: nothing here passes a browser's proxy.
    fn next_mask(&mut self) -> [u8; 4] {
        // Numerical Recipes' generator.
        self.mask = self.mask.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.mask.to_ne_bytes()
    }

    /// Appends what a provider says before any sound.
    pub fn open(&mut self, out: &mut Vec<u8>) {
        let Speech { rate_hz, parameters, uuid } = self.speech.clone();
        let Ids { call, account, from, to } = self.ids.clone();
        match self.transport {
            Transport::Twilio => {
                self.say(out, &json!({"event": "connected", "protocol": "Call", "version": "1.0.0"}));
                self.messages = 1;
                let start = json!({"event": "start", "sequenceNumber": "1", "streamSid": self.stream, "start": {
                    "streamSid": self.stream, "accountSid": account, "callSid": call, "tracks": ["inbound"],
                    "customParameters": parameters,
                    "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8_000, "channels": 1}}});
                self.say(out, &start);
            }
            Transport::Exotel => {
                self.say(out, &json!({"event": "connected"}));
                self.messages = 1;
                let start = json!({"event": "start", "sequence_number": "1", "stream_sid": self.stream, "start": {
                    "stream_sid": self.stream, "call_sid": call, "account_sid": account, "from": from, "to": to,
                    "custom_parameters": parameters, "media_format": {"encoding": "audio/x-raw",
                    "sample_rate": rate_hz.to_string(), "bit_rate": "16"}}});
                self.say(out, &start);
            }
            Transport::Vonage => {
                let mut connected = json!({"event": "websocket:connected",
                    "content-type": format!("audio/l16;rate={rate_hz}")});
                for (name, value) in parameters {
                    connected[name] = json!(value);
                }
                self.say(out, &connected);
            }
            Transport::AudioSocket => {
                out.extend([KIND_UUID, 0, 16]);
                out.extend(uuid);
            }
        }
    }

    /// Appends what a provider says at the end. Asterisk says nothing: it closes.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        self.messages += 1;
        let number = self.messages.to_string();
        let Ids { call, account, .. } = self.ids.clone();
        match self.transport {
            Transport::Twilio => {
                let stop = json!({"event": "stop", "sequenceNumber": number, "streamSid": self.stream,
                    "stop": {"accountSid": account, "callSid": call}});
                self.say(out, &stop);
            }
            Transport::Exotel => {
                let stop = json!({"event": "stop", "sequence_number": number, "stream_sid": self.stream,
                    "stop": {"account_sid": account, "call_sid": call, "reason": "callended"}});
                self.say(out, &stop);
            }
            Transport::Vonage => {}
            Transport::AudioSocket => return,
        }
        let mask = self.next_mask();
        write_close(out, Some(mask), 1_000, "");
    }

    /// Appends the echo of a mark.
    pub fn echo(&mut self, name: &str, out: &mut Vec<u8>) {
        self.messages += 1;
        let number = self.messages.to_string();
        let echo = match self.transport {
            Transport::Twilio => json!({"event": "mark", "sequenceNumber": number, "streamSid": self.stream,
                "mark": {"name": name}}),
            Transport::Exotel => {
                json!({"event": "mark", "sequence_number": number, "stream_sid": self.stream,
                "mark": {"name": name}})
            }
            Transport::Vonage => json!({"event": "websocket:notify",
                "payload": serde_json::from_str::<Value>(name).unwrap_or_default()}),
            Transport::AudioSocket => return,
        };
        self.say(out, &echo);
    }

    /// Appends what a provider says of a clear, if it says anything.
    pub fn cleared(&mut self, out: &mut Vec<u8>) {
        if self.transport == Transport::Vonage {
            self.say(out, &json!({"event": "websocket:cleared"}));
        }
    }

    /// Appends the answer to a ping.
    pub fn pong(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let mask = self.next_mask();
        // A ping that was read is short enough.
        let _ = append_frame(out, Opcode::Pong, Some(mask), payload);
    }

    fn say(&mut self, out: &mut Vec<u8>, text: &Value) {
        let mask = self.next_mask();
        // Texts may be of any length.
        let _ = append_frame(out, Opcode::Text, Some(mask), text.to_string().as_bytes());
    }

    /// Writes a message with these codes, whole frames, and returns its length; 0 when it does not fit.
    pub fn write_media(
        &mut self,
        codes: &[u8],
        signal: &Signal,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> usize {
        self.messages += 1;
        let (number, chunk) = (self.messages, self.messages - 1);
        let before_ms = self.frames * 20;
        self.frames += (codes.len() / FRAME_OCTETS) as u64;
        let timestamp = if self.transport == Transport::Exotel { before_ms } else { self.frames * 20 };
        let mask = self.next_mask();
        let Scratch { linear, text, .. } = scratch;
        if self.transport != Transport::Twilio {
            linear.clear();
            let times = self.speech.rate_hz as usize / 8_000;
            for &code in codes {
                for _ in 0..times {
                    linear.extend_from_slice(&signal.sample(code).to_le_bytes());
                }
            }
        }
        text.clear();
        let (opcode, payload) = match self.transport {
            Transport::Vonage => (Opcode::Binary, linear.as_slice()),
            Transport::AudioSocket => {
                let Some(room) = out.get_mut(..TLV_HEADER + linear.len()) else { return 0 };
                room[0] = KIND_SLIN_8K;
                room[1..TLV_HEADER].copy_from_slice(&(linear.len() as u16).to_be_bytes());
                room[TLV_HEADER..].copy_from_slice(linear);
                return TLV_HEADER + linear.len();
            }
            Transport::Twilio => {
                let _ = write!(
                    text,
                    r#"{{"event":"media","sequenceNumber":"{number}","streamSid":"{}","media":{{"track":"inbound","chunk":"{chunk}","timestamp":"{timestamp}","payload":""#,
                    self.stream
                );
                STANDARD.encode_append(codes, text);
                text.push_str("\"}}");
                (Opcode::Text, text.as_bytes())
            }
            Transport::Exotel => {
                let _ = write!(
                    text,
                    r#"{{"event":"media","sequence_number":"{number}","stream_sid":"{}","media":{{"chunk":"{chunk}","timestamp":"{timestamp}","payload":""#,
                    self.stream
                );
                STANDARD.encode_append(linear.as_slice(), text);
                text.push_str("\"}}");
                (Opcode::Text, text.as_bytes())
            }
        };
        debug_assert!(frame_len(payload.len(), true) <= MESSAGE_MAX);
        write_frame(out, opcode, Some(mask), payload).unwrap_or(0)
    }

    /// Reads a piece of what the target sends; `take` hears what is in it.
    ///
    /// # Errors
    /// [`Broken`]: the provider would have ended the call.
    pub fn handle_bytes(
        &mut self,
        bytes: &[u8],
        signal: &Signal,
        scratch: &mut Scratch,
        mut take: impl FnMut(Heard<'_>),
    ) -> Result<(), Broken> {
        if self.transport == Transport::AudioSocket {
            return self.handle_tlv(bytes, signal, scratch, take);
        }
        let Self { transport, speech, reader, .. } = self;
        let frame_octets = speech.rate_hz as usize / 50 * 2;
        let mut left = bytes;
        while !left.is_empty() {
            let taken = reader.push(left);
            left = &left[taken..];
            while let Some(message) = reader.poll_message()? {
                match message {
                    Message::Text(text) => {
                        hear_text(*transport, speech.rate_hz, text, signal, scratch, &mut take)?
                    }
                    Message::Binary(sound) if *transport == Transport::Vonage => {
                        if sound.len() != frame_octets {
                            return Err(Broken::Frame(sound.len()));
                        }
                        codes_of(sound, speech.rate_hz, signal, &mut scratch.codes);
                        take(Heard::Sound(&scratch.codes));
                    }
                    Message::Binary(_) => return Err(Broken::Binary),
                    Message::Ping(payload) => take(Heard::Ping(payload)),
                    Message::Pong(_) => take(Heard::Ignored),
                    Message::Close { code, .. } => take(Heard::Close(code)),
                }
            }
        }
        Ok(())
    }

    fn handle_tlv(
        &mut self,
        bytes: &[u8],
        signal: &Signal,
        scratch: &mut Scratch,
        mut take: impl FnMut(Heard<'_>),
    ) -> Result<(), Broken> {
        self.tlv.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(&[kind, high, low]) = self.tlv[at..].first_chunk::<TLV_HEADER>() {
            let len = usize::from(u16::from_be_bytes([high, low]));
            let Some(payload) = self.tlv.get(at + TLV_HEADER..at + TLV_HEADER + len) else { break };
            at += TLV_HEADER + len;
            match kind {
                KIND_HANGUP => take(Heard::Close(None)),
                // Asterisk takes an even length above zero only.
                KIND_SLIN_8K if len == 0 || len % 2 == 1 => return Err(Broken::Frame(len)),
                KIND_SLIN_8K => {
                    codes_of(payload, 8_000, signal, &mut scratch.codes);
                    take(Heard::Sound(&scratch.codes));
                }
                // A bare echo returns the first message too.
                KIND_UUID if payload == self.speech.uuid => take(Heard::Ignored),
                other => return Err(Broken::Kind(other)),
            }
        }
        self.tlv.drain(..at);
        Ok(())
    }
}

fn hear_text(
    transport: Transport,
    rate_hz: u32,
    text: &str,
    signal: &Signal,
    scratch: &mut Scratch,
    take: &mut impl FnMut(Heard<'_>),
) -> Result<(), Broken> {
    let text: Text<'_> = serde_json::from_str(text).map_err(|_| Broken::Json)?;
    match (transport, text.event.as_ref(), text.action.as_ref()) {
        (Transport::Twilio | Transport::Exotel, "media", _) => {
            let payload = text.media.as_ref().map(|media| media.payload.as_bytes()).unwrap_or_default();
            let Scratch { codes, linear, .. } = scratch;
            let into = if transport == Transport::Twilio { &mut *codes } else { &mut *linear };
            into.clear();
            STANDARD.decode_append(payload, into).map_err(|_| Broken::Base64)?;
            if transport == Transport::Exotel {
                codes_of(linear, rate_hz, signal, codes);
            }
            take(Heard::Sound(codes));
        }
        (Transport::Twilio | Transport::Exotel, "mark", _) => match &text.mark {
            Some(mark) => take(Heard::Mark(&mark.name)),
            None => take(Heard::Ignored),
        },
        (Transport::Twilio | Transport::Exotel, "clear", _) | (Transport::Vonage, _, "clear") => {
            take(Heard::Clear)
        }
        (Transport::Vonage, _, "notify") => {
            take(Heard::Mark(&text.payload.unwrap_or_default().to_string()));
        }
        _ => take(Heard::Ignored),
    }
    Ok(())
}

/// The codes of linear sound.
fn codes_of(linear: &[u8], rate_hz: u32, signal: &Signal, codes: &mut Vec<u8>) {
    codes.clear();
    let (samples, _) = linear.as_chunks::<2>();
    let step = (rate_hz as usize / 8_000).max(1);
    codes.extend(samples.iter().step_by(step).map(|&octets| signal.code(i16::from_le_bytes(octets))));
}

/// What waits to be played at the provider, by the clock.
#[derive(Debug, Default)]
pub struct Playout {
    /// When all that has come is played.
    until: Mono,
    marks: VecDeque<(Mono, String)>,
}

impl Playout {
    /// So many samples at 8 kHz have come.
    pub fn sound(&mut self, codes: usize, now: Mono) {
        self.until = self.until.max(now) + codes as u64 * SAMPLE_NS;
    }

    /// A mark behind them.
    pub fn mark(&mut self, name: &str, now: Mono) {
        if self.marks.len() == MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back((self.until.max(now), name.to_owned()));
    }

    /// What waits is thrown away, and the marks fall due.
    pub fn clear(&mut self, now: Mono) {
        self.until = now;
        for (due, _) in &mut self.marks {
            *due = now;
        }
    }

    /// The next mark that has been reached.
    pub fn poll_due(&mut self, now: Mono) -> Option<String> {
        self.marks.front().filter(|(due, _)| *due <= now)?;
        self.marks.pop_front().map(|(_, name)| name)
    }

    /// Sound that waits, milliseconds.
    pub fn waiting_ms(&self, now: Mono) -> u64 {
        (self.until - now) / NANOS_PER_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marker::Law;
    use crate::stream::Speaker;

    const ALL: [(Transport, u32); 7] = [
        (Transport::Twilio, 8_000),
        (Transport::Vonage, 8_000),
        (Transport::Vonage, 16_000),
        (Transport::Vonage, 24_000),
        (Transport::Exotel, 8_000),
        (Transport::Exotel, 16_000),
        (Transport::AudioSocket, 8_000),
    ];

    fn wire(transport: Transport, rate_hz: u32) -> Wire {
        let speech = Speech { rate_hz, uuid: [9; 16], ..Speech::default() };
        let ids = Ids { call: "CA1".into(), account: "AC1".into(), from: "+1".into(), to: "+2".into() };
        Wire::new(transport, speech, ids, "MZ1".into(), 1)
    }

    /// The texts and binaries in what a client wrote.
    fn messages(wire: &[u8]) -> Vec<Result<Value, Vec<u8>>> {
        let (mut reader, mut found, mut left) = (FrameReader::new(Role::Server), Vec::new(), wire);
        while !left.is_empty() {
            let taken = reader.push(left);
            left = &left[taken..];
            while let Some(message) = reader.poll_message().unwrap() {
                match message {
                    Message::Text(text) => found.push(Ok(serde_json::from_str(text).unwrap())),
                    Message::Binary(octets) => found.push(Err(octets.to_vec())),
                    _ => {}
                }
            }
        }
        found
    }

    /// What a server would say with the same sound as a message of ours.
    fn echoed(transport: Transport, wire: &[u8]) -> Vec<u8> {
        if transport == Transport::AudioSocket {
            return wire.to_vec();
        }
        let mut out = Vec::new();
        for message in messages(wire) {
            match message {
                Ok(text) => append_frame(&mut out, Opcode::Text, None, text.to_string().as_bytes()).unwrap(),
                Err(octets) => append_frame(&mut out, Opcode::Binary, None, &octets).unwrap(),
            }
        }
        out
    }

    fn heard(wire: &mut Wire, signal: &Signal, bytes: &[u8]) -> Result<Vec<String>, Broken> {
        let mut all = Vec::new();
        wire.handle_bytes(bytes, signal, &mut Scratch::default(), |heard| all.push(format!("{heard:?}")))?;
        Ok(all)
    }

    #[test]
    fn what_is_said_is_heard_with_its_mark_in_every_format_and_any_pieces() {
        let signal = Signal::new(Law::Pcmu);
        for (transport, rate_hz) in ALL {
            let mut call = wire(transport, rate_hz);
            let mut speaker = Speaker::new(1);
            let (mut scratch, mut out) = (Scratch::default(), vec![0; MESSAGE_MAX]);
            let mut back = Vec::new();
            for _ in 0..10 {
                let mut codes = Vec::new();
                for _ in 0..transport.frames_a_message() {
                    let mut frame = [0; FRAME_OCTETS];
                    speaker.write_sound(&signal, &mut frame);
                    codes.extend(frame);
                }
                let len = call.write_media(&codes, &signal, &mut scratch, &mut out);
                assert!(len > 0);
                back.extend(echoed(transport, &out[..len]));
            }
            let mut sound = Vec::new();
            for piece in back.chunks(7) {
                call.handle_bytes(piece, &signal, &mut scratch, |heard| match heard {
                    Heard::Sound(codes) => sound.extend_from_slice(codes),
                    other => panic!("{other:?}"),
                })
                .unwrap();
            }
            assert_eq!(
                sound.len(),
                10 * transport.frames_a_message() * FRAME_OCTETS,
                "{transport:?} {rate_hz}"
            );
            for (n, frame) in sound.chunks(FRAME_OCTETS).enumerate() {
                assert_eq!(signal.read_mark(frame), Some(n as u16), "{transport:?} {rate_hz}");
            }
        }
    }

    #[test]
    fn twilio_says_what_its_pages_say() {
        let signal = Signal::new(Law::Pcmu);
        let mut call = wire(Transport::Twilio, 8_000);
        call.speech.parameters.insert("ctx".into(), "ctx-1".into());
        let mut out = Vec::new();
        call.open(&mut out);
        let mut message = vec![0; MESSAGE_MAX];
        for _ in 0..2 {
            let len = call.write_media(&[0xFF; 160], &signal, &mut Scratch::default(), &mut message);
            out.extend(&message[..len]);
        }
        call.echo("u7", &mut out);
        call.close(&mut out);
        let said: Vec<Value> = messages(&out).into_iter().map(Result::unwrap).collect();
        let events: Vec<&str> = said.iter().map(|text| text["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["connected", "start", "media", "media", "mark", "stop"]);
        assert_eq!(said[1]["start"]["customParameters"], json!({"ctx": "ctx-1"}));
        assert_eq!(said[3]["sequenceNumber"], "3");
        assert_eq!(said[3]["media"]["chunk"], "2");
        assert_eq!(said[3]["media"]["timestamp"], "40");
        assert_eq!(said[3]["media"]["payload"], STANDARD.encode_to_string([0xFF; 160]));
        assert_eq!(said[4]["mark"]["name"], "u7");
        assert_eq!(said[5]["sequenceNumber"], "5");
    }

    #[test]
    fn what_a_provider_refuses_ends_the_call() {
        let signal = Signal::new(Law::Pcmu);
        let frame = |opcode, payload: &[u8]| {
            let mut out = Vec::new();
            append_frame(&mut out, opcode, None, payload).unwrap();
            out
        };
        let vonage = heard(&mut wire(Transport::Vonage, 16_000), &signal, &frame(Opcode::Binary, &[0; 320]));
        assert_eq!(vonage, Err(Broken::Frame(320)));
        let twilio = heard(&mut wire(Transport::Twilio, 8_000), &signal, &frame(Opcode::Binary, &[0; 160]));
        assert_eq!(twilio, Err(Broken::Binary));
        let asterisk = heard(&mut wire(Transport::AudioSocket, 8_000), &signal, &[0x03, 0, 1, b'5']);
        assert_eq!(asterisk, Err(Broken::Kind(3)));
        let empty = heard(&mut wire(Transport::AudioSocket, 8_000), &signal, &[0x10, 0, 0]);
        assert_eq!(empty, Err(Broken::Frame(0)));
    }

    #[test]
    fn marks_and_clears_are_heard() {
        let signal = Signal::new(Law::Pcmu);
        for (transport, mark, clear, name) in [
            (
                Transport::Twilio,
                json!({"event": "mark", "mark": {"name": "a\"b"}}),
                json!({"event": "clear"}),
                "a\"b",
            ),
            (
                Transport::Exotel,
                json!({"event": "mark", "mark": {"name": "m"}}),
                json!({"event": "clear"}),
                "m",
            ),
            (
                Transport::Vonage,
                json!({"action": "notify", "payload": {"id": "m"}}),
                json!({"action": "clear"}),
                "{\"id\":\"m\"}",
            ),
        ] {
            let mut bytes = Vec::new();
            for text in [mark, clear] {
                append_frame(&mut bytes, Opcode::Text, None, text.to_string().as_bytes()).unwrap();
            }
            let all = heard(&mut wire(transport, 8_000), &signal, &bytes).unwrap();
            assert_eq!(all, [format!("{:?}", Heard::Mark(name)), format!("{:?}", Heard::Clear)]);
        }
    }

    #[test]
    fn mark_falls_due_when_what_was_before_it_has_been_played_or_cleared() {
        let at = |ms: u64| Mono(1_000_000_000 + ms * NANOS_PER_MS);
        let mut playout = Playout::default();
        playout.sound(8 * 300, at(0));
        playout.mark("a", at(10));
        playout.sound(8 * 100, at(20));
        playout.mark("b", at(20));
        assert_eq!(playout.waiting_ms(at(100)), 300);
        assert_eq!(playout.poll_due(at(299)), None);
        assert_eq!(playout.poll_due(at(300)).as_deref(), Some("a"));
        assert_eq!(playout.poll_due(at(300)), None);
        playout.clear(at(310));
        assert_eq!(playout.poll_due(at(310)).as_deref(), Some("b"));
        assert_eq!(playout.waiting_ms(at(310)), 0);
    }
}
