//! One connection's life, after its handshakes: bytes in, messages out, keep-alives, and its end.
//!
//! ```text
//!   stream ──read──▶ Arrival::Bytes ──▶ driver        TCP, TLS: any piece of the stream
//!          ◀─write── Out::Message ◀──── driver        WebSocket (websocket.rs): one message
//!                    Out::KeepAlive: from now on CRLF CRLF now and then, and an end if no answer comes (RFC 5626 §4.4.1)
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tandem_sip::Flow;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::transport::Arrival;

/// Who connects and says nothing for so long is closed (RFC 3261's 64·T1). Later silence is the endpoint's to judge: it
/// knows which connection has a call.
pub(super) const FIRST_BYTES_MAX: Duration = Duration::from_secs(32);
/// The same for a connection of ours: the peer answers our first request within 64·T1, and some for the way.
pub(super) const FIRST_ANSWER_MAX: Duration = Duration::from_secs(40);
/// How long a connect or a write may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Between our keep-alives on a flow of a registration, at least and at most: RFC 5626 §4.4.1 wants 80 to 100 % of two
/// minutes, so that the flows of a restarted proxy do not all ping at once.
const PING_EVERY_S: std::ops::RangeInclusive<u64> = 96..=120;
/// A peer that has answered such a ping before, and now is silent for so long, is gone.
const PONG_MAX: Duration = Duration::from_secs(10);
/// One read from a stream.
const READ_LEN: usize = 16 * 1024;

/// What the driver wants from a connection.
#[derive(Debug)]
pub(super) enum Out {
    /// Send this message.
    Message(Vec<u8>),
    /// Keep the connection alive from now on: a registration lives on it.
    KeepAlive,
}

/// Reads and writes one TCP or TLS connection until either side ends it, or nothing has come `first`.
pub(super) async fn serve<S>(
    stream: S,
    flow: Flow,
    writes: mpsc::Receiver<Out>,
    arrivals: &mpsc::Sender<Arrival>,
    first: Duration,
) where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = tokio::io::split(stream);
    let heard = AtomicBool::new(false);
    tokio::select! {
        () = read(reader, flow, arrivals, &heard, first) => {}
        () = write(writer, writes, &heard) => {}
    }
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
    flow: Flow,
    arrivals: &mpsc::Sender<Arrival>,
    heard: &AtomicBool,
    first: Duration,
) {
    let mut buffer = vec![0; READ_LEN];
    let Ok(Ok(mut len)) = timeout(first, reader.read(&mut buffer)).await else { return };
    while len > 0 {
        heard.store(true, Ordering::Relaxed);
        if arrivals.send(Arrival::Bytes(flow, buffer[..len].to_vec())).await.is_err() {
            return;
        }
        let Ok(more) = reader.read(&mut buffer).await else { return };
        len = more;
    }
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut writes: mpsc::Receiver<Out>, heard: &AtomicBool) {
    let mut keep_alive = KeepAlive::default();
    loop {
        let due = keep_alive.deadline();
        let bytes = tokio::select! {
            out = writes.recv() => match out {
                Some(Out::Message(bytes)) => bytes,
                Some(Out::KeepAlive) => {
                    keep_alive.begin(Instant::now(), ping_after());
                    continue;
                }
                // The driver has closed it; a TLS peer is told so.
                None => {
                    let _ = timeout(PATIENCE, writer.shutdown()).await;
                    return;
                }
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                match keep_alive.handle_timeout(Instant::now(), heard, ping_after()) {
                    Beat::Ping => b"\r\n\r\n".to_vec(),
                    Beat::Nothing => continue,
                    Beat::Dead => return,
                }
            }
        };
        let written = async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        };
        if !matches!(timeout(PATIENCE, written).await, Ok(Ok(()))) {
            return;
        }
    }
}

fn ping_after() -> Duration {
    Duration::from_secs(rand::random_range(PING_EVERY_S))
}

/// When to ping, and whether the peer is still there.
#[derive(Debug, Default)]
struct KeepAlive {
    ping_at: Option<Instant>,
    pong_by: Option<Instant>,
    /// The peer has answered a ping once. One that never does is not known to be gone when it is silent.
    answers: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Beat {
    Nothing,
    Ping,
    Dead,
}

impl KeepAlive {
    fn begin(&mut self, now: Instant, every: Duration) {
        self.ping_at.get_or_insert(now + every);
    }

    fn deadline(&self) -> Option<Instant> {
        [self.ping_at, self.pong_by].into_iter().flatten().min()
    }

    fn handle_timeout(&mut self, now: Instant, heard: &AtomicBool, every: Duration) -> Beat {
        if self.pong_by.is_some_and(|by| by <= now) {
            self.pong_by = None;
            let is_there = heard.load(Ordering::Relaxed);
            if self.answers && !is_there {
                return Beat::Dead;
            }
            self.answers |= is_there;
        }
        if self.ping_at.is_none_or(|at| at > now) {
            return Beat::Nothing;
        }
        self.ping_at = Some(now + every);
        self.pong_by = Some(now + PONG_MAX);
        heard.store(false, Ordering::Relaxed);
        Beat::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(100);

    #[test]
    fn peer_that_stops_answering_pings_is_gone() {
        let (mut alive, heard, start) = (KeepAlive::default(), AtomicBool::new(false), Instant::now());
        alive.begin(start, EVERY);
        assert_eq!(alive.handle_timeout(start + EVERY, &heard, EVERY), Beat::Ping);
        heard.store(true, Ordering::Relaxed);
        let pong_by = start + EVERY + PONG_MAX;
        assert_eq!(
            (alive.deadline(), alive.handle_timeout(pong_by, &heard, EVERY)),
            (Some(pong_by), Beat::Nothing)
        );
        assert_eq!(alive.handle_timeout(start + 2 * EVERY, &heard, EVERY), Beat::Ping);
        assert_eq!(alive.handle_timeout(start + 2 * EVERY + PONG_MAX, &heard, EVERY), Beat::Dead);
    }

    #[test]
    fn peer_that_never_answers_pings_is_kept() {
        let (mut alive, heard, start) = (KeepAlive::default(), AtomicBool::new(false), Instant::now());
        alive.begin(start, EVERY);
        for round in 1..4 {
            assert_eq!(alive.handle_timeout(start + round * EVERY, &heard, EVERY), Beat::Ping);
            assert_eq!(alive.handle_timeout(start + round * EVERY + PONG_MAX, &heard, EVERY), Beat::Nothing);
        }
    }

    #[test]
    fn nothing_is_sent_before_it_is_wished() {
        assert_eq!(KeepAlive::default().deadline(), None);
    }
}
