//! Engines that go away, come back, or come back as another.

use std::collections::HashMap;
use std::time::Duration;

use control_plane::call::action::{EngineRefusal, EngineReply};
use control_plane::config::Limits;
use control_plane::media::{ENGINE_GRACE, EngineId, Listed, News};
use tandem_sip::Headers;
use uuid::Uuid;

use crate::bed::{Bed, Heard, Opens, echo_uri, offer, opened};

fn is_gone(bed: &Bed) -> bool {
    matches!(bed.heard.last(), Some(Heard::Bye { reason: Some(reason) }) if reason.contains("cause=38"))
}

#[test]
fn calls_of_an_engine_that_stays_away_get_a_bye_within_ten_seconds() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    bed.news(0, News::Down);
    bed.pass(ENGINE_GRACE - Duration::from_millis(1));
    assert_eq!(bed.state(call_id), "connected");
    bed.pass(Duration::from_millis(1));
    assert!(is_gone(&bed), "{:?}", bed.heard);
    assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "engine_lost");
    let silence = control_plane::media::client::HEARTBEAT_SILENCE_MAX;
    assert!(silence + ENGINE_GRACE < Duration::from_secs(10));
}

#[test]
fn engine_that_comes_back_with_the_session_keeps_the_call() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    bed.news(0, News::Down);
    bed.pass(Duration::from_secs(3));
    bed.engine_up(0, "instance-1", &[call_id]);
    bed.pass(Duration::from_secs(30));
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn engine_that_was_restarted_has_lost_its_calls() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    bed.news(0, News::Down);
    bed.engine_up(0, "instance-2", &[]);
    assert!(is_gone(&bed));
    // There is nobody to close it at.
    assert_eq!(bed.commands_of(call_id), ["open", "start"]);
    let (_, next) = bed.connected();
    assert_eq!(bed.state(next), "connected");
}

#[test]
fn session_that_is_absent_in_the_snapshot_has_ended() {
    let mut bed = Bed::new();
    bed.connected();
    bed.news(0, News::Down);
    bed.engine_up(0, "instance-1", &[]);
    assert!(is_gone(&bed));
}

#[test]
fn only_the_calls_of_the_lost_engine_end() {
    let mut bed = Bed::with(Limits::default(), 2);
    let (_, first) = bed.connected();
    let (_, second) = bed.connected();
    let on_first = bed.commands[0].0;
    bed.news(on_first.0, News::Down);
    bed.pass(ENGINE_GRACE);
    assert_eq!((bed.state(first).as_str(), bed.state(second).as_str()), ("gone", "connected"));
}

#[test]
fn sessions_of_an_earlier_control_plane_are_left_alone() {
    let mut bed = Bed::new();
    bed.engine_up(0, "instance-1", &[Uuid::now_v7()]);
    assert!(bed.commands.is_empty());
}

#[test]
fn ringing_call_whose_engine_is_gone_is_refused_with_503() {
    let mut bed = Bed::new();
    bed.opens = Opens::Waiting;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    bed.news(0, News::Down);
    bed.pass(ENGINE_GRACE);
    assert!(matches!(bed.heard.last(), Some(Heard::Refused { status: 503, .. })), "{:?}", bed.heard);
}

#[test]
fn session_that_was_opened_while_the_stream_was_down_is_believed() {
    let mut bed = Bed::new();
    bed.opens = Opens::Silent;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let call_id = bed.last_call_id();
    bed.news(0, News::Down);
    bed.reply(call_id, EngineReply::Opened(Ok(Box::new(opened(true)))));
    bed.engine_up(0, "instance-1", &[]);
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn session_that_the_same_instance_does_not_name_is_closed_there_all_the_same() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    bed.engine_up(0, "instance-1", &[]);
    assert_eq!(bed.commands_of(call_id), ["open", "start", "close"]);
}

#[test]
fn close_that_failed_is_repeated_when_the_engine_is_back_until_it_is_done() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.closes = Err(EngineRefusal::Unreachable("no answer in time".to_owned()));
    bed.caller.bye(call, Headers::new(), bed.now).unwrap();
    bed.run();
    assert!(bed.calls.is_empty() && bed.strays.is_empty(), "the call is over nevertheless");
    bed.engine_up(0, "instance-1", &[call_id]);
    assert_eq!(bed.strays, [(EngineId(0), call_id)]);
    bed.closes = Ok(());
    bed.engine_up(0, "instance-1", &[call_id]);
    bed.engine_up(0, "instance-1", &[call_id]);
    assert_eq!(bed.strays.len(), 2, "done: not once more");
}

#[test]
fn close_of_a_session_that_is_gone_is_never_repeated() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.closes = Err(EngineRefusal::Gone);
    bed.caller.bye(call, Headers::new(), bed.now).unwrap();
    bed.run();
    bed.engine_up(0, "instance-1", &[call_id]);
    assert!(bed.strays.is_empty());
}

#[test]
fn session_of_an_engine_that_was_given_up_is_closed_when_it_is_back_after_all() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    bed.news(0, News::Down);
    bed.pass(ENGINE_GRACE);
    assert!(is_gone(&bed) && bed.strays.is_empty());
    bed.engine_up(0, "instance-1", &[call_id]);
    assert_eq!(bed.strays, [(EngineId(0), call_id)]);
}

#[test]
fn engine_that_did_not_answer_is_told_to_close_when_another_takes_the_call() {
    let mut bed = Bed::with(Limits::default(), 2);
    bed.opens = Opens::Silent;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let call_id = bed.last_call_id();
    let late = EngineRefusal::Unreachable("no answer in time".to_owned());
    bed.reply(call_id, EngineReply::Opened(Err(late)));
    bed.reply(call_id, EngineReply::Opened(Ok(Box::new(opened(true)))));
    assert_eq!(bed.state(call_id), "connected");
    assert_eq!(bed.commands_of(call_id), ["open", "open", "start"]);
    assert_eq!(bed.strays, [(bed.commands[0].0, call_id)]);
    assert_ne!(bed.commands[0].0, bed.commands[1].0);
}

fn away(bed: &mut Bed, call_id: Uuid, listed: Listed) {
    bed.news(0, News::Down);
    bed.pass(Duration::from_secs(1));
    bed.engine_lists(0, "instance-1", HashMap::from([(call_id, listed)]));
}

#[test]
fn agent_that_came_while_the_stream_was_down_is_answered() {
    let mut bed = Bed::new();
    bed.opens = Opens::Waiting;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let call_id = bed.last_call_id();
    away(&mut bed, call_id, Listed::default());
    assert_eq!(bed.state(call_id), "ringing");
    away(&mut bed, call_id, Listed { agent_ready: true, ..Listed::default() });
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn agent_that_failed_while_the_stream_was_down_refuses_the_call() {
    let mut bed = Bed::new();
    bed.opens = Opens::Waiting;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let call_id = bed.last_call_id();
    away(&mut bed, call_id, Listed { agent_gone: Some("connection refused".into()), ..Listed::default() });
    assert!(matches!(bed.heard.last(), Some(Heard::Refused { status: 480, .. })), "{:?}", bed.heard);
}

#[test]
fn agent_that_hung_up_while_the_stream_was_down_ends_the_call() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    let agent_gone = Some("closed with 1000".to_owned());
    away(&mut bed, call_id, Listed { agent_hangup: true, agent_gone, ..Listed::default() });
    assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "agent_hangup");
    assert_eq!(bed.commands_of(call_id), ["open", "start", "close"]);
}
