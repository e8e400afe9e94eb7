//! Media connections of providers: whose they are, and the calls that begin with them.
//!
//! ```text
//!   MediaUpgrade ─▶ a call here whose connection has dropped? ─▶ it goes on
//!                └▶ room for one more? ─▶ Claim: the store ─▶ fresh: a call begins
//!                        └── no: 503                  └──── nobody's: 404, somebody's: 409, silence: 503
//! ```
//!
//! A claim can be taken once, so it is taken only when there is room: a provider that is told to come again still has it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, Method};
use uuid::Uuid;

use super::{Calls, Surroundings};
use crate::call::action::{Action, Refusal, UpgradeAnswer};
use crate::call::admission::{self, Trace, refused_by};
use crate::call::ending::{Cause, Ending};
use crate::call::machine::{Call, credential_of, is_way_of, late_hang_up};
use crate::media::{Addresses, EngineId, Upgrade};
use crate::provider::Credentials;
use crate::provider::client::{Errand, Outcome};
use crate::provider::file::Credential;
use crate::provider::webhook::{Endpoint, StatusEvent, WebhookRequest};
use crate::store::contexts::{CallContext, Claim};

/// Claims that the store is asked about at once; above that connections are told to come again. A store that answers is done
/// with as many in a fraction of a second.
pub const CLAIMS_MAX: usize = 1_024;
/// After a webhook's answer its media connection must come within this time: providers dial at once.
pub const EXPECTED_WITHIN: Duration = Duration::from_secs(30);
/// Announced calls that are watched for; above that the oldest is watched no more, and its claim ends by itself.
pub const EXPECTED_MAX: usize = 20_000;

/// What the store says of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// It was fresh, and is this call's.
    Fresh(Box<CallContext>),
    /// Its connection had dropped.
    Again(Uuid),
    /// There is none, or somebody has it.
    Nobodys,
    /// The connection is not the provider's: why, in words. The claim is what it was.
    Forged(Box<CallContext>, String),
    /// The store did not answer.
    Unknown(String),
}

/// Calls that were announced here and whose media connections have not come yet.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// The oldest first: each waits equally long.
    order: VecDeque<(Instant, Claim)>,
    waiting: HashMap<Claim, CallContext>,
}

impl Expected {
    fn add(&mut self, claim: Claim, context: CallContext, until: Instant) {
        if self.order.len() >= EXPECTED_MAX
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.waiting.remove(&oldest);
        }
        if self.waiting.insert(claim, context).is_none() {
            self.order.push_back((until, claim));
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.order.front().map(|(until, _)| *until)
    }
}

/// An engine to which a provider is led.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaPlace {
    /// As records name it.
    pub engine: String,
    /// Where it is reached.
    pub addresses: Addresses,
}

/// Whether this connection proves that it is the provider's, as far as the provider proves itself there.
///
/// # Errors
/// It does not; why, for the trace.
pub fn check_upgrade(
    credentials: &Credentials,
    context: &CallContext,
    upgrade: &Upgrade,
    base: &str,
    now_s: i64,
) -> Result<(), String> {
    let Some(provider) = &context.provider else { return Err("the call is not a provider's".to_owned()) };
    let Some(credential) = credentials.get(&provider.credential) else {
        return Err(format!("there is no credential {:?} any more", provider.credential));
    };
    let mut headers = HeaderMap::new();
    for (name, value) in &upgrade.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse()) {
            headers.append(name, value);
        }
    }
    let (path, query) = upgrade.path_and_query.split_once('?').unwrap_or((&upgrade.path_and_query, ""));
    let request = WebhookRequest {
        endpoint: Endpoint::Media,
        method: &Method::GET,
        public_url: &format!("{base}{path}"),
        query,
        headers: &headers,
        body: &[],
        source: upgrade.source.ip(),
        has_api_key: false,
        now_s,
    };
    credential.account.upgrade(&request).map_err(|refusal| refusal.to_string())
}

impl Calls {
    /// Where the media of one more call of this tenant's may go.
    ///
    /// # Errors
    /// There is no room for it, or nobody to carry it.
    pub fn find_media_place(&mut self, tenant_id: &str) -> Result<MediaPlace, Ending> {
        self.check_capacity(&mut Trace::new())?;
        if !self.gate.has_room(tenant_id) {
            return Err(Ending::new(Cause::TenantFull));
        }
        let engines = &self.settings.engines;
        match self.fleet.pick_for_media() {
            Some((engine, addresses)) => Ok(MediaPlace {
                engine: engines.get(engine.0).cloned().unwrap_or_default(),
                addresses: addresses.clone(),
            }),
            None => Err(Ending::with_detail(Cause::NoEngine, "none that providers can dial")),
        }
    }

