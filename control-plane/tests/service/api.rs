//! REST and gRPC on one port.

use tandem_api::v1 as api;
use tandem_api::v1::call_service_client::CallServiceClient;
use tandem_api::v1::conversation_service_client::ConversationServiceClient;
use tandem_phone::EndedBy;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::stage::{KEY, Stage, get};

async fn channel(stage: &Stage) -> Channel {
    let url = format!("http://{}", stage.app.http_addr());
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

fn with_key<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-api-key", KEY.parse().unwrap());
    request
}

fn message(text: &str) -> api::Message {
    api::Message {
        message_id: "m1".into(),
        turn: 1,
        role: "agent".into(),
        text: text.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn unknown_path_is_404_and_a_missing_key_401() {
    let stage = Stage::up().await;
    assert_eq!(stage.get("/nothing").await.status, 404);
    assert_eq!(stage.get("/v1/nothing").await.status, 404);
    let address = stage.app.http_addr();
    for path in ["/v1/calls", "/v1/calls/x", "/v1/conversations/x"] {
        assert_eq!(get(address, path, None).await.status, 401, "{path}");
        assert_eq!(get(address, path, Some("wrong")).await.status, 401, "{path}");
    }
    assert_eq!(stage.get("/v1/calls/x").await.status, 404);
    let page = get(address, "/", None).await;
    assert!(page.status == 200 && page.body.contains("sip:demo:demo-key@"), "{}", page.body);
}

#[tokio::test]
async fn metrics_have_what_dashboards_rely_on() {
    let stage = Stage::up().await;
    let text = stage.get("/metrics").await.body;
    for name in [
        "tandem_calls{state=\"connected\"} ",
        "tandem_call_setup_seconds_count ",
        "process_cpu_seconds_total ",
        "process_resident_memory_bytes ",
    ] {
        assert!(text.contains(name), "{name} in {text}");
    }
}

#[tokio::test]
async fn calls_are_listed_shown_and_hung_up_over_grpc() {
    let stage = Stage::up().await;
    let call = stage.call("echo:demo-key").await.unwrap();
    stage.until_state("connected").await;
    let mut client = CallServiceClient::new(channel(&stage).await);
    let list = api::ListCallsRequest { live_only: true, ..Default::default() };
    let calls = client.list_calls(with_key(list)).await.unwrap().into_inner().calls;
    let call_id = calls[0].call_id.clone();

    let get = api::GetCallRequest { call_id: call_id.clone() };
    assert_eq!(client.get_call(get.clone()).await.unwrap_err().code(), Code::Unauthenticated);
    let shown = client.get_call(with_key(get)).await.unwrap().into_inner();
    assert_eq!((shown.state.as_str(), shown.assistant_id.as_str()), ("connected", "echo"));

    let hang_up = || with_key(api::HangUpCallRequest { call_id: call_id.clone() });
    client.hang_up_call(hang_up()).await.unwrap();
    assert_eq!(call.ended().await.ended_by, Some(EndedBy::Peer));
    stage.until_state("ended").await;
    assert_eq!(client.hang_up_call(hang_up()).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn pages_of_calls_join_without_gap_or_repeat() {
    let stage = Stage::up().await;
    for _ in 0..5 {
        stage.call("echo:demo-key").await.unwrap().hang_up().await;
    }
    let live = [stage.call("echo:demo-key").await.unwrap(), stage.call("echo:demo-key").await.unwrap()];
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = stage.get(&format!("/v1/calls?page_size=2&page_token={token}")).await.json();
        seen.extend(
            page["calls"].as_array().unwrap().iter().map(|c| c["callId"].as_str().unwrap().to_owned()),
        );
        token = page["nextPageToken"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
    }
    let mut sorted = seen.clone();
    sorted.sort_by(|a, b| b.cmp(a));
    sorted.dedup();
    assert_eq!((seen.len(), &seen), (7, &sorted));
    drop(live);
}

#[tokio::test]
async fn voice_agent_writes_what_was_said_and_the_tenant_reads_it() {
    let stage = Stage::up().await;
    let call = stage.call("demo:demo-key").await.unwrap();
    let call_id = stage.only_call().await["callId"].as_str().unwrap().to_owned();
    let mut client = ConversationServiceClient::new(channel(&stage).await);
    for text in ["Good morning, how can I help?", "Good morning"] {
        let put = api::PutMessageRequest { call_id: call_id.clone(), message: Some(message(text)) };
        client.put_message(put).await.unwrap();
    }
    let view = stage.get(&format!("/v1/conversations/{call_id}")).await.json();
    assert_eq!(view["messages"].as_array().unwrap().len(), 1);
    assert_eq!(view["messages"][0]["text"], "Good morning");
    call.hang_up().await;

    let get = with_key(api::GetConversationRequest { call_id });
    assert_eq!(client.get_conversation(get).await.unwrap().into_inner().messages.len(), 1);
}

#[tokio::test]
async fn message_of_an_unknown_call_or_of_no_sense_is_refused() {
    let stage = Stage::up().await;
    let call = stage.call("demo:demo-key").await.unwrap();
    let call_id = stage.only_call().await["callId"].as_str().unwrap().to_owned();
    let mut client = ConversationServiceClient::new(channel(&stage).await);
    let strange = uuid::Uuid::now_v7().to_string();
    let put = api::PutMessageRequest { call_id: strange, message: Some(message("x")) };
    assert_eq!(client.put_message(put).await.unwrap_err().code(), Code::NotFound);
    for wrong in [
        None,
        Some(api::Message { role: "somebody".into(), ..message("x") }),
        Some(api::Message { message_id: String::new(), ..message("x") }),
        Some(message(&"x".repeat(20_000))),
    ] {
        let put = api::PutMessageRequest { call_id: call_id.clone(), message: wrong };
        assert_eq!(client.put_message(put).await.unwrap_err().code(), Code::InvalidArgument);
    }
    call.hang_up().await;
}

#[tokio::test]
async fn with_a_service_token_only_its_bearer_may_write() {
    let stage = Stage::with(|config| config.service_token = Some("s3cret".to_owned().into())).await;
    let call = stage.call("demo:demo-key").await.unwrap();
    let call_id = stage.only_call().await["callId"].as_str().unwrap().to_owned();
    let mut client = ConversationServiceClient::new(channel(&stage).await);
    for (token, code) in [
        (None, Some(Code::Unauthenticated)),
        (Some("wrong"), Some(Code::Unauthenticated)),
        (Some("s3cret"), None),
    ] {
        let put = api::PutMessageRequest { call_id: call_id.clone(), message: Some(message("x")) };
        let mut request = Request::new(put);
        if let Some(token) = token {
            request.metadata_mut().insert("x-tandem-service-token", token.parse().unwrap());
        }
        let refused = client.put_message(request).await.err().map(|status| status.code());
        assert_eq!(refused, code, "{token:?}");
    }
    call.hang_up().await;
}

#[tokio::test]
async fn health_is_served_over_grpc() {
    let stage = Stage::up().await;
    let mut client = HealthClient::new(channel(&stage).await);
    let check = HealthCheckRequest { service: "tandem.v1.CallService".to_owned() };
    let status = client.check(check).await.unwrap().into_inner().status();
    assert_eq!(status, ServingStatus::Serving);
}
