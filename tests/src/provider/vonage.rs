//! Vonage: JSON and RS256 to the API, NCCO, HS256 on webhooks. Numbers have no plus.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::course::{Control, Course, Event, fresh_id};
use super::http::{Answer, Outgoing, Request, wrong_key};
use super::media::{Encoding, Stream};
use super::{Call, Desk, Provider, Script, StreamEvent, Voice, fresh, proof};

const CREATE: &[&str] = &[
    "from",
    "random_from_number",
    "ncco",
    "answer_url",
    "answer_method",
    "event_url",
    "event_method",
    "machine_detection",
    "advanced_machine_detection",
    "length_timer",
    "ringing_timer",
];
const CONNECT: &[&str] = &[
    "from",
    "randomFromNumber",
    "eventType",
    "eventUrl",
    "eventMethod",
    "timeout",
    "limit",
    "machineDetection",
    "advancedMachineDetection",
    "ringbackTone",
];
/// Octets of an endpoint's headers.
const HEADERS_MAX: usize = 512;

pub(crate) struct Vonage;

fn digits(number: &str) -> String {
    number.trim_start_matches('+').to_owned()
}

fn refused(status: u16, title: &str, detail: &str, parameter: Option<&str>) -> Answer {
    let mut body = json!({ "type": "https://developer.vonage.com/api-errors", "title": title, "detail": detail,
        "instance": fresh() });
    if let Some(name) = parameter {
        body["invalid_parameters"] = json!([{ "name": name, "reason": detail }]);
    }
    Answer::json(status, body)
}

fn bad(detail: &str, parameter: &str) -> Answer {
    refused(400, "Bad Request", detail, Some(parameter))
}

fn is_number(number: &Json) -> bool {
    number
        .as_str()
        .is_some_and(|text| (7..=15).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()))
}

fn between(value: &Json, range: std::ops::RangeInclusive<u64>) -> bool {
    value.is_null() || value.as_u64().is_some_and(|number| range.contains(&number))
}

fn create(desk: &Arc<Desk>, body: &Json) -> Answer {
    if let Some(wrong) = wrong_key(body, &["to"], CREATE) {
        return bad(&wrong, wrong.rsplit(' ').next().unwrap_or_default());
    }
    let to = &body["to"][0];
    if body["to"].as_array().is_none_or(|list| list.len() != 1)
        || to["type"] != "phone"
        || !is_number(&to["number"])
    {
        return bad("to is one endpoint with digits only", "to");
    }
    let is_random = body["random_from_number"] == true;
    if is_random == body.get("from").is_some() {
        return bad("one of from and random_from_number", "from");
    }
    if !is_random && body["from"]["number"] != digits(&desk.settings.number) {
        return bad("from is not a number of this application", "from");
    }
    if !between(&body["ringing_timer"], 1..=120) || !between(&body["length_timer"], 1..=86_400) {
        return bad("a timer is out of range", "ringing_timer");
    }
    let script = match (body.get("ncco"), body.get("answer_url")) {
        (Some(ncco), None) => match Vonage.script(desk, &ncco.to_string()) {
            Ok(script) => script,
            Err(wrong) => return bad(&wrong, "ncco"),
        },
        (None, Some(urls)) => match urls[0].as_str() {
            Some(url) => Script::Fetch(url.to_owned()),
            None => return bad("answer_url is a list", "answer_url"),
        },
        _ => return bad("one of ncco and answer_url", "ncco"),
    };
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let mut course =
        Course::new(fresh_id(Provider::Vonage), &text(&body["from"]["number"]), &text(&to["number"]), true);
    course.status_url = body["event_url"][0].as_str().map(str::to_owned);
    course.script = Some(script);
    let conversation = format!("CON-{}", course.id);
    let call = desk.place(course);
    Answer::json(
        201,
        json!({ "uuid": call.id(), "status": "started", "direction": "outbound", "conversation_uuid": conversation }),
    )
}

