//! What the control plane wants of a session: start, tell, change, add and remove a second leg, close.

use std::time::Instant;

use tandem_audio::tone::{Cadence, ProgressTone};

use super::digits::Source;
use super::playout::PtimeClock;
use super::second::{Common, Role, SecondLeg};
use super::{Notice, Session, playout_rate};
use crate::leg::event::{EndReason, Event, Stats};
use crate::leg::rtp::RtpParameters;
use crate::leg::stream::Tell;

impl Session {
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
        if let (Notice::Transfer { .. }, Some(speech)) = (notice, &mut self.speech) {
            // The agent has something to say, or others speak.
            speech.attend(now);
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
        let common = Common {
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

    pub(super) fn set_ringing(&mut self) {
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
        if let Some(provider) = &mut self.provider {
            provider.close();
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
            EndReason::StreamStopped => "caller",
            EndReason::StreamLost => "timeout",
            EndReason::Orphaned | EndReason::EngineFault | EndReason::StreamFault => "error",
            EndReason::Shutdown => "shutdown",
        });
        // The last event must not be lost to a full queue.
        self.events.push_back(Event::Ended { reason, stats });
    }
}
