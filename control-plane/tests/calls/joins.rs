//! Two calls that are alive are joined: one becomes a guest of the other.

use control_plane::call::action::{EngineCommand, EngineRefusal, EngineReply};
use control_plane::call::machine::Asked;
use control_plane::call::registry::joining::Guest;
use control_plane::media::{Listed, SessionEvent};
use tandem_api::engine::v1::session_ended::Reason;
use tandem_api::engine::v1::tell_agent_request::What as Tell;
use tandem_api::engine::v1::{Direction, LegRole, SessionStats, TransferMode};
use tandem_sip::message::{Body, Method};
use tandem_sip::{CallHandle, Headers};
use uuid::Uuid;

use crate::bed::{Bed, Heard, echo_uri, offer};
use crate::place::trunk;

/// Two callers who talk with the echo: the phone and the id of each.
fn two_calls() -> (Bed, (CallHandle, Uuid), (CallHandle, Uuid)) {
    let mut bed = Bed::new();
    let (one, two) = (bed.connected(), bed.connected());
    assert_ne!(one.1, two.1);
    (bed, one, two)
}

impl Bed {
    fn joins_calls(&mut self, call_id: Uuid, other: Uuid) -> Asked {
        let asked = self.calls.join_calls("t1", call_id, other, self.now).unwrap();
        self.run();
        asked
    }

    fn ends(&mut self, phone: CallHandle) {
        self.caller.bye(phone, Headers::new(), self.now).unwrap();
        self.run();
    }

    fn count_byes(&self) -> usize {
        self.heard.iter().filter(|heard| matches!(heard, Heard::Bye { .. })).count()
    }

    /// The reason that the newest record of a call gives.
    fn reason(&self, call_id: Uuid) -> String {
        let id = call_id.to_string();
        let record = self.records.iter().rev().find(|record| record.call.call_id == id).unwrap();
        record.call.ending.clone().map(|ending| ending.reason).unwrap_or_default()
    }
}

fn joined_event() -> SessionEvent {
    let stats = SessionStats { rtp_sent: 71, ..SessionStats::default() };
    SessionEvent::Ended { reason: Reason::Joined, stats: Some(stats), detail: String::new() }
}

#[test]
fn other_call_ends_without_a_bye_and_its_phone_is_a_guest() {
    let (mut bed, (_, call_id), (_, other)) = two_calls();
    assert_eq!(bed.joins_calls(call_id, other), Asked::Done);
    let joins: Vec<_> =
        bed.commands.iter().filter(|(_, _, c)| matches!(c, EngineCommand::Join { .. })).collect();
    let [(_, of, EngineCommand::Join { other: which, role })] = joins.as_slice() else { panic!("{joins:?}") };
    assert_eq!((*of, *which, *role), (call_id, other, LegRole::Bridge));
    assert_eq!((bed.state(call_id).as_str(), bed.state(other).as_str()), ("connected", "gone"));
    assert_eq!(bed.count_byes(), 0);
    assert_eq!(bed.commands_of(other).last(), Some(&"start"), "its session is not closed: it has ended");
    let record = bed.records.iter().rev().find(|record| record.call.call_id == other.to_string()).unwrap();
    let ending = record.call.ending.clone().unwrap();
    assert_eq!(
        (ending.reason.as_str(), ending.party.as_str(), record.call.state.as_str()),
        ("joined", "us", "ended")
    );
    let media = record.call.media.clone().unwrap();
    assert_eq!((media.rtp_sent, media.codec.as_str()), (70, "PCMU"));
    let step = record.call.decisions.last().unwrap();
    assert!(step.rule == "joined" && step.passed && step.got.contains(&call_id.to_string()), "{step:?}");
    let steps = bed.calls.get("t1", call_id).unwrap().decisions;
    assert!(
        steps.iter().any(|step| step.rule == "guest" && step.got.contains(&other.to_string())),
        "{steps:?}"
    );
    let told: Vec<_> = bed.told();
    assert!(matches!(told.as_slice(), [Tell::Transfer(progress)] if progress.status == "joined"), "{told:?}");
}

