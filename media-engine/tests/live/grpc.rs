//! An agent that serves `tandem.agent.v1.Agent`: by tonic, and by Python's grpcio, so that our HTTP/2 is not its own judge.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tandem_api::agent::v1::agent_server::{Agent, AgentServer};
use tandem_api::agent::v1::{self as agent, FromAgent, ToAgent, from_agent, to_agent};
use tandem_api::engine::v1 as proto;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::{close, on_both, open, start, wait_for};
use crate::phone::Phone;
use crate::tls::House;

/// One call, as the agent has it.
struct Call {
    say: mpsc::Sender<Result<FromAgent, Status>>,
    hear: Streaming<ToAgent>,
    metadata: tonic::metadata::MetadataMap,
}

impl Call {
    async fn say(&self, what: from_agent::What) {
        self.say.send(Ok(FromAgent { what: Some(what) })).await.unwrap();
    }

    async fn next(&mut self) -> Option<to_agent::What> {
        let next = tokio::time::timeout(Duration::from_secs(5), self.hear.message());
        next.await.expect("a message comes").ok().flatten()?.what
    }

    /// The next message that is no audio.
    async fn word(&mut self) -> to_agent::What {
        loop {
            match self.next().await.expect("the stream goes on") {
                to_agent::What::Audio(_) => {}
                // What the detector makes of the phone's packets is not asked here.
                to_agent::What::Speech(_) => {}
                what => return what,
            }
        }
    }
}

struct Bot(mpsc::Sender<Call>);

#[tonic::async_trait]
impl Agent for Bot {
    type CallStream = ReceiverStream<Result<FromAgent, Status>>;

    async fn call(&self, request: Request<Streaming<ToAgent>>) -> Result<Response<Self::CallStream>, Status> {
        if request.metadata().get("x-team").is_some_and(|team| team == "nobody") {
            return Err(Status::resource_exhausted("no room: all lines are busy"));
        }
        let (say, stream) = mpsc::channel(64);
        let metadata = request.metadata().clone();
        let _ = self.0.send(Call { say, hear: request.into_inner(), metadata }).await;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// A server on a runtime of its own, which can die.
fn serve() -> (SocketAddr, mpsc::Receiver<Call>, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (calls, taken) = mpsc::channel(4);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        let listener = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
        let server = tonic::transport::Server::builder().add_service(AgentServer::new(Bot(calls)));
        server.serve_with_incoming(listener).await.unwrap();
    });
    (address, taken, runtime)
}

fn grpc(address: SocketAddr, team: &str) -> proto::Agent {
    let agent = proto::GrpcAgent {
        url: format!("grpc://{address}"),
        headers: [("X-Team".to_owned(), team.to_owned())].into(),
        custom: [("language".to_owned(), "en".to_owned())].into(),
        connect_timeout_ms: 2_000,
    };
    proto::Agent { target: Some(proto::agent::Target::Grpc(agent)), speech: None }
}

