//! What the control plane counts, as Prometheus text.
//!
//! Counters are plain atomics, written by the drivers and read by a scrape. Labels come from closed lists (states,
//! causes), so the number of series is bounded.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::call::state::State;
use crate::media::leases::Counts;
use crate::sip::guard::SharedGuard;
use crate::sip::{CONNECTED, NetCounters, SharedCounters};
use crate::store::contexts::Contexts;
use crate::store::contexts::spool::Spool;
use crate::store::writer::Writer;
use crate::trunk::guard::Why;

/// Upper bounds of the set-up histogram, INVITE to 200, in seconds.
const SETUP_BUCKETS_S: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0];
/// Ticks a second of the CPU times in /proc: fixed in the kernel's interface to programs.
const PROC_TICKS_PER_S: f64 = 100.0;

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    calls: Mutex<HashMap<State, usize>>,
    outcomes: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    /// By reason and by the rule that refused.
    refusals: Mutex<BTreeMap<(&'static str, String), u64>>,
    /// By trunk: its calls that were admitted, and those that were refused.
    trunks: Mutex<BTreeMap<Arc<str>, [u64; 2]>>,
    /// By provider and what became of them.
    webhooks: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    setup_counts: [AtomicU64; SETUP_BUCKETS_S.len() + 1],
    setup_sum_us: AtomicU64,
    engines: AtomicUsize,
    draining: AtomicBool,
}

impl Metrics {
    /// How many calls are in each state.
    pub fn set_calls(&self, counts: &HashMap<State, usize>) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone_from(counts);
    }

    /// Engines that take calls.
    pub fn set_engines(&self, available: usize) {
        self.engines.store(available, Ordering::Relaxed);
    }

    /// This node takes no more calls.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Whether new calls would be taken.
    pub fn is_ready(&self) -> bool {
        self.engines.load(Ordering::Relaxed) > 0 && !self.draining.load(Ordering::Relaxed)
    }

    /// Whether this node goes down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Live calls, as of the last second.
    pub fn live_calls(&self) -> usize {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// A call is over.
    pub fn count_outcome(&self, state: &'static str, reason: &'static str) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        *outcomes.entry((state, reason)).or_default() += 1;
    }

    /// A call was refused. Rules are words of ours, so there are few.
    pub fn count_refusal(&self, reason: &'static str, rule: &str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry((reason, rule.to_owned())).or_default() += 1;
    }

    /// A telephony provider has asked, or told, something. Both are words of ours, so there are few.
    pub fn count_webhook(&self, provider: &'static str, outcome: &'static str) {
        let mut webhooks = self.webhooks.lock().unwrap_or_else(PoisonError::into_inner);
        *webhooks.entry((provider, outcome)).or_default() += 1;
    }

    /// A trunk has offered a call. Trunks are those of the configuration.
    pub fn count_trunk(&self, trunk: &Arc<str>, call: TrunkCall) {
        let mut trunks = self.trunks.lock().unwrap_or_else(PoisonError::into_inner);
        trunks.entry(trunk.clone()).or_default()[call as usize] += 1;
    }

    /// A call was answered.
    pub fn count_setup(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket =
            SETUP_BUCKETS_S.iter().position(|bound| seconds <= *bound).unwrap_or(SETUP_BUCKETS_S.len());
        self.setup_counts[bucket].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.setup_sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// The text of a scrape.
    pub fn render(
        &self,
        sip: &SharedCounters,
        guard: &SharedGuard,
        writer: &Writer,
        contexts: &Spool<Contexts>,
    ) -> String {
        let mut out = Text(String::with_capacity(4_096));
        out.family("tandem_calls", "gauge", "Live calls by state.");
        {
            let counts = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            for state in State::ALL.iter().filter(|state| !state.is_terminal()) {
                let count = counts.get(state).copied().unwrap_or_default();
                out.sample(&format!("tandem_calls{{state=\"{}\"}}", state.word()), count);
            }
        }
        out.family("tandem_calls_total", "counter", "Calls that are over, by final state and reason.");
        for ((state, reason), count) in &*self.outcomes.lock().unwrap_or_else(PoisonError::into_inner) {
            out.sample(&format!("tandem_calls_total{{state=\"{state}\",reason=\"{reason}\"}}"), count);
        }
        out.family("tandem_calls_refused_total", "counter", "Refused calls by reason and rule.");
        for ((reason, rule), count) in &*self.refusals.lock().unwrap_or_else(PoisonError::into_inner) {
            let labels = format!("reason=\"{reason}\",rule=\"{rule}\"");
            out.sample(&format!("tandem_calls_refused_total{{{labels}}}"), count);
        }
        out.family("tandem_webhooks_total", "counter", "Webhooks of telephony providers by outcome.");
        for ((provider, outcome), count) in &*self.webhooks.lock().unwrap_or_else(PoisonError::into_inner) {
            out.sample(
                &format!("tandem_webhooks_total{{provider=\"{provider}\",outcome=\"{outcome}\"}}"),
                count,
            );
        }
        self.render_trunks(&mut out);
        self.render_setup(&mut out);
        out.single(
            "tandem_engines_available",
            "gauge",
            "Media engines that take calls.",
            self.engines.load(Ordering::Relaxed),
        );
        out.single(
            "tandem_draining",
            "gauge",
            "1 while no new calls are taken.",
            u8::from(self.is_draining()),
        );
        out.single(
            "tandem_records_pending",
            "gauge",
            "Records of calls not yet in the database.",
            writer.pending(),
        );
        render_contexts(&mut out, contexts);
        render_sip(&mut out, sip);
        render_guard(&mut out, guard);
        render_net(&mut out, sip.net());
        render_process(&mut out);
        out.0
    }

    fn render_trunks(&self, out: &mut Text) {
        out.family("tandem_trunk_calls_total", "counter", "Calls that a trunk has offered us, by outcome.");
        for (trunk, counts) in &*self.trunks.lock().unwrap_or_else(PoisonError::into_inner) {
            for (call, count) in [TrunkCall::Accepted, TrunkCall::Refused].into_iter().zip(counts) {
                let labels = format!("trunk=\"{trunk}\",outcome=\"{}\"", call.word());
                out.sample(&format!("tandem_trunk_calls_total{{{labels}}}"), count);
            }
        }
    }

    fn render_setup(&self, out: &mut Text) {
        out.family("tandem_call_setup_seconds", "histogram", "INVITE received to 200 sent.");
        let mut total = 0;
        for (bound, count) in SETUP_BUCKETS_S.iter().zip(&self.setup_counts) {
            total += count.load(Ordering::Relaxed);
            out.sample(&format!("tandem_call_setup_seconds_bucket{{le=\"{bound}\"}}"), total);
        }
        total += self.setup_counts[SETUP_BUCKETS_S.len()].load(Ordering::Relaxed);
        out.sample("tandem_call_setup_seconds_bucket{le=\"+Inf\"}", total);
        let sum_us = self.setup_sum_us.load(Ordering::Relaxed);
        out.sample("tandem_call_setup_seconds_sum", sum_us as f64 / 1e6);
        out.sample("tandem_call_setup_seconds_count", total);
    }
}

