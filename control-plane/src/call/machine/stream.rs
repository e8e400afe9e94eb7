//! A call whose other side is a provider's media connection: there is no dialog and no description, and what ends it comes
//! from the engine or from the provider's callbacks.
//!
//! ```text
//!   webhook ─▶ context + claim …  MediaUpgrade ─▶ Claim ─▶ context ─▶ Lookup ─▶ Open on the engine that asked
//!           ─▶ agent ready ─▶ Start: Connected ─▶ StreamDropped "stop" ─▶ Close
//!                                     └── "drop": 15 s for another MediaUpgrade with the same claim
//! ```
//!
//! The provider has answered its caller before the connection comes, so the call is Connected as soon as the agent is heard. A
//! call that cannot be had is refused before the connection is answered ([`Action::AnswerUpgrade`]).

use tandem_api::engine::v1 as engine;
use tandem_api::v1::DecisionStep;
use tandem_sip::{Flow, Headers};

use super::{Call, Keys, Surroundings};
use crate::call::action::{Action, UpgradeAnswer};
use crate::call::admission::{self, Trace, refused_by};
use crate::call::ending::{Cause, Ending};
use crate::call::invite;
use crate::call::negotiation::Negotiation;
use crate::call::session::Session;
use crate::call::state::Life;
use crate::media::{EngineId, Upgrade};
use crate::store::contexts::CallContext;

/// What only such a call has.
#[derive(Debug)]
pub(super) struct StreamSide {
    context: CallContext,
    /// The connection that it came by, until a session is opened on it or it is refused.
    upgrade: Upgrade,
    engine: EngineId,
    is_answered: bool,
    /// The connection has dropped in mid-call.
    is_dropped: bool,
    /// The codec that the provider has named.
    codec: String,
}

impl Call {
    /// A call whose claim was presented by a media connection at this engine.
    pub fn of_media(
        context: CallContext,
        engine: EngineId,
        upgrade: Upgrade,
        around: &Surroundings<'_>,
    ) -> Self {
        let provider = context.provider.as_ref().map(|provider| provider.name.clone()).unwrap_or_default();
        let trace: Trace =
            vec![step("credential", "claim", "context id", "a claim of a call", &provider, true)];
        Self {
            id: context.call_id,
            sip: None,
            outbound: None,
            sip_is_over: true,
            change: None,
            own_change: None,
            is_holding: false,
            transfer: None,
            keys: Keys::default(),
            agent_headers: Headers::new(),
            replaces: None,
            successor: None,
            former: None,
            joining: None,
            guest: None,
            departed: None,
            legs_not_removed: 0,
            agent_left: false,
            trunk: None,
            peer_host: String::new(),
            contact: None,
            dialog: None,
            flow: Flow::udp(invite::ANYWHERE, upgrade.source),
            from: context.from.clone(),
            to: context.to.clone(),
            assistant_id: context.assistant_id.clone(),
            tenant_id: None,
            agent: None,
            custom: context.arguments.clone(),
            may_ring: false,
            offer: None,
            trace,
            life: Life::new(&around.settings.limits, around.now),
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
            stream: Some(Box::new(StreamSide {
                context,
                upgrade,
                engine,
                is_answered: false,
                is_dropped: false,
                codec: String::new(),
            })),
        }
    }

    /// The context that a provider's call was made from.
    pub(super) fn stream_context(&self) -> Option<&CallContext> {
        self.stream.as_ref().map(|stream| &stream.context)
    }

    /// The engine that its connection came to.
    pub(super) fn stream_engine(&self) -> Option<EngineId> {
        self.stream.as_ref().map(|stream| stream.engine)
    }

    pub(super) fn stream_codec(&self) -> Option<String> {
        self.stream.as_ref().map(|stream| stream.codec.clone())
    }

    pub(super) fn stream_leg(&self) -> Option<engine::StreamLeg> {
        let stream = self.stream.as_ref()?;
        Some(engine::StreamLeg {
            upgrade_id: stream.upgrade.upgrade_id.clone(),
            sample_rate: 0,
            provider_call_id: stream
                .context
                .provider
                .as_ref()
                .and_then(|provider| provider.call_id.clone())
                .unwrap_or_default(),
        })
    }

