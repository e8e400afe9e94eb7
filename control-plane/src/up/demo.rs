//! The demo call: a recorded caller dials the `demo` assistant over real SIP and RTP, and books a table.
//!
//! The caller is polite: it waits for the greeting, speaks when the agent is quiet, and leaves the last word to the
//! agent. Its recordings and what is expected of the agent stand in `voice-agent/demo/script.json`.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tandem_api::v1::call_service_client::CallServiceClient;
use tandem_api::v1::conversation_service_client::ConversationServiceClient;
use tandem_api::v1::{Call, Conversation, GetConversationRequest, ListCallsRequest};
use tandem_phone::{CallOptions, Phone, PhoneConfig};
use tonic::Request;

use super::report::{DemoReport, Expected};
use super::say;

/// The key that `--demo` seeds.
pub const DEMO_KEY: &str = "demo-key";

/// Longest utterance of the agent.
const UTTERANCE_MAX: Duration = Duration::from_secs(30);
/// The last message and the call's record are written a moment after the BYE.
const RECORD_WITHIN: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(50);

/// Why the demo call could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Recordings or script are missing.
    #[error("cannot read {path}: {source}", path = path.display())]
    Script {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A script that is none.
    #[error("{path} is no script: {source}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// The phone got no socket.
    #[error(transparent)]
    Phone(#[from] tandem_phone::BindError),
    /// The call was refused or not answered.
    #[error("the call to the demo assistant failed: {0}")]
    Call(#[from] tandem_phone::CallError),
    /// A recording cannot be played.
    #[error(transparent)]
    Wav(#[from] tandem_phone::wav::WavError),
    /// The agent stayed silent.
    #[error("the agent did not {0}")]
    Silence(String),
    /// The service did not tell about the call.
    #[error("cannot ask the control plane about the call: {0}")]
    Api(String),
}

/// What the recorded caller says; its fields are told in `voice-agent/demo/README.md`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Script {
    /// Whom to call.
    pub assistant: String,
    /// In order.
    pub steps: Vec<Step>,
    /// Words that the scripted agent must say in the course of the call.
    pub expect: Vec<String>,
    /// The caller's patience.
    pub wait: Wait,
}

/// One utterance of the caller.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Step {
    /// A recording beside the script.
    pub say: String,
    /// What it says.
    pub text: String,
}

/// The caller's patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Wait {
    /// The agent has finished after so much silence.
    pub agent_silence_ms: u64,
    /// The agent must have begun to answer by then.
    pub answer_timeout_ms: u64,
    /// The agent hangs up by then, after the last step.
    pub hangup_timeout_ms: u64,
}

impl Script {
    /// Reads the script of this repository.
    pub fn load() -> Result<(Self, PathBuf), DemoError> {
        let folder = folder();
        let path = folder.join("script.json");
        let text = std::fs::read(&path).map_err(|source| DemoError::Script { path: path.clone(), source })?;
        let script = serde_json::from_slice(&text).map_err(|source| DemoError::Syntax { path, source })?;
        Ok((script, folder))
    }

    /// What the report must show. A language model chooses its own words: of it only answers are expected.
    pub fn expected(&self, scripted: bool) -> Expected {
        let words = self.expect.iter().filter(|_| scripted).map(|word| word.to_lowercase());
        Expected { turns: self.steps.len(), agent_words: words.collect() }
    }
}

/// Recordings lie in the source tree: the demo is run from a checkout, which may have been moved since the build.
fn folder() -> PathBuf {
    let here = PathBuf::from("voice-agent/demo");
    if here.is_dir() { here } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("../voice-agent/demo") }
}

/// Places the call and gathers its report. `scripted`: the agent is the offline script, not a language model.
pub async fn call(
    sip: SocketAddr,
    http: SocketAddr,
    scripted: bool,
) -> Result<(DemoReport, Expected), DemoError> {
    let (script, folder) = Script::load()?;
    let ms = Duration::from_millis;
    let (quiet, answer) = (ms(script.wait.agent_silence_ms), ms(script.wait.answer_timeout_ms));
    let phone = Phone::bind(PhoneConfig::default()).await?;
    say("calling the demo assistant; this is a real conversation and takes about half a minute");
    let uri = format!("sip:{}:{DEMO_KEY}@{sip}", script.assistant);
    let call = phone.call(&uri, CallOptions::default()).await?;
    if call.wait_for_speech(answer).await.is_none() {
        call.hang_up().await;
        return Err(DemoError::Silence("greet the caller".to_owned()));
    }
    for step in &script.steps {
        call.wait_until_quiet(quiet, UTTERANCE_MAX).await;
        say(&format!("the caller says: {}", step.text));
        call.play_wav(folder.join(&step.say)).await?;
        if call.wait_for_speech(answer).await.is_none() {
            call.hang_up().await;
            return Err(DemoError::Silence(format!("answer \"{}\"", step.text)));
        }
    }
    // The agent has the last word and hangs up; a caller who waits in vain hangs up too.
    let phone_report = match tokio::time::timeout(ms(script.wait.hangup_timeout_ms), call.ended()).await {
        Ok(report) => report,
        Err(_) => call.hang_up().await,
    };
    let (record, conversation) = recorded(http, &script.assistant).await?;
    Ok((DemoReport { phone: phone_report, call: record, conversation }, script.expected(scripted)))
}

/// The newest call to this assistant, once it is over, and what was said in it.
async fn recorded(http: SocketAddr, assistant: &str) -> Result<(Call, Conversation), DemoError> {
    let api = |error: &dyn std::fmt::Display| DemoError::Api(error.to_string());
    let url = format!("http://{http}");
    let mut calls = CallServiceClient::connect(url.clone()).await.map_err(|error| api(&error))?;
    let mut conversations = ConversationServiceClient::connect(url).await.map_err(|error| api(&error))?;
    let give_up = tokio::time::Instant::now() + RECORD_WITHIN;
    let record = loop {
        let request = with_key(ListCallsRequest { page_size: 20, ..Default::default() });
        let list = calls.list_calls(request).await.map_err(|error| api(&error))?.into_inner().calls;
        let newest = list.into_iter().find(|call| call.assistant_id == assistant);
        match newest {
            Some(call) if matches!(call.state.as_str(), "ended" | "failed") => break call,
            found if tokio::time::Instant::now() >= give_up => {
                break found.ok_or_else(|| DemoError::Api("it knows no call to the assistant".to_owned()))?;
            }
            _ => tokio::time::sleep(STEP).await,
        }
    };
    let request = with_key(GetConversationRequest { call_id: record.call_id.clone() });
    let conversation =
        conversations.get_conversation(request).await.map_err(|error| api(&error))?.into_inner();
    Ok((record, conversation))
}

fn with_key<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-api-key", tonic::metadata::MetadataValue::from_static(DEMO_KEY));
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_of_this_repository_can_be_read_and_its_recordings_are_there() {
        let (script, folder) = Script::load().unwrap();
        assert!(script.steps.len() >= 3, "a name, a day, a time");
        assert!(!script.expect.is_empty());
        for step in &script.steps {
            let samples = tandem_phone::wav::read_8k(folder.join(&step.say)).unwrap();
            assert!(samples.len() > 4_000, "{} is shorter than half a second", step.say);
            assert!(!step.text.is_empty());
        }
    }
}
