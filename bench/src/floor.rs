//! The floor: what the kernel alone costs, without any audio work.
//!
//! A child process of its own echoes UDP and nothing else: io_uring, multishot receive into provided buffers, a batched
//! send, a 1 ms absolute tick, a connected socket a call, one thread pinned to the core where the engine would be. It is
//! driven by the very generator that drives `calls`, with the same packets, and its processor time is read from its own
//! process clock. Everything an engine does beyond that is what the ratio shows.
//!
//! ```text
//!   parent                          child (floor-echo)
//!     ports of the generator ─────▶ connects socket i to port i
//!     ◀───────────────────────────── its own ports, one line
//!     closes its standard input ──▶ ends
//! ```
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::clock::{Mono, NANOS_PER_MS};
use crate::distribution::round;
use crate::generator::{Generator, Line, Measured};
use crate::host;
use crate::observe::{Observed, Usage, cpu_ms_per_call_s};
use crate::plan::{Interrupted, Plan};
use crate::progress::Progress;
use crate::report::{Floor, Host, Report};
use crate::ring::{AfterReap, Receive, UdpRing};

/// The echo's turn, the same as the engine's.
const TICK_NS: u64 = NANOS_PER_MS;

/// The name of the hidden command that is the child.
pub const CHILD_COMMAND: &str = "floor-echo";

/// The echo, seen from the parent.
pub struct FloorEcho {
    child: Child,
    ports: Vec<u16>,
}

impl FloorEcho {
    /// Starts the echo on `core` for callers at these local ports.
    ///
    /// # Errors
    /// When the child cannot be started or cannot use io_uring.
    pub fn start(core: usize, callers: &[u16]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut child = Command::new(program)
            .args([CHILD_COMMAND, "--core", &core.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the floor's echo process")?;
        let (Some(stdin), Some(stdout)) = (child.stdin.as_mut(), child.stdout.take()) else {
            anyhow::bail!("the floor's echo process has no pipes");
        };
        writeln!(stdin, "{}", join(callers)).context("the floor's echo process is gone")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let ports = split(&line)?;
        anyhow::ensure!(ports.len() == callers.len(), "the floor's echo process failed; its error is above");
        Ok(Self { child, ports })
    }

    /// Where caller number `slot` speaks to.
    pub fn address(&self, slot: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[slot]).into()
    }

    /// Its ports.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }
}

impl FloorEcho {
    /// Its processor time now, from its own process clock.
    ///
    /// # Errors
    /// When it is gone.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let cpu_ns = host::cpu_ns_of(self.child.id()).context("the floor's echo process is gone")?;
        Ok(Usage { at: Mono::now(), cpu_s: cpu_ns as f64 / 1e9, resident_bytes: None })
    }
}

