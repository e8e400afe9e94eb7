//! The ring against the real kernel. Each body runs on both drivers; io_uring is skipped, loudly, on a host that
//! blocks it.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use media_engine::ring::{
    Choice, Completion, DriverKind, Limits, Owner, Ring, STAGE_OCTETS, SocketId, Wait, Waker, bind_udp,
    decide,
};

/// One at a time: the descriptor counts of a process are everybody's.
static SERIAL: Mutex<()> = Mutex::new(());

const SMALL: Limits = Limits { sockets: 64, receive_buffers: 16 };

fn serial() -> MutexGuard<'static, ()> {
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `body` on each driver that this host has.
fn on_both(body: impl Fn(&mut Ring, &Waker)) {
    let _serial = serial();
    for kind in [DriverKind::IoUring, DriverKind::Epoll] {
        let decision = decide(Choice::Only(kind));
        if decision.driver.is_none() {
            eprintln!("skipped on {kind}: {}", decision.reason);
            continue;
        }
        eprintln!("on {kind}");
        let waker = Waker::new().unwrap();
        let mut ring = Ring::open(kind, SMALL, &waker).unwrap();
        body(&mut ring, &waker);
    }
}

fn soon() -> Wait {
    Wait { deadline: Some(Instant::now() + Duration::from_millis(20)), coalesce: Duration::ZERO }
}

/// Turns until `seen` says that it has what it wanted.
fn turn_until(ring: &mut Ring, mut seen: impl FnMut(&mut Ring, Completion) -> bool) {
    let give_up = Instant::now() + Duration::from_secs(5);
    while Instant::now() < give_up {
        ring.turn(soon()).unwrap();
        let mut done = false;
        while let Some(completion) = ring.next() {
            done |= seen(ring, completion);
        }
        if done {
            return;
        }
    }
    panic!("nothing came for 5 s; {:?}", ring.counters());
}

