//! The command `calls`: N real SIP calls with audio both ways.
//!
//! ```text
//!   ramp (--cps) ─▶ warm-up ─▶ ┌─ measured window (--duration) ──────────────┐ ─▶ BYE (--cps) ─▶ report
//!                              │ figures of engine and host at both ends,    │
//!                              │ a bare timer meanwhile                      │
//!                              └─────────────────────────────────────────────┘
//! ```
//! With `--floor`, half a floor run goes before and half after, so that a drift of the host falls on both sides.
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tandem_sdp::description::SessionDescription;
use tandem_sip::{CallHandle, EndReason, Event};

use crate::agent::{AgentKind, AgentPeer, Says};
use crate::caller::{self, Caller};
use crate::clock::{Mono, NANOS_PER_MS};
use crate::course::{self, Course};
use crate::distribution::{Distribution, round};
use crate::floor;
use crate::generator::{Generator, Line};
use crate::host;
use crate::observe::{Observed, Usage, cpu_ms_per_call_s, cpu_percent};
use crate::plan::{Interrupted, Plan};
use crate::progress::Progress;
use crate::protection::Protect;
use crate::report::{Agent, Calls, ControlPlane, Engine, Floor, Host, Report};
use crate::scrape::MetricsUrl;
use crate::stream::Window;

/// An INVITE without a final response for so long is given up (CANCEL) and counts as failed.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// After the last BYE, so long for its answer.
const BYE_PATIENCE: Duration = Duration::from_secs(5);

/// What is to be run.
#[derive(Debug, Clone)]
pub struct CallsPlan {
    /// Calls, time, cores.
    pub plan: Plan,
    /// Whom to call.
    pub target: String,
    /// New calls, and ended calls, a second.
    pub cps: f64,
    /// The engine's figures.
    pub engine_metrics: Option<MetricsUrl>,
    /// The control plane's figures.
    pub control_metrics: Option<MetricsUrl>,
    /// Measure the floor as well.
    pub floor: bool,
    /// Be the agent too, there.
    pub agent: Option<AgentPlan>,
}

/// The agent that the bench is itself.
#[derive(Debug, Clone, Copy)]
pub struct AgentPlan {
    /// How it is reached.
    pub kind: AgentKind,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What it says back.
    pub says: Says,
}

/// Where one caller stands.
enum CallState {
    Idle,
    Calling {
        call: CallHandle,
        offer: SessionDescription,
        since: Instant,
    },
    Talking {
        call: CallHandle,
        remote: SocketAddr,
    },
    /// Hung up after a good call: the BYE is still to be answered.
    HangingUp,
    /// Given up or hung up for a cause that has been counted.
    GivenUp,
    Over,
}

/// All callers of a run.
struct Roster {
    callers: Vec<CallState>,
    by_call: HashMap<CallHandle, usize>,
    attempted: u64,
    established: u64,
    failures: BTreeMap<String, u64>,
    setup: Distribution,
}

impl Roster {
    fn new(calls: usize) -> Self {
        Self {
            callers: (0..calls).map(|_| CallState::Idle).collect(),
            by_call: HashMap::with_capacity(calls),
            attempted: 0,
            established: 0,
            failures: BTreeMap::new(),
            setup: Distribution::new(),
        }
    }

    fn talking(&self) -> u64 {
        self.callers.iter().filter(|caller| matches!(caller, CallState::Talking { .. })).count() as u64
    }

    fn pending(&self) -> usize {
        self.callers
            .iter()
            .filter(|c| matches!(c, CallState::Calling { .. } | CallState::HangingUp | CallState::GivenUp))
            .count()
    }

    fn target_ports(&self) -> Vec<u16> {
        let port = |caller: &CallState| match caller {
            CallState::Talking { remote, .. } if remote.ip().is_loopback() => Some(remote.port()),
            _ => None,
        };
        self.callers.iter().filter_map(port).collect()
    }

    fn fail(&mut self, slot: usize, cause: String) {
        *self.failures.entry(cause).or_insert(0) += 1;
        self.callers[slot] = CallState::Over;
    }

