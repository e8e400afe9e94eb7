//! The command `idle`: calls that are set up and then left alone, and the memory that one of them takes.
//!
//! A quarter of the calls is set up, then nothing happens for a while, then memory is read; four times. The slope through
//! the readings is what a call takes, whatever the process had before. The pause is longer than a transaction lives, so that
//! what remains is the dialog.
use std::collections::{BTreeMap, HashSet};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::Context;
use tandem_sdp::LocalSrtp;
use tandem_sip::{CallHandle, Event, Headers};

use crate::caller::{self, Caller};
use crate::distribution::round;
use crate::host;
use crate::marker::Law;
use crate::plan::{Cores, Interrupted};
use crate::processes::{self, Processes};
use crate::progress::Progress;
use crate::report::{Host, Idle, IdleReading, Report, Run};
use crate::setup::Media;
use crate::verdict::GeneratorReport;

/// Readings: a line needs more than two points to show that it is one.
const STEPS: u64 = 4;

/// A call that is not answered in this time has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be run.
#[derive(Debug, Clone)]
pub struct IdlePlan {
    /// Whom to call.
    pub target: String,
    /// Calls in the end.
    pub calls: u64,
    /// INVITEs a second.
    pub cps: f64,
    /// Time without any message before each reading.
    pub settle: Duration,
    /// What the answer must be.
    pub media: Media,
    /// Whose memory.
    pub processes: Processes,
    /// Cores.
    pub cores: Cores,
    /// No progress.
    pub quiet: bool,
}

struct Line {
    user_agent: Caller,
    media: Media,
    calling: HashSet<CallHandle>,
    talking: HashSet<CallHandle>,
    ending: HashSet<CallHandle>,
    failures: BTreeMap<String, u64>,
}

impl Line {
    fn pump(&mut self, until: Instant) -> anyhow::Result<()> {
        loop {
            self.user_agent.turn(until).context("the SIP socket failed")?;
            while let Some(event) = self.user_agent.poll_event() {
                self.handle(event);
            }
            if host::interrupted() {
                self.hang_up_all()?;
                return Err(Interrupted.into());
            }
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Answered { call, response, .. } => {
                if let Err(cause) = self.media.check(response.sdp()) {
                    *self.failures.entry(cause).or_insert(0) += 1;
                }
                if self.calling.remove(&call) {
                    self.talking.insert(call);
                }
            }
            Event::Ended { call, .. } if self.ending.remove(&call) => {}
            Event::Ended { call, why } => {
                let was_ours = self.calling.remove(&call) || self.talking.remove(&call);
                if was_ours {
                    *self.failures.entry(caller::cause(&why)).or_insert(0) += 1;
                }
            }
            _ => {}
        }
    }

    fn hang_up_all(&mut self) -> anyhow::Result<()> {
        for call in self.talking.drain().chain(self.calling.drain()) {
            self.user_agent.hang_up(call);
            self.ending.insert(call);
            // A volley of all of them would overflow the target's socket, and what is lost is repeated half a second later.
            self.user_agent
                .turn(Instant::now() + Duration::from_micros(500))
                .context("the SIP socket failed")?;
            while let Some(event) = self.user_agent.poll_event() {
                if let Event::Ended { call, .. } = event {
                    self.ending.remove(&call);
                }
            }
        }
        Ok(())
    }
}

/// Runs the command.
///
/// # Errors
/// When there is nothing to report.
pub fn run(plan: &IdlePlan) -> anyhow::Result<Report> {
    anyhow::ensure!(
        plan.calls >= STEPS && plan.cps > 0.0,
        "--concurrent must be {STEPS} at least, --cps above zero"
    );
    let user_agent = Caller::open(&plan.target)?;
    let sink = UdpSocket::bind((user_agent.local().ip(), 0)).context("cannot open a UDP socket")?;
    let offer =
        caller::offer(user_agent.local().ip(), sink.local_addr()?.port(), Law::Pcmu, LocalSrtp::default());
    let mut line = Line {
        user_agent,
        media: plan.media,
        calling: HashSet::new(),
        talking: HashSet::new(),
        ending: HashSet::new(),
        failures: BTreeMap::new(),
    };
    let read = |calls: usize| -> anyhow::Result<IdleReading> {
        let usage = plan.processes.usage().context("the target's process")?;
        Ok(IdleReading { calls: calls as u64, resident_bytes: usage.resident_bytes.unwrap_or_default() })
    };
    let before = read(0)?;
    let mut readings = Vec::new();
    let mut progress = Progress::begin("idle calls", plan.calls, plan.quiet);
    let mut placed = 0;
    for step in 1..=STEPS {
        let began = Instant::now();
        let first = placed;
        while placed < plan.calls * step / STEPS {
            line.pump(began + Duration::from_secs_f64((placed - first) as f64 / plan.cps))?;
            match line.user_agent.invite(&offer, Headers::new()) {
                Ok(call) => drop(line.calling.insert(call)),
                Err(error) => *line.failures.entry(format!("not sent: {error}")).or_insert(0) += 1,
            }
            placed += 1;
            progress.at(placed, || format!("calls, {} answered", line.talking.len()));
        }
        let patience = Instant::now() + PATIENCE;
        while !line.calling.is_empty() && Instant::now() < patience {
            line.pump(Instant::now() + Duration::from_millis(5))?;
        }
        line.pump(Instant::now() + plan.settle)?;
        readings.push(read(line.talking.len())?);
    }
    progress.end();
    let talking = line.talking.len() as u64;
    line.hang_up_all()?;
    let patience = Instant::now() + PATIENCE;
    while !line.ending.is_empty() && Instant::now() < patience {
        line.pump(Instant::now() + Duration::from_millis(5))?;
    }
    line.pump(Instant::now() + plan.settle)?;
    let after = read(0)?;
    anyhow::ensure!(talking > 0, "no call was answered: {:?}", line.failures);
    let points: Vec<(f64, f64)> =
        readings.iter().map(|reading| (reading.calls as f64, reading.resident_bytes)).collect();
    Ok(Report {
        run: Run {
            command: "idle".into(),
            target: line.user_agent.target_for_people(),
            concurrent: plan.calls,
            cps: plan.cps,
            duration_s: round(plan.settle.as_secs_f64()),
            version: env!("CARGO_PKG_VERSION").into(),
            debug_build: cfg!(debug_assertions),
            ..Run::default()
        },
        idle: Some(Idle {
            held: talking,
            failed: plan.calls - talking,
            failures: line.failures,
            bytes_per_call: processes::slope(&points).round(),
            resident_bytes_before: before.resident_bytes,
            resident_bytes_after: after.resident_bytes,
            readings,
        }),
        generator: GeneratorReport { core: plan.cores.generator, ..GeneratorReport::default() },
        host: Host { machine: host::machine(), ..Host::default() },
        ..Report::default()
    })
}
