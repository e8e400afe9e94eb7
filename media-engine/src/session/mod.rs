//! What a call's media does: a carrier leg, an agent leg, a bridge between them and a playout queue. Sans-IO.
//!
//! ```text
//!                    ┌──────────────────────── Session ────────────────────────┐
//!  handle_datagram ─▶│ RtpLeg ──▶ Bridge::up ──────────────────────▶ Agent      │─▶ poll_stream
//!  poll_transmit   ◀─│ RtpLeg ◀── Bridge::down ◀── Playout ◀── PtimeClock ◀─ Agent │◀─ handle_bytes, handle_frame
//!                    └─ poll_timeout, handle_timeout ───────────── poll_event ─┘
//! ```
//!
//! The four kinds of method of the house: getters; `handle_*` for what comes from network and clock; plain verbs for
//! what the control plane wants; `poll_*` for what must leave. After a `handle_*` or a verb, drain the `poll_*`: first
//! [`Session::poll_transmit`], then [`Session::poll_stream`], then [`Session::poll_event`]; and ask
//! [`Session::poll_timeout`] when to come back. The buffers are the caller's; the packet path allocates nothing.
//!
//! A second RTP leg may join ([`second`]): consulted by the agent, listening, whispering, or bridged to the caller. It may be the
//! leg of a session that was alive already ([`joining`]).
//!
//! Upstream is immediate: what the caller says goes to the agent in the call that brought it. Downstream is paced: the
//! agent's sound waits in the playout queue and leaves one frame a ptime.
//!
//! Here is what a session is, and its deadlines. What is done with it has a file each: [`control`] for the verbs, [`listen`]
//! for what comes from the RTP legs, [`agent`] for what comes from the agent, [`output`] for what must leave, [`handshakes`] for
//! what the worker must grant first.

mod agent;
pub mod bridge;
mod control;
pub mod digits;
mod handshakes;
pub mod joining;
mod listen;
mod output;
pub mod paced;
pub mod playout;
mod provider;
pub mod second;
pub mod skew;
pub mod speech;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_audio::format::{Codec, SampleRate};
use tandem_audio::tone::ProgressTone;
use tandem_rtp::dtls::Identity;
use tandem_rtp::report::WallClock;

use crate::leg;
use crate::leg::agent::{Agent, AgentParameters, CallInfo};
use crate::leg::event::{EndReason, Event, Stats, StreamStarted};
use crate::leg::provider::{ProviderLeg, StreamParameters};
use crate::leg::rtp::{Direction, RtpLeg, RtpParameters};
use crate::leg::stream::Stream;
use bridge::Bridge;
use digits::Digits;
use handshakes::With;
use playout::{Playout, Policy, PtimeClock};
use second::SecondLeg;
use speech::{Speech, SpeechParameters};

/// Events that wait between two drains. An agent that asks for more at once is not listened to.
pub const EVENTS_MAX: usize = 64;

/// Events of the caller's keys and the agent's wishes that one session may report in a second; more are counted and
/// dropped. Nobody presses keys so fast, and the queue to the control thread, which all sessions of a core share, holds a
/// second of it for hundreds of sessions that have gone mad at once.
pub const EVENTS_A_SECOND: u32 = 20;

/// A session that is not started within this time is one that its control plane has forgotten: a call rings for three
/// minutes at most, and an ACK that never comes is given up after half a minute more.
pub const UNSTARTED_MAX: Duration = Duration::from_mins(5);

/// While a call is on hold nobody owes us RTP; one of which neither caller nor control plane has been heard for so long
/// is over all the same.
pub const HELD_MAX: Duration = Duration::from_hours(1);

