//! A whole engine on the real kernel, commanded through gRPC, with phones and agents on loopback sockets. Each body runs
//! on both drivers; io_uring is skipped, loudly, on a host that blocks it.
#![allow(clippy::unwrap_used)]

mod agent;
mod audiosocket;
mod grpc;
mod joins;
mod legs;
mod link;
mod media;
mod phone;
mod statistics;
mod tls;

use std::future::Future;
use std::time::{Duration, Instant};

use agent::Bot;
use media_engine::Engine;
use media_engine::config::{Config, PortRange};
use media_engine::ring::{Choice, DriverKind, decide};
use phone::{Phone, pcmu};
use tandem_api::engine::v1 as proto;
use tandem_api::engine::v1::engine_service_client::EngineServiceClient;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::Channel;

type Client = EngineServiceClient<Channel>;

/// Above the system's own range and the engine's default one. Other tests run at the same time: busy ports are stepped over.
const PORTS: PortRange = PortRange { min: 10_000, max: 12_999 };

fn on_both<F: Future<Output = ()>>(change: impl Fn(&mut Config), body: impl Fn(Engine, Client) -> F) {
    for kind in [DriverKind::IoUring, DriverKind::Epoll] {
        let decision = decide(Choice::Only(kind));
        if decision.driver.is_none() {
            eprintln!("skipped on {kind}: {}", decision.reason);
            continue;
        }
        eprintln!("on {kind}");
        let mut config = Config::for_tests(PORTS);
        config.driver = Choice::Only(kind);
        change(&mut config);
        let engine = Engine::start(config).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Client::connect(format!("http://{}", engine.grpc_address())).await.unwrap();
            tokio::time::timeout(Duration::from_secs(60), body(engine, client))
                .await
                .expect("within a minute");
        });
    }
}

fn echo() -> proto::Agent {
    proto::Agent { target: Some(proto::agent::Target::Echo(proto::EchoAgent {})), ..Default::default() }
}

fn websocket(url: String, dialect: proto::Dialect) -> proto::Agent {
    let agent = proto::WebSocketAgent {
        url,
        dialect: dialect.into(),
        connect_timeout_ms: 1_000,
        ..Default::default()
    };
    proto::Agent { target: Some(proto::agent::Target::Websocket(agent)), ..Default::default() }
}

fn open(id: &str, phone: &Phone, agent: proto::Agent) -> proto::OpenSessionRequest {
    proto::OpenSessionRequest {
        session_id: id.into(),
        call: Some(proto::CallInfo {
            call_id: id.into(),
            from: "+1".into(),
            to: "+2".into(),
            ..Default::default()
        }),
        rtp: Some(proto::RtpParameters {
            remote_address: "127.0.0.1".into(),
            remote_port: u32::from(phone.port()),
            codec: proto::Codec::Pcmu.into(),
            telephone_event_payload_type: Some(101),
            ..Default::default()
        }),
        agent: Some(agent),
        ..Default::default()
    }
}

async fn start(client: &mut Client, id: &str) {
    client.start_session(proto::StartSessionRequest { session_id: id.into(), early: false }).await.unwrap();
}

async fn close(client: &mut Client, id: &str) -> proto::SessionStats {
    let request = proto::CloseSessionRequest { session_id: id.into(), reason: "caller".into() };
    client.close_session(request).await.unwrap().into_inner().stats.unwrap()
}

