//! The door to the crate: one SIP user agent.
//!
//! ```text
//!   bytes ─▶ parse ─▶ transaction known? ──yes─▶ its machine ──▶ the call it belongs to ──▶ Event
//!                         │ no                                        ▲
//!                         └─▶ door.rs ─▶ uas.rs: checks ─▶ new transaction
//!   verbs ─▶ uas.rs (respond, reply) · uac.rs (invite, cancel, ack, request) · in_call.rs (bye, reinvite …)
//!   clock ─▶ ledger.rs: one queue of deadlines
//! ```
//!
//! The first lines of a call's life are in `uas.rs` or `uac.rs`, the rest in `in_call.rs`. What a request may not be is in
//! `checks.rs`. Extensions have a file each: `session.rs` (timers), `reliable.rs` (PRACK), `refer.rs` (transfer),
//! `replaces.rs`, `auth.rs` (our answers to challenges). Names are resolved by the shell; who may call is the user's to say.

mod auth;
mod call;
mod carried;
mod checks;
mod config;
mod door;
mod event;
mod in_call;
mod ledger;
mod refer;
mod refusal;
mod reliable;
mod replaces;
mod reply;
mod session;
mod stream;
mod uac;
mod uas;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

pub use auth::SENT_AGAIN_MAX;
pub use config::{
    CallError, Counters, EndpointConfig, IDLE_MAX, InviteRequest, MAX_CALLS, MAX_CONNECTIONS, MAX_QUEUED,
    MAX_TRANSACTIONS, MIN_SE_S, OutgoingRequest, OwnContact, PARTIAL_MAX, RESERVED_PART, RETRY_AFTER_FULL_S,
    Reliability, SessionTimer, Sizes,
};

pub use door::{Door, Knock};
pub use event::{CallHandle, EndReason, Event, NoResponse, RequestHandle};
pub use refer::REFER_LIFE;
pub use refusal::{MAX_DETAIL_LEN, MAX_REFUSALS_QUEUED};
pub use reliable::{MAX_EARLY_DIALOGS, MAX_PROVISIONALS_WAITING};

use call::{Call, Exchange, OwnAddress};
use carried::CarriedBy;
use ledger::{Extras, Transaction, Wake};
use refusal::Refusal;
use stream::Stream;

use crate::dialog::Dialog;
use crate::flow::{ConnectionId, Flow, Transmit, Transport};
use crate::message::{Message, Method, Reply};
use crate::parse::{ParseError, parse, salvage};
use crate::random::Random;
use crate::table::{Id, Table};
use crate::transaction::Machine;
use crate::transaction::key::Key;

/// Local addresses kept as text: more than a host has listeners. Full: begun anew.
const MAX_LOCAL_NAMES: usize = 32;

