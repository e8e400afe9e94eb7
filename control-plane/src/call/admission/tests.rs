//! Admission, case by case: what comes, from where, and what becomes of it.

use tandem_sip::digest::{Algorithm, Challenge, Credentials};
use tandem_sip::message::Message;

use super::*;
use crate::store::accounts::Assistant;
use crate::trunk::{DidPattern, Inbound, Route};

const CARRIER: &str = "203.0.113.5:5060";
const STRANGER: &str = "198.51.100.1:5060";

fn trunk(name: &str, allow: &str, routes: &[(&str, &str)]) -> Trunk {
    let routes = routes.iter().map(|(did, assistant)| Route {
        did: DidPattern::parse(did, None).unwrap(),
        assistant_id: (*assistant).into(),
    });
    let inbound = Inbound {
        allow: vec![allow.parse().unwrap()],
        tls_client: vec![format!("{name}.example")],
        routes: routes.collect(),
        ..Inbound::default()
    };
    Trunk { name: name.into(), tenant_id: format!("tenant-of-{name}").into(), inbound, ..Trunk::default() }
}

fn phone(user: &str, tenant: &str, assistant: Option<&str>) -> Phone {
    Phone {
        user: user.into(),
        password: "hunter22".into(),
        tenant_id: tenant.into(),
        assistant_id: assistant.map(Arc::from),
        ..Phone::default()
    }
}

fn trunks() -> [Trunk; 2] {
    [
        trunk("carrier", "203.0.113.0/28", &[("+4930*", "berlin"), ("+49301234", "desk")]),
        trunk("pbx", "203.0.113.4/30", &[("+493099*", "support")]),
    ]
}

fn gate() -> Gate {
    let phones = [
        phone("200", "t1", Some("echo")),
        phone("201", "t1", Some("tone")),
        phone("300", "t2", Some("other")),
        phone("202", "t1", None),
    ];
    Gate::new(Trunks::new(trunks(), phones), "tandem", &[7; 32], Default::default())
}

fn gate_without_phones() -> Gate {
    Gate::new(Trunks::new(trunks(), []), "tandem", &[7; 32], Default::default())
}

fn invite(uri: &str, from: &str, more: &str) -> Request {
    let text = format!(
        "INVITE {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.1;branch=z9hG4bK1\r\nMax-Forwards: 70\r\n\
         From: <sip:{from}@x>;tag=1\r\nTo: <sip:+4930777@x>\r\nCall-ID: c\r\nCSeq: 1 INVITE\r\n\
         Contact: <sip:{from}@198.51.100.1>\r\n{more}Content-Length: 0\r\n\r\n"
    );
    match tandem_sip::parse::parse(text.as_bytes()).unwrap() {
        Message::Request(request) => request,
        Message::Response(_) => panic!("a request"),
    }
}

struct Asked {
    result: Result<Credential, Turned>,
    trace: Trace,
}

impl Asked {
    fn cause(&self) -> Cause {
        match &self.result {
            Err(Turned::Refused(ending, _)) => ending.cause,
            other => panic!("{other:?}"),
        }
    }

    fn reached(&self) -> (String, String) {
        let credential = self.result.as_ref().unwrap();
        let tenant = credential.principal().map(|principal| principal.tenant_id.to_string());
        (tenant.unwrap_or_default(), credential.assistant_id.to_string())
    }

    /// Step, rule and verdict of each line.
    fn steps(&self) -> Vec<(&str, &str, bool)> {
        self.trace.iter().map(|step| (step.step.as_str(), step.rule.as_str(), step.passed)).collect()
    }