#[test]
fn a_grpc_agent_accepts_hears_is_heard_clears_and_hangs_up() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let (address, mut calls, runtime) = serve();
            let phone = Phone::new();
            let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
            let agent = grpc(address, "support");
            let opened = client.open_session(open("a", &phone, agent)).await.unwrap().into_inner();
            assert!(!opened.agent_ready);
            let mut call = calls.recv().await.unwrap();
            assert_eq!(call.metadata.get("x-team").unwrap(), "support");
            let to_agent::What::Start(told) = call.word().await else { panic!("start is first") };
            assert_eq!((told.call_id.as_str(), told.from.as_str(), told.sample_rate), ("a", "+1", 16_000));
            assert_eq!(told.custom["language"], "en");
            call.say(from_agent::What::Accepted(agent::Accepted {})).await;
            wait_for(&mut events, |event| {
                matches!(event, proto::event::Event::AgentConnected(_)).then_some(())
            })
            .await;
            start(&mut client, "a").await;
            let port = opened.local_port as u16;
            phone.press(port, 5);
            let talking = tokio::task::spawn_blocking(move || phone.talk_with(port, 150, 0x10));
            let (mut octets, mut keys) = (0, 0);
            while octets < 32_000 || keys < 1 {
                match call.next().await.unwrap() {
                    to_agent::What::Audio(audio) => {
                        assert_eq!(audio.len(), 640);
                        octets += audio.len();
                    }
                    to_agent::What::Dtmf(dtmf) => {
                        assert_eq!(dtmf.digit, "5");
                        keys += 1;
                    }
                    to_agent::What::Speech(_) => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
            // Ten seconds at once, of which most is cleared.
            call.say(from_agent::What::Audio(i16::MAX.to_le_bytes().repeat(160_000))).await;
            call.say(from_agent::What::Mark(agent::Mark { name: "never".into() })).await;
            call.say(from_agent::What::Clear(agent::Clear {})).await;
            let to_agent::What::Cleared(cleared) = call.word().await else { panic!("cleared") };
            // Half a second in small pieces, a mark, and good-bye.
            for _ in 0..50 {
                call.say(from_agent::What::Audio(i16::MAX.to_le_bytes().repeat(160))).await;
            }
            call.say(from_agent::What::Mark(agent::Mark { name: "end".into() })).await;
            call.say(from_agent::What::Hangup(agent::Hangup { now: false })).await;
            let to_agent::What::Mark(mark) = call.word().await else { panic!("mark") };
            assert_eq!((mark.name.as_str(), mark.heard_ms), ("end", cleared.heard_ms + 500));
            let after = wait_for(&mut events, |event| match event {
                proto::event::Event::AgentHangup(hangup) => Some(hangup.after.clone()),
                _ => None,
            });
            assert_eq!(after.await, "drain");
            let heard = talking.await.unwrap();
            let loud = heard.iter().filter(|packet| packet.payload == [0x80; 160]).count() as u64;
            // The resampler rounds the edges off.
            assert!(loud >= 22, "{loud} packets of 25");
            let stats = close(&mut client, "a").await;
            assert_eq!(stats.heard_ms, cleared.heard_ms + 500);
            assert!(stats.agent_frames_in == 51 && stats.agent_frames_out >= 50, "{stats:?}");
            let stop = loop {
                if let to_agent::What::Stop(stop) = call.word().await {
                    break stop;
                }
            };
            assert_eq!(stop.reason, "caller");
            assert!(call.next().await.is_none(), "the stream ends in order");
            runtime.shutdown_background();
        },
    );
}

#[test]
fn a_grpc_agent_that_refuses_or_dies_says_why() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let (address, mut calls, runtime) = serve();
            let phone = Phone::new();
            let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
            let failure = |event: &proto::event::Event| match event {
                proto::event::Event::AgentFailed(failed) => Some(failed.reason.clone()),
                _ => None,
            };
            client.open_session(open("refused", &phone, grpc(address, "nobody"))).await.unwrap();
            let reason = wait_for(&mut events, failure).await;
            assert_eq!(reason, "agent refused the call: no room: all lines are busy");
            close(&mut client, "refused").await;

            client.open_session(open("status", &phone, grpc(address, "support"))).await.unwrap();
            let call = calls.recv().await.unwrap();
            call.say(from_agent::What::Accepted(agent::Accepted {})).await;
            call.say.send(Err(Status::internal("out of memory"))).await.unwrap();
            let reason = wait_for(&mut events, failure).await;
            assert!(reason.contains("out of memory (status 13)"), "{reason}");
            close(&mut client, "status").await;

            client.open_session(open("dies", &phone, grpc(address, "support"))).await.unwrap();
            let call = calls.recv().await.unwrap();
            call.say(from_agent::What::Accepted(agent::Accepted {})).await;
            wait_for(&mut events, |event| {
                matches!(event, proto::event::Event::AgentConnected(_)).then_some(())
            })
            .await;
            runtime.shutdown_background();
            drop(call);
            let reason = wait_for(&mut events, failure).await;
            assert!(reason.contains("closed the connection") || reason.contains("stream"), "{reason}");
            close(&mut client, "dies").await;
        },
    );
}

