//! A call of ours until its answer: queue, engine, INVITE, what rings, and what becomes of it.
//!
//! ```text
//!   Queued ─turn─▶ Open ─▶ INVITE with our offer ─▶ 18x with SDP: Update, Listen (several forks: the newest is heard)
//!     ─▶ 2xx: Update, Start ─▶ Connected                         3xx ─▶ INVITE to the next Contact, within bounds
//!     ─▶ 4xx–6xx ─▶ an ending with the carrier's words           no answer at all, 503 ─▶ the next trunk
//! ```
//!
//! The agent is dialled with Open, so it is there when the callee answers, and what it said until then is played from
//! the first packet on. A CANCEL that crosses the 200 is the endpoint's to turn into a BYE.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;

use tandem_api::v1::DecisionStep;
use tandem_sip::header::contact::Contact;
use tandem_sip::message::{Body, Response};
use tandem_sip::{CallHandle, EndReason, HeaderName, Headers, Uri};
use uuid::Uuid;

use super::fork::{self, Fork};
use super::{Call, Negotiation};
use crate::call::action::Action;
use crate::call::admission::refused_by;
use crate::call::ending::{Cause, Ending};
use crate::call::invite;
use crate::call::negotiation::NegotiationError;
use crate::call::order::Order;
use crate::call::outcome::CarrierWord;
use crate::call::registry::Surroundings;
use crate::call::state::{Life, State};
use crate::media::Fleet;
use crate::sip::{NotSent, Token, Verb};
use crate::trunk::{Redirects, Trunk};

/// Contacts of 3xx answers that one call follows, in all. More would be a loop.
const REDIRECTS_MAX: usize = 5;

/// What only a call of ours has.
#[derive(Debug)]
pub(super) struct Outbound {
    order: Order,
    /// Over which it goes now.
    trunk: Arc<Trunk>,
    /// Trunks that are left to try.
    failover: VecDeque<Arc<Trunk>>,
    /// The name of its last INVITE.
    token: Option<Token>,
    /// The same, while it has neither left nor failed.
    asked: Option<Token>,
    /// What its CANCEL says: it is to be given up when it has left.
    give_up: Option<Headers>,
    /// Contacts of 3xx answers that are left to try.
    contacts: VecDeque<Uri>,
    /// All that were followed or are left.
    redirected: Vec<Uri>,
    /// The callee's side has said something to this INVITE.
    is_heard: bool,
    /// Other places where it rings.
    pub(super) forks: Vec<Fork>,
    /// It rang at several places.
    pub(super) is_forked: bool,
    /// The best of the final responses so far.
    refusal: Option<CarrierWord>,
}

impl Outbound {
    pub(super) fn trunk_name(&self) -> &str {
        &self.trunk.name
    }

    /// The number that the callee sees.
    pub(super) fn from(&self) -> &str {
        &self.order.from
    }

    /// Whether its INVITE has this name.
    pub(super) fn is_named(&self, token: Token) -> bool {
        self.token == Some(token)
    }

    /// This branch is the call's own from here on. Gives the name of the one before.
    pub(super) fn name_branch(&mut self, branch: Fork) -> Option<Token> {
        self.asked = branch.sip.is_none().then_some(branch.token);
        self.token.replace(branch.token)
    }

    /// The call goes on in another dialog. Gives the name of the INVITE, which is not needed any more.
    pub(super) fn leave_dialog(&mut self) -> Option<Token> {
        self.asked = None;
        self.token.take()
    }
}

/// What came of an INVITE, for the trace.
fn carrier_step(got: &str) -> DecisionStep {
    DecisionStep {
        step: "carrier".to_owned(),
        rule: "final_response".to_owned(),
        field: "INVITE".to_owned(),
        expected: "an answer".to_owned(),
        got: got.to_owned(),
        passed: false,
    }
}

