//! Calls that were placed by us: before the answer, and what only the control plane can tell the agent.

use super::*;

fn outbound() -> SessionParameters {
    let mut parameters = with(websocket(Dialect::Pcm));
    parameters.call.direction = "outbound".into();
    parameters
}

#[test]
fn agent_hears_early_media_and_what_it_says_waits_for_the_answer() {
    let mut call = Call::new(outbound());
    let mut bot = Bot::meets(&mut call);
    bot.texts(&mut call);
    call.session.listen(call.now + 5 * MS, call.now);
    bot.speaks(&mut call, 100);
    call.says(0x80);
    assert!(bot.hears(&mut call).iter().any(|message| matches!(message, Message::Binary(_))));
    call.pass(200);
    assert_eq!(call.sent.len(), 10);
    assert!(call.sent.iter().all(|sent| sent.payload == [0xFF; 160]), "silence goes out");
    call.session.start(call.now, call.now);
    assert_eq!(bot.texts(&mut call).last(), Some(&r#"{"event":"answered"}"#));
    call.pass(100);
    assert!(call.sent[10..15].iter().all(|sent| is_sound(sent.payload[80])), "and then the greeting");
    let numbers: Vec<u16> = call.sent.iter().map(|sent| sent.header.sequence.0).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1)), "in one stream");
}

#[test]
fn agent_that_comes_after_the_answer_is_told_of_it_after_its_start_frame() {
    let mut call = Call::started(outbound());
    let mut bot = Bot::meets(&mut call);
    let texts = bot.texts(&mut call);
    assert!(texts[0].contains(r#""direction":"outbound""#), "{texts:?}");
    assert_eq!(texts[1], r#"{"event":"answered"}"#);
}

#[test]
fn agent_of_an_inbound_call_hears_nothing_of_answers() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    assert_eq!(bot.texts(&mut call).len(), 1);
}

#[test]
fn key_that_comes_by_info_and_as_telephone_event_is_told_once() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.texts(&mut call);
    call.presses(5);
    call.session.tell(&Notice::Dtmf { digit: '5', duration_ms: 160 }, call.now);
    call.session.tell(&Notice::Dtmf { digit: '#', duration_ms: 160 }, call.now);
    let texts = bot.texts(&mut call);
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].contains(r#""digit":"5""#) && texts[1].contains(r##""digit":"#""##), "{texts:?}");
}

#[test]
fn agent_is_told_how_its_transfer_goes() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.texts(&mut call);
    let failed = Notice::Transfer { status: "failed".into(), reason: "486 Busy Here".into() };
    call.session.tell(&failed, call.now);
    assert_eq!(bot.texts(&mut call), [r#"{"event":"transfer","reason":"486 Busy Here","status":"failed"}"#]);
}

#[test]
fn keys_of_the_agent_that_rtp_cannot_carry_are_the_control_planes() {
    let mut parameters = with(websocket(Dialect::Pcm));
    parameters.rtp.event_payload_type = None;
    let mut call = Call::started(parameters);
    let bot = Bot::meets(&mut call);
    call.events();
    bot.asks(&mut call, r#"{"event":"dtmf","digits":"12"}"#);
    bot.asks(&mut call, r#"{"event":"headers","headers":{"X-Result":"sold"}}"#);
    bot.asks(&mut call, r#"{"event":"answer"}"#);
    let headers = [("X-Result".to_owned(), "sold".to_owned())].into();
    let expected =
        [Event::AgentDtmf { digits: "12".into() }, Event::AgentHeaders { headers }, Event::AgentAnswer];
    assert_eq!(call.events(), expected);
}
