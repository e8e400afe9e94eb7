//! The bot's side of a media stream, for tests and tools: it reads what Twilio writes and writes what a bot sends.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::{
    BufferTooShort, MarkWire, MessageError, NumberWire, Pen, TextWire, base64_len, mark_name, parse_wire,
    quoted,
};

/// What the bot is told when a stream starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartInfo {
    /// `MZ…`; the bot puts it into all it sends.
    pub stream_sid: String,
    /// `CA…`
    pub call_sid: String,
    /// `AC…`
    pub account_sid: String,
    /// `audio/x-mulaw`
    pub encoding: String,
    /// Samples a second.
    pub sample_rate: u64,
    /// What the deployment adds.
    pub custom: BTreeMap<String, String>,
}

/// What Twilio, or Tandem in its place, sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToBot<'a> {
    /// The first message.
    Connected,
    /// The stream begins.
    Start(StartInfo),
    /// The caller's audio.
    Media {
        /// Counts media messages from 1.
        chunk: u64,
        /// Milliseconds since the stream began.
        timestamp_ms: u64,
        /// Base64 of mu-law; see [`super::decode_payload`].
        payload: Cow<'a, str>,
    },
    /// The caller pressed a key.
    Dtmf {
        /// `0`–`9`, `*`, `#`, `A`–`D`.
        digit: String,
    },
    /// The audio before this mark was played, or cleared.
    Mark {
        /// As the bot named it.
        name: String,
    },
    /// The stream is over.
    Stop,
}

#[derive(Deserialize)]
struct ToBotWire<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    start: Option<StartWire<'a>>,
    #[serde(borrow)]
    media: Option<MediaWire<'a>>,
    #[serde(borrow)]
    dtmf: Option<DtmfWire<'a>>,
    #[serde(borrow)]
    mark: Option<MarkWire<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StartWire<'a> {
    stream_sid: String,
    #[serde(default)]
    call_sid: String,
    #[serde(default)]
    account_sid: String,
    #[serde(default)]
    custom_parameters: BTreeMap<String, String>,
    #[serde(borrow)]
    media_format: Option<FormatWire<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FormatWire<'a> {
    encoding: String,
    #[serde(borrow)]
    sample_rate: NumberWire<'a>,
}

#[derive(Deserialize)]
struct MediaWire<'a> {
    #[serde(borrow)]
    chunk: Option<NumberWire<'a>>,
    #[serde(borrow)]
    timestamp: Option<NumberWire<'a>>,
    #[serde(borrow)]
    payload: Option<TextWire<'a>>,
}

#[derive(Deserialize)]
struct DtmfWire<'a> {
    #[serde(borrow)]
    digit: Option<TextWire<'a>>,
}

impl<'a> ToBot<'a> {
    /// Reads a text frame from Twilio; `None` for an event that is not known.
    ///
    /// # Errors
    /// [`MessageError`]
    pub fn parse(text: &'a str) -> Result<Option<Self>, MessageError> {
        let wire: ToBotWire<'a> = parse_wire(text)?;
        Ok(Some(match &*wire.event {
            "connected" => ToBot::Connected,
            "start" => {
                let start = wire.start.ok_or(MessageError::Missing { event: "start", field: "start" })?;
                let format = start
                    .media_format
                    .ok_or(MessageError::Missing { event: "start", field: "start.mediaFormat" })?;
                ToBot::Start(StartInfo {
                    stream_sid: start.stream_sid,
                    call_sid: start.call_sid,
                    account_sid: start.account_sid,
                    encoding: format.encoding,
                    sample_rate: format.sample_rate.value().unwrap_or_default(),
                    custom: start.custom_parameters,
                })
            }
            "media" => {
                let missing = |field| MessageError::Missing { event: "media", field };
                let media = wire.media.ok_or(missing("media"))?;
                let number =
                    |wire: Option<NumberWire<'_>>| wire.and_then(|wire| wire.value()).unwrap_or_default();
                let TextWire(payload) = media.payload.ok_or(missing("media.payload"))?;
                ToBot::Media { chunk: number(media.chunk), timestamp_ms: number(media.timestamp), payload }
            }
            "dtmf" => {
                let digit = wire.dtmf.and_then(|dtmf| dtmf.digit);
                let missing = MessageError::Missing { event: "dtmf", field: "dtmf.digit" };
                ToBot::Dtmf { digit: digit.ok_or(missing)?.0.into_owned() }
            }
            "mark" => ToBot::Mark { name: mark_name(wire.mark)? },
            "stop" => ToBot::Stop,
            _ => return Ok(None),
        }))
    }
}

/// Writes what a bot sends.
#[derive(Debug, Clone)]
pub struct BotWriter {
    stream_sid: String,
}

const MEDIA_1: &[u8] = br#"{"event":"media","streamSid":"#;
const MEDIA_2: &[u8] = br#","media":{"payload":""#;
const MEDIA_3: &[u8] = br#""}}"#;

impl BotWriter {
    /// A bot on this stream.
    pub fn new(stream_sid: &str) -> Self {
        BotWriter { stream_sid: quoted(stream_sid) }
    }

    /// The length of a media message with so many octets of audio.
    pub fn media_len(&self, octets: usize) -> usize {
        MEDIA_1.len() + MEDIA_2.len() + MEDIA_3.len() + self.stream_sid.len() + base64_len(octets)
    }

    /// Writes one media message of mu-law audio and returns its length. Never allocates.
    ///
    /// # Errors
    /// [`BufferTooShort`]
    pub fn media(&self, mulaw: &[u8], out: &mut [u8]) -> Result<usize, BufferTooShort> {
        let mut pen = Pen::new(out, self.media_len(mulaw.len()))?;
        pen.put(MEDIA_1);
        pen.put(self.stream_sid.as_bytes());
        pen.put(MEDIA_2);
        pen.put_base64(mulaw);
        pen.put(MEDIA_3);
        Ok(pen.at)
    }

    /// Asks for an echo when the audio before it was played.
    pub fn mark(&self, name: &str) -> String {
        format!(r#"{{"event":"mark","streamSid":{},"mark":{}}}"#, self.stream_sid, json!({ "name": name }))
    }

    /// Drops what has not been played.
    pub fn clear(&self) -> String {
        format!(r#"{{"event":"clear","streamSid":{}}}"#, self.stream_sid)
    }
}
