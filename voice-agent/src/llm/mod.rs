//! The language model: what the caller said in, what the agent says out, word by word. One file a vendor.

pub mod openai;
pub mod scripted;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

/// Pieces of text that may wait for the pipeline; the vendor waits when it is full.
pub const OUTPUT_MAX: usize = 64;

/// A vendor of a language model.
pub trait LanguageModel: Send + Sync {
    /// Does beforehand what would make the first answer slow.
    fn prepare(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Begins a conversation.
    fn open(&self) -> Box<dyn Dialogue>;
}

/// One conversation with a language model.
pub trait Dialogue: Send {
    /// Answers the caller. The answer is cancelled by dropping the receiver.
    fn respond(&mut self, request: Request) -> mpsc::Receiver<LlmEvent>;
}

/// A request for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What was said before, oldest first; the agent's part as far as it was heard.
    pub history: Vec<Said>,
    /// What the caller says now; empty when speech was heard but no word understood.
    pub text: String,
    /// The caller went on speaking after the request before, which this one replaces.
    pub replaces: bool,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Who.
    pub role: Role,
    /// What.
    pub text: String,
}

/// Who said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The person on the phone.
    Caller,
    /// Us.
    Agent,
}

/// What a model says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LlmEvent {
    /// The next piece of text.
    Text(String),
    /// Hang up when all of it has been heard.
    HangUp,
    /// The answer is complete.
    Done,
    /// The model failed.
    Failed {
        /// For the log; without secrets.
        message: String,
    },
}
