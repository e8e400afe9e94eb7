//! Somebody whom this call brings in beside its other side: whom the agent consults or puts the other side through to, or a
//! supervisor who listens in, whispers or joins. Their phone is another dialog of the call, and a second leg in its session.
//!
//! ```text
//!   agent or API ─▶ may they be called? ─▶ engine: AddLeg, a port ─▶ INVITE ─▶ 180 ─▶ 2xx ─▶ engine: UpdateLeg, the role
//!                        └── no                   └── no room          └── refused, or too late ─▶ RemoveLeg
//!   BYE of the guest, or LegLost ─▶ RemoveLeg: agent and other side talk as before; without an agent the call ends
//!   the call ends ─▶ BYE or CANCEL to the guest
//! ```
//!
//! While a guest's phone rings the call goes on as it was, except that who is to be put through hears it ring. A call has
//! one guest at most; what the guest's own trunk says of an offer in the 200 is not asked for: our INVITE always has one.

use std::time::Instant;

use tandem_api::engine::v1 as engine;
use tandem_api::engine::v1::LegRole;
use tandem_api::engine::v1::session_ended::Reason;
use tandem_sdp::{LocalSrtp, SessionDescription};
use tandem_sip::message::{Body, Method, Reply, Request, Response};
use tandem_sip::{CallHandle, EndReason, Headers, RequestHandle};

use super::{Asked, Call};
use crate::call::action::{Action, EngineCommand, EngineRefusal};
use crate::call::ending::{Cause, Ending};
use crate::call::invite;
use crate::call::negotiation::{Negotiation, NegotiationError};
use crate::call::order::{Callee, Host, Order};
use crate::call::outcome::CarrierWord;
use crate::call::registry::Surroundings;
use crate::call::state::State;
use crate::sip::{NotSent, Token, Verb};

/// Who wants a guest brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    Agent,
    Operator,
}

/// Where a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The engine opens a port.
    Opening,
    /// The phone rings, or soon will.
    Calling {
        /// The agent has been told that it rings.
        rings: bool,
    },
    /// It was answered.
    Talking,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Guest {
    order: Order,
    role: LegRole,
    asker: Asker,
    stage: Stage,
    token: Option<Token>,
    /// `None`: the INVITE has not left yet.
    sip: Option<CallHandle>,
    negotiation: Negotiation,
    /// When the phone has rung for too long.
    give_up: Instant,
}

impl Guest {
    /// BYE or CANCEL, now or when the INVITE has left: a token that nobody knows any more is hung up.
    pub(super) fn leave(self, headers: Headers, around: &mut Surroundings<'_>) {
        if let Some(sip) = self.sip {
            if let Some(token) = self.token {
                around.forget(token);
            }
            around.actions.push_back(Action::Sip(Verb::HangUp(sip, headers)));
        }
    }

    /// What its leg is there for while its phone rings: nothing that the caller could hear, but perhaps that it rings.
    fn role_while_ringing(&self) -> (LegRole, bool) {
        match self.role {
            LegRole::Bridge => (LegRole::Consult, true),
            _ => (LegRole::Listen, false),
        }
    }
}

impl Call {
    /// An operator wants somebody brought in, or who is there given another role (`to` is empty then).
    pub fn join(&mut self, to: &str, role: LegRole, trunk: &str, around: &mut Surroundings<'_>) -> Asked {
        if to.is_empty() {
            return self.set_guest_role(role);
        }
        match self.guest_order(to, trunk, around) {
            Ok(order) => self.bring_in(order, role, Asker::Operator, around),
            Err(why) => Asked::Policy(why),
        }
    }

    /// The agent wants somebody brought in, or something of who is there.
    pub(super) fn handle_agent_guest(
        &mut self,
        to: &str,
        mode: engine::TransferMode,
        around: &mut Surroundings<'_>,
    ) -> Asked {
        use engine::TransferMode as Mode;
        let role = match mode {
            Mode::Bridge => LegRole::Bridge,
            Mode::Consult => LegRole::Consult,
            Mode::Complete => return self.set_guest_role(LegRole::Bridge),
            Mode::Conference => return self.set_guest_role(LegRole::Conference),
            Mode::Cancel => {
                if self.guest.is_none() {
                    return Asked::NoTarget;
                }
                self.let_guest_go("the agent wants it so", around);
                return Asked::Done;
            }
            Mode::Unspecified | Mode::Refer => return Asked::NoTarget,
        };
        let order = self.guest_order(to, "", around).and_then(|order| {
            self.check_agent_guest(&order)?;
            Ok(order)
        });
        match order {
            Ok(order) => self.bring_in(order, role, Asker::Agent, around),
            Err(why) => Asked::Policy(why),
        }
    }

