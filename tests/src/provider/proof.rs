//! How each provider proves itself, and how it checks who asks: written from their pages, not from our checks.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, RsaPublicKeyComponents,
};
use ring::{digest, hmac};
use serde_json::{Value as Json, json};

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// X-Twilio-Signature: Base64 of HMAC-SHA1 over the URL and the fields sorted by name, nothing between them.
pub(crate) fn twilio(token: &str, url: &str, form: &[(&str, String)]) -> String {
    let mut form: Vec<_> = form.iter().collect();
    form.sort();
    let signed = form.iter().fold(url.to_owned(), |signed, (name, value)| signed + name + value);
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, token.as_bytes());
    STANDARD.encode(hmac::sign(&key, signed.as_bytes()))
}

/// X-Plivo-Signature-V3 of a POST: `url?fields.nonce`, or `url?query.fields.nonce`.
pub(crate) fn plivo(token: &str, url: &str, form: &[(&str, String)], nonce: &str) -> String {
    let mut form: Vec<_> = form.iter().collect();
    form.sort();
    let fields = form.iter().fold(String::new(), |signed, (name, value)| signed + name + value);
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let mut query: Vec<String> =
        form_urlencoded::parse(query.as_bytes()).map(|(name, value)| format!("{name}={value}")).collect();
    query.sort();
    let signed = match (query.is_empty(), fields.is_empty()) {
        (true, true) => base.to_owned(),
        (true, false) => format!("{base}?{fields}"),
        (false, true) => format!("{base}?{}", query.join("&")),
        (false, false) => format!("{base}?{}.{fields}", query.join("&")),
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
    STANDARD.encode(hmac::sign(&key, format!("{signed}.{nonce}").as_bytes()))
}

/// The bearer token of a Vonage webhook with this body.
pub(crate) fn vonage(secret: &str, api_key: &str, application: &str, body: &str) -> String {
    let mut claims = json!({
        "iat": now_s(), "jti": super::fresh(), "iss": "Vonage", "api_key": api_key, "application_id": application,
    });
    if !body.is_empty() {
        let hash = digest::digest(&digest::SHA256, body.as_bytes());
        let hash = hash.as_ref().iter().fold(String::new(), |hex, octet| hex + &format!("{octet:02x}"));
        claims["payload_hash"] = json!(hash);
    }
    let part = |value: Json| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(json!({ "alg": "HS256", "typ": "JWT" })), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    format!("Bearer {signed}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes())))
}

/// Checks the token of a request to Vonage; `Err` says what is wrong with it.
pub(crate) fn check_vonage(pem: &str, application: &str, token: &str) -> Result<(), &'static str> {
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(base64).map_err(|_| "our own key")?;
    let pair = RsaKeyPair::from_pkcs8(&der).map_err(|_| "our own key")?;
    let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
    let (signed, signature) = token.rsplit_once('.').ok_or("no token")?;
    let (header, claims) = signed.split_once('.').ok_or("no token")?;
    let read =
        |part: &str| -> Option<Json> { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok() };
    let (header, claims) = (read(header).ok_or("no header")?, read(claims).ok_or("no claims")?);
    if header["alg"] != "RS256" || header["typ"] != "JWT" {
        return Err("not RS256");
    }
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| "no signature")?;
    public
        .verify(&RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), &signature)
        .map_err(|_| "signed by another key")?;
    if claims["application_id"] != application {
        return Err("another application");
    }
    let (issued_s, until_s) =
        (claims["iat"].as_u64().ok_or("no iat")?, claims["exp"].as_u64().ok_or("no exp")?);
    if claims["jti"].as_str().is_none_or(str::is_empty) {
        return Err("no jti");
    }
    if issued_s > now_s() + 60 || until_s < now_s() || until_s > issued_s + 86_400 {
        return Err("not its time");
    }
    Ok(())
}

/// Telnyx's key: seed 00 01 02 … 1f.
fn ed25519() -> Ed25519KeyPair {
    let seed: [u8; 32] = std::array::from_fn(|n| n as u8);
    Ed25519KeyPair::from_seed_unchecked(&seed).expect("32 octets are a seed")
}

/// The other half of it, in Base64.
pub(crate) fn ed25519_public_key() -> String {
    STANDARD.encode(ed25519().public_key())
}

/// Signature and time of a Telnyx webhook with this body.
pub(crate) fn telnyx(body: &str) -> Vec<(&'static str, String)> {
    let time = now_s().to_string();
    let signature = ed25519().sign(format!("{time}|{body}").as_bytes());
    vec![("telnyx-signature-ed25519", STANDARD.encode(signature)), ("telnyx-timestamp", time)]
}

/// HTTP Basic.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(text: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        text.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
    }

    // Vectors made with the providers' SDKs.
    #[test]
    fn twilio_signs_as_its_sdk_does() {
        let fields = form(&[("To", "+2"), ("From", "+1"), ("B", "x"), ("a", "1")]);
        assert_eq!(
            twilio("demo-twilio-auth-token", "https://h.test/p", &fields),
            "bopEtC7iERYVGKL2crTK2VJIvFw="
        );
    }

    #[test]
    fn plivo_signs_as_its_sdk_does() {
        let url = "https://voice.example.test/plivo/answer";
        let fields = form(&[
            ("CallUUID", "c-1"),
            ("From", "14155550100"),
            ("To", "14155550199"),
            ("CallStatus", "ringing"),
        ]);
        let nonce = "12345678901234567890";
        assert_eq!(
            plivo("plivo_auth_token", url, &fields, nonce),
            "1WWQ81wrFQqNhwy/ZXnzOSaDfn2j0UCYawiGei2k3lA="
        );
        let fields = form(&[("CallUUID", "c-1"), ("From", "14155550100")]);
        let url = format!("{url}?b=2&a=1");
        assert_eq!(
            plivo("plivo_auth_token", &url, &fields, nonce),
            "MiiXnDoAqsH+QPqAVLX9ltVX+XFv4ul3PBng5BuE3pY="
        );
    }

    #[test]
    fn telnyx_has_the_key_of_the_vectors() {
        assert_eq!(ed25519_public_key(), "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=");
    }
}
