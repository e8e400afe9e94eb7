//! The bed: everything around [`Calls`] in one value with a clock of its own.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use control_plane::call::action::{
    Action, Change, EngineCommand, EngineRefusal, EngineReply, Refusal, UpgradeAnswer,
};
use control_plane::call::admission::{Credential, Proof};
use control_plane::call::agent::Agent;
use control_plane::call::ending::CALL_ID_HEADER;
use control_plane::call::gate::{Gate, TenantLimits};
use control_plane::call::order::PHONES;
use control_plane::call::record::CallRecord;
use control_plane::call::registry::claiming::Claimed;
use control_plane::call::registry::{Calls, Settings};
use control_plane::config::Limits;
use control_plane::media::{Addresses, EngineId, Listed, News, SessionEvent, Upgrade};
use control_plane::provider::client::{Errand, Outcome};
use control_plane::provider::{ControlOutcome, Credentials as ProviderCredentials};
use control_plane::settings::section::Source;
use control_plane::sip::{SipEvent, TlsPeer, Verb};
use control_plane::store::accounts::{Assistant, Found, KeyHash, Principal};
use control_plane::store::contexts::{CallContext, Claim, Mint};
use control_plane::store::declared;
use control_plane::trunk::Trunks;
use control_plane::trunk::guard::{GuardSettings, Source as Guarded, SourceGuard, Verdict};
use tandem_api::engine::v1 as engine;
use tandem_sip::digest::Credentials;
use tandem_sip::endpoint::Knock;
use tandem_sip::message::{Body, Method, Reply, Request};
use tandem_sip::{
    CallHandle, EndReason, Endpoint, EndpointConfig, Event, Flow, Headers, InviteRequest, NameAddr, Response,
    Uri,
};
use uuid::Uuid;

pub(crate) const KEY: &str = "a-key";
pub(crate) const WALL_MS: i64 = 1_763_812_800_000;
/// The engine's port for a second leg.
pub(crate) const GUEST_PORT: u32 = 20_002;
const OURS: &str = "192.0.2.1:5060";
const CALLERS: &str = "192.0.2.9:5060";

/// What an engine does when it is asked to open a session.
#[derive(Clone)]
pub(crate) enum Opens {
    /// With an agent inside the engine.
    Ready,
    /// With an agent that is being reached.
    Waiting,
    /// Says no.
    Refusing(EngineRefusal),
    /// Says nothing; the test calls [`Bed::reply`].
    Silent,
}

