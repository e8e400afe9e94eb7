//! The endpoint's transactions: how they are found, woken, sent and sent again.

use std::cmp::Reverse;
use std::time::Instant;

use super::Endpoint;
use super::call::{OwnAddress, Phase};
use super::carried::Carried;
use super::event::{Event, NoResponse};
use super::reply::Template;
use crate::dialog::Unacked;
use crate::flow::{ConnectionId, Flow, Transmit};
use crate::headers::HeaderName;
use crate::message::{Method, Reply};
use crate::table::Id;
use crate::transaction::client::Client;
use crate::transaction::invite_client::InviteClient;
use crate::transaction::key::Key;
use crate::transaction::{Due, Machine};
use crate::write::Writer;

/// Entries of the timer queue below which it is not searched for dead ones.
const MIN_WAKES: usize = 1_024;

/// Whom a transaction's outcome concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Nobody: the endpoint's own answer, a CANCEL, a BYE to a fork.
    Nobody,
    /// A call.
    Call(Id),
    /// A request of the user's, or for the user to answer.
    Exchange(Id),
    /// Our UPDATE that refreshes this call's session.
    Refresh(Id),
    /// Our PRACK in this call.
    Prack(Id),
    /// Our REFER in this call.
    Refer(Id),
    /// Our NOTIFY of a transfer that this call's peer has asked for.
    Notify(Id),
}

/// What a server transaction's responses are made of.
#[derive(Debug)]
pub(crate) struct ServerSide {
    pub(crate) template: Template,
    /// The tag that our responses put into To.
    pub(crate) tag: Box<str>,
    /// Under which copies of the request by other ways are found.
    pub(crate) merged: Option<Key>,
    /// The request's CSeq number.
    pub(crate) cseq: u32,
    /// sent-by's port: where a response goes when its connection is gone.
    pub(crate) sent_by_port: u16,
}

/// The ACK that one fork's 2xx has got, to be sent again with each repetition.
#[derive(Debug)]
pub(crate) struct SentAck {
    pub(crate) remote_tag: Box<str>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) flow: Flow,
}

/// One transaction.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) machine: Machine,
    pub(crate) key: Key,
    pub(crate) flow: Flow,
    /// What is sent again: our request, or our last response.
    pub(crate) message: Vec<u8>,
    pub(crate) owner: Owner,
    pub(crate) server: Option<ServerSide>,
    /// Of an answered INVITE of ours: one a fork.
    pub(crate) acks: Vec<SentAck>,
    /// How often our request was sent anew with other headers (credentials, a longer session).
    pub(crate) tries: u8,
    /// One of them was for a stale nonce.
    pub(crate) was_stale: bool,
    /// The earliest wake-up queued for it.
    pub(crate) wake: Option<Instant>,
}

/// Whose deadline an entry of the timer queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wake {
    Transaction(Id),
    Call(Id),
    Connection(ConnectionId),
}

/// Which headers of ours a response gets besides Server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extras {
    /// None.
    Plain,
    /// Allow, Accept and Supported.
    Capabilities,
    /// Contact, Record-Route, Allow and Supported: it makes or keeps a dialog.
    Dialog,
}

impl Endpoint {
    // --- sending ---

    pub(super) fn transmit(&mut self, flow: Flow, bytes: Vec<u8>) {
        self.counters.messages_out += 1;
        self.transmits.push_back(Transmit { flow, bytes });
    }

    fn retransmit(&mut self, flow: Flow, bytes: Vec<u8>) {
        self.counters.retransmits_out += 1;
        self.transmit(flow, bytes);
    }

