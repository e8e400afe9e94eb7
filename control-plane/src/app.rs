//! Builds the parts of the control plane, joins them by channels, and takes them down in order.
//!
//! ```text
//!   start:     store ─▶ sip ─▶ engines' event streams ─▶ call driver ─▶ http
//!   shutdown:  new calls get 503 ─▶ BYE to live ones ─▶ http ─▶ calls, sip ─▶ records ─▶ store
//!   by now at the latest:              CALLS_OVER_BY ┘  HTTP_BY ┘   SIP_BY ┘   SHUTDOWN_MAX ┘
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use sqlx::SqlitePool;
use tandem_sip::{EndpointConfig, Method, Transport};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use crate::call::driver::{Driver, LiveCalls, Means, Sources};
use crate::call::ending::{Cause, Ending};
use crate::call::gate::Gate;
use crate::call::registry::{Calls, Settings};
use crate::config::Config;
use crate::http;
use crate::media::EngineId;
use crate::media::client::{AddressError, EngineClient};
use crate::media::leases::Leases;
use crate::metrics::Metrics;
use crate::provider::client::RestClient;
use crate::registration::{self, driver::Office};
use crate::sip;
use crate::sip::guard::SharedGuard;
use crate::store::accounts::Accounts;
use crate::store::contexts::redis::UrlError as RedisUrlError;
use crate::store::contexts::spool::Spool;
use crate::store::contexts::{Contexts, RedisContexts};
use crate::store::refusals::Refusals;
use crate::store::writer::Writer;
use crate::store::{self, StoreError, calls, demo};
use crate::trunk::bucket::{Bucket, Rate};

/// Live calls have said goodbye: counted from the signal, as are the times below. A step that is done sooner leaves the
/// rest to those behind it; one that is late is cut off there, so that the last records are always written.
const CALLS_OVER_BY: Duration = Duration::from_secs(6);
/// Open requests and streams of the API are over.
const HTTP_BY: Duration = Duration::from_secs(8);
/// Call handling and the SIP shell are over.
const SIP_BY: Duration = Duration::from_secs(11);
/// The last records are written, and all is over. A supervisor must wait for longer than this.
pub const SHUTDOWN_MAX: Duration = Duration::from_secs(15);
/// Lines about refused webhooks.
const WEBHOOK_LINES_RATE: Rate = Rate { per_second: 5.0, burst: 50.0 };
/// Events of engines that wait for call handling. Full: the streams wait.
const NEWS_MAX: usize = 4_096;

