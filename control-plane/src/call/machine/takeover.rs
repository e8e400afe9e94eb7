//! Another dialog takes the place of this call's own; the agent, its session and the record stay.
//!
//! ```text
//!   INVITE, Replaces ─▶ same tenant? ─▶ engine: Update ─▶ 200; the endpoint hangs the old dialog up     (RFC 3891)
//!                                          └── it cannot ─▶ 488, and the call goes on as it was
//!   REFER ─▶ see [`super::referral`] ─▶ 2xx of its target ─▶ engine: Update; the old dialog may say BYE first
//! ```
//!
//! A call has one dialog (`Call::sip`), at most one [`Successor`], and for a moment the [`Former`] one.

use std::time::{Duration, Instant};

use tandem_api::engine::v1 as engine;
use tandem_api::v1::DecisionStep;
use tandem_sdp::SessionDescription;
use tandem_sip::message::{Body, Reply};
use tandem_sip::{CallHandle, EndReason, Flow, Headers, Uri};

use super::referral::Referral;
use super::{Call, DialogId, fork};
use crate::call::action::{Action, EngineRefusal};
use crate::call::admission::{self, Credential, refused_by};
use crate::call::ending::{Cause, Ending};
use crate::call::negotiation::{Negotiation, NegotiationError};
use crate::call::registry::Surroundings;
use crate::call::session::UpdateNumber;
use crate::call::state::State;
use crate::sip::Verb;
use crate::store::accounts::Found;
use crate::trunk::Trunk;

/// How long who has referred us may take to hang up, once it was told that the target has answered. Most do at once; a
/// BYE of ours that overtook that NOTIFY would leave it without the outcome.
const FORMER_GRACE: Duration = Duration::from_secs(2);
/// Steps of a call's decision trace: a peer that moves a call for ever must not make its record grow for ever.
const TRACE_MAX: usize = 64;

/// Whose place an INVITE with Replaces asks for.
#[derive(Debug, Clone)]
pub struct Place {
    /// Whose call it is; `None`: not ours to give.
    pub tenant_id: Option<std::sync::Arc<str>>,
    /// Who talks in it, and goes on talking.
    pub assistant_id: std::sync::Arc<str>,
    /// It cannot be taken now.
    pub is_busy: bool,
}

/// A dialog that is to take the place of the call's own.
#[derive(Debug)]
pub(super) enum Successor {
    /// It has called us, and waits until the engine has moved.
    Newcomer(Box<Newcomer>, UpdateNumber),
    /// We call it, because the other side has asked us to.
    Referral(Box<Referral>),
}

/// An admitted INVITE with Replaces.
#[derive(Debug)]
pub struct Newcomer {
    seat: Seat,
    offer: Option<SessionDescription>,
}

impl Newcomer {
    /// The SIP side's name of it.
    pub fn sip(&self) -> CallHandle {
        self.seat.sip
    }
}

/// What of a call belongs to its dialog.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) sip: CallHandle,
    pub(super) negotiation: Negotiation,
    pub(super) trunk: Option<std::sync::Arc<Trunk>>,
    pub(super) peer_host: String,
    pub(super) contact: Option<Uri>,
    pub(super) dialog: Option<DialogId>,
    pub(super) flow: Flow,
}

/// The dialog whose place was taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Former {
    sip: CallHandle,
    /// When we hang up ourselves.
    at: Instant,
}

impl Call {
    /// Whose place this is.
    pub fn place_of(&self) -> Place {
        let is_up = matches!(self.life.state(), State::Connected | State::OnHold)
            || self.outbound.is_some() && self.life.state() == State::Ringing && self.life.is_before_answer();
        // A re-INVITE without an outcome; our INVITE, which rings, may be picked up elsewhere.
        let is_offering =
            !self.life.is_before_answer() && (self.own_change.is_some() || self.negotiation.awaits_answer());
        Place {
            tenant_id: self.tenant_id.clone(),
            assistant_id: self.assistant_id.clone(),
            is_busy: !is_up
                || self.joining.is_some()
                || self.successor.is_some()
                || self.change.is_some()
                || is_offering,
        }
    }

    // --- the INVITE that wants a place ---

    /// The store has answered, and this call wants another one's place. `None`: it is refused, and has been told so.
    pub fn handle_found_replacing(
        &mut self,
        credential: &Credential,
        found: Result<&Found, &String>,
        place: &Place,
        around: &mut Surroundings<'_>,
    ) -> Option<Newcomer> {
        if self.life.is_ending() {
            return None;
        }
        match self.check_replacing(credential, found, place, around) {
            Ok(newcomer) => Some(newcomer),
            Err(ending) => {
                self.end(ending, around);
                None
            }
        }
    }

