//! Server INVITE transaction (RFC 3261 §17.2.1, RFC 6026 §7.1).
//!
//! ```text
//!   Proceeding ──2xx──────▶ Accepted ──L──▶ over        (2xx are repeated by the dialog until the ACK)
//!       └──────300-699────▶ Completed ─ACK─▶ Confirmed ──I──▶ over
//!                             │ G: resend
//!                             └ H: no ACK
//! ```

use std::time::Instant;

use super::{Backoff, Due};
use crate::timer::Timers;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No final response yet: the user decides how long.
    Proceeding,
    /// Refused; the ACK is awaited.
    Completed { g: Option<Backoff>, h: Instant },
    /// Refused and acknowledged; I absorbs retransmitted ACKs.
    Confirmed { i: Instant },
    /// Answered; L absorbs retransmitted INVITEs.
    Accepted { l: Instant },
}

/// What to do with an ACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnAck {
    /// It acknowledges a 2xx, so it is the dialog's.
    Pass,
    /// It is the transaction's own.
    Absorb,
}

/// Their INVITE.
#[derive(Debug)]
pub(crate) struct InviteServer {
    state: State,
    reliable: bool,
    timers: Timers,
}

impl InviteServer {
    pub(crate) const fn new(reliable: bool, timers: Timers) -> InviteServer {
        InviteServer { state: State::Proceeding, reliable, timers }
    }

    /// Whether no final response has been sent.
    pub(crate) fn is_pending(&self) -> bool {
        self.state == State::Proceeding
    }

    /// The INVITE again: whether to send the last response again.
    pub(crate) fn handle_retransmission(&self) -> bool {
        matches!(self.state, State::Proceeding | State::Completed { .. })
    }

    pub(crate) fn handle_ack(&mut self, now: Instant) -> OnAck {
        match self.state {
            State::Completed { .. } => {
                self.state = State::Confirmed { i: now + self.timers.i(self.reliable) };
                OnAck::Absorb
            }
            State::Accepted { .. } => OnAck::Pass,
            State::Proceeding | State::Confirmed { .. } => OnAck::Absorb,
        }
    }

    /// A response is about to leave.
    pub(crate) fn respond(&mut self, status: u16, now: Instant) {
        debug_assert!(self.is_pending(), "the endpoint answers a transaction once");
        self.state = match status {
            ..=199 => State::Proceeding,
            200..=299 => State::Accepted { l: now + self.timers.l() },
            _ => State::Completed {
                g: (!self.reliable).then(|| Backoff::new(self.timers.g(), Some(self.timers.t2), now)),
                h: now + self.timers.h(),
            },
        };
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Proceeding => None,
            State::Completed { g, h } => Some(g.map_or(h, |g| g.next.min(h))),
            State::Confirmed { i } => Some(i),
            State::Accepted { l } => Some(l),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Due {
        match &mut self.state {
            State::Completed { h, .. } if now >= *h => Due::TimedOut,
            State::Completed { g: Some(g), .. } => g.fire(now),
            State::Confirmed { i: at } | State::Accepted { l: at } if now >= *at => Due::Done,
            _ => Due::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::test_time::start;

    #[test]
    fn refusal_is_repeated_until_the_ack() {
        let now = start();
        let mut invite = InviteServer::new(false, Timers::default());
        assert!(invite.handle_retransmission());
        invite.respond(180, now);
        assert_eq!(invite.deadline(), None);
        invite.respond(486, now);
        assert_eq!(invite.handle_timeout(now + Duration::from_millis(500)), Due::Resend);
        assert_eq!(invite.deadline(), Some(now + Duration::from_millis(1500)));
        assert_eq!(invite.handle_ack(now), OnAck::Absorb);
        assert!(!invite.handle_retransmission());
        assert_eq!(invite.handle_timeout(now + Duration::from_secs(5)), Due::Done);
    }

    #[test]
    fn refusal_without_ack_ends_by_h() {
        let now = start();
        let mut invite = InviteServer::new(true, Timers::default());
        invite.respond(486, now);
        assert_eq!(invite.deadline(), Some(now + Duration::from_secs(32)));
        assert_eq!(invite.handle_timeout(now + Duration::from_secs(32)), Due::TimedOut);
    }

    #[test]
    fn answered_invite_absorbs_retransmissions_and_passes_the_ack() {
        let now = start();
        let mut invite = InviteServer::new(false, Timers::default());
        invite.respond(200, now);
        assert!(!invite.handle_retransmission());
        assert_eq!(invite.handle_ack(now), OnAck::Pass);
        assert_eq!(invite.handle_timeout(now + Duration::from_secs(32)), Due::Done);
    }
}
