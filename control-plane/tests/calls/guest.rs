//! Somebody is brought into a call: put through to, consulted, listening in, whispering.

use std::time::Duration;

use control_plane::call::action::{EngineCommand, EngineRefusal};
use control_plane::call::gate::TenantLimits;
use control_plane::call::machine::Asked;
use control_plane::call::registry::joining::Guest;
use control_plane::media::SessionEvent;
use control_plane::trunk::{Phone, SrtpRules, Trunk, Trunks};
use tandem_api::engine::v1::session_ended::Reason;
use tandem_api::engine::v1::tell_agent_request::What as Tell;
use tandem_api::engine::v1::{Direction, LegRole, RtpParameters, SessionStats, TransferMode};
use tandem_sdp::SrtpPolicy;
use tandem_sip::message::{Body, Method, Reply};
use tandem_sip::{CallHandle, Headers};
use uuid::Uuid;

use crate::bed::{Bed, GUEST_PORT, Heard, offer};
use crate::place::trunk;
use crate::takeover::of_a_browser;

impl Bed {
    fn agent_wants(&mut self, call_id: Uuid, to: &str, mode: TransferMode) {
        self.session(call_id, SessionEvent::AgentTransfer { to: to.into(), mode });
    }

    fn operator_wants(&mut self, call_id: Uuid, to: &str, role: LegRole) -> Asked {
        let guest = Guest { to: to.into(), role, trunk: String::new() };
        let asked = self.calls.join("t1", call_id, &guest, self.now).unwrap();
        self.run();
        asked
    }

    /// What the agent has heard of the guest.
    fn told_of_guests(&self) -> Vec<String> {
        let told = self.told().into_iter().filter_map(|what| match what {
            Tell::Transfer(progress) => Some(format!("{} {}", progress.status, progress.reason)),
            Tell::Dtmf(_) => None,
        });
        told.map(|told| told.trim_end().to_owned()).collect()
    }

    /// The roles that the engine has been told of, in order, and whether the caller hears it ring.
    fn roles(&self) -> Vec<(LegRole, bool)> {
        let roles = self.commands.iter().filter_map(|(_, _, command)| match command {
            EngineCommand::AddLeg(add) => Some((add.role(), add.caller_rings)),
            EngineCommand::UpdateLeg(update) if update.role() != LegRole::Unspecified => {
                Some((update.role(), update.caller_rings))
            }
            _ => None,
        });
        roles.collect()
    }

    fn legs_removed(&self) -> usize {
        self.commands.iter().filter(|(_, _, command)| *command == EngineCommand::RemoveLeg).count()
    }

    fn guest_answers(&mut self) -> CallHandle {
        self.callee_says(200, Some(&offer("sendrecv", "0")));
        self.callee()
    }

    pub(crate) fn byes(&self) -> usize {
        self.heard.iter().filter(|heard| matches!(heard, Heard::Bye { .. })).count()
    }
}

/// A call in which the caller has been put through; the other side, the guest, and our id.
fn put_through() -> (Bed, CallHandle, CallHandle, Uuid) {
    let mut bed = Bed::new();
    let (callee, call_id) = bed.talking(&trunk(|_| {}));
    bed.agent_wants(call_id, "+4930333", TransferMode::Bridge);
    bed.callee_says(180, None);
    let guest = bed.guest_answers();
    (bed, callee, guest, call_id)
}

