//! The few loops in which vectors pay, written once and compiled twice: for any processor, and for AVX2 where there is one.
//!
//! ```text
//!  caller ─▶ has AVX2? (asked of the processor once) ─┬─ yes ─▶ the loop, compiled with AVX2
//!                                                    └─ no ──▶ the loop, compiled for the target as it is
//! ```
//!
//! Both are the same safe code, so both give the same bits, but for [`half_band`], whose vectors no compiler finds; tests
//! compare them all. `unsafe` is here alone in this crate: to call a function that needs the feature which was just asked
//! for, and to load and store vectors there.
#![allow(unsafe_code)]

use crate::g722::{G722Decoder, G722Encoder};

/// Taps of G.722's QMF.
pub(crate) const QMF_TAPS: usize = 24;

/// Declares `name`, which runs `body` compiled with AVX2 where the processor has it.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident / $avx2:ident $([$($generic:tt)*] [$($argument:tt)*])? ($($arg:ident: $ty:ty),*) $(-> $out:ty)? = $body:ident) => {
        $(#[$doc])*
        #[inline]
        $vis fn $name $(<$($generic)*>)? ($($arg: $ty),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn $avx2 $(<$($generic)*>)? ($($arg: $ty),*) $(-> $out)? {
                    $body $(::<$($argument)*>)? ($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the function is safe but for its need of AVX2, which this processor has.
                    return unsafe { $avx2 $(::<$($argument)*>)? ($($arg),*) };
                }
            }
            $body $(::<$($argument)*>)? ($($arg),*)
        }
    };
}

/// Samples that are encoded at once.
const BLOCK: usize = 32;

dispatch! {
    /// Encodes as many samples as both slices hold to µ-law.
    pub(crate) fn encode_ulaw / avx2(samples: &[i16], codes: &mut [u8]) = encode_ulaw_loop
}
dispatch! {
    /// Encodes as many samples as both slices hold to A-law.
    pub(crate) fn encode_alaw / avx2(samples: &[i16], codes: &mut [u8]) = encode_alaw_loop
}
dispatch! {
    /// Decodes as many µ-law codes as both slices hold.
    pub(crate) fn decode_ulaw / avx2(codes: &[u8], samples: &mut [i16]) = decode_ulaw_loop
}
dispatch! {
    /// Decodes as many A-law codes as both slices hold.
    pub(crate) fn decode_alaw / avx2(codes: &[u8], samples: &mut [i16]) = decode_alaw_loop
}

dispatch! {
    /// See [`G722Encoder::encode`].
    pub(crate) fn encode_g722 / avx2(encoder: &mut G722Encoder, samples: &[i16], codes: &mut [u8]) -> usize = encode_g722_loop
}
dispatch! {
    /// See [`G722Decoder::decode`].
    pub(crate) fn decode_g722 / avx2(decoder: &mut G722Decoder, codes: &[u8], samples: &mut [i16]) -> usize = decode_g722_loop
}

#[inline(always)]
fn encode_g722_loop(encoder: &mut G722Encoder, samples: &[i16], codes: &mut [u8]) -> usize {
    encoder.encode_loop(samples, codes)
}

#[inline(always)]
fn decode_g722_loop(decoder: &mut G722Decoder, codes: &[u8], samples: &mut [i16]) -> usize {
    decoder.decode_loop(codes, samples)
}

#[inline(always)]
fn encode_ulaw_loop(samples: &[i16], codes: &mut [u8]) {
    blocks(samples, codes, crate::g711::ulaw_from_linear);
}

#[inline(always)]
fn encode_alaw_loop(samples: &[i16], codes: &mut [u8]) {
    blocks(samples, codes, crate::g711::alaw_from_linear);
}

#[inline(always)]
fn decode_ulaw_loop(codes: &[u8], samples: &mut [i16]) {
    blocks(codes, samples, crate::g711::linear_from_ulaw);
}

#[inline(always)]
fn decode_alaw_loop(codes: &[u8], samples: &mut [i16]) {
    blocks(codes, samples, crate::g711::linear_from_alaw);
}

/// Blocks of a fixed size let the compiler keep whole vectors of each step; the rest goes one by one.
#[inline(always)]
fn blocks<A: Copy, B>(from: &[A], to: &mut [B], map: impl Fn(A) -> B) {
    let len = from.len().min(to.len());
    let (from_blocks, from_rest) = from[..len].as_chunks::<BLOCK>();
    let (to_blocks, to_rest) = to[..len].as_chunks_mut::<BLOCK>();
    for (to, from) in to_blocks.iter_mut().zip(from_blocks) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = map(from);
        }
    }
    for (to, &from) in to_rest.iter_mut().zip(from_rest) {
        *to = map(from);
    }
}

