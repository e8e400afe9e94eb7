//! Opus (RFC 6716) through libopus, mono, as its RTP format wants it (RFC 7587).
//!
//! ```text
//!  payload ─▶ OpusDecoder ─▶ PCM16 at 8, 16, 24 or 48 kHz      lost? ─▶ next payload's FEC, else concealment
//!  PCM16 at 8, 16, 24 or 48 kHz ─▶ OpusEncoder ─▶ payload of at most so many octets
//! ```
//!
//! The RTP clock is 48 kHz whatever rate either side works at: libopus codes at the rate that the session has, so no
//! resampler is needed. Neither side allocates after it was made. A payload that makes no sense is concealed like a lost one.

use crate::format::{MAX_PTIME_MS, Ptime, SampleRate};

/// Largest payload that libopus writes for one frame (RFC 6716 §3.2.1).
pub const MAX_FRAME_OCTETS: usize = 1_275;
/// A payload of so many octets or fewer says that the talker pauses: discontinuous transmission (RFC 6716 §2.1.9).
pub const MAX_DTX_OCTETS: usize = 2;
/// Concealment is written in steps of this many tenths of a millisecond: libopus' shortest frame.
const STEP_TENTHS_MS: usize = 25;

/// How our encoder works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpusSettings {
    /// Bits a second, 6 000 to 128 000; `None` lets libopus choose by rate.
    pub bitrate: Option<u32>,
    /// 0 to 10: what the processor may spend. 10 costs about twice what 5 does.
    pub complexity: u8,
    /// In-band forward error correction: each packet carries the one before it again, coarsely.
    pub fec: bool,
    /// Share of packets that is expected to be lost, in percent; FEC takes its bits by it.
    pub expected_loss_percent: u8,
    /// Sends next to nothing while there is silence.
    pub dtx: bool,
    /// The highest rate that the listener can make use of (`maxplaybackrate`).
    pub max_playback: SampleRate,
}

impl OpusSettings {
    /// Complexity without a setting: telephone speech gains little above it.
    pub const DEFAULT_COMPLEXITY: u8 = 5;
    /// Loss that FEC is prepared for without a setting.
    pub const DEFAULT_EXPECTED_LOSS_PERCENT: u8 = 5;
}

impl Default for OpusSettings {
    fn default() -> Self {
        Self {
            bitrate: None,
            complexity: Self::DEFAULT_COMPLEXITY,
            fec: true,
            expected_loss_percent: Self::DEFAULT_EXPECTED_LOSS_PERCENT,
            dtx: false,
            max_playback: SampleRate::Hz48000,
        }
    }
}

/// True for the packet times that one Opus packet of ours can have: 10, 20, 40 and 60 ms.
pub const fn has_ptime(ptime: Ptime) -> bool {
    matches!(ptime.as_ms(), 10 | 20 | 40 | 60)
}

/// Tenths of a millisecond of sound in a payload, by its first two octets (RFC 6716 §3.1); 0 when it is empty or says
/// more than 120 ms, which none may.
pub const fn duration_tenths_ms(payload: &[u8]) -> usize {
    let Some(&toc) = payload.first() else { return 0 };
    let config = toc >> 3;
    let frame = match config {
        0..=11 => [100, 200, 400, 600][(config & 3) as usize],
        12..=15 => [100, 200][(config & 1) as usize],
        _ => [25, 50, 100, 200][(config & 3) as usize],
    };
    let frames = match (toc & 3, payload) {
        (0, _) => 1,
        (1 | 2, _) => 2,
        (_, [_, count, ..]) => (*count & 63) as usize,
        _ => 0,
    };
    if frame * frames > 1_200 { 0 } else { frame * frames }
}

/// Opus → PCM16 at one rate.
#[derive(Debug)]
pub struct OpusDecoder {
    /// `None` when libopus could not be had (no memory): silence then.
    inner: Option<opus::Decoder>,
    rate: SampleRate,
}

impl OpusDecoder {
    /// A decoder that gives samples at `rate`.
    pub fn new(rate: SampleRate) -> Self {
        Self { inner: opus::Decoder::new(rate.hz(), opus::Channels::Mono).ok(), rate }
    }

    /// The rate of the samples that are given.
    pub const fn rate(&self) -> SampleRate {
        self.rate
    }

