//! The settings of every Tandem program, in one table, and how their three layers are laid over each other.
//!
//! ```text
//!   flag  ─┐
//!   env   ─┼─▶ Layers::text(key) ─▶ checked by Config (or by the program that owns the key)
//!   file  ─┘      a flag beats the environment, the environment beats tandem.toml
//! ```
//!
//! One tandem.toml serves all programs of a machine, so this table also knows the keys of the engine and the
//! voice agent: a key is refused only when nobody would read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::trunk::guard::SCANNER_AGENTS;

pub mod section;

/// Tables that may stand in tandem.toml, and only there; who reads them is in `config.rs`.
pub const TABLES: &[&str] = &["tenant", "assistant", "trunk", "phone", "credential", "deployment"];

/// One setting: its key in tandem.toml, its environment variable is `TANDEM_` and the key in capitals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Key in tandem.toml, and the long flag with `-` for `_`.
    pub key: &'static str,
    /// What holds when nobody says anything; empty: unset.
    pub default: &'static str,
    /// One line for `tandem check` and the documentation.
    pub meaning: &'static str,
}

impl Setting {
    /// The environment variable of this setting.
    pub fn variable(&self) -> String {
        format!("TANDEM_{}", self.key.to_ascii_uppercase())
    }
}

const fn setting(key: &'static str, default: &'static str, meaning: &'static str) -> Setting {
    Setting { key, default, meaning }
}

/// Every key that may stand in tandem.toml or in the environment.
pub const SETTINGS: &[Setting] = &[
    setting("http_listen", "127.0.0.1:8080", "REST, gRPC and the console, on one port"),
    setting("sip_listen", "udp:127.0.0.1:4573,tcp:127.0.0.1:4573", "SIP listeners"),
    setting("sip_dns", "", "DNS server for SIP domains, e.g. 127.0.0.1:53; unset: the system's"),
    setting("sip_public", "", "host or address that SIP peers are told, when it is not the listener's"),
    setting(
        "sip_scanner_agents",
        SCANNER_AGENTS,
        "parts of User-Agent whose requests are dropped in silence",
    ),
    setting("sip_failures_max", "10", "wrong keys and passwords a minute until a source meets silence"),
    setting("sip_silence_seconds", "60", "the first silence; the next is twice as long, up to an hour"),
    setting("sip_strangers_per_second", "20", "requests without any credential of all strangers together"),
    setting("tenant_calls_max", "", "live calls of one tenant; unset: no limit"),
    setting("tenant_calls_per_second", "", "new calls a second of one tenant; unset: no limit"),
    setting("sip_realm", "tandem", "realm of digest challenges to phones"),
    setting(
        "sip_digest",
        "md5",
        "hashes of these challenges, the preferred one first: md5, or sha-256, or both; many phones and tools give up when they \
         see SHA-256, even beside MD5",
    ),
    setting("public_url", "", "base URL that providers call back"),
    setting(
        "http_trusted_proxies",
        "",
        "networks of proxies whose X-Forwarded-For is believed; unset: nobody's",
    ),
    setting("database_url", "", "sqlite:FILE; unset: tandem.db in the state folder"),
    setting(
        "redis_url",
        "",
        "contexts of calls: redis://, rediss://, redis-cluster://HOST,HOST, redis-sentinel://HOST,HOST/NAME; unset: in the process",
    ),
    setting("redis_ca", "", "PEM file that a rediss:// server must be signed by; unset: the public roots"),
    setting("engines", "http://127.0.0.1:7070", "the media engines' gRPC addresses"),
    setting("state_dir", "./.tandem", "embedded database, recordings, keys"),
    setting("master_key", "", "encrypts the vault"),
    setting("service_token", "", "shared by our own processes; unset: loopback peers only"),
    setting(
        "talker_url",
        "link://127.0.0.1:8767",
        "where the built-in voice agent listens; ws://HOST:PORT/v1/talk for a WebSocket a call",
    ),
    setting("calls_max", "5000", "live calls; more are refused with 503"),
    setting("call_seconds_max", "14400", "a call that lasts longer is ended"),
    setting("ring_seconds_max", "10", "an agent that is not there after so long: 480"),
    setting("demo", "false", "seed the demo key and assistants; only when every listener is on loopback"),
    setting("log", "info", "log filter, e.g. info,control_plane=debug"),
    setting("api_key", "", "the key that `tandem call` and its sisters use"),
    // The engine's.
    setting("engine_grpc_listen", "127.0.0.1:7070", "session commands"),
    setting("engine_ws_listen", "127.0.0.1:8090", "provider media WebSockets"),
    setting("engine_ws_public", "", "what providers are told"),
    setting("engine_audiosocket_listen", "127.0.0.1:9093", "Asterisk AudioSocket"),
    setting("engine_audiosocket_public", "", "what dialplans are told"),
    setting("engine_rtp_addr", "127.0.0.1", "address that RTP ports are bound to"),
    setting("engine_rtp_public", "", "advertised RTP address"),
    setting("engine_rtp_ports", "20000-29999", "the node's public UDP range"),
    setting("engine_cores", "", "cores the shards are pinned to"),
    setting("engine_metrics_listen", "127.0.0.1:9101", "Prometheus, /healthz, /readyz"),
    setting("engine_driver", "", "io_uring or epoll"),
    setting("engine_media_dir", "", "folder of the file agent's recordings"),
    setting(
        "engine_agent_ca",
        "",
        "PEM file that agents behind wss:// may be signed by, beside the public roots",
    ),
    setting("engine_drain_seconds", "10", "how long a stopping engine lets calls go on"),
    setting("engine_orphan_seconds", "600", "how long calls go on while no control plane listens"),
    setting("engine_sessions_max", "", "sessions an engine carries at most"),
    setting("tls_cert", "", "PEM file: certificate of tls: and wss: listeners, then its intermediates"),
    setting("tls_key", "", "PEM file: its key"),
    // The voice agent's.
    setting("talker_listen", "127.0.0.1:8767", "where the voice agent waits for engines"),
    setting("control_url", "http://127.0.0.1:8080", "where the voice agent reports what was said"),
    setting("talker_conversations", "", "conversations held at once; more are refused"),
    setting("local_voice_python", "", "interpreter of the offline models; unset: .venv/bin/python"),
    setting("local_voice_dir", "", "folder of the offline models' server"),
    setting("llm_url", "", "an OpenAI-compatible language model"),
    setting("llm_model", "", "its model"),
    setting("llm_key", "", "its key"),
];

