use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::provider::asked::{Asked, STAMP, account as open_account, answered, dial};
use crate::provider::document::tests::{outline, plan};

const URL: &str = "https://voice.example.test/plivo/answer";
const NONCE_VALUE: &str = "12345678901234567890";

fn account() -> Arc<dyn Account> {
    open_account("plivo", json!({ "auth_id": "MA1", "auth_token": "plivo_auth_token" }))
}

fn with(asked: Asked, signature: &str) -> Asked {
    asked.header(NONCE, NONCE_VALUE).header(SIGNATURE, signature)
}

fn signed(asked: Asked) -> Asked {
    let base = asked.to(signed_base).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"plivo_auth_token");
    let tag = hmac::sign(&key, format!("{base}.{NONCE_VALUE}").as_bytes());
    with(asked, &STANDARD.encode(tag.as_ref()))
}

fn event(pairs: &[(&str, &str)]) -> StatusEvent {
    match signed(Asked::post(URL).form(pairs)).event().webhook(&account()) {
        Ok(Webhook::Status(event)) => event,
        other => panic!("{other:?}"),
    }
}

/// The vectors of 8.3, made with Plivo's SDK; C2.
#[test]
fn signatures_of_plivos_own_sdk_are_taken_and_no_others() {
    let call =
        [("CallUUID", "c-1"), ("From", "14155550100"), ("To", "14155550199"), ("CallStatus", "ringing")];
    let query = format!("{URL}?b=2&a=1");
    let get = format!("{URL}?To=14155550199&From=14155550100");
    let vectors = [
        (
            Asked::post(URL).form(&call),
            "https://voice.example.test/plivo/answer?CallStatusringingCallUUIDc-1From14155550100To14155550199",
            "1WWQ81wrFQqNhwy/ZXnzOSaDfn2j0UCYawiGei2k3lA=",
        ),
        (
            Asked::post(&query).form(&call[..2]),
            "https://voice.example.test/plivo/answer?a=1&b=2.CallUUIDc-1From14155550100",
            "MiiXnDoAqsH+QPqAVLX9ltVX+XFv4ul3PBng5BuE3pY=",
        ),
        (
            Asked::get(&get),
            "https://voice.example.test/plivo/answer?From=14155550100&To=14155550199",
            "/1QbsYLpukvSRreCV3BZDMrUON5Xx+tzDocK5ZUbTbw=",
        ),
        (Asked::post(URL), URL, "gaY8XNvShWssJcw9kkinWsN5snJdHIlvYl97G1VwyR4="),
    ];
    for (asked, base, signature) in vectors {
        assert_eq!(asked.to(signed_base).unwrap(), base);
        let is_taken = |signature: &str| {
            !matches!(with(asked.clone(), signature).webhook(&account()), Err(Refusal::Signature(_)))
        };
        assert!(is_taken(signature), "{base}");
        assert!(is_taken(&format!("AAAA,{signature}")), "any of a list: {base}");
        assert!(!is_taken(&signature.replace('=', "")) && !is_taken("") && !is_taken("AAAA"));
        let main =
            asked.clone().header(NONCE, NONCE_VALUE).header(SIGNATURE_MAIN, signature).webhook(&account());
        assert!(!matches!(main, Err(Refusal::Signature(_) | Refusal::Unsigned(_))));
        let other_nonce = with(asked.clone(), signature).header(NONCE, "1").webhook(&account());
        assert_eq!(other_nonce, Err(Refusal::Signature(SIGNATURE)));
        assert_eq!(asked.webhook(&account()), Err(Refusal::Unsigned(NONCE)));
    }
}

#[test]
fn calls_come_with_their_plus_and_arguments() {
    let pairs = [
        ("CallUUID", "c-1"),
        ("From", "14155550100"),
        ("To", "14155550199"),
        ("Event", "StartApp"),
        ("Direction", "inbound"),
    ];
    for asked in [
        Asked::post(&format!("{URL}?name=ann")).form(&pairs),
        Asked::get(&format!("{URL}?name=ann&CallUUID=c-1&From=14155550100&To=14155550199&Event=StartApp")),
    ] {
        let Ok(Webhook::Inbound(call)) = signed(asked).webhook(&account()) else { panic!() };
        assert_eq!((call.from.as_str(), call.to.as_str()), ("+14155550100", "+14155550199"));
        assert_eq!(call.arguments, [("name".into(), "ann".into())]);
    }
    let own = [("CallUUID", "c-1"), ("Event", "StartApp"), ("Direction", "outbound"), ("Machine", "true")];
    let told = signed(Asked::post(URL).form(&own)).event().webhook(&account());
    assert!(matches!(told, Ok(Webhook::Document(wanted)) if wanted.answered_by == Some(AnsweredBy::Machine)));
}

