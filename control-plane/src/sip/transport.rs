//! The sockets of the SIP shell, and the table of its connections.
//!
//! UDP is read by the driver's own task: a datagram costs no channel and no wake-up of another task. A connection has a
//! task of its own (handshakes in `handshake.rs`, then `connection.rs` or `websocket.rs`), joined to the driver by bounded
//! channels. A connection is used again by whoever goes the same way: transport, address, and for TLS the trunk that we
//! are known as and the name that the certificate was checked for.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Instant;

use socket2::SockRef;
use tandem_sip::{ConnectionId, Flow, Transmit, Transport};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;

use super::connection::Out;
use super::counters::NetCounters;
use super::handshake;
use super::slots::Slots;
use super::tls::Tls;
use super::{ListenError, NotSent, TlsPeer, Token};
use crate::config::{SipListen, SipTransport};

/// Messages that wait for a slow peer. Full: its connection is closed.
const WRITES_MAX: usize = 256;
/// Pieces of streams that wait for the driver. Full: connections are not read.
const ARRIVALS_MAX: usize = 1_024;
/// Addresses of TLS servers whose name is remembered for when their connection breaks during a call. Full: all are
/// forgotten, and such a call is not reached any more unless the peer comes back by itself.
const NAMES_MAX: usize = 4_096;
/// Room in the kernel for a burst of INVITEs while a turn lasts.
const UDP_BUFFER_LEN: usize = 4 * 1024 * 1024;

/// What has come in.
#[derive(Debug)]
pub enum Arrival {
    /// This UDP listener has something to read.
    Datagrams(usize),
    /// A peer has connected to us, and all handshakes are done.
    Accepted(Flow, Connection),
    /// A connection of ours is open.
    Opened(Flow),
    /// Bytes came: a piece of a stream, or one WebSocket message.
    Bytes(Flow, Vec<u8>),
    /// It is gone.
    Closed(Flow),
    /// It could not be opened.
    Failed(Flow),
}

/// A message that can never leave: no such transport, a broken connection, an address that cannot be reached.
#[derive(Debug)]
pub struct Undeliverable;

/// Who we are and who the other side must be, on a TLS connection of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Whose certificate and authorities are used.
    pub trunk: Option<Arc<str>>,
    /// The name in the server's certificate: the host of the URI, before DNS (RFC 5922 §7.3).
    pub host: Box<str>,
}

/// What two requests must share to go by one connection.
type Way = (Transport, SocketAddr, Option<Identity>);

/// All sockets.
pub struct Transports {
    udp: Vec<(UdpSocket, SocketAddr)>,
    streams: Vec<(Transport, SocketAddr)>,
    arrivals: mpsc::Receiver<Arrival>,
    shared: Shared,
    connections: HashMap<ConnectionId, Connection>,
    /// Connections by peer, for messages of known dialogs that name none.
    by_remote: HashMap<(Transport, SocketAddr), ConnectionId>,
    /// Connections of ours, for new requests.
    by_way: HashMap<Way, ConnectionId>,
    /// Who the TLS server at an address was.
    names: HashMap<SocketAddr, Identity>,
    /// REGISTERs whose connection is gone, for the driver to tell.
    lost: Vec<Token>,
}

/// The driver's end of a connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) remote: SocketAddr,
    pub(super) transport: Transport,
    pub(super) writes: mpsc::Sender<Out>,
    /// Who the peer has proven to be.
    pub(super) peer: Option<Arc<TlsPeer>>,
    pub(super) way: Option<Way>,
    /// The REGISTER that lives on it.
    pub(super) kept_for: Option<Token>,
}

/// What the tasks of connections share with the driver.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) arrivals: mpsc::Sender<Arrival>,
    next_id: Arc<AtomicU64>,
    pub(super) slots: Slots,
    pub(super) counters: Arc<NetCounters>,
    pub(super) tls: Arc<Tls>,
}

