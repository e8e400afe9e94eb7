//! What the voice agent must be told: where to listen, whom to write to, which language model, how to behave.
//!
//! [`Config::from_settings`] takes a look-up function instead of reading the environment itself, so that the
//! `tandem` binary can layer flags, environment and file in front of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

/// Everything the voice agent reads at start. `Config::default()` is the offline agent on loopback.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where engines connect (`TANDEM_TALKER_LISTEN`).
    pub listen: SocketAddr,
    /// The control plane's gRPC address, for the record of what was said (`TANDEM_CONTROL_URL`).
    pub control_url: String,
    /// Proof to the control plane that we belong to it (`TANDEM_SERVICE_TOKEN`). `None`: it accepts loopback only.
    pub service_token: Option<SecretString>,
    /// A language model to use instead of the offline script (`TANDEM_LLM_URL`, …).
    pub llm: Option<LlmConfig>,
    /// The Python process with the offline models.
    pub local_voice: LocalVoiceConfig,
    /// Conversations held at once; the next one is refused with 503 (`TANDEM_TALKER_CONVERSATIONS`).
    pub max_conversations: usize,
    /// What the agent says by itself and how long it waits.
    pub behaviour: Behaviour,
}

/// An OpenAI-compatible chat model.
#[derive(Debug, Clone)]
pub struct LlmConfig {
    /// Base URL, with or without `/v1/chat/completions` (`TANDEM_LLM_URL`).
    pub url: String,
    /// Model name sent in each request (`TANDEM_LLM_MODEL`).
    pub model: String,
    /// Bearer token (`TANDEM_LLM_KEY`).
    pub key: Option<SecretString>,
}

/// The child process that runs the offline models.
#[derive(Debug, Clone)]
pub struct LocalVoiceConfig {
    /// Interpreter of the virtual environment (`TANDEM_LOCAL_VOICE_PYTHON`, default `.venv/bin/python`).
    pub python: PathBuf,
    /// Folder with `server.py` (`TANDEM_LOCAL_VOICE_DIR`, default the source folder).
    pub dir: PathBuf,
}

/// What the agent says without being asked, and its patience.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// Spoken as soon as the call is answered.
    pub greeting: String,
    /// Spoken when a vendor fails in the middle of a turn.
    pub error_message: String,
    /// Spoken when nobody has said anything for [`Self::idle_timeout`].
    pub idle_message: String,
    /// Spoken before the agent hangs up by itself after the last idle prompt.
    pub idle_goodbye: String,
    /// Spoken when [`Self::max_session`] is over.
    pub max_session_message: String,
    /// Silence after the end of heard speech before an idle prompt.
    pub idle_timeout: Duration,
    /// Idle prompts before the agent says goodbye and hangs up.
    pub idle_prompts: u32,
    /// Longest conversation.
    pub max_session: Duration,
}

/// Conversations at once by default. A speaking caller costs the models 0.17 to 0.28 of a core (measured on a busy
/// machine), and callers speak a third of the time, so this many are one core.
pub const MAX_CONVERSATIONS_DEFAULT: usize = 16;

/// A setting that cannot be used. The value is shown only where it is no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not an address of the form `IP:PORT`.
    #[error("{name} is {value:?}, not an address like 127.0.0.1:8767")]
    Address {
        /// The setting.
        name: &'static str,
        /// What it holds.
        value: String,
    },
    /// Not a URL with http or https.
    #[error("{name} must begin with http:// or https://")]
    Url {
        /// The setting.
        name: &'static str,
    },
    /// Not a number in range.
    #[error("{name} is {value:?}, not a whole number from 1 to {max}")]
    Number {
        /// The setting.
        name: &'static str,
        /// What it holds.
        value: String,
        /// Largest accepted.
        max: usize,
    },
    /// `TANDEM_LLM_MODEL` or `TANDEM_LLM_KEY` without `TANDEM_LLM_URL`, or the URL without a model.
    #[error("{name} is set but {missing} is not")]
    Incomplete {
        /// The setting that is there.
        name: &'static str,
        /// The one it needs.
        missing: &'static str,
    },
}

/// Most conversations a configuration may ask for: above it one process is the wrong tool.
const MAX_CONVERSATIONS_LIMIT: usize = 10_000;

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8767)),
            control_url: "http://127.0.0.1:8080".into(),
            service_token: None,
            llm: None,
            local_voice: LocalVoiceConfig::default(),
            max_conversations: MAX_CONVERSATIONS_DEFAULT,
            behaviour: Behaviour::default(),
        }
    }
}

