//! Two ends that report to each other.

use super::*;
use crate::packet::Packet;
use crate::receiver::Verdict;
use crate::units::{PayloadType, SequenceNumber};

const MEDIA: Media = Media {
    clock: ClockRate::HZ_8000,
    ptime: Ptime::MS_20,
    impairment: Impairment::G711_CONCEALED,
    octets_a_second: 10_000,
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct End {
    reports: Reports,
    sender: Sender,
    receiver: Receiver,
    reorder: ReorderBuffer,
}

impl End {
    fn new(ssrc: u32, now: Instant) -> Self {
        let wall = WallClock::new(now, Duration::from_secs(1_700_000_000));
        Self {
            reports: Reports::new(wall, u64::from(ssrc)),
            sender: Sender::new(Ssrc(ssrc), PayloadType::PCMU, SequenceNumber(0), Timestamp(0)),
            receiver: Receiver::new(ClockRate::HZ_8000),
            reorder: ReorderBuffer::new(160),
        }
    }

    fn sends(&mut self) -> Vec<u8> {
        let mut datagram = vec![0; 172];
        self.sender.write_packet(160, &[0xFF; 160], &mut datagram).unwrap();
        datagram
    }

    fn hears(&mut self, datagram: &[u8], now: Instant) {
        let packet = Packet::parse(datagram).unwrap();
        let verdict = self.receiver.handle_packet(&packet.header, packet.payload.len(), now);
        let Verdict::Accepted { sequence, .. } = verdict else { return };
        self.reorder.handle_packet(sequence, &packet.header, packet.payload, now);
        self.reports.handle_in_order(1);
    }

    fn reports(&mut self, now: Instant) -> Vec<u8> {
        let mut buffer = [0; REPORT_LEN_MAX];
        let Self { reports, sender, receiver, reorder } = self;
        let len = reports.write_report(&mut buffer, sender, Timestamp(1), receiver, reorder, &MEDIA, now);
        buffer[..len.unwrap()].to_vec()
    }

    fn is_told(&mut self, datagram: &[u8], now: Instant) {
        self.reports.handle_datagram(
            datagram,
            self.sender.ssrc(),
            ClockRate::HZ_8000,
            &mut self.receiver,
            now,
        );
    }
}

#[allow(clippy::disallowed_methods)]
fn pair() -> (End, End, Instant) {
    let now = Instant::now();
    (End::new(1, now), End::new(2, now), now)
}

fn kinds(datagram: &[u8]) -> Vec<&'static str> {
    let name = |packet: RtcpPacket<'_>| match packet {
        RtcpPacket::SenderReport { .. } => "SR",
        RtcpPacket::ReceiverReport { .. } => "RR",
        RtcpPacket::SourceDescription { .. } => "SDES",
        RtcpPacket::ExtendedReport { .. } => "XR",
        RtcpPacket::Bye { .. } => "BYE",
        RtcpPacket::Other { .. } => "other",
    };
    rtcp::parse(datagram).map(|packet| name(packet.unwrap())).collect()
}

#[test]
fn whoever_sent_reports_as_sender_and_whoever_only_heard_as_receiver() {
    let (mut a, mut b, now) = pair();
    let packet = a.sends();
    b.hears(&packet, now);
    assert_eq!(kinds(&a.reports(now)), ["SR", "SDES"]);
    assert_eq!(kinds(&b.reports(now)), ["RR", "SDES", "XR"]);
    assert_eq!(kinds(&a.reports(now)), ["RR", "SDES"], "nothing was sent since the last report");
}

#[test]
fn round_trip_loss_and_jitter_come_back_to_the_sender() {
    let (mut a, mut b, mut now) = pair();
    for n in 0..100 {
        now += ms(20);
        let packet = a.sends();
        if n % 10 != 3 {
            b.hears(&packet, now);
        }
    }
    let report = a.reports(now);
    now += ms(40);
    b.is_told(&report, now);
    now += ms(2_000);
    let answer = b.reports(now);
    now += ms(60);
    a.is_told(&answer, now);
    let peer = a.reports.peer();
    let round_trip = peer.round_trip.unwrap();
    assert!((ms(99)..ms(102)).contains(&round_trip), "{round_trip:?}");
    assert_eq!(peer.lost, 10);
    assert!((peer.fraction_lost - 0.1).abs() < 0.01);
    assert!(peer.mos_cq.is_some());
    let score = a.reports.score(&MEDIA);
    let instant = End::new(3, now).reports.score(&MEDIA);
    assert!(score.mos_cq < instant.mos_cq, "the delay costs something");
}

#[test]
fn blocks_about_others_and_stray_octets_change_nothing() {
    let (mut a, mut b, now) = pair();
    let mut stranger = End::new(77, now);
    let packet = stranger.sends();
    b.hears(&packet, now);
    let about_another = b.reports(now);
    a.is_told(&about_another, now);
    assert_eq!(*a.reports.peer(), PeerView::default());
    for garbage in [&b""[..], &[0x80, 200, 0, 9], &[0x81, 203, 0, 1, 0, 0, 0, 1], &about_another[..50]] {
        a.is_told(garbage, now);
    }
    assert_eq!((a.reports.stats().received, a.reports.stats().malformed), (1, 4));
}

#[test]
fn leave_is_taken_at_once_and_nothing_is_due_after_it() {
    let (mut a, mut b, now) = pair();
    a.reports.begin(&MEDIA, now);
    assert!(a.reports.poll_timeout().is_some());
    let packet = a.sends();
    b.hears(&packet, now);
    let mut buffer = [0; REPORT_LEN_MAX];
    let len = a.reports.write_bye(&mut buffer, &a.sender, Timestamp(0), &mut a.receiver, now).unwrap();
    assert_eq!(kinds(&buffer[..len]), ["SR", "SDES", "BYE"]);
    assert_eq!(a.reports.poll_timeout(), None);
    b.is_told(&buffer[..len], now);
    assert!(b.reports.has_peer_left());
}

#[test]
fn ssrc_that_was_given_up_says_bye_with_the_next_report() {
    let (mut a, _, now) = pair();
    a.reports.begin(&MEDIA, now);
    a.reports.handle_ssrc_change(Ssrc(99), now, &MEDIA);
    assert_eq!(kinds(&a.reports(now)), ["RR", "SDES", "BYE"]);
    assert_eq!(kinds(&a.reports(now)), ["RR", "SDES"]);
}

#[test]
fn longest_report_fits_the_length_that_is_promised() {
    let (mut a, mut b, now) = pair();
    let (one, other) = (a.sends(), b.sends());
    a.hears(&other, now);
    b.hears(&one, now);
    a.reports.handle_ssrc_change(Ssrc(99), now, &MEDIA);
    let report = a.reports(now);
    assert_eq!(kinds(&report), ["SR", "SDES", "XR", "BYE"]);
    assert_eq!(report.len(), REPORT_LEN_MAX);
}

#[test]
fn two_sessions_have_two_canonical_names() {
    let (a, b, _) = pair();
    assert_ne!(a.reports.rest.cname, b.reports.rest.cname);
    assert!(a.reports.rest.cname.is_ascii());
}
