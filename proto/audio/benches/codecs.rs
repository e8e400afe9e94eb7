//! G.722, Opus, concealment, noise and key detection: nanoseconds for 20 ms, beside spandsp where it has the same.

mod clib;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tandem_audio::conceal::Concealer;
use tandem_audio::dtmf::ToneDetector;
use tandem_audio::format::{Ptime, SampleRate};
use tandem_audio::g722::{G722Decoder, G722Encoder};
use tandem_audio::noise::{NoiseGenerator, Sid};
use tandem_audio::opus::{MAX_FRAME_OCTETS, OpusDecoder, OpusEncoder, OpusSettings};
use tandem_audio::pcm;
use tandem_audio::tone::Sine;

/// A chord: a codec has something to do.
fn chord(rate: SampleRate) -> Vec<i16> {
    let mut frame = vec![0; rate.samples(Ptime::MS_20)];
    for hz in [211.0, 440.0, 1_370.0, 2_900.0] {
        let mut tone = frame.clone();
        Sine::new(hz, 4_000, rate).fill(&mut tone);
        pcm::mix(&mut frame, &tone);
    }
    frame
}

fn g722(c: &mut Criterion) {
    let samples: [i16; 320] = chord(SampleRate::Hz16000).try_into().expect("20 ms at 16 kHz are 320 samples");
    let (mut codes, mut heard) = ([0; 160], [0; 320]);
    let (mut encoder, mut decoder) = (G722Encoder::new(), G722Decoder::new());
    let mut group = c.benchmark_group("g722");
    group.bench_function("encode", |b| b.iter(|| encoder.encode(black_box(&samples), black_box(&mut codes))));
    group.bench_function("decode", |b| b.iter(|| decoder.decode(black_box(&codes), black_box(&mut heard))));
    if let Some(mut spandsp) = clib::SpandspG722::open() {
        group.bench_function("encode_by_spandsp", |b| {
            b.iter(|| spandsp.encode(black_box(&samples), black_box(&mut codes)))
        });
        group.bench_function("decode_by_spandsp", |b| {
            b.iter(|| spandsp.decode(black_box(&codes), black_box(&mut heard)))
        });
    }
    group.finish();
}

fn opus(c: &mut Criterion) {
    let mut group = c.benchmark_group("opus");
    for rate in [SampleRate::Hz8000, SampleRate::Hz16000, SampleRate::Hz48000] {
        let samples = chord(rate);
        let (mut payload, mut heard) = ([0; MAX_FRAME_OCTETS], vec![0; samples.len()]);
        let mut len = 0;
        for complexity in [0, 5, 10] {
            let mut encoder = OpusEncoder::new(rate, OpusSettings { complexity, ..OpusSettings::default() });
            group.bench_function(format!("encode_{}_complexity_{complexity}", rate.hz()), |b| {
                b.iter(|| len = encoder.encode(black_box(&samples), black_box(&mut payload)))
            });
        }
        let mut decoder = OpusDecoder::new(rate);
        group.bench_function(format!("decode_{}", rate.hz()), |b| {
            b.iter(|| decoder.decode(black_box(&payload[..len]), black_box(&mut heard)))
        });
    }
    group.finish();
}

fn ears(c: &mut Criterion) {
    let mut frame = chord(SampleRate::Hz8000);
    let mut group = c.benchmark_group("ear");
    let mut concealer = Concealer::new(SampleRate::Hz8000);
    group.bench_function("hear_8k", |b| b.iter(|| concealer.hear(black_box(&mut frame))));
    group.bench_function("conceal_one_of_two_8k", |b| {
        b.iter(|| {
            concealer.hear(black_box(&mut frame));
            concealer.conceal(black_box(&mut [0; 160]));
        })
    });
    let mut keys = ToneDetector::new(SampleRate::Hz8000);
    group.bench_function("dtmf_8k", |b| b.iter(|| keys.process(black_box(&frame), |_| ())));
    let mut noise = NoiseGenerator::new(1);
    noise.set(&Sid::parse(&[50, 140, 120, 130, 127, 126, 128]).expect("the payload is not empty"));
    group.bench_function("comfort_noise_8k", |b| b.iter(|| noise.fill(black_box(&mut frame))));
    group.finish();
}

criterion_group!(benches, g722, opus, ears);
criterion_main!(benches);
