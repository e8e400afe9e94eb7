//! Vonage: NCCO, signed webhooks, the Voice API v1.
//!
//! ```text
//!   webhook   query of a GET, or JSON       signed: JWT (HS256) with the hash of the body and its own time
//!   answer    [{"action":"connect","endpoint":[{"type":"websocket",…}]}]
//!   REST      JSON, JWT (RS256) of the application
//! ```
//!
//! A call has two legs with ids of their own: the phone's, by which it is controlled, and the WebSocket's. News of the
//! latter are news of the media, never the end of the call. The token covers a body and not a query: where it can be
//! chosen, the answer URL should be called by POST.
//!
//! Requests go where the credential's `api_url` says. A webhook's `region_url` is not followed, since every node that may
//! have to end the call would need it: an application of another region has its API's address in the credential, such as
//! `https://api-eu-3.vonage.com`.

use std::sync::Arc;

use axum::http::{Method as HttpMethod, header};
use secrecy::SecretString;
use serde_json::{Value as Json, json};

use super::document::{Decline, Document, MediaPlan, spoken};
use super::form::{self, Field, Form, FormError, Values, secret_keys};
use super::jwt::{self, SigningKey, TokenError};
use super::rest::{
    self, Control, ControlOutcome, Dial, DialOutcome, ErrorBody, FailureClass, Lookup, MachineDetection,
    Method, RestAnswer, RestRequest, Stamp, Transfer, Unsupported, at, escaped, plain_at,
};
use super::status::{AnsweredBy, CallStatus};
use super::webhook::{
    AGE_MAX_S, AnswerBy, Endpoint, InboundCall, Params, Refusal, StatusEvent, StreamEvent, StreamKind,
    Transferred, Webhook, WebhookRequest, shown, with_plus, without_plus,
};
use super::{Account, proof};

const NAME: &str = "vonage";
/// Octets of an endpoint's `headers`, as JSON.
const HEADERS_MAX: usize = 512;
/// Seconds that a call may ring.
const RING_MAX_S: u32 = 120;
/// Seconds that a call may last.
const LIMIT_MAX_S: u32 = 86_400;
/// Seconds for which a token of ours is good.
const TOKEN_S: i64 = 900;
/// In the query of the URL to which news of a transfer go: they are worded like those of any leg.
const TRANSFER_LEG: (&str, &str) = ("leg", "transfer");
/// Names that Vonage puts into the query of a GET beside our own.
const QUERY_NAMES: &[&str] = &[
    "to",
    "from",
    "uuid",
    "conversation_uuid",
    "endpoint_type",
    "from_user",
    "region_url",
    "custom_data",
    "timestamp",
    "status",
    "direction",
    "reason",
    "original_request",
];

/// What Vonage knows us by.
pub const FORM: Form = Form {
    provider: NAME,
    title: "Vonage",
    fields: &[
        Field::text(
            "application_id",
            "Application ID",
            "aaaaaaaa-bbbb-cccc-dddd-0123456789ab",
            "of the voice application that your numbers are linked to",
        )
        .required()
        .checked(form::is_path_word),
        Field::secret(
            secret_keys!("private_key"),
            "Private key",
            "the PEM file that the dashboard gave out with the application; without it calls only come in, and cannot be \
             transferred or ended by a request",
        )
        .checked(jwt::is_private_key),
        Field::text("api_key", "API key", "abcd1234", "of the account; webhooks name it")
            .required()
            .checked(form::is_path_word),
        Field::secret(
            secret_keys!("signature_secret"),
            "Signature secret",
            "in the account's settings; it signs webhooks, with \"signed callbacks\" on in the application",
        )
        .required(),
        form::API_URL,
    ],
};

/// Makes an account of a filled form.
pub fn open(values: &Values) -> Result<Arc<dyn Account>, FormError> {
    use secrecy::ExposeSecret;

    let key = match values.secret("private_key") {
        None => None,
        Some(pem) => Some(
            SigningKey::from_pem(pem.expose_secret())
                .ok_or_else(|| FormError::wrong("private_key", jwt::KEY_EXPECTED))?,
        ),
    };
    Ok(Arc::new(Vonage {
        application_id: values.text("application_id"),
        key,
        api_key: values.text("api_key"),
        signature_secret: values.needed_secret("signature_secret")?,
        base: values.text_or("api_url", "https://api.nexmo.com"),
    }))
}

