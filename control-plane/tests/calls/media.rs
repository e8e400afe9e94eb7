//! Calls by a provider's media connection: the claim, the session on the engine that has the connection, and every way out.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use control_plane::call::action::{EngineCommand, EngineRefusal, EngineReply, UpgradeAnswer};
use control_plane::call::agent::Agent;
use control_plane::call::machine::{Asked, RETURN_WAIT, TransferTo};
use control_plane::call::registry::claiming::{CLAIMS_MAX, Claimed};
use control_plane::call::registry::joining::Guest;
use control_plane::config::Limits;
use control_plane::media::{EngineId, Listed, News, SessionEvent, StreamEnd, Upgrade};
use control_plane::store::contexts::{CallContext, Claim, ProviderSide};
use tandem_api::engine::v1 as engine;
use tandem_api::engine::v1::session_ended::Reason;
use tandem_api::engine::v1::tell_agent_request::What;
use uuid::Uuid;

use crate::bed::{Bed, Held, Opens, addr, opened};

const CALL: Uuid = Uuid::from_u128(0xCA11);
const CLAIM: Claim = Claim(Uuid::from_u128(0xC1A1));

fn context(assistant_id: &str, direction: &'static str) -> CallContext {
    CallContext {
        call_id: CALL,
        tenant_id: "t1".into(),
        assistant_id: assistant_id.into(),
        direction,
        from: "+4930111".into(),
        to: "+4930222".into(),
        engine: String::new(),
        provider: Some(ProviderSide {
            name: "twilio".into(),
            // It proves nothing when it comes; what does is in providers.rs.
            credential: "main".into(),
            call_id: Some("CA1".into()),
            event_id: Uuid::from_u128(0xE7),
        }),
        arguments: BTreeMap::from([("plan".to_owned(), "gold".to_owned())]),
    }
}

fn upgrade(name: &str) -> Upgrade {
    Upgrade {
        upgrade_id: name.to_owned(),
        provider: "twilio".into(),
        claim: CLAIM,
        path_and_query: format!("/v1/media/twilio/{}", CLAIM.0),
        headers: HashMap::new(),
        source: addr("198.51.100.7:40001"),
        is_secure: true,
    }
}

/// A bed whose context store has the claim of a call.
fn minted(mut bed: Bed) -> Bed {
    mint(&mut bed, context("echo", "inbound"));
    bed
}

fn mint(bed: &mut Bed, context: CallContext) {
    bed.claims.as_mut().unwrap().insert(CLAIM, Held::Fresh(Box::new(context)));
}

fn come(bed: &mut Bed, engine: usize, upgrade: Upgrade) {
    bed.news(engine, News::Upgrade(Box::new(upgrade)));
}

/// A call that talks.
fn connected() -> Bed {
    let mut bed = minted(Bed::new());
    come(&mut bed, 0, upgrade("u1"));
    bed.session(CALL, started("CA1"));
    assert_eq!(bed.state(CALL), "connected");
    bed
}

fn started(provider_call_id: &str) -> SessionEvent {
    SessionEvent::StreamStarted { provider_call_id: provider_call_id.into(), codec: "PCMU".into() }
}

fn gone(is_stop: bool) -> SessionEvent {
    SessionEvent::StreamDropped {
        how: if is_stop { StreamEnd::Stop } else { StreamEnd::Drop },
        leg_may_live: !is_stop,
        reason: "so it is".into(),
    }
}

fn ended(reason: Reason) -> SessionEvent {
    let stats = Some(engine::SessionStats { rtp_received: 9, ..Default::default() });
    SessionEvent::Ended { reason, stats, detail: "nobody came".into() }
}

/// The last refusal of a connection: its name, HTTP status and Retry-After.
fn refused(bed: &Bed) -> (&str, u16, u32) {
    match bed.upgrade_answers.last() {
        Some((_, name, UpgradeAnswer::Refuse { status, retry_after_s, .. })) => {
            (name, *status, *retry_after_s)
        }
        other => panic!("{other:?}"),
    }
}

