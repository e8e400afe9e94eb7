//! Telnyx: Call Control and TeXML, Ed25519 signatures, the API v2.
//!
//! ```text
//!   webhook   JSON of a Call Control application, or the form of a TeXML one    signed: Ed25519 of time|body
//!   answer    Call Control: a request of ours; TeXML: <Connect><Stream/></Connect>
//!   REST      JSON, a bearer key; commands carry an id by which a repetition is nothing
//! ```
//!
//! The signature covers the body alone, so a GET proves nothing about its query: only POST is taken.

use std::sync::Arc;

use axum::http::Method as HttpMethod;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use serde_json::{Value as Json, json};

use super::document::{Decline, Document, MediaPlan, Xml};
use super::form::{self, Field, Form, FormError, Values, secret_keys};
use super::rest::{
    self, Control, ControlOutcome, Dial, DialOutcome, ErrorBody, FailureClass, Lookup, MachineDetection,
    Method, RestAnswer, RestRequest, Stamp, Unsupported, at, escaped, plain_at,
};
use super::status::{AnsweredBy, CallStatus};
use super::webhook::{
    AGE_MAX_S, AnswerBy, DocumentRequest, Endpoint, InboundCall, Params, Refusal, StatusEvent, StreamEvent,
    StreamKind, Transferred, Webhook, WebhookRequest, shown,
};
use super::{Account, proof, twilio};

const NAME: &str = "telnyx";
const SIGNATURE: &str = "telnyx-signature-ed25519";
const TIMESTAMP: &str = "telnyx-timestamp";
/// Of the media, both ways. Telnyx turns PCMA into it; where it cannot, the stream's start names the call's own.
const CODEC: &str = "PCMU";
/// Begins the state of the leg that a transfer makes; the call that was put through follows.
const TRANSFER_STATE: &str = "transfer:";

/// What Telnyx knows us by, and what we know Telnyx by.
pub const FORM: Form = Form {
    provider: NAME,
    title: "Telnyx",
    fields: &[
        Field::secret(secret_keys!("api_key"), "API key", "in the portal, below API keys; begins with KEY")
            .required(),
        Field::text(
            "public_key",
            "Public key",
            "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=",
            "in the portal, below Keys & credentials; webhooks are checked by it",
        )
        .required()
        .checked(is_public_key),
        Field::text(
            "connection_id",
            "Connection id",
            "1494404757140276705",
            "of the Call Control application that calls go out by; without it calls only come in",
        )
        .checked(form::is_path_word),
        form::API_URL,
    ],
};

const PUBLIC_KEY_EXPECTED: &str =
    "32 octets in Base64, such as \"A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=\"";

fn public_key(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn is_public_key(text: &str) -> Result<(), &'static str> {
    if public_key(text).is_some() { Ok(()) } else { Err(PUBLIC_KEY_EXPECTED) }
}

/// Makes an account of a filled form.
pub fn open(values: &Values) -> Result<Arc<dyn Account>, FormError> {
    Ok(Arc::new(Telnyx {
        api_key: values.needed_secret("api_key")?,
        public_key: public_key(&values.text("public_key"))
            .ok_or_else(|| FormError::wrong("public_key", PUBLIC_KEY_EXPECTED))?,
        connection_id: values.text("connection_id"),
        base: values.text_or("api_url", "https://api.telnyx.com/v2"),
    }))
}

/// One Telnyx account.
#[derive(Debug)]
struct Telnyx {
    api_key: SecretString,
    public_key: [u8; 32],
    connection_id: String,
    base: String,
}

impl Telnyx {
    fn verify(&self, request: &WebhookRequest<'_>) -> Result<(), Refusal> {
        if request.method != HttpMethod::POST {
            return Err(Refusal::Method { expected: "POST, since Telnyx signs no query" });
        }
        let given = request.header(SIGNATURE).ok_or(Refusal::Unsigned(SIGNATURE))?;
        let time = request.header(TIMESTAMP).ok_or(Refusal::Unsigned(TIMESTAMP))?;
        let signature = STANDARD.decode(given.trim()).map_err(|_| Refusal::Signature(SIGNATURE))?;
        let signed = [time.as_bytes(), b"|", request.body].concat();
        if !proof::ed25519_matches(&self.public_key, &signed, &signature) {
            return Err(Refusal::Signature(SIGNATURE));
        }
        let time_s: i64 =
            time.trim().parse().map_err(|_| Refusal::Malformed("telnyx-timestamp is no number"))?;
        let age_s = request.now_s.saturating_sub(time_s);
        if age_s.saturating_abs() > AGE_MAX_S { Err(Refusal::Age(age_s)) } else { Ok(()) }
    }