/// How a polyphase filter steps through its input; positions are in 1/`up` of an input sample.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    /// Output steps an input sample.
    pub(crate) up: usize,
    /// From one output sample to the next.
    pub(crate) down: usize,
    /// The next output sample.
    pub(crate) next: usize,
    /// The end of the input.
    pub(crate) end: usize,
    /// Coefficients are scaled by 2^shift.
    pub(crate) shift: u32,
}

dispatch! {
    /// A polyphase filter over a window of `TAPS` − 1 old samples and the new ones. What does not fit into the output is
    /// dropped. Gives how many samples were written, and the position after them.
    pub(crate) fn fir / avx2 [const TAPS: usize] [TAPS] (window: &[i16], phases: &[[i16; TAPS]], steps: Steps, output: &mut [i16])
        -> (usize, usize) = fir_loop
}

#[inline(always)]
fn fir_loop<const TAPS: usize>(
    window: &[i16],
    phases: &[[i16; TAPS]],
    steps: Steps,
    output: &mut [i16],
) -> (usize, usize) {
    let rounding = 1 << (steps.shift - 1);
    let mut position = steps.next;
    let mut written = 0;
    let (mut start, mut phase) = (position / steps.up, position % steps.up);
    while position < steps.end {
        if let (Some(slot), Some(samples), Some(phase)) =
            (output.get_mut(written), window[start..].first_chunk::<TAPS>(), phases.get(phase))
        {
            let sum = (dot(samples, phase) + rounding) >> steps.shift;
            *slot = sum.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16;
            written += 1;
        }
        position += steps.down;
        phase += steps.down;
        while phase >= steps.up {
            phase -= steps.up;
            start += 1;
        }
    }
    (written, position)
}

/// Taps of a half-band filter that are neither zero nor the one in the middle.
pub(crate) const HALF_BAND_TAPS: usize = 24;

/// A half-band filter's sums: `output[n]` is that of `taps` over `window[n..]`, and half of `middle[n]` if there is one,
/// both scaled by 2^`shift`. As many as all slices hold.
#[inline]
pub(crate) fn half_band(
    window: &[i16],
    middle: Option<&[i16]>,
    taps: &[i16; HALF_BAND_TAPS],
    shift: u32,
    output: &mut [i16],
) {
    let len = output.len().min((window.len() + 1).saturating_sub(HALF_BAND_TAPS));
    let len = middle.map_or(len, |middle| len.min(middle.len()));
    let output = &mut output[..len];
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the function is safe but for its need of AVX2, which this processor has.
        return unsafe { half_band_avx2(window, middle, taps, shift, output) };
    }
    half_band_loop(window, middle, taps, shift, output);
}

fn half_band_loop(
    window: &[i16],
    middle: Option<&[i16]>,
    taps: &[i16; HALF_BAND_TAPS],
    shift: u32,
    output: &mut [i16],
) {
    for (n, output) in output.iter_mut().enumerate() {
        let sum: i32 =
            window[n..].iter().zip(taps).map(|(&sample, &tap)| i32::from(sample) * i32::from(tap)).sum();
        let middle = middle.map_or(0, |middle| i32::from(middle[n]) << (shift - 1));
        let rounded = (sum + middle + (1 << (shift - 1))) >> shift;
        *output = rounded.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16;
    }
}

