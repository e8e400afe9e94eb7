//! Calls that a provider places for us, what its callbacks say, and what proves that a media connection is the provider's.

use std::time::Duration;

use control_plane::call::action::{EngineCommand, EngineReply, UpgradeAnswer};
use control_plane::call::machine::{Asked, DIAL_TRIES, MEDIA_WITHIN, RETURN_WAIT, TransferTo};
use control_plane::call::order::Order;
use control_plane::call::registry::claiming::{Claimed, EXPECTED_WITHIN, check_upgrade};
use control_plane::media::{Listed, ListedStream, News, SessionEvent, StreamEnd, Upgrade};
use control_plane::provider::client::{Errand, Outcome};
use control_plane::provider::rest::{FailureClass, Refused};
use control_plane::provider::status::{AnsweredBy, CallStatus};
use control_plane::provider::webhook::StatusEvent;
use control_plane::provider::{ControlOutcome, DialOutcome};
use control_plane::store::contexts::{CallContext, Claim, ProviderSide};
use tandem_api::v1 as api;
use uuid::Uuid;

use crate::bed::{Bed, Held, addr, credentials};
use crate::place::{order, trunk};

/// Where the bed's engine is reached.
const BASE: &str = "wss://media.example.com:443";

fn provider_order() -> Order {
    let deployment = credentials().deployments()[0].clone();
    Order {
        provider: Some(deployment),
        ring_max: Duration::from_secs(30),
        args: [("plan".to_owned(), "gold".to_owned())].into(),
        ..order(&trunk(|_| {}))
    }
}

fn accepted() -> Outcome {
    Outcome::Dialled(DialOutcome::Accepted { provider_call_id: "CA1".to_owned() })
}

fn refused(class: FailureClass, retry_after_s: Option<u32>) -> Outcome {
    let detail = "no".to_owned();
    let refused = Refused { class, http_status: 429, code: "20429".to_owned(), detail, retry_after_s };
    Outcome::Dialled(DialOutcome::Refused(refused))
}

fn says(bed: &mut Bed, call_id: Uuid, status: CallStatus) {
    says_of(bed, call_id, "CA1", status);
}

fn says_of(bed: &mut Bed, call_id: Uuid, provider_call_id: &str, status: CallStatus) {
    let event = StatusEvent {
        provider_call_id: provider_call_id.to_owned(),
        status: Some(status),
        ..StatusEvent::default()
    };
    assert!(bed.calls.handle_status(call_id, event, bed.now));
    bed.run();
}

fn upgrade_of(bed: &Bed, signature: Option<&str>) -> Upgrade {
    let claim = bed.minted.last().expect("a claim was minted").1.claim;
    connection(claim, "u1", signature)
}

fn connection(claim: Claim, name: &str, signature: Option<&str>) -> Upgrade {
    let headers = signature.map(|value| ("x-twilio-signature".to_owned(), value.to_owned()));
    Upgrade {
        upgrade_id: name.to_owned(),
        provider: "twilio".into(),
        claim,
        path_and_query: format!("/v1/media/twilio/{}", claim.0),
        headers: headers.into_iter().collect(),
        source: addr("198.51.100.7:40001"),
        is_secure: true,
    }
}

fn come(bed: &mut Bed, upgrade: Upgrade) {
    bed.news(0, News::Upgrade(Box::new(upgrade)));
}

fn dials(bed: &Bed) -> usize {
    bed.errands.iter().filter(|(_, errand)| matches!(errand, Errand::Dial(_))).count()
}

fn hung_up(bed: &Bed) -> Vec<&str> {
    let calls = bed.errands.iter().filter_map(|(_, errand)| match errand {
        Errand::HangUp { call } => Some(call.as_str()),
        _ => None,
    });
    calls.collect()
}

fn ended(bed: &Bed, call_id: Uuid) -> api::Call {
    let of_call = bed.records.iter().rev().find(|record| record.call.call_id == call_id.to_string());
    of_call.expect("a record").call.clone()
}

