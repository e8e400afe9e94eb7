//! The agent's end of a link: one connection of an engine core, with a conversation for each call on it.
//!
//! ```text
//!   TCP ──▶ Server ──frames, by call──▶ Ear of a session          bounded; what does not fit is dropped and counted
//!   TCP ◀── writer ◀── one buffer ◀──── Mouth of a session        as far as the engine's credit for that call reaches
//! ```
//!
//! A call that does not listen loses its own audio and holds nobody up: the reader never waits for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tandem_stream::agent::{FromAgent, ToAgent};
use tandem_stream::link::credit::{AGENT_WINDOW, CALLER_WINDOW, Granter, Spender};
use tandem_stream::link::{BODY_MAX, Message, Server, append};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::outbox::{Frame, Outbox};
use crate::transport::Incoming;

/// Things that may wait for one session: the engine's window of audio, which is 50 frames, and events.
const WAITING_MAX: usize = 128;

/// Octets read at a time: some milliseconds of a thousand calls.
const READ_OCTETS: usize = 64 * 1024;

/// A connection on which nothing comes for so long is dead: the engine pings every 3 s.
const SILENT_MAX: Duration = Duration::from_secs(15);

/// Octets that may wait for a link: a hundred calls may each have said all that the engine takes at once ([`AGENT_WINDOW`]).
/// A link that holds more is not read at its other end, and is closed.
const OUT_MAX: usize = 100 * AGENT_WINDOW as usize;

/// How long the last words of a link may take to leave.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// How often a mouth without credit looks whether what it holds was cleared.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Whoever takes the calls of a link.
pub trait Reception: Send + Sync + 'static {
    /// A place in the house.
    type Place;
    /// Takes a place for one more conversation.
    ///
    /// # Errors
    /// Why there is none.
    fn place(&self) -> Result<Self::Place, &'static str>;
    /// Begins a conversation. Dropping both halves ends the call.
    fn receive(&self, place: Self::Place, ear: Ear, mouth: Mouth, sessions: &mut JoinSet<()>);
}

/// What all mouths write to.
#[derive(Debug, Default)]
struct Out {
    buffer: Mutex<Vec<u8>>,
    filled: Notify,
    is_over: AtomicBool,
    /// More than [`OUT_MAX`] would wait: the link is to be closed.
    overflowed: Notify,
}

impl Out {
    fn push(&self, call: u32, message: &Message<'_>) {
        self.fill(|buffer| append(buffer, call, message));
    }

    /// Adds to what waits, unless that is too much already.
    fn fill(&self, add: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = self.lock();
        if buffer.len() > OUT_MAX {
            return self.overflowed.notify_one();
        }
        add(&mut buffer);
        drop(buffer);
        self.filled.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // Octets are appended whole or the process is out of memory.
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's credit for one call.
#[derive(Debug)]
struct Credit {
    spender: Mutex<Spender>,
    granted: Notify,
}

impl Credit {
    fn spend(&self, octets: usize) -> bool {
        self.spender.lock().unwrap_or_else(PoisonError::into_inner).spend(octets)
    }

    fn grant(&self, octets: u32) {
        self.spender.lock().unwrap_or_else(PoisonError::into_inner).grant(octets);
        self.granted.notify_one();
    }
}

/// The hearing half of a call.
#[derive(Debug)]
pub struct Ear {
    call: u32,
    incoming: mpsc::Receiver<Incoming>,
    granter: Granter,
    out: Arc<Out>,
}

impl Ear {
    /// The next thing; `None`: the call is over. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Incoming> {
        let incoming = self.incoming.recv().await?;
        if let Incoming::Audio(audio) = &incoming {
            self.granter.receive(audio.len());
            if let Some(octets) = self.granter.grant(0) {
                self.out.push(self.call, &Message::Credit { octets });
            }
        }
        Some(incoming)
    }
}

/// The speaking half of a call. When it is dropped, the call is closed.
#[derive(Debug)]
pub struct Mouth {
    call: u32,
    credit: Arc<Credit>,
    out: Arc<Out>,
    /// The engine has closed the call.
    over: watch::Receiver<bool>,
}

impl Mouth {
    /// Says what comes to the outbox until that is closed.
    pub async fn speak(self, outbox: Outbox) {
        while let Some(frame) = outbox.next().await {
            match frame {
                Frame::Audio { pcm, .. } => self.audio(&pcm, &outbox).await,
                Frame::Event(FromAgent::Clear) => self.out.push(self.call, &Message::Clear { heard_ms: 0 }),
                Frame::Event(FromAgent::Mark { name }) => {
                    self.out.push(self.call, &Message::Mark { heard_ms: 0, name: &name });
                }
                Frame::Event(event) => self.out.push(self.call, &Message::Event(&event.to_json())),
            }
            if *self.over.borrow() {
                return;
            }
        }
    }

