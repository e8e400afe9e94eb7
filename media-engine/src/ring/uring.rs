//! The io_uring driver.
//!
//! Set-up flags: SINGLE_ISSUER and DEFER_TASKRUN (completions are made inside our own enter, so the thread is never
//! interrupted), SUBMIT_ALL (one bad entry does not hold up the rest). One enter a turn submits, waits and reaps.
//! Measured choices are in docs/decisions and bench/RESULTS.md.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, squeue, types};

use super::arena::Arena;
use super::buffers::{BUFFER_OCTETS, Buffers, Received};
use super::op::{self, NO_SOCKET, Op, tag, untag};
use super::socket::{KernelAddress, is_drained, shut_write};
use super::table::{InFlight, Owner, Phase, SocketId, Stream, Table};
use super::thread::Waker;
use super::{Completion, DATAGRAM_OCTETS, Limits, RingCounters, RingError, STAGE_OCTETS, Wait};

/// Submissions between two enters; when it is full the ring submits early. A turn of 1 ms with 4 000 calls has 200
/// datagrams and as many writes.
const SUBMISSIONS: u32 = 1_024;

/// Completions that end a coalescing wait at once, so that receive buffers do not run dry while we wait.
const COALESCED: usize = 192;

/// The group of receive buffers for datagrams and streams of one call.
const GROUP: u16 = 1;

/// The group of receive buffers for connections that carry many calls.
const BULK_GROUP: u16 = 2;

/// How long a ring that is dropped waits for the kernel to let go of what was in flight.
const LETTING_GO: Duration = Duration::from_secs(1);

