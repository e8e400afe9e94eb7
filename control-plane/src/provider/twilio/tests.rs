use axum::http::Method;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::provider::asked::{Asked, STAMP, account as open_account, answered, dial, form_of};
use crate::provider::document::tests::{outline, plan};

const TOKEN: &str = "test_auth_token_0123456789abcdef";
const TALK: &str = "https://voice.example.test/v1/talk/twilio/call/42";
const CALL: &[(&str, &str)] = &[
    ("AccountSid", "AC00000000000000000000000000000001"),
    ("ApiVersion", "2010-04-01"),
    ("CallSid", "CA00000000000000000000000000000001"),
    ("CallStatus", "ringing"),
    ("CallerName", "Zoë Ünal & Co"),
    ("Direction", "inbound"),
    ("From", "+14155550100"),
    ("To", "+14155550199"),
];

fn account() -> Arc<dyn Account> {
    open_account(
        "twilio",
        json!({
            "account_sid": "AC00000000000000000000000000000001",
            "account_token": TOKEN,
            "shared_keys": { "webhooks_sharedkey_1": "shared_key_secret_abc" },
        }),
    )
}

fn signed(asked: Asked, signature: &str) -> Asked {
    asked.header(SIGNATURE, signature)
}

/// The signature that Twilio would give.
fn sign(asked: Asked) -> Asked {
    let fields =
        asked.to(|request| request.is_form().then(|| sorted_fields(&request.body_params().unwrap())));
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, TOKEN.as_bytes());
    let tag = hmac::sign(&key, format!("{}{}", asked.url, fields.unwrap_or_default()).as_bytes());
    let signature = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, tag.as_ref());
    signed(asked, &signature)
}

fn form(url: &str, pairs: &[(&str, &str)]) -> Asked {
    let mut all: Vec<(&str, &str)> = CALL.to_vec();
    all.retain(|(name, _)| !pairs.iter().any(|(other, _)| other == name));
    all.extend(pairs);
    sign(Asked::post(url).form(&all))
}

fn event(pairs: &[(&str, &str)]) -> StatusEvent {
    match form("https://voice.example.test/e", pairs).event().webhook(&account()) {
        Ok(Webhook::Status(event)) => event,
        other => panic!("{other:?}"),
    }
}

/// Vectors T1 to T8, made with Twilio's SDKs; and C1.
#[test]
fn signatures_of_twilios_own_sdks_are_taken() {
    let query = format!("{TALK}?name=ann%20lee&x=1");
    let t1 = signed(Asked::post(&query).form(CALL), "F4CLtHB+PcSZN6jMgOMqDkwQRQ8=");
    let Ok(Webhook::Inbound(call)) = t1.webhook(&account()) else { panic!("T1") };
    assert_eq!((call.from.as_str(), call.to.as_str()), ("+14155550100", "+14155550199"));
    assert_eq!(call.provider_call_id, "CA00000000000000000000000000000001");
    assert_eq!(call.arguments, [("name".into(), "ann lee".into()), ("x".into(), "1".into())]);

    let (bare, with_443, with_8443) =
        ("nBOclJktxAh6K7APptpMGJB07KE=", "CDUxfvAnUNIjR7BnPLCfBcIF6gQ=", "cpZVPdNZnR/qDrXNVuy29PmZMiA=");
    let on_8443 = TALK.replace(".test/", ".test:8443/");
    for (name, url, signature) in [
        ("T2a", TALK, bare),
        ("T2b", TALK, with_443),
        ("T2c", on_8443.as_str(), with_8443),
        ("T2c without port", on_8443.as_str(), bare),
        ("T8", "https://user:pass@voice.example.test/v1/talk", "hP+2fRW2GCUaXhX74q791X8tU+Q="),
    ] {
        let asked = signed(Asked::post(url).form(CALL), signature);
        assert!(matches!(asked.webhook(&account()), Ok(Webhook::Inbound(_))), "{name}");
    }
    let verify = |asked: Asked| asked.to(|request| account().upgrade(request));
    let t3 = format!("{TALK}?CallSid=CA1&From=%2B14155550100&To=%2B14155550199");
    assert_eq!(verify(signed(Asked::get(&t3), "xNyibTuiDCgzBzmr/B8ZYSZltU8=")), Ok(()));
    let t5 =
        Asked::post("https://voice.example.test/m").form(&[("a", "2"), ("a", "1"), ("a", "2"), ("B", "x")]);
    assert_eq!(verify(signed(t5, "DOQCfSDsrWLjgkPS+BqDtk/DW+I=")), Ok(()));
    let t7 = Asked::get("wss://voice.example.test/v1/media/twilio/ctx-0001");
    assert_eq!(verify(signed(t7, "iCkmDOk7ZBUKyY2l0AX3zqHTeQ0=")), Ok(()));
}

