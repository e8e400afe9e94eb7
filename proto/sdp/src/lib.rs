//! Session descriptions (RFC 8866) and the offer/answer model (RFC 3264), for one audio stream over RTP/AVP, RTP/SAVP or
//! UDP/TLS/RTP/SAVPF.
//!
//! ```text
//!   body of an INVITE ──▶ SessionDescription::parse ──▶ negotiate::answer ──▶ Negotiated  (what the engine is told)
//!                                                             └─────────────▶ SessionDescription ──▶ to_string
//!   no body: negotiate::offer ──▶ to_string … body of the ACK ──▶ parse ──▶ negotiate::accept_answer ──▶ Negotiated
//! ```
//!
//! * [`description`]: the lines we care about as types
//! * [`parse`]: text to description, forgiving as carriers need, with the line's number in each error
//! * [`write`](mod@write): description to text
//! * [`negotiate`]: codec, payload types, packet time, telephone-event, direction and hold, rtcp-mux
//! * [`crypto`]: keys of SRTP (RFC 4568)
//! * [`dtls`]: DTLS-SRTP and ICE-lite, which browsers speak (RFC 5763, RFC 8839)
//!
//! Left out, and refused with a reason: other profiles, ICE without DTLS, host names that would have to be looked up.

pub mod crypto;
pub mod description;
pub mod dtls;
pub mod negotiate;
pub mod parse;
pub mod write;

pub use crypto::{LocalSrtp, NegotiatedSrtp, SrtpPolicy};
pub use description::{Direction, SessionDescription};
pub use dtls::{DtlsRefusal, LocalDtls, NegotiatedDtls};
pub use negotiate::{LocalMedia, NegotiateError, Negotiated, accept_answer, answer, offer};
pub use parse::ParseError;
