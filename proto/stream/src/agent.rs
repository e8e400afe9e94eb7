//! The `pcm` dialect: Tandem's own agent stream (docs: "The pcm agent protocol").
//!
//! ```text
//!   engine ──▶ agent   text start, then binary caller audio; text dtmf, mark, cleared, paused, speech, gap, hold, resume,
//!                      answered, transfer, stop
//!   engine ◀── agent   binary audio of any even length; text clear, mark, pause, resume, dtmf, hangup, transfer, answer,
//!                      headers
//! ```
//!
//! Audio is L16 *little-endian*, 16 kHz, one channel (RTP's L16 is big-endian). Every text frame is one JSON object with `event`
//! as its tag. The engine writes [`ToAgent`] and parses [`FromAgent`]; the agent does the reverse. An event nobody knows is
//! `Ok(None)`, to be counted and ignored, so either side may be newer; unknown fields are ignored too. A known event with a
//! missing or mistyped field is an [`EventError`] that names the field.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

mod transfer;

pub use transfer::TransferMode;

/// Samples a second, both ways.
pub const SAMPLE_RATE_HZ: u32 = 16_000;
/// Milliseconds of one caller frame.
pub const FRAME_MS: u32 = 20;
/// Samples of one caller frame.
pub const FRAME_SAMPLES: usize = (SAMPLE_RATE_HZ / 1_000 * FRAME_MS) as usize;
/// Octets of one caller frame.
pub const FRAME_BYTES: usize = FRAME_SAMPLES * 2;
/// Longest text event, in octets: far above any honest one, and a bound on what JSON can allocate.
pub const TEXT_MAX: usize = 16 * 1024;
/// Longest mark name, in octets: names wait in the playout queue.
pub const MARK_NAME_MAX: usize = 256;
/// Most headers in one event, each a name and a value of at most [`HEADER_MAX`] octets together.
pub const HEADERS_MAX: usize = 8;
/// Octets of a header's name and value.
pub const HEADER_MAX: usize = 1_024;
/// Most DTMF digits in one event.
pub const DTMF_DIGITS_MAX: usize = 64;

/// The first text frame of a stream: who talks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The call, a UUID; the same in every interface.
    pub call_id: String,
    /// Who calls.
    pub from: String,
    /// Who was called.
    pub to: String,
    /// `inbound` or `outbound`.
    pub direction: String,
    /// Samples a second of the binary frames, both ways.
    pub sample_rate: u32,
    /// Channels of the binary frames.
    pub channels: u32,
    /// Milliseconds of one caller frame.
    pub frame_ms: u32,
    /// What the deployment adds.
    pub custom: BTreeMap<String, String>,
}

impl Start {
    /// A start frame in the one format spoken today: 16 kHz, one channel, 20 ms.
    pub fn new(call_id: &str, from: &str, to: &str, direction: &str) -> Self {
        Start {
            call_id: call_id.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            direction: direction.to_owned(),
            sample_rate: SAMPLE_RATE_HZ,
            channels: 1,
            frame_ms: FRAME_MS,
            custom: BTreeMap::new(),
        }
    }
}

/// Text events from the engine to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAgent {
    /// Always first, once.
    Start(Start),
    /// The caller pressed a key.
    Dtmf {
        /// `0`–`9`, `*`, `#`, `A`–`D`.
        digit: char,
        /// How long it was held.
        duration_ms: u32,
    },
    /// The audio before this mark has been played out.
    Mark {
        /// As the agent named it.
        name: String,
        /// Milliseconds of the agent's audio that the caller has heard since the start of the stream.
        heard_ms: u64,
    },
    /// The answer to `clear`: the queue is empty.
    Cleared {
        /// Milliseconds of the agent's audio that the caller has heard since the start of the stream.
        heard_ms: u64,
    },
    /// The answer to `pause`: the fade is over and nothing more is played until `resume` or `clear`.
    Paused {
        /// Milliseconds of the agent's audio that the caller has heard since the start of the stream, the fade included.
        heard_ms: u64,
    },
    /// The caller began or ceased to speak.
    Speech {
        /// True when speech began.
        active: bool,
    },
    /// So much silence of the caller was kept from the agent; the audio that comes next comes after it.
    Gap {
        /// How much, in milliseconds.
        ms: u64,
    },
    /// The caller put us on hold: no audio comes, and none is played.
    Hold,
    /// The hold is over.
    Resume,
    /// A call of ours: the callee has answered, and hears the agent from now on.
    Answered,
    /// How a transfer goes that the agent has asked for.
    Transfer {
        /// `trying`, `done` (the call ends now) or `failed` (the caller is still here).
        status: String,
        /// In words, when it failed.
        reason: String,
    },
    /// The call is over; the connection closes after it.
    Stop {
        /// `caller`, `timeout`, `error`, …
        reason: String,
    },
}

