//! Telnyx, Call Control: JSON and a bearer key; events signed with Ed25519; calls are answered by the API.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::course::{Control, Course, Event, fresh_id};
use super::http::{Answer, Outgoing, Request, wrong_key};
use super::media::{Encoding, Stream};
use super::{Call, Desk, Provider, Script, StreamEvent, Voice, fresh, proof};

const STREAM: &[&str] = &[
    "stream_url",
    "stream_track",
    "stream_codec",
    "stream_bidirectional_mode",
    "stream_bidirectional_codec",
    "stream_bidirectional_sampling_rate",
    "stream_bidirectional_target_legs",
    "stream_auth_token",
    "webhook_url",
    "webhook_url_method",
    "client_state",
    "command_id",
];
const DIAL: &[&str] = &[
    "timeout_secs",
    "time_limit_secs",
    "answering_machine_detection",
    "stream_establish_before_call_originate",
];

pub(crate) struct Telnyx;

fn refused(status: u16, code: &str, title: &str, detail: &str) -> Answer {
    Answer::json(status, json!({ "errors": [{ "code": code, "title": title, "detail": detail }] }))
}

fn wrong(detail: &str) -> Answer {
    refused(422, "10015", "Invalid parameter", detail)
}

fn stream(body: &Json) -> Result<Option<Stream>, String> {
    let Some(url) = body["stream_url"].as_str() else { return Ok(None) };
    // Otherwise what we say would be dropped in silence, which a test should not have to find.
    if body["stream_bidirectional_mode"] != "rtp" || body["stream_bidirectional_codec"] != "PCMU" {
        return Err("without stream_bidirectional_mode and _codec nothing of yours is heard".to_owned());
    }
    let mut media = Stream::new(url, Encoding::Ulaw, 8_000);
    media.callback = body["webhook_url"].as_str().map(str::to_owned);
    Ok(Some(media))
}

/// What a command says about the call's news.
fn note(course: &mut Course, body: &Json) {
    if let Some(url) = body["webhook_url"].as_str() {
        course.status_url = Some(url.to_owned());
    }
    if let Some(state) = body["client_state"].as_str() {
        course.extra.insert("client_state", state.to_owned());
    }
}

fn dial(desk: &Arc<Desk>, body: &Json) -> Answer {
    if let Some(name) = wrong_key(body, &["connection_id", "to", "from"], &[STREAM, DIAL].concat()) {
        return wrong(&name);
    }
    if body["connection_id"] != desk.settings.key.as_str() {
        return wrong("connection_id is not known");
    }
    let text = |name: &str| body[name].as_str().unwrap_or_default();
    if !text("to").starts_with('+') || text("from") != desk.settings.number {
        return refused(422, "10016", "Phone number must be in +E164 format", "to, or from is not yours");
    }
    let script = match stream(body) {
        Ok(stream) => stream.map_or(Script::Wait, Script::Stream),
        Err(detail) => return wrong(&detail),
    };
    let mut course = Course::new(fresh_id(Provider::Telnyx), text("from"), text("to"), true);
    course.status_url = Some(desk.settings.call_url());
    note(&mut course, body);
    course.script = Some(script);
    Answer::json(200, shown(&desk.place(course)))
}

fn shown(call: &Call) -> Json {
    let course = call.course();
    json!({ "data": {
        "record_type": "call", "call_control_id": course.id, "call_leg_id": format!("leg-{}", course.id),
        "call_session_id": format!("session-{}", course.id), "is_alive": !course.state.is_end(),
        "client_state": course.extra.get("client_state"),
    } })
}

fn act(call: &Call, action: &str, body: &Json) -> Answer {
    let ok = || Answer::json(200, json!({ "data": { "result": "ok" } }));
    if call.state().is_end() {
        return refused(422, "90018", "Call has already ended", "This call is no longer active");
    }
    let (needed, known): (&[&str], &[&str]) = match action {
        "answer" => (&[], STREAM),
        "streaming_start" => (&["stream_url"], STREAM),
        "hangup" | "streaming_stop" => (&[], &["command_id", "client_state"]),
        "reject" => (&["cause"], &["command_id", "client_state"]),
        "transfer" => (
            &["to"],
            &["from", "timeout_secs", "webhook_url", "command_id", "client_state", "target_leg_client_state"],
        ),
        "send_dtmf" => (&["digits"], &["duration_millis", "command_id", "client_state"]),
        _ => return refused(404, "10005", "Resource not found", "no such action"),
    };
    if let Some(name) = wrong_key(body, needed, known) {
        return wrong(&name);
    }
    let control = match action {
        "answer" | "streaming_start" => match stream(body) {
            Ok(Some(stream)) => {
                note(&mut call.course(), body);
                Control::Run(Script::Stream(stream))
            }
            Ok(None) => return ok(),
            Err(detail) => return wrong(&detail),
        },
        "hangup" | "reject" => Control::End,
        "streaming_stop" => Control::Run(Script::Wait),
        "transfer" => {
            let to = body["to"].as_str().unwrap_or_default().to_owned();
            Control::Run(Script::Dial { to, action: String::new() })
        }
        _ => {
            call.course().digits.push_str(body["digits"].as_str().unwrap_or_default());
            return ok();
        }
    };
    call.course().tell(control);
    ok()
}

