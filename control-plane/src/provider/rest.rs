//! Requests of ours to a provider, and what its answers mean.
//!
//! ```text
//!   Account::dial ──▶ RestRequest ──(the shell sends it)──▶ RestAnswer ──Account::dialled──▶ DialOutcome
//! ```
//!
//! The one thing that must not go wrong is a call placed twice. So only what certainly was not dialled is *refused* and
//! may be retried; a request that timed out after it was sent, or a gateway's 502 or 504, leaves the outcome *unknown*:
//! the status callbacks will say.

use serde_json::Value as Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::document::MediaPlan;
use super::webhook::{StatusEvent, shown};

/// HTTP methods that providers' APIs use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Make or change.
    Post,
    /// Change.
    Put,
    /// End.
    Delete,
}

/// A request of ours. Its `Debug` shows neither headers nor body: one holds a secret, the other may hold a claim.
#[derive(Clone, PartialEq, Eq)]
pub struct RestRequest {
    /// How.
    pub method: Method,
    /// Where; holds no secret.
    pub url: String,
    /// Names and values; `authorization` is among them.
    pub headers: Vec<(&'static str, String)>,
    /// Empty: none.
    pub body: String,
}

impl std::fmt::Debug for RestRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        let url = self.url.split('?').next().unwrap_or_default();
        write!(f, "RestRequest({:?} {url}, headers {names:?}, {} octets)", self.method, self.body.len())
    }
}

impl RestRequest {
    /// A request without a body.
    pub fn new(method: Method, url: String, authorization: String) -> Self {
        Self { method, url, headers: vec![("authorization", authorization)], body: String::new() }
    }

    /// With a form.
    pub fn form<'a>(mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(pairs);
        self.headers.push(("content-type", "application/x-www-form-urlencoded".to_owned()));
        self.body = form.finish();
        self
    }

    /// With JSON.
    pub fn json(mut self, value: &Json) -> Self {
        self.headers.push(("content-type", "application/json".to_owned()));
        self.body = value.to_string();
        self
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str())
    }
}

/// A text as one segment of a URL's path or one value of its query.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for octet in text.bytes() {
        // RFC 3986 §2.3: unreserved.
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            out.push(char::from(octet));
        } else {
            out.push_str(&format!("%{octet:02X}"));
        }
    }
    out
}

/// What came of a request.
#[derive(Debug, Clone, Copy)]
pub enum RestAnswer<'a> {
    /// The provider answered.
    Answered {
        /// HTTP status.
        status: u16,
        /// Of `Retry-After`, in seconds.
        retry_after_s: Option<u32>,
        /// The body.
        body: &'a [u8],
    },
    /// Nothing was sent: no name, no connection, no TLS.
    NotSent,
    /// Sent, or perhaps sent, and no answer came.
    TimedOut,
}

/// What a request needs that is not known beforehand.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// Unix time, seconds.
    pub now_s: i64,
    /// A fresh random id, for tokens that need one.
    pub id: Uuid,
}

impl Stamp {
    /// Of this moment; only shells call it.
    pub fn now() -> Self {
        Self { now_s: OffsetDateTime::now_utc().unix_timestamp(), id: Uuid::new_v4() }
    }
}

/// A call to place.
#[derive(Debug, Clone, Copy)]
pub struct Dial<'a> {
    /// Whom: E.164.
    pub to: &'a str,
    /// Our number there.
    pub from: &'a str,
    /// Where its media go, and where news of it go.
    pub plan: MediaPlan<'a>,
    /// Where a provider that takes no document in its API fetches one (Plivo).
    pub document_url: &'a str,
    /// How long it may ring, seconds.
    pub ring_s: u32,
    /// How long it may last, seconds.
    pub limit_s: u32,
    /// Whether to find out what picks up.
    pub machine: MachineDetection,
    /// Options of the deployment, such as Exotel's `app_id` or Asterisk's `trunk`.
    pub options: &'a [(String, String)],
}

impl<'a> Dial<'a> {
    /// An option of the deployment; `None` when it is absent or empty.
    pub fn option(&self, name: &str) -> Option<&'a str> {
        let found = self.options.iter().find(|(key, value)| key == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }
}

/// Whether the provider listens for a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MachineDetection {
    /// No.
    #[default]
    Off,
    /// Beside the conversation: its word comes by a callback.
    Detect,
    /// The same, up to the end of a machine's greeting.
    UntilBeep,
}

