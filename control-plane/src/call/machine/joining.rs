//! Two calls that are alive become one: the other one's dialog becomes a guest of this one, bridged to its other side.
//!
//! ```text
//!   API ─▶ may both? ─▶ engine: Join ──▶ the other call gives its dialog away and is over, without a BYE
//!               │             └── it cannot ─▶ both go on as they were
//!               └── no
//! ```
//!
//! While the engine joins them, for a few milliseconds, the other call lets nothing of its session be changed (491). From then on the
//! dialog is what [`super::guest`] says, also when its phone holds or hangs up.

use tandem_api::engine::v1 as engine;
use tandem_sip::CallHandle;
use uuid::Uuid;

use super::guest::NotJoined;
use super::{Asked, Call};
use crate::call::action::EngineRefusal;
use crate::call::ending::{Cause, Ending};
use crate::call::negotiation::Negotiation;
use crate::call::registry::Surroundings;
use crate::call::state::State;
use crate::media::EngineId;

/// What of a call goes to the other one.
#[derive(Debug)]
pub struct Given {
    /// Its dialog.
    pub sip: CallHandle,
    negotiation: Box<Negotiation>,
}

impl Call {
    /// Whether it can be joined to another one now, as either half.
    pub fn check_join(&self) -> Result<(), Asked> {
        let state = self.life.state();
        if state == State::Connected {
            self.check_dialog("joined")?;
        }
        if !matches!(state, State::Connected | State::OnHold) || self.sip_is_over {
            return Err(Asked::State(state));
        }
        if !self.has_media() {
            return Err(Asked::Policy("a call without media cannot be joined".to_owned()));
        }
        let is_changing = self.change.is_some()
            || self.own_change.is_some()
            || self.negotiation.awaits_answer()
            || self.negotiation.awaits_ack();
        let is_moving = self.transfer.is_some()
            || self.successor.is_some()
            || self.guest.is_some()
            || self.departed.is_some()
            || self.joining.is_some();
        if is_changing || is_moving || !self.session.is_at_rest() {
            return Err(Asked::Busy);
        }
        Ok(())
    }

    /// The same for the one whose dialog goes: nobody would take it back from our hold.
    pub fn check_give(&self) -> Result<(), Asked> {
        self.check_join()?;
        match self.is_holding {
            true => Err(Asked::Policy("we hold the other call: take it back first".to_owned())),
            false => Ok(()),
        }
    }

    /// Which engine has its session, and which life of that engine.
    pub fn place_of_session(&self) -> (Option<EngineId>, &str) {
        (self.session.engine(), self.session.instance_id())
    }

    /// Who is at the other side, as records show it.
    pub fn other_side(&self) -> String {
        if self.outbound.is_some() { self.to.clone() } else { self.from.clone() }
    }

    /// The engine is to join the other call's session to this one's.
    pub fn join_other(&mut self, other: Uuid, to: &str, around: &mut Surroundings<'_>) -> Asked {
        self.expect_guest(other, to, around.now)
    }

    /// It is the other one; the engine is being asked.
    pub fn begin_joining(&mut self, into: Uuid) {
        self.joining = Some(into);
    }

    /// Whether it waits for this other call's dialog.
    pub fn wants(&self, other: Uuid) -> bool {
        !self.life.is_ending() && self.expects_guest(other)
    }

    /// The engine has joined this call's session to that of another one, or has not. Gives the dialog away, if the other one still
    /// wants it.
    pub fn handle_joined(
        &mut self,
        into: Uuid,
        result: Result<&engine::SessionStats, &EngineRefusal>,
        is_wanted: bool,
        around: &mut Surroundings<'_>,
    ) -> Option<Given> {
        self.joining.take_if(|joining| *joining == into)?;
        let is_gone = !self.session.may_live();
        if let Ok(stats) = result {
            // Without figures the event has brought them, or will not.
            self.stats = if *stats == engine::SessionStats::default() { self.stats } else { Some(*stats) };
            self.session.lose();
        }
        if self.life.is_ending() {
            return None;
        }
        match result {
            Ok(_) if is_wanted => {
                let sip = self.sip.take()?;
                self.sip_is_over = true;
                if let Some(token) = self.outbound.as_deref_mut().and_then(super::Outbound::leave_dialog) {
                    around.forget(token);
                }
                self.note(
                    "joined",
                    "JoinCalls",
                    "another call for its dialog",
                    &format!("call {into}"),
                    true,
                );
                let negotiation = Box::new(self.negotiation.leave_behind());
                self.end(Ending::new(Cause::Joined), around);
                Some(Given { sip, negotiation })
            }
            Ok(_) => {
                self.end(Ending::with_detail(Cause::Joined, "that one has ended meanwhile"), around);
                None
            }
            // The answer was lost, and the engine has done it: there is nobody to talk with here.
            Err(_) if is_gone => {
                self.end(Ending::new(Cause::EngineLost), around);
                None
            }
            Err(_) => {
                let got = "the media engine did not join them";
                self.note("joined", "JoinCalls", "another call for its dialog", got, false);
                None
            }
        }
    }

    /// The engine has answered the Join of this call.
    pub fn handle_join_answered(
        &mut self,
        other: Uuid,
        result: Result<(), EngineRefusal>,
        given: Option<Given>,
        around: &mut Surroundings<'_>,
    ) {
        let not = |why: &str, may_have_leg| Err(NotJoined { why: why.to_owned(), may_have_leg });
        let result = match (&result, given) {
            (Ok(()), Some(given)) => Ok((given.sip, *given.negotiation)),
            (Ok(()), None) => not("it has ended", true),
            (Err(EngineRefusal::Unreachable(why)), _) => not(&format!("the media engine: {why}"), true),
            (Err(EngineRefusal::Gone), _) => not("the media engine has no such session", false),
            (
                Err(EngineRefusal::Full(why) | EngineRefusal::Address(why) | EngineRefusal::Invalid(why)),
                _,
            ) => not(&format!("the media engine: {why}"), false),
        };
        self.handle_guest_joined(other, result, around);
    }
}
