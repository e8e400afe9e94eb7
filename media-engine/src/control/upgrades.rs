//! Providers' connections until a session has them: accepted, read up to where they say whose they are, and parked until the control
//! plane has answered.
//!
//! ```text
//!   TCP ─▶ (TLS) ─▶ upgrade request ─▶ 404, or MediaUpgrade to the newest controller ─▶ parked, ANSWER_WITHIN
//!   TCP ─▶ UUID ────────────────────▶ the same, and silence every 20 ms meanwhile          │
//!                                                                                          ├─ refused: status, closed
//!                                       OpenSession, AnswerUpgrade: the socket goes ◀──────┴─ taken
//!                                       to the core of its session, which answers 101
//! ```
//!
//! Whoever connects costs a place of [`PLACES`] and a deadline: [`HEAD_WITHIN`] for TLS and the request, or for the UUID, however
//! slowly the octets come. Nothing of a path, a header or a UUID is logged: the context id in them is the claim.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::{self, Read, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rustls::{ServerConfig, ServerConnection};
use tandem_api::engine::v1 as proto;
use tandem_stream::audiosocket::{End, ID_WITHIN, Server, ServerEvent};
use tandem_stream::provider::Provider;
use tandem_stream::provider::registry::{PROVIDERS, provider};
use tandem_stream::websocket::{HandshakeError, UpgradeRequest, write_refusal_after};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tonic::Status;

use super::{Control, lock, tls};
use crate::leg::provider::{Connection, Protocol};
use crate::mailbox::{Handover, Incoming};
use crate::metrics::Counted;

/// Connections that are read or parked at a time; what comes above is closed at once.
pub(super) const PLACES: usize = 1_024;

/// From the connect to the end of the upgrade request, TLS included.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// The control plane answers within this; providers give up after some ten seconds, Asterisk's caller hears silence.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A refusal leaves within this, or is not read.
const REFUSE_WITHIN: Duration = Duration::from_secs(2);

/// Upgrades on their way to one controller.
const TOLD_MAX: usize = 256;

/// Longest context id.
const CONTEXT_MAX: usize = 128;

/// Between two frames of silence.
const FRAME: Duration = Duration::from_millis(20);

/// Certificate files are looked at again after this.
const CERTIFICATE_AGE: Duration = Duration::from_secs(5);

/// What is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Providers' media WebSockets.
    WebSocket,
    /// Asterisk's AudioSocket.
    AudioSocket,
}

/// Why a connection is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    status: u16,
    reason: String,
    retry_after_s: Option<u32>,
}

impl Refusal {
    fn new(status: u16, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), retry_after_s: None }
    }

    /// There is no place for it.
    pub(super) fn busy() -> Self {
        Self { retry_after_s: Some(1), ..Self::new(503, "no session can be opened now") }
    }

    /// The session that it is for has one.
    pub(super) fn conflict() -> Self {
        Self::new(409, "the call has its media already")
    }

    /// As the control plane says.
    pub(super) fn from_proto(given: proto::UpgradeRefusal) -> Result<Self, Status> {
        let status = u16::try_from(given.status).ok().filter(|status| (400..600).contains(status));
        let status = status.ok_or_else(|| {
            Status::invalid_argument(format!("refuse.status: {} refuses nothing", given.status))
        })?;
        let retry_after_s = (given.retry_after_s > 0).then_some(given.retry_after_s);
        Ok(Self { status, reason: given.reason, retry_after_s })
    }

    fn of_handshake(error: &HandshakeError) -> Self {
        let status = match error {
            HandshakeError::TooLong | HandshakeError::TooManyHeaders => 431,
            HandshakeError::Method(_) => 405,
            HandshakeError::Header("Upgrade" | "Connection" | "Sec-WebSocket-Version") => 426,
            _ => 400,
        };
        Self::new(status, error.to_string())
    }

    fn write(&self, out: &mut Vec<u8>) {
        let phrase =
            axum::http::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        let reason: String = self.reason.chars().filter(|c| !c.is_control()).take(512).collect();
        write_refusal_after(out, self.status, phrase.unwrap_or("Refused"), &reason, self.retry_after_s);
    }
}

