//! Providers' media connections on the real kernel: a Twilio that speaks tokio-tungstenite, and an Asterisk with its read rules.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use media_engine::Engine;
use serde_json::{Value, json};
use tandem_api::engine::v1 as proto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message, http};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tonic::{Code, Streaming};

use super::{Client, close, echo, on_both, start, wait_for, websocket};
use crate::agent::Bot;

type Events = Streaming<proto::Event>;
type Socket<S = MaybeTlsStream<TcpStream>> = WebSocketStream<S>;
type Dialled = (Socket, http::Response<Option<Vec<u8>>>);

fn url(engine: &Engine, path: &str) -> String {
    format!("ws://{}{path}", engine.ws_address())
}

async fn events(client: &mut Client) -> Events {
    let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
    wait_for(&mut events, |event| matches!(event, proto::event::Event::Snapshot(_)).then_some(())).await;
    events
}

async fn upgrade(events: &mut Events) -> proto::MediaUpgrade {
    wait_for(events, |event| match event {
        proto::event::Event::MediaUpgrade(upgrade) => Some(upgrade.clone()),
        _ => None,
    })
    .await
}

async fn dropped(events: &mut Events) -> proto::StreamDropped {
    wait_for(events, |event| match event {
        proto::event::Event::StreamDropped(dropped) => Some(dropped.clone()),
        _ => None,
    })
    .await
}

async fn ended(events: &mut Events) -> proto::SessionEnded {
    wait_for(events, |event| match event {
        proto::event::Event::SessionEnded(ended) => Some(ended.clone()),
        _ => None,
    })
    .await
}

fn open(
    id: &str,
    upgrade: &proto::MediaUpgrade,
    call: &str,
    agent: proto::Agent,
) -> proto::OpenSessionRequest {
    let stream = proto::StreamLeg {
        upgrade_id: upgrade.upgrade_id.clone(),
        provider_call_id: call.into(),
        ..Default::default()
    };
    proto::OpenSessionRequest {
        session_id: id.into(),
        agent: Some(agent),
        stream: Some(stream),
        ..Default::default()
    }
}

fn answer(
    upgrade: &proto::MediaUpgrade,
    answer: proto::answer_upgrade_request::Answer,
) -> proto::AnswerUpgradeRequest {
    proto::AnswerUpgradeRequest { upgrade_id: upgrade.upgrade_id.clone(), answer: Some(answer) }
}

async fn dial(url: String) -> Socket {
    tokio_tungstenite::connect_async(url).await.expect("101").0
}

/// The status of a refusal, and whether it says when to come again.
fn refusal(outcome: Result<Dialled, Error>) -> (u16, bool) {
    match outcome {
        Err(Error::Http(response)) => {
            (response.status().as_u16(), response.headers().contains_key("retry-after"))
        }
        other => panic!("a refusal, not {:?}", other.map(|_| ())),
    }
}

async fn say<S>(socket: &mut Socket<S>, value: Value)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    socket.send(Message::text(value.to_string())).await.unwrap();
}

async fn next<S>(socket: &mut Socket<S>) -> Message
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    tokio::time::timeout(Duration::from_secs(5), socket.next())
        .await
        .expect("a message")
        .expect("not the end")
        .unwrap()
}