/// The next event of a kind, heartbeats and others skipped.
async fn wait_for<T>(
    events: &mut tonic::Streaming<proto::Event>,
    mut wanted: impl FnMut(&proto::event::Event) -> Option<T>,
) -> T {
    let search = async {
        loop {
            let event = events.next().await.expect("the stream goes on").unwrap();
            if let Some(found) = event.event.as_ref().and_then(&mut wanted) {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), search).await.expect("the event comes")
}

#[test]
fn a_call_to_the_echo_hears_itself_on_time_and_ends_with_its_counters() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let phone = Phone::new();
            let opened = client.open_session(open("a", &phone, echo())).await.unwrap().into_inner();
            assert!(opened.agent_ready);
            assert_eq!(opened.local_port % 2, 0);
            assert_eq!(opened.instance_id, engine.instance_id());
            assert!(phone.try_receive(Duration::from_millis(60)).is_none(), "silent until it is answered");

            let answered = Instant::now();
            start(&mut client, "a").await;
            let first = phone.receive();
            assert!(answered.elapsed() < Duration::from_millis(40), "{:?}", answered.elapsed());
            assert!(first.marker);
            assert_eq!(first.payload, [0xFF; 160]);

            let heard =
                tokio::task::spawn_blocking(move || phone.talk(opened.local_port as u16, 100)).await.unwrap();
            // Between packets that come late there may be silence, but nothing is lost, changed or heard twice.
            let echoed: Vec<_> = heard
                .iter()
                .map(|packet| &packet.payload[..])
                .filter(|payload| *payload != [0xFF; 160])
                .collect();
            assert!(echoed.len() >= 90, "{} of 100 came back", echoed.len());
            assert!((0..).zip(&echoed).all(|(number, payload)| *payload == pcmu(number)));
            assert!(heard.windows(2).all(|pair| pair[1].sequence == pair[0].sequence.wrapping_add(1)));
            assert!(heard.windows(2).all(|pair| pair[1].timestamp == pair[0].timestamp.wrapping_add(160)));

            let stats = close(&mut client, "a").await;
            assert_eq!(stats.rtp_received, 100);
            assert_eq!((stats.rtp_lost, stats.rtp_rejected), (0, 0));
            assert!(stats.rtp_sent >= 100 && stats.duration_ms >= 1_900, "{stats:?}");
            assert_eq!(engine.sessions(), 0);
            tokio::task::spawn_blocking(|| engine.shutdown()).await.unwrap();
        },
    );
}

#[test]
fn commands_are_idempotent_and_unknown_sessions_are_not_found() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let phone = Phone::new();
            let first = client.open_session(open("a", &phone, echo())).await.unwrap().into_inner();
            let second = client.open_session(open("a", &phone, echo())).await.unwrap().into_inner();
            assert_eq!(first, second);
            assert_eq!(engine.sessions(), 1);
            start(&mut client, "a").await;
            start(&mut client, "a").await;
            let listed = client.list_sessions(proto::ListSessionsRequest {}).await.unwrap().into_inner();
            assert_eq!(listed.sessions.len(), 1);
            assert!(listed.sessions[0].started);
            close(&mut client, "a").await;
            let again = client
                .close_session(proto::CloseSessionRequest { session_id: "a".into(), ..Default::default() });
            assert_eq!(again.await.unwrap_err().code(), Code::NotFound);
            let start = client
                .start_session(proto::StartSessionRequest { session_id: "a".into(), early: false })
                .await;
            assert_eq!(start.unwrap_err().code(), Code::NotFound);
        },
    );
}

#[test]
fn two_requests_that_open_the_same_session_at_once_open_one() {
    on_both(
        |_| {},
        |engine, client| async move {
            let phone = Phone::new();
            let (mut one, mut other) = (client.clone(), client);
            let (a, b) = tokio::join!(
                one.open_session(open("a", &phone, echo())),
                other.open_session(open("a", &phone, echo()))
            );
            assert_eq!(a.unwrap().into_inner(), b.unwrap().into_inner());
            assert_eq!(engine.sessions(), 1);
        },
    );
}

#[test]
fn what_cannot_be_carried_names_its_field() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let phone = Phone::new();
            let mut request = open("a", &phone, echo());
            request.rtp.as_mut().unwrap().ptime_ms = 7;
            let status = client.open_session(request).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains("rtp.ptime_ms"), "{status}");
            let status = client.open_session(open("", &phone, echo())).await.unwrap_err();
            assert!(status.message().contains("session_id"), "{status}");
            assert_eq!(engine.sessions(), 0);
        },
    );
}

