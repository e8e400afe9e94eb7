//! What an endpoint is told when it is made, and what it counts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::digest::Credentials;
use crate::flow::Flow;
use crate::header::NameAddr;
use crate::header::refer::Replaces;
use crate::header::session::Refresher;
use crate::headers::Headers;
use crate::message::{Body, Method};
use crate::timer::Timers;
use crate::uri::Uri;

/// Transactions held at once. A call holds three or four for up to 32 s after their end: this is about 500 new calls a
/// second. Full: new requests get 503 with Retry-After, ours are refused with an error.
pub const MAX_TRANSACTIONS: usize = 65_536;

/// One transaction of so many is kept for requests in the dialogs that there are: a flood of new ones must not keep a
/// call from being changed or ended.
pub const RESERVED_PART: usize = 8;

/// Calls held at once, early and confirmed: far above what one node's media engines carry. Full: 503.
pub const MAX_CALLS: usize = 20_000;

/// How long the rest of a message that has begun may take over a stream (64·T1: its sender would have given up). Then
/// the connection is closed.
pub const PARTIAL_MAX: Duration = Duration::from_secs(32);

/// How long a stream without a call may be silent: longer than the two minutes at most between the keep-alives of RFC
/// 5626 §4.4.1. Then the connection is closed; the peer may come back by another.
pub const IDLE_MAX: Duration = Duration::from_secs(180);

/// Connections with a framer. Full: the connection is closed.
pub const MAX_CONNECTIONS: usize = 10_000;

/// Messages waiting for `poll_transmit`, and events for `poll_event`. The drain contract empties both after each call;
/// the bound only guards against a shell that breaks it. Full: new requests get 503.
pub const MAX_QUEUED: usize = 65_536;

/// Seconds in the Retry-After of a 503 that says "full": calls end in tens of seconds.
pub const RETRY_AFTER_FULL_S: u32 = 5;

/// Shortest session interval that RFC 4028 §4 lets anybody ask for, in seconds.
pub const MIN_SE_S: u32 = 90;

/// A session timer (RFC 4028): a session that is not refreshed in time is over, so that a call whose peer is gone does not
/// live for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionTimer {
    /// The interval that we ask for, and the longest that we grant, in seconds. 0: no timer.
    pub expires_s: u32,
    /// The shortest that we grant, in seconds; less than [`MIN_SE_S`] counts as that.
    pub min_se_s: u32,
    /// Who shall refresh, when it is ours to say: in our INVITE, or in the answer to one that leaves it open. `None`: the
    /// UAS, that is the peer in our calls and we in its.
    pub refresher: Option<Refresher>,
}

impl SessionTimer {
    /// No timer: neither asked for nor granted.
    pub const OFF: SessionTimer = SessionTimer { expires_s: 0, min_se_s: MIN_SE_S, refresher: None };

    /// Whether there is none.
    pub const fn is_off(&self) -> bool {
        self.expires_s == 0
    }

    /// The shortest interval that we grant.
    pub(crate) fn min_s(&self) -> u32 {
        self.min_se_s.max(MIN_SE_S)
    }
}

impl Default for SessionTimer {
    /// Half an hour, as RFC 4028 §4 recommends; 90 s at least.
    fn default() -> SessionTimer {
        SessionTimer { expires_s: 1800, min_se_s: MIN_SE_S, refresher: None }
    }
}

/// Whether provisional responses are confirmed by PRACK (RFC 3262).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reliability {
    /// UAS: if the caller requires it. UAC: offered.
    #[default]
    IfRequired,
    /// UAS: whenever the caller can. UAC: offered.
    Prefer,
    /// UAS: a caller who cannot is refused with 421. UAC: required.
    Require,
    /// UAS: a caller who requires it is refused with 420. UAC: not offered.
    Never,
}

