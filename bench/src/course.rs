//! Where a burst is on its way, call by call: the engine's delay towards the agent and back, each by itself.
//!
//! ```text
//!   generator ──RTP──▶ engine ──link or WebSocket──▶ agent ──▶ engine ──RTP──▶ generator
//!   left                                  stamped by the kernel   returned        stamped by the kernel
//!        └──────────── hears ────────────────────┘           └──── answers ────────┘
//! ```
//!
//! Arrivals are the kernel's stamps, so that neither the agent's nor the generator's own slowness is in them; what is in
//! them beside the engine is the way through the loopback interface.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::clock::{Mono, NANOS_PER_MS};
use crate::distribution::Distribution;
use crate::stream::Window;

/// Nothing has passed there yet.
const NEVER: u64 = u64::MAX;

/// A delay as long as this belongs to another burst: they are a second apart.
const LONGEST_NS: u64 = 900 * NANOS_PER_MS;

/// What a caller's user part begins with; its slot follows.
const CALLER: &str = "bench-";

/// The name by which the agent knows the call of a slot again.
pub fn caller(slot: usize) -> String {
    format!("{CALLER}{slot}")
}

/// The slot in what the agent is told of a call, if it is one of ours.
pub fn slot_in(start: &str) -> Option<usize> {
    let (_, rest) = start.split_once(CALLER)?;
    let len = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..len].parse().ok()
}

/// Shared by generator and agent.
#[derive(Debug)]
pub struct Course {
    slots: Box<[Passing]>,
    hears: Mutex<Vec<(Mono, u64)>>,
    answers: Mutex<Vec<(Mono, u64)>>,
}

#[derive(Debug)]
struct Passing {
    left_ns: AtomicU64,
    returned_ns: AtomicU64,
}

impl Course {
    /// For so many calls.
    pub fn new(calls: usize) -> Self {
        let passing = || Passing { left_ns: AtomicU64::new(NEVER), returned_ns: AtomicU64::new(NEVER) };
        Self {
            slots: (0..calls).map(|_| passing()).collect(),
            hears: Mutex::default(),
            answers: Mutex::default(),
        }
    }

    /// A packet with a burst has left the generator.
    pub fn left(&self, slot: usize, at: Mono) {
        if let Some(passing) = self.slots.get(slot) {
            passing.left_ns.store(at.0, Ordering::Relaxed);
        }
    }

    /// The frame with its beginning has come to the agent.
    pub fn heard(&self, slot: usize, at: Mono) {
        let Some(passing) = self.slots.get(slot) else { return };
        keep(&self.hears, &passing.left_ns, at);
    }

    /// The agent returns it now.
    pub fn returned(&self, slot: usize, at: Mono) {
        if let Some(passing) = self.slots.get(slot) {
            passing.returned_ns.store(at.0, Ordering::Relaxed);
        }
    }

    /// The packet with its beginning has come back.
    pub fn answered(&self, slot: usize, at: Mono) {
        let Some(passing) = self.slots.get(slot) else { return };
        keep(&self.answers, &passing.returned_ns, at);
    }

    /// In a window: from caller to agent, and from agent to caller.
    pub fn in_window(&self, window: Window) -> (Distribution, Distribution) {
        let of = |samples: &Mutex<Vec<(Mono, u64)>>| {
            let mut distribution = Distribution::new();
            let samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
            for (_, nanos) in samples.iter().filter(|(at, _)| window.contains(*at)) {
                distribution.record_ns(*nanos);
            }
            distribution
        };
        (of(&self.hears), of(&self.answers))
    }
}

/// Each burst counts once; what was not seen leaving counts not at all.
fn keep(samples: &Mutex<Vec<(Mono, u64)>>, since: &AtomicU64, at: Mono) {
    let since = since.swap(NEVER, Ordering::Relaxed);
    if since != NEVER && at.0 >= since && at.0 - since < LONGEST_NS {
        samples.lock().unwrap_or_else(PoisonError::into_inner).push((at, at.0 - since));
    }
}

/// A sample as loud as this is part of a burst (−24 dBFS).
const LOUD: u16 = 2_000;

/// Frames of quiet before a beginning.
const QUIET_FRAMES: u32 = 5;

/// Frames that a burst can reach into: its own, and the tail of the filters.
const BURST_FRAMES: u32 = 3;

/// The agent's ear for one call's bursts in L16 frames.
#[derive(Debug, Default)]
pub struct Ear {
    quiet: u32,
    left: u32,
}

impl Ear {
    /// Takes the next frame, octets little-endian. `(begins, burst)`: a burst begins in it; it is part of one.
    pub fn hear(&mut self, frame: &[u8]) -> (bool, bool) {
        let is_loud =
            frame.as_chunks().0.iter().any(|&sample| i16::from_le_bytes(sample).unsigned_abs() > LOUD);
        let begins = is_loud && self.quiet >= QUIET_FRAMES;
        self.quiet = if is_loud { 0 } else { self.quiet.saturating_add(1) };
        if begins {
            self.left = BURST_FRAMES;
        }
        let burst = self.left > 0;
        self.left = self.left.saturating_sub(1);
        (begins, burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(ms * NANOS_PER_MS)
    }

    #[test]
    fn slot_is_found_in_what_the_agent_is_told() {
        let told = format!(r#"{{"event":"start","from":"sip:{}@127.0.0.1:4711","to":"x"}}"#, caller(207));
        assert_eq!(slot_in(&told), Some(207));
        assert_eq!(slot_in(r#"{"from":"bench-"}"#), None);
        assert_eq!(slot_in(r#"{"from":"bench"}"#), None);
    }

    #[test]
    fn each_way_is_timed_once_and_only_in_the_window() {
        let course = Course::new(2);
        course.heard(0, at(5));
        course.left(0, at(10));
        course.heard(0, at(12));
        course.heard(0, at(13));
        course.returned(0, at(13));
        course.answered(0, at(30));
        course.left(1, at(10));
        course.heard(1, at(2_000));
        course.left(7, at(1));
        let (hears, answers) = course.in_window(Window { begin: at(0), end: at(100) });
        assert_eq!((hears.count(), answers.count()), (1, 1));
        let about = |d: &Distribution, ms: f64| (d.percentile_ms(50.0) - ms).abs() < 0.1;
        assert!(about(&hears, 2.0) && about(&answers, 17.0));
        let (hears, answers) = course.in_window(Window { begin: at(13), end: at(100) });
        assert_eq!((hears.count(), answers.count()), (0, 1));
    }

    #[test]
    fn ear_tells_the_first_frame_of_a_burst() {
        let frame = |level: i16| level.to_le_bytes().repeat(320);
        let mut ear = Ear::default();
        // Nothing is known of what came before.
        assert_eq!(ear.hear(&frame(8_000)), (false, false));
        for _ in 0..5 {
            assert_eq!(ear.hear(&frame(100)), (false, false));
        }
        assert_eq!(ear.hear(&frame(-8_000)), (true, true));
        assert_eq!(ear.hear(&frame(8_000)), (false, true));
        assert_eq!(ear.hear(&frame(0)), (false, true));
        assert_eq!(ear.hear(&frame(0)), (false, false));
    }
}
