//! A telephony provider's connection in the place of the carrier's network: a WebSocket that a provider has opened, or an
//! AudioSocket that Asterisk has.
//!
//! ```text
//!   octets ─▶ (TLS) ─▶ FrameReader ─▶ MediaStream ─┬─▶ Word: started, sound, keys, stopped ──▶ session
//!                      or audiosocket::Server ─────┘
//!   frame, every ptime ─▶ queue ─▶ MediaStream, Server ─▶ (TLS) ─▶ octets
//!
//!   Provisional ──start names our call──▶ Live ──stop──▶ the session ends
//!     │  ▲ └─ names another: closed (1008)  └─lost──▶ waits RETAKE for another connection
//!     │  └──── a newer one takes its place ◀──────────────┘
//!     └─ lost: waits on
//! ```
//!
//! The engine's clock paces every provider in real time: what the agent says waits in the session's playout queue, and what has
//! left it is at the provider, or on its way there. So barge-in finds nothing to take back but that, for which the provider's own
//! `clear` is sent. While nothing is said nothing is sent, but on an AudioSocket, where a frame is due every 20 ms.
//!
//! Frames wait here only while the provider does not read: [`QUEUE_MS_MAX`] of them, the oldest go. Reading never waits for writing.
//! A provider that owes us the caller's sound and sends no octet is asked whether it lives ([`ASKED_AFTER`]), and is lost when nothing
//! comes ([`SILENT_MAX`]).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tandem_audio::format::{Codec, Ptime, SampleRate};
use tandem_audio::transcode::Transcoder;
use tandem_rtp::packet::{HEADER_LEN, Header};
use tandem_rtp::units::{PayloadType, SequenceNumber, Ssrc, Timestamp};
use tandem_stream::audiosocket::{End, Server, ServerEvent};
use tandem_stream::provider::{
    Encoding, Event, MESSAGE_MAX, MediaFormat, MediaStream, Provider, SCRATCH_MIN, Setup, Start, StopReason,
};
use tandem_stream::websocket::{FrameReader, Message, Opcode, Role, append_frame, close, write_close};

use super::event::StreamStarted;
use super::tls::Tls;
use crate::metrics::Counted;

/// A session whose connection was lost waits so long for another one.
pub const RETAKE: Duration = Duration::from_secs(15);

/// The agent's sound that may wait for a provider that does not read; older sound is of no use to a conversation.
pub const QUEUE_MS_MAX: usize = 1_000;

/// Frames that may wait on an AudioSocket: Asterisk plays as they come, so what waits is heard all at once.
pub const AUDIOSOCKET_FRAMES_MAX: usize = 2;

/// A live line of a provider that sends sound all the time is asked by a ping after so long without an octet,
pub const ASKED_AFTER: Duration = Duration::from_secs(2);

/// and is lost after so long.
pub const SILENT_MAX: Duration = Duration::from_secs(5);

/// Octets beside sound (pongs, marks, clears) that may wait for it. An honest provider never makes a tenth of it wait; one that
/// sends pings and does not read is cut off.
pub const CONTROL_OCTETS_MAX: usize = 64 * 1_024;

/// A gap in the provider's timestamps is filled up to this; a longer one is a new beginning.
const GAP_MS_MAX: u64 = 1_000;

/// What the session's clock makes at a time.
const FRAME_MS: usize = 20;

/// Octets of the longest frame: L16 at 48 kHz.
const FRAME_OCTETS_MAX: usize = 48 * 2 * FRAME_MS;

/// Silence is due on an AudioSocket when nothing was written for so long: a frame and what a turn may be late.
const SILENCE_AFTER: Duration = Duration::from_millis(30);

/// What Asterisk's protocol is called where the providers' names stand.
pub const AUDIOSOCKET: &str = "audiosocket";

/// Between two frames.
const FRAME: Duration = Duration::from_millis(FRAME_MS as u64);

/// What the control plane says of the caller's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamParameters {
    /// The rate that the provider was asked for; `None`: its dialect's own.
    pub rate: Option<SampleRate>,
    /// The call that its start must name; empty: whatever it names.
    pub call_id: String,
}

