//! The client's side: our INVITE and our other requests, and the responses to them (RFC 3261 §8.1, §9.1, §13.2).

use std::borrow::Cow;
use std::time::Instant;

use super::call::{Call, Exchange, OwnAddress, Phase};
use super::carried::Carried;
use super::config::{InviteRequest, OutgoingRequest};
use super::event::{CallHandle, EndReason, Event, RequestHandle};
use super::ledger::{Owner, SentAck, Wake};
use super::reliable::{self, OnProvisional};
use super::session::{self, Session};
use super::{CallError, Endpoint, Reliability};
use crate::dialog::Dialog;
use crate::digest::Credentials;
use crate::flow::Flow;
use crate::grammar;
use crate::header::NameAddr;
use crate::headers::{HeaderName, Headers};
use crate::message::{Body, Message, Method, Request, Response};
use crate::parse::parse;
use crate::table::Id;
use crate::transaction::key::Key;
use crate::transaction::{Machine, OnResponse};
use crate::uri::{Scheme, Uri};
use crate::write::Writer;

/// Forks of one INVITE whose 2xx we acknowledge and hang up. More would be an attack: they are ignored.
const MAX_FORKS: usize = 8;

impl Endpoint {
    // --- verbs ---

    /// Calls somebody.
    pub fn invite(&mut self, invite: InviteRequest, now: Instant) -> Result<CallHandle, CallError> {
        if self.calls.len() >= self.config.max_calls {
            return Err(CallError::Full("call"));
        }
        if self.is_full() {
            return Err(CallError::Full("transaction"));
        }
        if invite.call_id.as_deref().is_some_and(|call_id| !is_call_id(call_id)) {
            return Err(CallError::Value("Call-ID"));
        }
        let tag: Box<str> = self.random.token("").into();
        let ring_until = Some(now + invite.ring_timeout.unwrap_or(self.config.ring_timeout));
        let phase = Phase::Outgoing { ring_until, cancel: None };
        let reliable = invite.reliable.unwrap_or(self.config.reliable);
        let session = Session::new(invite.session_timer.or(self.config.session_timer));
        let mut call = Call::new(phase, tag.clone(), invite.flow, session);
        call.offered = invite.body.is_some();
        call.offer_out =
            invite.body.as_ref().filter(|body| body.is_sdp()).map(|body| body.bytes.as_slice().into());
        call.offers_100rel = reliable != Reliability::Never;
        call.credentials = invite.credentials;
        let is_secure = is_secure(&invite.target, &invite.route);
        call.own = OwnAddress { host: invite.advertised_host, user: invite.contact_user, is_secure };
        let own = call.own.clone();
        let id = self.calls.insert(call);
        self.carry(invite.flow.connection, Carried::Call(id));
        self.tags.insert(tag.clone(), id);

        let begin = Begin {
            method: &Method::Invite,
            target: &invite.target,
            from: &invite.from,
            to: invite.to.as_ref(),
            route: &invite.route,
            tag: &tag,
            flow: invite.flow,
            host: own.host.as_deref(),
            call_id: invite.call_id.as_deref(),
            cseq: 1,
            max_forwards: invite.max_forwards,
        };
        let (branch, mut writer) = self.begin_request(&begin);
        let supported = self.supported_in(Some(id));
        self.write_own_headers(&mut writer, Some(&supported), invite.flow, &own);
        if reliable == Reliability::Require {
            writer.header(HeaderName::Require, reliable::TAG);
        }
        if let Some(replaces) = &invite.replaces {
            writer.header(HeaderName::Replaces, &replaces.to_wire());
        }
        self.write_session(&mut writer, id);
        let bytes = finish(writer, &invite.headers, invite.body.as_ref());
        let transaction =
            self.start_client(&Method::Invite, &branch, bytes, invite.flow, Owner::Call(id), now);
        if let Some(call) = self.calls.get_mut(id) {
            call.invite_out = Some(transaction);
        }
        self.arm(Wake::Call(id));
        Ok(id.into())
    }

