//! How a call sounds, from what the network did to it: the E-model (ITU-T G.107), simplified, and bursts (RFC 3611 §4.7.2).
//!
//! ```text
//!   R = 93.2 − Id(delay) − Ie,eff(loss, burstiness)          MOS = 1 + 0.035 R + 7·10⁻⁶ R (R − 60)(100 − R)
//! ```
//!
//! Everything of the E-model that a packet network does not see (loudness, noise, echo) has its default, which gives
//! the 93.2. `Id` is the two straight lines that Cole and Rosenbluth fitted to G.107; `Ie,eff` is G.107 §7.4 with the
//! values of ITU-T G.113 appendix I for a codec with concealment. The scale is that of narrow-band telephony, for wide-band
//! codecs too: 4.4 is as good as a telephone gets, and figures of all calls can be compared.

use std::time::Duration;

use crate::rtcp::xr::GMIN;

/// R of a line without delay and loss.
const R_BEST: f64 = 93.2;
/// From this one-way delay on people begin to talk over each other.
const DELAY_KNEE_MS: f64 = 177.3;

/// What a codec does to speech by itself, and how it bears loss (ITU-T G.113 appendix I).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Impairment {
    /// Equipment impairment without loss.
    pub ie: f64,
    /// Packet-loss robustness: per cent of loss that costs half of what is left.
    pub bpl: f64,
}

impl Impairment {
    /// G.711 with concealment, and all that is no worse.
    pub const G711_CONCEALED: Self = Self { ie: 0.0, bpl: 25.1 };
}

/// A score and what it came from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Transmission rating, 0 to 100.
    pub r_factor: f64,
    /// Mean opinion of who listens: without the delay. 1 to 4.5.
    pub mos_lq: f64,
    /// Mean opinion of who converses. 1 to 4.5.
    pub mos_cq: f64,
}

/// The score of a stream that loses a share of its packets (0 to 1) and arrives after `delay` one way.
/// `burst_ratio` is 1 for random loss and larger the more the losses come together.
pub fn score(codec: Impairment, loss: f64, burst_ratio: f64, delay: Duration) -> Score {
    let loss_percent = (loss * 100.0).clamp(0.0, 100.0);
    let delay_ms = delay.as_secs_f64() * 1_000.0;
    let ie_eff =
        codec.ie + (95.0 - codec.ie) * loss_percent / (loss_percent / burst_ratio.max(1.0) + codec.bpl);
    let id = 0.024 * delay_ms + 0.11 * (delay_ms - DELAY_KNEE_MS).max(0.0);
    let listening = (R_BEST - ie_eff).clamp(0.0, 100.0);
    let conversing = (R_BEST - ie_eff - id).clamp(0.0, 100.0);
    Score { r_factor: conversing, mos_lq: mos(listening), mos_cq: mos(conversing) }
}

fn mos(r: f64) -> f64 {
    // Below 6.5 the polynomial falls under 1, where no opinion is.
    (1.0 + 0.035 * r + 7e-6 * r * (r - 60.0) * (100.0 - r)).clamp(1.0, 4.5)
}

/// Tells bursts of loss from the gaps between them, packet by packet, in order (the counters of RFC 3611 appendix A.2).
#[derive(Debug, Clone, Default)]
pub struct BurstMeter {
    packets: u64,
    missing: u64,
    /// Runs of packets missing one after the other.
    runs: u64,
    last_was_missing: bool,
    /// Packets since the last one that was missing, at most [`GMIN`] of which belong to a burst.
    since_missing: u64,
    /// Missing packets of the burst that may be going on.
    open_missing: u64,
    /// All packets of it, up to the last that was missing.
    open_packets: u64,
    bursts: u64,
    burst_packets: u64,
    burst_missing: u64,
}

impl BurstMeter {
    /// So many packets came, one after the other.
    pub const fn handle_received(&mut self, packets: u64) {
        if packets == 0 {
            return;
        }
        self.packets += packets;
        self.since_missing = self.since_missing.saturating_add(packets);
        self.last_was_missing = false;
    }

    /// So many packets are missing, one after the other.
    pub fn handle_missing(&mut self, packets: u64) {
        if packets == 0 {
            return;
        }
        if self.open_missing > 0 && self.since_missing < u64::from(GMIN) {
            self.open_packets += self.since_missing + packets;
            self.open_missing += packets;
        } else {
            self.close_burst();
            (self.open_packets, self.open_missing) = (packets, packets);
        }
        self.packets += packets;
        self.missing += packets;
        self.runs += u64::from(!self.last_was_missing);
        self.last_was_missing = true;
        self.since_missing = 0;
    }

    /// One loss alone is none (RFC 3611 §4.7.2).
    fn close_burst(&mut self) {
        if self.open_missing > 1 {
            self.bursts += 1;
            self.burst_packets += self.open_packets;
            self.burst_missing += self.open_missing;
        }
        (self.open_packets, self.open_missing) = (0, 0);
    }