    fn request(&self, method: Method, path: &str) -> RestRequest {
        use secrecy::ExposeSecret;
        RestRequest::new(
            method,
            format!("{}{path}", self.base),
            format!("Bearer {}", self.api_key.expose_secret()),
        )
    }

    fn action(&self, call: &str, action: &str, body: &Json) -> RestRequest {
        self.request(Method::Post, &format!("/calls/{}/actions/{action}", escaped(call))).json(body)
    }
}

impl Account for Telnyx {
    fn webhook(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        request.check_bounds()?;
        self.verify(request)?;
        if request.is_form() { texml(request, &request.body_params()?) } else { event(&request.json()?) }
    }

    fn answer(&self, plan: &MediaPlan<'_>) -> Document {
        let context_id = plan.context_id.to_string();
        let stream = [
            ("url", plan.media_url),
            // What we hear: otherwise it is whatever the call has.
            ("codec", CODEC),
            // Without a mode and a codec our audio is dropped in silence.
            ("bidirectionalMode", "rtp"),
            ("bidirectionalCodec", CODEC),
            ("bidirectionalSamplingRate", "8000"),
            ("statusCallback", plan.callback_url),
            ("statusCallbackMethod", "POST"),
        ];
        let mut xml = Xml::new();
        xml.open("Response", &[]).open("Connect", &[]).open("Stream", &stream);
        xml.empty("Parameter", &[("name", "ctx"), ("value", &context_id)]);
        for (name, value) in plan.parameters.iter().filter(|(name, _)| name != "ctx") {
            xml.empty("Parameter", &[("name", name), ("value", value)]);
        }
        let body = xml.close("Stream").close("Connect").close("Response").finish();
        Document::ok("text/xml", body)
    }

    fn decline(&self, decline: Decline<'_>) -> Document {
        twilio::decline_twiml(decline)
    }

    fn dial(&self, dial: &Dial<'_>, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        let connection_id = dial.option("connection_id").unwrap_or(&self.connection_id);
        if connection_id.is_empty() {
            return Err(Unsupported {
                provider: NAME,
                what: "place calls",
                instead: "give the credential its \"connection_id\"",
            });
        }
        let mut call = stream(&dial.plan);
        call["connection_id"] = json!(connection_id);
        call["to"] = json!(dial.to);
        call["from"] = json!(dial.from);
        call["timeout_secs"] = json!(dial.ring_s.clamp(5, 600));
        call["time_limit_secs"] = json!(dial.limit_s.clamp(30, 14_400));
        match dial.machine {
            MachineDetection::Off => {}
            MachineDetection::Detect => call["answering_machine_detection"] = json!("detect"),
            MachineDetection::UntilBeep => call["answering_machine_detection"] = json!("detect_beep"),
        }
        Ok(self.request(Method::Post, "/calls").json(&call))
    }

    fn dialled(&self, answer: &RestAnswer<'_>) -> DialOutcome {
        rest::dialled(answer, |json| plain_at(json, &["data", "call_control_id"]), error)
    }

    fn control(&self, call: &str, control: Control<'_>, stamp: Stamp) -> Result<RestRequest, Unsupported> {
        let id = stamp.id.to_string();
        Ok(match control {
            Control::Answer(plan) => {
                // The same call answered twice is answered once.
                self.action(call, "answer", &stream(plan))
            }
            Control::Reject => {
                self.action(call, "reject", &json!({ "cause": "USER_BUSY", "command_id": id }))
            }
            Control::HangUp => self.action(call, "hangup", &json!({ "command_id": id })),
            Control::Transfer(transfer) => {
                let mut body = json!({
                    "to": transfer.to,
                    "from": transfer.from,
                    "timeout_secs": transfer.ring_s.clamp(5, 600),
                    // Of the new leg alone: by it the leg's end is known for the transfer's.
                    "target_leg_client_state": STANDARD.encode(format!("{TRANSFER_STATE}{call}")),
                    "command_id": id,
                });
                if !transfer.result_url.is_empty() {
                    body["webhook_url"] = json!(transfer.result_url);
                }
                self.action(call, "transfer", &body)
            }
            Control::Redirect { plan, .. } => {
                let mut body = stream(plan);
                // This command takes no webhook: the call keeps the one that it has.
                if let Some(fields) = body.as_object_mut() {
                    fields.retain(|name, _| !name.starts_with("webhook_"));
                }
                self.action(call, "streaming_start", &body)
            }
            Control::Dtmf(digits) => {
                self.action(call, "send_dtmf", &json!({ "digits": digits, "command_id": id }))
            }
        })
    }

