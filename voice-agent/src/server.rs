//! The listener: `GET /healthz` and the WebSocket upgrade on one port.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::config::Config;

/// A peer that has not sent its request by then is closed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest request head; the engine's is about 200 octets.
const REQUEST_MAX: usize = 4096;

/// Why the agent could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address is taken or not ours.
    #[error("cannot listen on {addr}: {source}")]
    Bind {
        /// What was asked for.
        addr: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// A bound agent that does not serve yet.
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
}

impl Server {
    /// Binds the listener.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub async fn bind(config: Config) -> Result<Self, RunError> {
        let addr = config.listen;
        let bind_error = |source| RunError::Bind { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(bind_error)?;
        let local_addr = listener.local_addr().map_err(bind_error)?;
        Ok(Self { listener, local_addr })
    }

    /// Where it listens; useful when the port was 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown` resolves.
    ///
    /// # Errors
    /// None after binding: a connection that fails is that connection's matter.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        connections.spawn(answer(stream));
                    }
                }
            }
        }
    }
}

async fn answer(mut stream: TcpStream) {
    let mut head = vec![0; REQUEST_MAX];
    let Ok(Ok(len)) = tokio::time::timeout(REQUEST_TIMEOUT, stream.read(&mut head)).await else { return };
    let status = if head[..len].starts_with(b"GET /healthz ") { "200 OK" } else { "404 Not Found" };
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    // The peer may be gone already; nobody is waiting for this answer then.
    let _ = stream.write_all(answer.as_bytes()).await;
}
