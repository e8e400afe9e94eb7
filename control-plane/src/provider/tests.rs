//! What all providers keep to.

use std::sync::Arc;

use axum::http::Method;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::asked::{Asked, STAMP, account, answered, dial};
use super::rest::{MachineDetection, RestAnswer};
use super::webhook::{BODY_MAX, Endpoint};
use super::*;

/// One account of each.
fn accounts() -> Vec<Arc<dyn Account>> {
    let fields = [
        json!({ "account_sid": "AC00000000000000000000000000000001", "account_token": "hunter2" }),
        json!({
            "application_id": "app", "api_key": "abcd1234", "signature_secret": "hunter2",
            "private_key": include_str!("vonage/key_pkcs8.pem"),
        }),
        json!({
            "account_sid": "acme1", "client_id": "hunter2", "client_secret": "hunter2", "region": "in",
            "webhook_user": "u", "webhook_password": "hunter2",
        }),
        json!({ "webhook_user": "u", "webhook_password": "hunter2", "ari_url": "http://pbx:8088/ari", "ari_user": "a",
            "ari_password": "hunter2" }),
        json!({ "api_key": "hunter2", "public_key": "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=" }),
        json!({ "auth_id": "MA1", "auth_token": "hunter2" }),
    ];
    PROVIDERS.iter().zip(fields).map(|(provider, fields)| account(provider.form.provider, fields)).collect()
}

/// Requests that look real enough to reach every branch.
fn asked() -> impl Strategy<Value = Asked> {
    let headers = [
        "x-twilio-signature",
        "x-twilio-webhooks-signature-settings",
        "authorization",
        "x-plivo-signature-v3",
        "x-plivo-signature-ma-v3",
        "x-plivo-signature-v3-nonce",
        "telnyx-signature-ed25519",
        "telnyx-timestamp",
        "content-type",
    ];
    let value = prop_oneof![
        "[ -~]{0,40}",
        "Bearer [A-Za-z0-9_-]{0,30}\\.[A-Za-z0-9_-]{0,30}\\.[A-Za-z0-9_-]{0,30}",
        "Basic [A-Za-z0-9+/]{0,20}={0,2}",
        "key=[a-z_]{0,9},algorithm=[A-Z_0-9]{0,11}",
        Just("application/x-www-form-urlencoded".to_owned()),
        Just("multipart/form-data; boundary=b".to_owned()),
        Just("application/json".to_owned()),
        Just("1700000000".to_owned()),
        "[A-Za-z0-9+/]{86}==",
    ];
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        "[ -~]{0,200}".prop_map(String::into_bytes),
        "\\{\"data\":\\{\"event_type\":\"[a-z._]{0,20}\",\"payload\":\\{\\}\\}\\}"
            .prop_map(String::into_bytes),
        "(--b\r\n[ -~]{0,30}\r\n\r\n[ -~]{0,30}\r\n){0,3}--b--".prop_map(String::into_bytes),
    ];
    let endpoint = prop_oneof![Just(Endpoint::Call), Just(Endpoint::Event), Just(Endpoint::Media)];
    let headers = proptest::collection::vec((proptest::sample::select(headers.to_vec()), value), 0..6);
    (endpoint, any::<bool>(), "[ -~]{0,60}", headers, body, any::<i64>()).prop_map(
        |(endpoint, is_post, query, headers, body, now_s)| {
            let method = if is_post { Method::POST } else { Method::GET };
            let mut asked = Asked::new(method, &format!("https://voice.example.test/v1/x?{query}"));
            for (name, value) in headers {
                asked = asked.header(name, &value);
            }
            Asked { endpoint, body, now_s, ..asked }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Fuzzing in small: arbitrary octets never panic, never verify, and are never our fault.
    #[test]
    fn arbitrary_requests_are_refused_as_the_senders_mistake(asked in asked()) {
        for account in accounts_once() {
            let refusal = asked.webhook(account).expect_err("nobody has signed it");
            prop_assert!(refusal.status().is_client_error());
            prop_assert!(!refusal.to_string().contains("hunter2"));
            let _ = asked.to(|request| account.upgrade(request));
        }
    }

    /// What a provider signs still cannot break us.
    #[test]
    fn arbitrary_but_genuine_fields_never_panic(
        fields in proptest::collection::vec(("[A-Za-z\\[\\]_]{0,20}", any::<String>()), 0..12),
        is_event in any::<bool>(),
        is_post in any::<bool>(),
    ) {
        let pairs: Vec<(&str, &str)> = fields.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let mut asked = Asked::post("https://voice.example.test/v1/x").form(&pairs);
        if !is_post {
            let query = String::from_utf8(asked.body).unwrap();
            asked = Asked::get(&format!("https://voice.example.test/v1/x?{query}"));
        }
        if is_event {
            asked = asked.event();
        }
        asked.has_api_key = true;
        let exotel = asked.clone().header("authorization", &proof::basic_header("u", &"hunter2".into()));
        for request in [asked, exotel] {
            for account in accounts_once() {
                if let Err(refusal) = request.webhook(account) {
                    prop_assert!(refusal.status().is_client_error());
                }
            }
        }
    }

    /// Neither can an answer of its API.
    #[test]
    fn arbitrary_answers_of_an_api_never_panic(status in 100_u16..600, body in proptest::collection::vec(any::<u8>(), 0..100)) {
        let answer = RestAnswer::Answered { status, retry_after_s: None, body: &body };
        for account in accounts_once() {
            let outcome = account.dialled(&answer);
            prop_assert!(!matches!(outcome, DialOutcome::Accepted { .. }), "rubbish names no call: {:?}", outcome);
            let _ = account.controlled(&answer);
            let _ = account.looked_up(&answer);
        }
    }
}

/// The accounts, made once: an RSA key takes its time.
fn accounts_once() -> &'static [Arc<dyn Account>] {
    static ACCOUNTS: std::sync::OnceLock<Vec<Arc<dyn Account>>> = std::sync::OnceLock::new();
    ACCOUNTS.get_or_init(accounts)
}

