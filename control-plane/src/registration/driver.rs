//! The task that runs the registrar, the registrants and the health checks: it brings what happens in, performs what they
//! ask, and decides nothing.
//!
//! ```text
//!   news (desk.rs) ─┐                                            ┌─▶ SIP verbs: REGISTER, OPTIONS, answers to phones
//!   leases ─────────┼─▶ Gate, Registrar · Registrant · Monitor ──┼─▶ the lease in the context store (a task each)
//!   requests (API) ─┘                                            └─▶ board: API and metrics; a log line for a change
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_sip::digest::{Algorithm, Challenger};
use tandem_sip::endpoint::OwnContact;
use tandem_sip::{
    CallHandle, ConnectionId, Event, Flow, InviteRequest, Method, NameAddr, OutgoingRequest, Reply, Request,
    RequestHandle, Response, Uri,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::auth::Gate;
use super::binding::Lifetimes;
use super::board::{Board, RegistrationStatus, TrunkStatus};
use super::desk::{self, Desk, News};
use super::registrant::{self, Action, LEASE_TTL, Register, Registrant};
use super::registrar::{Locator, Registrar};
use super::store::EmbeddedBindings;
use crate::sip::guard::SharedGuard;
use crate::sip::{Destination, Token, Verb};
use crate::store;
use crate::store::contexts::{ContextStore, Contexts, Owner};
use crate::trunk::guard::{Failure, Source};
use crate::trunk::health::{self, Monitor};
use crate::trunk::{Trunk, Trunks};

/// Requests of the API that wait. Full: the API waits.
const REQUESTS_MAX: usize = 64;
/// Answers of the store that wait; each registrant has one question at most under way.
const LEASES_MAX: usize = 1_024;
/// Trunks begin one after the other, so that a node with many does not send all at once.
const START_SPACING: Duration = Duration::from_millis(20);
/// How often the phones are counted.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// All registrants have unregistered by then, or it is given up.
pub const STOP_MAX: Duration = Duration::from_secs(3);

/// What the task performs with.
pub struct Means {
    /// Towards the endpoint.
    pub verbs: mpsc::Sender<Verb>,
    /// Trunks and phones.
    pub trunks: Trunks,
    /// Leases.
    pub contexts: Arc<Contexts>,
    /// Of the phones' digest.
    pub realm: String,
    /// Its hashes, the preferred one first.
    pub digest: Vec<Algorithm>,
    /// Of its nonces: random.
    pub nonce_secret: [u8; 32],
    /// Is told who registers and who guesses.
    pub guard: SharedGuard,
    /// Of spreads.
    pub seed: u64,
}

/// The running task, seen from the rest.
#[derive(Debug)]
pub struct Registration {
    /// Where call handling lays down what is not its own.
    pub desk: Desk,
    /// For those who ask and those who call users.
    pub office: Office,
    /// It ends when the desk is gone.
    pub task: JoinHandle<()>,
}

/// What others may ask. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Office {
    /// Trunks and phones.
    pub trunks: Trunks,
    /// How they stand.
    pub board: Board,
    /// Where users can be called.
    pub locator: Locator<EmbeddedBindings>,
    requests: mpsc::Sender<Ask>,
}

/// What happens in a call that is made by [`Office::call`].
#[derive(Debug)]
pub enum CallNews {
    /// It has left; again, when it went to the next target.
    Placed(CallHandle),
    /// An event of it; after `Ended` nothing comes.
    Event(Event),
    /// It has not left, and why.
    NotSent(String),
}

#[derive(Debug)]
enum Ask {
    Send {
        request: Box<OutgoingRequest>,
        destination: Destination,
        answer: oneshot::Sender<Result<Box<Response>, String>>,
    },
    Call {
        invite: Box<InviteRequest>,
        destination: Destination,
        news: mpsc::Sender<CallNews>,
    },
    Verb(Verb),
    Stop {
        done: oneshot::Sender<()>,
    },
}

