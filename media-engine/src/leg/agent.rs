//! The agent leg: who the caller talks to.
//!
//! ```text
//!   Echo        the caller's own sound, decoded, goes to the playout queue
//!   Tone, File  make their sound when a frame is due; they hear nothing
//!   WebSocket   we dial it; it hears the caller at once (Stream), speaks into the playout queue, and asks (Request)
//! ```
//!
//! A [`Stream`] writes caller audio straight into the buffer that leaves. Only while that buffer is not to be had (the
//! agent reads too slowly) frames wait, at most [`BACKLOG_MS_MAX`] of them; then the oldest goes and is counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_audio::format::SampleRate;
use tandem_audio::tone::Sine;
use tandem_audio::{g711, pcm};
use tandem_stream::websocket::{
    ClientHandshake, HandshakeError, MASKED_HEADER_MAX, Opcode, Url, close, write_frame_with,
};
use tandem_stream::{Dialect, agent as pcm_dialect, twilio};

use super::event::Request;
use super::websocket::{Connection, Incoming, Masks};

/// Caller audio that may wait for an agent that does not read: what a stalled agent may be late without missing a
/// word. Older sound is of no use to a conversation.
pub const BACKLOG_MS_MAX: u32 = 1_000;

/// One frame towards an agent, in both dialects.
pub const FRAME_MS: u32 = pcm_dialect::FRAME_MS;

/// Samples decoded at a time from a Twilio payload.
const PIECE: usize = 480;

/// The tone's peak: −9 dB below full scale, loud but not at the limit of G.711.
const TONE_PEAK: i16 = 11_600;

/// What the agent is told about the call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CallInfo {
    /// The call's UUID.
    pub call_id: String,
    /// Who calls.
    pub from: String,
    /// Who was called.
    pub to: String,
    /// `inbound` or `outbound`.
    pub direction: String,
    /// Whose call it is; becomes the account of the Twilio dialect.
    pub tenant_id: String,
}

/// Sound of the file agent, loaded and resampled by the control thread.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Samples at 16 kHz.
    pub samples: Arc<[i16]>,
    /// Begin again at the end.
    pub repeat: bool,
}

impl Recording {
    /// The rate that recordings are kept at.
    pub const RATE: SampleRate = SampleRate::Hz16000;
}

/// An agent that is dialled.
#[derive(Clone)]
pub struct WebSocketParameters {
    /// Where.
    pub url: Url,
    /// How it wants to be spoken to.
    pub dialect: Dialect,
    /// Headers of the upgrade request; they may hold secrets.
    pub headers: Vec<(String, String)>,
    /// For its start frame.
    pub custom: BTreeMap<String, String>,
    /// It must be there after so long.
    pub connect_timeout: Duration,
}

/// Headers, query and custom fields may hold secrets: they are not shown.
impl std::fmt::Debug for WebSocketParameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebSocketParameters")
            .field("host", &self.url.host)
            .field("port", &self.url.port)
            .field("dialect", &self.dialect)
            .finish_non_exhaustive()
    }
}

/// Which agent.
#[derive(Debug, Clone)]
pub enum AgentParameters {
    /// The caller hears himself.
    Echo,
    /// A steady tone.
    Tone {
        /// Its frequency.
        frequency_hz: f64,
    },
    /// A recording.
    File(Recording),
    /// One that we dial.
    WebSocket(Box<WebSocketParameters>),
}

/// The agent of one session.
#[derive(Debug)]
pub enum Agent {
    /// The caller hears himself.
    Echo,
    /// A steady tone at 8 kHz.
    Tone(Sine),
    /// A recording, and how far it was played.
    File {
        /// The sound.
        recording: Recording,
        /// The next sample.
        at: usize,
    },
    /// One that we dialled.
    WebSocket(Box<Stream>),
}

impl Agent {
    /// The agent for these parameters.
    pub fn new(
        parameters: AgentParameters,
        call: &CallInfo,
        seed: u64,
        now: Instant,
    ) -> Result<Self, HandshakeError> {
        Ok(match parameters {
            AgentParameters::Echo => Self::Echo,
            AgentParameters::Tone { frequency_hz } => {
                Self::Tone(Sine::new(frequency_hz, TONE_PEAK, SampleRate::Hz8000))
            }
            AgentParameters::File(recording) => Self::File { recording, at: 0 },
            AgentParameters::WebSocket(parameters) => {
                Self::WebSocket(Box::new(Stream::new(*parameters, call, seed, now)?))
            }
        })
    }

