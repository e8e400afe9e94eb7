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

use crate::config::{Config, PortRange};
use crate::control::{Control, Core};
use crate::mailbox::{self, Command};
use crate::metrics::CoreMetrics;
use crate::ports::{Ports, share};
use crate::ring::{
    DriverKind, Limits, Ring, RingError, Waker, decide, pin_to_core, raise_open_files, sharpen_timers,
};
use crate::worker::Worker;

/// Descriptors that the engine needs beside its sessions': rings, wake-ups, listeners, gRPC connections.
const SPARE_DESCRIPTORS: u64 = 256;

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
    workers: Vec<JoinHandle<()>>,
    control_thread: Option<JoinHandle<()>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Engine {
    /// Starts one.
    ///
    /// # Errors
    /// [`StartError`] says what is missing; nothing keeps running then.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let decision = decide(config.driver);
        let Some(driver) = decision.driver else {
            return Err(StartError::Driver(decision.reason));
        };
        tracing::info!(%driver, reason = %decision.reason, "driver chosen");
        check_host(&config);
        let (grpc, grpc_address) = listen(config.grpc_listen, "TANDEM_ENGINE_GRPC_LISTEN")?;
        let (http, http_address) = listen(config.metrics_listen, "TANDEM_ENGINE_METRICS_LISTEN")?;

        let bell = Waker::new()?;
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
                // Its sessions are lost with it, but not those of other cores: the control thread tells their end.
                match std::panic::catch_unwind(AssertUnwindSafe(|| worker.run())) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => tracing::error!(core, %error, "worker stopped: its ring failed"),
                    Err(_) => tracing::error!(core, "worker stopped: it panicked"),
                }
                dead.store(true, Ordering::Release);
                last_bell.wake();
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
            "engine started"
        );

        let control = Arc::new(Control::new(config, driver, decision.reason, cores));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let served = Arc::clone(&control);
        let control_thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            let outcome = runtime.block_on(crate::control::serve(served, grpc, http, inboxes, bell, stopped));
            if let Err(error) = outcome {
                tracing::error!(%error, "control thread stopped");
            }
            runtime.shutdown_timeout(LAST_WORDS);
        })?;
        Ok(Self {
            control,
            grpc: grpc_address,
            metrics: http_address,
            workers,
            control_thread: Some(control_thread),
            stop: Some(stop),
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
        for core in self.control.cores() {
            core.send(Command::Stop);
        }
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a worker panicked");
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
    let wanted = 2 * config.sessions_max as u64 + SPARE_DESCRIPTORS;
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
}
