//! A second RTP leg in a caller's session: whom the agent consults, a supervisor who whispers or listens in, or the
//! other side of a bridged call.
//!
//! ```text
//!                       caller      agent       second          who hears whom is a table: [`Role::hears`]
//!   Bridge              ◀───────────────────────▶
//!   Conference          ◀──────────▶◀───────────▶ (all three)
//!   Consult                         ◀───────────▶              the caller hears a ringing tone, or nothing
//!   Whisper             ◀──────────▶◀───────────▶ but the caller does not hear the second leg
//!   Listen              ◀──────────▶ both ─────▶
//! ```
//!
//! The leg has a ptime clock and an SSRC of its own. What goes to it waits in a [`Paced`] queue for each voice; what comes
//! from it waits in one for the caller and one for the agent, whose frames are driven by the caller's packets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_audio::format::SampleRate;
use tandem_rtp::dtls::Identity;
use tandem_rtp::report::WallClock;

use super::bridge::Bridge;
use super::joining::MovingLeg;
use super::media_patience;
use super::paced::Paced;
use super::playout::PtimeClock;
use crate::leg::event::{EndReason, Heard, Stats};
use crate::leg::rtp::{RtpLeg, RtpParameters};

/// What the second leg is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Caller and second leg talk; the agent neither hears nor is heard, and what it says waits.
    Bridge,
    /// Everybody hears everybody.
    Conference,
    /// Agent and second leg talk; the caller hears a ringing tone, or nothing.
    Consult {
        /// The caller hears the tone.
        rings: bool,
    },
    /// The second leg hears both and is heard by the agent alone.
    Whisper,
    /// The second leg hears both and is heard by nobody.
    Listen,
}

/// One of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// Of the session's first RTP leg.
    Caller,
    /// Of the agent leg.
    Agent,
    /// Of the second RTP leg.
    Second,
}

