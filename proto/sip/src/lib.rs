//! SIP user agent core: messages, transactions, dialogs. Sans-IO: no socket, no clock, no thread, no log.
//!
//! ```text
//!           handle_input(bytes, flow, now)                     ring, answer, reject, bye, invite, cancel …
//!   shell ───────────────────────────────▶ ┌──────────────────┐ ◀───────────────────────────────── user
//!         ──handle_timeout(now)──────────▶ │     Endpoint     │
//!         ◀─poll_transmit()─────────────── │ dialog           │ ──poll_event()───────────────────▶ user
//!         ◀─poll_timeout()──────────────── │ transaction      │
//!                                          │ parse · write    │
//!                                          └──────────────────┘
//! ```
//!
//! An [`Endpoint`] has four kinds of method and no fifth:
//! - **getters** take `&self`;
//! - **`handle_*`** bring what comes from network and clock;
//! - **plain verbs** say what the user wants;
//! - **`poll_*`** take out what must leave.
//!
//! **The drain contract:** after each call of a `handle_*` or a verb, empty `poll_transmit` and `poll_event`, then ask
//! `poll_timeout` and call `handle_timeout` at that instant. Order of transmits is order of sending; order of events
//! is order of happening.
//!
//! ```
//! use std::time::Instant;
//! use tandem_sip::{Body, Endpoint, Event, Flow};
//!
//! /// One turn of a shell: a datagram in, datagrams and the next deadline out.
//! fn turn(endpoint: &mut Endpoint, bytes: &[u8], flow: Flow, now: Instant) -> (Vec<Vec<u8>>, Option<Instant>) {
//!     endpoint.handle_input(bytes, flow, now);
//!     while let Some(event) = endpoint.poll_event() {
//!         if let Event::IncomingInvite { call, .. } = event {
//!             // The call may have ended meanwhile; then there is nothing to answer.
//!             let _ = endpoint.answer(call, Body::sdp("v=0\r\n"), now);
//!         }
//!     }
//!     let out = std::iter::from_fn(|| endpoint.poll_transmit()).map(|transmit| transmit.bytes).collect();
//!     (out, endpoint.poll_timeout())
//! }
//! ```
//!
//! A call's life in events. UAS: `IncomingInvite`, then (after our `answer`) `Acknowledged`, then `Ended`. UAC: any number
//! of `Provisional`, then `Answered`, then `Ended`. Every call ends with exactly one `Ended`, whoever ended it and however.
//!
//! What runs by itself, and is only heard of when it fails: transactions and their timers, retransmitted 2xx and their ACK,
//! session timers (RFC 4028), PRACK (RFC 3262) unless it must carry the user's answer, NOTIFYs of transfers (RFC 3515),
//! hanging up forks that answer late and calls that were taken over (RFC 3891), answers to 401, 407 and 422, refusals of
//! what no user need see ([`endpoint`]'s `checks.rs` has the table).
//!
//! What is lenient and what is strict: see [`parse`]. Bounds and what happens when they are reached: the constants of
//! [`endpoint`], [`parse`] and `uac.rs`.
//!
//! From the ground up: [`uri`], [`headers`] and [`header`] (typed values), [`message`], [`parse`] and `write`,
//! [`digest`], [`timer`], the four machines in `transaction`, `dialog`, and [`endpoint`] on top.
//!
//! Not here: sockets, TLS and DNS (the control plane's shell), SDP (`tandem-sdp`), and who may call whom.

pub mod dialog;
pub mod digest;
pub mod endpoint;
pub mod flow;
pub mod framing;
mod grammar;
pub mod header;
pub mod headers;
pub mod message;
pub mod parse;
mod random;
pub mod resolve;
pub mod stun;
mod table;
#[cfg(test)]
mod test_time;
pub mod timer;
mod transaction;
pub mod uri;
mod write;

pub use endpoint::{
    CallError, CallHandle, Counters, EndReason, Endpoint, EndpointConfig, Event, InviteRequest, NoResponse,
    OutgoingRequest, OwnContact, Reliability, RequestHandle, SessionTimer,
};
pub use flow::{ConnectionId, Flow, Transmit, Transport};
pub use header::NameAddr;
pub use headers::{HeaderName, Headers};
pub use message::{Body, Message, Method, Reply, Request, Response};
pub use uri::Uri;
