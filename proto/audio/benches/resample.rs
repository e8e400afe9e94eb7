//! Resampling: nanoseconds for 20 ms between each pair of rates, and what a packet costs through decoder and encoder.

mod clib;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tandem_audio::format::{Codec, MAX_PACKET_SAMPLES, MAX_PAYLOAD_OCTETS, Ptime, SampleRate};
use tandem_audio::resample::Resampler;
use tandem_audio::tone::Sine;
use tandem_audio::transcode::{Decoder, Encoder};
use tandem_audio::vad::Vad;

/// Opens one of the C libraries for a pair of rates.
type Open = fn(u32, u32) -> Option<clib::Resample>;

fn rates(c: &mut Criterion) {
    let mut group = c.benchmark_group("resample");
    for from in SampleRate::ALL {
        for to in SampleRate::ALL.into_iter().filter(|to| *to != from) {
            let mut input = vec![0; from.samples(Ptime::MS_20)];
            Sine::new(441.0, 12_000, from).fill(&mut input);
            let mut output = [0; MAX_PACKET_SAMPLES];
            let mut resampler = Resampler::new(from, to);
            group.bench_function(format!("{}_to_{}", from.hz(), to.hz()), |b| {
                b.iter(|| resampler.process(black_box(&input), black_box(&mut output)));
            });
            for (name, theirs) in [("soxr_hq", clib::soxr as Open), ("speex_q3", clib::speex)] {
                let Some(mut resample) = theirs(from.hz(), to.hz()) else { continue };
                group.bench_function(format!("{}_to_{}_by_{name}", from.hz(), to.hz()), |b| {
                    b.iter(|| resample(black_box(&input), black_box(&mut output)));
                });
            }
        }
    }
    group.finish();
}

fn packets(c: &mut Criterion) {
    let mut payload = [0x3A; MAX_PAYLOAD_OCTETS];
    let mut samples = [0; MAX_PACKET_SAMPLES];
    let mut decoder = Decoder::new(Codec::Pcmu, SampleRate::Hz16000);
    let mut encoder = Encoder::new(SampleRate::Hz16000, Codec::Pcmu);
    let mut group = c.benchmark_group("packet");
    group.bench_function("pcmu_to_16k", |b| {
        b.iter(|| decoder.decode(black_box(&payload[..160]), black_box(&mut samples)));
    });
    group.bench_function("16k_to_pcmu", |b| {
        b.iter(|| encoder.encode(black_box(&samples[..320]), black_box(&mut payload)));
    });
    for rate in [SampleRate::Hz8000, SampleRate::Hz16000] {
        // A tone is the dearest: it is looked at in every block.
        let mut tone = vec![0; rate.samples(Ptime::MS_20)];
        Sine::new(450.0, 5_000, rate).fill(&mut tone);
        let mut vad = Vad::new(rate);
        group.bench_function(format!("vad_{}", rate.hz()), |b| b.iter(|| vad.process(black_box(&tone))));
    }
    group.finish();
}

criterion_group!(benches, rates, packets);
criterion_main!(benches);
