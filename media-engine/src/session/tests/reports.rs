//! RTCP of a session: where it goes, what it says, and what strangers may not say.

use tandem_rtp::rtcp::{self, Compound, NtpTime, ReportBlock, RtcpPacket, SenderInfo};

use super::*;

const BESIDE: &str = "192.0.2.1:4001";

fn with_rtcp(rtcp: Rtcp) -> SessionParameters {
    let mut parameters = with(AgentParameters::Echo);
    parameters.rtp.rtcp = rtcp;
    parameters
}

fn separate() -> Rtcp {
    Rtcp::Separate { remote: None }
}

impl Call {
    /// What the phone reports about us; `report` is the compound that it answers.
    fn reports_back(&self, from: &str, lost: u8) -> Vec<u8> {
        let (_, compound) = self.reports.last().unwrap();
        let Some(Ok(RtcpPacket::SenderReport { ssrc, info, .. })) = rtcp::parse(compound).next() else {
            panic!("{from} has no sender report to answer");
        };
        let block = ReportBlock {
            ssrc,
            fraction_lost: lost,
            cumulative_lost: i32::from(lost),
            highest_sequence: 0,
            jitter: 80,
            last_sender_report: info.ntp.middle(),
            delay_since_sender_report: 0,
        };
        let info = SenderInfo { ntp: NtpTime(1 << 40), timestamp: Timestamp(0), packets: 1, octets: 160 };
        let mut buffer = [0; 100];
        let mut compound = Compound::new(&mut buffer);
        compound.sender_report(Ssrc(99), &info, &[block]).unwrap();
        compound.cname(Ssrc(99), "phone").unwrap();
        let len = compound.len();
        buffer[..len].to_vec()
    }
}

fn kinds(compound: &[u8]) -> String {
    let kind = |packet| match packet {
        Ok(RtcpPacket::SenderReport { reports, .. }) => format!("SR{}", reports.iter().len()),
        Ok(RtcpPacket::ReceiverReport { reports, .. }) => format!("RR{}", reports.iter().len()),
        Ok(RtcpPacket::SourceDescription { .. }) => "SDES".to_owned(),
        Ok(RtcpPacket::ExtendedReport { .. }) => "XR".to_owned(),
        Ok(RtcpPacket::Bye { .. }) => "BYE".to_owned(),
        other => format!("{other:?}"),
    };
    rtcp::parse(compound).map(kind).collect::<Vec<_>>().join(" ")
}

#[test]
fn without_rtcp_no_report_leaves_and_none_is_read() {
    let mut call = Call::started(with(AgentParameters::Echo));
    call.says(1);
    call.pass(30_000);
    assert!(call.reports.is_empty());
    let mut out = [0; 1_472];
    call.session.close("caller");
    assert_eq!(call.session.poll_goodbye(call.now, &mut out), None);
}

#[test]
fn reports_leave_from_the_odd_port_to_the_port_beside_the_phones() {
    let mut call = Call::started(with_rtcp(separate()));
    for _ in 0..500 {
        call.says(1);
        call.pass(20);
    }
    assert!((2..=5).contains(&call.reports.len()), "{} in ten seconds", call.reports.len());
    for (transmit, compound) in &call.reports {
        assert_eq!((transmit.from, transmit.to), (Port::Rtcp, at(BESIDE)));
        assert_eq!(kinds(compound), "SR1 SDES XR");
    }
    let stats = call.session.stats(call.now);
    assert_eq!(stats.rtcp_sent, call.reports.len() as u64);
    assert!(stats.mos.is_some_and(|mos| mos > 4.0) && stats.round_trip_ms.is_none(), "{stats:?}");
    let reported = call.events().iter().filter(|event| matches!(event, Event::Report { .. })).count();
    assert_eq!(reported, call.reports.len());
}

#[test]
fn reports_of_a_multiplexed_call_share_the_port_and_follow_the_latch() {
    let mut call = Call::started(with_rtcp(Rtcp::Mux));
    call.says_from(NAT, &[1; 160]);
    call.pass(4_000);
    let (transmit, _) = call.reports[0];
    assert_eq!((transmit.from, transmit.to), (Port::Rtp, at(NAT)));
}

#[test]
fn reports_go_where_the_description_says_until_a_nat_shows_a_better_way() {
    let signalled = at("192.0.2.1:5555");
    let mut call = Call::started(with_rtcp(Rtcp::Separate { remote: Some(signalled) }));
    call.pass(4_000);
    assert_eq!(call.reports[0].0.to, signalled);
    call.says_from(NAT, &[1; 160]);
    call.pass(7_000);
    assert_eq!(call.reports.last().unwrap().0.to, at("198.51.100.9:61001"), "beside the latched source");
    let answer = call.reports_back(NAT, 0);
    call.session.handle_report(at("198.51.100.9:7000"), &answer, call.now);
    call.pass(7_000);
    assert_eq!(call.reports.last().unwrap().0.to, at("198.51.100.9:7000"), "from where it reports");
}

