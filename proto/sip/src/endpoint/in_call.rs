//! Inside a dialog, both roles: BYE, re-INVITE, other requests, and the end of a call (RFC 3261 §12.2, §14, §15).

use std::time::{Duration, Instant};

use super::call::{PendingUpdate, Phase};
use super::carried::Carried;
use super::event::{CallHandle, EndReason, Event, NoResponse, RequestHandle};
use super::ledger::{Extras, Owner, Wake};
use super::refusal::Refusal;
use super::session::Ask;
use super::uac::finish;
use super::{CallError, Endpoint};
use crate::dialog;
use crate::flow::Flow;
use crate::header::reason::Reason;
use crate::headers::{HeaderName, Headers};
use crate::message::{Body, Method, Reply, Request};
use crate::table::Id;
use crate::transaction::Machine;
use crate::transaction::key::Key;

/// Recovery on timer expiry (Q.850): what we waited for did not come.
pub(super) const TIMER_EXPIRY: u16 = 102;

impl Endpoint {
    // --- verbs ---

    /// Ends the call whatever its state: BYE if confirmed, CANCEL for our INVITE, 480 for an unanswered one of theirs.
    /// `headers` (for instance Reason) go into it.
    pub fn hang_up(&mut self, call: CallHandle, headers: Headers, now: Instant) -> Result<(), CallError> {
        let state = self.calls.get(call.into()).ok_or(CallError::Unknown)?;
        match state.phase {
            Phase::Incoming { .. } => {
                let reply = Reply { headers, ..Reply::new(480) };
                self.respond(call, reply, now)
            }
            Phase::Outgoing { .. } => self.cancel_with(call.into(), headers, now),
            Phase::Confirmed => self.bye(call, headers, now),
            Phase::Closing => Ok(()),
        }
    }

    /// BYE; `headers`: for instance Reason. If our 2xx is not acknowledged yet, the BYE leaves when it is, or when it is
    /// clear that it will not be (§15).
    pub fn bye(&mut self, call: CallHandle, headers: Headers, now: Instant) -> Result<(), CallError> {
        let id = Id::from(call);
        let state = self.calls.get_mut(id).ok_or(CallError::Unknown)?;
        if state.phase != Phase::Confirmed {
            return Err(CallError::State(state.doing()));
        }
        if state.unacked.is_some() {
            state.bye_wanted = Some(headers);
            return Ok(());
        }
        if let Some((transaction, cseq)) = state.ack_wanted.take() {
            self.send_ack(id, transaction, cseq, None);
        }
        self.send_bye(id, &headers, now);
        Ok(())
    }

    /// Re-INVITE with a new offer (or none, asking for one). It waits for a refresh of ours that is under way, and for the
    /// ACK to our last 2xx.
    pub fn reinvite(&mut self, call: CallHandle, body: Option<Body>, now: Instant) -> Result<(), CallError> {
        let id = Id::from(call);
        let state = self.calls.get_mut(id).ok_or(CallError::Unknown)?;
        if !state.is_idle() {
            // The user cannot know of a refresh, ours or theirs, that is under way.
            let waits_for_refresh = state.invite_out.is_some() && state.invite_out == state.session.refresh;
            let waits_for_ack =
                state.invite_in.is_none() && state.invite_out.is_none() && state.unacked.is_some();
            let may_wait = state.phase == Phase::Confirmed && state.bye_wanted.is_none();
            if may_wait && (waits_for_refresh || waits_for_ack) && state.reinvite_wanted.is_none() {
                state.reinvite_wanted = Some(body);
                return Ok(());
            }
            return Err(CallError::State(state.doing()));
        }
        if self.is_full_in_dialog() {
            return Err(CallError::Full("transaction"));
        }
        let Some((branch, bytes, flow)) =
            self.write_in_call(id, &Method::Invite, &Headers::new(), body.as_ref())
        else {
            return Err(CallError::Unknown);
        };
        let transaction = self.start_client(&Method::Invite, &branch, bytes, flow, Owner::Call(id), now);
        if let Some(state) = self.calls.get_mut(id) {
            state.invite_out = Some(transaction);
            state.offered = body.is_some();
            state.offer_out = body.filter(Body::is_sdp).map(|body| body.bytes.into());
        }
        Ok(())
    }