/// How an endpoint behaves. `EndpointConfig::default()` is right for a user agent; set `seed` in production.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// Value of User-Agent and Server.
    pub user_agent: String,
    /// User part of our Contact; empty for none.
    pub contact_user: String,
    /// Host to put into Via and Contact instead of the flow's local address (NAT, wildcard sockets). IPv6 in brackets.
    pub advertised_host: Option<String>,
    /// T1, T2, T4.
    pub timers: Timers,
    /// Seed of tags, branches, Call-IDs and cnonces. Give it random bits: predictable tags let others forge a BYE.
    pub seed: u64,
    /// See [`MAX_TRANSACTIONS`].
    pub max_transactions: usize,
    /// See [`MAX_CALLS`].
    pub max_calls: usize,
    /// Methods outside a dialog that become [`super::Event::Request`]; other known ones get 405 with Allow.
    pub accepted_methods: Vec<Method>,
    /// Methods that become [`super::Event::Request`] in a dialog, besides `accepted_methods`; others get 405 with Allow.
    pub in_dialog_methods: Vec<Method>,
    /// Option tags of Require that the user understands, besides those that the endpoint handles itself (`timer`, `100rel`,
    /// `replaces`, `norefersub`); others get 420.
    pub supported: Vec<String>,
    /// How long our INVITE may ring before we cancel it. Above timer C of a proxy (RFC 3261 §16.6).
    pub ring_timeout: Duration,
    /// Session timers of all calls; `None`: not spoken.
    pub session_timer: Option<SessionTimer>,
    /// Reliable provisional responses.
    pub reliable: Reliability,
    /// Calls may be passed on (a B2BUA): one that may take no further hop is refused with 483.
    pub forwards: bool,
    /// Event packages whose SUBSCRIBE becomes an [`super::Event::Request`] (if `accepted_methods` has SUBSCRIBE); others
    /// get 489.
    pub event_packages: Vec<String>,
}

impl Default for EndpointConfig {
    fn default() -> EndpointConfig {
        EndpointConfig {
            user_agent: concat!("Tandem/", env!("CARGO_PKG_VERSION")).to_owned(),
            contact_user: "tandem".to_owned(),
            advertised_host: None,
            timers: Timers::default(),
            seed: 0,
            max_transactions: MAX_TRANSACTIONS,
            max_calls: MAX_CALLS,
            accepted_methods: Vec::new(),
            in_dialog_methods: vec![Method::Info, Method::Update],
            supported: Vec::new(),
            ring_timeout: Duration::from_secs(200),
            session_timer: Some(SessionTimer::default()),
            reliable: Reliability::default(),
            forwards: false,
            event_packages: Vec::new(),
        }
    }
}

/// A call to make.
#[derive(Clone)]
pub struct InviteRequest {
    /// Request-URI; its password, if any, goes on the wire here and nowhere else.
    pub target: Uri,
    /// Who calls; a tag is added.
    pub from: NameAddr,
    /// To; the target without its password if `None`.
    pub to: Option<NameAddr>,
    /// Where to send it. Resolving the target (RFC 3263) is the shell's.
    pub flow: Flow,
    /// Preloaded Route headers (outbound proxy).
    pub route: Vec<NameAddr>,
    /// Our offer; `None` asks the peer for one.
    pub body: Option<Body>,
    /// Further headers.
    pub headers: Headers,
    /// For 401 and 407 to any request of the call.
    pub credentials: Option<Credentials>,
    /// Instead of the endpoint's; [`SessionTimer::OFF`] for none.
    pub session_timer: Option<SessionTimer>,
    /// Instead of the endpoint's.
    pub reliable: Option<Reliability>,
    /// Instead of the endpoint's.
    pub ring_timeout: Option<Duration>,
    /// Host (and port, if it has one) that Via and Contact name in this call, instead of the endpoint's.
    pub advertised_host: Option<Arc<str>>,
    /// User part of our Contact in this call, instead of the endpoint's.
    pub contact_user: Option<Arc<str>>,
    /// Call-ID, if it must be known before; else a random one.
    pub call_id: Option<String>,
    /// The dialog at the target that this call takes over.
    pub replaces: Option<Replaces>,
    /// How many proxies it may pass: 70, or less for a call made on behalf of another (RFC 3261 §16.6, step 3).
    pub max_forwards: u8,
}

impl InviteRequest {
    /// A call with everything optional left out.
    pub fn new(target: Uri, from: NameAddr, flow: Flow) -> InviteRequest {
        InviteRequest {
            target,
            from,
            to: None,
            flow,
            route: Vec::new(),
            body: None,
            headers: Headers::new(),
            credentials: None,
            session_timer: None,
            reliable: None,
            ring_timeout: None,
            advertised_host: None,
            contact_user: None,
            call_id: None,
            replaces: None,
            max_forwards: 70,
        }
    }
}