/// One SIP user agent, UAS and UAC: all transactions and dialogs behind any number of sockets.
#[derive(Debug)]
pub struct Endpoint {
    config: EndpointConfig,
    counters: Counters,
    random: Random,
    /// Makes the tags of answers without state.
    tag_secret: u64,
    /// Value of Allow.
    allow: String,
    /// Value of Supported: what the endpoint understands itself, and what the user does.
    supported: String,
    transactions: Table<Transaction>,
    index: HashMap<Key, Id>,
    /// INVITEs by what their copies share, to find merged ones.
    merged: HashMap<Key, Id>,
    calls: Table<Call>,
    /// Calls by our tag.
    tags: HashMap<Box<str>, Id>,
    exchanges: Table<Exchange>,
    streams: HashMap<ConnectionId, Stream>,
    carried_by: CarriedBy,
    wakes: BinaryHeap<Reverse<(Instant, Wake)>>,
    /// Our addresses as text: see `name_local`.
    local_names: Vec<(SocketAddr, Box<str>)>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Endpoint {
    /// An endpoint without calls.
    pub fn new(config: EndpointConfig) -> Endpoint {
        let mut allow = "INVITE, ACK, BYE, CANCEL, OPTIONS, NOTIFY".to_owned();
        if config.reliable != Reliability::Never {
            allow += ", PRACK";
        }
        for method in config.in_dialog_methods.iter().chain(&config.accepted_methods) {
            if !listed(&allow, method.as_str()) {
                allow += ", ";
                allow += method.as_str();
            }
        }
        let mut supported = "replaces, norefersub".to_owned();
        if config.session_timer.is_some_and(|timer| !timer.is_off()) {
            supported += ", timer";
        }
        if config.reliable != Reliability::Never {
            supported += ", 100rel";
        }
        for tag in &config.supported {
            if !listed(&supported, tag) {
                supported += ", ";
                supported += tag;
            }
        }
        let mut random = Random::new(config.seed);
        Endpoint {
            tag_secret: random.next_u64(),
            random,
            config,
            counters: Counters::default(),
            allow,
            supported,
            transactions: Table::new(),
            index: HashMap::new(),
            merged: HashMap::new(),
            calls: Table::new(),
            tags: HashMap::new(),
            exchanges: Table::new(),
            streams: HashMap::new(),
            carried_by: CarriedBy::default(),
            wakes: BinaryHeap::new(),
            local_names: Vec::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    // --- getters ---

    /// What has been seen so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The configuration.
    pub fn config(&self) -> &EndpointConfig {
        &self.config
    }

    /// Calls not yet ended.
    pub fn call_count(&self) -> usize {
        self.calls.len()
    }

    /// Transactions in memory.
    pub fn transaction_count(&self) -> usize {
        self.transactions.len()
    }

    /// How many entries each table has: for tests and metrics of memory.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            calls: self.calls.len(),
            transactions: self.transactions.len(),
            exchanges: self.exchanges.len(),
            keys: self.index.len() + self.merged.len() + self.tags.len(),
            streams: self.streams.len(),
            wakes: self.wakes.len(),
        }
    }

    /// A call's dialog: identity and remote target. `None` for an outgoing call before its answer.
    pub fn dialog(&self, call: CallHandle) -> Option<&Dialog> {
        self.calls.get(call.into())?.dialog.as_ref()
    }

    // --- from network and clock ---

    /// Bytes arrived: one datagram, one WebSocket message, or any piece of a TCP or TLS stream.
    pub fn handle_input(&mut self, bytes: &[u8], flow: Flow, now: Instant) {
        self.handle_input_at(bytes, flow, now, &mut |_| true);
    }

    /// The same, with a say in what may begin: `door` is asked for each whole message that belongs to nothing that there is.
    /// A connection over which such a message comes is closed when it says no, and what stands behind the message with it.
    pub fn handle_input_at(&mut self, bytes: &[u8], flow: Flow, now: Instant, door: &mut Door<'_>) {
        match flow.connection {
            Some(connection) if flow.transport.is_stream() => {
                self.handle_stream(bytes, flow, connection, now, door);
            }
            connection => {
                if let (false, Some(connection)) = (self.handle_message(bytes, flow, now, door), connection) {
                    let why = ParseError::Unwelcome;
                    self.events.push_back(Event::CloseConnection { connection, why });
                }
            }
        }
    }

    /// A connection (`flow.connection` is set) is open, accepted or made at our wish. Bytes on an unannounced
    /// connection announce it too.
    pub fn handle_connected(&mut self, flow: Flow) {
        if let Some(connection) = flow.connection.filter(|_| flow.transport.is_stream()) {
            self.open_stream(connection);
        }
    }

    /// A connection is gone. Calls survive: their next request asks for a new one, to the peer's own address. A request of
    /// ours fails that was under way on it, unless the peer has shown by a provisional response that it works on it: then
    /// the final one may come by another connection.
    pub fn handle_closed(&mut self, connection: ConnectionId, now: Instant) {
        self.streams.remove(&connection);
        let (transactions, calls) = self.take_carried(connection);
        for &id in &transactions {
            let Some(transaction) = self.transactions.get(id) else { continue };
            let is_unheard = match &transaction.machine {
                Machine::InviteClient(machine) => machine.is_calling(),
                Machine::Client(machine) => machine.awaits_response(),
                Machine::InviteServer(_) | Machine::Server(_) => false,
            };
            if is_unheard && transaction.flow.connection == Some(connection) {
                self.fail(id, NoResponse::Transport, now);
            }
        }
        for id in calls {
            if let Some(call) = self.calls.get_mut(id) {
                call.connection_closed(connection);
            }
        }
        for id in transactions {
            let Some(transaction) = self.transactions.get_mut(id) else { continue };
            for ack in transaction.acks.iter_mut().filter(|ack| ack.flow.connection == Some(connection)) {
                ack.flow.connection = None;
            }
            if transaction.flow.connection == Some(connection) {
                transaction.flow.connection = None;
                if let Some(server) = &transaction.server {
                    transaction.flow.remote.set_port(server.sent_by_port);
                }
            }
        }
    }

    /// A [`Transmit`] on this flow could not be delivered: requests of ours that wait for an answer on it fail.
    pub fn handle_transport_error(&mut self, flow: Flow, now: Instant) {
        let hit = |(id, transaction): (Id, &mut Transaction)| {
            let (ours, theirs) = (transaction.flow.connection, flow.connection);
            let same = transaction.flow.transport == flow.transport
                && transaction.flow.remote == flow.remote
                && (ours == theirs || ours.is_none() || theirs.is_none());
            (same && transaction.server.is_none() && transaction.machine.awaits_response()).then_some(id)
        };
        let hit: Vec<Id> = self.transactions.iter_mut().filter_map(hit).collect();
        for id in hit {
            self.fail(id, NoResponse::Transport, now);
        }
    }

    /// The deadline of `poll_timeout` has come (early calls are harmless).
    pub fn handle_timeout(&mut self, now: Instant) {
        self.run_due(now);
    }

    // --- what must leave ---

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When `handle_timeout` must be called, at the latest. May be earlier than needed; `None`: nothing is pending.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.wakes.peek().map(|Reverse((at, _))| *at)
    }

    // --- bytes to messages ---