    /// Sends a request of ours in a new client transaction.
    pub(super) fn start_client(
        &mut self,
        method: &Method,
        branch: &str,
        bytes: Vec<u8>,
        flow: Flow,
        owner: Owner,
        now: Instant,
    ) -> Id {
        let (reliable, timers) = (flow.transport.is_reliable(), self.config.timers);
        let machine = match method {
            Method::Invite => Machine::InviteClient(InviteClient::new(reliable, timers, now)),
            _ => Machine::Client(Client::new(reliable, timers, now)),
        };
        let key = Key::client(branch, method);
        // The copy that stays is only as large as it must be.
        let message = bytes.clone();
        self.transmit(flow, bytes);
        let transaction = Transaction {
            machine,
            key: key.clone(),
            flow,
            message,
            owner,
            server: None,
            acks: Vec::new(),
            tries: 0,
            was_stale: false,
            wake: None,
        };
        let id = self.transactions.insert(transaction);
        self.carry(flow.connection, Carried::Transaction(id));
        self.index.insert(key, id);
        self.arm(Wake::Transaction(id));
        id
    }

    /// Writes a response in a server transaction, and sends it. A 2xx to INVITE comes back for the
    /// dialog to repeat.
    pub(super) fn respond_on(
        &mut self,
        id: Id,
        reply: &Reply,
        extras: Extras,
        now: Instant,
    ) -> Option<Unacked> {
        let transaction = self.transactions.get(id)?;
        let server = transaction.server.as_ref()?;
        let (flow, cseq) = (transaction.flow, server.cseq);
        let with_routes = extras == Extras::Dialog;
        let mut writer =
            server.template.respond(reply.status, reply.reason.as_deref(), &server.tag, with_routes);
        let own = self.own_of(transaction.owner);
        self.write_extras(&mut writer, extras, flow, &own);
        let sent = finish_reply(writer, reply);
        let bytes = sent.clone();
        self.transmit(flow, sent);
        let transaction = self.transactions.get_mut(id)?;
        if reply.status >= 200
            && let Some(server) = &mut transaction.server
        {
            server.template = Template::default();
        }
        let mut for_dialog = None;
        match &mut transaction.machine {
            Machine::InviteServer(machine) => {
                machine.respond(reply.status, now);
                if (200..300).contains(&reply.status) {
                    transaction.message = Vec::new();
                    for_dialog = Some(Unacked::new(cseq, bytes, flow, &self.config.timers, now));
                } else {
                    transaction.message = bytes;
                }
            }
            Machine::Server(machine) => {
                machine.respond(reply.status, now);
                transaction.message = bytes;
            }
            Machine::InviteClient(_) | Machine::Client(_) => return None,
        }
        self.arm(Wake::Transaction(id));
        for_dialog
    }

    /// A response outside any transaction: to what does not parse, finds no room or is of no dialog. Without `tag`,
    /// repetitions of a request get the same one (§8.2.7).
    pub(super) fn respond_stateless(
        &mut self,
        template: &Template,
        reply: &Reply,
        extras: Extras,
        tag: Option<&str>,
        flow: Flow,
    ) {
        if self.transmits.len() >= super::MAX_QUEUED {
            return;
        }
        let tag = tag.map_or_else(|| template.stateless_tag(self.tag_secret), str::to_owned);
        let mut writer = template.respond(reply.status, reply.reason.as_deref(), &tag, false);
        self.write_extras(&mut writer, extras, flow, &OwnAddress::default());
        self.transmit(flow, finish_reply(writer, reply));
    }

    pub(super) fn write_extras(&self, writer: &mut Writer, extras: Extras, flow: Flow, own: &OwnAddress) {
        if extras == Extras::Dialog {
            writer.header(HeaderName::Contact, &self.contact(flow, own));
        }
        if extras != Extras::Plain {
            writer.header(HeaderName::Allow, &self.allow);
            if !self.supported.is_empty() {
                writer.header(HeaderName::Supported, &self.supported);
            }
        }
        if extras == Extras::Capabilities {
            writer.header(HeaderName::Accept, "application/sdp");
        }
        writer.header(HeaderName::Server, &self.config.user_agent);
    }