    /// A request in a call's dialog: INFO, UPDATE, MESSAGE …; its end is [`Event::Response`].
    pub fn request_in_call(
        &mut self,
        call: CallHandle,
        method: Method,
        headers: Headers,
        body: Option<Body>,
        now: Instant,
    ) -> Result<RequestHandle, CallError> {
        let id = Id::from(call);
        let state = self.calls.get(id).ok_or(CallError::Unknown)?;
        if matches!(method, Method::Invite | Method::Ack | Method::Cancel | Method::Bye) {
            return Err(CallError::Method);
        }
        if state.current().is_none() || state.phase == Phase::Closing {
            return Err(CallError::State(state.doing()));
        }
        if self.is_full_in_dialog() {
            return Err(CallError::Full("transaction"));
        }
        let Some((branch, bytes, flow)) = self.write_in_call(id, &method, &headers, body.as_ref()) else {
            return Err(CallError::Unknown);
        };
        let handle = self.start_exchange(&method, &branch, bytes, flow, Some(id), None, now);
        if method == Method::Update
            && let Some(exchange) = self.exchanges.get_mut(handle.into())
        {
            let offer: Option<Box<[u8]>> = body.filter(Body::is_sdp).map(|body| body.bytes.into());
            if let (true, Some(call)) = (offer.is_some(), self.calls.get_mut(id)) {
                call.update_out = Some(handle.into());
            }
            exchange.update = Some(Box::new(PendingUpdate { offer, ..PendingUpdate::default() }));
        }
        Ok(handle)
    }

    /// Writes a request in a dialog: branch, bytes, and where it goes.
    pub(super) fn write_in_call(
        &mut self,
        id: Id,
        method: &Method,
        headers: &Headers,
        body: Option<&Body>,
    ) -> Option<(String, Vec<u8>, Flow)> {
        let call = self.calls.get(id)?;
        let (flow, own) = (call.next_flow(), call.own.clone());
        let (branch, via) = self.new_via(flow, own.host.as_deref());
        let dialog = self.calls.get_mut(id)?.current_mut()?;
        let cseq = dialog.next_cseq();
        let mut writer = dialog.write(method, cseq, &via);
        let refreshes_target = matches!(
            method,
            Method::Invite | Method::Update | Method::Refer | Method::Subscribe | Method::Notify
        );
        let supported = refreshes_target.then(|| self.supported_in(Some(id)));
        self.write_own_headers(&mut writer, supported.as_deref(), flow, &own);
        if matches!(method, Method::Invite | Method::Update) {
            self.write_session(&mut writer, id);
        }
        Some((branch, finish(writer, headers, body), flow))
    }

    /// BYE now; its answer ends the call.
    pub(super) fn send_bye(&mut self, id: Id, headers: &Headers, now: Instant) {
        self.refuse_pending(id, now);
        self.stop_waiting(id, now);
        let Some((branch, bytes, flow)) = self.write_in_call(id, &Method::Bye, headers, None) else { return };
        self.start_client(&Method::Bye, &branch, bytes, flow, Owner::Call(id), now);
        if let Some(call) = self.calls.get_mut(id) {
            call.phase = Phase::Closing;
            call.unacked = None;
            call.invite_out = None;
        }
    }

    /// 487 to an INVITE or re-INVITE of theirs that will not be answered any more.
    fn refuse_pending(&mut self, id: Id, now: Instant) {
        let pending = self.calls.get_mut(id).and_then(|call| call.invite_in.take());
        if let Some(invite) = pending {
            self.respond_on(invite, &Reply::new(487), Extras::Plain, now);
        }
    }

    /// A re-INVITE of ours does not outlive its call by more than 64·T1, whatever the peer says or does not say to it.
    fn stop_waiting(&mut self, id: Id, now: Instant) {
        let until = now + self.config.timers.t1_64();
        if let Some(invite) = self.calls.get(id).and_then(|call| call.invite_out) {
            self.limit_invite(invite, until);
        }
    }

    /// The final response to an INVITE of ours is not waited for any longer than that.
    pub(super) fn limit_invite(&mut self, invite: Id, until: Instant) {
        if let Some(Machine::InviteClient(machine)) =
            self.transactions.get_mut(invite).map(|invite| &mut invite.machine)
        {
            machine.limit(until);
            self.arm(Wake::Transaction(invite));
        }
    }

    // --- requests ---

