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

use std::time::{Duration, Instant};

use tandem_api::engine::v1 as engine;
use tandem_api::v1 as api;
use tandem_sip::Flow;

use super::dialling::{Dialling, answered_by_word};
use super::{Asked, Call, Surroundings};
use crate::call::action::{Action, EngineRefusal, UpgradeAnswer};
use crate::call::admission::{self, Trace, refused_by};
use crate::call::ending::{Cause, Ending};
use crate::call::invite;
use crate::call::state::Life;
use crate::media::{EngineId, StreamEnd, Upgrade};
use crate::provider::status::{AnsweredBy, CallStatus};
use crate::store::contexts::{CallContext, Claim};

/// The engine gives a connection up after so long.
const UPGRADE_WAIT: Duration = Duration::from_millis(1_900);
/// Steps that a trace may have before news of the provider's are left out: the reason of the end still finds room.
const NOTES_MAX: usize = 48;

/// How long a connection of the same claim is kept waiting while the one before it is not known to be gone: what tells of the
/// two are different ways. The engine waits for 2 s.
pub const RETURN_WAIT: Duration = Duration::from_millis(1_200);

/// What only such a call has.
#[derive(Debug)]
pub(super) struct StreamSide {
    pub(super) context: CallContext,
    /// By what its media connection is known.
    pub(super) claim: Claim,
    /// The connection that it came by; `None`: a call of ours whose connection is still to come.
    line: Option<Line>,
    /// What only a call that we place has.
    pub(super) dialling: Option<Box<Dialling>>,
    /// The engine has been told to start.
    is_starting: bool,
    /// The connection has dropped in mid-call, and none has taken its place.
    is_dropped: bool,
    /// Another connection of the same claim, which came while this one was not known to be gone.
    returning: Option<Returning>,
    /// The codec that the provider has named.
    codec: String,
    /// Whom the provider was asked to put the other side through to, and our number: for those that fetch it.
    pub(super) transfer_to: Option<(String, String)>,
    /// What the provider's callbacks say of the call.
    pub(super) status: CallStatus,
    /// What picked up, as the provider says.
    pub(super) answered_by: Option<AnsweredBy>,
    /// The provider has said itself that it is over, by its connection or by a callback.
    pub(super) is_over_there: bool,
    /// What we know of the provider's id is that of our request, not of the call.
    pub(super) is_request_named: bool,
    /// A request to the provider is under way without whose outcome the call is not over.
    pub(super) is_asking: bool,
}

/// A connection as far as it is needed later. Its headers, which may hold secrets, are not.
#[derive(Debug)]
struct Line {
    upgrade_id: String,
    engine: EngineId,
    provider: String,
    is_secure: bool,
    /// When it came.
    since: Instant,
    /// A session is open on it, or it was refused.
    is_answered: bool,
}

impl Line {
    fn of(engine: EngineId, upgrade: &Upgrade, now: Instant) -> Self {
        Self {
            upgrade_id: upgrade.upgrade_id.clone(),
            engine,
            provider: upgrade.provider.clone(),
            is_secure: upgrade.is_secure,
            since: now,
            is_answered: false,
        }
    }
}

#[derive(Debug)]
struct Returning {
    upgrade_id: String,
    is_secure: bool,
    until: Instant,
}

impl StreamSide {
    /// Of a call whose connection is there, or still to come.
    pub(super) fn new(context: CallContext, claim: Claim) -> Self {
        Self {
            context,
            claim,
            line: None,
            dialling: None,
            is_starting: false,
            is_dropped: false,
            returning: None,
            codec: String::new(),
            transfer_to: None,
            status: CallStatus::Queued,
            answered_by: None,
            is_over_there: false,
            is_request_named: false,
            is_asking: false,
        }
    }

    /// Its media connection has come.
    pub(super) fn has_line(&self) -> bool {
        self.line.is_some()
    }

