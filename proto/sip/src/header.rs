//! Typed header values: Via, name-addr (From, To, Contact, Route, Record-Route), CSeq and parameters.
//!
//! Each type reads one item of a field strictly (RFC 3261 §20, §25.1) and knows nothing of the list it came from.
//! Numbers and token lists (Allow, Supported, Require) need no type of their own: [`crate::message::Head`] reads them.
//!
//! Values of extensions have files of their own: [`session`] (timers), [`rack`] (reliable provisionals), [`refer`]
//! (transfer), [`sipfrag`] (its progress), [`reason`], [`identity`] (who calls, who diverted) and [`contact`]
//! (registrations).

pub mod contact;
pub mod identity;
pub mod rack;
pub mod reason;
pub mod refer;
pub mod session;
pub mod sipfrag;

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::flow::Transport;
use crate::grammar;
use crate::message::Method;
use crate::uri::{Scheme, Uri, UriError};

/// The magic cookie with which every RFC 3261 branch begins (§8.1.1.7).
pub const BRANCH_COOKIE: &str = "z9hG4bK";

/// Why a header value is refused. It goes into the reason phrase of the 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// A `"` without its partner.
    #[error("unterminated quoted string")]
    Quote,
    /// A display name of other than tokens, without quotes.
    #[error("display name is neither tokens nor quoted")]
    DisplayName,
    /// `<` without `>`, or text between them and the parameters.
    #[error("malformed angle brackets")]
    Angle,
    /// A URI with parameters, `?` or a comma must stand in `<>` (RFC 3261 §20.10).
    #[error("URI needs angle brackets")]
    NeedsAngle,
    /// The URI inside is malformed.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// A parameter that is not `name` or `name=value`.
    #[error("malformed parameter")]
    Parameter,
    /// A Via that is not `SIP/2.0/transport host[:port]`.
    #[error("malformed sent-protocol or sent-by")]
    Via,
    /// A CSeq that is not `number METHOD` with a number below 2^31.
    #[error("malformed sequence number or method")]
    CSeq,
    /// Digits were expected.
    #[error("malformed number")]
    Number,
    /// A token was expected.
    #[error("malformed token")]
    Token,
    /// A Replaces without its Call-ID or with other than one to-tag and one from-tag.
    #[error("malformed or repeated Replaces")]
    Replaces,
    /// `*` beside other contacts.
    #[error("* must stand alone")]
    Star,
    /// More items than anybody needs.
    #[error("too many items")]
    TooMany,
}

/// Parameters after a header value: `;name=value;flag`. Kept as text; names compare without case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params {
    text: Box<str>,
    /// Where the values of the two that every message is asked for more than once are.
    tag: Option<(u32, u32)>,
    branch: Option<(u32, u32)>,
}

impl Params {
    /// Checks `text`, which is empty or begins with `;` (white space is allowed around separators).
    fn parse(text: &str) -> Result<Params, ValueError> {
        let mut params = Params { text: grammar::trim(text).into(), ..Params::default() };
        let (mut tag, mut branch) = (None, None);
        let mut rest: &str = &params.text;
        while !rest.is_empty() {
            let Some(after) = rest.strip_prefix(';') else { return Err(ValueError::Parameter) };
            let (item, tail) = split_param(after)?;
            let (name, value) = name_and_value(item);
            let value_ok = match value {
                None => true,
                Some(value) if value.starts_with('"') => {
                    grammar::quoted_len(value.as_bytes()) == Some(value.len())
                }
                Some(value) => {
                    !value.is_empty() && value.bytes().all(|b| grammar::is_token(b) || b"[]:".contains(&b))
                }
            };
            if name.is_empty() || !name.bytes().all(grammar::is_token) || !value_ok {
                return Err(ValueError::Parameter);
            }
            let place = match name.len() {
                3 if name.eq_ignore_ascii_case("tag") => Some(&mut tag),
                6 if name.eq_ignore_ascii_case("branch") => Some(&mut branch),
                _ => None,
            };
            if let Some(place) = place.filter(|place| place.is_none()) {
                let value = value.unwrap_or("");
                // From the end, for an empty value may be anybody's.
                let end = params.text.len() - tail.len();
                let at = if value.is_empty() { end } else { offset_in(&params.text, value) };
                *place = Some((at as u32, (at + value.len()) as u32));
            }
            rest = tail;
        }
        (params.tag, params.branch) = (tag, branch);
        Ok(params)
    }

