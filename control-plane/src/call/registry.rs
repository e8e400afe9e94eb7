//! All calls of this node: the sans-IO core of call handling.
//!
//! ```text
//!   handle_sip(event) ──────▶ ┌───────────────────────────┐
//!   handle_found(answer) ───▶ │ Calls                     │ ──poll_action──▶ SIP verbs, engine commands, lookups,
//!   handle_reply(engine) ───▶ │   one Call each, deadlines│                  records, log lines
//!   handle_news(engine) ────▶ │   Fleet of engines        │ ──poll_timeout─▶ the next deadline
//!   handle_timeout(now) ────▶ └───────────────────────────┘
//!   verbs: place, hang_up, hold, transfer, join, join_calls, drain, end_all
//! ```
//!
//! After each `handle_*` or verb the driver empties `poll_action`. No socket, no clock, no task in here: a scenario
//! drives it in virtual time.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tandem_api::v1 as api;
use tandem_sip::message::{Method, Reply};
use tandem_sip::{CallHandle, Event, Flow, HeaderName, Headers, Request};
use uuid::Uuid;

use super::action::{Action, EngineRefusal, EngineReply, Refusal};
use super::admission::{self, Credential, Trace, Turned, refused_by};
use super::bulk::Bulks;
use super::dispatcher::Dispatcher;
use super::ending::{Cause, Ending};
use super::gate::{Gate, Owner};
use super::invite;
use super::machine::{Asked, Call, Loss, Place, ReferTarget, TransferTo};
use super::record::CallRecord;
use super::state::State;
use super::strays::Strays;
use crate::config::Limits;
use crate::media::{EngineId, Fleet, News};
use crate::provider::Credentials;
use crate::sip::{NotSent, SipEvent, TlsPeer, Token, Verb};
use crate::store::accounts::Found;
use crate::store::contexts::Claim;
use crate::trunk::Reliable;

pub mod claiming;
pub mod joining;
pub mod placing;

use claiming::Expected;
use placing::Repeats;

/// What the core must know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bounds of calls.
    pub limits: Limits,
    /// Where engines dial the built-in voice agent: `link://…` or `ws://…`.
    pub talker_url: String,
    /// What the engines' links show it.
    pub talker_token: Option<secrecy::SecretString>,
    /// The engines' addresses, for records.
    pub engines: Vec<String>,
    /// What telephony providers know us by.
    pub credentials: Credentials,
    /// Where they call back, without a slash at the end.
    pub public_url: String,
    /// Of call ids and session ids; random in production.
    pub seed: u64,
}

impl Settings {
    /// Where a provider sends news of a call.
    pub fn event_url(&self, provider: &str, event_id: Uuid) -> String {
        format!("{}/v1/telephony/{provider}/event/{event_id}", self.public_url)
    }
}

/// What a call sees of the rest while it handles something.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// What to do, in order.
    pub actions: &'a mut VecDeque<Action>,
    /// Sessions that are left where nobody answers.
    pub strays: &'a mut Strays,
    /// See [`Settings`].
    pub settings: &'a Settings,
    /// The present.
    pub now: Instant,
    /// INVITE to 200 of this call, when it has just been answered.
    pub setup: Option<Duration>,
    /// What trunks and tenants use.
    pub gate: &'a mut Gate,
    wall: Wall,
    rng: &'a mut StdRng,
    tokens: &'a mut HashMap<Token, Uuid>,
}

impl Surroundings<'_> {
    /// Milliseconds since the Unix epoch.
    pub fn epoch_ms(&self) -> i64 {
        self.wall.at(self.now)
    }

    /// A name for a request that leaves for this call.
    pub fn token(&mut self, call_id: Uuid) -> Token {
        let token = Token::unique();
        self.tokens.insert(token, call_id);
        token
    }

    /// What this token named is over.
    pub fn forget(&mut self, token: Token) {
        self.tokens.remove(&token);
    }

    /// A random number.
    pub fn random(&mut self) -> u64 {
        self.rng.next_u64()
    }
}

/// The wall clock, as a distance from an instant.
#[derive(Debug, Clone, Copy)]
struct Wall {
    instant: Instant,
    epoch_ms: i64,
}

