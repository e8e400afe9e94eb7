//! The providers' own SDKs as oracles: what they sign is taken, what is changed is not, and what we write they read.
//!
//! They are Python's; `make test` puts them into `tests/peers/providers/.venv` (`scripts/setup.sh test`). Without them this
//! test is skipped: the vectors beside each module were made with the same SDKs.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use control_plane::provider::rest::MachineDetection;
use control_plane::provider::webhook::Endpoint;
use control_plane::provider::{
    Account, Decline, Dial, MediaPlan, Refusal, Stamp, Transfer, Values, WebhookRequest, find,
};
use serde_json::{Value as Json, json};
use uuid::Uuid;

const NOW_S: i64 = 1_700_000_000;
const SAID: &str = "a<b & \"c\"";

fn account(provider: &str, fields: Json) -> Arc<dyn Account> {
    let provider = find(provider).unwrap();
    let values = Values::from_json(provider.form, fields.as_object().unwrap()).unwrap();
    (provider.open)(&values).unwrap()
}

fn key() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/provider/vonage/key_pkcs8.pem")
}

fn accounts() -> Vec<(&'static str, Arc<dyn Account>)> {
    let pem = std::fs::read_to_string(key()).unwrap();
    let fields = [
        (
            "twilio",
            json!({ "account_sid": "AC00000000000000000000000000000001", "account_token": "twilio-token" }),
        ),
        ("plivo", json!({ "auth_id": "MA1", "auth_token": "plivo-token" })),
        (
            "vonage",
            json!({ "application_id": "app", "api_key": "abcd1234", "private_key": pem,
                "signature_secret": "a-signature-secret-of-thirty-two-octets" }),
        ),
        ("telnyx", json!({ "api_key": "k", "public_key": "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=" })),
    ];
    fields.into_iter().map(|(name, fields)| (name, account(name, fields))).collect()
}

/// Whether the proof holds, whatever the request turns out to be.
fn is_proved(account: &dyn Account, method: &Method, url: &str, headers: &HeaderMap, body: &[u8]) -> bool {
    let (public_url, query) = url.split_once('?').unwrap_or((url, ""));
    let request = WebhookRequest {
        endpoint: Endpoint::Call,
        method,
        public_url,
        query,
        headers,
        body,
        source: IpAddr::from([192, 0, 2, 1]),
        has_api_key: false,
        now_s: NOW_S,
    };
    match account.webhook(&request) {
        // Signed, and then not a call: the SDK's fields are random.
        Ok(_) | Err(Refusal::Missing(_) | Refusal::Malformed(_) | Refusal::Account(_)) => true,
        Err(_) => false,
    }
}

/// Elements with their attributes in order, and text.
fn outline(xml: &str) -> Vec<String> {
    let parsed = roxmltree::Document::parse(xml).unwrap();
    let elements = parsed.descendants().filter(roxmltree::Node::is_element);
    let outline = elements.map(|node| {
        let mut attributes: Vec<_> =
            node.attributes().map(|a| format!("{}={}", a.name(), a.value())).collect();
        attributes.sort();
        let depth = node.ancestors().count();
        format!(
            "{depth} {} {attributes:?} {}",
            node.tag_name().name(),
            node.text().unwrap_or_default().trim()
        )
    });
    outline.collect()
}

