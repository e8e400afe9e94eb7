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
use tandem_sip::{Flow, Headers};

use super::{Asked, Call, Keys, Surroundings};
use crate::call::action::{Action, EngineRefusal, UpgradeAnswer};
use crate::call::admission::{self, Trace};
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
    /// The engine has been told to start.
    is_starting: bool,
    /// The connection has dropped in mid-call, and none has taken its place.
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
        let trace: Trace = vec![admission::step(
            "credential",
            "claim",
            "context id",
            "the claim of a call",
            &provider,
            true,
        )];
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
                is_starting: false,
                is_dropped: false,
                codec: String::new(),
            })),
        }
    }

    /// The context that a provider's call was made from.
    pub(super) fn stream_context(&self) -> Option<&CallContext> {
        self.stream.as_ref().map(|stream| &stream.context)
    }

    /// `None`: not a provider's; empty until it has said so.
    pub(super) fn stream_codec(&self) -> Option<String> {
        self.stream.as_ref().map(|stream| stream.codec.clone())
    }

    /// Its first connection came inside TLS.
    pub(super) fn is_stream_secure(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.upgrade.is_secure)
    }

    /// The agent is there, and the engine has not said yet that the session has started.
    pub(super) fn is_stream_starting(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_starting)
    }

    /// What needs a dialog with the other side, which a provider's call has not.
    pub(super) fn check_dialog(&self, done: &str) -> Result<(), Asked> {
        match self.stream {
            None => Ok(()),
            Some(_) => Err(Asked::Policy(format!(
                "a call by a provider's media connection has no SIP dialog: it cannot be {done}"
            ))),
        }
    }

    pub(super) fn stream_leg(&self) -> Option<engine::StreamLeg> {
        let stream = self.stream.as_ref()?;
        let named = stream.context.provider.as_ref().and_then(|provider| provider.call_id.clone());
        Some(engine::StreamLeg {
            upgrade_id: stream.upgrade.upgrade_id.clone(),
            sample_rate: 0,
            provider_call_id: named.unwrap_or_default(),
        })
    }

    // --- set-up ---

    /// It is admitted. No engine can take it but the one that has the connection.
    pub(super) fn open_stream(&mut self, around: &mut Surroundings<'_>) {
        if !self.has_media() {
            let got = "an agent that does not talk";
            self.trace.push(admission::step(
                "provider",
                "agent_media",
                "agent",
                "one that talks",
                got,
                false,
            ));
            return self.end(Ending::with_detail(Cause::BrokenAssistant, got), around);
        }
        let Some(stream) = &mut self.stream else { return };
        let engine = stream.engine;
        stream.context.engine = around.settings.engines.get(engine.0).cloned().unwrap_or_default();
        around.actions.push_back(Action::Remember(Box::new(stream.context.clone())));
        let request = self.open_request(around);
        self.session.open(engine, Box::new(request));
    }

    /// The engine has not opened a session on its connection, and no other one can.
    pub(super) fn handle_stream_not_opened(&mut self, refusal: EngineRefusal, around: &mut Surroundings<'_>) {
        if refusal == EngineRefusal::Gone {
            // The connection, that is: there was no session yet.
            let detail = "the media connection was gone before it was answered";
            return self.end(Ending::with_detail(Cause::CallerCancelled, detail), around);
        }
        self.engine_refusal = Some(refusal);
        self.end_without_engine(around);
    }

    /// The engine has opened a session on its connection.
    pub(super) fn handle_stream_opened(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.is_answered = true;
        }
        self.life.ring();
        if self.agent_ready {
            self.start_stream();
        }
    }

    /// The agent is there. Doing it again changes nothing.
    pub(super) fn start_stream(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        if !std::mem::replace(&mut stream.is_starting, true) {
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

    // --- the connection ---

    /// Its connection has said which call it is.
    pub(super) fn handle_stream_named(
        &mut self,
        provider_call_id: &str,
        codec: String,
        around: &mut Surroundings<'_>,
    ) {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.life.is_ending()) else { return };
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
        let Some(stream) = self.stream.as_mut().filter(|_| !self.life.is_ending()) else { return };
        if !is_stop {
            stream.is_dropped = true;
            around.actions.push_back(Action::Dropped(stream.upgrade.claim));
            return self.note("media_connection", "media connection", "one that stays", reason, false);
        }
        let cause = match stream.context.direction {
            "outbound" => Cause::CalleeHangup,
            _ if self.life.is_before_answer() => Cause::CallerCancelled,
            _ => Cause::CallerHangup,
        };
        self.end(Ending::with_detail(cause, admission::shown(reason)), around);
    }

    /// Whether this connection may take the place of the one that has dropped. The engine lets it be heard when it has named
    /// the same provider's call; until then another one may come.
    pub fn awaits(&self, engine: EngineId, upgrade: &Upgrade) -> bool {
        let Some(stream) = self.stream.as_ref().filter(|_| !self.life.is_ending()) else { return false };
        let own = &stream.upgrade;
        stream.is_dropped
            && stream.engine == engine
            && (own.claim, &own.provider) == (upgrade.claim, &upgrade.provider)
    }

    /// Another connection is there, for which [`Call::awaits`] is true.
    pub fn handle_returned(&mut self, engine: EngineId, upgrade_id: String, around: &mut Surroundings<'_>) {
        self.note("media_connection", "media connection", "the same call again", "another connection", true);
        let answer = UpgradeAnswer::Retake(self.id);
        around.actions.push_back(Action::AnswerUpgrade { engine, upgrade_id, answer });
    }

    // --- the end ---

    /// The call ends: a connection that has no session yet is refused, and operators hear why nobody was talked with.
    pub(super) fn end_stream(&mut self, ending: &Ending, around: &mut Surroundings<'_>) {
        if let Some(stream) = self.stream.as_mut().filter(|stream| !stream.is_answered) {
            stream.is_answered = true;
            // A session may be opening on it: then the engine does not know it any more, and says so.
            let answer = UpgradeAnswer::refuse(ending, false);
            let (engine, upgrade_id) = (stream.engine, stream.upgrade.upgrade_id.clone());
            around.actions.push_back(Action::AnswerUpgrade { engine, upgrade_id, answer });
        }
        let went_by_itself = matches!(ending.cause, Cause::CallerCancelled | Cause::CalleeHangup);
        if self.life.is_before_answer() && !went_by_itself {
            self.report_refusal(ending, around);
        }
    }
}

/// Who may have the call: its tenant, as the webhook found it.
pub fn credential_of(context: &CallContext) -> admission::Credential {
    admission::Credential {
        assistant_id: context.assistant_id.clone(),
        proof: admission::Proof::Claim(context.tenant_id.clone()),
    }
}
