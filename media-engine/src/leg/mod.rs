//! One side of a session: the carrier's ([`rtp`]) or the agent's ([`agent`]). Sans-IO: octets and `now` in; octets,
//! deadlines and events out.
//!
//! ```text
//!   datagrams ◀──▶ rtp::RtpLeg ◀── session::bridge ──▶ agent::Agent ── stream::Stream ─┬─ dialect, websocket ◀──▶ TCP
//!                                                                                     ├─ audiosocket ◀────────▶ TCP
//!                                                                                     └─ link ◀──▶ the core's one TCP
//! ```
//!
//! Of a browser, [`secure`] (ICE and DTLS) stands before the RTP leg; of a telephony provider, [`provider`] stands in its
//! network's place.
//!
//! Nothing here knows the ring, so all of it is tested in virtual time on any system.

pub mod agent;
pub mod audiosocket;
pub mod backlog;
pub mod dialect;
pub mod event;
pub mod grpc;
pub mod link;
pub mod provider;
pub mod rtp;
pub mod secure;
pub mod stream;
mod tls;
pub mod websocket;