    /// A parameter's value: `None` if absent, `Some("")` for a bare name. Quotes are removed.
    pub fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        let known = match name {
            "tag" => self.tag,
            "branch" => self.branch,
            _ => {
                let mut found = self.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
                return found.next().map(|(_, value)| grammar::unquote(value));
            }
        };
        known.map(|(start, end)| grammar::unquote(&self.text[start as usize..end as usize]))
    }

    /// All parameters in order; values as written.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest: &str = &self.text;
        std::iter::from_fn(move || {
            let (item, tail) = split_param(rest.strip_prefix(';')?).ok()?;
            rest = tail;
            let (name, value) = name_and_value(item);
            Some((name, value.unwrap_or("")))
        })
    }

    /// As written, with the leading `;`; empty if there are none.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Where a part of a text begins in it.
fn offset_in(text: &str, part: &str) -> usize {
    part.as_ptr() as usize - text.as_ptr() as usize
}

/// Splits `a="x;y" ;b` after its first item; the tail begins with `;` or is empty.
fn split_param(text: &str) -> Result<(&str, &str), ValueError> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(offset) = memchr::memchr2(b';', b'"', &bytes[at..]) {
        at += offset;
        if bytes[at] == b';' {
            return Ok((&text[..at], &text[at..]));
        }
        at += grammar::quoted_len(&bytes[at..]).ok_or(ValueError::Quote)?;
    }
    Ok((text, ""))
}

fn name_and_value(item: &str) -> (&str, Option<&str>) {
    match memchr::memchr(b'=', item.as_bytes()) {
        Some(at) => (grammar::trim(&item[..at]), Some(grammar::trim(&item[at + 1..]))),
        None => (grammar::trim(item), None),
    }
}

/// One Via: which way a request came and where its response goes (RFC 3261 §20.42, RFC 3581).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    /// Transport token, as written ("UDP", "TCP", or one we do not know).
    pub transport: Box<str>,
    /// Host of sent-by; IPv6 in brackets.
    pub host: Box<str>,
    /// Port of sent-by, if given.
    pub port: Option<u16>,
    /// `branch`, `received`, `rport` and others.
    pub params: Params,
}

impl Via {
    /// Reads one Via item: `SIP/2.0/UDP host:port;params`, white space allowed around `/`, `:` and `;`.
    pub fn parse(text: &str) -> Result<Via, ValueError> {
        let (version, via) = Via::parse_of_version(text)?;
        if version == "2.0" { Ok(via) } else { Err(ValueError::Via) }
    }

