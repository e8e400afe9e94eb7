//! A frame made from a few samples more or fewer than it has: how two clocks that differ a little are kept in step.
//!
//! ```text
//!  8 samples before ── the samples that are used up ── up to 8 after      ▶ windowed sinc at evenly moved instants ▶ frame
//! ```
//!
//! The first output sample falls on the first input sample, and what follows the frame falls on the first sample that was
//! not used up: frames with and without a correction join without a step.

use std::sync::LazyLock;

/// Samples on each side of an instant that it is made of.
pub const REACH: usize = 8;
/// Instants between two samples for which the filter is tabled; between them it is interpolated.
const PHASES: usize = 64;
/// Shape of the Kaiser window.
const KAISER_BETA: f64 = 6.5;

static KERNEL: LazyLock<Box<[[f32; 2 * REACH]]>> = LazyLock::new(|| (0..=PHASES).map(kernel).collect());

/// The filter for an instant `phase` / [`PHASES`] after a sample, scaled to a gain of 1.
fn kernel(phase: usize) -> [f32; 2 * REACH] {
    let fraction = phase as f64 / PHASES as f64;
    let mut taps = [0.0; 2 * REACH];
    for (n, tap) in taps.iter_mut().enumerate() {
        let x = n as f64 - (REACH as f64 - 1.0) - fraction;
        *tap = crate::resample::kaiser(x / REACH as f64, KAISER_BETA) * crate::resample::sinc(x);
    }
    let sum: f64 = taps.iter().sum();
    taps.map(|tap| (tap / sum) as f32)
}

/// Remembers the end of a stream, to go on from there.
#[derive(Debug, Clone, Default)]
pub struct Stretcher {
    past: [i16; REACH],
}

impl Stretcher {
    /// A stretcher with silence behind it.
    pub const fn new() -> Self {
        Self { past: [0; REACH] }
    }

    /// Takes note of sound that passed as it was.
    pub fn hear(&mut self, frame: &[i16]) {
        match frame.len().checked_sub(REACH) {
            Some(from) => self.past.copy_from_slice(&frame[from..]),
            None => {
                self.past.copy_within(frame.len().., 0);
                self.past[REACH - frame.len()..].copy_from_slice(frame);
            }
        }
    }

    /// Makes `frame` of the first `used` samples of `input`, whose rest says how it goes on (as much as is known; the last
    /// sample stands for what is not).
    pub fn stretch(&mut self, input: &[i16], used: usize, frame: &mut [i16]) {
        let Some(&last) = input.last() else { return };
        let at = |place: isize| match usize::try_from(place) {
            Ok(place) => input.get(place).copied().unwrap_or(last),
            Err(_) => self.past.get((REACH as isize + place) as usize).copied().unwrap_or(0),
        };
        let len = frame.len().max(1);
        for (n, sample) in frame.iter_mut().enumerate() {
            let (whole, rest) = (n * used / len, n * used % len);
            let phase = rest as f32 * PHASES as f32 / len as f32;
            let (lower, share) = (phase as usize, phase.fract());
            let (before, after) = (&KERNEL[lower], &KERNEL[(lower + 1).min(PHASES)]);
            let mut sum = 0.0;
            for tap in 0..2 * REACH {
                let weight = before[tap] + (after[tap] - before[tap]) * share;
                sum += weight * f32::from(at(whole as isize + tap as isize - (REACH as isize - 1)));
            }
            *sample = sum.round().clamp(f32::from(i16::MIN), f32::from(i16::MAX)) as i16;
        }
        self.hear(&input[..used.min(input.len())]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SampleRate;
    use crate::tone::Sine;

    #[test]
    fn a_tone_stays_a_tone_across_corrected_frames() {
        for hz in [200.0, 1_000.0, 2_700.0] {
            let mut signal = vec![0; 8_000];
            Sine::new(hz, 10_000, SampleRate::Hz8000).fill(&mut signal);
            for change in [-1_isize, 1] {
                let mut stretcher = Stretcher::new();
                let (mut at, mut heard) = (0, Vec::new());
                for n in 0..30 {
                    let mut frame = [0; 160];
                    if n % 5 == 4 {
                        let used = 160_usize.strict_add_signed(change);
                        stretcher.stretch(&signal[at..at + used + REACH], used, &mut frame);
                        at += used;
                    } else {
                        frame.copy_from_slice(&signal[at..at + 160]);
                        stretcher.hear(&frame);
                        at += 160;
                    }
                    heard.extend(frame);
                }
                // A sine obeys x[n+1] + x[n−1] = 2cos(ω)·x[n], whatever its phase; what is left over is not the tone.
                let turn = std::f64::consts::TAU * hz / 8_000.0;
                let cosine = 2.0 * turn.cos();
                // In a corrected frame the tone is 1/160 higher or lower: that much is meant.
                let meant = 2.0 * turn.sin() * turn / 160.0 * 10_000.0;
                let error = |w: &[i16]| f64::from(w[0]) + f64::from(w[2]) - cosine * f64::from(w[1]);
                let worst = heard[200..].windows(3).map(|w| error(w).abs()).fold(0.0, f64::max);
                assert!(worst < meant + 50.0, "{worst} of 10 000 at {hz} Hz by {change}, {meant} is meant");
            }
        }
    }

    #[test]
    fn nothing_changed_is_nothing_done() {
        let mut signal = vec![0; 168];
        Sine::new(700.0, 10_000, SampleRate::Hz8000).fill(&mut signal);
        let mut frame = [0; 160];
        Stretcher::new().stretch(&signal, 160, &mut frame);
        assert_eq!(frame, signal[..160]);
    }
}
