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
//! A second RTP leg may join ([`second`]): consulted by the agent, listening, whispering, or bridged to the caller.
//!
//! Upstream is immediate: what the caller says goes to the agent in the call that brought it. Downstream is paced: the
//! agent's sound waits in the playout queue and leaves one frame a ptime.

pub mod bridge;
pub mod digits;
pub mod paced;
pub mod playout;
pub mod second;
pub mod skew;
pub mod speech;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_audio::format::{Codec, MAX_PACKET_SAMPLES, Ptime, SampleRate};
use tandem_audio::noise::Sid;
use tandem_audio::tone::{Cadence, ProgressTone};
use tandem_audio::vad::VadEvent;
use tandem_rtp::dtls::Identity;
use tandem_rtp::event::{EventSender, MAX_QUEUED_DIGITS};
use tandem_rtp::report::WallClock;
use tandem_stream::link;

use crate::leg::agent::{Agent, AgentParameters, CallInfo};
use crate::leg::event::{EndReason, Event, Heard, Request, Stats};
use crate::leg::link::LinkStream;
use crate::leg::rtp::{Direction, Rtcp, RtpLeg, RtpParameters};
use crate::leg::stream::{Said, Stream, Tell};
use bridge::Bridge;
use digits::{Digits, Source};
use playout::{Playout, Policy, PtimeClock};
use second::{Party, Role, SecondLeg};
use speech::{BargeIn, Due, Gate, NOISE_LEVEL, Speech, SpeechParameters};

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

/// Keys that an agent has pressed before it hangs up take so long at most.
const KEYS_MAX: Duration = Duration::from_millis(
    MAX_QUEUED_DIGITS as u64 * (EventSender::DEFAULT_KEY_MS + EventSender::DEFAULT_PAUSE_MS) as u64,
);

/// While the caller has said something in so long, his packets drive what the agent hears of the second leg.
const CALLER_DRIVES: Duration = Duration::from_millis(60);

/// Everything needed to open a session.
#[derive(Debug, Clone)]
pub struct SessionParameters {
    /// For the agent's start frame.
    pub call: CallInfo,
    /// The carrier leg.
    pub rtp: RtpParameters,
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
    /// Beside the caller; at most one.
    second: Option<Box<SecondLeg>>,
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
            agent,
            bridge: None,
            playout,
            clock: None,
            second: None,
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

