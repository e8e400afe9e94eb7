//! Transfer (RFC 3515): REFER in a call's dialog, and the NOTIFYs of its implicit subscription.
//!
//! ```text
//!   ours:    refer ─▶ REFER ──202──▶ ReferProgress ──NOTIFY, NOTIFY …──▶ ReferProgress … the last one is_final
//!   theirs:  REFER ─▶ Request ─▶ accept_refer: 202, NOTIFY 100 ─▶ notify_refer(180), notify_refer(200): the end
//! ```
//!
//! One transfer of a call at a time each way; ours ends when the user forgets it, too. `Refer-Sub: false` (RFC 4488) is understood both ways. The subscription lives
//! in the call's dialog and ends with the call.

use std::time::{Duration, Instant};

use super::call::Phase;
use super::event::{CallHandle, Event, RequestHandle};
use super::ledger::{Extras, Owner, Wake};
use super::refusal::Refusal;
use super::{CallError, Endpoint};
use crate::dialog::Dialog;
use crate::flow::Flow;
use crate::header::refer::ReferTo;
use crate::header::sipfrag::{SubscriptionState, parse_sipfrag, write_sipfrag};
use crate::headers::{HeaderName, Headers};
use crate::message::{Body, Method, Reply, Request, Response, reason_phrase};
use crate::table::Id;
use crate::transaction::key::Key;

/// How long a transfer may take: longer than any phone rings. Then the subscription is over.
pub const REFER_LIFE: Duration = Duration::from_secs(300);

/// Our REFER.
#[derive(Debug)]
pub(crate) struct TransferOut {
    /// CSeq of the REFER, by which its NOTIFYs may be told from those of another (§2.4.6).
    id: u32,
    transaction: Id,
    /// When we stop waiting for NOTIFYs.
    until: Instant,
    /// The last word has come; further NOTIFYs are answered and not told.
    is_over: bool,
}

/// Theirs, accepted.
#[derive(Debug)]
pub(crate) struct TransferIn {
    /// CSeq of the REFER, which tells its NOTIFYs from those of another (§2.4.6).
    id: u32,
    until: Instant,
    /// A NOTIFY of ours has no answer yet.
    notifying: bool,
    /// The newest word that waits for that answer.
    waiting: Option<(u16, String)>,
    /// The last word that was said.
    said: (u16, String),
}

/// Their REFER that waits for the user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReferAsk {
    cseq: u32,
    wants_notify: bool,
}

/// A call's transfers.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    out: Option<TransferOut>,
    /// The user has given up an earlier one whose subscription nobody has ended: NOTIFYs without an id may be its own.
    has_forgotten: bool,
    inward: Option<TransferIn>,
}

impl Transfers {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let out = self.out.as_ref().filter(|out| !out.is_over).map(|out| out.until);
        [out, self.inward.as_ref().map(|inward| inward.until)].into_iter().flatten().min()
    }

    /// Our REFER has left anew, with other headers and this CSeq.
    pub(crate) fn sent_again(&mut self, transaction: Id, next: Id, cseq: u32) {
        if let Some(out) = self.out.as_mut().filter(|out| out.transaction == transaction) {
            (out.transaction, out.id) = (next, cseq);
        }
    }
}

fn wants_no_notify(headers: &Headers) -> bool {
    let value = headers.get(HeaderName::ReferSub).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("false")
}

impl Endpoint {
    // --- ours ---