/// When a hang-up asked for by the agent happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HangupAfter {
    /// After everything said before it has been played out.
    Drain,
    /// At once.
    Now,
}

impl HangupAfter {
    /// As on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            HangupAfter::Drain => "drain",
            HangupAfter::Now => "now",
        }
    }
}

/// Text events from the agent to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromAgent {
    /// Drop all audio that has not been played (barge-in); answered by [`ToAgent::Cleared`].
    Clear,
    /// Tell me when the audio before this point has been played; answered by [`ToAgent::Mark`].
    Mark {
        /// Comes back in the answer; at most [`MARK_NAME_MAX`] octets.
        name: String,
    },
    /// Fade out, hold what waits, and say where ([`ToAgent::Paused`]).
    Pause,
    /// Go on where `pause` has stopped.
    Resume,
    /// Press keys towards the caller's side.
    Dtmf {
        /// 1 to [`DTMF_DIGITS_MAX`] of `0`–`9`, `*`, `#`, `A`–`D`.
        digits: String,
    },
    /// End the call.
    Hangup {
        /// When; absent on the wire means `drain`.
        after: HangupAfter,
    },
    /// Hand the caller on, or bring somebody in.
    Transfer {
        /// A number, a SIP URI or `phone:` and a user; empty where the mode needs nobody.
        to: String,
        /// How; absent on the wire means `refer`.
        mode: TransferMode,
    },
    /// Answer the call, which the agent has been heard in before (early media).
    Answer,
    /// Headers of the BYE or REFER by which this call will end.
    Headers {
        /// 1 to [`HEADERS_MAX`] of them.
        headers: BTreeMap<String, String>,
    },
}

