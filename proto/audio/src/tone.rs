//! Tones: a sine of any frequency, DTMF digits (ITU-T Q.23) and call progress tones with their cadence.
//!
//! Each generator fills frames of any length; phase goes on from frame to frame without a click. The phase is an
//! integer that wraps with the circle, so a tone does not drift however long it plays.

use std::fmt;

use crate::format::SampleRate;
use crate::pcm;

/// A steady sine.
#[derive(Debug, Clone)]
pub struct Sine {
    /// Where on the circle the next sample is; 2^64 is once around.
    phase: u64,
    /// From one sample to the next.
    step: u64,
    amplitude: f64,
    /// Rotation by `step`.
    rotation: (f64, f64),
}

impl Sine {
    /// A sine of `frequency_hz` (limited to 0 … half of the rate) with a peak of `amplitude` (limited to full scale).
    pub fn new(frequency_hz: f64, amplitude: i16, rate: SampleRate) -> Self {
        let rate_hz = f64::from(rate.hz());
        let turns =
            if frequency_hz.is_nan() { 0.0 } else { frequency_hz.clamp(0.0, rate_hz / 2.0) / rate_hz };
        let (sin, cos) = (turns * std::f64::consts::TAU).sin_cos();
        Self {
            phase: 0,
            step: (turns * TURN) as u64,
            amplitude: f64::from(amplitude.unsigned_abs().min(32_767)),
            rotation: (sin, cos),
        }
    }

    /// Overwrites a frame with the next stretch of the tone.
    pub fn fill(&mut self, frame: &mut [i16]) {
        self.run(frame, |sample, value| *sample = value);
    }

    /// Adds the next stretch of the tone to a frame, saturating.
    pub fn add(&mut self, frame: &mut [i16]) {
        self.run(frame, |sample, value| *sample = sample.saturating_add(value));
    }

    fn run(&mut self, frame: &mut [i16], put: impl Fn(&mut i16, i16)) {
        // Within a frame the phase is turned by complex multiplication; between frames it is exact.
        let (mut sin, mut cos) = (self.phase as f64 / TURN * std::f64::consts::TAU).sin_cos();
        let (step_sin, step_cos) = self.rotation;
        for sample in frame.iter_mut() {
            put(sample, (sin * self.amplitude).round() as i16);
            (sin, cos) = (sin * step_cos + cos * step_sin, cos * step_cos - sin * step_sin);
        }
        self.phase = self.phase.wrapping_add(self.step.wrapping_mul(frame.len() as u64));
    }
}

/// Steps of phase in one turn of the circle: 2^64.
const TURN: f64 = 18_446_744_073_709_551_616.0;

/// A key of a telephone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digit(u8);

impl Digit {
    /// The sixteen keys in the order of their event codes.
    const CHARS: &'static [u8; 16] = b"0123456789*#ABCD";

    /// The key of a character: 0–9, *, #, A–D (or a–d).
    pub fn from_char(key: char) -> Option<Self> {
        let key = key.to_ascii_uppercase();
        Self::CHARS.iter().position(|&c| char::from(c) == key).map(|event| Self(event as u8))
    }

    /// The key of an RFC 4733 event code, 0 to 15.
    pub const fn from_event(event: u8) -> Option<Self> {
        if event < 16 { Some(Self(event)) } else { None }
    }

    /// The RFC 4733 event code.
    pub const fn event(self) -> u8 {
        self.0
    }

    /// The character on the key.
    pub const fn as_char(self) -> char {
        Self::CHARS[(self.0 & 15) as usize] as char
    }

    /// The two frequencies of the key in hertz, row and column (ITU-T Q.23).
    pub const fn frequencies_hz(self) -> (u32, u32) {
        let (row, column) = match self.0 {
            1..=9 => ((self.0 - 1) / 3, (self.0 - 1) % 3),
            0 => (3, 1),
            10 => (3, 0),
            11 => (3, 2),
            letter => (letter - 12, 3),
        };
        ([697, 770, 852, 941][(row & 3) as usize], [1_209, 1_336, 1_477, 1_633][(column & 3) as usize])
    }
}

impl fmt::Display for Digit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_char())
    }
}

/// One key pressed for a while, then a pause.
#[derive(Debug, Clone)]
pub struct DtmfTone {
    low: Sine,
    high: Sine,
    tone_left: usize,
    pause_left: usize,
}

impl DtmfTone {
    /// Peak of each of the two frequencies: about −10 dBm0 together with 2 dB more on the higher one.
    const LOW_AMPLITUDE: i16 = 5_800;
    const HIGH_AMPLITUDE: i16 = 7_300;

