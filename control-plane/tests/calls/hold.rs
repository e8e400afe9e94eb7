//! Hold, resume and refresh by re-INVITE.

use std::time::Duration;

use control_plane::call::action::{EngineRefusal, EngineReply};
use tandem_api::engine::v1::tell_agent_request::What as Tell;
use tandem_api::engine::v1::{Direction, DtmfReceived};
use tandem_sip::Event;
use tandem_sip::message::{Body, Method};

use crate::bed::{Bed, Heard, offer, version};

fn answer(bed: &Bed) -> String {
    match bed.heard.last() {
        Some(Heard::Answered(sdp) | Heard::ReinviteAnswered(sdp)) => sdp.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hold_and_resume_change_state_direction_and_version() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    let first = answer(&bed);
    bed.reinvite(call, Some(&offer("sendonly", "0")));
    let held = answer(&bed);
    assert!(held.contains("a=recvonly"), "{held}");
    assert_eq!(version(&held), version(&first) + 1);
    assert_eq!(bed.last_update().direction(), Direction::Recvonly);
    assert_eq!(bed.state(call_id), "on_hold");

    bed.reinvite(call, Some(&offer("sendrecv", "0")));
    let resumed = answer(&bed);
    assert!(resumed.contains("a=sendrecv"), "{resumed}");
    assert_eq!(version(&resumed), version(&first) + 2);
    assert_eq!(bed.last_update().direction(), Direction::Sendrecv);
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn inactive_is_answered_inactive() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.reinvite(call, Some(&offer("inactive", "0")));
    assert!(answer(&bed).contains("a=inactive"));
    assert_eq!(bed.last_update().direction(), Direction::Inactive);
    assert_eq!(bed.state(call_id), "on_hold");
}

#[test]
fn refresh_repeats_our_description() {
    let mut bed = Bed::new();
    let (call, _) = bed.connected();
    let first = answer(&bed);
    bed.reinvite(call, Some(&offer("sendrecv", "0")));
    assert_eq!(answer(&bed), first);
}

#[test]
fn reinvite_that_fits_nothing_is_488_and_the_call_goes_on() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.reinvite(call, Some(&offer("sendrecv", "18")));
    assert_eq!(bed.heard.last(), Some(&Heard::ReinviteRefused(488)));
    assert_eq!(bed.state(call_id), "connected");
    assert_eq!(bed.commands_of(call_id), ["open", "start"]);
}

#[test]
fn update_that_the_engine_refuses_leaves_the_call_as_it_was() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.updates = Err(EngineRefusal::Invalid("rtp.codec".to_owned()));
    bed.reinvite(call, Some(&offer("sendonly", "0")));
    assert_eq!(bed.heard.last(), Some(&Heard::ReinviteRefused(488)));
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn reinvite_without_an_offer_gets_ours_and_the_answer_in_its_ack_holds() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.reinvite(call, None);
    assert!(answer(&bed).contains("m=audio 20000 RTP/AVP 0"));
    bed.caller.ack(call, Body::sdp(offer("inactive", "0")), bed.now).unwrap();
    bed.run();
    assert_eq!(bed.last_update().direction(), Direction::Inactive);
    assert_eq!(bed.state(call_id), "on_hold");
}

#[test]
fn update_holds_like_a_reinvite_and_refreshes_without_a_body() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    let first = answer(&bed);
    assert_eq!(bed.request(call, Method::Update, None), (200, String::new()));
    let (status, held) = bed.request(call, Method::Update, Some(Body::sdp(offer("sendonly", "0"))));
    assert_eq!((status, version(&held)), (200, version(&first) + 1));
    assert_eq!(bed.last_update().direction(), Direction::Recvonly);
    assert_eq!(bed.state(call_id), "on_hold");
    let (status, _) = bed.request(call, Method::Update, Some(Body::sdp(offer("sendrecv", "18"))));
    assert_eq!((status, bed.state(call_id).as_str()), (488, "on_hold"));
}

#[test]
fn info_brings_keys_to_the_agent_and_anything_else_is_refused() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    assert_eq!(bed.request(call, Method::Info, None).0, 200);
    let mut info = |content_type, text: &str| {
        let body = Body { content_type, bytes: text.as_bytes().to_vec() };
        bed.request(call, Method::Info, Some(body)).0
    };
    assert_eq!(info("application/dtmf-relay", "Signal=5\r\nDuration=200"), 200);
    assert_eq!(info("application/dtmf", "#"), 200);
    assert_eq!(info("application/dtmf-relay", "Signal=?"), 400);
    assert_eq!(info("application/json", "{}"), 415);
    let key = |digit: &str, duration_ms| Tell::Dtmf(DtmfReceived { digit: digit.into(), duration_ms });
    assert_eq!(bed.told(), [key("5", 200), key("#", 160)]);
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn reply_to_the_update_of_a_reinvite_that_was_taken_back_answers_no_later_one() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.updates_are_answered = false;
    bed.reinvite(call, Some(&offer("sendonly", "0")));
    // The caller's endpoint cannot CANCEL a re-INVITE; its CANCEL and its next one are put here by hand.
    let Some(Event::Reinvite { call: ours, mut request }) = bed.reinvited.take() else {
        panic!("a re-INVITE")
    };
    bed.calls.handle_sip(Event::ReinviteCancelled { call: ours }, bed.now);
    request.body = offer("inactive", "0").into_bytes();
    bed.calls.handle_sip(Event::Reinvite { call: ours, request }, bed.now);
    bed.run();
    let before = bed.heard.len();
    // Of the first, which nobody wants any more: not even its refusal matters.
    bed.reply(call_id, EngineReply::Updated(Err(EngineRefusal::Invalid("rtp.codec".to_owned()))));
    assert_eq!(bed.heard.len(), before, "{:?}", bed.heard.last());
    assert_eq!(bed.last_update().direction(), Direction::Inactive);
    assert_eq!(bed.state(call_id), "connected");
    bed.reply(call_id, EngineReply::Updated(Ok(())));
    assert!(answer(&bed).contains("a=inactive"));
    assert_eq!(bed.state(call_id), "on_hold");
}

#[test]
fn ack_that_comes_while_a_hold_of_ours_waits_behind_it_is_not_taken_for_its_answer() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.updates_are_answered = false;
    bed.reinvite(call, Some(&offer("sendrecv", "0")));
    // Our 200 arrives; its ACK is lost at first.
    bed.caller_is_heard = false;
    bed.reply(call_id, EngineReply::Updated(Ok(())));
    assert!(matches!(bed.heard.last(), Some(Heard::ReinviteAnswered(_))), "{:?}", bed.heard.last());
    bed.updates_are_answered = true;
    bed.calls.hold("t1", call_id, true, bed.now).unwrap();
    bed.run();
    bed.caller_is_heard = true;
    bed.pass(Duration::from_secs(2));
    assert_eq!(bed.state(call_id), "on_hold", "{:?}", bed.heard);
    assert_eq!(bed.last_update().direction(), Direction::Inactive);
}
