//! Whether a trunk is there: OPTIONS every so often (RFC 3261 §11), as a state machine without sockets or clock.
//!
//! ```text
//!   unknown ──answer──▶ up ◀──2 good──▶ degraded ──failures_max in a row──▶ down
//!                        ▲   1 bad, 3 slow                                   │
//!                        └──────────────────── 2 good ───────────────────────┘
//! ```
//!
//! Any response but 408 and 503 shows that the trunk is alive: a 404 or 405 to OPTIONS is an answer. One lost ping is no
//! verdict, since a ping is repeated for five seconds before it counts as lost. A trunk in trouble is asked more often.

use std::time::{Duration, Instant};

use crate::registration::jitter::Jitter;

/// How long an answer may take: five transmissions over UDP. Later ones are not counted.
pub const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer that takes longer is slow: a call over this trunk would be felt as slow to connect.
const SLOW_RTT: Duration = Duration::from_secs(1);
/// Slow answers in a row that make a trunk degraded.
const SLOW_MAX: u32 = 3;
/// Good answers in a row that make a trunk up again.
const GOOD_MIN: u32 = 2;
/// A trunk in trouble is asked so many times as often.
const TROUBLE_FACTOR: u32 = 3;
/// But no sooner than this after the last answer.
const PERIOD_MIN: Duration = Duration::from_secs(2);

/// What a monitor is told when it is made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// From one ping to the next.
    pub interval: Duration,
    /// Bad in a row until the trunk counts as down; at least 1.
    pub failures_max: u32,
    /// Of the spread.
    pub seed: u64,
    /// When to ask first.
    pub start_at: Instant,
}

/// How a trunk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Not asked yet, or never asked.
    Unknown,
    /// It answers.
    Up,
    /// It answers slowly, or not always.
    Degraded,
    /// It does not answer: calls go to its backup.
    Down,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Unknown, Self::Up, Self::Degraded, Self::Down];

    /// For logs, metrics and the API.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Monitor {
    settings: Settings,
    jitter: Jitter,
    state: State,
    phase: Phase,
    good: u32,
    bad: u32,
    slow: u32,
    rtt: Option<Duration>,
    /// What was wrong last; empty: nothing.
    detail: String,
    wants_ping: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Waiting { at: Instant },
    Asked { at: Instant },
}