async fn heard<S>(socket: &mut Socket<S>) -> Value
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        if let Message::Text(text) = next(socket).await {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

fn begin(call: &str) -> Value {
    json!({"event": "start", "sequenceNumber": "1", "streamSid": "MZ1", "start": {
        "streamSid": "MZ1", "accountSid": "AC1", "callSid": call, "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"ctx": "ctx-1"}}})
}

const MULAW: &str = "0123456789abcdef";

fn media(number: u64) -> Value {
    let digit = &MULAW[(number % 16) as usize..][..1];
    // 160 octets of one value: 53 groups of three, and one octet.
    let base64 = format!("{}{digit}A==", format!("{digit}{digit}{digit}{digit}").repeat(53));
    json!({"event": "media", "sequenceNumber": (number + 2).to_string(), "streamSid": "MZ1", "media": {
        "track": "inbound", "chunk": (number + 1).to_string(), "timestamp": (number * 20).to_string(),
        "payload": base64}})
}

/// A Twilio whose session goes on: opened, started, and the start said.
async fn twilio(engine: &Engine, client: &mut Client, events: &mut Events, agent: proto::Agent) -> Socket {
    let dialling = tokio::spawn(dial(url(engine, "/v1/media/twilio/ctx-1")));
    let asked = upgrade(events).await;
    client.open_session(open("a", &asked, "CA1", agent)).await.unwrap();
    start(client, "a").await;
    let mut socket = dialling.await.unwrap();
    say(&mut socket, json!({"event": "connected", "protocol": "Call", "version": "1.0.0"})).await;
    say(&mut socket, begin("CA1")).await;
    socket
}

#[test]
fn a_media_connection_is_let_in_by_the_control_plane_alone() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let nobody = tokio_tungstenite::connect_async(url(&engine, "/v1/media/twilio/ctx-0")).await;
            assert_eq!(refusal(nobody), (503, true), "no controller");
            let mut events = events(&mut client).await;
            let elsewhere = tokio_tungstenite::connect_async(url(&engine, "/v1/media/acme/ctx-1")).await;
            assert_eq!(refusal(elsewhere).0, 404);

            let path = "/v1/media/exotel/ctx-2?sample-rate=8000";
            let dialling = tokio::spawn(tokio_tungstenite::connect_async(url(&engine, path)));
            let asked = upgrade(&mut events).await;
            assert_eq!((&*asked.provider, &*asked.context_id), ("exotel", "ctx-2"));
            assert_eq!((&*asked.path_and_query, asked.secure), (path, false));
            assert_eq!((&*asked.remote_address, &*asked.headers["upgrade"]), ("127.0.0.1", "websocket"));
            let refuse = proto::UpgradeRefusal { status: 403, reason: "signature".into(), retry_after_s: 0 };
            let refuse = answer(&asked, proto::answer_upgrade_request::Answer::Refuse(refuse));
            client.answer_upgrade(refuse.clone()).await.unwrap();
            assert_eq!(refusal(dialling.await.unwrap()), (403, false));
            let again = client.answer_upgrade(refuse).await.unwrap_err();
            assert_eq!(again.code(), Code::NotFound);

            let asking = Instant::now();
            let silent = tokio_tungstenite::connect_async(url(&engine, "/v1/media/twilio/ctx-3")).await;
            assert_eq!(refusal(silent), (503, true));
            let took = asking.elapsed();
            assert!((1_900..2_500).contains(&took.as_millis()), "{took:?}");
            let late = upgrade(&mut events).await;
            let late = client.open_session(open("a", &late, "", echo())).await.unwrap_err();
            assert_eq!((late.code(), engine.sessions()), (Code::NotFound, 0));
        },
    );
}

#[test]
fn a_twilio_call_hears_itself_paced_and_its_stop_ends_the_session() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let mut events = events(&mut client).await;
            let mut socket = twilio(&engine, &mut client, &mut events, echo()).await;
            let started = wait_for(&mut events, |event| match event {
                proto::event::Event::StreamStarted(started) => Some(started.clone()),
                _ => None,
            })
            .await;
            assert_eq!((&*started.provider_call_id, &*started.stream_id), ("CA1", "MZ1"));
            assert_eq!((&*started.codec, started.sample_rate), ("PCMU", 8_000));
            assert_eq!(started.parameters["ctx"], "ctx-1");

            // A fifth of a second at once comes back at its own pace.
            for number in 0..10 {
                say(&mut socket, media(number)).await;
            }
            let (mut came, mut marks) = (Vec::new(), 0);
            while came.len() < 10 {
                let message = heard(&mut socket).await;
                match message["event"].as_str().unwrap() {
                    "media" => {
                        came.push((Instant::now(), message["media"]["payload"].as_str().unwrap().to_owned()))
                    }
                    "mark" => {
                        marks += 1;
                        say(&mut socket, message).await;
                    }
                    other => panic!("{other}"),
                }
            }
            let took = came[9].0 - came[0].0;
            assert!((150..300).contains(&took.as_millis()), "10 frames of 20 ms in {took:?}");
            for (number, (_, payload)) in came.iter().enumerate() {
                assert_eq!(payload, media(number as u64)["media"]["payload"].as_str().unwrap());
            }
            let last = loop {
                let message = heard(&mut socket).await;
                if message["event"] == "mark" {
                    break message;
                }
            };
            say(&mut socket, last).await;
            let _ = marks;
            socket.send(Message::Ping(vec![7].into())).await.unwrap();
            assert_eq!(next(&mut socket).await, Message::Pong(vec![7].into()));
            let quiet = tokio::time::timeout(Duration::from_millis(100), socket.next()).await;
            assert!(quiet.is_err(), "while nothing is said nothing is sent: {quiet:?}");

            say(&mut socket, json!({"event": "dtmf", "streamSid": "MZ1", "dtmf": {"track": "inbound_track", "digit": "5"}})).await;
            let digit = wait_for(&mut events, |event| match event {
                proto::event::Event::DtmfReceived(dtmf) => Some(dtmf.digit.clone()),
                _ => None,
            });
            assert_eq!(digit.await, "5");
            say(
                &mut socket,
                json!({"event": "stop", "streamSid": "MZ1", "stop": {"accountSid": "AC1", "callSid": "CA1"}}),
            )
            .await;
            assert_eq!(dropped(&mut events).await.how, "stop");
            assert_eq!(ended(&mut events).await.reason(), proto::session_ended::Reason::Transport);
            assert!(matches!(next(&mut socket).await, Message::Close(_)));
            assert_eq!(engine.sessions(), 0);
        },
    );
}

