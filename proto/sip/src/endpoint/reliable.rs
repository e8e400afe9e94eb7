//! Reliable provisional responses (RFC 3262), both roles.
//!
//! ```text
//!   UAS: respond(18x) ─▶ RSeq, sent again until ─PRACK─▶ 200, Pracked; the next one that waits; the 2xx that waits
//!                          └ 64·T1: 504, Ended { NoPrack }
//!   UAC: 18x + RSeq ─▶ in order? ─▶ PRACK by itself, Provisional     (out of order: not a word; again: not a word)
//!                                └▶ carries an offer: Provisional { wants_prack }, and the user says prack(answer)
//! ```
//!
//! One response is unconfirmed at a time; the next waits for the PRACK, and so does a 2xx: it must while one with a
//! description is unconfirmed (§3), and after any other the caller hears things in their order.

use std::collections::VecDeque;
use std::time::Instant;

use super::call::{Early, IsRequired, Phase};
use super::event::{CallHandle, EndReason, Event};
use super::ledger::{Extras, Owner, Wake};
use super::refusal::Refusal;
use super::session::print_of;
use super::uac::finish;
use super::{CallError, Endpoint, Reliability, SessionTimer};
use crate::dialog::Dialog;
use crate::flow::Flow;
use crate::grammar;
use crate::header::rack::RAck;
use crate::headers::{HeaderName, Headers};
use crate::message::{Body, Head, Method, Reply, Request, Response};
use crate::random::Random;
use crate::table::Id;
use crate::timer::PROVISIONAL_REPEAT;
use crate::transaction::key::Key;
use crate::transaction::{Backoff, Due};

/// The option tag.
pub(crate) const TAG: &str = "100rel";

/// Provisional responses that wait for the PRACK of an earlier one; a call has two or three in all. Full: `respond` fails.
pub const MAX_PROVISIONALS_WAITING: usize = 8;

/// Early dialogs of one INVITE that are kept, one a fork. More are still heard, but get no PRACK.
pub const MAX_EARLY_DIALOGS: usize = 8;

/// The reliable provisional responses to one INVITE of theirs.
#[derive(Debug)]
pub(crate) struct Provisionals {
    /// CSeq of the INVITE.
    cseq: u32,
    /// RSeq of the last one.
    rseq: u32,
    /// Its status, for the repetition each minute.
    status: u16,
    /// The last one has not been confirmed.
    unconfirmed: Option<Unconfirmed>,
    waiting: VecDeque<Reply>,
    /// The 2xx that waits for a PRACK.
    answer: Option<Reply>,
    /// The INVITE had no offer, so a description of ours is one.
    pub(crate) offers: bool,
}

#[derive(Debug)]
struct Unconfirmed {
    has_description: bool,
    /// `None` once a final response has left: nothing is sent again, but a late PRACK still fits.
    repeat: Option<(Backoff, Instant)>,
}

