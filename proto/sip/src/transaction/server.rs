//! Server transaction of any request but INVITE (RFC 3261 §17.2.2).
//!
//! ```text
//!   Trying ──1xx──▶ Proceeding ──200-699──▶ Completed ──J──▶ over
//! ```
//! The user must answer within 64·T1, when the client has given up anyway (RFC 4320 §4.1).

use std::time::Instant;

use super::Due;
use crate::timer::Timers;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No final response yet.
    Trying { give_up: Instant },
    /// J absorbs retransmissions.
    Completed { j: Instant },
}

/// Their request.
#[derive(Debug)]
pub(crate) struct Server {
    state: State,
    reliable: bool,
    timers: Timers,
}

impl Server {
    pub(crate) fn new(reliable: bool, timers: Timers, now: Instant) -> Server {
        Server { state: State::Trying { give_up: now + timers.f() }, reliable, timers }
    }

    /// A response is about to leave.
    pub(crate) fn respond(&mut self, status: u16, now: Instant) {
        if status >= 200 {
            self.state = State::Completed { j: now + self.timers.j(self.reliable) };
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Trying { give_up } => Some(give_up),
            State::Completed { j } => Some(j),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Due {
        match self.state {
            State::Trying { give_up } if now >= give_up => Due::TimedOut,
            State::Completed { j } if now >= j => Due::Done,
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
    fn answered_request_absorbs_retransmissions_for_32_seconds_on_udp_and_none_on_tcp() {
        let now = start();
        for (reliable, wait) in [(false, Duration::from_secs(32)), (true, Duration::ZERO)] {
            let mut server = Server::new(reliable, Timers::default(), now);
            server.respond(200, now);
            assert_eq!(server.deadline(), Some(now + wait));
            assert_eq!(server.handle_timeout(now + wait), Due::Done);
        }
    }

    #[test]
    fn unanswered_request_is_forgotten_when_its_client_has_given_up() {
        let now = start();
        let mut server = Server::new(false, Timers::default(), now);
        assert_eq!(server.handle_timeout(now + Duration::from_secs(32)), Due::TimedOut);
    }
}
