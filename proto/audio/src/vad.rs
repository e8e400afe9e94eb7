//! Voice activity: energy above a noise floor that follows the line. Cheap enough for every packet of every call.
//!
//! ```text
//!  frame ──▶ blocks of 10 ms ──▶ variance (so DC does not count) ──▶ above floor? ──▶ onset after 2 blocks
//!                                       └─▶ noise floor: falls fast, rises slowly     end after the hangover
//! ```
//!
//! Speech is reported at most 30 ms after it began: two blocks of 10 ms, and the one that it began in. It takes any sound for
//! speech that stands out of the noise: tones, coughs and doors too. Who must know better asks a better detector once
//! this one fires.

use crate::format::SampleRate;

/// Length of the block that is judged at once.
const BLOCK_MS: usize = 10;
/// Blocks in a row that must be loud before speech is reported.
const ONSET_BLOCKS: u32 = 2;
/// How far above the noise floor a block must be: a factor of energy, 10 dB.
const ONSET_RATIO: f32 = 10.0;
/// How far above the floor a block must be to keep speech going: 6 dB.
const KEEP_RATIO: f32 = 4.0;
/// Nothing below this is speech, however quiet the line is: −50 dBFS as mean square.
const ABSOLUTE_MIN: f32 = 10_737.0;
/// The floor is never thought to be below this: −66 dBFS, about the smallest steps of G.711.
const FLOOR_MIN: f32 = 270.0;
/// The floor is never thought to be above this: −30 dBFS, so that loud speech always stands out.
const FLOOR_MAX: f32 = 1_073_742.0;
/// The floor before anything was heard: −56 dBFS, an ordinary line.
const FLOOR_START: f32 = 2_700.0;
/// Rise of the floor a block while nobody speaks: 6 dB a second.
const FLOOR_RISE_QUIET: f32 = 1.0139;
/// Rise of the floor a block while somebody speaks: 1.5 dB a second, so that a steady noise becomes floor in the end.
const FLOOR_RISE_SPEECH: f32 = 1.0035;
/// Share of the way that the floor falls a block when the line is quieter than it.
const FLOOR_FALL: f32 = 0.3;

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VadEvent {
    /// Somebody began to speak.
    SpeechStarted,
    /// Nobody has spoken for the length of the hangover.
    SpeechEnded,
}

/// Voice activity of one stream.
#[derive(Debug, Clone)]
pub struct Vad {
    block_len: usize,
    /// Sums of the block that is being filled.
    filled: usize,
    sum: i64,
    squares: u64,
    /// Mean square of the noise.
    floor: f32,
    loud_blocks: u32,
    quiet_blocks: u32,
    hangover_blocks: u32,
    active: bool,
}

impl Vad {
    /// How long after the last loud block speech is said to have ended, by default.
    pub const DEFAULT_HANGOVER_MS: u32 = 300;

    /// A detector with the default hangover.
    pub fn new(rate: SampleRate) -> Self {
        Self::with_hangover(rate, Self::DEFAULT_HANGOVER_MS)
    }

    /// A detector that bridges pauses of up to `hangover_ms` (100 at least, so that syllables hold together).
    pub fn with_hangover(rate: SampleRate, hangover_ms: u32) -> Self {
        Self {
            block_len: BLOCK_MS * rate.samples_per_ms(),
            filled: 0,
            sum: 0,
            squares: 0,
            floor: FLOOR_START,
            loud_blocks: 0,
            quiet_blocks: 0,
            hangover_blocks: hangover_ms.max(100) / BLOCK_MS as u32,
            active: false,
        }
    }

    /// True between [`VadEvent::SpeechStarted`] and [`VadEvent::SpeechEnded`].
    pub const fn is_speech(&self) -> bool {
        self.active
    }

    /// The noise floor in dB below full scale.
    pub fn noise_floor_dbfs(&self) -> f32 {
        10.0 * (self.floor / (32_768.0 * 32_768.0)).log10()
    }

    /// Hears a frame of any length and says what is different after it.
    pub fn process(&mut self, frame: &[i16]) -> Option<VadEvent> {
        let before = self.active;
        let mut rest = frame;
        while !rest.is_empty() {
            let (part, tail) = rest.split_at(rest.len().min(self.block_len - self.filled));
            self.sum += part.iter().map(|&sample| i64::from(sample)).sum::<i64>();
            self.squares += crate::pcm::energy(part);
            self.filled += part.len();
            if self.filled == self.block_len {
                self.judge_block();
            }
            rest = tail;
        }
        match (before, self.active) {
            (false, true) => Some(VadEvent::SpeechStarted),
            (true, false) => Some(VadEvent::SpeechEnded),
            _ => None,
        }
    }

    /// Forgets everything that was heard.
    pub fn reset(&mut self) {
        *self = Self {
            filled: 0,
            sum: 0,
            squares: 0,
            floor: FLOOR_START,
            loud_blocks: 0,
            quiet_blocks: 0,
            active: false,
            ..*self
        };
    }

