use ring::signature::Ed25519KeyPair;
use serde_json::json;

use super::*;
use crate::provider::asked::{Asked, STAMP, account as open_account, answered, dial};
use crate::provider::document::tests::{outline, plan};

const URL: &str = "https://voice.example.test/v1/telephony/telnyx/call/42";

fn account() -> Arc<dyn Account> {
    open_account(
        "telnyx",
        json!({
            "api_key": "KEY1", "connection_id": "77",
            "public_key": "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=",
        }),
    )
}

/// Signs as Telnyx does, by the key whose seed is 00 01 … 1f.
fn signed(asked: Asked) -> Asked {
    let seed: Vec<u8> = (0..32).collect();
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
    let signature = pair.sign(&[b"1700000000|", asked.body.as_slice()].concat());
    asked.header(TIMESTAMP, "1700000000").header(SIGNATURE, &STANDARD.encode(signature.as_ref()))
}

fn webhook(kind: &str, payload: Json) -> Result<Webhook, Refusal> {
    let body = json!({ "data": { "event_type": kind, "id": "ev-1", "payload": payload } });
    signed(Asked::post(URL).json(&body.to_string())).webhook(&account())
}

fn status(kind: &str, mut payload: Json) -> StatusEvent {
    payload["call_control_id"] = json!("v3:1");
    match webhook(kind, payload) {
        Ok(Webhook::Status(event)) => event,
        other => panic!("{other:?}"),
    }
}

/// Vector 8.4; C2.
#[test]
fn signature_of_telnyx_own_sdk_is_taken_and_no_other() {
    let body = r#"{"data":{"event_type":"call.initiated"}}"#;
    let signature =
        "aBuTQ1AtxQGraK6PrtJP6VW9Mu+R2aG6TbxS7lim9/ia8dN94a42JYoTifASA18z3xe+GLlYfveWOuyyKq7OCw==";
    let asked = |body: &str, time: &str| {
        Asked::post(URL).json(body).header(TIMESTAMP, time).header(SIGNATURE, signature).webhook(&account())
    };
    assert_eq!(asked(body, "1700000000"), Ok(Webhook::Other("call.initiated".into())));
    assert_eq!(
        asked(&body.replace("initiated", "initiateD"), "1700000000"),
        Err(Refusal::Signature(SIGNATURE))
    );
    assert_eq!(asked(body, "1700000001"), Err(Refusal::Signature(SIGNATURE)));
    let unsigned = Asked::post(URL).json(body);
    assert_eq!(unsigned.webhook(&account()), Err(Refusal::Unsigned(SIGNATURE)));
    assert_eq!(unsigned.header(SIGNATURE, "AAAA").webhook(&account()), Err(Refusal::Unsigned(TIMESTAMP)));
}

#[test]
fn old_requests_and_gets_are_refused() {
    for (now_s, age_s) in [(1_700_000_301, 301), (1_699_999_699, -301)] {
        let asked = signed(Asked { now_s, ..Asked::post(URL).json("{}") });
        assert_eq!(asked.webhook(&account()), Err(Refusal::Age(age_s)));
    }
    let get = signed(Asked::get(&format!("{URL}?CallSid=1&From=2&To=3")));
    assert_eq!(get.webhook(&account()).unwrap_err().status(), 405);
}

#[test]
fn incoming_call_is_answered_by_a_request() {
    for kind in ["call.initiated", "call_initiated"] {
        let payload = json!({ "call_control_id": "v3:1", "from": "+14155550100", "to": "+14155550199", "direction": "incoming" });
        let Ok(Webhook::Inbound(call)) = webhook(kind, payload) else { panic!("{kind}") };
        assert_eq!((call.provider_call_id.as_str(), call.answer), ("v3:1", AnswerBy::Rest));
        assert_eq!((call.from.as_str(), call.to.as_str()), ("+14155550100", "+14155550199"));
    }
    let request = account().control("v3:1", Control::Answer(&plan(&[])), STAMP).unwrap();
    assert_eq!(request.url, "https://api.telnyx.com/v2/calls/v3%3A1/actions/answer");
    let body: Json = serde_json::from_str(&request.body).unwrap();
    assert_eq!(body["stream_bidirectional_mode"], "rtp");
    assert_eq!(body["stream_bidirectional_codec"], "PCMU");
    // By default it is the call's codec, which may be any.
    assert_eq!(body["stream_codec"], "PCMU");
    // Twice is once.
    assert_eq!(body["command_id"], "00000000-0000-0000-0000-000000001234");
    assert_eq!(body["webhook_url"], "https://c.example.test/e?a=1&b=2");
}

