//! Why calls end: one table of who, word, SIP status, Q.850 cause and whether trying again may help.
//!
//! The status refuses a call that was not answered; an answered one gets a BYE with the cause in its Reason header
//! (RFC 3326). Statuses and causes correspond as in RFC 3398 §8.2.6.1, as far as it knows the case.

use tandem_api::v1 as api;
use tandem_sip::message::{Reply, reason_phrase};
use tandem_sip::{HeaderName, Headers};
use uuid::Uuid;

use super::outcome::CarrierWord;

use super::admission::ended_by;
use crate::trunk::guard::Failure;

/// Seconds in the Retry-After of our 503: calls end in tens of seconds, engines come back in a few.
const RETRY_AFTER_S: u32 = 5;

/// In a refusal: the id that its decision trace is kept under.
pub const CALL_ID_HEADER: &str = "X-Tandem-Call-ID";

/// Whose doing it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// Who called us.
    Caller,
    /// Whom we called.
    Callee,
    /// The network between us and the callee.
    Carrier,
    /// Who talks for us.
    Agent,
    /// Tandem, its configuration or its operator.
    Us,
}

impl Party {
    /// The word in the API.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Callee => "callee",
            Self::Carrier => "carrier",
            Self::Agent => "agent",
            Self::Us => "us",
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Whose doing.
    pub party: Party,
    /// For dashboards; never changed once released.
    pub word: &'static str,
    /// Of the refusal; 200 for a normal end.
    pub sip_status: u16,
    /// For the Reason header.
    pub q850_cause: u8,
    /// Whether the same call may work in a moment.
    pub retryable: bool,
    /// For a person.
    pub sentence: &'static str,
}

macro_rules! causes {
    ($($variant:ident = $party:ident, $word:literal, $status:literal, $q850:literal, $retry:literal, $sentence:literal;)*) => {
        /// Why a call ended or was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Cause {
            $(#[doc = $sentence] $variant,)*
        }

        impl Cause {
            /// Every cause.
            pub const ALL: &[Cause] = &[$(Cause::$variant,)*];

            /// What the cause says of the caller's source: a stranger, or one that guesses.
            pub const fn failure(self) -> Option<Failure> {
                match self {
                    Self::MissingKey => Some(Failure::Unknown),
                    Self::WrongKey | Self::WrongPassword => Some(Failure::Wrong),
                    _ => None,
                }
            }

            /// Its line of the table.
            pub const fn row(self) -> Row {
                match self {
                    $(Cause::$variant => Row {
                        party: Party::$party,
                        word: $word,
                        sip_status: $status,
                        q850_cause: $q850,
                        retryable: $retry,
                        sentence: $sentence,
                    },)*
                }
            }
        }
    };
}

