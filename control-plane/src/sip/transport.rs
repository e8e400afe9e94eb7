//! UDP and TCP sockets of the SIP shell.
//!
//! UDP is read by the driver's own task: a datagram costs no channel and no wake-up of another task. A TCP connection
//! has a task that reads and one that writes, joined to the driver by bounded channels.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tandem_sip::{ConnectionId, Flow, Transmit, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::ListenError;
use crate::config::{SipListen, SipTransport};

/// Connections at once, accepted and opened: some kilobytes each. Full: new ones are closed at once.
const CONNECTIONS_MAX: usize = 4_096;
/// Messages that wait for a slow peer. Full: its connection is closed.
const WRITES_MAX: usize = 256;
/// Pieces of streams that wait for the driver. Full: connections are not read.
const ARRIVALS_MAX: usize = 1_024;
/// Who connects and says nothing for so long is closed (RFC 3261's 64·T1). Later silence is the endpoint's to judge: it
/// knows which connection has a call.
const FIRST_BYTES_MAX: Duration = Duration::from_secs(32);
/// A peer whose host is gone is noticed by the kernel's keep-alive after some minutes.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long a connect or a write may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// One read from a stream.
const READ_LEN: usize = 16 * 1024;
/// Room in the kernel for a burst of INVITEs while a turn lasts.
const UDP_BUFFER_LEN: usize = 4 * 1024 * 1024;

/// What has come in.
#[derive(Debug)]
pub enum Arrival {
    /// This UDP listener has something to read.
    Datagrams(usize),
    /// A peer has connected to us.
    Accepted(Flow, Connection),
    /// A connection of ours is open.
    Opened(Flow),
    /// Bytes came.
    Bytes(Flow, Vec<u8>),
    /// It is gone.
    Closed(Flow),
    /// It could not be opened.
    Failed(Flow),
}

/// A message that can never leave: no such transport, a broken connection, an address that cannot be reached.
#[derive(Debug)]
pub struct Undeliverable;

/// All sockets.
pub struct Transports {
    udp: Vec<(UdpSocket, SocketAddr)>,
    tcp: Vec<SocketAddr>,
    arrivals: mpsc::Receiver<Arrival>,
    shared: Shared,
    connections: HashMap<ConnectionId, Connection>,
    /// Connections by peer, for messages that name none.
    by_remote: HashMap<SocketAddr, ConnectionId>,
}

/// The writing end of a connection.
#[derive(Debug)]
pub struct Connection {
    remote: SocketAddr,
    writes: mpsc::Sender<Vec<u8>>,
}

#[derive(Clone)]
struct Shared {
    arrivals: mpsc::Sender<Arrival>,
    next_id: Arc<AtomicU64>,
    open: Arc<AtomicUsize>,
}

