//! The commands: announce and dial at `--cps`, speak, measure, end at `--cps`, report.
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::bridge::Meter;
use crate::clock::{Mono, NANOS_PER_MS};
use crate::distribution::round;
use crate::host;
use crate::observe::{Observed, Usage, cpu_ms_per_call_s, cpu_percent};
use crate::plan::{Interrupted, Plan};
use crate::progress::Progress;
use crate::report::{Calls, ControlPlane, Engine, Host, Report};
use crate::scrape::MetricsUrl;

use super::Transport;
use super::announce::{self, Announced, Announcer, Place};
use super::dial;
use super::generator::{Ready, SocketGenerator};
use super::wire::{Speech, Wire};

/// After the last dial, so long for every call's first sound.
const SOUND_PATIENCE: Duration = Duration::from_secs(2);

/// After the last goodbye, so long for the target to close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Where calls come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A control plane hears of each and says where its media go.
    Announced(Announcer),
    /// These are dialled in turn, as they are; `{id}` in a URL becomes a random UUID.
    Peers(Vec<Place>),
}

/// What is to be run.
#[derive(Debug, Clone)]
pub struct ProviderPlan {
    /// Calls, time, cores.
    pub plan: Plan,
    /// Whose.
    pub transport: Transport,
    /// From where.
    pub source: Source,
    /// New calls, and ended calls, a second.
    pub cps: f64,
    /// Where the target's processor time is read.
    pub meter: Option<Meter>,
    /// The control plane's figures.
    pub control_metrics: Option<MetricsUrl>,
}

impl ProviderPlan {
    fn call(&self, slot: usize) -> Result<Announced, String> {
        match &self.source {
            Source::Announced(announcer) => announcer.announce(slot),
            Source::Peers(places) => {
                let uuid: [u8; 16] = rand::random();
                let place = match &places[slot % places.len()] {
                    Place::WebSocket(url, headers) => {
                        Place::WebSocket(url.replace("{id}", &announce::uuid_text(uuid)), headers.clone())
                    }
                    other => other.clone(),
                };
                let speech = Speech { uuid, ..Speech::default() };
                Ok(Announced { ids: announce::ids(self.transport, slot), place, speech })
            }
        }
    }

    fn target(&self) -> String {
        match &self.source {
            Source::Announced(announcer) => format!("{} at {}", announcer.assistant, announcer.url),
            Source::Peers(places) => {
                let name = |place: &Place| match place {
                    Place::WebSocket(url, _) => url.clone(),
                    Place::AudioSocket(address) => address.to_string(),
                };
                places.iter().map(name).collect::<Vec<_>>().join(", ")
            }
        }
    }
}

/// Figures of the processes under test at one instant.
#[derive(Clone, Copy)]
struct Figures {
    target: Option<Usage>,
    control: Option<Usage>,
}

fn figures(plan: &ProviderPlan) -> anyhow::Result<Figures> {
    Ok(Figures {
        target: plan.meter.as_ref().map(Meter::read).transpose()?,
        control: plan.control_metrics.as_ref().map(MetricsUrl::read).transpose()?,
    })
}

/// The run's parts while it runs.
struct Session {
    generator: SocketGenerator,
    attempted: u64,
    established: Vec<usize>,
    failures: BTreeMap<String, u64>,
}

impl Session {
    fn talking(&self) -> u64 {
        self.generator.standing().talking.load(Ordering::Relaxed)
    }