causes! {
    // --- ordinary ends ---
    CallerHangup     = Caller, "hangup",               200, 16, true,  "the caller hung up";
    CallerCancelled  = Caller, "cancelled",            487, 16, true,  "the caller gave up before the answer";
    AgentHangup      = Agent,  "agent_hangup",         200, 16, true,  "the agent hung up";
    CalleeHangup     = Callee, "callee_hangup",        200, 16, true,  "the callee hung up";
    Transferred      = Agent,  "transferred",          200, 16, false, "the call was handed on, and the target answered";
    Replaced         = Caller, "replaced",             200, 16, false, "another call has taken this one's place";
    Joined           = Us,     "joined",               200, 16, false, "the call was joined to another one, in which its other side talks on";
    OperatorHangup   = Us,     "operator_hangup",      200, 16, true,  "the call was ended through the API";
    MaxDuration      = Us,     "max_duration",         200, 31, true,  "the call lasted as long as a call may";
    Idle             = Us,     "idle",                 200, 31, true,  "nobody spoke for as long as the assistant allows";
    InWriting        = Caller, "in_writing",           200, 16, false, "a conversation in writing, which goes on when somebody writes";
    // --- admission ---
    MissingKey       = Caller, "missing_key",          403, 21, false, "the URI carries no API key";
    WrongKey         = Caller, "wrong_key",            403, 21, false, "nobody has this API key";
    WrongPassword    = Caller, "wrong_password",       403, 21, false, "the phone's password was wrong too often";
    UnknownNumber    = Caller, "unknown_number",       404,  1, false, "the trunk has no route for the dialled number";
    UnknownAssistant = Caller, "unknown_assistant",    404,  1, false, "the tenant has no such assistant";
    BrokenAssistant  = Us,     "assistant_misconfigured", 500, 41, false, "the assistant's agent is not readable";
    UnknownClaim     = Caller, "unknown_claim",        404,  1, false, "no call waits for this media connection";
    ClaimTaken       = Caller, "claim_taken",          409, 41, false, "the call has a media connection, or is not here";
    ForeignCall      = Caller, "foreign_call",         481, 41, false, "the call to be replaced is not one of this tenant";
    CallChanging     = Caller, "call_changing",        491, 41, true,  "the call to be replaced is being changed, or is not answered";
    UnreadableOffer  = Caller, "unreadable_offer",     400, 95, false, "the session description is not readable";
    NoCommonCodec    = Caller, "no_common_codec",      488, 88, false, "the offer holds nothing that we can speak";
    MediaUnreachable = Caller, "media_unreachable",    488, 88, false, "no media engine can send to the address in the offer";
    // --- outbound: what the other side said ---
    Busy             = Callee, "busy",                 486, 17, true,  "the number is busy";
    NoAnswer         = Callee, "no_answer",            480, 19, true,  "nobody answered in time";
    Rejected         = Carrier, "rejected",            603, 21, false, "the call was rejected";
    Unreachable      = Carrier, "unreachable",         404,  1, false, "the number cannot be reached";
    TrunkUnreachable = Carrier, "trunk_unreachable",   503, 38, true,  "the trunk does not answer";
    Failed           = Carrier, "failed",              500, 41, true,  "the carrier could not place the call";
    Redirected       = Carrier, "redirected",          480, 23, false, "the call was sent elsewhere, where the trunk's policy does not follow";
    ProviderRefused  = Carrier, "provider_refused",    403, 21, false, "the telephony provider refused to place the call";
    ProviderUnavailable = Carrier, "provider_unavailable", 503, 38, true, "the telephony provider could not place the call";
    // --- a provider's media ---
    MediaNeverCame   = Us,     "media_never_came",     408, 102, true, "the provider was answered, and its media connection never came";
    ForgedUpgrade    = Caller, "forged_upgrade",       403, 21, false, "the media connection does not prove that it is the provider's";
    StreamFault      = Caller, "stream_fault",         488, 88, false, "the provider's media connection speaks what we cannot carry";
    // --- outbound: ourselves ---
    QueueTimeout     = Us,     "queue_timeout",        503, 42, true,  "the call waited too long for its turn";
    QueueCancelled   = Us,     "queue_cancelled",      487, 31, true,  "the call was taken out of the queue";
    // --- capacity ---
    TooManyCalls     = Us,     "too_many_calls",       503, 42, true,  "as many calls as allowed are live";
    TrunkFull        = Us,     "trunk_full",           503, 42, true,  "the trunk offers more calls than it may";
    TrunkBusy        = Us,     "trunk_busy",           486, 17, true,  "the trunk offers more calls than it may, and is told so by 486";
    TenantFull       = Us,     "tenant_full",          503, 42, true,  "the tenant has as many calls as it may";
    StoreBehind      = Us,     "store_behind",         503, 42, true,  "the database does not keep up with the records of calls";
    StoreFailed      = Us,     "store_failed",         503, 41, true,  "the database does not answer";
    Draining         = Us,     "draining",             503, 41, true,  "this node is going down and takes no new calls";
    NoEngine         = Us,     "no_engine",            503, 34, true,  "no media engine is there";
    EngineFull       = Us,     "engine_full",          503, 34, true,  "every media engine is full or draining";
    // --- agent ---
    AgentUnreachable = Agent,  "agent_unreachable",    480, 20, true,  "the agent could not be reached";
    AgentTimeout     = Agent,  "agent_timeout",        480, 18, true,  "the agent was not there in time";
    AgentFailed      = Agent,  "agent_failed",         502, 27, true,  "the agent's stream broke";
    // --- trouble on the way ---
    NoAck            = Caller, "no_ack",               408, 102, true, "the caller never acknowledged the answer";
    BadAnswer        = Caller, "bad_answer",           488, 88, false, "no answer came that fits our offer";
    DialogLost       = Caller, "dialog_lost",          481, 41, true,  "the other side does not know the call any more";
    MediaTimeout     = Caller, "media_timeout",        408, 102, true, "no audio came from the other side";
    MediaTransport   = Caller, "media_transport",      408, 102, true, "ICE or DTLS found no way to the other side, or lost it";
    StreamLost       = Caller, "stream_lost",          408, 102, true, "the provider's media connection was lost and did not come back";
    EngineLost       = Us,     "engine_lost",          503, 38, true,  "the media engine is gone";
    EngineFault      = Us,     "engine_fault",         500, 41, true,  "the media engine could not do what was asked";
    Shutdown         = Us,     "shutdown",             503, 41, true,  "this node was shut down";
    ControlPlaneRestart = Us,  "control_plane_restart", 503, 41, true, "the control plane was restarted";
}

/// How one call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Which line of the table.
    pub cause: Cause,
    /// What is special about this one; empty: the table's sentence says it all. No secrets, no numbers.
    pub detail: String,
    /// What the other side's last final response said, of a call of ours.
    pub carrier: Option<Box<CarrierWord>>,
    /// Whose doing, where the table says "caller" of a call that we placed.
    party: Option<Party>,
}

impl Ending {
    /// An ending that the table's sentence describes.
    pub fn new(cause: Cause) -> Self {
        Self { cause, detail: String::new(), carrier: None, party: None }
    }