impl Wall {
    fn at(self, now: Instant) -> i64 {
        let elapsed = now.saturating_duration_since(self.instant).as_millis();
        self.epoch_ms + i64::try_from(elapsed).unwrap_or(0)
    }
}

/// All calls.
#[derive(Debug)]
pub struct Calls {
    settings: Settings,
    calls: HashMap<Uuid, Call>,
    by_sip: HashMap<CallHandle, Uuid>,
    /// One entry for each call that has a deadline.
    deadlines: BTreeSet<(Instant, Uuid)>,
    scheduled: HashMap<Uuid, Instant>,
    fleet: Fleet,
    strays: Strays,
    actions: VecDeque<Action>,
    wall: Wall,
    rng: StdRng,
    /// Milliseconds and count of the last call id.
    last_id: (u64, u16),
    gate: Gate,
    draining: bool,
    store_behind: bool,
    /// Requests of ours that have neither left nor failed. Each call has a few at most; a call that is over leaves its
    /// own until the shell has said what became of them.
    tokens: HashMap<Token, Uuid>,
    dispatcher: Dispatcher,
    bulks: Bulks,
    repeats: Repeats,
    /// Claims that the store has been asked about.
    claims_asked: usize,
    /// Live calls by the claim of their media connection.
    by_claim: HashMap<Claim, Uuid>,
    /// Calls that providers have announced, whose media connections are to come.
    expected: Expected,
    /// A queued call may have a chance now that it had not before.
    pump_at: Option<Instant>,
}

impl Calls {
    /// No calls yet. `epoch_ms` is the wall clock at `now`.
    pub fn new(settings: Settings, now: Instant, epoch_ms: i64) -> Self {
        Self {
            calls: HashMap::new(),
            by_sip: HashMap::new(),
            deadlines: BTreeSet::new(),
            scheduled: HashMap::new(),
            fleet: Fleet::new(settings.engines.len()),
            strays: Strays::default(),
            actions: VecDeque::new(),
            wall: Wall { instant: now, epoch_ms },
            rng: StdRng::seed_from_u64(settings.seed),
            last_id: (0, 0),
            gate: Gate::without_trunks(settings.seed),
            draining: false,
            store_behind: false,
            tokens: HashMap::new(),
            dispatcher: Dispatcher::default(),
            bulks: Bulks::default(),
            repeats: Repeats::default(),
            claims_asked: 0,
            by_claim: HashMap::new(),
            expected: Expected::default(),
            pump_at: None,
            settings,
        }
    }

    /// With these trunks, phones and limits.
    pub fn with_gate(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }

    // --- getters ---

    /// Calls that are not over.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Calls that are not over and do not wait in the queue.
    fn under_way(&self) -> usize {
        self.calls.len().saturating_sub(self.dispatcher.queued())
    }

    /// Whether every call is over.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// How many calls are in each state.
    pub fn count_by_state(&self) -> HashMap<State, usize> {
        let mut counts = HashMap::new();
        for call in self.calls.values() {
            *counts.entry(call.state()).or_default() += 1;
        }
        counts
    }

    /// Engines that take calls.
    pub fn engines_available(&self) -> usize {
        self.fleet.available()
    }

    /// Whether new calls are refused because this node goes down.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// A live call of this tenant.
    pub fn get(&self, tenant_id: &str, call_id: Uuid) -> Option<api::Call> {
        let record = self.calls.get(&call_id)?.record(&self.settings)?;
        (&*record.tenant_id == tenant_id).then_some(record.call)
    }

    /// Whether this call is alive and admitted, whosever it is.
    pub fn knows(&self, call_id: Uuid) -> bool {
        self.calls.get(&call_id).is_some_and(|call| call.tenant_id().is_some())
    }

    /// The live calls of this tenant, newest first.
    pub fn list(&self, tenant_id: &str) -> Vec<api::Call> {
        let records = self.calls.values().filter_map(|call| call.record(&self.settings));
        let own = records.filter(|record: &CallRecord| &*record.tenant_id == tenant_id);
        let mut calls: Vec<api::Call> = own.map(|record| record.call).collect();
        calls.sort_by(|a, b| b.call_id.cmp(&a.call_id));
        calls
    }

    // --- from network, store, engines and clock ---

