//! SIP and SIPS URIs (RFC 3261 §19.1), and other absolute URIs kept whole.
//!
//! ```text
//!   sip:{user}:{password}@{host}:{port};{params}?{headers}
//! ```
//!
//! The text is stored once; the parts are ranges in it. Tandem's callers put an API key in the password
//! (`sip:{assistantId}:{apiKey}@host`), so the password is a secret: there is no `Display`, `Debug` shows `***`,
//! [`Uri::redacted`] is for logs and [`Uri::as_str`] for the wire. Nothing is resolved here (RFC 3263 is the shell's).

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::grammar::{self, eq_ignore_case};

/// Longest URI read, in octets: far above any real one, below what could make work of a single header.
pub const MAX_URI_LEN: usize = 4096;

/// What stands before the first colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `sip:`
    Sip,
    /// `sips:`: TLS on every hop.
    Sips,
    /// `tel:` (RFC 3966); the number is [`Uri::opaque`].
    Tel,
    /// Any other scheme: legal in From, To and Contact; 416 in a Request-URI.
    Other,
}

/// Why a text is not a URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Over [`MAX_URI_LEN`].
    #[error("URI of {0} octets is longer than {MAX_URI_LEN}")]
    TooLong(usize),
    /// No scheme, or one with characters that no scheme has.
    #[error("URI has no scheme")]
    Scheme,
    /// A character that this part may not hold unescaped.
    #[error("URI has octet {octet:#04x} at {at}, which must not stand there")]
    Character {
        /// The octet.
        octet: u8,
        /// Its offset in the URI.
        at: usize,
    },
    /// `%` without two hexadecimal digits.
    #[error("URI has a broken %-escape at {0}")]
    Escape(usize),
    /// Empty or malformed host.
    #[error("URI has no valid host")]
    Host,
    /// Not a number in 1..=65535.
    #[error("URI has no valid port")]
    Port,
    /// An empty user part before `@`.
    #[error("URI has an empty user")]
    User,
}

/// A URI: `sip:`, `sips:`, `tel:` or another scheme. Cheap to clone (one allocation).
#[derive(Clone)]
pub struct Uri {
    text: Box<str>,
    scheme: Scheme,
    /// Where the part after `scheme:` begins.
    body: u16,
    user: Option<(u16, u16)>,
    password: Option<(u16, u16)>,
    host: (u16, u16),
    port: Option<u16>,
    /// Includes the leading `;`; empty when there are none.
    params: (u16, u16),
    /// After the `?`; empty when there are none.
    headers: (u16, u16),
}

