//! Before the answer of a call that came over a trunk: the agent is heard early, and shown the trunk's headers.

use std::time::Duration;

use control_plane::call::action::EngineCommand;
use control_plane::call::agent::{Agent, Dialect};
use control_plane::call::gate::TenantLimits;
use control_plane::media::SessionEvent;
use control_plane::trunk::{DidPattern, HeaderRules, Inbound, Route, Trunk, Trunks};
use tandem_api::engine::v1::agent::Target;
use tandem_sip::message::Body;
use tandem_sip::{Flow, InviteRequest, NameAddr, Uri};

use crate::bed::{Bed, Heard, addr, offer};

const CARRIER: &str = "203.0.113.5:5060";

fn bed(early_media: Option<Duration>) -> Bed {
    let inbound = Inbound {
        allow: vec!["203.0.113.0/28".parse().unwrap()],
        routes: vec![Route { did: DidPattern::parse("*", None).unwrap(), assistant_id: "echo".into() }],
        early_media,
        ..Inbound::default()
    };
    let trunk = Trunk {
        name: "carrier".into(),
        tenant_id: "t1".into(),
        inbound,
        headers: HeaderRules { to_agent: vec!["X-*".into()], ..HeaderRules::default() },
        ..Trunk::default()
    };
    Bed { caller_at: addr(CARRIER), ..Bed::with_trunks(Trunks::new([trunk], []), TenantLimits::default()) }
}

fn dial(bed: &mut Bed) {
    let from = NameAddr::new(Uri::parse("sip:+49301@carrier.example").unwrap());
    let flow = Flow::udp(addr(CARRIER), addr("192.0.2.1:5060"));
    let mut invite = InviteRequest::new(Uri::parse("sip:+4930222@192.0.2.1").unwrap(), from, flow);
    invite.body = Some(Body::sdp(offer("sendrecv", "0")));
    invite.headers.push("X-Customer", "7").unwrap();
    invite.headers.push("P-Asserted-Identity", "<sip:+49301@carrier.example>").unwrap();
    bed.caller.invite(invite, bed.now).unwrap();
    bed.run();
}

#[test]
fn agent_is_heard_for_its_time_and_then_the_call_is_answered_with_the_same_description() {
    let mut bed = bed(Some(Duration::from_secs(20)));
    dial(&mut bed);
    let call_id = bed.last_call_id();
    assert_eq!(bed.heard.last(), Some(&Heard::Provisional(183)));
    assert_eq!((bed.state(call_id).as_str(), bed.commands_of(call_id)), ("ringing", vec!["open", "start"]));
    // Longer than the ring timer, which is not meant.
    bed.pass(Duration::from_secs(19));
    assert_eq!(bed.state(call_id), "ringing");
    bed.pass(Duration::from_secs(2));
    assert!(matches!(bed.heard.last(), Some(Heard::Answered(sdp)) if sdp.contains("m=audio 20000")));
    assert_eq!((bed.state(call_id).as_str(), bed.commands_of(call_id)), ("connected", vec!["open", "start"]));
}

#[test]
fn agent_says_when_the_call_is_answered_or_refuses_it() {
    let mut one = bed(Some(Duration::from_secs(60)));
    dial(&mut one);
    let call_id = one.last_call_id();
    one.session(call_id, SessionEvent::AgentAnswer);
    assert_eq!(one.state(call_id), "connected");
    one.session(call_id, SessionEvent::AgentAnswer);
    assert_eq!(one.state(call_id), "connected");

    let mut other = bed(Some(Duration::from_secs(60)));
    dial(&mut other);
    let call_id = other.last_call_id();
    other.session(call_id, SessionEvent::AgentHangup);
    assert!(matches!(other.heard.last(), Some(Heard::Refused { status: 480, .. })), "{:?}", other.heard);
    assert_eq!(other.commands_of(call_id), ["open", "start", "close"]);
}

#[test]
fn trunk_without_early_media_is_answered_at_once() {
    let mut bed = bed(None);
    dial(&mut bed);
    assert!(matches!(bed.heard.last(), Some(Heard::Answered(_))));
    assert!(!bed.heard.contains(&Heard::Provisional(183)));
}

#[test]
fn agent_is_shown_the_headers_of_the_trunks_list_and_who_the_network_says_calls() {
    let mut bed = bed(None);
    bed.agent = Agent::WebSocket {
        url: "ws://agent.example/".into(),
        dialect: Dialect::Pcm,
        headers: Default::default(),
        custom: [("team".to_owned(), "desk".to_owned())].into(),
        speech: Default::default(),
    };
    dial(&mut bed);
    let open = bed.commands.iter().find_map(|(_, _, command)| match command {
        EngineCommand::Open(request) => request.agent.clone()?.target,
        _ => None,
    });
    let Some(Target::Websocket(agent)) = open else { panic!("an agent") };
    assert_eq!(agent.custom["sip.x-customer"], "7");
    assert_eq!(agent.custom["sip.p-asserted-identity"], "<sip:+49301@carrier.example>");
    assert_eq!(agent.custom["team"], "desk");
}
