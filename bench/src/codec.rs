//! The command `codec`: nanoseconds for 20 ms of audio of one call, for everything that proto/audio can do to it.
use std::fmt::Write;
use std::hint::black_box;
use std::time::Instant;

use serde::Serialize;
use tandem_audio::format::{Codec, Ptime, SampleRate};
use tandem_audio::resample::Resampler;
use tandem_audio::tone::Sine;
use tandem_audio::transcode::{Decoder, Encoder, Transcoder};

/// Frames timed together: enough that reading the clock costs nothing.
const FRAMES: u32 = 2_000;

/// Batches, of which the median is taken.
const BATCHES: usize = 21;

/// Nanoseconds of 20 ms.
const FRAME_NS: f64 = 20e6;

/// What one piece of work costs.
#[derive(Debug, Clone, Serialize)]
pub struct Cost {
    /// What.
    pub work: String,
    /// For 20 ms of audio.
    pub ns_per_frame: f64,
    /// How many calls' worth one core could do in real time.
    pub times_real_time: f64,
}

/// Times everything.
pub fn run() -> Vec<Cost> {
    let mut costs = Vec::new();
    for codec in Codec::ALL {
        let rate = codec.sample_rate();
        let samples = tone(rate);
        let mut payload = vec![0; codec.octets(Ptime::MS_20)];
        let mut encoder = Encoder::new(rate, codec);
        costs.push(time(format!("{codec} encode"), || {
            encoder.encode(black_box(&samples), black_box(&mut payload))
        }));
        let len = encoder.encode(&samples, &mut payload);
        payload.truncate(len);
        let mut decoder = Decoder::new(codec, rate);
        let mut back = vec![0; samples.len()];
        costs.push(time(format!("{codec} decode"), || {
            decoder.decode(black_box(&payload), black_box(&mut back))
        }));
    }
    for (from, to) in [
        (SampleRate::Hz8000, SampleRate::Hz16000),
        (SampleRate::Hz16000, SampleRate::Hz8000),
        (SampleRate::Hz24000, SampleRate::Hz8000),
        (SampleRate::Hz48000, SampleRate::Hz8000),
    ] {
        let samples = tone(from);
        let mut resampler = Resampler::new(from, to);
        // A sample more than the plain ratio: the first frames may be a sample longer or shorter.
        let mut out = vec![0; resampler.output_len(samples.len()) + 1];
        costs.push(time(format!("resample {from} to {to}"), || {
            resampler.process(black_box(&samples), black_box(&mut out))
        }));
    }
    for (from, to) in [
        (Codec::Pcmu, Codec::Pcmu),
        (Codec::Pcmu, Codec::Pcma),
        (Codec::Pcmu, Codec::L16_16k),
        (Codec::L16_16k, Codec::Pcmu),
        (Codec::Pcmu, Codec::G722),
        (Codec::G722, Codec::Pcmu),
        (Codec::Pcmu, Codec::Opus),
        (Codec::Opus, Codec::Pcmu),
    ] {
        let samples = tone(from.sample_rate());
        let mut payload = vec![0; from.octets(Ptime::MS_20)];
        let len = Encoder::new(from.sample_rate(), from).encode(&samples, &mut payload);
        payload.truncate(len);
        let mut out = vec![0; to.octets(Ptime::MS_20) + 4];
        let mut transcoder = Transcoder::new(from, to);
        costs.push(time(format!("transcode {from} to {to}"), || {
            transcoder.transcode(black_box(&payload), black_box(&mut out))
        }));
    }
    costs
}

fn tone(rate: SampleRate) -> Vec<i16> {
    let mut samples = vec![0; rate.samples(Ptime::MS_20)];
    Sine::new(440.0, 8_000, rate).fill(&mut samples);
    samples
}

fn time(work: String, mut once: impl FnMut() -> usize) -> Cost {
    let mut batches: Vec<u64> = (0..BATCHES)
        .map(|_| {
            let began = Instant::now();
            for _ in 0..FRAMES {
                black_box(once());
            }
            began.elapsed().as_nanos() as u64
        })
        .collect();
    let middle = crate::distribution::median(&mut batches).unwrap_or(0);
    let ns_per_frame = (middle as f64 / f64::from(FRAMES)).max(0.1);
    Cost {
        work,
        ns_per_frame: (ns_per_frame * 10.0).round() / 10.0,
        times_real_time: (FRAME_NS / ns_per_frame).round(),
    }
}

/// As a table.
pub fn table(costs: &[Cost]) -> String {
    let mut text = format!("{:<32} {:>12} {:>14}\n", "", "ns per 20 ms", "× real time");
    for cost in costs {
        let _ =
            writeln!(text, "{:<32} {:>12.1} {:>14.0}", cost.work, cost.ns_per_frame, cost.times_real_time);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_codec_and_resampler_is_timed() {
        let costs = super::run();
        assert!(costs.len() >= 12);
        assert!(costs.iter().all(|cost| cost.ns_per_frame > 0.0 && cost.times_real_time > 1.0), "{costs:?}");
    }
}