/// The setting with this key.
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// Why the settings could not be read. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// `--config FILE` that cannot be opened.
    #[error("cannot read {path}: {source}; name an existing file with --config, or leave the flag out")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{path} is not valid TOML: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected.
        message: String,
    },
    /// A key that no program reads.
    #[error("{path}: unknown key \"{key}\"; did you mean \"{nearest}\"?")]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// As written.
        key: String,
        /// The known key with the smallest edit distance.
        nearest: &'static str,
    },
    /// A table or a date where a plain value belongs.
    #[error("{path}: \"{key}\" must be a text, a number, true/false or a list of texts")]
    WrongType {
        /// The file.
        path: PathBuf,
        /// Its key.
        key: String,
    },
}

/// The three layers, before anything is checked.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    flags: BTreeMap<&'static str, String>,
    environment: BTreeMap<String, String>,
    file: BTreeMap<String, String>,
    tables: toml::Table,
    path: Option<PathBuf>,
}

impl Layers {
    /// Reads the environment and, if there is one, the file. Without `--config` a `tandem.toml` in the
    /// working folder is read when it exists.
    pub fn read(config: Option<&Path>) -> Result<Self, SettingsError> {
        let mut layers = Self::default();
        for (name, value) in std::env::vars_os() {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
            let Some(key) = name.strip_prefix("TANDEM_") else { continue };
            // An empty variable means "not set", as compose files and unit files write it.
            if !value.is_empty() {
                layers.environment.insert(key.to_ascii_lowercase(), value.to_owned());
            }
        }
        let path = match config {
            Some(path) => Some(path.to_owned()),
            None => Some(PathBuf::from("tandem.toml")).filter(|path| path.exists()),
        };
        if let Some(path) = path {
            let text = std::fs::read_to_string(&path)
                .map_err(|source| SettingsError::Unreadable { path: path.clone(), source })?;
            (layers.file, layers.tables) = parse_file(&path, &text)?;
            layers.path = Some(path);
        }
        Ok(layers)
    }

    /// Lays a flag over the rest; `None` changes nothing.
    pub fn flag(&mut self, key: &'static str, value: Option<&str>) {
        debug_assert!(find(key).is_some(), "flag {key} is in the table");
        if let Some(value) = value {
            self.flags.insert(key, value.to_owned());
        }
    }

    /// The value that holds for this key, the default included; `None` when unset.
    pub fn text(&self, key: &'static str) -> Option<&str> {
        let given = self.flags.get(key).or_else(|| self.environment.get(key)).or_else(|| self.file.get(key));
        match given {
            Some(value) => Some(value.as_str()),
            None => find(key).map(|setting| setting.default).filter(|default| !default.is_empty()),
        }
    }

    /// Has nobody given this key, so that its default holds?
    pub fn is_default(&self, key: &'static str) -> bool {
        !self.flags.contains_key(key) && !self.environment.contains_key(key) && !self.file.contains_key(key)
    }

    /// The same by the name of the environment variable, for parts that read their own settings.
    pub fn variable(&self, name: &str) -> Option<String> {
        let key = name.strip_prefix("TANDEM_")?.to_ascii_lowercase();
        self.text(find(&key)?.key).map(str::to_owned)
    }