impl Provisionals {
    pub(crate) fn new(cseq: u32, first_rseq: u32, offers: bool) -> Provisionals {
        Provisionals {
            cseq,
            rseq: first_rseq,
            status: 180,
            unconfirmed: None,
            waiting: VecDeque::new(),
            answer: None,
            offers,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let (repeat, give_up) = self.unconfirmed.as_ref()?.repeat.as_ref()?;
        Some(repeat.next.min(*give_up))
    }

    /// Whether a 2xx has to wait.
    pub(crate) fn delays_the_answer(&self) -> bool {
        self.unconfirmed.is_some() || !self.waiting.is_empty()
    }

    /// Keeps a 2xx until the PRACK comes; false if one is kept already.
    pub(crate) fn keep_answer(&mut self, reply: Reply) -> bool {
        let is_first = self.answer.is_none();
        if is_first {
            self.answer = Some(reply);
        }
        is_first
    }

    /// A final response leaves: no repetition any more.
    pub(crate) fn stop(&mut self) {
        self.waiting.clear();
        self.answer = None;
        if let Some(unconfirmed) = &mut self.unconfirmed {
            unconfirmed.repeat = None;
        }
    }

    fn handle_timeout(&mut self, now: Instant) -> Due {
        match self.unconfirmed.as_mut().and_then(|unconfirmed| unconfirmed.repeat.as_mut()) {
            Some((_, give_up)) if now >= *give_up => Due::TimedOut,
            Some((repeat, _)) => repeat.fire(now),
            None => Due::Nothing,
        }
    }
}

/// Our PRACK that waits for the user's answer.
#[derive(Debug)]
pub(crate) struct PrackWanted {
    remote_tag: Box<str>,
    rseq: u32,
    cseq: u32,
}

/// What to do with a provisional response to our INVITE.
pub(super) enum OnProvisional {
    /// The user hears of it.
    Surface { wants_prack: bool },
    /// A repeated one, or one that overtook another.
    Absorb,
}

/// Whether a request can confirm provisional responses, and whether it must.
pub(super) fn asked(head: &Head) -> Option<IsRequired> {
    let is_required = head.lists(HeaderName::Require, TAG);
    (is_required || head.lists(HeaderName::Supported, TAG)).then_some(IsRequired(is_required))
}

/// §3: the first RSeq is random, with room above.
pub(super) fn first_rseq(random: &mut Random) -> u32 {
    (random.next_u64() % (1 << 30)) as u32
}

impl Endpoint {
    // --- UAS ---

    /// What holds for this call instead of the configuration's own: for an incoming one before its first response other than
    /// 100, when the user has found out whose it is. Whoever must have reliable responses and may not is the user's to refuse
    /// (420); here it gets plain ones.
    pub fn agree(
        &mut self,
        call: CallHandle,
        reliable: Reliability,
        timer: Option<SessionTimer>,
    ) -> Result<(), CallError> {
        let id = Id::from(call);
        let rseq = first_rseq(&mut self.random);
        let state = self.calls.get_mut(id).ok_or(CallError::Unknown)?;
        let Some(invite) =
            state.invite_in.filter(|_| matches!(state.phase, Phase::Incoming { repeat_at: None }))
        else {
            return Err(CallError::State(state.doing()));
        };
        state.session.timer = timer.unwrap_or(state.session.timer);
        let cseq = self.transactions.get(invite).and_then(|of| of.server.as_ref()).map(|server| server.cseq);
        match (reliable, state.asks_100rel, cseq) {
            (Reliability::Never, _, _) => state.reliable = None,
            (Reliability::Prefer | Reliability::Require, Some(_), Some(cseq)) if state.reliable.is_none() => {
                let offers = state.session.asked.sdp.is_none();
                state.reliable = Some(Box::new(Provisionals::new(cseq, rseq, offers)));
            }
            (Reliability::IfRequired, Some(IsRequired(false)), _) => state.reliable = None,
            _ => {}
        }
        Ok(())
    }

    /// Whether their INVITE gets its provisional responses reliably; 421 if it must and cannot.
    pub(super) fn reliability_of(&self, invite: &Request) -> Result<bool, Box<Refusal>> {
        let required = invite.head.lists(HeaderName::Require, TAG);
        let possible = required || invite.head.lists(HeaderName::Supported, TAG);
        match self.config.reliable {
            Reliability::Never => Ok(false),
            Reliability::IfRequired => Ok(required),
            Reliability::Prefer => Ok(possible),
            Reliability::Require if possible => Ok(true),
            Reliability::Require => {
                let mut refusal = Refusal::new(421, "reliable_provisionals", TAG);
                refusal.reply.headers.push_raw(b"Require", TAG.as_bytes());
                Err(refusal.into())
            }
        }
    }

