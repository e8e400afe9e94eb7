//! What a session hears: the caller, the second leg, their keys and their speech, on the way to the agent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tandem_audio::format::{MAX_PACKET_SAMPLES, Ptime};
use tandem_audio::vad::VadEvent;

use super::Session;
use super::agent::tell_cleared;
use super::bridge::Bridge;
use super::digits::Source;
use super::playout::Playout;
use super::second::{Party, Role, SecondLeg};
use super::speech::{BargeIn, Due, Gate};
use crate::leg::agent::Agent;
use crate::leg::event::{Event, Heard};
use crate::leg::rtp::RtpLeg;
use crate::leg::stream::Tell;

/// While the caller has said something in so long, his packets drive what the agent hears of the second leg.
const CALLER_DRIVES: Duration = Duration::from_millis(60);

impl Session {
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
    pub(super) fn hear<T>(
        &mut self,
        now: Instant,
        run: impl FnOnce(&mut RtpLeg, &mut dyn FnMut(Heard<'_>)) -> T,
    ) -> T {
        self.playout.set_time(now);
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
    pub(super) fn hear_second(
        &mut self,
        now: Instant,
        run: impl FnOnce(&mut RtpLeg, &mut dyn FnMut(Heard<'_>)),
    ) {
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
    pub(super) fn hear_pause(&mut self, now: Instant) {
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
        let unsent_ms = self.unsent_ms();
        let Self {
            agent,
            playout,
            speech,
            is_early,
            hangup_when_dry,
            wants_clear,
            is_streamed,
            unsent_ms: kept_unsent_ms,
            ..
        } = self;
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
                playout.take_back(unsent_ms);
                *kept_unsent_ms = 0;
                tell_cleared(stream, &names, playout.heard_ms());
                // Its leg may be taken out at this moment.
                *wants_clear = *is_streamed;
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
    pub(super) fn handle_second_change(&mut self) {
        let speaks = self.bridge.as_ref().and_then(Bridge::is_speech).unwrap_or_default();
        self.tell_speech(speaks);
        if let Some(gate) = self.speech.as_mut().and_then(|speech| speech.gate_mut()) {
            // What was kept is older than what the agent hears next.
            gate.begin_anew(speaks);
        }
        self.set_ringing();
    }

    /// Silence counts: the call is up, nobody holds it, its connection is live, and caller and agent talk with nobody else.
    pub(super) fn is_watched(&self) -> bool {
        let only_listens = |second: &SecondLeg| matches!(second.role(), Role::Whisper | Role::Listen);
        let is_alone = self.second.as_deref().is_none_or(only_listens);
        let is_there = !self.is_streamed || self.is_line_live;
        self.started.is_some() && !self.is_early && !self.on_hold && !self.ended && is_alone && is_there
    }

    pub(super) fn handle_speech_timeout(&mut self, now: Instant) {
        let is_watched = self.is_watched();
        let Some(speech) = &mut self.speech else { return };
        match speech.handle_timeout(is_watched, now) {
            Some(Due::Resume) => self.playout.resume(),
            Some(Due::Idle(idle)) => self.push_event(Event::Idle { idle_ms: idle.as_millis() as u64 }),
            None => {}
        }
    }

    /// A key that was pressed and released, once, and which way it came.
    fn poll_digit(&mut self) -> Option<(char, u32, Source)> {
        if let Some((digit, duration_ms)) = self.rtp.poll_digit() {
            return Some((digit, duration_ms, Source::Rtp));
        }
        let key = self.bridge.as_mut()?.poll_key()?;
        Some((key.digit, key.duration_ms, Source::Inband))
    }

    pub(super) fn handle_digits(&mut self, now: Instant) {
        while let Some((digit, duration_ms, source)) = self.poll_digit() {
            self.handle_digit(digit, duration_ms, source, now);
        }
    }

    /// A key was pressed; it is told unless it is the double of one that came another way.
    pub(super) fn handle_digit(&mut self, digit: char, duration_ms: u32, source: Source, now: Instant) {
        if !self.digits.is_new(digit, source, now) {
            return;
        }
        if let Some(stream) = self.agent.stream_mut() {
            stream.tell(&Tell::Dtmf { digit, duration_ms });
        }
        if self.budget.take(now) {
            self.push_event(Event::Dtmf { digit, duration_ms });
        }
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
