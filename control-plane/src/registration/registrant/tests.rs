use std::sync::{Arc, Mutex};

use tandem_sip::Message;
use uuid::Uuid;

use super::*;
use crate::store::contexts::{ContextStore, EmbeddedContexts, Owner};

const S: Duration = Duration::from_secs(1);

/// One registrant that holds its lease, and a clock.
struct Bed {
    registrant: Registrant,
    now: Instant,
}

impl Bed {
    fn new() -> Self {
        let mut bed = Self::without_lease();
        bed.tick();
        assert_eq!(bed.registrant.poll_action(), Some(Action::Acquire));
        bed.registrant.handle_lease(Some(true), bed.now);
        bed
    }

    fn without_lease() -> Self {
        let now = Instant::now();
        let settings = Settings { expires_s: 600, call_id: "c1".into(), seed: 1, start_at: now };
        Self { registrant: Registrant::new(settings), now }
    }

    /// To the next deadline.
    fn tick(&mut self) {
        self.now = self.now.max(self.registrant.poll_timeout().unwrap());
        self.registrant.handle_timeout(self.now);
    }

    /// To the next REGISTER; the lease is renewed on the way. How long it took.
    fn next_register(&mut self) -> (Register, Duration) {
        let before = self.now;
        loop {
            match self.registrant.poll_action() {
                Some(Action::Register(register)) => return (register, self.now - before),
                Some(Action::Renew | Action::Acquire) => self.registrant.handle_lease(Some(true), self.now),
                Some(Action::Release) => panic!("nobody has stopped it"),
                None => self.tick(),
            }
        }
    }

    /// Lets time pass in which no REGISTER is due.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.registrant.poll_timeout().is_some_and(|at| at <= end) {
            self.tick();
            while let Some(action) = self.registrant.poll_action() {
                assert_eq!(action, Action::Renew);
                self.registrant.handle_lease(Some(true), self.now);
            }
        }
        self.now = end;
    }

    fn answer(&mut self, status: u16, headers: &str) {
        let response = response(status, self.registrant.cseq, headers);
        self.registrant.handle_response(&response, self.now);
    }

    fn registered(&mut self) {
        self.next_register();
        self.answer(200, "Contact: <sip:42@192.0.2.1:5060>;expires=600\r\n");
        assert_eq!(self.state(), State::Registered);
    }

    fn status(&self) -> Status {
        self.registrant.status(self.now)
    }

    fn state(&self) -> State {
        self.status().state
    }
}

fn response(status: u16, cseq: u32, headers: &str) -> Response {
    let text = format!(
        "SIP/2.0 {status} Said\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1\r\nFrom: <sip:42@c>;tag=1\r\n\
         To: <sip:42@c>;tag=2\r\nCall-ID: c1\r\nCSeq: {cseq} REGISTER\r\n{headers}\r\n"
    );
    match tandem_sip::parse::parse(text.as_bytes()) {
        Ok(Message::Response(response)) => response,
        other => panic!("{other:?}"),
    }
}

#[test]
fn registration_is_refreshed_between_half_and_four_fifths_of_its_time() {
    let mut bed = Bed::new();
    let (first, _) = bed.next_register();
    assert_eq!((first.expires_s, first.cseq), (600, 1));
    bed.answer(200, "Contact: <sip:42@192.0.2.1:5060>;expires=100\r\n");
    for number in 2..30 {
        let (register, waited) = bed.next_register();
        assert!((50..=80).contains(&waited.as_secs()), "{waited:?}");
        assert_eq!((register.cseq, &*register.call_id), (number, "c1"));
        assert_eq!(bed.state(), State::Registered, "while it is refreshed");
        bed.answer(200, "Contact: <sip:42@192.0.2.1:5060>;expires=100\r\n");
    }
}

#[test]
fn next_number_is_above_what_the_endpoint_has_used() {
    let mut bed = Bed::new();
    bed.next_register();
    // 401, and once more with credentials.
    let granted = response(200, 2, "Expires: 60\r\n");
    bed.registrant.handle_response(&granted, bed.now);
    assert_eq!(bed.next_register().0.cseq, 3);
}

#[test]
fn own_contact_of_several_says_how_long() {
    let granted = |headers: &str| granted_s(&response(200, 1, headers));
    let two = "Contact: <sip:42@192.0.2.9:5060>;expires=30, <sip:42@192.0.2.1>;expires=90\r\nExpires: 7\r\n";
    assert_eq!(granted(two), Some(90));
    assert_eq!(granted("Contact: <sip:42@203.0.113.7:61000>;expires=50\r\n"), Some(50));
    assert_eq!(
        granted("Contact: <sip:a@192.0.2.8>;expires=5, <sip:b@192.0.2.9>;expires=5\r\nExpires: 70\r\n"),
        Some(70)
    );
    assert_eq!(granted("Contact: <sip:42@192.0.2.1>\r\nExpires: 70\r\n"), Some(70));
    assert_eq!(granted(""), None);
}

