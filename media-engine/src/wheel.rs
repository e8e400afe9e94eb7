//! When each session is due: a wheel of 1 ms slots on an absolute schedule, and how sessions are spread over the ptime.
//!
//! ```text
//!   tick:   … 41   42   43   44   45 …        each slot is a list of sessions, linked through one table
//!              │    ●    │    ●●   │
//!              └─ due ─┘   └ next_due: the first slot that is not empty (a bitmap says which)
//! ```
//!
//! A session has at most one place. Deadlines beyond the wheel wait in its last slot and are placed anew when it comes
//! round. Nothing is allocated after the wheel was made.
//!
//! [`Phases`] spreads playout: a session that starts gets the millisecond of the ptime that has the least sessions, so
//! each turn carries a twentieth of the calls instead of all of them.

use std::time::{Duration, Instant};

use tandem_audio::format::Ptime;

/// Slots of 1 ms. A playout is at most 60 ms ahead; what waits for seconds comes round once a second.
const SLOTS: usize = 1_024;

/// One turn of the wheel.
const TICK: Duration = Duration::from_millis(1);

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
    slot: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Wheel {
    origin: Instant,
    /// The next tick to be looked at.
    at: u64,
    heads: Box<[u32]>,
    occupied: [u64; SLOTS / 64],
    links: Vec<Link>,
    len: usize,
}

impl Wheel {
    /// A wheel for entries numbered below `capacity`.
    pub fn new(origin: Instant, capacity: usize) -> Self {
        Self {
            origin,
            at: 0,
            heads: vec![NONE; SLOTS].into_boxed_slice(),
            occupied: [0; SLOTS / 64],
            links: vec![Link { next: NONE, previous: NONE, slot: NONE }; capacity],
            len: 0,
        }
    }

    /// The instant of a tick.
    pub fn instant(&self, tick: u64) -> Instant {
        self.origin + Duration::from_millis(tick)
    }

    /// The last tick that has come.
    pub fn tick(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.origin).as_millis() as u64
    }

    /// Places an entry, or moves it. It is never due before `deadline`.
    pub fn place(&mut self, entry: u32, deadline: Instant) {
        self.remove(entry);
        let since = deadline.saturating_duration_since(self.origin);
        // 64 bits hold five centuries.
        let tick = (since.as_nanos() as u64).div_ceil(TICK.as_nanos() as u64);
        let tick = tick.clamp(self.at, self.at + SLOTS as u64 - 1);
        let slot = (tick % SLOTS as u64) as usize;
        let head = self.heads[slot];
        self.links[entry as usize] = Link { next: head, previous: NONE, slot: slot as u32 };
        if head != NONE {
            self.links[head as usize].previous = entry;
        }
        self.heads[slot] = entry;
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.len += 1;
    }

    /// Takes an entry out, if it is in.
    pub fn remove(&mut self, entry: u32) {
        let Link { next, previous, slot } = self.links[entry as usize];
        if slot == NONE {
            return;
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        match previous {
            NONE => self.heads[slot as usize] = next,
            previous => self.links[previous as usize].next = next,
        }
        if self.heads[slot as usize] == NONE {
            self.occupied[slot as usize / 64] &= !(1 << (slot % 64));
        }
        self.links[entry as usize].slot = NONE;
        self.len -= 1;
    }

    /// Moves every entry that is due into `due`. Entries placed from now on are due at the next tick at the earliest.
    pub fn advance(&mut self, now: Instant, due: &mut Vec<u32>) {
        let now = self.tick(now);
        while self.at <= now && self.len > 0 {
            let slot = (self.at % SLOTS as u64) as usize;
            while self.heads[slot] != NONE {
                let entry = self.heads[slot];
                self.remove(entry);
                due.push(entry);
            }
            self.at += 1;
        }
        self.at = self.at.max(now + 1);
    }

    /// When the next entry is due.
    pub fn next_due(&self) -> Option<Instant> {
        if self.len == 0 {
            return None;
        }
        let start = (self.at % SLOTS as u64) as usize;
        // The word that the search starts in is looked at twice: its later slots first, its earlier ones last.
        for step in 0..=SLOTS / 64 {
            let word = (start / 64 + step) % (SLOTS / 64);
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= u64::MAX << (start % 64);
            }
            if bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (slot + SLOTS - start) % SLOTS;
                return Some(self.instant(self.at + ahead as u64));
            }
        }
        None
    }
}

/// Milliseconds after which every ptime of 10, 20, 30, 40 and 60 ms repeats.
const CYCLE: u64 = 120;

/// The first packet leaves at the latest so many ticks after the start, whatever the ptime.
const FIRST_PACKET_TICKS: u64 = 20;

/// A session's place in the ptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// The tick of its first packet.
    pub first: u64,
    ptime_ms: u64,
}

/// How many sessions send in each millisecond.
#[derive(Debug)]
pub struct Phases {
    load: [u32; CYCLE as usize],
}

impl Default for Phases {
    fn default() -> Self {
        Self { load: [0; CYCLE as usize] }
    }
}

impl Phases {
    /// Gives a session that starts after tick `now` the least loaded millisecond; of equals the soonest.
    pub fn assign(&mut self, now: u64, ptime: Ptime) -> Phase {
        let ptime_ms = u64::from(ptime.as_ms());
        let candidates = now + 1..=now + ptime_ms.min(FIRST_PACKET_TICKS);
        let load = |first: &u64| -> u32 { ticks(*first, ptime_ms).map(|at| self.load[at]).sum() };
        let first = candidates.min_by_key(load).unwrap_or(now + 1);
        self.occupy(first, ptime)
    }