#[test]
fn caller_who_is_put_through_hears_it_ring_and_then_talks_with_the_guest() {
    let mut bed = Bed::new();
    let (callee, call_id) = bed.talking(&trunk(|_| {}));
    bed.agent_wants(call_id, "+4930333", TransferMode::Bridge);
    let invite = bed.incoming.last().unwrap().1.clone();
    assert_eq!(invite.uri.as_str(), "sip:+4930333@192.0.2.9:5060");
    let sdp = String::from_utf8_lossy(&invite.body).into_owned();
    assert!(sdp.contains(&format!("m=audio {GUEST_PORT} RTP/AVP")), "{sdp}");
    assert_eq!(bed.roles(), [(LegRole::Consult, true)]);
    bed.callee_says(180, None);
    assert_eq!(bed.told_of_guests(), ["trying", "ringing"]);
    let guest = bed.guest_answers();
    assert_ne!(guest, callee);
    assert_eq!(bed.roles(), [(LegRole::Consult, true), (LegRole::Bridge, false)]);
    let Some((_, _, EngineCommand::UpdateLeg(update))) =
        bed.commands.iter().rev().find(|(_, _, command)| matches!(command, EngineCommand::UpdateLeg(_)))
    else {
        panic!("an UpdateLeg")
    };
    assert_eq!(update.rtp.as_ref().unwrap().remote_port, 40_000);
    assert_eq!(bed.told_of_guests(), ["trying", "ringing", "joined"]);
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn guest_who_hangs_up_leaves_the_caller_with_the_agent() {
    let (mut bed, callee, guest, call_id) = put_through();
    bed.caller.bye(guest, Headers::new(), bed.now).unwrap();
    bed.run();
    assert_eq!(bed.told_of_guests().last().unwrap(), "left");
    assert_eq!((bed.legs_removed(), bed.state(call_id).as_str()), (1, "connected"));
    // And the next one may come.
    bed.agent_wants(call_id, "+4930444", TransferMode::Consult);
    assert_eq!(bed.incoming.last().unwrap().1.uri.user().unwrap(), "+4930444");
    bed.caller.bye(callee, Headers::new(), bed.now).unwrap();
    bed.run();
    assert!(bed.calls.is_empty());
}

#[test]
fn caller_who_hangs_up_ends_the_guests_call_too() {
    let (mut bed, callee, _, _) = put_through();
    bed.caller.bye(callee, Headers::new(), bed.now).unwrap();
    bed.run();
    assert_eq!(bed.byes(), 1, "to the guest: {:?}", bed.heard);
    assert!(bed.calls.is_empty());
    assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "callee_hangup");
}

#[test]
fn agent_may_leave_those_who_are_put_through_and_then_either_ends_the_call() {
    for gone in [SessionEvent::AgentHangup, SessionEvent::AgentFailed { reason: "closed".into() }] {
        let (mut bed, _, guest, call_id) = put_through();
        bed.session(call_id, gone);
        assert_eq!((bed.state(call_id).as_str(), bed.byes()), ("connected", 0));
        bed.caller.bye(guest, Headers::new(), bed.now).unwrap();
        bed.run();
        assert_eq!(bed.byes(), 1, "to the callee: {:?}", bed.heard);
        assert!(bed.calls.is_empty());
        assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "transferred");
    }
}

#[test]
fn guest_whose_phone_vanishes_is_let_go_as_if_it_had_hung_up() {
    let lost = || SessionEvent::LegLost { reason: Reason::MediaTimeout, detail: String::new() };
    let (mut bed, _, _, call_id) = put_through();
    bed.session(call_id, lost());
    assert_eq!(bed.told_of_guests().last().unwrap(), "left nothing was heard of it for too long");
    assert_eq!((bed.byes(), bed.legs_removed(), bed.state(call_id).as_str()), (1, 1, "connected"));
    bed.session(call_id, lost());
    assert_eq!(bed.legs_removed(), 1, "nobody is there");

    let (mut bed, _, _, call_id) = put_through();
    bed.session(call_id, SessionEvent::AgentHangup);
    bed.session(call_id, lost());
    assert_eq!(bed.byes(), 2, "to the guest and the callee: {:?}", bed.heard);
    assert!(bed.calls.is_empty());
    assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "transferred");
}