/// What becomes of a parked connection.
enum Answer {
    Refuse(Refusal),
    Take(oneshot::Sender<Incoming>),
}

/// Who is told of upgrades, the newest last.
#[derive(Debug, Default)]
struct Controllers {
    next: u64,
    senders: Vec<(u64, mpsc::Sender<proto::Event>)>,
}

/// A certificate that was read, and when.
#[derive(Debug)]
struct Certificate {
    looked: Instant,
    changed: [Option<SystemTime>; 2],
    config: Option<Arc<ServerConfig>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Upgrades {
    parked: Mutex<HashMap<String, oneshot::Sender<Answer>>>,
    places: Arc<Semaphore>,
    controllers: Mutex<Controllers>,
    certificate: Mutex<Option<Certificate>>,
    /// Connections that sessions have, by provider.
    connections: Vec<(&'static str, Arc<AtomicU64>)>,
    asked: AtomicU64,
    refused: Arc<AtomicU64>,
    timed_out: AtomicU64,
    malformed: AtomicU64,
    strangers: AtomicU64,
    turned_away: AtomicU64,
}

impl Default for Upgrades {
    fn default() -> Self {
        let names = PROVIDERS.iter().map(|provider| provider.name).chain(["audiosocket"]);
        Self {
            parked: Mutex::default(),
            places: Arc::new(Semaphore::new(PLACES)),
            controllers: Mutex::default(),
            certificate: Mutex::default(),
            connections: names.map(|name| (name, Arc::default())).collect(),
            asked: AtomicU64::new(0),
            refused: Arc::default(),
            timed_out: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            strangers: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Refuse(_)) { "Refuse" } else { "Take" })
    }
}

impl Upgrades {
    /// A controller that is told of upgrades from now on, until a newer one comes.
    pub(super) fn enrol(&self) -> (u64, mpsc::Receiver<proto::Event>) {
        let (sender, told) = mpsc::channel(TOLD_MAX);
        let mut controllers = lock(&self.controllers);
        let place = controllers.next;
        controllers.next += 1;
        controllers.senders.push((place, sender));
        (place, told)
    }

    /// It has gone.
    pub(super) fn strike(&self, place: u64) {
        lock(&self.controllers).senders.retain(|(known, _)| *known != place);
    }

    /// Tells the newest controller; false: there is none, or it does not listen.
    fn tell(&self, upgrade: proto::MediaUpgrade) -> bool {
        let newest = lock(&self.controllers).senders.last().map(|(_, sender)| sender.clone());
        let event = Some(proto::event::Event::MediaUpgrade(upgrade));
        newest.is_some_and(|newest| newest.try_send(proto::Event { event, ..Default::default() }).is_ok())
    }

    /// Refuses one that is parked; false: there is none.
    pub(super) fn refuse(&self, id: &str, refusal: Refusal) -> bool {
        let parked = lock(&self.parked).remove(id);
        parked.is_some_and(|parked| parked.send(Answer::Refuse(refusal)).is_ok())
    }

    /// Takes one that is parked. If no worker takes it in turn it is refused so.
    pub(super) async fn take(&self, id: &str, otherwise: Refusal) -> Option<Handover> {
        let parked = lock(&self.parked).remove(id)?;
        let (give, given) = oneshot::channel();
        parked.send(Answer::Take(give)).ok()?;
        let (handover, returned) = Handover::new(given.await.ok()?);
        let refused = Arc::clone(&self.refused);
        tokio::spawn(async move {
            let Ok(incoming) = returned.await else { return };
            count(&refused);
            let Ok((mut line, protocol)) = Line::from_incoming(incoming) else { return };
            match protocol {
                Protocol::WebSocket(_) => line.refuse(&otherwise).await,
                Protocol::AudioSocket(server) => line.hang_up(server).await,
            }
        });
        Some(handover)
    }

    fn counted(&self, name: &str) -> Option<Counted> {
        self.connections.iter().find(|(known, _)| *known == name).map(|(_, count)| Counted::new(count))
    }

