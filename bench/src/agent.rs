//! The agent of `calls --agent`: it says back what it hears, or only the bursts in it, over the built-in agent's link or a WebSocket a call.
//!
//! It stands in for the voice agent (`--agent link`, on the talker's port) or for somebody's own (`--agent ws`, where the
//! demo's `pcm` assistant looks for it), and costs as little as it can: one thread on the generator's core, sound is
//! returned as it lies in the buffer. What the generator's process costs is in the report as ever, this included.
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use tandem_stream::link::credit::{CALLER_WINDOW, Granter};
use tandem_stream::link::{self, Server};
use tandem_stream::websocket::{FrameReader, Message, Opcode, Role, UpgradeRequest, append_frame};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::calls::AgentPlan;
use crate::clock::{Mono, WallToMono};
use crate::course::{self, Course, Ear};
use crate::host;

/// Octets read at a time from a link: some milliseconds of a thousand calls.
const LINK_READ_OCTETS: usize = 128 * 1_024;

/// Octets read at a time from a WebSocket of one call.
const WS_READ_OCTETS: usize = 4 * 1_024;

/// Longest upgrade request that is waited for.
const REQUEST_MAX: usize = 16 * 1_024;

/// What the agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Says {
    /// All that it hears.
    All,
    /// Bursts, out of silence.
    Bursts,
}

/// What the agent is reached by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AgentKind {
    /// One connection an engine core, as the built-in voice agent.
    Link,
    /// A WebSocket a call, in the pcm dialect.
    Ws,
}

impl AgentKind {
    /// Where the demo looks for it.
    pub fn demo_address(self) -> SocketAddr {
        let port = match self {
            Self::Link => 8_767,
            Self::Ws => 8_766,
        };
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// The demo assistant that it is the agent of.
    pub fn demo_target(self) -> &'static str {
        match self {
            Self::Link => "sip:demo:demo-key@127.0.0.1:4573",
            Self::Ws => "sip:pcm:demo-key@127.0.0.1:4573",
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    frames: AtomicU64,
    connections: AtomicU64,
    broken: AtomicBool,
}

/// What all connections share.
#[derive(Debug)]
struct Desk {
    says: Says,
    course: Arc<Course>,
    counters: Arc<Counters>,
}

/// One call at the agent.
struct Hearing {
    slot: Option<usize>,
    ear: Ear,
    granter: Granter,
}

impl Hearing {
    fn new(start: &str) -> Self {
        Self { slot: course::slot_in(start), ear: Ear::default(), granter: Granter::new(CALLER_WINDOW) }
    }

    /// Takes a frame that has come at this instant; `true`: it is said back.
    fn hear(&mut self, frame: &[u8], at: Mono, desk: &Desk) -> bool {
        desk.counters.frames.fetch_add(1, Ordering::Relaxed);
        let (begins, burst) = self.ear.hear(frame);
        if begins && let Some(slot) = self.slot {
            desk.course.heard(slot, at);
            desk.course.returned(slot, Mono::now());
        }
        desk.says == Says::All || burst
    }
}

/// A connection and the kernel's stamps of what comes by it.
struct Stamped {
    stream: TcpStream,
    clock: WallToMono,
}

impl Stamped {
    /// Octets read, 0 at the end, and when the last of them arrived.
    async fn read(&mut self, octets: &mut [u8]) -> std::io::Result<(usize, Mono)> {
        let fd = self.stream.as_raw_fd();
        let (len, stamp) =
            self.stream.async_io(Interest::READABLE, || host::receive_stamped(fd, octets)).await?;
        self.clock.refresh();
        Ok((len, stamp.map_or_else(Mono::now, |stamp| self.clock.mono(stamp))))
    }
}

/// A running agent; dropped, it ends.
#[derive(Debug)]
pub struct AgentPeer {
    address: SocketAddr,
    counters: Arc<Counters>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl AgentPeer {
    /// Starts one on the calling thread's core.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn start(plan: AgentPlan, course: Arc<Course>) -> anyhow::Result<Self> {
        let AgentPlan { kind, listen, says } = plan;
        let listener = std::net::TcpListener::bind(listen).with_context(|| {
            format!("cannot listen on {listen} for agents' connections (is the voice agent running?)")
        })?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let counters = Arc::new(Counters::default());
        let desk = Desk { says, course, counters: Arc::clone(&counters) };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("agent".into()).spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = accept(kind, listener, Arc::new(desk)) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, counters, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Calls that came, frames of sound that were returned, connections that were made.
    pub fn counters(&self) -> (u64, u64, u64) {
        let Counters { calls, frames, connections, .. } = &*self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(calls), read(frames), read(connections))
    }

    /// A connection did not keep the protocol.
    pub fn is_broken(&self) -> bool {
        self.counters.broken.load(Ordering::Relaxed)
    }
}

impl Drop for AgentPeer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // One that has panicked has said so.
            let _ = thread.join();
        }
    }
}

