//! Settings: flag before environment before tandem.toml, checked once, here.
//!
//! ```text
//!   --rtp-ports 20000-29999      flag
//!   TANDEM_ENGINE_RTP_PORTS      environment
//!   engine_rtp_ports = "…"       tandem.toml, or rtp_ports in its [engine] table
//! ```
//!
//! One tandem.toml serves every program of a machine, so this program leaves alone what is not its own: any key that
//! does not begin with `engine_`. A key of its own that it does not know is an error that names the nearest.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ring::{Choice, allowed_cores};

/// Sessions a core carries unless said otherwise: about the limit of a core with RTP only (bench/RESULTS.md), with
/// room for one that is faster than the reference machine's.
pub const SESSIONS_PER_CORE: usize = 4_000;

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Flag without `--`, and with `_` for `-` and `engine_` before it the key in tandem.toml.
    pub name: &'static str,
    /// What it is when nobody says.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// Every setting of the engine.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "grpc-listen",
        default: "127.0.0.1:7070",
        help: "Address of the gRPC service that the control plane commands",
    },
    Setting {
        name: "metrics-listen",
        default: "127.0.0.1:9101",
        help: "Address of /metrics, /healthz and /readyz",
    },
    Setting {
        name: "ws-listen",
        default: "127.0.0.1:8090",
        help: "Address of the providers' media WebSockets, wss with a certificate",
    },
    Setting {
        name: "ws-public",
        default: "",
        help: "HOST:PORT of them that providers are told; unset: the listener's",
    },
    Setting {
        name: "audiosocket-listen",
        default: "127.0.0.1:9093",
        help: "Address of Asterisk's AudioSocket (TCP)",
    },
    Setting {
        name: "audiosocket-public",
        default: "",
        help: "HOST:PORT of it that dialplans are told; unset: the listener's",
    },
    Setting {
        name: "tls-cert",
        default: "",
        help: "PEM file of the certificate chain for wss; with tls-key; read anew when it changes",
    },
    Setting { name: "tls-key", default: "", help: "PEM file of its key" },
    Setting { name: "rtp-addr", default: "127.0.0.1", help: "IP address that RTP ports are bound to" },
    Setting {
        name: "rtp-public",
        default: "",
        help: "IP address that is advertised in SDP; unset: the bound one",
    },
    Setting {
        name: "rtp-ports",
        default: "20000-29999",
        help: "UDP range FIRST-LAST; RTP takes the even ports, split among the cores",
    },
    Setting {
        name: "cores",
        default: "",
        help: "Cores that carry calls, as in 1 or 1-3 or 2,4-6; unset: all that are allowed but the first",
    },
    Setting { name: "driver", default: "auto", help: "auto, io_uring or epoll; see --explain" },
    Setting { name: "sessions-max", default: "", help: "Sessions carried at most; unset: 4000 a core" },
    Setting { name: "media-dir", default: "./media", help: "Folder of the file agent's WAV files" },
    Setting {
        name: "agent-ca",
        default: "",
        help: "PEM file of certificates that agents behind wss:// may be signed by, beside the public ones",
    },
    Setting { name: "drain-seconds", default: "10", help: "How long a stopping engine lets calls go on" },
    Setting {
        name: "orphan-seconds",
        default: "600",
        help: "How long calls go on while no control plane listens",
    },
];

impl Setting {
    /// The key in tandem.toml.
    pub fn key(&self) -> String {
        let name = self.name.replace('-', "_");
        if self.is_shared() { name } else { format!("engine_{name}") }
    }

    /// It is the control plane's, too, and has no `engine_` before it.
    fn is_shared(&self) -> bool {
        matches!(self.name, "tls-cert" | "tls-key")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("TANDEM_{}", self.key().to_ascii_uppercase())
    }
}

/// A range of UDP ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub min: u16,
    /// The highest.
    pub max: u16,
}

