//! Tests of the header view: by hand, by round trip, and against rtc-rtp as an independent reader.

use super::*;
use proptest::prelude::*;
use rtc_shared::marshal::Unmarshal;

const PLAIN: [u8; 16] = [0x80, 0x80, 0x12, 0x34, 0, 0, 0, 160, 0xDE, 0xAD, 0xBE, 0xEF, 1, 2, 3, 4];

fn with(first: u8, tail: &[u8]) -> Vec<u8> {
    let mut datagram = PLAIN[..12].to_vec();
    datagram[0] = first;
    datagram.extend_from_slice(tail);
    datagram
}

#[test]
fn plain_packet_is_read_field_by_field() {
    let packet = Packet::parse(&PLAIN).unwrap();
    assert_eq!(
        packet.header,
        Header {
            marker: true,
            payload_type: PayloadType::PCMU,
            sequence: SequenceNumber(0x1234),
            timestamp: Timestamp(160),
            ssrc: Ssrc(0xDEAD_BEEF),
        }
    );
    assert_eq!(packet.payload, [1, 2, 3, 4]);
    assert_eq!((packet.csrc().len(), packet.extension, packet.padding), (0, None, 0));
}

#[test]
fn contributing_sources_extension_and_padding_are_taken_off() {
    let datagram = with(0xB2, &[0, 0, 0, 7, 0, 0, 0, 8, 0xBE, 0xDE, 0, 1, 9, 9, 9, 9, 5, 6, 0, 2]);
    let packet = Packet::parse(&datagram).unwrap();
    assert_eq!(packet.csrc().collect::<Vec<_>>(), [Ssrc(7), Ssrc(8)]);
    assert_eq!(packet.extension, Some(Extension { profile: 0xBEDE, data: &[9; 4] }));
    assert_eq!((packet.payload, packet.padding), (&[5, 6][..], 2));
}

#[test]
fn packet_of_padding_alone_has_an_empty_payload() {
    assert_eq!(Packet::parse(&with(0xA0, &[0, 0, 0, 4])).unwrap().payload, []);
}

#[test]
fn what_is_cut_short_is_refused_with_the_numbers() {
    assert_eq!(Packet::parse(&PLAIN[..11]), Err(PacketError::Short { len: 11, need: 12 }));
    assert_eq!(Packet::parse(&with(0x8F, &[0; 59])), Err(PacketError::Short { len: 71, need: 72 }));
    assert_eq!(Packet::parse(&with(0x90, &[0; 3])), Err(PacketError::Short { len: 15, need: 16 }));
    assert_eq!(
        Packet::parse(&with(0x90, &[0, 0, 0, 2, 1, 1, 1, 1])),
        Err(PacketError::Short { len: 20, need: 24 })
    );
}

#[test]
fn other_versions_rtcp_and_wrong_padding_are_refused() {
    assert_eq!(Packet::parse(&with(0x40, &[0; 4])), Err(PacketError::Version(1)));
    assert_eq!(Packet::parse(&with(0x00, &[0; 4])), Err(PacketError::Version(0)));
    assert_eq!(Packet::parse(&with(0xA0, &[1, 1, 0])), Err(PacketError::Padding { padding: 0, len: 3 }));
    assert_eq!(Packet::parse(&with(0xA0, &[1, 1, 4])), Err(PacketError::Padding { padding: 4, len: 3 }));
    assert_eq!(Packet::parse(&with(0xA0, &[])), Err(PacketError::Padding { padding: 0, len: 0 }));
    let mut report = PLAIN;
    report[1] = 200;
    assert_eq!(Packet::parse(&report), Err(PacketError::Rtcp(200)));
    assert!(is_rtcp(&report) && !is_rtcp(&PLAIN) && !is_rtcp(&[0x80]) && !is_rtcp(&[]));
}

