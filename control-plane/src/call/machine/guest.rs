//! Somebody whom this call brings in beside its other side: whom the agent consults or puts the other side through to, or a
//! supervisor who listens in, whispers or joins. Their phone is another dialog of the call, and a second leg in its session.
//!
//! ```text
//!   agent or API ─▶ may they be called? ─▶ engine: AddLeg, a port ─▶ INVITE ─▶ 180 ─▶ 2xx ─▶ engine: UpdateLeg, the role
//!                        └── no                   └── no room          └── refused, or too late ─▶ RemoveLeg
//!   JoinCalls ─▶ engine: Join ─▶ the other call's dialog is the guest's; that call is over
//!   BYE of the guest, or LegLost ─▶ RemoveLeg: agent and other side talk as before; without an agent the call ends
//!   the call ends ─▶ BYE or CANCEL to the guest
//! ```
//!
//! While a guest's phone rings the call goes on as it was, except that who is to be put through hears it ring. A call has
//! one guest at most; what the guest's own trunk says of an offer in the 200 is not asked for: our INVITE always has one.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tandem_api::engine::v1 as engine;
use tandem_api::engine::v1::LegRole;
use tandem_api::engine::v1::session_ended::Reason;
use tandem_rtp::dtls::Fingerprint;
use tandem_sdp::SessionDescription;
use tandem_sip::message::{Body, Method, Reply, Request, Response};
use tandem_sip::{CallHandle, EndReason, Headers, RequestHandle};
use uuid::Uuid;

use super::change::ChangeRequest;
use super::{Asked, Call, fresh_keys};
use crate::call::action::{Action, EngineCommand, EngineRefusal};
use crate::call::ending::{Cause, Ending};
use crate::call::invite;
use crate::call::negotiation::{Negotiation, NegotiationError};
use crate::call::order::{Callee, Host, Order};
use crate::call::outcome::CarrierWord;
use crate::call::registry::Surroundings;
use crate::call::session::LegNumber;
use crate::call::state::State;
use crate::sip::{NotSent, Token, Verb};

/// How often the engine is asked to remove a leg: until it says that there is none, somebody who has gone may still be sent
/// what is said.
const LEG_REMOVALS_MAX: u8 = 3;

/// The engine joins two sessions within so long: commands to it are given up sooner.
const JOIN_MAX: Duration = Duration::from_secs(15);

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
    /// It talks in a call of its own, whose session the engine is joining to this one.
    Joining(Uuid),
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
    /// Who it is, as records show it.
    to: String,
    /// How it is called; `None`: it comes with a call of its own.
    order: Option<Order>,
    role: LegRole,
    asker: Asker,
    /// The agent has been told of it.
    is_known: bool,
    /// The AddLeg of its leg: whatever came before is not about this guest.
    adding: LegNumber,
    stage: Stage,
    token: Option<Token>,
    /// `None`: the INVITE has not left yet.
    sip: Option<CallHandle>,
    negotiation: Negotiation,
    /// A change of its session that waits until the engine has answered this UpdateLeg.
    change: Option<(LegNumber, ChangeRequest)>,
    /// When the phone has rung for too long.
    give_up: Instant,
    /// When it was answered.
    since: Option<Instant>,
    /// What the engine has last said of its leg.
    stats: Option<Box<engine::SessionStats>>,
}

/// Why a guest does not come with a call of its own.
#[derive(Debug)]
pub(super) struct NotJoined {
    pub(super) why: String,
    /// The leg may be there all the same.
    pub(super) may_have_leg: bool,
}

/// A guest who has talked and has gone.
#[derive(Debug)]
pub(super) struct Departed {
    to: String,
    talked: Duration,
    why: String,
    stats: Option<Box<engine::SessionStats>>,
}

impl Guest {
    /// An operator only listens in: the agent neither hears of it nor finds it in its way.
    fn is_secret(&self) -> bool {
        self.asker == Asker::Operator && self.role == LegRole::Listen && !self.is_known
    }