#[test]
fn an_agent_that_clears_empties_the_queue_and_the_providers_and_its_hangup_waits_for_the_echo() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let mut bot = Bot::listen().await;
            let mut events = events(&mut client).await;
            let agent = websocket(bot.url(), proto::Dialect::Pcm);
            let mut socket = twilio(&engine, &mut client, &mut events, agent).await;
            bot.accept().await;
            assert!(bot.text().await.contains("\"event\":\"start\""));
            // Two seconds at once, of which a few frames are heard.
            bot.send_binary(vec![0x10; 64_000]).await;
            let mut frames = 0;
            while frames < 5 {
                frames += usize::from(heard(&mut socket).await["event"] == "media");
            }
            bot.send_text(r#"{"event":"clear"}"#).await;
            let cleared = bot.text_with("cleared").await;
            while heard(&mut socket).await["event"] != "clear" {
                frames += 1;
            }
            assert!(frames < 40, "{frames}");
            assert!(cleared.contains("heardMs"), "{cleared}");
            let quiet = tokio::time::timeout(Duration::from_millis(100), socket.next()).await;
            assert!(quiet.is_err(), "nothing of the old utterance: {quiet:?}");

            bot.send_binary(vec![0x10; 3_200]).await;
            bot.send_text(r#"{"event":"hangup","after":"drain"}"#).await;
            let mark = loop {
                let message = heard(&mut socket).await;
                if message["event"] == "mark" {
                    break message;
                }
            };
            let hangup = async |events: &mut Events| {
                wait_for(events, |event| matches!(event, proto::event::Event::AgentHangup(_)).then_some(()))
                    .await;
            };
            let early = tokio::time::timeout(Duration::from_millis(400), hangup(&mut events)).await;
            assert!(early.is_err(), "the last words are not heard yet");
            say(&mut socket, mark).await;
            hangup(&mut events).await;
            close(&mut client, "a").await;
            assert!(
                matches!(next(&mut socket).await, Message::Close(Some(frame)) if u16::from(frame.code) == 1_000)
            );
        },
    );
}

#[test]
fn a_lost_connection_is_retaken_by_the_same_call_and_by_no_other() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let mut events = events(&mut client).await;
            let socket = twilio(&engine, &mut client, &mut events, echo()).await;
            wait_for(&mut events, |event| {
                matches!(event, proto::event::Event::StreamStarted(_)).then_some(())
            })
            .await;
            let listed = client.list_sessions(proto::ListSessionsRequest {}).await.unwrap().into_inner();
            let listed = &listed.sessions[0];
            assert_eq!((&*listed.stream, &*listed.provider_call_id), ("live", "CA1"));
            assert_eq!((&*listed.stream_codec, listed.stream_sample_rate), ("PCMU", 8_000));
            let retake = proto::answer_upgrade_request::Answer::SessionId("a".into());

            // While it is up no other is let in.
            let dialling =
                tokio::spawn(tokio_tungstenite::connect_async(url(&engine, "/v1/media/twilio/ctx-1")));
            let asked = upgrade(&mut events).await;
            let status = client.answer_upgrade(answer(&asked, retake.clone())).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition);
            assert_eq!(refusal(dialling.await.unwrap()).0, 409);

            drop(socket);
            assert_eq!(dropped(&mut events).await.how, "drop");
            assert_eq!(engine.sessions(), 1);

            let mut kept = Vec::new();
            for call in ["CA2", "CA1"] {
                let dialling = tokio::spawn(dial(url(&engine, "/v1/media/twilio/ctx-1")));
                let asked = upgrade(&mut events).await;
                client.answer_upgrade(answer(&asked, retake.clone())).await.unwrap();
                let mut socket = dialling.await.unwrap();
                // Before it says whose it is, it is not heard.
                say(&mut socket, media(1)).await;
                let quiet = tokio::time::timeout(Duration::from_millis(100), socket.next()).await;
                assert!(quiet.is_err(), "{quiet:?}");
                say(&mut socket, begin(call)).await;
                say(&mut socket, media(2)).await;
                if call == "CA2" {
                    let Message::Close(Some(frame)) = next(&mut socket).await else { panic!("a close") };
                    assert_eq!(u16::from(frame.code), 1_008);
                    assert_eq!(dropped(&mut events).await.how, "drop", "its claim is free again");
                } else {
                    assert_eq!(heard(&mut socket).await["media"]["payload"], media(2)["media"]["payload"]);
                }
                kept.push(socket);
            }
            close(&mut client, "a").await;
            let mut http = TcpStream::connect(engine.metrics_address()).await.unwrap();
            http.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut page = String::new();
            http.read_to_string(&mut page).await.unwrap();
            for (what, times) in [("accepted", 3), ("refused", 1), ("dropped", 2), ("retaken", 2)] {
                let line = format!("tandem_engine_upgrades_{what}_total{{provider=\"twilio\"}} {times}\n");
                assert!(page.contains(&line), "{line}{page}");
            }
        },
    );
}

