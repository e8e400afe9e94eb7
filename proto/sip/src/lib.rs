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
//! From the ground up: [`uri`], [`headers`] and [`header`] (typed values), [`message`], [`parse`] and `write`,
//! [`digest`], [`timer`], the four machines in `transaction`, `dialog`, and [`endpoint`] on top.
//!
//! Not here: sockets, TLS and DNS (the control plane's shell), SDP (`tandem-sdp`), and who may call whom.

pub mod digest;
pub mod endpoint;
pub mod flow;
mod grammar;
pub mod header;
pub mod headers;
pub mod message;
pub mod parse;
pub mod timer;
pub mod uri;

pub use endpoint::{
    CallError, CallHandle, Counters, EndReason, Endpoint, EndpointConfig, Event, InviteRequest, NoResponse,
    OutgoingRequest, RequestHandle,
};
pub use flow::{ConnectionId, Flow, Transmit, Transport};
pub use header::NameAddr;
pub use headers::{HeaderName, Headers};
pub use message::{Body, Message, Method, Reply, Request, Response};
pub use uri::Uri;
