//! Events: from the workers' queues to the subscribers, in order, with a heartbeat each second; and the orphan clock.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tandem_api::engine::v1 as proto;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Broadcast, Control};
use crate::contract;
use crate::leg::event::{EndReason, Event, HowDropped, Stats};
use crate::mailbox::{Command, Inbox, Word};
use crate::ring::Waker;

/// How often subscribers hear that the engine is alive.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Events on their way to one subscriber beside those that wait in the broadcast.
const IN_FLIGHT: usize = 64;

/// The stream of one subscriber.
pub(super) type EventStream = Pin<Box<dyn Stream<Item = Result<proto::Event, Status>> + Send>>;

/// Moves events until the engine stops.
pub(super) async fn pump(
    control: Arc<Control>,
    mut inboxes: Vec<Inbox>,
    bell: Waker,
    stop: watch::Sender<bool>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut pump = Pump { control, sequence: 0, orphaned_since: None };
    let bell = match bell.watch() {
        Ok(bell) => bell,
        Err(error) => {
            tracing::error!(%error, "events cannot be watched");
            let _ = stop.send(true);
            return;
        }
    };
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ready = bell.readable() => if let Ok(mut ready) = ready {
                bell.get_ref().drain();
                ready.clear_ready();
                pump.move_events(&mut inboxes).await;
                pump.bury();
            },
            _ = heartbeat.tick() => {
                pump.control.send_all_home();
                pump.beat(Instant::now());
            }
            _ = &mut stopped => break,
        }
    }
    // The workers are gone; what they said last is still to be told.
    pump.move_events(&mut inboxes).await;
    let _ = pump.control.events.send(Broadcast::End("the engine stops"));
    let _ = stop.send(true);
}

struct Pump {
    control: Arc<Control>,
    sequence: u64,
    orphaned_since: Option<Instant>,
}

impl Pump {
    async fn move_events(&mut self, inboxes: &mut [Inbox]) {
        for inbox in inboxes {
            while let Some(word) = inbox.pop() {
                let (id, event) = match word {
                    Word::Session(id, event) => (id, event),
                    Word::PortFree(port) => {
                        self.control.send_home(port);
                        continue;
                    }
                };
                self.keep_registry(&id, &event);
                log(&id, &event);
                self.tell(id.to_string(), contract::event(&event));
            }
            if inbox.was_lossy() {
                tracing::error!("events were lost: every event stream ends and resynchronises");
                self.prune().await;
                let _ = self
                    .control
                    .events
                    .send(Broadcast::End("events were lost; connect again for a snapshot"));
            }
        }
    }

    /// Tells the end of sessions whose worker died, and forgets them.
    fn bury(&mut self) {
        for index in 0..self.control.cores.len() {
            if !self.control.cores[index].is_dead() {
                continue;
            }
            let lost: Vec<String> = super::lock(&self.control.sessions)
                .iter()
                .filter(|(_, entry)| entry.core == index)
                .map(|(id, _)| id.clone())
                .collect();
            for id in lost {
                let event = Event::Ended { reason: EndReason::EngineFault, stats: Stats::default() };
                self.keep_registry(&id, &event);
                log(&id, &event);
                self.tell(id, contract::event(&event));
            }
        }
    }

    fn keep_registry(&self, id: &str, event: &Event) {
        match event {
            Event::AgentConnected { .. } => {
                if let Some(entry) = self.control.entry(id) {
                    entry.is_agent_ready.store(true, Ordering::Relaxed);
                }
            }
            Event::StreamDropped { how: HowDropped::Lost, provider, .. } => {
                self.control.upgrades.count_dropped(provider);
            }
            Event::Ended { .. } | Event::Joined { .. } => drop(self.control.forget(id)),
            _ => {}
        }
    }

    /// Forgets sessions whose end was among the lost events. What a core cannot say now stays known: a
    /// command for it then says NOT_FOUND.
    async fn prune(&self) {
        for (index, core) in self.control.cores.iter().enumerate() {
            let known: Vec<String> = super::lock(&self.control.sessions)
                .iter()
                .filter(|(_, entry)| entry.core == index && entry.opened.initialized())
                .map(|(id, _)| id.clone())
                .collect();
            let alive = match core.list().await {
                Ok(alive) => alive,
                Err(error) => {
                    tracing::warn!(%error, "sessions that have ended there may be counted on");
                    continue;
                }
            };
            for id in known {
                if !alive.iter().any(|summary| *summary.id == *id) {
                    self.control.forget(&id);
                }
            }
        }
    }