#[test]
fn a_grpc_agent_behind_tls_is_asked_for_h2_and_is_heard() {
    let house = House::speaking("localhost", &[b"h2"]);
    on_both(
        |config| config.agent_ca = Some(house.ca.clone()),
        |engine, mut client| {
            let acceptor = house.acceptor.clone();
            async move {
                let _engine = engine;
                let (address, mut calls, runtime) = serve();
                let door = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let port = door.local_addr().unwrap().port();
                // TLS ends at a door before the agent, as it often does.
                let behind = tokio::spawn(async move {
                    let mut outside = acceptor.accept(door.accept().await.unwrap().0).await.unwrap();
                    assert_eq!(outside.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                    let mut inside = tokio::net::TcpStream::connect(address).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                });
                let phone = Phone::new();
                let url = format!("grpcs://localhost:{port}");
                let target = proto::agent::Target::Grpc(proto::GrpcAgent { url, ..Default::default() });
                let agent = proto::Agent { target: Some(target), speech: None };
                let opened = client.open_session(open("a", &phone, agent)).await.unwrap().into_inner();
                let mut call = calls.recv().await.unwrap();
                call.say(from_agent::What::Accepted(agent::Accepted {})).await;
                assert!(matches!(call.word().await, to_agent::What::Start(_)));
                start(&mut client, "a").await;
                call.say(from_agent::What::Audio(i16::MAX.to_le_bytes().repeat(16_000))).await;
                let port = opened.local_port as u16;
                let heard =
                    tokio::task::spawn_blocking(move || phone.talk_with(port, 80, 0x10)).await.unwrap();
                let loud = heard.iter().filter(|packet| packet.payload[80] == 0x80).count();
                assert!(loud >= 45, "{loud} packets of 50");
                let stats = close(&mut client, "a").await;
                assert!(stats.agent_frames_out >= 50, "{stats:?}");
                while call.next().await.is_some() {}
                runtime.shutdown_background();
                behind.abort();
            }
        },
    );
}

/// Ends with the test.
struct Python(Child);

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_example_in_python_echoes_and_hangs_up_at_a_nine() {
    // `make test` has put it there.
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/peers/grpc/.venv/bin/python");
    let python = if venv.exists() { venv } else { "python3".into() };
    let has_grpc =
        Command::new(&python).args(["-c", "import grpc, grpc_tools"]).stderr(Stdio::null()).status();
    if !has_grpc.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no grpcio and grpcio-tools for Python (scripts/setup.sh test)");
        return;
    }
    on_both(
        |_| {},
        |engine, mut client| {
            let python = python.clone();
            async move {
                let _engine = engine;
                let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/grpc_agent.py");
                let mut bot = Command::new(&python);
                bot.arg(example).arg("127.0.0.1:0").stdout(Stdio::piped());
                let mut bot = Python(bot.spawn().unwrap());
                let mut line = String::new();
                let mut out = std::io::BufReader::new(bot.0.stdout.take().unwrap());
                std::io::BufRead::read_line(&mut out, &mut line).unwrap();
                let address: SocketAddr = line.trim().rsplit("grpc://").next().unwrap().parse().unwrap();

                let phone = Phone::new();
                let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
                let agent = grpc(address, "support");
                let opened = client.open_session(open("a", &phone, agent)).await.unwrap().into_inner();
                wait_for(&mut events, |event| {
                    matches!(event, proto::event::Event::AgentConnected(_)).then_some(())
                })
                .await;
                start(&mut client, "a").await;
                let port = opened.local_port as u16;
                let (phone, heard) = tokio::task::spawn_blocking(move || {
                    let heard = phone.talk_with(port, 100, 0x10);
                    (phone, heard)
                })
                .await
                .unwrap();
                let echoed = heard
                    .iter()
                    .filter(|packet| packet.payload.iter().all(|code| code.abs_diff(0x10) <= 2))
                    .count();
                assert!(echoed >= 50, "{echoed} of 100 came back");
                phone.press_after(port, 9, 100);
                wait_for(&mut events, |event| {
                    matches!(event, proto::event::Event::AgentHangup(_)).then_some(())
                })
                .await;
                close(&mut client, "a").await;
            }
        },
    );
}
