//! Calls from a real phone.

use std::time::Duration;

use tandem_api::engine::v1::event::Event as Body;
use tandem_api::engine::v1::{AgentConnected, AgentFailed, AgentHangup};
use tandem_phone::{CallOptions, EndedBy, SipTransport};

use crate::stage::{Stage, until};

#[tokio::test]
async fn call_over_udp_is_answered_and_ended_and_can_be_read_afterwards() {
    let stage = Stage::up().await;
    let call = stage.call("echo:demo-key").await.unwrap();
    let live = stage.only_call().await;
    assert!(matches!(live["state"].as_str(), Some("connected" | "ringing")), "{live}");
    call.hang_up().await;
    let ended = stage.until_state("ended").await;
    assert_eq!(ended["ending"]["reason"], "hangup");
    assert_eq!((ended["media"]["rtpSent"].as_u64(), ended["media"]["rtpLost"].as_u64()), (Some(50), Some(1)));
    assert_eq!(ended["decisions"].as_array().unwrap().len(), 4);
    assert_eq!(stage.engine().commands(), ["open", "start", "close"]);
    // Written behind the call, the same can be read from the database.
    until(|| async { stage.metric("tandem_records_pending").await == 0.0 }).await;
    let id = ended["callId"].as_str().unwrap();
    assert_eq!(stage.get(&format!("/v1/calls/{id}")).await.json(), ended);
}

#[tokio::test]
async fn call_over_tcp_works_too() {
    let stage = Stage::up().await;
    let (_, tcp) = *stage.app.sip_addrs().iter().find(|(t, _)| *t == tandem_sip::Transport::Tcp).unwrap();
    let phone = stage.phone(SipTransport::Tcp).await;
    let uri = format!("sip:echo:demo-key@{tcp};transport=tcp");
    let call = phone.call(&uri, CallOptions::default()).await.unwrap();
    stage.until_state("connected").await;
    call.hang_up().await;
    stage.until_state("ended").await;
}

#[tokio::test]
async fn external_agent_rings_until_it_is_there() {
    let stage = Stage::up().await;
    stage.engine().set_agent_ready(false);
    let engine = stage.engine().clone();
    let agent = tokio::spawn(async move {
        until(|| async { !engine.sessions().is_empty() }).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        engine.tell(&engine.sessions()[0], Body::AgentConnected(AgentConnected { took_ms: 100 }));
    });
    let call = stage.call("pcm:demo-key").await.unwrap();
    agent.await.unwrap();
    assert!(call.report().provisional.contains(&180), "{:?}", call.report());
    let session = &stage.engine().sessions()[0];
    let request = stage.engine().request(session);
    assert_eq!(request.call.unwrap().call_id, *session);
    call.hang_up().await;
}

#[tokio::test]
async fn agent_that_cannot_be_reached_is_480_with_a_reason() {
    let stage = Stage::up().await;
    stage.engine().set_agent_ready(false);
    let engine = stage.engine().clone();
    tokio::spawn(async move {
        until(|| async { !engine.sessions().is_empty() }).await;
        let failed = AgentFailed { reason: "connection refused".to_owned() };
        engine.tell(&engine.sessions()[0], Body::AgentFailed(failed));
    });
    let error = stage.call("ws:demo-key").await.unwrap_err();
    assert_eq!(error.status, Some(480));
    assert!(error.detail.unwrap_or_default().contains("could not be reached"));
    until(|| async { stage.engine().sessions().is_empty() }).await;
}

#[tokio::test]
async fn agent_hangs_up() {
    let stage = Stage::up().await;
    let call = stage.call("demo:demo-key").await.unwrap();
    stage.until_state("connected").await;
    stage.engine().tell(&stage.engine().sessions()[0], Body::AgentHangup(AgentHangup::default()));
    let report = tokio::time::timeout(Duration::from_secs(5), call.ended()).await.unwrap();
    assert_eq!(report.ended_by, Some(EndedBy::Peer));
    assert_eq!(stage.until_state("ended").await["ending"]["reason"], "agent_hangup");
}

#[tokio::test]
async fn hold_and_resume_reach_the_engine() {
    let stage = Stage::up().await;
    let call = stage.call("echo:demo-key").await.unwrap();
    stage.until_state("connected").await;
    call.hold().await.unwrap();
    stage.until_state("on_hold").await;
    call.resume().await.unwrap();
    stage.until_state("connected").await;
    call.hang_up().await;
    stage.until_state("ended").await;
    assert_eq!(stage.engine().commands(), ["open", "start", "update", "update", "close"]);
}

#[tokio::test]
async fn caller_without_an_offer_gets_ours() {
    let stage = Stage::up().await;
    let phone = stage.phone(SipTransport::Udp).await;
    let options = CallOptions { delayed_offer: true, ..CallOptions::default() };
    let call = phone.call(&stage.uri("echo:demo-key"), options).await.unwrap();
    stage.until_state("connected").await;
    call.hang_up().await;
    stage.until_state("ended").await;
    assert_eq!(stage.engine().commands(), ["open", "update", "start", "close"]);
}

#[tokio::test]
async fn wrong_keys_and_names_are_refused_as_the_contract_says() {
    let stage = Stage::up().await;
    for (user, status) in
        [("echo", 403), ("echo:wrong", 403), ("nobody:wrong", 403), ("nobody:demo-key", 404)]
    {
        assert_eq!(stage.call(user).await.unwrap_err().status, Some(status), "{user}");
    }
    assert!(stage.engine().commands().is_empty());
    // Only the one with a valid key has an owner, and so a record.
    assert_eq!(stage.only_call().await["ending"]["reason"], "unknown_assistant");
    assert_eq!(stage.metric("tandem_calls_refused_total{reason=\"wrong_key\",rule=\"api_key\"}").await, 2.0);
}

#[tokio::test]
async fn two_hundred_calls_at_once_leave_nothing_behind() {
    let stage = Stage::up().await;
    let phone = stage.phone(SipTransport::Udp).await;
    let uri = stage.uri("echo:demo-key");
    let calls = (0..200).map(|_| phone.call(&uri, CallOptions::default()));
    let calls = futures_util::future::join_all(calls).await;
    let calls: Vec<_> = calls.into_iter().map(Result::unwrap).collect();
    futures_util::future::join_all(calls.into_iter().map(|call| call.hang_up())).await;
    until(|| async { stage.app.live_calls().list("demo".into()).await.is_empty() }).await;
    until(|| async { stage.engine().sessions().is_empty() }).await;
    let text = stage.get("/metrics").await.body;
    assert!(text.contains("tandem_calls_total{state=\"ended\",reason=\"hangup\"} 200"), "{text}");
}
