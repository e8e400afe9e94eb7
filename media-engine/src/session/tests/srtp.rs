//! Calls with SRTP: nothing leaves in the clear, and nobody without the key is heard.

use tandem_rtp::srtp::{Inbound, MasterKey, Outbound, RTP_OVERHEAD_MAX, Suite};

use super::*;
use crate::leg::rtp::SrtpKeys;

fn key(suite: Suite, seed: u8) -> MasterKey {
    MasterKey::new(suite, &vec![seed; suite.master_len()]).unwrap()
}

fn keys(suite: Suite) -> SrtpKeys {
    SrtpKeys { local: key(suite, 1), remote: key(suite, 2) }
}

fn protected(suite: Suite) -> (Call, Outbound) {
    let mut parameters = with(AgentParameters::Echo);
    parameters.rtp.srtp = Some(keys(suite));
    parameters.rtp.rtcp = Rtcp::Mux;
    let mut call = Call::started(parameters);
    call.phone = Some(Inbound::new(key(suite, 1)).unwrap());
    (call, Outbound::new(key(suite, 2)).unwrap())
}

impl Call {
    fn says_protected(&mut self, phone: &mut Outbound, from: &str, code: u8) {
        let mut packet = self.packet(0, &[code; 160]);
        self.timestamp = self.timestamp.wrapping_add(160);
        packet.resize(172 + RTP_OVERHEAD_MAX, 0);
        let len = phone.protect_rtp(&mut packet, 172).unwrap();
        self.session.handle_datagram(at(from), &packet[..len], self.now);
    }
}

#[test]
fn every_suite_carries_a_call_both_ways() {
    for suite in Suite::ALL {
        let (mut call, mut phone) = protected(suite);
        call.sequence = 100;
        for number in 0..100 {
            call.says_protected(&mut phone, PHONE, number);
            call.pass(20);
        }
        assert_eq!(call.payloads(), (0..100).collect::<Vec<u8>>(), "{suite}");
        call.pass(4_000);
        assert!(!call.reports.is_empty(), "and its reports are protected");
    }
}

#[test]
fn nothing_in_the_clear_or_under_another_key_is_heard_or_latched() {
    let (mut call, mut phone) = protected(Suite::AeadAes128Gcm);
    let mut stranger = Outbound::new(key(Suite::AeadAes128Gcm, 9)).unwrap();
    call.sequence = 100;
    call.says_from(NAT, &[1; 160]);
    call.says_protected(&mut stranger, NAT, 2);
    call.pass(20);
    assert!(call.events().is_empty(), "no media has started");
    assert_eq!(call.sent[0].to, at(PHONE));
    call.says_protected(&mut phone, NAT, 3);
    call.pass(40);
    assert_eq!(call.sent.last().unwrap().to, at(NAT), "who proves itself is followed");
    assert_eq!(call.session.stats(call.now).srtp_rejected, 2);
}

#[test]
fn first_sequence_number_leaves_room_before_the_wrap() {
    for seed in 0..50 {
        let mut parameters = with(AgentParameters::Echo);
        parameters.seed = seed * 0x1234_5678_9ABC;
        let mut call = Call::started(parameters);
        call.pass(5);
        assert!(call.sent[0].header.sequence.0 < 1 << 15);
    }
}

#[test]
fn reinvite_with_another_key_of_the_peer_goes_on_without_a_gap() {
    let suite = Suite::AesCm128HmacSha1_80;
    let (mut call, mut old) = protected(suite);
    call.sequence = 100;
    call.says_protected(&mut old, PHONE, 1);
    call.pass(20);
    let changed = SrtpKeys { remote: key(suite, 7), ..keys(suite) };
    let parameters = RtpParameters { srtp: Some(changed), rtcp: Rtcp::Mux, ..rtp() };
    call.session.update(parameters, call.now, call.now);
    call.says_protected(&mut old, PHONE, 2);
    call.pass(20);
    let mut new = Outbound::new(key(suite, 7)).unwrap();
    for number in 3..10 {
        call.says_protected(&mut new, PHONE, number);
        call.pass(20);
    }
    assert_eq!(call.payloads(), (1..10).collect::<Vec<u8>>());
    assert_eq!(call.session.stats(call.now).srtp_rejected, 0);
}

#[test]
fn keys_press_through_srtp_as_well() {
    let (mut call, mut phone) = protected(Suite::AeadAes256Gcm);
    call.sequence = 100;
    for n in 1..=4u16 {
        let [high, low] = (160 * n).to_be_bytes();
        let end = if n > 2 { 0x80 } else { 0 };
        let mut packet = call.packet(101, &[5, end | 10, high, low]);
        packet.resize(16 + RTP_OVERHEAD_MAX, 0);
        let len = phone.protect_rtp(&mut packet, 16).unwrap();
        call.session.handle_datagram(at(PHONE), &packet[..len], call.now);
    }
    let keys = call.events().into_iter().filter(|event| matches!(event, Event::Dtmf { digit: '5', .. }));
    assert_eq!(keys.count(), 1);
}
