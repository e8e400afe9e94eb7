//! Where bytes come from and go to: transport, our address, theirs, and the connection if there is one.

use std::net::SocketAddr;

/// The transports of Via and of the `transport` URI parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One datagram is one message; we retransmit.
    Udp,
    /// A stream, framed by Content-Length.
    Tcp,
    /// A stream inside TLS.
    Tls,
    /// One WebSocket message is one SIP message (RFC 7118).
    Ws,
    /// The same inside TLS.
    Wss,
}

impl Transport {
    /// Whether the transport itself delivers: then the timers of retransmission are off (RFC 3261 §17).
    pub const fn is_reliable(self) -> bool {
        !matches!(self, Transport::Udp)
    }

    /// Whether bytes arrive as a stream and need framing.
    pub const fn is_stream(self) -> bool {
        matches!(self, Transport::Tcp | Transport::Tls)
    }

    /// The token in Via.
    pub const fn token(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
            Transport::Ws => "WS",
            Transport::Wss => "WSS",
        }
    }

    /// Whether TLS protects it: what `sips:` asks for.
    pub const fn is_secure(self) -> bool {
        matches!(self, Transport::Tls | Transport::Wss)
    }

    /// The port of a URI without one (RFC 3261 §19.1.2, RFC 7118 §5.5).
    pub const fn default_port(self) -> u16 {
        match self {
            Transport::Udp | Transport::Tcp => 5060,
            Transport::Tls => 5061,
            Transport::Ws => 80,
            Transport::Wss => 443,
        }
    }

    /// The value of the URI parameter `transport`; none for UDP, which is the default. WebSocket has one for both kinds
    /// (RFC 7118 §5.4).
    pub const fn uri_param(self) -> Option<&'static str> {
        match self {
            Transport::Udp => None,
            Transport::Tcp => Some("tcp"),
            Transport::Tls => Some("tls"),
            Transport::Ws | Transport::Wss => Some("ws"),
        }
    }

    /// Reads a token, without case.
    pub fn from_token(token: &str) -> Option<Transport> {
        [Transport::Udp, Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss]
            .into_iter()
            .find(|transport| transport.token().eq_ignore_ascii_case(token))
    }
}

/// The shell's name for an open connection. Never reused while the endpoint may still know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// One way between us and a peer (RFC 5626's word).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The transport.
    pub transport: Transport,
    /// Our address: of the socket that received, or that shall send.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
    /// The connection, for TCP, TLS and WebSocket. `None` on a [`Transmit`] of such a transport asks the shell to
    /// use an open connection to `remote` or to open one.
    pub connection: Option<ConnectionId>,
}

impl Flow {
    /// In a request whose way the shell has yet to find.
    pub const UNRESOLVED: Flow = {
        let nowhere = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);
        Flow::udp(nowhere, nowhere)
    };

    /// A UDP flow.
    pub const fn udp(local: SocketAddr, remote: SocketAddr) -> Flow {
        Flow { transport: Transport::Udp, local, remote, connection: None }
    }

    /// A flow over a connection.
    pub const fn connected(
        transport: Transport,
        local: SocketAddr,
        remote: SocketAddr,
        connection: ConnectionId,
    ) -> Flow {
        Flow { transport, local, remote, connection: Some(connection) }
    }
}

/// Bytes that must leave now.
#[derive(Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Which way. If it fails, tell the endpoint by `handle_transport_error`.
    pub flow: Flow,
    /// One whole message (or a keep-alive).
    pub bytes: Vec<u8>,
}

/// Shows the flow and the length: the bytes may hold credentials.
impl std::fmt::Debug for Transmit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transmit").field("flow", &self.flow).field("len", &self.bytes.len()).finish()
    }
}
