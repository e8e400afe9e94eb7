//! Digest access authentication (RFC 7616, for SIP RFC 3261 §22 and RFC 8760): MD5 and SHA-256, qop `auth` or none.
//!
//! ```text
//!   server: Challenge ──to_header──▶ WWW-Authenticate ──parse──▶ Challenge :client
//!   server: Answer   ◀──parse─────── Authorization   ◀──answer── Credentials
//!           Answer::verify(password)
//! ```
//!
//! Pure functions: nonces and cnonces are passed in, and whether a nonce is fresh or a count repeated is the caller's.

use std::fmt;

use md5::Md5;
use sha2::Sha256;

use crate::grammar;

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password: a secret.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The hash. Ordered by strength.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// `MD5`, also meant when none is named.
    #[default]
    Md5,
    /// `SHA-256`.
    Sha256,
}

impl Algorithm {
    /// The token.
    pub const fn token(self) -> &'static str {
        match self {
            Algorithm::Md5 => "MD5",
            Algorithm::Sha256 => "SHA-256",
        }
    }

    fn parse(token: &str) -> Option<Algorithm> {
        [Algorithm::Md5, Algorithm::Sha256].into_iter().find(|a| a.token().eq_ignore_ascii_case(token))
    }

    /// H() of parts joined by `:`, in lower-case hexadecimal.
    fn hash(self, parts: &[&str]) -> String {
        fn run<D: sha2::Digest>(parts: &[&str]) -> String {
            let mut digest = D::new();
            for (index, part) in parts.iter().enumerate() {
                if index > 0 {
                    digest.update(b":");
                }
                digest.update(part.as_bytes());
            }
            digest.finalize().iter().fold(String::with_capacity(64), |mut out, octet| {
                for digit in [octet >> 4, octet & 15] {
                    out.extend(char::from_digit(u32::from(digit), 16));
                }
                out
            })
        }
        match self {
            Algorithm::Md5 => run::<Md5>(parts),
            Algorithm::Sha256 => run::<Sha256>(parts),
        }
    }

    /// H(A1): what a registrar may store instead of the password. A secret all the same.
    pub fn ha1(self, username: &str, realm: &str, password: &str) -> String {
        self.hash(&[username, realm, password])
    }
}

/// Why a challenge or an answer is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Another scheme than Digest.
    #[error("authentication scheme is not Digest")]
    Scheme,
    /// Parameters are malformed.
    #[error("malformed authentication parameters")]
    Syntax,
    /// A parameter is absent.
    #[error("missing parameter {0}")]
    Missing(&'static str),
    /// Neither MD5 nor SHA-256.
    #[error("algorithm is neither MD5 nor SHA-256")]
    Algorithm,
    /// Only `auth-int` or worse is offered.
    #[error("no quality of protection that we speak")]
    Qop,
}

/// WWW-Authenticate or Proxy-Authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Protection domain.
    pub realm: String,
    /// Server's nonce.
    pub nonce: String,
    /// Returned unchanged.
    pub opaque: Option<String>,
    /// The hash.
    pub algorithm: Algorithm,
    /// Whether `qop="auth"` is offered. Without it the old RFC 2069 response is used.
    pub qop_auth: bool,
    /// The credentials were right but the nonce too old.
    pub stale: bool,
}

impl Challenge {
    /// Reads a header value.
    pub fn parse(value: &str) -> Result<Challenge, DigestError> {
        let params = AuthParams::parse(value)?;
        let qop = params.get("qop");
        let qop_auth = qop.as_deref().is_some_and(|list| list.split(',').any(|q| q.trim() == "auth"));
        if qop.is_some() && !qop_auth {
            return Err(DigestError::Qop);
        }
        Ok(Challenge {
            realm: params.need("realm")?,
            nonce: params.need("nonce")?,
            opaque: params.get("opaque"),
            algorithm: params.algorithm()?,
            qop_auth,
            stale: params.get("stale").is_some_and(|stale| stale.eq_ignore_ascii_case("true")),
        })
    }

