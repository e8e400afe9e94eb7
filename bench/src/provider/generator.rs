//! All calls of a provider on one pinned thread, as [`crate::generator`] is for RTP, over stream sockets.
//!
//! ```text
//!              ┌── every millisecond, on an absolute schedule ──────────────────────────────┐
//!  Start/Stop ▶│ calls of this millisecond of a message's time ▶ messages ▶ one submit      │▶ target
//!              │ marks that have been played ▶ their echoes                                │
//!              │ whatever has come ◀ provided buffers, each with the kernel's arrival stamp │◀ target
//!              └───────────────────────────────────────────────────────────────────────────┘
//! ```
//! Sound goes by the ring, many calls in one system call. The rare rest (echoes, pongs, the end) is written at once, between
//! two submits, so nothing comes in the middle of a message. A target that does not read for so long that a socket's
//! buffer is full has dropped the call.
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use crate::clock::{Mono, WallToMono};
use crate::distribution::Distribution;
use crate::generator::{Clocks, GeneratorError, Measured, Shared, TICK_NS, TOO_FAR_BEHIND_NS};
use crate::host;
use crate::marker::{FRAME_OCTETS, Law, Signal};
use crate::plan::Cores;
use crate::ring::{AfterReap, Receive, UdpRing};
use crate::stream::{SoundListener, Speaker, Timings, Window};

use super::Transport;
use super::dial::Connected;
use super::wire::{Heard, MESSAGE_MAX, Playout, Scratch, Wire};

/// Turns in 20 ms.
const TURNS_A_FRAME: usize = 20;

/// A call that is ready to speak.
pub struct Ready {
    /// Its connection.
    pub connected: Connected,
    /// Its dialect.
    pub wire: Wire,
    /// When it was announced.
    pub asked_at: Mono,
}

enum Command {
    Start(usize, Box<Ready>),
    Stop(usize),
    Finish,
}

