//! Sample-rate conversion between 8, 16, 24 and 48 kHz: a polyphase FIR whose state is carried from frame to frame.
//!
//! ```text
//!  input at fs ──▶ last taps−1 samples + new ones ──▶ one dot product an output sample ──▶ output at fs·L/M
//!                                                     with the phase that its instant falls on
//! ```
//!
//! The filter is a Kaiser-windowed sinc of [`TAPS_PER_PHASE`] taps a phase at the lower of the two rates, so it is
//! longer when decimating. Between a rate and its double the filter is a half-band one: but for the middle, each second tap
//! is zero, which saves half of the work. With fn half of the lower rate (4 kHz on a telephone): flat within 0.15 dB to 0.85 fn
//! (3.4 kHz), aliases and images from 1.15 fn (4.6 kHz) on below −70 dB, of half-band filters below −62 dB, and a gain of
//! exactly 1 at DC. Group delay is half of the filter: 1.4 ms between 8 and 16 kHz, else 2 ms with 8 kHz on one side; 1 ms with
//! 16 kHz as the lower rate, 0.5 ms between 24 and 48 kHz.
//!
//! Arithmetic is 16-bit samples by 16-bit coefficients in 32-bit sums, which compilers turn into multiply-add vectors.
//! Output keeps step with input from the first frame: whole milliseconds in give the same whole milliseconds out.

use std::sync::LazyLock;
use std::time::Duration;

use crate::format::SampleRate;
use crate::simd::{self, HALF_BAND_TAPS};

/// Taps of each phase, counted at the lower of the two rates. More would sharpen the edge and cost time and delay.
pub const TAPS_PER_PHASE: usize = 32;
/// The longest phase: 48 kHz to 8 kHz.
const MAX_TAPS: usize = 6 * TAPS_PER_PHASE;
/// Input is worked off in blocks of this many samples, which bounds the scratch memory on the stack.
const BLOCK: usize = 320;
/// The −6 dB point as a share of half of the lower rate.
const CUTOFF: f64 = 0.965;
/// Shape of the Kaiser window: about 79 dB of stop band.
const KAISER_BETA: f64 = 7.6;
/// Taps of the half-band filters beside the middle, the outer ones first; they add up to a half, and the other side mirrors
/// them. Of the Chebyshev kind (the least greatest ripple from 0 to 0.85 fn with a gain of exactly 1 at DC, by linear programming):
/// 63 dB of stop band from a quarter fewer taps than a Kaiser window needs, and so much less delay.
const HALF_BAND: [f64; HALF_BAND_TAPS / 2] = [
    -0.001_600_08,
    0.003_062_82,
    -0.005_507_22,
    0.009_488_81,
    -0.014_946_60,
    0.022_924_89,
    -0.033_867_78,
    0.049_799_98,
    -0.073_641_58,
    0.114_525_24,
    -0.204_227_98,
    0.633_989_49,
];

/// A converter for one stream from one rate to another.
#[derive(Debug, Clone)]
pub struct Resampler {
    from: SampleRate,
    to: SampleRate,
    /// `None` when both rates are equal: samples are copied. Elsewhere, so that a call that needs none stays small.
    stage: Option<Box<Stage>>,
}

/// The filter of a stream and what it looks back on.
#[derive(Debug, Clone)]
struct Stage {
    filter: &'static Filter,
    /// Where the next output sample falls, in steps of 1/L input sample after the first sample of the next input.
    next: usize,
    /// The newest `taps − 1` input samples, oldest first.
    history: [i16; MAX_TAPS - 1],
}

impl Resampler {
    /// A converter with silence behind it.
    pub fn new(from: SampleRate, to: SampleRate) -> Self {
        let stage = Filter::between(from, to)
            .map(|filter| Box::new(Stage { filter, next: 0, history: [0; MAX_TAPS - 1] }));
        Self { from, to, stage }
    }

    /// Rate of what goes in.
    pub const fn from(&self) -> SampleRate {
        self.from
    }

    /// Rate of what comes out.
    pub const fn to(&self) -> SampleRate {
        self.to
    }

