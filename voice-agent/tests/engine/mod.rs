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
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const FRAME: Duration = Duration::from_millis(20);
const FRAME_BYTES: usize = 640;

enum Queued {
    Audio(Vec<u8>),
    Mark(String),
}

/// One call.
pub struct Engine {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
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
        Ok(Self {
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
        })
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
        let _ = self.socket.send(Message::text(stop)).await;
        let _ = self.socket.close(None).await;
        while let Some(Ok(_)) = self.socket.next().await {}
    }

    /// 20 ms of the call.
    async fn frame(&mut self) {
        self.next_frame += FRAME;
        tokio::time::sleep_until(self.next_frame).await;
        if !self.muted || self.is_saying() {
            self.send_caller().await;
        }
        while let Some(message) = self.socket.next().now_or_never() {
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
        // A peer that is gone shows at the next read, after its last words.
        let _ = self.socket.send(message).await;
    }
}