    /// Asks the peer to call `target` instead of us; how it fares is [`Event::ReferProgress`]. The call stays up: hang it up
    /// when the target has answered, or go on with it when that failed. One transfer of a call at a time.
    pub fn refer(
        &mut self,
        call: CallHandle,
        target: &ReferTo,
        headers: Headers,
        now: Instant,
    ) -> Result<(), CallError> {
        let id = Id::from(call);
        let is_full = self.is_full_in_dialog();
        let state = self.calls.get_mut(id).ok_or(CallError::Unknown)?;
        if state.phase != Phase::Confirmed {
            return Err(CallError::State(state.doing()));
        }
        if state
            .transfers
            .as_ref()
            .and_then(|transfers| transfers.out.as_ref())
            .is_some_and(|out| !out.is_over)
        {
            return Err(CallError::State("a transfer is under way"));
        }
        if is_full {
            return Err(CallError::Full("transaction"));
        }
        let mut all = Headers::new();
        all.push_raw(b"Refer-To", target.to_wire().as_bytes());
        if !headers.contains(HeaderName::ReferredBy)
            && let Some(ours) = state.dialog.as_ref().and_then(|dialog| dialog.local_addr())
        {
            all.push_raw(b"Referred-By", format!("<{}>", ours.uri.as_str()).as_bytes());
        }
        all.append(&headers);
        let Some((branch, bytes, flow)) = self.write_in_call(id, &Method::Refer, &all, None) else {
            return Err(CallError::Unknown);
        };
        let transaction = self.start_client(&Method::Refer, &branch, bytes, flow, Owner::Refer(id), now);
        if let Some(state) = self.calls.get_mut(id) {
            let refer = state.dialog.as_ref().map_or(0, Dialog::last_cseq);
            let transfers = state.transfers.get_or_insert_default();
            transfers.out =
                Some(TransferOut { id: refer, transaction, until: now + REFER_LIFE, is_over: false });
        }
        self.arm(Wake::Call(id));
        Ok(())
    }

    /// The user waits for our transfer no longer: what still comes of it is answered and not told, and another one may begin.
    pub fn forget_refer(&mut self, call: CallHandle) -> Result<(), CallError> {
        let state = self.calls.get_mut(call.into()).ok_or(CallError::Unknown)?;
        if let Some(transfers) = &mut state.transfers
            && let Some(out) = transfers.out.as_mut().filter(|out| !out.is_over)
        {
            out.is_over = true;
            transfers.has_forgotten = true;
        }
        Ok(())
    }

    /// Our REFER has its final response.
    pub(super) fn refer_answered(&mut self, id: Id, transaction: Id, response: &Response, now: Instant) {
        let status = response.status;
        let is_final = status >= 300 || wants_no_notify(response.head.headers());
        if self.is_refer_of(id, transaction) {
            self.refer_progress(id, status, &response.reason, is_final);
        }
        if status == 481 || status == 408 {
            self.dialog_lost(id, status, now);
        }
    }

    /// Our REFER was not answered.
    pub(super) fn refer_failed(&mut self, id: Id, transaction: Id) {
        if self.is_refer_of(id, transaction) {
            self.refer_progress(id, 408, reason_phrase(408), true);
        }
    }

    /// Whether a transaction is that of our newest REFER.
    fn is_refer_of(&self, id: Id, transaction: Id) -> bool {
        let transfers = self.calls.get(id).and_then(|call| call.transfers.as_ref());
        transfers.and_then(|all| all.out.as_ref()).is_some_and(|out| out.transaction == transaction)
    }

    fn refer_progress(&mut self, id: Id, status: u16, reason: &str, is_final: bool) {
        let out = self
            .calls
            .get_mut(id)
            .and_then(|call| call.transfers.as_mut()?.out.as_mut())
            .filter(|out| !out.is_over);
        let Some(out) = out else { return };
        out.is_over = is_final;
        let reason = reason.to_owned();
        self.events.push_back(Event::ReferProgress { call: id.into(), status, reason, is_final });
    }

