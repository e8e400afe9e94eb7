//! Twilio: TwiML, X-Twilio-Signature, the 2010-04-01 API.
//!
//! ```text
//!   webhook   form in the body, or in the query of a GET     signed: HMAC of URL + sorted fields, Base64
//!   answer    <Connect><Stream url><Parameter/></Stream>      the query of a stream's URL is dropped by Twilio
//!   REST      form, HTTP Basic, one URL for everything that changes a live call
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::http::{Method as HttpMethod, header};
use ring::hmac;
use secrecy::SecretString;
use serde_json::Value as Json;

use super::Account;
use super::document::{Decline, Document, MediaPlan, Xml, spoken};
use super::form::{self, Field, Form, FormError, Kind, Values, secret_keys};
use super::proof;
use super::rest::{
    self, Control, ControlOutcome, Dial, DialOutcome, ErrorBody, FailureClass, Lookup, MachineDetection,
    Method, RestAnswer, RestRequest, Stamp, Transfer, Unsupported, at, escaped, plain_at,
};
use super::status::{AnsweredBy, CallStatus};
use super::webhook::{
    AnswerBy, DocumentRequest, Endpoint, InboundCall, Params, Refusal, StatusEvent, StreamEvent, StreamKind,
    Transferred, Webhook, WebhookRequest, shown,
};

const NAME: &str = "twilio";
const SIGNATURE: &str = "X-Twilio-Signature";
const SIGNATURE_SETTINGS: &str = "X-Twilio-Webhooks-Signature-Settings";
/// Octets of TwiML in a REST request.
const TWIML_MAX: usize = 4_000;
/// Characters of one `<Parameter>`'s name and value together.
const PARAMETER_MAX: usize = 499;
/// Seconds that a call may ring.
const RING_MAX_S: u32 = 600;
/// Seconds that a call may last: a day, for accounts that have asked for more than four hours.
const LIMIT_MAX_S: u32 = 86_400;

/// What Twilio knows us by.
pub const FORM: Form = Form {
    provider: NAME,
    title: "Twilio",
    fields: &[
        Field::text(
            "account_sid",
            "Account SID",
            "AC0123456789abcdef0123456789abcdef",
            "on the first page of the Twilio console",
        )
        .required()
        .checked(is_account_sid),
        Field::secret(
            secret_keys!("account_token"),
            "Auth token",
            "beside the account SID; it signs webhooks and proves our requests",
        )
        .required(),
        Field::secret(
            secret_keys!("account_token_secondary"),
            "Secondary auth token",
            "only while tokens are being exchanged: webhooks signed by it are taken too",
        ),
        Field::text(
            "api_key_sid",
            "API key SID",
            "SK0123456789abcdef0123456789abcdef",
            "our requests are proved by this key instead of the auth token",
        )
        .checked(form::is_path_word),
        Field::secret(secret_keys!("api_key_secret"), "API key secret", "the secret of that key"),
        Field::of(
            ["shared_keys", "shared_keys", "shared_keys"],
            Kind::SecretTable,
            "Shared keys",
            "webhooks_sharedkey_1",
            "keys of webhooks that are signed by HMAC_SHA256: id, and the variable that holds the secret",
        ),
        Field::text("edge", "Edge", "dublin", "with a region: the entrance to Twilio's network")
            .checked(form::is_path_word),
        Field::text("region", "Region", "ie1", "with an edge: where calls are processed")
            .checked(form::is_path_word),
        form::API_URL,
    ],
};

fn is_account_sid(text: &str) -> Result<(), &'static str> {
    let is_hex = |rest: &str| rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_hexdigit());
    if text.strip_prefix("AC").is_some_and(is_hex) { Ok(()) } else { Err("\"AC\" and 32 hexadecimal digits") }
}

