//! An Asterisk: a dialplan that asks for a UUID and dials AudioSocket, and ARI.

use std::sync::Arc;

use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::course::{Control, Course, Event, fresh_id};
use super::http::{Answer, Outgoing, Request, value, wrong_name};
use super::media::{Encoding, Stream};
use super::{Call, Desk, Provider, Script, StreamEvent, Voice};

const ORIGINATE: &[&str] = &[
    "app",
    "appArgs",
    "context",
    "extension",
    "priority",
    "label",
    "callerId",
    "timeout",
    "channelId",
    "otherChannelId",
    "originator",
    "formats",
];
const REASONS: &[&str] = &[
    "normal",
    "busy",
    "congestion",
    "no_answer",
    "timeout",
    "rejected",
    "unallocated",
    "normal_unspecified",
    "number_incomplete",
    "codec_mismatch",
    "interworking",
    "failure",
    "answered_elsewhere",
];

pub(crate) struct Asterisk;

fn refused(status: u16, message: &str) -> Answer {
    Answer::json(status, json!({ "message": message }))
}

fn stream(desk: &Desk, uuid: &str) -> Result<Script, String> {
    let uuid: Uuid = uuid.parse().map_err(|_| format!("{uuid:?} is no UUID"))?;
    let address = desk.settings.audiosocket.ok_or("no AudioSocket address in the settings")?;
    let mut media = Stream::new("", Encoding::L16, 8_000);
    media.audiosocket = Some((address, uuid));
    Ok(Script::Stream(media))
}

fn originate(desk: &Arc<Desk>, id: String, request: &Request) -> Answer {
    let query = &request.query;
    if let Some(wrong) = wrong_name(query.iter().map(|(name, _)| name.as_str()), &["endpoint"], ORIGINATE) {
        return refused(400, &wrong);
    }
    if desk.call(&id).is_some() {
        return refused(409, "Channel with given unique ID already exists");
    }
    let endpoint = value(query, "endpoint").unwrap_or_default();
    let Some((_, place)) = endpoint.split_once('/') else {
        return refused(400, "Invalid Endpoint specified");
    };
    let has_app = value(query, "app").is_some();
    if has_app == value(query, "context").is_some() {
        return refused(400, "Application or extension must be specified");
    }
    let variables = request.json().unwrap_or_default()["variables"].clone();
    let mut course = Course::new(id, value(query, "callerId").unwrap_or_default(), place, true);
    course.status_url = variables["TANDEM_EVENT_URL"].as_str().map(str::to_owned);
    // The dialplan: AudioSocket(${TANDEM_CTX},…).
    course.script = match stream(desk, variables["TANDEM_CTX"].as_str().unwrap_or_default()) {
        Ok(script) => Some(script),
        Err(why) => return refused(400, &why),
    };
    Answer::json(200, shown(&desk.place(course)))
}

fn shown(call: &Call) -> Json {
    let course = call.course();
    let state = match course.state {
        Event::Queued | Event::Initiated => "Down",
        Event::Ringing => "Ringing",
        _ => "Up",
    };
    json!({
        "id": course.id, "name": format!("PJSIP/carrier-{}", course.id), "state": state, "language": "en",
        "caller": { "name": "", "number": course.from }, "connected": { "name": "", "number": course.to },
        "accountcode": "", "dialplan": { "context": "tandem-out", "exten": "s", "priority": 1 },
        "creationtime": "2026-09-01T10:00:00.000+0000", "protocol_id": "",
    })
}