impl Uri {
    /// Reads a URI; every octet of `text` must belong to it.
    pub fn parse(text: &str) -> Result<Uri, UriError> {
        if text.len() > MAX_URI_LEN {
            return Err(UriError::TooLong(text.len()));
        }
        let colon = text.find(':').ok_or(UriError::Scheme)?;
        let name = &text.as_bytes()[..colon];
        if !name.first().is_some_and(u8::is_ascii_alphabetic)
            || !name.iter().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b))
        {
            return Err(UriError::Scheme);
        }
        let scheme = if eq_ignore_case(name, b"sip") {
            Scheme::Sip
        } else if eq_ignore_case(name, b"sips") {
            Scheme::Sips
        } else if eq_ignore_case(name, b"tel") {
            Scheme::Tel
        } else {
            Scheme::Other
        };
        let body = colon + 1;
        let end = text.len() as u16;
        let mut uri = Uri {
            text: text.into(),
            scheme,
            body: body as u16,
            user: None,
            password: None,
            host: (end, end),
            port: None,
            params: (end, end),
            headers: (end, end),
        };
        match scheme {
            Scheme::Sip | Scheme::Sips => uri.split_sip()?,
            Scheme::Tel | Scheme::Other => check_absolute(text, body)?,
        }
        Ok(uri)
    }

    /// `sip:user@address`, or `sip:address` without a user. The user is %-escaped as needed.
    pub fn sip(user: Option<&str>, address: SocketAddr) -> Uri {
        let text = match user {
            Some(user) if !user.is_empty() => format!("sip:{}@{address}", grammar::escape_user(user)),
            _ => format!("sip:{address}"),
        };
        Uri::parse(&text).expect("an escaped user and a socket address make a URI")
    }

    /// Finds user, password, host, port, parameters and headers of a `sip:` or `sips:` URI.
    fn split_sip(&mut self) -> Result<(), UriError> {
        let bytes = self.text.as_bytes();
        let start = usize::from(self.body);
        // A user may hold ';' and '?', so the '@' is looked for first. A header's value holds it only escaped.
        let host_start = match bytes[start..].iter().position(|&b| b == b'@') {
            Some(offset) => {
                let at = start + offset;
                let colon = bytes[start..at].iter().position(|&b| b == b':').map(|offset| start + offset);
                let user_end = colon.unwrap_or(at);
                if user_end == start {
                    return Err(UriError::User);
                }
                check_part(bytes, start, user_end, grammar::is_user)?;
                self.user = Some((start as u16, user_end as u16));
                if let Some(colon) = colon {
                    check_part(bytes, colon + 1, at, grammar::is_password)?;
                    self.password = Some((colon as u16 + 1, at as u16));
                }
                at + 1
            }
            None => start,
        };
        let rest = &bytes[host_start..];
        let host_len = grammar::host_len(rest).ok_or(UriError::Host)?;
        let mut at = host_start + host_len;
        self.host = (host_start as u16, at as u16);
        if bytes.get(at) == Some(&b':') {
            let digits = bytes[at + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
            let text = self.text.get(at + 1..at + 1 + digits).ok_or(UriError::Port)?;
            let port: u16 = text.parse().map_err(|_| UriError::Port)?;
            if port == 0 {
                return Err(UriError::Port);
            }
            self.port = Some(port);
            at += 1 + digits;
        }
        let params_end =
            bytes[at..].iter().position(|&b| b == b'?').map_or(bytes.len(), |offset| at + offset);
        if at < params_end && bytes[at] != b';' {
            return Err(UriError::Character { octet: bytes[at], at });
        }
        check_part(bytes, at, params_end, |b| grammar::is_uri_param(b) || b == b';' || b == b'=')?;
        self.params = (at as u16, params_end as u16);
        if params_end < bytes.len() {
            check_part(bytes, params_end + 1, bytes.len(), grammar::is_uri_header)?;
            self.headers = (params_end as u16 + 1, bytes.len() as u16);
        }
        Ok(())
    }

    fn slice(&self, (start, end): (u16, u16)) -> &str {
        &self.text[usize::from(start)..usize::from(end)]
    }

    /// The whole text as it goes on the wire, **with the password**. Never log it: see [`Uri::redacted`].
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// A `Display` for logs and errors: the password is `***`.
    pub fn redacted(&self) -> Redacted<'_> {
        Redacted(self)
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Everything after `scheme:`, **with the password**: for `tel:` the number and its parameters.
    pub fn opaque(&self) -> &str {
        &self.text[usize::from(self.body)..]
    }

    /// The user with its %-escapes decoded, if the URI has one.
    pub fn user(&self) -> Option<Cow<'_, str>> {
        self.user.map(|range| grammar::unescape(self.slice(range)))
    }

    /// The password with its %-escapes decoded: **a secret** (Tandem's API key).
    pub fn password(&self) -> Option<Cow<'_, str>> {
        self.password.map(|range| grammar::unescape(self.slice(range)))
    }

    /// The host as written; IPv6 in its brackets. Empty for `tel:` and other schemes.
    pub fn host(&self) -> &str {
        self.slice(self.host)
    }

    /// The host as an IP address, when it is one.
    pub fn host_ip(&self) -> Option<IpAddr> {
        self.host().trim_start_matches('[').trim_end_matches(']').parse().ok()
    }

    /// The port, if given.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The port, or the scheme's own: 5060, 5061 for `sips:`.
    pub fn port_or_default(&self) -> u16 {
        self.port.unwrap_or(if self.scheme == Scheme::Sips { 5061 } else { 5060 })
    }

    /// Host and port as a socket address, when the host is an IP address.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        self.host_ip().map(|ip| SocketAddr::new(ip, self.port_or_default()))
    }

    /// A URI parameter: `None` if absent, `Some("")` for a bare `;lr`. Names compare without case.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All URI parameters in order, as written.
    pub fn params(&self) -> impl Iterator<Item = (&str, &str)> {
        self.slice(self.params)
            .split(';')
            .filter(|item| !item.is_empty())
            .map(|item| item.split_once('=').unwrap_or((item, "")))
    }

    /// The text after `?`, as written: headers that a request made from this URI would get.
    pub fn headers(&self) -> Option<&str> {
        (self.headers.0 < self.headers.1).then(|| self.slice(self.headers))
    }

    /// The same URI without its password: what we put in To and From.
    pub fn without_password(&self) -> Uri {
        let Some((start, end)) = self.password else { return self.clone() };
        let (start, end) = (usize::from(start), usize::from(end));
        let text = format!("{}{}", &self.text[..start - 1], &self.text[end..]);
        Uri::parse(&text).expect("a URI stays one without its password")
    }

    /// The same URI without the part from `?` on.
    pub fn without_headers(&self) -> Uri {
        let Some(headers) = self.headers() else { return self.clone() };
        let text = &self.text[..self.text.len() - headers.len() - 1];
        Uri::parse(text).expect("a URI stays one without its headers")
    }

    /// The same URI with a parameter appended unless it is there. `name` and `value` are tokens of ours.
    pub fn with_param(&self, name: &str, value: &str) -> Uri {
        if self.param(name).is_some() {
            return self.clone();
        }
        let at = usize::from(self.params.1);
        let equals = if value.is_empty() { "" } else { "=" };
        let text = format!("{};{name}{equals}{value}{}", &self.text[..at], &self.text[at..]);
        Uri::parse(&text).unwrap_or_else(|_| self.clone())
    }
}

