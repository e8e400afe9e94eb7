//! We hold the other side, or take it back: a re-INVITE of ours (RFC 3261 §14.1, RFC 3264 §8.4).
//!
//! ```text
//!   hold ─▶ re-INVITE, a=sendonly ─▶ 2xx ─▶ engine: Update; OnHold, the agent is told
//!                                └── 491: both at once ─▶ again, after the time that §14.1 sets ─▶ at most TRIES_MAX times
//!                                └── anything else ─▶ the call goes on as it was
//! ```

use std::time::{Duration, Instant};

use tandem_api::engine::v1 as engine;
use tandem_sdp::{Direction, Negotiated};
use tandem_sip::message::{Body, Response};

use super::{Asked, Call};
use crate::call::ending::{Cause, Ending};
use crate::call::registry::Surroundings;
use crate::call::state::State;
use crate::sip::Verb;
use crate::trunk::HoldOffer;

/// How often one hold is tried when both sides change the session at once.
const TRIES_MAX: u8 = 4;
/// A re-INVITE without an outcome for so long is forgotten: the endpoint waits 32 s for an ACK before it leaves, and 200 s for
/// a final response once a provisional one has come.
const OUTCOME_MAX: Duration = Duration::from_secs(240);

/// A re-INVITE of ours.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnChange {
    is_held: bool,
    tries: u8,
    /// It is under way, or waits for its next try.
    is_sent: bool,
    /// When it is given up, or tried again.
    at: Instant,
}

impl Call {
    /// Puts the other side on hold, or takes it back.
    pub fn hold(&mut self, is_held: bool, around: &mut Surroundings<'_>) -> Asked {
        let state = self.life.state();
        if !matches!(state, State::Connected | State::OnHold) || !self.has_media() {
            return Asked::State(state);
        }
        if let Err(refused) = self.check_dialog("held") {
            return refused;
        }
        if self.joining.is_some()
            || self.own_change.is_some()
            || self.change.is_some()
            || self.has_newcomer()
            || self.negotiation.awaits_answer()
        {
            return Asked::Busy;
        }
        if self.is_holding != is_held {
            self.reinvite(is_held, 1, around);
        }
        Asked::Done
    }

    fn reinvite(&mut self, is_held: bool, tries: u8, around: &mut Surroundings<'_>) {
        self.negotiation.hold(is_held.then(|| self.hold_offer()));
        let Some(text) = self.negotiation.offer() else { return };
        self.ask_sip(around, |sip| Verb::Reinvite(sip, Some(Body::sdp(text))));
        let at = around.now + OUTCOME_MAX;
        self.own_change = Some(OwnChange { is_held, tries, is_sent: true, at });
    }

    /// Our re-INVITE was answered.
    pub fn handle_reinvite_answered(&mut self, response: &Response, around: &mut Surroundings<'_>) {
        let Some(change) = self.own_change.take().filter(|_| !self.life.is_ending()) else { return };
        match self.negotiation.accept(response.sdp()) {
            Ok(negotiated) => {
                self.is_holding = change.is_held;
                self.move_media(self.rtp(&negotiated));
                self.life.hold(self.is_held());
            }
            Err(error) => self.end(Ending::with_detail(Cause::BadAnswer, error.to_string()), around),
        }
    }

    /// Our re-INVITE was refused.
    pub fn handle_reinvite_refused(
        &mut self,
        status: u16,
        retry_after: Option<Duration>,
        around: &mut Surroundings<'_>,
    ) {
        let Some(change) = self.own_change.take().filter(|_| !self.life.is_ending()) else { return };
        self.undo();
        if let (491, Some(wait), true) = (status, retry_after, change.tries < TRIES_MAX) {
            let at = around.now + wait;
            self.own_change = Some(OwnChange { tries: change.tries + 1, is_sent: false, at, ..change });
        }
    }

    /// What we offered does not hold.
    fn undo(&mut self) {
        self.negotiation.abandon();
        self.negotiation.hold(self.is_holding.then(|| self.hold_offer()));
    }

    fn hold_offer(&self) -> HoldOffer {
        self.trunk.as_ref().map(|trunk| trunk.hold).unwrap_or_default()
    }

    /// What the engine is told of an agreement. Whom we hold hears nothing, whatever was said: an agent goes on talking.
    pub(super) fn rtp(&self, negotiated: &Negotiated) -> engine::RtpParameters {
        match self.is_holding {
            true => {
                self.negotiation.rtp_parameters(&Negotiated { direction: Direction::Inactive, ..*negotiated })
            }
            false => self.negotiation.rtp_parameters(negotiated),
        }
    }

    /// A hold of ours is under way.
    pub(super) fn is_about_to_hold(&self) -> bool {
        self.own_change.is_some_and(|change| change.is_held)
    }

    pub(super) fn own_change_deadline(&self) -> Option<Instant> {
        self.own_change.map(|change| change.at)
    }

    pub(super) fn handle_own_change_timeout(&mut self, around: &mut Surroundings<'_>) {
        let Some(change) = self.own_change.take_if(|change| change.at <= around.now) else { return };
        if change.is_sent {
            self.undo();
        } else if self.change.is_some() || self.negotiation.awaits_answer() {
            // The peer's own change came first, and is not done.
            let at = around.now + Duration::from_millis(500);
            self.own_change = Some(OwnChange { at, ..change });
        } else {
            self.reinvite(change.is_held, change.tries, around);
        }
    }
}
