//! Plivo: JSON and HTTP Basic, XML that is fetched, signature V3. Numbers have no plus.

use std::sync::Arc;

use roxmltree::{Document, Node};
use serde_json::{Value as Json, json};

use super::course::{Control, Course, Event, fresh_id};
use super::http::{Answer, Outgoing, Request, wrong_key, wrong_name};
use super::media::{Encoding, Stream};
use super::{Call, Desk, Provider, Script, StreamEvent, Voice, fresh, proof};

const CREATE: &[&str] = &[
    "answer_method",
    "ring_url",
    "ring_method",
    "hangup_url",
    "hangup_method",
    "fallback_url",
    "fallback_method",
    "caller_name",
    "send_digits",
    "send_on_preanswer",
    "time_limit",
    "hangup_on_ring",
    "machine_detection",
    "machine_detection_time",
    "machine_detection_url",
    "machine_detection_method",
    "sip_headers",
    "ring_timeout",
    "parent_call_uuid",
    "error_if_parent_not_found",
    "callback_url",
    "callback_method",
];
const STREAM: &[&str] = &[
    "bidirectional",
    "audioTrack",
    "streamTimeout",
    "statusCallbackUrl",
    "statusCallbackMethod",
    "contentType",
    "extraHeaders",
    "keepCallAlive",
];

/// The SDK repeats the id of the path in the body.
const DTMF: &[&str] = &["leg", "call_uuid", "callback_url", "callback_method"];

pub(crate) struct Plivo;

fn digits(number: &str) -> String {
    number.trim_start_matches('+').to_owned()
}

fn refused(status: u16, error: &str) -> Answer {
    Answer::json(status, json!({ "api_id": fresh(), "error": error }))
}

fn create(desk: &Arc<Desk>, body: &Json) -> Answer {
    if let Some(wrong) = wrong_key(body, &["from", "to", "answer_url"], CREATE) {
        return refused(400, &wrong);
    }
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let to = text("to");
    if to.len() < 7 || !to.bytes().all(|octet| octet.is_ascii_digit()) {
        return refused(400, &format!("{to} is not a valid destination number"));
    }
    if text("from") != digits(&desk.settings.number) {
        return refused(400, "from parameter is not a number of yours");
    }
    let mut course = Course::new(fresh_id(Provider::Plivo), &text("from"), &to, true);
    course.script = Some(Script::Fetch(text("answer_url")));
    for name in ["ring_url", "hangup_url"] {
        if let Some(url) = body[name].as_str() {
            course.extra.insert(name, url.to_owned());
        }
    }
    // Of a single call both ids are the same.
    course.extra.insert("RequestUUID", course.id.clone());
    let call = desk.place(course);
    Answer::json(201, json!({ "api_id": fresh(), "message": "call fired", "request_uuid": call.id() }))
}

fn transfer(call: &Call, body: &Json) -> Answer {
    let known = ["legs", "aleg_url", "aleg_method", "bleg_url", "bleg_method"];
    if let Some(wrong) = wrong_key(body, &[], &known) {
        return refused(400, &wrong);
    }
    let Some(url) = body["aleg_url"].as_str().filter(|_| body["legs"] == "aleg") else {
        return refused(400, "legs is aleg, and aleg_url is missing");
    };
    call.course().tell(Control::Run(Script::Fetch(url.to_owned())));
    Answer::json(202, json!({ "api_id": fresh(), "message": "call transferred", "call_uuids": [call.id()] }))
}

fn word(event: Event) -> &'static str {
    match event {
        Event::Queued | Event::Initiated => "queued",
        Event::Answered => "in-progress",
        Event::NoAnswer => "no-answer",
        Event::Canceled => "cancel",
        Event::Rejected => "failed",
        other => other.word(),
    }
}

fn fields(desk: &Desk, call: &Call) -> Vec<(&'static str, String)> {
    let course = call.course();
    let mut form = vec![
        ("CallUUID", course.id.clone()),
        ("From", digits(&course.from)),
        ("To", digits(&course.to)),
        ("CallStatus", word(course.state).to_owned()),
        ("Direction", if course.outbound { "outbound" } else { "inbound" }.to_owned()),
        ("ParentAuthID", desk.settings.account.clone()),
    ];
    form.extend(course.extra.get("RequestUUID").map(|id| ("RequestUUID", id.clone())));
    form
}