    /// Whether anything, be it a 100, has come to our INVITE: whoever has sent it somewhere else if not asks this.
    pub fn has_heard(&self, call: CallHandle) -> bool {
        let invite = self.calls.get(call.into()).and_then(|call| self.transactions.get(call.invite_out?));
        !invite.is_some_and(|invite| match &invite.machine {
            Machine::InviteClient(machine) => machine.is_calling(),
            _ => false,
        })
    }

    /// Gives our INVITE up. Waits for the first provisional response as RFC 3261 §9.1 asks; if the 2xx was faster, the
    /// call is acknowledged and hung up. Then comes `Ended`.
    pub fn cancel(&mut self, call: CallHandle, now: Instant) -> Result<(), CallError> {
        self.cancel_with(call.into(), Headers::new(), now)
    }

    pub(super) fn cancel_with(&mut self, id: Id, headers: Headers, now: Instant) -> Result<(), CallError> {
        let call = self.calls.get_mut(id).ok_or(CallError::Unknown)?;
        let Phase::Outgoing { ring_until, cancel } = &mut call.phase else {
            return Err(CallError::State(call.doing()));
        };
        *ring_until = None;
        *cancel = Some(headers);
        self.send_cancel(id, now);
        Ok(())
    }

    pub(super) fn give_up_ringing(&mut self, id: Id, now: Instant) {
        let _ = self.cancel_with(id, Headers::new(), now);
    }

    /// The ACK with our answer, after `Answered { wants_ack: true }`.
    pub fn ack(&mut self, call: CallHandle, body: Body, now: Instant) -> Result<(), CallError> {
        let id = Id::from(call);
        let call = self.calls.get_mut(id).ok_or(CallError::Unknown)?;
        let Some((transaction, cseq)) = call.ack_wanted.take() else {
            return Err(CallError::State(call.doing()));
        };
        if body.is_sdp() {
            call.local_sdp = Some(body.bytes.as_slice().into());
        }
        self.send_ack(id, transaction, cseq, Some(&body));
        let _ = now;
        Ok(())
    }

    /// A request outside a dialog: OPTIONS, REGISTER, MESSAGE …; its end is [`Event::Response`].
    pub fn request(&mut self, request: OutgoingRequest, now: Instant) -> Result<RequestHandle, CallError> {
        if matches!(request.method, Method::Invite | Method::Ack | Method::Cancel | Method::Bye) {
            return Err(CallError::Method);
        }
        if self.is_full() {
            return Err(CallError::Full("transaction"));
        }
        if request.call_id.as_deref().is_some_and(|call_id| !is_call_id(call_id)) {
            return Err(CallError::Value("Call-ID"));
        }
        if request.contact.as_ref().is_some_and(|contact| contact.params.chars().any(char::is_control)) {
            return Err(CallError::Value("Contact"));
        }
        let tag = self.random.token("");
        let (flow, host) = (request.flow, request.advertised_host);
        let begin = Begin {
            method: &request.method,
            target: &request.target,
            from: &request.from,
            to: request.to.as_ref(),
            route: &request.route,
            tag: &tag,
            flow,
            host: host.as_deref(),
            call_id: request.call_id.as_deref(),
            cseq: request.cseq.clamp(1, (1 << 31) - 1),
            max_forwards: 70,
        };
        let (branch, mut writer) = self.begin_request(&begin);
        let own = OwnAddress { host, user: None, is_secure: is_secure(&request.target, &request.route) };
        if let Some(contact) = &request.contact {
            let ours = OwnAddress { user: Some(contact.user.as_str().into()), ..own.clone() };
            let value = self.contact(flow, &ours);
            writer.header_fmt(HeaderName::Contact, format_args!("{value}{}", contact.params));
        }
        self.write_own_headers(&mut writer, None, flow, &own);
        let bytes = finish(writer, &request.headers, request.body.as_ref());
        let handle =
            self.start_exchange(&request.method, &branch, bytes, flow, None, request.credentials, now);
        if let Some(exchange) = self.exchanges.get_mut(handle.into()) {
            exchange.host = own.host;
        }
        Ok(handle)
    }

