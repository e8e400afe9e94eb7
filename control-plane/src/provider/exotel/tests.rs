use std::net::IpAddr;

use serde_json::json;

use super::*;
use crate::provider::asked::{Asked, STAMP, account as open_account, answered, dial, form_of};
use crate::provider::document::tests::plan;
use crate::provider::rest::MachineDetection;

const URL: &str = "https://voice.example.test/v1/telephony/exotel/call/42";

fn fields() -> Json {
    json!({
        "account_sid": "acme1", "client_id": "key", "client_secret": "token", "region": "in",
        "webhook_user": "demo-exotel", "webhook_password": "demo-exotel-token", "allow": ["203.0.113.0/28"],
    })
}

fn account() -> Arc<dyn Account> {
    open_account("exotel", fields())
}

fn proved(asked: Asked) -> Asked {
    asked.header("authorization", &proof::basic_header("demo-exotel", &"demo-exotel-token".into()))
}

fn event(asked: Asked) -> StatusEvent {
    match proved(asked).event().webhook(&account()) {
        Ok(Webhook::Status(event)) => event,
        other => panic!("{other:?}"),
    }
}

/// C1, C2 as far as there is something to prove.
#[test]
fn password_or_address_is_asked_for() {
    let asked = || Asked::get(&format!("{URL}?CallSid=c1&CallFrom=09876543210&CallTo=08047112233"));
    let refused = |asked: Asked| asked.webhook(&account()).unwrap_err();
    assert!(matches!(proved(asked()).webhook(&account()), Ok(Webhook::Inbound(_))));
    let allowed = |source: &str| Asked { source: source.parse().unwrap(), ..asked() };
    assert!(allowed("203.0.113.9").webhook(&account()).is_ok());
    assert!(allowed("::ffff:203.0.113.9").webhook(&account()).is_ok());
    assert_eq!(refused(allowed("203.0.113.99")), Refusal::Source(IpAddr::from([203, 0, 113, 99])));
    assert_eq!(refused(asked()).status(), 403);
    for (user, password) in [("demo-exotel", "wrong"), ("wrong", "demo-exotel-token"), ("", "")] {
        let wrong = asked().header("authorization", &proof::basic_header(user, &password.into()));
        assert_eq!(refused(wrong).status(), 403);
    }
    let mut open = fields();
    for key in ["webhook_user", "webhook_password", "allow"] {
        open.as_object_mut().unwrap().remove(key);
    }
    let refusal = proved(asked()).webhook(&open_account("exotel", open)).unwrap_err();
    assert!(matches!(refusal, Refusal::Uncheckable(_)) && refusal.status() == 403);
}

/// The socket's URL has no place for a password: the claim in its path is the proof.
#[test]
fn media_connection_needs_no_password() {
    let url =
        "https://voice.example.test/v1/media/exotel/00000000-0000-0000-0000-000000001234?sample-rate=8000";
    let upgrade = |asked: Asked| Asked { endpoint: Endpoint::Media, ..asked };
    for asked in [Asked::get(url), proved(Asked::get(url))] {
        assert_eq!(upgrade(asked.clone()).to(|request| account().upgrade(request)), Ok(()));
        // And is no webhook, whoever sends it.
        assert!(upgrade(asked).webhook(&account()).is_err());
    }
    assert!(!account().answer(&plan(&[])).body.contains("demo-exotel"));
    let placed = account().dial(&dial(&[], MachineDetection::Off), STAMP).unwrap();
    let url = form_of(&placed).into_iter().find(|(name, _)| name == "StreamUrl").unwrap().1;
    assert!(url.starts_with("wss://m.example.test/") && !url.contains("demo-exotel-token"), "{url}");
}

#[test]
fn names_are_matched_in_any_case_and_the_rest_are_arguments() {
    let asked = Asked::get(&format!(
        "{URL}?callsid=c1&callfrom=%2B919876543210&CALLTO=%2B918047112233&Created=x&lang=hi"
    ));
    let Ok(Webhook::Inbound(call)) = proved(asked).webhook(&account()) else { panic!() };
    assert_eq!((call.from.as_str(), call.to.as_str()), ("+919876543210", "+918047112233"));
    assert_eq!(call.arguments, [("lang".into(), "hi".into())]);
    let nobody = proved(Asked::get(&format!("{URL}?CallSid=c1")));
    assert_eq!(nobody.webhook(&account()).unwrap_err(), Refusal::Missing("CallTo"));
}

