//! The carrier leg, the clock and the agents of the engine's own.

use super::*;
use tandem_audio::tone::Digit;

#[test]
fn nothing_leaves_before_the_answer_and_then_silence_each_ptime() {
    let mut call = Call::new(with(AgentParameters::Echo));
    call.says(1);
    call.pass(100);
    assert!(call.sent.is_empty());
    call.session.start(call.now + 7 * MS, call.now);
    call.pass(107);
    let times: Vec<_> = call.sent.iter().map(|sent| sent.at.as_millis()).collect();
    assert_eq!(times, [107, 127, 147, 167, 187, 207]);
    assert!(call.sent[0].header.marker && !call.sent[1].header.marker);
    assert!(call.sent.iter().all(|sent| sent.payload == [0xFF; 160] && sent.to == at(PHONE)));
    let (first, last) = (call.sent[0].header, call.sent[5].header);
    assert_eq!(last.sequence.distance_from(first.sequence), 5);
    assert_eq!(last.timestamp.distance_from(first.timestamp), 800);
}

#[test]
fn silence_of_a_law_is_d5() {
    let mut parameters = with(AgentParameters::Echo);
    parameters.rtp.codec = Some(Codec::Pcma);
    parameters.rtp.payload_type = PayloadType::PCMA;
    let mut call = Call::started(parameters);
    call.pass(5);
    assert_eq!(call.sent[0].payload, [0xD5; 160]);
    assert_eq!(call.sent[0].header.payload_type, PayloadType::PCMA);
}

#[test]
fn the_echo_gives_back_what_it_heard_through_decode_and_encode() {
    let mut call = Call::started(with(AgentParameters::Echo));
    for number in 0..100u8 {
        call.says(number);
        call.pass(20);
    }
    assert_eq!(call.payloads(), (0..100).collect::<Vec<u8>>());
    let stats = call.session.stats(call.now);
    assert_eq!((stats.rtp_received, stats.rtp_sent, stats.rtp_lost), (100, 100, 0));
}

#[test]
fn audio_goes_back_to_where_it_came_from() {
    let mut call = Call::started(with(AgentParameters::Echo));
    call.pass(5);
    assert_eq!(call.sent[0].to, at(PHONE));
    call.says_from(NAT, &[1; 160]);
    assert!(matches!(call.events()[..], [Event::MediaStarted { remote, .. }] if remote == at(NAT)));
    call.pass(20);
    assert_eq!(call.sent[1].to, at(NAT));
    // A third party is neither heard nor followed.
    call.says_from("203.0.113.66:6666", &[2; 160]);
    call.pass(20);
    assert_eq!(call.sent[2].to, at(NAT));
    assert_eq!(call.session.stats(call.now).rtp_rejected, 1);
    assert!(call.events().is_empty());
}

#[test]
fn garbage_is_counted_and_changes_nothing() {
    let mut call = Call::started(with(AgentParameters::Echo));
    for garbage in [&b""[..], b"x", &[0x80; 11], &[0x80, 33, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[0; 1_500]] {
        call.session.handle_datagram(at(NAT), garbage, call.now);
    }
    // RTCP is not garbage, but it is not counted either.
    call.session.handle_datagram(at(NAT), &[0x80, 200, 0, 1, 0, 0, 0, 0], call.now);
    call.pass(5);
    assert_eq!(call.sent[0].to, at(PHONE));
    assert_eq!(call.session.stats(call.now).rtp_rejected, 5);
}

#[test]
fn packets_out_of_order_are_put_in_order_and_lost_ones_are_concealed() {
    let mut call = Call::started(with(AgentParameters::Echo));
    call.says(10);
    let early = call.packet(0, &[11; 160]);
    let late = call.packet(0, &[12; 160]);
    call.session.handle_datagram(at(PHONE), &late, call.now);
    call.session.handle_datagram(at(PHONE), &early, call.now);
    call.loses_a_packet();
    call.says(14);
    call.pass(200);
    let heard = call.payloads();
    assert_eq!(heard[..3], [10, 11, 12]);
    let after: Vec<u8> = heard[3..].iter().copied().filter(|code| *code != 0xFF).collect();
    // The lost one begins as the one before it ended; into the next it is cross-faded.
    assert_eq!((after.len(), after[0]), (2, 12), "{after:?}");
    let stats = call.session.stats(call.now);
    assert_eq!((stats.rtp_lost, stats.rtp_reordered), (1, 1));
}

#[test]
fn a_burst_is_played_on_the_clock_and_what_is_too_much_is_dropped() {
    let mut call = Call::started(with(AgentParameters::Echo));
    for number in 0..20u8 {
        call.says(number);
    }
    assert_eq!(call.session.playout().waiting_ms(), 200);
    call.pass(205);
    assert_eq!(call.sent.len(), 11);
    assert_eq!(call.payloads()[..10], (10..20).collect::<Vec<u8>>());
    assert_eq!(call.session.stats(call.now).playout_dropped_ms, 200);
}

#[test]
fn keys_are_told_once_and_are_no_sound() {
    let mut call = Call::started(with(AgentParameters::Echo));
    call.says(1);
    call.presses(5);
    call.presses(5);
    call.timestamp += 8_000;
    call.presses(11);
    let keys: Vec<char> = call
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Dtmf { digit, .. } => Some(digit),
            _ => None,
        })
        .collect();
    assert_eq!(keys, ['5', '#']);
    assert_eq!(call.session.playout().waiting_ms(), 20);
}