impl Voice for Asterisk {
    fn rest(&self, desk: &Arc<Desk>, request: &Request) -> Answer {
        let settings = &desk.settings;
        if request.basic() != Some((settings.account.clone(), settings.secret.clone())) {
            return refused(401, "Authentication required");
        }
        let gone = || refused(404, "Channel not found");
        let live = |id: &str| desk.call(id).filter(|call| !call.state().is_end());
        let query = &request.query;
        let names = || query.iter().map(|(name, _)| name.as_str());
        match (request.method.as_str(), request.segments().as_slice()) {
            ("GET", ["ari", "asterisk", "info"]) => Answer::json(
                200,
                json!({ "system": { "version": "22.7.0", "entity_id": "00:00:00:00:00:01" } }),
            ),
            ("POST", ["ari", "channels"]) => {
                let id =
                    value(query, "channelId").map_or_else(|| fresh_id(Provider::Asterisk), str::to_owned);
                originate(desk, id, request)
            }
            ("POST", ["ari", "channels", id]) => originate(desk, (*id).to_owned(), request),
            ("GET", ["ari", "channels", id]) => {
                live(id).map_or_else(gone, |call| Answer::json(200, shown(&call)))
            }
            ("DELETE", ["ari", "channels", id]) => {
                if let Some(wrong) = wrong_name(names(), &[], &["reason", "reason_code"]) {
                    return refused(400, &wrong);
                }
                if value(query, "reason").is_some_and(|reason| !REASONS.contains(&reason)) {
                    return refused(400, "Invalid Reason specified");
                }
                live(id).map_or_else(gone, |call| {
                    call.course().tell(Control::End);
                    Answer::empty(204)
                })
            }
            ("POST", ["ari", "channels", id, "dtmf"]) => match (live(id), value(query, "dtmf")) {
                (None, _) => gone(),
                (Some(_), None) => refused(400, "DTMF is required"),
                (Some(call), Some(digits)) => {
                    call.course().digits.push_str(digits);
                    Answer::empty(204)
                }
            },
            ("POST", ["ari", "channels", id, "redirect"]) => match (live(id), value(query, "endpoint")) {
                (None, _) => gone(),
                (Some(_), None) => refused(400, "Endpoint must be specified"),
                (Some(call), Some(to)) => {
                    call.course()
                        .tell(Control::Run(Script::Dial { to: to.to_owned(), action: String::new() }));
                    Answer::empty(204)
                }
            },
            ("POST", ["ari", "channels", id, "continue"]) => {
                match wrong_name(names(), &[], &["context", "extension", "priority", "label"]) {
                    Some(wrong) => refused(400, &wrong),
                    None => live(id).map_or_else(gone, |_| Answer::empty(204)),
                }
            }
            // A call that runs in the dialplan is in no Stasis application.
            ("POST", ["ari", "channels", id, "answer"]) => {
                live(id).map_or_else(gone, |_| refused(409, "Channel not in Stasis application"))
            }
            _ => refused(404, "Resource not found"),
        }
    }

    fn announce(&self, desk: &Desk, call: &Call) -> Outgoing {
        self.fetch(desk, call, &desk.settings.call_url())
    }

    fn fetch(&self, desk: &Desk, call: &Call, url: &str) -> Outgoing {
        let course = call.course();
        let query =
            [("from", course.from.clone()), ("to", course.to.clone()), ("channel_id", course.id.clone())];
        Outgoing::get(url, &query, vec![("x-api-key", desk.settings.webhook_secret.clone())])
    }

    fn script(&self, desk: &Desk, document: &str) -> Result<Script, String> {
        // GotoIf($["${CTX}"=""]?fail)
        if document.is_empty() { Ok(Script::Reject) } else { stream(desk, document) }
    }

    fn event(&self, desk: &Desk, call: &Call, event: Event) -> Option<Outgoing> {
        let course = call.course();
        let url = course.status_url.clone()?;
        // The dialplan's `h` extension speaks once, at the end; without a Dial() there is no DIALSTATUS.
        let (cause, word) = match event {
            Event::Completed => (16, ""),
            Event::Busy => (17, ""),
            Event::NoAnswer => (19, ""),
            Event::Canceled => (16, "CANCEL"),
            Event::Rejected => (21, ""),
            _ => return None,
        };
        let query = [
            ("channel_id", course.id.clone()),
            ("cause", cause.to_string()),
            ("dialstatus", word.to_owned()),
        ];
        Some(Outgoing::get(&url, &query, vec![("x-api-key", desk.settings.webhook_secret.clone())]))
    }

    fn stream_event(
        &self,
        _desk: &Desk,
        _call: &Call,
        _stream: &Stream,
        _event: StreamEvent,
    ) -> Option<Outgoing> {
        None
    }
}