    fn challenge(&self) -> &Reply {
        match &self.result {
            Err(Turned::Challenged(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }
}

fn ask(gate: &mut Gate, request: &Request, source: &str, certificate: &[&str], now: Instant) -> Asked {
    let trunks = gate.trunks().iter().map(|trunk| trunk.name.clone()).collect();
    let peer = TlsPeer { names: certificate.iter().map(|name| Box::from(*name)).collect(), trunks };
    let invite = Invite { request, source: source.parse().unwrap(), peer: Some(&peer), place: None, now };
    let mut trace = Trace::new();
    let result = credential(&invite, gate, &mut trace);
    Asked { result, trace }
}

fn found() -> Found {
    Found {
        principal: Some(Principal { tenant_id: "t1".into(), key_id: "k1".into() }),
        assistant: Some(Assistant { assistant_id: "desk".into(), agent: Ok(Agent::Echo) }),
    }
}

/// All four steps.
fn run(uri: &str, found: &Found) -> (Result<Agent, Cause>, Trace) {
    let request = invite(uri, "anna", "");
    let asked = ask(&mut gate(), &request, STRANGER, &[], Instant::now());
    let mut trace = asked.trace;
    let credential = match asked.result {
        Ok(credential) => credential,
        Err(Turned::Refused(ending, _)) => return (Err(ending.cause), trace),
        Err(Turned::Challenged(_)) => panic!("a challenge"),
    };
    let agent = principal(&credential, found, &mut trace).and_then(|_| {
        let stored = assistant(&credential, found, &mut trace)?;
        agent(stored, &mut trace)
    });
    (agent.map_err(|ending| ending.cause), trace)
}

#[test]
fn good_call_passes_four_steps() {
    let (agent, trace) = run("sip:desk:a-key@tandem", &found());
    assert_eq!(agent, Ok(Agent::Echo));
    let steps: Vec<_> = trace.iter().map(|step| (step.step.as_str(), step.passed)).collect();
    assert_eq!(steps, [("credential", true), ("principal", true), ("assistant", true), ("provider", true)]);
}

#[test]
fn stranger_without_anything_is_refused_with_403_and_told_of_the_ways_there_are() {
    for text in ["sip:desk@tandem", "sip:tandem", "sip:desk:@tandem"] {
        let request = invite(text, "anna", "");
        let asked = ask(&mut gate_without_phones(), &request, STRANGER, &[], Instant::now());
        assert_eq!(asked.cause(), Cause::MissingKey, "{text}");
        assert_eq!(
            asked.steps().iter().map(|step| step.1).collect::<Vec<_>>(),
            ["trunk_source", "uri_credentials"]
        );
        assert!(asked.trace.iter().all(|step| !step.passed));
    }
}

#[test]
fn user_of_no_phone_hears_what_a_phone_hears() {
    let uri = "sip:x@tandem";
    // Without the nonce, which is always another one.
    let heard = |user: &str| -> Vec<String> {
        let (mut gate, now) = (gate(), Instant::now());
        let mut asked = ask(&mut gate, &invite(uri, user, ""), STRANGER, &[], now);
        let mut heard = Vec::new();
        while let Err(Turned::Challenged(reply)) = &asked.result {
            let text = format!("{reply:?}");
            let nonces = text.split("nonce=").map(|part| part.split_once(',').map_or(part, |(_, rest)| rest));
            heard.push(nonces.collect());
            let authorization = answer(reply, Algorithm::Sha256, user, "wrong", uri, 1);
            asked = ask(&mut gate, &invite(uri, user, &authorization), STRANGER, &[], now);
        }
        let Err(Turned::Refused(ending, _)) = &asked.result else { panic!("{:?}", asked.result) };
        heard.push(format!("{:?}", ending.to_reply()));
        heard
    };
    let (phone, nobody) = (heard("200"), heard("999"));
    assert_eq!(phone.len(), super::super::gate::TRIES_MAX as usize + 1);
    assert_eq!(phone, nobody);
}

#[test]
fn wrong_key_is_refused_before_anything_is_said_about_the_assistant() {
    let (agent, trace) = run("sip:desk:a-key@tandem", &Found::default());
    assert_eq!(agent, Err(Cause::WrongKey));
    assert_eq!(trace.last().unwrap().step, "principal");
    assert!(trace.iter().all(|step| !step.got.contains("desk")));
}

#[test]
fn unknown_assistant_is_404_for_a_valid_key() {
    let found = Found { assistant: None, ..found() };
    let (agent, trace) = run("sip:nobody:a-key@tandem", &found);
    assert_eq!(agent, Err(Cause::UnknownAssistant));
    assert_eq!(Cause::UnknownAssistant.row().sip_status, 404);
    assert_eq!(trace.last().unwrap().got, "nobody");
}

#[test]
fn unreadable_agent_is_our_fault_and_says_what_is_wrong() {
    let broken = Assistant { assistant_id: "desk".into(), agent: Err("agent kind \"x\" is unknown".into()) };
    let (agent, trace) = run("sip:desk:a-key@tandem", &Found { assistant: Some(broken), ..found() });
    assert_eq!(agent, Err(Cause::BrokenAssistant));
    assert_eq!(trace.last().unwrap().got, "agent kind \"x\" is unknown");
}

#[test]
fn key_stands_nowhere_in_the_trace_or_the_credential() {
    let request = invite("sip:desk:hunter2@tandem", "anna", "");
    let asked = ask(&mut gate(), &request, STRANGER, &[], Instant::now());
    let credential = asked.result.unwrap();
    let mut trace = asked.trace;
    principal(&credential, &Found::default(), &mut trace).unwrap_err();
    assert!(!format!("{trace:?}{credential:?}").contains("hunter2"));
}

#[test]
fn number_of_a_trunk_reaches_its_assistant_without_any_secret() {
    for (uri, source, certificate, reached) in [
        ("sip:+4930123@tandem", CARRIER, &[][..], ("tenant-of-carrier", "berlin")),
        ("sip:0049301234@tandem", CARRIER, &[], ("tenant-of-carrier", "desk")),
        ("sip:49301234;phone-context=x@tandem", CARRIER, &[], ("tenant-of-carrier", "desk")),
        // Both trunks have this source: the longer match decides.
        ("sip:+4930991@tandem", CARRIER, &[], ("tenant-of-pbx", "support")),
        // Only one of them has this one.
        ("sip:+4930991@tandem", "203.0.113.1:5060", &[], ("tenant-of-carrier", "berlin")),
        ("sip:+4930991@tandem", STRANGER, &["pbx.example"], ("tenant-of-pbx", "support")),
    ] {
        let request = invite(uri, "+49171", "");
        let asked = ask(&mut gate(), &request, source, certificate, Instant::now());
        let (tenant, assistant) = asked.reached();
        assert_eq!((tenant.as_str(), assistant.as_str()), reached, "{uri} from {source}");
        assert_eq!(
            asked.steps(),
            [
                ("credential", "trunk_source", true),
                ("principal", "trunk", true),
                ("assistant", "did_route", true)
            ]
        );
    }
}

#[test]
fn number_that_no_trunk_of_the_source_routes_is_404_and_says_which_there_are() {
    let request = invite("sip:+4389@tandem", "+49171", "");
    let asked = ask(&mut gate(), &request, "203.0.113.1:5060", &[], Instant::now());
    assert_eq!(asked.cause(), Cause::UnknownNumber);
    let last = asked.trace.last().unwrap();
    assert_eq!((last.rule.as_str(), last.got.as_str()), ("did_route", "+4389"));
    assert_eq!(last.expected, "a number of the trunk: 4930*, 49301234");
    assert!(
        matches!(&asked.result, Err(Turned::Refused(_, owner)) if owner.trunk.as_deref() == Some("carrier"))
    );

    let asked = ask(&mut gate(), &request, CARRIER, &[], Instant::now());
    assert_eq!(asked.cause(), Cause::UnknownNumber);
    assert_eq!(asked.trace.last().unwrap().rule, "trunk");
    assert!(matches!(&asked.result, Err(Turned::Refused(_, owner)) if owner.tenant.is_none()), "either's");
}

#[test]
fn dialled_number_is_taken_from_where_the_trunk_writes_it() {
    let request = invite("sip:line7@tandem", "+49171", "P-Called-Party-ID: <sip:+4930888@x>\r\n");
    assert_eq!(dialled_number(&request, DidSource::RequestUri), "line7");
    assert_eq!(dialled_number(&request, DidSource::To), "+4930777");
    assert_eq!(dialled_number(&request, DidSource::PCalledPartyId), "+4930888");
}

// --- phones ---

/// The answer to a challenge, with this password.
fn answer(reply: &Reply, algorithm: Algorithm, user: &str, password: &str, uri: &str, count: u32) -> String {
    let values = reply.headers().all(HeaderName::WwwAuthenticate);
    let challenges: Vec<Challenge> = values.map(|value| Challenge::parse(value).unwrap()).collect();
    assert_eq!(
        challenges.iter().map(|c| c.algorithm).collect::<Vec<_>>(),
        [Algorithm::Sha256, Algorithm::Md5]
    );
    let challenge = challenges.into_iter().find(|challenge| challenge.algorithm == algorithm).unwrap();
    let credentials = Credentials::new(user, password);
    format!("Authorization: {}\r\n", challenge.answer(&credentials, "INVITE", uri, "c", count))
}

#[test]
fn phone_is_challenged_and_gets_in_by_either_hash() {
    for algorithm in [Algorithm::Md5, Algorithm::Sha256] {
        let (mut gate, now) = (gate(), Instant::now());
        let uri = "sip:anything@tandem";
        let first = ask(&mut gate, &invite(uri, "200", ""), STRANGER, &[], now);
        let authorization = answer(first.challenge(), algorithm, "200", "hunter22", uri, 1);
        let second = ask(&mut gate, &invite(uri, "200", &authorization), STRANGER, &[], now);
        assert_eq!(second.reached(), ("t1".to_owned(), "echo".to_owned()));
        assert_eq!(
            second.steps(),
            [
                ("credential", "phone_digest", true),
                ("principal", "phone", true),
                ("assistant", "phone_route", true)
            ]
        );
        let third = ask(&mut gate, &invite(uri, "200", &authorization), STRANGER, &[], now);
        let header = third.challenge().headers().get(HeaderName::WwwAuthenticate).unwrap().to_owned();
        assert!(header.contains("stale=true"), "a replayed count is no proof: {header}");
    }
}

#[test]
fn phone_reaches_its_own_assistant_another_phones_or_the_one_it_dials() {
    for (user, dialled, tenant, assistant) in [
        ("200", "anything", "t1", "echo"),
        ("200", "201", "t1", "tone"),
        ("200", "300", "t1", "echo"),
        ("202", "desk", "t1", "desk"),
        ("202", "200", "t1", "echo"),
        ("300", "200", "t2", "other"),
    ] {
        let (mut gate, now) = (gate(), Instant::now());
        let uri = format!("sip:{dialled}@tandem");
        let first = ask(&mut gate, &invite(&uri, user, ""), STRANGER, &[], now);
        let authorization = answer(first.challenge(), Algorithm::Sha256, user, "hunter22", &uri, 1);
        let second = ask(&mut gate, &invite(&uri, user, &authorization), STRANGER, &[], now);
        assert_eq!(second.reached(), (tenant.to_owned(), assistant.to_owned()), "{user} dials {dialled}");
    }
}

#[test]
fn wrong_password_is_asked_again_and_then_refused_and_the_right_one_helps_only_later() {
    use std::time::Duration;
    let (mut gate, now) = (gate(), Instant::now());
    let uri = "sip:x@tandem";
    let mut asked = ask(&mut gate, &invite(uri, "200", ""), STRANGER, &[], now);
    let mut challenges = 0;
    while let Err(Turned::Challenged(reply)) = &asked.result {
        challenges += 1;
        let authorization = answer(reply, Algorithm::Sha256, "200", "wrong", uri, 1);
        asked = ask(&mut gate, &invite(uri, "200", &authorization), STRANGER, &[], now);
    }
    assert_eq!(challenges, super::super::gate::TRIES_MAX);
    assert_eq!(asked.cause(), Cause::WrongPassword);
    assert_eq!(asked.trace.last().unwrap().rule, "phone_digest");
    assert!(!format!("{:?}", asked.trace).contains("hunter22"));
    let elsewhere = ask(&mut gate, &invite(uri, "200", ""), "198.51.100.2:5060", &[], now);
    elsewhere.challenge();
    let later = ask(&mut gate, &invite(uri, "200", ""), STRANGER, &[], now + Duration::from_secs(60));
    later.challenge();
}

#[test]
fn callers_number_behind_a_trunk_is_no_phones_claim() {
    let asked = ask(&mut gate(), &invite("sip:+4930123@tandem", "200", ""), CARRIER, &[], Instant::now());
    assert_eq!(asked.reached().1, "berlin");
}

#[test]
fn phone_of_another_name_than_its_answer_is_not_believed() {
    let (mut gate, now) = (gate(), Instant::now());
    let uri = "sip:x@tandem";
    let first = ask(&mut gate, &invite(uri, "200", ""), STRANGER, &[], now);
    let authorization = answer(first.challenge(), Algorithm::Sha256, "999", "hunter22", uri, 1);
    // Nobody is called 999: the claim of From is asked for its own password.
    ask(&mut gate, &invite(uri, "200", &authorization), STRANGER, &[], now).challenge();
}

#[test]
fn strange_assistant_names_cannot_break_a_log_line() {
    assert_eq!(shown("a\r\nb"), "a??b");
    assert_eq!(shown(&"x".repeat(500)).len(), 64);
}