    fn judge_block(&mut self) {
        let len = self.block_len as f32;
        let mean = self.sum as f32 / len;
        let level = (self.squares as f32 / len - mean * mean).max(0.0);
        (self.filled, self.sum, self.squares) = (0, 0, 0);

        let ratio = if self.active { KEEP_RATIO } else { ONSET_RATIO };
        if level > ABSOLUTE_MIN && level > self.floor * ratio {
            self.loud_blocks += 1;
            self.quiet_blocks = 0;
            self.active |= self.loud_blocks >= ONSET_BLOCKS;
        } else {
            self.loud_blocks = 0;
            self.quiet_blocks = self.quiet_blocks.saturating_add(1);
            self.active &= self.quiet_blocks < self.hangover_blocks;
        }

        self.floor = if level < self.floor {
            self.floor + (level - self.floor) * FLOOR_FALL
        } else {
            let rise = if self.active { FLOOR_RISE_SPEECH } else { FLOOR_RISE_QUIET };
            (self.floor * rise).min(level)
        }
        .clamp(FLOOR_MIN, FLOOR_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tone::Sine;

    const RATE: SampleRate = SampleRate::Hz8000;

    /// Noise of a given peak from a seeded generator.
    fn noise(len: usize, peak: i32, seed: &mut u32) -> Vec<i16> {
        (0..len)
            .map(|_| {
                *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((*seed >> 16) as i32 % (2 * peak + 1) - peak) as i16
            })
            .collect()
    }

    fn tone(len: usize, amplitude: i16) -> Vec<i16> {
        let mut frame = vec![0; len];
        Sine::new(300.0, amplitude, RATE).fill(&mut frame);
        frame
    }

    /// Feeds frames of 20 ms and lists (time in ms at the end of the frame, event).
    fn run(vad: &mut Vad, signal: &[i16]) -> Vec<(usize, VadEvent)> {
        let events = signal.chunks(160).enumerate();
        events.filter_map(|(n, frame)| vad.process(frame).map(|event| (n * 20 + 20, event))).collect()
    }

    #[test]
    fn onset_is_reported_within_30_ms_and_the_end_after_the_hangover() {
        let mut seed = 1;
        for offset in (0..160).step_by(10) {
            // Speech begins anywhere within a packet.
            let mut signal = noise(8_000 + offset, 60, &mut seed);
            signal.extend(tone(4_000, 3_000));
            signal.extend(noise(8_000, 60, &mut seed));
            let mut vad = Vad::new(RATE);
            let (mut started, mut ended) = (None, None);
            for (n, block) in signal.chunks(80).enumerate() {
                match vad.process(block) {
                    Some(VadEvent::SpeechStarted) => started = Some(n * 80 + 80),
                    Some(VadEvent::SpeechEnded) => ended = Some(n * 80 + 80),
                    None => {}
                }
            }
            let onset_ms = (started.unwrap() - 8_000 - offset) / 8;
            assert!(onset_ms <= 30, "{onset_ms} ms with offset {offset}");
            let end_ms = (ended.unwrap() - 12_000 - offset) / 8;
            assert!((300..=330).contains(&end_ms), "{end_ms} ms with offset {offset}");
        }
    }

    #[test]
    fn silence_and_steady_noise_are_no_speech() {
        assert_eq!(run(&mut Vad::new(RATE), &[0; 80_000]), []);
        assert_eq!(run(&mut Vad::new(RATE), &noise(80_000, 150, &mut 7)), []);
    }

    #[test]
    fn dc_is_no_speech() {
        assert_eq!(run(&mut Vad::new(RATE), &[2_000; 80_000]), []);
    }

    #[test]
    fn speech_stands_out_of_loud_noise() {
        let mut seed = 3;
        let mut vad = Vad::new(RATE);
        run(&mut vad, &noise(8 * 15_000, 1_000, &mut seed));
        assert!(!vad.is_speech(), "after 15 s the noise is the floor ({} dBFS)", vad.noise_floor_dbfs());
        let mut speech = tone(4_000, 9_000);
        crate::pcm::mix(&mut speech, &noise(4_000, 1_000, &mut seed));
        assert_eq!(run(&mut vad, &speech), [(20, VadEvent::SpeechStarted)]);
    }

    #[test]
    fn a_pause_shorter_than_the_hangover_does_not_end_speech() {
        let mut signal = tone(4_000, 3_000);
        signal.extend([0; 1_600]);
        signal.extend(tone(4_000, 3_000));
        let mut vad = Vad::new(RATE);
        assert_eq!(run(&mut vad, &signal), [(20, VadEvent::SpeechStarted)]);
        assert!(vad.is_speech());
        vad.reset();
        assert!(!vad.is_speech());
    }

    #[test]
    fn a_click_is_no_speech() {
        let mut signal = vec![0; 8_000];
        signal[4_000..4_040].fill(20_000);
        assert_eq!(run(&mut Vad::new(RATE), &signal), []);
    }
}
