//! Exotel (AgentStream): a Voicebot applet that asks for its socket, the v1 API.
//!
//! ```text
//!   webhook   GET of an applet: query; status callbacks: a form of either kind     not signed: password or address
//!   answer    {"url":"wss://…?sample-rate=8000&name=value"}
//!   REST      form, HTTP Basic; hang-up is closing the socket
//! ```
//!
//! Names arrive in the letters' case of the applet's mood, so they are matched in any case. The socket proves itself by the
//! claim in its path: a password in its URL would stand in Exotel's logs.

use std::sync::Arc;

use axum::http::{Method as HttpMethod, header};
use ipnet::IpNet;
use secrecy::SecretString;
use serde_json::{Value as Json, json};

use super::document::{Decline, Document, MediaPlan};
use super::form::{self, Field, Form, FormError, Kind, Values, secret_keys};
use super::rest::{
    self, Control, ControlOutcome, Dial, DialOutcome, ErrorBody, Lookup, Method, RestAnswer, RestRequest,
    Stamp, Transfer, Unsupported, at, escaped, plain_at,
};
use super::status::CallStatus;
use super::webhook::{
    AnswerBy, DocumentRequest, Endpoint, InboundCall, Params, Refusal, StatusEvent, StreamEvent, StreamKind,
    Webhook, WebhookRequest, shown,
};
use super::{Account, proof};

const NAME: &str = "exotel";
/// Parameters of a stream's URL beside the sample rate, of Exotel's three.
const PARAMETERS_MAX: usize = 2;
/// Characters of all of them.
const PARAMETERS_LENGTH_MAX: usize = 256;
/// Characters of a stream's URL in a REST request, its query included.
const STREAM_URL_MAX: usize = 599;
/// Seconds that a call may last.
const LIMIT_MAX_S: u32 = 14_400;
/// Seconds that a call may ring. No limit is published; no carrier rings for longer.
const RING_MAX_S: u32 = 600;
/// Names that Exotel puts into a query; compared in any case.
const QUERY_NAMES: &[&str] = &[
    "CallSid",
    "CallFrom",
    "CallTo",
    "Direction",
    "Created",
    "DialCallDuration",
    "StartTime",
    "EndTime",
    "CallType",
    "CallStatus",
    "DialWhomNumber",
    "CustomField",
    "flow_id",
    "tenant_id",
    "From",
    "To",
    "CurrentTime",
    "DialCallStatus",
    "RecordingUrl",
    "digits",
    "ForwardedFrom",
    "ProcessStatus",
    "OutgoingPhoneNumber",
    "LegStatus",
    "Stream",
];

/// What Exotel knows us by, and what we know Exotel by.
pub const FORM: Form = Form {
    provider: NAME,
    title: "Exotel",
    fields: &[
        Field::text("account_sid", "Account SID", "acme1", "in the dashboard's API settings")
            .required()
            .checked(form::is_path_word),
        Field::secret(secret_keys!("client_id"), "API key", "in the dashboard's API settings").required(),
        Field::secret(secret_keys!("client_secret"), "API token", "beside the API key").required(),
        Field::of(
            ["region", "region", "region"],
            Kind::Choice(&["in", "sg"]),
            "Region",
            "in",
            "where the account lives: Mumbai (in) or Singapore (sg); the wrong one answers 401",
        )
        .required(),
        Field::text(
            "webhook_user",
            "Webhook user",
            "tandem",
            "Exotel signs nothing: put this user and password into the URLs that you give it, https://user:password@host/…",
        ),
        Field::secret(secret_keys!("webhook_password"), "Webhook password", "beside the webhook user"),
        Field::of(
            ["allow", "allow", "allow"],
            Kind::Networks,
            "Allowed addresses",
            "203.0.113.0/28",
            "addresses that Exotel calls from: ask its support; requests from there need no password",
        ),
        form::API_URL,
    ],
};

