//! A call on the core's link, as its session sees it.

use tandem_stream::link::credit::{AGENT_WINDOW, CALLER_WINDOW};
use tandem_stream::link::{Decoder, Message, append};

use super::*;

const CALL: u32 = 0x0010_0003;

fn link() -> AgentParameters {
    AgentParameters::Link(Box::new(LinkParameters {
        host: "agent.test".into(),
        port: 8_767,
        token: b"secret".to_vec(),
        custom: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        connect_timeout: Duration::from_secs(5),
    }))
}

/// What left for the agent, in words.
fn heard(call: &mut Call) -> Vec<String> {
    let mut out = [0; 64 * 1_024];
    let mut words = Vec::new();
    let len = call.session.poll_stream(&mut out);
    let mut decoder = Decoder::default();
    let read = decoder.handle_bytes(&out[..len], |of, message| {
        assert_eq!(of, CALL);
        words.push(match message {
            Message::Audio(audio) => format!("audio {}", audio.len()),
            Message::Open { start } => start.to_owned(),
            message => format!("{message:?}"),
        });
        Ok(())
    });
    assert_eq!((read, decoder.pending()), (Ok(()), 0), "whole frames only");
    words
}

fn says(call: &mut Call, message: &Message<'_>) {
    call.session.handle_frame(message, call.now);
}

fn speaks(call: &mut Call, ms: usize) {
    for piece in i16::MAX.to_le_bytes().repeat(16 * ms).chunks(32_000) {
        says(call, &Message::Audio(piece));
    }
}

/// A started call that the agent has accepted.
fn accepted() -> Call {
    let mut call = Call::started(with(link()));
    call.session.link_mut().unwrap().set_call(CALL);
    call.session.handle_connected(call.now);
    let opened = heard(&mut call);
    assert!(opened[0].contains("\"callId\":\"0190-ab\"") && opened[0].contains("\"k\":\"v\""), "{opened:?}");
    assert!(!call.session.is_agent_ready());
    says(&mut call, &Message::Accepted);
    assert!(call.session.is_agent_ready());
    assert!(matches!(call.events()[..], [Event::AgentConnected { .. }]));
    call
}

#[test]
fn the_agent_hears_the_caller_and_is_heard() {
    let mut call = accepted();
    call.says(0xFF);
    assert_eq!(heard(&mut call).last().unwrap(), "audio 640");
    speaks(&mut call, 60);
    call.pass(80);
    // The first begins with the resampler's ramp.
    assert_eq!(call.payloads().iter().filter(|payload| is_sound(**payload)).count(), 2);
}

#[test]
fn clear_empties_the_queue_within_a_ptime_and_says_what_was_heard() {
    let mut call = accepted();
    speaks(&mut call, 400);
    says(&mut call, &Message::Mark { heard_ms: 0, name: "never" });
    call.pass(50);
    call.payloads();
    heard(&mut call);
    let heard_ms = call.session.playout().heard_ms();
    says(&mut call, &Message::Clear { heard_ms: 0 });
    assert_eq!(heard(&mut call), [format!("Clear {{ heard_ms: {heard_ms} }}")]);
    call.pass(20);
    assert!(call.payloads().iter().all(|payload| !is_sound(*payload)), "the very next packet is silent");
}

#[test]
fn a_mark_comes_back_when_the_sound_before_it_has_left() {
    let mut call = accepted();
    speaks(&mut call, 40);
    says(&mut call, &Message::Mark { heard_ms: 0, name: "m" });
    call.pass(100);
    assert_eq!(heard(&mut call), ["Mark { heard_ms: 40, name: \"m\" }"]);
}