/// An agent that hangs up when all was played does so at the latest when all that waits could have been, and so long after:
/// the queue stands still while the caller is on hold or talks with a second leg, and an agent may go on filling it.
pub const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// Everything needed to open a session.
#[derive(Debug, Clone)]
pub struct SessionParameters {
    /// For the agent's start frame.
    pub call: CallInfo,
    /// The carrier leg.
    pub rtp: RtpParameters,
    /// In the place of its network: a provider's connection.
    pub stream: Option<StreamParameters>,
    /// The agent leg.
    pub agent: AgentParameters,
    /// What is made of the caller's speech.
    pub speech: SpeechParameters,
    /// No RTP for so long ends the session.
    pub media_timeout: Duration,
    /// The session ends after so long, whatever happens.
    pub max_session: Option<Duration>,
    /// Random; SSRC, first numbers and masks come from it.
    pub seed: u64,
    /// Wall-clock time when it is opened, since 1970: what its reports say.
    pub since_epoch: Duration,
    /// What is shown in a DTLS handshake; without it there is none.
    pub identity: Option<Arc<Identity>>,
}

/// Which of the carrier leg's two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// RTP's, and RTCP's too with rtcp-mux.
    Rtp,
    /// The odd one beside it.
    Rtcp,
}

/// A datagram that was written to the caller's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// From where.
    pub from: Port,
    /// Where to.
    pub to: SocketAddr,
    /// Its octets.
    pub len: usize,
}

/// What was asked for and not done, since it was last polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Oddities {
    /// Events above [`EVENTS_A_SECOND`] or [`EVENTS_MAX`].
    pub events_refused: u64,
    /// Marks that found too many waiting.
    pub marks_refused: u64,
    /// Messages of the agent that were none of its dialect.
    pub malformed: u64,
    /// Datagrams of a DTLS handshake that found too many waiting.
    pub handshake_overflowed: u64,
    /// The same of a provider, and what else went wrong with it.
    pub provider: leg::provider::Counters,
}

/// What is left of [`EVENTS_A_SECOND`].
#[derive(Debug)]
struct EventBudget {
    since: Instant,
    used: u32,
    refused: u64,
}

impl EventBudget {
    /// Whether one more may be reported at `now`; if not, it is counted.
    fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.used) = (now, 0);
        }
        if self.used >= EVENTS_A_SECOND {
            self.refused += 1;
            return false;
        }
        self.used += 1;
        true
    }
}

/// What the control plane tells the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A key, by SIP INFO.
    Dtmf {
        /// Which.
        digit: char,
        /// How long.
        duration_ms: u32,
    },
    /// How a transfer goes.
    Transfer {
        /// `trying`, `done`, `failed`.
        status: String,
        /// In words.
        reason: String,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    rtp: RtpLeg,
    agent: Agent,
    /// `None` while the codec is not known.
    bridge: Option<Bridge>,
    playout: Playout,
    clock: Option<PtimeClock>,
    /// For the reports of its legs.
    wall: WallClock,
    /// For their handshakes.
    identity: Option<Arc<Identity>>,
    /// Who had the last step of a handshake.
    shook_with: With,
    /// Beside the caller; at most one.
    second: Option<Box<SecondLeg>>,
    /// Its RTP leg is on its way into another session: the counters until then.
    moved: Option<Box<Stats>>,
    /// What a caller hears while the agent consults.
    ringing: Option<Box<ProgressTone>>,
    /// Only where something is wanted of it.
    speech: Option<Box<Speech>>,
    opened: Instant,
    started: Option<Instant>,
    /// The other side is heard but has not answered: what the agent says waits.
    is_early: bool,
    /// The call was placed by us: the agent is told of its answer.
    is_outbound: bool,
    digits: Digits,
    /// The agent knows that the caller speaks.
    speech_told: bool,
    media_timeout: Duration,
    /// The caller's silence counts from here at the earliest: opened, started, or updated.
    silence_from: Instant,
    /// When the caller's silence is looked at again.
    media_deadline: Instant,
    end: Option<Instant>,
    /// The agent wants to hang up when all was played, or then at the latest.
    hangup_when_dry: Option<Instant>,
    /// The control plane was told; it is told once.
    hung_up: bool,
    /// Why it could not be reached, or its stream broke.
    agent_gone: Option<String>,
    on_hold: bool,
    /// In the place of the carrier's network.
    provider: Option<Box<ProviderLeg>>,
    /// There is one, also while it is taken out.
    is_streamed: bool,
    /// The packet that was made last has sound.
    has_said: bool,
    /// What is on its way to the provider is to be taken back.
    wants_clear: bool,
    /// Its connection is live.
    is_line_live: bool,
    /// What its last start said.
    stream_started: Option<Box<StreamStarted>>,
    /// Milliseconds that wait in its leg, while that is taken out.
    unsent_ms: u64,
    /// The provider has not played all yet.
    is_unheard: bool,
    ended: bool,
    events: VecDeque<Event>,
    budget: EventBudget,
    /// Counters at the last [`Session::poll_oddities`].
    told: Oddities,
}

