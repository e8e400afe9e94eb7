//! Bytes → message (RFC 3261 §7, §18.3, §25.1): strict, with the cause of each refusal.
//!
//! ```text
//!   datagram ───────────────────────▶ parse ──▶ Message
//!   stream ──▶ framing::StreamFramer ─┘  └────▶ ParseError ──salvage──▶ enough for a 400, or nothing
//! ```
//!
//! Lenient only where the RFC asks for it (folding, odd white space, compact names, a missing Content-Length in a
//! datagram, RFC 2543 requests) and where a value is not ours to read (unknown headers, other than UTF-8).

use crate::grammar;
use crate::header::{NameAddr, Via};
use crate::headers::{HeaderName, Headers};
use crate::message::{HeadError, Message, Method, Request, Response};
use crate::uri::{Uri, UriError};

/// Longest message, head and body: what one UDP datagram could carry. Longer ones in a stream close it.
pub const MAX_MESSAGE_LEN: usize = 65_536;

/// Longest head (start line and headers): half of the message, ten times the largest real ones.
pub const MAX_HEAD_LEN: usize = 32_768;

/// Most header lines: three times what a request through a dozen proxies carries.
pub const MAX_HEADER_LINES: usize = 128;

/// Why bytes are not a message. The text goes into the reason phrase of the 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Over [`MAX_MESSAGE_LEN`].
    #[error("message of {0} octets is longer than {MAX_MESSAGE_LEN}")]
    MessageTooLong(usize),
    /// Over [`MAX_HEAD_LEN`], or no empty line after so much.
    #[error("headers are longer than {MAX_HEAD_LEN} octets")]
    HeadTooLong,
    /// Over [`MAX_HEADER_LINES`].
    #[error("more than {MAX_HEADER_LINES} header lines")]
    TooManyHeaders,
    /// The bytes end before the empty line.
    #[error("headers end without an empty line")]
    Incomplete,
    /// A CR or LF that is not part of CRLF.
    #[error("bare CR or LF in line {0}")]
    BareLineBreak(usize),
    /// Neither a Request-Line nor a Status-Line with single spaces.
    #[error("malformed start line")]
    StartLine,
    /// A request of another version: answered 505.
    #[error("SIP version is not 2.0")]
    Version,
    /// The method is not a token.
    #[error("method is not a token")]
    Method,
    /// The Request-URI is malformed.
    #[error("bad Request-URI: {0}")]
    RequestUri(UriError),
    /// The Request-URI carries headers (`?`), which it must not (RFC 3261 §19.1.1).
    #[error("Request-URI carries headers")]
    RequestUriHeaders,
    /// The status is not three digits from 100 to 699.
    #[error("bad status code")]
    Status,
    /// A line without a colon or with a name that is no token.
    #[error("malformed header in line {0}")]
    HeaderLine(usize),
    /// Content-Length says more than there is.
    #[error("Content-Length {said} is more than the {there} octets there")]
    ContentLength {
        /// The header's value.
        said: usize,
        /// What follows the head.
        there: usize,
    },
    /// A stream has no other way to tell where a message ends.
    #[error("missing Content-Length")]
    NoContentLength,
    /// The endpoint frames no more connections than `MAX_CONNECTIONS`.
    #[error("too many connections")]
    TooManyConnections,
    /// The rest of a message did not come in time.
    #[error("message is not complete after {0} s")]
    Slow(u64),
    /// A stream without a call was silent for too long.
    #[error("nothing heard for {0} s")]
    Idle(u64),
    /// The user's door was shut for what came by the connection.
    #[error("not let in")]
    Unwelcome,
    /// A field is missing, repeated or malformed.
    #[error(transparent)]
    Head(#[from] HeadError),
}

impl ParseError {
    /// The status with which a request of this kind is refused.
    pub const fn status(&self) -> u16 {
        match self {
            ParseError::Version => 505,
            ParseError::MessageTooLong(_) | ParseError::HeadTooLong | ParseError::TooManyHeaders => 513,
            ParseError::RequestUri(UriError::TooLong(_)) => 414,
            _ => 400,
        }
    }
}