/// Makes an account of a filled form.
pub fn open(values: &Values) -> Result<Arc<dyn Account>, FormError> {
    use secrecy::ExposeSecret;

    let host =
        if values.text("region") == "sg" { "https://api.exotel.com" } else { "https://api.in.exotel.com" };
    let account_sid = values.text("account_sid");
    let key = values.needed_secret("client_id")?;
    let password = match (values.text("webhook_user"), values.secret("webhook_password")) {
        (user, Some(password)) if !user.is_empty() => Some((user, password)),
        (user, None) if user.is_empty() => None,
        (user, _) if user.is_empty() => {
            return Err(FormError::Missing { field: "webhook_user", help: "the password needs it" });
        }
        _ => return Err(FormError::Missing { field: "webhook_password", help: "the user needs it" }),
    };
    Ok(Arc::new(Exotel {
        base: format!("{}/v1/Accounts/{account_sid}", values.text_or("api_url", host)),
        authorization: proof::basic_header(key.expose_secret(), &values.needed_secret("client_secret")?)
            .into(),
        account_sid,
        password,
        allow: values.networks("allow"),
    }))
}

/// One Exotel account.
#[derive(Debug)]
struct Exotel {
    account_sid: String,
    authorization: SecretString,
    /// What its requests to us show.
    password: Option<(String, SecretString)>,
    /// Where its requests come from.
    allow: Vec<IpNet>,
    base: String,
}

impl Exotel {
    /// An allowed address or a right password; either is enough, since some of Exotel's requests carry no password.
    fn verify(&self, request: &WebhookRequest<'_>) -> Result<(), Refusal> {
        if self.password.is_none() && self.allow.is_empty() {
            return Err(Refusal::Uncheckable("\"webhook_user\" and \"webhook_password\", or \"allow\""));
        }
        let source = request.source.to_canonical();
        if self.allow.iter().any(|network| network.contains(&source)) {
            return Ok(());
        }
        let shown = request.header(header::AUTHORIZATION.as_str()).and_then(proof::basic);
        if let (Some((user, password)), Some((shown_user, shown_password))) = (&self.password, shown) {
            use secrecy::ExposeSecret;
            // Both are compared whatever the first comparison says.
            let is_user = proof::is_same(&user.as_str().into(), &shown_user);
            if is_user & proof::is_same(password, shown_password.expose_secret()) {
                return Ok(());
            }
        }
        Err(Refusal::Source(source))
    }

    fn request(&self, method: Method, path: &str) -> RestRequest {
        use secrecy::ExposeSecret;
        RestRequest::new(
            method,
            format!("{}{path}", self.base),
            self.authorization.expose_secret().to_owned(),
        )
    }
}

impl Account for Exotel {
    fn webhook(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        request.check_bounds()?;
        // Status callbacks carry no password: where no address is known, the random id in their URL is all the proof there is.
        if request.endpoint != Endpoint::Event || !self.allow.is_empty() || self.password.is_none() {
            self.verify(request)?;
        }
        let params = if request.method == HttpMethod::GET {
            request.query_params()?
        } else if request.body.trim_ascii_start().starts_with(b"{") {
            Params::of_json(&request.json()?)
        } else {
            request.body_params()?
        };
        match request.endpoint {
            Endpoint::Call => inbound(request, &params),
            Endpoint::Event => event(&params),
            Endpoint::Media => Err(Refusal::Malformed("a media connection is not a webhook")),
        }
    }

    fn answer(&self, plan: &MediaPlan<'_>) -> Document {
        let (url, left_out) = stream_url(plan);
        Document::ok("application/json", json!({ "url": url }).to_string()).without(left_out)
    }

    fn decline(&self, decline: Decline<'_>) -> Document {
        // An applet can be told neither busy nor a sentence: without a URL the flow goes on to its next applet.
        match decline {
            Decline::Unavailable { retry_after_s } => Document::unavailable(retry_after_s),
            Decline::Busy | Decline::Say(_) => Document::unavailable(5),
        }
    }

    fn transfer(&self, transfer: &Transfer<'_>) -> Option<Document> {
        // The answer to a Connect applet that stands behind the Voicebot.
        let ring = transfer.ring_s.clamp(1, RING_MAX_S);
        let numbers = json!({ "destination": { "numbers": [transfer.to] }, "max_ringing_duration": ring });
        Some(Document::ok("application/json", numbers.to_string()))
    }

