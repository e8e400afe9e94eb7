//! The task that owns the core: it brings what happens in, performs what the core asks, and decides nothing.
//!
//! ```text
//!   sip events ─┐                                    ┌─▶ sip verbs
//!   engine news ┼─▶ Calls::handle_* ─▶ poll_action ──┼─▶ engine commands (a task each; its reply comes back)
//!   replies ────┤                                    ├─▶ lookups (cache at once, else a task)
//!   requests ───┘  (gRPC, REST)                      └─▶ records (write-behind), log lines, metrics
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_api::v1 as api;
use tandem_sip::{InviteRequest, NameAddr};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::action::{Action, Change, EngineCommand, EngineReply, Refusal};
use super::admission::Credential;
use super::ending::{Cause, Ending};
use super::machine::{Asked, FORKS_MAX, TransferTo};
use super::order::{Order, PHONES};
use super::registry::Calls;
use super::registry::claiming::{Claimed, MediaPlace, check_upgrade};
use super::registry::joining::Guest;
use super::registry::placing::PlaceError;
use crate::media::client::EngineClient;
use crate::media::leases::Leases;
use crate::media::{EngineId, News, SessionEvent, Upgrade};
use crate::metrics::{Metrics, TrunkCall};
use crate::provider::Credentials;
use crate::provider::client::{Outcome, RestClient};
use crate::provider::file::Credential as ProviderCredential;
use crate::provider::webhook::StatusEvent;
use crate::registration;
use crate::registration::desk::{Desk, Taken};
use crate::registration::driver::Office;
use crate::sip::guard::SharedGuard;
use crate::sip::{Destination, NotSent, SipEvent, Token, Verb};
use crate::store;
use crate::store::accounts::{Accounts, Found};
use crate::store::contexts::spool::Spool;
use crate::store::contexts::{CallContext, Claim, ContextStore, Contexts};
use crate::store::refusals::Refusals;
use crate::store::writer::Writer;
use crate::trunk::bucket::{Bucket, Rate};
use crate::trunk::guard::Source;

/// Replies and answers that wait for the core. Each live call has one at most under way; full: their tasks wait.
const REPLIES_MAX: usize = 4_096;
/// Requests of the API that wait. Full: the API waits.
const REQUESTS_MAX: usize = 256;
/// Told to the agent of a session that no call needs any more.
const STRAY_REASON: &str = "error";
/// Lines about refused calls: more than a person reads, less than fills a disk in a night.
const REFUSAL_LINES_RATE: Rate = Rate { per_second: 50.0, burst: 500.0 };
/// A media connection waits for 2 s; the engine wants to be told before.
const CLAIM_WITHIN: Duration = Duration::from_millis(1_200);
/// How often the wall clock is read again and gauges are set.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What the core is asked to perform with.
pub struct Means {
    /// Towards the endpoint.
    pub verbs: mpsc::Sender<Verb>,
    /// Towards the engines, by their id.
    pub engines: Vec<EngineClient>,
    /// Keys and assistants.
    pub accounts: Accounts,
    /// Records of calls.
    pub writer: Writer,
    /// Where phones can be called.
    pub office: Office,
    /// Contexts of calls.
    pub contexts: Spool<Contexts>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is known of sources.
    pub guard: SharedGuard,
    /// Refusals without a record.
    pub refusals: Refusals,
    /// RTP ports of the engines.
    pub ports: Leases,
    /// Towards telephony providers.
    pub rest: RestClient,
    /// What they know us by.
    pub credentials: Credentials,
}

/// What comes in besides requests.
pub struct Sources {
    /// From the endpoint.
    pub events: mpsc::Receiver<SipEvent>,
    /// From the engines' event streams.
    pub news: mpsc::Receiver<(EngineId, News)>,
    /// Takes what is registration's.
    pub desk: Desk,
}

/// The live calls, for the API. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LiveCalls {
    requests: mpsc::Sender<Request>,
}

/// A bulk's id and those of its calls, in order.
pub type PlacedBulk = (Uuid, Vec<Uuid>);