pub(crate) struct Bed {
    pub(crate) now: Instant,
    pub(crate) calls: Calls,
    pub(crate) ours: Endpoint,
    pub(crate) caller: Endpoint,
    pub(crate) opens: Opens,
    pub(crate) updates: Result<(), EngineRefusal>,
    /// What engines say to AddLeg.
    pub(crate) legs: Result<(), EngineRefusal>,
    /// To UpdateLeg.
    pub(crate) leg_updates: Result<(), EngineRefusal>,
    /// And to RemoveLeg.
    pub(crate) leg_removals: Result<engine::SessionStats, EngineRefusal>,
    /// And to Join; `None`: nothing, the test calls [`Bed::reply`].
    pub(crate) joins: Option<Result<engine::SessionStats, EngineRefusal>>,
    pub(crate) agent: Agent,
    /// The store does not answer by itself when false.
    pub(crate) store_answers: bool,
    /// Whether the caller's ACKs and the rest of its bytes reach us.
    pub(crate) caller_is_heard: bool,
    /// Engines do not answer Update by themselves when false; the test calls [`Bed::reply`].
    pub(crate) updates_are_answered: bool,
    /// Engines do not answer Start by themselves when false; the test calls [`Bed::reply`].
    pub(crate) starts_are_answered: bool,
    /// What engines say to Close.
    pub(crate) closes: Result<(), EngineRefusal>,
    pub(crate) commands: Vec<(EngineId, Uuid, EngineCommand)>,
    /// Sessions that were closed though no call has them any more.
    pub(crate) strays: Vec<(EngineId, Uuid)>,
    pub(crate) records: Vec<CallRecord>,
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) changes: Vec<Change>,
    /// The last re-INVITE that reached the calls.
    pub(crate) reinvited: Option<Event>,
    /// Calls that have reached the other side.
    pub(crate) incoming: Vec<(CallHandle, Box<Request>)>,
    /// Whether our INVITEs leave at once; if not, the test takes them from `held_back`.
    pub(crate) invites_leave: bool,
    /// Whether the other side agrees to our re-INVITEs, or says 491.
    pub(crate) answers_reinvites: bool,
    pub(crate) held_back: Vec<Verb>,
    /// What the caller has seen.
    pub(crate) heard: Vec<Heard>,
    pub(crate) lookups: usize,
    pub(crate) forgotten: HashSet<Uuid>,
    /// Where the caller sits, and which certificate it has.
    pub(crate) caller_at: SocketAddr,
    pub(crate) certificate: Option<TlsPeer>,
    /// Asked before the endpoint, when there is one.
    pub(crate) guard: Option<SourceGuard>,
    /// Sources of calls that have passed the four steps.
    pub(crate) admitted: Vec<SocketAddr>,
    /// Records and claims that were to be kept.
    pub(crate) minted: Vec<(CallContext, Mint)>,
    /// What providers were asked.
    pub(crate) errands: Vec<(Uuid, Errand)>,
    /// What they answer, in order; nothing: they have not answered yet.
    pub(crate) outcomes: VecDeque<Outcome>,
    /// What the context store knows of claims; `None`: it does not answer.
    pub(crate) claims: Option<HashMap<Claim, Held>>,
    /// Connections whose claim it is asked about; not answered by itself when `claims_wait`.
    pub(crate) asked: Vec<(EngineId, Upgrade)>,
    pub(crate) claims_wait: bool,
    /// What became of media connections that opened no session, by their names.
    pub(crate) upgrade_answers: Vec<(EngineId, String, UpgradeAnswer)>,
    /// Contexts that were put, in order.
    pub(crate) remembered: Vec<CallContext>,
}

/// A claim in the context store.
pub(crate) enum Held {
    Fresh(Box<CallContext>),
    Taken(Uuid),
    Dropped(Uuid),
}

