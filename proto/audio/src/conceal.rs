//! Concealment of lost packets for codecs that have none of their own, in the manner of G.711 Appendix I.
//!
//! ```text
//!  heard ──▶ last 50 ms are kept           lost ──▶ pitch by correlation ──▶ last period again and again ──▶ fade
//!              ▲                                                               from 10 ms on, silent at 60 ms
//!              └─ what comes after a gap is cross-faded with what was made up ◀──┘
//! ```
//!
//! Unlike the Appendix nothing is held back: sound passes at once, and the step between the last sample heard and the
//! first one made up is smoothed afterwards instead of before. Any rate; frames of any length.

use crate::format::SampleRate;

/// The longest pitch period that is looked for: 66 Hz.
const PITCH_TENTHS_MS_MAX: usize = 150;
/// The shortest: 200 Hz. Shorter periods are repeated as multiples.
const PITCH_TENTHS_MS_MIN: usize = 50;
/// How much sound is compared to find the period.
const CORRELATION_MS: usize = 20;
/// After so much of a gap the last two periods are repeated instead of one, after twice so much three: one alone buzzes.
const MORE_PERIODS_MS: usize = 10;
/// Sound made up begins to fade here, and is gone at [`SILENT_MS`].
const FADE_FROM_MS: usize = 10;
/// Nothing is made up beyond this: speech that went on is not guessable any more.
pub const SILENT_MS: usize = 60;
/// Cross-fade back into what is heard after a gap: 4 ms, and 4 more for each 10 ms of gap, to this at most.
const BACK_MS_MAX: usize = 10;
/// What is kept: three periods and a quarter.
const HISTORY_TENTHS_MS: usize = 490;
/// The same at the highest rate: 48 kHz.
const HISTORY_MAX: usize = 48 * HISTORY_TENTHS_MS / 10;

/// Concealment of one stream.
#[derive(Debug, Clone)]
pub struct Concealer {
    per_ms: usize,
    /// What was heard last, as a ring: nothing is moved while all is well. A gap turns it so that the oldest is first.
    history: Box<[i16]>,
    /// The oldest sample, where the next one goes.
    oldest: usize,
    gap: Option<Gap>,
}

/// A gap that lasts.
#[derive(Debug, Clone, Copy)]
struct Gap {
    /// Samples of one period.
    period: usize,
    /// Periods that are repeated now.
    periods: usize,
    /// Where in them we are.
    at: usize,
    /// Samples made up so far.
    made: usize,
    /// Step between what was heard and the first sample made up; taken back over a quarter of a period.
    step: i32,
}

impl Concealer {
    /// Concealment with silence behind it.
    pub fn new(rate: SampleRate) -> Self {
        let per_ms = rate.samples_per_ms();
        let history = vec![0; per_ms * HISTORY_TENTHS_MS / 10].into_boxed_slice();
        debug_assert!(history.len() <= HISTORY_MAX);
        Self { per_ms, history, oldest: 0, gap: None }
    }

    /// True from a gap's first sample to the first that is heard again.
    pub const fn is_concealing(&self) -> bool {
        self.gap.is_some()
    }

    /// Takes note of sound that was heard. The first after a gap is cross-faded with what was made up.
    pub fn hear(&mut self, frame: &mut [i16]) {
        if let Some(gap) = self.gap.take() {
            let made_ms = gap.made / self.per_ms;
            let fade = (self.per_ms * (4 + 4 * (made_ms / 10)).min(BACK_MS_MAX)).min(frame.len());
            let mut gap = gap;
            for (n, sample) in frame[..fade].iter_mut().enumerate() {
                let made_up = self.next(&mut gap);
                let (new, old) = (n as i32 + 1, (fade - n) as i32 - 1);
                *sample = ((i32::from(*sample) * new + made_up * old) / fade as i32) as i16;
            }
        }
        self.remember(frame);
    }

    /// Fills a frame with what might have been said.
    pub fn conceal(&mut self, frame: &mut [i16]) {
        let mut gap = match self.gap {
            Some(gap) => gap,
            None => self.begin(),
        };
        for sample in frame.iter_mut() {
            *sample = self.next(&mut gap) as i16;
        }
        self.gap = Some(gap);
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.history.fill(0);
        self.oldest = 0;
        self.gap = None;
    }

