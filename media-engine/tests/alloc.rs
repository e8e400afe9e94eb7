//! The packet path allocates nothing and takes no lock.
//!
//! A whole engine runs here, on each driver, with calls to the echo, to WebSocket agents of both dialects, to an agent on
//! the core's link and to an AudioSocket server, in G.711, G.722 and Opus; their RTCP is multiplexed or has ports of its own
//! and is answered. The
//! global allocator of this program counts what threads called `media-…` (the workers) ask of it: after a warm-up, in
//! which queues reach their size, the count must stand still while thousands of packets pass through ring, session
//! and legs. Locks: the sources that run on a worker are read for the words that would be one.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use media_engine::Engine;
use media_engine::config::{Config, PortRange};
use media_engine::ring::{Choice, DriverKind, decide};
use tandem_api::engine::v1 as proto;
use tandem_api::engine::v1::engine_service_client::EngineServiceClient;
use tandem_stream::link;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tonic::transport::Channel;

/// Counts what workers ask for.
struct Counting;

static WORKERS_ASKED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread is a worker; asked of the kernel once.
    static IS_WORKER: Cell<Option<bool>> = const { Cell::new(None) };
}

fn count() {
    let Ok(is_worker) = IS_WORKER.try_with(|cell| {
        cell.get().unwrap_or_else(|| {
            let mut name = [0u8; 16];
            // SAFETY: PR_GET_NAME writes at most 16 octets into the buffer it is given.
            unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
            let is_worker = name.starts_with(b"media-");
            // A thread is named before it runs anything of ours, but allocates before that: only a name that is set is kept.
            if is_worker {
                cell.set(Some(true));
            }
            is_worker
        })
    }) else {
        return;
    };
    if is_worker {
        WORKERS_ASKED.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is handed to the system's allocator as it came; counting touches no memory of the allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CALLS: usize = 20;

/// What a call talks to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Peer {
    Echo,
    Pcm,
    Twilio,
    Link,
    AudioSocket,
}

const PEERS: [Peer; 5] = [Peer::Echo, Peer::Pcm, Peer::Twilio, Peer::Link, Peer::AudioSocket];

/// The voice agent's end of a link: it accepts every call and returns what it hears, and grants what it took.
async fn talk_back_on_link(listener: tokio::net::TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut server = link::Server::new(b"secret".to_vec());
            let (mut octets, mut own, mut out) = (vec![0; 65_536], Vec::new(), Vec::new());
            while let Ok(len @ 1..) = stream.read(&mut octets).await {
                let read = server.handle_bytes(&octets[..len], &mut own, |call, message| match message {
                    link::Message::Open { .. } => link::append(&mut out, call, &link::Message::Accepted),
                    link::Message::Audio(audio) => {
                        link::append(&mut out, call, &message);
                        let octets = audio.len() as u32;
                        link::append(&mut out, call, &link::Message::Credit { octets });
                    }
                    _ => {}
                });
                read.unwrap();
                own.append(&mut out);
                if stream.write_all(&own).await.is_err() {
                    break;
                }
                own.clear();
            }
        });
    }
}

/// An AudioSocket server returns every octet of sound that it gets: the frames are the same both ways.
async fn talk_back_on_audiosocket(listener: tokio::net::TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut id = [0; 19];
            stream.read_exact(&mut id).await.unwrap();
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        });
    }
}

/// An agent that answers each message of sound with as much sound, for as long as the engine wants it.
async fn talk_back(listener: tokio::net::TcpListener, dialect: proto::Dialect) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut stream = tokio_tungstenite::accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = stream.next().await {
                let answer = match (&message, dialect) {
                    (Message::Binary(sound), _) => Message::Binary(sound.clone()),
                    (Message::Text(text), proto::Dialect::Twilio) if text.contains("\"media\"") => {
                        let payload = "EBAQ".repeat(54);
                        Message::text(format!(
                            r#"{{"event":"media","streamSid":"x","media":{{"payload":"{}"}}}}"#,
                            &payload[..216]
                        ))
                    }
                    _ => continue,
                };
                if stream.send(answer).await.is_err() {
                    break;
                }
            }
        });
    }
}

