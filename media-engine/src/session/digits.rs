//! One key press, one event: digits come as telephone-events (RFC 4733) and by SIP INFO, and some peers send both.
//!
//! ```text
//!   RTP  5 ──────── 5 ────────▶  told, told
//!   INFO    5 ──────── 5 ─────▶  dropped: each is the other way's 5 of a moment ago
//! ```

use std::time::{Duration, Instant};

/// How far apart the two ways may bring one key: an INFO is sent when the key is released, and may be repeated once.
const APART_MAX: Duration = Duration::from_millis(1_500);
/// Keys that wait for their double. Nobody presses more within [`APART_MAX`]; the oldest goes.
const RECENT_MAX: usize = 16;

/// Which way a digit came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Telephone-event.
    Rtp,
    /// SIP INFO.
    Info,
    /// Its tones, in the sound.
    Inband,
    /// By the provider's stream.
    Stream,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Digits {
    /// Told, and not doubled yet; oldest first.
    recent: Vec<(char, Source, Instant)>,
}

impl Digits {
    /// Whether this digit is to be told: it is not the double of one that came the other way.
    pub fn is_new(&mut self, digit: char, source: Source, now: Instant) -> bool {
        self.recent.retain(|(_, _, at)| now.saturating_duration_since(*at) < APART_MAX);
        let double = self.recent.iter().position(|(known, way, _)| *known == digit && *way != source);
        if let Some(double) = double {
            self.recent.remove(double);
            return false;
        }
        if self.recent.len() >= RECENT_MAX {
            self.recent.remove(0);
        }
        self.recent.push((digit, source, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of `5i` (INFO) and `5r` (RTP), 100 ms apart.
    fn told(keys: &str) -> String {
        let mut digits = Digits::default();
        let mut now = Instant::now();
        let mut told = String::new();
        for key in keys.split(' ') {
            let (digit, way) = (key.chars().next().unwrap(), &key[1..]);
            let source = if way == "i" { Source::Info } else { Source::Rtp };
            if digits.is_new(digit, source, now) {
                told.push(digit);
            }
            now += Duration::from_millis(100);
        }
        told
    }

    #[test]
    fn key_that_comes_both_ways_is_told_once() {
        assert_eq!(told("5r 5i"), "5");
        assert_eq!(told("5i 5r"), "5");
        assert_eq!(told("1r 2r 1i 2i 3i 3r"), "123");
    }

    #[test]
    fn same_key_pressed_twice_is_told_twice() {
        assert_eq!(told("5r 5r"), "55");
        assert_eq!(told("5r 5i 5r 5i"), "55");
        assert_eq!(told("5r 5r 5i 5i"), "55");
        assert_eq!(told("5i 5i"), "55");
    }

    #[test]
    fn key_of_long_ago_has_no_double_any_more() {
        let now = Instant::now();
        let mut digits = Digits::default();
        assert!(digits.is_new('5', Source::Rtp, now));
        assert!(digits.is_new('5', Source::Info, now + APART_MAX));
    }
}
