//! JSON Web Tokens as Vonage uses them (RFC 7519): HS256 on its webhooks, RS256 on our requests. Nothing else is taken:
//! not `none`, and no algorithm that the token would choose.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value as Json;

/// Octets of a token that are looked at; Vonage's have some 500.
const TOKEN_MAX: usize = 4 * 1024;

/// Why a token is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenError {
    /// Not three parts of Base64.
    Malformed,
    /// Signed in another way.
    Algorithm(String),
    /// Signed with another key.
    Signature,
}

/// The claims of a token that is signed with this secret by HS256.
pub fn verify_hs256(token: &str, secret: &SecretString) -> Result<Json, TokenError> {
    if token.len() > TOKEN_MAX {
        return Err(TokenError::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
    let read = |part: &str| -> Result<Json, TokenError> {
        serde_json::from_slice(&decode(part)?).map_err(|_| TokenError::Malformed)
    };
    let header = read(header)?;
    let algorithm = header.get("alg").and_then(Json::as_str).unwrap_or_default();
    if algorithm != "HS256" {
        return Err(TokenError::Algorithm(super::webhook::shown(algorithm)));
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes());
    hmac::verify(&key, signed.as_bytes(), &decode(signature)?).map_err(|_| TokenError::Signature)?;
    read(claims)
}

/// A private key that signs by RS256.
pub struct SigningKey(RsaKeyPair);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

/// What [`SigningKey::from_pem`] wants.
pub const KEY_EXPECTED: &str = "an RSA private key of at least 2048 bits in PEM (\"-----BEGIN PRIVATE KEY-----\" or \"BEGIN RSA PRIVATE KEY\")";

impl SigningKey {
    /// From PKCS#8 or PKCS#1 in PEM; a literal `\n`, as variables often have it, counts as a line end.
    pub fn from_pem(pem: &str) -> Option<Self> {
        let pem = pem.replace("\\n", "\n").replace('\r', "");
        let body = |label: &str| {
            let after = pem.split_once(&format!("-----BEGIN {label}-----"))?.1;
            let inner = after.split_once(&format!("-----END {label}-----"))?.0;
            let packed: String = inner.chars().filter(|c| !c.is_whitespace()).collect();
            STANDARD.decode(packed).ok()
        };
        let pair = match (body("PRIVATE KEY"), body("RSA PRIVATE KEY")) {
            (Some(der), _) => RsaKeyPair::from_pkcs8(&der),
            (None, Some(der)) => RsaKeyPair::from_der(&der),
            (None, None) => return None,
        };
        pair.ok().map(Self)
    }

    /// A token with these claims; `None` when the system has no randomness to blind the key with.
    pub fn sign(&self, claims: &Json) -> Option<String> {
        let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"RS256","typ":"JWT"}"#);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).ok()?;
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The public half, for tests.
    #[cfg(test)]
    pub fn public(&self) -> Vec<u8> {
        self.0.public().as_ref().to_vec()
    }
}

/// For a form's field: whether it is such a key.
pub fn is_private_key(text: &str) -> Result<(), &'static str> {
    if SigningKey::from_pem(text).is_some() { Ok(()) } else { Err(KEY_EXPECTED) }
}
