//! The ordered list of a message's header fields (RFC 3261 §7.3), text stored once.
//!
//! Fields keep their order and spelling; unknown ones are kept raw. A folded value is stored unfolded and trimmed, a
//! compact name (`f:`) is known under its long one. Typed views are in [`crate::header`].

use std::fmt;
use std::ops::Range;

use crate::grammar;

macro_rules! header_names {
    ($($(#[$doc:meta])* $variant:ident = $name:literal $(, $compact:literal)?;)*) => {
        /// A header field's name. Those that the core reads or writes have a variant.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum HeaderName {
            $(#[doc = concat!("`", $name, "`")] $(#[$doc])* $variant,)*
            /// Any other name; the list keeps its text.
            Other,
        }

        impl HeaderName {
            /// Recognises a name or its compact form, without case.
            pub fn from_bytes(name: &[u8]) -> HeaderName {
                match name.len() {
                    $($(1 if name.eq_ignore_ascii_case($compact.as_bytes()) => HeaderName::$variant,)?)*
                    $(n if n == $name.len() && name.eq_ignore_ascii_case($name.as_bytes()) => HeaderName::$variant,)*
                    _ => HeaderName::Other,
                }
            }

            /// The long form as written on the wire; empty for [`HeaderName::Other`].
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(HeaderName::$variant => $name,)*
                    HeaderName::Other => "",
                }
            }
        }
    };
}

header_names! {
    Via = "Via", "v";
    From = "From", "f";
    To = "To", "t";
    CallId = "Call-ID", "i";
    CSeq = "CSeq";
    MaxForwards = "Max-Forwards";
    Contact = "Contact", "m";
    ContentLength = "Content-Length", "l";
    ContentType = "Content-Type", "c";
    ContentEncoding = "Content-Encoding", "e";
    ContentDisposition = "Content-Disposition";
    Route = "Route";
    RecordRoute = "Record-Route";
    Allow = "Allow";
    Accept = "Accept";
    Supported = "Supported", "k";
    Unsupported = "Unsupported";
    Require = "Require";
    ProxyRequire = "Proxy-Require";
    Expires = "Expires";
    MinExpires = "Min-Expires";
    RetryAfter = "Retry-After";
    Reason = "Reason";
    Date = "Date";
    UserAgent = "User-Agent";
    Server = "Server";
    Warning = "Warning";
    Subject = "Subject", "s";
    Timestamp = "Timestamp";
    Event = "Event", "o";
    AllowEvents = "Allow-Events", "u";
    ReferTo = "Refer-To", "r";
    ReferredBy = "Referred-By", "b";
    Replaces = "Replaces";
    SessionExpires = "Session-Expires", "x";
    MinSe = "Min-SE";
    RSeq = "RSeq";
    RAck = "RAck";
    SubscriptionState = "Subscription-State";
    Authorization = "Authorization";
    WwwAuthenticate = "WWW-Authenticate";
    ProxyAuthorization = "Proxy-Authorization";
    ProxyAuthenticate = "Proxy-Authenticate";
    PAssertedIdentity = "P-Asserted-Identity";
    Diversion = "Diversion";
    HistoryInfo = "History-Info";
    ReferSub = "Refer-Sub";
    Path = "Path";
    ServiceRoute = "Service-Route";
    Privacy = "Privacy";
}

/// Why a field could not be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The name is empty or not a token.
    #[error("header name is not a token")]
    Name,
    /// A line break or another control character: it would let a value write headers of its own.
    #[error("header value holds control character {0:#04x}")]
    Control(u8),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    name: HeaderName,
    name_at: Range<u32>,
    value_at: Range<u32>,
}

/// Header fields in their order. `Debug` shows names only: values may hold secrets.
#[derive(Clone, Default)]
pub struct Headers {
    text: Vec<u8>,
    lines: Vec<Line>,
}

impl Headers {
    /// An empty list.
    pub const fn new() -> Headers {
        Headers { text: Vec::new(), lines: Vec::new() }
    }

    pub(crate) fn with_capacity(octets: usize, lines: usize) -> Headers {
        Headers { text: Vec::with_capacity(octets), lines: Vec::with_capacity(lines) }
    }

    /// Appends a field. Line breaks and other control characters are refused.
    pub fn push(&mut self, name: &str, value: &str) -> Result<(), HeaderError> {
        if name.is_empty() || !name.bytes().all(grammar::is_token) {
            return Err(HeaderError::Name);
        }
        if let Some(control) = value.bytes().find(|&b| (b < 0x20 && b != b'\t') || b == 0x7f) {
            return Err(HeaderError::Control(control));
        }
        self.push_raw(name.as_bytes(), value.as_bytes());
        Ok(())
    }

    /// [`Headers::push`] in a chain: for values known to be clean.
    pub fn with(mut self, name: &str, value: &str) -> Result<Headers, HeaderError> {
        self.push(name, value)?;
        Ok(self)
    }