#[test]
fn sessions_beyond_the_limit_are_refused_and_their_place_is_free_again_after_a_close() {
    on_both(
        |config| config.sessions_max = 2,
        |engine, mut client| async move {
            let _engine = engine;
            let phone = Phone::new();
            client.open_session(open("a", &phone, echo())).await.unwrap();
            client.open_session(open("b", &phone, echo())).await.unwrap();
            let status = client.open_session(open("c", &phone, echo())).await.unwrap_err();
            assert_eq!(status.code(), Code::ResourceExhausted);
            close(&mut client, "a").await;
            client.open_session(open("c", &phone, echo())).await.unwrap();
        },
    );
}

#[test]
fn a_busy_port_is_stepped_over_and_a_leased_one_is_honoured() {
    on_both(
        |config| config.rtp_ports = PortRange { min: 13_000, max: 13_039 },
        |engine, mut client| async move {
            let _engine = engine;
            let squatters: Vec<_> = (13_000..13_004)
                .filter_map(|port| std::net::UdpSocket::bind(("127.0.0.1", port)).ok())
                .collect();
            let phone = Phone::new();
            let opened = client.open_session(open("a", &phone, echo())).await.unwrap().into_inner();
            assert!(opened.local_port >= 13_004, "{opened:?}");
            drop(squatters);
            let mut request = open("b", &phone, echo());
            request.rtp.as_mut().unwrap().local_port = 13_020;
            let opened = client.open_session(request.clone()).await.unwrap().into_inner();
            assert_eq!(opened.local_port, 13_020);
            request.session_id = "c".into();
            let status = client.open_session(request.clone()).await.unwrap_err();
            assert_eq!(status.code(), Code::ResourceExhausted);
            close(&mut client, "b").await;
            let status = client.open_session(request.clone()).await.unwrap_err();
            assert!(status.message().contains("rests"), "{status}");
            tokio::time::sleep(Duration::from_millis(2_050)).await;
            client.open_session(request).await.unwrap();
        },
    );
}

#[test]
fn a_subscriber_gets_a_snapshot_then_events_and_heartbeats() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let phone = Phone::new();
            let opened = client.open_session(open("a", &phone, echo())).await.unwrap().into_inner();
            let mut events =
                client.events(proto::EventsRequest { controller_id: "t".into() }).await.unwrap().into_inner();
            let first = events.next().await.unwrap().unwrap();
            let Some(proto::event::Event::Snapshot(snapshot)) = first.event else { panic!("{first:?}") };
            assert_eq!(snapshot.sessions[0].session_id, "a");
            start(&mut client, "a").await;
            phone.press(opened.local_port as u16, 5);
            let media = wait_for(&mut events, |event| match event {
                proto::event::Event::MediaStarted(media) => Some(media.clone()),
                _ => None,
            });
            assert_eq!(media.await.remote_port, u32::from(phone.port()));
            let digit = wait_for(&mut events, |event| match event {
                proto::event::Event::DtmfReceived(dtmf) => Some(dtmf.digit.clone()),
                _ => None,
            });
            assert_eq!(digit.await, "5");
            wait_for(&mut events, |event| matches!(event, proto::event::Event::Heartbeat(_)).then_some(()))
                .await;
        },
    );
}

