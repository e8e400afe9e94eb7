//! `ws://host:port/path` (RFC 6455 §3): what a client needs to connect and to ask.

/// Longest URL accepted: the request line must fit in a handshake.
const URL_MAX: usize = 2048;

/// A WebSocket address, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// True for `wss`.
    pub secure: bool,
    /// Name or IP literal; an IPv6 literal without its brackets.
    pub host: String,
    /// TCP port: 80 for `ws`, 443 for `wss` unless given.
    pub port: u16,
    /// Path with its query, at least `/`.
    pub path: String,
}

/// A URL that is not a WebSocket address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Neither `ws` nor `wss`.
    #[error("scheme is neither ws nor wss")]
    Scheme,
    /// No host.
    #[error("host is missing")]
    Host,
    /// A port that is not 1 to 65535.
    #[error("port is not a number from 1 to 65535")]
    Port,
    /// `user:password@`, which would end up in logs; send a header instead.
    #[error("user information is not accepted")]
    UserInfo,
    /// A space, a control character, a fragment, or beyond ASCII.
    #[error("character {0:?} must be percent-encoded or left out")]
    Character(char),
    /// Too long.
    #[error("{len} octets are more than {max}")]
    TooLong {
        /// Octets of the URL.
        len: usize,
        /// Our limit.
        max: usize,
    },
}

impl Url {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// [`UrlError`]
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        if text.len() > URL_MAX {
            return Err(UrlError::TooLong { len: text.len(), max: URL_MAX });
        }
        if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
            return Err(UrlError::Character(bad));
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "ws" => false,
            "wss" => true,
            _ => return Err(UrlError::Scheme),
        };
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(UrlError::UserInfo);
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(literal) => {
                let (host, rest) = literal.split_once(']').ok_or(UrlError::Host)?;
                (
                    host,
                    if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or(UrlError::Port)?) },
                )
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return Err(UrlError::Host);
        }
        let port = match port {
            None if secure => 443,
            None => 80,
            Some(digits) => digits.parse().ok().filter(|port| *port != 0).ok_or(UrlError::Port)?,
        };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Url { secure, host: host.to_owned(), port, path })
    }

    /// The value of the `Host` header: the port is left out when it is the scheme's own.
    pub fn host_header(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let own = if self.secure { 443 } else { 80 };
        if self.port == own { host } else { format!("{host}:{}", self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn host_port_and_path_are_taken_apart() {
        let url = Url::parse("ws://127.0.0.1:8766/talk?x=1").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.path.as_str()), ("127.0.0.1", 8766, "/talk?x=1"));
        assert_eq!(url.host_header(), "127.0.0.1:8766");
    }

    #[test]
    fn what_is_left_out_gets_its_default() {
        let url = Url::parse("WSS://agent.example?x").unwrap();
        assert_eq!((url.secure, url.port, url.path.as_str()), (true, 443, "/?x"));
        assert_eq!(url.host_header(), "agent.example");
        assert_eq!(Url::parse("ws://h").unwrap().path, "/");
    }

    #[test]
    fn ipv6_literals_lose_their_brackets_and_get_them_back() {
        let url = Url::parse("ws://[::1]:99/").unwrap();
        assert_eq!((url.host.as_str(), url.port), ("::1", 99));
        assert_eq!(url.host_header(), "[::1]:99");
    }

    #[test]
    fn what_cannot_be_dialled_is_refused_with_the_reason() {
        assert_eq!(Url::parse("http://h/"), Err(UrlError::Scheme));
        assert_eq!(Url::parse("ws:///x"), Err(UrlError::Host));
        assert_eq!(Url::parse("ws://h:0/"), Err(UrlError::Port));
        assert_eq!(Url::parse("ws://h:x/"), Err(UrlError::Port));
        assert_eq!(Url::parse("ws://u:p@h/"), Err(UrlError::UserInfo));
        assert_eq!(Url::parse("ws://h/a b"), Err(UrlError::Character(' ')));
        assert_eq!(Url::parse("ws://h/\r\nX: y"), Err(UrlError::Character('\r')));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,60}") {
            let _ = Url::parse(&text);
        }
    }
}