/// What is spoken on a connection.
#[derive(Debug)]
pub enum Protocol {
    /// A provider's dialect, over WebSocket.
    WebSocket(&'static Provider),
    /// Asterisk's, which has said its UUID.
    AudioSocket(Box<Server>),
}

/// A connection that came in and was let in.
#[derive(Debug)]
pub struct Connection {
    /// What is spoken.
    pub protocol: Protocol,
    /// From where.
    pub remote: SocketAddr,
    /// It came inside TLS, which has shaken hands.
    pub tls: Option<Box<rustls::ServerConnection>>,
    /// Octets that have come and were not read yet.
    pub early: Vec<u8>,
    /// Octets that must leave first: the answer to the upgrade.
    pub answer: Vec<u8>,
    /// Keys that were pressed before a session had it.
    pub keys: Vec<u8>,
    /// Counted for as long as it lives.
    pub counted: Option<Counted>,
}

/// What a provider says.
#[derive(Debug)]
pub enum Word<'a> {
    /// Which call this is, and in which codec.
    Started(Option<Box<StreamStarted>>, Codec),
    /// A frame of the caller's sound, as in RTP.
    Sound {
        /// Of our own making.
        header: Header,
        /// 20 ms at most.
        payload: &'a [u8],
        /// Frames that did not come before it.
        gap: u64,
    },
    /// The caller pressed a key.
    Dtmf {
        /// Which.
        digit: char,
        /// How long.
        duration_ms: u32,
    },
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Loss {
    /// The provider said that the call is over.
    Stopped { reason: String, leg_may_live: bool },
    /// It did not.
    Dropped(String),
    /// We carry no such sound.
    Fault(String),
}

/// What became of the caller's connection, for the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The call is over.
    Stopped {
        /// In words.
        reason: String,
        /// The caller may be on the line at the provider still.
        leg_may_live: bool,
    },
    /// Another connection may come.
    Dropped(String),
    /// The call is over, by our doing: what comes cannot be carried.
    Fault(String),
    /// None came.
    GivenUp,
}

/// What passed and should not have, since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Messages that could not be read.
    pub malformed: u64,
    /// The agent's sound that the provider did not read in time.
    pub dropped_ms: u64,
    /// Calls whose sound is mu-law under the label of linear sound.
    pub mislabelled: u64,
}

/// See the module.
#[derive(Debug)]
pub struct ProviderLeg {
    parameters: StreamParameters,
    line: Option<Line>,
    numbers: Numbers,
    counters: Counters,
    /// Whose the last line was.
    name: &'static str,
    /// No line is live, and one must be until then.
    retake_until: Option<Instant>,
    /// One was lost, and the session knows: the next one comes in its place.
    is_told: bool,
    /// The agent's sound that was lost, for the session to take off what was heard.
    lost_ms: u64,
    outcome: Option<Outcome>,
    /// Where the session makes its packets.
    packet: Box<[u8]>,
}

/// One connection.
#[derive(Debug)]
struct Line {
    tls: Option<Box<Tls>>,
    talk: Talk,
    remote: SocketAddr,
    _counted: Option<Counted>,
}

/// What is said on it.
#[derive(Debug)]
struct Talk {
    speech: Speech,
    /// Octets to be written; those before `written` are gone.
    out: Vec<u8>,
    written: usize,
    queue: Queue,
    /// It has named our call.
    is_live: bool,
    /// Nothing more is read or said: what is left of `out` leaves, then it is closed.
    is_over: bool,
    /// Frames without sound since the last with: one of them is sent, for the sake of the encoder's delay.
    quiet: u32,
    /// When a frame of silence is due.
    silence_at: Option<Instant>,
    /// When the last octet came.
    heard_at: Instant,
    /// It was asked whether it lives, and nothing has come since.
    is_asked: bool,
    is_mislabelled: bool,
}

#[derive(Debug)]
enum Speech {
    WebSocket { reader: Box<FrameReader>, stream: Box<MediaStream>, scratch: Box<[u8]> },
    AudioSocket(Box<Server>),
}

/// What a piece that comes may change.
struct Hearing<'a> {
    parameters: &'a mut StreamParameters,
    numbers: &'a mut Numbers,
    now: Instant,
    take: &'a mut dyn FnMut(Word<'_>),
}

/// Frames that wait, in the stream's format.
#[derive(Debug, Default)]
struct Queue {
    octets: VecDeque<u8>,
    /// Their lengths, oldest first, and whether they are the agent's sound; 0 is the end of an utterance.
    lens: VecDeque<(u16, bool)>,
}

/// Of the headers that we make.
#[derive(Debug)]
struct Numbers {
    sequence: u16,
    timestamp: u32,
    /// What the session speaks.
    codec: Codec,
    /// What comes, and what makes the session's codec of it, where it is another.
    incoming: Option<(Codec, Box<Transcoder>)>,
}

impl Numbers {
    /// From now on `incoming` comes, and `codec` is spoken.
    fn set(&mut self, incoming: Codec, codec: Codec) {
        self.codec = codec;
        self.incoming = (incoming != codec).then(|| (incoming, Box::new(Transcoder::new(incoming, codec))));
    }

