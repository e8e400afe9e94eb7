//! How connections begin: accepted or opened by us, with TLS and WebSocket handshakes where the transport has them.
//!
//! ```text
//!   accept ─▶ room? ─▶ TLS ─▶ WebSocket ─▶ Accepted ─▶ serve ─▶ Closed
//!   connect ─────────▶ TLS ──────────────▶ Opened ──▶ serve ─▶ Closed
//!                       └── Failed
//! ```
//!
//! A handshake has [`HANDSHAKE_MAX`]; what does not come to its end is counted and closed, and costs the driver nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tandem_sip::{Flow, Transport};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_tungstenite::WebSocketStream;

use super::TlsPeer;
use super::connection::{self, Out, PATIENCE};
use super::counters::{Open, count, place};
use super::slots::{NoSlot, Slot};
use super::transport::{Arrival, Connection, Identity, Shared};
use super::websocket;

/// How long TLS and WebSocket handshakes may take together: a phone on a bad line needs a few round trips.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A peer whose host is gone is noticed by the kernel's keep-alive after some minutes.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Accepts until the driver is gone.
pub(super) async fn accept_all(listener: TcpListener, transport: Transport, shared: Shared) {
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
        let slot = match shared.slots.take(Some(remote.ip()), Instant::now()) {
            Ok(slot) => slot,
            Err(NoSlot::Full) => {
                count(&shared.counters.refused_full);
                continue;
            }
            Err(NoSlot::Source) => {
                count(&shared.counters.refused_source);
                continue;
            }
        };
        let Ok(local) = stream.local_addr() else { continue };
        let flow = Flow::connected(transport, local, remote, shared.new_id());
        tokio::spawn(accept(stream, flow, shared.clone(), slot));
    }
}

/// One accepted connection: handshakes, then its life.
async fn accept(stream: TcpStream, flow: Flow, shared: Shared, _slot: Slot) {
    if let Err(error) = shake_and_serve(stream, flow, &shared).await {
        count(&shared.counters.handshakes_failed[place(flow.transport)]);
        let transport = flow.transport.token();
        tracing::debug!(remote = %flow.remote, transport, %error, "a handshake failed");
    }
}

/// `Err`: a handshake came to nothing.
async fn shake_and_serve(stream: TcpStream, flow: Flow, shared: &Shared) -> io::Result<()> {
    prepare(&stream);
    match flow.transport {
        Transport::Tcp | Transport::Udp => serve_stream(stream, flow, None, shared).await,
        Transport::Tls => {
            let stream = within(accept_tls(stream, flow.transport, shared)).await?;
            let peer = shared.tls.peer(stream.get_ref().1.peer_certificates().unwrap_or_default());
            serve_stream(stream, flow, peer, shared).await;
        }
        Transport::Ws => {
            let socket = within(accept_websocket(stream)).await?;
            serve_websocket(socket, flow, shared).await;
        }
        Transport::Wss => {
            let both = async { accept_websocket(accept_tls(stream, flow.transport, shared).await?).await };
            serve_websocket(within(both).await?, flow, shared).await;
        }
    }
    Ok(())
}

async fn within<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(HANDSHAKE_MAX, handshake).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn accept_tls(
    stream: TcpStream,
    transport: Transport,
    shared: &Shared,
) -> io::Result<server::TlsStream<TcpStream>> {
    let config = match transport {
        Transport::Wss => shared.tls.websocket_server(),
        _ => shared.tls.sip_server(),
    };
    let config = config.ok_or_else(|| io::Error::other("there is no certificate"))?;
    TlsAcceptor::from(config).accept(stream).await
}

async fn accept_websocket<S>(stream: S) -> io::Result<WebSocketStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    websocket::accept(stream).await.map_err(io::Error::other)
}

async fn serve_stream<S>(stream: S, flow: Flow, peer: Option<TlsPeer>, shared: &Shared)
where
    S: AsyncRead + AsyncWrite,
{
    let Some((writes, _open)) = announce(flow, peer, shared).await else { return };
    connection::serve(stream, flow, writes, &shared.arrivals, connection::FIRST_BYTES_MAX).await;
    // The driver is gone: so is everything.
    let _ = shared.arrivals.send(Arrival::Closed(flow)).await;
}