/// The checked settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where commands come in; port 0 lets the system choose.
    pub grpc_listen: SocketAddr,
    /// Where metrics are read; port 0 lets the system choose.
    pub metrics_listen: SocketAddr,
    /// Where providers' media WebSockets come in; port 0 lets the system choose.
    pub ws_listen: SocketAddr,
    /// What providers are told, if it is another.
    pub ws_public: Option<String>,
    /// Where Asterisk's AudioSocket comes in; port 0 lets the system choose.
    pub audiosocket_listen: SocketAddr,
    /// What dialplans are told, if it is another.
    pub audiosocket_public: Option<String>,
    /// Certificate chain and key of the WebSockets, which are `wss` with them.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Where RTP ports are bound.
    pub rtp_address: IpAddr,
    /// What SDP says.
    pub rtp_public: IpAddr,
    /// Which ports.
    pub rtp_ports: PortRange,
    /// One worker on each.
    pub cores: Vec<usize>,
    /// Which driver.
    pub driver: Choice,
    /// Over all cores.
    pub sessions_max: usize,
    /// Folder of recordings to be played.
    pub media_dir: PathBuf,
    /// Certificates that agents may be signed by, beside the public roots.
    pub agent_ca: Option<PathBuf>,
    /// How long a stopping engine waits for calls to end.
    pub drain: Duration,
    /// How long sessions live without a controller.
    pub orphan: Duration,
}

/// What is wrong with the settings, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {message}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A key that nobody reads.
    #[error("{origin}: unknown setting \"{key}\"; did you mean \"{nearest}\"?")]
    Unknown {
        /// File or environment.
        origin: String,
        /// As written.
        key: String,
        /// The nearest that exists.
        nearest: String,
    },
    /// A value that cannot be used.
    #[error("{origin}: \"{value}\" is not {expected}")]
    Invalid {
        /// Flag, variable or file.
        origin: String,
        /// As written.
        value: String,
        /// What is, with an example.
        expected: &'static str,
    },
    /// A listener on every address, and nobody says which one those should use who are told of it.
    #[error(
        "{listener} listens on every address: set {public} to the HOST:PORT that is reached from outside"
    )]
    PublicUnknown {
        /// The setting of the listener.
        listener: String,
        /// The setting that says so.
        public: String,
    },
}

/// Values as given, with where they came from.
#[derive(Debug, Default)]
pub struct Layers {
    /// By setting name: value and origin.
    values: BTreeMap<&'static str, (String, String)>,
}

impl Layers {
    /// Lays the file, then the environment, then flags over each other. Without `file`, ./tandem.toml is read if it
    /// is there.
    pub fn read(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Self::default();
        let path = match file {
            Some(path) => Some(path.to_owned()),
            None => Some(PathBuf::from("tandem.toml")).filter(|path| path.exists()),
        };
        if let Some(path) = path {
            let text = std::fs::read_to_string(&path)
                .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
            layers.lay_file(&path, &text)?;
        }
        for (variable, value) in environment {
            if let Some(shared) =
                SETTINGS.iter().find(|setting| setting.is_shared() && setting.variable() == variable)
            {
                if !value.is_empty() {
                    layers.values.insert(shared.name, (value, variable));
                }
                continue;
            }
            let Some(rest) = variable.strip_prefix("TANDEM_ENGINE_") else { continue };
            let name = rest.to_ascii_lowercase().replace('_', "-");
            match SETTINGS.iter().find(|setting| setting.name == name && !setting.is_shared()) {
                // An empty variable means "not set", as compose files and unit files write it.
                Some(_) if value.is_empty() => {}
                Some(setting) => drop(layers.values.insert(setting.name, (value, variable))),
                None => {
                    let nearest = nearest(&name).variable();
                    return Err(ConfigError::Unknown {
                        origin: "environment".into(),
                        key: variable,
                        nearest,
                    });
                }
            }
        }
        for (name, value) in flags {
            layers.values.insert(name, (value, format!("--{name}")));
        }
        Ok(layers)
    }

