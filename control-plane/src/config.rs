//! Settings become one checked struct here, once, before anything starts.
//!
//! Every error names the setting, where its value came from and what to write instead. Nothing below this module
//! reads the environment.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;
use tandem_sip::digest::Algorithm;

use crate::call::agent::LINK_SCHEME;
use crate::call::gate::TenantLimits;
use crate::provider::{self, Credentials};
use crate::settings::section::{Source, TableError};
use crate::settings::{Layers, SettingsError};
use crate::sip::guard::SharedGuard;
use crate::sip::{SipSettings, TlsFiles};
use crate::store::contexts::redis::{RedisUrl, UrlError as RedisUrlError};
use crate::store::declared::{self, Declared};
use crate::trunk::guard::GuardSettings;
use crate::trunk::{self, Trunks};

/// Everything the control plane needs to know to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// One port: REST, gRPC, console.
    pub http_listen: SocketAddr,
    /// SIP listeners, at least one.
    pub sip_listen: Vec<SipListen>,
    /// Host that peers are told in Contact, when it is not the listener's address.
    pub sip_public: Option<String>,
    /// Our certificate for `tls:` and `wss:` listeners.
    pub tls: Option<TlsFiles>,
    /// DNS server for SIP domains; `None`: the system's.
    pub sip_dns: Option<SocketAddr>,
    /// Base URL under which providers call back, without a slash at the end; `None`: the listener's.
    pub public_url: Option<String>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Where records are kept.
    pub database: Database,
    /// Where contexts of calls are; `None`: in the process.
    pub redis: Option<RedisUrl>,
    /// gRPC addresses of the media engines, at least one.
    pub engines: Vec<String>,
    /// Embedded database and keys.
    pub state_dir: PathBuf,
    /// What our own processes prove themselves with; `None`: only loopback peers may write conversations.
    pub service_token: Option<SecretString>,
    /// Where the engine dials the built-in voice agent.
    pub talker_url: String,
    /// Seed the demo key and assistants.
    pub demo: bool,
    /// Bounds of calls.
    pub limits: Limits,
    /// Tenants, keys and assistants of tandem.toml.
    pub declared: Declared,
    /// Trunks and phones of tandem.toml.
    pub trunks: Trunks,
    /// Credentials of telephony providers, of tandem.toml.
    pub credentials: Credentials,
    /// Realm of our digest challenges: what a phone shows when it asks for a password.
    pub sip_realm: String,
    /// Hashes of these challenges, the preferred one first.
    pub sip_digest: Vec<Algorithm>,
    /// Who may knock, and how often.
    pub guard: GuardSettings,
    /// What each tenant may do.
    pub tenant_limits: TenantLimits,
}

/// One SIP listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SipListen {
    /// What it speaks.
    pub transport: SipTransport,
    /// Where to bind; port 0 lets the system choose.
    pub address: SocketAddr,
}

/// Transports that a SIP listener can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SipTransport {
    /// Datagrams.
    Udp,
    /// Streams with Content-Length framing.
    Tcp,
    /// The same inside TLS.
    Tls,
    /// WebSocket, for browsers (RFC 7118): behind a proxy that ends TLS.
    Ws,
    /// WebSocket inside TLS.
    Wss,
}

impl SipTransport {
    const ALL: [Self; 5] = [Self::Udp, Self::Tcp, Self::Tls, Self::Ws, Self::Wss];

    /// As `sip_listen` has it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// Whether such a listener needs `tls_cert` and `tls_key`.
    pub const fn needs_certificate(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }
}

impl std::fmt::Display for SipListen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.transport.word(), self.address)
    }
}

/// Where records are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// An SQLite file, made when missing.
    File(PathBuf),
    /// An SQLite database that dies with the process, for tests.
    Memory,
}

/// Bounds of calls. Every one of them ends or refuses a call when it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Live calls; an INVITE beyond gets 503 with Retry-After.
    pub calls_max: usize,
    /// From the answer; then BYE.
    pub call_duration_max: Duration,
    /// From the INVITE until the agent is there; then 480.
    pub ring_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            calls_max: 5_000,
            call_duration_max: Duration::from_secs(14_400),
            ring_max: Duration::from_secs(10),
        }
    }
}

