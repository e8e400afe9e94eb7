//! Calls that are answered.

use std::time::Duration;

use control_plane::call::action::{EngineCommand, EngineRefusal, EngineReply};
use control_plane::call::agent::Agent;
use control_plane::call::state::State;
use control_plane::media::SessionEvent;
use tandem_api::engine::v1::{Codec, Direction, agent};
use tandem_sip::Headers;
use tandem_sip::message::Body;

use crate::bed::{Bed, Heard, Opens, echo_uri, offer};

#[test]
fn agent_inside_the_engine_answers_at_once() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    let Some(Heard::Answered(sdp)) = bed.heard.last() else { panic!("answer") };
    assert!(sdp.contains("m=audio 20000 RTP/AVP 0") && sdp.contains("c=IN IP4 192.0.2.1"), "{sdp}");
    assert_eq!(bed.commands_of(call_id), ["open", "start"]);
    assert_eq!(bed.state(call_id), "connected");
    let states: Vec<State> = bed.changes.iter().map(|change| change.to).collect();
    assert_eq!(states.last(), Some(&State::Connected));
}

#[test]
fn answer_waits_until_the_engine_listens() {
    let mut bed = Bed::new();
    bed.starts_are_answered = false;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let call_id = bed.last_call_id();
    assert_eq!(bed.commands_of(call_id), ["open", "start"]);
    assert!(bed.heard.is_empty(), "a caller who is answered talks at once: {:?}", bed.heard);
    bed.pass(Duration::from_millis(3));
    bed.reply(call_id, EngineReply::Started(Ok(())));
    assert!(matches!(bed.heard.as_slice(), [Heard::Answered(_)]), "{:?}", bed.heard);
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn assistant_without_media_is_answered_by_signaling_alone() {
    let mut bed = Bed::new();
    bed.agent = Agent::None;
    let (call, call_id) = bed.connected();
    let Some(Heard::Answered(sdp)) = bed.heard.last() else { panic!("{:?}", bed.heard) };
    assert!(sdp.contains("a=inactive") && sdp.contains("c=IN IP4 192.0.2.1"), "{sdp}");
    assert_eq!(bed.state(call_id), "connected");
    bed.reinvite(call, Some(&offer("sendrecv", "8")));
    assert!(matches!(bed.heard.last(), Some(Heard::ReinviteAnswered(_))), "{:?}", bed.heard);
    bed.caller.hang_up(call, Headers::new(), bed.now).unwrap();
    bed.run();
    assert!(bed.commands.is_empty(), "no engine is asked: {:?}", bed.commands);
    assert_eq!(bed.calls.list("t1"), []);
}

#[test]
fn session_that_cannot_start_is_a_refusal_and_no_answer() {
    let mut bed = Bed::new();
    bed.starts_are_answered = false;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let call_id = bed.last_call_id();
    bed.reply(call_id, EngineReply::Started(Err(EngineRefusal::Gone)));
    assert!(matches!(bed.heard.as_slice(), [Heard::Refused { status: 500..=599, .. }]), "{:?}", bed.heard);
}

#[test]
fn engine_is_told_what_was_negotiated_and_who_calls() {
    let mut bed = Bed::new();
    bed.agent = Agent::Talker;
    let (_, call_id) = bed.connected();
    let EngineCommand::Open(request) = &bed.commands[0].2 else { panic!("open") };
    let rtp = request.rtp.as_ref().unwrap();
    assert_eq!((rtp.remote_address.as_str(), rtp.remote_port), ("192.0.2.9", 40_000));
    assert_eq!((rtp.codec(), rtp.payload_type, rtp.direction()), (Codec::Pcmu, 0, Direction::Sendrecv));
    let call = request.call.as_ref().unwrap();
    assert_eq!(call.call_id, call_id.to_string());
    assert_eq!(call.from, "sip:anna@example.com");
    assert_eq!(call.to, "sip:echo@192.0.2.1");
    let Some(agent::Target::Websocket(agent)) = &request.agent.as_ref().unwrap().target else {
        panic!("agent")
    };
    assert_eq!(agent.url, "ws://127.0.0.1:8767/v1/talk");
}

#[test]
fn external_agent_rings_until_its_connection_is_up() {
    let mut bed = Bed::new();
    bed.opens = Opens::Waiting;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "8")));
    let call_id = bed.last_call_id();
    assert_eq!(bed.heard, [Heard::Provisional(180)]);
    assert_eq!(bed.state(call_id), "ringing");
    bed.pass(Duration::from_millis(800));
    bed.session(call_id, SessionEvent::AgentConnected);
    assert!(matches!(bed.heard.last(), Some(Heard::Answered(_))));
    assert_eq!(bed.state(call_id), "connected");
    let setup = bed.changes.iter().find_map(|change| change.setup);
    assert_eq!(setup, Some(Duration::from_millis(800)));
}

