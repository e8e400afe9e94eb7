//! Counters: plain numbers of one writer, summed when somebody reads them.
//!
//! A [`Counter`] is an atomic that only its own worker writes, with a load and a store instead of a locked add, so it
//! costs what a plain number costs; the reader may see it a moment old. Workers publish every [`PUBLISH_EVERY`].

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often a worker publishes.
pub const PUBLISH_EVERY: Duration = Duration::from_millis(100);

/// A number with one writer and any readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// For the one writer.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// For anybody.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts itself for as long as it lives.
#[derive(Debug)]
pub struct Counted(Arc<AtomicU64>);

impl Counted {
    /// One more.
    pub fn new(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Buckets of a histogram beside the last, which has no bound.
const BUCKETS: usize = 11;

/// Bounds of the time of a turn, in nanoseconds: 10 µs to 20 ms, of which a packet is late from a millisecond on.
pub const TURN_BOUNDS: [u64; BUCKETS] = [
    10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
    20_000_000,
];

/// Bounds of the completions of a turn; a turn handles some 256 at most.
pub const BATCH_BOUNDS: [u64; BUCKETS] = [0, 1, 2, 4, 8, 16, 32, 64, 128, 192, 256];

/// How often a value fell between two bounds, of one writer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Histogram {
    counts: [u64; BUCKETS + 1],
    sum: u64,
}

impl Histogram {
    /// Counts a value.
    pub fn observe(&mut self, value: u64, bounds: &[u64; BUCKETS]) {
        let bucket = bounds.iter().position(|bound| value <= *bound).unwrap_or(BUCKETS);
        self.counts[bucket] += 1;
        self.sum += value;
    }
}

/// The same, published.
#[derive(Debug, Default)]
pub struct PublishedHistogram {
    counts: [Counter; BUCKETS + 1],
    sum: Counter,
}

impl PublishedHistogram {
    fn publish(&self, histogram: &Histogram) {
        for (counter, count) in self.counts.iter().zip(histogram.counts) {
            counter.set(count);
        }
        self.sum.set(histogram.sum);
    }