async fn accept(kind: AgentKind, listener: TcpListener, desk: Arc<Desk>) {
    while let Ok((stream, _)) = listener.accept().await {
        // Without it small frames wait for acknowledgements.
        let _ = stream.set_nodelay(true);
        // Without stamps the agent's own slowness counts.
        let _ = host::stamp_arrivals(stream.as_raw_fd());
        let stream = Stamped { stream, clock: WallToMono::new() };
        desk.counters.connections.fetch_add(1, Ordering::Relaxed);
        let desk = Arc::clone(&desk);
        tokio::spawn(async move {
            let sound = match kind {
                AgentKind::Link => serve_link(stream, &desk).await,
                AgentKind::Ws => serve_websocket(stream, &desk).await,
            };
            if sound.is_none() {
                desk.counters.broken.store(true, Ordering::Relaxed);
            }
        });
    }
}

/// `None`: the protocol was broken.
async fn serve_link(mut stream: Stamped, desk: &Desk) -> Option<()> {
    let mut server = Server::new(Vec::new());
    let mut calls: HashMap<u32, Hearing> = HashMap::new();
    let mut octets = vec![0; LINK_READ_OCTETS];
    let (mut own, mut out) = (Vec::new(), Vec::with_capacity(2 * LINK_READ_OCTETS));
    loop {
        let (len, at) = match stream.read(&mut octets).await {
            Ok((0, _)) | Err(_) => return Some(()),
            Ok(read) => read,
        };
        let outcome = server.handle_bytes(&octets[..len], &mut own, |call, message| match message {
            link::Message::Open { start } => {
                desk.counters.calls.fetch_add(1, Ordering::Relaxed);
                calls.insert(call, Hearing::new(start));
                link::append(&mut out, call, &link::Message::Accepted);
            }
            link::Message::Audio(audio) => {
                let Some(hearing) = calls.get_mut(&call) else { return };
                if hearing.hear(audio, at, desk) {
                    link::append(&mut out, call, &message);
                }
                hearing.granter.receive(audio.len());
                if let Some(octets) = hearing.granter.grant(0) {
                    link::append(&mut out, call, &link::Message::Credit { octets });
                }
            }
            link::Message::Close { .. } => drop(calls.remove(&call)),
            _ => {}
        });
        for buffer in [&mut own, &mut out] {
            if !buffer.is_empty() && stream.stream.write_all(buffer).await.is_err() {
                return Some(());
            }
            buffer.clear();
        }
        outcome.ok()?;
    }
}

