//! Scripted providers, as strict as the real ones: they read what we write, play it on a clock, and echo what they are asked to.

use std::collections::VecDeque;

use serde_json::{Value, json};
use tandem_stream::provider::{Encoding, MediaFormat, Provider};
use tandem_stream::websocket::{FrameReader, Message, Role};

/// What waits to be played.
enum Item {
    Sound(Vec<u8>),
    Mark(String),
}

/// A provider's side of one call, started in one format.
pub(crate) struct Peer {
    name: &'static str,
    format: MediaFormat,
    reader: FrameReader,
    queue: VecDeque<Item>,
    /// What the caller has heard.
    pub(crate) heard: Vec<u8>,
    /// Octets of sound in each message.
    pub(crate) messages: Vec<usize>,
    /// Most milliseconds that ever waited.
    pub(crate) waited_ms: usize,
    /// Clears received.
    pub(crate) clears: usize,
    /// Control words of other kinds.
    pub(crate) words: Vec<String>,
    debt: usize,
}

impl Peer {
    pub(crate) fn new(provider: &Provider, format: MediaFormat) -> Self {
        Peer {
            name: provider.name,
            format,
            reader: FrameReader::new(Role::Client),
            queue: VecDeque::new(),
            heard: Vec::new(),
            messages: Vec::new(),
            waited_ms: 0,
            clears: 0,
            words: Vec::new(),
            debt: 0,
        }
    }

