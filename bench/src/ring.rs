//! UDP over io_uring, as small as it can be: what the generator and the floor are both made of; and TCP for the generator of
//! the providers' media.
//!
//! ```text
//!   kernel ──multishot receive──▶ [slot][slot][slot]… (provided buffers) ──reap──▶ caller
//!   caller ──send / send_back──▶ submission queue ──submit (one system call a tick)──▶ kernel
//! ```
//!
//! Each socket has one multishot receive that stays armed. Sends carry `MSG_DONTWAIT`, so the kernel reads their octets
//! inside [`UdpRing::submit`] and never afterwards; that is what makes it sound to hand out the slots again at once.
//! Waiting is for an absolute deadline: completions that come earlier do not wake the thread, they are found at the tick.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::clock::{Mono, Wall};
use crate::host;

/// Receive slots shared by all sockets. At 1 000 calls they hold 80 ms of packets; a generator that is later than that
/// is limited anyway. When they run out, packets wait in the sockets' own buffers and [`Counters::dry`] counts it.
const RECEIVE_SLOTS: u16 = 4_096;

/// Octets of a receive slot: 16 of io_uring's header, 32 of the arrival stamp, and an RTP packet of 20 ms of G.711 (172)
/// with room to spare. Longer datagrams are truncated and counted as malformed by whoever reads them.
const SLOT_LEN: usize = 256;

/// Octets of a receive slot of a stream socket: a message of 20 ms of any provider, or a fifth of one of 100 ms at 24 kHz.
/// What does not fit comes in the next slot.
const STREAM_SLOT_LEN: usize = 2_048;

/// Sends queued between two submits; a full queue submits by itself.
const SUBMISSIONS: u32 = 2_048;

/// Completions that may wait for a reap: as many as there are slots, and as many again for arms and errors.
const COMPLETIONS: u32 = 2 * RECEIVE_SLOTS as u32;

/// Octets of the control data of one datagram: one `SCM_TIMESTAMPNS` (a header of 16, a timespec of 16).
const CONTROL_LEN: usize = 32;

/// The one buffer group.
const GROUP: u16 = 0;

/// How datagrams are received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receive {
    /// Octets only, the cheapest way (`IORING_OP_RECV`).
    Bare,
    /// With the kernel's arrival stamp (`IORING_OP_RECVMSG` and `SO_TIMESTAMPNS`).
    Stamped,
    /// As [`Receive::Stamped`], from connected stream sockets (TCP): what comes is a piece of a stream, a socket that ends
    /// is told by [`UdpRing::poll_closed`], and a send that was cut short counts as its end too.
    Stream,
}

impl Receive {
    const fn slot_len(self) -> usize {
        match self {
            Self::Bare | Self::Stamped => SLOT_LEN,
            Self::Stream => STREAM_SLOT_LEN,
        }
    }
}

/// What happened besides packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// A receive ended because no slot was free; it was armed again.
    pub dry: u64,
    /// A receive ended with an error (port unreachable, mostly) and was armed again.
    pub receive_errors: u64,
    /// A send found the socket's buffer full.
    pub send_full: u64,
    /// A send was refused for another reason: nobody listens at the peer's port, mostly.
    pub send_refused: u64,
}

/// A received datagram. Its slot returns to the kernel after the reap, or after the submit if it was sent back.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Which socket, as given to [`UdpRing::arm`].
    pub token: u32,
    slot: u16,
    len: usize,
}

/// See the module.
pub struct UdpRing {
    // Dropped first: closing the ring ends the kernel's use of everything below.
    ring: IoUring,
    receive: Receive,
    slots: Slots,
    /// What a stamped receive asks for: no address, `CONTROL_LEN` octets of control data. Boxed: its address is given away.
    msghdr: Box<libc::msghdr>,
    /// Octets of sends by token; the kernel reads them inside `submit`.
    send_slots: Box<[u8]>,
    send_slot_len: usize,
    /// Slots whose octets are in a queued send.
    sent_back: Vec<u16>,
    sockets: Vec<RawFd>,
    /// Completions of one reap, moved out of the ring at once.
    reaped: Vec<cqueue::Entry>,
    /// Stream sockets that have ended, not yet asked for.
    closed: Vec<u32>,
    /// Counted since the ring was made.
    pub counters: Counters,
}

