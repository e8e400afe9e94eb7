//! Plivo: XML, signature V3, the API v1.
//!
//! ```text
//!   webhook   form in the body, or in the query of a GET     signed: HMAC-SHA256 of URL, fields and a nonce
//!   answer    <Stream bidirectional="true">wss://…</Stream>   the URL is the element's text
//!   REST      JSON, HTTP Basic; documents are fetched from us, never sent along
//! ```
//!
//! The answer to a dial names the request. The call has a name of its own, which its first callback tells. Until then it can
//! be ended, as a request that is taken back, and nothing else can be done to it.

use std::sync::Arc;

use axum::http::Method as HttpMethod;
use ring::hmac;
use secrecy::SecretString;
use serde_json::{Value as Json, json};

use super::document::{Decline, Document, MediaPlan, Xml, spoken};
use super::form::{self, Field, Form, FormError, Values, secret_keys};
use super::rest::{
    self, Control, ControlOutcome, Dial, DialOutcome, ErrorBody, FailureClass, Lookup, MachineDetection,
    Method, RestAnswer, RestRequest, Stamp, Transfer, Unsupported, at, escaped, plain_at,
};
use super::status::{AnsweredBy, CallStatus};
use super::webhook::{
    AnswerBy, DocumentRequest, Endpoint, InboundCall, Params, Refusal, StatusEvent, StreamEvent, StreamKind,
    Transferred, Webhook, WebhookRequest, shown, with_plus, without_plus,
};
use super::{Account, proof};

const NAME: &str = "plivo";
const SIGNATURE: &str = "X-Plivo-Signature-V3";
const SIGNATURE_MAIN: &str = "X-Plivo-Signature-Ma-V3";
const NONCE: &str = "X-Plivo-Signature-V3-Nonce";
/// Signatures in one header; more are not looked at.
const SIGNATURES_MAX: usize = 4;
/// Characters of all extra headers together.
const EXTRA_HEADERS_MAX: usize = 512;
/// Seconds that a call may ring. No limit is published; no carrier rings for longer.
const RING_MAX_S: u32 = 600;
/// Seconds that a call may last: Plivo ends it after a day.
const LIMIT_MAX_S: u32 = 86_400;
/// Begins what we call a call of which we know only Plivo's `request_uuid`: it is ended in another way than one whose
/// `CallUUID` is known.
const REQUEST: &str = "request:";

/// What Plivo knows us by.
pub const FORM: Form = Form {
    provider: NAME,
    title: "Plivo",
    fields: &[
        Field::text("auth_id", "Auth id", "MAXXXXXXXXXXXXXXXXXX", "on the first page of the console")
            .required()
            .checked(form::is_path_word),
        Field::secret(
            secret_keys!("auth_token"),
            "Auth token",
            "beside the auth id; it signs webhooks and proves our requests",
        )
        .required(),
        form::API_URL,
    ],
};

/// Makes an account of a filled form.
pub fn open(values: &Values) -> Result<Arc<dyn Account>, FormError> {
    let auth_id = values.text("auth_id");
    let auth_token = values.needed_secret("auth_token")?;
    Ok(Arc::new(Plivo {
        base: format!("{}/v1/Account/{auth_id}", values.text_or("api_url", "https://api.plivo.com")),
        authorization: proof::basic_header(&auth_id, &auth_token).into(),
        auth_token,
    }))
}

/// One Plivo account.
#[derive(Debug)]
struct Plivo {
    auth_token: SecretString,
    authorization: SecretString,
    base: String,
}

