//! Between the control thread and a worker: commands down, events up, both bounded, neither with a lock.
//!
//! ```text
//!   control ── Commands: rtrb ──▶ worker      the waker (an eventfd) ends the worker's wait
//!   control ◀── events: rtrb ─── worker      the bell (another) is rung once a turn that had events
//!   control ◀── oneshot ──────── worker      the answer to one command
//! ```
//!
//! Workers do not know each other: a leg that moves from one core to another goes through the control thread, as the answer to
//! [`Command::Lift`] and in [`Command::Land`], and so does the port that it leaves there ([`Word::PortFree`]).
//!
//! A full command queue refuses the command: the control thread answers that the core is overloaded. A full event queue
//! loses the event, counts it, and says so ([`Inbox::was_lossy`]): the control thread then ends the event streams, and its
//! subscribers resynchronise by a snapshot. A worker never waits.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rtrb::{Consumer, Producer, RingBuffer};
use tokio::sync::oneshot;

use crate::leg::event::{EndReason, Event, Stats, StreamStarted};
use crate::leg::provider::Connection;
use crate::leg::rtp::RtpParameters;
use crate::ring::Waker;
use crate::session::joining::{JoinError, MovingLeg};
use crate::session::second::Role;
use crate::session::{Notice, SessionParameters};

/// Commands that may wait for a worker: a burst of call set-ups between two of its turns.
pub const COMMANDS_MAX: usize = 1_024;

/// Events that may wait for the control thread: one for each session of a core, twice.
pub const EVENTS_MAX: usize = 8_192;

/// A session on its worker. Keys of sessions that are over are told from later ones by their generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionKey {
    /// Its place.
    pub index: u32,
    /// Its life in that place.
    pub generation: u32,
}

/// Why a worker cannot open a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It carries as many as it may.
    #[error("all {0} sessions of this core are in use")]
    SessionsFull(usize),
    /// No port of its share is free.
    #[error("no RTP port is free; {resting} rest after a call and {quarantined} are used by other programs")]
    PortsFull {
        /// Closed a moment ago.
        resting: usize,
        /// Busy.
        quarantined: usize,
    },
    /// The leased port cannot be had.
    #[error("RTP port {0} is in use or rests")]
    PortBusy(u16),
    /// The kernel refused.
    #[error("socket: {0}")]
    Socket(String),
    /// The agent cannot be asked so.
    #[error("{0}")]
    Agent(String),
    /// The provider's connection has gone.
    #[error("the provider's connection has gone")]
    NoConnection,
}

/// Why a second leg cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LegError {
    /// No such session.
    #[error("there is no such session")]
    NoSession,
    /// One at a time.
    #[error("the session has a second leg already")]
    Taken,
    /// No port.
    #[error(transparent)]
    Port(#[from] OpenError),
}

/// An RTP leg on its way from one core to another. The port is still its first core's.
#[derive(Debug)]
pub struct Moving {
    /// The stream.
    pub leg: MovingLeg,
    /// Its socket; what comes meanwhile waits in it.
    pub udp: OwnedFd,
    /// The odd port's, if reports travel there.
    pub rtcp: Option<OwnedFd>,
    /// Its port.
    pub port: u16,
}

/// A leg that could not land, and why; without it, it is lost.
pub type Refused = (JoinError, Option<Box<Moving>>);

/// What a worker did to open a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Its key from now on.
    pub key: SessionKey,
    /// The port that was bound; 0 for a caller who comes by a connection.
    pub port: u16,
    /// The agent needs no dialling.
    pub agent_ready: bool,
}

/// Everything a worker needs to open a session.
#[derive(Debug)]
pub struct Open {
    /// The control plane's name for it.
    pub id: Arc<str>,
    /// What it carries.
    pub parameters: SessionParameters,
    /// Where the agent is, if it is dialled; or why that is not known.
    pub agent_address: Option<Result<SocketAddr, String>>,
    /// Bind here.
    pub local_address: IpAddr,
    /// This port, if it was leased.
    pub local_port: Option<u16>,
    /// The connection that the caller comes by, instead of a port.
    pub incoming: Option<Handover>,
}

