//! Requests of ours on their way: which target is next when one fails (RFC 3263 §4.3). Sans-IO: the driver asks DNS, finds
//! connections and gives requests to the endpoint.
//!
//! ```text
//!   targets ──plan──▶ [ hop, hop, hop ] ──next_hop──▶ driver ──▶ endpoint ──▶ handle ──placed──┐
//!                          ▲                                                                   ▼
//!                          └── transport error · no answer · 503 before any provisional ── handle_event
//!                              nothing heard for SILENCE_MAX while there is another hop ─── handle_timeout
//! ```
//!
//! A target that failed rests for [`REST`]: it is tried last. A request that has grown over [`DATAGRAM_REQUEST_MAX`] goes
//! over TCP, and by a datagram only where TCP cannot be had (RFC 3261 §18.1.1).

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_sip::resolve::Target;
use tandem_sip::{
    CallHandle, EndReason, Event, Headers, InviteRequest, NameAddr, OutgoingRequest, RequestHandle, Transport,
};

use super::transport::Identity;
use super::{Destination, Token, Verb};

/// A request longer than this does not go by UDP: an MTU of 1500 is not known to hold all the way (RFC 3261 §18.1.1).
pub const DATAGRAM_REQUEST_MAX: usize = 1_300;
/// With another target to try, this long without any response is enough: four of the seven transmissions of timer A.
const SILENCE_MAX: Duration = Duration::from_secs(4);
/// How long a target that failed is tried only after the others.
const REST: Duration = Duration::from_secs(30);
/// Targets that rest. Full: further ones do not rest.
const RESTING_MAX: usize = 1_024;

/// A request that is wanted.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    Invite(Box<InviteRequest>),
    Request(Box<OutgoingRequest>),
}

impl Wanted {
    /// About how many octets it will have, and never less, as long as nobody has challenged it: an answer to a challenge
    /// goes by the way on which that came.
    fn len(&self) -> usize {
        /// Via, Max-Forwards, Call-ID, CSeq, tags, Contact, Allow, Supported, User-Agent, Content-*, session timers.
        const OWN: usize = 640;
        let address = |addr: &NameAddr| addr.to_wire().len();
        let headers = |headers: &Headers| {
            headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>()
        };
        let (target, from, to, headers, body, routes) = match self {
            Self::Invite(invite) => (
                &invite.target,
                &invite.from,
                &invite.to,
                headers(&invite.headers),
                &invite.body,
                &invite.route,
            ),
            Self::Request(request) => (
                &request.target,
                &request.from,
                &request.to,
                headers(&request.headers),
                &request.body,
                &request.route,
            ),
        };
        let target = target.as_str().len();
        let body = body.as_ref().map_or(0, |body| body.bytes.len() + body.content_type.len());
        OWN + target
            + address(from)
            + to.as_ref().map_or(target, address)
            + routes.iter().map(|route| address(route) + 9).sum::<usize>()
            + headers
            + body
    }

    /// The host that the peer is told, in Via and Contact.
    pub(super) fn advertise(&mut self, host: Arc<str>) {
        match self {
            Self::Invite(invite) => invite.advertised_host = Some(host),
            Self::Request(request) => request.advertised_host = Some(host),
        }
    }

    /// The verb that sends it by this flow.
    pub(super) fn verb(self, token: Token, flow: tandem_sip::Flow) -> Verb {
        match self {
            Self::Invite(invite) => {
                let uri = invite.target.clone();
                Verb::Invite(token, invite, Destination { flow: Some(flow), ..Destination::to(uri) })
            }
            Self::Request(request) => {
                let uri = request.target.clone();
                Verb::Request(token, request, Destination { flow: Some(flow), ..Destination::to(uri) })
            }
        }
    }
}

/// What names a request at the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Handle {
    Call(CallHandle),
    Request(RequestHandle),
}

/// One place to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) target: Target,
    why: Why,
}

