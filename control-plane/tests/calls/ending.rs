//! How calls end, and that both sides hear of it.

use std::time::Duration;

use control_plane::call::action::{EngineCommand, EngineReply};
use control_plane::config::Limits;
use control_plane::media::SessionEvent;
use tandem_api::engine::v1::session_ended::Reason;
use tandem_sip::Headers;

use crate::bed::{Bed, Heard, Opens, echo_uri, offer, opened};

fn bye(bed: &Bed) -> String {
    match bed.heard.last() {
        Some(Heard::Bye { reason }) => reason.clone().unwrap_or_default(),
        other => panic!("{other:?}"),
    }
}

fn reason(bed: &Bed) -> String {
    bed.last_record().call.ending.clone().unwrap().reason
}

#[test]
fn caller_hangs_up_and_the_session_is_closed() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.caller.bye(call, Headers::new(), bed.now).unwrap();
    bed.run();
    assert_eq!(bed.commands_of(call_id), ["open", "start", "close"]);
    assert_eq!(reason(&bed), "hangup");
    assert!(bed.calls.is_empty());
}

#[test]
fn cancel_before_the_answer_closes_the_session() {
    let mut bed = Bed::new();
    bed.opens = Opens::Waiting;
    let call = bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let call_id = bed.last_call_id();
    bed.caller.cancel(call, bed.now).unwrap();
    bed.run();
    assert!(matches!(bed.heard.last(), Some(Heard::Refused { status: 487, .. })), "{:?}", bed.heard);
    assert_eq!(bed.commands_of(call_id), ["open", "close"]);
    assert_eq!(reason(&bed), "cancelled");
    assert!(bed.calls.is_empty() && bed.refusals.is_empty());
}

#[test]
fn cancel_while_the_engine_opens_closes_what_it_has_opened() {
    let mut bed = Bed::new();
    bed.opens = Opens::Silent;
    let call = bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let call_id = bed.last_call_id();
    bed.caller.cancel(call, bed.now).unwrap();
    bed.run();
    assert_eq!(bed.commands_of(call_id), ["open"]);
    bed.reply(call_id, EngineReply::Opened(Ok(Box::new(opened(true)))));
    assert_eq!(bed.commands_of(call_id), ["open", "close"]);
    assert!(bed.calls.is_empty());
}

#[test]
fn cancel_before_the_store_has_answered_opens_nothing() {
    let mut bed = Bed::new();
    bed.store_answers = false;
    let call = bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    // 100 Trying has left, so the CANCEL may go.
    bed.caller.cancel(call, bed.now).unwrap();
    bed.run();
    assert!(bed.commands.is_empty() && bed.calls.is_empty());
    assert!(bed.records.is_empty(), "no tenant, no record");
}

#[test]
fn agent_hangs_up_and_the_caller_gets_a_bye() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    bed.session(call_id, SessionEvent::AgentHangup);
    assert!(bye(&bed).contains("cause=16"));
    assert_eq!(reason(&bed), "agent_hangup");
    assert_eq!(bed.commands_of(call_id), ["open", "start", "close"]);
}

#[test]
fn agent_that_breaks_in_mid_call_ends_it_with_its_reason() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    bed.session(call_id, SessionEvent::AgentFailed { reason: "reset by peer".to_owned() });
    assert!(bye(&bed).contains("the agent's stream broke"));
    let ending = bed.last_record().call.ending.clone().unwrap();
    assert_eq!((ending.party.as_str(), ending.reason.as_str()), ("agent", "agent_failed"));
    assert!(ending.detail.ends_with("reset by peer"));
}

#[test]
fn session_that_ends_by_media_timeout_ends_the_call_and_is_not_closed_again() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    bed.session(
        call_id,
        SessionEvent::Ended { reason: Reason::MediaTimeout, stats: None, detail: String::new() },
    );
    assert!(bye(&bed).contains("cause=102"));
    assert_eq!(reason(&bed), "media_timeout");
    assert_eq!(bed.commands_of(call_id), ["open", "start"]);
}

