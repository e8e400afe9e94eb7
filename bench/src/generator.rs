//! The generator: one pinned thread that speaks and listens for every call.
//!
//! ```text
//!              ┌── every millisecond, on an absolute schedule ──────────────────────────────┐
//!  Start/Stop ▶│ streams of this millisecond of the ptime ▶ packets ▶ one submit           │▶ target
//!              │ sleep until the next millisecond                                          │
//!              │ whatever has come ◀ provided buffers, each with the kernel's arrival stamp │◀ target
//!              └───────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Streams are dealt over the twenty milliseconds of the ptime, so a turn carries a twentieth of them. Nothing that is
//! measured on arrival depends on when this thread runs: the stamp is the kernel's. What it sends does, so each packet's
//! lateness is recorded (as read *after* the submit that carried it: an upper bound) and reported beside the figures.
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use tandem_sdp::crypto::NegotiatedSrtp;

use crate::clock::{Mono, NANOS_PER_MS, WallToMono};
use crate::course::Course;
use crate::distribution::Distribution;
use crate::host;
use crate::marker::{FRAMES_PER_S, Law, Signal};
use crate::protection::{OVERHEAD_MAX, Protection};
use crate::ring::{AfterReap, Counters, Receive, UdpRing};
use crate::stream::{Listener, PACKET_OCTETS, Speaker, StreamAccount, Timings, Window};

/// The generator's turn.
pub(crate) const TICK_NS: u64 = NANOS_PER_MS;

/// Turns in a ptime of 20 ms: the streams are dealt over so many buckets.
const BUCKETS: u64 = 20;

/// When the generator is later than this, it drops the turns it has missed and counts them instead of sending a volley
/// that no real caller would send.
pub(crate) const TOO_FAR_BEHIND_NS: u64 = 100 * NANOS_PER_MS;

/// Keeps the first sequence number, which a stream takes from its SSRC, below 2^15: a peer that loses the first packets would
/// guess the rollover counter of SRTP wrong (RFC 3711 §3.3.1).
const FIRST_SEQUENCE_LOW: u32 = !(1 << 22);

/// The window is decided this long before it begins at least, so that the generator sees it in time.
const UNDECIDED: u64 = u64::MAX;

/// What one socket of the generator is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// The codec that it speaks and hears.
    pub law: Law,
    /// The line that it hears when the target does what it should.
    pub hears: usize,
}

impl Line {
    /// Callers of an echo, each of whom hears himself.
    pub fn echoed(calls: usize, law: Law) -> Vec<Self> {
        (0..calls).map(|slot| Self { law, hears: slot }).collect()
    }

    /// Two callers a bridge, side by side, who hear each other, each in a codec of his own.
    pub fn bridged(bridges: usize, [first, second]: [Law; 2]) -> Vec<Self> {
        (0..bridges)
            .flat_map(|n| [Self { law: first, hears: 2 * n + 1 }, Self { law: second, hears: 2 * n }])
            .collect()
    }
}

/// Why the generator could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GeneratorError {
    /// No socket.
    #[error("cannot open UDP socket {number} of {wanted}")]
    Socket {
        /// Which one.
        number: usize,
        /// Of how many.
        wanted: usize,
        /// The kernel's word.
        source: io::Error,
    },
    /// No io_uring.
    #[error("io_uring is not available here ({0}); a container profile may forbid it")]
    Ring(io::Error),
    /// Not pinned.
    #[error("cannot pin the generator to core {core}")]
    Pin {
        /// The core.
        core: usize,
        /// The kernel's word.
        source: io::Error,
    },
    /// The loop ended.
    #[error("the generator's loop failed: {0}")]
    Loop(io::Error),
    /// The thread is gone.
    #[error("the generator's thread panicked")]
    Panicked,
}

enum Command {
    Start(usize, Option<Box<Protection>>),
    Stop(usize),
    Finish,
}

/// Figures that the thread keeps up to date for the progress bar, and the window that it is told.
#[derive(Debug)]
pub struct Shared {
    /// Packets sent.
    pub sent: AtomicU64,
    /// Datagrams received.
    pub received: AtomicU64,
    window_begin_ns: AtomicU64,
    window_end_ns: AtomicU64,
}

impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sent, received) = (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        write!(f, "{sent} packets sent, {received} received")
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            window_begin_ns: AtomicU64::new(UNDECIDED),
            window_end_ns: AtomicU64::new(UNDECIDED),
        }
    }
}