    /// What is to be said of it afterwards, if it has talked.
    fn departed(&mut self, why: &str, now: Instant) -> Option<Departed> {
        let talked = now.duration_since(self.since?);
        let (to, why) = (self.to.clone(), why.to_owned());
        Some(Departed { to, talked, why, stats: self.stats.take() })
    }

    /// BYE or CANCEL, now or when the INVITE has left: a token that nobody knows any more is hung up.
    pub(super) fn leave(self, headers: Headers, around: &mut Surroundings<'_>) {
        if let Some((_, ChangeRequest::Update(handle))) = self.change {
            around.actions.push_back(Action::Sip(Verb::Reply(handle, Reply::new(488))));
        }
        if let Some(sip) = self.sip {
            if let Some(token) = self.token {
                around.forget(token);
            }
            around.actions.push_back(Action::Sip(Verb::HangUp(sip, headers)));
        }
    }
}

/// 200 with our description, or 488.
fn answer_change(
    sip: CallHandle,
    request: ChangeRequest,
    text: Option<String>,
    around: &mut Surroundings<'_>,
) {
    around.actions.push_back(Action::Sip(request.answer(sip, text)));
}

/// What a leg is there for while its phone rings: nothing that the caller could hear, but perhaps that it rings.
fn role_while_ringing(role: LegRole) -> (LegRole, bool) {
    match role {
        LegRole::Bridge => (LegRole::Consult, true),
        _ => (LegRole::Listen, false),
    }
}