    /// Rate of its sound; `None`: whatever the carrier leg has.
    pub fn rate(&self) -> Option<SampleRate> {
        match self {
            Self::Echo => None,
            Self::Tone(_) => Some(SampleRate::Hz8000),
            Self::File { .. } => Some(Recording::RATE),
            Self::WebSocket(stream) => SampleRate::from_hz(stream.dialect.sample_rate_hz()),
        }
    }

    /// Makes the next frame of an agent that needs no queue; false when its sound comes through the playout queue.
    pub fn make_frame(&mut self, frame: &mut [i16]) -> bool {
        match self {
            Self::Tone(sine) => sine.fill(frame),
            Self::File { recording, at } => {
                let mut rest = frame;
                while !rest.is_empty() {
                    let left = recording.samples.get(*at..).unwrap_or_default();
                    if left.is_empty() && (recording.samples.is_empty() || !recording.repeat) {
                        rest.fill(0);
                        break;
                    }
                    if left.is_empty() {
                        *at = 0;
                        continue;
                    }
                    let len = left.len().min(rest.len());
                    rest[..len].copy_from_slice(&left[..len]);
                    *at += len;
                    rest = &mut rest[len..];
                }
            }
            Self::Echo | Self::WebSocket(_) => return false,
        }
        true
    }

    /// The dialled stream, if it is one.
    pub fn stream(&self) -> Option<&Stream> {
        match self {
            Self::WebSocket(stream) => Some(stream),
            _ => None,
        }
    }

    /// The same, to be used.
    pub fn stream_mut(&mut self) -> Option<&mut Stream> {
        match self {
            Self::WebSocket(stream) => Some(stream),
            _ => None,
        }
    }
}

/// What an agent says on its stream.
#[derive(Debug)]
pub enum Said<'a> {
    /// The stream is up and the start frame is on its way.
    Ready,
    /// Sound at the dialect's rate.
    Sound(&'a [i16]),
    /// It asks for something.
    Request(Request),
}

/// How the engine tells the agent something; each dialect says it in its own way, or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tell<'a> {
    /// The caller pressed a key.
    Dtmf {
        /// Which.
        digit: char,
        /// How long.
        duration_ms: u32,
    },
    /// A mark was reached.
    Mark {
        /// Its name.
        name: &'a str,
        /// Heard since the start of the stream.
        heard_ms: u64,
    },
    /// The queue was emptied.
    Cleared {
        /// Heard since the start of the stream.
        heard_ms: u64,
    },
    /// The caller began or ceased to speak.
    Speech {
        /// Began.
        active: bool,
    },
    /// The caller put us on hold.
    Hold,
    /// The hold is over.
    Resume,
    /// A call of ours was answered.
    Answered,
    /// How a transfer goes.
    Transfer {
        /// `trying`, `done`, `failed`.
        status: &'a str,
        /// In words.
        reason: &'a str,
    },
}

/// An agent behind a WebSocket.
#[derive(Debug)]
pub struct Stream {
    connection: Connection,
    dialect: Dialect,
    start: Start,
    writer: twilio::StreamWriter,
    /// Whole and begun frames in wire format, oldest first.
    backlog: VecDeque<u8>,
    /// Milliseconds of caller audio that went out or were dropped: the Twilio dialect's clock.
    clock_ms: u64,
    dropped_ms: u64,
    frames_in: u64,
    frames_out: u64,
    malformed: u64,
}

/// What the start frame says.
#[derive(Debug)]
struct Start {
    pcm: pcm_dialect::Start,
    /// Said when the stream is up; nothing is said twice.
    said: bool,
}

impl Stream {
    fn new(
        parameters: WebSocketParameters,
        call: &CallInfo,
        seed: u64,
        now: Instant,
    ) -> Result<Self, HandshakeError> {
        let mut masks = Masks::new(seed);
        let (high, low) = (masks.next_bits(), masks.next_bits());
        let mut key = [0; 16];
        key[..8].copy_from_slice(&high.to_ne_bytes());
        key[8..].copy_from_slice(&low.to_ne_bytes());
        let handshake = ClientHandshake::new(key);
        let mut request = Vec::new();
        let headers = parameters.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        handshake.write_request(
            &parameters.url.host_header(),
            &parameters.url.path,
            headers,
            &mut request,
        )?;
        let ids = twilio::StreamIds {
            stream_sid: format!("MZ{:016x}{:016x}", masks.next_bits(), masks.next_bits()),
            call_sid: format!("CA{}", call.call_id.replace('-', "")),
            account_sid: format!("AC{}", call.tenant_id.replace('-', "")),
        };
        let mut pcm = pcm_dialect::Start::new(&call.call_id, &call.from, &call.to, &call.direction);
        pcm.custom = parameters.custom;
        Ok(Self {
            connection: Connection::new(handshake, request, masks, now + parameters.connect_timeout),
            dialect: parameters.dialect,
            start: Start { pcm, said: false },
            writer: twilio::StreamWriter::new(ids),
            backlog: VecDeque::with_capacity(4 * frame_octets(parameters.dialect)),
            clock_ms: 0,
            dropped_ms: 0,
            frames_in: 0,
            frames_out: 0,
            malformed: 0,
        })
    }

