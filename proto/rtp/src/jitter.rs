//! Upstream reordering: packets in order pass at once, early ones wait a bounded moment for what is missing.
//!
//! ```text
//!  in order ──────────────────────────────▶ Placement::InOrder: the caller uses the packet it holds, nothing is copied
//!  early ──▶ held (8 places) ── gap filled ▶ Release::Packet
//!                            └─ wait over ─▶ Release::Gap, then Release::Packet
//!  early, too large to hold ─▶ Placement::AfterHeld: what is before it comes out at once, then the caller uses it
//!  behind ─▶ Placement::Late: dropped and counted
//! ```
//!
//! The wait adapts within [`MIN_WAIT`] and [`MAX_WAIT`]: a packet that came after it was given up makes it longer, since this
//! network reorders more widely than was waited; gaps that nobody ever filled make it shorter, since this network loses.
//!
//! There is no playout delay: whoever listens (an agent, a recogniser) wants each packet the moment it can be had in order.
//! A jitter buffer that plays to a clock is not here; what goes to the caller is paced by the session's ptime clock.
//!
//! After each `handle_*` the caller drains [`ReorderBuffer::poll_release`]. Packets of every payload type pass through here,
//! telephone-events too, since they share the sequence numbers.

use std::time::{Duration, Instant};

use crate::packet::Header;
use crate::units::ExtendedSequence;

/// Early packets that are held. Forty milliseconds of 10 ms packets are four; twice that leaves room for a burst.
pub const MAX_HELD: usize = 8;
/// How long an early packet waits for what is missing at first: two packets of 20 ms.
pub const DEFAULT_WAIT: Duration = Duration::from_millis(40);
/// The shortest wait: packets that two ways of a network swapped are rarely further apart.
pub const MIN_WAIT: Duration = Duration::from_millis(20);
/// The longest wait. What a caller says stands still for so long with each lost packet, and that must not be heard.
pub const MAX_WAIT: Duration = Duration::from_millis(60);
/// Kept between the lateness that was seen and the wait.
const WAIT_MARGIN: Duration = Duration::from_millis(5);
/// A gap that nobody filled takes this part of what is above [`MIN_WAIT`] away: after ten of them it is a quarter.
const WAIT_DECAY: u32 = 8;

/// Where a packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// It is the next one: use it now, then drain.
    InOrder,
    /// It is early and was copied; it comes out of [`ReorderBuffer::poll_release`].
    Held,
    /// Its place has passed: drop it.
    Late,
    /// It is held already: drop it.
    Duplicate,
    /// It is early and larger than a place, so nothing waits for what is missing before it: drain, then use it, then
    /// drain again.
    AfterHeld,
    /// It is early and every place is taken, for want of a drain: drop it.
    Refused,
}

/// What comes out, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Release<'a> {
    /// A packet that waited.
    Packet(HeldPacket<'a>),
    /// These packets did not come in time: conceal or mark them. The packet after them is the next release (or the
    /// caller has it, see [`Placement::AfterHeld`]); its timestamp tells how much time is missing.
    Gap {
        /// The first that is missing.
        first: ExtendedSequence,
        /// How many.
        packets: u64,
    },
}

/// A packet that waited.
#[derive(Debug, PartialEq, Eq)]
pub struct HeldPacket<'a> {
    /// Its number.
    pub sequence: ExtendedSequence,
    /// Its header.
    pub header: Header,
    /// What it carries.
    pub payload: &'a [u8],
}

/// Counters since the buffer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReorderStats {
    /// Packets that passed at once.
    pub in_order: u64,
    /// Packets that waited and were then released.
    pub released: u64,
    /// Packets that came after their place had passed.
    pub late: u64,
    /// Packets that were held already.
    pub duplicate: u64,
    /// Packets given up, over all gaps.
    pub missing: u64,
    /// Early packets that were too large to be held, and used at once.
    pub oversized: u64,
    /// Early packets that found every place taken.
    pub refused: u64,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    sequence: ExtendedSequence,
    header: Header,
    len: usize,
    arrival: Instant,
    /// What is missing before it is given up then.
    deadline: Instant,
}

