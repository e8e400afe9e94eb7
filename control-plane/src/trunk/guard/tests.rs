//! What the guard lets in.

use tandem_sip::Message;
use tandem_sip::parse::parse;

use super::*;
use crate::trunk::{DidPattern, Inbound, Outbound, Phone, Route, Trunk};

const STRANGER: &str = "198.51.100.1";

fn guard() -> SourceGuard {
    let did = DidPattern::parse("+49*", None).unwrap();
    let routes = vec![Route { did, assistant_id: "desk".into() }];
    let allow = vec!["203.0.113.0/28".parse().unwrap()];
    let tls_client = vec!["sbc.carrier.example".into()];
    let inbound = Inbound { allow, tls_client, routes, ..Inbound::default() };
    let trunk = Trunk { name: "carrier".into(), inbound, ..Trunk::default() };
    let outbound = Outbound::default();
    let called = Trunk { name: "called-only".into(), outbound, ..Trunk::default() };
    let phone = Phone { user: "200".into(), ..Phone::default() };
    SourceGuard::new(GuardSettings::default(), Trunks::new([trunk, called], [phone]))
}

fn request(method: &str, uri: &str, from: &str, agent: &str) -> String {
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.1;branch=z9hG4bK1\r\nMax-Forwards: 70\r\n\
         From: {from};tag=1\r\nTo: <{uri}>\r\nCall-ID: c\r\nCSeq: 1 {method}\r\nUser-Agent: {agent}\r\n\
         Content-Length: 0\r\n\r\n"
    )
}

fn invite(uri: &str, agent: &str) -> String {
    request("INVITE", uri, "<sip:1000@x>", agent)
}

fn source(ip: &str) -> Source<'static> {
    Source { ip: ip.parse().unwrap(), peer: None }
}

/// As the shell and the endpoint ask.
fn ask(guard: &mut SourceGuard, source: Source<'_>, text: &str, now: Instant) -> Verdict {
    let verdict = guard.check_source(text.as_bytes(), source, now);
    let Verdict::Pass = verdict else { return verdict };
    match parse(text.as_bytes()) {
        Ok(Message::Request(request)) => guard.check(&Knock::Request(&request), source, now),
        Ok(Message::Response(_)) => Verdict::Pass,
        Err(why) => guard.check(&Knock::Malformed(why), source, now),
    }
}

fn check(guard: &mut SourceGuard, ip: &str, text: &str, now: Instant) -> Verdict {
    ask(guard, source(ip), text, now)
}

#[test]
fn scanner_is_dropped_and_its_source_meets_silence_for_a_while() {
    let (mut guard, now) = (guard(), Instant::now());
    let scan = invite("sip:100@192.0.2.1", "friendly-scanner");
    assert_eq!(check(&mut guard, STRANGER, &scan, now), Verdict::Drop(Why::Scanner));
    let plain = invite("sip:desk@192.0.2.1", "Phone/1");
    assert_eq!(check(&mut guard, STRANGER, &plain, now), Verdict::Drop(Why::Silenced));
    let keyed = invite("sip:desk:key@192.0.2.1", "Phone/1");
    assert_eq!(check(&mut guard, STRANGER, &keyed, now), Verdict::Pass, "a good caller beside it");
    let later = now + Duration::from_secs(60);
    assert_eq!(check(&mut guard, STRANGER, &plain, later), Verdict::Pass);
    assert_eq!(check(&mut guard, STRANGER, &scan, later), Verdict::Drop(Why::Scanner));
    let doubled = later + Duration::from_secs(119);
    assert_eq!(check(&mut guard, STRANGER, &plain, doubled), Verdict::Drop(Why::Silenced));
}

