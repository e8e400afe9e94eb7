//! Tandem's side of a media stream: it writes what Twilio writes and reads what a bot sends.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::{
    BufferTooShort, Decimal, MarkWire, MessageError, Pen, TextWire, base64_len, mark_name, parse_wire, quoted,
};

/// How a stream is named towards the bot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamIds {
    /// `MZ…`; in every message.
    pub stream_sid: String,
    /// `CA…`
    pub call_sid: String,
    /// `AC…`
    pub account_sid: String,
}

/// Writes the messages of one stream, with its counters.
#[derive(Debug, Clone)]
pub struct StreamWriter {
    ids: StreamIds,
    /// The stream's id as a JSON string, escaped once.
    stream_sid: String,
    sequence: u64,
    chunk: u64,
}

const MEDIA_1: &[u8] = br#"{"event":"media","sequenceNumber":""#;
const MEDIA_2: &[u8] = br#"","streamSid":"#;
const MEDIA_3: &[u8] = br#","media":{"track":"inbound","chunk":""#;
const MEDIA_4: &[u8] = br#"","timestamp":""#;
const MEDIA_5: &[u8] = br#"","payload":""#;
const MEDIA_6: &[u8] = br#""}}"#;
const MEDIA_FIXED: usize =
    MEDIA_1.len() + MEDIA_2.len() + MEDIA_3.len() + MEDIA_4.len() + MEDIA_5.len() + MEDIA_6.len();

impl StreamWriter {
    /// A stream that has not said anything yet.
    pub fn new(ids: StreamIds) -> Self {
        let stream_sid = quoted(&ids.stream_sid);
        StreamWriter { ids, stream_sid, sequence: 0, chunk: 0 }
    }

    /// The first message: no stream yet.
    pub fn connected(&self) -> String {
        r#"{"event":"connected","protocol":"Call","version":"1.0.0"}"#.to_owned()
    }

    /// The second message: what the stream is, with the deployment's own parameters.
    pub fn start(&mut self, custom: &BTreeMap<String, String>) -> String {
        let sequence = self.next();
        let StreamIds { stream_sid, call_sid, account_sid } = &self.ids;
        json!({
            "event": "start", "sequenceNumber": sequence, "streamSid": stream_sid,
            "start": {
                "streamSid": stream_sid, "accountSid": account_sid, "callSid": call_sid, "tracks": ["inbound"],
                "customParameters": custom,
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            },
        })
        .to_string()
    }

    /// The longest media message with so many octets of audio.
    pub fn media_len_max(&self, octets: usize) -> usize {
        MEDIA_FIXED + self.stream_sid.len() + 3 * 20 + base64_len(octets)
    }

    /// The length of the next media message, so that a frame header can be written before it.
    pub fn media_len(&self, timestamp_ms: u64, octets: usize) -> usize {
        let numbers = [self.sequence + 1, self.chunk + 1, timestamp_ms];
        let digits: usize = numbers.iter().map(|number| Decimal::new(*number).as_bytes().len()).sum();
        MEDIA_FIXED + self.stream_sid.len() + digits + base64_len(octets)
    }

    /// Writes one media message of the caller's mu-law audio and returns its length. `timestamp_ms` counts from the start of
    /// the stream. Never allocates.
    ///
    /// # Errors
    /// [`BufferTooShort`]; the counters have not moved then.
    pub fn media(
        &mut self,
        timestamp_ms: u64,
        mulaw: &[u8],
        out: &mut [u8],
    ) -> Result<usize, BufferTooShort> {
        let mut pen = Pen::new(out, self.media_len(timestamp_ms, mulaw.len()))?;
        self.sequence += 1;
        self.chunk += 1;
        pen.put(MEDIA_1);
        pen.put(Decimal::new(self.sequence).as_bytes());
        pen.put(MEDIA_2);
        pen.put(self.stream_sid.as_bytes());
        pen.put(MEDIA_3);
        pen.put(Decimal::new(self.chunk).as_bytes());
        pen.put(MEDIA_4);
        pen.put(Decimal::new(timestamp_ms).as_bytes());
        pen.put(MEDIA_5);
        pen.put_base64(mulaw);
        pen.put(MEDIA_6);
        Ok(pen.at)
    }

    /// The caller pressed a key.
    pub fn dtmf(&mut self, digit: char) -> String {
        let sequence = self.next();
        let digit = digit.to_string();
        json!({"event": "dtmf", "sequenceNumber": sequence, "streamSid": self.ids.stream_sid,
            "dtmf": {"track": "inbound_track", "digit": digit}})
        .to_string()
    }

    /// The audio before the bot's mark was played, or cleared.
    pub fn mark(&mut self, name: &str) -> String {
        let sequence = self.next();
        json!({"event": "mark", "sequenceNumber": sequence, "streamSid": self.ids.stream_sid,
            "mark": {"name": name}})
        .to_string()
    }

    /// The last message: the stream is over.
    pub fn stop(&mut self) -> String {
        let sequence = self.next();
        json!({"event": "stop", "sequenceNumber": sequence, "streamSid": self.ids.stream_sid,
            "stop": {"accountSid": self.ids.account_sid, "callSid": self.ids.call_sid}})
        .to_string()
    }

    fn next(&mut self) -> String {
        self.sequence += 1;
        self.sequence.to_string()
    }
}

/// What a bot sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromBot<'a> {
    /// Audio to play after what was sent before: base64 of mu-law, any length; see [`super::decode_payload`].
    Media {
        /// Base64.
        payload: Cow<'a, str>,
    },
    /// Echo this when the audio before it was played.
    Mark {
        /// Comes back in the echo.
        name: String,
    },
    /// Drop all audio that has not been played, and echo all pending marks.
    Clear,
}

#[derive(Deserialize)]
struct FromBotWire<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    media: Option<PayloadWire<'a>>,
    #[serde(borrow)]
    mark: Option<MarkWire<'a>>,
}

#[derive(Deserialize)]
struct PayloadWire<'a> {
    #[serde(borrow)]
    payload: Option<TextWire<'a>>,
}

impl<'a> FromBot<'a> {
    /// Reads a text frame of the bot's; `None` for an event that is not known, to be counted and ignored. Media is borrowed from
    /// the text. A wrong `streamSid` is not looked at: a connection has one stream.
    ///
    /// # Errors
    /// [`MessageError`]
    pub fn parse(text: &'a str) -> Result<Option<Self>, MessageError> {
        let wire: FromBotWire<'a> = parse_wire(text)?;
        Ok(Some(match &*wire.event {
            "media" => {
                let payload = wire.media.and_then(|media| media.payload);
                let missing = MessageError::Missing { event: "media", field: "media.payload" };
                let TextWire(payload) = payload.ok_or(missing)?;
                FromBot::Media { payload }
            }
            "mark" => FromBot::Mark { name: mark_name(wire.mark)? },
            "clear" => FromBot::Clear,
            _ => return Ok(None),
        }))
    }
}
