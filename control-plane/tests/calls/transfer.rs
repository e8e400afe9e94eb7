//! We hand the other side on: what is allowed, how it goes, and what the agent hears of it.

use std::time::Duration;

use control_plane::call::machine::{Asked, TransferTo};
use control_plane::media::SessionEvent;
use tandem_api::engine::v1::tell_agent_request::What as Tell;
use tandem_api::engine::v1::{TransferMode, TransferProgress};
use tandem_sip::Headers;
use uuid::Uuid;

use crate::bed::{Bed, Heard, offer};
use crate::place::{order, trunk};

impl Bed {
    fn transfer(&mut self, call_id: Uuid, to: &str) -> Asked {
        let to = TransferTo::Blind(to.to_owned());
        let asked = self.calls.transfer("t1", call_id, to, self.now).unwrap();
        self.run();
        asked
    }

    /// Whom the other side was asked to call.
    fn referred(&self) -> Option<&str> {
        self.heard.iter().rev().find_map(|heard| match heard {
            Heard::Refer { target, .. } => Some(target.as_str()),
            _ => None,
        })
    }

    fn told_of_transfers(&self) -> Vec<(String, String)> {
        let told = self.told().into_iter().filter_map(|what| match what {
            Tell::Transfer(TransferProgress { status, reason }) => Some((status, reason)),
            Tell::Dtmf(_) => None,
        });
        told.collect()
    }
}

fn told(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn agent_hands_the_callee_on_and_leaves_when_the_target_has_answered() {
    let mut bed = Bed::new();
    let (callee, call_id) = bed.talking(&trunk(|_| {}));
    bed.session(call_id, SessionEvent::AgentTransfer { to: "+4930333".into(), mode: TransferMode::Refer });
    assert_eq!(bed.referred(), Some("<sip:+4930333@192.0.2.9>"));
    assert_eq!(bed.state(call_id), "connected");
    bed.caller.notify_refer(callee, 180, "Ringing", bed.now).unwrap();
    bed.run();
    bed.caller.notify_refer(callee, 200, "OK", bed.now).unwrap();
    bed.run();
    assert_eq!(bed.told_of_transfers(), [told("trying", "")]);
    assert!(matches!(bed.heard.last(), Some(Heard::Bye { .. })), "{:?}", bed.heard);
    let ending = bed.last_record().call.ending.clone().unwrap();
    assert_eq!((ending.reason.as_str(), ending.party.as_str()), ("transferred", "agent"));
    assert!(bed.calls.is_empty());
}

#[test]
fn target_that_is_busy_leaves_the_caller_with_the_agent_who_hears_why() {
    let mut bed = Bed::new();
    let (callee, call_id) = bed.talking(&trunk(|_| {}));
    bed.session(call_id, SessionEvent::AgentTransfer { to: "+4930333".into(), mode: TransferMode::Refer });
    bed.caller.notify_refer(callee, 486, "Busy Here", bed.now).unwrap();
    bed.run();
    assert_eq!(bed.told_of_transfers(), [told("trying", ""), told("failed", "486 Busy Here")]);
    assert_eq!(bed.state(call_id), "connected");
    // And the next try is a new one.
    assert_eq!(bed.transfer(call_id, "+4930444"), Asked::Done);
    assert_eq!(bed.referred(), Some("<sip:+4930444@192.0.2.9>"));
}

#[test]
fn transfer_of_which_nothing_is_heard_ends_after_its_time_and_the_call_goes_on() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|trunk| trunk.transfer.timeout = Duration::from_secs(20)));
    assert_eq!(bed.transfer(call_id, "+4930333"), Asked::Done);
    assert_eq!(bed.transfer(call_id, "+4930444"), Asked::Busy);
    bed.pass(Duration::from_secs(21));
    assert_eq!(bed.told_of_transfers().last(), Some(&told("failed", "nobody said in time how it went")));
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn late_success_of_a_transfer_that_was_given_up_does_not_end_the_call_during_the_next() {
    let mut bed = Bed::new();
    let (callee, call_id) = bed.talking(&trunk(|trunk| trunk.transfer.timeout = Duration::from_secs(20)));
    assert_eq!(bed.transfer(call_id, "+4930333"), Asked::Done);
    bed.pass(Duration::from_secs(21));
    assert_eq!(bed.transfer(call_id, "+4930444"), Asked::Done, "the next one leaves");
    // This phone can do one at a time, and says so: the agent hears it at once.
    let word = bed.told_of_transfers().last().cloned().unwrap();
    assert!(word.0 == "failed" && word.1.starts_with("491"), "{word:?}");
    bed.caller.notify_refer(callee, 200, "OK", bed.now).unwrap();
    bed.run();
    assert_eq!(bed.state(call_id), "connected");
    assert_eq!(bed.transfer(call_id, "+4930555"), Asked::Done);
    assert_eq!(bed.referred(), Some("<sip:+4930555@192.0.2.9>"));
}

#[test]
fn callee_who_hangs_up_while_it_tries_has_been_transferred() {
    let mut bed = Bed::new();
    let (callee, call_id) = bed.talking(&trunk(|_| {}));
    assert_eq!(bed.transfer(call_id, "+4930333"), Asked::Done);
    bed.caller.hang_up(callee, Headers::new(), bed.now).unwrap();
    bed.run();
    assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "transferred");
}

