//! Handshakes of a session: TLS with its agent, DTLS with the caller and with the second leg.
//!
//! Their arithmetic takes longer than a packet may wait. So what comes for one is held, and the worker, which sees all sessions
//! of the core, says when a step of one may be done: [`Session::wants_handshake`], [`Session::handle_handshake`].

use std::time::Instant;

use super::Session;
use crate::leg::stream::Stream;

/// With whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum With {
    /// TLS.
    #[default]
    Agent,
    /// DTLS.
    Caller,
    /// DTLS.
    Second,
}

impl With {
    /// Who comes after, so that none of them keeps the others from their steps.
    const fn next(self) -> Self {
        match self {
            Self::Agent => Self::Caller,
            Self::Caller => Self::Second,
            Self::Second => Self::Agent,
        }
    }
}

impl Session {
    /// A step of a handshake waits for its turn.
    pub fn wants_handshake(&self) -> bool {
        [With::Agent, With::Caller, With::Second].into_iter().any(|with| self.wants(with))
    }

    fn wants(&self, with: With) -> bool {
        match with {
            With::Agent => self.agent.stream().is_some_and(Stream::wants_handshake),
            With::Caller => !self.ended && self.rtp.wants_handshake(),
            With::Second => {
                !self.ended && self.second.as_ref().is_some_and(|second| second.rtp().wants_handshake())
            }
        }
    }

    /// Its turn has come: one step of one of them, each in turn.
    pub fn handle_handshake(&mut self, now: Instant) {
        let after = self.shook_with.next();
        let waiting = [after, after.next(), after.next().next()].into_iter().find(|with| self.wants(*with));
        let Some(with) = waiting else { return };
        self.shook_with = with;
        match with {
            With::Agent => self.heed(now, |stream, take| stream.handle_handshake(take)),
            With::Caller => self.rtp.handle_handshake(now),
            With::Second => {
                if let Some(second) = &mut self.second {
                    second.handle_handshake(now);
                }
            }
        }
    }
}
