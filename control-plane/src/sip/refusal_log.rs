//! One log line for each request that the endpoint refuses by itself, and no more than a disk can take.
//!
//! A flood of bad requests must neither fill a disk nor keep the driver writing: after [`LINES_A_SECOND`] the rest of the
//! second is only counted, and one line says how many were.

use std::time::{Duration, Instant};

use tandem_sip::Flow;

/// Lines about refusals a second: what a person can still look through. More are counted.
const LINES_A_SECOND: u32 = 50;
const SECOND: Duration = Duration::from_secs(1);

/// What one refusal was.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) flow: Flow,
    pub(super) status: u16,
    pub(super) rule: &'static str,
    pub(super) detail: String,
}

/// Writes the lines.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    /// The second that is counted; it begins with its first refusal.
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl RefusalLog {
    /// A refusal's line, if there is room for it.
    pub(super) fn write(&mut self, refused: &Refused, now: Instant) {
        if !self.admits(now) {
            return;
        }
        tracing::warn!(
            step = "sip",
            rule = refused.rule,
            detail = %refused.detail,
            sip_status = refused.status,
            source = %refused.flow.remote,
            transport = refused.flow.transport.token(),
            "request refused"
        );
    }

    fn admits(&mut self, now: Instant) -> bool {
        self.handle_timeout(now);
        self.since.get_or_insert(now);
        let admits = self.lines < LINES_A_SECOND;
        if admits {
            self.lines += 1;
        } else {
            self.suppressed += 1;
        }
        admits
    }

    /// When a line about suppressed ones is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.since.filter(|_| self.suppressed > 0).map(|since| since + SECOND)
    }

    /// The second is over: says what it has suppressed, and begins anew.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.since.is_none_or(|since| now < since + SECOND) {
            return;
        }
        if self.suppressed > 0 {
            tracing::warn!(step = "sip", suppressed = self.suppressed, "more requests were refused");
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_leaves_fifty_lines_and_a_count_each_second() {
        let start = Instant::now();
        let mut log = RefusalLog::default();
        let admitted = (0..1_000).filter(|_| log.admits(start)).count();
        assert_eq!((admitted, log.suppressed), (50, 950));
        assert_eq!(log.poll_timeout(), Some(start + SECOND));
        log.handle_timeout(start + SECOND);
        assert_eq!((log.suppressed, log.poll_timeout()), (0, None));
        assert!(log.admits(start + SECOND));
    }

    #[test]
    fn few_refusals_need_no_timer() {
        let start = Instant::now();
        let mut log = RefusalLog::default();
        assert!((0..50).all(|_| log.admits(start)));
        assert_eq!(log.poll_timeout(), None);
        assert!(log.admits(start + 2 * SECOND));
    }
}
