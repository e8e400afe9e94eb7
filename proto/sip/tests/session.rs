//! Session timers (RFC 4028): calls held for longer than their interval, in virtual time.

mod net;

use std::time::Duration;

use net::{Link, Network};
use tandem_sip::header::session::Refresher;
use tandem_sip::*;

/// When the refresh of a session of 90 s is due: 32 s before its other side hangs up, a third before the end.
const DUE: Duration = Duration::from_secs(28);
const MINUTE: Duration = Duration::from_secs(60);

fn timer(expires_s: u32, refresher: Option<Refresher>) -> SessionTimer {
    SessionTimer { expires_s, min_se_s: 90, refresher }
}

fn network(seed: u64, refresher: Refresher, by_update: bool) -> Network {
    Network::with_config(seed, 2, |config| {
        config.session_timer = Some(timer(90, Some(refresher)));
        if !by_update {
            config.in_dialog_methods = vec![Method::Info];
        }
    })
}

fn no_call_has_ended(net: &Network) {
    for (index, agent) in net.agents.iter().enumerate().rev() {
        let ended = agent.events.iter().find(|event| matches!(event, Event::Ended { .. }));
        assert_eq!(ended, None, "at agent {index}");
    }
}

/// 100 calls held for 35 minutes at the shortest interval: each is refreshed some 75 times, and nobody hears of it.
fn hold(seed: u64, refresher: Refresher, by_update: bool, link: Link) {
    let mut net = network(seed, refresher, by_update);
    let calls: Vec<_> = (0..100).map(|_| net.call()).collect();
    net.link = link;
    for agent in &mut net.agents {
        agent.events.clear();
    }
    net.run(35 * MINUTE);
    no_call_has_ended(&net);
    for agent in &net.agents {
        assert_eq!(agent.endpoint.call_count(), 100);
        // On a bad link a refresh may come while the ACK of the one before is still lost: refused, and tried again.
        let told = |event: &&Event| !matches!(event, Event::Refused { status: 491, .. });
        assert_eq!(agent.events.iter().find(told), None, "the user hears of no refresh");
    }
    let who = if refresher == Refresher::Uac { 0 } else { 1 };
    let method = if by_update { "UPDATE" } else { "INVITE" };
    let refreshes = net.sent(who, method);
    assert!(refreshes >= 100 * 45, "{method}: {refreshes}");
    assert_eq!(net.sent(1 - who, "UPDATE"), 0, "only one side refreshes");
    net.link = Link { delay_ms: 10, ..Link::default() };
    for (caller, _) in calls {
        net.bye(0, caller);
    }
    net.settle();
}

const GOOD: Link = Link { loss_percent: 0, duplicate_percent: 0, delay_ms: 10, jitter_ms: 0 };
const BAD: Link = Link { loss_percent: 20, duplicate_percent: 10, delay_ms: 20, jitter_ms: 150 };

#[test]
fn hundred_calls_are_held_by_updates_of_the_caller() {
    hold(101, Refresher::Uac, true, GOOD);
    hold(102, Refresher::Uac, true, BAD);
}

#[test]
fn hundred_calls_are_held_by_updates_of_the_callee() {
    hold(103, Refresher::Uas, true, GOOD);
    hold(104, Refresher::Uas, true, BAD);
}

#[test]
fn hundred_calls_are_held_by_reinvites_of_the_caller() {
    hold(105, Refresher::Uac, false, GOOD);
    hold(106, Refresher::Uac, false, BAD);
}

#[test]
fn hundred_calls_are_held_by_reinvites_of_the_callee() {
    hold(107, Refresher::Uas, false, GOOD);
    hold(108, Refresher::Uas, false, BAD);
}

#[test]
fn session_that_nobody_refreshes_is_hung_up_by_both() {
    let mut net = network(110, Refresher::Uac, true);
    net.call();
    let start = net.now;
    net.eat("UPDATE", usize::MAX);
    net.eat("BYE", usize::MAX);
    assert_eq!(net.ended(1), EndReason::SessionExpired);
    assert!(
        (59..=60).contains(&(net.now - start).as_secs()),
        "a third before the end: {:?}",
        net.now - start
    );
    assert_eq!(net.ended(0), EndReason::SessionExpired);
    assert!((89..=90).contains(&(net.now - start).as_secs()), "{:?}", net.now - start);
    net.settle();
}