    /// The same for any version, which comes first: a 505 needs the Via of what it refuses.
    pub(crate) fn parse_of_version(text: &str) -> Result<(&str, Via), ValueError> {
        let mut parts = text.splitn(3, '/');
        let (Some(name), Some(version), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ValueError::Via);
        };
        let version = grammar::trim(version);
        if !grammar::trim(name).eq_ignore_ascii_case("SIP") {
            return Err(ValueError::Via);
        }
        let rest = grammar::trim_start(rest);
        let len = rest.bytes().take_while(|&b| grammar::is_token(b)).count();
        let (transport, after) = rest.split_at(len);
        let sent_by = grammar::trim_start(after);
        let host_len = grammar::host_len(sent_by.as_bytes()).ok_or(ValueError::Via)?;
        if transport.is_empty() || sent_by.len() == after.len() {
            return Err(ValueError::Via);
        }
        let (host, tail) = sent_by.split_at(host_len);
        let mut tail = grammar::trim_start(tail);
        let mut port = None;
        if let Some(after) = tail.strip_prefix(':') {
            let after = grammar::trim_start(after);
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            port = Some(after[..digits].parse().ok().filter(|&port| port != 0).ok_or(ValueError::Via)?);
            tail = &after[digits..];
        }
        let params = Params::parse(tail)?;
        Ok((version, Via { transport: transport.into(), host: host.into(), port, params }))
    }

    /// The branch parameter.
    pub fn branch(&self) -> Option<Cow<'_, str>> {
        self.params.get("branch").filter(|branch| !branch.is_empty())
    }

    /// Whether the branch begins with the RFC 3261 cookie and more than the cookie.
    pub fn has_rfc3261_branch(&self) -> bool {
        self.branch().is_some_and(|b| b.len() > BRANCH_COOKIE.len() && b.starts_with(BRANCH_COOKIE))
    }

    /// sent-by's host as an IP address, when it is one.
    pub fn host_ip(&self) -> Option<IpAddr> {
        self.host.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }

    /// The port of sent-by, or 5060 (5061 for TLS).
    pub fn port_or_default(&self) -> u16 {
        self.port.unwrap_or(if self.transport.eq_ignore_ascii_case("TLS") { 5061 } else { 5060 })
    }

    /// Whether the sender named itself by another address than `source`: it sits behind a NAT. Only over UDP are the
    /// ports compared: a connection comes from a port of its own, which nobody listens on.
    pub fn is_natted(&self, source: SocketAddr) -> bool {
        let is_udp = self.known_transport() == Some(Transport::Udp);
        self.host_ip().is_some_and(|ip| ip != source.ip())
            || (is_udp && self.port_or_default() != source.port())
    }

    /// The transport, when it is one of ours.
    pub fn known_transport(&self) -> Option<Transport> {
        Transport::from_token(&self.transport)
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SIP/2.0/{} {}", self.transport, self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(self.params.as_str())
    }
}

/// A name-addr or addr-spec with parameters: From, To, Contact, Route, Record-Route, P-Asserted-Identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameAddr {
    /// Display name without its quotes; `None` if absent or empty.
    pub display: Option<Box<str>>,
    /// The URI.
    pub uri: Uri,
    /// Header parameters (`tag`, `expires`, `q` …), not the URI's.
    pub params: Params,
}

impl NameAddr {
    /// A bare URI: no display name, no parameters.
    pub fn new(uri: Uri) -> NameAddr {
        NameAddr { display: None, uri, params: Params::default() }
    }

    /// With a display name. Control characters in it are dropped.
    pub fn with_display(mut self, name: &str) -> NameAddr {
        let name: String = name.chars().filter(|c| !c.is_control()).collect();
        self.display = (!name.is_empty()).then(|| name.into());
        self
    }

    /// Reads one item.
    pub fn parse(text: &str) -> Result<NameAddr, ValueError> {
        let text = grammar::trim(text);
        let (display, rest) = if text.starts_with('"') {
            let len = grammar::quoted_len(text.as_bytes()).ok_or(ValueError::Quote)?;
            let rest = text.get(len..).ok_or(ValueError::Quote)?.trim_start_matches([' ', '\t']);
            if !rest.starts_with('<') {
                return Err(ValueError::Angle);
            }
            (Some(grammar::unquote(&text[..len])), rest)
        } else if let Some(angle) = text.find('<') {
            let name = grammar::trim(&text[..angle]);
            // A non-ASCII octet is outside the grammar, but no separator: phones send such names without quotes.
            if name.contains('"') {
                return Err(ValueError::Quote);
            }
            if !name.bytes().all(|b| grammar::is_token(b) || grammar::is_space(b) || b >= 0x80) {
                return Err(ValueError::DisplayName);
            }
            ((!name.is_empty()).then_some(Cow::Borrowed(name)), &text[angle..])
        } else {
            if text.contains('"') && !text.contains(';') {
                return Err(ValueError::Quote);
            }
            return NameAddr::parse_addr_spec(text);
        };
        let display = display.filter(|name| !name.is_empty()).map(|name| name.into_owned().into_boxed_str());
        let close = rest.find('>').ok_or(ValueError::Angle)?;
        let uri = Uri::parse(&rest[1..close])?;
        Ok(NameAddr { display, uri, params: Params::parse(&rest[close + 1..])? })
    }

    /// Without `<>` everything after `;` is the header's, and the URI has no `?` or comma.
    fn parse_addr_spec(text: &str) -> Result<NameAddr, ValueError> {
        let end = text.find(';').unwrap_or(text.len());
        let spec = grammar::trim_end(&text[..end]);
        if spec.contains(['?', ',']) {
            return Err(ValueError::NeedsAngle);
        }
        Ok(NameAddr { display: None, uri: Uri::parse(spec)?, params: Params::parse(&text[end..])? })
    }