    /// What is shown to providers now. A file that has become unreadable leaves the certificate as it was.
    fn certificate(&self, files: &(PathBuf, PathBuf)) -> Option<Arc<ServerConfig>> {
        let now = Instant::now();
        let mut known = lock(&self.certificate);
        if let Some(known) = &*known
            && now.saturating_duration_since(known.looked) < CERTIFICATE_AGE
        {
            return known.config.clone();
        }
        let changed =
            [&files.0, &files.1].map(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok());
        let before = known.as_ref().and_then(|known| known.config.clone());
        let config = match &*known {
            Some(known) if known.changed == changed && known.config.is_some() => before,
            _ => match tls::server_config(&files.0, &files.1) {
                Ok(config) => Some(config),
                Err(reason) => {
                    tracing::error!(reason, "the certificate for providers cannot be read");
                    before
                }
            },
        };
        *known = Some(Certificate { looked: now, changed, config: config.clone() });
        config
    }

    /// For Prometheus.
    pub(super) fn write(&self, out: &mut String) {
        let rows = [
            ("asked_total", &self.asked, "Media connections that the control plane was asked about."),
            (
                "refused_total",
                &self.refused,
                "Media connections that were refused, without those that no answer came for.",
            ),
            ("timed_out_total", &self.timed_out, "Media connections that no answer came for in time."),
            ("malformed_total", &self.malformed, "Media connections that broke off or were no upgrade."),
            ("strangers_total", &self.strangers, "AudioSocket connections that closed without a UUID."),
            ("turned_away_total", &self.turned_away, "Media connections that found all places taken."),
        ];
        for (name, value, help) in rows {
            let name = format!("tandem_engine_upgrades_{name}");
            let value = value.load(Ordering::Relaxed);
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
        }
        let name = "tandem_engine_provider_connections";
        let _ =
            writeln!(out, "# HELP {name} Connections that sessions have, by provider.\n# TYPE {name} gauge");
        for (provider, value) in &self.connections {
            let _ = writeln!(out, "{name}{{provider=\"{provider}\"}} {}", value.load(Ordering::Relaxed));
        }
    }
}

/// Accepts for as long as it is polled.
pub(super) async fn accept(control: Arc<Control>, listener: TcpListener, kind: Kind) {
    loop {
        let (tcp, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: some will be free again.
                tracing::warn!(%error, ?kind, "a media connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&control.upgrades.places).try_acquire_owned() else {
            count(&control.upgrades.turned_away);
            continue;
        };
        let control = Arc::clone(&control);
        tokio::spawn(async move {
            let _place = place;
            let _ = tcp.set_nodelay(true);
            let line = Line { tcp, remote, tls: None };
            match kind {
                Kind::WebSocket => answer_websocket(&control, line).await,
                Kind::AudioSocket => answer_audiosocket(&control, line).await,
            }
        });
    }
}

/// A connection of the control thread's.
struct Line {
    tcp: TcpStream,
    remote: SocketAddr,
    tls: Option<Box<ServerConnection>>,
}

impl Line {
    /// Reads what has come, at least an octet; 0 is the end.
    async fn read(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        let mut octets = [0; 4_096];
        loop {
            self.tcp.readable().await?;
            let len = match self.tcp.try_read(&mut octets) {
                Ok(0) => return Ok(0),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            let Some(tls) = &mut self.tls else {
                into.extend_from_slice(&octets[..len]);
                return Ok(len);
            };
            let before = into.len();
            let mut rest = &octets[..len];
            while !rest.is_empty() {
                tls.read_tls(&mut rest)?;
                tls.process_new_packets().map_err(io::Error::other)?;
                let mut plain = [0; 4_096];
                while let Ok(len @ 1..) = tls.reader().read(&mut plain) {
                    into.extend_from_slice(&plain[..len]);
                }
            }
            self.flush().await?;
            if into.len() > before || self.tls.as_ref().is_some_and(|tls| !tls.is_handshaking()) {
                return Ok(into.len() - before + usize::from(into.len() == before));
            }
        }
    }

    /// Writes what TLS has to say.
    async fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        let mut out = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut out)?;
        }
        write_all(&self.tcp, &out).await
    }

