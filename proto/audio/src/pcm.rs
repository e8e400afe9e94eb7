//! PCM16 frames: silence, gain, mixing two, level, and the two byte orders.
//!
//! RTP's L16 is big-endian (RFC 3551 §4.5.11); agent streams and AudioSocket are little-endian.

/// Makes a frame silent.
pub fn fill_silence(frame: &mut [i16]) {
    frame.fill(0);
}

/// A factor of amplitude, from silence to +24 dB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gain {
    /// The factor times 2^12.
    q12: i32,
}

impl Gain {
    /// Leaves a frame as it is.
    pub const UNITY: Self = Self { q12: 1 << 12 };
    /// Makes a frame silent.
    pub const MUTE: Self = Self { q12: 0 };
    /// The largest gain, in decibels.
    pub const MAX_DB: f32 = 24.0;

    /// A gain in decibels; above [`Gain::MAX_DB`] it is that, below −72 dB it is silence, and not-a-number is unity.
    pub fn from_db(db: f32) -> Self {
        if db.is_nan() {
            return Self::UNITY;
        }
        Self::from_factor(10_f32.powf(db.min(Self::MAX_DB) / 20.0))
    }

    /// A gain as a factor of amplitude, limited to 0 … +24 dB.
    pub fn from_factor(factor: f32) -> Self {
        let max = 10_f32.powf(Self::MAX_DB / 20.0);
        Self { q12: (factor.clamp(0.0, max) * 4_096.0).round() as i32 }
    }

    /// The factor of amplitude.
    pub fn factor(self) -> f32 {
        self.q12 as f32 / 4_096.0
    }

    /// Multiplies a frame, rounding and saturating.
    pub fn apply(self, frame: &mut [i16]) {
        if self == Self::UNITY {
            return;
        }
        for sample in frame {
            *sample = saturate((i32::from(*sample) * self.q12 + (1 << 11)) >> 12);
        }
    }

    /// Multiplies a frame by a factor that moves evenly from this gain to another: a fade without a click.
    pub fn apply_fade(self, to: Self, frame: &mut [i16]) {
        let steps = frame.len().max(1) as i64;
        let distance = i64::from(to.q12) - i64::from(self.q12);
        for (step, sample) in frame.iter_mut().enumerate() {
            let q12 = i64::from(self.q12) + distance * (step as i64 + 1) / steps;
            *sample = saturate(((i64::from(*sample) * q12 + (1 << 11)) >> 12) as i32);
        }
    }
}

/// Adds `other` to `frame`, saturating, as far as both reach.
pub fn mix(frame: &mut [i16], other: &[i16]) {
    for (sample, &added) in frame.iter_mut().zip(other) {
        *sample = sample.saturating_add(added);
    }
}

/// Sum of the squares of a frame's samples.
pub fn energy(frame: &[i16]) -> u64 {
    // Blocks keep the inner sum in 32 bits: 2 squares of at most 2^30 fit a u32.
    frame.chunks(2).map(|pair| u64::from(pair.iter().map(|&s| i32::from(s).pow(2) as u32).sum::<u32>())).sum()
}

/// Root mean square of a frame, 0 to 32 768; 0 for an empty one.
pub fn rms(frame: &[i16]) -> f32 {
    if frame.is_empty() {
        return 0.0;
    }
    (energy(frame) as f64 / frame.len() as f64).sqrt() as f32
}

/// Level of a frame in dB below a full-scale square wave; −∞ for silence.
pub fn level_dbfs(frame: &[i16]) -> f32 {
    20.0 * (rms(frame) / 32_768.0).log10()
}

/// Largest magnitude in a frame, 0 to 32 768.
pub fn peak(frame: &[i16]) -> u16 {
    frame.iter().map(|sample| sample.unsigned_abs()).max().unwrap_or(0)
}

/// Reads little-endian samples as far as both slices reach (a last odd octet is left) and returns how many.
pub fn read_le(octets: &[u8], frame: &mut [i16]) -> usize {
    let pairs = octets.as_chunks::<2>().0;
    for (sample, &pair) in frame.iter_mut().zip(pairs) {
        *sample = i16::from_le_bytes(pair);
    }
    frame.len().min(pairs.len())
}