/// Reads one datagram, WebSocket message or framed stream message. Octets after the body are ignored
/// (RFC 3261 §18.3); without Content-Length the body is the rest.
pub fn parse(bytes: &[u8]) -> Result<Message, ParseError> {
    if bytes.len() > MAX_MESSAGE_LEN {
        return Err(ParseError::MessageTooLong(bytes.len()));
    }
    let bytes = skip_empty_lines(bytes);
    let (start_line, at) = line(bytes, 0, 1)?;
    let (headers, body_at) = parse_headers(bytes, at)?;
    let rest = &bytes[body_at..];
    if let Some(status_line) = start_line.strip_prefix(b"SIP/2.0 ") {
        let (status, reason) = parse_status(status_line)?;
        let body = body(&headers, rest)?;
        check_fields(&headers)?;
        return Ok(Message::Response(Response::new(status, &reason, headers, body.to_vec())?));
    }
    let (method, uri) = parse_request_line(start_line)?;
    let body = body(&headers, rest)?;
    check_fields(&headers)?;
    Ok(Message::Request(Request::new(method, uri, headers, body.to_vec())?))
}

/// Empty lines before a start line are ignored (RFC 3261 §7.5).
fn skip_empty_lines(mut bytes: &[u8]) -> &[u8] {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    bytes
}

/// The line that begins at `at`, and where the next begins.
fn line(bytes: &[u8], at: usize, number: usize) -> Result<(&[u8], usize), ParseError> {
    let rest = &bytes[at..];
    let Some(end) = memchr::memchr2(b'\r', b'\n', rest) else {
        return Err(if rest.len() > MAX_HEAD_LEN { ParseError::HeadTooLong } else { ParseError::Incomplete });
    };
    match (rest[end], rest.get(end + 1)) {
        (b'\r', Some(b'\n')) => Ok((&rest[..end], at + end + 2)),
        (b'\r', None) => Err(ParseError::Incomplete),
        _ => Err(ParseError::BareLineBreak(number)),
    }
}

fn parse_request_line(line: &[u8]) -> Result<(Method, Uri), ParseError> {
    let text = std::str::from_utf8(line).map_err(|_| ParseError::StartLine)?;
    let mut words = text.split(' ');
    let (Some(method), Some(uri), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(ParseError::StartLine);
    };
    if version != "SIP/2.0" {
        let is_sip = version.get(..4).is_some_and(|name| name.eq_ignore_ascii_case("SIP/"));
        return Err(if is_sip { ParseError::Version } else { ParseError::StartLine });
    }
    let method = Method::parse(method).ok_or(ParseError::Method)?;
    let uri = Uri::parse(uri).map_err(ParseError::RequestUri)?;
    if uri.headers().is_some() {
        return Err(ParseError::RequestUriHeaders);
    }
    Ok((method, uri))
}

/// `code SP reason`; the reason may be empty, and then some leave its space out too.
fn parse_status(line: &[u8]) -> Result<(u16, String), ParseError> {
    let text = String::from_utf8_lossy(line);
    let (code, reason) = text.split_once(' ').unwrap_or((&text, ""));
    let status = grammar::decimal(code)
        .filter(|status| code.len() == 3 && (100..700).contains(status))
        .ok_or(ParseError::Status)?;
    Ok((status as u16, reason.to_owned()))
}