    fn check_replacing(
        &mut self,
        credential: &Credential,
        found: Result<&Found, &String>,
        place: &Place,
        around: &mut Surroundings<'_>,
    ) -> Result<Newcomer, Ending> {
        let found = found.map_err(|error| {
            self.trace.push(refused_by("store", "database", "an answer", "none"));
            Ending::with_detail(Cause::StoreFailed, error.as_str())
        })?;
        let principal = admission::principal(credential, found, &mut self.trace)?;
        // Answered, this call ends another dialog: only of the same tenant (RFC 3891 §3 leaves it to us).
        if place.tenant_id.as_ref() != Some(&principal.tenant_id) {
            self.trace.push(refused_by("replaces", "Replaces", "a call of this tenant", "another"));
            return Err(Ending::new(Cause::ForeignCall));
        }
        if place.is_busy {
            self.trace.push(refused_by("replaces", "Replaces", "a call at rest", "one that is changing"));
            return Err(Ending::new(Cause::CallChanging));
        }
        // By the rules of where it comes from, and with keys of its own.
        self.protect(around);
        self.check_offer()?;
        let Some(sip) = self.sip else { return Err(Ending::new(Cause::DialogLost)) };
        let seat = Seat {
            sip,
            negotiation: std::mem::take(&mut self.negotiation),
            trunk: self.trunk.clone(),
            peer_host: std::mem::take(&mut self.peer_host),
            contact: self.contact.take(),
            dialog: None,
            flow: self.flow,
        };
        Ok(Newcomer { seat, offer: self.offer.take().and_then(Result::ok) })
    }

    // --- the call whose place is taken ---

    /// An admitted INVITE takes the place of this call's dialog.
    pub fn handle_newcomer(&mut self, mut newcomer: Newcomer, around: &mut Surroundings<'_>) {
        let sip = newcomer.sip();
        let rules = newcomer.seat.trunk.as_ref().map(|trunk| trunk.srtp).unwrap_or_default();
        let negotiation = &mut newcomer.seat.negotiation;
        negotiation.take_port_of(&self.negotiation, self.has_media());
        // What was protected stays so, unless the newcomer's own trunk says that it need not.
        let must_protect = self.negotiation.is_protected() && !rules.may_lose_protection();
        let may_offer = !must_protect || negotiation.require_protection();
        let text = match newcomer.offer.take() {
            Some(offer) => match negotiation.propose(&offer) {
                Ok(negotiated) if self.has_media() => {
                    let update = self.session.update(negotiation.rtp_parameters(&negotiated));
                    self.successor = Some(Successor::Newcomer(Box::new(newcomer), update));
                    return;
                }
                Ok(_) => negotiation.commit().ok_or_else(|| NegotiationError::Missing.to_string()),
                Err(error) => Err(error.to_string()),
            },
            None if !may_offer => Err("a protected call, and nothing to protect it with".to_owned()),
            None => negotiation.offer_in_answer().ok_or_else(|| NegotiationError::Missing.to_string()),
        };
        match text {
            Ok(text) => self.seat_newcomer(newcomer.seat, text, around),
            Err(why) => self.refuse_newcomer(sip, &why, around),
        }
    }

    /// The engine has answered the Update of a newcomer. `false`: it was not a newcomer's.
    pub(super) fn handle_newcomer_updated(
        &mut self,
        number: UpdateNumber,
        result: &Result<(), EngineRefusal>,
        around: &mut Surroundings<'_>,
    ) -> bool {
        let is_its =
            |successor: &mut Successor| matches!(successor, Successor::Newcomer(_, of) if *of == number);
        let Some(Successor::Newcomer(newcomer, _)) = self.successor.take_if(is_its) else { return false };
        let mut seat = newcomer.seat;
        match (result, seat.negotiation.commit()) {
            (Ok(()), Some(text)) => self.seat_newcomer(seat, text, around),
            _ => {
                self.refuse_newcomer(seat.sip, "the media engine cannot carry it", around);
                self.move_back();
            }
        }
        true
    }

    fn seat_newcomer(&mut self, seat: Seat, text: String, around: &mut Surroundings<'_>) {
        around.actions.push_back(Action::Sip(Verb::Answer(seat.sip, Body::sdp(text))));
        self.note_takeover("replaces", "Replaces", "another dialog", true);
        // Our call, picked up elsewhere while it rang.
        let is_pickup = self.life.is_before_answer();
        let has_answer = !seat.negotiation.awaits_answer();
        // The endpoint hangs it up with the 200; if that came too late, so do we.
        if let Some(former) = self.move_to(seat, around) {
            self.leave(former, around.now);
        }
        if is_pickup {
            self.answered_ms = around.epoch_ms();
            self.life.answer(around.now);
            if has_answer && self.has_media() {
                self.session.start();
            }
        }
    }

    /// The engine is told what the call's own dialog has agreed on. While a newcomer moves it, that waits: the old side's last
    /// word must not bring back whom it has left.
    pub(super) fn move_media(&mut self, rtp: engine::RtpParameters) {
        if !self.has_newcomer() {
            self.session.update(rtp);
        }
    }

    /// Nothing has come of a newcomer.
    fn move_back(&mut self) {
        if let Some(current) = self.negotiation.current().copied() {
            self.session.update(self.rtp(&current));
        }
    }