fn reason(bed: &Bed, call_id: Uuid) -> String {
    ended(bed, call_id).ending.expect("it has ended").reason
}

fn pass(bed: &mut Bed, time: Duration) {
    bed.now += time;
    bed.calls.handle_timeout(bed.now);
    bed.run();
}

/// A call of ours that rings there.
fn ringing() -> (Bed, Uuid) {
    let mut bed = Bed::new();
    bed.outcomes.push_back(accepted());
    let call_id = bed.place(provider_order());
    says(&mut bed, call_id, CallStatus::Ringing);
    assert_eq!(bed.state(call_id), "ringing");
    (bed, call_id)
}

// --- a call that we place ---

#[test]
fn call_is_kept_then_dialled_rings_and_talks_when_its_media_come() {
    let mut bed = Bed::new();
    bed.outcomes.push_back(accepted());
    let call_id = bed.place(provider_order());
    assert_eq!(bed.state(call_id), "dialing");
    let (context, mint) = bed.minted[0].clone();
    assert_eq!((context.call_id, context.direction), (call_id, "outbound"));
    let Errand::Dial(dial) = &bed.errands[0].1 else { panic!("{:?}", bed.errands) };
    assert_eq!((dial.to.as_str(), dial.ring_s), ("+4930222", 30));
    assert_eq!(dial.plan.media_url, format!("wss://media.example.com:443/v1/media/twilio/{}", mint.claim.0));
    let event_id = context.provider.unwrap().event_id;
    assert_eq!(
        dial.plan.callback_url,
        format!("https://tandem.example.com/v1/telephony/twilio/event/{event_id}")
    );
    assert_ne!(event_id, mint.claim.0, "whoever reads a callback's URL cannot take the media");
    assert!(mint.ttl >= Duration::from_secs(300));

    says(&mut bed, call_id, CallStatus::Initiated);
    says(&mut bed, call_id, CallStatus::Ringing);
    assert_eq!(bed.state(call_id), "ringing");
    assert!(bed.commands_of(call_id).is_empty(), "no engine before the media");
    says(&mut bed, call_id, CallStatus::Answered);
    let upgrade = upgrade_of(&bed, None);
    come(&mut bed, upgrade);
    assert_eq!(bed.commands_of(call_id), ["open", "start"]);
    assert_eq!(bed.state(call_id), "connected");
    let named = bed.commands.iter().find_map(|(_, _, command)| match command {
        EngineCommand::Open(request) => request.stream.clone(),
        _ => None,
    });
    let named = named.unwrap();
    assert_eq!((named.upgrade_id.as_str(), named.provider_call_id.as_str()), ("u1", "CA1"));
    let gone =
        SessionEvent::StreamDropped { how: StreamEnd::Stop, leg_may_live: false, reason: "stop".into() };
    bed.session(call_id, gone);
    let call = ended(&bed, call_id);
    let ending = call.ending.unwrap();
    assert_eq!((ending.reason.as_str(), ending.party.as_str()), ("callee_hangup", "callee"));
    let provider = call.provider.unwrap();
    assert_eq!((provider.name.as_str(), provider.call_id.as_str()), ("twilio", "CA1"));
    assert_eq!(provider.status, "answered");
    assert!(hung_up(&bed).is_empty(), "the provider has ended it itself");
    assert!(bed.calls.is_empty() && bed.forgotten.contains(&call_id));
}

#[test]
fn callbacks_in_any_order_and_doubled_change_nothing_after_the_end() {
    let (mut bed, call_id) = ringing();
    says(&mut bed, call_id, CallStatus::Busy);
    assert_eq!(reason(&bed, call_id), "busy");
    assert!(hung_up(&bed).is_empty());
    let event = StatusEvent {
        provider_call_id: "CA1".into(),
        status: Some(CallStatus::Answered),
        ..Default::default()
    };
    assert!(!bed.calls.handle_status(call_id, event, bed.now), "it is over");
    let (mut bed, call_id) = ringing();
    says(&mut bed, call_id, CallStatus::Initiated);
    says(&mut bed, call_id, CallStatus::Ringing);
    assert_eq!(bed.state(call_id), "ringing");
    // Another leg of the same conversation.
    says_of(&mut bed, call_id, "leg-2", CallStatus::Completed);
    assert_eq!(bed.state(call_id), "ringing");
}

