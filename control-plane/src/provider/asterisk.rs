//! Asterisk: a dialplan that asks for a UUID, and ARI.
//!
//! ```text
//!   webhook   CURL() of a dialplan: ?from=&to=&channel_id=      proved by an API key, or by the credential's password
//!   answer    the context's UUID and nothing else: AudioSocket(UUID,ENGINE:9093)
//!   REST      ARI: query parameters, HTTP Basic; the channel's id is ours, so one that lives is not dialled again
//!   events    ARI's JSON, or a CURL() of the dialplan's `h` extension
//! ```
//!
//! `CURL()` gives the dialplan a body whatever the status is: a refusal has none, so that the dialplan sees an empty UUID.
//!
//! ARI can end any channel. Everything else it does only to a channel that is in Stasis, and says 409 of one in the
//! dialplan: without an `app` the dialplan has to do it. Whom to dial comes from callers of our API, and in a transfer from a
//! model's words: it is a number or a name, and only the credential says by which technology and trunk it is reached.

use std::sync::Arc;

use axum::http::{HeaderMap, Method as HttpMethod, header};
use secrecy::SecretString;
use serde_json::{Value as Json, json};

use super::document::{Decline, Document, MediaPlan};
use super::form::{self, Field, Form, FormError, Kind, Values, secret_keys};
use super::rest::{
    self, Control, ControlOutcome, Dial, DialOutcome, ErrorBody, Lookup, Method, RestAnswer, RestRequest,
    Stamp, Unsupported, at, escaped,
};
use super::status::{AnsweredBy, CallStatus};
use super::webhook::{
    AnswerBy, DocumentRequest, Endpoint, InboundCall, Params, Refusal, StatusEvent, Webhook, WebhookRequest,
    shown,
};
use super::{Account, proof};

const NAME: &str = "asterisk";
/// The channel variable that carries our context id into the dialplan.
pub const VARIABLE: &str = "TANDEM_CTX";
/// Names that a dialplan uses for the call itself; the rest are the agent's arguments.
const QUERY_NAMES: &[&str] = &["from", "caller", "callerid", "to", "extension", "dnid", "channel_id", "ctx"];

/// What an Asterisk knows us by, and what we know it by.
pub const FORM: Form = Form {
    provider: NAME,
    title: "Asterisk",
    fields: &[
        Field::text(
            "ari_url",
            "ARI address",
            "https://pbx.example.com:8088/ari",
            "where its HTTP server is, with /ari; without it calls only come in",
        )
        .checked(form::is_base_url),
        Field::text("ari_user", "ARI user", "tandem", "a section of ari.conf with type = user"),
        Field::secret(secret_keys!("ari_password"), "ARI password", "the password in that section"),
        Field::text(
            "webhook_user",
            "Webhook user",
            "pbx",
            "for dialplans that show a password instead of an API key: http://user:password@host/…",
        ),
        Field::secret(secret_keys!("webhook_password"), "Webhook password", "beside the webhook user"),
        Field::of(
            ["endpoint_technology", "endpoint_technology", "endpoint_technology"],
            Kind::Choice(&["PJSIP", "SIP", "IAX2", "DAHDI", "Local"]),
            "Technology",
            "PJSIP",
            "how it reaches its trunk; PJSIP unless said otherwise",
        ),
        Field::text("trunk", "Trunk", "carrier", "the endpoint that calls go out by: PJSIP/NUMBER@TRUNK")
            .checked(form::is_path_word),
        Field::text(
            "app",
            "ARI application",
            "tandem",
            "instead of a context: calls go into Stasis of this name, where ARI can do more than end them",
        )
        .checked(form::is_path_word),
        Field::text("context", "Context", "tandem-out", "of the dialplan, for calls that are answered")
            .checked(form::is_path_word),
        Field::text("extension", "Extension", "s", "in that context").checked(form::is_path_word),
        Field::text("priority", "Priority", "1", "in that extension").checked(form::is_path_word),
        Field::text(
            "caller_id",
            "Caller id",
            "+14155550100",
            "shown to whom we call, when the deployment has no number",
        ),
    ],
};

