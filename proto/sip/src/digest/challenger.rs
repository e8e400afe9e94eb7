//! The server's side over time: nonces that need no memory, and the counts of those that were used.
//!
//! ```text
//!   challenges(now) ──▶ WWW-Authenticate: SHA-256, MD5        nonce = time · number · HMAC(secret, time · number · realm)
//!   check(request) ◀─── Authorization      nonce ours? young? count new? digest right?
//! ```
//!
//! Only a right answer leaves something behind: the counts seen with its nonce, one entry of a bounded table. Who floods us
//! with requests or wrong answers costs a hash each and no memory.

use std::collections::BTreeMap;
use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{Algorithm, Answer, Challenge, DigestError};
use crate::headers::HeaderName;
use crate::message::Request;

/// How long a nonce is good, in seconds: longer than a phone takes for its second try, shorter than a registration.
pub const NONCE_LIFE_S: u64 = 300;

/// Nonces in use whose counts are remembered: 50 new ones a second over their life. Full: the oldest is forgotten, and with
/// it every older one is stale, so that no count can be used again.
pub const MAX_NONCES: usize = 16_384;

/// Authorization fields of one request that are looked at.
const MAX_ANSWERS: usize = 8;

/// Octets of a nonce before it is written in hexadecimal: seconds, number, and half of the HMAC.
const NONCE_LEN: usize = 8 + 4 + 16;

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No Authorization for our realm: the usual first request.
    #[error("no credentials for this realm")]
    Missing,
    /// An answer that cannot be read.
    #[error(transparent)]
    Malformed(#[from] DigestError),
    /// An answer by a hash that was not offered.
    #[error("credentials use another algorithm than those offered")]
    Algorithm,
    /// Nobody of that name.
    #[error("user name is not known")]
    UnknownUser,
    /// The digest is wrong.
    #[error("password is wrong")]
    WrongPassword,
    /// Right, but with a nonce that is too old or not ours. Challenge again with `stale`.
    #[error("nonce is stale")]
    Stale,
    /// Right, but with a count that was used before. Challenge again with `stale`.
    #[error("nonce count was used before")]
    Replayed,
}

impl Denied {
    /// Whether the user knows the password, so that the next challenge says `stale=true` and no person is asked again.
    pub const fn is_stale(&self) -> bool {
        matches!(self, Denied::Stale | Denied::Replayed)
    }
}

/// Time of issue in seconds and number: the identity of a nonce, in order of age.
type NonceId = (u64, u32);

/// The counts that were used with one nonce: the highest, and which of the 64 below it.
#[derive(Debug, Clone, Copy)]
struct Counts {
    highest: u32,
    below: u64,
}

impl Counts {
    /// Takes a count; false if it was used or is too far behind to know.
    fn take(&mut self, count: u32) -> bool {
        if count > self.highest {
            let ahead = count - self.highest;
            // The old highest becomes the bit `ahead - 1`.
            self.below = self.below.checked_shl(ahead).unwrap_or(0);
            if ahead <= 64 && self.highest > 0 {
                self.below |= 1 << (ahead - 1);
            }
            self.highest = count;
            return true;
        }
        let behind = self.highest - count;
        if behind == 0 || behind > 64 || count == 0 {
            return false;
        }
        let bit = 1 << (behind - 1);
        let is_new = self.below & bit == 0;
        self.below |= bit;
        is_new
    }
}

/// Challenges and checks requests for one realm. Processes that share `secret` accept each other's nonces (but not each
/// other's counts).
pub struct Challenger {
    realm: String,
    mac: Hmac<Sha256>,
    algorithms: Vec<Algorithm>,
    number: u32,
    counts: BTreeMap<NonceId, Counts>,
    /// Every nonce up to this one is stale.
    forgotten: Option<NonceId>,
}

impl Challenger {
    /// A challenger that offers SHA-256, then MD5 (RFC 8760 §2.3). `secret`: 32 random octets, or what several processes
    /// share.
    pub fn new(realm: &str, secret: &[u8]) -> Challenger {
        let algorithms = vec![Algorithm::Sha256, Algorithm::Md5];
        // HMAC takes a key of any length, so this is the one construction there is.
        let mac = Hmac::new_from_slice(secret).unwrap_or_else(|_| Hmac::new(&Default::default()));
        Challenger {
            realm: realm.to_owned(),
            mac,
            algorithms,
            number: 0,
            counts: BTreeMap::new(),
            forgotten: None,
        }
    }