    fn remember(&mut self, frame: &[i16]) {
        let len = self.history.len();
        let frame = &frame[frame.len().saturating_sub(len)..];
        let (head, tail) = frame.split_at(frame.len().min(len - self.oldest));
        self.history[self.oldest..self.oldest + head.len()].copy_from_slice(head);
        self.history[..tail.len()].copy_from_slice(tail);
        self.oldest += frame.len();
        if self.oldest >= len {
            self.oldest -= len;
        }
    }

    fn begin(&mut self) -> Gap {
        self.history.rotate_left(self.oldest);
        self.oldest = 0;
        let period = self.period();
        let end = self.history.len();
        let step = i32::from(self.history[end - 1]) - i32::from(self.history[end - 1 - period]);
        Gap { period, periods: 1, at: 0, made: 0, step }
    }

    /// The lag at which the last 20 ms look most like what was before them: coarsely first, then to the sample.
    fn period(&self) -> usize {
        let coarse = (self.per_ms / 4).max(1);
        let (min, max) = (self.per_ms * PITCH_TENTHS_MS_MIN / 10, self.per_ms * PITCH_TENTHS_MS_MAX / 10);
        let best = self.best((min..=max).step_by(coarse), coarse);
        self.best(best.saturating_sub(coarse).max(min)..=(best + coarse).min(max), (coarse / 2).max(1))
    }

    /// Of some lags the one with the largest normalised correlation, by every `stride`th sample.
    fn best(&self, lags: impl Iterator<Item = usize>, stride: usize) -> usize {
        let end = self.history.len();
        let window = self.per_ms * CORRELATION_MS;
        let newest = &self.history[end - window..];
        let (mut best, mut best_score) = (self.per_ms * PITCH_TENTHS_MS_MAX / 10, 0.0_f32);
        for lag in lags {
            let older = &self.history[end - window - lag..end - lag];
            let (mut product, mut energy) = (0.0_f32, 1.0_f32);
            for (&new, &old) in newest.iter().zip(older).step_by(stride) {
                product += f32::from(new) * f32::from(old);
                energy += f32::from(old) * f32::from(old);
            }
            let score = product.max(0.0) * product.max(0.0) / energy;
            if score > best_score {
                (best, best_score) = (lag, score);
            }
        }
        best
    }

