//! The loop of one core. It owns its sessions from first packet to last.
//!
//! ```text
//!   ┌─▶ 1 turn      submit what the last turn left, wait for packets or the next due millisecond; read `now`
//!   │   2 handle    completions in order: datagrams and stream octets go to their session, buffers back to the ring
//!   │   3 commands  open, start, update, close: from the control thread's queue
//!   │   4 due       sessions whose millisecond has come: their packet, their deadlines
//!   │   5 drain     every session touched: stream octets, events, its next deadline
//!   └── 6 publish   counters, ten times a second
//! ```
//!
//! What is due is sent in the same turn as what came is handled, with one submit for both, at the end. So that sound never
//! waits behind a burst, steps 2 and 3 are bounded ([`COMPLETIONS_MAX`], [`COMMANDS_A_TURN`]); if more is there, the next
//! turn does not wait. Commands come after completions: a wake is taken down before the queue is looked at, never after,
//! or a command put in between would sleep with the core.
//!
//! Steps 2, 4 and 5 allocate nothing in steady state (tests/alloc.rs) and take no lock: there is none in this module, nor in
//! `session`, `leg`, `ring` and `wheel` (a test in tests/alloc.rs reads their text for one); what is shared with other
//! threads is two rtrb queues and relaxed counters. A oneshot answer may wake the control thread's runtime, which takes
//! a lock of its own: only commands cause that, never packets.
//!
//! Nothing spins: without sessions the wait has no deadline. With few, it ends at the next due millisecond or when
//! something came, and packets of one millisecond are handled together. With many, every millisecond has somebody due.

mod joins;
mod links;
mod providers;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rtrb::Consumer;
use slab::Slab;

use crate::leg::agent::AgentParameters;
use crate::leg::event::{EndReason, Event, Stats};
use crate::leg::rtp::{Rtcp, RtpParameters};
use crate::mailbox::{
    Command, LegError, Open, OpenError, Opened, Outbox, SAMPLES_MAX, Samples, SessionKey, Summary,
};
use crate::metrics::{BATCH_BOUNDS, CoreMetrics, PUBLISH_EVERY, TURN_BOUNDS, Tally};
use crate::ports::{BUSY_PORTS_MAX, Ports};
use crate::ring::{Completion, Owner, Ring, RingError, SocketId, Wait, bind_udp, prefetch};
use crate::session::second::Role;
use crate::session::{Port, Session};
use crate::wheel::{Phase, Phases, Wheel};
pub use joins::EXPECTED_MAX;
use joins::Joining;
use links::Link;

/// Packets of so long are handled together while the core is quiet: a turn costs more than a packet. Half of 1 ms costs no
/// more that could be measured, and the agent hears a quarter of a millisecond sooner (bench/RESULTS.md, "The ring").
pub const COALESCE: Duration = Duration::from_micros(500);

/// Completions handled before what is due is looked at, in whole batches: about a millisecond of work, and as many
/// receive buffers as [`crate::ring::Limits`] counts in hand.
const COMPLETIONS_MAX: u64 = 4 * BATCH_MAX as u64;

/// Commands carried out in one turn: opening a session binds a port and allocates, tens of microseconds each.
const COMMANDS_A_TURN: usize = 16;

/// Steps of TLS and DTLS handshakes that are done in one turn: at most some 0.5 ms each, and packets wait for them.
const HANDSHAKES_A_TURN: usize = 2;

/// A closed agent stream is given so long to read its good-bye and close its side.
pub const LINGER: Duration = Duration::from_secs(1);

/// A turn whose playout leaves later than this after its millisecond is counted as late.
const LATE: Duration = Duration::from_millis(1);

/// Completions gathered before they are handled.
const BATCH_MAX: usize = 64;

/// The memory of so many sessions ahead is on its way while one is handled: enough to hide the way from the far cache, few
/// enough that the near one holds them.
const AHEAD: usize = 4;

/// Samples of a frame that are fetched ahead: 20 ms at 8 kHz; the rest of a longer one follows by itself.
const FRAME_AHEAD: usize = 160;

/// One session and what the core holds for it.
#[derive(Debug)]
struct Slot {
    id: Arc<str>,
    call_id: Arc<str>,
    generation: u32,
    session: Session,
    udp: Option<SocketId>,
    /// The odd port's, while reports travel there.
    rtcp: Option<SocketId>,
    /// What the RTP socket is connected to.
    peer: Option<SocketAddr>,
    stream: Option<SocketId>,
    /// The provider's connection.
    provider: Option<SocketId>,
    local_address: IpAddr,
    /// The link that carries the agent's side.
    link: Option<usize>,
    /// It waits in the link's list.
    is_ready: bool,
    /// It waits in `handshakes`.
    is_shaking: bool,
    port: u16,
    phase: Option<Phase>,
    /// The second leg's.
    second: Option<SecondSocket>,
    /// It is one half of a join with a session of another core.
    joining: Option<Box<Joining>>,
    /// Its place in the wheel.
    deadline: Option<Instant>,
    /// It is in `touched`.
    is_touched: bool,
    /// Closed, but its stream still has something to write: until then.
    leaving: Option<Instant>,
}

/// What the core holds for a second leg.
#[derive(Debug)]
struct SecondSocket {
    udp: SocketId,
    /// The odd port beside it, once reports travel there.
    rtcp: Option<SocketId>,
    port: u16,
    /// The port is another core's.
    is_foreign: bool,
    phase: Phase,
}

