//! Providers' connections until a session has them: accepted, read up to where they say whose they are, and parked until the control
//! plane has answered.
//!
//! ```text
//!   TCP ─▶ (TLS) ─▶ upgrade request ─▶ 404, or MediaUpgrade to the newest controller that listens ─▶ parked, ANSWER_WITHIN
//!   TCP ─▶ UUID ────────────────────▶ the same, and silence every 20 ms meanwhile          │
//!                                                                                          ├─ refused: status, closed
//!                                       OpenSession, AnswerUpgrade: the socket goes ◀──────┴─ taken
//!                                       to the core of its session, which answers 101
//! ```
//!
//! Whoever connects costs a place of [`PLACES`], a source has [`SOURCE_PLACES`] of them, and there is a deadline: [`HEAD_WITHIN`] for
//! TLS and the request, or for the UUID, however slowly the octets come. Nothing of a path, a header or a UUID is logged: the context
//! id in them is the claim.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::{self, Read, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
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
use crate::leg::provider::{AUDIOSOCKET, Connection, Protocol};
use crate::mailbox::{Handover, Incoming};
use crate::metrics::Counted;
use crate::ring::tame_incoming;

/// Connections of one listener that are read or parked at a time; what comes above is closed at once.
const PLACES: usize = 1_024;

/// Of them those that one source has: an IPv4 address, or the 64 bits of an IPv6 one that name a network. What comes from the host
/// itself is a proxy's, which knows its sources better, and is not counted.
const SOURCE_PLACES: usize = 64;

/// TLS handshakes under way at a time; others wait their turn within [`HEAD_WITHIN`]. Several sources' share, so that none can hold
/// all of them.
const HANDSHAKES: usize = 4 * SOURCE_PLACES;

/// Octets that a client may send before it is let in; more of it waits in its socket.
const EARLY_MAX: usize = 64 * 1_024;

/// Keys that a caller may press while an AudioSocket is parked.
const KEYS_MAX: usize = 32;

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

    /// Nobody can be asked.
    fn nobody() -> Self {
        Self { retry_after_s: Some(1), ..Self::new(503, "no control plane listens now") }
    }

    /// Whoever was asked is silent. What the context id claims may be spent by now, which only another try can tell.
    fn unanswered() -> Self {
        Self { retry_after_s: Some(1), ..Self::new(503, "the control plane did not answer in time") }
    }

    /// The session that it is for is over.
    pub(super) fn gone() -> Self {
        Self::new(404, "the call is over")
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
pub(super) enum Answer {
    Refuse(Refusal),
    Take(oneshot::Sender<Incoming>),
}

/// Who is told of upgrades, the newest last.
#[derive(Debug, Default)]
struct Controllers {
    next: u64,
    all: Vec<Controller>,
}

/// One of them.
#[derive(Debug)]
struct Controller {
    place: u64,
    sender: mpsc::Sender<proto::Event>,
    /// It was told and did not answer in time: others are asked first.
    is_silent: bool,
}

/// Places of one listener, by source.
#[derive(Debug, Default)]
struct Places {
    taken: usize,
    sources: HashMap<IpAddr, usize>,
}

impl Places {
    /// Takes one; false: there is none, or none for this source.
    fn take(&mut self, source: IpAddr) -> bool {
        let of_source = self.sources.get(&source).copied().unwrap_or_default();
        if self.taken >= PLACES || (of_source >= SOURCE_PLACES && !source.is_loopback()) {
            return false;
        }
        self.taken += 1;
        self.sources.insert(source, of_source + 1);
        true
    }

    fn leave(&mut self, source: IpAddr) {
        self.taken -= 1;
        if let Some(of_source) = self.sources.get_mut(&source) {
            *of_source -= 1;
            if *of_source == 0 {
                self.sources.remove(&source);
            }
        }
    }
}

/// Whoever has 64 bits of an IPv6 address has them all.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)))
        }
        address => address,
    }
}

/// A place that is given back when it is dropped.
struct Place {
    control: Arc<Control>,
    kind: Kind,
    source: IpAddr,
}