fn reason(bed: &Bed) -> String {
    bed.last_record().call.ending.clone().unwrap().reason
}

fn last_line(bed: &Bed) -> (&'static str, String) {
    let line = bed.refusals.last().expect("a line for operators");
    (line.ending.cause.row().word, line.step.rule.clone())
}

fn open_of(bed: &Bed) -> (EngineId, engine::OpenSessionRequest) {
    let mut opens = bed.commands.iter().filter_map(|(engine, _, command)| match command {
        EngineCommand::Open(request) => Some((*engine, (**request).clone())),
        _ => None,
    });
    opens.next_back().expect("an Open")
}

// --- the life of one ---

#[test]
fn claim_opens_a_session_on_the_engine_that_asked_and_the_agent_starts_it() {
    let mut bed = minted(Bed::with(Limits::default(), 2));
    bed.opens = Opens::Waiting;
    // The other one has less to do.
    bed.news(1, News::Heartbeat { sessions: 50, draining: false });
    come(&mut bed, 1, upgrade("u1"));
    let (engine, open) = open_of(&bed);
    assert_eq!(engine, EngineId(1));
    let leg = open.stream.unwrap();
    assert_eq!((leg.upgrade_id.as_str(), leg.provider_call_id.as_str()), ("u1", "CA1"));
    assert_eq!(open.rtp, None);
    let call = open.call.unwrap();
    assert_eq!((call.from.as_str(), call.to.as_str()), ("+4930111", "+4930222"));
    assert_eq!((call.direction.as_str(), call.tenant_id.as_str()), ("inbound", "t1"));
    assert_eq!(bed.state(CALL), "ringing");
    assert_eq!(bed.remembered.last().unwrap().engine, "http://engine-1:7070");

    bed.news(1, News::Session { session_id: CALL, event: SessionEvent::AgentConnected });
    assert_eq!(bed.commands_of(CALL), ["open", "start"]);
    assert_eq!(bed.state(CALL), "connected");
    assert!(bed.upgrade_answers.is_empty() && bed.refusals.is_empty() && bed.incoming.is_empty());
}

