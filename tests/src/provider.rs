//! Telephony providers as their own pages describe them, written down a second time: whoever passes these passes the real
//! ones, as far as pages and SDKs can tell.
//!
//! ```text
//!   announce ─webhook, signed─▶ control plane ─document─▶ script ┐
//!   control plane ─REST─▶ rest: authentication, strict names ────┤▶ course of the call ─▶ media: dials, speaks its dialect
//!                  ◀─status callbacks, signed ───────────────────┘        say, press, heard
//! ```
//!
//! * [`http`]: what comes in and goes out; [`proof`]: how each proves itself
//! * [`course`]: a call from its beginning to its end, the same for all
//! * [`media`]: the socket's dialects and the playout at the provider
//! * [`twilio`], [`vonage`], [`exotel`], [`asterisk`], [`telnyx`], [`plivo`]: each one's REST, documents and callbacks
//!
//! A name that the provider does not know, or one that is missing, is its own error: here it is stricter than most, so that
//! a misspelt parameter is found. Oracle: tests/peers/providers/fake.py places calls with the official SDKs.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value as Json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

pub mod asterisk;
pub mod course;
pub mod exotel;
pub mod http;
pub mod media;
pub mod plivo;
pub mod proof;
pub mod telnyx;
pub mod twilio;
pub mod vonage;

#[cfg(test)]
mod tests;

use course::{Control, Course, Event};
use http::{Answer, Outgoing, Request};
use media::{Media, Stream};

/// Whose manners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// Twilio.
    Twilio,
    /// Vonage.
    Vonage,
    /// Exotel.
    Exotel,
    /// An Asterisk: dialplan, ARI, AudioSocket.
    Asterisk,
    /// Telnyx, Call Control.
    Telnyx,
    /// Plivo.
    Plivo,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Twilio, Self::Vonage, Self::Exotel, Self::Asterisk, Self::Telnyx, Self::Plivo];

    /// As in routes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Twilio => "twilio",
            Self::Vonage => "vonage",
            Self::Exotel => "exotel",
            Self::Asterisk => "asterisk",
            Self::Telnyx => "telnyx",
            Self::Plivo => "plivo",
        }
    }

    fn voice(self) -> &'static dyn Voice {
        match self {
            Self::Twilio => &twilio::Twilio,
            Self::Vonage => &vonage::Vonage,
            Self::Exotel => &exotel::Exotel,
            Self::Asterisk => &asterisk::Asterisk,
            Self::Telnyx => &telnyx::Telnyx,
            Self::Plivo => &plivo::Plivo,
        }
    }
}

/// What a provider has of its own.
pub(crate) trait Voice: Sync {
    /// Answers a request to the API.
    fn rest(&self, desk: &Arc<Desk>, request: &Request) -> Answer;
    /// The webhook of an inbound call.
    fn announce(&self, desk: &Desk, call: &Call) -> Outgoing;
    /// What a document asks for.
    fn script(&self, desk: &Desk, document: &str) -> Result<Script, String>;
    /// The callback of an event, where one was asked for.
    fn event(&self, desk: &Desk, call: &Call, event: Event) -> Option<Outgoing>;
    /// The callback of the media's beginning and end.
    fn stream_event(&self, desk: &Desk, call: &Call, stream: &Stream, event: StreamEvent)
    -> Option<Outgoing>;
    /// The request for a document.
    fn fetch(&self, desk: &Desk, call: &Call, url: &str) -> Outgoing;
    /// What is told when somebody who was dialled has hung up.
    fn dialled(&self, _desk: &Desk, _call: &Call, _action: &str) -> Option<Outgoing> {
        None
    }
}

/// What a document asks for.
#[derive(Debug, Clone)]
pub(crate) enum Script {
    /// Media.
    Stream(Stream),
    /// Whatever the document there says.
    Fetch(String),
    /// Somebody else: whom, and where the outcome goes.
    Dial { to: String, action: String },
    /// A sentence, then the end.
    Say(String),
    /// Not to be answered.
    Reject,
    /// The end.
    Hangup,
    /// Nothing yet: the API will say (Telnyx).
    Wait,
}