/// Why the control plane cannot start. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A SIP listener.
    #[error(transparent)]
    Sip(#[from] sip::ListenError),
    /// The HTTP listener.
    #[error("cannot listen on {address}: {source}; is another Tandem running? See TANDEM_HTTP_LISTEN")]
    Http {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// An engine's address.
    #[error(transparent)]
    Engine(#[from] AddressError),
    /// What asks providers.
    #[error("no HTTPS client can be made: {0}")]
    Rest(reqwest::Error),
    /// Redis.
    #[error("TANDEM_REDIS_URL: {0}")]
    Redis(#[from] RedisUrlError),
}

/// A running control plane.
#[derive(Debug)]
pub struct App {
    http: SocketAddr,
    sip: Vec<(Transport, SocketAddr)>,
    live: LiveCalls,
    office: Office,
    writer: Writer,
    spool: Spool<Contexts>,
    pool: SqlitePool,
    shutdown: watch::Sender<bool>,
    tasks: Tasks,
}

#[derive(Debug)]
struct Tasks {
    http: JoinHandle<()>,
    driver: JoinHandle<()>,
    registration: JoinHandle<()>,
    sip: JoinHandle<()>,
    writer: JoinHandle<()>,
    spool: JoinHandle<()>,
    streams: Vec<JoinHandle<()>>,
}

impl App {
    /// Starts everything; when it returns, the listeners are open. It does not wait for an engine.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let pool = open_store(&config).await?;
        let (writer, write) = Writer::new(pool.clone());
        let accounts = Accounts::new(pool.clone());
        let metrics = Arc::new(Metrics::default());

        let listener = TcpListener::bind(config.http_listen)
            .await
            .map_err(|source| StartError::Http { address: config.http_listen, source })?;
        let address = listener
            .local_addr()
            .map_err(|source| StartError::Http { address: config.http_listen, source })?;

        let endpoint = EndpointConfig {
            // Calls are transferred: one that has no hop left gets 483.
            forwards: true,
            advertised_host: config.sip_public.clone(),
            seed: rand::random(),
            // INFO brings keys; a REFER is answered by policy.
            in_dialog_methods: vec![Method::Update, Method::Info, Method::Refer],
            accepted_methods: accepted_methods(&config),
            ..EndpointConfig::default()
        };
        let guard = SharedGuard::new(config.guard.clone(), config.trunks.clone());
        let sip = sip::start(&config.sip(guard.clone()), endpoint).await?;

        let (news_out, news) = mpsc::channel(NEWS_MAX);
        let controller_id = uuid::Uuid::new_v4().to_string();
        let mut engines = Vec::new();
        let mut streams = Vec::new();
        for (index, url) in config.engines.iter().enumerate() {
            let client = EngineClient::new(EngineId(index), url)?;
            streams.push(tokio::spawn(client.clone().run(controller_id.clone(), news_out.clone())));
            engines.push(client);
        }

        let public_url = config.public_url.clone().unwrap_or_else(|| format!("http://{address}"));
        let settings = Settings {
            limits: config.limits,
            talker_url: config.talker_url.clone(),
            talker_token: config.service_token.clone(),
            engines: config.engines.clone(),
            credentials: config.credentials.clone(),
            public_url: public_url.clone(),
            seed: rand::random(),
        };
        let refusals = Refusals::default();
        let rest = RestClient::new().map_err(StartError::Rest)?;
        warn_of_unreachable_webhooks(&config);
        let contexts = Arc::new(match &config.redis {
            Some(url) => Contexts::Redis(RedisContexts::new(url)?),
            None => Contexts::default(),
        });
        let (spool, spooling) = Spool::new(contexts.clone());
        let ports = Leases::new(contexts.clone());
        let registration = registration::driver::start(registration::driver::Means {
            verbs: sip.verbs.clone(),
            trunks: config.trunks.clone(),
            contexts,
            realm: config.sip_realm.clone(),
            digest: config.sip_digest.clone(),
            nonce_secret: rand::random(),
            guard: guard.clone(),
            seed: rand::random(),
        });
        let means = Means {
            verbs: sip.verbs,
            engines,
            accounts: accounts.clone(),
            writer: writer.clone(),
            office: registration.office.clone(),
            contexts: spool.clone(),
            metrics: metrics.clone(),
            guard: guard.clone(),
            refusals: refusals.clone(),
            rest: rest.clone(),
            ports: ports.clone(),
            credentials: config.credentials.clone(),
        };
        let gate = Gate::new(config.trunks.clone(), &config.sip_realm, &rand::random(), config.tenant_limits)
            .with_digest(&config.sip_digest);
        let calls = Calls::new(settings, Instant::now(), store::epoch_ms()).with_gate(gate);
        let sources = Sources { events: sip.events, news, desk: registration.desk };
        let (driver, live) = Driver::new(calls, means, sources);

        let service_token = config.service_token.clone().map(|token: SecretString| Arc::new(token));
        let shared = http::Shared {
            accounts,
            pool: pool.clone(),
            writer: writer.clone(),
            contexts: spool.clone(),
            live: live.clone(),
            trunks: config.trunks.clone(),
            ports,
            credentials: config.credentials.clone(),
            rest,
            public_url: public_url.into(),
            trusted_proxies: config.trusted_proxies.clone().into(),
            desk: http::Desk::new(&config.talker_url, service_token.clone()),
            webhook_lines: Bucket::shared(WEBHOOK_LINES_RATE),
            metrics,
            guard,
            refusals,
            sip: sip.counters.clone(),
            office: registration.office.clone(),
            service_token,
            dial: dial_lines(&sip.listeners, config.demo),
        };
        let (shutdown, down) = watch::channel(false);
        let tasks = Tasks {
            http: tokio::spawn(serve_http(listener, shared, down)),
            driver: tokio::spawn(driver.run()),
            registration: registration.task,
            sip: sip.task,
            writer: tokio::spawn(write),
            spool: tokio::spawn(spooling),
            streams,
        };
        tracing::info!(http = %address, sip = ?sip.listeners, demo = config.demo, "control plane is up");
        Ok(Self {
            http: address,
            sip: sip.listeners,
            live,
            office: registration.office,
            writer,
            spool,
            pool,
            shutdown,
            tasks,
        })
    }

    /// Where HTTP and gRPC are served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Where SIP is served.
    pub fn sip_addrs(&self) -> &[(Transport, SocketAddr)] {
        &self.sip
    }

    /// The first UDP listener.
    pub fn sip_udp_addr(&self) -> Option<SocketAddr> {
        self.sip.iter().find(|(transport, _)| *transport == Transport::Udp).map(|(_, address)| *address)
    }

    /// Trunks and registered phones.
    pub fn office(&self) -> &Office {
        &self.office
    }

    /// The live calls.
    pub fn live_calls(&self) -> &LiveCalls {
        &self.live
    }

    /// Refuses new calls, says BYE to the live ones, closes their sessions, writes the last records; bounded.
    pub async fn shutdown(self) {
        let Self { live, office, writer, spool, pool, shutdown, tasks, .. } = self;
        let began = tokio::time::Instant::now();
        let goodbyes = async { tokio::join!(live.end_all(), office.stop()) };
        if timeout_at(began + CALLS_OVER_BY, goodbyes).await.is_err() {
            tracing::warn!("some calls did not end in time");
        }
        // Readiness says "draining" until here; now the API goes, and with it the last users of live calls.
        let _ = shutdown.send(true);
        finish(tasks.http, "http", began + HTTP_BY).await;
        drop(live);
        finish(tasks.driver, "call handling", began + SIP_BY).await;
        finish(tasks.registration, "registration", began + SIP_BY).await;
        finish(tasks.sip, "sip", began + SIP_BY).await;
        tasks.streams.iter().for_each(JoinHandle::abort);
        writer.close();
        spool.close();
        finish(tasks.writer, "records of calls", began + SHUTDOWN_MAX).await;
        finish(tasks.spool, "contexts of calls", began + SHUTDOWN_MAX).await;
        if timeout_at(began + SHUTDOWN_MAX, pool.close()).await.is_err() {
            tracing::warn!("the database did not close in time");
        }
        tracing::info!("control plane is down");
    }
}

async fn finish(task: JoinHandle<()>, name: &str, by: tokio::time::Instant) {
    let abort = task.abort_handle();
    match timeout_at(by, task).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, task = name, "a task has failed"),
        Err(_) => {
            tracing::warn!(task = name, "a task did not end in time");
            abort.abort();
        }
    }
}

