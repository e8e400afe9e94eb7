//! The shell around the modules' requests: it sends them, and says what came of them in their words.
//!
//! ```text
//!   Errand ─▶ Account::dial, control ─▶ RestRequest ─▶ HTTPS ─▶ RestAnswer ─▶ DialOutcome, ControlOutcome ─▶ Outcome
//! ```
//!
//! A dial is sent once: what may have been dialled is not dialled again. A hang-up is sent until the provider has answered,
//! [`HANG_UP_TRIES`] times at most, since a call that stays up costs somebody money.

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::rest::{self, MachineDetection, Method};
use super::{Account, Control, ControlOutcome, Dial, DialOutcome, MediaPlan, RestAnswer, RestRequest, Stamp};

/// Requests that are under way at once, of all credentials. Above that they wait: a dial for its turn, as in the queue.
pub const AT_ONCE_MAX: usize = 256;
/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// How long an answer to a dial may take: providers validate numbers, and look up routes.
const DIAL_WITHIN: Duration = Duration::from_secs(10);
/// How long an answer to anything else may take.
const CONTROL_WITHIN: Duration = Duration::from_secs(4);
/// Tries of a hang-up.
pub const HANG_UP_TRIES: u32 = 4;
/// Between two of them; the second pause is twice as long.
const HANG_UP_AGAIN: Duration = Duration::from_millis(500);
/// Octets of an answer that are read; the rest is thrown away.
const BODY_MAX: usize = 64 * 1_024;

/// Where a call's media go and what goes with it, as a [`MediaPlan`] that owns what it says.
#[derive(Clone, PartialEq, Eq)]
pub struct Plan {
    /// See [`MediaPlan`].
    pub media_url: String,
    /// The claim.
    pub context_id: Uuid,
    /// See [`MediaPlan`].
    pub callback_url: String,
    /// Our number.
    pub number: String,
    /// Samples a second.
    pub sample_rate: u32,
    /// For the media connection.
    pub parameters: Vec<(String, String)>,
}

/// Without the claim, which is in the URL too.
impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan(for {}, {} Hz)", self.number, self.sample_rate)
    }
}

impl Plan {
    /// As the modules take it.
    pub fn as_plan(&self) -> MediaPlan<'_> {
        MediaPlan {
            media_url: &self.media_url,
            context_id: self.context_id,
            callback_url: &self.callback_url,
            number: &self.number,
            sample_rate: self.sample_rate,
            parameters: &self.parameters,
        }
    }
}

/// What is asked of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Errand {
    /// Place a call.
    Dial(Box<DialErrand>),
    /// End one.
    HangUp {
        /// The provider's id of it.
        call: String,
    },
    /// Take one that rings, with its media there.
    Answer {
        /// The provider's id of it.
        call: String,
        /// Where they go.
        plan: Box<Plan>,
    },
    /// Do not take it.
    Reject {
        /// The provider's id of it.
        call: String,
    },
    /// Write to somebody.
    Message {
        /// Whom.
        to: String,
        /// What.
        text: String,
    },
    /// Put the caller through.
    Transfer {
        /// The provider's id of it.
        call: String,
        /// Whom.
        to: String,
        /// Our number.
        from: String,
        /// Where the provider tells how it ended, and fetches its document.
        callback_url: String,
    },
}

/// A call to place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialErrand {
    /// Whom.
    pub to: String,
    /// Our number.
    pub from: String,
    /// Where its media go.
    pub plan: Plan,
    /// How long it may ring, seconds.
    pub ring_s: u32,
    /// How long it may last, seconds.
    pub limit_s: u32,
    /// Whether to find out what picks up.
    pub machine: MachineDetection,
    /// The deployment's.
    pub options: Vec<(String, String)>,
}

/// How long a transfer may ring.
pub const TRANSFER_RING_S: u32 = 60;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of a dial.
    Dialled(DialOutcome),
    /// Of anything else.
    Controlled(ControlOutcome),
    /// The provider has no such thing; what to do instead, in words.
    Unsupported(String),
}

/// Sends requests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RestClient {
    http: reqwest::Client,
    slots: Arc<Semaphore>,
}

