//! Keys in the sound itself: DTMF by Goertzel's algorithm (ITU-T Q.23, Q.24), for peers that send no telephone-events.
//!
//! ```text
//!  samples ─▶ blocks of 12.75 ms ─▶ energy at 8 frequencies ─▶ one row and one column, nearly all the energy,
//!             like-loud ─▶ the same key in two blocks: pressed ─▶ two blocks without it: released
//! ```
//!
//! A key of 40 ms always fills two blocks. Speech and music are kept out by what they have beside the two tones: nearly
//! all energy of a block must be in them, in two blocks running.

use crate::format::SampleRate;
use crate::tone::Digit;

/// Frequencies of rows, then columns.
const FREQUENCIES_HZ: [f32; 8] = [697.0, 770.0, 852.0, 941.0, 1_209.0, 1_336.0, 1_477.0, 1_633.0];
/// Samples of a block at 8 kHz: 12.75 ms, at which the frequencies are told apart best.
const BLOCK_AT_8K: usize = 102;
/// Share of a block's energy that must be in the two tones.
const SHARE_MIN: f32 = 0.82;
/// How much louder the row may be than the column: 4 dB in energy (Q.24's reverse twist).
const REVERSE_TWIST: f32 = 2.5;
/// How much louder the column may be than the row: 8 dB.
const TWIST: f32 = 6.3;
/// How much louder a tone must be than any other of its group: 8 dB.
const LEAD: f32 = 6.3;
/// The quietest block that is looked at: −42 dBFS as mean square.
const LEVEL_MIN: f32 = 67_700.0;
/// Blocks in a row that make a key, and that end it.
const BLOCKS_MIN: u32 = 2;

/// A key that was pressed or released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToneEvent {
    /// A key is down.
    Pressed(Digit),
    /// It is up again.
    Released {
        /// Which.
        digit: Digit,
        /// How long it was down, to a block.
        duration_ms: u32,
    },
}

/// DTMF in one stream.
#[derive(Debug, Clone)]
pub struct ToneDetector {
    block: usize,
    rate_hz: u32,
    coefficients: [f32; 8],
    states: [(f32, f32); 8],
    energy: f32,
    filled: usize,
    /// The key of the last block, and how many blocks in a row it has been that.
    candidate: Option<Digit>,
    repeated: u32,
    pressed: Option<Digit>,
    lasted: u32,
}

impl ToneDetector {
    /// A detector for a stream of this rate.
    pub fn new(rate: SampleRate) -> Self {
        let turn = |hz: f32| 2.0 * (std::f32::consts::TAU * hz / rate.hz() as f32).cos();
        Self {
            block: BLOCK_AT_8K * rate.samples_per_ms() / 8,
            rate_hz: rate.hz(),
            coefficients: FREQUENCIES_HZ.map(turn),
            states: [(0.0, 0.0); 8],
            energy: 0.0,
            filled: 0,
            candidate: None,
            repeated: 0,
            pressed: None,
            lasted: 0,
        }
    }

    /// Hears a frame of any length and tells what happened in it.
    pub fn process(&mut self, frame: &[i16], mut tell: impl FnMut(ToneEvent)) {
        let mut rest = frame;
        while !rest.is_empty() {
            let (part, tail) = rest.split_at(rest.len().min(self.block - self.filled));
            for &sample in part {
                let sample = f32::from(sample);
                self.energy += sample * sample;
                for ((s1, s2), coefficient) in self.states.iter_mut().zip(&self.coefficients) {
                    let s0 = sample + coefficient * *s1 - *s2;
                    (*s1, *s2) = (s0, *s1);
                }
            }
            self.filled += part.len();
            if self.filled == self.block {
                self.judge(&mut tell);
            }
            rest = tail;
        }
    }

    fn judge(&mut self, tell: &mut impl FnMut(ToneEvent)) {
        let digit = self.digit();
        (self.states, self.energy, self.filled) = ([(0.0, 0.0); 8], 0.0, 0);
        if digit == self.candidate {
            self.repeated = self.repeated.saturating_add(1);
        } else {
            (self.candidate, self.repeated) = (digit, 1);
        }
        if let Some(pressed) = self.pressed {
            if digit == Some(pressed) {
                self.lasted = self.lasted.saturating_add(1);
            } else if self.repeated >= BLOCKS_MIN {
                let block_us = self.block as u64 * 1_000_000 / u64::from(self.rate_hz);
                let duration_ms = (u64::from(self.lasted) * block_us / 1_000) as u32;
                self.pressed = None;
                tell(ToneEvent::Released { digit: pressed, duration_ms });
            }
        }
        if let (None, Some(digit)) = (self.pressed, self.candidate)
            && self.repeated >= BLOCKS_MIN
        {
            (self.pressed, self.lasted) = (Some(digit), self.repeated);
            tell(ToneEvent::Pressed(digit));
        }
    }

    /// The key that this block sounds like.
    fn digit(&self) -> Option<Digit> {
        let len = self.block as f32;
        if self.energy < LEVEL_MIN * len {
            return None;
        }
        let mut powers = [0.0; 8];
        for ((power, &(s1, s2)), coefficient) in powers.iter_mut().zip(&self.states).zip(&self.coefficients) {
            // As energy of the tone over the block.
            *power = (s1 * s1 + s2 * s2 - coefficient * s1 * s2) * 2.0 / len;
        }
        let (row, row_power) = leader(&powers[..4])?;
        let (column, column_power) = leader(&powers[4..])?;
        let is_digit = row_power + column_power >= SHARE_MIN * self.energy
            && row_power <= column_power * REVERSE_TWIST
            && column_power <= row_power * TWIST;
        if !is_digit {
            return None;
        }
        (0..16).filter_map(Digit::from_event).find(|digit| {
            let (low, high) = digit.frequencies_hz();
            FREQUENCIES_HZ[row] == low as f32 && FREQUENCIES_HZ[4 + column] == high as f32
        })
    }
}

