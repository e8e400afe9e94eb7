//! Tests of the reorder stage.

use super::*;
use crate::units::{PayloadType, SequenceNumber, Ssrc, Timestamp};
use proptest::prelude::*;

fn header(sequence: ExtendedSequence) -> Header {
    Header {
        marker: false,
        payload_type: PayloadType::PCMU,
        sequence: sequence.sequence(),
        timestamp: Timestamp(u32::from(sequence.sequence().0) * 160),
        ssrc: Ssrc(1),
    }
}

fn number(n: u64) -> ExtendedSequence {
    ExtendedSequence::start(SequenceNumber(65_530)).plus(n)
}

#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What a listener gets: packet numbers, and gaps as negative counts.
struct Line {
    buffer: ReorderBuffer,
    heard: Vec<i64>,
}

impl Line {
    fn new() -> Self {
        Self { buffer: ReorderBuffer::new(160), heard: vec![] }
    }

    fn hear(&mut self, n: u64, now: Instant) -> Placement {
        self.hear_octets(n, &n.to_be_bytes(), now)
    }

    fn hear_octets(&mut self, n: u64, payload: &[u8], now: Instant) -> Placement {
        let placement = self.buffer.handle_packet(number(n), &header(number(n)), payload, now);
        if placement == Placement::AfterHeld {
            self.drain();
        }
        if matches!(placement, Placement::InOrder | Placement::AfterHeld) {
            self.heard.push(n as i64);
        }
        self.drain();
        placement
    }

    fn drain(&mut self) {
        while let Some(release) = self.buffer.poll_release() {
            match release {
                Release::Packet(held) => {
                    let n = u64::from_be_bytes(held.payload.try_into().unwrap());
                    assert_eq!(
                        (held.sequence, held.header),
                        (number(n), header(number(n))),
                        "payload and header belong together"
                    );
                    self.heard.push(n as i64);
                }
                Release::Gap { first, packets } => {
                    assert_eq!(
                        first,
                        number(self.heard.iter().fold(0, |next, &n| if n < 0 {
                            next + n.unsigned_abs()
                        } else {
                            n as u64 + 1
                        }))
                    );
                    self.heard.push(-(packets as i64));
                }
            }
        }
    }

    fn timeout(&mut self, now: Instant) {
        self.buffer.handle_timeout(now);
        self.drain();
    }
}

#[test]
fn packets_in_order_pass_at_once() {
    let (mut line, now) = (Line::new(), start());
    for n in 0..10 {
        assert_eq!(line.hear(n, now), Placement::InOrder);
        assert_eq!(line.buffer.poll_timeout(), None);
    }
    assert_eq!(line.heard, (0..10).collect::<Vec<_>>());
}

#[test]
fn swapped_packets_come_out_in_order_without_waiting() {
    let (mut line, now) = (Line::new(), start());
    line.hear(0, now);
    assert_eq!(line.hear(2, now), Placement::Held);
    assert_eq!(line.heard, [0]);
    assert_eq!(line.hear(1, now), Placement::InOrder);
    assert_eq!(line.heard, [0, 1, 2]);
    assert_eq!(line.buffer.poll_timeout(), None);
}

#[test]
fn gap_is_given_up_after_the_wait_and_the_late_packet_is_dropped() {
    let (mut line, now) = (Line::new(), start());
    line.hear(0, now);
    line.hear(2, now + ms(20));
    line.hear(3, now + ms(40));
    assert_eq!(line.buffer.poll_timeout(), Some(now + ms(60)));
    line.timeout(now + ms(59));
    assert_eq!(line.heard, [0]);
    line.timeout(now + ms(60));
    assert_eq!(line.heard, [0, -1, 2, 3]);
    assert_eq!(line.hear(1, now + ms(61)), Placement::Late);
    assert_eq!(line.heard, [0, -1, 2, 3]);
    let stats = line.buffer.stats();
    assert_eq!((stats.in_order, stats.released, stats.missing, stats.late), (1, 2, 1, 1));
}