impl Call {
    /// A call that waits for its turn.
    pub fn place(id: Uuid, order: Order, around: &Surroundings<'_>) -> Self {
        let trunk = order.trunk.clone();
        let step = DecisionStep {
            step: "trunk".to_owned(),
            rule: "outbound".to_owned(),
            field: "trunk".to_owned(),
            expected: "a trunk of this tenant".to_owned(),
            got: trunk.name.to_string(),
            passed: true,
        };
        let life = Life::queued(&around.settings.limits, order.duration_max, around.now);
        let blank = Self::blank(id, life, around);
        Self {
            trunk: Some(trunk.clone()),
            from: order.from.to_string(),
            to: order.to.shown().to_owned(),
            assistant_id: order.assistant_id.clone(),
            tenant_id: Some(order.tenant_id.clone()),
            agent: Some(order.agent.clone()),
            custom: order.args.clone(),
            may_ring: true,
            trace: vec![step],
            negotiation: Negotiation::new(Some(&*order.trunk)),
            outbound: Some(Box::new(Outbound {
                failover: order.failover.iter().cloned().collect(),
                order,
                trunk,
                token: None,
                asked: None,
                give_up: None,
                contacts: VecDeque::new(),
                redirected: Vec::new(),
                is_heard: false,
                forks: Vec::new(),
                is_forked: false,
                refusal: None,
            })),
            ..blank
        }
    }

    /// The name of its INVITE, once that has left or failed.
    pub fn idle_token(&self) -> Option<Token> {
        let own = self.outbound.as_deref()?;
        own.token.filter(|_| own.asked.is_none())
    }

    /// Of which bulk it is.
    pub fn bulk(&self) -> Option<Uuid> {
        self.order()?.bulk
    }

    /// What was ordered, of a call that we place.
    pub(super) fn order(&self) -> Option<&Order> {
        match &self.outbound {
            Some(own) => Some(&own.order),
            None => self.provider_order(),
        }
    }

    /// Its turn has come.
    pub fn dial(&mut self, fleet: &mut Fleet, around: &mut Surroundings<'_>) {
        if self.life.state() != State::Queued {
            return;
        }
        if self.stream.is_some() {
            return self.dial_provider(fleet, around);
        }
        self.life.begin(around.settings.limits.ring_max, around.now);
        self.remember(around);
        self.open(fleet, around);
    }

    /// The INVITE leaves, to the callee or to where it was redirected.
    pub(super) fn send_invite(&mut self, target: Option<Uri>, around: &mut Surroundings<'_>) {
        let Some(own) = self.outbound.as_deref_mut() else { return };
        let offer = if own.trunk.outbound.is_offer_delayed { None } else { self.negotiation.offer() };
        let (request, destination) =
            match invite::invite(&own.order, &own.trunk, target, offer.map(Body::sdp)) {
                Ok(invite) => invite,
                Err(error) => {
                    self.trace.push(carrier_step(&error.to_string()));
                    return self.end(Ending::with_detail(Cause::Unreachable, error.to_string()), around);
                }
            };
        let token = around.token(self.id);
        if let Some(before) = own.token.replace(token) {
            around.forget(before);
        }
        own.asked = Some(token);
        own.is_heard = false;
        self.sip = None;
        self.life.dial(own.order.ring_max, around.now);
        around.actions.push_back(Action::Sip(Verb::Invite(token, Box::new(request), destination)));
    }

    /// The INVITE has left; again, under another handle, when it was given to the next address.
    pub fn handle_placed(&mut self, token: Token, call: CallHandle, around: &mut Surroundings<'_>) {
        if self.handle_guest_placed(token, call)
            || self.handle_referral_placed(token, call)
            || self.handle_fork_placed(token, call)
        {
            return;
        }
        let Some(own) = self.outbound.as_deref_mut().filter(|own| own.token == Some(token)) else {
            // What was given up before it left.
            around.forget(token);
            return around.actions.push_back(Action::Sip(Verb::HangUp(call, Headers::new())));
        };
        self.sip = Some(call);
        if own.asked == Some(token) {
            own.asked = None;
        }
        let headers = match (own.give_up.take(), &self.ending) {
            (Some(headers), _) => headers,
            (None, Some(ending)) => ending.to_headers(),
            (None, None) => return,
        };
        around.actions.push_back(Action::Sip(Verb::HangUp(call, headers)));
    }

    /// The INVITE could not leave.
    pub fn handle_not_sent(&mut self, token: Token, why: &NotSent, around: &mut Surroundings<'_>) {
        if self.handle_guest_not_sent(token, why, around)
            || self.handle_referral_not_sent(token, why, around)
            || self.take_fork(|fork| fork.token == token).is_some()
        {
            return;
        }
        let Some(own) = self.outbound.as_deref_mut().filter(|own| own.token == Some(token)) else {
            // An INFO of ours.
            return self.handle_info_answered(around);
        };
        own.asked = None;
        self.sip = None;
        if self.life.is_ending() {
            self.sip_is_over = true;
            return;
        }
        self.trace.push(carrier_step(&why.to_string()));
        if self.another_rings(around) {
            return;
        }
        self.try_next_trunk(Ending::with_detail(Cause::TrunkUnreachable, why.to_string()), around);
    }