impl Shared {
    /// Decides the measured window.
    pub fn measure(&self, window: Window) {
        self.window_end_ns.store(window.end.0, Ordering::Relaxed);
        self.window_begin_ns.store(window.begin.0, Ordering::Release);
    }

    /// The measured window, once it is decided.
    pub fn window(&self) -> Option<Window> {
        let begin = self.window_begin_ns.load(Ordering::Acquire);
        let end = self.window_end_ns.load(Ordering::Relaxed);
        (begin != UNDECIDED).then_some(Window { begin: Mono(begin), end: Mono(end) })
    }
}

/// A handle to the thread and its sockets.
pub struct Generator {
    sockets: Arc<[UdpSocket]>,
    ports: Vec<u16>,
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Measured, GeneratorError>>,
}

/// What a run came to.
pub struct Measured {
    /// Of each call, in slot order.
    pub streams: Vec<StreamAccount>,
    /// Of all together.
    pub timings: Timings,
    /// In the window: how late packets left.
    pub late: Distribution,
    /// In the window: packets that were not sent because the generator was too far behind.
    pub skipped: u64,
    /// In the window: processor time of the generator's thread, nanoseconds.
    pub thread_cpu_ns: u64,
    /// In the window: time that the thread was ready and its core was busy with others, nanoseconds.
    pub thread_waited_ns: u64,
    /// Length of the window by the generator's clock, nanoseconds; 0 when there was none.
    pub window_ns: u64,
    /// Arrivals without a kernel stamp, timed when they were found instead.
    pub unstamped: u64,
    /// Trouble of the ring.
    pub ring: Counters,
}

impl Generator {
    /// Opens a socket a line on `address` and starts the thread on `core`; `course` is told of bursts that leave and come.
    ///
    /// # Errors
    /// When sockets, ring or core are not to be had.
    pub fn start(
        lines: Vec<Line>,
        address: IpAddr,
        core: usize,
        window_frames: usize,
        course: Option<Arc<Course>>,
    ) -> Result<Self, GeneratorError> {
        let calls = lines.len();
        let mut sockets = Vec::with_capacity(calls);
        let mut ports = Vec::with_capacity(calls);
        for number in 0..calls {
            let failed = |source| GeneratorError::Socket { number, wanted: calls, source };
            let socket = UdpSocket::bind((address, 0)).map_err(failed)?;
            host::stamp_arrivals(socket.as_raw_fd()).map_err(failed)?;
            ports.push(socket.local_addr().map_err(failed)?.port());
            sockets.push(socket);
        }
        let sockets: Arc<[UdpSocket]> = sockets.into();
        let shared = Arc::new(Shared::default());
        let (commands, inbox) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = {
            let (sockets, shared) = (sockets.clone(), shared.clone());
            std::thread::Builder::new()
                .name("generator".into())
                .spawn(move || {
                    host::pin_thread(core).map_err(|source| GeneratorError::Pin { core, source })?;
                    host::sharpen_timers();
                    // Its schedule is the measure of all else: what shares its core (agent, signalling) gives way. Not
                    // where that is the target's too, nor without the right to.
                    if host::allowed_cores().len() > 1 {
                        let _ = host::set_realtime();
                    }
                    let mut turns = Turns::new(&sockets, lines, window_frames, shared, course, inbox)
                        .map_err(GeneratorError::Ring)?;
                    let _ = ready.send(());
                    turns.run().map_err(GeneratorError::Loop)?;
                    Ok(turns.finish())
                })
                .map_err(GeneratorError::Loop)?
        };
        if is_ready.recv().is_err() {
            return match thread.join() {
                Ok(Err(error)) => Err(error),
                _ => Err(GeneratorError::Panicked),
            };
        }
        Ok(Self { sockets, ports, commands, shared, thread })
    }

    /// The local ports, in slot order.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Figures for the progress bar.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// A slot's call is answered: from now on it speaks to `remote`, protected if there are keys.
    ///
    /// # Errors
    /// When the address cannot be reached from the socket, or the keys cannot be used.
    pub fn speak(&self, slot: usize, remote: SocketAddr, keys: Option<&NegotiatedSrtp>) -> io::Result<()> {
        let protection = keys.map(Protection::new).transpose().map_err(io::Error::other)?.map(Box::new);
        self.sockets[slot].connect(remote)?;
        // A closed inbox means that the thread has failed, which `finish` reports.
        let _ = self.commands.send(Command::Start(slot, protection));
        Ok(())
    }