    /// The messages before the first sound.
    pub(crate) fn opening(&self) -> Vec<String> {
        let hz = self.format.rate.hz();
        let texts = match self.name {
            "twilio" => vec![
                json!({"event": "connected", "protocol": "Call", "version": "1.0.0"}),
                json!({"event": "start", "sequenceNumber": "1", "streamSid": "MZ0001", "start": {
                    "streamSid": "MZ0001", "accountSid": "AC0001", "callSid": "CA0001", "tracks": ["inbound"],
                    "customParameters": {"ctx": "ctx-1"},
                    "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}}}),
            ],
            "vonage" => {
                vec![json!({"event": "websocket:connected", "content-type": format!("audio/l16;rate={hz}"),
                "ctx": "ctx-1"})]
            }
            "exotel" => vec![
                json!({"event": "connected"}),
                json!({"event": "start", "sequence_number": "1", "stream_sid": "MZ0001", "start": {
                    "stream_sid": "MZ0001", "call_sid": "CA0001", "account_sid": "AC0001", "from": "+919800000001",
                    "to": "+918000000002", "custom_parameters": {"ctx": "ctx-1"},
                    "media_format": {"encoding": "audio/x-raw", "sample_rate": hz.to_string(), "bit_rate": "128kbps"}}}),
            ],
            "asterisk" => {
                vec![json!({"event": "MEDIA_START", "connection_id": "MZ0001", "channel": "WebSocket/x-1",
                "channel_id": "CA0001", "format": self.asterisk_format(), "optimal_frame_size": self.format.frame_octets(),
                "ptime": 20, "channel_variables": {"ctx": "ctx-1"}})]
            }
            "telnyx" => vec![
                json!({"event": "connected", "version": "1.0.0"}),
                json!({"event": "start", "sequence_number": "1", "stream_id": "MZ0001", "start": {
                    "call_control_id": "CA0001", "client_state": "Y3R4LTE=", "from": "+1", "to": "+2", "user_id": "AC0001",
                    "custom_parameters": {"ctx": "ctx-1"},
                    "media_format": {"encoding": self.telnyx_format(), "sample_rate": hz, "channels": 1}}}),
            ],
            "plivo" => vec![json!({"sequenceNumber": 0, "event": "start", "start": {"callId": "CA0001",
                "streamId": "MZ0001", "accountId": "AC0001", "tracks": ["inbound"],
                "mediaFormat": {"encoding": self.plivo_format(), "sampleRate": hz}}, "extra_headers": "{ctx: ctx-1}"})],
            other => panic!("no script for {other}"),
        };
        texts.iter().map(Value::to_string).collect()
    }

    fn asterisk_format(&self) -> String {
        match self.format.encoding {
            Encoding::Pcmu => "ulaw".into(),
            Encoding::Pcma => "alaw".into(),
            Encoding::G722 => "g722".into(),
            Encoding::L16 if self.format.rate.hz() == 8_000 => "slin".into(),
            Encoding::L16 => format!("slin{}", self.format.rate.hz() / 1_000),
        }
    }

    fn telnyx_format(&self) -> &'static str {
        match self.format.encoding {
            Encoding::Pcmu => "PCMU",
            Encoding::Pcma => "PCMA",
            Encoding::G722 => "G722",
            Encoding::L16 => "L16",
        }
    }

    fn plivo_format(&self) -> &'static str {
        if self.format.encoding == Encoding::L16 { "audio/x-l16" } else { "audio/x-mulaw" }
    }

    /// Reads what we wrote; breaks on anything that the real one would choke on.
    pub(crate) fn receive(&mut self, mut wire: &[u8]) {
        while !wire.is_empty() {
            let taken = self.reader.push(wire);
            wire = &wire[taken..];
            let mut got = Vec::new();
            while let Some(message) = self.reader.poll_message().expect("sound frames") {
                got.push(match message {
                    Message::Text(text) => Ok(text.to_owned()),
                    Message::Binary(octets) => Err(octets.to_owned()),
                    other => panic!("{other:?}"),
                });
            }
            for message in got {
                match message {
                    Ok(text) => self.text(&text),
                    Err(octets) => {
                        assert!(matches!(self.name, "vonage" | "asterisk"), "{} takes no binary", self.name);
                        self.sound(octets);
                    }
                }
            }
        }
    }

    fn text(&mut self, text: &str) {
        let message: Value = serde_json::from_str(text).expect("JSON");
        let word = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
        let id = if self.name == "plivo" { &message["streamId"] } else { &message["streamSid"] };
        match self.name {
            "twilio" | "exotel" | "plivo" => assert_eq!(id, "MZ0001"),
            _ => {}
        }
        if self.name == "exotel" {
            assert_eq!(message["stream_sid"], "MZ0001");
        }
        match (self.name, word("event").as_str(), word("action").as_str(), word("command").as_str()) {
            ("twilio" | "exotel" | "telnyx", "media", ..) | ("plivo", "playAudio", ..) => {
                let media = &message["media"];
                if self.name == "plivo" {
                    assert_eq!(media["contentType"], self.plivo_format());
                    assert_eq!(media["sampleRate"], self.format.rate.hz());
                }
                if self.name == "exotel" {
                    let number =
                        |name: &str| media[name].as_str().and_then(|text| text.parse::<usize>().ok());
                    assert_eq!(number("chunk"), Some(self.messages.len() + 1));
                    let before: usize = self.messages.iter().sum();
                    assert_eq!(number("timestamp"), Some(before / self.format.octets_per_ms()));
                }
                let payload = media["payload"].as_str().expect("a payload");
                let octets = base64_simd::STANDARD.decode_to_vec(payload).expect("base64");
                self.sound(octets);
            }
            ("twilio" | "exotel" | "telnyx", "mark", ..) => {
                self.mark(message["mark"]["name"].as_str().expect("a name"));
            }
            ("plivo", "checkpoint", ..) => self.mark(&word("name")),
            ("vonage", _, "notify", _) => self.mark(message["payload"]["id"].as_str().expect("an id")),
            ("asterisk", _, _, "MARK_MEDIA") => self.mark(&word("correlation_id")),
            ("twilio" | "exotel" | "telnyx", "clear", ..)
            | ("plivo", "clearAudio", ..)
            | ("vonage", _, "clear", _)
            | ("asterisk", _, _, "FLUSH_MEDIA") => self.clear(),
            ("asterisk", _, _, other) => self.words.push(other.to_owned()),
            _ => panic!("{} does not know {text}", self.name),
        }
    }

    fn mark(&mut self, name: &str) {
        self.queue.push_back(Item::Mark(name.to_owned()));
    }

    fn sound(&mut self, octets: Vec<u8>) {
        let (len, frame) = (octets.len(), self.format.frame_octets());
        match self.name {
            "vonage" => assert_eq!(len, frame, "unexpected frame size: Vonage closes with 1006"),
            "exotel" => assert!(len % 320 == 0 && len <= 100_000, "{len} octets click"),
            "asterisk" => assert!(len % frame == 0 && len <= 65_500, "{len} octets"),
            "telnyx" => assert!(len >= frame, "{len} octets are less than 20 ms"),
            _ => assert!(len > 0),
        }
        self.messages.push(len);
        self.queue.push_back(Item::Sound(octets));
        let waits: usize =
            self.queue.iter().map(|item| if let Item::Sound(sound) = item { sound.len() } else { 0 }).sum();
        self.waited_ms = self.waited_ms.max(waits / self.format.octets_per_ms());
    }

    fn clear(&mut self) {
        self.clears += 1;
        self.debt = 0;
        self.queue.retain(|item| matches!(item, Item::Mark(_)));
    }

    /// Plays so many milliseconds; returns the echoes that fall due.
    pub(crate) fn play(&mut self, ms: usize) -> Vec<String> {
        self.debt += ms * self.format.octets_per_ms();
        let mut echoes = Vec::new();
        while let Some(item) = self.queue.front_mut() {
            match item {
                Item::Mark(name) => {
                    echoes.push(echo(self.name, name));
                    self.queue.pop_front();
                }
                Item::Sound(sound) => {
                    let len = sound.len().min(self.debt);
                    self.heard.extend(sound.drain(..len));
                    self.debt -= len;
                    if !sound.is_empty() {
                        return echoes;
                    }
                    self.queue.pop_front();
                }
            }
        }
        // Nothing to play: silence.
        self.debt = 0;
        echoes
    }

    /// The caller's sound as this provider sends it; `Err` is binary.
    pub(crate) fn media(&self, chunk: u64, timestamp_ms: u64, sound: &[u8]) -> Result<String, Vec<u8>> {
        if matches!(self.name, "vonage" | "asterisk") {
            return Err(sound.to_vec());
        }
        let payload = base64_simd::STANDARD.encode_to_string(sound);
        let (chunk, timestamp) = (chunk.to_string(), timestamp_ms.to_string());
        Ok(json!({"event": "media", "media":
            {"track": "inbound", "chunk": chunk, "timestamp": timestamp, "payload": payload}})
        .to_string())
    }

    /// A key press.
    pub(crate) fn dtmf(&self, digit: char) -> String {
        match self.name {
            "vonage" => json!({"event": "websocket:dtmf", "digit": digit, "duration": 260}),
            "asterisk" => json!({"event": "DTMF_END", "channel_id": "CA0001", "digit": digit}),
            _ => json!({"event": "dtmf", "dtmf": {"digit": digit, "duration": "100"}}),
        }
        .to_string()
    }

    /// What this provider says of a clear.
    pub(crate) fn cleared(&self) -> Option<String> {
        match self.name {
            "vonage" => Some(json!({"event": "websocket:cleared"}).to_string()),
            "plivo" => Some(json!({"event": "clearedAudio", "streamId": "MZ0001"}).to_string()),
            _ => None,
        }
    }
}

/// The echo of a mark.
pub(crate) fn echo(provider: &str, name: &str) -> String {
    match provider {
        "vonage" => json!({"event": "websocket:notify", "payload": {"id": name}}),
        "plivo" => json!({"event": "playedStream", "streamId": "MZ0001", "name": name}),
        "asterisk" => json!({"event": "MEDIA_MARK_PROCESSED", "correlation_id": name}),
        _ => json!({"event": "mark", "streamSid": "MZ0001", "mark": {"name": name}}),
    }
    .to_string()
}
