//! The only door to the kernel: sockets, receive buffers, sends, waiting. All `unsafe` of the engine lives here.
//!
//! ```text
//!            ┌──────────── Ring (one a worker thread) ────────────┐
//!  add_udp ─▶│ socket table ── receive: multishot, buffers lent   │─▶ next() → Completion, a batch a turn
//!  datagram ▶│ send arena   ── one SQE a datagram, no completion  │
//!  stream ──▶│ stage a TCP socket ── one write in flight          │
//!            │ turn(): submit everything once, wait, reap         │◀─ Waker (eventfd) from any thread
//!            └──────────── Uring │ Epoll ─────────────────────────┘
//! ```
//!
//! Two drivers stand behind one enum (no trait object on the packet path): `uring` is the real one, `epoll`
//! serves hosts whose seccomp profile or sysctl blocks io_uring. They promise the same to the worker:
//!
//! - A receive is armed when a socket is added and stays armed. Each datagram or piece of stream arrives as a
//!   [`Completion`] with a [`Received`] buffer, which the worker returns by [`Ring::give_back`]; a `Received` is
//!   not `Clone`, so it cannot be returned twice.
//! - Datagrams leave at the latest with the next [`Ring::turn`]. Their memory is the ring's.
//! - A TCP socket has one stage of [`STAGE_OCTETS`], a link one of [`LINK_STAGE_OCTETS`]; while a write is in flight it is not to be had, and
//!   [`Completion::Writable`] tells when it is.
//! - [`Ring::close`] may be called with operations in flight: the socket's entry lives on until the kernel has let
//!   go of each of them ([`InFlight`]), then its descriptor is closed.
//!
//! What a state of [`InFlight`] means is the whole truth about who owns an operation's memory.
#![allow(unsafe_code)]

mod arena;
mod buffers;
mod epoll;
mod op;
mod probe;
mod socket;
mod table;
mod thread;
mod uring;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

pub use buffers::{BUFFER_OCTETS, Received};
pub use probe::{Choice, Decision, DriverKind, Feature, decide, explain, kernel_release, limits};
use socket::link_socket;
pub use socket::{bind_udp, tame_incoming, tcp_socket};
pub use table::{InFlight, Owner, SocketId};
pub use thread::{
    Waker, allowed_cores, pin_to_core, prefetch, raise_open_files, seconds_on_cpu, sharpen_timers,
};

/// Room for one outgoing datagram: an Ethernet frame less IP and UDP headers. Larger RTP would be cut up on the way.
pub const DATAGRAM_OCTETS: usize = 1_472;

/// Room for one write to a TCP socket: six 20 ms frames of L16 at 16 kHz, or a WebSocket upgrade request with its
/// headers. One a connection, so it is also most of what an agent connection costs in memory.
pub const STAGE_OCTETS: usize = 4_096;

/// Room for one write to a link, which carries the calls of a core: 1 000 calls have 32 KiB each millisecond, and while a
/// write is in flight, or a turn is late, it gathers. One an agent's process, so its size does not matter.
pub const LINK_STAGE_OCTETS: usize = 128 * 1_024;

/// Why the ring could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The kernel refused to make a ring, a poll set or its memory.
    #[error("{what} failed: {source}")]
    Setup {
        /// The system call or step.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Every entry of the socket table is taken.
    #[error("all {0} sockets of this core are in use")]
    SocketsFull(usize),
    /// A socket could not be registered, or a connect not begun.
    #[error("socket could not be used: {0}")]
    Socket(#[source] io::Error),
}

/// Sizes of one ring, fixed for its life.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sockets open at a time, those that are closing included.
    pub sockets: usize,
    /// Receive buffers lent to the kernel; rounded up to a power of two, at most 32 768. See
    /// [`Limits::for_sessions`] for the sum behind the engine's figure.
    pub receive_buffers: usize,
}

impl Limits {
    /// A core with this many sessions per buffer gets what arrives in 4 ms, a late turn: a fifth of the 20 ms in which
    /// each session sends one packet.
    const SESSIONS_PER_ARRIVAL: usize = 5;
    /// Buffers for bursts: phones that send two frames at once, agents that speak faster than real time.
    const BURST: usize = 128;
    /// Buffers whose completion is reaped and that are being handled: half of what a coalescing wait lets come.
    const IN_HAND: usize = 96;

    /// The limits for so many sessions: three sockets each (RTP, RTCP, the agent), some more that close or are second legs, and buffers for each place that can
    /// hold one. The kernel has some of them at first, and more each time that
    /// they run dry. A dry ring loses nothing: packets wait in the sockets until buffers are back.
    pub fn for_sessions(sessions: usize) -> Self {
        let arriving = sessions / Self::SESSIONS_PER_ARRIVAL;
        Self {
            sockets: sessions * 3 + sessions / 2 + 16,
            receive_buffers: arriving + Self::BURST + Self::IN_HAND,
        }
    }
}

