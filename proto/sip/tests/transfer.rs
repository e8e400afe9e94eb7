//! PRACK, early dialogs, REFER and Replaces between endpoints, in virtual time.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod net;

use std::time::Duration;

use net::{Link, Network, addr};
use tandem_sip::header::refer::ReferTo;
use tandem_sip::*;

/// Progress of a transfer: status and whether it was the last word.
fn progress(net: &mut Network, index: usize) -> (u16, bool) {
    net.until(index, |event| match event {
        Event::ReferProgress { status, is_final, .. } => Some((*status, *is_final)),
        _ => None,
    })
}

fn refer_request(net: &mut Network, index: usize) -> (RequestHandle, ReferTo) {
    net.until(index, |event| match event {
        Event::Request { handle, request, .. } if request.method == Method::Refer => {
            Some((*handle, ReferTo::parse(request.header(HeaderName::ReferTo)?).ok()?))
        }
        _ => None,
    })
}

fn network(seed: u64, agents: usize) -> Network {
    Network::with_config(seed, agents, |config| {
        config.in_dialog_methods = vec![Method::Update, Method::Refer];
        config.reliable = Reliability::Prefer;
    })
}

// --- reliable provisional responses ---

#[test]
fn ringing_is_confirmed_by_prack_however_bad_the_link() {
    for seed in 0..40 {
        let mut net = network(seed, 2);
        net.link = Link { loss_percent: 25, duplicate_percent: 10, delay_ms: 20, jitter_ms: 150 };
        let (invite, now) = (net.invite(0, 1), net.now);
        let caller = net.endpoint(0).invite(invite, now).unwrap();
        let callee = net.incoming(1);
        let now = net.now;
        net.endpoint(1).ring(callee, now).unwrap();
        net.endpoint(1).respond(callee, Reply::new(183).body(Body::sdp("early")), now).unwrap();
        net.endpoint(1).answer(callee, Body::sdp("early"), now).unwrap();
        for status in [180, 183] {
            let heard = net.until(0, |event| match event {
                Event::Provisional { response, wants_prack: false, .. } => Some(response.status),
                _ => None,
            });
            assert_eq!(heard, status, "each once and in order");
            net.until(1, |event| matches!(event, Event::Pracked { .. }).then_some(()));
        }
        net.answered(0);
        net.acknowledged(1);
        let more = net.agents[0].events.iter().any(|event| matches!(event, Event::Provisional { .. }));
        assert!(!more, "seed {seed}: {:#?}", net.agents[0].events);
        net.bye(usize::from(seed % 2 == 0), if seed % 2 == 0 { callee } else { caller });
        net.settle();
    }
}

#[test]
fn offer_in_a_reliable_response_is_answered_in_the_prack() {
    let mut net = network(50, 2);
    let (mut invite, now) = (net.invite(0, 1), net.now);
    invite.body = None;
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    let now = net.now;
    net.endpoint(1).respond(callee, Reply::new(183).body(Body::sdp("offer")), now).unwrap();
    let offer = net.until(0, |event| match event {
        Event::Provisional { response, wants_prack: true, .. } => response.sdp().map(<[u8]>::to_vec),
        _ => None,
    });
    assert_eq!(offer, b"offer");
    net.run(Duration::from_secs(3));
    assert_eq!(net.sent(0, "PRACK"), 0, "the user has yet to say the answer");
    let now = net.now;
    net.endpoint(0).prack(caller, Body::sdp("answer"), now).unwrap();
    let answer = net.until(1, |event| match event {
        Event::Pracked { prack, .. } => Some(prack.body.clone()),
        _ => None,
    });
    assert_eq!(answer, b"answer");
    let now = net.now;
    net.endpoint(1).respond(callee, Reply::new(200), now).unwrap();
    let wants_ack = net.until(0, |event| match event {
        Event::Answered { wants_ack, .. } => Some(*wants_ack),
        _ => None,
    });
    assert!(!wants_ack, "the session is agreed on");
    net.acknowledged(1);
    net.bye(0, caller);
    net.settle();
}

