//! Caller audio that waits for its agent, in the agent's wire format.
//!
//! While the agent is reached it holds [`LATE_MS_MAX`]: who attaches late hears the first words, as fast as its stream takes
//! them. Later it holds [`BACKLOG_MS_MAX`] and is empty almost always; an agent that does not read loses the oldest frames.

use std::collections::VecDeque;

/// Caller audio that may wait for an agent that does not read: what a stalled agent may be late without missing a
/// word. Older sound is of no use to a conversation.
pub const BACKLOG_MS_MAX: u32 = 1_000;

/// Caller audio that waits for an agent that is still being reached: what one has to connect in, by default.
pub const LATE_MS_MAX: u32 = 5_000;

/// See the module.
#[derive(Debug)]
pub struct Backlog {
    /// Whole and begun frames, oldest first.
    queue: VecDeque<u8>,
    frame_octets: usize,
    frame_ms: u32,
    is_attached: bool,
    /// What waited for a late agent has not been caught up with.
    is_late: bool,
    dropped_ms: u64,
}

impl Backlog {
    /// An empty one of frames of this size and length.
    pub fn new(frame_octets: usize, frame_ms: u32) -> Self {
        Self {
            queue: VecDeque::with_capacity(4 * frame_octets),
            frame_octets,
            frame_ms,
            is_attached: false,
            is_late: true,
            dropped_ms: 0,
        }
    }

    /// The agent is there.
    pub fn attach(&mut self) {
        self.is_attached = true;
        self.check_late();
    }

    fn octets_of(&self, ms: u32) -> usize {
        self.frame_octets * (ms / self.frame_ms) as usize
    }

    fn check_late(&mut self) {
        if self.is_attached && self.is_late && self.queue.len() <= self.octets_of(BACKLOG_MS_MAX) {
            self.is_late = false;
        }
    }

    /// Appends octets; [`Backlog::trim`] afterwards keeps the bound.
    pub fn push(&mut self, octets: &[u8]) {
        self.queue.extend(octets);
    }

    /// Drops the oldest frames above the bound and says how many milliseconds they were.
    pub fn trim(&mut self) -> u64 {
        let limit = self.octets_of(if self.is_late { LATE_MS_MAX } else { BACKLOG_MS_MAX });
        let mut dropped = 0;
        while self.queue.len() > limit {
            self.queue.drain(..self.frame_octets);
            dropped += u64::from(self.frame_ms);
        }
        self.dropped_ms += dropped;
        dropped
    }

    /// A whole frame waits.
    pub fn has_frame(&self) -> bool {
        self.queue.len() >= self.frame_octets
    }

    /// Octets of one frame.
    pub fn frame_octets(&self) -> usize {
        self.frame_octets
    }

    /// Copies the oldest frame into `out`, which is as long as a frame. It stays until [`Backlog::pop`].
    pub fn copy(&self, out: &mut [u8]) {
        let (front, back) = self.queue.as_slices();
        let split = front.len().min(out.len());
        out[..split].copy_from_slice(&front[..split]);
        let rest = out.len() - split;
        out[split..].copy_from_slice(&back[..rest]);
    }

    /// Takes the oldest frame away.
    pub fn pop(&mut self) {
        let octets = self.frame_octets.min(self.queue.len());
        self.queue.drain(..octets);
        self.check_late();
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.queue.clear();
    }

    /// Milliseconds that were dropped.
    pub fn dropped_ms(&self) -> u64 {
        self.dropped_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_agent_gets_the_first_words_and_then_no_more_than_a_second_waits() {
        let mut backlog = Backlog::new(4, 20);
        for n in 0..200u8 {
            backlog.push(&[n; 4]);
            assert_eq!(backlog.trim(), 0);
        }
        backlog.attach();
        backlog.push(&[200; 4]);
        assert_eq!(backlog.trim(), 0, "being attached loses nothing");
        let mut frame = [0; 4];
        for n in 0..=200u8 {
            assert!(backlog.has_frame());
            backlog.copy(&mut frame);
            assert_eq!(frame, [n; 4]);
            backlog.pop();
        }
        for n in 0..51 {
            backlog.push(&[n; 4]);
            assert_eq!(backlog.trim(), u64::from(n >= 50) * 20);
        }
        backlog.copy(&mut frame);
        assert_eq!(frame, [1; 4], "the oldest went");
        assert_eq!(backlog.dropped_ms(), 20);
    }

    #[test]
    fn what_waits_for_an_agent_that_never_comes_is_bounded() {
        let mut backlog = Backlog::new(4, 20);
        for _ in 0..300 {
            backlog.push(&[0; 4]);
            backlog.trim();
        }
        assert_eq!(backlog.queue.len(), 4 * 250);
        assert_eq!(backlog.dropped_ms(), 1_000);
    }
}
