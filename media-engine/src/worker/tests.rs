//! A worker that is turned by hand, on real sockets of each driver.

use std::net::{Ipv4Addr, UdpSocket};

use tandem_audio::format::{Codec, Ptime};
use tandem_rtp::dtls::{DATAGRAM_LEN_MAX, DtlsSrtp, Kind, Setup};
use tandem_rtp::ice::{Credentials, IceText, write_check};
use tandem_rtp::latch::Latching;
use tandem_rtp::units::PayloadType;
use tokio::sync::oneshot;

mod joins;

use super::*;
use crate::config::PortRange;
use crate::control::identity::new_identity;
use crate::leg::agent::{AgentParameters, CallInfo};
use crate::leg::rtp::Direction;
use crate::leg::secure::SecureParameters;
use crate::mailbox::{self, Commands, Inbox};
use crate::ring::{Choice, DriverKind, Limits, Waker, decide};
use crate::session::SessionParameters;

/// Receive buffers for more than a turn may handle.
const LIMITS: Limits = Limits { sockets: 64, receive_buffers: 1_024 };

/// A worker that is turned by hand.
struct Bench {
    worker: Worker,
    commands: Commands,
    inbox: Inbox,
}

impl Bench {
    fn on_each(ports: u16, body: impl Fn(Self)) {
        Self::on_each_of(ports, 100, body);
    }

    /// With so many ports, RTP's and the odd ones beside them.
    fn on_each_of(ports: u16, count: u16, body: impl Fn(Self)) {
        Self::on_each_kind(|kind| body(Self::with_ports(kind, ports, count, LIMITS)));
    }

    fn on_each_kind(body: impl Fn(DriverKind)) {
        for kind in [DriverKind::IoUring, DriverKind::Epoll] {
            match decide(Choice::Only(kind)).driver {
                Some(_) => body(kind),
                None => eprintln!("skipped on {kind}"),
            }
        }
    }

    /// Its share of the ports begins here.
    fn new(kind: DriverKind, ports: u16, limits: Limits) -> Self {
        Self::with_ports(kind, ports, 100, limits)
    }

    fn with_ports(kind: DriverKind, ports: u16, count: u16, limits: Limits) -> Self {
        let waker = Waker::new().unwrap();
        let ring = Ring::open(kind, limits, &waker).unwrap();
        let ((commands, inbox), (queue, outbox)) = mailbox::pair(waker, Waker::new().unwrap());
        let ports = Ports::new(crate::ports::share(PortRange { min: ports, max: ports + count - 1 }, 0, 1));
        let worker = Worker::new(ring, 64, ports, queue, outbox, Arc::new(CoreMetrics::default()));
        Self { worker, commands, inbox }
    }

    fn turn(&mut self) {
        let now = Instant::now();
        self.worker.ring.turn(Wait::none(now)).unwrap();
        self.worker.turn(now);
    }

    fn open(&mut self, name: &str) -> Opened {
        self.open_with(name, Rtcp::Off)
    }

    fn open_with(&mut self, name: &str, rtcp: Rtcp) -> Opened {
        self.open_to(name, rtcp, (Ipv4Addr::LOCALHOST, 9).into())
    }

    /// For a phone that is here.
    fn open_to(&mut self, name: &str, rtcp: Rtcp, remote: SocketAddr) -> Opened {
        self.open_secure_to(name, rtcp, remote, None, None)
    }

    fn open_secure(
        &mut self,
        name: &str,
        rtcp: Rtcp,
        secure: Option<SecureParameters>,
        identity: Option<Arc<tandem_rtp::dtls::Identity>>,
    ) -> Opened {
        self.open_secure_to(name, rtcp, (Ipv4Addr::LOCALHOST, 9).into(), secure, identity)
    }

