//! One call: what its events mean. Sans-IO; the timers are in [`super::state`], the offer/answer rules in
//! [`super::negotiation`], the engine's commands in [`super::session`].
//!
//! ```text
//!   INVITE ─▶ credential ─▶ Lookup ─▶ principal, assistant, agent ─▶ offer readable? ─▶ Open ─▶ [180] ─▶ agent ready
//!          ─▶ Start ─▶ 200 ─▶ ACK: Connected ⇄ OnHold (re-INVITE: Update, then 200) ─▶ BYE, from whoever ─▶ Close
//! ```
//!
//! A call of ours is the same from the answer on; until then [`outbound`] leads it. Whatever ends a call goes through
//! [`Call::end`], once: it chooses refusal or BYE, closes the session, and the call is over when both sides have said so
//! or the grace is over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_api::engine::v1 as engine;
use tandem_api::engine::v1::session_ended::Reason;
use tandem_api::v1 as api;
use tandem_rtp::dtls::Fingerprint;
use tandem_sdp::dtls::Secret;
use tandem_sdp::{LocalSrtp, Negotiated, SessionDescription, SrtpPolicy};
use tandem_sip::message::{Body, Reply};
use tandem_sip::{CallHandle, EndReason, Flow, HeaderName, Headers, Request, Uri};
use uuid::Uuid;

use super::action::{Action, Change, EngineRefusal, EngineReply, Refusal};
use super::admission::{self, Credential, Trace, cut_off_by, refused_by};
use super::agent::Agent;
use super::ending::{Cause, Ending};
use super::headers;
use super::invite;
use super::negotiation::{Negotiation, NegotiationError, codec_name};
use super::order::Order;
use super::outcome::CarrierWord;
use super::record::CallRecord;
use super::registry::{Settings, Surroundings};
use super::session::Session;
use super::state::{Expired, Life, State};
use crate::media::{Fleet, SessionEvent};
use crate::sip::Verb;
use crate::store::accounts::Found;
use crate::store::contexts::{CallContext, Claim};
use crate::trunk::{SrtpRules, Trunk};

mod change;
mod dialling;
mod fork;
mod guest;
mod hold;
mod info;
mod joining;
mod outbound;
mod referral;
mod stream;
mod takeover;
mod transfer;

use change::PendingChange;
pub use dialling::{DIAL_TRIES, MEDIA_WITHIN, late_hang_up};
pub use fork::FORKS_MAX;
use guest::{Departed, Guest};
use hold::OwnChange;
use info::Keys;
pub use joining::Given;
use outbound::Outbound;
use stream::StreamSide;
pub use stream::{RETURN_WAIT, credential_of, is_way_of};
use takeover::{Former, Successor};
pub use takeover::{Newcomer, Place};
use transfer::{DialogId, Transfer};
pub use transfer::{ReferTarget, TransferTo};

/// The engine's own limit on a session lies this much above ours: it matters only when nobody is left to end the call.
const ENGINE_LIMIT_SLACK_MS: u32 = 60_000;
/// An agent that is heard before the answer is answered for at the end of its time, not cut off by the ring timer.
const EARLY_SLACK: Duration = Duration::from_secs(5);
/// The engine is told to give an agent up this much before our ring timer does, so that its reason is known.
const AGENT_CONNECT_SLACK_MS: u32 = 500;

/// How a call has lost its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nobody answers there: the session may live on, and is closed when somebody does.
    Silent,
    /// Another instance answers: the session died with the one before.
    Restarted,
    /// The same instance does not name it; it is told to close it all the same.
    Unlisted,
}

/// What becomes of something that the API or the agent asks of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// It is on its way, or was so already.
    Done,
    /// Not in this state.
    State(State),
    /// Something of the kind is under way.
    Busy,
    /// The trunk's policy does not allow it, or it makes no sense: in words.
    Policy(String),
    /// The other call is not there, or not answered.
    NoTarget,
}