#[test]
fn trunk_and_admitted_source_do_not_suffer_for_what_comes_under_their_address() {
    let (mut guard, now) = (guard(), Instant::now());
    guard.admitted(STRANGER.parse().unwrap(), now);
    for ip in ["203.0.113.5", STRANGER] {
        for _ in 0..100 {
            guard.refused(source(ip), Failure::Wrong, now);
            guard.refused(source(ip), Failure::Unknown, now);
            let scan = invite("sip:100@192.0.2.1", "friendly-scanner");
            assert_eq!(check(&mut guard, ip, &scan, now), Verdict::Drop(Why::Scanner));
            let plain = invite("sip:+4930123456@192.0.2.1", "Phone/1");
            assert_eq!(check(&mut guard, ip, &plain, now), Verdict::Pass);
        }
    }
    let plain = invite("sip:100@192.0.2.1", "Phone/1");
    let expired = now + GOOD_FOR;
    let passed = (0..200).filter(|_| check(&mut guard, STRANGER, &plain, expired) == Verdict::Pass);
    assert_eq!(passed.count(), 60, "a stranger again");
}

#[test]
fn trunk_may_bring_only_so_much_that_leads_nowhere_and_its_calls_pass_beside_it() {
    let (mut guard, now) = (guard(), Instant::now());
    let unknown = invite("sip:100@192.0.2.1", "Phone/1");
    let register = request("REGISTER", "sip:192.0.2.1", "<sip:200@x>", "Phone/1");
    let keyed = invite("sip:+4930123456:guess@192.0.2.1", "Phone/1");
    let all = (0..5_000).map(|n| [&unknown, &register, &keyed][n % 3]);
    let passed = all.filter(|text| check(&mut guard, "203.0.113.5", text, now) == Verdict::Pass).count();
    assert!(passed <= 200, "{passed}");
    let mut fresh = self::guard();
    let passed = (0..2_000).filter(|_| check(&mut fresh, "203.0.113.5", &unknown, now) == Verdict::Pass);
    assert_eq!(passed.count(), 200);
    let call = invite("sip:+4930123456@192.0.2.1", "Phone/1");
    let passed = (0..2_000).filter(|_| check(&mut fresh, "203.0.113.5", &call, now) == Verdict::Pass);
    assert_eq!(passed.count(), 2 * (4 * 30 + 100), "far more than its 30 calls a second, and no more");
}

#[test]
fn flood_without_credentials_under_an_admitted_address_does_not_stop_its_calls() {
    let (mut guard, now) = (guard(), Instant::now());
    guard.admitted(STRANGER.parse().unwrap(), now);
    let plain = invite("sip:100@192.0.2.1", "Phone/1");
    let passed = (0..2_000).filter(|_| check(&mut guard, STRANGER, &plain, now) == Verdict::Pass);
    assert_eq!(passed.count(), 500);
    let register = request("REGISTER", "sip:192.0.2.1", "<sip:200@x>", "Phone/1");
    for text in [invite("sip:desk:key@192.0.2.1", "Phone/1"), register] {
        assert_eq!(check(&mut guard, STRANGER, &text, now), Verdict::Pass);
    }
}

#[test]
fn trusted_source_may_guess_twenty_keys_and_its_other_calls_go_on() {
    let (mut guard, now) = (guard(), Instant::now());
    guard.admitted(STRANGER.parse().unwrap(), now);
    for ip in ["203.0.113.5", STRANGER] {
        let guess = invite("sip:desk:guess@192.0.2.1", "Phone/1");
        let mut passed = 0;
        for _ in 0..100 {
            if check(&mut guard, ip, &guess, now) == Verdict::Pass {
                passed += 1;
                guard.refused(source(ip), Failure::Wrong, now);
            }
        }
        assert_eq!(passed, 20, "{ip}");
        assert_eq!(check(&mut guard, ip, &guess, now), Verdict::Drop(Why::WrongKeys));
        let call = invite("sip:+4930123456@192.0.2.1", "Phone/1");
        assert_eq!(check(&mut guard, ip, &call, now), Verdict::Pass);
        let later = now + Duration::from_secs(3);
        assert_eq!(check(&mut guard, ip, &guess, later), Verdict::Pass, "one in two seconds");
    }
}