impl Monitor {
    /// A monitor that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            jitter: Jitter::new(settings.seed),
            state: State::Unknown,
            phase: Phase::Waiting { at: settings.start_at },
            good: 0,
            bad: 0,
            slow: 0,
            rtt: None,
            detail: String::new(),
            wants_ping: false,
            settings,
        }
    }

    /// How the trunk stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// How long the last answer took.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// What was wrong last; empty: nothing.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The last ping has a response with this status.
    pub fn handle_response(&mut self, status: u16, now: Instant) {
        let Phase::Asked { at } = self.phase else { return };
        if matches!(status, 408 | 503) {
            return self.handle_bad(format!("it answers OPTIONS with {status}"), now);
        }
        let rtt = now.saturating_duration_since(at);
        self.rtt = Some(rtt);
        self.bad = 0;
        self.slow = if rtt > SLOW_RTT { self.slow.saturating_add(1) } else { 0 };
        if self.slow >= SLOW_MAX {
            self.good = 0;
            self.detail = format!("it takes {} ms to answer OPTIONS", rtt.as_millis());
            self.state = State::Degraded;
        } else {
            self.good = self.good.saturating_add(1);
            if self.good >= GOOD_MIN || matches!(self.state, State::Unknown | State::Up) {
                self.state = State::Up;
                self.detail.clear();
            }
        }
        self.wait(now);
    }

    /// The last ping could not be sent, or has no response.
    pub fn handle_failure(&mut self, why: &str, now: Instant) {
        if matches!(self.phase, Phase::Asked { .. }) {
            self.handle_bad(why.to_owned(), now);
        }
    }

    /// The deadline of `poll_timeout` has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Waiting { at } if at <= now => {
                self.phase = Phase::Asked { at: now };
                self.wants_ping = true;
            }
            Phase::Asked { at } if at + PING_TIMEOUT <= now => {
                self.handle_bad(format!("no answer to OPTIONS within {} s", PING_TIMEOUT.as_secs()), now);
            }
            _ => {}
        }
    }

    fn handle_bad(&mut self, why: String, now: Instant) {
        (self.good, self.slow, self.rtt) = (0, 0, None);
        self.bad = self.bad.saturating_add(1);
        self.detail = why;
        let is_down = self.bad >= self.settings.failures_max.max(1) || self.state == State::Down;
        self.state = if is_down { State::Down } else { State::Degraded };
        self.wait(now);
    }

    fn wait(&mut self, now: Instant) {
        let is_troubled = matches!(self.state, State::Degraded | State::Down);
        let interval = self.settings.interval / if is_troubled { TROUBLE_FACTOR } else { 1 };
        let interval = interval.max(PERIOD_MIN);
        self.phase = Phase::Waiting { at: now + self.jitter.between(interval * 9 / 10, interval * 11 / 10) };
    }

    /// Whether an OPTIONS must leave; true once for each.
    pub fn poll_ping(&mut self) -> bool {
        std::mem::take(&mut self.wants_ping)
    }

    /// When `handle_timeout` must be called.
    pub fn poll_timeout(&self) -> Instant {
        match self.phase {
            Phase::Waiting { at } => at,
            Phase::Asked { at } => at + PING_TIMEOUT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bed {
        monitor: Monitor,
        now: Instant,
    }

    impl Bed {
        fn new() -> Self {
            let now = Instant::now();
            let settings =
                Settings { interval: Duration::from_secs(30), failures_max: 3, seed: 1, start_at: now };
            Self { monitor: Monitor::new(settings), now }
        }

        /// To the next ping; how long that took.
        fn next_ping(&mut self) -> Duration {
            let before = self.now;
            self.now = self.now.max(self.monitor.poll_timeout());
            self.monitor.handle_timeout(self.now);
            assert!(self.monitor.poll_ping() && !self.monitor.poll_ping());
            self.now - before
        }

        fn answered(&mut self, status: u16, rtt_ms: u64) -> State {
            self.next_ping();
            self.now += Duration::from_millis(rtt_ms);
            self.monitor.handle_response(status, self.now);
            self.monitor.state()
        }

        fn lost(&mut self) -> State {
            self.next_ping();
            self.now = self.monitor.poll_timeout();
            self.monitor.handle_timeout(self.now);
            self.monitor.state()
        }
    }

    #[test]
    fn any_answer_but_408_and_503_is_alive() {
        for (status, state) in [
            (200, State::Up),
            (404, State::Up),
            (405, State::Up),
            (500, State::Up),
            (408, State::Degraded),
            (503, State::Degraded),
        ] {
            assert_eq!(Bed::new().answered(status, 20), state, "{status}");
        }
    }

    #[test]
    fn trunk_is_down_after_three_losses_and_up_after_two_answers() {
        let mut bed = Bed::new();
        assert_eq!(bed.answered(200, 20), State::Up);
        let states = [bed.lost(), bed.lost(), bed.lost(), bed.lost()];
        assert_eq!(states, [State::Degraded, State::Degraded, State::Down, State::Down]);
        assert!(bed.monitor.detail().contains("no answer") && bed.monitor.rtt().is_none());
        assert_eq!([bed.answered(200, 20), bed.answered(200, 20)], [State::Down, State::Up]);
        assert_eq!(bed.monitor.detail(), "");
    }

    #[test]
    fn flapping_trunk_stays_degraded() {
        let mut bed = Bed::new();
        bed.answered(200, 20);
        for _ in 0..5 {
            assert_eq!([bed.lost(), bed.answered(200, 20)], [State::Degraded, State::Degraded]);
        }
        assert_eq!(bed.answered(200, 20), State::Up);
    }

    #[test]
    fn slow_trunk_is_degraded_only_when_it_stays_slow() {
        let mut bed = Bed::new();
        let states = [bed.answered(200, 1_500), bed.answered(200, 1_500), bed.answered(200, 1_500)];
        assert_eq!(states, [State::Up, State::Up, State::Degraded]);
        assert_eq!([bed.answered(200, 50), bed.answered(200, 50)], [State::Degraded, State::Up]);
    }

    #[test]
    fn trunk_in_trouble_is_asked_more_often() {
        let mut bed = Bed::new();
        bed.answered(200, 20);
        let calm = bed.next_ping();
        assert!((27..=33).contains(&calm.as_secs()), "{calm:?}");
        bed.monitor.handle_failure("connection refused", bed.now);
        let troubled = bed.next_ping();
        assert!((9..=11).contains(&troubled.as_secs()), "{troubled:?}");
    }

    #[test]
    fn late_answer_is_not_counted() {
        let mut bed = Bed::new();
        assert_eq!(bed.lost(), State::Degraded);
        bed.monitor.handle_response(200, bed.now);
        assert_eq!(bed.monitor.state(), State::Degraded);
    }
}
