//! The WhatsApp receiver: messages of a number come by webhook, the assistant answers in writing.
//!
//! ```text
//!   GET  /v1/telephony/whatsapp/{assistantId} ─▶ the challenge said back
//!   POST ─▶ signature ─▶ 200 ─▶ (beside it) repetition? ─▶ conversation ─▶ agent ─▶ conversation ─▶ Graph API
//! ```
//!
//! A conversation is a record like a call's, one for each writer and [`CONVERSATION_TTL`]; `tandem conversation show` has it. Messages of
//! one conversation are answered in their order. The webhook is answered before the agent is asked; what cannot be taken now is 503, and
//! comes again.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, OriginalUri, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use secrecy::SecretString;
use serde_json::json;
use tandem_api::v1 as api;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::telephony::{Asked, refused};
use super::{Peer, Shared};
use crate::call::agent::{Agent, LINK_SCHEME};
use crate::call::ending::{Cause, Ending};
use crate::call::record::CallRecord;
use crate::provider::client::{Errand, Outcome};
use crate::provider::webhook::{BODY_MAX, Endpoint, TextMessage, Webhook};
use crate::provider::{ControlOutcome, Deployment, Refusal};
use crate::store::contexts::ContextStore;
use crate::store::{self, conversations};

/// Messages that the voice agent answers at once; more wait for their turn.
const ANSWERING_MAX: usize = 64;
/// Queues of writers, by a hash of who writes: two that share one wait for each other, and nothing worse.
const QUEUES: usize = 256;
/// Webhooks that wait in one of these; above that 503, and the provider comes again. One writer fills nobody else's.
const QUEUE_MAX: usize = 8;
/// The provider lets a business write freely for so long after the other side has; then a conversation begins anew.
const CONVERSATION_TTL: Duration = Duration::from_secs(86_400);
/// A message is known to have come before for so long.
const REPETITION_TTL: Duration = Duration::from_secs(3_600);
/// Messages of before that the agent is told.
const HISTORY_MAX: usize = 40;
/// An answer of the voice agent must be there by then.
const ANSWER_WITHIN: Duration = Duration::from_secs(70);
/// Tries to send an answer.
const SEND_TRIES: u32 = 3;
/// What is written when the agent does not answer.
const SORRY: &str = "Sorry, I cannot answer at the moment. Please write again in a few minutes.";
/// What is written when somebody sends a picture or a voice message.
const ONLY_TEXT: &str = "Sorry, I can only read text.";

/// What the receiver keeps. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Desk {
    answering: Arc<Semaphore>,
    queues: Arc<[Queue]>,
    /// Where the voice agent is asked.
    chat_url: Arc<str>,
    token: Option<Arc<SecretString>>,
}

#[derive(Debug)]
struct Queue {
    turn: Mutex<()>,
    places: Arc<Semaphore>,
}

impl Desk {
    fn queue_of(&self, writer: &str) -> &Queue {
        let mut hasher = std::hash::DefaultHasher::new();
        writer.hash(&mut hasher);
        &self.queues[hasher.finish() as usize % QUEUES]
    }

    /// With the voice agent that engines reach at `talker_url`.
    pub fn new(talker_url: &str, token: Option<Arc<SecretString>>) -> Self {
        let rest = talker_url.strip_prefix(LINK_SCHEME).or_else(|| talker_url.strip_prefix("ws://"));
        let host = rest.unwrap_or(talker_url).split('/').next().unwrap_or_default();
        Self {
            answering: Arc::new(Semaphore::new(ANSWERING_MAX)),
            queues: (0..QUEUES)
                .map(|_| Queue { turn: Mutex::new(()), places: Arc::new(Semaphore::new(QUEUE_MAX)) })
                .collect(),
            chat_url: format!("http://{host}/v1/chat").into(),
            token,
        }
    }
}

pub(super) fn router() -> Router<Shared> {
    Router::new()
        .route("/v1/telephony/whatsapp/{assistant_id}", any(receive))
        .layer(DefaultBodyLimit::max(BODY_MAX))
}