    /// A slot's call is over: it falls silent but listens on.
    pub fn hush(&self, slot: usize) {
        let _ = self.commands.send(Command::Stop(slot));
    }

    /// Decides the measured window.
    pub fn measure(&self, window: Window) {
        self.shared.measure(window);
    }

    /// True while the thread runs.
    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends the thread and gives what it measured.
    ///
    /// # Errors
    /// When the loop had failed.
    pub fn finish(self) -> Result<Measured, GeneratorError> {
        let _ = self.commands.send(Command::Finish);
        self.thread.join().map_err(|_| GeneratorError::Panicked)?
    }
}

/// A generating thread's own clocks at an instant.
pub(crate) struct Clocks {
    pub(crate) at: Mono,
    pub(crate) cpu_ns: u64,
    pub(crate) waited_ns: u64,
}

impl Clocks {
    pub(crate) fn at(at: Mono) -> Self {
        Self { at, cpu_ns: host::thread_cpu_ns(), waited_ns: host::thread_waited_ns() }
    }
}

/// The thread's own state.
struct Turns {
    ring: UdpRing,
    signals: [Signal; 2],
    clock: WallToMono,
    lines: Vec<Line>,
    speakers: Vec<Speaker>,
    listeners: Vec<Listener>,
    speaking: Vec<bool>,
    /// By slot.
    protection: Vec<Option<Box<Protection>>>,
    /// Slots by the millisecond of the ptime in which they speak.
    buckets: Vec<Vec<usize>>,
    inbox: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    course: Option<Arc<Course>>,
    window: Option<Window>,
    at_begin: Option<Clocks>,
    at_end: Option<Clocks>,
    departures: Vec<(usize, u64)>,
    timings: Timings,
    late: Distribution,
    skipped: u64,
    unstamped: u64,
    sent: u64,
    received: u64,
}

