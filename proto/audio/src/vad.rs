//! Voice activity: sound that stands out of the noise and is no tone. Cheap enough for every packet of every call.
//!
//! ```text
//!  frame ─▶ 8 kHz ─▶ high-pass ─▶ blocks of 5 ms ─▶ above the noise? four in a row ─▶ a tone? no ─▶ speech
//!                                      └─▶ noise: its level and how it varies, of the whole     (end: after the hangover)
//!                                          and of the upper half of the band
//! ```
//!
//! Four blocks and the one that speech began in are 25 ms at most; where a tone cannot be ruled out at once, one block more is
//! heard. How far a block must stand out follows the noise: 5 dB of a steady one, more of one that varies, such as other people's
//! voices; it is enough to stand out in the upper half, so that hum and engines hide little. A click is over before the fourth
//! block. A tone (ringing, busy, a key, a modem) is what can be foretold from the samples before it almost without an error: two
//! sines obey a recursion of order four, and two more coefficients keep the steps of G.711 small. Speech does not obey any.
//! A noise that becomes louder is taken for speech until its quietest moments of [`MINIMUM_WINDOWS`] tenths of a second have shown
//! what it is.
//!
//! It knows no language: a cough is speech, and so is music with more than a few tones. Who must know better asks a better detector
//! once this one fires.

use crate::format::SampleRate;

/// Samples of a block of 5 ms at 8 kHz, the rate that is judged at: above 4 kHz there is little of a voice.
const BLOCK: usize = 40;
/// Milliseconds of a block.
const BLOCK_MS: u32 = 5;
/// Loud blocks in a row before speech is reported.
const ONSET_BLOCKS: u32 = 4;
/// Order of the recursion that tones are looked for with.
const ORDER: usize = 6;
/// Samples that a tone is looked for in: the last three loud blocks, without the edge that the first may hold.
const TONE_WINDOW: usize = 3 * BLOCK;
/// What is kept of the sound.
const HISTORY: usize = TONE_WINDOW + ORDER;
/// A tone: less than this share of the energy remains when its recursion is taken away, −24 dB. Of tones through G.711 at least
/// 26 dB go, of the beginnings of words 23 at most.
const TONE_REST: f64 = 0.004;
/// No tone, as far as one block can say: so much remains.
const CLEAR_REST: f64 = 0.1;
/// Blocks without a tone before what follows a tone can be speech: the edge at its end is none.
const AFTER_TONE_BLOCKS: u32 = 3;
/// The high-pass: 100 Hz at 8 kHz.
const HIGH_PASS: f32 = 0.92;
/// Least distance from the noise that begins speech, dB.
const ONSET_DB: f32 = 5.0;
/// Distance in mean deviations of the noise's level.
const ONSET_DEVIATIONS: f32 = 4.0;
/// Largest distance, dB: loud speech stands out of any noise.
const ONSET_MAX_DB: f32 = 15.0;
/// Share of the distance that keeps speech going.
const KEEP_SHARE: f32 = 0.6;
/// Nothing below this is speech, however quiet the line is: dB below full scale.
const LEVEL_MIN_DB: f32 = -50.0;
/// The noise is never thought to be quieter (about the smallest steps of G.711), nor louder.
const NOISE_DB: (f32, f32) = (-66.0, -25.0);
/// Blocks in which the noise is learned before anything can be speech: 100 ms.
const LEARNING_BLOCKS: u32 = 20;
/// How a noise is thought to vary before it is known, dB.
const DEVIATION_START_DB: f32 = 2.0;
/// Share of the way that the noise's level is followed a block, down and up.
const FOLLOW: (f32, f32) = (0.1, 0.03);
/// The same of its deviation.
const FOLLOW_DEVIATION: f32 = 0.02;
/// A run of loud blocks that falls by so much within itself is a click that rings, dB.
const CLICK_FALL_DB: f32 = 12.0;
/// Blocks of one window of the minimum: 100 ms.
const WINDOW_BLOCKS: u32 = 20;