/// How [`Ring::turn`] waits.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// Return at this instant at the latest; `None`: only when something happens.
    pub deadline: Option<Instant>,
    /// What arrives may be held for so long to be handled together.
    pub coalesce: Duration,
}

impl Wait {
    /// Submits and reaps without waiting.
    pub fn none(now: Instant) -> Self {
        Self { deadline: Some(now), coalesce: Duration::ZERO }
    }
}

/// What happened, named by the owner that [`Ring::add_udp`] or [`Ring::connect`] was given.
#[derive(Debug)]
pub enum Completion {
    /// A datagram came.
    Datagram {
        /// Whose socket.
        owner: Owner,
        /// From where.
        from: SocketAddr,
        /// Its octets; give it back.
        data: Received,
    },
    /// A piece of a TCP stream came.
    Stream {
        /// Whose socket.
        owner: Owner,
        /// Its octets; give it back.
        data: Received,
    },
    /// A connect succeeded; the stage is free.
    Connected {
        /// Whose socket.
        owner: Owner,
    },
    /// The write in flight has left; the stage is free again.
    Writable {
        /// Whose socket.
        owner: Owner,
    },
    /// A TCP socket is at its end: connect refused, peer closed (no error), or broken. Close it.
    Ended {
        /// Whose socket.
        owner: Owner,
        /// Why; `None` is the peer's orderly end.
        error: Option<io::Error>,
    },
    /// A socket is out of this ring: nothing of it is in flight, and what comes from now on waits in it.
    Detached {
        /// Whose socket it was.
        owner: Owner,
        /// The socket, for another ring.
        socket: OwnedFd,
    },
    /// A [`Waker`] was used.
    Woken,
}

/// What a ring counted since it was made. Plain numbers of one thread; the worker publishes them.
#[derive(Debug, Clone, Copy, Default)]
pub struct RingCounters {
    /// System calls that submitted or waited.
    pub enters: u64,
    /// Operations submitted (io_uring) or system calls beside the wait (epoll).
    pub operations: u64,
    /// Completions reaped.
    pub completions: u64,
    /// Receives armed again after they had ended by themselves.
    pub rearmed: u64,
    /// Times the receive buffers ran dry.
    pub buffers_dry: u64,
    /// Completions that the kernel dropped, having neither room in the queue nor memory to keep them back. What they
    /// would have told (a receive that ended, a write that is done) is not known any more: a fault.
    pub completions_lost: u64,
    /// Datagrams that did not leave: full socket buffer, no route, and so on.
    pub send_failed: u64,
    /// Datagrams larger than a buffer, dropped.
    pub truncated: u64,
    /// Receive buffers out of the kernel's hands at this moment.
    pub buffers_out: u64,
    /// Most buffers ever out at once.
    pub buffers_out_max: u64,
    /// Receive buffers in all.
    pub buffers: u64,
    /// Sockets in the table, closing ones included.
    pub sockets: u64,
}

/// One worker's door to the kernel. Not `Send`: it belongs to the thread that made it (SINGLE_ISSUER).
#[derive(Debug)]
pub enum Ring {
    /// The io_uring driver.
    Uring(Box<uring::Uring>),
    /// The epoll driver.
    Epoll(Box<epoll::Epoll>),
}

macro_rules! either {
    ($ring:expr, $driver:ident => $body:expr) => {
        match $ring {
            Ring::Uring($driver) => $body,
            Ring::Epoll($driver) => $body,
        }
    };
}

impl Ring {
    /// Makes the ring of the calling thread. `waker` is the other end of what other threads use to wake it.
    pub fn open(kind: DriverKind, limits: Limits, waker: &Waker) -> Result<Self, RingError> {
        Ok(match kind {
            DriverKind::IoUring => Self::Uring(Box::new(uring::Uring::open(limits, waker)?)),
            DriverKind::Epoll => Self::Epoll(Box::new(epoll::Epoll::open(limits, waker)?)),
        })
    }

    /// Which driver this is.
    pub fn kind(&self) -> DriverKind {
        match self {
            Self::Uring(_) => DriverKind::IoUring,
            Self::Epoll(_) => DriverKind::Epoll,
        }
    }

    /// Takes a bound UDP socket and keeps a receive armed on it.
    pub fn add_udp(&mut self, socket: OwnedFd, owner: Owner) -> Result<SocketId, RingError> {
        either!(self, driver => driver.add_udp(socket, owner))
    }