impl Place {
    fn take(control: &Arc<Control>, kind: Kind, address: IpAddr) -> Option<Self> {
        let source = source_of(address);
        let is_taken = lock(control.upgrades.places(kind)).take(source);
        is_taken.then(|| Self { control: Arc::clone(control), kind, source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(self.control.upgrades.places(self.kind)).leave(self.source);
    }
}

/// What became of the connections of one provider.
#[derive(Debug)]
struct Tally {
    provider: &'static str,
    /// Sessions have so many now.
    connections: Arc<AtomicU64>,
    accepted: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    dropped: AtomicU64,
    retaken: AtomicU64,
}

impl Tally {
    fn new(provider: &'static str) -> Self {
        Self {
            provider,
            connections: Arc::default(),
            accepted: Arc::default(),
            refused: Arc::default(),
            dropped: AtomicU64::new(0),
            retaken: AtomicU64::new(0),
        }
    }
}

/// What is said to a connection that was taken from its place if no worker takes it in turn.
#[derive(Debug)]
pub(super) struct Otherwise {
    refusal: Refusal,
    returned: Option<oneshot::Receiver<Incoming>>,
    /// How many were accepted, and refused, of its provider.
    counters: Option<[Arc<AtomicU64>; 2]>,
    provider: &'static str,
}

impl Otherwise {
    /// Why it will be refused.
    pub(super) fn because(&mut self, refusal: Refusal) {
        self.refusal = refusal;
    }

    /// Whose it is.
    pub(super) fn provider(&self) -> &'static str {
        self.provider
    }
}

impl Drop for Otherwise {
    fn drop(&mut self) {
        let Some(returned) = self.returned.take() else { return };
        let (refusal, counters) = (self.refusal.clone(), self.counters.take());
        tokio::spawn(async move {
            // Nothing comes back of one that was taken.
            let returned = returned.await;
            if let Some([accepted, refused]) = &counters {
                count(if returned.is_err() { accepted } else { refused });
            }
            let Ok(incoming) = returned else { return };
            let Ok((mut line, protocol)) = Line::from_incoming(incoming) else { return };
            match protocol {
                Protocol::WebSocket(_) => line.refuse(&refusal).await,
                Protocol::AudioSocket(server) => line.hang_up(server).await,
            }
        });
    }
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
    /// Of the two listeners.
    websockets: Mutex<Places>,
    audiosockets: Mutex<Places>,
    handshakes: Semaphore,
    controllers: Mutex<Controllers>,
    certificate: Mutex<Option<Certificate>>,
    tallies: Vec<Tally>,
    asked: AtomicU64,
    /// Of no provider's path.
    unknown: AtomicU64,
    timed_out: AtomicU64,
    malformed: AtomicU64,
    left: AtomicU64,
    strangers: AtomicU64,
    turned_away: AtomicU64,
}

impl Default for Upgrades {
    fn default() -> Self {
        let names = PROVIDERS.iter().map(|provider| provider.name).chain([AUDIOSOCKET]);
        Self {
            parked: Mutex::default(),
            websockets: Mutex::default(),
            audiosockets: Mutex::default(),
            handshakes: Semaphore::new(HANDSHAKES),
            controllers: Mutex::default(),
            certificate: Mutex::default(),
            tallies: names.map(Tally::new).collect(),
            asked: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            left: AtomicU64::new(0),
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
    fn places(&self, kind: Kind) -> &Mutex<Places> {
        match kind {
            Kind::WebSocket => &self.websockets,
            Kind::AudioSocket => &self.audiosockets,
        }
    }

    fn tally(&self, provider: &str) -> Option<&Tally> {
        self.tallies.iter().find(|tally| tally.provider == provider)
    }

    fn count_refused(&self, provider: &str) {
        if let Some(tally) = self.tally(provider) {
            count(&tally.refused);
        }
    }

    /// A session has lost its connection.
    pub(super) fn count_dropped(&self, provider: &str) {
        if let Some(tally) = self.tally(provider) {
            count(&tally.dropped);
        }
    }

    /// A session has got another.
    pub(super) fn count_retaken(&self, provider: &str) {
        if let Some(tally) = self.tally(provider) {
            count(&tally.retaken);
        }
    }

    /// A controller that is told of upgrades from now on, until a newer one comes.
    pub(super) fn enrol(&self) -> (u64, mpsc::Receiver<proto::Event>) {
        let (sender, told) = mpsc::channel(TOLD_MAX);
        let mut controllers = lock(&self.controllers);
        let place = controllers.next;
        controllers.next += 1;
        controllers.all.push(Controller { place, sender, is_silent: false });
        (place, told)
    }

    /// It has gone.
    pub(super) fn strike(&self, place: u64) {
        lock(&self.controllers).all.retain(|known| known.place != place);
    }

    /// Tells a controller: the newest that takes it, those that were silent when they were asked after all others. Says which;
    /// `None`: there is none, or none listens.
    fn tell(&self, upgrade: proto::MediaUpgrade) -> Option<u64> {
        let mut event =
            proto::Event { event: Some(proto::event::Event::MediaUpgrade(upgrade)), ..Default::default() };
        let controllers = lock(&self.controllers);
        for is_silent in [false, true] {
            for known in controllers.all.iter().rev().filter(|known| known.is_silent == is_silent) {
                event = match known.sender.try_send(event) {
                    Ok(()) => return Some(known.place),
                    Err(refused) => refused.into_inner(),
                };
            }
        }
        None
    }

    /// A controller has answered in time, or has not.
    fn judge(&self, place: u64, is_silent: bool) {
        if let Some(known) = lock(&self.controllers).all.iter_mut().find(|known| known.place == place) {
            known.is_silent = is_silent;
        }
    }

    /// Refuses one that is parked; false: there is none.
    pub(super) fn refuse(&self, id: &str, refusal: Refusal) -> bool {
        let parked = lock(&self.parked).remove(id);
        parked.is_some_and(|parked| parked.send(Answer::Refuse(refusal)).is_ok())
    }

    /// Takes one that is parked. If no worker takes it in turn it is refused, as [`Otherwise`] says when that is dropped.
    pub(super) async fn take(&self, id: &str) -> Option<(Handover, Otherwise)> {
        let parked = lock(&self.parked).remove(id)?;
        let (give, given) = oneshot::channel();
        parked.send(Answer::Take(give)).ok()?;
        let incoming = given.await.ok()?;
        let provider = match &incoming.connection.protocol {
            Protocol::WebSocket(provider) => provider.name,
            Protocol::AudioSocket(_) => AUDIOSOCKET,
        };
        let (handover, returned) = Handover::new(incoming);
        let counters =
            self.tally(provider).map(|tally| [Arc::clone(&tally.accepted), Arc::clone(&tally.refused)]);
        let otherwise = Otherwise { refusal: Refusal::busy(), returned: Some(returned), counters, provider };
        Some((handover, otherwise))
    }

    fn counted(&self, provider: &str) -> Option<Counted> {
        Some(Counted::new(&self.tally(provider)?.connections))
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
            ("unknown_total", &self.unknown, "Media connections whose path is none of ours."),
            ("timed_out_total", &self.timed_out, "Media connections that no answer came for in time."),
            ("malformed_total", &self.malformed, "Media connections that broke off or were no upgrade."),
            ("left_total", &self.left, "Media connections that went while they waited for an answer."),
            ("strangers_total", &self.strangers, "AudioSocket connections that closed without a UUID."),
            ("turned_away_total", &self.turned_away, "Media connections that found all places taken."),
        ];
        for (name, value, help) in rows {
            let name = format!("tandem_engine_upgrades_{name}");
            let value = value.load(Ordering::Relaxed);
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
        }
        type Of = fn(&Tally) -> &AtomicU64;
        let rows: [(&str, &str, &str, Of); 5] = [
            ("provider_connections", "gauge", "Connections that sessions have.", |tally| &tally.connections),
            ("upgrades_accepted_total", "counter", "Media connections that were let in.", |tally| {
                &tally.accepted
            }),
            (
                "upgrades_refused_total",
                "counter",
                "Media connections that were refused, without those that no answer came for.",
                |tally| &tally.refused,
            ),
            (
                "upgrades_dropped_total",
                "counter",
                "Media connections that sessions lost without a stop.",
                |tally| &tally.dropped,
            ),
            ("upgrades_retaken_total", "counter", "Media connections in the place of a lost one.", |tally| {
                &tally.retaken
            }),
        ];
        for (name, kind, help, of) in rows {
            let name = format!("tandem_engine_{name}");
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for tally in &self.tallies {
                let value = of(tally).load(Ordering::Relaxed);
                let _ = writeln!(out, "{name}{{provider=\"{}\"}} {value}", tally.provider);
            }
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
        let Some(place) = Place::take(&control, kind, remote.ip()) else {
            count(&control.upgrades.turned_away);
            continue;
        };
        let control = Arc::clone(&control);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = tame_incoming(&tcp) {
                tracing::warn!(%error, "a media connection's socket cannot be set up");
            }
            let line = Line { tcp, remote, tls: None, out: Vec::new(), is_over: false };
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
    /// Of TLS, to be written.
    out: Vec<u8>,
    /// Nothing more comes.
    is_over: bool,
}

impl Line {
    /// It has not shaken hands yet.
    fn is_shaking(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| tls.is_handshaking())
    }

    /// Reads what has come, at least an octet; 0 is the end, also that of TLS. Nothing is lost when it is dropped before it is done.
    async fn read(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        let before = into.len();
        loop {
            let goes_on = self.step(into).await?;
            if into.len() > before || !goes_on {
                return Ok(into.len() - before);
            }
        }
    }

    /// Shakes hands; what came with the last of it is left in `into`.
    async fn shake(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        while self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            if !self.step(into).await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // One step of one connection a turn: the calls of the service go on between two.
            tokio::task::yield_now().await;
        }
        self.flush().await
    }

    /// Waits for octets and reads some; false at the end.
    async fn step(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        let mut octets = [0; 4_096];
        self.flush().await?;
        let len = loop {
            if self.is_over {
                return Ok(false);
            }
            self.tcp.readable().await?;
            match self.tcp.try_read(&mut octets) {
                Ok(0) => self.is_over = true,
                Ok(len) => break len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        };
        let Some(tls) = &mut self.tls else {
            into.extend_from_slice(&octets[..len]);
            return Ok(true);
        };
        let outcome = decrypt(tls, &octets[..len], into);
        while tls.wants_write() {
            tls.write_tls(&mut self.out)?;
        }
        if outcome.is_err() {
            // The alert says why.
            self.flush().await?;
        }
        self.is_over = outcome?;
        Ok(!self.is_over)
    }

    /// Writes what TLS has to say.
    async fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            self.tcp.writable().await?;
            match self.tcp.try_write(&self.out) {
                Ok(len) => drop(self.out.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => write_all(&self.tcp, octets).await,
            Some(tls) => {
                tls.writer().write_all(octets)?;
                while tls.wants_write() {
                    tls.write_tls(&mut self.out)?;
                }
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
                while tls.wants_write() {
                    tls.write_tls(&mut self.out)?;
                }
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
        keys: Vec<u8>,
        counted: Option<Counted>,
    ) -> io::Result<Incoming> {
        let Self { tcp, remote, tls, .. } = self;
        let tcp = tcp.into_std()?;
        // As the ring's own: it waits in the kernel, not in a call.
        tcp.set_nonblocking(false)?;
        Ok(Incoming {
            socket: tcp.into(),
            connection: Connection { protocol, remote, tls, early, answer, keys, counted },
        })
    }

    fn from_incoming(incoming: Incoming) -> io::Result<(Self, Protocol)> {
        let Incoming { socket, connection } = incoming;
        let tcp = std::net::TcpStream::from(socket);
        tcp.set_nonblocking(true)?;
        let Connection { protocol, remote, tls, .. } = connection;
        Ok((Self { tcp: TcpStream::from_std(tcp)?, remote, tls, out: Vec::new(), is_over: false }, protocol))
    }
}

/// Reads records; says whether the peer has said that nothing more comes.
fn decrypt(tls: &mut ServerConnection, mut octets: &[u8], into: &mut Vec<u8>) -> io::Result<bool> {
    while !octets.is_empty() {
        // After the peer's good-bye it takes nothing.
        if tls.read_tls(&mut octets)? == 0 {
            return Ok(true);
        }
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        let mut plain = [0; 4_096];
        while let Ok(len @ 1..) = tls.reader().read(&mut plain) {
            into.extend_from_slice(&plain[..len]);
        }
        if state.peer_has_closed() {
            return Ok(true);
        }
    }
    Ok(false)
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
        let _turn = control.upgrades.handshakes.acquire().await.map_err(|_| None)?;
        let config = control.upgrades.certificate(files).ok_or(None)?;
        line.tls = Some(Box::new(ServerConnection::new(config).map_err(|_| None)?));
        line.shake(octets).await.map_err(|_| None)?;
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

/// Takes a parked one out of the list, however its waiting ends.
struct Parked<'a> {
    upgrades: &'a Upgrades,
    id: String,
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        lock(&self.upgrades.parked).remove(&self.id);
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
                Err(_) if control.config.tls.is_some() && line.is_shaking() => {}
                Err(_) => line.refuse(&Refusal::new(408, "the request did not come in time")).await,
            };
        }
    };
    let Some((provider, context_id)) = route(&request.path) else {
        count(&upgrades.unknown);
        return line.refuse(&Refusal::new(404, "there is nothing here")).await;
    };
    let (id, mut answer) = park(upgrades);
    let parked = Parked { upgrades, id };
    let upgrade = proto::MediaUpgrade {
        upgrade_id: parked.id.clone(),
        provider: provider.name.to_owned(),
        context_id: context_id.to_owned(),
        path_and_query: request.path.clone(),
        headers: headers(&request),
        remote_address: line.remote.ip().to_string(),
        remote_port: u32::from(line.remote.port()),
        secure: line.tls.is_some(),
    };
    let Some(told) = upgrades.tell(upgrade) else {
        upgrades.count_refused(provider.name);
        return line.refuse(&Refusal::nobody()).await;
    };
    let until = tokio::time::sleep(ANSWER_WITHIN);
    tokio::pin!(until);
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer.ok(),
            () = &mut until => break None,
            read = line.read(&mut early), if early.len() < EARLY_MAX => if !matches!(read, Ok(1..)) {
                count(&upgrades.left);
                return;
            },
        }
    };
    upgrades.judge(told, answer.is_none());
    drop(parked);
    match answer {
        Some(Answer::Take(give)) => {
            let mut accepted = Vec::new();
            request
                .write_response_with(provider.subprotocol.filter(|name| request.offers(name)), &mut accepted);
            let counted = upgrades.counted(provider.name);
            if !matches!(tokio::time::timeout(REFUSE_WITHIN, line.flush()).await, Ok(Ok(()))) {
                return;
            }
            // Whoever wanted it may have gone: it is closed then.
            if let Ok(incoming) =
                line.into_incoming(Protocol::WebSocket(provider), early, accepted, Vec::new(), counted)
            {
                let _ = give.send(incoming);
            }
        }
        Some(Answer::Refuse(refusal)) => {
            upgrades.count_refused(provider.name);
            line.refuse(&refusal).await;
        }
        None => {
            count(&upgrades.timed_out);
            line.refuse(&Refusal::unanswered()).await;
        }
    }
}

