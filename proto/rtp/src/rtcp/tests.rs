//! Tests of the RTCP writer and parser.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

const INFO: SenderInfo =
    SenderInfo { ntp: NtpTime(0x0102_0304_0506_0708), timestamp: Timestamp(9), packets: 10, octets: 11 };

fn block(ssrc: u32) -> ReportBlock {
    ReportBlock {
        ssrc: Ssrc(ssrc),
        fraction_lost: 12,
        cumulative_lost: -5,
        highest_sequence: 0x1_0002,
        jitter: 13,
        last_sender_report: 14,
        delay_since_sender_report: 15,
    }
}

#[test]
fn sender_report_has_the_octets_of_rfc_3550() {
    let mut buffer = [0xEE; 64];
    let mut compound = Compound::new(&mut buffer);
    compound.sender_report(Ssrc(7), &INFO, &[block(8)]).unwrap();
    let len = compound.len();
    #[rustfmt::skip]
    let expected = [
        0x81, 200, 0, 12,  0, 0, 0, 7,
        1, 2, 3, 4,  5, 6, 7, 8,  0, 0, 0, 9,  0, 0, 0, 10,  0, 0, 0, 11,
        0, 0, 0, 8,  12, 0xFF, 0xFF, 0xFB,  0, 1, 0, 2,  0, 0, 0, 13,  0, 0, 0, 14,  0, 0, 0, 15,
    ];
    assert_eq!(buffer[..len], expected);
}

#[test]
fn compound_of_report_name_and_bye_is_read_back() {
    let mut buffer = [0; 200];
    let mut compound = Compound::new(&mut buffer);
    compound.receiver_report(Ssrc(7), &[block(8), block(9)]).unwrap();
    compound.cname(Ssrc(7), "engine-1@tandem").unwrap();
    compound.bye(Ssrc(7)).unwrap();
    let len = compound.len();
    let packets: Vec<_> = parse(&buffer[..len]).map(Result::unwrap).collect();
    let [RtcpPacket::ReceiverReport { ssrc, reports }, name, bye] = packets[..] else {
        panic!("{packets:?}")
    };
    assert_eq!(ssrc, Ssrc(7));
    assert_eq!(reports.iter().collect::<Vec<_>>(), [block(8), block(9)]);
    assert_eq!(name, RtcpPacket::SourceDescription { ssrc: Ssrc(7), cname: Some(b"engine-1@tandem") });
    assert_eq!(bye, RtcpPacket::Bye { ssrc: Some(Ssrc(7)), reason: None });
}

#[test]
fn chunk_ends_with_a_zero_octet_whatever_the_length_of_the_name() {
    for len in 0..9 {
        let mut buffer = [0xEE; 64];
        let mut compound = Compound::new(&mut buffer);
        compound.cname(Ssrc(1), &"x".repeat(len)).unwrap();
        let end = compound.len();
        assert_eq!(end % 4, 0);
        assert_eq!(buffer[end - 1], 0);
        assert_eq!(parse(&buffer[..end]).count(), 1);
    }
}

#[test]
fn unknown_packets_are_skipped_by_their_length() {
    let datagram = [0x80, 204, 0, 1, 1, 2, 3, 4, 0x81, 203, 0, 1, 0, 0, 0, 5];
    let packets: Vec<_> = parse(&datagram).collect();
    assert_eq!(
        packets,
        [
            Ok(RtcpPacket::Other { packet_type: 204 }),
            Ok(RtcpPacket::Bye { ssrc: Some(Ssrc(5)), reason: None })
        ]
    );
}

#[test]
fn bye_may_give_a_reason_and_padding_is_taken_off() {
    let datagram = [0xA1, 203, 0, 4, 0, 0, 0, 5, 3, b'e', b'n', b'd', 0, 0, 0, 0, 0, 0, 0, 4];
    let packets: Vec<_> = parse(&datagram).collect();
    assert_eq!(packets, [Ok(RtcpPacket::Bye { ssrc: Some(Ssrc(5)), reason: Some(b"end") })]);
}

