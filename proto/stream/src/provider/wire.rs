//! Reading what providers write, however they spell it, and writing what they read.
//!
//! Providers' JSON is read leniently: a number may stand in a string and a string may be a number, fields have spelling twins, and
//! whatever else a message holds is passed over. Audio is the exception in speed only: its payload is borrowed from the text.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{CUSTOM_MAX, CUSTOM_OCTETS_MAX, EVENT_TEXT_MAX, ID_OCTETS_MAX, Malformed};
use crate::twilio::{Decimal, Pen, TextWire, base64_len};
use crate::websocket::{Opcode, frame_len, write_frame_with};

/// A piece of a message of ours.
#[derive(Clone, Copy)]
pub(super) enum Part<'a> {
    /// As it is.
    Text(&'a [u8]),
    /// In decimal.
    Number(u64),
    /// In base64.
    Base64(&'a [u8]),
}

impl Part<'_> {
    fn len(self) -> usize {
        match self {
            Part::Text(text) => text.len(),
            Part::Number(number) => Decimal::new(number).as_bytes().len(),
            Part::Base64(octets) => base64_len(octets.len()),
        }
    }
}

/// Appends a text message as one WebSocket frame. It allocates only where `out` must grow.
pub(super) fn append_text(out: &mut Vec<u8>, parts: &[Part<'_>]) {
    let len = parts.iter().map(|part| part.len()).sum();
    append(out, Opcode::Text, len, |room| {
        let Ok(mut pen) = Pen::new(room, len) else { return };
        for part in parts {
            match part {
                Part::Text(text) => pen.put(text),
                Part::Number(number) => pen.put(Decimal::new(*number).as_bytes()),
                Part::Base64(octets) => pen.put_base64(octets),
            }
        }
    });
}

/// Appends a binary message as one WebSocket frame.
pub(super) fn append_binary(out: &mut Vec<u8>, octets: &[u8]) {
    append(out, Opcode::Binary, octets.len(), |room| room.copy_from_slice(octets));
}

fn append(out: &mut Vec<u8>, opcode: Opcode, len: usize, fill: impl FnOnce(&mut [u8])) {
    let at = out.len();
    out.resize(at + frame_len(len, false), 0);
    let written = write_frame_with(&mut out[at..], opcode, None, len, fill);
    debug_assert!(written.is_ok(), "the buffer was made to fit");
}

/// A payload of sound, as a JSON provider wraps it.
#[derive(Debug)]
pub(super) struct Payload<'a> {
    /// Base64.
    pub(super) base64: Cow<'a, str>,
    /// Milliseconds since the stream began.
    pub(super) timestamp_ms: Option<u64>,
    /// Counts media messages.
    pub(super) chunk: Option<u64>,
    /// Sound of ours that the provider sends back beside the caller's.
    pub(super) is_outbound: bool,
}

/// What the event of a JSON message is.
#[derive(Debug)]
pub(super) enum Envelope<'a> {
    /// `media` with a payload.
    Audio(Payload<'a>),
    /// Anything else: its name, and the object.
    Event(String, Object),
}

/// Opens a message of a provider that wraps all in JSON.
pub(super) fn open(text: &str) -> Result<Envelope<'_>, Malformed> {
    if let Ok(wire) = serde_json::from_str::<MediaMessage<'_>>(text)
        && let Some(payload) = wire.media.payload
        && wire.event.is_some_and(|event| event.0.eq_ignore_ascii_case("media"))
    {
        let is_outbound = wire.media.track.is_some_and(|track| track.0.starts_with("outbound"));
        let (timestamp_ms, chunk) = (wire.media.timestamp, wire.media.chunk);
        return Ok(Envelope::Audio(Payload { base64: payload.0, timestamp_ms, chunk, is_outbound }));
    }
    let object = Object::parse(text)?;
    let event = object.need("?", &["event", "Event"])?;
    if event.eq_ignore_ascii_case("media") {
        return Err(Malformed::Field { event: "media", field: "media.payload" });
    }
    Ok(Envelope::Event(event, object))
}

/// The part of a media message that sound needs; keys come in the spellings `event` and `Event`, the last one counts.
#[derive(Default)]
struct MediaMessage<'a> {
    event: Option<TextWire<'a>>,
    media: Media<'a>,
}

#[derive(Default)]
struct Media<'a> {
    payload: Option<TextWire<'a>>,
    timestamp: Option<u64>,
    chunk: Option<u64>,
    track: Option<TextWire<'a>>,
}