async fn serve_websocket<S>(socket: WebSocketStream<S>, flow: Flow, shared: &Shared)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some((writes, _open)) = announce(flow, None, shared).await else { return };
    websocket::serve(socket, flow, writes, &shared.arrivals, &shared.counters).await;
    let _ = shared.arrivals.send(Arrival::Closed(flow)).await;
}

/// Tells the driver of an accepted connection. `None`: it is gone.
async fn announce(flow: Flow, peer: Option<TlsPeer>, shared: &Shared) -> Option<(mpsc::Receiver<Out>, Open)> {
    count(&shared.counters.accepted[place(flow.transport)]);
    let (writes, writes_in) = Shared::new_writes();
    let connection = Connection {
        remote: flow.remote,
        transport: flow.transport,
        writes,
        peer: peer.map(Arc::new),
        way: None,
        kept_for: None,
    };
    shared.arrivals.send(Arrival::Accepted(flow, connection)).await.ok()?;
    Some((writes_in, Open::new(shared.counters.clone(), flow.transport)))
}

/// Opens a connection of ours, and lives it.
pub(super) async fn connect(
    flow: Flow,
    identity: Option<Identity>,
    writes: mpsc::Receiver<Out>,
    shared: Shared,
    _slot: Slot,
) {
    let place = place(flow.transport);
    let opened = match connect_tcp(flow).await {
        Ok(stream) if flow.transport == Transport::Tls => {
            within(connect_tls(stream, flow, identity, &shared)).await.map(Stream::Tls)
        }
        Ok(stream) => Ok(Stream::Tcp(stream)),
        Err(error) => Err(error),
    };
    let stream = match opened {
        Ok(stream) => stream,
        Err(error) => {
            count(&shared.counters.connects_failed[place]);
            let transport = flow.transport.token();
            tracing::warn!(remote = %flow.remote, transport, %error, "cannot open a SIP connection");
            let _ = shared.arrivals.send(Arrival::Failed(flow)).await;
            return;
        }
    };
    count(&shared.counters.opened[place]);
    let _open = Open::new(shared.counters.clone(), flow.transport);
    if shared.arrivals.send(Arrival::Opened(flow)).await.is_err() {
        return;
    }
    let first = connection::FIRST_ANSWER_MAX;
    match stream {
        Stream::Tcp(stream) => connection::serve(stream, flow, writes, &shared.arrivals, first).await,
        Stream::Tls(stream) => connection::serve(*stream, flow, writes, &shared.arrivals, first).await,
    }
    let _ = shared.arrivals.send(Arrival::Closed(flow)).await;
}

enum Stream {
    Tcp(TcpStream),
    Tls(Box<client::TlsStream<TcpStream>>),
}

/// From the address that we listen on, so that a peer which knows us by it knows us.
async fn connect_tcp(flow: Flow) -> io::Result<TcpStream> {
    let socket = if flow.remote.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let (local, remote) = (flow.local.ip(), flow.remote.ip());
    if !local.is_unspecified() && local.is_loopback() == remote.is_loopback() {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    let connected = timeout(PATIENCE, socket.connect(flow.remote)).await;
    let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    prepare(&stream);
    Ok(stream)
}

async fn connect_tls(
    stream: TcpStream,
    flow: Flow,
    identity: Option<Identity>,
    shared: &Shared,
) -> io::Result<Box<client::TlsStream<TcpStream>>> {
    let trunk = identity.as_ref().and_then(|identity| identity.trunk.as_deref());
    // A TLS peer that had connected to us, and whose connection is gone: nothing but its address is known.
    let host = identity.as_ref().map_or_else(|| flow.remote.ip().to_string(), |of| of.host.to_string());
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    let connector = TlsConnector::from(shared.tls.client(trunk));
    Ok(Box::new(connector.connect(name, stream).await?))
}

fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
}