/// Equality by RFC 3261 §19.1.4: host, scheme and parameters without case, the rest exactly; `user`, `ttl`,
/// `method` and `maddr` must be in both or in neither, other parameters only match if both have them.
impl PartialEq for Uri {
    fn eq(&self, other: &Uri) -> bool {
        if self.text == other.text {
            return true;
        }
        if matches!(self.scheme, Scheme::Tel | Scheme::Other) {
            return self.text.eq_ignore_ascii_case(&other.text);
        }
        self.scheme == other.scheme
            && self.user() == other.user()
            && self.password() == other.password()
            && self.host().eq_ignore_ascii_case(other.host())
            && self.port == other.port
            && params_match(self, other)
            && params_match(other, self)
            && self.headers() == other.headers()
    }
}

impl Eq for Uri {}

fn params_match(one: &Uri, other: &Uri) -> bool {
    one.params().all(|(name, value)| match other.param(name) {
        Some(theirs) => grammar::unescape(value).eq_ignore_ascii_case(&grammar::unescape(theirs)),
        None => !["user", "ttl", "method", "maddr", "transport"].iter().any(|n| n.eq_ignore_ascii_case(name)),
    })
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Uri, UriError> {
        Uri::parse(text)
    }
}

/// A URI for logs: see [`Uri::redacted`].
pub struct Redacted<'a>(&'a Uri);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uri = self.0;
        match uri.password {
            Some((start, end)) => {
                write!(f, "{}***{}", &uri.text[..usize::from(start)], &uri.text[usize::from(end)..])
            }
            None => f.write_str(&uri.text),
        }
    }
}

impl fmt::Debug for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uri({})", self.redacted())
    }
}

/// Checks a part's characters; `%` must begin an escape.
fn check_part(bytes: &[u8], start: usize, end: usize, allowed: fn(u8) -> bool) -> Result<(), UriError> {
    let mut at = start;
    while at < end {
        let octet = bytes[at];
        if octet == b'%' {
            let escape = bytes.get(at + 1..at + 3).filter(|_| at + 3 <= end);
            if !escape.is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
                return Err(UriError::Escape(at));
            }
            at += 3;
        } else if allowed(octet) {
            at += 1;
        } else {
            return Err(UriError::Character { octet, at });
        }
    }
    Ok(())
}

