//! The other side hands us on (RFC 3515): a REFER that we follow, where the trunk's policy lets us.
//!
//! ```text
//!   REFER ─▶ policy ─▶ 202, NOTIFY 100 ─▶ INVITE to the target, over the same trunk ─▶ NOTIFY 180
//!     │ no                                  ├─ 2xx ─▶ engine: Update, NOTIFY 200; the agent talks with the target
//!     └▶ 603, 403, 491                      └─ refused, or too late ─▶ NOTIFY with its status; all stays as it was
//! ```
//!
//! The agent talks with who has referred us until the target answers. Some phones hang up as soon as they have their 202:
//! then the agent waits, on hold. Whom a REFER may name is the trunk's to say: whoever makes us call can make us pay.

use std::time::Instant;

use tandem_sip::header::refer::ReferTo;
use tandem_sip::message::{Body, Reply, Request, Response};
use tandem_sip::{CallHandle, EndReason, HeaderName, Headers, RequestHandle, Uri};

use super::takeover::{Seat, Successor};
use super::{Call, DialogId, fresh_keys};
use crate::call::action::Action;
use crate::call::ending::{Cause, Ending};
use crate::call::invite;
use crate::call::negotiation::Negotiation;
use crate::call::order::{Callee, Order};
use crate::call::outcome::CarrierWord;
use crate::call::registry::Surroundings;
use crate::call::state::State;
use crate::sip::{NotSent, Token, Verb};
use crate::trunk::ReferIn;

/// Octets of a Refer-To that is followed.
const TARGET_MAX: usize = 1_024;

/// Our INVITE to whom a REFER names.
#[derive(Debug)]
pub(super) struct Referral {
    token: Token,
    /// `None`: it has not left yet.
    sip: Option<CallHandle>,
    negotiation: Negotiation,
    target: Uri,
    /// When it is given up.
    give_up: Instant,
    /// The last status that the referrer was told.
    told: u16,
}

impl Referral {
    pub(super) fn sip(&self) -> Option<CallHandle> {
        self.sip
    }

    pub(super) fn give_up(&self) -> Instant {
        self.give_up
    }

    /// CANCEL, now or when it has left: a token that nobody knows any more is hung up.
    pub(super) fn cancel(self, headers: Headers, around: &mut Surroundings<'_>) {
        if let Some(sip) = self.sip {
            around.forget(self.token);
            around.actions.push_back(Action::Sip(Verb::HangUp(sip, headers)));
        }
    }
}

impl Call {
    /// The other side asks us to call somebody else.
    pub fn handle_refer(&mut self, handle: RequestHandle, refer: &Request, around: &mut Surroundings<'_>) {
        match self.check_refer(refer) {
            Ok((order, replaces)) => self.follow_refer(handle, refer, order, replaces, around),
            Err((status, why)) => {
                self.note_takeover("refer_in", "Refer-To", &why, false);
                around.actions.push_back(Action::Sip(Verb::Reply(handle, Reply::new(status))));
            }
        }
    }

    /// Who is to be called, or why not.
    fn check_refer(&self, refer: &Request) -> Result<(Order, ReferTo), (u16, String)> {
        let declined = || (603, "the trunk's policy allows no transfer by the other side".to_owned());
        let trunk = self.trunk.as_ref().filter(|trunk| trunk.transfer.refer_in == ReferIn::SameTrunk);
        let trunk = trunk.ok_or_else(declined)?;
        let state = self.life.state();
        if !matches!(state, State::Connected | State::OnHold) || self.sip_is_over {
            // 481 would end the dialog, so it is only for one that ends: the ACK of our 200 may be late.
            let status = if self.life.is_ending() || self.sip_is_over { 481 } else { 491 };
            return Err((status, format!("the call is {}", state.word())));
        }
        if self.successor.is_some()
            || self.transfer.is_some()
            || self.has_open_guest()
            || self.joining.is_some()
        {
            return Err((491, "a transfer is under way already".to_owned()));
        }
        let text = refer.header(HeaderName::ReferTo).unwrap_or_default();
        let to =
            Some(text).filter(|text| text.len() <= TARGET_MAX).and_then(|text| ReferTo::parse(text).ok());
        let to = to.ok_or_else(|| (400, "no usable Refer-To".to_owned()))?;
        let target = &to.target.uri;
        if target.param("method").is_some_and(|method| !method.eq_ignore_ascii_case("INVITE")) {
            return Err((603, "another request than INVITE is wanted".to_owned()));
        }
        if target.password().is_some() {
            return Err((403, "the target must be a SIP URI without a password".to_owned()));
        }
        self.check_target(target).map_err(|why| (403, why))?;
        let (Some(tenant_id), Some(agent)) = (&self.tenant_id, &self.agent) else { return Err(declined()) };
        let order = Order {
            provider: None,
            tenant_id: tenant_id.clone(),
            assistant_id: self.assistant_id.clone(),
            agent: agent.clone(),
            trunk: trunk.clone(),
            failover: Vec::new(),
            from: self.own_number().into(),
            to: Callee::Uri(target.clone()),
            args: Default::default(),
            metadata: Default::default(),
            headers: Headers::new(),
            ring_max: trunk.transfer.timeout,
            duration_max: None,
            bulk: None,
            idempotency: None,
        };
        Ok((order, to))
    }

