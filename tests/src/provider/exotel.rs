//! Exotel: forms and HTTP Basic, `{"url":…}`, webhooks that are proved by a password alone.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::course::{Course, Event, fresh_id};
use super::http::{Answer, Outgoing, Request, value, wrong_name};
use super::media::{Encoding, Stream};
use super::{Call, Desk, Provider, Script, StreamEvent, Voice, proof};

const CONNECT: &[&str] = &[
    "StreamUrl",
    "StreamType",
    "StreamName",
    "Url",
    "CallType",
    "TimeLimit",
    "TimeOut",
    "Record",
    "RecordingChannels",
    "CustomField",
    "StatusCallback",
    "StatusCallbackEvents[]",
];

pub(crate) struct Exotel;

fn refused(status: u16, code: u32, message: &str) -> Answer {
    Answer::json(status, json!({ "RestException": { "Status": status, "Message": message, "Code": code } }))
}

fn connect(desk: &Arc<Desk>, form: &[(String, String)]) -> Answer {
    let given = form.iter().map(|(name, _)| name.as_str());
    if let Some(wrong) = wrong_name(given, &["From", "CallerId"], CONNECT) {
        return refused(400, 34_001, &wrong);
    }
    let text = |name: &str| value(form, name).unwrap_or_default().to_owned();
    if text("CallerId") != desk.settings.number {
        return refused(403, 34_002, "CallerId is not an ExoPhone of this account");
    }
    if text("CustomField").len() > 128 || text("StreamUrl").len() >= 600 {
        return refused(400, 34_001, "CustomField or StreamUrl is too long");
    }
    let script = match (value(form, "StreamUrl"), value(form, "Url")) {
        (Some(url), None) if value(form, "StreamType") == Some("bidirectional") => {
            Script::Stream(stream(desk, url))
        }
        // The flow's Voicebot applet asks for its URL.
        (None, Some(url))
            if url.starts_with("http://my.exotel.com/") && value(form, "CallType") == Some("trans") =>
        {
            Script::Fetch(desk.settings.call_url())
        }
        _ => {
            return refused(
                400,
                34_001,
                "StreamUrl with StreamType=bidirectional, or Url of a flow with CallType=trans",
            );
        }
    };
    // Whom to dial is called From here.
    let mut course = Course::new(fresh_id(Provider::Exotel), &text("CallerId"), &text("From"), true);
    course.status_url = value(form, "StatusCallback").map(str::to_owned);
    course.wanted = form
        .iter()
        .filter(|(name, _)| name == "StatusCallbackEvents[]")
        .map(|(_, value)| value.clone())
        .collect();
    course.script = Some(script);
    if let Some(custom) = value(form, "CustomField") {
        course.extra.insert("CustomField", custom.to_owned());
    }
    let call = desk.place(course);
    Answer::json(200, shown(&call))
}

fn shown(call: &Call) -> Json {
    let course = call.course();
    json!({ "Call": {
        "Sid": course.id, "ParentCallSid": null, "Status": word(course.state), "From": course.to, "To": course.from,
        "PhoneNumberSid": course.from, "Direction": if course.outbound { "outbound-api" } else { "inbound" },
        "DateCreated": "2026-09-01 10:00:00", "RecordingUrl": null, "Duration": course.duration_s(),
    } })
}

fn word(event: Event) -> &'static str {
    match event {
        Event::Queued | Event::Initiated => "queued",
        Event::Ringing | Event::Answered => "in-progress",
        Event::Completed => "completed",
        Event::Busy => "busy",
        Event::NoAnswer => "no-answer",
        Event::Canceled | Event::Rejected => "failed",
    }
}

fn authorization(desk: &Desk) -> String {
    proof::basic(&desk.settings.webhook_user, &desk.settings.webhook_secret)
}

fn stream(desk: &Desk, url: &str) -> Stream {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let mut media = Stream::new(url, Encoding::L16, 8_000);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "sample-rate" => media.rate_hz = value.parse().unwrap_or(8_000),
            _ => drop(media.parameters.insert(name.into_owned(), value.into_owned())),
        }
    }
    media.headers = vec![("authorization", authorization(desk))];
    media
}