/// News of the media.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamEvent {
    /// Connected.
    Started,
    /// Over.
    Stopped,
    /// Could not be dialled, or broke the rules.
    Failed,
}

/// What whom we call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callee {
    /// Picks up after so long.
    Answers(Duration),
    /// Is busy.
    Busy,
    /// Does not pick up.
    NoAnswer,
    /// Declines.
    Declines,
}

/// How status callbacks arrive: delivery is best effort everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callbacks {
    /// Once, in order.
    Orderly,
    /// Each one twice.
    Twice,
    /// All at the end, the last one first.
    Backwards,
    /// Each one so late.
    Late(Duration),
    /// Not at all.
    None,
}

/// Who we are, who you are, and how the world is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose manners.
    pub provider: Provider,
    /// Where webhooks are sent: `http://127.0.0.1:8080`.
    pub control: String,
    /// What that is called outside: what is signed, and what callback URLs begin with.
    pub public_url: String,
    /// Whom inbound calls are for.
    pub assistant: String,
    /// The account: SID, application, auth id, or the ARI's user.
    pub account: String,
    /// What proves requests to the API: token, key, or password. Of Vonage the PEM of the application's private key.
    pub secret: String,
    /// Beside it: Vonage's API key, Exotel's API key, Telnyx's connection.
    pub key: String,
    /// What proves our webhooks: token, signature secret, password, API key. Of Telnyx it is a key of our own.
    pub webhook_secret: String,
    /// Beside it: Exotel's webhook user.
    pub webhook_user: String,
    /// Our number.
    pub number: String,
    /// Where AudioSocket is dialled.
    pub audiosocket: Option<SocketAddr>,
    /// What whom we call does.
    pub callee: Callee,
    /// How callbacks arrive.
    pub callbacks: Callbacks,
}

impl Settings {
    /// With the demo's credentials, and others of the same kind where the demo has none.
    pub fn demo(provider: Provider, control: &str) -> Self {
        let (account, secret, key, webhook_secret) = match provider {
            Provider::Twilio => {
                ("AC000000000000000000000000000000de", "demo-twilio-auth-token", "", "demo-twilio-auth-token")
            }
            Provider::Vonage => (
                "00000000-0000-4000-8000-0000000000de",
                include_str!("../../control-plane/src/provider/vonage/key_pkcs8.pem"),
                "demo1234",
                "demo-vonage-signature-secret",
            ),
            Provider::Exotel => {
                ("demo-exotel", "demo-exotel-rest-token", "demo-exotel-rest", "demo-exotel-token")
            }
            Provider::Asterisk => ("demo-ari", "demo-ari-password", "", "demo-key"),
            Provider::Telnyx => ("demo-telnyx", "KEYdemo", "1494404757140276705", ""),
            Provider::Plivo => ("MADEMODEMODEMODEMODE", "demo-plivo-token", "", "demo-plivo-token"),
        };
        Self {
            provider,
            control: control.to_owned(),
            public_url: control.to_owned(),
            assistant: "echo".to_owned(),
            account: account.to_owned(),
            secret: secret.to_owned(),
            key: key.to_owned(),
            webhook_secret: webhook_secret.to_owned(),
            webhook_user: "demo-exotel".to_owned(),
            number: "+15005550006".to_owned(),
            audiosocket: None,
            callee: Callee::Answers(Duration::from_millis(50)),
            callbacks: Callbacks::Orderly,
        }
    }

    /// The webhook of inbound calls, as known outside.
    pub(crate) fn call_url(&self) -> String {
        format!("{}/v1/telephony/{}/call/{}", self.public_url, self.provider.name(), self.assistant)
    }
}