#[test]
fn call_in_which_nobody_speaks_is_ended_and_says_so_everywhere() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    bed.session(call_id, SessionEvent::Idle { idle_ms: 30_000 });
    assert!(bye(&bed).contains("cause=31"));
    let record = &bed.last_record().call;
    let ending = record.ending.clone().unwrap();
    assert_eq!((ending.party.as_str(), ending.reason.as_str()), ("us", "idle"));
    assert!(ending.detail.ends_with("none for 30 s"), "{}", ending.detail);
    let step = record.decisions.last().unwrap();
    assert_eq!((step.rule.as_str(), step.got.as_str(), step.passed), ("idle", "none for 30 s", false));
    let counted = bed.changes.last().unwrap().ending.as_ref().map(|ending| ending.cause.row().word);
    assert_eq!(counted, Some("idle"));
    assert_eq!(bed.commands.last().unwrap().2, EngineCommand::Close { reason: "idle" });
    assert!(bed.calls.is_empty());
}

#[test]
fn silence_on_hold_ends_nothing() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.reinvite(call, Some(&offer("sendonly", "0")));
    bed.session(call_id, SessionEvent::Idle { idle_ms: 30_000 });
    assert_eq!(bed.state(call_id), "on_hold");
    bed.reinvite(call, Some(&offer("sendrecv", "0")));
    assert_eq!(bed.state(call_id), "connected");
    bed.session(call_id, SessionEvent::Idle { idle_ms: 30_000 });
    assert_eq!(reason(&bed), "idle");
}

#[test]
fn silence_while_a_hold_of_ours_is_under_way_ends_nothing() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    bed.answers_reinvites = false;
    bed.calls.hold("t1", call_id, true, bed.now).unwrap();
    bed.session(call_id, SessionEvent::Idle { idle_ms: 30_000 });
    assert_ne!(bed.state(call_id), "ending");
    assert_eq!(bed.byes(), 0);
}

#[test]
fn call_that_lasts_too_long_is_ended() {
    let limits = Limits { call_duration_max: Duration::from_secs(60), ..Limits::default() };
    let mut bed = Bed::with(limits, 1);
    let (_, call_id) = bed.connected();
    bed.pass(Duration::from_millis(59_999));
    assert_eq!(bed.state(call_id), "connected");
    bed.pass(Duration::from_millis(2));
    bye(&bed);
    assert_eq!(reason(&bed), "max_duration");
}

#[test]
fn operator_ends_a_call_of_their_own_tenant_only() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    assert!(!bed.calls.hang_up("t2", call_id, bed.now));
    bed.run();
    assert_eq!(bed.state(call_id), "connected");
    assert!(bed.calls.hang_up("t1", call_id, bed.now));
    bed.run();
    bye(&bed);
    assert_eq!(reason(&bed), "operator_hangup");
}

#[test]
fn shutdown_says_goodbye_to_everybody() {
    let mut bed = Bed::new();
    bed.connected();
    bed.connected();
    bed.opens = Opens::Waiting;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    bed.calls.end_all(bed.now);
    bed.run();
    let byes = bed.heard.iter().filter(|heard| matches!(heard, Heard::Bye { .. })).count();
    let refused =
        bed.heard.iter().filter(|heard| matches!(heard, Heard::Refused { status: 503, .. })).count();
    assert_eq!((byes, refused), (2, 1));
    assert!(bed.calls.is_empty());
}

#[test]
fn call_whose_caller_never_acknowledges_is_ended() {
    let mut bed = Bed::new();
    bed.opens = Opens::Waiting;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let call_id = bed.last_call_id();
    bed.caller_is_heard = false;
    bed.session(call_id, SessionEvent::AgentConnected);
    assert_eq!(bed.state(call_id), "ringing");
    bed.pass(Duration::from_secs(40));
    assert_eq!(reason(&bed), "no_ack");
    assert_eq!(bed.commands_of(call_id), ["open", "start", "close"]);
    assert!(bed.calls.is_empty());
}

#[test]
fn bye_that_nobody_answers_does_not_keep_the_call() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    bed.caller_is_heard = false;
    bed.session(call_id, SessionEvent::AgentHangup);
    assert_eq!(bed.state(call_id), "ending");
    bed.pass(Duration::from_secs(6));
    assert!(bed.calls.is_empty());
    assert_eq!(bed.last_record().call.state, "ended");
}

#[test]
fn first_reason_stays_when_both_sides_end_at_once() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.caller.bye(call, Headers::new(), bed.now).unwrap();
    bed.run();
    bed.session(call_id, SessionEvent::AgentHangup);
    assert_eq!(reason(&bed), "hangup");
}
