//! Session timers (RFC 4028), both roles: a call whose session nobody refreshes in time is over.
//!
//! ```text
//!   2xx ──▶ running ──half of the interval──▶ refresh: UPDATE without a body if the peer's Allow has it,
//!             ▲  │                                     else re-INVITE with our last description, octet for octet
//!             │  └──nobody refreshed──▶ BYE, Ended { SessionExpired }
//!             └───────2xx to a refresh, ours or theirs
//! ```
//!
//! The user sees only the end. A peer's UPDATE without a body and its re-INVITE with the description that it had sent before
//! are answered here; anything that changes the session goes to the user as ever, and refreshes on its way. Refreshes of ours
//! that are refused are tried again until the session expires; 422 raises the interval, 491 waits a random while.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::auth::is_digest;
use super::call::Phase;
use super::event::{EndReason, Event, NoResponse};
use super::in_call::TIMER_EXPIRY;
use super::ledger::{Owner, Wake};
use super::{Endpoint, SessionTimer};
use crate::header::reason::Reason;
use crate::header::session::{Refresher, SessionExpires, parse_min_se};
use crate::headers::{HeaderName, Headers};
use crate::message::{Body, Head, Method, Request, Response};
use crate::table::Id;
use crate::write::Writer;

/// The option tag.
pub(crate) const TAG: &str = "timer";

/// Refreshes in a row without any answer after which the peer counts as gone: the first may have met an outage.
const SILENT_REFRESHES_MAX: u8 = 2;

/// Wait before a refresh is tried again when the call is busy or the peer did not answer.
const RETRY: Duration = Duration::from_secs(2);

/// 64·T1 of the peer, whatever our own T1 is.
const TRANSACTION_LIFE: Duration = Duration::from_secs(32);

/// Longest wait before a refused refresh is tried again.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What a request says of the session timer, and of the description that comes with it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ask {
    /// Session-Expires.
    pub(crate) interval_s: Option<u32>,
    /// Min-SE; 0 if absent.
    pub(crate) min_se_s: u32,
    pub(crate) refresher: Option<Refresher>,
    /// Supported has `timer`.
    pub(crate) supports: bool,
    /// Its session description, as [`print_of`].
    pub(crate) sdp: Option<u64>,
}

impl Ask {
    pub(crate) fn of(request: &Request) -> Ask {
        let head = &request.head;
        let expires =
            request.header(HeaderName::SessionExpires).and_then(|value| SessionExpires::parse(value).ok());
        Ask {
            interval_s: expires.map(|expires| expires.interval_s),
            min_se_s: min_se_of(head).unwrap_or(0),
            refresher: expires.and_then(|expires| expires.refresher),
            supports: head.lists(HeaderName::Supported, TAG) || head.lists(HeaderName::Require, TAG),
            sdp: request.sdp().map(print_of),
        }
    }
}

/// A session description's fingerprint: whether the peer sends the same one again.
pub(crate) fn print_of(description: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    description.hash(&mut hasher);
    hasher.finish()
}

fn min_se_of(head: &Head) -> Option<u32> {
    head.headers().get(HeaderName::MinSe).and_then(|value| parse_min_se(value).ok())
}

/// A timer that runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Running {
    interval_s: u32,
    we_refresh: bool,
    /// When we refresh next; `None`: the peer does, or a refresh is on its way.
    refresh_at: Option<Instant>,
    expires_at: Instant,
    /// Refreshes in a row that nobody answered.
    silent: u8,
}

/// One call's session timer.
#[derive(Debug)]
pub(crate) struct Session {
    /// What we ask for and grant.
    pub(crate) timer: SessionTimer,
    /// The largest Min-SE that a 422 has told us; 0: none.
    min_se_s: u32,
    /// The peer's Allow has UPDATE.
    pub(crate) peer_updates: bool,
    /// The peer has spoken of timers.
    peer_has_timer: bool,
    /// What their pending INVITE asks for.
    pub(crate) asked: Ask,
    running: Option<Running>,
    /// The transaction of our refresh on its way.
    pub(crate) refresh: Option<Id>,
}