    async fn audio(&self, pcm: &Bytes, outbox: &Outbox) {
        for piece in pcm.chunks(BODY_MAX) {
            while !self.credit.spend(piece.len()) {
                let mut over = self.over.clone();
                tokio::select! {
                    () = self.credit.granted.notified() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    _ = over.wait_for(|over| *over) => return,
                }
                if outbox.is_clearing() {
                    return;
                }
            }
            self.out.push(self.call, &Message::Audio(piece));
        }
    }
}

impl Drop for Mouth {
    fn drop(&mut self) {
        if !*self.over.borrow() {
            self.out.push(self.call, &Message::Close { reason: "" });
        }
    }
}

/// The reader's view of a call.
struct Call {
    number: u32,
    incoming: mpsc::Sender<Incoming>,
    credit: Arc<Credit>,
    over: watch::Sender<bool>,
    /// Frames that its session did not take.
    dropped: u64,
}

/// Serves a link until the engine goes, or `stop` becomes true and its conversations have ended.
pub async fn serve(
    stream: TcpStream,
    token: Vec<u8>,
    reception: &impl Reception,
    mut stop: watch::Receiver<bool>,
) {
    let (mut reader, writer) = stream.into_split();
    let out = Arc::new(Out::default());
    let mut writing = tokio::spawn(write(writer, Arc::clone(&out)));
    let stopping = stop.clone();
    let mut link = Link { server: Server::new(token), calls: HashMap::new(), out: Arc::clone(&out) };
    let mut sessions = JoinSet::new();
    let mut octets = vec![0; READ_OCTETS];
    loop {
        tokio::select! {
            read = tokio::time::timeout(SILENT_MAX, reader.read(&mut octets)) => {
                let len = match read {
                    Ok(Ok(len)) if len > 0 => len,
                    Ok(Ok(_)) => break,
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "a link broke");
                        break;
                    }
                    Err(_) => {
                        tracing::warn!("a link was silent for too long");
                        break;
                    }
                };
                if let Err(error) = link.handle_bytes(&octets[..len], reception, &mut sessions) {
                    tracing::warn!(%error, "a link is closed");
                    break;
                }
            }
            () = out.overflowed.notified() => {
                tracing::warn!(octets = OUT_MAX, "a link is not read, and is closed");
                break;
            }
            Some(_) = sessions.join_next() => {
                link.calls.retain(|_, call| !call.incoming.is_closed());
                if *stopping.borrow() && sessions.is_empty() {
                    break;
                }
            }
            _ = stop.wait_for(|stop| *stop), if !*stopping.borrow() && sessions.is_empty() => break,
        }
    }
    // The calls hear that nothing more will come, and end.
    link.calls.clear();
    while sessions.join_next().await.is_some() {}
    // What they have said last leaves before the connection does.
    out.is_over.store(true, Ordering::Relaxed);
    out.filled.notify_one();
    if tokio::time::timeout(FLUSH_MAX, &mut writing).await.is_err() {
        writing.abort();
    }
}

/// Writes what the mouths say, together, until the link is over and all of it has left.
async fn write(mut writer: OwnedWriteHalf, out: Arc<Out>) {
    let mut leaving = Vec::new();
    loop {
        out.filled.notified().await;
        let is_over = out.is_over.load(Ordering::Relaxed);
        std::mem::swap(&mut leaving, &mut *out.lock());
        // A connection that is broken shows at the reader.
        if writer.write_all(&leaving).await.is_err() || is_over {
            return;
        }
        leaving.clear();
    }
}

struct Link {
    server: Server,
    calls: HashMap<u32, Call>,
    out: Arc<Out>,
}

impl Link {
    fn handle_bytes(
        &mut self,
        bytes: &[u8],
        reception: &impl Reception,
        sessions: &mut JoinSet<()>,
    ) -> Result<(), tandem_stream::link::LinkError> {
        let Self { server, calls, out } = self;
        let mut answers = Vec::new();
        // The welcome goes before anything that a call says: the greeting is read by itself.
        let mut bytes = bytes;
        while let Some((first, rest)) = bytes.split_first().filter(|_| !server.is_up()) {
            let outcome = server.handle_bytes(std::slice::from_ref(first), &mut answers, |_, _| {});
            if !answers.is_empty() {
                out.fill(|buffer| buffer.append(&mut answers));
            }
            outcome?;
            bytes = rest;
        }
        let outcome = server.handle_bytes(bytes, &mut answers, |call, message| match message {
            Message::Open { start } => open(call, start, calls, out, reception, sessions),
            Message::Close { reason } => {
                if let Some(known) = calls.remove(&call) {
                    known.over.send_replace(true);
                    known.say(Incoming::Event(ToAgent::Stop { reason: reason.to_owned() }));
                }
            }
            Message::Credit { octets } => {
                if let Some(known) = calls.get(&call) {
                    known.credit.grant(octets);
                }
            }
            message => {
                if let Some(known) = calls.get_mut(&call)
                    && let Some(incoming) = incoming(&message)
                    && !known.say(incoming)
                {
                    known.dropped += 1;
                }
            }
        });
        if !answers.is_empty() {
            out.fill(|buffer| buffer.extend_from_slice(&answers));
        }
        outcome
    }
}

