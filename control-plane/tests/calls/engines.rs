//! Engines that go away, come back, or come back as another.

use std::time::Duration;

use control_plane::call::action::EngineReply;
use control_plane::config::Limits;
use control_plane::media::{ENGINE_GRACE, News};

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
    bed.engine_up(0, "instance-1", &[uuid::Uuid::now_v7()]);
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