/// Why a place is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// DNS says so, or the URI.
    Target,
    /// By UDP after TCP, for a large request: only if that could not be had.
    Datagram,
    /// By a new connection, after one that was open already: only if that one was dead.
    Reconnect,
}

/// A request with its targets.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) token: Token,
    pub(super) wanted: Wanted,
    pub(super) identity: Option<Identity>,
    hops: VecDeque<Hop>,
    /// The hop under way.
    current: Option<Target>,
    /// What it was called on the hop before.
    before: Option<Handle>,
}

impl Attempt {
    /// The next place to try.
    pub(super) fn next_hop(&mut self) -> Option<Hop> {
        let hop = self.hops.pop_front();
        self.current = hop.map(|hop| hop.target);
        hop
    }

    /// The hop goes by a connection that was open already: if that turns out to be dead, a new one is tried.
    pub(super) fn goes_by_old_connection(&mut self, hop: Hop) {
        if hop.why != Why::Reconnect {
            self.hops.push_front(Hop { why: Why::Reconnect, ..hop });
        }
    }

    /// The host is there: what would lead to it once more is left out.
    fn leave_host(&mut self) {
        while self.hops.front().is_some_and(|hop| hop.why != Why::Target) {
            self.hops.pop_front();
        }
    }
}

/// What the driver does with an event of the endpoint.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is for call handling.
    Pass,
    /// Of a handle that was left behind.
    Swallow,
    /// The request goes to its next hop.
    Again(Box<Attempt>),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    under_way: HashMap<Handle, Attempt>,
    /// When to give up silence.
    silences: BTreeSet<(Instant, Handle)>,
    /// Left behind; their events are nobody's. As many as the endpoint has calls and requests at most.
    left: HashSet<Handle>,
    /// What a request is called now, by what it was called before: whoever gives it up may not have heard yet. Until its
    /// end.
    moved: HashMap<Handle, Handle>,
    resting: HashMap<Target, Instant>,
}

impl Outgoing {
    /// Orders the targets of a request.
    pub(super) fn plan(
        &mut self,
        token: Token,
        wanted: Wanted,
        identity: Option<Identity>,
        mut targets: Vec<Target>,
        now: Instant,
    ) -> Attempt {
        self.resting.retain(|_, until| *until > now);
        targets.sort_by_key(|target| self.resting.contains_key(target));
        let is_large = wanted.len() > DATAGRAM_REQUEST_MAX;
        let mut hops = VecDeque::with_capacity(targets.len());
        for target in targets {
            if is_large && target.transport == Transport::Udp {
                let by_tcp = Target { transport: Transport::Tcp, ..target };
                hops.push_back(Hop { target: by_tcp, why: Why::Target });
                hops.push_back(Hop { target, why: Why::Datagram });
            } else {
                hops.push_back(Hop { target, why: Why::Target });
            }
        }
        Attempt { token, wanted, identity, hops, current: None, before: None }
    }

    /// A hop could not even be begun.
    pub(super) fn unreachable(&mut self, target: Target, now: Instant) {
        self.rest(target, now);
    }

    /// An attempt has left by its current hop.
    pub(super) fn placed(&mut self, handle: Handle, attempt: Attempt, now: Instant) {
        if let Some(before) = attempt.before {
            self.moved.insert(before, handle);
        }
        if attempt.hops.is_empty() {
            return;
        }
        // A silent host is not asked again by another connection.
        if attempt.hops.iter().any(|hop| hop.why != Why::Reconnect) {
            self.silences.insert((now + SILENCE_MAX, handle));
        }
        self.under_way.insert(handle, attempt);
    }

    /// What a request is called now.
    pub(super) fn newest(&self, mut handle: Handle) -> Handle {
        while let Some(newer) = self.moved.get(&handle) {
            handle = *newer;
        }
        handle
    }

    /// The user does not want it any more: it is not tried elsewhere.
    pub(super) fn forget(&mut self, handle: Handle) {
        if self.under_way.remove(&handle).is_some() {
            self.silences.retain(|(_, of)| *of != handle);
        }
    }

