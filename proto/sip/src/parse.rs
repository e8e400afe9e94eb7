//! Bytes → message.

use crate::message::{HeadError, Message};

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Headers.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// No start line.
    #[error("malformed start line")]
    StartLine,
}

/// Reads one datagram.
pub fn parse_datagram(_bytes: &[u8]) -> Result<Message, ParseError> {
    Err(ParseError::StartLine)
}
