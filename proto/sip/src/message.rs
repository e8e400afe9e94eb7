//! Requests and responses as values (RFC 3261 §7).
//!
//! ```text
//!   bytes ──parse──▶ Request { method, uri, head, body } ──write──▶ bytes
//!                    Response{ status, reason, head, body }
//! ```
//!
//! [`Head`] is the header list plus the five fields every message needs, read once: the top Via, From, To, Call-ID and
//! CSeq. A `Request` or `Response` therefore always has them; what lacks them never becomes one.

use std::fmt;

use crate::grammar;
use crate::header::{CSeq, NameAddr, ValueError, Via};
use crate::headers::{HeaderError, HeaderName, Headers};
use crate::uri::Uri;

macro_rules! methods {
    ($($variant:ident = $name:literal, $doc:literal;)*) => {
        /// A request method. Names compare with case.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum Method {
            $(#[doc = $doc] $variant,)*
            /// A method we do not know: answered 501.
            Other(Box<str>),
        }

        impl Method {
            /// Reads a token.
            pub fn parse(text: &str) -> Option<Method> {
                match text {
                    $($name => Some(Method::$variant),)*
                    other if !other.is_empty() && other.bytes().all(grammar::is_token) => {
                        Some(Method::Other(other.into()))
                    }
                    _ => None,
                }
            }

            /// The token.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Method::$variant => $name,)*
                    Method::Other(name) => name,
                }
            }
        }
    };
}

methods! {
    Invite = "INVITE", "Opens or changes a session.";
    Ack = "ACK", "Confirms the final response to an INVITE.";
    Bye = "BYE", "Ends a session.";
    Cancel = "CANCEL", "Gives up a pending INVITE.";
    Options = "OPTIONS", "Asks for capabilities.";
    Register = "REGISTER", "Binds an address of record.";
    Info = "INFO", "RFC 6086: data inside a dialog (DTMF).";
    Update = "UPDATE", "RFC 3311: changes a session without an INVITE.";
    Prack = "PRACK", "RFC 3262: confirms a provisional response.";
    Refer = "REFER", "RFC 3515: transfer.";
    Notify = "NOTIFY", "RFC 6665: state of a subscription.";
    Subscribe = "SUBSCRIBE", "RFC 6665.";
    Message = "MESSAGE", "RFC 3428: instant message.";
    Publish = "PUBLISH", "RFC 3903.";
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What makes a set of headers no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// A field that every message must have is absent.
    #[error("missing {}", .0.as_str())]
    Missing(HeaderName),
    /// A field that may stand once stands twice.
    #[error("repeated {}", .0.as_str())]
    Repeated(HeaderName),
    /// A field's value is malformed.
    #[error("bad {}: {why}", .name.as_str())]
    Value {
        /// Which field.
        name: HeaderName,
        /// What is wrong.
        why: ValueError,
    },
    /// A field that holds a number, date or token holds none.
    #[error("bad {}", .0.as_str())]
    Malformed(HeaderName),
    /// The request's method is not the CSeq's.
    #[error("CSeq method differs from the request's")]
    CSeqMethod,
}

/// A message's headers, and the five that each message must have, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    headers: Headers,
    via: Via,
    from: NameAddr,
    to: NameAddr,
    cseq: CSeq,
}

impl Head {
    /// Reads the five fields out of a list.
    pub fn new(headers: Headers) -> Result<Head, HeadError> {
        let via = lossy(&headers, HeaderName::Via)?;
        let via = grammar::split_commas(&via).next().unwrap_or_default();
        let via = Via::parse(via).map_err(|why| HeadError::Value { name: HeaderName::Via, why })?;
        let from = name_addr(&headers, HeaderName::From)?;
        let to = name_addr(&headers, HeaderName::To)?;
        let cseq = CSeq::parse(&single(&headers, HeaderName::CSeq)?)
            .map_err(|why| HeadError::Value { name: HeaderName::CSeq, why })?;
        let call_id = single(&headers, HeaderName::CallId)?;
        if call_id.is_empty() || !call_id.bytes().all(|b| grammar::is_word(b) || b == b'@') {
            return Err(HeadError::Malformed(HeaderName::CallId));
        }
        Ok(Head { headers, via, from, to, cseq })
    }

