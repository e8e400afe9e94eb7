//! A network in a drawer: datagrams that are delayed, lost and overtaken as a seed decides, and the only clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A datagram on its way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram {
    /// When it arrives.
    pub at: Instant,
    /// Order of sending, for those that arrive at one instant.
    number: u64,
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// The network.
#[derive(Debug)]
pub struct Network {
    now: Instant,
    start: Instant,
    rng: StdRng,
    loss_percent: u32,
    delay: Duration,
    jitter: Duration,
    sent: u64,
    lost: u64,
    flying: BinaryHeap<Reverse<Datagram>>,
}

impl Network {
    /// A perfect network with a delay of 1 ms; the seed decides everything that is random. `TANDEM_SIM_SEED` replaces
    /// it, to look for trouble elsewhere or to replay it.
    pub fn seeded(seed: u64) -> Self {
        let given = std::env::var("TANDEM_SIM_SEED").ok().and_then(|text| text.parse().ok());
        // The one look at a real clock: where virtual time begins does not matter.
        let now = Instant::now();
        Self {
            now,
            start: now,
            rng: StdRng::seed_from_u64(given.unwrap_or(seed)),
            loss_percent: 0,
            delay: Duration::from_millis(1),
            jitter: Duration::ZERO,
            sent: 0,
            lost: 0,
            flying: BinaryHeap::new(),
        }
    }

    /// Each datagram is lost with this probability.
    pub fn loss_percent(mut self, percent: u32) -> Self {
        self.loss_percent = percent;
        self
    }

    /// Each datagram takes so long, and up to `jitter` more: later ones may overtake it.
    pub fn delay(mut self, delay: Duration, jitter: Duration) -> Self {
        (self.delay, self.jitter) = (delay, jitter);
        self
    }

    /// The present.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.now.saturating_duration_since(self.start)
    }

    /// Datagrams that were lost so far.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// A random number from the seed, for those who live in this network.
    pub fn random(&mut self) -> u64 {
        self.rng.random()
    }

    /// Sends a datagram.
    pub fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.sent += 1;
        if self.rng.random_range(0..100) < self.loss_percent {
            self.lost += 1;
            return;
        }
        let jitter_us = self.jitter.as_micros() as u64;
        let late =
            Duration::from_micros(if jitter_us == 0 { 0 } else { self.rng.random_range(0..jitter_us) });
        let at = self.now + self.delay + late;
        self.flying.push(Reverse(Datagram { at, number: self.sent, from, to, bytes }));
    }

    /// When the next datagram arrives.
    pub fn next_arrival(&self) -> Option<Instant> {
        self.flying.peek().map(|Reverse(datagram)| datagram.at)
    }

    /// Turns the clock forward, never back.
    pub fn advance(&mut self, to: Instant) {
        self.now = self.now.max(to);
    }

    /// The next datagram that has arrived by now.
    pub fn receive(&mut self) -> Option<Datagram> {
        if self.next_arrival()? > self.now {
            return None;
        }
        self.flying.pop().map(|Reverse(datagram)| datagram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seed: u64) -> Vec<(Duration, Vec<u8>)> {
        let mut network =
            Network::seeded(seed).loss_percent(20).delay(Duration::from_millis(5), Duration::from_millis(30));
        let address = SocketAddr::from(([192, 0, 2, 1], 1));
        for n in 0..50_u8 {
            network.send(address, address, vec![n]);
        }
        let mut arrived = Vec::new();
        while let Some(at) = network.next_arrival() {
            network.advance(at);
            while let Some(datagram) = network.receive() {
                arrived.push((network.elapsed(), datagram.bytes));
            }
        }
        arrived
    }

    #[test]
    fn one_seed_is_one_story() {
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn datagrams_are_lost_and_overtaken() {
        let arrived = run(7);
        assert!(arrived.len() < 50 && arrived.len() > 25, "{}", arrived.len());
        assert!(arrived.windows(2).any(|pair| pair[0].1 > pair[1].1), "nobody was overtaken");
        assert!(arrived.windows(2).all(|pair| pair[0].0 <= pair[1].0), "time went back");
    }
}