    fn controlled(&self, answer: &RestAnswer<'_>) -> ControlOutcome {
        rest::controlled(answer, error)
    }

    fn lookup(&self, call: &str, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        Ok(self.request(Method::Get, &format!("/calls/{}", escaped(call))))
    }

    fn looked_up(&self, answer: &RestAnswer<'_>) -> Lookup {
        rest::looked_up(answer, |json| {
            let data = json.get("data")?;
            let provider_call_id = shown(at(data, &["call_control_id"])?);
            // It says only whether the call lives; how it ended is gone with its events.
            let is_alive = data.get("is_alive")?.as_bool()?;
            let word = if is_alive { "alive" } else { "ended" };
            Some(StatusEvent {
                event_id: format!("{provider_call_id}:lookup:{word}"),
                provider_call_id,
                status: (!is_alive).then_some(CallStatus::Completed),
                word: word.to_owned(),
                duration_s: plain_at(data, &["call_duration"]).and_then(|seconds| seconds.parse().ok()),
                ..StatusEvent::default()
            })
        })
    }

    fn probe(&self, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        Ok(self.request(Method::Get, "/balance"))
    }
}

/// The parameters of a command that opens a stream to us. They are those of `answer` and of a dial, and but for the webhook
/// those of `streaming_start`.
fn stream(plan: &MediaPlan<'_>) -> Json {
    let context_id = plan.context_id.to_string();
    json!({
        "stream_url": plan.media_url,
        "stream_track": "inbound_track",
        // What we hear: otherwise it is whatever the call has.
        "stream_codec": CODEC,
        "stream_bidirectional_mode": "rtp",
        "stream_bidirectional_codec": CODEC,
        "stream_bidirectional_sampling_rate": 8_000,
        "webhook_url": plan.callback_url,
        "webhook_url_method": "POST",
        "client_state": STANDARD.encode(&context_id),
        "command_id": context_id,
    })
}

/// An event of a Call Control application. A query is not signed, so it gives no arguments.
fn event(json: &Json) -> Result<Webhook, Refusal> {
    let data = json.get("data").ok_or(Refusal::Missing("data"))?;
    let kind = shown(at(data, &["event_type"]).ok_or(Refusal::Missing("event_type"))?).replace('_', ".");
    let none = Json::Null;
    let payload = data.get("payload").unwrap_or(&none);
    let text = |name: &str| at(payload, &[name]).filter(|text| !text.is_empty()).map(shown);
    // Events that are about no call, such as those of numbers.
    let Some(provider_call_id) = text("call_control_id") else { return Ok(Webhook::Other(kind)) };
    let context_id =
        text("client_state").and_then(|state| String::from_utf8(STANDARD.decode(state).ok()?).ok());
    let context_id = context_id.map(|id| shown(&id));
    if kind == "call.initiated" && text("direction").as_deref() == Some("incoming") {
        return Ok(Webhook::Inbound(InboundCall {
            provider_call_id,
            from: text("from").unwrap_or_else(|| "anonymous".to_owned()),
            to: text("to").ok_or(Refusal::Missing("to"))?,
            retry_token: at(data, &["id"]).map(shown),
            arguments: Vec::new(),
            answer: AnswerBy::Rest,
        }));
    }
    if let Some(call) = context_id.as_deref().and_then(|state| state.strip_prefix(TRANSFER_STATE)) {
        if kind != "call.hangup" {
            return Ok(Webhook::Other(format!("transfer {kind}")));
        }
        return Ok(Webhook::Transferred(Transferred {
            provider_call_id: call.to_owned(),
            status: hangup_status(&text("hangup_cause").unwrap_or_default()),
            duration_s: None,
        }));
    }
    if let Some(word) = kind.strip_prefix("streaming.") {
        let Some(kind) = StreamKind::of_word(word) else { return Ok(Webhook::Other(kind)) };
        return Ok(Webhook::Stream(StreamEvent {
            provider_call_id,
            stream_id: text("stream_id").unwrap_or_default(),
            kind,
            detail: text("failure_reason"),
        }));
    }
    let cause = text("hangup_cause");
    let result = text("result");
    let is_detection = kind.starts_with("call.machine.");
    let answered_by = result.as_deref().filter(|_| is_detection).and_then(|word| answered_by(&kind, word));
    let status = match kind.as_str() {
        "call.initiated" => Some(CallStatus::Initiated),
        "call.answered" => Some(CallStatus::Answered),
        "call.hangup" => Some(hangup_status(cause.as_deref().unwrap_or_default())),
        _ => None,
    };
    if status.is_none() && answered_by.is_none() {
        return Ok(Webhook::Other(kind));
    }
    Ok(Webhook::Status(StatusEvent {
        event_id: at(data, &["id"]).map_or_else(|| format!("{provider_call_id}:{kind}"), shown),
        provider_call_id,
        status,
        sip_status: plain_at(payload, &["sip_hangup_cause"]).and_then(|code| code.parse().ok()),
        word: kind,
        cause,
        answered_by,
        context_id,
        ..StatusEvent::default()
    }))
}