    /// The connection below.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The same, to be used.
    pub fn connection_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Which dialect it speaks.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Frames that came, frames that went, milliseconds it did not read in time.
    pub fn counters(&self) -> (u64, u64, u64) {
        (self.frames_in, self.frames_out, self.dropped_ms)
    }

    /// Messages that were none of the dialect.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Takes octets of the stream and hands what the agent says to `take`.
    pub fn handle_bytes(&mut self, bytes: &[u8], mut take: impl FnMut(Said<'_>)) {
        let Self { connection, dialect, start, writer, frames_in, malformed, .. } = self;
        connection.handle_bytes(bytes, |incoming, out| match (incoming, &dialect) {
            (Incoming::Opened, Dialect::Pcm) => {
                out.text(&pcm_dialect::ToAgent::Start(start.pcm.clone()).to_json());
                start.said = true;
                take(Said::Ready);
            }
            (Incoming::Opened, Dialect::Twilio) => {
                out.text(&writer.connected());
                out.text(&writer.start(&start.pcm.custom));
                start.said = true;
                take(Said::Ready);
            }
            (Incoming::Binary(octets), Dialect::Pcm) => match octets.len() % 2 {
                0 => {
                    *frames_in += 1;
                    hear_pcm(octets, &mut take);
                }
                _ => *malformed += 1,
            },
            (Incoming::Text(text), Dialect::Pcm) => match pcm_dialect::FromAgent::parse(text) {
                Ok(Some(event)) => take(Said::Request(request(event))),
                Ok(None) | Err(_) => *malformed += 1,
            },
            (Incoming::Text(text), Dialect::Twilio) => match twilio::FromBot::parse(text) {
                Ok(Some(twilio::FromBot::Media { payload })) => match hear_twilio(&payload, &mut take) {
                    Ok(_) => *frames_in += 1,
                    Err(_) => *malformed += 1,
                },
                Ok(Some(twilio::FromBot::Mark { name })) => take(Said::Request(Request::Mark { name })),
                Ok(Some(twilio::FromBot::Clear)) => take(Said::Request(Request::Clear)),
                Ok(None) | Err(_) => *malformed += 1,
            },
            (Incoming::Binary(_), Dialect::Twilio) => *malformed += 1,
        });
    }

    /// Hears the caller: samples at the dialect's rate, in order.
    pub fn hear(&mut self, samples: &[i16]) {
        if !self.connection.is_open() {
            return;
        }
        match self.dialect {
            Dialect::Pcm => {
                for piece in samples.chunks(PIECE) {
                    let mut octets = [0; 2 * PIECE];
                    let len = pcm::write_le(piece, &mut octets);
                    self.backlog.extend(&octets[..len]);
                }
            }
            Dialect::Twilio => {
                for piece in samples.chunks(PIECE) {
                    let mut octets = [0; PIECE];
                    let len = g711::encode_ulaw(piece, &mut octets);
                    self.backlog.extend(&octets[..len]);
                }
            }
        }
        let frame = frame_octets(self.dialect);
        let limit = frame * (BACKLOG_MS_MAX / FRAME_MS) as usize;
        while self.backlog.len() > limit {
            self.backlog.drain(..frame);
            self.dropped_ms += u64::from(FRAME_MS);
            self.clock_ms += u64::from(FRAME_MS);
        }
    }

    /// Tells the agent what its dialect has words for.
    pub fn tell(&mut self, what: &Tell<'_>) {
        use pcm_dialect::ToAgent;
        let text = match (self.dialect, what) {
            (Dialect::Pcm, Tell::Dtmf { digit, duration_ms }) => {
                ToAgent::Dtmf { digit: *digit, duration_ms: *duration_ms }.to_json()
            }
            (Dialect::Pcm, Tell::Mark { name, heard_ms }) => {
                ToAgent::Mark { name: (*name).to_owned(), heard_ms: *heard_ms }.to_json()
            }
            (Dialect::Pcm, Tell::Cleared { heard_ms }) => ToAgent::Cleared { heard_ms: *heard_ms }.to_json(),
            (Dialect::Pcm, Tell::Speech { active }) => ToAgent::Speech { active: *active }.to_json(),
            (Dialect::Pcm, Tell::Hold) => ToAgent::Hold.to_json(),
            (Dialect::Pcm, Tell::Resume) => ToAgent::Resume.to_json(),
            (Dialect::Pcm, Tell::Answered) => ToAgent::Answered.to_json(),
            (Dialect::Pcm, Tell::Transfer { status, reason }) => {
                ToAgent::Transfer { status: (*status).to_owned(), reason: (*reason).to_owned() }.to_json()
            }
            (Dialect::Twilio, Tell::Dtmf { digit, .. }) => self.writer.dtmf(*digit),
            (Dialect::Twilio, Tell::Mark { name, .. }) => self.writer.mark(name),
            (Dialect::Twilio, _) => return,
        };
        self.connection.send_text(&text);
    }

    /// The call is over: says why, and good-bye.
    pub fn stop(&mut self, reason: &str) {
        if self.connection.is_open() && self.start.said {
            let text = match self.dialect {
                Dialect::Pcm => pcm_dialect::ToAgent::Stop { reason: reason.to_owned() }.to_json(),
                Dialect::Twilio => self.writer.stop(),
            };
            self.connection.send_text(&text);
        }
        self.connection.close(close::NORMAL);
        self.backlog.clear();
    }

    /// Whether [`Stream::poll_stream`] has something.
    pub fn has_output(&self) -> bool {
        self.connection.has_control()
            || (self.connection.is_open() && self.backlog.len() >= frame_octets(self.dialect))
    }

    /// Writes what is to go into `out`: control octets first, then whole audio frames. Says how many octets.
    pub fn poll_stream(&mut self, out: &mut [u8]) -> usize {
        let mut len = self.connection.poll_control(out);
        if self.connection.has_control() || !self.connection.is_open() {
            return len;
        }
        let octets = frame_octets(self.dialect);
        while self.backlog.len() >= octets {
            let room = &mut out[len..];
            let written = match self.dialect {
                Dialect::Pcm => {
                    let mask = self.connection.next_mask();
                    write_frame_with(room, Opcode::Binary, Some(mask), octets, |payload| {
                        copy_front(&self.backlog, payload);
                    })
                }
                Dialect::Twilio => {
                    let message = self.writer.media_len(self.clock_ms, octets);
                    if room.len() < message + MASKED_HEADER_MAX {
                        break;
                    }
                    let mut mulaw = [0; twilio::FRAME_BYTES];
                    copy_front(&self.backlog, &mut mulaw);
                    let mask = self.connection.next_mask();
                    write_frame_with(room, Opcode::Text, Some(mask), message, |payload| {
                        // It fits: `message` is its exact length.
                        let _ = self.writer.media(self.clock_ms, &mulaw, payload);
                    })
                }
            };
            let Ok(written) = written else { break };
            self.backlog.drain(..octets);
            self.clock_ms += u64::from(FRAME_MS);
            self.frames_out += 1;
            len += written;
        }
        len
    }
}

/// Octets of one caller frame in wire format.
const fn frame_octets(dialect: Dialect) -> usize {
    match dialect {
        Dialect::Pcm => pcm_dialect::FRAME_BYTES,
        Dialect::Twilio => twilio::FRAME_BYTES,
    }
}

fn copy_front(queue: &VecDeque<u8>, out: &mut [u8]) {
    let (front, back) = queue.as_slices();
    let split = front.len().min(out.len());
    out[..split].copy_from_slice(&front[..split]);
    let rest = out.len() - split;
    out[split..].copy_from_slice(&back[..rest]);
}

fn hear_pcm(octets: &[u8], take: &mut impl FnMut(Said<'_>)) {
    let mut samples = [0; PIECE];
    for piece in octets.chunks(2 * PIECE) {
        let len = pcm::read_le(piece, &mut samples);
        take(Said::Sound(&samples[..len]));
    }
}

fn hear_twilio(payload: &str, take: &mut impl FnMut(Said<'_>)) -> Result<usize, twilio::PayloadError> {
    let mut scratch = [0; PIECE];
    twilio::decode_payload(payload, &mut scratch, |mulaw| {
        let mut samples = [0; PIECE];
        let len = g711::decode_ulaw(mulaw, &mut samples);
        take(Said::Sound(&samples[..len]));
    })
}

fn request(event: pcm_dialect::FromAgent) -> Request {
    use pcm_dialect::{FromAgent, HangupAfter};
    match event {
        FromAgent::Clear => Request::Clear,
        FromAgent::Mark { name } => Request::Mark { name },
        FromAgent::Dtmf { digits } => Request::Dtmf { digits },
        FromAgent::Hangup { after } => Request::Hangup { after_drain: after == HangupAfter::Drain },
        FromAgent::Transfer { to } => Request::Transfer { to },
        FromAgent::Answer => Request::Answer,
        FromAgent::Headers { headers } => Request::Headers { headers },
    }
}
