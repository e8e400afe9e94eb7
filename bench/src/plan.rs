//! What a run is to be: how many calls, how long, on which cores.
use std::time::Duration;

use crate::clock::Mono;
use crate::generator::frames_in;
use crate::host;
use crate::marker::Law;
use crate::observe::Observer;
use crate::protection::Protect;
use crate::report::Run;
use crate::stream::Window;

/// After the last packet is sent, so long for the last one to come back.
const SETTLE: Duration = Duration::from_millis(300);

/// The user has asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Which core does what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cores {
    /// Ours.
    pub generator: usize,
    /// The target's: the floor's echo and the bare timer go there.
    pub target: usize,
}

impl Cores {
    /// The generator on the first core and the target on the last, unless told otherwise: an engine leaves the first
    /// core alone by default.
    pub fn choose(generator: Option<usize>, target: Option<usize>) -> Self {
        let allowed = host::allowed_cores();
        let first = allowed.first().copied().unwrap_or(0);
        let last = allowed.last().copied().unwrap_or(0);
        Self { generator: generator.unwrap_or(first), target: target.unwrap_or(last) }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Calls at once.
    pub calls: usize,
    /// Their codec.
    pub law: Law,
    /// Protected with which suite, if at all.
    pub srtp: Option<Protect>,
    /// Measured time.
    pub duration: Duration,
    /// Time at full load before.
    pub warm_up: Duration,
    /// Cores.
    pub cores: Cores,
    /// No progress.
    pub quiet: bool,
}

impl Plan {
    /// Room for a stream's log.
    pub fn window_frames(&self) -> usize {
        frames_in(self.duration.as_secs_f64())
    }

    /// The window, after a warm-up that begins now.
    pub fn window_from_now(&self) -> Window {
        let begin = Mono::now() + self.warm_up.as_nanos() as u64;
        Window { begin, end: begin + self.duration.as_nanos() as u64 }
    }

    /// Begins to watch the host.
    ///
    /// # Errors
    /// When there is no thread for the timer.
    pub fn observe(&self) -> std::io::Result<Observer> {
        Observer::begin(self.cores.target, self.duration.as_secs_f64())
    }

    /// Waits for the last packets.
    pub fn settle(&self) {
        std::thread::sleep(SETTLE);
    }

    /// For the report.
    pub fn describe(&self, command: &str, target: &str) -> Run {
        Run {
            command: command.into(),
            target: target.into(),
            concurrent: self.calls as u64,
            cps: 0.0,
            duration_s: self.duration.as_secs_f64(),
            warm_up_s: self.warm_up.as_secs_f64(),
            codec: match self.srtp {
                Some(protect) => format!("{} {}", self.law.name().to_ascii_lowercase(), protect.suite()),
                None => self.law.name().to_ascii_lowercase(),
            },
            version: env!("CARGO_PKG_VERSION").into(),
            debug_build: cfg!(debug_assertions),
        }
    }
}