#[test]
fn consulted_guest_talks_with_the_agent_until_the_agent_puts_the_caller_through() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|_| {}));
    bed.agent_wants(call_id, "+4930333", TransferMode::Consult);
    bed.guest_answers();
    // An agent that hangs up while it consults ends the call: nobody would be left with the caller.
    bed.agent_wants(call_id, "", TransferMode::Conference);
    bed.agent_wants(call_id, "", TransferMode::Complete);
    let roles: Vec<LegRole> = bed.roles().into_iter().map(|(role, _)| role).collect();
    assert_eq!(roles, [LegRole::Listen, LegRole::Consult, LegRole::Conference, LegRole::Bridge]);
    assert_eq!(bed.told_of_guests(), ["trying", "joined"]);
}

#[test]
fn guest_who_refuses_or_does_not_answer_in_time_leaves_the_call_as_it_was() {
    let mut bed = Bed::new();
    let patience = Duration::from_secs(20);
    let (_, call_id) = bed.talking(&trunk(|trunk| trunk.outbound.ring_timeout = patience));
    bed.agent_wants(call_id, "+4930333", TransferMode::Bridge);
    bed.callee_refuses(Reply::new(486));
    assert_eq!(bed.told_of_guests(), ["trying", "failed 486 Busy Here"]);
    assert_eq!((bed.legs_removed(), bed.state(call_id).as_str()), (1, "connected"));
    bed.agent_wants(call_id, "+4930444", TransferMode::Bridge);
    bed.callee_says(180, None);
    bed.pass(patience);
    assert_eq!(bed.told_of_guests().last().unwrap(), "failed nobody answered in time");
    assert_eq!((bed.legs_removed(), bed.state(call_id).as_str()), (2, "connected"));
    // The CANCEL is answered, and nothing is left.
    bed.pass(Duration::from_secs(40));
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn engine_without_a_port_fails_the_guest_and_nobody_is_called() {
    let mut bed = Bed::new();
    bed.legs = Err(EngineRefusal::Full("no port".into()));
    let (_, call_id) = bed.talking(&trunk(|_| {}));
    let calls = bed.incoming.len();
    bed.agent_wants(call_id, "+4930333", TransferMode::Bridge);
    assert_eq!(bed.told_of_guests(), ["trying", "failed the media engine: no port"]);
    assert_eq!((bed.incoming.len(), bed.state(call_id).as_str()), (calls, "connected"));
}

#[test]
fn agent_takes_a_guest_back_whose_phone_rings() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|_| {}));
    bed.agent_wants(call_id, "", TransferMode::Cancel);
    bed.agent_wants(call_id, "+4930333", TransferMode::Consult);
    bed.callee_says(180, None);
    bed.agent_wants(call_id, "", TransferMode::Cancel);
    assert_eq!(
        bed.told_of_guests(),
        ["failed there is nobody", "trying", "ringing", "left the agent wants it so"]
    );
    assert!(bed.heard.iter().any(|heard| matches!(heard, Heard::Other(_))), "cancelled: {:?}", bed.heard);
}

#[test]
fn agent_may_only_bring_in_whom_the_trunks_targets_name() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|trunk| trunk.transfer.targets = vec!["+49 30".into()]));
    let calls = bed.incoming.len();
    bed.agent_wants(call_id, "+4940111", TransferMode::Bridge);
    bed.agent_wants(call_id, "sip:+4930333@evil.example", TransferMode::Consult);
    assert_eq!(bed.incoming.len(), calls);
    assert!(bed.told_of_guests().iter().all(|told| told.starts_with("failed")), "{:?}", bed.told_of_guests());
    bed.agent_wants(call_id, "+4930333", TransferMode::Bridge);
    assert_eq!(bed.incoming.len(), calls + 1);
}

#[test]
fn trunk_that_lets_agents_refer_nobody_lets_them_bring_in_nobody_either() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|trunk| trunk.transfer.refer_out = false));
    let calls = bed.incoming.len();
    for mode in [TransferMode::Bridge, TransferMode::Consult, TransferMode::Refer] {
        bed.agent_wants(call_id, "+4930333", mode);
    }
    assert_eq!(bed.told_of_guests(), ["failed the trunk's policy allows no transfer"; 3]);
    assert_eq!(bed.operator_wants(call_id, "+4930333", LegRole::Conference), Asked::Done, "operators may");
    assert_eq!(bed.incoming.len(), calls + 1);
}