/// One call.
#[derive(Debug)]
pub struct Call {
    id: Uuid,
    /// `None`: a call of ours whose INVITE has not left.
    sip: Option<CallHandle>,
    /// What only a call of ours has.
    outbound: Option<Box<Outbound>>,
    /// What only a call by a provider's media connection has.
    stream: Option<Box<StreamSide>>,
    /// The SIP side has had its last word.
    sip_is_over: bool,
    /// A change of the session that waits for the engine, and for our response.
    change: Option<PendingChange>,
    /// A re-INVITE of ours.
    own_change: Option<OwnChange>,
    /// We hold the other side.
    is_holding: bool,
    transfer: Option<Transfer>,
    /// Keys of the agent that go by INFO.
    keys: Keys,
    /// Of the request that ends the call.
    agent_headers: Headers,
    /// The call whose place it wants.
    replaces: Option<Uuid>,
    /// Another dialog that is to take the place of this one.
    successor: Option<Successor>,
    /// The dialog whose place was taken.
    former: Option<Former>,
    /// Somebody who is brought in beside the other side.
    guest: Option<Box<Guest>>,
    /// The engine is joining its session to that of this call.
    joining: Option<Uuid>,
    /// Who was brought in and has gone, until the engine gives the figures of the leg.
    departed: Option<Departed>,
    /// How often the engine has not removed the leg of one who has gone.
    legs_not_removed: u8,
    /// The agent has gone, and left the other side with the guest.
    agent_left: bool,
    /// Over which it came or goes; `None`: neither.
    trunk: Option<Arc<Trunk>>,
    /// The domain of who called us.
    peer_host: String,
    /// Where who called us is, by its Contact.
    contact: Option<Uri>,
    dialog: Option<DialogId>,
    flow: Flow,
    from: String,
    to: String,
    assistant_id: Arc<str>,
    tenant_id: Option<Arc<str>>,
    agent: Option<Agent>,
    /// What the agent is told in its start frame, besides what its assistant says.
    custom: BTreeMap<String, String>,
    /// It hears that it rings. Not when it wants that reliably and has made no offer: then the first reliable response had to
    /// carry ours (RFC 3262 §5), before the agent is there.
    may_ring: bool,
    /// The offer of the INVITE: unreadable, readable, or none.
    offer: Option<Result<SessionDescription, NegotiationError>>,
    trace: Trace,
    life: Life,
    negotiation: Negotiation,
    session: Session,
    agent_ready: bool,
    /// Our description for the 200, which waits until the engine listens: the caller's first word may follow the 200 at
    /// once.
    answer: Option<String>,
    /// The agent is heard before the answer, until then.
    early_until: Option<Instant>,
    /// What the last engine said that did not open a session.
    engine_refusal: Option<EngineRefusal>,
    ending: Option<Ending>,
    stats: Option<engine::SessionStats>,
    born: Instant,
    created_ms: i64,
    answered_ms: i64,
    ended_ms: i64,
    reported: Option<State>,
}

impl Call {
    /// A call from an INVITE that carries a credential.
    pub fn new(
        id: Uuid,
        sip: CallHandle,
        request: &Request,
        flow: Flow,
        credential: &Credential,
        trace: Trace,
        around: &Surroundings<'_>,
    ) -> Self {
        let offer = match request.sdp() {
            Some(body) => Some(SessionDescription::parse(body).map_err(NegotiationError::from)),
            None if request.body.is_empty() => None,
            // A body of another type is an offer that we cannot read, not the wish for one of ours.
            None => Some(Err(NegotiationError::Missing)),
        };
        Self {
            sip: Some(sip),
            trunk: credential.trunk().cloned(),
            peer_host: request.head.from().uri.host().to_owned(),
            contact: request.head.contact().map(|contact| contact.uri),
            flow,
            from: request.head.from().uri.redacted().to_string(),
            to: request.uri.without_password().as_str().to_owned(),
            assistant_id: credential.assistant_id.clone(),
            custom: credential
                .trunk()
                .map(|trunk| headers::shown(request, &trunk.headers))
                .unwrap_or_default(),
            may_ring: offer.is_some() || !request.head.lists(HeaderName::Require, "100rel"),
            offer,
            trace,
            negotiation: Negotiation::new(credential.trunk().map(AsRef::as_ref)),
            ..Self::blank(id, Life::new(&around.settings.limits, around.now), around)
        }
    }

    /// What every call is before anything is known of it.
    fn blank(id: Uuid, life: Life, around: &Surroundings<'_>) -> Self {
        Self {
            id,
            sip: None,
            outbound: None,
            stream: None,
            sip_is_over: false,
            change: None,
            own_change: None,
            is_holding: false,
            transfer: None,
            keys: Keys::default(),
            agent_headers: Headers::new(),
            replaces: None,
            successor: None,
            former: None,
            guest: None,
            joining: None,
            departed: None,
            legs_not_removed: 0,
            agent_left: false,
            trunk: None,
            peer_host: String::new(),
            contact: None,
            dialog: None,
            flow: Flow::udp(invite::ANYWHERE, invite::ANYWHERE),
            from: String::new(),
            to: String::new(),
            assistant_id: "".into(),
            tenant_id: None,
            agent: None,
            custom: BTreeMap::new(),
            may_ring: false,
            offer: None,
            trace: Trace::new(),
            life,
            negotiation: Negotiation::new(None),
            session: Session::default(),
            agent_ready: false,
            answer: None,
            early_until: None,
            engine_refusal: None,
            ending: None,
            stats: None,
            born: around.now,
            created_ms: around.epoch_ms(),
            answered_ms: 0,
            ended_ms: 0,
            reported: None,
        }
    }

    /// The SIP side's name of this call.
    pub fn sip(&self) -> Option<CallHandle> {
        self.sip
    }

    /// Asks something of the SIP side, if there is one.
    fn ask_sip(&self, around: &mut Surroundings<'_>, verb: impl FnOnce(CallHandle) -> Verb) {
        if let Some(sip) = self.sip {
            around.actions.push_back(Action::Sip(verb(sip)));
        }
    }