fn event_of(call: &Call, kind: &str, more: Json) -> String {
    let course = call.course();
    let mut payload = json!({
        "call_control_id": course.id, "call_leg_id": format!("leg-{}", course.id),
        "call_session_id": format!("session-{}", course.id), "client_state": course.extra.get("client_state"),
        "from": course.from, "to": course.to, "direction": if course.outbound { "outgoing" } else { "incoming" },
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        payload[name] = value.clone();
    }
    json!({ "data": { "record_type": "event", "event_type": kind, "id": fresh(),
        "occurred_at": "2026-09-01T10:00:00.000000Z", "payload": payload } })
    .to_string()
}

fn posted(url: &str, body: String) -> Outgoing {
    let headers = proof::telnyx(&body);
    Outgoing::json(url, body, headers)
}

impl Voice for Telnyx {
    fn rest(&self, desk: &Arc<Desk>, request: &Request) -> Answer {
        if request.bearer() != desk.settings.secret {
            return refused(401, "10009", "Authentication failed", "The API key is not valid");
        }
        let gone = || refused(404, "10005", "Resource not found", "no such call");
        let body = request.json().unwrap_or_default();
        match (request.method.as_str(), request.segments().as_slice()) {
            ("GET", ["v2", "balance"]) => {
                Answer::json(200, json!({ "data": { "balance": "1.00", "currency": "USD" } }))
            }
            ("POST", ["v2", "calls"]) => dial(desk, &body),
            ("GET", ["v2", "calls", id]) => {
                desk.call(id).map_or_else(gone, |call| Answer::json(200, shown(&call)))
            }
            ("POST", ["v2", "calls", id, "actions", action]) => {
                desk.call(id).map_or_else(gone, |call| act(&call, action, &body))
            }
            _ => gone(),
        }
    }

    fn announce(&self, desk: &Desk, call: &Call) -> Outgoing {
        let url = desk.settings.call_url();
        call.course().status_url = Some(url.clone());
        self.fetch(desk, call, &url)
    }

    fn fetch(&self, _desk: &Desk, call: &Call, url: &str) -> Outgoing {
        posted(url, event_of(call, "call.initiated", json!({ "state": "parked" })))
    }

    fn script(&self, _desk: &Desk, _document: &str) -> Result<Script, String> {
        Ok(Script::Wait)
    }

    fn event(&self, _desk: &Desk, call: &Call, event: Event) -> Option<Outgoing> {
        let url = call.course().status_url.clone()?;
        let cause = match event {
            Event::Initiated => {
                return Some(posted(&url, event_of(call, "call.initiated", json!({ "state": "dialing" }))));
            }
            Event::Answered => {
                return Some(posted(&url, event_of(call, "call.answered", json!({ "state": "answered" }))));
            }
            Event::Queued | Event::Ringing => return None,
            Event::Completed => "normal_clearing",
            Event::Busy => "user_busy",
            Event::NoAnswer => "timeout",
            Event::Canceled => "originator_cancel",
            Event::Rejected => "call_rejected",
        };
        let more = json!({ "state": "hangup", "hangup_cause": cause, "hangup_source": "callee" });
        Some(posted(&url, event_of(call, "call.hangup", more)))
    }

    fn stream_event(
        &self,
        _desk: &Desk,
        call: &Call,
        stream: &Stream,
        event: StreamEvent,
    ) -> Option<Outgoing> {
        let url = stream.callback.clone()?;
        let kind = match event {
            StreamEvent::Started => "streaming.started",
            StreamEvent::Stopped => "streaming.stopped",
            StreamEvent::Failed => "streaming.failed",
        };
        Some(posted(&url, event_of(call, kind, json!({ "stream_id": fresh() }))))
    }
}
