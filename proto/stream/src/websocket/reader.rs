//! Frames on the way in (RFC 6455 §5): bytes, however they were cut, become messages.
//!
//! ```text
//!   buffer: │ message so far (fragments joined) │ … │ bytes not yet parsed │ free │
//!           0                            assembled  start                end    capacity
//! ```
//!
//! A message is handed out as a slice of this buffer, unmasked in place. The buffer starts small and grows only when a frame
//! announces that it needs more, never past [`MESSAGE_MAX`]; it does not shrink, so a peer that keeps to one size costs no
//! allocation after its first message of that size.
//!
//! The shell's loop; it makes progress whatever the sizes are:
//!
//! ```
//! # use tandem_stream::websocket::{FrameReader, Role, ProtocolError};
//! # fn receive(reader: &mut FrameReader, mut bytes: &[u8]) -> Result<(), ProtocolError> {
//! while !bytes.is_empty() {
//!     let taken = reader.push(bytes);
//!     bytes = &bytes[taken..];
//!     while let Some(message) = reader.poll_message()? {
//!         // …
//! #       let _ = message;
//!     }
//! }
//! # Ok(()) }
//! ```

use std::ops::Range;

use super::frame::{CONTROL_PAYLOAD_MAX, MASKED_HEADER_MAX, Opcode, apply_mask};
use super::{Role, close};

/// Largest message accepted, fragments joined: 32 s of L16 at 16 kHz, so a whole spoken answer may come at once.
/// A larger one is a [`ProtocolError::TooBig`].
pub const MESSAGE_MAX: usize = 1024 * 1024;
/// Octets a new reader holds: six 20 ms frames of L16 at 16 kHz.
pub const INITIAL_CAPACITY: usize = 4096;