/// A provider's connection on its way to a worker.
#[derive(Debug)]
pub struct Incoming {
    /// Its socket; what comes meanwhile waits in it.
    pub socket: OwnedFd,
    /// The rest of it.
    pub connection: Connection,
}

/// The way: a worker takes the connection only when nothing can go wrong any more. One that is not taken goes back, to be refused with
/// a word.
#[derive(Debug)]
pub struct Handover {
    incoming: Option<Incoming>,
    back: Option<oneshot::Sender<Incoming>>,
}

impl Handover {
    /// A connection, and where it comes back.
    pub fn new(incoming: Incoming) -> (Self, oneshot::Receiver<Incoming>) {
        let (back, returned) = oneshot::channel();
        (Self { incoming: Some(incoming), back: Some(back) }, returned)
    }

    /// Takes it for good.
    pub fn take(mut self) -> Option<Incoming> {
        self.incoming.take()
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        if let (Some(incoming), Some(back)) = (self.incoming.take(), self.back.take()) {
            // Nobody waits for it: it is closed.
            let _ = back.send(incoming);
        }
    }
}

/// Why a session takes no other connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RetakeError {
    /// No such session.
    #[error("there is no such session")]
    NoSession,
    /// It waits for none.
    #[error("the session's connection is up, or it has none")]
    Up,
    /// No place in the ring.
    #[error("the core has no room for another connection")]
    Full,
}

/// How a caller's connection stands.
#[derive(Debug, Clone)]
pub struct StreamSummary {
    /// `waiting`, `live`, `dropped`.
    pub state: &'static str,
    /// What its last start has said.
    pub started: Option<Box<StreamStarted>>,
}

/// A session for `ListSessions`.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The control plane's name for it.
    pub id: Arc<str>,
    /// The call's.
    pub call_id: Arc<str>,
    /// Its RTP port.
    pub port: u16,
    /// It was answered.
    pub started: bool,
    /// Since it was opened.
    pub age_ms: u64,
    /// The agent's stream is up, or it needs none.
    pub agent_ready: bool,
    /// Why the agent could not be reached, or its stream broke.
    pub agent_gone: Option<String>,
    /// The agent asked to end the call.
    pub agent_hangup: bool,
    /// Of a provider's connection.
    pub stream: Option<StreamSummary>,
}

/// Sessions that a worker counts for one question: some 20 µs, so that packets do not wait for the statistics of a thousand.
pub const SAMPLES_MAX: usize = 64;

/// How sessions go, for `Statistics`.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    /// Names and counters.
    pub sessions: Vec<(Arc<str>, Stats)>,
    /// There are more: from here.
    pub next: Option<usize>,
}

