//! A call that a provider places for us: its claim, the request, what the provider tells of it, and its end.
//!
//! ```text
//!   Queued ─turn─▶ Mint: record and claim ─▶ Errand::Dial ─▶ accepted ─▶ Dialing ─▶ Ringing ─▶ MediaUpgrade ─▶ stream.rs
//!                                              ├─ refused, nothing dialled ─▶ again, DIAL_TRIES in all, or the end
//!                                              └─ unknown ─▶ as accepted: callbacks and media will tell
//!   neither ringing nor media in time ─▶ the end, and HangUp: no leg is left alive at the provider
//! ```
//!
//! No call is placed twice: only what certainly was not dialled is sent again. A call that has ended before the provider has
//! answered is hung up as soon as it has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::stream::StreamSide;
use super::{Call, Surroundings};
use crate::call::action::Action;
use crate::call::admission::{self, refused_by};
use crate::call::ending::{Cause, Ending};
use crate::call::order::Order;
use crate::call::outcome::CarrierWord;
use crate::call::state::{Life, State};
use crate::media::Fleet;
use crate::provider::client::{DialErrand, Errand, Outcome, Plan};
use crate::provider::rest::{DialOutcome, FailureClass, Refused};
use crate::provider::status::{AnsweredBy, CallStatus, advance};
use crate::provider::webhook::StatusEvent;
use crate::provider::{ControlOutcome, Deployment};
use crate::store::contexts::{CallContext, Mint, ProviderSide};

/// How often a call is asked for in all, when each time nothing was dialled.
pub const DIAL_TRIES: u32 = 3;
/// Between two tries, if the provider does not say when; twice as long each time.
const DIAL_AGAIN: Duration = Duration::from_secs(1);
/// The longest that a provider's Retry-After is waited for.
const DIAL_AGAIN_MAX: Duration = Duration::from_secs(20);
/// From its turn to the provider's acceptance, all tries together.
const DIAL_SETUP_MAX: Duration = Duration::from_secs(60);
/// What a provider takes beyond the ringing itself: it dials, and its clock is not ours.
const RING_SLACK: Duration = Duration::from_secs(15);
/// After the provider has said that somebody picked up, the media connection must come within this time.
pub const MEDIA_WITHIN: Duration = Duration::from_secs(20);

/// What only a call that we place through a provider has.
#[derive(Debug)]
pub(super) struct Dialling {
    order: Order,
    deployment: Arc<Deployment>,
    mint: Mint,
    media_url: String,
    tries: u32,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// In the queue.
    Waiting,
    /// The store is to keep record and claim.
    Minting,
    /// The provider has been asked.
    Asked,
    /// Nothing was dialled: it is asked again.
    Again(Instant),
    /// The provider dials, or may.
    Placed,
}

impl Dialling {
    pub(super) fn order(&self) -> &Order {
        &self.order
    }

    pub(super) fn again_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Again(at) => Some(at),
            _ => None,
        }
    }
}

impl Call {
    /// A call through a provider that waits for its turn.
    pub fn place_with_provider(
        id: Uuid,
        order: Order,
        deployment: Arc<Deployment>,
        around: &mut Surroundings<'_>,
    ) -> Self {
        let mint = Mint::fresh(order.ring_max + RING_SLACK);
        let credential = &deployment.credential;
        let context = CallContext {
            call_id: id,
            tenant_id: order.tenant_id.clone(),
            assistant_id: order.assistant_id.clone(),
            direction: "outbound",
            from: order.from.to_string(),
            to: order.to.shown().to_owned(),
            engine: String::new(),
            provider: Some(ProviderSide {
                name: deployment.provider().to_owned(),
                credential: credential.name.to_string(),
                call_id: None,
                event_id: Uuid::new_v4(),
            }),
            arguments: order.args.clone(),
        };
        let found = format!("{} ({})", credential.name, deployment.provider());
        let trace = vec![admission::step(
            "trunk",
            "outbound",
            "credential",
            "one that is deployed to the assistant",
            &found,
            true,
        )];
        let mut stream = StreamSide::new(context, mint.claim);
        let life = Life::queued(&around.settings.limits, order.duration_max, around.now);
        let call = Self {
            sip_is_over: true,
            from: order.from.to_string(),
            to: order.to.shown().to_owned(),
            assistant_id: order.assistant_id.clone(),
            tenant_id: Some(order.tenant_id.clone()),
            agent: Some(order.agent.clone()),
            custom: order.args.clone(),
            trace,
            ..Self::blank(id, life, around)
        };
        stream.dialling = Some(Box::new(Dialling {
            order,
            deployment,
            mint,
            media_url: String::new(),
            tries: 0,
            phase: Phase::Waiting,
        }));
        Self { stream: Some(Box::new(stream)), ..call }
    }