#[test]
fn secrets_are_shown_nowhere() {
    for account in accounts_once() {
        assert!(!format!("{account:?}").contains("hunter2"), "{account:?}");
        let placed = account.dial(&dial(&[], MachineDetection::Off), STAMP);
        assert!(!format!("{placed:?}").contains("hunter2"), "{placed:?}");
    }
}

#[test]
fn oversized_and_strange_requests_are_refused_before_anything_is_computed() {
    let large = Asked { body: vec![b'a'; BODY_MAX + 1], ..Asked::post("https://h/p") };
    let strange = Asked::new(Method::DELETE, "https://h/p");
    for account in accounts_once() {
        assert_eq!(large.webhook(account).unwrap_err().status(), 413);
        assert_eq!(strange.webhook(account).unwrap_err().status(), 405);
    }
}

#[test]
fn every_provider_declines_without_an_error_of_its_own() {
    for account in accounts_once() {
        let document = account.decline(Decline::Unavailable { retry_after_s: 9 });
        assert_eq!((document.status.as_u16(), document.retry_after_s), (503, Some(9)));
        assert!(document.body.is_empty());
        for decline in [Decline::Busy, Decline::Say("a < b & \"c\"")] {
            let document = account.decline(decline);
            match document.content_type {
                "" => assert_eq!(document.status, 503),
                "application/json" => drop(serde_json::from_str::<Json>(&document.body).unwrap()),
                _ => drop(roxmltree::Document::parse(&document.body).unwrap()),
            }
        }
    }
}

#[test]
fn forms_are_complete_and_their_names_unique() {
    for provider in PROVIDERS {
        let form = provider.form;
        assert!(find(form.provider).is_some());
        for (index, field) in form.fields.iter().enumerate() {
            assert!(!field.label.is_empty() && !field.help.is_empty(), "{}", field.name());
            let is_twice = form.fields[..index].iter().any(|other| other.name() == field.name());
            assert!(!is_twice && field.name() != "provider" && field.name() != "tenant", "{}", field.name());
            if !field.example.is_empty() && field.kind == form::Kind::Text {
                assert_eq!((field.check)(field.example), Ok(()), "{}", field.name());
            }
        }
        // What a console gets of it.
        let shown = serde_json::to_value(form).unwrap();
        assert_eq!(shown["fields"][0]["keys"][0], form.fields[0].name());
    }
}