async fn serve_http(listener: TcpListener, shared: http::Shared, mut down: watch::Receiver<bool>) {
    let is_down = async move {
        // Err: the App is gone without a shutdown; so are we.
        let _ = down.wait_for(|is_down| *is_down).await;
    };
    if let Err(error) = http::serve(listener, shared, is_down).await {
        tracing::error!(%error, "http has failed");
    }
}

async fn open_store(config: &Config) -> Result<SqlitePool, StoreError> {
    let pool = store::open(&config.database).await?;
    let ending = Ending::new(Cause::ControlPlaneRestart).to_api();
    let lost = calls::end_unfinished(&pool, &ending, store::epoch_ms()).await?;
    if lost > 0 {
        tracing::warn!(calls = lost, "calls of the last run have ended with it");
    }
    if config.demo {
        demo::seed(&pool).await?;
    } else if demo::revoke(&pool).await? > 0 {
        tracing::info!("the demo key of an earlier run with --demo is revoked");
    }
    config.declared.apply(&pool).await?;
    warn_of_missing_assistants(config, &pool).await?;
    Ok(pool)
}

/// Providers sign the URL that they call, which is only known to be right if somebody has said what it is.
fn warn_of_unreachable_webhooks(config: &Config) {
    if config.public_url.is_none() && !config.demo && !config.credentials.deployments().is_empty() {
        tracing::warn!(
            "TANDEM_PUBLIC_URL is not set: providers must reach the HTTP listener at its own address, and signatures are checked \
             with it"
        );
    }
}

/// REGISTER is for phones; without any it gets 405.
fn accepted_methods(config: &Config) -> Vec<Method> {
    match config.trunks.phones().next() {
        Some(_) => vec![Method::Register],
        None => Vec::new(),
    }
}

/// A number or a phone that leads to an assistant whom nobody has made is no reason not to start, but to say so.
async fn warn_of_missing_assistants(config: &Config, pool: &SqlitePool) -> Result<(), StoreError> {
    for (owner, tenant_id, assistant_id) in config.trunks.assistants() {
        if !store::accounts::has_assistant(pool, &tenant_id, &assistant_id).await? {
            tracing::warn!(%owner, %tenant_id, %assistant_id, "calls will be refused: there is no such assistant");
        }
    }
    Ok(())
}

fn dial_lines(listeners: &[(Transport, SocketAddr)], demo: bool) -> Arc<[String]> {
    let line = |(transport, address): &(Transport, SocketAddr)| {
        let suffix = transport.uri_param().map(|name| format!(";transport={name}")).unwrap_or_default();
        if demo {
            format!("sip:demo:{}@{address}{suffix}", demo::DEMO_KEY)
        } else {
            format!("sip:ASSISTANT:KEY@{address}{suffix}")
        }
    };
    listeners.iter().map(line).collect()
}
