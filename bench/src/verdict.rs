//! Whether the generator was itself the bottleneck. If it was, nothing is reported: a figure that says more about the
//! instrument than about the target is worse than none.
use serde::{Deserialize, Serialize};

use crate::distribution::round;
use crate::generator::Measured;
use crate::observe::Observed;

/// The generator's share of its core above which it is the bottleneck. Past 85 % queues build up behind every hiccup of
/// the host, and what leaves late or is read late says nothing about the target.
pub const CPU_LIMIT_PERCENT: f64 = 85.0;

/// Lateness of what we send, at the 99.9th percentile: half a ptime. Later than this the target's playout runs dry because
/// of us, and the round trip shows our delay as its own.
pub const LATE_P999_LIMIT_MS: f64 = 10.0;

/// Share of arrivals without a kernel stamp, percent. They are timed by when this process came to look.
pub const UNSTAMPED_LIMIT_PERCENT: f64 = 0.1;

/// The generator's own figures.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct GeneratorReport {
    /// Processor time of the bench (all but the bare timer), percent of its one core.
    pub cpu_percent: f64,
    /// Time that the sending thread was ready and its core was busy with others, percent.
    pub waited_percent: f64,
    /// How late packets left, 99.9th percentile, milliseconds.
    pub late_ms_p999: f64,
    /// The same at the median.
    pub late_ms_p50: f64,
    /// The same at worst.
    pub late_ms_max: f64,
    /// True when the figures would be the generator's and not the target's.
    pub limited: bool,
    /// Why, and what to do about it.
    pub reasons: Vec<String>,
    /// The core that it ran on.
    pub core: usize,
    /// Packets not sent because it was too far behind.
    pub skipped: u64,
    /// Datagrams that the kernel dropped because we did not read them.
    pub kernel_drops: u64,
    /// Packets that the kernel would not take from us because a send buffer was full.
    pub send_full: u64,
    /// Packets refused for another reason: the target's port was closed, mostly.
    pub send_refused: u64,
    /// Times that the receive slots ran out (packets waited, none was lost).
    pub slots_dry: u64,
    /// Arrivals without a kernel stamp.
    pub unstamped: u64,
}

impl GeneratorReport {
    /// Judges a run.
    pub fn judge(measured: &Measured, observed: &Observed, core: usize) -> Self {
        let received: u64 = measured.streams.iter().map(|stream| stream.sequence.received).sum();
        let mut report = Self {
            cpu_percent: round(observed.bench_cpu_percent),
            waited_percent: round(
                measured.thread_waited_ns as f64 * 100.0 / measured.window_ns.max(1) as f64,
            ),
            late_ms_p999: measured.late.percentile_ms(99.9),
            late_ms_p50: measured.late.percentile_ms(50.0),
            late_ms_max: measured.late.max_ms(),
            limited: false,
            reasons: Vec::new(),
            core,
            skipped: measured.skipped,
            kernel_drops: observed.generator_drops,
            send_full: measured.ring.send_full,
            send_refused: measured.ring.send_refused,
            slots_dry: measured.ring.dry,
            unstamped: measured.unstamped,
        };
        report.reasons = report.reasons(received);
        report.limited = !report.reasons.is_empty();
        report
    }

    fn reasons(&self, received: u64) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.cpu_percent > CPU_LIMIT_PERCENT {
            reasons.push(format!(
                "it used {:.0} % of core {} (limit {CPU_LIMIT_PERCENT} %): lower --concurrent, build with --release, or give it a faster core",
                self.cpu_percent, self.core
            ));
        }
        if self.late_ms_p999 > LATE_P999_LIMIT_MS {
            reasons.push(format!(
                "packets left {:.1} ms late at p99.9 (limit {LATE_P999_LIMIT_MS} ms) and it waited {:.1} % of the time for core {}: quiet that core or choose another one with --core",
                self.late_ms_p999, self.waited_percent, self.core
            ));
        }
        if self.skipped > 0 {
            reasons.push(format!(
                "it fell behind and did not send {} packets: see above, or lower --concurrent",
                self.skipped
            ));
        }
        if self.kernel_drops > 0 {
            reasons.push(format!(
                "the kernel dropped {} datagrams at the generator's own sockets: it did not read them in time",
                self.kernel_drops
            ));
        }
        if self.send_full > 0 {
            reasons.push(format!("the kernel's send buffers were full for {} packets", self.send_full));
        }
        if self.unstamped as f64 * 100.0 > received as f64 * UNSTAMPED_LIMIT_PERCENT {
            reasons.push(format!("{} of {received} arrivals had no kernel stamp", self.unstamped));
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> GeneratorReport {
        GeneratorReport { cpu_percent: 40.0, late_ms_p999: 0.5, ..GeneratorReport::default() }
    }

    #[test]
    fn healthy_generator_is_not_limited() {
        assert!(healthy().reasons(1_000_000).is_empty());
    }

    #[test]
    fn each_limit_alone_refuses() {
        for (what, report) in [
            ("cpu", GeneratorReport { cpu_percent: 85.1, ..healthy() }),
            ("late", GeneratorReport { late_ms_p999: 10.1, ..healthy() }),
            ("skipped", GeneratorReport { skipped: 1, ..healthy() }),
            ("drops", GeneratorReport { kernel_drops: 1, ..healthy() }),
            ("full", GeneratorReport { send_full: 1, ..healthy() }),
            ("stamps", GeneratorReport { unstamped: 1_001, ..healthy() }),
        ] {
            assert_eq!(report.reasons(1_000_000).len(), 1, "{what}");
        }
    }
}