/// T8 as it arrives: a client takes user and password out of the URL and into a header, and Twilio signs the URL with them.
#[test]
fn user_and_password_of_the_url_come_in_a_header_and_are_signed() {
    let asked = |user: &str, password: &str| {
        signed(Asked::post("https://voice.example.test/v1/talk").form(CALL), "hP+2fRW2GCUaXhX74q791X8tU+Q=")
            .header("authorization", &proof::basic_header(user, &password.into()))
            .webhook(&account())
    };
    assert!(matches!(asked("user", "pass"), Ok(Webhook::Inbound(_))));
    for (user, password) in [("user", "past"), ("", ""), ("user", "pass@voice.example.test/v1/talk?")] {
        assert_eq!(asked(user, password), Err(Refusal::Signature(SIGNATURE)), "{user}:{password}");
    }
    let spelt = |url: &str, user: &str, password: &str| {
        let header = proof::basic_header(user, &password.into());
        let shown = Asked::post("https://h/p").form(CALL).header("authorization", &header);
        signed(shown, sign(Asked::post(url).form(CALL)).headers[SIGNATURE].to_str().unwrap())
            .webhook(&account())
    };
    assert!(spelt("https://u:p%40ss@h:443/p", "u", "p@ss").is_ok());
    assert!(
        spelt("https://u:a!b@h/p", "u", "a!b").is_ok() && spelt("https://u:a%21b@h/p", "u", "a!b").is_ok()
    );
    // It makes no other URL of ours.
    assert!(spelt("https://other/?x=:y@h/p", "other/?x=", "y").is_err());
    let plain = Asked::post("https://h/p").form(CALL).header("authorization", "Basic !");
    assert!(matches!(sign(plain).webhook(&account()), Ok(Webhook::Inbound(_))));
}

#[test]
fn json_body_is_proved_by_its_hash_in_the_url() {
    let url = "https://voice.example.test/v1/json?bodySHA256=09ad9fd2fb648cb2f62141215828ea00a62c299db05d20aa9ade2f527a301cc6";
    let t4 =
        |body: &str| signed(Asked::post(url).json(body), "UjeGI38mXbIrME+4zo5a4rS8rsg=").webhook(&account());
    assert!(matches!(t4("{\"a\":1,\"b\":\"é\"}"), Ok(Webhook::Other(_))));
    assert_eq!(t4("{\"a\":2,\"b\":\"é\"}"), Err(Refusal::BodyHash("bodySHA256")));
    let unhashed = sign(Asked::post("https://voice.example.test/v1/json").json("{}"));
    assert!(matches!(unhashed.webhook(&account()), Err(Refusal::BodyHash(_))));
}

