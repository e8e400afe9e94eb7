//! Tests of telephone-events: our own sender into our own detector through networks that lose, double and shuffle.

use super::*;
use proptest::prelude::*;

const CLOCK: ClockRate = ClockRate::HZ_8000;
const PTIME_TICKS: u32 = 160;
/// The clocks of telephone-events beside G.711, wide-band L16 and Opus.
const CLOCKS: [ClockRate; 3] = [ClockRate::HZ_8000, ClockRate::HZ_16000, ClockRate::HZ_48000];

#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

fn digit(key: char) -> Digit {
    Digit::from_char(key).unwrap()
}

fn payload(key: char, end: bool, duration: u16) -> [u8; EVENT_LEN] {
    TelephoneEvent { event: digit(key).event(), end, volume: 10, duration }.to_octets()
}

/// Packets of a dialled string with the tick at which each is sent.
fn dial(keys: &str, key_ms: u32) -> Vec<(u32, EventPacket)> {
    dial_at(CLOCK, keys, key_ms)
}

fn dial_at(clock: ClockRate, keys: &str, key_ms: u32) -> Vec<(u32, EventPacket)> {
    let ptime_ticks = clock.hz() / 50;
    let mut sender = EventSender::with_lengths(clock, key_ms, 60);
    for key in keys.chars() {
        sender.push(digit(key)).unwrap();
    }
    let mut packets = vec![];
    let mut time = 0;
    while !sender.is_idle() {
        packets.extend(
            sender.next_packet(Timestamp(5_000).plus(time), ptime_ticks).map(|packet| (time, packet)),
        );
        time += ptime_ticks;
    }
    packets
}

/// What a detector makes of packets, each with its time of arrival in ticks, and of the silence after them.
fn detect(packets: &[(u32, EventPacket)]) -> Vec<DigitEvent> {
    detect_at(CLOCK, packets)
}

fn detect_at(clock: ClockRate, packets: &[(u32, EventPacket)]) -> Vec<DigitEvent> {
    let begin = start();
    let mut detector = EventDetector::new(clock);
    let mut events = vec![];
    for (time, packet) in packets {
        let now = begin + Duration::from_micros(u64::from(*time) * 1_000_000 / u64::from(clock.hz()));
        detector.handle_timeout(now);
        events.extend(std::iter::from_fn(|| detector.poll_event()));
        detector.handle_packet(packet.timestamp, &packet.payload, now);
        events.extend(std::iter::from_fn(|| detector.poll_event()));
    }
    detector.handle_timeout(begin + Duration::from_secs(3_600));
    events.extend(std::iter::from_fn(|| detector.poll_event()));
    assert_eq!(detector.poll_timeout(), None);
    events
}

fn ended(events: &[DigitEvent]) -> String {
    let digits = events.iter().filter_map(|event| match event {
        DigitEvent::Ended { digit, .. } => Some(digit.as_char()),
        DigitEvent::Began { .. } => None,
    });
    digits.collect()
}

fn began(events: &[DigitEvent]) -> String {
    let digits = events.iter().filter_map(|event| match event {
        DigitEvent::Began { digit } => Some(digit.as_char()),
        DigitEvent::Ended { .. } => None,
    });
    digits.collect()
}

#[test]
fn key_of_100_ms_is_five_packets_and_two_more_ends() {
    let packets = dial("5", 100);
    assert_eq!(packets.len(), 7);
    for (n, (_, packet)) in packets.iter().enumerate() {
        let event = TelephoneEvent::parse(&packet.payload).unwrap();
        assert_eq!(packet.timestamp, Timestamp(5_000), "all packets of a key have its begin");
        assert_eq!(packet.marker, n == 0);
        assert_eq!(event.end, n >= 4);
        assert_eq!(event.duration, (160 * (n as u16 + 1)).min(800));
        assert_eq!((event.event, event.volume), (5, 10));
    }
}

#[test]
fn keys_follow_each_other_with_a_pause() {
    let packets = dial("12", 100);
    let second = packets.iter().find(|(_, packet)| packet.payload[0] == 2).unwrap();
    let last_of_first = packets.iter().rfind(|(_, packet)| packet.payload[0] == 1).unwrap();
    assert_eq!(second.0 - last_of_first.0, 4 * PTIME_TICKS, "three packets of sound between them");
    assert_eq!(second.1.timestamp, Timestamp(5_000).plus(second.0));
}

