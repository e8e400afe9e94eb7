//! Starts, losses and ends.

use std::time::{Duration, Instant};

use control_plane::app::App;
use control_plane::config::{Config, Database};
use tandem_phone::EndedBy;

use crate::engine::Engine;
use crate::stage::{KEY, Stage, get, until};

#[tokio::test]
async fn readiness_waits_for_an_engine_and_calls_without_one_are_503() {
    let config = Config::for_tests(vec!["http://127.0.0.1:1".to_owned()]);
    let app = App::start(config).await.unwrap();
    assert_eq!(get(app.http_addr(), "/readyz", None).await.status, 503);
    assert_eq!(get(app.http_addr(), "/healthz", None).await.status, 200);
    let phone = tandem_phone::Phone::bind(tandem_phone::PhoneConfig::default()).await.unwrap();
    let uri = format!("sip:echo:demo-key@{}", app.sip_udp_addr().unwrap());
    let error = phone.call(&uri, tandem_phone::CallOptions::default()).await.unwrap_err();
    assert_eq!(error.status, Some(503));
    app.shutdown().await;
}

#[tokio::test]
async fn callers_of_a_killed_engine_get_a_bye_within_ten_seconds() {
    let stage = Stage::up().await;
    let call = stage.call("echo:demo-key").await.unwrap();
    stage.until_state("connected").await;
    let killed = Instant::now();
    drop(stage.served);
    let report = tokio::time::timeout(Duration::from_secs(10), call.ended()).await.expect("a BYE in time");
    assert_eq!(report.ended_by, Some(EndedBy::Peer));
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    assert_eq!(get(stage.app.http_addr(), "/readyz", None).await.status, 503);
    stage.app.shutdown().await;
}

#[tokio::test]
async fn restarted_engine_has_lost_its_calls_and_takes_new_ones() {
    let stage = Stage::up().await;
    let call = stage.call("echo:demo-key").await.unwrap();
    stage.until_state("connected").await;
    let address = stage.served.address;
    let Stage { app, served } = stage;
    drop(served);
    let stage = Stage { app, served: Engine::serve(address).await };
    let report = tokio::time::timeout(Duration::from_secs(5), call.ended()).await.expect("a BYE at once");
    assert_eq!(report.ended_by, Some(EndedBy::Peer));
    stage.until_ready().await;
    stage.call("echo:demo-key").await.unwrap().hang_up().await;
}

#[tokio::test]
async fn shutdown_says_bye_closes_sessions_and_keeps_the_records() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::File(folder.path().join("tandem.db"));
    let stage = Stage::with(|config| config.database = database.clone()).await;
    let call = stage.call("echo:demo-key").await.unwrap();
    stage.until_state("connected").await;
    let Stage { app, served } = stage;
    app.shutdown().await;
    assert!(call.is_over());
    assert_eq!(served.engine.commands(), ["open", "start", "close"]);

    let mut config = Config::for_tests(vec![served.url()]);
    config.database = database;
    let app = App::start(config).await.unwrap();
    let calls = get(app.http_addr(), "/v1/calls", Some(KEY)).await.json();
    assert_eq!(calls["calls"][0]["state"], "ended");
    assert_eq!(calls["calls"][0]["ending"]["reason"], "shutdown");
    app.shutdown().await;
}

#[tokio::test]
async fn demo_key_is_gone_without_demo() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::File(folder.path().join("tandem.db"));
    let stage = Stage::with(|config| config.database = database.clone()).await;
    assert_eq!(stage.get("/v1/calls").await.status, 200);
    let Stage { app, served } = stage;
    app.shutdown().await;
    let mut config = Config::for_tests(vec![served.url()]);
    (config.database, config.demo) = (database, false);
    let stage = Stage { app: App::start(config).await.unwrap(), served };
    stage.until_ready().await;
    assert_eq!(stage.get("/v1/calls").await.status, 401);
    assert_eq!(stage.call("echo:demo-key").await.unwrap_err().status, Some(403));
}

#[tokio::test]
async fn port_that_is_taken_is_named() {
    let stage = Stage::up().await;
    let mut config = Config::for_tests(vec![stage.served.url()]);
    config.http_listen = stage.app.http_addr();
    let error = App::start(config).await.unwrap_err().to_string();
    assert!(error.contains("cannot listen on 127.0.0.1:") && error.contains("TANDEM_HTTP_LISTEN"), "{error}");
    until(|| async { stage.get("/healthz").await.status == 200 }).await;
}
