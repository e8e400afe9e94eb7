//! Two sessions that are alive are joined, on one core and over two; their phones hear one stream throughout.

use media_engine::ring::allowed_cores;

use super::*;

/// How long the phones talk, in packets.
const PACKETS: u32 = 120;

/// Two workers, on two cores if there are two.
fn on_two_cores(config: &mut Config) {
    let allowed = allowed_cores();
    let first = allowed.first().copied().unwrap_or_default();
    config.cores = vec![first, allowed.get(1).copied().unwrap_or(first)];
}

fn join_request(id: &str, other: &str) -> proto::JoinSessionsRequest {
    proto::JoinSessionsRequest {
        session_id: id.into(),
        other_session_id: other.into(),
        role: proto::LegRole::Unspecified.into(),
    }
}

async fn refused(client: &mut Client, id: &str, other: &str) -> Code {
    client.join_sessions(join_request(id, other)).await.unwrap_err().code()
}

/// What a phone has heard is one stream from one port. (A machine that kept the engine waiting makes it skip time, but no number.)
fn check_stream(heard: &[phone::Heard], port: u16) {
    for pair in heard.windows(2) {
        assert_eq!((pair[1].from, pair[1].ssrc), (port, pair[0].ssrc));
        assert_eq!(pair[1].sequence, pair[0].sequence.wrapping_add(1));
        let ticks = pair[1].timestamp.wrapping_sub(pair[0].timestamp);
        assert!(ticks >= 160 && ticks % 160 == 0, "{ticks}");
    }
    assert!(heard.len() >= PACKETS as usize - 20, "{}", heard.len());
}

/// Packets of the last half second that are this code, and no other sound.
fn count(heard: &[phone::Heard], code: u8) -> usize {
    let last = heard.iter().rev().skip(6).take(25);
    last.filter(|packet| packet.payload.iter().all(|heard| *heard == code)).count()
}

fn phones_that_talk_are_joined(change: fn(&mut Config), cores: usize) {
    on_both(change, |engine, mut client| async move {
        let _alive = engine;
        let (caller, desk) = (Phone::new(), Phone::new());
        let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
        let a = client.open_session(open("a", &caller, echo())).await.unwrap().into_inner();
        let b = client.open_session(open("b", &desk, echo())).await.unwrap().into_inner();
        let apart = usize::from(a.local_port.abs_diff(b.local_port) > 50);
        assert_eq!(apart + 1, cores, "{a:?} {b:?}");
        start(&mut client, "a").await;
        start(&mut client, "b").await;
        let (a_port, b_port) = (a.local_port as u16, b.local_port as u16);
        let talking = tokio::task::spawn_blocking(move || {
            std::thread::scope(|scope| {
                let caller_talks = scope.spawn(|| caller.talk_with(a_port, PACKETS, 0x10));
                let desk_talks = scope.spawn(|| desk.talk_with(b_port, PACKETS, 0x20));
                (caller_talks.join().unwrap(), desk_talks.join().unwrap())
            })
        });
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let joined = client.join_sessions(join_request("a", "b")).await.unwrap().into_inner();
        let until_then = joined.stats.unwrap().rtp_received;
        assert!((40..=80).contains(&until_then), "{until_then}");
        let ended = wait_for(&mut events, |event| match event {
            proto::event::Event::SessionEnded(ended) => Some(ended.clone()),
            _ => None,
        })
        .await;
        assert_eq!(ended.reason(), proto::session_ended::Reason::Joined);
        assert_eq!(ended.joined_session_id, "a");
        let again = client.join_sessions(join_request("a", "b")).await.unwrap().into_inner();
        assert_eq!(again.stats, None, "it was done before");

        let (at_caller, at_desk) = talking.await.unwrap();
        check_stream(&at_caller, a_port);
        check_stream(&at_desk, b_port);
        assert!(count(&at_caller, 0x20) >= 20, "{} of 25", count(&at_caller, 0x20));
        assert!(count(&at_desk, 0x10) >= 20, "{} of 25", count(&at_desk, 0x10));
        let remove = proto::RemoveLegRequest { session_id: "a".into() };
        let stats = client.remove_leg(remove).await.unwrap().into_inner().stats.unwrap();
        assert_eq!((stats.rtp_received, stats.rtp_lost), (u64::from(PACKETS), 0));

        // The port is at home again, and rests there.
        let mut request = open("c", &Phone::new(), echo());
        request.rtp.as_mut().unwrap().local_port = b.local_port;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let status = client.open_session(request.clone()).await.unwrap_err();
        assert!(status.message().contains("rests"), "{status}");
        tokio::time::sleep(Duration::from_millis(2_050)).await;
        client.open_session(request).await.unwrap();
        assert_eq!(refused(&mut client, "a", "b").await, Code::NotFound, "the leg has gone");
        assert_eq!(close(&mut client, "a").await.rtp_lost, 0);
    });
}

#[test]
fn phones_whose_sessions_are_on_one_core_are_joined() {
    phones_that_talk_are_joined(|config| config.rtp_ports = PortRange { min: 15_000, max: 15_199 }, 1);
}

#[test]
fn phones_whose_sessions_are_on_two_cores_are_joined_and_nothing_is_lost() {
    // A range of its own: the port that goes home must not be taken by another test.
    let change = |config: &mut Config| {
        on_two_cores(config);
        config.rtp_ports = PortRange { min: 15_200, max: 15_399 };
    };
    phones_that_talk_are_joined(change, 2);
}

#[test]
fn what_cannot_be_joined_goes_on_as_it_was() {
    for change in [(|_: &mut Config| {}) as fn(&mut Config), on_two_cores] {
        on_both(change, |engine, mut client| async move {
            let _alive = engine;
            let (caller, desk) = (Phone::new(), Phone::new());
            client.open_session(open("a", &caller, echo())).await.unwrap();
            let b = client.open_session(open("b", &desk, echo())).await.unwrap().into_inner();
            assert_eq!(refused(&mut client, "a", "a").await, Code::InvalidArgument);
            assert_eq!(refused(&mut client, "a", "nobody").await, Code::NotFound);
            assert_eq!(refused(&mut client, "nobody", "b").await, Code::NotFound);
            assert_eq!(refused(&mut client, "a", "b").await, Code::FailedPrecondition);
            start(&mut client, "a").await;
            assert_eq!(refused(&mut client, "a", "b").await, Code::FailedPrecondition, "b is not started");
            start(&mut client, "b").await;
            let add = |id: &str| proto::AddLegRequest {
                session_id: id.into(),
                rtp: Some(proto::RtpParameters::default()),
                role: proto::LegRole::Listen.into(),
                caller_rings: false,
            };
            client.add_leg(add("a")).await.unwrap();
            assert_eq!(refused(&mut client, "a", "b").await, Code::AlreadyExists);
            assert_eq!(
                refused(&mut client, "b", "a").await,
                Code::FailedPrecondition,
                "it has a guest itself"
            );
            let port = b.local_port as u16;
            let heard = tokio::task::spawn_blocking(move || desk.talk(port, 20)).await.unwrap();
            assert!(heard.iter().any(|packet| packet.payload == pcmu(10)), "its echo answers as before");
            // A place that was kept is free again.
            client.remove_leg(proto::RemoveLegRequest { session_id: "a".into() }).await.unwrap();
            client.join_sessions(join_request("a", "b")).await.unwrap();
            close(&mut client, "a").await;
        });
    }
}
