//! How sessions go, again and again, for who watches them: a stream of counters at an interval of the watcher's.
//!
//! ```text
//!   each interval, core by core:  control ──Sample, 64 sessions at most──▶ worker ──counters──▶ control ──▶ watcher
//! ```
//!
//! Nothing of it happens on a worker but for the answer to a question, so nobody pays for it but who is asked. A watcher that reads slowly is
//! asked for less often: the next interval begins when the last was taken.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandem_api::engine::v1 as proto;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Control, Core};
use crate::contract;
use crate::mailbox::{Command, Samples, SessionKey};

/// Streams at once: dashboards and tools, not phones.
const WATCHERS_MAX: usize = 16;

/// Messages on their way to one watcher.
const IN_FLIGHT: usize = 4;

const DEFAULT_INTERVAL_MS: u32 = 1_000;

/// No more often than this: five packets.
const INTERVAL_MS_MIN: u32 = 100;

/// The stream of one watcher.
pub(super) type StatisticsStream =
    Pin<Box<dyn Stream<Item = Result<proto::StatisticsResponse, Status>> + Send>>;

/// Counts a watcher for as long as it lives.
struct Watcher(Arc<Control>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whose counters.
enum Watched {
    One { id: String, core: usize, key: SessionKey },
    All,
}

/// A new watcher.
///
/// # Errors
/// NOT_FOUND for a session that there is not, RESOURCE_EXHAUSTED when [`WATCHERS_MAX`] are there.
pub(super) fn watch(
    control: Arc<Control>,
    request: proto::StatisticsRequest,
) -> Result<StatisticsStream, Status> {
    let watched = match request.session_id {
        id if id.is_empty() => Watched::All,
        id => {
            let missing = || Status::not_found(format!("no session {id}"));
            let entry = control.entry(&id).ok_or_else(missing)?;
            let key = entry.opened.get().ok_or_else(missing)?.key;
            Watched::One { core: entry.core, key, id }
        }
    };
    if control.watchers.fetch_add(1, Ordering::Relaxed) >= WATCHERS_MAX {
        control.watchers.fetch_sub(1, Ordering::Relaxed);
        return Err(Status::resource_exhausted(format!("{WATCHERS_MAX} statistics streams are open")));
    }
    let watcher = Watcher(control);
    let every = match request.interval_ms {
        0 => DEFAULT_INTERVAL_MS,
        ms => ms.max(INTERVAL_MS_MIN),
    };
    let (out, stream) = mpsc::channel(IN_FLIGHT);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(u64::from(every)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = out.closed() => return,
            }
            if let Err(status) = tell(&watcher.0, &watched, &out).await {
                let _ = out.send(Err(status)).await;
                return;
            }
        }
    });
    Ok(Box::pin(ReceiverStream::new(stream)))
}

type Out = mpsc::Sender<Result<proto::StatisticsResponse, Status>>;

/// Tells one interval. What the watcher does not take any more is no error: the loop sees that it is gone.
async fn tell(control: &Control, watched: &Watched, out: &Out) -> Result<(), Status> {
    match watched {
        Watched::One { id, core, key } => {
            let samples = ask(&control.cores[*core], Some(*key), 0).await?;
            if samples.sessions.is_empty() {
                return Err(Status::not_found(format!("session {id} is over")));
            }
            let _ = out.send(Ok(response(&samples, true))).await;
        }
        Watched::All => {
            for core in control.cores.iter().filter(|core| !core.is_dead()) {
                let mut from = Some(0);
                while let Some(place) = from {
                    let samples = ask(core, None, place).await?;
                    from = samples.next;
                    if !samples.sessions.is_empty() {
                        let _ = out.send(Ok(response(&samples, false))).await;
                    }
                }
            }
            let _ = out.send(Ok(response(&Samples::default(), true))).await;
        }
    }
    Ok(())
}

async fn ask(core: &Core, key: Option<SessionKey>, from: usize) -> Result<Samples, Status> {
    core.ask(|reply| Command::Sample { key, from, reply }).await
}

fn response(samples: &Samples, last: bool) -> proto::StatisticsResponse {
    let sample = |(id, stats): &(Arc<str>, _)| proto::SessionSample {
        session_id: id.to_string(),
        stats: Some(contract::stats(stats)),
    };
    proto::StatisticsResponse { sessions: samples.sessions.iter().map(sample).collect(), last }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::tests::{control, on_runtime};
    use super::*;

    #[test]
    fn watchers_are_bounded_and_make_room_when_they_go() {
        on_runtime(async {
            let (control, _workers) = control(1);
            let watch = || watch(Arc::clone(&control), proto::StatisticsRequest::default());
            let all: Vec<_> = (0..WATCHERS_MAX).map(|_| watch().unwrap()).collect();
            assert_eq!(watch().err().map(|status| status.code()), Some(Code::ResourceExhausted));
            drop(all);
            while control.watchers.load(Ordering::Relaxed) > 0 {
                tokio::task::yield_now().await;
            }
            assert!(watch().is_ok());
        });
    }

    #[test]
    fn unknown_session_is_not_found() {
        on_runtime(async {
            let (control, _workers) = control(1);
            let request = proto::StatisticsRequest { session_id: "a".into(), interval_ms: 0 };
            assert_eq!(watch(control, request).err().map(|status| status.code()), Some(Code::NotFound));
        });
    }
}
