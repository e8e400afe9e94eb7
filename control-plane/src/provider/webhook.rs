//! A provider's request to us, as the shell hands it over, and what it turns out to be.
//!
//! ```text
//!   WebhookRequest ──Account::webhook──▶ signature over raw octets ──▶ parse ──▶ Webhook
//!                                              └─▶ Refusal: status and a reason for the trace
//! ```
//!
//! Nothing is parsed before its signature has been checked, except what the check itself needs. A refusal is 4xx:
//! whatever a stranger sends, it is their mistake and never a 500.

use std::net::IpAddr;

use axum::http::header::{CONTENT_TYPE, HeaderMap};
use axum::http::{Method, StatusCode};

use super::multipart;
use super::status::{AnsweredBy, CallStatus};

/// Octets of a webhook's body; those of providers have a few thousand. More is refused with 413.
pub const BODY_MAX: usize = 64 * 1024;
/// Parameters of a query or a form; Twilio sends some forty. More is refused with 400.
pub const PARAMS_MAX: usize = 256;
/// Characters of a text that goes into records: an id, a number, a cause.
pub const TEXT_MAX: usize = 256;
/// Seconds that a signed time may be off our clock, both ways.
pub const AGE_MAX_S: i64 = 300;

/// Which of our routes a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/telephony/{provider}/call/{assistantId}`: somebody calls.
    Call,
    /// `/v1/telephony/{provider}/event/{eventId}`: news of a call that we know.
    Event,
    /// The upgrade request of a media WebSocket.
    Media,
}

/// One HTTP request, as it came. Its `Debug` shows neither query nor headers' values nor body: passwords, API keys and
/// callers' names stand there. The claim in a media connection's path is not shown either.
#[derive(Clone, Copy)]
pub struct WebhookRequest<'a> {
    /// Our route.
    pub endpoint: Endpoint,
    /// GET or POST.
    pub method: &'a Method,
    /// Scheme, authority and path under which the provider knows us: from `public_url`, never from `Host`.
    pub public_url: &'a str,
    /// What followed `?`, octet for octet; empty: nothing.
    pub query: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body, unparsed.
    pub body: &'a [u8],
    /// Who sent it: the peer, or whom a trusted proxy named.
    pub source: IpAddr,
    /// The shell has found a live API key of the assistant's tenant in it ([`super::asterisk::api_key`]).
    pub has_api_key: bool,
    /// Unix time, seconds.
    pub now_s: i64,
}

impl std::fmt::Debug for WebhookRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (_, place) = self.public_url.split_once("://").unwrap_or(("", self.public_url));
        let mut path = place.find('/').map_or("", |at| &place[at..]);
        if self.endpoint == Endpoint::Media {
            path = path.rfind('/').map_or("", |at| &path[..at]);
        }
        let names: Vec<&str> = self.headers.keys().map(axum::http::HeaderName::as_str).collect();
        let (endpoint, method, octets) = (self.endpoint, self.method, self.body.len());
        write!(f, "WebhookRequest({endpoint:?} {method} {path}, headers {names:?}, {octets} octets, ")?;
        write!(f, "from {}, has_api_key {}, now_s {})", self.source, self.has_api_key, self.now_s)
    }
}

impl<'a> WebhookRequest<'a> {
    /// The URL that the provider has asked for, as far as it is signed.
    pub fn url(&self) -> String {
        if self.query.is_empty() {
            self.public_url.to_owned()
        } else {
            format!("{}?{}", self.public_url, self.query)
        }
    }

    /// A header's first value; `None` when it is absent or not text.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What every provider's requests must keep to, before anything is computed.
    pub fn check_bounds(&self) -> Result<(), Refusal> {
        if self.method != Method::GET && self.method != Method::POST {
            return Err(Refusal::Method { expected: "GET or POST" });
        }
        if self.body.len() > BODY_MAX {
            return Err(Refusal::TooLarge(self.body.len()));
        }
        Ok(())
    }

    /// Whether the body is a form whose fields stand one after the other.
    pub fn is_form(&self) -> bool {
        self.media_type().is_some_and(|kind| kind.eq_ignore_ascii_case("application/x-www-form-urlencoded"))
    }

