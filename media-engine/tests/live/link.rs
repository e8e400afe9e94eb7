//! The core's link on the real kernel: calls hear their own agent only, and what happens when the link is cut.

use std::collections::HashMap;
use std::time::Duration;

use tandem_api::engine::v1 as proto;
use tandem_stream::link::{Message, Server, append};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{close, on_both, open, start, wait_for};
use crate::phone::Phone;

const TOKEN: &str = "swordfish";

/// The agent's end of one link, driven by the test.
struct Agent {
    stream: TcpStream,
    server: Server,
    /// Calls by the id of their start frame.
    calls: HashMap<String, u32>,
    /// What came, by call: audio as its octets, the rest in words.
    heard: HashMap<u32, Vec<u8>>,
    words: HashMap<u32, Vec<String>>,
}

impl Agent {
    async fn accept(listener: &TcpListener) -> Self {
        let stream =
            tokio::time::timeout(Duration::from_secs(5), listener.accept()).await.unwrap().unwrap().0;
        stream.set_nodelay(true).unwrap();
        let server = Server::new(TOKEN.as_bytes().to_vec());
        Self { stream, server, calls: HashMap::new(), heard: HashMap::new(), words: HashMap::new() }
    }

    /// Reads once, and accepts what is opened.
    async fn turn(&mut self) {
        let mut octets = vec![0; 65_536];
        let len = tokio::time::timeout(Duration::from_secs(5), self.stream.read(&mut octets))
            .await
            .expect("something comes")
            .unwrap();
        let Self { stream, server, calls, heard, words } = self;
        let mut out = Vec::new();
        let mut answers = Vec::new();
        server
            .handle_bytes(&octets[..len], &mut out, |call, message| match message {
                Message::Open { start } => {
                    let id = start.split("\"callId\":\"").nth(1).unwrap().split('"').next().unwrap();
                    calls.insert(id.to_owned(), call);
                    append(&mut answers, call, &Message::Accepted);
                }
                Message::Audio(audio) => {
                    let octets = audio.len() as u32;
                    append(&mut answers, call, &Message::Credit { octets });
                    heard.entry(call).or_default().extend_from_slice(audio);
                }
                message => words.entry(call).or_default().push(format!("{message:?}")),
            })
            .unwrap();
        out.extend_from_slice(&answers);
        stream.write_all(&out).await.unwrap();
    }

    async fn until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        while !done(self) {
            self.turn().await;
        }
    }

    async fn says(&mut self, id: &str, message: &Message<'_>) {
        let mut out = Vec::new();
        append(&mut out, self.calls[id], message);
        self.stream.write_all(&out).await.unwrap();
    }

    fn word(&self, id: &str, part: &str) -> Option<String> {
        self.words.get(self.calls.get(id)?)?.iter().find(|word| word.contains(part)).cloned()
    }
}

fn link(listener: &TcpListener, token: &str) -> proto::Agent {
    let agent = proto::LinkAgent {
        address: listener.local_addr().unwrap().to_string(),
        token: token.into(),
        connect_timeout_ms: 2_000,
        ..Default::default()
    };
    proto::Agent { target: Some(proto::agent::Target::Link(agent)), ..Default::default() }
}

fn failed(event: &proto::event::Event) -> Option<String> {
    match event {
        proto::event::Event::AgentFailed(failed) => Some(failed.reason.clone()),
        _ => None,
    }
}

fn connected(event: &proto::event::Event) -> Option<()> {
    matches!(event, proto::event::Event::AgentConnected(_)).then_some(())
}