    /// What the SIP shell says.
    pub fn handle_sip(&mut self, event: impl Into<SipEvent>, now: Instant) {
        match event.into() {
            SipEvent::Endpoint { event, peer } => self.handle_endpoint(event, peer.as_deref(), now),
            SipEvent::Placed { token, call } => self.handle_placed(token, call, now),
            SipEvent::NotSent { token, why } => self.handle_not_sent(token, &why, now),
            SipEvent::Sent { token, .. } => {
                self.tokens.remove(&token);
            }
            SipEvent::FlowLost { .. } | SipEvent::Closed { .. } => {}
        }
    }

    fn handle_placed(&mut self, token: Token, sip: CallHandle, now: Instant) {
        // Unknown: somebody else's. The token stays: the INVITE may move on to another address. It goes with its call.
        let Some(call_id) = self.tokens.get(&token).copied() else { return };
        if !self.calls.contains_key(&call_id) {
            self.tokens.remove(&token);
            // Its call has ended without waiting: nobody is to answer that phone.
            let verb = Verb::HangUp(sip, Headers::new());
            return self.actions.push_back(Action::Sip(verb));
        }
        if let Some(before) = self.calls.get(&call_id).and_then(|call| call.handle_of(token)) {
            self.by_sip.remove(&before);
        }
        self.by_sip.insert(sip, call_id);
        self.on_call(call_id, now, |call, _, around| call.handle_placed(token, sip, around));
    }

    fn handle_not_sent(&mut self, token: Token, why: &NotSent, now: Instant) {
        let Some(call_id) = self.tokens.remove(&token) else { return };
        self.on_call(call_id, now, |call, _, around| call.handle_not_sent(token, why, around));
    }

    fn handle_endpoint(&mut self, event: Event, peer: Option<&TlsPeer>, now: Instant) {
        if let Some((sip, call_id)) = self.aside_of(&event) {
            return self.handle_aside(sip, call_id, event, now);
        }
        match event {
            Event::IncomingInvite { call, request, flow, replaces } => {
                let replaced = replaces.map(|old| self.replaced_by(old));
                self.handle_invite(call, &request, flow, peer, replaced, now);
            }
            Event::Acknowledged { call, ack } => {
                self.on_sip(call, now, |call, around| call.handle_acknowledged(&ack, around));
            }
            Event::Reinvite { call, request } => {
                self.on_sip(call, now, |call, around| call.handle_reinvite(&request, around));
            }
            Event::ReinviteCancelled { call } => {
                self.on_sip(call, now, |call, _| call.handle_reinvite_cancelled());
            }
            Event::Ended { call, why } => {
                self.on_sip(call, now, |call, around| call.handle_sip_ended(why, around));
                // Its last word: a call may go on under another handle.
                self.by_sip.remove(&call);
            }
            Event::Request { handle, call: Some(call), request, .. } if request.method == Method::Update => {
                self.on_sip(call, now, |call, around| call.handle_update(handle, &request, around));
            }
            Event::Request { handle, call: Some(call), request, .. } if request.method == Method::Info => {
                match self.by_sip.contains_key(&call) {
                    true => self.on_sip(call, now, |call, around| call.handle_info(handle, &request, around)),
                    false => self.actions.push_back(Action::Sip(Verb::Reply(handle, Reply::new(481)))),
                }
            }
            Event::Request { handle, call: Some(call), request, .. }
                if request.method == Method::Refer && self.by_sip.contains_key(&call) =>
            {
                self.on_sip(call, now, |call, around| call.handle_refer(handle, &request, around));
            }
            Event::Request { handle, request, .. } => {
                // A transfer outside a call would make us place calls for whoever asks: declined (RFC 3515 §2.4.2).
                let status = if request.method == Method::Refer { 603 } else { 501 };
                self.actions.push_back(Action::Sip(Verb::Reply(handle, Reply::new(status))));
            }
            Event::Provisional { call, response, wants_prack } => {
                self.on_sip(call, now, |call, around| {
                    call.handle_provisional(&response, wants_prack, around);
                });
            }
            Event::Answered { call, response, wants_ack } => {
                self.on_sip(call, now, |call, around| call.handle_answered(&response, wants_ack, around));
            }
            Event::ReinviteAnswered { call, response, .. } => {
                self.on_sip(call, now, |call, around| call.handle_reinvite_answered(&response, around));
            }
            Event::ReinviteRefused { call, status, retry_after } => {
                self.on_sip(call, now, |call, around| {
                    call.handle_reinvite_refused(status, retry_after, around);
                });
            }
            Event::ReferProgress { call, status, reason, is_final } => {
                self.on_sip(call, now, |call, around| {
                    call.handle_refer_progress(status, &reason, is_final, around);
                });
            }
            Event::Response { call: Some(call), .. } => {
                self.on_sip(call, now, |call, around| call.handle_info_answered(around));
            }
            // Connections are the shell's.
            Event::Pracked { .. }
            | Event::Response { .. }
            | Event::Refused { .. }
            | Event::CloseConnection { .. } => {}
        }
    }