/// One message, borrowed from the reader until it is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// UTF-8 text.
    Text(&'a str),
    /// Octets.
    Binary(&'a [u8]),
    /// To be answered by a pong with the same payload.
    Ping(&'a [u8]),
    /// The answer to a ping of ours.
    Pong(&'a [u8]),
    /// The peer closes: answer with a close frame (unless we sent one), then hang up. Nothing is read after it.
    Close {
        /// Why; `None` when the frame was empty.
        code: Option<u16>,
        /// What the peer said about it.
        reason: &'a str,
    },
}

/// The peer broke RFC 6455; the connection must be closed with [`ProtocolError::close_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A reserved bit is set although no extension was agreed.
    #[error("reserved bits {0:#05b} are set without an extension")]
    ReservedBits(u8),
    /// A reserved opcode.
    #[error("opcode {0:#x} is reserved")]
    Opcode(u8),
    /// A client's frame was not masked, or a server's was.
    #[error("frame is {}masked, which its sender must not do", if *masked { "" } else { "un" })]
    Mask {
        /// Whether it was.
        masked: bool,
    },
    /// A control frame with more than 125 octets, or in fragments.
    #[error("control frame of {len} octets (final: {fin}); at most 125 in one piece are allowed")]
    Control {
        /// Octets announced.
        len: u64,
        /// The FIN bit.
        fin: bool,
    },
    /// A continuation without a message under way, or a new message inside one.
    #[error("fragment out of place")]
    Fragment,
    /// A message larger than [`MESSAGE_MAX`].
    #[error("message of at least {len} octets is larger than {max}")]
    TooBig {
        /// Octets so far, with those announced.
        len: u64,
        /// Our limit.
        max: usize,
    },
    /// Text or a close reason that is not UTF-8.
    #[error("text is not UTF-8 after {valid_up_to} octets")]
    Utf8 {
        /// Octets that were.
        valid_up_to: usize,
    },
    /// A close frame of one octet, or with a code that must not be sent.
    #[error("close frame is malformed (code {code:?})")]
    Close {
        /// The code, if there was one.
        code: Option<u16>,
    },
}

impl ProtocolError {
    /// The code to close the connection with (RFC 6455 §7.4.1).
    pub const fn close_code(&self) -> u16 {
        match self {
            ProtocolError::TooBig { .. } => close::TOO_BIG,
            ProtocolError::Utf8 { .. } => close::INVALID_DATA,
            _ => close::PROTOCOL_ERROR,
        }
    }
}

/// What the reader is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The next data frame starts a message.
    Idle,
    /// A fragmented message of this kind is under way.
    Assembling { text: bool },
    /// A close frame or a protocol error: whatever follows is thrown away.
    Closed,
}

/// A whole frame, unmasked; the payload lies in the buffer.
struct Frame {
    fin: bool,
    opcode: Opcode,
    payload: Range<usize>,
}

/// A frame header as read.
#[derive(Debug, Clone, Copy)]
struct Header {
    fin: bool,
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    header_len: usize,
    payload_len: u64,
}

/// Reads frames of one connection.
#[derive(Debug)]
pub struct FrameReader {
    role: Role,
    message_max: usize,
    state: State,
    buffer: Vec<u8>,
    assembled: usize,
    start: usize,
    end: usize,
}

impl FrameReader {
    /// A reader for our end of a connection, with [`MESSAGE_MAX`].
    pub fn new(role: Role) -> Self {
        Self::with_message_max(role, MESSAGE_MAX)
    }

    /// A reader that accepts messages of up to `message_max` octets.
    pub fn with_message_max(role: Role, message_max: usize) -> Self {
        FrameReader {
            role,
            message_max,
            state: State::Idle,
            buffer: vec![0; INITIAL_CAPACITY],
            assembled: 0,
            start: 0,
            end: 0,
        }
    }

    /// Octets the buffer holds at present.
    pub fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// True once a close frame or a protocol error was seen; what is pushed from then on is thrown away.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Takes received bytes and returns how many: fewer than given when the buffer is full, which
    /// [`FrameReader::poll_message`] until `None` cures.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        if self.is_closed() {
            return bytes.len();
        }
        let room = self.space();
        let taken = room.len().min(bytes.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        self.end += taken;
        taken
    }

    /// Where to receive next, for a shell that reads straight into the buffer; say how much with
    /// [`FrameReader::filled`]. Empty only when messages wait to be polled.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = self.assembled;
            self.end = self.assembled;
        } else if self.end == self.buffer.len() && self.start > self.assembled {
            self.compact();
        }
        &mut self.buffer[self.end..]
    }

    /// That many octets were received into [`FrameReader::space`].
    ///
    /// # Panics
    /// When there was not so much space.
    pub fn filled(&mut self, octets: usize) {
        assert!(octets <= self.buffer.len() - self.end, "more octets than there was space");
        self.end += octets;
    }

    /// The next whole message, `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`ProtocolError`]; the reader is closed then.
    pub fn poll_message(&mut self) -> Result<Option<Message<'_>>, ProtocolError> {
        loop {
            if self.is_closed() {
                return Ok(None);
            }
            let step = self.next_frame();
            let Some(frame) = step.inspect_err(|_| self.state = State::Closed)? else {
                return Ok(None);
            };
            if frame.opcode.is_control() {
                return self.control(&frame);
            }
            let text = match self.state {
                State::Assembling { text } => text,
                _ => frame.opcode == Opcode::Text,
            };
            if frame.fin && self.assembled == 0 {
                self.state = State::Idle;
                return self.data(text, frame.payload);
            }
            // A fragment: join it to those before. The space between holds only what was parsed already.
            let len = frame.payload.len();
            self.buffer.copy_within(frame.payload, self.assembled);
            self.assembled += len;
            self.state = State::Assembling { text };
            if frame.fin {
                let whole = 0..self.assembled;
                self.assembled = 0;
                self.state = State::Idle;
                return self.data(text, whole);
            }
        }
    }

    /// Checks, unmasks and steps over the next frame.
    fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let Some(header) = self.header()? else {
            self.make_room(MASKED_HEADER_MAX);
            return Ok(None);
        };
        self.check(&header)?;
        let whole = header.header_len + header.payload_len as usize;
        if self.end - self.start < whole {
            self.make_room(whole);
            return Ok(None);
        }
        let payload = self.start + header.header_len..self.start + whole;
        if let Some(mask) = header.mask {
            apply_mask(&mut self.buffer[payload.clone()], mask);
        }
        self.start = payload.end;
        Ok(Some(Frame { fin: header.fin, opcode: header.opcode, payload }))
    }

    /// Sees to it that the `octets` that begin at `start` fit in the buffer.
    fn make_room(&mut self, octets: usize) {
        let need = self.assembled + octets;
        if self.buffer.len() < need {
            self.buffer.resize(need, 0);
        }
        if self.start + octets > self.buffer.len() {
            self.compact();
        }
    }

    /// Moves what is not parsed yet up to the message that is under way.
    fn compact(&mut self) {
        self.buffer.copy_within(self.start..self.end, self.assembled);
        self.end -= self.start - self.assembled;
        self.start = self.assembled;
    }

    fn header(&self) -> Result<Option<Header>, ProtocolError> {
        let bytes = &self.buffer[self.start..self.end];
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        let reserved = first >> 4 & 0b111;
        if reserved != 0 {
            return Err(ProtocolError::ReservedBits(reserved));
        }
        let opcode = Opcode::from_bits(first & 0xF).ok_or(ProtocolError::Opcode(first & 0xF))?;
        let (payload_len, rest, length_len) = match second & 0x7F {
            126 => match rest.split_first_chunk::<2>() {
                Some((len, rest)) => (u64::from(u16::from_be_bytes(*len)), rest, 2),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((len, rest)) => (u64::from_be_bytes(*len), rest, 8),
                None => return Ok(None),
            },
            short => (u64::from(short), rest, 0),
        };
        let (mask, mask_len) = if second & 0x80 != 0 {
            match rest.first_chunk::<4>() {
                Some(mask) => (Some(*mask), 4),
                None => return Ok(None),
            }
        } else {
            (None, 0)
        };
        let header_len = 2 + length_len + mask_len;
        Ok(Some(Header { fin: first & 0x80 != 0, opcode, mask, header_len, payload_len }))
    }

    fn check(&self, header: &Header) -> Result<(), ProtocolError> {
        let masked = header.mask.is_some();
        if masked != (self.role == Role::Server) {
            return Err(ProtocolError::Mask { masked });
        }
        if header.opcode.is_control() {
            if !header.fin || header.payload_len > CONTROL_PAYLOAD_MAX as u64 {
                return Err(ProtocolError::Control { len: header.payload_len, fin: header.fin });
            }
            return Ok(());
        }
        let assembling = matches!(self.state, State::Assembling { .. });
        if assembling != (header.opcode == Opcode::Continuation) {
            return Err(ProtocolError::Fragment);
        }
        let len = header.payload_len.saturating_add(self.assembled as u64);
        if len > self.message_max as u64 {
            return Err(ProtocolError::TooBig { len, max: self.message_max });
        }
        Ok(())
    }

    fn data(&mut self, text: bool, payload: Range<usize>) -> Result<Option<Message<'_>>, ProtocolError> {
        if !text {
            return Ok(Some(Message::Binary(&self.buffer[payload])));
        }
        match std::str::from_utf8(&self.buffer[payload]) {
            Ok(text) => Ok(Some(Message::Text(text))),
            Err(error) => {
                self.state = State::Closed;
                Err(ProtocolError::Utf8 { valid_up_to: error.valid_up_to() })
            }
        }
    }

    fn control(&mut self, frame: &Frame) -> Result<Option<Message<'_>>, ProtocolError> {
        let payload = &self.buffer[frame.payload.clone()];
        Ok(Some(match frame.opcode {
            Opcode::Ping => Message::Ping(payload),
            Opcode::Pong => Message::Pong(payload),
            _ => {
                self.state = State::Closed;
                close_message(payload)?
            }
        }))
    }
}

fn close_message(payload: &[u8]) -> Result<Message<'_>, ProtocolError> {
    let (code, reason) = match payload {
        [] => return Ok(Message::Close { code: None, reason: "" }),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
        [_] => return Err(ProtocolError::Close { code: None }),
    };
    // 1004 to 1006 and 1015 are never on the wire; below 1000 and from 5000 on nothing is defined (§7.4).
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(ProtocolError::Close { code: Some(code) });
    }
    let reason = std::str::from_utf8(reason)
        .map_err(|error| ProtocolError::Utf8 { valid_up_to: error.valid_up_to() })?;
    Ok(Message::Close { code: Some(code), reason })
}

const _: () = assert!(INITIAL_CAPACITY >= MASKED_HEADER_MAX + CONTROL_PAYLOAD_MAX);