    /// A provider has been told where to bring the media of this call.
    pub fn expect_media(&mut self, claim: Claim, context: CallContext, now: Instant) {
        self.expected.add(claim, context, now + EXPECTED_WITHIN);
    }

    /// Announced calls whose media have not come in time: whoever takes the claim now knows that nobody else has.
    pub(super) fn miss_expected(&mut self, now: Instant) {
        while let Some((_, claim)) = self.expected.order.front().copied().filter(|(until, _)| *until <= now) {
            self.expected.order.pop_front();
            if self.expected.waiting.contains_key(&claim) {
                self.actions.push_back(Action::Missed(claim));
            }
        }
    }

    /// The store has answered a [`Action::Missed`]. `true`: nobody had come with it, and now nobody can. `None`: it did not answer,
    /// and is asked again, as often as it takes: what is known by then is that the claim has ended.
    pub fn handle_missed(&mut self, claim: Claim, is_ours: Option<bool>, now: Instant) {
        if is_ours.is_none() && self.expected.waiting.contains_key(&claim) {
            return self.expected.order.push_back((now + EXPECTED_WITHIN, claim));
        }
        let is_ours = is_ours.unwrap_or_default();
        let Some(context) = self.expected.waiting.remove(&claim).filter(|_| is_ours) else { return };
        let got = "none: can the provider reach the engine's address?";
        let name = context.provider.as_ref().map(|provider| provider.name.clone()).unwrap_or_default();
        let trace = vec![
            admission::step("credential", "webhook", "provider", "a call", &name, true),
            admission::step("telephony", "connect_monitor", "provider", "a media connection", got, false),
        ];
        let refusal = Refusal {
            call_id: context.call_id,
            tenant_id: Some(context.tenant_id.clone()),
            trunk: None,
            source: crate::call::invite::ANYWHERE,
            from: admission::shown(&context.from),
            to: admission::shown(&context.to),
            step: trace.last().cloned().unwrap_or_default(),
            trace,
            is_recorded: false,
            ending: Ending::with_detail(Cause::MediaNeverCame, got),
        };
        self.actions.push_back(Action::Refused(Box::new(refusal)));
        self.hang_up_announced(&context);
        self.actions.push_back(Action::Forget(context.call_id));
    }

    /// Its provider's leg may be up.
    fn hang_up_announced(&mut self, context: &CallContext) {
        let Some(provider) = &context.provider else { return };
        let credential = self.settings.credentials.get(&provider.credential).cloned();
        if let (Some(credential), Some(call)) = (credential, provider.call_id.clone()) {
            let call_id = context.call_id;
            self.actions.push_back(Action::Errand { call_id, credential, errand: Errand::HangUp { call } });
        }
    }

    /// A provider's callback says something of a call. `false`: the call is not alive here.
    pub fn handle_status(&mut self, call_id: Uuid, event: StatusEvent, now: Instant) -> bool {
        let is_here = self.calls.contains_key(&call_id);
        self.on_call(call_id, now, |call, _, around| call.handle_status(event, around));
        is_here
    }

    /// Whom a call's other side is being put through to, and our number.
    pub fn transfer_to(&self, call_id: Uuid) -> Option<(String, String)> {
        self.calls.get(&call_id)?.transfer_to()
    }

    /// A provider's callback says something of a call's media connection.
    pub fn handle_stream_news(&mut self, call_id: Uuid, failure: Option<&str>, now: Instant) {
        self.on_call(call_id, now, |call, _, _| call.handle_stream_news(failure));
    }

    /// The store has answered an [`Action::Mint`].
    pub fn handle_minted(&mut self, call_id: Uuid, minted: Result<(), String>, now: Instant) {
        if let Some(claim) = self.calls.get(&call_id).and_then(Call::claim) {
            self.by_claim.insert(claim, call_id);
        } else if minted.is_ok() {
            // It ended while it waited.
            self.actions.push_back(Action::Forget(call_id));
        }
        self.on_call(call_id, now, |call, _, around| call.handle_minted(minted, around));
    }

    /// A provider has answered an [`Action::Errand`].
    pub fn handle_errand(
        &mut self,
        call_id: Uuid,
        credential: &Arc<Credential>,
        outcome: Outcome,
        now: Instant,
    ) {
        if self.calls.contains_key(&call_id) {
            return self.on_call(call_id, now, |call, _, around| call.handle_errand(outcome, around));
        }
        // The provider has placed a call that nobody waits for any more.
        if let Some(errand) = late_hang_up(&outcome) {
            self.actions.push_back(Action::Errand { call_id, credential: credential.clone(), errand });
        }
    }