    /// The strongest challenge of several that we can answer (RFC 8760 §2.4).
    pub fn strongest<'a>(values: impl Iterator<Item = &'a str>) -> Option<Challenge> {
        values.filter_map(|value| Challenge::parse(value).ok()).max_by_key(|challenge| challenge.algorithm)
    }

    /// As a header value.
    pub fn to_header(&self) -> String {
        let mut out = format!("Digest realm={}, nonce={}", quote(&self.realm), quote(&self.nonce));
        if let Some(opaque) = &self.opaque {
            out += &format!(", opaque={}", quote(opaque));
        }
        out += &format!(", algorithm={}", self.algorithm.token());
        if self.qop_auth {
            out += ", qop=\"auth\"";
        }
        if self.stale {
            out += ", stale=true";
        }
        out
    }

    /// The value of Authorization or Proxy-Authorization. `uri` is the Request-URI; `count` begins at 1 and rises with
    /// each use of this nonce.
    pub fn answer(
        &self,
        credentials: &Credentials,
        method: &str,
        uri: &str,
        cnonce: &str,
        count: u32,
    ) -> String {
        let ha1 = self.algorithm.ha1(&credentials.username, &self.realm, &credentials.password);
        let count = format!("{count:08x}");
        let qop = self.qop_auth.then_some((count.as_str(), cnonce));
        let response = response(self.algorithm, &ha1, &self.nonce, qop, method, uri);
        let mut out = format!(
            "Digest username={}, realm={}, nonce={}, uri={}, response=\"{response}\", algorithm={}",
            quote(&credentials.username),
            quote(&self.realm),
            quote(&self.nonce),
            quote(uri),
            self.algorithm.token(),
        );
        if self.qop_auth {
            out += &format!(", qop=auth, nc={count}, cnonce={}", quote(cnonce));
        }
        if let Some(opaque) = &self.opaque {
            out += &format!(", opaque={}", quote(opaque));
        }
        out
    }
}

/// Authorization or Proxy-Authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// User name.
    pub username: String,
    /// Protection domain.
    pub realm: String,
    /// The nonce we gave.
    pub nonce: String,
    /// The Request-URI as the client hashed it.
    pub uri: String,
    /// The opaque we gave.
    pub opaque: Option<String>,
    /// The hash.
    pub algorithm: Algorithm,
    /// Count and client nonce, with `qop=auth`.
    pub qop_auth: Option<(u32, String)>,
    response: String,
}

impl Answer {
    /// Reads a header value.
    pub fn parse(value: &str) -> Result<Answer, DigestError> {
        let params = AuthParams::parse(value)?;
        let qop_auth = match params.get("qop").as_deref() {
            None => None,
            Some("auth") => {
                let count = params.need("nc")?;
                let count = u32::from_str_radix(&count, 16).ok().filter(|_| count.len() == 8);
                Some((count.ok_or(DigestError::Syntax)?, params.need("cnonce")?))
            }
            Some(_) => return Err(DigestError::Qop),
        };
        Ok(Answer {
            username: params.need("username")?,
            realm: params.need("realm")?,
            nonce: params.need("nonce")?,
            uri: params.need("uri")?,
            opaque: params.get("opaque"),
            algorithm: params.algorithm()?,
            qop_auth,
            response: params.need("response")?,
        })
    }

    /// Whether the client knows the password. Compared in constant time.
    pub fn verify(&self, method: &str, password: &str) -> bool {
        self.verify_ha1(method, &self.algorithm.ha1(&self.username, &self.realm, password))
    }

