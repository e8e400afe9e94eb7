//! The epoll driver: the same promises as [`super::uring`], one system call an operation. For hosts whose seccomp
//! profile or sysctl blocks io_uring (containers, mostly); it costs 6–19 % more CPU a call (perf.md).
//!
//! Level-triggered: each readable socket gives one datagram or one piece of stream a turn, the rest stays in the
//! kernel and makes the next wait return at once. Reads never block, because they are `MSG_DONTWAIT`.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use super::buffers::{BUFFER_OCTETS, Buffers, Received};
use super::socket::{KernelAddress, shut_write};
use super::table::{InFlight, Owner, Phase, SocketId, Stream, Table};
use super::thread::Waker;
use super::{Completion, DATAGRAM_OCTETS, Limits, RingCounters, RingError, STAGE_OCTETS, Wait};

/// Events taken in one wait; the rest come with the next, which then does not sleep.
const EVENTS: usize = 512;

/// The waker's mark among events; no socket has it, since indices are bounded.
const WAKER: u64 = u64::MAX;

/// See the module.
pub struct Epoll {
    set: OwnedFd,
    buffers: Buffers,
    table: Table,
    scratch: Box<[u8]>,
    events: Box<[libc::epoll_event]>,
    ready: usize,
    next: usize,
    waker: Waker,
    /// Sockets that are out.
    detached: VecDeque<(Owner, OwnedFd)>,
    counters: RingCounters,
}