/// Reads header lines from `at` to the empty line; returns where the body begins.
fn parse_headers(bytes: &[u8], mut at: usize) -> Result<(Headers, usize), ParseError> {
    let mut headers = Headers::with_capacity(bytes.len().min(MAX_HEAD_LEN), 16);
    let mut number = 1;
    loop {
        number += 1;
        let (text, next) = line(bytes, at, number)?;
        if next > MAX_HEAD_LEN {
            return Err(ParseError::HeadTooLong);
        }
        at = next;
        match text.first() {
            None => return Ok((headers, at)),
            Some(b' ' | b'\t') if headers.is_empty() => return Err(ParseError::HeaderLine(number)),
            Some(b' ' | b'\t') => headers.fold_raw(trim(text)),
            Some(_) => {
                let colon = memchr::memchr(b':', text).ok_or(ParseError::HeaderLine(number))?;
                let name = trim(&text[..colon]);
                if name.is_empty() || !name.iter().all(|&b| grammar::is_token(b)) {
                    return Err(ParseError::HeaderLine(number));
                }
                if headers.len() == MAX_HEADER_LINES {
                    return Err(ParseError::TooManyHeaders);
                }
                headers.push_raw(name, trim(&text[colon + 1..]));
            }
        }
    }
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

fn body<'a>(headers: &Headers, rest: &'a [u8]) -> Result<&'a [u8], ParseError> {
    match content_length(headers)? {
        None => Ok(rest),
        Some(said) => rest.get(..said).ok_or(ParseError::ContentLength { said, there: rest.len() }),
    }
}

fn content_length(headers: &Headers) -> Result<Option<usize>, HeadError> {
    let name = HeaderName::ContentLength;
    let mut lines = headers.all_bytes(name);
    let Some(value) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(HeadError::Repeated(name));
    }
    let number = std::str::from_utf8(value).ok().and_then(grammar::decimal);
    number.map(|number| Some(number as usize)).ok_or(HeadError::Malformed(name))
}

/// Checks the fields that [`crate::message::Head`] does not read but whose meaning we rely on.
fn check_fields(headers: &Headers) -> Result<(), HeadError> {
    use HeaderName as N;
    for name in [N::MaxForwards, N::ContentType, N::Date, N::Expires] {
        if headers.all_bytes(name).nth(1).is_some() {
            return Err(HeadError::Repeated(name));
        }
    }
    let malformed = |name| Err(HeadError::Malformed(name));
    if headers.contains(N::MaxForwards) && number(headers, N::MaxForwards).is_none_or(|hops| hops > 255) {
        return malformed(N::MaxForwards);
    }
    if headers.contains(N::Expires) && number(headers, N::Expires).is_none() {
        return malformed(N::Expires);
    }
    if headers.get(N::Date).is_some_and(|date| !is_sip_date(date)) {
        return malformed(N::Date);
    }
    if headers.get(N::ContentType).is_some_and(|kind| !is_media_type(kind)) {
        return malformed(N::ContentType);
    }
    for name in [N::Contact, N::Route, N::RecordRoute] {
        for item in headers.items(name) {
            if name == N::Contact && item == "*" {
                continue;
            }
            NameAddr::parse(item).map_err(|why| HeadError::Value { name, why })?;
        }
    }
    for name in [N::Require, N::ProxyRequire, N::Supported] {
        if headers.items(name).any(|tag| !tag.bytes().all(grammar::is_token)) {
            return malformed(name);
        }
    }
    Ok(())
}

fn number(headers: &Headers, name: HeaderName) -> Option<u32> {
    headers.get(name).and_then(grammar::decimal)
}

/// `type/subtype` with parameters.
fn is_media_type(value: &str) -> bool {
    let kind = value.split(';').next().unwrap_or_default();
    kind.split_once('/').is_some_and(|(main, sub)| {
        let is_token = |text: &str| {
            let text = grammar::trim(text);
            !text.is_empty() && text.bytes().all(grammar::is_token)
        };
        is_token(main) && is_token(sub)
    })
}

/// SIP-date: RFC 1123's, and only in GMT (RFC 3261 §20.17).
fn is_sip_date(date: &str) -> bool {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = date.split_ascii_whitespace().collect();
    let [weekday, day, month, year, time, "GMT"] = words[..] else { return false };
    ["Mon,", "Tue,", "Wed,", "Thu,", "Fri,", "Sat,", "Sun,"].contains(&weekday)
        && grammar::decimal(day).is_some_and(|day| (1..=31).contains(&day))
        && MONTHS.contains(&month)
        && year.len() == 4
        && grammar::decimal(year).is_some()
        && time.len() == 8
        && time.split(':').count() == 3
        && time.split(':').all(|part| part.len() == 2 && grammar::decimal(part).is_some())
}

