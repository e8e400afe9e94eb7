//! A seeded network in virtual time: endpoints joined by links that lose, delay, reorder and double datagrams.

// Each test binary uses its own part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tandem_sip::*;

/// What a datagram suffers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Link {
    pub(crate) loss_percent: u64,
    pub(crate) duplicate_percent: u64,
    pub(crate) delay_ms: u64,
    /// Up to so much more: reordering.
    pub(crate) jitter_ms: u64,
}

/// One endpoint with what it has said so far.
pub(crate) struct Agent {
    pub(crate) endpoint: Endpoint,
    pub(crate) addr: SocketAddr,
    pub(crate) events: Vec<Event>,
}

pub(crate) struct Network {
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) link: Link,
    pub(crate) transport: Transport,
    pub(crate) agents: Vec<Agent>,
    /// First lines of all that was sent, with sender and virtual milliseconds.
    pub(crate) log: Vec<(u64, usize, String)>,
    /// So many re-INVITEs of a hundred are followed by a CANCEL, which no endpoint of ours sends by itself.
    pub(crate) cancelled_percent: u64,
    /// Messages that the link eats: see `Network::eat`.
    eaten: Vec<(String, usize)>,
    in_flight: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sequence: u64,
    random: u64,
}

#[allow(clippy::disallowed_methods)]
fn some_instant() -> Instant {
    Instant::now()
}

pub(crate) fn addr(index: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, index as u8 + 1], 5060))
}

/// The CANCEL of a re-INVITE; `None`: it is none.
fn cancel_of_reinvite(bytes: &[u8]) -> Option<Vec<u8>> {
    let head = std::str::from_utf8(bytes).ok()?.split("\r\n\r\n").next()?;
    let rest = head.strip_prefix("INVITE ")?;
    let is_in_dialog = head.lines().any(|line| line.starts_with("To: ") && line.contains(";tag="));
    let kept = rest.lines().skip(1).filter(|line| {
        ["Via: ", "From: ", "To: ", "Call-ID: ", "Max-Forwards: ", "CSeq: "]
            .iter()
            .any(|name| line.starts_with(name))
    });
    let kept: String = kept.map(|line| format!("{}\r\n", line.replace(" INVITE", " CANCEL"))).collect();
    let line = rest.lines().next()?;
    is_in_dialog.then(|| format!("CANCEL {line}\r\n{kept}Content-Length: 0\r\n\r\n").into())
}

impl Network {
    pub(crate) fn seeded(seed: u64, agents: usize) -> Network {
        Network::with_config(seed, agents, |_| {})
    }

    pub(crate) fn with_config(seed: u64, agents: usize, change: impl Fn(&mut EndpointConfig)) -> Network {
        let now = some_instant();
        let agents = (0..agents)
            .map(|index| {
                let mut config =
                    EndpointConfig { seed: seed * 100 + index as u64, ..EndpointConfig::default() };
                change(&mut config);
                Agent { endpoint: Endpoint::new(config), addr: addr(index), events: Vec::new() }
            })
            .collect();
        Network {
            now,
            start: now,
            link: Link { delay_ms: 10, ..Link::default() },
            transport: Transport::Udp,
            agents,
            log: Vec::new(),
            cancelled_percent: 0,
            eaten: Vec::new(),
            in_flight: BTreeMap::new(),
            sequence: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 11
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.next_random() % 100 < percent
    }

    /// The next `count` messages whose first line begins so are lost.
    pub(crate) fn eat(&mut self, start: &str, count: usize) {
        self.eaten.push((start.to_owned(), count));
    }

    pub(crate) fn flow(&self, from: usize, to: usize) -> Flow {
        self.flow_between(addr(from), addr(to))
    }

    fn flow_between(&self, local: SocketAddr, remote: SocketAddr) -> Flow {
        let connection = (self.transport != Transport::Udp).then_some(ConnectionId(1));
        Flow { transport: self.transport, local, remote, connection }
    }

    pub(crate) fn endpoint(&mut self, index: usize) -> &mut Endpoint {
        &mut self.agents[index].endpoint
    }

    /// An INVITE from one agent to another, with an offer.
    pub(crate) fn invite(&self, from: usize, to: usize) -> InviteRequest {
        let target = Uri::sip(Some("echo"), addr(to));
        let mut invite =
            InviteRequest::new(target, NameAddr::new(Uri::sip(Some("me"), addr(from))), self.flow(from, to));
        invite.body = Some(Body::sdp("offer"));
        invite
    }

    /// Empties the endpoints (the drain contract).
    pub(crate) fn drain(&mut self) {
        for index in 0..self.agents.len() {
            while let Some(transmit) = self.agents[index].endpoint.poll_transmit() {
                let first =
                    String::from_utf8_lossy(&transmit.bytes).lines().next().unwrap_or_default().to_owned();
                let at_ms = (self.now - self.start).as_millis() as u64;
                let eaten = self
                    .eaten
                    .iter_mut()
                    .find(|(start, count)| *count > 0 && first.starts_with(start.as_str()));
                self.log.push((at_ms, index, first.clone()));
                if let Some((_, count)) = eaten {
                    *count -= 1;
                    continue;
                }
                let (from, to) = (self.agents[index].addr, transmit.flow.remote);
                if let Some(cancel) = cancel_of_reinvite(&transmit.bytes)
                    && self.percent(self.cancelled_percent)
                {
                    self.send(from, to, cancel);
                }
                if self.percent(self.link.loss_percent) {
                    continue;
                }
                self.send(from, to, transmit.bytes.clone());
                if self.percent(self.link.duplicate_percent) {
                    self.send(from, to, transmit.bytes);
                }
            }
            while let Some(event) = self.agents[index].endpoint.poll_event() {
                self.agents[index].events.push(event);
            }
        }
    }

    /// Puts bytes on the wire.
    pub(crate) fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let jitter = if self.link.jitter_ms == 0 { 0 } else { self.next_random() % self.link.jitter_ms };
        let at = self.now + Duration::from_millis(self.link.delay_ms + jitter);
        self.sequence += 1;
        self.in_flight.insert((at, self.sequence), (from, to, bytes));
    }