#[test]
fn every_key_is_told_once_with_its_duration() {
    let keys = "0123456789*#ABCD";
    let events = detect(&dial(keys, 80));
    assert_eq!((began(&events), ended(&events)), (keys.to_owned(), keys.to_owned()));
    for event in events {
        if let DigitEvent::Ended { duration_ms, .. } = event {
            assert_eq!(duration_ms, 80);
        }
    }
}

#[test]
fn any_single_packet_of_a_key_is_enough() {
    let packets = dial("7", 100);
    for packet in packets {
        assert_eq!(ended(&detect(&[packet])), "7");
    }
}

#[test]
fn keys_of_40_ms_are_told_at_every_clock_when_only_their_ends_arrive() {
    for clock in CLOCKS {
        let packets = dial_at(clock, "11223344556677889900", 40);
        let ends: Vec<_> = packets
            .into_iter()
            .filter(|(_, packet)| packet.payload[1] & 0x80 != 0 && !packet.marker)
            .collect();
        let events = detect_at(clock, &ends);
        assert_eq!(ended(&events), "11223344556677889900", "{clock:?}");
        assert!(
            events
                .iter()
                .all(|event| !matches!(event, DigitEvent::Ended { duration_ms, .. } if *duration_ms != 40))
        );
    }
}

#[test]
fn keys_without_their_markers_and_first_packets_are_told_once() {
    for clock in CLOCKS {
        let packets: Vec<_> =
            dial_at(clock, "404", 100).into_iter().filter(|(_, packet)| !packet.marker).collect();
        assert_eq!(ended(&detect_at(clock, &packets)), "404");
    }
}

#[test]
fn same_key_twice_is_two_keys_even_when_all_ends_are_lost() {
    let packets: Vec<_> =
        dial("99", 100).into_iter().filter(|(_, packet)| packet.payload[1] & 0x80 == 0).collect();
    let events = detect(&packets);
    assert_eq!((began(&events), ended(&events)), ("99".to_owned(), "99".to_owned()));
}

#[test]
fn late_packets_of_an_ended_key_are_ignored() {
    let mut packets = dial("3", 100);
    let (_, first) = packets[0];
    packets.push((50_000, first));
    packets.rotate_left(1); // the first packet of the key arrives last, too
    assert_eq!(ended(&detect(&packets)), "3");
}

#[test]
fn packets_that_go_on_after_a_timeout_are_the_same_key() {
    let mut packets = dial("3", 200);
    for (time, _) in packets.iter_mut().skip(4) {
        *time += 4_000; // half a second of silence in mid-key
    }
    assert_eq!(ended(&detect(&packets)), "3");
}

#[test]
fn very_long_key_in_segments_is_one_key() {
    let begin = start();
    let mut detector = EventDetector::new(CLOCK);
    detector.handle_packet(Timestamp(100), &payload('1', false, 65_535), begin);
    detector.handle_packet(Timestamp(100).plus(65_535), &payload('1', false, 160), begin);
    detector.handle_packet(Timestamp(100).plus(65_535), &payload('1', true, 14_465), begin);
    let events: Vec<_> = std::iter::from_fn(|| detector.poll_event()).collect();
    assert_eq!(
        events,
        [
            DigitEvent::Began { digit: digit('1') },
            DigitEvent::Ended { digit: digit('1'), duration_ms: 10_000 }
        ]
    );
}

#[test]
fn timestamps_may_wrap_and_a_clock_set_back_does_not_mute_the_keys() {
    let begin = start();
    let mut detector = EventDetector::new(CLOCK);
    for (timestamp, key) in [(u32::MAX - 50, '1'), (900, '2'), (0x9000_0000, '3')] {
        detector.handle_packet(Timestamp(timestamp), &payload(key, true, 800), begin);
        let events: Vec<_> = std::iter::from_fn(|| detector.poll_event()).collect();
        assert_eq!(ended(&events), key.to_string());
    }
}

#[test]
fn other_events_and_short_payloads_are_counted_and_ignored() {
    let mut detector = EventDetector::new(CLOCK);
    detector.handle_packet(Timestamp(0), &[16, 0x80, 0, 0], start());
    detector.handle_packet(Timestamp(0), &[1, 2, 3], start());
    assert_eq!(detector.poll_event(), None);
    assert_eq!(detector.ignored(), 2);
    assert_eq!(TelephoneEvent::parse(&[1, 2, 3]), Err(EventError(3)));
}

