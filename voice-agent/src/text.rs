//! Conversations in writing: `POST /v1/chat`, one message in, the answer out. Nobody speaks, so only the language model is asked.
//!
//! ```text
//!   {"conversationId":"…","history":[{"role":"caller","text":"…"}],"text":"…"} ─▶ Dialogue ─▶ {"text":"…"}
//! ```
//!
//! A conversation's [`Dialogue`] is kept while it is in use; who comes back after [`IDLE_MAX`] begins anew, with the history that the
//! request brings.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::llm::{Dialogue, LanguageModel, LlmEvent, Request, Role, Said};

/// Conversations that are kept; the one that was silent for longest goes first.
pub const CHATS_MAX: usize = 1_000;
/// How long a conversation is kept between two messages.
pub const IDLE_MAX: Duration = Duration::from_secs(3_600);
/// An answer must be complete by then.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Octets of a request: a message of 4 096 characters and its history.
pub const REQUEST_MAX: usize = 256 * 1_024;
/// Characters of an answer; the rest is cut off.
const ANSWER_MAX: usize = 4_096;

/// One message in.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ask {
    /// Which conversation.
    pub conversation_id: String,
    /// What was written before, oldest first.
    #[serde(default)]
    pub history: Vec<Written>,
    /// What is written now.
    pub text: String,
}

/// One message of before.
#[derive(Debug, Deserialize)]
pub struct Written {
    /// `caller` or `agent`.
    pub role: String,
    /// What.
    pub text: String,
}

/// The answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// What the agent writes.
    pub text: String,
}

/// Why there is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// The request.
    #[error("the request is not {{\"conversationId\", \"history\", \"text\"}}: {0}")]
    Malformed(String),
    /// The message before is still being answered.
    #[error("the conversation's message before is being answered")]
    Busy,
    /// The model.
    #[error("the language model has failed: {0}")]
    Failed(String),
    /// It took too long.
    #[error("no answer in {} s", ANSWER_WITHIN.as_secs())]
    Late,
}

impl ChatError {
    /// Of HTTP.
    pub const fn status(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "400 Bad Request",
            Self::Busy => "409 Conflict",
            Self::Failed(_) => "502 Bad Gateway",
            Self::Late => "504 Gateway Timeout",
        }
    }
}

/// The conversations that are kept.
#[derive(Default)]
pub struct Chats {
    kept: Mutex<HashMap<String, Kept>>,
}

struct Kept {
    /// `None`: it is answering.
    dialogue: Option<Box<dyn Dialogue>>,
    used: Instant,
}

impl Chats {
    /// Answers one request.
    ///
    /// # Errors
    /// [`ChatError`]
    pub async fn answer(&self, llm: &dyn LanguageModel, body: &[u8]) -> Result<Answer, ChatError> {
        let ask: Ask =
            serde_json::from_slice(body).map_err(|error| ChatError::Malformed(error.to_string()))?;
        let mut dialogue = self.take(&ask.conversation_id, llm)?;
        let history = ask.history.into_iter().map(|written| Said {
            role: if written.role == "agent" { Role::Agent } else { Role::Caller },
            text: written.text,
        });
        let request = Request { history: history.collect(), text: ask.text, replaces: false };
        let mut events = dialogue.respond(request);
        let mut text = String::new();
        let collect = async {
            while let Some(event) = events.recv().await {
                match event {
                    LlmEvent::Text(piece) => text.push_str(&piece),
                    LlmEvent::HangUp => {}
                    LlmEvent::Done => return Ok(()),
                    LlmEvent::Failed { message } => return Err(ChatError::Failed(message)),
                }
            }
            Ok(())
        };
        let outcome = tokio::time::timeout(ANSWER_WITHIN, collect).await.unwrap_or(Err(ChatError::Late));
        drop(events);
        self.give_back(&ask.conversation_id, dialogue);
        outcome?;
        Ok(Answer { text: text.trim().chars().take(ANSWER_MAX).collect() })
    }

    fn take(&self, id: &str, llm: &dyn LanguageModel) -> Result<Box<dyn Dialogue>, ChatError> {
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chat) = kept.get_mut(id).filter(|chat| now - chat.used < IDLE_MAX) {
            chat.used = now;
            return chat.dialogue.take().ok_or(ChatError::Busy);
        }
        if kept.len() >= CHATS_MAX {
            let oldest = kept.iter().min_by_key(|(_, chat)| chat.used).map(|(id, _)| id.clone());
            oldest.map(|oldest| kept.remove(&oldest));
        }
        kept.insert(id.to_owned(), Kept { dialogue: None, used: now });
        Ok(llm.open())
    }

    fn give_back(&self, id: &str, dialogue: Box<dyn Dialogue>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chat) = kept.get_mut(id) {
            chat.dialogue = Some(dialogue);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    /// Counts what one dialogue is asked, and says the last words of the history back.
    struct Counting;

    struct Count(u32);

    impl LanguageModel for Counting {
        fn open(&self) -> Box<dyn Dialogue> {
            Box::new(Count(0))
        }
    }

    impl Dialogue for Count {
        fn respond(&mut self, request: Request) -> mpsc::Receiver<LlmEvent> {
            self.0 += 1;
            let (events, receiver) = mpsc::channel(4);
            let last = request.history.last().map(|said| said.text.clone()).unwrap_or_default();
            let event = match request.text.as_str() {
                "fail" => LlmEvent::Failed { message: "no".into() },
                text => LlmEvent::Text(format!("{} {text} after {last}", self.0)),
            };
            events.try_send(event).unwrap();
            let _ = events.try_send(LlmEvent::Done);
            receiver
        }
    }

    async fn ask(chats: &Chats, body: &str) -> Result<String, ChatError> {
        chats.answer(&Counting, body.as_bytes()).await.map(|answer| answer.text)
    }

    #[tokio::test]
    async fn conversation_goes_on_in_its_own_dialogue() {
        let chats = Chats::default();
        let one = r#"{"conversationId":"a","history":[{"role":"agent","text":"Hello."}],"text":"Hi"}"#;
        assert_eq!(ask(&chats, one).await.unwrap(), "1 Hi after Hello.");
        assert_eq!(ask(&chats, one).await.unwrap(), "2 Hi after Hello.");
        let other = r#"{"conversationId":"b","text":"Hi"}"#;
        assert_eq!(ask(&chats, other).await.unwrap(), "1 Hi after");
    }

    #[tokio::test]
    async fn failure_of_the_model_is_one_answers_and_the_conversation_goes_on() {
        let chats = Chats::default();
        let failed = ask(&chats, r#"{"conversationId":"a","text":"fail"}"#).await;
        assert_eq!(failed, Err(ChatError::Failed("no".into())));
        assert_eq!(ask(&chats, r#"{"conversationId":"a","text":"Hi"}"#).await.unwrap(), "2 Hi after");
        assert!(matches!(ask(&chats, "{}").await, Err(ChatError::Malformed(_))));
    }

    #[tokio::test]
    async fn kept_conversations_are_bounded() {
        let chats = Chats::default();
        for n in 0..=CHATS_MAX {
            ask(&chats, &format!(r#"{{"conversationId":"{n}","text":"Hi"}}"#)).await.unwrap();
        }
        assert_eq!(chats.kept.lock().unwrap().len(), CHATS_MAX);
        assert_eq!(ask(&chats, r#"{"conversationId":"0","text":"Hi"}"#).await.unwrap(), "1 Hi after");
    }
}