/// One Vonage application.
#[derive(Debug)]
struct Vonage {
    application_id: String,
    /// `None`: nothing can be asked of Vonage.
    key: Option<SigningKey>,
    api_key: String,
    signature_secret: SecretString,
    base: String,
}

impl Vonage {
    /// The token's claims, once everything in them is right.
    fn verify(&self, request: &WebhookRequest<'_>) -> Result<Json, Refusal> {
        const TOKEN: &str = "Authorization: Bearer token";
        let token = request.header(header::AUTHORIZATION.as_str()).and_then(proof::bearer);
        let claims = jwt::verify_hs256(token.ok_or(Refusal::Unsigned(TOKEN))?, &self.signature_secret);
        let claims = claims.map_err(|error| match error {
            TokenError::Malformed | TokenError::Signature => Refusal::Signature(TOKEN),
            TokenError::Algorithm(name) => Refusal::Algorithm(name),
        })?;
        if at(&claims, &["iss"]) != Some("Vonage") {
            return Err(Refusal::Account("iss of the token"));
        }
        if at(&claims, &["api_key"]) != Some(&self.api_key) {
            return Err(Refusal::Account("api_key of the token"));
        }
        if claims.get("application_id").is_some_and(|id| id.as_str() != Some(&self.application_id)) {
            return Err(Refusal::Account("application_id of the token"));
        }
        let issued_s =
            claims.get("iat").and_then(Json::as_i64).ok_or(Refusal::Unsigned("iat in its token"))?;
        let age_s = request.now_s.saturating_sub(issued_s);
        if age_s.saturating_abs() > AGE_MAX_S {
            return Err(Refusal::Age(age_s));
        }
        // Without a body there is nothing to be hashed: what a GET's token says of it, if anything, is documented nowhere.
        let is_hashed =
            || at(&claims, &["payload_hash"]).is_some_and(|hash| proof::sha256_matches(request.body, hash));
        if request.body.is_empty() || is_hashed() {
            Ok(claims)
        } else {
            Err(Refusal::BodyHash("payload_hash"))
        }
    }

    fn request(&self, method: Method, path: &str, stamp: Stamp) -> Result<RestRequest, Unsupported> {
        let claims = json!({
            "application_id": self.application_id,
            "iat": stamp.now_s,
            "exp": stamp.now_s.saturating_add(TOKEN_S),
            "jti": stamp.id,
        });
        let unsigned = |instead| Unsupported { provider: NAME, what: "be asked anything", instead };
        let key = self.key.as_ref().ok_or(unsigned("give the credential its \"private_key\""))?;
        let token =
            key.sign(&claims).ok_or(unsigned("the system gives no random numbers for the signature"))?;
        Ok(RestRequest::new(method, format!("{}{path}", self.base), format!("Bearer {token}")))
    }
}

impl Account for Vonage {
    fn webhook(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        request.check_bounds()?;
        let claims = self.verify(request)?;
        let (fields, params) = if request.method == HttpMethod::GET {
            (Json::Null, request.query_params()?)
        } else {
            let json = request.json()?;
            let params = Params::of_json(&json);
            (json, params)
        };
        match request.endpoint {
            Endpoint::Call if params.get("status").is_none() => inbound(request, &params, &claims),
            Endpoint::Event if request.query_params()?.get(TRANSFER_LEG.0) == Some(TRANSFER_LEG.1) => {
                Ok(transferred(&params))
            }
            Endpoint::Call | Endpoint::Event => event(&fields, &params),
            Endpoint::Media => Err(Refusal::Malformed("a media connection is not a webhook")),
        }
    }

    fn answer(&self, plan: &MediaPlan<'_>) -> Document {
        let (ncco, left_out) = connect(plan);
        Document::ok("application/json", ncco.to_string()).without(left_out)
    }