impl RestClient {
    /// A client; no connection is made.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new() -> Result<Self, reqwest::Error> {
        // Whoever was first in this process has chosen the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Credentials go where they were meant for: no redirect is followed. A proxy of the environment is the operator's wish.
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_WITHIN)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("tandem/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http, slots: Arc::new(Semaphore::new(AT_ONCE_MAX)) })
    }

    /// Does it, and says what came of it.
    pub async fn run(&self, account: &dyn Account, errand: &Errand) -> Outcome {
        match errand {
            Errand::Dial(dial) => self.dial(account, dial).await,
            Errand::HangUp { call } => self.hang_up(account, call).await,
            Errand::Answer { call, plan } => {
                self.control(account, call, Control::Answer(&plan.as_plan())).await
            }
            Errand::Message { to, text } => match account.message(to, text) {
                Ok(request) => {
                    let answer = self.send(&request, DIAL_WITHIN).await;
                    Outcome::Controlled(account.controlled(&answer.as_answer()))
                }
                Err(unsupported) => Outcome::Unsupported(unsupported.to_string()),
            },
            Errand::Reject { call } => self.control(account, call, Control::Reject).await,
            Errand::Transfer { call, to, from, callback_url } => {
                let transfer = rest::Transfer {
                    to,
                    from,
                    ring_s: TRANSFER_RING_S,
                    result_url: callback_url,
                    document_url: callback_url,
                };
                self.control(account, call, Control::Transfer(transfer)).await
            }
        }
    }

    /// Asks the voice agent for an answer in writing. `Err`: it was not reached, or not in time.
    pub async fn chat(
        &self,
        url: &str,
        token: Option<&SecretString>,
        body: &serde_json::Value,
        within: Duration,
    ) -> Result<(u16, Vec<u8>), String> {
        let mut request = RestRequest {
            method: Method::Post,
            url: url.to_owned(),
            headers: vec![("content-type", "application/json".to_owned())],
            body: body.to_string(),
        };
        if let Some(token) = token {
            request.headers.push(("x-tandem-service-token", token.expose_secret().to_owned()));
        }
        match self.send(&request, within).await {
            Owned::Answered { status, body, .. } => Ok((status, body)),
            Owned::NotSent => Err("the voice agent is not reached".to_owned()),
            Owned::TimedOut => Err("the voice agent did not answer in time".to_owned()),
        }
    }

    async fn dial(&self, account: &dyn Account, dial: &DialErrand) -> Outcome {
        let request = account.dial(
            &Dial {
                to: &dial.to,
                from: &dial.from,
                plan: dial.plan.as_plan(),
                // Its question says itself that it is about a document.
                document_url: &dial.plan.callback_url,
                ring_s: dial.ring_s,
                limit_s: dial.limit_s,
                machine: dial.machine,
                options: &dial.options,
            },
            Stamp::now(),
        );
        match request {
            Ok(request) => {
                let answer = self.send(&request, DIAL_WITHIN).await;
                Outcome::Dialled(account.dialled(&answer.as_answer()))
            }
            Err(unsupported) => Outcome::Unsupported(unsupported.to_string()),
        }
    }

    async fn control(&self, account: &dyn Account, call: &str, control: Control<'_>) -> Outcome {
        match account.control(call, control, Stamp::now()) {
            Ok(request) => {
                let answer = self.send(&request, CONTROL_WITHIN).await;
                Outcome::Controlled(account.controlled(&answer.as_answer()))
            }
            Err(unsupported) => Outcome::Unsupported(unsupported.to_string()),
        }
    }

    async fn hang_up(&self, account: &dyn Account, call: &str) -> Outcome {
        let mut pause = HANG_UP_AGAIN;
        for _ in 1..HANG_UP_TRIES {
            let outcome = self.control(account, call, Control::HangUp).await;
            match &outcome {
                Outcome::Controlled(ControlOutcome::Unknown) => {}
                Outcome::Controlled(ControlOutcome::Refused(refused)) if refused.is_retryable() => {}
                _ => return outcome,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.control(account, call, Control::HangUp).await
    }

    async fn send(&self, request: &RestRequest, within: Duration) -> Owned {
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await;
        let method = match request.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
            Method::Delete => reqwest::Method::DELETE,
        };
        let mut builder = self.http.request(method, &request.url).timeout(within);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if !request.body.is_empty() {
            builder = builder.body(request.body.clone());
        }
        let mut response = match builder.send().await {
            Ok(response) => response,
            // No name, no connection, no TLS; or an URL that is none.
            Err(error) if error.is_connect() || error.is_builder() => return Owned::NotSent,
            Err(_) => return Owned::TimedOut,
        };
        let status = response.status().as_u16();
        let retry_after = response.headers().get(reqwest::header::RETRY_AFTER);
        let retry_after_s = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let mut body = Vec::new();
        // A body that breaks off is as one that is short: the status has been said.
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk[..chunk.len().min(BODY_MAX - body.len())]);
            if body.len() == BODY_MAX {
                break;
            }
        }
        Owned::Answered { status, retry_after_s, body }
    }
}

