//! Our registrant against our registrar, over two endpoints and a bad line, in virtual time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_sip::digest::{Algorithm, Challenger};
use tandem_sip::{Endpoint, EndpointConfig, Event, Flow, Method, RequestHandle, Uri};

use super::auth::Gate;
use super::binding::Lifetimes;
use super::driver::register_request;
use super::registrant::{Action, Registrant, Settings, State};
use super::registrar::Registrar;
use super::store::EmbeddedBindings;
use crate::trunk::{Phone, Registration, SipCredential, Trunk, Trunks};

const NOW_MS: i64 = 1_800_000_000_000;
const DELAY: Duration = Duration::from_millis(20);

struct Side {
    endpoint: Endpoint,
    address: SocketAddr,
}

/// A PBX with one phone account, and a node that registers there.
struct Bed {
    start: Instant,
    now: Instant,
    pbx: Side,
    node: Side,
    registrar: Registrar<EmbeddedBindings>,
    gate: Gate,
    registrant: Registrant,
    trunk: Trunk,
    under_way: Option<RequestHandle>,
    in_flight: BTreeMap<(Instant, u64), (bool, Vec<u8>)>,
    sent: u64,
    loss_percent: u64,
    is_cut: bool,
}

impl Bed {
    fn new(password: &str, expires_s: u64, algorithm: Algorithm) -> Self {
        let now = Instant::now();
        let side = |host: u8, seed| {
            let config = EndpointConfig {
                seed,
                accepted_methods: vec![Method::Register],
                ..EndpointConfig::default()
            };
            Side { endpoint: Endpoint::new(config), address: ([192, 0, 2, host], 5060).into() }
        };
        let (pbx, node) = (side(1, 1), side(2, 2));
        let phone = Phone { user: "42".into(), password: "secret".into(), ..Phone::default() };
        let challenger = Challenger::new("pbx", b"some secret").algorithms(&[algorithm]);
        let trunk = Trunk {
            name: "pbx".into(),
            credential: SipCredential {
                sip_uri: Uri::parse(&format!("sip:42@{}", pbx.address)).ok(),
                sip_password: Some(password.into()),
                ..SipCredential::default()
            },
            registration: Registration { is_wanted: true, ..Registration::default() },
            ..Trunk::default()
        };
        let settings = Settings { expires_s: expires_s as u32, call_id: "c1".into(), seed: 1, start_at: now };
        Self {
            start: now,
            now,
            pbx,
            node,
            registrar: Registrar::new(Arc::default(), Lifetimes::default()),
            gate: Gate::new(challenger, Trunks::new([], [phone])),
            registrant: Registrant::new(settings),
            trunk,
            under_way: None,
            in_flight: BTreeMap::new(),
            sent: 0,
            loss_percent: 0,
            is_cut: false,
        }
    }

    fn now_ms(&self) -> i64 {
        NOW_MS + (self.now - self.start).as_millis() as i64
    }

    async fn contacts(&self) -> usize {
        self.registrar.locator().contacts("42", self.now_ms()).await.unwrap().len()
    }

    fn state(&self) -> State {
        self.registrant.status(self.now).state
    }

    fn flow(&self, of_pbx: bool) -> Flow {
        let (local, remote) = if of_pbx {
            (self.pbx.address, self.node.address)
        } else {
            (self.node.address, self.pbx.address)
        };
        Flow::udp(local, remote)
    }