#[test]
fn a_pcm_agent_hears_the_caller_speaks_and_hangs_up() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let mut bot = Bot::listen().await;
            let phone = Phone::new();
            let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
            let request = open("a", &phone, websocket(bot.url(), proto::Dialect::Pcm));
            let opened = client.open_session(request).await.unwrap().into_inner();
            bot.accept().await;
            assert!(bot.text().await.contains("\"event\":\"start\""));
            wait_for(&mut events, |event| {
                matches!(event, proto::event::Event::AgentConnected(_)).then_some(())
            })
            .await;
            start(&mut client, "a").await;
            let port = opened.local_port as u16;
            let talking = tokio::task::spawn_blocking(move || phone.talk(port, 50));
            let frame = bot.binary().await;
            assert_eq!(frame.len(), 640);
            bot.send_binary(vec![0x10; 6_400]).await;
            bot.send_text(r#"{"event":"mark","name":"m"}"#).await;
            bot.send_text(r#"{"event":"hangup","after":"drain"}"#).await;
            let mark = bot.text_with("mark").await;
            assert!(mark.contains("\"heardMs\":200"), "{mark}");
            let after = wait_for(&mut events, |event| match event {
                proto::event::Event::AgentHangup(hangup) => Some(hangup.after.clone()),
                _ => None,
            })
            .await;
            assert_eq!(after, "drain");
            let heard = talking.await.unwrap();
            assert!(
                heard.iter().filter(|packet| packet.payload.iter().any(|octet| *octet != 0xFF)).count() >= 10
            );
            let stats = close(&mut client, "a").await;
            assert!(stats.agent_frames_out >= 45 && stats.agent_frames_in >= 1, "{stats:?}");
            assert!(bot.text_with("stop").await.contains("caller"));
            bot.closed().await;
        },
    );
}

#[test]
fn a_twilio_agent_hears_the_caller_and_is_heard() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let mut bot = Bot::listen().await;
            let phone = Phone::new();
            let request = open("a", &phone, websocket(bot.url(), proto::Dialect::Twilio));
            let opened = client.open_session(request).await.unwrap().into_inner();
            bot.accept().await;
            assert!(bot.text().await.contains("\"event\":\"connected\""));
            assert!(bot.text().await.contains("\"event\":\"start\""));
            start(&mut client, "a").await;
            let port = opened.local_port as u16;
            let talking = tokio::task::spawn_blocking(move || phone.talk(port, 50));
            assert!(bot.text().await.contains("\"event\":\"media\""));
            bot.send_text(
                r#"{"event":"media","streamSid":"x","media":{"payload":"EBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ"}}"#,
            )
            .await;
            let heard = talking.await.unwrap();
            assert!(heard.iter().any(|packet| packet.payload.contains(&0x10)));
            close(&mut client, "a").await;
            assert!(bot.text_with("\"stop\"").await.contains("callSid"));
        },
    );
}

#[test]
fn an_agent_that_cannot_be_reached_or_leaves_is_reported_and_the_call_goes_on() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let phone = Phone::new();
            let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
            let failed = |event: &proto::event::Event| match event {
                proto::event::Event::AgentFailed(failed) => Some(failed.reason.clone()),
                _ => None,
            };
            for (id, url, wanted) in [
                ("refused", "ws://127.0.0.1:1/".to_owned(), "refused"),
                ("nowhere", "ws://does-not-exist.invalid/".to_owned(), "resolve"),
            ] {
                client.open_session(open(id, &phone, websocket(url, proto::Dialect::Pcm))).await.unwrap();
                let reason = wait_for(&mut events, failed).await;
                assert!(reason.contains(wanted), "{reason}");
            }
            let mut bot = Bot::listen().await;
            client
                .open_session(open("drop", &phone, websocket(bot.url(), proto::Dialect::Pcm)))
                .await
                .unwrap();
            bot.accept().await;
            start(&mut client, "drop").await;
            drop(bot);
            let reason = wait_for(&mut events, failed).await;
            assert!(reason.contains("closed"), "{reason}");
            phone.receive();
            let mute = Bot::listen().await;
            client
                .open_session(open("mute", &phone, websocket(mute.url(), proto::Dialect::Pcm)))
                .await
                .unwrap();
            let reason = wait_for(&mut events, failed).await;
            assert!(reason.contains("in time"), "{reason}");
            for id in ["refused", "nowhere", "drop", "mute"] {
                close(&mut client, id).await;
            }
        },
    );
}

