//! Tags, branches, Call-IDs and cnonces: unpredictable to a peer, repeatable from a seed.
//!
//! SHA-256 in counter mode over the caller's seed. RFC 3261 §19.3 asks for at least 32 random bits in a tag; ours have
//! 64, and seeing some does not tell the next.

use std::fmt::Write as _;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

/// A small generator of unpredictable numbers.
#[derive(Clone)]
pub(crate) struct Random {
    seed: u64,
    counter: u64,
    block: [u64; 4],
    left: usize,
}

impl Random {
    pub(crate) const fn new(seed: u64) -> Random {
        Random { seed, counter: 0, block: [0; 4], left: 0 }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        if self.left == 0 {
            let mut hash = Sha256::new();
            hash.update(b"tandem-sip");
            hash.update(self.seed.to_be_bytes());
            hash.update(self.counter.to_be_bytes());
            self.counter += 1;
            let digest = hash.finalize();
            for (word, octets) in self.block.iter_mut().zip(digest.chunks_exact(8)) {
                *word = octets.iter().fold(0, |word, &octet| word << 8 | u64::from(octet));
            }
            self.left = self.block.len();
        }
        self.left -= 1;
        self.block[self.left]
    }

    /// 16 hexadecimal digits after a prefix.
    pub(crate) fn token(&mut self, prefix: &str) -> String {
        let mut out = String::with_capacity(prefix.len() + 16);
        let _ = write!(out, "{prefix}{:016x}", self.next_u64());
        out
    }

    /// A duration in `from..from + range`, in whole steps of 10 ms (RFC 3261 §14.1).
    pub(crate) fn duration(&mut self, from: Duration, range: Duration) -> Duration {
        let steps = (range.as_millis() as u64 / 10).max(1);
        from + Duration::from_millis(self.next_u64() % steps * 10)
    }
}

impl std::fmt::Debug for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Random")
    }
}