    /// A NOTIFY in the dialog: of our transfer, or the user's if it wants such.
    pub(super) fn handle_notify(&mut self, id: Id, notify: Request, key: Key, flow: Flow, now: Instant) {
        let Some(event) = notify.header(HeaderName::Event) else {
            let refusal = self.bad_event("no Event");
            return self.refuse(&notify, key, flow, refusal, now);
        };
        let package = event.split(';').next().unwrap_or_default().trim();
        let is_ours = package.eq_ignore_ascii_case("refer")
            && self
                .calls
                .get(id)
                .is_some_and(|call| call.transfers.as_ref().is_some_and(|transfers| transfers.out.is_some()));
        if !is_ours {
            let wanted = [&self.config.in_dialog_methods, &self.config.accepted_methods];
            if wanted.iter().any(|methods| methods.contains(&Method::Notify)) {
                return self.surface(notify, Some(id), None, key, flow, now);
            }
            return self.refuse(&notify, key, flow, Refusal::unknown_dialog(&Method::Notify), now);
        }
        let refer = event.split(';').skip(1).find_map(|param| param.trim().strip_prefix("id="));
        let refer = refer.map(|id| id.trim().to_owned());
        let state = notify.header(HeaderName::SubscriptionState).map(SubscriptionState::parse);
        let fragment = parse_sipfrag(&notify.body);
        self.finish_at_once(&notify, key, flow, &Reply::new(200), Extras::Plain, Owner::Nobody, now);
        // Without Subscription-State, as in the years of its draft, the status alone says when it is over.
        let is_terminated = matches!(state, Some(Ok(SubscriptionState { is_terminated: true, .. })));
        let is_last = is_terminated || matches!(fragment, Some((200.., _)));
        if !self.is_notify_of_newest(id, refer.as_deref(), is_last) {
            return;
        }
        match fragment {
            Some((status, reason)) => {
                self.refer_progress(id, status, &reason, status >= 200 || is_terminated);
            }
            // It ended and nobody says how.
            None if is_terminated => self.refer_progress(id, 500, "no word of the target", true),
            None => {}
        }
    }

    /// Whether a NOTIFY tells of our newest transfer. One that names none is of the one that the user has forgotten, as long
    /// as that one goes on: better a transfer of which nothing is heard than a call that ends for another's success.
    fn is_notify_of_newest(&mut self, id: Id, refer: Option<&str>, is_last: bool) -> bool {
        let transfers = self.calls.get_mut(id).and_then(|call| call.transfers.as_mut());
        let Some(transfers) = transfers else { return false };
        let Some(out) = &transfers.out else { return false };
        let is_newest = match refer.map(str::parse::<u32>) {
            Some(Ok(refer)) => refer == out.id,
            Some(Err(_)) | None => !transfers.has_forgotten,
        };
        if is_last && (!is_newest || out.is_over) {
            transfers.has_forgotten = false;
        }
        is_newest
    }

    // --- theirs ---

    /// What a REFER of theirs asks; what is wrong with it otherwise.
    pub(super) fn check_refer(&self, id: Option<Id>, refer: &Request) -> Result<ReferAsk, Box<Refusal>> {
        let mut values = refer.head.headers().all_bytes(HeaderName::ReferTo);
        let target = values.next().and_then(|value| std::str::from_utf8(value).ok());
        let is_one = values.next().is_none() && target.is_some_and(|target| ReferTo::parse(target).is_ok());
        if !is_one {
            return Err(Refusal::new(400, "refer_to", "not one usable Refer-To").into());
        }
        let is_busy = id.and_then(|id| self.calls.get(id)?.transfers.as_ref()?.inward.as_ref()).is_some();
        if is_busy {
            return Err(Refusal::new(491, "one_transfer", "REFER").into());
        }
        let wants_notify = !wants_no_notify(refer.head.headers());
        Ok(ReferAsk { cseq: refer.head.cseq().number, wants_notify })
    }

    /// Accepts a REFER that came as [`Event::Request`] in a call's dialog: 202, and a NOTIFY that says that we try. Report
    /// the rest with [`Endpoint::notify_refer`].
    pub fn accept_refer(&mut self, request: RequestHandle, now: Instant) -> Result<(), CallError> {
        let exchange = self.exchanges.get(request.into()).ok_or(CallError::Unknown)?;
        let (Some(id), Some(ask)) = (exchange.call, exchange.refer) else { return Err(CallError::Method) };
        let mut reply = Reply::new(202);
        if !ask.wants_notify {
            reply.headers.push_raw(b"Refer-Sub", b"false");
        }
        self.reply(request, reply, now)?;
        let Some(call) = self.calls.get_mut(id).filter(|_| ask.wants_notify) else { return Ok(()) };
        call.transfers.get_or_insert_default().inward = Some(TransferIn {
            id: ask.cseq,
            until: now + REFER_LIFE,
            notifying: false,
            waiting: None,
            said: (100, reason_phrase(100).to_owned()),
        });
        self.arm(Wake::Call(id));
        self.notify_refer(id.into(), 100, "", now)
    }