    /// Gives a stream that goes on the millisecond that it has already, however loaded.
    pub fn occupy(&mut self, first: u64, ptime: Ptime) -> Phase {
        let ptime_ms = u64::from(ptime.as_ms());
        for at in ticks(first, ptime_ms) {
            self.load[at] += 1;
        }
        Phase { first, ptime_ms }
    }

    /// The session is over, or gets another place.
    pub fn release(&mut self, phase: Phase) {
        for at in ticks(phase.first, phase.ptime_ms) {
            self.load[at] = self.load[at].saturating_sub(1);
        }
    }

    /// The fullest and the emptiest millisecond.
    pub fn extremes(&self) -> (u32, u32) {
        let max = self.load.iter().max().copied().unwrap_or(0);
        (max, self.load.iter().min().copied().unwrap_or(0))
    }
}

fn ticks(first: u64, ptime_ms: u64) -> impl Iterator<Item = usize> {
    (0..CYCLE / ptime_ms).map(move |n| ((first + n * ptime_ms) % CYCLE) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_come_at_their_millisecond_and_never_early() {
        let t0 = Instant::now();
        let mut wheel = Wheel::new(t0, 8);
        wheel.place(1, t0 + Duration::from_micros(2_100));
        wheel.place(2, t0 + Duration::from_millis(5));
        assert_eq!(wheel.next_due(), Some(t0 + Duration::from_millis(3)));
        let mut due = Vec::new();
        wheel.advance(t0 + Duration::from_micros(2_900), &mut due);
        assert!(due.is_empty());
        wheel.advance(t0 + Duration::from_millis(3), &mut due);
        assert_eq!(due, [1]);
        assert_eq!(wheel.next_due(), Some(t0 + Duration::from_millis(5)));
    }

    #[test]
    fn an_entry_placed_in_the_past_is_due_at_the_next_tick() {
        let t0 = Instant::now();
        let mut wheel = Wheel::new(t0, 2);
        let mut due = Vec::new();
        wheel.advance(t0 + Duration::from_millis(10), &mut due);
        wheel.place(0, t0);
        wheel.advance(t0 + Duration::from_millis(10), &mut due);
        assert!(due.is_empty());
        wheel.advance(t0 + Duration::from_millis(11), &mut due);
        assert_eq!(due, [0]);
    }

    #[test]
    fn a_far_deadline_comes_round_and_can_be_placed_anew() {
        let t0 = Instant::now();
        let mut wheel = Wheel::new(t0, 1);
        wheel.place(0, t0 + Duration::from_secs(10));
        let mut due = Vec::new();
        wheel.advance(t0 + Duration::from_millis(1_023), &mut due);
        assert_eq!(due, [0]);
    }

    #[test]
    fn a_long_idle_wheel_goes_on_from_now() {
        let t0 = Instant::now();
        let mut wheel = Wheel::new(t0, 1);
        let mut due = Vec::new();
        let later = t0 + Duration::from_secs(3_600);
        wheel.advance(later, &mut due);
        wheel.place(0, later + Duration::from_millis(7));
        assert_eq!(wheel.next_due(), Some(later + Duration::from_millis(7)));
    }

    #[test]
    fn a_thousand_sessions_are_spread_evenly_over_the_ptime() {
        let mut phases = Phases::default();
        let placed: Vec<Phase> = (0..1_000).map(|n| phases.assign(n * 3, Ptime::MS_20)).collect();
        assert_eq!(phases.extremes(), (50, 50));
        for phase in placed {
            phases.release(phase);
        }
        assert_eq!(phases.extremes(), (0, 0));
    }

    #[test]
    fn every_ptime_finds_a_place_within_twenty_milliseconds() {
        for ms in 10..=60 {
            let Some(ptime) = Ptime::from_ms(ms) else { continue };
            let phase = Phases::default().assign(1_000, ptime);
            assert!((1_001..=1_020).contains(&phase.first), "{ptime}");
        }
    }

    proptest! {
        #[test]
        fn every_entry_comes_once_and_in_its_time(
            steps in proptest::collection::vec((0u32..50, 0u64..1_500, 0u64..40), 1..200)
        ) {
            let t0 = Instant::now();
            let mut wheel = Wheel::new(t0, 50);
            // With each deadline, whether it lay beyond the wheel and may come early.
            let mut wanted: [Option<(Instant, bool)>; 50] = [None; 50];
            let mut now = t0;
            let mut due = Vec::new();
            for (entry, ahead, pass) in steps {
                let deadline = now + Duration::from_micros(ahead * 700);
                wheel.place(entry, deadline);
                wanted[entry as usize] = Some((deadline, ahead * 700 / 1_000 >= SLOTS as u64 - 2));
                now += Duration::from_millis(pass);
                due.clear();
                wheel.advance(now, &mut due);
                for entry in &due {
                    let taken = wanted[*entry as usize].take();
                    prop_assert!(taken.is_some_and(|(deadline, beyond)| beyond || deadline <= now));
                }
                for (left, _) in wanted.iter().flatten() {
                    prop_assert!(*left + Duration::from_millis(1) > now);
                }
                if let Some(next) = wheel.next_due() {
                    prop_assert!(next > now);
                }
            }
            prop_assert_eq!(wheel.len, wanted.iter().flatten().count());
        }
    }
}