#[test]
fn arguments_of_the_webhook_reach_the_agent() {
    let mut bed = minted(Bed::new());
    bed.agent = Agent::from_stored("grpc", r#"{"url":"grpc://agent.example.com:1"}"#).unwrap();
    come(&mut bed, 0, upgrade("u1"));
    let (_, open) = open_of(&bed);
    assert!(format!("{:?}", open.agent).contains("gold"), "{open:?}");
}

#[test]
fn provider_stops_and_the_record_says_everything() {
    let mut bed = connected();
    bed.pass(Duration::from_secs(3));
    bed.session(CALL, gone(true));
    assert_eq!(bed.commands_of(CALL), ["open", "start", "close"]);
    let call = bed.last_record().call.clone();
    assert_eq!((call.state.as_str(), reason(&bed).as_str()), ("ended", "hangup"));
    assert_eq!((call.direction.as_str(), call.assistant_id.as_str()), ("inbound", "echo"));
    assert_eq!((call.from.as_str(), call.to.as_str()), ("+4930111", "+4930222"));
    assert_eq!(call.ended_ms - call.answered_ms, 3_000);
    let media = call.media.unwrap();
    assert_eq!((media.codec.as_str(), media.encrypted, media.rtp_sent), ("PCMU", true, 50));
    assert!(call.decisions.iter().all(|step| step.passed), "{:?}", call.decisions);
    assert_eq!(call.decisions[0].rule, "claim");
    assert!(bed.calls.is_empty() && bed.forgotten.contains(&CALL));
    let late = bed.remembered.len();
    bed.session(CALL, started("CA1"));
    assert_eq!(bed.remembered.len(), late, "a late word brings nothing back");
}

#[test]
fn call_that_we_have_placed_ends_by_its_callee() {
    let mut bed = Bed::new();
    mint(&mut bed, context("echo", "outbound"));
    come(&mut bed, 0, upgrade("u1"));
    bed.session(CALL, gone(true));
    let call = bed.last_record().call.clone();
    assert_eq!((call.direction.as_str(), reason(&bed).as_str()), ("outbound", "callee_hangup"));
    assert_eq!(call.ending.unwrap().party, "callee");
}

#[test]
fn provider_names_its_call_and_callbacks_can_find_it() {
    let mut bed = Bed::new();
    let mut unnamed = context("echo", "inbound");
    unnamed.provider.as_mut().unwrap().call_id = None;
    mint(&mut bed, unnamed);
    come(&mut bed, 0, upgrade("u1"));
    assert_eq!(open_of(&bed).1.stream.unwrap().provider_call_id, "");
    bed.session(CALL, started("CA7"));
    let provider = bed.remembered.last().unwrap().provider.clone().unwrap();
    assert_eq!(provider.call_id.as_deref(), Some("CA7"));
}

#[test]
fn agent_and_operator_hang_up() {
    let mut bed = connected();
    bed.session(CALL, SessionEvent::AgentHangup);
    assert_eq!(bed.commands_of(CALL), ["open", "start", "close"]);
    assert_eq!(reason(&bed), "agent_hangup");

    let mut bed = connected();
    assert!(!bed.calls.hang_up("t2", CALL, bed.now));
    assert!(bed.calls.hang_up("t1", CALL, bed.now));
    bed.run();
    assert_eq!(bed.commands_of(CALL), ["open", "start", "close"]);
    assert_eq!(reason(&bed), "operator_hangup");
    assert!(bed.calls.is_empty() && bed.upgrade_answers.is_empty());
}

#[test]
fn call_lasts_no_longer_than_a_call_may() {
    let limits = Limits { call_duration_max: Duration::from_secs(60), ..Limits::default() };
    let mut bed = minted(Bed::with(limits, 1));
    come(&mut bed, 0, upgrade("u1"));
    bed.pass(Duration::from_secs(61));
    assert_eq!(reason(&bed), "max_duration");
    assert!(bed.calls.is_empty());
}

// --- connections that are refused ---

#[test]
fn claim_that_nobody_has_is_refused_by_404_and_operators_hear_of_it() {
    let mut bed = Bed::new();
    come(&mut bed, 0, upgrade("u1"));
    assert_eq!(refused(&bed), ("u1", 404, 0));
    assert_eq!(last_line(&bed), ("unknown_claim", "claim".to_owned()));
    assert_eq!(bed.refusals[0].source, addr("198.51.100.7:40001"));
    let shown = format!("{:?}", bed.refusals[0]);
    assert!(!shown.contains(&CLAIM.0.to_string()), "a claim is never shown: {shown}");
    assert!(bed.commands.is_empty() && bed.calls.is_empty() && bed.records.is_empty());
}

#[test]
fn claim_is_taken_once() {
    let mut bed = connected();
    come(&mut bed, 0, upgrade("u2"));
    // It may be the same call, whose drop is told a moment later.
    bed.pass(RETURN_WAIT);
    assert_eq!(refused(&bed), ("u2", 409, 0));
    assert_eq!(bed.state(CALL), "connected");
    assert!(!bed.forgotten.contains(&CALL));
}

#[test]
fn context_of_a_live_call_with_a_fresh_claim_is_a_conflict_and_stays() {
    let mut bed = minted(Bed::with(Limits::default(), 2));
    come(&mut bed, 0, upgrade("u1"));
    bed.session(CALL, started("CA1"));
    mint(&mut bed, context("echo", "inbound"));
    // At another engine: it cannot be the same connection again.
    come(&mut bed, 1, upgrade("u2"));
    assert_eq!(refused(&bed), ("u2", 409, 0));
    assert_eq!(last_line(&bed).0, "claim_taken");
    assert_eq!(bed.state(CALL), "connected");
    assert!(!bed.forgotten.contains(&CALL));
}

#[test]
fn store_that_is_away_means_503_and_another_try() {
    let mut bed = Bed::new();
    bed.claims = None;
    come(&mut bed, 0, upgrade("u1"));
    let (name, status, retry_after_s) = refused(&bed);
    assert_eq!((name, status), ("u1", 503));
    assert!(retry_after_s > 0);
    assert_eq!(last_line(&bed).0, "store_failed");
}

#[test]
fn full_node_refuses_by_503_and_the_claim_is_there_for_another_try() {
    let limits = Limits { calls_max: 1, ..Limits::default() };
    let mut bed = minted(Bed::with(limits, 1));
    let (other, _) = bed.connected();
    come(&mut bed, 0, upgrade("u1"));
    let (name, status, retry_after_s) = refused(&bed);
    assert_eq!((name, status), ("u1", 503));
    assert!(retry_after_s > 0);
    assert_eq!(last_line(&bed), ("too_many_calls", "calls_max".to_owned()));

    bed.caller.bye(other, tandem_sip::Headers::new(), bed.now).unwrap();
    bed.run();
    come(&mut bed, 0, upgrade("u2"));
    assert_eq!(bed.state(CALL), "connected");
}

#[test]
fn node_that_drains_or_whose_store_is_behind_takes_none() {
    for (word, set) in [
        ("draining", (|bed: &mut Bed| bed.calls.drain(bed.now)) as fn(&mut Bed)),
        ("store_behind", |bed| bed.calls.handle_store(true)),
    ] {
        let mut bed = minted(Bed::new());
        set(&mut bed);
        come(&mut bed, 0, upgrade("u1"));
        assert_eq!((refused(&bed).1, last_line(&bed).0), (503, word));
        assert!(matches!(bed.claims.as_ref().unwrap()[&CLAIM], Held::Fresh(_)));
    }
}

#[test]
fn room_that_goes_while_the_store_is_asked_uses_the_claim_up() {
    let mut bed = minted(Bed::new());
    bed.claims_wait = true;
    come(&mut bed, 0, upgrade("u1"));
    bed.calls.drain(bed.now);
    let (engine, asked) = bed.asked.pop().unwrap();
    let fresh = Claimed::Fresh(Box::new(context("echo", "inbound")));
    bed.calls.handle_claimed(engine, asked, fresh, bed.now);
    bed.run();
    assert_eq!(refused(&bed), ("u1", 503, 0));
    assert_eq!(last_line(&bed).0, "draining");
    assert!(bed.forgotten.contains(&CALL) && bed.calls.is_empty());
}

#[test]
fn store_is_asked_about_a_bounded_number_of_claims() {
    let mut bed = Bed::new();
    bed.claims_wait = true;
    for n in 0..CLAIMS_MAX {
        come(&mut bed, 0, upgrade(&format!("u{n}")));
    }
    assert!(bed.upgrade_answers.is_empty());
    come(&mut bed, 0, upgrade("late"));
    assert_eq!((refused(&bed).0, refused(&bed).1), ("late", 503));
    let (engine, first) = bed.asked.pop().unwrap();
    bed.calls.handle_claimed(engine, first, Claimed::Nobodys, bed.now);
    come(&mut bed, 0, upgrade("later"));
    assert_eq!(bed.asked.last().unwrap().1.upgrade_id, "later");
}

#[test]
fn another_provider_gets_404_and_the_call_is_over() {
    let mut bed = minted(Bed::new());
    come(&mut bed, 0, Upgrade { provider: "vonage".into(), ..upgrade("u1") });
    assert_eq!(refused(&bed), ("u1", 404, 0));
    assert_eq!(last_line(&bed), ("unknown_claim", "claim".to_owned()));
    assert!(bed.forgotten.contains(&CALL) && bed.calls.is_empty() && bed.commands.is_empty());
}

#[test]
fn audiosocket_is_a_connection_of_asterisks() {
    let mut bed = Bed::new();
    let mut of_asterisk = context("echo", "inbound");
    of_asterisk.provider.as_mut().unwrap().name = "asterisk".into();
    mint(&mut bed, of_asterisk);
    come(&mut bed, 0, Upgrade { provider: "audiosocket".into(), ..upgrade("u1") });
    assert_eq!(bed.state(CALL), "connected");
}

#[test]
fn unknown_assistant_is_refused_by_404_with_a_record() {
    let mut bed = Bed::new();
    mint(&mut bed, context("nobody", "inbound"));
    come(&mut bed, 0, upgrade("u1"));
    assert_eq!(refused(&bed), ("u1", 404, 0));
    assert_eq!(last_line(&bed), ("unknown_assistant", "assistant_exists".to_owned()));
    let call = &bed.last_record().call;
    assert_eq!((call.state.as_str(), reason(&bed).as_str()), ("failed", "unknown_assistant"));
    assert!(bed.commands.is_empty() && bed.calls.is_empty() && bed.forgotten.contains(&CALL));
}

#[test]
fn agent_without_media_cannot_have_a_connection() {
    let mut bed = minted(Bed::new());
    bed.agent = Agent::None;
    come(&mut bed, 0, upgrade("u1"));
    assert_eq!(refused(&bed), ("u1", 503, 0));
    assert_eq!(last_line(&bed).0, "assistant_misconfigured");
    assert!(bed.commands.is_empty() && bed.calls.is_empty());
}

#[test]
fn accounts_that_do_not_answer_in_time_refuse_the_connection() {
    let mut bed = minted(Bed::new());
    bed.store_answers = false;
    come(&mut bed, 0, upgrade("u1"));
    bed.pass(Limits::default().ring_max);
    assert_eq!(refused(&bed), ("u1", 503, 0));
    assert_eq!(last_line(&bed).0, "store_failed");
    assert!(bed.records.is_empty(), "no tenant, no record");
    assert!(bed.calls.is_empty() && bed.forgotten.contains(&CALL));
}

// --- engines ---

#[test]
fn engine_that_refuses_is_not_replaced_by_another_one() {
    let refusals = [
        (EngineRefusal::Full("no room".into()), "engine_full"),
        (EngineRefusal::Invalid("no".into()), "engine_fault"),
        (EngineRefusal::Unreachable("silence".into()), "engine_lost"),
    ];
    for (refusal, word) in refusals {
        let mut bed = minted(Bed::with(Limits::default(), 2));
        bed.opens = Opens::Refusing(refusal.clone());
        come(&mut bed, 0, upgrade("u1"));
        let opens = bed.commands_of(CALL).iter().filter(|name| **name == "open").count();
        assert_eq!(opens, 1, "{refusal:?}");
        assert_eq!(refused(&bed), ("u1", 503, 0));
        assert_eq!((reason(&bed).as_str(), last_line(&bed).0), (word, word));
        // What a silent one may have opened is closed.
        let may_live = matches!(refusal, EngineRefusal::Unreachable(_));
        assert_eq!(bed.commands_of(CALL).contains(&"close"), may_live);
        assert!(bed.calls.is_empty());
    }
}

#[test]
fn provider_that_goes_before_it_is_answered_has_cancelled() {
    let mut bed = minted(Bed::new());
    bed.opens = Opens::Refusing(EngineRefusal::Gone);
    come(&mut bed, 0, upgrade("u1"));
    assert_eq!(reason(&bed), "cancelled");
    assert!(bed.refusals.is_empty() && bed.calls.is_empty());
}

#[test]
fn provider_that_stops_before_the_agent_is_there_has_cancelled() {
    let mut bed = minted(Bed::new());
    bed.opens = Opens::Waiting;
    come(&mut bed, 0, upgrade("u1"));
    bed.session(CALL, gone(true));
    assert_eq!(bed.commands_of(CALL), ["open", "close"]);
    assert_eq!((reason(&bed).as_str(), bed.last_record().call.state.as_str()), ("cancelled", "failed"));
    assert!(bed.refusals.is_empty() && bed.upgrade_answers.is_empty());
}

#[test]
fn hang_up_while_the_session_opens_refuses_the_connection_and_closes_what_was_opened() {
    let mut bed = minted(Bed::new());
    bed.opens = Opens::Silent;
    come(&mut bed, 0, upgrade("u1"));
    assert!(bed.calls.hang_up("t1", CALL, bed.now));
    bed.run();
    assert_eq!(refused(&bed), ("u1", 503, 0));
    assert_eq!(bed.commands_of(CALL), ["open"]);
    bed.reply(CALL, EngineReply::Opened(Ok(Box::new(opened(true)))));
    assert_eq!(bed.commands_of(CALL), ["open", "close"]);
    assert_eq!(bed.upgrade_answers.len(), 1);
    assert!(bed.calls.is_empty());
}

#[test]
fn agent_that_fails_before_the_session_is_open_refuses_the_connection() {
    let mut bed = minted(Bed::new());
    bed.opens = Opens::Silent;
    come(&mut bed, 0, upgrade("u1"));
    bed.session(CALL, SessionEvent::AgentFailed { reason: "refused".into() });
    assert_eq!(refused(&bed), ("u1", 503, 0));
    assert_eq!(last_line(&bed).0, "agent_unreachable");
    bed.reply(CALL, EngineReply::Opened(Err(EngineRefusal::Gone)));
    assert_eq!(reason(&bed), "agent_unreachable");
    assert!(bed.calls.is_empty());
}

#[test]
fn agent_that_fails_or_is_late_closes_an_open_session() {
    let mut bed = minted(Bed::new());
    bed.opens = Opens::Waiting;
    come(&mut bed, 0, upgrade("u1"));
    bed.session(CALL, SessionEvent::AgentFailed { reason: "refused".into() });
    assert_eq!(bed.commands_of(CALL), ["open", "close"]);
    assert_eq!((reason(&bed).as_str(), last_line(&bed).0), ("agent_unreachable", "agent_unreachable"));
    assert!(bed.upgrade_answers.is_empty(), "it was answered");

    let mut bed = minted(Bed::new());
    bed.opens = Opens::Waiting;
    come(&mut bed, 0, upgrade("u1"));
    bed.pass(Limits::default().ring_max);
    assert_eq!((reason(&bed).as_str(), bed.commands_of(CALL)), ("agent_timeout", vec!["open", "close"]));
}

#[test]
fn start_leaves_once_and_an_engine_that_does_not_answer_it_is_lost() {
    let mut bed = minted(Bed::new());
    bed.starts_are_answered = false;
    come(&mut bed, 0, upgrade("u1"));
    bed.session(CALL, SessionEvent::AgentConnected);
    let listed = Listed { agent_ready: true, ..Listed::default() };
    bed.engine_lists(0, "instance-1", HashMap::from([(CALL, listed)]));
    bed.reply(CALL, EngineReply::Started(Ok(())));
    assert_eq!((bed.commands_of(CALL), bed.state(CALL).as_str()), (vec!["open", "start"], "connected"));

    let mut bed = minted(Bed::new());
    bed.starts_are_answered = false;
    come(&mut bed, 0, upgrade("u1"));
    bed.pass(Limits::default().ring_max);
    assert_eq!(reason(&bed), "engine_lost");
}

#[test]
fn engine_that_restarts_or_stays_away_ends_the_call() {
    let mut bed = connected();
    bed.engine_up(0, "instance-2", &[]);
    assert_eq!(reason(&bed), "engine_lost");
    assert!(bed.calls.is_empty());

    let mut bed = connected();
    bed.news(0, News::Down);
    bed.pass(Duration::from_secs(30));
    assert_eq!(reason(&bed), "engine_lost");
    assert!(bed.calls.is_empty());
}

#[test]
fn node_that_goes_down_ends_calls_in_every_state() {
    let mut bed = connected();
    bed.calls.end_all(bed.now);
    bed.run();
    assert_eq!((reason(&bed).as_str(), bed.calls.len()), ("shutdown", 0));

    let mut bed = minted(Bed::new());
    bed.store_answers = false;
    come(&mut bed, 0, upgrade("u1"));
    bed.calls.end_all(bed.now);
    bed.run();
    assert_eq!((refused(&bed), bed.calls.len()), (("u1", 503, 0), 0));
}

// --- connections that drop ---

#[test]
fn dropped_call_goes_on_with_another_connection() {
    let mut bed = connected();
    bed.session(CALL, gone(false));
    assert_eq!(bed.state(CALL), "connected");
    come(&mut bed, 0, upgrade("u2"));
    let retake = (EngineId(0), "u2".to_owned(), UpgradeAnswer::Retake(CALL));
    assert_eq!(bed.upgrade_answers, [retake]);
    bed.session(CALL, started("CA1"));
    // It is up: a third one has no place.
    come(&mut bed, 0, upgrade("u3"));
    bed.pass(RETURN_WAIT);
    assert_eq!(refused(&bed), ("u3", 409, 0));
    assert_eq!(bed.commands_of(CALL), ["open", "start"]);
    bed.session(CALL, gone(true));
    assert_eq!(reason(&bed), "hangup");
}

#[test]
fn stranger_with_the_claim_does_not_keep_the_caller_out() {
    let mut bed = connected();
    bed.session(CALL, gone(false));
    come(&mut bed, 0, upgrade("stranger"));
    // The engine has closed it: its start named another call.
    come(&mut bed, 0, upgrade("u2"));
    let (_, name, answer) = bed.upgrade_answers.last().unwrap();
    assert_eq!((name.as_str(), answer), ("u2", &UpgradeAnswer::Retake(CALL)));
}

#[test]
fn caller_comes_back_to_a_full_node_whose_store_is_away() {
    let limits = Limits { calls_max: 1, ..Limits::default() };
    let mut bed = minted(Bed::with(limits, 1));
    come(&mut bed, 0, upgrade("u1"));
    bed.session(CALL, started("CA1"));
    bed.session(CALL, gone(false));
    bed.claims = None;
    bed.calls.drain(bed.now);
    come(&mut bed, 0, upgrade("u2"));
    assert_eq!(bed.upgrade_answers.last().unwrap().2, UpgradeAnswer::Retake(CALL));
}

#[test]
fn dropped_call_cannot_go_on_at_another_engine_or_by_another_provider() {
    let mut bed = minted(Bed::with(Limits::default(), 2));
    come(&mut bed, 0, upgrade("u1"));
    bed.session(CALL, started("CA1"));
    bed.session(CALL, gone(false));
    come(&mut bed, 1, upgrade("u2"));
    assert_eq!(refused(&bed), ("u2", 409, 0));
    come(&mut bed, 0, Upgrade { provider: "vonage".into(), ..upgrade("u3") });
    assert_eq!(refused(&bed), ("u3", 409, 0));
    come(&mut bed, 0, upgrade("u4"));
    assert_eq!(bed.upgrade_answers.last().unwrap().2, UpgradeAnswer::Retake(CALL));
}

#[test]
fn drop_that_is_told_while_the_store_is_asked_is_heeded() {
    // The store was asked before the call began here: whatever it says, the call is known by then.
    for claimed in [Claimed::Again(CALL), Claimed::Nobodys] {
        let mut bed = minted(Bed::new());
        bed.claims_wait = true;
        come(&mut bed, 0, upgrade("u1"));
        come(&mut bed, 0, upgrade("u2"));
        let (engine, second) = bed.asked.pop().unwrap();
        let (_, first) = bed.asked.pop().unwrap();
        let fresh = Claimed::Fresh(Box::new(context("echo", "inbound")));
        bed.calls.handle_claimed(engine, first, fresh, bed.now);
        bed.run();
        bed.session(CALL, started("CA1"));
        bed.session(CALL, gone(false));
        bed.calls.handle_claimed(engine, second, claimed, bed.now);
        bed.run();
        assert_eq!(bed.upgrade_answers.last().unwrap().2, UpgradeAnswer::Retake(CALL));
    }
}

#[test]
fn dropped_call_to_which_nobody_returns_ends_with_its_figures() {
    let mut bed = connected();
    bed.session(CALL, gone(false));
    bed.pass(Duration::from_secs(15));
    bed.session(CALL, ended(Reason::Transport));
    assert_eq!((reason(&bed).as_str(), bed.calls.len()), ("stream_lost", 0));
    assert_eq!(bed.commands_of(CALL), ["open", "start"], "nothing is left to close");
    let call = bed.last_record().call.clone();
    assert_eq!(call.media.unwrap().rtp_received, 9);
    let last = call.decisions.last().unwrap();
    assert_eq!((last.rule.as_str(), last.passed), ("media_connection", false));
    come(&mut bed, 0, upgrade("u2"));
    assert_eq!(refused(&bed).1, 409, "the call is not here any more");
}

#[test]
fn connection_that_drops_again_and_again_does_not_fill_the_record() {
    let mut bed = connected();
    for n in 0..200 {
        bed.session(CALL, gone(false));
        come(&mut bed, 0, upgrade(&format!("again-{n}")));
        bed.session(CALL, started("CA1"));
    }
    bed.session(CALL, gone(true));
    assert!(bed.last_record().call.decisions.len() <= 64);
}

// --- what needs a dialog ---

#[test]
fn what_needs_a_dialog_is_refused_in_words() {
    let mut bed = connected();
    let (_, other) = bed.connected();
    let now = bed.now;
    let guest = |to: &str| Guest { to: to.into(), role: engine::LegRole::Bridge, trunk: String::new() };
    let asked = [
        bed.calls.hold("t1", CALL, true, now),
        bed.calls.transfer("t1", CALL, TransferTo::Blind("+4930333".into()), now),
        bed.calls.transfer("t1", CALL, TransferTo::Attended(other), now),
        bed.calls.join("t1", CALL, &guest("sip:anna@192.0.2.9"), now),
        bed.calls.join_calls("t1", CALL, other, now).ok(),
        bed.calls.join_calls("t1", other, CALL, now).ok(),
    ];
    for (n, asked) in asked.iter().enumerate() {
        assert!(matches!(asked, Some(Asked::Policy(why)) if !why.is_empty()), "{n}: {asked:?}");
    }
    assert_eq!(bed.calls.join("t1", CALL, &guest(""), now), Some(Asked::NoTarget));
    // Nor can another call be handed to its other side.
    assert_eq!(bed.calls.transfer("t1", other, TransferTo::Attended(CALL), now), Some(Asked::NoTarget));
    bed.run();
    assert_eq!(bed.commands_of(CALL), ["open", "start"]);
    assert_eq!(bed.state(CALL), "connected");
    assert_eq!(bed.state(other), "connected");
}

#[test]
fn agent_that_wants_a_transfer_is_told_why_not_and_its_keys_hang_nothing() {
    let mut bed = connected();
    bed.session(
        CALL,
        SessionEvent::AgentTransfer { to: "+4930333".into(), mode: engine::TransferMode::Refer },
    );
    let told = bed.told();
    let Some(What::Transfer(progress)) = told.last() else { panic!("{told:?}") };
    assert_eq!(progress.status, "failed");
    assert!(progress.reason.contains("no [[deployment]]"), "{}", progress.reason);
    bed.session(CALL, SessionEvent::AgentDtmf { digits: "12".into() });
    bed.session(CALL, SessionEvent::AgentAnswer);
    bed.session(CALL, gone(true));
    assert_eq!(bed.commands_of(CALL), ["open", "start", "tell", "close"]);
    assert!(bed.calls.is_empty());
}