    /// Sends a request whose answer the user waits for.
    pub(super) fn start_exchange(
        &mut self,
        method: &Method,
        branch: &str,
        bytes: Vec<u8>,
        flow: Flow,
        call: Option<Id>,
        credentials: Option<Credentials>,
        now: Instant,
    ) -> RequestHandle {
        let transaction = self.start_client(method, branch, bytes, flow, Owner::Nobody, now);
        let exchange = self.exchanges.insert(Exchange {
            transaction,
            call,
            credentials,
            host: None,
            update: None,
            refer: None,
        });
        if let Some(transaction) = self.transactions.get_mut(transaction) {
            transaction.owner = Owner::Exchange(exchange);
        }
        exchange.into()
    }

    // --- writing ---

    /// Request-Line to CSeq of a request outside a dialog (§8.1.1). The password of the target stays in the Request-URI.
    fn begin_request(&mut self, begin: &Begin<'_>) -> (String, Writer) {
        let Begin { method, target, from, to, route, tag, flow, host, call_id, cseq, max_forwards } = *begin;
        let (branch, via) = self.new_via(flow, host);
        let call_id = call_id.map_or_else(|| self.random.token(""), str::to_owned);
        let bare = |addr: &NameAddr| {
            let uri = addr.uri.without_password().without_headers();
            NameAddr { display: addr.display.clone(), ..NameAddr::new(uri) }.to_wire()
        };
        let mut writer = Writer::request(method, &target.without_headers());
        writer.header(HeaderName::Via, &via);
        writer.header_fmt(HeaderName::MaxForwards, format_args!("{max_forwards}"));
        for route in route {
            writer.header(HeaderName::Route, &route.to_wire());
        }
        writer.header_fmt(HeaderName::From, format_args!("{};tag={tag}", bare(from)));
        let to = to.map_or_else(|| bare(&NameAddr::new(target.clone())), bare);
        writer.header(HeaderName::To, &to);
        writer.header(HeaderName::CallId, &call_id);
        writer.header_fmt(HeaderName::CSeq, format_args!("{cseq} {method}"));
        (branch, writer)
    }

    /// What our requests say of us. `supported`: of one that makes or keeps a dialog, the value of Supported.
    pub(super) fn write_own_headers(
        &self,
        writer: &mut Writer,
        supported: Option<&str>,
        flow: Flow,
        own: &OwnAddress,
    ) {
        if let Some(supported) = supported {
            writer.header(HeaderName::Contact, &self.contact(flow, own));
            writer.header(HeaderName::Allow, &self.allow);
            if !supported.is_empty() {
                writer.header(HeaderName::Supported, supported);
            }
        }
        writer.header(HeaderName::UserAgent, &self.config.user_agent);
    }

