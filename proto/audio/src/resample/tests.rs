//! Tests of the resampler by what it does to tones, one ratio after the other.

use super::*;
use crate::tone::Sine;
use proptest::prelude::*;

const PAIRS: [(SampleRate, SampleRate); 12] = {
    use SampleRate::{Hz8000, Hz16000, Hz24000, Hz48000};
    [
        (Hz8000, Hz16000),
        (Hz8000, Hz24000),
        (Hz8000, Hz48000),
        (Hz16000, Hz8000),
        (Hz16000, Hz24000),
        (Hz16000, Hz48000),
        (Hz24000, Hz8000),
        (Hz24000, Hz16000),
        (Hz24000, Hz48000),
        (Hz48000, Hz8000),
        (Hz48000, Hz16000),
        (Hz48000, Hz24000),
    ]
};

fn half_of_lower(from: SampleRate, to: SampleRate) -> f64 {
    f64::from(from.hz().min(to.hz())) / 2.0
}

/// What is promised of images and aliases.
fn limit_db(from: SampleRate, to: SampleRate) -> f64 {
    if from.hz().max(to.hz()) == 2 * from.hz().min(to.hz()) { -62.0 } else { -70.0 }
}

/// One second of a tone through a converter, without the first tenth.
fn through(from: SampleRate, to: SampleRate, frequency_hz: f64, amplitude: i16) -> Vec<i16> {
    let mut input = vec![0; from.hz() as usize];
    Sine::new(frequency_hz, amplitude, from).fill(&mut input);
    let mut output = vec![0; to.hz() as usize];
    assert_eq!(Resampler::new(from, to).process(&input, &mut output), output.len());
    output.split_off(output.len() / 10)
}

/// Amplitude and phase (as a complex number) of one frequency.
fn component(signal: &[i16], frequency_hz: f64, rate: SampleRate) -> (f64, f64) {
    let (mut re, mut im) = (0.0, 0.0);
    for (n, &sample) in signal.iter().enumerate() {
        let angle = std::f64::consts::TAU * frequency_hz * n as f64 / f64::from(rate.hz());
        re += f64::from(sample) * angle.cos();
        im += f64::from(sample) * angle.sin();
    }
    (2.0 * re / signal.len() as f64, 2.0 * im / signal.len() as f64)
}

fn db(ratio: f64) -> f64 {
    20.0 * ratio.log10()
}

#[test]
fn tones_in_the_band_keep_their_amplitude() {
    for (from, to) in PAIRS {
        for (share, tolerance_db) in [(0.05, 0.1), (0.25, 0.1), (0.5, 0.1), (0.75, 0.1), (0.85, 0.15)] {
            let frequency = (share * half_of_lower(from, to)).round();
            let (re, im) = component(&through(from, to, frequency, 16_000), frequency, to);
            let gain = db(re.hypot(im) / 16_000.0);
            assert!(gain.abs() <= tolerance_db, "{from} to {to}: {frequency} Hz at {gain:.2} dB");
        }
    }
}

#[test]
fn everything_but_the_tone_is_below_minus_60_db() {
    for (from, to) in PAIRS {
        for share in [0.1, 0.3, 0.6, 0.85] {
            let frequency = (share * half_of_lower(from, to)).round();
            let output = through(from, to, frequency, 16_000);
            let (re, im) = component(&output, frequency, to);
            let rest: f64 = output
                .iter()
                .enumerate()
                .map(|(n, &sample)| {
                    let angle = std::f64::consts::TAU * frequency * n as f64 / f64::from(to.hz());
                    (f64::from(sample) - re * angle.cos() - im * angle.sin()).powi(2)
                })
                .sum();
            let rest_db = db((2.0 * rest / output.len() as f64).sqrt() / 16_000.0);
            let limit = limit_db(from, to);
            assert!(rest_db <= limit, "{from} to {to}: {frequency} Hz leaves {rest_db:.1} dB beside it");
        }
    }
}

#[test]
fn tones_above_the_new_band_fold_back_below_minus_60_db() {
    for (from, to) in PAIRS.into_iter().filter(|(from, to)| from > to) {
        let half = half_of_lower(from, to);
        for share in [1.15, 1.3, 1.5, 1.8, 2.4, 3.7, 5.2] {
            let frequency = (share * half).round();
            if frequency >= f64::from(from.hz()) / 2.0 {
                continue;
            }
            let output = through(from, to, frequency, 16_000);
            let alias_db = db(f64::from(crate::pcm::rms(&output)) * 2_f64.sqrt() / 16_000.0);
            let limit = limit_db(from, to);
            assert!(alias_db <= limit, "{from} to {to}: {frequency} Hz folds back at {alias_db:.1} dB");
        }
    }
}

#[test]
fn dc_passes_unchanged_and_silence_stays_silence() {
    for (from, to) in PAIRS {
        for level in [0, 1, -1, 12_345, i16::MAX, i16::MIN] {
            let input = vec![level; from.hz() as usize / 10];
            let mut output = vec![0; to.hz() as usize / 10];
            Resampler::new(from, to).process(&input, &mut output);
            let settled = &output[output.len() / 2..];
            assert!(
                settled.iter().all(|&sample| sample == level),
                "{from} to {to}: {level} became {settled:?}"
            );
            if level == 0 {
                assert!(output.iter().all(|&sample| sample == 0));
            }
        }
    }
}