/// A text frame that breaks the protocol. The stream may go on; the frame is dropped and counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Longer than [`TEXT_MAX`].
    #[error("text frame of {0} octets is longer than {TEXT_MAX}")]
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
    /// A field that the event needs is not there.
    #[error("{event}: field {field} is missing")]
    Missing {
        /// The event's tag; `?` when the tag itself is missing.
        event: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A field has the wrong type or value.
    #[error("{event}: field {field} must be {expected}")]
    Field {
        /// The event's tag; `?` when the tag itself is wrong.
        event: &'static str,
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

impl ToAgent {
    /// The text frame's payload.
    pub fn to_json(&self) -> String {
        match self {
            ToAgent::Start(start) => json!({
                "event": "start", "callId": start.call_id, "from": start.from, "to": start.to,
                "direction": start.direction, "sampleRate": start.sample_rate, "channels": start.channels,
                "frameMs": start.frame_ms, "custom": start.custom,
            }),
            ToAgent::Dtmf { digit, duration_ms } => {
                json!({"event": "dtmf", "digit": digit, "durationMs": duration_ms})
            }
            ToAgent::Mark { name, heard_ms } => json!({"event": "mark", "name": name, "heardMs": heard_ms}),
            ToAgent::Cleared { heard_ms } => json!({"event": "cleared", "heardMs": heard_ms}),
            ToAgent::Paused { heard_ms } => json!({"event": "paused", "heardMs": heard_ms}),
            ToAgent::Speech { active } => json!({"event": "speech", "active": active}),
            ToAgent::Gap { ms } => json!({"event": "gap", "ms": ms}),
            ToAgent::Hold => json!({"event": "hold"}),
            ToAgent::Resume => json!({"event": "resume"}),
            ToAgent::Answered => json!({"event": "answered"}),
            ToAgent::Transfer { status, reason } => {
                json!({"event": "transfer", "status": status, "reason": reason})
            }
            ToAgent::Stop { reason } => json!({"event": "stop", "reason": reason}),
        }
        .to_string()
    }

    /// Reads a text frame from the engine; `None` for an event this version does not know.
    ///
    /// # Errors
    /// [`EventError`]
    pub fn parse(text: &str) -> Result<Option<Self>, EventError> {
        let object = object(text)?;
        Ok(Some(match tag(&object)? {
            "start" => ToAgent::Start(start(&Fields { event: "start", object: &object })?),
            "dtmf" => {
                let fields = Fields { event: "dtmf", object: &object };
                let digit = fields.text("digit")?;
                let mut chars = digit.chars();
                let (Some(digit), None) = (chars.next().filter(|c| is_digit(*c)), chars.next()) else {
                    return Err(fields.wrong("digit", "one of 0-9 * # A-D"));
                };
                ToAgent::Dtmf { digit, duration_ms: fields.u32_or("durationMs", 0)? }
            }
            "mark" => {
                let fields = Fields { event: "mark", object: &object };
                ToAgent::Mark { name: fields.text("name")?.to_owned(), heard_ms: fields.u64("heardMs")? }
            }
            "cleared" => {
                ToAgent::Cleared { heard_ms: Fields { event: "cleared", object: &object }.u64("heardMs")? }
            }
            "paused" => {
                ToAgent::Paused { heard_ms: Fields { event: "paused", object: &object }.u64("heardMs")? }
            }
            "speech" => {
                ToAgent::Speech { active: Fields { event: "speech", object: &object }.bool("active")? }
            }
            "gap" => ToAgent::Gap { ms: Fields { event: "gap", object: &object }.u64("ms")? },
            "hold" => ToAgent::Hold,
            "resume" => ToAgent::Resume,
            "answered" => ToAgent::Answered,
            "transfer" => {
                let fields = Fields { event: "transfer", object: &object };
                ToAgent::Transfer {
                    status: fields.text("status")?.to_owned(),
                    reason: fields.text_or("reason", "")?.to_owned(),
                }
            }
            "stop" => {
                let fields = Fields { event: "stop", object: &object };
                ToAgent::Stop { reason: fields.text_or("reason", "")?.to_owned() }
            }
            _ => return Ok(None),
        }))
    }
}

impl FromAgent {
    /// The text frame's payload.
    pub fn to_json(&self) -> String {
        match self {
            FromAgent::Clear => json!({"event": "clear"}),
            FromAgent::Pause => json!({"event": "pause"}),
            FromAgent::Resume => json!({"event": "resume"}),
            FromAgent::Mark { name } => json!({"event": "mark", "name": name}),
            FromAgent::Dtmf { digits } => json!({"event": "dtmf", "digits": digits}),
            FromAgent::Hangup { after } => json!({"event": "hangup", "after": after.as_str()}),
            FromAgent::Transfer { to, mode: TransferMode::Refer } => json!({"event": "transfer", "to": to}),
            FromAgent::Transfer { to, mode } if mode.names_somebody() => {
                json!({"event": "transfer", "to": to, "mode": mode.as_str()})
            }
            FromAgent::Transfer { mode, .. } => json!({"event": "transfer", "mode": mode.as_str()}),
            FromAgent::Answer => json!({"event": "answer"}),
            FromAgent::Headers { headers } => json!({"event": "headers", "headers": headers}),
        }
        .to_string()
    }

    /// Reads a text frame from the agent; `None` for an event this version does not know.
    ///
    /// # Errors
    /// [`EventError`]
    pub fn parse(text: &str) -> Result<Option<Self>, EventError> {
        let object = object(text)?;
        Ok(Some(match tag(&object)? {
            "clear" => FromAgent::Clear,
            "pause" => FromAgent::Pause,
            "resume" => FromAgent::Resume,
            "mark" => {
                let fields = Fields { event: "mark", object: &object };
                let name = fields.text("name")?;
                if name.len() > MARK_NAME_MAX {
                    return Err(fields.wrong("name", "at most 256 octets"));
                }
                FromAgent::Mark { name: name.to_owned() }
            }
            "dtmf" => {
                let fields = Fields { event: "dtmf", object: &object };
                let digits = fields.text("digits")?;
                if digits.is_empty() || digits.len() > DTMF_DIGITS_MAX || !digits.chars().all(is_digit) {
                    return Err(fields.wrong("digits", "1 to 64 of 0-9 * # A-D"));
                }
                FromAgent::Dtmf { digits: digits.to_owned() }
            }
            "hangup" => {
                let fields = Fields { event: "hangup", object: &object };
                let after = match fields.text_or("after", "drain")? {
                    "drain" => HangupAfter::Drain,
                    "now" => HangupAfter::Now,
                    _ => return Err(fields.wrong("after", "\"drain\" or \"now\"")),
                };
                FromAgent::Hangup { after }
            }
            "transfer" => {
                let fields = Fields { event: "transfer", object: &object };
                let mode = fields.text_or("mode", TransferMode::Refer.as_str())?;
                let modes = "\"refer\", \"bridge\", \"consult\", \"complete\", \"conference\" or \"cancel\"";
                let mode = TransferMode::parse(mode).ok_or_else(|| fields.wrong("mode", modes))?;
                let to = if mode.names_somebody() { fields.text("to")? } else { "" };
                if to.is_empty() && mode.names_somebody() {
                    return Err(fields.wrong("to", "a number or a SIP URI"));
                }
                FromAgent::Transfer { to: to.to_owned(), mode }
            }
            "answer" => FromAgent::Answer,
            "headers" => {
                let fields = Fields { event: "headers", object: &object };
                let headers = fields.texts("headers")?;
                let fits = |(name, value): (&String, &String)| name.len() + value.len() <= HEADER_MAX;
                if headers.is_empty() || headers.len() > HEADERS_MAX || !headers.iter().all(fits) {
                    return Err(fields.wrong("headers", "1 to 8 of at most 1024 octets each"));
                }
                FromAgent::Headers { headers }
            }
            _ => return Ok(None),
        }))
    }
}

/// An audio payload of an odd number of octets: half a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("audio frame of {0} octets is not a whole number of 16-bit samples")]
pub struct OddAudio(pub usize);

/// Writes samples as L16 little-endian; returns the octets written: two a sample, as many samples as fit in `out`.
pub fn write_audio(samples: &[i16], out: &mut [u8]) -> usize {
    let (pairs, _) = out.as_chunks_mut::<2>();
    for (pair, sample) in pairs.iter_mut().zip(samples) {
        *pair = sample.to_le_bytes();
    }
    pairs.len().min(samples.len()) * 2
}

/// Reads L16 little-endian as samples, without copying the payload.
///
/// # Errors
/// [`OddAudio`]
pub fn read_audio(payload: &[u8]) -> Result<impl ExactSizeIterator<Item = i16> + Clone + '_, OddAudio> {
    match payload.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|pair| i16::from_le_bytes(*pair))),
        _ => Err(OddAudio(payload.len())),
    }
}