    /// All fields.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The topmost Via.
    pub fn via(&self) -> &Via {
        &self.via
    }

    /// From.
    pub fn from(&self) -> &NameAddr {
        &self.from
    }

    /// To.
    pub fn to(&self) -> &NameAddr {
        &self.to
    }

    /// CSeq.
    pub fn cseq(&self) -> &CSeq {
        &self.cseq
    }

    /// Call-ID.
    pub fn call_id(&self) -> &str {
        self.headers.get(HeaderName::CallId).unwrap_or_default()
    }

    /// The first Contact, if it is an address (not `*`) and well formed.
    pub fn contact(&self) -> Option<NameAddr> {
        self.headers.items(HeaderName::Contact).next().and_then(|item| NameAddr::parse(item).ok())
    }

    /// Route or Record-Route items in order; malformed ones are left out (the parser refuses them earlier).
    pub fn routes(&self, name: HeaderName) -> impl Iterator<Item = NameAddr> {
        self.headers.items(name).filter_map(|item| NameAddr::parse(item).ok())
    }

    /// Max-Forwards, if present.
    pub fn max_forwards(&self) -> Option<u32> {
        self.headers.get(HeaderName::MaxForwards).and_then(grammar::decimal)
    }

    /// Content-Type without its parameters: `application/sdp`.
    pub fn content_type(&self) -> Option<&str> {
        let value = self.headers.get(HeaderName::ContentType)?;
        Some(value.split(';').next().unwrap_or_default().trim_matches([' ', '\t']))
    }

    /// Whether a token list (Supported, Require, Allow …) holds this token, without case.
    pub fn lists(&self, name: HeaderName, token: &str) -> bool {
        self.headers.items(name).any(|item| item.eq_ignore_ascii_case(token))
    }

    /// Retry-After in seconds, if present.
    pub fn retry_after_s(&self) -> Option<u32> {
        let value = self.headers.get(HeaderName::RetryAfter)?;
        grammar::decimal(value.split([';', '(', ' ']).next()?)
    }
}

/// A field's only value, as text; octets that are not UTF-8 become U+FFFD.
fn single(headers: &Headers, name: HeaderName) -> Result<std::borrow::Cow<'_, str>, HeadError> {
    let value = lossy(headers, name)?;
    if headers.all_bytes(name).nth(1).is_some() {
        return Err(HeadError::Repeated(name));
    }
    Ok(value)
}

fn lossy(headers: &Headers, name: HeaderName) -> Result<std::borrow::Cow<'_, str>, HeadError> {
    let value = headers.all_bytes(name).next().ok_or(HeadError::Missing(name))?;
    Ok(grammar::lossy(value))
}

fn name_addr(headers: &Headers, name: HeaderName) -> Result<NameAddr, HeadError> {
    NameAddr::parse(&single(headers, name)?).map_err(|why| HeadError::Value { name, why })
}

/// A request. `Debug` shows no password and no header values.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The Request-URI.
    pub uri: Uri,
    /// The headers.
    pub head: Head,
    /// The body, as long as Content-Length says (or the rest of the datagram).
    pub body: Vec<u8>,
}

impl Request {
    /// Puts a request together; the headers must hold Via, From, To, Call-ID and a CSeq of the same method.
    pub fn new(method: Method, uri: Uri, headers: Headers, body: Vec<u8>) -> Result<Request, HeadError> {
        let head = Head::new(headers)?;
        if head.cseq.method != method {
            return Err(HeadError::CSeqMethod);
        }
        Ok(Request { method, uri, head, body })
    }

    /// The first field of this name.
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        self.head.headers.get(name)
    }

    /// The body, if its Content-Type is `application/sdp` and it is not empty.
    pub fn sdp(&self) -> Option<&[u8]> {
        sdp_of(&self.head, &self.body)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("uri", &self.uri)
            .field("call_id", &self.head.call_id())
            .field("headers", &self.head.headers)
            .field("body_len", &self.body.len())
            .finish()
    }
}