fn change(desk: &Desk, call: &Call, body: &Json) -> Answer {
    let control = match body["action"].as_str() {
        Some("hangup") => Control::End,
        Some("mute" | "unmute" | "earmuff" | "unearmuff") => return Answer::empty(204),
        Some("transfer") => {
            let destination = &body["destination"];
            let script = match (destination.get("ncco"), destination["url"][0].as_str()) {
                (Some(ncco), None) => Vonage.script(desk, &ncco.to_string()),
                (None, Some(url)) => Ok(Script::Fetch(url.to_owned())),
                _ => Err("one of ncco and url".to_owned()),
            };
            match script {
                Ok(script) if destination["type"] == "ncco" => Control::Run(script),
                Ok(_) => return bad("type is ncco", "destination"),
                Err(wrong) => return bad(&wrong, "destination"),
            }
        }
        _ => return bad("an action that is not known", "action"),
    };
    if let Some(wrong) = wrong_key(body, &["action"], &["destination"]) {
        return bad(&wrong, "action");
    }
    call.course().tell(control);
    Answer::empty(204)
}

fn word(event: Event) -> &'static str {
    match event {
        Event::Queued | Event::Initiated => "started",
        Event::NoAnswer => "unanswered",
        Event::Canceled => "cancelled",
        other => other.word(),
    }
}

fn shown(call: &Call) -> Json {
    let course = call.course();
    let place = |number: &str| json!({ "type": "phone", "number": digits(number) });
    json!({
        "uuid": course.id, "conversation_uuid": format!("CON-{}", course.id), "from": place(&course.from),
        "to": place(&course.to), "status": word(course.state),
        "direction": if course.outbound { "outbound" } else { "inbound" }, "rate": "0.01", "price": "0.01",
        "duration": course.duration_s().to_string(), "start_time": "2026-09-01T10:00:00.000Z",
        "end_time": "2026-09-01T10:01:00.000Z", "network": "65512",
        "_links": { "self": { "href": format!("/calls/{}", course.id) } },
    })
}

fn token(desk: &Desk, body: &str) -> Vec<(&'static str, String)> {
    let settings = &desk.settings;
    vec![("Authorization", proof::vonage(&settings.webhook_secret, &settings.key, &settings.account, body))]
}

fn posted(desk: &Desk, url: &str, body: &Json) -> Outgoing {
    let body = body.to_string();
    let headers = token(desk, &body);
    Outgoing::json(url, body, headers)
}

impl Voice for Vonage {
    fn rest(&self, desk: &Arc<Desk>, request: &Request) -> Answer {
        let settings = &desk.settings;
        if let Err(wrong) = proof::check_vonage(&settings.secret, &settings.account, request.bearer()) {
            return refused(
                401,
                "Unauthorized",
                &format!("You did not provide correct credentials: {wrong}"),
                None,
            );
        }
        let gone = || refused(404, "Not Found", "Call not found", None);
        let live = |id: &str| desk.call(id).filter(|call| !call.state().is_end());
        let body = request.json().unwrap_or_default();
        match (request.method.as_str(), request.segments().as_slice()) {
            ("POST", ["v1", "calls"]) => create(desk, &body),
            ("GET", ["v1", "calls"]) => {
                let none =
                    json!({ "count": 0, "page_size": 1, "record_index": 0, "_embedded": { "calls": [] } });
                Answer::json(200, none)
            }
            ("GET", ["v1", "calls", id]) => {
                desk.call(id).map_or_else(gone, |call| Answer::json(200, shown(&call)))
            }
            ("PUT", ["v1", "calls", id]) => live(id).map_or_else(gone, |call| change(desk, &call, &body)),
            ("PUT", ["v1", "calls", id, "dtmf"]) => match (live(id), body["digits"].as_str()) {
                (None, _) => gone(),
                (Some(call), Some(digits)) if digits.bytes().all(|b| b"0123456789*#p".contains(&b)) => {
                    call.course().digits.push_str(digits);
                    Answer::json(200, json!({ "message": "DTMF sent", "uuid": id }))
                }
                _ => bad("digits are 0-9, *, # and p", "digits"),
            },
            _ => gone(),
        }
    }

    fn announce(&self, desk: &Desk, call: &Call) -> Outgoing {
        self.fetch(desk, call, &desk.settings.call_url())
    }