#[test]
fn shared_key_of_the_settings_header_signs_by_sha256() {
    let url = TALK.replace(".test/", ".test:8443/");
    let t6 = |settings: &str| {
        let asked = signed(Asked::post(&url).form(CALL), "e/ihyFkJ0WLmdppBIkGz0EhRpHaSx9A9p8FcirddjWo=");
        asked.header(SIGNATURE_SETTINGS, settings).webhook(&account())
    };
    assert!(t6("key=webhooks_sharedkey_1,algorithm=HMAC_SHA256").is_ok());
    assert!(t6("algorithm=HMAC_SHA256, key=webhooks_sharedkey_1").is_ok());
    assert_eq!(t6("key=other,algorithm=HMAC_SHA256"), Err(Refusal::UnknownKey("other".into())));
    assert_eq!(t6("algorithm=HMAC_MD5"), Err(Refusal::Algorithm("HMAC_MD5".into())));
    // Without an algorithm it is the auth token, by which this was not signed.
    assert_eq!(t6("key=webhooks_sharedkey_1"), Err(Refusal::Signature(SIGNATURE)));
}

/// C2.
#[test]
fn one_changed_octet_of_url_field_or_signature_is_403() {
    let good = Asked::post(&format!("{TALK}?x=1")).form(CALL);
    let signature = "F4CLtHB+PcSZN6jMgOMqDkwQRQ8=";
    let url = good.url.replace("x=1", "name=ann%20lee&x=1");
    let with = |asked: Asked| signed(asked, signature).webhook(&account());
    assert!(with(Asked { url: url.clone(), ..good.clone() }).is_ok());
    let mut body = good.body.clone();
    *body.last_mut().unwrap() ^= 1;
    for changed in [
        Asked { url: url.replace("x=1", "x=2"), ..good.clone() },
        Asked { url: url.replace("https", "http"), ..good.clone() },
        Asked { url: url.replace("/42", "/43"), ..good.clone() },
        Asked { url: url.clone(), body, ..good.clone() },
        Asked { url: url.clone(), method: Method::GET, ..good.clone() },
    ] {
        assert_eq!(with(changed).unwrap_err().status(), 403);
    }
    for wrong in ["G4CLtHB+PcSZN6jMgOMqDkwQRQ8=", "", "F4CLtHB+PcSZN6jMgOMqDkwQRQ8", "*"] {
        let asked = signed(Asked { url: url.clone(), ..good.clone() }, wrong);
        assert_eq!(asked.webhook(&account()), Err(Refusal::Signature(SIGNATURE)));
    }
    assert_eq!(Asked { url, ..good }.webhook(&account()), Err(Refusal::Unsigned(SIGNATURE)));
}

#[test]
fn both_tokens_are_good_while_they_are_being_exchanged() {
    let exchanging = open_account(
        "twilio",
        json!({
            "account_sid": "AC00000000000000000000000000000001",
            "account_token": "the-new-one",
            "account_token_secondary": TOKEN,
        }),
    );
    assert!(form(TALK, &[]).webhook(&exchanging).is_ok());
}

#[test]
fn another_account_is_refused_however_well_it_is_signed() {
    let asked = form(TALK, &[("AccountSid", "AC00000000000000000000000000000002")]);
    assert_eq!(asked.webhook(&account()), Err(Refusal::Account("AccountSid")));
}

#[test]
fn quote_in_the_query_may_have_been_signed_escaped() {
    let asked = Asked::post(&format!("{TALK}?name=O'Neil")).form(CALL);
    let escaped = sign(Asked { url: asked.url.replace('\'', "%27"), ..asked.clone() });
    let signature = escaped.headers.get(SIGNATURE).unwrap().to_str().unwrap().to_owned();
    assert!(signed(asked, &signature).webhook(&account()).is_ok());
}

#[test]
fn ports_of_sockets_and_of_ipv6_are_told_apart() {
    let spelt = |url| spellings(url);
    assert_eq!(spelt("wss://h/p?q"), ["wss://h/p?q", "wss://h:443/p?q"]);
    assert_eq!(spelt("http://h"), ["http://h", "http://h:80"]);
    assert_eq!(spelt("https://[2001:db8::1]/p"), ["https://[2001:db8::1]/p", "https://[2001:db8::1]:443/p"]);
    assert_eq!(
        spelt("https://u:p@[2001:db8::1]:8443/p"),
        ["https://u:p@[2001:db8::1]:8443/p", "https://u:p@[2001:db8::1]/p"]
    );
}