    fn hear(&mut self, sound: &[u8], gap_ms: u64, take: &mut dyn FnMut(Word<'_>)) {
        let codec = self.codec;
        let incoming = self.incoming.as_ref().map_or(codec, |(incoming, _)| *incoming);
        let frame = incoming.octets(Ptime::MS_20);
        let mut gap = gap_ms.min(GAP_MS_MAX) / FRAME_MS as u64;
        let (mut swapped, mut made) = ([0; FRAME_OCTETS_MAX], [0; FRAME_OCTETS_MAX]);
        for piece in sound.chunks(frame) {
            let mut payload = match is_linear(incoming) {
                true => swap(piece, &mut swapped),
                false => piece,
            };
            if let Some((_, transcoder)) = &mut self.incoming {
                let len = transcoder.transcode(payload, &mut made);
                payload = &made[..len];
            }
            self.sequence = self.sequence.wrapping_add(gap as u16);
            self.timestamp = self.timestamp.wrapping_add(gap as u32 * codec.ticks(Ptime::MS_20));
            let header = Header {
                marker: false,
                payload_type: PayloadType::PCMU,
                sequence: SequenceNumber(self.sequence),
                timestamp: Timestamp(self.timestamp),
                ssrc: Ssrc(1),
            };
            take(Word::Sound { header, payload, gap });
            gap = 0;
            self.sequence = self.sequence.wrapping_add(1);
            self.timestamp = self.timestamp.wrapping_add(codec.ticks_in(payload));
        }
    }
}

fn is_linear(codec: Codec) -> bool {
    matches!(codec, Codec::L16_8k | Codec::L16_16k | Codec::L16_24k | Codec::L16_48k)
}

/// Little-endian samples become big-endian ones, or the other way.
fn swap<'a>(from: &[u8], to: &'a mut [u8]) -> &'a [u8] {
    let (pairs, _) = from.as_chunks::<2>();
    let (room, _) = to.as_chunks_mut::<2>();
    for (pair, place) in pairs.iter().zip(&mut *room) {
        *place = [pair[1], pair[0]];
    }
    &to[..pairs.len() * 2]
}

fn codec_of(format: MediaFormat) -> Codec {
    match format.encoding {
        Encoding::Pcmu => Codec::Pcmu,
        Encoding::Pcma => Codec::Pcma,
        Encoding::G722 => Codec::G722,
        Encoding::L16 => linear(format.rate),
    }
}

fn linear(rate: SampleRate) -> Codec {
    match rate {
        SampleRate::Hz8000 => Codec::L16_8k,
        SampleRate::Hz16000 => Codec::L16_16k,
        SampleRate::Hz24000 => Codec::L16_24k,
        SampleRate::Hz48000 => Codec::L16_48k,
    }
}

impl Queue {
    /// Appends a frame; says how many milliseconds of the agent's oldest sound had to go.
    fn push(&mut self, payload: &[u8], is_linear: bool, is_sound: bool, frames_max: usize) -> u64 {
        match is_linear {
            false => self.octets.extend(payload),
            true => self.octets.extend(payload.as_chunks::<2>().0.iter().flat_map(|pair| [pair[1], pair[0]])),
        }
        self.lens.push_back((payload.len() as u16, is_sound));
        let mut dropped = 0;
        while self.lens.len() > frames_max {
            let (len, is_sound) = self.lens.pop_front().unwrap_or_default();
            self.octets.drain(..usize::from(len));
            dropped += if is_sound { FRAME_MS as u64 } else { 0 };
        }
        dropped
    }

    fn end(&mut self) {
        if self.lens.back().is_none_or(|(len, _)| *len != 0) {
            self.lens.push_back((0, false));
        }
    }

    /// Milliseconds of the agent's sound.
    fn sound_ms(&self) -> u64 {
        (self.lens.iter().filter(|(_, is_sound)| *is_sound).count() * FRAME_MS) as u64
    }

    fn clear(&mut self) {
        self.octets.clear();
        self.lens.clear();
    }

    /// The oldest frame, copied to `out`; empty: an end.
    fn pop<'a>(&mut self, out: &'a mut [u8]) -> Option<&'a [u8]> {
        let len = usize::from(self.lens.pop_front()?.0);
        for place in &mut out[..len] {
            *place = self.octets.pop_front().unwrap_or_default();
        }
        Some(&out[..len])
    }
}

impl Talk {
    /// Takes octets; how the connection ended, if it did.
    fn hear(&mut self, octets: &[u8], hearing: &mut Hearing<'_>) -> Option<Loss> {
        if self.is_over {
            return None;
        }
        let loss = match &self.speech {
            Speech::WebSocket { .. } => self.hear_websocket(octets, hearing),
            Speech::AudioSocket(_) => self.hear_audiosocket(octets, hearing),
        };
        let waits = self.out.len() - self.written;
        loss.or_else(|| {
            let is_deaf = waits > CONTROL_OCTETS_MAX + MESSAGE_MAX;
            is_deaf.then(|| Loss::Dropped("the provider does not read its stream".into()))
        })
    }

