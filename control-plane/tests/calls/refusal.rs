//! Calls that are refused, each with its status and one line that says which rule.

use std::time::Duration;

use control_plane::call::action::EngineRefusal;
use control_plane::call::ending::Cause;
use control_plane::config::Limits;
use control_plane::media::{News, SessionEvent};
use tandem_api::engine::v1::session_ended::Reason;
use uuid::Uuid;

use crate::bed::{Bed, Heard, Opens, echo_uri, offer};

fn refused(bed: &mut Bed, uri: &str, sdp: &str) -> (u16, String) {
    bed.invite(uri, Some(sdp));
    let Some(Heard::Refused { status, .. }) = bed.heard.last() else { panic!("{:?}", bed.heard) };
    assert_eq!(bed.refusals.len(), 1, "one line a refusal");
    assert!(bed.calls.is_empty());
    (*status, bed.refusals[0].step.rule.clone())
}

#[test]
fn missing_key_is_403_without_a_lookup_and_without_a_record() {
    let mut bed = Bed::new();
    let got = refused(&mut bed, "sip:echo@192.0.2.1", &offer("sendrecv", "0"));
    assert_eq!(got, (403, "uri_credentials".to_owned()));
    assert_eq!((bed.lookups, bed.records.len()), (0, 0));
}

#[test]
fn wrong_key_is_403_whether_the_assistant_exists_or_not_and_leaves_no_record() {
    for uri in ["sip:echo:wrong@192.0.2.1", "sip:nobody:wrong@192.0.2.1"] {
        let mut bed = Bed::new();
        assert_eq!(refused(&mut bed, uri, &offer("sendrecv", "0")), (403, "api_key".to_owned()));
        assert!(bed.records.is_empty() && bed.commands.is_empty());
    }
}

#[test]
fn unknown_assistant_is_404_with_a_valid_key_and_is_recorded_for_its_tenant() {
    let mut bed = Bed::new();
    let got = refused(&mut bed, "sip:nobody:a-key@192.0.2.1", &offer("sendrecv", "0"));
    assert_eq!(got, (404, "assistant_exists".to_owned()));
    let call = &bed.last_record().call;
    assert_eq!(call.state, "failed");
    assert_eq!(call.ending.as_ref().unwrap().reason, "unknown_assistant");
    assert!(!call.decisions.last().unwrap().passed);
}

#[test]
fn offer_without_a_common_codec_is_488_and_opens_no_session() {
    let mut bed = Bed::new();
    let got = refused(&mut bed, &echo_uri(), &offer("sendrecv", "18"));
    assert_eq!(got, (488, "offer".to_owned()));
    assert!(bed.commands.is_empty());
    let ending = bed.last_record().call.ending.clone().unwrap();
    assert!(ending.detail.contains("no common codec"), "{}", ending.detail);
}

#[test]
fn unreadable_offer_is_400() {
    let mut bed = Bed::new();
    assert_eq!(refused(&mut bed, &echo_uri(), "hello").0, 400);
}

#[test]
fn no_engine_is_503_with_retry_after() {
    let mut bed = Bed::with(Limits::default(), 1);
    bed.news(0, News::Down);
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let Some(Heard::Refused { status: 503, retry_after_s: Some(_), .. }) = bed.heard.last() else {
        panic!("{:?}", bed.heard)
    };
    assert_eq!((bed.lookups, bed.refusals[0].step.rule.as_str()), (0, "engine"));
}

#[test]
fn calls_beyond_the_limit_are_503_and_the_others_live_on() {
    let mut bed = Bed::with(Limits { calls_max: 1, ..Limits::default() }, 1);
    let (_, call_id) = bed.connected();
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    assert!(matches!(bed.heard.last(), Some(Heard::Refused { status: 503, retry_after_s: Some(5), .. })));
    assert_eq!(bed.refusals[0].step.rule, "calls_max");
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn database_that_does_not_keep_up_closes_admission() {
    let mut bed = Bed::new();
    bed.calls.handle_store(true);
    assert_eq!(refused(&mut bed, &echo_uri(), &offer("sendrecv", "0")), (503, "store".to_owned()));
}

#[test]
fn draining_node_takes_no_calls() {
    let mut bed = Bed::new();
    bed.calls.drain(bed.now);
    assert_eq!(refused(&mut bed, &echo_uri(), &offer("sendrecv", "0")), (503, "draining".to_owned()));
}

#[test]
fn agent_that_cannot_be_reached_is_480_with_a_reason() {
    let mut bed = Bed::new();
    bed.opens = Opens::Waiting;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let call_id = bed.last_call_id();
    bed.session(call_id, SessionEvent::AgentFailed { reason: "connection refused".to_owned() });
    let Some(Heard::Refused { status: 480, reason: Some(reason), .. }) = bed.heard.last() else {
        panic!("{:?}", bed.heard)
    };
    assert!(reason.contains("Q.850;cause=20"), "{reason}");
    assert_eq!(bed.commands_of(call_id), ["open", "close"]);
    assert_eq!(bed.refusals.len(), 1);
    let ending = bed.last_record().call.ending.clone().unwrap();
    assert_eq!(ending.detail, "the agent could not be reached: connection refused");
}

#[test]
fn agent_that_refuses_before_the_engine_has_answered_rang_all_the_same() {
    let mut bed = Bed::new();
    bed.opens = Opens::Silent;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let call_id = bed.last_call_id();
    bed.session(call_id, SessionEvent::AgentFailed { reason: "connection refused".to_owned() });
    assert!(
        matches!(bed.heard.as_slice(), [Heard::Provisional(180), Heard::Refused { status: 480, .. }]),
        "{:?}",
        bed.heard
    );
}

#[test]
fn agent_that_stays_away_is_480_when_the_ring_timer_is_over() {
    let mut bed = Bed::with(Limits { ring_max: Duration::from_secs(10), ..Limits::default() }, 1);
    bed.opens = Opens::Waiting;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    bed.pass(Duration::from_millis(9_990));
    assert_eq!(bed.heard, [Heard::Provisional(180)]);
    bed.pass(Duration::from_millis(20));
    assert!(matches!(bed.heard.last(), Some(Heard::Refused { status: 480, reason: Some(_), .. })));
    assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "agent_timeout");
}

