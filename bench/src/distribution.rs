//! Many durations in little room, and their percentiles in milliseconds.
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::clock::NANOS_PER_MS;

/// Longest duration told apart, nanoseconds: a minute. Longer ones count as this.
const LONGEST_NS: u64 = 60_000_000_000;

/// Significant decimal digits kept: an error of 0.1 % at most.
const DIGITS: u8 = 3;

/// Durations, recorded in nanoseconds, read in milliseconds.
#[derive(Clone)]
pub struct Distribution(Histogram<u64>);

impl Distribution {
    /// Empty.
    pub fn new() -> Self {
        Self(
            Histogram::new_with_bounds(1, LONGEST_NS, DIGITS)
                .expect("the bounds are constants that hdrhistogram accepts"),
        )
    }

    /// Counts one duration.
    pub fn record_ns(&mut self, nanos: u64) {
        self.0.saturating_record(nanos);
    }

    /// Adds another distribution's counts.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all distributions have the same bounds");
    }

    /// How many durations were recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The duration that `percent` of all do not exceed, milliseconds; 0 when there is none.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { ms(self.0.value_at_percentile(percent)) }
    }

    /// The longest, milliseconds; 0 when there is none.
    pub fn max_ms(&self) -> f64 {
        ms(self.0.max())
    }

    /// The mean, milliseconds; 0 when there is none.
    pub fn mean_ms(&self) -> f64 {
        round(self.0.mean() / NANOS_PER_MS as f64)
    }

    /// The usual percentiles, or nothing when nothing was recorded.
    pub fn summary(&self) -> Option<Summary> {
        (self.count() > 0).then(|| Summary {
            p50: self.percentile_ms(50.0),
            p95: self.percentile_ms(95.0),
            p99: self.percentile_ms(99.0),
            p999: self.percentile_ms(99.9),
            max: self.max_ms(),
            mean: self.mean_ms(),
            count: self.count(),
        })
    }
}

impl Default for Distribution {
    fn default() -> Self {
        Self::new()
    }
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Half are at most this.
    pub p50: f64,
    /// 95 % are at most this.
    pub p95: f64,
    /// 99 % are at most this.
    pub p99: f64,
    /// 99.9 % are at most this.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
    /// How many there were.
    pub count: u64,
}

fn ms(nanos: u64) -> f64 {
    round(nanos as f64 / NANOS_PER_MS as f64)
}

/// To a tenth of a microsecond: more digits than that would pretend.
pub(crate) fn round(ms: f64) -> f64 {
    (ms * 10_000.0).round() / 10_000.0
}

/// The middle value; `None` of nothing. Reorders the slice.
pub fn median<T: Ord + Copy>(values: &mut [T]) -> Option<T> {
    if values.is_empty() {
        return None;
    }
    let middle = values.len() / 2;
    Some(*values.select_nth_unstable(middle).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_one_to_a_thousand_are_themselves() {
        let mut distribution = Distribution::new();
        for ms in 1..=1_000_u64 {
            distribution.record_ns(ms * NANOS_PER_MS);
        }
        let summary = distribution.summary().unwrap();
        for (got, want) in
            [(summary.p50, 500.0), (summary.p99, 990.0), (summary.p999, 999.0), (summary.max, 1_000.0)]
        {
            assert!((got - want).abs() <= want * 0.0015, "{got} is not {want}");
        }
        assert_eq!(summary.count, 1_000);
    }

    #[test]
    fn nothing_recorded_has_no_summary_and_zero_percentiles() {
        assert_eq!(Distribution::new().summary(), None);
        assert_eq!(Distribution::new().percentile_ms(99.9), 0.0);
    }

    #[test]
    fn duration_beyond_the_range_counts_as_the_longest() {
        let mut distribution = Distribution::new();
        distribution.record_ns(u64::MAX);
        assert!(distribution.max_ms() >= 60_000.0);
    }

    #[test]
    fn median_is_the_middle_value() {
        assert_eq!(median(&mut [3, 1, 2]), Some(2));
        assert_eq!(median::<i32>(&mut []), None);
    }
}