    fn open_secure_to(
        &mut self,
        name: &str,
        rtcp: Rtcp,
        remote: SocketAddr,
        secure: Option<SecureParameters>,
        identity: Option<Arc<tandem_rtp::dtls::Identity>>,
    ) -> Opened {
        let rtp = RtpParameters {
            remote: Some(remote),
            codec: Some(Codec::Pcmu),
            payload_type: PayloadType::PCMU,
            ptime: Ptime::MS_20,
            event_payload_type: None,
            direction: Direction::SendReceive,
            latching: Latching::Auto,
            rtcp,
            srtp: None,
            secure,
            sound: crate::session::bridge::SoundParameters::default(),
        };
        let parameters = SessionParameters {
            call: CallInfo::default(),
            rtp,
            stream: None,
            agent: AgentParameters::Echo,
            speech: crate::session::speech::SpeechParameters::default(),
            media_timeout: Duration::from_secs(60),
            max_session: None,
            seed: 1,
            since_epoch: Duration::ZERO,
            identity,
        };
        let local_address = Ipv4Addr::LOCALHOST.into();
        let open = Open {
            id: name.into(),
            parameters,
            agent_address: None,
            local_address,
            local_port: None,
            incoming: None,
        };
        let opened = self.worker.open(open, Instant::now()).unwrap();
        assert!(self.worker.start(opened.key, false, Instant::now()));
        opened
    }
}

#[test]
fn a_burst_of_commands_is_carried_out_over_several_turns() {
    Bench::on_each(13_000, |mut bench| {
        let mut answers = Vec::new();
        for _ in 0..2 * COMMANDS_A_TURN + 1 {
            let (reply, answer) = oneshot::channel();
            assert!(bench.commands.send(Command::List { reply }));
            answers.push(answer);
        }
        for answered in [COMMANDS_A_TURN, 2 * COMMANDS_A_TURN, 2 * COMMANDS_A_TURN + 1] {
            bench.turn();
            let now = answers.iter_mut().filter(|answer| !answer.is_empty()).count();
            assert_eq!(now, answered);
            let waits = bench.worker.wait().deadline.is_none_or(|deadline| deadline > Instant::now());
            assert_eq!(waits, answered == answers.len(), "after {answered}");
        }
    });
}