/// What a provider's parts share.
pub(crate) struct Desk {
    pub(crate) settings: Settings,
    calls: Mutex<HashMap<String, Call>>,
    /// Calls placed by the API, in order.
    placed: Mutex<Vec<Call>>,
    requests: Mutex<Vec<Request>>,
    refusals: Mutex<Vec<Answer>>,
    numbers: AtomicUsize,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            calls: Mutex::default(),
            placed: Mutex::default(),
            requests: Mutex::default(),
            refusals: Mutex::default(),
            numbers: AtomicUsize::new(1),
        }
    }

    /// The next of our own counts: message ids and such.
    pub(crate) fn next_number(&self) -> usize {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn call(&self, id: &str) -> Option<Call> {
        lock(&self.calls).get(id).cloned()
    }

    /// Begins a call that the API has asked for.
    pub(crate) fn place(self: &Arc<Self>, course: Course) -> Call {
        let call = Call::new(course);
        lock(&self.calls).insert(call.id().to_owned(), call.clone());
        lock(&self.placed).push(call.clone());
        course::begin(self, &call);
        call
    }

    fn answer(self: &Arc<Self>, request: Request) -> Answer {
        lock(&self.requests).push(request.clone());
        let refusal = {
            let mut refusals = lock(&self.refusals);
            if refusals.is_empty() { None } else { Some(refusals.remove(0)) }
        };
        refusal.unwrap_or_else(|| self.settings.provider.voice().rest(self, &request))
    }
}

/// A provider that runs; dropped, it ends, and its calls with it.
pub struct Fake {
    desk: Arc<Desk>,
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Fake {
    /// Starts its API on a port of its own.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let desk = Arc::new(Desk::new(settings));
        let server = tokio::spawn(http::serve(listener, {
            let desk = Arc::clone(&desk);
            move |request| desk.answer(request)
        }));
        Ok(Self { desk, address, server })
    }

    /// What a credential's `api_url` (of Asterisk its `ari_url`) must be to reach it.
    pub fn api_url(&self) -> String {
        let path = match self.desk.settings.provider {
            Provider::Asterisk => "/ari",
            Provider::Telnyx => "/v2",
            _ => "",
        };
        format!("http://{}{path}", self.address)
    }

    /// Somebody calls our number: sends the webhook and does what its answer says.
    pub async fn announce(&self, from: &str, to: &str) -> anyhow::Result<Call> {
        let provider = self.desk.settings.provider;
        let call = Call::new(Course::inbound(provider, from, to));
        lock(&self.desk.calls).insert(call.id().to_owned(), call.clone());
        let asked = provider.voice().announce(&self.desk, &call);
        let answer = http::send(&self.desk.settings, &asked).await.context("the webhook")?;
        call.note(format!("webhook {}", answer.status));
        anyhow::ensure!(answer.status == 200, "the webhook was answered {}: {}", answer.status, answer.body);
        let script = if provider == Provider::Telnyx {
            Script::Wait
        } else {
            provider.voice().script(&self.desk, &answer.body).map_err(anyhow::Error::msg)?
        };
        course::take(&self.desk, &call, script);
        Ok(call)
    }

    /// The nth call that was placed by the API, from 1.
    pub async fn placed(&self, nth: usize, within: Duration) -> anyhow::Result<Call> {
        let found = || lock(&self.desk.placed).get(nth - 1).cloned();
        soon(&format!("call {nth} is placed"), within, found).await
    }

    /// Calls placed so far.
    pub fn placed_count(&self) -> usize {
        lock(&self.desk.placed).len()
    }

    /// Requests to the API so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.desk.requests).clone()
    }

    /// Answers the next request like this, whatever it is.
    pub fn refuse_next(&self, status: u16, body: Json) {
        lock(&self.desk.refusals).push(Answer::json(status, body));
    }

    /// The public key of our webhooks, in Base64 (Telnyx).
    pub fn public_key(&self) -> String {
        proof::ed25519_public_key()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
        for call in lock(&self.desk.calls).values() {
            call.abort();
        }
    }
}