    /// Where the value of this key comes from, for messages.
    pub fn origin(&self, key: &'static str) -> String {
        if self.flags.contains_key(key) {
            return format!("--{}", key.replace('_', "-"));
        }
        if self.environment.contains_key(key) {
            return format!("TANDEM_{}", key.to_ascii_uppercase());
        }
        match &self.path {
            Some(path) if self.file.contains_key(key) => format!("{key} in {}", path.display()),
            _ => format!("the default of {key}"),
        }
    }

    /// Variables that begin with TANDEM_ and that no program reads, each with the nearest known one.
    pub fn unknown_variables(&self) -> Vec<(String, String)> {
        let unknown = self.environment.keys().filter(|key| find(key).is_none());
        unknown
            .map(|key| {
                let nearest = format!("TANDEM_{}", nearest(key).to_ascii_uppercase());
                (format!("TANDEM_{}", key.to_ascii_uppercase()), nearest)
            })
            .collect()
    }

    /// The tables of the file, as they stand there; keys are those of [`TABLES`].
    pub fn tables(&self) -> &toml::Table {
        &self.tables
    }

    /// Lays the tables of a text over what there is, as if it stood in this file: for tests.
    pub fn with_file(mut self, path: &Path, text: &str) -> Result<Self, SettingsError> {
        (self.file, self.tables) = parse_file(path, text)?;
        self.path = Some(path.to_owned());
        Ok(self)
    }

    /// The file that was read.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

/// Plain values, and tables.
type File = (BTreeMap<String, String>, toml::Table);

fn parse_file(path: &Path, text: &str) -> Result<File, SettingsError> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| SettingsError::Syntax {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    let mut values = BTreeMap::new();
    let mut tables = toml::Table::new();
    for (key, value) in table {
        if TABLES.contains(&key.as_str()) {
            tables.insert(key, value);
            continue;
        }
        if find(&key).is_none() {
            let nearest = nearest(&key);
            return Err(SettingsError::UnknownKey { path: path.to_owned(), key, nearest });
        }
        let Some(text) = plain_text(&value) else {
            return Err(SettingsError::WrongType { path: path.to_owned(), key });
        };
        values.insert(key, text);
    }
    Ok((values, tables))
}

/// A TOML value as the text that a flag or a variable would have; a list becomes comma-separated.
fn plain_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
            Some(items?.join(","))
        }
        toml::Value::Table(_) | toml::Value::Datetime(_) => None,
    }
}

/// The known key nearest to what was written, by edit distance.
pub fn nearest(key: &str) -> &'static str {
    let key = key.to_ascii_lowercase().replace('-', "_");
    let key = key.strip_prefix("tandem_").unwrap_or(&key);
    let known = SETTINGS.iter().map(|setting| setting.key).chain(TABLES.iter().copied());
    nearest_of(key, known).unwrap_or("http_listen")
}

/// The nearest of these words, by edit distance; of equally near ones the first.
pub fn nearest_of<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.min_by_key(|known| distance(word, known))
}

/// Levenshtein's distance; keys are short, so the plain table will do.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<BTreeMap<String, String>, SettingsError> {
        parse_file(Path::new("tandem.toml"), text).map(|(values, _)| values)
    }

    #[test]
    fn unknown_key_is_refused_with_the_nearest_known_one() {
        let error = file("htp_listen = '127.0.0.1:1'").unwrap_err();
        assert_eq!(
            error.to_string(),
            "tandem.toml: unknown key \"htp_listen\"; did you mean \"http_listen\"?"
        );
    }

    #[test]
    fn environment_style_name_in_the_file_points_to_the_key() {
        assert_eq!(nearest("TANDEM_SIP_LISTEN"), "sip_listen");
        assert_eq!(nearest("engine-cores"), "engine_cores");
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let mut layers = Layers::default();
        assert_eq!(layers.text("http_listen"), Some("127.0.0.1:8080"));
        layers.file.insert("http_listen".into(), "file".into());
        assert_eq!(layers.text("http_listen"), Some("file"));
        layers.environment.insert("http_listen".into(), "env".into());
        assert_eq!(layers.text("http_listen"), Some("env"));
        layers.flag("http_listen", Some("flag"));
        assert_eq!(layers.text("http_listen"), Some("flag"));
        assert_eq!(layers.origin("http_listen"), "--http-listen");
    }

    #[test]
    fn list_in_the_file_reads_like_a_comma_separated_variable() {
        let values = file("engines = ['http://a:1', 'http://b:2']").unwrap();
        assert_eq!(values["engines"], "http://a:1,http://b:2");
    }

    #[test]
    fn table_is_refused_and_named() {
        let error = file("[engines]\na = 1").unwrap_err();
        assert!(error.to_string().contains("\"engines\" must be"), "{error}");
    }

    #[test]
    fn misspelt_variable_is_reported_not_obeyed() {
        let mut layers = Layers::default();
        layers.environment.insert("http_lisen".into(), "x".into());
        assert_eq!(
            layers.unknown_variables(),
            [("TANDEM_HTTP_LISEN".to_owned(), "TANDEM_HTTP_LISTEN".to_owned())]
        );
    }
}