/// Makes an account of a filled form.
pub fn open(values: &Values) -> Result<Arc<dyn Account>, FormError> {
    let ari = match (values.text("ari_url"), values.text("ari_user"), values.secret("ari_password")) {
        (url, user, None) if url.is_empty() && user.is_empty() => None,
        (url, _, _) if url.is_empty() => {
            return Err(FormError::Missing { field: "ari_url", help: "ARI needs it" });
        }
        (_, user, _) if user.is_empty() => {
            return Err(FormError::Missing { field: "ari_user", help: "ARI needs it" });
        }
        (_, _, None) => return Err(FormError::Missing { field: "ari_password", help: "ARI needs it" }),
        (url, user, Some(password)) => {
            Some(Ari { url, authorization: proof::basic_header(&user, &password).into() })
        }
    };
    let password = match (values.text("webhook_user"), values.secret("webhook_password")) {
        (user, Some(password)) if !user.is_empty() => Some((user, password)),
        (user, None) if user.is_empty() => None,
        (user, _) if user.is_empty() => {
            return Err(FormError::Missing { field: "webhook_user", help: "the password needs it" });
        }
        _ => return Err(FormError::Missing { field: "webhook_password", help: "the user needs it" }),
    };
    Ok(Arc::new(Asterisk {
        ari,
        password,
        technology: values.text_or("endpoint_technology", "PJSIP"),
        trunk: values.text("trunk"),
        app: values.text("app"),
        context: values.text_or("context", "tandem-out"),
        extension: values.text_or("extension", "s"),
        priority: values.text_or("priority", "1"),
        caller_id: values.text("caller_id"),
    }))
}

/// One Asterisk.
#[derive(Debug)]
struct Asterisk {
    ari: Option<Ari>,
    password: Option<(String, SecretString)>,
    technology: String,
    trunk: String,
    app: String,
    context: String,
    extension: String,
    priority: String,
    caller_id: String,
}

#[derive(Debug)]
struct Ari {
    url: String,
    authorization: SecretString,
}

/// The API key that a dialplan shows: `x-api-key`, or the password of HTTP Basic. The shell looks it up and sets
/// [`WebhookRequest::has_api_key`]. A key in the query is none: queries stand in logs.
pub fn api_key(headers: &HeaderMap) -> Option<SecretString> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().ok().filter(|key| !key.is_empty()).map(SecretString::from);
    }
    proof::basic(headers.get(header::AUTHORIZATION)?.to_str().ok()?).map(|(_, password)| password)
}

impl Asterisk {
    fn verify(&self, request: &WebhookRequest<'_>) -> Result<(), Refusal> {
        use secrecy::ExposeSecret;

        let shown = request.header(header::AUTHORIZATION.as_str()).and_then(proof::basic);
        let is_password = match (&self.password, shown) {
            (Some((user, password)), Some((shown_user, shown_password))) => {
                proof::is_same(&user.as_str().into(), &shown_user)
                    & proof::is_same(password, shown_password.expose_secret())
            }
            _ => false,
        };
        if request.has_api_key || is_password { Ok(()) } else { Err(Refusal::ApiKey) }
    }

    fn request(&self, method: Method, path: &str) -> Result<RestRequest, Unsupported> {
        use secrecy::ExposeSecret;

        let ari = self.ari.as_ref().ok_or(Unsupported {
            provider: NAME,
            what: "be asked anything",
            instead: "give the credential its \"ari_url\", \"ari_user\" and \"ari_password\"",
        })?;
        Ok(RestRequest::new(
            method,
            format!("{}{path}", ari.url),
            ari.authorization.expose_secret().to_owned(),
        ))
    }

    /// What ARI does only to a channel that is in Stasis.
    fn stasis(
        &self,
        what: &'static str,
        instead: &'static str,
        method: Method,
        path: &str,
    ) -> Result<RestRequest, Unsupported> {
        if self.app.is_empty() {
            return Err(Unsupported { provider: NAME, what, instead });
        }
        self.request(method, path)
    }
}

