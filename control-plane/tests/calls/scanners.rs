//! Ten thousand scanners: no call, no record, bounded memory, and good calls beside them as if nothing were.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use control_plane::call::gate::TenantLimits;
use control_plane::trunk::guard::Why;
use control_plane::trunk::{DidPattern, Inbound, Route, Trunk, Trunks};
use tandem_sip::{ConnectionId, Flow, Transport};

use crate::bed::{Bed, Heard, addr, echo_uri, offer};

const SCANS: u32 = 10_000;
/// A scan each millisecond; a good call each 200.
const PACE: Duration = Duration::from_millis(1);

fn scan(number: u32, uri: &str, agent: &str) -> String {
    format!(
        "INVITE {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK{number};rport\r\n\
         Max-Forwards: 70\r\nFrom: \"x\" <sip:{number}@1.1.1.1>;tag={number}\r\nTo: <{uri}>\r\n\
         Call-ID: {number}\r\nCSeq: 1 INVITE\r\nContact: <sip:x@10.0.0.1>\r\nUser-Agent: {agent}\r\n\
         Content-Length: 0\r\n\r\n"
    )
}

fn trunks() -> Trunks {
    routed("*")
}

fn routed(did: &str) -> Trunks {
    let routes = vec![Route { did: DidPattern::parse(did, None).unwrap(), assistant_id: "echo".into() }];
    let inbound = Inbound { allow: vec!["203.0.113.0/28".parse().unwrap()], routes, ..Inbound::default() };
    Trunks::new([Trunk { name: "carrier".into(), tenant_id: "t1".into(), inbound, ..Trunk::default() }], [])
}

/// Sends the scans, and a good call each now and then; gives how many were answered.
fn storm(bed: &mut Bed, scan_of: impl Fn(u32) -> (String, SocketAddr), good_uri: &str) -> (usize, usize) {
    let (mut good, mut answered, mut transactions_max) = (0, 0, 0);
    for number in 0..SCANS {
        let (text, from) = scan_of(number);
        bed.input(text.as_bytes(), from);
        bed.run();
        bed.pass(PACE);
        transactions_max = transactions_max.max(bed.ours.transaction_count());
        if number.is_multiple_of(200) {
            good += 1;
            let call = bed.invite(good_uri, Some(&offer("sendrecv", "0")));
            answered += usize::from(matches!(bed.heard.last(), Some(Heard::Answered(_))));
            bed.caller.hang_up(call, Default::default(), bed.now).unwrap();
            bed.run();
        }
    }
    assert_eq!(answered, good, "every good call is answered");
    (good, transactions_max)
}

fn source(number: u32) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)), 5060)
}

fn check(bed: &mut Bed, good: usize, transactions_max: usize) {
    let calls: std::collections::HashSet<&str> =
        bed.records.iter().map(|record| record.call.call_id.as_str()).collect();
    assert_eq!(calls.len(), good, "no scan has become a call");
    assert_eq!(bed.lookups, good + bed.refusals.iter().filter(|r| r.step.rule == "api_key").count());
    assert!(transactions_max < 8_000, "{transactions_max} transactions at once");
    bed.pass(Duration::from_secs(60));
    assert!(bed.calls.is_empty());
    assert_eq!((bed.ours.transaction_count(), bed.ours.call_count()), (0, 0));
}

#[test]
fn scanners_that_say_what_they_are_reach_nobody_and_leave_no_transaction() {
    let mut bed = Bed::with_trunks(trunks(), TenantLimits::default());
    let scans = |number| (scan(number, "sip:100@192.0.2.1", "friendly-scanner"), source(number % 500));
    let (good, transactions_max) = storm(&mut bed, scans, &echo_uri());
    assert!(bed.refusals.is_empty());
    assert!(transactions_max < 400, "{transactions_max} are the good calls' own");
    let dropped = bed.guard.as_ref().unwrap().counters().dropped;
    assert_eq!(dropped[Why::Scanner as usize] + dropped[Why::Silenced as usize], u64::from(SCANS));
    check(&mut bed, good, transactions_max);
}