    fn tell(&mut self, session_id: String, event: proto::event::Event) {
        self.sequence += 1;
        let event = proto::Event { sequence: self.sequence, session_id, event: Some(event) };
        // Without subscribers there is nobody to tell.
        let _ = self.control.events.send(Broadcast::Event(Arc::new(event)));
    }

    fn beat(&mut self, now: Instant) {
        for core in &self.control.cores {
            core.measure(now);
        }
        let heartbeat =
            proto::Heartbeat { cores: self.control.loads(), draining: self.control.is_draining() };
        self.tell(String::new(), proto::event::Event::Heartbeat(heartbeat));
        if self.control.controllers() > 0 {
            self.orphaned_since = None;
            return;
        }
        let since = *self.orphaned_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.control.config.orphan && self.control.sessions() > 0 {
            tracing::warn!(sessions = self.control.sessions(), "no control plane for too long: sessions end");
            for core in &self.control.cores {
                core.send(Command::EndAll { reason: EndReason::Orphaned });
            }
            self.orphaned_since = Some(now);
        }
    }
}

/// One line for each change of a session's state.
fn log(session_id: &str, event: &Event) {
    match event {
        Event::AgentConnected { took_ms } => tracing::info!(session_id, took_ms, "agent connected"),
        Event::AgentFailed { reason } => tracing::warn!(session_id, reason, "agent failed"),
        Event::AgentHangup { after_drain } => tracing::info!(session_id, after_drain, "agent hangs up"),
        Event::AgentTransfer { .. } => tracing::info!(session_id, "agent transfers"),
        Event::AgentAnswer => tracing::info!(session_id, "agent answers"),
        Event::AgentDtmf { .. } | Event::AgentHeaders { .. } => {}
        Event::MediaStarted { took_ms, .. } => tracing::info!(session_id, took_ms, "media started"),
        Event::Dtmf { .. } | Event::Report { .. } | Event::SecondReport { .. } => {}
        Event::SecondLost { reason } => tracing::info!(session_id, ?reason, "second leg is lost"),
        Event::Idle { idle_ms } => tracing::info!(session_id, idle_ms, "nobody speaks"),
        Event::StreamStarted(started) => {
            let provider_call_id = &*started.call_id;
            tracing::info!(session_id, provider_call_id, codec = started.codec, "provider's stream started");
        }
        Event::StreamDropped { how, reason, leg_may_live, provider } => {
            tracing::info!(session_id, provider, ?how, reason, leg_may_live, "provider's stream is gone");
        }
        Event::Joined { into, .. } => tracing::info!(session_id, into = &**into, "session ended: joined"),
        Event::Ended { reason, stats } => tracing::info!(
            session_id,
            ?reason,
            duration_ms = stats.duration_ms,
            rtp_sent = stats.rtp_sent,
            rtp_received = stats.rtp_received,
            "session ended"
        ),
    }
}

/// Counts a subscriber for as long as it lives.
struct Subscription {
    control: Arc<Control>,
    /// Its place among those that upgrades are told to.
    place: Option<u64>,
}

impl Subscription {
    fn new(control: Arc<Control>) -> Self {
        control.controllers.fetch_add(1, Ordering::Relaxed);
        Self { control, place: None }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.control.controllers.fetch_sub(1, Ordering::Relaxed);
        if let Some(place) = self.place {
            self.control.upgrades.strike(place);
        }
    }
}

