//! The shell around [`tandem_sip::Endpoint`]: sockets, a clock, and one task that owns it. It knows no call.
//!
//! ```text
//!   UDP sockets ───────────────▶ ┌──────────┐ ──Event──▶ bounded channel ──▶ call/driver
//!   TCP connections ──Arrival──▶ │ driver   │
//!   (transport.rs)  ◀─Transmit── │ Endpoint │ ◀──Verb─── bounded channel ◀── call/driver
//!                                └──────────┘
//! ```
//!
//! The driver never waits for the reader of events: while that channel is full it reads no socket, so peers feel it as
//! loss and repeat, and verbs are still carried out. So the two drivers cannot wait for each other.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tandem_sip::{Counters, EndpointConfig, Transport};
use tokio::sync::mpsc;

use crate::config::SipListen;

pub mod driver;
mod refusal_log;
pub mod transport;
mod verb;

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

/// The endpoint's counters, readable from any task.
#[derive(Debug, Clone, Default)]
pub struct SharedCounters(Arc<Mutex<Counters>>);

impl SharedCounters {
    /// As of the last thing the endpoint did.
    pub fn read(&self) -> Counters {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, counters: Counters) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listener}: {source}; is another program there? See TANDEM_SIP_LISTEN")]
pub struct ListenError {
    listener: SipListen,
    source: std::io::Error,
}

/// Opens the listeners and starts the task that owns the endpoint.
pub async fn start(listen: &[SipListen], config: EndpointConfig) -> Result<Sip, ListenError> {
    let transports = transport::Transports::open(listen).await?;
    let listeners = transports.listeners();
    let (verbs, verbs_in) = mpsc::channel(VERBS_MAX);
    let (events_out, events) = mpsc::channel(EVENTS_MAX);
    let counters = SharedCounters::default();
    let driver = driver::Driver::new(config, transports, verbs_in, events_out, counters.clone());
    let task = tokio::spawn(driver.run());
    Ok(Sip { verbs, events, counters, listeners, task })
}
