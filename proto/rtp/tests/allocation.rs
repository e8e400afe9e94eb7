//! Packets pass the whole receiving and sending side without touching the allocator, also when the network loses,
//! doubles and shuffles them.

use std::time::{Duration, Instant};

use tandem_audio::format::ClockRate;
use tandem_audio::tone::Digit;
use tandem_rtp::event::{EventDetector, EventSender};
use tandem_rtp::jitter::{Placement, Release, ReorderBuffer};
use tandem_rtp::latch::{Latching, SourceLatch};
use tandem_rtp::packet::{HEADER_LEN, Packet};
use tandem_rtp::receiver::{Receiver, Verdict};
use tandem_rtp::rtcp::Compound;
use tandem_rtp::sender::Sender;
use tandem_rtp::units::{PayloadType, SequenceNumber, Ssrc, Timestamp};

const CLOCK: ClockRate = ClockRate::HZ_8000;
/// Twenty seconds of packets.
const PACKETS: u64 = 1_000;

#[test]
fn a_lossy_stream_with_keys_and_reports_allocates_nothing() {
    let event_type = PayloadType::new(101).expect("101 is a dynamic type");
    let source = std::net::SocketAddr::from(([127, 0, 0, 1], 4_000));
    let mut sender = Sender::new(Ssrc(1), PayloadType::PCMU, SequenceNumber(65_000), Timestamp(0));
    let mut keys = EventSender::new(CLOCK);
    let mut latch = SourceLatch::new(Latching::Auto, None);
    let mut receiver = Receiver::new(CLOCK);
    let mut reorder = ReorderBuffer::new(160);
    let mut detector = EventDetector::new(CLOCK);
    #[allow(clippy::disallowed_methods)]
    let begin = Instant::now();
    // The network holds back one packet in seven until the next has passed, and loses one in eleven.
    let mut delayed: Option<([u8; 172], usize)> = None;
    let (mut payloads, mut gaps, mut digits) = (0_u64, 0_u64, 0_u64);

    let info = allocation_counter::measure(|| {
        for n in 0..PACKETS {
            let now = begin + Duration::from_millis(20 * n);
            if n % 100 == 0 {
                assert!(keys.push(Digit::from_event(5).expect("5 is a key")).is_ok());
            }
            let mut datagram = [0; 172];
            let len = match keys.next_packet(sender.timestamp(), 160) {
                Some(event) => {
                    let header = sender.next_event_header(event_type, &event, 160);
                    header.write(&mut datagram).expect("there is room");
                    datagram[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&event.payload);
                    HEADER_LEN + 4
                }
                None => sender.write_packet(160, &[0xFF; 160], &mut datagram).expect("there is room"),
            };
            let mut arriving = [None, None];
            match (n % 7, n % 11) {
                (_, 5) => {}
                (3, _) => arriving[0] = delayed.replace((datagram, len)),
                _ => arriving = [Some((datagram, len)), delayed.take()],
            }
            reorder.handle_timeout(now);
            for (datagram, len) in arriving.into_iter().flatten() {
                let packet = Packet::parse(&datagram[..len]).expect("we wrote it");
                assert!(latch.handle_packet(source, packet.header.ssrc, now).is_accepted());
                let verdict = receiver.handle_packet(&packet.header, packet.payload.len(), now);
                let Verdict::Accepted { sequence, .. } = verdict else { continue };
                if reorder.handle_packet(sequence, &packet.header, packet.payload, now) == Placement::InOrder
                {
                    payloads += 1;
                    if packet.header.payload_type == event_type {
                        detector.handle_packet(packet.header.timestamp, packet.payload, now);
                    }
                }
            }
            while let Some(release) = reorder.poll_release() {
                match release {
                    Release::Packet(held) => {
                        payloads += 1;
                        if held.header.payload_type == event_type {
                            detector.handle_packet(held.header.timestamp, held.payload, now);
                        }
                    }
                    Release::Gap { packets, .. } => gaps += packets,
                }
            }
            detector.handle_timeout(now);
            while detector.poll_event().is_some() {
                digits += 1;
            }
            if n % 250 == 0 {
                let mut buffer = [0; 200];
                let mut compound = Compound::new(&mut buffer);
                let report = receiver.report_block(now);
                compound.receiver_report(Ssrc(2), report.as_slice()).expect("there is room");
            }
        }
    });
    assert_eq!(info.count_total, 0);
    assert_eq!(digits, 2 * PACKETS / 100, "each key began and ended once");
    assert!(gaps > PACKETS / 12 && payloads > PACKETS * 8 / 10, "{payloads} packets, {gaps} missing");
    assert!(reorder.stats().released > 0 && receiver.stats().reordered > 0);
}