    /// One step: the next arrival or deadline. False if nothing is to come.
    pub(crate) fn step(&mut self) -> bool {
        self.drain();
        let arrival = self.in_flight.keys().next().map(|(at, _)| *at);
        let deadline = self.agents.iter().filter_map(|agent| agent.endpoint.poll_timeout()).min();
        let Some(at) = arrival.into_iter().chain(deadline).min() else { return false };
        self.now = self.now.max(at);
        while let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (from, to, bytes) = entry.remove();
            let flow = self.flow_between(to, from);
            let now = self.now;
            if let Some(agent) = self.agents.iter_mut().find(|agent| agent.addr == to) {
                agent.endpoint.handle_input(&bytes, flow, now);
            }
        }
        let now = self.now;
        for agent in &mut self.agents {
            agent.endpoint.handle_timeout(now);
        }
        self.drain();
        true
    }

    /// Runs until an agent has said something that fits; panics after ten virtual minutes.
    pub(crate) fn until<T>(&mut self, index: usize, find: impl Fn(&Event) -> Option<T>) -> T {
        let end = self.now + Duration::from_secs(600);
        loop {
            self.drain();
            if let Some(at) = self.agents[index].events.iter().position(|event| find(event).is_some()) {
                let event = self.agents[index].events.remove(at);
                return find(&event).expect("it fitted a moment ago");
            }
            assert!(self.step() && self.now < end, "no such event at agent {index}; log: {:#?}", self.log);
        }
    }

    /// Runs for a stretch of virtual time.
    pub(crate) fn run(&mut self, stretch: Duration) {
        let end = self.now + stretch;
        loop {
            self.drain();
            let arrival = self.in_flight.keys().next().map(|(at, _)| *at);
            let deadline = self.agents.iter().filter_map(|agent| agent.endpoint.poll_timeout()).min();
            match arrival.into_iter().chain(deadline).min() {
                Some(at) if at <= end => assert!(self.step()),
                _ => break,
            }
        }
        self.now = end;
    }

    /// Runs until nothing is to come, and checks that nothing is left in memory.
    pub(crate) fn settle(&mut self) {
        while self.step() {
            assert!(self.now - self.start < Duration::from_secs(3600), "it never ends: {:#?}", self.log);
        }
        for agent in &self.agents {
            assert_eq!(
                (agent.endpoint.call_count(), agent.endpoint.transaction_count()),
                (0, 0),
                "{:#?}",
                self.log
            );
        }
    }

    /// How many messages with such a first line an agent has sent.
    pub(crate) fn sent(&self, index: usize, start: &str) -> usize {
        self.log.iter().filter(|(_, sender, first)| *sender == index && first.starts_with(start)).count()
    }

    // --- the words of the tests ---

    pub(crate) fn incoming(&mut self, index: usize) -> CallHandle {
        self.until(index, |event| match event {
            Event::IncomingInvite { call, .. } => Some(*call),
            _ => None,
        })
    }

    pub(crate) fn answered(&mut self, index: usize) -> CallHandle {
        self.until(index, |event| match event {
            Event::Answered { call, .. } => Some(*call),
            _ => None,
        })
    }

    pub(crate) fn acknowledged(&mut self, index: usize) -> Vec<u8> {
        self.until(index, |event| match event {
            Event::Acknowledged { ack, .. } => Some(ack.body.clone()),
            _ => None,
        })
    }

    pub(crate) fn ended(&mut self, index: usize) -> EndReason {
        self.until(index, |event| match event {
            Event::Ended { why, .. } => Some(why.clone()),
            _ => None,
        })
    }

    /// An agent hangs up.
    pub(crate) fn bye(&mut self, index: usize, call: CallHandle) {
        let now = self.now;
        self.endpoint(index).bye(call, Headers::new(), now).unwrap();
    }

    /// A call from agent 0 to agent 1 that is up: both handles.
    pub(crate) fn call(&mut self) -> (CallHandle, CallHandle) {
        let invite = self.invite(0, 1);
        let now = self.now;
        let caller = self.endpoint(0).invite(invite, now).unwrap();
        let callee = self.incoming(1);
        let now = self.now;
        self.endpoint(1).ring(callee, now).unwrap();
        self.endpoint(1).answer(callee, Body::sdp("answer"), now).unwrap();
        self.answered(0);
        self.acknowledged(1);
        (caller, callee)
    }
}
