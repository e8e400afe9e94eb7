//! The three ways to an assistant through the whole control plane, and what is said to those who have none of them.

use std::path::Path;

use control_plane::config::Config;
use control_plane::settings::Layers;
use tandem_api::v1::refusal_service_client::RefusalServiceClient;
use tandem_api::v1::{GetRefusalRequest, ListRefusalsRequest};
use tandem_phone::{CallOptions, Phone, PhoneConfig};
use tandem_sip::digest::Credentials;
use tonic::Code;
use tonic::transport::Channel;

use crate::stage::{KEY, Stage, until};

const TABLES: &str = r#"
demo = true
[[assistant]]
id = "desk"
tenant = "demo"
agent = "echo"
[[trunk]]
name = "carrier"
tenant = "demo"
[trunk.inbound]
allow = ["ALLOWED"]
[[trunk.inbound.route]]
did = "+4930*"
assistant = "desk"
[[phone]]
user = "200"
tenant = "demo"
password = "hunter22"
assistant = "desk"
"#;

async fn stage(allowed: &str) -> Stage {
    let text = TABLES.replace("ALLOWED", allowed);
    let layers = Layers::default().with_file(Path::new("tandem.toml"), &text).unwrap();
    let read = Config::from_layers(&layers).unwrap();
    Stage::with(|config| (config.trunks, config.declared) = (read.trunks, read.declared)).await
}

async fn refusals(stage: &Stage) -> RefusalServiceClient<Channel> {
    let url = format!("http://{}", stage.app.http_addr());
    RefusalServiceClient::new(Channel::from_shared(url).unwrap().connect().await.unwrap())
}

#[tokio::test]
async fn trunk_reaches_the_assistant_of_its_number_without_a_key() {
    let stage = stage("127.0.0.0/8").await;
    let call = stage.call("+493012345").await.unwrap();
    let live = stage.only_call().await;
    assert_eq!(
        (live["assistantId"].as_str(), live["decisions"][0]["rule"].as_str()),
        (Some("desk"), Some("trunk_source"))
    );
    call.hang_up().await;
    until(|| async {
        let metrics = stage.get("/metrics").await.body;
        metrics.contains("tandem_trunk_calls_total{trunk=\"carrier\",outcome=\"accepted\"} 1")
    })
    .await;
}

#[tokio::test]
async fn refusal_is_found_by_the_id_in_the_response_and_a_tenant_sees_only_its_own() {
    let stage = stage("127.0.0.0/8").await;
    stage.call("+4389").await.unwrap_err();
    let mut client = refusals(&stage).await;
    let listed = client.list_refusals(ListRefusalsRequest { limit: 0 }).await.unwrap().into_inner().refusals;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].trunk.as_str(), listed[0].tenant_id.as_str()), ("carrier", "demo"));
    assert_eq!(listed[0].decisions.last().unwrap().rule, "did_route");
    let call_id = listed[0].call_id.clone();
    let got = client.get_refusal(GetRefusalRequest { call_id }).await.unwrap().into_inner();
    assert_eq!(got, listed[0]);
    let unknown = client.get_refusal(GetRefusalRequest { call_id: "x".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn with_a_service_token_strangers_hear_nothing_and_a_tenant_its_own() {
    let text = TABLES.replace("ALLOWED", "192.0.2.1");
    let layers = Layers::default().with_file(Path::new("tandem.toml"), &text).unwrap();
    let read = Config::from_layers(&layers).unwrap();
    let stage = Stage::with(|config| {
        (config.trunks, config.declared) = (read.trunks, read.declared);
        config.service_token = Some("a-token".into());
    })
    .await;
    stage.call("desk:a-key-that-nobody-has").await.unwrap_err();
    let mut client = refusals(&stage).await;
    let list = || ListRefusalsRequest { limit: 0 };
    assert_eq!(client.list_refusals(list()).await.unwrap_err().code(), Code::Unauthenticated);
    let mut tenant = tonic::Request::new(list());
    tenant.metadata_mut().insert("x-api-key", KEY.parse().unwrap());
    assert!(client.list_refusals(tenant).await.unwrap().into_inner().refusals.is_empty());
    let mut operator = tonic::Request::new(list());
    operator.metadata_mut().insert("x-tandem-service-token", "a-token".parse().unwrap());
    assert_eq!(client.list_refusals(operator).await.unwrap().into_inner().refusals.len(), 1);
}

#[tokio::test]
async fn phone_is_let_in_by_its_password_and_by_nothing_else() {
    let stage = stage("192.0.2.1").await;
    let phone = Phone::bind(PhoneConfig { user: "200".into(), ..PhoneConfig::default() }).await.unwrap();
    let with = |password: &str| CallOptions {
        credentials: Some(Credentials::new("200", password)),
        ..CallOptions::default()
    };
    let uri = stage.uri("anything");
    assert!(phone.call(&uri, with("wrong-one")).await.is_err());
    let call = phone.call(&uri, with("hunter22")).await.unwrap();
    assert_eq!(stage.only_call().await["decisions"][0]["rule"], "phone_digest");
    call.hang_up().await;
}

#[tokio::test]
async fn scanner_gets_no_answer_and_is_counted() {
    let stage = stage("192.0.2.1").await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = stage.app.sip_udp_addr().unwrap();
    let scan = format!(
        "OPTIONS sip:100@{server} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bK1;rport\r\n\
         From: \"sipvicious\"<sip:100@1.1.1.1>;tag=1\r\nTo: <sip:100@{server}>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\n\
         User-Agent: friendly-scanner\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
    );
    socket.send_to(scan.as_bytes(), server).await.unwrap();
    until(|| async {
        let metrics = stage.get("/metrics").await.body;
        metrics.contains("tandem_sip_dropped_total{reason=\"scanner\"} 1")
    })
    .await;
    let mut buffer = [0; 64];
    assert!(socket.try_recv(&mut buffer).is_err(), "silence");
}