fn is_digit(c: char) -> bool {
    matches!(c, '0'..='9' | '*' | '#' | 'A'..='D')
}

fn object(text: &str) -> Result<Map<String, Value>, EventError> {
    if text.len() > TEXT_MAX {
        return Err(EventError::TooLong(text.len()));
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(EventError::NotAnObject),
        Err(error) => Err(EventError::Json { line: error.line(), column: error.column() }),
    }
}

fn tag(object: &Map<String, Value>) -> Result<&str, EventError> {
    Fields { event: "?", object }.text("event")
}

fn start(fields: &Fields<'_>) -> Result<Start, EventError> {
    Ok(Start {
        call_id: fields.text("callId")?.to_owned(),
        from: fields.text_or("from", "")?.to_owned(),
        to: fields.text_or("to", "")?.to_owned(),
        direction: fields.text_or("direction", "inbound")?.to_owned(),
        sample_rate: fields.u32_or("sampleRate", SAMPLE_RATE_HZ)?,
        channels: fields.u32_or("channels", 1)?,
        frame_ms: fields.u32_or("frameMs", FRAME_MS)?,
        custom: fields.texts("custom")?,
    })
}

/// The fields of one event, read with errors that name event and field.
struct Fields<'a> {
    event: &'static str,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn wrong(&self, field: &'static str, expected: &'static str) -> EventError {
        EventError::Field { event: self.event, field, expected }
    }

    fn get(&self, field: &'static str) -> Result<&'a Value, EventError> {
        self.object.get(field).ok_or(EventError::Missing { event: self.event, field })
    }

    fn text(&self, field: &'static str) -> Result<&'a str, EventError> {
        self.get(field)?.as_str().ok_or_else(|| self.wrong(field, "a string"))
    }

    fn text_or(&self, field: &'static str, default: &'static str) -> Result<&'a str, EventError> {
        if self.object.contains_key(field) { self.text(field) } else { Ok(default) }
    }

    /// An object of strings; absent and null are empty.
    fn texts(&self, field: &'static str) -> Result<BTreeMap<String, String>, EventError> {
        let wrong = || self.wrong(field, "an object of strings");
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(BTreeMap::new()),
            Some(Value::Object(map)) => map
                .iter()
                .map(|(name, value)| Ok((name.clone(), value.as_str().ok_or_else(wrong)?.to_owned())))
                .collect(),
            Some(_) => Err(wrong()),
        }
    }

    fn bool(&self, field: &'static str) -> Result<bool, EventError> {
        self.get(field)?.as_bool().ok_or_else(|| self.wrong(field, "true or false"))
    }

    fn u64(&self, field: &'static str) -> Result<u64, EventError> {
        self.get(field)?.as_u64().ok_or_else(|| self.wrong(field, "a whole number"))
    }

    fn u32_or(&self, field: &'static str, default: u32) -> Result<u32, EventError> {
        if !self.object.contains_key(field) {
            return Ok(default);
        }
        u32::try_from(self.u64(field)?).map_err(|_| self.wrong(field, "a whole number below 2^32"))
    }
}