/// The loudest of a group, if it leads.
fn leader(powers: &[f32]) -> Option<(usize, f32)> {
    let (place, &power) = powers.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
    let leads = powers.iter().enumerate().all(|(n, &other)| n == place || other * LEAD < power);
    leads.then_some((place, power))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcm;
    use crate::tone::DtmfTone;

    fn keys(signal: &[i16], rate: SampleRate, frame: usize) -> Vec<ToneEvent> {
        let mut detector = ToneDetector::new(rate);
        let mut events = Vec::new();
        for frame in signal.chunks(frame) {
            detector.process(frame, |event| events.push(event));
        }
        events
    }

    fn dial(digits: &str, rate: SampleRate, tone_ms: u32, pause_ms: u32, lead: usize) -> Vec<i16> {
        let mut signal = vec![0; lead];
        for key in digits.chars() {
            let mut tone = DtmfTone::new(Digit::from_char(key).unwrap(), rate, tone_ms, pause_ms);
            let mut part = vec![0; (tone_ms + pause_ms) as usize * rate.samples_per_ms()];
            tone.fill(&mut part);
            signal.extend(part);
        }
        signal.extend(vec![0; 60 * rate.samples_per_ms()]);
        signal
    }

    fn pressed(events: &[ToneEvent]) -> String {
        let key = |event: &ToneEvent| match event {
            ToneEvent::Pressed(digit) => Some(digit.as_char()),
            ToneEvent::Released { .. } => None,
        };
        events.iter().filter_map(key).collect()
    }

    #[test]
    fn every_key_of_40_ms_is_heard_once_wherever_it_begins() {
        for rate in [SampleRate::Hz8000, SampleRate::Hz16000, SampleRate::Hz48000] {
            for lead in [0, 13, 51, 77, 101] {
                let signal = dial("0123456789*#ABCD", rate, 40, 40, lead * rate.samples_per_ms() / 8);
                let events = keys(&signal, rate, 20 * rate.samples_per_ms());
                assert_eq!(pressed(&events), "0123456789*#ABCD", "{rate} after {lead}");
            }
        }
    }

    #[test]
    fn a_key_that_is_held_is_one_key_with_its_length() {
        let events = keys(&dial("7", SampleRate::Hz8000, 500, 50, 0), SampleRate::Hz8000, 160);
        let seven = Digit::from_char('7').unwrap();
        let [ToneEvent::Pressed(first), ToneEvent::Released { digit, duration_ms }] = events[..] else {
            panic!("{events:?}")
        };
        assert_eq!((first, digit), (seven, seven));
        assert!((475..=510).contains(&duration_ms), "{duration_ms}");
    }

    #[test]
    fn keys_survive_g711_and_noise() {
        let mut signal = dial("159#", SampleRate::Hz8000, 60, 60, 40);
        let mut seed = 5_u32;
        for sample in &mut signal {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *sample = sample.saturating_add((seed >> 16) as i16 / 48);
            *sample = crate::g711::linear_from_ulaw(crate::g711::ulaw_from_linear(*sample));
        }
        assert_eq!(pressed(&keys(&signal, SampleRate::Hz8000, 160)), "159#");
    }

    #[test]
    fn one_tone_alone_a_skewed_pair_and_silence_are_no_key() {
        let rate = SampleRate::Hz8000;
        let tone = |hz: f64, amplitude: i16| {
            let mut signal = vec![0; 4_000];
            crate::tone::Sine::new(hz, amplitude, rate).fill(&mut signal);
            signal
        };
        let pair = |low: f64, low_amplitude: i16, high: f64, high_amplitude: i16| {
            let mut signal = tone(low, low_amplitude);
            pcm::mix(&mut signal, &tone(high, high_amplitude));
            signal
        };
        for (signal, name) in [
            (tone(770.0, 10_000), "one tone"),
            (pair(770.0, 9_000, 1_336.0, 2_000), "a row far too loud"),
            (pair(770.0, 2_000, 1_336.0, 9_000), "a column far too loud"),
            (pair(730.0, 8_000, 1_270.0, 8_000), "tones between the keys'"),
            (pair(350.0, 8_000, 440.0, 8_000), "a dial tone"),
            (vec![0; 4_000], "silence"),
        ] {
            assert_eq!(keys(&signal, rate, 160), [], "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_sounds_like_speech_presses_no_key(
            pitch_hz in 70.0_f64..320.0, seed: u32, formants in (250.0_f64..900.0, 800.0_f64..2_400.0)
        ) {
            // Harmonics of a gliding pitch under two formants: voiced speech as far as this detector can tell.
            let mut seed = seed;
            let mut phase = 0.0_f64;
            let signal: Vec<i16> = (0..8_000)
                .map(|n| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let pitch = pitch_hz * (1.0 + 0.15 * (f64::from(n) / 1_300.0).sin());
                    phase += std::f64::consts::TAU * pitch / 8_000.0;
                    let voice: f64 = (1..=(3_600.0 / pitch) as u32)
                        .map(|harmonic| {
                            let hz = f64::from(harmonic) * pitch;
                            let near = |formant: f64| 1.0 / (1.0 + ((hz - formant) / 130.0).powi(2));
                            (phase * f64::from(harmonic)).sin() * (near(formants.0) + 0.6 * near(formants.1) + 0.05)
                        })
                        .sum();
                    ((voice * 4_000.0) as i16).saturating_add((seed >> 16) as i16 / 400)
                })
                .collect();
            proptest::prop_assert_eq!(keys(&signal, SampleRate::Hz8000, 160), []);
        }
    }
}