    /// Since it was opened.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.opened)
    }

    /// The counters now.
    pub fn stats(&self, now: Instant) -> Stats {
        let mut stats = Stats::default();
        self.rtp.count(&mut stats);
        if let Some(stream) = self.agent.stream() {
            (stats.agent_frames_in, stats.agent_frames_out, stats.agent_dropped_ms) = stream.counters();
        }
        stats.playout_dropped_ms = self.playout.dropped_ms();
        let since = self.started.map(|started| now.saturating_duration_since(started));
        stats.duration_ms = since.unwrap_or_default().as_millis() as u64;
        (stats.playout_waiting_ms, stats.heard_ms) = (self.playout.waiting_ms(), self.playout.heard_ms());
        stats.caller_speaks = self.bridge.as_ref().and_then(Bridge::is_speech);
        let idle = self.speech.as_ref().filter(|_| self.is_watched()).map(|speech| speech.idle(now));
        stats.idle_ms = idle.map(|idle| idle.as_millis() as u64);
        stats
    }

    // --- what the control plane wants ---

    /// The call is answered; the first packet leaves at `first_packet`. Doing it again changes nothing.
    pub fn start(&mut self, first_packet: Instant, now: Instant) {
        if self.ended || (self.started.is_some() && !self.is_early) {
            return;
        }
        self.tell_answered();
        if let Some(speech) = &mut self.speech {
            speech.attend(now);
        }
        if std::mem::take(&mut self.is_early) {
            // The clock runs already; who answers has a right to a moment of silence.
            self.silence_from = now;
            self.media_deadline = self.next_media_deadline();
            return;
        }
        self.started = Some(now);
        self.clock = Some(PtimeClock::new(first_packet, self.rtp.ptime()));
        self.silence_from = now;
        self.media_deadline = self.next_media_deadline();
        self.rtp.begin(now);
    }

    /// The other side may be heard before it answers: silence goes out, and what the agent says waits for
    /// [`Session::start`].
    pub fn listen(&mut self, first_packet: Instant, now: Instant) {
        if self.started.is_none() && !self.ended {
            self.is_early = true;
            self.started = Some(now);
            self.clock = Some(PtimeClock::new(first_packet, self.rtp.ptime()));
            self.silence_from = now;
            self.media_deadline = self.next_media_deadline();
            self.rtp.begin(now);
        }
    }

    /// An agent whose stream comes up after the answer is told then.
    fn tell_answered(&mut self) {
        if let (true, Some(stream)) = (self.is_outbound, self.agent.stream_mut()) {
            stream.tell(&Tell::Answered);
        }
    }

    /// The control plane has something for the agent.
    pub fn tell(&mut self, notice: &Notice, now: Instant) {
        if let Notice::Dtmf { digit, .. } = notice
            && !self.digits.is_new(*digit, Source::Info, now)
        {
            return;
        }
        let Some(stream) = self.agent.stream_mut() else { return };
        match notice {
            Notice::Dtmf { digit, duration_ms } => {
                stream.tell(&Tell::Dtmf { digit: *digit, duration_ms: *duration_ms });
            }
            Notice::Transfer { status, reason } => stream.tell(&Tell::Transfer { status, reason }),
        }
    }

    /// A re-INVITE. `first_packet` is when the next packet leaves if the ptime is another; see [`Session::rtp`].
    pub fn update(&mut self, parameters: RtpParameters, first_packet: Instant, now: Instant) {
        let before = *self.rtp.parameters();
        self.rtp.update(parameters);
        if before.ptime != parameters.ptime && self.clock.is_some() {
            self.clock = Some(PtimeClock::new(first_packet, parameters.ptime));
        }
        if before.codec != parameters.codec
            || before.ptime != parameters.ptime
            || before.sound != parameters.sound
        {
            self.build_bridge();
        }
        // Only the echo follows the carrier's rate.
        self.playout.set_rate(playout_rate(&self.agent, parameters.codec));
        if let Some(second) = &mut self.second {
            second.set_rate(self.playout.rate());
        }
        self.set_ringing();
        let on_hold = !parameters.direction.sends();
        if on_hold != std::mem::replace(&mut self.on_hold, on_hold) {
            if let Some(stream) = self.agent.stream_mut() {
                stream.tell(if on_hold { &Tell::Hold } else { &Tell::Resume });
            }
            if let Some(speech) = &mut self.speech {
                speech.attend(now);
            }
        }
        if self.started.is_some() {
            self.silence_from = now;
            self.media_deadline = self.next_media_deadline();
            self.rtp.begin(now);
        }
    }

    /// Adds a second leg, whose first packet leaves at `first_packet`. False: there is one already, or the call is over.
    pub fn add_second(
        &mut self,
        parameters: RtpParameters,
        role: Role,
        seed: [u32; 3],
        first_packet: Instant,
    ) -> bool {
        if self.second.is_some() || self.ended {
            return false;
        }
        let common = second::Common {
            identity: self.identity.clone(),
            wall: self.wall,
            rate: self.playout.rate(),
            media_timeout: self.media_timeout,
        };
        self.second = Some(Box::new(SecondLeg::new(parameters, role, common, seed, first_packet)));
        self.handle_second_change();
        true
    }

    /// The second leg, if there is one. (That of a session that is over has only to say good-bye.)
    pub fn second(&self) -> Option<&SecondLeg> {
        self.second.as_deref().filter(|_| !self.ended)
    }

    /// A re-INVITE of the second leg, or another role for it. False: there is none.
    pub fn update_second(
        &mut self,
        parameters: Option<RtpParameters>,
        role: Option<Role>,
        first_packet: Instant,
    ) -> bool {
        let Some(second) = &mut self.second else { return false };
        if let Some(parameters) = parameters {
            second.update(parameters, first_packet);
        }
        if let Some(role) = role {
            second.set_role(role);
        }
        self.handle_second_change();
        true
    }

    /// Removes the second leg; caller and agent talk as before.
    pub fn remove_second(&mut self) -> Option<Stats> {
        let second = self.second.take()?;
        self.handle_second_change();
        Some(second.stats())
    }

    fn set_ringing(&mut self) {
        let rings = matches!(self.second(), Some(second) if second.role() == Role::Consult { rings: true });
        let rate = self.playout.rate();
        self.ringing = rings.then(|| Box::new(ProgressTone::new(Cadence::RINGBACK_US, rate)));
    }

    /// The call is over: tells the agent, sends no more RTP. Only [`Session::poll_stream`] may have something left.
    pub fn close(&mut self, reason: &str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.clock = None;
        if let Some(stream) = self.agent.stream_mut() {
            stream.stop(reason);
        }
    }

    /// The engine ends the session by itself.
    pub fn end(&mut self, reason: EndReason, now: Instant) {
        if self.ended {
            return;
        }
        let stats = self.stats(now);
        self.close(match reason {
            EndReason::MediaTimeout | EndReason::MaxSession | EndReason::Transport(_) => "timeout",
            EndReason::Orphaned | EndReason::EngineFault => "error",
            EndReason::Shutdown => "shutdown",
        });
        // The last event must not be lost to a full queue.
        self.events.push_back(Event::Ended { reason, stats });
    }

    // --- from network and clock ---

    /// A datagram came on the carrier leg's port.
    pub fn handle_datagram(&mut self, source: SocketAddr, bytes: &[u8], now: Instant) {
        if self.ended {
            return;
        }
        let first = self.hear(now, |rtp, hear| rtp.handle_datagram(source, bytes, now, hear));
        if first {
            let took_ms = self.age(now).as_millis() as u32;
            self.push_event(Event::MediaStarted { remote: source, took_ms });
        }
        self.handle_digits(now);
    }

    /// A datagram came on the odd port beside it.
    pub fn handle_report(&mut self, source: SocketAddr, bytes: &[u8], now: Instant) {
        if !self.ended {
            self.rtp.handle_report(source, bytes, true, now);
        }
    }

    /// What the caller says is taken: the call is up, and not on hold.
    fn is_listening(&self) -> bool {
        self.started.is_some() && !self.on_hold && self.rtp.direction().accepts()
    }

    /// Runs a method of the RTP leg and lets the agent hear what comes of it.
    fn hear<T>(&mut self, now: Instant, run: impl FnOnce(&mut RtpLeg, &mut dyn FnMut(Heard<'_>)) -> T) -> T {
        let listening = self.is_listening();
        let Self { rtp, agent, bridge, playout, second, speech: attention, .. } = self;
        let mut gate = attention.as_mut().and_then(|speech| speech.gate_mut());
        let is_deaf = matches!(agent, Agent::Tone(_) | Agent::File { .. });
        let mut speech = None;
        let outcome = run(rtp, &mut |heard| {
            let (true, Some(bridge)) = (listening, bridge.as_mut()) else { return };
            if is_deaf && second.is_none() {
                return;
            }
            let change = bridge.up(heard, |samples| {
                tell_of_caller(agent, playout, second.as_deref_mut(), gate.as_deref_mut(), samples);
            });
            speech = change.or(speech);
        });
        if let Some(change) = speech {
            self.handle_speech(change, now);
        }
        outcome
    }

    /// A datagram came on the second leg's port.
    pub fn handle_second_datagram(&mut self, source: SocketAddr, bytes: &[u8], now: Instant) {
        if self.ended {
            return;
        }
        self.hear_second(now, |rtp, hear| {
            let _ = rtp.handle_datagram(source, bytes, now, hear);
        });
    }

    /// A datagram came on the odd port beside it.
    pub fn handle_second_report(&mut self, source: SocketAddr, bytes: &[u8], now: Instant) {
        if let (false, Some(second)) = (self.ended, &mut self.second) {
            second.handle_report(source, bytes, now);
        }
    }

    /// Runs a method of the second leg. What it says waits for the caller's next packet to be mixed with; an agent that
    /// hears the second leg alone, because the caller is silent or not heard, hears it at once.
    fn hear_second(&mut self, now: Instant, run: impl FnOnce(&mut RtpLeg, &mut dyn FnMut(Heard<'_>))) {
        let is_listening = self.is_listening();
        let Self { rtp, agent, bridge, playout, second, .. } = self;
        let Some(second) = second else { return };
        second.hear(run);
        let role = second.role();
        // Also those of a leg that the agent does not hear: they must not wait for a role in which it does.
        while let Some((digit, duration_ms)) = second.poll_digit() {
            if let (true, Some(stream)) = (role.hears(Party::Agent, Party::Second), agent.stream_mut()) {
                stream.tell(&Tell::Dtmf { digit, duration_ms });
            }
        }
        let speaks = |at: Instant| now.saturating_duration_since(at) < CALLER_DRIVES;
        // While he pauses, the clock does in his place.
        let pauses = bridge.as_ref().is_some_and(Bridge::is_paused);
        let drives = is_listening && (pauses || rtp.last_arrival().is_some_and(speaks));
        if drives && role.hears(Party::Agent, Party::Caller) {
            return;
        }
        let mut frame = [0; MAX_PACKET_SAMPLES];
        let frame = &mut frame[..playout.rate().samples(Ptime::MS_20)];
        loop {
            frame.fill(0);
            let len = second.mix_into(Party::Agent, frame);
            if len == 0 {
                break;
            }
            tell_agent(agent, playout, None, &frame[..len]);
        }
    }

    /// A packet time has passed, and the caller may have said that he pauses: the agent hears comfort noise.
    fn hear_pause(&mut self, now: Instant) {
        if !self.is_listening() {
            return;
        }
        let Self { agent, bridge: Some(bridge), playout, second, speech, .. } = self else { return };
        let mut gate = speech.as_mut().and_then(|speech| speech.gate_mut());
        let change = bridge.up_pause(|samples| {
            tell_of_caller(agent, playout, second.as_deref_mut(), gate.as_deref_mut(), samples);
        });
        if let Some(change) = change {
            self.handle_speech(change, now);
        }
    }

    /// The caller began or ceased to speak.
    fn handle_speech(&mut self, change: VadEvent, now: Instant) {
        let began = change == VadEvent::SpeechStarted;
        let is_heard = self.hears_caller();
        self.tell_speech(began);
        let Self { agent, playout, speech, is_early, hangup_when_dry, .. } = self;
        let stream = agent.stream_mut();
        let Some(speech) = speech else { return };
        if !began {
            speech.handle_end(now);
            if let Some(gate) = speech.gate_mut() {
                gate.close();
            }
            return;
        }
        // Last words are to be heard; what waits for an answer, or for a second leg to go, is no interruption.
        let is_interrupted = is_heard && !playout.is_still() && !*is_early && hangup_when_dry.is_none();
        let barge_in = speech.handle_onset(is_interrupted, now);
        let Some(stream) = stream.filter(|_| is_heard) else { return };
        if let Some(gate) = speech.gate_mut()
            && let Some((missing_ms, kept)) = gate.open()
        {
            if missing_ms > 0 {
                stream.tell(&Tell::Gap { ms: missing_ms });
            }
            kept.into_iter().for_each(|samples| stream.hear(samples));
            gate.clear();
        }
        match barge_in {
            BargeIn::Off => {}
            BargeIn::Pause => playout.pause(),
            BargeIn::Clear => {
                let mut names = Vec::new();
                playout.clear(|name| names.push(name));
                tell_cleared(stream, &names, playout.heard_ms());
            }
        }
    }

    /// The agent hears the caller: nobody else is there, or it does in the second leg's role.
    fn hears_caller(&self) -> bool {
        self.second.as_ref().is_none_or(|second| second.role().hears(Party::Agent, Party::Caller))
    }

    /// The caller speaks or is silent: the agent is told, as far as it hears him.
    fn tell_speech(&mut self, speaks: bool) {
        let active = speaks && self.hears_caller();
        if active != std::mem::replace(&mut self.speech_told, active)
            && let Some(stream) = self.agent.stream_mut()
        {
            stream.tell(&Tell::Speech { active });
        }
    }

    /// The second leg came, has another role, or went: the agent may hear the caller no more, or again.
    fn handle_second_change(&mut self) {
        let speaks = self.bridge.as_ref().and_then(Bridge::is_speech).unwrap_or_default();
        self.tell_speech(speaks);
        if let Some(gate) = self.speech.as_mut().and_then(|speech| speech.gate_mut()) {
            // What was kept is older than what the agent hears next.
            gate.begin_anew(speaks);
        }
        self.set_ringing();
    }

    /// Silence counts.
    fn is_watched(&self) -> bool {
        self.started.is_some() && !self.is_early && !self.on_hold && !self.ended
    }

    fn handle_speech_timeout(&mut self, now: Instant) {
        let is_watched = self.is_watched();
        let Some(speech) = &mut self.speech else { return };
        match speech.handle_timeout(is_watched, now) {
            Some(Due::Resume) => self.playout.resume(),
            Some(Due::Idle(idle)) => self.push_event(Event::Idle { idle_ms: idle.as_millis() as u64 }),
            None => {}
        }
    }

    /// While the agent says nothing, and noise was asked for and negotiated: the packet that is due, which is a description of it or
    /// none at all. `None`: sound is due.
    fn make_noise(&mut self, now: Instant, out: &mut [u8]) -> Option<Option<usize>> {
        let speech = self.speech.as_mut()?;
        let is_still = self.playout.is_still()
            && self.second.is_none()
            && !self.is_early
            && matches!(self.agent, Agent::Stream(_))
            && self.rtp.takes_noise();
        let is_due = speech.poll_noise(is_still, now)?;
        if !is_due {
            self.rtp.skip();
            return Some(None);
        }
        Some(self.rtp.write_noise(&Sid::white(NOISE_LEVEL), out))
    }

    /// A key that was pressed and released, once, and which way it came.
    fn poll_digit(&mut self) -> Option<(char, u32, Source)> {
        if let Some((digit, duration_ms)) = self.rtp.poll_digit() {
            return Some((digit, duration_ms, Source::Rtp));
        }
        let key = self.bridge.as_mut()?.poll_key()?;
        Some((key.digit, key.duration_ms, Source::Inband))
    }

    fn handle_digits(&mut self, now: Instant) {
        while let Some((digit, duration_ms, source)) = self.poll_digit() {
            if !self.digits.is_new(digit, source, now) {
                continue;
            }
            if let Some(stream) = self.agent.stream_mut() {
                stream.tell(&Tell::Dtmf { digit, duration_ms });
            }
            if self.budget.take(now) {
                self.push_event(Event::Dtmf { digit, duration_ms });
            }
        }
    }

    /// The TCP connection to the agent is up, or the link that carries this call.
    pub fn handle_connected(&mut self, now: Instant) {
        let Some(stream) = self.agent.stream_mut() else { return };
        stream.handle_connected();
        if stream.take_ready() {
            let took_ms = self.age(now).as_millis() as u32;
            self.push_event(Event::AgentConnected { took_ms });
        }
    }

    /// Octets came from the agent.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        self.heed(now, |stream, take| stream.handle_bytes(bytes, take));
    }

    /// A TLS handshake waits for its turn.
    pub fn wants_handshake(&self) -> bool {
        self.agent.stream().is_some_and(Stream::wants_handshake)
    }

    /// Its turn has come.
    pub fn handle_handshake(&mut self, now: Instant) {
        self.heed(now, |stream, take| stream.handle_handshake(take));
    }

    /// A frame of the call came on its link.
    pub fn handle_frame(&mut self, message: &link::Message<'_>, now: Instant) {
        self.heed(now, |stream, take| stream.handle_frame(message, take));
    }

    /// Lets the stream read and does what the agent says.
    fn heed(&mut self, now: Instant, read: impl FnOnce(&mut Stream, &mut dyn FnMut(Said<'_>))) {
        let took_ms = self.age(now).as_millis() as u32;
        let Self { agent, playout, events, budget, rtp, hangup_when_dry, hung_up, ended, .. } = self;
        let Agent::Stream(stream) = agent else { return };
        if *ended {
            return;
        }
        // Answers are written after the stream is done reading: it cannot do both at once.
        let mut cleared = None;
        let mut refused = Vec::new();
        let (mut is_ready, mut has_decided) = (false, false);
        read(stream, &mut |said| match said {
            Said::Ready => {
                is_ready = true;
                push(events, budget, Event::AgentConnected { took_ms });
            }
            Said::Sound(samples) => playout.push(samples),
            Said::Request(Request::Clear) => {
                let mut names = cleared.take().unwrap_or_else(Vec::new);
                playout.clear(|name| names.push(name));
                *hangup_when_dry = None;
                has_decided = true;
                cleared = Some(names);
            }
            Said::Request(Request::Mark { name }) => refused.extend(playout.mark(name).err()),
            Said::Request(Request::Pause) => {
                playout.pause();
                has_decided = true;
            }
            Said::Request(Request::Resume) => {
                playout.resume();
                has_decided = true;
            }
            Said::Request(Request::Dtmf { digits }) if rtp.parameters().event_payload_type.is_none() => {
                if budget.take(now) {
                    push(events, budget, Event::AgentDtmf { digits });
                }
            }
            Said::Request(Request::Dtmf { digits }) => drop(rtp.press(&digits)),
            Said::Request(Request::Answer) => {
                if budget.take(now) {
                    push(events, budget, Event::AgentAnswer);
                }
            }
            Said::Request(Request::Headers { headers }) => {
                if budget.take(now) {
                    push(events, budget, Event::AgentHeaders { headers });
                }
            }
            Said::Request(Request::Hangup { after_drain: true }) => {
                // Last words are to be heard, not held.
                playout.resume();
                hangup_when_dry.get_or_insert_with(|| drained_by(playout, rtp, now));
            }
            Said::Request(Request::Hangup { after_drain: false }) => {
                if !std::mem::replace(hung_up, true) {
                    push(events, budget, Event::AgentHangup { after_drain: false });
                }
            }
            Said::Request(Request::Transfer { to, mode }) => {
                if budget.take(now) {
                    push(events, budget, Event::AgentTransfer { to, mode });
                }
            }
        });
        if is_ready && self.is_outbound && self.started.is_some() && !self.is_early {
            stream.tell(&Tell::Answered);
        }
        if let (true, Some(speech)) = (has_decided, &mut self.speech) {
            speech.decide();
        }
        if let Some(names) = cleared {
            tell_cleared(stream, &names, playout.heard_ms());
        }
        // A mark that nobody will see reached is answered now: an agent must not wait for ever.
        for name in &refused {
            stream.tell(&Tell::Mark { name, heard_ms: playout.heard_ms() });
        }
        self.handle_played();
        self.handle_loss(now);
    }

    /// The agent cannot even be dialled.
    pub fn handle_undiallable(&mut self, reason: &str) {
        if let Some(stream) = self.agent.stream_mut() {
            stream.abandon();
            self.lose_agent(reason.to_owned());
        }
    }

    /// The TCP connection to the agent ended, or could not be made.
    pub fn handle_ended(&mut self, error: Option<&std::io::Error>, now: Instant) {
        if let Some(stream) = self.agent.stream_mut() {
            stream.handle_ended(error);
        }
        self.handle_loss(now);
    }

    /// The link that carries this call is lost.
    pub fn handle_link_lost(&mut self, reason: &str, now: Instant) {
        if let Some(stream) = self.agent.stream_mut() {
            stream.handle_link_lost(reason);
        }
        self.handle_loss(now);
    }

    /// The agent's stream may be lost. One that asked to hang up is not missed, and its last words are still played. In the
    /// Twilio dialect, which has no word for it, closing is how an agent hangs up.
    fn handle_loss(&mut self, now: Instant) {
        let Some(stream) = self.agent.stream_mut() else { return };
        let Some(loss) = stream.poll_loss() else { return };
        let is_hangup = loss.is_normal && stream.hangs_up_by_closing() && self.started.is_some();
        if self.ended || self.hung_up || self.hangup_when_dry.is_some() {
            return;
        }
        if is_hangup {
            self.hangup_when_dry = Some(drained_by(&self.playout, &self.rtp, now));
            self.handle_played();
        } else {
            self.lose_agent(loss.reason);
        }
    }

    fn lose_agent(&mut self, reason: String) {
        self.agent_gone = Some(reason.clone());
        self.push_event(Event::AgentFailed { reason });
    }

    /// What was played may have reached marks, or the end.
    fn handle_played(&mut self) {
        while let Some(played) = self.playout.poll_mark() {
            if let Some(stream) = self.agent.stream_mut() {
                stream.tell(&Tell::Mark { name: &played.name, heard_ms: played.heard_ms });
            }
        }
        if let Some(stream) = self.agent.stream_mut() {
            if let Some(heard_ms) = self.playout.poll_paused() {
                stream.tell(&Tell::Paused { heard_ms });
            }
            stream.handle_waiting(self.playout.waiting_ms());
        }
        if self.hangup_when_dry.is_some() && self.playout.is_empty() && !self.rtp.is_pressing() {
            self.hang_up_dry();
        }
    }

    /// The agent has been heard out, or cannot be.
    fn hang_up_dry(&mut self) {
        if self.hangup_when_dry.take().is_some() && !std::mem::replace(&mut self.hung_up, true) {
            self.push_event(Event::AgentHangup { after_drain: true });
        }
    }

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
        if self.is_early {
            // Who rings has announced sound, and owes none yet.
            patience = patience.max(UNSTARTED_MAX);
        }
        self.rtp.last_arrival().map_or(self.silence_from, |last| last.max(self.silence_from)) + patience
    }

    /// The call on a link, if the agent is reached by one.
    pub fn link_mut(&mut self) -> Option<&mut LinkStream> {
        self.agent.stream_mut().and_then(Stream::link_mut)
    }

    // --- what must leave ---

    /// Writes the datagram that is due into `out` (room for 1 472 octets), or `None` when none is due.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        if self.ended {
            return None;
        }
        self.poll_packet(now, out).or_else(|| self.poll_secure(out)).or_else(|| {
            let next_packet = self.clock.as_ref().map(PtimeClock::next);
            let (to, len) = self.rtp.poll_report(now, next_packet, out)?;
            let stats = self.stats(now);
            self.push_event(Event::Report { stats });
            Some(Transmit { from: self.report_port(), to, len })
        })
    }

    fn poll_secure(&mut self, out: &mut [u8]) -> Option<Transmit> {
        let (to, len) = self.rtp.poll_secure(out)?;
        Some(Transmit { from: Port::Rtp, to, len })
    }

    /// Writes the leave that RTCP takes when the session is over; once.
    pub fn poll_goodbye(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        let (to, len) = self.rtp.poll_goodbye(now, out)?;
        Some(Transmit { from: self.report_port(), to, len })
    }

    fn report_port(&self) -> Port {
        report_port(&self.rtp)
    }

    fn poll_packet(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        loop {
            let lost = self.clock.as_mut()?.poll_due(now)?;
            for _ in 0..lost {
                self.rtp.skip();
            }
            self.hear_pause(now);
            if let Some(len) = self.make_noise(now, out) {
                self.handle_played();
                let Some(len) = len else { continue };
                let Some(to) = self.rtp.destination() else { continue };
                return Some(Transmit { from: Port::Rtp, to, len });
            }
            let ptime = self.rtp.ptime();
            let Self { agent, playout, second, ringing, is_early, bridge, rtp, speech, .. } = self;
            let mut voice = |frame: &mut [i16]| {
                if *is_early {
                    return 0;
                }
                let len = say(agent, playout, second.as_deref_mut(), ringing.as_deref_mut(), frame);
                if let Some(speech) = speech {
                    speech.hear_agent(&frame[..len], now);
                }
                len
            };
            let (Some(to), Some(bridge)) = (rtp.destination(), bridge.as_mut()) else {
                rtp.skip();
                // The caller is on hold; whom the agent consults hears it all the same.
                if matches!(self.second(), Some(second) if second.role().hears(Party::Second, Party::Agent)) {
                    let samples = self.playout.rate().samples(ptime).min(MAX_PACKET_SAMPLES);
                    let mut frame = [0; MAX_PACKET_SAMPLES];
                    let Self { agent, playout, second, .. } = self;
                    say(agent, playout, second.as_deref_mut(), None, &mut frame[..samples]);
                    self.handle_played();
                }
                continue;
            };
            let written = rtp.write_packet(out, |_, payload| bridge.down(payload, &mut voice));
            self.handle_played();
            if let Some(len) = written {
                return Some(Transmit { from: Port::Rtp, to, len });
            }
        }
    }

    /// The same for the second leg.
    pub fn poll_second(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        let second = self.second.as_mut().filter(|_| !self.ended)?;
        if let Some((to, len)) = second.poll_transmit(now, out) {
            return Some(Transmit { from: Port::Rtp, to, len });
        }
        let (to, len) = second.poll_report(now, out)?;
        let (from, stats) = (report_port(second.rtp()), second.stats());
        self.push_event(Event::SecondReport { stats });
        Some(Transmit { from, to, len })
    }

    /// Writes the leave that RTCP takes on the second leg, before that is removed or the session is over; once.
    pub fn poll_second_goodbye(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        let second = self.second.as_mut()?;
        let (to, len) = second.poll_goodbye(now, out)?;
        Some(Transmit { from: report_port(second.rtp()), to, len })
    }

    /// Whether [`Session::poll_stream`] has something.
    pub fn has_stream_output(&self) -> bool {
        self.agent.stream().is_some_and(|stream| stream.has_output())
    }

    /// Writes octets for the agent's TCP stream into `out` and says how many.
    pub fn poll_stream(&mut self, out: &mut [u8]) -> usize {
        self.agent.stream_mut().map_or(0, |stream| stream.poll_stream(out))
    }

    /// True once the agent's stream is of no more use: lost, or closed by us and all of it written.
    pub fn is_stream_over(&self) -> bool {
        self.agent.stream().is_none_or(|stream| {
            stream.has_failed() || (!stream.is_open() && self.ended && !stream.has_output())
        })
    }

    /// When to come back: for [`Session::poll_transmit`] or [`Session::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.ended {
            return None;
        }
        let agent = self.agent.stream().and_then(Stream::poll_timeout);
        let clock = self.clock.as_ref().map(PtimeClock::next);
        let report = self.rtp.poll_report_timeout();
        let second = self.second.as_ref().map(|second| second.poll_timeout());
        let speech = self.speech.as_ref().and_then(|speech| speech.poll_timeout(self.is_watched()));
        let (transport, hangup, media) =
            (self.rtp.poll_timeout(), self.hangup_when_dry, Some(self.media_deadline));
        [clock, report, transport, agent, second, speech, hangup, media, self.end].into_iter().flatten().min()
    }

    /// What the control plane should know, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What was asked for and not done since the last time, for the counters of the core.
    pub fn poll_oddities(&mut self) -> Oddities {
        let all = Oddities {
            events_refused: self.budget.refused,
            marks_refused: self.playout.marks_refused(),
            malformed: self.agent.stream().map_or(0, Stream::malformed),
        };
        let told = std::mem::replace(&mut self.told, all);
        Oddities {
            events_refused: all.events_refused - told.events_refused,
            // Another codec begins the echo's queue anew, and its count too.
            marks_refused: all.marks_refused.saturating_sub(told.marks_refused),
            malformed: all.malformed - told.malformed,
        }
    }

    fn push_event(&mut self, event: Event) {
        push(&mut self.events, &mut self.budget, event);
    }
}

