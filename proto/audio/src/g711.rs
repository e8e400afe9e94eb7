//! G.711 µ-law (PCMU) and A-law (PCMA), 8-bit codes ↔ 16-bit linear samples.
//!
//! Both laws write a magnitude as segment (three bits) and step within it (four bits), which is what the exponent and
//! the upper mantissa of a floating-point number are. The encoders convert the biased magnitude to `f32` and shift its
//! bits: no branch, no table, and the compiler makes vector code of the loop. Every magnitude has at most 15 bits, so the conversion is exact.
//!
//! Negative samples are mirrored by one's complement, as in the ITU-T reference software (G.191). The decoders look up
//! 256 values.

use crate::simd;

/// Silence in µ-law: positive zero.
pub const ULAW_SILENCE: u8 = 0xFF;
/// Silence in A-law: the smallest positive step (A-law has no zero).
pub const ALAW_SILENCE: u8 = 0xD5;

/// Largest magnitude that µ-law can say; louder samples are clipped to it.
const ULAW_CLIP: i16 = 32_635;
/// Added to each magnitude so that segments begin at powers of two: 33 quarter steps of G.711, times four.
const ULAW_BIAS: i16 = 132;
/// A segment's bits in an `f32`: exponent and the four upper bits of the mantissa, moved to bit 0.
const SEGMENT_SHIFT: u32 = 19;
/// Exponent of an `f32` of 2^0.
const F32_EXPONENT_BIAS: u32 = 127;

static ULAW_TO_LINEAR: [i16; 256] = ulaw_table();
static ALAW_TO_LINEAR: [i16; 256] = alaw_table();

/// One sample to µ-law.
#[inline]
pub const fn ulaw_from_linear(sample: i16) -> u8 {
    let magnitude = sample ^ (sample >> 15);
    let clipped = if magnitude > ULAW_CLIP { ULAW_CLIP } else { magnitude };
    let bits = ((clipped + ULAW_BIAS) as f32).to_bits() >> SEGMENT_SHIFT;
    let code = (bits as u8).wrapping_sub(((F32_EXPONENT_BIAS + 7) << 4) as u8);
    // The line carries the inverse of segment and step; the sign bit is 1 for positive.
    !(code | ((sample >> 8) as u8 & 0x80))
}

/// One sample to A-law.
#[inline]
pub const fn alaw_from_linear(sample: i16) -> u8 {
    let magnitude = (sample ^ (sample >> 15)) >> 4;
    // The first two segments are one straight line: below 16 the code is the magnitude.
    let (straight, curved) = if magnitude < 16 { (magnitude, 16) } else { (16, magnitude) };
    let bits = (curved as f32).to_bits() >> SEGMENT_SHIFT;
    let code =
        (bits as u8).wrapping_sub((((F32_EXPONENT_BIAS + 3) << 4) + 16) as u8).wrapping_add(straight as u8);
    // The line carries every other bit inverted (0x55); the sign bit is 1 for positive.
    code ^ ((sample >> 8) as u8 & 0x80) ^ 0xD5
}

/// One µ-law code to a sample.
#[inline]
pub fn linear_from_ulaw(code: u8) -> i16 {
    ULAW_TO_LINEAR[code as usize]
}

/// One A-law code to a sample.
#[inline]
pub fn linear_from_alaw(code: u8) -> i16 {
    ALAW_TO_LINEAR[code as usize]
}

/// Encodes as many samples as both slices hold to µ-law and returns how many that were.
pub fn encode_ulaw(samples: &[i16], codes: &mut [u8]) -> usize {
    simd::encode_ulaw(samples, codes);
    samples.len().min(codes.len())
}

/// Encodes as many samples as both slices hold to A-law and returns how many that were.
pub fn encode_alaw(samples: &[i16], codes: &mut [u8]) -> usize {
    simd::encode_alaw(samples, codes);
    samples.len().min(codes.len())
}

/// Decodes as many µ-law codes as both slices hold and returns how many that were.
pub fn decode_ulaw(codes: &[u8], samples: &mut [i16]) -> usize {
    simd::decode_ulaw(codes, samples);
    samples.len().min(codes.len())
}

/// Decodes as many A-law codes as both slices hold and returns how many that were.
pub fn decode_alaw(codes: &[u8], samples: &mut [i16]) -> usize {
    simd::decode_alaw(codes, samples);
    samples.len().min(codes.len())
}

const fn ulaw_table() -> [i16; 256] {
    let mut table = [0; 256];
    let mut code = 0;
    while code < 256 {
        let inverted = !code as i32 & 0xFF;
        let (segment, step) = (inverted >> 4 & 7, inverted & 15);
        let magnitude = (((step << 3) + ULAW_BIAS as i32) << segment) - ULAW_BIAS as i32;
        table[code] = if inverted & 0x80 != 0 { -magnitude } else { magnitude } as i16;
        code += 1;
    }
    table
}