#[test]
fn two_calls_over_one_link_hear_and_are_heard_by_their_own_agent_only() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut ports = Vec::new();
            let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
            let phones = [Phone::new(), Phone::new()];
            for (id, phone) in ["a", "b"].iter().zip(&phones) {
                let opened = client.open_session(open(id, phone, link(&listener, TOKEN))).await.unwrap();
                ports.push(opened.into_inner().local_port as u16);
            }
            let mut agent = Agent::accept(&listener).await;
            agent.until(|agent| agent.calls.len() == 2).await;
            wait_for(&mut events, connected).await;
            wait_for(&mut events, connected).await;
            for id in ["a", "b"] {
                start(&mut client, id).await;
            }
            // Sounds that PCMU keeps apart: 0x10 is loud and negative, 0x90 its mirror.
            let loud = [i16::MAX.to_le_bytes(), i16::MIN.to_le_bytes()].map(|sample| sample.repeat(16 * 400));
            agent.says("a", &Message::Audio(&loud[0])).await;
            agent.says("b", &Message::Audio(&loud[1])).await;
            let [a, b] = phones;
            let talking = [(a, ports[0], 0x10), (b, ports[1], 0x90)].map(|(phone, port, code)| {
                tokio::task::spawn_blocking(move || phone.talk_with(port, 40, code))
            });
            let of = |agent: &Agent, id: &str| {
                agent.heard.get(&agent.calls[id]).map_or(&[][..], Vec::as_slice).to_vec()
            };
            agent.until(|agent| of(agent, "a").len() > 20_000 && of(agent, "b").len() > 20_000).await;
            let samples = |octets: &[u8]| -> Vec<i16> {
                octets.as_chunks::<2>().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect()
            };
            // After the resampler has settled.
            assert!(samples(&of(&agent, "a"))[400..].iter().all(|sample| *sample < -1_000));
            assert!(samples(&of(&agent, "b"))[400..].iter().all(|sample| *sample > 1_000));
            for (talk, (own, other)) in talking.into_iter().zip([(0x80, 0x00), (0x00, 0x80)]) {
                let heard = talk.await.unwrap();
                let first: Vec<u8> = heard.iter().map(|packet| packet.payload[80]).collect();
                assert!(first.contains(&own) && !first.contains(&other), "{first:x?}");
            }
            for id in ["a", "b"] {
                close(&mut client, id).await;
                agent.until(|agent| agent.word(id, "Close").is_some()).await;
            }
        },
    );
}

#[test]
fn a_clear_on_the_link_silences_the_next_packet_and_says_what_was_heard() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let phone = Phone::new();
            client.open_session(open("a", &phone, link(&listener, TOKEN))).await.unwrap();
            let mut agent = Agent::accept(&listener).await;
            agent.until(|agent| !agent.calls.is_empty()).await;
            start(&mut client, "a").await;
            agent.says("a", &Message::Audio(&i16::MAX.to_le_bytes().repeat(16_000))).await;
            let is_loud = |payload: &[u8]| payload.iter().any(|octet| *octet < 0xF0);
            let mut loud = 0;
            while loud < 10 {
                loud += u64::from(is_loud(&phone.receive().payload));
            }
            agent.says("a", &Message::Clear { heard_ms: 0 }).await;
            agent.until(|agent| agent.word("a", "Clear").is_some()).await;
            let cleared = agent.word("a", "Clear").unwrap();
            let heard_ms: u64 = cleared.trim_end_matches(" }").rsplit(' ').next().unwrap().parse().unwrap();
            // Every packet that left before the clear is in the phone's socket by now or was counted above.
            while loud * 20 < heard_ms {
                assert!(is_loud(&phone.receive().payload), "{loud} loud packets, {cleared}");
                loud += 1;
            }
            assert_eq!(loud * 20, heard_ms);
            // One packet rings out in the filter at most.
            phone.receive();
            assert!(!is_loud(&phone.receive().payload));
            close(&mut client, "a").await;
        },
    );
}

#[test]
fn a_link_that_is_cut_fails_its_calls_with_a_reason_and_is_dialled_again() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let phone = Phone::new();
            let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
            for id in ["a", "b"] {
                client.open_session(open(id, &phone, link(&listener, TOKEN))).await.unwrap();
            }
            let mut agent = Agent::accept(&listener).await;
            agent.until(|agent| agent.calls.len() == 2).await;
            wait_for(&mut events, connected).await;
            wait_for(&mut events, connected).await;
            start(&mut client, "a").await;
            drop(agent);
            for _ in 0..2 {
                let reason = wait_for(&mut events, failed).await;
                assert!(reason.starts_with("agent closed the link"), "{reason}");
            }
            phone.receive(); // the call itself goes on until the control plane ends it
            let mut again = Agent::accept(&listener).await;
            client.open_session(open("c", &phone, link(&listener, TOKEN))).await.unwrap();
            again.until(|agent| agent.calls.contains_key("c")).await;
            wait_for(&mut events, connected).await;
            for id in ["a", "b", "c"] {
                close(&mut client, id).await;
            }
        },
    );
}

#[test]
fn a_link_that_is_refused_says_why_and_never_shows_its_token() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let phone = Phone::new();
            let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
            client.open_session(open("a", &phone, link(&listener, "sword-of-another"))).await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut octets, mut out) = ([0; 1_024], Vec::new());
            let len = stream.read(&mut octets).await.unwrap();
            let mut server = Server::new(TOKEN.as_bytes().to_vec());
            server.handle_bytes(&octets[..len], &mut out, |_, _| {}).unwrap_err();
            stream.write_all(&out).await.unwrap();
            let reason = wait_for(&mut events, failed).await;
            assert!(reason.contains("the token is wrong") && !reason.contains("sword"), "{reason}");
            close(&mut client, "a").await;
        },
    );
}