#[test]
fn a_connection_that_breaks_the_protocol_or_is_slow_is_closed_with_its_code() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let mut slow = TcpStream::connect(engine.ws_address()).await.unwrap();
            let began = Instant::now();
            let trickling = tokio::spawn(async move {
                let (mut reader, mut writer) = slow.split();
                let mut answer = Vec::new();
                let trickle = async {
                    for octet in b"GET /v1/media/twilio/ctx-1 HTTP/1.1\r\nX-Slow: "
                        .iter()
                        .chain(std::iter::repeat(&b'a'))
                    {
                        if writer.write_all(&[*octet]).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    _ = reader.read_to_end(&mut answer) => {}
                    () = trickle => {}
                }
                String::from_utf8(answer).unwrap()
            });
            let mut large = TcpStream::connect(engine.ws_address()).await.unwrap();
            large.write_all(&[b"GET / HTTP/1.1\r\nX: ", &[b'a'; 9_000][..]].concat()).await.unwrap();
            let mut answer = Vec::new();
            large.read_to_end(&mut answer).await.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&answer));

            let mut events = events(&mut client).await;
            let mut socket = twilio(&engine, &mut client, &mut events, echo()).await;
            let huge = "x".repeat(400 * 1_024);
            let _ = socket.send(Message::text(huge)).await;
            let code = loop {
                match next(&mut socket).await {
                    Message::Close(Some(frame)) => break u16::from(frame.code),
                    _ => continue,
                }
            };
            assert_eq!(code, 1_009);
            assert_eq!(dropped(&mut events).await.how, "drop");
            close(&mut client, "a").await;

            let answer = trickling.await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
            assert!((4_900..8_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        },
    );
}

const ID: [u8; 16] = [0x6b; 16];

/// Reads a frame as Asterisk does: its header in one read, and the payload must be there with it.
async fn frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut header = [0; 3];
    let read = tokio::time::timeout(Duration::from_millis(500), stream.read_exact(&mut header));
    read.await.expect("a frame comes").unwrap();
    let mut payload = vec![0; usize::from(u16::from_be_bytes([header[1], header[2]]))];
    assert!(matches!(header[0], 0x00 | 0x10..=0x18), "type {:#x}", header[0]);
    assert!(header[0] == 0 || !payload.is_empty(), "audio without a payload");
    let read = tokio::time::timeout(Duration::from_millis(5), stream.read_exact(&mut payload));
    read.await.expect("header and payload come together").unwrap();
    (header[0], payload)
}

