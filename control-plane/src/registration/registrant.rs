//! Our registration with one trunk (RFC 3261 §10.2), as a state machine without sockets or clock.
//!
//! ```text
//!   standby ──lease──▶ registering ──200──▶ registered ──50–80 % of its time──▶ registering …
//!      ▲                  │  ▲  │
//!      └── lease lost ────┤  │  ├─ 423 ─▶ once more, for as long as the trunk wants
//!                         │  │  ├─ no answer, 408, 5xx, nothing sent ─▶ again after 2 s … 5 min
//!                         │  │  └─ 401, 403, 404 and other refusals ──▶ again after 10 … 60 min
//!                         │  └──── the connection is gone
//!                         └─ stop: REGISTER with Expires: 0, then the lease is given back
//! ```
//!
//! Of all nodes one registers: the one that holds the trunk's lease (see `store/contexts.rs`). It counts the lease's time
//! from before it asked, so it stops before another can begin. It does not unregister then: the trunk still finds us until
//! the binding ends or the other node replaces it.
//!
//! Digest is the endpoint's, failover to the trunk's next address is the shell's: a response that arrives here is final.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tandem_sip::endpoint::SENT_AGAIN_MAX;
use tandem_sip::{HeaderName, NameAddr, Response};

use super::jitter::Jitter;

/// How long a lease lasts that is not renewed: another node takes over after at most this and a third.
pub const LEASE_TTL: Duration = Duration::from_secs(30);
/// How often a lease is renewed, or asked for.
const LEASE_PERIOD: Duration = Duration::from_secs(10);
/// First wait after a network failure; it doubles.
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// Longest wait after network failures: how late a trunk that comes back is noticed at most.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// First wait after a refusal; it doubles. Trying again soon would get the address blocked.
const REFUSED_FIRST: Duration = Duration::from_secs(600);
/// Longest wait after refusals, and the longest Retry-After that is followed.
const REFUSED_MAX: Duration = Duration::from_secs(3_600);
/// 423 in a row until it counts as a refusal.
const TOO_BRIEF_MAX: u32 = 3;
/// Longest Min-Expires that is followed, in seconds.
const MIN_EXPIRES_MAX_S: u32 = 86_400;
/// A registration is refreshed after no less than this, however short the trunk makes it.
const REFRESH_MIN: Duration = Duration::from_secs(5);
/// A connection that has lived so long was a good one: its loss is answered at once (RFC 5626 §4.5).
const STABLE: Duration = Duration::from_secs(120);
/// What the endpoint and its failover need at most. Nothing heard by then counts as a network failure.
const ANSWER_MAX: Duration = Duration::from_secs(240);
/// How long the last REGISTER is waited for at shutdown.
pub const LEAVE_MAX: Duration = Duration::from_secs(2);
/// Octets of a peer's reason phrase that are kept.
const REASON_MAX: usize = 120;

/// What a registrant is told when it is made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The lifetime to ask for, in seconds.
    pub expires_s: u32,
    /// Call-ID of every REGISTER of this process to this trunk (RFC 3261 §10.2).
    pub call_id: Box<str>,
    /// Of the spread.
    pub seed: u64,
    /// When to ask for the lease first.
    pub start_at: Instant,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a REGISTER; its outcome comes back by `handle_response` or `handle_failure`. It overtakes an earlier one.
    Register(Register),
    /// Ask the store for the lease; the answer comes back by `handle_lease`.
    Acquire,
    /// The same for one that is held.
    Renew,
    /// Give the lease back.
    Release,
}

/// The parts of a REGISTER that change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// Expires, in seconds; 0 unregisters.
    pub expires_s: u32,
    /// Call-ID.
    pub call_id: Box<str>,
    /// Number of CSeq.
    pub cseq: u32,
}

/// How it stands, for people and dashboards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// In one word.
    pub state: State,
    /// What went wrong last; empty while nothing has.
    pub detail: String,
    /// SIP status of the last refusal; 0: none.
    pub sip_status: u16,
    /// When the next REGISTER is due.
    pub next_at: Option<Instant>,
    /// Until when the trunk reaches us, as far as we know.
    pub registered_until: Option<Instant>,
}

/// The state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Another node holds the lease, or the store does not answer.
    Standby,
    /// The first REGISTER, or one after an outage, is under way.
    Registering,
    /// The trunk reaches us. A refresh may be failing: the detail says so.
    Registered,
    /// The trunk cannot be reached; it is tried again.
    Unreachable,
    /// The trunk says no; it is tried again, rarely.
    Refused,
    /// We have stopped.
    Stopped,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Standby, Self::Registering, Self::Registered, Self::Unreachable, Self::Refused, Self::Stopped];

    /// For logs, metrics and the API.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Registering => "registering",
            Self::Registered => "registered",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Debug)]
