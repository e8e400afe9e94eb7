//! Message → bytes.
//!
//! [`Writer`] appends start line, headers and body to one buffer, in that order; the endpoint writes its own messages
//! with it, without building a `Request` first. Long header names; Content-Length always, and last.

use std::io::Write as _;

use crate::headers::{HeaderName, Headers};
use crate::message::{Message, Method, Request, Response};
use crate::uri::Uri;

/// Room for a typical message, so that most are written into one allocation.
const TYPICAL_LEN: usize = 1024;

/// Writes one message. (Writing to a `Vec` cannot fail, so results of `write!` are dropped.)
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(crate) fn request(method: &Method, uri: &Uri) -> Writer {
        let mut writer = Writer { out: Vec::with_capacity(TYPICAL_LEN) };
        for part in [method.as_str(), " ", uri.as_str(), " SIP/2.0\r\n"] {
            writer.out.extend_from_slice(part.as_bytes());
        }
        writer
    }

    pub(crate) fn response(status: u16, reason: &str) -> Writer {
        let mut writer = Writer { out: Vec::with_capacity(TYPICAL_LEN) };
        let _ = write!(writer.out, "SIP/2.0 {status} {reason}\r\n");
        writer
    }

    /// One header line of a checked value.
    pub(crate) fn header(&mut self, name: HeaderName, value: &str) {
        self.line_of(name, &[], value.as_bytes());
    }

    /// One header line whose value is formatted in place.
    pub(crate) fn header_fmt(&mut self, name: HeaderName, value: std::fmt::Arguments<'_>) {
        self.out.extend_from_slice(name.as_str().as_bytes());
        let _ = write!(self.out, ": {value}\r\n");
    }

    /// One header line of octets that a peer sent; a known name in its long form.
    pub(crate) fn line(&mut self, name: &str, value: &[u8]) {
        self.line_of(HeaderName::from_bytes(name.as_bytes()), name.as_bytes(), value);
    }

    fn line_of(&mut self, known: HeaderName, name: &[u8], value: &[u8]) {
        let known = known.as_str();
        self.out.extend_from_slice(if known.is_empty() { name } else { known.as_bytes() });
        self.out.extend_from_slice(b": ");
        self.out.extend_from_slice(value);
        self.out.extend_from_slice(b"\r\n");
    }

    /// All lines of `headers` but Content-Length.
    pub(crate) fn headers(&mut self, headers: &Headers) {
        for (known, name, value) in headers.lines() {
            if known != HeaderName::ContentLength {
                self.line_of(known, name, value);
            }
        }
    }

    /// Header lines written before, CRLF included.
    pub(crate) fn lines(&mut self, lines: &[u8]) {
        self.out.extend_from_slice(lines);
    }

    /// Content-Length, the empty line and the body.
    pub(crate) fn finish(mut self, body: &[u8]) -> Vec<u8> {
        let _ = write!(self.out, "Content-Length: {}\r\n\r\n", body.len());
        self.out.extend_from_slice(body);
        self.out
    }
}

impl Request {
    /// The request as it goes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::request(&self.method, &self.uri);
        writer.headers(self.head.headers());
        writer.finish(&self.body)
    }
}

impl Response {
    /// The response as it goes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::response(self.status, &self.reason);
        writer.headers(self.head.headers());
        writer.finish(&self.body)
    }
}

impl Message {
    /// The message as it goes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Message::Request(request) => request.to_bytes(),
            Message::Response(response) => response.to_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::parse::parse;

    #[test]
    fn written_message_has_long_names_and_its_content_length() {
        let text = "SIP/2.0 200 OK\r\nv: SIP/2.0/UDP h;branch=z9hG4bK1\r\nf: <sip:c@d>;tag=1\r\nt: <sip:a@b>\r\n\
            i: x\r\nCSeq: 1 OPTIONS\r\nX-Odd: \u{fc}\r\n\r\nbody";
        let written = parse(text.as_bytes()).unwrap().to_bytes();
        let expected = "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:c@d>;tag=1\r\n\
            To: <sip:a@b>\r\nCall-ID: x\r\nCSeq: 1 OPTIONS\r\nX-Odd: \u{fc}\r\nContent-Length: 4\r\n\r\nbody";
        assert_eq!(String::from_utf8(written).unwrap(), expected);
    }

    #[test]
    fn octets_of_a_foreign_header_survive() {
        let text = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nX-Odd: \xfc\r\nFrom: <sip:c@d>;tag=1\r\n\
            To: <sip:a@b>\r\nCall-ID: x\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(parse(text).unwrap().to_bytes(), text);
    }
}