#[test]
fn trunk_that_is_only_called_is_known_by_the_addresses_at_which_it_is_called() {
    let (mut guard, now) = (guard(), Instant::now());
    let bye = request("BYE", "sip:us@192.0.2.1", "<sip:+4930@x>", "SBC/1");
    let pass = |guard: &mut SourceGuard, at| {
        (0..150).filter(|_| check(guard, "192.0.2.77", &bye, at) == Verdict::Pass).count()
    };
    assert!(pass(&mut guard, now) < 150, "a stranger");
    guard.resolved("called-only", "192.0.2.77".parse().unwrap(), now);
    assert_eq!(pass(&mut guard, now), 150);
    assert!(pass(&mut guard, now + GOOD_FOR) < 150, "until nobody has called it for an hour");
    guard.resolved("nobody", "192.0.2.78".parse().unwrap(), now);
    assert!(!matches!(guard.standing(source("192.0.2.78"), now), Standing::Trunk(_)));
}

#[test]
fn certificate_of_a_trunk_counts_as_its_address_does() {
    let (mut guard, now) = (guard(), Instant::now());
    let peer = TlsPeer { names: vec!["sbc.carrier.example".into()], trunks: vec!["carrier".into()] };
    let vouched = Source { peer: Some(&peer), ..source(STRANGER) };
    let call = invite("sip:+4930123456@192.0.2.1", "SBC/1");
    for n in 0..200u32 {
        let ip = IpAddr::V4(std::net::Ipv4Addr::from(0x0a00_0000 + n));
        ask(&mut guard, Source { ip, peer: None }, &call, now);
    }
    assert_eq!(check(&mut guard, "198.51.100.2", &call, now), Verdict::Drop(Why::StrangersRate));
    let passed = (0..200).filter(|_| ask(&mut guard, vouched, &call, now) == Verdict::Pass);
    assert_eq!(passed.count(), 200);
}

#[test]
fn addresses_of_one_ipv6_network_are_one_stranger_and_trust_is_for_one_address() {
    let (mut guard, now) = (guard(), Instant::now());
    let keyed = invite("sip:desk:key@192.0.2.1", "Phone/1");
    let mut passed = 0;
    for n in 0..1_000 {
        let ip = format!("2001:db8:0:1::{n:x}");
        if check(&mut guard, &ip, &keyed, now) == Verdict::Pass {
            passed += 1;
            guard.refused(source(&ip), Failure::Wrong, now);
        }
    }
    assert_eq!(passed, 10, "guesses, from however many addresses");
    assert_eq!(check(&mut guard, "2001:db8:0:2::1", &keyed, now), Verdict::Pass, "another network");
    guard.admitted("2001:db8:0:2::1".parse().unwrap(), now);
    assert!(matches!(guard.standing(source("2001:db8:0:2::1"), now), Standing::Good));
    assert!(matches!(guard.standing(source("2001:db8:0:2::2"), now), Standing::Stranger));
}

#[test]
fn what_does_not_parse_and_strays_of_no_dialog_cost_what_any_request_costs() {
    let now = Instant::now();
    let broken = invite("sip:100@192.0.2.1", "x").replace("CSeq: 1 INVITE", "CSeq: x");
    let stray =
        request("BYE", "sip:100@192.0.2.1", "<sip:x@x>", "x").replace(">\r\nCall-ID", ">;tag=x\r\nCall-ID");
    for text in [format!("\r\n{}", invite("sip:100@192.0.2.1", "x")), broken, stray] {
        let mut guard = guard();
        let passed = (0..200).filter(|_| check(&mut guard, STRANGER, &text, now) == Verdict::Pass);
        assert_eq!(passed.count(), 60);
        let others =
            (0..200).filter(|n| check(&mut guard, &format!("10.0.0.{n}"), &text, now) == Verdict::Pass);
        assert_eq!(others.count(), 40, "five seconds' worth of all strangers");
    }
}

