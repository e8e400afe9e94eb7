//! What the shell counts besides the endpoint: connections, handshakes, names.
//!
//! Written by the tasks of connections and by the driver, read by a scrape; plain atomics, each by itself.

use std::sync::atomic::{AtomicU64, Ordering};

use tandem_sip::Transport;

/// Transports that have connections, in the order of the arrays below.
pub const CONNECTED: [Transport; 4] = [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss];

/// See the module. All but `open` only grow.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Connections that are open now, by [`CONNECTED`].
    pub open: [AtomicU64; 4],
    /// Connections accepted, handshake and all, by [`CONNECTED`].
    pub accepted: [AtomicU64; 4],
    /// Connections opened by us, by [`CONNECTED`].
    pub opened: [AtomicU64; 4],
    /// TLS or WebSocket handshakes that failed or took too long, by [`CONNECTED`].
    pub handshakes_failed: [AtomicU64; 4],
    /// Connections that we could not open, by [`CONNECTED`].
    pub connects_failed: [AtomicU64; 4],
    /// Closed at once: as many as we hold are open.
    pub refused_full: AtomicU64,
    /// Closed at once: this source has as many as one may have.
    pub refused_source: AtomicU64,
    /// WebSocket messages that broke its rules or ours; the connection was closed.
    pub websocket_errors: AtomicU64,
    /// STUN keep-alives answered.
    pub stun_answered: AtomicU64,
    /// STUN messages that are none to answer.
    pub stun_malformed: AtomicU64,
    /// Destinations that DNS gave no address for.
    pub unresolved: AtomicU64,
    /// Requests that were given to the next target after one had failed.
    pub failovers: AtomicU64,
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Where a transport stands in [`CONNECTED`]; UDP, which has no connections, falls to the first.
pub(super) fn place(transport: Transport) -> usize {
    CONNECTED.iter().position(|known| *known == transport).unwrap_or_default()
}

/// Counts a connection as open for as long as it lives.
#[derive(Debug)]
pub(super) struct Open(std::sync::Arc<NetCounters>, usize);

impl Open {
    pub(super) fn new(counters: std::sync::Arc<NetCounters>, transport: Transport) -> Self {
        let place = place(transport);
        count(&counters.open[place]);
        Self(counters, place)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open[self.1].fetch_sub(1, Ordering::Relaxed);
    }
}