#[test]
fn agent_that_is_up_before_the_engine_has_answered_is_not_forgotten() {
    let mut bed = Bed::new();
    bed.opens = Opens::Silent;
    bed.invite(&echo_uri(), Some(&offer("sendrecv", "0")));
    let call_id = bed.last_call_id();
    bed.session(call_id, SessionEvent::AgentConnected);
    assert!(bed.heard.is_empty());
    let opened = Box::new(crate::bed::opened(false));
    bed.reply(call_id, EngineReply::Opened(Ok(opened)));
    assert!(matches!(bed.heard.as_slice(), [Heard::Answered(_)]), "{:?}", bed.heard);
}

#[test]
fn caller_without_an_offer_gets_ours_and_answers_in_the_ack() {
    let mut bed = Bed::new();
    let call = bed.invite(&echo_uri(), None);
    let call_id = bed.last_call_id();
    let Some(Heard::Answered(ours)) = bed.heard.last() else { panic!("{:?}", bed.heard) };
    assert!(ours.contains("m=audio 20000 RTP/AVP 0 8"), "{ours}");
    assert_eq!(bed.commands_of(call_id), ["open"]);
    bed.caller.ack(call, Body::sdp(offer("sendrecv", "8")), bed.now).unwrap();
    bed.run();
    assert_eq!(bed.commands_of(call_id), ["open", "update", "start"]);
    assert_eq!((bed.last_update().codec(), bed.last_update().remote_port), (Codec::Pcma, 40_000));
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn answer_in_the_ack_that_fits_nothing_ends_the_call() {
    let mut bed = Bed::new();
    let call = bed.invite(&echo_uri(), None);
    bed.caller.ack(call, Body::sdp(offer("sendrecv", "18")), bed.now).unwrap();
    bed.run();
    assert!(matches!(bed.heard.last(), Some(Heard::Bye { .. })), "{:?}", bed.heard);
    let ending = bed.last_record().call.ending.clone().unwrap();
    assert_eq!((ending.reason.as_str(), ending.party.as_str()), ("bad_answer", "caller"));
}

#[test]
fn records_show_times_media_and_who() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.pass(Duration::from_secs(7));
    bed.caller.bye(call, Headers::new(), bed.now).unwrap();
    bed.run();
    let record = bed.last_record();
    assert_eq!(&*record.tenant_id, "t1");
    let call = &record.call;
    assert_eq!(call.call_id, call_id.to_string());
    assert_eq!((call.state.as_str(), call.created_ms), ("ended", crate::bed::WALL_MS));
    assert_eq!((call.answered_ms - call.created_ms, call.ended_ms - call.answered_ms), (0, 7_000));
    assert_eq!((call.from.as_str(), call.to.as_str()), ("sip:anna@example.com", "sip:echo@192.0.2.1"));
    let media = call.media.as_ref().unwrap();
    assert_eq!((media.codec.as_str(), media.local_port, media.rtp_sent), ("PCMU", 20_000, 50));
    assert_eq!(media.engine, "http://engine-0:7070");
    let steps: Vec<_> = call.decisions.iter().map(|step| step.step.as_str()).collect();
    assert_eq!(steps, ["credential", "principal", "assistant", "provider"]);
    assert!(bed.calls.is_empty() && bed.forgotten.contains(&call_id));
}

#[test]
fn key_stands_in_no_record() {
    let mut bed = Bed::new();
    bed.connected();
    assert!(bed.records.iter().all(|record| !format!("{record:?}").contains(crate::bed::KEY)));
    assert!(bed.commands.iter().all(|command| !format!("{command:?}").contains(crate::bed::KEY)));
}