async fn receive(
    State(shared): State<Shared>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    Path(assistant_id): Path<String>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let asked = Asked::new(&shared, peer.ip(), (&method, &uri), &headers, &body);
    let mut refusal = Refusal::UnknownAssistant;
    let mut answer = None;
    // Numbers of one app share its URL and its secret: each of them takes what is its own.
    for deployment in shared.credentials.leading_to("whatsapp", &assistant_id) {
        match asked.read(&deployment.credential, Endpoint::Call).await {
            Ok(webhook) => {
                let own = handle(&shared, deployment, &assistant_id, webhook).await;
                // What one could not take comes again, for all; who has answered then answers it once.
                if answer.as_ref().is_none_or(|answer: &Response| answer.status().is_success()) {
                    answer = Some(own);
                }
            }
            Err(error) if refusal == Refusal::UnknownAssistant => refusal = error,
            Err(_) => {}
        }
    }
    answer.unwrap_or_else(|| refused(&shared, "whatsapp", &refusal, &asked))
}

async fn handle(
    shared: &Shared,
    deployment: &Arc<Deployment>,
    assistant_id: &str,
    webhook: Webhook,
) -> Response {
    shared.metrics.count_webhook("whatsapp", "taken");
    let messages = match webhook {
        Webhook::Challenge(challenge) => {
            return ([(header::CONTENT_TYPE, "text/plain")], challenge).into_response();
        }
        Webhook::Messages(messages) if !messages.is_empty() => messages,
        _ => return StatusCode::OK.into_response(),
    };
    let tenant_id = &deployment.credential.tenant_id;
    let agent = match shared.accounts.assistant(tenant_id, assistant_id).await {
        Ok(Some(assistant)) => assistant.agent,
        Ok(None) => return StatusCode::NOT_FOUND.into_response(),
        Err(_) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
    };
    let writer = messages.first().map(|message| message.from.clone()).unwrap_or_default();
    let Ok(place) = shared.desk.queue_of(&writer).places.clone().try_acquire_owned() else {
        shared.metrics.count_webhook("whatsapp", "declined");
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let (shared, deployment, assistant_id) = (shared.clone(), deployment.clone(), assistant_id.to_owned());
    tokio::spawn(async move {
        let _place: OwnedSemaphorePermit = place;
        for message in messages {
            answer(&shared, &deployment, &assistant_id, agent.as_ref().ok(), message).await;
        }
    });
    StatusCode::OK.into_response()
}

/// One message: what is written back, and where both are kept.
async fn answer(
    shared: &Shared,
    deployment: &Deployment,
    assistant_id: &str,
    agent: Option<&Agent>,
    message: TextMessage,
) {
    let credential = &deployment.credential;
    let store = shared.contexts.store();
    let own = Uuid::new_v4().to_string();
    let first = store.first_word(&format!("whatsapp:message:{}", message.id), &own, REPETITION_TTL).await;
    // A store that is away knows of no repetition.
    if first.is_ok_and(|first| first != own) {
        return;
    }
    let name = format!("whatsapp:{}:{assistant_id}:{}", credential.name, message.from);
    let fresh = Uuid::now_v7();
    let kept = store.first_word(&name, &fresh.to_string(), CONVERSATION_TTL).await.ok();
    let call_id: Uuid = kept.and_then(|id| id.parse().ok()).unwrap_or(fresh);
    let _in_order = shared.desk.queue_of(&message.from).turn.lock().await;
    // The semaphore is never closed.
    let _slot = shared.desk.answering.acquire().await;

    let history = conversations::list(&shared.pool, &call_id.to_string()).await.unwrap_or_default();
    let said = message.text.as_deref().unwrap_or_default();
    let turn = history.last().map_or(1, |last| last.turn + 1);
    keep(shared, deployment, assistant_id, call_id, &message);
    write_down(shared, call_id, &message.id, turn, "caller", said).await;
    let reply = match (&message.text, agent) {
        (None, _) => ONLY_TEXT.to_owned(),
        (Some(text), Some(Agent::Echo)) => text.clone(),
        (Some(text), Some(Agent::Talker)) => {
            ask(shared, call_id, &history, text).await.unwrap_or_else(|why| {
                tracing::error!(%call_id, "the voice agent did not answer in writing: {why}");
                SORRY.to_owned()
            })
        }
        (Some(_), _) => {
            tracing::warn!(%call_id, assistant_id, "the assistant's agent cannot write: it needs agent = \"talker\"");
            SORRY.to_owned()
        }
    };
    if reply.is_empty() {
        return;
    }
    write_down(shared, call_id, &format!("{}:answer", message.id), turn, "agent", &reply).await;
    send(shared, deployment, call_id, Errand::Message { to: message.from, text: reply }).await;
}

/// The record under which the conversation is found.
fn keep(shared: &Shared, deployment: &Deployment, assistant_id: &str, call_id: Uuid, message: &TextMessage) {
    let now_ms = store::epoch_ms();
    let began = call_id.get_timestamp().map(|at| at.to_unix());
    let created_ms = began.and_then(|(s, ns)| i64::try_from(s * 1_000 + u64::from(ns) / 1_000_000).ok());
    let created_ms = created_ms.unwrap_or(now_ms);
    shared.writer.put(CallRecord {
        tenant_id: deployment.credential.tenant_id.clone(),
        call: api::Call {
            call_id: call_id.to_string(),
            assistant_id: assistant_id.to_owned(),
            direction: "inbound".to_owned(),
            from: message.from.clone(),
            to: message.to.clone(),
            state: "ended".to_owned(),
            created_ms,
            answered_ms: created_ms,
            ended_ms: now_ms,
            ending: Some(Ending::new(Cause::InWriting).to_api()),
            provider: Some(api::ProviderSide {
                name: "whatsapp".to_owned(),
                credential: deployment.credential.name.to_string(),
                ..api::ProviderSide::default()
            }),
            ..api::Call::default()
        },
    });
}

async fn write_down(shared: &Shared, call_id: Uuid, message_id: &str, turn: u32, role: &str, text: &str) {
    let message = api::Message {
        message_id: message_id.to_owned(),
        turn,
        role: role.to_owned(),
        text: text.to_owned(),
        started_ms: store::epoch_ms(),
        ..api::Message::default()
    };
    if let Err(error) = conversations::put(&shared.pool, &call_id.to_string(), &message).await {
        tracing::error!(%call_id, %error, "a message is not kept");
    }
}

/// What the voice agent writes.
async fn ask(shared: &Shared, call_id: Uuid, history: &[api::Message], text: &str) -> Result<String, String> {
    let history: Vec<_> = history
        .iter()
        .skip(history.len().saturating_sub(HISTORY_MAX))
        .map(|message| json!({ "role": message.role, "text": message.text }))
        .collect();
    let body = json!({ "conversationId": call_id.to_string(), "history": history, "text": text });
    let Desk { chat_url, token, .. } = &shared.desk;
    let (status, answer) = shared.rest.chat(chat_url, token.as_deref(), &body, ANSWER_WITHIN).await?;
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
    match (status, answer["text"].as_str()) {
        (200, Some(text)) => Ok(text.to_owned()),
        _ => Err(format!("{status} {}", answer["error"].as_str().unwrap_or_default())),
    }
}

async fn send(shared: &Shared, deployment: &Deployment, call_id: Uuid, errand: Errand) {
    let account = &*deployment.credential.account;
    let mut pause = Duration::from_millis(500);
    for attempt in 1..=SEND_TRIES {
        let why = match shared.rest.run(account, &errand).await {
            Outcome::Controlled(ControlOutcome::Done) => return,
            Outcome::Controlled(ControlOutcome::Refused(refused)) if refused.is_retryable() => refused.detail,
            // It may have been sent: twice would be read twice.
            other => {
                return tracing::error!(%call_id, outcome = ?other, "an answer was not taken by WhatsApp");
            }
        };
        if attempt == SEND_TRIES {
            return tracing::error!(%call_id, why, "an answer could not be sent by WhatsApp");
        }
        tokio::time::sleep(pause).await;
        pause *= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voice_agent_is_asked_where_engines_reach_it() {
        for url in ["link://127.0.0.1:8767", "ws://127.0.0.1:8767/v1/talk"] {
            assert_eq!(&*Desk::new(url, None).chat_url, "http://127.0.0.1:8767/v1/chat");
        }
    }
}