    /// The call beside whose own dialog this happens: in one that is to take its place, or did so.
    fn aside_of(&self, event: &Event) -> Option<(CallHandle, Uuid)> {
        let sip = match event {
            Event::Provisional { call, .. }
            | Event::Answered { call, .. }
            | Event::Acknowledged { call, .. }
            | Event::Reinvite { call, .. }
            | Event::ReinviteCancelled { call }
            | Event::ReinviteAnswered { call, .. }
            | Event::ReinviteRefused { call, .. }
            | Event::ReferProgress { call, .. }
            | Event::Ended { call, .. }
            | Event::Request { call: Some(call), .. }
            | Event::Response { call: Some(call), .. } => *call,
            _ => return None,
        };
        let call_id = *self.by_sip.get(&sip)?;
        // None: its own branch has not left yet, or is over.
        let own = self.calls.get(&call_id)?.sip();
        (own != Some(sip)).then_some((sip, call_id))
    }

    fn handle_aside(&mut self, sip: CallHandle, call_id: Uuid, event: Event, now: Instant) {
        match event {
            Event::Provisional { response, .. } => self.on_call(call_id, now, |call, _, around| {
                call.handle_fork_progress(sip, &response, around);
                call.handle_referral_progress(sip, &response, around);
                call.handle_guest_progress(sip, &response);
            }),
            Event::Answered { response, .. } => self.on_call(call_id, now, |call, _, around| {
                call.handle_fork_answered(sip, &response, around);
                call.handle_referral_answered(sip, &response, around);
                call.handle_guest_answered(sip, &response, around);
            }),
            Event::Acknowledged { ack, .. } => self.on_call(call_id, now, |call, _, around| {
                call.handle_guest_acknowledged(sip, &ack, around);
            }),
            Event::Ended { why, .. } => {
                self.on_call(call_id, now, |call, _, around| call.handle_aside_ended(sip, why, around));
                self.by_sip.remove(&sip);
            }
            // Who has referred us may only hang up, and a branch that only rings has nothing to change: only a guest has.
            Event::Request { handle, request, .. } => self.on_call(call_id, now, |call, _, around| {
                call.handle_guest_request(sip, handle, &request, around);
            }),
            Event::Reinvite { request, .. } => self.on_call(call_id, now, |call, _, around| {
                call.handle_guest_reinvite(sip, &request, around);
            }),
            Event::ReinviteCancelled { .. } => self.on_call(call_id, now, |call, _, _| {
                call.handle_guest_reinvite_cancelled(sip);
            }),
            _ => {}
        }
    }

    /// The call whose dialog this is; nil if it is no call's own. A guest's is not: its place is beside somebody, and whoever took
    /// it would be given the other one's.
    fn replaced_by(&self, old: CallHandle) -> Uuid {
        let call_id = self.by_sip.get(&old).copied();
        call_id.filter(|id| self.calls.get(id).is_none_or(|call| !call.is_guests(old))).unwrap_or_default()
    }

    /// Whose place an INVITE with Replaces wants.
    fn place_of(&self, replaced: Uuid) -> Place {
        let place = self.calls.get(&replaced).map(Call::place_of);
        place.unwrap_or(Place { tenant_id: None, assistant_id: "".into(), is_busy: true })
    }