/// Windows of a tenth of a second that the minimum is taken of: in so long, everybody who speaks has paused.
pub const MINIMUM_WINDOWS: usize = 16;

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
    /// Samples that make one at 8 kHz, and those of the next one so far: their sum and number.
    step: i32,
    sum: i32,
    summed: i32,
    /// The high-pass: what went in last, and came out.
    last: (f32, f32),
    /// Sound behind the high-pass, at 8 kHz; the newest block is last, and being filled.
    sound: [f32; HISTORY],
    filled: usize,
    /// Of the whole band, and of its upper half.
    noise: [Noise; 2],
    /// Loud blocks in a row, and the loudest of them.
    loud_blocks: u32,
    loudest_db: f32,
    /// Blocks that must show no tone before there can be speech.
    tone_blocks: u32,
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
            step: (rate.samples_per_ms() / 8) as i32,
            sum: 0,
            summed: 0,
            last: (0.0, 0.0),
            sound: [0.0; HISTORY],
            filled: 0,
            noise: [Noise::new(), Noise::new()],
            loud_blocks: 0,
            loudest_db: 0.0,
            tone_blocks: 0,
            quiet_blocks: 0,
            hangover_blocks: hangover_ms.max(100) / BLOCK_MS,
            active: false,
        }
    }

    /// True between [`VadEvent::SpeechStarted`] and [`VadEvent::SpeechEnded`].
    pub const fn is_speech(&self) -> bool {
        self.active
    }

    /// The noise, in dB below full scale.
    pub const fn noise_floor_dbfs(&self) -> f32 {
        self.noise[0].level_db
    }

    /// Hears a frame of any length and says what is different after it.
    pub fn process(&mut self, frame: &[i16]) -> Option<VadEvent> {
        let before = self.active;
        let mut rest = frame;
        while !rest.is_empty() {
            let wanted = (BLOCK - self.filled) * self.step as usize - self.summed as usize;
            let (part, tail) = rest.split_at(wanted.min(rest.len()));
            self.fill(part);
            if self.filled == BLOCK {
                self.judge_block();
                self.sound.copy_within(BLOCK.., 0);
                self.filled = 0;
            }
            rest = tail;
        }
        match (before, self.active) {
            (false, true) => Some(VadEvent::SpeechStarted),
            (true, false) => Some(VadEvent::SpeechEnded),
            _ => None,
        }
    }

    /// So many samples are known to be no speech, such as comfort noise of our own making: nothing is learned from them.
    pub fn pause(&mut self, samples: usize) -> Option<VadEvent> {
        let blocks = samples / self.step as usize / BLOCK;
        self.loud_blocks = 0;
        self.quiet_blocks = self.quiet_blocks.saturating_add(blocks as u32);
        let ends = self.active && self.quiet_blocks >= self.hangover_blocks;
        self.active &= !ends;
        ends.then_some(VadEvent::SpeechEnded)
    }

    /// Forgets everything that was heard.
    pub fn reset(&mut self) {
        let fresh = Self::new(SampleRate::Hz8000);
        *self = Self { step: self.step, hangover_blocks: self.hangover_blocks, ..fresh };
    }

    /// Takes samples of the block that is being filled, and no more.
    fn fill(&mut self, samples: &[i16]) {
        let (step, scale) = (self.step, 1.0 / self.step as f32);
        let (mut sum, mut summed, (mut input, mut output)) = (self.sum, self.summed, self.last);
        let mut block = self.sound[HISTORY - BLOCK + self.filled..].iter_mut();
        let room = block.len();
        for &sample in samples {
            sum += i32::from(sample);
            summed += 1;
            if summed == step {
                let next = sum as f32 * scale;
                output = next - input + HIGH_PASS * output;
                (input, sum, summed) = (next, 0, 0);
                if let Some(place) = block.next() {
                    *place = output;
                }
            }
        }
        self.filled += room - block.len();
        (self.sum, self.summed, self.last) = (sum, summed, (input, output));
    }

    fn judge_block(&mut self) {
        let levels = levels_db(&self.sound);
        let share = if self.active { KEEP_SHARE } else { 1.0 };
        let stands_out =
            |(noise, level_db): (&Noise, &f32)| *level_db > noise.level_db + share * noise.onset_db();
        let is_loud = levels[0] > LEVEL_MIN_DB
            && self.noise[0].is_known()
            && self.noise.iter().zip(&levels).any(stands_out);
        if is_loud {
            self.loud_blocks += 1;
            self.loudest_db = if self.loud_blocks == 1 { levels[0] } else { self.loudest_db.max(levels[0]) };
            self.quiet_blocks = 0;
            if !self.active && self.loud_blocks >= ONSET_BLOCKS {
                self.judge_run(levels[0]);
            }
        } else {
            self.loud_blocks = 0;
            self.quiet_blocks = self.quiet_blocks.saturating_add(1);
            if self.quiet_blocks >= AFTER_TONE_BLOCKS {
                self.tone_blocks = 0;
            }
            self.active &= self.quiet_blocks < self.hangover_blocks;
        }
        for (noise, level_db) in self.noise.iter_mut().zip(levels) {
            noise.hear(level_db, is_loud);
        }
    }

    /// Enough blocks in a row are loud: a click that rings is no speech, nor is a tone.
    fn judge_run(&mut self, level_db: f32) {
        if level_db < self.loudest_db - CLICK_FALL_DB {
            return;
        }
        let rest = rest_of(&self.sound);
        if rest < TONE_REST {
            self.tone_blocks = AFTER_TONE_BLOCKS;
        } else if self.tone_blocks > 0 {
            self.tone_blocks -= 1;
            self.active = self.tone_blocks == 0;
        } else {
            self.active = rest > CLEAR_REST || self.loud_blocks > ONSET_BLOCKS;
        }
    }
}

