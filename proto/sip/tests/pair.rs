//! Caller and callee joined by a simulated link, in virtual time.

mod net;

use std::time::Duration;

use net::{Link, Network, addr};
use tandem_sip::*;

fn status_of(why: &EndReason) -> u16 {
    match why {
        EndReason::Failed { response } => response.status,
        other => panic!("not a refusal: {other:?}"),
    }
}

#[test]
fn call_is_set_up_and_the_caller_hangs_up() {
    let mut net = Network::seeded(1, 2);
    let (caller, _) = net.call();
    let now = net.now;
    let mut headers = Headers::new();
    headers.push("Reason", "Q.850;cause=16").unwrap();
    net.endpoint(0).bye(caller, headers, now).unwrap();
    assert_eq!(net.ended(1), EndReason::RemoteBye { reason: Some("Q.850;cause=16".to_owned()) });
    assert_eq!(net.ended(0), EndReason::LocalBye { status: Some(200) });
    net.settle();
    let firsts: Vec<_> = net.log.iter().map(|(_, from, first)| format!("{from} {first}")).collect();
    assert_eq!(
        firsts,
        [
            "0 INVITE sip:echo@10.0.0.2:5060 SIP/2.0",
            "1 SIP/2.0 100 Trying",
            "1 SIP/2.0 180 Ringing",
            "1 SIP/2.0 200 OK",
            "0 ACK sip:tandem@10.0.0.2:5060 SIP/2.0",
            "0 BYE sip:tandem@10.0.0.2:5060 SIP/2.0",
            "1 SIP/2.0 200 OK",
        ],
        "no message more than the RFC's basic call"
    );
}

#[test]
fn callee_hangs_up() {
    let mut net = Network::seeded(2, 2);
    let (_, callee) = net.call();
    net.bye(1, callee);
    assert_eq!(net.ended(0), EndReason::RemoteBye { reason: None });
    assert_eq!(net.ended(1), EndReason::LocalBye { status: Some(200) });
    net.settle();
}

#[test]
fn both_hang_up_at_once() {
    let mut net = Network::seeded(3, 2);
    let (caller, callee) = net.call();
    net.bye(0, caller);
    net.bye(1, callee);
    assert_eq!(net.ended(0), EndReason::LocalBye { status: Some(200) });
    assert_eq!(net.ended(1), EndReason::LocalBye { status: Some(200) });
    net.settle();
}

