//! The task that owns the endpoint: bytes, verbs and deadlines in; bytes and events out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tandem_sip::{CallError, Endpoint, EndpointConfig, Event, Flow, Reply, Transport};
use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::refusal_log::{RefusalLog, Refused};
use super::transport::{Arrival, Transports};
use super::{Destination, NotSent, SharedCounters, SipEvent, Verb};

/// Datagrams that are read before verbs and deadlines have their turn.
const DATAGRAMS_A_TURN: usize = 64;
/// After the last verb, how long answers to our BYEs and ACKs to our refusals are still handled.
const LINGER: Duration = Duration::from_millis(500);
/// Seconds in the Retry-After of a 503 by a process that goes down: about as long as its successor takes to start.
const RETRY_AFTER_SHUTDOWN_S: u32 = 5;
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
    /// An event that found the channel full.
    waiting: Option<SipEvent>,
    counters: SharedCounters,
    refusals: RefusalLog,
}

impl Driver {
    /// A driver; nothing happens until it runs.
    pub fn new(
        config: EndpointConfig,
        transports: Transports,
        verbs: mpsc::Receiver<Verb>,
        events: mpsc::Sender<SipEvent>,
        counters: SharedCounters,
    ) -> Self {
        let endpoint = Endpoint::new(config);
        let refusals = RefusalLog::default();
        Self { endpoint, transports, verbs, events, said: VecDeque::new(), waiting: None, counters, refusals }
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
            let deadlines = [self.endpoint.poll_timeout(), self.refusals.poll_timeout(), last_turn];
            let has_alarm = set_alarm(alarm.as_mut(), deadlines);
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
                    self.refusals.handle_timeout(now);
                    self.endpoint.handle_timeout(now);
                }
            }
        }
        self.drain();
    }

    fn perform(&mut self, mut verb: Verb) {
        let now = Instant::now();
        if let Verb::Invite(token, _, destination) | Verb::Request(token, _, destination) = &mut verb {
            match self.find_flow(destination) {
                Ok(flow) => destination.flow = Some(flow),
                Err(why) => return self.said.push_back(SipEvent::NotSent { token: *token, why }),
            }
        }
        match verb.perform(&mut self.endpoint, now) {
            Ok(said) => self.said.extend(said),
            // The peer was faster; the event that says so is on its way.
            Err(error @ (CallError::Unknown | CallError::State(_))) => {
                tracing::debug!(%error, "a SIP verb came too late");
            }
            Err(error) => tracing::error!(%error, "a SIP verb was not possible"),
        }
    }

    /// The way to a destination that is an address.
    fn find_flow(&self, destination: &Destination) -> Result<Flow, NotSent> {
        if let Some(flow) = destination.flow {
            return Ok(flow);
        }
        let remote = destination.uri.socket_addr().ok_or_else(|| NotSent::Unresolved {
            host: destination.uri.host().into(),
            why: "it is not an address".into(),
        })?;
        let transport = destination.named_transport().unwrap_or(Transport::Udp);
        let unreachable = || NotSent::Unreachable {
            transport: transport.token(),
            remote,
            why: "no listener of that transport and address family; see TANDEM_SIP_LISTEN",
        };
        let local = self.transports.local_for(transport, remote).ok_or_else(unreachable)?;
        Ok(Flow { transport, local, remote, connection: None })
    }

    fn read_datagrams(&mut self, listener: usize, datagram: &mut [u8]) {
        for _ in 0..DATAGRAMS_A_TURN {
            let Some((len, flow)) = self.transports.try_receive(listener, datagram) else { return };
            self.endpoint.handle_input(&datagram[..len], flow, Instant::now());
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
                // Pieces that were under way when we closed the connection: the rest of a stream without its beginning.
                if flow.connection.is_some_and(|connection| self.transports.knows(connection)) {
                    self.endpoint.handle_input(&bytes, flow, Instant::now());
                }
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

    /// Empties what the endpoint wants out: the drain contract.
    fn drain(&mut self) {
        loop {
            while let Some(transmit) = self.endpoint.poll_transmit() {
                let flow = transmit.flow;
                if self.transports.send(transmit).is_err() {
                    self.endpoint.handle_transport_error(flow, Instant::now());
                }
            }
            if let Some(said) = self.waiting.take().or_else(|| self.said.pop_front()) {
                self.deliver(said);
            } else if let Some(event) = self.endpoint.poll_event() {
                self.handle_event(event);
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
        match event {
            Event::CloseConnection { connection, why } => {
                tracing::debug!(%why, "closing a SIP connection");
                self.transports.close(connection);
            }
            Event::Refused { flow, status, rule, detail } => {
                self.refusals.write(&Refused { flow, status, rule, detail }, Instant::now());
            }
            event => self.deliver(event.into()),
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
    Deadline,
}

/// Sets the alarm to the earliest of these instants; `false`: there is none.
fn set_alarm(alarm: std::pin::Pin<&mut Sleep>, deadlines: [Option<Instant>; 3]) -> bool {
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

    use tandem_sip::{ConnectionId, Transport};
    use tokio::net::UdpSocket;

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

    #[tokio::test]
    async fn invite_during_the_last_moments_is_sent_elsewhere() {
        let listen = [SipListen { transport: SipTransport::Udp, address: LOOPBACK }];
        let shell = sip::start(&listen, EndpointConfig::default()).await.unwrap();
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
        let transports = Transports::open(&[]).await.unwrap();
        let config = EndpointConfig::default();
        let mut driver = Driver::new(config, transports, verbs_in, events, SharedCounters::default());
        let flow = Flow::connected(Transport::Tcp, LOOPBACK, LOOPBACK, ConnectionId(7));
        driver.arrive(Arrival::Bytes(flow, request("OPTIONS", "TCP").into_bytes()));
        assert_eq!(driver.endpoint.counters().requests_in, 0);
    }

    #[tokio::test]
    async fn first_datagram_of_a_new_socket_leaves() {
        let listen = [SipListen { transport: SipTransport::Udp, address: LOOPBACK }];
        let mut transports = Transports::open(&listen).await.unwrap();
        let peer = UdpSocket::bind(LOOPBACK).await.unwrap();
        let flow = Flow::udp(transports.listeners()[0].1, peer.local_addr().unwrap());
        transports.send(tandem_sip::Transmit { flow, bytes: b"hello".to_vec() }).unwrap();
        let mut buffer = [0; 16];
        let heard = tokio::time::timeout(Duration::from_secs(5), peer.recv_from(&mut buffer)).await;
        assert_eq!(heard.unwrap().unwrap().0, 5);
    }
}