    /// The tag parameter.
    pub fn tag(&self) -> Option<Cow<'_, str>> {
        self.params.get("tag").filter(|tag| !tag.is_empty())
    }

    /// Whether this is a loose route (`;lr`).
    pub fn is_loose_route(&self) -> bool {
        self.uri.param("lr").is_some()
    }

    /// Whether the scheme is `sip:` or `sips:`.
    pub fn is_sip(&self) -> bool {
        matches!(self.uri.scheme(), Scheme::Sip | Scheme::Sips)
    }

    /// Appends it as it goes on the wire: always with `<>`, display name quoted.
    pub fn write(&self, out: &mut String) {
        if let Some(display) = &self.display {
            out.push('"');
            for c in display.chars() {
                if c == '"' || c == '\\' {
                    out.push('\\');
                }
                out.push(c);
            }
            out.push_str("\" ");
        }
        out.push('<');
        out.push_str(self.uri.as_str());
        out.push('>');
        out.push_str(self.params.as_str());
    }

    /// As it goes on the wire, **with a password if the URI has one**.
    pub fn to_wire(&self) -> String {
        let mut out = String::with_capacity(self.uri.as_str().len() + 32);
        self.write(&mut out);
        out
    }
}

/// CSeq: number and method (RFC 3261 §20.16).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CSeq {
    /// Below 2^31.
    pub number: u32,
    /// Must equal the request's method.
    pub method: Method,
}

impl CSeq {
    /// Reads `number LWS METHOD`.
    pub fn parse(text: &str) -> Result<CSeq, ValueError> {
        let (number, method) = text.split_once([' ', '\t']).ok_or(ValueError::CSeq)?;
        let number = grammar::decimal(number).filter(|&n| n < 1 << 31).ok_or(ValueError::CSeq)?;
        let method = Method::parse(grammar::trim_start(method)).ok_or(ValueError::CSeq)?;
        Ok(CSeq { number, method })
    }
}