#[test]
fn spoofed_scanners_under_a_phones_name_are_mostly_dropped_and_never_become_calls() {
    let mut bed = Bed::with_trunks(trunks(), TenantLimits::default());
    let scans =
        |number| (scan(number, "sip:00972598765432@192.0.2.1", "Cisco-SIPGateway/12"), source(number));
    let (good, transactions_max) = storm(&mut bed, scans, &echo_uri());
    // Five seconds' worth at once, then twenty a second for ten seconds.
    assert!((250..=320).contains(&bed.refusals.len()), "{}", bed.refusals.len());
    let (_, strangers) = bed.guard.as_ref().unwrap().sources();
    assert!(strangers <= SCANS as usize);
    check(&mut bed, good, transactions_max);
}

#[test]
fn guessed_keys_are_looked_up_at_a_bounded_rate_and_the_guesser_meets_silence() {
    let mut bed = Bed::with_trunks(trunks(), TenantLimits::default());
    let guesses =
        |number| (scan(number, &format!("sip:echo:key{number}@192.0.2.1"), "Phone/1"), source(number % 50));
    let (good, transactions_max) = storm(&mut bed, guesses, &echo_uri());
    assert!(bed.refusals.len() <= 50 * 10, "ten guesses a source, then silence: {}", bed.refusals.len());
    check(&mut bed, good, transactions_max);
}

#[test]
fn flood_under_the_carriers_own_address_leaves_little_and_does_not_silence_the_carrier() {
    for uri in ["sip:100:guess@192.0.2.1", "sip:100@192.0.2.1"] {
        let mut bed = Bed::with_trunks(routed("+4930*"), TenantLimits::default());
        bed.caller_at = addr("203.0.113.5:5060");
        let spoofed = |number: u32| {
            let from = SocketAddr::new([203, 0, 113, 5].into(), 1024 + (number % 60_000) as u16);
            let agent = if number.is_multiple_of(2) { "friendly-scanner" } else { "Phone/1" };
            (scan(number, uri, agent), from)
        };
        let (good, transactions_max) = storm(&mut bed, spoofed, "sip:+493012345@192.0.2.1");
        assert_eq!(good, 50);
        // 200 at once, then fifty a second for ten seconds; of keys only twenty and five more.
        assert!(bed.refusals.len() <= 750, "{uri}: {}", bed.refusals.len());
        assert!(bed.lookups <= good + 30, "{uri}: {}", bed.lookups);
        assert!(transactions_max < 1_500, "{uri}: {transactions_max}");
    }
}

#[test]
fn scans_that_are_badly_behaved_on_the_wire_pass_no_better_than_others() {
    let tags = |text: String, number: u32| match number % 3 {
        0 => text.replace("To: <sip:100@192.0.2.1>", "To: <sip:100@192.0.2.1;tag=x>"),
        1 => text.replace("To: <sip", "To: \"a;tag=b\" <sip"),
        _ => text.replace("192.0.2.1>\r\nCall", "192.0.2.1>;tag=guess\r\nCall"),
    };
    let led = |text: String, _| format!("\r\n{text}");
    let broken = |text: String, _| text.replace("CSeq: 1", "CSeq: x");
    let all: [&dyn Fn(String, u32) -> String; 3] = [&led, &tags, &broken];
    for change in all {
        let mut bed = Bed::with_trunks(trunks(), TenantLimits::default());
        let scans = |number| (change(scan(number, "sip:100@192.0.2.1", "Phone/1"), number), source(number));
        let (good, transactions_max) = storm(&mut bed, scans, &echo_uri());
        let dropped: u64 = bed.guard.as_ref().unwrap().counters().dropped.iter().sum();
        assert!(dropped >= u64::from(SCANS) - 320, "{dropped} of {SCANS}");
        check(&mut bed, good, transactions_max);
    }
}

#[test]
fn scans_in_one_segment_of_a_stream_are_counted_one_by_one() {
    let mut bed = Bed::with_trunks(trunks(), TenantLimits::default());
    for connection in 0..10 {
        let all: String =
            (0..100).map(|n| scan(1_000 * connection + n, "sip:100:guess@192.0.2.1", "x")).collect();
        let all = all.replace("SIP/2.0/UDP", "SIP/2.0/TCP");
        let id = ConnectionId(u64::from(connection));
        bed.input_by(all.as_bytes(), Flow::connected(Transport::Tcp, addr("192.0.2.1:5060"), source(1), id));
        bed.run();
    }
    assert!(bed.refusals.len() <= 60, "one source's burst: {}", bed.refusals.len());
}
