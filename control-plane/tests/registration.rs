//! Two whole control planes over loopback: one is the PBX, the other registers there, checks it and is checked.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use control_plane::app::App;
use control_plane::config::Config;
use control_plane::registration::check::{self, Step, Verdict};
use control_plane::registration::registrant::State;
use control_plane::trunk::health;
use control_plane::trunk::{Phone, Registration, SipCredential, Trunk, Trunks};
use tandem_sip::Uri;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(20);

async fn pbx() -> App {
    let phone =
        Phone { user: "42".into(), password: "secret".into(), tenant_id: "demo".into(), ..Phone::default() };
    let config = Config { trunks: Trunks::new([], [phone]), ..Config::for_tests(vec![nowhere()]) };
    App::start(config).await.unwrap()
}

/// An engine that is not there: registration needs none.
fn nowhere() -> String {
    "http://127.0.0.1:9".to_owned()
}

async fn node(pbx: &App, password: &str, transport: &str) -> App {
    let address =
        pbx.sip_addrs().iter().find(|(kind, _)| kind.token().eq_ignore_ascii_case(transport)).unwrap().1;
    let trunk = Trunk {
        name: "pbx".into(),
        tenant_id: "demo".into(),
        credential: SipCredential {
            sip_uri: Some(Uri::parse(&format!("sip:42@{address};transport={transport}")).unwrap()),
            sip_password: Some(password.into()),
            ..SipCredential::default()
        },
        registration: Registration { is_wanted: true, ..Registration::default() },
        ..Trunk::default()
    };
    let config = Config { trunks: Trunks::new([trunk], []), ..Config::for_tests(vec![nowhere()]) };
    App::start(config).await.unwrap()
}

async fn until<F: Future<Output = bool>>(mut is_so: impl FnMut() -> F) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it never was so");
}

async fn contacts(pbx: &App) -> usize {
    let now_ms = control_plane::store::epoch_ms();
    pbx.office().locator.contacts("42", now_ms).await.unwrap().len()
}

fn state(node: &App) -> Option<State> {
    node.office().board.trunk("pbx").registration.map(|registration| registration.state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_registers_is_found_and_unregisters_when_it_goes_down() {
    for transport in ["udp", "tcp"] {
        let pbx = pbx().await;
        let node = node(&pbx, "secret", transport).await;
        until(|| async { state(&node) == Some(State::Registered) }).await;
        until(|| async { node.office().board.health("pbx") == health::State::Up }).await;
        assert_eq!(contacts(&pbx).await, 1, "{transport}");
        node.shutdown().await;
        assert_eq!(contacts(&pbx).await, 0, "{transport}");
        pbx.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pbx_that_goes_away_is_noticed_over_tcp_at_once() {
    let pbx = pbx().await;
    let node = node(&pbx, "secret", "tcp").await;
    until(|| async { state(&node) == Some(State::Registered) }).await;
    pbx.shutdown().await;
    until(|| async { state(&node) == Some(State::Unreachable) }).await;
    node.shutdown().await;
}

async fn steps(node: &App, to: Option<&str>) -> Vec<Step> {
    let (steps, mut steps_out) = mpsc::channel(64);
    let trunk: Arc<Trunk> = node.office().trunks.find("pbx").unwrap().clone();
    tokio::spawn(check::run(node.office().clone(), trunk, to.map(str::to_owned), steps));
    let mut all = Vec::new();
    while let Some(step) = tokio::time::timeout(PATIENCE, steps_out.recv()).await.expect("it ends") {
        all.push(step);
    }
    all
}

fn verdict(steps: &[Step], name: &str) -> Verdict {
    steps.iter().find(|step| step.name == name).unwrap_or_else(|| panic!("{name} in {steps:?}")).verdict
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_without_a_call_says_what_the_trunk_sees_and_skips_the_rest() {
    let pbx = pbx().await;
    let node = node(&pbx, "secret", "udp").await;
    until(|| async { state(&node) == Some(State::Registered) }).await;
    let steps = steps(&node, None).await;
    for name in ["options", "auth", "registration"] {
        assert_eq!(verdict(&steps, name), Verdict::Pass, "{steps:#?}");
    }
    for name in ["seen_via", "seen_contact", "seen_from", "seen_codecs", "seen_source"] {
        assert_eq!(verdict(&steps, name), Verdict::Info);
    }
    for name in ["codec", "early_media", "dtmf", "session_timer", "hold", "hangup"] {
        assert_eq!(verdict(&steps, name), Verdict::Skipped);
    }
    assert_eq!(contacts(&pbx).await, 1, "the check has bound nothing");
    node.shutdown().await;
    pbx.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_with_a_wrong_password_says_so() {
    let pbx = pbx().await;
    let node = node(&pbx, "wrong", "udp").await;
    until(|| async { state(&node) == Some(State::Refused) }).await;
    let steps = steps(&node, None).await;
    assert_eq!((verdict(&steps, "auth"), verdict(&steps, "registration")), (Verdict::Fail, Verdict::Fail));
    assert!(steps.iter().any(|step| step.advice.contains("sip_password")), "{steps:#?}");
    node.shutdown().await;
    pbx.shutdown().await;
}
