//! What a description says of a certificate (RFC 8122 §5).

use std::fmt;

/// Octets of SHA-256.
const LEN: usize = 32;

/// SHA-256 of a certificate, as `a=fingerprint:sha-256` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; LEN]);

impl Fingerprint {
    /// From the hash.
    pub const fn new(octets: [u8; LEN]) -> Self {
        Self(octets)
    }

    /// The hash.
    pub const fn as_octets(&self) -> &[u8; LEN] {
        &self.0
    }

    /// Reads the value of the attribute; `None` for another hash than SHA-256, which every browser and every DTLS library
    /// has, and for what is no hash.
    pub fn parse(value: &str) -> Option<Self> {
        let (hash, hex) = value.trim().split_once(' ')?;
        if !hash.eq_ignore_ascii_case("sha-256") {
            return None;
        }
        let mut octets = [0; LEN];
        let mut pairs = hex.trim().split(':');
        for octet in &mut octets {
            let is_hex = |pair: &&str| pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit());
            *octet = u8::from_str_radix(pairs.next().filter(is_hex)?, 16).ok()?;
        }
        pairs.next().is_none().then_some(Self(octets))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha-256 ")?;
        self.0.iter().enumerate().try_for_each(|(n, octet)| {
            let colon = if n == 0 { "" } else { ":" };
            write!(f, "{colon}{octet:02X}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn others_than_whole_sha_256_are_not_read() {
        let text = Fingerprint::new([0xAB; LEN]).to_string();
        assert_eq!(text.len(), 8 + LEN * 3 - 1);
        let signed = text.replacen("AB", "+B", 1);
        for wrong in ["", "sha-256", "sha-1 AA:BB", &text[..text.len() - 3], &format!("{text}:00"), &signed] {
            assert_eq!(Fingerprint::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_in_either_case(octets: [u8; LEN]) {
            let text = Fingerprint::new(octets).to_string();
            prop_assert_eq!(Fingerprint::parse(&text), Some(Fingerprint::new(octets)));
            prop_assert_eq!(Fingerprint::parse(&text.to_lowercase()), Some(Fingerprint::new(octets)));
        }

        #[test]
        fn any_text_is_read_or_passed_over(value in "[ -~]{0,120}") {
            let _ = Fingerprint::parse(&value);
        }
    }
}
