//! An agent that attaches late hears the first words.

use super::*;

#[test]
fn the_first_words_wait_for_a_late_agent_and_come_faster_than_real_time() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    for _ in 0..100 {
        call.says(0xFF);
        call.pass(20);
    }
    let mut bot = Bot::meets(&mut call);
    let frames = bot.hears(&mut call).into_iter().filter(|message| matches!(message, Message::Binary(_)));
    assert_eq!(frames.count(), 100, "two seconds at once");
    assert_eq!(call.session.stats(call.now).agent_dropped_ms, 0);
    call.says(0xFF);
    assert!(matches!(bot.hears(&mut call)[..], [Message::Binary(_)]), "and then as they come");
}

#[test]
fn what_waits_for_a_late_agent_is_bounded_and_the_newest() {
    let mut parameters = with(websocket(Dialect::Pcm));
    if let AgentParameters::WebSocket(agent) = &mut parameters.agent {
        agent.connect_timeout = Duration::from_secs(30);
    }
    let mut call = Call::started(parameters);
    for _ in 0..300 {
        call.says(0xFF);
        call.pass(20);
    }
    let mut bot = Bot::meets(&mut call);
    let frames = bot.hears(&mut call).into_iter().filter(|message| matches!(message, Message::Binary(_)));
    assert_eq!(frames.count(), 250, "five seconds");
    assert_eq!(call.session.stats(call.now).agent_dropped_ms, 1_000);
}