    /// The engine has opened a session on its connection.
    pub(super) fn handle_stream_opened(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.is_answered = true;
        }
        self.life.ring();
        if self.agent_ready {
            self.session.start();
        }
    }

    /// The engine has started: the provider had answered long before.
    pub(super) fn handle_stream_started(&mut self, around: &mut Surroundings<'_>) {
        if self.life.is_ending() || !self.life.is_before_answer() {
            return;
        }
        self.answered_ms = around.epoch_ms();
        self.life.answer(around.now);
        self.life.acknowledge();
        around.setup = Some(around.now.duration_since(self.born));
    }

    /// Its connection has said which call it is.
    pub(super) fn handle_stream_named(
        &mut self,
        provider_call_id: &str,
        codec: String,
        around: &mut Surroundings<'_>,
    ) {
        let Some(stream) = &mut self.stream else { return };
        stream.codec = codec;
        stream.is_dropped = false;
        let Some(provider) = &mut stream.context.provider else { return };
        if provider.call_id.is_none() && !provider_call_id.is_empty() {
            provider.call_id = Some(provider_call_id.to_owned());
            around.actions.push_back(Action::Remember(Box::new(stream.context.clone())));
        }
    }

    /// Its connection is gone: because the provider said so, or for a while.
    pub(super) fn handle_stream_dropped(
        &mut self,
        is_stop: bool,
        reason: &str,
        around: &mut Surroundings<'_>,
    ) {
        let Some(stream) = &mut self.stream else { return };
        if !is_stop {
            stream.is_dropped = true;
            around.actions.push_back(Action::Dropped(stream.upgrade.claim));
            self.trace.push(step("media", "connection", "media connection", "one that stays", reason, false));
            return;
        }
        let cause = match stream.context.direction {
            "outbound" => Cause::CalleeHangup,
            _ => Cause::CallerHangup,
        };
        self.end(Ending::with_detail(cause, reason), around);
    }

    /// The same provider's call has come back with another connection, on the same engine.
    pub fn handle_returned(&mut self, engine: EngineId, upgrade: Upgrade, around: &mut Surroundings<'_>) {
        let own = self.stream.as_mut().filter(|stream| stream.is_dropped && stream.engine == engine);
        let answer = match own {
            Some(stream) if !self.life.is_ending() => {
                stream.is_dropped = false;
                UpgradeAnswer::Retake(self.id)
            }
            _ => UpgradeAnswer::refuse(409, "this call has a connection"),
        };
        around.actions.push_back(Action::AnswerUpgrade { engine, upgrade_id: upgrade.upgrade_id, answer });
    }

    /// The call ends before a session was opened on its connection: that is refused.
    pub(super) fn refuse_upgrade(&mut self, ending: &Ending, around: &mut Surroundings<'_>) {
        let Some(stream) = self.stream.as_mut().filter(|stream| !stream.is_answered) else { return };
        stream.is_answered = true;
        // A session may be opening on it; then the engine knows it no more, and says so.
        let answer = UpgradeAnswer::of(ending);
        let (engine, upgrade_id) = (stream.engine, stream.upgrade.upgrade_id.clone());
        around.actions.push_back(Action::AnswerUpgrade { engine, upgrade_id, answer });
    }

    /// No engine can take it but the one that has the connection.
    pub(super) fn open_stream(&mut self, around: &mut Surroundings<'_>) {
        let Some(engine) = self.stream_engine() else { return };
        if self.session.tried().contains(&engine) {
            self.trace.push(refused_by(
                "engine",
                "media engine",
                "the one that has the connection",
                "refused",
            ));
            return self.end_without_engine(around);
        }
        let request = self.open_request(around);
        self.session.open(engine, Box::new(request));
    }
}

fn step(step: &str, rule: &str, field: &str, expected: &str, got: &str, passed: bool) -> DecisionStep {
    DecisionStep {
        step: step.to_owned(),
        rule: rule.to_owned(),
        field: field.to_owned(),
        expected: expected.to_owned(),
        got: admission::shown(got),
        passed,
    }
}

/// Who may have the call: its tenant, as the webhook found it.
pub fn credential_of(context: &CallContext) -> admission::Credential {
    admission::Credential {
        assistant_id: context.assistant_id.clone(),
        proof: admission::Proof::Claim(context.tenant_id.clone()),
    }
}