#[test]
fn bye_of_the_joined_phone_removes_its_leg_and_bye_of_the_caller_ends_both() {
    let (mut bed, (caller, call_id), (phone, other)) = two_calls();
    bed.joins_calls(call_id, other);
    bed.ends(phone);
    assert_eq!(bed.commands_of(call_id).last(), Some(&"tell"), "{:?}", bed.commands_of(call_id));
    assert!(bed.commands_of(call_id).contains(&"remove_leg"));
    assert_eq!((bed.state(call_id).as_str(), bed.count_byes()), ("connected", 0));
    bed.ends(caller);
    assert!(bed.calls.is_empty());

    let (mut bed, (caller, call_id), (_, other)) = two_calls();
    bed.joins_calls(call_id, other);
    bed.ends(caller);
    assert_eq!(bed.count_byes(), 1, "to the joined phone: {:?}", bed.heard);
    assert!(bed.calls.is_empty());
    assert_eq!((bed.reason(call_id).as_str(), bed.reason(other).as_str()), ("hangup", "joined"));
}

#[test]
fn agent_may_leave_the_two_and_then_either_ends_the_call() {
    let (mut bed, _, (phone, _)) = {
        let (mut bed, (caller, call_id), (phone, other)) = two_calls();
        bed.joins_calls(call_id, other);
        bed.session(call_id, SessionEvent::AgentHangup);
        assert_eq!((bed.state(call_id).as_str(), bed.count_byes()), ("connected", 0));
        (bed, caller, (phone, other))
    };
    bed.ends(phone);
    assert_eq!(bed.count_byes(), 1, "to the caller: {:?}", bed.heard);
    assert!(bed.calls.is_empty());
    assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "transferred");
}