/// Makes an account of a filled form.
pub fn open(values: &Values) -> Result<Arc<dyn Account>, FormError> {
    let (edge, region) = (values.text("edge"), values.text("region"));
    let host = match (edge.as_str(), region.as_str()) {
        ("", "") => "https://api.twilio.com".to_owned(),
        ("", _) => return Err(FormError::Missing { field: "edge", help: "a region needs it" }),
        (_, "") => return Err(FormError::Missing { field: "region", help: "an edge needs it" }),
        (edge, region) => format!("https://api.{edge}.{region}.twilio.com"),
    };
    let token = values.needed_secret("account_token")?;
    let account_sid = values.text("account_sid");
    let key_sid = values.text("api_key_sid");
    let authorization = match (key_sid.as_str(), values.secret("api_key_secret")) {
        ("", None) => proof::basic_header(&account_sid, &token),
        ("", Some(_)) => {
            return Err(FormError::Missing { field: "api_key_sid", help: "the secret needs it" });
        }
        (_, None) => return Err(FormError::Missing { field: "api_key_secret", help: "the key needs it" }),
        (sid, Some(secret)) => proof::basic_header(sid, &secret),
    };
    let tokens = std::iter::once(token).chain(values.secret("account_token_secondary")).collect();
    Ok(Arc::new(Twilio {
        base: format!("{}/2010-04-01/Accounts/{account_sid}", values.text_or("api_url", &host)),
        account_sid,
        tokens,
        shared_keys: values.secrets("shared_keys"),
        authorization: authorization.into(),
    }))
}

/// One Twilio account.
#[derive(Debug)]
struct Twilio {
    account_sid: String,
    /// The auth token, and during an exchange the other one.
    tokens: Vec<SecretString>,
    shared_keys: BTreeMap<String, SecretString>,
    authorization: SecretString,
    base: String,
}

impl Twilio {
    /// Everything but who the account is: signature, and hash of a body that is no form.
    fn verify(&self, request: &WebhookRequest<'_>) -> Result<(), Refusal> {
        let given = request.header(SIGNATURE).ok_or(Refusal::Unsigned(SIGNATURE))?;
        let settings = request.header(SIGNATURE_SETTINGS).unwrap_or_default();
        let (algorithm, secrets) = self.signed_by(settings)?;
        let mut fields = String::new();
        if request.method == HttpMethod::POST && request.is_form() {
            fields = sorted_fields(&request.body_params()?);
        } else if !request.body.is_empty() {
            let query = request.query_params()?;
            let hash = query.get("bodySHA256").ok_or(Refusal::BodyHash("no bodySHA256 in the query"))?;
            if !proof::sha256_matches(request.body, hash) {
                return Err(Refusal::BodyHash("bodySHA256"));
            }
        }
        let is_genuine = |url: &String| {
            let signed = format!("{url}{fields}");
            secrets.iter().any(|secret| proof::hmac_matches(algorithm, secret, signed.as_bytes(), given))
        };
        let mut urls = spellings(&request.url());
        // A URL with a user and a password is signed as it is configured, and asked for without them.
        for user_info in user_infos(request) {
            urls.extend(with_user_info(&request.url(), &user_info).iter().flat_map(|url| spellings(url)));
        }
        if urls.iter().any(is_genuine) { Ok(()) } else { Err(Refusal::Signature(SIGNATURE)) }
    }

