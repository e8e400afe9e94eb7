//! The control thread: the gRPC service of engine.proto. It picks a core for a new session, routes a command to the core
//! that has it, and hands out events.
//!
//! ```text
//!   gRPC ──▶ registry: session id → core, key ──▶ Commands ──▶ worker
//!   subscribers ◀── broadcast ◀── pump: numbers events, keeps the registry true ◀── Inbox ◀── worker
//! ```
//!
//! Everything here runs on one thread; the mutexes are there because tonic asks for `Sync`, are never contended and never
//! held across an await. A subscriber that falls [`SUBSCRIBER_EVENTS_MAX`] behind loses its stream: it connects again and
//! gets a snapshot. Without any subscriber the orphan clock runs.

mod events;
pub mod identity;
mod joining;
mod service;
mod statistics;
mod tls;
mod upgrades;

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tandem_api::engine::v1 as proto;
use tandem_api::engine::v1::engine_service_server::EngineServiceServer;
use tandem_rtp::dtls::Identity;
use tokio::sync::{OnceCell, broadcast, oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;

use crate::config::Config;
use crate::contract;
use crate::mailbox::{Command, Commands, Inbox, Opened, Summary};
use crate::metrics::CoreMetrics;
use crate::ports;
use crate::ring::{DriverKind, Waker};

/// Events that may wait for one subscriber: twice a thousand calls that end at once.
pub const SUBSCRIBER_EVENTS_MAX: usize = 4_096;

/// A worker answers within a turn, a millisecond or so; one that takes longer than this has died.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A control plane is asked whether it lives each so often,
const PEER_ASKED: Duration = Duration::from_secs(3);

/// and answers within this.
const PEER_ANSWERS: Duration = Duration::from_secs(3);

/// One worker, as the control thread sees it.
#[derive(Debug)]
pub struct Core {
    number: usize,
    commands: Mutex<Commands>,
    metrics: Arc<CoreMetrics>,
    /// Sessions that were given to it.
    sessions: AtomicUsize,
    load: Mutex<Load>,
    /// Set by its thread when it stopped without being told to.
    dead: Arc<AtomicBool>,
}

/// Share of time spent working, over the last second.
#[derive(Debug, Clone, Copy)]
struct Load {
    at: Instant,
    busy_ns: u64,
    share: f64,
}

impl Core {
    /// A worker that has no session yet.
    pub fn new(number: usize, commands: Commands, metrics: Arc<CoreMetrics>, dead: Arc<AtomicBool>) -> Self {
        let load = Load { at: Instant::now(), busy_ns: 0, share: 0.0 };
        Self {
            number,
            commands: Mutex::new(commands),
            metrics,
            sessions: AtomicUsize::new(0),
            load: Mutex::new(load),
            dead,
        }
    }

    /// The core it is pinned to.
    pub fn number(&self) -> usize {
        self.number
    }

    /// What it counts.
    pub fn metrics(&self) -> &CoreMetrics {
        &self.metrics
    }

    /// It stopped without being told to, and carries nothing any more.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Hands it a command; false when its queue is full, or it is dead.
    pub fn send(&self, command: Command) -> bool {
        !self.is_dead() && lock(&self.commands).send(command)
    }

    /// Hands it a command that must not be lost: a full queue is emptied within a few turns. False: it is dead, or as good as that.
    async fn insist(&self, mut command: Command) -> bool {
        let until = Instant::now() + ANSWER_WITHIN;
        while !self.is_dead() && Instant::now() < until {
            let sent = lock(&self.commands).try_send(command);
            match sent {
                Ok(()) => return true,
                Err(refused) => command = refused,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        false
    }

    /// Asks it something and waits for the answer.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        if !self.send(command(reply)) {
            return Err(Status::unavailable(format!("core {} takes no commands", self.number)));
        }
        self.answer(answer).await
    }

    async fn answer<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, Status> {
        match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            // Unlike a full queue: it may have done it or do it yet.
            Ok(Err(_)) | Err(_) => {
                Err(Status::deadline_exceeded(format!("core {} does not answer", self.number)))
            }
        }
    }

    /// What is alive there.
    async fn list(&self) -> Result<Vec<Summary>, Status> {
        if self.is_dead() {
            return Ok(Vec::new());
        }
        self.ask(|reply| Command::List { reply }).await
    }

    fn measure(&self, now: Instant) {
        let busy_ns = self.metrics.busy_nanoseconds_total.get();
        let mut load = lock(&self.load);
        let passed = now.saturating_duration_since(load.at).as_nanos().max(1);
        let share = busy_ns.saturating_sub(load.busy_ns) as f64 / passed as f64;
        *load = Load { at: now, busy_ns, share: share.min(1.0) };
    }

    fn told(&self) -> proto::CoreLoad {
        proto::CoreLoad {
            core: self.number as u32,
            sessions: self.sessions.load(Ordering::Relaxed) as u32,
            busy: lock(&self.load).share,
        }
    }
}