/// What the control thread asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// Open a session.
    Open {
        /// Which.
        open: Box<Open>,
        /// The answer.
        reply: oneshot::Sender<Result<Opened, OpenError>>,
    },
    /// The call is answered. False: there is no such session.
    Start {
        /// Which.
        key: SessionKey,
        /// It is not: the other side is heard, and what the agent says waits.
        is_early: bool,
        /// The answer.
        reply: oneshot::Sender<bool>,
    },
    /// A re-INVITE. False: there is no such session.
    Update {
        /// Which.
        key: SessionKey,
        /// From now on.
        rtp: RtpParameters,
        /// The answer.
        reply: oneshot::Sender<bool>,
    },
    /// A second leg for a session.
    AddLeg {
        /// Which session.
        key: SessionKey,
        /// What was negotiated.
        rtp: RtpParameters,
        /// What it is there for.
        role: Role,
        /// Bind here,
        local_address: IpAddr,
        /// to this port, if one was leased.
        local_port: Option<u16>,
        /// Random; SSRC and first numbers come from it.
        seed: [u32; 3],
        /// The answer: its port.
        reply: oneshot::Sender<Result<u16, LegError>>,
    },
    /// A re-INVITE of the second leg, or another role. False: there is none.
    UpdateLeg {
        /// Which session.
        key: SessionKey,
        /// From now on; `None`: as it was.
        rtp: Option<RtpParameters>,
        /// From now on; `None`: as it was.
        role: Option<Role>,
        /// The answer.
        reply: oneshot::Sender<bool>,
    },
    /// The second leg goes. `None`: there is none.
    RemoveLeg {
        /// Which session.
        key: SessionKey,
        /// The answer: its counters.
        reply: oneshot::Sender<Option<Stats>>,
    },
    /// Two sessions of this core are joined: the RTP leg of `other` becomes the second one of `key`.
    Join {
        /// Which stays.
        key: SessionKey,
        /// Which ends.
        other: SessionKey,
        /// What the leg is there for.
        role: Role,
        /// The answer: the counters of the one that ended, or which of them cannot, and why.
        reply: oneshot::Sender<Result<Stats, (SessionKey, JoinError)>>,
    },
    /// A leg of another core will come to this session; until then, or for [`crate::worker::EXPECTED_MAX`], there is no room for another.
    Expect {
        /// Which session.
        key: SessionKey,
        /// The answer.
        reply: oneshot::Sender<Result<(), JoinError>>,
    },
    /// It will not come.
    Unexpect {
        /// Which session.
        key: SessionKey,
    },
    /// Take the RTP leg out of a session, for another core; [`Command::Restore`] or [`Command::Leave`] follows.
    Lift {
        /// Which session.
        key: SessionKey,
        /// The answer: the leg.
        reply: oneshot::Sender<Result<Box<Moving>, JoinError>>,
    },
    /// A leg of another core becomes the second one of this session.
    Land {
        /// Which session.
        key: SessionKey,
        /// The leg.
        moving: Box<Moving>,
        /// What it is there for.
        role: Role,
        /// The answer.
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// The leg comes back: it could not land.
    Restore {
        /// Which session.
        key: SessionKey,
        /// The leg; `None`: it was lost, and the session ends.
        moving: Option<Box<Moving>>,
    },
    /// The leg has landed: the session is over.
    Leave {
        /// Which session.
        key: SessionKey,
        /// Where the leg is now.
        into: Arc<str>,
        /// The answer: its counters. `None`: it was over already.
        reply: oneshot::Sender<Option<Stats>>,
    },
    /// A connection for a session that has lost its own.
    Retake {
        /// Which session.
        key: SessionKey,
        /// The connection.
        incoming: Handover,
        /// The answer.
        reply: oneshot::Sender<Result<(), RetakeError>>,
    },
    /// A port of this core, which a leg had taken to another one, was closed there.
    PortHome {
        /// Which.
        port: u16,
    },
    /// Something for the agent. False: there is no such session.
    Tell {
        /// Which.
        key: SessionKey,
        /// What.
        notice: Notice,
        /// The answer.
        reply: oneshot::Sender<bool>,
    },
    /// The call is over. `None`: there is no such session.
    Close {
        /// Which.
        key: SessionKey,
        /// For the agent.
        reason: String,
        /// The answer.
        reply: oneshot::Sender<Option<Stats>>,
    },
    /// Say what is alive.
    List {
        /// The answer.
        reply: oneshot::Sender<Vec<Summary>>,
    },
    /// Say how sessions go: one, or those at and after a place, [`SAMPLES_MAX`] at most.
    Sample {
        /// Which; `None`: all.
        key: Option<SessionKey>,
        /// From this place.
        from: usize,
        /// The answer.
        reply: oneshot::Sender<Samples>,
    },
    /// End every session, with an event each.
    EndAll {
        /// Why.
        reason: EndReason,
    },
    /// Stop when the last stream has been told; sessions that are left end first.
    Stop,
}

/// Ends a thread's wait, from another thread. What came before the wake is seen by who has taken it down.
pub trait Wake {
    /// Many wakes before one is taken down count as one.
    fn wake(&self);
}

impl Wake for Waker {
    fn wake(&self) {
        Waker::wake(self);
    }
}

/// The control thread's end of the command queue.
#[derive(Debug)]
pub struct Commands<W = Waker> {
    queue: Producer<Command>,
    waker: W,
}

impl<W: Wake> Commands<W> {
    /// Hands a command over and wakes the worker. False when the queue is full: whoever waits for its answer is told by
    /// the end of its channel.
    pub fn send(&mut self, command: Command) -> bool {
        self.try_send(command).is_ok()
    }

    /// The same for what must not be lost: the command, when the queue is full.
    #[allow(clippy::result_large_err)]
    pub fn try_send(&mut self, command: Command) -> Result<(), Command> {
        self.queue.push(command).map_err(|rtrb::PushError::Full(command)| command)?;
        self.waker.wake();
        Ok(())
    }
}