const KIND_RECEIVE: u64 = 1 << 32;
const KIND_SEND: u64 = 2 << 32;

/// Where the length of a stream's send begins in its user data, above the kind.
const SEND_LEN_SHIFT: u32 = 40;

impl UdpRing {
    /// A ring for sockets with tokens `0..sockets`, each with a send slot of `send_slot_len` octets. It must be used by
    /// the thread that makes it.
    ///
    /// # Errors
    /// What the kernel says, for instance EPERM where a seccomp profile forbids io_uring.
    pub fn new(receive: Receive, sockets: usize, send_slot_len: usize) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let slots = Slots::new(receive.slot_len());
        // SAFETY: the table of `slots` is page-aligned, holds RECEIVE_SLOTS entries, and outlives the ring (field order).
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                slots.table.as_ptr() as u64,
                RECEIVE_SLOTS,
                GROUP,
                0,
            )?
        };
        // SAFETY: msghdr is plain data; all zero is "nothing asked for".
        let mut msghdr: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        msghdr.msg_controllen = CONTROL_LEN;
        let mut udp = Self {
            ring,
            receive,
            slots,
            msghdr,
            send_slots: vec![0; sockets * send_slot_len].into_boxed_slice(),
            send_slot_len,
            sent_back: Vec::with_capacity(usize::from(RECEIVE_SLOTS)),
            sockets: vec![-1; sockets],
            reaped: Vec::with_capacity(COMPLETIONS as usize),
            closed: Vec::new(),
            counters: Counters::default(),
        };
        for slot in 0..RECEIVE_SLOTS {
            udp.slots.give(slot);
        }
        udp.slots.publish();
        Ok(udp)
    }

    /// Arms the receive of a socket. The caller keeps the socket open as long as the ring lives.
    ///
    /// # Errors
    /// When the kernel refuses a submission.
    pub fn arm(&mut self, token: u32, socket: RawFd) -> io::Result<()> {
        self.sockets[token as usize] = socket;
        self.rearm(token)
    }

    fn rearm(&mut self, token: u32) -> io::Result<()> {
        let fd = Fd(self.sockets[token as usize]);
        let entry = match self.receive {
            Receive::Bare => opcode::RecvMulti::new(fd, GROUP).build(),
            Receive::Stamped | Receive::Stream => {
                opcode::RecvMsgMulti::new(fd, &raw const *self.msghdr, GROUP).build()
            }
        };
        self.push(entry.user_data(KIND_RECEIVE | u64::from(token)))
    }

    /// The octets that the next [`Self::send`] of this token will carry.
    pub fn send_slot(&mut self, token: u32) -> &mut [u8] {
        let at = token as usize * self.send_slot_len;
        &mut self.send_slots[at..at + self.send_slot_len]
    }

    /// Queues the first `len` octets of the token's send slot to its connected peer.
    ///
    /// # Errors
    /// When the kernel refuses a submission.
    pub fn send(&mut self, token: u32, len: usize) -> io::Result<()> {
        let octets = self.send_slot(token)[..len].as_ptr();
        self.push_send(token, octets, len)
    }

    /// Queues a received datagram back to its socket's connected peer; its slot returns to the kernel after the submit.
    ///
    /// # Errors
    /// When the kernel refuses a submission.
    pub fn send_back(&mut self, received: Received) -> io::Result<()> {
        let octets = self.slots.octets(received.slot).as_ptr();
        self.push_send(received.token, octets, received.len)?;
        self.sent_back.push(received.slot);
        Ok(())
    }

    fn push_send(&mut self, token: u32, octets: *const u8, len: usize) -> io::Result<()> {
        let entry = opcode::Send::new(Fd(self.sockets[token as usize]), octets, len as u32)
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .build();
        let user_data = KIND_SEND | u64::from(token);
        self.push(match self.receive {
            Receive::Bare | Receive::Stamped => entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(user_data),
            // A success may be a part, so it is looked at.
            Receive::Stream => entry.user_data(user_data | (len as u64) << SEND_LEN_SHIFT),
        })
    }

    /// The next stream socket that has ended: closed by its peer, broken, or not read any more. Its receive is
    /// not armed again; a send to it afterwards tells its end again.
    pub fn poll_closed(&mut self) -> Option<u32> {
        self.closed.pop()
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: what the entry points to is owned by this value (slots, send slots, msghdr), does not move, and outlives
        // the ring. Receive slots are the kernel's until it hands them over. Sends are read only inside `submit`
        // (MSG_DONTWAIT), for which `&mut self` is held.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return Ok(());
        }
        self.submit()?;
        // SAFETY: as above.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("submission queue stays full"))
    }

    /// Hands all queued work to the kernel; the queued sends have left (or failed) when it returns.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn submit(&mut self) -> io::Result<()> {
        // Bounded by the kernel's own progress: each round submits some, or is an error that ends it.
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // The completion queue is full: it must be reaped first. What is queued goes with the next submit.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        for slot in self.sent_back.drain(..) {
            self.slots.give(slot);
        }
        self.slots.publish();
        Ok(())
    }

    /// Sleeps until the deadline, or until so many datagrams are waiting that slots might run out. Returns at once when
    /// the deadline has passed. Queued work is submitted first.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait_until(&mut self, deadline: Mono) -> io::Result<()> {
        self.submit()?;
        let left_ns = deadline - Mono::now();
        let timeout = Timespec::new().sec(left_ns / 1_000_000_000).nsec((left_ns % 1_000_000_000) as u32);
        // Half of the slots: enough to sleep through any normal tick, early enough to keep the multishots alive.
        let want = usize::from(RECEIVE_SLOTS / 2);
        match self.ring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&timeout)) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Hands every datagram that has come to `handle`, with its octets and (if asked for) the kernel's arrival stamp,
    /// and what `handle` returns says whether it is to be sent back.
    ///
    /// # Errors
    /// When a receive that had ended cannot be armed again.
    pub fn reap(
        &mut self,
        mut handle: impl FnMut(Received, &[u8], Option<Wall>) -> AfterReap,
    ) -> io::Result<usize> {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.ring.completion());
        let result = self.handle_completions(&reaped, &mut handle);
        reaped.clear();
        self.reaped = reaped;
        self.slots.publish();
        result
    }

    fn handle_completions(
        &mut self,
        completions: &[cqueue::Entry],
        handle: &mut impl FnMut(Received, &[u8], Option<Wall>) -> AfterReap,
    ) -> io::Result<usize> {
        let mut datagrams = 0;
        for completion in completions {
            let token = completion.user_data() as u32;
            if completion.user_data() & KIND_SEND != 0 {
                if self.receive == Receive::Stream {
                    let len = completion.user_data() >> SEND_LEN_SHIFT;
                    if completion.result() >= 0 && completion.result() as u64 == len {
                        continue;
                    }
                    self.closed.push(token);
                    if completion.result() >= 0 {
                        self.counters.send_full += 1;
                        continue;
                    }
                }
                // Successes of datagrams are silent (SKIP_SUCCESS).
                match -completion.result() {
                    libc::EAGAIN | libc::ENOBUFS => self.counters.send_full += 1,
                    _ => self.counters.send_refused += 1,
                }
                continue;
            }
            let mut has_ended = false;
            if let Some(slot) = cqueue::buffer_select(completion.flags()) {
                datagrams += 1;
                let len = completion.result().max(0) as usize;
                let received = Received { token, slot, len };
                let octets = &self.slots.octets(slot)[..len.min(self.receive.slot_len())];
                let after = match self.receive {
                    Receive::Bare => handle(received, octets, None),
                    Receive::Stamped | Receive::Stream => match RecvMsgOut::parse(octets, &self.msghdr) {
                        Ok(out) if self.receive == Receive::Stream && out.payload_data().is_empty() => {
                            has_ended = true;
                            AfterReap::Release
                        }
                        Ok(out) => handle(received, out.payload_data(), host::stamp(out.control_data())),
                        Err(()) => AfterReap::Release,
                    },
                };
                match after {
                    AfterReap::Release => self.slots.give(slot),
                    AfterReap::SendBack => self.send_back(received)?,
                }
            } else if completion.result() == -libc::ENOBUFS {
                self.counters.dry += 1;
            } else {
                has_ended = self.receive == Receive::Stream;
                self.counters.receive_errors += u64::from(completion.result() < 0);
            }
            if has_ended {
                self.closed.push(token);
            } else if !cqueue::more(completion.flags()) && completion.result() != -libc::ECANCELED {
                self.rearm(token)?;
            }
        }
        Ok(datagrams)
    }
}

