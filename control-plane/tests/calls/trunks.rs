//! Calls that come without a key: from trunks, by their address or certificate, and from phones, by their password.

use std::sync::Arc;
use std::time::Duration;

use control_plane::call::ending::Cause;
use control_plane::call::gate::TenantLimits;
use control_plane::sip::TlsPeer;
use control_plane::trunk::{DidPattern, Inbound, Phone, Reliable, Route, Trunk, Trunks};
use tandem_sip::digest::Credentials;
use tandem_sip::{Body, Flow, InviteRequest, NameAddr, Reliability, Uri};

use crate::bed::{Bed, Heard, addr, echo_uri, offer};

const CARRIER: &str = "203.0.113.5:5060";

fn trunk(inbound: Inbound) -> Trunk {
    let routes = vec![Route { did: DidPattern::parse("+4930*", None).unwrap(), assistant_id: "echo".into() }];
    let allow = vec!["203.0.113.0/28".parse().unwrap()];
    let inbound = Inbound { allow, tls_client: vec!["carrier.example".into()], routes, ..inbound };
    Trunk { name: "carrier".into(), tenant_id: "t1".into(), inbound, ..Trunk::default() }
}

fn phone() -> Phone {
    Phone {
        user: "200".into(),
        password: "hunter22".into(),
        tenant_id: "t1".into(),
        assistant_id: Some("echo".into()),
        ..Phone::default()
    }
}

fn bed(inbound: Inbound) -> Bed {
    Bed::with_trunks(Trunks::new([trunk(inbound)], [phone()]), TenantLimits::default())
}

/// Where there are phones a stranger is challenged first.
fn bed_without_phones() -> Bed {
    Bed::with_trunks(Trunks::new([trunk(Inbound::default())], []), TenantLimits::default())
}

fn from_carrier(inbound: Inbound) -> Bed {
    Bed { caller_at: addr(CARRIER), ..bed(inbound) }
}

fn status(bed: &Bed) -> u16 {
    match bed.heard.last() {
        Some(Heard::Refused { status, .. }) => *status,
        Some(Heard::Answered(_)) => 200,
        other => panic!("{other:?}"),
    }
}

fn sdp() -> String {
    offer("sendrecv", "0")
}

#[test]
fn number_of_a_trunk_is_answered_and_recorded_for_its_tenant() {
    let mut bed = from_carrier(Inbound::default());
    bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
    assert_eq!(status(&bed), 200);
    let record = bed.last_record();
    assert_eq!((&*record.tenant_id, record.call.assistant_id.as_str()), ("t1", "echo"));
    let rules: Vec<&str> = record.call.decisions.iter().map(|step| step.rule.as_str()).collect();
    assert_eq!(rules, ["trunk_source", "trunk", "did_route", "assistant_exists", "agent_options"]);
    assert_eq!(bed.admitted, [addr(CARRIER)]);
}

#[test]
fn certificate_opens_the_same_door_from_anywhere() {
    let mut bed = bed(Inbound::default());
    let trunks = vec!["carrier".into()];
    bed.certificate = Some(TlsPeer { names: vec!["carrier.example".into()], trunks });
    bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
    assert_eq!(status(&bed), 200);
}

#[test]
fn certificate_that_another_trunks_authority_has_signed_opens_no_door() {
    let mut bed = bed_without_phones();
    bed.certificate =
        Some(TlsPeer { names: vec!["carrier.example".into()], trunks: vec!["somebody-else".into()] });
    bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
    assert_eq!(status(&bed), 403);
}