    /// A key that sounds for `tone_ms`, followed by silence of `pause_ms`.
    pub fn new(digit: Digit, rate: SampleRate, tone_ms: u32, pause_ms: u32) -> Self {
        let (low_hz, high_hz) = digit.frequencies_hz();
        Self {
            low: Sine::new(f64::from(low_hz), Self::LOW_AMPLITUDE, rate),
            high: Sine::new(f64::from(high_hz), Self::HIGH_AMPLITUDE, rate),
            tone_left: tone_ms as usize * rate.samples_per_ms(),
            pause_left: pause_ms as usize * rate.samples_per_ms(),
        }
    }

    /// Writes the next stretch and returns how many samples of tone and pause it took; the rest of the frame is
    /// left alone. 0: the key is over.
    pub fn fill(&mut self, frame: &mut [i16]) -> usize {
        let tone = self.tone_left.min(frame.len());
        let pause = self.pause_left.min(frame.len() - tone);
        self.low.fill(&mut frame[..tone]);
        self.high.add(&mut frame[..tone]);
        pcm::fill_silence(&mut frame[tone..tone + pause]);
        self.tone_left -= tone;
        self.pause_left -= pause;
        tone + pause
    }
}

/// A call progress tone: its frequencies and how it goes on and off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cadence {
    /// First frequency in hertz.
    pub first_hz: f64,
    /// Second frequency in hertz, or 0 for none.
    pub second_hz: f64,
    /// How long it sounds.
    pub on_ms: u32,
    /// How long it is silent after that; 0: never.
    pub off_ms: u32,
}

impl Cadence {
    /// Ringback in most of Europe (ETSI): 425 Hz, 1 s on, 4 s off.
    pub const RINGBACK_EU: Self = Self { first_hz: 425.0, second_hz: 0.0, on_ms: 1_000, off_ms: 4_000 };
    /// Ringback in North America: 440 and 480 Hz, 2 s on, 4 s off.
    pub const RINGBACK_US: Self = Self { first_hz: 440.0, second_hz: 480.0, on_ms: 2_000, off_ms: 4_000 };
    /// Busy in most of Europe: 425 Hz, half a second on and off.
    pub const BUSY_EU: Self = Self { first_hz: 425.0, second_hz: 0.0, on_ms: 500, off_ms: 500 };
    /// Busy in North America: 480 and 620 Hz, half a second on and off.
    pub const BUSY_US: Self = Self { first_hz: 480.0, second_hz: 620.0, on_ms: 500, off_ms: 500 };
}

/// Plays a [`Cadence`] for ever.
#[derive(Debug, Clone)]
pub struct ProgressTone {
    first: Sine,
    second: Option<Sine>,
    on: u64,
    period: u64,
    position: u64,
}

impl ProgressTone {
    /// Peak of each frequency: about −13 dBm0 for one, −10 dBm0 for two.
    const AMPLITUDE: i16 = 7_300;

    /// A tone at the beginning of its first sounding.
    pub fn new(cadence: Cadence, rate: SampleRate) -> Self {
        let samples = |ms: u32| u64::from(ms) * rate.samples_per_ms() as u64;
        Self {
            first: Sine::new(cadence.first_hz, Self::AMPLITUDE, rate),
            second: (cadence.second_hz > 0.0).then(|| Sine::new(cadence.second_hz, Self::AMPLITUDE, rate)),
            on: samples(cadence.on_ms),
            period: (samples(cadence.on_ms) + samples(cadence.off_ms)).max(1),
            position: 0,
        }
    }