    fn lay_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        for (key, value) in &table {
            match (key.as_str(), value) {
                ("engine", toml::Value::Table(own)) => {
                    for (key, value) in own {
                        self.lay(path, key, &key.replace('_', "-"), value)?;
                    }
                }
                // `engines` is the control plane's.
                (key, value) => {
                    let shared = SETTINGS.iter().find(|setting| setting.is_shared() && setting.key() == key);
                    if let Some(shared) = shared {
                        self.lay(path, key, shared.name, value)?;
                    } else if let Some(name) = key.strip_prefix("engine_") {
                        self.lay(path, key, &name.replace('_', "-"), value)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn lay(&mut self, path: &Path, key: &str, name: &str, value: &toml::Value) -> Result<(), ConfigError> {
        let origin = path.display().to_string();
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
            let nearest = nearest(name).key();
            let nearest = match key.starts_with("engine_") {
                true => nearest,
                false => nearest.trim_start_matches("engine_").to_owned(),
            };
            return Err(ConfigError::Unknown { origin, key: key.to_owned(), nearest });
        };
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Array(items) => {
                let items = items.iter().map(|item| match item {
                    toml::Value::String(text) => text.clone(),
                    other => other.to_string(),
                });
                items.collect::<Vec<_>>().join(",")
            }
            other => {
                let expected = "a text, a number or a list";
                return Err(ConfigError::Invalid {
                    origin: format!("{key} in {origin}"),
                    value: other.to_string(),
                    expected,
                });
            }
        };
        self.values.insert(setting.name, (text, format!("{key} in {origin}")));
        Ok(())
    }

    /// The value that holds and where it comes from.
    fn get(&self, name: &'static str) -> (&str, String) {
        match self.values.get(name) {
            Some((value, origin)) => (value, origin.clone()),
            None => {
                let default = SETTINGS.iter().find(|setting| setting.name == name).map_or("", |s| s.default);
                (default, format!("the default of --{name}"))
            }
        }
    }

    fn parse<T>(
        &self,
        name: &'static str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        let (value, origin) = self.get(name);
        parse(value.trim()).ok_or_else(|| ConfigError::Invalid { origin, value: value.to_owned(), expected })
    }
}

impl Config {
    /// Checks every value.
    pub fn from_layers(layers: &Layers) -> Result<Self, ConfigError> {
        let address = "an address with its port, as in 127.0.0.1:7070";
        let rtp_address: IpAddr =
            layers.parse("rtp-addr", "an IP address, as in 192.0.2.7", |text| text.parse().ok())?;
        let allowed = allowed_cores();
        let cores = layers.parse(
            "cores",
            "a list of cores that this process may run on, as in 1 or 1-3 or 2,4-6",
            |text| match text {
                "" => Some(all_but_the_first(&allowed)),
                text => parse_cores(text, &allowed),
            },
        )?;
        let sessions_max = layers.parse("sessions-max", "a number from 1 to 1000000", |text| match text {
            "" => Some(SESSIONS_PER_CORE * cores.len()),
            text => text.parse().ok().filter(|count| (1..=1_000_000).contains(count)),
        })?;
        let readable = "a PEM file that can be read, and goes with the other of tls-cert and tls-key";
        let has = |name: &'static str| !layers.get(name).0.is_empty();
        let file = |name: &'static str, other: &'static str| {
            layers.parse(name, readable, |text| match text {
                "" if has(other) => None,
                "" => Some(None),
                text => std::fs::File::open(text).ok().map(|_| Some(PathBuf::from(text))),
            })
        };
        let tls = file("tls-cert", "tls-key")?.zip(file("tls-key", "tls-cert")?);
        let public = |text: &str| match text {
            "" => Some(None),
            text => text
                .rsplit_once(':')
                .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
                .map(|_| Some(text.to_owned())),
        };
        let host = "a host with its port, as in media.example.com:443";
        let seconds = |text: &str| text.parse().ok().map(Duration::from_secs);
        let config = Self {
            grpc_listen: layers.parse("grpc-listen", address, |text| text.parse().ok())?,
            metrics_listen: layers.parse("metrics-listen", address, |text| text.parse().ok())?,
            ws_listen: layers.parse("ws-listen", address, |text| text.parse().ok())?,
            ws_public: layers.parse("ws-public", host, public)?,
            audiosocket_listen: layers.parse("audiosocket-listen", address, |text| text.parse().ok())?,
            audiosocket_public: layers.parse("audiosocket-public", host, public)?,
            tls,
            rtp_address,
            rtp_public: layers.parse("rtp-public", "an IP address, as in 192.0.2.7", |text| match text {
                "" => Some(rtp_address),
                text => text.parse().ok(),
            })?,
            rtp_ports: layers.parse(
                "rtp-ports",
                "a range of ports from 1024 on that holds an even port and the odd one after it, as in 20000-29999",
                parse_ports,
            )?,
            cores,
            driver: layers.parse("driver", "auto, io_uring or epoll", |text| text.parse().ok())?,
            sessions_max,
            media_dir: layers.get("media-dir").0.into(),
            agent_ca: layers.parse("agent-ca", "a PEM file that can be read", |text| match text {
                "" => Some(None),
                text => std::fs::File::open(text).ok().map(|_| Some(PathBuf::from(text))),
            })?,
            drain: layers.parse("drain-seconds", "a number of seconds", seconds)?,
            orphan: layers.parse("orphan-seconds", "a number of seconds", seconds)?,
        };
        config.check_public()?;
        Ok(config)
    }

    /// Providers and dialplans must be told an address that they can reach; 0.0.0.0 is none.
    fn check_public(&self) -> Result<(), ConfigError> {
        let listeners = [
            ("WS", self.ws_listen, &self.ws_public),
            ("AUDIOSOCKET", self.audiosocket_listen, &self.audiosocket_public),
        ];
        for (name, address, public) in listeners {
            if address.ip().is_unspecified() && public.is_none() {
                return Err(ConfigError::PublicUnknown {
                    listener: format!("TANDEM_ENGINE_{name}_LISTEN"),
                    public: format!("TANDEM_ENGINE_{name}_PUBLIC"),
                });
            }
        }
        Ok(())
    }

    /// An engine for tests and tools in their own process: on loopback, on ports of the system's choosing, with one
    /// worker on the last core that is allowed.
    pub fn for_tests(rtp_ports: PortRange) -> Self {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        Self {
            grpc_listen: (loopback, 0).into(),
            metrics_listen: (loopback, 0).into(),
            ws_listen: (loopback, 0).into(),
            ws_public: None,
            audiosocket_listen: (loopback, 0).into(),
            audiosocket_public: None,
            tls: None,
            rtp_address: loopback,
            rtp_public: loopback,
            rtp_ports,
            cores: allowed_cores().last().map_or_else(|| vec![0], |core| vec![*core]),
            driver: Choice::Auto,
            sessions_max: 1_000,
            media_dir: "./media".into(),
            agent_ca: None,
            drain: Duration::from_millis(200),
            orphan: Duration::from_secs(600),
        }
    }

    /// Sessions that each core may carry.
    pub fn sessions_per_core(&self) -> usize {
        self.sessions_max.div_ceil(self.cores.len().max(1))
    }
}

/// The first core is left to everything else, if there is another.
fn all_but_the_first(allowed: &[usize]) -> Vec<usize> {
    match allowed {
        [_, rest @ ..] if !rest.is_empty() => rest.to_vec(),
        other => other.to_vec(),
    }
}

fn parse_cores(text: &str, allowed: &[usize]) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        for core in first..=last {
            if !allowed.contains(&core) {
                return None;
            }
            if !cores.contains(&core) {
                cores.push(core);
            }
        }
    }
    Some(cores).filter(|cores| !cores.is_empty())
}