    fn invite(&mut self, slot: usize, user_agent: &mut Caller, generator: &Generator, plan: &Plan) {
        let srtp = plan.srtp.map(Protect::keys).unwrap_or_default();
        let offer = caller::offer(user_agent.local().ip(), generator.ports()[slot], plan.law, srtp);
        let since = Instant::now();
        self.attempted += 1;
        match user_agent.invite_as(&course::caller(slot), &offer) {
            Ok(call) => {
                self.by_call.insert(call, slot);
                self.callers[slot] = CallState::Calling { call, offer, since };
            }
            Err(error) => self.fail(slot, format!("not sent: {error}")),
        }
    }

    fn hang_up(&mut self, slot: usize, user_agent: &mut Caller, generator: &Generator) {
        let CallState::Talking { call, .. } = self.callers[slot] else { return };
        generator.hush(slot);
        self.callers[slot] = CallState::HangingUp;
        user_agent.hang_up(call);
    }

    fn give_up(&mut self, slot: usize, cause: String, user_agent: &mut Caller) {
        let CallState::Calling { call, .. } = self.callers[slot] else { return };
        *self.failures.entry(cause).or_insert(0) += 1;
        self.callers[slot] = CallState::GivenUp;
        user_agent.hang_up(call);
    }

    fn handle(&mut self, event: Event, user_agent: &mut Caller, generator: &Generator) {
        match event {
            Event::Answered { call, response, .. } => {
                let Some(&slot) = self.by_call.get(&call) else { return };
                // An answer that crosses our CANCEL: the core acknowledges it and hangs up.
                let CallState::Calling { offer, since, .. } = &self.callers[slot] else { return };
                let setup_ns = since.elapsed().as_nanos() as u64;
                let agreed = caller::read_answer(offer, response.sdp());
                let spoken = agreed.and_then(|(remote, keys)| {
                    generator
                        .speak(slot, remote, keys.as_ref())
                        .map(|()| remote)
                        .map_err(|error| format!("answer: {error}"))
                });
                match spoken {
                    Ok(remote) => {
                        self.setup.record_ns(setup_ns);
                        self.established += 1;
                        self.callers[slot] = CallState::Talking { call, remote };
                    }
                    Err(cause) => self.give_up(slot, cause, user_agent),
                }
            }
            Event::Ended { call, why } => {
                let Some(slot) = self.by_call.remove(&call) else { return };
                generator.hush(slot);
                match &self.callers[slot] {
                    CallState::HangingUp
                        if matches!(why, EndReason::LocalBye { status: Some(200..=299) }) =>
                    {
                        self.callers[slot] = CallState::Over;
                    }
                    CallState::GivenUp => self.callers[slot] = CallState::Over,
                    _ => self.fail(slot, caller::cause(&why)),
                }
            }
            // Ringing, and things that a media session of one codec does not need.
            _ => {}
        }
    }
}

/// The run's parts while it runs.
struct Session {
    user_agent: Caller,
    generator: Generator,
    roster: Roster,
}

