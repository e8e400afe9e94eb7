//! The server's side: requests that come in, and our answers (RFC 3261 §8.2, §13.3).

use std::sync::Arc;
use std::time::Instant;

use super::call::{Call, Exchange, PendingUpdate, Phase};
use super::carried::Carried;
use super::event::{CallHandle, EndReason, Event, RequestHandle};
use super::ledger::{Extras, Owner, ServerSide, Transaction, Wake};
use super::refusal::Refusal;
use super::reliable::{self, Provisionals};
use super::reply::{self, Template};
use super::session::{Ask, Session, print_of, push_grant};
use super::{CallError, Door, Endpoint, Knock, MAX_QUEUED, RESERVED_PART, RETRY_AFTER_FULL_S};
use crate::dialog::Dialog;
use crate::flow::Flow;
use crate::headers::HeaderName;
use crate::message::{Body, Method, Reply, Request};
use crate::table::Id;
use crate::timer::PROVISIONAL_REPEAT;
use crate::transaction::Machine;
use crate::transaction::invite_server::{InviteServer, OnAck};
use crate::transaction::key::Key;
use crate::transaction::server::Server;
use crate::uri::Scheme;

impl Endpoint {
    // --- verbs ---

    /// 180 Ringing.
    pub fn ring(&mut self, call: CallHandle, now: Instant) -> Result<(), CallError> {
        self.respond(call, Reply::new(180), now)
    }

    /// 200 OK with our answer (or offer, if the INVITE had none) to the pending INVITE or re-INVITE. Repeated until
    /// the ACK comes.
    pub fn answer(&mut self, call: CallHandle, body: Body, now: Instant) -> Result<(), CallError> {
        self.respond(call, Reply::new(200).body(body), now)
    }

    /// A final refusal (300..=699) of the pending INVITE or re-INVITE. A refused INVITE ends the call at once.
    pub fn reject(&mut self, call: CallHandle, reply: Reply, now: Instant) -> Result<(), CallError> {
        if reply.status < 300 {
            return Err(CallError::State("refusing with a status below 300"));
        }
        self.respond(call, reply, now)
    }

    /// Any response to the pending INVITE or re-INVITE: provisional (with SDP: early media) or final.
    ///
    /// A provisional response leaves reliably if the configuration and the caller want that: then it may wait for the PRACK of
    /// an earlier one, and a 2xx may wait for the last PRACK.
    pub fn respond(&mut self, call: CallHandle, reply: Reply, now: Instant) -> Result<(), CallError> {
        let id = Id::from(call);
        let state = self.calls.get_mut(id).ok_or(CallError::Unknown)?;
        if state.invite_in.is_none() {
            return Err(CallError::State(state.doing()));
        }
        match (reply.status, state.reliable.as_deref_mut()) {
            (101..=199, Some(_)) => self.respond_reliably(id, reply, now),
            (200..=299, Some(provisionals)) if provisionals.delays_the_answer() => {
                let is_first = provisionals.keep_answer(reply);
                if is_first { Ok(()) } else { Err(CallError::State("the answer waits for a PRACK")) }
            }
            _ => self.respond_now(id, reply, false, now),
        }
    }

    /// The response leaves. `is_hidden`: the user knows nothing of this re-INVITE.
    pub(super) fn respond_now(
        &mut self,
        id: Id,
        mut reply: Reply,
        is_hidden: bool,
        now: Instant,
    ) -> Result<(), CallError> {
        let state = self.calls.get_mut(id).ok_or(CallError::Unknown)?;
        let Some(invite) = state.invite_in else { return Err(CallError::State(state.doing())) };
        let status = reply.status;
        if let Some(description) = reply.body.as_ref().filter(|body| status < 300 && body.is_sdp()) {
            state.local_sdp = Some(description.bytes.as_slice().into());
        }
        let granted =
            if (200..300).contains(&status) { state.session.grant(&state.session.asked) } else { None };
        if let Some(granted) = &granted {
            push_grant(&mut reply.headers, granted, &state.session.asked);
        }
        let extras = if status > 100 && status < 300 { Extras::Dialog } else { Extras::Plain };
        let answered = self.respond_on(invite, &reply, extras, now);
        let Some(state) = self.calls.get_mut(id) else { return Err(CallError::Unknown) };
        let mut replaced = None;
        if status >= 200 {
            state.invite_in = None;
            if let Some(provisionals) = &mut state.reliable {
                provisionals.stop();
            }
        }
        match (status, &mut state.phase) {
            (..=199, Phase::Incoming { repeat_at }) => *repeat_at = Some(now + PROVISIONAL_REPEAT),
            (200..=299, phase) => {
                *phase = Phase::Confirmed;
                state.unacked = answered;
                if let Some(unacked) = &mut state.unacked {
                    unacked.is_hidden = is_hidden;
                }
                state.remote_sdp = state.session.asked.sdp.or(state.remote_sdp);
                state.session.start_granted(granted, now);
                replaced = state.replaces.take();
            }
            (300.., Phase::Incoming { .. }) => self.end_call(id, EndReason::Rejected { status }, now),
            _ => {}
        }
        self.arm(Wake::Call(id));
        if let Some(old) = replaced {
            self.end_replaced(old, id, now);
        }
        Ok(())
    }

