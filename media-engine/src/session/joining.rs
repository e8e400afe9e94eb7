//! Two sessions that are alive are joined: the RTP leg of one becomes the second leg of the other, as it is.
//!
//! ```text
//!   lift ──▶ MovingLeg ──▶ land, in the other session ──▶ leave: the agent is let go, the session is over
//!                │
//!                └── refused there ──▶ restore: it goes on as it was
//! ```
//!
//! The peer hears one stream throughout: SSRC, sequence numbers, timestamps, keys and latch are the leg's own, and its packets
//! leave at the times that its ptime clock had set before. Between [`Session::lift`] and what follows the session neither hears
//! nor sends; its agent does not know yet.

use std::sync::Arc;
use std::time::Instant;

use tandem_audio::format::Ptime;

use super::Session;
use super::bridge::Bridge;
use super::playout::PtimeClock;
use super::second::{Role, SecondLeg};
use crate::leg::event::Event;
use crate::leg::rtp::RtpLeg;

/// What the agent of a session that is joined to another is told.
const STOP_REASON: &str = "joined";

/// Why a session cannot be joined to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// No such session, or it is over.
    #[error("there is no such session")]
    NoSession,
    /// It rings, or is heard before the answer.
    #[error("the session is not started")]
    NotStarted,
    /// One at a time.
    #[error("the session has a second leg already")]
    Taken,
    /// It is one half of another join.
    #[error("the session is being joined")]
    Busy,
    /// The core has no room.
    #[error("all sockets of the core are in use")]
    Full,
    /// The kernel did not give the leg a place, and it is lost.
    #[error("the leg was lost on its way")]
    Lost,
}

/// An RTP leg between two sessions.
pub struct MovingLeg {
    pub(super) rtp: RtpLeg,
    /// Of no use where the agent has another rate.
    pub(super) bridge: Option<Bridge>,
    pub(super) clock: PtimeClock,
}

/// All of it would be kilobytes.
impl std::fmt::Debug for MovingLeg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MovingLeg").field("clock", &self.clock).finish_non_exhaustive()
    }
}

impl MovingLeg {
    /// The length of its packets.
    pub fn ptime(&self) -> Ptime {
        self.rtp.ptime()
    }

    /// When its next packet is due.
    pub fn next_packet(&self) -> Instant {
        self.clock.next()
    }

    /// Its next packet leaves then: the clocks of two cores tick within a millisecond of each other.
    pub fn set_next_packet(&mut self, at: Instant) {
        self.clock = PtimeClock::new(at, self.ptime());
    }
}

impl Session {
    /// Whether a leg could come, or this one's go.
    ///
    /// # Errors
    /// It is over, not started, or has a second leg.
    pub fn check_join(&self) -> Result<(), JoinError> {
        if self.ended {
            return Err(JoinError::NoSession);
        }
        if self.second.is_some() {
            return Err(JoinError::Taken);
        }
        if self.moved.is_some() {
            return Err(JoinError::Busy);
        }
        if self.started.is_none() || self.is_early {
            return Err(JoinError::NotStarted);
        }
        Ok(())
    }

    /// Takes the RTP leg out.
    ///
    /// # Errors
    /// Those of [`Session::check_join`]; nothing has changed then.
    pub fn lift(&mut self, now: Instant) -> Result<MovingLeg, JoinError> {
        self.check_join()?;
        let clock = self.clock.ok_or(JoinError::NotStarted)?;
        self.moved = Some(Box::new(self.stats(now)));
        self.clock = None;
        self.silence_from = now;
        Ok(MovingLeg { rtp: self.rtp.take(self.wall), bridge: self.bridge.take(), clock })
    }

    /// The leg comes back: nothing has happened.
    pub fn restore(&mut self, leg: MovingLeg, now: Instant) {
        if self.moved.take().is_none() || self.ended {
            return;
        }
        let MovingLeg { rtp, bridge, clock } = leg;
        (self.rtp, self.bridge, self.clock) = (rtp, bridge, Some(clock));
        self.silence_from = now;
        self.media_deadline = self.next_media_deadline();
    }

    /// A leg of another session becomes the second one of this. The leg: it cannot.
    ///
    /// # Errors
    /// Those of [`Session::check_join`], with the leg.
    pub fn land(
        &mut self,
        leg: MovingLeg,
        role: Role,
        now: Instant,
    ) -> Result<(), (JoinError, Box<MovingLeg>)> {
        if let Err(error) = self.check_join() {
            return Err((error, Box::new(leg)));
        }
        let second = SecondLeg::moved(leg, role, self.playout.rate(), self.media_timeout, now);
        self.second = Some(Box::new(second));
        self.handle_second_change();
        Ok(())
    }

    /// Its leg has landed in another session: the agent is let go, and the session is over.
    pub fn leave(&mut self, into: Arc<str>, now: Instant) {
        if self.ended {
            return;
        }
        let stats = self.stats(now);
        self.close(STOP_REASON);
        // As with the other end, it must not be lost to a full queue.
        self.events.push_back(Event::Joined { into, stats });
    }
}