/// What is wrong with the configuration, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file or the environment could not be read.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A value that does not parse.
    #[error("{origin}: \"{value}\" is not {expected}")]
    Invalid {
        /// Flag, variable or file.
        origin: String,
        /// As written; never a secret.
        value: String,
        /// What would have been right, with an example.
        expected: &'static str,
    },
    /// Valid, but Tandem cannot do it yet.
    #[error("{origin}: {what} is not supported yet; {instead}")]
    Unsupported {
        /// Flag, variable or file.
        origin: String,
        /// The feature.
        what: String,
        /// What works today.
        instead: &'static str,
    },
    /// A listener on every address, and nobody says which one peers should use.
    #[error(
        "{listener} listens on every address: set TANDEM_SIP_PUBLIC to the host or address that SIP peers reach, \
         or listen on one address"
    )]
    PublicUnknown {
        /// The listener.
        listener: String,
    },
    /// A listener with TLS, and nothing to show.
    #[error(
        "{origin}: {listener} needs a certificate: set TANDEM_TLS_CERT and TANDEM_TLS_KEY to PEM files, or leave that \
         listener out"
    )]
    NoCertificate {
        /// Flag, variable or file.
        origin: String,
        /// The listener.
        listener: String,
    },
    /// The URL of Redis. Not repeated: it may hold a password.
    #[error("{origin}: {source}")]
    Redis {
        /// Flag, variable or file.
        origin: String,
        /// What is wrong with it.
        source: RedisUrlError,
    },
    /// The authorities of Redis.
    #[error("{origin}: cannot read {path}: {source}")]
    RedisAuthorities {
        /// Flag, variable or file.
        origin: String,
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Tables of tandem.toml are wrong; every mistake is named.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Tables(Vec<TableError>),
    /// A fault of ours: the demo's credentials do not fit their forms.
    #[error("the credentials of --demo cannot be used: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Demo(Vec<provider::FormError>),
    /// Demo data would be reachable from outside.
    #[error(
        "--demo opens a well-known API key, so every listener must be on loopback; {listener} is not. \
         Use 127.0.0.1, or leave --demo out"
    )]
    DemoNotOnLoopback {
        /// The listener that is not.
        listener: String,
    },
}

impl Config {
    /// Checks the layers.
    pub fn from_layers(layers: &Layers) -> Result<Self, ConfigError> {
        let state_dir = PathBuf::from(layers.text("state_dir").unwrap_or("./.tandem"));
        let demo = parse(layers, "demo", "true or false", |text| text.parse().ok())?;
        let (declared, trunks, mut credentials) = tables(layers, demo)?;
        if demo {
            provider::demo::deploy(&mut credentials).map_err(ConfigError::Demo)?;
        }
        let config = Self {
            http_listen: parse(layers, "http_listen", "an address such as 127.0.0.1:8080", |text| {
                text.parse().ok()
            })?,
            sip_listen: sip_listeners(layers)?,
            sip_public: sip_public(layers)?,
            tls: tls_files(layers)?,
            sip_dns: sip_dns(layers)?,
            public_url: public_url(layers)?,
            trusted_proxies: parse(
                layers,
                "http_trusted_proxies",
                "a list of networks such as 10.0.0.0/8,192.0.2.7",
                |text| text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(network).collect(),
            )?,
            database: database(layers, &state_dir)?,
            redis: redis(layers)?,
            engines: engines(layers)?,
            state_dir,
            service_token: layers.text("service_token").map(SecretString::from),
            talker_url: parse(layers, "talker_url", "a URL such as link://127.0.0.1:8767", |text| {
                let is_known = text.starts_with("ws://") || text.starts_with(LINK_SCHEME);
                is_known.then(|| text.to_owned())
            })?,
            demo,
            declared,
            trunks,
            credentials,
            sip_realm: parse(layers, "sip_realm", "a text without quotes, such as tandem", |text| {
                let fits = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
                (!text.is_empty() && text.bytes().all(fits)).then(|| text.to_owned())
            })?,
            sip_digest: parse(layers, "sip_digest", "md5, sha-256, or both with a comma", algorithms)?,
            guard: guard(layers)?,
            tenant_limits: TenantLimits {
                calls_max: optional(layers, "tenant_calls_max", "a number from 1 to 100000", |text| {
                    text.parse().ok().filter(|n| (1..=100_000).contains(n))
                })?,
                calls_per_second: optional(layers, "tenant_calls_per_second", RATE_EXPECTED, rate)?,
            },
            limits: Limits {
                calls_max: parse(layers, "calls_max", "a number from 1 to 100000", |text| {
                    text.parse().ok().filter(|n| (1..=100_000).contains(n))
                })?,
                call_duration_max: seconds(layers, "call_seconds_max", "seconds from 1 to 86400", 86_400)?,
                ring_max: seconds(layers, "ring_seconds_max", "seconds from 1 to 180", 180)?,
            },
        };
        config.check_demo()?;
        config.check_public()?;
        config.check_certificate(layers)?;
        Ok(config)
    }