#[test]
fn texml_application_is_answered_by_a_document() {
    let form = |pairs: &[(&str, &str)]| signed(Asked::post(URL).form(pairs));
    let call = [("CallSid", "v3:1"), ("From", "+14155550100"), ("To", "+14155550199")];
    let Ok(Webhook::Inbound(inbound)) = form(&call).webhook(&account()) else { panic!() };
    assert_eq!((inbound.answer, inbound.provider_call_id.as_str()), (AnswerBy::Document, "v3:1"));
    let over = form(&[("CallSid", "v3:1"), ("CallStatus", "completed"), ("CallDuration", "9")]).event();
    let Ok(Webhook::Status(told)) = over.webhook(&account()) else { panic!() };
    assert_eq!((told.status, told.duration_s), (Some(CallStatus::Completed), Some(9)));
    for endpoint in [Endpoint::Call, Endpoint::Event] {
        let news =
            [("CallSid", "v3:1"), ("StreamEvent", "stream-stopped"), ("StreamSid", "s1"), ("CallStatus", "")];
        let told = Asked { endpoint, ..form(&news) }.webhook(&account());
        assert!(
            matches!(&told, Ok(Webhook::Stream(stream)) if stream.kind == StreamKind::Stopped && stream.stream_id == "s1"),
            "{told:?}"
        );
    }
    let document = account().answer(&plan(&[]));
    let want = "<Response><Connect><Stream url=\"wss://m.example.test/v1/media/x/ctx-1\" codec=\"PCMU\" bidirectionalMode=\"rtp\" \
                bidirectionalCodec=\"PCMU\" bidirectionalSamplingRate=\"8000\" statusCallbackMethod=\"POST\" \
                statusCallback=\"https://c.example.test/e?a=1&amp;b=2\">\
                <Parameter name=\"ctx\" value=\"00000000-0000-0000-0000-000000001234\"/></Stream></Connect></Response>";
    assert_eq!(outline(&document.body), outline(want));
}

#[test]
fn events_become_statuses() {
    assert_eq!(status("call.answered", json!({})).status, Some(CallStatus::Answered));
    assert_eq!(
        status("call.initiated", json!({ "direction": "outgoing" })).status,
        Some(CallStatus::Initiated)
    );
    for (cause, want) in [
        ("normal_clearing", CallStatus::Completed),
        ("time_limit", CallStatus::Completed),
        ("busy", CallStatus::Busy),
        ("user_busy", CallStatus::Busy),
        ("no_answer", CallStatus::NoAnswer),
        ("timeout", CallStatus::NoAnswer),
        ("call_rejected", CallStatus::Rejected),
        ("originator_cancel", CallStatus::Canceled),
        ("unallocated_number", CallStatus::Failed),
    ] {
        let told = status("call.hangup", json!({ "hangup_cause": cause, "sip_hangup_cause": "486" }));
        assert_eq!(
            (told.status, told.sip_status, told.event_id.as_str()),
            (Some(want), Some(486), "ev-1"),
            "{cause}"
        );
        assert_eq!(told.cause.as_deref(), Some(cause));
    }
    let state = STANDARD.encode("ctx-1");
    assert_eq!(
        status("call.answered", json!({ "client_state": state })).context_id.as_deref(),
        Some("ctx-1")
    );
    assert_eq!(
        webhook("number_order.complete", json!({})),
        Ok(Webhook::Other("number.order.complete".into()))
    );
    assert_eq!(
        webhook("call.bridged", json!({ "call_control_id": "v3:1" })),
        Ok(Webhook::Other("call.bridged".into()))
    );
}

/// C28.
#[test]
fn what_picked_up_is_told_by_the_detector() {
    for (kind, result, want) in [
        ("call.machine.detection.ended", "human", AnsweredBy::Human),
        ("call.machine.premium.detection.ended", "human_residence", AnsweredBy::Human),
        ("call.machine.detection.ended", "machine", AnsweredBy::Machine),
        ("call.machine.detection.ended", "not_sure", AnsweredBy::Unknown),
        ("call.machine.premium.detection.ended", "fax_detected", AnsweredBy::Fax),
        ("call.machine.greeting.ended", "beep_detected", AnsweredBy::MachineBeep),
        ("call.machine.greeting.ended", "ended", AnsweredBy::MachineEnd),
    ] {
        let told = status(kind, json!({ "result": result }));
        assert_eq!((told.answered_by, told.status), (Some(want), None), "{kind} {result}");
    }
}