#[test]
fn silence_a_limit_and_an_orphaned_engine_end_sessions() {
    on_both(
        |config| config.orphan = Duration::from_millis(1_500),
        |engine, mut client| async move {
            let phone = Phone::new();
            let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
            let ended = |event: &proto::event::Event| match event {
                proto::event::Event::SessionEnded(ended) => Some(ended.reason()),
                _ => None,
            };
            let mut request = open("silent", &phone, echo());
            request.media_timeout_ms = 200;
            client.open_session(request).await.unwrap();
            start(&mut client, "silent").await;
            assert_eq!(wait_for(&mut events, ended).await, proto::session_ended::Reason::MediaTimeout);
            let mut request = open("long", &phone, echo());
            request.max_session_ms = 200;
            client.open_session(request).await.unwrap();
            assert_eq!(wait_for(&mut events, ended).await, proto::session_ended::Reason::MaxSession);
            assert_eq!(engine.sessions(), 0);

            client.open_session(open("orphan", &phone, echo())).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            assert_eq!(engine.sessions(), 1, "a controller listens");
            drop(events);
            let until = Instant::now() + Duration::from_secs(8);
            while engine.sessions() > 0 && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(engine.sessions(), 0);
        },
    );
}

#[test]
fn a_draining_engine_refuses_new_calls_and_ends_the_old_ones_in_the_end() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let phone = Phone::new();
            let metrics = engine.metrics_address();
            let get =
                move |path: &'static str| tokio::task::spawn_blocking(move || phone::http_get(metrics, path));
            assert!(get("/readyz").await.unwrap().starts_with("HTTP/1.1 200"));
            let page = get("/metrics").await.unwrap();
            assert!(
                page.contains("process_cpu_seconds_total") && page.contains("tandem_engine_sessions{core="),
                "{page}"
            );
            client.open_session(open("a", &phone, echo())).await.unwrap();
            let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
            let left = client.drain(proto::DrainRequest {}).await.unwrap().into_inner();
            assert_eq!(left.sessions, 1);
            let status = client.open_session(open("b", &phone, echo())).await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable);
            client.open_session(open("a", &phone, echo())).await.expect("one that is open is answered again");
            assert!(get("/readyz").await.unwrap().starts_with("HTTP/1.1 503"));
            assert!(get("/healthz").await.unwrap().starts_with("HTTP/1.1 200"));
            let stopping = tokio::task::spawn_blocking(|| engine.shutdown());
            let reason = wait_for(&mut events, |event| match event {
                proto::event::Event::SessionEnded(ended) => Some(ended.reason()),
                _ => None,
            });
            assert_eq!(reason.await, proto::session_ended::Reason::Shutdown);
            stopping.await.unwrap();
        },
    );
}

#[test]
fn a_hold_silences_the_engine_and_a_new_codec_is_heard() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let phone = Phone::new();
            let request = open("a", &phone, echo());
            let mut rtp = request.rtp.clone();
            client.open_session(request).await.unwrap();
            start(&mut client, "a").await;
            phone.receive();
            let parameters = rtp.as_mut().unwrap();
            parameters.direction = proto::Direction::Inactive.into();
            client
                .update_session(proto::UpdateSessionRequest { session_id: "a".into(), rtp: rtp.clone() })
                .await
                .unwrap();
            while phone.try_receive(Duration::from_millis(45)).is_some() {}
            let parameters = rtp.as_mut().unwrap();
            parameters.direction = proto::Direction::Sendrecv.into();
            parameters.codec = proto::Codec::Pcma.into();
            parameters.payload_type = 8;
            client.update_session(proto::UpdateSessionRequest { session_id: "a".into(), rtp }).await.unwrap();
            let packet = phone.receive();
            assert!(packet.marker, "a talkspurt begins");
            assert_eq!(packet.payload_type, 8);
            assert_eq!(packet.payload, [0xD5; 160]);
        },
    );
}