impl Session {
    /// A session that is silent until [`Session::start`].
    ///
    /// # Errors
    /// The upgrade request of a WebSocket agent cannot be written, or its TLS not be begun; in words.
    pub fn new(parameters: SessionParameters, now: Instant) -> Result<Self, String> {
        let SessionParameters {
            call,
            rtp,
            stream,
            agent,
            speech,
            media_timeout,
            max_session,
            seed,
            since_epoch,
            identity,
        } = parameters;
        let numbers = [seed as u32, (seed >> 32) as u32 ^ 0x5bd1_e995, (seed >> 16) as u32];
        let is_outbound = call.direction == "outbound";
        let agent = Agent::new(agent, &call, seed, now)?;
        let playout = Playout::new(playout_rate(&agent, rtp.codec), policy(&agent));
        let wall = WallClock::new(now, since_epoch);
        let mut this = Self {
            rtp: RtpLeg::new(rtp, identity.clone(), numbers, wall),
            wall,
            identity,
            shook_with: With::default(),
            agent,
            bridge: None,
            playout,
            clock: None,
            second: None,
            moved: None,
            ringing: None,
            speech: None,
            opened: now,
            started: None,
            is_early: false,
            is_outbound,
            digits: Digits::default(),
            speech_told: false,
            media_timeout,
            silence_from: now,
            media_deadline: now + UNSTARTED_MAX,
            end: max_session.map(|limit| now + limit),
            hangup_when_dry: None,
            hung_up: false,
            agent_gone: None,
            on_hold: false,
            is_streamed: stream.is_some(),
            provider: stream.map(|stream| Box::new(ProviderLeg::new(stream, now))),
            has_said: false,
            wants_clear: false,
            is_line_live: false,
            stream_started: None,
            unsent_ms: 0,
            is_unheard: false,
            ended: false,
            events: VecDeque::with_capacity(4),
            budget: EventBudget { since: now, used: 0, refused: 0 },
            told: Oddities::default(),
        };
        this.speech = Speech::new(speech, this.playout.rate(), now);
        this.build_bridge();
        Ok(this)
    }

    fn build_bridge(&mut self) {
        let parameters = self.rtp.parameters();
        let listens = self.agent.stream().is_some_and(Stream::wants_speech)
            || self.speech.as_ref().is_some_and(|speech| speech.listens());
        let Some(codec) = parameters.codec else { return };
        let rate = playout_rate(&self.agent, Some(codec));
        match &mut self.bridge {
            Some(bridge) if bridge.rate() == rate => bridge.update(codec, parameters.ptime, parameters.sound),
            _ => self.bridge = Some(Bridge::new(codec, parameters.ptime, rate, listens, parameters.sound)),
        }
    }

    // --- getters ---

    /// Answered already.
    pub fn is_started(&self) -> bool {
        self.started.is_some()
    }

    /// Over: only the agent's stream may still have something to say.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// An agent that needs no dialling, or one whose stream is up.
    pub fn is_agent_ready(&self) -> bool {
        self.agent.stream().is_none_or(Stream::is_open)
    }

    /// Why the agent could not be reached, or its stream broke.
    pub fn agent_gone(&self) -> Option<&str> {
        self.agent_gone.as_deref()
    }

    /// The agent asked to end the call.
    pub fn has_agent_hung_up(&self) -> bool {
        self.hung_up
    }

    /// What is negotiated now.
    pub fn rtp(&self) -> &RtpParameters {
        self.rtp.parameters()
    }

    /// The one address that the carrier leg's socket may be connected to now; see [`RtpLeg::exclusive_peer`].
    pub fn exclusive_peer(&self, now: Instant) -> Option<SocketAddr> {
        self.rtp.exclusive_peer(now)
    }