impl Shared {
    pub(super) fn new_id(&self) -> ConnectionId {
        ConnectionId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// A channel to a connection's task.
    pub(super) fn new_writes() -> (mpsc::Sender<Out>, mpsc::Receiver<Out>) {
        mpsc::channel(WRITES_MAX)
    }
}

impl Transports {
    /// Opens every listener.
    pub(super) async fn open(
        listen: &[SipListen],
        tls: Arc<Tls>,
        counters: Arc<NetCounters>,
    ) -> Result<Self, ListenError> {
        let (arrivals_out, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let shared = Shared {
            arrivals: arrivals_out,
            next_id: Arc::default(),
            slots: Slots::default(),
            counters,
            tls,
        };
        let mut transports = Self {
            udp: Vec::new(),
            streams: Vec::new(),
            arrivals,
            shared,
            connections: HashMap::new(),
            by_remote: HashMap::new(),
            by_way: HashMap::new(),
            names: HashMap::new(),
            lost: Vec::new(),
        };
        for listener in listen {
            let opened = match listener.transport {
                SipTransport::Udp => transports.open_udp(listener.address).await,
                SipTransport::Tcp => transports.open_stream(Transport::Tcp, listener.address).await,
                SipTransport::Tls => transports.open_stream(Transport::Tls, listener.address).await,
                SipTransport::Ws => transports.open_stream(Transport::Ws, listener.address).await,
                SipTransport::Wss => transports.open_stream(Transport::Wss, listener.address).await,
            };
            opened.map_err(|source| ListenError::Bind { listener: *listener, source })?;
        }
        Ok(transports)
    }

    async fn open_udp(&mut self, address: SocketAddr) -> io::Result<()> {
        let socket = UdpSocket::bind(address).await?;
        // The kernel grants what it is configured to; less is no error.
        let _ = SockRef::from(&socket).set_recv_buffer_size(UDP_BUFFER_LEN);
        let local = socket.local_addr()?;
        // Until a socket was seen writable once, `try_send_to` says that it would block, and the datagram would be lost.
        socket.writable().await?;
        self.udp.push((socket, local));
        Ok(())
    }

    async fn open_stream(&mut self, transport: Transport, address: SocketAddr) -> io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        self.streams.push((transport, listener.local_addr()?));
        tokio::spawn(handshake::accept_all(listener, transport, self.shared.clone()));
        Ok(())
    }

    /// Where we listen.
    pub fn listeners(&self) -> Vec<(Transport, SocketAddr)> {
        let udp = self.udp.iter().map(|(_, local)| (Transport::Udp, *local));
        udp.chain(self.streams.iter().copied()).collect()
    }

    /// The transports by which requests of ours can leave, best first.
    pub fn outgoing(&self) -> Vec<Transport> {
        let udp = (!self.udp.is_empty()).then_some(Transport::Udp);
        udp.into_iter().chain([Transport::Tcp, Transport::Tls]).collect()
    }

    /// Our address towards this peer: of a listener of the same transport and family; where there is none, of another: the
    /// peer answers over the connection.
    fn local_for(&self, transport: Transport, remote: SocketAddr) -> Option<SocketAddr> {
        let fits = |local: &SocketAddr| local.is_ipv4() == remote.is_ipv4();
        let of = |wanted: Transport| {
            let mut streams = self.streams.iter().filter(move |(of, local)| *of == wanted && fits(local));
            streams.next().map(|(_, local)| *local)
        };
        let udp = || self.udp.iter().map(|(_, local)| *local).find(fits);
        match transport {
            Transport::Udp => udp(),
            Transport::Tcp => of(Transport::Tcp).or_else(udp).or_else(|| of(Transport::Tls)),
            Transport::Tls => of(Transport::Tls).or_else(|| of(Transport::Tcp)).or_else(udp),
            Transport::Ws | Transport::Wss => None,
        }
    }