    /// Which hash and which secrets, by the settings header.
    fn signed_by(&self, settings: &str) -> Result<(hmac::Algorithm, Vec<&SecretString>), Refusal> {
        let value = |wanted: &str| {
            let pairs = settings.split(',').filter_map(|part| part.split_once('='));
            pairs.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| *name == wanted)
        };
        match value("algorithm").map(|(_, name)| name).filter(|name| !name.is_empty()) {
            None => Ok((hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, self.tokens.iter().collect())),
            Some("HMAC_SHA256") => {
                let id = value("key").map(|(_, id)| id).unwrap_or_default();
                let secret = self.shared_keys.get(id).ok_or_else(|| Refusal::UnknownKey(shown(id)))?;
                Ok((hmac::HMAC_SHA256, vec![secret]))
            }
            Some("HMAC_SHA1") => Ok((hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, self.tokens.iter().collect())),
            Some(other) => Err(Refusal::Algorithm(shown(other))),
        }
    }

    fn request(&self, method: Method, path: &str) -> RestRequest {
        use secrecy::ExposeSecret;
        RestRequest::new(
            method,
            format!("{}{path}", self.base),
            self.authorization.expose_secret().to_owned(),
        )
    }

    fn update(&self, call: &str, pairs: &[(&str, &str)]) -> RestRequest {
        let path = format!("/Calls/{}.json", escaped(call));
        self.request(Method::Post, &path).form(pairs.iter().copied())
    }
}

/// Names in ascending order, their distinct values sorted, nothing between them.
fn sorted_fields(params: &Params) -> String {
    let mut sorted: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, value) in &params.0 {
        sorted.entry(name).or_default().insert(value);
    }
    let mut out = String::new();
    for (name, values) in sorted {
        for value in values {
            out.push_str(name);
            out.push_str(value);
        }
    }
    out
}

/// The user and password that a request shows, as they may stand in a URL: as they are, where they may be, and escaped.
fn user_infos(request: &WebhookRequest<'_>) -> Vec<String> {
    use secrecy::ExposeSecret;

    let shown = request.header(header::AUTHORIZATION.as_str()).and_then(proof::basic);
    let Some((user, password)) = shown else { return Vec::new() };
    let password = password.expose_secret();
    // RFC 3986 §3.2.1. Nothing else: a slash in it would make one URL look like another that was signed.
    let is_plain =
        |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&b));
    let mut found = Vec::new();
    if is_plain(&user) && is_plain(password) {
        found.push(format!("{user}:{password}"));
    }
    let escaped = format!("{}:{}", escaped(&user), escaped(password));
    if !found.contains(&escaped) {
        found.push(escaped);
    }
    found
}

/// A URL with this user and password; `None` when it has some already.
fn with_user_info(url: &str, user_info: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
    (!authority.contains('@')).then(|| format!("{scheme}://{user_info}@{rest}"))
}

/// A URL as Twilio's machines may have spelt it when they signed it: with a port or without one, and with a quote in the
/// query escaped.
fn spellings(url: &str) -> Vec<String> {
    let mut found = vec![url.to_owned()];
    let mut add = |text: String| {
        if !found.contains(&text) {
            found.push(text);
        }
    };
    if let Some((scheme, rest)) = url.split_once("://") {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (format!("{user}@"), place),
            None => (String::new(), authority),
        };
        // An IPv6 address has colons of its own, inside brackets.
        let port_at = place.rfind(':').filter(|at| place.rfind(']').is_none_or(|bracket| bracket < *at));
        match port_at {
            Some(at) => add(format!("{scheme}://{user}{}{path}", &place[..at])),
            None => {
                let port = if matches!(scheme, "https" | "wss") { 443 } else { 80 };
                add(format!("{scheme}://{user}{place}:{port}{path}"));
            }
        }
    }
    for text in found.clone() {
        if let Some((before, query)) = text.split_once('?')
            && query.contains('\'')
        {
            found.push(format!("{before}?{}", query.replace('\'', "%27")));
        }
    }
    found
}

impl Account for Twilio {
    fn webhook(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        request.check_bounds()?;
        self.verify(request)?;
        if request.method == HttpMethod::POST && !request.is_form() {
            return Ok(Webhook::Other("a body that is no form".to_owned()));
        }
        let params = request.params()?;
        if params.needed("AccountSid")? != self.account_sid {
            return Err(Refusal::Account("AccountSid"));
        }
        read(request, &params)
    }

    fn upgrade(&self, request: &WebhookRequest<'_>) -> Result<(), Refusal> {
        request.check_bounds()?;
        self.verify(request)
    }

