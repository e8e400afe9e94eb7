use proptest::prelude::*;

use super::*;

const OURS: &[Transport] = &[Transport::Udp, Transport::Tcp, Transport::Tls];

/// A zone as a function, and everything that was asked of it.
fn resolve(uri: &str, zone: impl Fn(&Question) -> Answer) -> (Vec<String>, Vec<Question>) {
    let mut resolution = Resolution::new(&Uri::parse(uri).unwrap(), None, OURS, 7).unwrap();
    let mut asked = Vec::new();
    while let Some(question) = resolution.poll_question() {
        asked.push(question.clone());
        resolution.handle_answer(&question, zone(&question));
    }
    let targets = resolution.targets().expect("no question is left");
    let text = |target: &Target| format!("{} {}", target.transport.token(), target.address);
    (targets.iter().map(text).collect(), asked)
}

fn nothing(question: &Question) -> Answer {
    match question {
        Question::Naptr(_) => Answer::Naptr(Vec::new()),
        Question::Srv(_) => Answer::Srv(Vec::new()),
        Question::Addresses(_) => Answer::Addresses(Vec::new()),
    }
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Srv {
    Srv { priority, weight, port, target: target.into() }
}

fn naptr(order: u16, preference: u16, service: &str, replacement: &str) -> Naptr {
    let (service, replacement) = (service.into(), replacement.into());
    Naptr { order, preference, flags: "s".into(), service, replacement }
}

fn ip(text: &str) -> Answer {
    Answer::Addresses(text.split(' ').map(|ip| ip.parse().unwrap()).collect())
}

#[test]
fn address_needs_no_question() {
    let nobody = |_: &Question| -> Answer { panic!("nothing is asked") };
    for (uri, target) in [
        ("sip:192.0.2.1", "UDP 192.0.2.1:5060"),
        ("sip:bob@192.0.2.1:5070;transport=tcp", "TCP 192.0.2.1:5070"),
        ("sip:[2001:db8::1]", "UDP [2001:db8::1]:5060"),
        ("sips:192.0.2.1", "TLS 192.0.2.1:5061"),
        ("sip:192.0.2.1;transport=TLS", "TLS 192.0.2.1:5061"),
        ("sips:192.0.2.1;transport=tcp", "TLS 192.0.2.1:5061"),
    ] {
        assert_eq!(resolve(uri, nobody).0, [target], "{uri}");
    }
}

#[test]
fn port_skips_naptr_and_srv() {
    let zone = |question: &Question| match question {
        Question::Addresses(name) if &**name == "pbx.example" => ip("192.0.2.1 2001:db8::1"),
        other => panic!("{other:?} is asked"),
    };
    let (targets, _) = resolve("sip:pbx.example:5080", zone);
    assert_eq!(targets, ["UDP 192.0.2.1:5080", "UDP [2001:db8::1]:5080"]);
    let (targets, _) = resolve("sips:PBX.example.:5080", zone);
    assert_eq!(targets[0], "TLS 192.0.2.1:5080");
}

#[test]
fn naptr_orders_transports_and_srv_hosts() {
    let zone = |question: &Question| match question {
        Question::Naptr(_) => Answer::Naptr(vec![
            naptr(20, 1, "SIP+D2U", "_sip._udp.example.com."),
            naptr(10, 1, "SIPS+D2T", "_sips._tcp.example.com."),
            naptr(5, 1, "E2U+sip", "elsewhere.example"),
        ]),
        Question::Srv(name) if &**name == "_sips._tcp.example.com" => {
            Answer::Srv(vec![srv(2, 0, 5061, "b.example.com."), srv(1, 0, 5071, "a.example.com.")])
        }
        Question::Srv(_) => Answer::Srv(vec![srv(1, 0, 5060, "a.example.com")]),
        Question::Addresses(name) if &**name == "a.example.com" => ip("192.0.2.1"),
        Question::Addresses(_) => ip("192.0.2.2"),
    };
    let (targets, _) = resolve("sip:example.com", zone);
    assert_eq!(targets, ["TLS 192.0.2.1:5071", "TLS 192.0.2.2:5061", "UDP 192.0.2.1:5060"]);
    let (targets, _) = resolve("sips:example.com", zone);
    assert_eq!(targets, ["TLS 192.0.2.1:5071", "TLS 192.0.2.2:5061"], "sips goes over nothing but TLS");
}

#[test]
fn named_transport_skips_naptr() {
    let zone = |question: &Question| match question {
        Question::Srv(name) if &**name == "_sip._tcp.example.com" => {
            Answer::Srv(vec![srv(1, 0, 5064, "a.example.com")])
        }
        Question::Addresses(_) => ip("192.0.2.1"),
        other => panic!("{other:?} is asked"),
    };
    assert_eq!(resolve("sip:example.com;transport=tcp", zone).0, ["TCP 192.0.2.1:5064"]);
}

#[test]
fn without_naptr_each_transport_is_asked_for_in_our_order() {
    let zone = |question: &Question| match question {
        Question::Srv(name) if name.starts_with("_sip._tcp.") => Answer::Srv(vec![srv(1, 0, 5060, "t")]),
        Question::Srv(name) if name.starts_with("_sip._udp.") => Answer::Srv(vec![srv(9, 0, 5060, "u")]),
        Question::Addresses(name) => ip(if &**name == "t" { "192.0.2.1" } else { "192.0.2.2" }),
        other => nothing(other),
    };
    assert_eq!(resolve("sip:example.com", zone).0, ["UDP 192.0.2.2:5060", "TCP 192.0.2.1:5060"]);
}

#[test]
fn domain_without_naptr_and_srv_is_a_host() {
    let zone = |question: &Question| match question {
        Question::Addresses(name) if &**name == "example.com" => ip("192.0.2.1"),
        other => nothing(other),
    };
    let (targets, asked) = resolve("sip:example.com", zone);
    assert_eq!(targets, ["UDP 192.0.2.1:5060"]);
    assert_eq!(asked.len(), 5, "NAPTR, three SRV, the host: {asked:?}");
    assert_eq!(resolve("sips:example.com", zone).0, ["TLS 192.0.2.1:5061"]);
    assert!(resolve("sip:nowhere.example", nothing).0.is_empty());
}

#[test]
fn domain_that_says_it_has_no_such_service_is_not_tried() {
    let zone = |question: &Question| match question {
        Question::Srv(_) => Answer::Srv(vec![srv(0, 0, 0, ".")]),
        Question::Addresses(_) => panic!("the host is not asked for"),
        other => nothing(other),
    };
    assert!(resolve("sip:example.com;transport=udp", zone).0.is_empty());
}

#[test]
fn weights_share_the_load() {
    let records =
        [srv(1, 90, 1, "heavy"), srv(1, 10, 2, "light"), srv(1, 0, 3, "idle"), srv(0, 0, 4, "first")];
    let mut random = Random::new(1);
    let mut seconds = std::collections::BTreeMap::new();
    for _ in 0..1_000 {
        let ordered = by_weight(&records, &mut random);
        assert_eq!((ordered.len(), &*ordered[0].target), (4, "first"));
        *seconds.entry(ordered[1].target.clone()).or_insert(0) += 1;
    }
    assert!((850..950).contains(&seconds["heavy"]), "{seconds:?}");
    assert!((50..150).contains(&seconds["light"]), "{seconds:?}");
    assert!(seconds.get("idle").is_none_or(|&times| times < 40), "{seconds:?}");
}

#[test]
fn greedy_zone_is_cut() {
    let zone = |question: &Question| match question {
        Question::Naptr(_) => {
            let record = |n: u16| naptr(n, 0, "SIP+D2U", &format!("_sip._udp.d{n}.example"));
            Answer::Naptr((0..500).map(record).collect())
        }
        Question::Srv(name) => {
            let record = |n: u16| srv(n, 0, 5060, &format!("h{n}.{name}"));
            Answer::Srv((0..500).map(record).collect())
        }
        Question::Addresses(_) => {
            Answer::Addresses((0..500u32).map(|n| IpAddr::from(n.to_be_bytes())).collect())
        }
    };
    let (targets, asked) = resolve("sip:example.com", zone);
    assert!(
        targets.len() <= TARGETS_MAX && asked.len() <= QUESTIONS_MAX,
        "{} {}",
        targets.len(),
        asked.len()
    );
    assert!(!targets.is_empty());
}

#[test]
fn transport_that_is_not_here_is_said_so() {
    let uri = |text| Uri::parse(text).unwrap();
    let new = |text| Resolution::new(&uri(text), None, OURS, 1).map(|_| ());
    assert_eq!(new("sip:a.example;transport=ws"), Err(ResolveError::Transport("WS".into())));
    assert_eq!(new("sip:a.example;transport=sctp"), Err(ResolveError::Transport("sctp".into())));
    assert_eq!(new("tel:+1555"), Err(ResolveError::Scheme));
}

/// Names of a small zone, so that they meet again.
fn some_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["example.com", "a", "b", "_sip._udp.example.com", "_sip._tcp.example.com", "."])
        .prop_map(str::to_owned)
}

