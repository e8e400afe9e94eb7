//! Says how far a run is: a bar on a terminal, a plain line every few seconds elsewhere. All on standard error.
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// One phase of a run.
pub struct Progress {
    bar: Option<ProgressBar>,
    name: &'static str,
    steps: u64,
    last_line: Instant,
}

impl Progress {
    /// Begins a phase of so many steps; `quiet` says nothing at all.
    pub fn begin(name: &'static str, steps: u64, quiet: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let bar = (on_terminal && !quiet).then(|| {
            let bar = ProgressBar::new(steps);
            let style = "{prefix:>10} {bar:32} {pos}/{len} {msg}";
            bar.set_style(
                ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_prefix(name);
            bar
        });
        if bar.is_none() && !quiet {
            eprintln!("{name} …");
        }
        let last_line =
            if quiet { Instant::now() + Duration::from_secs(86_400 * 365) } else { Instant::now() };
        Self { bar, name, steps, last_line }
    }

    /// Is at `step`.
    pub fn at(&mut self, step: u64, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(step.min(self.steps));
            bar.set_message(message());
        } else if Instant::now().saturating_duration_since(self.last_line) >= LINE_EVERY {
            self.last_line = Instant::now();
            eprintln!("{} {step}/{} {}", self.name, self.steps, message());
        }
    }

    /// Ends the phase.
    pub fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