    fn decline(&self, decline: Decline<'_>) -> Document {
        match decline {
            Decline::Unavailable { retry_after_s } => Document::unavailable(retry_after_s),
            // There is no word for busy: an NCCO without actions ends the call.
            Decline::Busy => Document::ok("application/json", "[]".to_owned()),
            Decline::Say(text) => {
                let ncco = json!([{ "action": "talk", "text": spoken(text) }]);
                Document::ok("application/json", ncco.to_string())
            }
        }
    }

    fn transfer(&self, transfer: &Transfer<'_>) -> Option<Document> {
        Some(Document::ok("application/json", transfer_ncco(transfer).to_string()))
    }

    fn dial(&self, dial: &Dial<'_>, stamp: Stamp) -> Result<RestRequest, Unsupported> {
        let (ncco, _) = connect(&dial.plan);
        let mut call = json!({
            "to": [{ "type": "phone", "number": without_plus(dial.to) }],
            "from": { "type": "phone", "number": without_plus(dial.from) },
            "ncco": ncco,
            "event_url": [dial.plan.callback_url],
            "event_method": "POST",
            "ringing_timer": dial.ring_s.clamp(1, RING_MAX_S),
            "length_timer": dial.limit_s.clamp(1, LIMIT_MAX_S),
        });
        let mode = match dial.machine {
            MachineDetection::Off => None,
            MachineDetection::Detect => Some("detect"),
            MachineDetection::UntilBeep => Some("detect_beep"),
        };
        if let Some(mode) = mode {
            call["advanced_machine_detection"] = json!({ "behavior": "continue", "mode": mode });
        }
        Ok(self.request(Method::Post, "/v1/calls", stamp)?.json(&call))
    }

    fn dialled(&self, answer: &RestAnswer<'_>) -> DialOutcome {
        rest::dialled(answer, |json| plain_at(json, &["uuid"]), error)
    }