/// Where one call stands.
enum State {
    Idle,
    Talking(Box<Call>),
    /// We have ended it; the target is still to close.
    Ending(Box<Call>),
    /// Closed. The socket stays open as long as the ring lives.
    Over(#[allow(dead_code)] Box<Call>),
}

struct Call {
    stream: TcpStream,
    wire: Wire,
    playout: Playout,
    asked_at: Mono,
}

/// How many calls stand where, kept up to date for whoever started them.
#[derive(Debug, Default)]
pub struct Standing {
    /// Sockets that the target has closed before we ended them.
    pub drops: AtomicU64,
    /// Calls that speak.
    pub talking: AtomicU64,
    /// Calls that we have ended and the target has not closed yet.
    pub ending: AtomicU64,
}

/// A handle to the thread.
pub struct SocketGenerator {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    standing: Arc<Standing>,
    thread: JoinHandle<Result<Outcome, GeneratorError>>,
}

/// What a run came to.
pub struct Outcome {
    /// As of every generator.
    pub measured: Measured,
    /// Sockets that closed before we ended them, by cause.
    pub drops: BTreeMap<String, u64>,
    /// From the announcement to the first sound.
    pub setup: Distribution,
}

impl SocketGenerator {
    /// Starts the thread on the generator's core, for so many calls.
    ///
    /// # Errors
    /// When ring or core are not to be had.
    pub fn start(
        transport: Transport,
        calls: usize,
        cores: Cores,
        window_frames: usize,
    ) -> Result<Self, GeneratorError> {
        let shared = Arc::new(Shared::default());
        let standing = Arc::new(Standing::default());
        let (commands, inbox) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = {
            let (shared, standing) = (shared.clone(), standing.clone());
            std::thread::Builder::new()
                .name("generator".into())
                .spawn(move || {
                    let core = cores.generator;
                    host::pin_thread(core).map_err(|source| GeneratorError::Pin { core, source })?;
                    host::sharpen_timers();
                    // Its schedule is the measure of all else: what shares its core gives way. Not where that is the
                    // target's too, nor without the right to.
                    if core != cores.target {
                        let _ = host::set_realtime();
                    }
                    let mut turns = Turns::new(transport, calls, window_frames, shared, standing, inbox)
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
        Ok(Self { commands, shared, standing, thread })
    }

    /// Figures for the progress bar.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// How many calls stand where.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// A slot's call is connected: from now on it speaks.
    pub fn speak(&self, slot: usize, ready: Ready) {
        // Counted here, so that whoever asks next sees it. A closed inbox means that the thread has failed, which
        // `finish` reports.
        self.standing.talking.fetch_add(1, Ordering::Relaxed);
        let _ = self.commands.send(Command::Start(slot, Box::new(ready)));
    }

    /// A slot's call is ended.
    pub fn hang_up(&self, slot: usize) {
        let _ = self.commands.send(Command::Stop(slot));
    }

    /// True while the thread runs.
    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends the thread and gives what it measured.
    ///
    /// # Errors
    /// When the loop had failed.
    pub fn finish(self) -> Result<Outcome, GeneratorError> {
        let _ = self.commands.send(Command::Finish);
        self.thread.join().map_err(|_| GeneratorError::Panicked)?
    }
}

/// The thread's own state.
struct Turns {
    ring: UdpRing,
    signal: Signal,
    clock: WallToMono,
    states: Vec<State>,
    speakers: Vec<Speaker>,
    listeners: Vec<SoundListener>,
    frames_a_message: usize,
    inbox: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    standing: Arc<Standing>,
    window: Option<Window>,
    at_begin: Option<Clocks>,
    at_end: Option<Clocks>,
    /// Slot and first frame of what the next submit carries.
    departures: Vec<(usize, u64)>,
    /// Slots that have ended, with the cause, found while the ring was read.
    ended: Vec<(usize, String)>,
    scratch: Scratch,
    words: Vec<u8>,
    timings: Timings,
    late: Distribution,
    skipped: u64,
    unstamped: u64,
    sent: u64,
    received: u64,
    drops: BTreeMap<String, u64>,
    setup: Distribution,
}

impl Turns {
    fn new(
        transport: Transport,
        calls: usize,
        window_frames: usize,
        shared: Arc<Shared>,
        standing: Arc<Standing>,
        inbox: mpsc::Receiver<Command>,
    ) -> io::Result<Self> {
        Ok(Self {
            ring: UdpRing::new(Receive::Stream, calls, MESSAGE_MAX)?,
            signal: Signal::new(Law::Pcmu),
            clock: WallToMono::new(),
            states: (0..calls).map(|_| State::Idle).collect(),
            speakers: (0..calls).map(|_| Speaker::new(rand::random())).collect(),
            listeners: (0..calls).map(|_| SoundListener::new(window_frames)).collect(),
            frames_a_message: transport.frames_a_message(),
            inbox,
            shared,
            standing,
            window: None,
            at_begin: None,
            at_end: None,
            departures: Vec::with_capacity(calls),
            ended: Vec::new(),
            scratch: Scratch::default(),
            words: Vec::new(),
            timings: Timings::default(),
            late: Distribution::new(),
            skipped: 0,
            unstamped: 0,
            sent: 0,
            received: 0,
            drops: BTreeMap::new(),
            setup: Distribution::new(),
        })
    }

    /// Turns in a message's time: the calls are dealt over so many.
    fn turns_a_message(&self) -> usize {
        self.frames_a_message * TURNS_A_FRAME
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
            if !self.obey()? {
                return Ok(());
            }
            self.watch_window(now);
            let turn = (tick % self.turns_a_message() as u64) as usize;
            if now - deadline > TOO_FAR_BEHIND_NS {
                self.skip(turn, now);
            } else {
                self.speak(turn, deadline)?;
            }
            // Each call once in 20 ms: an echo of a mark is as exact as the frames are.
            self.echo_marks((tick as usize) % TURNS_A_FRAME, now);
            self.shared.sent.store(self.sent, Ordering::Relaxed);
            self.shared.received.store(self.received, Ordering::Relaxed);
            tick += 1;
        }
    }

    /// Takes the commands; false means finish.
    fn obey(&mut self) -> io::Result<bool> {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Start(slot, ready)) => self.begin(slot, *ready)?,
                Ok(Command::Stop(slot)) => self.hang_up(slot),
                Err(mpsc::TryRecvError::Empty) => return Ok(true),
                Ok(Command::Finish) | Err(mpsc::TryRecvError::Disconnected) => return Ok(false),
            }
        }
    }

    fn begin(&mut self, slot: usize, ready: Ready) -> io::Result<()> {
        let Ready { connected, mut wire, asked_at } = ready;
        let fd = connected.stream.as_raw_fd();
        self.words.clear();
        wire.open(&mut self.words);
        let call = Call { stream: connected.stream, wire, playout: Playout::default(), asked_at };
        let is_open = write(&call.stream, &self.words);
        self.states[slot] = State::Talking(Box::new(call));
        if !is_open {
            self.drop_call(slot, "closed by the target at once".into());
            return Ok(());
        }
        // Until stamps are on, arrivals are timed by the read; nothing comes before the start.
        host::stamp_arrivals(fd)?;
        if !connected.rest.is_empty() {
            self.hear_rest(slot, &connected.rest);
        }
        self.ring.arm(slot as u32, fd)
    }

