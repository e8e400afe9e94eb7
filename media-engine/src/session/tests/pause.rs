//! Pause and resume: the agent holds its tongue and goes on where it stopped.

use super::*;

fn heard_ms(texts: &[&str], event: &str) -> u64 {
    let text = texts.iter().find(|text| text.contains(event)).unwrap_or_else(|| panic!("{texts:?}"));
    let number = text.split("\"heardMs\":").nth(1).unwrap();
    number.trim_end_matches('}').split(',').next().unwrap().parse().unwrap()
}

#[test]
fn a_pause_is_answered_with_the_position_and_a_resume_plays_the_rest() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    call.events();
    bot.speaks(&mut call, 200);
    bot.asks(&mut call, r#"{"event":"mark","name":"end"}"#);
    call.pass(46);
    bot.asks(&mut call, r#"{"event":"pause"}"#);
    assert!(bot.texts(&mut call).iter().all(|text| !text.contains("paused")), "it fades out first");
    call.pass(40);
    let paused_at = heard_ms(&bot.texts(&mut call), "paused");
    assert_eq!(paused_at, call.session.playout().heard_ms());
    call.payloads();
    call.pass(500);
    assert!(
        call.payloads().iter().all(|payload| *payload == 0xFF),
        "silence, in which nothing counts as heard"
    );
    assert_eq!(call.session.playout().heard_ms(), paused_at);
    bot.asks(&mut call, r#"{"event":"resume"}"#);
    call.pass(300);
    assert_eq!(heard_ms(&bot.texts(&mut call), "mark"), 200, "all of it was heard in the end");
}

#[test]
fn a_clear_in_a_pause_ends_it() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.speaks(&mut call, 200);
    bot.asks(&mut call, r#"{"event":"pause"}"#);
    call.pass(100);
    bot.texts(&mut call);
    bot.asks(&mut call, r#"{"event":"clear"}"#);
    assert_eq!(heard_ms(&bot.texts(&mut call), "cleared"), 20, "the fade, and no more");
    call.payloads();
    bot.speaks(&mut call, 60);
    call.pass(60);
    assert!(call.payloads().iter().any(|payload| is_sound(*payload)));
}

#[test]
fn a_hang_up_after_the_last_words_does_not_wait_for_a_resume() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    bot.speaks(&mut call, 100);
    bot.asks(&mut call, r#"{"event":"pause"}"#);
    call.pass(60);
    call.events();
    bot.asks(&mut call, r#"{"event":"hangup","after":"drain"}"#);
    call.pass(200);
    assert!(matches!(call.events()[..], [Event::AgentHangup { after_drain: true }]));
}
