//! The checks that providers' requests are proved by. All compare in constant time.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, signature};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// Whether `given` is the HMAC of `message`, in Base64.
pub fn hmac_matches(algorithm: hmac::Algorithm, secret: &SecretString, message: &[u8], given: &str) -> bool {
    let Ok(given) = STANDARD.decode(given.trim()) else { return false };
    let key = hmac::Key::new(algorithm, secret.expose_secret().as_bytes());
    hmac::verify(&key, message, &given).is_ok()
}

/// Whether `given` is the SHA-256 of these octets, in hexadecimal.
pub fn sha256_matches(octets: &[u8], given: &str) -> bool {
    let Ok(given) = hex::decode(given.trim()) else { return false };
    digest::digest(&digest::SHA256, octets).as_ref().ct_eq(&given).into()
}

/// Whether `signature` is the Ed25519 signature of `message` (RFC 8032).
pub fn ed25519_matches(public_key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    signature::UnparsedPublicKey::new(&signature::ED25519, public_key).verify(message, signature).is_ok()
}

/// Whether two secrets are the same. Their hashes are compared, so that the time tells not even their lengths.
pub fn is_same(ours: &SecretString, theirs: &str) -> bool {
    let hash = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
    hash(ours.expose_secret()).as_ref().ct_eq(hash(theirs).as_ref()).into()
}

/// User and password of an `Authorization: Basic …` (RFC 7617).
pub fn basic(header: &str) -> Option<(String, SecretString)> {
    let (scheme, rest) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("Basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.into()))
}

/// The value of an `Authorization` header with these (RFC 7617).
pub fn basic_header(user: &str, password: &SecretString) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.expose_secret())))
}

/// The token of an `Authorization: Bearer …` (RFC 6750).
pub fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_come_back() {
        let header = basic_header("user", &"pass:word".into());
        let (user, password) = basic(&header).unwrap();
        assert_eq!((user.as_str(), password.expose_secret()), ("user", "pass:word"));
        assert!(basic("Bearer abc").is_none() && basic("Basic ***").is_none() && basic("Basic").is_none());
        assert_eq!(bearer("bearer  abc"), Some("abc"));
    }

    #[test]
    fn secrets_of_any_length_are_compared() {
        assert!(is_same(&"abc".into(), "abc"));
        assert!(
            !is_same(&"abc".into(), "abcd") && !is_same(&"abc".into(), "") && !is_same(&"abc".into(), "abd")
        );
    }
}