#[derive(Debug)]
enum Request {
    List {
        tenant_id: Arc<str>,
        answer: oneshot::Sender<Vec<api::Call>>,
    },
    Get {
        tenant_id: Arc<str>,
        call_id: Uuid,
        answer: oneshot::Sender<Option<api::Call>>,
    },
    Knows {
        call_id: Uuid,
        answer: oneshot::Sender<bool>,
    },
    HangUp {
        tenant_id: Arc<str>,
        call_id: Uuid,
        answer: oneshot::Sender<bool>,
    },
    Place {
        order: Box<Order>,
        answer: oneshot::Sender<Option<Result<Uuid, PlaceError>>>,
    },
    PlaceBulk {
        orders: Vec<Order>,
        answer: oneshot::Sender<Option<Result<PlacedBulk, PlaceError>>>,
    },
    Bulk {
        tenant_id: Arc<str>,
        bulk_id: Uuid,
        cancel: bool,
        answer: oneshot::Sender<Option<api::BulkPhoneCall>>,
    },
    Hold {
        tenant_id: Arc<str>,
        call_id: Uuid,
        is_held: bool,
        answer: oneshot::Sender<Option<Asked>>,
    },
    Transfer {
        tenant_id: Arc<str>,
        call_id: Uuid,
        to: TransferTo,
        answer: oneshot::Sender<Option<Asked>>,
    },
    Join {
        tenant_id: Arc<str>,
        call_id: Uuid,
        guest: Guest,
        answer: oneshot::Sender<Option<Asked>>,
    },
    JoinCalls {
        tenant_id: Arc<str>,
        call_id: Uuid,
        other_id: Uuid,
        answer: oneshot::Sender<Option<Result<Asked, Uuid>>>,
    },
    MediaPlace {
        tenant_id: Arc<str>,
        answer: oneshot::Sender<Option<Result<MediaPlace, Ending>>>,
    },
    Expect {
        claim: Claim,
        context: Box<CallContext>,
    },
    Status {
        call_id: Uuid,
        event: Box<StatusEvent>,
        answer: oneshot::Sender<bool>,
    },
    TransferTo {
        call_id: Uuid,
        answer: oneshot::Sender<Option<(String, String)>>,
    },
    StreamNews {
        call_id: Uuid,
        failure: Option<String>,
    },
    EndAll {
        answer: oneshot::Sender<()>,
    },
}

impl LiveCalls {
    async fn ask<T: Default>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> T {
        let (answer, wait) = oneshot::channel();
        // Either end gone means that we go down: there are no live calls any more.
        if self.requests.send(request(answer)).await.is_err() {
            return T::default();
        }
        wait.await.unwrap_or_default()
    }

    /// A tenant's live calls, newest first.
    pub async fn list(&self, tenant_id: Arc<str>) -> Vec<api::Call> {
        self.ask(|answer| Request::List { tenant_id, answer }).await
    }

    /// A live call of this tenant.
    pub async fn get(&self, tenant_id: Arc<str>, call_id: Uuid) -> Option<api::Call> {
        self.ask(|answer| Request::Get { tenant_id, call_id, answer }).await
    }

    /// Whether this call is alive, whosever it is.
    pub async fn knows(&self, call_id: Uuid) -> bool {
        self.ask(|answer| Request::Knows { call_id, answer }).await
    }

    /// Ends a live call of this tenant; `false`: it has none of this id.
    pub async fn hang_up(&self, tenant_id: Arc<str>, call_id: Uuid) -> bool {
        self.ask(|answer| Request::HangUp { tenant_id, call_id, answer }).await
    }

    /// Queues a call.
    pub async fn place(&self, order: Order) -> Result<Uuid, PlaceError> {
        let order = Box::new(order);
        self.ask(|answer| Request::Place { order, answer }).await.unwrap_or(Err(PlaceError::Draining))
    }

    /// Queues many calls, or none.
    pub async fn place_bulk(&self, orders: Vec<Order>) -> Result<PlacedBulk, PlaceError> {
        self.ask(|answer| Request::PlaceBulk { orders, answer }).await.unwrap_or(Err(PlaceError::Draining))
    }

    /// How far a bulk of this tenant is; with `cancel` its queued calls end first.
    pub async fn bulk(&self, tenant_id: Arc<str>, bulk_id: Uuid, cancel: bool) -> Option<api::BulkPhoneCall> {
        self.ask(|answer| Request::Bulk { tenant_id, bulk_id, cancel, answer }).await
    }

