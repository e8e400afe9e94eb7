//! The child process with the offline models: started, watched, started again, ended with us.
//!
//! It prints its port when its models are loaded (the handle follows it) and ends when its stdin closes, so a
//! killed talker leaves no orphan. Its protocol is in `local-voice/PROTOCOL.md`.

use std::process::Stdio;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::config::LocalVoiceConfig;

/// Loading takes 2 s on a quiet machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// First pause before another start; doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// Longest pause before another start.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// A child that lived this long begins with the shortest pause again.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// How long a stream waits for a child that is just starting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After its stdin is closed the child may take this long; then it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// Why there is no connection to the models.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The child is not up.
    #[error("local-voice is not running")]
    Down,
    /// The handshake failed.
    #[error("local-voice refused {path}: {source}")]
    Handshake {
        /// The path asked for.
        path: &'static str,
        /// What went wrong.
        source: Box<WsError>,
    },
}

/// Why the child did not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("cannot run {python}: {source}")]
    Spawn { python: String, source: std::io::Error },
    #[error("it ended before it was ready")]
    Ended,
    #[error("it was not ready within {START_TIMEOUT:?}")]
    Timeout,
    #[error("its first line was not the ready message")]
    Line,
}

/// A handle to the models, wherever they run.
#[derive(Debug, Clone)]
pub struct LocalVoice {
    port: watch::Receiver<Option<u16>>,
}

/// Keeps the child alive; dropping it ends the child.
#[derive(Debug)]
pub struct Supervisor {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl LocalVoice {
    /// Starts the child and its supervisor; returns at once.
    pub fn start(config: LocalVoiceConfig) -> (Self, Supervisor) {
        let (port_out, port) = watch::channel(None);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(supervise(config, port_out, stopped));
        (Self { port }, Supervisor { stop, task })
    }

    /// Are the models loaded and is the child alive?
    pub fn is_up(&self) -> bool {
        self.port.borrow().is_some()
    }

    /// Waits until the models are loaded; false when that will not happen any more.
    pub async fn wait_up(&self) -> bool {
        self.port.clone().wait_for(Option::is_some).await.is_ok()
    }

    /// Waits until the child is gone; false when nobody watches it any more.
    pub async fn wait_down(&self) -> bool {
        self.port.clone().wait_for(Option::is_none).await.is_ok()
    }

    /// Opens a WebSocket to one of the models.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub async fn connect(&self, path: &'static str) -> Result<Socket, ConnectError> {
        let mut port = self.port.clone();
        let up = tokio::time::timeout(CONNECT_TIMEOUT, port.wait_for(Option::is_some)).await;
        let Some(port) = up.ok().and_then(Result::ok).and_then(|port| *port) else {
            return Err(ConnectError::Down);
        };
        let url = format!("ws://127.0.0.1:{port}{path}");
        match tokio_tungstenite::connect_async(url).await {
            Ok((inner, _)) => {
                if let MaybeTlsStream::Plain(stream) = inner.get_ref() {
                    // Small frames that somebody waits for; a socket without the option is only slower.
                    let _ = stream.set_nodelay(true);
                }
                Ok(Socket { inner })
            }
            Err(source) => Err(ConnectError::Handshake { path, source: Box::new(source) }),
        }
    }
}

impl Supervisor {
    /// Ends the child and waits for it.
    pub async fn end(mut self) {
        // The task may have ended already; then there is nobody to tell.
        let _ = self.stop.send(true);
        let _ = tokio::time::timeout(END_TIMEOUT * 2, &mut self.task).await;
    }
}

async fn supervise(
    config: LocalVoiceConfig,
    port: watch::Sender<Option<u16>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let begun = std::time::Instant::now();
        let started = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            started = start(&config) => started,
        };
        match started {
            Ok((mut child, ready)) => {
                // Held here: `wait` would close it, and that means "end" to the child.
                let stdin = child.stdin.take();
                tracing::info!(port = ready, "local-voice is ready");
                port.send_replace(Some(ready));
                let ended = tokio::select! {
                    status = child.wait() => Some(status),
                    _ = stop.wait_for(|stop| *stop) => None,
                };
                port.send_replace(None);
                drop(stdin);
                let Some(status) = ended else { return end(child).await };
                tracing::error!(status = ?status.ok(), "local-voice ended; starting it again");
            }
            Err(error) => tracing::error!(%error, "local-voice did not start"),
        }
        if begun.elapsed() >= HEALTHY_AFTER {
            backoff = BACKOFF_MIN;
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(backoff) => {}
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn start(config: &LocalVoiceConfig) -> Result<(Child, u16), StartError> {
    let mut child = Command::new(&config.python)
        .arg("-u")
        .arg(config.dir.join("server.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // What the child does not need it shall not see.
        .env_remove("TANDEM_LLM_KEY")
        .env_remove("TANDEM_SERVICE_TOKEN")
        .env_remove("TANDEM_MASTER_KEY")
        // Ctrl-C in a terminal is for us; the child ends when we close its stdin.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| StartError::Spawn { python: config.python.display().to_string(), source })?;
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(log_lines(stderr));
    }
    let stdout = child.stdout.take().ok_or(StartError::Ended)?;
    let mut lines = BufReader::new(stdout).lines();
    let line =
        tokio::time::timeout(START_TIMEOUT, lines.next_line()).await.map_err(|_| StartError::Timeout)?;
    let Ok(Some(line)) = line else { return Err(StartError::Ended) };
    let ready: Value = serde_json::from_str(&line).map_err(|_| StartError::Line)?;
    let port = ready["port"].as_u64().and_then(|port| u16::try_from(port).ok()).ok_or(StartError::Line)?;
    // The child writes nothing more there; keep the pipe open all the same.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((child, port))
}

/// Waits for a child whose stdin is closed.
async fn end(mut child: Child) {
    if tokio::time::timeout(END_TIMEOUT, child.wait()).await.is_err() {
        // It may have ended in between.
        let _ = child.kill().await;
    }
}

async fn log_lines(stderr: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::warn!(target: "local_voice", "{line}");
    }
}

/// A connection to one model.
#[derive(Debug)]
pub struct Socket {
    inner: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// A frame from a model.
#[derive(Debug, PartialEq)]
pub enum Frame {
    /// An event.
    Json(Value),
    /// Audio.
    Binary(bytes::Bytes),
}

impl Socket {
    /// Sends an event.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send_json(&mut self, event: &Value) -> Result<(), WsError> {
        self.inner.send(Message::text(event.to_string())).await
    }

    /// Sends audio.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send_binary(&mut self, audio: bytes::Bytes) -> Result<(), WsError> {
        self.inner.send(Message::Binary(audio)).await
    }

    /// The next frame; `None` when the connection is gone. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            match self.inner.next().await?.ok()? {
                Message::Text(text) => {
                    if let Ok(event) = serde_json::from_str(&text) {
                        return Some(Frame::Json(event));
                    }
                }
                Message::Binary(audio) => return Some(Frame::Binary(audio)),
                Message::Close(_) => return None,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

/// A `u32` of an event.
pub fn number(event: &Value, key: &str) -> Option<u32> {
    event[key].as_u64().and_then(|number| u32::try_from(number).ok())
}

/// The message of an error event.
pub fn error_message(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or("?").to_owned();
    format!("{}: {}", text("code"), text("message"))
}