    fn control(&self, call: &str, control: Control<'_>, stamp: Stamp) -> Result<RestRequest, Unsupported> {
        let path = format!("/v1/calls/{}", escaped(call));
        let transfer =
            |ncco: Json| json!({ "action": "transfer", "destination": { "type": "ncco", "ncco": ncco } });
        match control {
            Control::HangUp => {
                Ok(self.request(Method::Put, &path, stamp)?.json(&json!({ "action": "hangup" })))
            }
            Control::Transfer(wanted) => {
                Ok(self.request(Method::Put, &path, stamp)?.json(&transfer(transfer_ncco(&wanted))))
            }
            Control::Redirect { plan, .. } => {
                Ok(self.request(Method::Put, &path, stamp)?.json(&transfer(connect(plan).0)))
            }
            Control::Dtmf(digits) => {
                // Their pause is half a second too, and called p.
                let digits = digits.replace(['w', 'W'], "p");
                let body = json!({ "digits": digits });
                Ok(self.request(Method::Put, &format!("{path}/dtmf"), stamp)?.json(&body))
            }
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

    fn lookup(&self, call: &str, stamp: Stamp) -> Result<RestRequest, Unsupported> {
        self.request(Method::Get, &format!("/v1/calls/{}", escaped(call)), stamp)
    }

    fn looked_up(&self, answer: &RestAnswer<'_>) -> Lookup {
        rest::looked_up(answer, |json| {
            let params = Params::of_json(json);
            let uuid = params.text("uuid")?;
            let word = params.text("status")?;
            Some(StatusEvent {
                event_id: format!("{uuid}:lookup:{word}"),
                ..status_event(uuid, word, &params)
            })
        })
    }

    fn probe(&self, stamp: Stamp) -> Result<RestRequest, Unsupported> {
        self.request(Method::Get, "/v1/calls?page_size=1", stamp)
    }
}

fn inbound(request: &WebhookRequest<'_>, params: &Params, claims: &Json) -> Result<Webhook, Refusal> {
    let is_vonages = |name: &str| QUERY_NAMES.contains(&name) || name.starts_with("SipHeader_");
    Ok(Webhook::Inbound(InboundCall {
        provider_call_id: params.needed("uuid")?,
        from: with_plus(&params.text("from").unwrap_or_else(|| "anonymous".to_owned())),
        to: with_plus(&params.needed("to")?),
        retry_token: at(claims, &["jti"]).map(shown),
        arguments: request.query_params()?.into_arguments(is_vonages),
        answer: AnswerBy::Document,
    }))
}

/// News of the leg that a transfer has made. Its words are signed; that they are about a transfer stands in the query, which
/// is not: all that a stranger could do with a request of Vonage's is to have a call's news taken for a transfer's.
fn transferred(params: &Params) -> Webhook {
    let word = params.text("status").unwrap_or_default();
    let news = status_event(String::new(), word.clone(), params);
    match news.status.filter(|status| status.is_terminal()) {
        Some(status) => Webhook::Transferred(Transferred {
            provider_call_id: params.text("conversation_uuid").unwrap_or_default(),
            status,
            duration_s: news.duration_s,
        }),
        None => Webhook::Other(format!("transfer {word}")),
    }
}

fn event(fields: &Json, params: &Params) -> Result<Webhook, Refusal> {
    // What a machine's detector says names the leg in another way.
    let uuid = params.text("uuid").or_else(|| params.text("call_uuid"));
    let Some(word) = params.text("status") else {
        return Ok(Webhook::Other(
            params.text("reason").unwrap_or_else(|| "an event without a status".to_owned()),
        ));
    };
    let is_socket = |name: &str| params.get(name).is_some_and(|place| place.starts_with("ws"));
    let is_media_leg =
        fields.get("headers").is_some_and(Json::is_object) || is_socket("to") || is_socket("from");
    if is_media_leg || word == "disconnected" {
        let kind = match word.as_str() {
            "started" | "ringing" => return Ok(Webhook::Other(format!("media leg {word}"))),
            "answered" => StreamKind::Started,
            "disconnected" | "completed" => StreamKind::Stopped,
            _ => StreamKind::Failed,
        };
        return Ok(Webhook::Stream(StreamEvent {
            provider_call_id: params.text("conversation_uuid").unwrap_or_default(),
            stream_id: uuid.unwrap_or_default(),
            kind,
            detail: params.text("detail").or_else(|| params.text("reason")),
        }));
    }
    let uuid = uuid.ok_or(Refusal::Missing("uuid"))?;
    if call_status(&word).is_none() && answered_by(&word, "").is_none() {
        return Ok(Webhook::Other(word));
    }
    // A repetition is signed afresh, so the token's id is another; the event's own time is not.
    let parts = [params.get("sub_state"), params.get("timestamp")].into_iter().flatten().map(shown);
    let event_id = [uuid.clone(), word.clone()].into_iter().chain(parts).collect::<Vec<_>>().join(":");
    Ok(Webhook::Status(StatusEvent { event_id, ..status_event(uuid, word, params) }))
}

fn status_event(uuid: String, word: String, params: &Params) -> StatusEvent {
    let detail = params.text("detail");
    let status = match (call_status(&word), detail.as_deref()) {
        (Some(CallStatus::Rejected), Some("invalid_number")) => Some(CallStatus::Failed),
        (status, _) => status,
    };
    StatusEvent {
        provider_call_id: uuid,
        status,
        cause: detail.or_else(|| params.text("reason")),
        sip_status: params.number("sip_code").and_then(|code| u16::try_from(code).ok()),
        duration_s: params.number("duration"),
        answered_by: answered_by(&word, params.get("sub_state").unwrap_or_default()),
        word,
        ..StatusEvent::default()
    }
}

/// Vonage's words for where a leg is.
pub fn call_status(word: &str) -> Option<CallStatus> {
    Some(match word {
        "started" => CallStatus::Initiated,
        "ringing" => CallStatus::Ringing,
        "answered" => CallStatus::Answered,
        "completed" => CallStatus::Completed,
        "busy" => CallStatus::Busy,
        "unanswered" | "timeout" => CallStatus::NoAnswer,
        "cancelled" => CallStatus::Canceled,
        "rejected" => CallStatus::Rejected,
        "failed" => CallStatus::Failed,
        _ => return None,
    })
}

/// Vonage's words for what picked up.
pub fn answered_by(word: &str, sub_state: &str) -> Option<AnsweredBy> {
    Some(match (word, sub_state) {
        ("human", _) => AnsweredBy::Human,
        ("machine", "beep_start") => AnsweredBy::MachineBeep,
        ("machine", "beep_timeout") => AnsweredBy::MachineEnd,
        ("machine", _) => AnsweredBy::Machine,
        _ => return None,
    })
}

/// The NCCO that connects to our WebSocket, and the parameters that did not fit. Its events are synchronous: when the
/// socket is lost, the answer to `disconnected` may be a new one.
fn connect(plan: &MediaPlan<'_>) -> (Json, Vec<String>) {
    let mut headers = serde_json::Map::new();
    headers.insert("ctx".to_owned(), json!(plan.context_id));
    let mut left_out = Vec::new();
    for (name, value) in plan.parameters {
        // They are flattened beside these names on the socket.
        let is_taken = matches!(name.as_str(), "ctx" | "event" | "content-type");
        if !is_taken {
            headers.insert(name.clone(), json!(value));
        }
        if is_taken || json!(headers).to_string().len() > HEADERS_MAX {
            if !is_taken {
                headers.remove(name);
            }
            left_out.push(name.clone());
        }
    }
    let rate = if matches!(plan.sample_rate, 8_000 | 16_000 | 24_000) { plan.sample_rate } else { 16_000 };
    let ncco = json!([{
        "action": "connect",
        "eventUrl": [plan.callback_url],
        "eventType": "synchronous",
        "from": without_plus(plan.number),
        "endpoint": [{
            "type": "websocket",
            "uri": plan.media_url,
            "content-type": format!("audio/l16;rate={rate}"),
            "headers": headers,
            "authorization": { "type": "custom", "value": format!("Bearer {}", plan.context_id) },
        }],
    }]);
    (ncco, left_out)
}

fn transfer_ncco(transfer: &Transfer<'_>) -> Json {
    let endpoint = if transfer.to.starts_with("sip:") {
        json!({ "type": "sip", "uri": transfer.to })
    } else {
        json!({ "type": "phone", "number": without_plus(transfer.to) })
    };
    let mut action = json!({
        "action": "connect",
        "from": without_plus(transfer.from),
        "eventType": "synchronous",
        "timeout": transfer.ring_s.clamp(1, RING_MAX_S),
        "endpoint": [endpoint],
    });
    if !transfer.result_url.is_empty() {
        let separator = if transfer.result_url.contains('?') { '&' } else { '?' };
        let (name, value) = TRANSFER_LEG;
        action["eventUrl"] = json!([format!("{}{separator}{name}={value}", transfer.result_url)]);
    }
    json!([action])
}

/// `{"type":"…","title":"…","detail":"…","invalid_parameters":[…]}`.
fn error(json: &Json) -> Option<ErrorBody> {
    let title = at(json, &["title"]).or_else(|| at(json, &["error_title"]))?;
    let detail = at(json, &["detail"]).unwrap_or_default();
    let first = json.get("invalid_parameters").and_then(|list| list.get(0));
    let parameter = first.and_then(|item| at(item, &["name"])).unwrap_or_default();
    // `to`, or a part of it such as `to[0].number`; `from.number` is a mistake of ours.
    let is_number = parameter
        .strip_prefix("to")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(|c: char| !c.is_ascii_alphabetic()));
    Some(ErrorBody {
        code: title.to_owned(),
        detail: [detail, parameter].join(" ").trim().to_owned(),
        class: is_number.then_some(FailureClass::InvalidNumber),
        is_own: at(json, &["type"]).is_some_and(is_vonages_url),
    })
}

/// Whether this is a page of Vonage's, as its errors name one for their type.
fn is_vonages_url(url: &str) -> bool {
    let host = url.strip_prefix("https://").and_then(|rest| rest.split(['/', '?', '#']).next());
    host.is_some_and(|host| {
        [".vonage.com", ".nexmo.com"].iter().any(|domain| format!(".{host}").ends_with(domain))
    })
}

#[cfg(test)]
mod tests;