pub(super) fn park(upgrades: &Upgrades) -> (String, oneshot::Receiver<Answer>) {
    let id = uuid::Uuid::now_v7().to_string();
    let (answered, answer) = oneshot::channel();
    lock(&upgrades.parked).insert(id.clone(), answered);
    count(&upgrades.asked);
    (id, answer)
}

/// Hears what Asterisk says until something is interesting. Keys are kept.
async fn hear(line: &mut Line, server: &mut Server, keys: &mut Vec<u8>) -> Result<Option<[u8; 16]>, End> {
    let mut octets = Vec::new();
    let read = line.read(&mut octets).await;
    let (mut id, mut end) = (None, None);
    let mut take = |event: ServerEvent<'_>| match event {
        ServerEvent::Id(said) => id = Some(said),
        ServerEvent::End(why) => end = Some(why),
        ServerEvent::Dtmf(key) if keys.len() < KEYS_MAX => keys.push(key),
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
    let mut keys = Vec::new();
    let said = async {
        loop {
            if let Some(id) = hear(&mut line, &mut server, &mut keys).await? {
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
    let parked = Parked { upgrades, id };
    let upgrade = proto::MediaUpgrade {
        upgrade_id: parked.id.clone(),
        provider: AUDIOSOCKET.to_owned(),
        context_id: uuid::Uuid::from_bytes(uuid).to_string(),
        remote_address: line.remote.ip().to_string(),
        remote_port: u32::from(line.remote.port()),
        ..Default::default()
    };
    let told = upgrades.tell(upgrade);
    let until = tokio::time::sleep(if told.is_some() { ANSWER_WITHIN } else { Duration::ZERO });
    tokio::pin!(until);
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut out = Vec::new();
    let answered = loop {
        tokio::select! {
            answered = &mut answer => break answered.ok(),
            () = &mut until => break None,
            heard = hear(&mut line, &mut server, &mut keys) => if heard.is_err() {
                return count(&upgrades.left);
            },
            // The first at once: an Asterisk may starve the caller's sound while we are silent.
            _ = frames.tick() => {
                out.clear();
                server.write_silence(&mut out);
                let written = tokio::time::timeout(ANSWER_WITHIN, write_all(&line.tcp, &out)).await;
                if !matches!(written, Ok(Ok(()))) {
                    return count(&upgrades.left);
                }
            }
        }
    };
    if let Some(told) = told {
        upgrades.judge(told, answered.is_none());
    }
    drop(parked);
    match answered {
        Some(Answer::Take(give)) => {
            let counted = upgrades.counted(AUDIOSOCKET);
            let protocol = Protocol::AudioSocket(server);
            if let Ok(incoming) = line.into_incoming(protocol, Vec::new(), Vec::new(), keys, counted) {
                let _ = give.send(incoming);
            }
        }
        other => {
            match other.is_some() || told.is_none() {
                true => upgrades.count_refused(AUDIOSOCKET),
                false => count(&upgrades.timed_out),
            }
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
        assert_eq!(upgrades.tell(proto::MediaUpgrade::default()), None, "there is none");
        let (_, mut older) = upgrades.enrol();
        let (place, mut newer) = upgrades.enrol();
        assert!(upgrades.tell(proto::MediaUpgrade::default()).is_some());
        assert!(newer.try_recv().is_ok() && older.try_recv().is_err());
        upgrades.strike(place);
        assert!(upgrades.tell(proto::MediaUpgrade::default()).is_some());
        assert!(older.try_recv().is_ok());
    }

    #[test]
    fn a_controller_that_does_not_listen_or_answer_is_passed_over() {
        let upgrades = Upgrades::default();
        let tell = || upgrades.tell(proto::MediaUpgrade::default());
        let (older, _hears) = upgrades.enrol();
        let (dead, gone) = upgrades.enrol();
        drop(gone);
        assert_eq!(tell(), Some(older), "the newest has gone");
        upgrades.strike(dead);
        let (full, _does_not_read) = upgrades.enrol();
        for _ in 0..TOLD_MAX {
            assert_eq!(tell(), Some(full));
        }
        assert_eq!(tell(), Some(older), "the newest does not read");
        upgrades.strike(full);

        let (silent, _hears_too) = upgrades.enrol();
        assert_eq!(tell(), Some(silent));
        upgrades.judge(silent, true);
        assert_eq!(tell(), Some(older), "the newest did not answer");
        upgrades.strike(older);
        assert_eq!(tell(), Some(silent), "better than none");
        upgrades.judge(silent, false);
        let (_, gone) = upgrades.enrol();
        drop(gone);
        assert_eq!(tell(), Some(silent));
    }

    #[test]
    fn a_source_has_its_share_of_the_places_and_a_listener_its_own() {
        let (control, _workers) = super::super::tests::control(1);
        let take = |kind, address: &str| Place::take(&control, kind, address.parse().unwrap());
        let taken: Vec<_> = (0..SOURCE_PLACES).map(|_| take(Kind::WebSocket, "192.0.2.1").unwrap()).collect();
        assert!(take(Kind::WebSocket, "192.0.2.1").is_none());
        assert!(take(Kind::WebSocket, "::ffff:192.0.2.1").is_none(), "the same address");
        assert!(take(Kind::WebSocket, "192.0.2.2").is_some());
        let network: Vec<_> =
            (0..SOURCE_PLACES).map(|n| take(Kind::WebSocket, &format!("2001:db8::{n:x}")).unwrap()).collect();
        assert!(take(Kind::WebSocket, "2001:db8::ffff:1").is_none(), "the same network");
        assert!(take(Kind::WebSocket, "2001:db8:0:1::1").is_some());
        drop((taken, network));
        assert!(take(Kind::WebSocket, "192.0.2.1").is_some(), "places are given back");
        let all: Vec<_> = (0..PLACES).map(|_| take(Kind::WebSocket, "127.0.0.1").unwrap()).collect();
        assert!(take(Kind::WebSocket, "192.0.2.1").is_none());
        assert!(take(Kind::AudioSocket, "192.0.2.1").is_some());
        drop(all);
        assert!(lock(&control.upgrades.websockets).sources.is_empty());
    }

    #[test]
    fn a_providers_socket_hoards_little_and_gives_the_dead_up() {
        super::super::tests::on_runtime(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (_peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            let (tcp, remote) = accepted.unwrap();
            tame_incoming(&tcp).unwrap();
            let line = Line { tcp, remote, tls: None, out: Vec::new(), is_over: false };
            let protocol = Protocol::WebSocket(provider("twilio").unwrap());
            let incoming = line.into_incoming(protocol, Vec::new(), Vec::new(), Vec::new(), None).unwrap();
            let socket = socket2::SockRef::from(&incoming.socket);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert!(socket.tcp_user_timeout().unwrap().is_some_and(|after| after <= Duration::from_secs(10)));
            assert!(socket.tcp_notsent_lowat().unwrap() <= 64 * 1_024);
        });
    }

    #[test]
    fn a_renewed_certificate_is_shown_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let files = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let write = |age: u64| {
            let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            std::fs::write(&files.0, key.cert.pem()).unwrap();
            std::fs::write(&files.1, key.signing_key.serialize_pem()).unwrap();
            let at = SystemTime::now() - Duration::from_secs(age);
            std::fs::File::open(&files.0).unwrap().set_modified(at).unwrap();
        };
        let upgrades = Upgrades::default();
        let later = || {
            if let Some(known) = &mut *lock(&upgrades.certificate) {
                known.looked = known.looked.checked_sub(CERTIFICATE_AGE).unwrap();
            }
            upgrades.certificate(&files).unwrap()
        };
        write(100);
        let first = later();
        assert!(Arc::ptr_eq(&first, &later()), "it has not changed");
        write(50);
        assert!(Arc::ptr_eq(&first, &upgrades.certificate(&files).unwrap()), "not looked at so soon");
        let second = later();
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::write(&files.0, "none").unwrap();
        assert!(Arc::ptr_eq(&second, &later()), "the last good one stays");
        write(10);
        assert!(!Arc::ptr_eq(&second, &later()));
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