    fn guest_order(&self, to: &str, trunk: &str, around: &Surroundings<'_>) -> Result<Order, String> {
        let (Some(tenant_id), Some(agent)) = (&self.tenant_id, &self.agent) else {
            return Err("the call is nobody's".to_owned());
        };
        let number = self.own_number();
        let host = Host {
            tenant_id,
            assistant_id: &self.assistant_id,
            agent,
            trunk: self.trunk.as_ref(),
            number: &number,
        };
        Order::guest(host, to.trim(), trunk, around.gate.trunks()).map_err(|error| error.to_string())
    }

    /// A language model must not be talked into dialling what costs money: over the call's own trunk the rules of a
    /// transfer hold; over another one it may name only what that one's targets list; our own phones cost nothing.
    fn check_agent_guest(&self, order: &Order) -> Result<(), String> {
        let is_own = self.trunk.as_ref().is_some_and(|own| own.name == order.trunk.name);
        match &order.to {
            Callee::Phone(_) => Ok(()),
            _ if !is_own && order.trunk.transfer.targets.is_empty() => {
                Err(format!("trunk {} names no transfer targets", order.trunk.name))
            }
            Callee::Number(number) => super::transfer::check_number(&order.trunk, number),
            Callee::Uri(uri) => super::transfer::check_number(&order.trunk, &uri.user().unwrap_or_default()),
        }
    }

    fn bring_in(
        &mut self,
        order: Order,
        role: LegRole,
        asker: Asker,
        around: &mut Surroundings<'_>,
    ) -> Asked {
        let state = self.life.state();
        if !matches!(state, State::Connected | State::OnHold) || self.sip_is_over {
            return Asked::State(state);
        }
        if !self.has_media() {
            return Asked::Policy("the call has no media".to_owned());
        }
        let is_busy = self.guest.is_some() || self.transfer.is_some() || self.successor.is_some();
        if is_busy || !self.session.is_leg_at_rest() {
            return Asked::Busy;
        }
        let give_up = around.now + order.ring_max;
        let guest = Guest {
            negotiation: Negotiation::new(Some(&order.trunk)),
            order,
            role,
            asker,
            stage: Stage::Opening,
            token: None,
            sip: None,
            give_up,
        };
        let (role, caller_rings) = guest.role_while_ringing();
        // Without an address nothing is sent: the leg has a port, and that is all.
        let rtp = Some(engine::RtpParameters::default());
        let add = engine::AddLegRequest { rtp, role: role.into(), caller_rings, ..Default::default() };
        if !self.session.change_leg(EngineCommand::AddLeg(Box::new(add))) {
            return Asked::Busy;
        }
        self.note_guest(guest.order.to.shown(), true);
        self.guest = Some(Box::new(guest));
        self.tell_of_guest("trying", "");
        Asked::Done
    }

    fn set_guest_role(&mut self, role: LegRole) -> Asked {
        if self.agent_left && role != LegRole::Bridge {
            return Asked::Policy("the agent has left the call".to_owned());
        }
        let Some(guest) = &mut self.guest else { return Asked::NoTarget };
        if guest.stage == Stage::Talking {
            let update = engine::UpdateLegRequest { role: role.into(), ..Default::default() };
            if !self.session.change_leg(EngineCommand::UpdateLeg(Box::new(update))) {
                return Asked::Busy;
            }
        }
        // One that still rings has it when it is answered.
        guest.role = role;
        Asked::Done
    }

    // --- the engine ---

