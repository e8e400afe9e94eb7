//! Twilio: forms and HTTP Basic, TwiML, X-Twilio-Signature.

use std::sync::Arc;

use roxmltree::{Document, Node};
use serde_json::json;

use super::course::{Control, Course, Event, fresh_id};
use super::http::{Answer, Outgoing, Request, value, wrong_name};
use super::media::{Encoding, Stream};
use super::{Call, Desk, Provider, Script, StreamEvent, Voice, proof};

const CREATE: &[&str] = &[
    "Url",
    "Twiml",
    "ApplicationSid",
    "Method",
    "FallbackUrl",
    "FallbackMethod",
    "StatusCallback",
    "StatusCallbackEvent",
    "StatusCallbackMethod",
    "SendDigits",
    "Timeout",
    "TimeLimit",
    "Record",
    "RecordingChannels",
    "RecordingStatusCallback",
    "RecordingStatusCallbackMethod",
    "RecordingStatusCallbackEvent",
    "RecordingTrack",
    "Trim",
    "SipAuthUsername",
    "SipAuthPassword",
    "MachineDetection",
    "MachineDetectionTimeout",
    "MachineDetectionSpeechThreshold",
    "MachineDetectionSpeechEndThreshold",
    "MachineDetectionSilenceTimeout",
    "AsyncAmd",
    "AsyncAmdStatusCallback",
    "AsyncAmdStatusCallbackMethod",
    "CallerId",
    "CallToken",
    "CallReason",
    "Byoc",
];
const UPDATE: &[&str] = &[
    "Url",
    "Method",
    "Status",
    "FallbackUrl",
    "FallbackMethod",
    "StatusCallback",
    "StatusCallbackMethod",
    "Twiml",
    "TimeLimit",
];
const STREAM: &[&str] = &["url", "name", "track", "statusCallback", "statusCallbackMethod", "connectorName"];
/// Characters of TwiML in a request.
const TWIML_MAX: usize = 4_000;

pub(crate) struct Twilio;

fn error(status: u16, code: u32, message: &str) -> Answer {
    let more = format!("https://www.twilio.com/docs/errors/{code}");
    Answer::json(status, json!({ "code": code, "message": message, "more_info": more, "status": status }))
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('+').unwrap_or_default();
    (7..=15).contains(&digits.len()) && digits.bytes().all(|octet| octet.is_ascii_digit())
}

fn create(desk: &Arc<Desk>, form: &[(String, String)]) -> Answer {
    let given = form.iter().map(|(name, _)| name.as_str());
    if let Some(wrong) = wrong_name(given, &[], &[CREATE, &["To", "From"]].concat()) {
        return error(400, 20_001, &wrong);
    }
    let Some(to) = value(form, "To") else { return error(400, 21_201, "No 'To' number is specified") };
    let Some(from) = value(form, "From") else {
        return error(400, 21_213, "'From' phone number is required");
    };
    if !is_number(to) {
        return error(400, 21_211, &format!("Invalid 'To' Phone Number: {to}"));
    }
    if from != desk.settings.number {
        return error(400, 21_210, &format!("Source phone number not yet verified for {from}"));
    }
    let script = match (value(form, "Url"), value(form, "Twiml")) {
        (Some(url), _) => Script::Fetch(url.to_owned()),
        (None, Some(twiml)) if twiml.chars().count() > TWIML_MAX => {
            return error(400, 21_218, "Twiml is longer than 4000 characters");
        }
        (None, Some(twiml)) => match Twilio.script(desk, twiml) {
            Ok(script) => script,
            Err(wrong) => return error(400, 12_100, &format!("Document parse failure: {wrong}")),
        },
        (None, None) => return error(400, 21_205, "Url is not a valid URL"),
    };
    let between = |name: &str, range: std::ops::RangeInclusive<u32>| {
        value(form, name).is_none_or(|text| text.parse().is_ok_and(|number| range.contains(&number)))
    };
    if !between("Timeout", 1..=600) || !between("TimeLimit", 1..=86_400) {
        return error(400, 20_001, "Timeout or TimeLimit is out of range");
    }
    if value(form, "MachineDetection").is_some_and(|word| !matches!(word, "Enable" | "DetectMessageEnd")) {
        return error(400, 20_001, "MachineDetection is Enable or DetectMessageEnd");
    }
    let wanted: Vec<String> = form
        .iter()
        .filter(|(name, _)| name == "StatusCallbackEvent")
        .map(|(_, value)| value.clone())
        .collect();
    let known = ["initiated", "ringing", "answered", "completed"];
    if let Some(wrong) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        return error(400, 21_626, &format!("StatusCallbackEvent {wrong} is not known"));
    }
    let mut course = Course::new(fresh_id(Provider::Twilio), from, to, true);
    course.status_url = value(form, "StatusCallback").map(str::to_owned);
    course.wanted = if wanted.is_empty() { vec!["completed".to_owned()] } else { wanted };
    course.script = Some(script);
    let call = desk.place(course);
    Answer::json(201, shown(desk, &call))
}

