//! Client transaction of any request but INVITE (RFC 3261 §17.1.2).
//!
//! ```text
//!   Trying ──1xx──▶ Proceeding ──200-699──▶ Completed ──K──▶ over
//!      │ E: resend       │ E: resend every T2
//!      └ F: timed out    └ F: timed out
//! ```

use std::time::Instant;

use super::{Backoff, Due, OnResponse};
use crate::timer::Timers;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No final response yet; E resends, F gives up.
    Waiting { e: Option<Backoff>, f: Instant },
    /// K absorbs retransmissions of the final response.
    Completed { k: Instant },
}

/// Our request.
#[derive(Debug)]
pub(crate) struct Client {
    state: State,
    reliable: bool,
    timers: Timers,
}

impl Client {
    pub(crate) fn new(reliable: bool, timers: Timers, now: Instant) -> Client {
        let e = (!reliable).then(|| Backoff::new(timers.e(), Some(timers.t2), now));
        Client { state: State::Waiting { e, f: now + timers.f() }, reliable, timers }
    }

    pub(crate) fn handle_response(&mut self, status: u16, now: Instant) -> OnResponse {
        match &mut self.state {
            State::Waiting { e, .. } if status < 200 => {
                // Proceeding: the peer has it; ask again only every T2.
                if let Some(e) = e {
                    *e = Backoff::new(self.timers.t2, Some(self.timers.t2), now);
                }
                OnResponse::Absorb
            }
            State::Waiting { .. } => {
                self.state = State::Completed { k: now + self.timers.k(self.reliable) };
                OnResponse::Pass
            }
            State::Completed { .. } => OnResponse::Absorb,
        }
    }

    pub(crate) fn awaits_response(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { e, f } => Some(e.map_or(f, |e| e.next.min(f))),
            State::Completed { k } => Some(k),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Due {
        match &mut self.state {
            State::Waiting { f, .. } if now >= *f => Due::TimedOut,
            State::Waiting { e: Some(e), .. } => e.fire(now),
            State::Completed { k } if now >= *k => Due::Done,
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
    fn request_is_resent_with_intervals_up_to_t2_and_given_up_after_32_seconds() {
        let now = start();
        let mut client = Client::new(false, Timers::default(), now);
        let mut resends = Vec::new();
        loop {
            let at = client.deadline().unwrap();
            match client.handle_timeout(at) {
                Due::Resend => resends.push((at - now).as_millis()),
                Due::TimedOut => break assert_eq!(at - now, Duration::from_secs(32)),
                due => panic!("{due:?}"),
            }
        }
        assert_eq!(resends, [500, 1500, 3500, 7500, 11500, 15500, 19500, 23500, 27500, 31500]);
    }

    #[test]
    fn final_response_passes_once_and_k_ends_it() {
        let now = start();
        let mut client = Client::new(false, Timers::default(), now);
        assert_eq!(client.handle_response(200, now), OnResponse::Pass);
        assert_eq!(client.handle_response(200, now), OnResponse::Absorb);
        assert_eq!(client.handle_timeout(now + Duration::from_secs(5)), Due::Done);
    }

    #[test]
    fn provisional_response_slows_the_resending_to_t2() {
        let now = start();
        let mut client = Client::new(false, Timers::default(), now);
        client.handle_response(100, now);
        assert_eq!(client.deadline(), Some(now + Duration::from_secs(4)));
    }
}
