//! Receive buffers: lent to the kernel as a provided-buffer ring, or kept as a free list for epoll.
//!
//! ```text
//!   give_back ──▶ spare, the last one first ──publish──▶ [ entry | entry … ] kernel takes from its head, fills, reports the id
//!                                                                             │
//!        worker reads it through Received ◀───────────── completion ──────────┘
//! ```
//!
//! A buffer is in exactly one of four places: with the kernel, in an unreaped or unhandled completion, in a [`Received`]
//! that the worker holds, or spare. The kernel has only as many as it needs at once: it takes them in turn, so with all of
//! them each packet would land in memory that the cache has long forgotten. How many there are is what those places may
//! hold together ([`super::Limits`]).

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

/// Octets of one buffer: a full Ethernet frame, the source address and the kernel's header before it. It is also the
/// largest piece of a TCP stream that comes at a time. An odd number of cache lines: with a power of two the first lines
/// of all buffers, which are all that a voice packet touches, would share a few sets of the cache.
pub const BUFFER_OCTETS: usize = 25 * 64;

/// Most buffers a ring of them may have; the kernel's own limit.
const BUFFERS_MAX: usize = 32_768;

/// Buffers that the kernel has at first. Each time that they do not suffice it gets twice as many.
const READY: u16 = 512;

/// Octets of a buffer for connections that carry many calls: what a hundred of them say at once. The kernel fills as much of
/// it as there is, so that these are read in few large pieces.
pub(super) const BULK_OCTETS: usize = 64 * 1_024;

/// Buffers of that kind.
const BULK_BUFFERS: usize = 16;

/// A filled buffer in the worker's hands. Not `Clone`: giving it back consumes it.
#[derive(Debug)]
#[must_use = "a buffer that is not given back is lost to the kernel"]
pub struct Received {
    len: u32,
    id: u16,
    start: u16,
    is_bulk: bool,
}

impl Received {
    /// Octets received.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// It is one of the large buffers.
    pub(super) fn is_bulk(&self) -> bool {
        self.is_bulk
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Anonymous memory, page aligned, unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    octets: usize,
}

impl Mapping {
    fn new(octets: usize) -> io::Result<Self> {
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                octets,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Large pages where the system has them: each packet is elsewhere, and looking small pages up costs more than
        // reading them. Nothing depends on it.
        // SAFETY: this is the mapping just made; the advice changes nothing of what is in it.
        let _ = unsafe { libc::madvise(base, octets, libc::MADV_HUGEPAGE) };
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { base, octets })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `octets` are what mmap gave; the owner drops a mapping only when the kernel has let go of it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.octets) };
    }
}

/// Which side fills the buffers.
#[derive(Debug)]
enum Lent {
    /// To the kernel.
    Kernel {
        /// The ring that it takes buffers from.
        entries: Mapping,
        /// How many we have put there so far, wrapping.
        tail: u16,
        /// How many are there now, or were taken and not reported yet.
        ready: u16,
        /// How many should be.
        wanted: u16,
        /// The others; the one that was used last is used next.
        spare: Vec<u16>,
    },
    /// To nobody: the epoll driver takes one when a socket is readable.
    Free(Vec<u16>),
}

/// All receive buffers of one ring.
#[derive(Debug)]
pub(super) struct Buffers {
    memory: Mapping,
    /// Of each.
    octets: usize,
    count: u16,
    lent: Lent,
    out: u64,
    out_max: u64,
}