#[test]
fn number_without_a_route_is_404_and_its_reasons_are_kept_for_the_trunks_tenant() {
    let mut bed = from_carrier(Inbound::default());
    bed.invite("sip:+4389@192.0.2.1", Some(&sdp()));
    assert_eq!(status(&bed), 404);
    let refusal = &bed.refusals[0];
    assert_eq!((refusal.ending.cause, refusal.step.rule.as_str()), (Cause::UnknownNumber, "did_route"));
    assert_eq!((refusal.tenant_id.as_deref(), refusal.trunk.as_deref()), (Some("t1"), Some("carrier")));
    assert!(!refusal.is_recorded && bed.records.is_empty() && bed.lookups == 0);
    assert_eq!(refusal.trace.len(), 3);
}

#[test]
fn stranger_leaves_nothing_but_its_reasons() {
    let mut bed = bed_without_phones();
    bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
    assert_eq!(status(&bed), 403);
    assert!(bed.calls.is_empty() && bed.records.is_empty() && bed.commands.is_empty() && bed.lookups == 0);
    let rules: Vec<&str> = bed.refusals[0].trace.iter().map(|step| step.rule.as_str()).collect();
    assert_eq!(rules, ["trunk_source", "uri_credentials"]);
}

#[test]
fn stranger_is_challenged_where_there_are_phones_and_leaves_nothing_at_all() {
    let mut bed = bed(Inbound::default());
    bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
    assert_eq!(status(&bed), 401);
    assert!(bed.calls.is_empty() && bed.records.is_empty() && bed.commands.is_empty() && bed.lookups == 0);
    assert!(bed.refusals.is_empty());
}

#[test]
fn how_full_we_are_is_said_to_a_trunk_and_not_to_a_stranger() {
    let mut bed = Bed { caller_at: addr(CARRIER), ..bed_without_phones() };
    bed.calls.drain(bed.now);
    bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
    assert_eq!((status(&bed), bed.refusals[0].trunk.as_deref()), (503, Some("carrier")));
    bed.caller_at = addr("198.51.100.1:5060");
    bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
    assert_eq!(status(&bed), 403);
}

#[test]
fn trunk_over_its_limit_is_refused_as_it_is_agreed() {
    for (busy_when_full, expected) in [(false, 503), (true, 486)] {
        let mut bed = from_carrier(Inbound { calls_max: Some(1), busy_when_full, ..Inbound::default() });
        bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
        assert_eq!(status(&bed), 200);
        bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
        let Some(Heard::Refused { status, retry_after_s, .. }) = bed.heard.last() else { panic!() };
        assert_eq!((*status, retry_after_s.is_some()), (expected, expected == 503));
        assert_eq!(bed.refusals[0].step.rule, "trunk_calls_max");
        // A caller with a key is not the trunk's business.
        bed.invite(&echo_uri(), Some(&sdp()));
        assert_eq!(self::status(&bed), 200);
    }
}

#[test]
fn trunk_gets_its_place_back_when_a_call_is_over() {
    let mut bed = from_carrier(Inbound { calls_max: Some(1), ..Inbound::default() });
    for _ in 0..3 {
        let call = bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
        assert_eq!(status(&bed), 200);
        bed.caller.hang_up(call, Default::default(), bed.now).unwrap();
        bed.run();
        bed.pass(Duration::from_secs(40));
        assert!(bed.calls.is_empty());
    }
}

#[test]
fn trunk_that_offers_too_many_a_second_is_told_to_wait() {
    let mut bed = from_carrier(Inbound { calls_per_second: 1.0, ..Inbound::default() });
    bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
    assert_eq!(status(&bed), 200);
    bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
    assert_eq!((status(&bed), bed.refusals[0].step.rule.as_str()), (503, "trunk_calls_per_second"));
    bed.pass(Duration::from_secs(1));
    bed.invite("sip:+493012345@192.0.2.1", Some(&sdp()));
    assert_eq!(status(&bed), 200);
}

#[test]
fn tenant_over_its_limit_is_refused_and_the_refusal_is_nobodys_bill() {
    let limits = TenantLimits { calls_max: Some(1), calls_per_second: None };
    let mut bed = Bed::with_trunks(Trunks::default(), limits);
    bed.invite(&echo_uri(), Some(&sdp()));
    assert_eq!(status(&bed), 200);
    bed.invite(&echo_uri(), Some(&sdp()));
    assert_eq!((status(&bed), bed.refusals[0].step.rule.as_str()), (503, "tenant_calls_max"));
}