    /// A configuration on free loopback ports with a database in memory, for tests.
    pub fn for_tests(engines: Vec<String>) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            http_listen: loopback,
            sip_listen: vec![
                SipListen { transport: SipTransport::Udp, address: loopback },
                SipListen { transport: SipTransport::Tcp, address: loopback },
            ],
            sip_public: None,
            tls: None,
            sip_dns: None,
            public_url: None,
            trusted_proxies: Vec::new(),
            database: Database::Memory,
            redis: None,
            engines,
            state_dir: std::env::temp_dir(),
            service_token: None,
            talker_url: "link://127.0.0.1:8767".to_owned(),
            demo: true,
            limits: Limits::default(),
            declared: Declared::default(),
            trunks: Trunks::default(),
            credentials: Credentials::default(),
            sip_realm: "tandem".to_owned(),
            sip_digest: vec![Algorithm::Md5],
            guard: GuardSettings::default(),
            tenant_limits: TenantLimits::default(),
        }
    }

    /// What the SIP shell is told.
    pub fn sip(&self, guard: SharedGuard) -> SipSettings {
        SipSettings {
            listen: self.sip_listen.clone(),
            tls: self.tls.clone(),
            dns: self.sip_dns,
            trunks: self.trunks.iter().map(|trunk| (&**trunk).into()).collect(),
            guard,
        }
    }

    /// Contact must name an address that peers can reach; 0.0.0.0 is none.
    fn check_public(&self) -> Result<(), ConfigError> {
        let everywhere = self.sip_listen.iter().find(|listen| listen.address.ip().is_unspecified());
        match everywhere {
            Some(listen) if self.sip_public.is_none() => {
                Err(ConfigError::PublicUnknown { listener: listen.to_string() })
            }
            _ => Ok(()),
        }
    }

    fn check_certificate(&self, layers: &Layers) -> Result<(), ConfigError> {
        match self.sip_listen.iter().find(|listen| listen.transport.needs_certificate()) {
            Some(listen) if self.tls.is_none() => {
                let (origin, listener) = (layers.origin("sip_listen"), listen.to_string());
                Err(ConfigError::NoCertificate { origin, listener })
            }
            _ => Ok(()),
        }
    }

    fn check_demo(&self) -> Result<(), ConfigError> {
        if !self.demo {
            return Ok(());
        }
        if !self.http_listen.ip().is_loopback() {
            return Err(ConfigError::DemoNotOnLoopback { listener: format!("http {}", self.http_listen) });
        }
        match self.sip_listen.iter().find(|listen| !listen.address.ip().is_loopback()) {
            Some(listen) => Err(ConfigError::DemoNotOnLoopback { listener: listen.to_string() }),
            None => Ok(()),
        }
    }
}

/// Every table of the file; all mistakes at once.
fn tables(layers: &Layers, demo: bool) -> Result<(Declared, Trunks, Credentials), ConfigError> {
    let environment = |name: &str| std::env::var(name).ok();
    let source = Source::new(layers.path().unwrap_or(Path::new("tandem.toml")), &environment);
    let (declared, tenants) = declared::read(&source, layers.tables(), demo);
    let trunks = trunk::file::read(&source, layers.tables(), &tenants);
    let credentials = provider::file::read(&source, layers.tables(), &tenants);
    let errors = source.into_errors();
    if errors.is_empty() { Ok((declared, trunks, credentials)) } else { Err(ConfigError::Tables(errors)) }
}

const RATE_EXPECTED: &str = "a rate a second from 0.01 to 100000, such as 20 or 0.5";

fn rate(text: &str) -> Option<f64> {
    text.parse().ok().filter(|rate| (0.01..=100_000.0).contains(rate))
}

fn guard(layers: &Layers) -> Result<GuardSettings, ConfigError> {
    Ok(GuardSettings {
        scanner_agents: parse(
            layers,
            "sip_scanner_agents",
            "a list such as friendly-scanner,sipcli",
            |text| {
                let agents = text.split(',').map(|agent| agent.trim().to_ascii_lowercase());
                Some(agents.filter(|agent| !agent.is_empty()).collect())
            },
        )?,
        failures_max: parse(layers, "sip_failures_max", "a number from 1 to 1000", |text| {
            text.parse().ok().filter(|n| (1..=1_000).contains(n))
        })?,
        silence: seconds(layers, "sip_silence_seconds", "seconds from 1 to 3600", 3_600)?,
        strangers_per_second: parse(layers, "sip_strangers_per_second", RATE_EXPECTED, rate)?,
    })
}

fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn public_url(layers: &Layers) -> Result<Option<String>, ConfigError> {
    const EXPECTED: &str = "a URL such as https://tandem.example.com, without query and fragment";
    optional(layers, "public_url", EXPECTED, |text| {
        let url = text.trim_end_matches('/');
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
        let fits = |c: char| c.is_ascii_graphic() && !"?#\"<>\\".contains(c);
        (!rest.is_empty() && !rest.starts_with('/') && rest.chars().all(fits)).then(|| url.to_owned())
    })
}

/// A setting that may be left out.
fn optional<T>(
    layers: &Layers,
    key: &'static str,
    expected: &'static str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, ConfigError> {
    if layers.text(key).is_none() { Ok(None) } else { parse(layers, key, expected, read).map(Some) }
}

fn algorithms(text: &str) -> Option<Vec<Algorithm>> {
    text.split(',')
        .map(|name| match name.trim().to_ascii_lowercase().as_str() {
            "md5" => Some(Algorithm::Md5),
            "sha-256" => Some(Algorithm::Sha256),
            _ => None,
        })
        .collect()
}

fn parse<T>(
    layers: &Layers,
    key: &'static str,
    expected: &'static str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, ConfigError> {
    let text = layers.text(key).unwrap_or_default().trim();
    read(text).ok_or_else(|| invalid(layers, key, text, expected))
}

fn seconds(
    layers: &Layers,
    key: &'static str,
    expected: &'static str,
    most: u64,
) -> Result<Duration, ConfigError> {
    parse(layers, key, expected, |text| text.parse().ok().filter(|n| (1..=most).contains(n)))
        .map(Duration::from_secs)
}

fn invalid(layers: &Layers, key: &'static str, value: &str, expected: &'static str) -> ConfigError {
    ConfigError::Invalid { origin: layers.origin(key), value: value.to_owned(), expected }
}

fn unsupported(
    layers: &Layers,
    key: &'static str,
    what: impl Into<String>,
    instead: &'static str,
) -> ConfigError {
    ConfigError::Unsupported { origin: layers.origin(key), what: what.into(), instead }
}

fn sip_listeners(layers: &Layers) -> Result<Vec<SipListen>, ConfigError> {
    const KEY: &str = "sip_listen";
    const EXPECTED: &str = "a list of listeners such as udp:127.0.0.1:4573,tcp:127.0.0.1:4573";
    let text = layers.text(KEY).unwrap_or_default();
    let mut listeners = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let Some((scheme, address)) = item.split_once(':') else {
            return Err(invalid(layers, KEY, item, EXPECTED));
        };
        let Some(transport) = SipTransport::ALL.into_iter().find(|known| known.word() == scheme) else {
            return Err(invalid(layers, KEY, item, EXPECTED));
        };
        let Ok(address) = address.parse() else {
            return Err(invalid(layers, KEY, item, EXPECTED));
        };
        listeners.push(SipListen { transport, address });
    }
    if listeners.is_empty() {
        return Err(invalid(layers, KEY, text, EXPECTED));
    }
    Ok(listeners)
}

/// A host as it stands in a SIP URI: a name, an IPv4 address, or an IPv6 address, which gets its brackets.
fn sip_public(layers: &Layers) -> Result<Option<String>, ConfigError> {
    const KEY: &str = "sip_public";
    const EXPECTED: &str = "a host or address without a port, such as sip.example.com or 203.0.113.7";
    let Some(text) = layers.text(KEY).map(str::trim) else { return Ok(None) };
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let host = match bare.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => None,
        Ok(IpAddr::V6(ip)) => Some(format!("[{ip}]")),
        Ok(IpAddr::V4(_)) => (bare == text).then(|| text.to_owned()),
        Err(_) => {
            let is_name = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
            (is_name && !text.is_empty()).then(|| text.to_owned())
        }
    };
    host.map(Some).ok_or_else(|| invalid(layers, KEY, text, EXPECTED))
}