    fn write(&self, out: &mut String, name: &str, core: usize, bounds: &[u64; BUCKETS], unit: f64) {
        let mut count = 0;
        for (counter, bound) in self.counts.iter().zip(bounds) {
            count += counter.get();
            let le = *bound as f64 / unit;
            let _ = writeln!(out, "{name}_bucket{{core=\"{core}\",le=\"{le}\"}} {count}");
        }
        count += self.counts[BUCKETS].get();
        let sum = self.sum.get() as f64 / unit;
        let _ = writeln!(out, "{name}_bucket{{core=\"{core}\",le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{core=\"{core}\"}} {sum}\n{name}_count{{core=\"{core}\"}} {count}");
    }
}

fn write_histograms(out: &mut String, cores: &[(usize, &CoreMetrics)]) {
    let name = "tandem_engine_turn_seconds";
    let _ = writeln!(out, "# HELP {name} Time spent in a turn, waiting excluded.\n# TYPE {name} histogram");
    for (core, metrics) in cores {
        metrics.turn_time.write(out, name, *core, &TURN_BOUNDS, 1e9);
    }
    let name = "tandem_engine_batch";
    let _ = writeln!(out, "# HELP {name} Completions handled in a turn.\n# TYPE {name} histogram");
    for (core, metrics) in cores {
        metrics.batch.write(out, name, *core, &BATCH_BOUNDS, 1.0);
    }
}

macro_rules! core_metrics {
    ($($(#[doc = $doc:literal])* $name:ident: $kind:literal,)*) => {
        /// What one worker counts.
        #[derive(Debug, Clone, Copy, Default)]
        pub struct Tally {
            $($(#[doc = $doc])* pub $name: u64,)*
            /// Time of the turns, in nanoseconds.
            pub turn_time: Histogram,
            /// Completions of the turns.
            pub batch: Histogram,
        }

        /// The same, published.
        #[derive(Debug, Default)]
        pub struct CoreMetrics {
            $($(#[doc = $doc])* pub $name: Counter,)*
            /// Time of the turns, in nanoseconds.
            pub turn_time: PublishedHistogram,
            /// Completions of the turns.
            pub batch: PublishedHistogram,
        }

        impl CoreMetrics {
            /// For the worker.
            pub fn publish(&self, tally: &Tally) {
                $(self.$name.set(tally.$name);)*
                self.turn_time.publish(&tally.turn_time);
                self.batch.publish(&tally.batch);
            }
        }

        fn write_cores(out: &mut String, cores: &[(usize, &CoreMetrics)]) {
            $(
                let help = concat!($($doc),*).trim();
                let name = concat!("tandem_engine_", stringify!($name));
                let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", $kind);
                for (core, metrics) in cores {
                    let _ = writeln!(out, "{name}{{core=\"{core}\"}} {}", metrics.$name.get());
                }
            )*
        }
    };
}

core_metrics! {
    /// Sessions alive.
    sessions: "gauge",
    /// Sessions opened since the start.
    sessions_opened_total: "counter",
    /// Sessions refused since the start.
    sessions_refused_total: "counter",
    /// Sessions that the engine ended by itself.
    sessions_ended_total: "counter",
    /// RTP ports in use.
    ports_open: "gauge",
    /// RTP ports free to be taken.
    ports_free: "gauge",
    /// RTP ports that another program has.
    ports_quarantined: "gauge",
    /// RTP packets sent.
    rtp_sent_total: "counter",
    /// Datagrams received on RTP ports.
    rtp_received_total: "counter",
    /// Reports sent from RTCP ports, and leaves taken.
    rtcp_sent_total: "counter",
    /// Datagrams received on RTCP ports.
    rtcp_received_total: "counter",
    /// Octets received from agents.
    agent_received_octets_total: "counter",
    /// Octets sent to agents.
    agent_sent_octets_total: "counter",
    /// Turns of the loop.
    turns_total: "counter",
    /// Nanoseconds spent in turns, waiting excluded.
    busy_nanoseconds_total: "counter",
    /// The longest turn of the last tenth of a second, in nanoseconds.
    turn_nanoseconds_max: "gauge",
    /// Completions handled, over all turns.
    completions_total: "counter",
    /// The most completions in one turn of the last tenth of a second.
    batch_max: "gauge",
    /// Turns whose playout was more than a millisecond late.
    late_ticks_total: "counter",
    /// The latest playout of the last tenth of a second, in nanoseconds.
    late_nanoseconds_max: "gauge",
    /// Events that found their queue to the control thread full.
    events_lost_total: "counter",
    /// Events of one session above what a session may report in a second.
    events_refused_total: "counter",
    /// Marks that found too many waiting, and were answered at once.
    agent_marks_refused_total: "counter",
    /// Messages of agents that were none of their dialect.
    agent_malformed_total: "counter",
    /// Steps of TLS and DTLS handshakes.
    handshake_steps_total: "counter",
    /// Steps of TLS and DTLS handshakes that waited for more than a turn, because others were before them.
    handshakes_deferred_total: "counter",
    /// Datagrams of DTLS handshakes that found too many waiting, and were dropped.
    handshakes_overflowed_total: "counter",
    /// Messages of providers that were none of their dialect.
    provider_malformed_total: "counter",
    /// Agents' sound that a provider did not read in time, in milliseconds.
    provider_dropped_milliseconds_total: "counter",
    /// Octets received from providers.
    provider_received_octets_total: "counter",
    /// Octets sent to providers.
    provider_sent_octets_total: "counter",
    /// AudioSocket calls whose sound is mu-law under the label of linear sound.
    provider_mislabelled_total: "counter",
    /// Links to built-in voice agents that carry calls.
    links: "gauge",
    /// Links that broke, or could not be had.
    links_lost_total: "counter",
    /// System calls that submitted or waited.
    ring_enters_total: "counter",
    /// Operations given to the kernel.
    ring_operations_total: "counter",
    /// Receives armed again after they had ended.
    ring_rearmed_total: "counter",
    /// Times the receive buffers ran dry.
    ring_buffers_dry_total: "counter",
    /// Receive buffers of the ring.
    ring_buffers: "gauge",
    /// Receive buffers out of the kernel's hands, as of the last tenth of a second.
    ring_buffers_out: "gauge",
    /// Most receive buffers ever out of the kernel's hands.
    ring_buffers_out_max: "gauge",
    /// Completions that the kernel dropped: a fault if it is not 0.
    ring_completions_lost_total: "counter",
    /// Datagrams that did not leave.
    ring_send_failed_total: "counter",
    /// Datagrams too large for a buffer.
    ring_truncated_total: "counter",
    /// Sockets in the table.
    ring_sockets: "gauge",
}

/// What a scrape needs beside the cores.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    /// CPU time of the process.
    pub cpu: Duration,
    /// Resident memory.
    pub resident_octets: u64,
    /// Sessions that may be carried.
    pub sessions_max: u64,
    /// Refuses new sessions.
    pub draining: bool,
    /// Subscribers of the event stream.
    pub controllers: u64,
}

/// The page that Prometheus reads.
pub fn render(cores: &[(usize, &CoreMetrics)], process: &Process) -> String {
    let mut out = String::with_capacity(8 * 1024);
    write_cores(&mut out, cores);
    write_histograms(&mut out, cores);
    let rows = [
        (
            "process_cpu_seconds_total",
            "counter",
            "CPU time of the process, user and system.",
            process.cpu.as_secs_f64(),
        ),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory of the process.",
            process.resident_octets as f64,
        ),
        (
            "tandem_engine_sessions_limit",
            "gauge",
            "Sessions that may be carried.",
            process.sessions_max as f64,
        ),
        (
            "tandem_engine_draining",
            "gauge",
            "1 while new sessions are refused.",
            f64::from(u8::from(process.draining)),
        ),
        (
            "tandem_engine_controllers",
            "gauge",
            "Subscribers of the event stream.",
            process.controllers as f64,
        ),
    ];
    for (name, kind, help, value) in rows {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    out
}

/// Resident memory of this process, as the kernel counts it; 0 where it does not say.
pub fn resident_octets() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_has_every_core_and_the_process() {
        let metrics = CoreMetrics::default();
        metrics.publish(&Tally { sessions: 7, ..Tally::default() });
        let process = Process {
            cpu: Duration::from_millis(1_500),
            resident_octets: resident_octets(),
            sessions_max: 10,
            draining: true,
            controllers: 1,
        };
        let page = render(&[(3, &metrics)], &process);
        assert!(page.contains("tandem_engine_sessions{core=\"3\"} 7\n"), "{page}");
        assert!(page.contains("\nprocess_cpu_seconds_total 1.5\n"));
        assert!(page.contains("# TYPE process_resident_memory_bytes gauge"));
        assert!(process.resident_octets > 100_000);
    }

    #[test]
    fn histograms_count_what_is_at_most_each_bound() {
        let mut tally = Tally::default();
        for took in [1_000, 10_000, 10_001, 3_000_000, 90_000_000] {
            tally.turn_time.observe(took, &TURN_BOUNDS);
        }
        tally.batch.observe(0, &BATCH_BOUNDS);
        tally.batch.observe(300, &BATCH_BOUNDS);
        let metrics = CoreMetrics::default();
        metrics.publish(&tally);
        let mut page = String::new();
        write_histograms(&mut page, &[(1, &metrics)]);
        for line in [
            "tandem_engine_turn_seconds_bucket{core=\"1\",le=\"0.00001\"} 2",
            "tandem_engine_turn_seconds_bucket{core=\"1\",le=\"0.005\"} 4",
            "tandem_engine_turn_seconds_bucket{core=\"1\",le=\"+Inf\"} 5",
            "tandem_engine_turn_seconds_count{core=\"1\"} 5",
            "tandem_engine_batch_bucket{core=\"1\",le=\"0\"} 1",
            "tandem_engine_batch_sum{core=\"1\"} 300",
        ] {
            assert!(page.lines().any(|told| told == line), "{line} in {page}");
        }
    }
}