    /// True when both rates are equal and samples are only copied.
    pub const fn is_copy(&self) -> bool {
        self.stage.is_none()
    }

    /// Samples that [`Resampler::process`] will write for so many input samples.
    pub fn output_len(&self, input_len: usize) -> usize {
        match &self.stage {
            None => input_len,
            Some(stage) => {
                (input_len * stage.filter.up).saturating_sub(stage.next).div_ceil(stage.filter.down)
            }
        }
    }

    /// How much later a sound comes out than it went in.
    pub fn group_delay(&self) -> Duration {
        match &self.stage {
            None => Duration::ZERO,
            Some(stage) => {
                let filter = stage.filter;
                // A half-band filter has an odd length.
                let prototype = (filter.taps * filter.up - if filter.is_half_band { 2 } else { 1 }) as u64;
                Duration::from_nanos(prototype * 500_000_000 / (u64::from(self.from.hz()) * filter.up as u64))
            }
        }
    }

    /// Converts a frame of any length and returns how many samples were written.
    ///
    /// `output` should have room for [`Resampler::output_len`] samples; what does not fit is dropped, and the
    /// stream goes on in step.
    pub fn process(&mut self, input: &[i16], output: &mut [i16]) -> usize {
        let Some(stage) = &mut self.stage else {
            let len = input.len().min(output.len());
            output[..len].copy_from_slice(&input[..len]);
            return len;
        };
        let mut written = 0;
        for block in input.chunks(BLOCK) {
            let room = &mut output[written..];
            // One instance a filter length, so that each dot product has a length known to the compiler.
            written += match stage.filter.taps {
                _ if stage.filter.is_half_band && stage.filter.up == 2 => stage.double(block, room),
                _ if stage.filter.is_half_band => stage.halve(block, room),
                32 => stage.block::<32>(block, room),
                64 => stage.block::<64>(block, room),
                96 => stage.block::<96>(block, room),
                _ => stage.block::<MAX_TAPS>(block, room),
            };
        }
        written
    }

    /// Forgets the past: silence is behind the stream again.
    pub fn reset(&mut self) {
        if let Some(stage) = &mut self.stage {
            stage.history.fill(0);
            stage.next = 0;
        }
    }
}

impl Stage {
    /// Twice the rate: the middle tap gives every second sample as it came, the others give those between.
    fn double(&mut self, input: &[i16], output: &mut [i16]) -> usize {
        const PAST: usize = HALF_BAND_TAPS - 1;
        let mut window = [0; PAST + BLOCK];
        window[..PAST].copy_from_slice(&self.history[..PAST]);
        window[PAST..PAST + input.len()].copy_from_slice(input);
        let mut between = [0; BLOCK];
        let between = &mut between[..input.len()];
        simd::half_band(
            &window[..PAST + input.len()],
            None,
            &self.filter.half_band,
            self.filter.shift,
            between,
        );
        simd::weave(between, &window[HALF_BAND_TAPS / 2..], &mut output[..]);
        self.history[..PAST].copy_from_slice(&window[input.len()..input.len() + PAST]);
        let len = (2 * input.len()).min(output.len());
        if len % 2 == 1 {
            output[len - 1] = between[len / 2];
        }
        len
    }

    /// Half the rate: the middle tap and the others each see every second sample.
    fn halve(&mut self, input: &[i16], output: &mut [i16]) -> usize {
        const PAST: usize = 2 * HALF_BAND_TAPS - 1;
        let mut window = [0; PAST + BLOCK + 1];
        window[..PAST].copy_from_slice(&self.history[..PAST]);
        window[PAST..PAST + input.len()].copy_from_slice(input);
        let outputs = (input.len() + 1).saturating_sub(self.next) / 2;
        let len = outputs.min(output.len());
        let (mut even, mut odd) = ([0; (PAST + BLOCK).div_ceil(2)], [0; (PAST + BLOCK).div_ceil(2)]);
        let used = 2 * (outputs + HALF_BAND_TAPS);
        let seen = &window[self.next..(self.next + used).min(window.len())];
        simd::split(seen, &mut even, &mut odd);
        let middle = &even[HALF_BAND_TAPS / 2..];
        simd::half_band(&odd, Some(middle), &self.filter.half_band, self.filter.shift, &mut output[..len]);
        self.next = self.next + 2 * outputs - input.len();
        self.history[..PAST].copy_from_slice(&window[input.len()..input.len() + PAST]);
        len
    }

