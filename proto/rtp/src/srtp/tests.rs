//! Two ends with SRTP between them, and somebody who forges, records and floods.

use super::*;
use crate::packet::{HEADER_LEN, Header, Packet};
use crate::rtcp::{Compound, is_compound};
use crate::units::{PayloadType, SequenceNumber, Timestamp};
use proptest::prelude::*;

fn key(suite: Suite, seed: u8) -> MasterKey {
    let octets: Vec<u8> = (0..suite.master_len() as u8).map(|n| n.wrapping_mul(7) ^ seed).collect();
    MasterKey::new(suite, &octets).unwrap()
}

fn pair(suite: Suite) -> (Outbound, Inbound) {
    (Outbound::new(key(suite, 1)).unwrap(), Inbound::new(key(suite, 1)).unwrap())
}

fn plain(ssrc: u32, sequence: u16) -> Vec<u8> {
    let header = Header {
        marker: false,
        payload_type: PayloadType::PCMU,
        sequence: SequenceNumber(sequence),
        timestamp: Timestamp(u32::from(sequence) * 160),
        ssrc: Ssrc(ssrc),
    };
    let mut packet = header.to_octets().to_vec();
    packet.extend((0..160).map(|n| n as u8 ^ sequence as u8));
    packet
}

fn protected(out: &mut Outbound, ssrc: u32, sequence: u16) -> Vec<u8> {
    let mut buffer = plain(ssrc, sequence);
    let len = buffer.len();
    buffer.resize(len + RTP_OVERHEAD_MAX, 0);
    let len = out.protect_rtp(&mut buffer, len).unwrap();
    buffer.truncate(len);
    buffer
}

fn report() -> Vec<u8> {
    let mut buffer = [0; 100];
    let mut compound = Compound::new(&mut buffer);
    compound.receiver_report(Ssrc(5), &[]).unwrap();
    compound.cname(Ssrc(5), "0123456789abcdef").unwrap();
    let len = compound.len();
    buffer[..len].to_vec()
}

#[test]
fn every_suite_hides_the_payload_and_gives_it_back() {
    for suite in Suite::ALL {
        let (mut out, mut inbound) = pair(suite);
        for sequence in 100..110 {
            let packet = protected(&mut out, 5, sequence);
            let clear = plain(5, sequence);
            assert_eq!(packet[..HEADER_LEN], clear[..HEADER_LEN], "the header stays readable");
            assert_ne!(packet[HEADER_LEN..clear.len()], clear[HEADER_LEN..]);
            assert_eq!(inbound.unprotect_rtp(&packet).unwrap()[..], clear[..], "{suite}");
        }
        assert_eq!(inbound.refused(), 0);
    }
}

#[test]
fn reports_are_protected_too() {
    for suite in Suite::ALL {
        let (mut out, mut inbound) = pair(suite);
        let clear = report();
        let mut buffer = clear.clone();
        buffer.resize(clear.len() + RTCP_OVERHEAD_MAX, 0);
        let len = out.protect_rtcp(&mut buffer, clear.len()).unwrap();
        assert!(!is_compound(&buffer[..len]));
        assert_eq!(inbound.unprotect_rtcp(&buffer[..len]).unwrap()[..], clear[..], "{suite}");
        assert_eq!(inbound.unprotect_rtcp(&buffer[..len]), Err(SrtpError::Replayed));
    }
}

#[test]
fn report_that_says_it_is_not_encrypted_is_refused() {
    for suite in Suite::ALL {
        let (mut out, mut inbound) = pair(suite);
        let mut buffer = report();
        let len = buffer.len();
        buffer.resize(len + RTCP_OVERHEAD_MAX, 0);
        let protected = out.protect_rtcp(&mut buffer, len).unwrap();
        inbound.unprotect_rtcp(&buffer[..protected]).unwrap();
        let mut forged = report();
        forged.extend([0; 3 * RTCP_OVERHEAD_MAX]);
        assert_eq!(inbound.unprotect_rtcp(&forged), Err(SrtpError::Forged), "{suite}");
    }
}

