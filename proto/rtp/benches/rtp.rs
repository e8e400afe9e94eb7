//! RTP: nanoseconds a packet for the header, for the whole way of a packet in order, and for SRTP there and back; and what
//! a DTLS handshake costs its server.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tandem_audio::format::ClockRate;
use tandem_rtp::dtls::{DATAGRAM_LEN_MAX, DtlsSrtp, Identity, Setup};
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

fn identity() -> Option<Identity> {
    let made = rcgen::generate_simple_self_signed(["tandem.test".to_owned()]).ok()?;
    Some(Identity::new(made.cert.der().to_vec(), made.signing_key.serialize_der()))
}

/// What one handshake cost its server.
#[derive(Default)]
struct Cost {
    /// Making its state, before the first datagram.
    begin: Duration,
    /// All steps; the first has the beginning in it.
    steps: Duration,
    /// The longest step: one datagram read, and what it answers.
    longest: Duration,
    /// How many steps.
    count: u32,
}

/// One handshake between two ends of ours over a link that loses nothing.
#[allow(clippy::disallowed_methods)]
fn shake(server: &Identity, client: &Identity) -> Option<Cost> {
    let mut now = Instant::now();
    let mut browser = DtlsSrtp::new(client, Setup::Active, server.fingerprint(), now).ok()?;
    let mut cost = Cost::default();
    let begun = Instant::now();
    let mut engine = DtlsSrtp::new(server, Setup::Passive, client.fingerprint(), now).ok()?;
    cost.begin = begun.elapsed();
    let (mut to_server, mut out) = ([0; DATAGRAM_LEN_MAX], [0; DATAGRAM_LEN_MAX]);
    let (mut has_browser, mut has_engine) = (false, false);
    while !(has_browser && has_engine) {
        let mut is_quiet = true;
        while let Some(len) = browser.poll_transmit(&mut to_server) {
            is_quiet = false;
            let begun = Instant::now();
            engine.handle_datagram(&to_server[..len], now);
            let mut flight = Vec::new();
            while let Some(len) = engine.poll_transmit(&mut out) {
                flight.push(out[..len].to_vec());
            }
            has_engine |= engine.poll_keys().is_some();
            // The first one begins it.
            let took = begun.elapsed() + if cost.count == 0 { cost.begin } else { Duration::ZERO };
            cost.steps += took;
            cost.longest = cost.longest.max(took);
            cost.count += 1;
            flight.iter().for_each(|datagram| browser.handle_datagram(datagram, now));
        }
        has_browser |= browser.poll_keys().is_some();
        if is_quiet && !(has_browser && has_engine) {
            return None;
        }
        now += Duration::from_millis(1);
        browser.handle_timeout(now);
    }
    Some(cost)
}

/// Milliseconds of a core for one browser.
fn dtls(c: &mut Criterion) {
    let (Some(server), Some(client)) = (identity(), identity()) else { return };
    let mut group = c.benchmark_group("dtls");
    group.sample_size(20);
    if let Some(cost) = shake(&server, &client) {
        println!("dtls: {} datagrams to the server", cost.count);
    }
    let each = |pick: fn(Cost) -> Duration| {
        let (server, client) = (&server, &client);
        move |times: u64| -> Duration {
            (0..times)
                .map(|_| match shake(server, client) {
                    Some(cost) => pick(cost),
                    None => panic!("a handshake over a link that loses nothing failed"),
                })
                .sum()
        }
    };
    group.bench_function("server_begin", |b| b.iter_custom(each(|cost| cost.begin)));
    group.bench_function("server", |b| b.iter_custom(each(|cost| cost.steps)));
    group.bench_function("server_longest_step", |b| b.iter_custom(each(|cost| cost.longest)));
    group.finish();
}

criterion_group!(benches, one_packet, srtp, dtls);
criterion_main!(benches);
