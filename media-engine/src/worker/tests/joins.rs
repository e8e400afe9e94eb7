//! Sessions of one core and of two are joined; phones on real sockets lose nothing by it.

use tandem_rtp::packet::Packet;

use super::*;
use crate::mailbox::{Moving, Refused, Word};
use crate::session::joining::JoinError;

/// A phone that counts what it sends, and keeps what it hears.
struct Phone {
    socket: UdpSocket,
    sent: u16,
    /// From which port, and the packet's SSRC and number.
    heard: Vec<(u16, u32, u16)>,
}

impl Phone {
    fn new() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, sent: 0, heard: Vec::new() }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    fn says(&mut self, port: u16) {
        let mut packet = [0x80; 172];
        packet[1] = 0;
        packet[2..4].copy_from_slice(&self.sent.to_be_bytes());
        packet[4..8].copy_from_slice(&(u32::from(self.sent) * 160).to_be_bytes());
        packet[8..12].copy_from_slice(&u32::from(self.address().port()).to_be_bytes());
        self.socket.send_to(&packet, (Ipv4Addr::LOCALHOST, port)).unwrap();
        self.sent += 1;
    }

    fn hears(&mut self) {
        let mut octets = [0; 400];
        while let Ok((len, from)) = self.socket.recv_from(&mut octets) {
            if tandem_rtp::packet::is_rtcp(&octets[..len]) {
                continue;
            }
            let header = Packet::parse(&octets[..len]).unwrap().header;
            self.heard.push((from.port(), header.ssrc.0, header.sequence.0));
        }
    }

    /// It is one stream, from one port, of which nothing is missing or out of order.
    fn check_stream(&mut self, port: u16) {
        self.hears();
        assert!(self.heard.len() > 3, "{}", self.heard.len());
        for pair in self.heard.windows(2) {
            let [(from, ssrc, number), after] = pair else { unreachable!() };
            assert_eq!(after, &(port, *ssrc, number.wrapping_add(1)));
            assert_eq!(*from, port);
        }
    }
}