/// What becomes of a datagram that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterReap {
    /// The slot returns to the kernel.
    Release,
    /// The datagram goes back where it came from with the next submit. Only for [`Receive::Bare`].
    SendBack,
}

/// The receive slots and the table by which they are given to the kernel.
struct Slots {
    /// `RECEIVE_SLOTS` entries; the first one's spare field is the tail that the kernel reads.
    table: NonNull<BufRingEntry>,
    octets: Box<[u8]>,
    /// Octets of one.
    len: usize,
    tail: u16,
}

const PAGE: usize = 4_096;

impl Slots {
    fn layout() -> Layout {
        Layout::array::<BufRingEntry>(usize::from(RECEIVE_SLOTS))
            .and_then(|layout| layout.align_to(PAGE))
            .expect("a table of 4 096 small entries has a valid layout")
    }

    fn new(len: usize) -> Self {
        // SAFETY: the layout's size is not zero.
        let table = unsafe { alloc_zeroed(Self::layout()) };
        let Some(table) = NonNull::new(table.cast::<BufRingEntry>()) else {
            handle_alloc_error(Self::layout())
        };
        let octets = vec![0; usize::from(RECEIVE_SLOTS) * len].into_boxed_slice();
        Self { table, octets, len, tail: 0 }
    }

    /// The octets of a slot that the kernel has handed over.
    fn octets(&self, slot: u16) -> &[u8] {
        let at = usize::from(slot) * self.len;
        &self.octets[at..at + self.len]
    }