impl Buffers {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        usize::from(self.count)
    }

    fn count(wanted: usize) -> u16 {
        wanted.clamp(1, BUFFERS_MAX).next_power_of_two() as u16
    }

    /// Buffers for the kernel. They are in its ring after the first [`Buffers::publish`].
    pub(super) fn for_kernel(wanted: usize) -> io::Result<Self> {
        Self::of(wanted, BUFFER_OCTETS)
    }

    /// Buffers of [`BULK_OCTETS`] for the kernel.
    pub(super) fn bulk() -> io::Result<Self> {
        Self::of(BULK_BUFFERS, BULK_OCTETS)
    }

    fn of(wanted: usize, octets: usize) -> io::Result<Self> {
        let count = Self::count(wanted);
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let mut this = Self {
            memory: Mapping::new(usize::from(count) * octets)?,
            octets,
            count,
            lent: Lent::Kernel {
                entries,
                tail: 0,
                ready: 0,
                wanted: count.min(READY),
                spare: (0..count).rev().collect(),
            },
            out: 0,
            out_max: 0,
        };
        this.publish();
        Ok(this)
    }

    /// Buffers for the epoll driver.
    pub(super) fn free_list(wanted: usize) -> io::Result<Self> {
        let count = Self::count(wanted);
        Ok(Self {
            memory: Mapping::new(usize::from(count) * BUFFER_OCTETS)?,
            octets: BUFFER_OCTETS,
            count,
            lent: Lent::Free((0..count).rev().collect()),
            out: 0,
            out_max: 0,
        })
    }

    /// Address and number of the entries, for registering.
    pub(super) fn entries(&self) -> Option<(u64, u16)> {
        match &self.lent {
            Lent::Kernel { entries, .. } => Some((entries.base.as_ptr() as u64, self.count)),
            Lent::Free(_) => None,
        }
    }

    /// Buffers out of the kernel's hands now, and the most ever.
    pub(super) fn out(&self) -> (u64, u64) {
        (self.out, self.out_max)
    }

    fn slot(&self, id: u16) -> *mut u8 {
        assert!(id < self.count, "buffer {id} of {}", self.count);
        // SAFETY: `id` is below `count`, and the mapping has `count` slots of `octets`.
        unsafe { self.memory.base.as_ptr().add(usize::from(id) * self.octets) }
    }

    /// The kernel reported this buffer filled with `len` octets, of which the payload begins at `start`.
    pub(super) fn received(&mut self, id: u16, start: usize, len: usize) -> Received {
        assert!(id < self.count && start + len <= self.octets);
        self.out += 1;
        self.out_max = self.out_max.max(self.out);
        let is_bulk = self.octets == BULK_OCTETS;
        Received { id, start: start as u16, len: len as u32, is_bulk }
    }

    /// The whole filled part of a buffer that was reported but not wrapped yet.
    pub(super) fn raw(&self, id: u16, len: usize) -> &[u8] {
        let len = len.min(self.octets);
        // SAFETY: the kernel reported `id` filled, so it is ours until it is lent again, which needs `&mut self`; the
        // mapping is zeroed memory, so all of it is initialised.
        unsafe { std::slice::from_raw_parts(self.slot(id), len) }
    }

    /// The payload of a received buffer.
    pub(super) fn bytes(&self, data: &Received) -> &[u8] {
        &self.raw(data.id, usize::from(data.start) + data.len())[usize::from(data.start)..]
    }

    /// A buffer for the epoll driver to read into, by pointer: it goes straight into recvfrom(2).
    pub(super) fn take_free(&mut self) -> Option<(u16, *mut u8)> {
        let Lent::Free(free) = &mut self.lent else {
            return None;
        };
        let id = free.pop()?;
        Some((id, self.slot(id)))
    }

    /// Returns a received buffer.
    pub(super) fn give_back(&mut self, data: Received) {
        self.out -= 1;
        self.lend(data.id);
    }

    /// Returns a buffer that was never wrapped as [`Received`].
    pub(super) fn lend(&mut self, id: u16) {
        match &mut self.lent {
            Lent::Free(free) | Lent::Kernel { spare: free, .. } => free.push(id),
        }
    }

    /// The kernel reported one of its buffers filled.
    pub(super) fn reported(&mut self) {
        if let Lent::Kernel { ready, .. } = &mut self.lent {
            *ready = ready.saturating_sub(1);
        }
    }

    /// The kernel had none left: it gets more.
    pub(super) fn ran_dry(&mut self) {
        if let Lent::Kernel { wanted, .. } = &mut self.lent {
            *wanted = wanted.saturating_mul(2).min(self.count);
        }
    }

    /// Gives the kernel what it should have.
    pub(super) fn publish(&mut self) {
        let (base, octets) = (self.memory.base.as_ptr(), self.octets);
        let Lent::Kernel { entries, tail, ready, wanted, spare } = &mut self.lent else { return };
        let before = *tail;
        while *ready < *wanted
            && let Some(id) = spare.pop()
        {
            assert!(id < self.count, "buffer {id} of {}", self.count);
            // SAFETY: `id` is below `count`, and the mapping has `count` slots of `octets`.
            let address = unsafe { base.add(usize::from(id) * octets) };
            let at = usize::from(*tail & (self.count - 1));
            // SAFETY: `at` is below `count`, the number of entries mapped. The kernel does not read an entry at or
            // beyond the published tail, and there are as many entries as buffers, so this one is not in use. The
            // setters leave the last two octets alone, which in entry 0 are the tail itself.
            let entry = unsafe { &mut *entries.base.as_ptr().cast::<BufRingEntry>().add(at) };
            entry.set_addr(address as u64);
            entry.set_len(octets as u32);
            entry.set_bid(id);
            *tail = tail.wrapping_add(1);
            *ready += 1;
        }
        if *tail != before {
            // SAFETY: the tail's place in entry 0 is 2-aligned and mapped for as long as `entries`; the kernel only reads
            // it, so an atomic of ours is the one writer. Release: the entries before it are written first.
            unsafe {
                let place = BufRingEntry::tail(entries.base.as_ptr().cast()).cast_mut();
                AtomicU16::from_ptr(place).store(*tail, Ordering::Release);
            }
        }
    }

    /// Gives the memory up without unmapping it: for a ring that could not get its operations back.
    pub(super) fn leak(self) {
        std::mem::forget(self);
    }
}