#[test]
fn over_a_trunk_that_is_not_the_calls_own_only_listed_numbers_are_called() {
    for (targets, number, is_called) in [
        (vec![], "+4930333", false),
        (vec!["192.0.2.9"], "+4930333", false),
        (vec!["192.0.2.9", "+4930"], "+4930333", true),
        (vec!["192.0.2.9", "+4930"], "+4940111", false),
        (vec!["192.0.2.9"], "sip:desk@192.0.2.9", true),
        (vec!["192.0.2.9"], "sip:+4930333@192.0.2.9", false),
        (vec!["+4930"], "sip:desk@192.0.2.9", false),
    ] {
        let mut other = Trunk::clone(&trunk(|_| {}));
        other.transfer.targets = targets.iter().map(|target| (*target).to_owned()).collect();
        let mut bed = Bed::with_trunks(Trunks::new([other], []), TenantLimits::default());
        bed.guard = None;
        // It came with a key, and over no trunk.
        let (_, call_id) = bed.connected();
        bed.agent_wants(call_id, number, TransferMode::Consult);
        assert_eq!(bed.incoming.len(), usize::from(is_called), "{targets:?} {number}: {:?}", bed.told());
    }
}

#[test]
fn operator_who_listens_in_is_a_secret_and_one_who_whispers_is_not() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|_| {}));
    assert_eq!(bed.operator_wants(call_id, "+4930555", LegRole::Listen), Asked::Done);
    assert_eq!(bed.operator_wants(call_id, "+4930666", LegRole::Whisper), Asked::Busy);
    bed.guest_answers();
    assert_eq!(bed.told_of_guests(), [""; 0]);
    assert_eq!(bed.operator_wants(call_id, "", LegRole::Whisper), Asked::Done);
    let roles: Vec<LegRole> = bed.roles().into_iter().map(|(role, _)| role).collect();
    assert_eq!(roles, [LegRole::Listen, LegRole::Listen, LegRole::Whisper]);
    assert_eq!(bed.told_of_guests(), ["joined"]);
    // An agent that leaves ends such a call: the caller would hear nobody.
    bed.session(call_id, SessionEvent::AgentHangup);
    assert_eq!(bed.byes(), 2, "{:?}", bed.heard);
    assert!(bed.calls.is_empty());
}

#[test]
fn who_listens_in_is_nobody_to_the_agent_whatever_it_wants() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|_| {}));
    assert_eq!(bed.operator_wants(call_id, "+4930555", LegRole::Listen), Asked::Done);
    for answered in [false, true] {
        if answered {
            bed.guest_answers();
        }
        for mode in [TransferMode::Conference, TransferMode::Complete, TransferMode::Cancel] {
            bed.agent_wants(call_id, "", mode);
        }
    }
    assert_eq!(bed.told_of_guests(), ["failed there is nobody"; 6]);
    assert!(bed.roles().iter().all(|(role, _)| *role == LegRole::Listen), "{:?}", bed.roles());
    // Nor is it in the way of a transfer.
    bed.agent_wants(call_id, "+4930333", TransferMode::Refer);
    assert!(bed.heard.iter().any(|heard| matches!(heard, Heard::Refer { .. })));
    assert_eq!((bed.legs_removed(), bed.byes()), (0, 0));
}