#[test]
fn expired_session_of_a_peer_that_can_hear_is_ended_by_its_bye() {
    let mut net = network(111, Refresher::Uas, true);
    net.call();
    net.eat("UPDATE", usize::MAX);
    assert_eq!(net.ended(0), EndReason::SessionExpired);
    assert_eq!(
        net.ended(1),
        EndReason::RemoteBye { reason: Some("Q.850;cause=102;text=\"session timer expired\"".into()) }
    );
    net.settle();
}

#[test]
fn interval_that_is_too_short_is_raised_by_the_422() {
    let mut net = Network::seeded(112, 2);
    net.agents[0].endpoint =
        Endpoint::new(EndpointConfig { session_timer: Some(timer(90, None)), ..EndpointConfig::default() });
    net.agents[1].endpoint = Endpoint::new(EndpointConfig {
        seed: 1,
        session_timer: Some(SessionTimer { expires_s: 1800, min_se_s: 300, refresher: None }),
        ..EndpointConfig::default()
    });
    let (invite, now) = (net.invite(0, 1), net.now);
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    let (callee, headers) = net.until(1, |event| match event {
        Event::IncomingInvite { call, request, .. } => Some((
            *call,
            [HeaderName::SessionExpires, HeaderName::MinSe]
                .map(|name| request.header(name).map(str::to_owned)),
        )),
        _ => None,
    });
    assert_eq!(headers, [Some("300".to_owned()), Some("300".to_owned())]);
    assert_eq!((net.sent(0, "INVITE"), net.sent(1, "SIP/2.0 422")), (2, 1));
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
    net.answered(0);
    net.acknowledged(1);
    net.run(11 * MINUTE);
    no_call_has_ended(&net);
    assert_eq!(net.sent(1, "UPDATE"), 4, "at half of 300 s each");
    net.bye(0, caller);
    net.settle();
}

#[test]
fn peer_that_asks_for_ever_more_is_given_up() {
    let mut net = Network::seeded(113, 2);
    let (invite, now) = (net.invite(0, 1), net.now);
    net.endpoint(0).invite(invite, now).unwrap();
    for round in 1..20 {
        let Some(call) = net.agents[1].events.iter().rev().find_map(|event| match event {
            Event::IncomingInvite { call, .. } => Some(*call),
            _ => None,
        }) else {
            net.run(Duration::from_secs(1));
            continue;
        };
        let now = net.now;
        let reply = Reply::new(422).header("Min-SE", &(round * 10_000).to_string()).unwrap();
        let _ = net.endpoint(1).reject(call, reply, now);
        net.run(Duration::from_secs(1));
    }
    assert!(matches!(net.ended(0), EndReason::Failed { response } if response.status == 422));
    assert!(net.sent(0, "INVITE") <= 6);
}

#[test]
fn crossing_refresh_and_reinvite_both_come_through() {
    for seed in 0..20 {
        let mut net = network(120 + seed, Refresher::Uac, false);
        let (caller, callee) = net.call();
        // The callee changes the session at the very moment when the caller's refresh is due.
        net.run(DUE - Duration::from_millis(20));
        let now = net.now;
        net.endpoint(1).reinvite(callee, Some(Body::sdp("hold")), now).unwrap();
        net.run(Duration::from_millis(15));
        let refused = |event: &Event| match event {
            Event::ReinviteRefused { status: 491, retry_after, .. } => *retry_after,
            _ => None,
        };
        net.run(Duration::from_secs(1));
        if let Some(at) = net.agents[1].events.iter().position(|event| refused(event).is_some()) {
            let wait = refused(&net.agents[1].events[at]).unwrap();
            net.run(wait);
            let now = net.now;
            net.endpoint(1).reinvite(callee, Some(Body::sdp("hold")), now).unwrap();
        }
        net.until(0, |event| matches!(event, Event::Reinvite { .. }).then_some(()));
        let now = net.now;
        net.endpoint(0).answer(caller, Body::sdp("held"), now).unwrap();
        net.until(1, |event| matches!(event, Event::ReinviteAnswered { .. }).then_some(()));
        net.run(5 * MINUTE);
        no_call_has_ended(&net);
        net.bye(0, caller);
        net.settle();
    }
}