/// A request of a TeXML application: Twilio's names.
fn texml(request: &WebhookRequest<'_>, params: &Params) -> Result<Webhook, Refusal> {
    let provider_call_id = params.needed("CallSid")?;
    if let Some(news) = twilio::stream_news(&provider_call_id, params) {
        return Ok(news);
    }
    if request.endpoint == Endpoint::Event {
        let word = params.text("CallStatus").unwrap_or_default();
        return Ok(Webhook::Status(StatusEvent {
            event_id: format!("{provider_call_id}:{word}"),
            provider_call_id,
            status: twilio::call_status(&word),
            cause: params.text("HangupCause"),
            duration_s: params.number("CallDuration"),
            answered_by: params.get("AnsweredBy").and_then(twilio::answered_by),
            word,
            ..StatusEvent::default()
        }));
    }
    if params.get("Direction").is_some_and(|direction| direction.starts_with("outbound")) {
        let answered_by = params.get("AnsweredBy").and_then(twilio::answered_by);
        return Ok(Webhook::Document(DocumentRequest { provider_call_id, context_id: None, answered_by }));
    }
    Ok(Webhook::Inbound(InboundCall {
        provider_call_id,
        from: params.needed("From")?,
        to: params.needed("To")?,
        retry_token: None,
        arguments: Vec::new(),
        answer: AnswerBy::Document,
    }))
}

/// Telnyx's words for why a call ended.
pub fn hangup_status(cause: &str) -> CallStatus {
    match cause {
        "normal_clearing" | "time_limit" => CallStatus::Completed,
        "busy" | "user_busy" => CallStatus::Busy,
        "no_answer" | "timeout" => CallStatus::NoAnswer,
        "call_rejected" => CallStatus::Rejected,
        "originator_cancel" => CallStatus::Canceled,
        _ => CallStatus::Failed,
    }
}

/// Telnyx's words for what picked up: the detector's, and those of the greeting's end.
pub fn answered_by(kind: &str, result: &str) -> Option<AnsweredBy> {
    let is_greeting = kind.contains("greeting");
    Some(match result {
        "human" | "human_residence" | "human_business" => AnsweredBy::Human,
        "machine" => AnsweredBy::Machine,
        "beep_detected" => AnsweredBy::MachineBeep,
        "ended" | "no_beep_detected" if is_greeting => AnsweredBy::MachineEnd,
        "fax_detected" => AnsweredBy::Fax,
        "not_sure" | "silence" => AnsweredBy::Unknown,
        _ => return None,
    })
}

/// `{"errors":[{"code":"90018","title":"…","detail":"…"}]}`.
fn error(json: &Json) -> Option<ErrorBody> {
    let first = json.get("errors")?.get(0)?;
    let code = plain_at(first, &["code"]).unwrap_or_default();
    let class = match code.as_str() {
        "90018" => Some(FailureClass::Gone),
        "10009" => Some(FailureClass::Auth),
        "10016" => Some(FailureClass::InvalidNumber),
        _ => None,
    };
    let detail = at(first, &["detail"]).or_else(|| at(first, &["title"])).unwrap_or_default();
    Some(ErrorBody { is_own: !code.is_empty(), code, detail: detail.to_owned(), class })
}

#[cfg(test)]
mod tests;