/// Sixteen outputs at once: each pair of taps meets the pairs of neighbours in two vectors, and nothing is added across
/// lanes. Needs a `shift` of 15 at most where there is a `middle`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn half_band_avx2(
    window: &[i16],
    middle: Option<&[i16]>,
    taps: &[i16; HALF_BAND_TAPS],
    shift: u32,
    output: &mut [i16],
) {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_cvtsi32_si128, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16,
        _mm256_packs_epi32, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_sra_epi32, _mm256_storeu_si256,
        _mm256_unpackhi_epi16, _mm256_unpacklo_epi16,
    };
    /// Outputs of a block, and the samples that they look at.
    const LANES: usize = 16;
    const SEEN: usize = LANES + HALF_BAND_TAPS - 1;
    let load = |samples: &[i16; LANES]| -> __m256i {
        // SAFETY: sixteen samples are 32 octets, and the load needs no alignment.
        unsafe { _mm256_loadu_si256(samples.as_ptr().cast()) }
    };
    let pair = |tap: usize| {
        let (first, second) = (taps[tap] as u16, taps[tap + 1] as u16);
        _mm256_set1_epi32((u32::from(second) << 16 | u32::from(first)) as i32)
    };
    let mut pairs = [_mm256_setzero_si256(); HALF_BAND_TAPS / 2];
    for (n, slot) in pairs.iter_mut().enumerate() {
        *slot = pair(2 * n);
    }
    let rounding = _mm256_set1_epi32(1 << (shift - 1));
    let count: __m128i = _mm_cvtsi32_si128(shift as i32);
    let zero = _mm256_setzero_si256();
    let half = _mm256_set1_epi32(1 << (shift - 1));
    let mut done = 0;
    while let (Some(seen), Some(block)) = (
        window.get(done..).and_then(|rest| rest.first_chunk::<SEEN>()),
        output.get_mut(done..).and_then(|rest| rest.first_chunk_mut::<LANES>()),
    ) {
        let (mut low, mut high) = (rounding, rounding);
        if let Some(middle) = middle.and_then(|middle| middle.get(done..)?.first_chunk::<LANES>()) {
            let middle = load(middle);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(middle, zero), half));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(middle, zero), half));
        }
        for (n, taps) in pairs.iter().enumerate() {
            let (Some(first), Some(second)) =
                (seen[2 * n..].first_chunk::<LANES>(), seen[2 * n + 1..].first_chunk::<LANES>())
            else {
                return; // cannot be: 23 + 16 samples were taken
            };
            let (first, second) = (load(first), load(second));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(first, second), *taps));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(first, second), *taps));
        }
        let packed = _mm256_packs_epi32(_mm256_sra_epi32(low, count), _mm256_sra_epi32(high, count));
        // SAFETY: a block is 32 octets, and the store needs no alignment.
        unsafe { _mm256_storeu_si256(block.as_mut_ptr().cast(), packed) };
        done += LANES;
    }
    let middle = middle.map(|middle| &middle[done..]);
    half_band_loop(&window[done..], middle, taps, shift, &mut output[done..]);
}

dispatch! {
    /// Every other sample from the first on to `even`, those between to `odd`.
    pub(crate) fn split / avx2(samples: &[i16], even: &mut [i16], odd: &mut [i16]) = split_loop
}
dispatch! {
    /// One of each in turn, `even` first.
    pub(crate) fn weave / avx2(even: &[i16], odd: &[i16], samples: &mut [i16]) = weave_loop
}

#[inline(always)]
fn split_loop(samples: &[i16], even: &mut [i16], odd: &mut [i16]) {
    for ((pair, even), odd) in samples.as_chunks::<2>().0.iter().zip(even).zip(odd) {
        (*even, *odd) = (pair[0], pair[1]);
    }
}

#[inline(always)]
fn weave_loop(even: &[i16], odd: &[i16], samples: &mut [i16]) {
    for ((pair, &even), &odd) in samples.as_chunks_mut::<2>().0.iter_mut().zip(even).zip(odd) {
        *pair = [even, odd];
    }
}

/// Sum of products, in eight sums side by side. In this form, and with a multiple of 8 taps, the loop becomes multiply-add
/// vectors (`pmaddwd`); written as one sum it takes half as long again. Whoever designs a filter bounds the sum of its
/// coefficients' magnitudes, so that nothing overflows.
#[inline(always)]
fn dot<const TAPS: usize>(samples: &[i16; TAPS], coefficients: &[i16; TAPS]) -> i32 {
    let mut sums = [0_i32; 8];
    for (samples, coefficients) in samples.as_chunks::<8>().0.iter().zip(coefficients.as_chunks::<8>().0) {
        for lane in 0..8 {
            let product = i32::from(samples[lane]) * i32::from(coefficients[lane]);
            sums[lane] = sums[lane].wrapping_add(product);
        }
    }
    sums.iter().fold(0, |sum, &lane| sum.wrapping_add(lane))
}

/// The sums of the QMF's even and odd taps over one window.
#[inline(always)]
pub(crate) fn qmf(window: &[i16; QMF_TAPS], even: &[i16; QMF_TAPS], odd: &[i16; QMF_TAPS]) -> (i32, i32) {
    (dot(window, even), dot(window, odd))
}

/// How many of G.722's decision levels, scaled by `det`, a magnitude has reached.
#[inline(always)]
pub(crate) fn level<const LEVELS: usize>(magnitude: i16, det: i16, levels: &[i16; LEVELS]) -> usize {
    levels
        .iter()
        .map(|&level| i32::from((i32::from(level) * i32::from(det)) >> 12 <= i32::from(magnitude)))
        .sum::<i32>() as usize
}

