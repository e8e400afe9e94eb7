//! Time as the measurement sees it: two kernel clocks and the bridge between them.
//!
//! Deadlines and round trips are on `CLOCK_MONOTONIC` ([`Mono`]). The kernel stamps arriving datagrams with
//! `CLOCK_REALTIME` ([`Wall`]), which may be stepped or slewed; [`WallToMono`] is read afresh each tick, so that an
//! adjustment of the wall clock moves one tick's stamps at most.
use std::ops::{Add, Sub};

use crate::host;

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mono(pub u64);

/// Nanoseconds of `CLOCK_REALTIME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Wall(pub u64);

/// Nanoseconds in a millisecond.
pub const NANOS_PER_MS: u64 = 1_000_000;

impl Mono {
    /// Reads the clock.
    pub fn now() -> Self {
        Self(host::clock_ns(libc::CLOCK_MONOTONIC))
    }

    /// Nanoseconds since `earlier`; negative when `earlier` is in fact later.
    pub fn signed_since(self, earlier: Self) -> i64 {
        self.0.wrapping_sub(earlier.0) as i64
    }
}

impl Wall {
    /// Reads the clock.
    pub fn now() -> Self {
        Self(host::clock_ns(libc::CLOCK_REALTIME))
    }
}

/// Later by so many nanoseconds.
impl Add<u64> for Mono {
    type Output = Self;
    fn add(self, nanos: u64) -> Self {
        Self(self.0 + nanos)
    }
}

/// Nanoseconds between two instants, 0 when the second is later.
impl Sub for Mono {
    type Output = u64;
    fn sub(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Converts the kernel's arrival stamps to monotonic time.
#[derive(Debug, Clone, Copy)]
pub struct WallToMono {
    /// Wall minus monotonic.
    offset_ns: i64,
}

/// A reading of both clocks that took longer than this was interrupted in between and is not used. Undisturbed it
/// takes about 0.1 µs.
const STEADY_READING_NS: u64 = 2_000;

impl WallToMono {
    /// Reads both clocks.
    pub fn new() -> Self {
        let mut bridge = Self { offset_ns: 0 };
        // Bounded: on a host where no reading is steady the last one is as good as any.
        for _ in 0..100 {
            if bridge.refresh() {
                return bridge;
            }
        }
        bridge.offset_ns = Wall::now().0 as i64 - Mono::now().0 as i64;
        bridge
    }

    /// Reads both clocks again; keeps the old offset and returns false when the reading was interrupted.
    pub fn refresh(&mut self) -> bool {
        let before = Mono::now();
        let wall = Wall::now();
        let after = Mono::now();
        if after - before > STEADY_READING_NS {
            return false;
        }
        let middle = before.0 + (after - before) / 2;
        self.offset_ns = wall.0 as i64 - middle as i64;
        true
    }

    /// The monotonic time of a kernel stamp.
    pub fn mono(&self, stamp: Wall) -> Mono {
        Mono((stamp.0 as i64 - self.offset_ns) as u64)
    }
}

impl Default for WallToMono {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_stamp_taken_now_is_now_on_the_monotonic_clock() {
        let bridge = WallToMono::new();
        let before = Mono::now();
        let stamp = bridge.mono(Wall::now());
        let after = Mono::now();
        // A microsecond each way for the halved reading time.
        assert!(stamp.0 + 1_000 >= before.0 && stamp.0 <= after.0 + 1_000, "{before:?} {stamp:?} {after:?}");
    }

    #[test]
    fn signed_difference_keeps_the_sign() {
        assert_eq!(Mono(5).signed_since(Mono(7)), -2);
        assert_eq!(Mono(5) - Mono(7), 0);
    }
}