/// See the module.
pub struct Uring {
    ring: IoUring,
    /// Freed by hand in `drop`, when nothing is in flight any more.
    buffers: ManuallyDrop<Buffers>,
    /// The same.
    bulk: ManuallyDrop<Buffers>,
    /// The same.
    table: ManuallyDrop<Table>,
    arena: Arena,
    /// What a datagram is written to when the kernel takes no more and the arena is full; it is then dropped.
    overflow: Box<[u8]>,
    overflowing: bool,
    /// How much room a received datagram's source gets; the same for every socket, never written after set-up.
    header: Box<libc::msghdr>,
    /// Sockets with something to try again next turn: a receive to arm, a cancel to place. At most one entry a
    /// socket and reason, so its capacity is never outgrown.
    again: Vec<SocketId>,
    /// UDP sockets whose receive is being cancelled, and the peer that each is to be connected to then. At most one entry a
    /// socket.
    next_peers: Vec<(SocketId, Option<SocketAddr>)>,
    /// Sockets with nothing in flight that only wait for the submission queue to be empty of their descriptor.
    quiet: Vec<SocketId>,
    /// The same, of sockets that are to be handed out.
    leaving: Vec<SocketId>,
    /// Sockets that are out.
    detached: VecDeque<(Owner, OwnedFd)>,
    waker: Waker,
    /// The poll of the waker is armed. If not, the next turn arms it.
    watches_waker: bool,
    waits_for_minimum: bool,
    /// A receive ended for want of buffers in this turn.
    is_dry: bool,
    counters: RingCounters,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("sockets", &self.table.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Uring {
    pub(super) fn open(limits: Limits, waker: &Waker) -> Result<Self, RingError> {
        let setup = |what| move |source| RingError::Setup { what, source };
        let completions = (limits.receive_buffers.max(1_024) * 4).next_power_of_two() as u32;
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(completions)
            .setup_clamp()
            .build(SUBMISSIONS)
            .map_err(setup("io_uring_setup"))?;
        let buffers = Buffers::for_kernel(limits.receive_buffers).map_err(setup("mmap"))?;
        let bulk = Buffers::bulk().map_err(setup("mmap"))?;
        for (group, buffers) in [(GROUP, &buffers), (BULK_GROUP, &bulk)] {
            let (entries, count) = buffers.entries().expect("just made for the kernel");
            // SAFETY: `entries` is page aligned, has `count` entries, and stays mapped until the group is unregistered
            // in `drop`.
            unsafe { ring.submitter().register_buf_ring_with_flags(entries, count, group, 0) }
                .map_err(setup("register buffer ring"))?;
        }
        // Saves the kernel a look-up of the ring's descriptor at each enter; kernels before 5.18 do without.
        let _ = ring.submitter().register_ring_fd();
        // SAFETY: msghdr is plain data; all zero is its empty value.
        let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        header.msg_namelen = KernelAddress::ROOM as libc::socklen_t;
        let waits_for_minimum = ring.params().is_feature_min_timeout();
        Ok(Self {
            ring,
            buffers: ManuallyDrop::new(buffers),
            bulk: ManuallyDrop::new(bulk),
            table: ManuallyDrop::new(Table::new(limits.sockets)),
            arena: Arena::new(),
            overflow: vec![0; DATAGRAM_OCTETS].into_boxed_slice(),
            overflowing: false,
            header,
            again: Vec::with_capacity(limits.sockets * 2),
            next_peers: Vec::with_capacity(limits.sockets),
            quiet: Vec::with_capacity(limits.sockets),
            leaving: Vec::new(),
            detached: VecDeque::new(),
            waker: waker.clone(),
            watches_waker: false,
            waits_for_minimum,
            is_dry: false,
            counters: RingCounters::default(),
        })
    }

    fn watch_waker(&mut self) {
        let entry = op::watch(self.waker.as_raw_fd()).user_data(tag(Op::Wake, NO_SOCKET));
        self.watches_waker = self.push(&entry);
    }

    pub(super) fn add_udp(&mut self, fd: OwnedFd, owner: Owner) -> Result<SocketId, RingError> {
        let limit = self.table.limit();
        let id = self.table.insert(fd, owner, None).ok_or(RingError::SocketsFull(limit))?;
        self.arm_receive(id);
        Ok(id)
    }

    pub(super) fn add_stream(&mut self, fd: OwnedFd, owner: Owner) -> Result<SocketId, RingError> {
        let limit = self.table.limit();
        let id = self
            .table
            .insert(fd, owner, Some(Stream::new(None, STAGE_OCTETS)))
            .ok_or(RingError::SocketsFull(limit))?;
        self.arm_receive(id);
        Ok(id)
    }

    pub(super) fn connect(
        &mut self,
        fd: OwnedFd,
        to: SocketAddr,
        owner: Owner,
        stage_octets: usize,
    ) -> Result<SocketId, RingError> {
        let limit = self.table.limit();
        let id = self
            .table
            .insert(fd, owner, Some(Stream::new(Some(to), stage_octets)))
            .ok_or(RingError::SocketsFull(limit))?;
        let Some(socket) = self.table.get_mut(id) else {
            return Err(RingError::SocketsFull(limit));
        };
        let fd = socket.fd.as_raw_fd();
        socket.is_bulk = stage_octets > STAGE_OCTETS;
        if let Some(stream) = &mut socket.stream {
            stream.connect = InFlight::Submitted;
            let entry = op::connect(fd, stream.address.as_ptr(), stream.address.len())
                .user_data(tag(Op::Connect, id));
            if !self.push(&entry) {
                self.table.remove(id);
                return Err(RingError::Socket(io::ErrorKind::ResourceBusy.into()));
            }
        }
        Ok(id)
    }

    /// A connected socket is also received from more cheaply: without a source in each datagram. What the armed receive has
    /// taken, and what waits in the socket, came under the old rules; so the receive is cancelled before the connection is
    /// changed, and one without a source is armed only when nothing waits.
    pub(super) fn connect_udp(&mut self, id: SocketId, peer: Option<SocketAddr>) {
        let Some(socket) = self.table.open_mut(id) else { return };
        if socket.is_plain || socket.is_switching {
            self.next_peers.retain(|(waiting, _)| *waiting != id);
            self.next_peers.push((id, peer));
        } else {
            self.table.connect_udp(id, peer);
        }
        self.switch(id);
    }

    /// Cancels the receive, to arm it in another way.
    fn switch(&mut self, id: SocketId) {
        let Some(socket) = self.table.open_mut(id) else { return };
        let is_armed = socket.receive == InFlight::Submitted;
        if !is_armed || std::mem::replace(&mut socket.is_switching, true) {
            return;
        }
        // The cancel is told apart by its own result only.
        if !self.push(&op::cancel_receive(id).user_data(tag(Op::Cancel, id)))
            && let Some(socket) = self.table.get_mut(id)
        {
            socket.is_switching = false;
            self.again.push(id);
        }
    }

    pub(super) fn set_owner(&mut self, id: SocketId, owner: Owner) {
        self.table.set_owner(id, owner);
    }

    pub(super) fn room(&self) -> usize {
        self.table.limit().saturating_sub(self.table.len())
    }

    /// What the armed receive has taken must be reported first, so it is cancelled; and what was to be sent must have left.
    pub(super) fn detach(&mut self, id: SocketId) {
        let Some(socket) = self.table.open_mut(id).filter(|socket| socket.stream.is_none()) else { return };
        if std::mem::replace(&mut socket.is_leaving, true) {
            return;
        }
        match socket.receive {
            // It waits to be armed again, and need not be.
            InFlight::Waiting | InFlight::Completed => {
                socket.receive = InFlight::Completed;
                self.leaving.push(id);
            }
            InFlight::Submitted | InFlight::Ignored => self.switch(id),
        }
    }

    /// Nothing of them is in flight any more: they are out.
    fn let_leave(&mut self) {
        while let Some(id) = self.leaving.pop() {
            if self.table.open_mut(id).is_some() {
                self.next_peers.retain(|(waiting, _)| *waiting != id);
                self.detached.extend(self.table.detach(id));
            }
        }
    }

    pub(super) fn datagram(&mut self) -> &mut [u8] {
        if !self.arena.has_room() {
            self.submit();
            self.reset_arena();
        }
        self.overflowing = !self.arena.has_room();
        if self.overflowing {
            return &mut self.overflow;
        }
        self.arena.payload()
    }

    pub(super) fn send_datagram(&mut self, id: SocketId, to: SocketAddr, len: usize) {
        let Some(socket) = self.table.open_mut(id) else {
            return;
        };
        let fd = socket.fd.as_raw_fd();
        let to = Some(to).filter(|to| socket.peer != Some(*to));
        if self.overflowing {
            self.counters.send_failed += 1;
            return;
        }
        let at = self.arena.place(to, len);
        let entry = op::send_datagram(fd, at.data, at.len, at.address, at.address_len)
            .user_data(tag(Op::Datagram, id));
        if !self.push(&entry) {
            self.counters.send_failed += 1;
        }
    }

    pub(super) fn stage(&mut self, id: SocketId) -> Option<&mut [u8]> {
        let stream = self.table.open_mut(id)?.stream.as_mut()?;
        stream.is_free().then_some(&mut stream.stage[..])
    }

    pub(super) fn send_stage(&mut self, id: SocketId, len: usize) {
        let Some(stream) = self.table.open_mut(id).and_then(|s| s.stream.as_mut()) else {
            return;
        };
        if len == 0 || !stream.is_free() {
            return;
        }
        (stream.from, stream.to) = (0, len.min(stream.stage.len()));
        self.write(id);
    }

    /// Submits what is left of the stage.
    fn write(&mut self, id: SocketId) {
        let Some(socket) = self.table.get_mut(id) else {
            return;
        };
        let fd = socket.fd.as_raw_fd();
        let Some(stream) = &mut socket.stream else {
            return;
        };
        let rest = &stream.stage[stream.from..stream.to];
        let entry = op::write(fd, rest.as_ptr(), rest.len() as u32).user_data(tag(Op::Write, id));
        stream.write = InFlight::Submitted;
        if !self.push(&entry)
            && let Some(stream) = self.table.get_mut(id).and_then(|s| s.stream.as_mut())
        {
            stream.write = InFlight::Waiting;
            self.again.push(id);
        }
    }

    pub(super) fn finish(&mut self, id: SocketId) {
        let Some(socket) = self.table.open_mut(id) else {
            return;
        };
        socket.phase = Phase::Finishing;
        let writing = socket.stream.as_ref().is_some_and(|s| s.write != InFlight::Completed);
        if !writing {
            shut_write(&socket.fd);
        }
    }

    pub(super) fn close(&mut self, id: SocketId) {
        let Some(socket) = self.table.get_mut(id) else {
            return;
        };
        if socket.phase == Phase::Closing {
            return;
        }
        socket.phase = Phase::Closing;
        if socket.is_plain || socket.is_switching {
            self.next_peers.retain(|(waiting, _)| *waiting != id);
        }
        socket.receive.ignore();
        if let Some(stream) = &mut socket.stream {
            stream.connect.ignore();
            stream.write.ignore();
        }
        if socket.is_quiet() {
            self.quiet.push(id);
        } else {
            self.cancel(id);
        }
    }

    fn cancel(&mut self, id: SocketId) {
        let Some(socket) = self.table.get_mut(id) else {
            return;
        };
        let entry = op::cancel(socket.fd.as_raw_fd()).user_data(tag(Op::Cancel, id));
        if !self.push(&entry) {
            self.again.push(id);
        }
    }

    fn arm_receive(&mut self, id: SocketId) {
        let Some(socket) = self.table.get_mut(id) else {
            return;
        };
        if socket.is_switching || socket.is_plain {
            while let Some(place) = self.next_peers.iter().position(|(waiting, _)| *waiting == id) {
                let (_, peer) = self.next_peers.swap_remove(place);
                self.table.connect_udp(id, peer);
            }
        }
        let Some(socket) = self.table.get_mut(id) else {
            return;
        };
        let fd = socket.fd.as_raw_fd();
        // What waits may be somebody else's who wrote before the socket was connected.
        socket.is_plain = socket.peer.is_some() && is_drained(&socket.fd);
        socket.is_switching = false;
        let entry = match socket.stream {
            Some(_) if socket.is_bulk => op::receive_stream(fd, BULK_GROUP),
            Some(_) => op::receive_stream(fd, GROUP),
            None if socket.is_plain => op::receive_from_peer(fd, GROUP),
            None => op::receive_datagrams(fd, &raw const *self.header, GROUP),
        };
        let armed = self.push(&entry.user_data(tag(Op::Receive, id)));
        if let Some(socket) = self.table.get_mut(id) {
            socket.receive = match armed {
                true => InFlight::Submitted,
                false => InFlight::Waiting,
            };
        }
        if !armed {
            self.again.push(id);
        }
    }

    /// Places an entry, submitting early when the queue is full. False when the kernel takes no more just now.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        for attempt in 0..2 {
            // SAFETY: what the entry points to lives in the arena, in a boxed stream or header, or in the buffer ring. All
            // of them stay until the operation is over: the arena until the queue was taken empty, the others until the
            // socket's entry is removed, which needs it to be quiet.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.counters.operations += 1;
                return true;
            }
            if attempt == 0 {
                self.submit();
            }
        }
        false
    }

    /// Submits without waiting. Errors show as entries that stay in the queue.
    fn submit(&mut self) {
        self.counters.enters += 1;
        let _ = self.ring.submit();
    }

    fn reset_arena(&mut self) {
        if self.ring.submission().is_empty() {
            self.arena.reset();
        }
    }

    pub(super) fn turn(&mut self, wait: Wait) -> io::Result<()> {
        self.try_again();
        // Once a turn, however many sockets felt it.
        if std::mem::take(&mut self.is_dry) {
            self.buffers.ran_dry();
        }
        self.buffers.publish();
        self.bulk.publish();
        self.counters.enters += 1;
        let outcome = match wait.deadline {
            // Who hands a socket over does not wait.
            _ if !self.leaving.is_empty() || !self.detached.is_empty() => self.ring.submit(),
            None => self.ring.submit_and_wait(1),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let timeout = types::Timespec::from(left);
                let args = types::SubmitArgs::new().timespec(&timeout);
                // A minimum wait must end before the deadline: the kernel looks at the deadline only after it.
                if wait.coalesce.is_zero() {
                    self.ring.submitter().submit_with_args(1, &args)
                } else if left <= wait.coalesce {
                    self.ring.submitter().submit_with_args(COALESCED, &args)
                } else if self.waits_for_minimum {
                    let args = args.min_wait_usec(wait.coalesce.as_micros() as u32);
                    self.ring.submitter().submit_with_args(COALESCED, &args)
                } else {
                    self.ring.submitter().submit_with_args(1, &args)
                }
            }
        };
        match outcome {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                // Nothing came in time; a signal; completions to be reaped first; memory short for a moment.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => {}
                _ => return Err(error),
            },
        }
        self.counters.completions_lost = u64::from(self.ring.completion().overflow());
        if self.ring.submission().is_empty() {
            self.arena.reset();
            while let Some(id) = self.quiet.pop() {
                self.table.remove(id);
            }
            self.let_leave();
        }
        Ok(())
    }

    /// Arms, writes and cancels what could not be before.
    fn try_again(&mut self) {
        if !self.watches_waker {
            self.watch_waker();
        }
        for _ in 0..self.again.len() {
            let id = self.again.swap_remove(0);
            let Some(socket) = self.table.get_mut(id) else {
                continue;
            };
            if socket.phase == Phase::Closing {
                if !socket.is_quiet() {
                    self.cancel(id);
                }
                continue;
            }
            if socket.receive == InFlight::Submitted && socket.stream.is_none() {
                self.switch(id);
                continue;
            }
            let waiting_write = socket.stream.as_ref().is_some_and(|s| s.write == InFlight::Waiting);
            if socket.receive == InFlight::Waiting {
                self.counters.rearmed += u64::from(!socket.is_switching);
                self.arm_receive(id);
            }
            if waiting_write {
                self.write(id);
            }
        }
    }

    pub(super) fn next(&mut self) -> Option<Completion> {
        if let Some((owner, socket)) = self.detached.pop_front() {
            return Some(Completion::Detached { owner, socket });
        }
        loop {
            let entry = self.ring.completion().next()?;
            self.counters.completions += 1;
            let Some((op, id)) = untag(entry.user_data()) else {
                continue;
            };
            let completion = match op {
                Op::Receive => self.received(id, entry.result(), entry.flags()),
                Op::Datagram => {
                    self.counters.send_failed += 1;
                    None
                }
                Op::Write => self.written(id, entry.result()),
                Op::Connect => self.connected(id, entry.result()),
                Op::Cancel => None,
                Op::Wake => {
                    // A negative result ends the poll, and says nothing about the counter.
                    self.waker.drain();
                    self.watches_waker &= cqueue::more(entry.flags());
                    Some(Completion::Woken)
                }
            };
            if completion.is_some() {
                return completion;
            }
        }
    }

    fn received(&mut self, id: SocketId, result: i32, flags: u32) -> Option<Completion> {
        let buffer = cqueue::buffer_select(flags);
        let Self { table, buffers, bulk, .. } = self;
        // Without a socket: cannot be, since an entry stays until its receive is over.
        let socket = table.get_mut(id)?;
        let buffers = if socket.is_bulk { &mut **bulk } else { &mut **buffers };
        if buffer.is_some() {
            buffers.reported();
        }
        let owner = socket.owner;
        let phase = socket.phase;
        let is_stream = socket.stream.is_some();
        let dry = result == -libc::ENOBUFS;
        let ended = is_stream && result <= 0 && !dry;
        if !cqueue::more(flags) {
            if phase == Phase::Closing || ended {
                socket.receive = InFlight::Completed;
            } else if socket.is_leaving {
                socket.receive = InFlight::Completed;
                self.leaving.push(id);
            } else {
                socket.receive = InFlight::Waiting;
                self.again.push(id);
            }
        }
        if dry {
            self.counters.buffers_dry += 1;
            self.is_dry = true;
        }
        if phase == Phase::Closing || (ended && phase == Phase::Finishing) {
            if let Some(buffer) = buffer {
                buffers.lend(buffer);
            }
            if phase == Phase::Finishing {
                self.close(id);
            } else {
                self.release_if_quiet(id);
            }
            return None;
        }
        if ended {
            if let Some(buffer) = buffer {
                buffers.lend(buffer);
            }
            let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
            return Some(Completion::Ended { owner, error });
        }
        let buffer = buffer?;
        if result < 0 || phase == Phase::Finishing {
            buffers.lend(buffer);
            return None;
        }
        let filled = result as usize;
        if is_stream {
            let data = buffers.received(buffer, 0, filled);
            return Some(Completion::Stream { owner, data });
        }
        if let (true, Some(peer)) = (socket.is_plain, socket.peer) {
            if filled > BUFFER_OCTETS {
                self.counters.truncated += 1;
                buffers.lend(buffer);
                return None;
            }
            let data = buffers.received(buffer, 0, filled);
            return Some(Completion::Datagram { owner, from: peer, data });
        }
        let Some((from, start)) = source_and_payload(buffers.raw(buffer, filled)) else {
            self.counters.truncated += 1;
            buffers.lend(buffer);
            return None;
        };
        let Some(from) = from else {
            buffers.lend(buffer);
            return None;
        };
        let data = buffers.received(buffer, start, filled - start);
        Some(Completion::Datagram { owner, from, data })
    }

    fn written(&mut self, id: SocketId, result: i32) -> Option<Completion> {
        let socket = self.table.get_mut(id)?;
        let (owner, phase) = (socket.owner, socket.phase);
        let stream = socket.stream.as_mut()?;
        stream.write = InFlight::Completed;
        if phase == Phase::Closing {
            self.release_if_quiet(id);
            return None;
        }
        if result > 0 {
            stream.from += result as usize;
            if stream.from < stream.to {
                self.write(id);
                return None;
            }
            if phase == Phase::Finishing {
                shut_write(&socket.fd);
                return None;
            }
            return Some(Completion::Writable { owner });
        }
        if phase == Phase::Finishing {
            self.close(id);
            return None;
        }
        let error = Some(io::Error::from_raw_os_error(-result));
        Some(Completion::Ended { owner, error })
    }

    fn connected(&mut self, id: SocketId, result: i32) -> Option<Completion> {
        let socket = self.table.get_mut(id)?;
        let (owner, phase) = (socket.owner, socket.phase);
        let stream = socket.stream.as_mut()?;
        stream.connect = InFlight::Completed;
        if phase != Phase::Open {
            self.release_if_quiet(id);
            return None;
        }
        if result < 0 {
            let error = Some(io::Error::from_raw_os_error(-result));
            return Some(Completion::Ended { owner, error });
        }
        stream.connected = true;
        self.arm_receive(id);
        Some(Completion::Connected { owner })
    }

    fn release_if_quiet(&mut self, id: SocketId) {
        if let Some(socket) = self.table.get_mut(id)
            && socket.phase == Phase::Closing
            && socket.is_quiet()
        {
            self.quiet.push(id);
        }
    }

    pub(super) fn bytes(&self, data: &Received) -> &[u8] {
        if data.is_bulk() { self.bulk.bytes(data) } else { self.buffers.bytes(data) }
    }

    pub(super) fn give_back(&mut self, data: Received) {
        if data.is_bulk() { self.bulk.give_back(data) } else { self.buffers.give_back(data) }
    }

    pub(super) fn counters(&self) -> RingCounters {
        let (buffers_out, buffers_out_max) = self.buffers.out();
        let (buffers, sockets) = (self.buffers.len() as u64, self.table.len() as u64);
        RingCounters { buffers_out, buffers_out_max, buffers, sockets, ..self.counters }
    }
}