enum Lease {
    /// Not ours; asked for at this instant.
    Absent { ask_at: Instant },
    /// Asked for at this instant.
    Asked { at: Instant },
    /// Ours until then.
    Held { until: Instant, renew_at: Instant, asked_at: Option<Instant> },
}

#[derive(Debug)]
enum Phase {
    /// Without the lease.
    Standby,
    /// The next REGISTER is due then.
    Waiting { at: Instant },
    /// A REGISTER is under way.
    Trying { give_up: Instant },
    /// The last one is under way.
    Leaving { give_up: Instant },
    /// Over.
    Gone,
}

/// What went wrong last.
#[derive(Debug)]
struct Fault {
    is_refusal: bool,
    sip_status: u16,
    why: String,
}

/// See the module.
#[derive(Debug)]
pub struct Registrant {
    settings: Settings,
    jitter: Jitter,
    lease: Lease,
    phase: Phase,
    /// What is asked for: the settings' or the trunk's Min-Expires.
    expires_s: u32,
    /// Number of the last REGISTER.
    cseq: u32,
    registered: Option<Registered>,
    fault: Option<Fault>,
    /// Failures in a row.
    failures: u32,
    /// 423 in a row.
    too_brief: u32,
    /// Connections in a row that did not live for [`STABLE`].
    short_flows: u32,
    actions: VecDeque<Action>,
}

#[derive(Debug, Clone, Copy)]
struct Registered {
    /// Since when without a break.
    since: Instant,
    until: Instant,
}

impl Registrant {
    /// One that asks for the lease first.
    pub fn new(settings: Settings) -> Self {
        Self {
            jitter: Jitter::new(settings.seed),
            lease: Lease::Absent { ask_at: settings.start_at },
            phase: Phase::Standby,
            expires_s: settings.expires_s.max(1),
            cseq: 0,
            registered: None,
            fault: None,
            failures: 0,
            too_brief: 0,
            short_flows: 0,
            actions: VecDeque::new(),
            settings,
        }
    }

    // --- getters ---

    /// Whether all is said and done after `stop`.
    pub fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// How it stands.
    pub fn status(&self, now: Instant) -> Status {
        let registered = self.registered.filter(|registered| now < registered.until);
        let state = match (&self.phase, registered, &self.fault) {
            (Phase::Gone | Phase::Leaving { .. }, ..) => State::Stopped,
            (Phase::Standby, ..) => State::Standby,
            (_, Some(_), _) => State::Registered,
            (_, None, Some(fault)) if fault.is_refusal => State::Refused,
            (_, None, Some(_)) => State::Unreachable,
            (_, None, None) => State::Registering,
        };
        let next_at = match self.phase {
            Phase::Waiting { at } => Some(at),
            _ => None,
        };
        Status {
            state,
            detail: self.fault.as_ref().map(|fault| fault.why.clone()).unwrap_or_default(),
            sip_status: self.fault.as_ref().map_or(0, |fault| fault.sip_status),
            next_at,
            registered_until: registered.map(|registered| registered.until),
        }
    }

    // --- from network, store and clock ---

    /// The final response to the last REGISTER.
    pub fn handle_response(&mut self, response: &Response, now: Instant) {
        // The endpoint may have sent it twice, the second time with credentials.
        self.cseq = self.cseq.max(response.head.cseq().number);
        match self.phase {
            Phase::Leaving { .. } => return self.be_gone(),
            Phase::Trying { .. } => {}
            _ => return,
        }
        match response.status {
            200..=299 => self.handle_granted(response, now),
            423 => self.handle_too_brief(response, now),
            // 408 and 5xx: it is there, and may do better later. So is a trunk that is asked too often (429).
            408 | 429 | 500..=599 => {
                let wait = response.head.retry_after_s().map(|s| Duration::from_secs(s.into()));
                self.fail(false, response.status, said(response), wait, now);
            }
            _ => self.fail(true, response.status, said(response), None, now),
        }
    }

    /// The last REGISTER has no response, or could not be sent.
    pub fn handle_failure(&mut self, why: &str, now: Instant) {
        // It may have been sent again, each time with the next number.
        self.cseq += u32::from(SENT_AGAIN_MAX);
        match self.phase {
            Phase::Leaving { .. } => self.be_gone(),
            Phase::Trying { .. } => self.fail(false, 0, why.to_owned(), None, now),
            _ => {}
        }
    }