#[test]
fn who_listens_in_gives_way_to_whom_the_agent_brings_in_and_finds_out_why() {
    for answered in [false, true] {
        let mut bed = Bed::new();
        let (_, call_id) = bed.talking(&trunk(|_| {}));
        bed.operator_wants(call_id, "+4930555", LegRole::Listen);
        if answered {
            bed.guest_answers();
        }
        bed.agent_wants(call_id, "+4930333", TransferMode::Consult);
        assert_eq!(bed.legs_removed(), 1);
        assert_eq!(bed.incoming.last().unwrap().1.uri.user().unwrap(), "+4930333");
        bed.guest_answers();
        assert_eq!(bed.told_of_guests(), ["trying", "joined"]);
        assert_eq!(bed.byes(), usize::from(answered), "{:?}", bed.heard);
        let decisions = bed.calls.get("t1", call_id).unwrap().decisions;
        let why = decisions.iter().find(|step| step.rule == "guest" && !step.passed).unwrap();
        assert!(why.got.ends_with("the agent brings somebody in"), "{}", why.got);
        // A supervisor is not let in on top of it.
        assert_eq!(bed.operator_wants(call_id, "+4930555", LegRole::Listen), Asked::Busy);
    }
}

#[test]
fn another_tenant_brings_nobody_in_and_a_call_that_rings_has_no_guests() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|_| {}));
    let guest = Guest { to: "1".into(), role: LegRole::Listen, trunk: String::new() };
    assert_eq!(bed.calls.join("t2", call_id, &guest, bed.now), None);
    assert_eq!(bed.operator_wants(call_id, "", LegRole::Listen), Asked::NoTarget);
    let ringing = bed.place(crate::place::order(&trunk(|_| {})));
    assert!(matches!(bed.operator_wants(ringing, "+4930555", LegRole::Listen), Asked::State(_)));
}

#[test]
fn guest_may_hold_and_refresh_and_nothing_else() {
    let (mut bed, _, guest, call_id) = put_through();
    bed.reinvite(guest, Some(&offer("sendonly", "0")));
    assert!(matches!(bed.heard.last(), Some(Heard::ReinviteAnswered(sdp)) if sdp.contains("a=recvonly")));
    let Some((_, _, EngineCommand::UpdateLeg(update))) = bed.commands.last() else { panic!("an UpdateLeg") };
    assert_eq!(update.rtp.as_ref().unwrap().direction(), Direction::Recvonly);
    assert_eq!(update.role(), LegRole::Unspecified, "as it was");
    assert_eq!(bed.request(guest, Method::Update, None).0, 200);
    assert_eq!(bed.request(guest, Method::Info, None).0, 200);
    bed.reinvite(guest, Some(&offer("sendrecv", "18")));
    assert!(matches!(bed.heard.last(), Some(Heard::ReinviteRefused(488))), "{:?}", bed.heard.last());
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn change_that_the_engine_refuses_leaves_the_guest_as_it_was() {
    let (mut bed, _, guest, call_id) = put_through();
    bed.leg_updates = Err(EngineRefusal::Invalid("rtp.codec".into()));
    bed.reinvite(guest, Some(&offer("sendonly", "0")));
    assert!(matches!(bed.heard.last(), Some(Heard::ReinviteRefused(488))), "{:?}", bed.heard.last());
    let hold = Body::sdp(offer("sendonly", "0"));
    assert_eq!(bed.request(guest, Method::Update, Some(hold)).0, 488);
    assert_eq!((bed.legs_removed(), bed.byes(), bed.state(call_id).as_str()), (0, 0, "connected"));
    bed.leg_updates = Ok(());
    bed.reinvite(guest, Some(&offer("sendonly", "0")));
    assert!(matches!(bed.heard.last(), Some(Heard::ReinviteAnswered(sdp)) if sdp.contains("a=recvonly")));
}

#[test]
fn update_of_a_guest_that_is_no_description_is_415_and_changes_nothing() {
    let (mut bed, _, guest, _) = put_through();
    let body = Body { content_type: "application/json", bytes: b"{}".to_vec() };
    assert_eq!(bed.request(guest, Method::Update, Some(body)).0, 415);
    // No offer of ours is open.
    let hold = Body::sdp(offer("sendonly", "0"));
    assert_eq!(bed.request(guest, Method::Update, Some(hold)).0, 200);
}

#[test]
fn guest_whose_answer_cannot_be_used_is_hung_up() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|_| {}));
    bed.agent_wants(call_id, "+4930333", TransferMode::Bridge);
    bed.callee_says(200, Some(&offer("sendrecv", "18")));
    assert!(bed.told_of_guests().last().unwrap().starts_with("left"), "{:?}", bed.told_of_guests());
    assert_eq!((bed.byes(), bed.legs_removed(), bed.state(call_id).as_str()), (1, 1, "connected"));
}