impl Transports {
    /// Opens every listener.
    pub async fn open(listen: &[SipListen]) -> Result<Self, ListenError> {
        let (arrivals_out, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let shared = Shared { arrivals: arrivals_out, next_id: Arc::default(), open: Arc::default() };
        let mut transports = Self {
            udp: Vec::new(),
            tcp: Vec::new(),
            arrivals,
            shared,
            connections: HashMap::new(),
            by_remote: HashMap::new(),
        };
        for listener in listen {
            let opened = match listener.transport {
                SipTransport::Udp => transports.open_udp(listener.address).await,
                SipTransport::Tcp => transports.open_tcp(listener.address).await,
            };
            opened.map_err(|source| ListenError { listener: *listener, source })?;
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

    async fn open_tcp(&mut self, address: SocketAddr) -> io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        self.tcp.push(listener.local_addr()?);
        tokio::spawn(accept(listener, self.shared.clone()));
        Ok(())
    }

    /// Where we listen.
    pub fn listeners(&self) -> Vec<(Transport, SocketAddr)> {
        let udp = self.udp.iter().map(|(_, local)| (Transport::Udp, *local));
        udp.chain(self.tcp.iter().map(|local| (Transport::Tcp, *local))).collect()
    }

    /// Our address towards this peer: of a listener of the same transport and family. Over TCP one of UDP will do: the
    /// peer answers over the connection.
    pub fn local_for(&self, transport: Transport, remote: SocketAddr) -> Option<SocketAddr> {
        let fits = |local: &&SocketAddr| local.is_ipv4() == remote.is_ipv4();
        let udp = || self.udp.iter().map(|(_, local)| local).find(fits).copied();
        match transport {
            Transport::Udp => udp(),
            Transport::Tcp => self.tcp.iter().find(fits).copied().or_else(udp),
            Transport::Tls | Transport::Ws | Transport::Wss => None,
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

    /// Keeps the writing end of an accepted connection.
    pub fn keep(&mut self, flow: Flow, connection: Connection) {
        if let Some(id) = flow.connection {
            self.by_remote.insert(connection.remote, id);
            self.connections.insert(id, connection);
        }
    }

    /// Whether this connection is open, or about to be, and not closed by us.
    pub fn knows(&self, id: ConnectionId) -> bool {
        self.connections.contains_key(&id)
    }

    /// Sends one message, or gives it to its connection. `Err`: it can never leave.
    pub fn send(&mut self, transmit: Transmit) -> Result<(), Undeliverable> {
        let Transmit { flow, bytes } = transmit;
        if flow.transport == Transport::Udp {
            return self.send_datagram(flow, &bytes);
        }
        let known = flow.connection.filter(|id| self.connections.contains_key(id));
        let id = match known.or_else(|| self.by_remote.get(&flow.remote).copied()) {
            Some(id) => id,
            None => self.connect(flow)?,
        };
        let Some(connection) = self.connections.get(&id) else { return Err(Undeliverable) };
        if connection.writes.try_send(bytes).is_err() {
            self.close(id);
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

    /// Opens a connection; messages wait in its channel until it is there.
    fn connect(&mut self, flow: Flow) -> Result<ConnectionId, Undeliverable> {
        if flow.transport != Transport::Tcp {
            return Err(Undeliverable);
        }
        let slot = Slot::take(&self.shared).ok_or(Undeliverable)?;
        let id = self.shared.new_id();
        let flow = Flow { connection: Some(id), ..flow };
        let (writes, writes_in) = mpsc::channel(WRITES_MAX);
        self.keep(flow, Connection { remote: flow.remote, writes });
        let arrivals = self.shared.arrivals.clone();
        tokio::spawn(async move {
            let stream = match timeout(PATIENCE, TcpStream::connect(flow.remote)).await {
                Ok(Ok(stream)) => stream,
                _ => {
                    let _ = arrivals.send(Arrival::Failed(flow)).await;
                    return;
                }
            };
            if arrivals.send(Arrival::Opened(flow)).await.is_ok() {
                serve(stream, flow, writes_in, arrivals, slot).await;
            }
        });
        Ok(id)
    }

    /// Closes a connection: its writer ends, and with it the rest.
    pub fn close(&mut self, id: ConnectionId) {
        self.forget(id);
    }

    /// A connection is gone.
    pub fn forget(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if self.by_remote.get(&connection.remote) == Some(&id) {
            self.by_remote.remove(&connection.remote);
        }
    }
}

impl Shared {
    fn new_id(&self) -> ConnectionId {
        ConnectionId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }
}

/// One of [`CONNECTIONS_MAX`]; given back when dropped.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(shared: &Shared) -> Option<Self> {
        let open = shared.open.clone();
        if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Self(open))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Accepts until the driver is gone.
async fn accept(listener: TcpListener, shared: Shared) {
    loop {
        let accepted = tokio::select! {
            () = shared.arrivals.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: waiting is all that helps.
                tracing::warn!(%error, "cannot accept a SIP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (Some(slot), Ok(local)) = (Slot::take(&shared), stream.local_addr()) else { continue };
        let flow = Flow::connected(Transport::Tcp, local, remote, shared.new_id());
        let (writes, writes_in) = mpsc::channel(WRITES_MAX);
        let connection = Connection { remote, writes };
        if shared.arrivals.send(Arrival::Accepted(flow, connection)).await.is_err() {
            return;
        }
        tokio::spawn(serve(stream, flow, writes_in, shared.arrivals.clone(), slot));
    }
}

/// Reads and writes one connection until either side ends it.
async fn serve(
    stream: TcpStream,
    flow: Flow,
    writes: mpsc::Receiver<Vec<u8>>,
    arrivals: mpsc::Sender<Arrival>,
    _slot: Slot,
) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
    let (reader, writer) = stream.into_split();
    tokio::select! {
        () = read(reader, flow, &arrivals) => {}
        () = write(writer, writes) => {}
    }
    // The driver is gone: so is everything.
    let _ = arrivals.send(Arrival::Closed(flow)).await;
}

async fn read(mut reader: OwnedReadHalf, flow: Flow, arrivals: &mpsc::Sender<Arrival>) {
    let mut buffer = vec![0; READ_LEN];
    let Ok(Ok(mut len)) = timeout(FIRST_BYTES_MAX, reader.read(&mut buffer)).await else { return };
    while len > 0 {
        if arrivals.send(Arrival::Bytes(flow, buffer[..len].to_vec())).await.is_err() {
            return;
        }
        let Ok(more) = reader.read(&mut buffer).await else { return };
        len = more;
    }
}

async fn write(mut writer: OwnedWriteHalf, mut writes: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = writes.recv().await {
        if !matches!(timeout(PATIENCE, writer.write_all(&bytes)).await, Ok(Ok(()))) {
            return;
        }
    }
}
