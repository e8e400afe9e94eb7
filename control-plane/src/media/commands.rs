//! Commands to one engine over one stream, each answered under its number.
//!
//! ```text
//!   perform ──number──▶ stream ──▶ engine          many at once, answered in any order
//!      ▲                                │
//!      └── waiting[number] ◀── reader ◀─┘           the stream breaks: all that wait are told, the next opens a new one
//! ```
//!
//! A request of its own for each command costs both planes its headers, its stream and several wake-ups. What the one
//! stream saves is not shown yet: see bench/RESULTS.md.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandem_api::engine::v1 as engine;
use tandem_api::engine::v1::command_request::Command;
use tandem_api::engine::v1::command_response::Outcome;
use tandem_api::engine::v1::engine_service_client::EngineServiceClient;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A command takes a millisecond; opening a port on a busy node tens. More means that nobody is there.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(3);

/// Commands on their way that the connection has not taken yet; more wait for it, and then for their time-out.
const UNSENT_MAX: usize = 1_024;

/// The commands of one engine. Clones share the stream.
#[derive(Debug, Clone)]
pub(super) struct Commands {
    client: EngineServiceClient<Channel>,
    stream: Arc<Mutex<Option<Arc<Stream>>>>,
}

/// One life of the stream.
#[derive(Debug)]
struct Stream {
    out: mpsc::Sender<engine::CommandRequest>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    answers: HashMap<u64, oneshot::Sender<Result<Outcome, Status>>>,
    /// Why the stream is over; nothing waits any more.
    broken: Option<Status>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that broke, as the calls of gRPC tell it: by a status with a source.
fn broken(why: impl Into<String>) -> Status {
    Status::from_error(Box::new(std::io::Error::new(std::io::ErrorKind::ConnectionReset, why.into())))
}

impl Commands {
    pub(super) fn new(client: EngineServiceClient<Channel>) -> Self {
        Self { client, stream: Arc::default() }
    }

    /// Sends a command and waits for its outcome; a refusal is the status of the call of the same name.
    ///
    /// # Errors
    /// The engine refused it, or the connection broke before the answer came: the engine may have done it then.
    pub(super) async fn perform(&self, command: Command) -> Result<Outcome, Status> {
        let (stream, number, answer) = self.expect();
        // Whoever gives up waiting takes his place with him.
        let _place = Place { stream: &stream, number };
        let done = async {
            let request = engine::CommandRequest { number, command: Some(command) };
            // If the stream is over, the answer says why.
            let _ = stream.out.send(request).await;
            answer.await.unwrap_or_else(|_| Err(broken("the command stream has ended")))
        };
        match tokio::time::timeout(COMMAND_TIMEOUT, done).await {
            Ok(Ok(Outcome::Refused(refusal))) => {
                Err(Status::new(Code::from(refusal.code as i32), refusal.message))
            }
            Ok(done) => done,
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }

    /// A place among those who wait, on a stream that lives.
    fn expect(&self) -> (Arc<Stream>, u64, oneshot::Receiver<Result<Outcome, Status>>) {
        let (reply, answer) = oneshot::channel();
        let mut current = lock(&self.stream);
        let alive = current.as_ref().filter(|stream| lock(&stream.waiting).broken.is_none());
        let stream = match alive {
            Some(stream) => Arc::clone(stream),
            None => Arc::clone(current.insert(Stream::open(self.client.clone()))),
        };
        drop(current);
        let mut waiting = lock(&stream.waiting);
        let number = waiting.next;
        waiting.next += 1;
        match waiting.broken.clone() {
            Some(status) => drop(reply.send(Err(status))),
            None => drop(waiting.answers.insert(number, reply)),
        }
        drop(waiting);
        (stream, number, answer)
    }
}

/// Removes what waits under this number.
struct Place<'a> {
    stream: &'a Stream,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.stream.waiting).answers.remove(&self.number);
    }
}

impl Stream {
    fn open(client: EngineServiceClient<Channel>) -> Arc<Self> {
        let (out, requests) = mpsc::channel(UNSENT_MAX);
        let stream = Arc::new(Self { out, waiting: Mutex::default() });
        tokio::spawn(read(client, requests, Arc::clone(&stream)));
        stream
    }

    fn answered(&self, response: engine::CommandResponse) {
        let Some(reply) = lock(&self.waiting).answers.remove(&response.number) else { return };
        let unknown = || Err(Status::internal("an outcome that this control plane does not know"));
        // Whoever asked may have stopped waiting.
        let _ = reply.send(response.outcome.map_or_else(unknown, Ok));
    }

    fn ended(&self, why: &Status) {
        let mut waiting = lock(&self.waiting);
        waiting.broken = Some(why.clone());
        for (_, reply) in waiting.answers.drain() {
            let _ = reply.send(Err(why.clone()));
        }
    }
}

/// Opens the stream and hands out its answers until it ends.
async fn read(
    mut client: EngineServiceClient<Channel>,
    requests: mpsc::Receiver<engine::CommandRequest>,
    stream: Arc<Stream>,
) {
    let opened = tokio::time::timeout(COMMAND_TIMEOUT, client.commands(ReceiverStream::new(requests))).await;
    let mut responses = match opened {
        Ok(Ok(responses)) => responses.into_inner(),
        Ok(Err(status)) => return stream.ended(&status),
        Err(_) => return stream.ended(&Status::deadline_exceeded("no command stream in time")),
    };
    let why = loop {
        match responses.message().await {
            Ok(Some(response)) => stream.answered(response),
            Ok(None) => break broken("the engine has ended the command stream"),
            Err(status) if std::error::Error::source(&status).is_some() => break status,
            Err(status) => break broken(status.message()),
        }
    };
    stream.ended(&why);
}
