use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{hmac, signature};
use serde_json::json;

use super::*;
use crate::provider::asked::{Asked, STAMP, account as open_account, answered, dial};
use crate::provider::document::tests::plan;

const SECRET: &str = "vonage_signature_secret_for_tests_0001";
const URL: &str = "https://voice.example.test/v1/telephony/vonage/call/42";
/// The vector made with Vonage's SDK.
const BODY: &str = r#"{"from":"14155550100","to":"14155550199","uuid":"aaaaaaaa-bbbb-cccc-dddd-0123456789ab","conversation_uuid":"CON-1"}"#;
const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3MDAwMDAwMDAsImp0aSI6IjExMTExMTExLTIyMjItMzMzMy00NDQ0LTU1NTU1NTU1NTU1NSIsImlzcyI6IlZvbmFnZSIsInBheWxvYWRfaGFzaCI6Ijg2Yzg5NzdjOWYyNDdjZGNhMWU3Yjg0NTczZjI1NzAxZTA1NzU3MmMxYjYxOWMzNmE3NDQyZTJiMTQ5MGY2OWYiLCJhcGlfa2V5IjoiYWJjZDEyMzQiLCJhcHBsaWNhdGlvbl9pZCI6Ijk5OTk5OTk5LTIyMjItMzMzMy00NDQ0LTU1NTU1NTU1NTU1NSJ9.uJ4UuZht_O_i4WKkkkZpWA53ikhC-ndus3fHdIDnibw";

fn account() -> Arc<dyn Account> {
    open_account(
        "vonage",
        json!({
            "application_id": "99999999-2222-3333-4444-555555555555",
            "private_key": include_str!("key_pkcs8.pem"),
            "api_key": "abcd1234",
            "signature_secret": SECRET,
        }),
    )
}