    fn hear_websocket(&mut self, octets: &[u8], hearing: &mut Hearing<'_>) -> Option<Loss> {
        let Self { speech: Speech::WebSocket { reader, stream, scratch }, out, is_live, .. } = self else {
            return None;
        };
        let provider = stream.provider();
        let mut loss = None;
        let mut rest = octets;
        while !rest.is_empty() {
            let taken = reader.push(rest);
            rest = &rest[taken..];
            loop {
                match reader.poll_message() {
                    Ok(None) => break,
                    Ok(Some(Message::Text(text))) => {
                        stream.handle_text(text, hearing.now, scratch, |event| {
                            heed(event, provider, is_live, &mut loss, out, hearing);
                        });
                    }
                    Ok(Some(Message::Binary(sound))) => {
                        stream.handle_binary(sound, |event| {
                            heed(event, provider, is_live, &mut loss, out, hearing);
                        });
                    }
                    // A ping that long does not pass the reader.
                    Ok(Some(Message::Ping(payload))) => {
                        let _ = append_frame(out, Opcode::Pong, None, payload);
                    }
                    Ok(Some(Message::Pong(_))) => {}
                    Ok(Some(Message::Close { code, reason })) => {
                        // Nobody comes back after that: no provider opens a stream again that it has closed.
                        let is_over = matches!(code, None | Some(close::NORMAL))
                            || (provider.ends_by_closing && code == Some(close::GOING_AWAY));
                        let said = match code {
                            None => "the provider closed its connection".to_owned(),
                            Some(code) => {
                                format!("the provider closed its connection with code {code} {reason:?}")
                            }
                        };
                        write_close(out, None, code.unwrap_or(close::NORMAL), "");
                        // Where a stop was to be expected the call may go on without its media.
                        let leg_may_live = !provider.ends_by_closing;
                        return Some(match is_over && *is_live {
                            true => Loss::Stopped { reason: said, leg_may_live },
                            false => Loss::Dropped(said),
                        });
                    }
                    Err(error) => {
                        write_close(out, None, error.close_code(), &error.to_string());
                        return Some(Loss::Dropped(format!(
                            "the provider broke the WebSocket protocol: {error}"
                        )));
                    }
                }
                if loss.is_some() {
                    return loss;
                }
            }
        }
        loss
    }

    fn hear_audiosocket(&mut self, octets: &[u8], hearing: &mut Hearing<'_>) -> Option<Loss> {
        let Self { speech: Speech::AudioSocket(server), is_mislabelled, .. } = self else { return None };
        let (mut loss, mut is_foreign) = (None, None);
        let Hearing { numbers, now, take, .. } = hearing;
        server.handle_bytes(octets, *now, |event| match event {
            ServerEvent::Format(format) => match SampleRate::from_hz(format.hz) {
                Some(rate) => {
                    numbers.set(linear(rate), linear(rate));
                    take(Word::Started(Some(Box::new(started_linear(rate))), numbers.codec));
                }
                None => is_foreign = Some(format.hz),
            },
            ServerEvent::Audio(sound) if is_foreign.is_none() => numbers.hear(sound, 0, *take),
            ServerEvent::Dtmf(digit) => take(Word::Dtmf { digit: char::from(digit), duration_ms: 0 }),
            ServerEvent::Mislabelled => *is_mislabelled = true,
            ServerEvent::End(end) => {
                loss = Some(Loss::Stopped { reason: ended(end), leg_may_live: false });
            }
            ServerEvent::Audio(_) | ServerEvent::Id(_) | ServerEvent::Ignored => {}
        });
        if let Some(hz) = is_foreign {
            return Some(hang_up_foreign(server, hz, &mut self.out));
        }
        loss
    }

    /// The agent's sound that was given to it and has not become a message yet, in milliseconds.
    fn unsent_ms(&self) -> u64 {
        let waiting_ms = match &self.speech {
            Speech::WebSocket { stream, .. } => stream.waiting_ms(),
            Speech::AudioSocket(_) => 0,
        };
        self.queue.sound_ms() + waiting_ms
    }

    /// When it is to be asked whether it lives, or is lost.
    fn silent_at(&self) -> Option<Instant> {
        let Speech::WebSocket { stream, .. } = &self.speech else {
            // The frames that it gets tell soon enough; one whose caller holds sends nothing.
            return None;
        };
        let after = if self.is_asked { SILENT_MAX } else { ASKED_AFTER };
        (self.is_live && stream.provider().is_continuous).then(|| self.heard_at + after)
    }

    /// Makes the next octets that leave, a message at least, of what waits.
    fn fill(&mut self, now: Instant) {
        let mut frame = [0; FRAME_OCTETS_MAX];
        while self.out.is_empty() {
            let Some(frame) = self.queue.pop(&mut frame) else { return };
            match (&mut self.speech, frame) {
                (Speech::WebSocket { stream, .. }, []) => stream.end_utterance(now, &mut self.out),
                (Speech::WebSocket { stream, .. }, frame) => drop(stream.audio(frame, now, &mut self.out)),
                (Speech::AudioSocket(_), []) => {}
                // One of before its format was known.
                (Speech::AudioSocket(server), frame) => {
                    if server.write(frame, &mut self.out).is_err() {
                        server.write_silence(&mut self.out);
                    }
                }
            }
        }
    }