#[test]
fn streams_have_news_of_their_own() {
    for (kind, want) in [
        ("streaming.started", StreamKind::Started),
        ("streaming.stopped", StreamKind::Stopped),
        ("streaming.failed", StreamKind::Failed),
    ] {
        let told = webhook(kind, json!({ "call_control_id": "v3:1", "stream_id": "s1" }));
        assert!(
            matches!(told, Ok(Webhook::Stream(stream)) if stream.kind == want && stream.stream_id == "s1")
        );
    }
}

#[test]
fn dial_opens_a_stream_both_ways() {
    let request = account().dial(&dial(&[], MachineDetection::Detect), STAMP).unwrap();
    assert_eq!(request.url, "https://api.telnyx.com/v2/calls");
    assert_eq!(request.header("authorization"), Some("Bearer KEY1"));
    let call: Json = serde_json::from_str(&request.body).unwrap();
    assert_eq!((&call["connection_id"], &call["to"]), (&json!("77"), &json!("+14155550100")));
    assert_eq!((&call["timeout_secs"], &call["time_limit_secs"]), (&json!(30), &json!(3_600)));
    assert_eq!(call["answering_machine_detection"], "detect");
    assert_eq!(call["stream_bidirectional_mode"], "rtp");
    assert_eq!((&call["stream_codec"], &call["webhook_url_method"]), (&json!("PCMU"), &json!("POST")));
    let bare = open_account(
        "telnyx",
        json!({ "api_key": "k", "public_key": "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=" }),
    );
    let error = bare.dial(&dial(&[], MachineDetection::Off), STAMP).unwrap_err().to_string();
    assert_eq!(error, "telnyx cannot place calls: give the credential its \"connection_id\"");
}

#[test]
fn live_calls_are_controlled_by_actions() {
    use crate::provider::rest::Transfer;

    let ask = |control| {
        let request = account().control("v3:1", control, STAMP).unwrap();
        let action = request.url.rsplit('/').next().unwrap().to_owned();
        (action, serde_json::from_str::<Json>(&request.body).unwrap())
    };
    assert_eq!(ask(Control::HangUp).0, "hangup");
    assert_eq!(ask(Control::Reject).1["cause"], "USER_BUSY");
    assert_eq!(ask(Control::Dtmf("1w2#")).1["digits"], "1w2#");
    let transfer = Transfer {
        to: "+4930123",
        from: "+14155550199",
        ring_s: 25,
        result_url: "https://c/e",
        document_url: "",
    };
    let (action, body) = ask(Control::Transfer(transfer));
    assert_eq!(
        (action.as_str(), &body["to"], &body["timeout_secs"]),
        ("transfer", &json!("+4930123"), &json!(25))
    );
    assert_eq!(body["webhook_url"], "https://c/e");
    let (_, body) = ask(Control::Transfer(Transfer { result_url: "", ..transfer }));
    assert_eq!(body.get("webhook_url"), None);
    let (action, body) = ask(Control::Redirect { plan: &plan(&[]), document_url: "" });
    assert_eq!((action.as_str(), &body["stream_codec"]), ("streaming_start", &json!("PCMU")));
    assert!(body.get("webhook_url").is_none() && body.get("webhook_url_method").is_none());
    let looked =
        account().looked_up(&answered(200, r#"{"data":{"call_control_id":"v3:1","is_alive":false}}"#));
    assert!(matches!(looked, Lookup::Found(found) if found.status == Some(CallStatus::Completed)));
}

/// C29: the leg that a transfer makes bears a state of ours, so its end is the transfer's.
#[test]
fn end_of_the_leg_of_a_transfer_is_the_transfers() {
    let transfer =
        crate::provider::Transfer { to: "+4930123", from: "", ring_s: 25, result_url: "", document_url: "" };
    let request = account().control("v3:1", Control::Transfer(transfer), STAMP).unwrap();
    let body: Json = serde_json::from_str(&request.body).unwrap();
    let leg = |kind: &str, cause: &str| {
        let state = &body["target_leg_client_state"];
        let payload = json!({ "call_control_id": "v3:2", "client_state": state, "hangup_cause": cause,
            "direction": "outgoing" });
        webhook(kind, payload)
    };
    for (cause, want) in [("timeout", CallStatus::NoAnswer), ("normal_clearing", CallStatus::Completed)] {
        let Ok(Webhook::Transferred(over)) = leg("call.hangup", cause) else { panic!("{cause}") };
        assert_eq!((over.provider_call_id.as_str(), over.status), ("v3:1", want));
    }
    for kind in ["call.initiated", "call.answered", "call.bridged"] {
        assert_eq!(leg(kind, ""), Ok(Webhook::Other(format!("transfer {kind}"))));
    }
}