#[test]
fn a_flood_of_packets_is_handled_over_several_turns_and_playout_between_them() {
    // 400 packets: more than a turn may handle.
    const FLOODED: u64 = 16;
    const EACH: u8 = 25;
    Bench::on_each(13_100, |mut bench| {
        let ports: Vec<u16> = (0..FLOODED).map(|n| bench.open(&n.to_string()).port).collect();
        bench.turn();
        let phone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for number in 0..EACH {
            for port in &ports {
                let mut packet = [0; 172];
                (packet[0], packet[3]) = (0x80, number);
                phone.send_to(&packet, (Ipv4Addr::LOCALHOST, *port)).unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(30)); // everybody's playout is due
        for _ in 0..4 {
            bench.worker.ring.turn(Wait::none(Instant::now())).unwrap(); // completions gather
        }
        let mut turns = 0;
        while bench.worker.tally.rtp_received_total < FLOODED * u64::from(EACH) {
            turns += 1;
            assert!(turns < 100, "{:?}", bench.worker.tally);
            bench.turn();
            assert!(bench.worker.tally.batch_max <= COMPLETIONS_MAX);
            assert!(bench.worker.tally.rtp_sent_total >= FLOODED, "in the first turn already");
        }
        assert!(turns > 1);
    });
}

#[test]
fn lateness_is_that_of_the_packet_and_not_of_the_begin_of_its_turn() {
    Bench::on_each(13_200, |mut bench| {
        bench.open("a");
        bench.turn();
        bench.worker.tally.late_nanoseconds_max = 0;
        // The turn begins in time, and then something holds it up.
        let due = bench.worker.wheel.next_due().unwrap();
        std::thread::sleep(due.saturating_duration_since(Instant::now()) + Duration::from_millis(30));
        bench.worker.turn(due);
        let late = Duration::from_nanos(bench.worker.tally.late_nanoseconds_max);
        assert!(late >= Duration::from_millis(30), "{late:?}");
        assert_eq!(bench.worker.tally.late_ticks_total, 1);
    });
}

#[test]
fn closed_session_takes_its_leave_from_the_odd_port_and_both_ports_rest() {
    Bench::on_each(13_300, |mut bench| {
        let phone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        phone.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let rtcp = Rtcp::Separate { remote: Some(phone.local_addr().unwrap()) };
        // Where RTP goes is where the description says, so reports go where it says, too.
        let opened = bench.open_with("a", rtcp);
        assert!(UdpSocket::bind((Ipv4Addr::LOCALHOST, opened.port + 1)).is_err(), "it is ours");
        bench.turn();
        let (reply, _answer) = oneshot::channel();
        let close = Command::Close { key: opened.key, reason: "caller".into(), reply };
        assert!(bench.commands.send(close));
        for _ in 0..4 {
            bench.turn();
        }
        let mut datagram = [0; 200];
        let (len, from) = phone.recv_from(&mut datagram).unwrap();
        assert_eq!(from.port(), opened.port + 1);
        let packets = tandem_rtp::rtcp::parse(&datagram[..len]);
        let last = packets.last().unwrap().unwrap();
        assert!(matches!(last, tandem_rtp::rtcp::RtcpPacket::Bye { .. }), "{last:?}");
        assert_eq!((bench.worker.ports.open(), bench.worker.ports.resting()), (0, 1));
        assert!(UdpSocket::bind((Ipv4Addr::LOCALHOST, opened.port + 1)).is_ok(), "it was closed");
    });
}

#[test]
fn multiplexed_call_opens_no_port_for_rtcp_until_an_update_asks_for_one() {
    Bench::on_each(13_400, |mut bench| {
        let opened = bench.open_with("a", Rtcp::Mux);
        let beside = || UdpSocket::bind((Ipv4Addr::LOCALHOST, opened.port + 1));
        assert!(beside().is_ok());
        let slot = &bench.worker.sessions[opened.key.index as usize];
        let rtp = RtpParameters { rtcp: Rtcp::Separate { remote: None }, ..*slot.session.rtp() };
        assert!(bench.worker.update(opened.key, rtp, Instant::now()));
        assert!(beside().is_err());
    });
}

#[test]
fn second_leg_opens_its_odd_port_when_an_update_asks_for_it_and_takes_its_leave_from_there() {
    Bench::on_each(13_600, |mut bench| {
        let opened = bench.open("a");
        let phone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        phone.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let rtp = *bench.worker.sessions[opened.key.index as usize].session.rtp();
        let unknown = RtpParameters { remote: None, codec: None, ..rtp };
        let place = (Ipv4Addr::LOCALHOST.into(), None);
        let now = Instant::now();
        let port = bench.worker.add_leg(opened.key, unknown, Role::Listen, place, [1, 2, 3], now).unwrap();
        let beside = || UdpSocket::bind((Ipv4Addr::LOCALHOST, port + 1));
        assert!(beside().is_ok());
        let rtcp = Rtcp::Separate { remote: Some(phone.local_addr().unwrap()) };
        assert!(bench.worker.update_leg(opened.key, Some(RtpParameters { rtcp, ..rtp }), None, now));
        assert!(beside().is_err(), "it is ours");
        bench.turn();
        assert!(bench.worker.remove_leg(opened.key, Instant::now()).is_some());
        for _ in 0..4 {
            bench.turn();
        }
        let mut datagram = [0; 200];
        let (len, from) = phone.recv_from(&mut datagram).unwrap();
        assert_eq!(from.port(), port + 1);
        let packets = tandem_rtp::rtcp::parse(&datagram[..len]);
        let last = packets.last().unwrap().unwrap();
        assert!(matches!(last, tandem_rtp::rtcp::RtcpPacket::Bye { .. }), "{last:?}");
        assert!(beside().is_ok(), "it was closed");
    });
}

#[test]
fn busy_odd_port_takes_its_pair_out_of_use() {
    Bench::on_each(13_500, |mut bench| {
        let _other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 13_501)).unwrap();
        let opened = bench.open_with("a", Rtcp::Separate { remote: None });
        assert_eq!((opened.port, bench.worker.ports.quarantined()), (13_502, 1));
    });
}

/// A browser on a socket of its own.
struct Browser {
    socket: UdpSocket,
    dtls: DtlsSrtp,
    has_keys: bool,
}