/// See the module.
#[derive(Debug)]
pub struct Worker {
    ring: Ring,
    /// Boxed: a session's place is looked up, and its memory sent for, without touching it.
    sessions: Slab<Box<Slot>>,
    sessions_max: usize,
    links: Slab<Link>,
    /// Ports of other cores that were closed here, and that the control thread does not know of yet. As many at most as second
    /// legs have come from there.
    homeless: Vec<u16>,
    /// Sessions of which a step of a handshake waits for its turn, each once: one that has more goes to the end.
    handshakes: VecDeque<u32>,
    generation: u32,
    wheel: Wheel,
    phases: Phases,
    ports: Ports,
    commands: Consumer<Command>,
    outbox: Outbox,
    /// Finished streams that wait for their peer to close, oldest first.
    lingering: VecDeque<(Instant, SocketId)>,
    touched: Vec<u32>,
    due: Vec<u32>,
    batch: VecDeque<Completion>,
    metrics: Arc<CoreMetrics>,
    tally: Tally,
    published: Instant,
    /// A bound of this turn was reached: the next one does not wait.
    is_behind: bool,
    /// The fault of the ring was logged.
    is_faulty: bool,
    stopping: bool,
}

/// Whose socket: one of a session's, or a link, whose key then is its own place and connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leg {
    Rtp = 0,
    Rtcp = 1,
    Agent = 2,
    Second = 3,
    Link = 4,
    SecondRtcp = 5,
    Provider = 6,
}

const GENERATION_MASK: u32 = 0x1FFF_FFFF;
const LEG_SHIFT: u32 = 61;

fn owner(key: SessionKey, leg: Leg) -> Owner {
    Owner((leg as u64) << LEG_SHIFT | u64::from(key.generation) << 32 | u64::from(key.index))
}

fn owned(owner: Owner) -> (SessionKey, Leg) {
    let leg = match owner.0 >> LEG_SHIFT {
        0 => Leg::Rtp,
        1 => Leg::Rtcp,
        2 => Leg::Agent,
        3 => Leg::Second,
        5 => Leg::SecondRtcp,
        6 => Leg::Provider,
        _ => Leg::Link,
    };
    let generation = (owner.0 >> 32) as u32 & GENERATION_MASK;
    (SessionKey { index: owner.0 as u32, generation }, leg)
}

impl Worker {
    /// A worker without sessions. Call it on the thread that will run it: the ring belongs to that thread.
    pub fn new(
        ring: Ring,
        sessions_max: usize,
        ports: Ports,
        commands: Consumer<Command>,
        outbox: Outbox,
        metrics: Arc<CoreMetrics>,
    ) -> Self {
        let now = Instant::now();
        Self {
            ring,
            sessions: Slab::with_capacity(sessions_max),
            sessions_max: sessions_max.min(links::SESSIONS_MAX),
            links: Slab::new(),
            homeless: Vec::new(),
            handshakes: VecDeque::new(),
            generation: 0,
            wheel: Wheel::new(now, sessions_max),
            phases: Phases::default(),
            ports,
            commands,
            outbox,
            lingering: VecDeque::with_capacity(sessions_max),
            touched: Vec::with_capacity(sessions_max),
            due: Vec::with_capacity(sessions_max),
            batch: VecDeque::with_capacity(BATCH_MAX),
            metrics,
            tally: Tally::default(),
            published: now,
            is_behind: false,
            is_faulty: false,
            stopping: false,
        }
    }

    /// Runs until it is told to stop, or the ring fails.
    pub fn run(mut self) -> std::io::Result<()> {
        loop {
            let wait = self.wait();
            if let Err(error) = self.ring.turn(wait) {
                self.end_all(EndReason::EngineFault, Instant::now());
                return Err(error);
            }
            let now = Instant::now();
            self.turn(now);
            if self.stopping && self.sessions.is_empty() && self.lingering.is_empty() {
                self.publish(now);
                return Ok(());
            }
        }
    }

    fn wait(&self) -> Wait {
        if self.is_behind || !self.handshakes.is_empty() {
            return Wait::none(self.published);
        }
        let linger = self.lingering.front().map(|(until, _)| *until);
        let deadline = [self.wheel.next_due(), linger, self.links_deadline()].into_iter().flatten().min();
        // A last look at the counters before a long sleep.
        let publish = (self.tally.turns_total != self.metrics.turns_total.get())
            .then_some(self.published + PUBLISH_EVERY);
        let deadline = match (deadline, publish) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Wait { deadline, coalesce: if self.sessions.is_empty() { Duration::ZERO } else { COALESCE } }
    }

    fn turn(&mut self, now: Instant) {
        let batch = self.handle_completions(now);
        let more_commands = self.take_commands(now);
        let more_handshakes = self.shake_hands(now);
        self.is_behind = batch >= COMPLETIONS_MAX || more_commands || more_handshakes;
        // A long batch takes long enough for others to be due.
        let oldest = self.run_due(if batch > 0 { Instant::now() } else { now });
        self.turn_links(now);
        self.drain_touched(now);
        self.pump_links();
        self.send_ports_home();
        // Sessions whose last words have just been written.
        self.drain_touched(now);
        self.outbox.ring();
        while let Some((_, socket)) = self.lingering.pop_front_if(|(until, _)| *until <= now) {
            self.ring.close(socket);
        }
        self.tally.turns_total += 1;
        self.tally.completions_total += batch;
        self.tally.batch_max = self.tally.batch_max.max(batch);
        self.tally.batch.observe(batch, &BATCH_BOUNDS);
        // All there is between here and the kernel is the submit that the next turn begins with.
        let handed_over = Instant::now();
        if let Some(oldest) = oldest {
            let late = handed_over.saturating_duration_since(oldest);
            self.tally.late_nanoseconds_max = self.tally.late_nanoseconds_max.max(late.as_nanos() as u64);
            self.tally.late_ticks_total += u64::from(late > LATE);
        }
        let took = handed_over.saturating_duration_since(now).as_nanos() as u64;
        self.tally.busy_nanoseconds_total += took;
        self.tally.turn_nanoseconds_max = self.tally.turn_nanoseconds_max.max(took);
        self.tally.turn_time.observe(took, &TURN_BOUNDS);
        if now.saturating_duration_since(self.published) >= PUBLISH_EVERY {
            self.publish(now);
        }
    }