    fn media_type(&self) -> Option<&'a str> {
        self.headers.get(CONTENT_TYPE)?.to_str().ok()?.split(';').next().map(str::trim)
    }

    /// Parameters of the query.
    pub fn query_params(&self) -> Result<Params, Refusal> {
        Params::of_form(self.query.as_bytes())
    }

    /// Fields of the body: a form of either kind.
    pub fn body_params(&self) -> Result<Params, Refusal> {
        let kind = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match multipart::boundary(kind) {
            Some(boundary) => multipart::fields(self.body, boundary).map(Params),
            None => Params::of_form(self.body),
        }
    }

    /// Where this provider has put its parameters: a GET into the query, a POST into the body.
    pub fn params(&self) -> Result<Params, Refusal> {
        if self.method == Method::GET { self.query_params() } else { self.body_params() }
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<serde_json::Value, Refusal> {
        serde_json::from_slice(self.body).map_err(|_| Refusal::Malformed("the body is not JSON"))
    }
}

/// Names and values in the order in which they came, decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Params(pub Vec<(String, String)>);

impl Params {
    /// Of `application/x-www-form-urlencoded`, which is a query's form too.
    pub fn of_form(octets: &[u8]) -> Result<Self, Refusal> {
        let pairs: Vec<_> =
            form_urlencoded::parse(octets).take(PARAMS_MAX + 1).map(|(k, v)| (k.into(), v.into())).collect();
        if pairs.len() > PARAMS_MAX {
            return Err(Refusal::Malformed("more parameters than any provider sends"));
        }
        Ok(Self(pairs))
    }

    /// Texts, numbers and flags at the top of a JSON object; what is nested stays out.
    pub fn of_json(value: &serde_json::Value) -> Self {
        let Some(object) = value.as_object() else { return Self::default() };
        let plain = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => Some(text.clone()),
            serde_json::Value::Number(number) => Some(number.to_string()),
            serde_json::Value::Bool(flag) => Some(flag.to_string()),
            _ => None,
        };
        let pairs = object.iter().take(PARAMS_MAX);
        Self(pairs.filter_map(|(key, value)| Some((key.clone(), plain(value)?))).collect())
    }

    /// The first value of this name that is not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, value)| key == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    /// The same, whatever the letters' case.
    pub fn get_any_case(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    /// The same as a text for records: bounded and printable.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(shown)
    }

    /// The same as a number.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.get(name)?.trim().parse().ok()
    }

    /// What is needed, or a refusal that names it.
    pub fn needed(&self, name: &'static str) -> Result<String, Refusal> {
        self.text(name).ok_or(Refusal::Missing(name))
    }

    /// The parameters that are the agent's arguments: everything that is not a secret or a name of the provider's.
    pub fn into_arguments(self, is_providers: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        let is_secret = |name: &str| SECRET_NAMES.iter().any(|secret| secret.eq_ignore_ascii_case(name));
        let kept = self.0.into_iter().filter(|(name, _)| !is_secret(name) && !is_providers(name));
        kept.map(|(name, value)| (shown(&name), shown(&value))).take(ARGUMENTS_MAX).collect()
    }
}

/// Arguments of one call; more are left out.
pub const ARGUMENTS_MAX: usize = 32;
/// Query parameters that never become arguments, since people put keys into them.
const SECRET_NAMES: &[&str] =
    &["x-api-key", "api_key", "apikey", "key", "token", "authorization", "password", "secret", "bodySHA256"];

/// A stranger's text as records may hold it: short, and nothing that breaks a line.
pub fn shown(text: &str) -> String {
    text.trim().chars().take(TEXT_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A number with its `+`, for providers that leave it out; anything else as it is.
pub fn with_plus(number: &str) -> String {
    let is_international = (8..=15).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    if is_international && !number.starts_with('0') { format!("+{number}") } else { number.to_owned() }
}

/// A number without its `+`, for providers that want digits.
pub fn without_plus(number: &str) -> &str {
    number.strip_prefix('+').unwrap_or(number)
}

/// What a verified request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Webhook {
    /// Somebody calls, and the answer says where the media go.
    Inbound(InboundCall),
    /// A call that we have placed was picked up, and the provider asks what to do with it.
    Document(DocumentRequest),
    /// News of a call.
    Status(StatusEvent),
    /// News of a call's media connection.
    Stream(StreamEvent),
    /// A transfer is over; the answer says what becomes of the caller.
    Transferred(Transferred),
    /// The provider wants to see that the URL is ours: this is said back.
    Challenge(String),
    /// Somebody writes.
    Messages(Vec<TextMessage>),
    /// Genuine, and nothing that we act on; its name is for the trace.
    Other(String),
}

/// Somebody calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundCall {
    /// The provider's id of the call. The same call announced twice has the same: it gets the same context. Empty: the
    /// provider gives none (an Asterisk whose dialplan sends no `channel_id`), so each announcement is another call, and
    /// nothing may be remembered under this name.
    pub provider_call_id: String,
    /// Who calls: E.164, or what the provider says instead.
    pub from: String,
    /// Which of our numbers.
    pub to: String,
    /// The provider's own mark of a repeated request, where there is one.
    pub retry_token: Option<String>,
    /// Query parameters of the webhook's URL that are arguments of the agent.
    pub arguments: Vec<(String, String)>,
    /// How the provider takes our answer.
    pub answer: AnswerBy,
}

