//! Messages out of a byte stream (RFC 3261 §18.3), and its keep-alives (RFC 5626 §3.5.1).
//!
//! ```text
//!   bytes ──feed──▶ [ ...\r\n\r\n | body by Content-Length | ... ] ──next──▶ one message | ping | nothing yet
//! ```
//!
//! Only the end of each message is found here; [`crate::parse`] reads it.

use crate::grammar;
use crate::headers::HeaderName;
use crate::message::HeadError;
use crate::parse::{MAX_HEAD_LEN, MAX_MESSAGE_LEN, ParseError};

/// What a stream holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// One whole message.
    Message(&'a [u8]),
    /// A double CRLF, to be answered by one CRLF.
    Ping,
}

/// Cuts one connection's bytes into messages.
#[derive(Debug, Default)]
pub struct StreamFramer {
    buffer: Vec<u8>,
    /// Octets at the front that have been handed out.
    used: usize,
    /// Octets after `used` in which no end of head was found.
    scanned: usize,
}

impl StreamFramer {
    /// A framer at the start of a stream.
    pub const fn new() -> StreamFramer {
        StreamFramer { buffer: Vec::new(), used: 0, scanned: 0 }
    }

    /// Takes the next bytes. Call [`StreamFramer::next_frame`] until it gives `None` before feeding more: what stays
    /// is less than one message.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.used > 0 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Octets held.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.used
    }

    /// The bytes not yet handed out: after an error, what could not be framed.
    pub fn remainder(&self) -> &[u8] {
        &self.buffer[self.used..]
    }

    /// The next frame, if it is complete. An error is final: the stream has lost its rhythm and must be closed.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ParseError> {
        loop {
            let rest = &self.buffer[self.used..];
            if rest.starts_with(b"\r\n\r\n") {
                self.used += 4;
                return Ok(Some(Frame::Ping));
            }
            // Perhaps half a ping: wait for the other half.
            if b"\r\n\r".starts_with(rest) {
                return Ok(None);
            }
            if !rest.starts_with(b"\r\n") {
                break;
            }
            self.used += 2;
        }
        let rest = &self.buffer[self.used..];
        let from = self.scanned.saturating_sub(3);
        let Some(found) = rest[from..].windows(4).position(|four| four == b"\r\n\r\n") else {
            self.scanned = rest.len();
            return if rest.len() > MAX_HEAD_LEN { Err(ParseError::HeadTooLong) } else { Ok(None) };
        };
        let head_len = from + found + 4;
        // The head's end is found again when the body is complete.
        self.scanned = head_len - 1;
        if head_len > MAX_HEAD_LEN {
            return Err(ParseError::HeadTooLong);
        }
        let body_len = content_length(&rest[..head_len])?;
        let len = head_len.saturating_add(body_len);
        if len > MAX_MESSAGE_LEN {
            return Err(ParseError::MessageTooLong(len));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let start = self.used;
        self.used += len;
        self.scanned = 0;
        Ok(Some(Frame::Message(&self.buffer[start..start + len])))
    }
}

/// The value of the only Content-Length in a head. Folded ones are refused: nobody sends them.
fn content_length(head: &[u8]) -> Result<usize, ParseError> {
    let mut found = None;
    for line in head.split(|&b| b == b'\n') {
        let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
        let name = line[..colon].trim_ascii_end();
        if line.first().is_some_and(|&b| grammar::is_space(b))
            || HeaderName::from_bytes(name) != HeaderName::ContentLength
        {
            continue;
        }
        if found.is_some() {
            return Err(HeadError::Repeated(HeaderName::ContentLength).into());
        }
        let value = std::str::from_utf8(line[colon + 1..].trim_ascii()).ok().and_then(grammar::decimal);
        found = Some(value.ok_or(HeadError::Malformed(HeaderName::ContentLength))?);
    }
    found.map(|number| number as usize).ok_or(ParseError::NoContentLength)
}

/// For fuzzing: whatever the octets and however they are cut, no panic, and the buffer stays bounded.
#[doc(hidden)]
pub fn fuzz_stream(bytes: &[u8]) {
    let Some((&cut, rest)) = bytes.split_first() else { return };
    let mut framer = StreamFramer::new();
    for piece in rest.chunks(usize::from(cut).max(1)) {
        framer.feed(piece);
        loop {
            match framer.next_frame() {
                Ok(Some(Frame::Message(message))) => drop(crate::parse::parse(message)),
                Ok(Some(Frame::Ping)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(framer.buffered() <= MAX_MESSAGE_LEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &[u8] = b"OPTIONS sip:a SIP/2.0\r\nl : 3\r\n\r\nabc";

    #[test]
    fn messages_come_out_whole_however_the_stream_is_cut() {
        let stream = [b"\r\n", ONE, b"\r\n\r\n", ONE, ONE].concat();
        for cut in 1..=stream.len() {
            let (mut framer, mut messages, mut pings) = (StreamFramer::new(), 0, 0);
            for piece in stream.chunks(cut) {
                framer.feed(piece);
                while let Some(frame) = framer.next_frame().unwrap() {
                    match frame {
                        Frame::Message(message) => {
                            assert_eq!(message, ONE);
                            messages += 1;
                        }
                        Frame::Ping => pings += 1,
                    }
                }
            }
            assert_eq!((messages, pings, framer.buffered()), (3, 1, 0), "pieces of {cut}");
        }
    }

    #[test]
    fn stream_without_content_length_cannot_go_on() {
        let mut framer = StreamFramer::new();
        framer.feed(b"OPTIONS sip:a SIP/2.0\r\nVia: x\r\n\r\n");
        assert_eq!(framer.next_frame(), Err(ParseError::NoContentLength));
    }

    #[test]
    fn endless_head_and_huge_body_are_refused() {
        let mut framer = StreamFramer::new();
        framer.feed(&vec![b'a'; MAX_HEAD_LEN + 1]);
        assert_eq!(framer.next_frame(), Err(ParseError::HeadTooLong));
        let mut framer = StreamFramer::new();
        framer.feed(b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 4294967295\r\n\r\n");
        assert!(matches!(framer.next_frame(), Err(ParseError::MessageTooLong(_))));
    }
}