    /// Who we say we are: who the other side knows as us.
    pub(super) fn own_number(&self) -> String {
        if let Some(own) = self.outbound.as_deref() {
            return own.from().to_owned();
        }
        let trunk = self.trunk.as_deref();
        let of_trunk = trunk.and_then(|trunk| trunk.outbound.caller_id.clone().or(trunk.credential.user()));
        let dialled = || Uri::parse(&self.to).ok().and_then(|uri| uri.user().map(|user| user.into_owned()));
        of_trunk.or_else(dialled).unwrap_or_else(|| self.assistant_id.to_string())
    }

    fn follow_refer(
        &mut self,
        handle: RequestHandle,
        refer: &Request,
        order: Order,
        to: ReferTo,
        around: &mut Surroundings<'_>,
    ) {
        // Who refers us knows the keys of this dialog: the target gets others.
        let mut negotiation = Negotiation::new(self.trunk.as_deref());
        let rules = self.trunk.as_ref().map(|trunk| trunk.srtp).unwrap_or_default();
        let (srtp, dtls) = fresh_keys(rules, self.negotiation.srtp_policy(), around);
        negotiation.protect(srtp, dtls);
        negotiation.take_port_of(&self.negotiation, self.has_media());
        let offer = negotiation.offer().map(Body::sdp);
        let target = to.target.uri;
        let invite = invite::invite(&order, &order.trunk, Some(target.clone()), offer);
        let (mut request, destination) = match invite {
            Ok(invite) => invite,
            Err(error) => {
                self.note_takeover("refer_in", "Refer-To", &error.to_string(), false);
                return around.actions.push_back(Action::Sip(Verb::Reply(handle, Reply::new(403))));
            }
        };
        request.replaces = to.replaces;
        let referred_by = refer.header(HeaderName::ReferredBy).map(str::to_owned);
        let referred_by = referred_by.unwrap_or_else(|| format!("<{}>", refer.head.from().uri.redacted()));
        // One that holds a line break is no header; the call goes without.
        let _ = request.headers.push(HeaderName::ReferredBy.as_str(), &referred_by);
        let token = around.token(self.id);
        around.actions.push_back(Action::Sip(Verb::AcceptRefer(handle)));
        around.actions.push_back(Action::Sip(Verb::Invite(token, Box::new(request), destination)));
        self.note_takeover("refer_in", "Refer-To", target.without_password().as_str(), true);
        self.tell_transfer("referred", "");
        let give_up = around.now + order.ring_max;
        let referral = Referral { token, sip: None, negotiation, target, give_up, told: 100 };
        self.successor = Some(Successor::Referral(Box::new(referral)));
    }

    fn referral_mut(&mut self) -> Option<&mut Referral> {
        match &mut self.successor {
            Some(Successor::Referral(referral)) => Some(referral),
            _ => None,
        }
    }

    fn take_referral(&mut self, is_it: impl Fn(&Referral) -> bool) -> Option<Referral> {
        let is_it =
            |successor: &mut Successor| matches!(successor, Successor::Referral(referral) if is_it(referral));
        match self.successor.take_if(is_it) {
            Some(Successor::Referral(referral)) => Some(*referral),
            _ => None,
        }
    }

    /// The handle that a request of this call's had under this token.
    pub fn handle_of(&self, token: Token) -> Option<CallHandle> {
        if let Some(sip) = self.guest_of(token) {
            return sip;
        }
        match &self.successor {
            Some(Successor::Referral(referral)) if referral.token == token => referral.sip,
            _ => {
                let own = self.outbound.as_deref()?;
                let fork = own.forks.iter().find(|fork| fork.token == token);
                fork.map_or(self.sip.filter(|_| own.is_named(token)), |fork| fork.sip)
            }
        }
    }

    /// The INVITE of a referral has left. `false`: it is not a referral's.
    pub(super) fn handle_referral_placed(&mut self, token: Token, sip: CallHandle) -> bool {
        let Some(referral) = self.referral_mut().filter(|referral| referral.token == token) else {
            return false;
        };
        referral.sip = Some(sip);
        true
    }