    fn answer(&self, plan: &MediaPlan<'_>) -> Document {
        let (body, left_out) = connect(plan);
        Document::ok("text/xml", body).without(left_out)
    }

    fn decline(&self, decline: Decline<'_>) -> Document {
        decline_twiml(decline)
    }

    fn transfer(&self, transfer: &Transfer<'_>) -> Option<Document> {
        Some(Document::ok("text/xml", dial_twiml(transfer)))
    }

    fn dial(&self, dial: &Dial<'_>, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        let (twiml, _) = connect(&dial.plan);
        let ring = dial.ring_s.clamp(1, RING_MAX_S).to_string();
        let limit = dial.limit_s.clamp(1, LIMIT_MAX_S).to_string();
        let mut form = vec![
            ("To", dial.to),
            ("From", dial.from),
            ("Twiml", twiml.as_str()),
            ("StatusCallback", dial.plan.callback_url),
            ("StatusCallbackMethod", "POST"),
            ("StatusCallbackEvent", "initiated"),
            ("StatusCallbackEvent", "ringing"),
            ("StatusCallbackEvent", "answered"),
            ("StatusCallbackEvent", "completed"),
            ("Timeout", &ring),
            ("TimeLimit", &limit),
        ];
        let detection = match dial.machine {
            MachineDetection::Off => None,
            MachineDetection::Detect => Some("Enable"),
            MachineDetection::UntilBeep => Some("DetectMessageEnd"),
        };
        if let Some(detection) = detection {
            form.extend([
                ("MachineDetection", detection),
                // Beside the conversation: otherwise the caller waits seconds for our first word.
                ("AsyncAmd", "true"),
                ("AsyncAmdStatusCallback", dial.plan.callback_url),
                ("AsyncAmdStatusCallbackMethod", "POST"),
            ]);
        }
        Ok(self.request(Method::Post, "/Calls.json").form(form))
    }

    fn dialled(&self, answer: &RestAnswer<'_>) -> DialOutcome {
        rest::dialled(answer, |json| plain_at(json, &["sid"]), error)
    }

    fn control(&self, call: &str, control: Control<'_>, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        match control {
            Control::HangUp => Ok(self.update(call, &[("Status", "completed")])),
            Control::Transfer(transfer) => Ok(self.update(call, &[("Twiml", &dial_twiml(&transfer))])),
            Control::Redirect { plan, .. } => Ok(self.update(call, &[("Twiml", &connect(plan).0)])),
            Control::Dtmf(_) => Err(Unsupported {
                provider: NAME,
                what: "press keys without ending the media stream",
                instead: "the engine plays them as tones",
            }),
            Control::Answer(_) | Control::Reject => Err(Unsupported {
                provider: NAME,
                what: "answer or reject by a request",
                instead: "answer its webhook with a document",
            }),
        }
    }

    fn controlled(&self, answer: &RestAnswer<'_>) -> ControlOutcome {
        rest::controlled(answer, error)
    }

    fn lookup(&self, call: &str, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        Ok(self.request(Method::Get, &format!("/Calls/{}.json", escaped(call))))
    }

    fn looked_up(&self, answer: &RestAnswer<'_>) -> Lookup {
        rest::looked_up(answer, |json| {
            let word = shown(at(json, &["status"])?);
            let provider_call_id = shown(at(json, &["sid"])?);
            Some(StatusEvent {
                event_id: format!("{provider_call_id}:lookup:{word}"),
                provider_call_id,
                status: call_status(&word),
                duration_s: plain_at(json, &["duration"]).and_then(|seconds| seconds.parse().ok()),
                answered_by: at(json, &["answered_by"]).and_then(answered_by),
                word,
                ..StatusEvent::default()
            })
        })
    }

    fn probe(&self, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        Ok(self.request(Method::Get, ".json"))
    }
}