#[test]
fn an_audiosocket_hears_silence_at_once_then_the_agent_and_its_close_ends_the_call() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let mut events = events(&mut client).await;
            // One that goes without a word is nobody's call.
            drop(TcpStream::connect(engine.audiosocket_address()).await.unwrap());
            let mut stream = TcpStream::connect(engine.audiosocket_address()).await.unwrap();
            stream.set_nodelay(true).unwrap();
            stream.write_all(&[0x01, 0x00]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.write_all(&[&[0x10][..], &ID].concat()).await.unwrap();
            let said = Instant::now();
            assert_eq!(frame(&mut stream).await, (0x10, vec![0; 320]));
            assert!(said.elapsed() < Duration::from_millis(100), "{:?}", said.elapsed());
            let asked = upgrade(&mut events).await;
            assert_eq!((&*asked.provider, &*asked.path_and_query), ("audiosocket", ""));
            assert_eq!(asked.context_id, "6b6b6b6b-6b6b-6b6b-6b6b-6b6b6b6b6b6b");
            client.open_session(open("a", &asked, "", echo())).await.unwrap();
            // Not answered yet: silence all the same.
            let began = Instant::now();
            for _ in 0..20 {
                frame(&mut stream).await;
            }
            let took = began.elapsed();
            assert!((250..600).contains(&took.as_millis()), "20 frames in {took:?}");
            start(&mut client, "a").await;

            let (mut reader, mut writer) = stream.into_split();
            let talking = tokio::spawn(async move {
                let mut clock = tokio::time::interval(Duration::from_millis(20));
                for _ in 0..50 {
                    clock.tick().await;
                    let sound = 0x1234i16.to_le_bytes().repeat(160);
                    writer.write_all(&[&[0x10, 0x01, 0x40], &sound[..]].concat()).await.unwrap();
                }
                writer.write_all(&[0x03, 0x00, 0x01, b'7']).await.unwrap();
                writer
            });
            let (mut loud, began) = (0, Instant::now());
            while loud < 40 && began.elapsed() < Duration::from_secs(3) {
                let mut octets = [0; 323];
                reader.read_exact(&mut octets).await.unwrap();
                assert_eq!(&octets[..3], &[0x10, 0x01, 0x40]);
                loud += usize::from(
                    octets[3..].as_chunks::<2>().0.iter().all(|pair| *pair == 0x1234i16.to_le_bytes()),
                );
            }
            assert!(loud >= 40, "{loud} frames came back");
            let mut writer = talking.await.unwrap();
            let digit = wait_for(&mut events, |event| match event {
                proto::event::Event::DtmfReceived(dtmf) => Some(dtmf.digit.clone()),
                _ => None,
            });
            assert_eq!(digit.await, "7");
            writer.shutdown().await.unwrap();
            assert_eq!(dropped(&mut events).await.how, "stop");
            ended(&mut events).await;
        },
    );
}

#[test]
fn an_audiosocket_that_no_session_wants_is_hung_up() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let mut events = events(&mut client).await;
            let mut stream = TcpStream::connect(engine.audiosocket_address()).await.unwrap();
            stream.write_all(&[&[0x01, 0x00, 0x10][..], &ID].concat()).await.unwrap();
            let asked = upgrade(&mut events).await;
            let refuse = proto::UpgradeRefusal { status: 404, ..Default::default() };
            let refuse = answer(&asked, proto::answer_upgrade_request::Answer::Refuse(refuse));
            client.answer_upgrade(refuse).await.unwrap();
            while frame(&mut stream).await.0 != 0x00 {}
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        },
    );
}

type Identity = (tempfile::TempDir, (std::path::PathBuf, std::path::PathBuf), tokio_rustls::TlsConnector);

/// A certificate for the engine in a folder of its own, and clients that trust it.
fn identity() -> Identity {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&files.0, key.cert.pem()).unwrap();
    std::fs::write(&files.1, key.signing_key.serialize_pem()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(key.cert.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (folder, files, tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)))
}

async fn shake(connector: &tokio_rustls::TlsConnector, address: std::net::SocketAddr) -> Tls {
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    connector.connect(name, tcp).await.unwrap()
}

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