#[test]
fn phone_that_reports_tells_loss_jitter_and_round_trip() {
    let mut call = Call::started(with_rtcp(separate()));
    call.says(1);
    call.pass(3_100);
    let sent = call.reports.len();
    assert!(sent > 0);
    call.pass(40);
    let answer = call.reports_back(PHONE, 64);
    call.session.handle_report(at(BESIDE), &answer, call.now);
    let stats = call.session.stats(call.now);
    assert_eq!((stats.remote_lost, stats.rtcp_received), (64, 1));
    assert_eq!(stats.remote_jitter_ms, 10.0);
    assert!(stats.round_trip_ms.is_some_and(|ms| (40.0..3_100.0).contains(&ms)), "{stats:?}");
}

#[test]
fn stranger_can_neither_report_nor_draw_reports_to_itself() {
    let mut call = Call::started(with_rtcp(separate()));
    call.says(1);
    call.pass(3_100);
    let forged = call.reports_back(PHONE, 255);
    for _ in 0..10 {
        call.session.handle_report(at("203.0.113.66:4001"), &forged, call.now);
        call.session.handle_datagram(at("203.0.113.66:4001"), &forged, call.now);
    }
    call.pass(7_000);
    assert!(call.reports.iter().all(|(transmit, _)| transmit.to == at(BESIDE)));
    let stats = call.session.stats(call.now);
    assert_eq!((stats.remote_lost, stats.rtcp_received), (0, 0));
}

#[test]
fn leave_is_taken_once_and_strangers_bye_ends_nothing() {
    let mut call = Call::started(with_rtcp(separate()));
    call.says(1);
    call.pass(100);
    call.session.handle_report(
        at(BESIDE),
        &[0x80, 201, 0, 1, 0, 0, 0, 99, 0x81, 203, 0, 1, 0, 0, 0, 99],
        call.now,
    );
    assert!(!call.session.is_ended());
    call.session.close("caller");
    let mut out = [0; 1_472];
    let transmit = call.session.poll_goodbye(call.now, &mut out).unwrap();
    assert_eq!((transmit.from, transmit.to), (Port::Rtcp, at(BESIDE)));
    assert_eq!(kinds(&out[..transmit.len]), "SR1 SDES BYE");
    assert_eq!(call.session.poll_goodbye(call.now, &mut out), None);
}

#[test]
fn reports_go_on_while_the_call_is_held() {
    let mut call = Call::started(with_rtcp(separate()));
    call.says(1);
    let held = RtpParameters { direction: Direction::Inactive, rtcp: separate(), ..rtp() };
    call.session.update(held, call.now, call.now);
    call.pass(20_000);
    assert!((3..=10).contains(&call.reports.len()), "{}", call.reports.len());
    assert_eq!(kinds(&call.reports.last().unwrap().1), "RR1 SDES XR");
}

#[test]
fn delayed_offer_reports_once_it_is_answered() {
    let mut parameters = with(AgentParameters::Echo);
    parameters.rtp = RtpParameters { codec: None, remote: None, ..rtp() };
    let mut call = Call::started(parameters);
    call.pass(10_000);
    assert!(call.reports.is_empty());
    call.session.update(RtpParameters { rtcp: Rtcp::Mux, ..rtp() }, call.now, call.now);
    call.pass(4_000);
    assert!(!call.reports.is_empty());
}

#[test]
fn peer_with_our_ssrc_makes_us_change_ours_once_and_is_heard_without_a_gap() {
    let mut call = Call::started(with_rtcp(separate()));
    call.pass(5);
    let ours = call.sent[0].header.ssrc;
    let mut heard = 0;
    for n in 0..20 {
        // A mirror: what it says has the SSRC of what was said last.
        let mut packet = call.packet(0, &[n; 160]);
        packet[8..12].copy_from_slice(&call.sent.last().unwrap().header.ssrc.0.to_be_bytes());
        call.session.handle_datagram(at(PHONE), &packet, call.now);
        call.pass(20);
        heard += 1;
    }
    let changed = call.sent.last().unwrap().header.ssrc;
    assert_ne!(changed, ours);
    assert!(call.sent[2..].iter().all(|sent| sent.header.ssrc == changed), "it changes once");
    assert!(call.sent.windows(2).all(|two| two[1].header.sequence == two[0].header.sequence.next()));
    assert_eq!(call.session.stats(call.now).rtp_received, heard);
    call.pass(4_000);
    let left = rtcp::parse(&call.reports[0].1).find_map(|packet| match packet {
        Ok(RtcpPacket::Bye { ssrc, .. }) => ssrc,
        _ => None,
    });
    assert_eq!(left, Some(ours));
}