/// How long a peer may send nothing.
fn media_patience(direction: Direction, media_timeout: Duration) -> Duration {
    match direction.sends() && direction.accepts() {
        true => media_timeout,
        false => media_timeout.max(HELD_MAX),
    }
}

/// When what the agent has said and pressed will be over at the latest.
fn drained_by(playout: &Playout, rtp: &RtpLeg, now: Instant) -> Instant {
    let keys = if rtp.is_pressing() { KEYS_MAX } else { Duration::ZERO };
    now + Duration::from_millis(playout.waiting_ms()) + keys + DRAIN_GRACE
}

/// From which port a leg's reports go.
fn report_port(rtp: &RtpLeg) -> Port {
    match rtp.parameters().rtcp {
        Rtcp::Separate { .. } => Port::Rtcp,
        Rtcp::Off | Rtcp::Mux => Port::Rtp,
    }
}

/// The agent hears this.
fn tell_agent(agent: &mut Agent, playout: &mut Playout, gate: Option<&mut Gate>, samples: &[i16]) {
    match (agent, gate) {
        (Agent::Echo, _) => playout.push(samples),
        (Agent::Stream(stream), Some(gate)) => gate.pass(samples, |samples| stream.hear(samples)),
        (Agent::Stream(stream), None) => stream.hear(samples),
        (Agent::Tone(_) | Agent::File { .. }, _) => {}
    }
}