fn read(request: &WebhookRequest<'_>, params: &Params) -> Result<Webhook, Refusal> {
    let provider_call_id = params.needed("CallSid")?;
    if let Some(news) = stream_news(&provider_call_id, params) {
        return Ok(news);
    }
    if let Some(word) = params.get("DialCallStatus") {
        return Ok(Webhook::Transferred(Transferred {
            provider_call_id,
            status: call_status(word).unwrap_or(CallStatus::Failed),
            duration_s: params.number("DialCallDuration"),
        }));
    }
    if request.endpoint == Endpoint::Event {
        return Ok(Webhook::Status(status_event(provider_call_id, params)));
    }
    if params.get("Direction").is_some_and(|direction| direction.starts_with("outbound")) {
        let answered_by = params.get("AnsweredBy").and_then(answered_by);
        return Ok(Webhook::Document(DocumentRequest { provider_call_id, context_id: None, answered_by }));
    }
    // A GET has its own parameters beside those of the URL; all of Twilio's begin with a capital.
    let is_twilios = |name: &str| name.starts_with(|c: char| c.is_ascii_uppercase());
    Ok(Webhook::Inbound(InboundCall {
        provider_call_id,
        from: params.needed("From")?,
        to: params.needed("To")?,
        retry_token: request.header("I-Twilio-Idempotency-Token").map(shown),
        arguments: request.query_params()?.into_arguments(is_twilios),
        answer: AnswerBy::Document,
    }))
}

/// News of a stream, in the words of TwiML and TeXML; `None`: the request is about something else.
pub(super) fn stream_news(call: &str, params: &Params) -> Option<Webhook> {
    let word = params.get("StreamEvent")?;
    let Some(kind) = StreamKind::of_word(word) else { return Some(Webhook::Other(shown(word))) };
    Some(Webhook::Stream(StreamEvent {
        provider_call_id: call.to_owned(),
        stream_id: params.text("StreamSid").unwrap_or_default(),
        kind,
        detail: params.text("StreamError"),
    }))
}

fn status_event(provider_call_id: String, params: &Params) -> StatusEvent {
    let word = params.text("CallStatus").unwrap_or_default();
    let sip_status = params.number("SipResponseCode").and_then(|code| u16::try_from(code).ok());
    let status = match (call_status(&word), sip_status) {
        // Twilio has no word of its own for a callee's refusal.
        (Some(CallStatus::Busy | CallStatus::Failed), Some(603 | 607 | 608)) => Some(CallStatus::Rejected),
        (status, _) => status,
    };
    let answered_by = params.get("AnsweredBy").and_then(answered_by);
    let sequence = params.number("SequenceNumber");
    // The callback of asynchronous detection has no count of its own.
    let event_id = match sequence {
        Some(sequence) => format!("{provider_call_id}:{sequence}:{word}"),
        None if answered_by.is_some() => format!("{provider_call_id}:amd"),
        None => format!("{provider_call_id}:{word}"),
    };
    StatusEvent {
        event_id,
        status,
        sequence,
        cause: params.text("ErrorMessage").or_else(|| params.text("ErrorCode")),
        sip_status,
        // `Duration` is in minutes, as billed.
        duration_s: params.number("CallDuration"),
        answered_by,
        word,
        provider_call_id,
        ..StatusEvent::default()
    }
}

/// Twilio's words for where a call is.
pub fn call_status(word: &str) -> Option<CallStatus> {
    Some(match word {
        "queued" => CallStatus::Queued,
        "initiated" => CallStatus::Initiated,
        "ringing" => CallStatus::Ringing,
        "in-progress" | "answered" => CallStatus::Answered,
        "completed" => CallStatus::Completed,
        "busy" => CallStatus::Busy,
        "no-answer" => CallStatus::NoAnswer,
        "failed" => CallStatus::Failed,
        "canceled" => CallStatus::Canceled,
        _ => return None,
    })
}

