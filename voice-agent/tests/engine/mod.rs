//! A media engine as the voice agent sees it, in real time: sends caller audio every 20 ms, plays what the agent sends,
//! answers marks and `clear` with what was heard.

// Each test binary uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tandem_audio::format::SampleRate;
use tandem_audio::g711;
use tandem_audio::resample::Resampler;
use tandem_stream::agent::{FromAgent, HangupAfter, Start, ToAgent};
use tandem_stream::link::{self, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const FRAME: Duration = Duration::from_millis(20);
const FRAME_BYTES: usize = 640;

enum Queued {
    Audio(Vec<u8>),
    Mark(String),
}

/// What the call is carried by.
enum Wire {
    WebSocket(Box<WebSocketStream<MaybeTlsStream<TcpStream>>>),
    Link(LinkWire),
}

/// A link with one call on it, in the words of the WebSocket.
struct LinkWire {
    stream: TcpStream,
    client: Client,
    came: VecDeque<Message>,
    is_accepted: bool,
    refused: Option<String>,
}

const CALL: u32 = 42;

impl LinkWire {
    async fn dial(addr: SocketAddr, start: &ToAgent) -> Result<Self, String> {
        let stream = TcpStream::connect(addr).await.map_err(|error| error.to_string())?;
        let mut client = Client::new(Vec::new(), Instant::now());
        client.dial(Instant::now());
        client.handle_connected(Instant::now());
        client.push(CALL, &link::Message::Open { start: &start.to_json() });
        let mut wire = Self { stream, client, came: VecDeque::new(), is_accepted: false, refused: None };
        while !wire.is_accepted {
            wire.flush().await;
            wire.read().await.ok_or("the link closed")?;
            if let Some(reason) = wire.refused.take() {
                return Err(format!("the call was refused: {reason}"));
            }
        }
        Ok(wire)
    }

    async fn flush(&mut self) {
        let mut octets = vec![0; 64 * 1024];
        while self.client.has_control() {
            let len = self.client.poll_control(&mut octets);
            // A peer that is gone shows at the next read.
            let _ = self.stream.write_all(&octets[..len]).await;
        }
    }

    async fn read(&mut self) -> Option<()> {
        let mut octets = vec![0; 64 * 1024];
        let len = self.stream.read(&mut octets).await.ok().filter(|len| *len > 0)?;
        let Self { client, came, is_accepted, refused, .. } = self;
        let mut granted = 0;
        let read = client.handle_bytes(&octets[..len], Instant::now(), |call, message| {
            assert_eq!(call, CALL);
            came.push_back(match message {
                link::Message::Accepted => return *is_accepted = true,
                link::Message::Credit { .. } => return,
                link::Message::Audio(audio) => {
                    granted += audio.len() as u32;
                    Message::Binary(Bytes::copy_from_slice(audio))
                }
                link::Message::Clear { .. } => Message::text(FromAgent::Clear.to_json()),
                link::Message::Mark { name, .. } => {
                    Message::text(FromAgent::Mark { name: name.to_owned() }.to_json())
                }
                link::Message::Event(text) => Message::text(text.to_owned()),
                link::Message::Close { reason } => {
                    *refused = Some(reason.to_owned());
                    Message::Close(None)
                }
                other => panic!("unexpected {other:?}"),
            });
        });
        read.unwrap();
        if granted > 0 {
            self.client.push(CALL, &link::Message::Credit { octets: granted });
        }
        Some(())
    }

    async fn next(&mut self) -> Option<Message> {
        while self.came.is_empty() {
            self.read().await?;
        }
        self.came.pop_front()
    }

    async fn send(&mut self, message: Message) {
        let message = match &message {
            Message::Binary(audio) => link::Message::Audio(audio),
            Message::Close(_) => return,
            Message::Text(text) => match ToAgent::parse(text).unwrap().unwrap() {
                ToAgent::Mark { name, heard_ms } => {
                    self.client.push(CALL, &link::Message::Mark { heard_ms, name: &name });
                    return self.flush().await;
                }
                ToAgent::Cleared { heard_ms } => link::Message::Clear { heard_ms },
                ToAgent::Stop { .. } => link::Message::Close { reason: "caller" },
                _ => link::Message::Event(text),
            },
            other => panic!("unexpected {other:?}"),
        };
        self.client.push(CALL, &message);
        self.flush().await;
    }
}

impl Wire {
    async fn next(&mut self) -> Option<Result<Message, Error>> {
        match self {
            Self::WebSocket(socket) => socket.next().await,
            Self::Link(link) => link.next().await.map(Ok),
        }
    }

    async fn send(&mut self, message: Message) {
        match self {
            // A peer that is gone shows at the next read, after its last words.
            Self::WebSocket(socket) => drop(socket.send(message).await),
            Self::Link(link) => link.send(message).await,
        }
    }
}

/// One call.
pub struct Engine {
    socket: Wire,
    /// What the caller will say, at 16 kHz.
    caller: VecDeque<i16>,
    playout: VecDeque<Queued>,
    next_frame: tokio::time::Instant,
    muted: bool,
    /// Agent audio that was played.
    pub heard_ms: u64,
    /// When the agent was last heard, and since when without a pause of 300 ms.
    pub heard_at: Option<Instant>,
    pub heard_since: Option<Instant>,
    /// When the caller's last word left.
    pub said_at: Option<Instant>,
    pub clears: u32,
    pub hangup: Option<HangupAfter>,
    pub closed: bool,
}

impl Engine {
    pub async fn dial(addr: SocketAddr, call_id: &str) -> Result<Self, Box<Error>> {
        let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{addr}/v1/talk")).await?;
        let start = ToAgent::Start(Start::new(call_id, "sip:caller@test", "sip:demo@test", "inbound"));
        socket.send(Message::text(start.to_json())).await?;
        Ok(Self::on(Wire::WebSocket(Box::new(socket))))
    }

    /// The same over a link.
    pub async fn dial_link(addr: SocketAddr, call_id: &str) -> Result<Self, String> {
        let start = ToAgent::Start(Start::new(call_id, "sip:caller@test", "sip:demo@test", "inbound"));
        Ok(Self::on(Wire::Link(LinkWire::dial(addr, &start).await?)))
    }

    fn on(socket: Wire) -> Self {
        Self {
            socket,
            caller: VecDeque::new(),
            playout: VecDeque::new(),
            next_frame: tokio::time::Instant::now(),
            muted: false,
            heard_ms: 0,
            heard_at: None,
            heard_since: None,
            said_at: None,
            clears: 0,
            hangup: None,
            closed: false,
        }
    }

    /// The caller says a recording: 8 kHz, through µ-law as a telephone does, to 16 kHz.
    pub fn say(&mut self, name: &str) {
        let path = format!("{}/demo/{name}", env!("CARGO_MANIFEST_DIR"));
        let samples: Vec<i16> = hound::WavReader::open(path).unwrap().samples().map(Result::unwrap).collect();
        let mut codes = vec![0; samples.len()];
        g711::encode_ulaw(&samples, &mut codes);
        let mut narrow = vec![0; samples.len()];
        g711::decode_ulaw(&codes, &mut narrow);
        let mut resampler = Resampler::new(SampleRate::Hz8000, SampleRate::Hz16000);
        let mut wide = vec![0; resampler.output_len(narrow.len())];
        resampler.process(&narrow, &mut wide);
        // The recordings end with 100 ms of silence, which is no word.
        wide.truncate(wide.len() - 1_600);
        self.caller.extend(wide);
        self.said_at = None;
    }

    /// Silence suppression: no frames at all while the caller says nothing.
    pub fn mute(&mut self) {
        self.muted = true;
    }

    pub fn is_saying(&self) -> bool {
        !self.caller.is_empty()
    }

    /// Is agent audio playing now?
    pub fn hears(&self) -> bool {
        self.heard_at.is_some_and(|at| at.elapsed() < Duration::from_millis(300))
    }

    /// Runs the call until this is so; false when it was not within the time.
    pub async fn until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = Instant::now() + limit;
        while !done(self) {
            if Instant::now() >= end || self.closed {
                return false;
            }
            self.frame().await;
        }
        true
    }

    /// The caller hangs up.
    pub async fn stop(mut self) {
        let stop = ToAgent::Stop { reason: "caller".into() }.to_json();
        // The agent may have closed first.
        self.socket.send(Message::text(stop)).await;
        let socket = match self.socket {
            Wire::WebSocket(socket) => socket,
            // The connection goes with the wire; other calls of a link would go on.
            Wire::Link(_) => return,
        };
        let mut socket = *socket;
        let _ = socket.close(None).await;
        while let Some(Ok(_)) = socket.next().await {}
    }

    /// 20 ms of the call.
    async fn frame(&mut self) {
        self.next_frame += FRAME;
        tokio::time::sleep_until(self.next_frame).await;
        if !self.muted || self.is_saying() {
            self.send_caller().await;
        }
        while let Some(message) = self.socket.next().boxed().now_or_never() {
            self.receive(message).await;
            if self.closed {
                return;
            }
        }
        self.play().await;
    }

    async fn send_caller(&mut self) {
        let was_saying = self.is_saying();
        let audio: Vec<u8> =
            (0..320).flat_map(|_| self.caller.pop_front().unwrap_or(0).to_le_bytes()).collect();
        if was_saying && !self.is_saying() {
            self.said_at = Some(Instant::now());
        }
        self.send(Message::Binary(Bytes::from(audio))).await;
    }

    async fn receive(&mut self, message: Option<Result<Message, Error>>) {
        match message {
            Some(Ok(Message::Binary(audio))) => self.playout.push_back(Queued::Audio(audio.to_vec())),
            Some(Ok(Message::Text(text))) => match FromAgent::parse(&text).unwrap() {
                Some(FromAgent::Mark { name }) => self.playout.push_back(Queued::Mark(name)),
                Some(FromAgent::Clear) => {
                    self.clears += 1;
                    self.playout.clear();
                    let cleared = ToAgent::Cleared { heard_ms: self.heard_ms };
                    self.send(Message::text(cleared.to_json())).await;
                }
                Some(FromAgent::Hangup { after }) => self.hangup = Some(after),
                other => panic!("unexpected {other:?}"),
            },
            Some(Ok(Message::Close(_))) | Some(Err(_)) | None => self.closed = true,
            Some(Ok(_)) => {}
        }
    }

    async fn play(&mut self) {
        let mut left = FRAME_BYTES;
        while left > 0 {
            match self.playout.front_mut() {
                Some(Queued::Audio(audio)) => {
                    let played = left.min(audio.len());
                    audio.drain(..played);
                    left -= played;
                    if audio.is_empty() {
                        self.playout.pop_front();
                    }
                }
                Some(Queued::Mark(_)) if left == FRAME_BYTES => {
                    let Some(Queued::Mark(name)) = self.playout.pop_front() else { unreachable!() };
                    let mark = ToAgent::Mark { name, heard_ms: self.heard_ms };
                    self.send(Message::text(mark.to_json())).await;
                }
                _ => break,
            }
        }
        if left < FRAME_BYTES {
            let now = Instant::now();
            if !self.hears() {
                self.heard_since = Some(now);
            }
            self.heard_at = Some(now);
            self.heard_ms += 20;
        }
    }

    async fn send(&mut self, message: Message) {
        self.socket.send(message).await;
    }
}