/// `PJSIP/+14155550100@carrier`.
fn endpoint(to: &str, technology: &str, trunk: &str) -> Result<String, Unsupported> {
    if !is_dialable(to) {
        return Err(Unsupported {
            provider: NAME,
            what: "dial anything but a number (+ 0-9 * #) or a name of letters",
            instead: "the credential's \"endpoint_technology\" and \"trunk\" say how it is reached",
        });
    }
    Ok(if trunk.is_empty() { format!("{technology}/{to}") } else { format!("{technology}/{to}@{trunk}") })
}

/// Keys of a phone, or a name of letters: nothing that could lead to another context, trunk or technology.
fn is_dialable(to: &str) -> bool {
    let is_number = to.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'*' | b'#'));
    let is_name = to.bytes().all(|b| b.is_ascii_alphabetic());
    !to.is_empty() && (is_number || is_name)
}

impl Account for Asterisk {
    fn webhook(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        request.check_bounds()?;
        self.verify(request)?;
        if request.body.trim_ascii_start().starts_with(b"{") {
            return Ok(ari_event(&request.json()?));
        }
        let mut params = request.query_params()?;
        if request.method == HttpMethod::POST {
            params.0.extend(request.body_params()?.0);
        }
        match request.endpoint {
            Endpoint::Call => inbound(params),
            Endpoint::Event => Ok(Webhook::Status(dialplan_event(&params))),
            Endpoint::Media => Err(Refusal::Malformed("a media connection is not a webhook")),
        }
    }

    fn answer(&self, plan: &MediaPlan<'_>) -> Document {
        let left_out = plan.parameters.iter().map(|(name, _)| name.clone()).collect();
        Document::ok("text/plain", plan.context_id.to_string()).without(left_out)
    }

    fn decline(&self, decline: Decline<'_>) -> Document {
        match decline {
            Decline::Unavailable { retry_after_s } => Document::unavailable(retry_after_s),
            Decline::Busy | Decline::Say(_) => Document::unavailable(5),
        }
    }

    fn dial(&self, dial: &Dial<'_>, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        let option = |name: &str, own: &str| dial.option(name).unwrap_or(own).to_owned();
        let technology = option("endpoint_technology", &self.technology);
        let endpoint = endpoint(dial.to, &technology, &option("trunk", &self.trunk))?;
        let caller_id =
            if dial.from.is_empty() { option("caller_id", &self.caller_id) } else { dial.from.to_owned() };
        let context_id = dial.plan.context_id.to_string();
        let mut query = vec![("endpoint", endpoint), ("timeout", dial.ring_s.to_string())];
        if !caller_id.is_empty() {
            query.push(("callerId", caller_id));
        }
        match option("app", &self.app) {
            app if app.is_empty() => query.extend([
                ("context", option("context", &self.context)),
                ("extension", option("extension", &self.extension)),
                ("priority", option("priority", &self.priority)),
            ]),
            app => query.extend([("app", app), ("appArgs", context_id.clone())]),
        }
        let query: Vec<String> =
            query.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let path = format!("/channels/{context_id}?{}", query.join("&"));
        let variables =
            json!({ "variables": { VARIABLE: context_id, "TANDEM_EVENT_URL": dial.plan.callback_url } });
        Ok(self.request(Method::Post, &path)?.json(&variables))
    }

    fn dialled(&self, answer: &RestAnswer<'_>) -> DialOutcome {
        if matches!(answer, RestAnswer::Answered { status: 409, .. }) {
            return DialOutcome::AlreadyPlaced;
        }
        rest::dialled(answer, |json| at(json, &["id"]).map(str::to_owned), error)
    }