    fn hear_rest(&mut self, slot: usize, rest: &[u8]) {
        let now = Mono::now();
        let mut ears = Ears {
            signal: &self.signal,
            scratch: &mut self.scratch,
            words: &mut self.words,
            timings: &mut self.timings,
            window: self.window,
        };
        let State::Talking(call) = &mut self.states[slot] else { return };
        if let Err(cause) = ears.hear(call, &self.speakers[slot], &mut self.listeners[slot], rest, now) {
            self.drop_call(slot, cause);
        }
    }

    fn hang_up(&mut self, slot: usize) {
        match std::mem::replace(&mut self.states[slot], State::Idle) {
            State::Talking(mut call) => {
                self.words.clear();
                call.wire.close(&mut self.words);
                write(&call.stream, &self.words);
                // Asterisk just closes; of a WebSocket the target closes, after it has answered.
                if self.words.is_empty() {
                    let _ = call.stream.shutdown(Shutdown::Write);
                }
                self.standing.talking.fetch_sub(1, Ordering::Relaxed);
                self.standing.ending.fetch_add(1, Ordering::Relaxed);
                self.states[slot] = State::Ending(call);
            }
            other => self.states[slot] = other,
        }
    }

    /// The target has ended the call, or has broken it.
    fn drop_call(&mut self, slot: usize, cause: String) {
        match std::mem::replace(&mut self.states[slot], State::Idle) {
            State::Talking(call) => {
                *self.drops.entry(cause).or_insert(0) += 1;
                self.standing.drops.fetch_add(1, Ordering::Relaxed);
                self.standing.talking.fetch_sub(1, Ordering::Relaxed);
                let _ = call.stream.shutdown(Shutdown::Both);
                self.states[slot] = State::Over(call);
            }
            State::Ending(call) => {
                self.standing.ending.fetch_sub(1, Ordering::Relaxed);
                let _ = call.stream.shutdown(Shutdown::Both);
                self.states[slot] = State::Over(call);
            }
            other => self.states[slot] = other,
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

    fn slots(&self, first: usize, step: usize) -> impl Iterator<Item = usize> + use<> {
        (first..self.states.len()).step_by(step)
    }

    fn speak(&mut self, turn: usize, deadline: Mono) -> io::Result<()> {
        let mut sound = [0; 5 * FRAME_OCTETS];
        let sound = &mut sound[..self.frames_a_message * FRAME_OCTETS];
        for slot in self.slots(turn, self.turns_a_message()) {
            let State::Talking(call) = &mut self.states[slot] else { continue };
            let mut first = None;
            let (frames, _) = sound.as_chunks_mut::<FRAME_OCTETS>();
            for frame in frames {
                first.get_or_insert(self.speakers[slot].write_sound(&self.signal, frame));
            }
            let Some(first) = first else { continue };
            let message = self.ring.send_slot(slot as u32);
            let len = call.wire.write_media(sound, &self.signal, &mut self.scratch, message);
            self.ring.send(slot as u32, len)?;
            self.departures.push((slot, first));
        }
        if self.departures.is_empty() {
            return Ok(());
        }
        let before = Mono::now();
        self.ring.submit()?;
        let after = Mono::now();
        // The kernel sends one after the other inside the submit: each message's own instant lies in between.
        let step = (after - before) / self.departures.len() as u64;
        let inside = self.window.is_some_and(|window| window.contains(after));
        let frames = self.frames_a_message as u64;
        for (n, (slot, first)) in (1_u64..).zip(self.departures.drain(..)) {
            for frame in first..first + frames {
                self.speakers[slot].sent(frame, before + n * step);
            }
            self.sent += frames;
            if inside {
                self.late.record_ns(after - deadline);
            }
        }
        Ok(())
    }

    fn skip(&mut self, turn: usize, now: Mono) {
        let inside = self.window.is_some_and(|window| window.contains(now));
        for slot in self.slots(turn, self.turns_a_message()) {
            if matches!(self.states[slot], State::Talking(_)) {
                for _ in 0..self.frames_a_message {
                    self.speakers[slot].skip();
                }
                self.skipped += if inside { self.frames_a_message as u64 } else { 0 };
            }
        }
    }

    fn echo_marks(&mut self, turn: usize, now: Mono) {
        for slot in self.slots(turn, TURNS_A_FRAME) {
            let State::Talking(call) = &mut self.states[slot] else { continue };
            self.words.clear();
            while let Some(name) = call.playout.poll_due(now) {
                call.wire.echo(&name, &mut self.words);
            }
            if !self.words.is_empty() && !write(&call.stream, &self.words) {
                self.ended.push((slot, "closed by the target".into()));
            }
        }
        self.end_calls();
    }

    fn end_calls(&mut self) {
        while let Some((slot, cause)) = self.ended.pop() {
            self.drop_call(slot, cause);
        }
    }

    fn listen(&mut self) -> io::Result<()> {
        let Self { ring, states, speakers, listeners, signal, clock, timings, window, unstamped, .. } = self;
        let (scratch, words, ended) = (&mut self.scratch, &mut self.words, &mut self.ended);
        let mut ears = Ears { signal, scratch, words, timings, window: *window };
        let count = ring.reap(|received, piece, stamp| {
            let arrival = stamp.map_or_else(
                || {
                    *unstamped += 1;
                    Mono::now()
                },
                |stamp| clock.mono(stamp),
            );
            let slot = received.token as usize;
            let call = match &mut states[slot] {
                State::Talking(call) | State::Ending(call) => call,
                State::Idle | State::Over(_) => return AfterReap::Release,
            };
            if let Err(cause) = ears.hear(call, &speakers[slot], &mut listeners[slot], piece, arrival) {
                ended.push((slot, cause));
            }
            AfterReap::Release
        })?;
        self.received += count as u64;
        while let Some(token) = self.ring.poll_closed() {
            self.ended.push((token as usize, "closed by the target".into()));
        }
        self.end_calls();
        Ok(())
    }

    fn finish(self) -> Outcome {
        let mut timings = self.timings;
        let mut setup = self.setup;
        let (window_ns, thread_cpu_ns, thread_waited_ns) = match (self.at_begin, self.at_end) {
            (Some(begin), Some(end)) => {
                (end.at - begin.at, end.cpu_ns - begin.cpu_ns, end.waited_ns - begin.waited_ns)
            }
            _ => (0, 0, 0),
        };
        let mut streams = Vec::with_capacity(self.listeners.len());
        for ((listener, speaker), state) in self.listeners.into_iter().zip(&self.speakers).zip(&self.states) {
            if let State::Talking(call) | State::Ending(call) | State::Over(call) = state
                && let Some(at) = listener.first_at()
            {
                setup.record_ns(at - call.asked_at);
            }
            streams.push(listener.finish(speaker, self.window, &mut timings));
        }
        let measured = Measured {
            streams,
            timings,
            late: self.late,
            skipped: self.skipped,
            thread_cpu_ns,
            thread_waited_ns,
            window_ns,
            unstamped: self.unstamped,
            ring: self.ring.counters,
        };
        Outcome { measured, drops: self.drops, setup }
    }
}

/// What reading needs besides the call itself.
struct Ears<'a> {
    signal: &'a Signal,
    scratch: &'a mut Scratch,
    words: &'a mut Vec<u8>,
    timings: &'a mut Timings,
    window: Option<Window>,
}

impl Ears<'_> {
    /// Reads a piece of what a call hears; `Err` says why the call is over.
    fn hear(
        &mut self,
        call: &mut Call,
        speaker: &Speaker,
        listener: &mut SoundListener,
        piece: &[u8],
        arrival: Mono,
    ) -> Result<(), String> {
        self.words.clear();
        let mut closed = None;
        let (mut pings, mut clears) = (Vec::new(), 0);
        let Call { wire, playout, stream, .. } = call;
        wire.handle_bytes(piece, self.signal, self.scratch, |heard| match heard {
            Heard::Sound(codes) => {
                playout.sound(codes.len(), arrival);
                listener.hear(speaker, self.signal, codes, arrival, self.window, self.timings);
            }
            Heard::Mark(name) => playout.mark(name, arrival),
            Heard::Clear => {
                playout.clear(arrival);
                clears += 1;
            }
            Heard::Ping(payload) => pings.push(payload.to_vec()),
            Heard::Close(code) => closed = Some(code),
            Heard::Ignored => {}
        })
        .map_err(|broken| format!("target broke the protocol: {broken}"))?;
        for payload in pings {
            wire.pong(&payload, self.words);
        }
        for _ in 0..clears {
            wire.cleared(self.words);
        }
        if !self.words.is_empty() && !write(stream, self.words) {
            return Err("closed by the target".into());
        }
        match closed {
            None => Ok(()),
            Some(Some(code)) => Err(format!("closed by the target with {code}")),
            Some(None) => Err("ended by the target".into()),
        }
    }
}

/// Writes a few octets at once; false when the socket does not take all of them.
fn write(mut stream: &TcpStream, octets: &[u8]) -> bool {
    matches!(stream.write(octets), Ok(len) if len == octets.len())
}
