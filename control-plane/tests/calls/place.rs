//! Calls that we place: what the callee's side says, and what becomes of it.

use std::sync::Arc;
use std::time::Duration;

use control_plane::call::agent::Agent;
use control_plane::call::order::{Callee, Idempotency, Order};
use control_plane::call::registry::placing::PlaceError;
use control_plane::media::SessionEvent;
use control_plane::sip::{NotSent, SipEvent, Token, Verb};
use control_plane::trunk::{Outbound, Redirects, SipCredential, Trunk};
use tandem_api::engine::v1::Direction;
use tandem_sip::message::{Body, Reply};
use tandem_sip::{CallHandle, Headers, Uri};
use uuid::Uuid;

use crate::bed::{Bed, Heard, Opens, offer};

pub(crate) fn trunk(change: impl FnOnce(&mut Trunk)) -> Arc<Trunk> {
    let mut trunk = Trunk {
        name: "carrier".into(),
        tenant_id: "t1".into(),
        credential: SipCredential {
            sip_uri: Some(Uri::parse("sip:42@192.0.2.9:5060").unwrap()),
            ..SipCredential::default()
        },
        outbound: Outbound { calls_per_second: 1_000.0, ..Outbound::default() },
        ..Trunk::default()
    };
    change(&mut trunk);
    Arc::new(trunk)
}

pub(crate) fn order(trunk: &Arc<Trunk>) -> Order {
    Order {
        tenant_id: "t1".into(),
        assistant_id: "echo".into(),
        agent: Agent::Echo,
        trunk: trunk.clone(),
        failover: Vec::new(),
        from: "+4930111".into(),
        to: Callee::Number("+4930222".into()),
        args: Default::default(),
        metadata: Default::default(),
        headers: Headers::new(),
        ring_max: trunk.outbound.ring_timeout,
        duration_max: None,
        bulk: None,
        idempotency: None,
        provider: None,
    }
}

impl Bed {
    pub(crate) fn place(&mut self, order: Order) -> Uuid {
        let call_id = self.calls.place(order, self.now).unwrap();
        self.run();
        call_id
    }

    /// The newest call that has reached the callee.
    pub(crate) fn callee(&self) -> CallHandle {
        self.incoming.last().expect("a call has arrived").0
    }

    pub(crate) fn callee_says(&mut self, status: u16, sdp: Option<&str>) {
        let mut reply = Reply::new(status);
        if let Some(sdp) = sdp {
            reply = reply.body(Body::sdp(sdp.to_owned()));
        }
        self.caller.respond(self.callee(), reply, self.now).unwrap();
        self.run();
    }

    pub(crate) fn callee_refuses(&mut self, reply: Reply) {
        self.caller.reject(self.callee(), reply, self.now).unwrap();
        self.run();
    }

    /// A call of ours that is answered; the callee's handle and our id.
    pub(crate) fn talking(&mut self, trunk: &Arc<Trunk>) -> (CallHandle, Uuid) {
        let call_id = self.place(order(trunk));
        self.callee_says(200, Some(&offer("sendrecv", "0")));
        assert_eq!(self.state(call_id), "connected");
        (self.callee(), call_id)
    }

    fn ending(&self, call_id: Uuid) -> tandem_api::v1::Ending {
        let of_call =
            |record: &&control_plane::call::record::CallRecord| record.call.call_id == call_id.to_string();
        self.records.iter().rev().find(of_call).unwrap().call.ending.clone().expect("it has ended")
    }
}