impl Office {
    /// Sends a request outside a dialog and waits for its final response.
    ///
    /// # Errors
    /// A sentence: why there is no response.
    pub async fn send(
        &self,
        request: OutgoingRequest,
        destination: Destination,
    ) -> Result<Box<Response>, String> {
        let (answer, wait) = oneshot::channel();
        let ask = Ask::Send { request: Box::new(request), destination, answer };
        let gone = || "the service is going down".to_owned();
        self.requests.send(ask).await.map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?
    }

    /// Places a call that call handling does not see: for checks. What does not fit into `news` is dropped.
    pub async fn call(&self, invite: InviteRequest, destination: Destination, news: mpsc::Sender<CallNews>) {
        // The task gone means that we go down: the sender of news is dropped, and the check sees it.
        let _ = self.requests.send(Ask::Call { invite: Box::new(invite), destination, news }).await;
    }

    /// A verb in such a call.
    pub async fn verb(&self, verb: Verb) {
        let _ = self.requests.send(Ask::Verb(verb)).await;
    }

    /// Unregisters everywhere; resolves when that is done, after [`STOP_MAX`] at the latest.
    pub async fn stop(&self) {
        let (done, wait) = oneshot::channel();
        if self.requests.send(Ask::Stop { done }).await.is_ok() {
            let _ = tokio::time::timeout(STOP_MAX, wait).await;
        }
    }
}

/// One trunk, and what we do about it.
struct Line {
    trunk: Arc<Trunk>,
    registrant: Option<Registrant>,
    monitor: Option<Monitor>,
    /// The last REGISTER: outcomes of earlier ones are of no interest.
    register: Option<Token>,
    /// The last OPTIONS.
    ping: Option<Token>,
}

/// Who waits for a request of ours.
enum Waiter {
    Register(usize),
    Ping(usize),
    Asker(oneshot::Sender<Result<Box<Response>, String>>),
}

struct Driver {
    means: Means,
    owner: Owner,
    gate: Gate,
    registrar: Registrar<EmbeddedBindings>,
    lines: Vec<Line>,
    board: Board,
    locator: Locator<EmbeddedBindings>,
    waiters: HashMap<Token, Waiter>,
    calls: HashMap<Token, mpsc::Sender<CallNews>>,
    leases: mpsc::Sender<(usize, Option<bool>)>,
    stopping: Vec<oneshot::Sender<()>>,
}

/// Starts the task.
pub fn start(means: Means) -> Registration {
    let (desk, news) = Desk::new();
    let (requests, requests_in) = mpsc::channel(REQUESTS_MAX);
    let (leases, leases_in) = mpsc::channel(LEASES_MAX);
    let registrar = Registrar::new(Arc::default(), Lifetimes::default());
    let (board, locator) = (Board::default(), registrar.locator());
    let office =
        Office { trunks: means.trunks.clone(), board: board.clone(), locator: locator.clone(), requests };
    let challenger = Challenger::new(&means.realm, &means.nonce_secret).algorithms(&means.digest);
    let now = Instant::now();
    let lines =
        means.trunks.iter().enumerate().map(|(index, trunk)| Line::new(index, trunk, means.seed, now));
    let driver = Driver {
        owner: Owner(Uuid::new_v4()),
        gate: Gate::new(challenger, means.trunks.clone()),
        registrar,
        lines: lines.collect(),
        board,
        locator,
        waiters: HashMap::new(),
        calls: HashMap::new(),
        leases,
        stopping: Vec::new(),
        means,
    };
    let task = tokio::spawn(driver.run(news, requests_in, leases_in));
    Registration { desk, office, task }
}