    /// Carries out all that is wanted now.
    async fn drain(&mut self) {
        loop {
            while let Some(action) = self.registrant.poll_action() {
                match action {
                    Action::Acquire | Action::Renew => self.registrant.handle_lease(Some(true), self.now),
                    Action::Release => {}
                    Action::Register(register) => {
                        let (mut request, _) = register_request(&self.trunk, &register).unwrap();
                        request.flow = self.flow(false);
                        self.under_way = Some(self.node.endpoint.request(request, self.now).unwrap());
                    }
                }
            }
            if let Some(event) = self.pbx.endpoint.poll_event() {
                if let Event::Request { handle, request, flow, .. } = event {
                    let now_ms = self.now_ms();
                    let reply = match self.gate.admit(&request, flow.remote.ip(), now_ms as u64 / 1_000) {
                        Ok(phone) => {
                            let user = phone.user.clone();
                            let done = self
                                .registrar
                                .register(&user, phone.contacts_max, &request, flow, now_ms)
                                .await;
                            done.reply
                        }
                        Err(refused) => refused.reply,
                    };
                    self.pbx.endpoint.reply(handle, reply, self.now).unwrap();
                }
                continue;
            }
            if let Some(event) = self.node.endpoint.poll_event() {
                if let Event::Response { handle, result, .. } = event
                    && self.under_way == Some(handle)
                {
                    match result {
                        Ok(response) => self.registrant.handle_response(&response, self.now),
                        Err(why) => self.registrant.handle_failure(&why.to_string(), self.now),
                    }
                }
                continue;
            }
            break;
        }
        for of_pbx in [true, false] {
            let side = if of_pbx { &mut self.pbx } else { &mut self.node };
            while let Some(transmit) = side.endpoint.poll_transmit() {
                self.sent += 1;
                // A line that loses by a fixed pattern without a period of its own.
                let is_lost =
                    self.sent.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33 & 127 < self.loss_percent * 128 / 100;
                if !is_lost && !self.is_cut {
                    self.in_flight.insert((self.now + DELAY, self.sent), (!of_pbx, transmit.bytes));
                }
            }
        }
    }

    async fn run(&mut self, stretch: Duration) {
        let end = self.now + stretch;
        loop {
            self.drain().await;
            let next = [
                self.in_flight.keys().next().map(|(at, _)| *at),
                self.pbx.endpoint.poll_timeout(),
                self.node.endpoint.poll_timeout(),
                self.registrant.poll_timeout(),
            ];
            let Some(at) = next.into_iter().flatten().min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            while let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let (to_pbx, bytes) = entry.remove();
                let flow = self.flow(to_pbx);
                let side = if to_pbx { &mut self.pbx } else { &mut self.node };
                side.endpoint.handle_input(&bytes, flow, self.now);
            }
            self.pbx.endpoint.handle_timeout(self.now);
            self.node.endpoint.handle_timeout(self.now);
            self.registrant.handle_timeout(self.now);
        }
        self.now = end;
    }
}

#[tokio::test]
async fn node_stays_registered_for_a_day_over_a_line_that_loses_every_fifth_packet() {
    for algorithm in [Algorithm::Sha256, Algorithm::Md5] {
        let mut bed = Bed::new("secret", 600, algorithm);
        bed.loss_percent = 20;
        bed.run(Duration::from_secs(60)).await;
        for minute in 0..24 * 60 {
            assert_eq!((bed.state(), bed.contacts().await), (State::Registered, 1), "after {minute} minutes");
            bed.run(Duration::from_secs(60)).await;
        }
        assert_eq!(bed.node.endpoint.transaction_count(), 0);
    }
}

#[tokio::test]
async fn wrong_password_is_a_refusal_with_a_long_wait() {
    let mut bed = Bed::new("wrong", 600, Algorithm::Sha256);
    bed.run(Duration::from_secs(10)).await;
    let status = bed.registrant.status(bed.now);
    assert_eq!((status.state, status.sip_status, bed.contacts().await), (State::Refused, 401, 0));
    assert!(status.next_at.unwrap() - bed.now > Duration::from_secs(200));
}

#[tokio::test]
async fn registrar_that_grants_no_less_than_a_minute_gets_a_minute() {
    let mut bed = Bed::new("secret", 20, Algorithm::Sha256);
    bed.run(Duration::from_secs(300)).await;
    assert_eq!((bed.state(), bed.contacts().await), (State::Registered, 1));
}

#[tokio::test]
async fn outage_is_seen_and_healed() {
    let mut bed = Bed::new("secret", 120, Algorithm::Sha256);
    bed.run(Duration::from_secs(10)).await;
    bed.is_cut = true;
    bed.run(Duration::from_secs(300)).await;
    assert_eq!((bed.state(), bed.contacts().await), (State::Unreachable, 0));
    bed.is_cut = false;
    bed.run(Duration::from_secs(330)).await;
    assert_eq!((bed.state(), bed.contacts().await), (State::Registered, 1));
}

#[tokio::test]
async fn shutdown_takes_the_contact_away() {
    let mut bed = Bed::new("secret", 600, Algorithm::Sha256);
    bed.run(Duration::from_secs(10)).await;
    assert_eq!(bed.contacts().await, 1);
    let now = bed.now;
    bed.registrant.stop(now);
    bed.run(Duration::from_secs(1)).await;
    assert_eq!((bed.registrant.is_gone(), bed.contacts().await), (true, 0));
}
