//! Accounting of one received RTP stream by sequence number (RFC 3550 A.1, A.3): lost, duplicated, reordered.
//!
//! This is on purpose the bench's own and not tandem-rtp's receiver: the instrument must not share a mistake with what
//! it measures.
//!
//! Lost = numbers between the lowest and the highest seen that never came. A loss before the first or after the last
//! packet cannot be seen by sequence number; the count of packets in the measured window ([`crate::verdict`]) sees it.

/// How far back a late packet is still told from a duplicate: 1 024 packets, 20 s of a call. Older ones are `stale`.
const HISTORY: u64 = 1_024;

/// Words of the history's bit field.
const WORDS: usize = (HISTORY / 64) as usize;

/// Where extended numbers start, so that packets before the first one seen still have a number above zero.
const BASE: u64 = 1 << 20;

/// What came of one stream.
#[derive(Debug, Clone)]
pub struct SequenceAccount {
    seen: [u64; WORDS],
    lowest: u64,
    highest: Option<u64>,
    counts: SequenceCounts,
}

/// The counts of one stream or of many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SequenceCounts {
    /// Different packets received.
    pub received: u64,
    /// Packets that never came.
    pub lost: u64,
    /// Packets that came again.
    pub duplicated: u64,
    /// Packets that came after a later one.
    pub reordered: u64,
    /// Packets too old to be accounted.
    pub stale: u64,
}

impl SequenceCounts {
    /// Adds another stream's counts.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.stale += other.stale;
    }
}

/// What one packet was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The next one, or one after a gap.
    Fresh,
    /// A missing one that came after later ones.
    Reordered,
    /// One that had come before.
    Duplicate,
    /// Too old to tell.
    Stale,
}

impl SequenceAccount {
    /// A stream of which nothing has come.
    pub fn new() -> Self {
        Self { seen: [0; WORDS], lowest: 0, highest: None, counts: SequenceCounts::default() }
    }

    /// Accounts a packet.
    pub fn record(&mut self, sequence: u16) -> Arrival {
        let Some(highest) = self.highest else {
            let first = BASE + u64::from(sequence);
            self.highest = Some(first);
            self.lowest = first;
            self.counts.received = 1;
            self.set(first);
            return Arrival::Fresh;
        };
        // The distance is taken the short way round, so the 16 bits wrap without a special case.
        let distance = i64::from(sequence.wrapping_sub(highest as u16) as i16);
        let extended = (highest as i64 + distance) as u64;
        if distance > 0 {
            for number in highest + 1..=extended.min(highest + HISTORY) {
                self.clear(number);
            }
            self.highest = Some(extended);
            self.counts.received += 1;
            self.set(extended);
            return Arrival::Fresh;
        }
        if highest - extended >= HISTORY {
            self.counts.stale += 1;
            return Arrival::Stale;
        }
        if self.is_set(extended) {
            self.counts.duplicated += 1;
            return Arrival::Duplicate;
        }
        self.lowest = self.lowest.min(extended);
        self.set(extended);
        self.counts.received += 1;
        self.counts.reordered += 1;
        Arrival::Reordered
    }

    /// The counts so far.
    pub fn counts(&self) -> SequenceCounts {
        let expected = self.highest.map_or(0, |highest| highest - self.lowest + 1);
        SequenceCounts { lost: expected.saturating_sub(self.counts.received), ..self.counts }
    }

    fn set(&mut self, number: u64) {
        self.seen[Self::word(number)] |= 1 << (number % 64);
    }

    fn clear(&mut self, number: u64) {
        self.seen[Self::word(number)] &= !(1 << (number % 64));
    }

    fn is_set(&self, number: u64) -> bool {
        self.seen[Self::word(number)] & (1 << (number % 64)) != 0
    }

    fn word(number: u64) -> usize {
        (number % HISTORY / 64) as usize
    }
}

impl Default for SequenceAccount {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn account(sequence: impl IntoIterator<Item = u16>) -> SequenceCounts {
        let mut account = SequenceAccount::new();
        for number in sequence {
            account.record(number);
        }
        account.counts()
    }

    #[test]
    fn unbroken_stream_loses_nothing_across_the_wrap() {
        let counts = account((0..200_000_u32).map(|n| (n + 65_000) as u16));
        assert_eq!(counts, SequenceCounts { received: 200_000, ..Default::default() });
    }

    #[test]
    fn gap_counts_as_lost_until_the_packet_comes_late() {
        assert_eq!(account([10, 11, 13]).lost, 1);
        let healed = account([10, 11, 13, 12]);
        assert_eq!(healed, SequenceCounts { received: 4, reordered: 1, ..Default::default() });
    }

    #[test]
    fn gap_across_the_wrap_counts_as_lost() {
        assert_eq!(account([65_534, 65_535, 2, 3]).lost, 2);
    }

    #[test]
    fn second_copy_is_a_duplicate_and_not_received_twice() {
        let counts = account([7, 8, 8, 7, 9]);
        assert_eq!(counts, SequenceCounts { received: 3, duplicated: 2, ..Default::default() });
    }

    #[test]
    fn packet_before_the_first_one_seen_is_reordered_and_not_lost() {
        let counts = account([100, 99, 101]);
        assert_eq!(counts, SequenceCounts { received: 3, reordered: 1, ..Default::default() });
    }

    #[test]
    fn packet_older_than_the_history_is_stale() {
        let counts = account((0..2_000).chain([5]));
        assert_eq!(counts, SequenceCounts { received: 2_000, stale: 1, ..Default::default() });
    }

    #[test]
    fn old_bits_do_not_survive_a_long_gap() {
        // Numbers 0..10, then a gap of more than the history, then the numbers just below it: none is a duplicate.
        let counts = account((0..10).chain([3_000]).chain((2_900..3_000).rev()));
        assert_eq!(counts.duplicated, 0);
        assert_eq!(counts.reordered, 100);
        assert_eq!(counts.lost, 3_001 - 111);
    }

    proptest! {
        /// Against a plain set: any drops, copies and swaps within a window, from any start.
        #[test]
        fn counts_agree_with_a_set(start: u16, steps in prop::collection::vec((0_u8..10, 0_u64..20), 1..3_000)) {
            let mut account = SequenceAccount::new();
            let mut seen = std::collections::BTreeSet::new();
            let (mut next, mut highest, mut duplicated, mut reordered) = (0_u64, None::<u64>, 0, 0);
            let origin = 100_000_u64 + u64::from(start);
            for (kind, back) in steps {
                let number = match kind {
                    0 => { next += 1; continue }                          // lost
                    1 => origin + next.saturating_sub(back + 1),          // late or again
                    _ => { next += 1; origin + next - 1 }
                };
                account.record(number as u16);
                if !seen.insert(number) { duplicated += 1 } else if highest.is_some_and(|h| number < h) { reordered += 1 }
                highest = highest.max(Some(number));
            }
            let counts = account.counts();
            let span = seen.last().zip(seen.first()).map_or(0, |(last, first)| last - first + 1);
            prop_assert_eq!(counts.received, seen.len() as u64);
            prop_assert_eq!(counts.duplicated, duplicated);
            prop_assert_eq!(counts.reordered, reordered);
            prop_assert_eq!(counts.lost, span - seen.len() as u64);
            prop_assert_eq!(counts.stale, 0);
        }
    }
}
