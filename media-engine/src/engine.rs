//! Starts an engine and stops it: checks the host, pins one worker a core, gives each its share of the ports, and runs
//! the control thread. It is what the program, the tests and the bench run.
//!
//! ```text
//!   Engine ─┬─ control thread (tokio, current thread): gRPC, metrics, events      control.rs, http.rs
//!           ├─ worker on core a: ring, ports, sessions                             worker.rs
//!           └─ worker on core b
//! ```

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::{Config, PortRange};
use crate::control::{Control, Core, Listeners, check_certificate};
use crate::mailbox::{self, Command};
use crate::metrics::CoreMetrics;
use crate::ports::{Ports, share};
use crate::ring::{
    DriverKind, Limits, Ring, RingError, Waker, decide, pin_to_core, raise_open_files, sharpen_timers,
};
use crate::worker::Worker;

/// Descriptors that the engine needs beside its sessions': rings, wake-ups, listeners, gRPC connections.
const SPARE_DESCRIPTORS: u64 = 256;

/// A worker takes commands within a turn and ends its streams within [`crate::worker::LINGER`]; one that takes longer than
/// this to stop hangs, and is left behind.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// How long a stopping control thread may take to hand its last events over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The driver that was demanded cannot be had.
    #[error("io_uring cannot be used: {0}; or set TANDEM_ENGINE_DRIVER=auto")]
    Driver(String),
    /// A listener cannot be opened.
    #[error("cannot listen on {address} ({setting}): {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Which setting says so.
        setting: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A worker's ring cannot be made.
    #[error("core {core}: {source}")]
    Ring {
        /// Which core.
        core: usize,
        /// Why.
        source: RingError,
    },
    /// A worker cannot be pinned.
    #[error("cannot run on core {core}: {source}")]
    Pin {
        /// Which core.
        core: usize,
        /// Why.
        source: io::Error,
    },
    /// The certificate for providers' connections cannot be used.
    #[error("no TLS for providers: {0}; mend TANDEM_TLS_CERT and TANDEM_TLS_KEY, or leave them out")]
    Certificate(String),
    /// The certificate for DTLS handshakes cannot be made.
    #[error("no certificate for DTLS: {0}")]
    Identity(#[from] rcgen::Error),
    /// A thread, a runtime or an eventfd cannot be made.
    #[error("cannot start: {0}")]
    Host(#[from] io::Error),
}

/// A running engine. Dropped, it stops at once; [`Engine::shutdown`] lets calls end first.
#[derive(Debug)]
pub struct Engine {
    control: Arc<Control>,
    grpc: SocketAddr,
    metrics: SocketAddr,
    ws: SocketAddr,
    audiosocket: SocketAddr,
    workers: Vec<JoinHandle<()>>,
    control_thread: Option<JoinHandle<()>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    failure: watch::Receiver<Option<String>>,
}

/// The words of a panic.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}

impl Engine {
    /// Starts one.
    ///
    /// # Errors
    /// [`StartError`] says what is missing; nothing keeps running then.
    pub fn start(mut config: Config) -> Result<Self, StartError> {
        let decision = decide(config.driver);
        let Some(driver) = decision.driver else {
            return Err(StartError::Driver(decision.reason));
        };
        tracing::info!(%driver, reason = %decision.reason, "driver chosen");
        check_host(&config);
        config.tls.as_ref().map_or(Ok(()), check_certificate).map_err(StartError::Certificate)?;
        let (grpc, grpc_address) = listen(config.grpc_listen, "TANDEM_ENGINE_GRPC_LISTEN")?;
        let (ws, ws_address) = listen(config.ws_listen, "TANDEM_ENGINE_WS_LISTEN")?;
        let (audiosocket, audiosocket_address) =
            listen(config.audiosocket_listen, "TANDEM_ENGINE_AUDIOSOCKET_LISTEN")?;
        let (http, http_address) = listen(config.metrics_listen, "TANDEM_ENGINE_METRICS_LISTEN")?;
        // What the control plane is told: port 0 has become one.
        (config.ws_listen, config.audiosocket_listen) = (ws_address, audiosocket_address);

        let bell = Waker::new()?;
        let (fail, failure) = watch::channel(None);
        let mut cores = Vec::new();
        let mut inboxes = Vec::new();
        let mut workers = Vec::new();
        for (index, &core) in config.cores.iter().enumerate() {
            let waker = Waker::new()?;
            let ((commands, inbox), (queue, outbox)) = mailbox::pair(waker.clone(), bell.clone());
            let metrics = Arc::new(CoreMetrics::default());
            let dead = Arc::new(AtomicBool::new(false));
            cores.push(Core::new(core, commands, Arc::clone(&metrics), Arc::clone(&dead)));
            let last_bell = bell.clone();
            let fail = fail.clone();
            inboxes.push(inbox);
            let sessions_max = config.sessions_per_core();
            let ports = Ports::new(share(config.rtp_ports, index, config.cores.len()));
            let (ready, is_ready) = mpsc::sync_channel(1);
            let thread = std::thread::Builder::new().name(format!("media-{core}")).spawn(move || {
                let ring = match prepare(core, driver, sessions_max, &waker) {
                    Ok(ring) => ring,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                let worker = Worker::new(ring, sessions_max, ports, queue, outbox, metrics);
                // Nobody listens only when the start has failed elsewhere; then a stop is on its way.
                let _ = ready.send(Ok(()));
                // Its sessions are lost with it; the control thread tells their end. Then the process must go: see `failed`.
                let why = match std::panic::catch_unwind(AssertUnwindSafe(|| worker.run())) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => format!("the worker of core {core} lost its ring: {error}"),
                    Err(panic) => {
                        format!("the worker of core {core} panicked: {}", panic_message(panic.as_ref()))
                    }
                };
                tracing::error!(core, "{why}");
                dead.store(true, Ordering::Release);
                last_bell.wake();
                fail.send_replace(Some(why));
            })?;
            workers.push(thread);
            let outcome = is_ready.recv().map_err(|_| io::Error::other("worker died at start"));
            if let Err(error) = outcome.map_err(StartError::from).and_then(|ready| ready) {
                for core in &cores {
                    core.send(Command::Stop);
                }
                return Err(error);
            }
        }
        tracing::info!(
            cores = ?config.cores,
            sessions_max = config.sessions_max,
            rtp = %format_args!("{}:{}-{}", config.rtp_public, config.rtp_ports.min, config.rtp_ports.max),
            grpc = %grpc_address,
            metrics = %http_address,
            ws = %config.ws_public.clone().unwrap_or_else(|| ws_address.to_string()),
            audiosocket = %config.audiosocket_public.clone().unwrap_or_else(|| audiosocket_address.to_string()),
            tls = config.tls.is_some(),
            "engine started"
        );

        let identity = crate::control::identity::new_identity()?;
        let control = Arc::new(Control::new(config, driver, decision.reason, cores, identity));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let served = Arc::clone(&control);
        let listeners = Listeners { grpc, http, ws, audiosocket };
        let control_thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            let serve = || runtime.block_on(crate::control::serve(served, listeners, inboxes, bell, stopped));
            let why = match std::panic::catch_unwind(AssertUnwindSafe(serve)) {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("the control thread stopped: {error}")),
                Err(panic) => Some(format!("the control thread panicked: {}", panic_message(panic.as_ref()))),
            };
            if let Some(why) = why {
                tracing::error!("{why}");
                fail.send_replace(Some(why));
            }
            runtime.shutdown_timeout(LAST_WORDS);
        })?;
        Ok(Self {
            control,
            grpc: grpc_address,
            metrics: http_address,
            ws: ws_address,
            audiosocket: audiosocket_address,
            workers,
            control_thread: Some(control_thread),
            stop: Some(stop),
            failure,
        })
    }

    /// Where commands are taken.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// Where metrics are read.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Where providers' media WebSockets come in.
    pub fn ws_address(&self) -> SocketAddr {
        self.ws
    }

    /// Where Asterisk's AudioSocket comes in.
    pub fn audiosocket_address(&self) -> SocketAddr {
        self.audiosocket
    }

    /// New at each start.
    pub fn instance_id(&self) -> &str {
        self.control.instance_id()
    }

    /// Which driver runs.
    pub fn driver(&self) -> DriverKind {
        self.control.driver()
    }

    /// Sessions alive.
    pub fn sessions(&self) -> usize {
        self.control.sessions()
    }

    /// Waits until a thread of the engine has died, and says why. What is left carries its calls on, but a core is lost for
    /// good: whoever runs the engine ends it, so that a supervisor starts it anew.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.clone();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match failed {
            Some(why) => why,
            // Every thread has ended as it was told to.
            None => std::future::pending().await,
        }
    }

    /// Refuses new sessions from now on.
    pub fn drain(&self) {
        self.control.drain();
    }

    /// Refuses new sessions, lets live ones end for as long as the configuration grants, then ends them.
    pub fn shutdown(mut self) {
        self.drain();
        let until = Instant::now() + self.control.config().drain;
        while self.sessions() > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.stop();
    }

    fn stop(&mut self) {
        self.control.drain();
        let until = Instant::now() + STOP_WITHIN;
        let wait = || std::thread::sleep(Duration::from_millis(1));
        for core in self.control.cores() {
            // A full queue is emptied within a few turns.
            while !core.send(Command::Stop) && !core.is_dead() && Instant::now() < until {
                wait();
            }
        }
        for worker in self.workers.drain(..) {
            while !worker.is_finished() && Instant::now() < until {
                wait();
            }
            match worker.is_finished() {
                // It has caught its own panic and told of it.
                true => drop(worker.join()),
                false => tracing::error!(
                    worker = worker.thread().name(),
                    "worker does not stop, and is left behind"
                ),
            }
        }
        // The workers' last events are in their queues: the control thread hands them out before it goes.
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(control) = self.control_thread.take()
            && control.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

fn listen(address: SocketAddr, setting: &'static str) -> Result<(TcpListener, SocketAddr), StartError> {
    let open = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    open().map_err(|source| StartError::Listen { address, setting, source })
}

/// What a worker's thread does before it runs.
fn prepare(core: usize, driver: DriverKind, sessions_max: usize, waker: &Waker) -> Result<Ring, StartError> {
    pin_to_core(core).map_err(|source| StartError::Pin { core, source })?;
    sharpen_timers();
    Ring::open(driver, Limits::for_sessions(sessions_max), waker)
        .map_err(|source| StartError::Ring { core, source })
}

/// Says what of the host will be in the way. None of it keeps the engine from starting.
fn check_host(config: &Config) {
    let wanted = 3 * config.sessions_max as u64 + SPARE_DESCRIPTORS;
    match raise_open_files(wanted) {
        Ok(limit) if limit < wanted => tracing::warn!(
            limit,
            wanted,
            "fewer descriptors than sessions may need; raise LimitNOFILE (ulimit -n) or lower TANDEM_ENGINE_SESSIONS_MAX"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot read the limit of open files"),
    }
    let pairs: usize = share(config.rtp_ports, 0, 1).count();
    if pairs < config.sessions_max {
        tracing::warn!(
            pairs,
            sessions_max = config.sessions_max,
            "fewer RTP port pairs than sessions; widen TANDEM_ENGINE_RTP_PORTS"
        );
    }
    let ephemeral = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    if let Some(ephemeral) = overlap(&ephemeral, config.rtp_ports) {
        tracing::warn!(
            ephemeral = %format_args!("{}-{}", ephemeral.min, ephemeral.max),
            rtp = %format_args!("{}-{}", config.rtp_ports.min, config.rtp_ports.max),
            "the system gives away ports of the RTP range (sysctl net.ipv4.ip_local_port_range); choose ranges that do not meet"
        );
    }
}

/// The system's range, if it meets ours.
fn overlap(ephemeral: &str, ours: PortRange) -> Option<PortRange> {
    let mut numbers = ephemeral.split_whitespace().map_while(|number| number.parse().ok());
    let theirs = PortRange { min: numbers.next()?, max: numbers.next()? };
    (theirs.min <= ours.max && ours.min <= theirs.max).then_some(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_meet_are_found() {
        let ours = PortRange { min: 20_000, max: 29_999 };
        assert_eq!(overlap("32768\t60999\n", ours), None);
        assert!(overlap("1024\t20000\n", ours).is_some());
        assert!(overlap("29999 60999", ours).is_some());
        assert_eq!(overlap("", ours), None);
    }

    /// Does something on the worker's own thread, when it answers.
    struct OnAnswer<F>(F);

    impl<F: Fn() + Send + Sync> std::task::Wake for OnAnswer<F> {
        fn wake(self: Arc<Self>) {
            (self.0)();
        }
    }

    fn run_on_worker(engine: &Engine, run: impl Fn() + Send + Sync + 'static) {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let waker = Arc::new(OnAnswer(run)).into();
        let mut answer = Box::leak(Box::new(answer));
        let polled =
            Future::poll(std::pin::Pin::new(&mut answer), &mut std::task::Context::from_waker(&waker));
        assert!(polled.is_pending());
        assert!(engine.control.cores()[0].send(Command::List { reply }));
    }

    fn engine(ports: u16) -> Engine {
        Engine::start(Config::for_tests(PortRange { min: ports, max: ports + 9 })).unwrap()
    }

    #[tokio::test]
    async fn a_worker_that_panics_is_told_of() {
        let engine = engine(2_100);
        let still_well = tokio::time::timeout(Duration::from_millis(50), engine.failed()).await;
        assert!(still_well.is_err(), "{still_well:?}");
        run_on_worker(&engine, || panic!("seven is no port"));
        let why = tokio::time::timeout(Duration::from_secs(5), engine.failed()).await.unwrap();
        assert!(why.contains("panicked: seven is no port"), "{why}");
        assert!(engine.control.is_draining(), "no worker is left");
        tokio::task::spawn_blocking(move || drop(engine)).await.unwrap();
    }

    #[test]
    fn a_certificate_that_cannot_be_used_fails_the_start() {
        let mut config = Config::for_tests(PortRange { min: 2_120, max: 2_129 });
        config.tls = Some(("/nowhere/cert.pem".into(), "/nowhere/key.pem".into()));
        let error = Engine::start(config).map(drop).unwrap_err();
        assert!(
            matches!(&error, StartError::Certificate(why) if why.contains("/nowhere/cert.pem")),
            "{error}"
        );
    }

    #[test]
    fn a_stop_reaches_a_worker_whose_queue_is_full() {
        let engine = engine(2_110);
        run_on_worker(&engine, || std::thread::sleep(Duration::from_millis(300)));
        std::thread::sleep(Duration::from_millis(100));
        let orphaned = || Command::EndAll { reason: crate::leg::event::EndReason::Orphaned };
        while engine.control.cores()[0].send(orphaned()) {}
        let (stopped, is_stopped) = mpsc::channel();
        let started = Instant::now();
        std::thread::spawn(move || {
            drop(engine);
            let _ = stopped.send(());
        });
        is_stopped.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(started.elapsed() < STOP_WITHIN, "it was left behind");
    }
}