    /// The provider's id of the call, once it is known.
    pub(super) fn provider_call_id(&self) -> Option<&str> {
        self.context.provider.as_ref()?.call_id.as_deref()
    }
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
        let life = Life::new(&around.settings.limits, around.now);
        let blank = Self::blank(context.call_id, life, around);
        Self {
            sip_is_over: true,
            flow: Flow::udp(invite::ANYWHERE, upgrade.source),
            from: context.from.clone(),
            to: context.to.clone(),
            assistant_id: context.assistant_id.clone(),
            custom: context.arguments.clone(),
            trace,
            stream: Some(Box::new(StreamSide {
                line: Some(Line::of(engine, &upgrade, around.now)),
                ..StreamSide::new(context, upgrade.claim)
            })),
            ..blank
        }
    }

    /// The context that a provider's call was made from.
    pub fn stream_context(&self) -> Option<&CallContext> {
        self.stream.as_ref().map(|stream| &stream.context)
    }

    /// Whom the other side is to be put through to, and our number, while that is under way.
    pub fn transfer_to(&self) -> Option<(String, String)> {
        self.stream.as_ref().filter(|_| self.is_transferring())?.transfer_to.clone()
    }

    /// `None`: not a provider's; empty until it has said so.
    pub(super) fn stream_codec(&self) -> Option<String> {
        self.stream.as_ref().map(|stream| stream.codec.clone())
    }

    /// Its connection has dropped in mid-call, and none has taken its place.
    pub(super) fn is_stream_dropped(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_dropped)
    }

    /// The provider's side, as records have it.
    pub(super) fn provider_record(&self) -> Option<api::ProviderSide> {
        let stream = self.stream.as_ref()?;
        let provider = stream.context.provider.as_ref()?;
        Some(api::ProviderSide {
            name: provider.name.clone(),
            credential: provider.credential.clone(),
            call_id: provider.call_id.clone().unwrap_or_default(),
            status: if stream.status == CallStatus::Queued { "" } else { stream.status.word() }.to_owned(),
            answered_by: stream.answered_by.map(answered_by_word).unwrap_or_default().to_owned(),
        })
    }

    /// Each of its connections came inside TLS.
    pub(super) fn is_stream_secure(&self) -> bool {
        self.stream.as_ref().and_then(|stream| stream.line.as_ref()).is_some_and(|line| line.is_secure)
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
        Some(engine::StreamLeg {
            upgrade_id: stream.line.as_ref()?.upgrade_id.clone(),
            sample_rate: 0,
            provider_call_id: stream
                .provider_call_id()
                .filter(|_| !stream.is_request_named)
                .unwrap_or_default()
                .to_owned(),
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
        let Some(engine) = stream.line.as_ref().map(|line| line.engine) else { return };
        stream.context.engine = around.settings.engines.get(engine.0).cloned().unwrap_or_default();
        around.actions.push_back(Action::Remember(Box::new(stream.context.clone())));
        let request = self.open_request(around);
        self.session.open(engine, Box::new(request));
    }

    /// The engine has not opened a session on its connection, and no other one can.
    pub(super) fn handle_stream_not_opened(&mut self, refusal: EngineRefusal, around: &mut Surroundings<'_>) {
        if refusal == EngineRefusal::Gone {
            // The connection, that is: there was no session yet. Either it has left, or the engine gave it up, because we
            // were slow.
            let since = self.stream.as_ref().and_then(|stream| stream.line.as_ref()).map(|line| line.since);
            if since.is_some_and(|since| around.now.saturating_duration_since(since) >= UPGRADE_WAIT) {
                let detail = "the media connection was not answered in time";
                self.trace.push(refused_by("engine", "media connection", "an answer in 2 s", "later"));
                return self.end(Ending::with_detail(Cause::EngineFault, detail), around);
            }
            let detail = "the media connection was gone before it was answered";
            return self.end(Ending::with_detail(Cause::CallerCancelled, detail), around);
        }
        self.engine_refusal = Some(refusal);
        self.end_without_engine(around);
    }

    /// The engine has opened a session on its connection.
    pub(super) fn handle_stream_opened(&mut self) {
        if let Some(line) = self.stream.as_mut().and_then(|stream| stream.line.as_mut()) {
            line.is_answered = true;
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
        if std::mem::take(&mut stream.is_dropped) {
            self.note_stream("media_connection", "the same call again", "the same call again", true);
        }
        let Some(stream) = self.stream.as_mut() else { return };
        let Some(provider) = &mut stream.context.provider else { return };
        if (provider.call_id.is_none() || stream.is_request_named) && !provider_call_id.is_empty() {
            stream.is_request_named = false;
            provider.call_id = Some(provider_call_id.to_owned());
            around.actions.push_back(Action::Remember(Box::new(stream.context.clone())));
        }
    }

    /// Its connection is gone: because the provider said so, or for a while.
    pub(super) fn handle_stream_dropped(
        &mut self,
        how: StreamEnd,
        leg_may_live: bool,
        reason: &str,
        around: &mut Surroundings<'_>,
    ) {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.life.is_ending()) else { return };
        if how == StreamEnd::Drop {
            stream.is_dropped = true;
            around.actions.push_back(Action::Dropped(stream.claim));
            let returning = stream.returning.take();
            self.note_stream("media_connection", "one that stays", reason, false);
            if let Some(Returning { upgrade_id, is_secure, .. }) = returning {
                self.let_return(upgrade_id, is_secure, around);
            }
            return;
        }
        stream.is_over_there = !leg_may_live;
        if how == StreamEnd::Fault {
            self.note_stream("media_connection", "what can be carried", reason, false);
            return self.end(Ending::with_detail(Cause::StreamFault, admission::shown(reason)), around);
        }
        // A stop may overtake the provider's answer to the request. The caller is with somebody else now.
        if self.is_transferring() {
            if let Some(stream) = self.stream.as_mut() {
                stream.is_over_there = true;
            }
            self.tell_transfer("done", "");
            return self.end(Ending::new(Cause::Transferred), around);
        }
        let Some(stream) = self.stream.as_mut() else { return };
        let cause = match stream.context.direction {
            "outbound" => Cause::CalleeHangup,
            _ if self.life.is_before_answer() => Cause::CallerCancelled,
            _ => Cause::CallerHangup,
        };
        self.end(Ending::with_detail(cause, admission::shown(reason)), around);
    }

    /// Whether this connection may take the place of the one that has dropped. The engine lets it be heard when it has named
    /// the same provider's call; until then another one may come.
    pub fn may_return(&self, engine: EngineId, upgrade: &Upgrade) -> bool {
        let Some(stream) = self.stream.as_ref().filter(|_| !self.life.is_ending()) else { return false };
        stream.claim == upgrade.claim
            && stream
                .line
                .as_ref()
                .is_some_and(|line| line.engine == engine && line.provider == upgrade.provider)
    }

    /// Another connection is there, for which [`Call::may_return`] is true. While the one before it is not known to be gone it
    /// waits for a moment.
    pub fn handle_returned(&mut self, upgrade: Upgrade, around: &mut Surroundings<'_>) {
        let Some(stream) = self.stream.as_mut() else { return };
        if stream.is_dropped {
            return self.let_return(upgrade.upgrade_id, upgrade.is_secure, around);
        }
        let until = around.now + RETURN_WAIT;
        let Upgrade { upgrade_id, is_secure, .. } = upgrade;
        if let Some(before) = stream.returning.replace(Returning { upgrade_id, is_secure, until }) {
            self.refuse_line(before.upgrade_id, around);
        }
    }

    fn let_return(&mut self, upgrade_id: String, is_secure: bool, around: &mut Surroundings<'_>) {
        let Some(line) = self.stream.as_mut().and_then(|stream| stream.line.as_mut()) else { return };
        line.is_secure &= is_secure;
        let engine = line.engine;
        self.note_stream("media_connection", "the same call again", "another connection, on trial", true);
        let answer = UpgradeAnswer::Retake(self.id);
        around.actions.push_back(Action::AnswerUpgrade { engine, upgrade_id, answer });
    }

    /// Somebody else has the call.
    fn refuse_line(&self, upgrade_id: String, around: &mut Surroundings<'_>) {
        let Some(line) = self.stream.as_ref().and_then(|stream| stream.line.as_ref()) else { return };
        let answer = UpgradeAnswer::refuse(&Ending::new(Cause::ClaimTaken), false);
        around.actions.push_back(Action::AnswerUpgrade { engine: line.engine, upgrade_id, answer });
    }

    /// When [`Call::handle_stream_timeout`] must be called.
    pub(super) fn stream_deadline(&self) -> Option<Instant> {
        let stream = self.stream.as_ref()?;
        let again = stream.dialling.as_ref().and_then(|dialling| dialling.again_at());
        let returning = stream.returning.as_ref().map(|returning| returning.until);
        [again, returning].into_iter().flatten().min()
    }

    /// A deadline of the connection's or of the dial's may be due.
    pub(super) fn handle_stream_timeout(&mut self, around: &mut Surroundings<'_>) {
        let Some(stream) = self.stream.as_mut() else { return };
        if let Some(late) = stream.returning.take_if(|returning| returning.until <= around.now) {
            self.refuse_line(late.upgrade_id, around);
        }
        self.dial_again(around);
    }

    /// What the provider's side does, in the trace.
    pub(super) fn note_stream(&mut self, rule: &str, expected: &str, got: &str, passed: bool) {
        if self.trace.len() < NOTES_MAX {
            let got = admission::shown(got);
            self.trace.push(admission::step("telephony", rule, "provider", expected, &got, passed));
        }
    }

    /// The provider says something of the connection: that it is up, or why it could not be.
    pub fn handle_stream_news(&mut self, failure: Option<&str>) {
        if let Some(why) = failure.filter(|_| self.stream.is_some()) {
            self.note_stream("media_connection", "one that opens", why, false);
        }
    }

    // --- a connection to a call of ours ---

    /// The claim was this call's, whose connection was still to come.
    pub fn awaits_media(&self, provider: &str) -> bool {
        let Some(stream) = self.stream.as_ref().filter(|_| !self.life.is_ending()) else { return false };
        let named = stream.context.provider.as_ref().map(|provider| &*provider.name).unwrap_or_default();
        stream.line.is_none() && stream.dialling.is_some() && is_way_of(named, provider)
    }

    /// The media connection of a call that we have placed is there: the other side has picked up.
    pub fn handle_media(&mut self, engine: EngineId, upgrade: &Upgrade, around: &mut Surroundings<'_>) {
        let Some(stream) = self.stream.as_mut() else { return };
        stream.line = Some(Line::of(engine, upgrade, around.now));
        self.flow = Flow::udp(invite::ANYWHERE, upgrade.source);
        self.life.expect(around.now + around.settings.limits.ring_max);
        self.open_stream(around);
    }

    // --- the end ---

    /// The call ends: a connection that has no session yet is refused, and operators hear why nobody was talked with.
    pub(super) fn end_stream(&mut self, ending: &Ending, around: &mut Surroundings<'_>) {
        let Some(stream) = self.stream.as_mut() else { return };
        if let Some(line) = stream.line.as_mut().filter(|line| !line.is_answered) {
            line.is_answered = true;
            // A session may be opening on it: then the engine does not know it any more, and says so.
            let answer = UpgradeAnswer::refuse(ending, false);
            let (engine, upgrade_id) = (line.engine, line.upgrade_id.clone());
            around.actions.push_back(Action::AnswerUpgrade { engine, upgrade_id, answer });
        }
        if let Some(returning) = stream.returning.take() {
            self.refuse_line(returning.upgrade_id, around);
        }
        self.hang_up_there(around);
        let is_ours = self.stream.as_ref().is_some_and(|stream| stream.dialling.is_some());
        let went_by_itself = matches!(ending.cause, Cause::CallerCancelled | Cause::CalleeHangup);
        if is_ours {
            // As of a call that leaves by SIP: its record tells, with the reason as its last step.
            if self.life.is_before_answer() && self.trace.last().is_none_or(|step| step.passed) {
                self.trace.push(ending.to_step());
            }
        } else if self.life.is_before_answer() && !went_by_itself {
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

/// Whether a connection of this kind may bring the media of a call of that provider: AudioSocket is Asterisk's other way.
pub fn is_way_of(provider: &str, came: &str) -> bool {
    provider == came || (provider, came) == ("asterisk", "audiosocket")
}