impl Browser {
    /// Sends what its handshake has to say, and reads what has come.
    fn shakes(&mut self) {
        let mut datagram = [0; 1_500];
        while let Ok(len) = self.socket.recv(&mut datagram) {
            if Kind::of(&datagram[..len]) == Kind::Dtls {
                self.dtls.handle_datagram(&datagram[..len], Instant::now());
            }
        }
        self.dtls.handle_timeout(Instant::now());
        while let Some(len) = self.dtls.poll_transmit(&mut datagram[..DATAGRAM_LEN_MAX]) {
            self.socket.send(&datagram[..len]).unwrap();
        }
        self.has_keys |= self.dtls.poll_keys().is_some();
    }
}

#[test]
fn fifty_handshakes_at_once_are_done_few_in_a_turn_and_a_running_call_does_not_wait_for_them() {
    const BROWSERS: u64 = 50;
    Bench::on_each_of(13_700, 200, |mut bench| {
        let identity = Arc::new(new_identity().unwrap());
        let phone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let running = bench.open("running");
        let (ice, remote_ufrag) = (Credentials::from_random(&[5; 32]), IceText::parse("browser").unwrap());
        let mut browsers: Vec<Browser> = (0..BROWSERS)
            .map(|number| {
                let own = new_identity().unwrap();
                let fingerprint = own.fingerprint();
                let secure = SecureParameters { setup: Setup::Passive, fingerprint, ice, remote_ufrag };
                let name = number.to_string();
                let opened = bench.open_secure(&name, Rtcp::Mux, Some(secure), Some(Arc::clone(&identity)));
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                socket.connect((Ipv4Addr::LOCALHOST, opened.port)).unwrap();
                socket.set_nonblocking(true).unwrap();
                let dtls =
                    DtlsSrtp::new(&own, Setup::Active, identity.fingerprint(), Instant::now()).unwrap();
                Browser { socket, dtls, has_keys: false }
            })
            .collect();
        let mut check = [0; 256];
        let len = write_check(&mut check, [1; 12], (&ice, remote_ufrag), true).unwrap();
        for browser in &browsers {
            browser.socket.send(&check[..len]).unwrap();
        }
        while bench.worker.tally.rtp_received_total < BROWSERS {
            bench.turn();
        }

        // All begin at once, and the phone of the running call speaks.
        browsers.iter_mut().for_each(Browser::shakes);
        let mut packet = [0; 172];
        packet[0] = 0x80;
        phone.send_to(&packet, (Ipv4Addr::LOCALHOST, running.port)).unwrap();
        for _ in 0..4 {
            bench.worker.ring.turn(Wait::none(Instant::now())).unwrap(); // completions gather
        }
        bench.turn();
        let heard = |bench: &Bench| {
            bench.worker.sessions[running.key.index as usize].session.stats(Instant::now()).rtp_received
        };
        assert_eq!(heard(&bench), 1, "in the turn that brought all of them");
        assert_eq!(bench.worker.handshakes.len() as u64, BROWSERS);
        assert!(bench.worker.wait().deadline.is_some_and(|deadline| deadline <= Instant::now()));
        let mut done = bench.worker.tally.handshake_steps_total;
        let mut turn = |bench: &mut Bench| {
            bench.turn();
            let steps = bench.worker.tally.handshake_steps_total;
            assert!(steps - done <= HANDSHAKES_A_TURN as u64, "{} in one turn", steps - done);
            done = steps;
        };
        // Everybody's first step, before anybody's second.
        for _ in 0..BROWSERS.div_ceil(HANDSHAKES_A_TURN as u64) {
            turn(&mut bench);
        }
        assert_eq!((bench.worker.tally.handshake_steps_total, bench.worker.handshakes.len()), (BROWSERS, 0));
        let deferred = bench.worker.tally.handshakes_deferred_total;
        assert_eq!(deferred, BROWSERS - HANDSHAKES_A_TURN as u64);

        let until = Instant::now() + Duration::from_secs(30);
        while !browsers.iter().all(|browser| browser.has_keys) {
            assert!(Instant::now() < until, "{:?}", bench.worker.tally);
            browsers.iter_mut().for_each(Browser::shakes);
            turn(&mut bench);
        }
        assert_eq!(bench.worker.tally.handshakes_overflowed_total, 0);
    });
}