#[test]
fn endings_of_the_provider_have_their_words() {
    for (status, word) in [
        (CallStatus::Busy, "busy"),
        (CallStatus::NoAnswer, "no_answer"),
        (CallStatus::Rejected, "rejected"),
        (CallStatus::Failed, "failed"),
        (CallStatus::Canceled, "failed"),
        (CallStatus::Completed, "callee_hangup"),
    ] {
        let (mut bed, call_id) = ringing();
        says(&mut bed, call_id, status);
        assert_eq!(reason(&bed, call_id), word, "{status:?}");
        assert!(bed.calls.is_empty());
    }
}

#[test]
fn call_that_never_rings_is_ended_and_hung_up_there() {
    let mut bed = Bed::new();
    bed.outcomes.push_back(accepted());
    let call_id = bed.place(provider_order());
    pass(&mut bed, Duration::from_secs(44));
    assert_eq!(bed.state(call_id), "dialing");
    bed.outcomes.push_back(Outcome::Controlled(ControlOutcome::Done));
    pass(&mut bed, Duration::from_secs(2));
    assert_eq!(reason(&bed, call_id), "no_answer");
    assert_eq!(hung_up(&bed), ["CA1"]);
    assert!(bed.calls.is_empty());
    let trace = ended(&bed, call_id).decisions;
    assert!(
        trace.iter().any(|step| step.rule == "connect_monitor" && step.got.contains("never said")),
        "{trace:?}"
    );
}

#[test]
fn answered_call_whose_media_never_come_is_hung_up_and_says_why() {
    let (mut bed, call_id) = ringing();
    says(&mut bed, call_id, CallStatus::Answered);
    pass(&mut bed, MEDIA_WITHIN - Duration::from_secs(1));
    assert_eq!(bed.state(call_id), "ringing");
    bed.outcomes.push_back(Outcome::Controlled(ControlOutcome::Done));
    pass(&mut bed, Duration::from_secs(2));
    assert_eq!(reason(&bed, call_id), "media_never_came");
    assert_eq!(hung_up(&bed), ["CA1"]);
}

#[test]
fn what_was_not_dialled_is_tried_again_and_nothing_else_is() {
    let mut bed = Bed::new();
    bed.outcomes.push_back(refused(FailureClass::RateLimited, Some(7)));
    bed.outcomes.push_back(accepted());
    let call_id = bed.place(provider_order());
    assert_eq!(dials(&bed), 1);
    pass(&mut bed, Duration::from_secs(6));
    assert_eq!(dials(&bed), 1, "the provider has said when");
    pass(&mut bed, Duration::from_secs(2));
    assert_eq!((dials(&bed), bed.state(call_id).as_str()), (2, "dialing"));

    for (outcome, word) in [
        (refused(FailureClass::InvalidNumber, None), "unreachable"),
        (refused(FailureClass::Auth, None), "provider_refused"),
    ] {
        let mut bed = Bed::new();
        bed.outcomes.push_back(outcome);
        let call_id = bed.place(provider_order());
        assert_eq!((dials(&bed), reason(&bed, call_id).as_str()), (1, word));
        assert!(bed.calls.is_empty());
    }
    let mut bed = Bed::new();
    bed.outcomes.push_back(Outcome::Dialled(DialOutcome::Unknown { detail: "502 from a gateway".into() }));
    let call_id = bed.place(provider_order());
    pass(&mut bed, Duration::from_secs(30));
    assert_eq!((dials(&bed), bed.state(call_id).as_str()), (1, "dialing"), "it may ring there");
    says(&mut bed, call_id, CallStatus::Ringing);
    assert_eq!(bed.state(call_id), "ringing", "the callback has told its name");
    assert!(bed.calls.hang_up("t1", call_id, bed.now));
    bed.run();
    assert_eq!(hung_up(&bed), ["CA1"]);
}