    /// What was ordered, of a call that a provider places.
    pub(super) fn provider_order(&self) -> Option<&Order> {
        Some(self.stream.as_ref()?.dialling.as_ref()?.order())
    }

    /// Its turn has come: an engine for its media, then record and claim.
    pub(super) fn dial_provider(&mut self, fleet: &mut Fleet, around: &mut Surroundings<'_>) {
        self.life.begin(DIAL_SETUP_MAX, around.now);
        let place = fleet.pick_for_media();
        let Some(stream) = self.stream.as_mut() else { return };
        let Some(dialling) = stream.dialling.as_mut() else { return };
        let Some((engine, addresses)) = place else { return self.end_without_engine(around) };
        dialling.media_url = addresses.media_url(dialling.deployment.provider(), dialling.mint.claim);
        dialling.phase = Phase::Minting;
        stream.context.engine = around.settings.engines.get(engine.0).cloned().unwrap_or_default();
        let context = Box::new(stream.context.clone());
        around.actions.push_back(Action::Mint { context, mint: dialling.mint });
    }

    /// The store has kept record and claim, or not.
    pub fn handle_minted(&mut self, minted: Result<(), String>, around: &mut Surroundings<'_>) {
        if self.life.is_ending() {
            return;
        }
        match minted {
            Ok(()) => self.ask_provider(around),
            Err(why) => {
                self.trace.push(refused_by("store", "context", "an answer", "none"));
                self.end(Ending::with_detail(Cause::StoreFailed, why), around);
            }
        }
    }

    fn ask_provider(&mut self, around: &mut Surroundings<'_>) {
        let (call_id, limit) = (self.id, around.settings.limits.call_duration_max);
        let Some(stream) = self.stream.as_mut() else { return };
        let Some(dialling) = stream.dialling.as_mut() else { return };
        dialling.phase = Phase::Asked;
        dialling.tries += 1;
        stream.is_asking = true;
        let Dialling { order, deployment, mint, media_url, .. } = &**dialling;
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let event_id = stream.context.provider.as_ref().map(|provider| provider.event_id).unwrap_or_default();
        let errand = Errand::Dial(Box::new(DialErrand {
            to: order.to.shown().to_owned(),
            from: order.from.to_string(),
            plan: Plan {
                media_url: media_url.clone(),
                context_id: mint.claim.0,
                callback_url: around.settings.event_url(deployment.provider(), event_id),
                number: order.from.to_string(),
                sample_rate: deployment.sample_rate,
                parameters: order.args.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            },
            ring_s: seconds(order.ring_max),
            limit_s: seconds(order.duration_max.map_or(limit, |wanted| wanted.min(limit))),
            machine: deployment.machine,
            options: deployment.options.clone(),
        }));
        let credential = deployment.credential.clone();
        around.actions.push_back(Action::Errand { call_id, credential, errand });
    }

    /// The time for another try may have come.
    pub(super) fn dial_again(&mut self, around: &mut Surroundings<'_>) {
        let again = self.stream.as_ref().and_then(|stream| stream.dialling.as_ref()?.again_at());
        if again.is_some_and(|at| at <= around.now) && !self.life.is_ending() {
            self.ask_provider(around);
        }
    }

    /// The provider has answered.
    pub fn handle_errand(&mut self, outcome: Outcome, around: &mut Surroundings<'_>) {
        let Some(stream) = self.stream.as_mut() else { return };
        stream.is_asking = false;
        if let Some(refused) = transfer_words(&outcome)
            && !self.life.is_ending()
            && self.handle_transfer_asked(refused.as_deref())
        {
            if let Some(why) = refused {
                self.note_stream("transfer", "done", &why, false);
            }
            return;
        }
        match outcome {
            Outcome::Dialled(outcome) => self.handle_dialled(outcome, around),
            Outcome::Controlled(ControlOutcome::Done | ControlOutcome::Gone) => {}
            Outcome::Controlled(ControlOutcome::Refused(refused)) => {
                self.note_stream("hang_up", "done", &refused_words(&refused), false);
            }
            Outcome::Controlled(ControlOutcome::Unknown) => {
                self.note_stream("hang_up", "done", "no answer: the call may be up at the provider", false);
            }
            Outcome::Unsupported(why) if !self.life.is_ending() => {
                self.note_stream("dial", "a call", &why, false);
                self.end(Ending::with_detail(Cause::ProviderRefused, why), around);
            }
            // An Asterisk without ARI, or Exotel, is hung up by its connection's end; one that only rings is not.
            Outcome::Unsupported(why) => self.note_stream("hang_up", "done", &why, false),
        }
    }

