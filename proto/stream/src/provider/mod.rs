//! The media dialects of the telephony providers: they dial us, over WebSocket, and this is what they say.
//!
//! ```text
//!   provider ── text, binary ─▶ MediaStream::handle_* ──▶ Event           start, sound, keys, heard marks, stop
//!   provider ◀─ frames ─────── MediaStream::audio, end_utterance, mark, clear, answer, hangup
//!                                 │        │
//!                              Framer   Ledger      what is a legal message; what the caller has heard
//!                                 │
//!                               Wire                a file a provider: its words, and no other's
//! ```
//!
//! A provider is a file with a [`Provider`] in it and a line in [`registry`], which alone knows them all. Messages come in as
//! [`crate::websocket::FrameReader`] gives them and go out as unmasked WebSocket frames, appended to the caller's buffer. Audio
//! passes without allocation, apart from where that buffer must grow; text events, a few a second at most, may allocate within
//! [`EVENT_TEXT_MAX`].
//!
//! Nothing here ends a call on a message that cannot be read: it is counted, handed out as [`Event::Malformed`], and the call goes
//! on. What a provider promises nowhere is a constant with a word about it, not a habit.

mod asterisk;
mod exotel;
mod frame;
mod ledger;
mod plivo;
pub mod registry;
mod reorder;
mod stream;
mod telnyx;
mod twilio;
mod vonage;
mod wire;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use tandem_audio::format::SampleRate;

pub use frame::{Frame, FrameRule, Framer};
pub use ledger::{ECHO_GRACE, Ledger, MARK_INTERVAL_MS, MARKS_MAX, MarksFull, Receipts};
pub use stream::{Counters, MARK_NAME_MAX, MarkError, MediaStream, RETAKE_START_WITHIN, START_WITHIN, Setup};

use wire::Payload;

/// Largest message that a provider is let send: Exotel's 100 kB of sound in base64, and room. For
/// [`crate::websocket::FrameReader::with_message_max`].
pub const MESSAGE_MAX: usize = 160 * 1024;
/// Longest text event that is read, in octets; sound in base64 may be longer. A bound on what JSON can allocate.
pub const EVENT_TEXT_MAX: usize = 16 * 1024;
/// Most custom parameters that are kept of a start; the rest is dropped.
pub const CUSTOM_MAX: usize = 16;
/// Most octets of their names and values together.
pub const CUSTOM_OCTETS_MAX: usize = 4 * 1024;
/// Longest name of a call, a stream or an account; what is longer is cut.
pub const ID_OCTETS_MAX: usize = 256;
/// Least scratch for [`MediaStream::handle_text`]: a stereo sample in base64's groups of three octets.
pub const SCRATCH_MIN: usize = 6;

/// How sound is written on a provider's wire. One channel always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// G.711 mu-law.
    Pcmu,
    /// G.711 A-law.
    Pcma,
    /// G.722: 16 kHz in 8 octets a millisecond.
    G722,
    /// Signed 16-bit, *little-endian*. (RTP's L16 is big-endian.)
    L16,
}

/// Encoding and rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MediaFormat {
    /// How.
    pub encoding: Encoding,
    /// How fast.
    pub rate: SampleRate,
}

impl MediaFormat {
    /// mu-law at 8 kHz.
    pub const PCMU: Self = Self { encoding: Encoding::Pcmu, rate: SampleRate::Hz8000 };