    /// The engine has a port for the guest, or has none.
    pub(super) fn handle_leg_added(
        &mut self,
        result: Result<Box<engine::AddLegResponse>, EngineRefusal>,
        around: &mut Surroundings<'_>,
    ) {
        self.session.handle_leg();
        let is_its = self.guest.as_ref().is_some_and(|guest| guest.stage == Stage::Opening);
        match result {
            // What nobody waits for any more is being removed already.
            _ if !is_its => {}
            Ok(added) => {
                let port = u16::try_from(added.local_port).ok().filter(|port| *port != 0);
                match (added.local_address.parse(), port) {
                    (Ok(address), Some(port)) => self.invite_guest(address, port, around),
                    _ => self.fail_guest("the media engine gave no address", around),
                }
            }
            Err(refusal) => {
                let why = match &refusal {
                    EngineRefusal::Full(why)
                    | EngineRefusal::Unreachable(why)
                    | EngineRefusal::Address(why)
                    | EngineRefusal::Invalid(why) => format!("the media engine: {why}"),
                    EngineRefusal::Gone => "the media engine has no such session".to_owned(),
                };
                self.fail_guest(&why, around);
            }
        }
    }

    /// The engine has changed the guest's leg, or cannot.
    pub(super) fn handle_leg_updated(
        &mut self,
        result: &Result<(), EngineRefusal>,
        around: &mut Surroundings<'_>,
    ) {
        self.session.handle_leg();
        let is_its = self.guest.as_ref().is_some_and(|guest| guest.stage == Stage::Talking);
        if let (Err(_), true) = (result, is_its) {
            self.let_guest_go("the media engine cannot carry it", around);
        }
    }

    /// Nothing comes from the guest's phone any more: it has gone without a BYE.
    pub(super) fn handle_guest_lost(&mut self, reason: Reason, detail: &str, around: &mut Surroundings<'_>) {
        if self.guest.as_ref().is_some_and(|guest| guest.stage == Stage::Talking) {
            let why =
                if reason == Reason::Transport { detail } else { "nothing was heard of it for too long" };
            self.let_guest_go(why, around);
        }
    }

    // --- the guest's dialog ---

    fn invite_guest(&mut self, address: std::net::IpAddr, port: u16, around: &mut Surroundings<'_>) {
        let id = self.id;
        let Some(guest) = self.guest.as_deref_mut() else { return };
        let trunk = &guest.order.trunk;
        let policy = trunk.srtp.policy(true, trunk.credential.is_private());
        let random = |octets: &mut [u8]| {
            for eight in octets.chunks_mut(8) {
                eight.copy_from_slice(&around.random().to_ne_bytes()[..eight.len()]);
            }
        };
        // DTLS-SRTP is for callers only so far.
        guest.negotiation.protect(LocalSrtp::new(policy, random), None);
        // 62 bits, as for the call's own description.
        guest.negotiation.open(address, port, around.random() >> 2, None);
        let offer = guest.negotiation.offer().map(Body::sdp);
        match invite::invite(&guest.order, trunk, None, offer) {
            Ok((request, destination)) => {
                let token = around.token(id);
                guest.token = Some(token);
                guest.stage = Stage::Calling { rings: false };
                around.actions.push_back(Action::Sip(Verb::Invite(token, Box::new(request), destination)));
            }
            Err(error) => self.fail_guest(&error.to_string(), around),
        }
    }

    /// The handle that the guest's INVITE had under this token; the outer `None`: it is not the guest's.
    pub(super) fn guest_of(&self, token: Token) -> Option<Option<CallHandle>> {
        self.guest.as_ref().filter(|guest| guest.token == Some(token)).map(|guest| guest.sip)
    }

    fn guest_mut(&mut self, sip: CallHandle) -> Option<&mut Guest> {
        self.guest.as_deref_mut().filter(|guest| guest.sip == Some(sip))
    }

    /// The INVITE of a guest has left. `false`: it is not a guest's.
    pub(super) fn handle_guest_placed(&mut self, token: Token, sip: CallHandle) -> bool {
        let guest = self.guest.as_deref_mut().filter(|guest| guest.token == Some(token));
        guest.map(|guest| guest.sip = Some(sip)).is_some()
    }

