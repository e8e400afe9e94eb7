//! A token bucket: so many a second, and so many at once.

use std::time::Instant;

/// A rate and what may come at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Tokens a second.
    pub per_second: f64,
    /// Tokens of a full bucket, at least one.
    pub burst: f64,
}

impl Rate {
    /// A rate whose burst is one second's worth, and at least one.
    pub fn per_second(per_second: f64) -> Self {
        Self { per_second, burst: per_second.max(1.0) }
    }
}

/// A bucket that several may take from.
#[derive(Debug, Clone)]
pub struct SharedBucket {
    rate: Rate,
    bucket: std::sync::Arc<std::sync::Mutex<Bucket>>,
}

impl SharedBucket {
    /// Takes a token; `false`: there is none.
    pub fn take(&self) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        bucket.take(self.rate, Instant::now())
    }
}

/// What is left. Full when it is made.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    /// Takes a token; `false`: there is none.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * rate.per_second).min(rate.burst);
        self.at = self.at.max(now);
        let has_token = self.tokens >= 1.0;
        if has_token {
            self.tokens -= 1.0;
        }
        has_token
    }

    /// A bucket that several may take from.
    pub fn shared(rate: Rate) -> SharedBucket {
        SharedBucket {
            rate,
            bucket: std::sync::Arc::new(std::sync::Mutex::new(Self::new(rate, Instant::now()))),
        }
    }

    /// Seconds until there is a token, rounded up and at least one: for Retry-After.
    pub fn wait_s(&self, rate: Rate) -> u32 {
        let seconds = ((1.0 - self.tokens) / rate.per_second).ceil();
        // The cast saturates; a rate is never below 0.01.
        (seconds as u32).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn burst_passes_at_once_and_then_the_rate_holds() {
        let start = Instant::now();
        let rate = Rate { per_second: 2.0, burst: 5.0 };
        let mut bucket = Bucket::new(rate, start);
        assert_eq!((0..20).filter(|_| bucket.take(rate, start)).count(), 5);
        assert_eq!(bucket.wait_s(rate), 1);
        let passed = (0..100).filter(|n| bucket.take(rate, start + Duration::from_millis(100 * n))).count();
        assert!((19..=20).contains(&passed), "{passed} in ten seconds");
    }

    #[test]
    fn slow_rate_still_lets_one_through_and_says_how_long_the_next_takes() {
        let start = Instant::now();
        let rate = Rate::per_second(0.1);
        let mut bucket = Bucket::new(rate, start);
        assert!(bucket.take(rate, start) && !bucket.take(rate, start));
        assert_eq!(bucket.wait_s(rate), 10);
        assert!(bucket.take(rate, start + Duration::from_secs(10)));
    }
}