#[test]
fn vaults_object_is_checked_by_the_same_form() {
    let form = find("twilio").unwrap().form;
    let object = json!({ "account_sid": "AC1", "acount_token": "hunter2" });
    let errors = Values::from_json(form, object.as_object().unwrap()).unwrap_err();
    let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "unknown field \"acount_token\"; did you mean \"account_token\"?",
            "\"account_sid\" is not \"AC\" and 32 hexadecimal digits",
            "\"account_token\" is missing: beside the account SID; it signs webhooks and proves our requests",
        ]
    );
    let form = find("exotel").unwrap().form;
    let object = json!({ "account_sid": "a", "client_id": "k", "client_secret": "t", "region": "sg", "allow": "10.0.0.1, 10.1.0.0/16" });
    let values = Values::from_json(form, object.as_object().unwrap()).unwrap();
    assert_eq!(values.networks("allow").len(), 2);
}

/// C27: each provider's shape of the answers that a dial can meet.
#[test]
fn answers_to_a_dial_become_outcomes() {
    use super::rest::FailureClass::*;

    let cases: [(&str, &str, &str, &str, rest::FailureClass, u16); 6] = [
        (
            "twilio",
            r#"{"sid":"CA1","status":"queued"}"#,
            "CA1",
            r#"{"code":21211,"message":"bad To","status":400}"#,
            InvalidNumber,
            400,
        ),
        (
            "vonage",
            r#"{"uuid":"u-1","status":"started","conversation_uuid":"CON-1"}"#,
            "u-1",
            r#"{"type":"t","title":"Bad Request","detail":"d","invalid_parameters":[{"name":"to","reason":"r"}]}"#,
            InvalidNumber,
            400,
        ),
        (
            "exotel",
            r#"{"Call":{"Sid":"e-1","Status":"in-progress"}}"#,
            "e-1",
            r#"{"RestException":{"Status":403,"Message":"no","Code":34001}}"#,
            Forbidden,
            403,
        ),
        (
            "asterisk",
            r#"{"id":"ch-1","state":"Down"}"#,
            "ch-1",
            r#"{"message":"Invalid endpoint"}"#,
            Request,
            400,
        ),
        (
            "telnyx",
            r#"{"data":{"call_control_id":"v3:1","is_alive":false}}"#,
            "v3:1",
            r#"{"errors":[{"code":"10016","title":"Phone number must be in +E164 format"}]}"#,
            InvalidNumber,
            422,
        ),
        (
            "plivo",
            r#"{"message":"call fired","request_uuid":"r-1","api_id":"a"}"#,
            "request:r-1",
            r#"{"error":"to parameter not present","api_id":"a"}"#,
            InvalidNumber,
            400,
        ),
    ];
    for ((name, accepted, id, refused, class, status), account) in cases.into_iter().zip(accounts_once()) {
        let outcome = account.dialled(&answered(201, accepted));
        assert_eq!(outcome, DialOutcome::Accepted { provider_call_id: id.to_owned() }, "{name}");
        let DialOutcome::Refused(why) = account.dialled(&answered(status, refused)) else { panic!("{name}") };
        assert_eq!((why.class, why.is_retryable(), why.http_status), (class, false, status), "{name}");
        let wait = RestAnswer::Answered { status: 429, retry_after_s: Some(4), body: b"{}" };
        let DialOutcome::Refused(why) = account.dialled(&wait) else { panic!("{name}") };
        assert_eq!(
            (why.class, why.is_retryable(), why.retry_after_s),
            (RateLimited, true, Some(4)),
            "{name}"
        );
        for doubtful in [RestAnswer::TimedOut, answered(504, "<html>"), answered(200, "{}")] {
            assert!(matches!(account.dialled(&doubtful), DialOutcome::Unknown { .. }), "{name}");
        }
        assert!(!account.is_dial_repeatable(), "{name}");
    }
}

