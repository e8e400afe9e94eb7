//! Keys of SRTP in SDP (RFC 4568): `a=crypto:1 AEAD_AES_128_GCM inline:…`.
//!
//! ```text
//!   RTP/SAVP with a=crypto  ─▶ protected, or refused
//!   RTP/AVP  with a=crypto  ─▶ opportunistic (RFC 8643): protected if the answer says so, in the clear if it does not
//! ```
//!
//! The keys stand in the body of a message that anybody on its way may read, so whoever signals without TLS encrypts for
//! show. Which signalling is good enough is the caller's matter. A line with parameters that we do not do (MKI, several
//! keys, UNENCRYPTED_SRTP …) is passed over as if its suite were unknown (§6.3.7).

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use tandem_rtp::srtp::{MasterKey, Suite};

use crate::description::{Attribute, Media};

/// Lines that are read; an offer with more suites than this has them by mistake.
const LINES_MAX: usize = 16;

/// Some phones leave the padding off.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Whether a call is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SrtpPolicy {
    /// Never: what is offered with keys is refused, or answered without.
    #[default]
    Off,
    /// If the other side can, too.
    Optional,
    /// Always: a call without is refused.
    Required,
}

/// What we protect a call with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalSrtp {
    /// Whether.
    pub policy: SrtpPolicy,
    /// A key of ours for each suite we speak, best first; the same ones for the whole dialog. The order counts in offers, and
    /// in answers the offerer's does.
    pub keys: Vec<MasterKey>,
}

impl LocalSrtp {
    /// Keys for every suite out of a source of random octets.
    pub fn new(policy: SrtpPolicy, mut random: impl FnMut(&mut [u8])) -> Self {
        let key = |suite: Suite| {
            let mut octets = vec![0; suite.master_len()];
            random(&mut octets);
            MasterKey::new(suite, &octets).ok()
        };
        let keys = match policy {
            SrtpPolicy::Off => Vec::new(),
            SrtpPolicy::Optional | SrtpPolicy::Required => Suite::ALL.into_iter().filter_map(key).collect(),
        };
        Self { policy, keys }
    }

    /// Our key of this suite.
    pub(crate) fn key(&self, suite: Suite) -> Option<MasterKey> {
        self.keys.iter().copied().find(|key| key.suite() == suite)
    }

    /// All of ours, numbered from 1.
    pub(crate) fn lines(&self) -> Vec<Crypto> {
        (1..).zip(&self.keys).map(|(tag, key)| Crypto { tag, key: *key }).collect()
    }
}

/// Keys of both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiatedSrtp {
    /// Of what we send.
    pub local: MasterKey,
    /// Of what the peer sends.
    pub remote: MasterKey,
}

/// One readable `a=crypto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crypto {
    /// Its number, which the answer repeats.
    pub tag: u32,
    /// The key of whoever wrote the line.
    pub key: MasterKey,
}

impl Crypto {
    /// Reads the value of an attribute; `None` when it is no line of ours to use.
    pub fn parse(value: &str) -> Option<Self> {
        let mut words = value.split_ascii_whitespace();
        let tag = words.next()?.parse().ok().filter(|tag| *tag <= 999_999_999)?;
        let suite = Suite::from_name(words.next()?)?;
        let (method, info) = words.next()?.split_once(':')?;
        if !method.eq_ignore_ascii_case("inline") || info.contains(';') || !words.all(is_harmless) {
            return None;
        }
        let mut parts = info.split('|');
        let octets = BASE64.decode(parts.next()?).ok()?;
        // A lifetime has no colon; an MKI has, and would stand in each packet.
        parts.all(|part| !part.contains(':')).then_some(())?;
        Some(Self { tag, key: MasterKey::new(suite, &octets).ok()? })
    }

    pub(crate) fn to_attribute(self) -> Attribute {
        let key = BASE64.encode(self.key.expose());
        Attribute::with_value("crypto", format!("{} {} inline:{key}", self.tag, self.key.suite()))
    }
}

/// A session parameter that changes nothing for us. One that is not known and does not begin with a dash must be (§6.3).
fn is_harmless(parameter: &str) -> bool {
    parameter.starts_with('-') || parameter.starts_with("WSH=") || parameter == "KDR=0"
}

impl Media {
    /// All readable `a=crypto`, in their order.
    pub fn cryptos(&self) -> impl Iterator<Item = Crypto> {
        self.attributes
            .iter()
            .filter(|a| a.name.eq_ignore_ascii_case("crypto"))
            .take(LINES_MAX)
            .filter_map(|a| Crypto::parse(a.value.as_deref()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The key of RFC 4568 §4.1.
    const KEY: &str = "WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz";

    #[test]
    fn lines_of_the_rfc_and_of_phones_are_read() {
        for line in [
            format!("1 AES_CM_128_HMAC_SHA1_80 inline:{KEY}"),
            format!("1 AES_CM_128_HMAC_SHA1_80 inline:{KEY}|2^31"),
            format!("1 aes_cm_128_hmac_sha1_80 INLINE:{KEY}|2^20 KDR=0 WSH=64 -X=1"),
        ] {
            let crypto = Crypto::parse(&line).unwrap();
            assert_eq!((crypto.tag, crypto.key.expose().len()), (1, 30), "{line}");
            assert_eq!(&crypto.key.expose()[..4], b"YS__");
        }
        let gcm = Crypto::parse("2 AEAD_AES_128_GCM inline:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGw").unwrap();
        assert_eq!(gcm.key.suite(), Suite::AeadAes128Gcm, "without padding, too");
    }

    #[test]
    fn lines_that_ask_for_what_we_do_not_do_are_passed_over() {
        for line in [
            format!("1 F8_128_HMAC_SHA1_80 inline:{KEY}"),
            format!("1 AES_CM_128_HMAC_SHA1_80 inline:{KEY}|2^20|1:4"),
            format!("1 AES_CM_128_HMAC_SHA1_80 inline:{KEY};inline:{KEY}"),
            format!("1 AES_CM_128_HMAC_SHA1_80 inline:{KEY} UNENCRYPTED_SRTCP"),
            format!("1 AES_CM_128_HMAC_SHA1_80 inline:{KEY} KDR=4"),
            format!("1 AES_CM_128_HMAC_SHA1_80 inline:{}", &KEY[4..]),
            format!("x AES_CM_128_HMAC_SHA1_80 inline:{KEY}"),
            "1 AES_CM_128_HMAC_SHA1_80".to_owned(),
            String::new(),
        ] {
            assert_eq!(Crypto::parse(&line), None, "{line}");
        }
    }

    #[test]
    fn keys_show_in_no_debug() {
        let local = LocalSrtp::new(SrtpPolicy::Required, |octets| octets.fill(0xAB));
        assert_eq!(local.keys.len(), 4);
        let shown =
            format!("{local:?} {:?}", Crypto::parse(&format!("1 AES_CM_128_HMAC_SHA1_80 inline:{KEY}")));
        assert!(!shown.contains("171") && !shown.contains(KEY) && shown.contains("redacted"), "{shown}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(tag in 0_u32..1_000_000_000, suite in 0_usize..4, fill: u8) {
            let suite = Suite::ALL[suite];
            let crypto = Crypto { tag, key: MasterKey::new(suite, &vec![fill; suite.master_len()]).unwrap() };
            prop_assert_eq!(Crypto::parse(&crypto.to_attribute().value.unwrap()), Some(crypto));
        }

        #[test]
        fn any_text_is_read_or_passed_over(value in "[ -~]{0,120}") {
            let _ = Crypto::parse(&value);
        }
    }
}