    /// Puts the other side of a call on hold, or takes it back. `None`: this tenant has no such call.
    pub async fn hold(&self, tenant_id: Arc<str>, call_id: Uuid, is_held: bool) -> Option<Asked> {
        self.ask(|answer| Request::Hold { tenant_id, call_id, is_held, answer }).await
    }

    /// Hands the other side of a call on. `None`: this tenant has no such call.
    pub async fn transfer(&self, tenant_id: Arc<str>, call_id: Uuid, to: TransferTo) -> Option<Asked> {
        self.ask(|answer| Request::Transfer { tenant_id, call_id, to, answer }).await
    }

    /// Brings somebody into a call. `None`: this tenant has no such call.
    pub async fn join(&self, tenant_id: Arc<str>, call_id: Uuid, guest: Guest) -> Option<Asked> {
        self.ask(|answer| Request::Join { tenant_id, call_id, guest, answer }).await
    }

    /// Joins two calls. `Err`: this tenant has no such call.
    pub async fn join_calls(
        &self,
        tenant_id: Arc<str>,
        call_id: Uuid,
        other_id: Uuid,
    ) -> Result<Asked, Uuid> {
        let asked = self.ask(|answer| Request::JoinCalls { tenant_id, call_id, other_id, answer }).await;
        asked.unwrap_or(Err(call_id))
    }

    /// Where the media of one more call of this tenant's may go.
    ///
    /// # Errors
    /// There is no room for it.
    pub async fn media_place(&self, tenant_id: Arc<str>) -> Result<MediaPlace, Ending> {
        let place = self.ask(|answer| Request::MediaPlace { tenant_id, answer }).await;
        place.unwrap_or_else(|| Err(Ending::new(Cause::Draining)))
    }

    /// A provider has been told where to bring the media of this call: it is missed if it does not.
    pub async fn expect(&self, claim: Claim, context: CallContext) {
        let _ = self.requests.send(Request::Expect { claim, context: Box::new(context) }).await;
    }

    /// A provider's callback says something of a call. `false`: the call is not alive here.
    pub async fn status(&self, call_id: Uuid, event: StatusEvent) -> bool {
        let event = Box::new(event);
        self.ask(|answer| Request::Status { call_id, event, answer }).await
    }

    /// Whom a call's other side is being put through to, and our number.
    pub async fn transfer_to(&self, call_id: Uuid) -> Option<(String, String)> {
        self.ask(|answer| Request::TransferTo { call_id, answer }).await
    }

    /// A provider's callback says something of a call's media connection; if it failed, why.
    pub async fn stream_news(&self, call_id: Uuid, failure: Option<String>) {
        let _ = self.requests.send(Request::StreamNews { call_id, failure }).await;
    }

    /// Takes no more calls and ends those there are; resolves when all are over.
    pub async fn end_all(&self) {
        self.ask(|answer| Request::EndAll { answer }).await;
    }
}

/// Whose claim a connection presents. Before it is used up the connection has proved itself, and all of it is done in time for
/// an answer.
async fn claimed(
    store: &impl ContextStore,
    credentials: &Credentials,
    upgrade: &Upgrade,
    base: &str,
) -> Claimed {
    let asked = async {
        match store.peek(upgrade.claim).await {
            Ok(Some(context)) => {
                let now_s = store::epoch_ms() / 1_000;
                if let Err(why) = check_upgrade(credentials, &context, upgrade, base, now_s) {
                    return Claimed::Forged(Box::new(context), why);
                }
            }
            Ok(None) => return Claimed::Nobodys,
            Err(error) => return Claimed::Unknown(error.to_string()),
        }
        taken(store, upgrade).await
    };
    // What is not known by then may have been taken: whoever presents it again is refused.
    let late = |_| Claimed::Unknown("no answer in time".to_owned());
    tokio::time::timeout(CLAIM_WITHIN, asked).await.unwrap_or_else(late)
}

async fn taken(store: &impl ContextStore, upgrade: &Upgrade) -> Claimed {
    let taken = match store.take(upgrade.claim).await {
        Ok(Some(context)) => Ok(Claimed::Fresh(Box::new(context))),
        Ok(None) => store.retake(upgrade.claim).await.map(|context| match context {
            Some(context) => Claimed::Again(context.call_id),
            None => Claimed::Nobodys,
        }),
        Err(error) => Err(error),
    };
    // It may be taken now, and nobody will know by whom: whoever presents it again is refused.
    taken.unwrap_or_else(|error| Claimed::Unknown(error.to_string()))
}