impl Session {
    pub(crate) fn new(timer: Option<SessionTimer>) -> Session {
        Session {
            timer: timer.unwrap_or(SessionTimer::OFF),
            min_se_s: 0,
            peer_updates: false,
            peer_has_timer: false,
            asked: Ask::default(),
            running: None,
            refresh: None,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let running = self.running.as_ref()?;
        Some(running.refresh_at.map_or(running.expires_at, |at| at.min(running.expires_at)))
    }

    /// Remembers what the peer can do.
    pub(crate) fn hear(&mut self, head: &Head) {
        if head.headers().contains(HeaderName::Allow) {
            self.peer_updates = head.lists(HeaderName::Allow, Method::Update.as_str());
        }
        if head.lists(HeaderName::Supported, TAG) || head.lists(HeaderName::Require, TAG) {
            self.peer_has_timer = true;
        }
    }

    /// The Session-Expires of a request of ours; in a dialog the roles stay as they are.
    fn wish(&self) -> Option<SessionExpires> {
        if self.timer.is_off() {
            return None;
        }
        let (interval_s, refresher) = match &self.running {
            Some(running) => {
                let refresher = if running.we_refresh { Refresher::Uac } else { Refresher::Uas };
                (running.interval_s, Some(refresher))
            }
            None => (self.timer.expires_s.max(self.timer.min_s()), self.timer.refresher),
        };
        Some(SessionExpires { interval_s: interval_s.max(self.min_se_s), refresher })
    }

    /// What we grant to a request (§9, table 2). `None`: no timer.
    pub(crate) fn grant(&self, ask: &Ask) -> Option<SessionExpires> {
        if self.timer.is_off() || (ask.interval_s.is_none() && !ask.supports) {
            return None;
        }
        let ours = self.timer.expires_s.max(self.timer.min_s()).max(ask.min_se_s);
        // Who cannot read a 422 gets the shortest that the RFC lets anybody grant (§5), whatever it asked for.
        let least = super::MIN_SE_S.max(ask.min_se_s);
        let interval_s = ask.interval_s.map_or(ours, |asked| asked.clamp(least, ours));
        let running = self.running.as_ref();
        let as_before = running.map(|r| if r.we_refresh { Refresher::Uas } else { Refresher::Uac });
        let refresher = if ask.supports {
            ask.refresher.or(as_before).or(self.timer.refresher).unwrap_or(Refresher::Uas)
        } else {
            Refresher::Uas
        };
        Some(SessionExpires { interval_s, refresher: Some(refresher) })
    }

    /// Begins anew after a 2xx; `None` ends the timer.
    pub(crate) fn start(&mut self, granted: Option<(u32, bool)>, now: Instant) {
        self.running = granted.map(|(interval_s, we_refresh)| {
            let interval = Duration::from_secs(interval_s.into());
            // §10: whoever waits for a refresh hangs up a little earlier than the session ends. A refresh leaves at half of
            // the interval, or so much earlier that all its retransmissions come before that.
            let early = (interval / 3).min(TRANSACTION_LIFE);
            let wait =
                (interval / 2).min(interval.saturating_sub(early + TRANSACTION_LIFE)).max(interval / 4);
            Running {
                interval_s,
                we_refresh,
                refresh_at: we_refresh.then(|| now + wait),
                expires_at: now + interval - if we_refresh { Duration::ZERO } else { early },
                silent: 0,
            }
        });
    }

    /// The same after our own 2xx, with the grant that it carried. Without one the timer is off (§7.2), but a refresher goes on:
    /// the peer may only have forgotten to say it again in the middle of a call, and would hang up.
    pub(crate) fn start_granted(&mut self, granted: Option<SessionExpires>, now: Instant) {
        let as_before =
            self.running.filter(|running| running.we_refresh).map(|running| (running.interval_s, true));
        let granted = granted.map(|granted| (granted.interval_s, granted.refresher == Some(Refresher::Uas)));
        self.start(granted.or(as_before), now);
    }

    /// What is too short for us in a request: Min-SE of the 422 (§9). Only for who can read it.
    pub(crate) fn too_short(timer: Option<SessionTimer>, ask: &Ask) -> Option<u32> {
        let timer = timer.filter(|timer| !timer.is_off())?;
        let asked = ask.interval_s.filter(|_| ask.supports)?;
        (asked < timer.min_s()).then(|| timer.min_s())
    }
}

/// Adds the grant to a 2xx. Require tells a peer that can do it that it must: refresh, or hang up when nobody does (§9).
pub(crate) fn push_grant(headers: &mut Headers, granted: &SessionExpires, ask: &Ask) {
    headers.push_raw(b"Session-Expires", granted.to_string().as_bytes());
    if ask.supports {
        headers.push_raw(b"Require", TAG.as_bytes());
    }
}

impl Endpoint {
    /// Session-Expires and Min-SE of an INVITE or UPDATE of ours.
    pub(super) fn write_session(&self, writer: &mut Writer, id: Id) {
        let Some(call) = self.calls.get(id) else { return };
        let session = &call.session;
        let in_dialog = call.dialog.is_some();
        if in_dialog && session.running.is_none() && !session.peer_has_timer {
            return;
        }
        let Some(wish) = session.wish() else { return };
        writer.header_fmt(HeaderName::SessionExpires, format_args!("{wish}"));
        let min_s = session.timer.min_s().max(session.min_se_s);
        if min_s > super::MIN_SE_S {
            writer.header_fmt(HeaderName::MinSe, format_args!("{min_s}"));
        }
    }

