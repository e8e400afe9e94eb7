//! What the endpoint tells its user, and the handles by which the user answers.

use std::time::Duration;

use crate::flow::{ConnectionId, Flow};
use crate::message::{Request, Response};

/// A call as this endpoint knows it: an INVITE, then its dialog. Valid until its [`Event::Ended`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallHandle {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// A request other than INVITE: received ([`Event::Request`]) or sent ([`Event::Response`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestHandle {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// What happened. Every call ends with exactly one [`Event::Ended`], after which its handle is dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// UAS: a new call; 100 Trying has left. Answer with `ring`, `respond`, `answer` or `reject`.
    IncomingInvite {
        /// The call.
        call: CallHandle,
        /// The INVITE. No body: the caller wants our offer in the 200 and puts its answer into the ACK.
        request: Box<Request>,
        /// How it came.
        flow: Flow,
        /// The call that this one wants to take over (RFC 3891). Answered, it ends that one with
        /// [`EndReason::Replaced`]; whether the caller may is the user's to decide.
        replaces: Option<CallHandle>,
    },
    /// UAS: the ACK for our 2xx to an INVITE or re-INVITE came. With an empty INVITE it carries the caller's answer.
    Acknowledged {
        /// The call.
        call: CallHandle,
        /// The ACK.
        ack: Box<Request>,
    },
    /// The peer wants to change the session: `answer` or `reject` it like an INVITE.
    Reinvite {
        /// The call.
        call: CallHandle,
        /// The re-INVITE.
        request: Box<Request>,
    },
    /// The peer gave its re-INVITE up; it has got 487. The call goes on.
    ReinviteCancelled {
        /// The call.
        call: CallHandle,
    },
    /// UAC: 101..=199 came, from this or another fork (the To tag tells).
    Provisional {
        /// The call.
        call: CallHandle,
        /// The response; with SDP it may be early media. A reliable one has got its PRACK already, unless `wants_prack`.
        response: Box<Response>,
        /// Our INVITE had no body, and this reliable response carries the peer's offer: [`crate::Endpoint::prack`] must
        /// send the answer.
        wants_prack: bool,
    },
    /// UAS: the caller confirmed a reliable provisional response of ours; the PRACK has got its 200.
    Pracked {
        /// The call.
        call: CallHandle,
        /// The PRACK. With a body if our response carried an offer: the answer to it. (A PRACK with an offer of its own
        /// is an [`Event::Request`].)
        prack: Box<Request>,
    },
    /// UAC: 2xx to our INVITE. Its ACK has left, unless `wants_ack`.
    Answered {
        /// The call.
        call: CallHandle,
        /// The 2xx.
        response: Box<Response>,
        /// Our INVITE had no body: the response carries the peer's offer, and [`crate::Endpoint::ack`] must send the
        /// answer.
        wants_ack: bool,
    },
    /// Our re-INVITE was answered with 2xx, and the ACK has left, unless `wants_ack`.
    ReinviteAnswered {
        /// The call.
        call: CallHandle,
        /// The 2xx.
        response: Box<Response>,
        /// As in [`Event::Answered`].
        wants_ack: bool,
    },
    /// Our re-INVITE was refused; the session stays as it was. (Not answered at all: the call ends.)
    ReinviteRefused {
        /// The call.
        call: CallHandle,
        /// The final status; 503 if the re-INVITE could not be sent.
        status: u16,
        /// For 491: how long to wait before the next try (RFC 3261 §14.1).
        retry_after: Option<Duration>,
    },
    /// A transfer of ours ([`crate::Endpoint::refer`]) goes on or has come to its end.
    ReferProgress {
        /// The call that we want to hand over.
        call: CallHandle,
        /// 202 (or another 2xx): accepted, and NOTIFYs follow; the status of a NOTIFY; or what the REFER failed with,
        /// 408 if nothing came.
        status: u16,
        /// The reason phrase that came with it; may be empty.
        reason: String,
        /// Nothing more will come. A 2xx here means that the target has answered.
        is_final: bool,
    },
    /// The call is over.
    Ended {
        /// The call.
        call: CallHandle,
        /// Why.
        why: EndReason,
    },
    /// A request other than INVITE, ACK, BYE, CANCEL and OPTIONS: in a dialog (INFO, UPDATE …) or, if the
    /// configuration asks for the method, outside. Answer with [`crate::Endpoint::reply`] within 32 seconds.
    Request {
        /// The request.
        handle: RequestHandle,
        /// The call, inside a dialog.
        call: Option<CallHandle>,
        /// What came.
        request: Box<Request>,
        /// How it came.
        flow: Flow,
    },
    /// A request of ours (OPTIONS, INFO, REGISTER …) has its final response.
    Response {
        /// The request; dead from here on.
        handle: RequestHandle,
        /// The call, inside a dialog.
        call: Option<CallHandle>,
        /// The final response, or why there is none.
        result: Result<Box<Response>, NoResponse>,
    },
    /// The endpoint has refused a request by itself. For the log: nothing is to be done.
    Refused {
        /// How the request came.
        flow: Flow,
        /// The status of the answer.
        status: u16,
        /// A stable word for the rule that it broke.
        rule: &'static str,
        /// What was wrong, at most [`super::MAX_DETAIL_LEN`] octets; never a URI or a secret.
        detail: String,
    },
    /// Close this connection: its bytes are no SIP, or it does nothing for too long.
    CloseConnection {
        /// Which.
        connection: ConnectionId,
        /// What is wrong with it.
        why: crate::parse::ParseError,
    },
}

/// Why there was no final response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoResponse {
    /// Timer B or F (RFC 3261 §17.1): 64·T1 without a final response; for INVITE also the ringing limit.
    #[error("no response in time")]
    Timeout,
    /// The shell could not send it.
    #[error("transport failed")]
    Transport,
}

/// Why a call is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// UAS: the caller gave up before our answer (CANCEL, or BYE in the early dialog); it has got 487.
    Cancelled {
        /// The Reason header of the CANCEL or BYE.
        reason: Option<String>,
    },
    /// UAS: we refused it.
    Rejected {
        /// With this status.
        status: u16,
    },
    /// UAS: our 2xx was never acknowledged; a BYE has left (RFC 3261 §13.3.1.4).
    NoAck,
    /// UAS: a reliable provisional response of ours was never confirmed; the INVITE has got 504 (RFC 3262 §3).
    NoPrack,
    /// UAC: the peer refused it, or it ended by our CANCEL (487).
    Failed {
        /// The final response.
        response: Box<Response>,
    },
    /// UAC: no final response.
    NoResponse(NoResponse),
    /// The peer hung up; its BYE has got 200.
    RemoteBye {
        /// The Reason header of the BYE.
        reason: Option<String>,
    },
    /// We hung up, and the BYE is answered.
    LocalBye {
        /// Status of the answer; `None` if none came.
        status: Option<u16>,
    },
    /// Nobody refreshed the session in time (RFC 4028 §10); a BYE has left.
    SessionExpired,
    /// Another call has taken this one over (RFC 3891); a BYE has left.
    Replaced {
        /// The call that took over.
        by: CallHandle,
    },
    /// The peer does not know the dialog any more: 481 or 408 to a request of ours in it (RFC 5057 §5.1).
    DialogLost {
        /// The status.
        status: u16,
    },
}