    /// Takes a TCP socket that is connected already and keeps a receive armed on it.
    pub fn add_stream(&mut self, socket: OwnedFd, owner: Owner) -> Result<SocketId, RingError> {
        either!(self, driver => driver.add_stream(socket, owner))
    }

    /// Begins to connect to `to`; [`Completion::Connected`] or [`Completion::Ended`] follows.
    pub fn connect(&mut self, to: SocketAddr, owner: Owner) -> Result<SocketId, RingError> {
        let socket = tcp_socket(to).map_err(RingError::Socket)?;
        either!(self, driver => driver.connect(socket, to, owner, STAGE_OCTETS))
    }

    /// The same for a connection that carries many calls: its stage and its socket hold more.
    pub fn connect_link(&mut self, to: SocketAddr, owner: Owner) -> Result<SocketId, RingError> {
        let socket = link_socket(to).map_err(RingError::Socket)?;
        either!(self, driver => driver.connect(socket, to, owner, LINK_STAGE_OCTETS))
    }

    /// Ties a UDP socket to one peer, or frees it. Sending to that peer then needs no look-up of the way; what others
    /// send is refused by the kernel. Only for sockets that were bound to a port by its number: the kernel takes one of
    /// its own choosing away when the tie is dissolved. A peer that cannot be tied to is no error: the socket stays as it was.
    /// It is freed, or tied to another, within the next turns: what was received before must be over first.
    pub fn connect_udp(&mut self, socket: SocketId, peer: Option<SocketAddr>) {
        either!(self, driver => driver.connect_udp(socket, peer))
    }

    /// A socket belongs to somebody else from now on: completions that were not taken yet name the new owner.
    pub fn set_owner(&mut self, socket: SocketId, owner: Owner) {
        either!(self, driver => driver.set_owner(socket, owner))
    }

    /// Gives a UDP socket out for another ring: [`Completion::Detached`] follows within the next turns, after all that was received until
    /// then. Up to that it sends and receives as before. Doing it again changes nothing; one that is closed meanwhile is closed.
    pub fn detach(&mut self, socket: SocketId) {
        either!(self, driver => driver.detach(socket))
    }

    /// How many more sockets this ring can take.
    pub fn room(&self) -> usize {
        either!(self, driver => driver.room())
    }

    /// Room of [`DATAGRAM_OCTETS`] for the next datagram. What [`Ring::send_datagram`] does not take is not sent.
    pub fn datagram(&mut self) -> &mut [u8] {
        either!(self, driver => driver.datagram())
    }

    /// Sends the first `len` octets of [`Ring::datagram`] from `socket`, at the latest with the next turn. A
    /// datagram that the kernel does not take at once is dropped and counted; a stale `socket` sends nothing.
    pub fn send_datagram(&mut self, socket: SocketId, to: SocketAddr, len: usize) {
        either!(self, driver => driver.send_datagram(socket, to, len))
    }

    /// The stage of a TCP socket, or `None` while a write is in flight, before it is connected, or when it is gone.
    pub fn stage(&mut self, socket: SocketId) -> Option<&mut [u8]> {
        either!(self, driver => driver.stage(socket))
    }

    /// Writes the first `len` octets of the stage; partial writes are continued by the ring.
    pub fn send_stage(&mut self, socket: SocketId, len: usize) {
        either!(self, driver => driver.send_stage(socket, len))
    }

    /// Says that nothing more will be written: the write in flight is finished, then the sending side is shut.
    /// Whatever still comes is dropped; the entry goes when the peer closes or [`Ring::close`] is called.
    pub fn finish(&mut self, socket: SocketId) {
        either!(self, driver => driver.finish(socket))
    }

    /// Cancels what is in flight and closes. Nothing more is reported about this socket. Stale ids are ignored.
    pub fn close(&mut self, socket: SocketId) {
        either!(self, driver => driver.close(socket))
    }

    /// Submits all that was asked for since the last turn, once, and waits as `wait` says. Then [`Ring::next`]
    /// gives what happened. What is not taken comes first in the next turn.
    pub fn turn(&mut self, wait: Wait) -> io::Result<()> {
        either!(self, driver => driver.turn(wait))
    }

    /// The next completion of this turn.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Completion> {
        either!(self, driver => driver.next())
    }

    /// The octets of a received buffer.
    pub fn bytes(&self, data: &Received) -> &[u8] {
        either!(self, driver => driver.bytes(data))
    }

    /// Returns a buffer to the kernel.
    pub fn give_back(&mut self, data: Received) {
        either!(self, driver => driver.give_back(data))
    }

    /// What was counted so far.
    pub fn counters(&self) -> RingCounters {
        either!(self, driver => driver.counters())
    }
}