impl Drop for FloorEcho {
    fn drop(&mut self) {
        // The end of its standard input asks it to go; a second later it is made to.
        drop(self.child.stdin.take());
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One measurement of the floor.
pub struct FloorRun {
    /// What the generator measured.
    pub measured: Measured,
    /// What was watched meanwhile.
    pub observed: Observed,
    /// Processor milliseconds of the echo per call-second.
    pub cpu_ms_per_call_s: f64,
}

/// Measures the floor with the plan's number of calls.
///
/// # Errors
/// When generator or echo cannot be had, or the user interrupts.
pub fn measure(plan: &Plan) -> anyhow::Result<FloorRun> {
    let generator = Generator::start(
        Line::echoed(plan.calls, plan.law),
        Ipv4Addr::LOCALHOST.into(),
        plan.cores.generator,
        plan.window_frames(),
        None,
    )?;
    let echo = FloorEcho::start(plan.cores.target, generator.ports())?;
    for slot in 0..plan.calls {
        generator.speak(slot, echo.address(slot), None)?;
    }
    let mut progress =
        Progress::begin("floor", (plan.warm_up + plan.duration).as_millis() as u64, plan.quiet);
    let began = Mono::now();
    let mut wait = |until: Mono| {
        while Mono::now() < until {
            if host::interrupted() {
                return Err(Interrupted.into());
            }
            anyhow::ensure!(generator.is_running(), "the generator has stopped");
            let pause_ns = (until - Mono::now()).min(100 * NANOS_PER_MS);
            std::thread::sleep(std::time::Duration::from_nanos(pause_ns));
            let now = Mono::now();
            progress.at((now - began) / NANOS_PER_MS, || format!("ms, {}", generator.shared()));
        }
        Ok(())
    };
    let window = plan.window_from_now();
    generator.measure(window);
    wait(window.begin)?;
    let before = echo.usage()?;
    let observer = plan.observe()?;
    wait(window.end)?;
    let after = echo.usage()?;
    let observed = observer.end(generator.ports(), echo.ports());
    progress.end();
    for slot in 0..plan.calls {
        generator.hush(slot);
    }
    plan.settle();
    let measured = generator.finish()?;
    Ok(FloorRun {
        measured,
        observed,
        cpu_ms_per_call_s: cpu_ms_per_call_s(&before, &after, plan.calls as u64),
    })
}

/// The command `floor`.
///
/// # Errors
/// As [`measure`].
pub fn run(plan: &Plan) -> anyhow::Result<Report> {
    let run = measure(plan)?;
    let mut report = Report { run: plan.describe("floor", "the floor"), ..Report::default() };
    report.fill_media(&run.measured, &run.observed, plan.cores.generator);
    report.host = Host::of(&run.observed, run.cpu_ms_per_call_s * plan.calls as f64 / 10.0);
    // The echo has no schedule of its own: this would be ours, and our lateness is in `generator`.
    report.schedule_ms = None;
    report.jitter_ms = None;
    report.mos = None;
    report.floor = Some(Floor::of(&[run.cpu_ms_per_call_s]));
    Ok(report)
}

impl Floor {
    /// From one or more measurements.
    pub fn of(runs: &[f64]) -> Self {
        let mean = runs.iter().sum::<f64>() / runs.len().max(1) as f64;
        Self {
            cpu_ms_per_call_s: round(mean),
            runs: runs.iter().map(|ms| round(*ms)).collect(),
            calls_a_core: (1_000.0 / mean.max(f64::MIN_POSITIVE)).round(),
            engine_ratio: None,
        }
    }
}

/// The child: echoes until its standard input ends.
///
/// # Errors
/// When core, sockets or io_uring are not to be had.
pub fn run_child(core: usize) -> anyhow::Result<()> {
    host::die_with_parent();
    host::raise_open_files();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let sockets = split(&line)?
        .into_iter()
        .map(|caller| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect((Ipv4Addr::LOCALHOST, caller))?;
            Ok(socket)
        })
        .collect::<io::Result<Vec<_>>>()
        .context("cannot open the echo's sockets")?;
    let ports = sockets.iter().map(|s| Ok(s.local_addr()?.port())).collect::<io::Result<Vec<_>>>()?;
    // The thread that waits for the end sleeps in a read and costs nothing.
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    std::thread::spawn(move || {
        let _ = io::stdin().lock().read(&mut [0]);
        stopped.store(true, Ordering::Relaxed);
    });
    host::pin_thread(core).with_context(|| format!("cannot pin the echo to core {core}"))?;
    host::sharpen_timers();
    let mut ring = UdpRing::new(Receive::Bare, sockets.len(), 0).context("io_uring is not available here")?;
    for (token, socket) in sockets.iter().enumerate() {
        ring.arm(token as u32, socket.as_raw_fd())?;
    }
    ring.submit()?;
    println!("{}", join(&ports));
    let mut deadline = Mono::now() + TICK_NS;
    while !stop.load(Ordering::Relaxed) {
        ring.wait_until(deadline)?;
        ring.reap(|_, _, _| AfterReap::SendBack)?;
        ring.submit()?;
        // Absolute: a late turn does not move the next one, and missed ones are passed over.
        let now = Mono::now();
        while deadline <= now {
            deadline = deadline + TICK_NS;
        }
    }
    Ok(())
}

fn join(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(" ")
}

fn split(line: &str) -> anyhow::Result<Vec<u16>> {
    line.split_whitespace().map(|port| port.parse().with_context(|| format!("{port:?} is no port"))).collect()
}