impl Voice for Exotel {
    fn rest(&self, desk: &Arc<Desk>, request: &Request) -> Answer {
        let settings = &desk.settings;
        if request.basic() != Some((settings.key.clone(), settings.secret.clone())) {
            return refused(401, 34_010, "Authentication failed");
        }
        let form = request.form().unwrap_or_default();
        match (request.method.as_str(), request.segments().as_slice()) {
            ("POST", ["v1", "Accounts", sid, "Calls", "connect" | "connect.json"])
                if *sid == settings.account =>
            {
                connect(desk, &form)
            }
            ("GET", ["v1", "Accounts", sid, "Calls.json"]) if *sid == settings.account => {
                Answer::json(200, json!({ "Metadata": { "Total": 0 }, "Calls": [] }))
            }
            ("GET", ["v1", "Accounts", sid, "Calls", id]) if *sid == settings.account => {
                let call = id.strip_suffix(".json").and_then(|id| desk.call(id));
                call.map_or_else(
                    || refused(404, 34_004, "Call not found"),
                    |call| Answer::json(200, shown(&call)),
                )
            }
            _ => refused(404, 34_004, "Resource not found"),
        }
    }

    fn announce(&self, desk: &Desk, call: &Call) -> Outgoing {
        self.fetch(desk, call, &desk.settings.call_url())
    }

    fn fetch(&self, desk: &Desk, call: &Call, url: &str) -> Outgoing {
        let course = call.course();
        let mut query = vec![
            ("CallSid", course.id.clone()),
            ("CallFrom", course.from.clone()),
            ("CallTo", course.to.clone()),
            ("Direction", if course.outbound { "outbound-dial" } else { "incoming" }.to_owned()),
        ];
        query.extend(course.extra.get("CustomField").map(|custom| ("CustomField", custom.clone())));
        Outgoing::get(url, &query, vec![("Authorization", authorization(desk))])
    }

    fn script(&self, desk: &Desk, document: &str) -> Result<Script, String> {
        let document: Json = serde_json::from_str(document).map_err(|error| error.to_string())?;
        let url = document["url"].as_str().ok_or("no url")?;
        let stream = stream(desk, url);
        if !matches!(stream.rate_hz, 8_000 | 16_000 | 24_000) {
            return Err(format!("sample-rate {}", stream.rate_hz));
        }
        let length: usize = stream.parameters.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if stream.parameters.len() > 3 || length > 256 {
            return Err("more than three parameters, or more than 256 characters of them".to_owned());
        }
        Ok(Script::Stream(stream))
    }

    fn event(&self, desk: &Desk, call: &Call, event: Event) -> Option<Outgoing> {
        let course = call.course();
        let kind = match event {
            Event::Ringing => "ringing",
            Event::Answered => "answered",
            _ if event.is_end() => "terminal",
            _ => return None,
        };
        let url = course.status_url.clone().filter(|_| course.wants(kind))?;
        let mut form = vec![
            ("CallSid", course.id.clone()),
            ("EventType", kind.to_owned()),
            ("Status", word(event).to_owned()),
            ("From", course.to.clone()),
            ("To", course.from.clone()),
            ("PhoneNumberSid", course.from.clone()),
            ("Direction", "outbound-api".to_owned()),
            ("DateCreated", "2026-09-01 10:00:00".to_owned()),
            ("DateUpdated", "2026-09-01 10:00:01".to_owned()),
        ];
        if event.is_end() {
            form.push(("ConversationDuration", course.duration_s().to_string()));
            form.extend(course.extra.get("CustomField").map(|custom| ("CustomField", custom.clone())));
        }
        Some(Outgoing::form(&url, &form, vec![("Authorization", authorization(desk))]))
    }

    fn stream_event(
        &self,
        _desk: &Desk,
        _call: &Call,
        _stream: &Stream,
        _event: StreamEvent,
    ) -> Option<Outgoing> {
        // Only a Passthru applet would say.
        None
    }
}