#[test]
fn call_rings_is_answered_and_the_agent_is_there_from_the_first_packet() {
    let mut bed = Bed::new();
    bed.opens = Opens::Waiting;
    let call_id = bed.place(order(&trunk(|_| {})));
    assert_eq!(bed.state(call_id), "dialing");
    let invite = &bed.incoming[0].1;
    assert_eq!(invite.uri.as_str(), "sip:+4930222@192.0.2.9:5060");
    let sdp = String::from_utf8_lossy(&invite.body).into_owned();
    assert!(sdp.contains("m=audio 20000 RTP/AVP 0 8 13 101"), "{sdp}");
    bed.callee_says(180, None);
    assert_eq!(bed.state(call_id), "ringing");
    bed.session(call_id, SessionEvent::AgentConnected);
    assert_eq!(bed.commands_of(call_id), ["open"]);
    bed.callee_says(200, Some(&offer("sendrecv", "8")));
    assert_eq!(bed.state(call_id), "connected");
    assert_eq!(bed.commands_of(call_id), ["open", "update", "start"]);
    assert_eq!(bed.last_update().remote_port, 40_000);
    let call = bed.calls.get("t1", call_id).unwrap();
    assert_eq!((call.direction.as_str(), call.trunk.as_str()), ("outbound", "carrier"));
    assert!(bed.calls.hang_up("t1", call_id, bed.now));
    bed.run();
    assert!(matches!(bed.heard.last(), Some(Heard::Bye { .. })));
    assert_eq!(bed.ending(call_id).reason, "operator_hangup");
    assert!(bed.calls.is_empty());
}

#[test]
fn callee_who_hangs_up_is_named() {
    let mut bed = Bed::new();
    let (callee, call_id) = bed.talking(&trunk(|_| {}));
    let reason = Headers::new().with("Reason", "Q.850;cause=16;text=\"Normal\"").unwrap();
    bed.caller.hang_up(callee, reason, bed.now).unwrap();
    bed.run();
    let ending = bed.ending(call_id);
    assert_eq!((ending.reason.as_str(), ending.party.as_str()), ("callee_hangup", "callee"));
    assert_eq!(ending.carrier.unwrap().q850_text, "Normal");
}

#[test]
fn refusals_are_told_in_five_words_with_what_the_carrier_said() {
    for (status, reason, word) in [
        (486, "", "busy"),
        (480, "", "no_answer"),
        (603, "", "rejected"),
        (404, "", "unreachable"),
        (500, "", "failed"),
        (500, "Q.850;cause=17;text=\"User busy\"", "busy"),
    ] {
        let mut bed = Bed::new();
        let call_id = bed.place(order(&trunk(|_| {})));
        bed.callee_says(180, None);
        let mut reply = Reply::new(status);
        if !reason.is_empty() {
            reply = reply.header("Reason", reason).unwrap();
        }
        bed.callee_refuses(reply);
        let ending = bed.ending(call_id);
        assert_eq!(ending.reason, word, "{status} {reason}");
        assert_eq!(ending.carrier.unwrap().sip_status, u32::from(status));
        let record = bed.last_record();
        assert_eq!(record.call.state, "failed");
        assert_eq!(record.call.decisions.last().unwrap().step, "carrier");
        assert_eq!(bed.commands_of(call_id), ["open", "close"]);
        assert!(bed.calls.is_empty());
    }
}

#[test]
fn phone_that_rings_too_long_is_cancelled_and_nobody_answered() {
    let mut bed = Bed::new();
    let call_id = bed.place(Order { ring_max: Duration::from_secs(20), ..order(&trunk(|_| {})) });
    bed.callee_says(180, None);
    bed.pass(Duration::from_secs(21));
    assert_eq!(bed.ending(call_id).reason, "no_answer");
    assert!(format!("{:?}", bed.heard).contains("Cancelled"), "{:?}", bed.heard);
    assert!(bed.calls.is_empty());
}

