//! The listener: links, `GET /healthz`, `POST /v1/chat`, and the WebSocket upgrade of `/v1/talk`, on one port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tandem_stream::link::PREAMBLE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::agent::{Agent, AgentError, Backstage};
use crate::config::Config;
use crate::link::{self, Reception};
use crate::text::{self, Chats};
use crate::transport::{Ear, Mouth};
use crate::{session, transport};

/// Where the control plane asks for an answer in writing.
pub const CHAT_PATH: &str = "/v1/chat";
/// What it proves itself with, from another machine.
const TOKEN_HEADER: &str = "x-tandem-service-token";
/// Where engines connect.
pub const TALK_PATH: &str = "/v1/talk";
/// A peer that has not sent its request or its handshake by then is closed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest request head; the engine's is about 200 octets.
const REQUEST_MAX: usize = 4096;
/// Longest message of an engine: 20 ms of audio are 640 octets, an event 16 kB at most.
const MESSAGE_MAX: usize = 64 * 1024;
/// Connections that are no conversation (health checks, refusals) at once; beyond it, they are closed unheard.
const OTHERS_MAX: usize = 64;
/// At shutdown, conversations may take this long to say so to their engine.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the agent could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address is taken or not ours.
    #[error("cannot listen on {addr}: {source}")]
    Bind {
        /// What was asked for.
        addr: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The agent cannot be put together.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// A bound agent that does not serve yet.
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    backstage: Option<Backstage>,
}

struct Shared {
    agent: Agent,
    /// What engines must know; `None`: links from this machine only.
    token: Option<SecretString>,
    places: Arc<Semaphore>,
    max_conversations: usize,
    chats: Chats,
    stop: watch::Receiver<bool>,
}

impl Server {
    /// Binds the listener and starts the agent of the configuration.
    ///
    /// # Errors
    /// [`RunError`]
    pub async fn bind(config: Config) -> Result<Self, RunError> {
        // First the port: a second talker must not start a second set of models.
        let listener = listen(config.listen).await?;
        let (agent, backstage) = Agent::start(&config)?;
        Self::new(listener, agent, config.service_token, config.max_conversations, Some(backstage))
    }

    /// Binds the listener for an agent that is there.
    ///
    /// # Errors
    /// [`RunError::Bind`]
    pub async fn bind_agent(
        listen_on: SocketAddr,
        agent: Agent,
        max_conversations: usize,
    ) -> Result<Self, RunError> {
        Self::new(listen(listen_on).await?, agent, None, max_conversations, None)
    }

    fn new(
        listener: TcpListener,
        agent: Agent,
        token: Option<SecretString>,
        max_conversations: usize,
        backstage: Option<Backstage>,
    ) -> Result<Self, RunError> {
        let local_addr = listener
            .local_addr()
            .map_err(|source| RunError::Bind { addr: SocketAddr::from(([0, 0, 0, 0], 0)), source })?;
        let (stop, stopped) = watch::channel(false);
        let places = Arc::new(Semaphore::new(max_conversations));
        let chats = Chats::default();
        let shared = Arc::new(Shared { agent, token, places, max_conversations, chats, stop: stopped });
        Ok(Self { listener, local_addr, shared, stop, backstage })
    }

    /// Where it listens; useful when the port was 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown` resolves, then ends the conversations that are alive.
    ///
    /// # Errors
    /// None after binding: a connection that fails is that connection's matter.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self { listener, shared, stop, backstage, .. } = self;
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if connections.len() < shared.max_conversations + OTHERS_MAX => {
                        connections.spawn(answer(stream, shared.clone()));
                    }
                    Ok(_) => tracing::warn!("too many connections: one is closed unheard"),
                    Err(error) => {
                        // Out of descriptors: give the others time to end.
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
        drop(listener);
        stop.send_replace(true);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(END_TIMEOUT, all).await.is_err() {
            connections.abort_all();
            while connections.join_next().await.is_some() {}
        }
        drop(shared);
        if let Some(backstage) = backstage {
            backstage.end().await;
        }
        Ok(())
    }
}

async fn listen(addr: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(addr).await.map_err(|source| RunError::Bind { addr, source })
}

async fn answer(stream: TcpStream, shared: Arc<Shared>) {
    // Without it small frames wait for acknowledgements; a socket that refuses is only slower.
    let _ = stream.set_nodelay(true);
    let Ok(Some(request)) = tokio::time::timeout(REQUEST_TIMEOUT, requested(&stream)).await else { return };
    let ready = shared.agent.is_ready();
    let path = match request {
        Requested::Link => return serve_link(stream, &shared).await,
        Requested::Chat => return chat(stream, &shared).await,
        Requested::Path(path) => path,
    };
    match path.as_str() {
        "/healthz" if ready => respond(stream, "200 OK", "ok\n").await,
        "/healthz" => {
            respond(stream, "503 Service Unavailable", "the voice models are not loaded yet\n").await
        }
        TALK_PATH if !ready => {
            respond(stream, "503 Service Unavailable", "the voice models are not loaded yet\n").await;
        }
        TALK_PATH => match shared.places.clone().try_acquire_owned() {
            Ok(_place) => talk(stream, &shared).await,
            Err(_) => {
                tracing::warn!(
                    limit = shared.max_conversations,
                    "a conversation is refused: the agent is full"
                );
                respond(stream, "503 Service Unavailable", "too many conversations\n").await;
            }
        },
        _ => respond(stream, "404 Not Found", "no such path\n").await,
    }
}

