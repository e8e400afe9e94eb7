//! The command `setup`: INVITE, 200, ACK, BYE, 200, and what that costs. No audio is sent; what the target sends goes to a
//! socket that nobody reads. Without media the target answers with an inactive media line and opens no session: then it is
//! signaling alone that is measured, and any SIP server can be the target.
use std::collections::{BTreeMap, HashMap};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::Context;
use tandem_sdp::{Direction, LocalSrtp, SessionDescription};
use tandem_sip::{CallHandle, EndReason, Event, Headers};

use crate::caller::{self, Caller};
use crate::distribution::{Distribution, round};
use crate::host;
use crate::marker::Law;
use crate::observe::{Observer, Usage, cpu_percent};
use crate::plan::{Cores, Interrupted};
use crate::processes::{self, Processes};
use crate::progress::Progress;
use crate::report::{ControlPlane, Engine, Host, Report, Run, Setup, Target};
use crate::scrape::MetricsUrl;
use crate::verdict::{CPU_LIMIT_PERCENT, GeneratorReport};

/// After the last INVITE, so long for the last call to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a call leaves to be done after its BYE (records, ports) is charged to it: so long after the last.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Lateness of INVITEs at the 99.9th percentile above which the target saw bursts and not the rate that was asked for.
pub const INVITE_LATE_P999_LIMIT_MS: f64 = 50.0;

/// Readings of the target's memory in a run.
const MEMORY_READINGS: u64 = 10;

/// What the answer must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// Anything: the target has a media engine, and what it costs is in the figures.
    Session,
    /// An audio line that is inactive or refused.
    None,
}

impl Media {
    /// The cause of failure when an answer is not what it must be.
    pub(crate) fn check(self, answer: Option<&[u8]>) -> Result<(), String> {
        if self == Media::Session {
            return Ok(());
        }
        let answer = answer.ok_or("200 without SDP")?;
        let answer = SessionDescription::parse(answer).map_err(|error| format!("answer: {error}"))?;
        let active = answer
            .media
            .iter()
            .any(|media| media.port != 0 && answer.direction_of(media) != Direction::Inactive);
        if active {
            Err("answered with media: this target does not leave its engine out".into())
        } else {
            Ok(())
        }
    }
}

/// What is to be run.
#[derive(Debug, Clone)]
pub struct SetupPlan {
    /// Whom to call.
    pub target: String,
    /// INVITEs a second.
    pub cps: f64,
    /// INVITEs in all.
    pub calls: u64,
    /// Their codec.
    pub law: Law,
    /// What the answer must hold.
    pub media: Media,
    /// The target's processes.
    pub processes: Option<Processes>,
    /// Cores.
    pub cores: Cores,
    /// The engine's figures.
    pub engine_metrics: Option<MetricsUrl>,
    /// The control plane's figures.
    pub control_metrics: Option<MetricsUrl>,
    /// No progress.
    pub quiet: bool,
}

struct Attempts {
    media: Media,
    since: HashMap<CallHandle, Instant>,
    completed: u64,
    failures: BTreeMap<String, u64>,
    setup: Distribution,
    last_end: Instant,
}

impl Attempts {
    fn handle(&mut self, event: Event, user_agent: &mut Caller) {
        match event {
            Event::Answered { call, response, .. } => {
                let Some(since) = self.since.get(&call) else { return };
                match self.media.check(response.sdp()) {
                    Ok(()) => self.setup.record_ns(since.elapsed().as_nanos() as u64),
                    Err(cause) => {
                        *self.failures.entry(cause).or_insert(0) += 1;
                        self.since.remove(&call);
                    }
                }
                user_agent.hang_up(call);
            }
            Event::Ended { call, why } => {
                if self.since.remove(&call).is_none() {
                    return;
                }
                self.last_end = Instant::now();
                if matches!(why, EndReason::LocalBye { status: Some(200..=299) }) {
                    self.completed += 1;
                } else {
                    *self.failures.entry(caller::cause(&why)).or_insert(0) += 1;
                }
            }
            _ => {}
        }
    }