fn update(desk: &Arc<Desk>, call: &Call, form: &[(String, String)]) -> Answer {
    if let Some(wrong) = wrong_name(form.iter().map(|(name, _)| name.as_str()), &[], UPDATE) {
        return error(400, 20_001, &wrong);
    }
    if call.state().is_end() {
        return error(400, 21_220, "Call is not in-progress. Cannot redirect.");
    }
    let control = match (value(form, "Status"), value(form, "Url"), value(form, "Twiml")) {
        (Some("completed"), ..) => Control::End,
        (Some("canceled"), ..)
            if matches!(call.state(), Event::Queued | Event::Initiated | Event::Ringing) =>
        {
            Control::End
        }
        (Some("canceled"), ..) => return error(400, 21_220, "Call is in-progress. Cannot cancel."),
        (Some(_), ..) => return error(400, 21_221, "Status is completed or canceled"),
        (None, Some(url), _) => Control::Run(Script::Fetch(url.to_owned())),
        (None, None, Some(twiml)) => match Twilio.script(desk, twiml) {
            Ok(script) => Control::Run(script),
            Err(wrong) => return error(400, 12_100, &format!("Document parse failure: {wrong}")),
        },
        _ => return error(400, 20_001, "nothing to change"),
    };
    call.course().tell(control);
    Answer::json(200, shown(desk, call))
}

fn shown(desk: &Desk, call: &Call) -> serde_json::Value {
    let course = call.course();
    let account = &desk.settings.account;
    let date = "Tue, 01 Sep 2026 10:00:00 +0000";
    json!({
        "sid": course.id, "account_sid": account, "api_version": "2010-04-01", "from": course.from, "to": course.to,
        "from_formatted": course.from, "to_formatted": course.to, "status": word(course.state),
        "direction": if course.outbound { "outbound-api" } else { "inbound" }, "date_created": date, "date_updated": date,
        "start_time": null, "end_time": null, "duration": course.state.is_end().then(|| course.duration_s().to_string()),
        "price": null, "price_unit": "USD", "answered_by": null, "annotation": null, "caller_name": null,
        "forwarded_from": null, "group_sid": null, "parent_call_sid": null, "phone_number_sid": "", "queue_time": "0",
        "trunk_sid": null, "uri": format!("/2010-04-01/Accounts/{account}/Calls/{}.json", course.id),
        "subresource_uris": {},
    })
}

fn word(event: Event) -> &'static str {
    match event {
        Event::Answered => "in-progress",
        // Twilio has no word for it.
        Event::Rejected => "busy",
        other => other.word(),
    }
}

fn fields(desk: &Desk, call: &Call) -> Vec<(&'static str, String)> {
    let course = call.course();
    vec![
        ("AccountSid", desk.settings.account.clone()),
        ("ApiVersion", "2010-04-01".to_owned()),
        ("CallSid", course.id.clone()),
        ("Called", course.to.clone()),
        ("Caller", course.from.clone()),
        ("Direction", if course.outbound { "outbound-api" } else { "inbound" }.to_owned()),
        ("From", course.from.clone()),
        ("To", course.to.clone()),
    ]
}

