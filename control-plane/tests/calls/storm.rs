//! Anything, in any order: the core never panics, ends every call it took, and closes every session it opened.

use std::collections::HashSet;
use std::time::Duration;

use control_plane::call::action::{EngineCommand, EngineRefusal, EngineReply};
use control_plane::call::machine::TransferTo;
use control_plane::call::order::Order;
use control_plane::media::{News, SessionEvent};
use control_plane::trunk::Redirects;
use proptest::prelude::*;
use tandem_api::engine::v1::session_ended::Reason;
use tandem_sip::message::{Body, Reply};
use tandem_sip::{CallHandle, Headers};
use uuid::Uuid;

use crate::bed::{Bed, Opens, echo_uri, offer, opened};
use crate::place::{order, trunk};

#[derive(Debug, Clone)]
enum Step {
    Invite { delayed: bool, good_key: bool },
    Cancel(usize),
    Bye(usize),
    Ack(usize),
    Reinvite(usize, bool),
    Opens(u8),
    ReplyOpened(usize, u8),
    Session(usize, u8),
    EngineDown,
    EngineUp { same: bool, keeps: bool },
    Deaf(bool),
    HangUp(usize),
    Place { delayed: bool, follow: bool },
    Callee(usize, u8),
    Invites(bool),
    Hold(usize, bool),
    Refuses(bool),
    Transfer(usize),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), prop::bool::weighted(0.9))
            .prop_map(|(delayed, good_key)| Step::Invite { delayed, good_key }),
        1 => (0..6usize).prop_map(Step::Cancel),
        1 => (0..6usize).prop_map(Step::Bye),
        2 => (0..6usize).prop_map(Step::Ack),
        2 => (0..6usize, any::<bool>()).prop_map(|(n, held)| Step::Reinvite(n, held)),
        2 => (0..5u8).prop_map(Step::Opens),
        2 => (0..6usize, 0..3u8).prop_map(|(n, how)| Step::ReplyOpened(n, how)),
        2 => (0..6usize, 0..4u8).prop_map(|(n, what)| Step::Session(n, what)),
        1 => Just(Step::EngineDown),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(same, keeps)| Step::EngineUp { same, keeps }),
        1 => any::<bool>().prop_map(Step::Deaf),
        1 => (0..6usize).prop_map(Step::HangUp),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(delayed, follow)| Step::Place { delayed, follow }),
        4 => (0..6usize, 0..6u8).prop_map(|(n, what)| Step::Callee(n, what)),
        1 => any::<bool>().prop_map(Step::Invites),
        1 => (0..6usize, any::<bool>()).prop_map(|(n, held)| Step::Hold(n, held)),
        1 => any::<bool>().prop_map(Step::Refuses),
        1 => (0..6usize).prop_map(Step::Transfer),
        2 => (0..12_000u16).prop_map(Step::Pass),
    ]
}

#[derive(Default)]
struct Storm {
    callers: Vec<CallHandle>,
    /// Opens that no engine has answered.
    unanswered: HashSet<Uuid>,
    /// Sessions that ended without a Close: by themselves, or with their engine.
    gone: HashSet<Uuid>,
    seen: usize,
}

impl Storm {
    /// Notes what has been opened since.
    fn look(&mut self, bed: &Bed) {
        for (_, call_id, command) in &bed.commands[self.seen..] {
            if matches!(command, EngineCommand::Open(_)) && matches!(bed.opens, Opens::Silent) {
                self.unanswered.insert(*call_id);
            }
        }
        self.seen = bed.commands.len();
    }

    fn opened_ids(bed: &Bed) -> Vec<Uuid> {
        let opens = bed.commands.iter().filter(|(_, _, command)| matches!(command, EngineCommand::Open(_)));
        opens.map(|(_, call_id, _)| *call_id).collect()
    }