enum Reply {
    Minted(Uuid, Result<(), String>),
    Errand(Uuid, Arc<ProviderCredential>, Outcome),
    Missed(Claim, Option<bool>),
    Claimed(EngineId, Box<Upgrade>, Claimed),
    Engine(Uuid, EngineReply),
    Stray(EngineId, Uuid, EngineReply),
    Found(Uuid, Credential, Result<Found, String>),
}

/// See the module.
pub struct Driver {
    calls: Calls,
    means: Means,
    sources: Sources,
    requests: mpsc::Receiver<Request>,
    replies: mpsc::Receiver<Reply>,
    replies_in: mpsc::Sender<Reply>,
    /// Who waits for the last call to be over.
    ending: Vec<oneshot::Sender<()>>,
    refusal_lines: Bucket,
    /// Refusals without a line since the last one that had one.
    unsaid: u64,
}

impl Driver {
    /// A driver and the handle of its live calls; nothing happens until it runs.
    pub fn new(calls: Calls, means: Means, sources: Sources) -> (Self, LiveCalls) {
        let (requests_in, requests) = mpsc::channel(REQUESTS_MAX);
        let (replies_in, replies) = mpsc::channel(REPLIES_MAX);
        let refusal_lines = Bucket::new(REFUSAL_LINES_RATE, Instant::now());
        let ending = Vec::new();
        let driver =
            Self { calls, means, sources, requests, replies, replies_in, ending, refusal_lines, unsaid: 0 };
        (driver, LiveCalls { requests: requests_in })
    }

    /// Runs until the endpoint's events end or nobody holds a [`LiveCalls`].
    pub async fn run(mut self) {
        let alarm = tokio::time::sleep(Duration::ZERO);
        let mut alarm = std::pin::pin!(alarm);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        loop {
            let deadline = self.calls.poll_timeout().map(tokio::time::Instant::from_std);
            if let Some(at) = deadline.filter(|at| *at != alarm.deadline()) {
                alarm.as_mut().reset(at);
            }
            tokio::select! {
                biased;
                () = alarm.as_mut(), if deadline.is_some() => self.calls.handle_timeout(Instant::now()),
                _ = housekeeping.tick() => self.keep_house(),
                Some(reply) = self.replies.recv() => self.handle_reply(reply),
                Some((engine, news)) = self.sources.news.recv() => {
                    if matches!(news, News::Upgrade(_)) {
                        self.look_at_store();
                    }
                    self.tell_ports(engine, &news);
                    self.calls.handle_news(engine, news, Instant::now());
                    self.means.metrics.set_engines(self.calls.engines_available());
                }
                request = self.requests.recv() => match request {
                    Some(request) => self.serve(request),
                    None => return,
                },
                event = self.sources.events.recv() => match event {
                    Some(event) => self.handle_sip(event).await,
                    None => return,
                },
            }
            self.perform_all().await;
        }
    }

    /// What leases of ports must know.
    fn tell_ports(&self, engine: EngineId, news: &News) {
        let ports = &self.means.ports;
        match news {
            News::Up { instance_id, sessions, addresses } => {
                let url = self.means.engines.get(engine.0).map(EngineClient::url).unwrap_or_default();
                ports.handle_up(engine, url, instance_id, addresses, sessions);
            }
            News::Heartbeat { sessions, draining } => ports.handle_heartbeat(engine, *sessions, *draining),
            News::Session { session_id, event: SessionEvent::Ended { .. } } => ports.release(*session_id),
            News::Down | News::Session { .. } | News::Upgrade(_) => {}
        }
    }

    async fn handle_sip(&mut self, event: SipEvent) {
        match self.sources.desk.take(event) {
            Taken::NotOurs(event) => {
                self.look_at_store();
                self.calls.handle_sip(event, Instant::now());
            }
            Taken::Ours => {}
            Taken::Full(request) => {
                drop(self.means.verbs.send(Verb::Reply(request, registration::driver::too_busy())).await);
            }
        }
    }