#[test]
fn on_hold_nothing_leaves_and_media_time_goes_on() {
    let mut call = Call::started(with(AgentParameters::Tone { frequency_hz: 440.0 }));
    call.pass(45);
    assert_eq!(call.sent.len(), 3);
    let held = RtpParameters { direction: Direction::ReceiveOnly, ..rtp() };
    call.session.update(held, call.now, call.now);
    call.pass(1_000);
    assert_eq!(call.sent.len(), 3);
    call.session.update(rtp(), call.now, call.now);
    call.pass(20);
    let [before, after] = [&call.sent[2], &call.sent[3]];
    assert!(after.header.marker);
    assert_eq!(after.header.sequence.distance_from(before.header.sequence), 1);
    let passed = after.at - before.at;
    let ticks = after.header.timestamp.distance_from(before.header.timestamp);
    assert_eq!(ticks as u128, passed.as_millis() * 8);
}

#[test]
fn a_held_call_does_not_end_for_want_of_media_and_a_silent_one_does() {
    let mut parameters = with(AgentParameters::Echo);
    parameters.media_timeout = Duration::from_secs(2);
    let mut call = Call::started(parameters);
    let held = RtpParameters { direction: Direction::Inactive, ..rtp() };
    call.session.update(held, call.now, call.now);
    call.pass(30_000);
    assert!(!call.session.is_ended());
    call.session.update(rtp(), call.now, call.now);
    call.pass(1_000);
    call.says(1);
    call.pass(1_900);
    assert!(!call.session.is_ended());
    call.pass(200);
    let events = call.events();
    let Some(Event::Ended { reason, stats }) = events.last() else { panic!("{events:?}") };
    assert_eq!(*reason, EndReason::MediaTimeout);
    assert_eq!(stats.rtp_received, 1);
    let sent = call.sent.len();
    call.pass(1_000);
    assert_eq!(call.sent.len(), sent, "nothing leaves after the end");
}

#[test]
fn a_session_ends_at_its_limit_even_if_it_was_never_answered() {
    let mut parameters = with(AgentParameters::Echo);
    parameters.max_session = Some(Duration::from_secs(1));
    let mut call = Call::new(parameters);
    call.pass(1_001);
    assert!(matches!(call.events()[..], [Event::Ended { reason: EndReason::MaxSession, .. }]));
}

#[test]
fn a_delayed_offer_waits_for_its_answer() {
    let mut parameters = with(AgentParameters::Echo);
    parameters.rtp = RtpParameters { codec: None, remote: None, ..rtp() };
    let mut call = Call::started(parameters);
    call.pass(100);
    assert!(call.sent.is_empty());
    call.session.update(rtp(), call.now, call.now);
    call.pass(20);
    assert_eq!(call.sent.len(), 1);
    call.says(3);
    call.pass(20);
    assert_eq!(call.sent[1].payload, [3; 160]);
}

#[test]
fn a_new_codec_and_ptime_go_on_with_the_same_stream() {
    let mut call = Call::started(with(AgentParameters::Tone { frequency_hz: 1_000.0 }));
    call.pass(45);
    let changed = RtpParameters {
        codec: Some(Codec::L16_16k),
        payload_type: PayloadType::new(97).unwrap(),
        ptime: Ptime::MS_30,
        ..rtp()
    };
    call.session.update(changed, call.now + 3 * MS, call.now);
    call.pass(40);
    let [before, first, second] = &call.sent[2..5] else { panic!("{}", call.sent.len()) };
    assert_eq!(first.header.ssrc, before.header.ssrc);
    assert_eq!(first.header.sequence.distance_from(before.header.sequence), 1);
    assert_eq!((first.payload.len(), first.header.payload_type.get()), (960, 97));
    assert!(first.header.marker);
    assert_eq!(second.at - first.at, 30 * MS);
    assert_eq!(second.header.timestamp.distance_from(first.header.timestamp), 480);
}

#[test]
fn a_recording_is_played_to_its_end_and_again_if_it_repeats() {
    for (repeat, sounding) in [(false, 3), (true, 6)] {
        let samples = vec![i16::MAX; 16 * 50].into();
        let mut call = Call::started(with(AgentParameters::File(Recording { samples, repeat })));
        call.pass(105);
        let heard = call.sent.iter().filter(|sent| sent.payload.iter().any(|code| is_sound(*code)));
        assert_eq!(heard.count(), sounding, "repeat: {repeat}");
    }
}