/// Twilio's words for what picked up.
pub fn answered_by(word: &str) -> Option<AnsweredBy> {
    Some(match word {
        "human" => AnsweredBy::Human,
        "machine_start" => AnsweredBy::Machine,
        "machine_end_beep" => AnsweredBy::MachineBeep,
        "machine_end_silence" | "machine_end_other" => AnsweredBy::MachineEnd,
        "fax" => AnsweredBy::Fax,
        "unknown" => AnsweredBy::Unknown,
        _ => return None,
    })
}

/// `<Connect><Stream>`, and the parameters that did not fit. Nothing follows it: when the stream ends, so does the call.
fn connect(plan: &MediaPlan<'_>) -> (String, Vec<String>) {
    let mut left_out = Vec::new();
    let mut fitting: Vec<(&str, &str)> = Vec::new();
    let write = |parameters: &[(&str, &str)]| {
        let context_id = plan.context_id.to_string();
        let mut xml = Xml::new();
        let stream = [
            ("url", plan.media_url),
            ("statusCallback", plan.callback_url),
            ("statusCallbackMethod", "POST"),
        ];
        xml.open("Response", &[]).open("Connect", &[]).open("Stream", &stream);
        xml.empty("Parameter", &[("name", "ctx"), ("value", &context_id)]);
        for (name, value) in parameters {
            xml.empty("Parameter", &[("name", name), ("value", value)]);
        }
        xml.close("Stream").close("Connect").close("Response").finish()
    };
    let mut document = write(&fitting);
    for (name, value) in plan.parameters {
        fitting.push((name, value));
        let longer = write(&fitting);
        let length = name.chars().count() + value.chars().count();
        if longer.len() > TWIML_MAX || length > PARAMETER_MAX || name == "ctx" {
            fitting.pop();
            left_out.push(name.clone());
        } else {
            document = longer;
        }
    }
    (document, left_out)
}

/// `<Dial>`: ends the stream, and rings somebody else.
fn dial_twiml(transfer: &Transfer<'_>) -> String {
    let ring = transfer.ring_s.clamp(1, RING_MAX_S).to_string();
    let dial = [("callerId", transfer.from), ("timeout", ring.as_str()), ("action", transfer.result_url)];
    let place = if transfer.to.starts_with("sip:") { "Sip" } else { "Number" };
    let mut xml = Xml::new();
    xml.open("Response", &[]).open("Dial", &dial);
    xml.open(place, &[]).text(transfer.to).close(place);
    xml.close("Dial").close("Response").finish()
}

/// How TwiML and TeXML end a call.
pub(super) fn decline_twiml(decline: Decline<'_>) -> Document {
    let mut xml = Xml::new();
    xml.open("Response", &[]);
    match decline {
        Decline::Unavailable { retry_after_s } => return Document::unavailable(retry_after_s),
        Decline::Busy => xml.empty("Reject", &[("reason", "busy")]),
        Decline::Say(text) => xml.open("Say", &[]).text(&spoken(text)).close("Say").empty("Hangup", &[]),
    };
    Document::ok("text/xml", xml.close("Response").finish())
}

/// `{"code":21211,"message":"…"}`.
fn error(json: &Json) -> Option<ErrorBody> {
    let code = plain_at(json, &["code"])?;
    let class = match code.as_str() {
        "20003" => Some(FailureClass::Auth),
        "20404" => Some(FailureClass::Gone),
        "20429" => Some(FailureClass::RateLimited),
        "21211" | "21217" | "21401" | "21421" | "13224" => Some(FailureClass::InvalidNumber),
        "21210" | "21212" | "21215" | "21216" => Some(FailureClass::Forbidden),
        // The call is not in a state in which it could be changed: it is over.
        "21220" => Some(FailureClass::Gone),
        _ => None,
    };
    // Twilio's have five digits; a gateway repeats its status.
    let is_own = code.len() == 5 && code.bytes().all(|b| b.is_ascii_digit());
    Some(ErrorBody { code, detail: at(json, &["message"]).unwrap_or_default().to_owned(), class, is_own })
}

#[cfg(test)]
mod tests;