impl std::fmt::Debug for Epoll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Epoll")
            .field("sockets", &self.table.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

fn mark(id: SocketId) -> u64 {
    u64::from(id.generation) << 32 | u64::from(id.index)
}

fn unmark(bits: u64) -> SocketId {
    SocketId { index: bits as u32, generation: (bits >> 32) as u32 }
}

/// The outcome of a system call that gives −1 for an error.
fn checked(outcome: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(outcome).map_err(|_| io::Error::last_os_error())
}

impl Epoll {
    pub(super) fn open(limits: Limits, waker: &Waker) -> Result<Self, RingError> {
        let setup = |what| move |source| RingError::Setup { what, source };
        // SAFETY: no pointers; the descriptor it gives is ours alone.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(setup("epoll_create1")(io::Error::last_os_error()));
        }
        // SAFETY: a fresh descriptor that nothing else owns.
        let set = unsafe { OwnedFd::from_raw_fd(fd) };
        let this = Self {
            set,
            buffers: Buffers::free_list(limits.receive_buffers).map_err(setup("mmap"))?,
            table: Table::new(limits.sockets),
            scratch: vec![0; DATAGRAM_OCTETS].into_boxed_slice(),
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS].into_boxed_slice(),
            ready: 0,
            next: 0,
            waker: waker.clone(),
            detached: VecDeque::new(),
            counters: RingCounters::default(),
        };
        this.control(libc::EPOLL_CTL_ADD, waker.as_raw_fd(), libc::EPOLLIN, WAKER)
            .map_err(setup("epoll_ctl"))?;
        Ok(this)
    }

    fn control(&self, what: i32, fd: RawFd, events: i32, mark: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: mark };
        // SAFETY: `event` lives through the call, which copies it.
        let outcome = unsafe { libc::epoll_ctl(self.set.as_raw_fd(), what, fd, &raw mut event) };
        checked(outcome as libc::ssize_t).map(drop)
    }

    fn add(
        &mut self,
        fd: OwnedFd,
        owner: Owner,
        stream: Option<Box<Stream>>,
        events: i32,
    ) -> Result<SocketId, RingError> {
        let raw = fd.as_raw_fd();
        let limit = self.table.limit();
        let id = self.table.insert(fd, owner, stream).ok_or(RingError::SocketsFull(limit))?;
        if let Err(error) = self.control(libc::EPOLL_CTL_ADD, raw, events, mark(id)) {
            self.table.remove(id);
            return Err(RingError::Socket(error));
        }
        Ok(id)
    }

    pub(super) fn add_udp(&mut self, fd: OwnedFd, owner: Owner) -> Result<SocketId, RingError> {
        self.add(fd, owner, None, libc::EPOLLIN)
    }

    pub(super) fn add_stream(&mut self, fd: OwnedFd, owner: Owner) -> Result<SocketId, RingError> {
        self.add(fd, owner, Some(Stream::new(None, STAGE_OCTETS)), libc::EPOLLIN)
    }

    pub(super) fn connect(
        &mut self,
        fd: OwnedFd,
        to: SocketAddr,
        owner: Owner,
        stage_octets: usize,
    ) -> Result<SocketId, RingError> {
        socket2::SockRef::from(&fd).set_nonblocking(true).map_err(RingError::Socket)?;
        let mut stream = Stream::new(Some(to), stage_octets);
        self.counters.operations += 1;
        // SAFETY: the address lives in `stream` and is copied by the call.
        let outcome = unsafe { libc::connect(fd.as_raw_fd(), stream.address.as_ptr(), stream.address.len()) };
        if outcome < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINPROGRESS) {
                return Err(RingError::Socket(error));
            }
        }
        stream.connect = InFlight::Submitted;
        // Writable says how the connect went, also when it succeeded at once.
        self.add(fd, owner, Some(stream), libc::EPOLLOUT)
    }

    pub(super) fn connect_udp(&mut self, id: SocketId, peer: Option<SocketAddr>) {
        self.table.connect_udp(id, peer);
    }

    pub(super) fn set_owner(&mut self, id: SocketId, owner: Owner) {
        self.table.set_owner(id, owner);
    }

    pub(super) fn room(&self) -> usize {
        self.table.limit().saturating_sub(self.table.len())
    }

    /// What is ready and not read yet stays in the socket, for whoever has it next.
    pub(super) fn detach(&mut self, id: SocketId) {
        let Some(socket) = self.table.open_mut(id).filter(|socket| socket.stream.is_none()) else { return };
        let fd = socket.fd.as_raw_fd();
        self.counters.operations += 1;
        // It cannot fail for a descriptor that is in the set; if it did, the mark of a stale socket would be passed over.
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, mark(id));
        self.detached.extend(self.table.detach(id));
    }

    pub(super) fn datagram(&mut self) -> &mut [u8] {
        &mut self.scratch
    }

    pub(super) fn send_datagram(&mut self, id: SocketId, to: SocketAddr, len: usize) {
        let Some(socket) = self.table.open_mut(id) else {
            return;
        };
        let fd = socket.fd.as_raw_fd();
        let is_peer = socket.peer == Some(to);
        let to = KernelAddress::from(to);
        let (address, address_len) = if is_peer { (std::ptr::null(), 0) } else { (to.as_ptr(), to.len()) };
        let data = &self.scratch[..len.min(DATAGRAM_OCTETS)];
        self.counters.operations += 1;
        // SAFETY: `data` and `to` live through the call, which copies them.
        let outcome = unsafe {
            libc::sendto(
                fd,
                data.as_ptr().cast(),
                data.len(),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                address,
                address_len,
            )
        };
        if checked(outcome).is_err() {
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
        // What does not go out now is reported by the next readiness, errors included.
        let _ = self.write(id);
    }

    /// Writes what is left of the stage; true when all of it is out.
    fn write(&mut self, id: SocketId) -> io::Result<bool> {
        let Some(socket) = self.table.get_mut(id) else {
            return Ok(true);
        };
        let fd = socket.fd.as_raw_fd();
        let Some(stream) = &mut socket.stream else {
            return Ok(true);
        };
        let rest = &stream.stage[stream.from..stream.to];
        self.counters.operations += 1;
        // SAFETY: `rest` lives through the call, which copies it.
        let outcome = unsafe {
            libc::send(fd, rest.as_ptr().cast(), rest.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        };
        let sent = match checked(outcome) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                stream.write = InFlight::Submitted;
                self.control(libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN | libc::EPOLLOUT, mark(id))?;
                return Err(error);
            }
        };
        stream.from += sent;
        let was_waiting = stream.write == InFlight::Submitted;
        let done = stream.from >= stream.to;
        stream.write = match done {
            true => InFlight::Completed,
            false => InFlight::Submitted,
        };
        if done == was_waiting {
            let events = match done {
                true => libc::EPOLLIN,
                false => libc::EPOLLIN | libc::EPOLLOUT,
            };
            self.control(libc::EPOLL_CTL_MOD, fd, events, mark(id))?;
        }
        Ok(done)
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

    /// Nothing of ours is ever with the kernel between two calls, so the descriptor can go at once, and takes its
    /// place in the poll set with it.
    pub(super) fn close(&mut self, id: SocketId) {
        self.table.remove(id);
    }

    pub(super) fn turn(&mut self, wait: Wait) -> io::Result<()> {
        if self.next < self.ready {
            return Ok(()); // sends have left already, and the rest of the last batch comes first
        }
        self.counters.enters += 1;
        (self.next, self.ready) = (0, 0);
        // Who hands a socket over does not wait.
        let deadline = if self.detached.is_empty() { wait.deadline } else { Some(Instant::now()) };
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            libc::timespec { tv_sec: left.as_secs() as libc::time_t, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `events` has room for EVENTS entries and `timeout` is null or lives through the call.
        let outcome = unsafe {
            libc::epoll_pwait2(
                self.set.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS as i32,
                timeout,
                std::ptr::null(),
            )
        };
        match checked(outcome as libc::ssize_t) {
            Ok(ready) => self.ready = ready,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> Option<Completion> {
        if let Some((owner, socket)) = self.detached.pop_front() {
            return Some(Completion::Detached { owner, socket });
        }
        while self.next < self.ready {
            let event = self.events[self.next];
            self.next += 1;
            self.counters.completions += 1;
            if event.u64 == WAKER {
                self.waker.drain();
                return Some(Completion::Woken);
            }
            let id = unmark(event.u64);
            let happened = event.events as i32;
            if let Some(completion) = self.handle(id, happened) {
                return Some(completion);
            }
        }
        None
    }

    fn handle(&mut self, id: SocketId, happened: i32) -> Option<Completion> {
        let socket = self.table.get_mut(id)?;
        let (owner, phase) = (socket.owner, socket.phase);
        let connecting = socket.stream.as_ref().is_some_and(|s| s.connect == InFlight::Submitted);
        if connecting {
            return self.connected(id);
        }
        if happened & libc::EPOLLOUT != 0 {
            let outcome = self.write(id);
            // What can be read is read next turn: the set is level-triggered.
            return match (outcome, phase) {
                (Ok(false), _) => None,
                (Ok(true), Phase::Open) => Some(Completion::Writable { owner }),
                (Ok(true), _) => {
                    if let Some(socket) = self.table.get_mut(id) {
                        shut_write(&socket.fd);
                    }
                    None
                }
                (Err(error), Phase::Open) => Some(self.ended(id, owner, Some(error))),
                (Err(_), _) => {
                    self.close(id);
                    None
                }
            };
        }
        self.receive(id)
    }

    fn connected(&mut self, id: SocketId) -> Option<Completion> {
        let socket = self.table.get_mut(id)?;
        let (owner, fd) = (socket.owner, socket.fd.as_raw_fd());
        let error = socket2::SockRef::from(&socket.fd).take_error().unwrap_or_else(Some);
        if let Some(stream) = &mut socket.stream {
            stream.connect = InFlight::Completed;
            stream.connected = error.is_none();
        }
        if error.is_some() {
            return Some(self.ended(id, owner, error));
        }
        match self.control(libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN, mark(id)) {
            Ok(()) => Some(Completion::Connected { owner }),
            Err(error) => Some(self.ended(id, owner, Some(error))),
        }
    }

    /// Reports the end once: the set would go on reporting it for as long as the owner has not closed.
    fn ended(&mut self, id: SocketId, owner: Owner, error: Option<io::Error>) -> Completion {
        if let Some(socket) = self.table.get_mut(id) {
            socket.receive = InFlight::Completed;
            let fd = socket.fd.as_raw_fd();
            let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
        }
        Completion::Ended { owner, error }
    }

    fn receive(&mut self, id: SocketId) -> Option<Completion> {
        let Some((buffer, place)) = self.buffers.take_free() else {
            // The socket keeps it; the set reports it again.
            self.counters.buffers_dry += 1;
            return None;
        };
        let Some(socket) = self.table.get_mut(id) else {
            self.buffers.lend(buffer);
            return None;
        };
        let (owner, phase, is_stream) = (socket.owner, socket.phase, socket.stream.is_some());
        let fd = socket.fd.as_raw_fd();
        let mut from = KernelAddress::default();
        let mut from_len = KernelAddress::ROOM as libc::socklen_t;
        self.counters.operations += 1;
        // On a stream MSG_TRUNC would throw the octets away.
        let flags = match is_stream {
            true => libc::MSG_DONTWAIT,
            false => libc::MSG_DONTWAIT | libc::MSG_TRUNC,
        };
        // SAFETY: `place` is a whole free buffer of BUFFER_OCTETS that nobody else sees, `from` has room for any
        // internet address, and both live through the call.
        let outcome = unsafe {
            libc::recvfrom(fd, place.cast(), BUFFER_OCTETS, flags, from.as_mut_ptr(), &raw mut from_len)
        };
        let error = match checked(outcome) {
            Ok(len) if len > BUFFER_OCTETS => {
                self.counters.truncated += 1;
                self.buffers.lend(buffer);
                return None;
            }
            Ok(len) if !is_stream => {
                let Some(from) = from.address() else {
                    self.buffers.lend(buffer);
                    return None;
                };
                let data = self.buffers.received(buffer, 0, len);
                return Some(Completion::Datagram { owner, from, data });
            }
            Ok(len) if len > 0 && phase == Phase::Open => {
                let data = self.buffers.received(buffer, 0, len);
                return Some(Completion::Stream { owner, data });
            }
            Ok(0) => None,
            Ok(_) => {
                self.buffers.lend(buffer);
                return None;
            }
            Err(error) if !is_stream || error.kind() == io::ErrorKind::WouldBlock => {
                self.buffers.lend(buffer);
                return None;
            }
            Err(error) => Some(error),
        };
        self.buffers.lend(buffer);
        if phase == Phase::Open {
            return Some(self.ended(id, owner, error));
        }
        self.close(id);
        None
    }

    pub(super) fn bytes(&self, data: &Received) -> &[u8] {
        self.buffers.bytes(data)
    }

    pub(super) fn give_back(&mut self, data: Received) {
        self.buffers.give_back(data);
    }

    pub(super) fn counters(&self) -> RingCounters {
        let (buffers_out, buffers_out_max) = self.buffers.out();
        let (buffers, sockets) = (self.buffers.len() as u64, self.table.len() as u64);
        RingCounters { buffers_out, buffers_out_max, buffers, sockets, ..self.counters }
    }
}