/// What came of a dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialOutcome {
    /// The provider dials, and calls it this.
    Accepted {
        /// The provider's id.
        provider_call_id: String,
    },
    /// An earlier request with the same id has dialled it (Asterisk).
    AlreadyPlaced,
    /// Nothing was dialled.
    Refused(Refused),
    /// It may have been dialled. Status callbacks will say; a second dial would ring twice.
    Unknown {
        /// What is known.
        detail: String,
    },
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// In our words.
    pub class: FailureClass,
    /// HTTP status; 0: there was no answer.
    pub http_status: u16,
    /// The provider's own code; 0 or empty: none.
    pub code: String,
    /// The provider's words.
    pub detail: String,
    /// When to come again, if the provider said so, seconds.
    pub retry_after_s: Option<u32>,
}

impl Refused {
    /// Whether the same request may succeed later. Nothing was dialled in any case.
    pub const fn is_retryable(&self) -> bool {
        matches!(self.class, FailureClass::RateLimited | FailureClass::Provider | FailureClass::Unreachable)
    }
}

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// The number cannot be dialled.
    InvalidNumber,
    /// The credential is wrong.
    Auth,
    /// The account may not call there, or not from this number.
    Forbidden,
    /// The account has no money.
    Payment,
    /// Too many calls a second.
    RateLimited,
    /// The provider is out of order.
    Provider,
    /// The provider was not reached.
    Unreachable,
    /// There is no such call any more.
    Gone,
    /// We asked for something wrong.
    Request,
}

impl FailureClass {
    /// As records and metrics have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::InvalidNumber => "invalid_number",
            Self::Auth => "auth",
            Self::Forbidden => "forbidden",
            Self::Payment => "payment",
            Self::RateLimited => "rate_limited",
            Self::Provider => "provider",
            Self::Unreachable => "unreachable",
            Self::Gone => "gone",
            Self::Request => "request",
        }
    }
}

/// A provider's error as its body says it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorBody {
    /// Its own code.
    pub code: String,
    /// Its own words.
    pub detail: String,
    /// What the code means, where the provider's documentation says.
    pub class: Option<FailureClass>,
    /// Whether it bears a mark that only the provider's API writes. A gateway before it may answer in JSON too, and with a
    /// message, but it does not know what became of the request.
    pub is_own: bool,
}

/// How a request that makes a call ended. `id` finds the call's id in a 2xx, `error` the code and text in the rest.
pub fn dialled(
    answer: &RestAnswer<'_>,
    id: impl FnOnce(&Json) -> Option<String>,
    error: impl FnOnce(&Json) -> Option<ErrorBody>,
) -> DialOutcome {
    let (status, retry_after_s, body) = match *answer {
        RestAnswer::Answered { status, retry_after_s, body } => (status, retry_after_s, body),
        RestAnswer::NotSent => return DialOutcome::Refused(not_sent()),
        RestAnswer::TimedOut => {
            return DialOutcome::Unknown { detail: "the provider did not answer in time".to_owned() };
        }
    };
    let json: Option<Json> = serde_json::from_slice(body).ok();
    if (200..300).contains(&status) {
        return match json.as_ref().and_then(id).filter(|id| !id.is_empty()) {
            Some(id) => DialOutcome::Accepted { provider_call_id: shown(&id) },
            None => DialOutcome::Unknown { detail: format!("{status} without an id of the call") },
        };
    }
    let told = json.as_ref().and_then(error);
    if is_doubtful(status, told.as_ref()) || status < 400 {
        return DialOutcome::Unknown { detail: format!("{status} from the provider or a gateway") };
    }
    DialOutcome::Refused(refused(status, retry_after_s, told.unwrap_or_default()))
}

/// Whether the request may have been obeyed all the same. A gateway in front of the provider speaks for itself: what is
/// behind it may have gone on. So may a 5xx without the provider's own mark, but for 503, which is said before anything is
/// done.
fn is_doubtful(status: u16, told: Option<&ErrorBody>) -> bool {
    let is_own = told.is_some_and(|told| told.is_own);
    matches!(status, 408 | 502 | 504) || (status >= 500 && status != 503 && !is_own)
}

