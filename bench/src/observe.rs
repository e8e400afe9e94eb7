//! What is watched from outside while a window is measured: the host, our own processor time, the kernel's drops, and the
//! process under test.
use crate::clock::Mono;
use crate::host::{self, MachineTime};
use crate::timer::{TimerProbe, TimerReport};

/// Processor time at an instant.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// When.
    pub at: Mono,
    /// User and system time so far, seconds.
    pub cpu_s: f64,
    /// Memory in use, octets, where known.
    pub resident_bytes: Option<f64>,
}

/// An observation under way.
pub struct Observer {
    machine: MachineTime,
    bench_cpu_ns: u64,
    began: Mono,
    timer: Option<TimerProbe>,
}

/// What was seen in the window.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Time that the hypervisor took, percent of all cores.
    pub steal_percent: f64,
    /// Work of all threads of the machine but this process's, percent of one core.
    pub others_cpu_percent: f64,
    /// This process without the bare timer, percent of one core.
    pub bench_cpu_percent: f64,
    /// Datagrams dropped at our own ports since they were opened.
    pub generator_drops: u64,
    /// Datagrams dropped at the target's ports, where they are on this machine.
    pub target_drops: u64,
    /// The bare timer.
    pub timer: Option<TimerReport>,
}

impl Observer {
    /// Begins, with a bare timer on `timer_core` for about `seconds`.
    ///
    /// # Errors
    /// When there is no thread for the timer.
    pub fn begin(timer_core: usize, seconds: f64) -> std::io::Result<Self> {
        Ok(Self {
            timer: Some(TimerProbe::start(timer_core, seconds)?),
            machine: MachineTime::now(),
            began: Mono::now(),
            bench_cpu_ns: host::process_cpu_ns(),
        })
    }

    /// Ends, while the sockets are still open (the kernel counts drops by socket). The ports are the generator's and the target's.
    pub fn end(self, generator_ports: &[u16], target_ports: &[u16]) -> Observed {
        let bench_cpu_ns = host::process_cpu_ns() - self.bench_cpu_ns;
        let elapsed_ns = (Mono::now() - self.began).max(1);
        let of_a_core = |work_ns: u64| work_ns as f64 * 100.0 / elapsed_ns as f64;
        // Before the timer's thread ends: an ended thread's work is no longer seen.
        let machine = MachineTime::now();
        let timer = self.timer.and_then(TimerProbe::finish);
        let timer_cpu_ns = timer.as_ref().map_or(0, |timer| timer.cpu_ns);
        let drops = host::udp_drops();
        let dropped = |ports: &[u16]| ports.iter().filter_map(|port| drops.get(port)).sum();
        Observed {
            steal_percent: machine.steal_percent_since(&self.machine),
            others_cpu_percent: of_a_core(machine.work_ns_since(&self.machine).saturating_sub(bench_cpu_ns)),
            bench_cpu_percent: of_a_core(bench_cpu_ns.saturating_sub(timer_cpu_ns)),
            generator_drops: dropped(generator_ports),
            target_drops: dropped(target_ports),
            timer,
        }
    }
}

/// Processor milliseconds per call-second between two readings.
pub fn cpu_ms_per_call_s(before: &Usage, after: &Usage, calls: u64) -> f64 {
    let call_s = calls as f64 * (after.at - before.at) as f64 / 1e9;
    if call_s > 0.0 { (after.cpu_s - before.cpu_s) * 1_000.0 / call_s } else { 0.0 }
}

/// Work between two readings, percent of one core; 0 where there are none.
pub fn cpu_percent(before: Option<Usage>, after: Option<Usage>) -> f64 {
    match (before, after) {
        (Some(before), Some(after)) => {
            (after.cpu_s - before.cpu_s) * 1e11 / (after.at - before.at).max(1) as f64
        }
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_core_for_five_hundred_calls_is_one_millisecond_a_call_second() {
        let before = Usage { at: Mono(0), cpu_s: 1.0, resident_bytes: None };
        let after = Usage { at: Mono(10_000_000_000), cpu_s: 6.0, resident_bytes: None };
        assert!((cpu_ms_per_call_s(&before, &after, 500) - 1.0).abs() < 1e-9);
    }
}