    /// From now on this call's Via and Contact name `host` (with a port if it has one); `None`: the endpoint's. For an
    /// incoming call before its first response other than 100.
    pub fn advertise(&mut self, call: CallHandle, host: Option<Arc<str>>) -> Result<(), CallError> {
        let state = self.calls.get_mut(call.into()).ok_or(CallError::Unknown)?;
        state.own.host = host;
        Ok(())
    }

    /// Answers an [`Event::Request`]. After a final reply the handle is dead.
    pub fn reply(&mut self, request: RequestHandle, mut reply: Reply, now: Instant) -> Result<(), CallError> {
        let id = Id::from(request);
        let exchange = self.exchanges.get(id).ok_or(CallError::Unknown)?;
        let (transaction, call) = (exchange.transaction, exchange.call);
        let is_server =
            self.transactions.get(transaction).is_some_and(|transaction| transaction.server.is_some());
        if !is_server {
            return Err(CallError::State("the request is our own"));
        }
        let status = reply.status;
        let keeps_dialog = call.is_some() && status < 300;
        let extras = if keeps_dialog { Extras::Dialog } else { Extras::Plain };
        if let (Some(call), Some(update), 200..=299) = (call, &exchange.update, status) {
            let ask = update.ask;
            let headers = self.answer_update(call, &ask, now);
            reply.headers.append(&headers);
            if let Some(state) = self.calls.get_mut(call) {
                state.remote_sdp = ask.sdp.or(state.remote_sdp);
                if let Some(description) = reply.body.as_ref().filter(|body| body.is_sdp()) {
                    state.local_sdp = Some(description.bytes.as_slice().into());
                }
            }
        }
        self.respond_on(transaction, &reply, extras, now);
        if status < 200 {
            return Ok(());
        }
        let update = self.exchanges.remove(id).and_then(|exchange| exchange.update);
        if let (200..=299, Some((tag, target))) = (status, update.and_then(|update| update.new_target))
            && let Some(dialog) =
                call.and_then(|id| self.calls.get_mut(id)).and_then(|call| call.dialog_with_mut(&tag))
        {
            dialog.set_target(target);
        }
        Ok(())
    }

    // --- requests ---

    /// `false`: the door was shut. An ACK gets no answer and begins nothing: nobody is asked.
    pub(super) fn handle_request(
        &mut self,
        request: Request,
        flow: Flow,
        now: Instant,
        door: &mut Door<'_>,
    ) -> bool {
        let key = Key::server(&request);
        if let Some(&id) = self.index.get(&key) {
            let may = request.method == Method::Ack || door(&Knock::Repeated(&request));
            if may {
                self.handle_repeated(id, request, flow, now);
            }
            return may;
        }
        match request.method {
            Method::Ack => self.handle_ack(request, now),
            Method::Cancel => {
                let invite = self.index.get(&Key::cancelled(&request.head)).copied();
                if invite.is_none() && !door(&Knock::Request(&request)) {
                    return false;
                }
                self.handle_cancel(&request, invite, flow, now);
            }
            _ => {
                let call = self.call_of(&request);
                if call.is_none() && !door(&Knock::Request(&request)) {
                    return false;
                }
                self.handle_new(request, call, key, flow, now);
            }
        }
        true
    }