impl Line {
    fn new(index: usize, trunk: &Arc<Trunk>, seed: u64, now: Instant) -> Self {
        let start_at = now + START_SPACING * u32::try_from(index).unwrap_or(u32::MAX);
        let seed = seed.wrapping_add(index as u64);
        let (registration, health) = (&trunk.registration, &trunk.health);
        let registrant = registration.is_wanted.then(|| {
            Registrant::new(registrant::Settings {
                expires_s: u32::try_from(registration.expires.as_secs()).unwrap_or(u32::MAX),
                call_id: Uuid::new_v4().simple().to_string().into(),
                seed,
                start_at,
            })
        });
        // A trunk that only calls us has no address to ask.
        let is_asked = health.is_wanted && trunk.credential.next_hop().is_some();
        let monitor = is_asked.then(|| {
            Monitor::new(health::Settings {
                interval: health.interval,
                failures_max: health.failures_max,
                seed,
                start_at,
            })
        });
        Self { trunk: trunk.clone(), registrant, monitor, register: None, ping: None }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let registrant = self.registrant.as_ref().and_then(Registrant::poll_timeout);
        let monitor = self.monitor.as_ref().map(Monitor::poll_timeout);
        [registrant, monitor].into_iter().flatten().min()
    }

    fn status(&self, now: Instant, now_ms: i64) -> TrunkStatus {
        let epoch =
            |at: Option<Instant>| at.map_or(0, |at| now_ms + millis(at.saturating_duration_since(now)));
        let registration = self.registrant.as_ref().map(|registrant| {
            let status = registrant.status(now);
            RegistrationStatus {
                state: status.state,
                detail: status.detail,
                sip_status: status.sip_status,
                next_ms: epoch(status.next_at),
                registered_until_ms: epoch(status.registered_until),
            }
        });
        let monitor = self.monitor.as_ref();
        TrunkStatus {
            health: monitor.map_or(health::State::Unknown, Monitor::state),
            health_detail: monitor.map(|monitor| monitor.detail().to_owned()).unwrap_or_default(),
            rtt: monitor.and_then(Monitor::rtt),
            since_ms: now_ms,
            registration,
        }
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl Driver {
    async fn run(
        mut self,
        mut news: mpsc::Receiver<News>,
        mut requests: mpsc::Receiver<Ask>,
        mut leases: mpsc::Receiver<(usize, Option<bool>)>,
    ) {
        for index in 0..self.lines.len() {
            self.show(index);
        }
        let alarm = tokio::time::sleep(Duration::ZERO);
        let mut alarm = std::pin::pin!(alarm);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        loop {
            let deadline = self.lines.iter().filter_map(Line::poll_timeout).min();
            let deadline = deadline.map(tokio::time::Instant::from_std);
            if let Some(at) = deadline.filter(|at| *at != alarm.deadline()) {
                alarm.as_mut().reset(at);
            }
            tokio::select! {
                biased;
                () = alarm.as_mut(), if deadline.is_some() => self.run_due().await,
                _ = housekeeping.tick() => self.keep_house().await,
                Some((index, got)) = leases.recv() => {
                    let line = self.lines.get_mut(index).and_then(|line| line.registrant.as_mut());
                    if let Some(registrant) = line {
                        registrant.handle_lease(got, Instant::now());
                    }
                    self.perform(index).await;
                }
                Some(ask) = requests.recv() => self.serve(ask).await,
                told = news.recv() => match told {
                    Some(told) => self.handle(told).await,
                    None => return,
                },
            }
            if self.lines.iter().all(|line| line.registrant.as_ref().is_none_or(Registrant::is_gone)) {
                for done in self.stopping.drain(..) {
                    let _ = done.send(());
                }
            }
        }
    }

    async fn run_due(&mut self) {
        let now = Instant::now();
        for index in 0..self.lines.len() {
            let Some(line) = self.lines.get_mut(index) else { continue };
            if line.poll_timeout().is_none_or(|at| at > now) {
                continue;
            }
            if let Some(registrant) = &mut line.registrant {
                registrant.handle_timeout(now);
            }
            if let Some(monitor) = &mut line.monitor {
                monitor.handle_timeout(now);
            }
            self.perform(index).await;
        }
    }

    async fn keep_house(&mut self) {
        match self.locator.count().await {
            Ok((users, contacts)) => self.board.set_phones(users, contacts),
            Err(error) => tracing::warn!(%error, "the registered phones cannot be counted"),
        }
    }

    async fn serve(&mut self, ask: Ask) {
        match ask {
            Ask::Send { request, destination, answer } => {
                let token = desk::token();
                self.waiters.insert(token, Waiter::Asker(answer));
                self.verb(Verb::Request(token, request, destination)).await;
            }
            Ask::Call { invite, destination, news } => {
                let token = desk::token();
                self.calls.insert(token, news);
                self.verb(Verb::Invite(token, invite, destination)).await;
            }
            Ask::Verb(verb) => self.verb(verb).await,
            Ask::Stop { done } => {
                self.stopping.push(done);
                for index in 0..self.lines.len() {
                    if let Some(registrant) =
                        self.lines.get_mut(index).and_then(|line| line.registrant.as_mut())
                    {
                        registrant.stop(Instant::now());
                        self.perform(index).await;
                    }
                }
            }
        }
    }

    async fn handle(&mut self, news: News) {
        match news {
            News::Register { handle, request, flow } => self.handle_register(handle, &request, flow).await,
            News::Response { token, result } => {
                let result = result.map_err(|why| why.to_string());
                self.handle_outcome(token, result).await;
            }
            News::NotSent { token, why } => {
                if let Some(news) = self.calls.remove(&token) {
                    let _ = news.try_send(CallNews::NotSent(why.to_string()));
                }
                self.handle_outcome(token, Err(why.to_string())).await;
            }
            News::FlowLost { token } => {
                let lost = self.lines.iter().position(|line| line.register == Some(token));
                if let Some(index) = lost {
                    if let Some(registrant) =
                        self.lines.get_mut(index).and_then(|line| line.registrant.as_mut())
                    {
                        registrant.handle_flow_lost(Instant::now());
                    }
                    self.perform(index).await;
                }
            }
            News::Closed(connection) => self.handle_closed(connection).await,
            News::Placed { token, call } => {
                if let Some(news) = self.calls.get(&token) {
                    let _ = news.try_send(CallNews::Placed(call));
                }
            }
            News::Call { token, event } => {
                let is_over = matches!(event, Event::Ended { .. });
                if let Some(news) = self.calls.get(&token) {
                    let _ = news.try_send(CallNews::Event(event));
                }
                if is_over {
                    self.calls.remove(&token);
                }
            }
        }
    }

    async fn handle_register(&mut self, handle: RequestHandle, request: &Request, flow: Flow) {
        let now_ms = store::epoch_ms();
        let now_s = u64::try_from(now_ms / 1_000).unwrap_or_default();
        let (reply, word) = match self.gate.admit(request, flow.remote.ip(), now_s) {
            Ok(phone) => {
                self.means.guard.admitted(flow.remote.ip(), Instant::now());
                let user = &phone.user;
                let done = self.registrar.register(user, phone.contacts_max, request, flow, now_ms).await;
                if let Some(contacts) = done.changed {
                    tracing::info!(%user, contacts, source = %flow.remote, "contacts of a phone");
                }
                (done.reply, done.word)
            }
            Err(refused) => {
                if refused.is_guess {
                    let source = Source { ip: flow.remote.ip(), peer: None };
                    self.means.guard.refused(source, Failure::Wrong, Instant::now());
                    tracing::warn!(source = %flow.remote, reason = refused.word, "REGISTER refused");
                }
                (refused.reply, refused.word)
            }
        };
        self.board.count_register(word);
        self.verb(Verb::Reply(handle, reply)).await;
    }

    async fn handle_closed(&mut self, connection: ConnectionId) {
        match self.registrar.handle_closed(connection).await {
            Ok(losers) => {
                for user in losers {
                    tracing::info!(%user, "contact of a phone gone with its connection");
                }
            }
            Err(error) => tracing::warn!(%error, "contacts of a closed connection stay until they expire"),
        }
    }

    /// A request of ours is over.
    async fn handle_outcome(&mut self, token: Token, result: Result<Box<Response>, String>) {
        let now = Instant::now();
        let index = match self.waiters.remove(&token) {
            Some(Waiter::Asker(answer)) => return drop(answer.send(result)),
            Some(Waiter::Register(index) | Waiter::Ping(index)) => index,
            None => return,
        };
        let Some(line) = self.lines.get_mut(index) else { return };
        match (&mut line.registrant, &mut line.monitor) {
            (Some(registrant), _) if line.register == Some(token) => match result {
                Ok(response) => registrant.handle_response(&response, now),
                Err(why) => registrant.handle_failure(&why, now),
            },
            (_, Some(monitor)) if line.ping == Some(token) => match result {
                Ok(response) => monitor.handle_response(response.status, now),
                Err(why) => monitor.handle_failure(&why, now),
            },
            _ => {}
        }
        self.perform(index).await;
    }

    /// Does what a line's machines want, and shows how it stands.
    async fn perform(&mut self, index: usize) {
        while let Some(action) =
            self.lines.get_mut(index).and_then(|line| line.registrant.as_mut()?.poll_action())
        {
            match action {
                Action::Register(register) => self.register(index, &register).await,
                Action::Acquire => self.lease(index, Lease::Acquire),
                Action::Renew => self.lease(index, Lease::Renew),
                Action::Release => self.lease(index, Lease::Release),
            }
        }
        let wants_ping = self
            .lines
            .get_mut(index)
            .is_some_and(|line| line.monitor.as_mut().is_some_and(Monitor::poll_ping));
        if wants_ping {
            self.ping(index).await;
        }
        self.show(index);
    }

    async fn register(&mut self, index: usize, register: &Register) {
        let Some(line) = self.lines.get_mut(index) else { return };
        let token = desk::token();
        if let Some(earlier) = line.register.replace(token) {
            self.waiters.remove(&earlier);
        }
        match register_request(&line.trunk, register) {
            Some((request, destination)) => {
                self.waiters.insert(token, Waiter::Register(index));
                self.verb(Verb::Request(token, Box::new(request), destination)).await;
            }
            // The configuration refuses such a trunk.
            None => {
                if let Some(registrant) = &mut line.registrant {
                    registrant
                        .handle_failure("the trunk has no sip_uri, or no user to register", Instant::now());
                }
            }
        }
    }

    async fn ping(&mut self, index: usize) {
        let Some(line) = self.lines.get_mut(index) else { return };
        let token = desk::token();
        if let Some(earlier) = line.ping.replace(token) {
            self.waiters.remove(&earlier);
        }
        let Some((request, destination)) = options_request(&line.trunk) else { return };
        self.waiters.insert(token, Waiter::Ping(index));
        self.verb(Verb::Request(token, Box::new(request), destination)).await;
    }

    fn lease(&self, index: usize, what: Lease) {
        let Some(line) = self.lines.get(index) else { return };
        let name = format!("registrant:{}", line.trunk.name);
        let (contexts, owner, leases) = (self.means.contexts.clone(), self.owner, self.leases.clone());
        tokio::spawn(async move {
            let got = match what {
                Lease::Acquire => contexts.acquire(&name, owner, LEASE_TTL).await,
                Lease::Renew => contexts.renew(&name, owner, LEASE_TTL).await,
                Lease::Release => {
                    // A lease that stays ends by itself.
                    let _ = contexts.release(&name, owner).await;
                    return;
                }
            };
            let got = got.inspect_err(|error| tracing::warn!(%error, lease = name, "lease unknown")).ok();
            let _ = leases.send((index, got)).await;
        });
    }

    async fn verb(&self, verb: Verb) {
        // The endpoint always takes verbs; if it is gone, so are its requests.
        let _ = self.means.verbs.send(verb).await;
    }

    /// Writes a line's status to the board, and a log line when it has changed.
    fn show(&self, index: usize) {
        let Some(line) = self.lines.get(index) else { return };
        let mut status = line.status(Instant::now(), store::epoch_ms());
        let before = self.board.trunk(&line.trunk.name);
        if before.health == status.health && before.since_ms != 0 {
            status.since_ms = before.since_ms;
        }
        log_change(&line.trunk.name, &before, &status);
        self.board.set_trunk(&line.trunk.name, status);
    }
}

enum Lease {
    Acquire,
    Renew,
    Release,
}

fn log_change(trunk: &str, before: &TrunkStatus, now: &TrunkStatus) {
    if before.health != now.health {
        let (state, detail) = (now.health.word(), now.health_detail.as_str());
        let rtt_ms = now.rtt.map(millis).unwrap_or_default();
        match now.health {
            health::State::Up => tracing::info!(trunk, state, rtt_ms, "trunk health"),
            _ => tracing::warn!(trunk, state, detail, "trunk health"),
        }
    }
    let Some(registration) = &now.registration else { return };
    let known = before.registration.as_ref();
    if known.is_some_and(|known| known.state == registration.state && known.detail == registration.detail) {
        return;
    }
    let (state, detail) = (registration.state.word(), registration.detail.as_str());
    match registration.state {
        registrant::State::Unreachable | registrant::State::Refused => {
            tracing::warn!(trunk, state, detail, "registration");
        }
        _ => tracing::info!(trunk, state, detail, "registration"),
    }
}

// --- messages ---

/// Where requests to a trunk go.
pub(crate) fn destination(trunk: &Trunk) -> Option<Destination> {
    let uri = trunk.credential.next_hop()?;
    Some(Destination { uri, transport: None, trunk: Some(trunk.name.clone()), flow: None })
}

/// A request to a trunk with what all of them have in common.
pub(crate) fn request(trunk: &Trunk, method: Method, target: Uri, from: NameAddr) -> OutgoingRequest {
    let credential = &trunk.credential;
    let mut request = OutgoingRequest::new(method, target, from, Flow::UNRESOLVED);
    request.credentials = credential.digest();
    request.advertised_host = trunk.addresses.advertised_host.as_deref().map(Into::into);
    for (name, value) in &credential.sip_headers {
        // The configuration refuses what cannot stand in a header.
        let _ = request.headers.push(name, value);
    }
    request
}

/// Our account at the trunk, or at least its host: for From of requests that are nobody's.
pub(crate) fn account(trunk: &Trunk) -> Option<Uri> {
    trunk.credential.address_of_record().or_else(|| trunk.credential.next_hop())
}

/// User of our Contact towards a trunk.
pub(crate) fn contact_user(trunk: &Trunk) -> String {
    trunk.registration.contact_user.clone().or_else(|| trunk.credential.user()).unwrap_or_default()
}

/// A REGISTER (RFC 3261 §10.2): the Request-URI is the domain, From and To our address of record there.
pub(crate) fn register_request(trunk: &Trunk, register: &Register) -> Option<(OutgoingRequest, Destination)> {
    let mut request = query_request(trunk)?;
    request.contact =
        Some(OwnContact { user: contact_user(trunk), params: format!(";expires={}", register.expires_s) });
    let _ = request.headers.push("Expires", &register.expires_s.to_string());
    request.call_id = Some(register.call_id.to_string());
    request.cseq = register.cseq;
    Some((request, destination(trunk)?))
}

/// A REGISTER without a Contact: it changes nothing and asks what is bound.
pub(crate) fn query_request(trunk: &Trunk) -> Option<OutgoingRequest> {
    let address = NameAddr::new(trunk.credential.address_of_record()?);
    let registrar = Uri::parse(&format!("sip:{}", trunk.credential.domain()?)).ok()?;
    let mut request = request(trunk, Method::Register, registrar, address.clone());
    request.to = Some(address);
    Some(request)
}

/// An OPTIONS to the trunk itself.
pub(crate) fn options_request(trunk: &Trunk) -> Option<(OutgoingRequest, Destination)> {
    let destination = destination(trunk)?;
    let from = NameAddr::new(account(trunk)?);
    let mut request = request(trunk, Method::Options, destination.uri.clone(), from);
    request.contact = Some(OwnContact { user: contact_user(trunk), params: String::new() });
    Some((request, destination))
}

/// For a REGISTER that cannot be handed to the task.
pub fn too_busy() -> Reply {
    Reply::new(503).retry_after_s(tandem_sip::endpoint::RETRY_AFTER_FULL_S)
}