    /// Sends an INVITE to where the phone is that its Request-URI names: to all its contacts at once, the best first.
    async fn ring_phone(&mut self, token: Token, mut invite: Box<InviteRequest>, destination: Destination) {
        let user = invite.target.user().unwrap_or_default().into_owned();
        let found = self.means.office.locator.contacts(&user, store::epoch_ms()).await;
        let why = match found {
            Ok(contacts) if contacts.is_empty() => "no phone of this user is registered".to_owned(),
            Ok(contacts) => {
                invite.to = Some(NameAddr::new(invite.target.clone()));
                let mut branch = Some(token);
                for location in contacts.into_iter().take(FORKS_MAX) {
                    // The first goes by the INVITE's own name.
                    let Some(token) = branch.take().or_else(|| self.calls.fork(token, Instant::now())) else {
                        return;
                    };
                    let uri = location.next_hop().clone();
                    let destination =
                        Destination { uri, trunk: None, flow: location.flow, ..destination.clone() };
                    let (target, route) = (location.target, location.route);
                    let invite = Box::new(InviteRequest { target, route, ..(*invite).clone() });
                    drop(self.means.verbs.send(Verb::Invite(token, invite, destination)).await);
                }
                return;
            }
            Err(error) => error.to_string(),
        };
        let why = NotSent::Unresolved { host: user.into(), why: why.into() };
        self.calls.handle_sip(SipEvent::NotSent { token, why }, Instant::now());
    }

    /// Whether new calls can be taken is asked when one comes.
    fn look_at_store(&mut self) {
        self.calls.handle_store(self.means.writer.is_behind() || self.means.contexts.is_behind());
    }

    fn keep_house(&mut self) {
        self.calls.handle_clock(Instant::now(), store::epoch_ms());
        let metrics = &self.means.metrics;
        metrics.set_calls(&self.calls.count_by_state());
        metrics.set_engines(self.calls.engines_available());
        metrics.set_draining(self.calls.is_draining());
    }

    fn handle_reply(&mut self, reply: Reply) {
        let now = Instant::now();
        match reply {
            Reply::Minted(call_id, minted) => self.calls.handle_minted(call_id, minted, now),
            Reply::Errand(call_id, credential, outcome) => {
                self.calls.handle_errand(call_id, &credential, outcome, now);
            }
            Reply::Missed(claim, is_ours) => self.calls.handle_missed(claim, is_ours, now),
            Reply::Claimed(engine, upgrade, claimed) => {
                self.look_at_store();
                self.calls.handle_claimed(engine, *upgrade, claimed, now);
            }
            Reply::Engine(call_id, reply) => self.calls.handle_reply(call_id, reply, now),
            Reply::Stray(engine, session_id, reply) => self.calls.handle_stray(engine, session_id, &reply),
            Reply::Found(call_id, credential, found) => {
                self.calls.handle_found(call_id, &credential, found, now);
            }
        }
    }