    fn fetch(&self, desk: &Desk, call: &Call, url: &str) -> Outgoing {
        let course = call.course();
        let query = [
            ("to", digits(&course.to)),
            ("from", digits(&course.from)),
            ("uuid", course.id.clone()),
            ("conversation_uuid", format!("CON-{}", course.id)),
        ];
        Outgoing::get(url, &query, token(desk, ""))
    }

    fn script(&self, _desk: &Desk, document: &str) -> Result<Script, String> {
        if document.is_empty() {
            return Ok(Script::Hangup);
        }
        let ncco: Json = serde_json::from_str(document).map_err(|error| error.to_string())?;
        let actions = ncco.as_array().ok_or("an NCCO is a list")?;
        let Some(action) = actions.first() else { return Ok(Script::Hangup) };
        match action["action"].as_str() {
            Some("talk") => Ok(Script::Say(action["text"].as_str().unwrap_or_default().to_owned())),
            Some("connect") => {
                if let Some(wrong) = wrong_key(action, &["action", "endpoint"], CONNECT) {
                    return Err(format!("connect: {wrong}"));
                }
                let callback = action["eventUrl"][0].as_str().map(str::to_owned);
                let endpoint = &action["endpoint"][0];
                if endpoint["type"] != "websocket" {
                    let place = endpoint["number"].as_str().or(endpoint["uri"].as_str());
                    let to = place.ok_or("an endpoint without a number")?.to_owned();
                    return Ok(Script::Dial { to, action: callback.unwrap_or_default() });
                }
                if let Some(wrong) =
                    wrong_key(endpoint, &["type", "uri", "content-type"], &["headers", "authorization"])
                {
                    return Err(format!("endpoint: {wrong}"));
                }
                if action["from"].as_str().is_none_or(|from| from.starts_with('+')) {
                    return Err("from is missing, or has a plus".to_owned());
                }
                let rate_hz = match endpoint["content-type"].as_str() {
                    Some("audio/l16;rate=8000") => 8_000,
                    Some("audio/l16;rate=16000") => 16_000,
                    Some("audio/l16;rate=24000") => 24_000,
                    other => return Err(format!("content-type {other:?}")),
                };
                let mut media =
                    Stream::new(endpoint["uri"].as_str().unwrap_or_default(), Encoding::L16, rate_hz);
                if endpoint["headers"].to_string().len() > HEADERS_MAX {
                    return Err("headers are longer than 512 octets".to_owned());
                }
                for (name, value) in endpoint["headers"].as_object().into_iter().flatten() {
                    media.parameters.insert(name.clone(), value.as_str().unwrap_or_default().to_owned());
                }
                let custom = endpoint["authorization"]["value"].as_str();
                media.headers = custom.map(|value| ("authorization", value.to_owned())).into_iter().collect();
                media.callback = callback;
                Ok(Script::Stream(media))
            }
            other => Err(format!("action {other:?} is not known")),
        }
    }

    fn event(&self, desk: &Desk, call: &Call, event: Event) -> Option<Outgoing> {
        let body = {
            let course = call.course();
            let mut body = json!({
                "uuid": course.id, "conversation_uuid": format!("CON-{}", course.id), "status": word(event),
                "direction": if course.outbound { "outbound" } else { "inbound" }, "from": digits(&course.from),
                "to": digits(&course.to), "timestamp": "2026-09-01T10:00:00.000Z",
            });
            match event {
                Event::Completed => body["duration"] = json!(course.duration_s().to_string()),
                Event::NoAnswer => body["detail"] = json!("timeout"),
                Event::Rejected => body["detail"] = json!("declined"),
                _ => {}
            }
            body
        };
        let url = call.course().status_url.clone()?;
        Some(posted(desk, &url, &body))
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
            StreamEvent::Started => "answered",
            StreamEvent::Stopped => "disconnected",
            StreamEvent::Failed => "failed",
        };
        // The socket is a leg of its own.
        let body = json!({
            "uuid": format!("ws-{}", call.id()), "conversation_uuid": format!("CON-{}", call.id()), "status": word,
            "direction": "outbound", "from": digits(&desk.settings.number), "to": stream.url,
            "headers": stream.parameters, "timestamp": "2026-09-01T10:00:00.000Z",
        });
        Some(posted(desk, &url, &body))
    }
}