    fn poll(&mut self, out: &mut [u8], now: Instant) -> usize {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            if !self.is_over {
                self.fill(now);
            }
        }
        let waiting = &self.out[self.written..];
        let len = waiting.len().min(out.len());
        out[..len].copy_from_slice(&waiting[..len]);
        self.written += len;
        len
    }

    fn has_output(&self) -> bool {
        self.written < self.out.len() || (!self.is_over && !self.queue.lens.is_empty())
    }
}

/// An event of a dialect.
fn heed(
    event: Event<'_>,
    provider: &'static Provider,
    is_live: &mut bool,
    loss: &mut Option<Loss>,
    out: &mut Vec<u8>,
    hearing: &mut Hearing<'_>,
) {
    if loss.is_some() {
        return;
    }
    let Hearing { parameters, numbers, take, .. } = hearing;
    match event {
        Event::Start(start) => {
            let expected = &mut parameters.call_id;
            // Where a start names no call the upgrade was its proof.
            if provider.names_call && !expected.is_empty() && start.call_id != *expected {
                write_close(out, None, close::POLICY, "another call");
                *loss = Some(Loss::Dropped("the provider's connection is of another call".into()));
                return;
            }
            if expected.is_empty() {
                expected.clone_from(&start.call_id);
            }
            numbers.set(codec_of(start.format), codec_of(provider.outgoing.unwrap_or(start.format)));
            *is_live = true;
            take(Word::Started(Some(Box::new(started(start))), numbers.codec));
        }
        Event::Audio { sound, gap_ms, .. } if *is_live => numbers.hear(sound, gap_ms, *take),
        Event::Dtmf { digit, duration_ms } if *is_live => {
            let duration_ms = duration_ms.and_then(|ms| u32::try_from(ms).ok()).unwrap_or_default();
            take(Word::Dtmf { digit, duration_ms });
        }
        Event::Stop(StopReason::Said(_)) if !*is_live => {
            write_close(out, None, close::NORMAL, "");
            *loss = Some(Loss::Dropped("the provider stopped before it said which call it is".into()));
        }
        Event::Stop(StopReason::Said(reason)) => {
            write_close(out, None, close::NORMAL, "");
            let said = if reason.is_empty() { "the provider has ended the call" } else { &*reason };
            *loss = Some(stopped(said.to_owned(), &reason, provider));
        }
        Event::Stop(StopReason::Format(error)) => {
            write_close(out, None, close::UNSUPPORTED, &error.to_string());
            *loss = Some(Loss::Fault(error.to_string()));
        }
        Event::Stop(StopReason::NoStart) => {
            write_close(out, None, close::POLICY, "no start");
            *loss = Some(Loss::Dropped("the provider's connection has started no call in time".into()));
        }
        _ => {}
    }
}

/// The provider said so, with this word of its own.
fn stopped(reason: String, word: &str, provider: &Provider) -> Loss {
    Loss::Stopped { reason, leg_may_live: (provider.leg_may_outlive_stop)(word) }
}

/// Asterisk speaks a rate that we do not carry.
fn hang_up_foreign(server: &mut Server, hz: u32, out: &mut Vec<u8>) -> Loss {
    server.hangup(out);
    Loss::Fault(format!(
        "AudioSocket at {hz} Hz is not carried: dial with c(slin), c(slin16), c(slin24) or c(slin48)"
    ))
}

/// What an AudioSocket says of itself.
fn started_linear(rate: SampleRate) -> StreamStarted {
    StreamStarted {
        call_id: String::new(),
        stream_id: String::new(),
        parameters: std::collections::BTreeMap::new(),
        codec: "L16",
        rate_hz: rate.hz(),
    }
}

fn started(start: &Start) -> StreamStarted {
    StreamStarted {
        call_id: start.call_id.clone(),
        stream_id: start.stream_id.clone(),
        parameters: start.custom.clone(),
        codec: match start.format.encoding {
            Encoding::Pcmu => "PCMU",
            Encoding::Pcma => "PCMA",
            Encoding::G722 => "G722",
            Encoding::L16 => "L16",
        },
        rate_hz: start.format.rate.hz(),
    }
}

fn ended(end: End) -> String {
    match end {
        End::Closed | End::Stranger => "Asterisk has closed the AudioSocket".into(),
        End::NoId => "no UUID came on the AudioSocket".into(),
        End::Said(None) => "Asterisk has hung up".into(),
        End::Said(Some(code)) => format!("Asterisk reports error {code} on the AudioSocket"),
        End::TooLong(error) => error.to_string(),
    }
}

