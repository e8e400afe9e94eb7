//! Tests of acceptance, loss, jitter and change of SSRC.

use super::*;
use crate::units::PayloadType;
use proptest::prelude::*;

const CLOCK: ClockRate = ClockRate::HZ_8000;
const A: u32 = 0xA;
const B: u32 = 0xB;

fn header(ssrc: u32, sequence: u16) -> Header {
    Header {
        marker: false,
        payload_type: PayloadType::PCMU,
        sequence: SequenceNumber(sequence),
        timestamp: Timestamp(u32::from(sequence).wrapping_mul(160)),
        ssrc: Ssrc(ssrc),
    }
}

/// A receiver with a clock that moves 20 ms a packet.
struct Line {
    receiver: Receiver,
    now: Instant,
}

impl Line {
    #[allow(clippy::disallowed_methods)]
    fn new() -> Self {
        Self { receiver: Receiver::new(CLOCK), now: Instant::now() }
    }

    fn hear(&mut self, ssrc: u32, sequence: u16) -> Verdict {
        self.now += Duration::from_millis(20);
        self.receiver.handle_packet(&header(ssrc, sequence), 160, self.now)
    }

    fn hear_all(&mut self, ssrc: u32, sequences: impl IntoIterator<Item = u16>) {
        for sequence in sequences {
            self.hear(ssrc, sequence);
        }
    }
}

fn is_started(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Accepted { started: true, .. })
}

fn is_continued(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Accepted { started: false, .. })
}

#[test]
fn first_packet_is_accepted_at_once() {
    let mut line = Line::new();
    assert!(is_started(line.hear(A, 7)));
    assert!(is_continued(line.hear(A, 8)));
    assert_eq!(line.receiver.ssrc(), Some(Ssrc(A)));
    let stats = line.receiver.stats();
    assert_eq!((stats.received, stats.octets, stats.lost, stats.restarts), (2, 320, 0, 0));
}

#[test]
fn lost_late_and_repeated_packets_are_counted_apart() {
    let mut line = Line::new();
    line.hear_all(A, [10, 11, 14, 13, 14, 16]);
    let stats = line.receiver.stats();
    assert_eq!((stats.received, stats.lost, stats.reordered, stats.duplicate), (5, 2, 1, 1));
}

#[test]
fn numbers_go_on_over_the_wrap() {
    let mut line = Line::new();
    let Verdict::Accepted { sequence: first, .. } = line.hear(A, 65_534) else { panic!("refused") };
    line.hear(A, 65_535);
    line.hear(A, 1);
    let Verdict::Accepted { sequence, .. } = line.hear(A, 0) else { panic!("refused") };
    assert_eq!(sequence.since(first), 2);
    assert_eq!(line.receiver.stats().lost, 0);
    assert_eq!(line.receiver.stats().reordered, 1);
    assert_eq!(line.receiver.report_block(line.now).unwrap().highest_sequence, 0x1_0001);
}

#[test]
fn packet_from_before_the_first_one_belongs_to_the_stream() {
    let mut line = Line::new();
    line.hear(A, 0);
    assert!(is_continued(line.hear(A, 65_535)));
    let stats = line.receiver.stats();
    assert_eq!((stats.received, stats.lost, stats.reordered), (2, 0, 1));
}

#[test]
fn one_packet_far_off_is_refused_and_two_in_a_row_begin_anew() {
    let mut line = Line::new();
    line.hear_all(A, 100..110);
    assert_eq!(line.hear(A, 40_000), Verdict::Rejected(Rejection::SequenceJump));
    assert!(is_continued(line.hear(A, 110)), "a stray packet changes nothing");
    assert_eq!(line.hear(A, 40_001), Verdict::Rejected(Rejection::SequenceJump), "not in a row");
    assert!(is_started(line.hear(A, 40_002)));
    assert!(is_continued(line.hear(A, 40_003)));
    let stats = line.receiver.stats();
    assert_eq!((stats.restarts, stats.lost, stats.rejected_jump), (1, 0, 2));
}

#[test]
fn foreign_ssrc_between_packets_of_the_old_one_is_never_followed() {
    let mut line = Line::new();
    line.hear_all(A, 0..10);
    for n in 0..100 {
        assert_eq!(line.hear(B, 500 + n), Verdict::Rejected(Rejection::ForeignSsrc));
        assert!(is_continued(line.hear(A, 10 + n)));
    }
    assert_eq!(line.receiver.ssrc(), Some(Ssrc(A)));
    assert_eq!(line.receiver.stats().rejected_ssrc, 100);
}

#[test]
fn new_ssrc_is_followed_after_three_packets_in_a_row() {
    let mut line = Line::new();
    line.hear_all(A, 0..10);
    assert_eq!(line.hear(B, 900), Verdict::Rejected(Rejection::ForeignSsrc));
    assert_eq!(line.hear(B, 901), Verdict::Rejected(Rejection::ForeignSsrc));
    assert!(is_started(line.hear(B, 902)));
    assert!(is_continued(line.hear(B, 903)));
    assert_eq!(line.hear(A, 10), Verdict::Rejected(Rejection::ForeignSsrc));
    assert_eq!(line.receiver.stats().restarts, 1);
}

#[test]
fn new_ssrc_is_followed_at_once_after_a_silence() {
    let mut line = Line::new();
    line.hear_all(A, 0..10);
    line.now += SSRC_SILENCE;
    assert!(is_started(line.hear(B, 900)));
}

#[test]
fn announced_ssrc_is_followed_with_its_first_packet_and_no_other() {
    let mut line = Line::new();
    line.hear_all(A, 0..10);
    line.receiver.announce(Ssrc(B));
    assert_eq!(line.hear(0xC, 5), Verdict::Rejected(Rejection::ForeignSsrc));
    assert!(is_continued(line.hear(A, 10)));
    assert!(is_started(line.hear(B, 900)));
}