impl Session {
    /// Handles signalling until an instant.
    fn pump(&mut self, until: Instant) -> anyhow::Result<()> {
        loop {
            self.user_agent.turn(until).context("the SIP socket failed")?;
            while let Some(event) = self.user_agent.poll_event() {
                self.roster.handle(event, &mut self.user_agent, &self.generator);
            }
            if host::interrupted() {
                return Err(Interrupted.into());
            }
            anyhow::ensure!(self.generator.is_running(), "the generator has stopped");
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }

    fn pump_until(&mut self, until: Mono, mut each: impl FnMut(&Self)) -> anyhow::Result<()> {
        while Mono::now() < until {
            let left = Duration::from_nanos(until - Mono::now()).min(Duration::from_millis(250));
            self.pump(Instant::now() + left)?;
            each(self);
        }
        Ok(())
    }

    fn ramp(&mut self, plan: &CallsPlan) -> anyhow::Result<()> {
        let calls = plan.plan.calls;
        let mut progress = Progress::begin("ramp", calls as u64, plan.plan.quiet);
        let began = Instant::now();
        for slot in 0..calls {
            self.pump(began + Duration::from_secs_f64(slot as f64 / plan.cps))?;
            self.roster.invite(slot, &mut self.user_agent, &self.generator, &plan.plan);
            progress.at(slot as u64 + 1, || format!("calls, {} answered", self.roster.talking()));
        }
        let patience = Instant::now() + ANSWER_PATIENCE;
        while self.roster.pending() > 0 && Instant::now() < patience {
            self.pump(Instant::now() + Duration::from_millis(20))?;
            progress.at(calls as u64, || format!("calls, {} answered", self.roster.talking()));
        }
        for slot in 0..calls {
            let cause = format!("no answer in {} s", ANSWER_PATIENCE.as_secs());
            self.roster.give_up(slot, cause, &mut self.user_agent);
        }
        progress.end();
        Ok(())
    }

    /// Ends every call, paced; not stopped by an interrupt, which is how it may have begun.
    fn hang_up(&mut self, plan: &CallsPlan) {
        let mut progress = Progress::begin("hang up", self.roster.talking(), plan.plan.quiet);
        let began = Instant::now();
        let mut ended = 0_u32;
        for slot in 0..self.roster.callers.len() {
            self.roster.give_up(slot, "interrupted".into(), &mut self.user_agent);
            if matches!(self.roster.callers[slot], CallState::Talking { .. }) {
                self.roster.hang_up(slot, &mut self.user_agent, &self.generator);
                ended += 1;
                progress.at(ended.into(), || "calls".into());
                self.listen(began + Duration::from_secs_f64(f64::from(ended) / plan.cps));
            }
        }
        let patience = Instant::now() + BYE_PATIENCE;
        while self.roster.pending() > 0 && Instant::now() < patience {
            self.listen(Instant::now() + Duration::from_millis(20));
        }
        for slot in 0..self.roster.callers.len() {
            if matches!(self.roster.callers[slot], CallState::HangingUp) {
                self.roster.fail(slot, "BYE not answered".into());
            }
        }
        progress.end();
    }

    fn listen(&mut self, until: Instant) {
        loop {
            if self.user_agent.turn(until).is_err() {
                return;
            }
            while let Some(event) = self.user_agent.poll_event() {
                self.roster.handle(event, &mut self.user_agent, &self.generator);
            }
            let now = Instant::now();
            if now >= until {
                return;
            }
            if host::interrupted() {
                // `turn` returns at once then.
                std::thread::sleep((until - now).min(Duration::from_millis(5)));
            }
        }
    }
}

/// Figures of the processes under test at one instant.
#[derive(Clone, Copy)]
struct Figures {
    engine: Option<Usage>,
    control: Option<Usage>,
}

fn figures(plan: &CallsPlan) -> anyhow::Result<Figures> {
    let read = |url: &Option<MetricsUrl>| url.as_ref().map(MetricsUrl::read).transpose();
    Ok(Figures { engine: read(&plan.engine_metrics)?, control: read(&plan.control_metrics)? })
}

/// Runs the command.
///
/// # Errors
/// When there is nothing to report: no way to the target, no call established, figures asked for and not to be had.
pub fn run(plan: &CallsPlan) -> anyhow::Result<Report> {
    anyhow::ensure!(plan.cps > 0.0, "--cps must be above zero");
    let half = Plan { duration: plan.plan.duration / 2, ..plan.plan.clone() };
    let mut floors = Vec::new();
    let mut floor_limits = Vec::new();
    let mut measure_floor = |floors: &mut Vec<f64>| -> anyhow::Result<()> {
        let run = floor::measure(&half)?;
        let verdict =
            crate::verdict::GeneratorReport::judge(&run.measured, &run.observed, half.cores.generator);
        floor_limits.extend(verdict.reasons.into_iter().map(|reason| format!("in the floor run, {reason}")));
        floors.push(run.cpu_ms_per_call_s);
        Ok(())
    };
    // Asked for before anything is started: a wrong address must not cost a run.
    figures(plan)?;
    if plan.floor {
        measure_floor(&mut floors)?;
    }
    let mut report = measure_calls(plan)?;
    if plan.floor {
        measure_floor(&mut floors)?;
        let mut floor = Floor::of(&floors);
        if let Some(engine) = &mut report.engine {
            let ratio = engine.cpu_ms_per_call_s.map(|ms| round(ms / floor.cpu_ms_per_call_s));
            engine.floor_ratio = ratio;
            floor.engine_ratio = ratio;
        }
        report.floor = Some(floor);
        report.generator.limited |= !floor_limits.is_empty();
        report.generator.reasons.extend(floor_limits);
    }
    Ok(report)
}

fn measure_calls(plan: &CallsPlan) -> anyhow::Result<Report> {
    let course = Arc::new(Course::new(plan.plan.calls));
    let agent = plan.agent.map(|agent| AgentPeer::start(agent, Arc::clone(&course))).transpose()?;
    let user_agent = Caller::open(&plan.target)?;
    let generator = Generator::start(
        Line::echoed(plan.plan.calls, plan.plan.law),
        user_agent.local().ip(),
        plan.plan.cores.generator,
        plan.plan.window_frames(),
        agent.is_some().then(|| Arc::clone(&course)),
    )?;
    let mut session = Session { user_agent, generator, roster: Roster::new(plan.plan.calls) };
    let result = measure(plan, &mut session);
    // Whatever happened, nobody is left on the line.
    session.hang_up(plan);
    let Taken { observed, empty, before, after, talking, window } = result?;
    plan.plan.settle();
    let Session { user_agent, generator, roster } = session;
    let measured = generator.finish()?;

    let mut report =
        Report { run: plan.plan.describe("calls", &user_agent.target_for_people()), ..Report::default() };
    report.run.cps = plan.cps;
    report.agent = agent.as_ref().map(|agent| Agent::of(agent, course.in_window(window)));
    report.calls = Some(Calls {
        attempted: roster.attempted,
        established: roster.established,
        failed: roster.failures.values().sum(),
        failures: roster.failures,
    });
    report.setup_ms = roster.setup.summary();
    report.fill_media(&measured, &observed, plan.plan.cores.generator);
    let known_percent = cpu_percent(before.engine, after.engine) + cpu_percent(before.control, after.control);
    report.host = Host::of(&observed, known_percent);
    if let (Some(before), Some(after)) = (before.engine, after.engine) {
        let ms = cpu_ms_per_call_s(&before, &after, talking);
        let grown = empty.engine.and_then(|empty| Some(after.resident_bytes? - empty.resident_bytes?));
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
    window: Window,
}

fn measure(plan: &CallsPlan, session: &mut Session) -> anyhow::Result<Taken> {
    let empty = figures(plan)?;
    session.ramp(plan)?;
    let talking = session.roster.talking();
    if talking == 0 {
        let causes: Vec<String> =
            session.roster.failures.iter().map(|(cause, n)| format!("{n} × {cause}")).collect();
        anyhow::bail!("no call was established: {}", causes.join("; "));
    }
    let window = plan.plan.window_from_now();
    session.generator.measure(window);
    let total_ms = (plan.plan.warm_up + plan.plan.duration).as_millis() as u64;
    let mut progress = Progress::begin("talk", total_ms, plan.plan.quiet);
    let began = Mono::now();
    let mut show = |session: &Session| {
        progress.at((Mono::now() - began) / NANOS_PER_MS, || {
            format!("ms, {} calls, {}", session.roster.talking(), session.generator.shared())
        });
    };
    session.pump_until(window.begin, &mut show)?;
    let observer = plan.plan.observe()?;
    let before = figures(plan)?;
    session.pump_until(window.end, &mut show)?;
    let after = figures(plan)?;
    let observed = observer.end(session.generator.ports(), &session.roster.target_ports());
    progress.end();
    Ok(Taken { observed, empty, before, after, talking, window })
}
