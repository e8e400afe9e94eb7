//! A frame made from a few samples more or fewer than it has: how two clocks that differ a little are kept in step.
//!
//! ```text
//!  8 samples before ── the samples that are used up ── up to 8 after      ▶ windowed sinc at evenly moved instants ▶ frame
//! ```
//!
//! The first output sample falls on the first input sample, and what follows the frame falls on the first sample that was
//! not used up: frames with and without a correction join without a step.
//!
//! [`Stretcher::shorten`] takes out more at a time, as phones do to shrink a jitter buffer: the lag at which the sound looks most
//! like itself, a period of a voice, is left out, and the frame goes over from what was before it to what is after it.

use std::ops::RangeInclusive;
use std::sync::LazyLock;

/// Samples on each side of an instant that it is made of.
pub const REACH: usize = 8;
/// Instants between two samples for which the filter is tabled; between them it is interpolated.
const PHASES: usize = 64;
/// Shape of the Kaiser window.
const KAISER_BETA: f64 = 6.5;

static KERNEL: LazyLock<Box<[[f32; 2 * REACH]]>> = LazyLock::new(|| (0..=PHASES).map(kernel).collect());

impl Default for Stretcher {
    fn default() -> Self {
        Self::new()
    }
}

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

/// The shortest period that is left out: 400 Hz. Shorter ones go as multiples.
pub const LAG_TENTHS_MS_MIN: usize = 25;
/// The longest: 80 Hz.
pub const LAG_TENTHS_MS_MAX: usize = 125;
/// How much of the sound is compared, at most.
const COMPARED_MS: usize = 10;

/// Remembers the end of a stream, to go on from there.
#[derive(Debug, Clone)]
pub struct Stretcher {
    past: [i16; REACH],
}

impl Stretcher {
    /// A stretcher with silence behind it.
    pub fn new() -> Self {
        // Made now, not by the first packet that needs it.
        LazyLock::force(&KERNEL);
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

    /// Makes `frame` of more of `input` than it has, by one of `lags`, and says how many samples that used up; 0: there are not
    /// enough. `per_ms` samples are a millisecond.
    pub fn shorten(
        &mut self,
        input: &[i16],
        lags: RangeInclusive<usize>,
        per_ms: usize,
        frame: &mut [i16],
    ) -> usize {
        let len = frame.len();
        let Some(room) = input.len().checked_sub(len).filter(|room| room >= lags.start() && len > 0) else {
            return 0;
        };
        let window = (COMPARED_MS * per_ms).min(len);
        let coarse = (per_ms / 4).max(1);
        let last = room.min(*lags.end());
        let best = best_lag(input, (*lags.start()..=last).step_by(coarse), window, coarse);
        let near = best.saturating_sub(coarse).max(*lags.start())..=(best + coarse).min(last);
        let lag = best_lag(input, near, window, (coarse / 2).max(1));
        for (n, sample) in frame.iter_mut().enumerate() {
            let (before, after) = (i64::from(input[n]), i64::from(input[n + lag]));
            *sample = ((before * (len - n) as i64 + after * n as i64) / len as i64) as i16;
        }
        self.hear(&input[..len + lag]);
        len + lag
    }
}

/// Of some lags the one at which the sound looks most like its beginning, by every `stride`th sample of `window`. Of silence
/// that is the longest.
fn best_lag(input: &[i16], lags: impl Iterator<Item = usize>, window: usize, stride: usize) -> usize {
    let (mut best, mut best_score) = (0, f32::MIN);
    for lag in lags {
        let (mut product, mut energy) = (0.0_f32, 1.0_f32);
        for (&now, &then) in input[..window].iter().zip(&input[lag..]).step_by(stride) {
            product += f32::from(now) * f32::from(then);
            energy += f32::from(then) * f32::from(then);
        }
        let score = product * product.abs() / energy;
        if score >= best_score {
            (best, best_score) = (lag, score);
        }
    }
    best
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
    fn a_tone_that_loses_a_period_stays_a_tone() {
        for (rate, hz) in
            [(SampleRate::Hz8000, 100.0), (SampleRate::Hz8000, 250.0), (SampleRate::Hz16000, 180.0)]
        {
            let per_ms = rate.samples_per_ms();
            let lags = per_ms * LAG_TENTHS_MS_MIN / 10..=per_ms * LAG_TENTHS_MS_MAX / 10;
            let mut signal = vec![0; 100 * per_ms];
            Sine::new(hz, 10_000, rate).fill(&mut signal);
            let mut frame = vec![0; 20 * per_ms];
            let used = Stretcher::new().shorten(&signal, lags, per_ms, &mut frame);
            let period = f64::from(rate.hz()) / hz;
            let left_out = (used - frame.len()) as f64 / period;
            assert!(
                left_out >= 0.9 && (left_out - left_out.round()).abs() < 0.02,
                "{left_out} periods of {hz} Hz"
            );
            frame.extend(&signal[used..]);
            let cosine = 2.0 * (std::f64::consts::TAU / period).cos();
            let error = |w: &[i16]| f64::from(w[0]) + f64::from(w[2]) - cosine * f64::from(w[1]);
            let worst = frame.windows(3).map(|w| error(w).abs()).fold(0.0, f64::max);
            assert!(worst < 60.0, "{worst} of 10 000 at {hz} Hz");
        }
    }

    #[test]
    fn what_is_too_short_or_silent_is_no_trouble() {
        let mut frame = [1; 160];
        assert_eq!(Stretcher::new().shorten(&[7; 170], 20..=100, 8, &mut frame), 0);
        assert_eq!(frame, [1; 160]);
        assert_eq!(Stretcher::new().shorten(&[0; 300], 20..=100, 8, &mut frame), 260, "all of it");
        assert_eq!(frame, [0; 160]);
        assert_eq!(Stretcher::new().shorten(&[0; 300], 20..=100, 8, &mut []), 0);
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