/// A new subscriber: first a snapshot, then every event after it.
///
/// # Errors
/// UNAVAILABLE when a core cannot be asked: a snapshot that lacks its sessions would end their calls.
pub(super) async fn subscribe(control: Arc<Control>, controller_id: String) -> Result<EventStream, Status> {
    let mut subscription = Subscription::new(Arc::clone(&control));
    // Subscribed before the snapshot is taken: an event between the two is told twice rather than never.
    let mut events = control.events.subscribe();
    let (out, stream) = mpsc::channel(IN_FLIGHT);
    let sessions = control.list().await?;
    let (instance_id, engine) = (control.instance_id.clone(), Some(control.describe()));
    let snapshot = proto::Snapshot { instance_id, sessions, engine };
    tracing::info!(controller_id, sessions = snapshot.sessions.len(), "controller subscribed");
    // What is told to one alone, from now on to this one.
    let (place, mut upgrades) = control.upgrades.enrol();
    subscription.place = Some(place);
    let first = proto::Event {
        sequence: 0,
        session_id: String::new(),
        event: Some(proto::event::Event::Snapshot(snapshot)),
    };
    tokio::spawn(async move {
        let _subscription = subscription;
        let mut next = Ok(first);
        loop {
            let is_last = next.is_err();
            if out.send(next).await.is_err() || is_last {
                break;
            }
            next = tokio::select! {
                event = events.recv() => match event {
                    Ok(Broadcast::Event(event)) => Ok(proto::Event::clone(&event)),
                    Ok(Broadcast::End(reason)) => Err(Status::unavailable(reason)),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        Err(Status::data_loss(format!("{missed} events behind; connect again for a snapshot")))
                    }
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                Some(upgrade) = upgrades.recv() => Ok(upgrade),
                () = out.closed() => break,
            };
        }
        tracing::info!(controller_id, "controller is gone");
    });
    Ok(Box::pin(ReceiverStream::new(stream)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use tokio_stream::StreamExt;

    use super::super::tests::{add, control, on_runtime, overload};
    use super::*;
    use crate::config::{Config, PortRange};
    use crate::control::{Core, SUBSCRIBER_EVENTS_MAX};
    use crate::mailbox;
    use crate::metrics::CoreMetrics;
    use crate::ring::DriverKind;

    fn pump(cores: Vec<Core>) -> Pump {
        let config = Config::for_tests(PortRange { min: 2_000, max: 2_001 });
        let control = Control::new(
            config,
            DriverKind::Epoll,
            String::new(),
            cores,
            crate::control::identity::new_identity().unwrap(),
        );
        Pump { control: Arc::new(control), sequence: 0, orphaned_since: None }
    }

    #[tokio::test]
    async fn a_slow_subscriber_loses_its_stream_and_nobody_waits_for_it() {
        let mut pump = pump(Vec::new());
        let mut slow = subscribe(Arc::clone(&pump.control), "slow".into()).await.unwrap();
        tokio::task::yield_now().await;
        for _ in 0..2 * SUBSCRIBER_EVENTS_MAX {
            pump.beat(Instant::now());
        }
        let mut told = 0;
        let last = loop {
            match slow.next().await.expect("an end that says why") {
                Ok(_) => told += 1,
                Err(status) => break status,
            }
        };
        assert_eq!(last.code(), tonic::Code::DataLoss);
        assert!(slow.next().await.is_none());
        assert!(told < SUBSCRIBER_EVENTS_MAX, "{told}");
        let mut again = subscribe(Arc::clone(&pump.control), "slow".into()).await.unwrap();
        let first = again.next().await.expect("a stream").expect("an event");
        assert!(matches!(first.event, Some(proto::event::Event::Snapshot(_))));
    }

    #[tokio::test]
    async fn the_sessions_of_a_dead_worker_end_with_it() {
        let waker = Waker::new().expect("an eventfd");
        let ((commands, _inbox), _worker) = mailbox::pair(waker.clone(), waker);
        let dead = Arc::new(AtomicBool::new(false));
        let core = Core::new(3, commands, Arc::new(CoreMetrics::default()), Arc::clone(&dead));
        let mut pump = pump(vec![core]);
        pump.control.reserve("a", 0);
        pump.bury();
        assert_eq!(pump.control.sessions(), 1);
        let mut events = pump.control.events.subscribe();
        dead.store(true, Ordering::Release);
        pump.bury();
        assert_eq!(pump.control.sessions(), 0);
        let Ok(Broadcast::Event(event)) = events.recv().await else { panic!("an event") };
        let Some(proto::event::Event::SessionEnded(ended)) = &event.event else { panic!("{event:?}") };
        assert_eq!(ended.reason(), proto::session_ended::Reason::EngineFault);
        assert!(pump.control.is_draining(), "no worker is left");
        assert!(!pump.control.cores[0].send(Command::Stop));
    }

    #[test]
    fn sessions_of_a_core_that_cannot_be_asked_stay_known() {
        on_runtime(async {
            let (control, mut workers) = control(2);
            add(&control, "kept", 0);
            add(&control, "ended", 1);
            overload(&control.cores[0]);
            let pump = Pump { control: Arc::clone(&control), sequence: 0, orphaned_since: None };
            let answering = async {
                let Ok(Command::List { reply }) = workers[1].queue.pop() else { panic!("a List") };
                reply.send(Vec::new()).unwrap();
            };
            tokio::join!(pump.prune(), answering);
            assert!(control.entry("kept").is_some() && control.entry("ended").is_none());
        });
    }
}