/// Writes little-endian samples as far as both slices reach and returns how many octets that were.
pub fn write_le(frame: &[i16], octets: &mut [u8]) -> usize {
    let pairs = octets.as_chunks_mut::<2>().0;
    for (pair, &sample) in pairs.iter_mut().zip(frame) {
        *pair = sample.to_le_bytes();
    }
    2 * frame.len().min(pairs.len())
}

/// Reads samples in network byte order as far as both slices reach (a last odd octet is left) and returns how many.
pub fn read_be(octets: &[u8], frame: &mut [i16]) -> usize {
    let pairs = octets.as_chunks::<2>().0;
    for (sample, &pair) in frame.iter_mut().zip(pairs) {
        *sample = i16::from_be_bytes(pair);
    }
    frame.len().min(pairs.len())
}

/// Writes samples in network byte order as far as both slices reach and returns how many octets that were.
pub fn write_be(frame: &[i16], octets: &mut [u8]) -> usize {
    let pairs = octets.as_chunks_mut::<2>().0;
    for (pair, &sample) in pairs.iter_mut().zip(frame) {
        *pair = sample.to_be_bytes();
    }
    2 * frame.len().min(pairs.len())
}

#[inline]
fn saturate(value: i32) -> i16 {
    value.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mixing_saturates_at_both_ends() {
        let mut frame = [30_000, -30_000, 5, 7];
        mix(&mut frame, &[30_000, -30_000, -3]);
        assert_eq!(frame, [i16::MAX, i16::MIN, 2, 7]);
    }

    #[test]
    fn six_decibels_double_and_saturate() {
        let mut frame = [1_000, -1_000, 20_000, -20_000];
        Gain::from_factor(2.0).apply(&mut frame);
        assert_eq!(frame, [2_000, -2_000, i16::MAX, i16::MIN]);
        assert!((Gain::from_db(6.0206).factor() - 2.0).abs() < 0.001);
        assert_eq!(Gain::from_db(f32::NAN), Gain::UNITY);
        assert_eq!(Gain::from_db(-200.0), Gain::MUTE);
        assert_eq!(Gain::from_db(f32::INFINITY), Gain::from_db(Gain::MAX_DB));
    }

    #[test]
    fn a_fade_ends_where_it_should() {
        let mut frame = [10_000; 100];
        Gain::UNITY.apply_fade(Gain::MUTE, &mut frame);
        assert!(frame[0] > 9_800);
        assert_eq!(frame[99], 0);
        assert!(frame.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn level_of_a_full_scale_square_is_zero() {
        assert!(level_dbfs(&[i16::MIN; 160]).abs() < 0.001);
        assert_eq!(rms(&[]), 0.0);
        assert_eq!(rms(&[3, -3, 3, -3]), 3.0);
        assert_eq!(energy(&[i16::MIN; 3]), 3 << 30);
        assert_eq!(peak(&[5, i16::MIN]), 32_768);
        assert_eq!(level_dbfs(&[0; 160]), f32::NEG_INFINITY);
    }

    proptest! {
        #[test]
        fn both_byte_orders_round_trip(frame in proptest::collection::vec(any::<i16>(), 0..200), room in 0_usize..450) {
            let mut octets = vec![0; room];
            let mut back = vec![0; frame.len()];
            let whole = frame.len().min(room / 2);
            prop_assert_eq!(write_le(&frame, &mut octets), 2 * whole);
            prop_assert_eq!(read_le(&octets, &mut back).min(whole), whole);
            prop_assert_eq!(&back[..whole], &frame[..whole]);
            prop_assert_eq!(write_be(&frame, &mut octets), 2 * whole);
            prop_assert_eq!(read_be(&octets, &mut back).min(whole), whole);
            prop_assert_eq!(&back[..whole], &frame[..whole]);
        }

        #[test]
        fn energy_is_the_sum_of_squares(frame in proptest::collection::vec(any::<i16>(), 0..200)) {
            let expected: i64 = frame.iter().map(|&s| i64::from(s) * i64::from(s)).sum();
            prop_assert_eq!(energy(&frame), expected as u64);
        }
    }
}