#[test]
fn early_media_is_heard_when_the_trunk_says_so_and_the_newest_fork_wins() {
    for wanted in [true, false] {
        let mut bed = Bed::new();
        let call_id = bed.place(order(&trunk(|trunk| trunk.outbound.early_media = wanted)));
        bed.callee_says(183, Some(&offer("sendrecv", "0")));
        let expected: &[&str] = if wanted { &["open", "update", "listen"] } else { &["open"] };
        assert_eq!(bed.commands_of(call_id), expected);
        assert_eq!(bed.state(call_id), "ringing");
        bed.callee_says(200, Some(&offer("sendrecv", "0").replace("40000", "41000")));
        assert_eq!(bed.commands_of(call_id).last(), Some(&"start"));
        assert_eq!(bed.last_update().remote_port, 41_000);
        assert_eq!(bed.state(call_id), "connected");
    }
}

#[test]
fn cancel_that_crosses_the_answer_becomes_a_bye() {
    let mut bed = Bed::new();
    let call_id = bed.place(order(&trunk(|_| {})));
    bed.callee_says(180, None);
    // The 200 is on its way while the operator hangs up.
    bed.caller.answer(bed.callee(), Body::sdp(offer("sendrecv", "0")), bed.now).unwrap();
    let ok = bed.caller.poll_transmit().expect("the 200");
    assert!(bed.calls.hang_up("t1", call_id, bed.now));
    bed.run();
    let flow = tandem_sip::Flow::udp("192.0.2.1:5060".parse().unwrap(), "192.0.2.9:5060".parse().unwrap());
    bed.ours.handle_input(&ok.bytes, flow, bed.now);
    bed.run();
    bed.pass(Duration::from_secs(1));
    assert!(matches!(bed.heard.last(), Some(Heard::Bye { .. })), "{:?}", bed.heard);
    assert!(bed.calls.is_empty() && bed.ours.call_count() == 0);
    assert_eq!(bed.ending(call_id).reason, "operator_hangup");
}

#[test]
fn call_that_is_hung_up_before_its_invite_has_left_is_cancelled_when_it_does() {
    let mut bed = Bed::new();
    bed.invites_leave = false;
    let call_id = bed.place(order(&trunk(|_| {})));
    assert_eq!(bed.state(call_id), "dialing");
    assert!(bed.calls.hang_up("t1", call_id, bed.now));
    bed.run();
    assert_eq!(bed.calls.len(), 1);
    let invite = bed.held_back.pop().unwrap();
    bed.verb(invite);
    bed.run();
    assert!(format!("{:?}", bed.heard).contains("Cancelled"), "{:?}", bed.heard);
    assert!(bed.calls.is_empty());
}

#[test]
fn invite_that_leaves_after_its_call_was_forgotten_is_hung_up() {
    let mut bed = Bed::new();
    bed.invites_leave = false;
    let call_id = bed.place(order(&trunk(|_| {})));
    assert!(bed.calls.hang_up("t1", call_id, bed.now));
    bed.run();
    bed.pass(Duration::from_secs(10));
    assert!(bed.calls.is_empty());
    let invite = bed.held_back.pop().unwrap();
    bed.verb(invite);
    bed.run();
    assert!(format!("{:?}", bed.heard).contains("Cancelled"), "{:?}", bed.heard);
}

#[test]
fn trunk_that_cannot_be_reached_is_passed_over_for_the_next_one() {
    let mut bed = Bed::new();
    bed.invites_leave = false;
    let second = trunk(|trunk| trunk.name = "second".into());
    let call_id = bed.place(Order { failover: vec![second], ..order(&trunk(|_| {})) });
    let Some(Verb::Invite(token, ..)) = bed.held_back.pop() else { panic!("an INVITE") };
    let why = NotSent::Unresolved { host: "carrier".into(), why: "no such name".into() };
    bed.shell(SipEvent::NotSent { token, why: why.clone() });
    assert_eq!(bed.calls.get("t1", call_id).unwrap().trunk, "second");
    let Some(Verb::Invite(token, ..)) = bed.held_back.pop() else { panic!("another INVITE") };
    bed.shell(SipEvent::NotSent { token, why });
    assert_eq!(bed.ending(call_id).reason, "trunk_unreachable");
    assert!(bed.calls.is_empty());
}