#[test]
fn only_targets_of_the_trunk_may_be_named() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|trunk| {
        trunk.transfer.targets = vec!["+4930".into(), "pbx.example.com".into()];
        trunk.outbound.numbers_denied = vec!["+49309".into()];
    }));
    for wrong in
        ["+4940111", "+4930999", "sip:a@evil.example", "http://x", "", "sip:+4930:pw@pbx.example.com"]
    {
        assert!(matches!(bed.transfer(call_id, wrong), Asked::Policy(_)), "{wrong}");
    }
    assert_eq!(bed.referred(), None);
    bed.session(call_id, SessionEvent::AgentTransfer { to: "+4940111".into(), mode: TransferMode::Refer });
    assert_eq!(bed.told_of_transfers()[0].0, "failed");
    assert_eq!(bed.transfer(call_id, "sip:+4930333@pbx.example.com"), Asked::Done);

    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|trunk| trunk.transfer.refer_out = false));
    assert!(matches!(bed.transfer(call_id, "+4930333"), Asked::Policy(_)));
}

#[test]
fn caller_without_a_trunk_is_handed_on_within_his_own_domain() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.connected();
    assert!(matches!(bed.transfer(call_id, "sip:a@elsewhere.example"), Asked::Policy(_)));
    assert_eq!(bed.transfer(call_id, "200"), Asked::Done);
    assert_eq!(bed.referred(), Some("<sip:200@example.com>"));
}

#[test]
fn attended_transfer_names_the_other_calls_dialog_as_its_peer_knows_it() {
    let mut bed = Bed::new();
    let (_, first) = bed.talking(&trunk(|_| {}));
    let call_id = bed.place(order(&trunk(|_| {})));
    bed.pass(Duration::from_millis(10));
    let attended = |bed: &mut Bed| {
        let asked = bed.calls.transfer("t1", first, TransferTo::Attended(call_id), bed.now);
        bed.run();
        asked.unwrap()
    };
    assert_eq!(attended(&mut bed), Asked::NoTarget, "it still rings");
    bed.callee_says(200, Some(&offer("sendrecv", "0")));
    assert_eq!(attended(&mut bed), Asked::Done);
    let dialog = bed.caller.dialog(bed.callee()).unwrap();
    let target = bed.referred().unwrap();
    assert!(target.contains(&format!("to-tag%3D{}", dialog.local_tag())), "{target}");
    assert!(target.contains(&format!("from-tag%3D{}", dialog.remote_tag())), "{target}");
    assert_eq!(bed.calls.transfer("t2", first, TransferTo::Attended(call_id), bed.now), None);
}

#[test]
fn refer_of_theirs_is_declined() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    let target = tandem_sip::Uri::parse("sip:+1900@example.com").unwrap();
    let refer = tandem_sip::header::refer::ReferTo::blind(target);
    bed.caller.refer(call, &refer, Headers::new(), bed.now).unwrap();
    bed.run();
    assert!(format!("{:?}", bed.heard.last()).contains("status: 603"), "{:?}", bed.heard);
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn keys_of_the_agent_go_by_info_one_by_one_where_the_trunk_wants_it() {
    for wanted in [true, false] {
        let mut bed = Bed::new();
        let (_, call_id) = bed.talking(&trunk(|trunk| trunk.is_dtmf_by_info = wanted));
        bed.session(call_id, SessionEvent::AgentDtmf { digits: "1#".into() });
        let infos: Vec<_> = bed.heard.iter().filter(|heard| matches!(heard, Heard::Info(_))).collect();
        let key = |signal: &str| Heard::Info(format!("Signal={signal}\r\nDuration=160\r\n"));
        if wanted {
            assert_eq!(infos, [&key("1"), &key("#")]);
        } else {
            assert!(infos.is_empty());
        }
    }
}

#[test]
fn agents_headers_go_on_the_refer_and_the_bye_as_far_as_the_trunk_lets_them() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|trunk| trunk.headers.from_agent = vec!["X-*".into()]));
    let headers = [("X-Result", "sold"), ("X-Bad", "a\r\nVia: b"), ("Contact", "<sip:evil@evil>")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    bed.session(call_id, SessionEvent::AgentHeaders { headers });
    assert_eq!(bed.transfer(call_id, "+4930333"), Asked::Done);
    let Some(Heard::Refer { headers, .. }) =
        bed.heard.iter().rev().find(|h| matches!(h, Heard::Refer { .. }))
    else {
        panic!("a REFER")
    };
    assert_eq!(headers.get_named("X-Result"), Some("sold"));
    assert_eq!(headers.get_named("X-Bad"), None);
}

#[test]
fn silence_while_the_other_side_is_handed_on_ends_nothing() {
    let mut bed = Bed::new();
    let (callee, call_id) = bed.talking(&trunk(|_| {}));
    assert_eq!(bed.transfer(call_id, "+4930333"), Asked::Done);
    bed.session(call_id, SessionEvent::Idle { idle_ms: 30_000 });
    assert_eq!(bed.state(call_id), "connected");
    bed.caller.notify_refer(callee, 486, "Busy Here", bed.now).unwrap();
    bed.run();
    bed.session(call_id, SessionEvent::Idle { idle_ms: 30_000 });
    assert_eq!(bed.last_record().call.ending.clone().unwrap().reason, "idle");
}