    /// The same with a stored [`Algorithm::ha1`].
    pub fn verify_ha1(&self, method: &str, ha1: &str) -> bool {
        let count = self.qop_auth.as_ref().map(|(count, _)| format!("{count:08x}"));
        let qop = self.qop_auth.as_ref().zip(count.as_deref()).map(|((_, cnonce), nc)| (nc, cnonce.as_str()));
        let expected = response(self.algorithm, ha1, &self.nonce, qop, method, &self.uri);
        let given = self.response.to_ascii_lowercase();
        given.len() == expected.len()
            && given.bytes().zip(expected.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

fn response(
    algorithm: Algorithm,
    ha1: &str,
    nonce: &str,
    qop: Option<(&str, &str)>,
    method: &str,
    uri: &str,
) -> String {
    let ha2 = algorithm.hash(&[method, uri]);
    match qop {
        Some((count, cnonce)) => algorithm.hash(&[ha1, nonce, count, cnonce, "auth", &ha2]),
        None => algorithm.hash(&[ha1, nonce, &ha2]),
    }
}

fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars().filter(|c| !c.is_control()) {
        if c == '"' || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// `Digest name=value, name="value" …`
struct AuthParams<'a>(Vec<(&'a str, &'a str)>);

impl<'a> AuthParams<'a> {
    fn parse(value: &'a str) -> Result<AuthParams<'a>, DigestError> {
        let (scheme, rest) = value.trim().split_once([' ', '\t']).ok_or(DigestError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("Digest") {
            return Err(DigestError::Scheme);
        }
        let pairs = grammar::split_commas(rest).filter(|item| !item.is_empty()).map(|item| {
            let (name, value) = item.split_once('=').ok_or(DigestError::Syntax)?;
            Ok((name.trim(), value.trim()))
        });
        Ok(AuthParams(pairs.collect::<Result<_, DigestError>>()?))
    }

    fn get(&self, name: &str) -> Option<String> {
        let (_, value) = self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(grammar::unquote(value).into_owned())
    }

    fn need(&self, name: &'static str) -> Result<String, DigestError> {
        self.get(name).ok_or(DigestError::Missing(name))
    }

    fn algorithm(&self) -> Result<Algorithm, DigestError> {
        self.get("algorithm")
            .map_or(Ok(Algorithm::Md5), |token| Algorithm::parse(&token).ok_or(DigestError::Algorithm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7616 §3.9.1.
    fn mufasa(algorithm: &str) -> Challenge {
        Challenge::parse(&format!(
            "Digest realm=\"http-auth@example.org\", qop=\"auth, auth-int\", algorithm={algorithm}, \
             nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\""
        ))
        .unwrap()
    }

    fn circle_of_life() -> Credentials {
        Credentials { username: "Mufasa".to_owned(), password: "Circle of Life".to_owned() }
    }

    const CNONCE: &str = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";

    #[test]
    fn answers_are_those_of_rfc_7616() {
        let md5 = mufasa("MD5").answer(&circle_of_life(), "GET", "/dir/index.html", CNONCE, 1);
        assert!(md5.contains("response=\"8ca523f5e9506fed4657c9700eebdbec\""), "{md5}");
        let sha = mufasa("SHA-256").answer(&circle_of_life(), "GET", "/dir/index.html", CNONCE, 1);
        assert!(
            sha.contains("response=\"753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1\""),
            "{sha}"
        );
    }

    #[test]
    fn answer_without_qop_is_that_of_rfc_2617() {
        let challenge = Challenge::parse(
            "Digest realm=\"testrealm@host.com\", nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\"",
        );
        let value = challenge.unwrap().answer(&circle_of_life(), "GET", "/", "", 1);
        assert!(!value.contains("qop") && Answer::parse(&value).unwrap().verify("GET", "Circle of Life"));
    }

    #[test]
    fn answer_is_verified_against_password_and_method() {
        for algorithm in ["MD5", "SHA-256"] {
            let value = mufasa(algorithm).answer(&circle_of_life(), "INVITE", "sip:a@b", CNONCE, 10);
            let answer = Answer::parse(&value).unwrap();
            assert_eq!(answer.qop_auth.as_ref().map(|(count, _)| *count), Some(10));
            assert!(answer.verify("INVITE", "Circle of Life"));
            assert!(!answer.verify("INVITE", "circle of life"));
            assert!(!answer.verify("BYE", "Circle of Life"));
        }
    }

    #[test]
    fn strongest_challenge_wins_and_unknown_ones_are_passed_over() {
        let values = [
            "Digest realm=\"r\", nonce=\"1\", algorithm=MD5",
            "Digest realm=\"r\", nonce=\"2\", algorithm=SHA-256, qop=\"auth\"",
            "Digest realm=\"r\", nonce=\"3\", algorithm=SHA-999",
            "NoOneKnowsThisScheme opaque-data=here",
        ];
        assert_eq!(Challenge::strongest(values.into_iter()).unwrap().nonce, "2");
    }

    #[test]
    fn challenge_written_reads_back() {
        let challenge = Challenge { stale: true, realm: "say \"hi\"".to_owned(), ..mufasa("SHA-256") };
        assert_eq!(Challenge::parse(&challenge.to_header()), Ok(challenge));
    }

    #[test]
    fn password_is_not_in_debug() {
        assert!(!format!("{:?}", circle_of_life()).contains("Circle"));
    }
}