#[test]
fn update_in_the_early_dialog_changes_early_media() {
    let mut net = network(51, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    let now = net.now;
    net.endpoint(1).respond(callee, Reply::new(183).body(Body::sdp("early")), now).unwrap();
    net.until(1, |event| matches!(event, Event::Pracked { .. }).then_some(()));
    for (from, to, call) in [(0, 1, caller), (1, 0, callee)] {
        let now = net.now;
        net.endpoint(from)
            .request_in_call(call, Method::Update, Headers::new(), Some(Body::sdp("changed")), now)
            .unwrap();
        let handle = net.until(to, |event| match event {
            Event::Request { handle, call: Some(_), request, .. } if request.body == b"changed" => {
                Some(*handle)
            }
            _ => None,
        });
        let now = net.now;
        net.endpoint(to).reply(handle, Reply::new(200).body(Body::sdp("yes")), now).unwrap();
        let status = net.until(from, |event| match event {
            Event::Response { result: Ok(response), .. } => Some(response.status),
            _ => None,
        });
        assert_eq!(status, 200);
    }
    let now = net.now;
    net.endpoint(1).respond(callee, Reply::new(200), now).unwrap();
    net.answered(0);
    net.acknowledged(1);
    // Sequence numbers go on from those of the early dialog.
    net.bye(0, caller);
    assert_eq!(net.ended(1), EndReason::RemoteBye { reason: None });
    net.settle();
    assert_eq!(net.sent(1, "SIP/2.0 500"), 0);
}

#[test]
fn forks_that_have_rung_reliably_are_hung_up_when_they_answer_late() {
    let mut net = network(52, 4);
    let (invite, now) = (net.invite(0, 1), net.now);
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    let bytes = net.endpoint(0).poll_transmit().unwrap().bytes;
    let mut forks = Vec::new();
    for index in 1..4 {
        net.send(addr(0), addr(index), bytes.clone());
    }
    for index in 1..4 {
        let call = net.incoming(index);
        let now = net.now;
        net.endpoint(index).ring(call, now).unwrap();
        forks.push(call);
    }
    net.run(Duration::from_secs(2));
    assert_eq!(net.sent(0, "PRACK"), 3, "one to each fork");
    for (index, call) in forks.iter().enumerate() {
        let now = net.now;
        net.endpoint(index + 1).answer(*call, Body::sdp("answer"), now).unwrap();
    }
    net.answered(0);
    for index in 1..4 {
        net.acknowledged(index);
    }
    net.run(Duration::from_secs(1));
    let ended = (1..4)
        .filter(|&index| net.agents[index].events.iter().any(|event| matches!(event, Event::Ended { .. })))
        .count();
    assert_eq!(ended, 2, "one fork is the call, the others are hung up");
    net.bye(0, caller);
    net.settle();
    assert_eq!((1..4).map(|index| net.sent(index, "SIP/2.0 500")).sum::<usize>(), 0);
}

#[test]
fn caller_who_gives_up_after_a_reliable_ringing_gets_487() {
    let mut net = network(53, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    let now = net.now;
    net.endpoint(1).ring(callee, now).unwrap();
    net.until(0, |event| matches!(event, Event::Provisional { .. }).then_some(()));
    let now = net.now;
    net.endpoint(0).cancel(caller, now).unwrap();
    assert_eq!(net.ended(1), EndReason::Cancelled { reason: None });
    assert!(matches!(net.ended(0), EndReason::Failed { response } if response.status == 487));
    net.settle();
}

#[test]
fn long_reliable_ringing_is_renewed_each_minute() {
    let mut net = network(54, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    let now = net.now;
    net.endpoint(1).ring(callee, now).unwrap();
    net.run(Duration::from_secs(150));
    assert_eq!((net.sent(1, "SIP/2.0 180"), net.sent(0, "PRACK")), (3, 3));
    let now = net.now;
    net.endpoint(0).cancel(caller, now).unwrap();
    net.settle();
}

// --- transfer ---

#[test]
fn blind_transfer_is_accepted_reported_and_hung_up() {
    let mut net = network(60, 3);
    let (caller, callee) = net.call();
    let now = net.now;
    let target = ReferTo::blind(Uri::sip(Some("carol"), addr(2)));
    net.endpoint(0).refer(caller, &target, Headers::new(), now).unwrap();
    assert_eq!(
        net.endpoint(0).refer(caller, &target, Headers::new(), now),
        Err(CallError::State("a transfer is under way"))
    );
    let (handle, asked) = refer_request(&mut net, 1);
    assert_eq!(asked, target);
    let now = net.now;
    net.endpoint(1).accept_refer(handle, now).unwrap();
    assert_eq!(progress(&mut net, 0), (202, false));
    assert_eq!(progress(&mut net, 0), (100, false));
    let now = net.now;
    net.endpoint(1).notify_refer(callee, 180, "", now).unwrap();
    assert_eq!(progress(&mut net, 0), (180, false));
    let now = net.now;
    net.endpoint(1).notify_refer(callee, 200, "Fine", now).unwrap();
    assert_eq!(progress(&mut net, 0), (200, true));
    assert_eq!(
        net.endpoint(1).notify_refer(callee, 200, "", now),
        Err(CallError::State("no transfer is under way"))
    );
    net.bye(0, caller);
    net.settle();
}

#[test]
fn failed_transfer_leaves_the_call_and_may_be_tried_again() {
    let mut net = network(61, 2);
    let (caller, callee) = net.call();
    let target = ReferTo::blind(Uri::sip(Some("carol"), addr(2)));
    for (status, last) in [(603, (603, true)), (0, (486, true))] {
        let now = net.now;
        net.endpoint(0).refer(caller, &target, Headers::new(), now).unwrap();
        let (handle, _) = refer_request(&mut net, 1);
        let now = net.now;
        if status != 0 {
            net.endpoint(1).reply(handle, Reply::new(status), now).unwrap();
        } else {
            net.endpoint(1).accept_refer(handle, now).unwrap();
            net.endpoint(1).notify_refer(callee, 486, "", now).unwrap();
        }
        loop {
            let said = progress(&mut net, 0);
            if said.1 {
                break assert_eq!(said, last);
            }
        }
    }
    assert_eq!(net.agents[0].endpoint.call_count(), 1);
    net.bye(1, callee);
    net.settle();
}

#[test]
fn transfer_without_any_word_ends_by_itself() {
    let mut net = network(62, 2);
    let (caller, _) = net.call();
    let target = ReferTo::blind(Uri::sip(Some("carol"), addr(2)));
    let now = net.now;
    net.endpoint(0).refer(caller, &target, Headers::new(), now).unwrap();
    let (handle, _) = refer_request(&mut net, 1);
    let now = net.now;
    net.endpoint(1).accept_refer(handle, now).unwrap();
    net.run(Duration::from_secs(1));
    net.eat("NOTIFY", usize::MAX);
    net.run(endpoint::REFER_LIFE);
    let words: Vec<_> = net.agents[0]
        .events
        .iter()
        .filter_map(|event| match event {
            Event::ReferProgress { status, is_final, .. } => Some((*status, *is_final)),
            _ => None,
        })
        .collect();
    assert_eq!(words, [(202, false), (100, false), (408, true)]);
    net.bye(0, caller);
    net.settle();
}

#[test]
fn attended_transfer_replaces_the_call() {
    // 0 talks to 1 and asks 2; then 1 is told to take 0's place at 2.
    let mut net = network(63, 3);
    let (first, at_1) = net.call();
    let (invite, now) = (net.invite(0, 2), net.now);
    let second = net.endpoint(0).invite(invite, now).unwrap();
    let at_2 = net.incoming(2);
    let now = net.now;
    net.endpoint(2).answer(at_2, Body::sdp("answer"), now).unwrap();
    net.answered(0);
    net.acknowledged(2);

    let dialog = net.agents[0].endpoint.dialog(second).unwrap();
    let target = ReferTo::attended(dialog.remote_target().clone(), dialog.replaces());
    let now = net.now;
    net.endpoint(0).refer(first, &target, Headers::new(), now).unwrap();
    let (handle, asked) = refer_request(&mut net, 1);
    let now = net.now;
    net.endpoint(1).accept_refer(handle, now).unwrap();
    let mut invite = net.invite(1, 2);
    invite.target = asked.target.uri.clone();
    invite.replaces = asked.replaces.clone();
    net.endpoint(1).invite(invite, now).unwrap();
    let (new_at_2, replaces) = net.until(2, |event| match event {
        Event::IncomingInvite { call, replaces, .. } => Some((*call, *replaces)),
        _ => None,
    });
    assert_eq!(replaces, Some(at_2));
    let now = net.now;
    net.endpoint(2).answer(new_at_2, Body::sdp("answer"), now).unwrap();
    assert_eq!(net.ended(2), EndReason::Replaced { by: new_at_2 });
    let new_at_1 = net.answered(1);
    let now = net.now;
    net.endpoint(1).notify_refer(at_1, 200, "", now).unwrap();
    assert_eq!(
        net.ended(0),
        EndReason::RemoteBye { reason: Some("Q.850;cause=16;text=\"taken over by another call\"".into()) },
        "its call to 2 was replaced"
    );
    while progress(&mut net, 0) != (200, true) {}
    net.bye(0, first);
    assert_eq!(net.ended(1), EndReason::RemoteBye { reason: None });
    net.bye(1, new_at_1);
    net.settle();
}

#[test]
fn replaces_finds_only_what_it_names() {
    let mut net = network(64, 3);
    let (caller, callee) = net.call();
    let right = net.agents[0].endpoint.dialog(caller).unwrap().replaces();
    let try_with = |net: &mut Network, replaces| {
        let mut invite = net.invite(2, 1);
        invite.replaces = Some(replaces);
        let now = net.now;
        net.endpoint(2).invite(invite, now).unwrap();
        match net.ended(2) {
            EndReason::Failed { response } => response.status,
            other => panic!("{other:?}"),
        }
    };
    let mut wrong = right.clone();
    wrong.from_tag = "other".into();
    assert_eq!(try_with(&mut net, wrong), 481);
    let mut wrong = right.clone();
    wrong.call_id = "other".into();
    assert_eq!(try_with(&mut net, wrong), 481);
    let mut early = right;
    early.early_only = true;
    assert_eq!(try_with(&mut net, early), 486);
    assert_eq!(net.agents[1].endpoint.call_count(), 1);
    net.bye(1, callee);
    net.settle();
}

// --- credentials ---

#[test]
fn proxy_and_server_are_both_answered() {
    use tandem_sip::digest::{Challenger, Credentials};
    let mut net = Network::seeded(70, 2);
    let mut proxy = Challenger::new("proxy", b"p");
    let mut server = Challenger::new("server", b"s");
    let lookup = |_: &str| Some("secret".to_owned());
    let (mut invite, now) = (net.invite(0, 1), net.now);
    invite.credentials = Some(Credentials::new("alice", "secret"));
    net.endpoint(0).invite(invite, now).unwrap();
    // The proxy asks first, then the server behind it; then the server finds its nonce too old.
    let mut now_s = 1000;
    let mut asked = Vec::new();
    let callee = loop {
        let (call, request) = net.until(1, |event| match event {
            Event::IncomingInvite { call, request, .. } => Some((*call, request.clone())),
            _ => None,
        });
        let by_proxy = proxy.check(&request, HeaderName::ProxyAuthorization, now_s, lookup);
        let (status, name, challenges) = match by_proxy {
            Err(why) => (407, "Proxy-Authenticate", proxy.challenges(why.is_stale(), now_s)),
            Ok(_) => match server.check(&request, HeaderName::Authorization, now_s, lookup) {
                Ok(_) => break call,
                Err(why) => (401, "WWW-Authenticate", server.challenges(why.is_stale(), now_s - 200)),
            },
        };
        asked.push(status);
        if asked.len() == 2 {
            now_s += digest::NONCE_LIFE_S - 100;
        }
        let mut reply = Reply::new(status);
        for challenge in challenges {
            reply = reply.header(name, &challenge).unwrap();
        }
        let now = net.now;
        net.endpoint(1).reject(call, reply, now).unwrap();
    };
    assert_eq!(asked, [407, 401, 401], "and no count is used twice");
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
    net.answered(0);
    net.acknowledged(1);
    net.bye(1, callee);
    net.settle();
}

#[test]
fn server_that_calls_every_nonce_stale_is_tried_once_more_and_no_further() {
    use tandem_sip::digest::{Challenger, Credentials};
    let mut net = Network::seeded(71, 2);
    let mut server = Challenger::new("server", b"s");
    let (mut invite, now) = (net.invite(0, 1), net.now);
    invite.credentials = Some(Credentials::new("alice", "secret"));
    net.endpoint(0).invite(invite, now).unwrap();
    for _ in 0..3 {
        let call = net.incoming(1);
        let mut reply = Reply::new(401);
        for challenge in server.challenges(true, 1000) {
            reply = reply.header("WWW-Authenticate", &challenge).unwrap();
        }
        let now = net.now;
        net.endpoint(1).reject(call, reply, now).unwrap();
    }
    assert!(matches!(net.ended(0), EndReason::Failed { response } if response.status == 401));
    assert_eq!(net.sent(0, "INVITE"), 3);
    net.settle();
}

#[test]
fn registrations_share_their_call_id_and_count_up() {
    let mut net = Network::with_config(72, 2, |config| config.accepted_methods = vec![Method::Register]);
    let from = NameAddr::new(Uri::sip(Some("alice"), addr(1)));
    let mut cseq = 1;
    for _ in 0..2 {
        let mut register =
            OutgoingRequest::new(Method::Register, Uri::sip(None, addr(1)), from.clone(), net.flow(0, 1));
        register.to = Some(from.clone());
        register.call_id = Some("reg@1".to_owned());
        register.cseq = cseq;
        register.contact = Some(OwnContact { user: "alice".to_owned(), params: ";expires=300".to_owned() });
        register.advertised_host = Some("203.0.113.7".into());
        let now = net.now;
        net.endpoint(0).request(register, now).unwrap();
        let (handle, seen) = net.until(1, |event| match event {
            Event::Request { handle, request, .. } => {
                let contact = request.header(HeaderName::Contact)?.to_owned();
                Some((*handle, (request.head.call_id().to_owned(), request.head.cseq().number, contact)))
            }
            _ => None,
        });
        let contact = "<sip:alice@203.0.113.7:5060>;expires=300".to_owned();
        assert_eq!(seen, ("reg@1".to_owned(), cseq, contact));
        let now = net.now;
        net.endpoint(1).reply(handle, Reply::new(200), now).unwrap();
        cseq = 1 + net.until(0, |event| match event {
            Event::Response { result: Ok(response), .. } => Some(response.head.cseq().number),
            _ => None,
        });
    }
    let mut bad = OutgoingRequest::new(Method::Register, Uri::sip(None, addr(1)), from, net.flow(0, 1));
    bad.call_id = Some("two words".to_owned());
    let now = net.now;
    assert_eq!(net.endpoint(0).request(bad, now), Err(CallError::Value("Call-ID")));
    net.settle();
}

/// A call whose callee was referred once, and of which the caller waits for nothing any more.
fn forgotten(net: &mut Network) -> (CallHandle, CallHandle) {
    let (caller, callee) = net.call();
    let target = ReferTo::blind(Uri::parse("sip:a@example.com").unwrap());
    let now = net.now;
    net.endpoint(0).refer(caller, &target, Headers::new(), now).unwrap();
    let (refer, _) = refer_request(net, 1);
    // The NOTIFYs are written by hand: the endpoint's own subscription is one at a time.
    let now = net.now;
    net.endpoint(1).reply(refer, Reply::new(202), now).unwrap();
    assert_eq!(progress(net, 0), (202, false));
    net.run(Duration::from_secs(60));
    net.agents[0].events.clear();
    net.endpoint(0).forget_refer(caller).unwrap();
    (caller, callee)
}

/// A NOTIFY of the callee's, with this Event.
fn notify(net: &mut Network, callee: CallHandle, event: &str, status: &str) {
    let headers = Headers::new().with("Event", event).unwrap();
    let headers = headers.with("Subscription-State", "terminated;reason=noresource").unwrap();
    let body = Body { content_type: "message/sipfrag", bytes: format!("SIP/2.0 {status}\r\n").into() };
    let now = net.now;
    net.endpoint(1).request_in_call(callee, Method::Notify, headers, Some(body), now).unwrap();
    net.run(Duration::from_secs(1));
}

fn has_progress(net: &Network) -> bool {
    net.agents[0].events.iter().any(|event| matches!(event, Event::ReferProgress { .. }))
}

#[test]
fn late_word_of_a_forgotten_transfer_is_answered_and_not_told() {
    let mut net = network(60, 2);
    let (caller, callee) = forgotten(&mut net);
    notify(&mut net, callee, "refer", "200 OK");
    assert!(!has_progress(&net));
    net.bye(0, caller);
    net.settle();
}

#[test]
fn late_success_of_a_forgotten_transfer_is_not_taken_for_that_of_the_next() {
    for names_it in [true, false] {
        let mut net = network(61, 2);
        let (caller, callee) = forgotten(&mut net);
        let target = ReferTo::blind(Uri::parse("sip:b@example.com").unwrap());
        let now = net.now;
        net.endpoint(0).refer(caller, &target, Headers::new(), now).unwrap();
        let (refer, second) = net.until(1, |event| match event {
            Event::Request { handle, request, .. } if request.method == Method::Refer => {
                Some((*handle, request.head.cseq().number))
            }
            _ => None,
        });
        let now = net.now;
        net.endpoint(1).reply(refer, Reply::new(202), now).unwrap();
        assert_eq!(progress(&mut net, 0), (202, false));
        let event = |id: u32| if names_it { format!("refer;id={id}") } else { "refer".to_owned() };
        notify(&mut net, callee, &event(second - 1), "200 OK");
        assert!(!has_progress(&net), "it was the first one's");
        notify(&mut net, callee, &event(second), "200 OK");
        assert_eq!(progress(&mut net, 0), (200, true));
        net.bye(0, caller);
        net.settle();
    }
}
