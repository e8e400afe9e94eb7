//! The task that owns the endpoint: bytes, verbs and deadlines in; bytes and events out.

mod sending;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_sip::endpoint::Knock;
use tandem_sip::parse::ParseError;
use tandem_sip::resolve::Target;
use tandem_sip::{
    CallError, ConnectionId, Endpoint, EndpointConfig, Event, Flow, Method, Reply, Transmit, stun,
};
use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::counters::count;
use super::guard::SharedGuard;
use super::keep_alive::KeepAlives;
use super::outgoing::{Handle, Outgoing, Verdict, Wanted};
use super::refusal_log::{RefusalLog, Refused};
use super::resolver::Resolver;
use super::tls::Tls;
use super::transport::{Arrival, Identity, Transports};
use super::{NotSent, SharedCounters, SipEvent, Token, Verb};
use crate::trunk::guard::Source;

/// Datagrams that are read before verbs and deadlines have their turn.
const DATAGRAMS_A_TURN: usize = 64;
/// After the last verb, how long answers to our BYEs and ACKs to our refusals are still handled.
const LINGER: Duration = Duration::from_millis(500);
/// Seconds in the Retry-After of a 503 by a process that goes down: about as long as its successor takes to start.
const RETRY_AFTER_SHUTDOWN_S: u32 = 5;
/// Requests whose destination is being looked up. More are not sent.
const RESOLUTIONS_MAX: usize = 1_024;
/// The longest datagram of UDP.
const DATAGRAM_MAX: usize = 65_535;

/// See the module.
pub struct Driver {
    endpoint: Endpoint,
    transports: Transports,
    verbs: mpsc::Receiver<Verb>,
    events: mpsc::Sender<SipEvent>,
    /// What the shell itself has to say, before the endpoint's events. Each verb adds one at most.
    said: VecDeque<SipEvent>,
    /// Open connections by which a REGISTER has come: the registrar is told of their end.
    registering: HashSet<ConnectionId>,
    /// Those of them that are gone, to be told behind what the endpoint has to say of them.
    gone: VecDeque<ConnectionId>,
    /// An event that found the channel full.
    waiting: Option<SipEvent>,
    counters: SharedCounters,
    refusals: RefusalLog,
    guard: SharedGuard,
    outgoing: Outgoing,
    keep_alives: KeepAlives,
    resolver: Resolver,
    /// Requests whose destination is being looked up.
    resolving: HashMap<Token, Resolving>,
    resolved_in: mpsc::Sender<Resolved>,
    resolved: mpsc::Receiver<Resolved>,
    tls: Arc<Tls>,
}

struct Resolving {
    wanted: Wanted,
    identity: Identity,
}

/// A token, and where its request is to be tried.
type Resolved = (Token, Result<Vec<Target>, String>);

impl Driver {
    /// A driver; nothing happens until it runs.
    pub(super) fn new(
        config: EndpointConfig,
        transports: Transports,
        resolver: Resolver,
        tls: Arc<Tls>,
        verbs: mpsc::Receiver<Verb>,
        events: mpsc::Sender<SipEvent>,
        counters: SharedCounters,
    ) -> Self {
        let endpoint = Endpoint::new(config);
        let (resolved_in, resolved) = mpsc::channel(RESOLUTIONS_MAX);
        Self {
            endpoint,
            transports,
            verbs,
            events,
            said: VecDeque::new(),
            registering: HashSet::new(),
            gone: VecDeque::new(),
            waiting: None,
            counters,
            refusals: RefusalLog::default(),
            guard: SharedGuard::default(),
            outgoing: Outgoing::default(),
            keep_alives: KeepAlives::default(),
            resolver,
            resolving: HashMap::new(),
            resolved_in,
            resolved,
            tls,
        }
    }