    fn handle_invite(
        &mut self,
        sip: CallHandle,
        request: &Request,
        flow: Flow,
        peer: Option<&TlsPeer>,
        replaced: Option<Uuid>,
        now: Instant,
    ) {
        let call_id = self.new_call_id(now);
        let mut trace = Trace::new();
        let place = replaced.map(|replaced| self.place_of(replaced));
        let invite = admission::Invite { request, source: flow.remote, peer, place: place.as_ref(), now };
        // First who it is: how full we are is nothing that a stranger need know.
        let credential = admission::credential(&invite, &mut self.gate, &mut trace);
        let admitted = credential.and_then(|credential| match self.check_room(replaced, &mut trace) {
            Ok(()) => Ok(credential),
            Err(ending) => Err(Turned::Refused(ending, credential.owner())),
        });
        let credential = match admitted {
            Ok(credential) => credential,
            Err(Turned::Challenged(reply)) => {
                return self.actions.push_back(Action::Sip(Verb::Reject(sip, reply)));
            }
            Err(Turned::Refused(ending, owner)) => {
                return self.refuse(sip, call_id, &invite, trace, ending, owner);
            }
        };
        if let Some(host) = credential.trunk().and_then(|trunk| trunk.addresses.advertised_host.as_deref()) {
            self.actions.push_back(Action::Sip(Verb::Advertise(sip, Some(host.into()))));
        }
        if let Some(trunk) = credential.trunk() {
            if trunk.reliable == Reliable::Never && request.head.lists(HeaderName::Require, "100rel") {
                return self
                    .actions
                    .push_back(Action::Sip(Verb::Reject(sip, invite::bad_extension("100rel"))));
            }
            let (reliable, timer) = invite::agreed(trunk);
            self.actions.push_back(Action::Sip(Verb::Agree(sip, reliable, timer)));
        }
        self.gate.begin(call_id, credential.trunk());
        let Self { actions, strays, settings, rng, gate, tokens, .. } = self;
        let wall = self.wall;
        let around = Surroundings { actions, strays, settings, now, setup: None, gate, wall, rng, tokens };
        let mut call = Call::new(call_id, sip, request, flow, &credential, trace, &around);
        if let Some(replaced) = replaced {
            call.replace(replaced);
        }
        around.actions.push_back(Action::Lookup { call_id, credential });
        self.by_sip.insert(sip, call_id);
        self.calls.insert(call_id, call);
        self.on_call(call_id, now, |_, _, _| {});
    }

    /// Who takes another call's place takes no room.
    fn check_room(&self, replaced: Option<Uuid>, trace: &mut Trace) -> Result<(), Ending> {
        if replaced.is_some() { Ok(()) } else { self.check_capacity(trace) }
    }

    /// Is there room for one more? Asked before anything is looked up.
    fn check_capacity(&self, trace: &mut Trace) -> Result<(), Ending> {
        let calls_max = self.settings.limits.calls_max;
        let (cause, step) = if self.draining {
            (Cause::Draining, refused_by("draining", "node", "one that takes calls", "going down"))
        } else if self.under_way() >= calls_max {
            let (expected, got) = (format!("fewer than {calls_max}"), self.under_way().to_string());
            (Cause::TooManyCalls, refused_by("calls_max", "live calls", &expected, &got))
        } else if self.store_behind {
            (Cause::StoreBehind, refused_by("store", "records that wait", "room for one more", "none"))
        } else if self.fleet.available() == 0 {
            (Cause::NoEngine, refused_by("engine", "media engine", "one with room", "none is connected"))
        } else {
            return Ok(());
        };
        trace.push(step);
        Err(Ending::new(cause))
    }

    /// Refuses an INVITE that never becomes a call of ours: no record, one log line.
    fn refuse(
        &mut self,
        sip: CallHandle,
        call_id: Uuid,
        invite: &admission::Invite<'_>,
        trace: Trace,
        ending: Ending,
        owner: Owner,
    ) {
        self.actions.push_back(Action::Sip(Verb::Reject(sip, ending.to_reply_of(call_id))));
        let refusal = Refusal {
            call_id,
            tenant_id: owner.tenant,
            trunk: owner.trunk,
            source: invite.source,
            from: admission::shown(&invite.request.head.from().uri.redacted().to_string()),
            to: admission::shown(invite.request.uri.without_password().as_str()),
            step: trace.last().cloned().unwrap_or_default(),
            trace,
            is_recorded: false,
            ending,
        };
        self.actions.push_back(Action::Refused(Box::new(refusal)));
    }

