//! A bare timer on the target's core, in the same run: what the host alone does to a 1 ms schedule.
//!
//! A thread that does nothing else sleeps until absolute deadlines a millisecond apart and notes how late it wakes. Where
//! it may (CAP_SYS_NICE) it runs as SCHED_FIFO, so it preempts whatever runs on that core: its lateness is then the
//! hypervisor's and the kernel's, not that of waiting for the engine's turn to end, which must not be subtracted from the
//! engine's own figure. As a normal thread it would wait for the engine as well; the report says which one it was.
//!
//! The figure is computed like the schedule's: distance from the median, so that like is subtracted from like (a wake-up
//! that always comes 60 µs late is a phase in both). It costs that core about 0.3 %.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use crate::clock::{Mono, NANOS_PER_MS};
use crate::distribution::{Distribution, Summary, median};
use crate::host;

/// Between two deadlines: the engine's own tick.
const PERIOD_NS: u64 = NANOS_PER_MS;

/// A running probe.
pub struct TimerProbe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<u32>, bool, u64)>,
    core: usize,
}

/// What the host did to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TimerReport {
    /// Distance of the wake-ups from their own schedule, milliseconds.
    pub deviation_ms: Summary,
    /// Median lateness itself, milliseconds.
    pub late_ms_p50: f64,
    /// The core that it ran on.
    pub core: usize,
    /// `fifo` or `normal`.
    pub priority: String,
    /// Processor time that it took, nanoseconds.
    #[serde(skip)]
    pub cpu_ns: u64,
}

impl TimerProbe {
    /// Starts sampling on a core, with room for so many seconds.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(core: usize, seconds: f64) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let room = (seconds * 1_100.0) as usize + 1_000;
        let thread = std::thread::Builder::new().name("bare timer".into()).spawn(move || {
            let _ = host::pin_thread(core);
            host::sharpen_timers();
            let fifo = host::set_realtime().is_ok();
            let mut late = Vec::with_capacity(room);
            let mut deadline = Mono::now() + PERIOD_NS;
            while !stopped.load(Ordering::Relaxed) && late.len() < room {
                host::sleep_until(deadline.0);
                let now = Mono::now();
                late.push((now - deadline).min(u64::from(u32::MAX)) as u32);
                // Deadlines missed in one long sleep are samples too: each of them was late.
                deadline = deadline + PERIOD_NS;
                while deadline <= now && late.len() < room {
                    late.push((now - deadline).min(u64::from(u32::MAX)) as u32);
                    deadline = deadline + PERIOD_NS;
                }
            }
            (late, fifo, host::thread_cpu_ns())
        })?;
        Ok(Self { stop, thread, core })
    }

    /// Ends it; `None` when nothing was sampled.
    pub fn finish(self) -> Option<TimerReport> {
        self.stop.store(true, Ordering::Relaxed);
        let (late, fifo, cpu_ns) = self.thread.join().ok()?;
        let middle = median(&mut late.clone())?;
        let mut deviation = Distribution::new();
        for late_ns in late {
            deviation.record_ns(u64::from(late_ns.abs_diff(middle)));
        }
        Some(TimerReport {
            deviation_ms: deviation.summary()?,
            late_ms_p50: crate::distribution::round(f64::from(middle) / NANOS_PER_MS as f64),
            core: self.core,
            priority: if fifo { "fifo" } else { "normal" }.into(),
            cpu_ns,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_samples_every_millisecond() {
        let core = *host::allowed_cores().last().unwrap();
        let began = Mono::now();
        let probe = TimerProbe::start(core, 10.0).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        let report = probe.finish().unwrap();
        let elapsed_ms = (Mono::now() - began) / NANOS_PER_MS;
        // Deadlines slept through are samples too, so the count does not depend on the machine's load.
        assert!((100..=elapsed_ms + 1).contains(&report.deviation_ms.count), "{report:?} in {elapsed_ms} ms");
        assert_eq!(report.core, core);
    }
}