    /// Does up to [`HANDSHAKES_A_TURN`] steps of handshakes; true when more wait.
    fn shake_hands(&mut self, now: Instant) -> bool {
        for _ in 0..HANDSHAKES_A_TURN {
            let Some(index) = self.handshakes.pop_front() else { return false };
            if let Some(slot) = self.sessions.get_mut(index as usize) {
                slot.is_shaking = false;
                slot.session.handle_handshake(now);
                self.tally.handshake_steps_total += 1;
                self.touch(index);
            }
        }
        !self.handshakes.is_empty()
    }

    // --- commands ---

    /// Carries up to [`COMMANDS_A_TURN`] commands out; true when more wait.
    fn take_commands(&mut self, now: Instant) -> bool {
        for _ in 0..COMMANDS_A_TURN {
            let Ok(command) = self.commands.pop() else { return false };
            self.command(command, now);
        }
        !self.commands.is_empty()
    }

    fn command(&mut self, command: Command, now: Instant) {
        // An answer that nobody waits for any more is no error.
        match command {
            Command::Open { open, reply } => {
                let outcome = self.open(*open, now);
                if outcome.is_err() {
                    self.tally.sessions_refused_total += 1;
                }
                // Nobody waits for it any more: nobody will ever start or close it.
                if let Err(Ok(opened)) = reply.send(outcome) {
                    self.close(opened.key.index, "error", now);
                }
            }
            Command::Start { key, is_early, reply } => {
                let _ = reply.send(self.start(key, is_early, now));
            }
            Command::Tell { key, notice, reply } => {
                let is_live = match self.live(key) {
                    Some(slot) => {
                        slot.session.tell(&notice, now);
                        self.touch(key.index);
                        true
                    }
                    None => false,
                };
                let _ = reply.send(is_live);
            }
            Command::Update { key, rtp, reply } => {
                let _ = reply.send(self.update(key, rtp, now));
            }
            Command::AddLeg { key, rtp, role, local_address, local_port, seed, reply } => {
                // Nobody waits for it any more: nobody will ever remove it.
                let added = self.add_leg(key, rtp, role, (local_address, local_port), seed, now);
                if let Err(Ok(_)) = reply.send(added) {
                    self.remove_leg(key, now);
                }
            }
            Command::UpdateLeg { key, rtp, role, reply } => {
                let _ = reply.send(self.update_leg(key, rtp, role, now));
            }
            Command::RemoveLeg { key, reply } => {
                let _ = reply.send(self.remove_leg(key, now));
            }
            Command::Join { key, other, role, reply } => {
                let _ = reply.send(self.join(key, other, role, now));
            }
            Command::Expect { key, reply } => {
                let _ = reply.send(self.expect_leg(key, now));
            }
            Command::Unexpect { key } => self.unexpect_leg(key),
            Command::Lift { key, reply } => self.lift(key, reply, now),
            Command::Land { key, moving, role, reply } => self.land(key, *moving, role, reply, now),
            Command::Restore { key, moving } => self.restore(key, moving.map(|moving| *moving), now),
            Command::Leave { key, into, reply } => {
                let _ = reply.send(self.leave_joined(key, into, now));
            }
            Command::Retake { key, incoming, reply } => {
                let _ = reply.send(self.retake(key, incoming, now));
            }
            Command::PortHome { port } => self.ports.give_back(port, now),
            Command::Close { key, reason, reply } => {
                let stats = self.live(key).map(|slot| slot.session.stats(now));
                if stats.is_some() {
                    self.close(key.index, &reason, now);
                    // Whoever hears that it is closed may use its place at once.
                    self.drain_touched(now);
                }
                let _ = reply.send(stats);
            }
            Command::List { reply } => {
                let live = self.sessions.iter().filter(|(_, slot)| !slot.session.is_ended());
                let summaries = live.map(|(_, slot)| Summary {
                    id: Arc::clone(&slot.id),
                    call_id: Arc::clone(&slot.call_id),
                    port: slot.port,
                    started: slot.session.is_started(),
                    age_ms: slot.session.age(now).as_millis() as u64,
                    agent_ready: slot.session.is_agent_ready(),
                    agent_gone: slot.session.agent_gone().map(str::to_owned),
                    agent_hangup: slot.session.has_agent_hung_up(),
                    stream: slot.session.stream_summary(),
                });
                let _ = reply.send(summaries.collect());
            }
            Command::Sample { key, from, reply } => {
                let _ = reply.send(self.sample(key, from, now));
            }
            Command::EndAll { reason } => self.end_all(reason, now),
            Command::Stop => {
                self.end_all(EndReason::Shutdown, now);
                self.stopping = true;
            }
        }
    }