    fn dial(&self, dial: &Dial<'_>, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        let (stream, _) = stream_url(&dial.plan);
        let limit = dial.limit_s.clamp(1, LIMIT_MAX_S).to_string();
        let ring = dial.ring_s.clamp(1, RING_MAX_S).to_string();
        let context_id = dial.plan.context_id.to_string();
        let mut form = vec![
            // Whom to dial is called From here.
            ("From", dial.to),
            ("CallerId", dial.from),
            ("TimeLimit", limit.as_str()),
            ("CustomField", context_id.as_str()),
            ("StatusCallback", dial.plan.callback_url),
            ("StatusCallbackEvents[]", "answered"),
            ("StatusCallbackEvents[]", "terminal"),
            ("StatusCallbackEvents[]", "ringing"),
        ];
        let flow;
        match dial.option("app_id") {
            // The flow's Voicebot applet asks for its socket by our call webhook, which knows the call by CustomField.
            Some(app_id) => {
                flow = format!(
                    "http://my.exotel.com/{}/exoml/start_voice/{}",
                    escaped(&self.account_sid),
                    escaped(app_id)
                );
                form.extend([("Url", flow.as_str()), ("CallType", "trans"), ("TimeOut", ring.as_str())]);
            }
            None if stream.chars().count() > STREAM_URL_MAX => {
                return Err(Unsupported {
                    provider: NAME,
                    what: "take a stream URL of 600 characters",
                    instead: "shorten engine_ws_public",
                });
            }
            None => form.extend([("StreamUrl", stream.as_str()), ("StreamType", "bidirectional")]),
        }
        Ok(self.request(Method::Post, "/Calls/connect.json").form(form))
    }

    fn dialled(&self, answer: &RestAnswer<'_>) -> DialOutcome {
        rest::dialled(answer, |json| plain_at(json, &["Call", "Sid"]), error)
    }

    fn control(&self, _call: &str, control: Control<'_>, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        let (what, instead) = match control {
            Control::HangUp => ("hang up by a request", "close the media socket"),
            Control::Transfer(_) => (
                "transfer by a request",
                "put a Connect applet behind the Voicebot and close the media socket",
            ),
            Control::Redirect { .. } => ("lead a live call's media elsewhere", "close the media socket"),
            Control::Dtmf(_) => ("press keys", "the engine plays them as tones"),
            Control::Answer(_) | Control::Reject => {
                ("answer by a request", "answer its webhook with a document")
            }
        };
        Err(Unsupported { provider: NAME, what, instead })
    }

    fn controlled(&self, answer: &RestAnswer<'_>) -> ControlOutcome {
        rest::controlled(answer, error)
    }

    fn lookup(&self, call: &str, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        Ok(self.request(Method::Get, &format!("/Calls/{}.json", escaped(call))))
    }

    fn looked_up(&self, answer: &RestAnswer<'_>) -> Lookup {
        rest::looked_up(answer, |json| {
            let provider_call_id = shown(at(json, &["Call", "Sid"])?);
            let word = shown(at(json, &["Call", "Status"])?);
            Some(StatusEvent {
                event_id: format!("{provider_call_id}:lookup:{word}"),
                provider_call_id,
                status: call_status(&word),
                duration_s: plain_at(json, &["Call", "Duration"]).and_then(|seconds| seconds.parse().ok()),
                word,
                ..StatusEvent::default()
            })
        })
    }

    fn probe(&self, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        Ok(self.request(Method::Get, "/Calls.json?PageSize=1"))
    }
}

fn any_case(params: &Params, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| params.get_any_case(name)).map(shown)
}

fn inbound(request: &WebhookRequest<'_>, params: &Params) -> Result<Webhook, Refusal> {
    let provider_call_id = any_case(params, &["CallSid"]).ok_or(Refusal::Missing("CallSid"))?;
    // A Passthru behind the Voicebot is given the same URL: its call has been here already.
    let event_type = any_case(params, &["EventType"]).unwrap_or_default();
    if let Some(stream) = stream_event(&provider_call_id, &event_type, params) {
        return Ok(Webhook::Stream(stream));
    }
    if let Some(context_id) = any_case(params, &["CustomField"]) {
        return Ok(Webhook::Document(DocumentRequest {
            provider_call_id,
            context_id: Some(context_id),
            answered_by: None,
        }));
    }
    let is_exotels =
        |name: &str| QUERY_NAMES.iter().any(|known| known.eq_ignore_ascii_case(name)) || name.contains('[');
    Ok(Webhook::Inbound(InboundCall {
        provider_call_id,
        from: any_case(params, &["CallFrom", "From"]).unwrap_or_else(|| "anonymous".to_owned()),
        to: any_case(params, &["CallTo", "To"]).ok_or(Refusal::Missing("CallTo"))?,
        retry_token: None,
        arguments: request.query_params()?.into_arguments(is_exotels),
        answer: AnswerBy::Document,
    }))
}

