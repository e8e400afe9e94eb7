//! Client INVITE transaction (RFC 3261 §17.1.1, RFC 6026 §7.2).
//!
//! ```text
//!   Calling ──1xx──▶ Proceeding ──2xx──▶ Accepted ──M──▶ over
//!      │ A: resend        └────300-699─▶ Completed ─D──▶ over
//!      └ B: timed out       (ACK)
//! ```
//! The ACK of a 2xx is not part of it: the endpoint sends that one.

use std::time::Instant;

use super::{Backoff, Due, OnResponse};
use crate::timer::Timers;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Sent; nothing heard.
    Calling { a: Option<Backoff>, b: Instant },
    /// A provisional response came. `give_up` is set once we have cancelled (§9.1: 64·T1 later it counts as ended).
    Proceeding { give_up: Option<Instant> },
    /// Refused and acknowledged; D absorbs retransmissions.
    Completed { d: Instant },
    /// Answered; M lets further 2xx (retransmissions and forks) through.
    Accepted { m: Instant },
}

/// Our INVITE.
#[derive(Debug)]
pub(crate) struct InviteClient {
    state: State,
    reliable: bool,
    timers: Timers,
}

impl InviteClient {
    pub(crate) fn new(reliable: bool, timers: Timers, now: Instant) -> InviteClient {
        let a = (!reliable).then(|| Backoff::new(timers.a(), None, now));
        InviteClient { state: State::Calling { a, b: now + timers.b() }, reliable, timers }
    }

    /// Nothing has been heard.
    pub(crate) fn is_calling(&self) -> bool {
        matches!(self.state, State::Calling { .. })
    }

    /// Whether CANCEL may be sent: only after a provisional response (§9.1), and once.
    pub(crate) fn can_cancel(&self) -> bool {
        self.state == State::Proceeding { give_up: None }
    }

    /// A CANCEL has left: the final response must come within 64·T1.
    pub(crate) fn cancelled(&mut self, now: Instant) {
        if let State::Proceeding { give_up } = &mut self.state {
            *give_up = Some(now + self.timers.t1_64());
        }
    }

    /// The final response is waited for until then at the longest: whoever would give up by hand is not there.
    pub(crate) fn limit(&mut self, until: Instant) {
        if let State::Proceeding { give_up } = &mut self.state {
            *give_up = Some(give_up.map_or(until, |at| at.min(until)));
        }
    }

    pub(crate) fn handle_response(&mut self, status: u16, now: Instant) -> OnResponse {
        match (self.state, status) {
            (State::Calling { .. }, 100..=199) => {
                self.state = State::Proceeding { give_up: None };
                OnResponse::Pass
            }
            (State::Proceeding { .. }, 100..=199) => OnResponse::Pass,
            (State::Calling { .. } | State::Proceeding { .. }, 200..=299) => {
                self.state = State::Accepted { m: now + self.timers.m() };
                OnResponse::Pass
            }
            (State::Accepted { .. }, 200..=299) => OnResponse::Pass,
            (State::Calling { .. } | State::Proceeding { .. }, _) => {
                self.state = State::Completed { d: now + self.timers.d(self.reliable) };
                OnResponse::AckAndPass
            }
            (State::Completed { .. }, 300..) => OnResponse::Ack,
            (State::Completed { .. } | State::Accepted { .. }, _) => OnResponse::Absorb,
        }
    }

    pub(crate) fn awaits_response(&self) -> bool {
        matches!(self.state, State::Calling { .. } | State::Proceeding { .. })
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Calling { a, b } => Some(a.map_or(b, |a| a.next.min(b))),
            State::Proceeding { give_up } => give_up,
            State::Completed { d } => Some(d),
            State::Accepted { m } => Some(m),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Due {
        match &mut self.state {
            State::Calling { b, .. } if now >= *b => Due::TimedOut,
            State::Calling { a: Some(a), .. } => a.fire(now),
            State::Proceeding { give_up: Some(at) } if now >= *at => Due::TimedOut,
            State::Completed { d: at } | State::Accepted { m: at } if now >= *at => Due::Done,
            _ => Due::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::test_time::start;

    fn machine(reliable: bool) -> (InviteClient, Instant) {
        let now = start();
        (InviteClient::new(reliable, Timers::default(), now), now)
    }

    #[test]
    fn invite_is_sent_seven_times_in_32_seconds_and_then_given_up() {
        let (mut invite, now) = machine(false);
        let mut resends = Vec::new();
        loop {
            let at = invite.deadline().unwrap();
            match invite.handle_timeout(at) {
                Due::Resend => resends.push((at - now).as_millis()),
                Due::TimedOut => break assert_eq!(at - now, Duration::from_secs(32)),
                due => panic!("{due:?}"),
            }
        }
        assert_eq!(resends, [500, 1500, 3500, 7500, 15500, 31500]);
    }

    #[test]
    fn reliable_transport_is_not_helped() {
        let (mut invite, now) = machine(true);
        assert_eq!(invite.deadline(), Some(now + Duration::from_secs(32)));
        assert_eq!(invite.handle_timeout(now + Duration::from_secs(31)), Due::Nothing);
    }

    #[test]
    fn refusal_is_acknowledged_each_time_and_passed_once() {
        let (mut invite, now) = machine(false);
        assert_eq!(invite.handle_response(180, now), OnResponse::Pass);
        assert_eq!(invite.deadline(), None, "ringing has no limit of its own");
        assert_eq!(invite.handle_response(486, now), OnResponse::AckAndPass);
        assert_eq!(invite.handle_response(486, now), OnResponse::Ack);
        assert_eq!(invite.handle_response(180, now), OnResponse::Absorb);
        assert_eq!(invite.handle_timeout(now + Duration::from_secs(32)), Due::Done);
    }

    #[test]
    fn further_2xx_pass_until_m_fires() {
        let (mut invite, now) = machine(true);
        assert_eq!(invite.handle_response(200, now), OnResponse::Pass);
        assert_eq!(invite.handle_response(200, now), OnResponse::Pass);
        assert_eq!(invite.handle_response(404, now), OnResponse::Absorb);
        assert_eq!(invite.handle_timeout(now + Duration::from_secs(32)), Due::Done);
    }

    #[test]
    fn cancelled_invite_without_a_final_response_times_out() {
        let (mut invite, now) = machine(false);
        assert!(!invite.can_cancel());
        invite.handle_response(180, now);
        assert!(invite.can_cancel());
        invite.cancelled(now);
        assert_eq!(invite.handle_timeout(now + Duration::from_secs(32)), Due::TimedOut);
    }
}