/// Somebody writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextMessage {
    /// The provider's id of it: the same for a repetition.
    pub id: String,
    /// Who writes.
    pub from: String,
    /// To which of our numbers.
    pub to: String,
    /// What; `None`: something else than text.
    pub text: Option<String>,
}

/// How the provider takes our answer to an inbound call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerBy {
    /// In the HTTP response: [`super::Account::answer`].
    Document,
    /// By a request of ours, [`super::Control::Answer`]; the HTTP response is empty.
    Rest,
}

/// The provider asks what to do with a call of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentRequest {
    /// The provider's id of the call.
    pub provider_call_id: String,
    /// Our context id, where the provider carries it; else the route says which call it is.
    pub context_id: Option<String>,
    /// What picked up, where the provider has listened.
    pub answered_by: Option<AnsweredBy>,
}

/// News of a call. What the provider did not say is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatusEvent {
    /// The provider's id of the call (for Vonage: of the leg). Empty: it gives none, and only the route says which call it
    /// is.
    pub provider_call_id: String,
    /// What the provider called it when we placed it, when that is another id (Plivo).
    pub request_id: Option<String>,
    /// The same for every repetition of this event. Of one call: where the provider names no call, those of two calls may
    /// be the same.
    pub event_id: String,
    /// In our words; `None`: it is about something else, such as who picked up.
    pub status: Option<CallStatus>,
    /// The provider's word.
    pub word: String,
    /// The provider's own count, for ordering.
    pub sequence: Option<u32>,
    /// Why it ended, in the provider's words.
    pub cause: Option<String>,
    /// SIP status of the carrier's answer.
    pub sip_status: Option<u16>,
    /// Q.850 cause.
    pub q850_cause: Option<u8>,
    /// Seconds from answer to end.
    pub duration_s: Option<u32>,
    /// What picked up.
    pub answered_by: Option<AnsweredBy>,
    /// Our context id, where the provider carries it.
    pub context_id: Option<String>,
}

/// News of a media connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEvent {
    /// The provider's id of the call (for Vonage: of the conversation, which its legs share).
    pub provider_call_id: String,
    /// The provider's id of the connection; empty where there is none.
    pub stream_id: String,
    /// What happened to it.
    pub kind: StreamKind,
    /// Why, in the provider's words.
    pub detail: Option<String>,
}

/// What happened to a media connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// The provider has opened it.
    Started,
    /// It is closed.
    Stopped,
    /// It could not be opened, or broke.
    Failed,
}

impl StreamKind {
    /// By the end of the provider's word: `stream-started`, `streaming.started` and `start` are the same news.
    pub fn of_word(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        if word.ends_with("error") || word.ends_with("failed") {
            Some(Self::Failed)
        } else if word.contains("start") {
            Some(Self::Started)
        } else if word.contains("stop") || word.ends_with("ended") {
            Some(Self::Stopped)
        } else {
            None
        }
    }
}

/// A transfer is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transferred {
    /// The provider's id of the caller's call (for Vonage: of the conversation, which its legs share).
    pub provider_call_id: String,
    /// What became of the other leg.
    pub status: CallStatus,
    /// Seconds that it lasted.
    pub duration_s: Option<u32>,
}