    fn block<const TAPS: usize>(&mut self, input: &[i16], output: &mut [i16]) -> usize {
        let filter = self.filter;
        let past = TAPS - 1;
        let mut window = [0; MAX_TAPS - 1 + BLOCK];
        window[..past].copy_from_slice(&self.history[..past]);
        window[past..past + input.len()].copy_from_slice(input);
        let (phases, _) = filter.coefficients.as_chunks::<TAPS>();
        let end = input.len() * filter.up;
        let (up, down) = (filter.up, filter.down);
        let steps = simd::Steps { up, down, next: self.next, end, shift: filter.shift };
        let (written, position) = simd::fir(&window, phases, steps, output);
        self.next = position - end;
        self.history[..past].copy_from_slice(&window[input.len()..input.len() + past]);
        written
    }
}

/// The coefficients of one ratio L/M, shared by every stream that has it.
#[derive(Debug)]
struct Filter {
    /// L: output steps an input sample.
    up: usize,
    /// M: steps from one output sample to the next.
    down: usize,
    /// Taps of each phase.
    taps: usize,
    /// Coefficients are scaled by 2^shift.
    shift: u32,
    /// `up` phases of `taps` each, newest sample last.
    coefficients: Box<[i16]>,
    /// Between a rate and its double.
    is_half_band: bool,
    /// Then, those taps that are neither zero nor the one in the middle.
    half_band: [i16; HALF_BAND_TAPS],
}

static UP_2: LazyLock<Filter> = LazyLock::new(|| Filter::half_band(2, 1));
static UP_3: LazyLock<Filter> = LazyLock::new(|| Filter::design(3, 1));
static UP_6: LazyLock<Filter> = LazyLock::new(|| Filter::design(6, 1));
static DOWN_2: LazyLock<Filter> = LazyLock::new(|| Filter::half_band(1, 2));
static DOWN_3: LazyLock<Filter> = LazyLock::new(|| Filter::design(1, 3));
static DOWN_6: LazyLock<Filter> = LazyLock::new(|| Filter::design(1, 6));
static UP_3_DOWN_2: LazyLock<Filter> = LazyLock::new(|| Filter::design(3, 2));
static UP_2_DOWN_3: LazyLock<Filter> = LazyLock::new(|| Filter::design(2, 3));