    fn direction(&self) -> &'static str {
        if let Some(context) = self.stream_context() {
            return context.direction;
        }
        if self.outbound.is_some() { "outbound" } else { "inbound" }
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.life.state()
    }

    /// Whose it is, once that is known.
    pub fn tenant_id(&self) -> Option<&Arc<str>> {
        self.tenant_id.as_ref()
    }

    /// Why it ends; from Ending on.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// By what its media connection is known, of a provider's call.
    pub fn claim(&self) -> Option<Claim> {
        self.stream.as_ref().map(|stream| stream.claim)
    }

    /// Its media session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Its media session, to tell it of its engine.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// When [`Call::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = if self.life.is_ending() { None } else { self.own_change_deadline() };
        let transfer = if self.life.is_ending() { None } else { self.transfer_deadline() };
        let early = if self.life.is_before_answer() { self.early_until } else { None };
        let aside = if self.life.is_ending() { None } else { self.aside_deadline() };
        let stream = if self.life.is_ending() { None } else { self.stream_deadline() };
        [self.life.poll_timeout(), own, transfer, early, aside, stream].into_iter().flatten().min()
    }

    // --- admission ---

    /// It wants to take this call's place.
    pub fn replace(&mut self, other: Uuid) {
        self.replaces = Some(other);
    }

    /// Which call it wants to take the place of; nil: one that is not ours.
    pub fn replaced(&self) -> Option<Uuid> {
        self.replaces
    }

    /// The store has answered.
    pub fn handle_found(
        &mut self,
        credential: &Credential,
        found: Result<Found, String>,
        fleet: &mut Fleet,
        around: &mut Surroundings<'_>,
    ) {
        if self.life.is_ending() {
            return;
        }
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.trace.push(refused_by("store", "database", "an answer", "none"));
                return self.end(Ending::with_detail(Cause::StoreFailed, error), around);
            }
        };
        match self.admit(credential, &found, around) {
            Ok(agent) if self.stream.is_some() => {
                self.agent = Some(agent);
                return self.open_stream(around);
            }
            Ok(agent) => {
                self.agent = Some(agent);
                around.actions.push_back(Action::Admitted(
                    self.flow.remote,
                    self.trunk.as_ref().map(|trunk| trunk.name.clone()),
                ));
            }
            Err(ending) => return self.end(ending, around),
        }
        self.protect(around);
        if let Err(ending) = self.check_offer() {
            return self.end(ending, around);
        }
        self.remember(around);
        match self.has_media() {
            true => self.open(fleet, around),
            false => self.answer_without_media(around),
        }
    }

    fn has_media(&self) -> bool {
        self.agent.as_ref().is_some_and(Agent::has_media)
    }

    fn answer_without_media(&mut self, around: &mut Surroundings<'_>) {
        let session_id = around.random() >> 2;
        self.negotiation.open_inactive(self.flow.local.ip(), session_id);
        self.life.ring();
        self.answer(around);
    }

    fn admit(
        &mut self,
        credential: &Credential,
        found: &Found,
        around: &mut Surroundings<'_>,
    ) -> Result<Agent, Ending> {
        let principal = admission::principal(credential, found, &mut self.trace)?;
        around.gate.check_tenant(self.id, &principal.tenant_id, around.now, &mut self.trace)?;
        self.tenant_id = Some(principal.tenant_id);
        let stored = admission::assistant(credential, found, &mut self.trace)?;
        admission::agent(stored, &mut self.trace)
    }

    /// Draws the keys of the call, if its trunk and its signalling want any.
    fn protect(&mut self, around: &mut Surroundings<'_>) {
        let rules = self.trunk.as_ref().map(|trunk| trunk.srtp).unwrap_or_default();
        let is_private = match (&self.outbound, &self.trunk) {
            (Some(_), Some(trunk)) => trunk.credential.is_private(),
            _ => self.flow.transport.is_secure(),
        };
        let policy = rules.policy(self.outbound.is_some(), is_private);
        let (srtp, secret) = fresh_keys(rules, policy, around);
        self.negotiation.protect(srtp, secret);
    }

    fn check_offer(&mut self) -> Result<(), Ending> {
        let refused = match &self.offer {
            None => return Ok(()),
            Some(Err(error)) => (Cause::UnreadableOffer, error.to_string()),
            Some(Ok(offer)) => match self.negotiation.check(offer) {
                Ok(_) => return Ok(()),
                Err(error) => (Cause::NoCommonCodec, error.to_string()),
            },
        };
        let (cause, got) = refused;
        self.trace.push(refused_by(
            "offer",
            "SDP",
            "audio over RTP/AVP, or protected where it is allowed, as PCMU, PCMA, G722, opus or L16",
            &got,
        ));
        Err(Ending::with_detail(cause, got))
    }

    fn remember(&self, around: &mut Surroundings<'_>) {
        let Some(tenant_id) = &self.tenant_id else { return };
        around.actions.push_back(Action::Remember(Box::new(CallContext {
            call_id: self.id,
            tenant_id: tenant_id.clone(),
            assistant_id: self.assistant_id.clone(),
            direction: self.direction(),
            from: self.from.clone(),
            to: self.to.clone(),
            engine: String::new(),
            provider: None,
            arguments: BTreeMap::new(),
        })));
    }

    // --- the media session ---

    fn open(&mut self, fleet: &mut Fleet, around: &mut Surroundings<'_>) {
        let Some(engine_id) = fleet.pick(self.session.tried()) else {
            return self.end_without_engine(around);
        };
        let request = self.open_request(around);
        self.session.open(engine_id, Box::new(request));
    }

    /// No engine is left to ask; the last one's word says why.
    fn end_without_engine(&mut self, around: &mut Surroundings<'_>) {
        let ending = match self.engine_refusal.take() {
            None => Ending::with_detail(Cause::NoEngine, "none is connected and takes calls"),
            Some(EngineRefusal::Full(why)) => Ending::with_detail(Cause::EngineFull, why),
            Some(EngineRefusal::Unreachable(why)) => Ending::with_detail(Cause::EngineLost, why),
            Some(EngineRefusal::Address(why)) => Ending::with_detail(Cause::MediaUnreachable, why),
            Some(EngineRefusal::Invalid(why)) => Ending::with_detail(Cause::EngineFault, why),
            Some(EngineRefusal::Gone) => Ending::with_detail(Cause::EngineFault, "not found"),
        };
        let step = match ending.cause {
            Cause::MediaUnreachable => {
                refused_by("offer", "c=", "an address that an engine can reach", &ending.detail)
            }
            Cause::EngineFault => refused_by("engine", "OpenSession", "a session", &ending.detail),
            _ => refused_by("engine", "media engine", "one with room", &ending.detail),
        };
        self.trace.push(step);
        self.end(ending, around);
    }

    fn open_request(&self, around: &Surroundings<'_>) -> engine::OpenSessionRequest {
        let limits = &around.settings.limits;
        let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        let connect_timeout_ms = millis(limits.ring_max).saturating_sub(AGENT_CONNECT_SLACK_MS).max(1);
        let rtp = match &self.offer {
            Some(Ok(offer)) => self.negotiation.check(offer).ok().map(|negotiated| self.rtp(&negotiated)),
            _ => None,
        };
        engine::OpenSessionRequest {
            session_id: self.id.to_string(),
            call: Some(engine::CallInfo {
                call_id: self.id.to_string(),
                from: self.from.clone(),
                to: self.to.clone(),
                direction: self.direction().to_owned(),
                tenant_id: self.tenant_id.as_deref().unwrap_or_default().to_owned(),
                assistant_id: self.assistant_id.to_string(),
            }),
            // Without an offer address and codec are unknown until the ACK.
            rtp: self.stream.is_none().then(|| rtp.unwrap_or_default()),
            stream: self.stream_leg(),
            agent: self.agent.as_ref().map(|agent| {
                let Settings { talker_url, talker_token, .. } = around.settings;
                agent.to_engine(talker_url, talker_token.as_ref(), connect_timeout_ms, &self.custom)
            }),
            media_timeout_ms: 0,
            max_session_ms: millis(limits.call_duration_max).saturating_add(ENGINE_LIMIT_SLACK_MS),
        }
    }

    /// The engine has answered a command.
    pub fn handle_reply(&mut self, reply: EngineReply, fleet: &mut Fleet, around: &mut Surroundings<'_>) {
        match reply {
            EngineReply::Opened(Ok(opened)) => self.handle_opened(&opened, around),
            EngineReply::Opened(Err(refusal)) => self.handle_not_opened(refusal, fleet, around),
            EngineReply::Started(result) => {
                self.session.handle_done();
                let is_started = result.is_ok();
                self.handle_done(result, around);
                if is_started && self.stream.is_some() {
                    return self.handle_stream_started(around);
                }
                if is_started && !self.play_early(around) {
                    self.send_answer(around);
                }
            }
            EngineReply::Told(result) => {
                self.session.handle_done();
                // What the agent was not told is no reason to end the call; that the session is gone is, unless it went to another call.
                if let (Err(EngineRefusal::Gone), None) = (&result, self.joining) {
                    self.handle_done(Err(EngineRefusal::Gone), around);
                }
            }
            EngineReply::Updated(result) => self.handle_updated(result, around),
            EngineReply::LegAdded(result) => self.handle_leg_added(result, around),
            EngineReply::LegUpdated(result) => self.handle_leg_updated(&result, around),
            EngineReply::LegRemoved(result) => self.handle_leg_removed(result, around),
            // The registry brings it to both calls.
            EngineReply::Joined(..) => {}
            EngineReply::Closed(result) => {
                match result {
                    Ok(stats) => self.stats = Some(*stats),
                    Err(EngineRefusal::Gone) => {}
                    Err(_) => self.leave_stray(around),
                }
                self.session.handle_closed();
            }
        }
    }

    fn handle_opened(&mut self, opened: &engine::OpenSessionResponse, around: &mut Surroundings<'_>) {
        let address = self.session.handle_opened(opened);
        if self.life.is_ending() {
            return;
        }
        if self.stream.is_some() {
            self.agent_ready |= opened.agent_ready;
            return self.handle_stream_opened();
        }
        let Some((address, port)) = address else {
            let detail = "it opened a session without an address";
            self.trace.push(refused_by("engine", "local_address", "an IP address and a port", detail));
            return self.end(Ending::with_detail(Cause::EngineFault, detail), around);
        };
        // 62 bits: some stacks read o= as a signed number.
        let session_id = around.random() >> 2;
        if self.outbound.is_some() {
            self.protect(around);
        }
        let fingerprint = opened.dtls_fingerprint.as_slice().try_into().ok().map(Fingerprint::new);
        self.negotiation.open(address, port, session_id, fingerprint);
        if self.outbound.is_some() {
            self.agent_ready |= opened.agent_ready;
            return self.send_invite(None, around);
        }
        self.life.ring();
        self.agent_ready |= opened.agent_ready;
        if self.agent_ready {
            return self.answer(around);
        }
        self.ring(around);
    }

    fn ring(&mut self, around: &mut Surroundings<'_>) {
        if self.may_ring {
            self.ask_sip(around, Verb::Ring);
        }
    }

    fn handle_not_opened(
        &mut self,
        refusal: EngineRefusal,
        fleet: &mut Fleet,
        around: &mut Surroundings<'_>,
    ) {
        let may_exist = matches!(refusal, EngineRefusal::Unreachable(_));
        let another_may_help = !matches!(refusal, EngineRefusal::Invalid(_) | EngineRefusal::Gone);
        self.session.handle_not_opened(may_exist);
        if self.life.is_ending() {
            return;
        }
        let asked = self.session.engine();
        if self.stream.is_some() {
            return self.handle_stream_not_opened(refusal, around);
        }
        self.engine_refusal = Some(refusal);
        if !another_may_help {
            return self.end_without_engine(around);
        }
        self.open(fleet, around);
        // The call goes on elsewhere: what the silent engine may have opened is nobody's.
        if let Some(engine) = asked.filter(|asked| may_exist && self.session.engine() != Some(*asked)) {
            around.actions.push_back(Action::CloseStray { engine, session_id: self.id });
        }
    }

    fn handle_done(&mut self, result: Result<(), EngineRefusal>, around: &mut Surroundings<'_>) {
        match result {
            Ok(()) => {}
            Err(EngineRefusal::Gone) => {
                self.session.lose();
                self.end(Ending::new(Cause::EngineLost), around);
            }
            Err(EngineRefusal::Full(why) | EngineRefusal::Invalid(why)) => {
                self.end(Ending::with_detail(Cause::EngineFault, why), around);
            }
            Err(EngineRefusal::Unreachable(why)) => {
                self.end(Ending::with_detail(Cause::EngineLost, why), around);
            }
            // The offer was tried with Open or by a re-INVITE: this is the address in an ACK.
            Err(EngineRefusal::Address(why)) => self.end(Ending::with_detail(Cause::BadAnswer, why), around),
        }
    }

    /// An event of the session.
    pub fn handle_session(&mut self, event: SessionEvent, around: &mut Surroundings<'_>) {
        match event {
            SessionEvent::AgentConnected => {
                self.agent_ready = true;
                // Before the port is known the answer waits for the reply to Open.
                let is_open = self.life.state() == State::Ringing && self.life.is_before_answer();
                if is_open && self.stream.is_some() {
                    self.start_stream();
                } else if is_open && self.answer.is_none() && self.outbound.is_none() {
                    self.answer(around);
                }
            }
            SessionEvent::AgentFailed { reason } if self.life.is_before_answer() => {
                // An agent that refuses at once may be faster than the reply to Open. The call was offered to it all
                // the same, and callers rely on hearing that.
                if self.life.state() == State::Initializing && self.outbound.is_none() {
                    self.life.ring();
                    self.ring(around);
                }
                self.trace.push(refused_by("agent", "agent", "a connection in time", "none"));
                self.end(Ending::with_detail(Cause::AgentUnreachable, reason), around);
            }
            // The other side goes on with whom it was put through to.
            SessionEvent::AgentFailed { .. } | SessionEvent::AgentHangup if self.may_do_without_agent() => {
                self.agent_left = true;
            }
            SessionEvent::AgentFailed { reason } => {
                self.end(Ending::with_detail(Cause::AgentFailed, reason), around);
            }
            SessionEvent::AgentHangup => self.end(Ending::new(Cause::AgentHangup), around),
            SessionEvent::AgentTransfer { to, mode } => self.handle_agent_transfer(to, mode, around),
            SessionEvent::AgentDtmf { digits } => self.press(&digits, around),
            SessionEvent::AgentHeaders { headers } => self.set_agent_headers(&headers),
            SessionEvent::AgentAnswer => self.answer_after_early_media(around),
            SessionEvent::StreamStarted { provider_call_id, codec } => {
                self.handle_stream_named(&provider_call_id, codec, around);
            }
            SessionEvent::StreamDropped { how, leg_may_live, reason } => {
                self.handle_stream_dropped(how, leg_may_live, &reason, around);
            }
            SessionEvent::LegLost { reason, detail } => self.handle_guest_lost(reason, &detail, around),
            SessionEvent::Idle { idle_ms } => self.handle_idle(idle_ms, around),
            // What only counts.
            SessionEvent::MediaStarted { .. } | SessionEvent::Dtmf => {}
            SessionEvent::Report { stats } => self.stats = Some(*stats),
            SessionEvent::LegReport { stats } => self.handle_leg_report(stats),
            SessionEvent::Ended { reason, stats, detail } => {
                self.session.lose();
                if stats.is_some() {
                    self.stats = stats;
                }
                if reason == Reason::Joined && self.joining.is_some() {
                    // The answer to the other call's command may come after this, and says the same.
                    return;
                }
                let cause = match reason {
                    Reason::MediaTimeout if self.is_stream_dropped() => Cause::StreamLost,
                    Reason::Transport if self.stream.is_some() => Cause::StreamLost,
                    Reason::MediaTimeout => Cause::MediaTimeout,
                    Reason::MaxSession => Cause::MaxDuration,
                    Reason::Orphaned | Reason::EngineFault | Reason::Unspecified => Cause::EngineFault,
                    // Nobody waits for that any more: what it was joined to has ended, or was told that it could not be.
                    Reason::Joined => Cause::EngineLost,
                    Reason::Shutdown => Cause::EngineLost,
                    Reason::Transport => Cause::MediaTransport,
                };
                self.end(Ending::with_detail(cause, detail), around);
            }
        }
    }

    /// Nobody has spoken for too long. Nobody has to while one side holds the other or is about to, while somebody is being
    /// brought in or is there, or while the call is handed on: the engine counts anew afterwards.
    fn handle_idle(&mut self, idle_ms: u64, around: &mut Surroundings<'_>) {
        let is_elsewhere = self.is_stream_dropped()
            || self.has_open_guest()
            || self.transfer.is_some()
            || self.successor.is_some();
        if self.life.state() != State::Connected || is_elsewhere || self.is_about_to_hold() {
            return;
        }
        let got = format!("none for {} s", idle_ms / 1_000);
        self.trace.push(cut_off_by("idle", "speech", "of either side", &got));
        self.end(Ending::with_detail(Cause::Idle, got), around);
    }

    /// The engine that has the session is gone.
    pub fn handle_engine_lost(&mut self, loss: Loss, around: &mut Surroundings<'_>) {
        match loss {
            Loss::Silent => {
                self.leave_stray(around);
                self.session.lose();
            }
            Loss::Restarted => self.session.lose(),
            // The engine has joined it to another one; the answer that says so is on its way.
            Loss::Unlisted if self.joining.is_some() => return self.session.lose(),
            Loss::Unlisted => {}
        }
        if self.life.is_before_answer() {
            self.trace.push(refused_by("engine", "media engine", "one that stays", "it is gone"));
        }
        self.end(Ending::new(Cause::EngineLost), around);
    }

    // --- answer, hold, resume ---

    fn answer(&mut self, around: &mut Surroundings<'_>) {
        let text = match &self.offer {
            Some(Ok(offer)) => self.negotiation.answer(offer),
            _ => self.negotiation.offer_in_answer().ok_or(NegotiationError::Missing),
        };
        let text = match text {
            Ok(text) => text,
            // `check` has passed the same offer; this would be a fault of ours.
            Err(error) => {
                self.trace.push(refused_by("offer", "SDP", "an answer", &error.to_string()));
                return self.end(Ending::with_detail(Cause::NoCommonCodec, error.to_string()), around);
            }
        };
        self.answer = Some(text);
        // After a delayed offer the engine starts when the ACK has brought address and codec.
        match self.negotiation.awaits_ack() || !self.has_media() {
            true => self.send_answer(around),
            false => self.session.start(),
        }
    }

    /// The trunk wants the agent heard before the answer: 183 with our description, which the 200 will repeat. `false`: it
    /// does not, or that is over.
    fn play_early(&mut self, around: &mut Surroundings<'_>) -> bool {
        let early = self.trunk.as_ref().and_then(|trunk| trunk.inbound.early_media);
        let (Some(early), Some(text), None) = (early, &self.answer, self.early_until) else { return false };
        if self.outbound.is_some() || self.life.is_ending() {
            return false;
        }
        let reply = Reply::new(183).body(Body::sdp(text.clone()));
        self.ask_sip(around, |sip| Verb::Respond(sip, reply));
        let until = around.now + early;
        self.early_until = Some(until);
        self.life.ring_until(until + EARLY_SLACK);
        true
    }

    /// The agent has been heard for long enough, or says so itself.
    fn answer_after_early_media(&mut self, around: &mut Surroundings<'_>) {
        if self.early_until.is_some() && self.life.is_before_answer() {
            self.send_answer(around);
        }
    }

    /// The 200 leaves.
    fn send_answer(&mut self, around: &mut Surroundings<'_>) {
        if self.life.is_ending() {
            return;
        }
        let Some(text) = self.answer.take() else { return };
        self.early_until = None;
        self.ask_sip(around, |sip| Verb::Answer(sip, Body::sdp(text)));
        self.answered_ms = around.epoch_ms();
        self.life.answer(around.now);
        around.setup = Some(around.now.duration_since(self.born));
    }

    /// The ACK of our 200, to the INVITE or a re-INVITE.
    pub fn handle_acknowledged(&mut self, ack: &Request, around: &mut Surroundings<'_>) {
        if self.life.is_ending() {
            return;
        }
        // A re-INVITE of ours may wait behind this ACK: its answer comes with its own 2xx.
        if self.negotiation.awaits_ack() {
            match self.negotiation.accept(ack.sdp()) {
                Ok(_) if !self.has_media() => {}
                Ok(negotiated) => {
                    self.move_media(self.rtp(&negotiated));
                    if self.life.state() == State::Ringing {
                        self.session.start();
                    }
                }
                Err(error) => {
                    return self.end(Ending::with_detail(Cause::BadAnswer, error.to_string()), around);
                }
            }
        }
        if let (None, Some(contact)) = (&self.dialog, &self.contact) {
            self.dialog = DialogId::of_ack(ack, contact);
        }
        self.life.acknowledge();
        self.life.hold(self.is_held());
    }

    /// Another dialog has called us to take this one's place, and the engine moves.
    fn has_newcomer(&self) -> bool {
        matches!(self.successor, Some(Successor::Newcomer(..)))
    }

    /// The caller holds us, or we hold the caller. A call without media is inactive from the start and never held.
    fn is_held(&self) -> bool {
        self.has_media() && (self.is_holding || self.negotiation.is_held())
    }

    // --- the end ---

    /// The SIP side is over.
    pub fn handle_sip_ended(&mut self, why: EndReason, around: &mut Surroundings<'_>) {
        if self.outbound.is_some() && self.life.is_before_answer() {
            return self.handle_not_answered(why, around);
        }
        if matches!(why, EndReason::RemoteBye { .. }) && self.wait_for_target() {
            return;
        }
        self.sip_is_over = true;
        let cause = match why {
            EndReason::RemoteBye { reason } => return self.handle_bye(reason.as_deref(), around),
            EndReason::Cancelled { .. } => Cause::CallerCancelled,
            EndReason::NoAck => Cause::NoAck,
            EndReason::DialogLost { .. } | EndReason::SessionExpired | EndReason::NoPrack => {
                Cause::DialogLost
            }
            EndReason::Replaced { .. } => Cause::Replaced,
            // The echo of what we did ourselves; as a surprise it is the dialog that is lost.
            EndReason::Rejected { .. }
            | EndReason::LocalBye { .. }
            | EndReason::Failed { .. }
            | EndReason::NoResponse(_) => Cause::DialogLost,
        };
        self.end(Ending::new(cause), around);
    }

    /// The other side has hung up; its BYE may say why.
    fn handle_bye(&mut self, reason: Option<&str>, around: &mut Surroundings<'_>) {
        let is_ours = self.outbound.is_some();
        let mut ending = Ending::new(match is_ours {
            _ if self.is_leaving() => Cause::Transferred,
            true => Cause::CalleeHangup,
            false => Cause::CallerHangup,
        });
        ending.carrier = reason.and_then(CarrierWord::of_reason).map(Box::new);
        self.end(ending, around);
    }

    /// A timer of the call is due.
    pub fn handle_timeout(&mut self, around: &mut Surroundings<'_>) {
        if !self.life.is_ending() {
            self.handle_own_change_timeout(around);
            self.handle_transfer_timeout(around);
            self.handle_aside_timeout(around);
            self.handle_stream_timeout(around);
            if self.early_until.is_some_and(|until| until <= around.now) {
                self.answer_after_early_media(around);
            }
        }
        match self.life.handle_timeout(around.now) {
            None => {}
            Some(Expired::Queue) => self.end(Ending::new(Cause::QueueTimeout), around),
            Some(Expired::Ring) if self.outbound.is_some() => self.handle_ring_timeout(around),
            Some(Expired::Ring) if self.is_dialling() => self.handle_provider_timeout(around),
            Some(Expired::Ring) => {
                let is_open = self.life.state() != State::Initializing;
                let (cause, step) = match self.session.engine() {
                    None => {
                        (Cause::StoreFailed, refused_by("store", "database", "an answer in time", "none"))
                    }
                    Some(_) if !is_open || self.answer.is_some() || self.is_stream_starting() => {
                        let command = if is_open { "StartSession" } else { "OpenSession" };
                        (Cause::EngineLost, refused_by("engine", command, "an answer in time", "none"))
                    }
                    Some(_) => {
                        (Cause::AgentTimeout, refused_by("agent", "agent", "a connection in time", "none"))
                    }
                };
                self.trace.push(step);
                self.end(Ending::new(cause), around);
            }
            Some(Expired::Duration) => self.end(Ending::new(Cause::MaxDuration), around),
            Some(Expired::Ending) => {
                self.sip_is_over = true;
                self.leave_stray(around);
                self.session.handle_closed();
                self.stop_asking();
            }
        }
    }

    /// Its session may live on; somebody must close it when its engine is heard again.
    fn leave_stray(&self, around: &mut Surroundings<'_>) {
        if let Some(engine) = self.session.engine().filter(|_| self.session.may_live()) {
            around.strays.add(engine, self.id);
        }
    }

    /// Ends the call, whatever its state; the first reason stays.
    pub fn end(&mut self, ending: Ending, around: &mut Surroundings<'_>) {
        if self.life.is_ending() {
            return;
        }
        let ending = if self.direction() == "outbound" { ending.of_outbound() } else { ending };
        self.end_aside(&ending, around);
        if self.outbound.is_some() && self.life.is_before_answer() {
            self.give_up(&ending, around);
        } else if self.stream.is_some() {
            self.end_stream(&ending, around);
        } else if !self.sip_is_over {
            let is_refusal = self.life.is_before_answer();
            let id = self.id;
            self.ask_sip(around, |sip| match is_refusal {
                true => Verb::Reject(sip, ending.to_reply_of(id)),
                false => Verb::HangUp(sip, ending.headers_with(&self.agent_headers)),
            });
            if is_refusal {
                self.report_refusal(&ending, around);
            }
        }
        self.session.close(ending.for_agent());
        self.ended_ms = around.epoch_ms();
        self.ending = Some(ending);
        self.life.end(around.now);
    }

    fn report_refusal(&mut self, ending: &Ending, around: &mut Surroundings<'_>) {
        // No rule refused it; the reason of the end does.
        if self.trace.last().is_none_or(|step| step.passed) {
            self.trace.push(ending.to_step());
        }
        let step = self.trace.last().cloned().unwrap_or_default();
        around.actions.push_back(Action::Refused(Box::new(Refusal {
            call_id: self.id,
            tenant_id: self.tenant_id.clone(),
            trunk: self.trunk.as_ref().map(|trunk| trunk.name.clone()),
            source: self.flow.remote,
            from: self.from.clone(),
            to: self.to.clone(),
            step,
            trace: self.trace.clone(),
            is_recorded: self.tenant_id.is_some(),
            ending: ending.clone(),
        })));
    }

    /// To be called after each of the above: sends what waits, tells what has changed. `true`: the call is over.
    pub fn settle(&mut self, around: &mut Surroundings<'_>) -> bool {
        if let (Some(engine), Some(command)) = (self.session.engine(), self.session.poll_command()) {
            around.actions.push_back(Action::Engine { engine, call_id: self.id, command });
        }
        self.report(around);
        if self.life.is_ending() && self.sip_is_over && self.session.is_over() && !self.is_asking() {
            self.life.close();
            self.report(around);
            // That of a provider's call was there before the call.
            if self.tenant_id.is_some() || self.stream.is_some() {
                around.actions.push_back(Action::Forget(self.id));
            }
            return true;
        }
        false
    }

    fn report(&mut self, around: &mut Surroundings<'_>) {
        let state = self.life.state();
        let setup = around.setup.take();
        if self.reported == Some(state) && setup.is_none() {
            return;
        }
        let ending = self.ending.clone();
        let change = Change { call_id: self.id, from: self.reported, to: state, ending, setup };
        around.actions.push_back(Action::Changed(change));
        self.reported = Some(state);
        // What has no tenant yet belongs to nobody: no record, no bill.
        if let Some(record) = self.record(around.settings) {
            around.actions.push_back(Action::Record(Box::new(record)));
        }
    }

    /// The call as lists and the store show it; `None` while its tenant is unknown.
    pub fn record(&self, settings: &Settings) -> Option<CallRecord> {
        let engine = self.session.engine().and_then(|id| settings.engines.get(id.0));
        let stats = self.stats.unwrap_or_default();
        let media = engine.map(|engine| api::MediaStats {
            rtp_sent: stats.rtp_sent,
            rtp_received: stats.rtp_received,
            rtp_lost: stats.rtp_lost,
            jitter_ms: stats.jitter_ms,
            codec: self.stream_codec().unwrap_or_else(|| {
                self.negotiation.current().map(|n| codec_name(n.codec)).unwrap_or_default().to_owned()
            }),
            engine: engine.clone(),
            local_port: self.session.local_port(),
            mos: stats.mos,
            round_trip_ms: stats.round_trip_ms,
            remote_lost: stats.remote_lost,
            remote_jitter_ms: stats.remote_jitter_ms,
            encrypted: self.is_stream_secure()
                || self.negotiation.current().is_some_and(Negotiated::is_protected),
        });
        Some(CallRecord {
            tenant_id: self.tenant_id.clone()?,
            call: api::Call {
                call_id: self.id.to_string(),
                assistant_id: self.assistant_id.to_string(),
                direction: self.direction().to_owned(),
                from: self.from.clone(),
                to: self.to.clone(),
                state: self.life.state().word().to_owned(),
                created_ms: self.created_ms,
                answered_ms: self.answered_ms,
                ended_ms: self.ended_ms,
                ending: self.ending.as_ref().map(Ending::to_api),
                decisions: self.trace.clone(),
                media,
                trunk: self.outbound.as_ref().map(|own| own.trunk_name().to_owned()).unwrap_or_default(),
                metadata: self.order().map(Order::shown_metadata).unwrap_or_default(),
                bulk_id: self.bulk().map(|bulk| bulk.to_string()).unwrap_or_default(),
                provider: self.provider_record(),
            },
        })
    }
}

/// Keys that no other dialog has, and what credentials of ICE come from.
fn fresh_keys(
    rules: SrtpRules,
    policy: SrtpPolicy,
    around: &mut Surroundings<'_>,
) -> (LocalSrtp, Option<Secret>) {
    let mut random = |octets: &mut [u8]| {
        for eight in octets.chunks_mut(8) {
            eight.copy_from_slice(&around.random().to_ne_bytes()[..eight.len()]);
        }
    };
    let srtp = LocalSrtp::new(policy, &mut random);
    // A certificate's hash is no secret: signalling in the clear may carry it.
    let secret = rules.allows_dtls().then(|| {
        let mut octets = [0; 32];
        random(&mut octets);
        Secret(octets)
    });
    (srtp, secret)
}