    /// With a guard that knows trunks and phones.
    pub(super) fn with_guard(self, guard: SharedGuard) -> Self {
        Self { guard, ..self }
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
            let deadlines = [
                self.endpoint.poll_timeout(),
                self.refusals.poll_timeout(),
                self.outgoing.poll_timeout(),
                self.keep_alives.poll_timeout(),
                last_turn,
            ];
            let has_alarm = set_alarm(alarm.as_mut(), deadlines);
            let turn = tokio::select! {
                biased;
                verb = self.verbs.recv(), if last_turn.is_none() => Turn::Verb(verb),
                // `drain` will find the room, or that nobody reads events any more.
                _ = self.events.reserve(), if !has_room => Turn::Room,
                // Before the sockets: a flood must not stop the timers.
                () = alarm.as_mut(), if has_alarm => Turn::Deadline,
                // We hold a sender: the channel never ends.
                Some(resolved) = self.resolved.recv() => Turn::Resolved(resolved),
                arrival = self.transports.ready(), if has_room => Turn::Arrival(arrival),
            };
            match turn {
                Turn::Verb(Some(verb)) => self.perform(verb),
                Turn::Verb(None) => last_turn = Some(Instant::now() + LINGER),
                Turn::Room => {}
                Turn::Arrival(Arrival::Datagrams(listener)) => self.read_datagrams(listener, &mut datagram),
                Turn::Arrival(arrival) => self.arrive(arrival),
                Turn::Resolved((token, targets)) => self.handle_resolved(token, targets),
                Turn::Deadline => {
                    let now = Instant::now();
                    if last_turn.is_some_and(|at| at <= now) {
                        break;
                    }
                    self.refusals.handle_timeout(now);
                    self.endpoint.handle_timeout(now);
                    self.leave_silent(now);
                    while let Some(transmit) = self.keep_alives.poll_transmit(now) {
                        // Lost like any datagram: the next one may get through.
                        let _ = self.transports.send(transmit);
                    }
                }
            }
        }
        self.drain();
    }

    fn perform(&mut self, verb: Verb) {
        match verb {
            Verb::Invite(token, invite, destination) => {
                self.begin(token, Wanted::Invite(invite), destination);
            }
            Verb::Request(token, request, destination) => {
                self.begin(token, Wanted::Request(request), destination);
            }
            mut verb => {
                if let Verb::Cancel(call) | Verb::HangUp(call, _) = &mut verb {
                    let newest = self.outgoing.newest(Handle::Call(*call));
                    self.outgoing.forget(newest);
                    if let Handle::Call(newest) = newest {
                        *call = newest;
                    }
                }
                self.perform_now(verb);
            }
        }
    }

    fn perform_now(&mut self, verb: Verb) {
        match verb.perform(&mut self.endpoint, Instant::now()) {
            Ok(said) => self.said.extend(said),
            // The peer was faster; the event that says so is on its way.
            Err(error @ (CallError::Unknown | CallError::State(_))) => {
                tracing::debug!(%error, "a SIP verb came too late");
            }
            Err(error) => tracing::error!(%error, "a SIP verb was not possible"),
        }
    }

    fn not_sent(&mut self, token: Token, why: NotSent) {
        self.said.push_back(SipEvent::NotSent { token, why });
    }

    fn read_datagrams(&mut self, listener: usize, datagram: &mut [u8]) {
        for _ in 0..DATAGRAMS_A_TURN {
            let Some((len, flow)) = self.transports.try_receive(listener, datagram) else { return };
            let (now, source) = (Instant::now(), Source { ip: flow.remote.ip(), peer: None });
            if !self.guard.may_read(&datagram[..len], source, now) {
                continue;
            }
            if stun::is_stun(&datagram[..len]) {
                self.answer_stun(&datagram[..len], flow);
                continue;
            }
            let guard = &self.guard;
            let mut door = |knock: &Knock<'_>| guard.lets_in(knock, source, now);
            self.endpoint.handle_input_at(&datagram[..len], flow, now, &mut door);
            self.drain();
            if self.waiting.is_some() {
                return;
            }
        }
    }

    /// A phone keeps its NAT's mapping open (RFC 5626 §4.4.2).
    fn answer_stun(&mut self, datagram: &[u8], flow: Flow) {
        let net = &self.counters.net;
        match stun::answer(datagram, flow.remote) {
            Ok(bytes) => {
                count(&net.stun_answered);
                // Lost like any datagram: it is asked again.
                let _ = self.transports.send(Transmit { flow, bytes });
            }
            Err(_) => count(&net.stun_malformed),
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
                // Pieces that were under way when we closed the connection: the rest of a stream without its beginning.
                if !flow.connection.is_some_and(|connection| self.transports.knows(connection)) {
                    return;
                }
                let (now, peer) = (Instant::now(), self.transports.peer(flow));
                let source = Source { ip: flow.remote.ip(), peer: peer.as_deref() };
                if !self.guard.may_read(&bytes, source, now) {
                    self.close(flow);
                    return;
                }
                let guard = &self.guard;
                let mut door = |knock: &Knock<'_>| guard.lets_in(knock, source, now);
                self.endpoint.handle_input_at(&bytes, flow, now, &mut door);
            }
            Arrival::Closed(flow) => self.close(flow),
            Arrival::Failed(flow) => {
                if let Some(connection) = flow.connection {
                    self.transports.forget_unopened(connection);
                }
                self.endpoint.handle_transport_error(flow, Instant::now());
            }
        }
    }

    /// A connection is gone, or we want it gone.
    fn close(&mut self, flow: Flow) {
        let Some(connection) = flow.connection else { return };
        self.transports.forget(connection);
        if self.registering.remove(&connection) {
            self.gone.push_back(connection);
        }
        self.endpoint.handle_closed(connection, Instant::now());
    }

    /// Empties what the endpoint wants out: the drain contract.
    fn drain(&mut self) {
        loop {
            while let Some(transmit) = self.endpoint.poll_transmit() {
                let flow = transmit.flow;
                if self.transports.send(transmit).is_err() {
                    self.endpoint.handle_transport_error(flow, Instant::now());
                }
            }
            while let Some(token) = self.transports.poll_lost() {
                self.said.push_back(SipEvent::FlowLost { token });
            }
            if let Some(said) = self.waiting.take().or_else(|| self.said.pop_front()) {
                self.deliver(said);
            } else if let Some(event) = self.endpoint.poll_event() {
                self.handle_event(event);
            } else if let Some(connection) = self.gone.pop_front() {
                self.deliver(SipEvent::Closed { connection });
            } else {
                break;
            }
            if self.waiting.is_some() {
                break;
            }
        }
        self.counters.write(*self.endpoint.counters());
    }

    /// Keeps what is the shell's own, and passes the rest on.
    fn handle_event(&mut self, event: Event) {
        match self.outgoing.handle_event(&event, Instant::now()) {
            Verdict::Pass => {}
            Verdict::Swallow => return,
            Verdict::Again(attempt) => {
                // If nowhere else can be reached, this is how it ends.
                if self.try_next(*attempt).is_ok() {
                    return count(&self.counters.net.failovers);
                }
            }
        }
        match event {
            // A registration's connection is silent where its server answers no keep-alive.
            Event::CloseConnection { connection, why: ParseError::Idle(_) }
                if self.transports.is_kept(connection) => {}
            Event::CloseConnection { connection, why } => {
                tracing::debug!(%why, "closing a SIP connection");
                self.transports.forget(connection);
            }
            Event::Refused { flow, status, rule, detail } => {
                self.refusals.write(&Refused { flow, status, rule, detail }, Instant::now());
            }
            event => {
                if let Event::Request { request, flow, .. } = &event
                    && request.method == Method::Register
                {
                    self.registering.extend(flow.connection);
                }
                let peer = match &event {
                    Event::IncomingInvite { flow, .. } | Event::Request { flow, .. } => {
                        self.transports.peer(*flow)
                    }
                    _ => None,
                };
                self.deliver(SipEvent::Endpoint { event, peer });
            }
        }
    }

    fn deliver(&mut self, event: SipEvent) {
        match self.events.try_send(event) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(event)) => self.waiting = Some(event),
            Err(mpsc::error::TrySendError::Closed(SipEvent::Endpoint { event, .. })) => self.decline(&event),
            Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
    }

    /// Call handling is gone, and the process goes down: whoever still wants something is sent elsewhere.
    fn decline(&mut self, event: &Event) {
        let now = Instant::now();
        let reply = Reply::new(503).retry_after_s(RETRY_AFTER_SHUTDOWN_S);
        let declined = match event {
            Event::IncomingInvite { call, .. } | Event::Reinvite { call, .. } => {
                self.endpoint.reject(*call, reply, now)
            }
            Event::Request { handle, .. } => self.endpoint.reply(*handle, reply, now),
            _ => return,
        };
        if let Err(error) = declined {
            tracing::debug!(%error, "a SIP request went away before it was declined");
        }
    }
}