#[test]
fn a_full_scale_square_saturates_instead_of_wrapping() {
    for (from, to) in PAIRS {
        let input: Vec<i16> =
            (0..from.hz() as usize / 10).map(|n| if n / 40 % 2 == 0 { i16::MAX } else { i16::MIN }).collect();
        let mut output = vec![0; to.hz() as usize / 10];
        Resampler::new(from, to).process(&input, &mut output);
        // Around the middle of a plateau the sign must be that of the input.
        let delay = Resampler::new(from, to).group_delay().as_secs_f64();
        for plateau in 4..20 {
            let at = (plateau as f64 * 40.0 + 20.0) / f64::from(from.hz()) + delay;
            let Some(&sample) = output.get((at * f64::from(to.hz())) as usize) else { continue };
            if 40.0 / f64::from(from.hz()) > 3.0 * delay {
                assert_eq!(sample > 0, plateau % 2 == 0, "{from} to {to}, plateau {plateau}: {sample}");
            }
        }
    }
}

/// Found by fuzzing: samples at full scale with the signs of the taps made the sum of the doubling filter wrap.
#[test]
fn the_loudest_sound_that_a_filter_can_meet_fits_its_sum() {
    for (from, to) in PAIRS {
        let filter = Filter::between(from, to).unwrap();
        let middle = if filter.is_half_band && filter.down == 2 { 1_i64 << (filter.shift - 1) } else { 0 };
        let phases = filter
            .coefficients
            .chunks(filter.taps)
            .chain(filter.is_half_band.then_some(&filter.half_band[..]));
        for taps in phases {
            let magnitude: i64 = taps.iter().map(|&tap| i64::from(tap).abs()).sum::<i64>() + middle;
            let rounding = 1 << (filter.shift - 1);
            assert!(magnitude * 32_768 + rounding <= i64::from(i32::MAX), "{from:?} to {to:?}: {magnitude}");
        }
    }
}

#[test]
fn the_loudest_sound_that_doubling_can_meet_saturates() {
    let loudest = |tap: &i16| if *tap < 0 { i16::MIN } else { i16::MAX };
    let mut window = [0; 4 * HALF_BAND_TAPS];
    for (slot, tap) in window.iter_mut().zip(&UP_2.half_band) {
        *slot = loudest(tap);
    }
    let mut output = [0; 64];
    simd::half_band(&window, None, &UP_2.half_band, UP_2.shift, &mut output);
    assert_eq!(output[0], i16::MAX);
    let quietest = window.map(|sample| -1 - sample);
    simd::half_band(&quietest, None, &UP_2.half_band, UP_2.shift, &mut output);
    assert_eq!(output[0], i16::MIN);
}

#[test]
fn group_delay_is_what_it_says() {
    for (from, to) in PAIRS {
        let input_len = from.hz() as usize / 10;
        let mut input = vec![0; input_len];
        input[input_len / 2] = 30_000;
        let mut output = vec![0; to.hz() as usize / 10];
        let mut resampler = Resampler::new(from, to);
        resampler.process(&input, &mut output);
        let weight: f64 = output.iter().map(|&s| f64::from(s)).sum();
        let centre: f64 =
            output.iter().enumerate().map(|(n, &s)| n as f64 * f64::from(s)).sum::<f64>() / weight;
        let delay_us =
            centre / f64::from(to.hz()) * 1e6 - (input_len / 2) as f64 / f64::from(from.hz()) * 1e6;
        let said_us = resampler.group_delay().as_nanos() as f64 / 1e3;
        assert!((delay_us - said_us).abs() < 8.0, "{from} to {to}: {delay_us:.1} µs, said {said_us:.1}");
        assert!(said_us < 2_050.0);
    }
}

#[test]
fn equal_rates_copy() {
    let mut resampler = Resampler::new(SampleRate::Hz8000, SampleRate::Hz8000);
    let mut output = [0; 3];
    assert_eq!(resampler.process(&[1, 2, 3, 4], &mut output), 3);
    assert_eq!(output, [1, 2, 3]);
    assert_eq!(resampler.group_delay(), Duration::ZERO);
}

#[test]
fn whole_milliseconds_give_the_same_milliseconds_from_the_first_frame() {
    for (from, to) in PAIRS {
        let mut resampler = Resampler::new(from, to);
        for ms in [1, 10, 20, 30, 60, 7] {
            let mut output = [0; 4_000];
            let input = vec![0; ms * from.samples_per_ms()];
            assert_eq!(resampler.output_len(input.len()), ms * to.samples_per_ms());
            assert_eq!(resampler.process(&input, &mut output), ms * to.samples_per_ms());
        }
    }
}

proptest! {
    #[test]
    fn frame_by_frame_equals_the_whole(pair in 0_usize..12, cuts in proptest::collection::vec(0_usize..700, 1..12), seed: u32) {
        let (from, to) = PAIRS[pair];
        let mut state = seed;
        let input: Vec<i16> = (0..3_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 16) as i16
            })
            .collect();
        let mut whole = vec![0; 20_000];
        let whole_len = Resampler::new(from, to).process(&input, &mut whole);

        let mut resampler = Resampler::new(from, to);
        let mut pieces = vec![0; 20_000];
        let (mut taken, mut written) = (0, 0);
        for cut in cuts.into_iter().chain([3_000]) {
            let end = (taken + cut).min(input.len());
            let expected = resampler.output_len(end - taken);
            let len = resampler.process(&input[taken..end], &mut pieces[written..]);
            prop_assert_eq!(len, expected);
            written += len;
            taken = end;
        }
        prop_assert_eq!(&pieces[..written], &whole[..whole_len]);
    }
}