fn not_sent() -> Refused {
    Refused {
        class: FailureClass::Unreachable,
        http_status: 0,
        code: String::new(),
        detail: "the provider was not reached".to_owned(),
        retry_after_s: None,
    }
}

/// A status of 4xx or 5xx with what the body said.
pub fn refused(status: u16, retry_after_s: Option<u32>, told: ErrorBody) -> Refused {
    let class = told.class.unwrap_or(match status {
        401 => FailureClass::Auth,
        402 => FailureClass::Payment,
        403 => FailureClass::Forbidden,
        404 | 410 => FailureClass::Gone,
        429 => FailureClass::RateLimited,
        500.. => FailureClass::Provider,
        _ => FailureClass::Request,
    });
    Refused {
        class,
        http_status: status,
        code: shown(&told.code),
        detail: shown(&told.detail),
        retry_after_s,
    }
}

/// What is wanted of a live call.
#[derive(Debug, Clone, Copy)]
pub enum Control<'a> {
    /// Take it, with its media there: for providers whose webhook wants no document.
    Answer(&'a MediaPlan<'a>),
    /// Do not take it.
    Reject,
    /// End it.
    HangUp,
    /// Put the caller through.
    Transfer(Transfer<'a>),
    /// Lead its media to another place: after an engine's death.
    Redirect {
        /// The place.
        plan: &'a MediaPlan<'a>,
        /// Where a provider that fetches its document finds it.
        document_url: &'a str,
    },
    /// Press keys towards the other side: `0-9 * #`, and `w` for half a second.
    Dtmf(&'a str),
}

/// Where to put a caller through.
#[derive(Debug, Clone, Copy)]
pub struct Transfer<'a> {
    /// Whom.
    pub to: &'a str,
    /// Our number there.
    pub from: &'a str,
    /// How long it may ring, seconds.
    pub ring_s: u32,
    /// Where the provider tells us how it ended; empty: nowhere.
    pub result_url: &'a str,
    /// Where a provider that fetches its document finds it.
    pub document_url: &'a str,
}

/// The provider has no such thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{provider} cannot {what}: {instead}")]
pub struct Unsupported {
    /// Which provider.
    pub provider: &'static str,
    /// What was wanted.
    pub what: &'static str,
    /// What to do.
    pub instead: &'static str,
}

/// What came of a control request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlOutcome {
    /// Done.
    Done,
    /// The call is over already: for a hang-up as good as done.
    Gone,
    /// Not done.
    Refused(Refused),
    /// Perhaps done; for a hang-up: say it again.
    Unknown,
}

/// How a control request ended. `error` finds code and text in a body.
pub fn controlled(answer: &RestAnswer<'_>, error: impl FnOnce(&Json) -> Option<ErrorBody>) -> ControlOutcome {
    match *answer {
        RestAnswer::Answered { status: 200..=299, .. } => ControlOutcome::Done,
        RestAnswer::Answered { status, retry_after_s, body } => {
            let told = serde_json::from_slice(body).ok().as_ref().and_then(error);
            if is_doubtful(status, told.as_ref()) {
                return ControlOutcome::Unknown;
            }
            let refused = refused(status, retry_after_s, told.unwrap_or_default());
            if refused.class == FailureClass::Gone {
                ControlOutcome::Gone
            } else {
                ControlOutcome::Refused(refused)
            }
        }
        RestAnswer::NotSent => ControlOutcome::Refused(not_sent()),
        RestAnswer::TimedOut => ControlOutcome::Unknown,
    }
}

/// What the provider says when it is asked about a call whose callbacks have stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// Where it is.
    Found(StatusEvent),
    /// It knows no such call.
    Gone,
    /// It did not say: ask again later.
    Unknown,
}

/// How a lookup ended. `event` reads a 2xx.
pub fn looked_up(answer: &RestAnswer<'_>, event: impl FnOnce(&Json) -> Option<StatusEvent>) -> Lookup {
    match *answer {
        RestAnswer::Answered { status: 200..=299, body, .. } => {
            let found = serde_json::from_slice(body).ok().as_ref().and_then(event);
            found.map_or(Lookup::Unknown, Lookup::Found)
        }
        RestAnswer::Answered { status: 404 | 410, .. } => Lookup::Gone,
        _ => Lookup::Unknown,
    }
}

/// A text inside JSON, by the path to it.
pub fn at<'a>(json: &'a Json, path: &[&str]) -> Option<&'a str> {
    path.iter().try_fold(json, |json, key| json.get(key))?.as_str()
}