#[test]
fn calls_record_says_how_long_a_guest_talked_and_how_well_it_was_heard() {
    let of_leg = |lost| SessionStats {
        rtp_received: 97,
        rtp_lost: lost,
        jitter_ms: 2.0,
        mos: Some(4.2),
        ..SessionStats::default()
    };
    for ends_the_call in [false, true] {
        let (mut bed, callee, guest, call_id) = put_through();
        bed.pass(Duration::from_secs(12));
        bed.session(call_id, SessionEvent::LegReport { stats: Box::new(of_leg(1)) });
        bed.leg_removals = Ok(of_leg(3));
        bed.caller.bye(if ends_the_call { callee } else { guest }, Headers::new(), bed.now).unwrap();
        bed.run();
        if !ends_the_call {
            bed.caller.bye(callee, Headers::new(), bed.now).unwrap();
            bed.run();
        }
        let decisions = &bed.last_record().call.decisions;
        let last: Vec<&str> = decisions
            .iter()
            .filter(|step| step.field.starts_with("second leg of +4930333"))
            .map(|step| step.got.as_str())
            .collect();
        // With the call goes the leg: what was reported is what is known.
        let lost = if ends_the_call { "1 of 98" } else { "3 of 100" };
        assert_eq!(last, [format!("12 s, {lost} lost, jitter 2.0 ms, MOS 4.2")]);
    }
}

#[test]
fn engine_that_does_not_remove_the_leg_of_one_who_has_gone_is_asked_again_and_then_given_up() {
    let (mut bed, _, guest, call_id) = put_through();
    bed.leg_removals = Err(EngineRefusal::Unreachable("no answer in time".into()));
    bed.caller.bye(guest, Headers::new(), bed.now).unwrap();
    bed.run();
    assert_eq!(bed.legs_removed(), 3);
    assert_eq!(bed.state(call_id), "gone");
    assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "engine_lost");
    // That there is none is as good.
    let (mut bed, _, guest, call_id) = put_through();
    bed.leg_removals = Err(EngineRefusal::Gone);
    bed.caller.bye(guest, Headers::new(), bed.now).unwrap();
    bed.run();
    assert_eq!((bed.legs_removed(), bed.state(call_id).as_str()), (1, "connected"));
}

#[test]
fn invite_of_a_guest_that_leaves_too_late_is_hung_up() {
    let mut bed = Bed::new();
    let (callee, call_id) = bed.talking(&trunk(|_| {}));
    bed.invites_leave = false;
    bed.agent_wants(call_id, "+4930333", TransferMode::Bridge);
    let verb = bed.held_back.pop().expect("an INVITE");
    bed.agent_wants(call_id, "", TransferMode::Cancel);
    bed.verb(verb);
    bed.run();
    bed.pass(Duration::from_secs(1));
    assert_eq!(bed.state(call_id), "connected");
    bed.caller.bye(callee, Headers::new(), bed.now).unwrap();
    bed.run();
    assert!(bed.calls.is_empty());
}

/// What the engine was last told of the guest's leg.
fn last_of_leg(bed: &Bed) -> RtpParameters {
    let told = bed.commands.iter().rev().find_map(|(_, _, command)| match command {
        EngineCommand::UpdateLeg(update) => update.rtp.clone(),
        _ => None,
    });
    told.expect("an UpdateLeg with RTP")
}