    /// Samples that a payload becomes.
    pub const fn samples_in(&self, payload: &[u8]) -> usize {
        self.rate.samples_per_ms() * duration_tenths_ms(payload) / 10
    }

    /// Decodes a payload and returns how many samples were written. One that makes no sense is concealed.
    pub fn decode(&mut self, payload: &[u8], samples: &mut [i16]) -> usize {
        let wanted = self.samples_in(payload);
        if wanted == 0 || wanted > samples.len() {
            return 0;
        }
        let decoded = self.inner.as_mut().and_then(|inner| inner.decode(payload, samples, false).ok());
        decoded.unwrap_or_else(|| self.conceal(&mut samples[..wanted]))
    }

    /// Fills `samples` with what the packet before `next` held, from `next`'s FEC where it has some, else as
    /// [`OpusDecoder::conceal`] does. To be followed by [`OpusDecoder::decode`] of `next`.
    pub fn recover(&mut self, next: &[u8], samples: &mut [i16]) -> usize {
        let whole = self.whole_steps(samples.len());
        let recovered =
            self.inner.as_mut().and_then(|inner| inner.decode(next, &mut samples[..whole], true).ok());
        match recovered {
            Some(len) if len > 0 => len,
            _ => self.conceal(samples),
        }
    }

    /// Fills `samples` with what might have been said in a packet that did not come, and returns how many that were: whole
    /// steps of 2.5 ms.
    pub fn conceal(&mut self, samples: &mut [i16]) -> usize {
        let mut written = 0;
        let whole = self.whole_steps(samples.len());
        let longest = self.rate.samples_per_ms() * MAX_PTIME_MS as usize;
        while written < whole {
            let part = &mut samples[written..whole.min(written + longest)];
            let len = part.len();
            let concealed = self.inner.as_mut().and_then(|inner| inner.decode(&[], part, false).ok());
            if concealed != Some(len) {
                part.fill(0);
            }
            written += len;
        }
        whole
    }

    const fn whole_steps(&self, samples: usize) -> usize {
        let step = self.rate.samples_per_ms() * STEP_TENTHS_MS / 10;
        samples / step * step
    }
}

/// PCM16 at one rate → Opus.
#[derive(Debug)]
pub struct OpusEncoder {
    /// `None` when libopus could not be had (no memory): nothing is written then.
    inner: Option<opus::Encoder>,
    rate: SampleRate,
}

impl OpusEncoder {
    /// An encoder that takes samples at `rate`.
    pub fn new(rate: SampleRate, settings: OpusSettings) -> Self {
        let inner = opus::Encoder::new(rate.hz(), opus::Channels::Mono, opus::Application::Voip).and_then(
            |mut encoder| {
                encoder.set_bitrate(match settings.bitrate {
                    Some(bits) => opus::Bitrate::Bits(bits.clamp(6_000, 128_000) as i32),
                    None => opus::Bitrate::Auto,
                })?;
                encoder.set_complexity(i32::from(settings.complexity.min(10)))?;
                encoder.set_inband_fec(settings.fec)?;
                encoder.set_packet_loss_perc(i32::from(settings.expected_loss_percent.min(100)))?;
                encoder.set_dtx(settings.dtx)?;
                encoder.set_max_bandwidth(match settings.max_playback {
                    SampleRate::Hz8000 => opus::Bandwidth::Narrowband,
                    SampleRate::Hz16000 => opus::Bandwidth::Wideband,
                    SampleRate::Hz24000 => opus::Bandwidth::Superwideband,
                    SampleRate::Hz48000 => opus::Bandwidth::Fullband,
                })?;
                Ok(encoder)
            },
        );
        Self { inner: inner.ok(), rate }
    }

    /// The rate of the samples that are taken.
    pub const fn rate(&self) -> SampleRate {
        self.rate
    }

    /// Encodes one packet's samples (see [`has_ptime`]) into at most `payload.len()` octets and returns how many were
    /// written; 0 when the length is none of Opus'. At most [`MAX_DTX_OCTETS`]: it need not be sent.
    pub fn encode(&mut self, samples: &[i16], payload: &mut [u8]) -> usize {
        self.inner.as_mut().and_then(|inner| inner.encode(samples, payload).ok()).unwrap_or(0)
    }