/// The noise of a line: what is there while nobody speaks.
#[derive(Debug, Clone)]
struct Noise {
    level_db: f32,
    /// Mean deviation of a block from it, dB.
    deviation_db: f32,
    blocks: u32,
    /// Level of the last four blocks.
    smooth_db: f32,
    /// Quietest moment of the window that is being filled, and of those before it, oldest first.
    minimum_db: f32,
    minima_db: [f32; MINIMUM_WINDOWS],
}

impl Noise {
    const fn new() -> Self {
        Self {
            level_db: NOISE_DB.0,
            deviation_db: DEVIATION_START_DB,
            blocks: 0,
            smooth_db: NOISE_DB.0,
            minimum_db: NOISE_DB.0,
            minima_db: [NOISE_DB.0; MINIMUM_WINDOWS],
        }
    }

    const fn is_known(&self) -> bool {
        self.blocks >= LEARNING_BLOCKS
    }

    /// So much must a block stand out.
    fn onset_db(&self) -> f32 {
        (ONSET_DEVIATIONS * self.deviation_db).clamp(ONSET_DB, ONSET_MAX_DB)
    }

    fn hear(&mut self, level_db: f32, is_loud: bool) {
        if self.blocks == 0 {
            (self.level_db, self.smooth_db, self.minimum_db) = (level_db, level_db, level_db);
        }
        self.blocks = self.blocks.saturating_add(1);
        self.smooth_db += (level_db - self.smooth_db) * 0.25;
        self.minimum_db = self.minimum_db.min(self.smooth_db);
        if self.blocks.is_multiple_of(WINDOW_BLOCKS) {
            self.minima_db.copy_within(1.., 0);
            self.minima_db[MINIMUM_WINDOWS - 1] = self.minimum_db;
            self.minimum_db = self.smooth_db;
            self.level_db = self.minima_db.iter().copied().fold(0.0, f32::min).max(self.level_db);
        }
        if !is_loud {
            let off_db = level_db - self.level_db;
            self.level_db += off_db * if off_db < 0.0 { FOLLOW.0 } else { FOLLOW.1 };
            self.deviation_db += (off_db.abs() - self.deviation_db) * FOLLOW_DEVIATION;
        }
        self.level_db = self.level_db.clamp(NOISE_DB.0, NOISE_DB.1);
    }
}

/// Level of the newest block in dB below full scale: as it is, and of what changes from sample to sample, which is its upper half.
fn levels_db(sound: &[f32; HISTORY]) -> [f32; 2] {
    let (now, before) = (&sound[HISTORY - BLOCK..], &sound[HISTORY - BLOCK - 1..HISTORY - 1]);
    let (mut whole, mut upper) = ([0.0_f32; 8], [0.0_f32; 8]);
    for (now, before) in now.chunks_exact(8).zip(before.chunks_exact(8)) {
        for lane in 0..8 {
            let change = now[lane] - before[lane];
            whole[lane] += now[lane] * now[lane];
            upper[lane] += change * change;
        }
    }
    let db = |lanes: [f32; 8]| {
        let mean = lanes.iter().sum::<f32>() / BLOCK as f32;
        10.0 * (mean.max(1.0) / (32_768.0 * 32_768.0)).log10()
    };
    [db(whole), db(upper)]
}

