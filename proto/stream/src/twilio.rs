//! Twilio Media Streams: the dialect most bots already speak.
//!
//! ```text
//!   we, as Twilio ──▶ bot   connected, start, media (20 ms of mu-law, base64), dtmf, mark, stop
//!   we, as Twilio ◀── bot   media (any length), mark, clear
//! ```
//!
//! [`StreamWriter`] and [`FromBot`] are Tandem's side, [`BotWriter`] and [`ToBot`] the bot's, used by tests and tools. Each text
//! frame is one JSON object with `event` as its tag; Twilio writes its numbers as strings, and both are read. Media messages are
//! written into the caller's buffer and parsed as borrowed slices, without allocation; [`decode_payload`] takes the base64 apart in
//! pieces of the caller's scratch. (A bot that escapes characters inside its strings, as `\/`, costs an allocation.)
//!
//! Marks are echoed when the audio before them was played, and all pending ones at once after `clear`: that is the engine's doing.

mod bot;
mod provider;

use std::borrow::Cow;

use serde::Deserialize;

pub use bot::{BotWriter, StartInfo, ToBot};
pub use provider::{FromBot, StreamIds, StreamWriter};

/// Samples a second, both ways.
pub const SAMPLE_RATE_HZ: u32 = 8_000;
/// Octets of one media message to the bot: 20 ms of mu-law.
pub const FRAME_BYTES: usize = 160;
/// Longest mark name, in octets: names wait in the playout queue.
pub const MARK_NAME_MAX: usize = 256;

/// A text frame that is not a message of this dialect. The stream may go on; the frame is dropped and counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not JSON, or a field of the wrong type.
    #[error("not a media stream message: {0}")]
    Json(String),
    /// A field that the event needs is not there.
    #[error("{event}: field {field} is missing")]
    Missing {
        /// The event's tag.
        event: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A mark's name is longer than [`MARK_NAME_MAX`].
    #[error("mark: name of {0} octets is longer than {MARK_NAME_MAX}")]
    MarkName(usize),
}

/// A payload that is not base64; nothing of it was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("media payload of {0} characters is not base64")]
pub struct PayloadError(pub usize);

/// The caller's buffer is too short; nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message of {need} octets does not fit in a buffer of {len}")]
pub struct BufferTooShort {
    /// Octets in the buffer.
    pub len: usize,
    /// Octets that the message takes.
    pub need: usize,
}

/// Decodes a media payload piece by piece through `scratch` (at least 3 octets; 960 suits frames of up to 120 ms) and hands
/// each piece to `sink` in order; returns the octets in all. Never allocates. The whole payload is checked first, so a broken
/// one yields nothing at all.
///
/// # Errors
/// [`PayloadError`]
pub fn decode_payload(
    payload: &str,
    scratch: &mut [u8],
    mut sink: impl FnMut(&[u8]),
) -> Result<usize, PayloadError> {
    let text = payload.as_bytes();
    if scratch.len() < 3 || base64_simd::STANDARD.check(text).is_err() {
        return Err(PayloadError(text.len()));
    }
    let mut octets = 0;
    // Four characters are three octets, so pieces of whole quartets decode by themselves.
    for piece in text.chunks(scratch.len() / 3 * 4) {
        let decoded = base64_simd::STANDARD
            .decode(piece, base64_simd::AsOut::as_out(&mut *scratch))
            .map_err(|_| PayloadError(text.len()))?;
        octets += decoded.len();
        sink(decoded);
    }
    Ok(octets)
}

/// Writes the pieces of one message into the caller's buffer.
pub(crate) struct Pen<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Pen<'a> {
    pub(crate) fn new(out: &'a mut [u8], need: usize) -> Result<Self, BufferTooShort> {
        if out.len() < need {
            return Err(BufferTooShort { len: out.len(), need });
        }
        Ok(Pen { out, at: 0 })
    }

    pub(crate) fn put(&mut self, text: &[u8]) {
        self.out[self.at..self.at + text.len()].copy_from_slice(text);
        self.at += text.len();
    }

    pub(crate) fn put_base64(&mut self, octets: &[u8]) {
        let room = base64_simd::AsOut::as_out(&mut self.out[self.at..]);
        self.at += base64_simd::STANDARD.encode(octets, room).len();
    }
}

/// A number in decimal, without allocation.
pub(crate) struct Decimal {
    digits: [u8; 20],
    from: usize,
}

impl Decimal {
    pub(crate) fn new(mut number: u64) -> Self {
        let mut decimal = Decimal { digits: [b'0'; 20], from: 20 };
        loop {
            decimal.from -= 1;
            decimal.digits[decimal.from] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return decimal;
            }
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.digits[self.from..]
    }
}

/// Characters of base64 for so many octets.
pub(crate) const fn base64_len(octets: usize) -> usize {
    octets.div_ceil(3) * 4
}

/// A string that is borrowed unless it holds escapes. (Inside an `Option`, serde would always copy a bare `Cow`.)
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct TextWire<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// `{"name": …}` of marks, both ways.
#[derive(Deserialize)]
struct MarkWire<'a> {
    #[serde(borrow)]
    name: Option<TextWire<'a>>,
}

/// A number as Twilio writes it, inside a string, or as others do, bare.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberWire<'a> {
    Bare(u64),
    Quoted(#[serde(borrow)] Cow<'a, str>),
}

impl NumberWire<'_> {
    fn value(&self) -> Option<u64> {
        match self {
            NumberWire::Bare(number) => Some(*number),
            NumberWire::Quoted(text) => text.trim().parse().ok(),
        }
    }
}

pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn parse_wire<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, MessageError> {
    serde_json::from_str(text).map_err(|error| MessageError::Json(error.to_string()))
}

fn mark_name(mark: Option<MarkWire<'_>>) -> Result<String, MessageError> {
    let TextWire(name) =
        mark.and_then(|mark| mark.name).ok_or(MessageError::Missing { event: "mark", field: "mark.name" })?;
    if name.len() > MARK_NAME_MAX {
        return Err(MessageError::MarkName(name.len()));
    }
    Ok(name.into_owned())
}