impl Default for LocalVoiceConfig {
    fn default() -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let here = PathBuf::from(".venv/bin/python");
        let beside_source = source.parent().unwrap_or(source).join(".venv/bin/python");
        let python = if here.exists() { here } else { beside_source };
        Self { python, dir: source.join("local-voice") }
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            greeting:
                "Hello, this is the Tandem restaurant. I can book a table or tell you our opening hours. \
                       How can I help you?"
                    .into(),
            error_message: "Sorry, something went wrong on my side. Could you say that again?".into(),
            idle_message: "Are you still there?".into(),
            idle_goodbye: "I cannot hear you, so I will hang up now. Goodbye.".into(),
            max_session_message: "I am sorry, we have run out of time. Please call again. Goodbye.".into(),
            idle_timeout: Duration::from_secs(30),
            idle_prompts: 2,
            max_session: Duration::from_secs(300),
        }
    }
}

impl Config {
    /// Reads the process environment.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_settings(|name| std::env::var(name).ok())
    }

    /// Reads settings by their environment names from any source; an empty value counts as unset.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn from_settings(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let get = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let mut config = Self::default();
        if let Some(value) = get("TANDEM_TALKER_LISTEN") {
            config.listen =
                value.parse().map_err(|_| ConfigError::Address { name: "TANDEM_TALKER_LISTEN", value })?;
        }
        if let Some(value) = get("TANDEM_CONTROL_URL") {
            config.control_url = http_url("TANDEM_CONTROL_URL", value)?;
        }
        config.service_token = get("TANDEM_SERVICE_TOKEN").map(SecretString::from);
        config.llm = llm(&get)?;
        if let Some(value) = get("TANDEM_LOCAL_VOICE_PYTHON") {
            config.local_voice.python = value.into();
        }
        if let Some(value) = get("TANDEM_LOCAL_VOICE_DIR") {
            config.local_voice.dir = value.into();
        }
        if let Some(value) = get("TANDEM_TALKER_CONVERSATIONS") {
            config.max_conversations = number("TANDEM_TALKER_CONVERSATIONS", value)?;
        }
        Ok(config)
    }
}

fn llm(get: &impl Fn(&str) -> Option<String>) -> Result<Option<LlmConfig>, ConfigError> {
    let model = get("TANDEM_LLM_MODEL");
    let key = get("TANDEM_LLM_KEY").map(SecretString::from);
    let Some(url) = get("TANDEM_LLM_URL") else {
        return match (model, key) {
            (Some(_), _) => {
                Err(ConfigError::Incomplete { name: "TANDEM_LLM_MODEL", missing: "TANDEM_LLM_URL" })
            }
            (_, Some(_)) => {
                Err(ConfigError::Incomplete { name: "TANDEM_LLM_KEY", missing: "TANDEM_LLM_URL" })
            }
            (None, None) => Ok(None),
        };
    };
    let url = http_url("TANDEM_LLM_URL", url)?;
    let model =
        model.ok_or(ConfigError::Incomplete { name: "TANDEM_LLM_URL", missing: "TANDEM_LLM_MODEL" })?;
    Ok(Some(LlmConfig { url, model, key }))
}

fn http_url(name: &'static str, value: String) -> Result<String, ConfigError> {
    if value.starts_with("http://") || value.starts_with("https://") {
        Ok(value)
    } else {
        Err(ConfigError::Url { name })
    }
}

fn number(name: &'static str, value: String) -> Result<usize, ConfigError> {
    match value.trim().parse() {
        Ok(number) if (1..=MAX_CONVERSATIONS_LIMIT).contains(&number) => Ok(number),
        _ => Err(ConfigError::Number { name, value, max: MAX_CONVERSATIONS_LIMIT }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_settings(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_set_is_the_offline_agent_on_loopback() {
        let config = load(&[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8767");
        assert_eq!(config.control_url, "http://127.0.0.1:8080");
        assert!(config.llm.is_none() && config.service_token.is_none());
        assert_eq!(config.behaviour.idle_timeout, Duration::from_secs(30));
    }

    #[test]
    fn a_language_model_needs_its_name() {
        let error = load(&[("TANDEM_LLM_URL", "http://127.0.0.1:1234")]).unwrap_err();
        assert_eq!(error.to_string(), "TANDEM_LLM_URL is set but TANDEM_LLM_MODEL is not");
    }

    #[test]
    fn a_key_without_a_url_is_refused_rather_than_ignored() {
        assert!(load(&[("TANDEM_LLM_KEY", "k")]).is_err());
    }

    #[test]
    fn the_key_is_not_in_the_debug_output() {
        let config = load(&[
            ("TANDEM_LLM_URL", "http://127.0.0.1:1234"),
            ("TANDEM_LLM_MODEL", "m"),
            ("TANDEM_LLM_KEY", "very-secret"),
            ("TANDEM_SERVICE_TOKEN", "also-secret"),
        ])
        .unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains("very-secret") && !shown.contains("also-secret"));
    }

    #[test]
    fn a_wrong_address_names_the_setting() {
        let error = load(&[("TANDEM_TALKER_LISTEN", "8767")]).unwrap_err();
        assert!(error.to_string().starts_with("TANDEM_TALKER_LISTEN is \"8767\""));
    }

    #[test]
    fn zero_conversations_are_refused() {
        assert!(load(&[("TANDEM_TALKER_CONVERSATIONS", "0")]).is_err());
    }
}