/// What a caller sees.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    Provisional(u16),
    Answered(String),
    Refused { status: u16, reason: Option<String>, retry_after_s: Option<u32>, call_id: Option<String> },
    ReinviteAnswered(String),
    ReinviteRefused(u16),
    Bye { reason: Option<String> },
    Response(u16, String),
    Refer { target: String, headers: Headers },
    Info(String),
    Other(String),
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default(), 1)
    }

    /// With so many engines, all of them up.
    pub(crate) fn with(limits: Limits, engines: usize) -> Self {
        let now = Instant::now();
        let settings = settings(limits, engines);
        let mut bed = Self {
            now,
            calls: Calls::new(settings, now, WALL_MS),
            ours: Endpoint::new(endpoint(1)),
            caller: Endpoint::new(endpoint(2)),
            opens: Opens::Ready,
            updates: Ok(()),
            legs: Ok(()),
            leg_updates: Ok(()),
            leg_removals: Ok(engine::SessionStats::default()),
            joins: Some(Ok(engine::SessionStats { rtp_sent: 70, ..Default::default() })),
            agent: Agent::Echo,
            store_answers: true,
            caller_is_heard: true,
            updates_are_answered: true,
            starts_are_answered: true,
            closes: Ok(()),
            commands: Vec::new(),
            strays: Vec::new(),
            records: Vec::new(),
            refusals: Vec::new(),
            changes: Vec::new(),
            reinvited: None,
            incoming: Vec::new(),
            invites_leave: true,
            answers_reinvites: true,
            held_back: Vec::new(),
            heard: Vec::new(),
            lookups: 0,
            forgotten: HashSet::new(),
            caller_at: addr(CALLERS),
            certificate: None,
            guard: None,
            admitted: Vec::new(),
            minted: Vec::new(),
            errands: Vec::new(),
            outcomes: VecDeque::new(),
            claims: Some(HashMap::new()),
            asked: Vec::new(),
            claims_wait: false,
            upgrade_answers: Vec::new(),
            remembered: Vec::new(),
        };
        for n in 0..engines {
            bed.engine_up(n, "instance-1", &[]);
        }
        bed
    }

    /// With these trunks and phones, and the guard that knows them.
    pub(crate) fn with_trunks(trunks: Trunks, limits: TenantLimits) -> Self {
        let mut bed = Self::new();
        let gate = Gate::new(trunks.clone(), "tandem", &[7; 32], limits);
        bed.calls =
            std::mem::replace(&mut bed.calls, Calls::new(settings(Limits::default(), 1), bed.now, WALL_MS))
                .with_gate(gate);
        bed.guard = Some(SourceGuard::new(GuardSettings::default(), trunks));
        bed
    }

    // --- the caller ---

    pub(crate) fn invite(&mut self, uri: &str, sdp: Option<&str>) -> CallHandle {
        self.invite_as("sip:anna@example.com", None, uri, sdp)
    }

    /// As this user, who answers a challenge with these credentials.
    pub(crate) fn invite_as(
        &mut self,
        from: &str,
        credentials: Option<Credentials>,
        uri: &str,
        sdp: Option<&str>,
    ) -> CallHandle {
        let from = NameAddr::new(Uri::parse(from).expect("a URI"));
        let flow = Flow::udp(self.caller_at, addr(OURS));
        let mut invite = InviteRequest::new(Uri::parse(uri).expect("a URI"), from, flow);
        invite.credentials = credentials;
        invite.body = sdp.map(|text| Body::sdp(text.to_owned()));
        let call = self.caller.invite(invite, self.now).expect("a call can be made");
        self.run();
        call
    }

    /// A call that is answered and acknowledged; gives the caller's handle and our id.
    pub(crate) fn connected(&mut self) -> (CallHandle, Uuid) {
        let call = self.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
        assert!(matches!(self.heard.last(), Some(Heard::Answered(_))), "{:?}", self.heard);
        (call, self.last_call_id())
    }

    pub(crate) fn last_call_id(&self) -> Uuid {
        self.changes.last().expect("a call").call_id
    }

    pub(crate) fn last_record(&self) -> &CallRecord {
        self.records.last().expect("a record")
    }

    pub(crate) fn state(&self, call_id: Uuid) -> String {
        self.calls.get("t1", call_id).map(|call| call.state).unwrap_or_else(|| "gone".to_owned())
    }

    pub(crate) fn reinvite(&mut self, call: CallHandle, sdp: Option<&str>) {
        let body = sdp.map(|text| Body::sdp(text.to_owned()));
        self.caller.reinvite(call, body, self.now).unwrap();
        self.run();
    }

    /// A request in the call's dialog; gives the status of its answer and the body.
    pub(crate) fn request(&mut self, call: CallHandle, method: Method, body: Option<Body>) -> (u16, String) {
        self.caller.request_in_call(call, method, Headers::new(), body, self.now).unwrap();
        self.run();
        match self.heard.last() {
            Some(Heard::Response(status, body)) => (*status, body.clone()),
            other => panic!("{other:?}"),
        }
    }

    // --- the engines ---

    pub(crate) fn engine_up(&mut self, engine: usize, instance_id: &str, sessions: &[Uuid]) {
        let listed = sessions.iter().map(|id| (*id, Listed { agent_ready: true, ..Listed::default() }));
        self.engine_lists(engine, instance_id, listed.collect());
    }

    pub(crate) fn engine_lists(&mut self, engine: usize, instance_id: &str, sessions: HashMap<Uuid, Listed>) {
        let addresses = addresses();
        self.news(engine, News::Up { instance_id: instance_id.to_owned(), sessions, addresses });
    }

    pub(crate) fn news(&mut self, engine: usize, news: News) {
        self.calls.handle_news(EngineId(engine), news, self.now);
        self.run();
    }

    pub(crate) fn session(&mut self, call_id: Uuid, event: SessionEvent) {
        self.news(0, News::Session { session_id: call_id, event });
    }

    pub(crate) fn reply(&mut self, call_id: Uuid, reply: EngineReply) {
        self.calls.handle_reply(call_id, reply, self.now);
        self.run();
    }

    /// The commands that an engine has got for a call, by name.
    pub(crate) fn commands_of(&self, call_id: Uuid) -> Vec<&'static str> {
        let of_call = self.commands.iter().filter(|(_, id, _)| *id == call_id);
        of_call.map(|(_, _, command)| command_name(command)).collect()
    }

    /// What agents were told, in order.
    pub(crate) fn told(&self) -> Vec<engine::tell_agent_request::What> {
        let tells = self.commands.iter().filter_map(|(_, _, command)| match command {
            EngineCommand::Tell(what) => Some((**what).clone()),
            _ => None,
        });
        tells.collect()
    }

    pub(crate) fn last_update(&self) -> &engine::RtpParameters {
        let updates = self.commands.iter().rev().filter_map(|(_, _, command)| match command {
            EngineCommand::Update(rtp) => Some(rtp),
            _ => None,
        });
        updates.into_iter().next().expect("an update")
    }

    // --- time ---

    /// Lets everything happen that is due until then.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let next = [self.calls.poll_timeout(), self.ours.poll_timeout(), self.caller.poll_timeout()];
            let Some(at) = next.into_iter().flatten().min().filter(|at| *at <= until) else { break };
            self.now = self.now.max(at);
            self.calls.handle_timeout(self.now);
            self.ours.handle_timeout(self.now);
            self.caller.handle_timeout(self.now);
            self.run();
        }
        self.now = until;
        self.run();
    }

    /// Until nothing moves any more.
    pub(crate) fn run(&mut self) {
        for _ in 0..1_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the bed does not come to rest");
    }

    fn step(&mut self) -> bool {
        let mut moved = false;
        while let Some(transmit) = self.caller.poll_transmit() {
            moved = true;
            if self.caller_is_heard {
                self.input(&transmit.bytes, self.caller_at);
            }
        }
        self.drain_ours();
        while let Some(event) = self.caller.poll_event() {
            moved = true;
            self.hear(event);
        }
        while let Some(action) = self.calls.poll_action() {
            moved = true;
            self.perform(action);
            self.drain_ours();
        }
        moved
    }

    /// A datagram from somebody: the guard may drop it, as in the shell.
    pub(crate) fn input(&mut self, bytes: &[u8], from: SocketAddr) {
        self.input_by(bytes, Flow::udp(addr(OURS), from));
    }

    /// The same by any transport.
    pub(crate) fn input_by(&mut self, bytes: &[u8], flow: Flow) {
        let (guard, now) = (&mut self.guard, self.now);
        let source = Guarded { ip: flow.remote.ip(), peer: self.certificate.as_ref() };
        let verdict = guard.as_mut().map(|guard| guard.check_source(bytes, source, now));
        if verdict.is_none_or(|verdict| verdict == Verdict::Pass) {
            let mut door = |knock: &Knock<'_>| {
                guard.as_mut().is_none_or(|guard| guard.check(knock, source, now) == Verdict::Pass)
            };
            self.ours.handle_input_at(bytes, flow, now, &mut door);
            self.drain_ours();
        }
    }

    fn drain_ours(&mut self) {
        let mut datagrams = VecDeque::new();
        while let Some(transmit) = self.ours.poll_transmit() {
            datagrams.push_back(transmit);
        }
        while let Some(event) = self.ours.poll_event() {
            if matches!(event, Event::Reinvite { .. }) {
                self.reinvited = Some(event.clone());
            }
            let peer = self.certificate.clone().map(std::sync::Arc::new);
            self.calls.handle_sip(SipEvent::Endpoint { event, peer }, self.now);
        }
        for transmit in datagrams.into_iter().filter(|transmit| transmit.flow.remote == self.caller_at) {
            self.caller.handle_input(&transmit.bytes, Flow::udp(self.caller_at, addr(OURS)), self.now);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Sip(verb @ Verb::Invite(..)) if !self.invites_leave => self.held_back.push(verb),
            Action::Sip(verb) => self.verb(verb),
            Action::Engine { engine, call_id, command } => {
                self.commands.push((engine, call_id, command.clone()));
                if let Some(reply) = self.answer_command(&command) {
                    self.calls.handle_reply(call_id, reply, self.now);
                }
            }
            Action::CloseStray { engine, session_id } => {
                self.strays.push((engine, session_id));
                let reply = EngineReply::Closed(self.closes.clone().map(|()| Box::default()));
                self.calls.handle_stray(engine, session_id, &reply);
            }
            Action::Lookup { call_id, credential } => {
                self.lookups += 1;
                if self.store_answers {
                    let found = self.found(&credential);
                    self.calls.handle_found(call_id, &credential, Ok(found), self.now);
                }
            }
            Action::Remember(context) => {
                assert_eq!(&*context.tenant_id, "t1");
                self.remembered.push(*context);
            }
            Action::Mint { context, mint } => {
                self.minted.push(((*context).clone(), mint));
                if let Some(claims) = &mut self.claims {
                    claims.insert(mint.claim, Held::Fresh(context.clone()));
                }
                let minted = if self.claims.is_some() { Ok(()) } else { Err("it is away".to_owned()) };
                self.calls.handle_minted(context.call_id, minted, self.now);
            }
            Action::Errand { call_id, credential, errand } => {
                // A provider hangs up when it is asked to.
                let hangs_up = matches!(errand, Errand::HangUp { .. });
                let done = hangs_up.then_some(Outcome::Controlled(ControlOutcome::Done));
                self.errands.push((call_id, errand));
                if let Some(outcome) = self.outcomes.pop_front().or(done) {
                    self.calls.handle_errand(call_id, &credential, outcome, self.now);
                }
            }
            Action::Missed(claim) => {
                let is_ours = match self.claimed(claim) {
                    Claimed::Unknown(_) => None,
                    claimed => Some(matches!(claimed, Claimed::Fresh(_))),
                };
                self.calls.handle_missed(claim, is_ours, self.now);
            }
            Action::Claim { engine, upgrade, .. } if self.claims_wait => self.asked.push((engine, *upgrade)),
            Action::Claim { engine, upgrade, .. } => {
                let claimed = self.claimed(upgrade.claim);
                self.calls.handle_claimed(engine, *upgrade, claimed, self.now);
            }
            Action::Dropped(claim) => {
                let held = self.claims.as_mut().and_then(|claims| claims.get_mut(&claim));
                if let Some(held) = held
                    && let Held::Taken(call_id) = *held
                {
                    *held = Held::Dropped(call_id);
                }
            }
            Action::AnswerUpgrade { engine, upgrade_id, answer } => {
                self.upgrade_answers.push((engine, upgrade_id, answer));
            }
            Action::Forget(call_id) => {
                self.forgotten.insert(call_id);
            }
            Action::Record(record) => self.records.push(*record),
            Action::Refused(refusal) => {
                if let (Some(guard), Some(failure)) = (&mut self.guard, refusal.ending.cause.failure()) {
                    let source = Guarded { ip: refusal.source.ip(), peer: None };
                    guard.refused(source, failure, self.now);
                }
                self.refusals.push(*refusal);
            }
            Action::Admitted(source, _) => {
                if let Some(guard) = &mut self.guard {
                    guard.admitted(source.ip(), self.now);
                }
                self.admitted.push(source);
            }
            Action::Changed(change) => self.changes.push(change),
        }
    }

    /// What the context store says of a claim, as `take` and `retake` do.
    fn claimed(&mut self, claim: Claim) -> Claimed {
        let Some(claims) = &mut self.claims else { return Claimed::Unknown("it is away".to_owned()) };
        let Some(held) = claims.get_mut(&claim) else { return Claimed::Nobodys };
        let call_id = match held {
            Held::Fresh(context) => context.call_id,
            Held::Taken(call_id) | Held::Dropped(call_id) => *call_id,
        };
        match std::mem::replace(held, Held::Taken(call_id)) {
            Held::Fresh(context) => Claimed::Fresh(context),
            Held::Taken(_) => Claimed::Nobodys,
            Held::Dropped(call_id) => Claimed::Again(call_id),
        }
    }

    /// Carries a verb out as the shell does.
    pub(crate) fn verb(&mut self, mut verb: Verb) {
        if let Verb::Invite(_, invite, to) = &mut verb {
            invite.flow = Flow::udp(addr(OURS), addr(CALLERS));
            // A phone of ours is registered where the caller is.
            if to.trunk.as_deref() == Some(PHONES) {
                invite.target = Uri::parse(&format!("sip:phone@{CALLERS}")).expect("an address is a host");
                (to.uri, to.trunk) = (invite.target.clone(), None);
            }
        }
        // A verb that comes too late is what the driver ignores too.
        if let Ok(Some(event)) = verb.perform(&mut self.ours, self.now) {
            self.calls.handle_sip(event, self.now);
        }
    }

    pub(crate) fn shell(&mut self, event: SipEvent) {
        self.calls.handle_sip(event, self.now);
        self.run();
    }

    fn answer_command(&self, command: &EngineCommand) -> Option<EngineReply> {
        Some(match command {
            EngineCommand::Open(_) => match &self.opens {
                Opens::Silent => return None,
                Opens::Refusing(refusal) => EngineReply::Opened(Err(refusal.clone())),
                Opens::Ready => EngineReply::Opened(Ok(Box::new(opened(true)))),
                Opens::Waiting => EngineReply::Opened(Ok(Box::new(opened(false)))),
            },
            EngineCommand::Start if !self.starts_are_answered => return None,
            EngineCommand::Start | EngineCommand::Listen => EngineReply::Started(Ok(())),
            EngineCommand::Tell(_) => EngineReply::Told(Ok(())),
            EngineCommand::Update(_) if !self.updates_are_answered => return None,
            EngineCommand::Update(_) => EngineReply::Updated(self.updates.clone()),
            EngineCommand::AddLeg(_) => EngineReply::LegAdded(self.legs.clone().map(|()| {
                Box::new(engine::AddLegResponse {
                    local_address: "192.0.2.1".into(),
                    local_port: GUEST_PORT,
                    dtls_fingerprint: vec![0xCD; 32],
                })
            })),
            EngineCommand::UpdateLeg(_) => EngineReply::LegUpdated(self.leg_updates.clone()),
            EngineCommand::RemoveLeg => EngineReply::LegRemoved(self.leg_removals.clone().map(Box::new)),
            EngineCommand::Join { other, .. } => {
                EngineReply::Joined(*other, self.joins.clone()?.map(Box::new))
            }
            EngineCommand::Close { .. } => {
                let stats = engine::SessionStats { rtp_sent: 50, ..Default::default() };
                EngineReply::Closed(self.closes.clone().map(|()| Box::new(stats)))
            }
        })
    }

    fn found(&self, credential: &Credential) -> Found {
        let principal = match &credential.proof {
            Proof::Key(key) => {
                (*key == KeyHash::of(KEY)).then(|| Principal { tenant_id: "t1".into(), key_id: "k1".into() })
            }
            _ => credential.principal(),
        };
        let assistant = (principal.is_some() && &*credential.assistant_id == "echo")
            .then(|| Assistant { assistant_id: "echo".into(), agent: Ok(self.agent.clone()) });
        Found { principal, assistant }
    }

    fn hear(&mut self, event: Event) {
        let heard = match event {
            Event::IncomingInvite { call, request, .. } => {
                self.incoming.push((call, request));
                return;
            }
            Event::Reinvite { call, request } if self.answers_reinvites => {
                let direction = match String::from_utf8_lossy(&request.body) {
                    text if text.contains("a=inactive") => "inactive",
                    text if text.contains("a=sendonly") => "recvonly",
                    _ => "sendrecv",
                };
                self.caller.answer(call, Body::sdp(offer(direction, "0")), self.now).unwrap();
                return;
            }
            Event::Request { handle, request, .. } if request.method == Method::Refer => {
                let target = request.header(tandem_sip::HeaderName::ReferTo).unwrap_or_default().to_owned();
                self.heard.push(Heard::Refer { target, headers: request.head.headers().clone() });
                self.caller.accept_refer(handle, self.now).unwrap();
                return;
            }
            Event::Request { handle, request, .. } if request.method == Method::Info => {
                self.heard.push(Heard::Info(String::from_utf8_lossy(&request.body).into_owned()));
                self.caller.reply(handle, Reply::new(200), self.now).unwrap();
                return;
            }
            Event::Reinvite { call, .. } => {
                self.caller.reject(call, Reply::new(491), self.now).unwrap();
                return;
            }
            Event::Provisional { response, .. } => Heard::Provisional(response.status),
            Event::Answered { response, .. } => Heard::Answered(text(&response)),
            Event::ReinviteAnswered { response, .. } => Heard::ReinviteAnswered(text(&response)),
            Event::ReinviteRefused { status, .. } => Heard::ReinviteRefused(status),
            Event::Ended { why: EndReason::Failed { response }, .. } => Heard::Refused {
                status: response.status,
                reason: response.header(tandem_sip::HeaderName::Reason).map(str::to_owned),
                retry_after_s: response.head.retry_after_s(),
                call_id: header(&response, CALL_ID_HEADER),
            },
            Event::Ended { why: EndReason::RemoteBye { reason }, .. } => Heard::Bye { reason },
            Event::Response { result: Ok(response), .. } => Heard::Response(response.status, text(&response)),
            other => Heard::Other(format!("{other:?}")),
        };
        self.heard.push(heard);
    }
}