    fn control(&self, call: &str, control: Control<'_>, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        let channel = format!("/channels/{}", escaped(call));
        match control {
            Control::HangUp => self.request(Method::Delete, &format!("{channel}?reason=normal")),
            Control::Reject => self.request(Method::Delete, &format!("{channel}?reason=rejected")),
            Control::Answer(_) => self.stasis(
                "answer a call in the dialplan",
                "put Answer() before AudioSocket()",
                Method::Post,
                &format!("{channel}/answer"),
            ),
            Control::Transfer(transfer) => {
                let endpoint = endpoint(transfer.to, &self.technology, &self.trunk)?;
                self.stasis(
                    "transfer a call in the dialplan",
                    "put a Dial() behind AudioSocket(), or give the credential its \"app\" and calls go into Stasis",
                    Method::Post,
                    &format!("{channel}/redirect?endpoint={}", escaped(&endpoint)),
                )
            }
            Control::Dtmf(digits) => {
                let keys: String = digits.chars().filter(|c| !matches!(c, 'w' | 'W')).collect();
                self.stasis(
                    "press keys in the dialplan",
                    "the engine plays them as tones",
                    Method::Post,
                    &format!("{channel}/dtmf?dtmf={}", escaped(&keys)),
                )
            }
            // The dialplan would need the new UUID: that is one request, and to go on there another.
            Control::Redirect { .. } => Err(Unsupported {
                provider: NAME,
                what: "lead a live call's media elsewhere",
                instead: "let the dialplan ask for a UUID again when AudioSocket() has ended",
            }),
        }
    }

    fn controlled(&self, answer: &RestAnswer<'_>) -> ControlOutcome {
        rest::controlled(answer, error)
    }

    fn lookup(&self, call: &str, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        self.request(Method::Get, &format!("/channels/{}", escaped(call)))
    }

    fn looked_up(&self, answer: &RestAnswer<'_>) -> Lookup {
        rest::looked_up(answer, |json| {
            let provider_call_id = shown(at(json, &["id"])?);
            let word = shown(at(json, &["state"])?);
            Some(StatusEvent {
                event_id: format!("{provider_call_id}:lookup:{word}"),
                provider_call_id,
                status: channel_state(&word),
                word,
                ..StatusEvent::default()
            })
        })
    }

    fn probe(&self, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        self.request(Method::Get, "/asterisk/info?only=system")
    }
}

fn first(params: &Params, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| params.text(name))
}

fn inbound(params: Params) -> Result<Webhook, Refusal> {
    let provider_call_id = first(&params, &["channel_id"]).unwrap_or_default();
    if let Some(context_id) = first(&params, &["ctx"]) {
        return Ok(Webhook::Document(DocumentRequest {
            provider_call_id,
            context_id: Some(context_id),
            answered_by: params.get("amdstatus").and_then(answered_by),
        }));
    }
    Ok(Webhook::Inbound(InboundCall {
        from: first(&params, &["from", "caller", "callerid"]).unwrap_or_else(|| "anonymous".to_owned()),
        to: first(&params, &["to", "extension", "dnid"]).ok_or(Refusal::Missing("to"))?,
        provider_call_id,
        retry_token: None,
        arguments: params.into_arguments(|name| QUERY_NAMES.contains(&name)),
        answer: AnswerBy::Document,
    }))
}

/// What a dialplan tells by
/// `CURL(…?channel_id=${UNIQUEID}&cause=${HANGUPCAUSE}&dialstatus=${DIALSTATUS}&duration=${ANSWEREDTIME})`.
fn dialplan_event(params: &Params) -> StatusEvent {
    let provider_call_id = params.text("channel_id").unwrap_or_default();
    let cause = params.number("cause").and_then(|cause| u8::try_from(cause).ok()).filter(|cause| *cause > 0);
    let dialled = params.text("dialstatus");
    let amd = params.text("amdstatus");
    let status = match (dialled.as_deref().and_then(dial_status), cause) {
        // With a cause the call is over, and it was answered: busy or no answer is what it no longer can be.
        (Some(CallStatus::Answered), Some(cause)) => Some(match cause_status(cause) {
            CallStatus::Busy | CallStatus::NoAnswer | CallStatus::Rejected => CallStatus::Completed,
            status => status,
        }),
        (None, cause) => cause.map(cause_status),
        (status, _) => status,
    };
    let answered_by = amd.as_deref().and_then(answered_by);
    let word = [dialled, amd, cause.map(|cause| format!("cause {cause}"))];
    let word = word.into_iter().flatten().collect::<Vec<_>>().join(" ");
    StatusEvent {
        event_id: format!("{provider_call_id}:{word}"),
        provider_call_id,
        status,
        word,
        q850_cause: cause,
        duration_s: params.number("duration"),
        answered_by,
        context_id: params.text("ctx"),
        ..StatusEvent::default()
    }
}