/// RFC 3711 has no vector for a whole packet with its 80-bit tag; this one is libsrtp's (test/srtp_driver.c), which half
/// the world's phones are made of.
#[test]
fn packet_is_octet_for_octet_what_libsrtp_makes() {
    let master = [
        0xe1, 0xf9, 0x7a, 0x0d, 0x3e, 0x01, 0x8b, 0xe0, 0xd6, 0x4f, 0xa3, 0x2c, 0x06, 0xde, 0x41, 0x39, 0x0e,
        0xc6, 0x75, 0xad, 0x49, 0x8a, 0xfe, 0xeb, 0xb6, 0x96, 0x0b, 0x3a, 0xab, 0xe6,
    ];
    let clear = [
        0x80, 0x0f, 0x12, 0x34, 0xde, 0xca, 0xfb, 0xad, 0xca, 0xfe, 0xba, 0xbe, 0xab, 0xab, 0xab, 0xab, 0xab,
        0xab, 0xab, 0xab, 0xab, 0xab, 0xab, 0xab, 0xab, 0xab, 0xab, 0xab,
    ];
    let expected = [
        0x80, 0x0f, 0x12, 0x34, 0xde, 0xca, 0xfb, 0xad, 0xca, 0xfe, 0xba, 0xbe, 0x4e, 0x55, 0xdc, 0x4c, 0xe7,
        0x99, 0x78, 0xd8, 0x8c, 0xa4, 0xd2, 0x15, 0x94, 0x9d, 0x24, 0x02, 0xb7, 0x8d, 0x6a, 0xcc, 0x99, 0xea,
        0x17, 0x9b, 0x8d, 0xbb,
    ];
    let key = MasterKey::new(Suite::AesCm128HmacSha1_80, &master).unwrap();
    let mut buffer = [0; 60];
    buffer[..28].copy_from_slice(&clear);
    let len = Outbound::new(key).unwrap().protect_rtp(&mut buffer, 28).unwrap();
    assert_eq!(buffer[..len], expected);
}

#[test]
fn rollover_counter_goes_on_over_many_wraps_with_loss_around_them() {
    let (mut out, mut inbound) = pair(Suite::AesCm128HmacSha1_80);
    let mut sequence = 30_000_u16;
    for step in 0..400_000_u32 {
        let near_wrap = !(40..=65_500).contains(&sequence);
        // Elsewhere only each hundredth packet is made, as if the rest were lost: less than half a cycle.
        if near_wrap && step % 5 != 0 || step % 100 == 0 {
            let packet = protected(&mut out, 5, sequence);
            assert!(inbound.unprotect_rtp(&packet).is_ok(), "step {step}, sequence {sequence}");
        }
        sequence = sequence.wrapping_add(1);
    }
}

#[test]
fn reordered_over_the_wrap_are_both_heard() {
    let (mut out, mut inbound) = pair(Suite::AeadAes128Gcm);
    for sequence in 32_000..=65_534 {
        let packet = protected(&mut out, 5, sequence);
        if sequence % 1_000 == 0 || sequence > 65_530 {
            inbound.unprotect_rtp(&packet).unwrap();
        }
    }
    let last = protected(&mut out, 5, 65_535);
    let first = protected(&mut out, 5, 0);
    assert!(inbound.unprotect_rtp(&first).is_ok());
    assert!(inbound.unprotect_rtp(&last).is_ok());
    assert_eq!(inbound.unprotect_rtp(&last), Err(SrtpError::Replayed));
}

#[test]
fn replayed_and_very_old_packets_are_refused() {
    let (mut out, mut inbound) = pair(Suite::AesCm128HmacSha1_32);
    let packets: Vec<_> = (1_000..1_300).map(|sequence| protected(&mut out, 5, sequence)).collect();
    for packet in packets.iter().skip(1) {
        inbound.unprotect_rtp(packet).unwrap();
    }
    assert_eq!(inbound.unprotect_rtp(&packets[299]), Err(SrtpError::Replayed));
    assert_eq!(inbound.unprotect_rtp(&packets[0]), Err(SrtpError::Replayed), "outside of the window");
}

#[test]
fn flood_of_forged_ssrcs_is_refused_and_leaves_no_state_behind() {
    let (mut out, mut inbound) = pair(Suite::AeadAes128Gcm);
    let (mut forger, _) =
        (Outbound::new(key(Suite::AeadAes128Gcm, 99)).unwrap(), Outbound::new(key(Suite::AeadAes128Gcm, 99)));
    inbound.unprotect_rtp(&protected(&mut out, 5, 1)).unwrap();
    for ssrc in 1_000..3_000 {
        assert_eq!(inbound.unprotect_rtp(&protected(&mut forger, ssrc, 1)), Err(SrtpError::Forged));
    }
    assert_eq!(inbound.current.proved, [Ssrc(5)]);
    assert!(inbound.unprotect_rtp(&protected(&mut out, 5, 2)).is_ok());
    assert_eq!(inbound.refused(), 2_000);
}

#[test]
fn peer_may_change_its_ssrc_and_what_was_recorded_before_is_not_played_back() {
    let (mut out, mut inbound) = pair(Suite::AesCm128HmacSha1_80);
    const { assert!(MAX_SSRCS >= 16, "a dozen transfers, each with an SSRC of its own") };
    let recorded = protected(&mut out, 5, 1);
    inbound.unprotect_rtp(&recorded).unwrap();
    for ssrc in 6..6 + MAX_SSRCS as u32 - 1 {
        assert!(inbound.unprotect_rtp(&protected(&mut out, ssrc, 700)).is_ok());
        assert_eq!(inbound.unprotect_rtp(&recorded), Err(SrtpError::Replayed));
    }
    assert_eq!(inbound.unprotect_rtp(&protected(&mut out, 99, 1)), Err(SrtpError::SsrcsFull));
}