    /// What we support in a call: what it was told not to use is left out.
    pub(super) fn supported_in(&self, id: Option<Id>) -> Cow<'_, str> {
        let Some(call) = id.and_then(|id| self.calls.get(id)) else { return Cow::Borrowed(&self.supported) };
        let without_timer = call.session.timer.is_off();
        let without_100rel = call.called && !call.offers_100rel;
        if !without_timer && !without_100rel {
            return Cow::Borrowed(&self.supported);
        }
        let kept = self.supported.split(", ").filter(|tag| {
            !(without_timer && *tag == session::TAG || without_100rel && *tag == reliable::TAG)
        });
        kept.collect::<Vec<_>>().join(", ").into()
    }

    // --- responses ---

    pub(super) fn handle_response(&mut self, response: Response, now: Instant) {
        let head = &response.head;
        let key = Key::client(&head.via().branch().unwrap_or_default(), &head.cseq().method);
        let Some(&id) = self.index.get(&key) else {
            self.counters.stray_responses += 1;
            return;
        };
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let owner = transaction.owner;
        let verdict = match &mut transaction.machine {
            Machine::InviteClient(machine) => machine.handle_response(response.status, now),
            Machine::Client(machine) => machine.handle_response(response.status, now),
            Machine::InviteServer(_) | Machine::Server(_) => OnResponse::Absorb,
        };
        let is_invite = matches!(transaction.machine, Machine::InviteClient(_));
        match verdict {
            OnResponse::Absorb => {
                self.counters.retransmits_in += u64::from(response.status >= 200);
            }
            OnResponse::Ack => {
                self.counters.retransmits_in += 1;
                self.repeat_ack(id, None);
            }
            OnResponse::AckAndPass => {
                self.ack_refusal(id, &response);
                self.invite_refused(id, owner, response, now);
            }
            OnResponse::Pass if !is_invite => self.request_answered(id, owner, response, now),
            OnResponse::Pass if response.status < 200 => self.invite_progress(id, owner, response, now),
            OnResponse::Pass => self.invite_answered(id, owner, response, now),
        }
        self.arm(Wake::Transaction(id));
    }

    fn invite_progress(&mut self, transaction: Id, owner: Owner, response: Response, now: Instant) {
        let Owner::Call(id) = owner else { return };
        let phase = self.calls.get(id).map(|call| &call.phase);
        if !matches!(phase, Some(Phase::Outgoing { .. })) {
            // A re-INVITE: nobody rings, and nobody gives it up but us.
            let is_up = phase == Some(&Phase::Confirmed);
            let patience = if is_up { self.config.ring_timeout } else { self.config.timers.t1_64() };
            return self.limit_invite(transaction, now + patience);
        }
        if response.status > 100
            && let OnProvisional::Surface { wants_prack } = self.note_provisional(id, &response, now)
        {
            let response = Box::new(response);
            self.events.push_back(Event::Provisional { call: id.into(), response, wants_prack });
        }
        self.send_cancel(id, now);
    }

    /// A 2xx: the first answers the call, a repeated one wants its ACK again, another fork's is acknowledged and hung up
    /// (§13.2.2.4).
    fn invite_answered(&mut self, transaction: Id, owner: Owner, response: Response, now: Instant) {
        let tag = response.head.to().tag().unwrap_or_default().into_owned();
        if self.repeat_ack(transaction, Some(&tag)) {
            self.counters.retransmits_in += 1;
            return;
        }
        let call = match owner {
            Owner::Call(id) => self.calls.get_mut(id).map(|call| (id, call)),
            _ => None,
        };
        let Some((id, call)) = call else { return self.hang_up_fork(transaction, &response, now) };
        let cseq = response.head.cseq().number;
        let is_pending = call.invite_out == Some(transaction);
        match (&call.phase, &mut call.dialog) {
            (Phase::Outgoing { cancel, .. }, dialog) => {
                let cancel = cancel.clone();
                *dialog = Dialog::uac(&response);
                if dialog.is_none() {
                    // A 2xx must have a Contact. Without it the INVITE's own target serves.
                    let target = self.request_of(transaction).map(|invite| invite.uri);
                    if let Some(call) = self.calls.get_mut(id) {
                        call.dialog = target.map(|target| Dialog::uac_to(&response, target));
                    }
                }
                let Some(call) = self.calls.get_mut(id) else { return };
                let Call { dialog, early, .. } = call;
                if let (Some(dialog), Some(at)) =
                    (dialog, early.iter().position(|early| *early.dialog.remote_tag() == *tag))
                {
                    dialog.continue_from(&early.swap_remove(at).dialog);
                }
                call.phase = Phase::Confirmed;
                call.invite_out = None;
                call.prack_wanted = None;
                call.local_sdp = call.offer_out.take().or(call.local_sdp.take());
                self.session_answered(id, &response, now);
                let Some(call) = self.calls.get_mut(id) else { return };
                let wants_ack = !call.offered && cancel.is_none();
                if wants_ack {
                    call.ack_wanted = Some((transaction, cseq));
                } else {
                    self.send_ack(id, transaction, cseq, None);
                }
                match cancel {
                    Some(headers) => self.send_bye(id, &headers, now),
                    None => {
                        let response = Box::new(response);
                        self.events.push_back(Event::Answered { call: id.into(), response, wants_ack });
                    }
                }
            }
            (Phase::Confirmed, Some(dialog)) if is_pending => {
                dialog.refresh_target(&response.head);
                call.invite_out = None;
                let wants_ack = !call.offered;
                if wants_ack {
                    call.ack_wanted = Some((transaction, cseq));
                }
                call.local_sdp = call.offer_out.take().or(call.local_sdp.take());
                let is_refresh = call.session.refresh == Some(transaction);
                if is_refresh {
                    call.session.refresh = None;
                }
                if !wants_ack {
                    self.send_ack(id, transaction, cseq, None);
                }
                let is_hidden = is_refresh && self.reinvite_answer_is_hidden(id, &response);
                self.session_answered(id, &response, now);
                if !is_hidden {
                    self.report_reinvite_answered(id, response, wants_ack);
                }
                if is_refresh {
                    self.send_wanted_reinvite(id, now);
                }
            }
            // It has crossed our BYE: the session is over, and the peer must still hear that we have it (§13.2.2.4).
            (Phase::Closing, Some(dialog)) if *dialog.remote_tag() == *tag => {
                self.send_ack(id, transaction, cseq, None);
            }
            // Repeated while the user has yet to write the ACK.
            (_, Some(dialog)) if *dialog.remote_tag() == *tag => self.counters.retransmits_in += 1,
            _ => self.hang_up_fork(transaction, &response, now),
        }
    }

    /// A 2xx of a fork that came too late.
    fn hang_up_fork(&mut self, transaction: Id, response: &Response, now: Instant) {
        let Some(invite) = self.transactions.get(transaction).filter(|invite| invite.acks.len() < MAX_FORKS)
        else {
            return;
        };
        let base = invite.flow;
        let owner = invite.owner;
        let Some(mut dialog) = Dialog::uac(response) else { return };
        let call = self.call_of_owner(owner).and_then(|id| self.calls.get(id));
        if let Some(early) = call.and_then(|call| call.dialog_with(dialog.remote_tag())) {
            // It may have had a PRACK, whose number must not come again.
            dialog.continue_from(early);
        }
        let host = call.and_then(|call| call.own.host.clone());
        let session = Session::new(None);
        let flow = Call::new(Phase::Confirmed, dialog.local_tag().into(), base, session).flow_along(&dialog);
        let (_, via) = self.new_via(flow, host.as_deref());
        let ack = dialog.write(&Method::Ack, response.head.cseq().number, &via).finish(b"");
        self.transmit(flow, ack.clone());
        self.carry(flow.connection, Carried::Transaction(transaction));
        if let Some(invite) = self.transactions.get_mut(transaction) {
            invite.acks.push(SentAck { remote_tag: dialog.remote_tag().into(), bytes: ack, flow });
        }
        let cseq = dialog.next_cseq();
        let (branch, via) = self.new_via(flow, host.as_deref());
        let bye = dialog.write(&Method::Bye, cseq, &via).finish(b"");
        self.start_client(&Method::Bye, &branch, bye, flow, Owner::Nobody, now);
    }

    fn invite_refused(&mut self, transaction: Id, owner: Owner, response: Response, now: Instant) {
        let Owner::Call(id) = owner else { return };
        let Some(call) = self.calls.get_mut(id).filter(|call| call.invite_out == Some(transaction)) else {
            return;
        };
        let status = response.status;
        let cancelled = matches!(call.phase, Phase::Outgoing { cancel: Some(_), .. });
        if !cancelled
            && (self.try_credentials(transaction, owner, &response, now)
                || self.try_longer_session(transaction, owner, &response, now))
        {
            return;
        }
        let Some(call) = self.calls.get_mut(id) else { return };
        call.invite_out = None;
        call.offer_out = None;
        if call.session.refresh == Some(transaction) && status != 481 {
            self.refresh_failed(id, Ok(&response), now);
            return self.send_wanted_reinvite(id, now);
        }
        match call.phase {
            Phase::Outgoing { .. } => {
                self.end_call(id, EndReason::Failed { response: Box::new(response) }, now)
            }
            Phase::Confirmed if status == 481 || status == 408 => self.dialog_lost(id, status, now),
            Phase::Confirmed => self.reinvite_refused(id, status),
            Phase::Incoming { .. } | Phase::Closing => {}
        }
    }

    /// The final response to a request other than INVITE.
    fn request_answered(&mut self, transaction: Id, owner: Owner, response: Response, now: Instant) {
        if self.try_credentials(transaction, owner, &response, now)
            || self.try_longer_session(transaction, owner, &response, now)
        {
            return;
        }
        match owner {
            Owner::Nobody | Owner::Prack(_) => {}
            Owner::Refresh(id) => self.refresh_answered(id, &response, now),
            Owner::Refer(id) => self.refer_answered(id, transaction, &response, now),
            Owner::Notify(id) => self.notify_answered(id, response.status, now),
            Owner::Call(id) => {
                let status = Some(response.status);
                if self.calls.get(id).is_some_and(|call| call.phase == Phase::Closing) {
                    self.end_call(id, EndReason::LocalBye { status }, now);
                }
            }
            Owner::Exchange(exchange) => {
                let Some(value) = self.exchanges.remove(exchange) else { return };
                self.update_is_over(value.call, exchange);
                let call = value.call.filter(|&call| self.calls.get(call).is_some());
                let status = response.status;
                if let (Some(id), Some(update), 200..=299) = (call, value.update, status) {
                    self.update_accepted(id, update.offer, &response, now);
                }
                self.events.push_back(Event::Response {
                    handle: exchange.into(),
                    call: call.map(Into::into),
                    result: Ok(Box::new(response)),
                });
                if let Some(call) = call.filter(|_| status == 481 || status == 408) {
                    self.dialog_lost(call, status, now);
                }
            }
        }
    }

    /// There is room for another offer.
    pub(super) fn update_is_over(&mut self, call: Option<Id>, exchange: Id) {
        if let Some(call) = call.and_then(|id| self.calls.get_mut(id)) {
            call.update_out.take_if(|update| *update == exchange);
        }
    }

    /// Our UPDATE holds from now on.
    fn update_accepted(&mut self, id: Id, offer: Option<Box<[u8]>>, response: &Response, now: Instant) {
        let Some(call) = self.calls.get_mut(id) else { return };
        call.local_sdp = offer.or(call.local_sdp.take());
        let tag = response.head.to().tag().unwrap_or_default();
        if let Some(dialog) = call.dialog_with_mut(&tag) {
            dialog.refresh_target(&response.head);
        }
        if call.phase == Phase::Confirmed {
            self.session_answered(id, response, now);
        }
    }

    // --- ACK and CANCEL ---

    /// Our request, read back from what was sent: for the rare messages that copy its headers.
    pub(super) fn request_of(&self, transaction: Id) -> Option<Request> {
        match parse(&self.transactions.get(transaction)?.message) {
            Ok(Message::Request(request)) => Some(request),
            _ => None,
        }
    }

    /// ACK of a refusal, within the transaction (§17.1.1.3).
    fn ack_refusal(&mut self, transaction: Id, response: &Response) {
        let Some(invite) = self.request_of(transaction) else { return };
        let to = response.head.headers().all_bytes(HeaderName::To).next().unwrap_or_default();
        let bytes = companion(&invite, &Method::Ack, to).finish(b"");
        let Some(state) = self.transactions.get_mut(transaction) else { return };
        let flow = state.flow;
        state.acks = vec![SentAck { remote_tag: "".into(), bytes: bytes.clone(), flow }];
        self.transmit(flow, bytes);
    }

    /// Sends the ACK of this fork (or of the refusal) again; false if there is none.
    fn repeat_ack(&mut self, transaction: Id, remote_tag: Option<&str>) -> bool {
        let Some(state) = self.transactions.get(transaction) else { return false };
        let Some(ack) = state.acks.iter().find(|ack| remote_tag.is_none_or(|tag| *ack.remote_tag == *tag))
        else {
            return false;
        };
        let (flow, bytes) = (ack.flow, ack.bytes.clone());
        self.counters.retransmits_out += 1;
        self.transmit(flow, bytes);
        true
    }

    /// ACK of a 2xx, of the dialog (§13.2.2.4).
    pub(super) fn send_ack(&mut self, id: Id, transaction: Id, cseq: u32, body: Option<&Body>) {
        let Some(call) = self.calls.get(id) else { return };
        let (flow, host) = (call.next_flow(), call.own.host.clone());
        let (_, via) = self.new_via(flow, host.as_deref());
        let Some((call, dialog)) = self.calls.get(id).and_then(|call| Some((call, call.dialog.as_ref()?)))
        else {
            return;
        };
        let mut writer = dialog.write(&Method::Ack, cseq, &via);
        for (name, value) in &call.authorization {
            writer.header(*name, value);
        }
        let remote_tag = dialog.remote_tag().into();
        let bytes = finish(writer, &Headers::new(), body);
        if let Some(invite) = self.transactions.get_mut(transaction) {
            invite.acks.push(SentAck { remote_tag, bytes: bytes.clone(), flow });
        }
        self.carry(flow.connection, Carried::Transaction(transaction));
        self.transmit(flow, bytes);
    }

    /// CANCEL, if it is wanted, allowed already and not sent yet.
    fn send_cancel(&mut self, id: Id, now: Instant) {
        let Some(call) = self.calls.get(id) else { return };
        let (Phase::Outgoing { cancel: Some(headers), .. }, Some(transaction)) =
            (&call.phase, call.invite_out)
        else {
            return;
        };
        let headers = headers.clone();
        let Some(state) = self.transactions.get_mut(transaction) else { return };
        let Machine::InviteClient(machine) = &mut state.machine else { return };
        if !machine.can_cancel() {
            return;
        }
        machine.cancelled(now);
        let flow = state.flow;
        self.arm(Wake::Transaction(transaction));
        let Some(invite) = self.request_of(transaction) else { return };
        let to = invite.head.headers().all_bytes(HeaderName::To).next().unwrap_or_default();
        let mut writer = companion(&invite, &Method::Cancel, to);
        writer.headers(&headers);
        let branch = invite.head.via().branch().unwrap_or_default().into_owned();
        self.start_client(&Method::Cancel, &branch, writer.finish(b""), flow, Owner::Nobody, now);
    }
}

