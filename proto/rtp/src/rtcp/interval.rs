//! When the next report is due (RFC 3550 §6.2, §6.3).
//!
//! ```text
//!   5 % of the session's bandwidth ÷ members ─▶ at least 5 s (half of it the first time) ─▶ × 0.5…1.5 ─▶ ÷ (e − 3/2)
//! ```
//!
//! A telephone call has two members, so the minimum governs all but the slowest sessions: reports leave each 2.1 to
//! 6.2 seconds, 4.1 on average. The factor is random lest the reports of many calls, which all began at the restart of
//! some exchange, come at once; it follows from the seed, so that a test sees the same times again. Timer
//! reconsideration (§6.3.3) would change nothing while the number of members does not change.

use std::time::{Duration, Instant};

/// The shortest mean interval (§6.2).
const MIN: Duration = Duration::from_secs(5);
/// Makes up for timer reconsideration, which waits for longer than it aims at (§6.3.1).
const COMPENSATION: f64 = std::f64::consts::E - 1.5;
/// Share of the session's bandwidth that is RTCP's (§6.2).
const BANDWIDTH_SHARE: f64 = 0.05;
/// The peer and we.
const MEMBERS: f64 = 2.0;
/// IPv4 and UDP headers, which count as bandwidth (§6.2).
const LOWER_LAYERS: f64 = 28.0;

/// The timer of one session's reports.
#[derive(Debug, Clone)]
pub struct ReportTimer {
    random: u64,
    /// Mean size of the compounds sent and received, headers of lower layers included (§6.3.3).
    mean_octets: f64,
    next: Option<Instant>,
}

impl ReportTimer {
    /// A timer that has not begun. Sessions with other seeds report at other times.
    pub const fn new(seed: u64) -> Self {
        // A report with one block, a CNAME and metrics.
        Self { random: seed, mean_octets: 160.0, next: None }
    }

    /// The session begins: the first report is due after half the interval.
    pub fn begin(&mut self, now: Instant, octets_a_second: u32) {
        self.next = Some(now + self.draw(MIN / 2, octets_a_second));
    }

    /// When a report is due.
    pub const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// A report of so many octets has left: the next one is due an interval later.
    pub fn handle_sent(&mut self, octets: usize, now: Instant, octets_a_second: u32) {
        self.handle_size(octets);
        self.next = Some(now + self.draw(MIN, octets_a_second));
    }

    /// A compound of so many octets came.
    pub fn handle_received(&mut self, octets: usize) {
        self.handle_size(octets);
    }

    /// No more reports.
    pub const fn stop(&mut self) {
        self.next = None;
    }

    fn handle_size(&mut self, octets: usize) {
        self.mean_octets += (octets as f64 + LOWER_LAYERS - self.mean_octets) / 16.0;
    }

    fn draw(&mut self, min: Duration, octets_a_second: u32) -> Duration {
        let bandwidth = f64::from(octets_a_second.max(1)) * BANDWIDTH_SHARE;
        // A session so slow that its reports would be minutes apart reports each minute all the same.
        let mean = (MEMBERS * self.mean_octets / bandwidth).clamp(min.as_secs_f64(), 60.0);
        let random = (splitmix(&mut self.random) >> 11) as f64 / (1_u64 << 53) as f64;
        Duration::from_secs_f64(mean * (0.5 + random) / COMPENSATION)
    }
}

/// Steele and Vigna's splitmix64: enough to spread reports.
pub(crate) const fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A G.711 call with headers.
    const TELEPHONE: u32 = 10_000;

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    fn intervals(seed: u64, octets_a_second: u32, count: usize) -> Vec<f64> {
        let mut now = start();
        let mut timer = ReportTimer::new(seed);
        timer.begin(now, octets_a_second);
        let mut intervals = vec![];
        for _ in 0..count {
            let next = timer.next().unwrap();
            intervals.push((next - now).as_secs_f64());
            now = next;
            timer.handle_sent(132, now, octets_a_second);
        }
        intervals
    }

    #[test]
    fn intervals_stay_within_half_and_one_and_a_half_of_the_mean() {
        let all = intervals(7, TELEPHONE, 2_000);
        assert!((1.02..=3.08).contains(&all[0]), "the first comes after half: {}", all[0]);
        assert!(all[1..].iter().all(|interval| (2.05..=6.16).contains(interval)));
        let mean = all[1..].iter().sum::<f64>() / 1_999.0;
        assert!((mean - 5.0 / COMPENSATION).abs() < 0.1, "{mean}");
    }

    #[test]
    fn two_seeds_report_at_different_times_and_one_seed_at_the_same() {
        assert_eq!(intervals(1, TELEPHONE, 10), intervals(1, TELEPHONE, 10));
        assert_ne!(intervals(1, TELEPHONE, 10), intervals(2, TELEPHONE, 10));
    }

    #[test]
    fn slow_session_reports_less_often_and_never_slower_than_each_minute_and_a_quarter() {
        let slow = intervals(3, 200, 100);
        assert!(slow[1..].iter().all(|interval| *interval > 10.0), "{slow:?}");
        assert!(intervals(3, 0, 100).iter().all(|interval| *interval < 75.0));
    }
}