fn signed(desk: &Desk, url: &str, form: &[(&'static str, String)]) -> Outgoing {
    let signature = proof::twilio(&desk.settings.webhook_secret, url, form);
    Outgoing::form(
        url,
        form,
        vec![("X-Twilio-Signature", signature), ("User-Agent", "TwilioProxy/1.1".to_owned())],
    )
}

fn attribute(node: Node<'_, '_>, name: &str) -> String {
    node.attribute(name).unwrap_or_default().to_owned()
}

fn first<'a, 'input>(node: Node<'a, 'input>) -> Option<Node<'a, 'input>> {
    node.children().find(Node::is_element)
}

impl Voice for Twilio {
    fn rest(&self, desk: &Arc<Desk>, request: &Request) -> Answer {
        let settings = &desk.settings;
        if request.basic() != Some((settings.account.clone(), settings.secret.clone())) {
            return error(401, 20_003, "Authenticate");
        }
        let found = |id: &str| id.strip_suffix(".json").and_then(|id| desk.call(id));
        let form = request.form().unwrap_or_default();
        let account = format!("{}.json", settings.account);
        match (request.method.as_str(), request.segments().as_slice()) {
            ("GET", ["2010-04-01", "Accounts", name]) if *name == account => {
                Answer::json(200, json!({ "sid": settings.account, "status": "active", "type": "Full" }))
            }
            ("POST", ["2010-04-01", "Accounts", sid, "Calls.json"]) if *sid == settings.account => {
                create(desk, &form)
            }
            ("POST", ["2010-04-01", "Accounts", sid, "Calls", id]) if *sid == settings.account => {
                match found(id) {
                    Some(call) => update(desk, &call, &form),
                    None => error(404, 20_404, "The requested resource was not found"),
                }
            }
            ("GET", ["2010-04-01", "Accounts", sid, "Calls", id]) if *sid == settings.account => {
                match found(id) {
                    Some(call) => Answer::json(200, shown(desk, &call)),
                    None => error(404, 20_404, "The requested resource was not found"),
                }
            }
            _ => error(404, 20_404, "The requested resource was not found"),
        }
    }

    fn announce(&self, desk: &Desk, call: &Call) -> Outgoing {
        self.fetch(desk, call, &desk.settings.call_url())
    }

    fn fetch(&self, desk: &Desk, call: &Call, url: &str) -> Outgoing {
        let mut form = fields(desk, call);
        let status = if call.course().outbound { "in-progress" } else { "ringing" };
        form.push(("CallStatus", status.to_owned()));
        signed(desk, url, &form)
    }

    fn script(&self, desk: &Desk, document: &str) -> Result<Script, String> {
        let parsed = Document::parse(document).map_err(|error| error.to_string())?;
        let response = parsed.root_element();
        if response.tag_name().name() != "Response" {
            return Err("the document is no <Response>".to_owned());
        }
        let Some(verb) = first(response) else { return Ok(Script::Hangup) };
        Ok(match verb.tag_name().name() {
            "Connect" => {
                let stream = first(verb)
                    .filter(|node| node.tag_name().name() == "Stream")
                    .ok_or("<Connect> is empty")?;
                if let Some(wrong) = wrong_name(stream.attributes().map(|a| a.name()), &["url"], STREAM) {
                    return Err(format!("<Stream>: {wrong}"));
                }
                let url = attribute(stream, "url");
                // Everything from the question mark on is dropped.
                let url = url.split('?').next().unwrap_or_default();
                let mut media = Stream::new(url, Encoding::Ulaw, 8_000);
                media.headers =
                    vec![("x-twilio-signature", proof::twilio(&desk.settings.webhook_secret, url, &[]))];
                media.callback = stream.attribute("statusCallback").map(str::to_owned);
                for parameter in stream.children().filter(Node::is_element) {
                    media.parameters.insert(attribute(parameter, "name"), attribute(parameter, "value"));
                }
                Script::Stream(media)
            }
            "Reject" => Script::Reject,
            "Say" => Script::Say(verb.text().unwrap_or_default().to_owned()),
            "Dial" => Script::Dial {
                to: first(verb).and_then(|node| node.text()).ok_or("<Dial> is empty")?.to_owned(),
                action: attribute(verb, "action"),
            },
            "Hangup" => Script::Hangup,
            other => return Err(format!("<{other}> is not known")),
        })
    }

    fn event(&self, desk: &Desk, call: &Call, event: Event) -> Option<Outgoing> {
        let (url, sequence, duration_s) = {
            let course = call.course();
            let name = if event.is_end() { "completed" } else { event.word() };
            let url = course.status_url.clone().filter(|_| course.wants(name))?;
            (url, course.sequence, course.duration_s())
        };
        let mut form = fields(desk, call);
        form.extend([
            ("CallStatus", word(event).to_owned()),
            ("CallbackSource", "call-progress-events".to_owned()),
            ("SequenceNumber", sequence.to_string()),
            ("Timestamp", "Tue, 01 Sep 2026 10:00:00 +0000".to_owned()),
        ]);
        match event {
            Event::Completed => {
                form.extend([("CallDuration", duration_s.to_string()), ("Duration", "1".to_owned())]);
            }
            Event::Rejected => form.push(("SipResponseCode", "603".to_owned())),
            _ => {}
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
        let (word, detail) = match event {
            StreamEvent::Started => ("stream-started", None),
            StreamEvent::Stopped => ("stream-stopped", None),
            StreamEvent::Failed => ("stream-error", Some("Stream - connection error")),
        };
        let mut form = vec![
            ("AccountSid", desk.settings.account.clone()),
            ("CallSid", call.id().to_owned()),
            ("StreamSid", format!("MZ{}", &call.id()[2..])),
            ("StreamEvent", word.to_owned()),
            ("Timestamp", "2026-09-01T10:00:00.000Z".to_owned()),
        ];
        form.extend(detail.map(|detail| ("StreamError", detail.to_owned())));
        Some(signed(desk, &url, &form))
    }

    fn dialled(&self, desk: &Desk, call: &Call, action: &str) -> Option<Outgoing> {
        let mut form = fields(desk, call);
        form.extend([("DialCallStatus", "completed".to_owned()), ("DialCallDuration", "1".to_owned())]);
        (!action.is_empty()).then(|| signed(desk, action, &form))
    }
}