#[test]
fn caller_who_gives_up_before_the_answer_gets_487() {
    let mut net = Network::seeded(4, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    let now = net.now;
    net.endpoint(1).ring(callee, now).unwrap();
    net.until(0, |event| matches!(event, Event::Provisional { .. }).then_some(()));
    let now = net.now;
    net.endpoint(0).cancel(caller, now).unwrap();
    assert_eq!(net.ended(1), EndReason::Cancelled { reason: None });
    assert_eq!(status_of(&net.ended(0)), 487);
    let now = net.now;
    assert_eq!(net.endpoint(1).answer(callee, Body::sdp("late"), now), Err(CallError::Unknown));
    net.settle();
}

#[test]
fn cancel_before_any_response_waits_for_the_first_one() {
    let mut net = Network::seeded(5, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    net.endpoint(0).cancel(caller, now).unwrap();
    net.drain();
    assert_eq!(net.sent(0, "CANCEL"), 0);
    assert_eq!(status_of(&net.ended(0)), 487);
    assert_eq!(net.sent(0, "CANCEL"), 1);
    net.settle();
}

#[test]
fn answer_that_crosses_the_cancel_is_acknowledged_and_hung_up() {
    let mut net = Network::seeded(6, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    net.run(Duration::from_millis(10));
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
    net.endpoint(0).cancel(caller, now).unwrap();
    assert_eq!(net.ended(1), EndReason::RemoteBye { reason: None });
    assert_eq!(net.ended(0), EndReason::LocalBye { status: Some(200) });
    assert_eq!((net.sent(0, "CANCEL"), net.sent(0, "ACK"), net.sent(0, "BYE")), (1, 1, 1));
    net.settle();
}

#[test]
fn lost_200_is_repeated_until_the_ack() {
    let mut net = Network::seeded(7, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    net.eat("SIP/2.0 200", 3);
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
    net.answered(0);
    net.acknowledged(1);
    assert_eq!(net.sent(1, "SIP/2.0 200"), 4);
    net.bye(1, callee);
    net.settle();
}

#[test]
fn lost_ack_is_sent_again_for_each_repeated_200() {
    let mut net = Network::seeded(8, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    net.eat("ACK", 2);
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
    net.acknowledged(1);
    assert_eq!(net.sent(0, "ACK"), 3);
    let answers = net.agents[0].events.iter().filter(|event| matches!(event, Event::Answered { .. })).count();
    assert_eq!(answers, 1, "the user hears of the answer once");
    net.bye(1, callee);
    net.settle();
}

#[test]
fn call_whose_ack_never_comes_is_hung_up_after_32_seconds() {
    let mut net = Network::seeded(9, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    net.eat("ACK", usize::MAX);
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
    assert_eq!(net.ended(1), EndReason::NoAck);
    assert_eq!(net.now - now, Duration::from_secs(32));
    assert_eq!(net.ended(0), EndReason::RemoteBye { reason: Some("Q.850;cause=102;text=\"no ACK\"".into()) });
    net.settle();
}

#[test]
fn bye_before_the_ack_waits_for_it() {
    let mut net = Network::seeded(10, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
    net.bye(1, callee);
    net.drain();
    assert_eq!(net.sent(1, "BYE"), 0);
    net.acknowledged(1);
    assert_eq!(net.sent(1, "BYE"), 1);
    net.settle();
}

#[test]
fn refused_call_ends_with_status_and_headers() {
    let mut net = Network::seeded(11, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    let reply = Reply::new(480).reason("Agent unreachable").header("Reason", "Q.850;cause=20").unwrap();
    let now = net.now;
    net.endpoint(1).reject(callee, reply, now).unwrap();
    assert_eq!(net.ended(1), EndReason::Rejected { status: 480 });
    let EndReason::Failed { response } = net.ended(0) else { panic!() };
    assert_eq!((response.status, &*response.reason), (480, "Agent unreachable"));
    assert_eq!(response.header(HeaderName::Reason), Some("Q.850;cause=20"));
    net.settle();
    assert_eq!(net.sent(1, "SIP/2.0 480"), 1, "the ACK stops the repeating");
}

#[test]
fn invite_without_offer_gets_ours_in_the_200_and_answers_in_the_ack() {
    let mut net = Network::seeded(12, 2);
    let (mut invite, now) = (net.invite(0, 1), net.now);
    invite.body = None;
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("our offer"), now).unwrap();
    let offer = net.until(0, |event| match event {
        Event::Answered { response, wants_ack: true, .. } => response.sdp().map(<[u8]>::to_vec),
        _ => None,
    });
    assert_eq!(offer, b"our offer");
    net.run(Duration::from_secs(2));
    assert_eq!(net.sent(0, "ACK"), 0, "the user has yet to say the answer");
    let now = net.now;
    net.endpoint(0).ack(caller, Body::sdp("their answer"), now).unwrap();
    assert_eq!(net.acknowledged(1), b"their answer");
    net.bye(0, caller);
    net.settle();
}

#[test]
fn reinvite_changes_the_session_and_a_refused_one_leaves_it() {
    let mut net = Network::seeded(13, 2);
    let (caller, callee) = net.call();
    let now = net.now;
    net.endpoint(0).reinvite(caller, Some(Body::sdp("hold")), now).unwrap();
    let offer = net.until(1, |event| match event {
        Event::Reinvite { request, .. } => Some(request.body.clone()),
        _ => None,
    });
    assert_eq!(offer, b"hold");
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("held"), now).unwrap();
    net.until(0, |event| matches!(event, Event::ReinviteAnswered { wants_ack: false, .. }).then_some(()));
    net.acknowledged(1);
    let now = net.now;
    net.endpoint(1).reinvite(callee, Some(Body::sdp("codec")), now).unwrap();
    net.until(0, |event| matches!(event, Event::Reinvite { .. }).then_some(()));
    let now = net.now;
    net.endpoint(0).reject(caller, Reply::new(488), now).unwrap();
    net.until(1, |event| matches!(event, Event::ReinviteRefused { status: 488, .. }).then_some(()));
    net.bye(0, caller);
    assert_eq!(net.ended(1), EndReason::RemoteBye { reason: None });
    net.settle();
}

#[test]
fn crossing_reinvites_both_get_491_and_different_waits() {
    let mut net = Network::seeded(14, 2);
    let (caller, callee) = net.call();
    let now = net.now;
    net.endpoint(0).reinvite(caller, Some(Body::sdp("a")), now).unwrap();
    net.endpoint(1).reinvite(callee, Some(Body::sdp("b")), now).unwrap();
    let mut wait = |index| {
        net.until(index, |event| match event {
            Event::ReinviteRefused { status: 491, retry_after, .. } => *retry_after,
            _ => None,
        })
    };
    let (owner, other) = (wait(0), wait(1));
    assert!((2100..4000).contains(&owner.as_millis()), "{owner:?}");
    assert!(other < Duration::from_secs(2), "{other:?}");
    net.bye(0, caller);
    net.settle();
}

#[test]
fn requests_in_the_dialog_reach_the_user_and_are_answered() {
    let mut net = Network::seeded(15, 2);
    let (caller, _) = net.call();
    let now = net.now;
    let sent = net.endpoint(0).request_in_call(caller, Method::Info, Headers::new(), None, now).unwrap();
    let (handle, method) = net.until(1, |event| match event {
        Event::Request { handle, call: Some(_), request, .. } => Some((*handle, request.method.clone())),
        _ => None,
    });
    assert_eq!(method, Method::Info);
    let now = net.now;
    net.endpoint(1).reply(handle, Reply::new(200), now).unwrap();
    assert_eq!(net.endpoint(1).reply(handle, Reply::new(200), now), Err(CallError::Unknown));
    let status = net.until(0, |event| match event {
        Event::Response { handle, result, .. } if *handle == sent => Some(result.clone().map(|r| r.status)),
        _ => None,
    });
    assert_eq!(status, Ok(200));
    net.bye(0, caller);
    net.settle();
}

#[test]
fn options_is_answered_by_itself() {
    let mut net = Network::seeded(16, 2);
    let target = Uri::sip(None, addr(1));
    let from = NameAddr::new(Uri::sip(Some("me"), addr(0)));
    let flow = net.flow(0, 1);
    let now = net.now;
    net.endpoint(0).request(OutgoingRequest::new(Method::Options, target, from, flow), now).unwrap();
    let response = net.until(0, |event| match event {
        Event::Response { result: Ok(response), .. } => Some(response.clone()),
        _ => None,
    });
    assert_eq!(response.status, 200);
    assert_eq!(response.header(HeaderName::Accept), Some("application/sdp"));
    assert!(response.header(HeaderName::Allow).is_some_and(|allow| allow.contains("INVITE")));
    assert!(net.agents[1].events.is_empty());
    net.settle();
}

#[test]
fn peer_that_has_lost_the_dialog_ends_the_call() {
    let mut net = Network::seeded(26, 2);
    let (caller, _) = net.call();
    // The callee starts anew: it knows no call any more.
    net.agents[1].endpoint = Endpoint::new(EndpointConfig { seed: 999, ..EndpointConfig::default() });
    let now = net.now;
    net.endpoint(0).reinvite(caller, Some(Body::sdp("offer")), now).unwrap();
    assert_eq!(net.ended(0), EndReason::DialogLost { status: 481 });
    net.settle();
}

#[test]
fn reinvite_without_an_answer_ends_the_call() {
    let mut net = Network::seeded(27, 2);
    let (caller, _) = net.call();
    net.eat("INVITE", usize::MAX);
    let now = net.now;
    net.endpoint(0).reinvite(caller, Some(Body::sdp("offer")), now).unwrap();
    assert_eq!(net.ended(0), EndReason::DialogLost { status: 408 });
    assert_eq!(
        net.ended(1),
        EndReason::RemoteBye { reason: Some("Q.850;cause=102;text=\"no response\"".into()) }
    );
    net.settle();
}

#[test]
fn call_to_nobody_times_out_after_32_seconds() {
    let mut net = Network::seeded(17, 1);
    let (invite, now) = (net.invite(0, 1), net.now);
    net.endpoint(0).invite(invite, now).unwrap();
    assert_eq!(net.ended(0), EndReason::NoResponse(NoResponse::Timeout));
    assert_eq!(net.now - now, Duration::from_secs(32));
    assert_eq!(net.sent(0, "INVITE"), 7);
    net.settle();
}

#[test]
fn failed_transport_ends_the_call_at_once() {
    let mut net = Network::seeded(18, 1);
    let (invite, now) = (net.invite(0, 1), net.now);
    let flow = invite.flow;
    net.endpoint(0).invite(invite, now).unwrap();
    net.endpoint(0).handle_transport_error(flow, now);
    assert_eq!(net.ended(0), EndReason::NoResponse(NoResponse::Transport));
    net.settle();
}

#[test]
fn endless_ringing_is_cancelled_by_ourselves() {
    let mut net = Network::seeded(19, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    let now = net.now;
    net.endpoint(1).ring(callee, now).unwrap();
    assert_eq!(status_of(&net.ended(0)), 487);
    assert_eq!(net.sent(1, "SIP/2.0 180"), 4, "repeated each minute for the proxies' timer C");
    net.settle();
}

#[test]
fn bye_in_the_early_dialog_ends_the_invite_with_487() {
    let mut net = Network::seeded(20, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    net.endpoint(0).invite(invite, now).unwrap();
    let callee = net.incoming(1);
    let now = net.now;
    net.endpoint(1).ring(callee, now).unwrap();
    let dialog = net.agents[1].endpoint.dialog(callee).unwrap();
    let bye = format!(
        "BYE sip:tandem@10.0.0.2 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bKearly\r\nMax-Forwards: 70\r\n\
         From: <sip:me@10.0.0.1:5060>;tag={}\r\nTo: <sip:echo@10.0.0.2:5060>;tag={}\r\nCall-ID: {}\r\nCSeq: 2 BYE\r\n\r\n",
        dialog.remote_tag(),
        dialog.local_tag(),
        dialog.call_id()
    );
    net.send(addr(0), addr(1), bye.into_bytes());
    assert_eq!(net.ended(1), EndReason::Cancelled { reason: None });
    assert_eq!(status_of(&net.ended(0)), 487);
    net.settle();
}

#[test]
fn challenge_of_another_realm_than_the_credentials_is_not_answered() {
    use tandem_sip::digest::{Algorithm, Challenge, Credentials};
    let mut net = Network::seeded(22, 2);
    let (mut invite, now) = (net.invite(0, 1), net.now);
    let credentials = Credentials::new("alice", "secret");
    invite.credentials = Some(Credentials { realm: Some("carrier".to_owned()), ..credentials });
    net.endpoint(0).invite(invite, now).unwrap();
    let challenge = |realm: &str| Challenge {
        realm: realm.to_owned(),
        nonce: "n1".to_owned(),
        opaque: None,
        algorithm: Algorithm::Sha256,
        qop_auth: true,
        stale: false,
    };
    let demand =
        |realm: &str| Reply::new(401).header("WWW-Authenticate", &challenge(realm).to_header()).unwrap();
    let callee = net.incoming(1);
    let now = net.now;
    net.endpoint(1).reject(callee, demand("carrier"), now).unwrap();
    let callee = net.until(1, |event| match event {
        Event::IncomingInvite { call, request, .. } => {
            request.header(HeaderName::Authorization)?;
            Some(*call)
        }
        _ => None,
    });
    let now = net.now;
    net.endpoint(1).reject(callee, demand("somebody.else"), now).unwrap();
    assert_eq!(status_of(&net.ended(0)), 401);
    net.settle();
}

#[test]
fn digest_challenge_is_answered_once() {
    use tandem_sip::digest::{Algorithm, Answer, Challenge, Credentials};
    for (password, accepted) in [("secret", true), ("wrong", false)] {
        let mut net = Network::seeded(21, 2);
        let (mut invite, now) = (net.invite(0, 1), net.now);
        invite.credentials = Some(Credentials::new("alice", password));
        net.endpoint(0).invite(invite, now).unwrap();
        let challenge = Challenge {
            realm: "tandem".to_owned(),
            nonce: "n1".to_owned(),
            opaque: None,
            algorithm: Algorithm::Sha256,
            qop_auth: true,
            stale: false,
        };
        let demand = Reply::new(401).header("WWW-Authenticate", &challenge.to_header()).unwrap();
        let callee = net.incoming(1);
        let now = net.now;
        net.endpoint(1).reject(callee, demand.clone(), now).unwrap();
        let (callee, value) = net.until(1, |event| match event {
            Event::IncomingInvite { call, request, .. } => {
                Some((*call, request.header(HeaderName::Authorization)?.to_owned()))
            }
            _ => None,
        });
        assert_eq!(Answer::parse(&value).unwrap().verify("INVITE", "secret"), accepted);
        let now = net.now;
        if accepted {
            net.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
            net.answered(0);
            net.acknowledged(1);
            net.bye(1, callee);
        } else {
            net.endpoint(1).reject(callee, demand, now).unwrap();
            assert_eq!(status_of(&net.ended(0)), 401);
        }
        net.settle();
        assert_eq!(net.sent(0, "INVITE"), 2);
    }
}

/// Agent 1 answers, and a proxy in between (the test) forks a second answer from agent 2.
#[test]
fn second_fork_that_answers_is_acknowledged_and_hung_up() {
    let mut net = Network::seeded(22, 3);
    let (invite, now) = (net.invite(0, 1), net.now);
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    let bytes = net.endpoint(0).poll_transmit().unwrap().bytes;
    net.send(addr(0), addr(1), bytes.clone());
    net.send(addr(0), addr(2), bytes);
    let first = net.incoming(1);
    let second = net.incoming(2);
    let now = net.now;
    net.endpoint(1).answer(first, Body::sdp("one"), now).unwrap();
    net.endpoint(2).answer(second, Body::sdp("two"), now).unwrap();
    net.answered(0);
    net.acknowledged(1);
    net.acknowledged(2);
    assert_eq!(net.ended(2), EndReason::RemoteBye { reason: None });
    net.bye(0, caller);
    assert_eq!(net.ended(1), EndReason::RemoteBye { reason: None });
    net.settle();
}

#[test]
fn full_tables_refuse_with_503_and_retry_after() {
    let mut net = Network::with_config(23, 2, |config| config.max_calls = 1);
    let (caller, _) = net.call();
    let now = net.now;
    let invite = net.invite(0, 1);
    assert_eq!(net.endpoint(0).invite(invite.clone(), now), Err(CallError::Full("call")));
    let mut third = Network::seeded(24, 1);
    third.endpoint(0).invite(InviteRequest { flow: net.flow(0, 1), ..invite }, now).unwrap();
    let bytes = third.endpoint(0).poll_transmit().unwrap().bytes;
    net.send(addr(0), addr(1), bytes);
    net.run(Duration::from_secs(1));
    assert!(net.sent(1, "SIP/2.0 503") >= 1);
    assert_eq!(net.agents[1].endpoint.counters().refused_full, 1);
    net.bye(0, caller);
    net.settle();
}

#[test]
fn tcp_call_works_byte_by_byte_and_repeats_nothing() {
    let mut net = Network::seeded(25, 2);
    net.transport = Transport::Tcp;
    let (invite, now) = (net.invite(0, 1), net.now);
    let (flow_a, flow_b) = (net.flow(0, 1), net.flow(1, 0));
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    let mut log = Vec::new();
    let mut said = Vec::new();
    // Pumped by hand: each octet is a read of its own.
    let mut pump = |net: &mut Network| {
        for _ in 0..10 {
            for (from, to, flow) in [(0, 1, flow_b), (1, 0, flow_a)] {
                while let Some(transmit) = net.endpoint(from).poll_transmit() {
                    assert_eq!(transmit.flow.connection, Some(ConnectionId(1)));
                    log.push(
                        String::from_utf8_lossy(&transmit.bytes)
                            .lines()
                            .next()
                            .unwrap_or_default()
                            .to_owned(),
                    );
                    for octet in transmit.bytes {
                        net.endpoint(to).handle_input(&[octet], flow, now);
                    }
                }
                while let Some(event) = net.endpoint(from).poll_event() {
                    said.push(event);
                }
            }
        }
        std::mem::take(&mut said)
    };
    let callee = pump(&mut net)
        .iter()
        .find_map(|event| if let Event::IncomingInvite { call, .. } = event { Some(*call) } else { None })
        .unwrap();
    net.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
    let events = pump(&mut net);
    assert!(events.iter().any(|event| matches!(event, Event::Acknowledged { .. })), "{events:?}");
    net.bye(0, caller);
    let events = pump(&mut net);
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Ended { .. })).count(), 2);
    assert_eq!(log.len(), 6, "INVITE, 100, 200, ACK, BYE, 200: {log:?}");
    net.settle();
}

#[test]
fn lossy_reordering_link_still_carries_every_call() {
    for seed in 0..60 {
        let mut net = Network::seeded(seed, 2);
        net.link = Link { loss_percent: 30, duplicate_percent: 10, delay_ms: 20, jitter_ms: 200 };
        let (invite, now) = (net.invite(0, 1), net.now);
        let caller = net.endpoint(0).invite(invite, now).unwrap();
        let callee = net.incoming(1);
        let now = net.now;
        net.endpoint(1).ring(callee, now).unwrap();
        net.run(Duration::from_secs(2));
        let now = net.now;
        net.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
        net.answered(0);
        net.acknowledged(1);
        let (who, call) = if seed % 2 == 0 { (0, caller) } else { (1, callee) };
        net.bye(who, call);
        net.settle();
        for index in [0, 1] {
            let ends =
                net.agents[index].events.iter().filter(|event| matches!(event, Event::Ended { .. })).count();
            assert_eq!(ends, 1, "seed {seed}, agent {index}: {:#?}", net.log);
        }
        let invites =
            net.agents[1].events.iter().filter(|event| matches!(event, Event::IncomingInvite { .. })).count();
        assert_eq!(invites, 0, "seed {seed}: one INVITE is one call");
    }
}

#[test]
fn change_that_is_wanted_between_our_200_and_its_ack_waits_for_the_ack() {
    let mut net = Network::seeded(31, 2);
    let (caller, callee) = net.call();
    let now = net.now;
    net.endpoint(0).reinvite(caller, Some(Body::sdp("theirs")), now).unwrap();
    net.until(1, |event| matches!(event, Event::Reinvite { .. }).then_some(()));
    let now = net.now;
    net.eat("ACK", 1);
    net.endpoint(1).answer(callee, Body::sdp("ours"), now).unwrap();
    net.endpoint(1).reinvite(callee, Some(Body::sdp("hold")), now).unwrap();
    assert_eq!(net.endpoint(1).reinvite(callee, None, now), Err(CallError::State("the ACK is awaited")));
    let offer = net.until(0, |event| match event {
        Event::Reinvite { request, .. } => request.sdp().map(<[u8]>::to_vec),
        _ => None,
    });
    assert_eq!(offer, b"hold");
    let now = net.now;
    net.endpoint(0).answer(caller, Body::sdp("held"), now).unwrap();
    net.until(1, |event| matches!(event, Event::ReinviteAnswered { .. }).then_some(()));
    net.bye(0, caller);
    net.settle();
}

#[test]
fn answer_to_our_reinvite_that_crosses_our_bye_is_acknowledged() {
    let mut net = Network::seeded(32, 2);
    let (caller, callee) = net.call();
    let now = net.now;
    net.endpoint(0).reinvite(caller, Some(Body::sdp("again")), now).unwrap();
    net.until(1, |event| matches!(event, Event::Reinvite { .. }).then_some(()));
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
    net.bye(0, caller);
    net.settle();
    assert_eq!((net.sent(0, "ACK"), net.sent(0, "BYE"), net.sent(1, "BYE")), (2, 1, 0), "{:#?}", net.log);
    assert_eq!(net.sent(1, "SIP/2.0 200"), 3, "INVITE, re-INVITE and BYE, each once: {:#?}", net.log);
}