    /// Counters of one session, or of the next [`SAMPLES_MAX`] at or after a place.
    fn sample(&self, key: Option<SessionKey>, from: usize, now: Instant) -> Samples {
        let is_meant = |index: usize, slot: &Slot| match key {
            Some(key) => index == key.index as usize && slot.generation == key.generation,
            None => index >= from,
        };
        let live =
            self.sessions.iter().filter(|(index, slot)| is_meant(*index, slot) && !slot.session.is_ended());
        let mut samples = Samples::default();
        for (index, slot) in live {
            if samples.sessions.len() == SAMPLES_MAX {
                samples.next = Some(index);
                break;
            }
            samples.sessions.push((Arc::clone(&slot.id), slot.session.stats(now)));
        }
        samples
    }

    fn live(&mut self, key: SessionKey) -> Option<&mut Slot> {
        let slot = self.sessions.get_mut(key.index as usize)?;
        (slot.generation == key.generation && !slot.session.is_ended()).then_some(slot)
    }

    fn open(&mut self, open: Open, now: Instant) -> Result<Opened, OpenError> {
        if self.sessions.len() >= self.sessions_max || self.stopping {
            return Err(OpenError::SessionsFull(self.sessions_max));
        }
        let call_id: Arc<str> = open.parameters.call.call_id.as_str().into();
        let separate = matches!(open.parameters.rtp.rtcp, Rtcp::Separate { .. });
        let token = match &open.parameters.agent {
            AgentParameters::Link(link) => Some(link.token.clone()),
            _ => None,
        };
        let session = Session::new(open.parameters, now)
            .map_err(|error| OpenError::Agent(format!("agent: {error}")))?;
        if let Some(incoming) = open.incoming {
            let opened =
                self.insert_streamed(open.id, call_id, open.local_address, session, incoming, now)?;
            self.dial(opened.key, open.agent_address, token.as_deref(), now);
            return Ok(opened);
        }
        let (port, socket, rtcp) = self.bind(&open.local_address, open.local_port, separate, now)?;
        self.generation = (self.generation + 1) & GENERATION_MASK;
        let key = SessionKey { index: self.sessions.vacant_key() as u32, generation: self.generation };
        let refused = |error: RingError| OpenError::Socket(error.to_string());
        let udp = match self.ring.add_udp(socket, owner(key, Leg::Rtp)) {
            Ok(udp) => udp,
            Err(error) => {
                self.ports.give_back(port, now);
                return Err(refused(error));
            }
        };
        let rtcp = match rtcp.map(|socket| self.ring.add_udp(socket, owner(key, Leg::Rtcp))).transpose() {
            Ok(rtcp) => rtcp,
            Err(error) => {
                self.ring.close(udp);
                self.ports.give_back(port, now);
                return Err(refused(error));
            }
        };
        let index = self.sessions.insert(Box::new(Slot {
            id: open.id,
            call_id,
            generation: key.generation,
            session,
            udp: Some(udp),
            rtcp,
            local_address: open.local_address,
            peer: None,
            stream: None,
            provider: None,
            link: None,
            is_ready: false,
            is_shaking: false,
            port,
            phase: None,
            second: None,
            joining: None,
            deadline: None,
            is_touched: false,
            leaving: None,
        }));
        debug_assert_eq!(index, key.index as usize);
        let agent_ready = self.sessions[index].session.is_agent_ready();
        self.dial(key, open.agent_address, token.as_deref(), now);
        Ok(Opened { key, port, agent_ready })
    }

    /// Begins to reach the agent of a session that was just opened, if it is dialled.
    fn dial(
        &mut self,
        key: SessionKey,
        address: Option<Result<SocketAddr, String>>,
        token: Option<&[u8]>,
        now: Instant,
    ) {
        self.tally.sessions_opened_total += 1;
        self.touch(key.index);
        let Some(address) = address else { return };
        let dialled = match (address, token) {
            (Ok(address), Some(token)) => self.join_link(key, address, token, now),
            (Ok(address), None) => {
                let connecting = self.ring.connect(address, owner(key, Leg::Agent));
                let slot = &mut self.sessions[key.index as usize];
                connecting.map(|socket| slot.stream = Some(socket)).map_err(|error| error.to_string())
            }
            (Err(reason), _) => Err(reason),
        };
        if let Err(reason) = dialled {
            self.sessions[key.index as usize].session.handle_undiallable(&reason);
        }
    }

