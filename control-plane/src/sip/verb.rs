//! What call handling and registrations want from the endpoint, and what they are told.
//!
//! ```text
//!   Verb::Invite(token, request, destination) ──▶ names resolved, connection found ──▶ Placed { token, call }
//!                                             └──▶ no way there ────────────────────▶ NotSent { token, why }
//!   every other verb ──▶ the endpoint at once
//! ```
//!
//! A [`Token`] names a request of ours from the verb on; the endpoint's handle comes with [`SipEvent::Placed`] or
//! [`SipEvent::Sent`], and once more, with another handle, each time the request moves to the next target (RFC 3263
//! §4.3). Events of a handle that was left behind are not seen by anybody; who cancels by it cancels the newest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_sip::header::refer::ReferTo;
use tandem_sip::message::{Body, Reply};
use tandem_sip::{
    CallError, CallHandle, ConnectionId, Endpoint, Event, Flow, Headers, InviteRequest, Method,
    OutgoingRequest, Reliability, RequestHandle, SessionTimer, Transport, Uri,
};

/// When a re-INVITE is tried again that the endpoint could not send at once: it is busy for a round trip.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Where an outgoing request goes, before names are resolved (RFC 3263).
#[derive(Debug, Clone)]
pub struct Destination {
    /// The next hop: the outbound proxy, or the target.
    pub uri: Uri,
    /// Overrides what the URI and DNS say.
    pub transport: Option<Transport>,
    /// Whose TLS identity and advertised address are used.
    pub trunk: Option<Arc<str>>,
    /// The way that a peer has come by, and is to be reached by: then nothing is resolved.
    pub flow: Option<Flow>,
}

impl Destination {
    /// Wherever this URI leads.
    pub const fn to(uri: Uri) -> Self {
        Self { uri, transport: None, trunk: None, flow: None }
    }

    /// The transport that the destination itself names, without DNS (RFC 3263 §4.1).
    pub fn named_transport(&self) -> Option<Transport> {
        self.transport.or_else(|| tandem_sip::resolve::named_transport(&self.uri))
    }
}

/// Names an outgoing request before the endpoint has given it a handle, and after. Unique in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