    pub(super) fn handle_in_call(&mut self, id: Id, request: Request, key: Key, flow: Flow, now: Instant) {
        let Some(call) = self.calls.get_mut(id) else { return };
        let remote_tag = request.head.from().tag().unwrap_or_default();
        let Some(dialog) = call.dialog_with_mut(&remote_tag) else { return };
        if !dialog.accept(request.head.cseq().number) {
            let refusal = Refusal::new(500, "cseq_order", request.head.cseq().number);
            return self.refuse(&request, key, flow, refusal, now);
        }
        let remote_tag: Box<str> = remote_tag.as_ref().into();
        let had = std::mem::replace(&mut call.flow, flow).connection;
        call.session.hear(&request.head);
        call.sent_by_port = Some(request.head.via().port_or_default());
        let is_closing = call.phase == Phase::Closing;
        let is_new_way = had != flow.connection;
        if is_new_way {
            self.carry(flow.connection, Carried::Call(id));
        }
        let Some(call) = self.calls.get_mut(id) else { return };
        match request.method {
            Method::Bye => self.handle_bye(id, &request, key, flow, now),
            Method::Options => {
                let (reply, extras) = (Reply::new(200), Extras::Capabilities);
                self.finish_at_once(&request, key, flow, &reply, extras, Owner::Nobody, now);
            }
            _ if is_closing => {
                let refusal = Refusal::unknown_dialog(&request.method);
                self.refuse(&request, key, flow, refusal, now);
            }
            Method::Invite => self.handle_reinvite(id, request, key, flow, now),
            Method::Update if !request.body.is_empty() && call.waits_for_our_answer() => {
                // RFC 3311 §5.2: their own offer before this one has no answer yet.
                let wait_s = self.random.duration(Duration::ZERO, Duration::from_secs(10)).as_secs() as u32;
                let mut refusal = Refusal::new(500, "one_offer", "UPDATE");
                refusal.reply = refusal.reply.retry_after_s(wait_s);
                self.refuse(&request, key, flow, refusal, now);
            }
            Method::Update if !request.body.is_empty() && call.has_open_offer() => {
                self.refuse(&request, key, flow, Refusal::new(491, "one_offer", "UPDATE"), now);
            }
            Method::Update => {
                let ask = Ask::of(&request);
                let new_target = dialog::target(&request.head).map(|target| (remote_tag, target));
                if request.body.is_empty() && ask.interval_s.is_some() {
                    if let Some((tag, target)) = new_target
                        && let Some(dialog) =
                            self.calls.get_mut(id).and_then(|call| call.dialog_with_mut(&tag))
                    {
                        dialog.set_target(target);
                    }
                    let reply = Reply { headers: self.answer_update(id, &ask, now), ..Reply::new(200) };
                    let owner = Owner::Call(id);
                    return self.finish_at_once(&request, key, flow, &reply, Extras::Dialog, owner, now);
                }
                let update = PendingUpdate { new_target, ask, offer: None };
                self.surface(request, Some(id), Some(update), key, flow, now);
            }
            Method::Prack => self.handle_prack(id, request, key, flow, now),
            Method::Notify => self.handle_notify(id, request, key, flow, now),
            _ => self.surface(request, Some(id), None, key, flow, now),
        }
    }

    fn handle_bye(&mut self, id: Id, bye: &Request, key: Key, flow: Flow, now: Instant) {
        self.finish_at_once(bye, key, flow, &Reply::new(200), Extras::Plain, Owner::Nobody, now);
        self.refuse_pending(id, now);
        let Some(call) = self.calls.get(id) else { return };
        let reason = bye.header(HeaderName::Reason).map(str::to_owned);
        match call.phase {
            Phase::Incoming { .. } => self.end_call(id, EndReason::Cancelled { reason }, now),
            // Both hung up at once: the answer to our own BYE ends the call.
            Phase::Closing => {}
            // Not allowed to who was called (§15); one fork's end is not the call's.
            Phase::Outgoing { .. } => {
                let tag = bye.head.from().tag().unwrap_or_default();
                if let Some(call) = self.calls.get_mut(id) {
                    call.early.retain(|early| *early.dialog.remote_tag() != *tag);
                }
            }
            Phase::Confirmed => self.end_call(id, EndReason::RemoteBye { reason }, now),
        }
    }

    fn handle_reinvite(&mut self, id: Id, request: Request, key: Key, flow: Flow, now: Instant) {
        let Some(call) = self.calls.get_mut(id) else { return };
        if call.invite_in.is_some() {
            // §14.2: a second INVITE before our answer to the first.
            let wait_s = self.random.duration(Duration::ZERO, Duration::from_secs(10)).as_secs() as u32;
            let mut refusal = Refusal::new(500, "one_invite", "INVITE");
            refusal.reply = refusal.reply.retry_after_s(wait_s);
            return self.refuse(&request, key, flow, refusal, now);
        }
        // Who sends the next re-INVITE has given the one before up, and its ACK will not come. If that one only refreshed, there
        // is nobody to tell.
        call.unacked.take_if(|unacked| unacked.is_hidden);
        let is_busy =
            call.invite_out.is_some() || call.update_out.is_some() || call.reinvite_wanted.is_some();
        if is_busy || call.unacked.is_some() || call.ack_wanted.is_some() {
            return self.refuse(&request, key, flow, Refusal::new(491, "one_offer", "INVITE"), now);
        }
        if let Some(dialog) = &mut call.dialog {
            dialog.refresh_target(&request.head);
        }
        let Some(transaction) = self.open_server(&request, key, flow, Owner::Call(id), None, now) else {
            return;
        };
        let ask = Ask::of(&request);
        let is_mere_refresh = self.is_mere_refresh(id, &ask);
        let Some(call) = self.calls.get_mut(id) else { return };
        call.invite_in = Some(transaction);
        call.session.asked = ask;
        if let (true, Some(ours)) = (is_mere_refresh, call.local_sdp.clone()) {
            let reply = Reply::new(200).body(Body::sdp(ours.into_vec()));
            let _ = self.respond_now(id, reply, true, now);
            return;
        }
        self.respond_on(transaction, &Reply::new(100), Extras::Plain, now);
        self.events.push_back(Event::Reinvite { call: id.into(), request: Box::new(request) });
    }