#[test]
fn rare_events_are_those_of_the_pcm_dialect_both_ways() {
    let mut call = accepted();
    call.session.tell(&Notice::Transfer { status: "trying".into(), reason: String::new() }, call.now);
    call.session.tell(&Notice::Dtmf { digit: '7', duration_ms: 90 }, call.now);
    let told = heard(&mut call);
    assert!(told[0].contains("transfer") && told[0].contains("trying"), "{told:?}");
    assert_eq!(told[1], "Dtmf { digit: 55, duration_ms: 90 }");
    says(&mut call, &Message::Event(r#"{"event":"transfer","to":"+49","mode":"consult"}"#));
    says(&mut call, &Message::Event(r#"{"event":"hangup","after":"now"}"#));
    assert!(matches!(
        &call.events()[..],
        [Event::AgentTransfer { to, mode: TransferMode::Consult }, Event::AgentHangup { after_drain: false }] if to == "+49"
    ));
}

#[test]
fn an_agent_that_grants_nothing_loses_the_oldest_of_its_own_call_only() {
    let mut call = accepted();
    let second = CALLER_WINDOW as usize / 640;
    let mut frames = 0;
    for _ in 0..3 * second {
        call.says(0xFF);
        frames += heard(&mut call).iter().filter(|word| *word == "audio 640").count();
        call.pass(20);
    }
    assert_eq!(frames, second, "no more than the window");
    let stats = call.session.stats(call.now);
    assert_eq!(stats.agent_dropped_ms, 1_000, "a second waits, the one before is gone");
    says(&mut call, &Message::Credit { octets: 2 * 640 });
    assert_eq!(heard(&mut call), ["audio 640", "audio 640"]);
}

#[test]
fn the_engine_grants_what_the_caller_has_heard() {
    let mut call = accepted();
    let window_ms = AGENT_WINDOW as usize / 32;
    speaks(&mut call, window_ms);
    assert!(heard(&mut call).is_empty(), "nothing was heard yet");
    call.pass(window_ms as u32 / 4 + 40);
    let granted = heard(&mut call);
    assert!(matches!(&granted[..], [credit] if credit.starts_with("Credit")), "{granted:?}");
    assert_eq!(call.session.stats(call.now).playout_dropped_ms, 0);
    says(&mut call, &Message::Clear { heard_ms: 0 });
    let after = heard(&mut call);
    assert!(after.iter().any(|word| word.starts_with("Credit")), "what is cleared is free too: {after:?}");
}

#[test]
fn a_lost_link_ends_the_call_as_a_broken_websocket_does() {
    let mut call = accepted();
    speaks(&mut call, 60);
    call.session.handle_link_lost("closed the link", call.now);
    assert!(
        matches!(&call.events()[..], [Event::AgentFailed { reason }] if reason == "agent closed the link")
    );
    assert_eq!(call.session.agent_gone(), Some("agent closed the link"));
    call.pass(80);
    assert_eq!(
        call.payloads().iter().filter(|payload| is_sound(**payload)).count(),
        2,
        "last words are played"
    );
    assert!(call.session.is_stream_over());
}

#[test]
fn an_agent_that_hung_up_is_not_missed_when_its_call_closes() {
    let mut call = accepted();
    says(&mut call, &Message::Event(r#"{"event":"hangup"}"#));
    says(&mut call, &Message::Close { reason: "" });
    assert!(matches!(call.events()[..], [Event::AgentHangup { after_drain: true }]));
}

#[test]
fn a_call_that_is_refused_or_not_answered_has_failed() {
    let mut call = Call::started(with(link()));
    call.session.link_mut().unwrap().set_call(CALL);
    call.session.handle_connected(call.now);
    says(&mut call, &Message::Close { reason: "too many conversations" });
    assert!(matches!(&call.events()[..], [Event::AgentFailed { reason }] if reason.contains("too many")));

    let mut call = Call::started(with(link()));
    call.pass(5_100);
    assert!(
        matches!(&call.events()[..], [Event::AgentFailed { reason }] if reason.contains("connected in time"))
    );

    let mut call = Call::started(with(link()));
    call.session.link_mut().unwrap().set_call(CALL);
    call.session.handle_connected(call.now);
    heard(&mut call);
    call.pass(5_100);
    assert!(
        matches!(&call.events()[..], [Event::AgentFailed { reason }] if reason.contains("accept the call in time"))
    );
    assert_eq!(heard(&mut call), ["Close { reason: \"timeout\" }"], "it must not begin yet");
}

#[test]
fn a_call_that_ends_is_closed_with_its_reason_and_nothing_follows() {
    let mut call = accepted();
    call.says(0xFF);
    call.events();
    call.session.close("caller");
    assert!(!call.session.is_stream_over());
    assert_eq!(heard(&mut call), ["Close { reason: \"caller\" }"]);
    assert!(call.session.is_stream_over());
    says(&mut call, &Message::Audio(&[0; 640]));
    assert!(call.events().is_empty());
}

#[test]
fn a_frame_that_makes_no_sense_is_counted_and_the_call_goes_on() {
    let mut call = accepted();
    says(&mut call, &Message::Malformed);
    says(&mut call, &Message::Event("no json"));
    says(&mut call, &Message::Open { start: "{}" });
    assert_eq!(call.session.poll_oddities().malformed, 3);
    assert!(call.session.is_agent_ready());
}

#[test]
fn a_frame_is_never_cut_by_the_end_of_the_buffer() {
    let mut call = accepted();
    for name in ["a", "b"] {
        says(&mut call, &Message::Mark { heard_ms: 0, name });
    }
    call.says(0xFF);
    let mut mark = Vec::new();
    append(&mut mark, CALL, &Message::Mark { heard_ms: 0, name: "a" });
    let mut out = [0; 700];
    // Room for one mark and a half, then for the other and not for audio, then for audio.
    assert_eq!(call.session.poll_stream(&mut out[..mark.len() * 3 / 2]), mark.len());
    assert_eq!(call.session.poll_stream(&mut out[..mark.len() + 100]), mark.len());
    assert_eq!(call.session.poll_stream(&mut out), 648);
}

#[test]
fn key_before_the_agent_has_accepted_is_told_then() {
    let mut call = Call::started(with(link()));
    call.session.link_mut().unwrap().set_call(CALL);
    call.presses(7);
    call.session.handle_connected(call.now);
    assert_eq!(heard(&mut call).len(), 1, "the start");
    says(&mut call, &Message::Accepted);
    assert!(matches!(&heard(&mut call)[..], [key] if key.starts_with("Dtmf { digit: 55")));
}

#[test]
fn agent_that_does_not_read_its_calls_is_told_that_this_one_is_over() {
    let mut call = accepted();
    let name = "m".repeat(200);
    let mut marks = 0;
    while call.session.agent_gone().is_none() {
        says(&mut call, &Message::Mark { heard_ms: 0, name: &name });
        call.session.handle_timeout(call.now);
        call.pass(20);
        marks += 1;
        assert!(marks < 1_000, "it must end");
    }
    assert_eq!(call.session.agent_gone(), Some("agent does not read its calls"));
    assert_eq!(heard(&mut call), [r#"Close { reason: "error" }"#]);
}