/// Looks again and again until something is there.
pub(crate) async fn soon<T>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let until = tokio::time::Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        anyhow::ensure!(tokio::time::Instant::now() < until, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One call at a provider.
#[derive(Clone)]
pub struct Call(Arc<CallParts>);

pub(crate) struct CallParts {
    pub(crate) course: Mutex<Course>,
    pub(crate) media: Mutex<Media>,
    pub(crate) id: String,
    notes: Mutex<Vec<String>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Call {
    fn new(course: Course) -> Self {
        Self(Arc::new(CallParts {
            id: course.id.clone(),
            course: Mutex::new(course),
            media: Mutex::default(),
            notes: Mutex::default(),
            task: Mutex::default(),
        }))
    }

    /// The provider's id.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    pub(crate) fn course(&self) -> MutexGuard<'_, Course> {
        lock(&self.0.course)
    }

    pub(crate) fn media(&self) -> MutexGuard<'_, Media> {
        lock(&self.0.media)
    }

    pub(crate) fn note(&self, what: String) {
        lock(&self.0.notes).push(what);
    }

    pub(crate) fn set_task(&self, task: JoinHandle<()>) {
        *lock(&self.0.task) = Some(task);
    }

    fn abort(&self) {
        if let Some(task) = lock(&self.0.task).take() {
            task.abort();
        }
    }

    /// What has happened, in order: `ringing`, `answered`, `callback answered 200`, `media started`, `said …`, …
    pub fn notes(&self) -> Vec<String> {
        lock(&self.0.notes).clone()
    }

    /// Waits until something of this beginning has been noted.
    pub async fn noted(&self, beginning: &str, within: Duration) -> anyhow::Result<String> {
        let look = || self.notes().into_iter().find(|note| note.starts_with(beginning));
        let found = soon(&format!("{beginning:?}"), within, look).await;
        found.with_context(|| format!("noted: {:?}", self.notes()))
    }

    /// Where it is.
    pub fn state(&self) -> Event {
        self.course().state
    }

    /// Waits until it is over, and says how.
    pub async fn ended(&self, within: Duration) -> anyhow::Result<Event> {
        let look = || Some(self.state()).filter(|state| state.is_end());
        let found = soon("the call ends", within, look).await;
        found.with_context(|| format!("noted: {:?}", self.notes()))
    }

    /// Samples a second of what is said and heard.
    pub fn rate_hz(&self) -> u32 {
        self.media().rate_hz
    }

    /// The caller says this, after what it is still saying.
    pub fn say(&self, samples: &[i16]) {
        self.media().to_say.extend(samples);
    }

    /// What the caller has heard so far; silence between sounds is not in it.
    pub fn heard(&self) -> Vec<i16> {
        self.media().heard.clone()
    }

    /// Waits until the caller has heard so many samples.
    pub async fn heard_samples(&self, count: usize, within: Duration) -> anyhow::Result<Vec<i16>> {
        let look = || Some(self.heard()).filter(|heard| heard.len() >= count);
        soon(&format!("{count} samples are heard"), within, look).await
    }

    /// Presses a key.
    pub fn press(&self, digit: char) {
        self.media().keys.push_back(digit);
    }

    /// Marks that were set, in order.
    pub fn marks(&self) -> Vec<String> {
        self.media().marks.clone()
    }

    /// Times that what waited was cleared.
    pub fn clears(&self) -> usize {
        self.media().clears
    }

    /// What the provider would not have let pass.
    pub fn violations(&self) -> Vec<String> {
        self.media().violations.clone()
    }

    /// Keys that were pressed towards the caller by the API.
    pub fn digits(&self) -> String {
        self.course().digits.clone()
    }

    /// The caller hangs up.
    pub fn hang_up(&self) {
        self.course().tell(Control::HangUp);
    }

    /// The media socket breaks, without a word.
    pub fn drop_socket(&self) {
        self.course().tell(Control::DropSocket);
    }
}

/// A fresh UUID.
pub(crate) fn fresh() -> Uuid {
    Uuid::new_v4()
}