#[test]
fn joined_phone_holds_and_refreshes_by_its_leg() {
    let (mut bed, (_, call_id), (phone, other)) = two_calls();
    bed.joins_calls(call_id, other);
    bed.reinvite(phone, Some(&offer("sendonly", "0")));
    assert!(matches!(bed.heard.last(), Some(Heard::ReinviteAnswered(sdp)) if sdp.contains("a=recvonly")));
    let Some((_, of, EngineCommand::UpdateLeg(update))) = bed.commands.last() else { panic!("an UpdateLeg") };
    assert_eq!((*of, update.rtp.as_ref().unwrap().direction()), (call_id, Direction::Recvonly));
    bed.reinvite(phone, Some(&offer("sendrecv", "0")));
    assert!(matches!(bed.heard.last(), Some(Heard::ReinviteAnswered(sdp)) if sdp.contains("a=sendrecv")));
    assert_eq!(bed.request(phone, Method::Update, None).0, 200);
    assert_eq!(bed.request(phone, Method::Update, Some(Body::sdp(offer("sendonly", "0")))).0, 200);
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn call_of_ours_is_joined_to_one_that_came() {
    let mut bed = Bed::new();
    let (callee, placed) = bed.talking(&trunk(|_| {}));
    let (caller, call_id) = bed.connected();
    assert_eq!(bed.joins_calls(call_id, placed), Asked::Done);
    assert_eq!((bed.reason(placed).as_str(), bed.state(call_id).as_str()), ("joined", "connected"));
    bed.ends(caller);
    assert_eq!(bed.count_byes(), 1, "to the callee");
    assert!(bed.calls.is_empty());
    let _ = callee;
}

#[test]
fn refusal_of_the_engine_leaves_both_calls_as_they_were() {
    let (mut bed, (caller, call_id), (phone, other)) = two_calls();
    bed.joins = Some(Err(EngineRefusal::Full("all sockets of the core are in use".into())));
    assert_eq!(bed.joins_calls(call_id, other), Asked::Done);
    assert_eq!((bed.state(call_id).as_str(), bed.state(other).as_str()), ("connected", "connected"));
    assert_eq!((bed.count_byes(), bed.told().len()), (0, 0), "its agent has heard nothing of it");
    assert!(!bed.commands_of(call_id).contains(&"remove_leg"));
    let steps = bed.calls.get("t1", other).unwrap().decisions;
    assert!(steps.iter().any(|step| step.rule == "joined" && !step.passed), "{steps:?}");
    // Both go on by themselves, and may be joined again.
    bed.reinvite(phone, Some(&offer("sendonly", "0")));
    bed.reinvite(phone, Some(&offer("sendrecv", "0")));
    bed.joins = Some(Ok(SessionStats::default()));
    assert_eq!(bed.joins_calls(call_id, other), Asked::Done);
    assert_eq!(bed.state(other), "gone");
    bed.ends(caller);
    assert!(bed.calls.is_empty());
}

#[test]
fn only_calls_of_one_tenant_that_are_at_rest_are_joined() {
    let (mut bed, (_, call_id), (_, other)) = two_calls();
    let now = bed.now;
    assert_eq!(bed.calls.join_calls("t2", call_id, other, now), Err(call_id));
    let nobody = Uuid::from_u128(7);
    assert_eq!(bed.calls.join_calls("t1", call_id, nobody, now), Err(nobody));
    assert!(matches!(bed.joins_calls(call_id, call_id), Asked::Policy(_)));
    let ringing = bed.place(crate::place::order(&trunk(|_| {})));
    assert!(matches!(bed.joins_calls(call_id, ringing), Asked::State(_)));
    assert!(matches!(bed.joins_calls(ringing, call_id), Asked::State(_)));
    bed.calls.hold("t1", other, true, now);
    bed.run();
    assert!(matches!(bed.joins_calls(call_id, other), Asked::Policy(why) if why.contains("hold")));
    bed.calls.hold("t1", other, false, now);
    bed.run();
    let guest = Guest { to: String::new(), role: LegRole::Listen, trunk: String::new() };
    assert_eq!(bed.joins_calls(call_id, other), Asked::Done);
    let (_, third) = bed.connected();
    assert_eq!(bed.joins_calls(call_id, third), Asked::Busy, "it has a guest");
    assert_eq!(bed.joins_calls(third, call_id), Asked::Busy);
    // But who is there may have another role.
    assert_eq!(bed.calls.join("t1", call_id, &guest, bed.now), Some(Asked::Done));
}

#[test]
fn calls_on_two_engines_are_not_joined() {
    let mut bed = Bed::with(Default::default(), 2);
    let (one, two) = (bed.connected().1, bed.connected().1);
    let on = |id| bed.commands.iter().find(|(_, of, _)| *of == id).unwrap().0;
    assert_ne!(on(one), on(two), "the bed spreads them");
    assert!(matches!(bed.joins_calls(one, two), Asked::Policy(why) if why.contains("engines")));
}

#[test]
fn while_the_engine_joins_them_nothing_is_changed_and_its_event_may_come_first() {
    let (mut bed, (caller, call_id), (phone, other)) = two_calls();
    bed.joins = None;
    assert_eq!(bed.joins_calls(call_id, other), Asked::Done);
    assert_eq!(bed.state(other), "connected");
    bed.reinvite(phone, Some(&offer("sendonly", "0")));
    assert!(matches!(bed.heard.last(), Some(Heard::ReinviteRefused(491))), "{:?}", bed.heard.last());
    assert_eq!(bed.calls.hold("t1", other, true, bed.now), Some(Asked::Busy));
    assert_eq!(bed.joins_calls(call_id, other), Asked::Busy);
    bed.session(other, joined_event());
    assert_eq!(bed.state(other), "connected", "the answer says the same in a moment");
    bed.reply(call_id, EngineReply::Joined(other, Ok(Box::default())));
    assert_eq!((bed.state(call_id).as_str(), bed.reason(other).as_str()), ("connected", "joined"));
    let of_other =
        |record: &&control_plane::call::record::CallRecord| record.call.call_id == other.to_string();
    let last = bed.records.iter().rev().find(of_other).unwrap();
    assert_eq!(last.call.media.clone().unwrap().rtp_sent, 71, "as the event says");
    bed.ends(caller);
    assert_eq!(bed.count_byes(), 1);
    assert!(bed.calls.is_empty());
}

#[test]
fn either_may_hang_up_while_the_engine_joins_them() {
    // The other phone: what has landed is removed.
    let (mut bed, (caller, call_id), (phone, other)) = two_calls();
    bed.joins = None;
    bed.joins_calls(call_id, other);
    bed.ends(phone);
    assert_eq!(bed.reason(other), "hangup");
    bed.reply(call_id, EngineReply::Joined(other, Ok(Box::default())));
    assert!(bed.commands_of(call_id).contains(&"remove_leg"), "{:?}", bed.commands_of(call_id));
    assert_eq!(bed.state(call_id), "connected");
    bed.ends(caller);
    assert!(bed.calls.is_empty());

    // The caller: the other one has nobody any more.
    for is_done in [true, false] {
        let (mut bed, (caller, call_id), (phone, other)) = two_calls();
        bed.joins = None;
        bed.joins_calls(call_id, other);
        bed.ends(caller);
        let answer = if is_done { Ok(Box::default()) } else { Err(EngineRefusal::Gone) };
        bed.reply(call_id, EngineReply::Joined(other, answer));
        if is_done {
            assert_eq!((bed.count_byes(), bed.reason(other).as_str()), (1, "joined"));
        } else {
            assert_eq!((bed.count_byes(), bed.state(other).as_str()), (0, "connected"));
            bed.ends(phone);
        }
        assert!(bed.calls.is_empty(), "{is_done}");
    }
}

#[test]
fn lost_answer_leaves_nobody_without_media() {
    let (mut bed, (_, call_id), (_, other)) = two_calls();
    bed.joins = None;
    bed.joins_calls(call_id, other);
    // The engine has done it, and only its event arrives.
    bed.session(other, joined_event());
    let lost = EngineRefusal::Unreachable("no answer in time".into());
    bed.reply(call_id, EngineReply::Joined(other, Err(lost)));
    assert_eq!((bed.reason(other).as_str(), bed.count_byes()), ("engine_lost", 1));
    assert!(bed.commands_of(call_id).contains(&"remove_leg"));
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn nobody_takes_the_place_of_a_joined_phone() {
    let (mut bed, (caller, call_id), (phone, other)) = two_calls();
    bed.joins_calls(call_id, other);
    let byes = bed.count_byes();
    let heard = bed.replace(phone, &echo_uri(), Some(&offer("sendrecv", "0")));
    assert!(matches!(heard, Heard::Refused { .. }), "{heard:?}");
    assert_eq!(
        (bed.state(call_id).as_str(), bed.count_byes()),
        ("connected", byes),
        "both are where they were"
    );
    // The call's own dialog may be taken as ever.
    assert!(matches!(bed.replace(caller, &echo_uri(), Some(&offer("sendrecv", "0"))), Heard::Answered(_)));
    bed.ends(phone);
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn engine_that_lists_it_no_more_before_it_has_answered_costs_no_phone() {
    let (mut bed, (_, call_id), (_, other)) = two_calls();
    bed.joins = None;
    bed.joins_calls(call_id, other);
    let listed = Listed { agent_ready: true, ..Listed::default() };
    bed.engine_lists(0, "instance-1", [(call_id, listed)].into());
    assert_eq!((bed.state(other).as_str(), bed.count_byes()), ("connected", 0));
    bed.reply(call_id, EngineReply::Joined(other, Ok(Box::default())));
    assert_eq!((bed.state(call_id).as_str(), bed.reason(other).as_str()), ("connected", "joined"));
    assert_eq!(bed.count_byes(), 0);
}

#[test]
fn agent_cannot_send_away_who_is_being_joined() {
    let (mut bed, (_, call_id), (_, other)) = two_calls();
    bed.joins = None;
    bed.joins_calls(call_id, other);
    bed.session(call_id, SessionEvent::AgentTransfer { to: String::new(), mode: TransferMode::Cancel });
    bed.reply(call_id, EngineReply::Joined(other, Ok(Box::default())));
    assert_eq!((bed.state(call_id).as_str(), bed.reason(other).as_str()), ("connected", "joined"));
    assert!(!bed.commands_of(call_id).contains(&"remove_leg"), "{:?}", bed.commands_of(call_id));
    assert_eq!(bed.count_byes(), 0);
}