    /// The INVITE of this name goes to one more place; gives the name of the one that goes there. `None`: it shall not.
    pub fn fork(&mut self, token: Token, now: Instant) -> Option<Token> {
        let call_id = self.tokens.get(&token).copied()?;
        let mut fork = None;
        self.on_call(call_id, now, |call, _, around| fork = call.fork(token, around));
        fork
    }

    /// The store has answered a [`Action::Lookup`].
    pub fn handle_found(
        &mut self,
        call_id: Uuid,
        credential: &Credential,
        found: Result<Found, String>,
        now: Instant,
    ) {
        if let Some(replaced) = self.calls.get(&call_id).and_then(Call::replaced) {
            return self.handle_found_replacing(call_id, replaced, credential, found, now);
        }
        self.on_call(call_id, now, |call, fleet, around| call.handle_found(credential, found, fleet, around));
    }

    /// An INVITE with Replaces is admitted: it becomes another dialog of the call that it names, and no call of its own.
    fn handle_found_replacing(
        &mut self,
        call_id: Uuid,
        replaced: Uuid,
        credential: &Credential,
        found: Result<Found, String>,
        now: Instant,
    ) {
        let place = self.place_of(replaced);
        let mut newcomer = None;
        self.on_call(call_id, now, |call, _, around| {
            newcomer = call.handle_found_replacing(credential, found.as_ref(), &place, around);
        });
        let Some(newcomer) = newcomer else { return };
        self.calls.remove(&call_id);
        if let Some(at) = self.scheduled.remove(&call_id) {
            self.deadlines.remove(&(at, call_id));
        }
        self.gate.over(call_id);
        self.by_sip.insert(newcomer.sip(), replaced);
        self.on_call(replaced, now, |call, _, around| call.handle_newcomer(newcomer, around));
    }

    /// An engine has answered an [`Action::Engine`].
    pub fn handle_reply(&mut self, call_id: Uuid, reply: EngineReply, now: Instant) {
        if let EngineReply::Joined(other_id, result) = reply {
            return self.handle_joined(call_id, other_id, result, now);
        }
        self.on_call(call_id, now, |call, fleet, around| call.handle_reply(reply, fleet, around));
    }

    /// An engine has answered an [`Action::CloseStray`]. What it did not do is tried again when its stream is new.
    pub fn handle_stray(&mut self, engine: EngineId, session_id: Uuid, reply: &EngineReply) {
        match reply {
            EngineReply::Closed(Ok(_) | Err(EngineRefusal::Gone)) => self.strays.remove(engine, session_id),
            _ => self.strays.add(engine, session_id),
        }
    }

    /// An engine's event stream says something.
    pub fn handle_news(&mut self, engine: EngineId, news: News, now: Instant) {
        match news {
            News::Up { instance_id, sessions, addresses } => {
                self.fleet.handle_up(engine, &instance_id, sessions.len(), addresses);
                self.pump_at = Some(now);
                let on_engine = self.calls_on(engine);
                for call_id in on_engine {
                    let listed = sessions.get(&call_id);
                    self.on_call(call_id, now, |call, _, around| {
                        if call.session_mut().is_lost_in(&instance_id, listed.is_some()) {
                            let is_same = call.session().instance_id() == instance_id;
                            let loss = if is_same { Loss::Unlisted } else { Loss::Restarted };
                            call.handle_engine_lost(loss, around);
                        } else if let Some(listed) = listed {
                            // It may have been told while we were away.
                            let events = listed.stream_events().into_iter().chain(listed.to_event());
                            events.for_each(|event| call.handle_session(event, around));
                        }
                    });
                }
                for session_id in self.strays.take_listed(engine, &sessions) {
                    self.actions.push_back(Action::CloseStray { engine, session_id });
                }
            }
            News::Down => {
                self.fleet.handle_down(engine, now);
                for call_id in self.calls_on(engine) {
                    self.on_call(call_id, now, |call, _, _| call.session_mut().handle_link_lost());
                }
            }
            News::Heartbeat { sessions, draining } => {
                self.fleet.handle_heartbeat(engine, sessions, draining);
            }
            News::Upgrade(upgrade) => self.handle_upgrade(engine, upgrade, now),
            News::Session { session_id, event } => {
                self.on_call(session_id, now, |call, _, around| {
                    // A late word of an engine that a call has left is not about its session.
                    if call.session().engine() == Some(engine) {
                        call.handle_session(event, around);
                    }
                });
            }
        }
    }

