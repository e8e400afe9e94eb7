//! The WhatsApp receiver through the whole control plane, with a Graph API and a voice agent that stand in this process.

use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::post;
use control_plane::config::Config;
use control_plane::settings::Layers;
use ring::hmac;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::stage::{Stage, until};
use crate::telephony::ask;

type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// An HTTP server that answers everything in this way, and what it was asked: authorization and body.
async fn server(answer: fn(&Value) -> (StatusCode, Value)) -> (String, Asked) {
    let asked = Asked::default();
    let kept = asked.clone();
    let handle = move |uri: Uri, headers: HeaderMap, body: String| async move {
        let body: Value = serde_json::from_str(&body).unwrap();
        let authorization =
            headers.get("authorization").map(|value| value.to_str().unwrap()).unwrap_or_default();
        let (status, said) = answer(&body);
        kept.lock().unwrap().push((format!("{uri} {authorization}"), body));
        (status, said.to_string())
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(post(handle))).await });
    (address.to_string(), asked)
}

fn graph(_: &Value) -> (StatusCode, Value) {
    (StatusCode::OK, json!({ "messaging_product": "whatsapp", "messages": [{ "id": "wamid.answer" }] }))
}

fn talker(body: &Value) -> (StatusCode, Value) {
    let before = body["history"].as_array().unwrap().len();
    (StatusCode::OK, json!({ "text": format!("{} after {before}", body["text"].as_str().unwrap()) }))
}

async fn stage(graph: &str, talker: &str) -> Stage {
    let text = format!(
        "demo = true\ntalker_url = 'link://{talker}'\n\
         [[assistant]]\nid = 'desk'\ntenant = 'demo'\nagent = 'talker'\n\
         [credential.wa]\nprovider = 'whatsapp'\ntenant = 'demo'\nphone_number_id = '106'\naccess_token = 'EAA'\n\
         app_secret = 'hunter2'\nverify_token = 'let-me-in'\napi_url = 'http://{graph}'\n\
         [[deployment]]\ncredential = 'wa'\n"
    );
    let layers = Layers::default().with_file(Path::new("tandem.toml"), &text).unwrap();
    let read = Config::from_layers(&layers).unwrap();
    Stage::with(|config| {
        (config.credentials, config.declared, config.talker_url) =
            (read.credentials, read.declared, read.talker_url);
    })
    .await
}

fn update(id: &str, message: &Value) -> String {
    let mut message = message.clone();
    message["id"] = json!(id);
    message["from"] = json!("4930111222333");
    json!({ "entry": [{ "changes": [{ "field": "messages", "value": {
        "metadata": { "display_phone_number": "15550783881", "phone_number_id": "106" },
        "messages": [message],
    }}]}]})
    .to_string()
}

fn text(body: &str) -> Value {
    json!({ "type": "text", "text": { "body": body } })
}

async fn comes(stage: &Stage, assistant: &str, body: &str) -> u16 {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"hunter2");
    let signature = format!("sha256={}", hex::encode(hmac::sign(&key, body.as_bytes())));
    let path = format!("/v1/telephony/whatsapp/{assistant}");
    ask(stage.app.http_addr(), "POST", &path, &[("x-hub-signature-256", &signature)], body).await.status
}

#[tokio::test]
async fn messages_are_answered_in_one_conversation_and_repetitions_are_not() {
    let (graph, sent) = server(graph).await;
    let (talker, _) = server(talker).await;
    let stage = stage(&graph, &talker).await;
    let path = "/v1/telephony/whatsapp/desk?hub.mode=subscribe&hub.verify_token=let-me-in&hub.challenge=1158";
    let challenge = ask(stage.app.http_addr(), "GET", path, &[], "").await;
    assert_eq!((challenge.status, challenge.body.as_str()), (200, "1158"));

    let first = update("wamid.1", &text("Hello"));
    assert_eq!(comes(&stage, "desk", &first).await, 200);
    until(|| async { sent.lock().unwrap().len() == 1 }).await;
    assert_eq!(comes(&stage, "desk", &first).await, 200, "again");
    assert_eq!(comes(&stage, "desk", &update("wamid.2", &text("More"))).await, 200);
    until(|| async { sent.lock().unwrap().len() == 2 }).await;
    let bodies: Vec<_> = sent.lock().unwrap().iter().map(|(_, body)| body["text"]["body"].clone()).collect();
    assert_eq!(bodies, ["Hello after 0", "More after 2"]);
    let (asked, body) = sent.lock().unwrap()[0].clone();
    assert_eq!(asked, "/v23.0/106/messages Bearer EAA");
    assert_eq!(body["to"], "4930111222333");

    until(|| async { stage.get("/v1/calls").await.json()["calls"].as_array().unwrap().len() == 1 }).await;
    let call = stage.only_call().await;
    assert_eq!(
        (&call["ending"]["reason"], &call["provider"]["name"]),
        (&json!("in_writing"), &json!("whatsapp"))
    );
    let path = format!("/v1/conversations/{}", call["callId"].as_str().unwrap());
    let conversation = stage.get(&path).await.json();
    let said: Vec<_> =
        conversation["messages"].as_array().unwrap().iter().map(|m| m["text"].clone()).collect();
    assert_eq!(said, ["Hello", "Hello after 0", "More", "More after 2"]);
}

#[tokio::test]
async fn what_cannot_be_read_or_answered_is_told_to_the_writer() {
    let (graph, sent) = server(graph).await;
    let (talker, _) =
        server(|_| (StatusCode::BAD_GATEWAY, json!({ "error": "the language model has failed" }))).await;
    let stage = stage(&graph, &talker).await;
    assert_eq!(comes(&stage, "desk", &update("wamid.1", &json!({ "type": "audio" }))).await, 200);
    until(|| async { sent.lock().unwrap().len() == 1 }).await;
    assert_eq!(comes(&stage, "desk", &update("wamid.2", &text("Hello"))).await, 200);
    until(|| async { sent.lock().unwrap().len() == 2 }).await;
    let bodies: Vec<_> = sent.lock().unwrap().iter().map(|(_, body)| body["text"]["body"].clone()).collect();
    assert_eq!(bodies[0], "Sorry, I can only read text.");
    assert!(bodies[1].as_str().unwrap().starts_with("Sorry, I cannot answer"), "{bodies:?}");
    assert_eq!(comes(&stage, "nobody", &update("wamid.3", &text("Hello"))).await, 404);
    let path = "/v1/telephony/whatsapp/desk";
    let forged = [("x-hub-signature-256", "sha256=00")];
    assert_eq!(ask(stage.app.http_addr(), "POST", path, &forged, "{}").await.status, 403);
}