    async fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => write_all(&self.tcp, octets).await,
            Some(tls) => {
                tls.writer().write_all(octets)?;
                self.flush().await
            }
        }
    }

    /// Says why it is not let in, and closes.
    async fn refuse(&mut self, refusal: &Refusal) {
        let mut out = Vec::new();
        refusal.write(&mut out);
        self.part(&out).await;
    }

    /// The same for an Asterisk.
    async fn hang_up(&mut self, mut server: Box<Server>) {
        let mut out = Vec::new();
        server.hangup(&mut out);
        self.part(&out).await;
    }

    /// Last words.
    async fn part(&mut self, octets: &[u8]) {
        let said = async {
            self.write(octets).await?;
            if let Some(tls) = &mut self.tls {
                tls.send_close_notify();
                self.flush().await?;
            }
            socket2::SockRef::from(&self.tcp).shutdown(std::net::Shutdown::Write)?;
            // What it still sends is read, so that the refusal is not lost to a reset.
            let mut rest = Vec::new();
            while rest.len() < 64 * 1_024 && self.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(REFUSE_WITHIN, said).await;
    }

    fn into_incoming(
        self,
        protocol: Protocol,
        early: Vec<u8>,
        answer: Vec<u8>,
        counted: Option<Counted>,
    ) -> io::Result<Incoming> {
        let Self { tcp, remote, tls } = self;
        let tcp = tcp.into_std()?;
        // As the ring's own: it waits in the kernel, not in a call.
        tcp.set_nonblocking(false)?;
        let _ = socket2::SockRef::from(&tcp).set_keepalive(true);
        Ok(Incoming {
            socket: tcp.into(),
            connection: Connection { protocol, remote, tls, early, answer, counted },
        })
    }

    fn from_incoming(incoming: Incoming) -> io::Result<(Self, Protocol)> {
        let Incoming { socket, connection } = incoming;
        let tcp = std::net::TcpStream::from(socket);
        tcp.set_nonblocking(true)?;
        let Connection { protocol, remote, tls, .. } = connection;
        Ok((Self { tcp: TcpStream::from_std(tcp)?, remote, tls }, protocol))
    }
}

