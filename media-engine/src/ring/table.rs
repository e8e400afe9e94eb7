//! The socket table: which sockets a ring has, and what is in flight on each.
//!
//! ```text
//!               submit             kernel is done
//!  Completed ───────────▶ Submitted ─────────────▶ Completed
//!      ▲                   │      ▲
//!      │        no buffers │      │ armed again, next turn
//!      │                   ▼      │
//!      │                  Waiting ┘
//!      │   owner closed while the kernel still has it
//!      └──────── Ignored ◀── Submitted        (its memory stays alive, its completion is thrown away)
//! ```

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use slab::Slab;

use super::socket::{KernelAddress, connect_udp};

/// Who a socket belongs to; chosen by the worker, handed back in each completion, meaningless to the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

/// A socket of one ring. Ids of closed sockets are told from later ones by their generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// One operation's state; who owns its memory follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InFlight {
    /// The kernel has it, or will at the next submit: its memory must stay.
    Submitted,
    /// A receive that ended for want of buffers (or of a submission entry) and is to be armed again.
    Waiting,
    /// The owner is gone; the kernel still has it. Its completion only frees the memory.
    Ignored,
    /// Not in flight: nothing of it is in the kernel.
    Completed,
}

impl InFlight {
    /// Whether the kernel may still touch this operation's memory.
    pub fn is_with_kernel(self) -> bool {
        matches!(self, Self::Submitted | Self::Ignored)
    }

    /// The owner has gone away.
    pub(super) fn ignore(&mut self) {
        *self = match *self {
            Self::Submitted | Self::Ignored => Self::Ignored,
            Self::Waiting | Self::Completed => Self::Completed,
        };
    }
}

/// How far a socket is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// In use.
    Open,
    /// `finish` was called: the last write goes out, then the sending side is shut; input is dropped.
    Finishing,
    /// `close` was called: waits for the kernel to let go.
    Closing,
}

/// One socket, in one line of the cache: each packet looks at one.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Socket {
    pub(super) fd: OwnedFd,
    pub(super) owner: Owner,
    pub(super) generation: u32,
    pub(super) phase: Phase,
    pub(super) receive: InFlight,
    /// TCP only: it carries many calls and is read into large buffers.
    pub(super) is_bulk: bool,
    /// UDP only: the peer it is connected to.
    pub(super) peer: Option<SocketAddr>,
    /// UDP only: the receive that is armed, or the last one, knows datagrams of `peer` alone, and reports no source.
    pub(super) is_plain: bool,
    /// UDP only: the receive is being cancelled, to be armed in another way.
    pub(super) is_switching: bool,
    /// UDP only: it is to be handed out when the kernel has let go of its receive.
    pub(super) is_leaving: bool,
    /// TCP only. Boxed: the kernel reads its address and stage while the table may move.
    pub(super) stream: Option<Box<Stream>>,
}

const _: () = assert!(size_of::<Socket>() == 64 && size_of::<Option<Socket>>() == 64);

/// The TCP half of a socket.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) address: KernelAddress,
    pub(super) connect: InFlight,
    pub(super) write: InFlight,
    pub(super) connected: bool,
    /// What the write in flight still has to send is `stage[from..to]`.
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) stage: Box<[u8]>,
}

impl Stream {
    /// One that is to be connected to `to`, or is connected already, with a stage of so many octets.
    pub(super) fn new(to: Option<SocketAddr>, stage_octets: usize) -> Box<Self> {
        Box::new(Self {
            address: to.map(KernelAddress::from).unwrap_or_default(),
            connect: InFlight::Completed,
            write: InFlight::Completed,
            connected: to.is_none(),
            from: 0,
            to: 0,
            stage: vec![0; stage_octets].into_boxed_slice(),
        })
    }

    /// The stage may be written to.
    pub(super) fn is_free(&self) -> bool {
        self.connected && self.write == InFlight::Completed
    }
}

impl Socket {
    /// Nothing of this socket is with the kernel: its descriptor and memory may go.
    pub(super) fn is_quiet(&self) -> bool {
        let stream_quiet =
            self.stream.as_ref().is_none_or(|s| !s.connect.is_with_kernel() && !s.write.is_with_kernel());
        !self.receive.is_with_kernel() && stream_quiet
    }
}

/// A bounded table of sockets.
#[derive(Debug)]
pub(super) struct Table {
    sockets: Slab<Socket>,
    limit: usize,
    generation: u32,
}

/// Generations count in 28 bits, since the rest of a completion's 64 bits says which operation and which socket.
const GENERATION_MASK: u32 = (1 << 28) - 1;

impl Table {
    pub(super) fn new(limit: usize) -> Self {
        Self { sockets: Slab::with_capacity(limit), limit, generation: 0 }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Adds a socket; gives it back when the table is full.
    pub(super) fn insert(
        &mut self,
        fd: OwnedFd,
        owner: Owner,
        stream: Option<Box<Stream>>,
    ) -> Option<SocketId> {
        if self.sockets.len() >= self.limit {
            return None;
        }
        self.generation = (self.generation + 1) & GENERATION_MASK;
        let generation = self.generation;
        let index = self.sockets.insert(Socket {
            fd,
            owner,
            generation,
            phase: Phase::Open,
            receive: InFlight::Completed,
            is_bulk: false,
            peer: None,
            is_plain: false,
            is_switching: false,
            is_leaving: false,
            stream,
        });
        Some(SocketId { index: index as u32, generation })
    }

    pub(super) fn get_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.sockets.get_mut(id.index as usize).filter(|s| s.generation == id.generation)
    }

    /// The socket, if its owner still wants to hear of it.
    pub(super) fn open_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.get_mut(id).filter(|s| s.phase == Phase::Open)
    }

    /// Another owner from now on.
    pub(super) fn set_owner(&mut self, id: SocketId, owner: Owner) {
        if let Some(socket) = self.open_mut(id) {
            socket.owner = owner;
        }
    }

    /// Takes a UDP socket out to be used elsewhere, tied to nobody.
    pub(super) fn detach(&mut self, id: SocketId) -> Option<(Owner, OwnedFd)> {
        let Socket { fd, owner, peer, .. } = self.remove(id)?;
        if peer.is_some() {
            // One that stays tied still hears its peer, and sends to it.
            let _ = connect_udp(&fd, None);
        }
        Some((owner, fd))
    }

    /// Connects a UDP socket, or dissolves its connection.
    pub(super) fn connect_udp(&mut self, id: SocketId, peer: Option<SocketAddr>) {
        if let Some(socket) = self.open_mut(id) {
            // A socket that cannot be connected sends with the address in each datagram, as before.
            socket.peer = connect_udp(&socket.fd, peer).ok().and(peer);
        }
    }

    /// Takes a socket out; dropping it closes its descriptor.
    pub(super) fn remove(&mut self, id: SocketId) -> Option<Socket> {
        self.get_mut(id)?;
        Some(self.sockets.remove(id.index as usize))
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = SocketId> + '_ {
        self.sockets.iter().map(|(index, s)| SocketId { index: index as u32, generation: s.generation })
    }
}
