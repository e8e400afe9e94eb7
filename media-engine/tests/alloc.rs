//! The packet path allocates nothing and takes no lock.
//!
//! A whole engine runs here, on each driver, with calls to the echo and to WebSocket agents of both dialects, in G.711, G.722 and Opus. The
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

const CALLS: usize = 12;

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
            ..Default::default()
        }),
        agent: Some(proto::Agent { target: Some(agent) }),
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
fn speak(phones: &[(UdpSocket, u16, proto::Codec)], sequence: &mut u16, lasting: Duration) -> (u64, u64) {
    let (mut sent, mut received) = (0, 0);
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
            while socket.recv(&mut buffer).is_ok() {
                received += 1;
            }
        }
        *sequence = sequence.wrapping_add(1);
        next += Duration::from_millis(20);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    (sent, received)
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
    let phones = runtime.block_on(async {
        let mut client =
            EngineServiceClient::connect(format!("http://{}", engine.grpc_address())).await.unwrap();
        let mut phones = Vec::new();
        for dialect in [proto::Dialect::Unspecified, proto::Dialect::Pcm, proto::Dialect::Twilio] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("ws://{}/", listener.local_addr().unwrap());
            tokio::spawn(talk_back(listener, dialect));
            for n in 0..CALLS / 3 {
                let phone = UdpSocket::bind("127.0.0.1:0").unwrap();
                phone.set_nonblocking(true).unwrap();
                let target = match dialect {
                    proto::Dialect::Unspecified => proto::agent::Target::Echo(proto::EchoAgent {}),
                    _ => proto::agent::Target::Websocket(proto::WebSocketAgent {
                        url: url.clone(),
                        dialect: dialect.into(),
                        ..Default::default()
                    }),
                };
                let own = phone.local_addr().unwrap().port();
                let codec = CODECS[n % CODECS.len()];
                let port = open(&mut client, format!("{dialect:?}-{n}"), own, codec, target).await;
                phones.push((phone, port, codec));
            }
        }
        phones
    });
    let mut sequence = 0;
    speak(&phones, &mut sequence, Duration::from_secs(2));
    let asked = WORKERS_ASKED.load(Ordering::Relaxed);
    assert!(asked > 0, "workers are not seen at all: the test shows nothing");
    let (sent, received) = speak(&phones, &mut sequence, Duration::from_secs(3));
    let asked = WORKERS_ASKED.load(Ordering::Relaxed) - asked;
    assert!(sent > 1_500 && received > sent * 9 / 10, "{received} of {sent} came back");
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
    for part in ["worker.rs", "wheel.rs", "ports.rs", "mailbox.rs", "metrics.rs", "session", "leg", "ring"] {
        read(&source.join(part), &mut found);
    }
    assert!(found.is_empty(), "{found:#?}");
}