/// C3: Twilio's own mark of a repetition, and the same call id.
#[test]
fn repeated_webhook_has_the_same_marks() {
    let asked = form(TALK, &[]).header("I-Twilio-Idempotency-Token", "tok-1");
    let read = || match asked.webhook(&account()) {
        Ok(Webhook::Inbound(call)) => (call.provider_call_id, call.retry_token),
        other => panic!("{other:?}"),
    };
    assert_eq!(read(), read());
    assert_eq!(read().1.as_deref(), Some("tok-1"));
}

#[test]
fn webhook_by_get_has_its_arguments_beside_twilios_own_names() {
    let url = format!(
        "{TALK}?AccountSid=AC00000000000000000000000000000001&CallSid=CA1&From=%2B1415&To=%2B1416&name=ann&x-api-key=k"
    );
    let Ok(Webhook::Inbound(call)) = sign(Asked::get(&url)).webhook(&account()) else { panic!() };
    assert_eq!(
        (call.from.as_str(), call.arguments.as_slice()),
        ("+1415", [("name".into(), "ann".into())].as_slice())
    );
    let nobody = form(TALK, &[("From", "")]);
    assert_eq!(nobody.webhook(&account()).unwrap_err().status(), 400);
}

#[test]
fn status_callbacks_become_events() {
    let over = event(&[
        ("CallStatus", "completed"),
        ("SequenceNumber", "3"),
        ("CallDuration", "61"),
        ("Duration", "2"),
        ("SipResponseCode", "200"),
    ]);
    assert_eq!(
        (over.status, over.sequence, over.duration_s),
        (Some(CallStatus::Completed), Some(3), Some(61))
    );
    assert_eq!(over.event_id, "CA00000000000000000000000000000001:3:completed");
    for (word, sip, want) in [
        ("queued", "", CallStatus::Queued),
        ("initiated", "", CallStatus::Initiated),
        ("ringing", "", CallStatus::Ringing),
        ("in-progress", "", CallStatus::Answered),
        ("busy", "486", CallStatus::Busy),
        ("busy", "603", CallStatus::Rejected),
        ("failed", "603", CallStatus::Rejected),
        ("failed", "404", CallStatus::Failed),
        ("no-answer", "", CallStatus::NoAnswer),
        ("canceled", "", CallStatus::Canceled),
    ] {
        assert_eq!(event(&[("CallStatus", word), ("SipResponseCode", sip)]).status, Some(want), "{word}");
    }
    let strange = event(&[("CallStatus", "levitating")]);
    assert_eq!((strange.status, strange.word.as_str()), (None, "levitating"));
}

/// C28.
#[test]
fn what_picked_up_comes_by_a_callback_of_its_own() {
    for (word, want) in [
        ("human", AnsweredBy::Human),
        ("machine_start", AnsweredBy::Machine),
        ("machine_end_beep", AnsweredBy::MachineBeep),
        ("machine_end_silence", AnsweredBy::MachineEnd),
        ("machine_end_other", AnsweredBy::MachineEnd),
        ("fax", AnsweredBy::Fax),
        ("unknown", AnsweredBy::Unknown),
    ] {
        let told = event(&[("CallStatus", ""), ("AnsweredBy", word)]);
        assert_eq!((told.answered_by, told.status), (Some(want), None), "{word}");
        assert!(told.event_id.ends_with(":amd"));
    }
}

