//! G.722 against ffmpeg's, which was written by others: streams and samples the same to the bit, both ways.
//!
//! Needs `ffmpeg` on the PATH (`scripts/setup.sh test` installs it); without it the tests fail.
#![allow(clippy::unwrap_used)]

mod ffmpeg;

use ffmpeg::{ffmpeg, octets, samples};
use tandem_audio::format::SampleRate;
use tandem_audio::g722::{G722Decoder, G722Encoder};
use tandem_audio::tone::Sine;

const RATE: SampleRate = SampleRate::Hz16000;

/// Ten seconds: a sweep over the whole band, a loud chord, noise of all levels, clipped squares, silence.
fn signal() -> Vec<i16> {
    let mut signal = Vec::new();
    for step in 0..100 {
        let mut frame = [0; 480];
        Sine::new(50.0 + 79.0 * f64::from(step), 12_000, RATE).fill(&mut frame);
        signal.extend(frame);
    }
    let mut chord = vec![0; 32_000];
    for hz in [310.0, 970.0, 2_900.0, 5_300.0] {
        Sine::new(hz, 7_000, RATE).add(&mut chord);
    }
    signal.extend(chord);
    let mut seed = 77_u32;
    signal.extend((0..48_000).map(|n| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((seed >> 16) as i16) >> (n / 3_000)
    }));
    signal.extend((0..16_000).map(|n| if n / 23 % 2 == 0 { i16::MAX } else { i16::MIN }));
    signal.extend([0; 16_000]);
    signal
}

#[test]
fn a_stream_is_ffmpegs_to_the_bit() {
    let signal = signal();
    let mut ours = vec![0; signal.len() / 2];
    let mut encoder = G722Encoder::new();
    for (samples, codes) in signal.chunks(320).zip(ours.chunks_mut(160)) {
        assert_eq!(encoder.encode(samples, codes), codes.len());
    }
    let pcm = ["-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "-"];
    let theirs = ffmpeg(&[&pcm[..], &["-c:a", "g722", "-f", "g722", "-"]].concat(), octets(&signal));
    assert!(theirs.len() >= ours.len());
    let first = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    assert_eq!(first, None, "of {} octets", ours.len());
}

#[test]
fn sound_is_ffmpegs_to_the_sample() {
    // Codes that an encoder makes, then codes that none would.
    let signal = signal();
    let mut codes = vec![0; signal.len() / 2];
    G722Encoder::new().encode(&signal, &mut codes);
    let mut seed = 5_u32;
    codes.extend((0..40_000).map(|_| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    }));
    let mut ours = vec![0; codes.len() * 2];
    let mut decoder = G722Decoder::new();
    for (codes, samples) in codes.chunks(160).zip(ours.chunks_mut(320)) {
        assert_eq!(decoder.decode(codes, samples), samples.len());
    }
    let theirs = samples(&ffmpeg(&["-f", "g722", "-i", "-", "-f", "s16le", "-"], codes));
    assert!(theirs.len() >= ours.len());
    let first = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    assert_eq!(first, None, "of {} samples", ours.len());
}