    /// Tells who sent the accepted REFER how the call to its target fares: a NOTIFY with this status (and its standard
    /// phrase if `reason` is empty). A final one (from 200 on) ends the subscription. While a NOTIFY is on its way only the
    /// newest word waits.
    pub fn notify_refer(
        &mut self,
        call: CallHandle,
        status: u16,
        reason: &str,
        now: Instant,
    ) -> Result<(), CallError> {
        let id = Id::from(call);
        let state = self.calls.get_mut(id).ok_or(CallError::Unknown)?;
        let Some(inward) = state.transfers.as_mut().and_then(|transfers| transfers.inward.as_mut()) else {
            return Err(CallError::State("no transfer is under way"));
        };
        let reason = if reason.is_empty() { reason_phrase(status) } else { reason };
        inward.waiting = Some((status, reason.to_owned()));
        if !inward.notifying {
            self.send_notify(id, None, now);
        }
        Ok(())
    }

    /// Sends what waits; `ended`: the reason of a subscription that ends without a final status.
    fn send_notify(&mut self, id: Id, ended: Option<&str>, now: Instant) {
        let Some(transfers) = self.calls.get_mut(id).and_then(|call| call.transfers.as_mut()) else { return };
        let Some(inward) = transfers.inward.as_mut() else { return };
        let word = inward.waiting.take();
        if word.is_none() && ended.is_none() {
            return;
        }
        if let Some(word) = word {
            inward.said = word;
        }
        inward.notifying = true;
        let (status, reason) = &inward.said;
        let left_s = inward.until.saturating_duration_since(now).as_secs();
        let is_last = *status >= 200 || ended.is_some();
        let state = match (is_last, ended) {
            (true, ended) => format!("terminated;reason={}", ended.unwrap_or("noresource")),
            (false, _) => format!("active;expires={left_s}"),
        };
        let mut headers = Headers::new();
        headers.push_raw(b"Event", format!("refer;id={}", inward.id).as_bytes());
        headers.push_raw(b"Subscription-State", state.as_bytes());
        let body = Body {
            content_type: "message/sipfrag;version=2.0",
            bytes: write_sipfrag(*status, reason).into(),
        };
        if is_last {
            transfers.inward = None;
        }
        if let Some((branch, bytes, flow)) = self.write_in_call(id, &Method::Notify, &headers, Some(&body)) {
            self.start_client(&Method::Notify, &branch, bytes, flow, Owner::Notify(id), now);
        }
    }

    /// Our NOTIFY is answered (or was not): a refusal ends the subscription and nothing else (RFC 5057 §5.1).
    pub(super) fn notify_answered(&mut self, id: Id, status: u16, now: Instant) {
        let Some(transfers) = self.calls.get_mut(id).and_then(|call| call.transfers.as_mut()) else { return };
        let Some(inward) = transfers.inward.as_mut() else { return };
        inward.notifying = false;
        if status >= 300 {
            transfers.inward = None;
        } else {
            self.send_notify(id, None, now);
        }
    }

    /// A transfer has taken too long.
    pub(super) fn wake_transfers(&mut self, id: Id, now: Instant) {
        let Some(transfers) = self.calls.get_mut(id).and_then(|call| call.transfers.as_mut()) else { return };
        let out_is_late = transfers.out.as_ref().is_some_and(|out| !out.is_over && now >= out.until);
        let inward_is_late = transfers.inward.as_ref().is_some_and(|inward| now >= inward.until);
        if out_is_late {
            self.refer_progress(id, 408, reason_phrase(408), true);
        }
        if inward_is_late {
            self.send_notify(id, Some("timeout"), now);
        }
    }

    /// 489, with the packages that are served.
    pub(super) fn bad_event(&self, detail: &str) -> Refusal {
        let mut refusal = Refusal::new(489, "event_package", detail);
        let mut packages = "refer".to_owned();
        for package in &self.config.event_packages {
            packages.push_str(", ");
            packages.push_str(package);
        }
        refusal.reply.headers.push_raw(b"Allow-Events", packages.as_bytes());
        refusal
    }
}