async fn open(
    client: &mut EngineServiceClient<Channel>,
    id: String,
    port: u16,
    codec: proto::Codec,
    agent: proto::agent::Target,
) -> u16 {
    let request = proto::OpenSessionRequest {
        session_id: id.clone(),
        rtp: Some(proto::RtpParameters {
            remote_address: "127.0.0.1".into(),
            remote_port: u32::from(port),
            codec: codec.into(),
            payload_type: payload_type(codec).into(),
            rtcp: if port % 4 < 2 { proto::Rtcp::Mux } else { proto::Rtcp::Separate }.into(),
            // With RTCP on its own port the reports come back to the phone's only socket all the same.
            remote_rtcp_address: "127.0.0.1".into(),
            remote_rtcp_port: u32::from(port),
            ..Default::default()
        }),
        agent: Some(proto::Agent { target: Some(agent), ..Default::default() }),
        ..Default::default()
    };
    let opened = client.open_session(request).await.unwrap().into_inner();
    client.start_session(proto::StartSessionRequest { session_id: id, early: false }).await.unwrap();
    opened.local_port as u16
}

/// Codecs of the calls, in turn: one without memory, one with, and a library in C (whose own allocations this does not see;
/// libopus makes none after its states are made).
const CODECS: [proto::Codec; 4] =
    [proto::Codec::Pcmu, proto::Codec::G722, proto::Codec::Opus, proto::Codec::Pcma];

fn payload_type(codec: proto::Codec) -> u8 {
    match codec {
        proto::Codec::Pcma => 8,
        proto::Codec::G722 => 9,
        proto::Codec::Opus => 96,
        _ => 0,
    }
}

/// 20 ms in which nobody begins to speak: telling the agent of that is an event, not a packet, and may allocate.
fn steady(codec: proto::Codec) -> Vec<u8> {
    use tandem_audio::format::{Codec, SampleRate};
    let codec = match codec {
        proto::Codec::G722 => Codec::G722,
        proto::Codec::Opus => Codec::Opus,
        _ => return vec![0x55; 160],
    };
    let mut payload = vec![0; 1_500];
    let len =
        tandem_audio::transcode::Encoder::new(SampleRate::Hz16000, codec).encode_silence(320, &mut payload);
    payload.truncate(len);
    payload
}

/// Speaks on every call, 50 packets a second, and reads what comes back.
fn speak(
    phones: &[(UdpSocket, u16, proto::Codec)],
    sequence: &mut u16,
    lasting: Duration,
) -> (u64, u64, u64) {
    let (mut sent, mut received, mut reports) = (0, 0, 0);
    let began = Instant::now();
    let mut next = began;
    let mut buffer = [0u8; 512];
    while began.elapsed() < lasting {
        for (socket, port, codec) in phones {
            let mut packet = Vec::from([0x80, payload_type(*codec)]);
            packet.resize(12, 0);
            packet.extend(steady(*codec));
            packet[2..4].copy_from_slice(&sequence.to_be_bytes());
            packet[4..8].copy_from_slice(&(u32::from(*sequence) * 160).to_be_bytes());
            packet[8..12].copy_from_slice(&[1, 2, 3, 4]);
            socket.send_to(&packet, ("127.0.0.1", *port)).unwrap();
            sent += 1;
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                if !matches!(buffer[1], 200..=201) {
                    received += 1;
                    continue;
                }
                // A report: one with a block about its sender goes back to where it came from.
                reports += 1;
                let mut answer = [0u8; 32];
                answer[..8].copy_from_slice(&[0x81, 201, 0, 7, 1, 2, 3, 4]);
                answer[8..12].copy_from_slice(&buffer[4..8]);
                answer[24..28].copy_from_slice(&buffer[10..14]);
                assert!(len >= 28);
                socket.send_to(&answer, from).unwrap();
            }
        }
        *sequence = sequence.wrapping_add(1);
        next += Duration::from_millis(20);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    (sent, received, reports)
}

