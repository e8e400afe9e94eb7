//! Is it a signal tone? Dial tone, ringback, busy, DTMF and fax tones, which a speech detector takes for vowels.
//!
//! Goertzel filters at the frequencies that telephone networks use, over the last 64 ms: long enough for two tones
//! 40 Hz apart and for their beat. Sound is a tone when nearly all its energy sits in one or two of these frequencies
//! *and* its level stays: vowels come near the first, hardly ever to both.

/// Samples of one frame at 16 kHz: 16 ms.
pub(super) const FRAME: usize = 256;
/// Samples that are looked at: four frames.
const WINDOW: usize = 4 * FRAME;
const SAMPLE_RATE_HZ: f32 = 16_000.0;

/// Call progress of North America, Europe and Britain; DTMF rows and columns; fax and modem answer tones.
const FREQUENCIES_HZ: [f32; 18] = [
    350.0, 400.0, 425.0, 440.0, 450.0, 480.0, 620.0, 697.0, 770.0, 852.0, 941.0, 1_004.0, 1_100.0, 1_209.0,
    1_336.0, 1_477.0, 1_633.0, 2_100.0,
];
/// Two tones nearer than this are one (half the main lobe of a Hann window of 64 ms is 31 Hz).
const APART_HZ: f32 = 40.0;
/// Share of the energy that must be in the two strongest tones.
const SHARE_MIN: f32 = 0.8;
/// Largest change of the window's energy from frame to frame of a steady tone (0.8 dB).
const ENERGY_RATIO_MAX: f32 = 1.2;

/// The last 64 ms of one caller.
#[derive(Debug)]
pub(super) struct ToneGuard {
    recent: [f32; WINDOW],
    /// Hann.
    window: [f32; WINDOW],
    energy_before: f32,
}

impl Default for ToneGuard {
    fn default() -> Self {
        let step = std::f32::consts::TAU / WINDOW as f32;
        let window = std::array::from_fn(|index| 0.5 - 0.5 * (step * index as f32).cos());
        Self { recent: [0.0; WINDOW], window, energy_before: 0.0 }
    }
}

impl ToneGuard {
    /// Does this frame continue a steady signal tone?
    pub(super) fn is_tone(&mut self, frame: &[i16; FRAME]) -> bool {
        self.recent.copy_within(FRAME.., 0);
        for (kept, sample) in self.recent[WINDOW - FRAME..].iter_mut().zip(frame) {
            *kept = f32::from(*sample);
        }
        let mut windowed = self.recent;
        windowed.iter_mut().zip(&self.window).for_each(|(sample, weight)| *sample *= weight);
        let energy: f32 = windowed.iter().map(|sample| sample * sample).sum();
        let before = std::mem::replace(&mut self.energy_before, energy);
        let steady = energy <= before * ENERGY_RATIO_MAX && before <= energy * ENERGY_RATIO_MAX;
        // Both tests are needed: the cheap one first, since most frames fail it.
        steady && energy > 0.0 && tonal_share(&windowed, energy) >= SHARE_MIN
    }
}

/// Share of the energy in the strongest tone and the strongest one apart from it.
fn tonal_share(windowed: &[f32; WINDOW], energy: f32) -> f32 {
    let powers = FREQUENCIES_HZ.map(|frequency| goertzel(windowed, frequency));
    let strongest = |far_from: Option<f32>| {
        FREQUENCIES_HZ
            .iter()
            .zip(powers)
            .filter(|(frequency, _)| far_from.is_none_or(|other| (**frequency - other).abs() >= APART_HZ))
            .max_by(|a, b| a.1.total_cmp(&b.1))
    };
    let Some((frequency, first)) = strongest(None) else { return 0.0 };
    let second = strongest(Some(*frequency)).map_or(0.0, |(_, power)| power);
    // A sinus under a Hann window of N samples: |X|² = E · N / 3 with E its windowed energy.
    (first + second) * 3.0 / (energy * WINDOW as f32)
}

/// Squared magnitude at one frequency.
fn goertzel(samples: &[f32; WINDOW], frequency_hz: f32) -> f32 {
    let coefficient = 2.0 * (std::f32::consts::TAU * frequency_hz / SAMPLE_RATE_HZ).cos();
    let (mut last, mut before) = (0.0f32, 0.0f32);
    for sample in samples {
        (last, before) = (sample + coefficient * last - before, last);
    }
    last * last + before * before - coefficient * last * before
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(frequencies: &[f32], count: usize) -> Vec<[i16; FRAME]> {
        (0..count)
            .map(|frame| {
                std::array::from_fn(|index| {
                    let t = (frame * FRAME + index) as f32 / SAMPLE_RATE_HZ;
                    let sum: f32 = frequencies.iter().map(|f| (std::f32::consts::TAU * f * t).sin()).sum();
                    (sum * 6_000.0) as i16
                })
            })
            .collect()
    }

    fn tonal(frames: &[[i16; FRAME]]) -> usize {
        let mut guard = ToneGuard::default();
        frames.iter().filter(|frame| guard.is_tone(frame)).count()
    }

    #[test]
    fn signal_tones_are_tones_after_the_first_80_ms() {
        for tone in [&[440.0][..], &[425.0], &[350.0, 440.0], &[440.0, 480.0], &[697.0, 1_209.0], &[2_100.0]]
        {
            assert!(tonal(&frames(tone, 20)) >= 15, "{tone:?}: {}", tonal(&frames(tone, 20)));
        }
    }

    #[test]
    fn a_sound_with_many_harmonics_is_no_tone() {
        let vowel: Vec<f32> = (1..15).map(|harmonic| 140.0 * harmonic as f32).collect();
        assert_eq!(tonal(&frames(&vowel, 20)), 0);
    }

    #[test]
    fn silence_is_no_tone() {
        assert_eq!(tonal(&[[0; FRAME]; 5]), 0);
    }

    #[test]
    fn recorded_speech_is_hardly_ever_a_tone() {
        for name in ["book", "name", "day", "time", "hours", "goodbye"] {
            let path = format!("{}/demo/{name}.wav", env!("CARGO_MANIFEST_DIR"));
            let mut samples = hound::WavReader::open(path).unwrap().into_samples::<i16>().map(Result::unwrap);
            let mut speech: Vec<[i16; FRAME]> = Vec::new();
            while let Some(first) = samples.next() {
                let mut half: Vec<i16> = vec![first];
                half.extend(samples.by_ref().take(FRAME / 2 - 1));
                half.resize(FRAME / 2, 0);
                speech.push(std::array::from_fn(|index| half[index / 2]));
            }
            let count = tonal(&speech);
            assert!(count * 50 <= speech.len(), "{name}: {count} of {}", speech.len());
        }
    }
}