    fn take(&mut self, bed: &mut Bed, step: Step) {
        let session = |bed: &Bed, n: usize| Self::opened_ids(bed).get(n).copied();
        // What the caller's endpoint refuses to do in its state is no part of the storm.
        match step {
            Step::Invite { delayed, good_key } => {
                let uri = if good_key { echo_uri() } else { "sip:echo:wrong@192.0.2.1".to_owned() };
                let offer = offer("sendrecv", "0");
                self.callers.push(bed.invite(&uri, (!delayed).then_some(offer.as_str())));
            }
            Step::Cancel(n) => {
                let _ = self.callers.get(n).map(|call| bed.caller.cancel(*call, bed.now));
            }
            Step::Bye(n) => {
                let _ = self.callers.get(n).map(|call| bed.caller.bye(*call, Headers::new(), bed.now));
            }
            Step::Ack(n) => {
                let body = Body::sdp(offer("sendrecv", "8"));
                let _ = self.callers.get(n).map(|call| bed.caller.ack(*call, body, bed.now));
            }
            Step::Reinvite(n, held) => {
                let body = Body::sdp(offer(if held { "sendonly" } else { "sendrecv" }, "0"));
                let _ = self.callers.get(n).map(|call| bed.caller.reinvite(*call, Some(body), bed.now));
            }
            Step::Opens(how) => {
                bed.opens = match how {
                    0 => Opens::Waiting,
                    1 => Opens::Silent,
                    2 => Opens::Refusing(EngineRefusal::Full("full".to_owned())),
                    _ => Opens::Ready,
                }
            }
            Step::ReplyOpened(n, how) => {
                let Some(call_id) = session(bed, n).filter(|id| self.unanswered.remove(id)) else { return };
                let reply = match how {
                    0 => Ok(Box::new(opened(true))),
                    1 => Ok(Box::new(opened(false))),
                    _ => Err(EngineRefusal::Invalid("no".to_owned())),
                };
                if reply.is_err() {
                    self.gone.insert(call_id);
                }
                bed.reply(call_id, EngineReply::Opened(reply));
            }
            Step::Session(n, what) => {
                let Some(call_id) = session(bed, n).filter(|id| !self.unanswered.contains(id)) else {
                    return;
                };
                bed.session(
                    call_id,
                    match what {
                        0 => SessionEvent::AgentConnected,
                        1 => SessionEvent::AgentFailed { reason: "x".to_owned() },
                        2 => SessionEvent::AgentHangup,
                        _ => {
                            self.gone.insert(call_id);
                            SessionEvent::Ended {
                                reason: Reason::MediaTimeout,
                                stats: None,
                                detail: String::new(),
                            }
                        }
                    },
                );
            }
            Step::EngineDown => bed.news(0, News::Down),
            Step::EngineUp { same, keeps } => {
                let ids = Self::opened_ids(bed);
                if !same || !keeps {
                    self.gone.extend(&ids);
                }
                bed.engine_up(
                    0,
                    if same { "instance-1" } else { "instance-2" },
                    if keeps { &ids } else { &[] },
                );
            }
            Step::Deaf(deaf) => bed.caller_is_heard = !deaf,
            Step::HangUp(n) => drop(session(bed, n).map(|id| bed.calls.hang_up("t1", id, bed.now))),
            Step::Place { delayed, follow } => {
                let trunk = trunk(|trunk| {
                    trunk.outbound.is_offer_delayed = delayed;
                    trunk.outbound.calls_per_second = 2.0;
                    trunk.outbound.calls_max = Some(4);
                    trunk.outbound.redirects = if follow { Redirects::Follow } else { Redirects::Refuse };
                });
                bed.place(Order { failover: vec![trunk.clone()], ..order(&trunk) });
            }
            Step::Callee(n, what) => {
                let Some(call) = bed.incoming.get(n).map(|(call, _)| *call) else { return };
                let sdp = Body::sdp(offer("sendrecv", "0"));
                let elsewhere = Reply::new(302).header("Contact", "<sip:+491@192.0.2.9>").unwrap();
                let _ = match what {
                    0 => bed.caller.respond(call, Reply::new(180), bed.now),
                    1 => bed.caller.respond(call, Reply::new(183).body(sdp), bed.now),
                    2 => bed.caller.answer(call, sdp, bed.now),
                    3 => bed.caller.reject(call, Reply::new(486), bed.now),
                    4 => bed.caller.reject(call, elsewhere, bed.now),
                    _ => bed.caller.hang_up(call, Headers::new(), bed.now),
                };
            }
            Step::Invites(leave) => {
                bed.invites_leave = leave;
                for verb in std::mem::take(&mut bed.held_back) {
                    bed.verb(verb);
                }
            }
            Step::Hold(n, held) => drop(session(bed, n).map(|id| bed.calls.hold("t1", id, held, bed.now))),
            Step::Refuses(refuses) => bed.answers_reinvites = !refuses,
            Step::Transfer(n) => {
                let to = TransferTo::Blind("+4930333".to_owned());
                let _ = session(bed, n).map(|id| bed.calls.transfer("t1", id, to, bed.now));
            }
            Step::Pass(ms) => {
                // The client gives an engine three seconds, then says that it is unreachable.
                for call_id in std::mem::take(&mut self.unanswered) {
                    let refusal = EngineRefusal::Unreachable("no answer in time".to_owned());
                    bed.reply(call_id, EngineReply::Opened(Err(refusal)));
                }
                let down_for_long = bed.calls.engines_available() == 0;
                bed.pass(Duration::from_millis(ms.into()));
                if down_for_long {
                    // Calls of an engine that was given up are not closed there.
                    self.gone.extend(Self::opened_ids(bed));
                }
            }
        }
        bed.run();
        self.look(bed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_call_ends_and_every_session_is_closed_once(steps in prop::collection::vec(step(), 1..40)) {
        let mut bed = Bed::new();
        let mut storm = Storm::default();
        for step in steps {
            storm.take(&mut bed, step);
        }
        bed.invites_leave = true;
        for verb in std::mem::take(&mut bed.held_back) {
            bed.verb(verb);
        }
        bed.calls.end_all(bed.now);
        bed.run();
        for call_id in std::mem::take(&mut storm.unanswered) {
            bed.reply(call_id, EngineReply::Opened(Ok(Box::new(opened(true)))));
        }
        bed.pass(Duration::from_secs(120));
        prop_assert!(bed.calls.is_empty());
        prop_assert_eq!(bed.ours.call_count(), 0, "a dialog is left");
        prop_assert_eq!(bed.calls.poll_timeout().filter(|_| bed.calls.engines_available() > 0), None);

        for call_id in Storm::opened_ids(&bed) {
            let closes = bed.commands_of(call_id).iter().filter(|name| **name == "close").count();
            prop_assert!(closes <= 1, "closed {} times", closes);
            let refused = bed.records.iter().any(|record| {
                record.call.call_id == call_id.to_string()
                    && record.call.ending.as_ref().is_some_and(|ending| ending.reason == "engine_full")
            });
            if !storm.gone.contains(&call_id) && !refused {
                prop_assert_eq!(closes, 1, "{:?}", bed.commands_of(call_id));
            }
        }
        // The last record of each call is terminal, and says why.
        let mut last = std::collections::HashMap::new();
        for record in &bed.records {
            last.insert(record.call.call_id.clone(), &record.call);
        }
        for call in last.values() {
            prop_assert!(matches!(call.state.as_str(), "ended" | "failed"), "{}", call.state);
            prop_assert!(call.ending.is_some() && call.ended_ms >= call.created_ms);
        }
    }
}