    fn wait(&self, until: Instant) -> anyhow::Result<()> {
        loop {
            if host::interrupted() {
                return Err(Interrupted.into());
            }
            anyhow::ensure!(self.generator.is_running(), "the generator has stopped");
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    fn wait_until(&self, until: Mono, mut each: impl FnMut(&Self)) -> anyhow::Result<()> {
        while Mono::now() < until {
            let left = Duration::from_nanos(until - Mono::now()).min(Duration::from_millis(250));
            self.wait(Instant::now() + left)?;
            each(self);
        }
        Ok(())
    }

    fn place(&mut self, slot: usize, plan: &ProviderPlan) -> Result<(), String> {
        self.attempted += 1;
        let asked_at = Mono::now();
        let Announced { ids, place, speech } = plan.call(slot)?;
        let connected = dial::connect(&place)?;
        let stream = format!("MZ{:032x}", u128::from_be_bytes(rand::random()));
        let wire = Wire::new(plan.transport, speech, ids, stream, rand::random());
        self.generator.speak(slot, Ready { connected, wire, asked_at });
        self.established.push(slot);
        Ok(())
    }

    fn ramp(&mut self, plan: &ProviderPlan) -> anyhow::Result<()> {
        let calls = plan.plan.calls;
        let mut progress = Progress::begin("ramp", calls as u64, plan.plan.quiet);
        let began = Instant::now();
        for slot in 0..calls {
            self.wait(began + Duration::from_secs_f64(slot as f64 / plan.cps))?;
            if let Err(cause) = self.place(slot, plan) {
                *self.failures.entry(cause).or_insert(0) += 1;
            }
            progress.at(slot as u64 + 1, || format!("calls, {} talk", self.talking()));
        }
        // A call that is refused after the upgrade is closed by now.
        let until = Instant::now() + SOUND_PATIENCE;
        while Instant::now() < until && self.talking() > 0 {
            self.wait(Instant::now() + Duration::from_millis(50))?;
        }
        progress.end();
        Ok(())
    }

    /// Ends every call, paced; not stopped by an interrupt, which is how it may have begun.
    fn hang_up(&mut self, plan: &ProviderPlan) {
        let mut progress = Progress::begin("hang up", self.established.len() as u64, plan.plan.quiet);
        let began = Instant::now();
        for (n, &slot) in (1_u32..).zip(&self.established) {
            self.generator.hang_up(slot);
            progress.at(n.into(), || "calls".into());
            let until = began + Duration::from_secs_f64(f64::from(n) / plan.cps);
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
        let patience = Instant::now() + CLOSE_PATIENCE;
        let standing = self.generator.standing();
        let open = || standing.talking.load(Ordering::Relaxed) + standing.ending.load(Ordering::Relaxed);
        while open() > 0 && self.generator.is_running() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
        if open() > 0 {
            *self.failures.entry("not closed by the target after our end".into()).or_insert(0) += open();
        }
        progress.end();
    }
}

/// Runs the command.
///
/// # Errors
/// When there is nothing to report: no call established, figures asked for and not to be had.
pub fn run(plan: &ProviderPlan) -> anyhow::Result<Report> {
    anyhow::ensure!(plan.cps > 0.0, "--cps must be above zero");
    // Asked for before anything is started: a wrong address must not cost a run.
    figures(plan)?;
    let core = plan.plan.cores.generator;
    let generator =
        SocketGenerator::start(plan.transport, plan.plan.calls, plan.plan.cores, plan.plan.window_frames())?;
    let mut session = Session { generator, attempted: 0, established: Vec::new(), failures: BTreeMap::new() };
    let result = measure(plan, &mut session);
    // Whatever happened, nobody is left on the line.
    session.hang_up(plan);
    let Taken { observed, empty, before, after, talking } = result?;
    plan.plan.settle();
    let Session { generator, attempted, established, mut failures } = session;
    let outcome = generator.finish()?;

    let mut report =
        Report { run: plan.plan.describe(plan.transport.name(), &plan.target()), ..Report::default() };
    report.run.cps = plan.cps;
    report.drops = Some(outcome.drops.values().sum());
    for (cause, count) in outcome.drops {
        *failures.entry(cause).or_insert(0) += count;
    }
    report.calls = Some(Calls {
        attempted,
        established: established.len() as u64,
        failed: failures.values().sum(),
        failures,
    });
    report.setup_ms = outcome.setup.summary();
    report.fill_media(&outcome.measured, &observed, core);
    let known_percent = cpu_percent(before.target, after.target) + cpu_percent(before.control, after.control);
    report.host = Host::of(&observed, known_percent);
    if let (Some(before), Some(after)) = (before.target, after.target) {
        let ms = cpu_ms_per_call_s(&before, &after, talking);
        let grown = empty.target.and_then(|empty| Some(after.resident_bytes? - empty.resident_bytes?));
        report.engine = Some(Engine {
            cpu_ms_per_call_s: Some(round(ms)),
            memory_bytes_per_call: grown.map(|bytes| (bytes.max(0.0) / talking as f64).round()),
            calls_a_core: Some((1_000.0 / ms.max(f64::MIN_POSITIVE)).round()),
            ..Engine::default()
        });
    }
    if let (Some(before), Some(after)) = (before.control, after.control) {
        let ms = cpu_ms_per_call_s(&before, &after, talking);
        report.control_plane =
            Some(ControlPlane { cpu_ms_per_call_s: Some(round(ms)), cpu_us_per_call: None });
    }
    Ok(report)
}

/// What was seen in the window.
struct Taken {
    observed: Observed,
    /// Before the first call.
    empty: Figures,
    before: Figures,
    after: Figures,
    talking: u64,
}

fn measure(plan: &ProviderPlan, session: &mut Session) -> anyhow::Result<Taken> {
    let empty = figures(plan)?;
    session.ramp(plan)?;
    let talking = session.talking();
    if talking == 0 {
        let causes: Vec<String> =
            session.failures.iter().map(|(cause, n)| format!("{n} × {cause}")).collect();
        let causes =
            if causes.is_empty() { "the target closed every call".to_owned() } else { causes.join("; ") };
        anyhow::bail!("no call was established: {causes}");
    }
    let window = plan.plan.window_from_now();
    session.generator.shared().measure(window);
    let total_ms = (plan.plan.warm_up + plan.plan.duration).as_millis() as u64;
    let mut progress = Progress::begin("talk", total_ms, plan.plan.quiet);
    let began = Mono::now();
    let mut show = |session: &Session| {
        progress.at((Mono::now() - began) / NANOS_PER_MS, || {
            format!("ms, {} calls, {}", session.talking(), session.generator.shared())
        });
    };
    session.wait_until(window.begin, &mut show)?;
    let observer = plan.plan.observe()?;
    let before = figures(plan)?;
    session.wait_until(window.end, &mut show)?;
    let after = figures(plan)?;
    // Drops at UDP ports are no matter here.
    let observed = observer.end(&[], &[]);
    progress.end();
    Ok(Taken { observed, empty, before, after, talking })
}
