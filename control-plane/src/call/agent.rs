//! Who an assistant's caller talks to, as it is stored and as the engine is told.

use std::collections::{BTreeMap, HashMap};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tandem_api::engine::v1 as engine;

/// Fields in an agent's start frame: what an engine carries at most.
pub const CUSTOM_MAX: usize = 32;

/// How the address of the voice agent begins when engines reach it by a link.
pub const LINK_SCHEME: &str = "link://";

/// The agent of an assistant.
#[derive(Debug, Clone, PartialEq)]
pub enum Agent {
    /// Nobody, and no media: the call is answered by signaling alone, with an inactive stream and no engine. For measuring
    /// call set-up, and for checking a trunk.
    None,
    /// What the caller says comes back.
    Echo,
    /// A steady tone; 0 means 440 Hz.
    Tone {
        /// Hertz.
        frequency_hz: f64,
    },
    /// A recording in the engine's media folder.
    File {
        /// Below the engine's media folder.
        path: String,
        /// From the start again at the end.
        repeat: bool,
    },
    /// The built-in voice agent.
    Talker,
    /// Somebody's own agent over WebSocket.
    WebSocket {
        /// `ws://…`
        url: String,
        /// What it speaks.
        dialect: Dialect,
        /// Headers of the upgrade request; may hold secrets.
        headers: HashMap<String, String>,
        /// Given to the agent in its start frame.
        custom: HashMap<String, String>,
        /// What the engine makes of the caller's speech.
        speech: Speech,
    },
    /// An AudioSocket server, spoken to as Asterisk does.
    AudioSocket {
        /// `host:port`
        address: String,
        /// Of the audio; 0 means 8 000.
        sample_rate_hz: u32,
        /// What the engine makes of the caller's speech.
        speech: Speech,
    },
    /// Somebody's own agent that serves `tandem.agent.v1.Agent`.
    Grpc {
        /// `grpc://host:port`, or `grpcs://`
        url: String,
        /// Metadata of the call; may hold secrets.
        headers: HashMap<String, String>,
        /// Given to the agent in its start message.
        custom: HashMap<String, String>,
        /// What the engine makes of the caller's speech.
        speech: Speech,
    },
}

/// What the engine makes of the caller's speech before the agent hears of it; nothing by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Speech {
    /// What happens to the agent's sound that waits.
    pub barge_in: BargeIn,
    /// The agent gets no frames of silence.
    pub suppress_silence: bool,
    /// The call ends when nobody has spoken for so long; 0 for never.
    pub idle_seconds: u32,
    /// The caller gets comfort noise while the agent says nothing.
    pub comfort_noise: bool,
}

/// What happens to the agent's sound that waits when the caller begins to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BargeIn {
    /// The agent decides.
    #[default]
    Off,
    /// It is held until the agent decides.
    Pause,
    /// It is dropped.
    Clear,
}

impl Speech {
    fn to_engine(self) -> Option<engine::SpeechOptions> {
        let barge_in = match self.barge_in {
            BargeIn::Off => engine::BargeIn::Off,
            BargeIn::Pause => engine::BargeIn::Pause,
            BargeIn::Clear => engine::BargeIn::Clear,
        };
        (self != Self::default()).then(|| engine::SpeechOptions {
            barge_in: barge_in.into(),
            suppress_silence: self.suppress_silence,
            idle_ms: self.idle_seconds.saturating_mul(1_000),
            comfort_noise: self.comfort_noise,
        })
    }
}

/// What a WebSocket agent speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// Tandem's own: binary L16 and JSON.
    Pcm,
    /// Twilio Media Streams, spoken to the bot.
    Twilio,
}

/// A stored agent that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A kind this version does not know.
    #[error("agent kind \"{0}\" is unknown")]
    Kind(String),
    /// Options that do not fit the kind. Headers and custom values may be secrets, and serde's own words repeat what it
    /// found: this says only where it is.
    #[error("options of agent kind \"{kind}\": {class} at line {line}, column {column}, field {field}")]
    Options {
        /// The kind.
        kind: &'static str,
        /// What sort of mistake.
        class: &'static str,
        /// From 1.
        line: usize,
        /// From 1; 0 when the line holds nothing.
        column: usize,
        /// The path of names to it; `.` is the whole.
        field: String,
    },
}