/// One event of ARI's WebSocket, or of a proxy that posts them.
pub fn ari_event(json: &Json) -> Webhook {
    let kind = at(json, &["type"]).unwrap_or_default();
    let channel = if kind == "Dial" { "peer" } else { "channel" };
    let Some(provider_call_id) = at(json, &[channel, "id"]).map(shown) else {
        return Webhook::Other(shown(kind));
    };
    let number = |name: &str| json.get(name).and_then(Json::as_u64).and_then(|n| u8::try_from(n).ok());
    let (status, word, q850_cause) = match kind {
        "StasisStart" | "ChannelStateChange" | "ChannelCreated" => {
            let word = at(json, &["channel", "state"]).unwrap_or_default();
            (channel_state(word), word.to_owned(), None)
        }
        "Dial" => {
            let word = at(json, &["dialstatus"]).unwrap_or_default();
            // The first event of a dial has no word yet.
            let status = if word.is_empty() { Some(CallStatus::Initiated) } else { dial_status(word) };
            (status, word.to_owned(), None)
        }
        "ChannelDestroyed" => {
            let cause = number("cause").unwrap_or_default();
            (Some(cause_status(cause)), at(json, &["cause_txt"]).unwrap_or_default().to_owned(), Some(cause))
        }
        _ => return Webhook::Other(shown(kind)),
    };
    let word = shown(&word);
    Webhook::Status(StatusEvent {
        event_id: format!("{provider_call_id}:{kind}:{word}"),
        provider_call_id,
        status,
        cause: (kind == "ChannelDestroyed").then(|| word.clone()),
        word,
        q850_cause: q850_cause.filter(|cause| *cause > 0),
        ..StatusEvent::default()
    })
}

/// A channel's state as ARI says it.
pub fn channel_state(word: &str) -> Option<CallStatus> {
    Some(match word {
        "Down" | "Rsrved" | "OffHook" | "Dialing" => CallStatus::Initiated,
        "Ring" | "Ringing" => CallStatus::Ringing,
        "Up" => CallStatus::Answered,
        "Busy" => CallStatus::Busy,
        _ => return None,
    })
}

/// What a Dial says of its other side.
pub fn dial_status(word: &str) -> Option<CallStatus> {
    Some(match word {
        "RINGING" | "PROGRESS" | "PROCEEDING" => CallStatus::Ringing,
        "ANSWER" => CallStatus::Answered,
        "BUSY" => CallStatus::Busy,
        "NOANSWER" => CallStatus::NoAnswer,
        "CANCEL" => CallStatus::Canceled,
        "CONGESTION" | "CHANUNAVAIL" | "INVALIDARGS" => CallStatus::Failed,
        _ => return None,
    })
}

/// The Q.850 cause of a channel that is gone.
pub fn cause_status(cause: u8) -> CallStatus {
    match cause {
        16 => CallStatus::Completed,
        17 => CallStatus::Busy,
        18 | 19 => CallStatus::NoAnswer,
        21 => CallStatus::Rejected,
        _ => CallStatus::Failed,
    }
}

/// `AMDSTATUS` of the application AMD().
pub fn answered_by(word: &str) -> Option<AnsweredBy> {
    Some(match word {
        "HUMAN" => AnsweredBy::Human,
        "MACHINE" => AnsweredBy::Machine,
        "NOTSURE" => AnsweredBy::Unknown,
        _ => return None,
    })
}

/// `{"message":"…"}` or `{"error":"…"}`, and nothing beside it.
fn error(json: &Json) -> Option<ErrorBody> {
    let detail = at(json, &["message"]).or_else(|| at(json, &["error"]))?;
    let is_own = json.as_object().is_some_and(|fields| fields.len() == 1);
    Some(ErrorBody { detail: detail.to_owned(), is_own, ..ErrorBody::default() })
}

#[cfg(test)]
mod tests;