/// An absolute URI of a scheme that we do not take apart: reserved and unreserved characters only.
fn check_absolute(text: &str, body: usize) -> Result<(), UriError> {
    if body == text.len() {
        return Err(UriError::Host);
    }
    check_part(text.as_bytes(), body, text.len(), |b| {
        grammar::is_unreserved(b) || grammar::is_reserved(b) || b == b'#'
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        Uri::parse(text).unwrap()
    }

    #[test]
    fn parts_of_a_full_uri_are_found() {
        let uri = uri("sips:alice:secret@[2001:db8::1]:5070;transport=tcp;lr?Subject=hi&X=1");
        assert_eq!(uri.scheme(), Scheme::Sips);
        assert_eq!(uri.user().as_deref(), Some("alice"));
        assert_eq!(uri.password().as_deref(), Some("secret"));
        assert_eq!(uri.host(), "[2001:db8::1]");
        assert_eq!(uri.port(), Some(5070));
        assert_eq!(uri.socket_addr(), "[2001:db8::1]:5070".parse().ok());
        assert_eq!(uri.param("Transport"), Some("tcp"));
        assert_eq!(uri.param("lr"), Some(""));
        assert_eq!(uri.headers(), Some("Subject=hi&X=1"));
    }

    #[test]
    fn password_is_in_no_text_for_people() {
        let uri = uri("sip:echo:demo-key@127.0.0.1:4573;x=1");
        assert_eq!(uri.redacted().to_string(), "sip:echo:***@127.0.0.1:4573;x=1");
        assert_eq!(format!("{uri:?}"), "Uri(sip:echo:***@127.0.0.1:4573;x=1)");
        assert_eq!(uri.without_password().as_str(), "sip:echo@127.0.0.1:4573;x=1");
    }

    #[test]
    fn user_may_hold_what_elsewhere_separates() {
        let uri = uri("sip:user;par=u%40example.net@example.com");
        assert_eq!(uri.user().as_deref(), Some("user;par=u@example.net"));
        assert_eq!(uri.host(), "example.com");
        assert_eq!(uri.params().count(), 0);
    }

    #[test]
    fn equality_is_that_of_the_rfc() {
        assert_eq!(uri("sip:%61lice@AtLanTa.CoM;Transport=TCP"), uri("sip:alice@atlanta.com;transport=tcp"));
        assert_eq!(
            uri("sip:carol@chicago.com"),
            uri("sip:carol@chicago.com;newparam=5"),
            "a foreign parameter counts only when both have it"
        );
        assert_ne!(uri("sip:ALICE@atlanta.com"), uri("sip:alice@atlanta.com"));
        assert_ne!(uri("sip:bob@biloxi.com"), uri("sip:bob@biloxi.com:5060"));
        assert_ne!(uri("sip:bob@biloxi.com"), uri("sip:bob@biloxi.com;transport=udp"));
        assert_ne!(uri("sip:carol@chicago.com;security=on"), uri("sip:carol@chicago.com;security=off"));
    }

    #[test]
    fn other_schemes_are_kept_whole() {
        assert_eq!(uri("tel:+15551234;ext=9").opaque(), "+15551234;ext=9");
        assert_eq!(uri("soap.beep://192.0.2.103:3002").scheme(), Scheme::Other);
    }

    #[test]
    fn malformed_uris_are_refused_with_the_cause() {
        assert_eq!(Uri::parse("alice@example.com"), Err(UriError::Scheme));
        assert_eq!(Uri::parse("sip:"), Err(UriError::Host));
        assert_eq!(Uri::parse("sip:@host"), Err(UriError::User));
        assert_eq!(Uri::parse("sip:a@host:0"), Err(UriError::Port));
        assert_eq!(Uri::parse("sip:a@host:99999"), Err(UriError::Port));
        assert_eq!(Uri::parse("sip:a%4@host"), Err(UriError::Escape(5)));
        assert_eq!(Uri::parse("sip:a b@host"), Err(UriError::Character { octet: b' ', at: 5 }));
        assert_eq!(Uri::parse("sip:a@host;p= x"), Err(UriError::Character { octet: b' ', at: 13 }));
    }
}
