//! WebSocket (RFC 6455), client and server, without a socket.
//!
//! ```text
//!   client: ClientHandshake::write_request ──▶ peer ──▶ ClientHandshake::read_response
//!   server: UpgradeRequest::parse ◀── peer ◀── UpgradeRequest::write_response
//!   then    FrameReader::push, poll_message   and   write_frame, write_frame_with, write_close
//! ```
//!
//! The reader reassembles fragments, unmasks in place and hands out slices of its own buffer; the writer puts header and
//! payload into the caller's buffer. Nothing is answered by itself: after [`Message::Ping`] the caller writes a pong, after
//! [`Message::Close`] or a [`ProtocolError`] it writes a close frame and hangs up. Left out: extensions (compression is never
//! offered, so its bits are a protocol error) and subprotocols.

mod frame;
mod handshake;
mod reader;
mod url;

pub use frame::{
    HEADER_MAX, MASKED_HEADER_MAX, Opcode, WriteError, append_frame, apply_mask, frame_len, write_close,
    write_frame, write_frame_with, write_header,
};
pub use handshake::{
    ClientHandshake, HANDSHAKE_HEADERS_MAX, HANDSHAKE_MAX, HandshakeError, UpgradeRequest, accept_key,
    write_refusal, write_refusal_after,
};
pub use reader::{FrameReader, INITIAL_CAPACITY, MESSAGE_MAX, Message, ProtocolError};
pub use url::{Url, UrlError};

/// Which end of the connection we are. A client masks what it sends, a server does not (RFC 6455 §5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// We dialled.
    Client,
    /// We were dialled.
    Server,
}

/// Close codes that Tandem sends or tells apart (RFC 6455 §7.4.1).
pub mod close {
    /// The purpose of the connection is fulfilled.
    pub const NORMAL: u16 = 1000;
    /// The endpoint is going away.
    pub const GOING_AWAY: u16 = 1001;
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// The peer sent a kind of data that is not accepted.
    pub const UNSUPPORTED: u16 = 1003;
    /// Text that is not UTF-8.
    pub const INVALID_DATA: u16 = 1007;
    /// The peer broke a rule that has no code of its own.
    pub const POLICY: u16 = 1008;
    /// A message larger than we accept.
    pub const TOO_BIG: u16 = 1009;
    /// We failed.
    pub const INTERNAL: u16 = 1011;
}