impl Turns {
    fn new(
        sockets: &[UdpSocket],
        lines: Vec<Line>,
        window_frames: usize,
        shared: Arc<Shared>,
        course: Option<Arc<Course>>,
        inbox: mpsc::Receiver<Command>,
    ) -> io::Result<Self> {
        let mut ring = UdpRing::new(Receive::Stamped, sockets.len(), PACKET_OCTETS + OVERHEAD_MAX)?;
        for (token, socket) in sockets.iter().enumerate() {
            ring.arm(token as u32, socket.as_raw_fd())?;
        }
        ring.submit()?;
        Ok(Self {
            ring,
            signals: [Law::Pcmu, Law::Pcma].map(Signal::new),
            clock: WallToMono::new(),
            lines,
            speakers: sockets
                .iter()
                .map(|_| Speaker::new(rand::random::<u32>() & FIRST_SEQUENCE_LOW))
                .collect(),
            listeners: sockets.iter().map(|_| Listener::new(window_frames)).collect(),
            speaking: vec![false; sockets.len()],
            protection: sockets.iter().map(|_| None).collect(),
            buckets: (0..BUCKETS as usize)
                .map(|bucket| (bucket..sockets.len()).step_by(BUCKETS as usize).collect())
                .collect(),
            inbox,
            shared,
            course,
            window: None,
            at_begin: None,
            at_end: None,
            departures: Vec::with_capacity(sockets.len()),
            timings: Timings::default(),
            late: Distribution::new(),
            skipped: 0,
            unstamped: 0,
            sent: 0,
            received: 0,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let start = Mono::now() + TICK_NS;
        let mut tick = 0_u64;
        loop {
            let deadline = start + tick * TICK_NS;
            self.ring.wait_until(deadline)?;
            self.clock.refresh();
            self.listen()?;
            let now = Mono::now();
            if now < deadline {
                continue;
            }
            if !self.obey() {
                return Ok(());
            }
            self.watch_window(now);
            let bucket = (tick % BUCKETS) as usize;
            if now - deadline > TOO_FAR_BEHIND_NS {
                self.skip(bucket, now);
            } else {
                self.speak(bucket, deadline)?;
            }
            self.shared.sent.store(self.sent, Ordering::Relaxed);
            self.shared.received.store(self.received, Ordering::Relaxed);
            tick += 1;
        }
    }

    /// Takes the commands; false means finish.
    fn obey(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Start(slot, protection)) => {
                    self.protection[slot] = protection;
                    self.speaking[slot] = true;
                }
                Ok(Command::Stop(slot)) => self.speaking[slot] = false,
                Err(mpsc::TryRecvError::Empty) => return true,
                Ok(Command::Finish) | Err(mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn watch_window(&mut self, now: Mono) {
        if self.window.is_none() {
            self.window = self.shared.window();
        }
        let Some(window) = self.window else { return };
        if self.at_begin.is_none() && now >= window.begin {
            self.at_begin = Some(Clocks::at(now));
        }
        if self.at_end.is_none() && now >= window.end {
            self.at_end = Some(Clocks::at(now));
        }
    }

    fn speak(&mut self, bucket: usize, deadline: Mono) -> io::Result<()> {
        for &slot in &self.buckets[bucket] {
            if self.speaking[slot] {
                let packet = self.ring.send_slot(slot as u32);
                let frame =
                    self.speakers[slot].write_next(signal_of(&self.signals, self.lines[slot].law), packet);
                let len = match &mut self.protection[slot] {
                    Some(protection) => protection.protect(packet, PACKET_OCTETS),
                    None => PACKET_OCTETS,
                };
                self.ring.send(slot as u32, len)?;
                self.departures.push((slot, frame));
            }
        }
        if self.departures.is_empty() {
            return Ok(());
        }
        let before = Mono::now();
        self.ring.submit()?;
        let after = Mono::now();
        // The kernel sends one after the other inside the submit: each packet's own instant lies in between.
        let step = (after - before) / self.departures.len() as u64;
        let inside = self.window.is_some_and(|window| window.contains(after));
        for (n, (slot, frame)) in (1_u64..).zip(self.departures.drain(..)) {
            let left_at = before + n * step;
            self.speakers[slot].sent(frame, left_at);
            if let Some(course) = &self.course
                && Signal::burst_in(frame).is_some()
            {
                course.left(slot, left_at);
            }
            self.sent += 1;
            if inside {
                self.late.record_ns(after - deadline);
            }
        }
        Ok(())
    }

    fn skip(&mut self, bucket: usize, now: Mono) {
        let inside = self.window.is_some_and(|window| window.contains(now));
        for &slot in &self.buckets[bucket] {
            if self.speaking[slot] {
                self.speakers[slot].skip();
                self.skipped += u64::from(inside);
            }
        }
    }

    fn listen(&mut self) -> io::Result<()> {
        let Self {
            ring,
            lines,
            speakers,
            listeners,
            protection,
            signals,
            clock,
            timings,
            window,
            unstamped,
            course,
            ..
        } = self;
        let count = ring.reap(|received, datagram, stamp| {
            let arrival = match stamp {
                Some(stamp) => clock.mono(stamp),
                None => {
                    *unstamped += 1;
                    Mono::now()
                }
            };
            let slot = received.token as usize;
            let Line { law, hears } = lines[slot];
            let signal = signal_of(signals, law);
            let (listener, speaker) = (&mut listeners[slot], &speakers[hears]);
            let mut found = None;
            let mut receive = |packet: &[u8]| {
                found = listener.receive(speaker, signal, packet, arrival, *window, timings);
            };
            match &mut protection[slot] {
                Some(protection) => protection.open(datagram, receive),
                None => receive(datagram),
            }
            if let (Some(course), Some(at)) = (&course, found) {
                course.answered(slot, at);
            }
            AfterReap::Release
        })?;
        self.received += count as u64;
        Ok(())
    }

    fn finish(self) -> Measured {
        let mut timings = self.timings;
        let (window_ns, thread_cpu_ns, thread_waited_ns) = match (self.at_begin, self.at_end) {
            (Some(begin), Some(end)) => {
                (end.at - begin.at, end.cpu_ns - begin.cpu_ns, end.waited_ns - begin.waited_ns)
            }
            _ => (0, 0, 0),
        };
        let streams = self
            .listeners
            .into_iter()
            .zip(&self.speakers)
            .map(|(listener, speaker)| listener.finish(speaker, self.window, &mut timings))
            .collect();
        Measured {
            streams,
            timings,
            late: self.late,
            skipped: self.skipped,
            thread_cpu_ns,
            thread_waited_ns,
            window_ns,
            unstamped: self.unstamped,
            ring: self.ring.counters,
        }
    }
}

/// The signal in a codec.
fn signal_of(signals: &[Signal; 2], law: Law) -> &Signal {
    let [pcmu, pcma] = signals;
    match law {
        Law::Pcmu => pcmu,
        Law::Pcma => pcma,
    }
}

/// Frames of a stream in so many seconds, with room for the edges.
pub fn frames_in(seconds: f64) -> usize {
    (seconds * FRAMES_PER_S as f64) as usize + 2 * FRAMES_PER_S as usize
}