/// A text or a number inside JSON as a text.
pub fn plain_at(json: &Json, path: &[&str]) -> Option<String> {
    match path.iter().try_fold(json, |json, key| json.get(key))? {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, body: &str) -> DialOutcome {
        let answer = RestAnswer::Answered { status, retry_after_s: Some(3), body: body.as_bytes() };
        dialled(&answer, |json| plain_at(json, &["sid"]), told)
    }

    /// Codes of this provider have five digits.
    fn told(json: &Json) -> Option<ErrorBody> {
        let code = plain_at(json, &["code"])?;
        Some(ErrorBody { is_own: code.len() == 5, code, ..ErrorBody::default() })
    }

    /// C27: what may have dialled is never retried.
    #[test]
    fn only_what_was_certainly_not_dialled_is_retryable() {
        let refused = |outcome| match outcome {
            DialOutcome::Refused(refused) => (refused.class, refused.is_retryable()),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(answered(429, "{}")), (FailureClass::RateLimited, true));
        assert_eq!(refused(answered(503, "<html>")), (FailureClass::Provider, true));
        assert_eq!(refused(answered(500, r#"{"code":20500}"#)), (FailureClass::Provider, true));
        assert_eq!(refused(answered(400, r#"{"code":1}"#)), (FailureClass::Request, false));
        assert_eq!(refused(answered(401, "")), (FailureClass::Auth, false));
        let unsent = dialled(&RestAnswer::NotSent, |_| None, |_| None);
        assert_eq!(refused(unsent), (FailureClass::Unreachable, true));
        for doubtful in [
            answered(502, "<html>"),
            answered(504, r#"{"code":1}"#),
            answered(504, r#"{"code":20500}"#),
            answered(408, r#"{"code":20500}"#),
            answered(500, "oops"),
            // A gateway's own JSON.
            answered(500, r#"{"code":500,"message":"Internal Server Error"}"#),
            answered(520, r#"{"code":520}"#),
            answered(201, "{}"),
            answered(302, ""),
        ] {
            assert!(matches!(doubtful, DialOutcome::Unknown { .. }), "{doubtful:?}");
        }
        let late = dialled(&RestAnswer::TimedOut, |_| None, |_| None);
        assert!(matches!(late, DialOutcome::Unknown { .. }));
    }

    #[test]
    fn call_that_is_gone_is_as_good_as_hung_up() {
        let answer = |status| RestAnswer::Answered { status, retry_after_s: None, body: b"" };
        assert_eq!(controlled(&answer(204), |_| None), ControlOutcome::Done);
        assert_eq!(controlled(&answer(404), |_| None), ControlOutcome::Gone);
        assert!(matches!(controlled(&answer(401), |_| None), ControlOutcome::Refused(_)));
        assert_eq!(controlled(&RestAnswer::TimedOut, |_| None), ControlOutcome::Unknown);
    }

    /// A gateway does not know whether a call was hung up, or put through.
    #[test]
    fn what_a_gateway_says_of_a_live_call_is_unknown() {
        let outcome = |status: u16, body: &str| {
            controlled(&RestAnswer::Answered { status, retry_after_s: None, body: body.as_bytes() }, told)
        };
        for (status, body) in [
            (408, r#"{"code":20408}"#),
            (502, "<html>"),
            (504, r#"{"code":20504}"#),
            (500, "oops"),
            (500, r#"{"code":500}"#),
            (599, "{}"),
        ] {
            assert_eq!(outcome(status, body), ControlOutcome::Unknown, "{status} {body}");
        }
        for (status, body) in [(500, r#"{"code":20500}"#), (503, "<html>"), (429, "{}"), (400, "{}")] {
            assert!(matches!(outcome(status, body), ControlOutcome::Refused(_)), "{status} {body}");
        }
    }

    #[test]
    fn debug_shows_neither_secret_nor_claim() {
        let request =
            RestRequest::new(Method::Post, "https://h/p?api_key=hunter2".into(), "Basic hunter2".into())
                .form([("Twiml", "hunter2")]);
        let shown = format!("{request:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("https://h/p"), "{shown}");
    }

    #[test]
    fn path_segments_are_escaped() {
        assert_eq!(escaped("+1 415/../x"), "%2B1%20415%2F..%2Fx");
    }
}