#[test]
fn what_the_sdks_sign_is_taken_and_what_we_write_they_read() {
    let peer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/peers/providers");
    let python = peer.join(".venv/bin/python");
    if !python.exists() {
        eprintln!("skipped: no SDKs of the providers (scripts/setup.sh test)");
        return;
    }
    let accounts = accounts();
    let find = |name: &str| accounts.iter().find(|(other, _)| *other == name).unwrap().1.as_ref();
    let parameters = [("q".to_owned(), SAID.to_owned())];
    let plan = MediaPlan {
        media_url: "wss://m.example.test/v1/media/x/1",
        context_id: Uuid::from_u128(7),
        callback_url: "https://c.example.test/e?a=1&b=2",
        number: "+14155550199",
        sample_rate: 8_000,
        parameters: &parameters,
    };
    let dial = Dial {
        to: "+14155550100",
        from: "+14155550199",
        plan,
        document_url: "",
        ring_s: 30,
        limit_s: 3_600,
        machine: MachineDetection::UntilBeep,
        options: &[],
    };
    // PyJWT looks at the system's clock.
    let placed = find("vonage").dial(&dial, Stamp::now()).unwrap();
    let call: Json = serde_json::from_str(&placed.body).unwrap();
    let asked = json!({
        "key": key(), "now": NOW_S, "ncco": call["ncco"], "call": call,
        "token": placed.header("authorization").unwrap().strip_prefix("Bearer "),
        "twilio_token": "twilio-token", "plivo_token": "plivo-token",
        "vonage_secret": "a-signature-secret-of-thirty-two-octets",
        "plan": { "url": plan.media_url, "callback": plan.callback_url, "ctx": plan.context_id, "q": SAID,
            "from": "+14155550199", "to": "+4930123" },
    });
    let mut oracle = Command::new(python)
        .arg(peer.join("oracle.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    oracle.stdin.take().unwrap().write_all(asked.to_string().as_bytes()).unwrap();
    let output = oracle.wait_with_output().unwrap();
    assert!(output.status.success(), "the oracle failed; its words are above");
    let told: Json = serde_json::from_slice(&output.stdout).unwrap();

    for (name, account) in &accounts {
        let requests = told["requests"][name].as_array().unwrap();
        assert!(requests.len() >= 20);
        for request in requests {
            let text = |key: &str| request[key].as_str().unwrap();
            let mut headers = HeaderMap::new();
            for (key, value) in request["headers"].as_object().unwrap() {
                let key: HeaderName = key.parse().unwrap();
                headers.insert(key, HeaderValue::from_str(value.as_str().unwrap()).unwrap());
            }
            let (method, kind) = match text("kind") {
                "get" => (Method::GET, ""),
                "form" => (Method::POST, "application/x-www-form-urlencoded"),
                _ => (Method::POST, "application/json"),
            };
            headers.insert("content-type", HeaderValue::from_static(kind));
            let (url, body) = (text("url"), text("body").as_bytes());
            assert!(is_proved(account.as_ref(), &method, url, &headers, body), "{name}: {request}");
            let longer = [body, b"&zz=1"].concat();
            let changed_body =
                method == Method::POST && is_proved(account.as_ref(), &method, url, &headers, &longer);
            assert!(!changed_body, "{name}: changed {request}");
            // Vonage and Telnyx sign no URL.
            let other = url.replace("example.test", "example.org");
            let changed_url = is_proved(account.as_ref(), &method, &other, &headers, body);
            assert_eq!(changed_url, matches!(*name, "vonage" | "telnyx"), "{name}: {request}");
        }
    }

    let documents = &told["documents"];
    let same = |ours: &str, theirs: &str| {
        assert_eq!(outline(ours), outline(documents[theirs].as_str().unwrap()), "{theirs}");
    };
    let transfer = Transfer {
        to: "+4930123",
        from: "+14155550199",
        ring_s: 25,
        result_url: plan.callback_url,
        document_url: "",
    };
    let twilio = find("twilio");
    same(&twilio.answer(&plan).body, "twilio_answer");
    same(&twilio.transfer(&transfer).unwrap().body, "twilio_transfer");
    same(&twilio.decline(Decline::Busy).body, "twilio_busy");
    same(&twilio.decline(Decline::Say(SAID)).body, "twilio_said");
    same(&find("plivo").answer(&MediaPlan { parameters: &[], ..plan }).body, "plivo_answer");

    // Every field of ours is one that their models know: what they write back is what we wrote.
    let mut theirs = told["read"]["call"].clone();
    let object = theirs.as_object_mut().unwrap();
    if let Some(from) = object.remove("from_") {
        object.insert("from".to_owned(), from);
    }
    assert_eq!(theirs, call);
    assert_eq!(told["read"]["claims"]["application_id"], "app");
}