fn some_answers() -> impl Strategy<Value = Vec<Answer>> {
    let service = prop::sample::select(vec!["SIP+D2U", "SIP+D2T", "SIPS+D2T", "x"]);
    let naptrs = prop::collection::vec((0..3u16, service, some_name()), 0..4).prop_map(|all| {
        Answer::Naptr(all.iter().map(|(n, service, name)| naptr(*n, 0, service, name)).collect())
    });
    let srvs = prop::collection::vec((0..3u16, 0..9u16, 0..9u16, some_name()), 0..4).prop_map(|all| {
        Answer::Srv(all.iter().map(|(n, weight, port, name)| srv(*n, *weight, *port, name)).collect())
    });
    let addresses =
        prop::collection::vec(any::<[u8; 4]>().prop_map(IpAddr::from), 0..3).prop_map(Answer::Addresses);
    prop::collection::vec(prop_oneof![naptrs, srvs, addresses], 1..12)
}

proptest! {
    #[test]
    fn whatever_dns_says_a_resolution_comes_to_its_end(answers in some_answers(), seed in any::<u64>()) {
        for uri in ["sip:example.com", "sips:example.com", "sip:example.com;transport=tcp"] {
            let mut resolution = Resolution::new(&Uri::parse(uri).unwrap(), None, OURS, seed).unwrap();
            let mut answers = answers.iter().cycle();
            // As a shell does it: all questions of a step at once.
            loop {
                let questions: Vec<Question> = std::iter::from_fn(|| resolution.poll_question()).collect();
                if questions.is_empty() {
                    break;
                }
                for question in questions {
                    resolution.handle_answer(&question, answers.next().unwrap().clone());
                }
            }
            prop_assert!(resolution.asked().len() <= QUESTIONS_MAX);
            let targets = resolution.targets();
            prop_assert!(targets.as_ref().is_some_and(|targets| targets.len() <= TARGETS_MAX), "{targets:?}");
            if uri.starts_with("sips:") {
                prop_assert!(targets.unwrap().iter().all(|target| target.transport.is_secure()));
            }
        }
    }
}