    fn handle_dialled(&mut self, outcome: DialOutcome, around: &mut Surroundings<'_>) {
        let Some(stream) = self.stream.as_mut() else { return };
        let Some(dialling) = stream.dialling.as_mut() else { return };
        dialling.phase = Phase::Placed;
        let claim = dialling.mint.claim.0;
        let named = match outcome {
            DialOutcome::Accepted { provider_call_id } => Some(provider_call_id),
            // The request's id is the claim.
            DialOutcome::AlreadyPlaced => Some(claim.to_string()),
            DialOutcome::Unknown { detail } => {
                self.note_stream("dial", "an answer", &detail, false);
                None
            }
            DialOutcome::Refused(refused) => return self.handle_refused(&refused, around),
        };
        let Some(stream) = self.stream.as_mut() else { return };
        if let (Some(named), Some(provider)) = (named, stream.context.provider.as_mut()) {
            if provider.call_id.is_none() {
                provider.call_id = Some(named);
                stream.is_request_named = stream
                    .dialling
                    .as_ref()
                    .is_some_and(|own| own.deployment.credential.account.names_requests());
            }
            if !self.life.is_ending() {
                around.actions.push_back(Action::Remember(Box::new(stream.context.clone())));
            }
        }
        if self.life.is_ending() {
            return self.hang_up_there(around);
        }
        // A fast provider has told of it, or even brought its media, before it has answered.
        if self.life.state() == State::Initializing {
            let ring_max = self.provider_order().map(|order| order.ring_max).unwrap_or_default();
            self.life.dial(ring_max + RING_SLACK, around.now);
        }
    }

    /// Nothing was dialled.
    fn handle_refused(&mut self, refused: &Refused, around: &mut Surroundings<'_>) {
        self.note_stream("dial", "a call", &refused_words(refused), false);
        let Some(stream) = self.stream.as_mut() else { return };
        stream.is_over_there = true;
        if self.life.is_ending() {
            return;
        }
        let Some(dialling) = stream.dialling.as_mut() else { return };
        if refused.is_retryable() && dialling.tries < DIAL_TRIES {
            let own = DIAL_AGAIN * 2u32.pow(dialling.tries.saturating_sub(1));
            let wanted = refused.retry_after_s.map(|seconds| Duration::from_secs(seconds.into()));
            dialling.phase =
                Phase::Again(around.now + wanted.map_or(own, |wanted| wanted.min(DIAL_AGAIN_MAX)));
            stream.is_over_there = false;
            return;
        }
        let cause = match refused.class {
            FailureClass::InvalidNumber => Cause::Unreachable,
            FailureClass::RateLimited | FailureClass::Provider | FailureClass::Unreachable => {
                Cause::ProviderUnavailable
            }
            _ => Cause::ProviderRefused,
        };
        self.end(Ending::with_detail(cause, refused_words(refused)), around);
    }

    /// News of the call from the provider. What is old or repeated changes nothing.
    pub fn handle_status(&mut self, event: StatusEvent, around: &mut Surroundings<'_>) {
        let Some(stream) = self.stream.as_mut() else { return };
        let Some(provider) = stream.context.provider.as_mut() else { return };
        match &provider.call_id {
            // Of another leg: the media's own at Vonage, whom the caller was put through to.
            Some(own) if *own != event.provider_call_id => {
                let is_request = event.request_id.as_deref() == Some(own);
                if !is_request || event.provider_call_id.is_empty() {
                    return;
                }
                // The name in the provider's answer was the request's.
                stream.is_request_named = false;
                provider.call_id = Some(event.provider_call_id.clone());
                around.actions.push_back(Action::Remember(Box::new(stream.context.clone())));
            }
            None if !event.provider_call_id.is_empty() => {
                provider.call_id = Some(event.provider_call_id.clone());
                around.actions.push_back(Action::Remember(Box::new(stream.context.clone())));
            }
            _ => {}
        }
        if let Some(answered_by) = event.answered_by.filter(|_| stream.answered_by != event.answered_by) {
            stream.answered_by = Some(answered_by);
            let is_person = matches!(answered_by, AnsweredBy::Human | AnsweredBy::Unknown);
            self.note_stream("answered_by", "a person", answered_by_word(answered_by), is_person);
        }
        if self.life.is_ending() && !event.status.is_some_and(CallStatus::is_terminal) {
            // Its name was not known when it ended here.
            self.hang_up_there(around);
        }
        let Some(stream) = self.stream.as_mut() else { return };
        let Some(status) = event.status.and_then(|status| advance(stream.status, status)) else { return };
        stream.status = status;
        self.note_stream("status", "news of the call", status.word(), true);
        if status.is_terminal() {
            return self.handle_over_there(status, &event, around);
        }
        if self.life.is_ending() || self.stream.as_ref().is_some_and(|stream| stream.has_line()) {
            return;
        }
        match status {
            CallStatus::Ringing => self.life.ring(),
            CallStatus::Answered => {
                self.life.ring();
                self.life.expect(around.now + MEDIA_WITHIN);
            }
            _ => {}
        }
    }