    fn pump(&mut self, user_agent: &mut Caller, until: Instant) -> anyhow::Result<()> {
        loop {
            user_agent.turn(until).context("the SIP socket failed")?;
            while let Some(event) = user_agent.poll_event() {
                self.handle(event, user_agent);
            }
            if host::interrupted() {
                return Err(Interrupted.into());
            }
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When there is nothing to report.
pub fn run(plan: &SetupPlan) -> anyhow::Result<Report> {
    anyhow::ensure!(plan.cps > 0.0 && plan.calls > 0, "--cps and the number of calls must be above zero");
    let mut user_agent = Caller::open(&plan.target)?;
    let sink = UdpSocket::bind((user_agent.local().ip(), 0)).context("cannot open a UDP socket")?;
    let offer =
        caller::offer(user_agent.local().ip(), sink.local_addr()?.port(), plan.law, LocalSrtp::default());
    let read = |url: &Option<MetricsUrl>| url.as_ref().map(MetricsUrl::read).transpose();
    let (engine_before, control_before) = (read(&plan.engine_metrics)?, read(&plan.control_metrics)?);
    let usage = || plan.processes.as_ref().map(Processes::usage).transpose().context("the target's process");
    let target_before = usage()?;
    let mut memory = Vec::new();
    let seconds = plan.calls as f64 / plan.cps;
    let observer = Observer::begin(plan.cores.target, seconds + 2.0)?;

    let began = Instant::now();
    let mut late = Distribution::new();
    let mut attempts = Attempts {
        media: plan.media,
        since: HashMap::new(),
        completed: 0,
        failures: BTreeMap::new(),
        setup: Distribution::new(),
        last_end: began,
    };
    let mut progress = Progress::begin("set up", plan.calls, plan.quiet);
    for number in 0..plan.calls {
        let due = began + Duration::from_secs_f64(number as f64 / plan.cps);
        attempts.pump(&mut user_agent, due)?;
        late.record_ns(due.elapsed().as_nanos() as u64);
        match user_agent.invite(&offer, Headers::new()) {
            Ok(call) => {
                attempts.since.insert(call, Instant::now());
            }
            Err(error) => *attempts.failures.entry(format!("not sent: {error}")).or_insert(0) += 1,
        }
        progress.at(number + 1, || format!("calls, {} completed", attempts.completed));
        if number * MEMORY_READINGS / plan.calls < (number + 1) * MEMORY_READINGS / plan.calls {
            memory.extend(usage()?.map(|usage| ((number + 1) as f64, usage.resident_bytes.unwrap_or(0.0))));
        }
    }
    let patience = Instant::now() + PATIENCE;
    while !attempts.since.is_empty() && Instant::now() < patience {
        attempts.pump(&mut user_agent, Instant::now() + Duration::from_millis(5))?;
    }
    let observed = observer.end(&[], &[]);
    progress.end();
    if !attempts.since.is_empty() {
        let cause = format!("not over after {} s", PATIENCE.as_secs());
        *attempts.failures.entry(cause).or_insert(0) += attempts.since.len() as u64;
        for call in std::mem::take(&mut attempts.since).into_keys() {
            user_agent.hang_up(call);
        }
    }
    attempts.pump(&mut user_agent, Instant::now() + AFTERMATH)?;
    let (engine_after, control_after) = (read(&plan.engine_metrics)?, read(&plan.control_metrics)?);
    let target_after = usage()?;
    anyhow::ensure!(attempts.completed > 0, "no call was completed: {:?}", attempts.failures);

    let elapsed_s = attempts.last_end.duration_since(began).as_secs_f64();
    let cpu_us = |before: Option<Usage>, after: Option<Usage>| {
        let (before, after) = (before?, after?);
        Some(((after.cpu_s - before.cpu_s) * 1e6 / attempts.completed as f64).round())
    };
    Ok(Report {
        run: Run {
            command: "setup".into(),
            target: user_agent.target_for_people(),
            cps: plan.cps,
            duration_s: round(seconds),
            codec: plan.law.name().to_ascii_lowercase(),
            version: env!("CARGO_PKG_VERSION").into(),
            debug_build: cfg!(debug_assertions),
            ..Run::default()
        },
        setup: Some(Setup {
            attempted: plan.calls,
            failed: attempts.failures.values().sum(),
            per_second: round(attempts.completed as f64 / elapsed_s.max(1e-9)),
            retransmits: user_agent.retransmits(),
            media: plan.media == Media::Session,
            failures: attempts.failures,
        }),
        setup_ms: attempts.setup.summary(),
        engine: cpu_us(engine_before, engine_after)
            .map(|us| Engine { cpu_us_per_call: Some(us), ..Engine::default() }),
        control_plane: cpu_us(control_before, control_after)
            .map(|us| ControlPlane { cpu_us_per_call: Some(us), ..ControlPlane::default() }),
        target: plan.processes.as_ref().zip(cpu_us(target_before, target_after)).map(|(processes, us)| {
            Target {
                processes: processes.count() as u64,
                cpu_us_per_call: us,
                resident_bytes_before: target_before.and_then(|usage| usage.resident_bytes).unwrap_or(0.0),
                resident_bytes_after: target_after.and_then(|usage| usage.resident_bytes).unwrap_or(0.0),
                resident_bytes_per_call: round(processes::slope(&memory[memory.len() / 2..])),
                resident_bytes: memory.iter().map(|(_, bytes)| *bytes).collect(),
            }
        }),
        generator: judge(&late, observed.bench_cpu_percent, plan.cores.generator),
        host: Host::of(
            &observed,
            // The planes may be told by their metrics, by their processes, or by both.
            (cpu_percent(engine_before, engine_after) + cpu_percent(control_before, control_after))
                .max(cpu_percent(target_before, target_after)),
        ),
        ..Report::default()
    })
}

fn judge(late: &Distribution, cpu_percent: f64, core: usize) -> GeneratorReport {
    let mut reasons = Vec::new();
    if cpu_percent > CPU_LIMIT_PERCENT {
        reasons.push(format!(
            "it used {cpu_percent:.0} % of core {core} (limit {CPU_LIMIT_PERCENT} %): lower --cps or build with --release"
        ));
    }
    let late_p999 = late.percentile_ms(99.9);
    if late_p999 > INVITE_LATE_P999_LIMIT_MS {
        reasons.push(format!(
            "INVITEs left {late_p999:.0} ms late at p99.9 (limit {INVITE_LATE_P999_LIMIT_MS} ms): lower --cps or quiet core {core}"
        ));
    }
    GeneratorReport {
        cpu_percent: round(cpu_percent),
        late_ms_p999: late_p999,
        late_ms_p50: late.percentile_ms(50.0),
        late_ms_max: late.max_ms(),
        limited: !reasons.is_empty(),
        reasons,
        core,
        ..GeneratorReport::default()
    }
}