    /// How much later a sound leaves than it came, in samples: libopus' look-ahead.
    pub fn lookahead(&mut self) -> usize {
        self.inner.as_mut().and_then(|inner| inner.get_lookahead().ok()).map_or(0, |samples| samples as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tone::Sine;

    fn packets(rate: SampleRate, settings: OpusSettings, count: usize) -> Vec<Vec<u8>> {
        let mut encoder = OpusEncoder::new(rate, settings);
        let mut sine = Sine::new(440.0, 10_000, rate);
        let mut frame = vec![0; rate.samples(Ptime::MS_20)];
        (0..count)
            .map(|_| {
                sine.fill(&mut frame);
                let mut payload = [0; MAX_FRAME_OCTETS];
                let len = encoder.encode(&frame, &mut payload);
                payload[..len].to_vec()
            })
            .collect()
    }

    #[test]
    fn the_first_octets_tell_how_long_a_packet_is() {
        for (payload, tenths_ms) in [
            (&[][..], 0),
            (&[0x00], 100),
            (&[3 << 3], 600),
            (&[13 << 3], 200),
            (&[16 << 3], 25),
            (&[31 << 3], 200),
            (&[1 << 3 | 1, 0], 400),
            (&[1 << 3 | 3, 0x83], 600),
            (&[3 << 3 | 3, 3], 0),
            (&[3], 0),
        ] {
            assert_eq!(duration_tenths_ms(payload), tenths_ms, "{payload:?}");
        }
        for packet in packets(SampleRate::Hz16000, OpusSettings::default(), 3) {
            assert_eq!(duration_tenths_ms(&packet), 200);
        }
    }

    #[test]
    fn only_its_own_packet_times_are_encoded() {
        let mut encoder = OpusEncoder::new(SampleRate::Hz8000, OpusSettings::default());
        let mut payload = [0; MAX_FRAME_OCTETS];
        for ptime in (10..=60).filter_map(Ptime::from_ms) {
            let samples = vec![100; SampleRate::Hz8000.samples(ptime)];
            assert_eq!(encoder.encode(&samples, &mut payload) > 0, has_ptime(ptime), "{ptime}");
        }
    }

    #[test]
    fn a_lost_packet_comes_back_from_the_next_ones_fec() {
        let rate = SampleRate::Hz16000;
        let settings = OpusSettings { expected_loss_percent: 20, ..OpusSettings::default() };
        let packets = packets(rate, settings, 60);
        let mut whole = OpusDecoder::new(rate);
        let mut lossy = OpusDecoder::new(rate);
        let (mut expected, mut heard) = ([0; 320], [0; 320]);
        for (n, packet) in packets.iter().enumerate() {
            assert_eq!(whole.decode(packet, &mut expected), 320);
            if n == 40 {
                assert_eq!(lossy.recover(&packets[41], &mut heard), 320);
                let loudness = crate::pcm::rms(&heard);
                assert!((loudness - crate::pcm::rms(&expected)).abs() < 1_500.0, "{loudness}");
            } else {
                assert_eq!(lossy.decode(packet, &mut heard), 320);
            }
        }
    }

    #[test]
    fn silence_with_dtx_need_not_be_sent() {
        let settings = OpusSettings { dtx: true, ..OpusSettings::default() };
        let mut encoder = OpusEncoder::new(SampleRate::Hz16000, settings);
        let mut payload = [0; MAX_FRAME_OCTETS];
        let small = (0..100).filter(|_| encoder.encode(&[0; 320], &mut payload) <= MAX_DTX_OCTETS).count();
        assert!(small > 60, "{small} of 100");
    }

    #[test]
    fn a_narrow_listener_is_sent_a_narrow_band() {
        let settings = OpusSettings { max_playback: SampleRate::Hz8000, ..OpusSettings::default() };
        for packet in packets(SampleRate::Hz48000, settings, 5) {
            let bandwidth = opus::packet::get_bandwidth(&packet).unwrap();
            assert!(matches!(bandwidth, opus::Bandwidth::Narrowband), "{bandwidth:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_payload_can_make_it_panic(payload in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), room in 0_usize..6_000) {
            let mut decoder = OpusDecoder::new(SampleRate::Hz48000);
            let mut samples = vec![0; room];
            for _ in 0..2 {
                proptest::prop_assert!(decoder.decode(&payload, &mut samples) <= room);
                proptest::prop_assert!(decoder.recover(&payload, &mut samples) <= room);
                proptest::prop_assert!(decoder.conceal(&mut samples) <= room);
            }
        }
    }
}