    fn serve(&mut self, request: Request) {
        // An asker that has gone away gets no answer.
        match request {
            Request::List { tenant_id, answer } => {
                let _ = answer.send(self.calls.list(&tenant_id));
            }
            Request::Get { tenant_id, call_id, answer } => {
                let _ = answer.send(self.calls.get(&tenant_id, call_id));
            }
            Request::Knows { call_id, answer } => {
                let _ = answer.send(self.calls.knows(call_id));
            }
            Request::HangUp { tenant_id, call_id, answer } => {
                let _ = answer.send(self.calls.hang_up(&tenant_id, call_id, Instant::now()));
            }
            Request::Place { order, answer } => {
                self.look_at_store();
                let _ = answer.send(Some(self.calls.place(*order, Instant::now())));
            }
            Request::PlaceBulk { orders, answer } => {
                self.look_at_store();
                let _ = answer.send(Some(self.calls.place_bulk(orders, Instant::now())));
            }
            Request::Bulk { tenant_id, bulk_id, cancel, answer } => {
                let _ = answer.send(match cancel {
                    true => self.calls.cancel_bulk(&tenant_id, bulk_id, Instant::now()),
                    false => self.calls.bulk(&tenant_id, bulk_id),
                });
            }
            Request::Hold { tenant_id, call_id, is_held, answer } => {
                let _ = answer.send(self.calls.hold(&tenant_id, call_id, is_held, Instant::now()));
            }
            Request::Transfer { tenant_id, call_id, to, answer } => {
                let _ = answer.send(self.calls.transfer(&tenant_id, call_id, to, Instant::now()));
            }
            Request::Join { tenant_id, call_id, guest, answer } => {
                let _ = answer.send(self.calls.join(&tenant_id, call_id, &guest, Instant::now()));
            }
            Request::JoinCalls { tenant_id, call_id, other_id, answer } => {
                let asked = self.calls.join_calls(&tenant_id, call_id, other_id, Instant::now());
                let _ = answer.send(Some(asked));
            }
            Request::MediaPlace { tenant_id, answer } => {
                self.look_at_store();
                let _ = answer.send(Some(self.calls.find_media_place(&tenant_id)));
            }
            Request::Expect { claim, context } => {
                self.calls.expect_media(claim, *context, Instant::now());
            }
            Request::Status { call_id, event, answer } => {
                let _ = answer.send(self.calls.handle_status(call_id, *event, Instant::now()));
            }
            Request::TransferTo { call_id, answer } => {
                let _ = answer.send(self.calls.transfer_to(call_id));
            }
            Request::StreamNews { call_id, failure } => {
                self.calls.handle_stream_news(call_id, failure.as_deref(), Instant::now());
            }
            Request::EndAll { answer } => {
                self.calls.end_all(Instant::now());
                self.means.metrics.set_draining(true);
                self.ending.push(answer);
            }
        }
    }

    async fn perform_all(&mut self) {
        while let Some(action) = self.calls.poll_action() {
            self.perform(action).await;
        }
        if self.calls.is_empty() {
            for answer in self.ending.drain(..) {
                let _ = answer.send(());
            }
        }
    }

    /// Asks the store whose claim that is, if anybody's.
    fn claim(&self, engine: EngineId, upgrade: Box<Upgrade>, base: String) {
        let (store, replies) = (self.means.contexts.store().clone(), self.replies_in.clone());
        let credentials = self.means.credentials.clone();
        tokio::spawn(async move {
            let claimed = claimed(&*store, &credentials, &upgrade, &base).await;
            drop(replies.send(Reply::Claimed(engine, upgrade, claimed)).await);
        });
    }