/// C27: a gateway before the API may answer in JSON as well, and does not know what became of the request.
#[test]
fn only_the_providers_own_mark_makes_a_5xx_its_word() {
    let own = [
        r#"{"code":20500,"message":"An internal server error has occurred","more_info":"u","status":500}"#,
        r#"{"type":"https://developer.vonage.com/api-errors#internal","title":"Internal Error","detail":"d"}"#,
        r#"{"RestException":{"Status":500,"Message":"Internal error","Code":34000}}"#,
        r#"{"message":"Allocation failed"}"#,
        r#"{"errors":[{"code":"10007","title":"Unexpected error"}]}"#,
        r#"{"api_id":"a","error":"Internal server error"}"#,
    ];
    let gateways = [
        r#"{"code":500,"message":"Internal Server Error","status":500}"#,
        r#"{"type":"about:blank","title":"Internal Server Error","status":500,"detail":"d"}"#,
        r#"{"type":"https://api-vonage.com.example.org/e","title":"Internal Server Error"}"#,
        r#"{"message":"An unexpected error occurred","request_id":"4e1a"}"#,
        r#"{"error":"upstream connect error","status":500}"#,
        r#"{"errors":[{"title":"Internal Server Error"}]}"#,
        "<html>",
        "",
    ];
    for (body, account) in own.into_iter().zip(accounts_once()) {
        let DialOutcome::Refused(why) = account.dialled(&answered(500, body)) else { panic!("{body}") };
        assert!(why.is_retryable() && why.class == rest::FailureClass::Provider, "{body}");
        assert!(matches!(account.controlled(&answered(500, body)), ControlOutcome::Refused(_)), "{body}");
        for status in [408, 502, 504] {
            let answer = answered(status, body);
            assert!(matches!(account.dialled(&answer), DialOutcome::Unknown { .. }), "{status} {body}");
            assert_eq!(account.controlled(&answer), ControlOutcome::Unknown, "{status} {body}");
        }
        for body in gateways {
            let answer = answered(500, body);
            assert!(matches!(account.dialled(&answer), DialOutcome::Unknown { .. }), "{account:?} {body}");
            assert_eq!(account.controlled(&answer), ControlOutcome::Unknown, "{account:?} {body}");
        }
    }
}

/// A call that is gone is hung up, in each provider's words.
#[test]
fn hang_up_of_a_call_that_is_over_is_done() {
    let words = [
        (404, r#"{"code":20404,"message":"not found"}"#),
        (404, r#"{"type":"t","title":"Not Found"}"#),
        (404, r#"{"RestException":{"Status":404,"Message":"no","Code":1}}"#),
        (404, r#"{"message":"Channel not found"}"#),
        (422, r#"{"errors":[{"code":"90018","title":"Call has already ended"}]}"#),
        (404, r#"{"error":"call not found"}"#),
    ];
    for ((status, body), account) in words.into_iter().zip(accounts_once()) {
        assert_eq!(account.controlled(&answered(status, body)), ControlOutcome::Gone, "{account:?}");
        assert_eq!(account.controlled(&answered(200, "{}")), ControlOutcome::Done);
    }
}

/// What a fake needs: every request goes where the credential says.
#[test]
fn api_address_of_the_credential_is_where_requests_go() {
    let fake = "http://127.0.0.1:9";
    let fields = [
        (
            "twilio",
            json!({ "account_sid": "AC00000000000000000000000000000001", "account_token": "t", "api_url": fake }),
        ),
        (
            "vonage",
            json!({ "application_id": "a", "api_key": "k", "signature_secret": "s", "api_url": fake,
            "private_key": include_str!("vonage/key_pkcs1.pem") }),
        ),
        (
            "exotel",
            json!({ "account_sid": "a", "client_id": "k", "client_secret": "t", "region": "in", "api_url": fake }),
        ),
        ("asterisk", json!({ "ari_url": fake, "ari_user": "u", "ari_password": "p" })),
        (
            "telnyx",
            json!({ "api_key": "k", "connection_id": "1", "api_url": fake,
            "public_key": "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=" }),
        ),
        ("plivo", json!({ "auth_id": "a", "auth_token": "t", "api_url": fake })),
    ];
    for (name, fields) in fields {
        let account = account(name, fields);
        let placed = account.dial(&dial(&[], MachineDetection::Off), STAMP).unwrap();
        let asked = [placed, account.probe(STAMP).unwrap(), account.lookup("../x?", STAMP).unwrap()];
        for request in asked {
            assert!(request.url.starts_with(fake), "{request:?}");
            assert!(!request.url.contains("../"), "{request:?}");
            assert!(request.header("authorization").is_some());
        }
    }
}

/// C20: callbacks in any order, doubled, as each provider words them.
#[test]
fn callbacks_out_of_order_end_in_the_same_status() {
    let twilio = ["completed", "initiated", "in-progress", "completed", "ringing"].map(twilio::call_status);
    let vonage = ["answered", "completed", "started", "ringing", "completed"].map(vonage::call_status);
    for words in [twilio, vonage] {
        let last = words
            .into_iter()
            .flatten()
            .fold(CallStatus::Queued, |now, next| advance(now, next).unwrap_or(now));
        assert_eq!(last, CallStatus::Completed);
    }
}