    /// 101 to 199, of this or another fork. `wants_prack`: it carries their offer, since our INVITE had none.
    pub fn handle_provisional(
        &mut self,
        response: &Response,
        wants_prack: bool,
        around: &mut Surroundings<'_>,
    ) {
        let Some(own) = self.outbound.as_deref_mut() else { return };
        if self.life.is_ending() || !self.life.is_before_answer() {
            return;
        }
        own.is_heard = true;
        let is_wanted = own.trunk.outbound.early_media;
        let early = match wants_prack {
            true => Some(self.answer_their_offer(response, Verb::Prack, around)),
            false => response.sdp().map(|sdp| self.negotiation.accept_early(sdp)),
        };
        if response.status == 180 || early.is_some() {
            self.life.ring();
        }
        // What cannot be read now may be said better in the 200.
        if let (Some(Ok(negotiated)), true) = (early, is_wanted) {
            self.move_media(self.negotiation.rtp_parameters(&negotiated));
            self.session.listen();
        }
    }

    /// 2xx: the callee has answered.
    pub fn handle_answered(&mut self, response: &Response, wants_ack: bool, around: &mut Surroundings<'_>) {
        // The endpoint hangs up what was given up already.
        if self.life.is_ending() || self.outbound.is_none() {
            return;
        }
        self.cancel_forks(&fork::answered_elsewhere(), around);
        self.answered_ms = around.epoch_ms();
        self.life.answer(around.now);
        self.dialog = super::DialogId::of_answer(response);
        let negotiated = if wants_ack {
            self.answer_their_offer(response, Verb::Ack, around)
        } else {
            self.negotiation.accept_final(response.sdp())
        };
        match negotiated.map(|negotiated| self.negotiation.rtp_parameters(&negotiated)) {
            Ok(rtp) => {
                self.move_media(rtp);
                self.session.start();
                self.life.acknowledge();
                self.life.hold(self.is_held());
            }
            Err(error) => self.end(Ending::with_detail(Cause::BadAnswer, error.to_string()), around),
        }
    }

    /// Our INVITE had no offer: theirs is in the response, and our answer goes into the ACK or PRACK.
    fn answer_their_offer(
        &mut self,
        response: &Response,
        verb: fn(CallHandle, Body) -> Verb,
        around: &mut Surroundings<'_>,
    ) -> Result<tandem_sdp::Negotiated, NegotiationError> {
        let offer = response.sdp().ok_or(NegotiationError::Missing)?;
        let negotiated = self.negotiation.propose(&tandem_sdp::SessionDescription::parse(offer)?)?;
        let text = self.negotiation.commit().ok_or(NegotiationError::Missing)?;
        self.ask_sip(around, |sip| verb(sip, Body::sdp(text)));
        Ok(negotiated)
    }

    /// The INVITE is over, and nobody has answered it.
    pub(super) fn handle_not_answered(&mut self, why: EndReason, around: &mut Surroundings<'_>) {
        if self.life.is_ending() {
            self.sip_is_over = true;
            return;
        }
        self.sip = None;
        let ending = match why {
            EndReason::Failed { response } => {
                let ending = self.note_refusal(&response, around);
                if self.another_rings(around) {
                    return;
                }
                if self.follow(&response, around) {
                    return;
                }
                // What has rung somewhere is not tried elsewhere: two phones would ring for one call.
                let is_heard = self.outbound.as_deref().is_some_and(|own| own.is_heard);
                if response.status != 503 || is_heard {
                    return self.end(ending, around);
                }
                ending
            }
            EndReason::NoResponse(why) => {
                self.trace.push(carrier_step(&why.to_string()));
                if self.another_rings(around) {
                    return;
                }
                let ending = Ending::with_detail(Cause::TrunkUnreachable, why.to_string());
                // What has rung somewhere is not tried elsewhere: two phones would ring for one call.
                if self.outbound.as_deref().is_some_and(|own| own.is_heard) {
                    return self.end(ending, around);
                }
                ending
            }
            _ => return self.end(Ending::new(Cause::DialogLost), around),
        };
        self.try_next_trunk(ending, around);
    }