    /// The INVITE of a guest could not leave. `false`: it is not a guest's.
    pub(super) fn handle_guest_not_sent(
        &mut self,
        token: Token,
        why: &NotSent,
        around: &mut Surroundings<'_>,
    ) -> bool {
        let Some(guest) = self.guest.as_deref_mut().filter(|guest| guest.token == Some(token)) else {
            return false;
        };
        guest.sip = None;
        self.fail_guest(&why.to_string(), around);
        true
    }

    /// 101 to 199 of a guest.
    pub fn handle_guest_progress(&mut self, sip: CallHandle, response: &Response) {
        let Some(guest) = self.guest_mut(sip) else { return };
        let is_news = response.status >= 180 && guest.stage == Stage::Calling { rings: false };
        if is_news {
            guest.stage = Stage::Calling { rings: true };
            self.tell_of_guest("ringing", "");
        }
    }

    /// 2xx of a guest: from here on its leg is there for what it was wanted for.
    pub fn handle_guest_answered(
        &mut self,
        sip: CallHandle,
        response: &Response,
        around: &mut Surroundings<'_>,
    ) {
        let Some(guest) = self.guest_mut(sip) else { return };
        let token = guest.token.take();
        guest.stage = Stage::Talking;
        let role = guest.role;
        let negotiated = guest.negotiation.accept_final(response.sdp());
        let rtp = negotiated.map(|negotiated| guest.negotiation.rtp_parameters(&negotiated));
        if let Some(token) = token {
            around.forget(token);
        }
        match rtp {
            Ok(rtp) => {
                let update =
                    engine::UpdateLegRequest { rtp: Some(rtp), role: role.into(), ..Default::default() };
                if self.session.change_leg(EngineCommand::UpdateLeg(Box::new(update))) {
                    self.tell_of_guest("joined", "");
                } else {
                    self.let_guest_go("too much waits for the media engine", around);
                }
            }
            Err(error) => self.let_guest_go(&error.to_string(), around),
        }
    }

    /// A guest's dialog is over. `false`: it is not a guest's.
    pub(super) fn handle_guest_ended(
        &mut self,
        sip: CallHandle,
        why: &EndReason,
        around: &mut Surroundings<'_>,
    ) -> bool {
        let Some(guest) = self.guest_mut(sip) else { return false };
        guest.sip = None;
        let (stage, token) = (guest.stage, guest.token.take());
        if let Some(token) = token {
            around.forget(token);
        }
        if stage == Stage::Talking {
            self.let_guest_go("", around);
            return true;
        }
        let why = match why {
            EndReason::Failed { response } => {
                let word = CarrierWord::of(response);
                format!("{} {}", word.status, word.phrase).trim_end().to_owned()
            }
            EndReason::NoResponse(why) => why.to_string(),
            _ => "its dialog was lost".to_owned(),
        };
        self.fail_guest(&why, around);
        true
    }

    /// A guest changes its session: hold, another address, a refresh. What is not a guest's is refused.
    pub fn handle_guest_reinvite(
        &mut self,
        sip: CallHandle,
        request: &Request,
        around: &mut Surroundings<'_>,
    ) {
        let verb = match self.change_guest(sip, request.sdp()) {
            Some(text) => Verb::Answer(sip, Body::sdp(text)),
            None => Verb::Reject(sip, Reply::new(488)),
        };
        around.actions.push_back(Action::Sip(verb));
    }

    /// A request in a guest's dialog. What is not a guest's is told to wait.
    pub fn handle_guest_request(
        &mut self,
        sip: CallHandle,
        handle: RequestHandle,
        request: &Request,
        around: &mut Surroundings<'_>,
    ) {
        let is_talking = self.guest_mut(sip).is_some_and(|guest| guest.stage == Stage::Talking);
        let reply = match (is_talking, &request.method) {
            (true, Method::Update) if request.body.is_empty() => Reply::new(200),
            (true, Method::Update) => match self.change_guest(sip, request.sdp()) {
                Some(text) if request.sdp().is_some() => Reply::new(200).body(Body::sdp(text)),
                _ => Reply::new(488),
            },
            // Keys of a guest are for those who hear them.
            (true, Method::Info) => Reply::new(200),
            (true, Method::Refer) => Reply::new(603),
            _ => Reply::new(491),
        };
        around.actions.push_back(Action::Sip(Verb::Reply(handle, reply)));
    }

