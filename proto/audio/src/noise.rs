//! Comfort noise (RFC 3389): what is heard of a line on which nobody speaks, and nothing is sent.
//!
//! ```text
//!  silence ─▶ NoiseMeter ─▶ Sid ─▶ CN payload: level, reflection coefficients
//!  CN payload ─▶ Sid ─▶ NoiseGenerator ─▶ noise of that level and spectrum, for as long as it lasts
//! ```
//!
//! The spectrum is an all-pole filter whose reflection coefficients are the payload's octets; both ends work at the
//! codec's sample rate. Without coefficients the noise is white.

use crate::format::SampleRate;
use crate::pcm;

/// Octets of the largest payload that we write: a level and [`ORDER`] coefficients.
pub const MAX_SID_OCTETS: usize = 1 + ORDER;
/// Coefficients that we measure; more say nothing that an ear would miss in noise.
pub const ORDER: usize = 6;
/// Coefficients that we heed; RFC 3389 §3 names no bound, and senders use 10 to 12.
const MAX_ORDER: usize = 12;
/// The quietest level that a payload can say: −127 dBov.
const QUIETEST: u8 = 127;
/// One step of a quantized coefficient: 258 / 32 768 (RFC 3389 §3.2).
const STEP: f32 = 258.0 / 32_768.0;

/// The largest magnitude of a reflection coefficient: what we measure never exceeds it either.
const REFLECTION_MAX: f32 = 0.99;

/// What a comfort-noise payload says: a silence descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sid {
    level: u8,
    order: u8,
    coefficients: [u8; MAX_ORDER],
}

impl Sid {
    /// White noise of so many decibels below overload (0 to 127).
    pub const fn white(level: u8) -> Self {
        Self {
            level: if level > QUIETEST { QUIETEST } else { level },
            order: 0,
            coefficients: [127; MAX_ORDER],
        }
    }

    /// Reads a payload; `None` when it is empty. Coefficients beyond the twelfth are left.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let (&level, rest) = payload.split_first()?;
        let order = rest.len().min(MAX_ORDER);
        let mut sid = Self::white(level & QUIETEST);
        sid.coefficients[..order].copy_from_slice(&rest[..order]);
        sid.order = order as u8;
        Some(sid)
    }

    /// Writes it as far as there is room and returns how many octets that were.
    pub fn write(&self, payload: &mut [u8]) -> usize {
        let Some((level, rest)) = payload.split_first_mut() else { return 0 };
        *level = self.level;
        let order = usize::from(self.order).min(rest.len());
        rest[..order].copy_from_slice(&self.coefficients[..order]);
        1 + order
    }

    /// Decibels below overload.
    pub const fn level(&self) -> u8 {
        self.level
    }

    fn reflection(&self) -> [f32; MAX_ORDER] {
        let mut reflection = [0.0; MAX_ORDER];
        for (k, &octet) in reflection.iter_mut().zip(&self.coefficients[..usize::from(self.order)]) {
            // At 1 and beyond, which an octet of 255 is, the filter would run away.
            *k = ((f32::from(octet) - 127.0) * STEP).clamp(-REFLECTION_MAX, REFLECTION_MAX);
        }
        reflection
    }
}

/// Makes noise of a [`Sid`].
#[derive(Debug, Clone)]
pub struct NoiseGenerator {
    reflection: [f32; MAX_ORDER],
    order: usize,
    /// Backward prediction errors of the lattice.
    backward: [f32; MAX_ORDER + 1],
    amplitude: f32,
    seed: u32,
}

impl NoiseGenerator {
    /// A generator of silence; `seed` keeps streams from sounding alike.
    pub const fn new(seed: u32) -> Self {
        Self {
            reflection: [0.0; MAX_ORDER],
            order: 0,
            backward: [0.0; MAX_ORDER + 1],
            amplitude: 0.0,
            seed: seed | 1,
        }
    }

    /// From now on the noise is this.
    pub fn set(&mut self, sid: &Sid) {
        self.reflection = sid.reflection();
        self.order = usize::from(sid.order);
        // What the filter adds in power is taken from its input. Uniform noise of peak 1 has a power of a third.
        let gain: f32 = self.reflection.iter().map(|k| 1.0 - k * k).product();
        let rms = 32_768.0 * 10_f32.powf(-f32::from(sid.level) / 20.0);
        self.amplitude = rms * (3.0 * gain.max(0.0)).sqrt();
    }

    /// Fills a frame.
    pub fn fill(&mut self, frame: &mut [i16]) {
        for sample in frame {
            self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut forward = (self.seed as i32) as f32 / 2_147_483_648.0 * self.amplitude;
            for stage in (0..self.order).rev() {
                let k = self.reflection[stage];
                forward -= k * self.backward[stage];
                self.backward[stage + 1] = self.backward[stage] + k * forward;
            }
            self.backward[0] = forward;
            *sample = forward as i16;
        }
    }
}

/// Measures noise to describe it.
#[derive(Debug, Clone)]
pub struct NoiseMeter {
    /// Autocorrelation, averaged over what was heard.
    correlation: [f32; ORDER + 1],
    blocks: f32,
}

impl Default for NoiseMeter {
    fn default() -> Self {
        Self::new()
    }
}

impl NoiseMeter {
    /// How fast older frames are forgotten: frames that count.
    const MEMORY_FRAMES: f32 = 25.0;

    /// A meter that has heard nothing.
    pub const fn new() -> Self {
        Self { correlation: [0.0; ORDER + 1], blocks: 0.0 }
    }

