//! Session descriptions (RFC 8866) and the offer/answer model (RFC 3264), for one audio stream over RTP/AVP.
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
//! * [`negotiate`]: codec, payload types, packet time, telephone-event, direction and hold
//!
//! Left out, and refused with a reason: SRTP, feedback profiles, ICE, host names that would have to be looked up.

pub mod description;
pub mod negotiate;
pub mod parse;
pub mod write;

pub use description::{Direction, SessionDescription};
pub use negotiate::{LocalMedia, NegotiateError, Negotiated, accept_answer, answer, offer};
pub use parse::ParseError;