/// What became of a call that a trunk has offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrunkCall {
    /// It has passed the four steps.
    Accepted,
    /// One of the four steps, or a limit beside them, has refused it.
    Refused,
}

impl TrunkCall {
    const fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
        }
    }
}

fn render_guard(out: &mut Text, guard: &SharedGuard) {
    let counters = guard.counters();
    out.family("tandem_sip_dropped_total", "counter", "Requests dropped in silence, by reason.");
    for (why, count) in Why::ALL.iter().zip(counters.dropped) {
        out.sample(&format!("tandem_sip_dropped_total{{reason=\"{}\"}}", why.word()), count);
    }
    let (good, strangers) = guard.sources();
    out.family("tandem_sip_sources", "gauge", "Sources that are remembered.");
    out.sample("tandem_sip_sources{kind=\"good\"}", good);
    out.sample("tandem_sip_sources{kind=\"stranger\"}", strangers);
    out.single("tandem_sip_silences_total", "counter", "Silences that began.", counters.silences);
}

fn render_contexts(out: &mut Text, contexts: &Spool<Contexts>) {
    out.single(
        "tandem_contexts_pending",
        "gauge",
        "Contexts of calls not yet in their store.",
        contexts.pending(),
    );
    out.single(
        "tandem_contexts_failures_total",
        "counter",
        "Contexts that their store did not take at once: it was away or too slow.",
        contexts.failures(),
    );
    out.single(
        "tandem_contexts_restored_total",
        "counter",
        "Contexts of live calls that their store had taken and lost, and that were written again.",
        contexts.restored(),
    );
}

fn render_sip(out: &mut Text, sip: &SharedCounters) {
    let sip = sip.read();
    for (name, help, value) in [
        ("requests_in", "SIP requests read.", sip.requests_in),
        ("responses_in", "SIP responses read.", sip.responses_in),
        ("messages_out", "SIP messages sent, retransmissions included.", sip.messages_out),
        ("retransmits_out", "SIP messages sent again.", sip.retransmits_out),
        ("retransmits_in", "SIP messages that peers sent again.", sip.retransmits_in),
        ("bad_requests", "Requests that do not parse, answered with 400.", sip.bad_requests),
        ("garbage", "Bytes that are no SIP, dropped in silence.", sip.garbage),
        ("stray_responses", "Responses to nothing of ours.", sip.stray_responses),
        ("stray_acks", "ACKs to nothing of ours.", sip.stray_acks),
        ("refused", "Requests that the endpoint refused by itself.", sip.refused),
        ("refused_full", "Requests refused because a table was full.", sip.refused_full),
        ("transactions_failed", "Transactions without an answer.", sip.transactions_failed),
    ] {
        out.single(&format!("tandem_sip_{name}_total"), "counter", help, value);
    }
}

