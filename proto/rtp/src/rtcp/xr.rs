//! The VoIP metrics block of an extended report (RFC 3611 §4.7), which says in one packet how a call sounds here.
//!
//! ```text
//!  |     BT=7      |   reserved    |       block length = 8        |
//!  |                        SSRC of source                         |
//!  |   loss rate   | discard rate  | burst density |  gap density  |
//!  |       burst duration          |         gap duration          |
//!  |     round trip delay          |       end system delay        |
//!  | signal level  |  noise level  |     RERL      |     Gmin      |
//!  |   R factor    | ext. R factor |    MOS-LQ     |    MOS-CQ     |
//!  |   RX config   |   reserved    |          JB nominal           |
//!  |          JB maximum           |          JB abs max           |
//! ```
//!
//! Other blocks are passed over by their length.

use crate::units::Ssrc;

/// Octets of the block with its header.
pub const VOIP_METRICS_LEN: usize = 36;
/// Packets between two losses that end a burst (RFC 3611 §4.7.2 recommends 16).
pub const GMIN: u8 = 16;
/// A figure that is not known.
pub const UNKNOWN: u8 = 127;

const BLOCK_VOIP_METRICS: u8 = 7;
/// RX config: packet loss concealment "standard" (§4.7.7), non-adaptive jitter buffer.
const RX_CONFIG: u8 = 0b1110_0000;

/// How one stream sounds at its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoipMetrics {
    /// The stream.
    pub ssrc: Ssrc,
    /// Share of packets lost since the beginning, in 256ths.
    pub loss_rate: u8,
    /// Share of packets that came too late to be used, in 256ths.
    pub discard_rate: u8,
    /// Share lost or discarded within bursts, in 256ths.
    pub burst_density: u8,
    /// The same outside of bursts.
    pub gap_density: u8,
    /// Mean length of a burst.
    pub burst_duration_ms: u16,
    /// Mean time between bursts.
    pub gap_duration_ms: u16,
    /// Round trip between the RTP interfaces; 0 while it is not known.
    pub round_trip_ms: u16,
    /// What this end adds between its microphone and its loudspeaker.
    pub end_system_delay_ms: u16,
    /// R factor of the E-model, 0 to 100, or [`UNKNOWN`].
    pub r_factor: u8,
    /// Listening quality in tenths (10 to 50), or [`UNKNOWN`].
    pub mos_lq: u8,
    /// Conversational quality in tenths, which counts the delay too, or [`UNKNOWN`].
    pub mos_cq: u8,
    /// Nominal delay of the jitter buffer.
    pub jitter_buffer_nominal_ms: u16,
    /// What it may grow to.
    pub jitter_buffer_maximum_ms: u16,
}

impl VoipMetrics {
    /// The block as it goes on the wire; levels and echo are not measured here.
    pub const fn to_octets(self) -> [u8; VOIP_METRICS_LEN] {
        let [s0, s1, s2, s3] = self.ssrc.0.to_be_bytes();
        let [b0, b1] = self.burst_duration_ms.to_be_bytes();
        let [g0, g1] = self.gap_duration_ms.to_be_bytes();
        let [r0, r1] = self.round_trip_ms.to_be_bytes();
        let [e0, e1] = self.end_system_delay_ms.to_be_bytes();
        let [n0, n1] = self.jitter_buffer_nominal_ms.to_be_bytes();
        let [m0, m1] = self.jitter_buffer_maximum_ms.to_be_bytes();
        [
            BLOCK_VOIP_METRICS,
            0,
            0,
            8,
            s0,
            s1,
            s2,
            s3,
            self.loss_rate,
            self.discard_rate,
            self.burst_density,
            self.gap_density,
            b0,
            b1,
            g0,
            g1,
            r0,
            r1,
            e0,
            e1,
            UNKNOWN,
            UNKNOWN,
            UNKNOWN,
            GMIN,
            self.r_factor,
            UNKNOWN,
            self.mos_lq,
            self.mos_cq,
            RX_CONFIG,
            0,
            n0,
            n1,
            m0,
            m1,
            m0,
            m1,
        ]
    }

    /// Finds the first VoIP metrics block among the blocks of an extended report.
    pub fn find(mut blocks: &[u8]) -> Option<Self> {
        while let Some(&[block_type, _, l0, l1]) = blocks.first_chunk::<4>() {
            let len = 4 + 4 * usize::from(u16::from_be_bytes([l0, l1]));
            let block = blocks.get(..len)?;
            if block_type == BLOCK_VOIP_METRICS
                && let Some(octets) = block.first_chunk::<VOIP_METRICS_LEN>()
            {
                return Some(Self::parse(octets));
            }
            blocks = &blocks[len..];
        }
        None
    }

    fn parse(octets: &[u8; VOIP_METRICS_LEN]) -> Self {
        let word = |at: usize| u16::from_be_bytes([octets[at], octets[at + 1]]);
        Self {
            ssrc: Ssrc(u32::from(word(4)) << 16 | u32::from(word(6))),
            loss_rate: octets[8],
            discard_rate: octets[9],
            burst_density: octets[10],
            gap_density: octets[11],
            burst_duration_ms: word(12),
            gap_duration_ms: word(14),
            round_trip_ms: word(16),
            end_system_delay_ms: word(18),
            r_factor: octets[24],
            mos_lq: octets[26],
            mos_cq: octets[27],
            jitter_buffer_nominal_ms: word(30),
            jitter_buffer_maximum_ms: word(32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn any_metrics()(ssrc: u32, rates: [u8; 4], times: [u16; 6], scores: [u8; 3]) -> VoipMetrics {
            VoipMetrics {
                ssrc: Ssrc(ssrc),
                loss_rate: rates[0],
                discard_rate: rates[1],
                burst_density: rates[2],
                gap_density: rates[3],
                burst_duration_ms: times[0],
                gap_duration_ms: times[1],
                round_trip_ms: times[2],
                end_system_delay_ms: times[3],
                r_factor: scores[0],
                mos_lq: scores[1],
                mos_cq: scores[2],
                jitter_buffer_nominal_ms: times[4],
                jitter_buffer_maximum_ms: times[5],
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_found_again_behind_other_blocks(metrics in any_metrics(), words in 0_u8..4) {
            let mut blocks = vec![4, 0, 0, words];
            blocks.resize(4 + 4 * usize::from(words), 0xEE);
            blocks.extend(metrics.to_octets());
            prop_assert_eq!(VoipMetrics::find(&blocks), Some(metrics));
        }

        #[test]
        fn any_octets_are_searched_to_their_end(blocks in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = VoipMetrics::find(&blocks);
        }
    }
}