    /// The connection by which we are registered is gone: the trunk cannot reach us by it.
    pub fn handle_flow_lost(&mut self, now: Instant) {
        let Some(registered) = self.registered.take() else { return };
        if !matches!(self.phase, Phase::Waiting { .. }) {
            return;
        }
        if now.saturating_duration_since(registered.since) >= STABLE {
            (self.failures, self.short_flows) = (0, 0);
            self.fault =
                Some(Fault { is_refusal: false, sip_status: 0, why: "the connection was lost".to_owned() });
            // All registrants of this trunk's host lose theirs at once: not all come back at once.
            let wait = self.jitter.between(Duration::ZERO, RETRY_FIRST / 2);
            self.phase = Phase::Waiting { at: now + wait };
        } else {
            self.failures = self.short_flows;
            self.short_flows = self.short_flows.saturating_add(1);
            self.fail(false, 0, "the connection was lost soon after it had been made".to_owned(), None, now);
        }
    }

    /// The store's answer: the lease is ours, or another's; `None`: it does not answer.
    pub fn handle_lease(&mut self, is_ours: Option<bool>, now: Instant) {
        if matches!(self.phase, Phase::Leaving { .. } | Phase::Gone) {
            // It came too late; whether we hold it or not, we do not want it.
            if is_ours == Some(true) && self.is_gone() {
                self.actions.push_back(Action::Release);
            }
            return;
        }
        let asked_at = match self.lease {
            Lease::Asked { at } => at,
            Lease::Held { asked_at: Some(at), .. } => at,
            Lease::Held { asked_at: None, .. } | Lease::Absent { .. } => return,
        };
        match (is_ours, &mut self.lease) {
            (Some(true), _) => {
                let until = asked_at + LEASE_TTL;
                if until <= now {
                    return self.lose_lease(now);
                }
                let renew_at = now + self.jitter.between(LEASE_PERIOD * 4 / 5, LEASE_PERIOD);
                self.lease = Lease::Held { until, renew_at: renew_at.min(until), asked_at: None };
                if matches!(self.phase, Phase::Standby) {
                    self.register(now);
                }
            }
            (None, Lease::Held { renew_at, asked_at, .. }) => {
                *asked_at = None;
                *renew_at = now + LEASE_PERIOD / 4;
            }
            _ => self.lose_lease(now),
        }
    }

