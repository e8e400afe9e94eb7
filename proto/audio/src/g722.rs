//! G.722 at 64 kbit/s (ITU-T G.722 mode 1): 16 kHz PCM16 ↔ one octet for each two samples.
//!
//! ```text
//!  PCM ─▶ analysis QMF ─┬─ 0–4 kHz, 8 kHz ─▶ 6-bit ADPCM ─┐
//!                       └─ 4–8 kHz, 8 kHz ─▶ 2-bit ADPCM ─┴─▶ octet ─▶ both back ─▶ synthesis QMF ─▶ PCM
//! ```
//!
//! Written from the block diagrams of the Recommendation (§3 to §6, whose block names the comments use) in its 16-bit
//! arithmetic, so that streams are the same to the bit as other makers'. Encoder and decoder keep the same predictors,
//! which is why both must start afresh together. The RTP clock is 8 kHz although 16 kHz are sampled (RFC 3551 §4.5.2).

use crate::simd;

/// Half of the QMF's taps: the even ones; the odd ones are the same backwards.
const QMF: [i16; 12] = [3, -11, 12, 32, -210, 951, 3_876, -805, 362, -156, 53, -11];
/// The even taps with zeros between, and the odd ones: two dot products with one window.
const QMF_EVEN: [i16; simd::QMF_TAPS] = qmf_taps(false);
const QMF_ODD: [i16; simd::QMF_TAPS] = qmf_taps(true);
/// Samples that the QMF looks back on, beside the two of the moment.
const QMF_PAST: usize = 22;
/// Octets that are worked off at once, which bounds the scratch memory on the stack.
const BLOCK: usize = 160;

/// Decision levels of the lower band's 6-bit quantizer (table 4).
const Q6: [i16; 29] = [
    35, 72, 110, 150, 190, 233, 276, 323, 370, 422, 473, 530, 587, 650, 714, 786, 858, 940, 1_023, 1_121,
    1_219, 1_339, 1_458, 1_612, 1_765, 1_980, 2_195, 2_557, 2_919,
];
/// Output of the 6-bit inverse quantizer, by code (table 6).
const QM6: [i16; 64] = [
    -136, -136, -136, -136, -24_808, -21_904, -19_008, -16_704, -14_984, -13_512, -12_280, -11_192, -10_232,
    -9_360, -8_576, -7_856, -7_192, -6_576, -6_000, -5_456, -4_944, -4_464, -4_008, -3_576, -3_168, -2_776,
    -2_400, -2_032, -1_688, -1_360, -1_040, -728, 24_808, 21_904, 19_008, 16_704, 14_984, 13_512, 12_280,
    11_192, 10_232, 9_360, 8_576, 7_856, 7_192, 6_576, 6_000, 5_456, 4_944, 4_464, 4_008, 3_576, 3_168,
    2_776, 2_400, 2_032, 1_688, 1_360, 1_040, 728, 432, 136, -432, -136,
];
/// Output of the 4-bit inverse quantizer, which both sides' predictors live by.
const QM4: [i16; 16] = [
    0, -20_456, -12_896, -8_968, -6_288, -4_240, -2_584, -1_200, 20_456, 12_896, 8_968, 6_288, 4_240, 2_584,
    1_200, 0,
];
/// Output of the upper band's 2-bit inverse quantizer.
const QM2: [i16; 4] = [-7_408, -1_616, 7_408, 1_616];
/// How a lower code moves the logarithmic scale factor (table 12, by 4-bit code).
const WL: [i16; 16] = [-60, 3_042, 1_198, 538, 334, 172, 58, -30, 3_042, 1_198, 538, 334, 172, 58, -30, -60];
/// How an upper code does.
const WH: [i16; 4] = [798, -214, 798, -214];
/// Antilogarithm: 2^(11 + n/32) (table 14).
const ILB: [i16; 32] = [
    2_048, 2_093, 2_139, 2_186, 2_233, 2_282, 2_332, 2_383, 2_435, 2_489, 2_543, 2_599, 2_656, 2_714, 2_774,
    2_834, 2_896, 2_960, 3_025, 3_091, 3_158, 3_228, 3_298, 3_371, 3_444, 3_520, 3_597, 3_676, 3_756, 3_838,
    3_922, 4_008,
];

const fn qmf_taps(odd: bool) -> [i16; simd::QMF_TAPS] {
    let mut taps = [0; simd::QMF_TAPS];
    let mut n = 0;
    while n < 12 {
        if odd {
            taps[2 * n + 1] = QMF[11 - n];
        } else {
            taps[2 * n] = QMF[n];
        }
        n += 1;
    }
    taps
}