    /// What the packets until now say; `packet` is the length of one.
    pub fn summary(&self, packet: Duration) -> Bursts {
        let mut all = self.clone();
        all.close_burst();
        let gap_packets = all.packets - all.burst_packets;
        let gap_missing = all.missing - all.burst_missing;
        let milliseconds = |packets: u64, count: u64| {
            let mean = packets as f64 / count.max(1) as f64;
            (mean * packet.as_secs_f64() * 1_000.0).min(f64::from(u16::MAX)) as u16
        };
        let loss = share(all.missing, all.packets);
        let mean_run = all.missing as f64 / all.runs.max(1) as f64;
        Bursts {
            burst_density: (256.0 * share(all.burst_missing, all.burst_packets)).min(255.0) as u8,
            gap_density: (256.0 * share(gap_missing, gap_packets)).min(255.0) as u8,
            burst_duration_ms: milliseconds(all.burst_packets, all.bursts),
            gap_duration_ms: milliseconds(gap_packets, all.bursts + 1),
            // Random loss has runs of 1 ÷ (1 − loss) on average (G.107 §7.4).
            burst_ratio: (mean_run * (1.0 - loss)).max(1.0),
            loss,
        }
    }
}

fn share(part: u64, of: u64) -> f64 {
    part as f64 / of.max(1) as f64
}

/// The shape of a stream's loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bursts {
    /// Share missing within bursts, in 256ths.
    pub burst_density: u8,
    /// Share missing outside of them, in 256ths.
    pub gap_density: u8,
    /// Mean length of a burst.
    pub burst_duration_ms: u16,
    /// Mean time between bursts.
    pub gap_duration_ms: u16,
    /// 1 for random loss, more for loss that comes together.
    pub burst_ratio: f64,
    /// Share missing of all, 0 to 1.
    pub loss: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CODEC: Impairment = Impairment::G711_CONCEALED;
    const PACKET: Duration = Duration::from_millis(20);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn clean_line_scores_as_a_telephone_at_its_best() {
        let score = score(CODEC, 0.0, 1.0, ms(0));
        assert!((score.r_factor - 93.2).abs() < 1e-9);
        assert!((score.mos_lq - 4.41).abs() < 0.01, "{score:?}");
        assert_eq!(score.mos_lq, score.mos_cq);
    }

    #[test]
    fn loss_and_delay_cost_what_g_107_says() {
        // G.107 §7.4 by hand: 5 % of random loss cost 95 · 5 ÷ (5 + 25.1) = 15.8.
        let lossy = score(CODEC, 0.05, 1.0, ms(0));
        assert!((lossy.r_factor - (93.2 - 15.78)).abs() < 0.01, "{lossy:?}");
        let late = score(CODEC, 0.0, 1.0, ms(400));
        assert!((late.r_factor - (93.2 - 9.6 - 24.497)).abs() < 0.01, "{late:?}");
        assert!(late.mos_cq < late.mos_lq);
        assert!(score(CODEC, 0.05, 3.0, ms(0)).r_factor < lossy.r_factor, "bursts are worse");
        assert_eq!(score(CODEC, 1.0, 1.0, ms(5_000)).mos_cq, 1.0);
    }

    #[test]
    fn losses_close_together_are_a_burst_and_lone_ones_are_not() {
        let mut meter = BurstMeter::default();
        meter.handle_received(100);
        meter.handle_missing(1);
        meter.handle_received(100);
        meter.handle_missing(2);
        meter.handle_received(4);
        meter.handle_missing(2);
        meter.handle_received(100);
        let bursts = meter.summary(PACKET);
        assert_eq!((bursts.burst_duration_ms, bursts.burst_density), (160, 128), "4 of 8 packets");
        assert_eq!(bursts.gap_density, (256.0_f64 / 301.0) as u8);
        assert_eq!(bursts.gap_duration_ms, 3_010);
        assert!((bursts.loss - 5.0 / 309.0).abs() < 1e-9);
        assert!(bursts.burst_ratio > 1.6);
    }

    proptest! {
        #[test]
        fn scores_fall_with_loss_and_delay_and_stay_in_their_range(loss in 0.0_f64..1.0, delay_ms in 0_u64..2_000) {
            let here = score(CODEC, loss, 1.0, ms(delay_ms));
            let worse = score(CODEC, (loss + 0.01).min(1.0), 1.0, ms(delay_ms + 10));
            prop_assert!(worse.r_factor <= here.r_factor && worse.mos_cq <= here.mos_cq + 1e-9);
            prop_assert!((1.0..=4.5).contains(&here.mos_cq) && (1.0..=4.5).contains(&here.mos_lq));
        }

        #[test]
        fn random_loss_has_a_burst_ratio_near_one(seed: u64, percent in 1_u64..30) {
            let mut state = seed;
            let mut meter = BurstMeter::default();
            for _ in 0..20_000 {
                match crate::rtcp::interval::splitmix(&mut state) % 100 < percent {
                    true => meter.handle_missing(1),
                    false => meter.handle_received(1),
                }
            }
            let bursts = meter.summary(PACKET);
            prop_assert!((1.0..1.15).contains(&bursts.burst_ratio), "{:?}", bursts);
            prop_assert!((bursts.loss * 100.0 - percent as f64).abs() < 2.0);
        }
    }
}
