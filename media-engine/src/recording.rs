//! WAV files for the file agent: loaded, checked and resampled on the control thread, never on a worker.

use std::path::{Component, Path, PathBuf};

use tandem_audio::format::SampleRate;
use tandem_audio::resample::Resampler;

use crate::leg::agent::Recording;

/// The longest recording: at 16 kHz it takes 19 MB. What is longer should be streamed by an agent.
pub const SECONDS_MAX: u32 = 600;

/// Why a file cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It would lie outside the media folder.
    #[error("path {0:?} is not below the media folder")]
    Outside(String),
    /// It cannot be read, or is no WAV file.
    #[error("{path}: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: hound::Error,
    },
    /// It is WAV, but of another kind.
    #[error("{path}: {what}; PCM16, mono, at 8, 16, 24 or 48 kHz is played")]
    Format {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// It is longer than [`SECONDS_MAX`].
    #[error("{path}: {seconds} s are more than {SECONDS_MAX} s")]
    TooLong {
        /// Which.
        path: PathBuf,
        /// How long.
        seconds: u32,
    },
}

/// Loads a file below `folder`.
pub fn load(folder: &Path, path: &str, repeat: bool) -> Result<Recording, RecordingError> {
    let relative = Path::new(path);
    if path.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(RecordingError::Outside(path.to_owned()));
    }
    let path = folder.join(relative);
    let unreadable = |source| RecordingError::Unreadable { path: path.clone(), source };
    let mut reader = hound::WavReader::open(&path).map_err(unreadable)?;
    let spec = reader.spec();
    let format = |what: String| RecordingError::Format { path: path.clone(), what };
    if (spec.channels, spec.bits_per_sample, spec.sample_format) != (1, 16, hound::SampleFormat::Int) {
        return Err(format(format!("{} channels of {} bits", spec.channels, spec.bits_per_sample)));
    }
    let rate =
        SampleRate::from_hz(spec.sample_rate).ok_or_else(|| format(format!("{} Hz", spec.sample_rate)))?;
    let seconds = reader.duration() / spec.sample_rate;
    if seconds > SECONDS_MAX {
        return Err(RecordingError::TooLong { path: path.clone(), seconds });
    }
    let samples: Vec<i16> = reader.samples::<i16>().collect::<Result<_, _>>().map_err(unreadable)?;
    let mut resampler = Resampler::new(rate, Recording::RATE);
    let mut resampled = vec![0; resampler.output_len(samples.len())];
    let len = resampler.process(&samples, &mut resampled);
    resampled.truncate(len);
    Ok(Recording { samples: resampled.into(), repeat })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, rate: u32, channels: u16, samples: usize) {
        let spec = hound::WavSpec {
            channels,
            sample_rate: rate,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut writer = hound::WavWriter::create(path, spec).unwrap();
        for _ in 0..samples {
            writer.write_sample(1_000i16).unwrap();
        }
        writer.finalize().unwrap();
    }

    #[test]
    fn a_wav_file_is_resampled_when_it_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("a.wav"), 8_000, 1, 8_000);
        let recording = load(folder.path(), "a.wav", true).unwrap();
        assert_eq!(recording.samples.len(), 16_000);
        assert!((recording.samples[8_000] - 1_000).abs() < 20);
    }

    #[test]
    fn what_cannot_be_played_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("stereo.wav"), 8_000, 2, 80);
        write(&folder.path().join("odd.wav"), 44_100, 1, 80);
        let refusal = |path: &str| load(folder.path(), path, false).unwrap_err().to_string();
        assert!(refusal("stereo.wav").contains("2 channels"));
        assert!(refusal("odd.wav").contains("44100 Hz"));
        assert!(refusal("missing.wav").contains("missing.wav"));
        for outside in ["../a.wav", "/etc/passwd", "", "x/../../a.wav"] {
            assert!(refusal(outside).contains("not below"), "{outside}");
        }
    }
}
