//! Transactions (RFC 3261 §17, RFC 6026): a request, its retransmissions and its responses.
//!
//! ```text
//!                 client                      server
//!   INVITE    invite_client.rs            invite_server.rs
//!   others    client.rs                   server.rs
//! ```
//!
//! Each machine is one enum of states that carry their deadlines. It sends nothing: its methods *return* what to do, so
//! that they read like the RFC's drawings, and the endpoint, which holds the bytes, does it. [`key`] tells which
//! transaction a message belongs to.

pub(crate) mod client;
pub(crate) mod invite_client;
pub(crate) mod invite_server;
pub(crate) mod key;
pub(crate) mod server;

use std::time::{Duration, Instant};

use client::Client;
use invite_client::InviteClient;
use invite_server::InviteServer;
use server::Server;

/// What a transaction wants when its deadline has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Not yet.
    Nothing,
    /// Send the request or the last response again.
    Resend,
    /// The user must hear that nothing came; the transaction is over.
    TimedOut,
    /// Over, as it should be.
    Done,
}

/// What to do with a response that belongs to a client transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnResponse {
    /// Give it to the user.
    Pass,
    /// Acknowledge it (a refused INVITE) and give it to the user.
    AckAndPass,
    /// Acknowledge the retransmission.
    Ack,
    /// Forget it: a retransmission.
    Absorb,
}

/// One of the four machines.
#[derive(Debug)]
pub(crate) enum Machine {
    /// Our INVITE.
    InviteClient(InviteClient),
    /// Our other request.
    Client(Client),
    /// Their INVITE.
    InviteServer(InviteServer),
    /// Their other request.
    Server(Server),
}

impl Machine {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Machine::InviteClient(machine) => machine.deadline(),
            Machine::Client(machine) => machine.deadline(),
            Machine::InviteServer(machine) => machine.deadline(),
            Machine::Server(machine) => machine.deadline(),
        }
    }

    /// Whether this is a request of ours without a final response.
    pub(crate) fn awaits_response(&self) -> bool {
        match self {
            Machine::InviteClient(machine) => machine.awaits_response(),
            Machine::Client(machine) => machine.awaits_response(),
            Machine::InviteServer(_) | Machine::Server(_) => false,
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Due {
        match self {
            Machine::InviteClient(machine) => machine.handle_timeout(now),
            Machine::Client(machine) => machine.handle_timeout(now),
            Machine::InviteServer(machine) => machine.handle_timeout(now),
            Machine::Server(machine) => machine.handle_timeout(now),
        }
    }
}

/// A retransmission that backs off: when next, and the interval after that (timers A, E and G).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) next: Instant,
    interval: Duration,
    /// T2, where the interval stops growing; `None` for INVITE, whose interval always doubles.
    ceiling: Option<Duration>,
}

impl Backoff {
    pub(crate) fn new(first: Duration, ceiling: Option<Duration>, now: Instant) -> Backoff {
        Backoff { next: now + first, interval: first, ceiling }
    }

    /// `Resend` if it is time; then the next one is later, counted from when this one was due.
    pub(crate) fn fire(&mut self, now: Instant) -> Due {
        if now < self.next {
            return Due::Nothing;
        }
        self.interval = self.interval.saturating_mul(2).min(self.ceiling.unwrap_or(Duration::MAX));
        self.next += self.interval;
        // A shell that was asleep must not catch up with a burst.
        if self.next <= now {
            self.next = now + self.interval;
        }
        Due::Resend
    }
}
