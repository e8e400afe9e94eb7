//! Memory of the datagrams of one turn: filled from the front, empty again after each submit.
//!
//! Sends are made so that the kernel is done with them when the submit returns (see `op::send_datagram`), so a
//! datagram needs no slot of its own that lives until a completion; it only needs room until then.

use std::net::SocketAddr;

use super::DATAGRAM_OCTETS;
use super::socket::KernelAddress;

/// Room for the datagrams between two submits. A turn of 1 ms with 4 000 G.711 calls has 200 datagrams of 172 octets
/// and their addresses: 43 KiB. When it is full the ring submits early, which costs one more system call.
const ARENA_OCTETS: usize = 128 * 1024;

/// Payloads start on a cache line.
const ALIGN: usize = 64;

/// Room that an address takes in front of its payload.
const ADDRESS_ROOM: usize = 32;

/// One datagram in the arena, as a submission needs it.
pub(super) struct Placed {
    pub(super) address: *const libc::sockaddr,
    pub(super) address_len: libc::socklen_t,
    pub(super) data: *const u8,
    pub(super) len: u32,
}

/// The arena.
#[derive(Debug)]
pub(super) struct Arena {
    octets: Box<[u8]>,
    used: usize,
}

impl Arena {
    pub(super) fn new() -> Self {
        Self { octets: vec![0; ARENA_OCTETS].into_boxed_slice(), used: 0 }
    }

    /// Whether one more datagram of any size fits.
    pub(super) fn has_room(&self) -> bool {
        self.used + ADDRESS_ROOM + DATAGRAM_OCTETS <= ARENA_OCTETS
    }

    /// Room for the next payload. Call only with [`Arena::has_room`].
    pub(super) fn payload(&mut self) -> &mut [u8] {
        let start = self.used + ADDRESS_ROOM;
        &mut self.octets[start..start + DATAGRAM_OCTETS]
    }

    /// Keeps the first `len` octets of the payload, to `to`, until the arena is reset.
    /// Without an address it goes to the peer of its socket.
    pub(super) fn place(&mut self, to: Option<SocketAddr>, len: usize) -> Placed {
        let start = self.used;
        let len = len.min(DATAGRAM_OCTETS);
        let room = &mut self.octets[start..start + KernelAddress::ROOM];
        let address_len = to.map_or(0, |to| KernelAddress::write(to, room));
        self.used = (start + ADDRESS_ROOM + len).next_multiple_of(ALIGN);
        let base = self.octets[start..].as_ptr();
        Placed {
            address: if address_len == 0 { std::ptr::null() } else { base.cast() },
            address_len,
            data: self.octets[start + ADDRESS_ROOM..].as_ptr(),
            len: len as u32,
        }
    }

    /// Forgets everything. Only when the kernel has taken every datagram that was placed.
    pub(super) fn reset(&mut self) {
        self.used = 0;
    }
}