/// For fuzzing: whatever the octets, no reader of a value panics; and what is written reads back as the same.
#[doc(hidden)]
pub fn fuzz_value(octets: &[u8]) {
    let _ = sipfrag::parse_sipfrag(octets);
    let text = String::from_utf8_lossy(octets);
    let text = text.as_ref();
    // What we write has no control characters, even where they were read.
    let is_clean = !text.chars().any(char::is_control);
    fn same_if<T: PartialEq + fmt::Debug, E: fmt::Debug>(is_clean: bool, read: &T, again: Result<T, E>) {
        let again = again.expect("what we write, we read");
        assert!(!is_clean || *read == again, "{read:?} became {again:?}");
    }
    if let Ok(expires) = session::SessionExpires::parse(text) {
        same_if(is_clean, &expires, session::SessionExpires::parse(&expires.to_string()));
    }
    let _ = session::parse_min_se(text);
    if let Ok(rack) = rack::RAck::parse(text) {
        same_if(is_clean, &rack, rack::RAck::parse(&rack.to_string()));
    }
    if let Ok(replaces) = refer::Replaces::parse(text) {
        same_if(is_clean, &replaces, refer::Replaces::parse(&replaces.to_wire()));
    }
    if let Ok(target) = refer::ReferTo::parse(text) {
        // Escapes can take it over the limit of a URI's length.
        if target.to_wire().len() < crate::uri::MAX_URI_LEN {
            same_if(is_clean, &target, refer::ReferTo::parse(&target.to_wire()));
        }
    }
    if let Ok(reason) = reason::Reason::parse(text) {
        same_if(is_clean, &reason, reason::Reason::parse(&reason.to_string()));
    }
    let _ = sipfrag::SubscriptionState::parse(text);
    let _ = identity::Diversion::parse(text);
    let _ = identity::HistoryInfo::parse(text);
    let mut headers = crate::headers::Headers::new();
    if headers.push("Contact", text).is_ok() {
        let _ = contact::Contacts::parse(&headers);
    }
    if let Ok(challenge) = crate::digest::Challenge::parse(text) {
        same_if(is_clean, &challenge, crate::digest::Challenge::parse(&challenge.to_header()));
    }
    if let Ok(answer) = crate::digest::Answer::parse(text) {
        assert!(!answer.verify("INVITE", "no such password"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn via_with_odd_spacing_is_read() {
        let via = Via::parse("SIP / 2.0 / UDP   192.0.2.2 : 5060 ; branch = z9hG4bKabc;rport").unwrap();
        assert_eq!((&*via.transport, &*via.host, via.port), ("UDP", "192.0.2.2", Some(5060)));
        assert_eq!(via.branch().as_deref(), Some("z9hG4bKabc"));
        assert_eq!(via.params.get("rport").as_deref(), Some(""));
    }

    #[test]
    fn via_with_ipv6_and_unknown_transport_is_read() {
        let via = Via::parse("SIP/2.0/UNKNOWN [2001:db8::9:1];received=[2001:db8::9:255];branch=z9hG4bKas3")
            .unwrap();
        assert_eq!(via.host_ip(), "2001:db8::9:1".parse().ok());
        assert_eq!(via.known_transport(), None);
        assert_eq!(via.params.get("received").as_deref(), Some("[2001:db8::9:255]"));
    }

    #[test]
    fn port_of_a_connection_says_nothing_of_a_nat() {
        let natted = |via: &str, source: &str| Via::parse(via).unwrap().is_natted(source.parse().unwrap());
        assert!(!natted("SIP/2.0/TCP 192.0.2.2:5060;branch=z9hG4bK1", "192.0.2.2:40000"));
        assert!(natted("SIP/2.0/UDP 192.0.2.2:5060;branch=z9hG4bK1", "192.0.2.2:40000"));
        assert!(natted("SIP/2.0/TCP 10.0.0.2:5060;branch=z9hG4bK1", "192.0.2.2:40000"));
        assert!(!natted("SIP/2.0/UDP pc.example;branch=z9hG4bK1", "192.0.2.2:5060"));
    }

    #[test]
    fn name_addr_forms_are_read() {
        let full = NameAddr::parse(r#""J Rosenberg \\\"" <sip:jdr@example.com> ; tag = 98asjd8"#).unwrap();
        assert_eq!(full.display.as_deref(), Some(r#"J Rosenberg \""#));
        assert_eq!(full.tag().as_deref(), Some("98asjd8"));
        let bare = NameAddr::parse("sip:vivekg@chair-dnrc.example.com ; tag = 1918181833n").unwrap();
        assert_eq!(bare.uri.host(), "chair-dnrc.example.com");
        assert_eq!(bare.tag().as_deref(), Some("1918181833n"), "without <> the parameters are the header's");
        let tokens = NameAddr::parse("Bell, Alexander <sip:a@b>");
        assert_eq!(tokens, Err(ValueError::DisplayName));
    }

    #[test]
    fn malformed_name_addrs_are_refused() {
        assert_eq!(NameAddr::parse(r#""Mr. Watson <sip:w@a>"#), Err(ValueError::Quote));
        assert_eq!(NameAddr::parse("<sip:w@a"), Err(ValueError::Angle));
        assert_eq!(NameAddr::parse("sip:w@a?Route=x"), Err(ValueError::NeedsAngle));
        assert_eq!(NameAddr::parse("<sip:w@a>;;tag=1"), Err(ValueError::Parameter));
    }

    #[test]
    fn written_name_addr_reads_back() {
        let addr = NameAddr::new(Uri::parse("sip:a@b;lr").unwrap()).with_display("say \"hi\"\r\n");
        assert_eq!(addr.to_wire(), r#""say \"hi\"" <sip:a@b;lr>"#);
        assert_eq!(NameAddr::parse(&addr.to_wire()), Ok(addr));
    }

    #[test]
    fn cseq_number_is_below_two_to_the_31() {
        assert_eq!(CSeq::parse("0009 INVITE").unwrap().number, 9);
        assert!(CSeq::parse("2147483648 INVITE").is_err());
        assert!(CSeq::parse("36893488147419103232 REGISTER").is_err());
        assert!(CSeq::parse("INVITE").is_err());
    }
}
