//! What was said, written to the control plane (`ConversationService/PutMessage`).
//!
//! A conversation never waits for its record: messages go through a bounded queue to one task, which retries.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tandem_api::v1::conversation_service_client::ConversationServiceClient;
use tandem_api::v1::{Message, PutMessageRequest};
use tokio::sync::mpsc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

/// Messages that may wait: some minutes of a dozen conversations. The next one is dropped with a warning.
const QUEUE_MAX: usize = 512;
/// Tries a message gets before it is given up.
const TRIES_MAX: u32 = 6;
/// First pause between tries; doubled each time (0.2 + 0.4 + … = 6 s in all).
const RETRY_MIN: Duration = Duration::from_millis(200);
/// One write must be answered by then.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);
/// At shutdown the queue may take this long to empty.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the record cannot be written at all.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The control plane's URL is no URL.
    #[error("TANDEM_CONTROL_URL is not a URL: {0}")]
    Url(#[from] tonic::transport::Error),
    /// The service token cannot be a header.
    #[error("TANDEM_SERVICE_TOKEN holds characters that a header cannot")]
    Token,
}

/// Takes messages; cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: mpsc::Sender<PutMessageRequest>,
}

/// The task behind it.
#[derive(Debug)]
pub struct Writer {
    task: tokio::task::JoinHandle<()>,
}

impl Recorder {
    /// A recorder that writes to `control_url`; it connects when there is something to write.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn start(control_url: &str, token: Option<&SecretString>) -> Result<(Self, Writer), RecordError> {
        let endpoint = Endpoint::from_shared(control_url.to_owned())?
            .timeout(WRITE_TIMEOUT)
            .connect_timeout(WRITE_TIMEOUT);
        let token = match token {
            Some(token) => {
                let mut value: MetadataValue<Ascii> =
                    token.expose_secret().parse().map_err(|_| RecordError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let client = ConversationServiceClient::new(endpoint.connect_lazy());
        let task = tokio::spawn(write(client, token, waiting));
        Ok((Self { queue }, Writer { task }))
    }

    /// Queues one message of a call.
    pub fn put(&self, call_id: &str, message: Message) {
        let request = PutMessageRequest { call_id: call_id.to_owned(), message: Some(message) };
        if self.queue.try_send(request).is_err() {
            tracing::warn!(call_id, "the record's queue is full: a message is lost");
        }
    }
}

impl Writer {
    /// Waits until what is queued is written; every [`Recorder`] must be dropped before.
    pub async fn drain(self) {
        if tokio::time::timeout(DRAIN_TIMEOUT, self.task).await.is_err() {
            tracing::warn!("the record was not written to its end");
        }
    }
}

async fn write(
    mut client: ConversationServiceClient<Channel>,
    token: Option<MetadataValue<Ascii>>,
    mut waiting: mpsc::Receiver<PutMessageRequest>,
) {
    while let Some(put) = waiting.recv().await {
        let mut pause = RETRY_MIN;
        for attempt in 1..=TRIES_MAX {
            let mut request = tonic::Request::new(put.clone());
            if let Some(token) = &token {
                request.metadata_mut().insert("x-tandem-service-token", token.clone());
            }
            let Err(status) = client.put_message(request).await else { break };
            if attempt == TRIES_MAX || !is_worth_retrying(status.code()) {
                tracing::warn!(call_id = put.call_id, code = ?status.code(), attempt, "a message was not written");
                break;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

fn is_worth_retrying(code: tonic::Code) -> bool {
    use tonic::Code;
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Cancelled
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
    )
}