#[test]
fn provider_that_is_out_of_order_ends_the_call_after_its_tries() {
    let mut bed = Bed::new();
    for _ in 0..DIAL_TRIES {
        bed.outcomes.push_back(refused(FailureClass::Provider, None));
    }
    let call_id = bed.place(provider_order());
    for _ in 0..DIAL_TRIES {
        pass(&mut bed, Duration::from_secs(3));
    }
    assert_eq!(dials(&bed), DIAL_TRIES as usize);
    assert_eq!(reason(&bed, call_id), "provider_unavailable");
    assert!(hung_up(&bed).is_empty(), "there is nothing to hang up");
}

#[test]
fn call_that_ends_while_the_provider_is_asked_is_hung_up_as_soon_as_it_has_answered() {
    for is_late in [false, true] {
        let mut bed = Bed::new();
        let call_id = bed.place(provider_order());
        assert!(bed.calls.hang_up("t1", call_id, bed.now));
        bed.run();
        assert!(!bed.calls.is_empty(), "the provider may be dialling");
        if is_late {
            pass(&mut bed, Duration::from_secs(6));
            assert!(bed.calls.is_empty(), "it is not waited for forever");
        }
        let credential = credentials().get("signed").unwrap().clone();
        bed.calls.handle_errand(call_id, &credential, accepted(), bed.now);
        bed.run();
        assert_eq!(hung_up(&bed), ["CA1"]);
    }
}

#[test]
fn store_that_is_away_dials_nobody() {
    let mut bed = Bed::new();
    bed.claims = None;
    let call_id = bed.place(provider_order());
    assert_eq!((dials(&bed), reason(&bed, call_id).as_str()), (0, "store_failed"));
}

#[test]
fn agent_that_hangs_up_leaves_no_leg_alive_at_the_provider() {
    let (mut bed, call_id) = ringing();
    let upgrade = upgrade_of(&bed, None);
    come(&mut bed, upgrade);
    bed.session(call_id, SessionEvent::AgentHangup);
    assert_eq!(reason(&bed, call_id), "agent_hangup");
    assert_eq!(hung_up(&bed), ["CA1"]);
}

#[test]
fn media_are_taken_though_the_node_is_full_of_calls_by_then() {
    let limits = control_plane::config::Limits { calls_max: 1, ..Default::default() };
    let mut bed = Bed::with(limits, 1);
    bed.outcomes.push_back(accepted());
    let call_id = bed.place(provider_order());
    let upgrade = upgrade_of(&bed, None);
    come(&mut bed, upgrade);
    assert_eq!(bed.state(call_id), "connected", "it is the one call itself");
}