    /// Hears a frame of noise.
    pub fn hear(&mut self, frame: &[i16]) {
        if frame.len() <= ORDER {
            return;
        }
        self.blocks = (self.blocks + 1.0).min(Self::MEMORY_FRAMES);
        for (lag, average) in self.correlation.iter_mut().enumerate() {
            let products = frame.iter().zip(&frame[lag..]).map(|(&a, &b)| f32::from(a) * f32::from(b));
            *average += (products.sum::<f32>() / frame.len() as f32 - *average) / self.blocks;
        }
    }

    /// What was heard, by Levinson's and Durbin's recursion.
    pub fn sid(&self) -> Sid {
        let power = self.correlation[0];
        if power < 1.0 {
            return Sid::white(QUIETEST);
        }
        let level = (-10.0 * (power / (32_768.0 * 32_768.0)).log10()).round().clamp(0.0, f32::from(QUIETEST));
        let mut sid = Sid::white(level as u8);
        let mut predictor = [0.0_f32; ORDER];
        // A little white noise under it keeps the filter stable.
        let mut error = power * 1.000_1;
        for order in 0..ORDER {
            let predicted: f32 = (0..order).map(|n| predictor[n] * self.correlation[order - n]).sum();
            let k =
                -((self.correlation[order + 1] + predicted) / error).clamp(-REFLECTION_MAX, REFLECTION_MAX);
            let before = predictor;
            for n in 0..order {
                predictor[n] += k * before[order - 1 - n];
            }
            predictor[order] = k;
            error *= 1.0 - k * k;
            sid.coefficients[order] = (k / STEP + 127.0).round().clamp(0.0, 254.0) as u8;
        }
        sid.order = ORDER as u8;
        sid
    }
}

/// The payload type that RFC 3551 fixes for comfort noise beside 8 kHz codecs.
pub const STATIC_PAYLOAD_TYPE: u8 = 13;

/// Power of a frame in decibels below overload, as a [`Sid`] says it.
pub fn level_of(frame: &[i16]) -> u8 {
    (-pcm::level_dbfs(frame)).round().clamp(0.0, f32::from(QUIETEST)) as u8
}

/// True for rates at which comfort noise is negotiated: the RTP clock's, which must be the codec's (RFC 3389 §4).
pub const fn is_rate(rate: SampleRate) -> bool {
    matches!(rate, SampleRate::Hz8000 | SampleRate::Hz16000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise_of(sid: &Sid, len: usize) -> Vec<i16> {
        let mut generator = NoiseGenerator::new(99);
        generator.set(sid);
        let mut frame = vec![0; len];
        generator.fill(&mut frame);
        frame
    }

    #[test]
    fn noise_has_the_level_that_was_asked_for() {
        for level in [30, 45, 60] {
            let heard = pcm::level_dbfs(&noise_of(&Sid::white(level), 16_000));
            assert!((heard + f32::from(level)).abs() < 0.5, "{heard} dB for {level}");
            let coloured = Sid::parse(&[level, 240, 90, 127, 140]).unwrap();
            let heard = pcm::level_dbfs(&noise_of(&coloured, 16_000));
            assert!((heard + f32::from(level)).abs() < 1.5, "{heard} dB for {level} of a colour");
        }
    }

    #[test]
    fn what_is_measured_sounds_like_what_was_heard() {
        let coloured = Sid::parse(&[40, 30, 160, 120, 127, 127, 127]).unwrap();
        let mut meter = NoiseMeter::new();
        for frame in noise_of(&coloured, 32_000).chunks(160) {
            meter.hear(frame);
        }
        let measured = meter.sid();
        assert!(measured.level().abs_diff(40) <= 2, "{measured:?}");
        for (n, &wanted) in [30_u8, 160, 120, 127].iter().enumerate() {
            assert!(measured.coefficients[n].abs_diff(wanted) <= 10, "{measured:?}");
        }
    }

    #[test]
    fn a_payload_is_read_as_it_was_written() {
        let sid = Sid::parse(&[60, 1, 2, 3]).unwrap();
        let mut payload = [0; 20];
        assert_eq!(sid.write(&mut payload), 4);
        assert_eq!(payload[..4], [60, 1, 2, 3]);
        assert_eq!(Sid::parse(&[]), None);
        assert_eq!(Sid::parse(&[0xFF]).unwrap().level(), 127, "the upper bit is reserved");
        assert_eq!(NoiseMeter::new().sid(), Sid::white(127));
        assert_eq!(level_of(&[0; 80]), 127);
    }

    #[test]
    fn coefficients_beyond_one_do_not_run_away() {
        for payload in
            [&[23, 0, 0, 255, 255][..], &[40, 255], &[30, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0]]
        {
            let sid = Sid::parse(payload).unwrap();
            let heard = pcm::rms(&noise_of(&sid, 8_000));
            let wanted = 32_768.0 * 10_f32.powf(-f32::from(sid.level()) / 20.0);
            assert!(heard <= wanted * 4.0 + 2.0, "{payload:?}: {heard} for {wanted}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_payload_makes_noise_run_away(payload in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..30)) {
            let sid = Sid::parse(&payload).unwrap();
            let heard = pcm::rms(&noise_of(&sid, 8_000));
            let wanted = 32_768.0 * 10_f32.powf(-f32::from(sid.level()) / 20.0);
            proptest::prop_assert!(heard <= wanted * 4.0 + 2.0, "{} for {}", heard, wanted);
        }
    }
}