/// What a request outside a dialog begins with.
struct Begin<'a> {
    method: &'a Method,
    target: &'a Uri,
    from: &'a NameAddr,
    to: Option<&'a NameAddr>,
    route: &'a [NameAddr],
    tag: &'a str,
    flow: Flow,
    host: Option<&'a str>,
    call_id: Option<&'a str>,
    cseq: u32,
    max_forwards: u8,
}

fn is_call_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| grammar::is_word(b) || b == b'@')
}

/// Whether a request goes to a `sips:` URI, by its first route or its target.
fn is_secure(target: &Uri, route: &[NameAddr]) -> bool {
    target.scheme() == Scheme::Sips || route.first().is_some_and(|route| route.uri.scheme() == Scheme::Sips)
}

/// CANCEL, or the ACK of a refusal: the INVITE's Request-URI, top Via, Route, From, Call-ID and CSeq number.
fn companion(invite: &Request, method: &Method, to: &[u8]) -> Writer {
    let headers = invite.head.headers();
    let mut writer = Writer::request(method, &invite.uri);
    for name in
        [HeaderName::Via, HeaderName::MaxForwards, HeaderName::Route, HeaderName::From, HeaderName::CallId]
    {
        for value in headers.all_bytes(name) {
            writer.line(name.as_str(), value);
        }
    }
    writer.line(HeaderName::To.as_str(), to);
    writer.header_fmt(HeaderName::CSeq, format_args!("{} {method}", invite.head.cseq().number));
    writer
}

/// The user's headers and body.
pub(super) fn finish(mut writer: Writer, headers: &Headers, body: Option<&Body>) -> Vec<u8> {
    writer.headers(headers);
    match body {
        Some(body) => {
            writer.header(HeaderName::ContentType, body.content_type);
            writer.finish(&body.bytes)
        }
        None => writer.finish(b""),
    }
}