    /// An ending with something to add.
    pub fn with_detail(cause: Cause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into(), carrier: None, party: None }
    }

    /// The end of a call that we placed: its other side is the callee.
    pub fn of_outbound(mut self) -> Self {
        self.party = (self.cause.row().party == Party::Caller).then_some(Party::Callee);
        self
    }

    /// Whose doing it was.
    pub fn party(&self) -> Party {
        self.party.unwrap_or(self.cause.row().party)
    }

    /// As the API says it.
    pub fn to_api(&self) -> api::Ending {
        let row = self.cause.row();
        let detail = match self.detail.as_str() {
            "" => row.sentence.to_owned(),
            detail => format!("{}: {detail}", row.sentence),
        };
        let carrier = self.carrier.as_deref();
        let q850_cause = carrier.map(|word| word.q850_cause).filter(|cause| *cause != 0);
        api::Ending {
            party: self.party().word().to_owned(),
            reason: row.word.to_owned(),
            sip_status: carrier.map_or(row.sip_status, |word| word.status).into(),
            q850_cause: q850_cause.unwrap_or(row.q850_cause).into(),
            retryable: row.retryable,
            detail,
            carrier: carrier.map(CarrierWord::to_api),
        }
    }

    /// The refusal of a call that was not answered.
    pub fn to_reply(&self) -> Reply {
        let row = self.cause.row();
        // A normal end before the answer is nobody's fault and no success either.
        let status = if row.sip_status < 400 { 480 } else { row.sip_status };
        let mut reply = Reply::new(status).reason(reason_phrase(status));
        if let Ok(with_reason) = reply.clone().header(HeaderName::Reason.as_str(), &self.reason_value()) {
            reply = with_reason;
        }
        if status == 503 { reply.retry_after_s(RETRY_AFTER_S) } else { reply }
    }

    /// The same, with the id by which `tandem call explain` finds the reasons.
    pub fn to_reply_of(&self, call_id: Uuid) -> Reply {
        let reply = self.to_reply();
        reply.clone().header(CALL_ID_HEADER, &call_id.to_string()).unwrap_or(reply)
    }

    /// The headers of our BYE.
    pub fn to_headers(&self) -> Headers {
        let mut headers = Headers::new();
        // The value is made of the table's words and numbers: it holds no control character.
        let pushed = headers.push(HeaderName::Reason.as_str(), &self.reason_value());
        debug_assert!(pushed.is_ok(), "the table holds no control characters");
        headers
    }

    /// The same, and what the agent wants to say with it.
    pub fn headers_with(&self, more: &Headers) -> Headers {
        let mut headers = self.to_headers();
        for (name, value) in more.iter() {
            let pushed = headers.push(name, &String::from_utf8_lossy(value));
            debug_assert!(pushed.is_ok(), "they come from a list of headers");
        }
        headers
    }

    fn reason_value(&self) -> String {
        let row = self.cause.row();
        format!("Q.850;cause={};text=\"{}\"", row.q850_cause, row.sentence)
    }

    /// The step that is said to have refused a call which every rule had let pass.
    pub fn to_step(&self) -> api::DecisionStep {
        let row = self.cause.row();
        let got = if self.detail.is_empty() { row.sentence } else { &self.detail };
        ended_by(row.word, got)
    }

    /// What the engine tells the agent in its `stop` frame.
    pub fn for_agent(&self) -> &'static str {
        self.cause.row().word
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn words_are_unique_and_fit_the_header() {
        let mut words = HashSet::new();
        for cause in Cause::ALL {
            let row = cause.row();
            assert!(words.insert(row.word), "{}", row.word);
            assert!(!row.sentence.contains(['"', '\\', '\r', '\n']), "{}", row.word);
            assert!((1..=127).contains(&row.q850_cause), "{}", row.word);
        }
    }

    #[test]
    fn every_refusal_is_final_and_says_its_cause() {
        for cause in Cause::ALL {
            let reply = Ending::new(*cause).to_reply();
            assert!(reply.status() >= 400, "{cause:?}");
            assert_eq!(Ending::new(*cause).to_headers().len(), 1);
        }
    }

    #[test]
    fn challenge_is_no_refusal_and_a_wrong_credential_is_403() {
        assert!(Cause::ALL.iter().all(|cause| cause.row().sip_status != 401));
        assert_eq!(Cause::WrongPassword.row().sip_status, 403);
        assert_eq!(Cause::WrongKey.row().sip_status, 403);
        assert_eq!(Cause::MissingKey.row().sip_status, 403);
    }

    #[test]
    fn refusal_names_the_call_by_which_its_reasons_are_found() {
        let reply = Ending::new(Cause::WrongKey).to_reply_of(Uuid::from_u128(7));
        let named = reply.headers().iter().find(|(name, _)| *name == CALL_ID_HEADER).map(|(_, value)| value);
        assert_eq!(named, Some(&b"00000000-0000-0000-0000-000000000007"[..]));
    }

    #[test]
    fn bye_carries_the_q850_cause() {
        let headers = Ending::new(Cause::EngineLost).to_headers();
        let reason = headers.get(HeaderName::Reason).unwrap();
        assert_eq!(reason, "Q.850;cause=38;text=\"the media engine is gone\"");
    }
}
