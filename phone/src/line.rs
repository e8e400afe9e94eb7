//! The phone's line: one SIP endpoint, its sockets, and who wants to hear of which call.
//!
//! Every access goes through [`Shared::act`], which empties the endpoint afterwards: messages leave at once, events go to their call's
//! task. A timer task does nothing but keep the endpoint's deadline.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tandem_sip::{CallHandle, Endpoint, Event, Flow, Method, Reply, Request, Transmit, Transport};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use crate::transport::Connections;

/// Events of one call that wait for its task, which does nothing but take them. More: the peer floods, and the call is dropped.
const CALL_EVENTS_MAX: usize = 128;
/// Calls that wait for `answer_next`. Further ones are busy (486).
pub(crate) const INCOMING_MAX: usize = 16;
/// The longest datagram.
const DATAGRAM_MAX: usize = 65_536;

/// A call for us that nobody has looked at.
#[derive(Debug)]
pub(crate) struct NewCall {
    pub(crate) handle: CallHandle,
    pub(crate) request: Box<Request>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) invited: Instant,
}

/// The sockets.
#[derive(Debug)]
pub(crate) enum Wires {
    Udp(UdpSocket),
    Tcp(Connections),
}

/// Keeps the line's tasks alive; they end with the last phone or call that holds it.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) shared: Arc<Shared>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        if let Wires::Tcp(connections) = &self.shared.wires {
            connections.close_all();
        }
    }
}

impl Line {
    pub(crate) fn udp(endpoint: Endpoint, socket: UdpSocket) -> io::Result<(Line, mpsc::Receiver<NewCall>)> {
        let local = socket.local_addr()?;
        let (shared, incoming) = Shared::new(endpoint, Wires::Udp(socket), local);
        let tasks = vec![
            tokio::spawn(keep_time(shared.clone())).abort_handle(),
            tokio::spawn(receive(shared.clone())).abort_handle(),
        ];
        Ok((Line { shared, tasks }, incoming))
    }

    pub(crate) fn tcp(
        endpoint: Endpoint,
        listener: TcpListener,
    ) -> io::Result<(Line, mpsc::Receiver<NewCall>)> {
        let local = listener.local_addr()?;
        let (shared, incoming) = Shared::new(endpoint, Wires::Tcp(Connections::default()), local);
        let tasks = vec![
            tokio::spawn(keep_time(shared.clone())).abort_handle(),
            tokio::spawn(crate::transport::accept(shared.clone(), listener)).abort_handle(),
        ];
        Ok((Line { shared, tasks }, incoming))
    }
}

/// The endpoint and what must follow its every change.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// The deadline may be another.
    changed: Notify,
    pub(crate) wires: Wires,
    pub(crate) local: SocketAddr,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) endpoint: Endpoint,
    routes: HashMap<CallHandle, mpsc::Sender<Event>>,
    incoming: mpsc::Sender<NewCall>,
}

impl State {
    /// A place for the events of a call; they end with its `Ended`.
    pub(crate) fn route(&mut self, call: CallHandle) -> mpsc::Receiver<Event> {
        let (sender, events) = mpsc::channel(CALL_EVENTS_MAX);
        self.routes.insert(call, sender);
        events
    }

    fn dispatch(&mut self, event: Event, now: Instant) {
        match event {
            Event::IncomingInvite { call, request, .. } => {
                let events = self.route(call);
                let new = NewCall { handle: call, request, events, invited: now };
                if self.incoming.try_send(new).is_err() {
                    self.routes.remove(&call);
                    // The call is new, so it can be refused.
                    let _ = self.endpoint.reject(call, Reply::new(486), now);
                }
            }
            Event::Request { handle, request, .. } => {
                let status = if request.method == Method::Info { 200 } else { 405 };
                // It may have been withdrawn meanwhile.
                let _ = self.endpoint.reply(handle, Reply::new(status), now);
            }
            event => {
                let Some(call) = call_of(&event) else { return };
                let ended = matches!(event, Event::Ended { .. });
                let delivered = self.routes.get(&call).is_some_and(|route| route.try_send(event).is_ok());
                if ended || !delivered {
                    self.routes.remove(&call);
                }
            }
        }
    }
}

