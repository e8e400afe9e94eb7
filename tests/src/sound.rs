//! Sounds to say, and the question whether what was heard is what was said.

use std::f64::consts::TAU;
use std::path::Path;

/// A sweep from 300 to 1 200 Hz, again and again with another slope, so that it resembles itself at no other moment.
/// No higher, since a resampler on the way may delay by half a sample, and at 8 kHz that is much for a high tone.
pub fn sweep(rate_hz: u32, seconds: f64) -> Vec<i16> {
    let rate = f64::from(rate_hz);
    let samples = (rate * seconds) as usize;
    let mut phase = 0.0;
    (0..samples)
        .map(|n| {
            let at = n as f64 / rate;
            let slope = 0.37 + 0.11 * at.floor();
            let frequency = 300.0 + 900.0 * (0.5 - 0.5 * (TAU * slope * at).cos());
            phase += TAU * frequency / rate;
            (8_000.0 * phase.sin()) as i16
        })
        .collect()
}

/// The greatest normalised cross-correlation of a recording with what was said, and the delay in samples at which it
/// is reached. 1 is the same sound at any loudness, 0 has nothing to do with it. At least half of what was said must lie
/// under the recording: two or three samples resemble anything.
pub fn resemblance(said: &[i16], heard: &[i16], delay_max: usize) -> (f64, usize) {
    let mut best = (0.0, 0);
    let delays = delay_max.min((heard.len() + 1).saturating_sub(said.len().div_ceil(2)));
    for delay in 0..delays {
        let pairs = said.iter().zip(&heard[delay..]).map(|(a, b)| (i64::from(*a), i64::from(*b)));
        let (mut ab, mut aa, mut bb) = (0_i64, 0_i64, 0_i64);
        for (a, b) in pairs {
            ab += a * b;
            aa += a * a;
            bb += b * b;
        }
        if aa == 0 || bb == 0 {
            continue;
        }
        let r = ab as f64 / ((aa as f64).sqrt() * (bb as f64).sqrt());
        if r > best.0 {
            best = (r, delay);
        }
    }
    best
}

/// Root mean square, of full scale 32 768.
pub fn loudness(samples: &[i16]) -> f64 {
    let sum: f64 = samples.iter().map(|s| f64::from(*s) * f64::from(*s)).sum();
    (sum / samples.len().max(1) as f64).sqrt()
}

/// G.711 µ-law.
pub fn ulaw(samples: &[i16]) -> Vec<u8> {
    samples.iter().map(|sample| tandem_audio::g711::ulaw_from_linear(*sample)).collect()
}

/// Writes PCM16, mono.
pub fn write_wav(path: &Path, rate_hz: u32, samples: &[i16]) -> anyhow::Result<()> {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: rate_hz,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut wav = hound::WavWriter::create(path, spec)?;
    for sample in samples {
        wav.write_sample(*sample)?;
    }
    Ok(wav.finalize()?)
}

/// Reads PCM16, mono.
pub fn read_wav(path: &Path) -> anyhow::Result<Vec<i16>> {
    Ok(hound::WavReader::open(path)?.samples::<i16>().collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delayed_and_quieter_copy_resembles_and_its_delay_is_found() {
        let said = sweep(8_000, 2.0);
        let mut heard = vec![0; 777];
        heard.extend(said.iter().map(|sample| sample / 3));
        let (r, delay) = resemblance(&said, &heard, 2_000);
        assert!(r > 0.99 && delay == 777, "{r} at {delay}");
    }

    #[test]
    fn another_sound_does_not_resemble() {
        let said = sweep(8_000, 2.0);
        let tone: Vec<i16> =
            (0..16_000).map(|n| (8_000.0 * (TAU * 440.0 * f64::from(n) / 8_000.0).sin()) as i16).collect();
        let backwards: Vec<i16> = said.iter().rev().copied().collect();
        assert!(resemblance(&said, &tone, 2_000).0 < 0.3);
        assert!(resemblance(&said, &backwards, 2_000).0 < 0.3);
        assert_eq!(resemblance(&said, &[0; 16_000], 2_000).0, 0.0);
    }

    #[test]
    fn last_few_samples_of_a_recording_prove_nothing() {
        let said = sweep(8_000, 0.5);
        let mut heard = vec![0; 3_999];
        heard.push(said[1]);
        assert!(resemblance(&said, &heard, 4_000).0 < 0.1);
        assert_eq!(resemblance(&said, &[], 4_000).0, 0.0);
    }
}
