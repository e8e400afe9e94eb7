//! The task that owns the endpoint: bytes, verbs and deadlines in; bytes and events out.

use std::time::{Duration, Instant};

use tandem_sip::{CallError, Counters, Endpoint, EndpointConfig, Event, Flow};
use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::transport::{Arrival, Transports};
use super::{SharedCounters, Verb};

/// Datagrams that are read before verbs and deadlines have their turn.
const DATAGRAMS_A_TURN: usize = 64;
/// After the last verb, how long answers to our BYEs and ACKs to our refusals are still handled.
const LINGER: Duration = Duration::from_millis(500);
/// The longest datagram of UDP.
const DATAGRAM_MAX: usize = 65_535;

/// See the module.
pub struct Driver {
    endpoint: Endpoint,
    transports: Transports,
    verbs: mpsc::Receiver<Verb>,
    events: mpsc::Sender<Event>,
    /// An event that found the channel full.
    waiting: Option<Event>,
    counters: SharedCounters,
    seen: Counters,
}

impl Driver {
    /// A driver; nothing happens until it runs.
    pub fn new(
        config: EndpointConfig,
        transports: Transports,
        verbs: mpsc::Receiver<Verb>,
        events: mpsc::Sender<Event>,
        counters: SharedCounters,
    ) -> Self {
        let endpoint = Endpoint::new(config);
        let seen = *endpoint.counters();
        Self { endpoint, transports, verbs, events, waiting: None, counters, seen }
    }

    /// Runs until every sender of verbs is gone, and a moment longer.
    pub async fn run(mut self) {
        let mut datagram = vec![0; DATAGRAM_MAX];
        let alarm = tokio::time::sleep(Duration::ZERO);
        let mut alarm = std::pin::pin!(alarm);
        let mut last_turn: Option<Instant> = None;
        loop {
            self.drain();
            let has_room = self.waiting.is_none();
            let has_alarm = set_alarm(alarm.as_mut(), self.endpoint.poll_timeout(), last_turn);
            let turn = tokio::select! {
                biased;
                verb = self.verbs.recv(), if last_turn.is_none() => Turn::Verb(verb),
                // `drain` will find the room, or that nobody reads events any more.
                _ = self.events.reserve(), if !has_room => Turn::Room,
                // Before the sockets: a flood must not stop the timers.
                () = alarm.as_mut(), if has_alarm => Turn::Deadline,
                arrival = self.transports.ready(), if has_room => Turn::Arrival(arrival),
            };
            match turn {
                Turn::Verb(Some(verb)) => self.perform(verb),
                Turn::Verb(None) => last_turn = Some(Instant::now() + LINGER),
                Turn::Room => {}
                Turn::Arrival(Arrival::Datagrams(listener)) => self.read_datagrams(listener, &mut datagram),
                Turn::Arrival(arrival) => self.arrive(arrival),
                Turn::Deadline => {
                    let now = Instant::now();
                    if last_turn.is_some_and(|at| at <= now) {
                        break;
                    }
                    self.endpoint.handle_timeout(now);
                }
            }
        }
        self.drain();
    }

    fn perform(&mut self, verb: Verb) {
        let now = Instant::now();
        let done = match verb {
            Verb::Ring(call) => self.endpoint.ring(call, now),
            Verb::Answer(call, body) => self.endpoint.answer(call, body, now),
            Verb::Reject(call, reply) => self.endpoint.reject(call, reply, now),
            Verb::HangUp(call, headers) => self.endpoint.hang_up(call, headers, now),
            Verb::Reply(request, reply) => self.endpoint.reply(request, reply, now),
        };
        match done {
            Ok(()) => {}
            // The peer was faster; the event that says so is on its way.
            Err(error @ (CallError::Unknown | CallError::State(_))) => {
                tracing::debug!(%error, "a SIP verb came too late");
            }
            Err(error) => tracing::error!(%error, "a SIP verb was not possible"),
        }
    }

    fn read_datagrams(&mut self, listener: usize, datagram: &mut [u8]) {
        for _ in 0..DATAGRAMS_A_TURN {
            let Some((len, flow)) = self.transports.try_receive(listener, datagram) else { return };
            self.endpoint.handle_input(&datagram[..len], flow, Instant::now());
            self.note_bad_request(flow);
            self.drain();
            if self.waiting.is_some() {
                return;
            }
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Datagrams(_) => {}
            Arrival::Accepted(flow, connection) => {
                self.transports.keep(flow, connection);
                self.endpoint.handle_connected(flow);
            }
            Arrival::Opened(flow) => self.endpoint.handle_connected(flow),
            Arrival::Bytes(flow, bytes) => {
                self.endpoint.handle_input(&bytes, flow, Instant::now());
                self.note_bad_request(flow);
            }
            Arrival::Closed(flow) => {
                if let Some(connection) = flow.connection {
                    self.transports.forget(connection);
                    self.endpoint.handle_closed(connection, Instant::now());
                }
            }
            Arrival::Failed(flow) => {
                if let Some(connection) = flow.connection {
                    self.transports.forget(connection);
                }
                self.endpoint.handle_transport_error(Flow { connection: None, ..flow }, Instant::now());
            }
        }
    }

    /// A request that cannot be parsed has been answered with 400: that is a refusal, so it gets its line. Bytes that
    /// are no request at all are only counted.
    fn note_bad_request(&mut self, flow: Flow) {
        let counters = *self.endpoint.counters();
        if counters.bad_requests > self.seen.bad_requests {
            tracing::warn!(
                step = "syntax",
                rule = "malformed_request",
                field = "request",
                expected = "a request of RFC 3261",
                got = "one that does not parse",
                sip_status = 400,
                source = %flow.remote,
                "request refused"
            );
        }
        self.seen = counters;
    }

    /// Empties what the endpoint wants out: the drain contract.
    fn drain(&mut self) {
        while let Some(transmit) = self.endpoint.poll_transmit() {
            let flow = transmit.flow;
            if self.transports.send(transmit).is_err() {
                self.endpoint.handle_transport_error(flow, Instant::now());
            }
        }
        while let Some(event) = self.waiting.take().or_else(|| self.endpoint.poll_event()) {
            if let Event::CloseConnection { connection, why } = &event {
                tracing::debug!(%why, "closing a connection that speaks no SIP");
                self.transports.close(*connection);
                continue;
            }
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.waiting = Some(event);
                    break;
                }
                // Call handling is gone; calls end with the process.
                Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
        self.counters.write(*self.endpoint.counters());
    }
}

/// What a turn of the loop is about.
enum Turn {
    Verb(Option<Verb>),
    Room,
    Arrival(Arrival),
    Deadline,
}

/// Sets the alarm to the earlier of two instants; `false`: there is none.
fn set_alarm(alarm: std::pin::Pin<&mut Sleep>, first: Option<Instant>, second: Option<Instant>) -> bool {
    let Some(at) = [first, second].into_iter().flatten().min() else { return false };
    let at = tokio::time::Instant::from_std(at);
    if alarm.deadline() != at {
        alarm.reset(at);
    }
    true
}