    /// A 2xx to an INVITE or UPDATE of ours (§7.2): what it says of the timer holds from now on.
    pub(super) fn session_answered(&mut self, id: Id, response: &Response, now: Instant) {
        let Some(call) = self.calls.get_mut(id) else { return };
        call.session.hear(&response.head);
        if let Some(description) = response.sdp() {
            call.remote_sdp = Some(print_of(description));
        }
        let expires =
            response.header(HeaderName::SessionExpires).and_then(|value| SessionExpires::parse(value).ok());
        // Nobody may answer less than we said that we bear (§9), and we refresh no faster.
        let least = call.session.timer.min_s();
        let granted = expires
            .filter(|expires| !call.session.timer.is_off() && expires.interval_s > 0)
            .map(|expires| (expires.interval_s.max(least), expires.refresher != Some(Refresher::Uas)));
        call.session.start(granted, now);
        self.arm(Wake::Call(id));
    }

    /// 422 to an INVITE or UPDATE of ours: the same once more with the interval that the peer wants (§7.3). False if it
    /// wants nothing that we had not offered.
    pub(super) fn try_longer_session(
        &mut self,
        transaction: Id,
        owner: Owner,
        response: &Response,
        now: Instant,
    ) -> bool {
        if response.status != 422 {
            return false;
        }
        let Some(call) = self.call_of_owner(owner).and_then(|id| self.calls.get_mut(id)) else {
            return false;
        };
        let Some(min_s) = min_se_of(&response.head) else { return false };
        let asked = call.session.wish().map_or(0, |wish| wish.interval_s);
        if min_s <= asked || call.session.timer.is_off() {
            return false;
        }
        call.session.min_se_s = min_s;
        let Some(wish) = call.session.wish() else { return false };
        let mut add = self.renewed_credentials(transaction, owner);
        add.push((HeaderName::SessionExpires, wish.to_string()));
        add.push((HeaderName::MinSe, min_s.to_string()));
        let drop = |name, value: &[u8]| {
            matches!(name, HeaderName::SessionExpires | HeaderName::MinSe) || is_digest(name, value)
        };
        self.send_again(transaction, owner, drop, &add, now).is_some()
    }

    /// The timer's deadline has come.
    pub(super) fn wake_session(&mut self, id: Id, now: Instant) {
        let Some(call) = self.calls.get(id).filter(|call| call.phase == Phase::Confirmed) else { return };
        let Some(running) = call.session.running else { return };
        if now >= running.expires_at {
            self.session_expired(id, now);
        } else if running.refresh_at.is_some_and(|at| now >= at) {
            self.refresh_session(id, now);
        }
    }

    fn session_expired(&mut self, id: Id, now: Instant) {
        self.bye_and_forget(id, &Reason::q850(TIMER_EXPIRY, "session timer expired"), now);
        self.end_call(id, EndReason::SessionExpired, now);
    }