#[test]
fn applet_of_a_call_that_we_placed_is_known_by_its_custom_field() {
    let asked = proved(Asked::get(&format!("{URL}?CallSid=c1&CustomField=ctx-1")));
    let Ok(Webhook::Document(wanted)) = asked.webhook(&account()) else { panic!() };
    assert_eq!((wanted.context_id.as_deref(), wanted.provider_call_id.as_str()), (Some("ctx-1"), "c1"));
}

#[test]
fn status_callbacks_come_in_both_kinds_of_form() {
    let pairs = [
        ("CallSid", "c1"),
        ("EventType", "terminal"),
        ("Status", "no-answer"),
        ("ConversationDuration", "12"),
        ("CustomField", "ctx-1"),
    ];
    let plain = event(Asked::post(URL).form(&pairs));
    let parts: String = pairs
        .iter()
        .map(|(name, value)| {
            format!("--b1\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        })
        .collect();
    let body = format!("{parts}--b1--\r\n").into_bytes();
    let multipart =
        Asked { body, ..Asked::post(URL).header("content-type", "multipart/form-data; boundary=b1") };
    assert_eq!(event(multipart), plain);
    assert_eq!((plain.status, plain.duration_s), (Some(CallStatus::NoAnswer), Some(12)));
    assert_eq!(plain.context_id.as_deref(), Some("ctx-1"));
}

#[test]
fn events_become_statuses() {
    for (kind, word, want) in [
        ("ringing", "in-progress", CallStatus::Ringing),
        ("answered", "in-progress", CallStatus::Answered),
        ("terminal", "completed", CallStatus::Completed),
        ("terminal", "busy", CallStatus::Busy),
        ("terminal", "failed", CallStatus::Failed),
        ("terminal", "no-answer", CallStatus::NoAnswer),
        ("", "queued", CallStatus::Initiated),
        ("", "in-progress", CallStatus::Answered),
        ("", "canceled", CallStatus::Canceled),
    ] {
        let told = event(Asked::post(URL).form(&[("CallSid", "c1"), ("EventType", kind), ("Status", word)]));
        assert_eq!(told.status, Some(want), "{kind} {word}");
    }
}

#[test]
fn passthru_tells_of_the_stream_in_three_ways() {
    let told = |asked: Asked| match proved(asked).event().webhook(&account()) {
        Ok(Webhook::Stream(stream)) => (stream.kind, stream.stream_id, stream.detail.unwrap_or_default()),
        other => panic!("{other:?}"),
    };
    let flat =
        "CallSid=c1&Stream%5BStreamSID%5D=s1&Stream%5BStatus%5D=completed&Stream%5BDisconnectedBy%5D=user";
    let whole = "CallSid=c1&Stream=%7B%22StreamSID%22%3A%22s1%22%2C%22DisconnectedBy%22%3A%22user%22%7D";
    for query in [flat, whole] {
        let stream = told(Asked::get(&format!("{URL}?{query}")));
        assert_eq!(stream, (StreamKind::Stopped, "s1".into(), "disconnected by user".into()), "{query}");
    }
    let started = r#"{"CallSid":"c1","StreamSid":"s1","EventType":"stream-start"}"#;
    assert_eq!(told(Asked::post(URL).json(started)).0, StreamKind::Started);
    let failed = told(Asked::get(&format!("{URL}?CallSid=c1&Stream%5BStatus%5D=failed")));
    assert_eq!(failed.0, StreamKind::Failed);
}

/// The flow gives its Passthru the URL of its Voicebot: the call is not another one.
#[test]
fn applet_behind_the_voicebot_is_no_new_call() {
    let query = "CallSid=c1&CallFrom=09876543210&CallTo=08047112233";
    let told = |asked: Asked| match proved(asked).webhook(&account()) {
        Ok(Webhook::Stream(stream)) => (stream.provider_call_id, stream.stream_id, stream.kind),
        other => panic!("{other:?}"),
    };
    let stopped = ("c1".to_owned(), "s1".to_owned(), StreamKind::Stopped);
    for more in [
        "Stream%5BStreamSID%5D=s1&Stream%5BStatus%5D=completed",
        "stream%5Bstreamsid%5D=s1",
        "Stream=%7B%22StreamSID%22%3A%22s1%22%7D",
        "stream=%7B%22StreamSID%22%3A%22s1%22%7D",
        "StreamSid=s1",
        "CustomField=ctx-1&Stream%5BStreamSID%5D=s1",
    ] {
        assert_eq!(told(Asked::get(&format!("{URL}?{query}&{more}"))), stopped, "{more}");
    }
    let started = r#"{"CallSid":"c1","StreamSid":"s1","EventType":"stream-start","From":"1","To":"2"}"#;
    assert_eq!(told(Asked::post(URL).json(started)).2, StreamKind::Started);
}

#[test]
fn answer_is_a_url_with_at_most_three_parameters() {
    let parameters: Vec<_> = ["a", "b", "c"].map(|name| (name.to_owned(), "1 &".to_owned())).into();
    let document = account().answer(&plan(&parameters));
    let answer: Json = serde_json::from_str(&document.body).unwrap();
    assert_eq!(
        answer,
        json!({ "url": "wss://m.example.test/v1/media/x/ctx-1?sample-rate=8000&a=1%20%26&b=1%20%26" })
    );
    assert_eq!(document.left_out, ["c"]);
    let long = [("a".to_owned(), "x".repeat(300))];
    assert_eq!(account().answer(&plan(&long)).left_out, ["a"]);
}

#[test]
fn flow_that_cannot_be_told_busy_goes_on_to_its_next_applet() {
    assert_eq!(account().decline(Decline::Busy).status, 503);
    assert_eq!(account().decline(Decline::Say("Sorry")).status, 503);
}

#[test]
fn dial_goes_to_the_socket_or_through_a_flow() {
    let direct = account().dial(&dial(&[], MachineDetection::Off), STAMP).unwrap();
    assert_eq!(direct.url, "https://api.in.exotel.com/v1/Accounts/acme1/Calls/connect.json");
    let form = form_of(&direct);
    let value = |form: &[(String, String)], name: &str| {
        form.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    };
    // Whom to dial is called From.
    assert_eq!(value(&form, "From").unwrap(), "+14155550100");
    assert_eq!(value(&form, "CallerId").unwrap(), "+14155550199");
    assert_eq!(value(&form, "StreamType").unwrap(), "bidirectional");
    assert!(value(&form, "StreamUrl").unwrap().starts_with("wss://m.example.test/"));
    assert_eq!(value(&form, "CustomField").unwrap(), "00000000-0000-0000-0000-000000001234");
    assert_eq!(form.iter().filter(|(key, _)| key == "StatusCallbackEvents[]").count(), 3);
    // Only flows know it.
    assert_eq!(value(&form, "TimeOut"), None);
    let options = [("app_id".to_owned(), "77".to_owned())];
    let flow = form_of(&account().dial(&dial(&options, MachineDetection::Off), STAMP).unwrap());
    assert_eq!(value(&flow, "Url").unwrap(), "http://my.exotel.com/acme1/exoml/start_voice/77");
    assert_eq!((value(&flow, "StreamUrl"), value(&flow, "CallType")), (None, Some("trans".into())));
    assert_eq!(value(&flow, "TimeOut"), Some("30".into()));
    for (seconds, ring, limit) in [(0, "1", "1"), (u32::MAX, "600", "14400")] {
        let wanted = Dial { ring_s: seconds, limit_s: seconds, ..dial(&options, MachineDetection::Off) };
        let form = form_of(&account().dial(&wanted, STAMP).unwrap());
        assert_eq!(
            (value(&form, "TimeOut"), value(&form, "TimeLimit")),
            (Some(ring.into()), Some(limit.into()))
        );
    }
    let mut there = fields();
    there["region"] = json!("sg");
    let sg = open_account("exotel", there).probe(STAMP).unwrap();
    assert!(sg.url.starts_with("https://api.exotel.com/v1/Accounts/acme1/"));
    assert_eq!(sg.header("authorization").unwrap(), proof::basic_header("key", &"token".into()));
}

#[test]
fn live_calls_end_by_their_socket() {
    let error = account().control("c1", Control::HangUp, STAMP).unwrap_err().to_string();
    assert_eq!(error, "exotel cannot hang up by a request: close the media socket");
    let transfer = Transfer { to: "+9198", from: "", ring_s: 25, result_url: "", document_url: "" };
    let document = account().transfer(&transfer).unwrap();
    assert!(document.body.contains("\"numbers\":[\"+9198\"]"));
    for (ring_s, want) in [(0, 1), (25, 25), (u32::MAX, 600)] {
        let document = account().transfer(&Transfer { ring_s, ..transfer }).unwrap();
        let body: Json = serde_json::from_str(&document.body).unwrap();
        assert_eq!(body["max_ringing_duration"], json!(want));
    }
    let body = r#"{"Call":{"Sid":"c1","Status":"completed","Duration":31}}"#;
    let Lookup::Found(found) = account().looked_up(&answered(200, body)) else { panic!() };
    assert_eq!((found.status, found.duration_s), (Some(CallStatus::Completed), Some(31)));
}