    /// A branch was refused. Gives the ending that the call has if no other one answers: the best of what was said (RFC
    /// 3261 §16.7), which is a 6xx if there is one, else of the lowest class; and 6xx ends the other branches.
    pub(super) fn note_refusal(&mut self, response: &Response, around: &mut Surroundings<'_>) -> Ending {
        let word = CarrierWord::of(response);
        self.trace.push(carrier_step(&format!("{} {}", word.status, word.phrase)));
        if word.status >= 600 {
            self.cancel_forks(&Headers::new(), around);
        }
        let rank = |word: &CarrierWord| if word.status >= 600 { 0 } else { word.status / 100 };
        let Some(own) = self.outbound.as_deref_mut() else { return word.to_ending() };
        let best = match own.refusal.take() {
            Some(before) if own.is_forked && rank(&before) <= rank(&word) => before,
            _ => word,
        };
        let ending = best.to_ending();
        own.refusal = Some(best);
        ending
    }

    /// Where a 3xx sends us, or the next of the Contacts that an earlier one has named. `false`: nowhere.
    fn follow(&mut self, response: &Response, around: &mut Surroundings<'_>) -> bool {
        let Some(own) = self.outbound.as_deref_mut() else { return false };
        if (300..400).contains(&response.status) && own.trunk.outbound.redirects == Redirects::Follow {
            let contacts = response.head.headers().items(HeaderName::Contact);
            let mut contacts: Vec<Contact> = contacts.filter_map(|item| Contact::parse(item).ok()).collect();
            // The likeliest first (RFC 3261 §8.1.3.4); the order stays where nothing is said.
            contacts.sort_by_key(|contact| Reverse(contact.priority));
            for contact in contacts {
                let uri = contact.addr.uri.without_password().without_headers();
                let user = uri.user().unwrap_or_default();
                let is_new = !own.redirected.contains(&uri) && own.redirected.len() < REDIRECTS_MAX;
                if is_new && !user.is_empty() && own.trunk.outbound.allows_number(&user) {
                    own.redirected.push(uri.clone());
                    own.contacts.push_back(uri);
                }
            }
        }
        // 6xx speaks for the callee wherever he is (RFC 3261 §21.6): no other Contact is tried.
        let Some(next) = own.contacts.pop_front().filter(|_| response.status < 600) else { return false };
        self.negotiation.restart();
        self.send_invite(Some(next), around);
        true
    }

    /// This trunk does not answer: the next one, or the end.
    fn try_next_trunk(&mut self, ending: Ending, around: &mut Surroundings<'_>) {
        let next = self.outbound.as_deref_mut().and_then(|own| {
            own.trunk = own.failover.pop_front()?;
            self.trunk = Some(own.trunk.clone());
            own.contacts.clear();
            Some(())
        });
        if next.is_none() {
            return self.end(ending, around);
        }
        self.negotiation.restart();
        // Another trunk has other rules, and must not see the keys that this one was offered.
        self.protect(around);
        self.send_invite(None, around);
    }

    pub(super) fn handle_ring_timeout(&mut self, around: &mut Surroundings<'_>) {
        if self.life.state() == State::Initializing {
            self.trace.push(refused_by("engine", "OpenSession", "an answer in time", "none"));
            return self.end(Ending::new(Cause::EngineLost), around);
        }
        let is_heard = self.outbound.as_deref().is_some_and(|own| own.is_heard);
        self.trace.push(carrier_step(if is_heard { "ringing, for too long" } else { "nothing in time" }));
        let cause = if is_heard { Cause::NoAnswer } else { Cause::TrunkUnreachable };
        self.end(Ending::new(cause), around);
    }

    /// The end before the answer: CANCEL, now or when the INVITE has left.
    pub(super) fn give_up(&mut self, ending: &Ending, around: &mut Surroundings<'_>) {
        let Some(own) = self.outbound.as_deref_mut() else { return };
        let (forks, headers) = (std::mem::take(&mut own.forks), ending.to_headers());
        for fork in forks {
            fork.cancel(&headers, around);
        }
        match (self.sip, own.asked) {
            (Some(sip), _) if !self.sip_is_over => {
                around.actions.push_back(Action::Sip(Verb::HangUp(sip, ending.to_headers())));
            }
            (None, Some(_)) => own.give_up = Some(ending.to_headers()),
            _ => self.sip_is_over = true,
        }
        if self.trace.last().is_none_or(|step| step.passed) {
            self.trace.push(ending.to_step());
        }
    }
}