#[test]
fn phone_with_its_password_is_answered_and_the_challenge_leaves_no_line() {
    let mut bed = bed(Inbound::default());
    let credentials = Credentials::new("200", "hunter22");
    bed.invite_as("sip:200@192.0.2.1", Some(credentials), "sip:anything@192.0.2.1", Some(&sdp()));
    assert_eq!(status(&bed), 200);
    assert!(bed.refusals.is_empty());
    let record = bed.last_record();
    let rules: Vec<&str> = record.call.decisions.iter().map(|step| step.rule.as_str()).collect();
    assert_eq!(rules, ["phone_digest", "phone", "phone_route", "assistant_exists", "agent_options"]);
    assert_eq!(&*record.tenant_id, "t1");
}

#[test]
fn wrong_password_is_asked_again_a_few_times_and_then_403() {
    let mut bed = bed(Inbound::default());
    let wrong = || Credentials::new("200", "guess");
    let mut statuses = Vec::new();
    for _ in 0..7 {
        bed.invite_as("sip:200@192.0.2.1", Some(wrong()), "sip:x@192.0.2.1", Some(&sdp()));
        statuses.push(status(&bed));
    }
    assert_eq!(statuses[0], 401);
    assert_eq!(statuses[6], 403);
    assert!(bed.records.is_empty() && bed.calls.is_empty());
    let refusal = bed.refusals.last().unwrap();
    assert_eq!((refusal.ending.cause, refusal.step.rule.as_str()), (Cause::WrongPassword, "phone_digest"));
    assert!(!format!("{:?}", bed.refusals).contains("hunter22"));
}

#[test]
fn refusal_names_its_call_in_the_response() {
    let mut bed = bed_without_phones();
    bed.invite("sip:echo@192.0.2.1", Some(&sdp()));
    let Some(Heard::Refused { call_id: Some(told), .. }) = bed.heard.last() else {
        panic!("{:?}", bed.heard)
    };
    assert_eq!(*told, bed.refusals[0].call_id.to_string());
    bed.invite("sip:nobody:a-key@192.0.2.1", Some(&sdp()));
    let Some(Heard::Refused { call_id: Some(told), .. }) = bed.heard.last() else {
        panic!("{:?}", bed.heard)
    };
    assert_eq!(*told, bed.last_record().call.call_id);
    let _: &Arc<str> = &bed.last_record().tenant_id;
}

#[test]
fn trunk_without_100rel_gets_420_when_it_requires_it_and_others_are_rung_reliably_if_agreed() {
    for (agreed, wanted, answer) in [
        (Reliable::Never, Reliability::Require, 420),
        (Reliable::Never, Reliability::Prefer, 200),
        (Reliable::IfRequired, Reliability::Require, 200),
        (Reliable::Prefer, Reliability::Prefer, 200),
    ] {
        let carrier = Trunk { reliable: agreed, ..trunk(Inbound::default()) };
        let mut bed = Bed::with_trunks(Trunks::new([carrier], []), TenantLimits::default());
        bed.caller_at = addr(CARRIER);
        let from = NameAddr::new(Uri::parse("sip:anna@example.com").unwrap());
        let to = Uri::parse("sip:+493012345@192.0.2.1").unwrap();
        let mut invite = InviteRequest::new(to, from, Flow::udp(bed.caller_at, addr("192.0.2.1:5060")));
        invite.reliable = Some(wanted);
        invite.body = Some(Body::sdp(sdp()));
        bed.caller.invite(invite, bed.now).unwrap();
        bed.run();
        assert_eq!(status(&bed), answer, "{agreed:?} {wanted:?}");
    }
}
