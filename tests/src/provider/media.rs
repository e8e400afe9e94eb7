//! The media socket of a call: what each provider says on it, what it takes, and the playout behind it.
//!
//! A sound that is heard has been played: what waits when a clear comes is never heard, and marks are echoed when what was
//! before them has been played. What a provider would not let pass is written down, and ends the call as it would there.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value as Json, json};
use tandem_audio::g711;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use uuid::Uuid;

use super::{Call, Desk, Provider};

/// A provider's clock.
const TICK: Duration = Duration::from_millis(20);
/// Exotel's messages hold so many ticks.
const EXOTEL_TICKS: usize = 5;
/// Providers give a handshake so long.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Asterisk's outbound audio starves when nothing has come by then.
const FIRST_FRAME_WITHIN: Duration = Duration::from_millis(100);

/// How sound is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// µ-law.
    Ulaw,
    /// Linear, little-endian.
    L16,
}

/// Media that a document asks for.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    /// The WebSocket's; of AudioSocket empty.
    pub(crate) url: String,
    /// Of the upgrade request.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// Repeated at the start.
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) encoding: Encoding,
    pub(crate) rate_hz: u32,
    /// Where news of it go.
    pub(crate) callback: Option<String>,
    /// The call goes on when it ends.
    pub(crate) keeps_call: bool,
    /// AudioSocket: where to, and as whom.
    pub(crate) audiosocket: Option<(SocketAddr, Uuid)>,
}

impl Stream {
    pub(crate) fn new(url: &str, encoding: Encoding, rate_hz: u32) -> Self {
        Self {
            url: url.to_owned(),
            headers: Vec::new(),
            parameters: BTreeMap::new(),
            encoding,
            rate_hz,
            callback: None,
            keeps_call: false,
            audiosocket: None,
        }
    }
}

/// What a call says and has heard.
#[derive(Debug, Default)]
pub(crate) struct Media {
    pub(crate) rate_hz: u32,
    pub(crate) to_say: VecDeque<i16>,
    pub(crate) keys: VecDeque<char>,
    pub(crate) heard: Vec<i16>,
    pub(crate) marks: Vec<String>,
    pub(crate) clears: usize,
    pub(crate) violations: Vec<String>,
}

/// How a stream is ended from our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// As the provider does.
    Politely,
    /// The connection is gone.
    Abruptly,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// The target closed.
    Closed,
    /// We did.
    Stopped,
    /// The target broke a rule, and we closed.
    Broken,
}

impl Left {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed by the target",
            Self::Stopped => "stopped",
            Self::Broken => "closed for a violation",
        }
    }
}

/// A connection.
pub(crate) enum Socket {
    WebSocket(Box<WebSocketStream<MaybeTlsStream<TcpStream>>>),
    AudioSocket(TcpStream),
}

/// Dials.
pub(crate) async fn connect(call: &Call, stream: &Stream) -> Result<Socket, String> {
    call.media().rate_hz = stream.rate_hz;
    let connecting = async {
        if let Some((address, uuid)) = stream.audiosocket {
            let mut socket = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
            socket.set_nodelay(true).map_err(|error| error.to_string())?;
            let id = [&[1, 0, 16], uuid.as_bytes().as_slice()].concat();
            socket.write_all(&id).await.map_err(|error| error.to_string())?;
            return Ok(Socket::AudioSocket(socket));
        }
        let mut request = stream.url.as_str().into_client_request().map_err(|error| error.to_string())?;
        for (name, value) in &stream.headers {
            let value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
        let (socket, _) =
            tokio_tungstenite::connect_async(request).await.map_err(|error| error.to_string())?;
        Ok(Socket::WebSocket(Box::new(socket)))
    };
    tokio::time::timeout(CONNECT_WITHIN, connecting).await.unwrap_or(Err("no answer in 10 s".to_owned()))
}

/// What waits at the provider.
enum Item {
    Sound(VecDeque<i16>),
    Mark(String),
}

/// One stream while it runs.
struct Talk<'a> {
    provider: Provider,
    account: &'a str,
    call: &'a Call,
    stream: &'a Stream,
    /// The stream's id.
    id: String,
    ticks: usize,
    messages: u64,
    chunks: u64,
    queue: VecDeque<Item>,
    out: Vec<Message>,
}

