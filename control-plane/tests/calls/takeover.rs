//! Somebody takes the other side's place, by an INVITE with Replaces or a REFER: what becomes of the call's protection, and
//! of an exchange of the old dialog that is under way.

use std::time::Duration;

use control_plane::call::action::{EngineRefusal, EngineReply};
use control_plane::call::gate::TenantLimits;
use control_plane::trunk::{
    DidPattern, Inbound, ReferIn, Route, SipCredential, SrtpRules, TransferPolicy, Trunk, Trunks,
};
use tandem_api::engine::v1::Direction;
use tandem_sdp::SrtpPolicy;
use tandem_sip::header::refer::{ReferTo, Replaces};
use tandem_sip::message::Reply;
use tandem_sip::{Body, CallHandle, Flow, Headers, InviteRequest, NameAddr, Uri};

use crate::bed::{Bed, Heard, addr, echo_uri, offer};
use crate::place::{order, trunk};

const NUMBER: &str = "sip:+493012345@192.0.2.1";

impl Bed {
    /// Another phone calls to take the place of this dialog; gives what it hears.
    pub(crate) fn replace(&mut self, call: CallHandle, uri: &str, sdp: Option<&str>) -> Heard {
        self.invite_replacing(call, uri, sdp);
        let is_its = |heard: &&Heard| matches!(heard, Heard::Answered(_) | Heard::Refused { .. });
        self.heard.iter().rev().find(is_its).unwrap().clone()
    }

    fn invite_replacing(&mut self, call: CallHandle, uri: &str, sdp: Option<&str>) -> CallHandle {
        let dialog = self.caller.dialog(call).unwrap();
        let replaces = Replaces {
            call_id: dialog.call_id().into(),
            to_tag: dialog.remote_tag().into(),
            from_tag: dialog.local_tag().into(),
            early_only: false,
        };
        let from = NameAddr::new(Uri::parse("sip:bert@example.com").unwrap());
        let flow = Flow::udp(self.caller_at, addr("192.0.2.1:5060"));
        let mut invite = InviteRequest::new(Uri::parse(uri).unwrap(), from, flow);
        invite.replaces = Some(replaces);
        invite.body = sdp.map(|text| Body::sdp(text.to_owned()));
        let newcomer = self.caller.invite(invite, self.now).unwrap();
        self.run();
        newcomer
    }
}

fn with_key(fill: u8) -> String {
    let key = char::from(fill).to_string().repeat(40);
    let clear = offer("sendrecv", "0").replace("RTP/AVP", "RTP/SAVP");
    format!("{clear}a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:{key}\r\n")
}

/// An offer of a browser.
pub(crate) fn of_a_browser() -> String {
    let hash = "AB:".repeat(31) + "AB";
    let text = offer("sendrecv", "0").replace("RTP/AVP", "UDP/TLS/RTP/SAVPF");
    format!(
        "{text}a=fingerprint:sha-256 {hash}\r\na=setup:actpass\r\na=rtcp-mux\r\n\
         a=ice-ufrag:them\r\na=ice-pwd:r5V3J1LxZz0wWnCk6bRQ2TtU\r\n"
    )
}

/// Calls come over one trunk with these rules.
fn with_rules(srtp: SrtpRules) -> Bed {
    let route = Route { did: DidPattern::parse("+4930*", None).unwrap(), assistant_id: "echo".into() };
    let allow = vec!["192.0.2.8/29".parse().unwrap()];
    let inbound = Inbound { allow, routes: vec![route], ..Inbound::default() };
    let transfer = TransferPolicy {
        refer_in: ReferIn::SameTrunk,
        targets: vec!["192.0.2.9".into()],
        ..TransferPolicy::default()
    };
    let trunk = Trunk {
        name: "carrier".into(),
        tenant_id: "t1".into(),
        credential: SipCredential {
            sip_uri: Some(Uri::parse("sip:42@192.0.2.9:5060").unwrap()),
            ..SipCredential::default()
        },
        inbound,
        srtp,
        transfer,
        ..Trunk::default()
    };
    Bed::with_trunks(Trunks::new([trunk], []), TenantLimits::default())
}

fn is_488(heard: &Heard) -> bool {
    matches!(heard, Heard::Refused { status: 488, .. })
}

fn answer(heard: Heard) -> String {
    let Heard::Answered(sdp) = heard else { panic!("{heard:?}") };
    sdp
}

fn key_of(sdp: &str) -> String {
    let line = sdp.lines().find(|line| line.contains("AES_CM_128_HMAC_SHA1_80")).unwrap();
    line.split("inline:").nth(1).unwrap().to_owned()
}

#[test]
fn browser_takes_over_from_a_phone_with_keys_of_its_own() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    let sdp = answer(bed.replace(call, &echo_uri(), Some(&of_a_browser())));
    assert!(sdp.contains("UDP/TLS/RTP/SAVPF") && sdp.contains("a=fingerprint:sha-256 AB:AB"), "{sdp}");
    assert!(bed.last_update().dtls.is_some());
    assert_eq!(bed.state(call_id), "connected");
}

