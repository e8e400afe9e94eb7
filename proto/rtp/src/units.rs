//! The numbers of RTP as types. Wrap-around lives here and nowhere else.

use std::fmt;

/// Synchronisation source: who speaks (RFC 3550 §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ssrc(pub u32);

impl fmt::Display for Ssrc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Payload type, 0 to 127.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PayloadType(u8);

impl PayloadType {
    /// G.711 µ-law.
    pub const PCMU: Self = Self(0);
    /// G.711 A-law.
    pub const PCMA: Self = Self(8);
    /// Comfort noise (RFC 3389).
    pub const COMFORT_NOISE: Self = Self(13);

    /// A payload type; `None` above 127, or in 64–95, which RFC 5761 leaves to RTCP.
    pub const fn new(value: u8) -> Option<Self> {
        if value > 127 || (value >= 64 && value <= 95) { None } else { Some(Self(value)) }
    }

    /// Seven bits of a header.
    pub(crate) const fn from_bits(octet: u8) -> Self {
        Self(octet & 0x7F)
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// True in 96–127, whose meaning is negotiated.
    pub const fn is_dynamic(self) -> bool {
        self.0 >= 96
    }
}

impl fmt::Display for PayloadType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Sequence number of a packet: 16 bits that wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SequenceNumber(pub u16);

impl SequenceNumber {
    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// How many packets this is after `other` on the shorter way round: negative when before, −32 768 when opposite.
    pub const fn distance_from(self, other: Self) -> i16 {
        self.0.wrapping_sub(other.0) as i16
    }

    /// True when this comes after `other` on the shorter way round.
    pub const fn is_after(self, other: Self) -> bool {
        self.distance_from(other) > 0
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Sequence number with the wraps counted, so that it only grows (RFC 3550 appendix A.1).
///
/// It starts one cycle up, so that packets from before the first one have numbers too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExtendedSequence(u64);

impl ExtendedSequence {
    /// The first packet of a stream.
    pub const fn start(sequence: SequenceNumber) -> Self {
        Self((1 << 16) + sequence.0 as u64)
    }

    /// The extended number of `sequence` that lies nearest to this one.
    #[must_use]
    pub const fn nearest(self, sequence: SequenceNumber) -> Self {
        let distance = sequence.distance_from(self.sequence()) as i64;
        Self(self.0.saturating_add_signed(distance))
    }

    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// So many after this.
    #[must_use]
    pub const fn plus(self, packets: u64) -> Self {
        Self(self.0.saturating_add(packets))
    }

    /// How many packets this is after `other`; 0 when it is not after it.
    pub const fn since(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }

    /// The 16 bits that are on the wire.
    pub const fn sequence(self) -> SequenceNumber {
        SequenceNumber(self.0 as u16)
    }

    /// Cycles in the upper, sequence in the lower 16 bits, as a report block has them.
    pub const fn to_report(self) -> u32 {
        self.0.wrapping_sub(1 << 16) as u32
    }
}

/// RTP timestamp: 32 bits of media clock that wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timestamp(pub u32);

impl Timestamp {
    /// So many ticks later.
    #[must_use]
    pub const fn plus(self, ticks: u32) -> Self {
        Self(self.0.wrapping_add(ticks))
    }

    /// Ticks from `other` to this on the shorter way round: negative when before.
    pub const fn distance_from(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }

    /// True when this comes after `other` on the shorter way round.
    pub const fn is_after(self, other: Self) -> bool {
        self.distance_from(other) > 0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn payload_types_of_rtcp_are_refused() {
        assert!(PayloadType::new(63).is_some() && PayloadType::new(64).is_none());
        assert!(PayloadType::new(95).is_none() && PayloadType::new(96).is_some_and(PayloadType::is_dynamic));
        assert!(PayloadType::new(127).is_some() && PayloadType::new(128).is_none());
    }

    #[test]
    fn a_packet_from_before_the_first_has_a_lower_number() {
        let first = ExtendedSequence::start(SequenceNumber(0));
        let before = first.nearest(SequenceNumber(65_535));
        assert!(before < first);
        assert_eq!(first.since(before), 1);
        assert_eq!(first.to_report(), 0);
    }

    proptest! {
        #[test]
        fn sequence_order_survives_the_wrap(start: u16, step in 1_u16..0x7FFF) {
            let (a, b) = (SequenceNumber(start), SequenceNumber(start.wrapping_add(step)));
            prop_assert!(b.is_after(a) && !a.is_after(b));
            prop_assert_eq!(b.distance_from(a), step as i16);
        }

        #[test]
        fn timestamp_order_survives_the_wrap(start: u32, step in 1_u32..0x7FFF_FFFF) {
            let a = Timestamp(start);
            prop_assert!(a.plus(step).is_after(a) && !a.is_after(a.plus(step)));
        }

        #[test]
        fn extended_sequence_follows_any_walk(start: u16, steps in proptest::collection::vec(-3_000_i32..3_000, 0..200)) {
            let mut extended = ExtendedSequence::start(SequenceNumber(start));
            let mut expected = i64::from(start) + 65_536;
            for step in steps {
                if expected + i64::from(step) < 0 {
                    continue;
                }
                expected += i64::from(step);
                extended = extended.nearest(SequenceNumber(expected as u16));
                prop_assert_eq!(extended, ExtendedSequence(expected as u64));
                prop_assert_eq!(extended.sequence().0, expected as u16);
            }
        }
    }
}