#[test]
fn header_needs_twelve_octets_of_room() {
    let header = Packet::parse(&PLAIN).unwrap().header;
    let mut buffer = [0; 16];
    header.write(&mut buffer).unwrap();
    assert_eq!(buffer[..12], PLAIN[..12]);
    assert_eq!(header.write(&mut buffer[..11]), Err(NoRoom { len: 11, need: 12 }));
}

/// Datagrams that are RTP more often than noise would be.
fn datagram() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![4 => 0x80_u8..=0xBF, 1 => any::<u8>()];
    let words = prop_oneof![4 => 0_u8..4, 1 => any::<u8>()];
    (first, proptest::collection::vec(any::<u8>(), 0..90), words, any::<u8>()).prop_map(
        |(first, mut tail, words, last)| {
            // The extension's length would be absurd in nearly every case if it were left to chance.
            let extension = 11 + 4 * usize::from(first & 15);
            if let Some(length) = tail.get_mut(extension + 2..extension + 4) {
                length.copy_from_slice(&[0, words]);
            }
            if let (true, Some(padding)) = (last.is_multiple_of(2), tail.last_mut()) {
                *padding = last % 24;
            }
            tail.insert(0, first);
            tail
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn rtc_rtp_reads_the_same(datagram in datagram()) {
        let theirs = rtc_rtp::Packet::unmarshal(&mut datagram.as_slice());
        match Packet::parse(&datagram) {
            Ok(ours) => {
                // It looks into RFC 8285 extensions, whose inside may be malformed; we do not.
                if ours.extension.is_some_and(|extension| matches!(extension.profile, 0xBEDE | 0x1000)) {
                    return Ok(());
                }
                let theirs = theirs.unwrap();
                prop_assert_eq!(ours.header.marker, theirs.header.marker);
                prop_assert_eq!(ours.header.payload_type.get(), theirs.header.payload_type);
                prop_assert_eq!(ours.header.sequence.0, theirs.header.sequence_number);
                prop_assert_eq!(ours.header.timestamp.0, theirs.header.timestamp);
                prop_assert_eq!(ours.header.ssrc.0, theirs.header.ssrc);
                prop_assert_eq!(ours.csrc().map(|ssrc| ssrc.0).collect::<Vec<_>>(), theirs.header.csrc);
                prop_assert_eq!(ours.payload, &theirs.payload[..]);
                if let Some(extension) = ours.extension {
                    prop_assert_eq!(extension.profile, theirs.header.extension_profile);
                    prop_assert_eq!(extension.data, &theirs.header.extensions[0].payload[..]);
                }
            }
            // It accepts these; RFC 3550 and RFC 5761 do not.
            Err(PacketError::Version(_) | PacketError::Rtcp(_) | PacketError::Padding { padding: 0, .. }) => {}
            Err(PacketError::Short { .. } | PacketError::Padding { .. }) => prop_assert!(theirs.is_err()),
        }
    }

    #[test]
    fn what_is_written_is_read_back(marker: bool, payload_type in 0_u8..64, sequence: u16, timestamp: u32, ssrc: u32,
                                    payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let header = Header {
            marker,
            payload_type: PayloadType::new(payload_type).unwrap(),
            sequence: SequenceNumber(sequence),
            timestamp: Timestamp(timestamp),
            ssrc: Ssrc(ssrc),
        };
        let mut datagram = header.to_octets().to_vec();
        datagram.extend_from_slice(&payload);
        let packet = Packet::parse(&datagram).unwrap();
        prop_assert_eq!(packet.header, header);
        prop_assert_eq!(packet.payload, &payload[..]);
        let theirs = rtc_rtp::Packet::unmarshal(&mut datagram.as_slice()).unwrap();
        prop_assert_eq!((theirs.header.sequence_number, theirs.header.timestamp), (sequence, timestamp));
    }

    #[test]
    fn no_noise_makes_it_panic(datagram in proptest::collection::vec(any::<u8>(), 0..1_600)) {
        let _ = Packet::parse(&datagram).map(|packet| packet.csrc().count());
        is_rtcp(&datagram);
    }
}