    /// `false`: the door was shut.
    fn handle_message(&mut self, bytes: &[u8], flow: Flow, now: Instant, door: &mut Door<'_>) -> bool {
        // Keep-alives (RFC 5626 §4.4.1); over WebSocket the double CRLF wants an answer (RFC 7118 §6).
        if bytes.iter().all(|&b| b == b'\r' || b == b'\n') {
            if bytes == b"\r\n\r\n" && flow.connection.is_some() {
                self.transmit(flow, b"\r\n".to_vec());
            }
            return true;
        }
        self.name_local(flow.local);
        match parse(bytes) {
            Ok(Message::Request(request)) => {
                self.counters.requests_in += 1;
                self.handle_request(request, flow, now, door)
            }
            Ok(Message::Response(response)) => {
                self.counters.responses_in += 1;
                self.handle_response(response, now);
                true
            }
            Err(why) => self.handle_unparsable(bytes, flow, why, door),
        }
    }

    /// A request that says enough of itself gets 400 (or 505, 513 …) with the cause; the rest is silence.
    /// `false`: the door was shut.
    fn handle_unparsable(&mut self, bytes: &[u8], flow: Flow, why: ParseError, door: &mut Door<'_>) -> bool {
        let Some(salvaged) = salvage(bytes).filter(|salvaged| salvaged.method != Method::Ack.as_str()) else {
            self.counters.garbage += 1;
            return door(&Knock::Garbage);
        };
        if !door(&Knock::Malformed(why)) {
            return false;
        }
        self.counters.bad_requests += 1;
        let template =
            reply::Template::new(&salvaged.headers, &salvaged.via, salvaged.has_to_tag(), flow.remote);
        let status = why.status();
        let answer = Reply::new(status);
        let answer = if status == 400 { answer.reason(&format!("Bad Request: {why}")) } else { answer };
        let response_flow = reply::response_flow(&salvaged.via, flow);
        self.respond_stateless(&template, &answer, Extras::Plain, None, response_flow);
        self.report(flow, Refusal::new(status, "malformed_request", why));
        true
    }

    // --- our addresses ---

    /// Host and port by which the peers of this flow know us: `host` if the call has its own, else the endpoint's.
    fn sent_by<'a>(&'a self, flow: Flow, host: Option<&'a str>) -> Cow<'a, str> {
        match host.or(self.config.advertised_host.as_deref()) {
            Some(host) if has_port(host) => Cow::Borrowed(host),
            Some(host) => format!("{host}:{}", flow.local.port()).into(),
            None => match self.local_names.iter().find(|(addr, _)| *addr == flow.local) {
                Some((_, name)) => Cow::Borrowed(name),
                None => flow.local.to_string().into(),
            },
        }
    }

    /// Writing an address costs as much as reading a header: ours are few, and written once.
    fn name_local(&mut self, local: SocketAddr) {
        if self.local_names.iter().all(|(addr, _)| *addr != local) {
            if self.local_names.len() >= MAX_LOCAL_NAMES {
                self.local_names.clear();
            }
            self.local_names.push((local, local.to_string().into()));
        }
    }

    /// The value of our Contact.
    fn contact(&self, flow: Flow, own: &OwnAddress) -> String {
        let user = own.user.as_deref().unwrap_or(&self.config.contact_user);
        let user = crate::grammar::escape_user(user);
        let at = if user.is_empty() { "" } else { "@" };
        let scheme = if own.is_secure { "sips" } else { "sip" };
        // `sips:` says TLS by itself (RFC 3261 §26.2.2).
        let named =
            flow.transport.uri_param().filter(|_| !(own.is_secure && flow.transport == Transport::Tls));
        let (param, name) = named.map_or(("", ""), |name| (";transport=", name));
        let sent_by = self.sent_by(flow, own.host.as_deref());
        ["<", scheme, ":", &user, at, &sent_by, param, name, ">"].concat()
    }

    /// A new branch, and a Via with it.
    fn new_via(&mut self, flow: Flow, host: Option<&str>) -> (String, String) {
        let branch = self.random.token(crate::header::BRANCH_COOKIE);
        self.name_local(flow.local);
        let sent_by = self.sent_by(flow, host);
        let via = ["SIP/2.0/", flow.transport.token(), " ", &sent_by, ";branch=", &branch, ";rport"].concat();
        (branch, via)
    }
}

/// Whether a comma-separated list of ours holds this token, without case.
fn listed(list: &str, token: &str) -> bool {
    list.split(", ").any(|known| known.eq_ignore_ascii_case(token))
}

/// Whether an advertised host brings its port: `203.0.113.5:5070`, `[2001:db8::1]:5070`.
fn has_port(host: &str) -> bool {
    host.rsplit_once(':').is_some_and(|(before, port)| {
        (!before.contains(':') || before.ends_with(']')) && port.parse::<u16>().is_ok()
    })
}

impl From<CallHandle> for Id {
    fn from(handle: CallHandle) -> Id {
        Id { index: handle.index, generation: handle.generation }
    }
}

impl From<Id> for CallHandle {
    fn from(id: Id) -> CallHandle {
        CallHandle { index: id.index, generation: id.generation }
    }
}

impl From<Id> for RequestHandle {
    fn from(id: Id) -> RequestHandle {
        RequestHandle { index: id.index, generation: id.generation }
    }
}
