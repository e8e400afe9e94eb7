//! The RTP ports of one core: even numbers of its share of the range, the odd one beside each reserved for RTCP.
//!
//! ```text
//!   free ──take, oldest first──▶ open ──give back──▶ resting 2 s ──▶ free
//!     └── busy (another program has it) ──▶ quarantined 60 s ──▶ free
//! ```
//!
//! A closed port rests, so that late packets of the call before are not heard in the next. No lock, no network.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::PortRange;

/// How long a closed port rests: longer than a carrier goes on sending after BYE.
pub const REST: Duration = Duration::from_secs(2);

/// How long a port that another program has is left alone.
pub const QUARANTINE: Duration = Duration::from_secs(60);

/// Busy ports that one session tries before it gives up.
pub const BUSY_PORTS_MAX: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct Ports {
    free: VecDeque<u16>,
    resting: VecDeque<(Instant, u16)>,
    quarantined: VecDeque<(Instant, u16)>,
    open: usize,
}

/// The share of core number `index` of `count`: a contiguous part of the range, even ports only.
pub fn share(range: PortRange, index: usize, count: usize) -> impl Iterator<Item = u16> {
    let first = u32::from(range.min).next_multiple_of(2);
    // The odd port beside the last pair must be in the range too.
    let pairs = (u32::from(range.max) + 1).saturating_sub(first) as usize / 2;
    let (from, to) = (pairs * index / count, pairs * (index + 1) / count);
    (from..to).map(move |pair| (first + 2 * pair as u32) as u16)
}

/// Which of `count` cores owns a port.
pub fn owner(range: PortRange, port: u16, count: usize) -> Option<usize> {
    (0..count).find(|&index| share(range, index, count).any(|own| own == port))
}

impl Ports {
    /// All of these are free.
    pub fn new(ports: impl IntoIterator<Item = u16>) -> Self {
        let free: VecDeque<u16> = ports.into_iter().collect();
        let count = free.len();
        Self {
            free,
            resting: VecDeque::with_capacity(count),
            quarantined: VecDeque::with_capacity(BUSY_PORTS_MAX),
            open: 0,
        }
    }

    fn wake(&mut self, now: Instant) {
        for waiting in [&mut self.resting, &mut self.quarantined] {
            while let Some((_, port)) = waiting.pop_front_if(|(until, _)| *until <= now) {
                self.free.push_back(port);
            }
        }
    }

    /// The port that has been free for longest.
    pub fn take(&mut self, now: Instant) -> Option<u16> {
        self.wake(now);
        let port = self.free.pop_front()?;
        self.open += 1;
        Some(port)
    }

    /// This very port, if it is free.
    pub fn take_this(&mut self, port: u16, now: Instant) -> bool {
        self.wake(now);
        let Some(at) = self.free.iter().position(|free| *free == port) else {
            return false;
        };
        self.free.remove(at);
        self.open += 1;
        true
    }

    /// A port was closed.
    pub fn give_back(&mut self, port: u16, now: Instant) {
        self.open -= 1;
        self.resting.push_back((now + REST, port));
    }

    /// A port that was taken is busy.
    pub fn quarantine(&mut self, port: u16, now: Instant) {
        self.open -= 1;
        self.quarantined.push_back((now + QUARANTINE, port));
    }

    /// Ports in use.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Ports that could be taken now, the resting ones included when their time is over.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Ports that were closed a moment ago.
    pub fn resting(&self) -> usize {
        self.resting.len()
    }

    /// Ports that another program has.
    pub fn quarantined(&self) -> usize {
        self.quarantined.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: PortRange = PortRange { min: 20_001, max: 20_013 };

    #[test]
    fn only_even_ports_whose_odd_neighbour_is_in_the_range_are_taken() {
        assert_eq!(share(RANGE, 0, 1).collect::<Vec<_>>(), [20_002, 20_004, 20_006, 20_008, 20_010, 20_012]);
        assert_eq!(share(PortRange { min: 4, max: 6 }, 0, 1).collect::<Vec<_>>(), [4]);
        assert_eq!(share(PortRange { min: 65_000, max: 65_535 }, 0, 1).last(), Some(65_534));
    }

    #[test]
    fn shares_of_the_cores_are_apart_and_make_up_the_range() {
        let all: Vec<u16> = (0..4).flat_map(|index| share(RANGE, index, 4)).collect();
        assert_eq!(all, share(RANGE, 0, 1).collect::<Vec<_>>());
        for index in 0..4 {
            for port in share(RANGE, index, 4) {
                assert_eq!(owner(RANGE, port, 4), Some(index));
            }
        }
        assert_eq!(owner(RANGE, 20_003, 4), None);
    }

    #[test]
    fn a_closed_port_rests_and_the_oldest_free_one_comes_first() {
        let now = Instant::now();
        let mut ports = Ports::new([2, 4]);
        assert_eq!(ports.take(now), Some(2));
        ports.give_back(2, now);
        assert_eq!(ports.take(now), Some(4));
        assert_eq!(ports.take(now + REST - Duration::from_millis(1)), None);
        ports.give_back(4, now + Duration::from_secs(1));
        assert_eq!(ports.take(now + REST), Some(2));
        assert_eq!(ports.take(now + REST), None);
        assert_eq!(ports.take(now + REST + Duration::from_secs(1)), Some(4));
    }

    #[test]
    fn a_busy_port_is_left_alone_for_a_while() {
        let now = Instant::now();
        let mut ports = Ports::new([2]);
        ports.take(now);
        ports.quarantine(2, now);
        assert_eq!(ports.take(now + REST), None);
        assert_eq!(ports.take(now + QUARANTINE), Some(2));
    }

    #[test]
    fn a_leased_port_is_taken_if_it_is_free() {
        let now = Instant::now();
        let mut ports = Ports::new([2, 4, 6]);
        assert!(ports.take_this(4, now));
        assert!(!ports.take_this(4, now));
        assert!(!ports.take_this(5, now));
        assert_eq!(ports.open(), 1);
    }
}