    /// The call that a transaction concerns.
    pub(super) fn call_of_owner(&self, owner: Owner) -> Option<Id> {
        match owner {
            Owner::Nobody => None,
            Owner::Exchange(id) => self.exchanges.get(id)?.call,
            Owner::Call(id)
            | Owner::Refresh(id)
            | Owner::Prack(id)
            | Owner::Refer(id)
            | Owner::Notify(id) => Some(id),
        }
    }

    fn own_of(&self, owner: Owner) -> OwnAddress {
        let call = self.call_of_owner(owner).and_then(|id| self.calls.get(id));
        call.map(|call| call.own.clone()).unwrap_or_default()
    }

    /// A server transaction's last response again.
    pub(super) fn send_last_again(&mut self, id: Id) {
        if let Some((flow, bytes)) = self.transactions.get(id).map(|t| (t.flow, t.message.clone())) {
            self.retransmit(flow, bytes);
        }
    }

    // --- waking ---

    /// Queues the next deadline, unless an earlier wake-up is queued already.
    pub(super) fn arm(&mut self, wake: Wake) {
        let (deadline, queued) = match wake {
            Wake::Transaction(id) => match self.transactions.get_mut(id) {
                Some(transaction) => (transaction.machine.deadline(), &mut transaction.wake),
                None => return,
            },
            Wake::Call(id) => match self.calls.get_mut(id) {
                Some(call) => (call.deadline(), &mut call.wake),
                None => return,
            },
            Wake::Connection(id) => match self.streams.get_mut(&id) {
                Some(stream) => (stream.deadline(), &mut stream.wake),
                None => return,
            },
        };
        let Some(at) = deadline else { return };
        if queued.is_none_or(|earlier| at < earlier) {
            *queued = Some(at);
            self.wakes.push(Reverse((at, wake)));
            self.drop_dead_wakes();
        }
    }

    /// Deadlines of what is gone stay in the queue until their time. When they are more than half of it, they go.
    fn drop_dead_wakes(&mut self) {
        let alive = self.transactions.len() + self.calls.len() + self.streams.len();
        if self.wakes.len() <= 2 * alive + MIN_WAKES {
            return;
        }
        let (transactions, calls, streams) = (&self.transactions, &self.calls, &self.streams);
        self.wakes.retain(|Reverse((at, wake))| {
            let queued = match wake {
                Wake::Transaction(id) => transactions.get(*id).and_then(|transaction| transaction.wake),
                Wake::Call(id) => calls.get(*id).and_then(|call| call.wake),
                Wake::Connection(id) => streams.get(id).and_then(|stream| stream.wake),
            };
            queued == Some(*at)
        });
    }

    /// Runs everything that is due.
    pub(super) fn run_due(&mut self, now: Instant) {
        while let Some(&Reverse((at, wake))) = self.wakes.peek() {
            if at > now {
                break;
            }
            self.wakes.pop();
            let queued = match wake {
                Wake::Transaction(id) => {
                    self.transactions.get_mut(id).map(|transaction| &mut transaction.wake)
                }
                Wake::Call(id) => self.calls.get_mut(id).map(|call| &mut call.wake),
                Wake::Connection(id) => self.streams.get_mut(&id).map(|stream| &mut stream.wake),
            };
            // Gone, or an entry that an earlier one has overtaken.
            let Some(queued) = queued.filter(|queued| **queued == Some(at)) else { continue };
            *queued = None;
            match wake {
                Wake::Transaction(id) => self.wake_transaction(id, now),
                Wake::Call(id) => self.wake_call(id, now),
                Wake::Connection(id) => self.wake_connection(id, now),
            }
            self.arm(wake);
        }
    }