#[test]
fn min_expires_is_followed_at_once_and_remembered() {
    let mut bed = Bed::new();
    bed.next_register();
    bed.answer(423, "Min-Expires: 1800\r\n");
    let (register, waited) = bed.next_register();
    assert_eq!((register.expires_s, waited), (1_800, Duration::ZERO));
    bed.answer(200, "Expires: 1800\r\n");
    assert_eq!(bed.next_register().0.expires_s, 1_800);
}

#[test]
fn senseless_min_expires_is_a_refusal() {
    for headers in ["", "Min-Expires: 10\r\n", "Min-Expires: 4000000\r\n", "Min-Expires: x\r\n"] {
        let mut bed = Bed::new();
        bed.next_register();
        bed.answer(423, headers);
        assert_eq!(bed.state(), State::Refused, "{headers}");
    }
    let mut bed = Bed::new();
    for round in 1..=4 {
        bed.next_register();
        bed.answer(423, &format!("Min-Expires: {}\r\n", 1_000 * round));
    }
    assert_eq!(bed.state(), State::Refused, "it raises its price each time");
}

#[test]
fn refused_credentials_are_not_tried_again_soon() {
    for status in [401, 403, 404, 407, 603, 301] {
        let mut bed = Bed::new();
        bed.next_register();
        bed.answer(status, "");
        let said = bed.status();
        assert_eq!((said.state, said.sip_status), (State::Refused, status));
        assert!(said.detail.starts_with(&status.to_string()), "{}", said.detail);
        let (_, waited) = bed.next_register();
        assert!((300..=600).contains(&waited.as_secs()), "{waited:?}");
        bed.answer(status, "");
        let (_, waited) = bed.next_register();
        assert!((600..=1_200).contains(&waited.as_secs()), "{waited:?}");
    }
}

#[test]
fn network_failures_back_off_up_to_five_minutes() {
    let mut bed = Bed::new();
    let mut most = Duration::ZERO;
    for round in 0..20 {
        let (_, waited) = bed.next_register();
        assert!(round == 0 || waited >= S, "{waited:?}");
        most = most.max(waited);
        bed.registrant.handle_failure("no response in time", bed.now);
        assert_eq!(bed.state(), State::Unreachable);
    }
    assert!(Duration::from_secs(150) <= most && most <= RETRY_MAX, "{most:?}");
    bed.registered();
    bed.next_register();
    bed.registrant.handle_failure("no response in time", bed.now);
    let (_, waited) = bed.next_register();
    assert!(waited <= 2 * S, "the count began anew: {waited:?}");
}

#[test]
fn failing_refresh_leaves_the_registration_until_it_ends() {
    let mut bed = Bed::new();
    bed.registered();
    let until = bed.status().registered_until.unwrap();
    while bed.now < until {
        assert_eq!(bed.state(), State::Registered);
        bed.next_register();
        bed.registrant.handle_failure("no response in time", bed.now);
        assert_eq!(bed.status().detail, "no response in time");
    }
    assert_eq!(bed.state(), State::Unreachable);
}

#[test]
fn retry_after_is_followed_within_bounds() {
    let mut bed = Bed::new();
    bed.next_register();
    bed.answer(503, "Retry-After: 120\r\n");
    assert_eq!(bed.next_register().1, 120 * S);
    bed.answer(503, "Retry-After: 999999\r\n");
    assert_eq!(bed.next_register().1, REFUSED_MAX);
}

#[test]
fn lost_connection_is_made_again_at_once_and_a_flapping_one_later() {
    let mut bed = Bed::new();
    bed.registered();
    bed.pass(STABLE);
    bed.registrant.handle_flow_lost(bed.now);
    assert_eq!(bed.state(), State::Unreachable);
    let (_, waited) = bed.next_register();
    assert!(waited <= S, "{waited:?}");
    let mut waits = Vec::new();
    for _ in 0..6 {
        bed.answer(200, "Expires: 600\r\n");
        bed.registrant.handle_flow_lost(bed.now);
        waits.push(bed.next_register().1);
    }
    assert!(waits[0] >= S && waits[5] >= 30 * S, "{waits:?}");
}

#[test]
fn shutdown_unregisters_and_waits_no_longer_than_two_seconds() {
    let mut bed = Bed::new();
    bed.registered();
    bed.registrant.stop(bed.now);
    let (last, _) = bed.next_register();
    assert_eq!(last.expires_s, 0);
    assert!(!bed.registrant.is_gone());
    assert_eq!(bed.registrant.poll_timeout(), Some(bed.now + LEAVE_MAX));
    bed.tick();
    assert!(bed.registrant.is_gone());
    assert_eq!(bed.registrant.poll_action(), Some(Action::Release));
    assert_eq!((bed.registrant.poll_timeout(), bed.state()), (None, State::Stopped));
}

#[test]
fn shutdown_of_one_that_is_not_registered_is_at_once() {
    let mut bed = Bed::without_lease();
    bed.registrant.stop(bed.now);
    assert!(bed.registrant.is_gone() && bed.registrant.poll_action().is_none());
}