async fn talk(stream: TcpStream, shared: &Shared) {
    let limits =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
    let handshake = tokio_tungstenite::accept_async_with_config(stream, Some(limits));
    match tokio::time::timeout(REQUEST_TIMEOUT, handshake).await {
        Ok(Ok(socket)) => {
            let (ear, mouth) = transport::split(socket);
            session::run(ear, mouth, &shared.agent, shared.stop.clone()).await;
        }
        Ok(Err(error)) => tracing::warn!(%error, "a WebSocket handshake failed"),
        Err(_) => tracing::warn!("a WebSocket handshake took too long"),
    }
}

async fn serve_link(stream: TcpStream, shared: &Arc<Shared>) {
    let is_local = stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
    let token = match &shared.token {
        Some(token) => token.expose_secret().as_bytes().to_vec(),
        None if is_local => Vec::new(),
        None => {
            return tracing::warn!(
                "a link from another machine is refused: set TANDEM_SERVICE_TOKEN on both sides"
            );
        }
    };
    let stop = shared.stop.clone();
    link::serve(stream, token, shared, stop).await;
}

impl Reception for Arc<Shared> {
    type Place = OwnedSemaphorePermit;

    fn place(&self) -> Result<OwnedSemaphorePermit, &'static str> {
        if !self.agent.is_ready() {
            return Err("the voice models are not loaded yet");
        }
        if *self.stop.borrow() {
            return Err("the voice agent is ending");
        }
        self.places.clone().try_acquire_owned().map_err(|_| {
            let limit = self.max_conversations;
            tracing::warn!(limit, "a conversation is refused: the agent is full");
            "too many conversations"
        })
    }

    fn receive(
        &self,
        place: OwnedSemaphorePermit,
        ear: link::Ear,
        mouth: link::Mouth,
        sessions: &mut JoinSet<()>,
    ) {
        let shared = Arc::clone(self);
        sessions.spawn(async move {
            let _place = place;
            let (ear, mouth) = (Ear::Link(ear), Mouth::Link(mouth));
            session::run(ear, mouth, &shared.agent, shared.stop.clone()).await;
        });
    }
}

/// A message in writing, and its answer.
async fn chat(mut stream: TcpStream, shared: &Shared) {
    let Ok(Some((head, body))) = tokio::time::timeout(REQUEST_TIMEOUT, read_post(&mut stream)).await else {
        return;
    };
    let is_local = stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
    let is_known = match &shared.token {
        Some(token) => header(&head, TOKEN_HEADER).is_some_and(|given| is_same(token, given)),
        None => is_local,
    };
    let (status, text) = if !is_known {
        ("403 Forbidden", json_error("the service token is missing or wrong"))
    } else if !shared.agent.is_ready() {
        ("503 Service Unavailable", json_error("the voice models are not loaded yet"))
    } else {
        match shared.chats.answer(&*shared.agent.vendors.llm, &body).await {
            Ok(answer) => ("200 OK", serde_json::to_string(&answer).unwrap_or_default()),
            Err(error) => (error.status(), json_error(&error.to_string())),
        }
    };
    let len = text.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{text}"
    );
    // The peer may be gone already.
    if stream.write_all(answer.as_bytes()).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}

fn json_error(text: &str) -> String {
    serde_json::json!({ "error": text }).to_string()
}

/// In a time that does not depend on where they differ.
fn is_same(token: &SecretString, given: &str) -> bool {
    let (ours, theirs) = (token.expose_secret().as_bytes(), given.as_bytes());
    let differs = ours.iter().cycle().zip(theirs).fold(0, |differs, (a, b)| differs | (a ^ b));
    ours.len() == theirs.len() && differs == 0
}

/// Head and body of a request with Content-Length.
async fn read_post(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut octets = Vec::new();
    let end = loop {
        if let Some(end) = octets.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if octets.len() > REQUEST_MAX || stream.read_buf(&mut octets).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(octets[..end].to_vec()).ok()?;
    let len: usize = header(&head, "content-length")?.parse().ok()?;
    if len > text::REQUEST_MAX {
        return None;
    }
    let mut body = octets.split_off(end + 4);
    while body.len() < len {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    body.truncate(len);
    Some((head, body))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// What a connection begins with.
enum Requested {
    Link,
    Chat,
    Path(String),
}

/// The path of the request line, or that it is a link, without taking it from the socket. Returns when the whole line is
/// there.
async fn requested(stream: &TcpStream) -> Option<Requested> {
    let mut head = vec![0; REQUEST_MAX];
    loop {
        let len = stream.peek(&mut head).await.ok()?;
        if head[..len].starts_with(&PREAMBLE) {
            return Some(Requested::Link);
        }
        if let Some(end) = head[..len].iter().position(|octet| *octet == b'\n') {
            let line = std::str::from_utf8(&head[..end]).ok()?;
            if line.strip_prefix("POST ").and_then(|rest| rest.split(' ').next()) == Some(CHAT_PATH) {
                return Some(Requested::Chat);
            }
            let target = line.strip_prefix("GET ")?.split(' ').next()?;
            let path = target.split('?').next().unwrap_or_default();
            return Some(Requested::Path(path.to_owned()));
        }
        if len == 0 || len == head.len() {
            return None;
        }
        // `peek` gives the same octets again at once: look again when more may have come.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn respond(mut stream: TcpStream, status: &str, text: &str) {
    // Take the request off the socket, or closing would reset the connection before the answer is read.
    let mut head = vec![0; REQUEST_MAX];
    let _ = stream.read(&mut head).await;
    let len = text.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{text}"
    );
    // The peer may be gone already; nobody is waiting for this answer then.
    if stream.write_all(answer.as_bytes()).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}