#[test]
fn media_may_be_faster_than_the_answer_to_the_dial() {
    let mut bed = Bed::new();
    let call_id = bed.place(provider_order());
    let upgrade = upgrade_of(&bed, None);
    come(&mut bed, upgrade);
    assert_eq!(bed.state(call_id), "connected");
    let credential = credentials().get("signed").unwrap().clone();
    bed.calls.handle_errand(call_id, &credential, accepted(), bed.now);
    bed.run();
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn what_picked_up_is_in_the_record() {
    let (mut bed, call_id) = ringing();
    let event = StatusEvent {
        provider_call_id: "CA1".into(),
        answered_by: Some(AnsweredBy::MachineBeep),
        ..StatusEvent::default()
    };
    bed.calls.handle_status(call_id, event, bed.now);
    bed.run();
    let call = bed.calls.get("t1", call_id).unwrap();
    assert_eq!(call.provider.unwrap().answered_by, "machine_beep");
}

#[test]
fn connection_that_speaks_what_we_cannot_carry_is_not_the_callers_fault() {
    let (mut bed, _) = signed();
    let reason_told = "its format is audio/amr";
    let fault =
        SessionEvent::StreamDropped { how: StreamEnd::Fault, leg_may_live: true, reason: reason_told.into() };
    bed.session(inbound().call_id, fault);
    let ending = ended(&bed, inbound().call_id).ending.unwrap();
    assert_eq!(ending.reason, "stream_fault");
    assert!(ending.detail.contains(reason_told), "{ending:?}");
    assert_eq!(hung_up(&bed), ["CA1"]);
}

#[test]
fn stop_after_which_the_leg_may_live_is_followed_by_a_hang_up() {
    let (mut bed, _) = signed();
    let stop =
        SessionEvent::StreamDropped { how: StreamEnd::Stop, leg_may_live: true, reason: "stopped".into() };
    bed.session(inbound().call_id, stop);
    assert_eq!(reason(&bed, inbound().call_id), "hangup");
    assert_eq!(hung_up(&bed), ["CA1"]);
}

#[test]
fn what_the_connection_said_while_the_engine_was_not_heard_is_caught_up_with() {
    let (mut bed, good) = signed();
    bed.news(0, News::Down);
    let stream =
        Some(ListedStream { is_dropped: true, provider_call_id: "CA1".into(), codec: "PCMU".into() });
    let listed = Listed { agent_ready: true, stream, ..Listed::default() };
    bed.engine_lists(0, "instance-1", [(inbound().call_id, listed)].into());
    come(&mut bed, connection(CLAIM, "u2", Some(&good)));
    let (_, name, answer) = bed.upgrade_answers.last().unwrap();
    assert_eq!((name.as_str(), answer), ("u2", &UpgradeAnswer::Retake(inbound().call_id)));
}

// --- handed on ---

fn transfers(bed: &Bed) -> Vec<(&str, &str)> {
    let transfers = bed.errands.iter().filter_map(|(_, errand)| match errand {
        Errand::Transfer { to, from, .. } => Some((to.as_str(), from.as_str())),
        _ => None,
    });
    transfers.collect()
}

#[test]
fn provider_puts_the_caller_through_where_the_deployment_lets_it() {
    let (mut bed, _) = signed();
    let call_id = inbound().call_id;
    let to = |number: &str| TransferTo::Blind(number.to_owned());
    for wrong in ["+4930555", "sip:anna@evil.example", "+1415", "1415/x@y"] {
        let asked = bed.calls.transfer("t1", call_id, to(wrong), bed.now).unwrap();
        assert!(matches!(asked, Asked::Policy(_)), "{wrong}: {asked:?}");
    }
    bed.outcomes.push_back(Outcome::Controlled(ControlOutcome::Done));
    assert_eq!(bed.calls.transfer("t1", call_id, to("+14155550123"), bed.now), Some(Asked::Done));
    bed.run();
    assert_eq!(transfers(&bed), [("+14155550123", "+14155550100")]);
    let asked = bed.calls.transfer_to(call_id).unwrap();
    assert_eq!(asked, ("+14155550123".to_owned(), "+14155550100".to_owned()), "for those that fetch it");
    bed.session(
        call_id,
        SessionEvent::StreamDropped { how: StreamEnd::Stop, leg_may_live: true, reason: "stop".into() },
    );
    assert_eq!(reason(&bed, call_id), "transferred");
    assert!(hung_up(&bed).is_empty(), "the caller talks on");
}

#[test]
fn transfer_whose_stop_overtakes_its_answer_is_one_and_so_is_one_that_leaves_us_the_media() {
    let to = || TransferTo::Blind("+14155550123".into());
    let (mut bed, _) = signed();
    let call_id = inbound().call_id;
    assert_eq!(bed.calls.transfer("t1", call_id, to(), bed.now), Some(Asked::Done));
    bed.run();
    let stop =
        SessionEvent::StreamDropped { how: StreamEnd::Stop, leg_may_live: true, reason: "stop".into() };
    bed.session(call_id, stop);
    assert_eq!(reason(&bed, call_id), "transferred");
    assert!(hung_up(&bed).is_empty());

    let (mut bed, _) = signed();
    bed.outcomes.push_back(Outcome::Controlled(ControlOutcome::Done));
    bed.calls.transfer("t1", call_id, to(), bed.now);
    bed.run();
    pass(&mut bed, Duration::from_secs(120));
    assert_eq!(reason(&bed, call_id), "transferred", "nobody is there any more");
    assert!(hung_up(&bed).is_empty());
}

#[test]
fn call_whose_name_comes_after_its_end_is_hung_up_then() {
    let mut bed = Bed::new();
    bed.outcomes.push_back(Outcome::Dialled(DialOutcome::Unknown { detail: "no answer".into() }));
    bed.opens = crate::bed::Opens::Silent;
    let call_id = bed.place(provider_order());
    let upgrade = upgrade_of(&bed, None);
    come(&mut bed, upgrade);
    assert!(bed.calls.hang_up("t1", call_id, bed.now));
    bed.run();
    assert!(hung_up(&bed).is_empty(), "nobody knows its name");
    assert_eq!(bed.state(call_id), "ending", "the engine has not said its last word");
    says(&mut bed, call_id, CallStatus::Ringing);
    assert_eq!(hung_up(&bed), ["CA1"]);
}

#[test]
fn transfer_that_the_provider_refuses_leaves_the_caller_with_the_agent() {
    let (mut bed, _) = signed();
    let call_id = inbound().call_id;
    bed.outcomes.push_back(Outcome::Unsupported("not by this one".into()));
    let to = TransferTo::Blind("+14155550123".into());
    assert_eq!(bed.calls.transfer("t1", call_id, to, bed.now), Some(Asked::Done));
    bed.run();
    assert_eq!(bed.state(call_id), "connected");
    let told = format!("{:?}", bed.told());
    assert!(told.contains("failed") && told.contains("not by this one"), "{told}");
}

// --- what proves a connection ---

fn inbound() -> CallContext {
    CallContext {
        call_id: Uuid::from_u128(0xCA11),
        tenant_id: "t1".into(),
        assistant_id: "echo".into(),
        direction: "inbound",
        from: "+4930111".into(),
        to: "+14155550100".into(),
        engine: String::new(),
        provider: Some(ProviderSide {
            name: "twilio".into(),
            credential: "signed".into(),
            call_id: Some("CA1".into()),
            event_id: Uuid::from_u128(0xE7),
        }),
        arguments: Default::default(),
    }
}

const CLAIM: Claim = Claim(Uuid::from_u128(0xC1A1));

fn signature(url: &str) -> String {
    use base64::Engine as _;
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"hunter2");
    base64::engine::general_purpose::STANDARD.encode(ring::hmac::sign(&key, url.as_bytes()))
}

