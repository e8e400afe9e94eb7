//! Two live calls are joined through the API and the command line.

use std::process::Output;

use serde_json::json;
use tandem_api::v1 as api;
use tandem_api::v1::call_service_client::CallServiceClient;
use tandem_phone::Call;
use tonic::{Code, Request};

use crate::stage::{KEY, Stage, until};

/// Two phones whose calls are connected, and the ids of these.
async fn two_calls(stage: &Stage) -> ([Call; 2], [String; 2]) {
    let one = stage.call("echo:demo-key").await.unwrap();
    let first = stage.only_call().await["callId"].as_str().unwrap().to_owned();
    let two = stage.call("echo:demo-key").await.unwrap();
    let calls = stage.get("/v1/calls").await.json()["calls"].as_array().unwrap().clone();
    let ids = calls.iter().map(|call| call["callId"].as_str().unwrap().to_owned());
    let second = ids.into_iter().find(|id| *id != first).unwrap();
    for id in [&first, &second] {
        until(|| async { call(stage, id).await["state"] == "connected" }).await;
    }
    ([one, two], [first, second])
}

async fn call(stage: &Stage, id: &str) -> serde_json::Value {
    stage.get(&format!("/v1/calls/{id}")).await.json()
}

async fn is_joined(stage: &Stage, [call_id, other]: &[String; 2]) {
    until(|| async { call(stage, other).await["state"] == "ended" }).await;
    let ended = call(stage, other).await;
    assert_eq!((&ended["ending"]["reason"], &ended["media"]["rtpSent"]), (&json!("joined"), &json!(30)));
    assert_eq!(call(stage, call_id).await["state"], "connected");
    assert!(stage.engine().commands().contains(&"join".to_owned()));
}

#[tokio::test]
async fn calls_are_joined_by_rest_and_what_makes_no_sense_is_refused() {
    let stage = Stage::up().await;
    let ([one, _two], ids) = two_calls(&stage).await;
    let path = format!("/v1/calls/{}/join", ids[0]);
    let both = json!({ "otherCallId": ids[1], "role": "bridge" }).to_string();
    assert_eq!(stage.post(&path, &both).await.status, 400);
    assert_eq!(stage.post(&path, "{}").await.status, 400);
    let itself = json!({ "otherCallId": ids[0] }).to_string();
    assert_eq!(stage.post(&path, &itself).await.status, 409);
    let nobody = json!({ "otherCallId": "01938a2e-7c5b-7d6e-9f00-1234567890ab" }).to_string();
    assert_eq!(stage.post(&path, &nobody).await.status, 404);
    assert!(!stage.engine().commands().contains(&"join".to_owned()));
    let answer = stage.post(&path, &json!({ "otherCallId": ids[1] }).to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    is_joined(&stage, &ids).await;
    one.hang_up().await;
    until(|| async { call(&stage, &ids[0]).await["state"] == "ended" }).await;
}

#[tokio::test]
async fn calls_are_joined_over_grpc() {
    let stage = Stage::up().await;
    let (_phones, ids) = two_calls(&stage).await;
    let mut client = CallServiceClient::connect(format!("http://{}", stage.app.http_addr())).await.unwrap();
    let with_key = |message| {
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-api-key", KEY.parse().unwrap());
        request
    };
    let request = api::JoinCallsRequest { call_id: ids[0].clone(), other_call_id: ids[1].clone() };
    let unknown = api::JoinCallsRequest { other_call_id: "x".into(), ..request.clone() };
    assert_eq!(client.join_calls(with_key(unknown)).await.unwrap_err().code(), Code::NotFound);
    let refused = client.join_calls(Request::new(request.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    client.join_calls(with_key(request)).await.unwrap();
    is_joined(&stage, &ids).await;
}

async fn tandem(stage: &Stage, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    tokio::process::Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["call", "join"])
        .args(arguments)
        .args(["--url", &format!("http://{}", stage.app.http_addr())])
        .env("TANDEM_API_KEY", KEY)
        .current_dir(folder.path())
        .output()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_joined_by_the_command_line() {
    let stage = Stage::up().await;
    let (_phones, ids) = two_calls(&stage).await;
    assert!(!tandem(&stage, &[&ids[0]]).await.status.success(), "neither a call nor a role");
    assert!(!tandem(&stage, &[&ids[0], &ids[1], "--role", "listen"]).await.status.success(), "both");
    let done = tandem(&stage, &[&ids[0], &ids[1]]).await;
    assert!(done.status.success(), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stdout).contains("joined"), "{done:?}");
    is_joined(&stage, &ids).await;
}