#[test]
fn browser_is_brought_in_with_credentials_of_its_own_and_keeps_them_through_a_hold() {
    let srtp = SrtpRules { mode: Some(SrtpPolicy::Required), offers_dtls: true, ..SrtpRules::default() };
    let phone = Phone { user: "anna".into(), tenant_id: "t1".into(), srtp, ..Phone::default() };
    for role in [LegRole::Bridge, LegRole::Consult, LegRole::Listen] {
        let mut bed = Bed::with_trunks(Trunks::new([], [phone.clone()]), TenantLimits::default());
        let (_, call_id) = bed.talking(&trunk(|_| {}));
        assert_eq!(bed.operator_wants(call_id, "phone:anna", role), Asked::Done);
        let offer = String::from_utf8_lossy(&bed.incoming.last().unwrap().1.body).into_owned();
        for line in
            [&format!("m=audio {GUEST_PORT} UDP/TLS/RTP/SAVPF"), "a=ice-lite", "a=fingerprint:sha-256 CD:CD"]
        {
            assert!(offer.contains(line), "{line}: {offer}");
        }
        bed.callee_says(200, Some(&of_a_browser().replace("actpass", "active")));
        let guest = bed.callee();
        let told = last_of_leg(&bed);
        let dtls = told.dtls.clone().unwrap();
        assert_eq!((dtls.active, dtls.remote_ufrag.as_str()), (false, "them"));
        assert_eq!(dtls.remote_fingerprint, [0xAB; 32]);
        assert!(offer.contains(&format!("a=ice-ufrag:{}\r\n", dtls.local_ufrag)), "{offer}");
        assert_eq!(told.srtp, None);

        bed.reinvite(guest, Some(&of_a_browser().replace("sendrecv", "sendonly")));
        let held = last_of_leg(&bed);
        assert_eq!((held.direction(), held.dtls), (Direction::Recvonly, Some(dtls)));
        assert_eq!(bed.state(call_id), "connected");
    }
}

#[test]
fn phone_that_must_be_protected_and_answers_in_the_clear_does_not_come_in() {
    let srtp = SrtpRules { mode: Some(SrtpPolicy::Required), offers_dtls: true, ..SrtpRules::default() };
    let phone = Phone { user: "anna".into(), tenant_id: "t1".into(), srtp, ..Phone::default() };
    let mut bed = Bed::with_trunks(Trunks::new([], [phone]), TenantLimits::default());
    let (_, call_id) = bed.talking(&trunk(|_| {}));
    assert_eq!(bed.operator_wants(call_id, "phone:anna", LegRole::Bridge), Asked::Done);
    bed.guest_answers();
    assert_eq!((bed.byes(), bed.legs_removed(), bed.state(call_id).as_str()), (1, 1, "connected"));
}

#[test]
fn silence_ends_no_call_into_which_somebody_is_brought_but_a_secret_listener_hinders_nothing() {
    let idle = || SessionEvent::Idle { idle_ms: 30_000 };
    for mode in [TransferMode::Bridge, TransferMode::Consult] {
        let mut bed = Bed::new();
        let (_, call_id) = bed.talking(&trunk(|_| {}));
        bed.agent_wants(call_id, "+4930333", mode);
        bed.session(call_id, idle());
        assert_eq!(bed.state(call_id), "connected", "{mode:?}: it rings");
        let guest = bed.guest_answers();
        bed.session(call_id, idle());
        assert_eq!(bed.state(call_id), "connected", "{mode:?}: they talk");
        bed.caller.bye(guest, Headers::new(), bed.now).unwrap();
        bed.run();
        bed.session(call_id, idle());
        assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "idle");
    }
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|_| {}));
    assert_eq!(bed.operator_wants(call_id, "+4930333", LegRole::Listen), Asked::Done);
    bed.guest_answers();
    bed.session(call_id, idle());
    assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "idle");
    assert_eq!(bed.byes(), 2);
}