    /// Puts a slot into the table; the kernel sees it after [`Self::publish`].
    fn give(&mut self, slot: u16) {
        let at = usize::from(slot) * self.len;
        let address = self.octets[at..at + self.len].as_mut_ptr();
        // SAFETY: the index is masked to the table's length, the table is live, and the kernel does not read this entry
        // before the tail has passed it.
        let entry = unsafe { &mut *self.table.as_ptr().add(usize::from(self.tail & (RECEIVE_SLOTS - 1))) };
        entry.set_addr(address as u64);
        entry.set_len(self.len as u32);
        entry.set_bid(slot);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the given slots to the kernel.
    fn publish(&self) {
        // SAFETY: the table's first entry is live and initialised; its spare field is the tail, two octets, aligned, that
        // only we write and the kernel reads. Release: the entries are written before the tail.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.table.as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout; the ring that read it was closed before (field order of UdpRing).
        unsafe { dealloc(self.table.as_ptr().cast(), Self::layout()) };
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::host;

    fn pair() -> (UdpSocket, UdpSocket) {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        a.connect(b.local_addr().unwrap()).unwrap();
        b.connect(a.local_addr().unwrap()).unwrap();
        (a, b)
    }

    fn ring(receive: Receive) -> Option<UdpRing> {
        if !host::io_uring_works() {
            eprintln!("io_uring is not available here: not tested");
            return None;
        }
        Some(UdpRing::new(receive, 1, 172).unwrap())
    }

    #[test]
    fn datagram_comes_with_the_kernels_arrival_stamp() {
        let Some(mut ring) = ring(Receive::Stamped) else { return };
        let (near, far) = pair();
        host::stamp_arrivals(near.as_raw_fd()).unwrap();
        // The kernel turns stamping on a moment after the option is set; until then a stamp is that of the read.
        std::thread::sleep(std::time::Duration::from_millis(20));
        ring.arm(0, near.as_raw_fd()).unwrap();
        ring.submit().unwrap();
        let before = Wall::now();
        far.send(b"hello").unwrap();
        let after = Wall::now();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let mut seen = Vec::new();
        ring.wait_until(Mono::now() + 1_000_000).unwrap();
        ring.reap(|received, octets, stamp| {
            seen.push((received.token, octets.to_vec(), stamp));
            AfterReap::Release
        })
        .unwrap();
        let [(0, octets, Some(stamp))] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!(octets, b"hello");
        assert!(*stamp >= before && *stamp <= after, "{before:?} {stamp:?} {after:?}");
    }

    #[test]
    fn more_datagrams_than_slots_are_echoed_without_loss_when_they_come_in_turns() {
        let Some(mut ring) = ring(Receive::Bare) else { return };
        let (near, far) = pair();
        ring.arm(0, near.as_raw_fd()).unwrap();
        let mut echoed = 0_u32;
        for turn in 0..u32::from(RECEIVE_SLOTS) / 50 + 20 {
            for i in 0..50 {
                far.send(&(turn * 50 + i).to_be_bytes()).unwrap();
            }
            ring.wait_until(Mono::now() + 100_000).unwrap();
            ring.reap(|_, _, _| AfterReap::SendBack).unwrap();
            ring.submit().unwrap();
            far.set_nonblocking(true).unwrap();
            let mut octets = [0; 16];
            while let Ok(len) = far.recv(&mut octets) {
                assert_eq!(octets[..len], echoed.to_be_bytes());
                echoed += 1;
            }
        }
        assert_eq!(echoed, (u32::from(RECEIVE_SLOTS) / 50 + 20) * 50);
        assert_eq!(ring.counters, Counters::default());
    }

    #[test]
    fn stream_socket_brings_its_pieces_with_stamps_and_its_end_once() {
        if !host::io_uring_works() {
            eprintln!("io_uring is not available here: not tested");
            return;
        }
        let mut ring = UdpRing::new(Receive::Stream, 1, 4_096).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        host::stamp_arrivals(near.as_raw_fd()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        ring.arm(0, near.as_raw_fd()).unwrap();
        ring.send_slot(0)[..5].copy_from_slice(b"hello");
        ring.send(0, 5).unwrap();
        ring.submit().unwrap();
        let mut octets = [0; 5];
        std::io::Read::read_exact(&mut far, &mut octets).unwrap();
        assert_eq!(&octets, b"hello");
        let long = vec![7; 3 * STREAM_SLOT_LEN];
        let (mut came, mut stamps) = (0, 0);
        let mut turn = |ring: &mut UdpRing| {
            ring.wait_until(Mono::now() + 5_000_000).unwrap();
            ring.reap(|_, octets, stamp| {
                came += octets.len();
                stamps += usize::from(stamp.is_some());
                AfterReap::Release
            })
            .unwrap();
            came
        };
        std::io::Write::write_all(&mut far, &long).unwrap();
        while turn(&mut ring) < long.len() {}
        assert_eq!(ring.poll_closed(), None);
        drop(far);
        turn(&mut ring);
        turn(&mut ring);
        assert_eq!((ring.poll_closed(), ring.poll_closed()), (Some(0), None));
        assert_eq!((came, ring.counters), (long.len(), Counters::default()));
        assert!(stamps >= 3, "{stamps}");
    }
}
