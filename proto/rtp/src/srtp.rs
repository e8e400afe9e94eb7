//! SRTP and SRTCP of one leg (RFC 3711, RFC 7714), over the rtc-srtp library, which has the ciphers.
//!
//! ```text
//!  datagram ──▶ parsed, payload type as negotiated ──▶ Inbound::unprotect_rtp ──▶ latch ──▶ receiver
//!                                                        │ SSRC that proved itself ─▶ decrypt, replay window, rollover
//!                                                        └ another one ─▶ tried in a context of its own, which is thrown
//!                                                                         away unless the packet is authentic
//!  packet in the caller's buffer ──▶ Outbound::protect_rtp ──▶ the same buffer, some octets longer
//! ```
//!
//! The library keeps state for each SSRC *before* it has checked the packet, and nothing frees it. So an SSRC gets near the
//! lasting context only after one packet of it was authentic, and of those there are at most [`MAX_SSRCS`] a key: a forged
//! stream costs time, never memory. Their replay windows are never dropped while the key lives, so that what was recorded
//! before a change of SSRC cannot be played back after it.
//!
//! It also takes a compound that says of itself that it is not encrypted without looking at its tag, in the suites of
//! counter mode (0.21.1); nobody negotiates UNENCRYPTED_SRTCP here, so those are refused before it sees them.
//!
//! A re-key ([`Inbound::rekey`]) keeps the old key until the first packet under the new one is authentic, since packets
//! under the old are still on their way. Keys show in no `Debug` and no error.
//!
//! Offer and answer need only the keys; the ciphers are behind the feature `srtp`, which the engine has and the control plane
//! has not. One allocation a packet each way is the library's; the benchmark says what it costs.

#[cfg(feature = "srtp")]
mod context;
mod key;

#[cfg(feature = "srtp")]
pub use context::{Inbound, MAX_SSRCS, Outbound, RTCP_OVERHEAD_MAX, RTP_OVERHEAD_MAX, SrtpError};
pub use key::{KeyError, MasterKey, Suite};