const fn saturate(value: i32) -> i16 {
    if value > i16::MAX as i32 {
        i16::MAX
    } else if value < i16::MIN as i32 {
        i16::MIN
    } else {
        value as i16
    }
}

/// One band's adaptive predictor and scale factor (blocks 3L/3H and 4L/4H).
#[derive(Debug, Clone)]
struct Band {
    /// Predicted signal: pole and zero sections together.
    s: i16,
    /// Predicted by the zero section alone.
    sz: i16,
    /// Reconstructed signal, newest first.
    r: [i16; 2],
    /// Signs of the partially reconstructed signal, newest first.
    p: [bool; 2],
    /// Pole coefficients.
    a: [i16; 2],
    /// Quantized differences, newest first, and zero coefficients; two lanes are always zero.
    d: [i16; 8],
    b: [i16; 8],
    /// Logarithmic scale factor, and its antilogarithm.
    nb: i16,
    det: i16,
}

impl Band {
    const fn new(det: i16) -> Self {
        Self { s: 0, sz: 0, r: [0; 2], p: [false; 2], a: [0; 2], d: [0; 8], b: [0; 8], nb: 0, det }
    }

    /// SCALEL or SCALEH with LOGSCL or LOGSCH: `shift` is 8 below and 10 above.
    #[inline(always)]
    fn scale(&mut self, step: i16, max: i32, shift: i32) {
        let nb = (((i32::from(self.nb) * 127) >> 7) + i32::from(step)).clamp(0, max);
        self.nb = nb as i16;
        let antilog = i32::from(ILB[(nb >> 6 & 31) as usize]);
        let down = shift - (nb >> 11);
        let scaled = if down < 0 { antilog << -down } else { antilog >> down };
        self.det = (scaled << 2) as i16;
    }

    /// Blocks 4L and 4H: takes the quantized difference in and predicts the next sample.
    #[inline(always)]
    fn adapt(&mut self, difference: i16) {
        let d0 = i32::from(difference);
        let r0 = saturate(i32::from(self.s) + d0);
        let p0 = saturate(i32::from(self.sz) + d0) < 0;

        // UPPOL2.
        let same = p0 == self.p[0];
        let a1 = i32::from(saturate(i32::from(self.a[0]) << 2));
        let towards = if same { (-a1).min(32_767) } else { a1 };
        let leaked = (i32::from(self.a[1]) * 32_512) >> 15;
        let a2 = ((towards >> 7) + if p0 == self.p[1] { 128 } else { -128 } + leaked).clamp(-12_288, 12_288);
        // UPPOL1.
        let step = if same { 192 } else { -192 };
        let limit = 15_360 - a2;
        let a1 = (((i32::from(self.a[0]) * 32_640) >> 15) + step).clamp(-limit, limit);
        self.a = [a1 as i16, a2 as i16];

        // UPZERO, DELAYL and FILTEZ in one pass over the lanes.
        self.sz = simd::zero_section(&mut self.b, &mut self.d, difference);

        // FILTEP.
        let poles = ((a1 * i32::from(saturate(2 * i32::from(r0)))) >> 15)
            + ((a2 * i32::from(saturate(2 * i32::from(self.r[0])))) >> 15);
        self.r = [r0, self.r[0]];
        self.p = [p0, self.p[0]];
        self.s = saturate(i32::from(saturate(poles)) + i32::from(self.sz));
    }

    /// The lower band hears a 4-bit code.
    #[inline(always)]
    fn adapt_lower(&mut self, code: usize) {
        let difference = (i32::from(self.det) * i32::from(QM4[code & 15])) >> 15;
        self.scale(WL[code & 15], 18_432, 8);
        self.adapt(difference as i16);
    }

    /// The upper band hears a 2-bit code.
    #[inline(always)]
    fn adapt_upper(&mut self, code: usize) -> i16 {
        let difference = ((i32::from(self.det) * i32::from(QM2[code & 3])) >> 15) as i16;
        self.scale(WH[code & 3], 22_528, 10);
        self.adapt(difference);
        difference
    }
}

/// 16 kHz PCM16 → G.722.
#[derive(Debug, Clone)]
pub struct G722Encoder {
    lower: Band,
    upper: Band,
    past: [i16; QMF_PAST],
}

impl Default for G722Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl G722Encoder {
    /// An encoder with silence behind it.
    pub const fn new() -> Self {
        Self { lower: Band::new(32), upper: Band::new(8), past: [0; QMF_PAST] }
    }

    /// Encodes pairs of samples, as many as both slices hold, and returns how many octets were written. A last odd sample
    /// is left.
    pub fn encode(&mut self, samples: &[i16], codes: &mut [u8]) -> usize {
        simd::encode_g722(self, samples, codes)
    }