#[test]
fn second_gap_has_a_wait_of_its_own() {
    let (mut line, now) = (Line::new(), start());
    line.hear(0, now);
    line.hear(2, now + ms(10));
    line.hear(5, now + ms(30));
    assert_eq!(line.buffer.poll_timeout(), Some(now + ms(50)));
    line.timeout(now + ms(50));
    assert_eq!(line.heard, [0, -1, 2]);
    assert_eq!(line.buffer.poll_timeout(), Some(now + ms(70)));
    line.timeout(now + ms(70));
    assert_eq!(line.heard, [0, -1, 2, -2, 5]);
}

#[test]
fn losses_that_nobody_fills_shorten_the_wait_to_its_floor() {
    let (mut line, mut now) = (Line::new(), start());
    for n in 0..200 {
        now += ms(20);
        if n % 4 != 3 {
            line.hear(n, now);
        }
        line.timeout(now);
    }
    let wait = line.buffer.wait();
    assert!(wait >= MIN_WAIT && wait < MIN_WAIT + ms(1), "{wait:?}");
    line.hear(201, now);
    assert_eq!(line.buffer.poll_timeout(), Some(now + wait));
}

#[test]
fn packet_after_its_gap_was_given_up_lengthens_the_wait_so_that_the_next_is_heard() {
    let (mut line, mut now) = (Line::new(), start());
    let late_by = |line: &mut Line, now: &mut Instant, first: u64, late_ms: u64| {
        line.hear(first, *now);
        line.hear(first + 2, *now);
        line.hear(first + 3, *now + ms(20));
        line.timeout(*now + ms(late_ms - 1));
        line.hear(first + 1, *now + ms(late_ms));
        *now += ms(100);
    };
    late_by(&mut line, &mut now, 0, 45);
    assert_eq!(line.buffer.stats().late, 1);
    assert_eq!(line.buffer.wait(), ms(50), "what it took and a margin");
    late_by(&mut line, &mut now, 4, 45);
    assert_eq!((line.buffer.stats().late, line.buffer.stats().missing), (1, 1), "the second was waited for");
    late_by(&mut line, &mut now, 8, 200);
    assert_eq!(line.buffer.wait(), MAX_WAIT, "however late");
}