    /// Binds the leased port, or the next free one that nobody else has; with the odd one beside it if `pair` says so.
    fn bind(
        &mut self,
        address: &IpAddr,
        leased: Option<u16>,
        pair: bool,
        now: Instant,
    ) -> Result<(u16, OwnedFd, Option<OwnedFd>), OpenError> {
        let bind = |port: u16| {
            let rtp = bind_udp((*address, port).into())?;
            let rtcp = pair.then(|| bind_udp((*address, port + 1).into())).transpose()?;
            Ok((port, rtp, rtcp))
        };
        if let Some(port) = leased {
            if !self.ports.take_this(port, now) {
                return Err(OpenError::PortBusy(port));
            }
            return bind(port).map_err(|error: std::io::Error| {
                self.ports.quarantine(port, now);
                match error.kind() {
                    std::io::ErrorKind::AddrInUse => OpenError::PortBusy(port),
                    _ => OpenError::Socket(error.to_string()),
                }
            });
        }
        for _ in 0..BUSY_PORTS_MAX {
            let Some(port) = self.ports.take(now) else { break };
            match bind(port) {
                Ok(bound) => return Ok(bound),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                    self.ports.quarantine(port, now);
                }
                Err(error) => {
                    self.ports.give_back(port, now);
                    return Err(OpenError::Socket(error.to_string()));
                }
            }
        }
        Err(OpenError::PortsFull { resting: self.ports.resting(), quarantined: self.ports.quarantined() })
    }

    /// Reports travel on the odd port from now on: opens it, unless it is open. Without it the call goes on, unreported.
    fn open_rtcp(&mut self, key: SessionKey) {
        let Some(slot) = self.sessions.get(key.index as usize) else { return };
        if slot.rtcp.is_some() || slot.udp.is_none() {
            return;
        }
        let bound = bind_udp((slot.local_address, slot.port + 1).into()).map_err(RingError::Socket);
        match bound.and_then(|socket| self.ring.add_udp(socket, owner(key, Leg::Rtcp))) {
            Ok(socket) => self.sessions[key.index as usize].rtcp = Some(socket),
            Err(error) => {
                tracing::warn!(session_id = &*slot.id, port = slot.port + 1, %error, "no port for RTCP");
            }
        }
    }

    /// The same for the second leg.
    fn open_second_rtcp(&mut self, key: SessionKey) {
        let Some(slot) = self.sessions.get(key.index as usize) else { return };
        let Some(second) = slot.second.as_ref().filter(|second| second.rtcp.is_none()) else { return };
        let port = second.port + 1;
        let bound = bind_udp((slot.local_address, port).into()).map_err(RingError::Socket);
        match bound.and_then(|socket| self.ring.add_udp(socket, owner(key, Leg::SecondRtcp))) {
            Ok(socket) => {
                if let Some(second) = &mut self.sessions[key.index as usize].second {
                    second.rtcp = Some(socket);
                }
            }
            Err(error) => tracing::warn!(session_id = &*slot.id, port, %error, "no port for RTCP"),
        }
    }

    fn start(&mut self, key: SessionKey, is_early: bool, now: Instant) -> bool {
        let Some(slot) = self.live(key) else { return false };
        if slot.session.is_started() {
            if !is_early {
                slot.session.start(now, now);
            }
        } else {
            let ptime = slot.session.rtp().ptime;
            let phase = self.phases.assign(self.wheel.tick(now), ptime);
            let first_packet = self.wheel.instant(phase.first);
            let slot = &mut self.sessions[key.index as usize];
            slot.phase = Some(phase);
            match is_early {
                true => slot.session.listen(first_packet, now),
                false => slot.session.start(first_packet, now),
            }
        }
        self.touch(key.index);
        true
    }

    fn update(&mut self, key: SessionKey, rtp: RtpParameters, now: Instant) -> bool {
        // One whose leg is between two cores has nothing to be changed; in a moment it is over, or here again.
        // What a provider's connection carries, its start says.
        let is_fixed = |slot: &Slot| slot.is_moving() || slot.session.is_streamed();
        let Some(slot) = self.live(key).filter(|slot| !is_fixed(slot)) else { return false };
        let moves = slot.session.rtp().ptime != rtp.ptime;
        let mut first_packet = now;
        if let (true, Some(phase)) = (moves, slot.phase) {
            self.phases.release(phase);
            let phase = self.phases.assign(self.wheel.tick(now), rtp.ptime);
            first_packet = self.wheel.instant(phase.first);
            self.sessions[key.index as usize].phase = Some(phase);
        }
        self.sessions[key.index as usize].session.update(rtp, first_packet, now);
        if matches!(rtp.rtcp, Rtcp::Separate { .. }) {
            self.open_rtcp(key);
        }
        self.touch(key.index);
        true
    }

    fn add_leg(
        &mut self,
        key: SessionKey,
        rtp: RtpParameters,
        role: Role,
        (address, leased): (IpAddr, Option<u16>),
        seed: [u32; 3],
        now: Instant,
    ) -> Result<u16, LegError> {
        let slot = self.live(key).ok_or(LegError::NoSession)?;
        if slot.second.is_some() || slot.is_joining(now) {
            return Err(LegError::Taken);
        }
        let (port, socket, _) = self.bind(&address, leased, false, now)?;
        let udp = match self.ring.add_udp(socket, owner(key, Leg::Second)) {
            Ok(udp) => udp,
            Err(error) => {
                self.ports.give_back(port, now);
                return Err(OpenError::Socket(error.to_string()).into());
            }
        };
        let phase = self.phases.assign(self.wheel.tick(now), rtp.ptime);
        let first_packet = self.wheel.instant(phase.first);
        let slot = &mut self.sessions[key.index as usize];
        slot.second = Some(SecondSocket { udp, rtcp: None, port, is_foreign: false, phase });
        slot.session.add_second(rtp, role, seed, first_packet);
        if matches!(rtp.rtcp, Rtcp::Separate { .. }) {
            self.open_second_rtcp(key);
        }
        self.touch(key.index);
        Ok(port)
    }

    fn update_leg(
        &mut self,
        key: SessionKey,
        rtp: Option<RtpParameters>,
        role: Option<Role>,
        now: Instant,
    ) -> bool {
        let Some(slot) = self.live(key) else { return false };
        let (Some(second), Some(before)) = (&slot.second, slot.session.second()) else { return false };
        let (phase, ptime) = (second.phase, before.rtp().parameters().ptime);
        let mut first_packet = now;
        if let Some(rtp) = rtp.filter(|rtp| rtp.ptime != ptime) {
            self.phases.release(phase);
            let phase = self.phases.assign(self.wheel.tick(now), rtp.ptime);
            first_packet = self.wheel.instant(phase.first);
            if let Some(second) = &mut self.sessions[key.index as usize].second {
                second.phase = phase;
            }
        }
        if rtp.is_some_and(|rtp| matches!(rtp.rtcp, Rtcp::Separate { .. })) {
            self.open_second_rtcp(key);
        }
        self.touch(key.index);
        self.sessions[key.index as usize].session.update_second(rtp, role, first_packet)
    }

    fn remove_leg(&mut self, key: SessionKey, now: Instant) -> Option<Stats> {
        self.live(key)?;
        // One that is on its way goes back.
        self.unexpect_leg(key);
        self.let_second_go(key.index, now);
        let stats = self.sessions[key.index as usize].session.remove_second();
        self.touch(key.index);
        stats
    }

    /// Gives back what a second leg holds.
    fn let_second_go(&mut self, index: u32, now: Instant) {
        let slot = &mut self.sessions[index as usize];
        if let Some(second) = slot.second.take() {
            if let Some(transmit) = slot.session.poll_second_goodbye(now, self.ring.datagram()) {
                let from = if transmit.from == Port::Rtcp { second.rtcp } else { Some(second.udp) };
                if let Some(from) = from {
                    self.ring.send_datagram(from, transmit.to, transmit.len);
                    self.tally.rtcp_sent_total += 1;
                }
            }
            self.ring.close(second.udp);
            if let Some(rtcp) = second.rtcp {
                self.ring.close(rtcp);
            }
            match second.is_foreign {
                true => self.homeless.push(second.port),
                false => self.ports.give_back(second.port, now),
            }
            self.phases.release(second.phase);
        }
    }

    /// Ends a session: its port and place in the ptime are free at once; its stream may still say good-bye.
    fn close(&mut self, index: u32, reason: &str, now: Instant) {
        let slot = &mut self.sessions[index as usize];
        slot.session.close(reason);
        self.touch(index);
        self.let_go(index, now);
    }

    /// Gives back what a session that is over holds for RTP.
    fn let_go(&mut self, index: u32, now: Instant) {
        self.let_second_go(index, now);
        self.end_joining(index);
        let slot = &mut self.sessions[index as usize];
        if let Some(udp) = slot.udp.take() {
            let rtcp = slot.rtcp.take();
            if let Some(transmit) = slot.session.poll_goodbye(now, self.ring.datagram()) {
                let from = if transmit.from == Port::Rtcp { rtcp } else { Some(udp) };
                if let Some(from) = from {
                    self.ring.send_datagram(from, transmit.to, transmit.len);
                    self.tally.rtcp_sent_total += 1;
                }
            }
            self.ring.close(udp);
            if let Some(rtcp) = rtcp {
                self.ring.close(rtcp);
            }
            self.ports.give_back(slot.port, now);
            slot.leaving = Some(now + LINGER);
        }
        if let Some(phase) = slot.phase.take() {
            self.phases.release(phase);
        }
    }

    fn end_all(&mut self, reason: EndReason, now: Instant) {
        let live: Vec<u32> = self.sessions.iter().map(|(index, _)| index as u32).collect();
        for index in live {
            self.sessions[index as usize].session.end(reason, now);
            self.touch(index);
        }
        self.drain_touched(now);
        // A ring that failed has no next turn.
        self.send_ports_home();
        self.outbox.ring();
    }

    // --- from the network ---

    /// Handles up to [`COMPLETIONS_MAX`] completions and says how many, a batch at a time: while one is handled, the memory
    /// of the sessions after it is on its way.
    fn handle_completions(&mut self, now: Instant) -> u64 {
        let mut handled = 0;
        let mut batch = std::mem::take(&mut self.batch);
        while handled < COMPLETIONS_MAX {
            while batch.len() < BATCH_MAX
                && let Some(completion) = self.ring.next()
            {
                if batch.len() < AHEAD {
                    self.fetch(&completion);
                }
                batch.push_back(completion);
            }
            if batch.is_empty() {
                break;
            }
            handled += batch.len() as u64;
            while let Some(completion) = batch.pop_front() {
                if let Some(ahead) = batch.get(AHEAD - 1) {
                    self.fetch(ahead);
                }
                self.handle(completion, now);
            }
        }
        self.batch = batch;
        handled
    }

    /// The memory of a completion's session is on its way.
    fn fetch(&self, completion: &Completion) {
        if let Completion::Datagram { owner, .. } | Completion::Stream { owner, .. } = completion {
            let (key, leg) = owned(*owner);
            if let (true, Some(slot)) = (leg != Leg::Link, self.sessions.get(key.index as usize)) {
                prefetch(std::slice::from_ref(&**slot));
            }
        }
    }

    fn handle(&mut self, completion: Completion, now: Instant) {
        match completion {
            Completion::Datagram { owner, from, data } => {
                let (key, leg) = owned(owner);
                let is_report = matches!(leg, Leg::Rtcp | Leg::SecondRtcp);
                self.tally.rtp_received_total += u64::from(!is_report);
                self.tally.rtcp_received_total += u64::from(is_report);
                if let Some(slot) = self.sessions.get_mut(key.index as usize)
                    && slot.generation == key.generation
                {
                    let bytes = self.ring.bytes(&data);
                    match leg {
                        Leg::Rtcp => slot.session.handle_report(from, bytes, now),
                        Leg::Second => slot.session.handle_second_datagram(from, bytes, now),
                        Leg::SecondRtcp => slot.session.handle_second_report(from, bytes, now),
                        Leg::Rtp | Leg::Agent | Leg::Link | Leg::Provider => {
                            slot.session.handle_datagram(from, bytes, now)
                        }
                    }
                    self.touch(key.index);
                }
                self.ring.give_back(data);
            }
            Completion::Stream { owner, data } => {
                let (key, leg) = owned(owner);
                match leg {
                    Leg::Provider => self.tally.provider_received_octets_total += data.len() as u64,
                    _ => self.tally.agent_received_octets_total += data.len() as u64,
                }
                if leg == Leg::Link {
                    return self.handle_link_bytes(key, data, now);
                }
                if let Some(slot) = self.sessions.get_mut(key.index as usize)
                    && slot.generation == key.generation
                {
                    match leg {
                        Leg::Provider => slot.session.handle_provider_bytes(self.ring.bytes(&data), now),
                        _ => slot.session.handle_bytes(self.ring.bytes(&data), now),
                    }
                    self.touch(key.index);
                }
                self.ring.give_back(data);
            }
            Completion::Connected { owner } => {
                let (key, leg) = owned(owner);
                if leg == Leg::Link {
                    self.handle_link_connected(key, now);
                } else if let Some(slot) = self.slot(owner) {
                    slot.session.handle_connected(now);
                }
            }
            // A link is looked at in every turn.
            Completion::Writable { owner } => drop(self.slot(owner)),
            Completion::Ended { owner, error } => {
                let (key, leg) = owned(owner);
                if leg == Leg::Link {
                    self.handle_link_ended(key, error.as_ref(), now);
                } else if leg == Leg::Provider {
                    self.handle_provider_ended(owner, error.as_ref(), now);
                } else if let Some(slot) = self.slot(owner) {
                    slot.session.handle_ended(error.as_ref(), now);
                    if let Some(stream) = slot.stream.take() {
                        self.ring.close(stream);
                    }
                }
            }
            Completion::Detached { owner, socket } => self.handle_detached(owner, socket, now),
            Completion::Woken => {}
        }
    }

    /// The session of a completion, touched.
    fn slot(&mut self, owner: Owner) -> Option<&mut Slot> {
        let (key, leg) = owned(owner);
        let slot = self.sessions.get(key.index as usize)?;
        if slot.generation != key.generation || leg == Leg::Link {
            return None;
        }
        self.touch(key.index);
        self.sessions.get_mut(key.index as usize).map(Box::as_mut)
    }

    fn touch(&mut self, index: u32) {
        let slot = &mut self.sessions[index as usize];
        if !std::mem::replace(&mut slot.is_touched, true) {
            self.touched.push(index);
        }
    }

    // --- from the clock ---

    /// Runs what is due; gives the oldest deadline of what was sent.
    fn run_due(&mut self, now: Instant) -> Option<Instant> {
        let mut oldest: Option<Instant> = None;
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now, &mut due);
        for slot in due.iter().take(AHEAD).filter_map(|index| self.sessions.get(*index as usize)) {
            prefetch(std::slice::from_ref(&**slot));
        }
        for (place, &index) in due.iter().enumerate() {
            if let Some(slot) = due.get(place + AHEAD).and_then(|ahead| self.sessions.get(*ahead as usize)) {
                prefetch(std::slice::from_ref(&**slot));
            }
            if let Some(slot) =
                due.get(place + AHEAD / 2).and_then(|ahead| self.sessions.get(*ahead as usize))
            {
                prefetch(slot.session.playout().next_frame(FRAME_AHEAD));
            }
            let Some(slot) = self.sessions.get_mut(index as usize) else { continue };
            let deadline = slot.deadline.take().unwrap_or(now);
            let Slot { session, udp, rtcp, peer, second, .. } = &mut **slot;
            let mut sent = 0;
            if let Some(second) = second {
                while let Some(transmit) = session.poll_second(now, self.ring.datagram()) {
                    let (from, is_report) = match transmit.from {
                        Port::Rtp => (Some(second.udp), tandem_rtp::packet::is_rtcp(self.ring.datagram())),
                        Port::Rtcp => (second.rtcp, true),
                    };
                    let Some(from) = from else { continue };
                    self.ring.send_datagram(from, transmit.to, transmit.len);
                    sent += u64::from(!is_report);
                    self.tally.rtcp_sent_total += u64::from(is_report);
                }
            }
            if let Some(udp) = *udp {
                let exclusive = session.exclusive_peer(now);
                if exclusive != *peer {
                    *peer = exclusive;
                    self.ring.connect_udp(udp, exclusive);
                }
                while let Some(transmit) = session.poll_transmit(now, self.ring.datagram()) {
                    match transmit.from {
                        Port::Rtp => {
                            self.ring.send_datagram(udp, transmit.to, transmit.len);
                            sent += 1;
                        }
                        Port::Rtcp => {
                            if let Some(rtcp) = *rtcp {
                                self.ring.send_datagram(rtcp, transmit.to, transmit.len);
                                self.tally.rtcp_sent_total += 1;
                            }
                        }
                    }
                }
            }
            if session.is_streamed() {
                session.pace(now);
            }
            if sent > 0 {
                self.tally.rtp_sent_total += sent;
                oldest = Some(oldest.map_or(deadline, |oldest| oldest.min(deadline)));
            }
            if session.poll_timeout().is_some_and(|deadline| deadline <= now) {
                session.handle_timeout(now);
            }
            self.touch(index);
        }
        due.clear();
        self.due = due;
        oldest
    }

    // --- what must leave ---

    fn drain_touched(&mut self, now: Instant) {
        while let Some(index) = self.touched.pop() {
            if let Some(slot) = self.sessions.get_mut(index as usize) {
                slot.is_touched = false;
                self.drain(index, now);
            }
        }
    }

    fn drain(&mut self, index: u32, now: Instant) {
        let slot = &mut self.sessions[index as usize];
        if let Some(stream) = slot.stream {
            while slot.session.has_stream_output() {
                let Some(stage) = self.ring.stage(stream) else { break };
                let len = slot.session.poll_stream(stage);
                if len == 0 {
                    break;
                }
                self.tally.agent_sent_octets_total += len as u64;
                self.ring.send_stage(stream, len);
            }
        }
        self.drain_provider(index, now);
        self.get_ready(index);
        let slot = &mut self.sessions[index as usize];
        if slot.session.wants_handshake() && !std::mem::replace(&mut slot.is_shaking, true) {
            self.tally.handshakes_deferred_total += u64::from(self.handshakes.len() >= HANDSHAKES_A_TURN);
            self.handshakes.push_back(index);
        }
        let slot = &mut self.sessions[index as usize];
        let oddities = slot.session.poll_oddities();
        self.tally.events_refused_total += oddities.events_refused;
        self.tally.agent_marks_refused_total += oddities.marks_refused;
        self.tally.agent_malformed_total += oddities.malformed;
        self.tally.handshakes_overflowed_total += oddities.handshake_overflowed;
        self.tally.provider_malformed_total += oddities.provider.malformed;
        self.tally.provider_dropped_milliseconds_total += oddities.provider.dropped_ms;
        self.tally.provider_mislabelled_total += oddities.provider.mislabelled;
        if oddities.provider.mislabelled > 0 {
            tracing::warn!(
                session_id = &*slot.id,
                "the AudioSocket's sound is mu-law under the label of linear sound: dial with /c(slin)"
            );
        }
        while let Some(event) = slot.session.poll_event() {
            if let Event::Ended { .. } | Event::Joined { .. } = event {
                self.tally.sessions_ended_total += 1;
            }
            if !self.outbox.push(&slot.id, event) {
                self.tally.events_lost_total += 1;
            }
        }
        if slot.session.is_ended() {
            self.let_go(index, now);
            return self.leave(index, now);
        }
        if slot.session.is_stream_over()
            && let Some(stream) = slot.stream.take()
        {
            self.ring.close(stream);
        }
        let deadline = slot.session.poll_timeout();
        if deadline != slot.deadline {
            slot.deadline = deadline;
            match deadline {
                Some(deadline) => self.wheel.place(index, deadline),
                None => self.wheel.remove(index),
            }
        }
    }

    /// A session that is over goes when its stream has nothing left to write, or after [`LINGER`].
    fn leave(&mut self, index: u32, now: Instant) {
        let slot = &mut self.sessions[index as usize];
        let until = *slot.leaving.get_or_insert(now + LINGER);
        let is_over = slot.session.is_stream_over();
        let is_said = (is_over || (slot.stream.is_none() && slot.link.is_none()))
            && (slot.provider.is_none() || slot.session.is_line_over());
        if !is_said && now < until {
            slot.deadline = Some(until);
            return self.wheel.place(index, until);
        }
        self.wheel.remove(index);
        let generation = slot.generation;
        self.leave_link(SessionKey { index, generation }, is_said);
        let slot = self.sessions.remove(index as usize);
        for stream in [slot.stream, slot.provider].into_iter().flatten() {
            self.ring.finish(stream);
            self.lingering.push_back((now + LINGER, stream));
        }
    }

    fn publish(&mut self, now: Instant) {
        let ring = self.ring.counters();
        if ring.completions_lost > 0 && !std::mem::replace(&mut self.is_faulty, true) {
            // Sockets may have gone deaf with them, and nobody can say which.
            tracing::error!(
                lost = ring.completions_lost,
                "the kernel dropped completions: restart this engine"
            );
        }
        let tally = &mut self.tally;
        tally.sessions = self.sessions.len() as u64;
        tally.ports_open = self.ports.open() as u64;
        tally.ports_free = self.ports.free() as u64;
        tally.ports_quarantined = self.ports.quarantined() as u64;
        tally.ring_enters_total = ring.enters;
        tally.ring_operations_total = ring.operations;
        tally.ring_rearmed_total = ring.rearmed;
        tally.ring_buffers_dry_total = ring.buffers_dry;
        tally.ring_buffers = ring.buffers;
        tally.ring_buffers_out = ring.buffers_out;
        tally.ring_buffers_out_max = ring.buffers_out_max;
        tally.ring_completions_lost_total = ring.completions_lost;
        tally.ring_send_failed_total = ring.send_failed;
        tally.ring_truncated_total = ring.truncated;
        tally.ring_sockets = ring.sockets;
        tally.links = self.links.iter().filter(|(_, link)| link.is_up()).count() as u64;
        self.metrics.publish(tally);
        self.outbox.ring_waiting();
        tally.turn_nanoseconds_max = 0;
        tally.batch_max = 0;
        tally.late_nanoseconds_max = 0;
        self.published = now;
    }
}

#[cfg(test)]
mod tests;