    #[inline(always)]
    pub(crate) fn encode_loop(&mut self, samples: &[i16], codes: &mut [u8]) -> usize {
        let len = (samples.len() / 2).min(codes.len());
        for (samples, codes) in samples[..2 * len].chunks(2 * BLOCK).zip(codes[..len].chunks_mut(BLOCK)) {
            let mut window = [0; QMF_PAST + 2 * BLOCK + simd::QMF_TAPS];
            window[..QMF_PAST].copy_from_slice(&self.past);
            window[QMF_PAST..QMF_PAST + samples.len()].copy_from_slice(samples);
            for (n, code) in codes.iter_mut().enumerate() {
                let Some(taps) = window[2 * n..].first_chunk() else { break };
                let (even, odd) = simd::qmf(taps, &QMF_EVEN, &QMF_ODD);
                *code = self.encode_pair(((even + odd) >> 14) as i16, ((odd - even) >> 14) as i16);
            }
            self.past.copy_from_slice(&window[samples.len()..samples.len() + QMF_PAST]);
        }
        len
    }

    #[inline(always)]
    fn encode_pair(&mut self, low: i16, high: i16) -> u8 {
        // SUBTRA and QUANTL.
        let difference = saturate(i32::from(low) - i32::from(self.lower.s));
        let magnitude = difference ^ (difference >> 15);
        let level = simd::level(magnitude, self.lower.det, &Q6) as u8;
        // The codes count down from the quiet ones: positive from 61, negative from 31, but for the two quietest.
        let lower = if difference >= 0 {
            61 - level
        } else if level < 2 {
            63 - level
        } else {
            33 - level
        };
        self.lower.adapt_lower(usize::from(lower >> 2));

        // SUBTRA and QUANTH.
        let difference = saturate(i32::from(high) - i32::from(self.upper.s));
        let magnitude = i32::from(difference ^ (difference >> 15));
        let loud = magnitude >= (564 * i32::from(self.upper.det)) >> 12;
        let upper = match (difference < 0, loud) {
            (true, true) => 0,
            (true, false) => 1,
            (false, true) => 2,
            (false, false) => 3,
        };
        self.upper.adapt_upper(usize::from(upper));
        upper << 6 | lower
    }
}

/// G.722 → 16 kHz PCM16.
#[derive(Debug, Clone)]
pub struct G722Decoder {
    lower: Band,
    upper: Band,
    past: [i16; QMF_PAST],
}

impl Default for G722Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl G722Decoder {
    /// A decoder with silence behind it.
    pub const fn new() -> Self {
        Self { lower: Band::new(32), upper: Band::new(8), past: [0; QMF_PAST] }
    }

    /// Decodes octets to two samples each, as many as both slices hold, and returns how many samples were written.
    pub fn decode(&mut self, codes: &[u8], samples: &mut [i16]) -> usize {
        simd::decode_g722(self, codes, samples)
    }

    #[inline(always)]
    pub(crate) fn decode_loop(&mut self, codes: &[u8], samples: &mut [i16]) -> usize {
        let len = codes.len().min(samples.len() / 2);
        for (codes, samples) in codes[..len].chunks(BLOCK).zip(samples[..2 * len].chunks_mut(2 * BLOCK)) {
            let mut window = [0; QMF_PAST + 2 * BLOCK + simd::QMF_TAPS];
            window[..QMF_PAST].copy_from_slice(&self.past);
            let (bands, _) = window[QMF_PAST..].as_chunks_mut::<2>();
            for (band, &code) in bands.iter_mut().zip(codes) {
                let (low, high) = self.decode_pair(code);
                *band = [low + high, low - high];
            }
            let (pairs, _) = samples.as_chunks_mut::<2>();
            for (n, pair) in pairs.iter_mut().enumerate() {
                let Some(taps) = window[2 * n..].first_chunk() else { break };
                let (even, odd) = simd::qmf(taps, &QMF_EVEN, &QMF_ODD);
                *pair = [saturate(odd >> 11), saturate(even >> 11)];
            }
            self.past.copy_from_slice(&window[2 * codes.len()..2 * codes.len() + QMF_PAST]);
        }
        len * 2
    }

    /// Both bands of one octet, each within 15 bits.
    #[inline(always)]
    fn decode_pair(&mut self, code: u8) -> (i16, i16) {
        let limit = |value: i32| value.clamp(-16_384, 16_383) as i16;
        let lower = usize::from(code & 63);
        let difference = (i32::from(self.lower.det) * i32::from(QM6[lower])) >> 15;
        let low = limit(i32::from(self.lower.s) + difference);
        self.lower.adapt_lower(lower >> 2);
        let predicted = self.upper.s;
        let difference = self.upper.adapt_upper(usize::from(code >> 6));
        (low, limit(i32::from(predicted) + i32::from(difference)))
    }
}