fn event(params: &Params) -> Result<Webhook, Refusal> {
    let provider_call_id = any_case(params, &["CallSid"]).ok_or(Refusal::Missing("CallSid"))?;
    let event_type = any_case(params, &["EventType"]).unwrap_or_default();
    if let Some(stream) = stream_event(&provider_call_id, &event_type, params) {
        return Ok(Webhook::Stream(stream));
    }
    let word = any_case(params, &["Status", "CallStatus"]).unwrap_or_default();
    let status = match event_type.as_str() {
        "ringing" => Some(CallStatus::Ringing),
        "answered" => Some(CallStatus::Answered),
        _ => call_status(&word),
    };
    Ok(Webhook::Status(StatusEvent {
        event_id: format!("{provider_call_id}:{event_type}:{word}"),
        provider_call_id,
        status,
        duration_s: any_case(params, &["ConversationDuration"]).and_then(|seconds| seconds.parse().ok()),
        context_id: any_case(params, &["CustomField"]),
        word: if event_type.is_empty() { word } else { format!("{event_type} {word}").trim_end().to_owned() },
        ..StatusEvent::default()
    }))
}

/// What a Passthru applet says of the stream before it: fields such as `Stream[Status]`, one field of JSON, or an event of
/// its own.
fn stream_event(call: &str, event_type: &str, params: &Params) -> Option<StreamEvent> {
    let whole: Json =
        params.get_any_case("Stream").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let field = |name: &str| {
        let flat = params.get_any_case(&format!("Stream[{name}]"));
        flat.or_else(|| at(&whole, &[name])).map(shown)
    };
    let stream_id =
        field("StreamSID").or_else(|| field("StreamSid")).or_else(|| any_case(params, &["StreamSid"]));
    let status = field("Status");
    if stream_id.is_none() && status.is_none() {
        return None;
    }
    let is_wrong =
        |word: &str| word.to_ascii_lowercase().contains("fail") || word.eq_ignore_ascii_case("error");
    let kind = match (&status, event_type) {
        (Some(word), _) if is_wrong(word) => StreamKind::Failed,
        (None, "stream-start") => StreamKind::Started,
        // A Passthru stands behind the Voicebot: when it is asked, the stream is over.
        _ => StreamKind::Stopped,
    };
    let detail = field("DisconnectedBy").map(|who| format!("disconnected by {who}")).or(status);
    Some(StreamEvent {
        provider_call_id: call.to_owned(),
        stream_id: stream_id.unwrap_or_default(),
        kind,
        detail,
    })
}

/// Exotel's words for where a call is.
pub fn call_status(word: &str) -> Option<CallStatus> {
    Some(match word.to_ascii_lowercase().as_str() {
        "queued" => CallStatus::Initiated,
        "ringing" => CallStatus::Ringing,
        "in-progress" => CallStatus::Answered,
        "completed" => CallStatus::Completed,
        "busy" => CallStatus::Busy,
        "no-answer" => CallStatus::NoAnswer,
        "failed" => CallStatus::Failed,
        "canceled" => CallStatus::Canceled,
        _ => return None,
    })
}

/// The socket's URL with its sample rate and what else fits, and the names of what does not.
fn stream_url(plan: &MediaPlan<'_>) -> (String, Vec<String>) {
    let rate = if matches!(plan.sample_rate, 8_000 | 16_000 | 24_000) { plan.sample_rate } else { 8_000 };
    let mut url = format!("{}?sample-rate={rate}", plan.media_url);
    let (mut count, mut length) = (0, 0);
    let mut left_out = Vec::new();
    for (name, value) in plan.parameters {
        let pair = format!("&{}={}", escaped(name), escaped(value));
        let fits = count < PARAMETERS_MAX
            && length + pair.len() <= PARAMETERS_LENGTH_MAX
            && url.len() + pair.len() <= STREAM_URL_MAX
            && name != "sample-rate";
        if fits {
            count += 1;
            length += pair.len();
            url.push_str(&pair);
        } else {
            left_out.push(name.clone());
        }
    }
    (url, left_out)
}

/// `{"RestException":{"Status":400,"Message":"…","Code":34001}}`.
fn error(json: &Json) -> Option<ErrorBody> {
    let exception = json.get("RestException")?;
    Some(ErrorBody {
        code: plain_at(exception, &["Code"]).unwrap_or_default(),
        detail: at(exception, &["Message"]).unwrap_or_default().to_owned(),
        class: None,
        is_own: true,
    })
}

#[cfg(test)]
mod tests;