const fn alaw_table() -> [i16; 256] {
    let mut table = [0; 256];
    let mut code = 0;
    while code < 256 {
        let plain = code as i32 ^ 0x55;
        let (segment, step) = (plain >> 4 & 7, plain & 15);
        // The middle of the step: half a step (8 of 16) above its lower edge.
        let magnitude = if segment == 0 { (step << 4) + 8 } else { ((step << 4) + 0x108) << (segment - 1) };
        table[code] = if plain & 0x80 != 0 { magnitude } else { -magnitude } as i16;
        code += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G.711 by its definition, sharing nothing with the code above: the decision values of each law are the
    /// ends of its chords (eight a sign, sixteen equal steps each), in units of the law's finest step.
    struct Law {
        /// Lower decision value of each of the 128 magnitudes, in 16-bit units.
        decision: Vec<i32>,
        /// Reconstruction value of each, in 16-bit units.
        output: Vec<i32>,
        /// Turns (positive, magnitude number) into the code on the line.
        line: fn(bool, usize) -> u8,
    }

    impl Law {
        /// Table 2a/G.711: chord ends 0, 31, 95, 223, 479, 1 007 (…) to 8 159 of a 14-bit scale; the first step is 1, the others 2.
        fn ulaw() -> Self {
            let (mut decision, mut output) = (vec![0], vec![0]);
            let mut edge = 1;
            for chord in 0..8 {
                let step = 2 << chord;
                for number in 0..16 {
                    if chord == 0 && number == 0 {
                        continue; // the half step around zero
                    }
                    decision.push(edge * 4);
                    output.push((edge + step / 2) * 4);
                    edge += step;
                }
            }
            assert_eq!(edge, 8_159, "virtual decision value x128 of table 2a/G.711");
            Self { decision, output, line: |positive, n| !(n as u8 | if positive { 0 } else { 0x80 }) }
        }

        /// Table 1a/G.711: chord ends 0, 32, 64, 128 … 4 096 of a 13-bit scale with step 2 in the first two.
        fn alaw() -> Self {
            let (mut decision, mut output) = (vec![], vec![]);
            let mut edge = 0;
            for chord in 0..8_i32 {
                let step = 2 << (chord - 1).max(0);
                for _ in 0..16 {
                    decision.push(edge * 8);
                    output.push((edge + step / 2) * 8);
                    edge += step;
                }
            }
            assert_eq!(edge, 4_096, "virtual decision value x128 of table 1a/G.711");
            Self { decision, output, line: |positive, n| (n as u8 | if positive { 0x80 } else { 0 }) ^ 0x55 }
        }

        fn encode(&self, sample: i16) -> u8 {
            let positive = sample >= 0;
            let magnitude = if positive { i32::from(sample) } else { -1 - i32::from(sample) };
            let number = self.decision.iter().rposition(|&lower| lower <= magnitude).unwrap();
            (self.line)(positive, number)
        }

        fn decode(&self, code: u8) -> i16 {
            let (positive, number) = (0..256)
                .map(|i| (i & 1 == 0, i / 2))
                .find(|&(positive, number)| (self.line)(positive, number) == code)
                .unwrap();
            let magnitude = self.output[number];
            i16::try_from(if positive { magnitude } else { -magnitude }).unwrap()
        }
    }

    #[test]
    fn every_sample_is_encoded_as_g711_defines() {
        let (ulaw, alaw) = (Law::ulaw(), Law::alaw());
        for sample in i16::MIN..=i16::MAX {
            assert_eq!(ulaw_from_linear(sample), ulaw.encode(sample), "µ-law of {sample}");
            assert_eq!(alaw_from_linear(sample), alaw.encode(sample), "A-law of {sample}");
        }
    }

    #[test]
    fn every_code_is_decoded_as_g711_defines() {
        let (ulaw, alaw) = (Law::ulaw(), Law::alaw());
        for code in 0..=255 {
            assert_eq!(linear_from_ulaw(code), ulaw.decode(code), "µ-law code {code:#04x}");
            assert_eq!(linear_from_alaw(code), alaw.decode(code), "A-law code {code:#04x}");
        }
    }

    #[test]
    fn every_code_survives_decode_and_encode() {
        for code in 0..=255 {
            // µ-law has two zeros; decoding forgets which.
            let expected = if code == 0x7F { 0xFF } else { code };
            assert_eq!(ulaw_from_linear(linear_from_ulaw(code)), expected);
            assert_eq!(alaw_from_linear(linear_from_alaw(code)), code);
        }
    }

    #[test]
    fn silence_has_its_well_known_codes() {
        assert_eq!(ulaw_from_linear(0), ULAW_SILENCE);
        assert_eq!(alaw_from_linear(0), ALAW_SILENCE);
        assert_eq!(linear_from_ulaw(ULAW_SILENCE), 0);
        assert_eq!(linear_from_alaw(ALAW_SILENCE), 8);
    }

    #[test]
    fn slices_of_unequal_length_use_the_shorter() {
        let mut codes = [0; 3];
        assert_eq!(encode_ulaw(&[0; 5], &mut codes), 3);
        assert_eq!(codes, [ULAW_SILENCE; 3]);
        let mut samples = [1; 5];
        assert_eq!(decode_alaw(&[ALAW_SILENCE; 2], &mut samples), 2);
        assert_eq!(samples, [8, 8, 1, 1, 1]);
    }
}