#[test]
fn reset_releases_the_key_and_accepts_any_timestamp() {
    let mut detector = EventDetector::new(CLOCK);
    detector.handle_packet(Timestamp(50_000), &payload('4', false, 160), start());
    detector.reset();
    detector.handle_packet(Timestamp(49_000), &payload('4', true, 160), start());
    let events: Vec<_> = std::iter::from_fn(|| detector.poll_event()).collect();
    // Three events fit without a drain; the oldest begin made room.
    assert_eq!(ended(&events), "44");
}

#[test]
fn queue_of_keys_is_bounded_and_can_be_cleared() {
    let mut sender = EventSender::new(CLOCK);
    for _ in 0..MAX_QUEUED_DIGITS {
        sender.push(digit('1')).unwrap();
    }
    assert_eq!(sender.push(digit('1')), Err(QueueFull));
    assert!(sender.next_packet(Timestamp(0), PTIME_TICKS).is_some_and(|packet| packet.marker));
    sender.clear();
    let mut time = 0;
    let mut last = None;
    while !sender.is_idle() {
        time += PTIME_TICKS;
        last = sender.next_packet(Timestamp(time), PTIME_TICKS).or(last);
    }
    assert!(TelephoneEvent::parse(&last.unwrap().payload).unwrap().end, "the key that was down is ended");
}

#[test]
fn idle_sender_leaves_the_line_to_sound() {
    assert_eq!(EventSender::new(CLOCK).next_packet(Timestamp(0), PTIME_TICKS), None);
}

proptest! {
    /// Losing, doubling and shuffling within a key: none lost as long as one packet arrives, none told twice.
    #[test]
    fn no_key_is_lost_or_doubled(keys in "[0-9*#A-D]{1,12}", key_ms in 40_u32..300, clock in 0_usize..3,
                                 fates in proptest::collection::vec((0_u8..4, 0_u32..3), 300)) {
        let clock = CLOCKS[clock];
        let sent = dial_at(clock, &keys, key_ms);
        let mut arrived = vec![];
        for ((time, packet), (fate, late)) in sent.iter().zip(fates) {
            // The reorder stage before us lets through what is at most two packets late.
            let at = time + late * clock.hz() / 50;
            match fate {
                0 => {}
                1 => arrived.extend([(at, *packet), (at + 10, *packet)]),
                _ => arrived.push((at, *packet)),
            }
        }
        arrived.sort_by_key(|(time, _)| *time);
        let mut expected: Vec<Timestamp> = arrived.iter().map(|(_, packet)| packet.timestamp).collect();
        expected.sort_by_key(|timestamp| timestamp.0);
        expected.dedup();
        let expected: String = expected
            .iter()
            .map(|timestamp| {
                let (_, packet) = sent.iter().find(|(_, packet)| packet.timestamp == *timestamp).unwrap();
                Digit::from_event(packet.payload[0]).unwrap().as_char()
            })
            .collect();
        let events = detect_at(clock, &arrived);
        prop_assert_eq!(ended(&events), expected.clone());
        prop_assert_eq!(began(&events), expected);
    }

    #[test]
    fn no_payload_makes_it_panic(packets in proptest::collection::vec((any::<u32>(), proptest::collection::vec(any::<u8>(), 0..8), 0_u64..400), 0..100)) {
        let mut now = start();
        let mut detector = EventDetector::new(CLOCK);
        let (mut began, mut ended) = (0, 0);
        for (timestamp, payload, gap_ms) in packets {
            now += Duration::from_millis(gap_ms);
            detector.handle_timeout(now);
            detector.handle_packet(Timestamp(timestamp), &payload, now);
            while let Some(event) = detector.poll_event() {
                match event {
                    DigitEvent::Began { .. } => began += 1,
                    DigitEvent::Ended { .. } => ended += 1,
                }
            }
            prop_assert!(began - ended == i32::from(detector.poll_timeout().is_some()));
        }
    }

    #[test]
    fn event_round_trips(event: u8, end: bool, volume in 0_u8..64, duration: u16) {
        let event = TelephoneEvent { event, end, volume, duration };
        prop_assert_eq!(TelephoneEvent::parse(&event.to_octets()), Ok(event));
    }
}
