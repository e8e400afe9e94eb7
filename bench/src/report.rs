//! The reports: their JSON (its keys are outside names, fixed) and the table for people.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::distribution::{Distribution, Summary, round};
use crate::emodel;
use crate::generator::Measured;
use crate::host;
use crate::observe::Observed;
use crate::stream::StreamAccount;
use crate::timer::TimerReport;
use crate::verdict::GeneratorReport;

/// Report of `calls`, and of `floor` with its own sections filled.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// What was run.
    pub run: Run,
    /// Calls.
    pub calls: Option<Calls>,
    /// Of calls over a provider's media: sockets that closed before we ended them.
    pub drops: Option<u64>,
    /// INVITE to 200; of calls over a provider's media, webhook to the first sound that comes back.
    pub setup_ms: Option<Summary>,
    /// RTP by sequence number.
    pub rtp: Option<Rtp>,
    /// Interarrival jitter of the streams (RFC 3550).
    pub jitter_ms: Option<Summary>,
    /// Distance of received packets from their 20 ms schedule.
    pub schedule_ms: Option<Schedule>,
    /// The generator.
    pub generator: GeneratorReport,
    /// Round trip of audio.
    pub round_trip_ms: Option<RoundTrip>,
    /// The audio itself, where marks survive.
    pub audio: Option<Audio>,
    /// Estimated quality.
    pub mos: Option<Mos>,
    /// The engine's own figures; of `bridge`, of whoever joins.
    pub engine: Option<Engine>,
    /// The control plane's own figures.
    pub control_plane: Option<ControlPlane>,
    /// The agent that the calls talked to (of `calls --agent`).
    pub agent: Option<Agent>,
    /// The floor.
    pub floor: Option<Floor>,
    /// Set-ups (of `setup`).
    pub setup: Option<Setup>,
    /// The target's processes (of `setup` with `--target-pid`).
    pub target: Option<Target>,
    /// Calls that are left alone (of `idle`).
    pub idle: Option<Idle>,
    /// The machine while it was measured.
    pub host: Host,
}

/// What was run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// `calls`, `twilio`, `vonage`, `exotel`, `audiosocket`, `bridge`, `floor`, `setup`, `idle`.
    pub command: String,
    /// The target without its key.
    pub target: String,
    /// Calls at once.
    pub concurrent: u64,
    /// Calls a second.
    pub cps: f64,
    /// Measured seconds.
    pub duration_s: f64,
    /// Seconds before, at full load.
    pub warm_up_s: f64,
    /// `pcmu` or `pcma`.
    pub codec: String,
    /// This program's version.
    pub version: String,
    /// True for a build without optimisation: its own figures are then worth little.
    pub debug_build: bool,
}

/// What an agent of our own saw.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Agent {
    /// Calls that came.
    pub calls: u64,
    /// Frames of sound that it heard.
    pub frames: u64,
    /// Connections that they came by.
    pub connections: u64,
    /// A connection did not keep the protocol.
    pub broken: bool,
    /// From a packet's departure to the arrival of its sound at the agent, of the beginnings of bursts.
    pub hears_ms: Option<Summary>,
    /// From the agent's frame to the arrival of the packet with its beginning, of the same.
    pub answers_ms: Option<Summary>,
}

impl Agent {
    /// What it has seen until now.
    pub fn of(peer: &crate::agent::AgentPeer, (hears, answers): (Distribution, Distribution)) -> Self {
        let (calls, frames, connections) = peer.counters();
        Self {
            calls,
            frames,
            connections,
            broken: peer.is_broken(),
            hears_ms: hears.summary(),
            answers_ms: answers.summary(),
        }
    }
}

/// Calls.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Calls {
    /// INVITEs sent.
    pub attempted: u64,
    /// Answered, with media agreed.
    pub established: u64,
    /// Not established, or ended by the target.
    pub failed: u64,
    /// By cause.
    pub failures: BTreeMap<String, u64>,
}

/// RTP by sequence number, over the whole of all calls.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rtp {
    /// Packets handed to the kernel.
    pub sent: u64,
    /// Different packets received.
    pub received: u64,
    /// Gaps in what the target sent.
    pub lost: u64,
    /// Came again.
    pub duplicated: u64,
    /// Came after a later one.
    pub reordered: u64,
    /// Not RTP of the agreed payload type.
    pub foreign: u64,
    /// Changes of the source within a call.
    pub ssrc_changes: u64,
    /// Calls in which nothing came.
    pub silent_streams: u64,
    /// In the window: packets missing against one a ptime, beyond one at each edge of each stream.
    pub window_missing: u64,
    /// Dropped by the kernel at the target's sockets, where they are on this machine.
    pub target_kernel_drops: u64,
}

