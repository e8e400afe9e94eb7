//! Suites and master keys: all that offer and answer need of SRTP.

use std::fmt;

/// Key and salt of the longest suite.
const MASTER_LEN_MAX: usize = 44;

/// What protects a stream, by its names in SDP (RFC 4568 §6.2, RFC 7714 §14.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suite {
    /// AES in counter mode, tags of 80 bits.
    AesCm128HmacSha1_80,
    /// The same with tags of 32 bits on RTP.
    AesCm128HmacSha1_32,
    /// AES-GCM with keys of 128 bits.
    AeadAes128Gcm,
    /// AES-GCM with keys of 256 bits.
    AeadAes256Gcm,
}

impl Suite {
    /// All, best first: GCM is both stronger and cheaper where the processor knows AES.
    pub const ALL: [Self; 4] =
        [Self::AeadAes256Gcm, Self::AeadAes128Gcm, Self::AesCm128HmacSha1_80, Self::AesCm128HmacSha1_32];

    /// Octets of the master key.
    pub const fn key_len(self) -> usize {
        match self {
            Self::AesCm128HmacSha1_80 | Self::AesCm128HmacSha1_32 | Self::AeadAes128Gcm => 16,
            Self::AeadAes256Gcm => 32,
        }
    }

    /// Octets of the master key with the salt after it, as `inline:` has them.
    pub const fn master_len(self) -> usize {
        match self {
            Self::AesCm128HmacSha1_80 | Self::AesCm128HmacSha1_32 => 16 + 14,
            Self::AeadAes128Gcm => 16 + 12,
            Self::AeadAes256Gcm => 32 + 12,
        }
    }

    /// The name in SDP.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AesCm128HmacSha1_80 => "AES_CM_128_HMAC_SHA1_80",
            Self::AesCm128HmacSha1_32 => "AES_CM_128_HMAC_SHA1_32",
            Self::AeadAes128Gcm => "AEAD_AES_128_GCM",
            Self::AeadAes256Gcm => "AEAD_AES_256_GCM",
        }
    }

    /// The suite of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.as_str().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The octets given are not a master key of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{suite} takes {} octets of key and salt, {len} are given", suite.master_len())]
pub struct KeyError {
    /// For which suite.
    pub suite: Suite,
    /// Octets given.
    pub len: usize,
}

/// Master key and salt of one direction. `Debug` shows the suite only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MasterKey {
    suite: Suite,
    octets: [u8; MASTER_LEN_MAX],
}

impl MasterKey {
    /// A key from its octets, the salt after the key.
    ///
    /// # Errors
    /// [`KeyError`] when there are not as many as the suite takes.
    pub fn new(suite: Suite, given: &[u8]) -> Result<Self, KeyError> {
        let mut octets = [0; MASTER_LEN_MAX];
        match octets.get_mut(..suite.master_len()) {
            Some(slot) if slot.len() == given.len() => slot.copy_from_slice(given),
            _ => return Err(KeyError { suite, len: given.len() }),
        }
        Ok(Self { suite, octets })
    }

    /// What it is for.
    pub const fn suite(&self) -> Suite {
        self.suite
    }

    /// The octets, for the one who must tell the peer or the engine.
    pub fn expose(&self) -> &[u8] {
        &self.octets[..self.suite.master_len()]
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({}, redacted)", self.suite)
    }
}