/// Turns both workers for so long, and the phones speak every 5 ms.
fn pass(benches: &mut [&mut Bench], phones: &mut [(&mut Phone, u16)], ms: u64) {
    let until = Instant::now() + Duration::from_millis(ms);
    while Instant::now() < until {
        for (phone, port) in phones.iter_mut() {
            phone.says(*port);
        }
        for _ in 0..5 {
            benches.iter_mut().for_each(|bench| bench.turn());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    phones.iter_mut().for_each(|(phone, _)| phone.hears());
}

impl Bench {
    /// The answer to a command, and how the time passes until it is there.
    fn ask<T>(&mut self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, mut answer) = oneshot::channel();
        assert!(self.commands.send(command(reply)));
        for _ in 0..100 {
            self.turn();
            if let Ok(answer) = answer.try_recv() {
                return answer;
            }
        }
        panic!("no answer within a hundred turns");
    }

    fn lift(&mut self, key: SessionKey) -> Result<Box<Moving>, JoinError> {
        self.ask(|reply| Command::Lift { key, reply })
    }

    fn land(&mut self, key: SessionKey, moving: Box<Moving>) -> Result<(), Refused> {
        self.ask(|reply| Command::Land { key, moving, role: Role::Bridge, reply })
    }

    fn stats(&self, key: SessionKey) -> Stats {
        self.worker.sessions[key.index as usize].session.stats(Instant::now())
    }

    fn second_stats(&self, key: SessionKey) -> Stats {
        self.worker.sessions[key.index as usize].session.second().unwrap().stats()
    }

    fn is_tied(&self, key: SessionKey) -> bool {
        self.worker.sessions[key.index as usize].peer.is_some()
    }

    fn events(&mut self) -> Vec<(Arc<str>, Event)> {
        let words = std::iter::from_fn(|| self.inbox.pop());
        words
            .filter_map(|word| if let Word::Session(id, event) = word { Some((id, event)) } else { None })
            .collect()
    }
}

/// Two cores with a call each, whose phones have talked for a while.
struct Two {
    one: Bench,
    two: Bench,
    caller: Phone,
    desk: Phone,
    stays: Opened,
    ends: Opened,
}

impl Two {
    fn new(kind: DriverKind, ports: u16, rtcp: Rtcp) -> Self {
        let (mut one, mut two) = (Bench::new(kind, ports, LIMITS), Bench::new(kind, ports + 100, LIMITS));
        let (caller, desk) = (Phone::new(), Phone::new());
        let stays = one.open_to("a", Rtcp::Off, caller.address());
        let ends = two.open_to("b", rtcp, desk.address());
        let mut this = Self { one, two, caller, desk, stays, ends };
        this.pass(60);
        assert!(this.two.is_tied(this.ends.key), "a phone that speaks from where it said is tied to");
        this
    }

    fn pass(&mut self, ms: u64) {
        let Self { one, two, caller, desk, stays, ends } = self;
        pass(&mut [one, two], &mut [(caller, stays.port), (desk, ends.port)], ms);
    }

    /// The desk speaks while its leg is nowhere.
    fn desk_speaks(&mut self) {
        (0..3).for_each(|_| self.desk.says(self.ends.port));
    }
}

#[test]
fn sessions_of_one_core_are_joined_and_the_phones_notice_nothing() {
    Bench::on_each(13_700, |mut bench| {
        let (mut caller, mut desk) = (Phone::new(), Phone::new());
        let stays = bench.open_to("a", Rtcp::Off, caller.address());
        let ends = bench.open_to("b", Rtcp::Separate { remote: None }, desk.address());
        let phones = &mut [(&mut caller, stays.port), (&mut desk, ends.port)];
        pass(&mut [&mut bench], phones, 60);
        assert!(bench.is_tied(ends.key));
        let (key, other) = (stays.key, ends.key);
        phones[1].0.says(ends.port);
        let stats = bench.ask(|reply| Command::Join { key, other, role: Role::Bridge, reply }).unwrap();
        assert!(stats.rtp_received > 2, "{stats:?}");
        pass(&mut [&mut bench], phones, 100);
        caller.check_stream(stays.port);
        desk.check_stream(ends.port);
        let second = bench.second_stats(stays.key);
        assert_eq!((second.rtp_received, second.rtp_lost), (u64::from(desk.sent), 0));
        let ended = bench.events().into_iter().rfind(|(id, _)| &**id == "b");
        assert!(matches!(&ended, Some((_, Event::Joined { into, .. })) if &**into == "a"), "{ended:?}");
        assert_eq!((bench.worker.sessions.len(), bench.worker.ports.open()), (1, 2));
        assert!(bench.worker.remove_leg(stays.key, Instant::now()).is_some());
        assert_eq!((bench.worker.ports.open(), bench.worker.ports.resting()), (1, 1));
        pass(&mut [&mut bench], &mut [(&mut caller, stays.port)], 20);
        for port in [ends.port, ends.port + 1] {
            assert!(UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok(), "{port} was closed");
        }
    });
}

#[test]
fn leg_moves_to_another_core_with_nothing_lost_and_its_port_goes_home_to_rest() {
    Bench::on_each_kind(|kind| {
        let mut both = Two::new(kind, 13_800, Rtcp::Separate { remote: None });
        let (key, other) = (both.stays.key, both.ends.key);
        both.one.ask(|reply| Command::Expect { key, reply }).unwrap();
        both.desk_speaks();
        let moving = both.two.lift(other).unwrap();
        both.desk_speaks();
        assert!(both.two.worker.sessions[other.index as usize].udp.is_none());
        both.one.land(key, moving).unwrap();
        both.desk_speaks();
        let stats = both.two.ask(|reply| Command::Leave { key: other, into: "a".into(), reply }).unwrap();
        assert!(stats.rtp_received > 2);
        both.pass(100);
        both.caller.check_stream(both.stays.port);
        both.desk.check_stream(both.ends.port);
        let second = both.one.second_stats(key);
        assert_eq!((second.rtp_received, second.rtp_lost), (u64::from(both.desk.sent), 0));
        // The last one may not have left yet.
        let unheard = second.rtp_sent - both.desk.heard.len() as u64;
        assert!(unheard <= 1, "{unheard}");
        assert_eq!(both.two.worker.sessions.len(), 0);
        let joined = |(id, event): &(Arc<str>, Event)| {
            &**id == "b" && matches!(event, Event::Joined { into, .. } if &**into == "a")
        };
        assert_eq!(both.two.events().iter().filter(|event| joined(event)).count(), 1);

        assert_eq!((both.one.worker.ports.open(), both.two.worker.ports.open()), (1, 1));
        assert!(both.one.worker.remove_leg(key, Instant::now()).is_some());
        both.pass(20);
        assert_eq!((both.one.worker.ports.open(), both.one.worker.ports.resting()), (1, 0));
        let ports = std::iter::from_fn(|| both.one.inbox.pop());
        let ports: Vec<u16> = ports
            .filter_map(|word| if let Word::PortFree(port) = word { Some(port) } else { None })
            .collect();
        assert_eq!(ports, [both.ends.port]);
        assert!(both.two.commands.send(Command::PortHome { port: both.ends.port }));
        both.pass(20);
        assert_eq!((both.two.worker.ports.open(), both.two.worker.ports.resting()), (0, 1));
        for port in [both.ends.port, both.ends.port + 1] {
            assert!(UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok(), "{port} was closed");
        }
    });
}

#[test]
fn leg_whose_place_is_gone_comes_back_and_goes_on() {
    Bench::on_each_kind(|kind| {
        let mut both = Two::new(kind, 14_000, Rtcp::Separate { remote: None });
        let (key, other) = (both.stays.key, both.ends.key);
        both.one.ask(|reply| Command::Expect { key, reply }).unwrap();
        let moving = both.two.lift(other).unwrap();
        assert_eq!(both.two.lift(other).unwrap_err(), JoinError::Busy);
        // The caller hangs up at this very moment.
        both.one.ask(|reply| Command::Close { key, reason: "caller".into(), reply });
        both.desk_speaks();
        let (error, moving) = both.one.land(key, moving).unwrap_err();
        assert_eq!(error, JoinError::NoSession);
        assert!(both.two.commands.send(Command::Restore { key: other, moving }));
        both.pass(100);
        both.desk.check_stream(both.ends.port);
        let stats = both.two.stats(other);
        assert_eq!((stats.rtp_received, stats.rtp_lost), (u64::from(both.desk.sent), 0));
        assert!(both.two.worker.sessions[other.index as usize].rtcp.is_some());
        // And it ends as ever.
        both.two.ask(|reply| Command::Close { key: other, reason: "caller".into(), reply }).unwrap();
        assert_eq!((both.two.worker.ports.open(), both.two.worker.ports.resting()), (0, 1));
    });
}

#[test]
fn leg_that_was_removed_before_it_came_goes_back() {
    Bench::on_each_kind(|kind| {
        let mut both = Two::new(kind, 14_800, Rtcp::Off);
        let (key, other) = (both.stays.key, both.ends.key);
        both.one.ask(|reply| Command::Expect { key, reply }).unwrap();
        let moving = both.two.lift(other).unwrap();
        assert!(both.one.ask(|reply| Command::RemoveLeg { key, reply }).is_none(), "there is none yet");
        let (error, moving) = both.one.land(key, moving).unwrap_err();
        assert_eq!(error, JoinError::Busy);
        assert!(both.two.commands.send(Command::Restore { key: other, moving }));
        both.pass(60);
        both.desk.check_stream(both.ends.port);
        assert!(both.one.worker.sessions[key.index as usize].session.second().is_none());
    });
}

#[test]
fn session_that_ends_while_its_leg_is_lifted_or_away_leaves_nothing_behind() {
    Bench::on_each_kind(|kind| {
        let mut both = Two::new(kind, 14_200, Rtcp::Off);
        let other = both.ends.key;
        let (reply, mut answer) = oneshot::channel();
        both.two.worker.lift(other, reply, Instant::now());
        both.two.worker.close(other.index, "caller", Instant::now());
        both.pass(20);
        assert_eq!(answer.try_recv().unwrap().unwrap_err(), JoinError::NoSession);
        assert_eq!((both.two.worker.ports.open(), both.two.worker.ports.resting()), (0, 1));
        assert!(UdpSocket::bind((Ipv4Addr::LOCALHOST, both.ends.port)).is_ok(), "it was closed");

        let mut both = Two::new(kind, 14_200, Rtcp::Off);
        let other = both.ends.key;
        let moving = both.two.lift(other).unwrap();
        both.two.ask(|reply| Command::Close { key: other, reason: "caller".into(), reply }).unwrap();
        assert_eq!(both.two.worker.ports.open(), 1, "it is still open");
        assert!(both.two.commands.send(Command::Restore { key: other, moving: Some(moving) }));
        both.pass(20);
        assert_eq!((both.two.worker.ports.open(), both.two.worker.ports.resting()), (0, 1));
        assert!(UdpSocket::bind((Ipv4Addr::LOCALHOST, both.ends.port)).is_ok(), "it was closed");

        // Nobody waits for the leg any more: it stays.
        let mut both = Two::new(kind, 14_200, Rtcp::Off);
        let other = both.ends.key;
        let (reply, answer) = oneshot::channel();
        drop(answer);
        both.two.worker.lift(other, reply, Instant::now());
        both.pass(60);
        both.desk.check_stream(both.ends.port);
        assert_eq!(both.two.stats(other).rtp_received, u64::from(both.desk.sent));
    });
}

#[test]
fn place_that_is_kept_for_a_leg_is_nobody_elses_and_not_for_ever() {
    Bench::on_each(14_400, |mut bench| {
        let key = bench.open("a").key;
        let now = Instant::now();
        let rtp = *bench.worker.sessions[key.index as usize].session.rtp();
        let place = (Ipv4Addr::LOCALHOST.into(), None);
        assert_eq!(bench.worker.expect_leg(key, now), Ok(()));
        assert_eq!(bench.worker.expect_leg(key, now), Err(JoinError::Busy));
        let taken = bench.worker.add_leg(key, rtp, Role::Listen, place, [1, 2, 3], now);
        assert_eq!(taken, Err(LegError::Taken));
        bench.worker.unexpect_leg(key);
        assert_eq!(bench.worker.expect_leg(key, now), Ok(()));
        assert_eq!(bench.worker.expect_leg(key, now + EXPECTED_MAX), Ok(()), "the first one never came");
        let later = now + 2 * EXPECTED_MAX;
        assert!(bench.worker.add_leg(key, rtp, Role::Listen, place, [1, 2, 3], later).is_ok());
        assert_eq!(bench.worker.expect_leg(key, later), Err(JoinError::Taken));
    });
}

#[test]
fn core_without_room_for_the_sockets_takes_no_leg() {
    Bench::on_each_kind(|kind| {
        let few = Limits { sockets: 1, ..LIMITS };
        let mut bench = Bench::new(kind, 14_500, few);
        let key = bench.open("a").key;
        assert_eq!(bench.worker.expect_leg(key, Instant::now()), Err(JoinError::Full));
        let mut other = Bench::new(kind, 14_600, LIMITS);
        let ends = other.open("b").key;
        let moving = other.lift(ends).unwrap();
        let (error, moving) = bench.land(key, moving).unwrap_err();
        assert_eq!(error, JoinError::Full);
        assert!(moving.is_some(), "it is given back");
    });
}

#[test]
fn refusals_name_the_session_that_cannot() {
    Bench::on_each(14_700, |mut bench| {
        let (a, b) = (bench.open("a").key, bench.open("b").key);
        let gone = SessionKey { index: b.index, generation: b.generation + 1 };
        let now = Instant::now();
        let mut join = |key, other| bench.worker.join(key, other, Role::Bridge, now);
        assert_eq!(join(a, gone), Err((gone, JoinError::NoSession)));
        assert_eq!(join(gone, a), Err((gone, JoinError::NoSession)));
        assert!(join(a, a).is_err());
        assert!(join(a, b).is_ok());
        let c = bench.open("c").key;
        assert_eq!(bench.worker.join(c, a, Role::Bridge, now), Err((a, JoinError::Taken)));
        assert_eq!(bench.worker.join(a, c, Role::Bridge, now), Err((a, JoinError::Taken)));
    });
}