/// What a refusal needs from a request that does not parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Salvaged {
    /// The method, if the start line has one.
    pub(crate) method: String,
    /// The top Via.
    pub(crate) via: Via,
    /// Via, From, To, Call-ID and CSeq lines as far as present, in the order of appearance.
    pub(crate) headers: Headers,
}

impl Salvaged {
    /// Whether To seems to have a tag.
    pub(crate) fn has_to_tag(&self) -> bool {
        self.headers.get(HeaderName::To).is_some_and(|to| to.to_ascii_lowercase().contains(";tag="))
    }
}

/// Reads leniently what an unparsable *request* still has. `None`: it is a response, it has no usable Via, or it is no
/// SIP at all; then silence is the answer.
pub(crate) fn salvage(bytes: &[u8]) -> Option<Salvaged> {
    let bytes = skip_empty_lines(&bytes[..bytes.len().min(MAX_MESSAGE_LEN)]);
    let mut lines = bytes.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let start = lines.next()?;
    let is_request =
        !start.starts_with(b"SIP/") && start.windows(5).any(|part| part.eq_ignore_ascii_case(b" SIP/"));
    if !is_request {
        return None;
    }
    let method = start.split(|&b| b == b' ').next().unwrap_or_default();
    let mut headers = Headers::new();
    let mut copying = false;
    for text in lines.take(MAX_HEADER_LINES) {
        match text.first() {
            None => break,
            Some(b' ' | b'\t') if copying => headers.fold_raw(trim(text)),
            Some(b' ' | b'\t') => {}
            Some(_) => {
                use HeaderName as N;
                let Some(colon) = text.iter().position(|&b| b == b':') else { continue };
                let name = HeaderName::from_bytes(trim(&text[..colon]));
                copying = match name {
                    N::Via => true,
                    N::From | N::To | N::CallId | N::CSeq => !headers.contains(name),
                    _ => false,
                };
                if copying {
                    headers.push_raw(name.as_str().as_bytes(), trim(&text[colon + 1..]));
                }
            }
        }
    }
    let top = grammar::split_commas(headers.get(HeaderName::Via)?).next()?;
    let (_, via) = Via::parse_of_version(top).ok()?;
    Some(Salvaged { method: String::from_utf8_lossy(method).into_owned(), via, headers })
}