    fn refuse_newcomer(&mut self, sip: CallHandle, why: &str, around: &mut Surroundings<'_>) {
        self.note_takeover("replaces", "Replaces", why, false);
        around.actions.push_back(Action::Sip(Verb::Reject(sip, Reply::new(488))));
    }

    /// From here on the call is this dialog's. Gives the one before.
    pub(super) fn move_to(&mut self, seat: Seat, around: &mut Surroundings<'_>) -> Option<CallHandle> {
        // What the old dialog still waits for will not come.
        if let Some(change) = self.change.take() {
            self.refuse_change(change, around);
        }
        if self.transfer.take().is_some() {
            self.tell_transfer("failed", "somebody else has taken the other side's place");
        }
        if let Some(own) = self.outbound.as_deref_mut()
            && let Some(token) = own.leave_dialog()
        {
            around.forget(token);
        }
        self.cancel_forks(&fork::answered_elsewhere(), around);
        self.own_change = None;
        self.is_holding = false;
        self.keys = super::Keys::default();
        let Seat { sip, negotiation, trunk, peer_host, contact, dialog, flow } = seat;
        let before = self.sip.replace(sip).filter(|_| !self.sip_is_over);
        self.sip_is_over = false;
        (self.negotiation, self.trunk, self.flow) = (negotiation, trunk, flow);
        (self.peer_host, self.contact, self.dialog) = (peer_host, contact, dialog);
        self.life.hold(self.is_held());
        self.tell_transfer("moved", "");
        before
    }

    pub(super) fn note_takeover(&mut self, rule: &str, field: &str, got: &str, passed: bool) {
        self.note(rule, field, "somebody else for the other side", got, passed);
    }

    pub(super) fn note(&mut self, rule: &str, field: &str, expected: &str, got: &str, passed: bool) {
        if self.trace.len() < TRACE_MAX {
            self.trace.push(DecisionStep {
                step: "takeover".to_owned(),
                rule: rule.to_owned(),
                field: field.to_owned(),
                expected: expected.to_owned(),
                got: admission::shown(got),
                passed,
            });
        }
    }

    // --- dialogs that are not the call's own ---

    /// Who has referred us is left, and may hang up by itself first.
    pub(super) fn leave(&mut self, former: CallHandle, now: Instant) {
        self.former = Some(Former { sip: former, at: now + FORMER_GRACE });
    }

    /// A dialog beside the call's own is over: a successor that was not to be, or the former one.
    pub fn handle_aside_ended(&mut self, sip: CallHandle, why: EndReason, around: &mut Surroundings<'_>) {
        self.former.take_if(|former| former.sip == sip);
        if self.handle_guest_ended(sip, &why, around) || self.handle_fork_ended(sip, &why, around) {
            return;
        }
        let is_its = |successor: &mut Successor| match successor {
            Successor::Newcomer(newcomer, _) => newcomer.sip() == sip,
            Successor::Referral(referral) => referral.sip() == Some(sip),
        };
        match self.successor.take_if(is_its) {
            None => {}
            // It has given up; the engine goes back to where it was.
            Some(Successor::Newcomer(..)) => self.move_back(),
            Some(Successor::Referral(referral)) => self.handle_referral_ended(*referral, why, around),
        }
    }

    pub(super) fn aside_deadline(&self) -> Option<Instant> {
        let referral = match &self.successor {
            Some(Successor::Referral(referral)) => Some(referral.give_up()),
            _ => None,
        };
        [referral, self.former.map(|former| former.at), self.guest_deadline()].into_iter().flatten().min()
    }

    pub(super) fn handle_aside_timeout(&mut self, around: &mut Surroundings<'_>) {
        if let Some(former) = self.former.take_if(|former| former.at <= around.now) {
            let headers = Ending::new(Cause::Transferred).to_headers();
            around.actions.push_back(Action::Sip(Verb::HangUp(former.sip, headers)));
        }
        self.handle_guest_timeout(around);
        let is_late = |successor: &mut Successor| matches!(successor, Successor::Referral(referral) if referral.give_up() <= around.now);
        if let Some(Successor::Referral(referral)) = self.successor.take_if(is_late) {
            self.give_up_referral(*referral, around);
        }
    }

    /// The call ends: so does what is beside it.
    pub(super) fn end_aside(&mut self, ending: &Ending, around: &mut Surroundings<'_>) {
        if let Some(former) = self.former.take() {
            around.actions.push_back(Action::Sip(Verb::HangUp(former.sip, Headers::new())));
        }
        self.end_guest(ending, around);
        match self.successor.take() {
            None => {}
            Some(Successor::Newcomer(newcomer, _)) => {
                // §3: the dialog is ending.
                let reply = Reply::new(603);
                around.actions.push_back(Action::Sip(Verb::Reject(newcomer.sip(), reply)));
            }
            Some(Successor::Referral(referral)) => referral.cancel(ending.to_headers(), around),
        }
    }
}