#[test]
fn a_stranger_who_ends_tls_and_talks_on_holds_nobody_up() {
    let (_folder, files, connector) = identity();
    on_both(
        |config| config.tls = Some(files.clone()),
        |engine, mut client| {
            let connector = connector.clone();
            async move {
                let mut events = events(&mut client).await;
                let (mut tcp, mut tls) = shake(&connector, engine.ws_address()).await.into_inner();
                tls.send_close_notify();
                let mut octets = Vec::new();
                tls.write_tls(&mut octets).unwrap();
                octets.extend_from_slice(&[0x17, 3, 3, 0, 5, 1, 2, 3, 4, 5]);
                tcp.write_all(&octets).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;

                let is_well = async {
                    let mut http = TcpStream::connect(engine.metrics_address()).await.unwrap();
                    http.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                        .await
                        .unwrap();
                    let mut answer = Vec::new();
                    http.read_to_end(&mut answer).await.unwrap();
                    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
                };
                tokio::time::timeout(Duration::from_secs(1), is_well).await.expect("it is well");
                let (connector, address) = (connector.clone(), engine.ws_address());
                let second = tokio::spawn(async move {
                    let tls = shake(&connector, address).await;
                    drop(tokio_tungstenite::client_async("wss://localhost/v1/media/twilio/ctx-1", tls).await);
                });
                tokio::time::timeout(Duration::from_secs(1), upgrade(&mut events))
                    .await
                    .expect("another is heard");
                second.abort();

                // Who does not speak TLS at all is told so.
                let mut clear = TcpStream::connect(engine.ws_address()).await.unwrap();
                clear.write_all(b"GET /v1/media/twilio/ctx-1 HTTP/1.1\r\n\r\n").await.unwrap();
                let mut alert = [0];
                clear.read_exact(&mut alert).await.unwrap();
                assert_eq!(alert, [0x15]);
            }
        },
    );
}

#[test]
fn a_connection_that_goes_while_it_waits_is_not_given_to_a_session() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let mut events = events(&mut client).await;
            let mut tcp = TcpStream::connect(engine.ws_address()).await.unwrap();
            let request = "GET /v1/media/twilio/ctx-1 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
                Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
            tcp.write_all(request.as_bytes()).await.unwrap();
            let asked = upgrade(&mut events).await;
            drop(tcp);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let late = client.open_session(open("a", &asked, "", echo())).await.unwrap_err();
            assert_eq!((late.code(), engine.sessions()), (Code::NotFound, 0));
        },
    );
}

#[test]
fn a_connection_for_a_session_that_is_over_is_refused_at_once() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let mut events = events(&mut client).await;
            let dialling =
                tokio::spawn(tokio_tungstenite::connect_async(url(&engine, "/v1/media/twilio/ctx-1")));
            let asked = upgrade(&mut events).await;
            let (retake, began) =
                (proto::answer_upgrade_request::Answer::SessionId("over".into()), Instant::now());
            let status = client.answer_upgrade(answer(&asked, retake)).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound);
            assert_eq!(refusal(dialling.await.unwrap()), (404, false));
            assert!(began.elapsed() < Duration::from_millis(1_000), "{:?}", began.elapsed());
        },
    );
}

#[test]
fn a_control_plane_that_has_died_without_a_word_is_noticed() {
    on_both(
        |_| {},
        |engine, _client| async move {
            let mut dead = TcpStream::connect(engine.grpc_address()).await.unwrap();
            dead.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
            let mut heard = Vec::new();
            let end = tokio::time::timeout(Duration::from_secs(9), dead.read_to_end(&mut heard)).await;
            end.expect("its connection is closed").unwrap();
        },
    );
}

#[test]
fn a_provider_may_come_by_tls() {
    let (_folder, files, connector) = identity();
    on_both(
        |config| config.tls = Some(files.clone()),
        |engine, mut client| {
            let connector = connector.clone();
            async move {
                let mut events = events(&mut client).await;
                let address = engine.ws_address();
                let dialling = tokio::spawn(async move {
                    let tls = shake(&connector, address).await;
                    tokio_tungstenite::client_async("wss://localhost/v1/media/twilio/ctx-1", tls)
                        .await
                        .unwrap()
                        .0
                });
                let asked = upgrade(&mut events).await;
                assert!(asked.secure);
                client.open_session(open("a", &asked, "CA1", echo())).await.unwrap();
                start(&mut client, "a").await;
                let mut socket = dialling.await.unwrap();
                say(&mut socket, begin("CA1")).await;
                for number in 0..5 {
                    say(&mut socket, media(number)).await;
                }
                for number in 0..5 {
                    let came = heard(&mut socket).await;
                    assert_eq!(came["media"]["payload"], media(number)["media"]["payload"]);
                }
                close(&mut client, "a").await;
                while !matches!(next(&mut socket).await, Message::Close(_)) {}
                let (mut tcp, mut tls) = socket.into_inner().into_inner();
                let mut last = Vec::new();
                tcp.read_to_end(&mut last).await.unwrap();
                tls.read_tls(&mut &*last).unwrap();
                assert!(tls.process_new_packets().unwrap().peer_has_closed(), "its good-bye");
                // In the clear nobody is let in.
                assert!(
                    tokio_tungstenite::connect_async(url(&engine, "/v1/media/twilio/ctx-1")).await.is_err()
                );
            }
        },
    );
}