/// So many seconds in which caller and desk talk; gives the reports that left for the desk.
fn desk_reports(call: &mut Call, seconds: u32) -> Vec<(Transmit, Vec<u8>)> {
    let mut reports = Vec::new();
    let mut out = [0; 1_472];
    for sequence in 0..seconds * 50 {
        let header = Header {
            marker: false,
            payload_type: PayloadType::PCMU,
            sequence: SequenceNumber(sequence as u16),
            timestamp: Timestamp(sequence * 160),
            ssrc: Ssrc(1_000),
        };
        let mut packet = header.to_octets().to_vec();
        packet.extend_from_slice(&[0x80; 160]);
        call.session.handle_second_datagram(at(DESK), &packet, call.now);
        for _ in 0..20 {
            call.pass(1);
            while let Some(transmit) = call.session.poll_second(call.now, &mut out) {
                if tandem_rtp::packet::is_rtcp(&out[..transmit.len]) {
                    reports.push((transmit, out[..transmit.len].to_vec()));
                }
            }
        }
    }
    reports
}

const DESK: &str = "192.0.2.2:5000";

fn with_desk(rtcp: Rtcp) -> Call {
    let mut call = Call::started(with(AgentParameters::Echo));
    let parameters = RtpParameters { remote: Some(at(DESK)), rtcp, ..rtp() };
    let role = crate::session::second::Role::Bridge;
    assert!(call.session.add_second(parameters, role, [77, 0, 0], call.now + 3 * MS));
    call
}

#[test]
fn second_leg_reports_by_itself_and_says_how_it_goes() {
    for (rtcp, from, to) in [(Rtcp::Mux, Port::Rtp, DESK), (separate(), Port::Rtcp, "192.0.2.2:5001")] {
        let mut call = with_desk(rtcp);
        let reports = desk_reports(&mut call, 10);
        assert!((2..=5).contains(&reports.len()), "{} in ten seconds", reports.len());
        for (transmit, compound) in &reports {
            assert_eq!((transmit.from, transmit.to), (from, at(to)));
            assert_eq!(kinds(compound), "SR1 SDES XR");
        }
        assert!(call.reports.is_empty(), "the caller's leg has no RTCP");
        let told: Vec<Stats> = call
            .events()
            .into_iter()
            .filter_map(|event| match event {
                Event::SecondReport { stats } => Some(stats),
                _ => None,
            })
            .collect();
        assert_eq!(told.len(), reports.len());
        assert!(told.last().is_some_and(|stats| stats.rtp_received > 300 && stats.rtcp_sent > 0), "{told:?}");
    }
}

#[test]
fn second_leg_reads_reports_and_takes_its_leave_once() {
    let mut call = with_desk(separate());
    let reports = desk_reports(&mut call, 5);
    call.reports = reports;
    let answer = call.reports_back(DESK, 3);
    call.session.handle_second_report(at("203.0.113.66:4001"), &answer, call.now);
    assert_eq!(call.session.second().unwrap().stats().rtcp_received, 0, "a stranger's");
    call.session.handle_second_report(at("192.0.2.2:5001"), &answer, call.now);
    let stats = call.session.second().unwrap().stats();
    assert_eq!((stats.rtcp_received, stats.remote_lost), (1, 3));
    let mut out = [0; 1_472];
    let transmit = call.session.poll_second_goodbye(call.now, &mut out).unwrap();
    assert_eq!((transmit.from, transmit.to), (Port::Rtcp, at("192.0.2.2:5001")));
    assert!(kinds(&out[..transmit.len]).ends_with("BYE"), "{}", kinds(&out[..transmit.len]));
    assert_eq!(call.session.poll_second_goodbye(call.now, &mut out), None);
}

#[test]
fn second_leg_of_a_session_that_is_over_says_nothing_but_good_bye() {
    let mut call = with_desk(Rtcp::Mux);
    desk_reports(&mut call, 1);
    call.session.close("caller");
    let mut out = [0; 1_472];
    assert_eq!(call.session.poll_second(call.now + 20 * MS, &mut out), None);
    assert!(call.session.poll_second_goodbye(call.now, &mut out).is_some());
}