#[test]
fn rekey_takes_both_keys_until_the_new_one_is_heard() {
    let suite = Suite::AeadAes256Gcm;
    let (mut old, mut inbound) = pair(suite);
    let mut new = Outbound::new(key(suite, 2)).unwrap();
    inbound.unprotect_rtp(&protected(&mut old, 5, 1)).unwrap();
    inbound.rekey(key(suite, 1)).unwrap();
    assert!(inbound.previous.is_none(), "the same key is no change");
    inbound.rekey(key(suite, 2)).unwrap();
    assert!(inbound.unprotect_rtp(&protected(&mut old, 5, 2)).is_ok());
    assert!(inbound.unprotect_rtp(&protected(&mut new, 5, 3)).is_ok());
    assert_eq!(inbound.unprotect_rtp(&protected(&mut old, 5, 4)), Err(SrtpError::Forged));
    assert_eq!(*inbound.key(), key(suite, 2));
}

#[test]
fn rekey_may_change_the_suite() {
    let (mut old, mut inbound) = pair(Suite::AesCm128HmacSha1_80);
    inbound.unprotect_rtp(&protected(&mut old, 5, 1)).unwrap();
    inbound.rekey(key(Suite::AeadAes128Gcm, 3)).unwrap();
    let mut new = Outbound::new(key(Suite::AeadAes128Gcm, 3)).unwrap();
    assert!(inbound.unprotect_rtp(&protected(&mut new, 5, 2)).is_ok());
}

#[test]
fn keys_are_never_shown() {
    let master = key(Suite::AeadAes256Gcm, 0x5A);
    let shown =
        format!("{master:?} {:?} {:?}", Outbound::new(master).unwrap(), Inbound::new(master).unwrap());
    let octets = format!("{:?}", master.expose());
    assert!(!shown.contains(octets.trim_matches(['[', ']'])) && !shown.contains("90, 93"), "{shown}");
    assert!(shown.contains("redacted"));
    let error = MasterKey::new(Suite::AeadAes128Gcm, &[1; 30]).unwrap_err();
    assert_eq!(error.to_string(), "AEAD_AES_128_GCM takes 28 octets of key and salt, 30 are given");
}

#[test]
fn suites_are_found_by_their_names() {
    for suite in Suite::ALL {
        assert_eq!(Suite::from_name(suite.as_str()), Some(suite));
    }
    assert_eq!(Suite::from_name("aes_cm_128_hmac_sha1_80"), Some(Suite::AesCm128HmacSha1_80));
    assert_eq!(Suite::from_name("F8_128_HMAC_SHA1_80"), None);
}

#[test]
fn packet_with_csrc_extension_and_padding_comes_back_whole() {
    for suite in Suite::ALL {
        let (mut out, mut inbound) = pair(suite);
        let mut clear = vec![0xB1, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 77];
        clear.extend([0xBE, 0xDE, 0, 2, 0x10, 0xAA, 0, 0, 0x21, 1, 2, 0]);
        clear.extend([1, 2, 3, 4, 5, 0, 0, 3]);
        let mut buffer = clear.clone();
        buffer.resize(clear.len() + RTP_OVERHEAD_MAX, 0);
        let len = out.protect_rtp(&mut buffer, clear.len()).unwrap();
        let back = inbound.unprotect_rtp(&buffer[..len]).unwrap();
        assert_eq!(back[..], clear[..], "{suite}");
        assert_eq!(Packet::parse(&back).unwrap().payload, [1, 2, 3, 4, 5]);
    }
}

proptest! {
    #[test]
    fn one_changed_octet_is_enough_to_be_refused(at in 0_usize..186, change in 1_u8..=255, suite in 0_usize..4) {
        let (mut out, mut inbound) = pair(Suite::ALL[suite]);
        inbound.unprotect_rtp(&protected(&mut out, 5, 1)).unwrap();
        let mut packet = protected(&mut out, 5, 2);
        let at = at % packet.len();
        packet[at] ^= change;
        prop_assert!(inbound.unprotect_rtp(&packet).is_err());
        prop_assert!(inbound.unprotect_rtp(&protected(&mut out, 5, 3)).is_ok(), "and nothing is broken by it");
    }

    #[test]
    fn any_octets_are_refused(packet in proptest::collection::vec(any::<u8>(), 0..200), suite in 0_usize..4) {
        let mut inbound = Inbound::new(key(Suite::ALL[suite], 1)).unwrap();
        prop_assert!(inbound.unprotect_rtp(&packet).is_err());
        prop_assert!(inbound.unprotect_rtcp(&packet).is_err());
    }
}