    /// With these hashes, the preferred one first.
    pub fn algorithms(mut self, algorithms: &[Algorithm]) -> Challenger {
        self.algorithms = algorithms.to_vec();
        self
    }

    /// The realm.
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// Nonces whose counts are remembered.
    pub fn nonces_in_use(&self) -> usize {
        self.counts.len()
    }

    /// The values of WWW-Authenticate, in the order in which they must stand. `now_s`: seconds of any clock that does not
    /// go backwards by much, the same for all calls (and all processes that share the secret).
    pub fn challenges(&mut self, stale: bool, now_s: u64) -> Vec<String> {
        self.number = self.number.wrapping_add(1);
        let nonce = self.nonce((now_s, self.number));
        let challenge = |algorithm| Challenge {
            realm: self.realm.clone(),
            nonce: nonce.clone(),
            opaque: None,
            algorithm,
            qop_auth: true,
            stale,
        };
        self.algorithms.iter().map(|&algorithm| challenge(algorithm).to_header()).collect()
    }

    /// Whether a request comes from whom it says; the user's name. `header`: Authorization, or Proxy-Authorization.
    /// `password` looks one up by the user's name.
    ///
    /// The Request-URI is not compared with the digest's: proxies on the way change it, and a repeated answer is found by
    /// its count. An answer without qop has no count; its nonce is good for one request.
    ///
    /// # Errors
    /// Why not. The peer should hear the same 401 for all of them, with `stale` if [`Denied::is_stale`].
    pub fn check(
        &mut self,
        request: &Request,
        header: HeaderName,
        now_s: u64,
        password: impl FnOnce(&str) -> Option<String>,
    ) -> Result<String, Denied> {
        let values = request.head.headers().all(header).take(MAX_ANSWERS);
        let mut malformed = None;
        let mut ours = None;
        for value in values {
            match Answer::parse(value) {
                Ok(answer) if answer.realm == self.realm => ours = ours.or(Some(answer)),
                Ok(_) | Err(DigestError::Scheme) => {}
                Err(why) => malformed = malformed.or(Some(why)),
            }
        }
        let Some(answer) = ours else { return Err(malformed.map_or(Denied::Missing, Denied::Malformed)) };
        if !self.algorithms.contains(&answer.algorithm) {
            return Err(Denied::Algorithm);
        }
        let password = password(&answer.username);
        let is_known = password.is_some();
        // For a name that nobody has the same work is done, so that time tells nothing.
        let is_right = answer.verify(request.method.as_str(), password.as_deref().unwrap_or(""));
        if !is_known {
            return Err(Denied::UnknownUser);
        }
        if !is_right {
            return Err(Denied::WrongPassword);
        }
        let id =
            self.read_nonce(&answer.nonce).filter(|id| self.is_fresh(*id, now_s)).ok_or(Denied::Stale)?;
        let count = answer.qop_auth.as_ref().map(|(count, _)| *count);
        if !self.take_count(id, count, now_s) {
            return Err(Denied::Replayed);
        }
        Ok(answer.username)
    }

    fn nonce(&self, id: NonceId) -> String {
        let mut octets = [0; NONCE_LEN];
        octets[..8].copy_from_slice(&id.0.to_be_bytes());
        octets[8..12].copy_from_slice(&id.1.to_be_bytes());
        let tag = self.tag(&octets[..12]).finalize().into_bytes();
        octets[12..].copy_from_slice(&tag[..NONCE_LEN - 12]);
        octets.iter().fold(String::with_capacity(2 * NONCE_LEN), |mut out, octet| {
            for digit in [octet >> 4, octet & 15] {
                out.extend(char::from_digit(u32::from(digit), 16));
            }
            out
        })
    }

    fn tag(&self, identity: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(identity);
        mac.update(self.realm.as_bytes());
        mac
    }

    /// The identity of a nonce that we made.
    fn read_nonce(&self, nonce: &str) -> Option<NonceId> {
        let mut octets = [0; NONCE_LEN];
        if nonce.len() != 2 * NONCE_LEN {
            return None;
        }
        for (octet, digits) in octets.iter_mut().zip(nonce.as_bytes().chunks_exact(2)) {
            let digit = |b: u8| char::from(b).to_digit(16);
            *octet = (digit(digits[0])? << 4 | digit(digits[1])?) as u8;
        }
        let (identity, tag) = octets.split_at(12);
        self.tag(identity).verify_truncated_left(tag).ok()?;
        let (time, number) = identity.split_at(8);
        let time = time.iter().fold(0, |time, &octet| time << 8 | u64::from(octet));
        Some((time, number.iter().fold(0, |number, &octet| number << 8 | u32::from(octet))))
    }