    /// A provisional response that wants a PRACK: now, or when the one before has its own.
    pub(super) fn respond_reliably(
        &mut self,
        id: Id,
        mut reply: Reply,
        now: Instant,
    ) -> Result<(), CallError> {
        let timers = self.config.timers;
        let call = self.calls.get_mut(id).ok_or(CallError::Unknown)?;
        let (Some(invite), Some(provisionals)) = (call.invite_in, call.reliable.as_deref_mut()) else {
            return Err(CallError::State(call.doing()));
        };
        if provisionals.unconfirmed.is_some() {
            if provisionals.waiting.len() >= MAX_PROVISIONALS_WAITING {
                return Err(CallError::Full("provisional response"));
            }
            provisionals.waiting.push_back(reply);
            return Ok(());
        }
        provisionals.rseq += 1;
        provisionals.status = reply.status;
        let description = reply.body.as_ref().filter(|body| body.is_sdp());
        provisionals.unconfirmed = Some(Unconfirmed {
            has_description: description.is_some(),
            repeat: Some((Backoff::new(timers.t1, None, now), now + timers.t1_64())),
        });
        if let Some(description) = description {
            call.local_sdp = Some(description.bytes.as_slice().into());
        }
        reply.headers.push_raw(b"Require", TAG.as_bytes());
        reply.headers.push_raw(b"RSeq", provisionals.rseq.to_string().as_bytes());
        call.phase = Phase::Incoming { repeat_at: Some(now + PROVISIONAL_REPEAT) };
        self.respond_on(invite, &reply, Extras::Dialog, now);
        self.arm(Wake::Call(id));
        Ok(())
    }

    pub(super) fn handle_prack(&mut self, id: Id, prack: Request, key: Key, flow: Flow, now: Instant) {
        let rack = prack.header(HeaderName::RAck).map(RAck::parse);
        let Some(Ok(rack)) = rack else {
            return self.refuse(&prack, key, flow, Refusal::new(400, "rack", "no usable RAck"), now);
        };
        let Some(call) = self.calls.get_mut(id) else { return };
        let fits = call.reliable.as_deref_mut().filter(|sent| {
            sent.unconfirmed.is_some()
                && sent.rseq == rack.rseq
                && sent.cseq == rack.cseq.number
                && rack.cseq.method == Method::Invite
        });
        let Some(provisionals) = fits else {
            return self.refuse(&prack, key, flow, Refusal::unknown_dialog(&Method::Prack), now);
        };
        let had_description = provisionals.unconfirmed.take().is_some_and(|sent| sent.has_description);
        let next = provisionals.waiting.pop_front();
        let answer = if next.is_none() { provisionals.answer.take() } else { None };
        let is_answer = had_description && std::mem::take(&mut provisionals.offers);
        match prack.sdp() {
            Some(_) if !is_answer => self.surface(prack, Some(id), None, key, flow, now),
            description => {
                if let Some(description) = description {
                    call.remote_sdp = Some(print_of(description));
                }
                self.finish_at_once(&prack, key, flow, &Reply::new(200), Extras::Plain, Owner::Nobody, now);
                self.events.push_back(Event::Pracked { call: id.into(), prack: Box::new(prack) });
            }
        }
        if let Some(reply) = next {
            let _ = self.respond_reliably(id, reply, now);
        } else if let Some(reply) = answer {
            let _ = self.respond_now(id, reply, false, now);
        }
        self.arm(Wake::Call(id));
    }

    /// The unconfirmed response once more, or the end of the call.
    pub(super) fn wake_provisionals(&mut self, id: Id, now: Instant) {
        let Some(call) = self.calls.get_mut(id) else { return };
        let (Some(provisionals), Some(invite)) = (call.reliable.as_deref_mut(), call.invite_in) else {
            return;
        };
        match provisionals.handle_timeout(now) {
            Due::Resend => self.send_last_again(invite),
            Due::TimedOut => {
                call.invite_in = None;
                self.respond_on(invite, &Reply::new(504), Extras::Plain, now);
                self.end_call(id, EndReason::NoPrack, now);
            }
            Due::Nothing | Due::Done => {}
        }
    }

    /// Each minute a new one, for proxies on the way would take the old one for a retransmission. Without a description:
    /// that has been said.
    pub(super) fn repeat_reliably(&mut self, id: Id, now: Instant) -> bool {
        let Some(provisionals) = self.calls.get(id).and_then(|call| call.reliable.as_deref()) else {
            return false;
        };
        if provisionals.unconfirmed.is_none() {
            let _ = self.respond_reliably(id, Reply::new(provisionals.status), now);
        }
        true
    }

