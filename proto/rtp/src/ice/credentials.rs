//! What one side's checks are known by (RFC 8445 §5.3).

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

/// Most characters of a name or password: no sender may have more (RFC 8839 §5.4).
pub const TEXT_LEN_MAX: usize = 32;
/// The characters of RFC 8839 §5.1, one for each value of six bits.
const CHARS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Characters of our names: 48 bits.
const UFRAG_LEN: usize = 8;
/// Characters of our passwords: 144 bits, of which 128 must be random.
const PASSWORD_LEN: usize = 24;

/// The value of `a=ice-ufrag` or `a=ice-pwd`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IceText {
    octets: [u8; TEXT_LEN_MAX],
    len: u8,
}

impl IceText {
    /// Reads the value; `None` when it is empty, longer than [`TEXT_LEN_MAX`], or would not survive a line of SDP or a
    /// user name of STUN. Characters outside of the RFC's are taken: there are such senders, and they harm nobody.
    pub fn parse(text: &str) -> Option<Self> {
        let mut octets = [0; TEXT_LEN_MAX];
        let is_fine = !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_graphic() && octet != b':');
        octets.get_mut(..text.len()).filter(|_| is_fine)?.copy_from_slice(text.as_bytes());
        Some(Self { octets, len: text.len() as u8 })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Only `parse` and `Credentials::from_random` make one, of ASCII.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Its octets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }
}

impl fmt::Display for IceText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for IceText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Name and password of one side. `Debug` does not show the password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// `a=ice-ufrag`
    pub ufrag: IceText,
    /// `a=ice-pwd`
    pub password: IceText,
}

impl Credentials {
    /// New ones, of 48 and 144 of these random bits.
    pub fn from_random(random: &[u8; UFRAG_LEN + PASSWORD_LEN]) -> Self {
        let text = |random: &[u8]| {
            let mut octets = [0; TEXT_LEN_MAX];
            for (octet, random) in octets.iter_mut().zip(random) {
                *octet = CHARS[usize::from(random & 63)];
            }
            IceText { octets, len: random.len() as u8 }
        };
        let (ufrag, password) = random.split_at(UFRAG_LEN);
        Self { ufrag: text(ufrag), password: text(password) }
    }
}

/// The octets of HMAC-SHA-1.
const MAC_LEN: usize = 20;

impl Credentials {
    /// Those of the side that owns `secret`, for the peer whose side has these. The same peer gets the same ones, which is
    /// what a description that is repeated must have; a peer that begins anew (RFC 8445 §9) gets others.
    pub fn derived(secret: &[u8; 32], remote: Option<&Self>) -> Self {
        let mut random = [0; UFRAG_LEN + PASSWORD_LEN];
        for (n, block) in (0_u8..).zip(random.chunks_mut(MAC_LEN)) {
            // An HMAC takes a key of any length.
            let Ok(mut mac) = <Hmac<Sha1> as KeyInit>::new_from_slice(secret) else { break };
            mac.update(&[n]);
            for text in remote.iter().flat_map(|remote| [&remote.ufrag, &remote.password]) {
                mac.update(&[text.len]);
                mac.update(text.as_bytes());
            }
            let octets = mac.finalize().into_bytes();
            block.copy_from_slice(&octets[..block.len()]);
        }
        Self::from_random(&random)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("ufrag", &self.ufrag).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_that_no_sender_may_have_are_not_read() {
        for wrong in ["", "a b", "a:b", "ä", &"x".repeat(TEXT_LEN_MAX + 1)] {
            assert_eq!(IceText::parse(wrong), None, "{wrong}");
        }
        assert_eq!(IceText::parse("h6vY").map(|text| text.to_string()).as_deref(), Some("h6vY"));
    }

    #[test]
    fn derived_ones_change_with_the_secret_and_with_either_text_of_the_peer() {
        let peer = |ufrag, password| Credentials {
            ufrag: IceText::parse(ufrag).unwrap(),
            password: IceText::parse(password).unwrap(),
        };
        let first = Credentials::derived(&[1; 32], Some(&peer("abcd", "efgh")));
        assert_eq!(first, Credentials::derived(&[1; 32], Some(&peer("abcd", "efgh"))));
        let others = [
            Credentials::derived(&[2; 32], Some(&peer("abcd", "efgh"))),
            Credentials::derived(&[1; 32], Some(&peer("abce", "fgh"))),
            Credentials::derived(&[1; 32], Some(&peer("abcd", "efgi"))),
            Credentials::derived(&[1; 32], None),
        ];
        for other in others {
            assert!(other.ufrag != first.ufrag && other.password != first.password);
        }
        assert_ne!(first.ufrag.as_bytes(), &first.password.as_bytes()[..UFRAG_LEN]);
    }

    proptest! {
        #[test]
        fn new_ones_are_of_the_characters_of_the_rfc_and_long_enough(random: [u8; 32]) {
            let credentials = Credentials::from_random(&random);
            prop_assert_eq!(IceText::parse(credentials.ufrag.as_str()), Some(credentials.ufrag));
            prop_assert_eq!(IceText::parse(credentials.password.as_str()), Some(credentials.password));
            prop_assert!(credentials.password.as_str().len() >= 22);
            let shown = format!("{credentials:?}");
            prop_assert!(!shown.contains(credentials.password.as_str()));
        }
    }
}