impl Shared {
    fn new(endpoint: Endpoint, wires: Wires, local: SocketAddr) -> (Arc<Self>, mpsc::Receiver<NewCall>) {
        let (sender, incoming) = mpsc::channel(INCOMING_MAX);
        let state = State { endpoint, routes: HashMap::new(), incoming: sender };
        (Arc::new(Shared { state: Mutex::new(state), changed: Notify::new(), wires, local }), incoming)
    }

    /// A way to a peer, over a connection that is open or to be opened.
    pub(crate) fn flow_to(&self, remote: SocketAddr) -> Flow {
        let transport = match self.wires {
            Wires::Udp(_) => Transport::Udp,
            Wires::Tcp(_) => Transport::Tcp,
        };
        Flow { transport, local: self.local, remote, connection: None }
    }

    /// Does something with the endpoint, then everything that follows from it.
    pub(crate) fn act<R>(self: &Arc<Self>, verb: impl FnOnce(&mut State, Instant) -> R) -> R {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = verb(&mut state, now);
        loop {
            if let Some(transmit) = state.endpoint.poll_transmit() {
                let flow = transmit.flow;
                if !self.send(transmit) {
                    state.endpoint.handle_transport_error(flow, now);
                }
            } else if let Some(event) = state.endpoint.poll_event() {
                if let (Event::CloseConnection { connection, .. }, Wires::Tcp(wires)) = (&event, &self.wires)
                {
                    wires.close(*connection);
                }
                state.dispatch(event, now);
            } else {
                break;
            }
        }
        drop(state);
        self.changed.notify_one();
        result
    }

    fn send(self: &Arc<Self>, transmit: Transmit) -> bool {
        match &self.wires {
            Wires::Udp(socket) => match socket.try_send_to(&transmit.bytes, transmit.flow.remote) {
                Ok(_) => true,
                // The network loses datagrams too; the transaction sends again.
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            },
            Wires::Tcp(connections) => connections.send(self, transmit),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).endpoint.poll_timeout()
    }
}

async fn keep_time(shared: Arc<Shared>) {
    loop {
        match shared.deadline() {
            Some(deadline) => tokio::select! {
                () = tokio::time::sleep_until(deadline.into()) => {
                    shared.act(|state, now| state.endpoint.handle_timeout(now));
                }
                () = shared.changed.notified() => {}
            },
            None => shared.changed.notified().await,
        }
    }
}

async fn receive(shared: Arc<Shared>) {
    let Wires::Udp(socket) = &shared.wires else { return };
    let mut datagram = vec![0; DATAGRAM_MAX];
    loop {
        // An error here is an ICMP message about an earlier send: its transaction will find out.
        let Ok((len, remote)) = socket.recv_from(&mut datagram).await else { continue };
        let flow = Flow::udp(shared.local, remote);
        shared.act(|state, now| state.endpoint.handle_input(&datagram[..len], flow, now));
    }
}

fn call_of(event: &Event) -> Option<CallHandle> {
    match event {
        Event::IncomingInvite { call, .. }
        | Event::Acknowledged { call, .. }
        | Event::Reinvite { call, .. }
        | Event::ReinviteCancelled { call }
        | Event::Provisional { call, .. }
        | Event::Pracked { call, .. }
        | Event::ReferProgress { call, .. }
        | Event::Answered { call, .. }
        | Event::ReinviteAnswered { call, .. }
        | Event::ReinviteRefused { call, .. }
        | Event::Ended { call, .. } => Some(*call),
        Event::Request { call, .. } | Event::Response { call, .. } => *call,
        Event::Refused { .. } | Event::CloseConnection { .. } => None,
    }
}