/// Where the engines are reached.
pub(crate) fn addresses() -> Addresses {
    Addresses {
        ws: "media.example.com:443".to_owned(),
        is_ws_secure: true,
        audiosocket: "media.example.com:9093".to_owned(),
        rtp_ports: (20_000, 29_999),
        cores: 1,
    }
}

fn settings(limits: Limits, engines: usize) -> Settings {
    Settings {
        limits,
        talker_url: "ws://127.0.0.1:8767/v1/talk".to_owned(),
        talker_token: None,
        engines: (0..engines).map(|n| format!("http://engine-{n}:7070")).collect(),
        credentials: credentials(),
        public_url: "https://tandem.example.com".to_owned(),
        seed: 7,
    }
}

/// What providers know us by: `main` proves nothing when its media come, `signed` signs everything.
pub(crate) fn credentials() -> ProviderCredentials {
    let text = "[[tenant]]\nid = 't1'\n[credential.main]\nprovider = 'asterisk'\n\
                [credential.signed]\nprovider = 'twilio'\ncalls_per_second = 100\n\
                account_sid = 'AC00000000000000000000000000000001'\naccount_token = 'hunter2'\n\
                [[deployment]]\ncredential = 'signed'\nphone = '+14155550100'\n\
                transfer_targets = ['+1415555']\n";
    let tables: toml::Table = text.parse().unwrap();
    let source = Source::new(std::path::Path::new("tandem.toml"), &|_| None);
    let (_, tenants) = declared::read(&source, &tables, false);
    let credentials = control_plane::provider::file::read(&source, &tables, &tenants);
    let errors = source.into_errors();
    assert!(errors.is_empty(), "{errors:?}");
    credentials
}