impl Role {
    /// Whether `who` hears `whom`.
    pub const fn hears(self, who: Party, whom: Party) -> bool {
        use Party::{Agent, Caller, Second};
        match self {
            Self::Bridge => matches!((who, whom), (Caller, Second) | (Second, Caller)),
            Self::Conference => !matches!((who, whom), (Caller, Caller) | (Agent, Agent) | (Second, Second)),
            Self::Consult { .. } => matches!((who, whom), (Agent, Second) | (Second, Agent)),
            Self::Whisper => {
                matches!((who, whom), (Caller, Agent) | (Agent, Caller | Second) | (Second, Caller | Agent))
            }
            Self::Listen => {
                matches!((who, whom), (Caller, Agent) | (Agent, Caller) | (Second, Caller | Agent))
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct SecondLeg {
    role: Role,
    rtp: RtpLeg,
    /// `None` while the codec is not known.
    bridge: Option<Bridge>,
    rate: SampleRate,
    clock: PtimeClock,
    /// Towards this leg, by voice.
    caller: Paced,
    agent: Paced,
    /// From this leg.
    to_caller: Paced,
    to_agent: Paced,
    /// No RTP for so long is a loss.
    media_timeout: Duration,
    /// Its silence counts from here at the earliest: answered, or updated. `None`: it rings.
    silence_from: Option<Instant>,
    /// When its silence is looked at again.
    media_deadline: Option<Instant>,
    failure_told: bool,
}

/// What it has in common with its session.
#[derive(Debug)]
pub struct Common {
    /// For a handshake.
    pub identity: Option<Arc<Identity>>,
    /// For reports.
    pub wall: WallClock,
    /// Of the session's agent: the sound is mixed at it.
    pub rate: SampleRate,
    /// As for the caller.
    pub media_timeout: Duration,
}

impl SecondLeg {
    /// A leg that sends its first packet at `first_packet`.
    pub fn new(
        parameters: RtpParameters,
        role: Role,
        common: Common,
        seed: [u32; 3],
        first_packet: Instant,
    ) -> Self {
        let Common { identity, wall, rate, media_timeout } = common;
        let clock = PtimeClock::new(first_packet, parameters.ptime);
        let rtp = RtpLeg::new(parameters, identity, seed, wall);
        let mut this = Self::with(MovingLeg { rtp, bridge: None, clock }, role, rate, media_timeout);
        this.build_bridge();
        this.expect_media(first_packet);
        this.rtp.begin(first_packet);
        this
    }

    /// The leg of another session, whose stream goes on.
    pub fn moved(
        leg: MovingLeg,
        role: Role,
        rate: SampleRate,
        media_timeout: Duration,
        now: Instant,
    ) -> Self {
        let mut this = Self::with(leg, role, rate, media_timeout);
        match &mut this.bridge {
            // Codecs that remember what was said go on from there.
            Some(bridge) if bridge.rate() == rate => bridge.cease_listening(),
            _ => this.build_bridge(),
        }
        this.expect_media(now);
        this
    }

    fn with(leg: MovingLeg, role: Role, rate: SampleRate, media_timeout: Duration) -> Self {
        let MovingLeg { rtp, bridge, clock } = leg;
        Self {
            role,
            bridge,
            rate,
            clock,
            rtp,
            caller: Paced::new(rate),
            agent: Paced::new(rate),
            to_caller: Paced::new(rate),
            to_agent: Paced::new(rate),
            media_timeout,
            silence_from: None,
            media_deadline: None,
            failure_told: false,
        }
    }

    fn build_bridge(&mut self) {
        let parameters = self.rtp.parameters();
        let Some(codec) = parameters.codec else { return };
        match &mut self.bridge {
            Some(bridge) if bridge.rate() == self.rate => {
                bridge.update(codec, parameters.ptime, parameters.sound);
            }
            _ => {
                let bridge = Bridge::new(codec, parameters.ptime, self.rate, false, parameters.sound);
                self.bridge = Some(bridge);
            }
        }
    }

    /// What it is there for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its RTP.
    pub fn rtp(&self) -> &RtpLeg {
        &self.rtp
    }

    /// Another role from now on; nothing of the old one is heard in it.
    pub fn set_role(&mut self, role: Role) {
        if std::mem::replace(&mut self.role, role) != role {
            [&mut self.caller, &mut self.agent, &mut self.to_caller, &mut self.to_agent]
                .into_iter()
                .for_each(Paced::clear);
        }
    }

    /// A re-INVITE of this leg. `first_packet` is when its next packet leaves if the ptime is another.
    pub fn update(&mut self, parameters: RtpParameters, first_packet: Instant) {
        let before = *self.rtp.parameters();
        self.rtp.update(parameters);
        if (before.rtcp, before.codec, before.secure)
            != (parameters.rtcp, parameters.codec, parameters.secure)
        {
            self.rtp.begin(first_packet);
        }
        if before.ptime != parameters.ptime {
            self.clock = PtimeClock::new(first_packet, parameters.ptime);
        }
        if before.codec != parameters.codec
            || before.ptime != parameters.ptime
            || before.sound != parameters.sound
        {
            self.build_bridge();
        }
        self.expect_media(first_packet);
    }

    /// Media are owed from now on, if it is known which.
    fn expect_media(&mut self, now: Instant) {
        if self.rtp.parameters().codec.is_some() {
            self.silence_from = Some(now);
            self.media_deadline = self.next_media_deadline();
            self.failure_told = false;
        }
    }

    /// When it has been silent for too long, by what was heard until now.
    fn next_media_deadline(&self) -> Option<Instant> {
        let since = self.silence_from?;
        let last = self.rtp.last_arrival().map_or(since, |last| last.max(since));
        Some(last + media_patience(self.rtp.direction(), self.media_timeout))
    }

    /// Whether it is lost: nothing was heard for too long, or there is no way to it. Said at once, and again after each media timeout for
    /// as long as nobody has removed it: a controller that was away must not miss it.
    pub fn poll_loss(&mut self, now: Instant) -> Option<EndReason> {
        let failure = self.rtp.failure().map(EndReason::Transport);
        let is_new = failure.is_some() && !std::mem::replace(&mut self.failure_told, failure.is_some());
        if !is_new {
            if self.media_deadline? > now {
                return None;
            }
            let next = self.next_media_deadline().filter(|next| *next > now && failure.is_none());
            if next.is_some() {
                self.media_deadline = next;
                return None;
            }
        }
        self.media_deadline = Some(now + self.media_timeout);
        Some(failure.unwrap_or(EndReason::MediaTimeout))
    }

    /// The session's agent has another rate (the echo follows the caller's codec).
    pub fn set_rate(&mut self, rate: SampleRate) {
        if std::mem::replace(&mut self.rate, rate) != rate {
            self.caller = Paced::new(rate);
            self.agent = Paced::new(rate);
            self.to_caller = Paced::new(rate);
            self.to_agent = Paced::new(rate);
            self.build_bridge();
        }
    }

    /// Runs a method of its RTP leg; what is heard waits for the caller and for the agent.
    pub fn hear<T>(&mut self, run: impl FnOnce(&mut RtpLeg, &mut dyn FnMut(Heard<'_>)) -> T) -> T {
        let Self { role, rtp, bridge, to_caller, to_agent, .. } = self;
        let accepts = rtp.direction().accepts();
        run(rtp, &mut |heard| {
            let (true, Some(bridge)) = (accepts, bridge.as_mut()) else { return };
            bridge.up(heard, |samples| {
                if role.hears(Party::Caller, Party::Second) {
                    to_caller.push(samples);
                }
                if role.hears(Party::Agent, Party::Second) {
                    to_agent.push(samples);
                }
            });
        })
    }

    /// Takes what the caller said, or the agent.
    pub fn push(&mut self, whose: Party, samples: &[i16]) {
        if self.role.hears(Party::Second, whose) {
            match whose {
                Party::Caller => self.caller.push(samples),
                Party::Agent => self.agent.push(samples),
                Party::Second => {}
            }
        }
    }

    /// Adds its sound to a frame for the caller, or the agent. Says how many samples were added.
    pub fn mix_into(&mut self, who: Party, frame: &mut [i16]) -> usize {
        match who {
            Party::Caller => self.to_caller.mix_into(frame),
            Party::Agent => self.to_agent.mix_into(frame),
            Party::Second => 0,
        }
    }

    /// Writes the packet that is due, with where it goes; `None` when none is due.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut [u8]) -> Option<(std::net::SocketAddr, usize)> {
        if let Some(transmit) = self.rtp.poll_secure(out) {
            return Some(transmit);
        }
        loop {
            let lost = self.clock.poll_due(now)?;
            for _ in 0..lost {
                self.rtp.skip();
            }
            let (Some(to), Some(bridge)) = (self.rtp.destination(), self.bridge.as_mut()) else {
                self.rtp.skip();
                continue;
            };
            let Self { caller, agent, .. } = self;
            let written = self.rtp.write_packet(out, |_, payload| {
                bridge.down(payload, |frame| {
                    frame.fill(0);
                    caller.mix_into(frame).max(agent.mix_into(frame))
                })
            });
            if let Some(len) = written {
                return Some((to, len));
            }
        }
    }

    /// Writes the report that is due, with where it goes.
    pub fn poll_report(&mut self, now: Instant, out: &mut [u8]) -> Option<(std::net::SocketAddr, usize)> {
        let next_packet = Some(self.clock.next());
        self.rtp.poll_report(now, next_packet, out)
    }

    /// Writes the leave that RTCP takes; once.
    pub fn poll_goodbye(&mut self, now: Instant, out: &mut [u8]) -> Option<(std::net::SocketAddr, usize)> {
        self.rtp.poll_goodbye(now, out)
    }

    /// A datagram came on the odd port beside its own.
    pub fn handle_report(&mut self, source: std::net::SocketAddr, bytes: &[u8], now: Instant) {
        self.rtp.handle_report(source, bytes, true, now);
    }

    /// Its counters.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats { playout_dropped_ms: self.dropped_ms(), ..Stats::default() };
        self.rtp.count(&mut stats);
        stats
    }

    /// When to come back.
    pub fn poll_timeout(&self) -> Instant {
        let next = self.clock.next();
        [self.rtp.poll_timeout(), self.rtp.poll_report_timeout(), self.media_deadline]
            .into_iter()
            .flatten()
            .fold(next, Instant::min)
    }

    /// A deadline of its RTP leg has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.rtp.poll_timeout().is_some_and(|deadline| deadline <= now) {
            self.hear(|rtp, hear| rtp.handle_timeout(now, hear));
        }
    }

    /// One step of its handshake.
    pub fn handle_handshake(&mut self, now: Instant) {
        self.rtp.handle_handshake(now);
    }

    /// A key that was pressed there.
    pub fn poll_digit(&mut self) -> Option<(char, u32)> {
        self.rtp.poll_digit()
    }

    /// Milliseconds that its queues have dropped.
    pub fn dropped_ms(&self) -> u64 {
        [&self.caller, &self.agent, &self.to_caller, &self.to_agent]
            .iter()
            .map(|queue| queue.dropped_ms())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_hears_himself() {
        let roles =
            [Role::Bridge, Role::Conference, Role::Consult { rings: true }, Role::Whisper, Role::Listen];
        for role in roles {
            for party in [Party::Caller, Party::Agent, Party::Second] {
                assert!(!role.hears(party, party), "{role:?} {party:?}");
            }
        }
    }

    #[test]
    fn caller_never_hears_who_whispers_or_listens() {
        for role in [Role::Whisper, Role::Listen] {
            assert!(!role.hears(Party::Caller, Party::Second));
            assert!(role.hears(Party::Caller, Party::Agent));
            assert!(role.hears(Party::Second, Party::Caller) && role.hears(Party::Second, Party::Agent));
        }
        assert!(Role::Whisper.hears(Party::Agent, Party::Second));
        assert!(!Role::Listen.hears(Party::Agent, Party::Second));
    }
}