    /// The format that a provider's words name. G.711 is 8 kHz and G.722 16 kHz whatever is said of its rate (RTP says 8 000 of
    /// G.722); L16 follows the rate.
    ///
    /// # Errors
    /// [`FormatError`]
    pub fn named(name: &str, hz: u64) -> Result<Self, FormatError> {
        let refused = || {
            let mut name = name.to_owned();
            name.truncate(name.floor_char_boundary(64));
            FormatError { name, hz }
        };
        // A content type may name the rate itself (`audio/x-l16;rate=16000`), and means it.
        let (bare, parameters) = name.split_once(';').unwrap_or((name, ""));
        let named = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("rate="));
        let hz = named.and_then(|rate| rate.trim().parse().ok()).unwrap_or(hz);
        let lower = bare.trim().to_ascii_lowercase();
        let short = lower.strip_prefix("audio/").unwrap_or(&lower);
        let (encoding, rate) = match short {
            "x-mulaw" | "mulaw" | "ulaw" | "pcmu" | "basic" => (Encoding::Pcmu, Some(SampleRate::Hz8000)),
            "x-alaw" | "alaw" | "pcma" => (Encoding::Pcma, Some(SampleRate::Hz8000)),
            "g722" => (Encoding::G722, Some(SampleRate::Hz16000)),
            "l16" | "x-l16" | "x-raw" | "raw" | "raw/slin" | "slin" | "linear16" | "pcm" => {
                (Encoding::L16, u32::try_from(hz).ok().and_then(SampleRate::from_hz))
            }
            _ => return Err(refused()),
        };
        Ok(MediaFormat { encoding, rate: rate.ok_or_else(refused)? })
    }

    /// Octets a millisecond.
    pub const fn octets_per_ms(self) -> usize {
        match self.encoding {
            Encoding::Pcmu | Encoding::Pcma | Encoding::G722 => 8,
            Encoding::L16 => self.rate.samples_per_ms() * 2,
        }
    }

    /// Octets that cannot be parted: a sample.
    pub const fn sample_octets(self) -> usize {
        match self.encoding {
            Encoding::L16 => 2,
            _ => 1,
        }
    }

    /// Octets of 20 ms.
    pub const fn frame_octets(self) -> usize {
        self.octets_per_ms() * 20
    }

    /// The octet that is silence.
    pub const fn silence(self) -> u8 {
        match self.encoding {
            Encoding::Pcmu => 0xFF,
            Encoding::Pcma => 0xD5,
            // What an encoder at rest makes of silence.
            Encoding::G722 => 0xFA,
            Encoding::L16 => 0,
        }
    }
}

/// A media format that we do not carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "media format {name:?} at {hz} Hz is not carried: set the provider's stream to PCMU, PCMA, G.722, or L16 at 8, 16, 24 or 48 kHz"
)]
pub struct FormatError {
    /// As the provider wrote it, 64 octets of it at most.
    pub name: String,
    /// Samples a second, as the provider wrote it; 0 when it did not.
    pub hz: u64,
}

/// A message that breaks its dialect. It is dropped and counted; the call goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Longer than [`EVENT_TEXT_MAX`].
    #[error("text event of {0} octets is longer than {EVENT_TEXT_MAX}")]
    TooLong(usize),
    /// Not JSON.
    #[error("not JSON at line {line} column {column}")]
    Json {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// JSON, but not an object.
    #[error("not a JSON object")]
    NotAnObject,
    /// A field is missing, or is not what it must be.
    #[error("{event}: field {field} is missing or wrong")]
    Field {
        /// The event.
        event: &'static str,
        /// The field.
        field: &'static str,
    },
    /// Sound that is not base64.
    #[error("media payload of {0} characters is not base64")]
    Base64(usize),
    /// Sound that ends within a sample.
    #[error("media of {0} octets is not a whole number of samples")]
    HalfSample(usize),
    /// Binary from a provider that speaks text only.
    #[error("binary message of {0} octets from a provider that sends text only")]
    Binary(usize),
}

/// What a provider says of a stream when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The provider's name of the call; empty where its socket does not say (Vonage).
    pub call_id: String,
    /// The provider's name of the stream.
    pub stream_id: String,
    /// Whose account it is.
    pub account_id: String,
    /// Who calls; empty where the socket does not say.
    pub from: String,
    /// Who was called; likewise.
    pub to: String,
    /// What the deployment added, at most [`CUSTOM_MAX`] of it.
    pub custom: BTreeMap<String, String>,
    /// Of the caller's sound, and of ours unless [`Provider::outgoing`] says otherwise.
    pub format: MediaFormat,
}

/// Why a stream is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The provider said so, perhaps with a reason; 256 octets of it at most.
    Said(String),
    /// The connection closed without a word, which is how Vonage, Asterisk and a lost network end a call.
    RemoteClosed,
    /// Nothing started within [`START_WITHIN`].
    NoStart,
    /// The stream's format is not ours.
    Format(FormatError),
}

impl StopReason {
    /// Whether the caller may still be on the line at the provider, to be hung up by its REST interface (C7).
    pub fn leg_may_live(&self, provider: &Provider) -> bool {
        match self {
            StopReason::Said(reason) => (provider.leg_may_outlive_stop)(reason),
            _ => true,
        }
    }
}