#[test]
fn stranger_that_floods_is_not_even_parsed() {
    let (mut guard, now) = (guard(), Instant::now());
    let passed =
        (0..10_000).filter(|_| guard.check_source(b"SIP/2.0 200", source(STRANGER), now) == Verdict::Pass);
    assert_eq!(passed.count(), 2_000);
    let ours = source("203.0.113.5");
    assert!((0..10_000).all(|_| guard.check_source(b"SIP/2.0 200", ours, now) == Verdict::Pass));
}

#[test]
fn wrong_keys_lead_to_silence_for_everything_and_no_credential_only_for_its_like() {
    let (mut guard, now) = (guard(), Instant::now());
    let plain = invite("sip:desk@192.0.2.1", "Phone/1");
    let keyed = invite("sip:desk:key@192.0.2.1", "Phone/1");
    for _ in 0..UNKNOWN_MAX {
        assert_eq!(check(&mut guard, STRANGER, &plain, now), Verdict::Pass);
        guard.refused(source(STRANGER), Failure::Unknown, now);
    }
    assert_eq!(check(&mut guard, STRANGER, &plain, now), Verdict::Drop(Why::Silenced));
    assert_eq!(check(&mut guard, STRANGER, &keyed, now), Verdict::Pass);
    for _ in 0..10 {
        guard.refused(source(STRANGER), Failure::Wrong, now);
    }
    assert_eq!(check(&mut guard, STRANGER, &keyed, now), Verdict::Drop(Why::Silenced));
    for response in ["SIP/2.0 200 OK\r\n\r\n", "\r\n\r\nSIP/2.0 200 OK\r\n\r\n"] {
        assert_eq!(guard.check_source(response.as_bytes(), source(STRANGER), now), Verdict::Pass);
    }
}

#[test]
fn failures_that_are_far_apart_do_not_add_up() {
    let (mut guard, now) = (guard(), Instant::now());
    let keyed = invite("sip:desk:key@192.0.2.1", "Phone/1");
    for minute in 0..30 {
        let at = now + FAILURE_WINDOW * minute;
        guard.refused(source(STRANGER), Failure::Wrong, at);
        assert_eq!(check(&mut guard, STRANGER, &keyed, at), Verdict::Pass);
    }
}

#[test]
fn spoofed_flood_is_bounded_in_memory_and_in_what_passes_and_phones_get_through() {
    let (mut guard, now) = (guard(), Instant::now());
    let plain = invite("sip:100@192.0.2.1", "Asterisk PBX");
    let mut passed = 0;
    for n in 0..70_000u32 {
        let source = Source { ip: std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), peer: None };
        passed += u32::from(ask(&mut guard, source, &plain, now) == Verdict::Pass);
    }
    assert_eq!(passed, 100, "five seconds' worth at once");
    assert_eq!(guard.sources(), (0, STRANGERS_MAX));
    let register = request("REGISTER", "sip:192.0.2.1", "<sip:200@192.0.2.1>", "Phone/1");
    assert_eq!(check(&mut guard, STRANGER, &register, now), Verdict::Pass);
    let reports = std::iter::from_fn(|| guard.poll_report()).count();
    assert!(reports <= 20, "{reports} lines in a second");
}

#[test]
fn one_source_leaves_one_line_a_minute_with_a_count() {
    let (mut guard, now) = (guard(), Instant::now());
    let scan = invite("sip:100@192.0.2.1", "sipvicious");
    for second in 0..120 {
        for _ in 0..10 {
            check(&mut guard, STRANGER, &scan, now + Duration::from_secs(second));
        }
    }
    let reports: Vec<Report> = std::iter::from_fn(|| guard.poll_report()).collect();
    assert_eq!(reports.iter().map(|report| report.dropped).collect::<Vec<_>>(), [1, 600]);
}

#[test]
fn one_stranger_cannot_flood_even_with_credentials() {
    let (mut guard, now) = (guard(), Instant::now());
    let keyed = invite("sip:desk:key@192.0.2.1", "Phone/1");
    let passed = (0..1_000).filter(|_| check(&mut guard, STRANGER, &keyed, now) == Verdict::Pass);
    assert_eq!(passed.count(), 60);
}