/// A session that the control plane knows.
#[derive(Debug)]
struct Entry {
    /// Index of its core.
    core: usize,
    opened: OnceCell<Opened>,
    is_agent_ready: AtomicBool,
    /// The session whose RTP leg is the second one of this: a join that is asked for again has been done.
    joined: Mutex<Option<String>>,
}

/// What goes to every subscriber.
#[derive(Debug, Clone)]
enum Broadcast {
    Event(Arc<proto::Event>),
    /// Events were lost, or the engine stops: every stream ends.
    End(&'static str),
}

/// The control thread's state.
#[derive(Debug)]
pub struct Control {
    config: Config,
    instance_id: String,
    driver: DriverKind,
    driver_reason: String,
    cores: Vec<Core>,
    sessions: Mutex<HashMap<String, Arc<Entry>>>,
    events: broadcast::Sender<Broadcast>,
    /// Ports that legs had taken to other cores, on their way home to a core whose queue is full.
    homeless: Mutex<Vec<u16>>,
    draining: AtomicBool,
    controllers: AtomicUsize,
    /// Statistics streams.
    watchers: AtomicUsize,
    /// What is shown in DTLS handshakes.
    identity: Arc<Identity>,
    /// Providers' connections that wait for an answer.
    upgrades: upgrades::Upgrades,
    /// What agents behind `wss://` are trusted by; read when the first is dialled.
    agent_tls: OnceLock<Result<Arc<rustls::ClientConfig>, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// State of an engine that was just started.
    pub fn new(
        config: Config,
        driver: DriverKind,
        driver_reason: String,
        cores: Vec<Core>,
        identity: Identity,
    ) -> Self {
        Self {
            config,
            instance_id: uuid::Uuid::now_v7().to_string(),
            driver,
            driver_reason,
            cores,
            sessions: Mutex::new(HashMap::new()),
            events: broadcast::Sender::new(SUBSCRIBER_EVENTS_MAX),
            homeless: Mutex::default(),
            draining: AtomicBool::new(false),
            controllers: AtomicUsize::new(0),
            watchers: AtomicUsize::new(0),
            identity: Arc::new(identity),
            upgrades: upgrades::Upgrades::default(),
            agent_tls: OnceLock::new(),
        }
    }

    /// What this engine is, where it is reached, and how busy it is.
    fn describe(&self) -> proto::DescribeResponse {
        let Self { config, instance_id, driver, driver_reason, .. } = self;
        proto::DescribeResponse {
            instance_id: instance_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            driver: driver.to_string(),
            driver_reason: driver_reason.clone(),
            rtp_address: config.rtp_public.to_string(),
            rtp_port_min: u32::from(config.rtp_ports.min),
            rtp_port_max: u32::from(config.rtp_ports.max),
            cores: self.loads(),
            sessions_max: config.sessions_max as u32,
            draining: self.is_draining(),
            ws_address: config.ws_public.clone().unwrap_or_else(|| config.ws_listen.to_string()),
            ws_secure: config.tls.is_some(),
            audiosocket_address: config
                .audiosocket_public
                .clone()
                .unwrap_or_else(|| config.audiosocket_listen.to_string()),
        }
    }

    /// SHA-256 of the certificate that is shown in DTLS handshakes.
    fn fingerprint(&self) -> Vec<u8> {
        self.identity.fingerprint().as_octets().to_vec()
    }

    /// What agents behind `wss://` are trusted by.
    fn agent_tls(&self) -> Result<Arc<rustls::ClientConfig>, String> {
        self.agent_tls.get_or_init(|| tls::client_config(self.config.agent_ca.as_deref())).clone()
    }

    /// The page of metrics has these of providers' connections.
    pub fn write_upgrades(&self, out: &mut String) {
        self.upgrades.write(out);
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// New at each start.
    pub fn instance_id(&self) -> &str {
        &self.instance_id
    }

    /// Which driver runs.
    pub fn driver(&self) -> DriverKind {
        self.driver
    }

    /// The workers.
    pub fn cores(&self) -> &[Core] {
        &self.cores
    }

    /// Sessions alive.
    pub fn sessions(&self) -> usize {
        lock(&self.sessions).len()
    }

    /// Subscribers of the event stream.
    pub fn controllers(&self) -> usize {
        self.controllers.load(Ordering::Relaxed)
    }

    /// Whether new sessions are refused: because it was asked to drain, or because no worker is left.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed) || self.cores.iter().all(Core::is_dead)
    }

