//! How much of what we said the caller has heard, where the provider owns the playout.
//!
//! ```text
//!   sound sent ──────────────────────────▶ position, milliseconds
//!         │ t1      │ t2      │ t3             marks in the stream, each with its position
//!   ══════╪═════════╪─────────┼──────────
//!     heard, echoed │ waiting │ sent
//! ```
//!
//! Three sources, the safest first: an echoed mark confirms all before it; a mark that waits says that nothing after it has been
//! heard; between the two a clock runs from when sound was sent, which is all there is for a provider without receipts.
//! Positions count what the caller has heard and will hear: what `clear` threw away is taken off again.
//!
//! Marks have serial numbers, never used twice. So an echo after `clear`, or a second one of the same mark, is known by its number
//! alone, and nothing has to be remembered about it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Most marks of one call that wait for their echo or for their place; beyond, an agent's mark is refused and none of our own
/// is made. Two seconds ahead need eight of our own.
pub const MARKS_MAX: usize = 64;
/// Sound between two marks of our own, in milliseconds.
pub const MARK_INTERVAL_MS: u64 = 300;
/// How late an echo may be before we take it that the provider does not play. Above any round trip, below what a caller puts up
/// with.
pub const ECHO_GRACE: Duration = Duration::from_secs(1);

/// Whether the provider says what has been played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipts {
    /// Marks are echoed.
    Echoed,
    /// Nothing is said: the clock alone.
    None,
}

/// No further mark is taken until one of those that wait has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MARKS_MAX} marks wait for their echo already")]
pub struct MarksFull;

#[derive(Debug)]
struct Pending {
    serial: u64,
    /// Octets of the agent's sound before it.
    position: u64,
    /// Octets on the wire before it, padding included.
    wire: u64,
    /// When the clock says that it was reached.
    due: Instant,
    name: Option<Box<str>>,
}

/// See the module. It counts in octets of the wire's own coding.
#[derive(Debug)]
pub struct Ledger {
    octets_per_ms: u64,
    receipts: Receipts,
    /// Octets of the agent's sound, less what was cleared.
    sent: u64,
    /// All octets that were ever sent.
    wire: u64,
    /// Octets of the agent's sound below which we do not go again: echoed, cleared, or said once to have been heard.
    settled: u64,
    /// When all that was sent has been played, by the clock.
    busy_until: Option<Instant>,
    next_serial: u64,
    /// Position of the last mark.
    marked: u64,
    pending: VecDeque<Pending>,
    /// Marks of the agent's whose sound has not left yet, each with its position.
    wanted: VecDeque<(u64, Box<str>)>,
    ignored_echoes: u64,
}

impl Ledger {
    /// Nothing said yet, in a coding of so many octets a millisecond.
    pub fn new(octets_per_ms: usize, receipts: Receipts) -> Self {
        Ledger {
            octets_per_ms: octets_per_ms.max(1) as u64,
            receipts,
            sent: 0,
            wire: 0,
            settled: 0,
            busy_until: None,
            next_serial: 1,
            marked: 0,
            pending: VecDeque::with_capacity(MARKS_MAX),
            wanted: VecDeque::new(),
            ignored_echoes: 0,
        }
    }

    /// So many octets left, the last `padding` of which are nobody's.
    pub fn sent(&mut self, octets: usize, padding: usize, now: Instant) {
        self.settled = self.heard(now);
        self.sent += octets.saturating_sub(padding) as u64;
        self.wire += octets as u64;
        let from = self.busy_until.map_or(now, |until| until.max(now));
        self.busy_until = Some(from + self.duration(octets as u64));
    }

    /// The agent wants to know when its sound up to here has been heard, of which the last `waiting` octets have not left yet.
    ///
    /// # Errors
    /// [`MarksFull`]
    pub fn want(&mut self, name: &str, waiting: usize) -> Result<(), MarksFull> {
        if self.pending.len() + self.wanted.len() >= MARKS_MAX {
            return Err(MarksFull);
        }
        self.wanted.push_back((self.sent + waiting as u64, name.into()));
        Ok(())
    }

    /// The serial number of a mark that must be written now: the agent's, or one of our own. `is_end` says that the utterance
    /// is over, which is worth a mark too.
    pub fn poll_mark(&mut self, is_end: bool, now: Instant) -> Option<u64> {
        if self.wanted.front().is_some_and(|(position, _)| *position <= self.sent) {
            let (_, name) = self.wanted.pop_front()?;
            return Some(self.mark(Some(name), now));
        }
        let unmarked = self.sent - self.marked;
        let is_due = unmarked >= MARK_INTERVAL_MS * self.octets_per_ms || (is_end && unmarked > 0);
        let has_room = self.pending.len() + self.wanted.len() < MARKS_MAX;
        (is_due && has_room && self.receipts == Receipts::Echoed).then(|| self.mark(None, now))
    }