impl Call {
    /// An operator wants somebody brought in, or who is there given another role (`to` is empty then).
    pub fn join(&mut self, to: &str, role: LegRole, trunk: &str, around: &mut Surroundings<'_>) -> Asked {
        if to.is_empty() {
            return self.set_guest_role(role, Asker::Operator);
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
            Mode::Complete => return self.set_guest_role(LegRole::Bridge, Asker::Agent),
            Mode::Conference => return self.set_guest_role(LegRole::Conference, Asker::Agent),
            Mode::Cancel => {
                if !self.has_open_guest() {
                    return Asked::NoTarget;
                }
                // It is nobody's guest yet, and must not lose its call.
                if self.guest.as_deref().is_some_and(|guest| matches!(guest.stage, Stage::Joining(_))) {
                    return Asked::Busy;
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
        let trunk = &order.trunk;
        let (user, host) = match &order.to {
            Callee::Phone(_) => return Ok(()),
            Callee::Number(number) => (number.as_str().into(), None),
            Callee::Uri(uri) => (uri.user().unwrap_or_default(), Some(uri.host())),
        };
        let is_own = self.trunk.as_ref().is_some_and(|own| own.name == trunk.name);
        match is_own {
            true if !trunk.transfer.refer_out => Err("the trunk's policy allows no transfer".to_owned()),
            true => super::transfer::check_number(trunk, &user),
            false => super::transfer::check_listed(trunk, &user, host),
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
        if let (State::Connected, Err(refused)) = (state, self.check_dialog("joined by others")) {
            return refused;
        }
        if !matches!(state, State::Connected | State::OnHold) || self.sip_is_over {
            return Asked::State(state);
        }
        if !self.has_media() {
            return Asked::Policy("the call has no media".to_owned());
        }
        let has_guest = match asker {
            Asker::Agent => self.has_open_guest(),
            Asker::Operator => self.guest.is_some(),
        };
        if has_guest || self.transfer.is_some() || self.successor.is_some() || self.joining.is_some() {
            return Asked::Busy;
        }
        self.displace_listener(around);
        let give_up = around.now + order.ring_max;
        let (leg_role, caller_rings) = role_while_ringing(role);
        // Without an address nothing is sent: the leg has a port, and that is all.
        let rtp = Some(engine::RtpParameters::default());
        let add = engine::AddLegRequest { rtp, role: leg_role.into(), caller_rings, ..Default::default() };
        let Some(adding) = self.session.change_leg(EngineCommand::AddLeg(Box::new(add))) else {
            return Asked::Busy;
        };
        let guest = Guest {
            negotiation: Negotiation::new(Some(&order.trunk)),
            to: order.to.shown().to_owned(),
            order: Some(order),
            role,
            asker,
            is_known: false,
            adding,
            stage: Stage::Opening,
            token: None,
            sip: None,
            change: None,
            give_up,
            since: None,
            stats: None,
        };
        self.note_guest(&guest.to, true);
        self.guest = Some(Box::new(guest));
        self.tell_of_guest("trying", "");
        Asked::Done
    }

    /// Somebody is there of whom the agent knows: one who listens in secretly is in nobody's way.
    pub(super) fn has_open_guest(&self) -> bool {
        self.guest.as_deref().is_some_and(|guest| !guest.is_secret())
    }

    /// There is one second leg, and the agent wants it for somebody: who listens in secretly goes. The supervisor finds the
    /// reason in the BYE and in the call's decision trace.
    fn displace_listener(&mut self, around: &mut Surroundings<'_>) {
        let Some(guest) = self.guest.as_deref() else { return };
        let shown = format!("{}: the agent brings somebody in", guest.to);
        self.note_guest(&shown, false);
        self.remove_guest(Cause::Replaced, "the agent brings somebody in", around);
    }

    fn set_guest_role(&mut self, role: LegRole, asker: Asker) -> Asked {
        if self.agent_left && role != LegRole::Bridge {
            return Asked::Policy("the agent has left the call".to_owned());
        }
        let has_target = asker == Asker::Operator || self.has_open_guest();
        let Some(guest) = self.guest.as_deref_mut().filter(|_| has_target) else { return Asked::NoTarget };
        if let Stage::Joining(_) = guest.stage {
            return Asked::Busy;
        }
        if guest.stage == Stage::Talking {
            let update = engine::UpdateLegRequest { role: role.into(), ..Default::default() };
            if self.session.change_leg(EngineCommand::UpdateLeg(Box::new(update))).is_none() {
                return Asked::Busy;
            }
        }
        // One that still rings has it when it is answered.
        guest.role = role;
        if !guest.is_known && !guest.is_secret() {
            let status = if guest.stage == Stage::Talking { "joined" } else { "trying" };
            self.tell_of_guest(status, "");
        }
        Asked::Done
    }

    // --- the engine ---

    /// The engine has a port for the guest, or has none.
    pub(super) fn handle_leg_added(
        &mut self,
        result: Result<Box<engine::AddLegResponse>, EngineRefusal>,
        around: &mut Surroundings<'_>,
    ) {
        let number = self.session.handle_leg();
        let is_its = self.guest.as_ref().is_some_and(|guest| number == Some(guest.adding));
        match result {
            // What nobody waits for any more is being removed already.
            _ if !is_its => {}
            Ok(added) => {
                let port = u16::try_from(added.local_port).ok().filter(|port| *port != 0);
                match (added.local_address.parse(), port) {
                    (Ok(address), Some(port)) => {
                        let hash = added.dtls_fingerprint.as_slice().try_into();
                        self.invite_guest(address, port, hash.ok().map(Fingerprint::new), around);
                    }
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

    /// Who talks in this other call is to be the guest: the engine is asked to join the two sessions.
    pub(super) fn expect_guest(&mut self, other: Uuid, to: &str, now: Instant) -> Asked {
        let role = LegRole::Bridge;
        let Some(adding) = self.session.change_leg(EngineCommand::Join { other, role }) else {
            return Asked::Busy;
        };
        self.guest = Some(Box::new(Guest {
            to: to.to_owned(),
            order: None,
            role,
            asker: Asker::Operator,
            is_known: false,
            adding,
            stage: Stage::Joining(other),
            token: None,
            sip: None,
            // Its own comes with it.
            negotiation: Negotiation::new(None),
            change: None,
            give_up: now + JOIN_MAX,
            since: None,
            stats: None,
        }));
        Asked::Done
    }

    /// Whether this other call's phone is still wanted as the guest.
    pub(super) fn expects_guest(&self, other: Uuid) -> bool {
        self.guest.as_deref().is_some_and(|guest| guest.stage == Stage::Joining(other))
    }

    /// The engine has joined the sessions, and here is the dialog of the other call; or it has not, or there is none any more.
    pub(super) fn handle_guest_joined(
        &mut self,
        other: Uuid,
        result: Result<(CallHandle, Negotiation), NotJoined>,
        around: &mut Surroundings<'_>,
    ) {
        let number = self.session.handle_leg();
        let its = self.guest.as_deref_mut().filter(|guest| number == Some(guest.adding));
        // What nobody waits for any more is being removed already.
        let Some(guest) = its else { return };
        match result {
            Ok((sip, negotiation)) => {
                (guest.sip, guest.negotiation) = (Some(sip), negotiation);
                (guest.stage, guest.since) = (Stage::Talking, Some(around.now));
                let shown = format!("call {other}");
                self.note_guest(&shown, true);
                self.tell_of_guest("joined", "");
            }
            Err(NotJoined { why, may_have_leg }) => {
                self.note_guest(&format!("call {other}: {why}"), false);
                self.guest = None;
                if may_have_leg {
                    self.session.remove_leg();
                }
            }
        }
    }

    /// The engine has changed the guest's leg, or cannot.
    pub(super) fn handle_leg_updated(
        &mut self,
        result: &Result<(), EngineRefusal>,
        around: &mut Surroundings<'_>,
    ) {
        let number = self.session.handle_leg();
        let its = self.guest.as_deref_mut().filter(|guest| number > Some(guest.adding));
        let Some(guest) = its else { return };
        let change = guest.change.take_if(|(of, _)| Some(*of) == number);
        match (result, change, guest.sip) {
            (Ok(()), Some((_, request)), Some(sip)) => {
                let text = guest.negotiation.commit();
                answer_change(sip, request, text, around);
            }
            // It goes on as it was.
            (Err(refusal), Some((_, request)), Some(sip)) if *refusal != EngineRefusal::Gone => {
                guest.negotiation.abandon();
                answer_change(sip, request, None, around);
            }
            (Ok(()), ..) => {}
            (Err(_), ..) => self.let_guest_go("the media engine cannot carry it", around),
        }
    }

    /// The engine has removed the leg of a guest who has gone, or has not.
    pub(super) fn handle_leg_removed(
        &mut self,
        result: Result<Box<engine::SessionStats>, EngineRefusal>,
        around: &mut Surroundings<'_>,
    ) {
        self.session.handle_leg();
        if matches!(result, Ok(_) | Err(EngineRefusal::Gone)) {
            self.legs_not_removed = 0;
            return self.note_departed(result.ok());
        }
        if self.life.is_ending() {
            return;
        }
        self.legs_not_removed += 1;
        if self.legs_not_removed < LEG_REMOVALS_MAX {
            return self.session.remove_leg_again();
        }
        self.end(Ending::with_detail(Cause::EngineLost, "it did not remove a second leg"), around);
    }

    /// Nothing comes from the guest's phone any more: it has gone without a BYE.
    pub(super) fn handle_guest_lost(&mut self, reason: Reason, detail: &str, around: &mut Surroundings<'_>) {
        if self.guest.as_ref().is_some_and(|guest| guest.stage == Stage::Talking) {
            let why =
                if reason == Reason::Transport { detail } else { "nothing was heard of it for too long" };
            self.let_guest_go(why, around);
        }
    }

    /// Whether this is the dialog of somebody beside the call's own other side.
    pub fn is_guests(&self, sip: CallHandle) -> bool {
        self.guest.as_deref().is_some_and(|guest| guest.sip == Some(sip))
    }

    // --- the guest's dialog ---

    fn invite_guest(
        &mut self,
        address: IpAddr,
        port: u16,
        fingerprint: Option<Fingerprint>,
        around: &mut Surroundings<'_>,
    ) {
        let id = self.id;
        let Some(guest) = self.guest.as_deref_mut() else { return };
        let Some(order) = &guest.order else { return };
        let trunk = &order.trunk;
        let policy = trunk.srtp.policy(true, trunk.credential.is_private());
        let (srtp, secret) = fresh_keys(trunk.srtp, policy, around);
        guest.negotiation.protect(srtp, secret);
        // 62 bits, as for the call's own description.
        guest.negotiation.open(address, port, around.random() >> 2, fingerprint);
        let offer = guest.negotiation.offer().map(Body::sdp);
        match invite::invite(order, trunk, None, offer) {
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
        guest.since = Some(around.now);
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
                if self.session.change_leg(EngineCommand::UpdateLeg(Box::new(update))).is_some() {
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
        let guest = self.guest_mut(sip).filter(|guest| guest.stage == Stage::Talking);
        let verb = match (guest, request.sdp()) {
            (None, _) => Verb::Reject(sip, Reply::new(488)),
            // An UPDATE of theirs has no answer yet.
            (Some(guest), _) if guest.change.is_some() => Verb::Reject(sip, Reply::new(491)),
            (Some(guest), None) => match guest.negotiation.offer_in_answer() {
                Some(text) => Verb::Answer(sip, Body::sdp(text)),
                None => Verb::Reject(sip, Reply::new(488)),
            },
            (Some(_), Some(offer)) => return self.change_guest(sip, ChangeRequest::Reinvite, offer, around),
        };
        around.actions.push_back(Action::Sip(verb));
    }

    /// A guest has taken its re-INVITE back.
    pub fn handle_guest_reinvite_cancelled(&mut self, sip: CallHandle) {
        let Some(guest) = self.guest_mut(sip) else { return };
        if matches!(guest.change, Some((_, ChangeRequest::Update(_)))) {
            return;
        }
        guest.negotiation.abandon();
        let Some((_, current)) = guest.change.take().zip(guest.negotiation.current().copied()) else {
            return;
        };
        let rtp = Some(guest.negotiation.rtp_parameters(&current));
        let update = engine::UpdateLegRequest { rtp, ..Default::default() };
        // Full: the engine has what it took back until the guest changes again.
        let _ = self.session.change_leg(EngineCommand::UpdateLeg(Box::new(update)));
    }

    /// A request in a guest's dialog. What is not a guest's is told to wait.
    pub fn handle_guest_request(
        &mut self,
        sip: CallHandle,
        handle: RequestHandle,
        request: &Request,
        around: &mut Surroundings<'_>,
    ) {
        let guest = self.guest_mut(sip).filter(|guest| guest.stage == Stage::Talking);
        let is_changing = guest.as_ref().is_some_and(|g| g.change.is_some() || g.negotiation.awaits_answer());
        let status = match (guest, &request.method) {
            (None, _) => 491,
            (Some(_), Method::Update) => match request.sdp() {
                None if request.body.is_empty() => 200,
                None => 415,
                Some(_) if is_changing => 491,
                Some(offer) => {
                    return self.change_guest(sip, ChangeRequest::Update(handle), offer, around);
                }
            },
            // Keys of a guest are for those who hear them.
            (Some(_), Method::Info) => 200,
            (Some(_), Method::Refer) => 603,
            (Some(_), _) => 491,
        };
        around.actions.push_back(Action::Sip(Verb::Reply(handle, Reply::new(status))));
    }

    /// An offer of the guest's: the engine first, then our answer.
    fn change_guest(
        &mut self,
        sip: CallHandle,
        request: ChangeRequest,
        offer: &[u8],
        around: &mut Surroundings<'_>,
    ) {
        let Some(guest) = self.guest.as_deref_mut().filter(|guest| guest.sip == Some(sip)) else { return };
        let proposed = SessionDescription::parse(offer)
            .map_err(NegotiationError::from)
            .and_then(|offer| guest.negotiation.propose(&offer));
        let number = proposed.ok().and_then(|negotiated| {
            let rtp = Some(guest.negotiation.rtp_parameters(&negotiated));
            let update = engine::UpdateLegRequest { rtp, ..Default::default() };
            self.session.change_leg(EngineCommand::UpdateLeg(Box::new(update)))
        });
        guest.change = number.map(|number| (number, request));
        if number.is_none() {
            guest.negotiation.abandon();
            answer_change(sip, request, None, around);
        }
    }

    /// The ACK of our 200 to a guest's re-INVITE.
    pub fn handle_guest_acknowledged(
        &mut self,
        sip: CallHandle,
        ack: &Request,
        around: &mut Surroundings<'_>,
    ) {
        let Some(guest) = self.guest_mut(sip).filter(|guest| guest.negotiation.awaits_ack()) else {
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
        let shown = format!("{}: {why}", guest.to);
        self.note_guest(&shown, false);
        self.tell_of_guest("failed", why);
        self.remove_guest(Cause::NoAnswer, why, around);
    }

    /// The guest goes, or has gone.
    fn let_guest_go(&mut self, why: &str, around: &mut Surroundings<'_>) {
        self.tell_of_guest("left", why);
        let why = if why.is_empty() { "it hung up" } else { why };
        self.remove_guest(Cause::OperatorHangup, why, around);
        if self.agent_left {
            self.end(Ending::new(Cause::Transferred), around);
        }
    }

    fn remove_guest(&mut self, cause: Cause, why: &str, around: &mut Surroundings<'_>) {
        if let Some(mut guest) = self.guest.take() {
            if let Some(departed) = guest.departed(why, around.now) {
                self.departed = Some(departed);
            }
            guest.leave(Ending::new(cause).to_headers(), around);
            self.session.remove_leg();
        }
    }

    /// The call ends, and with it what a guest had of it: the session goes, and its leg with it.
    pub(super) fn end_guest(&mut self, ending: &Ending, around: &mut Surroundings<'_>) {
        self.note_departed(None);
        let Some(mut guest) = self.guest.take() else { return };
        self.departed = guest.departed("the call ended", around.now);
        self.note_departed(None);
        guest.leave(ending.to_headers(), around);
    }

    pub(super) fn handle_leg_report(&mut self, stats: Box<engine::SessionStats>) {
        if let Some(guest) = self.guest.as_deref_mut().filter(|guest| guest.stage == Stage::Talking) {
            guest.stats = Some(stats);
        }
    }

    /// A guest has no record of its own: how long it talked and how well it was heard stands in the call's. `stats`: the last
    /// figures of its leg, else what was reported before.
    fn note_departed(&mut self, stats: Option<Box<engine::SessionStats>>) {
        let Some(Departed { to, talked, why, stats: reported }) = self.departed.take() else { return };
        let stats = stats.or(reported).unwrap_or_default();
        let (lost, sent) = (stats.rtp_lost, stats.rtp_received + stats.rtp_lost);
        let (seconds, jitter_ms, mos) = (talked.as_secs(), stats.jitter_ms, stats.mos);
        tracing::info!(call_id = %self.id, seconds, why, lost, sent, jitter_ms, mos, "a guest has left");
        let mos = mos.map_or_else(|| "none".to_owned(), |mos| format!("{mos:.1}"));
        let got = format!("{seconds} s, {lost} of {sent} lost, jitter {jitter_ms:.1} ms, MOS {mos}");
        self.note_takeover(
            "guest",
            &format!("second leg of {}", crate::call::admission::shown(&to)),
            &got,
            true,
        );
    }

    /// The agent hears of a guest, unless that one only listens: nobody is to hear of that.
    fn tell_of_guest(&mut self, status: &str, reason: &str) {
        if let Some(guest) = self.guest.as_deref_mut().filter(|guest| !guest.is_secret()) {
            guest.is_known = true;
            self.tell_transfer(status, reason);
        }
    }

    fn note_guest(&mut self, got: &str, passed: bool) {
        self.note_takeover("guest", "second leg", got, passed);
    }
}