    /// The playout queue.
    pub fn playout(&self) -> &Playout {
        &self.playout
    }

    /// Milliseconds of the agent's sound that the caller has heard, or will: what waits in a provider's leg is not among them.
    pub fn heard_ms(&self) -> u64 {
        self.playout.heard_ms().saturating_sub(self.unsent_ms())
    }

    /// Since it was opened.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.opened)
    }

    /// The counters now.
    pub fn stats(&self, now: Instant) -> Stats {
        if let Some(stats) = &self.moved {
            return **stats;
        }
        let mut stats = Stats::default();
        self.rtp.count(&mut stats);
        if let Some(stream) = self.agent.stream() {
            (stats.agent_frames_in, stats.agent_frames_out, stats.agent_dropped_ms) = stream.counters();
        }
        stats.playout_dropped_ms = self.playout.dropped_ms();
        let since = self.started.map(|started| now.saturating_duration_since(started));
        stats.duration_ms = since.unwrap_or_default().as_millis() as u64;
        (stats.playout_waiting_ms, stats.heard_ms) = (self.playout.waiting_ms(), self.heard_ms());
        stats.caller_speaks = self.bridge.as_ref().and_then(Bridge::is_speech);
        let idle = self.speech.as_ref().filter(|_| self.is_watched()).map(|speech| speech.idle(now));
        stats.idle_ms = idle.map(|idle| idle.as_millis() as u64);
        stats
    }

    // --- from the clock ---

    /// A deadline of [`Session::poll_timeout`] has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.ended {
            return;
        }
        if self.rtp.poll_timeout().is_some_and(|deadline| deadline <= now) {
            self.hear(now, |rtp, hear| rtp.handle_timeout(now, hear));
            self.handle_digits(now);
            if let Some(failure) = self.rtp.failure() {
                self.end(EndReason::Transport(failure), now);
            }
        }
        if self.second.as_ref().is_some_and(|second| second.rtp().poll_timeout().is_some_and(|at| at <= now))
        {
            self.hear_second(now, |rtp, hear| rtp.handle_timeout(now, hear));
        }
        if let Some(reason) = self.second.as_mut().and_then(|second| second.poll_loss(now)) {
            self.push_event(Event::SecondLost { reason });
        }
        if let Some(stream) = self.agent.stream_mut() {
            stream.handle_timeout(now);
            self.handle_loss(now);
        }
        self.handle_provider_timeout(now);
        self.handle_speech_timeout(now);
        if self.hangup_when_dry.is_some_and(|at| at <= now) {
            self.hang_up_dry();
        }
        if self.media_deadline <= now {
            self.media_deadline = self.next_media_deadline();
            if self.media_deadline <= now {
                self.end(EndReason::MediaTimeout, now);
            }
        }
        if self.end.is_some_and(|end| end <= now) {
            self.end(EndReason::MaxSession, now);
        }
    }

    /// When the caller has been silent for too long, by what was heard until now.
    fn next_media_deadline(&self) -> Instant {
        if self.started.is_none() {
            return self.opened + UNSTARTED_MAX;
        }
        let mut patience = media_patience(self.rtp.direction(), self.media_timeout);
        if self.is_early || (self.is_streamed && !self.is_line_live) {
            // Who rings has announced sound, and owes none yet.
            patience = patience.max(UNSTARTED_MAX);
        }
        self.rtp.last_arrival().map_or(self.silence_from, |last| last.max(self.silence_from)) + patience
    }
}

/// How long a peer may send nothing.
fn media_patience(direction: Direction, media_timeout: Duration) -> Duration {
    match direction.sends() && direction.accepts() {
        true => media_timeout,
        false => media_timeout.max(HELD_MAX),
    }
}

/// The rate of what waits in the playout queue.
fn playout_rate(agent: &Agent, codec: Option<Codec>) -> SampleRate {
    agent.rate().unwrap_or_else(|| codec.unwrap_or(Codec::Pcmu).sample_rate())
}

fn policy(agent: &Agent) -> Policy {
    match agent {
        Agent::Echo => Policy::Live,
        _ => Policy::Spoken,
    }
}

#[cfg(test)]
mod tests;