impl Token {
    /// A token that nobody else has.
    pub fn unique() -> Self {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        Self(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }
}

/// What is wanted from the endpoint.
#[derive(Debug)]
pub enum Verb {
    /// 180.
    Ring(CallHandle),
    /// Any response to the pending INVITE; provisional with a body: early media.
    Respond(CallHandle, Reply),
    /// 200 with our description.
    Answer(CallHandle, Body),
    /// A final refusal of an INVITE or re-INVITE.
    Reject(CallHandle, Reply),
    /// BYE with these headers.
    HangUp(CallHandle, Headers),
    /// The answer to a request that is no INVITE.
    Reply(RequestHandle, Reply),
    /// Calls somebody. The request's own flow is not looked at: the destination says where.
    Invite(Token, Box<InviteRequest>, Destination),
    /// A request outside a dialog: OPTIONS, REGISTER, MESSAGE ... Its flow is not looked at either.
    Request(Token, Box<OutgoingRequest>, Destination),
    /// A request in a call's dialog: INFO, UPDATE ...
    RequestInCall(Token, CallHandle, Method, Headers, Option<Body>),
    /// re-INVITE with this offer, or without one.
    Reinvite(CallHandle, Option<Body>),
    /// The ACK with our answer, after a 2xx with the peer's offer.
    Ack(CallHandle, Body),
    /// The PRACK with our answer, after a reliable provisional response with the peer's offer.
    Prack(CallHandle, Body),
    /// REFER: the peer shall call somebody else instead of us.
    Refer(CallHandle, Box<ReferTo>, Headers),
    /// Nobody waits any longer for what comes of our REFER.
    ForgetRefer(CallHandle),
    /// Gives up our INVITE.
    Cancel(CallHandle),
    /// 202 to a REFER.
    AcceptRefer(RequestHandle),
    /// Tells who sent that REFER how the call to its target fares.
    NotifyRefer(CallHandle, u16),
    /// The host (and port) that Via and Contact of this call name, instead of everybody's: a trunk's own address.
    Advertise(CallHandle, Option<Arc<str>>),
    /// What is agreed with whom an incoming call is from: reliable provisional responses, and the session timer.
    Agree(CallHandle, Reliability, Option<SessionTimer>),
}

/// What the shell says: the endpoint's events, and what became of verbs that send something.
#[derive(Debug)]
pub enum SipEvent {
    /// From the endpoint.
    Endpoint {
        /// What happened.
        event: Event,
        /// Who the peer has proven to be by its TLS certificate; only beside an INVITE or another request.
        peer: Option<Arc<TlsPeer>>,
    },
    /// An INVITE has left; again, with another handle, when it was given to the next target.
    Placed {
        /// As in the verb.
        token: Token,
        /// The call from here on.
        call: CallHandle,
    },
    /// Another request has left; again as above.
    Sent {
        /// As in the verb.
        token: Token,
        /// The request from here on.
        handle: RequestHandle,
    },
    /// Nothing has left, and nothing will.
    NotSent {
        /// As in the verb.
        token: Token,
        /// Why.
        why: NotSent,
    },
    /// A connection by which a REGISTER had come is gone.
    Closed {
        /// Which.
        connection: ConnectionId,
    },
    /// The connection over which this REGISTER had gone is gone: whoever we registered with cannot reach us by it.
    FlowLost {
        /// Of the REGISTER.
        token: Token,
    },
}

impl From<Event> for SipEvent {
    fn from(event: Event) -> Self {
        Self::Endpoint { event, peer: None }
    }
}

/// Why a request could not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// DNS gives nothing that we can reach.
    #[error("{host} cannot be resolved: {why}")]
    Unresolved {
        /// The host of the destination.
        host: Box<str>,
        /// What was asked and what came.
        why: Box<str>,
    },
    /// A transport without a listener, a client or an open connection.
    #[error("nothing can be sent to {remote} over {transport}: {why}")]
    Unreachable {
        /// Which transport.
        transport: &'static str,
        /// Where to.
        remote: std::net::SocketAddr,
        /// What is missing.
        why: &'static str,
    },
    /// A table of ours is full.
    #[error("the table of {0} is full")]
    Full(&'static str),
    /// The endpoint says no.
    #[error(transparent)]
    Refused(#[from] CallError),
}

/// The names in a client certificate that was verified, and whom it may speak for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPeer {
    /// DNS names and the hosts of SIP URIs in subjectAltName (RFC 5922 §7.1), or the subject's common name if there are
    /// none; in lower case.
    pub names: Vec<Box<str>>,
    /// The trunks whose authorities have signed it. The names mean nothing to any other.
    pub trunks: Vec<Arc<str>>,
}

impl TlsPeer {
    /// The names that it has proved towards this trunk.
    pub fn names_for(&self, trunk: &str) -> &[Box<str>] {
        if self.trunks.iter().any(|vouched| **vouched == *trunk) { &self.names } else { &[] }
    }