#[test]
fn connection_without_the_providers_signature_is_forged() {
    let good = signature(&format!("{BASE}/v1/media/twilio/{}", CLAIM.0));
    let check = |given: Option<&str>| {
        check_upgrade(&credentials(), &inbound(), &connection(CLAIM, "u", given), BASE, 1_800_000_000)
    };
    assert_eq!(check(Some(&good)), Ok(()));
    assert!(check(None).is_err());
    assert!(check(Some(&signature("wss://media.example.com/else"))).is_err());
    let unknown = CallContext {
        provider: inbound().provider.map(|side| ProviderSide { credential: "gone".into(), ..side }),
        ..inbound()
    };
    assert!(check_upgrade(&credentials(), &unknown, &connection(CLAIM, "u", Some(&good)), BASE, 0).is_err());
}

#[test]
fn forged_connection_is_refused_and_the_genuine_one_still_comes() {
    let mut bed = Bed::new();
    bed.claims_wait = true;
    come(&mut bed, connection(CLAIM, "forged", None));
    let (engine, asked) = bed.asked.pop().unwrap();
    let forged = Claimed::Forged(Box::new(inbound()), "no signature".into());
    bed.calls.handle_claimed(engine, asked, forged, bed.now);
    bed.run();
    let Some((_, name, UpgradeAnswer::Refuse { status, .. })) = bed.upgrade_answers.last() else { panic!() };
    assert_eq!((name.as_str(), *status), ("forged", 403));
    assert!(bed.forgotten.is_empty(), "its claim is what it was");
}