    /// The provider says that the call is over.
    fn handle_over_there(&mut self, status: CallStatus, event: &StatusEvent, around: &mut Surroundings<'_>) {
        let Some(stream) = self.stream.as_mut() else { return };
        stream.is_over_there = true;
        let is_ours = stream.dialling.is_some();
        if self.life.is_ending() {
            return;
        }
        let was_connected = !self.life.is_before_answer();
        let cause = match status {
            CallStatus::Busy => Cause::Busy,
            CallStatus::NoAnswer => Cause::NoAnswer,
            CallStatus::Rejected => Cause::Rejected,
            _ if was_connected && is_ours => Cause::CalleeHangup,
            _ if was_connected => Cause::CallerHangup,
            CallStatus::Completed if is_ours => Cause::CalleeHangup,
            CallStatus::Completed => Cause::CallerCancelled,
            CallStatus::Canceled if !is_ours => Cause::CallerCancelled,
            _ => Cause::Failed,
        };
        let mut ending = match &event.cause {
            Some(words) => Ending::with_detail(cause, admission::shown(words)),
            None => Ending::new(cause),
        };
        ending.carrier = CarrierWord::of_provider(event).map(Box::new);
        self.end(ending, around);
    }

    /// It has rung for too long, or was not even dialled in time, or its media never came.
    pub(super) fn handle_provider_timeout(&mut self, around: &mut Surroundings<'_>) {
        let Some(stream) = self.stream.as_ref() else { return };
        let (cause, expected, got) =
            match (stream.dialling.as_ref().map(|dialling| dialling.phase), stream.status) {
                (Some(Phase::Minting), _) => (Cause::StoreFailed, "a record", "no answer of the store"),
                (Some(Phase::Placed), CallStatus::Answered) => (
                    Cause::MediaNeverCame,
                    "a media connection",
                    "none: can the provider reach the engine's address?",
                ),
                (Some(Phase::Placed), CallStatus::Ringing) => {
                    (Cause::NoAnswer, "an answer", "ringing, for too long")
                }
                (Some(Phase::Placed), _) => {
                    (Cause::NoAnswer, "ringing", "the provider never said that it rings")
                }
                _ => (Cause::ProviderUnavailable, "a call", "not placed in time"),
            };
        self.note_stream("connect_monitor", expected, got, false);
        self.end(Ending::with_detail(cause, got), around);
    }