/// What a turn of the loop is about.
enum Turn {
    Verb(Option<Verb>),
    Room,
    Arrival(Arrival),
    Resolved(Resolved),
    Deadline,
}

/// Sets the alarm to the earliest of these instants; `false`: there is none.
fn set_alarm(alarm: std::pin::Pin<&mut Sleep>, deadlines: [Option<Instant>; 5]) -> bool {
    let Some(at) = deadlines.into_iter().flatten().min() else { return false };
    let at = tokio::time::Instant::from_std(at);
    if alarm.deadline() != at {
        alarm.reset(at);
    }
    true
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tandem_sip::Transport;
    use tokio::net::UdpSocket;

    use super::super::transport::{Connection, Shared};
    use super::*;
    use crate::config::{SipListen, SipTransport};
    use crate::sip;

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    fn request(method: &str, transport: &str) -> String {
        format!(
            "{method} sip:echo@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/{transport} 127.0.0.1;branch=z9hG4bK1;rport\r\n\
             Max-Forwards: 70\r\nFrom: <sip:me@127.0.0.1>;tag=1\r\nTo: <sip:echo@127.0.0.1>\r\nCall-ID: c\r\n\
             CSeq: 1 {method}\r\nContact: <sip:me@127.0.0.1>\r\nContent-Length: 0\r\n\r\n"
        )
    }

    fn no_tls() -> Arc<Tls> {
        Arc::new(Tls::load(None, Vec::new()).unwrap())
    }

    #[tokio::test]
    async fn invite_during_the_last_moments_is_sent_elsewhere() {
        let listen = vec![SipListen { transport: SipTransport::Udp, address: LOOPBACK }];
        let settings = sip::SipSettings { listen, ..sip::SipSettings::default() };
        let shell = sip::start(&settings, EndpointConfig::default()).await.unwrap();
        let (_, address) = shell.listeners[0];
        drop((shell.verbs, shell.events));
        let caller = UdpSocket::bind(LOOPBACK).await.unwrap();
        caller.send_to(request("INVITE", "UDP").as_bytes(), address).await.unwrap();
        let mut said = Vec::new();
        let mut buffer = vec![0; 2_048];
        while said.len() < 2 {
            let (len, _) = caller.recv_from(&mut buffer).await.unwrap();
            said.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
        }
        assert!(said[0].starts_with("SIP/2.0 100 "), "{said:?}");
        assert!(
            said[1].starts_with("SIP/2.0 503 ") && said[1].contains("\r\nRetry-After: 5\r\n"),
            "{said:?}"
        );
        shell.task.await.unwrap();
    }

    #[tokio::test]
    async fn bytes_of_a_closed_connection_are_dropped() {
        let (_verbs, verbs_in) = mpsc::channel(1);
        let (events, _events) = mpsc::channel(1);
        let (tls, counters) = (no_tls(), SharedCounters::default());
        let transports = Transports::open(&[], tls.clone(), counters.net.clone()).await.unwrap();
        let (config, resolver) = (EndpointConfig::default(), Resolver::new(Some(LOOPBACK)));
        let mut driver = Driver::new(config, transports, resolver, tls, verbs_in, events, counters);
        let flow = Flow::connected(Transport::Tcp, LOOPBACK, LOOPBACK, ConnectionId(7));
        driver.arrive(Arrival::Bytes(flow, request("OPTIONS", "TCP").into_bytes()));
        assert_eq!(driver.endpoint.counters().requests_in, 0);
    }

    #[tokio::test]
    async fn end_of_a_connection_is_told_behind_its_register_and_without_one_not_at_all() {
        let (_verbs, verbs_in) = mpsc::channel(1);
        let (events, mut heard) = mpsc::channel(1);
        let (tls, counters) = (no_tls(), SharedCounters::default());
        let transports = Transports::open(&[], tls.clone(), counters.net.clone()).await.unwrap();
        let config = EndpointConfig { accepted_methods: vec![Method::Register], ..EndpointConfig::default() };
        let resolver = Resolver::new(Some(LOOPBACK));
        let mut driver = Driver::new(config, transports, resolver, tls, verbs_in, events, counters);
        let accept = |driver: &mut Driver, id| {
            let flow = Flow::connected(Transport::Tcp, LOOPBACK, LOOPBACK, ConnectionId(id));
            let (remote, transport, (writes, _)) = (LOOPBACK, Transport::Tcp, Shared::new_writes());
            let connection = Connection { remote, transport, writes, peer: None, way: None, kept_for: None };
            driver.arrive(Arrival::Accepted(flow, connection));
            flow
        };
        let silent = accept(&mut driver, 1);
        driver.arrive(Arrival::Bytes(silent, b"\r\n\r\n".to_vec()));
        driver.arrive(Arrival::Closed(silent));
        driver.drain();
        assert!(heard.try_recv().is_err());
        let phone = accept(&mut driver, 2);
        driver.arrive(Arrival::Bytes(phone, request("REGISTER", "TCP").into_bytes()));
        driver.drain();
        driver.arrive(Arrival::Closed(phone));
        driver.drain();
        assert!(matches!(heard.try_recv(), Ok(SipEvent::Endpoint { event: Event::Request { .. }, .. })));
        driver.drain();
        assert!(matches!(heard.try_recv(), Ok(SipEvent::Closed { connection: ConnectionId(2) })));
    }

    #[tokio::test]
    async fn pipelined_requests_of_one_read_are_counted_one_by_one_and_the_connection_is_closed() {
        let (_verbs, verbs_in) = mpsc::channel(1);
        let (events, _heard) = mpsc::channel(1_000);
        let (tls, counters) = (no_tls(), SharedCounters::default());
        let transports = Transports::open(&[], tls.clone(), counters.net.clone()).await.unwrap();
        let (config, resolver) = (EndpointConfig::default(), Resolver::new(Some(LOOPBACK)));
        let mut driver = Driver::new(config, transports, resolver, tls, verbs_in, events, counters);
        let flow = Flow::connected(Transport::Tcp, LOOPBACK, LOOPBACK, ConnectionId(1));
        let (remote, transport, (writes, _writes_in)) = (LOOPBACK, Transport::Tcp, Shared::new_writes());
        let connection = Connection { remote, transport, writes, peer: None, way: None, kept_for: None };
        driver.arrive(Arrival::Accepted(flow, connection));
        let all: String = (0..200)
            .map(|n| {
                request("INVITE", "TCP")
                    .replace("z9hG4bK1", &format!("z9hG4bK{n}"))
                    .replace("Call-ID: c", &format!("Call-ID: c{n}"))
            })
            .collect();
        driver.arrive(Arrival::Bytes(flow, all.into_bytes()));
        assert_eq!(driver.endpoint.call_count(), 60, "what one stranger may bring at once");
        let mut events = std::iter::from_fn(|| driver.endpoint.poll_event());
        assert!(events.any(|event| matches!(event, Event::CloseConnection { .. })));
    }

    #[tokio::test]
    async fn first_datagram_of_a_new_socket_leaves() {
        let listen = [SipListen { transport: SipTransport::Udp, address: LOOPBACK }];
        let mut transports = Transports::open(&listen, no_tls(), Arc::default()).await.unwrap();
        let peer = UdpSocket::bind(LOOPBACK).await.unwrap();
        let flow = Flow::udp(transports.listeners()[0].1, peer.local_addr().unwrap());
        transports.send(Transmit { flow, bytes: b"hello".to_vec() }).unwrap();
        let mut buffer = [0; 16];
        let heard = tokio::time::timeout(Duration::from_secs(5), peer.recv_from(&mut buffer)).await;
        assert_eq!(heard.unwrap().unwrap().0, 5);
    }
}