/// Which share of the energy of the window no recursion of order [`ORDER`] can foretell: least squares over the window, by the
/// covariance method, which unlike the autocorrelation method has no edges to blur.
fn rest_of(sound: &[f32; HISTORY]) -> f64 {
    // moments[i][j]: the window moved back by i, times the window moved back by j.
    let mut moments = [[0.0_f64; ORDER + 1]; ORDER + 1];
    let window = &sound[ORDER..];
    for back in 0..=ORDER {
        let mut lanes = [0.0_f32; 8];
        for (a, b) in window.chunks_exact(8).zip(sound[ORDER - back..].chunks_exact(8)) {
            for lane in 0..8 {
                lanes[lane] += a[lane] * b[lane];
            }
        }
        moments[0][back] = lanes.iter().copied().map(f64::from).sum();
    }
    for i in 1..=ORDER {
        for j in i..=ORDER {
            let first = f64::from(sound[ORDER - i]) * f64::from(sound[ORDER - j]);
            let last = f64::from(sound[HISTORY - i]) * f64::from(sound[HISTORY - j]);
            moments[i][j] = moments[i - 1][j - 1] + first - last;
        }
    }
    let whole = moments[0][0];
    if whole <= 0.0 {
        return 1.0;
    }
    // Cholesky's factors of the normal equations, and the foretold energy in one pass: what is solved forward is enough.
    let mut factors = [[0.0_f64; ORDER]; ORDER];
    let mut solved = [0.0_f64; ORDER];
    let mut foretold = 0.0;
    for i in 0..ORDER {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| factors[i][k] * factors[j][k]).sum();
            let left = moments[j + 1][i + 1] - known;
            factors[i][j] = match i == j {
                // What is lost to rounding is put back, a 10⁻⁷ of the whole.
                true => (left + whole * 1e-7).max(whole * 1e-7).sqrt(),
                false => left / factors[j][j],
            };
        }
        let known: f64 = (0..i).map(|k| factors[i][k] * solved[k]).sum();
        solved[i] = (moments[0][i + 1] - known) / factors[i][i];
        foretold += solved[i] * solved[i];
    }
    1.0 - foretold / whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tone::Sine;

    const RATE: SampleRate = SampleRate::Hz8000;

    /// Noise of a given peak from a seeded generator. Loud, it stands for speech: the detector knows no difference.
    fn noise(len: usize, peak: i32, seed: &mut u32) -> Vec<i16> {
        (0..len)
            .map(|_| {
                *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((*seed >> 16) as i32 % (2 * peak + 1) - peak) as i16
            })
            .collect()
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
            signal.extend(noise(4_000, 4_000, &mut seed));
            signal.extend(noise(8_000, 60, &mut seed));
            let mut vad = Vad::new(RATE);
            let (mut started, mut ended) = (None, None);
            for (n, block) in signal.chunks(40).enumerate() {
                match vad.process(block) {
                    Some(VadEvent::SpeechStarted) => started = Some(n * 40 + 40),
                    Some(VadEvent::SpeechEnded) => ended = Some(n * 40 + 40),
                    None => {}
                }
            }
            let onset_ms = (started.unwrap() - 8_000 - offset) / 8;
            assert!(onset_ms <= 30, "{onset_ms} ms with offset {offset}");
            let end_ms = (ended.unwrap() - 12_000 - offset) / 8;
            assert!((295..=310).contains(&end_ms), "{end_ms} ms with offset {offset}");
        }
    }

    #[test]
    fn frames_of_any_length_and_rate_are_judged_alike() {
        let mut seed = 5;
        let mut signal = noise(8_000, 60, &mut seed);
        signal.extend(noise(8_000, 4_000, &mut seed));
        let wide: Vec<i16> = signal.iter().flat_map(|&sample| [sample; 2]).collect();
        let (mut whole, mut pieces, mut wider) =
            (Vad::new(RATE), Vad::new(RATE), Vad::new(SampleRate::Hz16000));
        let started = Some(VadEvent::SpeechStarted);
        assert_eq!(whole.process(&signal), started);
        assert_eq!(signal.chunks(7).filter(|piece| pieces.process(piece) == started).count(), 1);
        assert_eq!(wide.chunks(33).filter(|piece| wider.process(piece) == started).count(), 1);
        for other in [pieces, wider] {
            assert_eq!(other.noise_floor_dbfs(), whole.noise_floor_dbfs());
        }
    }

    #[test]
    fn what_is_known_to_be_noise_ends_speech_and_never_begins_it() {
        let mut seed = 8;
        let mut vad = Vad::new(RATE);
        vad.process(&noise(4_000, 60, &mut seed));
        assert_eq!(vad.process(&noise(4_000, 4_000, &mut seed)), Some(VadEvent::SpeechStarted));
        let events: Vec<_> = (0..100).filter_map(|_| vad.pause(160)).collect();
        assert_eq!((events.as_slice(), vad.is_speech()), (&[VadEvent::SpeechEnded][..], false));
    }

    #[test]
    fn silence_and_dc_are_no_speech() {
        assert_eq!(run(&mut Vad::new(RATE), &[0; 80_000]), []);
        assert_eq!(run(&mut Vad::new(RATE), &[2_000; 80_000]), []);
    }

    #[test]
    fn speech_stands_out_of_loud_noise() {
        let mut seed = 3;
        let mut vad = Vad::new(RATE);
        assert_eq!(run(&mut vad, &noise(8 * 15_000, 1_000, &mut seed)), []);
        let mut speech = noise(4_000, 6_000, &mut seed);
        crate::pcm::mix(&mut speech, &noise(4_000, 1_000, &mut seed));
        assert_eq!(run(&mut vad, &speech), [(20, VadEvent::SpeechStarted)]);
    }

    #[test]
    fn noise_that_becomes_louder_is_speech_until_its_minimum_is_known() {
        let mut seed = 4;
        let mut vad = Vad::new(RATE);
        assert_eq!(run(&mut vad, &noise(16_000, 60, &mut seed)), []);
        let events = run(&mut vad, &noise(80_000, 1_000, &mut seed));
        let [(_, VadEvent::SpeechStarted), (end_ms, VadEvent::SpeechEnded)] = events[..] else {
            panic!("{events:?}")
        };
        assert!(end_ms <= 2_400, "{end_ms}");
    }

    #[test]
    fn a_pause_shorter_than_the_hangover_does_not_end_speech() {
        let mut seed = 6;
        let mut signal = noise(4_000, 60, &mut seed);
        signal.extend(noise(4_000, 3_000, &mut seed));
        signal.extend([0; 1_600]);
        signal.extend(noise(4_000, 3_000, &mut seed));
        let mut vad = Vad::new(RATE);
        assert_eq!(run(&mut vad, &signal), [(520, VadEvent::SpeechStarted)]);
        assert!(vad.is_speech());
        vad.reset();
        assert!(!vad.is_speech());
    }

    #[test]
    fn a_click_is_no_speech_wherever_it_falls() {
        for at in 4_000..4_040 {
            let mut signal = vec![0; 8_000];
            signal[at..at + 40].fill(20_000);
            assert_eq!(run(&mut Vad::new(RATE), &signal), [], "at {at}");
        }
    }

    #[test]
    fn a_tone_is_no_speech_and_what_follows_it_is() {
        let mut seed = 9;
        for (low, high) in
            [(350.0, 440.0), (440.0, 480.0), (480.0, 620.0), (697.0, 1_209.0), (2_100.0, 1_100.0)]
        {
            let mut signal = noise(4_010, 20, &mut seed);
            let mut tone = vec![0; 4_007];
            Sine::new(low, 4_000, RATE).add(&mut tone);
            Sine::new(high, 4_000, RATE).add(&mut tone);
            signal.extend(tone);
            signal.extend(noise(4_000, 20, &mut seed));
            let mut codes = vec![0; signal.len()];
            crate::g711::encode_alaw(&signal, &mut codes);
            crate::g711::decode_alaw(&codes, &mut signal);
            let mut vad = Vad::new(RATE);
            assert_eq!(run(&mut vad, &signal), [], "{low} and {high} Hz");
            let events = run(&mut vad, &noise(4_000, 4_000, &mut seed));
            assert_eq!(events, [(20, VadEvent::SpeechStarted)], "after {low} and {high} Hz");
        }
    }
}