    /// The next sample made up, faded.
    fn next(&self, gap: &mut Gap) -> i32 {
        let silent = self.per_ms * SILENT_MS;
        if gap.made >= silent {
            gap.made = gap.made.saturating_add(1);
            return 0;
        }
        // More periods only where one begins, so that the waveform goes on.
        if gap.at == 0 {
            gap.periods = (1 + gap.made / (self.per_ms * MORE_PERIODS_MS)).min(3);
        }
        let end = self.history.len();
        let (first, quarter) = (end - gap.periods * gap.period, gap.period / 4);
        let mut value = i32::from(self.history[first + gap.at]);
        // The last quarter goes over into what was before the first, so that the end meets the beginning.
        let left = gap.periods * gap.period - gap.at;
        if left <= quarter && quarter > 0 {
            let before = i32::from(self.history[first - left]);
            value += (before - value) * (quarter - left + 1) as i32 / (quarter + 1) as i32;
        }
        if gap.made < quarter {
            value += gap.step * (quarter - gap.made) as i32 / (quarter + 1) as i32;
        }
        gap.at = if left == 1 { 0 } else { gap.at + 1 };
        let from = self.per_ms * FADE_FROM_MS;
        if gap.made > from {
            value = (i64::from(value) * (silent - gap.made) as i64 / (silent - from) as i64) as i32;
        }
        gap.made += 1;
        value.clamp(i32::from(i16::MIN), i32::from(i16::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcm;
    use crate::tone::Sine;

    const RATES: [SampleRate; 3] = [SampleRate::Hz8000, SampleRate::Hz16000, SampleRate::Hz48000];

    /// A tone in frames of 20 ms of which some are lost, as it is heard.
    fn lossy(rate: SampleRate, frequency_hz: f64, frames: usize, lost: impl Fn(usize) -> bool) -> Vec<i16> {
        let mut sine = Sine::new(frequency_hz, 10_000, rate);
        let mut concealer = Concealer::new(rate);
        let mut heard = Vec::new();
        for n in 0..frames {
            let mut frame = vec![0; 20 * rate.samples_per_ms()];
            sine.fill(&mut frame);
            if lost(n) {
                concealer.conceal(&mut frame)
            } else {
                concealer.hear(&mut frame)
            }
            heard.extend(frame);
        }
        heard
    }

    fn largest_step(signal: &[i16]) -> u16 {
        signal.windows(2).map(|pair| pair[0].abs_diff(pair[1])).max().unwrap_or(0)
    }

    #[test]
    fn one_lost_packet_of_a_tone_is_hardly_there() {
        for rate in RATES {
            for frequency in [100.0, 150.0, 212.0, 440.0] {
                let whole = lossy(rate, frequency, 10, |_| false);
                let heard = lossy(rate, frequency, 10, |n| n == 6);
                let gap = &heard[6 * 20 * rate.samples_per_ms()..7 * 20 * rate.samples_per_ms()];
                assert!(pcm::rms(gap) > 5_500.0, "{frequency} Hz at {rate}: {}", pcm::rms(gap));
                let (step, bare) = (largest_step(&heard), largest_step(&whole));
                assert!(
                    step < bare * 5 / 2 + 100,
                    "{frequency} Hz at {rate}: step of {step}, {bare} without loss"
                );
            }
        }
    }

    #[test]
    fn a_long_gap_fades_to_silence_by_60_ms() {
        for rate in RATES {
            let heard = lossy(rate, 170.0, 12, |n| n >= 6);
            let ms = |from: usize, to: usize| {
                pcm::rms(&heard[(120 + from) * rate.samples_per_ms()..(120 + to) * rate.samples_per_ms()])
            };
            assert!(ms(0, 10) > 6_000.0 && ms(0, 10) > ms(20, 30) && ms(20, 30) > ms(45, 60));
            assert_eq!(ms(60, 120), 0.0);
        }
    }

    #[test]
    fn sound_that_is_not_lost_passes_untouched() {
        let mut plain = vec![0; 1_600];
        Sine::new(300.0, 9_000, SampleRate::Hz8000).fill(&mut plain);
        assert_eq!(lossy(SampleRate::Hz8000, 300.0, 10, |_| false)[..1_600].len(), 1_600);
        let mut concealer = Concealer::new(SampleRate::Hz8000);
        let mut heard = plain.clone();
        concealer.hear(&mut heard);
        assert_eq!(heard, plain);
    }

    #[test]
    fn sound_after_a_gap_goes_over_without_a_step() {
        let heard = lossy(SampleRate::Hz8000, 133.0, 12, |n| (6..9).contains(&n));
        let whole = lossy(SampleRate::Hz8000, 133.0, 12, |_| false);
        assert!(largest_step(&heard[8 * 160..]) < largest_step(&whole) * 2 + 200);
        assert_eq!(heard[9 * 160 + 80..], whole[9 * 160 + 80..], "after 10 ms only what was heard");
    }

    #[test]
    fn silence_and_a_gap_at_the_very_start_are_silent() {
        let mut concealer = Concealer::new(SampleRate::Hz16000);
        let mut frame = [7; 320];
        concealer.conceal(&mut frame);
        assert_eq!(frame, [0; 320]);
    }

    proptest::proptest! {
        #[test]
        fn nothing_heard_can_make_it_panic(
            frames in proptest::collection::vec((proptest::collection::vec(proptest::prelude::any::<i16>(), 0..900), proptest::prelude::any::<bool>()), 0..12),
            rate in 0_usize..4,
        ) {
            let mut concealer = Concealer::new(SampleRate::ALL[rate]);
            for (mut frame, is_lost) in frames {
                if is_lost { concealer.conceal(&mut frame) } else { concealer.hear(&mut frame) }
            }
        }
    }
}