#[test]
fn a_stalled_clock_catches_up_a_little_and_skips_the_rest() {
    let mut call = Call::started(with(AgentParameters::Echo));
    call.now += 5 * MS;
    call.tick();
    call.now += 40 * MS;
    call.tick();
    assert_eq!(call.sent.len(), 3, "the frame before the one that is due is sent");
    call.now += 60 * MS;
    call.tick();
    assert_eq!(call.sent.len(), 5, "two leave back to back, never three");
    call.now += 1_000 * MS;
    call.tick();
    assert_eq!(call.sent.len(), 7, "however late");
    let [last, first, second] = &call.sent[4..] else { panic!("{}", call.sent.len()) };
    assert!(first.header.marker && !second.header.marker);
    assert_eq!(first.header.sequence.distance_from(last.header.sequence), 1);
    assert_eq!(first.header.timestamp.distance_from(last.header.timestamp), 49 * 160);
    assert_eq!(second.header.timestamp.distance_from(first.header.timestamp), 160);
}

#[test]
fn only_a_source_that_speaks_from_its_signalled_address_is_exclusive() {
    let mut call = Call::started(with(AgentParameters::Echo));
    assert_eq!(call.session.exclusive_peer(call.now), None, "nothing heard yet");
    call.says(1);
    assert_eq!(call.session.exclusive_peer(call.now), Some(at(PHONE)));
    call.pass(2_000);
    assert_eq!(call.session.exclusive_peer(call.now), None, "it fell silent: its address may move");
    call.says(1);
    assert_eq!(call.session.exclusive_peer(call.now), Some(at(PHONE)));
    let mut call = Call::started(with(AgentParameters::Echo));
    call.says_from(NAT, &[1; 160]);
    assert_eq!(call.session.exclusive_peer(call.now), None, "the signalled address may still take over");
}

#[test]
fn a_caller_with_packets_too_large_to_hold_is_heard_after_a_loss() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.hears(&mut call);
    // 100 ms a packet: more than one that is early can be kept.
    for n in 0..10 {
        if n == 3 {
            call.loses_a_packet();
        }
        call.says_from(PHONE, &[0x80; 800]);
        let frames = bot.hears(&mut call).iter().filter(|m| matches!(m, Message::Binary(_))).count();
        assert_eq!(frames, if n == 3 { 10 } else { 5 }, "packet {n}");
    }
}

#[test]
fn every_ptime_that_a_codec_may_have_fits_a_datagram() {
    let mut out = [0; crate::ring::DATAGRAM_OCTETS];
    for codec in Codec::ALL {
        for ms in 10..=codec.max_ptime().as_ms() {
            let mut parameters = with(AgentParameters::Tone { frequency_hz: 440.0 });
            parameters.rtp.codec = Some(codec);
            parameters.rtp.ptime = codec.fitting_ptime(Ptime::from_ms(ms).unwrap());
            let mut call = Call::new(parameters);
            call.session.start(call.now, call.now);
            let transmit = call.session.poll_transmit(call.now, &mut out);
            assert!(transmit.is_some(), "{codec} with {ms} ms");
        }
    }
}

#[test]
fn a_key_in_the_sound_is_told_if_it_is_looked_for_and_only_once() {
    let mut parameters = with(AgentParameters::Echo);
    parameters.rtp.sound.inband_dtmf = true;
    let mut call = Call::started(parameters);
    let mut signal = [0; 1_600];
    tandem_audio::tone::DtmfTone::new(Digit::from_char('7').unwrap(), SampleRate::Hz8000, 100, 100)
        .fill(&mut signal);
    for frame in signal.chunks(160) {
        let mut payload = [0; 160];
        tandem_audio::g711::encode_ulaw(frame, &mut payload);
        call.says_from(PHONE, &payload);
        call.pass(20);
    }
    // The same key by SIP INFO is its double.
    call.session.tell(&Notice::Dtmf { digit: '7', duration_ms: 100 }, call.now);
    let keys: Vec<char> = std::iter::from_fn(|| call.session.poll_event())
        .filter_map(|event| if let Event::Dtmf { digit, .. } = event { Some(digit) } else { None })
        .collect();
    assert_eq!(keys, ['7']);
}

#[test]
fn keys_that_nothing_carries_any_more_do_not_keep_the_agent_from_hanging_up() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    bot.asks(&mut call, r#"{"event":"dtmf","digits":"123"}"#);
    call.pass(30);
    call.session.update(RtpParameters { event_payload_type: None, ..rtp() }, call.now, call.now);
    call.events();
    bot.asks(&mut call, r#"{"event":"hangup","after":"drain"}"#);
    assert_eq!(call.events(), [Event::AgentHangup { after_drain: true }]);
}

#[test]
fn stray_packet_before_the_answer_does_not_keep_a_caller_behind_nat_out() {
    let mut call = Call::new(with(AgentParameters::Echo));
    for _ in 0..50 {
        call.says_from("198.51.100.77:7000", &[0x80; 160]);
        call.pass(20);
    }
    assert_eq!(call.events(), []);
    call.session.start(call.now + 5 * MS, call.now);
    call.says_from(NAT, &[0x80; 160]);
    call.pass(60);
    assert!(matches!(call.events()[..], [Event::MediaStarted { remote, .. }] if remote == at(NAT)));
    assert!(!call.sent.is_empty() && call.sent[1..].iter().all(|sent| sent.to == at(NAT)), "both ways");
}