#[test]
fn streams_and_transfers_have_news_of_their_own() {
    let news =
        |pairs: &[(&str, &str)]| form("https://voice.example.test/e", pairs).event().webhook(&account());
    for (word, want) in [
        ("stream-started", StreamKind::Started),
        ("stop", StreamKind::Stopped),
        ("stream-error", StreamKind::Failed),
    ] {
        let told = news(&[("StreamEvent", word), ("StreamSid", "MZ1"), ("StreamError", "why")]);
        assert!(
            matches!(told, Ok(Webhook::Stream(stream)) if stream.kind == want && stream.stream_id == "MZ1")
        );
    }
    let told = news(&[("DialCallStatus", "no-answer"), ("DialCallDuration", "0")]);
    assert!(matches!(told, Ok(Webhook::Transferred(over)) if over.status == CallStatus::NoAnswer));
    let outbound = form(TALK, &[("Direction", "outbound-api"), ("AnsweredBy", "human")]).webhook(&account());
    assert!(
        matches!(outbound, Ok(Webhook::Document(wanted)) if wanted.answered_by == Some(AnsweredBy::Human))
    );
}

#[test]
fn answer_is_the_sdks_document() {
    let parameters = [("q".to_owned(), "a<b & \"c\"".to_owned())];
    let document = account().answer(&plan(&parameters));
    let want = "<Response><Connect><Stream statusCallback=\"https://c.example.test/e?a=1&amp;b=2\" \
                statusCallbackMethod=\"POST\" url=\"wss://m.example.test/v1/media/x/ctx-1\">\
                <Parameter name=\"ctx\" value=\"00000000-0000-0000-0000-000000001234\" />\
                <Parameter name=\"q\" value=\"a&lt;b &amp; &quot;c&quot;\" /></Stream></Connect></Response>";
    assert_eq!(outline(&document.body), outline(want));
    assert_eq!((document.content_type, document.status.as_u16()), ("text/xml", 200));
}

#[test]
fn parameters_that_do_not_fit_are_left_out_and_named() {
    let parameters = [
        ("long".to_owned(), "x".repeat(600)),
        ("short".to_owned(), "y".to_owned()),
        ("ctx".to_owned(), "forged".to_owned()),
    ];
    let document = account().answer(&plan(&parameters));
    assert_eq!(document.left_out, ["long", "ctx"]);
    assert!(document.body.contains("name=\"short\"") && !document.body.contains("forged"));
    let many: Vec<_> = (0..40).map(|n| (format!("p{n}"), "z".repeat(400))).collect();
    let document = account().answer(&plan(&many));
    assert!(document.body.len() <= TWIML_MAX && document.left_out.len() > 30);
}

#[test]
fn declines_are_spoken_busy_or_left_to_the_fallback() {
    let said = account().decline(Decline::Say("Sorry & goodbye"));
    assert_eq!(outline(&said.body), outline("<Response><Say>Sorry &amp; goodbye</Say><Hangup/></Response>"));
    let busy = account().decline(Decline::Busy);
    assert_eq!(outline(&busy.body), outline("<Response><Reject reason=\"busy\"/></Response>"));
}

#[test]
fn dial_repeats_the_event_key_and_detects_beside_the_conversation() {
    let request = account().dial(&dial(&[], MachineDetection::UntilBeep), STAMP).unwrap();
    assert_eq!(
        request.url,
        "https://api.twilio.com/2010-04-01/Accounts/AC00000000000000000000000000000001/Calls.json"
    );
    let form = form_of(&request);
    let value = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!((value("To"), value("From")), (Some("+14155550100"), Some("+14155550199")));
    assert_eq!(form.iter().filter(|(key, _)| key == "StatusCallbackEvent").count(), 4);
    assert_eq!((value("MachineDetection"), value("AsyncAmd")), (Some("DetectMessageEnd"), Some("true")));
    assert_eq!((value("Timeout"), value("TimeLimit"), value("Url")), (Some("30"), Some("3600"), None));
    assert!(value("Twiml").unwrap().contains("<Connect><Stream url="));
    let plain = account().dial(&dial(&[], MachineDetection::Off), STAMP).unwrap();
    assert!(!plain.body.contains("MachineDetection"));
    for (seconds, ring, limit) in [(0, "1", "1"), (u32::MAX, "600", "86400")] {
        let wanted = Dial { ring_s: seconds, limit_s: seconds, ..dial(&[], MachineDetection::Off) };
        let form = form_of(&account().dial(&wanted, STAMP).unwrap());
        let has = |name: &str, value: &str| form.contains(&(name.to_owned(), value.to_owned()));
        assert!(has("Timeout", ring) && has("TimeLimit", limit), "{form:?}");
    }
    assert_eq!(
        request.header("authorization").unwrap(),
        proof::basic_header("AC00000000000000000000000000000001", &TOKEN.into())
    );
}