fn endpoint(seed: u64) -> EndpointConfig {
    let in_dialog_methods = vec![Method::Update, Method::Info, Method::Refer];
    EndpointConfig { seed, in_dialog_methods, ..EndpointConfig::default() }
}

pub(crate) fn opened(agent_ready: bool) -> engine::OpenSessionResponse {
    engine::OpenSessionResponse {
        instance_id: "instance-1".into(),
        local_address: "192.0.2.1".into(),
        local_port: 20_000,
        core: 0,
        agent_ready,
        dtls_fingerprint: vec![0xAB; 32],
    }
}

fn header(response: &Response, wanted: &str) -> Option<String> {
    let mut headers = response.head.headers().iter();
    let (_, value) = headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

fn text(response: &Response) -> String {
    String::from_utf8(response.body.clone()).unwrap()
}

fn command_name(command: &EngineCommand) -> &'static str {
    match command {
        EngineCommand::Open(_) => "open",
        EngineCommand::Start => "start",
        EngineCommand::Listen => "listen",
        EngineCommand::Tell(_) => "tell",
        EngineCommand::Update(_) => "update",
        EngineCommand::AddLeg(_) => "add_leg",
        EngineCommand::UpdateLeg(_) => "update_leg",
        EngineCommand::RemoveLeg => "remove_leg",
        EngineCommand::Join { .. } => "join",
        EngineCommand::Close { .. } => "close",
    }
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn echo_uri() -> String {
    format!("sip:echo:{KEY}@192.0.2.1")
}

pub(crate) fn offer(direction: &str, formats: &str) -> String {
    format!(
        "v=0\r\no=- 1 1 IN IP4 192.0.2.9\r\ns=-\r\nc=IN IP4 192.0.2.9\r\nt=0 0\r\n\
         m=audio 40000 RTP/AVP {formats}\r\na={direction}\r\n"
    )
}

/// The o= version of a description.
pub(crate) fn version(sdp: &str) -> u64 {
    let line = sdp.lines().find(|line| line.starts_with("o=")).expect("o=");
    line.split(' ').nth(2).unwrap().parse().unwrap()
}
