//! The states of one call and its timers.
//!
//! ```text
//!   Initializing ──▶ Ringing ──▶ Connected ⇄ OnHold ──▶ Ending ──▶ Ended      it was answered
//!        │              │            (ACK)                  └────▶ Failed     it never was
//!        └──────────────┴── ring timer ──▶ Ending
//!
//!   Queued ──▶ Initializing ──▶ Dialing ──▶ Ringing ──▶ Connected …          a call of ours
//!      └ queue timer       set-up timer   └─ ring timer, from the INVITE
//!
//!                                    duration timer ──▶ Ending ── grace timer ──▶ terminal
//! ```
//!
//! Sans-IO: `now` comes in, a deadline goes out. An answered call is Connected only with its ACK; the duration is
//! counted from the answer, when the caller's bill begins.

use std::time::{Duration, Instant};

use crate::config::Limits;

/// How long an ending call waits for its BYE to be answered and its engine to report, before it is closed without.
/// Timer F of a lost BYE runs 32 s; nobody needs the call for so long.
const ENDING_GRACE: Duration = Duration::from_secs(5);
/// How long a call of ours may wait for its turn: who queues more than a trunk can place in an hour wants to know.
pub const QUEUE_WAIT_MAX: Duration = Duration::from_secs(3_600);

/// Where a call is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// A call of ours waits for its turn.
    Queued,
    /// Admission, offer, engine.
    Initializing,
    /// Our INVITE has left; nobody rings yet.
    Dialing,
    /// The media session is open; the agent is being reached, or the ACK is awaited.
    Ringing,
    /// Talking.
    Connected,
    /// The caller holds us.
    OnHold,
    /// BYE or refusal sent or received; last words with peer and engine.
    Ending,
    /// Over, after an answer.
    Ended,
    /// Over, without an answer.
    Failed,
}

impl State {
    /// All states, in the order of a life.
    pub const ALL: [Self; 9] = [
        Self::Queued,
        Self::Initializing,
        Self::Dialing,
        Self::Ringing,
        Self::Connected,
        Self::OnHold,
        Self::Ending,
        Self::Ended,
        Self::Failed,
    ];

    /// The word in API, logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Initializing => "initializing",
            Self::Dialing => "dialing",
            Self::Ringing => "ringing",
            Self::Connected => "connected",
            Self::OnHold => "on_hold",
            Self::Ending => "ending",
            Self::Ended => "ended",
            Self::Failed => "failed",
        }
    }

    /// Whether nothing can happen any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Ended | Self::Failed)
    }
}

/// Which timer ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// Its turn did not come.
    Queue,
    /// The agent was not there in time.
    Ring,
    /// The call has lasted as long as it may.
    Duration,
    /// Peer or engine have not said their last word; close without.
    Ending,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Queued { give_up: Instant },
    Initializing { give_up: Instant },
    Dialing { give_up: Instant },
    Ringing { give_up: Instant },
    Answered { until: Instant },
    Connected { until: Instant },
    OnHold { until: Instant },
    Ending { answered: bool, give_up: Instant },
    Ended,
    Failed,
}

/// The life of one call.
#[derive(Debug, Clone)]
pub struct Life {
    phase: Phase,
    duration_max: Duration,
}