#[test]
fn events_become_statuses() {
    for (word, want) in [
        ("queued", CallStatus::Queued),
        ("ringing", CallStatus::Ringing),
        ("in-progress", CallStatus::Answered),
        ("completed", CallStatus::Completed),
        ("busy", CallStatus::Busy),
        ("failed", CallStatus::Failed),
        ("timeout", CallStatus::NoAnswer),
        ("no-answer", CallStatus::NoAnswer),
        ("cancel", CallStatus::Canceled),
        ("rejected", CallStatus::Rejected),
    ] {
        let told =
            event(&[("CallUUID", "c-1"), ("CallStatus", word), ("Event", "Hangup"), ("RequestUUID", "r-1")]);
        // As the answer to the dial had it.
        assert_eq!((told.status, told.request_id.as_deref()), (Some(want), Some("request:r-1")), "{word}");
    }
    let over = event(&[
        ("CallUUID", "c-1"),
        ("CallStatus", "completed"),
        ("Duration", "12"),
        ("HangupCauseName", "Normal Hangup"),
    ]);
    assert_eq!((over.duration_s, over.cause.as_deref()), (Some(12), Some("Normal Hangup")));
    // C28
    let machine = event(&[
        ("CallUUID", "c-1"),
        ("CallStatus", "in-progress"),
        ("Machine", "true"),
        ("Event", "MachineDetection"),
    ]);
    assert_eq!((machine.answered_by, machine.event_id.as_str()), (Some(AnsweredBy::Machine), "c-1:machine"));
}

#[test]
fn streams_and_transfers_have_news_of_their_own() {
    let told = |pairs: &[(&str, &str)]| signed(Asked::post(URL).form(pairs)).event().webhook(&account());
    let stream = told(&[("CallUUID", "c-1"), ("Event", "StartStream"), ("StreamID", "s-1")]);
    assert!(matches!(stream, Ok(Webhook::Stream(stream)) if stream.kind == StreamKind::Started));
    let over = told(&[("CallUUID", "c-1"), ("DialStatus", "busy"), ("DialBLegDuration", "0")]);
    assert!(matches!(over, Ok(Webhook::Transferred(over)) if over.status == CallStatus::Busy));
}

#[test]
fn answer_is_the_sdks_document() {
    let parameters = [
        ("name".to_owned(), "ann".to_owned()),
        ("a-b".to_owned(), "x".to_owned()),
        ("c".to_owned(), "1,2".to_owned()),
    ];
    let document = account().answer(&plan(&parameters));
    let want = "<Response><Stream bidirectional=\"true\" contentType=\"audio/x-mulaw;rate=8000\" \
                extraHeaders=\"ctx=00000000-0000-0000-0000-000000001234,name=ann\" keepCallAlive=\"true\" \
                statusCallbackMethod=\"POST\" statusCallbackUrl=\"https://c.example.test/e?a=1&amp;b=2\">\
                wss://m.example.test/v1/media/x/ctx-1</Stream></Response>";
    assert_eq!(outline(&document.body), outline(want));
    assert_eq!(document.left_out, ["a-b", "c"]);
    let said = account().decline(Decline::Say("Sorry"));
    assert_eq!(outline(&said.body), outline("<Response><Speak>Sorry</Speak><Hangup/></Response>"));
    let busy = account().decline(Decline::Busy);
    assert_eq!(outline(&busy.body), outline("<Response><Hangup reason=\"busy\"/></Response>"));
}

