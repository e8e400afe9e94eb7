//! The command `bridge`: two RTP legs that are joined and transcoded, PCMU on one side and PCMA on the other, by the engine
//! or by rtpengine, under the same packets and with the same checks.
//!
//! ```text
//!   line 2n   ◀── PCMU, 20 ms both ways ──▶ ┌────────┐ ◀── PCMA, 20 ms both ways ──▶ line 2n + 1
//!                                           │ target │
//!             each hears the other's marks  └────────┘
//! ```
//! No SIP: the engine is told over its gRPC and rtpengine over ng, so that media is all that is compared. A call is a bridge:
//! two legs. With `--floor`, half a floor run of as many legs goes before and half after.
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::clock::{Mono, NANOS_PER_MS};
use crate::distribution::{Distribution, round};
use crate::floor;
use crate::generator::{Generator, Line};
use crate::host;
use crate::marker::Law;
use crate::observe::{Observed, Usage, cpu_ms_per_call_s, cpu_percent};
use crate::plan::{Interrupted, Plan};
use crate::processes::Processes;
use crate::progress::Progress;
use crate::report::{Calls, Engine as EngineFigures, Floor, Host, Report};
use crate::scrape::MetricsUrl;
use crate::verdict::GeneratorReport;

mod bencode;
mod engine;
mod rtpengine;

use engine::Engine;
use rtpengine::Rtpengine;

/// Codecs of the two legs.
const LAWS: [Law; 2] = [Law::Pcmu, Law::Pcma];

/// Legs of a bridge.
const LEGS: usize = 2;

/// Who joins the legs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joiner {
    /// An engine, at the URL of its gRPC.
    Engine(String),
    /// rtpengine, at the address of its ng protocol.
    Rtpengine(SocketAddr),
}

/// Where the target's processor time is read.
#[derive(Debug, Clone)]
pub enum Meter {
    /// From its own metrics.
    Metrics(MetricsUrl),
    /// From the kernel.
    Processes(Processes),
}

impl Meter {
    /// Processor time and memory now.
    pub(crate) fn read(&self) -> anyhow::Result<Usage> {
        match self {
            Self::Metrics(url) => Ok(url.read()?),
            Self::Processes(processes) => processes.usage().context("the target's process"),
        }
    }
}

/// What is to be run.
#[derive(Debug, Clone)]
pub struct BridgePlan {
    /// Bridges, time, cores.
    pub plan: Plan,
    /// Who joins.
    pub joiner: Joiner,
    /// Our own address, on which the target reaches us.
    pub address: IpAddr,
    /// New bridges a second.
    pub cps: f64,
    /// Where its processor time is read.
    pub meter: Option<Meter>,
    /// Measure the floor as well.
    pub floor: bool,
}

/// A connection to whoever joins.
#[allow(clippy::large_enum_variant)] // one a run
enum Target {
    Engine(Engine),
    Rtpengine(Rtpengine),
}

impl Target {
    fn connect(joiner: &Joiner) -> anyhow::Result<Self> {
        Ok(match joiner {
            Joiner::Engine(url) => Self::Engine(Engine::connect(url)?),
            Joiner::Rtpengine(address) => Self::Rtpengine(Rtpengine::connect(*address)?),
        })
    }

    fn open(&mut self, number: usize, callers: [SocketAddr; 2]) -> anyhow::Result<[SocketAddr; 2]> {
        match self {
            Self::Engine(engine) => engine.open(number, callers, LAWS),
            Self::Rtpengine(rtpengine) => rtpengine.open(number, callers, LAWS),
        }
    }

    fn close(&mut self, number: usize) -> anyhow::Result<()> {
        match self {
            Self::Engine(engine) => engine.close(number),
            Self::Rtpengine(rtpengine) => rtpengine.close(number),
        }
    }
}

/// The run's parts while it runs.
struct Bridges {
    target: Target,
    generator: Generator,
    address: IpAddr,
    attempted: u64,
    /// By number, with the target's addresses.
    open: BTreeMap<usize, [SocketAddr; 2]>,
    failures: BTreeMap<String, u64>,
    setup: Distribution,
}

