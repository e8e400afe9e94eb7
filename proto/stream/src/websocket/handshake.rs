//! The opening handshake (RFC 6455 §4): an HTTP/1.1 upgrade, written and read without HTTP around it.
//!
//! Both sides bound what they read: [`HANDSHAKE_MAX`] octets and [`HANDSHAKE_HEADERS_MAX`] headers. The caller keeps the bytes
//! until the empty line has come and takes off what was consumed; frames may follow in the same segment.

use sha1::{Digest, Sha1};

/// Octets of a request or response, at most; more than any client sends, less than what hurts.
pub const HANDSHAKE_MAX: usize = 8 * 1024;
/// Headers of a request or response, at most.
pub const HANDSHAKE_HEADERS_MAX: usize = 64;

/// What both sides append to the key before hashing (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A handshake that cannot succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// No empty line within the limit.
    #[error("handshake is longer than {HANDSHAKE_MAX} octets")]
    TooLong,
    /// More headers than we keep.
    #[error("handshake has more than {HANDSHAKE_HEADERS_MAX} headers")]
    TooManyHeaders,
    /// Not HTTP.
    #[error("not HTTP/1.1: {0}")]
    Http(String),
    /// A request that is not a GET.
    #[error("method {0:?} is not GET")]
    Method(String),
    /// The server answered with something else than 101.
    #[error("server answered {code} {reason:?} instead of 101")]
    Status {
        /// HTTP status.
        code: u16,
        /// Its reason phrase.
        reason: String,
    },
    /// A header is missing or has the wrong value.
    #[error("header {0} is missing or wrong")]
    Header(&'static str),
    /// A header or path to be sent contains a line break or another control character.
    #[error("header {0:?} cannot be sent")]
    Unsendable(String),
    /// The server chose an extension or subprotocol nobody offered.
    #[error("server chose {0} although none was offered")]
    NotOffered(&'static str),
}

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key`.
pub fn accept_key(key: &str) -> String {
    let hash = Sha1::new().chain_update(key.trim().as_bytes()).chain_update(GUID).finalize();
    base64_simd::STANDARD.encode_to_string(hash.as_slice())
}

/// The client's side of one handshake.
#[derive(Debug, Clone)]
pub struct ClientHandshake {
    key: String,
}

impl ClientHandshake {
    /// A handshake with this key: 16 octets, fresh and random for each connection (RFC 6455 §4.1).
    pub fn new(key: [u8; 16]) -> Self {
        ClientHandshake { key: base64_simd::STANDARD.encode_to_string(key) }
    }

    /// Appends the upgrade request. `host` is the `Host` header ([`super::Url::host_header`]), `path` starts with `/`;
    /// `headers` are added as they are, for authorization and the like.
    ///
    /// # Errors
    /// [`HandshakeError::Unsendable`] names the header that would break the request; nothing is written then.
    pub fn write_request<'a>(
        &self,
        host: &str,
        path: &str,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        out: &mut Vec<u8>,
    ) -> Result<(), HandshakeError> {
        let start = out.len();
        let write = || {
            sendable("path", path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic()))?;
            sendable("Host", !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic()))?;
            for part in [
                "GET ",
                path,
                " HTTP/1.1\r\nHost: ",
                host,
                "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
            ] {
                out.extend_from_slice(part.as_bytes());
            }
            for part in ["Sec-WebSocket-Key: ", &self.key, "\r\nSec-WebSocket-Version: 13\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
            for (name, value) in headers {
                sendable(name, is_token(name) && !value.bytes().any(|b| b.is_ascii_control() && b != b'\t'))?;
                for part in [name, ": ", value, "\r\n"] {
                    out.extend_from_slice(part.as_bytes());
                }
            }
            out.extend_from_slice(b"\r\n");
            Ok(())
        };
        let written = write();
        if written.is_err() {
            out.truncate(start);
        }
        written
    }

    /// Reads the server's answer: `None` while it is incomplete, else the octets it took.
    ///
    /// # Errors
    /// [`HandshakeError`]; the connection is of no use then.
    pub fn read_response(&self, bytes: &[u8]) -> Result<Option<usize>, HandshakeError> {
        let mut headers = [httparse::EMPTY_HEADER; HANDSHAKE_HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let Some(consumed) = complete(response.parse(bounded(bytes)), bytes)? else {
            return Ok(None);
        };
        let code = response.code.unwrap_or_default();
        if code != 101 {
            return Err(HandshakeError::Status {
                code,
                reason: response.reason.unwrap_or_default().to_owned(),
            });
        }
        let headers = response.headers;
        check_upgrade(headers)?;
        if value(headers, "Sec-WebSocket-Accept") != Some(&accept_key(&self.key)) {
            return Err(HandshakeError::Header("Sec-WebSocket-Accept"));
        }
        for chosen in ["Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol"] {
            if value(headers, chosen).is_some() {
                return Err(HandshakeError::NotOffered(chosen));
            }
        }
        Ok(Some(consumed))
    }
}

/// A client's upgrade request, as the server keeps it.
#[derive(Clone, PartialEq, Eq)]
pub struct UpgradeRequest {
    /// Path with its query.
    pub path: String,
    key: String,
    headers: Vec<(String, String)>,
}

/// Paths and headers may carry tokens: only names are shown.
impl std::fmt::Debug for UpgradeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("UpgradeRequest").field("headers", &names).finish_non_exhaustive()
    }
}

impl UpgradeRequest {
    /// Reads a request: `None` while it is incomplete, else the request and the octets it took. Header values that are not
    /// UTF-8 are left out.
    ///
    /// # Errors
    /// [`HandshakeError`]; answer with [`write_refusal`] (400) and hang up.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, HandshakeError> {
        let mut headers = [httparse::EMPTY_HEADER; HANDSHAKE_HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let Some(consumed) = complete(request.parse(bounded(bytes)), bytes)? else {
            return Ok(None);
        };
        let method = request.method.unwrap_or_default();
        if method != "GET" {
            return Err(HandshakeError::Method(method.to_owned()));
        }
        if request.version != Some(1) {
            return Err(HandshakeError::Http("an upgrade needs HTTP/1.1".to_owned()));
        }
        let headers = request.headers;
        let count =
            |name: &str| headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).count();
        for name in ["Host", "Sec-WebSocket-Key", "Sec-WebSocket-Version"] {
            if count(name) != 1 {
                return Err(HandshakeError::Header(name));
            }
        }
        // A body would be taken for frames.
        if count("Transfer-Encoding") > 0 || value(headers, "Content-Length").is_some_and(|len| len != "0") {
            return Err(HandshakeError::Header("Content-Length"));
        }
        check_upgrade(headers)?;
        if value(headers, "Sec-WebSocket-Version") != Some("13") {
            return Err(HandshakeError::Header("Sec-WebSocket-Version"));
        }
        let key = value(headers, "Sec-WebSocket-Key")
            .filter(|key| base64_simd::STANDARD.decode_to_vec(key).is_ok_and(|nonce| nonce.len() == 16))
            .ok_or(HandshakeError::Header("Sec-WebSocket-Key"))?;
        let kept = |header: &httparse::Header<'_>| {
            Some((header.name.to_owned(), std::str::from_utf8(header.value).ok()?.to_owned()))
        };
        let request = UpgradeRequest {
            path: request.path.unwrap_or("/").to_owned(),
            key: key.to_owned(),
            headers: headers.iter().filter_map(kept).collect(),
        };
        Ok(Some((request, consumed)))
    }

    /// The first header of this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All headers as they came, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether the client offers this subprotocol (RFC 6455 §4.2.2; names are compared with case).
    pub fn offers(&self, subprotocol: &str) -> bool {
        self.headers()
            .filter(|(name, _)| name.eq_ignore_ascii_case("Sec-WebSocket-Protocol"))
            .flat_map(|(_, value)| value.split(','))
            .any(|offered| offered.trim() == subprotocol)
    }

    /// Appends the answer that accepts: 101, without extension or subprotocol.
    pub fn write_response(&self, out: &mut Vec<u8>) {
        self.write_response_with(None, out);
    }

    /// The same with a subprotocol that the client has offered ([`UpgradeRequest::offers`]).
    pub fn write_response_with(&self, subprotocol: Option<&str>, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
        );
        out.extend_from_slice(accept_key(&self.key).as_bytes());
        if let Some(subprotocol) = subprotocol {
            out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
            out.extend_from_slice(subprotocol.as_bytes());
        }
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// Appends an answer that refuses, with its reason as plain text; the connection is to be closed after it.
pub fn write_refusal(out: &mut Vec<u8>, status: u16, phrase: &str, text: &str) {
    write_refusal_after(out, status, phrase, text, None);
}

/// The same, saying after how many seconds it may go better (RFC 9110 §10.2.3).
pub fn write_refusal_after(
    out: &mut Vec<u8>,
    status: u16,
    phrase: &str,
    text: &str,
    retry_after_s: Option<u32>,
) {
    let retry = retry_after_s.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
    let phrase: String = phrase.chars().filter(|c| !c.is_control()).collect();
    let head = format!(
        "HTTP/1.1 {status} {phrase}\r\nSec-WebSocket-Version: 13\r\nConnection: close\r\n{retry}Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        text.len()
    );
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn bounded(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(HANDSHAKE_MAX)]
}

/// Octets consumed, or `None` when more may still come.
fn complete(parsed: httparse::Result<usize>, bytes: &[u8]) -> Result<Option<usize>, HandshakeError> {
    match parsed {
        Ok(httparse::Status::Complete(consumed)) => Ok(Some(consumed)),
        Ok(httparse::Status::Partial) if bytes.len() >= HANDSHAKE_MAX => Err(HandshakeError::TooLong),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err(HandshakeError::TooManyHeaders),
        Err(error) => Err(HandshakeError::Http(error.to_string())),
    }
}

fn value<'a>(headers: &'a [httparse::Header<'_>], name: &str) -> Option<&'a str> {
    let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(header.value).ok().map(str::trim)
}

fn check_upgrade(headers: &[httparse::Header<'_>]) -> Result<(), HandshakeError> {
    let lists = |name: &str, token: &str| {
        headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case(name))
            .filter_map(|header| std::str::from_utf8(header.value).ok())
            .flat_map(|value| value.split(','))
            .any(|item| item.trim().eq_ignore_ascii_case(token))
    };
    if !lists("Upgrade", "websocket") {
        return Err(HandshakeError::Header("Upgrade"));
    }
    if !lists("Connection", "upgrade") {
        return Err(HandshakeError::Header("Connection"));
    }
    Ok(())
}

fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn sendable(name: &str, fine: bool) -> Result<(), HandshakeError> {
    if fine { Ok(()) } else { Err(HandshakeError::Unsendable(name.to_owned())) }
}