    /// A deadline has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(engine) = self.fleet.poll_given_up(now) {
            for call_id in self.calls_on(engine) {
                self.on_call(call_id, now, |call, _, around| call.handle_engine_lost(Loss::Silent, around));
            }
        }
        while let Some((_, call_id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.on_call(call_id, now, |call, _, around| call.handle_timeout(around));
        }
        self.miss_expected(now);
        self.pump(now);
    }

    /// The wall clock: after a step of it records show the new time.
    pub fn handle_clock(&mut self, now: Instant, epoch_ms: i64) {
        self.wall = Wall { instant: now, epoch_ms };
    }

    /// Whether the store can take the records of new calls.
    pub fn handle_store(&mut self, is_behind: bool) {
        self.store_behind = is_behind;
    }

    // --- verbs ---

    /// Ends a live call of this tenant. `false`: it has none of this id, or it is ending.
    pub fn hang_up(&mut self, tenant_id: &str, call_id: Uuid, now: Instant) -> bool {
        let is_own = self.calls.get(&call_id).is_some_and(|call| {
            call.tenant_id().is_some_and(|owner| &**owner == tenant_id) && call.state() != State::Ending
        });
        if is_own {
            let ending = Ending::new(Cause::OperatorHangup);
            self.on_call(call_id, now, |call, _, around| call.end(ending, around));
        }
        is_own
    }

    /// Puts the other side of a call on hold, or takes it back. `None`: this tenant has no such call.
    pub fn hold(&mut self, tenant_id: &str, call_id: Uuid, is_held: bool, now: Instant) -> Option<Asked> {
        self.own(tenant_id, call_id)?;
        let mut asked = None;
        self.on_call(call_id, now, |call, _, around| asked = Some(call.hold(is_held, around)));
        asked
    }

    /// Hands the other side of a call on. `None`: this tenant has no such call.
    pub fn transfer(
        &mut self,
        tenant_id: &str,
        call_id: Uuid,
        to: TransferTo,
        now: Instant,
    ) -> Option<Asked> {
        self.own(tenant_id, call_id)?;
        let to = match to {
            TransferTo::Blind(to) => ReferTarget::Blind(to),
            TransferTo::Attended(other) => {
                let other = self.own(tenant_id, other).filter(|other| other.state() != State::Ending);
                match other.and_then(Call::dialog) {
                    Some(dialog) => ReferTarget::Attended(dialog.clone()),
                    None => return Some(Asked::NoTarget),
                }
            }
        };
        let mut asked = None;
        self.on_call(call_id, now, |call, _, around| asked = Some(call.transfer(to, around)));
        asked
    }

    fn own(&self, tenant_id: &str, call_id: Uuid) -> Option<&Call> {
        let call = self.calls.get(&call_id)?;
        call.tenant_id().filter(|owner| &***owner == tenant_id).map(|_| call)
    }

    /// Refuses new calls from now on; what waits in the queue is over.
    pub fn drain(&mut self, now: Instant) {
        self.draining = true;
        let queued = self.calls.iter().filter(|(_, call)| call.state() == State::Queued);
        let queued: Vec<Uuid> = queued.map(|(id, _)| *id).collect();
        for call_id in queued {
            self.on_call(call_id, now, |call, _, around| call.end(Ending::new(Cause::Draining), around));
        }
    }

    /// Ends every call: this node goes down.
    pub fn end_all(&mut self, now: Instant) {
        self.draining = true;
        let all: Vec<Uuid> = self.calls.keys().copied().collect();
        for call_id in all {
            self.on_call(call_id, now, |call, _, around| call.end(Ending::new(Cause::Shutdown), around));
        }
    }

    // --- what must leave ---

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When `handle_timeout` must be called, at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let calls = self.deadlines.first().map(|(at, _)| *at);
        let has_room = |tenant: &str| self.gate.has_room(tenant);
        let queue = if self.may_dial() { self.dispatcher.poll_timeout(has_room) } else { None };
        [calls, self.fleet.poll_timeout(), queue, self.pump_at, self.expected.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    // --- inside ---

    fn calls_on(&self, engine: EngineId) -> Vec<Uuid> {
        let calls = self.calls.iter();
        calls.filter(|(_, call)| call.session().engine() == Some(engine)).map(|(id, _)| *id).collect()
    }

    fn on_sip(
        &mut self,
        sip: CallHandle,
        now: Instant,
        handle: impl FnOnce(&mut Call, &mut Surroundings<'_>),
    ) {
        // Unknown: a refused INVITE's last word, or a call that ended its grace before the peer spoke.
        let Some(call_id) = self.by_sip.get(&sip).copied() else { return };
        self.on_call(call_id, now, |call, _, around| handle(call, around));
    }

    /// Lets a call handle something, then sends what it wants and keeps its deadline.
    fn on_call(
        &mut self,
        call_id: Uuid,
        now: Instant,
        handle: impl FnOnce(&mut Call, &mut Fleet, &mut Surroundings<'_>),
    ) {
        let Self { calls, fleet, actions, strays, settings, rng, gate, tokens, .. } = self;
        let Some(call) = calls.get_mut(&call_id) else { return };
        let wall = self.wall;
        let mut around =
            Surroundings { actions, strays, settings, now, setup: None, gate, wall, rng, tokens };
        handle(call, fleet, &mut around);
        let is_over = call.settle(&mut around);
        let deadline = if is_over { None } else { call.poll_timeout() };
        let scheduled = self.scheduled.get(&call_id).copied();
        if scheduled != deadline {
            if let Some(at) = scheduled {
                self.deadlines.remove(&(at, call_id));
                self.scheduled.remove(&call_id);
            }
            if let Some(at) = deadline {
                self.deadlines.insert((at, call_id));
                self.scheduled.insert(call_id, at);
            }
        }
        if let Some(bulk) = call.bulk() {
            let word = call.ending().map(|ending| ending.cause.row().word);
            self.bulks.handle_change(bulk, call_id, call.state(), word);
        }
        if is_over && let Some(call) = self.calls.remove(&call_id) {
            if let Some(sip) = call.sip() {
                self.by_sip.remove(&sip);
            }
            // One that waits for its INVITE stays, so that what leaves late is hung up.
            if let Some(token) = call.idle_token() {
                self.tokens.remove(&token);
            }
            if let Some(claim) = call.claim() {
                self.by_claim.remove(&claim);
            }
            self.dispatcher.remove(call_id, now);
            self.pump_at = Some(now);
            self.gate.over(call_id);
        }
    }

    /// A UUID of version 7, above the last one: lists rely on the order.
    fn new_call_id(&mut self, now: Instant) -> Uuid {
        let epoch_ms = u64::try_from(self.wall.at(now)).unwrap_or_default();
        let (last_ms, last_count) = self.last_id;
        self.last_id = match last_count {
            _ if epoch_ms > last_ms => (epoch_ms, 0),
            // The 12 bits behind the time count; a full millisecond borrows the next.
            0xfff => (last_ms + 1, 0),
            count => (last_ms, count + 1),
        };
        let (epoch_ms, count) = self.last_id;
        let mut rest = [0; 10];
        self.rng.fill_bytes(&mut rest[2..]);
        rest[..2].copy_from_slice(&count.to_be_bytes());
        uuid::Builder::from_unix_timestamp_millis(epoch_ms, &rest).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_ids_rise_even_within_a_millisecond_and_when_the_clock_steps_back() {
        let settings = Settings {
            limits: Limits::default(),
            talker_url: String::new(),
            talker_token: None,
            engines: Vec::new(),
            credentials: Credentials::default(),
            public_url: String::new(),
            seed: 1,
        };
        let now = Instant::now();
        let mut calls = Calls::new(settings, now, 1_763_812_800_000);
        let mut ids: Vec<Uuid> = (0..5_000).map(|_| calls.new_call_id(now)).collect();
        calls.handle_clock(now, 1_763_812_000_000);
        ids.push(calls.new_call_id(now));
        assert!(ids.is_sorted_by(|a, b| a < b));
        assert!(ids.iter().all(|id| id.get_version_num() == 7));
    }
}
