//! What the caller has heard of the agent, from the engine's counter.
//!
//! The engine reports `heardMs`: milliseconds of agent audio that left the wire since the stream began. A turn's share
//! is the difference to where the counter stood when its first audio was sent. A turn is *open* until a mark, a
//! `cleared` or our own estimate closes it.

use std::time::{Duration, Instant};

/// The engine answers `clear` within a ptime; after this we go by our own clock.
const CLEARED_WAIT: Duration = Duration::from_millis(1_000);
/// A mark comes when the audio before it has been played; this much later than we reckon, we stop waiting.
const MARK_WAIT: Duration = Duration::from_millis(3_000);
/// The counter moves in frames: a turn heard up to its last frame or two is heard.
const HEARD_SLACK_MS: u64 = 60;

/// A turn that is closed: what to write down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// The turn.
    pub turn: u32,
    /// Milliseconds of it that the caller heard.
    pub heard_ms: u64,
    /// It was cut before its end.
    pub interrupted: bool,
}

/// One turn's audio on its way to the caller's ear.
#[derive(Debug, Clone, Copy)]
struct Open {
    turn: u32,
    /// When its first audio was sent, moved on by holds.
    began: Instant,
    sent_ms: u64,
    /// No more audio will come for it.
    complete: bool,
    /// Cut by us at this moment; `cleared` is awaited.
    cut_at: Option<Instant>,
}

/// Follows the engine's counter.
#[derive(Debug, Default)]
pub struct Playback {
    /// The counter when the open turn began.
    base_ms: u64,
    open: Option<Open>,
}

impl Playback {
    /// Audio of a turn was handed over. A turn still open before it counts as heard to its end or its cut.
    pub fn sent(&mut self, turn: u32, audio_ms: u64, now: Instant) -> Option<Heard> {
        match &mut self.open {
            Some(open) if open.turn == turn => {
                open.sent_ms += audio_ms;
                None
            }
            _ => {
                let closed = self.estimate(now);
                self.open = Some(Open { turn, began: now, sent_ms: audio_ms, complete: false, cut_at: None });
                closed
            }
        }
    }

    /// All audio of the turn was handed over.
    pub fn complete(&mut self, turn: u32) {
        if let Some(open) = self.open.as_mut().filter(|open| open.turn == turn) {
            open.complete = true;
        }
    }

    /// We asked for the queue to be emptied.
    pub fn cut(&mut self, now: Instant) {
        if let Some(open) = self.open.as_mut() {
            open.cut_at.get_or_insert(now);
        }
    }

    /// The engine played past the turn's end mark.
    pub fn marked(&mut self, turn: u32, heard_ms: u64) -> Option<Heard> {
        match self.open {
            Some(open) if open.turn == turn => self.close(heard_ms),
            Some(open) if open.turn < turn => None,
            // The mark of a turn that was closed by estimate, which was wrong (a call that rings for long plays
            // nothing): what is open, or comes next, begins here.
            _ => {
                self.base_ms = heard_ms;
                None
            }
        }
    }

    /// The engine emptied its queue.
    pub fn cleared(&mut self, heard_ms: u64) -> Option<Heard> {
        match self.open {
            Some(open) if open.cut_at.is_some() => self.close(heard_ms),
            // The cut turn was closed by estimate; none of the open one was played before this.
            Some(_) => {
                self.base_ms = heard_ms;
                None
            }
            None => None,
        }
    }

    /// The call is over, or the engine did not answer: closes by our own clock.
    pub fn estimate(&mut self, now: Instant) -> Option<Heard> {
        let open = self.open?;
        let until = open.cut_at.unwrap_or(now);
        let played_ms = u64::try_from((until - open.began).as_millis()).unwrap_or(u64::MAX);
        self.close(self.base_ms + played_ms.min(open.sent_ms))
    }

    fn close(&mut self, counter_ms: u64) -> Option<Heard> {
        let open = self.open.take()?;
        let heard_ms = counter_ms.saturating_sub(self.base_ms);
        self.base_ms = self.base_ms.max(counter_ms);
        let interrupted = !open.complete || heard_ms + HEARD_SLACK_MS < open.sent_ms;
        Some(Heard { turn: open.turn, heard_ms: heard_ms.min(open.sent_ms), interrupted })
    }

    /// The turn whose audio is out and not cut.
    pub fn playing(&self) -> Option<u32> {
        self.open.filter(|open| open.cut_at.is_none()).map(|open| open.turn)
    }

    /// A hold of this length is over: nothing was played in it.
    pub fn held_for(&mut self, length: Duration) {
        if let Some(open) = self.open.as_mut() {
            open.began += length;
        }
    }

    /// When to stop waiting for the engine's word.
    pub fn deadline(&self) -> Option<Instant> {
        let open = self.open?;
        match open.cut_at {
            Some(cut_at) => Some(cut_at + CLEARED_WAIT),
            None if open.complete => Some(open.began + Duration::from_millis(open.sent_ms) + MARK_WAIT),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_marked_turn_was_heard_whole_and_the_next_counts_from_there() {
        let (mut playback, t0) = (Playback::default(), Instant::now());
        playback.sent(1, 2_000, t0);
        playback.complete(1);
        assert_eq!(playback.marked(1, 2_000), Some(Heard { turn: 1, heard_ms: 2_000, interrupted: false }));
        playback.sent(2, 1_000, t0 + ms(3_000));
        playback.complete(2);
        playback.cut(t0 + ms(3_400));
        assert_eq!(playback.cleared(2_400), Some(Heard { turn: 2, heard_ms: 400, interrupted: true }));
    }

    #[test]
    fn a_clear_without_an_answer_is_closed_by_our_clock() {
        let (mut playback, t0) = (Playback::default(), Instant::now());
        playback.sent(1, 5_000, t0);
        playback.cut(t0 + ms(700));
        assert_eq!(playback.deadline(), Some(t0 + ms(700) + CLEARED_WAIT));
        let heard = playback.estimate(t0 + ms(1_700));
        assert_eq!(heard, Some(Heard { turn: 1, heard_ms: 700, interrupted: true }));
    }

    #[test]
    fn a_late_mark_puts_a_wrong_estimate_right() {
        let (mut playback, t0) = (Playback::default(), Instant::now());
        playback.sent(1, 2_000, t0);
        playback.complete(1);
        assert!(playback.estimate(t0 + ms(6_000)).is_some());
        playback.sent(2, 1_000, t0 + ms(7_000));
        assert_eq!(playback.marked(1, 1_500), None);
        assert_eq!(playback.marked(3, 9_999), None, "there is no such turn yet");
        playback.complete(2);
        assert_eq!(playback.marked(2, 2_500).map(|heard| heard.heard_ms), Some(1_000));
    }

    #[test]
    fn a_turn_marked_although_it_was_cut_in_flight_was_heard_whole() {
        let (mut playback, t0) = (Playback::default(), Instant::now());
        playback.sent(1, 1_000, t0);
        playback.complete(1);
        playback.cut(t0 + ms(1_010));
        assert_eq!(playback.marked(1, 1_000).map(|heard| heard.interrupted), Some(false));
        assert_eq!(playback.cleared(1_000), None);
    }

    #[test]
    fn a_hold_moves_the_expected_end() {
        let (mut playback, t0) = (Playback::default(), Instant::now());
        playback.sent(1, 1_000, t0);
        playback.complete(1);
        playback.held_for(ms(9_000));
        assert_eq!(playback.deadline(), Some(t0 + ms(10_000) + MARK_WAIT));
    }
}