#[test]
fn what_is_cut_short_ends_the_reading_with_an_error() {
    assert_eq!(parse(&[0x80, 200, 0]).collect::<Vec<_>>(), [Err(RtcpError::Short { len: 3, need: 4 })]);
    assert_eq!(parse(&[0x80, 200, 0, 6]).collect::<Vec<_>>(), [Err(RtcpError::Short { len: 4, need: 28 })]);
    assert_eq!(parse(&[0x80, 200, 0, 0]).collect::<Vec<_>>(), [Err(RtcpError::Short { len: 0, need: 24 })]);
    assert_eq!(parse(&[0x40, 200, 0, 0]).collect::<Vec<_>>(), [Err(RtcpError::Version(1))]);
    assert_eq!(parse(&[0xA0, 204, 0, 1, 0, 0, 0, 8]).collect::<Vec<_>>(), [Err(RtcpError::Padding(8))]);
    let lying_count = [0x9F, 201, 0, 1, 0, 0, 0, 1];
    assert_eq!(parse(&lying_count).collect::<Vec<_>>(), [Err(RtcpError::Short { len: 0, need: 744 })]);
}

#[test]
fn full_buffer_leaves_the_compound_as_it_was() {
    let mut buffer = [0; 40];
    let mut compound = Compound::new(&mut buffer);
    compound.receiver_report(Ssrc(1), &[]).unwrap();
    assert_eq!(compound.receiver_report(Ssrc(1), &[block(2), block(3)]), Err(NoRoom { len: 40, need: 64 }));
    assert_eq!(compound.len(), 8);
    compound.bye(Ssrc(1)).unwrap();
    assert!(!compound.is_empty());
}

#[test]
fn round_trip_is_now_less_the_report_less_the_delay() {
    // The example of RFC 3550 figure 2: 6.125 s.
    let report =
        ReportBlock { last_sender_report: 0xB705_2000, delay_since_sender_report: 0x0005_4000, ..block(1) };
    assert_eq!(report.round_trip(NtpTime(0x0000_B710_8000 << 16)), Some(Duration::from_millis(6_125)));
    assert_eq!(report.round_trip(NtpTime(0x0000_B700_0000 << 16)), None, "before the report was sent");
    assert_eq!(ReportBlock { last_sender_report: 0, ..report }.round_trip(NtpTime(1)), None);
}

#[test]
fn peer_that_rounds_the_delay_up_on_a_short_path_is_near_and_not_unknown() {
    let block = |delay_since_sender_report| ReportBlock {
        ssrc: Ssrc(1),
        fraction_lost: 0,
        cumulative_lost: 0,
        highest_sequence: 0,
        jitter: 0,
        last_sender_report: 1_000_000,
        delay_since_sender_report,
    };
    // Two seconds and a ten-thousandth after our report, and the peer says that it kept it for 2.001 s.
    let now = NtpTime(u64::from(1_000_000 + 131_072 + 6_u32) << 16);
    assert_eq!(block(131_137).round_trip(now), Some(Duration::ZERO));
    assert_eq!(block(131_072 + 6_554).round_trip(now), None, "a tenth of a second too long");
}

#[test]
fn ntp_time_counts_from_1900() {
    assert_eq!(NtpTime::from_unix(Duration::ZERO).0, 2_208_988_800 << 32);
    assert_eq!(NtpTime::from_unix(Duration::from_millis(500)).0 as u32, 1 << 31);
}

proptest! {
    #[test]
    fn no_datagram_makes_it_panic(mut datagram in proptest::collection::vec(any::<u8>(), 0..300), types in proptest::collection::vec((0x80_u8..=0xBF, 200_u8..206, 0_u8..9), 0..4)) {
        // Plant plausible headers, so that more than the first check is reached.
        for (index, (first, packet_type, words)) in types.into_iter().enumerate() {
            if let Some(head) = datagram.get_mut(index * 28..index * 28 + 4) {
                head.copy_from_slice(&[first, packet_type, 0, words]);
            }
        }
        let mut packets = 0;
        for packet in parse(&datagram) {
            packets += 1;
            if let Ok(RtcpPacket::SenderReport { reports, .. } | RtcpPacket::ReceiverReport { reports, .. }) = packet {
                prop_assert!(reports.iter().count() <= MAX_REPORT_BLOCKS);
            }
        }
        prop_assert!(packets <= datagram.len() / 4 + 1);
    }

    #[test]
    fn report_block_round_trips(ssrc: u32, fraction_lost: u8, cumulative_lost in -0x80_0000_i32..0x80_0000, highest_sequence: u32, jitter: u32, last: u32, delay: u32) {
        let block = ReportBlock { ssrc: Ssrc(ssrc), fraction_lost, cumulative_lost, highest_sequence, jitter, last_sender_report: last, delay_since_sender_report: delay };
        prop_assert_eq!(ReportBlock::parse(&block.to_octets()), block);
    }
}