/// The reorder stage of one inbound stream. What packets in order need is here; the rest is elsewhere, so that it does not
/// come into the cache with each of them.
#[derive(Debug)]
pub struct ReorderBuffer {
    /// The number that would be in order; `None` before the first packet.
    next: Option<ExtendedSequence>,
    /// Packets that passed at once.
    in_order: u64,
    held_count: usize,
    /// The caller has this one: the drain that is due ends before it.
    in_hand: Option<ExtendedSequence>,
    waiting: Box<Waiting>,
}

/// Early packets, and how long they wait.
#[derive(Debug)]
struct Waiting {
    held: [Option<Held>; MAX_HELD],
    /// `MAX_HELD` places of `place_len` octets.
    payloads: Box<[u8]>,
    place_len: usize,
    wait: Duration,
    /// The last gap that was given up, and since when its oldest follower had waited: a packet of it that still comes
    /// tells how long the wait should have been.
    given_up: Option<(ExtendedSequence, Instant)>,
    /// Everything before this is released now, missing or not.
    give_up_before: Option<ExtendedSequence>,
    /// But for `in_order`.
    stats: ReorderStats,
}

impl ReorderBuffer {
    /// An empty buffer whose places hold payloads of up to `max_payload` octets. Allocates once, `MAX_HELD` places.
    pub fn new(max_payload: usize) -> Self {
        let waiting = Waiting {
            held: [None; MAX_HELD],
            payloads: vec![0; MAX_HELD * max_payload].into_boxed_slice(),
            place_len: max_payload,
            wait: DEFAULT_WAIT,
            given_up: None,
            give_up_before: None,
            stats: ReorderStats::default(),
        };
        Self { next: None, in_order: 0, held_count: 0, in_hand: None, waiting: Box::new(waiting) }
    }

    /// How long the next gap is waited for.
    pub const fn wait(&self) -> Duration {
        self.waiting.wait
    }

    /// The counters.
    pub fn stats(&self) -> ReorderStats {
        ReorderStats { in_order: self.in_order, ..self.waiting.stats }
    }

    /// Packets that wait.
    pub const fn held(&self) -> usize {
        self.held_count
    }

    /// Takes a packet that the receiver accepted.
    #[inline]
    pub fn handle_packet(
        &mut self,
        sequence: ExtendedSequence,
        header: &Header,
        payload: &[u8],
        now: Instant,
    ) -> Placement {
        let next = *self.next.get_or_insert(sequence);
        if sequence == next {
            self.next = Some(sequence.next());
            self.in_order += 1;
            return Placement::InOrder;
        }
        self.place(next, sequence, header, payload, now)
    }

    /// A packet that is not the next one.
    #[inline(never)]
    fn place(
        &mut self,
        next: ExtendedSequence,
        sequence: ExtendedSequence,
        header: &Header,
        payload: &[u8],
        now: Instant,
    ) -> Placement {
        let waiting = &mut *self.waiting;
        if sequence < next {
            waiting.stats.late += 1;
            if let Some((until, since)) = waiting.given_up
                && sequence < until
            {
                let would_have_done = now.saturating_duration_since(since) + WAIT_MARGIN;
                waiting.wait = waiting.wait.max(would_have_done.min(MAX_WAIT));
            }
            return Placement::Late;
        }
        if waiting.held.iter().flatten().any(|held| held.sequence == sequence) {
            waiting.stats.duplicate += 1;
            return Placement::Duplicate;
        }
        if payload.len() > waiting.place_len {
            self.in_hand = Some(sequence);
            waiting.give_up_before(sequence);
            waiting.stats.oversized += 1;
            return Placement::AfterHeld;
        }
        let Some(index) = waiting.held.iter().position(Option::is_none) else {
            waiting.stats.refused += 1;
            return Placement::Refused;
        };
        let start = index * waiting.place_len;
        waiting.payloads[start..start + payload.len()].copy_from_slice(payload);
        let deadline = now + waiting.wait;
        waiting.held[index] =
            Some(Held { sequence, header: *header, len: payload.len(), arrival: now, deadline });
        self.held_count += 1;
        if sequence.since(next) > MAX_HELD as u64 {
            // More is missing than reordering explains: do not wait for it.
            waiting.give_up_before(sequence);
        } else if self.held_count == MAX_HELD
            && let Some(index) = waiting.first_held()
            && let Some(first) = waiting.held[index]
        {
            // The last place was taken: the oldest gap is given up, which frees at least one.
            waiting.give_up_before(first.sequence);
        }
        Placement::Held
    }