/// Distance from the schedule, milliseconds, absolute; see [`crate::schedule`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Schedule {
    /// Half are at most this.
    pub p50: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// The furthest.
    pub max: f64,
    /// A bare timer's, in the same run.
    pub timer_p999: Option<f64>,
    /// What is left of `p999` without the timer's.
    pub p999_less_timer: Option<f64>,
    /// Only those behind their time, 99.9 %.
    pub late_p999: f64,
    /// Only those before their time, 99.9 %.
    pub early_p999: f64,
    /// Packets.
    pub count: u64,
    /// The bare timer.
    pub timer: Option<TimerReport>,
}

/// Round trip of audio.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoundTrip {
    /// The percentiles.
    #[serde(flatten)]
    pub ms: Summary,
    /// `frame` where marks survive, `burst` where only tone bursts do.
    pub by: String,
}

/// The audio in the window, where marks survive.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Audio {
    /// Frames that came back.
    pub returned: u64,
    /// Frames that never did, on either way.
    pub lost: u64,
    /// Frames that the target filled in.
    pub filled: u64,
    /// Frames that came again.
    pub repeated: u64,
}

/// Estimated quality of the calls; see [`crate::emodel`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mos {
    /// Of all.
    pub mean: f64,
    /// The worst.
    pub min: f64,
}

/// The engine's own figures.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Engine {
    /// Processor milliseconds per call-second.
    pub cpu_ms_per_call_s: Option<f64>,
    /// Memory that grew with the calls, octets a call.
    pub memory_bytes_per_call: Option<f64>,
    /// Calls that one core would carry at this price.
    pub calls_a_core: Option<f64>,
    /// Against the floor in the same run.
    pub floor_ratio: Option<f64>,
    /// Of `setup`: processor microseconds a call.
    pub cpu_us_per_call: Option<f64>,
}

/// The control plane's own figures.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ControlPlane {
    /// Processor milliseconds per call-second while calls only talk.
    pub cpu_ms_per_call_s: Option<f64>,
    /// Of `setup`: processor microseconds a call.
    pub cpu_us_per_call: Option<f64>,
}

/// The floor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Floor {
    /// Processor milliseconds per call-second.
    pub cpu_ms_per_call_s: f64,
    /// Each measurement, when there was more than one (before and after the calls).
    pub runs: Vec<f64>,
    /// Calls that one core would carry at this price.
    pub calls_a_core: f64,
    /// The engine against it, in the same run.
    pub engine_ratio: Option<f64>,
}

/// Set-ups.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Setup {
    /// INVITEs sent.
    pub attempted: u64,
    /// Not answered, or not ended well.
    pub failed: u64,
    /// By cause.
    pub failures: BTreeMap<String, u64>,
    /// Completed a second.
    pub per_second: f64,
    /// Our own retransmissions: the network's or the target's slowness.
    pub retransmits: u64,
    /// False when the engine was left out.
    pub media: bool,
}

/// The target's processes, as the kernel counts them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Target {
    /// How many.
    pub processes: u64,
    /// Processor microseconds a call.
    pub cpu_us_per_call: f64,
    /// Resident memory before the first call, octets.
    pub resident_bytes_before: f64,
    /// After the last.
    pub resident_bytes_after: f64,
    /// After each tenth of the calls.
    pub resident_bytes: Vec<f64>,
    /// Growth over the second half of the calls, octets a call.
    pub resident_bytes_per_call: f64,
}

/// Calls that are left alone.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Idle {
    /// Calls at the end.
    pub held: u64,
    /// Not answered, or ended by the target.
    pub failed: u64,
    /// By cause.
    pub failures: BTreeMap<String, u64>,
    /// Resident memory that one takes, octets: the slope through the readings.
    pub bytes_per_call: f64,
    /// Before the first call.
    pub resident_bytes_before: f64,
    /// After all were hung up, and a pause.
    pub resident_bytes_after: f64,
    /// With a quarter, half, three quarters and all of them.
    pub readings: Vec<IdleReading>,
}

/// Memory with so many calls.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct IdleReading {
    /// Calls.
    pub calls: u64,
    /// Resident memory.
    pub resident_bytes: f64,
}