/// G.722's zero section (UPZERO, DELAYL, FILTEZ): adapts six coefficients, shifts the newest difference in, and gives what
/// the section predicts.
#[inline(always)]
pub(crate) fn zero_section(b: &mut [i16; 8], d: &mut [i16; 8], newest: i16) -> i16 {
    let step = if newest == 0 { 0 } else { 128 };
    for (b, &d) in b.iter_mut().zip(d.iter()).take(6) {
        let towards = if (d ^ newest) < 0 { -step } else { step };
        *b = (((i32::from(*b) * 32_640) >> 15) + towards) as i16;
    }
    d.copy_within(..5, 1);
    d[0] = newest;
    let sum: i32 =
        b.iter().zip(d.iter()).map(|(&b, &d)| (i32::from(b) * i32::from(d.saturating_mul(2))) >> 15).sum();
    sum.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn vectors_of_g711_are_the_plain_loops_on_every_input() {
        let samples: Vec<i16> = (i16::MIN..=i16::MAX).collect();
        // Once as it is, once off the block's boundary, with a rest.
        for skipped in [0, 7] {
            let samples = &samples[skipped..];
            for (fast, plain) in [
                (encode_ulaw as fn(&[i16], &mut [u8]), crate::g711::ulaw_from_linear as fn(i16) -> u8),
                (encode_alaw, crate::g711::alaw_from_linear),
            ] {
                let mut codes = vec![0; samples.len()];
                fast(samples, &mut codes);
                assert!(codes.iter().zip(samples).all(|(&code, &sample)| code == plain(sample)));
            }
        }
        let codes: Vec<u8> = (0..=255).collect();
        let mut decoded = [0; 256];
        decode_ulaw(&codes, &mut decoded);
        assert!(
            decoded.iter().zip(&codes).all(|(&sample, &code)| sample == crate::g711::linear_from_ulaw(code))
        );
        decode_alaw(&codes, &mut decoded);
        assert!(
            decoded.iter().zip(&codes).all(|(&sample, &code)| sample == crate::g711::linear_from_alaw(code))
        );
    }

    proptest! {
        #[test]
        fn vectors_of_the_filter_are_the_plain_loop(
            window in proptest::collection::vec(any::<i16>(), 64 + 31), phases in proptest::collection::vec(any::<[i8; 32]>(), 3), next in 0_usize..3
        ) {
            let phases: Vec<[i16; 32]> = phases.iter().map(|phase| phase.map(|tap| i16::from(tap) * 8)).collect();
            for down in [1, 2] {
                let steps = Steps { up: 3, down, next, end: 64 * 3, shift: 15 };
                let (mut fast, mut plain) = ([0; 200], [0; 200]);
                let after = fir(&window, &phases, steps, &mut fast);
                prop_assert_eq!(after, fir_loop(&window, &phases, steps, &mut plain));
                prop_assert_eq!(fast, plain);
            }
        }

        #[test]
        fn vectors_of_the_half_band_filter_are_the_plain_loop(
            window in proptest::collection::vec(any::<i16>(), HALF_BAND_TAPS - 1..400),
            taps in any::<[i8; HALF_BAND_TAPS]>(), has_middle: bool
        ) {
            let taps = taps.map(|tap| i16::from(tap) * 8);
            let middle: Vec<i16> = window.iter().rev().copied().collect();
            let middle = has_middle.then_some(&middle[..]);
            let (mut fast, mut plain) = ([0; 400], [0; 400]);
            half_band(&window, middle, &taps, 15, &mut fast);
            half_band_loop(&window, middle, &taps, 15, &mut plain[..window.len() + 1 - HALF_BAND_TAPS]);
            prop_assert_eq!(fast, plain);
        }

        #[test]
        fn vectors_of_g722_are_the_plain_loops(samples in proptest::collection::vec(any::<i16>(), 0..1_200)) {
            let (mut fast, mut plain) = (vec![0; 600], vec![0; 600]);
            let len = encode_g722(&mut G722Encoder::new(), &samples, &mut fast);
            prop_assert_eq!(len, encode_g722_loop(&mut G722Encoder::new(), &samples, &mut plain));
            prop_assert_eq!(&fast, &plain);
            let (mut fast_samples, mut plain_samples) = (vec![0; 1_200], vec![0; 1_200]);
            decode_g722(&mut G722Decoder::new(), &fast[..len], &mut fast_samples);
            decode_g722_loop(&mut G722Decoder::new(), &fast[..len], &mut plain_samples);
            prop_assert_eq!(fast_samples, plain_samples);
        }
    }
}