    /// The INVITE of a referral could not leave. `false`: it is not a referral's.
    pub(super) fn handle_referral_not_sent(
        &mut self,
        token: Token,
        why: &NotSent,
        around: &mut Surroundings<'_>,
    ) -> bool {
        let Some(referral) = self.take_referral(|referral| referral.token == token) else { return false };
        self.fail_referral(referral, 503, &why.to_string(), around);
        true
    }

    /// 101 to 199 of a referral's target: the referrer hears what changes.
    pub fn handle_referral_progress(
        &mut self,
        sip: CallHandle,
        response: &Response,
        around: &mut Surroundings<'_>,
    ) {
        let Some(referral) = self.referral_mut().filter(|referral| referral.sip == Some(sip)) else { return };
        if std::mem::replace(&mut referral.told, response.status) != response.status {
            self.notify(response.status, around);
        }
    }

    /// 2xx of a referral's target: the agent talks with it from here on.
    pub fn handle_referral_answered(
        &mut self,
        sip: CallHandle,
        response: &Response,
        around: &mut Surroundings<'_>,
    ) {
        let Some(mut referral) = self.take_referral(|referral| referral.sip == Some(sip)) else { return };
        let negotiated = match referral.negotiation.accept_final(response.sdp()) {
            Ok(negotiated) => negotiated,
            Err(error) => {
                let ending = Ending::with_detail(Cause::BadAnswer, error.to_string());
                around.actions.push_back(Action::Sip(Verb::HangUp(sip, ending.to_headers())));
                return self.fail_referral(referral, 488, &error.to_string(), around);
            }
        };
        around.forget(referral.token);
        self.notify(200, around);
        let seat = Seat {
            sip,
            negotiation: referral.negotiation,
            trunk: self.trunk.clone(),
            peer_host: referral.target.host().to_owned(),
            contact: None,
            dialog: DialogId::of_answer(response),
            flow: self.flow,
        };
        if self.has_media() {
            self.session.update(self.negotiation.rtp_parameters(&negotiated));
        }
        if let Some(former) = self.move_to(seat, around) {
            self.leave(former, around.now);
        }
    }

    /// The INVITE of a referral is over without an answer.
    pub(super) fn handle_referral_ended(
        &mut self,
        referral: Referral,
        why: EndReason,
        around: &mut Surroundings<'_>,
    ) {
        match why {
            EndReason::Failed { response } => {
                let word = CarrierWord::of(&response);
                let text = format!("{} {}", word.status, word.phrase);
                self.fail_referral(referral, word.status, text.trim_end(), around);
            }
            EndReason::NoResponse(why) => self.fail_referral(referral, 408, &why.to_string(), around),
            _ => self.fail_referral(referral, 500, "its dialog was lost", around),
        }
    }

    /// The target rings for too long.
    pub(super) fn give_up_referral(&mut self, referral: Referral, around: &mut Surroundings<'_>) {
        let headers = Ending::new(Cause::NoAnswer).to_headers();
        self.report_failure(408, "nobody answered in time", around);
        referral.cancel(headers, around);
    }

    fn fail_referral(&mut self, referral: Referral, status: u16, why: &str, around: &mut Surroundings<'_>) {
        around.forget(referral.token);
        self.report_failure(status, why, around);
    }

    fn report_failure(&mut self, status: u16, why: &str, around: &mut Surroundings<'_>) {
        self.notify(status, around);
        self.note_takeover("refer_in", "INVITE", why, false);
        self.tell_transfer("failed", why);
        // Who has referred us is gone already: nobody is left to talk with.
        if self.sip_is_over {
            self.end(Ending::new(Cause::CallerHangup), around);
        }
    }

    /// Tells the referrer, if it is still there.
    fn notify(&mut self, status: u16, around: &mut Surroundings<'_>) {
        if !self.sip_is_over {
            self.ask_sip(around, |sip| Verb::NotifyRefer(sip, status));
        }
    }

    /// The other side hangs up while its target is called: the agent waits for that one. `false`: it is not called.
    pub(super) fn wait_for_target(&mut self) -> bool {
        if self.life.is_ending() || self.referral_mut().is_none() {
            return false;
        }
        self.sip_is_over = true;
        self.negotiation.abandon();
        if let Some(mut silent) = self.negotiation.current().copied().filter(|_| self.has_media()) {
            silent.direction = tandem_sdp::Direction::Inactive;
            self.session.update(self.negotiation.rtp_parameters(&silent));
        }
        self.life.hold(true);
        true
    }
}