    fn mark(&mut self, name: Option<Box<str>>, now: Instant) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        self.marked = self.sent;
        let due = self.busy_until.unwrap_or(now);
        self.pending.push_back(Pending { serial, position: self.sent, wire: self.wire, due, name });
        serial
    }

    /// The provider has echoed a mark: it and all before it were heard, and the agent's among them are handed out by name with the
    /// heard milliseconds. False when the mark does not wait: cleared, echoed before, or never sent.
    pub fn handle_echo(&mut self, serial: u64, now: Instant, mut take: impl FnMut(&str, u64)) -> bool {
        let Some(at) = self.pending.iter().position(|mark| mark.serial == serial) else {
            self.ignored_echoes += 1;
            return false;
        };
        for _ in 0..=at {
            let Some(mark) = self.pending.pop_front() else { break };
            self.settle(&mark, now, &mut take);
        }
        true
    }

    fn settle(&mut self, mark: &Pending, now: Instant, take: &mut impl FnMut(&str, u64)) {
        self.settled = self.settled.max(mark.position);
        // The provider's clock is the true one: it is ahead of ours, or has stood still.
        if now < mark.due || now > mark.due + ECHO_GRACE {
            self.busy_until = Some(now + self.duration(self.wire - mark.wire));
        }
        if let Some(name) = &mark.name {
            take(name, mark.position / self.octets_per_ms);
        }
    }

    /// For a provider without receipts: hands out the agent's marks that the clock has reached.
    pub fn handle_timeout(&mut self, now: Instant, mut take: impl FnMut(&str, u64)) {
        while self.receipts == Receipts::None && self.pending.front().is_some_and(|mark| mark.due <= now) {
            let Some(mark) = self.pending.pop_front() else { break };
            // Settled where it was due, so that the clock is not put back.
            self.settle(&mark, mark.due, &mut take);
        }
    }

    /// When [`Ledger::handle_timeout`] is next wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.receipts == Receipts::None).then(|| self.pending.front().map(|mark| mark.due)).flatten()
    }

    /// What is not heard yet will never be. The agent's marks among it are handed out by name; their echoes, which some providers
    /// send at once, count for nothing. Returns the heard milliseconds.
    pub fn clear(&mut self, now: Instant, mut flushed: impl FnMut(&str)) -> u64 {
        let heard = self.heard(now);
        self.pending.drain(..).filter_map(|mark| mark.name).for_each(|name| flushed(&name));
        self.wanted.drain(..).for_each(|(_, name)| flushed(&name));
        (self.sent, self.settled, self.marked) = (heard, heard, heard);
        self.busy_until = None;
        heard / self.octets_per_ms
    }

    /// Milliseconds of the agent's sound that the caller has heard, as far as can be said.
    pub fn heard_ms(&self, now: Instant) -> u64 {
        self.heard(now) / self.octets_per_ms
    }

    /// Milliseconds of sound that were sent and are to be played yet, by the clock.
    pub fn ahead_ms(&self, now: Instant) -> u64 {
        self.busy_until.map_or(0, |until| until.saturating_duration_since(now).as_millis() as u64)
    }

    /// Whether an echo is overdue: the provider has stopped playing, or reading.
    pub fn is_stalled(&self, now: Instant) -> bool {
        let is_overdue = |mark: &Pending| now > mark.due + ECHO_GRACE;
        self.receipts == Receipts::Echoed && self.pending.front().is_some_and(is_overdue)
    }

    /// Octets that were ever sent, padding and cleared ones included.
    pub const fn wire(&self) -> u64 {
        self.wire
    }

    /// Echoes of marks that did not wait.
    pub const fn ignored_echoes(&self) -> u64 {
        self.ignored_echoes
    }

    fn heard(&self, now: Instant) -> u64 {
        let left = self.busy_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let by_clock = self.sent.saturating_sub(left.as_micros() as u64 * self.octets_per_ms / 1_000);
        let no_further = self.pending.front().map_or(self.sent, |mark| mark.position);
        by_clock.min(no_further).max(self.settled)
    }

    fn duration(&self, octets: u64) -> Duration {
        Duration::from_micros(octets * 1_000 / self.octets_per_ms)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs one instant to count from")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    /// A second of mu-law, its marks written as they come due.
    fn said(ledger: &mut Ledger, ms: u32, now: Instant) -> Vec<u64> {
        let mut marks = Vec::new();
        for _ in 0..ms / 20 {
            ledger.sent(160, 0, now);
            marks.extend(std::iter::from_fn(|| ledger.poll_mark(false, now)));
        }
        marks.extend(std::iter::from_fn(|| ledger.poll_mark(true, now)));
        marks
    }

    #[test]
    fn c10_echoes_after_a_clear_are_not_counted_as_played() {
        let (mut ledger, t0) = (Ledger::new(8, Receipts::Echoed), Instant::now());
        let marks = said(&mut ledger, 1_000, t0);
        assert_eq!(marks.len(), 4, "three of 300 ms and one at the end");
        assert!(ledger.handle_echo(marks[0], t0 + 300 * MS, |_, _| {}));
        assert_eq!(ledger.clear(t0 + 400 * MS, |_| {}), 400);
        for late in &marks[1..] {
            assert!(!ledger.handle_echo(*late, t0 + 410 * MS, |_, _| {}));
        }
        assert_eq!((ledger.heard_ms(t0 + 5_000 * MS), ledger.ignored_echoes()), (400, 3));
        // The next utterance's marks are new ones and count from there.
        let next = said(&mut ledger, 300, t0 + 5_000 * MS);
        assert!(!marks.contains(&next[0]));
        assert!(ledger.handle_echo(next[0], t0 + 5_300 * MS, |_, _| {}));
        assert_eq!(ledger.heard_ms(t0 + 5_300 * MS), 700);
    }

    #[test]
    fn c11_a_mark_echoed_before_the_clear_counts_once() {
        let (mut ledger, t0) = (Ledger::new(8, Receipts::Echoed), Instant::now());
        ledger.sent(800, 0, t0);
        ledger.want("m", 0).unwrap();
        let serial = ledger.poll_mark(false, t0).unwrap();
        let mut played = Vec::new();
        assert!(ledger.handle_echo(serial, t0 + 100 * MS, |name, ms| played.push((name.to_owned(), ms))));
        ledger.clear(t0 + 101 * MS, |name| panic!("{name} was heard"));
        assert!(!ledger.handle_echo(serial, t0 + 120 * MS, |_, _| panic!("counted twice")));
        assert_eq!(played, [("m".to_owned(), 100)]);
    }

    #[test]
    fn an_unanswered_mark_bounds_what_the_clock_believes() {
        let (mut ledger, t0) = (Ledger::new(8, Receipts::Echoed), Instant::now());
        let marks = said(&mut ledger, 1_000, t0);
        assert_eq!(ledger.heard_ms(t0 + 200 * MS), 200);
        assert_eq!(ledger.heard_ms(t0 + 900 * MS), 300, "the first mark has not come back");
        ledger.handle_echo(marks[1], t0 + 950 * MS, |_, _| {});
        assert_eq!(ledger.heard_ms(t0 + 950 * MS), 900, "the second vouches for the first");
        assert!(!ledger.is_stalled(t0 + 1_900 * MS) && ledger.is_stalled(t0 + 2_000 * MS));
        ledger.handle_echo(marks[2], t0 + 3_000 * MS, |_, _| {});
        assert_eq!(ledger.ahead_ms(t0 + 3_000 * MS), 100, "a provider that stood still plays on from there");
    }

    #[test]
    fn a_mark_in_mid_frame_waits_for_its_sound() {
        let (mut ledger, t0) = (Ledger::new(8, Receipts::Echoed), Instant::now());
        ledger.want("m", 80).unwrap();
        assert_eq!(ledger.poll_mark(false, t0), None);
        ledger.sent(160, 80, t0);
        assert!(ledger.poll_mark(false, t0).is_some());
        assert_eq!(ledger.heard_ms(t0 + 20 * MS), 10, "padding is nobody's");
    }

    #[test]
    fn without_receipts_the_clock_is_believed() {
        let (mut ledger, t0) = (Ledger::new(16, Receipts::None), Instant::now());
        ledger.sent(1_600, 0, t0);
        ledger.want("m", 0).unwrap();
        assert!(ledger.poll_mark(true, t0).is_some());
        assert_eq!((ledger.heard_ms(t0 + 60 * MS), ledger.poll_timeout()), (60, Some(t0 + 100 * MS)));
        let mut played = Vec::new();
        ledger.handle_timeout(t0 + 99 * MS, |_, _| panic!("too early"));
        ledger.handle_timeout(t0 + 130 * MS, |_, ms| played.push(ms));
        assert_eq!((played, ledger.heard_ms(t0 + 130 * MS)), (vec![100], 100));
        assert_eq!(ledger.poll_mark(true, t0), None, "nobody would echo a mark of ours");
    }

    #[test]
    fn marks_are_bounded_and_refused_beyond() {
        let (mut ledger, t0) = (Ledger::new(8, Receipts::Echoed), Instant::now());
        for _ in 0..MARKS_MAX {
            ledger.want("m", 0).unwrap();
            assert!(ledger.poll_mark(false, t0).is_some());
        }
        assert_eq!(ledger.want("m", 0), Err(MarksFull));
        ledger.sent(80_000, 0, t0);
        assert_eq!(ledger.poll_mark(true, t0), None);
    }

    proptest! {
        #[test]
        fn heard_never_runs_back_nor_ahead_of_what_was_sent(
            steps in proptest::collection::vec((0u8..5, 0u64..400), 1..80),
        ) {
            let mut ledger = Ledger::new(8, Receipts::Echoed);
            let (mut now, mut marks, mut last) = (Instant::now(), Vec::new(), 0);
            for (what, ms) in steps {
                now += ms as u32 * MS;
                match what {
                    0 | 1 => marks.extend(said(&mut ledger, ms as u32, now)),
                    2 => _ = ledger.clear(now, |_| {}),
                    3 => _ = ledger.handle_echo(ms % (marks.len() as u64 + 2), now, |_, _| {}),
                    _ => ledger.sent(160, 100, now),
                }
                let heard = ledger.heard_ms(now);
                prop_assert!(heard >= last && heard * 8 <= ledger.sent);
                prop_assert!(ledger.pending.len() <= MARKS_MAX);
                last = heard;
            }
        }
    }
}