    /// Looks at an event of the endpoint before anybody else does.
    pub(super) fn handle_event(&mut self, event: &Event, now: Instant) -> Verdict {
        let (handle, outcome) = match event {
            Event::Provisional { call, .. } | Event::Answered { call, .. } => {
                (Handle::Call(*call), Outcome::Heard)
            }
            Event::Ended { call, why } => (Handle::Call(*call), Outcome::of_end(why)),
            Event::Response { handle, result, .. } => {
                let status = result.as_ref().ok().map(|response| response.status);
                (Handle::Request(*handle), Outcome::of_status(status))
            }
            _ => return Verdict::Pass,
        };
        if self.left.contains(&handle) {
            if outcome != Outcome::Heard {
                self.left.remove(&handle);
            }
            return Verdict::Swallow;
        }
        let Some(mut attempt) = self.under_way.remove(&handle) else {
            if outcome != Outcome::Heard {
                self.end_names(handle);
            }
            return Verdict::Pass;
        };
        self.silences.retain(|(_, of)| *of != handle);
        match outcome {
            Outcome::Heard => return Verdict::Pass,
            Outcome::Final => {
                self.end_names(handle);
                return Verdict::Pass;
            }
            // By another way it would say the same.
            Outcome::Busy => attempt.leave_host(),
            Outcome::Lost => {}
        }
        let reconnects = attempt.hops.front().is_some_and(|hop| hop.why == Why::Reconnect);
        if let Some(target) = attempt.current.filter(|_| !reconnects) {
            self.rest(target, now);
        }
        attempt.before = Some(handle);
        if attempt.hops.is_empty() {
            self.end_names(handle);
            return Verdict::Pass;
        }
        Verdict::Again(Box::new(attempt))
    }

    /// A request is over: its earlier names lead nowhere.
    fn end_names(&mut self, handle: Handle) {
        let mut ended = vec![handle];
        while let Some(name) = ended.pop() {
            self.moved.retain(|older, newer| {
                let leads_there = *newer == name;
                if leads_there {
                    ended.push(*older);
                }
                !leads_there
            });
        }
    }

    /// When a silent target is given up.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.silences.first().map(|(at, _)| *at)
    }

    /// A request whose time of silence is over by now. If nothing was heard of it, [`Outgoing::take`] it.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<Handle> {
        let (at, handle) = *self.silences.first()?;
        if at > now {
            return None;
        }
        self.silences.pop_first();
        Some(handle)
    }

    /// What is left to try of a silent request.
    pub(super) fn take(&mut self, handle: Handle, now: Instant) -> Option<Attempt> {
        let mut attempt = self.under_way.remove(&handle)?;
        attempt.before = Some(handle);
        while attempt.hops.front().is_some_and(|hop| hop.why == Why::Reconnect) {
            attempt.hops.pop_front();
        }
        if let Some(target) = attempt.current {
            self.rest(target, now);
        }
        Some(attempt)
    }

    /// It goes on elsewhere: whatever comes of this handle is nobody's.
    pub(super) fn leave(&mut self, handle: Handle) {
        self.left.insert(handle);
    }

    fn rest(&mut self, target: Target, now: Instant) {
        if self.resting.len() < RESTING_MAX || self.resting.contains_key(&target) {
            self.resting.insert(target, now + REST);
        }
    }
}

/// What an event means for a request's targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Somebody is there; it goes on.
    Heard,
    /// Over, whatever the others would say.
    Final,
    /// 503: another host may have room.
    Busy,
    /// Nobody is there.
    Lost,
}

impl Outcome {
    fn of_end(why: &EndReason) -> Self {
        match why {
            EndReason::NoResponse(_) => Self::Lost,
            EndReason::Failed { response } => Self::of_status(Some(response.status)),
            _ => Self::Final,
        }
    }

    const fn of_status(status: Option<u16>) -> Self {
        match status {
            None => Self::Lost,
            Some(503) => Self::Busy,
            Some(_) => Self::Final,
        }
    }
}

#[cfg(test)]
mod tests;
