//! The timers of RFC 3261 (§17, table 4) and RFC 6026: their base values and what each is for.
//!
//! Nothing ticks here. A transaction keeps its deadlines as instants; the endpoint wakes it.

use std::time::Duration;

/// Base values from which all timers follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// Estimate of the round trip.
    pub t1: Duration,
    /// Longest interval between retransmissions of requests other than INVITE, and of INVITE responses.
    pub t2: Duration,
    /// How long a message may live in the network.
    pub t4: Duration,
}

impl Default for Timers {
    /// RFC 3261's values: 500 ms, 4 s, 5 s.
    fn default() -> Timers {
        Timers { t1: Duration::from_millis(500), t2: Duration::from_secs(4), t4: Duration::from_secs(5) }
    }
}

impl Timers {
    /// 64·T1, the life of a transaction (32 s).
    pub const fn t1_64(&self) -> Duration {
        self.t1.saturating_mul(64)
    }

    /// A: first interval of INVITE retransmission, doubled each time (unreliable transports only).
    pub const fn a(&self) -> Duration {
        self.t1
    }

    /// B: our INVITE gets no response at all.
    pub const fn b(&self) -> Duration {
        self.t1_64()
    }

    /// D: wait for retransmitted final responses to our INVITE. Zero on reliable transports.
    pub fn d(&self, reliable: bool) -> Duration {
        if reliable { Duration::ZERO } else { self.t1_64().max(Duration::from_secs(32)) }
    }

    /// E: first interval of retransmission of other requests, doubled up to T2.
    pub const fn e(&self) -> Duration {
        self.t1
    }

    /// F: our other request gets no final response.
    pub const fn f(&self) -> Duration {
        self.t1_64()
    }

    /// G: first interval of retransmission of a final response to INVITE, doubled up to T2.
    pub const fn g(&self) -> Duration {
        self.t1
    }

    /// H: our final response to INVITE gets no ACK.
    pub const fn h(&self) -> Duration {
        self.t1_64()
    }

    /// I: wait for retransmitted ACKs. Zero on reliable transports.
    pub fn i(&self, reliable: bool) -> Duration {
        if reliable { Duration::ZERO } else { self.t4 }
    }

    /// J: wait for retransmissions of another request that we have answered. Zero on reliable transports.
    pub fn j(&self, reliable: bool) -> Duration {
        if reliable { Duration::ZERO } else { self.t1_64() }
    }

    /// K: wait for retransmitted final responses to our other request. Zero on reliable transports.
    pub fn k(&self, reliable: bool) -> Duration {
        if reliable { Duration::ZERO } else { self.t4 }
    }

    /// L: a server INVITE transaction that sent a 2xx absorbs INVITE retransmissions so long (RFC 6026 §8.7).
    pub const fn l(&self) -> Duration {
        self.t1_64()
    }

    /// M: a client INVITE transaction that got a 2xx passes further 2xx up so long (RFC 6026 §8.4).
    pub const fn m(&self) -> Duration {
        self.t1_64()
    }
}

/// While an INVITE rings, its last provisional response is repeated this often, so that no proxy's timer C of three
/// minutes ends it (RFC 3261 §13.3.1.1).
pub const PROVISIONAL_REPEAT: Duration = Duration::from_secs(60);