impl Filter {
    fn between(from: SampleRate, to: SampleRate) -> Option<&'static Self> {
        use SampleRate::{Hz8000, Hz16000, Hz24000, Hz48000};
        Some(match (from, to) {
            (Hz8000, Hz16000) | (Hz24000, Hz48000) => &UP_2,
            (Hz8000, Hz24000) | (Hz16000, Hz48000) => &UP_3,
            (Hz8000, Hz48000) => &UP_6,
            (Hz16000, Hz8000) | (Hz48000, Hz24000) => &DOWN_2,
            (Hz24000, Hz8000) | (Hz48000, Hz16000) => &DOWN_3,
            (Hz48000, Hz8000) => &DOWN_6,
            (Hz16000, Hz24000) => &UP_3_DOWN_2,
            (Hz24000, Hz16000) => &UP_2_DOWN_3,
            (Hz8000, Hz8000) | (Hz16000, Hz16000) | (Hz24000, Hz24000) | (Hz48000, Hz48000) => return None,
        })
    }

    fn design(up: usize, down: usize) -> Self {
        // A multiple of 32 suits `simd::dot`.
        let taps = (TAPS_PER_PHASE * down.max(up)).div_ceil(up).next_multiple_of(32);
        let len = taps * up;
        // The prototype runs at L times the input rate; its edge is at half of the lower rate.
        let cutoff = CUTOFF * 0.5 / up.max(down) as f64;
        let middle = (len - 1) as f64 / 2.0;
        let prototype: Vec<f64> = (0..len)
            .map(|n| {
                let x = n as f64 - middle;
                2.0 * cutoff * sinc(2.0 * cutoff * x) * kaiser(x / middle, KAISER_BETA)
            })
            .collect();
        // Phase p, oldest sample first, scaled so that its taps add up to 1.
        let phases: Vec<Vec<f64>> = (0..up)
            .map(|phase| {
                let taps: Vec<f64> = (0..taps).rev().map(|tap| prototype[phase + tap * up]).collect();
                let sum: f64 = taps.iter().sum();
                taps.iter().map(|tap| tap / sum).collect()
            })
            .collect();
        let peak = phases.iter().flatten().fold(0.0_f64, |max, tap| max.max(tap.abs()));
        let shift = if peak < 0.49 {
            16
        } else if peak < 0.99 {
            15
        } else {
            14
        };
        // 16 bits of coefficient and 15 of sample leave no room for a sum of magnitudes above 1: drop a bit then.
        let magnitude = phases.iter().map(|p| p.iter().map(|tap| tap.abs()).sum::<f64>()).fold(0.0, f64::max);
        let shift = if magnitude * f64::from(1 << shift) >= 65_000.0 { shift - 1 } else { shift };
        let mut coefficients = Vec::with_capacity(len);
        for phase in &phases {
            let one = 1_i32 << shift;
            let mut rounded: Vec<i32> =
                phase.iter().map(|tap| (tap * f64::from(one)).round() as i32).collect();
            // Rounding must not change the gain at DC: the largest tap takes up the difference.
            let difference = one - rounded.iter().sum::<i32>();
            if let Some(largest) = rounded.iter_mut().max_by_key(|tap| tap.abs()) {
                *largest += difference;
            }
            coefficients.extend(rounded.iter().map(|&tap| tap as i16));
        }
        Self {
            up,
            down,
            taps,
            shift,
            coefficients: coefficients.into_boxed_slice(),
            is_half_band: false,
            half_band: [0; HALF_BAND_TAPS],
        }
    }

    /// A filter whose −6 dB point is in the middle between both bands, so that it is symmetric there too.
    fn half_band(up: usize, down: usize) -> Self {
        let taps: Vec<f64> = HALF_BAND.iter().chain(HALF_BAND.iter().rev()).copied().collect();
        // Doubling, they make whole samples alone; halving, one half beside the middle's. Their magnitudes add up to more
        // than twice that, and the loudest samples times 15 bits of whole coefficients would not fit into a sum.
        let (shift, whole) = if up == 2 { (14, 1.0) } else { (15, 0.5) };
        let one = whole * f64::from(1 << shift);
        let sum: f64 = taps.iter().sum();
        let mut half_band = [0_i16; HALF_BAND_TAPS];
        for (slot, tap) in half_band.iter_mut().zip(&taps) {
            *slot = (tap / sum * one).round() as i16;
        }
        // Rounding must not change the gain at DC: both taps in the middle take up the difference.
        let difference = one as i32 - half_band.iter().map(|&tap| i32::from(tap)).sum::<i32>();
        half_band[HALF_BAND_TAPS / 2] += (difference / 2) as i16;
        half_band[HALF_BAND_TAPS / 2 - 1] += (difference - difference / 2) as i16;
        let taps = HALF_BAND_TAPS * down;
        Self { up, down, taps, shift, coefficients: Box::default(), is_half_band: true, half_band }
    }
}

/// The Kaiser window, from −1 to 1.
pub(crate) fn kaiser(x: f64, beta: f64) -> f64 {
    bessel_i0(beta * (1.0 - x.powi(2)).max(0.0).sqrt()) / bessel_i0(beta)
}

/// sin(πx) / πx.
pub(crate) fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (std::f64::consts::PI * x).sin() / (std::f64::consts::PI * x) }
}

/// Modified Bessel function of the first kind, order zero, by its power series.
fn bessel_i0(x: f64) -> f64 {
    let (mut sum, mut term) = (1.0, 1.0);
    for k in 1..60 {
        term *= (x / (2.0 * f64::from(k))).powi(2);
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests;