    /// A media connection waits for an answer.
    pub(super) fn handle_upgrade(&mut self, engine: EngineId, upgrade: Box<Upgrade>, now: Instant) {
        if let Some(call_id) = self.by_claim.get(&upgrade.claim).copied()
            && self.calls.get(&call_id).is_some_and(|call| call.may_return(engine, &upgrade))
        {
            return self.give_back(call_id, engine, *upgrade, now);
        }
        // A call that we place has its room already.
        let own = self.by_claim.get(&upgrade.claim).and_then(|call_id| self.calls.get(call_id));
        if own.is_some_and(|call| call.awaits_media(&upgrade.provider)) {
            self.claims_asked += 1;
            let base = self.media_base(engine);
            return self.actions.push_back(Action::Claim { engine, upgrade, base });
        }
        let mut trace = Trace::new();
        let mut room = self.check_capacity(&mut trace);
        if room.is_ok() && !self.fleet.takes_calls(engine) {
            trace.push(refused_by("engine", "media engine", "one that takes calls", "it drains"));
            room = Err(Ending::with_detail(Cause::EngineFull, "the media engine drains"));
        }
        // Those that are being asked for will be calls in a moment.
        let soon = self.under_way() + self.claims_asked;
        if room.is_ok() && (self.claims_asked >= CLAIMS_MAX || soon >= self.settings.limits.calls_max) {
            let expected = format!("fewer than {}", CLAIMS_MAX.min(self.settings.limits.calls_max));
            let got = soon.max(self.claims_asked).to_string();
            trace.push(refused_by("store", "claims that wait for the store", &expected, &got));
            room = Err(Ending::new(Cause::StoreBehind));
        }
        if let Err(ending) = room {
            let answer = UpgradeAnswer::refuse(&ending, true);
            return self.refuse_upgrade(engine, *upgrade, answer, None, trace, ending, now);
        }
        if upgrade.claim.0.is_nil() {
            return self.handle_unclaimed(engine, *upgrade, Claimed::Nobodys, now);
        }
        self.claims_asked += 1;
        let base = self.media_base(engine);
        self.actions.push_back(Action::Claim { engine, upgrade, base });
    }

    fn media_base(&self, engine: EngineId) -> String {
        let addresses = self.fleet.addresses(engine).cloned().unwrap_or_default();
        format!("{}://{}", if addresses.is_ws_secure { "wss" } else { "ws" }, addresses.ws)
    }

    /// The store has answered a [`Action::Claim`].
    pub fn handle_claimed(&mut self, engine: EngineId, upgrade: Upgrade, claimed: Claimed, now: Instant) {
        self.claims_asked = self.claims_asked.saturating_sub(1);
        // What was told meanwhile: its connection has dropped, or the call has only just begun.
        let own = self.by_claim.get(&upgrade.claim).copied();
        match (claimed, own) {
            (Claimed::Fresh(context), _) => self.begin_media(engine, upgrade, *context, now),
            (Claimed::Again(_) | Claimed::Nobodys, Some(call_id))
                if self.calls.get(&call_id).is_some_and(|call| call.may_return(engine, &upgrade)) =>
            {
                self.give_back(call_id, engine, upgrade, now);
            }
            (claimed, _) => self.handle_unclaimed(engine, upgrade, claimed, now),
        }
    }

    fn handle_unclaimed(&mut self, engine: EngineId, upgrade: Upgrade, claimed: Claimed, now: Instant) {
        let claim = upgrade.claim;
        let (ending, got) = match claimed {
            Claimed::Again(_) => {
                // Of another control plane or engine: there it may come back yet.
                self.actions.push_back(Action::Dropped(claim));
                (Ending::new(Cause::ClaimTaken), "one of a call elsewhere".to_owned())
            }
            Claimed::Fresh(_) | Claimed::Nobodys => {
                (Ending::new(Cause::UnknownClaim), "none, or one that is taken".to_owned())
            }
            Claimed::Forged(context, why) => {
                let ending = Ending::new(Cause::ForgedUpgrade);
                let trace = vec![admission::step(
                    "credential",
                    "upgrade",
                    "signature",
                    "the provider's",
                    &why,
                    false,
                )];
                let answer = UpgradeAnswer::refuse(&ending, false);
                return self.refuse_upgrade(engine, upgrade, answer, Some(&context), trace, ending, now);
            }
            Claimed::Unknown(why) => (Ending::with_detail(Cause::StoreFailed, why), "no answer".to_owned()),
        };
        // What became of the claim in a store that did not answer is not known: it may be there for another try.
        let may_return = ending.cause == Cause::StoreFailed;
        let trace = vec![admission::step("credential", "claim", "context id", EXPECTED, &got, false)];
        let answer = UpgradeAnswer::refuse(&ending, may_return);
        self.refuse_upgrade(engine, upgrade, answer, None, trace, ending, now);
    }