/// What a worker tells the control thread.
#[derive(Debug)]
pub enum Word {
    /// Something happened in a session.
    Session(Arc<str>, Event),
    /// A port of another core was closed here.
    PortFree(u16),
}

/// The worker's end of both queues.
#[derive(Debug)]
pub struct Outbox<W = Waker> {
    events: Producer<Word>,
    bell: W,
    lost: Arc<AtomicBool>,
    rung: bool,
    /// Something that can wait is in the queue.
    waits: bool,
}

impl<W: Wake> Outbox<W> {
    /// Tells the control thread: at the end of the turn, or, if it is only a report, with the next [`Outbox::ring_waiting`]:
    /// to wake a thread for each of them would cost more than all else that a report takes. False when it is lost.
    pub fn push(&mut self, id: &Arc<str>, event: Event) -> bool {
        let can_wait = matches!(event, Event::Report { .. } | Event::SecondReport { .. });
        let pushed = self.events.push(Word::Session(Arc::clone(id), event)).is_ok();
        if !pushed {
            self.lost.store(true, Ordering::Release);
        }
        self.rung |= !can_wait;
        self.waits |= can_wait;
        pushed
    }

    /// A port of another core was closed here. False: the queue is full, and it is to be told later.
    pub fn push_port(&mut self, port: u16) -> bool {
        let pushed = self.events.push(Word::PortFree(port)).is_ok();
        self.rung |= pushed;
        pushed
    }

    /// A few times a second: what could wait has waited.
    pub fn ring_waiting(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.bell.wake();
        }
    }

    /// At the end of a turn: rings the bell if there was something.
    pub fn ring(&mut self) {
        if std::mem::take(&mut self.rung) {
            self.bell.wake();
        }
    }
}

/// The control thread's end of the event queue.
#[derive(Debug)]
pub struct Inbox {
    events: Consumer<Word>,
    lost: Arc<AtomicBool>,
}

impl Inbox {
    /// The next word.
    pub fn pop(&mut self) -> Option<Word> {
        self.events.pop().ok()
    }

    /// Whether events were lost since this was last asked.
    pub fn was_lossy(&self) -> bool {
        self.lost.swap(false, Ordering::AcqRel)
    }
}

/// What the control thread has of a worker's queues.
pub type ControlEnd<W = Waker> = (Commands<W>, Inbox);

/// What the worker has of them.
pub type WorkerEnd<W = Waker> = (Consumer<Command>, Outbox<W>);

/// Both ends of one worker's queues. `waker` wakes the worker, `bell` the control thread.
pub fn pair<W: Wake>(waker: W, bell: W) -> (ControlEnd<W>, WorkerEnd<W>) {
    let (command_in, command_out) = RingBuffer::new(COMMANDS_MAX);
    let (event_in, event_out) = RingBuffer::new(EVENTS_MAX);
    let lost = Arc::new(AtomicBool::new(false));
    (
        (Commands { queue: command_in, waker }, Inbox { events: event_out, lost: Arc::clone(&lost) }),
        (command_out, Outbox { events: event_in, bell, lost, rung: false, waits: false }),
    )
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_event_queue_loses_and_says_so() {
        let waker = Waker::new().unwrap();
        let ((_commands, mut inbox), (_queue, mut outbox)) = pair(waker.clone(), waker);
        let id: Arc<str> = "a".into();
        let event = Event::AgentHangup { after_drain: false };
        for _ in 0..EVENTS_MAX {
            assert!(outbox.push(&id, event.clone()));
        }
        assert!(!inbox.was_lossy());
        assert!(!outbox.push(&id, event));
        assert!(inbox.was_lossy());
        assert!(!inbox.was_lossy(), "said once");
        assert_eq!(std::iter::from_fn(|| inbox.pop()).count(), EVENTS_MAX);
    }

    #[test]
    fn a_full_command_queue_gives_the_command_back() {
        let waker = Waker::new().unwrap();
        let ((mut commands, _inbox), (_queue, _outbox)) = pair(waker.clone(), waker);
        for _ in 0..COMMANDS_MAX {
            assert!(commands.send(Command::Stop));
        }
        assert!(!commands.send(Command::Stop));
    }
}