/// The caller said this, or pauses so long: the second leg hears it as its role says, and the agent hears it with what
/// the second leg has said meanwhile.
fn tell_of_caller(
    agent: &mut Agent,
    playout: &mut Playout,
    second: Option<&mut SecondLeg>,
    gate: Option<&mut Gate>,
    samples: &[i16],
) {
    let Some(second) = second else { return tell_agent(agent, playout, gate, samples) };
    second.push(Party::Caller, samples);
    if second.role().hears(Party::Agent, Party::Caller) {
        let mut frame = [0; MAX_PACKET_SAMPLES];
        let frame = &mut frame[..samples.len()];
        frame.copy_from_slice(samples);
        second.mix_into(Party::Agent, frame);
        tell_agent(agent, playout, None, frame);
    }
}

/// What the caller hears next, and how many samples of it: the agent, and the second leg as its role says, which
/// gets the agent's words at the same time.
fn say(
    agent: &mut Agent,
    playout: &mut Playout,
    second: Option<&mut SecondLeg>,
    ringing: Option<&mut ProgressTone>,
    frame: &mut [i16],
) -> usize {
    let mut from_agent = |frame: &mut [i16]| match agent.make_frame(frame) {
        true => frame.len(),
        false => playout.take(frame),
    };
    let Some(second) = second else { return from_agent(frame) };
    let role = second.role();
    let (caller_hears, second_hears) =
        (role.hears(Party::Caller, Party::Agent), role.hears(Party::Second, Party::Agent));
    let mut len = if caller_hears || second_hears { from_agent(frame) } else { 0 };
    second.push(Party::Agent, &frame[..len]);
    if !caller_hears {
        frame[..len].fill(0);
        len = 0;
        if let Some(ringing) = ringing {
            ringing.fill(frame);
            len = frame.len();
        }
    }
    len.max(second.mix_into(Party::Caller, frame))
}

/// The queue was emptied of what these marks stood behind. The Twilio dialect echoes them; ours says once how much was heard.
fn tell_cleared(stream: &mut Stream, names: &[String], heard_ms: u64) {
    if stream.gives_cleared_marks_back() {
        for name in names {
            stream.tell(&Tell::Mark { name, heard_ms });
        }
    }
    stream.tell(&Tell::Cleared { heard_ms });
}

/// Queues an event, or counts it when too many wait.
fn push(events: &mut VecDeque<Event>, budget: &mut EventBudget, event: Event) {
    if events.len() < EVENTS_MAX {
        events.push_back(event);
    } else {
        budget.refused += 1;
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