    /// Whether the end of such a call waits for its provider's side.
    pub(super) fn is_dialling(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.dialling.is_some() && !stream.has_line())
    }

    /// No leg is left alive at the provider: it is asked to hang up, unless it has said that the call is over.
    pub(super) fn hang_up_there(&mut self, around: &mut Surroundings<'_>) {
        let call_id = self.id;
        let Some(stream) = self.stream.as_mut().filter(|stream| !stream.is_over_there) else { return };
        let Some(provider) = &stream.context.provider else { return };
        let Some(credential) = around.settings.credentials.get(&provider.credential).cloned() else { return };
        let Some(call) = provider.call_id.clone().filter(|call| !call.is_empty()) else {
            let may_ring = stream.dialling.as_ref().is_some_and(|dialling| dialling.phase == Phase::Placed);
            if may_ring {
                self.note_stream("hang_up", "the provider's name of the call", "unknown", false);
            }
            return;
        };
        stream.is_over_there = true;
        stream.is_asking = true;
        around.actions.push_back(Action::Errand { call_id, credential, errand: Errand::HangUp { call } });
    }

    /// Numbers that the provider may put the other side through to: none, unless the deployment names their prefixes.
    pub(super) fn check_provider_target(&self, to: &str, around: &Surroundings<'_>) -> Result<(), String> {
        let is_number = to.strip_prefix('+').unwrap_or(to).bytes().all(|octet| octet.is_ascii_digit());
        if !is_number || !(2..=20).contains(&to.len()) {
            return Err("the target must be a number such as +4930123456".to_owned());
        }
        let Some(deployment) = self.deployment(around) else {
            return Err("no [[deployment]] of the call's credential says whom callers may be put through to"
                .to_owned());
        };
        if !deployment.transfer_targets.iter().any(|prefix| to.starts_with(prefix.as_str())) {
            return Err("the number is not among transfer_targets of the call's [[deployment]]".to_owned());
        }
        Ok(())
    }

    /// By which it came or goes.
    fn deployment<'a>(&'a self, around: &'a Surroundings<'_>) -> Option<&'a Deployment> {
        let stream = self.stream.as_ref()?;
        if let Some(dialling) = &stream.dialling {
            return Some(&dialling.deployment);
        }
        let side = stream.context.provider.as_ref()?;
        let credentials = &around.settings.credentials;
        let number = if stream.context.direction == "outbound" { &self.from } else { &self.to };
        let tenant_id = &stream.context.tenant_id;
        credentials
            .deployment_of(&side.credential, tenant_id, &self.assistant_id, number)
            .map(|found| &**found)
    }

    /// Asks the provider to put the other side through.
    pub(super) fn ask_transfer(&mut self, to: String, around: &mut Surroundings<'_>) -> Result<(), String> {
        let unknown = || "the provider has not said yet what it calls the call".to_owned();
        let stream = self.stream.as_ref().ok_or_else(unknown)?;
        let side = stream.context.provider.as_ref().ok_or_else(unknown)?;
        let call = side.call_id.clone().ok_or_else(unknown)?;
        let credential = around.settings.credentials.get(&side.credential).cloned().ok_or_else(unknown)?;
        // Who calls the target is our number: theirs is not ours to show.
        let from = match stream.context.direction {
            "outbound" => self.from.clone(),
            _ => self.to.clone(),
        };
        let callback_url = around.settings.event_url(&side.name, side.event_id);
        if let Some(stream) = self.stream.as_mut() {
            stream.transfer_to = Some((to.clone(), from.clone()));
        }
        let errand = Errand::Transfer { call, to, from, callback_url };
        around.actions.push_back(Action::Errand { call_id: self.id, credential, errand });
        Ok(())
    }

    /// Whether something is under way at the provider that the end of the call waits for.
    pub(super) fn is_asking(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_asking)
    }

    /// The provider does not answer: the call ends without.
    pub(super) fn stop_asking(&mut self) {
        if let Some(stream) = self.stream.as_mut() {
            stream.is_asking = false;
        }
    }
}

/// Why a transfer was not done; `Some(None)`: it was. `None`: it is about something else.
fn transfer_words(outcome: &Outcome) -> Option<Option<String>> {
    match outcome {
        Outcome::Controlled(ControlOutcome::Done) => Some(None),
        Outcome::Controlled(ControlOutcome::Gone) => {
            Some(Some("the call is over at the provider".to_owned()))
        }
        Outcome::Controlled(ControlOutcome::Refused(refused)) => Some(Some(refused_words(refused))),
        Outcome::Controlled(ControlOutcome::Unknown) => {
            Some(Some("the provider did not say whether it was done".to_owned()))
        }
        Outcome::Unsupported(why) => Some(Some(why.clone())),
        Outcome::Dialled(_) => None,
    }
}

/// What hangs up a call that was accepted after it had ended here.
pub fn late_hang_up(outcome: &Outcome) -> Option<Errand> {
    match outcome {
        Outcome::Dialled(DialOutcome::Accepted { provider_call_id }) => {
            Some(Errand::HangUp { call: provider_call_id.clone() })
        }
        _ => None,
    }
}

/// As records and traces have it.
pub(super) const fn answered_by_word(answered_by: AnsweredBy) -> &'static str {
    match answered_by {
        AnsweredBy::Human => "human",
        AnsweredBy::Machine => "machine",
        AnsweredBy::MachineBeep => "machine_beep",
        AnsweredBy::MachineEnd => "machine_end",
        AnsweredBy::Fax => "fax",
        AnsweredBy::Unknown => "unknown",
    }
}

/// What the provider said, for a trace.
fn refused_words(refused: &Refused) -> String {
    let Refused { class, http_status, code, detail, .. } = refused;
    let mut words = class.word().to_owned();
    if *http_status != 0 {
        words += &format!(", HTTP {http_status}");
    }
    if !code.is_empty() {
        words += &format!(", code {code}");
    }
    if !detail.is_empty() {
        words += &format!(": {detail}");
    }
    words
}
