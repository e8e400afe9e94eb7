//! G.711: nanoseconds for 20 ms (160 samples), beside a 65 536-entry table, the usual other way.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tandem_audio::format::SampleRate;
use tandem_audio::g711;
use tandem_audio::tone::Sine;

fn g711_frames(c: &mut Criterion) {
    let mut samples = [0_i16; 160];
    Sine::new(441.0, 12_000, SampleRate::Hz8000).fill(&mut samples);
    let mut codes = [0_u8; 160];
    let table: Vec<u8> = (0..=u16::MAX).map(|n| g711::ulaw_from_linear(n as i16)).collect();

    let mut group = c.benchmark_group("g711");
    group.bench_function("ulaw_encode", |b| {
        b.iter(|| g711::encode_ulaw(black_box(&samples), black_box(&mut codes)))
    });
    group.bench_function("alaw_encode", |b| {
        b.iter(|| g711::encode_alaw(black_box(&samples), black_box(&mut codes)))
    });
    group.bench_function("ulaw_encode_by_64k_table", |b| {
        b.iter(|| {
            for (code, &sample) in black_box(&mut codes).iter_mut().zip(black_box(&samples)) {
                *code = table[usize::from(sample as u16)];
            }
        });
    });
    group.bench_function("ulaw_decode", |b| {
        b.iter(|| g711::decode_ulaw(black_box(&codes), black_box(&mut samples)))
    });
    group.bench_function("alaw_decode", |b| {
        b.iter(|| g711::decode_alaw(black_box(&codes), black_box(&mut samples)))
    });
    group.finish();
}

criterion_group!(benches, g711_frames);
criterion_main!(benches);