/// What a multishot recvmsg puts before the payload: struct io_uring_recvmsg_out, which is four 32-bit numbers (length
/// of the source address, of control data, of the payload, flags), then room for the address.
fn source_and_payload(filled: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    const NUMBERS: usize = 16;
    const START: usize = NUMBERS + KernelAddress::ROOM;
    let flags = u32::from_ne_bytes(filled.get(12..NUMBERS)?.try_into().ok()?);
    let address = filled.get(NUMBERS..START)?;
    (flags & libc::MSG_TRUNC as u32 == 0).then(|| (KernelAddress::read(address), START))
}

impl Drop for Uring {
    fn drop(&mut self) {
        let ids: Vec<SocketId> = self.table.ids().collect();
        for id in ids {
            self.close(id);
        }
        let give_up = Instant::now() + LETTING_GO;
        while self.table.len() > 0 && Instant::now() < give_up {
            let wait =
                Wait { deadline: Some(Instant::now() + Duration::from_millis(10)), coalesce: Duration::ZERO };
            if self.turn(wait).is_err() {
                break;
            }
            while self.next().is_some() {}
        }
        let _ = self.ring.submitter().unregister_buf_ring(GROUP);
        let _ = self.ring.submitter().unregister_buf_ring(BULK_GROUP);
        if self.table.len() > 0 {
            // The kernel still holds operations that point here. Losing memory is the lesser evil.
            // SAFETY: neither field is used again; this is the end of `drop`.
            let (buffers, bulk, table) = unsafe {
                (
                    ManuallyDrop::take(&mut self.buffers),
                    ManuallyDrop::take(&mut self.bulk),
                    ManuallyDrop::take(&mut self.table),
                )
            };
            buffers.leak();
            bulk.leak();
            std::mem::forget(table);
            return;
        }
        // SAFETY: dropped once, here; nothing is in flight, so the kernel uses none of it.
        unsafe {
            ManuallyDrop::drop(&mut self.buffers);
            ManuallyDrop::drop(&mut self.bulk);
            ManuallyDrop::drop(&mut self.table);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Choice, DriverKind, decide};

    const LIMITS: Limits = Limits { sockets: 4, receive_buffers: 8 };

    fn soon() -> Wait {
        Wait { deadline: Some(Instant::now() + Duration::from_millis(20)), coalesce: Duration::ZERO }
    }

    #[test]
    fn a_poll_of_the_waker_that_ended_is_armed_again() {
        if decide(Choice::Only(DriverKind::IoUring)).driver.is_none() {
            eprintln!("skipped: no io_uring here");
            return;
        }
        let waker = Waker::new().unwrap();
        let mut ring = Uring::open(LIMITS, &waker).unwrap();
        ring.turn(soon()).unwrap();
        assert!(ring.watches_waker);
        // The poll ends with an error, and so it does when it could not be armed at all.
        let cancel = op::cancel(waker.as_raw_fd()).user_data(tag(Op::Cancel, NO_SOCKET));
        assert!(ring.push(&cancel));
        ring.turn(soon()).unwrap();
        while ring.next().is_some() {}
        assert!(!ring.watches_waker, "the kernel said that it is over");
        ring.turn(soon()).unwrap();
        waker.wake();
        ring.turn(Wait { deadline: Some(Instant::now() + Duration::from_secs(5)), coalesce: Duration::ZERO })
            .unwrap();
        assert!(matches!(ring.next(), Some(Completion::Woken)));
    }
}