/// The machine while it was measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Host {
    /// In general words.
    pub machine: String,
    /// Time that the hypervisor took, percent.
    pub steal_percent: f64,
    /// Work of everything but the bench and what was measured, percent of one core. Needs the target's figures; without
    /// them the target is in it.
    pub others_cpu_percent: f64,
}

/// Work of others above which the window is not worth much, percent of one core.
pub const OTHERS_WARNING_PERCENT: f64 = 10.0;

/// A share of stolen time above which the window is not worth much, percent.
pub const STEAL_WARNING_PERCENT: f64 = 1.0;

impl Host {
    /// From an observation, in which what was measured used so much of a core.
    pub fn of(observed: &Observed, measured_cpu_percent: f64) -> Self {
        Self {
            machine: host::machine(),
            steal_percent: round(observed.steal_percent),
            others_cpu_percent: round((observed.others_cpu_percent - measured_cpu_percent).max(0.0)),
        }
    }
}

impl Report {
    /// Fills the sections that come from the media.
    pub fn fill_media(&mut self, measured: &Measured, observed: &Observed, core: usize) {
        let mut all = StreamAccount::default();
        for stream in &measured.streams {
            all.add(stream);
        }
        let talked = measured.streams.iter().filter(|stream| stream.sent > 0);
        self.rtp = Some(Rtp {
            sent: all.sent,
            received: all.sequence.received,
            lost: all.sequence.lost,
            duplicated: all.sequence.duplicated,
            reordered: all.sequence.reordered,
            foreign: all.foreign,
            ssrc_changes: all.ssrc_changes,
            silent_streams: talked.clone().map(|stream| stream.silent_streams).sum(),
            window_missing: talked.clone().map(StreamAccount::window_missing).sum(),
            target_kernel_drops: observed.target_drops,
        });
        self.jitter_ms = measured.timings.jitter.summary();
        self.schedule_ms = schedule(measured, observed);
        self.round_trip_ms = round_trip(&measured.timings.round_trip, &measured.timings.burst_round_trip);
        self.audio = (all.marked > 0).then_some(Audio {
            returned: all.marked,
            lost: all.audio_lost,
            filled: all.filled,
            repeated: all.repeated,
        });
        let scores: Vec<f64> = talked.filter_map(mos_of).collect();
        self.mos = (!scores.is_empty()).then(|| Mos {
            mean: round(scores.iter().sum::<f64>() / scores.len() as f64),
            min: round(scores.iter().copied().fold(f64::INFINITY, f64::min)),
        });
        self.generator = GeneratorReport::judge(measured, observed, core);
    }

    /// Takes away everything that a limited generator must not claim.
    pub fn withhold(&mut self) {
        *self = Self {
            run: std::mem::take(&mut self.run),
            generator: std::mem::take(&mut self.generator),
            host: std::mem::take(&mut self.host),
            calls: self.calls.take(),
            ..Self::default()
        };
    }
}

fn schedule(measured: &Measured, observed: &Observed) -> Option<Schedule> {
    let deviations = &measured.timings.deviations;
    let all = deviations.both.summary()?;
    let timer_p999 = observed.timer.as_ref().map(|timer| timer.deviation_ms.p999);
    Some(Schedule {
        p50: all.p50,
        p99: all.p99,
        p999: all.p999,
        max: all.max,
        timer_p999,
        p999_less_timer: timer_p999.map(|timer| round((all.p999 - timer).max(0.0))),
        late_p999: deviations.late.percentile_ms(99.9),
        early_p999: deviations.early.percentile_ms(99.9),
        count: all.count,
        timer: observed.timer.clone(),
    })
}

fn round_trip(frames: &Distribution, bursts: &Distribution) -> Option<RoundTrip> {
    let by = |name: &str, ms| RoundTrip { ms, by: name.into() };
    frames.summary().map(|ms| by("frame", ms)).or_else(|| bursts.summary().map(|ms| by("burst", ms)))
}

/// MOS of a stream that was heard; a stream whose delay could not be measured counts as one without delay in the network.
fn mos_of(stream: &StreamAccount) -> Option<f64> {
    (stream.sequence.received > 0).then(|| {
        let delay_ms = emodel::mouth_to_ear_ms(stream.mean_round_trip_ms().unwrap_or(0.0));
        emodel::mos_g711(delay_ms, stream.missed_percent())
    })
}