async fn serve_websocket(mut stream: Stamped, desk: &Desk) -> Option<()> {
    let mut head = Vec::new();
    let mut octets = vec![0; WS_READ_OCTETS];
    let mut out = Vec::with_capacity(WS_READ_OCTETS);
    let rest = loop {
        match stream.read(&mut octets).await {
            Ok((0, _)) | Err(_) => return Some(()),
            Ok((len, _)) => head.extend_from_slice(&octets[..len]),
        }
        if let Some((request, len)) = UpgradeRequest::parse(&head).ok()? {
            request.write_response(&mut out);
            break head.split_off(len);
        }
        if head.len() > REQUEST_MAX {
            return None;
        }
    };
    desk.counters.calls.fetch_add(1, Ordering::Relaxed);
    let mut hearing = None;
    let mut at = Mono::now();
    let mut reader = FrameReader::new(Role::Server);
    let mut piece = rest;
    loop {
        let mut left = &piece[..];
        while !left.is_empty() {
            let taken = reader.push(left);
            left = &left[taken..];
            loop {
                match reader.poll_message() {
                    Ok(None) => break,
                    Ok(Some(Message::Binary(sound))) => {
                        let hearing = hearing.get_or_insert_with(|| Hearing::new(""));
                        if hearing.hear(sound, at, desk) {
                            append_frame(&mut out, Opcode::Binary, None, sound).ok()?;
                        }
                    }
                    Ok(Some(Message::Ping(payload))) => {
                        append_frame(&mut out, Opcode::Pong, None, payload).ok()?;
                    }
                    Ok(Some(Message::Close { .. })) => return Some(()),
                    Ok(Some(Message::Text(text))) => {
                        hearing.get_or_insert_with(|| Hearing::new(text));
                    }
                    Ok(Some(Message::Pong(_))) => {}
                    Err(_) => return None,
                }
            }
        }
        if !out.is_empty() && stream.stream.write_all(&out).await.is_err() {
            return Some(());
        }
        out.clear();
        piece.resize(WS_READ_OCTETS, 0);
        match stream.read(&mut piece).await {
            Ok((0, _)) | Err(_) => return Some(()),
            Ok((len, came)) => {
                piece.truncate(len);
                at = came;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::stream::Window;

    fn started(says: Says, course: &Arc<Course>) -> AgentPeer {
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        let plan = AgentPlan { kind: AgentKind::Link, listen, says };
        AgentPeer::start(plan, Arc::clone(course)).unwrap()
    }

    #[test]
    fn a_call_on_the_link_hears_itself_and_is_granted_credit() {
        let peer = started(Says::All, &Arc::new(Course::new(1)));
        let mut stream = std::net::TcpStream::connect(peer.address()).unwrap();
        let mut wire = link::PREAMBLE.to_vec();
        link::append(&mut wire, 0, &link::Message::Hello { version: link::VERSION, token: b"" });
        link::append(&mut wire, 7, &link::Message::Open { start: "{}" });
        for _ in 0..20 {
            link::append(&mut wire, 7, &link::Message::Audio(&[3; 640]));
        }
        stream.write_all(&wire).unwrap();
        let (mut decoder, mut octets) = (link::Decoder::default(), [0; 4_096]);
        let (mut heard, mut granted, mut accepted) = (0, 0, false);
        while heard < 20 {
            let len = stream.read(&mut octets).unwrap();
            assert!(len > 0, "the agent goes on");
            decoder
                .handle_bytes(&octets[..len], |call, message| {
                    match message {
                        link::Message::Accepted => accepted = call == 7,
                        link::Message::Audio(audio) => heard += usize::from(audio == [3; 640] && call == 7),
                        link::Message::Credit { octets } => granted += octets,
                        _ => {}
                    }
                    Ok(())
                })
                .unwrap();
        }
        assert!(accepted && granted >= CALLER_WINDOW / 4);
        assert_eq!(peer.counters(), (1, 20, 1));
        assert!(!peer.is_broken());
    }

    #[test]
    fn an_agent_that_says_bursts_is_silent_between_them_and_times_them() {
        let course = Arc::new(Course::new(8));
        let peer = started(Says::Bursts, &course);
        let mut stream = std::net::TcpStream::connect(peer.address()).unwrap();
        let mut wire = link::PREAMBLE.to_vec();
        link::append(&mut wire, 0, &link::Message::Hello { version: link::VERSION, token: b"" });
        link::append(&mut wire, 7, &link::Message::Open { start: r#"{"from":"bench-5"}"# });
        let loud = 8_000_i16.to_le_bytes().repeat(320);
        for n in 0..20 {
            let frame: &[u8] = if n == 10 { &loud } else { &[0; 640] };
            link::append(&mut wire, 7, &link::Message::Audio(frame));
        }
        let begin = Mono::now();
        course.left(5, begin);
        stream.write_all(&wire).unwrap();
        let (mut decoder, mut octets, mut heard) = (link::Decoder::default(), [0; 4_096], Vec::new());
        while heard.len() < 3 {
            let len = stream.read(&mut octets).unwrap();
            assert!(len > 0, "the agent goes on");
            decoder
                .handle_bytes(&octets[..len], |_, message| {
                    if let link::Message::Audio(audio) = message {
                        heard.push(audio == loud);
                    }
                    Ok(())
                })
                .unwrap();
        }
        course.answered(5, Mono::now());
        assert_eq!(heard, [true, false, false]);
        let window = Window { begin, end: begin + 60_000_000_000 };
        let (hears, answers) = course.in_window(window);
        assert_eq!((hears.count(), answers.count()), (1, 1));
    }
}
