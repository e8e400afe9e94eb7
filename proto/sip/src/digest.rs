//! Digest access authentication (RFC 7616, for SIP RFC 3261 §22 and RFC 8760): MD5, SHA-256 and SHA-512-256, each also as
//! `-sess`, with qop `auth` or none.
//!
//! ```text
//!   server: Challenge ──to_header──▶ WWW-Authenticate ──parse──▶ Challenge :client
//!   server: Answer   ◀──parse─────── Authorization   ◀──answer── Credentials
//!           Answer::verify(password)
//! ```
//!
//! Pure functions: nonces and cnonces are passed in. [`Challenger`] is the server that makes nonces, and knows whether one is
//! fresh and its count new.

mod challenger;

use std::borrow::Cow;
use std::fmt;

use md5::Md5;
use sha2::{Sha256, Sha512_256};

pub use challenger::{Challenger, Denied, MAX_NONCES, NONCE_LIFE_S};

use crate::grammar::{self, quote};

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password: a secret.
    pub password: String,
    /// The only realm whose challenges are answered; `None`: any, since who challenges is whom we have asked.
    pub realm: Option<String>,
}

impl Credentials {
    /// For whichever realm asks.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Credentials {
        Credentials { username: username.into(), password: password.into(), realm: None }
    }

    /// Whether a challenge of this realm is answered: realms compare octet by octet (RFC 7616 §3.3).
    pub fn answers(&self, realm: &str) -> bool {
        self.realm.as_deref().is_none_or(|own| own == realm)
    }
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
    /// `MD5-sess`.
    Md5Sess,
    /// `SHA-256`.
    Sha256,
    /// `SHA-256-sess`.
    Sha256Sess,
    /// `SHA-512-256`.
    Sha512Trunc256,
    /// `SHA-512-256-sess`.
    Sha512Trunc256Sess,
}

impl Algorithm {
    const ALL: [Algorithm; 6] = [
        Algorithm::Md5,
        Algorithm::Md5Sess,
        Algorithm::Sha256,
        Algorithm::Sha256Sess,
        Algorithm::Sha512Trunc256,
        Algorithm::Sha512Trunc256Sess,
    ];

    /// The token.
    pub const fn token(self) -> &'static str {
        match self {
            Algorithm::Md5 => "MD5",
            Algorithm::Md5Sess => "MD5-sess",
            Algorithm::Sha256 => "SHA-256",
            Algorithm::Sha256Sess => "SHA-256-sess",
            Algorithm::Sha512Trunc256 => "SHA-512-256",
            Algorithm::Sha512Trunc256Sess => "SHA-512-256-sess",
        }
    }

    fn parse(token: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.token().eq_ignore_ascii_case(token))
    }

    const fn is_session(self) -> bool {
        matches!(self, Algorithm::Md5Sess | Algorithm::Sha256Sess | Algorithm::Sha512Trunc256Sess)
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
            Algorithm::Md5 | Algorithm::Md5Sess => run::<Md5>(parts),
            Algorithm::Sha256 | Algorithm::Sha256Sess => run::<Sha256>(parts),
            Algorithm::Sha512Trunc256 | Algorithm::Sha512Trunc256Sess => run::<Sha512_256>(parts),
        }
    }

    /// H(A1) without the part of a session: what a registrar may store instead of the password. A secret all the same.
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
    /// None of [`Algorithm`]'s.
    #[error("algorithm is not one of MD5, SHA-256 and SHA-512-256")]
    Algorithm,
    /// Only `auth-int` or worse is offered.
    #[error("no quality of protection that we speak")]
    Qop,
}

/// Realms that are answered in one request.
pub const MAX_REALMS: usize = 4;