#[test]
fn store_that_does_not_answer_stops_it_when_the_lease_ends() {
    let mut bed = Bed::new();
    let asked_at = bed.now;
    bed.registered();
    loop {
        match bed.registrant.poll_action() {
            Some(Action::Renew) => bed.registrant.handle_lease(None, bed.now),
            Some(_) => panic!("it has nothing else to do"),
            None if bed.state() == State::Standby => break,
            None => bed.tick(),
        }
    }
    assert_eq!(bed.now, asked_at + LEASE_TTL);
}

/// Nodes that share one store, in virtual time: each a registrant, all for the same trunk, which always grants 60 s.
struct Nodes {
    clock: Arc<Mutex<Instant>>,
    store: EmbeddedContexts,
    nodes: Vec<(Registrant, Owner, Node)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Node {
    Alive,
    /// Its process is gone.
    Dead,
    /// It cannot reach the store.
    CutOff,
}

impl Nodes {
    fn new(count: u64) -> Self {
        let start_at = Instant::now();
        let clock = Arc::new(Mutex::new(start_at));
        let of_store = clock.clone();
        let store = EmbeddedContexts::with_clock(move || *of_store.lock().unwrap());
        let node = |seed| {
            let settings = Settings { expires_s: 60, call_id: format!("c{seed}").into(), seed, start_at };
            (Registrant::new(settings), Owner(Uuid::new_v4()), Node::Alive)
        };
        Self { clock, store, nodes: (0..count).map(node).collect() }
    }

    fn now(&self) -> Instant {
        *self.clock.lock().unwrap()
    }

    /// Who counts itself as registered.
    fn registered(&self) -> Vec<usize> {
        let now = self.now();
        let is = |(registrant, _, node): &(Registrant, Owner, Node)| {
            *node != Node::Dead && registrant.status(now).state == State::Registered
        };
        (0..self.nodes.len()).filter(|index| is(&self.nodes[*index])).collect()
    }

    /// Lets time pass; at each moment at most one is registered.
    async fn run(&mut self, stretch: Duration) {
        let end = self.now() + stretch;
        loop {
            let alive = self.nodes.iter().filter(|(_, _, node)| *node != Node::Dead);
            let Some(at) = alive.filter_map(|(registrant, ..)| registrant.poll_timeout()).min() else {
                break;
            };
            if at > end {
                break;
            }
            let now = self.now().max(at);
            *self.clock.lock().unwrap() = now;
            for (registrant, owner, node) in self.nodes.iter_mut().filter(|(_, _, node)| *node != Node::Dead)
            {
                registrant.handle_timeout(now);
                while let Some(action) = registrant.poll_action() {
                    let reached = *node != Node::CutOff;
                    match action {
                        Action::Acquire | Action::Renew if !reached => registrant.handle_lease(None, now),
                        Action::Acquire => {
                            let got = self.store.acquire("trunk", *owner, LEASE_TTL).await.unwrap();
                            registrant.handle_lease(Some(got), now);
                        }
                        Action::Renew => {
                            let got = self.store.renew("trunk", *owner, LEASE_TTL).await.unwrap();
                            registrant.handle_lease(Some(got), now);
                        }
                        Action::Release => self.store.release("trunk", *owner).await.unwrap(),
                        Action::Register(register) => {
                            let granted = response(200, register.cseq, "Expires: 60\r\n");
                            registrant.handle_response(&granted, now);
                        }
                    }
                }
            }
            assert!(self.registered().len() <= 1, "{:?}", self.registered());
        }
        *self.clock.lock().unwrap() = end;
    }
}

#[tokio::test]
async fn of_two_nodes_one_registers_and_the_other_takes_over_after_its_death() {
    let mut nodes = Nodes::new(2);
    nodes.run(600 * S).await;
    let [first] = nodes.registered()[..] else { panic!("one of two") };
    nodes.nodes[first].2 = Node::Dead;
    nodes.run(20 * S).await;
    assert!(nodes.registered().is_empty(), "the lease of the dead one lives on");
    nodes.run(21 * S).await;
    assert_eq!(nodes.registered(), [1 - first]);
}

#[tokio::test]
async fn node_that_stops_hands_over_within_ten_seconds() {
    let mut nodes = Nodes::new(3);
    nodes.run(100 * S).await;
    let [first] = nodes.registered()[..] else { panic!("one of three") };
    let now = nodes.now();
    nodes.nodes[first].0.stop(now);
    nodes.run(LEASE_PERIOD + LEAVE_MAX).await;
    let [second] = nodes.registered()[..] else { panic!("one of two") };
    assert_ne!(first, second);
}

#[tokio::test]
async fn node_that_is_cut_off_from_the_store_stops_before_another_begins() {
    let mut nodes = Nodes::new(2);
    nodes.run(100 * S).await;
    let [first] = nodes.registered()[..] else { panic!("one of two") };
    nodes.nodes[first].2 = Node::CutOff;
    nodes.run(60 * S).await;
    assert_eq!(nodes.registered(), [1 - first], "`run` has seen no moment with both");
    nodes.nodes[first].2 = Node::Alive;
    nodes.run(600 * S).await;
    assert_eq!(nodes.registered(), [1 - first]);
}