#[test]
fn full_engine_is_tried_once_and_another_takes_the_call() {
    let mut bed = Bed::with(Limits::default(), 2);
    bed.opens = Opens::Refusing(EngineRefusal::Full("no ports".to_owned()));
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    assert!(matches!(bed.heard.last(), Some(Heard::Refused { status: 503, .. })));
    let engines: Vec<usize> = bed.commands.iter().map(|(engine, ..)| engine.0).collect();
    assert_eq!(engines, [0, 1]);
    assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "engine_full");
}

fn ending(bed: &Bed) -> (String, String) {
    let ending = bed.last_record().call.ending.clone().unwrap();
    (ending.reason, ending.detail)
}

#[test]
fn engine_that_does_not_answer_is_not_called_full() {
    let mut bed = Bed::new();
    bed.opens = Opens::Refusing(EngineRefusal::Unreachable("no answer in time".to_owned()));
    assert_eq!(refused(&mut bed, &echo_uri(), &offer("sendrecv", "0")).0, 503);
    let (reason, detail) = ending(&bed);
    assert_eq!(reason, "engine_lost");
    assert!(detail.ends_with("no answer in time"), "{detail}");
    // It may have opened it.
    assert_eq!(bed.commands_of(bed.last_call_id()), ["open", "close"]);
}

#[test]
fn address_that_no_engine_can_reach_is_488_with_the_reason() {
    let mut bed = Bed::with(Limits::default(), 2);
    let why = "rtp.remote_address: 2001:db8::9 cannot be reached from 192.0.2.1";
    bed.opens = Opens::Refusing(EngineRefusal::Address(why.to_owned()));
    assert_eq!(refused(&mut bed, &echo_uri(), &offer("sendrecv", "0")), (488, "offer".to_owned()));
    assert_eq!(bed.commands.len(), 2, "one of the other family may be there");
    let (reason, detail) = ending(&bed);
    assert_eq!(reason, "media_unreachable");
    assert!(detail.contains("2001:db8::9"), "{detail}");
}

#[test]
fn ring_timer_names_whom_the_call_waited_for() {
    let limits = Limits { ring_max: Duration::from_secs(2), ..Limits::default() };
    let mut bed = Bed::with(limits, 1);
    bed.opens = Opens::Silent;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    bed.pass(Duration::from_secs(2));
    assert_eq!(ending(&bed).0, "engine_lost");
    assert_eq!(bed.refusals[0].step.rule, "engine");

    let mut bed = Bed::with(limits, 1);
    bed.starts_are_answered = false;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    bed.pass(Duration::from_secs(2));
    assert_eq!(ending(&bed).0, "engine_lost");
    assert_eq!(bed.refusals[0].step.field, "StartSession");

    let mut bed = Bed::with(limits, 1);
    bed.store_answers = false;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    bed.pass(Duration::from_secs(2));
    assert!(matches!(bed.heard.last(), Some(Heard::Refused { status: 503, .. })), "{:?}", bed.heard);
    assert_eq!(bed.refusals[0].step.rule, "store");
    assert_eq!(bed.refusals[0].ending.cause, Cause::StoreFailed);
}

#[test]
fn every_end_before_the_answer_has_its_line_and_a_failed_step() {
    type End = fn(&mut Bed, Uuid);
    let ends: [(&str, End); 3] = [
        ("operator_hangup", |bed, call_id| assert!(bed.calls.hang_up("t1", call_id, bed.now))),
        ("shutdown", |bed, _| bed.calls.end_all(bed.now)),
        ("engine_fault", |bed, call_id| {
            bed.session(
                call_id,
                SessionEvent::Ended { reason: Reason::EngineFault, stats: None, detail: String::new() },
            );
        }),
    ];
    for (reason, end) in ends {
        let mut bed = Bed::new();
        bed.opens = Opens::Waiting;
        bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
        let call_id = bed.last_call_id();
        end(&mut bed, call_id);
        bed.run();
        assert_eq!(bed.refusals.len(), 1, "{reason}");
        assert_eq!(bed.refusals[0].step.rule, reason);
        assert!(!bed.last_record().call.decisions.last().unwrap().passed);
        assert_eq!(ending(&bed).0, reason);
    }
}