#[test]
fn dial_names_where_its_document_is() {
    let request = account().dial(&dial(&[], MachineDetection::Detect), STAMP).unwrap();
    assert_eq!(request.url, "https://api.plivo.com/v1/Account/MA1/Call/");
    let call: Json = serde_json::from_str(&request.body).unwrap();
    assert_eq!((&call["to"], &call["from"]), (&json!("14155550100"), &json!("14155550199")));
    assert_eq!(call["answer_url"], "https://c.example.test/document");
    assert_eq!(call["hangup_url"], "https://c.example.test/e?a=1&b=2");
    assert_eq!((&call["machine_detection"], &call["ring_timeout"]), (&json!("true"), &json!(30)));
    let many = account().dialled(&answered(201, r#"{"request_uuid":["r-1","r-2"]}"#));
    assert_eq!(many, DialOutcome::Accepted { provider_call_id: "request:r-1".into() });
    for (seconds, ring, limit) in [(0, 1, 1), (u32::MAX, 600, 86_400)] {
        let wanted = Dial { ring_s: seconds, limit_s: seconds, ..dial(&[], MachineDetection::Off) };
        let call: Json = serde_json::from_str(&account().dial(&wanted, STAMP).unwrap().body).unwrap();
        assert_eq!((&call["ring_timeout"], &call["time_limit"]), (&json!(ring), &json!(limit)));
        let transfer =
            Transfer { to: "+4930123", from: "", ring_s: seconds, result_url: "", document_url: "" };
        let document = account().transfer(&transfer).unwrap();
        assert!(document.body.contains(&format!("timeout=\"{ring}\"")), "{}", document.body);
    }
}

#[test]
fn live_calls_are_controlled_by_their_uuid() {
    let ask = |control| account().control("c-1", control, STAMP).unwrap();
    let over = ask(Control::HangUp);
    assert_eq!(
        (over.method, over.url.as_str()),
        (Method::Delete, "https://api.plivo.com/v1/Account/MA1/Call/c-1/")
    );
    let transfer = Transfer {
        to: "+4930123",
        from: "+14155550199",
        ring_s: 25,
        result_url: "https://c/e",
        document_url: "https://c/d",
    };
    let body: Json = serde_json::from_str(&ask(Control::Transfer(transfer)).body).unwrap();
    assert_eq!(body, json!({ "legs": "aleg", "aleg_url": "https://c/d", "aleg_method": "POST" }));
    let document = account().transfer(&transfer).unwrap();
    let want = "<Response><Dial action=\"https://c/e\" callerId=\"14155550199\" timeout=\"25\">\
                <Number>4930123</Number></Dial></Response>";
    assert_eq!(outline(&document.body), outline(want));
    assert!(ask(Control::Dtmf("1#")).url.ends_with("/Call/c-1/DTMF/"));
    let found = account().looked_up(&answered(200, r#"{"call_uuid":"c-1","call_status":"in-progress"}"#));
    assert!(matches!(found, Lookup::Found(found) if found.status == Some(CallStatus::Answered)));
}

/// Before its first callback only the request has a name, and Plivo ends it at another place.
#[test]
fn call_that_is_known_by_its_request_is_taken_back() {
    let DialOutcome::Accepted { provider_call_id } =
        account().dialled(&answered(201, r#"{"message":"call fired","request_uuid":"r-1","api_id":"a"}"#))
    else {
        panic!()
    };
    let over = account().control(&provider_call_id, Control::HangUp, STAMP).unwrap();
    assert_eq!(
        (over.method, over.url.as_str()),
        (Method::Delete, "https://api.plivo.com/v1/Account/MA1/Request/r-1/")
    );
    let error = account().control(&provider_call_id, Control::Dtmf("1"), STAMP).unwrap_err().to_string();
    assert_eq!(
        error,
        "plivo cannot do this to a call before its first callback: wait for a callback, which names it"
    );
    assert!(account().lookup(&provider_call_id, STAMP).is_err());
    let told = event(&[("CallUUID", "c-1"), ("CallStatus", "ringing"), ("RequestUUID", "r-1")]);
    assert_eq!(told.request_id, Some(provider_call_id));
}

proptest! {
    #[test]
    fn any_fields_verify_as_signed_and_in_no_other_way(
        fields in proptest::collection::vec(("[A-Za-z]{1,6}", any::<String>()), 0..6),
        query in "[a-z0-9=&%+]{0,20}",
    ) {
        let pairs: Vec<(&str, &str)> = fields.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let asked = signed(Asked::post(&format!("{URL}?{query}")).form(&pairs));
        let account = account();
        let is_taken = |asked: &Asked| !matches!(asked.webhook(&account), Err(Refusal::Signature(_)));
        prop_assert!(is_taken(&asked));
        let mut changed = asked.clone();
        changed.body.extend_from_slice(b"&z=1");
        prop_assert!(!is_taken(&changed));
    }
}
