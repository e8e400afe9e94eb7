//! Who may begin something: the user is asked for each whole message that belongs to nothing that there is.
//!
//! ```text
//!   bytes ─▶ framed, parsed ─▶ of a dialog, an ACK, a response ───────────────▶ handled
//!                          └─▶ anything else ─▶ Door(Knock) ─▶ yes: handled · no: silence, and a connection is closed
//! ```
//!
//! The question comes behind the parser, so that there is no second reading of a message that could differ from ours, and
//! before anything is kept or answered.

use crate::message::Request;
use crate::parse::ParseError;

/// A message that nobody here waits for.
#[derive(Debug)]
pub enum Knock<'a> {
    /// A request of no transaction and no dialog of ours. It would begin something, or get an answer without state.
    Request(&'a Request),
    /// A request of a transaction that there is, once more: its last response would leave again.
    Repeated(&'a Request),
    /// A request that does not parse, and would get a 400.
    Malformed(ParseError),
    /// No SIP at all. Nothing is answered to it in any case.
    Garbage,
}

/// Asked for each [`Knock`]; `false`: silence.
pub type Door<'a> = dyn FnMut(&Knock<'_>) -> bool + 'a;
