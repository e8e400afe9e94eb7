//! How long a session lives of which nobody speaks any more, and what it tells a controller that was away.

use super::*;

fn ends_by_silence(call: &mut Call) -> bool {
    matches!(call.events().last(), Some(Event::Ended { reason: EndReason::MediaTimeout, .. }))
}

#[test]
fn a_session_that_is_never_started_ends_by_itself() {
    let mut call = Call::new(with(AgentParameters::Echo));
    call.pass(UNSTARTED_MAX.as_millis() as u32 - 1);
    assert!(!call.session.is_ended());
    call.pass(1);
    assert!(ends_by_silence(&mut call));
}

#[test]
fn a_session_that_is_started_late_has_its_whole_media_timeout() {
    let mut call = Call::new(with(AgentParameters::Echo));
    call.pass(UNSTARTED_MAX.as_millis() as u32 - 1);
    call.session.start(call.now, call.now);
    call.pass(59_999);
    assert!(!call.session.is_ended());
    call.pass(1);
    assert!(ends_by_silence(&mut call));
}

#[test]
fn a_held_session_of_which_nobody_speaks_ends_after_an_hour() {
    let mut call = Call::started(with(AgentParameters::Echo));
    let held = RtpParameters { direction: Direction::Inactive, ..rtp() };
    call.session.update(held, call.now, call.now);
    call.pass(HELD_MAX.as_millis() as u32 - 1_000);
    // A refresh of the held dialog is a sign of life.
    call.session.update(held, call.now, call.now);
    call.pass(HELD_MAX.as_millis() as u32 - 1);
    assert!(!call.session.is_ended());
    call.pass(1);
    assert!(ends_by_silence(&mut call));
}

#[test]
fn a_session_remembers_that_its_agent_is_there_and_hung_up() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    assert!(!call.session.is_agent_ready());
    let bot = Bot::meets(&mut call);
    assert!(call.session.is_agent_ready() && !call.session.has_agent_hung_up());
    bot.asks(&mut call, r#"{"event":"hangup","after":"now"}"#);
    assert!(call.session.has_agent_hung_up());
    call.session.handle_ended(None, call.now);
    assert_eq!(call.session.agent_gone(), None, "one that hung up is not missed");
}

#[test]
fn a_session_remembers_why_its_agent_is_gone() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    Bot::meets(&mut call);
    assert_eq!(call.session.agent_gone(), None);
    call.session.handle_ended(None, call.now);
    assert!(call.session.agent_gone().is_some() && !call.session.is_agent_ready());

    let mut call = Call::new(with(websocket(Dialect::Pcm)));
    call.session.handle_undiallable("no such host");
    assert_eq!(call.session.agent_gone(), Some("no such host"));
}

#[test]
fn agent_that_hangs_up_after_its_last_words_does_so_though_they_cannot_be_heard() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    let held = RtpParameters { direction: Direction::Inactive, ..rtp() };
    call.session.update(held, call.now, call.now);
    bot.speaks(&mut call, 1_000);
    bot.asks(&mut call, r#"{"event":"hangup","after":"drain"}"#);
    call.events();
    call.pass(1_000 + DRAIN_GRACE.as_millis() as u32 - 1);
    assert_eq!(call.events(), [], "the hold may end");
    call.pass(1);
    assert_eq!(call.events(), [Event::AgentHangup { after_drain: true }]);
}

#[test]
fn agent_that_goes_on_after_its_last_words_is_cut_off() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    bot.speaks(&mut call, 100);
    bot.asks(&mut call, r#"{"event":"hangup","after":"drain"}"#);
    bot.asks(&mut call, r#"{"event":"pause"}"#);
    call.events();
    call.pass(200 + DRAIN_GRACE.as_millis() as u32);
    assert_eq!(call.events(), [Event::AgentHangup { after_drain: true }]);
}

#[test]
fn callee_that_rings_with_early_media_may_be_silent_until_it_answers() {
    let mut call = Call::new(with(AgentParameters::Echo));
    call.session.listen(call.now + 5 * MS, call.now);
    call.says(0x80);
    call.pass(UNSTARTED_MAX.as_millis() as u32 - 1);
    assert!(!call.session.is_ended());
    call.session.start(call.now, call.now);
    call.pass(59_999);
    assert!(!call.session.is_ended(), "from its answer on it has the usual time");
    call.pass(1);
    assert!(ends_by_silence(&mut call));
    let mut call = Call::new(with(AgentParameters::Echo));
    call.session.listen(call.now + 5 * MS, call.now);
    call.pass(UNSTARTED_MAX.as_millis() as u32);
    assert!(ends_by_silence(&mut call));
}