    /// The deadline of `poll_timeout` has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.run_lease(now);
        if self.registered.is_some_and(|registered| registered.until <= now) {
            self.registered = None;
        }
        match self.phase {
            Phase::Waiting { at } if at <= now => self.register(now),
            Phase::Trying { give_up } if give_up <= now => {
                self.fail(false, 0, "nothing was heard of the REGISTER".to_owned(), None, now);
            }
            Phase::Leaving { give_up } if give_up <= now => self.be_gone(),
            _ => {}
        }
    }

    fn run_lease(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Leaving { .. } | Phase::Gone) {
            return;
        }
        match &mut self.lease {
            Lease::Absent { ask_at } if *ask_at <= now => {
                self.lease = Lease::Asked { at: now };
                self.actions.push_back(Action::Acquire);
            }
            Lease::Asked { at } if *at + LEASE_TTL <= now => self.lose_lease(now),
            Lease::Held { until, .. } if *until <= now => self.lose_lease(now),
            Lease::Held { renew_at, asked_at: asked_at @ None, .. } if *renew_at <= now => {
                *asked_at = Some(now);
                self.actions.push_back(Action::Renew);
            }
            _ => {}
        }
    }

    // --- what the shell wants ---

    /// Unregisters and gives the lease back; `is_gone` says when that is done, [`LEAVE_MAX`] from now at the latest.
    pub fn stop(&mut self, now: Instant) {
        match self.phase {
            Phase::Leaving { .. } | Phase::Gone => {}
            _ if self.registered.is_some() || matches!(self.phase, Phase::Trying { .. }) => {
                self.send(0);
                self.phase = Phase::Leaving { give_up: now + LEAVE_MAX };
            }
            _ => self.be_gone(),
        }
    }

    // --- what must leave ---

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When `handle_timeout` must be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Standby => None,
            Phase::Waiting { at } => Some(at),
            Phase::Trying { give_up } => Some(give_up),
            Phase::Leaving { give_up } => return Some(give_up),
            Phase::Gone => return None,
        };
        let lease = match self.lease {
            Lease::Absent { ask_at } => ask_at,
            Lease::Asked { at } => at + LEASE_TTL,
            Lease::Held { until, renew_at, asked_at: None } => renew_at.min(until),
            Lease::Held { until, asked_at: Some(_), .. } => until,
        };
        let ends = self.registered.map(|registered| registered.until);
        [phase, Some(lease), ends].into_iter().flatten().min()
    }

    // --- inside ---

    fn register(&mut self, now: Instant) {
        self.send(self.expires_s);
        self.phase = Phase::Trying { give_up: now + ANSWER_MAX };
    }

    fn send(&mut self, expires_s: u32) {
        self.cseq += 1;
        let call_id = self.settings.call_id.clone();
        self.actions.push_back(Action::Register(Register { expires_s, call_id, cseq: self.cseq }));
    }

    fn handle_granted(&mut self, response: &Response, now: Instant) {
        // A registrar grants no more than was asked (RFC 3261 §10.3); one that says so must not keep us from refreshing.
        let granted_s = granted_s(response).unwrap_or(self.expires_s).min(self.expires_s);
        let granted = Duration::from_secs(granted_s.into());
        if granted.is_zero() {
            return self.fail(
                true,
                response.status,
                "the trunk took it, for 0 seconds".to_owned(),
                None,
                now,
            );
        }
        let since = self.registered.map_or(now, |registered| registered.since);
        if now.saturating_duration_since(since) >= STABLE {
            self.short_flows = 0;
        }
        self.registered = Some(Registered { since, until: now + granted });
        (self.fault, self.failures, self.too_brief) = (None, 0, 0);
        let refresh = self.jitter.between(granted / 2, granted * 4 / 5).max(REFRESH_MIN);
        self.phase = Phase::Waiting { at: now + refresh };
    }

    fn handle_too_brief(&mut self, response: &Response, now: Instant) {
        let wanted = response.header(HeaderName::MinExpires).and_then(|text| text.trim().parse::<u32>().ok());
        self.too_brief += 1;
        match wanted.filter(|wanted| *wanted > self.expires_s && *wanted <= MIN_EXPIRES_MAX_S) {
            Some(wanted) if self.too_brief <= TOO_BRIEF_MAX => {
                self.expires_s = wanted;
                self.register(now);
            }
            _ => {
                let why = format!("{}, and its Min-Expires is of no use", said(response));
                self.fail(true, 423, why, None, now);
            }
        }
    }

    fn fail(&mut self, is_refusal: bool, sip_status: u16, why: String, wait: Option<Duration>, now: Instant) {
        let (first, max) = if is_refusal { (REFUSED_FIRST, REFUSED_MAX) } else { (RETRY_FIRST, RETRY_MAX) };
        // The count begins anew when the kind of trouble changes.
        if self.fault.as_ref().is_some_and(|fault| fault.is_refusal != is_refusal) {
            self.failures = 0;
        }
        let backoff = self.jitter.backoff(first, max, self.failures);
        self.failures = self.failures.saturating_add(1);
        let wait = wait.map_or(backoff, |wait| wait.min(REFUSED_MAX).max(backoff));
        if is_refusal {
            // Whatever it granted before, it does not want us now.
            self.registered = None;
        }
        self.fault = Some(Fault { is_refusal, sip_status, why });
        self.phase = Phase::Waiting { at: now + wait };
    }

    fn lose_lease(&mut self, now: Instant) {
        let wait = self.jitter.between(LEASE_PERIOD * 4 / 5, LEASE_PERIOD);
        self.lease = Lease::Absent { ask_at: now + wait };
        self.phase = Phase::Standby;
        self.registered = None;
        self.fault = None;
        self.failures = 0;
    }

    fn be_gone(&mut self) {
        if matches!(self.lease, Lease::Held { .. } | Lease::Asked { .. }) {
            self.actions.push_back(Action::Release);
        }
        self.registered = None;
        self.phase = Phase::Gone;
    }
}

/// `403 Forbidden`, as the trunk said it and as a log line may hold it.
fn said(response: &Response) -> String {
    let reason: String = response.reason.chars().filter(|c| !c.is_control()).take(REASON_MAX).collect();
    let reason = reason.trim();
    if reason.is_empty() {
        format!("{} {}", response.status, tandem_sip::message::reason_phrase(response.status))
    } else {
        format!("{} {reason}", response.status)
    }
}

/// How long the trunk keeps us: `expires` of our Contact, else Expires. Of the Contacts of a 200 ours is the one with the
/// host and port of our Via (RFC 3261 §10.2.4); where none is, a trunk has rewritten it, and a single one is ours.
fn granted_s(response: &Response) -> Option<u32> {
    let via = response.head.via();
    let contacts: Vec<NameAddr> = response
        .head
        .headers()
        .items(HeaderName::Contact)
        .filter_map(|item| NameAddr::parse(item).ok())
        .collect();
    let is_ours = |contact: &&NameAddr| {
        let uri = &contact.uri;
        uri.host().eq_ignore_ascii_case(&via.host) && uri.port_or_default() == via.port_or_default()
    };
    let only = (contacts.len() == 1).then(|| contacts.first()).flatten();
    let contact = contacts.iter().find(is_ours).or(only);
    let own = contact.and_then(|contact| contact.params.get("expires")?.parse().ok());
    own.or_else(|| response.header(HeaderName::Expires)?.trim().parse().ok())
}

#[cfg(test)]
mod tests;