/// What comes from a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// The socket is greeted; no stream yet.
    Connected,
    /// The stream begins. Always before any sound.
    Start(&'a Start),
    /// The caller's sound. A long message comes in several of these.
    Audio {
        /// In the stream's format, whole samples.
        sound: &'a [u8],
        /// Milliseconds since the stream began, where the provider counts.
        position_ms: Option<u64>,
        /// Milliseconds that are missing before it: 20 at least, or 0.
        gap_ms: u64,
    },
    /// The caller pressed a key.
    Dtmf {
        /// `0`–`9`, `*`, `#`, `A`–`D`.
        digit: char,
        /// Where the provider measures.
        duration_ms: Option<u64>,
    },
    /// The agent's sound before this mark was played.
    Mark {
        /// As [`MediaStream::mark`] was given it.
        name: &'a str,
        /// Milliseconds of the agent's sound that the caller has heard in all.
        heard_ms: u64,
    },
    /// The provider confirms a clear.
    Cleared {
        /// Clears that are still to be confirmed: the queue is certainly empty only at 0.
        outstanding: u32,
    },
    /// The provider's queue is full: send no sound ([`MediaStream::room_ms`] is 0).
    Xoff,
    /// The queue has room again.
    Xon,
    /// The provider complains; 256 octets of it at most.
    Complaint(&'a str),
    /// The stream is over; whatever comes after is ignored.
    Stop(StopReason),
    /// A message without meaning for us: unknown, late, or of an earlier time. Counted.
    Ignored,
    /// A message that cannot be read. Counted.
    Malformed(Malformed),
}

/// Who keeps the time at which sound is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacedBy {
    /// The provider buffers and plays.
    Provider,
    /// We do, frame by frame.
    Us,
}

/// How fast sound may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pacing {
    /// Who.
    pub paced_by: PacedBy,
    /// Most sound sent and not played, in milliseconds.
    pub send_ahead_ms: u32,
    /// What the provider says it can hold, in milliseconds, if it says so.
    pub provider_holds_ms: Option<u32>,
}

/// A provider: what it is called, what it does, and its dialect.
#[derive(Debug)]
pub struct Provider {
    /// As in the path `/v1/media/{provider}/{contextId}`.
    pub name: &'static str,
    /// How fast sound may be given.
    pub pacing: Pacing,
    /// Whether it says what has been played.
    pub receipts: Receipts,
    /// Whether it confirms a clear.
    pub confirms_clear: bool,
    /// It has no word for the end of a call: an orderly close is one.
    pub ends_by_closing: bool,
    /// Its start names the call as the provider's REST interface does.
    pub names_call: bool,
    /// It sends the caller's sound all the time, silence too.
    pub is_continuous: bool,
    /// How long its start may take once it has greeted: longer than [`START_WITHIN`] where the greeting comes while the phone rings.
    pub start_within: Duration,
    /// What we send, where that is agreed whatever the start says of the caller's sound.
    pub outgoing: Option<MediaFormat>,
    /// Whether the caller may be on the line still after a stop with this reason: of the stream, and not of the call.
    pub leg_may_outlive_stop: fn(reason: &str) -> bool,
    /// Subprotocol to be accepted in the handshake, if the provider offers it.
    pub subprotocol: Option<&'static str>,
    wire: fn() -> Box<dyn Wire>,
}

/// What a message of a provider's says, before the call's state is looked at.
enum Incoming<'a> {
    Connected,
    Start(Start),
    Refused(FormatError),
    Audio(Payload<'a>),
    Dtmf {
        digit: char,
        duration_ms: Option<u64>,
    },
    /// A mark of ours, by its name.
    Mark(String),
    Cleared,
    Xoff,
    Xon,
    Complaint(String),
    Stop(String),
    Ignored,
}

/// A provider's words. Everything else is [`MediaStream`]'s.
trait Wire: Debug + Send {
    /// Reads a text message; `setup` fills in what a start leaves out.
    fn read<'a>(&mut self, text: &'a str, setup: &Setup) -> Result<Incoming<'a>, Malformed>;

    /// Whether binary messages are sound.
    fn hears_binary(&self) -> bool {
        false
    }

    /// Whether sound may arrive out of order, to be sorted by its chunk number.
    fn reorders(&self) -> bool {
        false
    }

    /// How sound is cut.
    fn frame_rule(&self, format: MediaFormat, setup: &Setup) -> FrameRule;

    /// Writes sound that begins `at_ms` after the first.
    fn write_audio(&mut self, frame: Frame<'_>, at_ms: u64, out: &mut Vec<u8>);

    /// Writes a mark, named `t` and this number.
    fn write_mark(&mut self, serial: u64, out: &mut Vec<u8>);

    /// Drops all sound that was not played.
    fn write_clear(&mut self, out: &mut Vec<u8>);

    /// Answers the call; false where the protocol has no word for it.
    fn write_answer(&mut self, _out: &mut Vec<u8>) -> bool {
        false
    }

    /// Hangs up; false where the protocol has no word for it.
    fn write_hangup(&mut self, _out: &mut Vec<u8>) -> bool {
        false
    }
}