#[test]
fn rearmed_receiver_takes_the_next_ssrc_at_once_and_keeps_its_totals() {
    let mut line = Line::new();
    line.hear_all(A, [0, 1, 3]);
    line.receiver.rearm(CLOCK);
    assert!(is_started(line.hear(B, 900)));
    let stats = line.receiver.stats();
    assert_eq!((stats.received, stats.lost), (4, 1));
}

#[test]
fn steady_stream_has_no_jitter_and_a_shaky_one_has_what_rfc_3550_says() {
    let mut line = Line::new();
    line.hear_all(A, 0..200);
    assert_eq!(line.receiver.stats().jitter_ms, 0.0);
    // Every second packet 10 ms late: the transit differs by 10 ms each time, so the estimate converges to 10 ms.
    for n in 200..600_u16 {
        line.now += Duration::from_millis(20);
        let late = Duration::from_millis(if n % 2 == 0 { 10 } else { 0 });
        line.receiver.handle_packet(&header(A, n), 160, line.now + late);
    }
    let jitter_ms = line.receiver.stats().jitter_ms;
    assert!((jitter_ms - 10.0).abs() < 0.2, "{jitter_ms}");
}

#[test]
fn repeated_timestamps_of_a_telephone_event_are_no_jitter() {
    let mut line = Line::new();
    line.hear_all(A, 0..50);
    for n in 50..60 {
        line.now += Duration::from_millis(20);
        let event = Header { timestamp: Timestamp(50 * 160), ..header(A, n) };
        line.receiver.handle_packet(&event, 4, line.now);
    }
    line.hear_all(A, 60..100);
    assert_eq!(line.receiver.stats().jitter_ms, 0.0);
}

#[test]
fn clock_that_is_set_anew_is_no_jitter() {
    let mut line = Line::new();
    line.hear_all(A, 0..50);
    for n in 50..100 {
        line.now += Duration::from_millis(20);
        let moved = Header { timestamp: Timestamp(0x8000_0000 + 160 * n), ..header(A, n as u16) };
        line.receiver.handle_packet(&moved, 160, line.now);
    }
    assert_eq!(line.receiver.stats().jitter_ms, 0.0);
}

#[test]
fn report_block_tells_loss_since_the_last_one_and_the_delay_of_the_sender_report() {
    let mut line = Line::new();
    assert_eq!(line.receiver.report_block(line.now), None);
    line.hear_all(A, (0..100).filter(|n| n % 4 != 3));
    line.receiver.handle_sender_report(Ssrc(A), NtpTime(0x1111_2222_3333_4444), line.now);
    let report = line.receiver.report_block(line.now + Duration::from_millis(1_500)).unwrap();
    assert_eq!(
        (report.ssrc, report.fraction_lost, report.cumulative_lost),
        (Ssrc(A), (24 * 256 / 99) as u8, 24)
    );
    assert_eq!((report.highest_sequence, report.last_sender_report), (98, 0x2222_3333));
    assert_eq!(report.delay_since_sender_report, 98_304);
    line.hear_all(A, 99..199);
    let report = line.receiver.report_block(line.now).unwrap();
    assert_eq!((report.fraction_lost, report.cumulative_lost), (0, 24));
}

#[test]
fn duplicates_make_the_loss_of_a_report_negative() {
    let mut line = Line::new();
    line.hear_all(A, [0, 1, 1, 1]);
    assert_eq!(line.receiver.report_block(line.now).unwrap().cumulative_lost, -2);
}

proptest! {
    /// Any network that loses, doubles and shuffles a little: each packet is told once, and the sums are right.
    #[test]
    fn counters_add_up(start: u16, fates in proptest::collection::vec((0_u8..10, 0_usize..8), 1..400)) {
        let mut deliveries: Vec<(usize, usize)> = vec![];
        for (index, &(fate, delay)) in fates.iter().enumerate() {
            match fate {
                0 => {}
                1 => deliveries.extend([(index + delay, index), (index + delay + 3, index)]),
                _ => deliveries.push((index + delay, index)),
            }
        }
        deliveries.sort();
        let mut line = Line::new();
        let (mut accepted, mut duplicates) = (std::collections::BTreeSet::new(), 0);
        for &(_, index) in &deliveries {
            match line.hear(A, start.wrapping_add(index as u16)) {
                Verdict::Accepted { sequence, .. } => prop_assert!(accepted.insert(sequence), "told twice"),
                Verdict::Duplicate => duplicates += 1,
                Verdict::Rejected(rejection) => prop_assert!(false, "{:?}", rejection),
            }
        }
        let stats = line.receiver.stats();
        prop_assert_eq!(stats.received, accepted.len() as u64);
        prop_assert_eq!(stats.duplicate, duplicates);
        prop_assert_eq!(stats.received + stats.duplicate, deliveries.len() as u64);
        if let (Some(first), Some(last)) = (accepted.first(), accepted.last()) {
            prop_assert_eq!(stats.lost + stats.received, last.since(*first) + 1);
        }
    }

    #[test]
    fn no_stream_of_headers_makes_it_panic(packets in proptest::collection::vec((0_u32..3, any::<u16>(), any::<u32>(), 0_u64..2_000), 0..300)) {
        let mut line = Line::new();
        for (ssrc, sequence, timestamp, gap_ms) in packets {
            line.now += Duration::from_millis(gap_ms);
            let header = Header { timestamp: Timestamp(timestamp), ..header(ssrc, sequence) };
            line.receiver.handle_packet(&header, 160, line.now);
            line.receiver.report_block(line.now);
            line.receiver.stats();
        }
    }
}