/// An inbound call whose connection signs, and talks.
fn signed() -> (Bed, String) {
    let mut bed = Bed::new();
    bed.claims.as_mut().unwrap().insert(CLAIM, Held::Fresh(Box::new(inbound())));
    let good = signature(&format!("{BASE}/v1/media/twilio/{}", CLAIM.0));
    come(&mut bed, connection(CLAIM, "u1", Some(&good)));
    let started = SessionEvent::StreamStarted { provider_call_id: "CA1".into(), codec: "PCMU".into() };
    bed.session(inbound().call_id, started);
    assert_eq!(bed.state(inbound().call_id), "connected");
    (bed, good)
}

fn dropped() -> SessionEvent {
    SessionEvent::StreamDropped { how: StreamEnd::Drop, leg_may_live: true, reason: "reset".into() }
}

#[test]
fn whoever_comes_back_must_prove_itself_too() {
    let (mut bed, good) = signed();
    bed.session(inbound().call_id, dropped());
    come(&mut bed, connection(CLAIM, "u2", Some("forged")));
    let Some((_, name, UpgradeAnswer::Refuse { status, .. })) = bed.upgrade_answers.last() else { panic!() };
    assert_eq!((name.as_str(), *status), ("u2", 403));
    come(&mut bed, connection(CLAIM, "u3", Some(&good)));
    let (_, name, answer) = bed.upgrade_answers.last().unwrap();
    assert_eq!((name.as_str(), answer), ("u3", &UpgradeAnswer::Retake(inbound().call_id)));
}

#[test]
fn connection_that_is_told_before_the_drop_waits_for_it() {
    let (mut bed, good) = signed();
    come(&mut bed, connection(CLAIM, "u2", Some(&good)));
    assert!(bed.upgrade_answers.is_empty(), "it may be the same call, whose drop is not told yet");
    bed.session(inbound().call_id, dropped());
    let (_, name, answer) = bed.upgrade_answers.last().unwrap();
    assert_eq!((name.as_str(), answer), ("u2", &UpgradeAnswer::Retake(inbound().call_id)));

    let (mut bed, good) = signed();
    come(&mut bed, connection(CLAIM, "u2", Some(&good)));
    pass(&mut bed, RETURN_WAIT);
    let Some((_, name, UpgradeAnswer::Refuse { status, .. })) = bed.upgrade_answers.last() else { panic!() };
    assert_eq!((name.as_str(), *status), ("u2", 409), "the call has its connection");
    assert_eq!(bed.state(inbound().call_id), "connected");
}

#[test]
fn engine_that_drains_takes_no_claim() {
    let mut bed = Bed::with(Default::default(), 2);
    bed.claims_wait = true;
    bed.news(0, News::Heartbeat { sessions: 1, draining: true });
    come(&mut bed, connection(CLAIM, "u1", None));
    let Some((_, _, UpgradeAnswer::Refuse { status, retry_after_s, .. })) = bed.upgrade_answers.last() else {
        panic!()
    };
    assert!(*status == 503 && *retry_after_s > 0);
    assert!(bed.asked.is_empty());
}

#[test]
fn nonsense_is_nobodys_claim_without_asking_the_store() {
    let mut bed = Bed::new();
    bed.claims_wait = true;
    come(&mut bed, connection(Claim(Uuid::nil()), "u1", None));
    let Some((_, _, UpgradeAnswer::Refuse { status, .. })) = bed.upgrade_answers.last() else { panic!() };
    assert_eq!(*status, 404);
    assert!(bed.asked.is_empty());
}

// --- a call that was announced ---