/// A [`RestAnswer`] that owns its body.
enum Owned {
    Answered { status: u16, retry_after_s: Option<u32>, body: Vec<u8> },
    NotSent,
    TimedOut,
}

impl Owned {
    fn as_answer(&self) -> RestAnswer<'_> {
        match self {
            Self::Answered { status, retry_after_s, body } => {
                RestAnswer::Answered { status: *status, retry_after_s: *retry_after_s, body }
            }
            Self::NotSent => RestAnswer::NotSent,
            Self::TimedOut => RestAnswer::TimedOut,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::any;

    use super::*;
    use crate::provider::{Values, twilio};

    fn account(base: &str) -> Arc<dyn Account> {
        let json = serde_json::json!({
            "account_sid": "AC00000000000000000000000000000001",
            "account_token": "token",
            "api_url": base,
        });
        twilio::open(&Values::from_json(&twilio::FORM, json.as_object().unwrap()).unwrap()).unwrap()
    }

    /// A provider that answers with these statuses, one after the other; the last again and again.
    async fn provider(statuses: &'static [u16], body: &'static str) -> (String, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let answer = move || {
            let number = counter.fetch_add(1, Ordering::Relaxed);
            let status = statuses[number.min(statuses.len() - 1)];
            async move { (StatusCode::from_u16(status).unwrap(), body) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(any(answer))).await });
        (base, asked)
    }

    fn client() -> RestClient {
        RestClient::new().unwrap()
    }

    fn dial() -> Errand {
        let plan = Plan {
            media_url: "wss://media.example.com/v1/media/twilio/1".to_owned(),
            context_id: Uuid::nil(),
            callback_url: "https://tandem.example.com/v1/telephony/twilio/event/2".to_owned(),
            number: "+14155550100".to_owned(),
            sample_rate: 8_000,
            parameters: Vec::new(),
        };
        Errand::Dial(Box::new(DialErrand {
            to: "+14155550199".to_owned(),
            from: "+14155550100".to_owned(),
            plan,
            ring_s: 30,
            limit_s: 3_600,
            machine: MachineDetection::Off,
            options: Vec::new(),
        }))
    }

    #[test]
    fn errand_shows_no_claim() {
        let shown = format!("{:?}", dial());
        assert!(!shown.contains("/v1/media/") && !shown.contains(&Uuid::nil().to_string()), "{shown}");
    }

    #[tokio::test]
    async fn hang_up_is_said_again_until_it_is_heard_and_a_dial_is_not() {
        let (base, asked) = provider(&[503, 503, 200], "{}").await;
        let hung_up = client().run(&*account(&base), &Errand::HangUp { call: "CA1".into() }).await;
        assert_eq!(hung_up, Outcome::Controlled(ControlOutcome::Done));
        assert_eq!(asked.load(Ordering::Relaxed), 3);
        let (base, asked) = provider(&[502], "bad gateway").await;
        let dialled = client().run(&*account(&base), &dial()).await;
        assert!(matches!(dialled, Outcome::Dialled(DialOutcome::Unknown { .. })), "{dialled:?}");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn what_did_not_leave_was_not_dialled() {
        // Nobody listens there any more.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let account = account(&format!("http://{gone}"));
        let outcome = client().run(&*account, &dial()).await;
        let Outcome::Dialled(DialOutcome::Refused(refused)) = outcome else { panic!("{outcome:?}") };
        assert!(refused.is_retryable());
    }

    #[tokio::test]
    async fn redirect_is_not_followed_with_the_credential() {
        let (base, asked) = provider(&[302], "").await;
        let outcome = client().run(&*account(&base), &Errand::HangUp { call: "CA1".into() }).await;
        assert!(matches!(outcome, Outcome::Controlled(ControlOutcome::Refused(_))), "{outcome:?}");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
