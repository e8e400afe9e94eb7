//! Estimated listening quality: the E-model of ITU-T G.107, simplified to what a packet call can spoil.
//!
//! `R = 93.2 − Id(delay) − Ie,eff(loss)`, then the G.107 Annex B curve from R to MOS. All other inputs (loudness, echo,
//! noise) stay at their defaults, which give 93.2 and a best MOS of 4.41. `Id` is the usual two-line fit to G.107's delay
//! curve (Cole and Rosenbluth 2001). G.711 has `Ie` 0; `Bpl` is 4.3 without and 25.1 with loss concealment (G.113
//! Appendix I): we take 4.3, the strict one. Loss is taken as random.

/// R with every default of G.107.
const R_DEFAULT: f64 = 93.2;

/// Equipment impairment of G.711.
const IE_G711: f64 = 0.0;

/// Loss robustness of G.711 without concealment.
const BPL_G711: f64 = 4.3;

/// From this one-way delay on conversation itself suffers, milliseconds.
const CONVERSATION_LIMIT_MS: f64 = 177.3;

/// The dejitter buffer of the phone that we stand for, milliseconds. What comes later than this is lost to the ear.
pub const PLAYOUT_DELAY_MS: f64 = 40.0;

/// Time to collect a packet's audio, milliseconds.
const PACKETISATION_MS: f64 = 20.0;

/// Mouth-to-ear delay from a measured round trip of audio: half of it, a packet's worth of collecting, and the phone's
/// dejitter buffer.
pub fn mouth_to_ear_ms(round_trip_ms: f64) -> f64 {
    round_trip_ms / 2.0 + PACKETISATION_MS + PLAYOUT_DELAY_MS
}

/// MOS (1 to 4.41) of a G.711 call with this one-way delay and this share of packets lost or late, percent.
pub fn mos_g711(delay_ms: f64, loss_percent: f64) -> f64 {
    mos(rating(delay_ms, loss_percent))
}

fn rating(delay_ms: f64, loss_percent: f64) -> f64 {
    let beyond = (delay_ms - CONVERSATION_LIMIT_MS).max(0.0);
    let delay_impairment = 0.024 * delay_ms + 0.11 * beyond;
    let loss_impairment = IE_G711 + (95.0 - IE_G711) * loss_percent / (loss_percent + BPL_G711);
    R_DEFAULT - delay_impairment - loss_impairment
}

/// G.107 Annex B.
fn mos(r: f64) -> f64 {
    if r <= 0.0 {
        1.0
    } else if r >= 100.0 {
        4.5
    } else {
        (1.0 + 0.035 * r + r * (r - 60.0) * (100.0 - r) * 7e-6).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < 0.01, "{got} is not {want}");
    }

    #[test]
    fn curve_from_rating_to_mos_has_the_values_of_g107_table_b1() {
        // G.107 Table B.1: the lower limits of the satisfaction classes.
        for (r, want) in [(90.0, 4.34), (80.0, 4.03), (70.0, 3.60), (60.0, 3.10), (50.0, 2.58)] {
            near(mos(r), want);
        }
    }

    #[test]
    fn faultless_call_has_the_best_mos_of_the_defaults() {
        near(mos_g711(0.0, 0.0), 4.41);
    }

    #[test]
    fn delay_costs_little_before_the_conversation_limit_and_much_after_it() {
        near(rating(100.0, 0.0), 93.2 - 2.4);
        near(rating(177.3, 0.0), 93.2 - 4.2552);
        near(rating(277.3, 0.0), 93.2 - 0.024 * 277.3 - 11.0);
    }

    #[test]
    fn loss_without_concealment_follows_g113() {
        // Ie,eff = 95 × 1 / (1 + 4.3) at 1 % loss.
        near(rating(0.0, 1.0), 93.2 - 17.925);
        near(rating(0.0, 5.0), 93.2 - 51.075);
    }

    #[test]
    fn hopeless_call_is_one_and_not_less() {
        near(mos_g711(2_000.0, 50.0), 1.0);
    }

    #[test]
    fn echo_of_forty_milliseconds_is_eighty_from_mouth_to_ear() {
        near(mouth_to_ear_ms(40.0), 80.0);
    }
}