/// Both or neither.
fn tls_files(layers: &Layers) -> Result<Option<TlsFiles>, ConfigError> {
    match (layers.text("tls_cert"), layers.text("tls_key")) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert: cert.into(), key: key.into() })),
        (None, None) => Ok(None),
        (Some(cert), None) => Err(invalid(
            layers,
            "tls_cert",
            cert,
            "enough by itself: set TANDEM_TLS_KEY to its key's PEM file",
        )),
        (None, Some(key)) => Err(invalid(
            layers,
            "tls_key",
            key,
            "enough by itself: set TANDEM_TLS_CERT to its certificate's PEM file",
        )),
    }
}

fn sip_dns(layers: &Layers) -> Result<Option<SocketAddr>, ConfigError> {
    const KEY: &str = "sip_dns";
    const EXPECTED: &str = "the address of a DNS server such as 127.0.0.1:53";
    let Some(text) = layers.text(KEY).map(str::trim) else { return Ok(None) };
    let address = text.parse().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)));
    address.map(Some).map_err(|_| invalid(layers, KEY, text, EXPECTED))
}

fn redis(layers: &Layers) -> Result<Option<RedisUrl>, ConfigError> {
    let Some(text) = layers.text("redis_url") else { return Ok(None) };
    let url = RedisUrl::parse(text)
        .map_err(|source| ConfigError::Redis { origin: layers.origin("redis_url"), source })?;
    let Some(path) = layers.text("redis_ca") else { return Ok(Some(url)) };
    let authorities = std::fs::read(path).map_err(|source| ConfigError::RedisAuthorities {
        origin: layers.origin("redis_ca"),
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(url.trusting(authorities)))
}

fn database(layers: &Layers, state_dir: &Path) -> Result<Database, ConfigError> {
    const KEY: &str = "database_url";
    let Some(url) = layers.text(KEY) else { return Ok(Database::File(state_dir.join("tandem.db"))) };
    if url == "sqlite::memory:" {
        return Ok(Database::Memory);
    }
    match url.split_once(':') {
        Some(("sqlite", path)) => {
            let path = path.trim_start_matches("//");
            let path = path.split('?').next().unwrap_or_default();
            if path.is_empty() {
                return Err(invalid(layers, KEY, url, "a file, such as sqlite:/var/lib/tandem/tandem.db"));
            }
            Ok(Database::File(PathBuf::from(path)))
        }
        Some(("postgres" | "postgresql", _)) => {
            Err(unsupported(layers, KEY, "PostgreSQL", "use sqlite:FILE, or leave it unset"))
        }
        // The URL may hold a password: it is not repeated.
        _ => Err(invalid(layers, KEY, "(not shown)", "a URL such as sqlite:/var/lib/tandem/tandem.db")),
    }
}

fn engines(layers: &Layers) -> Result<Vec<String>, ConfigError> {
    const KEY: &str = "engines";
    const EXPECTED: &str = "a list of URLs such as http://127.0.0.1:7070";
    let text = layers.text(KEY).unwrap_or_default();
    let urls: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    if urls.is_empty() {
        return Err(invalid(layers, KEY, text, EXPECTED));
    }
    for url in &urls {
        if url.starts_with("https://") {
            return Err(unsupported(layers, KEY, "TLS towards the engines", "use http://HOST:PORT"));
        }
        let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let port = authority.and_then(|authority| authority.rsplit_once(':')).map(|(_, port)| port);
        if port.and_then(|port| port.parse::<u16>().ok()).is_none() {
            return Err(invalid(layers, KEY, url, EXPECTED));
        }
    }
    Ok(urls.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
        let mut layers = Layers::default();
        for (key, value) in flags {
            layers.flag(key, Some(value));
        }
        Config::from_layers(&layers)
    }

    #[test]
    fn defaults_are_the_contract() {
        let config = config(&[]).unwrap();
        assert_eq!(config.http_listen.to_string(), "127.0.0.1:8080");
        let sip: Vec<String> = config.sip_listen.iter().map(SipListen::to_string).collect();
        assert_eq!(sip, ["udp:127.0.0.1:4573", "tcp:127.0.0.1:4573"]);
        assert_eq!(config.engines, ["http://127.0.0.1:7070"]);
        assert_eq!(config.database, Database::File("./.tandem/tandem.db".into()));
        assert!(!config.demo);
    }

    #[test]
    fn listeners_of_every_transport_are_read() {
        let listen = "udp:127.0.0.1:1,tcp:127.0.0.1:2,tls:127.0.0.1:3,ws:127.0.0.1:4,wss:[::1]:5";
        let read = config(&[("sip_listen", listen), ("tls_cert", "c.pem"), ("tls_key", "k.pem")]).unwrap();
        let read: Vec<String> = read.sip_listen.iter().map(SipListen::to_string).collect();
        assert_eq!(read.join(","), listen);
        assert!(config(&[("sip_listen", "sctp:127.0.0.1:1")]).is_err());
    }

    #[test]
    fn listener_with_tls_needs_a_certificate_and_its_key() {
        for scheme in ["tls", "wss"] {
            let error = config(&[("sip_listen", &format!("{scheme}:127.0.0.1:5061"))]).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "--sip-listen: {scheme}:127.0.0.1:5061 needs a certificate: set TANDEM_TLS_CERT and \
                     TANDEM_TLS_KEY to PEM files, or leave that listener out"
                )
            );
        }
        let error = config(&[("tls_cert", "c.pem")]).unwrap_err().to_string();
        assert!(error.contains("set TANDEM_TLS_KEY"), "{error}");
    }

    #[test]
    fn dns_server_may_leave_out_its_port() {
        let dns = |text| config(&[("sip_dns", text)]).map(|config| config.sip_dns.unwrap().to_string());
        assert_eq!(dns("192.0.2.53").unwrap(), "192.0.2.53:53");
        assert_eq!(dns("[::1]:5353").unwrap(), "[::1]:5353");
        assert!(dns("dns.example.com").is_err());
    }

    #[test]
    fn redis_is_named_by_a_url_whose_password_is_not_repeated() {
        assert!(config(&[]).unwrap().redis.is_none());
        let redis = config(&[("redis_url", "redis-cluster://:hunter2@a:1,b:2")]).unwrap().redis.unwrap();
        assert_eq!(format!("{redis:?}"), "redis cluster at a:1,b:2");
        let error = config(&[("redis_url", "http://:hunter2@r/0")]).unwrap_err().to_string();
        assert!(error.contains("must begin with redis://") && !error.contains("hunter2"), "{error}");
        let error = config(&[("redis_url", "rediss://r"), ("redis_ca", "/no/such.pem")]).unwrap_err();
        assert!(error.to_string().contains("cannot read /no/such.pem"), "{error}");
    }

    #[test]
    fn postgres_is_not_supported_yet_and_its_password_is_not_repeated() {
        let error = config(&[("database_url", "postgres://u:hunter2@db/x")]).unwrap_err().to_string();
        assert!(error.contains("PostgreSQL is not supported yet") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn demo_needs_every_listener_on_loopback() {
        assert!(config(&[("demo", "true")]).unwrap().demo);
        let error = config(&[("demo", "true"), ("sip_listen", "udp:0.0.0.0:4573")]).unwrap_err();
        assert!(error.to_string().contains("udp:0.0.0.0:4573 is not"), "{error}");
        let error = config(&[("demo", "true"), ("http_listen", "0.0.0.0:8080")]).unwrap_err();
        assert!(error.to_string().contains("http 0.0.0.0:8080 is not"), "{error}");
    }

    #[test]
    fn listener_on_every_address_needs_to_know_its_public_name() {
        let error = config(&[("sip_listen", "udp:0.0.0.0:5060")]).unwrap_err();
        assert!(error.to_string().contains("set TANDEM_SIP_PUBLIC"), "{error}");
        let named = config(&[("sip_listen", "udp:0.0.0.0:5060"), ("sip_public", "sip.example.com")]).unwrap();
        assert_eq!(named.sip_public.as_deref(), Some("sip.example.com"));
    }

    #[test]
    fn public_sip_host_is_one_that_peers_can_use() {
        let told = |host| config(&[("sip_public", host)]).map(|config| config.sip_public);
        assert_eq!(told("2001:db8::1").unwrap().as_deref(), Some("[2001:db8::1]"));
        assert_eq!(told("sip.example.com").unwrap().as_deref(), Some("sip.example.com"));
        for wrong in ["0.0.0.0", "::", "[::]", "sip.example.com:5060", "sip:me@host", "a b"] {
            assert!(told(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn wrong_values_say_where_they_are_and_what_is_right() {
        let error = config(&[("http_listen", "8080")]).unwrap_err();
        assert_eq!(error.to_string(), "--http-listen: \"8080\" is not an address such as 127.0.0.1:8080");
        assert!(config(&[("engines", "127.0.0.1:7070")]).is_err());
        assert!(config(&[("calls_max", "0")]).is_err());
        assert!(config(&[("sip_listen", "udp")]).is_err());
        assert!(config(&[("sip_listen", " ")]).is_err());
    }

    #[test]
    fn service_token_never_appears_in_debug() {
        let config = config(&[("service_token", "s3cret")]).unwrap();
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}