impl fmt::Debug for InviteRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InviteRequest")
            .field("target", &self.target)
            .field("from", &self.from)
            .field("flow", &self.flow)
            .finish_non_exhaustive()
    }
}

/// A request outside a dialog: OPTIONS, REGISTER, MESSAGE …
#[derive(Debug, Clone)]
pub struct OutgoingRequest {
    /// Any method but INVITE, ACK, CANCEL and BYE.
    pub method: Method,
    /// Request-URI.
    pub target: Uri,
    /// From; a tag is added.
    pub from: NameAddr,
    /// To; the target without its password if `None`.
    pub to: Option<NameAddr>,
    /// Where to send it.
    pub flow: Flow,
    /// Further headers.
    pub headers: Headers,
    /// The body.
    pub body: Option<Body>,
    /// For 401 and 407.
    pub credentials: Option<Credentials>,
    /// Preloaded Route headers (outbound proxy, Service-Route).
    pub route: Vec<NameAddr>,
    /// Our Contact, written by the endpoint: for REGISTER.
    pub contact: Option<OwnContact>,
    /// Host (and port, if it has one) that Via and Contact name, instead of the endpoint's.
    pub advertised_host: Option<Arc<str>>,
    /// Call-ID; a random one if `None`. Registrations of one binding share theirs (RFC 3261 §10.2).
    pub call_id: Option<String>,
    /// CSeq number. A challenge raises it: the next request of the same Call-ID takes the response's plus one.
    pub cseq: u32,
}

/// Our Contact in a request outside a dialog: `<sip:user@host:port;transport=…>params`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnContact {
    /// User part; escaped as needed. Empty for none.
    pub user: String,
    /// Header parameters, with the leading `;`: `;expires=300`.
    pub params: String,
}

impl OutgoingRequest {
    /// A request with everything optional left out.
    pub fn new(method: Method, target: Uri, from: NameAddr, flow: Flow) -> OutgoingRequest {
        OutgoingRequest {
            method,
            target,
            from,
            to: None,
            flow,
            headers: Headers::new(),
            body: None,
            credentials: None,
            route: Vec::new(),
            contact: None,
            advertised_host: None,
            call_id: None,
            cseq: 1,
        }
    }
}

/// Why a verb could not be carried out. Nothing has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The handle is dead: its `Ended` or `Response` event has been queued.
    #[error("no such call or request")]
    Unknown,
    /// The call is not in a state for this: for instance `answer` after `answer`.
    #[error("not possible while {0}")]
    State(&'static str),
    /// A table is full.
    #[error("{0} table is full")]
    Full(&'static str),
    /// The method cannot be sent by this verb.
    #[error("method not possible here")]
    Method,
    /// A value that cannot stand in a message: a control character, a Call-ID that is none.
    #[error("malformed {0}")]
    Value(&'static str),
}

/// Entries of the endpoint's tables; all zero when nothing is going on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Calls not yet ended.
    pub calls: usize,
    /// Transactions.
    pub transactions: usize,
    /// Requests other than INVITE that wait for an answer.
    pub exchanges: usize,
    /// Keys by which transactions and calls are found.
    pub keys: usize,
    /// Connections with a framer.
    pub streams: usize,
    /// Queued deadlines; some are of things that are gone.
    pub wakes: usize,
}

/// What the endpoint has seen; never reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests read.
    pub requests_in: u64,
    /// Responses read.
    pub responses_in: u64,
    /// Messages handed to `poll_transmit`, retransmissions and keep-alives included.
    pub messages_out: u64,
    /// Of those, retransmissions of ours.
    pub retransmits_out: u64,
    /// Requests and responses absorbed as the peer's retransmissions.
    pub retransmits_in: u64,
    /// Unparsable requests answered with 400.
    pub bad_requests: u64,
    /// Unparsable bytes dropped in silence.
    pub garbage: u64,
    /// Responses that belong to no transaction of ours.
    pub stray_responses: u64,
    /// ACKs that belong to nothing.
    pub stray_acks: u64,
    /// Requests that the endpoint refused by itself, for whatever reason.
    pub refused: u64,
    /// Of those, with 503 because a table was full.
    pub refused_full: u64,
    /// Transactions that ended by timer B, F or H, or by a failed transport.
    pub transactions_failed: u64,
}