    fn wake_transaction(&mut self, id: Id, now: Instant) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        match transaction.machine.handle_timeout(now) {
            Due::Nothing => {}
            Due::Resend => {
                let (flow, bytes) = (transaction.flow, transaction.message.clone());
                self.retransmit(flow, bytes);
            }
            Due::TimedOut => self.fail(id, NoResponse::Timeout, now),
            Due::Done => {
                let Some(transaction) = self.forget(id) else { return };
                // No fork can answer our INVITE any more.
                if let (Machine::InviteClient(_), Owner::Call(call)) =
                    (transaction.machine, transaction.owner)
                    && let Some(call) = self.calls.get_mut(call)
                    && call.dialog.is_some()
                {
                    call.early = Vec::new();
                }
            }
        }
    }

    fn wake_call(&mut self, id: Id, now: Instant) {
        let Some(call) = self.calls.get_mut(id) else { return };
        if let Some(unacked) = &mut call.unacked {
            match unacked.handle_timeout(now) {
                Due::Resend => {
                    let (flow, bytes) = (unacked.flow, unacked.bytes.clone());
                    self.retransmit(flow, bytes);
                }
                Due::TimedOut => return self.ack_missed(id, now),
                Due::Nothing | Due::Done => {}
            }
        }
        let Some(call) = self.calls.get_mut(id) else { return };
        if call.reliable.is_some() {
            self.wake_provisionals(id, now);
        }
        let Some(call) = self.calls.get_mut(id) else { return };
        if call.transfers.is_some() {
            self.wake_transfers(id, now);
        }
        let Some(call) = self.calls.get_mut(id) else { return };
        match &mut call.phase {
            Phase::Incoming { repeat_at: Some(at) } if now >= *at => {
                *at = now + crate::timer::PROVISIONAL_REPEAT;
                if let Some(invite) = call.invite_in
                    && !self.repeat_reliably(id, now)
                {
                    self.send_last_again(invite);
                }
            }
            Phase::Outgoing { ring_until: Some(at), .. } if now >= *at => self.give_up_ringing(id, now),
            Phase::Confirmed => self.wake_session(id, now),
            _ => {}
        }
    }

    // --- ending ---

    /// Takes a transaction out of both tables.
    pub(super) fn forget(&mut self, id: Id) -> Option<Transaction> {
        let transaction = self.transactions.remove(id)?;
        self.index.remove(&transaction.key);
        if let Some(merged) = transaction.server.as_ref().and_then(|server| server.merged.as_ref()) {
            self.merged.remove(merged);
        }
        Some(transaction)
    }

    /// A transaction ends without what it waited for.
    pub(super) fn fail(&mut self, id: Id, why: NoResponse, now: Instant) {
        let Some(transaction) = self.forget(id) else { return };
        self.counters.transactions_failed += 1;
        let is_client = transaction.server.is_none();
        match transaction.owner {
            Owner::Call(call) if is_client => self.call_request_failed(call, id, why, now),
            Owner::Refresh(call) => {
                self.refresh_failed(call, Err(why), now);
                self.send_wanted_reinvite(call, now);
            }
            Owner::Refer(call) => self.refer_failed(call, id),
            Owner::Notify(call) => self.notify_answered(call, 408, now),
            Owner::Exchange(exchange) => {
                let Some(exchange_value) = self.exchanges.remove(exchange) else { return };
                self.update_is_over(exchange_value.call, exchange);
                if is_client {
                    let call = exchange_value.call.filter(|&call| self.calls.get(call).is_some());
                    self.events.push_back(Event::Response {
                        handle: exchange.into(),
                        call: call.map(Into::into),
                        result: Err(why),
                    });
                }
            }
            // An unacknowledged refusal is over for its call, and nobody waits for the rest.
            Owner::Call(_) | Owner::Prack(_) | Owner::Nobody => {}
        }
    }
}

fn finish_reply(mut writer: Writer, reply: &Reply) -> Vec<u8> {
    writer.headers(&reply.headers);
    match &reply.body {
        Some(body) => {
            writer.header(HeaderName::ContentType, body.content_type);
            writer.finish(&body.bytes)
        }
        None => writer.finish(b""),
    }
}