    /// What we answer to an offer of the guest's, or our offer where it made none.
    fn change_guest(&mut self, sip: CallHandle, offer: Option<&[u8]>) -> Option<String> {
        let guest = self.guest_mut(sip).filter(|guest| guest.stage == Stage::Talking)?;
        let Some(offer) = offer else { return guest.negotiation.offer() };
        let proposed = SessionDescription::parse(offer)
            .map_err(NegotiationError::from)
            .and_then(|offer| guest.negotiation.propose(&offer));
        let rtp = guest.negotiation.rtp_parameters(&proposed.ok()?);
        let text = guest.negotiation.commit()?;
        let update = engine::UpdateLegRequest { rtp: Some(rtp), ..Default::default() };
        self.session.change_leg(EngineCommand::UpdateLeg(Box::new(update))).then_some(text)
    }

    /// The ACK of our 200 to a guest's re-INVITE.
    pub fn handle_guest_acknowledged(
        &mut self,
        sip: CallHandle,
        ack: &Request,
        around: &mut Surroundings<'_>,
    ) {
        let Some(guest) = self.guest_mut(sip).filter(|guest| guest.negotiation.awaits_answer()) else {
            return;
        };
        let negotiated = guest.negotiation.accept(ack.sdp());
        let rtp = negotiated.map(|negotiated| guest.negotiation.rtp_parameters(&negotiated));
        match rtp {
            Ok(rtp) => {
                let update = engine::UpdateLegRequest { rtp: Some(rtp), ..Default::default() };
                // Full: what the guest has now is what it keeps.
                let _ = self.session.change_leg(EngineCommand::UpdateLeg(Box::new(update)));
            }
            Err(error) => self.let_guest_go(&error.to_string(), around),
        }
    }

    // --- the end ---

    /// The agent may go: the other side has been put through to somebody, and talks with them.
    pub(super) fn may_do_without_agent(&self) -> bool {
        let is_bridged = |guest: &Guest| guest.stage == Stage::Talking && guest.role == LegRole::Bridge;
        self.agent_left || self.guest.as_deref().is_some_and(is_bridged)
    }

    pub(super) fn guest_deadline(&self) -> Option<Instant> {
        self.guest.as_ref().filter(|guest| guest.stage != Stage::Talking).map(|guest| guest.give_up)
    }

    pub(super) fn handle_guest_timeout(&mut self, around: &mut Surroundings<'_>) {
        if self.guest_deadline().is_some_and(|at| at <= around.now) {
            self.fail_guest("nobody answered in time", around);
        }
    }

    /// The guest has not come.
    fn fail_guest(&mut self, why: &str, around: &mut Surroundings<'_>) {
        let Some(guest) = self.guest.as_deref() else { return };
        let shown = format!("{}: {why}", guest.order.to.shown());
        self.note_guest(&shown, false);
        self.tell_of_guest("failed", why);
        self.remove_guest(Cause::NoAnswer, around);
    }

    /// The guest goes, or has gone.
    fn let_guest_go(&mut self, why: &str, around: &mut Surroundings<'_>) {
        self.tell_of_guest("left", why);
        self.remove_guest(Cause::OperatorHangup, around);
        if self.agent_left {
            self.end(Ending::new(Cause::Transferred), around);
        }
    }

    fn remove_guest(&mut self, cause: Cause, around: &mut Surroundings<'_>) {
        if let Some(guest) = self.guest.take() {
            guest.leave(Ending::new(cause).to_headers(), around);
            self.session.remove_leg();
        }
    }

    /// The agent hears of a guest, unless that one only listens: nobody is to hear of that.
    fn tell_of_guest(&mut self, status: &str, reason: &str) {
        let is_secret = |guest: &Guest| guest.asker == Asker::Operator && guest.role == LegRole::Listen;
        if !self.guest.as_deref().is_some_and(is_secret) {
            self.tell_transfer(status, reason);
        }
    }

    fn note_guest(&mut self, got: &str, passed: bool) {
        self.note_takeover("guest", "second leg", got, passed);
    }
}