impl ProviderLeg {
    /// A leg that waits for its connection.
    pub fn new(parameters: StreamParameters, now: Instant) -> Self {
        Self {
            parameters,
            line: None,
            numbers: Numbers { sequence: 0, timestamp: 0, codec: Codec::Pcmu, incoming: None },
            counters: Counters::default(),
            name: "",
            lost_ms: 0,
            retake_until: Some(now + RETAKE),
            is_told: false,
            outcome: None,
            packet: vec![0; HEADER_LEN + FRAME_OCTETS_MAX].into_boxed_slice(),
        }
    }

    // --- getters ---

    fn talk(&self) -> Option<&Talk> {
        self.line.as_ref().map(|line| &line.talk).filter(|talk| !talk.is_over)
    }

    /// The caller is heard and spoken to.
    pub fn is_live(&self) -> bool {
        self.talk().is_some_and(|talk| talk.is_live)
    }

    /// Another connection may be attached: none is live, and one is waited for. It takes the place of one that is not live yet.
    pub fn wants_line(&self) -> bool {
        !self.is_live() && self.retake_until.is_some()
    }

    /// `waiting` for its first start, `live`, or `dropped`.
    pub fn state(&self) -> &'static str {
        match self.is_live() {
            true => "live",
            false if self.is_told => "dropped",
            false => "waiting",
        }
    }

    /// Whose the connection is, or was.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The agent's sound that was given to it and is on no way to the caller yet, in milliseconds.
    pub fn unsent_ms(&self) -> u64 {
        self.talk().map_or(0, Talk::unsent_ms)
    }

    /// Where the connection comes from.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.line.as_ref().map(|line| line.remote)
    }

    /// What passed and should not have.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters;
        if let Some(line) = &self.line {
            counters.malformed += match &line.talk.speech {
                Speech::WebSocket { stream, .. } => stream.counters().malformed,
                Speech::AudioSocket(server) => server.counters().ignored,
            };
            counters.mislabelled += u64::from(line.talk.is_mislabelled);
        }
        counters
    }

    /// What was said has not all been heard, as far as the provider tells.
    pub fn is_unheard(&self, now: Instant) -> bool {
        let Some(talk) = self.talk().filter(|talk| talk.is_live) else { return false };
        match &talk.speech {
            Speech::WebSocket { stream, .. } => !talk.queue.lens.is_empty() || !stream.is_heard(now),
            // It plays what comes.
            Speech::AudioSocket(_) => talk.quiet == 0 && !talk.queue.lens.is_empty(),
        }
    }

    /// When [`ProviderLeg::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let Some(talk) = self.talk() else { return self.retake_until };
        let timeout = match &talk.speech {
            Speech::WebSocket { stream, .. } => stream.poll_timeout(),
            Speech::AudioSocket(_) => talk.silence_at,
        };
        let retake = self.retake_until.filter(|_| self.is_told);
        [timeout, retake, talk.silent_at()].into_iter().flatten().min()
    }

    /// Whether [`ProviderLeg::poll_stream`] has something.
    pub fn has_output(&self) -> bool {
        self.line.as_ref().is_some_and(|Line { tls, talk, .. }| {
            let owes = |tls: &Tls| tls.has_output() || (talk.is_over && tls.owes_goodbye());
            talk.has_output() || tls.as_deref().is_some_and(owes)
        })
    }

    /// The connection is of no more use: it has ended, and all of it is written.
    pub fn is_line_over(&self) -> bool {
        self.line.as_ref().is_none_or(|line| line.talk.is_over) && !self.has_output()
    }

    // --- from network and clock ---

    /// Octets came.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant, take: &mut dyn FnMut(Word<'_>)) {
        let Self { parameters, numbers, line: Some(line), .. } = self else { return };
        let Line { tls, talk, .. } = line;
        let was_live = talk.is_live;
        (talk.heard_at, talk.is_asked) = (now, false);
        let mut hearing = Hearing { parameters, numbers, now, take };
        let loss = match tls {
            None => talk.hear(bytes, &mut hearing),
            Some(tls) => {
                let mut loss = None;
                let read = tls.handle_bytes(bytes, &mut |plain| {
                    if loss.is_none() {
                        loss = talk.hear(plain, &mut hearing);
                    }
                });
                loss.or(read.err().map(Loss::Dropped))
            }
        };
        if talk.is_live && !was_live {
            (self.retake_until, self.is_told) = (None, false);
        }
        if let Some(loss) = loss {
            self.lose(loss, now);
        }
    }

    /// The connection ended.
    pub fn handle_ended(&mut self, error: Option<&std::io::Error>, now: Instant) {
        let Some(talk) = self.talk() else { return };
        let why = error.map(|error| format!(": {error}")).unwrap_or_default();
        let loss = match &talk.speech {
            // It never says so otherwise.
            Speech::AudioSocket(_) => {
                Loss::Stopped { reason: format!("{}{why}", ended(End::Closed)), leg_may_live: false }
            }
            Speech::WebSocket { .. } => {
                Loss::Dropped(format!("the provider's connection was lost without a word{why}"))
            }
        };
        self.lose(loss, now);
        // Nothing can be written any more.
        self.counters = self.counters();
        self.line = None;
    }

    /// A deadline of [`ProviderLeg::poll_timeout`] has passed.
    pub fn handle_timeout(&mut self, now: Instant, take: &mut dyn FnMut(Word<'_>)) {
        // One that has not said whose it is buys no time.
        let is_waiting = self.talk().is_none() || (self.is_told && !self.is_live());
        if is_waiting && self.retake_until.take_if(|until| *until <= now).is_some() {
            self.outcome = Some(Outcome::GivenUp);
            return;
        }
        let Self { parameters, numbers, line: Some(line), .. } = self else { return };
        if line.talk.is_over {
            return;
        }
        let is_silent = line.talk.silent_at().is_some_and(|at| at <= now);
        let Talk { speech, out, written, is_live, silence_at, queue, is_asked, .. } = &mut line.talk;
        let mut loss = None;
        match speech {
            Speech::WebSocket { .. } if is_silent && *is_asked => {
                write_close(out, None, close::GOING_AWAY, "nothing came");
                let after = SILENT_MAX.as_secs();
                loss = Some(Loss::Dropped(format!("nothing came from the provider for {after} s")));
            }
            Speech::WebSocket { stream, .. } => {
                if is_silent {
                    *is_asked = true;
                    // An empty one fits.
                    let _ = append_frame(out, Opcode::Ping, None, &[]);
                }
                let provider = stream.provider();
                let mut hearing = Hearing { parameters, numbers, now, take };
                stream.handle_timeout(now, |event| {
                    heed(event, provider, is_live, &mut loss, out, &mut hearing);
                });
            }
            Speech::AudioSocket(server) => {
                if let Some(at) = silence_at.filter(|at| *at <= now) {
                    let next = at + FRAME;
                    *silence_at = Some(if next > now { next } else { now + FRAME });
                    // A peer that does not read needs no more of it.
                    if queue.lens.is_empty() && *written == out.len() {
                        out.clear();
                        *written = 0;
                        server.write_silence(out);
                    }
                }
            }
        }
        if let Some(loss) = loss {
            self.lose(loss, now);
        }
    }

    fn lose(&mut self, loss: Loss, now: Instant) {
        if let Some(line) = &mut self.line {
            if line.talk.is_over {
                return;
            }
            let unsent_ms = line.talk.unsent_ms();
            self.lost_ms += unsent_ms;
            self.counters.dropped_ms += unsent_ms;
            line.talk.is_over = true;
            line.talk.queue.clear();
        }
        match loss {
            // One that came in the place of a lost one has no say: it goes, and another may come.
            Loss::Stopped { reason, .. } | Loss::Fault(reason) | Loss::Dropped(reason) if self.is_told => {
                self.outcome = Some(Outcome::Dropped(reason));
            }
            Loss::Stopped { reason, leg_may_live } => {
                self.retake_until = None;
                self.outcome = Some(Outcome::Stopped { reason, leg_may_live });
            }
            Loss::Fault(reason) => {
                self.retake_until = None;
                self.outcome = Some(Outcome::Fault(reason));
            }
            Loss::Dropped(reason) => {
                self.is_told = true;
                self.retake_until = Some(now + RETAKE);
                self.outcome = Some(Outcome::Dropped(reason));
            }
        }
    }

    // --- what the session wants ---

    /// A connection is the caller's, or will be when it has said so. The one before it is gone, or has not said so yet.
    pub fn attach(&mut self, connection: Connection, now: Instant, take: &mut dyn FnMut(Word<'_>)) {
        let Connection { protocol, remote, tls, early, answer, keys, counted } = connection;
        self.counters = self.counters();
        let (mut silence_at, mut is_foreign) = (None, None);
        let speech = match protocol {
            Protocol::WebSocket(provider) => {
                self.name = provider.name;
                let rate = self.parameters.rate.unwrap_or(SampleRate::Hz8000);
                let setup = Setup { is_retake: self.is_told, ..Setup::new(rate) };
                Speech::WebSocket {
                    reader: Box::new(FrameReader::with_message_max(Role::Server, MESSAGE_MAX)),
                    stream: Box::new(MediaStream::new(provider, setup, now)),
                    scratch: vec![0; FRAME_OCTETS_MAX.next_multiple_of(SCRATCH_MIN)].into_boxed_slice(),
                }
            }
            Protocol::AudioSocket(server) => {
                self.name = AUDIOSOCKET;
                silence_at = Some(now);
                (self.retake_until, self.is_told) = (None, false);
                // It may have been heard already, in a rate that we carry or in another.
                let known = server.known_format().map(|format| format.hz);
                let rate = SampleRate::from_hz(server.format().hz).unwrap_or(SampleRate::Hz8000);
                is_foreign = known.filter(|hz| SampleRate::from_hz(*hz).is_none());
                self.numbers.set(linear(rate), linear(rate));
                let started = known.filter(|_| is_foreign.is_none()).map(|_| Box::new(started_linear(rate)));
                take(Word::Started(started, self.numbers.codec));
                Speech::AudioSocket(server)
            }
        };
        let talk = Talk {
            speech,
            out: answer,
            written: 0,
            queue: Queue::default(),
            is_live: silence_at.is_some(),
            is_over: false,
            quiet: 1,
            silence_at,
            heard_at: now,
            is_asked: false,
            is_mislabelled: false,
        };
        let tls = tls.map(|tls| Box::new(Tls::accepted(*tls)));
        self.line = Some(Line { tls, talk, remote, _counted: counted });
        for key in keys {
            take(Word::Dtmf { digit: char::from(key), duration_ms: 0 });
        }
        // They were decrypted already.
        let Self { parameters, numbers, line: Some(line), .. } = self else { return };
        let was_live = line.talk.is_live;
        let Talk { speech, out, .. } = &mut line.talk;
        let loss = match (is_foreign, speech) {
            (Some(hz), Speech::AudioSocket(server)) => Some(hang_up_foreign(server, hz, out)),
            _ => line.talk.hear(&early, &mut Hearing { parameters, numbers, now, take }),
        };
        if line.talk.is_live && !was_live {
            (self.retake_until, self.is_told) = (None, false);
        }
        if let Some(loss) = loss {
            self.lose(loss, now);
        }
    }

    /// Room for one packet of the session's.
    pub fn packet(&mut self) -> &mut [u8] {
        &mut self.packet
    }

    /// Says the packet of so many octets that is in [`ProviderLeg::packet`]; without sound it is silence.
    pub fn say(&mut self, len: usize, is_sound: bool, now: Instant) {
        let Some(Line { talk, .. }) =
            self.line.as_mut().filter(|line| line.talk.is_live && !line.talk.is_over)
        else {
            return;
        };
        let Some(payload) = self.packet.get(HEADER_LEN..len) else { return };
        talk.quiet = if is_sound { 0 } else { talk.quiet.saturating_add(1) };
        let is_audiosocket = matches!(talk.speech, Speech::AudioSocket(_));
        if is_audiosocket || talk.quiet <= 1 {
            let frames_max = if is_audiosocket { AUDIOSOCKET_FRAMES_MAX } else { QUEUE_MS_MAX / FRAME_MS };
            let is_linear = is_linear(self.numbers.codec);
            let dropped_ms = talk.queue.push(payload, is_linear, is_sound, frames_max);
            self.counters.dropped_ms += dropped_ms;
            self.lost_ms += dropped_ms;
        }
        if is_audiosocket {
            talk.silence_at = Some(now + SILENCE_AFTER);
        } else if talk.quiet == 1 {
            talk.queue.end();
        }
    }

    /// What has been said and not heard is to be dropped.
    pub fn clear(&mut self, now: Instant) {
        let Some(Line { talk, .. }) =
            self.line.as_mut().filter(|line| line.talk.is_live && !line.talk.is_over)
        else {
            return;
        };
        talk.queue.clear();
        talk.quiet = 1;
        if let Speech::WebSocket { stream, .. } = &mut talk.speech {
            stream.clear(now, &mut talk.out, |_| {});
        }
    }

    /// The session is over: says good-bye.
    pub fn close(&mut self) {
        self.retake_until = None;
        let Some(Line { talk, .. }) = self.line.as_mut().filter(|line| !line.talk.is_over) else { return };
        talk.queue.clear();
        talk.is_over = true;
        match &mut talk.speech {
            Speech::WebSocket { stream, .. } => {
                stream.hangup(&mut talk.out);
                stream.close();
                write_close(&mut talk.out, None, close::NORMAL, "");
            }
            Speech::AudioSocket(server) => server.hangup(&mut talk.out),
        }
    }

    // --- what must leave ---

    /// Writes octets for the connection into `out` and says how many: on an AudioSocket one frame, as Asterisk wants it.
    pub fn poll_stream(&mut self, out: &mut [u8], now: Instant) -> usize {
        let Some(Line { tls, talk, .. }) = &mut self.line else { return 0 };
        let Some(tls) = tls else { return talk.poll(out, now) };
        let (mut len, written) = tls.poll_records(out, |room| talk.poll(room, now));
        if talk.is_over && !talk.has_output() && !tls.has_output() {
            len += tls.poll_goodbye(&mut out[len..]);
        }
        if let Err(reason) = written {
            self.lose(Loss::Dropped(reason), now);
        }
        len
    }

    /// The agent's sound that was lost since this was last asked, with a connection or for want of room, in milliseconds.
    pub fn poll_lost_ms(&mut self) -> u64 {
        std::mem::take(&mut self.lost_ms)
    }

    /// What became of the connection, once.
    pub fn poll_outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }
}