    // --- what goes wrong ---

    /// Our 2xx was not acknowledged for 64·T1 (§13.3.1.4): hang up.
    pub(super) fn ack_missed(&mut self, id: Id, now: Instant) {
        let Some(call) = self.calls.get_mut(id) else { return };
        call.unacked = None;
        if let Some(headers) = call.bye_wanted.take() {
            return self.send_bye(id, &headers, now);
        }
        self.bye_and_forget(id, &Reason::q850(TIMER_EXPIRY, "no ACK"), now);
        self.end_call(id, EndReason::NoAck, now);
    }

    /// A request of ours in the call had no answer.
    pub(super) fn call_request_failed(&mut self, id: Id, transaction: Id, why: NoResponse, now: Instant) {
        let Some(call) = self.calls.get_mut(id) else { return };
        let is_invite = call.invite_out == Some(transaction);
        if is_invite {
            call.invite_out = None;
            call.offer_out = None;
        }
        if is_invite && call.session.refresh == Some(transaction) {
            self.refresh_failed(id, Err(why), now);
            return self.send_wanted_reinvite(id, now);
        }
        match (&call.phase, why) {
            (Phase::Outgoing { .. }, _) if is_invite => self.end_call(id, EndReason::NoResponse(why), now),
            (Phase::Confirmed, NoResponse::Timeout) if is_invite => self.dialog_lost(id, 408, now),
            (Phase::Confirmed, NoResponse::Transport) if is_invite => self.reinvite_refused(id, 503),
            (Phase::Closing, _) => self.end_call(id, EndReason::LocalBye { status: None }, now),
            _ => {}
        }
    }

    pub(super) fn reinvite_refused(&mut self, id: Id, status: u16) {
        let retry_after = (status == 491).then(|| self.glare_wait(id));
        self.events.push_back(Event::ReinviteRefused { call: id.into(), status, retry_after });
    }

    /// How long to wait after 491 (§14.1): who made the Call-ID waits longer, so that one of the two comes first.
    pub(super) fn glare_wait(&mut self, id: Id) -> Duration {
        let owns_call_id = self.calls.get(id).is_some_and(|call| call.called);
        let (from_ms, range_ms) = if owns_call_id { (2_100, 1_900) } else { (0, 2_000) };
        self.random.duration(Duration::from_millis(from_ms), Duration::from_millis(range_ms))
    }

    /// The peer does not know the dialog any more (481), or does not answer in it (408): over (§12.2.1.2).
    pub(super) fn dialog_lost(&mut self, id: Id, status: u16, now: Instant) {
        let Some(call) = self.calls.get(id) else { return };
        if call.phase != Phase::Confirmed {
            return;
        }
        self.refuse_pending(id, now);
        if status != 481 {
            self.bye_and_forget(id, &Reason::q850(TIMER_EXPIRY, "no response"), now);
        }
        self.end_call(id, EndReason::DialogLost { status }, now);
    }

    /// A BYE whose answer nobody waits for; like every BYE of ours it says why.
    pub(super) fn bye_and_forget(&mut self, id: Id, reason: &Reason, now: Instant) {
        let mut headers = Headers::new();
        headers.push_raw(HeaderName::Reason.as_str().as_bytes(), reason.to_string().as_bytes());
        if let Some((branch, bytes, flow)) = self.write_in_call(id, &Method::Bye, &headers, None) {
            self.start_client(&Method::Bye, &branch, bytes, flow, Owner::Nobody, now);
        }
    }

    /// The one place where a call ends.
    pub(super) fn end_call(&mut self, id: Id, why: EndReason, now: Instant) {
        self.refuse_pending(id, now);
        self.stop_waiting(id, now);
        let Some(call) = self.calls.remove(id) else { return };
        self.tags.remove(&call.local_tag);
        let why = call.why.unwrap_or(why);
        self.events.push_back(Event::Ended { call: id.into(), why });
    }
}
