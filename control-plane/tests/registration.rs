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
use tandem_api::v1 as api;
use tandem_api::v1::trunk_service_client::TrunkServiceClient;
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

/// A carrier that plays an announcement, answers, takes holds, and agrees on a session timer.
mod carrier {
    use std::net::SocketAddr;
    use std::time::{Duration, Instant};

    use tandem_sip::{Body, CallHandle, Endpoint, EndpointConfig, Event, Flow, Reply, Request};
    use tokio::net::UdpSocket;

    pub(crate) struct Carrier {
        sip: UdpSocket,
        rtp: UdpSocket,
        endpoint: Endpoint,
        remote: Option<SocketAddr>,
        ringing: Option<(CallHandle, Instant)>,
        takes_hold: bool,
    }

    impl Carrier {
        pub(crate) async fn open(takes_hold: bool) -> (Self, SocketAddr) {
            let sip = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = sip.local_addr().unwrap();
            let rtp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let endpoint = Endpoint::new(EndpointConfig { seed: 9, ..EndpointConfig::default() });
            (Self { sip, rtp, endpoint, remote: None, ringing: None, takes_hold }, address)
        }

        fn sdp(&self, direction: &str) -> Body {
            let port = self.rtp.local_addr().unwrap().port();
            Body::sdp(format!(
                "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {port} RTP/AVP 0 101\r\n\
                 a=rtpmap:0 PCMU/8000\r\na=rtpmap:101 telephone-event/8000\r\na={direction}\r\n"
            ))
        }

        fn offer(&mut self, request: &Request) -> String {
            let offer = String::from_utf8_lossy(&request.body).into_owned();
            let port =
                offer.split("m=audio ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u16>().ok());
            self.remote = port.map(|port| ([127, 0, 0, 1], port).into());
            offer
        }

        pub(crate) async fn run(mut self) {
            let local = self.sip.local_addr().unwrap();
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            let mut datagram = vec![0; 65_535];
            loop {
                tokio::select! {
                    Ok((len, remote)) = self.sip.recv_from(&mut datagram) => {
                        self.endpoint.handle_input(&datagram[..len], Flow::udp(local, remote), Instant::now());
                    }
                    _ = tick.tick() => {
                        self.endpoint.handle_timeout(Instant::now());
                        if let Some(remote) = self.remote {
                            let mut packet = vec![0; 172];
                            packet[0] = 0x80;
                            let _ = self.rtp.send_to(&packet, remote).await;
                        }
                    }
                }
                let now = Instant::now();
                if let Some((call, _)) = self.ringing.take_if(|(_, at)| *at <= now) {
                    self.endpoint.answer(call, self.sdp("sendrecv"), now).unwrap();
                }
                while let Some(event) = self.endpoint.poll_event() {
                    match event {
                        Event::IncomingInvite { call, request, .. } => {
                            self.offer(&request);
                            let early = Reply::new(183).body(self.sdp("sendrecv"));
                            self.endpoint.respond(call, early, now).unwrap();
                            self.ringing = Some((call, now + Duration::from_millis(300)));
                        }
                        Event::Reinvite { call, request } => {
                            let is_hold = self.offer(&request).contains("a=sendonly");
                            let answer = if is_hold && self.takes_hold { "recvonly" } else { "sendrecv" };
                            self.remote = self.remote.filter(|_| answer == "sendrecv");
                            self.endpoint.answer(call, self.sdp(answer), now).unwrap();
                        }
                        _ => {}
                    }
                }
                while let Some(transmit) = self.endpoint.poll_transmit() {
                    self.sip.send_to(&transmit.bytes, transmit.flow.remote).await.unwrap();
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_shows_a_tenants_trunks_and_streams_their_check() {
    let pbx = pbx().await;
    let node = node(&pbx, "secret", "udp").await;
    until(|| async { state(&node) == Some(State::Registered) }).await;
    let url = format!("http://{}", node.http_addr());
    let mut client = TrunkServiceClient::connect(url).await.unwrap();
    let trunks = client.list_trunks(with_key(api::ListTrunksRequest {})).await.unwrap().into_inner().trunks;
    assert_eq!((trunks.len(), &*trunks[0].name), (1, "pbx"));
    let registration = trunks[0].registration.clone().unwrap();
    assert_eq!(registration.state, "registered");
    assert!(registration.next_ms > 0 && registration.next_ms < registration.registered_until_ms);
    let shown =
        client.get_trunk(with_key(api::GetTrunkRequest { name: "pbx".into() })).await.unwrap().into_inner();
    assert!(shown.account.starts_with("sip:42@") && !format!("{shown:?}").contains("secret"));

    let check = api::CheckTrunkRequest { name: "pbx".into(), to: String::new() };
    let mut steps = client.check_trunk(with_key(check)).await.unwrap().into_inner();
    let mut verdicts = Vec::new();
    while let Some(step) = steps.message().await.unwrap() {
        verdicts.push((step.name, step.verdict));
    }
    assert!(verdicts.contains(&("auth".to_owned(), "pass".to_owned())), "{verdicts:?}");

    for name in ["other", ""] {
        let unknown =
            client.get_trunk(with_key(api::GetTrunkRequest { name: name.into() })).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
    }
    let without_key = client.list_trunks(api::ListTrunksRequest {}).await.unwrap_err();
    assert_eq!(without_key.code(), tonic::Code::Unauthenticated);
    node.shutdown().await;
    pbx.shutdown().await;
}

fn with_key<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("x-api-key", "demo-key".parse().unwrap());
    request
}

async fn node_of(carrier: std::net::SocketAddr) -> App {
    let trunk = Trunk {
        name: "pbx".into(),
        tenant_id: "demo".into(),
        credential: SipCredential {
            sip_uri: Some(Uri::parse(&format!("sip:{carrier}")).unwrap()),
            ..SipCredential::default()
        },
        ..Trunk::default()
    };
    let config = Config { trunks: Trunks::new([trunk], []), ..Config::for_tests(vec![nowhere()]) };
    App::start(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_with_a_call_tries_codec_early_media_dtmf_timer_and_hold() {
    for takes_hold in [true, false] {
        let (carrier, address) = carrier::Carrier::open(takes_hold).await;
        let carrier = tokio::spawn(carrier.run());
        let node = node_of(address).await;
        let steps = steps(&node, Some("+4930123456")).await;
        for name in ["options", "codec", "early_media", "dtmf", "session_timer", "hangup"] {
            assert_eq!(verdict(&steps, name), Verdict::Pass, "{name}: {steps:#?}");
        }
        for name in ["auth", "registration"] {
            assert_eq!(verdict(&steps, name), Verdict::Skipped, "{name}: {steps:#?}");
        }
        let hold = if takes_hold { Verdict::Pass } else { Verdict::Fail };
        assert_eq!(verdict(&steps, "hold"), hold, "{steps:#?}");
        assert_eq!(node.live_calls().list("demo".into()).await.len(), 0, "call handling has not seen it");
        node.shutdown().await;
        carrier.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trunk_that_does_not_answer_is_degraded_after_the_first_ping() {
    let nobody = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let node = node_of(nobody.local_addr().unwrap()).await;
    until(|| async { node.office().board.health("pbx") != health::State::Unknown }).await;
    assert_eq!(node.office().board.health("pbx"), health::State::Degraded);
    node.shutdown().await;
}