fn token(header: &Json, claims: &Json, secret: &str) -> String {
    use base64::Engine as _;
    let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

fn claims(body: &str) -> Json {
    let hash = ring::digest::digest(&ring::digest::SHA256, body.as_bytes());
    json!({
        "iat": 1_700_000_000, "jti": "j-1", "iss": "Vonage", "api_key": "abcd1234",
        "payload_hash": hex::encode(hash.as_ref()), "application_id": "99999999-2222-3333-4444-555555555555",
    })
}

fn bearer(asked: Asked, token: &str) -> Asked {
    asked.header("authorization", &format!("Bearer {token}"))
}

fn signed(asked: Asked, claims: &Json) -> Asked {
    let token = token(&json!({ "alg": "HS256", "typ": "JWT" }), claims, SECRET);
    bearer(asked, &token)
}

fn event(fields: Json) -> Result<Webhook, Refusal> {
    let body = fields.to_string();
    signed(Asked::post("https://voice.example.test/e").json(&body).event(), &claims(&body))
        .webhook(&account())
}

fn status(fields: Json) -> StatusEvent {
    match event(fields) {
        Ok(Webhook::Status(event)) => event,
        other => panic!("{other:?}"),
    }
}

/// Vector 8.2, and C1.
#[test]
fn token_of_vonages_own_sdk_is_taken() {
    let asked = bearer(Asked::post(&format!("{URL}?name=ann")).json(BODY), TOKEN);
    let Ok(Webhook::Inbound(call)) = asked.webhook(&account()) else {
        panic!("{:?}", asked.webhook(&account()))
    };
    assert_eq!((call.from.as_str(), call.to.as_str()), ("+14155550100", "+14155550199"));
    assert_eq!(call.provider_call_id, "aaaaaaaa-bbbb-cccc-dddd-0123456789ab");
    assert_eq!(call.retry_token.as_deref(), Some("11111111-2222-3333-4444-555555555555"));
    assert_eq!(call.arguments, [("name".into(), "ann".into())]);
}

/// C2.
#[test]
fn changed_body_other_secret_and_other_algorithm_are_403() {
    let asked = |body: &str| Asked::post(URL).json(body);
    let refused = |asked: Asked| asked.webhook(&account()).unwrap_err();
    assert_eq!(
        refused(bearer(asked(&BODY.replace("0100", "0101")), TOKEN)),
        Refusal::BodyHash("payload_hash")
    );
    let cut = &TOKEN[..TOKEN.len() - 1];
    assert!(matches!(refused(bearer(asked(BODY), cut)), Refusal::Signature(_)));
    let header = json!({ "alg": "HS256" });
    let other = token(&header, &claims(BODY), "another secret");
    assert!(matches!(refused(bearer(asked(BODY), &other)), Refusal::Signature(_)));
    for algorithm in ["none", "RS256", "HS512", "hs256"] {
        let wrong = token(&json!({ "alg": algorithm }), &claims(BODY), SECRET);
        assert_eq!(refused(bearer(asked(BODY), &wrong)), Refusal::Algorithm(algorithm.into()));
    }
    for wrong in ["a.b", "a.b.c", "....", &"x".repeat(5_000)] {
        assert!(matches!(refused(bearer(asked(BODY), wrong)), Refusal::Signature(_)), "{wrong}");
    }
    assert!(matches!(refused(asked(BODY)), Refusal::Unsigned(_)));
    assert!(matches!(refused(bearer(asked(BODY), "")), Refusal::Unsigned(_)));
    assert!(matches!(refused(asked(BODY).header("authorization", "Basic abc")), Refusal::Unsigned(_)));
}

#[test]
fn claims_must_be_ours_and_of_now() {
    let refused = |change: fn(&mut Json)| {
        let mut claims = claims(BODY);
        change(&mut claims);
        signed(Asked::post(URL).json(BODY), &claims).webhook(&account()).unwrap_err()
    };
    assert_eq!(refused(|c| c["iss"] = json!("Mallory")), Refusal::Account("iss of the token"));
    assert_eq!(refused(|c| c["api_key"] = json!("other")), Refusal::Account("api_key of the token"));
    assert_eq!(
        refused(|c| c["application_id"] = json!("x")),
        Refusal::Account("application_id of the token")
    );
    assert_eq!(refused(|c| c["iat"] = json!(1_700_000_000 - 301)), Refusal::Age(301));
    assert_eq!(refused(|c| c["iat"] = json!(1_700_000_000 + 301)), Refusal::Age(-301));
    assert!(matches!(refused(|c| c["iat"] = json!(i64::MIN)), Refusal::Age(_)));
    assert!(matches!(refused(|c| drop(c.as_object_mut().unwrap().remove("iat"))), Refusal::Unsigned(_)));
    assert_eq!(
        refused(|c| drop(c.as_object_mut().unwrap().remove("payload_hash"))),
        Refusal::BodyHash("payload_hash")
    );
    let mut without = claims(BODY);
    without.as_object_mut().unwrap().remove("application_id");
    assert!(signed(Asked::post(URL).json(BODY), &without).webhook(&account()).is_ok());
}

#[test]
fn answer_webhook_by_get_has_everything_in_the_query() {
    let url = format!(
        "{URL}?to=14155550199&from=anonymous&uuid=u-1&conversation_uuid=CON-1&SipHeader_X-A=1&name=ann"
    );
    let mut claims = claims("");
    // There is nothing to be hashed, whatever is said of it.
    claims["payload_hash"] = json!("0".repeat(64));
    assert!(matches!(signed(Asked::get(&url), &claims).webhook(&account()), Ok(Webhook::Inbound(_))));
    claims.as_object_mut().unwrap().remove("payload_hash");
    let Ok(Webhook::Inbound(call)) = signed(Asked::get(&url), &claims).webhook(&account()) else { panic!() };
    assert_eq!((call.from.as_str(), call.to.as_str()), ("anonymous", "+14155550199"));
    assert_eq!(call.arguments, [("name".into(), "ann".into())]);
}

#[test]
fn events_become_statuses() {
    for (word, detail, want) in [
        ("started", "", CallStatus::Initiated),
        ("ringing", "", CallStatus::Ringing),
        ("answered", "", CallStatus::Answered),
        ("completed", "", CallStatus::Completed),
        ("busy", "", CallStatus::Busy),
        ("unanswered", "timeout", CallStatus::NoAnswer),
        ("timeout", "", CallStatus::NoAnswer),
        ("cancelled", "", CallStatus::Canceled),
        ("rejected", "declined", CallStatus::Rejected),
        ("rejected", "invalid_number", CallStatus::Failed),
        ("failed", "cannot_route", CallStatus::Failed),
    ] {
        let told =
            status(json!({ "uuid": "u-1", "status": word, "detail": detail, "direction": "outbound" }));
        assert_eq!((told.status, told.provider_call_id.as_str()), (Some(want), "u-1"), "{word}");
    }
    let over = status(json!({ "uuid": "u-1", "status": "completed", "duration": "8", "price": "0.01" }));
    assert_eq!((over.duration_s, over.event_id.as_str()), (Some(8), "u-1:completed"));
    assert_eq!(event(json!({ "uuid": "u-1", "status": "transfer" })), Ok(Webhook::Other("transfer".into())));
    assert!(matches!(event(json!({ "reason": "Syntax error" })), Ok(Webhook::Other(_))));
    assert_eq!(event(json!({ "status": "completed" })), Err(Refusal::Missing("uuid")));
}

/// C20: a repetition has another token, and the same time.
#[test]
fn repeated_event_has_the_same_id_and_another_event_has_not() {
    let told = |jti: &str, word: &str, time: &str| {
        let body = json!({ "uuid": "u-1", "status": word, "timestamp": time }).to_string();
        let mut claims = claims(&body);
        claims["jti"] = json!(jti);
        let asked = signed(Asked::post("https://voice.example.test/e").json(&body).event(), &claims);
        let Ok(Webhook::Status(event)) = asked.webhook(&account()) else { panic!() };
        event.event_id
    };
    let (first, second) = ("2026-09-01T10:00:00.000Z", "2026-09-01T10:00:01.000Z");
    assert_eq!(told("j-1", "answered", first), told("j-2", "answered", first));
    assert_ne!(told("j-1", "answered", first), told("j-1", "completed", first));
    assert_ne!(told("j-1", "machine", first), told("j-1", "machine", second));
}

/// C29: a transfer's news come to a URL that says so.
#[test]
fn end_of_the_leg_of_a_transfer_is_the_transfers() {
    let transfer = |result_url| {
        let transfer =
            Transfer { to: "+4930123", from: "+14155550199", ring_s: 25, result_url, document_url: "" };
        let ncco: Json = serde_json::from_str(&account().transfer(&transfer).unwrap().body).unwrap();
        assert_eq!(ncco[0]["eventType"], "synchronous");
        ncco[0]["eventUrl"][0].as_str().unwrap().to_owned()
    };
    assert_eq!(transfer("https://c/e?a=1"), "https://c/e?a=1&leg=transfer");
    let url = transfer("https://voice.example.test/e");
    let told = |word: &str| {
        let body = json!({ "uuid": "u-2", "conversation_uuid": "CON-1", "status": word, "duration": "7" });
        let body = body.to_string();
        signed(Asked::post(&url).json(&body).event(), &claims(&body)).webhook(&account())
    };
    for (word, want) in [
        ("busy", CallStatus::Busy),
        ("timeout", CallStatus::NoAnswer),
        ("rejected", CallStatus::Rejected),
        ("completed", CallStatus::Completed),
    ] {
        let Ok(Webhook::Transferred(over)) = told(word) else { panic!("{word}") };
        assert_eq!((over.status, over.provider_call_id.as_str()), (want, "CON-1"));
        assert_eq!(over.duration_s, Some(7));
    }
    for word in ["started", "ringing", "answered", "disconnected"] {
        assert_eq!(told(word), Ok(Webhook::Other(format!("transfer {word}"))));
    }
    // Without the mark it is news of a leg.
    assert!(matches!(event(json!({ "uuid": "u-2", "status": "busy" })), Ok(Webhook::Status(_))));
}

#[test]
fn only_whom_we_call_is_an_invalid_number() {
    let class = |parameter: &str| {
        let body =
            json!({ "type": "t", "title": "Bad Request", "invalid_parameters": [{ "name": parameter }] });
        let DialOutcome::Refused(why) = account().dialled(&answered(400, &body.to_string())) else {
            panic!()
        };
        why.class
    };
    for parameter in ["to", "to[0].number", "to.number"] {
        assert_eq!(class(parameter), FailureClass::InvalidNumber, "{parameter}");
    }
    for parameter in ["from", "from.number", "random_from_number", "token", "ncco"] {
        assert_eq!(class(parameter), FailureClass::Request, "{parameter}");
    }
}

/// C28: the detector's word names the leg as call_uuid.
#[test]
fn what_picked_up_names_its_leg_in_another_way() {
    for (word, sub_state, want) in [
        ("human", "", AnsweredBy::Human),
        ("machine", "", AnsweredBy::Machine),
        ("machine", "beep_start", AnsweredBy::MachineBeep),
        ("machine", "beep_timeout", AnsweredBy::MachineEnd),
    ] {
        let told = status(json!({ "call_uuid": "u-1", "status": word, "sub_state": sub_state }));
        assert_eq!(
            (told.answered_by, told.status, told.provider_call_id.as_str()),
            (Some(want), None, "u-1")
        );
    }
}

#[test]
fn news_of_the_media_leg_never_end_the_call() {
    for (fields, want) in [
        (json!({ "uuid": "w-1", "status": "completed", "headers": { "ctx": "1" } }), StreamKind::Stopped),
        (
            json!({ "uuid": "w-1", "status": "answered", "to": "wss://m.example.test/v1/media" }),
            StreamKind::Started,
        ),
        (
            json!({ "uuid": "w-1", "status": "failed", "to": "wss://m.example.test/v1/media" }),
            StreamKind::Failed,
        ),
        (
            json!({ "uuid": "w-1", "status": "disconnected", "conversation_uuid": "CON-1" }),
            StreamKind::Stopped,
        ),
    ] {
        let told = event(fields.clone());
        assert!(matches!(&told, Ok(Webhook::Stream(stream)) if stream.kind == want), "{fields}: {told:?}");
    }
}

#[test]
fn answer_is_the_sdks_ncco() {
    let parameters = [("name".to_owned(), "ann".to_owned()), ("event".to_owned(), "x".to_owned())];
    let mut plan = plan(&parameters);
    plan.sample_rate = 16_000;
    let document = account().answer(&plan);
    let ncco: Json = serde_json::from_str(&document.body).unwrap();
    let context_id = "00000000-0000-0000-0000-000000001234";
    let want = json!([{
        "endpoint": [{
            "uri": "wss://m.example.test/v1/media/x/ctx-1", "content-type": "audio/l16;rate=16000",
            "headers": { "ctx": context_id, "name": "ann" },
            "authorization": { "type": "custom", "value": format!("Bearer {context_id}") }, "type": "websocket",
        }],
        "from": "14155550199", "eventUrl": ["https://c.example.test/e?a=1&b=2"], "eventType": "synchronous",
        "action": "connect",
    }]);
    assert_eq!(ncco, want);
    assert_eq!(
        (document.content_type, document.left_out.as_slice()),
        ("application/json", ["event".to_owned()].as_slice())
    );
}

#[test]
fn headers_stay_below_512_octets() {
    let many: Vec<_> = (0..20).map(|n| (format!("p{n}"), "é".repeat(40))).collect();
    let document = account().answer(&plan(&many));
    let ncco: Json = serde_json::from_str(&document.body).unwrap();
    let headers = &ncco[0]["endpoint"][0]["headers"];
    assert!(headers.to_string().len() <= HEADERS_MAX);
    assert_eq!(headers.as_object().unwrap().len() - 1 + document.left_out.len(), 20);
}

#[test]
fn declines_are_spoken_or_an_empty_ncco() {
    let said: Json = serde_json::from_str(&account().decline(Decline::Say("Sorry")).body).unwrap();
    assert_eq!(said, json!([{ "action": "talk", "text": "Sorry" }]));
    assert_eq!(account().decline(Decline::Busy).body, "[]");
}

#[test]
fn dial_carries_its_ncco_and_a_token_that_the_public_key_verifies() {
    use base64::Engine as _;
    let request = account().dial(&dial(&[], MachineDetection::UntilBeep), STAMP).unwrap();
    assert_eq!(request.url, "https://api.nexmo.com/v1/calls");
    let call: Json = serde_json::from_str(&request.body).unwrap();
    assert_eq!(call["to"], json!([{ "type": "phone", "number": "14155550100" }]));
    assert_eq!(call["from"], json!({ "type": "phone", "number": "14155550199" }));
    assert_eq!((&call["ringing_timer"], &call["length_timer"]), (&json!(30), &json!(3_600)));
    assert_eq!(call["ncco"][0]["action"], "connect");
    assert_eq!(call["advanced_machine_detection"], json!({ "behavior": "continue", "mode": "detect_beep" }));
    assert!(call.get("answer_url").is_none());

    let token = request.header("authorization").unwrap().strip_prefix("Bearer ").unwrap();
    let parts: Vec<&str> = token.split('.').collect();
    let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
    let claims: Json = serde_json::from_slice(&decoded(parts[1])).unwrap();
    assert_eq!((&claims["iat"], &claims["exp"]), (&json!(1_700_000_000), &json!(1_700_000_900)));
    assert_eq!(claims["application_id"], "99999999-2222-3333-4444-555555555555");
    assert_eq!(claims["jti"], json!(STAMP.id));
    // The same key, read from its other form.
    let public = SigningKey::from_pem(include_str!("key_pkcs1.pem")).unwrap().public();
    let key = signature::UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, public);
    key.verify(format!("{}.{}", parts[0], parts[1]).as_bytes(), &decoded(parts[2])).unwrap();
}