impl Life {
    /// An INVITE has come.
    pub fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            phase: Phase::Initializing { give_up: now + limits.ring_max },
            duration_max: limits.call_duration_max,
        }
    }

    /// A call of ours, which waits for its turn. It may last so long, if that is less than the node's own limit.
    pub fn queued(limits: &Limits, duration_max: Option<Duration>, now: Instant) -> Self {
        let node = limits.call_duration_max;
        Self {
            phase: Phase::Queued { give_up: now + QUEUE_WAIT_MAX },
            duration_max: duration_max.map_or(node, |wanted| wanted.min(node)),
        }
    }

    /// Its turn has come: an engine must be there within `setup_max`.
    pub fn begin(&mut self, setup_max: Duration, now: Instant) {
        if let Phase::Queued { .. } = self.phase {
            self.phase = Phase::Initializing { give_up: now + setup_max };
        }
    }

    /// Our INVITE leaves, the first one or that to where the first one was sent: it may ring so long.
    pub fn dial(&mut self, ring_max: Duration, now: Instant) {
        match self.phase {
            Phase::Initializing { .. } => self.phase = Phase::Dialing { give_up: now + ring_max },
            // After a redirection the clock goes on: the caller of our API waits for one call.
            Phase::Ringing { give_up } => self.phase = Phase::Dialing { give_up },
            _ => {}
        }
    }

    /// Where the call is.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Queued { .. } => State::Queued,
            Phase::Initializing { .. } => State::Initializing,
            Phase::Dialing { .. } => State::Dialing,
            Phase::Ringing { .. } | Phase::Answered { .. } => State::Ringing,
            Phase::Connected { .. } => State::Connected,
            Phase::OnHold { .. } => State::OnHold,
            Phase::Ending { .. } => State::Ending,
            Phase::Ended => State::Ended,
            Phase::Failed => State::Failed,
        }
    }

    /// Whether our 200 has not left yet, or theirs not come.
    pub fn is_before_answer(&self) -> bool {
        use Phase::{Dialing, Initializing, Queued, Ringing};
        matches!(self.phase, Queued { .. } | Initializing { .. } | Dialing { .. } | Ringing { .. })
    }

    /// Whether the end has begun, or is over.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. } | Phase::Ended | Phase::Failed)
    }

    /// The media session is open; or the callee's phone rings. The ring timer goes on: it counts from the INVITE.
    pub fn ring(&mut self) {
        if let Phase::Initializing { give_up } | Phase::Dialing { give_up } = self.phase {
            self.phase = Phase::Ringing { give_up };
        }
    }

    /// The agent is heard before the answer: it may ring for longer.
    pub fn ring_until(&mut self, until: Instant) {
        if let Phase::Ringing { give_up } = &mut self.phase {
            *give_up = until.max(*give_up);
        }
    }

    /// What it waits for now must be there by then, sooner or later than it was.
    pub fn expect(&mut self, by: Instant) {
        if let Phase::Initializing { give_up } | Phase::Dialing { give_up } | Phase::Ringing { give_up } =
            &mut self.phase
        {
            *give_up = by;
        }
    }

    /// Our 200 leaves.
    pub fn answer(&mut self, now: Instant) {
        if self.is_before_answer() {
            self.phase = Phase::Answered { until: now + self.duration_max };
        }
    }

    /// The ACK came.
    pub fn acknowledge(&mut self) {
        if let Phase::Answered { until } = self.phase {
            self.phase = Phase::Connected { until };
        }
    }

    /// The caller holds us, or talks again.
    pub fn hold(&mut self, held: bool) {
        self.phase = match (self.phase, held) {
            (Phase::Connected { until }, true) => Phase::OnHold { until },
            (Phase::OnHold { until }, false) => Phase::Connected { until },
            (phase, _) => phase,
        };
    }

    /// The end begins.
    pub fn end(&mut self, now: Instant) {
        if !self.is_ending() {
            let answered = !self.is_before_answer();
            self.phase = Phase::Ending { answered, give_up: now + ENDING_GRACE };
        }
    }

    /// Everybody has said their last word.
    pub fn close(&mut self) {
        if let Phase::Ending { answered, .. } = self.phase {
            self.phase = if answered { Phase::Ended } else { Phase::Failed };
        }
    }

    /// When [`Life::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Queued { give_up }
            | Phase::Initializing { give_up }
            | Phase::Dialing { give_up }
            | Phase::Ringing { give_up } => Some(give_up),
            Phase::Answered { until } | Phase::Connected { until } | Phase::OnHold { until } => Some(until),
            Phase::Ending { give_up, .. } => Some(give_up),
            Phase::Ended | Phase::Failed => None,
        }
    }

    /// Which timer ran out, if one did. The state is the caller's to change.
    pub fn handle_timeout(&self, now: Instant) -> Option<Expired> {
        if self.poll_timeout()? > now {
            return None;
        }
        match self.phase {
            Phase::Queued { .. } => Some(Expired::Queue),
            Phase::Initializing { .. } | Phase::Dialing { .. } | Phase::Ringing { .. } => Some(Expired::Ring),
            Phase::Answered { .. } | Phase::Connected { .. } | Phase::OnHold { .. } => {
                Some(Expired::Duration)
            }
            Phase::Ending { .. } => Some(Expired::Ending),
            Phase::Ended | Phase::Failed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(now: Instant) -> Life {
        let limits = Limits {
            ring_max: Duration::from_secs(10),
            call_duration_max: Duration::from_secs(60),
            ..Limits::default()
        };
        Life::new(&limits, now)
    }

    #[test]
    fn answered_call_goes_through_its_states_and_ends() {
        let now = Instant::now();
        let mut life = life(now);
        let mut seen = vec![life.state()];
        life.ring();
        seen.push(life.state());
        life.answer(now);
        life.acknowledge();
        seen.push(life.state());
        life.hold(true);
        seen.push(life.state());
        life.hold(false);
        seen.push(life.state());
        life.end(now);
        seen.push(life.state());
        life.close();
        seen.push(life.state());
        use State::*;
        assert_eq!(seen, [Initializing, Ringing, Connected, OnHold, Connected, Ending, Ended]);
        assert_eq!(life.poll_timeout(), None);
    }

    #[test]
    fn unanswered_call_fails() {
        let now = Instant::now();
        let mut life = life(now);
        life.ring();
        life.end(now);
        life.close();
        assert_eq!(life.state(), State::Failed);
    }

    #[test]
    fn ring_timer_counts_from_the_invite_not_from_the_ringing() {
        let now = Instant::now();
        let mut life = life(now);
        life.ring();
        assert_eq!(life.handle_timeout(now + Duration::from_millis(9_999)), None);
        assert_eq!(life.handle_timeout(now + Duration::from_secs(10)), Some(Expired::Ring));
    }

    #[test]
    fn duration_counts_from_the_answer_and_goes_on_during_hold() {
        let now = Instant::now();
        let mut life = life(now);
        life.ring();
        life.answer(now + Duration::from_secs(5));
        assert_eq!(life.poll_timeout(), Some(now + Duration::from_secs(65)));
        life.acknowledge();
        life.hold(true);
        assert_eq!(life.handle_timeout(now + Duration::from_secs(65)), Some(Expired::Duration));
    }

    #[test]
    fn call_of_ours_waits_dials_rings_and_talks_no_longer_than_it_may() {
        let now = Instant::now();
        let limits = Limits { call_duration_max: Duration::from_secs(60), ..Limits::default() };
        let mut life = Life::queued(&limits, Some(Duration::from_secs(30)), now);
        let mut seen = vec![life.state()];
        assert_eq!(life.handle_timeout(now + QUEUE_WAIT_MAX), Some(Expired::Queue));
        life.begin(Duration::from_secs(5), now);
        seen.push(life.state());
        life.dial(Duration::from_secs(20), now + Duration::from_secs(1));
        seen.push(life.state());
        life.ring();
        seen.push(life.state());
        assert_eq!(life.poll_timeout(), Some(now + Duration::from_secs(21)));
        life.answer(now + Duration::from_secs(10));
        life.acknowledge();
        use State::*;
        assert_eq!(seen, [Queued, Initializing, Dialing, Ringing]);
        assert_eq!(life.poll_timeout(), Some(now + Duration::from_secs(40)));
    }

    #[test]
    fn late_events_cannot_revive_an_ending_call() {
        let now = Instant::now();
        let mut life = life(now);
        life.end(now);
        life.ring();
        life.answer(now);
        life.acknowledge();
        life.hold(true);
        assert_eq!(life.state(), State::Ending);
        assert_eq!(life.handle_timeout(now + ENDING_GRACE), Some(Expired::Ending));
    }
}