/// Talks until either side ends it.
pub(crate) async fn talk(
    desk: &Desk,
    call: &Call,
    stream: &Stream,
    socket: Socket,
    stopped: oneshot::Receiver<Stop>,
) -> Left {
    let mut talk = Talk {
        provider: desk.settings.provider,
        account: &desk.settings.account,
        call,
        stream,
        id: format!("MZ{}", Uuid::new_v4().simple()),
        ticks: 0,
        messages: 0,
        chunks: 0,
        queue: VecDeque::new(),
        out: Vec::new(),
    };
    match socket {
        Socket::WebSocket(socket) => talk.websocket(*socket, stopped).await,
        Socket::AudioSocket(socket) => talk.audiosocket(socket, stopped).await,
    }
}

impl Talk<'_> {
    async fn websocket(
        &mut self,
        socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
        mut stopped: oneshot::Receiver<Stop>,
    ) -> Left {
        let (mut write, mut read) = socket.split();
        let mut clock = interval(TICK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
        self.open();
        loop {
            for message in std::mem::take(&mut self.out) {
                if write.send(message).await.is_err() {
                    return Left::Closed;
                }
            }
            tokio::select! {
                stop = &mut stopped => {
                    if stop != Ok(Stop::Abruptly) {
                        self.stop();
                        for message in std::mem::take(&mut self.out) {
                            let _ = write.send(message).await;
                        }
                        let _ = write.send(Message::Close(None)).await;
                        let _ = tokio::time::timeout(Duration::from_secs(1), read.next()).await;
                    }
                    return Left::Stopped;
                }
                _ = clock.tick() => self.tick(),
                message = read.next() => {
                    let taken = match message {
                        Some(Ok(Message::Text(text))) => self.text(&text),
                        Some(Ok(Message::Binary(octets))) => self.binary(&octets),
                        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(()),
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return Left::Closed,
                    };
                    if let Err(violation) = taken {
                        self.call.media().violations.push(violation);
                        // Not a word: the connection is closed with 1006.
                        return Left::Broken;
                    }
                }
            }
        }
    }

    fn say(&mut self, text: &Json) {
        self.messages += 1;
        self.out.push(Message::text(text.to_string()));
    }

    fn open(&mut self) {
        let course = self.call.course();
        let (call, from, to) = (course.id.clone(), course.from.clone(), course.to.clone());
        drop(course);
        let (id, account, hz) = (self.id.clone(), self.account.to_owned(), self.stream.rate_hz);
        let parameters = json!(self.stream.parameters);
        match self.provider {
            Provider::Twilio => {
                self.say(&json!({ "event": "connected", "protocol": "Call", "version": "1.0.0" }));
                self.messages = 0;
                self.say(&json!({ "event": "start", "sequenceNumber": "1", "streamSid": id, "start": {
                    "streamSid": id, "accountSid": account, "callSid": call, "tracks": ["inbound"],
                    "customParameters": parameters,
                    "mediaFormat": { "encoding": "audio/x-mulaw", "sampleRate": 8_000, "channels": 1 } } }));
            }
            Provider::Vonage => {
                let mut connected = json!({ "event": "websocket:connected",
                    "content-type": format!("audio/l16;rate={hz}") });
                for (name, value) in &self.stream.parameters {
                    connected[name] = json!(value);
                }
                self.say(&connected);
            }
            Provider::Exotel => {
                self.say(&json!({ "event": "connected" }));
                self.messages = 0;
                self.say(&json!({ "event": "start", "sequence_number": "1", "stream_sid": id, "start": {
                    "stream_sid": id, "call_sid": call, "account_sid": account, "from": from, "to": to,
                    "custom_parameters": parameters, "media_format": { "encoding": "audio/x-raw",
                    "sample_rate": hz.to_string(), "bit_rate": "16" } } }));
            }
            Provider::Telnyx => {
                self.say(&json!({ "event": "connected", "version": "1.0.0" }));
                let state = self.call.course().extra.get("client_state").cloned();
                self.say(&json!({ "event": "start", "sequence_number": "1", "stream_id": id, "start": {
                    "call_control_id": call, "client_state": state, "from": from, "to": to, "user_id": account,
                    "media_format": { "encoding": "PCMU", "sample_rate": hz, "channels": 1 } } }));
            }
            Provider::Plivo => {
                let kind =
                    if self.stream.encoding == Encoding::L16 { "audio/x-l16" } else { "audio/x-mulaw" };
                let extra: Vec<String> =
                    self.stream.parameters.iter().map(|(name, value)| format!("{name}: {value}")).collect();
                self.say(
                    &json!({ "sequenceNumber": 0, "event": "start", "start": { "callId": call, "streamId": id,
                    "accountId": account, "tracks": ["inbound"],
                    "mediaFormat": { "encoding": kind, "sampleRate": hz } },
                    "extra_headers": format!("{{{}}}", extra.join(", ")) }),
                );
            }
            Provider::Asterisk => {}
        }
    }

    fn stop(&mut self) {
        let number = (self.messages + 1).to_string();
        let (id, account, call) = (self.id.clone(), self.account.to_owned(), self.call.id().to_owned());
        match self.provider {
            Provider::Twilio => self
                .say(&json!({ "event": "stop", "sequenceNumber": number, "streamSid": id,
                "stop": { "accountSid": account, "callSid": call } })),
            Provider::Exotel => self
                .say(&json!({ "event": "stop", "sequence_number": number, "stream_sid": id,
                "stop": { "call_sid": call, "account_sid": account, "reason": "callended" } })),
            Provider::Telnyx => self
                .say(&json!({ "event": "stop", "sequence_number": number, "stream_id": id,
                "stop": { "call_control_id": call } })),
            // Their sockets just close.
            Provider::Vonage | Provider::Plivo | Provider::Asterisk => {}
        }
    }

    /// Samples of a tick.
    fn tick_samples(&self) -> usize {
        self.stream.rate_hz as usize / 50
    }

    fn tick(&mut self) {
        self.ticks += 1;
        let ticks = if self.provider == Provider::Exotel { EXOTEL_TICKS } else { 1 };
        if self.ticks.is_multiple_of(ticks) {
            let sound = self.next_sound(ticks);
            self.speak(&sound);
        }
        let key = self.call.media().keys.pop_front();
        if let Some(key) = key {
            self.press(key);
        }
        for echo in self.play() {
            self.say(&echo);
        }
    }

    fn next_sound(&self, ticks: usize) -> Vec<i16> {
        let mut media = self.call.media();
        (0..ticks * self.tick_samples()).map(|_| media.to_say.pop_front().unwrap_or(0)).collect()
    }

    fn octets(&self, sound: &[i16]) -> Vec<u8> {
        match self.stream.encoding {
            Encoding::Ulaw => sound.iter().map(|sample| g711::ulaw_from_linear(*sample)).collect(),
            Encoding::L16 => sound.iter().flat_map(|sample| sample.to_le_bytes()).collect(),
        }
    }

    fn samples(&self, octets: &[u8]) -> VecDeque<i16> {
        match self.stream.encoding {
            Encoding::Ulaw => octets.iter().map(|code| g711::linear_from_ulaw(*code)).collect(),
            Encoding::L16 => octets.chunks_exact(2).map(|two| i16::from_le_bytes([two[0], two[1]])).collect(),
        }
    }

    fn speak(&mut self, sound: &[i16]) {
        let octets = self.octets(sound);
        self.chunks += 1;
        let chunk = self.chunks.to_string();
        let length_ms = sound.len() as u64 * 1_000 / u64::from(self.stream.rate_hz);
        let payload = STANDARD.encode(&octets);
        let (id, number) = (self.id.clone(), (self.messages + 1).to_string());
        let (began, over) = ((self.chunks - 1) * length_ms, self.chunks * length_ms);
        match self.provider {
            Provider::Twilio => self.say(&json!({ "event": "media", "sequenceNumber": number, "streamSid": id,
                "media": { "track": "inbound", "chunk": chunk, "timestamp": over.to_string(), "payload": payload } })),
            Provider::Exotel => self.say(&json!({ "event": "media", "sequence_number": number, "stream_sid": id,
                "media": { "chunk": chunk, "timestamp": began.to_string(), "payload": payload } })),
            Provider::Telnyx => self.say(&json!({ "event": "media", "sequence_number": number, "stream_id": id,
                "media": { "track": "inbound", "chunk": chunk, "timestamp": began.to_string(), "payload": payload } })),
            Provider::Plivo => self.say(&json!({ "sequenceNumber": self.messages + 1, "event": "media", "streamId": id,
                "media": { "track": "inbound", "timestamp": began.to_string(), "chunk": self.chunks,
                "payload": payload } })),
            Provider::Vonage => self.out.push(Message::binary(octets)),
            Provider::Asterisk => {}
        }
    }

    fn press(&mut self, key: char) {
        let key = key.to_string();
        let (id, number) = (self.id.clone(), (self.messages + 1).to_string());
        let text = match self.provider {
            Provider::Vonage => json!({ "event": "websocket:dtmf", "digit": key, "duration": 260 }),
            Provider::Twilio => json!({ "event": "dtmf", "sequenceNumber": number, "streamSid": id,
                "dtmf": { "track": "inbound_track", "digit": key } }),
            Provider::Exotel => json!({ "event": "dtmf", "sequence_number": number, "stream_sid": id,
                "dtmf": { "digit": key, "duration": "100" } }),
            Provider::Telnyx => json!({ "event": "dtmf", "sequence_number": number, "stream_id": id,
                "dtmf": { "digit": key } }),
            Provider::Plivo => json!({ "event": "dtmf", "streamId": id,
                "dtmf": { "track": "inbound", "digit": key } }),
            Provider::Asterisk => return,
        };
        self.say(&text);
    }

    /// Plays a tick; the echoes that fall due.
    fn play(&mut self) -> Vec<Json> {
        let (provider, id) = (self.provider, self.id.clone());
        let mut left = self.tick_samples();
        let mut echoes = Vec::new();
        let mut media = self.call.media();
        while let Some(item) = self.queue.front_mut() {
            match item {
                Item::Mark(name) => {
                    echoes.push(echo(provider, &id, name));
                    self.queue.pop_front();
                }
                Item::Sound(_) if left == 0 => break,
                Item::Sound(sound) => {
                    let count = left.min(sound.len());
                    media.heard.extend(sound.drain(..count));
                    left -= count;
                    if sound.is_empty() {
                        self.queue.pop_front();
                    }
                }
            }
        }
        echoes
    }

    fn binary(&mut self, octets: &[u8]) -> Result<(), String> {
        if self.provider != Provider::Vonage {
            return Err("a binary message where only text is taken".to_owned());
        }
        let (size, required) = (octets.len() / 2, self.tick_samples());
        if octets.len() != 2 * required {
            return Err(format!("unexpected frame size {size}, when required {required}"));
        }
        self.queue.push_back(Item::Sound(self.samples(octets)));
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), String> {
        let message: Json = serde_json::from_str(text).map_err(|_| format!("no JSON: {text}"))?;
        let word = |name: &str| message[name].as_str().unwrap_or_default();
        let provider = self.provider;
        let id_name = match provider {
            Provider::Twilio => "streamSid",
            Provider::Exotel => "stream_sid",
            Provider::Plivo => "streamId",
            _ => "",
        };
        if !id_name.is_empty() && word(id_name) != self.id {
            return Err(format!("{id_name} is missing or another stream's: {text}"));
        }
        match (provider, word("event"), word("action")) {
            (Provider::Twilio | Provider::Exotel | Provider::Telnyx, "media", _)
            | (Provider::Plivo, "playAudio", _) => self.sound(&message["media"]),
            (Provider::Twilio | Provider::Exotel | Provider::Telnyx, "mark", _) => {
                self.mark(message["mark"]["name"].as_str().ok_or("a mark without a name")?)
            }
            (Provider::Plivo, "checkpoint", _) => {
                self.mark(message["name"].as_str().ok_or("a checkpoint without a name")?)
            }
            (Provider::Vonage, _, "notify") => {
                let payload = message.get("payload").ok_or("a notify without a payload")?;
                self.mark(payload["id"].as_str().unwrap_or_default())
            }
            (Provider::Twilio | Provider::Exotel | Provider::Telnyx, "clear", _)
            | (Provider::Plivo, "clearAudio", _)
            | (Provider::Vonage, _, "clear") => {
                self.clear();
                Ok(())
            }
            _ => Err(format!("an unknown message: {text}")),
        }
    }

    fn sound(&mut self, media: &Json) -> Result<(), String> {
        let payload = media["payload"].as_str().ok_or("media without a payload")?;
        let octets = STANDARD.decode(payload).map_err(|_| "a payload that is no Base64")?;
        match self.provider {
            _ if octets.is_empty() => return Err("an empty payload".to_owned()),
            Provider::Exotel if octets.len() % 320 != 0 || octets.len() > 100_000 => {
                return Err(format!("{} octets are no multiple of 320 up to 100 000", octets.len()));
            }
            Provider::Telnyx if octets.len() < self.tick_samples() => {
                return Err(format!("{} octets are less than 20 ms", octets.len()));
            }
            Provider::Plivo => {
                let kind =
                    if self.stream.encoding == Encoding::L16 { "audio/x-l16" } else { "audio/x-mulaw" };
                if media["contentType"] != kind || media["sampleRate"] != self.stream.rate_hz {
                    return Err(format!(
                        "sound of another format: {} {}",
                        media["contentType"], media["sampleRate"]
                    ));
                }
            }
            _ => {}
        }
        self.queue.push_back(Item::Sound(self.samples(&octets)));
        Ok(())
    }

    fn mark(&mut self, name: &str) -> Result<(), String> {
        self.call.media().marks.push(name.to_owned());
        self.queue.push_back(Item::Mark(name.to_owned()));
        Ok(())
    }

    fn clear(&mut self) {
        self.call.media().clears += 1;
        // The marks stay, and are echoed at once.
        self.queue.retain(|item| matches!(item, Item::Mark(_)));
        match self.provider {
            Provider::Vonage => self.say(&json!({ "event": "websocket:cleared" })),
            Provider::Plivo => {
                let id = self.id.clone();
                self.say(&json!({ "event": "clearedAudio", "streamId": id }));
            }
            _ => {}
        }
    }

    /// AudioSocket as Asterisk's application speaks it: no playout, a frame is heard when it comes.
    async fn audiosocket(&mut self, socket: TcpStream, mut stopped: oneshot::Receiver<Stop>) -> Left {
        let (mut read, mut write) = socket.into_split();
        let mut clock = interval(TICK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let began = Instant::now();
        let (mut buffer, mut came, mut is_first) = (vec![0; 16 * 1_024], Vec::new(), true);
        loop {
            tokio::select! {
                _ = &mut stopped => return Left::Stopped,
                _ = clock.tick() => {
                    let frame = self.octets(&self.next_sound(1));
                    let mut out = vec![0x10];
                    out.extend((frame.len() as u16).to_be_bytes());
                    out.extend(frame);
                    let key = self.call.media().keys.pop_front();
                    if let Some(key) = key {
                        out.extend([3, 0, 1, key as u8]);
                    }
                    if write.write_all(&out).await.is_err() {
                        return Left::Closed;
                    }
                }
                len = read.read(&mut buffer) => {
                    let Ok(len @ 1..) = len else { return Left::Closed };
                    if std::mem::take(&mut is_first) && began.elapsed() > FIRST_FRAME_WITHIN {
                        let late = format!("the first frame came after {} ms", began.elapsed().as_millis());
                        self.call.media().violations.push(late);
                    }
                    came.extend_from_slice(&buffer[..len]);
                    match self.frames(&mut came) {
                        Ok(true) => {}
                        Ok(false) => return Left::Closed,
                        Err(violation) => {
                            self.call.media().violations.push(violation);
                            return Left::Broken;
                        }
                    }
                }
            }
        }
    }

    /// Takes whole messages; false: the end.
    fn frames(&self, came: &mut Vec<u8>) -> Result<bool, String> {
        while let Some(&[kind, high, low]) = came.first_chunk::<3>() {
            let len = usize::from(u16::from_be_bytes([high, low]));
            if came.len() < 3 + len {
                // Header and payload in one segment, or the call is dropped after 5 ms; a stream cannot show it surely.
                break;
            }
            match kind {
                0x00 => return Ok(false),
                0x10 if len > 0 && len % 2 == 0 => {
                    let sound = self.samples(&came[3..3 + len]);
                    self.call.media().heard.extend(sound);
                }
                0x10 => return Err(format!("audio of {len} octets")),
                other => return Err(format!("a message of type {other:#04x}")),
            }
            came.drain(..3 + len);
        }
        Ok(true)
    }
}

fn echo(provider: Provider, id: &str, name: &str) -> Json {
    match provider {
        Provider::Vonage => json!({ "event": "websocket:notify", "payload": { "id": name } }),
        Provider::Plivo => json!({ "event": "playedStream", "streamId": id, "name": name }),
        Provider::Exotel => json!({ "event": "mark", "stream_sid": id, "mark": { "name": name } }),
        Provider::Telnyx => json!({ "event": "mark", "stream_id": id, "mark": { "name": name } }),
        Provider::Twilio | Provider::Asterisk => {
            json!({ "event": "mark", "streamSid": id, "mark": { "name": name } })
        }
    }
}