/// Turns a few times and gives buffers back.
fn settle(ring: &mut Ring) {
    for _ in 0..5 {
        ring.turn(Wait {
            deadline: Some(Instant::now() + Duration::from_millis(2)),
            coalesce: Duration::ZERO,
        })
        .unwrap();
        while let Some(completion) = ring.next() {
            if let Completion::Datagram { data, .. } | Completion::Stream { data, .. } = completion {
                ring.give_back(data);
            }
        }
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn udp(ring: &mut Ring, owner: u64) -> (SocketId, SocketAddr) {
    let socket = bind_udp(loopback()).unwrap();
    let address = socket2::SockRef::from(&socket).local_addr().unwrap();
    let id = ring.add_udp(socket, Owner(owner)).unwrap();
    (id, address.as_socket().unwrap())
}

fn peer() -> UdpSocket {
    let socket = UdpSocket::bind(loopback()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn datagrams_come_with_their_source_and_go_where_they_are_sent() {
    on_both(|ring, _| {
        let (socket, address) = udp(ring, 7);
        let peer = peer();
        for round in 0..50u8 {
            peer.send_to(&[round; 172], address).unwrap();
            turn_until(ring, |ring, completion| {
                let Completion::Datagram { owner, from, data } = completion else {
                    return false;
                };
                assert_eq!(owner, Owner(7));
                assert_eq!(from, peer.local_addr().unwrap());
                let echo = ring.bytes(&data).to_vec();
                ring.give_back(data);
                assert_eq!(echo, [round; 172]);
                ring.datagram()[..echo.len()].copy_from_slice(&echo);
                ring.send_datagram(socket, from, echo.len());
                true
            });
            ring.turn(Wait::none(Instant::now())).unwrap();
            let mut echo = [0; 300];
            let (len, from) = peer.recv_from(&mut echo).unwrap();
            assert_eq!((len, from), (172, address));
            assert_eq!(echo[..172], [round; 172]);
            while ring.next().is_some() {}
        }
        assert_eq!(ring.counters().send_failed, 0);
    });
}

#[test]
fn many_datagrams_leave_with_one_turn_in_order() {
    on_both(|ring, _| {
        let (socket, _) = udp(ring, 1);
        let peer = peer();
        for number in 0..200u8 {
            ring.datagram()[..172].fill(number);
            ring.send_datagram(socket, peer.local_addr().unwrap(), 172);
        }
        ring.turn(Wait::none(Instant::now())).unwrap();
        let mut got = [0; 300];
        for number in 0..200u8 {
            assert_eq!(peer.recv(&mut got).unwrap(), 172);
            assert_eq!(got[..172], [number; 172]);
        }
    });
}

#[test]
fn more_datagrams_than_the_arena_holds_all_leave() {
    on_both(|ring, _| {
        let (socket, _) = udp(ring, 1);
        let sink = peer();
        socket2::SockRef::from(&sink).set_recv_buffer_size(4 << 20).unwrap();
        for number in 0..120u8 {
            ring.datagram()[..1_400].fill(number);
            ring.send_datagram(socket, sink.local_addr().unwrap(), 1_400);
        }
        ring.turn(Wait::none(Instant::now())).unwrap();
        let mut got = [0; 1_500];
        for number in 0..120u8 {
            assert_eq!(sink.recv(&mut got).unwrap(), 1_400);
            assert_eq!(got[..1_400], [number; 1_400]);
        }
        assert_eq!(ring.counters().send_failed, 0);
    });
}

#[test]
fn a_datagram_that_cannot_leave_is_counted() {
    on_both(|ring, _| {
        let (socket, _) = udp(ring, 1);
        // A v4 socket cannot reach a v6 address.
        ring.send_datagram(socket, "[::1]:9".parse().unwrap(), 10);
        settle(ring);
        assert_eq!(ring.counters().send_failed, 1);
    });
}

#[test]
fn a_stream_echoes_what_it_is_sent() {
    on_both(|ring, _| {
        let listener = TcpListener::bind(loopback()).unwrap();
        let id = ring.connect(listener.local_addr().unwrap(), Owner(3)).unwrap();
        assert!(ring.stage(id).is_none(), "not connected yet");
        turn_until(ring, |_, completion| matches!(completion, Completion::Connected { owner: Owner(3) }));
        let (mut peer, _) = listener.accept().unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        for round in 0..20u8 {
            peer.write_all(&[round; 640]).unwrap();
            let mut echo = Vec::new();
            turn_until(ring, |ring, completion| {
                if let Completion::Stream { owner, data } = completion {
                    assert_eq!(owner, Owner(3));
                    echo.extend_from_slice(ring.bytes(&data));
                    ring.give_back(data);
                }
                echo.len() == 640
            });
            let stage = ring.stage(id).expect("the last write is over");
            stage[..640].copy_from_slice(&echo);
            ring.send_stage(id, 640);
            settle(ring);
            let mut back = [0; 640];
            peer.read_exact(&mut back).unwrap();
            assert_eq!(back, [round; 640]);
        }
        drop(peer);
        turn_until(ring, |_, completion| {
            matches!(completion, Completion::Ended { owner: Owner(3), error: None })
        });
        ring.close(id);
    });
}

#[test]
fn a_peer_that_reads_slowly_gets_every_octet_in_order() {
    on_both(|ring, _| {
        let listener = TcpListener::bind(loopback()).unwrap();
        socket2::SockRef::from(&listener).set_recv_buffer_size(4_096).unwrap();
        let id = ring.connect(listener.local_addr().unwrap(), Owner(3)).unwrap();
        turn_until(ring, |_, completion| matches!(completion, Completion::Connected { .. }));
        let (mut peer, _) = listener.accept().unwrap();
        let (start, started) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            started.recv().unwrap();
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        // The reader starts when a write has been stuck for a while; then as much again is written.
        let (mut sent, mut stuck_turns, mut total) = (0usize, 0, 64 << 20);
        let give_up = Instant::now() + Duration::from_secs(20);
        while sent < total {
            assert!(Instant::now() < give_up);
            match ring.stage(id) {
                Some(stage) => {
                    for (i, octet) in stage.iter_mut().enumerate() {
                        *octet = ((sent + i) % 251) as u8;
                    }
                    ring.send_stage(id, STAGE_OCTETS);
                    sent += STAGE_OCTETS;
                    stuck_turns = 0;
                }
                None => stuck_turns += 1,
            }
            if stuck_turns == 20 {
                start.send(()).unwrap();
                total = sent + (1 << 20);
            }
            ring.turn(Wait {
                deadline: Some(Instant::now() + Duration::from_micros(50)),
                coalesce: Duration::ZERO,
            })
            .unwrap();
            while ring.next().is_some() {}
        }
        assert!(total < 64 << 20, "the peer's window never filled: the test shows nothing");
        ring.finish(id);
        settle(ring);
        while !reader.is_finished() {
            settle(ring);
        }
        let all = reader.join().unwrap();
        assert_eq!(all.len(), sent);
        assert!(all.iter().enumerate().all(|(i, &octet)| octet == (i % 251) as u8));
        settle(ring);
        assert_eq!(ring.counters().sockets, 0, "a finished socket goes when the peer closes");
    });
}

#[test]
fn a_peer_that_does_not_read_soon_stops_the_stage() {
    on_both(|ring, _| {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.set_recv_buffer_size(8 * 1_024).unwrap();
        listener.bind(&loopback().into()).unwrap();
        listener.listen(1).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let id = ring.connect(address, Owner(1)).unwrap();
        turn_until(ring, |_, completion| matches!(completion, Completion::Connected { .. }));
        let (_peer, _) = listener.accept().unwrap();
        let mut taken = 0;
        let mut idle = 0;
        while idle < 10 && taken < 4 << 20 {
            idle += 1;
            if ring.stage(id).is_some() {
                ring.send_stage(id, STAGE_OCTETS);
                taken += STAGE_OCTETS;
                idle = 0;
            }
            ring.turn(soon()).unwrap();
            while ring.next().is_some() {}
        }
        assert!(taken <= 64 * 1_024, "{taken} octets wait: two seconds of sound at least");
    });
}

#[test]
fn a_refused_connect_is_an_end_with_its_error() {
    on_both(|ring, _| {
        let address = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
        let id = ring.connect(address, Owner(9)).unwrap();
        turn_until(ring, |_, completion| match completion {
            Completion::Ended { owner, error } => {
                assert_eq!(owner, Owner(9));
                assert_eq!(error.unwrap().kind(), std::io::ErrorKind::ConnectionRefused);
                true
            }
            _ => false,
        });
        ring.close(id);
        settle(ring);
        assert_eq!(ring.counters().sockets, 0);
    });
}

#[test]
fn after_close_nothing_is_reported_and_the_port_is_free() {
    on_both(|ring, _| {
        let (socket, address) = udp(ring, 5);
        settle(ring);
        let peer = peer();
        peer.send_to(b"early", address).unwrap();
        ring.close(socket);
        for _ in 0..5 {
            ring.turn(Wait {
                deadline: Some(Instant::now() + Duration::from_millis(2)),
                coalesce: Duration::ZERO,
            })
            .unwrap();
            assert!(ring.next().is_none());
        }
        assert_eq!(ring.counters().sockets, 0);
        assert_eq!(ring.counters().buffers_out, 0);
        bind_udp(address).expect("the port is free again");
        // A stale id does nothing.
        ring.close(socket);
        ring.send_datagram(socket, address, 10);
        assert!(ring.stage(socket).is_none());
    });
}

#[test]
fn a_socket_closed_with_a_write_in_flight_lets_go() {
    on_both(|ring, _| {
        let listener = TcpListener::bind(loopback()).unwrap();
        let id = ring.connect(listener.local_addr().unwrap(), Owner(3)).unwrap();
        turn_until(ring, |_, completion| matches!(completion, Completion::Connected { .. }));
        let (_peer, _) = listener.accept().unwrap();
        // Nobody reads, so sooner or later a write stays in flight.
        let mut stuck = 0;
        while stuck < 20 {
            match ring.stage(id) {
                Some(_) => {
                    ring.send_stage(id, STAGE_OCTETS);
                    stuck = 0;
                }
                None => stuck += 1,
            }
            ring.turn(Wait {
                deadline: Some(Instant::now() + Duration::from_millis(1)),
                coalesce: Duration::ZERO,
            })
            .unwrap();
            while ring.next().is_some() {}
        }
        ring.close(id);
        settle(ring);
        assert_eq!(ring.counters().sockets, 0);
    });
}

#[test]
fn a_connect_that_hangs_can_be_closed() {
    on_both(|ring, _| {
        // A full accept queue answers no SYN, so the third or fourth connect hangs.
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&loopback().into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let ids: Vec<SocketId> = (0..6).map(|n| ring.connect(address, Owner(n)).unwrap()).collect();
        let mut connected = 0;
        for _ in 0..10 {
            ring.turn(soon()).unwrap();
            while let Some(completion) = ring.next() {
                connected += usize::from(matches!(completion, Completion::Connected { .. }));
            }
        }
        assert!(connected < ids.len(), "none hangs: the test shows nothing");
        for id in ids {
            ring.close(id);
        }
        settle(ring);
        assert_eq!(ring.counters().sockets, 0);
    });
}

#[test]
fn a_dry_buffer_ring_loses_nothing_and_is_armed_again() {
    on_both(|ring, _| {
        let (_, address) = udp(ring, 1);
        let peer = peer();
        let total = SMALL.receive_buffers as u8 + 24;
        for number in 0..total {
            peer.send_to(&[number; 100], address).unwrap();
        }
        let mut held = Vec::new();
        for _ in 0..SMALL.receive_buffers + 10 {
            ring.turn(Wait {
                deadline: Some(Instant::now() + Duration::from_millis(1)),
                coalesce: Duration::ZERO,
            })
            .unwrap();
            while let Some(completion) = ring.next() {
                if let Completion::Datagram { data, .. } = completion {
                    held.push(data);
                }
            }
        }
        assert_eq!(held.len(), SMALL.receive_buffers, "no more than there are buffers");
        assert!(ring.counters().buffers_dry > 0);
        assert_eq!(ring.counters().buffers_out, held.len() as u64);
        let mut numbers = Vec::new();
        for data in held {
            numbers.push(ring.bytes(&data)[0]);
            ring.give_back(data);
        }
        turn_until(ring, |ring, completion| {
            if let Completion::Datagram { data, .. } = completion {
                numbers.push(ring.bytes(&data)[0]);
                ring.give_back(data);
            }
            numbers.len() == usize::from(total)
        });
        assert_eq!(numbers, (0..total).collect::<Vec<u8>>());
        if ring.kind() == DriverKind::IoUring {
            assert!(ring.counters().rearmed > 0);
        }
    });
}

#[test]
fn buffers_go_round_more_often_than_their_counter_wraps() {
    on_both(|ring, _| {
        let (_, address) = udp(ring, 1);
        let peer = peer();
        let mut got = 0u32;
        while got < 70_000 {
            for _ in 0..10 {
                peer.send_to(&got.to_be_bytes(), address).unwrap();
            }
            let until = got + 10;
            while got < until {
                ring.turn(soon()).unwrap();
                while let Some(completion) = ring.next() {
                    if let Completion::Datagram { data, .. } = completion {
                        assert_eq!(ring.bytes(&data).len(), 4);
                        ring.give_back(data);
                        got += 1;
                    }
                }
            }
        }
        assert_eq!(ring.counters().buffers_out, 0);
    });
}

#[test]
fn a_datagram_larger_than_a_buffer_is_dropped_and_counted() {
    on_both(|ring, _| {
        let (_, address) = udp(ring, 1);
        let peer = peer();
        peer.send_to(&[1; 4_000], address).unwrap();
        peer.send_to(&[2; 100], address).unwrap();
        turn_until(ring, |ring, completion| {
            let Completion::Datagram { data, .. } = completion else { return false };
            assert_eq!(ring.bytes(&data), [2; 100]);
            ring.give_back(data);
            true
        });
        assert_eq!(ring.counters().truncated, 1);
    });
}

#[test]
fn a_socket_tied_to_a_peer_hears_only_that_one_until_it_is_freed() {
    on_both(|ring, _| {
        // Bound by number, as the engine does: a port of the system's choosing would be lost with the tie.
        let address = peer().local_addr().unwrap();
        let socket = ring.add_udp(bind_udp(address).unwrap(), Owner(1)).unwrap();
        let (friend, stranger) = (peer(), peer());
        stranger.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let hear = |ring: &mut Ring| {
            let mut heard = Vec::new();
            for _ in 0..3 {
                ring.turn(Wait {
                    deadline: Some(Instant::now() + Duration::from_millis(5)),
                    coalesce: Duration::ZERO,
                })
                .unwrap();
                while let Some(completion) = ring.next() {
                    if let Completion::Datagram { data, .. } = completion {
                        heard.extend_from_slice(ring.bytes(&data));
                        ring.give_back(data);
                    }
                }
            }
            heard
        };
        ring.connect_udp(socket, Some(friend.local_addr().unwrap()));
        friend.send_to(b"f", address).unwrap();
        stranger.send_to(b"s", address).unwrap();
        assert_eq!(hear(ring), b"f");
        for to in [&friend, &stranger] {
            ring.datagram()[..1].copy_from_slice(b"x");
            ring.send_datagram(socket, to.local_addr().unwrap(), 1);
        }
        assert_eq!(hear(ring), b"");
        let mut got = [0; 8];
        assert_eq!(friend.recv(&mut got).unwrap(), 1);
        assert_eq!(stranger.recv(&mut got).unwrap(), 1, "an address overrides the tie");
        ring.connect_udp(socket, None);
        assert_eq!(hear(ring), b"", "what was received under the tie is over first");
        friend.send_to(b"f", address).unwrap();
        stranger.send_to(b"s", address).unwrap();
        let mut heard = hear(ring);
        heard.sort_unstable();
        assert_eq!(heard, b"fs");
        ring.datagram()[..1].copy_from_slice(b"y");
        ring.send_datagram(socket, stranger.local_addr().unwrap(), 1);
        hear(ring);
        assert_eq!(stranger.recv(&mut got).unwrap(), 1);
        assert_eq!(ring.counters().send_failed, 0);
    });
}

/// Everything that comes within a few turns, with its source.
fn hear_sources(ring: &mut Ring) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut heard = Vec::new();
    for _ in 0..6 {
        ring.turn(Wait {
            deadline: Some(Instant::now() + Duration::from_millis(5)),
            coalesce: Duration::ZERO,
        })
        .unwrap();
        while let Some(completion) = ring.next() {
            if let Completion::Datagram { from, data, .. } = completion {
                heard.push((from, ring.bytes(&data).to_vec()));
                ring.give_back(data);
            }
        }
    }
    heard
}

#[test]
fn each_datagram_keeps_its_source_while_a_socket_is_tied_and_freed() {
    on_both(|ring, _| {
        let address = peer().local_addr().unwrap();
        let socket = ring.add_udp(bind_udp(address).unwrap(), Owner(1)).unwrap();
        let (a, b) = (peer(), peer());
        let (a_address, b_address) = (a.local_addr().unwrap(), b.local_addr().unwrap());
        let mut wanted = Vec::new();
        let mut heard = Vec::new();
        let peers = [Some(a_address), None, Some(b_address), Some(a_address), None];
        for (round, tied) in peers.into_iter().cycle().take(20).enumerate() {
            // These wait in the socket, or in completions, when it is tied: they are still who they are.
            let before = [(&a, a_address), (&b, b_address)];
            let may_speak =
                |who: SocketAddr| round == 0 || peers[(round - 1) % 5].is_none_or(|peer| peer == who);
            for (who, from) in before.into_iter().filter(|(_, from)| may_speak(*from)) {
                let text = format!("{round} from {from}").into_bytes();
                who.send_to(&text, address).unwrap();
                wanted.push((from, text));
            }
            ring.connect_udp(socket, tied);
            heard.extend(hear_sources(ring));
        }
        wanted.sort();
        heard.sort();
        assert_eq!(heard, wanted);
        assert_eq!(ring.counters().truncated, 0);
    });
}

#[test]
fn a_datagram_that_is_too_large_for_a_buffer_is_counted_also_from_a_tied_peer() {
    on_both(|ring, _| {
        let address = peer().local_addr().unwrap();
        let socket = ring.add_udp(bind_udp(address).unwrap(), Owner(1)).unwrap();
        let friend = peer();
        ring.connect_udp(socket, Some(friend.local_addr().unwrap()));
        assert!(hear_sources(ring).is_empty());
        friend.send_to(&[1; 4_000], address).unwrap();
        friend.send_to(b"small", address).unwrap();
        let heard: Vec<Vec<u8>> = hear_sources(ring).into_iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(heard, [b"small".to_vec()]);
        assert_eq!(ring.counters().truncated, 1);
    });
}

#[test]
fn a_flood_beyond_the_ready_buffers_is_heard_to_the_last() {
    let _serial = serial();
    let limits = Limits { sockets: 8, receive_buffers: 4_096 };
    for kind in [DriverKind::IoUring, DriverKind::Epoll] {
        if decide(Choice::Only(kind)).driver.is_none() {
            eprintln!("skipped on {kind}");
            continue;
        }
        let mut ring = Ring::open(kind, limits, &Waker::new().unwrap()).unwrap();
        let addresses: Vec<SocketAddr> = (0..8)
            .map(|owner| {
                let address = peer().local_addr().unwrap();
                ring.add_udp(bind_udp(address).unwrap(), Owner(owner)).unwrap();
                address
            })
            .collect();
        ring.turn(Wait::none(Instant::now())).unwrap();
        let sender = peer();
        let mut heard = 0;
        for _ in 0..4 {
            for number in 0..1_200_usize {
                sender.send_to(&number.to_be_bytes(), addresses[number % 8]).unwrap();
            }
            // Nothing is given back before all of it has come.
            let mut held = Vec::new();
            for _ in 0..1_000 {
                if held.len() == 1_200 {
                    break;
                }
                let deadline = Some(Instant::now() + Duration::from_millis(2));
                ring.turn(Wait { deadline, coalesce: Duration::ZERO }).unwrap();
                while let Some(completion) = ring.next() {
                    if let Completion::Datagram { data, .. } = completion {
                        held.push(data);
                    }
                }
            }
            heard += held.len();
            for data in held {
                ring.give_back(data);
            }
        }
        assert_eq!(heard, 4_800, "{kind}");
    }
}

#[test]
fn a_waker_ends_a_wait_without_a_deadline() {
    on_both(|ring, waker| {
        for _ in 0..3 {
            let waker = waker.clone();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(10));
                waker.wake();
            });
            ring.turn(Wait { deadline: None, coalesce: Duration::ZERO }).unwrap();
            assert!(matches!(ring.next(), Some(Completion::Woken)));
            assert!(ring.next().is_none());
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_wake_between_turn_and_drain_never_blocks_the_next_turn() {
    let _serial = serial();
    for kind in [DriverKind::IoUring, DriverKind::Epoll] {
        if decide(Choice::Only(kind)).driver.is_none() {
            eprintln!("skipped on {kind}");
            continue;
        }
        let waker = Waker::new().unwrap();
        let wake = waker.clone();
        let (done, is_done) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut ring = Ring::open(kind, SMALL, &waker).unwrap();
            for _ in 0..100 {
                waker.wake();
                ring.turn(soon()).unwrap();
                waker.wake();
                while ring.next().is_some() {}
                ring.turn(Wait::none(Instant::now())).unwrap();
                while ring.next().is_some() {}
            }
            // It still wakes after all that.
            waker.wake();
            turn_until(&mut ring, |_, completion| matches!(completion, Completion::Woken));
            done.send(()).unwrap();
        });
        let outcome = is_done.recv_timeout(Duration::from_secs(30));
        // Frees a thread that is stuck in a read.
        let freed = (0..300).any(|_| {
            wake.wake();
            std::thread::sleep(Duration::from_millis(1));
            thread.is_finished()
        });
        assert!(outcome.is_ok(), "{kind}: the turn blocked (freed later: {freed})");
    }
}

#[test]
fn a_wait_ends_at_its_deadline_also_while_it_coalesces() {
    on_both(|ring, _| {
        for coalesce in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(50)] {
            // Never before it; soon after it in one of several tries, since a busy machine may wake us late in any.
            let in_time = (0..20).any(|_| {
                let began = Instant::now();
                ring.turn(Wait { deadline: Some(began + Duration::from_millis(10)), coalesce }).unwrap();
                let took = began.elapsed();
                assert!(took >= Duration::from_micros(9_900), "{took:?}");
                took < Duration::from_millis(40)
            });
            assert!(in_time, "30 ms late each time with {coalesce:?}");
        }
    });
}

#[test]
fn a_coalescing_wait_hands_over_a_packet_long_before_its_deadline() {
    on_both(|ring, _| {
        let (_, address) = udp(ring, 1);
        ring.turn(Wait::none(Instant::now())).unwrap();
        let sender = std::thread::spawn(move || {
            let peer = peer();
            std::thread::sleep(Duration::from_millis(20));
            peer.send_to(b"now", address).unwrap();
        });
        let began = Instant::now();
        ring.turn(Wait {
            deadline: Some(began + Duration::from_secs(2)),
            coalesce: Duration::from_millis(1),
        })
        .unwrap();
        let took = began.elapsed();
        assert!(matches!(ring.next(), Some(Completion::Datagram { .. })));
        assert!(took < Duration::from_millis(500), "{took:?}");
        sender.join().unwrap();
    });
}

#[test]
fn the_socket_table_is_bounded() {
    on_both(|ring, _| {
        for n in 0..SMALL.sockets as u64 {
            udp(ring, n);
        }
        let one_more = bind_udp(loopback()).unwrap();
        assert!(ring.add_udp(one_more, Owner(0)).is_err());
    });
}

#[test]
fn no_descriptor_leaks_through_sessions_and_rings() {
    let _serial = serial();
    for kind in [DriverKind::IoUring, DriverKind::Epoll] {
        if decide(Choice::Only(kind)).driver.is_none() {
            continue;
        }
        let before = open_descriptors();
        for _ in 0..3 {
            let waker = Waker::new().unwrap();
            let mut ring = Ring::open(kind, SMALL, &waker).unwrap();
            let listener = TcpListener::bind(loopback()).unwrap();
            for _ in 0..20 {
                let (socket, address) = udp(&mut ring, 1);
                peer().send_to(b"hello", address).unwrap();
                let tcp = ring.connect(listener.local_addr().unwrap(), Owner(2)).unwrap();
                settle(&mut ring);
                let _ = listener.accept().unwrap();
                ring.close(tcp);
                ring.close(socket);
                settle(&mut ring);
                assert_eq!(ring.counters().sockets, 0);
            }
            // Dropped with operations in flight.
            udp(&mut ring, 1);
            let stream: OwnedFd = TcpStream::connect(listener.local_addr().unwrap()).unwrap().into();
            ring.add_stream(stream, Owner(4)).unwrap();
            ring.turn(Wait::none(Instant::now())).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while open_descriptors() > before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(open_descriptors(), before, "on {kind}");
    }
}

/// Turns until the socket is out; gives it and what was received until then.
fn detach(ring: &mut Ring, socket: SocketId) -> (OwnedFd, Vec<u8>) {
    ring.detach(socket);
    ring.detach(socket);
    let (mut out, mut heard) = (None, Vec::new());
    turn_until(ring, |ring, completion| match completion {
        Completion::Detached { owner, socket } => {
            assert_eq!(owner, Owner(7));
            out = Some(socket);
            true
        }
        Completion::Datagram { data, .. } => {
            heard.push(ring.bytes(&data)[0]);
            ring.give_back(data);
            false
        }
        other => panic!("{other:?}"),
    });
    (out.unwrap(), heard)
}

#[test]
fn socket_that_moves_to_another_ring_loses_nothing_and_keeps_its_port() {
    on_both(|ring, waker| {
        for is_tied in [false, true] {
            let mut other = Ring::open(ring.kind(), SMALL, waker).unwrap();
            // The kernel keeps a port that was bound by its number.
            let port = peer().local_addr().unwrap().port();
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let socket = ring.add_udp(bind_udp(address).unwrap(), Owner(7)).unwrap();
            let peer = peer();
            let send = |numbers: std::ops::Range<u8>| {
                numbers.for_each(|number| assert_eq!(peer.send_to(&[number; 172], address).unwrap(), 172));
            };
            if is_tied {
                ring.connect_udp(socket, Some(peer.local_addr().unwrap()));
                settle(ring);
            }
            send(0..5);
            let (out, mut heard) = detach(ring, socket);
            assert_eq!(ring.counters().sockets, 0);
            // It is in nobody's ring now.
            send(5..10);
            let socket = other.add_udp(out, Owner(9)).unwrap();
            send(10..15);
            while heard.len() < 15 {
                turn_until(&mut other, |ring, completion| {
                    let Completion::Datagram { owner, from, data } = completion else { return false };
                    assert_eq!((owner, from), (Owner(9), peer.local_addr().unwrap()));
                    heard.push(ring.bytes(&data)[0]);
                    ring.give_back(data);
                    true
                });
            }
            assert_eq!(heard, (0..15).collect::<Vec<u8>>());
            // Also to somebody whom it was not tied to.
            let third = self::peer();
            other.datagram()[..4].copy_from_slice(b"here");
            other.send_datagram(socket, third.local_addr().unwrap(), 4);
            other.turn(Wait::none(Instant::now())).unwrap();
            let mut octets = [0; 300];
            let (len, from) = third.recv_from(&mut octets).unwrap();
            assert_eq!((len, from), (4, address));
            third.send_to(&[77], address).unwrap();
            turn_until(&mut other, |_, completion| matches!(completion, Completion::Datagram { .. }));
        }
    });
}

#[test]
fn socket_that_is_closed_while_it_leaves_is_closed() {
    on_both(|ring, _| {
        let before = open_descriptors();
        let (socket, _) = udp(ring, 7);
        ring.turn(soon()).unwrap();
        ring.detach(socket);
        ring.close(socket);
        settle(ring);
        assert_eq!((ring.counters().sockets, open_descriptors()), (0, before));
        assert_eq!(ring.room(), SMALL.sockets);
    });
}

#[test]
fn socket_of_another_owner_reports_to_that_one() {
    on_both(|ring, _| {
        let (socket, address) = udp(ring, 7);
        ring.turn(soon()).unwrap();
        peer().send_to(&[1], address).unwrap();
        ring.turn(soon()).unwrap();
        ring.set_owner(socket, Owner(9));
        turn_until(ring, |_, completion| matches!(completion, Completion::Datagram { owner: Owner(9), .. }));
    });
}