#[test]
fn reinvite_of_the_user_waits_for_a_refresh_that_is_under_way() {
    let mut net = network(140, Refresher::Uac, false);
    let (caller, callee) = net.call();
    net.run(DUE);
    assert_eq!(net.sent(0, "INVITE"), 2, "the refresh has left and has no answer yet");
    let now = net.now;
    net.endpoint(0).reinvite(caller, Some(Body::sdp("hold")), now).unwrap();
    let offer = net.until(1, |event| match event {
        Event::Reinvite { request, .. } => Some(request.body.clone()),
        _ => None,
    });
    assert_eq!(offer, b"hold");
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("held"), now).unwrap();
    net.until(0, |event| matches!(event, Event::ReinviteAnswered { .. }).then_some(()));
    // The next refreshes repeat what holds now: the callee knows them and says nothing.
    net.acknowledged(1);
    net.run(5 * MINUTE);
    assert!(!net.agents[1].events.iter().any(|event| matches!(event, Event::Reinvite { .. })));
    no_call_has_ended(&net);
    net.bye(1, callee);
    net.settle();
}

/// As some phones do: nothing of timers in the re-INVITE by which they hold the call.
#[test]
fn refresher_goes_on_when_the_peer_forgets_the_timer_in_a_reinvite() {
    let mut net = network(150, Refresher::Uas, true);
    let (caller, callee) = net.call();
    let dialog = net.agents[1].endpoint.dialog(callee).unwrap();
    let text = format!(
        "INVITE sip:tandem@10.0.0.2 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bKhold\r\nMax-Forwards: 70\r\n\
         From: <sip:me@10.0.0.1:5060>;tag={}\r\nTo: <sip:echo@10.0.0.2:5060>;tag={}\r\nCall-ID: {}\r\nCSeq: 7 INVITE\r\n\
         Contact: <sip:tandem@10.0.0.1:5060>\r\nContent-Type: application/sdp\r\n\r\nhold",
        dialog.remote_tag(),
        dialog.local_tag(),
        dialog.call_id()
    );
    net.send(net::addr(0), net::addr(1), text.clone().into_bytes());
    net.until(1, |event| matches!(event, Event::Reinvite { .. }).then_some(()));
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("held"), now).unwrap();
    let ack = text.replace("INVITE", "ACK").replace("z9hG4bKhold", "z9hG4bKheld").replace("hold", "");
    net.send(net::addr(0), net::addr(1), ack.into_bytes());
    net.acknowledged(1);
    let before = net.sent(1, "UPDATE");
    net.run(5 * MINUTE);
    no_call_has_ended(&net);
    assert!(net.sent(1, "UPDATE") - before >= 10);
    net.bye(0, caller);
    net.run(MINUTE);
}

#[test]
fn refresh_that_finds_no_connection_is_tried_until_the_session_ends() {
    let mut net = network(151, Refresher::Uac, true);
    let (caller, _) = net.call();
    let flow = net.flow(0, 1);
    net.run(DUE - Duration::from_secs(1));
    // Two tries, each once repeated before the shell says that nothing leaves.
    net.eat("UPDATE", 4);
    for _ in 0..25 {
        net.run(Duration::from_secs(1));
        let now = net.now;
        net.endpoint(0).handle_transport_error(flow, now);
    }
    net.run(5 * MINUTE);
    no_call_has_ended(&net);
    net.bye(0, caller);
    net.settle();
}

#[test]
fn call_without_a_timer_lives_as_long_as_it_likes() {
    let mut net = Network::seeded(142, 2);
    let mut invite = net.invite(0, 1);
    invite.session_timer = Some(SessionTimer::OFF);
    let now = net.now;
    let caller = net.endpoint(0).invite(invite, now).unwrap();
    let (callee, asked) = net.until(1, |event| match event {
        Event::IncomingInvite { call, request, .. } => Some((
            *call,
            request.header(HeaderName::SessionExpires).is_some()
                || request.head.lists(HeaderName::Supported, "timer"),
        )),
        _ => None,
    });
    assert!(!asked);
    let now = net.now;
    net.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
    net.answered(0);
    net.acknowledged(1);
    net.run(50 * MINUTE);
    assert_eq!(net.sent(0, "UPDATE") + net.sent(1, "UPDATE"), 0);
    no_call_has_ended(&net);
    net.bye(0, caller);
    net.settle();
}