/// Reads options of one kind.
fn options<T: DeserializeOwned>(kind: &'static str, text: &str) -> Result<T, AgentError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let read = serde_path_to_error::deserialize(&mut json);
    let (field, error) = match read {
        Ok(options) => match json.end() {
            Ok(()) => return Ok(options),
            Err(error) => (".".to_owned(), error),
        },
        Err(error) => (error.path().to_string(), error.into_inner()),
    };
    let class = match error.classify() {
        serde_json::error::Category::Data => {
            "a value that does not fit, or a field that is unknown or missing"
        }
        serde_json::error::Category::Io
        | serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof => "no JSON",
    };
    Err(AgentError::Options { kind, class, line: error.line(), column: error.column(), field })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToneOptions {
    #[serde(default)]
    frequency_hz: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileOptions {
    path: String,
    #[serde(default)]
    repeat: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WebSocketOptions {
    url: String,
    dialect: Dialect,
    #[serde(default)]
    headers: HashMap<String, String>,
    #[serde(default)]
    custom: HashMap<String, String>,
    #[serde(default)]
    speech: Speech,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrpcOptions {
    url: String,
    #[serde(default)]
    headers: HashMap<String, String>,
    #[serde(default)]
    custom: HashMap<String, String>,
    #[serde(default)]
    speech: Speech,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AudioSocketOptions {
    address: String,
    #[serde(default)]
    sample_rate_hz: u32,
    #[serde(default)]
    speech: Speech,
}

impl Agent {
    /// Reads the columns `agent_kind` and `agent_options`.
    pub fn from_stored(kind: &str, stored: &str) -> Result<Self, AgentError> {
        match kind {
            "none" => Ok(Self::None),
            "echo" => Ok(Self::Echo),
            "talker" => Ok(Self::Talker),
            "tone" => {
                let options: ToneOptions = options("tone", stored)?;
                Ok(Self::Tone { frequency_hz: options.frequency_hz })
            }
            "file" => {
                let options: FileOptions = options("file", stored)?;
                Ok(Self::File { path: options.path, repeat: options.repeat })
            }
            "websocket" => {
                let options: WebSocketOptions = options("websocket", stored)?;
                Ok(Self::WebSocket {
                    url: options.url,
                    dialect: options.dialect,
                    headers: options.headers,
                    custom: options.custom,
                    speech: options.speech,
                })
            }
            "audiosocket" => {
                let options: AudioSocketOptions = options("audiosocket", stored)?;
                Ok(Self::AudioSocket {
                    address: options.address,
                    sample_rate_hz: options.sample_rate_hz,
                    speech: options.speech,
                })
            }
            "grpc" => {
                let GrpcOptions { url, headers, custom, speech } = options("grpc", stored)?;
                Ok(Self::Grpc { url, headers, custom, speech })
            }
            _ => Err(AgentError::Kind(kind.to_owned())),
        }
    }

    /// The word for logs and decision traces.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Echo => "echo",
            Self::Tone { .. } => "tone",
            Self::File { .. } => "file",
            Self::Talker => "talker",
            Self::WebSocket { .. } => "websocket",
            Self::AudioSocket { .. } => "audiosocket",
            Self::Grpc { .. } => "grpc",
        }
    }

    /// Whether a call to it has a media session.
    pub fn has_media(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// As the engine is told. The built-in voice agent is at `talker_url`: `link://host:port` for the engines' links, which
    /// show it `talker_token`, or `ws://…` for a WebSocket a call. `custom` is what this call adds to the start frame: the
    /// assistant's own fields win, and no more than [`CUSTOM_MAX`] are told in all.
    pub fn to_engine(
        &self,
        talker_url: &str,
        talker_token: Option<&SecretString>,
        connect_timeout_ms: u32,
        custom: &BTreeMap<String, String>,
    ) -> engine::Agent {
        use engine::agent::Target;
        let target = match self {
            Self::None => return engine::Agent::default(),
            Self::Echo => Target::Echo(engine::EchoAgent {}),
            Self::Tone { frequency_hz } => Target::Tone(engine::ToneAgent { frequency_hz: *frequency_hz }),
            Self::File { path, repeat } => {
                Target::File(engine::FileAgent { path: path.clone(), r#loop: *repeat })
            }
            Self::Talker => match talker_url.strip_prefix(LINK_SCHEME) {
                Some(address) => Target::Link(engine::LinkAgent {
                    address: address.trim_end_matches('/').to_owned(),
                    token: talker_token.map(|token| token.expose_secret().to_owned()).unwrap_or_default(),
                    custom: told(&HashMap::new(), custom),
                    connect_timeout_ms,
                }),
                None => Target::Websocket(engine::WebSocketAgent {
                    url: talker_url.to_owned(),
                    dialect: engine::Dialect::Pcm.into(),
                    connect_timeout_ms,
                    custom: told(&HashMap::new(), custom),
                    ..Default::default()
                }),
            },
            Self::AudioSocket { address, sample_rate_hz, .. } => {
                Target::Audiosocket(engine::AudioSocketAgent {
                    address: address.clone(),
                    uuid: String::new(),
                    sample_rate_hz: *sample_rate_hz,
                    connect_timeout_ms,
                })
            }
            Self::Grpc { url, headers, custom: own, .. } => Target::Grpc(engine::GrpcAgent {
                url: url.clone(),
                headers: headers.clone(),
                custom: told(own, custom),
                connect_timeout_ms,
            }),
            Self::WebSocket { url, dialect, headers, custom: own, .. } => {
                let dialect = match dialect {
                    Dialect::Pcm => engine::Dialect::Pcm,
                    Dialect::Twilio => engine::Dialect::Twilio,
                };
                Target::Websocket(engine::WebSocketAgent {
                    url: url.clone(),
                    dialect: dialect.into(),
                    headers: headers.clone(),
                    custom: told(own, custom),
                    connect_timeout_ms,
                })
            }
        };
        let speech = match self {
            Self::WebSocket { speech, .. } | Self::AudioSocket { speech, .. } | Self::Grpc { speech, .. } => {
                speech.to_engine()
            }
            _ => None,
        };
        engine::Agent { target: Some(target), speech }
    }
}

/// The assistant's fields and those of the call, as many as an engine carries.
fn told(own: &HashMap<String, String>, custom: &BTreeMap<String, String>) -> HashMap<String, String> {
    let mut all = own.clone();
    for (name, value) in custom {
        if all.len() >= CUSTOM_MAX {
            break;
        }
        all.entry(name.clone()).or_insert_with(|| value.clone());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_voice_agent_is_a_pcm_agent_at_its_url() {
        let custom = [("name".to_owned(), "Anna".to_owned())].into();
        let agent = Agent::Talker.to_engine("ws://127.0.0.1:8767/v1/talk", None, 5_000, &custom);
        let Some(engine::agent::Target::Websocket(agent)) = agent.target else { panic!("websocket") };
        assert_eq!(agent.url, "ws://127.0.0.1:8767/v1/talk");
        assert_eq!(agent.dialect(), engine::Dialect::Pcm);
        assert_eq!(agent.connect_timeout_ms, 5_000);
        assert_eq!(agent.custom["name"], "Anna");
    }

    #[test]
    fn built_in_voice_agent_is_reached_by_a_link_that_shows_the_token() {
        let token = SecretString::from("swordfish");
        let agent = Agent::Talker.to_engine("link://127.0.0.1:8767", Some(&token), 5_000, &BTreeMap::new());
        let Some(engine::agent::Target::Link(agent)) = agent.target else { panic!("link") };
        assert_eq!((agent.address.as_str(), agent.token.as_str()), ("127.0.0.1:8767", "swordfish"));
    }

    #[test]
    fn what_is_wanted_of_speech_is_told_to_the_engine_and_nothing_by_default() {
        let told = |options: &str| {
            let agent = Agent::from_stored("grpc", options).unwrap();
            agent.to_engine("", None, 5_000, &BTreeMap::new())
        };
        let plain = told(r#"{"url":"grpc://a:1"}"#);
        assert!(matches!(plain.target, Some(engine::agent::Target::Grpc(_))) && plain.speech.is_none());
        let speech =
            told(r#"{"url":"grpc://a:1","speech":{"barge_in":"clear","idle_seconds":30}}"#).speech.unwrap();
        assert_eq!((speech.barge_in(), speech.idle_ms), (engine::BargeIn::Clear, 30_000));
    }

    #[test]
    fn options_that_do_not_fit_are_shown_by_place_and_never_by_value() {
        let wrong = [
            (r#"{"url":"ws://a","dialect":"secret"}"#, "dialect"),
            (
                r#"{"url":"ws://a","dialect":"pcm","headers":{"authorization":{"a":"secret"}}}"#,
                "headers.authorization",
            ),
            (r#"{"url":"ws://a","dialect":"pcm","headers":"secret"}"#, "headers"),
            (r#"{"url":"ws://a","dialect":"pcm","custom":{"n":31337}}"#, "custom.n"),
            (r#"{"url":"ws://a","dialect":"pcm"} secret"#, "."),
            (r#"{"url":"secret"#, "url"),
        ];
        for (options, field) in wrong {
            let error = Agent::from_stored("websocket", options).unwrap_err();
            for told in [error.to_string(), format!("{error:?}")] {
                assert!(!told.contains("secret") && !told.contains("31337"), "{told}");
                assert!(told.contains(field), "{told}");
            }
            assert!(std::error::Error::source(&error).is_none());
        }
    }

    #[test]
    fn unknown_kind_and_unknown_option_are_refused_by_name() {
        let error = Agent::from_stored("parrot", "{}").unwrap_err();
        assert_eq!(error.to_string(), "agent kind \"parrot\" is unknown");
        let error = Agent::from_stored("tone", r#"{"pitch":1}"#).unwrap_err().to_string();
        assert!(error.contains("pitch"), "{error}");
        assert!(Agent::from_stored("websocket", r#"{"url":"ws://a","dialect":"morse"}"#).is_err());
    }
}