/// For fuzzing: whatever the octets, no panic; and what parses is written so that it parses to the same.
#[doc(hidden)]
pub fn fuzz_message(bytes: &[u8]) {
    let _ = salvage(bytes);
    let Ok(message) = parse(bytes) else { return };
    match parse(&message.to_bytes()) {
        Ok(again) => assert_eq!(message.to_bytes(), again.to_bytes()),
        // Long names for compact ones, and a Content-Length that was not there, can take it over a limit.
        Err(ParseError::MessageTooLong(_) | ParseError::HeadTooLong | ParseError::TooManyHeaders) => {}
        Err(why) => panic!("what we write, we read: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: &str = "OPTIONS sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:c@d>;tag=1\r\n\
        To: <sip:a@b>\r\nCall-ID: x\r\nCSeq: 1 OPTIONS\r\n";

    fn error_of(extra: &str) -> ParseError {
        parse(format!("{OPTIONS}{extra}\r\n").as_bytes()).unwrap_err()
    }

    #[test]
    fn message_without_content_length_takes_the_rest_of_the_datagram() {
        let Ok(Message::Request(request)) = parse(format!("{OPTIONS}\r\nbody").as_bytes()) else { panic!() };
        assert_eq!(request.body, b"body");
    }

    #[test]
    fn octets_after_the_body_are_ignored() {
        let text = format!("{OPTIONS}Content-Length: 2\r\n\r\nbody");
        let Ok(Message::Request(request)) = parse(text.as_bytes()) else { panic!() };
        assert_eq!(request.body, b"bo");
    }

    #[test]
    fn each_refusal_names_its_cause() {
        use HeaderName as N;
        assert_eq!(error_of("Content-Length: 9\r\n"), ParseError::ContentLength { said: 9, there: 0 });
        assert_eq!(error_of("Content-Length: -1\r\n"), HeadError::Malformed(N::ContentLength).into());
        assert_eq!(error_of("l: 0\r\nContent-Length: 0\r\n"), HeadError::Repeated(N::ContentLength).into());
        assert_eq!(error_of("CSeq: 1 OPTIONS\r\n"), HeadError::Repeated(N::CSeq).into());
        assert_eq!(error_of("Max-Forwards: 256\r\n"), HeadError::Malformed(N::MaxForwards).into());
        assert_eq!(error_of("no colon\r\n"), ParseError::HeaderLine(7));
        assert_eq!(error_of("X: a\nb\r\n"), ParseError::BareLineBreak(7));
        assert_eq!(parse(OPTIONS.as_bytes()), Err(ParseError::Incomplete));
        assert_eq!(error_of(&"X: y\r\n".repeat(MAX_HEADER_LINES)), ParseError::TooManyHeaders);
        assert_eq!(error_of(&format!("X: {}\r\n", "y".repeat(MAX_HEAD_LEN))), ParseError::HeadTooLong);
        assert_eq!(parse(b"OPTIONS  sip:a SIP/2.0\r\n\r\n"), Err(ParseError::StartLine));
        assert_eq!(parse(b"OPTIONS sip:a SIP/3.0\r\n\r\n"), Err(ParseError::Version));
        assert_eq!(parse(b"SIP/2.0 99 x\r\n\r\n"), Err(ParseError::Status));
    }

    #[test]
    fn missing_fields_are_named() {
        let text = OPTIONS.replace("Call-ID: x\r\n", "") + "\r\n";
        assert_eq!(parse(text.as_bytes()), Err(HeadError::Missing(HeaderName::CallId).into()));
    }

    #[test]
    fn bad_request_yields_what_a_400_needs() {
        let text =
            OPTIONS.replace("To: <sip:a@b>", "To: \"<sip:a@b>\r\n ;folded") + "Max-Forwards: x\r\n\r\n";
        assert!(parse(text.as_bytes()).is_err());
        let salvaged = salvage(text.as_bytes()).unwrap();
        assert_eq!(salvaged.method, "OPTIONS");
        assert_eq!(salvaged.headers.len(), 5);
        assert_eq!(salvaged.headers.get(HeaderName::To), Some("\"<sip:a@b> ;folded"));
    }

    #[test]
    fn garbage_and_responses_yield_nothing() {
        assert_eq!(salvage(b"\x00\x01\x02"), None);
        assert_eq!(salvage(b"GET / HTTP/1.1\r\nVia: x\r\n\r\n"), None);
        assert_eq!(salvage(b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\n\r\n"), None);
        assert_eq!(salvage(b"OPTIONS sip:a SIP/2.0\r\nVia: nonsense\r\n\r\n"), None);
    }

    #[test]
    fn value_that_is_not_utf8_stays_raw_and_the_rest_is_read() {
        let mut bytes = OPTIONS.replace("\r\nFrom:", "\r\nX-Name: J\u{1}rgen\r\nFrom:").into_bytes();
        let at = bytes.iter().position(|&b| b == 1).unwrap();
        bytes[at] = 0xfc;
        bytes.extend_from_slice(b"\r\n");
        let Ok(Message::Request(request)) = parse(&bytes) else { panic!() };
        assert!(request.head.headers().iter().any(|(name, value)| name == "X-Name" && value == b"J\xfcrgen"));
    }
}