impl Bridges {
    fn open(&mut self, number: usize) {
        let lines = [LEGS * number, LEGS * number + 1];
        let callers = lines.map(|line| SocketAddr::new(self.address, self.generator.ports()[line]));
        let since = Instant::now();
        self.attempted += 1;
        let spoken = self.target.open(number, callers).and_then(|remotes| {
            // Open at the target from here on, whatever comes: it must be closed.
            self.open.insert(number, remotes);
            for (line, remote) in lines.into_iter().zip(remotes) {
                self.generator.speak(line, remote, None)?;
            }
            Ok(())
        });
        match spoken {
            Ok(()) => self.setup.record_ns(since.elapsed().as_nanos() as u64),
            Err(error) => *self.failures.entry(format!("{error:#}")).or_insert(0) += 1,
        }
    }

    /// Opens all, paced.
    fn ramp(&mut self, plan: &BridgePlan) -> anyhow::Result<()> {
        let mut progress = Progress::begin("ramp", plan.plan.calls as u64, plan.plan.quiet);
        let began = Instant::now();
        for number in 0..plan.plan.calls {
            let due = began + Duration::from_secs_f64(number as f64 / plan.cps);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if host::interrupted() {
                return Err(Interrupted.into());
            }
            self.open(number);
            progress.at(number as u64 + 1, || "bridges".into());
        }
        progress.end();
        Ok(())
    }

    /// Closes all; not stopped by an interrupt, which is how it may have begun.
    fn close(&mut self) {
        for (number, _) in std::mem::take(&mut self.open) {
            for line in 0..LEGS {
                self.generator.hush(LEGS * number + line);
            }
            if let Err(error) = self.target.close(number) {
                *self.failures.entry(format!("not closed: {error:#}")).or_insert(0) += 1;
            }
        }
    }

    fn target_ports(&self) -> Vec<u16> {
        self.open.values().flatten().filter(|at| at.ip().is_loopback()).map(SocketAddr::port).collect()
    }
}

/// What was seen in the window.
struct Taken {
    observed: Observed,
    /// Before the first bridge.
    empty: Option<Usage>,
    before: Option<Usage>,
    after: Option<Usage>,
    open: u64,
}

/// Runs the command.
///
/// # Errors
/// When there is nothing to report: no target, no bridge opened, figures asked for and not to be had.
pub fn run(plan: &BridgePlan) -> anyhow::Result<Report> {
    anyhow::ensure!(plan.cps > 0.0, "--cps must be above zero");
    // A leg of ours is a call of the floor's: as many packets.
    let half = Plan { duration: plan.plan.duration / 2, calls: LEGS * plan.plan.calls, ..plan.plan.clone() };
    let (mut floors, mut limits) = (Vec::new(), Vec::new());
    let mut measure_floor = || -> anyhow::Result<()> {
        let run = floor::measure(&half)?;
        let verdict = GeneratorReport::judge(&run.measured, &run.observed, half.cores.generator);
        limits.extend(verdict.reasons.into_iter().map(|reason| format!("in the floor run, {reason}")));
        floors.push(run.cpu_ms_per_call_s * LEGS as f64);
        Ok(())
    };
    // Asked for before anything is started: a wrong address must not cost a run.
    plan.meter.as_ref().map(Meter::read).transpose()?;
    if plan.floor {
        measure_floor()?;
    }
    let mut report = measure_bridges(plan)?;
    if plan.floor {
        measure_floor()?;
        let mut floor = Floor::of(&floors);
        if let Some(engine) = &mut report.engine {
            engine.floor_ratio = engine.cpu_ms_per_call_s.map(|ms| round(ms / floor.cpu_ms_per_call_s));
            floor.engine_ratio = engine.floor_ratio;
        }
        report.floor = Some(floor);
        report.generator.limited |= !limits.is_empty();
        report.generator.reasons.extend(limits);
    }
    Ok(report)
}