    fn refresh_session(&mut self, id: Id, now: Instant) {
        let is_full = self.is_full_in_dialog();
        let Some(call) = self.calls.get_mut(id) else { return };
        let by_update = call.session.peer_updates || call.local_sdp.is_none();
        let is_busy = is_full || call.session.refresh.is_some() || !(by_update || call.is_idle());
        let Some(running) = &mut call.session.running else { return };
        if is_busy {
            running.refresh_at = Some(now + RETRY);
            return;
        }
        running.refresh_at = None;
        let body = if by_update { None } else { call.local_sdp.clone() };
        let method = if by_update { Method::Update } else { Method::Invite };
        let body = body.map(|description| Body::sdp(description.into_vec()));
        let Some((branch, bytes, flow)) = self.write_in_call(id, &method, &Headers::new(), body.as_ref())
        else {
            return;
        };
        let owner = if by_update { Owner::Refresh(id) } else { Owner::Call(id) };
        let transaction = self.start_client(&method, &branch, bytes, flow, owner, now);
        let Some(call) = self.calls.get_mut(id) else { return };
        call.session.refresh = Some(transaction);
        if !by_update {
            call.invite_out = Some(transaction);
            call.offered = true;
            call.offer_out = body.map(|body| body.bytes.into());
        }
    }

    /// Our UPDATE has its final response.
    pub(super) fn refresh_answered(&mut self, id: Id, response: &Response, now: Instant) {
        let status = response.status;
        let Some(call) = self.calls.get_mut(id) else { return };
        call.session.refresh = None;
        if status < 300 {
            if let Some(dialog) = &mut call.dialog {
                dialog.refresh_target(&response.head);
            }
            self.session_answered(id, response, now);
        } else if status == 481 {
            self.dialog_lost(id, status, now);
        } else {
            self.refresh_failed(id, Ok(response), now);
        }
        self.send_wanted_reinvite(id, now);
    }

    /// A refresh of ours was refused or not answered: when to try again.
    pub(super) fn refresh_failed(&mut self, id: Id, response: Result<&Response, NoResponse>, now: Instant) {
        let glare = self.glare_wait(id);
        let Some(call) = self.calls.get_mut(id) else { return };
        let by_update = call.session.peer_updates;
        call.session.refresh = None;
        let Some(running) = &mut call.session.running else { return };
        let status = match response {
            Ok(response) => response.status,
            Err(NoResponse::Timeout) => 408,
            // It was told at once, so it says nothing of the peer: a connection may come back.
            Err(NoResponse::Transport) => 503,
        };
        let retry = match status {
            405 | 501 if by_update => {
                call.session.peer_updates = false;
                Duration::ZERO
            }
            408 => {
                running.silent += 1;
                if running.silent >= SILENT_REFRESHES_MAX {
                    return self.session_expired(id, now);
                }
                RETRY
            }
            491 => glare,
            _ => {
                let asked = response.ok().and_then(|response| response.head.retry_after_s());
                let tenth = Duration::from_secs(running.interval_s.into()) / 10;
                asked.map_or(tenth, |s| Duration::from_secs(s.into())).clamp(RETRY, RETRY_MAX)
            }
        };
        running.refresh_at = Some(now + retry);
        self.arm(Wake::Call(id));
    }

    /// A re-INVITE of the user's that waited for our refresh, or for an ACK, may go now.
    pub(super) fn send_wanted_reinvite(&mut self, id: Id, now: Instant) {
        let Some(call) = self.calls.get_mut(id).filter(|call| call.is_idle()) else { return };
        let Some(body) = call.reinvite_wanted.take() else { return };
        if self.reinvite(id.into(), body, now).is_err() {
            self.reinvite_refused(id, 503);
        }
    }

    /// The 2xx to our own refreshing re-INVITE is for the user only if the peer has changed its description.
    pub(super) fn reinvite_answer_is_hidden(&self, id: Id, response: &Response) -> bool {
        let Some(call) = self.calls.get(id) else { return false };
        response.sdp().is_none_or(|description| call.remote_sdp == Some(print_of(description)))
    }

    /// Whether their re-INVITE only refreshes: it carries the description that we know, and ours is known too.
    pub(super) fn is_mere_refresh(&self, id: Id, ask: &Ask) -> bool {
        let Some(call) = self.calls.get(id) else { return false };
        ask.interval_s.is_some()
            && ask.sdp.is_some()
            && ask.sdp == call.remote_sdp
            && call.local_sdp.is_some()
    }

