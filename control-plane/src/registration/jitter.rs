//! Spread of deadlines, so that many registrations and pings do not fall on one moment. Repeatable from a seed.

use std::time::Duration;

/// A small generator of numbers; nothing secret hangs on it (SplitMix64).
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly between two lengths of time.
    pub fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let range_us = u64::try_from(high.saturating_sub(low).as_micros()).unwrap_or(u64::MAX);
        low + Duration::from_micros(self.next() % range_us.saturating_add(1).max(1))
    }

    /// `first`, doubled with each attempt up to `max`, of which a half to the whole is waited.
    pub fn backoff(&mut self, first: Duration, max: Duration, attempt: u32) -> Duration {
        let full = first.saturating_mul(1 << attempt.min(16)).min(max);
        self.between(full / 2, full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_within_its_bounds() {
        let mut jitter = Jitter::new(7);
        let (first, max) = (Duration::from_secs(2), Duration::from_secs(300));
        for attempt in 0..100 {
            let full = first.saturating_mul(1 << attempt.min(16)).min(max);
            let wait = jitter.backoff(first, max, attempt);
            assert!(full / 2 <= wait && wait <= full, "{attempt}: {wait:?}");
        }
        assert_eq!(jitter.between(max, max), max);
        assert_eq!(jitter.between(max, first), max);
    }
}
