//! The caller changes the session of a live call: re-INVITE and UPDATE (RFC 3261 §14, RFC 3311).
//!
//! ```text
//!   offer ─▶ propose ─▶ engine: Update ─▶ commit ─▶ 200 with our description, Connected ⇄ OnHold
//!                └── no agreement, or the engine cannot ─▶ 488, and the call goes on as it was
//! ```

use tandem_sdp::SessionDescription;
use tandem_sip::message::{Body, Reply};
use tandem_sip::{CallHandle, Request, RequestHandle};

use super::Call;
use crate::call::action::{Action, EngineRefusal};
use crate::call::negotiation::NegotiationError;
use crate::call::registry::Surroundings;
use crate::call::session::UpdateNumber;
use crate::sip::Verb;

/// Retry-After of an UPDATE that comes before the answer: RFC 3311 §5.2 wants 0 to 10 s.
const RETRY_UPDATE_S: u32 = 3;

/// By which request the caller changes the session.
#[derive(Debug, Clone, Copy)]
pub(super) enum ChangeRequest {
    Reinvite,
    Update(RequestHandle),
}

impl ChangeRequest {
    /// 200 with our description, or 488.
    pub(super) fn answer(self, sip: CallHandle, text: Option<String>) -> Verb {
        match (self, text.map(Body::sdp)) {
            (Self::Reinvite, Some(body)) => Verb::Answer(sip, body),
            (Self::Reinvite, None) => Verb::Reject(sip, Reply::new(488)),
            (Self::Update(handle), Some(body)) => Verb::Reply(handle, Reply::new(200).body(body)),
            (Self::Update(handle), None) => Verb::Reply(handle, Reply::new(488)),
        }
    }
}

/// A change that waits until the engine has answered this Update.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingChange {
    request: ChangeRequest,
    update: UpdateNumber,
}

impl Call {
    /// The caller wants to change the session.
    pub fn handle_reinvite(&mut self, request: &Request, around: &mut Surroundings<'_>) {
        if self.life.is_ending() {
            return;
        }
        // An UPDATE of theirs has no answer yet (RFC 3311 §5.2), or another dialog moves the media: one exchange at a time.
        if self.change.is_some() || self.has_newcomer() || self.joining.is_some() {
            return self.ask_sip(around, |sip| Verb::Reject(sip, Reply::new(491)));
        }
        let Some(body) = request.sdp() else {
            // It wants our offer; the answer comes with the ACK.
            let text = self.negotiation.offer_in_answer();
            return self.ask_sip(around, |sip| match text {
                Some(text) => Verb::Answer(sip, Body::sdp(text)),
                None => Verb::Reject(sip, Reply::new(488)),
            });
        };
        self.propose(ChangeRequest::Reinvite, body, around);
    }

    /// The caller wants to change or refresh the session by UPDATE (RFC 3311).
    pub fn handle_update(&mut self, handle: RequestHandle, request: &Request, around: &mut Surroundings<'_>) {
        if self.life.is_ending() {
            return around.actions.push_back(Action::Sip(Verb::Reply(handle, Reply::new(481))));
        }
        let Some(body) = request.sdp() else {
            let status = if request.body.is_empty() { 200 } else { 415 };
            return around.actions.push_back(Action::Sip(Verb::Reply(handle, Reply::new(status))));
        };
        // An offer while the first one, or another, has no answer yet (§5.2).
        let is_early = self.life.is_before_answer();
        let is_moving = self.has_newcomer() || self.joining.is_some();
        if is_early || self.change.is_some() || is_moving || self.negotiation.awaits_answer() {
            let reply =
                if is_early { Reply::new(500).retry_after_s(RETRY_UPDATE_S) } else { Reply::new(491) };
            return around.actions.push_back(Action::Sip(Verb::Reply(handle, reply)));
        }
        self.propose(ChangeRequest::Update(handle), body, around);
    }

    fn propose(&mut self, request: ChangeRequest, offer: &[u8], around: &mut Surroundings<'_>) {
        let proposed = SessionDescription::parse(offer)
            .map_err(NegotiationError::from)
            .and_then(|offer| self.negotiation.propose(&offer));
        match proposed {
            Ok(_) if !self.has_media() => {
                let text = self.negotiation.commit();
                self.answer_change(request, text, around);
            }
            Ok(negotiated) => {
                let update = self.session.update(self.rtp(&negotiated));
                self.change = Some(PendingChange { request, update });
            }
            // The call goes on as it was (RFC 3261 §14.2).
            Err(_) => self.answer_change(request, None, around),
        }
    }

    /// 200 with our description, or 488.
    fn answer_change(&self, request: ChangeRequest, text: Option<String>, around: &mut Surroundings<'_>) {
        self.ask_sip(around, |sip| request.answer(sip, text));
    }

    /// 488: the dialog is left before the engine has answered.
    pub(super) fn refuse_change(&self, change: PendingChange, around: &mut Surroundings<'_>) {
        self.answer_change(change.request, None, around);
    }

    /// The caller has taken its re-INVITE back.
    pub fn handle_reinvite_cancelled(&mut self) {
        let pending = self.change.map(|change| change.request);
        if matches!(pending, Some(ChangeRequest::Update(_))) {
            return;
        }
        // Also an offer of ours whose 200 came too late: no ACK will answer it.
        self.negotiation.abandon();
        if self.change.take().is_some()
            && self.has_media()
            && let Some(current) = self.negotiation.current().copied()
        {
            self.session.update(self.rtp(&current));
        }
    }

    pub(super) fn handle_updated(
        &mut self,
        result: Result<(), EngineRefusal>,
        around: &mut Surroundings<'_>,
    ) {
        let Some((number, is_last)) = self.session.handle_updated() else { return };
        if self.handle_newcomer_updated(number, &result, around) {
            if let Err(refusal @ (EngineRefusal::Gone | EngineRefusal::Unreachable(_))) = result {
                self.handle_done(Err(refusal), around);
            }
            return;
        }
        let ours = |change: &mut PendingChange| change.update == number;
        let Some(change) = self.change.take_if(ours).filter(|_| !self.life.is_ending()) else {
            let is_refused = !matches!(result, Ok(()) | Err(EngineRefusal::Gone));
            // What was refused is not wanted any more: the Update behind it says what is.
            if is_last || !is_refused {
                self.handle_done(result, around);
            }
            return;
        };
        let text = if result.is_ok() { self.negotiation.commit() } else { None };
        self.negotiation.abandon();
        self.answer_change(change.request, text, around);
        self.life.hold(self.is_held());
        // What the engine cannot carry leaves the call as it was; an engine that is gone ends it.
        if let Err(refusal @ (EngineRefusal::Gone | EngineRefusal::Unreachable(_))) = result {
            self.handle_done(Err(refusal), around);
        }
    }
}