impl Plivo {
    fn verify(&self, request: &WebhookRequest<'_>) -> Result<(), Refusal> {
        let nonce = request.header(NONCE).ok_or(Refusal::Unsigned(NONCE))?;
        let given: Vec<&str> = [SIGNATURE, SIGNATURE_MAIN]
            .into_iter()
            .filter_map(|name| request.header(name))
            .flat_map(|list| list.split(',').take(SIGNATURES_MAX))
            .collect();
        if given.is_empty() {
            return Err(Refusal::Unsigned(SIGNATURE));
        }
        let signed = format!("{}.{nonce}", signed_base(request)?);
        let is_genuine = |signature: &&str| {
            proof::hmac_matches(hmac::HMAC_SHA256, &self.auth_token, signed.as_bytes(), signature)
        };
        if given.iter().any(is_genuine) { Ok(()) } else { Err(Refusal::Signature(SIGNATURE)) }
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

/// URL, query sorted and decoded, fields sorted: what is signed, but for the nonce.
fn signed_base(request: &WebhookRequest<'_>) -> Result<String, Refusal> {
    let mut query = request.query_params()?.0;
    query.sort();
    let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let query = query.join("&");
    let mut fields = if request.method == HttpMethod::GET { Vec::new() } else { request.body_params()?.0 };
    fields.sort();
    let fields: String = fields.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]).collect();
    let url = request.public_url;
    Ok(match (query.is_empty(), fields.is_empty()) {
        (true, true) => url.to_owned(),
        (false, true) => format!("{url}?{query}"),
        (true, false) => format!("{url}?{fields}"),
        (false, false) => format!("{url}?{query}.{fields}"),
    })
}

impl Account for Plivo {
    fn webhook(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        request.check_bounds()?;
        self.verify(request)?;
        read(request, &request.params()?)
    }

    fn answer(&self, plan: &MediaPlan<'_>) -> Document {
        let (extra, left_out) = extra_headers(plan);
        let kind =
            if plan.sample_rate == 16_000 { "audio/x-l16;rate=16000" } else { "audio/x-mulaw;rate=8000" };
        let stream = [
            ("bidirectional", "true"),
            // Without it the call ends when the stream does, before anybody could be put through.
            ("keepCallAlive", "true"),
            ("contentType", kind),
            ("extraHeaders", extra.as_str()),
            ("statusCallbackUrl", plan.callback_url),
            ("statusCallbackMethod", "POST"),
        ];
        let mut xml = Xml::new();
        xml.open("Response", &[]).open("Stream", &stream).text(plan.media_url).close("Stream");
        Document::ok("application/xml", xml.close("Response").finish()).without(left_out)
    }

    fn decline(&self, decline: Decline<'_>) -> Document {
        let mut xml = Xml::new();
        xml.open("Response", &[]);
        match decline {
            Decline::Unavailable { retry_after_s } => return Document::unavailable(retry_after_s),
            Decline::Busy => xml.empty("Hangup", &[("reason", "busy")]),
            Decline::Say(text) => {
                xml.open("Speak", &[]).text(&spoken(text)).close("Speak").empty("Hangup", &[])
            }
        };
        Document::ok("application/xml", xml.close("Response").finish())
    }

    fn transfer(&self, transfer: &Transfer<'_>) -> Option<Document> {
        let ring = transfer.ring_s.clamp(1, RING_MAX_S).to_string();
        let dial = [
            ("callerId", without_plus(transfer.from)),
            ("timeout", ring.as_str()),
            ("action", transfer.result_url),
        ];
        let (place, to) = if transfer.to.starts_with("sip:") {
            ("User", transfer.to)
        } else {
            ("Number", without_plus(transfer.to))
        };
        let mut xml = Xml::new();
        xml.open("Response", &[]).open("Dial", &dial).open(place, &[]).text(to).close(place);
        Some(Document::ok("application/xml", xml.close("Dial").close("Response").finish()))
    }

    fn dial(&self, dial: &Dial<'_>, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        let callback = dial.plan.callback_url;
        let mut call = json!({
            "to": without_plus(dial.to),
            "from": without_plus(dial.from),
            "answer_url": dial.document_url,
            "answer_method": "POST",
            "ring_url": callback,
            "ring_method": "POST",
            "hangup_url": callback,
            "hangup_method": "POST",
            "ring_timeout": dial.ring_s.clamp(1, RING_MAX_S),
            "time_limit": dial.limit_s.clamp(1, LIMIT_MAX_S),
        });
        if dial.machine != MachineDetection::Off {
            call["machine_detection"] = json!("true");
            // With a URL of its own it is asynchronous.
            call["machine_detection_url"] = json!(callback);
            call["machine_detection_method"] = json!("POST");
        }
        Ok(self.request(Method::Post, "/Call/").json(&call))
    }

