//! Replaces (RFC 3891): a new call takes over an old one, as an attended transfer ends.

use std::time::Instant;

use super::Endpoint;
use super::call::Phase;
use super::event::EndReason;
use super::refusal::Refusal;
use crate::header::reason::Reason;
use crate::header::refer::Replaces;
use crate::headers::{HeaderName, Headers};
use crate::message::Request;
use crate::table::Id;

/// Normal call clearing (Q.850).
const NORMAL_CLEARING: u16 = 16;

impl Endpoint {
    /// The call that an INVITE wants to take over (§3): none if it has no Replaces.
    pub(super) fn replaced_by(&self, invite: &Request) -> Result<Option<Id>, Box<Refusal>> {
        let mut values = invite.head.headers().all_bytes(HeaderName::Replaces);
        let Some(value) = values.next() else { return Ok(None) };
        let replaces = std::str::from_utf8(value).ok().and_then(|value| Replaces::parse(value).ok());
        let (Some(replaces), None) = (replaces, values.next()) else {
            return Err(Refusal::new(400, "replaces", "malformed or repeated").into());
        };
        let unknown = || Box::new(Refusal::new(481, "replaces", "no such dialog"));
        let id = *self.tags.get(&*replaces.to_tag).ok_or_else(unknown)?;
        let call = self.calls.get(id).ok_or_else(unknown)?;
        let dialog = call.dialog_with(&replaces.from_tag).ok_or_else(unknown)?;
        if *dialog.call_id() != *replaces.call_id {
            return Err(unknown());
        }
        match call.phase {
            Phase::Confirmed if replaces.early_only => {
                Err(Refusal::new(486, "replaces", "answered already").into())
            }
            Phase::Confirmed | Phase::Outgoing { .. } => Ok(Some(id)),
            // An unanswered call may be taken over only by who was called (§3).
            Phase::Incoming { .. } => Err(unknown()),
            Phase::Closing => Err(Refusal::new(603, "replaces", "the dialog ends").into()),
        }
    }

    /// The new call is answered: the old one is hung up.
    pub(super) fn end_replaced(&mut self, old: Id, by: Id, now: Instant) {
        let why = EndReason::Replaced { by: by.into() };
        let Some(call) = self.calls.get_mut(old) else { return };
        match call.phase {
            Phase::Confirmed => {
                self.bye_and_forget(old, &Reason::q850(NORMAL_CLEARING, "taken over by another call"), now);
                self.end_call(old, why, now);
            }
            Phase::Outgoing { .. } => {
                call.why = Some(why);
                let _ = self.cancel_with(old, Headers::new(), now);
            }
            Phase::Incoming { .. } | Phase::Closing => {}
        }
    }
}
