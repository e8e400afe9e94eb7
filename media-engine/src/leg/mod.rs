//! One side of a session: the carrier's ([`rtp`]) or the agent's ([`agent`]). Sans-IO: octets and `now` in; octets,
//! deadlines and events out.
//!
//! ```text
//!   datagrams ◀──▶ rtp::RtpLeg ◀── session::bridge ──▶ agent::Agent ── websocket::Connection ◀──▶ octets of TCP
//! ```
//!
//! Nothing here knows the ring, so all of it is tested in virtual time on any system.

pub mod agent;
pub mod event;
pub mod rtp;
pub mod websocket;
