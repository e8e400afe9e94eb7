//! WAV files as 8 kHz PCM16.

use std::path::Path;

use tandem_audio::format::SampleRate;
use tandem_audio::resample::Resampler;

/// Longest file read: ten minutes at 48 kHz stereo.
const SAMPLES_MAX: u32 = 10 * 60 * 48_000 * 2;

/// A file that cannot be played or written.
#[derive(Debug, thiserror::Error)]
pub enum WavError {
    /// Not a WAV file, or not readable or writable.
    #[error("WAV file: {0}")]
    File(#[from] hound::Error),
    /// A rate that is not resampled.
    #[error("WAV file at {0} Hz: only 8000, 16000, 24000 and 48000 are played")]
    Rate(u32),
    /// Not PCM16.
    #[error("WAV file with {0} bits a sample: only 16-bit PCM is played")]
    Bits(u16),
    /// Too long.
    #[error("WAV file has {0} samples, more than ten minutes")]
    TooLong(u32),
}

/// Reads a PCM16 file; channels are averaged, and 16, 24 and 48 kHz are resampled.
///
/// # Errors
/// [`WavError`]
pub fn read_8k(path: impl AsRef<Path>) -> Result<Vec<i16>, WavError> {
    let mut reader = hound::WavReader::open(path)?;
    let spec = reader.spec();
    let rate = SampleRate::from_hz(spec.sample_rate).ok_or(WavError::Rate(spec.sample_rate))?;
    if spec.bits_per_sample != 16 || spec.sample_format != hound::SampleFormat::Int {
        return Err(WavError::Bits(spec.bits_per_sample));
    }
    if reader.len() > SAMPLES_MAX {
        return Err(WavError::TooLong(reader.len()));
    }
    let interleaved = reader.samples::<i16>().collect::<Result<Vec<_>, _>>()?;
    let channels = usize::from(spec.channels.max(1));
    let average = |frame: &[i16]| (frame.iter().map(|s| i32::from(*s)).sum::<i32>() / channels as i32) as i16;
    let mono: Vec<i16> = interleaved.chunks_exact(channels).map(average).collect();
    let mut resampler = Resampler::new(rate, SampleRate::Hz8000);
    let mut samples = vec![0; resampler.output_len(mono.len())];
    let len = resampler.process(&mono, &mut samples);
    samples.truncate(len);
    Ok(samples)
}

/// Writes 8 kHz samples as a PCM16 file with one channel.
///
/// # Errors
/// [`WavError::File`]
pub fn write_8k(path: impl AsRef<Path>, samples: &[i16]) -> Result<(), WavError> {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 8_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(path, spec)?;
    for sample in samples {
        writer.write_sample(*sample)?;
    }
    Ok(writer.finalize()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, spec: hound::WavSpec, samples: &[i16]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("tandem-phone-{}-{name}", std::process::id()));
        let mut writer = hound::WavWriter::create(&path, spec).unwrap();
        samples.iter().for_each(|sample| writer.write_sample(*sample).unwrap());
        writer.finalize().unwrap();
        path
    }

    fn spec(channels: u16, sample_rate: u32) -> hound::WavSpec {
        hound::WavSpec { channels, sample_rate, bits_per_sample: 16, sample_format: hound::SampleFormat::Int }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let path = std::env::temp_dir().join(format!("tandem-phone-{}-back.wav", std::process::id()));
        let samples: Vec<i16> = (-400..400).map(|n| n * 40).collect();
        write_8k(&path, &samples).unwrap();
        let read = read_8k(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read, samples);
    }

    #[test]
    fn channels_are_averaged_and_rates_brought_to_8_khz() {
        let path = file("stereo.wav", spec(2, 16_000), &[100, 300].repeat(16_000));
        let read = read_8k(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.len(), 8_000);
        assert!((198..=202).contains(&read[4_000]));
    }

    #[test]
    fn rates_that_cannot_be_resampled_are_named() {
        let path = file("cd.wav", spec(1, 44_100), &[0; 10]);
        let error = read_8k(&path).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(error.to_string(), "WAV file at 44100 Hz: only 8000, 16000, 24000 and 48000 are played");
    }
}