    /// Their UPDATE without a body refreshes session and target: answered at once.
    pub(super) fn answer_update(&mut self, id: Id, ask: &Ask, now: Instant) -> Headers {
        let mut headers = Headers::new();
        let Some(call) = self.calls.get_mut(id) else { return headers };
        let granted = call.session.grant(ask);
        if let Some(granted) = &granted {
            push_grant(&mut headers, granted, ask);
        }
        // Before the answer there is no session to end.
        if call.phase == Phase::Confirmed {
            call.session.start_granted(granted, now);
        }
        self.arm(Wake::Call(id));
        headers
    }

    /// Tells the user that the peer's 2xx changed something.
    pub(super) fn report_reinvite_answered(&mut self, id: Id, response: Response, wants_ack: bool) {
        let response = Box::new(response);
        self.events.push_back(Event::ReinviteAnswered { call: id.into(), response, wants_ack });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_time::start;

    fn session(expires_s: u32, min_se_s: u32) -> Session {
        Session::new(Some(SessionTimer { expires_s, min_se_s, refresher: None }))
    }

    fn ask(interval_s: Option<u32>, refresher: Option<Refresher>, supports: bool) -> Ask {
        Ask { interval_s, refresher, supports, ..Ask::default() }
    }

    /// RFC 4028 §9, table 2, and the interval beside it.
    #[test]
    fn grant_follows_the_table() {
        use Refresher::{Uac, Uas};
        let session = session(1800, 90);
        for (asked, granted) in [
            (ask(None, None, false), None),
            (ask(None, None, true), Some((1800, Uas))),
            (ask(Some(3600), None, false), Some((1800, Uas))),
            (ask(Some(600), Some(Uac), false), Some((600, Uas))),
            (ask(Some(600), Some(Uac), true), Some((600, Uac))),
            (ask(Some(600), Some(Uas), true), Some((600, Uas))),
            (ask(Some(600), None, true), Some((600, Uas))),
            (ask(Some(0), None, false), Some((90, Uas))),
            (ask(Some(1), Some(Uac), false), Some((90, Uas))),
            (Ask { min_se_s: 300, ..ask(Some(1), None, false) }, Some((300, Uas))),
            (Ask { min_se_s: 2400, ..ask(Some(3600), None, true) }, Some((2400, Uas))),
        ] {
            let grant = session.grant(&asked).map(|grant| (grant.interval_s, grant.refresher.unwrap()));
            assert_eq!(grant, granted, "{asked:?}");
        }
        assert!(Session::new(None).grant(&ask(Some(600), None, true)).is_none());
    }

    #[test]
    fn too_short_an_interval_is_refused_only_to_who_can_read_the_422() {
        let timer = Some(SessionTimer { expires_s: 1800, min_se_s: 120, refresher: None });
        assert_eq!(Session::too_short(timer, &ask(Some(100), None, true)), Some(120));
        assert_eq!(Session::too_short(timer, &ask(Some(100), None, false)), None);
        assert_eq!(Session::too_short(timer, &ask(Some(120), None, true)), None);
        assert_eq!(Session::too_short(None, &ask(Some(1), None, true)), None);
        let low = Some(SessionTimer { expires_s: 1800, min_se_s: 0, refresher: None });
        assert_eq!(Session::too_short(low, &ask(Some(89), None, true)), Some(90), "the RFC's own minimum");
    }

    #[test]
    fn refresher_wakes_in_time_and_the_other_hangs_up_before_the_end() {
        let now = start();
        let mut session = session(90, 90);
        session.start(Some((90, true)), now);
        assert_eq!(session.deadline(), Some(now + Duration::from_secs(28)), "32 s before the peer hangs up");
        session.start(Some((1800, true)), now);
        assert_eq!(session.deadline(), Some(now + Duration::from_secs(900)));
        session.start(Some((90, false)), now);
        assert_eq!(session.deadline(), Some(now + Duration::from_secs(60)));
        session.start(Some((1800, false)), now);
        assert_eq!(session.deadline(), Some(now + Duration::from_secs(1768)));
        session.start(None, now);
        assert_eq!(session.deadline(), None);
    }
}