    /// Overwrites a frame with the next stretch, tone or silence.
    pub fn fill(&mut self, frame: &mut [i16]) {
        let mut rest = frame;
        while !rest.is_empty() {
            let sounding = self.position < self.on;
            let until = if sounding { self.on } else { self.period };
            let len = usize::try_from(until - self.position).unwrap_or(usize::MAX).min(rest.len());
            let (part, tail) = rest.split_at_mut(len);
            if sounding {
                self.first.fill(part);
                if let Some(second) = &mut self.second {
                    second.add(part);
                }
            } else {
                pcm::fill_silence(part);
            }
            self.position = (self.position + len as u64) % self.period;
            rest = tail;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Amplitude of one frequency in a signal.
    fn amplitude_at(signal: &[i16], frequency_hz: f64, rate: SampleRate) -> f64 {
        let (mut re, mut im) = (0.0, 0.0);
        for (n, &sample) in signal.iter().enumerate() {
            let angle = std::f64::consts::TAU * frequency_hz * n as f64 / f64::from(rate.hz());
            re += f64::from(sample) * angle.cos();
            im += f64::from(sample) * angle.sin();
        }
        2.0 * re.hypot(im) / signal.len() as f64
    }

    #[test]
    fn a_sine_in_uneven_frames_equals_one_piece() {
        let mut whole = vec![0; 4_000];
        Sine::new(440.0, 10_000, SampleRate::Hz8000).fill(&mut whole);
        let mut pieces = vec![0; 4_000];
        let mut sine = Sine::new(440.0, 10_000, SampleRate::Hz8000);
        let mut rest = pieces.as_mut_slice();
        for len in [160, 1, 79, 320].into_iter().cycle() {
            let (part, tail) = rest.split_at_mut(len.min(rest.len()));
            sine.fill(part);
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        for (a, b) in whole.iter().zip(&pieces) {
            assert!((a - b).abs() <= 1, "{a} and {b}");
        }
        let measured = amplitude_at(&whole, 440.0, SampleRate::Hz8000);
        assert!((measured - 10_000.0).abs() < 20.0, "{measured}");
    }

    #[test]
    fn a_sine_keeps_its_frequency_for_an_hour() {
        let mut sine = Sine::new(1_000.0, 10_000, SampleRate::Hz8000);
        let mut frame = [0; 160];
        for _ in 0..180_000 {
            sine.fill(&mut frame);
        }
        let mut first = [0; 160];
        Sine::new(1_000.0, 10_000, SampleRate::Hz8000).fill(&mut first);
        for (a, b) in frame.iter().zip(&first) {
            assert!((a - b).abs() <= 1, "{a} and {b}");
        }
    }

    #[test]
    fn absurd_tones_are_limited() {
        let mut frame = [1; 20];
        Sine::new(f64::NAN, 100, SampleRate::Hz8000).fill(&mut frame);
        assert_eq!(frame, [0; 20]);
        Sine::new(1e12, i16::MIN, SampleRate::Hz8000).fill(&mut frame);
        Sine::new(-5.0, 100, SampleRate::Hz8000).fill(&mut frame);
        assert_eq!(frame, [0; 20]);
    }

    #[test]
    fn every_key_sounds_its_two_frequencies_and_no_other() {
        let all = [697, 770, 852, 941, 1_209, 1_336, 1_477, 1_633];
        for event in 0..16 {
            let digit = Digit::from_event(event).unwrap();
            assert_eq!(Digit::from_char(digit.as_char()), Some(digit));
            let mut signal = vec![0; 1_600];
            assert_eq!(DtmfTone::new(digit, SampleRate::Hz8000, 200, 0).fill(&mut signal), 1_600);
            let (low, high) = digit.frequencies_hz();
            for frequency in all {
                let amplitude = amplitude_at(&signal, f64::from(frequency), SampleRate::Hz8000);
                let wanted = frequency == low || frequency == high;
                assert_eq!(amplitude > 5_000.0, wanted, "{digit}: {frequency} Hz at {amplitude}");
            }
        }
        assert_eq!(Digit::from_char('5').unwrap().frequencies_hz(), (770, 1_336));
        assert_eq!(Digit::from_char('#').unwrap().frequencies_hz(), (941, 1_477));
        assert_eq!(Digit::from_char('d').unwrap().frequencies_hz(), (941, 1_633));
        assert_eq!(Digit::from_char('x'), None);
        assert_eq!(Digit::from_event(16), None);
    }

    #[test]
    fn a_key_ends_with_its_pause() {
        let mut tone = DtmfTone::new(Digit::from_char('1').unwrap(), SampleRate::Hz8000, 15, 10);
        let mut frame = [7; 160];
        assert_eq!(tone.fill(&mut frame), 160);
        assert_eq!(frame[120..], [0; 40]);
        frame = [7; 160];
        assert_eq!(tone.fill(&mut frame), 40);
        assert_eq!(frame[40..], [7; 120]);
        assert_eq!(tone.fill(&mut frame), 0);
    }

    #[test]
    fn ringback_sounds_one_second_of_five() {
        let mut tone = ProgressTone::new(Cadence::RINGBACK_EU, SampleRate::Hz8000);
        let mut signal = vec![0; 8_000 * 10];
        for frame in signal.chunks_mut(160) {
            tone.fill(frame);
        }
        for (second, part) in signal.chunks(8_000).enumerate() {
            assert_eq!(pcm::rms(part) > 1_000.0, second % 5 == 0, "second {second}");
        }
    }

    #[test]
    fn an_empty_cadence_is_silence() {
        let mut frame = [5; 100];
        ProgressTone::new(Cadence { on_ms: 0, off_ms: 0, ..Cadence::BUSY_US }, SampleRate::Hz8000)
            .fill(&mut frame);
        assert_eq!(frame, [0; 100]);
    }
}
