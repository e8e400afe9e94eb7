//! SIP over TCP: connections opened when a message needs one, kept until either side closes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandem_sip::{ConnectionId, Flow, Transmit, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::line::{Shared, Wires};

/// Messages that wait for a connection's socket. More: the peer does not read, and the send fails.
const OUTBOX_MAX: usize = 256;
/// Octets read at once.
const READ_MAX: usize = 16 * 1024;

#[derive(Debug)]
struct Connection {
    remote: SocketAddr,
    outbox: mpsc::Sender<Vec<u8>>,
}

/// Open connections, and those being opened.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<ConnectionId, Connection>,
    /// Ids are never used again.
    used: u64,
}

impl Connections {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, remote: SocketAddr) -> (ConnectionId, mpsc::Receiver<Vec<u8>>) {
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        let mut table = self.table();
        table.used += 1;
        let id = ConnectionId(table.used);
        table.open.insert(id, Connection { remote, outbox });
        (id, messages)
    }

    /// Closes a connection once its messages are written.
    pub(crate) fn close(&self, id: ConnectionId) {
        self.table().open.remove(&id);
    }

    /// Closes every connection once its messages are written.
    pub(crate) fn close_all(&self) {
        self.table().open.clear();
    }

    /// Queues a message, opening a connection if there is none; false if that is impossible.
    pub(crate) fn send(&self, shared: &Arc<Shared>, transmit: Transmit) -> bool {
        let Flow { remote, connection, .. } = transmit.flow;
        let outbox = {
            let table = self.table();
            let named = connection.and_then(|id| table.open.get(&id));
            let found = named.or_else(|| table.open.values().find(|open| open.remote == remote));
            found.map(|open| open.outbox.clone())
        };
        if let Some(outbox) = outbox {
            return outbox.try_send(transmit.bytes).is_ok();
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return false };
        let (id, messages) = self.add(remote);
        let queued =
            self.table().open.get(&id).is_some_and(|new| new.outbox.try_send(transmit.bytes).is_ok());
        runtime.spawn(dial(shared.clone(), id, remote, messages));
        queued
    }
}

/// Takes connections until it is aborted.
pub(crate) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let Wires::Tcp(connections) = &shared.wires else { return };
    loop {
        let Ok((stream, remote)) = listener.accept().await else { continue };
        let (id, messages) = connections.add(remote);
        tokio::spawn(serve(shared.clone(), id, remote, stream, messages));
    }
}

async fn dial(shared: Arc<Shared>, id: ConnectionId, remote: SocketAddr, messages: mpsc::Receiver<Vec<u8>>) {
    match TcpStream::connect(remote).await {
        Ok(stream) => serve(shared, id, remote, stream, messages).await,
        Err(error) => {
            tracing::debug!(%remote, %error, "SIP connection failed");
            if let Wires::Tcp(connections) = &shared.wires {
                connections.close(id);
            }
            let flow = Flow { transport: Transport::Tcp, local: shared.local, remote, connection: None };
            shared.act(|state, now| state.endpoint.handle_transport_error(flow, now));
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    id: ConnectionId,
    remote: SocketAddr,
    stream: TcpStream,
    mut messages: mpsc::Receiver<Vec<u8>>,
) {
    let flow = Flow::connected(Transport::Tcp, shared.local, remote, id);
    shared.act(|state, _| state.endpoint.handle_connected(flow));
    let (mut reader, mut writer) = stream.into_split();
    let mut bytes = vec![0; READ_MAX];
    loop {
        tokio::select! {
            read = reader.read(&mut bytes) => match read {
                Ok(0) | Err(_) => break,
                Ok(len) => shared.act(|state, now| state.endpoint.handle_input(&bytes[..len], flow, now)),
            },
            message = messages.recv() => match message {
                Some(message) if writer.write_all(&message).await.is_ok() => {}
                _ => break,
            },
        }
    }
    if let Wires::Tcp(connections) = &shared.wires {
        connections.close(id);
    }
    shared.act(|state, now| state.endpoint.handle_closed(id, now));
}