/// Why a request is not taken. The text is for the trace and holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to check.
    #[error("the request has no {0}: is it the provider's?")]
    Unsigned(&'static str),
    /// Signed with another key, over another URL or over other octets.
    #[error(
        "{0} does not match: the credential's secret is another, public_url is not the URL that the provider calls, or \
         the request was changed on its way"
    )]
    Signature(&'static str),
    /// The body is not the one that was signed.
    #[error("the body is not the one that was signed ({0})")]
    BodyHash(&'static str),
    /// A hash that is none of ours.
    #[error("signed by {0}, which is not known here")]
    Algorithm(String),
    /// A key that the credential does not have.
    #[error("signed with the shared key {0}, which the credential does not have: add it to \"shared_keys\"")]
    UnknownKey(String),
    /// Old, or from the future.
    #[error(
        "signed {0} s away from our clock, more than {AGE_MAX_S} s: an old request, or a clock that is wrong"
    )]
    Age(i64),
    /// Genuine, but somebody else's.
    #[error("it is signed, but {0} is not the credential's")]
    Account(&'static str),
    /// From an address that is not allowed, without a password that is right.
    #[error("{0} is not among \"allow\" of the credential, and no right password was shown")]
    Source(IpAddr),
    /// The credential has nothing that requests could be checked by.
    #[error("the credential has no {0}, so no webhook can be checked")]
    Uncheckable(&'static str),
    /// Nothing says who is asking.
    #[error("neither an API key nor the credential's webhook password was shown, or it is wrong")]
    ApiKey,
    /// There is no such assistant, or it has no credential of this provider.
    #[error("there is no such assistant here")]
    UnknownAssistant,
    /// Neither GET nor POST, or one whose parameters are not signed.
    #[error("the method must be {expected}: set it so at the provider")]
    Method {
        /// What works.
        expected: &'static str,
    },
    /// Signed, and yet not what it should be.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The same, for something that is not there.
    #[error("malformed: it has no {0}")]
    Missing(&'static str),
    /// More octets than [`BODY_MAX`].
    #[error("a body of {0} octets, more than {BODY_MAX}")]
    TooLarge(usize),
}

impl Refusal {
    /// What the provider is told; never a 500.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Unsigned(_)
            | Self::Signature(_)
            | Self::BodyHash(_)
            | Self::Algorithm(_)
            | Self::UnknownKey(_)
            | Self::Age(_)
            | Self::Account(_)
            | Self::Source(_)
            | Self::Uncheckable(_)
            | Self::ApiKey => StatusCode::FORBIDDEN,
            Self::UnknownAssistant => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Malformed(_) | Self::Missing(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_what_is_neither_the_providers_nor_a_secret() {
        let params =
            Params::of_form(b"name=ann%20lee&X-API-Key=hunter2&From=%2B1&bodySHA256=00&n=1").unwrap();
        let arguments = params.into_arguments(|name| name == "From");
        assert_eq!(arguments, [("name".into(), "ann lee".into()), ("n".into(), "1".into())]);
    }

    #[test]
    fn numbers_get_their_plus_and_other_names_none() {
        for (given, want) in [
            ("14155550100", "+14155550100"),
            ("+14155550100", "+14155550100"),
            ("anonymous", "anonymous"),
            ("08047112233", "08047112233"),
            ("12345", "12345"),
        ] {
            assert_eq!(with_plus(given), want);
        }
    }

    #[test]
    fn refusals_are_the_senders_mistake() {
        for refusal in [Refusal::Age(400), Refusal::Signature("X-Twilio-Signature"), Refusal::ApiKey] {
            assert_eq!(refusal.status(), 403);
        }
        assert_eq!(Refusal::UnknownAssistant.status(), 404);
        assert_eq!(Refusal::Missing("CallSid").status(), 400);
        assert_eq!(Refusal::TooLarge(1 << 20).status(), 413);
    }

    #[test]
    fn debug_of_a_request_shows_no_secret_and_no_claim() {
        let mut headers = HeaderMap::new();
        for name in ["authorization", "x-api-key"] {
            headers.insert(name, "hunter2".parse().unwrap());
        }
        let shown = |endpoint| {
            let request = WebhookRequest {
                endpoint,
                method: &Method::POST,
                public_url: "https://u:hunter2@h.example.test/v1/media/twilio/claim-1",
                query: "password=hunter2",
                headers: &headers,
                body: b"hunter2",
                source: IpAddr::from([192, 0, 2, 1]),
                has_api_key: false,
                now_s: 0,
            };
            format!("{request:?}")
        };
        for endpoint in [Endpoint::Call, Endpoint::Event, Endpoint::Media] {
            assert!(!shown(endpoint).contains("hunter2"), "{}", shown(endpoint));
        }
        let media = shown(Endpoint::Media);
        assert!(media.contains("/v1/media/twilio") && !media.contains("claim-1"), "{media}");
        assert!(media.contains("x-api-key") && media.contains("7 octets"), "{media}");
        assert!(shown(Endpoint::Call).contains("/v1/media/twilio/claim-1"));
    }

    #[test]
    fn parameters_are_bounded() {
        let many = "a=1&".repeat(PARAMS_MAX + 1);
        assert!(Params::of_form(many.as_bytes()).is_err());
        assert_eq!(shown(&format!("a\n{}", "x".repeat(1_000))).chars().count(), TEXT_MAX);
    }
}