#[test]
fn call_of_a_browser_is_not_taken_over_in_the_clear() {
    let mut bed = Bed::new();
    let call = bed.invite(&echo_uri(), Some(&of_a_browser()));
    let call_id = bed.last_call_id();
    let updates = bed.commands.len();
    for sdp in [Some(offer("sendrecv", "0")), None] {
        let heard = bed.replace(call, &echo_uri(), sdp.as_deref());
        assert!(is_488(&heard), "{heard:?}");
    }
    assert_eq!((bed.state(call_id).as_str(), bed.commands.len()), ("connected", updates));
    answer(bed.replace(call, &echo_uri(), Some(&of_a_browser())));
}

#[test]
fn trunk_that_wants_protection_wants_it_of_who_takes_over() {
    let mut bed = with_rules(SrtpRules { mode: Some(SrtpPolicy::Required), ..SrtpRules::default() });
    let call = bed.invite(NUMBER, Some(&with_key(b'A')));
    let call_id = bed.last_call_id();
    let first = match bed.heard.last() {
        Some(Heard::Answered(sdp)) => sdp.clone(),
        other => panic!("{other:?}"),
    };
    assert!(is_488(&bed.replace(call, NUMBER, Some(&offer("sendrecv", "0")))));
    assert_eq!(bed.state(call_id), "connected");
    let second = answer(bed.replace(call, NUMBER, Some(&with_key(b'B'))));
    assert_ne!(key_of(&first), key_of(&second), "the two must not be able to hear each other");
    assert!(bed.last_update().srtp.is_some());
}

#[test]
fn trunk_whose_calls_may_be_in_the_clear_takes_a_protected_one_over_so() {
    let mode = Some(SrtpPolicy::Optional);
    let mut bed = with_rules(SrtpRules { mode, is_without_tls: true, ..SrtpRules::default() });
    let call = bed.invite(NUMBER, Some(&with_key(b'A')));
    let sdp = answer(bed.replace(call, NUMBER, Some(&offer("sendrecv", "0"))));
    assert!(sdp.contains("RTP/AVP"), "{sdp}");
    let update = bed.last_update();
    assert_eq!((update.srtp.as_ref(), update.direction()), (None, Direction::Sendrecv));
}

#[test]
fn target_of_a_refer_gets_other_keys_than_who_refers_us() {
    let mut bed = with_rules(SrtpRules { mode: Some(SrtpPolicy::Required), ..SrtpRules::default() });
    let call = bed.invite(NUMBER, Some(&with_key(b'A')));
    let first = match bed.heard.last() {
        Some(Heard::Answered(sdp)) => sdp.clone(),
        other => panic!("{other:?}"),
    };
    let target = ReferTo::blind(Uri::parse("sip:bert@192.0.2.9").unwrap());
    bed.caller.refer(call, &target, Headers::new(), bed.now).unwrap();
    bed.run();
    let offered = String::from_utf8_lossy(&bed.incoming.last().expect("an INVITE").1.body).into_owned();
    assert!(offered.contains("m=audio 20000 RTP/SAVP"), "{offered}");
    assert_ne!(key_of(&first), key_of(&offered));
}

#[test]
fn call_whose_hold_has_no_outcome_yet_is_not_taken_over() {
    let mut bed = Bed::new();
    let (call, call_id) = bed.connected();
    bed.answers_reinvites = false;
    bed.calls.hold("t1", call_id, true, bed.now).unwrap();
    bed.run();
    let heard = bed.replace(call, &echo_uri(), Some(&offer("sendrecv", "0")));
    assert!(matches!(heard, Heard::Refused { status: 491, .. }), "{heard:?}");
    bed.pass(Duration::from_secs(60));
    answer(bed.replace(call, &echo_uri(), Some(&offer("sendrecv", "0"))));
}

#[test]
fn answer_of_who_is_called_does_not_move_the_engine_back_from_who_picks_the_call_up() {
    for engine_moves in [true, false] {
        let mut bed = Bed::new();
        let call_id = bed.place(order(&trunk(|_| {})));
        bed.callee_says(180, None);
        let callee = bed.callee();
        bed.updates_are_answered = false;
        let elsewhere = offer("sendrecv", "0").replace("40000", "41000");
        let from = bed.invite_replacing(callee, &echo_uri(), Some(&elsewhere));
        bed.caller.respond(callee, Reply::new(200).body(Body::sdp(offer("sendrecv", "0"))), bed.now).unwrap();
        bed.run();
        let said = match engine_moves {
            true => Ok(()),
            false => Err(EngineRefusal::Invalid("rtp.codec".into())),
        };
        bed.updates_are_answered = true;
        bed.reply(call_id, EngineReply::Updated(said));
        bed.pass(Duration::from_secs(1));
        let port = if engine_moves { 41_000 } else { 40_000 };
        assert_eq!((bed.last_update().remote_port, bed.state(call_id).as_str()), (port, "connected"));
        assert_eq!(bed.caller.dialog(from).is_some(), engine_moves);
    }
}