    /// Refuses new sessions from now on.
    pub fn drain(&self) {
        if !self.draining.swap(true, Ordering::Relaxed) {
            tracing::info!(sessions = self.sessions(), "draining");
        }
    }

    fn entry(&self, id: &str) -> Option<Arc<Entry>> {
        lock(&self.sessions).get(id).cloned()
    }

    /// Forgets a session; true if it was known.
    fn forget(&self, id: &str) -> bool {
        let Some(entry) = lock(&self.sessions).remove(id) else { return false };
        self.cores[entry.core].sessions.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Whether this is still the entry of that session: it may have been closed or refused in the meantime.
    fn has(&self, id: &str, entry: &Arc<Entry>) -> bool {
        lock(&self.sessions).get(id).is_some_and(|known| Arc::ptr_eq(known, entry))
    }

    /// The entry of a session that is to be opened.
    fn reserve(&self, id: &str, core: usize) -> Arc<Entry> {
        let mut sessions = lock(&self.sessions);
        if let Some(entry) = sessions.get(id) {
            return Arc::clone(entry);
        }
        let entry = Arc::new(Entry {
            core,
            opened: OnceCell::new(),
            is_agent_ready: AtomicBool::new(false),
            joined: Mutex::default(),
        });
        sessions.insert(id.to_owned(), Arc::clone(&entry));
        self.cores[core].sessions.fetch_add(1, Ordering::Relaxed);
        entry
    }

    /// The core with the fewest sessions.
    fn least_loaded(&self) -> usize {
        let load = |index: &usize| {
            let core = &self.cores[*index];
            (core.is_dead(), core.sessions.load(Ordering::Relaxed))
        };
        (0..self.cores.len()).min_by_key(load).unwrap_or(0)
    }

    /// A port that a leg had taken to another core was closed there: the one that owns it lets it rest.
    fn send_home(&self, port: u16) {
        let Some(index) = ports::owner(self.config.rtp_ports, port, self.cores.len()) else { return };
        let core = &self.cores[index];
        if !core.send(Command::PortHome { port }) && !core.is_dead() {
            lock(&self.homeless).push(port);
        }
    }

    /// Those that a full queue has kept.
    fn send_all_home(&self) {
        let homeless = std::mem::take(&mut *lock(&self.homeless));
        homeless.into_iter().for_each(|port| self.send_home(port));
    }

    fn loads(&self) -> Vec<proto::CoreLoad> {
        self.cores.iter().map(Core::told).collect()
    }

    /// Sessions alive, asked of every worker: of all, or it is no answer.
    async fn list(&self) -> Result<Vec<proto::SessionSummary>, Status> {
        let mut all = Vec::new();
        for core in &self.cores {
            let summaries = core.list().await?;
            all.extend(summaries.into_iter().map(|summary| proto::SessionSummary {
                session_id: summary.id.to_string(),
                call_id: summary.call_id.to_string(),
                core: core.number as u32,
                local_port: u32::from(summary.port),
                started: summary.started,
                age_ms: summary.age_ms,
                agent_ready: summary.agent_ready,
                agent_gone: summary.agent_gone,
                agent_hangup: summary.agent_hangup,
                ..contract::stream_summary(summary.stream)
            }));
        }
        Ok(all)
    }
}

/// Whether the files of a certificate for providers are of use.
///
/// # Errors
/// Why not, in words.
pub fn check_certificate(files: &(std::path::PathBuf, std::path::PathBuf)) -> Result<(), String> {
    tls::server_config(&files.0, &files.1).map(drop)
}

/// Where others come in.
#[derive(Debug)]
pub struct Listeners {
    /// Commands.
    pub grpc: TcpListener,
    /// Metrics.
    pub http: TcpListener,
    /// Providers' media WebSockets.
    pub ws: TcpListener,
    /// Asterisk's AudioSocket.
    pub audiosocket: TcpListener,
}

/// Serves until `stopped`.
pub async fn serve(
    control: Arc<Control>,
    listeners: Listeners,
    inboxes: Vec<Inbox>,
    bell: Waker,
    stopped: oneshot::Receiver<()>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Listeners { grpc, http, ws, audiosocket } = listeners;
    let grpc = TcpListenerStream::new(tokio::net::TcpListener::from_std(grpc)?);
    let ws = upgrades::accept(
        Arc::clone(&control),
        tokio::net::TcpListener::from_std(ws)?,
        upgrades::Kind::WebSocket,
    );
    let audiosocket = tokio::net::TcpListener::from_std(audiosocket)?;
    let audiosocket = upgrades::accept(Arc::clone(&control), audiosocket, upgrades::Kind::AudioSocket);
    let media = [tokio::spawn(ws), tokio::spawn(audiosocket)];
    let http = tokio::net::TcpListener::from_std(http)?;
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let mut pump = tokio::spawn(events::pump(Arc::clone(&control), inboxes, bell, stop, stopped));

    let until = |mut stopping: tokio::sync::watch::Receiver<bool>| async move {
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let pages = axum::serve(http, crate::http::router(Arc::clone(&control)))
        .with_graceful_shutdown(until(stopping.clone()));
    let pages = tokio::spawn(async move { pages.await });

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<EngineServiceServer<service::Service>>().await;
    let server = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        // A control plane that has died without a word must not be asked for long.
        .http2_keepalive_interval(Some(PEER_ASKED))
        .http2_keepalive_timeout(Some(PEER_ANSWERS))
        .add_service(health_service)
        .add_service(EngineServiceServer::new(service::Service::new(Arc::clone(&control))))
        .serve_with_incoming_shutdown(grpc, until(stopping));
    let mut server = std::pin::pin!(server);
    // A pump that dies takes the service with it: commands without events would lie.
    tokio::select! {
        served = &mut server => {
            served?;
            pump.await?;
        }
        pumped = &mut pump => {
            pumped?;
            server.await?;
        }
    }
    pages.abort();
    media.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

#[cfg(test)]
mod tests {
    use rtrb::Consumer;
    use tonic::Code;

    use super::*;
    use crate::config::PortRange;
    use crate::mailbox::{COMMANDS_MAX, Outbox, SessionKey, pair};

    /// The worker's end of a core that does only what the test does.
    pub(super) struct Worker {
        pub(super) queue: Consumer<Command>,
        dead: Arc<AtomicBool>,
        _outbox: Outbox,
        _inbox: Inbox,
    }

    pub(super) fn control(cores: usize) -> (Arc<Control>, Vec<Worker>) {
        let waker = Waker::new().unwrap();
        let (mut all, mut workers) = (Vec::new(), Vec::new());
        for number in 0..cores {
            let ((commands, _inbox), (queue, _outbox)) = pair(waker.clone(), waker.clone());
            let dead = Arc::new(AtomicBool::new(false));
            all.push(Core::new(number, commands, Arc::default(), Arc::clone(&dead)));
            workers.push(Worker { queue, dead, _outbox, _inbox });
        }
        let config = Config::for_tests(PortRange { min: 10_000, max: 10_999 });
        (
            Arc::new(Control::new(
                config,
                DriverKind::Epoll,
                String::new(),
                all,
                identity::new_identity().unwrap(),
            )),
            workers,
        )
    }

    pub(super) fn on_runtime(body: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body);
    }

    pub(super) fn overload(core: &Core) {
        for _ in 0..COMMANDS_MAX {
            core.send(Command::EndAll { reason: crate::leg::event::EndReason::Orphaned });
        }
    }

    pub(super) fn add(control: &Control, id: &str, core: usize) {
        let key = SessionKey { index: 0, generation: 1 };
        let opened = Opened { key, port: 10_000, agent_ready: true };
        control.reserve(id, core).opened.set(opened).unwrap();
    }

    #[test]
    fn a_core_that_cannot_be_asked_makes_the_list_an_error() {
        on_runtime(async {
            let (control, _workers) = control(1);
            overload(&control.cores[0]);
            assert_eq!(control.list().await.map_err(|status| status.code()), Err(Code::Unavailable));
            let refused = events::subscribe(Arc::clone(&control), "c".to_owned()).await;
            assert_eq!(refused.err().map(|status| status.code()), Some(Code::Unavailable));
            assert_eq!(control.controllers(), 0);
        });
    }

    #[test]
    fn a_core_whose_worker_has_ended_has_no_sessions() {
        on_runtime(async {
            let (control, workers) = control(1);
            workers[0].dead.store(true, Ordering::Release);
            assert!(control.list().await.is_ok_and(|sessions| sessions.is_empty()));
        });
    }
}
