//! AI agents as their makers write them: WebSocket servers that the engine dials. They know nothing of our code; what
//! they speak is written down here a second time, from the protocols' descriptions.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

/// What a bot speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Binary L16 little-endian at 16 kHz, and JSON.
    Pcm,
    /// Twilio Media Streams: everything JSON, µ-law in base64 at 8 kHz.
    Twilio,
}

/// The demo assistants' bots, at the ports of the contract.
pub const TWILIO_PORT: u16 = 8765;
/// See [`TWILIO_PORT`].
pub const PCM_PORT: u16 = 8766;

/// A bot that takes connections and never says a word: its calls ring until somebody gives up.
pub fn silent() -> anyhow::Result<std::net::TcpListener> {
    std::net::TcpListener::bind(("127.0.0.1", PCM_PORT))
        .with_context(|| format!("the demo bots' port {PCM_PORT} is taken; end the bot that uses it"))
}

/// A bot that listens, writes down what it gets, and says what it is told to.
pub struct Bot {
    dialect: Dialect,
    state: Arc<Mutex<State>>,
    listener: JoinHandle<()>,
}

/// What it has got so far.
#[derive(Debug, Default)]
struct State {
    connections: usize,
    closed: usize,
    events: Vec<Value>,
    audio: Vec<i16>,
    sender: Option<mpsc::UnboundedSender<Message>>,
    stream_id: String,
    echo: bool,
}

impl Bot {
    /// Listens for calls; with `echo` it says again what it hears.
    pub async fn listen(dialect: Dialect, echo: bool) -> anyhow::Result<Self> {
        Self::open(dialect, echo, Duration::ZERO).await
    }

    /// The same, but it keeps each call waiting for so long.
    pub async fn listen_late(dialect: Dialect, late: Duration) -> anyhow::Result<Self> {
        Self::open(dialect, false, late).await
    }

    async fn open(dialect: Dialect, echo: bool, late: Duration) -> anyhow::Result<Self> {
        let port = match dialect {
            Dialect::Pcm => PCM_PORT,
            Dialect::Twilio => TWILIO_PORT,
        };
        let listener = TcpListener::bind(("127.0.0.1", port))
            .await
            .with_context(|| format!("the demo bots' port {port} is taken; end the bot that uses it"))?;
        let state = Arc::new(Mutex::new(State { echo, ..State::default() }));
        let shared = Arc::clone(&state);
        let listener = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    tokio::time::sleep(late).await;
                    serve(stream, dialect, shared).await;
                });
            }
        });
        Ok(Self { dialect, state, listener })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Calls that were put through so far.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// Calls whose connection has ended.
    pub fn closed(&self) -> usize {
        self.state().closed
    }

    /// Events of this name, in order.
    pub fn events(&self, name: &str) -> Vec<Value> {
        self.state().events.iter().filter(|event| event["event"] == name).cloned().collect()
    }

    /// The caller's audio so far, at 16 kHz (pcm) or 8 kHz (Twilio).
    pub fn heard(&self) -> Vec<i16> {
        self.state().audio.clone()
    }

    /// Waits for the nth event of this name (from 1).
    pub async fn event(&self, name: &str, nth: usize, within: Duration) -> anyhow::Result<Value> {
        let steps = within.as_millis() / 10;
        for _ in 0..steps {
            if let Some(event) = self.events(name).get(nth - 1) {
                return Ok(event.clone());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("no event {name} number {nth} within {within:?}; got {:?}", self.state().events)
    }

    /// Says these samples at once, as a speech synthesiser would, at the dialect's rate.
    pub fn say(&self, samples: &[i16]) -> anyhow::Result<()> {
        match self.dialect {
            Dialect::Pcm => self.send(Message::binary(little_endian(samples))),
            Dialect::Twilio => {
                for frame in samples.chunks(160) {
                    let payload = BASE64.encode(crate::sound::ulaw(frame));
                    self.send_event(json!({ "event": "media", "media": { "payload": payload } }))?;
                }
                Ok(())
            }
        }
    }

    /// Sends an event.
    pub fn send_event(&self, mut event: Value) -> anyhow::Result<()> {
        if self.dialect == Dialect::Twilio {
            event["streamSid"] = self.state().stream_id.clone().into();
        }
        self.send(Message::text(event.to_string()))
    }

    /// Closes the connection, as a bot does that hangs up in the Twilio way.
    pub fn close(&self) -> anyhow::Result<()> {
        self.send(Message::Close(None))
    }

    fn send(&self, message: Message) -> anyhow::Result<()> {
        let state = self.state();
        let sender = state.sender.as_ref().context("no call is connected")?;
        sender.send(message).context("the call has ended")
    }
}

impl Drop for Bot {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

async fn serve(stream: TcpStream, dialect: Dialect, state: Arc<Mutex<State>>) {
    let Ok(socket) = tokio_tungstenite::accept_async(stream).await else { return };
    let (mut write, mut read) = socket.split();
    let (sender, mut outbox) = mpsc::unbounded_channel();
    {
        let mut state = lock(&state);
        state.connections += 1;
        state.sender = Some(sender.clone());
    }
    let writer = tokio::spawn(async move {
        while let Some(message) = outbox.recv().await {
            if write.send(message).await.is_err() {
                return;
            }
        }
    });
    while let Some(Ok(message)) = read.next().await {
        match message {
            Message::Binary(audio) => {
                let mut state = lock(&state);
                state.audio.extend(audio.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])));
                if state.echo {
                    let _ = sender.send(Message::Binary(audio));
                }
            }
            Message::Text(text) => {
                let event: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
                take_event(event, dialect, &state, &sender);
            }
            Message::Close(_) => break,
            _ => {}
        }
    }
    writer.abort();
    lock(&state).closed += 1;
}

fn take_event(event: Value, dialect: Dialect, state: &Mutex<State>, sender: &mpsc::UnboundedSender<Message>) {
    let mut state = lock(state);
    if dialect == Dialect::Twilio && event["event"] == "media" {
        let payload = event["media"]["payload"].as_str().unwrap_or_default();
        let codes = BASE64.decode(payload).unwrap_or_default();
        state.audio.extend(codes.iter().map(|code| tandem_audio::g711::linear_from_ulaw(*code)));
        if state.echo {
            let echo = json!({
                "event": "media",
                "streamSid": event["streamSid"],
                "media": { "payload": payload },
            });
            let _ = sender.send(Message::text(echo.to_string()));
        }
        return;
    }
    if event["event"] == "start" {
        state.stream_id = event["streamSid"].as_str().unwrap_or_default().to_owned();
    }
    state.events.push(event);
}

fn little_endian(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}
