//! What the core of call handling wants done. The driver does it, in this order, and decides nothing.

use std::time::Duration;

use tandem_api::engine::v1 as engine;
use tandem_api::v1::DecisionStep;
use uuid::Uuid;

use super::admission::Credential;
use super::ending::Ending;
use super::record::CallRecord;
use super::state::State;
use crate::media::{EngineId, Upgrade};
use crate::sip::Verb;
use crate::store::contexts::{Claim, Mint};

/// One thing to do.
#[derive(Debug)]
pub enum Action {
    /// Towards the caller.
    Sip(Verb),
    /// Towards an engine; each call has at most one command under way.
    Engine {
        /// Which engine.
        engine: EngineId,
        /// Which session; its reply names it again.
        call_id: Uuid,
        /// What.
        command: EngineCommand,
    },
    /// Close a session that no call needs any more; the answer goes to `Calls::handle_stray`.
    CloseStray {
        /// Where it may live.
        engine: EngineId,
        /// Which.
        session_id: Uuid,
    },
    /// Ask the store whose key this is, and for the assistant.
    Lookup {
        /// Whose admission waits.
        call_id: Uuid,
        /// What to ask for.
        credential: Credential,
    },
    /// The call is admitted: later callbacks must find it.
    Remember(Box<crate::store::contexts::CallContext>),
    /// The call is over: forget it after the grace period.
    Forget(Uuid),
    /// Write the newest state of a call behind it.
    Record(Box<CallRecord>),
    /// A call was refused: one log line, and its trace is kept when it has no record.
    Refused(Box<Refusal>),
    /// A call from this source has passed the four steps, over this trunk if it was one.
    Admitted(std::net::SocketAddr, Option<std::sync::Arc<str>>),
    /// A media connection presents a claim: [`super::registry::Calls::handle_claimed`] wants to know whose.
    Claim {
        /// At which engine.
        engine: EngineId,
        /// The connection.
        upgrade: Box<Upgrade>,
        /// What it has dialled, as the provider knows it: `wss://host:port`.
        base: String,
    },
    /// Keep a new call's record and claim: [`super::registry::Calls::handle_minted`] wants to know that they are kept.
    Mint {
        /// The record.
        context: Box<crate::store::contexts::CallContext>,
        /// The claim.
        mint: Mint,
    },
    /// Ask something of a provider; what came of it goes to [`super::registry::Calls::handle_errand`].
    Errand {
        /// For which call.
        call_id: Uuid,
        /// With which credential.
        credential: std::sync::Arc<crate::provider::file::Credential>,
        /// What.
        errand: crate::provider::client::Errand,
    },
    /// No media connection has come with this claim: take it, and if nobody else has, the call is over.
    Missed(Claim),
    /// The media connection of this claim has dropped: the same call may come back.
    Dropped(Claim),
    /// Say what becomes of a media connection.
    AnswerUpgrade {
        /// At which engine.
        engine: EngineId,
        /// Its name there.
        upgrade_id: String,
        /// What.
        answer: UpgradeAnswer,
    },
    /// A call's state has changed: one log line, and the gauges.
    Changed(Change),
}

/// What becomes of a media connection on which no session is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpgradeAnswer {
    /// It is refused.
    Refuse {
        /// Of HTTP.
        status: u16,
        /// In words.
        reason: String,
        /// When to come again.
        retry_after_s: u32,
    },
    /// It goes on with this call.
    Retake(Uuid),
}

impl UpgradeAnswer {
    /// It is refused for this. Where its claim is used up there is nothing to come again for.
    pub fn refuse(ending: &Ending, may_return: bool) -> Self {
        let row = ending.cause.row();
        let status = match row.sip_status {
            status @ (403 | 404 | 409) => status,
            _ => 503,
        };
        let retry_after_s = if status == 503 && may_return { UPGRADE_RETRY_S } else { 0 };
        Self::Refuse { status, reason: row.sentence.to_owned(), retry_after_s }
    }
}

