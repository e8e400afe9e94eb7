//! A language model behind the OpenAI-compatible `POST /v1/chat/completions`, streamed.
//!
//! Serves OpenAI, Azure, Groq, vLLM, Ollama, llama.cpp and others. Used when `TANDEM_LLM_URL` is set.

mod sse;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Dialogue, LanguageModel, LlmEvent, OUTPUT_MAX, Request, Role};
use crate::config::LlmConfig;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two pieces of the answer, and before the first.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages of history sent along; older ones are left out.
const HISTORY_MAX: usize = 40;
/// Octets of an error answer that go to the log.
const ERROR_BODY_MAX: usize = 300;
/// What the model writes to end the call.
const HANG_UP_MARK: &str = "[hang up]";

const SYSTEM_PROMPT: &str = "You are the voice agent of a restaurant, on the telephone. Your words are read aloud: \
    answer in one or two short spoken sentences, without lists, mark-up or emoji. The restaurant is open from noon to \
    ten in the evening, Tuesday to Sunday, and takes bookings until nine. To book a table ask for name, day and time, \
    one at a time. The caller's words come from speech recognition and may hold mistakes; ask when unsure. When the \
    caller says goodbye, say goodbye and end your answer with [hang up].";

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client cannot be made: {0}")]
pub struct ClientError(#[from] reqwest::Error);

/// An OpenAI-compatible model.
#[derive(Debug, Clone)]
pub struct OpenAi {
    client: reqwest::Client,
    config: Arc<LlmConfig>,
    url: String,
}

impl OpenAi {
    /// A client of the model.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn new(config: LlmConfig) -> Result<Self, ClientError> {
        // One TLS provider for the process; an error means that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client =
            reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build()?;
        let url = completions_url(&config.url);
        Ok(Self { client, config: Arc::new(config), url })
    }
}

impl LanguageModel for OpenAi {
    fn open(&self) -> Box<dyn Dialogue> {
        Box::new(self.clone())
    }
}

impl Dialogue for OpenAi {
    fn respond(&mut self, request: Request) -> mpsc::Receiver<LlmEvent> {
        let (events, receiver) = mpsc::channel(OUTPUT_MAX);
        let model = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                // The turn was cancelled: the request ends with this task.
                () = events.closed() => {}
                result = model.stream(&request, &events) => if let Err(message) = result {
                    // The receiver may have gone in this moment.
                    let _ = events.send(LlmEvent::Failed { message }).await;
                }
            }
        });
        receiver
    }
}

impl OpenAi {
    async fn stream(&self, request: &Request, events: &mpsc::Sender<LlmEvent>) -> Result<(), String> {
        let mut post = self.client.post(&self.url).json(&body(&self.config.model, request));
        if let Some(key) = &self.config.key {
            post = post.bearer_auth(key.expose_secret());
        }
        // The URL of an error could hold a password; `without_url` leaves it out.
        let response = post.send().await.map_err(|error| format!("no answer: {}", error.without_url()))?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await.unwrap_or_default();
            let short: String = text.chars().take(ERROR_BODY_MAX).collect();
            return Err(format!("HTTP {status}: {short}"));
        }
        let mut octets = response.bytes_stream();
        let mut lines = sse::Lines::default();
        let mut text = Text::default();
        while let Some(piece) = octets.next().await {
            let piece = piece.map_err(|error| format!("the answer broke off: {}", error.without_url()))?;
            for payload in lines.push(&piece).map_err(|error| error.to_string())? {
                if text.payload(&payload)? {
                    return text.finish(events).await;
                }
                text.flush(events).await;
            }
        }
        if let Some(payload) = lines.finish() {
            text.payload(&payload)?;
        }
        // Some servers close without [DONE]; a finish reason says that the answer is whole.
        if text.finished { text.finish(events).await } else { Err("the answer broke off".into()) }
    }
}

/// Pieces of the answer, with the hang-up mark taken out even when it comes in two pieces.
#[derive(Default)]
struct Text {
    pending: String,
    hang_up: bool,
    finished: bool,
}

impl Text {
    /// One `data:` payload; true when it was the last.
    fn payload(&mut self, payload: &str) -> Result<bool, String> {
        if payload == "[DONE]" {
            return Ok(true);
        }
        let event: Value = serde_json::from_str(payload).map_err(|_| "a chunk is not JSON".to_owned())?;
        if let Some(message) = event["error"]["message"].as_str() {
            return Err(message.chars().take(ERROR_BODY_MAX).collect());
        }
        let choice = &event["choices"][0];
        if let Some(content) = choice["delta"]["content"].as_str() {
            self.pending.push_str(content);
        }
        self.finished |= choice["finish_reason"].is_string();
        if let Some(at) = self.pending.find(HANG_UP_MARK) {
            self.pending.replace_range(at..at + HANG_UP_MARK.len(), "");
            self.hang_up = true;
        }
        Ok(false)
    }

    /// Sends what cannot be the beginning of the mark.
    async fn flush(&mut self, events: &mpsc::Sender<LlmEvent>) {
        let keep = self.pending.rfind('[').filter(|at| HANG_UP_MARK.starts_with(&self.pending[*at..]));
        let rest = self.pending.split_off(keep.unwrap_or(self.pending.len()));
        let text = std::mem::replace(&mut self.pending, rest);
        if !text.is_empty() {
            // Nobody listens any more: the select above ends the task.
            let _ = events.send(LlmEvent::Text(text)).await;
        }
    }

    async fn finish(mut self, events: &mpsc::Sender<LlmEvent>) -> Result<(), String> {
        let rest = std::mem::take(&mut self.pending);
        let last = [
            (!rest.is_empty()).then_some(LlmEvent::Text(rest)),
            self.hang_up.then_some(LlmEvent::HangUp),
            Some(LlmEvent::Done),
        ];
        for event in last.into_iter().flatten() {
            let _ = events.send(event).await;
        }
        Ok(())
    }
}

fn completions_url(base: &str) -> String {
    let base = base.trim_end_matches('/');
    if base.ends_with("/chat/completions") {
        base.to_owned()
    } else if base.ends_with("/v1") {
        format!("{base}/chat/completions")
    } else {
        format!("{base}/v1/chat/completions")
    }
}

fn body(model: &str, request: &Request) -> Value {
    let mut messages = vec![json!({"role": "system", "content": SYSTEM_PROMPT})];
    let skip = request.history.len().saturating_sub(HISTORY_MAX);
    messages.extend(request.history.iter().skip(skip).map(|said| {
        let role = match said.role {
            Role::Caller => "user",
            Role::Agent => "assistant",
        };
        json!({"role": role, "content": said.text})
    }));
    let text = if request.text.is_empty() { "(unintelligible)" } else { &request.text };
    messages.push(json!({"role": "user", "content": text}));
    json!({"model": model, "messages": messages, "stream": true, "temperature": 0.3, "max_tokens": 300})
}

#[cfg(test)]
mod tests;