#[test]
fn live_calls_are_ended_transferred_and_led_elsewhere_by_one_url() {
    let ask = |control| account().control("CA1", control, STAMP).unwrap();
    let over = ask(Control::HangUp);
    assert!(over.url.ends_with("/Calls/CA1.json") && over.body == "Status=completed");
    let transfer = Transfer {
        to: "+4930123",
        from: "+14155550199",
        ring_s: 25,
        result_url: "https://c.example.test/t?a=1&b=2",
        document_url: "",
    };
    let twiml = form_of(&ask(Control::Transfer(transfer)));
    let want = "<Response><Dial action=\"https://c.example.test/t?a=1&amp;b=2\" callerId=\"+14155550199\" timeout=\"25\">\
                <Number>+4930123</Number></Dial></Response>";
    assert_eq!(outline(&twiml[0].1), outline(want));
    assert_eq!(account().transfer(&transfer).unwrap().body, twiml[0].1);
    let moved = ask(Control::Redirect { plan: &plan(&[]), document_url: "" });
    assert!(form_of(&moved)[0].1.contains("wss://m.example.test"));
    assert!(account().control("CA1", Control::Dtmf("1"), STAMP).is_err());
}

#[test]
fn keys_regions_and_lookups() {
    let fields = json!({
        "account_sid": "AC00000000000000000000000000000001", "account_token": "t", "api_key_sid": "SK1",
        "api_key_secret": "s", "edge": "dublin", "region": "ie1",
    });
    let request = open_account("twilio", fields).probe(STAMP).unwrap();
    assert_eq!(
        request.url,
        "https://api.dublin.ie1.twilio.com/2010-04-01/Accounts/AC00000000000000000000000000000001.json"
    );
    assert_eq!(request.header("authorization").unwrap(), proof::basic_header("SK1", &"s".into()));
    let body = r#"{"sid":"CA1","status":"completed","duration":"7","answered_by":"human"}"#;
    let Lookup::Found(found) = account().looked_up(&answered(200, body)) else { panic!() };
    assert_eq!((found.status, found.duration_s), (Some(CallStatus::Completed), Some(7)));
    assert_eq!(account().looked_up(&answered(404, "{}")), Lookup::Gone);
    assert_eq!(account().looked_up(&RestAnswer::TimedOut), Lookup::Unknown);
}

proptest! {
    /// Whatever a caller's name is, what was signed is taken and what was changed is not.
    #[test]
    fn any_fields_verify_as_signed_and_in_no_other_way(
        fields in proptest::collection::vec(("[A-Za-z]{1,6}", any::<String>()), 0..6),
        query in "[a-z0-9=&%']{0,20}",
    ) {
        let pairs: Vec<(&str, &str)> = fields.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let asked = sign(Asked::post(&format!("https://h.example.test/p?{query}x")).form(&pairs));
        let account = account();
        prop_assert_eq!(asked.to(|request| account.upgrade(request)), Ok(()));
        let mut changed = asked.clone();
        changed.url.push('y');
        prop_assert!(changed.to(|request| account.upgrade(request)).is_err());
    }
}