/// A response. `Debug` shows no header values.
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    /// 100..=699.
    pub status: u16,
    /// The reason phrase as received; may be empty.
    pub reason: String,
    /// The headers.
    pub head: Head,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// Puts a response together; the headers must hold Via, From, To, Call-ID and CSeq.
    pub fn new(status: u16, reason: &str, headers: Headers, body: Vec<u8>) -> Result<Response, HeadError> {
        Ok(Response { status, reason: reason.to_owned(), head: Head::new(headers)?, body })
    }

    /// The first field of this name.
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        self.head.headers.get(name)
    }

    /// The body, if its Content-Type is `application/sdp` and it is not empty.
    pub fn sdp(&self) -> Option<&[u8]> {
        sdp_of(&self.head, &self.body)
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("reason", &self.reason)
            .field("call_id", &self.head.call_id())
            .field("headers", &self.head.headers)
            .field("body_len", &self.body.len())
            .finish()
    }
}

fn sdp_of<'a>(head: &Head, body: &'a [u8]) -> Option<&'a [u8]> {
    let is_sdp = head.content_type().is_some_and(|kind| kind.eq_ignore_ascii_case("application/sdp"));
    (is_sdp && !body.is_empty()).then_some(body)
}

/// A request or a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Asks.
    Request(Request),
    /// Answers.
    Response(Response),
}

/// A body with its type, for messages we send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// The Content-Type; a value of ours, without line breaks.
    pub content_type: &'static str,
    /// The octets.
    pub bytes: Vec<u8>,
}

impl Body {
    /// A session description.
    pub fn sdp(text: impl Into<Vec<u8>>) -> Body {
        Body { content_type: "application/sdp", bytes: text.into() }
    }

    /// Whether it is a session description.
    pub fn is_sdp(&self) -> bool {
        self.content_type == "application/sdp"
    }
}

/// A response that we want to send: status, and what to add to the headers that the endpoint writes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub(crate) status: u16,
    pub(crate) reason: Option<String>,
    pub(crate) headers: Headers,
    pub(crate) body: Option<Body>,
}

impl Reply {
    /// A reply with the standard reason phrase. A status outside 100..=699 becomes 500.
    pub fn new(status: u16) -> Reply {
        let status = if (100..700).contains(&status) { status } else { 500 };
        Reply { status, reason: None, headers: Headers::new(), body: None }
    }

    /// With a reason phrase of our own; control characters are dropped.
    pub fn reason(mut self, phrase: &str) -> Reply {
        self.reason = Some(phrase.chars().filter(|c| !c.is_control()).collect());
        self
    }

    /// With one more header.
    pub fn header(mut self, name: &str, value: &str) -> Result<Reply, HeaderError> {
        self.headers.push(name, value)?;
        Ok(self)
    }

    /// With `Retry-After: seconds`.
    pub fn retry_after_s(mut self, seconds: u32) -> Reply {
        self.headers.push_raw(b"Retry-After", seconds.to_string().as_bytes());
        self
    }

    /// With a body.
    pub fn body(mut self, body: Body) -> Reply {
        self.body = Some(body);
        self
    }

    /// What is added to the headers.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status
    }
}

/// The standard phrase of a status code (RFC 3261 §21 and others), or its class's.
pub const fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Trying",
        180 => "Ringing",
        181 => "Call Is Being Forwarded",
        182 => "Queued",
        183 => "Session Progress",
        200 => "OK",
        202 => "Accepted",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Moved Temporarily",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        410 => "Gone",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Unsupported URI Scheme",
        420 => "Bad Extension",
        421 => "Extension Required",
        422 => "Session Interval Too Small",
        423 => "Interval Too Brief",
        429 => "Provide Referrer Identity",
        430 => "Flow Failed",
        480 => "Temporarily Unavailable",
        481 => "Call/Transaction Does Not Exist",
        482 => "Loop Detected",
        483 => "Too Many Hops",
        484 => "Address Incomplete",
        485 => "Ambiguous",
        486 => "Busy Here",
        487 => "Request Terminated",
        488 => "Not Acceptable Here",
        489 => "Bad Event",
        491 => "Request Pending",
        493 => "Undecipherable",
        500 => "Server Internal Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Server Time-out",
        505 => "Version Not Supported",
        513 => "Message Too Large",
        600 => "Busy Everywhere",
        603 => "Decline",
        604 => "Does Not Exist Anywhere",
        606 => "Not Acceptable",
        _ => match status / 100 {
            1 => "Progress",
            2 => "Success",
            3 => "Redirection",
            4 => "Client Error",
            5 => "Server Error",
            _ => "Global Failure",
        },
    }
}
