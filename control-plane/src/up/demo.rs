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

/// From the answer to the greeting's first sound.
const GREETING_WITHIN: Duration = Duration::from_secs(10);
/// From the end of what the caller says to the agent's first sound; debug builds on a busy machine are slow.
const RESPONSE_WITHIN: Duration = Duration::from_secs(15);
/// The agent has finished when it has been quiet for so long: longer than its pauses between sentences.
const QUIET: Duration = Duration::from_millis(800);
/// Longest utterance of the agent.
const UTTERANCE_MAX: Duration = Duration::from_secs(30);
/// The agent hangs up after its goodbye; after so long the caller does.
const HANG_UP_WITHIN: Duration = Duration::from_secs(10);
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
    Silence(&'static str),
    /// The service did not tell about the call.
    #[error("cannot ask the control plane about the call: {0}")]
    Api(String),
}

/// What the recorded caller says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Script {
    /// In order.
    pub turns: Vec<Turn>,
    /// Words that the agent must say in the course of the call.
    pub expect: Vec<String>,
}

/// One utterance of the caller.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Turn {
    /// A recording beside the script.
    pub wav: String,
    /// What it says.
    pub text: String,
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

    /// What the report must show.
    pub fn expected(&self) -> Expected {
        let agent_words = self.expect.iter().map(|word| word.to_lowercase()).collect();
        Expected { turns: self.turns.len(), agent_words }
    }
}

/// Recordings lie in the source tree: the demo is run from a checkout, which may have been moved since the build.
fn folder() -> PathBuf {
    let here = PathBuf::from("voice-agent/demo");
    if here.is_dir() { here } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("../voice-agent/demo") }
}

/// Places the call and gathers its report.
pub async fn call(sip: SocketAddr, http: SocketAddr) -> Result<(DemoReport, Expected), DemoError> {
    let (script, folder) = Script::load()?;
    let phone = Phone::bind(PhoneConfig::default()).await?;
    say("calling the demo assistant");
    let call = phone.call(&format!("sip:demo:{DEMO_KEY}@{sip}"), CallOptions::default()).await?;
    if call.wait_for_speech(GREETING_WITHIN).await.is_none() {
        call.hang_up().await;
        return Err(DemoError::Silence("greet the caller"));
    }
    for turn in &script.turns {
        call.wait_until_quiet(QUIET, UTTERANCE_MAX).await;
        say(&format!("the caller says: {}", turn.text));
        call.play_wav(folder.join(&turn.wav)).await?;
        if call.wait_for_speech(RESPONSE_WITHIN).await.is_none() {
            call.hang_up().await;
            return Err(DemoError::Silence("answer the caller"));
        }
    }
    call.wait_until_quiet(QUIET, UTTERANCE_MAX).await;
    let phone_report = match tokio::time::timeout(HANG_UP_WITHIN, call.ended()).await {
        Ok(report) => report,
        Err(_) => call.hang_up().await,
    };
    let (record, conversation) = recorded(http).await?;
    Ok((DemoReport { phone: phone_report, call: record, conversation }, script.expected()))
}

/// The newest call to the demo assistant, once it is over, and what was said in it.
async fn recorded(http: SocketAddr) -> Result<(Call, Conversation), DemoError> {
    let api = |error: &dyn std::fmt::Display| DemoError::Api(error.to_string());
    let url = format!("http://{http}");
    let mut calls = CallServiceClient::connect(url.clone()).await.map_err(|error| api(&error))?;
    let mut conversations = ConversationServiceClient::connect(url).await.map_err(|error| api(&error))?;
    let give_up = tokio::time::Instant::now() + RECORD_WITHIN;
    let record = loop {
        let request = with_key(ListCallsRequest { page_size: 20, ..Default::default() });
        let list = calls.list_calls(request).await.map_err(|error| api(&error))?.into_inner().calls;
        let newest = list.into_iter().find(|call| call.assistant_id == "demo");
        match newest {
            Some(call) if matches!(call.state.as_str(), "ended" | "failed") => break call,
            found if tokio::time::Instant::now() >= give_up => {
                break found.ok_or_else(|| DemoError::Api("it knows no call to demo".to_owned()))?;
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