#[test]
fn private_key_may_have_its_line_ends_spelt_out() {
    let one_line = include_str!("key_pkcs8.pem").trim().replace('\n', "\\n");
    assert!(SigningKey::from_pem(&one_line).is_some());
    assert!(SigningKey::from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----").is_none());
    assert!(SigningKey::from_pem("").is_none());
}

#[test]
fn without_a_private_key_calls_come_in_and_nothing_can_be_asked() {
    let fields = json!({ "application_id": "99999999-2222-3333-4444-555555555555", "api_key": "abcd1234", "signature_secret": SECRET });
    let account = open_account("vonage", fields);
    assert!(bearer(Asked::post(URL).json(BODY), TOKEN).webhook(&account).is_ok());
    let error = account.control("u-1", Control::HangUp, STAMP).unwrap_err().to_string();
    assert_eq!(error, "vonage cannot be asked anything: give the credential its \"private_key\"");
}

#[test]
fn live_calls_are_controlled_by_their_leg() {
    let ask = |control| account().control("u-1", control, STAMP).unwrap();
    let body = |request: &RestRequest| serde_json::from_str::<Json>(&request.body).unwrap();
    let over = ask(Control::HangUp);
    assert_eq!((over.method, over.url.as_str()), (Method::Put, "https://api.nexmo.com/v1/calls/u-1"));
    assert_eq!(body(&over), json!({ "action": "hangup" }));
    let keys = ask(Control::Dtmf("1w2#"));
    assert!(keys.url.ends_with("/u-1/dtmf"));
    assert_eq!(body(&keys), json!({ "digits": "1p2#" }));
    let transfer =
        Transfer { to: "+4930123", from: "+14155550199", ring_s: 25, result_url: "", document_url: "" };
    assert_eq!(
        body(&ask(Control::Transfer(transfer))),
        json!({ "action": "transfer", "destination": { "type": "ncco", "ncco": [{
            "action": "connect", "from": "14155550199", "eventType": "synchronous", "timeout": 25,
            "endpoint": [{ "type": "phone", "number": "4930123" }],
        }] } })
    );
    let moved = body(&ask(Control::Redirect { plan: &plan(&[]), document_url: "" }));
    assert_eq!(moved["destination"]["ncco"][0]["endpoint"][0]["type"], "websocket");
    let Lookup::Found(found) = account().looked_up(&answered(200, r#"{"uuid":"u-1","status":"unanswered"}"#))
    else {
        panic!()
    };
    assert_eq!(found.status, Some(CallStatus::NoAnswer));
}