    /// When the oldest gap is given up, if one is open.
    #[inline]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.held_count == 0 {
            return None;
        }
        self.waiting.held.iter().flatten().map(|held| held.deadline).min()
    }

    /// Gives up gaps whose wait is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.held_count > 0 {
            self.waiting.handle_timeout(now);
        }
    }

    /// The next thing in order that waited; `None` when the next packet is still missing or nothing waits.
    #[inline]
    pub fn poll_release(&mut self) -> Option<Release<'_>> {
        if self.held_count == 0 && self.in_hand.is_none() {
            return None;
        }
        self.release()
    }

    #[inline(never)]
    fn release(&mut self) -> Option<Release<'_>> {
        let next = self.next?;
        let first =
            self.waiting.first_held().and_then(|index| self.waiting.held[index].map(|first| (index, first)));
        if let Some(in_hand) = self.in_hand
            && first.is_none_or(|(_, first)| first.sequence > in_hand)
        {
            if next < in_hand {
                return Some(self.gap(next, in_hand));
            }
            self.in_hand = None;
            self.next = Some(next.max(in_hand.next()));
            return None;
        }
        let (index, first) = first?;
        if first.sequence > next {
            if self.waiting.give_up_before.is_none_or(|limit| limit < first.sequence) {
                return None;
            }
            return Some(self.gap(next, first.sequence));
        }
        let waiting = &mut *self.waiting;
        waiting.held[index] = None;
        self.held_count -= 1;
        self.next = Some(first.sequence.next());
        waiting.stats.released += 1;
        let start = index * waiting.place_len;
        Some(Release::Packet(HeldPacket {
            sequence: first.sequence,
            header: first.header,
            payload: &waiting.payloads[start..start + first.len],
        }))
    }

    /// A new stream begins: what is held is dropped, and the next packet is in order whatever its number. Counters stay.
    pub fn reset(&mut self) {
        self.next = None;
        self.held_count = 0;
        self.in_hand = None;
        self.waiting.held = [None; MAX_HELD];
        self.waiting.give_up_before = None;
        self.waiting.given_up = None;
    }

    /// Gives up what is missing between the two.
    fn gap(&mut self, first: ExtendedSequence, until: ExtendedSequence) -> Release<'static> {
        let packets = until.since(first);
        self.next = Some(until);
        self.waiting.stats.missing += packets;
        Release::Gap { first, packets }
    }
}

impl Waiting {
    fn handle_timeout(&mut self, now: Instant) {
        let due =
            self.held.iter().flatten().filter(|held| held.deadline <= now).map(|held| held.sequence).max();
        if let Some(sequence) = due {
            let since = self.held.iter().flatten().map(|held| held.arrival).min();
            self.given_up = since.map(|since| (sequence, since));
            self.wait = MIN_WAIT.max(self.wait - self.wait.saturating_sub(MIN_WAIT) / WAIT_DECAY);
            self.give_up_before(sequence);
        }
    }

    fn give_up_before(&mut self, sequence: ExtendedSequence) {
        self.give_up_before = Some(self.give_up_before.map_or(sequence, |limit| limit.max(sequence)));
    }

    /// Place of the held packet with the lowest number.
    fn first_held(&self) -> Option<usize> {
        (0..MAX_HELD)
            .filter_map(|index| self.held[index].map(|held| (held.sequence, index)))
            .min()
            .map(|(_, index)| index)
    }
}

#[cfg(test)]
mod tests;