    fn dialled(&self, answer: &RestAnswer<'_>) -> DialOutcome {
        let id = |json: &Json| {
            // For several numbers at once it is a list.
            let first = json.get("request_uuid").and_then(|list| list.get(0)).and_then(Json::as_str);
            let id = plain_at(json, &["request_uuid"]).or_else(|| first.map(str::to_owned));
            id.filter(|id| !id.is_empty()).map(|id| request_name(&id))
        };
        rest::dialled(answer, id, error)
    }

    fn names_requests(&self) -> bool {
        true
    }

    fn control(&self, call: &str, control: Control<'_>, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        if let Some(request_id) = call.strip_prefix(REQUEST) {
            return match control {
                Control::HangUp => {
                    Ok(self.request(Method::Delete, &format!("/Request/{}/", escaped(request_id))))
                }
                _ => Err(unnamed("do this to a call before its first callback")),
            };
        }
        let path = format!("/Call/{}/", escaped(call));
        let fetch = |url: &str| {
            let body = json!({ "legs": "aleg", "aleg_url": url, "aleg_method": "POST" });
            self.request(Method::Post, &path).json(&body)
        };
        match control {
            Control::HangUp => Ok(self.request(Method::Delete, &path)),
            Control::Transfer(transfer) => Ok(fetch(transfer.document_url)),
            Control::Redirect { document_url, .. } => Ok(fetch(document_url)),
            Control::Dtmf(digits) => Ok(self
                .request(Method::Post, &format!("{path}DTMF/"))
                .json(&json!({ "digits": digits, "leg": "aleg" }))),
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
        if call.starts_with(REQUEST) {
            return Err(unnamed("look for a call by its request"));
        }
        // Of a live call; a finished one is found without the parameter, some time later.
        Ok(self.request(Method::Get, &format!("/Call/{}/?status=live", escaped(call))))
    }

    fn looked_up(&self, answer: &RestAnswer<'_>) -> Lookup {
        rest::looked_up(answer, |json| {
            let word = at(json, &["call_status"]).or_else(|| at(json, &["call_state"])).map(shown)?;
            let provider_call_id = shown(at(json, &["call_uuid"])?);
            Some(StatusEvent {
                event_id: format!("{provider_call_id}:lookup:{word}"),
                provider_call_id,
                request_id: at(json, &["request_uuid"]).map(request_name),
                status: call_status(&word),
                word,
                ..StatusEvent::default()
            })
        })
    }

    fn probe(&self, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        Ok(self.request(Method::Get, "/"))
    }
}

/// What we call a call of which we know only this.
fn request_name(request_uuid: &str) -> String {
    format!("{REQUEST}{}", shown(request_uuid))
}

fn unnamed(what: &'static str) -> Unsupported {
    Unsupported { provider: NAME, what, instead: "wait for a callback, which names it" }
}

