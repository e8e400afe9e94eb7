//! What can be seen of a request without parsing it: enough to turn a scanner away for the price of a look.
//!
//! It reads lines until the empty one, and decides nothing that a wrong guess could break: what it does not understand
//! goes to the parser, which answers as it always does.

/// Octets of the head that are looked at: a scanner's whole request, and the part of a long one where the fields of
/// interest stand.
const GLANCE_MAX: usize = 4_096;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance<'a> {
    /// Whether it begins something.
    pub kind: Kind,
    /// The Request-URI has a password, or there is an Authorization.
    pub has_credential: bool,
    /// The user of From.
    pub from_user: Option<&'a [u8]>,
    agent: &'a [u8],
    from: &'a [u8],
}

/// What a request would begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call, a registration, anything that has no dialog yet.
    New,
    /// It belongs to a dialog or a transaction, or says that it does.
    InDialog,
}

impl<'a> Glance<'a> {
    /// Whether these bytes begin a response.
    pub fn is_response(bytes: &[u8]) -> bool {
        bytes.starts_with(b"SIP/")
    }

    /// Looks at the beginning of a request; `None`: it is none.
    pub fn at(bytes: &'a [u8]) -> Option<Self> {
        let bytes = &bytes[..bytes.len().min(GLANCE_MAX)];
        let mut lines = bytes.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let mut words = lines.next()?.split(|&b| b == b' ');
        let (method, uri, version) = (words.next()?, words.next()?, words.next()?);
        let is_method = !method.is_empty() && method.iter().all(u8::is_ascii_uppercase);
        if !is_method || !version.starts_with(b"SIP/") {
            return None;
        }
        let mut glance = Self {
            kind: match method {
                b"ACK" | b"CANCEL" | b"BYE" | b"PRACK" => Kind::InDialog,
                _ => Kind::New,
            },
            has_credential: has_password(uri),
            from_user: None,
            agent: b"",
            from: b"",
        };
        for line in lines.take_while(|line| !line.is_empty()) {
            let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
            let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
            let is = |long: &[u8], short: &[u8]| {
                name.eq_ignore_ascii_case(long) || (!short.is_empty() && name.eq_ignore_ascii_case(short))
            };
            if is(b"User-Agent", b"") {
                glance.agent = value;
            } else if is(b"From", b"f") {
                glance.from = value;
                glance.from_user = user(value);
            } else if is(b"To", b"t") {
                if contains(value, b";tag=") {
                    glance.kind = Kind::InDialog;
                }
            } else if is(b"Authorization", b"") || is(b"Proxy-Authorization", b"") {
                glance.has_credential = true;
            }
        }
        Some(glance)
    }

    /// Whether User-Agent or From shows one of these words (in lower case).
    pub fn names_one_of(&self, agents: &[String]) -> bool {
        agents.iter().any(|agent| {
            contains(self.agent, agent.as_bytes()) || contains(display(self.from), agent.as_bytes())
        })
    }
}

/// `scheme:user:password@host`
fn has_password(uri: &[u8]) -> bool {
    let Some(at) = uri.iter().position(|&b| b == b'@') else { return false };
    uri[..at].iter().filter(|&&b| b == b':').count() >= 2
}

/// The user of the URI in a name-addr.
fn user(value: &[u8]) -> Option<&[u8]> {
    let start = value.iter().position(|&b| b == b'<').map_or(0, |open| open + 1);
    let rest = &value[start..];
    let colon = rest.iter().position(|&b| b == b':')?;
    let rest = &rest[colon + 1..];
    let end = rest.iter().position(|&b| matches!(b, b'@' | b'>' | b';' | b':'))?;
    (rest.get(end) == Some(&b'@')).then(|| &rest[..end])
}

/// What stands before the `<` of a name-addr.
fn display(value: &[u8]) -> &[u8] {
    value.iter().position(|&b| b == b'<').map_or(b"", |open| &value[..open])
}

/// Whether `needle` (in lower case) stands somewhere, without case.
fn contains(text: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && text.windows(needle.len()).any(|window| window.eq_ignore_ascii_case(needle))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn request_is_seen_as_it_is() {
        let text =
            b"INVITE sip:desk:key@host SIP/2.0\r\nf: \"A\" <sip:200@host>;tag=1\r\nTo: <sip:desk@host>\r\n\
                     user-agent: Friendly-Scanner\r\n\r\nUser-Agent: none";
        let glance = Glance::at(text).unwrap();
        assert_eq!((glance.kind, glance.has_credential), (Kind::New, true));
        assert_eq!(glance.from_user, Some(&b"200"[..]));
        assert!(glance.names_one_of(&["friendly-scanner".into()]) && !glance.names_one_of(&["none".into()]));
    }

    #[test]
    fn dialog_and_credential_are_found_by_their_fields() {
        let glance = |text: &'static str| Glance::at(text.as_bytes()).unwrap();
        assert_eq!(glance("INVITE sip:a@h SIP/2.0\r\nt: <sip:a@h>;tag=x\r\n\r\n").kind, Kind::InDialog);
        assert_eq!(glance("BYE sip:a@h SIP/2.0\r\n\r\n").kind, Kind::InDialog);
        assert!(glance("REGISTER sip:h SIP/2.0\r\nAuthorization: Digest x\r\n\r\n").has_credential);
        assert!(!glance("INVITE sip:a@[2001:db8::1]:5060 SIP/2.0\r\n\r\n").has_credential);
        assert!(
            glance("OPTIONS sip:a@h SIP/2.0\r\nFrom: \"sipvicious\"<sip:100@h>\r\n\r\n")
                .names_one_of(&["sipvicious".into()])
        );
    }

    #[test]
    fn what_is_no_request_is_none() {
        for text in ["SIP/2.0 200 OK\r\n\r\n", "\r\n\r\n", "", "v=0\r\no=- 1", "GET / HTTP/1.1\r\n\r\n"] {
            assert!(Glance::at(text.as_bytes()).is_none(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(glance) = Glance::at(&bytes) {
                glance.names_one_of(&["x".to_owned()]);
            }
            let mut request = b"INVITE sip:a@h SIP/2.0\r\n".to_vec();
            request.extend(bytes);
            prop_assert!(Glance::at(&request).is_some());
        }
    }
}
