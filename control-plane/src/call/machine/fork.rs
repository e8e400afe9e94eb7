//! One call of ours rings at several places: a phone's registered contacts, each with an INVITE of its own.
//!
//! ```text
//!   INVITE to each ─▶ 18x of any: it rings, the newest early media is heard
//!      ─▶ the first 2xx is the call's dialog; the others are cancelled, and one that answers all the same is hung up
//!      ─▶ all refuse: the best of their words (RFC 3261 §16.7); 6xx of one speaks for all
//! ```
//!
//! One branch is the call's own (`Call::sip`); the others wait in [`Fork`]s, and one of them steps up when the call's own
//! is over. All have the same offer, so there is one negotiation. A cancelled branch whose 2xx was faster is the
//! endpoint's to acknowledge and hang up.

use tandem_sip::message::Response;
use tandem_sip::{CallHandle, EndReason, HeaderName, Headers};

use super::Call;
use crate::call::action::Action;
use crate::call::registry::Surroundings;
use crate::sip::{Token, Verb};

/// Places at which one call rings at once. A phone has a few contacts; more would be an amplifier.
pub const FORKS_MAX: usize = 8;

/// A branch that is not the call's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fork {
    pub(super) token: Token,
    /// `None`: it has not left yet.
    pub(super) sip: Option<CallHandle>,
}

/// Of the CANCEL to the others: with it a phone shows no missed call (RFC 3326 §3.1).
pub(super) fn answered_elsewhere() -> Headers {
    let mut headers = Headers::new();
    // A constant that a header can hold.
    let _ = headers.push(HeaderName::Reason.as_str(), "SIP;cause=200;text=\"Call completed elsewhere\"");
    headers
}

impl Fork {
    pub(super) fn cancel(self, headers: &Headers, around: &mut Surroundings<'_>) {
        // What has not left is hung up when it does: nobody knows its token then.
        if let Some(sip) = self.sip {
            around.forget(self.token);
            around.actions.push_back(Action::Sip(Verb::HangUp(sip, headers.clone())));
        }
    }
}

impl Call {
    /// The INVITE of this name goes to one more place. `None`: the call does not dial any more, or rings at enough places.
    pub fn fork(&mut self, token: Token, around: &mut Surroundings<'_>) -> Option<Token> {
        let is_dialling = self.life.is_before_answer() && !self.life.is_ending();
        let id = self.id;
        let own = self.outbound.as_deref_mut().filter(|own| own.is_named(token) && is_dialling)?;
        if own.forks.len() + 1 >= FORKS_MAX {
            return None;
        }
        let token = around.token(id);
        own.is_forked = true;
        own.forks.push(Fork { token, sip: None });
        Some(token)
    }

    /// The branch of this name has left. `false`: it is none.
    pub(super) fn handle_fork_placed(&mut self, token: Token, sip: CallHandle) -> bool {
        let forks = self.outbound.as_deref_mut().map(|own| &mut own.forks);
        let fork = forks.and_then(|forks| forks.iter_mut().find(|fork| fork.token == token));
        fork.map(|fork| fork.sip = Some(sip)).is_some()
    }

    /// Takes the branch out that this describes.
    pub(super) fn take_fork(&mut self, is_it: impl Fn(&Fork) -> bool) -> Option<Fork> {
        let own = self.outbound.as_deref_mut()?;
        let at = own.forks.iter().position(is_it)?;
        Some(own.forks.swap_remove(at))
    }

    /// 101 to 199 of a branch.
    pub fn handle_fork_progress(
        &mut self,
        sip: CallHandle,
        response: &Response,
        around: &mut Surroundings<'_>,
    ) {
        let own = self.outbound.as_deref();
        if own.is_some_and(|own| own.forks.iter().any(|fork| fork.sip == Some(sip))) {
            // Our offer was in the INVITE, so there is nothing to write into a PRACK.
            self.handle_provisional(response, false, around);
        }
    }

    /// 2xx of a branch. If it is the first, the call is its.
    pub fn handle_fork_answered(
        &mut self,
        sip: CallHandle,
        response: &Response,
        around: &mut Surroundings<'_>,
    ) {
        let Some(fork) = self.take_fork(|fork| fork.sip == Some(sip)) else { return };
        if !self.life.is_before_answer() || self.life.is_ending() {
            return fork.cancel(&Headers::new(), around);
        }
        self.step_up(fork);
        self.handle_answered(response, false, around);
    }

    /// This branch is the call's own from here on; what was so before is one of the others.
    fn step_up(&mut self, fork: Fork) {
        let Some(own) = self.outbound.as_deref_mut() else { return };
        if let Some(before) = own.name_branch(fork) {
            own.forks.push(Fork { token: before, sip: self.sip });
        }
        self.sip = fork.sip;
    }

    /// The call's own branch is over and another one still rings: that one steps up. `false`: none does.
    pub(super) fn another_rings(&mut self, around: &mut Surroundings<'_>) -> bool {
        let Some(fork) = self.take_fork(|_| true) else { return false };
        let Some(own) = self.outbound.as_deref_mut() else { return false };
        if let Some(before) = own.name_branch(fork) {
            around.forget(before);
        }
        self.sip = fork.sip;
        true
    }

    /// A branch beside the call's own is over. `false`: it was none.
    pub(super) fn handle_fork_ended(
        &mut self,
        sip: CallHandle,
        why: &EndReason,
        around: &mut Surroundings<'_>,
    ) -> bool {
        let Some(fork) = self.take_fork(|fork| fork.sip == Some(sip)) else { return false };
        around.forget(fork.token);
        if let EndReason::Failed { response } = why {
            self.note_refusal(response, around);
        }
        true
    }

    /// Nobody else is to ring.
    pub(super) fn cancel_forks(&mut self, headers: &Headers, around: &mut Surroundings<'_>) {
        while let Some(fork) = self.take_fork(|_| true) {
            fork.cancel(headers, around);
        }
    }
}
