//! The door to the crate: one SIP user agent.

mod config;
mod event;

use std::time::Instant;

pub use config::{
    CallError, Counters, EndpointConfig, InviteRequest, MAX_CALLS, MAX_CONNECTIONS, MAX_QUEUED,
    MAX_TRANSACTIONS, OutgoingRequest, RETRY_AFTER_FULL_S,
};
pub use event::{CallHandle, EndReason, Event, NoResponse, RequestHandle};

use crate::flow::{ConnectionId, Flow, Transmit};
use crate::headers::Headers;
use crate::message::{Body, Method, Reply};

/// One SIP user agent, UAS and UAC: all transactions and dialogs behind any number of sockets.
#[derive(Debug)]
pub struct Endpoint {
    counters: Counters,
    config: EndpointConfig,
}

impl Endpoint {
    /// An endpoint without calls.
    pub fn new(config: EndpointConfig) -> Endpoint {
        Endpoint { counters: Counters::default(), config }
    }

    // --- getters ---

    /// What has been seen so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The configuration.
    pub fn config(&self) -> &EndpointConfig {
        &self.config
    }

    /// Calls not yet ended.
    pub fn call_count(&self) -> usize {
        0
    }

    /// Transactions in memory.
    pub fn transaction_count(&self) -> usize {
        0
    }

    // --- from network and clock ---

    /// Bytes arrived: one datagram, one WebSocket message, or any piece of a TCP or TLS stream.
    pub fn handle_input(&mut self, _bytes: &[u8], _flow: Flow, _now: Instant) {}

    /// A connection (`flow.connection` is set) is open, accepted or made at our wish. Bytes on an unannounced
    /// connection announce it too.
    pub fn handle_connected(&mut self, _flow: Flow) {}

    /// A connection is gone. Calls survive: their next request asks for a new one.
    pub fn handle_closed(&mut self, _connection: ConnectionId, _now: Instant) {}

    /// A [`Transmit`] on this flow could not be delivered: transactions that wait for its answer fail.
    pub fn handle_transport_error(&mut self, _flow: Flow, _now: Instant) {}

    /// The deadline of `poll_timeout` has come (early calls are harmless).
    pub fn handle_timeout(&mut self, _now: Instant) {}

    // --- verbs, UAS ---

    /// 180 Ringing.
    pub fn ring(&mut self, call: CallHandle, now: Instant) -> Result<(), CallError> {
        self.respond(call, Reply::new(180), now)
    }

    /// 200 OK with our answer (or offer, if the INVITE had none) to the pending INVITE or re-INVITE. Repeated until
    /// the ACK comes.
    pub fn answer(&mut self, call: CallHandle, body: Body, now: Instant) -> Result<(), CallError> {
        self.respond(call, Reply::new(200).body(body), now)
    }

    /// A final refusal (300..=699) of the pending INVITE or re-INVITE. A refused INVITE ends the call at once.
    pub fn reject(&mut self, call: CallHandle, reply: Reply, now: Instant) -> Result<(), CallError> {
        self.respond(call, reply, now)
    }

    /// Any response to the pending INVITE or re-INVITE: provisional (with SDP: early media) or final.
    pub fn respond(&mut self, _call: CallHandle, _reply: Reply, _now: Instant) -> Result<(), CallError> {
        Err(CallError::Unknown)
    }

    /// Answers an [`Event::Request`].
    pub fn reply(&mut self, _request: RequestHandle, _reply: Reply, _now: Instant) -> Result<(), CallError> {
        Err(CallError::Unknown)
    }

    // --- verbs, UAC ---

    /// Calls somebody.
    pub fn invite(&mut self, _invite: InviteRequest, _now: Instant) -> Result<CallHandle, CallError> {
        Err(CallError::Full("call"))
    }

    /// Gives our INVITE up. Waits for the first provisional response as RFC 3261 §9.1 asks; if the 2xx was faster, the
    /// call is acknowledged and hung up. Then comes `Ended`.
    pub fn cancel(&mut self, _call: CallHandle, _now: Instant) -> Result<(), CallError> {
        Err(CallError::Unknown)
    }

    /// The ACK with our answer, after `Answered { wants_ack: true }`.
    pub fn ack(&mut self, _call: CallHandle, _body: Body, _now: Instant) -> Result<(), CallError> {
        Err(CallError::Unknown)
    }

    /// A request outside a dialog: OPTIONS, REGISTER, MESSAGE …; its end is [`Event::Response`].
    pub fn request(&mut self, _request: OutgoingRequest, _now: Instant) -> Result<RequestHandle, CallError> {
        Err(CallError::Full("transaction"))
    }

    // --- verbs, both ---

    /// Ends the call whatever its state: BYE if confirmed, CANCEL for our INVITE, 480 for an unanswered one of theirs.
    /// `headers` (for instance Reason) go into it.
    pub fn hang_up(&mut self, _call: CallHandle, _headers: Headers, _now: Instant) -> Result<(), CallError> {
        Err(CallError::Unknown)
    }

    /// BYE. `headers`: for instance Reason.
    pub fn bye(&mut self, _call: CallHandle, _headers: Headers, _now: Instant) -> Result<(), CallError> {
        Err(CallError::Unknown)
    }

    /// Re-INVITE with a new offer (or none, asking for one).
    pub fn reinvite(
        &mut self,
        _call: CallHandle,
        _body: Option<Body>,
        _now: Instant,
    ) -> Result<(), CallError> {
        Err(CallError::Unknown)
    }

    /// A request in a call's dialog: INFO, UPDATE, MESSAGE …; its end is [`Event::Response`].
    pub fn request_in_call(
        &mut self,
        _call: CallHandle,
        _method: Method,
        _headers: Headers,
        _body: Option<Body>,
        _now: Instant,
    ) -> Result<RequestHandle, CallError> {
        Err(CallError::Unknown)
    }

    // --- what must leave ---

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// When `handle_timeout` must be called, at the latest. May be earlier than needed; `None`: nothing is pending.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}