impl<'de> Deserialize<'de> for MediaMessage<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = MediaMessage<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a media message")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut message = MediaMessage::default();
                while let Some(TextWire(key)) = map.next_key()? {
                    match &*key {
                        "event" | "Event" => message.event = Some(map.next_value()?),
                        "media" | "Media" => message.media = map.next_value()?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(message)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for Media<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Media<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the media of a message")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut media = Media::default();
                while let Some(TextWire(key)) = map.next_key()? {
                    match &*key {
                        "payload" | "Payload" => media.payload = Some(map.next_value()?),
                        "timestamp" | "Timestamp" => media.timestamp = map.next_value::<Loose>()?.0,
                        "chunk" | "Chunk" => media.chunk = map.next_value::<Loose>()?.0,
                        "track" => media.track = Some(map.next_value()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(media)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// A whole number, bare or in a string; anything else is none.
struct Loose(Option<u64>);

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl<'de> Visitor<'de> for Number {
            type Value = Loose;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_u64<E>(self, number: u64) -> Result<Loose, E> {
                Ok(Loose(Some(number)))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Loose, E> {
                Ok(Loose(None))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Loose, E> {
                Ok(Loose((number >= 0.0).then_some(number as u64)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Loose, E> {
                Ok(Loose(text.trim().parse().ok()))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Loose, E> {
                Ok(Loose(None))
            }
            fn visit_unit<E>(self) -> Result<Loose, E> {
                Ok(Loose(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Loose(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Loose, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Loose(None))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// A JSON object whose fields are asked for by all the names they go by.
#[derive(Debug, Default)]
pub(super) struct Object(Map<String, Value>);

impl Object {
    /// Reads an object of at most [`EVENT_TEXT_MAX`] octets.
    pub(super) fn parse(text: &str) -> Result<Self, Malformed> {
        if text.len() > EVENT_TEXT_MAX {
            return Err(Malformed::TooLong(text.len()));
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Ok(Object(object)),
            Ok(_) => Err(Malformed::NotAnObject),
            Err(error) => Err(Malformed::Json { line: error.line(), column: error.column() }),
        }
    }

    /// An object of texts.
    pub(super) fn from_texts(texts: BTreeMap<String, String>) -> Self {
        Object(texts.into_iter().map(|(name, text)| (name, Value::String(text))).collect())
    }

    fn get(&self, names: &[&str]) -> Option<&Value> {
        names.iter().find_map(|name| self.0.get(*name)).filter(|value| !value.is_null())
    }

    /// Text, or a number or a truth as text.
    pub(super) fn text(&self, names: &[&str]) -> Option<String> {
        self.get(names).and_then(scalar)
    }

    /// The same, which must be there.
    pub(super) fn need(&self, event: &'static str, names: &[&'static str]) -> Result<String, Malformed> {
        self.text(names).ok_or(Malformed::Field { event, field: names[0] })
    }

    /// A name of a call, a stream or an account; too long a one is cut.
    pub(super) fn id(&self, names: &[&str]) -> String {
        let mut id = self.text(names).unwrap_or_default();
        id.truncate(id.floor_char_boundary(ID_OCTETS_MAX));
        id
    }

    /// A whole number, or the number at the beginning of a text (`128kbps`).
    pub(super) fn number(&self, names: &[&str]) -> Option<u64> {
        match self.get(names)? {
            Value::Number(number) => number.as_u64().or_else(|| number.as_f64().map(|number| number as u64)),
            Value::String(text) => {
                let text = text.trim();
                let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
                text[..end].parse().ok()
            }
            _ => None,
        }
    }

    /// An object inside; an empty one when there is none.
    pub(super) fn object(&self, names: &[&str]) -> Object {
        match self.get(names) {
            Some(Value::Object(object)) => Object(object.clone()),
            _ => Object::default(),
        }
    }

    /// A key press: one of `0`–`9`, `*`, `#`, `A`–`D`.
    pub(super) fn digit(&self) -> Result<char, Malformed> {
        let text = self.need("dtmf", &["digit", "Digit"])?;
        digit(&text)
    }

    /// The fields but those of these names, as far as they fit into [`CUSTOM_MAX`] and [`CUSTOM_OCTETS_MAX`].
    pub(super) fn custom(&self, but: &[&str]) -> BTreeMap<String, String> {
        let (mut custom, mut octets) = (BTreeMap::new(), 0);
        for (name, value) in &self.0 {
            let Some(value) = scalar(value).filter(|_| !but.contains(&name.as_str())) else { continue };
            octets += name.len() + value.len();
            if octets > CUSTOM_OCTETS_MAX || custom.len() == CUSTOM_MAX {
                break;
            }
            custom.insert(name.clone(), value);
        }
        custom
    }
}

/// The key that a text of one character names.
pub(super) fn digit(text: &str) -> Result<char, Malformed> {
    let mut chars = text.trim().chars().map(|c| c.to_ascii_uppercase());
    match (chars.next(), chars.next()) {
        (Some(digit @ ('0'..='9' | '*' | '#' | 'A'..='D')), None) => Ok(digit),
        _ => Err(Malformed::Field { event: "dtmf", field: "digit" }),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// Our marks are named `t` and a serial number.
pub(super) fn serial(name: &str) -> Option<u64> {
    name.strip_prefix('t')?.parse().ok()
}