fn stronger(one: Challenge, other: Challenge) -> Challenge {
    if other.algorithm > one.algorithm { other } else { one }
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

    /// The strongest challenge of several that we can answer; of equals the first (RFC 8760 §2.4).
    pub fn strongest<'a>(values: impl Iterator<Item = &'a str>) -> Option<Challenge> {
        Challenge::strongest_each(values).into_iter().reduce(stronger)
    }

    /// The strongest challenge of each realm: several proxies may each want an answer. More than [`MAX_REALMS`] are
    /// passed over.
    pub fn strongest_each<'a>(values: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
        let mut chosen: Vec<Challenge> = Vec::new();
        for challenge in values.filter_map(|value| Challenge::parse(value).ok()) {
            match chosen.iter().position(|other| other.realm == challenge.realm) {
                Some(at) if challenge.algorithm > chosen[at].algorithm => chosen[at] = challenge,
                None if chosen.len() < MAX_REALMS => chosen.push(challenge),
                Some(_) | None => {}
            }
        }
        chosen
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
        let mut ha1 = self.algorithm.ha1(&credentials.username, &self.realm, &credentials.password);
        if self.algorithm.is_session() {
            ha1 = self.algorithm.hash(&[&ha1, &self.nonce, cnonce]);
        }
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
        } else if self.algorithm.is_session() {
            out += &format!(", cnonce={}", quote(cnonce));
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
    /// Of a session's first answer.
    cnonce: Option<String>,
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
            cnonce: params.get("cnonce"),
            response: params.need("response")?,
        })
    }

    /// The challenge that it answers.
    pub(crate) fn challenge(&self) -> Challenge {
        Challenge {
            realm: self.realm.clone(),
            nonce: self.nonce.clone(),
            opaque: self.opaque.clone(),
            algorithm: self.algorithm,
            qop_auth: self.qop_auth.is_some(),
            stale: false,
        }
    }

    /// Whether the client knows the password. Compared in constant time.
    pub fn verify(&self, method: &str, password: &str) -> bool {
        self.verify_ha1(method, &self.algorithm.ha1(&self.username, &self.realm, password))
    }

    /// The same with a stored [`Algorithm::ha1`].
    pub fn verify_ha1(&self, method: &str, ha1: &str) -> bool {
        let count = self.qop_auth.as_ref().map(|(count, _)| format!("{count:08x}"));
        let qop = self.qop_auth.as_ref().zip(count.as_deref()).map(|((_, cnonce), nc)| (nc, cnonce.as_str()));
        let mut ha1 = Cow::Borrowed(ha1);
        if self.algorithm.is_session() {
            let cnonce = self.cnonce.as_deref().unwrap_or_default();
            ha1 = self.algorithm.hash(&[&ha1, &self.nonce, cnonce]).into();
        }
        let expected = response(self.algorithm, &ha1, &self.nonce, qop, method, &self.uri);
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
        Credentials::new("Mufasa", "Circle of Life")
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
        for algorithm in Algorithm::ALL.map(Algorithm::token) {
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
    fn each_realm_is_answered_and_of_equals_the_first() {
        let values = [
            "Digest realm=\"a\", nonce=\"1\", algorithm=SHA-256",
            "Digest realm=\"b\", nonce=\"2\"",
            "Digest realm=\"a\", nonce=\"3\", algorithm=SHA-256",
            "Digest realm=\"c\", nonce=\"4\", qop=\"auth-int\"",
        ];
        let nonces: Vec<_> =
            Challenge::strongest_each(values.into_iter()).into_iter().map(|c| c.nonce).collect();
        assert_eq!(nonces, ["1", "2"], "auth-int alone is refused");
    }

    #[test]
    fn session_answers_without_qop_carry_their_cnonce() {
        let challenge = Challenge { qop_auth: false, ..mufasa("MD5-sess") };
        let answer =
            Answer::parse(&challenge.answer(&circle_of_life(), "BYE", "sip:a@b", CNONCE, 1)).unwrap();
        assert!(answer.verify("BYE", "Circle of Life") && !answer.verify("BYE", "x"));
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