fn render_net(out: &mut Text, net: &NetCounters) {
    for (name, kind, help, values) in [
        ("connections", "gauge", "Open SIP connections.", &net.open),
        ("connections_accepted_total", "counter", "SIP connections of peers.", &net.accepted),
        ("connections_opened_total", "counter", "SIP connections of ours.", &net.opened),
        (
            "handshakes_failed_total",
            "counter",
            "Handshakes of peers that came to nothing.",
            &net.handshakes_failed,
        ),
        (
            "connects_failed_total",
            "counter",
            "SIP connections that could not be opened.",
            &net.connects_failed,
        ),
    ] {
        out.family(&format!("tandem_sip_{name}"), kind, help);
        for (transport, value) in CONNECTED.iter().zip(values) {
            let transport = transport.token().to_ascii_lowercase();
            let value = value.load(Ordering::Relaxed);
            out.sample(&format!("tandem_sip_{name}{{transport=\"{transport}\"}}"), value);
        }
    }
    out.family(
        "tandem_sip_connections_refused_total",
        "counter",
        "SIP connections closed at once, by limit.",
    );
    for (limit, value) in [("all", &net.refused_full), ("source", &net.refused_source)] {
        let value = value.load(Ordering::Relaxed);
        out.sample(&format!("tandem_sip_connections_refused_total{{limit=\"{limit}\"}}"), value);
    }
    for (name, help, value) in [
        ("websocket_errors", "WebSockets closed for what they sent.", &net.websocket_errors),
        ("stun_answered", "STUN keep-alives answered.", &net.stun_answered),
        ("stun_malformed", "STUN messages dropped in silence.", &net.stun_malformed),
        ("unresolved", "Destinations that DNS has no address for.", &net.unresolved),
        ("failovers", "Requests of ours that went on to their next target.", &net.failovers),
    ] {
        let value = value.load(Ordering::Relaxed);
        out.single(&format!("tandem_sip_{name}_total"), "counter", help, value);
    }
}

fn render_process(out: &mut Text) {
    if let Some(seconds) = process_cpu_seconds() {
        out.single("process_cpu_seconds_total", "counter", "User and system time.", seconds);
    }
    if let Some(octets) = process_resident_octets() {
        out.single("process_resident_memory_bytes", "gauge", "Resident memory.", octets);
    }
}

/// User and system time of this process; `None` where there is no /proc.
fn process_cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold spaces; user and system time are the 12th and 13th field after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / PROC_TICKS_PER_S)
}

fn process_resident_octets() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1_024)
}

struct Text(String);

/// What leases of RTP ports have met.
pub fn render_ports(counts: &Counts) -> String {
    let mut out = Text(String::new());
    let each = [
        ("tandem_port_leases_dry_total", "Sessions refused because every RTP port was leased.", &counts.dry),
        ("tandem_port_leases_busy_total", "Leased RTP ports that the engine could not open.", &counts.busy),
        (
            "tandem_port_leases_missing_total",
            "Sessions whose port the engine chose: no lease was had.",
            &counts.unleased,
        ),
    ];
    for (name, help, count) in each {
        out.single(name, "counter", help, count.load(Ordering::Relaxed));
    }
    out.0
}

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_is_cumulative_and_ends_with_all() {
        let metrics = Metrics::default();
        metrics.count_setup(Duration::from_micros(1_500));
        metrics.count_setup(Duration::from_millis(30));
        metrics.count_setup(Duration::from_secs(60));
        let mut out = Text(String::new());
        metrics.render_setup(&mut out);
        for line in [
            "tandem_call_setup_seconds_bucket{le=\"0.001\"} 0",
            "tandem_call_setup_seconds_bucket{le=\"0.002\"} 1",
            "tandem_call_setup_seconds_bucket{le=\"0.05\"} 2",
            "tandem_call_setup_seconds_bucket{le=\"10\"} 2",
            "tandem_call_setup_seconds_bucket{le=\"+Inf\"} 3",
            "tandem_call_setup_seconds_count 3",
        ] {
            assert!(out.0.lines().any(|l| l == line), "{line} is not in {}", out.0);
        }
    }

    #[test]
    fn connections_are_counted_by_transport() {
        let (mut out, net) = (Text(String::new()), NetCounters::default());
        net.accepted[1].store(3, Ordering::Relaxed);
        render_net(&mut out, &net);
        for line in [
            "tandem_sip_connections_accepted_total{transport=\"tls\"} 3",
            "tandem_sip_connections{transport=\"wss\"} 0",
            "tandem_sip_connections_refused_total{limit=\"source\"} 0",
        ] {
            assert!(out.0.lines().any(|l| l == line), "{line} is not in {}", out.0);
        }
    }

    #[test]
    fn process_figures_are_plausible() {
        assert!(process_cpu_seconds().is_some_and(|seconds| (0.0..1e6).contains(&seconds)));
        assert!(process_resident_octets().is_some_and(|octets| octets > 1_000_000));
    }

    #[test]
    fn ready_means_an_engine_and_no_drain() {
        let metrics = Metrics::default();
        assert!(!metrics.is_ready());
        metrics.set_engines(1);
        assert!(metrics.is_ready());
        metrics.set_draining(true);
        assert!(!metrics.is_ready());
    }
}