#[test]
fn token_of_somebody_else_is_none_of_our_business() {
    let mut bed = Bed::new();
    let (callee, call_id) = bed.talking(&trunk(|_| {}));
    bed.shell(SipEvent::Placed { token: Token::unique(), call: callee });
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn redirection_is_followed_within_bounds_or_ends_the_call() {
    let redirect =
        |user: &str| Reply::new(302).header("Contact", &format!("<sip:{user}@192.0.2.9>")).unwrap();
    let mut bed = Bed::new();
    let call_id = bed.place(order(&trunk(|_| {})));
    bed.callee_refuses(redirect("+491"));
    assert_eq!(bed.ending(call_id).reason, "redirected");

    let mut bed = Bed::new();
    let follow = trunk(|trunk| trunk.outbound.redirects = Redirects::Follow);
    let call_id = bed.place(order(&follow));
    bed.callee_refuses(redirect("+491"));
    assert_eq!(bed.incoming[1].1.uri.user().as_deref(), Some("+491"));
    let mut likeliest = Bed::new();
    likeliest.place(order(&follow));
    let two = "<sip:+492@192.0.2.9>;q=0.3, <sip:+493@192.0.2.9>;q=0.8";
    likeliest.callee_refuses(Reply::new(302).header("Contact", two).unwrap());
    assert_eq!(likeliest.incoming[1].1.uri.user().as_deref(), Some("+493"));
    // The same again is a loop.
    bed.callee_refuses(redirect("+491"));
    assert_eq!(bed.ending(call_id).reason, "redirected");

    let mut bed = Bed::new();
    let call_id = bed.place(order(&follow));
    for n in 0..20 {
        if bed.state(call_id) == "gone" {
            break;
        }
        bed.callee_refuses(redirect(&format!("+49{n}")));
    }
    assert_eq!(bed.incoming.len(), 6, "five redirections are enough");
    assert!(bed.calls.is_empty());
}

#[test]
fn answer_without_a_codec_of_ours_ends_the_call_with_a_bye() {
    let mut bed = Bed::new();
    let call_id = bed.place(order(&trunk(|_| {})));
    bed.callee_says(200, Some(&offer("sendrecv", "18")));
    assert_eq!(bed.ending(call_id).reason, "bad_answer");
    assert!(matches!(bed.heard.last(), Some(Heard::Bye { .. })));
}

#[test]
fn delayed_offer_is_answered_in_the_ack() {
    let mut bed = Bed::new();
    let call_id = bed.place(order(&trunk(|trunk| trunk.outbound.is_offer_delayed = true)));
    assert!(bed.incoming[0].1.body.is_empty());
    bed.callee_says(200, Some(&offer("sendrecv", "8")));
    assert_eq!(bed.state(call_id), "connected");
    assert!(format!("{:?}", bed.heard).contains("Acknowledged"), "{:?}", bed.heard);
    assert_eq!(bed.commands_of(call_id), ["open", "update", "start"]);
}

#[test]
fn agent_that_fails_while_it_rings_gives_the_call_up() {
    let mut bed = Bed::new();
    bed.opens = Opens::Waiting;
    let call_id = bed.place(order(&trunk(|_| {})));
    bed.callee_says(180, None);
    bed.session(call_id, SessionEvent::AgentFailed { reason: "refused".into() });
    assert_eq!(bed.ending(call_id).reason, "agent_unreachable");
    assert!(format!("{:?}", bed.heard).contains("Cancelled"));
}

#[test]
fn same_request_twice_is_one_call() {
    let mut bed = Bed::new();
    let with = |print: u8| Order {
        idempotency: Some(Idempotency { key: "k".into(), fingerprint: [print; 32] }),
        ..order(&trunk(|_| {}))
    };
    let first = bed.place(with(1));
    assert_eq!(bed.place(with(1)), first);
    assert_eq!(bed.calls.place(with(2), bed.now), Err(PlaceError::OtherRequest("k".into())));
    assert_eq!(bed.incoming.len(), 1);
    let other = Order { tenant_id: "t2".into(), ..with(1) };
    assert_ne!(bed.calls.place(other, bed.now).unwrap(), first);
}

#[test]
fn bulk_leaves_at_the_trunks_pace_and_shows_how_far_it_is() {
    let mut bed = Bed::new();
    let slow = trunk(|trunk| {
        trunk.outbound.calls_per_second = 2.0;
        trunk.outbound.calls_max = Some(3);
    });
    let orders = (0..10).map(|_| order(&slow)).collect();
    let (bulk, calls) = bed.calls.place_bulk(orders, bed.now).unwrap();
    bed.run();
    assert_eq!(bed.incoming.len(), 1);
    assert_eq!(bed.state(calls[9]), "queued");
    bed.pass(Duration::from_millis(600));
    assert_eq!(bed.incoming.len(), 2);
    bed.pass(Duration::from_secs(10));
    assert_eq!(bed.incoming.len(), 3, "three at once");
    let told = bed.calls.bulk("t1", bulk).unwrap();
    assert_eq!((told.total, told.queued, told.active), (10, 7, 3));
    bed.callee_refuses(Reply::new(486));
    bed.pass(Duration::from_secs(1));
    assert_eq!(bed.incoming.len(), 4, "one that ends lets another leave");
    let told = bed.calls.cancel_bulk("t1", bulk, bed.now).unwrap();
    bed.run();
    assert_eq!((told.queued, told.active), (0, 3));
    assert_eq!(told.ended, [("busy".to_owned(), 1), ("queue_cancelled".to_owned(), 6)].into());
    assert_eq!(bed.calls.bulk("t2", bulk), None);
}

#[test]
fn queued_call_waits_for_an_engine_and_a_drain_ends_it() {
    let mut bed = Bed::with(Default::default(), 0);
    let call_id = bed.place(order(&trunk(|_| {})));
    assert_eq!(bed.state(call_id), "queued");
    bed.calls.drain(bed.now);
    bed.run();
    assert_eq!(bed.ending(call_id).reason, "draining");
    assert_eq!(bed.calls.place(order(&trunk(|_| {})), bed.now), Err(PlaceError::Draining));
    assert!(bed.calls.is_empty());
}

#[test]
fn hold_of_ours_stops_the_sound_both_ways_and_resume_brings_it_back() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|_| {}));
    bed.calls.hold("t1", call_id, true, bed.now).unwrap();
    bed.run();
    assert_eq!(bed.state(call_id), "on_hold");
    assert_eq!(bed.last_update().direction(), Direction::Inactive);
    bed.calls.hold("t1", call_id, false, bed.now).unwrap();
    bed.run();
    assert_eq!(bed.state(call_id), "connected");
    assert_eq!(bed.last_update().direction(), Direction::Sendrecv);
}

#[test]
fn glare_is_tried_again_after_a_while_and_given_up_in_the_end() {
    let mut bed = Bed::new();
    let (_, call_id) = bed.talking(&trunk(|_| {}));
    bed.answers_reinvites = false;
    bed.calls.hold("t1", call_id, true, bed.now).unwrap();
    bed.run();
    assert_eq!(bed.state(call_id), "connected");
    bed.answers_reinvites = true;
    // Who made the Call-ID waits 2.1 to 4 s.
    bed.pass(Duration::from_secs(5));
    assert_eq!(bed.state(call_id), "on_hold");

    bed.answers_reinvites = false;
    bed.calls.hold("t1", call_id, false, bed.now).unwrap();
    bed.pass(Duration::from_secs(60));
    assert_eq!(bed.state(call_id), "on_hold", "it stays as it was");
    assert!(bed.calls.hold("t1", call_id, false, bed.now).is_some());
}