    fn is_fresh(&self, id: NonceId, now_s: u64) -> bool {
        now_s.saturating_sub(id.0) <= NONCE_LIFE_S && self.forgotten.is_none_or(|forgotten| id > forgotten)
    }

    /// Takes a count of a fresh nonce; `None` (no qop) may be taken once.
    fn take_count(&mut self, id: NonceId, count: Option<u32>, now_s: u64) -> bool {
        while self
            .counts
            .first_key_value()
            .is_some_and(|((time, _), _)| now_s.saturating_sub(*time) > NONCE_LIFE_S)
        {
            self.counts.pop_first();
        }
        if !self.counts.contains_key(&id) && self.counts.len() >= MAX_NONCES {
            let oldest = self.counts.pop_first();
            self.forgotten = self.forgotten.max(oldest.map(|(id, _)| id));
            if self.forgotten >= Some(id) {
                return false;
            }
        }
        let counts = self.counts.entry(id).or_insert(Counts { highest: 0, below: 0 });
        match count {
            Some(count) => counts.take(count),
            None => {
                let is_new = counts.highest == 0;
                counts.highest = u32::MAX;
                counts.below = u64::MAX;
                is_new
            }
        }
    }
}

/// Without the secret.
impl fmt::Debug for Challenger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenger")
            .field("realm", &self.realm)
            .field("algorithms", &self.algorithms)
            .field("nonces_in_use", &self.counts.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Credentials;
    use crate::message::Message;
    use crate::parse::parse;

    fn challenger() -> Challenger {
        Challenger::new("tandem", b"0123456789abcdef0123456789abcdef")
    }

    fn register(authorization: &[String]) -> Request {
        let lines: String = authorization.iter().map(|value| format!("Authorization: {value}\r\n")).collect();
        let text = format!(
            "REGISTER sip:b SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:alice@b>;tag=1\r\n\
             To: <sip:alice@b>\r\nCall-ID: x\r\nCSeq: 7 REGISTER\r\n{lines}Content-Length: 0\r\n\r\n"
        );
        let Ok(Message::Request(request)) = parse(text.as_bytes()) else { panic!("test request parses") };
        request
    }

    fn answer(challenge: &str, password: &str, count: u32) -> String {
        let credentials = Credentials::new("alice", password);
        Challenge::parse(challenge).unwrap().answer(&credentials, "REGISTER", "sip:b", "cn", count)
    }

    fn check(challenger: &mut Challenger, value: String, now_s: u64) -> Result<String, Denied> {
        let lookup = |user: &str| (user == "alice").then(|| "secret".to_owned());
        challenger.check(&register(&[value]), HeaderName::Authorization, now_s, lookup)
    }

    #[test]
    fn sha_256_is_offered_before_md5_and_both_let_the_user_in() {
        let mut challenger = challenger();
        let offered = challenger.challenges(false, 1000);
        assert!(
            offered[0].contains("algorithm=SHA-256") && offered[1].contains("algorithm=MD5"),
            "{offered:?}"
        );
        for (index, challenge) in offered.iter().enumerate() {
            let value = answer(challenge, "secret", index as u32 + 1);
            assert_eq!(check(&mut challenger, value, 1001), Ok("alice".to_owned()));
        }
    }

    #[test]
    fn each_denial_says_why() {
        let mut challenger = challenger();
        let challenge = challenger.challenges(false, 1000).remove(0);
        let lookup = |_: &str| None;
        let denied = challenger.check(&register(&[]), HeaderName::Authorization, 1000, lookup);
        assert_eq!(denied, Err(Denied::Missing));
        let wrong = answer(&challenge, "wrong", 1);
        assert_eq!(check(&mut challenger, wrong, 1000), Err(Denied::WrongPassword));
        let request = register(&[answer(&challenge, "secret", 1)]);
        let denied = challenger.check(&request, HeaderName::Authorization, 1000, lookup);
        assert_eq!(denied, Err(Denied::UnknownUser));
        let weak = challenge.replace("SHA-256", "MD5-sess");
        assert_eq!(check(&mut challenger, answer(&weak, "secret", 1), 1000), Err(Denied::Algorithm));
        let other = challenge.replace("tandem", "elsewhere");
        assert_eq!(check(&mut challenger, answer(&other, "secret", 1), 1000), Err(Denied::Missing));
        let broken = "Digest realm=\"tandem\"".to_owned();
        assert_eq!(
            check(&mut challenger, broken, 1000),
            Err(Denied::Malformed(DigestError::Missing("username")))
        );
        assert_eq!(challenger.nonces_in_use(), 0, "who is not let in leaves nothing behind");
    }

    #[test]
    fn nonce_is_stale_after_its_life_and_when_it_is_not_ours() {
        let mut challenger = challenger();
        let challenge = challenger.challenges(false, 1000).remove(0);
        let value = answer(&challenge, "secret", 1);
        let late = check(&mut challenger, value.clone(), 1001 + NONCE_LIFE_S);
        assert_eq!(late, Err(Denied::Stale));
        assert!(late.unwrap_err().is_stale());
        assert_eq!(check(&mut challenger, value, 1000 + NONCE_LIFE_S), Ok("alice".to_owned()));
        let mut other = Challenger::new("tandem", b"another secret");
        let foreign = other.challenges(false, 1000).remove(0);
        assert_eq!(check(&mut challenger, answer(&foreign, "secret", 1), 1000), Err(Denied::Stale));
        let again = challenger.challenges(true, 1000).remove(0);
        assert!(Challenge::parse(&again).unwrap().stale);
    }

    #[test]
    fn count_is_good_once_and_may_come_out_of_order() {
        let mut challenger = challenger();
        let challenge = challenger.challenges(false, 1000).remove(0);
        let mut take = |count| check(&mut challenger, answer(&challenge, "secret", count), 1000).is_ok();
        assert_eq!([1, 1, 3, 2, 2, 3, 0].map(&mut take), [true, false, true, true, false, false, false]);
        assert_eq!([200, 199, 137, 136, 135, 200].map(&mut take), [true, true, true, true, false, false]);
    }

    #[test]
    fn answer_without_count_uses_its_nonce_up() {
        let mut challenger = challenger();
        let challenge = challenger.challenges(false, 1000).remove(0);
        let old = challenge.replace(", qop=\"auth\"", "");
        let value = answer(&old, "secret", 1);
        assert_eq!(check(&mut challenger, value.clone(), 1000), Ok("alice".to_owned()));
        assert_eq!(check(&mut challenger, value, 1000), Err(Denied::Replayed));
        assert_eq!(check(&mut challenger, answer(&challenge, "secret", 1), 1000), Err(Denied::Replayed));
    }

    #[test]
    fn full_table_forgets_the_oldest_and_makes_it_stale() {
        let mut challenger = challenger();
        let first = challenger.challenges(false, 1000).remove(1);
        assert!(check(&mut challenger, answer(&first, "secret", 1), 1000).is_ok());
        for _ in 0..MAX_NONCES {
            let challenge = challenger.challenges(false, 1001).remove(1);
            assert!(check(&mut challenger, answer(&challenge, "secret", 1), 1001).is_ok());
        }
        assert_eq!(challenger.nonces_in_use(), MAX_NONCES);
        assert_eq!(check(&mut challenger, answer(&first, "secret", 2), 1001), Err(Denied::Stale));
        let fresh = challenger.challenges(false, 1002 + NONCE_LIFE_S).remove(1);
        assert!(check(&mut challenger, answer(&fresh, "secret", 1), 1002 + NONCE_LIFE_S).is_ok());
        assert_eq!(challenger.nonces_in_use(), 1, "what has expired needs no room");
    }

    #[test]
    fn right_credentials_are_found_among_those_of_other_realms() {
        let mut challenger = challenger();
        let challenge = challenger.challenges(false, 1000).remove(0);
        let values = [
            "Bearer abc".to_owned(),
            answer(&challenge.replace("tandem", "proxy"), "other", 1),
            answer(&challenge, "secret", 1),
        ];
        let lookup = |_: &str| Some("secret".to_owned());
        let user = challenger.check(&register(&values), HeaderName::Authorization, 1000, lookup);
        assert_eq!(user, Ok("alice".to_owned()));
    }

    #[test]
    fn secret_is_not_in_debug() {
        assert!(!format!("{:?}", challenger()).contains("0123"));
    }
}
