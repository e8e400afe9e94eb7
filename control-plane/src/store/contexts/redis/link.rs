//! The way to Redis: one server, a cluster, or whichever server the sentinels name.

use std::fmt;
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisError, RedisFuture,
    TlsCertificates, TlsMode, Value,
};
use tokio::sync::Mutex;

use super::ANSWER_WITHIN;

/// A server that does not take the connection in this time is down.
const CONNECT_WITHIN: Duration = Duration::from_millis(800);
/// Between two tries to connect, at most.
const RETRY_AT_MOST: Duration = Duration::from_secs(1);

/// What `TANDEM_REDIS_URL` says. Its password is not shown.
#[derive(Clone)]
pub struct RedisUrl {
    way: Way,
    /// Authorities that `rediss` is checked against, PEM; the public ones if there are none.
    authorities: Option<Vec<u8>>,
}

#[derive(Clone)]
enum Way {
    Server(ConnectionInfo),
    Cluster(Vec<ConnectionInfo>),
    Sentinel { sentinels: Vec<ConnectionInfo>, service: String, server: ConnectionInfo },
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |nodes: &[ConnectionInfo]| {
            nodes.iter().map(|node| node.addr().to_string()).collect::<Vec<_>>().join(",")
        };
        match &self.way {
            Way::Server(server) => write!(f, "redis at {}", server.addr()),
            Way::Cluster(nodes) => write!(f, "redis cluster at {}", list(nodes)),
            Way::Sentinel { sentinels, service, .. } => {
                write!(f, "redis {service} by sentinels at {}", list(sentinels))
            }
        }
    }
}

/// Why a URL cannot be used. The URL is not repeated: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme.
    #[error(
        "must begin with redis://, rediss://, redis-cluster://, rediss-cluster://, redis-sentinel:// or rediss-sentinel://"
    )]
    Scheme,
    /// Something after the scheme.
    #[error("{0}")]
    Malformed(String),
    /// Sentinels without the name of what they watch.
    #[error(
        "needs the name that the sentinels know the server by: redis-sentinel://HOST:26379,HOST:26379/NAME"
    )]
    Service,
}

fn malformed(error: &RedisError) -> UrlError {
    UrlError::Malformed(error.category().to_owned())
}

impl RedisUrl {
    /// Reads it.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let (scheme, kind) = scheme.split_once('-').unwrap_or((scheme, ""));
        if !matches!(scheme, "redis" | "rediss") {
            return Err(UrlError::Scheme);
        }
        let server = |node: &str| -> Result<ConnectionInfo, UrlError> {
            format!("{scheme}://{node}").into_connection_info().map_err(|error| malformed(&error))
        };
        // USER:PASSWORD@HOST,HOST/PATH: who asks is the same at each host.
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (who, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let who = if who.is_empty() { String::new() } else { format!("{who}@") };
        let nodes =
            || hosts.split(',').map(|host| server(&format!("{who}{host}"))).collect::<Result<Vec<_>, _>>();
        let way = match kind {
            "" => Way::Server(server(rest)?),
            "cluster" => Way::Cluster(nodes()?),
            "sentinel" => {
                let (service, database) = path.split_once('/').unwrap_or((path, "0"));
                if service.is_empty() {
                    return Err(UrlError::Service);
                }
                Way::Sentinel {
                    // Sentinels have no password of the server's, and often none at all.
                    sentinels: hosts.split(',').map(server).collect::<Result<_, _>>()?,
                    service: service.to_owned(),
                    server: server(&format!("{who}unknown/{database}"))?,
                }
            }
            _ => return Err(UrlError::Scheme),
        };
        Ok(Self { way, authorities: None })
    }

    /// With authorities of its own, PEM.
    #[must_use]
    pub fn trusting(mut self, authorities: Vec<u8>) -> Self {
        self.authorities = Some(authorities);
        self
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        self.authorities.clone().map(|pem| TlsCertificates { client_tls: None, root_cert: Some(pem) })
    }
}

/// A way that is being used. Connections come and go behind it.
pub(super) enum Link {
    /// Connects again by itself.
    Server(Box<ConnectionManager>),
    /// Likewise, once it is up.
    Cluster { client: Box<ClusterClient>, connection: Mutex<Option<ClusterConnection>> },
    /// Asks the sentinels again when the server has failed.
    Sentinel(Box<Mutex<Sentinel>>),
}

pub(super) struct Sentinel {
    client: SentinelClient,
    connection: Option<MultiplexedConnection>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server(_) => "Server",
            Self::Cluster { .. } => "Cluster",
            Self::Sentinel(_) => "Sentinel",
        })
    }
}