    fn give_back(&mut self, call_id: Uuid, engine: EngineId, upgrade: Upgrade, now: Instant) {
        let base = self.media_base(engine);
        let now_s = self.wall.at(now) / 1_000;
        let context = self.calls.get(&call_id).and_then(Call::stream_context).cloned();
        if let Some(context) = context
            && let Err(why) = check_upgrade(&self.settings.credentials, &context, &upgrade, &base, now_s)
        {
            let forged = Claimed::Forged(Box::new(context), why);
            return self.handle_unclaimed(engine, upgrade, forged, now);
        }
        self.on_call(call_id, now, |call, _, around| call.handle_returned(upgrade, around));
    }

    /// A connection that never becomes a call of ours is refused: no record, one log line.
    #[expect(clippy::too_many_arguments)] // what a line says
    fn refuse_upgrade(
        &mut self,
        engine: EngineId,
        upgrade: Upgrade,
        answer: UpgradeAnswer,
        whose: Option<&CallContext>,
        trace: Trace,
        ending: Ending,
        now: Instant,
    ) {
        let refusal = Refusal {
            call_id: whose.map_or_else(|| self.new_call_id(now), |context| context.call_id),
            tenant_id: whose.map(|context| context.tenant_id.clone()),
            trunk: None,
            source: upgrade.source,
            from: whose.map(|context| admission::shown(&context.from)).unwrap_or_default(),
            to: whose.map(|context| admission::shown(&context.to)).unwrap_or_default(),
            step: trace.last().cloned().unwrap_or_default(),
            trace,
            is_recorded: false,
            ending,
        };
        self.actions.push_back(Action::AnswerUpgrade { engine, upgrade_id: upgrade.upgrade_id, answer });
        self.actions.push_back(Action::Refused(Box::new(refusal)));
    }

    fn begin_media(&mut self, engine: EngineId, upgrade: Upgrade, context: CallContext, now: Instant) {
        let call_id = context.call_id;
        self.expected.waiting.remove(&upgrade.claim);
        self.fleet.handle_opened(engine);
        if self.calls.get(&call_id).is_some_and(|call| call.awaits_media(&upgrade.provider)) {
            return self.on_call(call_id, now, |call, _, around| call.handle_media(engine, &upgrade, around));
        }
        let mut trace = Trace::new();
        let is_alive = self.calls.contains_key(&call_id);
        if let Err(ending) = self.check_media(&upgrade, &context, is_alive, &mut trace) {
            // The claim is used up: nobody can come for this call any more, unless somebody has.
            if !is_alive {
                self.actions.push_back(Action::Forget(call_id));
            }
            let answer = UpgradeAnswer::refuse(&ending, false);
            return self.refuse_upgrade(engine, upgrade, answer, Some(&context), trace, ending, now);
        }
        let credential = credential_of(&context);
        self.gate.begin(call_id, None);
        let Self { actions, strays, settings, rng, gate, tokens, .. } = self;
        let wall = self.wall;
        let around = Surroundings { actions, strays, settings, now, setup: None, gate, wall, rng, tokens };
        self.by_claim.insert(upgrade.claim, call_id);
        let call = Call::of_media(context, engine, upgrade, &around);
        around.actions.push_back(Action::Lookup { call_id, credential });
        self.calls.insert(call_id, call);
        self.on_call(call_id, now, |_, _, _| {});
    }

    fn check_media(
        &self,
        upgrade: &Upgrade,
        context: &CallContext,
        is_alive: bool,
        trace: &mut Trace,
    ) -> Result<(), Ending> {
        let named = context.provider.as_ref().map(|provider| &*provider.name).unwrap_or_default();
        let came = &*upgrade.provider;
        if !is_way_of(named, came) {
            trace.push(admission::step(
                "credential",
                "claim",
                "provider",
                named,
                &admission::shown(came),
                false,
            ));
            return Err(Ending::with_detail(Cause::UnknownClaim, "the call is another provider's"));
        }
        if is_alive {
            trace.push(admission::step(
                "credential",
                "claim",
                "context id",
                EXPECTED,
                "one that lives",
                false,
            ));
            return Err(Ending::new(Cause::ClaimTaken));
        }
        // There was room when the store was asked.
        self.check_capacity(trace)
    }
}

/// Of a connection.
const EXPECTED: &str = "the claim of a call that waits for it";