fn parse_ports(text: &str) -> Option<PortRange> {
    let (min, max) = text.split_once('-')?;
    let range = PortRange { min: min.trim().parse().ok()?, max: max.trim().parse().ok()? };
    let first_even = range.min.checked_next_multiple_of(2)?;
    (range.min >= 1_024 && first_even < range.max).then_some(range)
}

fn nearest(name: &str) -> &'static Setting {
    SETTINGS.iter().min_by_key(|setting| distance(name, setting.name)).unwrap_or(&SETTINGS[0])
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let changed = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(
        environment: &[(&str, &str)],
        flags: &[(&'static str, &str)],
        file: &str,
    ) -> Result<Layers, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tandem.toml");
        std::fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Layers::read(Some(&path), environment, flags.iter().map(|(k, v)| (*k, (*v).to_owned())))
    }

    #[test]
    fn listener_on_every_address_must_say_where_it_is_reached() {
        let read = |environment: &[(&str, &str)]| {
            layers(environment, &[], "").and_then(|layers| Config::from_layers(&layers))
        };
        let everywhere = ("TANDEM_ENGINE_WS_LISTEN", "0.0.0.0:8090");
        let error = read(&[everywhere]).unwrap_err().to_string();
        assert!(error.contains("set TANDEM_ENGINE_WS_PUBLIC to the HOST:PORT"), "{error}");
        let told = ("TANDEM_ENGINE_WS_PUBLIC", "media.example.com:443");
        assert_eq!(read(&[everywhere, told]).unwrap().ws_public.as_deref(), Some("media.example.com:443"));
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = Config::from_layers(&Layers::default()).unwrap();
        assert_eq!(config.grpc_listen.to_string(), "127.0.0.1:7070");
        assert_eq!(config.metrics_listen.to_string(), "127.0.0.1:9101");
        assert_eq!(config.ws_listen.to_string(), "127.0.0.1:8090");
        assert_eq!(config.audiosocket_listen.to_string(), "127.0.0.1:9093");
        assert_eq!(config.rtp_ports, PortRange { min: 20_000, max: 29_999 });
        assert_eq!(config.rtp_public, config.rtp_address);
        assert_eq!(config.sessions_max, SESSIONS_PER_CORE * config.cores.len());
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file() {
        let file = "engine_drain_seconds = 1\nengine_orphan_seconds = 2\n[engine]\nsessions_max = 3\n";
        let environment = [("TANDEM_ENGINE_ORPHAN_SECONDS", "20"), ("TANDEM_ENGINE_SESSIONS_MAX", "30")];
        let layers = layers(&environment, &[("sessions-max", "300")], file).unwrap();
        let config = Config::from_layers(&layers).unwrap();
        assert_eq!(config.drain, Duration::from_secs(1));
        assert_eq!(config.orphan, Duration::from_secs(20));
        assert_eq!(config.sessions_max, 300);
    }

    #[test]
    fn an_unknown_key_of_ours_names_the_nearest_and_others_are_left_alone() {
        let error = layers(&[], &[], "engine_rtp_port = \"1-2\"").unwrap_err().to_string();
        assert!(error.contains("engine_rtp_ports"), "{error}");
        let error = layers(&[], &[], "[engine]\ncoers = 1").unwrap_err().to_string();
        assert!(error.contains("\"cores\""), "{error}");
        let error = layers(&[("TANDEM_ENGINE_DRIVR", "x")], &[], "").unwrap_err().to_string();
        assert!(error.contains("TANDEM_ENGINE_DRIVER"), "{error}");
        layers(&[], &[], "http_listen = \"x\"\nengines = \"y\"").unwrap();
    }

    #[test]
    fn a_wrong_value_is_named_with_its_origin() {
        let wrong = layers(&[("TANDEM_ENGINE_RTP_PORTS", "20001-20002")], &[], "").unwrap();
        let error = Config::from_layers(&wrong).unwrap_err().to_string();
        assert!(error.contains("TANDEM_ENGINE_RTP_PORTS") && error.contains("20001-20002"), "{error}");
    }

    #[test]
    fn certificate_and_key_have_no_engine_in_their_names_and_go_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pem");
        std::fs::write(&path, "").unwrap();
        let path = path.to_str().unwrap();
        let file = format!("tls_key = \"{path}\"");
        let both = layers(&[("TANDEM_TLS_CERT", path)], &[], &file).unwrap();
        assert_eq!(Config::from_layers(&both).unwrap().tls, Some((path.into(), path.into())));
        let one = layers(&[], &[], &file).unwrap();
        let error = Config::from_layers(&one).unwrap_err().to_string();
        assert!(error.contains("tls-cert"), "{error}");
    }

    #[test]
    fn cores_are_lists_and_ranges_of_allowed_ones() {
        let allowed = [0, 1, 2, 3];
        assert_eq!(parse_cores("1", &allowed), Some(vec![1]));
        assert_eq!(parse_cores("3, 0-1", &allowed), Some(vec![3, 0, 1]));
        assert_eq!(parse_cores("4", &allowed), None);
        assert_eq!(parse_cores("x", &allowed), None);
        assert_eq!(all_but_the_first(&[5]), [5]);
        assert_eq!(all_but_the_first(&[0, 1]), [1]);
    }

    #[test]
    fn a_port_range_must_hold_a_pair() {
        assert!(parse_ports("20000-20001").is_some());
        assert!(parse_ports("20001-20003").is_some());
        for wrong in ["20001-20002", "80-90", "3-2", "20000", "65535-65535", ""] {
            assert_eq!(parse_ports(wrong), None, "{wrong}");
        }
    }
}