impl Call {
    /// False when the session does not listen.
    fn say(&self, incoming: Incoming) -> bool {
        self.incoming.try_send(incoming).is_ok()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.dropped > 0 {
            tracing::warn!(
                call = self.number,
                frames = self.dropped,
                "a session did not listen to all of its call"
            );
        }
    }
}

fn open(
    call: u32,
    start: &str,
    calls: &mut HashMap<u32, Call>,
    out: &Arc<Out>,
    reception: &impl Reception,
    sessions: &mut JoinSet<()>,
) {
    let refuse = |reason: &str| out.push(call, &Message::Close { reason });
    let Ok(Some(start @ ToAgent::Start(_))) = ToAgent::parse(start) else {
        return refuse("the start frame cannot be read");
    };
    let place = match reception.place() {
        Ok(place) => place,
        Err(reason) => return refuse(reason),
    };
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    // The channel is new and has room.
    let _ = sender.try_send(Incoming::Event(start));
    let credit = Arc::new(Credit { spender: Mutex::new(Spender::new(AGENT_WINDOW)), granted: Notify::new() });
    let (over, is_over) = watch::channel(false);
    let ear = Ear { call, incoming: receiver, granter: Granter::new(CALLER_WINDOW), out: Arc::clone(out) };
    let mouth = Mouth { call, credit: Arc::clone(&credit), out: Arc::clone(out), over: is_over };
    // First accepted, then spoken: the session may say something at once.
    out.push(call, &Message::Accepted);
    reception.receive(place, ear, mouth, sessions);
    calls.insert(call, Call { number: call, incoming: sender, credit, over, dropped: 0 });
}

/// What a frame is to a session.
fn incoming(message: &Message<'_>) -> Option<Incoming> {
    Some(match message {
        Message::Audio(octets) => Incoming::Audio(Bytes::copy_from_slice(octets)),
        Message::Clear { heard_ms } => Incoming::Event(ToAgent::Cleared { heard_ms: *heard_ms }),
        Message::Mark { heard_ms, name } => {
            Incoming::Event(ToAgent::Mark { name: (*name).to_owned(), heard_ms: *heard_ms })
        }
        Message::Dtmf { digit, duration_ms } => {
            Incoming::Event(ToAgent::Dtmf { digit: char::from(*digit), duration_ms: *duration_ms })
        }
        Message::Event(text) => match ToAgent::parse(text) {
            Ok(Some(event)) => Incoming::Event(event),
            Ok(None) => return None,
            Err(_) => Incoming::Malformed,
        },
        Message::Malformed => Incoming::Malformed,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tandem_stream::agent::Start;
    use tandem_stream::link::Client;
    use tokio::net::TcpListener;

    use super::*;

    /// Its sessions say more than anybody reads.
    struct Flood;

    impl Reception for Flood {
        type Place = ();

        fn place(&self) -> Result<(), &'static str> {
            Ok(())
        }

        fn receive(&self, (): (), ear: Ear, mouth: Mouth, sessions: &mut JoinSet<()>) {
            sessions.spawn(async move {
                while !ear.incoming.is_closed() {
                    mouth.out.push(mouth.call, &Message::Audio(&[0; BODY_MAX]));
                    tokio::task::yield_now().await;
                }
            });
        }
    }

    #[tokio::test]
    async fn link_whose_engine_does_not_read_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut engine = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (_stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(async move { serve(stream, Vec::new(), &Flood, stopped).await });
        let mut client = Client::new(Vec::new(), Instant::now());
        client.dial(Instant::now());
        client.handle_connected(Instant::now());
        let start = ToAgent::Start(Start::new("c1", "sip:caller@test", "sip:demo@test", "inbound")).to_json();
        client.push(1, &Message::Open { start: &start });
        let mut octets = vec![0; 4_096];
        let len = client.poll_control(&mut octets);
        engine.write_all(&octets[..len]).await.unwrap();
        // Sooner than for its silence.
        let closed = tokio::time::timeout(SILENT_MAX * 2 / 3, serving).await;
        closed.expect("the link is closed").unwrap();
    }

    #[test]
    fn what_is_too_much_is_not_kept() {
        let out = Out::default();
        out.lock().resize(OUT_MAX + 1, 0);
        out.push(1, &Message::Accepted);
        assert_eq!(out.lock().len(), OUT_MAX + 1);
    }
}