    // --- UAC ---

    /// The PRACK with our answer, after [`Event::Provisional`] with `wants_prack`.
    pub fn prack(&mut self, call: CallHandle, body: Body, now: Instant) -> Result<(), CallError> {
        let id = Id::from(call);
        let state = self.calls.get_mut(id).ok_or(CallError::Unknown)?;
        let Some(wanted) = state.prack_wanted.take() else { return Err(CallError::State(state.doing())) };
        state.offered = true;
        if body.is_sdp() {
            state.local_sdp = Some(body.bytes.as_slice().into());
        }
        self.send_prack(id, &wanted, Some(&body), now);
        Ok(())
    }

    /// A provisional response above 100: finds its early dialog, and confirms it if it wants that (§4).
    pub(super) fn note_provisional(&mut self, id: Id, response: &Response, now: Instant) -> OnProvisional {
        const SURFACE: OnProvisional = OnProvisional::Surface { wants_prack: false };
        let is_full = self.is_full_in_dialog();
        let Some(call) = self.calls.get_mut(id) else { return OnProvisional::Absorb };
        call.session.hear(&response.head);
        let Some(tag) = response.head.to().tag() else { return SURFACE };
        let at = match call.early.iter().position(|early| *early.dialog.remote_tag() == *tag) {
            Some(at) => at,
            None if call.early.len() >= MAX_EARLY_DIALOGS => return SURFACE,
            None => {
                let Some(dialog) = Dialog::uac(response) else { return SURFACE };
                call.early.push(Early { dialog, rseq: None });
                call.early.len() - 1
            }
        };
        let description = response.sdp().map(print_of);
        let wants_confirmation = call.offers_100rel && response.head.lists(HeaderName::Require, TAG);
        let rseq = response.header(HeaderName::RSeq).and_then(grammar::decimal).filter(|&rseq| rseq > 0);
        let (true, Some(rseq)) = (wants_confirmation, rseq) else {
            call.remote_sdp = description.or(call.remote_sdp);
            return SURFACE;
        };
        let early = &mut call.early[at];
        let in_order = early.rseq.is_none_or(|last| rseq == last.wrapping_add(1));
        if !in_order || is_full {
            self.counters.retransmits_in += 1;
            return OnProvisional::Absorb;
        }
        early.rseq = Some(rseq);
        early.dialog.refresh_target(&response.head);
        call.remote_sdp = description.or(call.remote_sdp);
        let is_cancelled = matches!(call.phase, Phase::Outgoing { cancel: Some(_), .. });
        let wants_prack = !call.offered && description.is_some() && !is_cancelled;
        let wanted = PrackWanted { remote_tag: tag.as_ref().into(), rseq, cseq: response.head.cseq().number };
        if wants_prack {
            call.prack_wanted = Some(wanted);
        } else {
            self.send_prack(id, &wanted, None, now);
        }
        OnProvisional::Surface { wants_prack }
    }

    fn send_prack(&mut self, id: Id, wanted: &PrackWanted, body: Option<&Body>, now: Instant) {
        let Some(call) = self.calls.get(id) else { return };
        let Some(early) = call.dialog_with(&wanted.remote_tag) else { return };
        let (flow, own) = (call.flow_along(early), call.own.clone());
        let (branch, via) = self.new_via(flow, own.host.as_deref());
        let Some(dialog) = self.calls.get_mut(id).and_then(|call| call.dialog_with_mut(&wanted.remote_tag))
        else {
            return;
        };
        let cseq = dialog.next_cseq();
        let mut writer = dialog.write(&Method::Prack, cseq, &via);
        writer.header_fmt(HeaderName::RAck, format_args!("{} {} INVITE", wanted.rseq, wanted.cseq));
        self.write_own_headers(&mut writer, None, flow, &own);
        let bytes = finish(writer, &Headers::new(), body);
        self.start_client(&Method::Prack, &branch, bytes, flow, Owner::Prack(id), now);
    }
}