    /// Appends all fields of another list.
    pub fn append(&mut self, other: &Headers) {
        for (name, value) in other.iter() {
            self.push_raw(name.as_bytes(), value);
        }
    }

    /// Appends a field that the parser has checked (value trimmed and unfolded).
    pub(crate) fn push_raw(&mut self, name: &[u8], value: &[u8]) {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(name);
        let middle = self.text.len() as u32;
        self.text.extend_from_slice(value);
        let end = self.text.len() as u32;
        self.lines.push(Line {
            name: HeaderName::from_bytes(name),
            name_at: start..middle,
            value_at: middle..end,
        });
    }

    /// Continues the last field's value by a folded line: one space, then `more`.
    pub(crate) fn fold_raw(&mut self, more: &[u8]) {
        let Some(line) = self.lines.last_mut() else { return };
        if !more.is_empty() {
            if line.value_at.start != line.value_at.end {
                self.text.push(b' ');
            }
            self.text.extend_from_slice(more);
        }
        line.value_at.end = self.text.len() as u32;
    }

    fn bytes(&self, range: &Range<u32>) -> &[u8] {
        &self.text[range.start as usize..range.end as usize]
    }

    /// How many fields.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The first field of this name. A value that is not UTF-8 counts as absent here: see [`Headers::iter`].
    pub fn get(&self, name: HeaderName) -> Option<&str> {
        self.all(name).next()
    }

    /// Whether a field of this name is present.
    pub fn contains(&self, name: HeaderName) -> bool {
        self.lines.iter().any(|line| line.name == name)
    }

    /// All fields of this name, in order, each as one line.
    pub fn all(&self, name: HeaderName) -> impl Iterator<Item = &str> {
        self.lines
            .iter()
            .filter(move |line| line.name == name)
            .filter_map(|line| std::str::from_utf8(self.bytes(&line.value_at)).ok())
    }

    /// All fields of this name as octets.
    pub fn all_bytes(&self, name: HeaderName) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().filter(move |line| line.name == name).map(|line| self.bytes(&line.value_at))
    }

    /// The comma-separated items of all fields of this name, in order.
    pub fn items(&self, name: HeaderName) -> impl Iterator<Item = &str> {
        self.all(name).flat_map(grammar::split_commas).filter(|item| !item.is_empty())
    }

    /// The first field with this name as text, without case; finds unknown names too.
    pub fn get_named(&self, name: &str) -> Option<&str> {
        let known = HeaderName::from_bytes(name.as_bytes());
        if known != HeaderName::Other {
            return self.get(known);
        }
        self.iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .and_then(|(_, v)| std::str::from_utf8(v).ok())
    }

    /// All fields as written: name and the value's octets.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.lines.iter().map(|line| {
            let name = std::str::from_utf8(self.bytes(&line.name_at)).unwrap_or_default();
            (name, self.bytes(&line.value_at))
        })
    }
}

impl Headers {
    /// All fields: known name, name as written, the value's octets.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (HeaderName, &[u8], &[u8])> {
        self.lines.iter().map(|line| (line.name, self.bytes(&line.name_at), self.bytes(&line.value_at)))
    }
}

/// Same fields, same order, same octets; a compact name equals its long form.
impl PartialEq for Headers {
    fn eq(&self, other: &Headers) -> bool {
        self.lines.len() == other.lines.len()
            && self.lines.iter().zip(&other.lines).all(|(a, b)| {
                a.name == b.name
                    && (a.name != HeaderName::Other
                        || self.bytes(&a.name_at).eq_ignore_ascii_case(other.bytes(&b.name_at)))
                    && self.bytes(&a.value_at) == other.bytes(&b.value_at)
            })
    }
}

impl Eq for Headers {}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_names_are_known_under_the_long_ones() {
        for (compact, long) in
            [("v", "Via"), ("F", "From"), ("i", "Call-ID"), ("l", "Content-Length"), ("k", "Supported")]
        {
            assert_eq!(HeaderName::from_bytes(compact.as_bytes()).as_str(), long);
        }
        assert_eq!(HeaderName::from_bytes(b"z"), HeaderName::Other);
    }

    #[test]
    fn a_value_cannot_smuggle_in_a_header() {
        let mut headers = Headers::new();
        assert_eq!(headers.push("X", "a\r\nVia: evil"), Err(HeaderError::Control(b'\r')));
        assert_eq!(headers.push("X Y", "a"), Err(HeaderError::Name));
        assert!(headers.is_empty());
    }

    #[test]
    fn unknown_fields_keep_order_and_octets() {
        let mut headers = Headers::new();
        headers.push_raw(b"X-One", b"caf\xe9");
        headers.push("X-Two", "2").unwrap();
        assert_eq!(headers.get_named("x-two"), Some("2"));
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(all, [("X-One", &b"caf\xe9"[..]), ("X-Two", b"2")]);
        assert_eq!(format!("{headers:?}"), r#"["X-One", "X-Two"]"#);
    }
}
