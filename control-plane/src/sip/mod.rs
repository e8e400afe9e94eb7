//! The shell around [`tandem_sip::Endpoint`]: sockets, a clock, and one task that owns it. It knows no call.
//!
//! ```text
//!   UDP sockets ──────────────────▶ ┌──────────┐ ──SipEvent─▶ bounded channel ──▶ call/driver
//!   TCP, TLS, WebSocket ──Arrival──▶ │ driver   │
//!   (transport.rs)     ◀─Transmit── │ Endpoint │ ◀───Verb──── bounded channel ◀── call/driver
//!   DNS (resolver.rs)  ◀─questions─ │ Outgoing │
//!                                   └──────────┘
//! ```
//!
//! The driver never waits for the reader of events: while that channel is full it reads no socket, so peers feel it as
//! loss and repeat, and verbs are still carried out. So the two drivers cannot wait for each other.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tandem_sip::{Counters, EndpointConfig, Transport};
use tokio::sync::mpsc;

use crate::config::SipListen;
use guard::SharedGuard;

mod connection;
mod counters;
pub mod driver;
pub mod guard;
mod handshake;
mod keep_alive;
mod outgoing;
mod refusal_log;
mod resolver;
mod slots;
mod tls;
pub mod transport;
mod verb;
mod websocket;

pub use counters::{CONNECTED, NetCounters};
pub use outgoing::DATAGRAM_REQUEST_MAX;
pub use slots::{CONNECTIONS_A_SOURCE_MAX, CONNECTIONS_MAX};
pub use tls::{TlsError, TlsFiles, TrunkIdentity};
pub use verb::{Destination, NotSent, SipEvent, TlsPeer, Token, Verb};

/// Events that wait for call handling: some seconds' worth of calls. Full: no socket is read.
const EVENTS_MAX: usize = 4_096;
/// Verbs that wait for the endpoint; each live call has a few at most. Full: call handling waits.
const VERBS_MAX: usize = 4_096;

/// A running shell, seen from the rest.
#[derive(Debug)]
pub struct Sip {
    /// Where verbs go in. The shell ends when every sender is gone.
    pub verbs: mpsc::Sender<Verb>,
    /// Where events come out.
    pub events: mpsc::Receiver<SipEvent>,
    /// What the endpoint has counted.
    pub counters: SharedCounters,
    /// Where it listens, with the ports that the system chose.
    pub listeners: Vec<(Transport, SocketAddr)>,
    /// The task; it ends by itself.
    pub task: tokio::task::JoinHandle<()>,
}

/// What the endpoint and the shell have counted, readable from any task.
#[derive(Debug, Clone, Default)]
pub struct SharedCounters {
    endpoint: Arc<Mutex<Counters>>,
    net: Arc<NetCounters>,
}

impl SharedCounters {
    /// The endpoint's, as of the last thing it did.
    pub fn read(&self) -> Counters {
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shell's.
    pub fn net(&self) -> &NetCounters {
        &self.net
    }

    fn write(&self, counters: Counters) {
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

/// What the shell is told at its start.
#[derive(Debug, Clone, Default)]
pub struct SipSettings {
    /// Listeners.
    pub listen: Vec<SipListen>,
    /// Our certificate; `tls:` and `wss:` listeners need it.
    pub tls: Option<TlsFiles>,
    /// DNS server; `None`: the system's.
    pub dns: Option<SocketAddr>,
    /// How trunks and we know each other.
    pub trunks: Vec<TrunkIdentity>,
    /// Asked before the endpoint sees a request.
    pub guard: SharedGuard,
}

/// Why the shell cannot start. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A listener could not be opened.
    #[error("cannot listen on {listener}: {source}; is another program there? See TANDEM_SIP_LISTEN")]
    Bind {
        /// Which.
        listener: SipListen,
        /// What the system said.
        source: std::io::Error,
    },
    /// A `tls:` or `wss:` listener, and nothing to show.
    #[error(
        "{0} needs a certificate: set TANDEM_TLS_CERT and TANDEM_TLS_KEY to PEM files, or leave that listener out"
    )]
    NoCertificate(SipListen),
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Whether the certificates and keys could be used; opens no socket.
pub fn check(settings: &SipSettings) -> Result<(), ListenError> {
    load_tls(settings).map(drop)
}

fn load_tls(settings: &SipSettings) -> Result<tls::Tls, ListenError> {
    let needs = |listener: &&SipListen| listener.transport.needs_certificate();
    match settings.listen.iter().find(needs) {
        Some(listener) if settings.tls.is_none() => Err(ListenError::NoCertificate(*listener)),
        _ => Ok(tls::Tls::load(settings.tls.clone(), settings.trunks.clone())?),
    }
}

/// Opens the listeners and starts the task that owns the endpoint.
pub async fn start(settings: &SipSettings, config: EndpointConfig) -> Result<Sip, ListenError> {
    let tls = Arc::new(load_tls(settings)?);
    let counters = SharedCounters::default();
    let transports = transport::Transports::open(&settings.listen, tls.clone(), counters.net.clone()).await?;
    let listeners = transports.listeners();
    let (verbs, verbs_in) = mpsc::channel(VERBS_MAX);
    let (events_out, events) = mpsc::channel(EVENTS_MAX);
    let resolver = resolver::Resolver::new(settings.dns);
    tokio::spawn(tls.clone().watch());
    let driver =
        driver::Driver::new(config, transports, resolver, tls, verbs_in, events_out, counters.clone());
    let driver = driver.with_guard(settings.guard.clone());
    let task = tokio::spawn(driver.run());
    Ok(Sip { verbs, events, counters, listeners, task })
}

#[cfg(test)]
mod tests;