async fn write_all(tcp: &TcpStream, mut octets: &[u8]) -> io::Result<()> {
    while !octets.is_empty() {
        tcp.writable().await?;
        match tcp.try_write(octets) {
            Ok(len) => octets = &octets[len..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Provider and context id of a path; `None`: none of ours.
fn route(path_and_query: &str) -> Option<(&'static Provider, &str)> {
    let path = path_and_query.split_once('?').map_or(path_and_query, |(path, _)| path);
    let (name, context) = path.strip_prefix("/v1/media/")?.split_once('/')?;
    let is_fine = |octet: u8| octet.is_ascii_alphanumeric() || b"-_.~".contains(&octet);
    let fits = (1..=CONTEXT_MAX).contains(&context.len()) && context.bytes().all(is_fine);
    Some((provider(name)?, context)).filter(|_| fits)
}

/// Header names in small letters; those that come twice are joined by a comma (RFC 9110 §5.3).
fn headers(request: &UpgradeRequest) -> HashMap<String, String> {
    let mut all: HashMap<String, String> = HashMap::new();
    for (name, value) in request.headers() {
        let known = all.entry(name.to_ascii_lowercase()).or_default();
        if !known.is_empty() {
            known.push_str(", ");
        }
        known.push_str(value);
    }
    all
}

/// Reads the upgrade request; what has come after it is left in `octets`.
async fn read_head(
    control: &Control,
    line: &mut Line,
    octets: &mut Vec<u8>,
) -> Result<UpgradeRequest, Option<Refusal>> {
    if let Some(files) = &control.config.tls {
        let config = control.upgrades.certificate(files).ok_or(None)?;
        line.tls = Some(Box::new(ServerConnection::new(config).map_err(|_| None)?));
    }
    loop {
        match UpgradeRequest::parse(octets) {
            Ok(Some((request, len))) => {
                octets.drain(..len);
                return Ok(request);
            }
            Ok(None) => {}
            Err(error) => return Err(Some(Refusal::of_handshake(&error))),
        }
        match line.read(octets).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Err(None),
        }
    }
}

async fn answer_websocket(control: &Control, mut line: Line) {
    let upgrades = &control.upgrades;
    let mut early = Vec::new();
    let head = tokio::time::timeout(HEAD_WITHIN, read_head(control, &mut line, &mut early)).await;
    let request = match head {
        Ok(Ok(request)) => request,
        outcome => {
            count(&upgrades.malformed);
            return match outcome {
                Ok(Err(Some(refusal))) => line.refuse(&refusal).await,
                // It has gone, or has not shaken hands.
                Ok(_) => {}
                Err(_) if line.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) => {}
                Err(_) => line.refuse(&Refusal::new(408, "the request did not come in time")).await,
            };
        }
    };
    let Some((provider, context_id)) = route(&request.path) else {
        count(&upgrades.refused);
        return line.refuse(&Refusal::new(404, "there is nothing here")).await;
    };
    let (id, answer) = park(upgrades);
    let upgrade = proto::MediaUpgrade {
        upgrade_id: id.clone(),
        provider: provider.name.to_owned(),
        context_id: context_id.to_owned(),
        path_and_query: request.path.clone(),
        headers: headers(&request),
        remote_address: line.remote.ip().to_string(),
        remote_port: u32::from(line.remote.port()),
        secure: line.tls.is_some(),
    };
    if !upgrades.tell(upgrade) {
        lock(&upgrades.parked).remove(&id);
        count(&upgrades.refused);
        return line.refuse(&Refusal::busy()).await;
    }
    match tokio::time::timeout(ANSWER_WITHIN, answer).await {
        Ok(Ok(Answer::Take(give))) => {
            let mut accepted = Vec::new();
            request
                .write_response_with(provider.subprotocol.filter(|name| request.offers(name)), &mut accepted);
            let counted = upgrades.counted(provider.name);
            // Whoever wanted it may have gone: it is closed then.
            if let Ok(incoming) = line.into_incoming(Protocol::WebSocket(provider), early, accepted, counted)
            {
                let _ = give.send(incoming);
            }
        }
        Ok(Ok(Answer::Refuse(refusal))) => {
            count(&upgrades.refused);
            line.refuse(&refusal).await;
        }
        Ok(Err(_)) | Err(_) => {
            lock(&upgrades.parked).remove(&id);
            count(&upgrades.timed_out);
            line.refuse(&Refusal::busy()).await;
        }
    }
}

fn park(upgrades: &Upgrades) -> (String, oneshot::Receiver<Answer>) {
    let id = uuid::Uuid::now_v7().to_string();
    let (answered, answer) = oneshot::channel();
    lock(&upgrades.parked).insert(id.clone(), answered);
    count(&upgrades.asked);
    (id, answer)
}

/// Hears what Asterisk says until something is interesting.
async fn hear(line: &mut Line, server: &mut Server) -> Result<Option<[u8; 16]>, End> {
    let mut octets = Vec::new();
    let read = line.read(&mut octets).await;
    let (mut id, mut end) = (None, None);
    let mut take = |event: ServerEvent<'_>| match event {
        ServerEvent::Id(said) => id = Some(said),
        ServerEvent::End(why) => end = Some(why),
        _ => {}
    };
    match read {
        Ok(1..) => server.handle_bytes(&octets, Instant::now(), &mut take),
        Ok(0) | Err(_) => server.handle_closed(&mut take),
    }
    end.map_or(Ok(id), Err)
}

async fn answer_audiosocket(control: &Control, mut line: Line) {
    let upgrades = &control.upgrades;
    let mut server = Box::new(Server::new(Instant::now()));
    let said = async {
        loop {
            if let Some(id) = hear(&mut line, &mut server).await? {
                return Ok::<_, End>(id);
            }
        }
    };
    let uuid = match tokio::time::timeout(ID_WITHIN, said).await {
        Ok(Ok(uuid)) => uuid,
        Ok(Err(End::Stranger)) => return count(&upgrades.strangers),
        Ok(Err(_)) | Err(_) => return count(&upgrades.malformed),
    };
    let (id, mut answer) = park(upgrades);
    let upgrade = proto::MediaUpgrade {
        upgrade_id: id.clone(),
        provider: "audiosocket".to_owned(),
        context_id: uuid::Uuid::from_bytes(uuid).to_string(),
        remote_address: line.remote.ip().to_string(),
        remote_port: u32::from(line.remote.port()),
        ..Default::default()
    };
    let is_told = upgrades.tell(upgrade);
    let until = tokio::time::sleep(if is_told { ANSWER_WITHIN } else { Duration::ZERO });
    tokio::pin!(until);
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut out = Vec::new();
    let answered = loop {
        tokio::select! {
            answered = &mut answer => break answered.ok(),
            () = &mut until => break None,
            heard = hear(&mut line, &mut server) => if heard.is_err() {
                lock(&upgrades.parked).remove(&id);
                return count(&upgrades.malformed);
            },
            // The first at once: an Asterisk may starve the caller's sound while we are silent.
            _ = frames.tick() => {
                out.clear();
                server.write_silence(&mut out);
                if write_all(&line.tcp, &out).await.is_err() {
                    lock(&upgrades.parked).remove(&id);
                    return;
                }
            }
        }
    };
    match answered {
        Some(Answer::Take(give)) => {
            let counted = upgrades.counted("audiosocket");
            if let Ok(incoming) =
                line.into_incoming(Protocol::AudioSocket(server), Vec::new(), Vec::new(), counted)
            {
                let _ = give.send(incoming);
            }
        }
        other => {
            lock(&upgrades.parked).remove(&id);
            count(if other.is_some() || !is_told { &upgrades.refused } else { &upgrades.timed_out });
            line.hang_up(server).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_providers_paths_are_found() {
        let found = |path| route(path).map(|(provider, context)| (provider.name, context));
        assert_eq!(found("/v1/media/twilio/ctx-1"), Some(("twilio", "ctx-1")));
        assert_eq!(found("/v1/media/exotel/0190-ab?sample-rate=16000"), Some(("exotel", "0190-ab")));
        let long = format!("/v1/media/twilio/{}", "a".repeat(CONTEXT_MAX + 1));
        for path in
            ["/", "/v1/media/twilio", "/v1/media/twilio/", "/v1/media/acme/x", "/v1/media/twilio/a/b", &long]
        {
            assert_eq!(found(path), None, "{path}");
        }
    }

    #[test]
    fn upgrades_are_told_to_the_newest_controller_alone() {
        let upgrades = Upgrades::default();
        assert!(!upgrades.tell(proto::MediaUpgrade::default()), "there is none");
        let (_, mut older) = upgrades.enrol();
        let (place, mut newer) = upgrades.enrol();
        assert!(upgrades.tell(proto::MediaUpgrade::default()));
        assert!(newer.try_recv().is_ok() && older.try_recv().is_err());
        upgrades.strike(place);
        assert!(upgrades.tell(proto::MediaUpgrade::default()));
        assert!(older.try_recv().is_ok());
    }

    #[test]
    fn what_cannot_be_a_refusal_is_none() {
        let given = |status| proto::UpgradeRefusal { status, ..Default::default() };
        assert!(Refusal::from_proto(given(200)).is_err() && Refusal::from_proto(given(0)).is_err());
        let refusal = Refusal::from_proto(proto::UpgradeRefusal {
            status: 503,
            reason: "full\r\nx: y".into(),
            retry_after_s: 7,
        });
        let mut out = Vec::new();
        refusal.unwrap().write(&mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{text}");
        assert!(text.contains("\r\nRetry-After: 7\r\n") && text.ends_with("\r\n\r\nfullx: y"), "{text}");
    }
}