fn steady_state_allocates_nothing_on(kind: DriverKind) {
    let decision = decide(Choice::Only(kind));
    if decision.driver.is_none() {
        eprintln!("skipped on {kind}: {}", decision.reason);
        return;
    }
    let mut config = Config::for_tests(PortRange { min: 14_000, max: 14_999 });
    config.driver = Choice::Only(kind);
    let engine = Engine::start(config).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (phones, mut client) = runtime.block_on(async {
        let mut client =
            EngineServiceClient::connect(format!("http://{}", engine.grpc_address())).await.unwrap();
        let mut phones = Vec::new();
        for peer in PEERS {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let websocket = |dialect: proto::Dialect| {
                let url = format!("ws://{address}/");
                let dialect = dialect.into();
                proto::agent::Target::Websocket(proto::WebSocketAgent { url, dialect, ..Default::default() })
            };
            let target = match peer {
                Peer::Echo => proto::agent::Target::Echo(proto::EchoAgent {}),
                Peer::Pcm => websocket(proto::Dialect::Pcm),
                Peer::Twilio => websocket(proto::Dialect::Twilio),
                Peer::Link => proto::agent::Target::Link(proto::LinkAgent {
                    address: address.clone(),
                    token: "secret".into(),
                    ..Default::default()
                }),
                Peer::AudioSocket => proto::agent::Target::Audiosocket(proto::AudioSocketAgent {
                    address: address.clone(),
                    ..Default::default()
                }),
            };
            match peer {
                Peer::Echo => drop(listener),
                Peer::Pcm => drop(tokio::spawn(talk_back(listener, proto::Dialect::Pcm))),
                Peer::Twilio => drop(tokio::spawn(talk_back(listener, proto::Dialect::Twilio))),
                Peer::Link => drop(tokio::spawn(talk_back_on_link(listener))),
                Peer::AudioSocket => drop(tokio::spawn(talk_back_on_audiosocket(listener))),
            }
            for n in 0..CALLS / PEERS.len() {
                let phone = UdpSocket::bind("127.0.0.1:0").unwrap();
                phone.set_nonblocking(true).unwrap();
                let own = phone.local_addr().unwrap().port();
                let codec = CODECS[n % CODECS.len()];
                let port = open(&mut client, format!("{peer:?}-{n}"), own, codec, target.clone()).await;
                phones.push((phone, port, codec));
            }
        }
        (phones, client)
    });
    let mut sequence = 0;
    // Each session has reported once: the first report leaves within 3.1 s.
    speak(&phones, &mut sequence, Duration::from_millis(3_300));
    let asked = WORKERS_ASKED.load(Ordering::Relaxed);
    assert!(asked > 0, "workers are not seen at all: the test shows nothing");
    let (sent, received, reports) = speak(&phones, &mut sequence, Duration::from_secs(5));
    let asked = WORKERS_ASKED.load(Ordering::Relaxed) - asked;
    // Each kind of agent was really heard and really spoke.
    runtime.block_on(async {
        for peer in PEERS.into_iter().filter(|peer| *peer != Peer::Echo) {
            let session_id = format!("{peer:?}-0");
            let close = proto::CloseSessionRequest { session_id, reason: "caller".into() };
            let stats = client.close_session(close).await.unwrap().into_inner().stats.unwrap();
            assert!(stats.agent_frames_out > 150 && stats.agent_frames_in > 50, "{peer:?}: {stats:?}");
        }
    });
    assert!(sent > 1_500 && received > sent * 9 / 10, "{received} of {sent} came back");
    assert!(reports > 0, "no session reported while it was watched");
    assert_eq!(
        asked, 0,
        "allocations on the workers while {sent} packets went in and {received} came out on {kind}"
    );
}

#[test]
fn steady_state_allocates_nothing() {
    for kind in [DriverKind::IoUring, DriverKind::Epoll] {
        steady_state_allocates_nothing_on(kind);
    }
}

#[test]
fn sources_that_run_on_a_worker_have_no_lock() {
    fn read(path: &Path, found: &mut Vec<String>) {
        if path.is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                read(&entry.unwrap().path(), found);
            }
            return;
        }
        for (number, line) in std::fs::read_to_string(path).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if ["Mutex", "RwLock", "Condvar", "OnceLock", "LazyLock", ".lock("]
                .iter()
                .any(|word| code.contains(word))
            {
                found.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for part in
        ["worker.rs", "worker", "wheel.rs", "ports.rs", "mailbox.rs", "metrics.rs", "session", "leg", "ring"]
    {
        read(&source.join(part), &mut found);
    }
    assert!(found.is_empty(), "{found:#?}");
}