    /// A request of a transaction that we have: its ACK, or a retransmission.
    fn handle_repeated(&mut self, id: Id, request: Request, flow: Flow, now: Instant) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let resend = match &mut transaction.machine {
            Machine::InviteServer(machine) if request.method == Method::Ack => {
                let pass = machine.handle_ack(now) == OnAck::Pass;
                self.arm(Wake::Transaction(id));
                if pass {
                    self.handle_ack(request, now);
                }
                return;
            }
            Machine::InviteServer(machine) => machine.handle_retransmission(),
            Machine::Server(_) => true,
            Machine::InviteClient(_) | Machine::Client(_) => false,
        };
        self.counters.retransmits_in += 1;
        // The peer may have come back by a new connection.
        if flow.connection.is_some() {
            transaction.flow = flow;
            let cseq = request.head.cseq().number;
            if let Owner::Call(call) = transaction.owner
                && let Some(call) = self.calls.get_mut(call)
                && let Some(unacked) = call.unacked.as_mut().filter(|unacked| unacked.cseq == cseq)
            {
                unacked.flow = flow;
            }
        }
        let (connection, flow, bytes) = (flow.connection, transaction.flow, transaction.message.clone());
        self.carry(connection, Carried::Transaction(id));
        if resend && !bytes.is_empty() {
            self.counters.retransmits_out += 1;
            self.transmit(flow, bytes);
        }
    }

    /// The ACK of a 2xx: it belongs to the dialog.
    fn handle_ack(&mut self, ack: Request, now: Instant) {
        let Some(id) = self.call_of(&ack) else {
            self.counters.stray_acks += 1;
            return;
        };
        let Some(call) = self.calls.get_mut(id) else { return };
        let Some(unacked) = call.unacked.take_if(|unacked| unacked.cseq == ack.head.cseq().number) else {
            self.counters.retransmits_in += 1;
            return;
        };
        call.reliable = None;
        if let Some(description) = ack.sdp() {
            call.remote_sdp = Some(print_of(description));
        }
        let bye = call.bye_wanted.take();
        if !unacked.is_hidden {
            self.events.push_back(Event::Acknowledged { call: id.into(), ack: Box::new(ack) });
        }
        match bye {
            Some(headers) => self.send_bye(id, &headers, now),
            None => self.send_wanted_reinvite(id, now),
        }
    }

    /// CANCEL (§9.2): 200 to it whenever its INVITE is known, 487 to the INVITE if that is still unanswered. A repeated
    /// one gets the same 200, so it needs no transaction, and works when there is no room for one.
    fn handle_cancel(&mut self, cancel: &Request, invite: Option<Id>, flow: Flow, now: Instant) {
        let Some((invite, transaction)) = invite.and_then(|id| Some((id, self.transactions.get(id)?))) else {
            return self.turn_away(cancel, flow, Refusal::unknown_dialog(&cancel.method));
        };
        let owner = transaction.owner;
        let tag = transaction.server.as_ref().map(|server| server.tag.clone());
        self.answer_stateless(cancel, flow, &Reply::new(200), Extras::Plain, tag.as_deref());
        let Owner::Call(id) = owner else { return };
        let Some(call) = self.calls.get_mut(id).filter(|call| call.invite_in == Some(invite)) else { return };
        call.invite_in = None;
        let was_incoming = matches!(call.phase, Phase::Incoming { .. });
        self.respond_on(invite, &Reply::new(487), Extras::Plain, now);
        if was_incoming {
            let reason = cancel.header(HeaderName::Reason).map(str::to_owned);
            self.end_call(id, EndReason::Cancelled { reason }, now);
        } else {
            self.events.push_back(Event::ReinviteCancelled { call: id.into() });
        }
    }

    /// The checks of §8.2 in their order, then dispatch. Whoever is refused outside a dialog is refused without state:
    /// a repetition gets the same answer.
    fn handle_new(&mut self, request: Request, call: Option<Id>, key: Key, flow: Flow, now: Instant) {
        if let Some(refusal) = self.objection(&request) {
            return match call {
                Some(_) => self.refuse(&request, key, flow, refusal, now),
                None => self.turn_away(&request, flow, refusal),
            };
        }
        match call {
            Some(call) => return self.handle_in_call(call, request, key, flow, now),
            None if request.head.to().tag().is_some() => {
                return self.turn_away(&request, flow, Refusal::unknown_dialog(&request.method));
            }
            None => {}
        }
        if self.merged.contains_key(&Key::merged(&request.head)) {
            // With state: the INVITE that it is a copy of may be forgotten before the last repetition of this one.
            let refusal = Refusal::new(482, "merged_request", request.head.call_id());
            return self.refuse(&request, key, flow, refusal, now);
        }
        match &request.method {
            Method::Invite => self.handle_invite(request, key, flow, now),
            Method::Options => {
                self.answer_stateless(&request, flow, &Reply::new(200), Extras::Capabilities, None);
            }
            method if self.config.accepted_methods.contains(method) => {
                self.surface(request, None, None, key, flow, now);
            }
            method => self.turn_away(&request, flow, Refusal::unknown_dialog(method)),
        }
    }

    /// A new call.
    fn handle_invite(&mut self, invite: Request, key: Key, flow: Flow, now: Instant) {
        if self.calls.len() >= self.config.max_calls {
            return self.turn_away_full(&invite, flow, "call_table");
        }
        let checked =
            self.reliability_of(&invite).and_then(|reliable| Ok((reliable, self.replaced_by(&invite)?)));
        let (is_reliable, replaces) = match checked {
            Ok(checked) => checked,
            Err(refusal) => return self.turn_away(&invite, flow, *refusal),
        };
        let tag: Box<str> = self.random.token("").into();
        let Some(dialog) = Dialog::uas(&invite, &tag) else {
            let mut refusal = Refusal::new(400, "contact", "no usable Contact");
            refusal.reply = refusal.reply.reason("Bad Request: missing Contact");
            return self.turn_away(&invite, flow, refusal);
        };
        let session = Session::new(self.config.session_timer);
        let mut call = Call::new(Phase::Incoming { repeat_at: None }, tag.clone(), flow, session);
        call.natted = invite.head.via().is_natted(flow.remote);
        call.sent_by_port = Some(invite.head.via().port_or_default());
        let next_hop =
            invite.head.routes(HeaderName::RecordRoute).next().map_or(Scheme::Sip, |of| of.uri.scheme());
        call.own.is_secure = invite.uri.scheme() == Scheme::Sips || next_hop == Scheme::Sips;
        call.dialog = Some(dialog);
        call.replaces = replaces;
        call.session.hear(&invite.head);
        call.session.asked = Ask::of(&invite);
        call.asks_100rel = reliable::asked(&invite.head);
        if is_reliable {
            let rseq = reliable::first_rseq(&mut self.random);
            let offers = invite.sdp().is_none();
            call.reliable = Some(Box::new(Provisionals::new(invite.head.cseq().number, rseq, offers)));
        }
        let id = self.calls.insert(call);
        self.carry(flow.connection, Carried::Call(id));
        let Some(transaction) = self.open_server(&invite, key, flow, Owner::Call(id), Some(tag.clone()), now)
        else {
            self.calls.remove(id);
            return;
        };
        self.tags.insert(tag, id);
        if let Some(call) = self.calls.get_mut(id) {
            call.invite_in = Some(transaction);
        }
        self.respond_on(transaction, &Reply::new(100), Extras::Plain, now);
        self.events.push_back(Event::IncomingInvite {
            call: id.into(),
            request: Box::new(invite),
            flow,
            replaces: replaces.map(Into::into),
        });
    }

    /// Hands a request to the user.
    pub(super) fn surface(
        &mut self,
        request: Request,
        call: Option<Id>,
        update: Option<PendingUpdate>,
        key: Key,
        flow: Flow,
        now: Instant,
    ) {
        let mut refer = None;
        if request.method == Method::Refer {
            match self.check_refer(call, &request) {
                Ok(ask) => refer = Some(ask),
                Err(refusal) => return self.refuse(&request, key, flow, *refusal, now),
            }
        }
        let tag = call.and_then(|call| self.calls.get(call)).map(|call| call.local_tag.clone());
        let Some(transaction) = self.open_server(&request, key, flow, Owner::Nobody, tag, now) else {
            return;
        };
        let update = update.map(Box::new);
        let exchange = Exchange { transaction, call, credentials: None, host: None, update, refer };
        let exchange = self.exchanges.insert(exchange);
        if let Some(transaction) = self.transactions.get_mut(transaction) {
            transaction.owner = Owner::Exchange(exchange);
        }
        self.events.push_back(Event::Request {
            handle: exchange.into(),
            call: call.map(Into::into),
            request: Box::new(request),
            flow,
        });
    }

    // --- server transactions ---

    /// Whether there is no room for a transaction that begins something new, or the shell does not drain us. The last
    /// part of the table is kept for the calls that there are.
    pub(super) fn is_full(&self) -> bool {
        let max = self.config.max_transactions;
        self.has_no_room_below(max - max / RESERVED_PART)
    }

    /// The same for a transaction in a dialog.
    pub(super) fn is_full_in_dialog(&self) -> bool {
        self.has_no_room_below(self.config.max_transactions)
    }

    fn is_full_for(&self, request: &Request) -> bool {
        if request.head.to().tag().is_some() { self.is_full_in_dialog() } else { self.is_full() }
    }

    fn has_no_room_below(&self, transactions: usize) -> bool {
        self.transactions.len() >= transactions
            || self.transmits.len() >= MAX_QUEUED
            || self.events.len() >= MAX_QUEUED
    }

    /// A new server transaction. `None`: no room, and 503 has left.
    pub(super) fn open_server(
        &mut self,
        request: &Request,
        key: Key,
        flow: Flow,
        owner: Owner,
        tag: Option<Box<str>>,
        now: Instant,
    ) -> Option<Id> {
        let in_dialog = request.head.to().tag().is_some();
        if self.is_full_for(request) {
            self.turn_away_full(request, flow, "transaction_table");
            return None;
        }
        let (reliable, timers) = (flow.transport.is_reliable(), self.config.timers);
        let is_invite = request.method == Method::Invite;
        let machine = if is_invite {
            Machine::InviteServer(InviteServer::new(reliable, timers))
        } else {
            Machine::Server(Server::new(reliable, timers, now))
        };
        let merged = (!in_dialog)
            .then(|| Key::merged(&request.head))
            .filter(|merged| !self.merged.contains_key(merged));
        let server = ServerSide {
            template: self.template(request, flow),
            tag: tag.unwrap_or_else(|| self.random.token("").into()),
            merged: merged.clone(),
            cseq: request.head.cseq().number,
            sent_by_port: request.head.via().port_or_default(),
        };
        let id = self.transactions.insert(Transaction {
            machine,
            key: key.clone(),
            flow: reply::response_flow(request.head.via(), flow),
            message: Vec::new(),
            owner,
            server: Some(server),
            acks: Vec::new(),
            tries: 0,
            was_stale: false,
            wake: None,
        });
        self.carry(flow.connection, Carried::Transaction(id));
        self.index.insert(key, id);
        if let Some(merged) = merged {
            self.merged.insert(merged, id);
        }
        self.arm(Wake::Transaction(id));
        Some(id)
    }

    fn template(&self, request: &Request, flow: Flow) -> Template {
        let head = &request.head;
        Template::new(head.headers(), head.via(), head.to().tag().is_some(), flow.remote)
    }

    /// Answers a request at once and for good, in a transaction of its own that absorbs retransmissions;
    /// without one if there is no room.
    pub(super) fn finish_at_once(
        &mut self,
        request: &Request,
        key: Key,
        flow: Flow,
        reply: &Reply,
        extras: Extras,
        owner: Owner,
        now: Instant,
    ) {
        if self.is_full_for(request) {
            return self.answer_stateless(request, flow, reply, extras, None);
        }
        if let Some(id) = self.open_server(request, key, flow, owner, None, now) {
            self.respond_on(id, reply, extras, now);
        }
    }

    /// Refuses a request with state: in a dialog, or a merged one.
    pub(super) fn refuse(&mut self, request: &Request, key: Key, flow: Flow, refusal: Refusal, now: Instant) {
        self.finish_at_once(request, key, flow, &refusal.reply, refusal.extras, Owner::Nobody, now);
        self.report(flow, refusal);
    }

    /// Refuses a request without state: outside any dialog (§8.2.7). An ACK to it is a stray one.
    fn turn_away(&mut self, request: &Request, flow: Flow, refusal: Refusal) {
        self.answer_stateless(request, flow, &refusal.reply, refusal.extras, None);
        self.report(flow, refusal);
    }

    /// 503: a table has no room.
    fn turn_away_full(&mut self, request: &Request, flow: Flow, rule: &'static str) {
        self.counters.refused_full += 1;
        let mut refusal = Refusal::new(503, rule, "full");
        refusal.reply = refusal.reply.retry_after_s(RETRY_AFTER_FULL_S);
        self.turn_away(request, flow, refusal);
    }

    fn answer_stateless(
        &mut self,
        request: &Request,
        flow: Flow,
        reply: &Reply,
        extras: Extras,
        tag: Option<&str>,
    ) {
        let template = self.template(request, flow);
        let flow = reply::response_flow(request.head.via(), flow);
        self.respond_stateless(&template, reply, extras, tag, flow);
    }

    /// The call to whose dialog (before the answer: to one of whose early dialogs) a request belongs.
    fn call_of(&self, request: &Request) -> Option<Id> {
        let tag = request.head.to().tag()?;
        let id = *self.tags.get(&*tag)?;
        let call = self.calls.get(id)?;
        let fits = match &call.dialog {
            Some(dialog) => dialog.matches(&request.head),
            None => call.early.iter().any(|early| early.dialog.matches(&request.head)),
        };
        fits.then_some(id)
    }
}