    /// The next datagram of a listener, if one is there.
    pub fn try_receive(&self, listener: usize, datagram: &mut [u8]) -> Option<(usize, Flow)> {
        let (socket, local) = self.udp.get(listener)?;
        loop {
            match socket.try_recv_from(datagram) {
                Ok((len, remote)) => return Some((len, Flow::udp(*local, remote))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // An ICMP error of an earlier datagram of ours: timers will tell. Read on.
                Err(_) => {}
            }
        }
    }

    /// The next thing that comes in.
    pub async fn ready(&mut self) -> Arrival {
        let udp = &self.udp;
        let readable = std::future::poll_fn(|context| {
            let ready = |(socket, _): &(UdpSocket, SocketAddr)| socket.poll_recv_ready(context).is_ready();
            udp.iter().position(ready).map_or(Poll::Pending, Poll::Ready)
        });
        tokio::select! {
            // We hold a sender: the channel never ends.
            Some(arrival) = self.arrivals.recv() => arrival,
            listener = readable => Arrival::Datagrams(listener),
        }
    }

    /// Keeps the driver's end of a connection.
    pub fn keep(&mut self, flow: Flow, connection: Connection) {
        if let Some(id) = flow.connection {
            self.by_remote.insert((connection.transport, connection.remote), id);
            if let Some(way) = &connection.way {
                self.by_way.insert(way.clone(), id);
            }
            self.connections.insert(id, connection);
        }
    }

    /// Whether this connection is open, or about to be, and not closed by us.
    pub fn knows(&self, id: ConnectionId) -> bool {
        self.connections.contains_key(&id)
    }

    /// Who the peer of a connection has proven to be.
    pub fn peer(&self, flow: Flow) -> Option<Arc<TlsPeer>> {
        self.connections.get(&flow.connection?)?.peer.clone()
    }

    /// The way to an address for a new request of ours: an open connection, or one that is opened now; messages wait in
    /// its channel until it is there. And whether it was open already.
    pub fn flow_to(
        &mut self,
        transport: Transport,
        remote: SocketAddr,
        identity: Option<Identity>,
    ) -> Result<(Flow, bool), NotSent> {
        let unreachable = |why| NotSent::Unreachable { transport: transport.token(), remote, why };
        if matches!(transport, Transport::Ws | Transport::Wss) {
            return Err(unreachable(
                "a browser is reached by the connection that it has opened, and that is gone",
            ));
        }
        let local = self.local_for(transport, remote).ok_or_else(|| {
            unreachable("there is no listener of that address family; see TANDEM_SIP_LISTEN")
        })?;
        if transport == Transport::Udp {
            return Ok((Flow::udp(local, remote), false));
        }
        let identity = identity.filter(|_| transport == Transport::Tls);
        let way = (transport, remote, identity);
        let flow = Flow { transport, local, remote, connection: None };
        if let Some(id) = self.by_way.get(&way) {
            return Ok((Flow { connection: Some(*id), ..flow }, true));
        }
        let id = self.connect(flow, way).ok_or(NotSent::Full("connections"))?;
        Ok((Flow { connection: Some(id), ..flow }, false))
    }

    /// Sends one message, or gives it to its connection. `Err`: it can never leave.
    pub fn send(&mut self, transmit: Transmit) -> Result<(), Undeliverable> {
        let Transmit { flow, bytes } = transmit;
        if flow.transport == Transport::Udp {
            return self.send_datagram(flow, &bytes);
        }
        let known = flow.connection.filter(|id| self.connections.contains_key(id));
        let by_remote = || self.by_remote.get(&(flow.transport, flow.remote)).copied();
        let id = match known.or_else(by_remote) {
            Some(id) => id,
            None => {
                let identity = self.names.get(&flow.remote).cloned();
                let opened = self.flow_to(flow.transport, flow.remote, identity);
                opened.ok().and_then(|(flow, _)| flow.connection).ok_or(Undeliverable)?
            }
        };
        let Some(connection) = self.connections.get(&id) else { return Err(Undeliverable) };
        if connection.writes.try_send(Out::Message(bytes)).is_err() {
            self.forget(id);
            return Err(Undeliverable);
        }
        Ok(())
    }

    fn send_datagram(&self, flow: Flow, bytes: &[u8]) -> Result<(), Undeliverable> {
        let by_local = self.udp.iter().find(|(_, local)| *local == flow.local);
        let any = self.udp.iter().find(|(_, local)| local.is_ipv4() == flow.remote.is_ipv4());
        let (socket, _) = by_local.or(any).ok_or(Undeliverable)?;
        match socket.try_send_to(bytes, flow.remote) {
            Ok(_) => Ok(()),
            // A full socket buffer is a lost datagram: timers repeat it.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => {
                tracing::debug!(%error, remote = %flow.remote, "a datagram could not be sent");
                Err(Undeliverable)
            }
        }
    }

    /// Opens a connection. `None`: there are as many as there may be.
    fn connect(&mut self, flow: Flow, way: Way) -> Option<ConnectionId> {
        let Ok(slot) = self.shared.slots.take(None, Instant::now()) else {
            super::counters::count(&self.shared.counters.refused_full);
            return None;
        };
        let id = self.shared.new_id();
        let flow = Flow { connection: Some(id), ..flow };
        let identity = way.2.clone();
        if let Some(identity) = &identity {
            if self.names.len() >= NAMES_MAX {
                self.names.clear();
            }
            self.names.insert(flow.remote, identity.clone());
        }
        let (writes, writes_in) = Shared::new_writes();
        let (transport, remote) = (flow.transport, flow.remote);
        // Its certificate will have been checked before anything comes: requests of theirs may come this way too.
        let peer = identity.as_ref().and_then(|identity| {
            let trunks = vec![identity.trunk.clone()?];
            Some(Arc::new(TlsPeer { names: vec![identity.host.clone()], trunks }))
        });
        self.keep(flow, Connection { remote, transport, writes, peer, way: Some(way), kept_for: None });
        tokio::spawn(handshake::connect(flow, identity, writes_in, self.shared.clone(), slot));
        Some(id)
    }

    /// A registration lives on this connection: it is kept alive, and its end is told.
    pub fn keep_alive(&mut self, id: ConnectionId, token: Token) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.kept_for.replace(token).is_none() {
            // A full channel is a connection that will be closed for it.
            let _ = connection.writes.try_send(Out::KeepAlive);
        }
    }

    /// Whether a registration lives on this connection.
    pub fn is_kept(&self, id: ConnectionId) -> bool {
        self.connections.get(&id).is_some_and(|connection| connection.kept_for.is_some())
    }

    /// A connection is gone, or is to be closed: without its sender the writing task ends, and with it the rest.
    pub fn forget(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        self.lost.extend(connection.kept_for);
        let remote = (connection.transport, connection.remote);
        if self.by_remote.get(&remote) == Some(&id) {
            self.by_remote.remove(&remote);
        }
        if let Some(way) = &connection.way
            && self.by_way.get(way) == Some(&id)
        {
            self.by_way.remove(way);
        }
    }

    /// A connection could not be opened: what should have gone by it says so itself.
    pub fn forget_unopened(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.kept_for = None;
        }
        self.forget(id);
    }

    /// The next REGISTER whose connection is gone.
    pub fn poll_lost(&mut self) -> Option<Token> {
        self.lost.pop()
    }
}
