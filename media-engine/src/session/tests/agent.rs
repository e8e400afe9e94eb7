//! Agents behind a WebSocket, in both dialects.

use super::*;

#[test]
fn a_pcm_agent_is_told_who_calls_and_hears_the_caller_at_once() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    assert!(!call.session.is_agent_ready());
    call.now += 30 * MS;
    let mut bot = Bot::meets(&mut call);
    assert!(call.session.is_agent_ready());
    assert_eq!(call.events(), [Event::AgentConnected { took_ms: 30 }]);
    let start = bot.texts(&mut call)[0];
    assert!(start.contains(r#""event":"start""#) && start.contains(r#""callId":"0190-ab""#), "{start}");
    assert!(start.contains(r#""custom":{"k":"v"}"#), "{start}");
    for _ in 0..3 {
        call.says(0x80);
        let heard = bot.hears(&mut call);
        let frames: Vec<_> =
            heard.iter().filter(|m| matches!(m, Message::Binary(b) if b.len() == 640)).collect();
        assert_eq!(frames.len(), 1, "{heard:?}");
    }
    assert_eq!(call.session.stats(call.now).agent_frames_out, 3);
}

#[test]
fn what_an_agent_says_in_a_burst_leaves_on_the_clock() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    bot.speaks(&mut call, 100);
    call.pass(205);
    let heard: Vec<bool> =
        call.sent.iter().map(|sent| sent.payload[80..].iter().all(|c| is_sound(*c))).collect();
    assert_eq!(heard[..6], [true, true, true, true, true, false]);
    assert!(call.sent.windows(2).all(|pair| pair[1].at - pair[0].at == 20 * MS));
}

#[test]
fn clear_silences_the_next_packet_and_says_what_was_heard() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.speaks(&mut call, 1_000);
    bot.asks(&mut call, r#"{"event":"mark","name":"whole"}"#);
    call.pass(65);
    assert_eq!(call.sent.len(), 4);
    bot.asks(&mut call, r#"{"event":"clear"}"#);
    let texts = bot.texts(&mut call);
    assert_eq!(*texts.last().unwrap(), r#"{"event":"cleared","heardMs":80}"#);
    call.pass(20);
    assert_eq!(call.sent[4].payload, [0xFF; 160]);
    // The next utterance counts on from there, and the mark that was cleared never comes.
    bot.speaks(&mut call, 50);
    bot.asks(&mut call, r#"{"event":"mark","name":"next"}"#);
    call.pass(100);
    let texts = bot.texts(&mut call);
    assert_eq!(texts, [r#"{"event":"mark","heardMs":130,"name":"next"}"#]);
}

#[test]
fn hang_up_after_drain_waits_for_the_last_word_and_now_does_not() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    call.events();
    bot.speaks(&mut call, 100);
    bot.asks(&mut call, r#"{"event":"hangup","after":"drain"}"#);
    call.pass(80);
    assert!(call.events().is_empty());
    call.pass(20);
    assert_eq!(call.events(), [Event::AgentHangup { after_drain: true }]);
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    call.events();
    bot.speaks(&mut call, 100);
    bot.asks(&mut call, r#"{"event":"transfer","to":"sip:desk@example.com"}"#);
    bot.asks(&mut call, r#"{"event":"hangup","after":"now"}"#);
    let events = call.events();
    assert_eq!(
        events[0],
        Event::AgentTransfer { to: "sip:desk@example.com".into(), mode: TransferMode::Refer }
    );
    assert_eq!(events[1], Event::AgentHangup { after_drain: false });
}

#[test]
fn an_agent_presses_keys_towards_the_caller() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    bot.asks(&mut call, r#"{"event":"dtmf","digits":"7"}"#);
    call.pass(400);
    let keys: Vec<_> = call.sent.iter().filter(|sent| sent.header.payload_type.get() == 101).collect();
    assert!(keys.len() >= 5 && keys.iter().all(|sent| sent.payload[0] == 7), "{keys:?}");
    assert_eq!(call.sent.last().unwrap().header.payload_type, PayloadType::PCMU);
}

#[test]
fn an_agent_hears_of_keys_hold_and_speech_in_its_own_words() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.texts(&mut call);
    call.presses(3);
    let dtmf = bot.texts(&mut call);
    assert!(dtmf[0].contains(r#""digit":"3""#), "{dtmf:?}");
    let held = RtpParameters { direction: Direction::ReceiveOnly, ..rtp() };
    call.session.update(held, call.now, call.now);
    call.says(0x80);
    let while_held = bot.hears(&mut call);
    assert_eq!(while_held, [Message::Text(r#"{"event":"hold"}"#)], "music on hold is not for the agent");
    call.session.update(rtp(), call.now, call.now);
    assert_eq!(bot.texts(&mut call), [r#"{"event":"resume"}"#]);
    let mut texts = Vec::new();
    let mut seed = 1;
    for n in 0..110u8 {
        let peak = if (10..60).contains(&n) { 6_000 } else { 30 };
        call.says_from(PHONE, &speech::noise(peak, &mut seed));
        call.pass(20);
        texts.extend(bot.texts(&mut call));
    }
    assert_eq!(texts, [r#"{"active":true,"event":"speech"}"#, r#"{"active":false,"event":"speech"}"#]);
}

#[test]
fn a_twilio_agent_is_spoken_to_as_by_twilio() {
    let mut call = Call::started(with(websocket(Dialect::Twilio)));
    let mut bot = Bot::meets(&mut call);
    let texts = bot.texts(&mut call);
    assert!(texts[0].contains(r#""event":"connected""#));
    assert!(texts[1].contains(r#""event":"start""#) && texts[1].contains(r#""customParameters":{"k":"v"}"#));
    assert!(texts[1].contains(r#""callSid":"CA0190ab""#), "{}", texts[1]);
    call.says(0x11);
    call.says(0x12);
    let media = bot.texts(&mut call);
    assert!(
        media[0].contains(r#""timestamp":"0""#) && media[0].contains(r#""payload":"ERER"#),
        "{}",
        media[0]
    );
    assert!(
        media[1].contains(r#""timestamp":"20""#) && media[1].contains(r#""payload":"EhIS"#),
        "{}",
        media[1]
    );
    // 48 octets of 0x10: six milliseconds.
    let payload = "EBAQ".repeat(16);
    bot.asks(&mut call, &format!(r#"{{"event":"media","media":{{"payload":"{payload}"}}}}"#));
    bot.asks(&mut call, r#"{"event":"mark","mark":{"name":"m"}}"#);
    call.pass(5);
    assert_eq!(call.sent[0].payload[..48], [0x10; 48]);
    assert_eq!(call.sent[0].payload[48..], [0xFF; 112]);
    let texts = bot.texts(&mut call);
    assert!(texts[0].contains(r#""event":"mark""#) && texts[0].contains(r#""name":"m""#), "{texts:?}");
    // Marks of what is cleared are echoed too.
    bot.asks(&mut call, &format!(r#"{{"event":"media","media":{{"payload":"{payload}"}}}}"#));
    bot.asks(&mut call, r#"{"event":"mark","mark":{"name":"cut"}}"#);
    bot.asks(&mut call, r#"{"event":"clear"}"#);
    assert!(bot.texts(&mut call)[0].contains(r#""name":"cut""#));
}

#[test]
fn an_agent_that_does_not_read_misses_the_oldest_sound_and_only_that() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.texts(&mut call);
    for _ in 0..75 {
        call.says(0x80);
    }
    assert_eq!(call.session.stats(call.now).agent_dropped_ms, 500);
    let frames = bot.hears(&mut call).into_iter().filter(|message| matches!(message, Message::Binary(_)));
    assert_eq!(frames.count(), 50);
}

#[test]
fn an_agent_that_floods_and_does_not_read_is_cut_off() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    for _ in 0..1_000 {
        bot.says(&mut call, Opcode::Ping, &[1; 125]);
    }
    let events = call.events();
    let Some(Event::AgentFailed { reason }) = events.last() else { panic!("{events:?}") };
    assert!(reason.contains("does not read"), "{reason}");
    assert!(call.session.is_stream_over());
    call.pass(25);
    assert_eq!(call.sent.len(), 2, "the call goes on in silence");
}

#[test]
fn a_ping_is_answered() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.says(&mut call, Opcode::Ping, b"hey");
    assert!(bot.hears(&mut call).contains(&Message::Pong(b"hey")));
}

#[test]
fn an_agent_that_is_not_there_in_time_has_failed() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    call.pass(4_990);
    assert!(call.events().is_empty());
    call.pass(20);
    let events = call.events();
    assert!(
        matches!(&events[..], [Event::AgentFailed { reason }] if reason.contains("in time")),
        "{events:?}"
    );
    assert!(call.session.is_stream_over());
}

#[test]
fn an_agent_that_refuses_or_breaks_the_upgrade_has_failed() {
    for answer in ["HTTP/1.1 403 No\r\n\r\n", "HTTP/1.1 101 Ok\r\nUpgrade: x\r\n\r\n", "220 mail\r\n"] {
        let mut call = Call::started(with(websocket(Dialect::Pcm)));
        call.session.handle_connected(call.now);
        call.session.handle_bytes(answer.as_bytes(), call.now);
        let events = call.events();
        assert!(
            matches!(&events[..], [Event::AgentFailed { reason }] if reason.contains("upgrade")),
            "{events:?}"
        );
    }
}

#[test]
fn frames_that_come_with_the_upgrade_are_not_lost() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    call.session.handle_connected(call.now);
    let mut out = [0; 4_096];
    let len = call.session.poll_stream(&mut out);
    let (request, _) = UpgradeRequest::parse(&out[..len]).unwrap().unwrap();
    let mut answer = Vec::new();
    request.write_response(&mut answer);
    append_frame(&mut answer, Opcode::Binary, None, &i16::MAX.to_le_bytes().repeat(320)).unwrap();
    for octet in answer {
        call.session.handle_bytes(&[octet], call.now);
    }
    assert_eq!(call.session.playout().waiting_ms(), 20);
}

#[test]
fn an_agent_that_leaves_is_reported_once_and_its_last_words_are_played() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    call.events();
    bot.speaks(&mut call, 40);
    bot.says(&mut call, Opcode::Close, &[0x03, 0xE8]);
    call.session.handle_ended(None, call.now);
    let events = call.events();
    assert!(matches!(&events[..], [Event::AgentFailed { reason }] if reason.contains("1000")), "{events:?}");
    call.pass(45);
    let heard = call.sent.iter().filter(|sent| sent.payload.iter().any(|code| is_sound(*code)));
    assert_eq!(heard.count(), 2);
}

#[test]
fn closing_tells_the_agent_why_and_says_good_bye() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.texts(&mut call);
    call.says(0x80);
    call.session.close("caller");
    assert!(!call.session.is_stream_over());
    let said = bot.hears(&mut call);
    assert_eq!(
        said,
        [
            Message::Text(r#"{"event":"stop","reason":"caller"}"#),
            Message::Close { code: Some(1_000), reason: "" }
        ]
    );
    assert!(call.session.is_stream_over());
    assert_eq!(call.session.poll_timeout(), None);
}

#[test]
fn a_stage_of_any_size_takes_the_stream_without_breaking_a_frame() {
    for room in [20, 333, 700, 1_400, 4_096] {
        let mut call = Call::started(with(websocket(Dialect::Twilio)));
        let mut bot = Bot::meets(&mut call);
        for number in 0..10 {
            call.says(number);
        }
        let mut octets = Vec::new();
        let mut stage = vec![0; room];
        loop {
            let len = call.session.poll_stream(&mut stage);
            if len == 0 {
                break;
            }
            octets.extend_from_slice(&stage[..len]);
        }
        let mut messages = 0;
        let mut rest = &octets[..];
        while !rest.is_empty() {
            rest = &rest[bot.reader.push(rest)..];
            while bot.reader.poll_message().unwrap().is_some() {
                messages += 1;
            }
        }
        // A stage that is too small for any frame of sound carries the texts only; the engine's has 4 096.
        assert_eq!(messages, if room < 400 { 2 } else { 12 }, "room {room}");
    }
}

#[test]
fn an_agent_that_hangs_up_after_drain_and_closes_is_heard_out() {
    // 1011, too: it asked to be heard out all the same.
    for close in [&[0x03, 0xE8][..], &[0x03, 0xF3], &[]] {
        let mut call = Call::started(with(websocket(Dialect::Pcm)));
        let bot = Bot::meets(&mut call);
        call.events();
        bot.speaks(&mut call, 100);
        bot.asks(&mut call, r#"{"event":"hangup","after":"drain"}"#);
        bot.says(&mut call, Opcode::Close, close);
        call.session.handle_ended(None, call.now);
        assert_eq!(call.events(), [], "{close:?}");
        call.pass(200);
        let heard = call.sent.iter().filter(|sent| sent.payload.iter().any(|code| is_sound(*code)));
        assert_eq!(heard.count(), 5, "{close:?}");
        assert_eq!(call.events(), [Event::AgentHangup { after_drain: true }], "{close:?}");
    }
    // The same when the connection just breaks.
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    call.events();
    bot.speaks(&mut call, 20);
    bot.asks(&mut call, r#"{"event":"hangup","after":"drain"}"#);
    call.session.handle_ended(Some(&std::io::ErrorKind::ConnectionReset.into()), call.now);
    call.pass(50);
    assert_eq!(call.events(), [Event::AgentHangup { after_drain: true }]);
}

#[test]
fn a_twilio_agent_hangs_up_by_closing_and_its_last_words_are_played() {
    let media = format!(r#"{{"event":"media","media":{{"payload":"{}"}}}}"#, "EBAQ".repeat(160));
    for (close, hangs_up) in
        [(&[0x03, 0xE8][..], true), (&[0x03, 0xE9], true), (&[], true), (&[0x03, 0xF3], false)]
    {
        let mut call = Call::started(with(websocket(Dialect::Twilio)));
        let bot = Bot::meets(&mut call);
        call.events();
        bot.asks(&mut call, &media);
        bot.says(&mut call, Opcode::Close, close);
        call.session.handle_ended(None, call.now);
        let events = call.events();
        assert_eq!(matches!(&events[..], [Event::AgentFailed { .. }]), !hangs_up, "{close:?} {events:?}");
        call.pass(100);
        assert_eq!(call.sent.iter().filter(|sent| sent.payload[0] == 0x10).count(), 3, "{close:?}");
        let expected = if hangs_up { vec![Event::AgentHangup { after_drain: true }] } else { Vec::new() };
        assert_eq!(call.events(), expected, "{close:?}");
    }
    // A connection that breaks is no good-bye.
    let mut call = Call::started(with(websocket(Dialect::Twilio)));
    Bot::meets(&mut call);
    call.events();
    call.session.handle_ended(None, call.now);
    assert!(matches!(call.events()[..], [Event::AgentFailed { .. }]));
    // Nor is one that is closed before the call is answered.
    let mut call = Call::new(with(websocket(Dialect::Twilio)));
    let bot = Bot::meets(&mut call);
    call.events();
    bot.says(&mut call, Opcode::Close, &[0x03, 0xE8]);
    assert!(matches!(call.events()[..], [Event::AgentFailed { .. }]));
}

#[test]
fn an_agent_hangs_up_once_however_often_it_asks() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    call.events();
    for _ in 0..200 {
        bot.asks(&mut call, r#"{"event":"hangup","after":"now"}"#);
        bot.asks(&mut call, r#"{"event":"hangup","after":"drain"}"#);
    }
    bot.says(&mut call, Opcode::Close, &[0x03, 0xF3]);
    assert_eq!(call.events(), [Event::AgentHangup { after_drain: false }]);
}

#[test]
fn a_session_reports_a_bounded_number_of_events_in_a_second() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    call.events();
    let mut told = 0;
    for _ in 0..100 {
        bot.asks(&mut call, r#"{"event":"transfer","to":"sip:desk@example.com"}"#);
        call.presses(5);
        call.timestamp += 2_000;
        told += call.events().iter().filter(|event| !matches!(event, Event::MediaStarted { .. })).count();
    }
    assert_eq!(told, EVENTS_A_SECOND as usize);
    let oddities = call.session.poll_oddities();
    assert_eq!(oddities.events_refused, 200 - u64::from(EVENTS_A_SECOND));
    assert_eq!(call.session.poll_oddities(), Oddities::default(), "counted once");
    call.pass(1_000);
    call.presses(6);
    assert!(matches!(call.events()[..], [Event::Dtmf { digit: '6', .. }]), "the next second has its own");
}

#[test]
fn a_mark_that_is_refused_is_answered_at_once() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.texts(&mut call);
    bot.speaks(&mut call, 1_000);
    for n in 0..playout::MARKS_MAX {
        bot.asks(&mut call, &format!(r#"{{"event":"mark","name":"{n}"}}"#));
    }
    assert!(bot.texts(&mut call).is_empty());
    bot.asks(&mut call, r#"{"event":"mark","name":"one more"}"#);
    assert_eq!(bot.texts(&mut call), [r#"{"event":"mark","heardMs":0,"name":"one more"}"#]);
    bot.says(&mut call, Opcode::Binary, b"odd");
    bot.asks(&mut call, "{");
    let oddities = call.session.poll_oddities();
    assert_eq!((oddities.marks_refused, oddities.malformed), (1, 2));
}

#[test]
fn keys_and_a_hold_before_the_agent_is_there_are_told_when_it_is() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    for _ in 0..40 {
        call.presses(5);
        call.timestamp += 1_600;
        call.pass(100);
    }
    let held = RtpParameters { direction: Direction::Inactive, ..rtp() };
    call.session.update(held, call.now, call.now);
    let mut bot = Bot::meets(&mut call);
    let texts = bot.texts(&mut call);
    assert!(texts[0].contains("start") && texts[1].contains("hold"), "{texts:?}");
    assert_eq!(texts[2..].iter().filter(|text| text.contains(r#""digit":"5""#)).count(), 32);
    call.session.update(rtp(), call.now, call.now);
    assert_eq!(bot.texts(&mut call), [r#"{"event":"resume"}"#], "nothing is told twice");
}

#[test]
fn hold_that_is_over_before_the_agent_is_there_is_not_told() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let held = RtpParameters { direction: Direction::Inactive, ..rtp() };
    call.session.update(held, call.now, call.now);
    call.session.update(rtp(), call.now, call.now);
    let mut bot = Bot::meets(&mut call);
    assert_eq!(bot.texts(&mut call).len(), 1, "its start frame");
}