    /// Whether the peer is one of these names, as far as this trunk is concerned.
    pub fn is(&self, trunk: &str, names: &[impl AsRef<str>]) -> bool {
        let own = self.names_for(trunk);
        names.iter().any(|name| own.iter().any(|own| own.eq_ignore_ascii_case(name.as_ref())))
    }
}

impl Verb {
    /// Carries it out: the one place where verbs meet the endpoint. A request of ours goes by its destination's flow;
    /// without one to its address, from where its own flow says.
    ///
    /// # Errors
    /// Not possible (any more): the peer may have been faster, and the event that says so is on its way. A verb with a
    /// token has no error: [`SipEvent::NotSent`] says it. A re-INVITE or REFER that cannot leave now is told as refused.
    pub fn perform(self, endpoint: &mut Endpoint, now: Instant) -> Result<Option<SipEvent>, CallError> {
        match self {
            Self::Ring(call) => endpoint.ring(call, now),
            Self::Respond(call, reply) => endpoint.respond(call, reply, now),
            Self::Answer(call, body) => endpoint.answer(call, body, now),
            Self::Reject(call, reply) => endpoint.reject(call, reply, now),
            Self::HangUp(call, headers) => endpoint.hang_up(call, headers, now),
            Self::Reply(request, reply) => endpoint.reply(request, reply, now),
            Self::Reinvite(call, body) => {
                let asked = endpoint.reinvite(call, body, now);
                return refused(asked, |status| {
                    let retry_after = (status == 491).then_some(RETRY_AFTER);
                    Event::ReinviteRefused { call, status, retry_after }
                });
            }
            Self::Ack(call, body) => endpoint.ack(call, body, now),
            Self::Prack(call, body) => endpoint.prack(call, body, now),
            Self::Refer(call, target, headers) => {
                let asked = endpoint.refer(call, &target, headers, now);
                return refused(asked, |status| {
                    let reason = "not now".to_owned();
                    Event::ReferProgress { call, status, reason, is_final: true }
                });
            }
            Self::ForgetRefer(call) => endpoint.forget_refer(call),
            Self::Cancel(call) => endpoint.cancel(call, now),
            Self::AcceptRefer(request) => endpoint.accept_refer(request, now),
            Self::NotifyRefer(call, status) => endpoint.notify_refer(call, status, "", now),
            Self::Advertise(call, host) => endpoint.advertise(call, host),
            Self::Agree(call, reliable, timer) => endpoint.agree(call, reliable, timer),
            Self::Invite(token, mut invite, destination) => {
                let placed = address(&destination, invite.flow).and_then(|flow| {
                    invite.flow = flow;
                    Ok(endpoint.invite(*invite, now)?)
                });
                return Ok(Some(match placed {
                    Ok(call) => SipEvent::Placed { token, call },
                    Err(why) => SipEvent::NotSent { token, why },
                }));
            }
            Self::Request(token, mut request, destination) => {
                let sent = address(&destination, request.flow).and_then(|flow| {
                    request.flow = flow;
                    Ok(endpoint.request(*request, now)?)
                });
                return Ok(Some(said(token, sent)));
            }
            Self::RequestInCall(token, call, method, headers, body) => {
                let sent = endpoint.request_in_call(call, method, headers, body, now);
                return Ok(Some(said(token, sent.map_err(NotSent::from))));
            }
        }
        .map(|()| None)
    }
}

/// What the endpoint will not do now reads as if the peer had refused it: who asked must hear of it either way.
fn refused(
    asked: Result<(), CallError>,
    event: impl FnOnce(u16) -> Event,
) -> Result<Option<SipEvent>, CallError> {
    match asked {
        Ok(()) => Ok(None),
        Err(CallError::State(_)) => Ok(Some(event(491).into())),
        Err(CallError::Full(_)) => Ok(Some(event(503).into())),
        Err(error) => Err(error),
    }
}

fn said(token: Token, sent: Result<RequestHandle, NotSent>) -> SipEvent {
    match sent {
        Ok(handle) => SipEvent::Sent { token, handle },
        Err(why) => SipEvent::NotSent { token, why },
    }
}

/// The flow of a destination that needs no DNS.
fn address(destination: &Destination, from: Flow) -> Result<Flow, NotSent> {
    if let Some(flow) = destination.flow {
        return Ok(flow);
    }
    let remote = destination.uri.socket_addr().ok_or_else(|| NotSent::Unresolved {
        host: destination.uri.host().into(),
        why: "it is not an address".into(),
    })?;
    let transport = destination.named_transport().unwrap_or(Transport::Udp);
    Ok(Flow { transport, local: from.local, remote, connection: None })
}