/// One of the kinds of connection.
pub(super) enum Connection {
    Server(Box<ConnectionManager>),
    Cluster(ClusterConnection),
    Plain(MultiplexedConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
            Self::Plain(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Plain(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
            Self::Plain(connection) => connection.get_db(),
        }
    }
}

impl Link {
    pub(super) fn new(url: &RedisUrl) -> Result<Self, UrlError> {
        let certificates = url.certificates();
        Ok(match &url.way {
            Way::Server(server) => {
                let client = match certificates {
                    Some(certificates) => Client::build_with_tls(server.clone(), certificates),
                    None => Client::open(server.clone()),
                }
                .map_err(|error| malformed(&error))?;
                let config = ConnectionManagerConfig::new()
                    .set_connection_timeout(Some(CONNECT_WITHIN))
                    .set_response_timeout(Some(ANSWER_WITHIN))
                    .set_max_delay(RETRY_AT_MOST);
                let manager = ConnectionManager::new_lazy_with_config(client, config)
                    .map_err(|error| malformed(&error))?;
                Self::Server(Box::new(manager))
            }
            Way::Cluster(nodes) => {
                let mut builder: ClusterClientBuilder = ClusterClient::builder(nodes.clone())
                    .connection_timeout(CONNECT_WITHIN)
                    .response_timeout(ANSWER_WITHIN);
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates);
                }
                let client = Box::new(builder.build().map_err(|error| malformed(&error))?);
                Self::Cluster { client, connection: Mutex::default() }
            }
            Way::Sentinel { sentinels, service, server } => {
                let addresses = sentinels.iter().map(|sentinel| sentinel.addr().clone());
                let mut builder = SentinelClientBuilder::new(addresses, service, SentinelServerType::Master)
                    .map_err(|error| malformed(&error))?;
                let settings = server.redis_settings();
                builder = builder.set_client_to_redis_db(settings.db());
                if let Some(name) = settings.username() {
                    builder = builder.set_client_to_redis_username(name);
                }
                if let Some(password) = settings.password() {
                    builder = builder.set_client_to_redis_password(password);
                }
                if matches!(server.addr(), ConnectionAddr::TcpTls { .. }) {
                    builder = builder
                        .set_client_to_redis_tls_mode(TlsMode::Secure)
                        .set_client_to_sentinel_tls_mode(TlsMode::Secure);
                }
                if let Some(certificates) = certificates {
                    builder = builder
                        .set_client_to_redis_certificates(certificates.clone())
                        .set_client_to_sentinel_certificates(certificates);
                }
                let client = builder.build().map_err(|error| malformed(&error))?;
                Self::Sentinel(Box::new(Mutex::new(Sentinel { client, connection: None })))
            }
        })
    }

    pub(super) async fn connection(&self) -> Result<Connection, RedisError> {
        match self {
            Self::Server(manager) => Ok(Connection::Server(manager.clone())),
            Self::Cluster { client, connection } => {
                let mut connection = connection.lock().await;
                let up = match &*connection {
                    Some(up) => up.clone(),
                    None => connection.insert(client.get_async_connection().await?).clone(),
                };
                Ok(Connection::Cluster(up))
            }
            Self::Sentinel(sentinel) => {
                let Sentinel { client, connection } = &mut *sentinel.lock().await;
                let up = match connection {
                    Some(up) => up.clone(),
                    None => connection.insert(client.get_async_connection().await?).clone(),
                };
                Ok(Connection::Plain(up))
            }
        }
    }

    /// A question failed: whoever was asked may not be the right one any more.
    pub(super) async fn failed(&self, error: &RedisError) {
        if error.is_unrecoverable_error() || error.is_io_error() || error.code() == Some("READONLY") {
            self.silent().await;
        }
    }

    /// Nobody answered.
    pub(super) async fn silent(&self) {
        if let Self::Sentinel(sentinel) = self {
            sentinel.lock().await.connection = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_read_and_no_password_is_shown() {
        let shown = |text: &str| format!("{:?}", RedisUrl::parse(text).unwrap());
        assert_eq!(shown("redis://r:6379/2"), "redis at r:6379");
        assert_eq!(shown("rediss://user:hunter2@r"), "redis at r:6379");
        assert_eq!(shown("redis-cluster://:hunter2@a:1,b:2"), "redis cluster at a:1,b:2");
        assert_eq!(shown("redis-sentinel://:hunter2@a:1,b:2/main/3"), "redis main by sentinels at a:1,b:2");
    }

    #[test]
    fn what_is_no_url_of_redis_is_said_without_repeating_it() {
        for (text, expected) in [
            ("http://r", UrlError::Scheme),
            ("redis", UrlError::Scheme),
            ("redis-pool://r", UrlError::Scheme),
            ("redis-sentinel://a:1", UrlError::Service),
        ] {
            assert_eq!(RedisUrl::parse(text).unwrap_err(), expected, "{text}");
        }
        let error = RedisUrl::parse("redis://:hunter2@r:notaport").unwrap_err();
        assert!(matches!(error, UrlError::Malformed(_)) && !error.to_string().contains("hunter2"), "{error}");
    }
}