/// Seconds after which a provider may come again that was refused because something is away.
const UPGRADE_RETRY_S: u32 = 2;

/// A command of engine.proto.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineCommand {
    /// Open the session and reach the agent.
    Open(Box<engine::OpenSessionRequest>),
    /// The call is answered.
    Start,
    /// The other side may be heard before it answers; what the agent says waits.
    Listen,
    /// Something for the agent.
    Tell(Box<engine::tell_agent_request::What>),
    /// Another address, codec or direction.
    Update(Box<engine::RtpParameters>),
    /// Add a second leg.
    AddLeg(Box<engine::AddLegRequest>),
    /// Another address, codec, direction or role of the second leg.
    UpdateLeg(Box<engine::UpdateLegRequest>),
    /// Remove the second leg.
    RemoveLeg,
    /// The RTP leg of this other session becomes the second leg, and that session ends.
    Join {
        /// Which.
        other: Uuid,
        /// What the leg is there for.
        role: engine::LegRole,
    },
    /// End it.
    Close {
        /// Told to the agent.
        reason: &'static str,
    },
}

/// What the engine said to a command.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineReply {
    /// To Open.
    Opened(Result<Box<engine::OpenSessionResponse>, EngineRefusal>),
    /// To Start.
    Started(Result<(), EngineRefusal>),
    /// To Tell.
    Told(Result<(), EngineRefusal>),
    /// To Update.
    Updated(Result<(), EngineRefusal>),
    /// To AddLeg.
    LegAdded(Result<Box<engine::AddLegResponse>, EngineRefusal>),
    /// To UpdateLeg.
    LegUpdated(Result<(), EngineRefusal>),
    /// To RemoveLeg; with the figures of the leg. [`EngineRefusal::Gone`]: there was none.
    LegRemoved(Result<Box<engine::SessionStats>, EngineRefusal>),
    /// To Join, of this other session; with its last figures.
    Joined(Uuid, Result<Box<engine::SessionStats>, EngineRefusal>),
    /// To Close; [`EngineRefusal::Gone`]: it was over already.
    Closed(Result<Box<engine::SessionStats>, EngineRefusal>),
}

/// Why an engine did not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineRefusal {
    /// Ports or sessions are used up, or it drains: another engine may have room.
    Full(String),
    /// No connection, or no answer in time: it may have done it or not.
    Unreachable(String),
    /// It cannot send to the address that the caller offers; one of the other family may.
    Address(String),
    /// It will not do that, here or elsewhere.
    Invalid(String),
    /// It has no such session.
    Gone,
}

/// A refused call, as its one log line says it.
#[derive(Debug)]
pub struct Refusal {
    /// The call.
    pub call_id: Uuid,
    /// Whose, when that is known.
    pub tenant_id: Option<std::sync::Arc<str>>,
    /// The trunk that it came over.
    pub trunk: Option<std::sync::Arc<str>>,
    /// Where the INVITE came from.
    pub source: std::net::SocketAddr,
    /// Who calls, without a password.
    pub from: String,
    /// Who is called, without a password.
    pub to: String,
    /// The rule that refused: the last of the trace.
    pub step: DecisionStep,
    /// Every step that was asked.
    pub trace: Vec<DecisionStep>,
    /// The call has a record, with the same trace; otherwise this is all that is left of it.
    pub is_recorded: bool,
    /// With which status, and why.
    pub ending: Ending,
}

impl Refusal {
    /// It has passed the four steps and was refused by what came after them: the offer, an engine, the agent.
    pub fn was_admitted(&self) -> bool {
        self.trace.iter().any(|step| step.step == "provider" && step.passed)
    }
}

/// A call has moved on.
#[derive(Debug)]
pub struct Change {
    /// The call.
    pub call_id: Uuid,
    /// Before; `None`: it is new.
    pub from: Option<State>,
    /// Now.
    pub to: State,
    /// Why it ends; from Ending on.
    pub ending: Option<Ending>,
    /// INVITE to 200, once: when the answer leaves.
    pub setup: Option<Duration>,
}
