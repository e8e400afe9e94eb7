//! RTP: nanoseconds a packet for the header, for the whole way of a packet in order, and for SRTP there and back.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tandem_audio::format::ClockRate;
use tandem_rtp::jitter::ReorderBuffer;
use tandem_rtp::latch::{Latching, SourceLatch};
use tandem_rtp::packet::Packet;
use tandem_rtp::receiver::{Receiver, Verdict};
use tandem_rtp::sender::Sender;
use tandem_rtp::srtp::{Inbound, MasterKey, Outbound, RTP_OVERHEAD_MAX, Suite};
use tandem_rtp::units::{PayloadType, SequenceNumber, Ssrc, Timestamp};

fn one_packet(c: &mut Criterion) {
    let mut sender = Sender::new(Ssrc(1), PayloadType::PCMU, SequenceNumber(0), Timestamp(0));
    let mut datagram = [0; 172];
    let mut group = c.benchmark_group("rtp");
    group.bench_function("write", |b| {
        b.iter(|| sender.write_packet(160, black_box(&[0xFF; 160]), black_box(&mut datagram)))
    });
    group.bench_function("parse", |b| {
        b.iter(|| Packet::parse(black_box(&datagram)).map(|packet| packet.payload.len()))
    });

    let source = std::net::SocketAddr::from(([127, 0, 0, 1], 4_000));
    let mut latch = SourceLatch::new(Latching::Auto, None);
    let mut receiver = Receiver::new(ClockRate::HZ_8000);
    let mut reorder = ReorderBuffer::new(480);
    #[allow(clippy::disallowed_methods)]
    let mut now = Instant::now();
    let mut sequence = 0_u16;
    group.bench_function("receive_in_order", |b| {
        b.iter(|| {
            sequence = sequence.wrapping_add(1);
            now += Duration::from_millis(20);
            datagram[2..4].copy_from_slice(&sequence.to_be_bytes());
            datagram[4..8].copy_from_slice(&(u32::from(sequence) * 160).to_be_bytes());
            let Ok(packet) = Packet::parse(black_box(&datagram)) else { return };
            latch.handle_packet(source, packet.header.ssrc, now);
            let verdict = receiver.handle_packet(&packet.header, packet.payload.len(), now);
            if let Verdict::Accepted { sequence, .. } = verdict {
                black_box(reorder.handle_packet(sequence, &packet.header, packet.payload, now));
            }
        });
    });
    group.finish();
}

/// Protect and unprotect of one packet of G.711, as two legs of a call pay for it.
fn srtp(c: &mut Criterion) {
    let mut group = c.benchmark_group("srtp");
    for suite in Suite::ALL {
        let Ok(key) = MasterKey::new(suite, &vec![7; suite.master_len()]) else { continue };
        let (Ok(mut outbound), Ok(mut inbound)) = (Outbound::new(key), Inbound::new(key)) else { continue };
        let mut sender = Sender::new(Ssrc(1), PayloadType::PCMU, SequenceNumber(0), Timestamp(0));
        let mut datagram = [0; 172 + RTP_OVERHEAD_MAX];
        group.bench_function(format!("protect_unprotect/{suite}"), |b| {
            b.iter(|| {
                let Ok(len) = sender.write_packet(160, black_box(&[0xFF; 160]), &mut datagram) else {
                    return;
                };
                let Ok(len) = outbound.protect_rtp(&mut datagram, len) else { return };
                let _ = black_box(inbound.unprotect_rtp(black_box(&datagram[..len])));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, one_packet, srtp);
criterion_main!(benches);