fn measure_bridges(plan: &BridgePlan) -> anyhow::Result<Report> {
    let target = Target::connect(&plan.joiner)?;
    let generator = Generator::start(
        Line::bridged(plan.plan.calls, LAWS),
        plan.address,
        plan.plan.cores.generator,
        plan.plan.window_frames(),
        None,
    )?;
    let mut bridges = Bridges {
        target,
        generator,
        address: plan.address,
        attempted: 0,
        open: BTreeMap::new(),
        failures: BTreeMap::new(),
        setup: Distribution::new(),
    };
    let result = measure(plan, &mut bridges);
    // Whatever happened, nothing is left open.
    bridges.close();
    let Taken { observed, empty, before, after, open } = result?;
    plan.plan.settle();
    let measured = bridges.generator.finish()?;

    let name = match &plan.joiner {
        Joiner::Engine(url) => format!("the engine at {url}"),
        Joiner::Rtpengine(address) => format!("rtpengine at {address}"),
    };
    let mut report = Report { run: plan.plan.describe("bridge", &name), ..Report::default() };
    report.run.cps = plan.cps;
    report.run.codec = LAWS.map(Law::name).join(" and ").to_ascii_lowercase();
    report.calls = Some(Calls {
        attempted: bridges.attempted,
        established: open,
        failed: bridges.failures.values().sum(),
        failures: bridges.failures,
    });
    report.setup_ms = bridges.setup.summary();
    report.fill_media(&measured, &observed, plan.plan.cores.generator);
    report.host = Host::of(&observed, cpu_percent(before, after));
    if let (Some(before), Some(after)) = (before, after) {
        let ms = cpu_ms_per_call_s(&before, &after, open);
        let grown = empty.and_then(|empty| Some(after.resident_bytes? - empty.resident_bytes?));
        report.engine = Some(EngineFigures {
            cpu_ms_per_call_s: Some(round(ms)),
            memory_bytes_per_call: grown.map(|bytes| (bytes.max(0.0) / open as f64).round()),
            calls_a_core: Some((1_000.0 / ms.max(f64::MIN_POSITIVE)).round()),
            ..EngineFigures::default()
        });
    }
    Ok(report)
}

fn measure(plan: &BridgePlan, bridges: &mut Bridges) -> anyhow::Result<Taken> {
    let read = || plan.meter.as_ref().map(Meter::read).transpose();
    let empty = read()?;
    bridges.ramp(plan)?;
    let open = bridges.open.len() as u64;
    if open == 0 {
        let causes: Vec<String> =
            bridges.failures.iter().map(|(cause, n)| format!("{n} × {cause}")).collect();
        anyhow::bail!("no bridge was opened: {}", causes.join("; "));
    }
    let window = plan.plan.window_from_now();
    bridges.generator.measure(window);
    let total_ms = (plan.plan.warm_up + plan.plan.duration).as_millis() as u64;
    let mut progress = Progress::begin("talk", total_ms, plan.plan.quiet);
    let began = Mono::now();
    let mut wait = |until: Mono| {
        while Mono::now() < until {
            if host::interrupted() {
                return Err(Interrupted.into());
            }
            anyhow::ensure!(bridges.generator.is_running(), "the generator has stopped");
            let pause_ns = until.signed_since(Mono::now()).clamp(0, 100 * NANOS_PER_MS as i64);
            std::thread::sleep(Duration::from_nanos(pause_ns as u64));
            progress
                .at((Mono::now() - began) / NANOS_PER_MS, || format!("ms, {}", bridges.generator.shared()));
        }
        Ok(())
    };
    wait(window.begin)?;
    let observer = plan.plan.observe()?;
    let before = read()?;
    wait(window.end)?;
    let after = read()?;
    let observed = observer.end(bridges.generator.ports(), &bridges.target_ports());
    progress.end();
    Ok(Taken { observed, empty, before, after, open })
}