#[test]
fn full_ring_gives_up_the_oldest_gap_at_once() {
    let (mut line, now) = (Line::new(), start());
    line.hear(0, now);
    for n in 2..2 + MAX_HELD as u64 - 1 {
        assert_eq!(line.hear(n, now), Placement::Held);
    }
    assert_eq!(line.heard, [0]);
    line.hear(2 + MAX_HELD as u64 - 1, now);
    assert_eq!(line.heard, [0, -1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(line.buffer.held(), 0);
}

#[test]
fn loss_of_more_than_the_ring_is_not_waited_for() {
    let (mut line, now) = (Line::new(), start());
    line.hear(0, now);
    line.hear(50, now);
    assert_eq!(line.heard, [0, -49, 50]);
    assert_eq!(line.hear(51, now), Placement::InOrder);
}

#[test]
fn early_packet_that_comes_twice_is_held_once() {
    let (mut line, now) = (Line::new(), start());
    line.hear(0, now);
    line.hear(2, now);
    assert_eq!(line.hear(2, now), Placement::Duplicate);
    line.hear(1, now);
    assert_eq!(line.heard, [0, 1, 2]);
}

#[test]
fn early_packet_larger_than_a_place_comes_out_after_all_that_is_before_it() {
    let (mut line, now) = (Line::new(), start());
    let large = [0; 161];
    line.hear(0, now);
    line.hear(2, now);
    line.hear(6, now);
    assert_eq!(line.hear_octets(5, &large, now), Placement::AfterHeld);
    assert_eq!(line.heard, [0, -1, 2, -2, 5, 6]);
    assert_eq!(line.hear(4, now), Placement::Late);
    assert_eq!(line.hear_octets(7, &large, now), Placement::InOrder, "size matters only for what is early");
    assert_eq!(line.buffer.stats().missing, 3);
    assert_eq!(line.buffer.held(), 0);
}

#[test]
fn reset_forgets_what_is_held_and_takes_any_number_next() {
    let (mut line, now) = (Line::new(), start());
    line.hear(10, now);
    line.hear(12, now);
    line.buffer.reset();
    assert_eq!(line.buffer.poll_timeout(), None);
    assert_eq!(line.hear(3, now), Placement::InOrder);
    assert_eq!(line.heard, [10, 3]);
}

#[test]
fn undrained_ring_refuses_instead_of_overwriting() {
    let (mut buffer, now) = (ReorderBuffer::new(160), start());
    buffer.handle_packet(number(0), &header(number(0)), &[], now);
    let placements: Vec<_> =
        (2..12).map(|n| buffer.handle_packet(number(n), &header(number(n)), &[], now)).collect();
    assert_eq!(placements.iter().filter(|p| **p == Placement::Held).count(), MAX_HELD);
    assert_eq!(buffer.stats().refused, 2);
}

proptest! {
    /// Any shuffle, loss and doubling: what comes out ascends, gaps and packets cover every number once, nothing waits
    /// longer than the wait, and every packet that was in time is heard.
    #[test]
    fn output_is_in_order_and_complete(fates in proptest::collection::vec((0_u8..12, 0_u64..120), 1..300)) {
        let begin = start();
        let mut deliveries: Vec<(u64, u64)> = vec![(0, 0)];
        for (index, &(fate, delay_ms)) in fates.iter().enumerate() {
            let n = index as u64 + 1;
            let sent = n * 20;
            match fate {
                0 => {}
                1 => deliveries.extend([(sent + delay_ms, n), (sent + delay_ms + 5, n)]),
                2..=4 => deliveries.push((sent + delay_ms, n)),
                _ => deliveries.push((sent, n)),
            }
        }
        deliveries.sort();
        let mut line = Line::new();
        for &(at, n) in &deliveries {
            let now = begin + ms(at);
            while let Some(deadline) = line.buffer.poll_timeout().filter(|deadline| *deadline <= now) {
                line.timeout(deadline);
                prop_assert!(line.buffer.poll_timeout().is_none_or(|next| next > deadline), "a deadline must not repeat");
            }
            let oldest_wait = line.buffer.poll_timeout();
            prop_assert!(oldest_wait.is_none_or(|deadline| deadline > now && deadline <= now + MAX_WAIT));
            prop_assert!((MIN_WAIT..=MAX_WAIT).contains(&line.buffer.wait()));
            line.hear(n, now);
        }
        line.timeout(begin + ms(1_000_000));
        prop_assert_eq!(line.buffer.held(), 0);
        let mut next = 0;
        for &heard in &line.heard {
            if heard < 0 {
                next += heard.unsigned_abs();
            } else {
                prop_assert_eq!(heard as u64, next);
                next += 1;
            }
        }
        let stats = line.buffer.stats();
        let packets = line.heard.iter().filter(|n| **n >= 0).count() as u64;
        prop_assert_eq!(stats.in_order + stats.released, packets);
        prop_assert_eq!(stats.in_order + stats.released + stats.late + stats.duplicate, deliveries.len() as u64);
        prop_assert_eq!(stats.missing + packets, next);
        prop_assert_eq!(stats.refused, 0);
    }

    /// A refused packet never stops the stream: whatever came before, of whatever size, packets in a row
    /// are heard, and what is heard ascends.
    #[test]
    fn refused_packet_never_stops_the_stream(
        steps in proptest::collection::vec((0_u64..12, any::<bool>()), 0..60)
    ) {
        let (mut line, now) = (Line::new(), start());
        let large = [0; 161];
        let mut highest = 0;
        for (ahead, is_large) in steps {
            highest += ahead;
            let small = highest.to_be_bytes();
            let payload = if is_large { &large[..] } else { &small[..] };
            line.hear_octets(highest, payload, now);
        }
        // All of one size that cannot be held: the worst there is.
        let before = line.heard.len();
        for n in 1..=20 {
            line.hear_octets(highest + n, &large, now);
        }
        let heard: Vec<i64> = line.heard[before..].iter().copied().filter(|n| *n > highest as i64).collect();
        prop_assert_eq!(heard, (1..=20).map(|n| (highest + n) as i64).collect::<Vec<_>>());
        prop_assert!(line.heard.iter().filter(|n| **n >= 0).is_sorted());
    }
}