    async fn perform(&mut self, action: Action) {
        match action {
            // The endpoint always takes verbs; if it is gone, so are its calls.
            Action::Sip(Verb::Invite(token, invite, destination))
                if destination.trunk.as_deref() == Some(PHONES) =>
            {
                self.ring_phone(token, invite, destination).await;
            }
            Action::Sip(verb) => drop(self.means.verbs.send(verb).await),
            Action::Engine { engine, call_id, command } => {
                let Some(client) = self.means.engines.get(engine.0).cloned() else { return };
                let replies = self.replies_in.clone();
                let ports = self.means.ports.clone();
                tokio::spawn(async move {
                    let reply = ports.perform(&client, call_id, command).await;
                    drop(replies.send(Reply::Engine(call_id, reply)).await);
                });
            }
            Action::CloseStray { engine, session_id } => {
                let Some(client) = self.means.engines.get(engine.0).cloned() else { return };
                tracing::info!(engine = engine.0, %session_id, "a session that no call needs is closed");
                let (replies, ports) = (self.replies_in.clone(), self.means.ports.clone());
                tokio::spawn(async move {
                    let command = EngineCommand::Close { reason: STRAY_REASON };
                    let reply = ports.perform(&client, session_id, command).await;
                    drop(replies.send(Reply::Stray(engine, session_id, reply)).await);
                });
            }
            Action::Lookup { call_id, credential } => {
                let cached = self.means.accounts.look_up_cached(&credential);
                if let Some(found) = cached {
                    return self.calls.handle_found(call_id, &credential, Ok(found), Instant::now());
                }
                let (accounts, replies) = (self.means.accounts.clone(), self.replies_in.clone());
                tokio::spawn(async move {
                    let found = accounts.look_up(&credential).await;
                    let found = found.map_err(|error| error.to_string());
                    drop(replies.send(Reply::Found(call_id, credential, found)).await);
                });
            }
            Action::Claim { engine, upgrade, base } => self.claim(engine, upgrade, base),
            Action::Mint { context, mint } => {
                let (contexts, replies) = (self.means.contexts.clone(), self.replies_in.clone());
                tokio::spawn(async move {
                    let call_id = context.call_id;
                    let minted = contexts.mint(*context, mint).await.map_err(|error| error.to_string());
                    drop(replies.send(Reply::Minted(call_id, minted)).await);
                });
            }
            Action::Errand { call_id, credential, errand } => {
                let (rest, replies) = (self.means.rest.clone(), self.replies_in.clone());
                tokio::spawn(async move {
                    let outcome = rest.run(&*credential.account, &errand).await;
                    drop(replies.send(Reply::Errand(call_id, credential, outcome)).await);
                });
            }
            Action::Missed(claim) => {
                let (store, replies) = (self.means.contexts.store().clone(), self.replies_in.clone());
                tokio::spawn(async move {
                    let is_ours = store.take(claim).await.map(|taken| taken.is_some()).ok();
                    drop(replies.send(Reply::Missed(claim, is_ours)).await);
                });
            }
            Action::Dropped(claim) => {
                let store = self.means.contexts.store().clone();
                tokio::spawn(async move {
                    if let Err(error) = store.dropped(claim).await {
                        tracing::warn!(%error, "a dropped connection cannot come back elsewhere");
                    }
                });
            }
            Action::AnswerUpgrade { engine, upgrade_id, answer } => {
                let Some(client) = self.means.engines.get(engine.0).cloned() else { return };
                tokio::spawn(async move { client.answer_upgrade(upgrade_id, answer).await });
            }
            Action::Remember(context) => self.means.contexts.put(*context),
            Action::Forget(call_id) => self.means.contexts.finish(call_id),
            Action::Record(record) => self.means.writer.put(*record),
            Action::Refused(refusal) => self.report_refusal(*refusal),
            Action::Admitted(source, trunk) => {
                self.means.guard.admitted(source.ip(), Instant::now());
                if let Some(trunk) = trunk {
                    self.means.metrics.count_trunk(&trunk, TrunkCall::Accepted);
                }
            }
            Action::Changed(change) => self.report_change(&change),
        }
    }

    /// The one line of a refused call. In a flood most have none, and the next that has one says how many.
    fn report_refusal(&mut self, refusal: Refusal) {
        let Refusal { call_id, tenant_id, trunk, source, step, ending, .. } = &refusal;
        let row = ending.cause.row();
        if let Some(failure) = ending.cause.failure() {
            let source = Source { ip: source.ip(), peer: None };
            self.means.guard.refused(source, failure, Instant::now());
        }
        if let Some(trunk) = trunk.as_ref().filter(|_| !refusal.was_admitted()) {
            self.means.metrics.count_trunk(trunk, TrunkCall::Refused);
        }
        if self.refusal_lines.take(REFUSAL_LINES_RATE, Instant::now()) {
            let unsaid = std::mem::take(&mut self.unsaid);
            tracing::warn!(
                %call_id,
                tenant_id = tenant_id.as_deref().unwrap_or_default(),
                trunk = trunk.as_deref().unwrap_or_default(),
                %source,
                step = %step.step,
                rule = %step.rule,
                field = %step.field,
                expected = %step.expected,
                got = %step.got,
                sip_status = row.sip_status,
                reason = row.word,
                unsaid,
                "call refused"
            );
        } else {
            self.unsaid += 1;
        }
        self.means.metrics.count_refusal(row.word, &step.rule);
        if !refusal.is_recorded {
            self.means.refusals.put(refusal, store::epoch_ms());
        }
    }

    fn report_change(&self, change: &Change) {
        let metrics = &self.means.metrics;
        if let Some(setup) = change.setup {
            metrics.count_setup(setup);
        }
        let Change { call_id, to, ending, .. } = change;
        let Some(ending) = ending else {
            tracing::info!(%call_id, state = to.word(), "call");
            return;
        };
        let row = ending.cause.row();
        if to.is_terminal() {
            metrics.count_outcome(to.word(), row.word);
            tracing::info!(%call_id, state = to.word(), reason = row.word, party = row.party.word(), "call");
        } else {
            let detail = ending.detail.as_str();
            tracing::info!(%call_id, state = to.word(), reason = row.word, detail, "call");
        }
    }
}