fn signed(desk: &Desk, url: &str, form: &[(&'static str, String)]) -> Outgoing {
    let nonce = format!("{:020}", desk.next_number());
    let signature = proof::plivo(&desk.settings.webhook_secret, url, form, &nonce);
    Outgoing::form(
        url,
        form,
        vec![("X-Plivo-Signature-V3", signature), ("X-Plivo-Signature-V3-Nonce", nonce)],
    )
}

impl Voice for Plivo {
    fn rest(&self, desk: &Arc<Desk>, request: &Request) -> Answer {
        let settings = &desk.settings;
        if request.basic() != Some((settings.account.clone(), settings.secret.clone())) {
            return refused(401, "authentication failed");
        }
        let gone = || refused(404, "not found");
        let live = |id: &str| desk.call(id).filter(|call| !call.state().is_end());
        let body = request.json().unwrap_or_default();
        let segments = request.segments();
        let ["v1", "Account", id, rest @ ..] = segments.as_slice() else { return gone() };
        if *id != settings.account || !request.path.ends_with('/') {
            return gone();
        }
        match (request.method.as_str(), rest) {
            ("GET", []) => Answer::json(200, json!({ "auth_id": settings.account, "cash_credits": "1.0" })),
            ("POST", ["Call"]) => create(desk, &body),
            ("GET", ["Call", id]) => live(id).map_or_else(gone, |call| {
                let course = call.course();
                Answer::json(
                    200,
                    json!({ "api_id": fresh(), "call_uuid": course.id, "call_status": word(course.state),
                        "direction": "outbound", "from": digits(&course.from), "to": digits(&course.to),
                        "request_uuid": course.id, "session_start": "2026-09-01 10:00:00" }),
                )
            }),
            ("DELETE", ["Call", id]) => live(id).map_or_else(gone, |call| {
                call.course().tell(Control::End);
                Answer::empty(204)
            }),
            ("POST", ["Call", id]) => live(id).map_or_else(gone, |call| transfer(&call, &body)),
            ("POST", ["Call", id, "DTMF"]) => match (live(id), wrong_key(&body, &["digits"], DTMF)) {
                (None, _) => gone(),
                (Some(_), Some(wrong)) => refused(400, &wrong),
                (Some(call), None) => {
                    call.course().digits.push_str(body["digits"].as_str().unwrap_or_default());
                    Answer::json(202, json!({ "api_id": fresh(), "message": "digits sent" }))
                }
            },
            _ => gone(),
        }
    }

    fn announce(&self, desk: &Desk, call: &Call) -> Outgoing {
        let mut form = fields(desk, call);
        form.push(("Event", "StartApp".to_owned()));
        form[3].1 = "ringing".to_owned();
        signed(desk, &desk.settings.call_url(), &form)
    }

    fn fetch(&self, desk: &Desk, call: &Call, url: &str) -> Outgoing {
        let mut form = fields(desk, call);
        form.push(("Event", "StartApp".to_owned()));
        signed(desk, url, &form)
    }

    fn script(&self, _desk: &Desk, document: &str) -> Result<Script, String> {
        let parsed = Document::parse(document).map_err(|error| error.to_string())?;
        let first = |node: Node<'_, '_>| node.children().find(Node::is_element).map(|node| node.id());
        let response = parsed.root_element();
        let Some(verb) = first(response).and_then(|id| parsed.get_node(id)) else {
            return Ok(Script::Hangup);
        };
        let attribute = |name: &str| verb.attribute(name).unwrap_or_default().to_owned();
        Ok(match verb.tag_name().name() {
            "Stream" => {
                if let Some(wrong) = wrong_name(verb.attributes().map(|a| a.name()), &[], STREAM) {
                    return Err(format!("<Stream>: {wrong}"));
                }
                if attribute("bidirectional") != "true" {
                    return Err("a stream that is not bidirectional hears nothing of yours".to_owned());
                }
                let (encoding, rate_hz) = match attribute("contentType").as_str() {
                    "audio/x-mulaw;rate=8000" => (Encoding::Ulaw, 8_000),
                    "audio/x-l16;rate=8000" => (Encoding::L16, 8_000),
                    "audio/x-l16;rate=16000" => (Encoding::L16, 16_000),
                    other => return Err(format!("contentType {other:?}")),
                };
                let mut media = Stream::new(verb.text().unwrap_or_default().trim(), encoding, rate_hz);
                media.keeps_call = attribute("keepCallAlive") == "true";
                media.callback = verb.attribute("statusCallbackUrl").map(str::to_owned);
                for (name, value) in
                    attribute("extraHeaders").split(',').filter_map(|pair| pair.split_once('='))
                {
                    media.parameters.insert(name.to_owned(), value.to_owned());
                }
                Script::Stream(media)
            }
            "Speak" => Script::Say(verb.text().unwrap_or_default().to_owned()),
            "Hangup" if attribute("reason") == "busy" => Script::Reject,
            "Hangup" => Script::Hangup,
            "Dial" => {
                let place = first(verb).and_then(|id| parsed.get_node(id)).and_then(|node| node.text());
                Script::Dial { to: place.ok_or("<Dial> is empty")?.to_owned(), action: attribute("action") }
            }
            other => return Err(format!("<{other}> is not known")),
        })
    }

    fn event(&self, desk: &Desk, call: &Call, event: Event) -> Option<Outgoing> {
        let (name, kind) = match event {
            Event::Ringing => ("ring_url", "Ring"),
            _ if event.is_end() => ("hangup_url", "Hangup"),
            _ => return None,
        };
        let (url, duration_s) = {
            let course = call.course();
            (course.extra.get(name).cloned()?, course.duration_s())
        };
        let mut form = fields(desk, call);
        form.push(("Event", kind.to_owned()));
        if event.is_end() {
            let cause = if event == Event::Completed { "Normal Hangup" } else { "Unanswered" };
            form.extend([("Duration", duration_s.to_string()), ("HangupCauseName", cause.to_owned())]);
        }
        Some(signed(desk, &url, &form))
    }

    fn stream_event(
        &self,
        desk: &Desk,
        call: &Call,
        stream: &Stream,
        event: StreamEvent,
    ) -> Option<Outgoing> {
        let url = stream.callback.clone()?;
        let word = match event {
            StreamEvent::Started => "StartStream",
            StreamEvent::Stopped => "StopStream",
            StreamEvent::Failed => "DroppedStream",
        };
        let mut form = fields(desk, call);
        form.extend([("Event", word.to_owned()), ("StreamID", fresh().to_string())]);
        Some(signed(desk, &url, &form))
    }

    fn dialled(&self, desk: &Desk, call: &Call, action: &str) -> Option<Outgoing> {
        let mut form = fields(desk, call);
        form.extend([("DialStatus", "completed".to_owned()), ("DialBLegDuration", "1".to_owned())]);
        (!action.is_empty()).then(|| signed(desk, action, &form))
    }
}
