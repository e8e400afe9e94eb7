//! One 20 ms frame each way: the agent link's share of the packet path.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tandem_stream::agent;
use tandem_stream::twilio::{self, BotWriter, FromBot, StreamIds, StreamWriter};
use tandem_stream::websocket::{FrameReader, Message, Opcode, Role, write_frame, write_frame_with};

fn pcm(c: &mut Criterion) {
    let samples = [1234i16; agent::FRAME_SAMPLES];
    let mut group = c.benchmark_group("pcm");
    group.throughput(Throughput::Elements(1));
    group.bench_function("write_masked", |b| {
        let mut out = [0; 1024];
        b.iter(|| {
            write_frame_with(&mut out, Opcode::Binary, Some([1, 2, 3, 4]), agent::FRAME_BYTES, |room| {
                agent::write_audio(black_box(&samples), room);
            })
        });
    });
    group.bench_function("read", |b| {
        let mut frame = [0; 1024];
        let len = write_frame(&mut frame, Opcode::Binary, None, &[7; agent::FRAME_BYTES]).expect("it fits");
        let mut reader = FrameReader::new(Role::Client);
        let mut heard = [0i16; agent::FRAME_SAMPLES];
        b.iter(|| {
            reader.push(black_box(&frame[..len]));
            if let Ok(Some(Message::Binary(payload))) = reader.poll_message() {
                for (slot, sample) in heard.iter_mut().zip(agent::read_audio(payload).expect("even")) {
                    *slot = sample;
                }
            }
            heard[0]
        });
    });
    group.finish();
}

fn media_streams(c: &mut Criterion) {
    let ids = StreamIds { stream_sid: "MZ1".into(), call_sid: "CA1".into(), account_sid: "AC1".into() };
    let mut group = c.benchmark_group("twilio");
    group.throughput(Throughput::Elements(1));
    group.bench_function("write_media", |b| {
        let mut writer = StreamWriter::new(ids.clone());
        let mut out = [0; 1024];
        b.iter(|| {
            let len = writer.media_len(20_000, twilio::FRAME_BYTES);
            write_frame_with(&mut out, Opcode::Text, Some([1, 2, 3, 4]), len, |room| {
                let _ = writer.media(20_000, black_box(&[0x7F; twilio::FRAME_BYTES]), room);
            })
        });
    });
    group.bench_function("read_media", |b| {
        let mut text = [0; 1024];
        let len = BotWriter::new("MZ1").media(&[0x7F; twilio::FRAME_BYTES], &mut text).expect("it fits");
        let mut frame = [0; 1024];
        let len = write_frame(&mut frame, Opcode::Text, None, &text[..len]).expect("it fits");
        let mut reader = FrameReader::new(Role::Client);
        let mut scratch = [0; 960];
        b.iter(|| {
            reader.push(black_box(&frame[..len]));
            let Ok(Some(Message::Text(text))) = reader.poll_message() else { return 0 };
            let Ok(Some(FromBot::Media { payload })) = FromBot::parse(text) else { return 0 };
            twilio::decode_payload(&payload, &mut scratch, |octets| {
                black_box(octets);
            })
            .unwrap_or(0)
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = pcm, media_streams
}
criterion_main!(benches);