fn read(request: &WebhookRequest<'_>, params: &Params) -> Result<Webhook, Refusal> {
    let provider_call_id = params.needed("CallUUID")?;
    let event = params.get("Event").unwrap_or_default();
    if let (Some(stream_id), Some(kind)) =
        (params.text("StreamID").or_else(|| params.text("StreamId")), StreamKind::of_word(event))
    {
        return Ok(Webhook::Stream(StreamEvent {
            provider_call_id,
            stream_id,
            kind,
            detail: params.text("Reason"),
        }));
    }
    if let Some(word) = params.get("DialStatus") {
        return Ok(Webhook::Transferred(Transferred {
            provider_call_id,
            status: call_status(word).unwrap_or(CallStatus::Failed),
            duration_s: params.number("DialBLegDuration"),
        }));
    }
    let answered_by = params.get("Machine").map(answered_by);
    let is_outbound =
        params.get("Direction").is_some_and(|direction| direction.eq_ignore_ascii_case("outbound"));
    if event == "StartApp" && (is_outbound || request.endpoint == Endpoint::Event) {
        return Ok(Webhook::Document(DocumentRequest { provider_call_id, context_id: None, answered_by }));
    }
    if request.endpoint == Endpoint::Call && event != "Hangup" {
        let is_plivos = |name: &str| name.starts_with(|c: char| c.is_ascii_uppercase());
        return Ok(Webhook::Inbound(InboundCall {
            provider_call_id,
            from: with_plus(&params.needed("From")?),
            to: with_plus(&params.needed("To")?),
            retry_token: None,
            arguments: request.query_params()?.into_arguments(is_plivos),
            answer: AnswerBy::Document,
        }));
    }
    let word = params.text("CallStatus").unwrap_or_default();
    // What a detector says has the status of the call beside it, and is another event.
    let event_id = match answered_by {
        Some(_) => format!("{provider_call_id}:machine"),
        None => format!("{provider_call_id}:{event}:{word}"),
    };
    Ok(Webhook::Status(StatusEvent {
        event_id,
        request_id: params.get("RequestUUID").map(request_name),
        status: call_status(&word),
        cause: params.text("HangupCauseName").or_else(|| params.text("HangupCause")),
        duration_s: params.number("Duration"),
        answered_by,
        word,
        provider_call_id,
        ..StatusEvent::default()
    }))
}

/// Plivo's words for where a call is.
pub fn call_status(word: &str) -> Option<CallStatus> {
    Some(match word {
        "queued" => CallStatus::Queued,
        "initiated" => CallStatus::Initiated,
        "ringing" | "early-media" => CallStatus::Ringing,
        "in-progress" | "answered" => CallStatus::Answered,
        "completed" => CallStatus::Completed,
        "busy" => CallStatus::Busy,
        "no-answer" | "timeout" => CallStatus::NoAnswer,
        "cancel" | "canceled" => CallStatus::Canceled,
        "rejected" => CallStatus::Rejected,
        "failed" => CallStatus::Failed,
        _ => return None,
    })
}

fn answered_by(word: &str) -> AnsweredBy {
    if word.eq_ignore_ascii_case("true") { AnsweredBy::Machine } else { AnsweredBy::Human }
}

/// `ctx=UUID,name=value`: what has another character than letters and digits in its name, or a separator in its value,
/// does not fit.
fn extra_headers(plan: &MediaPlan<'_>) -> (String, Vec<String>) {
    let mut out = format!("ctx={}", plan.context_id);
    let mut left_out = Vec::new();
    for (name, value) in plan.parameters {
        let is_plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
        let fits = is_plain
            && name != "ctx"
            && value.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b',' | b'=' | b'"'))
            && out.len() + name.len() + value.len() + 2 <= EXTRA_HEADERS_MAX;
        if fits {
            out.push_str(&format!(",{name}={value}"));
        } else {
            left_out.push(name.clone());
        }
    }
    (out, left_out)
}

/// `{"api_id":"…","error":"…"}`, or an object of field errors below `error`.
fn error(json: &Json) -> Option<ErrorBody> {
    let error = json.get("error")?;
    let detail = error.as_str().map_or_else(|| error.to_string(), str::to_owned);
    let lower = detail.to_ascii_lowercase();
    let is_number = lower.contains("to parameter")
        || lower.contains("destination number")
        || lower.contains("invalid number");
    Some(ErrorBody {
        code: String::new(),
        detail,
        class: is_number.then_some(FailureClass::InvalidNumber),
        is_own: at(json, &["api_id"]).is_some_and(|id| !id.is_empty()),
    })
}

#[cfg(test)]
mod tests;