#[test]
fn announced_call_whose_media_never_come_is_told_and_hung_up() {
    let mut bed = Bed::new();
    bed.claims.as_mut().unwrap().insert(CLAIM, Held::Fresh(Box::new(inbound())));
    bed.calls.expect_media(CLAIM, inbound(), bed.now);
    pass(&mut bed, EXPECTED_WITHIN);
    let refusal = bed.refusals.last().expect("a line for operators");
    assert_eq!(refusal.ending.cause.row().word, "media_never_came");
    assert_eq!(refusal.call_id, inbound().call_id);
    assert_eq!(hung_up(&bed), ["CA1"]);
    assert!(bed.forgotten.contains(&inbound().call_id));
    come(&mut bed, connection(CLAIM, "late", None));
    assert_eq!(bed.calls.len(), 0, "it comes too late");
}

#[test]
fn announced_call_that_came_or_that_another_node_has_is_not_missed() {
    let mut bed = Bed::new();
    bed.claims.as_mut().unwrap().insert(CLAIM, Held::Fresh(Box::new(inbound())));
    bed.calls.expect_media(CLAIM, inbound(), bed.now);
    come(&mut bed, connection(CLAIM, "u1", None));
    pass(&mut bed, EXPECTED_WITHIN);
    assert_eq!(bed.calls.len(), 1);
    // A store that is away is asked again.
    let late = Claim(Uuid::from_u128(5));
    let kept = bed.claims.take();
    bed.calls.expect_media(late, CallContext { call_id: Uuid::from_u128(6), ..inbound() }, bed.now);
    pass(&mut bed, EXPECTED_WITHIN);
    assert!(bed.refusals.is_empty());
    bed.claims = kept;
    let context = CallContext { call_id: Uuid::from_u128(6), ..inbound() };
    bed.claims.as_mut().unwrap().insert(late, Held::Fresh(Box::new(context)));
    pass(&mut bed, EXPECTED_WITHIN);
    assert_eq!(bed.refusals.len(), 1);
    bed.refusals.clear();
    bed.errands.clear();
    // Taken elsewhere.
    let other = Claim(Uuid::from_u128(7));
    bed.claims.as_mut().unwrap().insert(other, Held::Taken(Uuid::from_u128(8)));
    bed.calls.expect_media(other, CallContext { call_id: Uuid::from_u128(8), ..inbound() }, bed.now);
    pass(&mut bed, EXPECTED_WITHIN);
    assert!(bed.refusals.is_empty() && hung_up(&bed).is_empty());
}

#[test]
fn full_or_draining_node_has_no_place_for_media() {
    let limits = control_plane::config::Limits { calls_max: 1, ..Default::default() };
    let mut bed = Bed::with(limits, 1);
    let place = bed.calls.find_media_place("t1").unwrap();
    assert_eq!(place.engine, "http://engine-0:7070");
    bed.outcomes.push_back(accepted());
    bed.place(provider_order());
    assert_eq!(bed.calls.find_media_place("t1").unwrap_err().cause.row().word, "too_many_calls");
    bed.calls.drain(bed.now);
    assert_eq!(bed.calls.find_media_place("t1").unwrap_err().cause.row().word, "draining");
}

#[test]
fn slow_set_up_is_not_the_callers_fault() {
    let mut bed = Bed::new();
    bed.opens = crate::bed::Opens::Silent;
    bed.claims.as_mut().unwrap().insert(CLAIM, Held::Fresh(Box::new(inbound())));
    come(&mut bed, connection(CLAIM, "u1", None));
    bed.now += Duration::from_millis(2_100);
    let gone = EngineReply::Opened(Err(control_plane::call::action::EngineRefusal::Gone));
    bed.reply(inbound().call_id, gone);
    assert_eq!(reason(&bed, inbound().call_id), "engine_fault");
    assert_eq!(bed.refusals.len(), 1, "operators hear of it");
}

#[test]
fn pause_of_the_connection_is_not_silence_of_the_caller() {
    let (mut bed, _) = signed();
    bed.session(inbound().call_id, dropped());
    bed.session(inbound().call_id, SessionEvent::Idle { idle_ms: 30_000 });
    assert_eq!(bed.state(inbound().call_id), "connected");
}
