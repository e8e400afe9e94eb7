//! The way to Redis: one server, a cluster, or whichever server the sentinels name.

use std::fmt;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline,
    RedisError, RedisFuture, TlsCertificates, TlsMode, Value,
};
use tokio::sync::{Mutex, Notify};

use super::ANSWER_WITHIN;

/// A server that does not take the connection in this time is down.
const CONNECT_WITHIN: Duration = Duration::from_millis(800);
/// All of a try: sentinels that are dark are asked one after the other.
const DIAL_WITHIN: Duration = Duration::from_secs(5);
/// After a try that failed.
const RETRY_AFTER: Duration = Duration::from_millis(100);

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

/// One of the kinds of connection. Cheap to clone: clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    Plain(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Plain(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Plain(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Plain(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// How a connection is made.
enum Dial {
    Server(Client),
    Cluster(Box<ClusterClient>),
    Sentinel(Box<Mutex<SentinelClient>>),
}

/// A way that is being used. There is one connection at a time; one that fails or falls silent is given up, and another
/// is made aside, by one task, however many wait for it.
#[derive(Clone)]
pub(super) struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    dial: Dial,
    state: std::sync::Mutex<State>,
    /// A try to connect is over.
    tried: Notify,
}

#[derive(Default)]
struct State {
    up: Option<Up>,
    generation: u64,
    is_dialling: bool,
    /// Of the last try that failed.
    error: Option<String>,
    failures: u64,
}

/// A connection that is up.
#[derive(Clone)]
pub(super) struct Up {
    pub(super) connection: Connection,
    /// Which one it is.
    pub(super) generation: u64,
    /// Which life of its server it leads to, in [`EPOCH_LEN`] characters; `-` throughout where there are several.
    pub(super) epoch: String,
}

/// Characters of an epoch.
pub(super) const EPOCH_LEN: usize = 8;

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.shared.dial {
            Dial::Server(_) => "Server",
            Dial::Cluster(_) => "Cluster",
            Dial::Sentinel(_) => "Sentinel",
        })
    }
}

impl Link {
    pub(super) fn new(url: &RedisUrl) -> Result<Self, UrlError> {
        let certificates = url.certificates();
        let dial = match &url.way {
            Way::Server(server) => Dial::Server(
                match certificates {
                    Some(certificates) => Client::build_with_tls(server.clone(), certificates),
                    None => Client::open(server.clone()),
                }
                .map_err(|error| malformed(&error))?,
            ),
            Way::Cluster(nodes) => {
                let mut builder: ClusterClientBuilder = ClusterClient::builder(nodes.clone())
                    .connection_timeout(CONNECT_WITHIN)
                    .response_timeout(ANSWER_WITHIN)
                    // For a slot that has moved; nothing is done twice.
                    .retries(1);
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates);
                }
                Dial::Cluster(Box::new(builder.build().map_err(|error| malformed(&error))?))
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
                Dial::Sentinel(Box::new(Mutex::new(builder.build().map_err(|error| malformed(&error))?)))
            }
        };
        Ok(Self {
            shared: Arc::new(Shared { dial, state: std::sync::Mutex::default(), tried: Notify::new() }),
        })
    }

    /// The connection, or the one that is made next. Whoever waits brings a deadline of his own.
    ///
    /// # Errors
    /// A try that began or went on while we waited has failed; in words.
    pub(super) async fn connection(&self) -> Result<Up, String> {
        let failures = self.shared.lock().failures;
        loop {
            let tried = self.shared.tried.notified();
            let mut tried = std::pin::pin!(tried);
            tried.as_mut().enable();
            {
                let mut state = self.shared.lock();
                if let Some(up) = &state.up {
                    return Ok(up.clone());
                }
                if state.failures != failures {
                    return Err(state.error.clone().unwrap_or_default());
                }
                if !std::mem::replace(&mut state.is_dialling, true) {
                    tokio::spawn(self.shared.clone().dial());
                }
            }
            tried.await;
        }
    }

    /// The newest connection's number.
    pub(super) fn generation(&self) -> u64 {
        self.shared.lock().generation
    }

    /// That connection has failed or does not answer: whoever asks next gets another one.
    pub(super) fn give_up(&self, generation: u64) {
        let mut state = self.shared.lock();
        if state.generation == generation {
            state.up = None;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn dial(self: Arc<Self>) {
        let outcome = match tokio::time::timeout(DIAL_WITHIN, self.connect()).await {
            Ok(Ok(up)) => Ok(up),
            Ok(Err(error)) => Err(super::said(&error)),
            Err(_) => Err(format!("no connection in {} s", DIAL_WITHIN.as_secs())),
        };
        if outcome.is_err() {
            // Whoever waits hears of it now; the next try is not at once.
            tokio::time::sleep(RETRY_AFTER).await;
        }
        {
            let mut state = self.lock();
            state.is_dialling = false;
            match outcome {
                Ok((connection, epoch)) => {
                    state.generation += 1;
                    let generation = state.generation;
                    state.up = Some(Up { connection, generation, epoch });
                }
                Err(error) => {
                    state.failures += 1;
                    state.error = Some(error);
                }
            }
        }
        self.tried.notify_waiters();
    }

    async fn connect(&self) -> Result<(Connection, String), RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        let mut connection = match &self.dial {
            Dial::Server(client) => {
                Connection::Plain(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Dial::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
            Dial::Sentinel(client) => {
                let mut client = client.lock().await;
                Connection::Plain(client.get_async_connection_with_config(&config).await?)
            }
        };
        let epoch = match &mut connection {
            Connection::Cluster(_) => "-".repeat(EPOCH_LEN),
            connection => {
                let answer = super::info().query_async(connection).await?;
                let id = super::incarnation_in(&answer);
                format!("{:-<EPOCH_LEN$.EPOCH_LEN$}", id)
            }
        };
        Ok((connection, epoch))
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
