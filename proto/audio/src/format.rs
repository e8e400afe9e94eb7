//! The units of sound that every crate shares: codec, sample rate, RTP clock rate, packet time, channels.
//!
//! A [`SampleRate`] counts samples of sound a second, a [`ClockRate`] counts ticks of an RTP timestamp a second.
//! They are equal for G.711 and L16 and differ for G.722 (RFC 3551 §4.5.2) and Opus (RFC 7587), so they are two types.

use std::fmt;

/// Longest packet time that we send or accept, in milliseconds.
pub const MAX_PTIME_MS: u32 = 60;
/// Shortest packet time that we send or accept, in milliseconds.
pub const MIN_PTIME_MS: u32 = 10;
/// Most PCM16 samples that one packet can become: the longest packet at the highest sample rate.
pub const MAX_PACKET_SAMPLES: usize = 48 * MAX_PTIME_MS as usize;
/// Most octets of payload that we send in one packet: an Ethernet frame less IP, UDP and RTP headers (1 500 − 20 − 8 −
/// 12). Larger packets would be cut up on the way.
pub const MAX_SENT_PAYLOAD_OCTETS: usize = 1_460;
/// Most octets of payload in one packet of any [`Codec`]: the longest packet of L16 at 16 kHz.
pub const MAX_PAYLOAD_OCTETS: usize = 2 * 16 * MAX_PTIME_MS as usize;

/// Samples of sound a second, one of the rates between which we resample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SampleRate {
    /// Narrow band, the telephone network's own.
    Hz8000,
    /// Wide band, what speech recognisers listen to.
    Hz16000,
    /// What most speech synthesisers speak.
    Hz24000,
    /// Full band.
    Hz48000,
}

impl SampleRate {
    /// Every supported rate, lowest first.
    pub const ALL: [Self; 4] = [Self::Hz8000, Self::Hz16000, Self::Hz24000, Self::Hz48000];

    /// The rate of so many samples a second, if it is one of ours.
    pub const fn from_hz(hz: u32) -> Option<Self> {
        match hz {
            8_000 => Some(Self::Hz8000),
            16_000 => Some(Self::Hz16000),
            24_000 => Some(Self::Hz24000),
            48_000 => Some(Self::Hz48000),
            _ => None,
        }
    }

    /// Samples a second.
    pub const fn hz(self) -> u32 {
        match self {
            Self::Hz8000 => 8_000,
            Self::Hz16000 => 16_000,
            Self::Hz24000 => 24_000,
            Self::Hz48000 => 48_000,
        }
    }

    /// Samples a millisecond.
    pub const fn samples_per_ms(self) -> usize {
        (self.hz() / 1_000) as usize
    }

    /// Samples of one channel in a packet of this length.
    pub const fn samples(self, ptime: Ptime) -> usize {
        self.samples_per_ms() * ptime.as_ms() as usize
    }
}

impl fmt::Display for SampleRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Hz", self.hz())
    }
}

/// Ticks a second of the RTP timestamp. G.722 samples at 16 kHz and ticks at 8 kHz.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClockRate(u32);

impl ClockRate {
    /// 8 000 ticks a second: G.711, G.722, L16 at 8 kHz, telephone-event beside them.
    pub const HZ_8000: Self = Self(8_000);
    /// 16 000 ticks a second: L16 at 16 kHz.
    pub const HZ_16000: Self = Self(16_000);
    /// L16 at 24 kHz.
    pub const HZ_24000: Self = Self(24_000);
    /// 48 000 ticks a second: Opus.
    pub const HZ_48000: Self = Self(48_000);
    /// The slowest clock that [`ClockRate::new`] takes.
    pub const MIN_HZ: u32 = 1_000;
    /// The fastest clock that [`ClockRate::new`] takes.
    pub const MAX_HZ: u32 = 192_000;

    /// A clock of so many ticks a second; `None` outside 1 kHz to 192 kHz, which no audio format has.
    pub const fn new(hz: u32) -> Option<Self> {
        if hz < Self::MIN_HZ || hz > Self::MAX_HZ { None } else { Some(Self(hz)) }
    }

    /// Ticks a second.
    pub const fn hz(self) -> u32 {
        self.0
    }

    /// Timestamp ticks in one packet of this length.
    pub const fn ticks(self, ptime: Ptime) -> u32 {
        self.0 / 1_000 * ptime.as_ms()
    }

    /// Whole milliseconds in so many ticks.
    pub const fn ticks_to_ms(self, ticks: u32) -> u32 {
        (ticks as u64 * 1_000 / self.0 as u64) as u32
    }
}

impl fmt::Display for ClockRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ticks/s", self.0)
    }
}

/// Length of sound in one packet: 10 to 60 whole milliseconds, 20 by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ptime(u8);

impl Ptime {
    /// 10 ms.
    pub const MS_10: Self = Self(10);
    /// 20 ms, what nearly everybody sends.
    pub const MS_20: Self = Self(20);
    /// 30 ms.
    pub const MS_30: Self = Self(30);
    /// 40 ms.
    pub const MS_40: Self = Self(40);
    /// 60 ms.
    pub const MS_60: Self = Self(60);

    /// A packet time of so many milliseconds; `None` outside 10 to 60.
    pub const fn from_ms(ms: u32) -> Option<Self> {
        if ms < MIN_PTIME_MS || ms > MAX_PTIME_MS { None } else { Some(Self(ms as u8)) }
    }

    /// Whole milliseconds.
    pub const fn as_ms(self) -> u32 {
        self.0 as u32
    }

    /// The same as a [`std::time::Duration`].
    pub const fn as_duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0 as u64)
    }
}

impl Default for Ptime {
    fn default() -> Self {
        Self::MS_20
    }
}

impl fmt::Display for Ptime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// Channels of sound in one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channels {
    /// One, as everything on a telephone.
    Mono,
    /// Two, interleaved; recordings have the caller left and the agent right.
    Stereo,
}

impl Channels {
    /// How many.
    pub const fn count(self) -> usize {
        match self {
            Self::Mono => 1,
            Self::Stereo => 2,
        }
    }
}

/// How sound is written on the wire. All are mono.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// G.711 µ-law at 8 kHz (RFC 3551 §4.5.14).
    Pcmu,
    /// G.711 A-law at 8 kHz (RFC 3551 §4.5.14).
    Pcma,
    /// G.722 at 64 kbit/s: 16 kHz of sound on a clock of 8 kHz (RFC 3551 §4.5.2).
    G722,
    /// Opus, on a clock of 48 kHz whatever the sound's rate (RFC 7587).
    Opus,
    /// Linear PCM16 in network byte order at 8 kHz (RFC 3551 §4.5.11).
    L16_8k,
    /// Linear PCM16 in network byte order at 16 kHz (RFC 3551 §4.5.11).
    L16_16k,
    /// The same at 24 kHz, of media streams only: it is in no offer or answer.
    L16_24k,
    /// The same at 48 kHz, of which 20 ms fill no datagram.
    L16_48k,
}

impl Codec {
    /// Every codec of RTP, in the order in which we like to be offered them by a telephone network.
    pub const ALL: [Self; 6] = [Self::Pcmu, Self::Pcma, Self::G722, Self::Opus, Self::L16_16k, Self::L16_8k];

    /// The codec of an `a=rtpmap`: encoding name (compared without case), clock rate in hertz, channels.
    pub fn from_rtpmap(encoding_name: &str, clock_rate_hz: u32, channels: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| {
            codec.clock_rate().hz() == clock_rate_hz
                && codec.rtpmap_channels() == channels
                && codec.encoding_name().eq_ignore_ascii_case(encoding_name)
        })
    }

    /// The codec of a static payload type (RFC 3551 table 4), for an `m=` line without an `a=rtpmap`.
    pub const fn from_static_payload_type(payload_type: u8) -> Option<Self> {
        match payload_type {
            0 => Some(Self::Pcmu),
            8 => Some(Self::Pcma),
            9 => Some(Self::G722),
            _ => None,
        }
    }

    /// The encoding name of `a=rtpmap`.
    pub const fn encoding_name(self) -> &'static str {
        match self {
            Self::Pcmu => "PCMU",
            Self::Pcma => "PCMA",
            Self::G722 => "G722",
            Self::Opus => "opus",
            Self::L16_8k | Self::L16_16k | Self::L16_24k | Self::L16_48k => "L16",
        }
    }

    /// The channels of `a=rtpmap`: always 2 for Opus, even when it is mono (RFC 7587 §7).
    pub const fn rtpmap_channels(self) -> u32 {
        if matches!(self, Self::Opus) { 2 } else { 1 }
    }

    /// The payload type that RFC 3551 fixes; `None` when it must be a dynamic one.
    pub const fn static_payload_type(self) -> Option<u8> {
        match self {
            Self::Pcmu => Some(0),
            Self::Pcma => Some(8),
            Self::G722 => Some(9),
            Self::Opus | Self::L16_8k | Self::L16_16k | Self::L16_24k | Self::L16_48k => None,
        }
    }

    /// Samples of sound a second; of Opus the most, since it codes and decodes at any [`SampleRate`].
    pub const fn sample_rate(self) -> SampleRate {
        match self {
            Self::Pcmu | Self::Pcma | Self::L16_8k => SampleRate::Hz8000,
            Self::G722 | Self::L16_16k => SampleRate::Hz16000,
            Self::L16_24k => SampleRate::Hz24000,
            Self::Opus | Self::L16_48k => SampleRate::Hz48000,
        }
    }

    /// Samples a second that a decoder or encoder of this codec works at, for a session at `wanted`.
    pub const fn native_rate(self, wanted: SampleRate) -> SampleRate {
        match self {
            Self::Opus => wanted,
            fixed => fixed.sample_rate(),
        }
    }

    /// Ticks a second of the RTP timestamp.
    pub const fn clock_rate(self) -> ClockRate {
        match self {
            Self::Pcmu | Self::Pcma | Self::G722 | Self::L16_8k => ClockRate::HZ_8000,
            Self::L16_16k => ClockRate::HZ_16000,
            Self::L16_24k => ClockRate::HZ_24000,
            Self::Opus | Self::L16_48k => ClockRate::HZ_48000,
        }
    }

    /// Channels of sound.
    pub const fn channels(self) -> Channels {
        Channels::Mono
    }

    /// Samples in one packet of this length.
    pub const fn samples(self, ptime: Ptime) -> usize {
        self.sample_rate().samples(ptime)
    }

    /// True when the length of a payload follows from its packet time, as with all but Opus.
    pub const fn has_fixed_size(self) -> bool {
        !matches!(self, Self::Opus)
    }

    /// Octets of payload in one packet of this length; for Opus the most that we send.
    pub const fn octets(self, ptime: Ptime) -> usize {
        self.octets_in_samples(self.samples(ptime))
    }

    /// The longest packet that we send, in whole 10 ms: 60 ms, but 40 ms of L16 at 16 kHz, which fill
    /// [`MAX_SENT_PAYLOAD_OCTETS`]. (At 24 and 48 kHz it is a frame of a stream, which nothing bounds so.)
    pub const fn max_ptime(self) -> Ptime {
        match self {
            Self::L16_16k => Ptime::MS_40,
            Self::L16_24k | Self::L16_48k => Ptime::MS_20,
            _ => Ptime::MS_60,
        }
    }

    /// The longest packet time that we can send and that is no longer than this one: Opus knows 10, 20, 40 and 60 ms only.
    pub const fn fitting_ptime(self, wanted: Ptime) -> Ptime {
        let max = self.max_ptime();
        if wanted.0 > max.0 {
            return max;
        }
        match self {
            Self::Opus => match wanted.as_ms() {
                60.. => Ptime::MS_60,
                40..60 => Ptime::MS_40,
                20..40 => Ptime::MS_20,
                _ => Ptime::MS_10,
            },
            _ => wanted,
        }
    }

    /// RTP timestamp ticks in one packet of this length.
    pub const fn ticks(self, ptime: Ptime) -> u32 {
        self.clock_rate().ticks(ptime)
    }

    /// RTP timestamp ticks of sound in a payload.
    pub const fn ticks_in(self, payload: &[u8]) -> u32 {
        let octets = payload.len() as u32;
        match self {
            Self::Pcmu | Self::Pcma | Self::G722 => octets,
            Self::L16_8k | Self::L16_16k | Self::L16_24k | Self::L16_48k => octets / 2,
            Self::Opus => crate::opus::duration_tenths_ms(payload) as u32 * 48 / 10,
        }
    }

    /// Whole milliseconds of sound in a payload.
    pub const fn ms_in(self, payload: &[u8]) -> usize {
        self.clock_rate().ticks_to_ms(self.ticks_in(payload)) as usize
    }

    /// The octet that silence is made of: 0xFF in µ-law, 0xD5 in A-law, zero in L16. `None` where silence must be encoded
    /// like any sound.
    pub const fn silence_octet(self) -> Option<u8> {
        match self {
            Self::Pcmu => Some(crate::g711::ULAW_SILENCE),
            Self::Pcma => Some(crate::g711::ALAW_SILENCE),
            Self::L16_8k | Self::L16_16k | Self::L16_24k | Self::L16_48k => Some(0),
            Self::G722 | Self::Opus => None,
        }
    }

    /// Octets of so many samples; for Opus the most that we send.
    pub const fn octets_in_samples(self, samples: usize) -> usize {
        match self {
            Self::Pcmu | Self::Pcma => samples,
            Self::G722 => samples / 2,
            Self::L16_8k | Self::L16_16k | Self::L16_24k | Self::L16_48k => samples * 2,
            Self::Opus => MAX_SENT_PAYLOAD_OCTETS,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.encoding_name(), self.clock_rate().hz())?;
        match self.rtpmap_channels() {
            1 => Ok(()),
            channels => write!(f, "/{channels}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_milliseconds_have_the_sizes_of_rfc_3551() {
        let sizes = |codec: Codec| {
            (codec.samples(Ptime::MS_20), codec.octets(Ptime::MS_20), codec.ticks(Ptime::MS_20))
        };
        assert_eq!(sizes(Codec::Pcmu), (160, 160, 160));
        assert_eq!(sizes(Codec::Pcma), (160, 160, 160));
        assert_eq!(sizes(Codec::G722), (320, 160, 160));
        assert_eq!(sizes(Codec::L16_8k), (160, 320, 160));
        assert_eq!(sizes(Codec::L16_16k), (320, 640, 320));
    }

    #[test]
    fn ptime_is_ten_to_sixty() {
        assert_eq!(Ptime::from_ms(9), None);
        assert_eq!(Ptime::from_ms(10), Some(Ptime::MS_10));
        assert_eq!(Ptime::from_ms(60), Some(Ptime::MS_60));
        assert_eq!(Ptime::from_ms(61), None);
        assert_eq!(Ptime::from_ms(276), None, "must not wrap into range");
    }

    #[test]
    fn no_packet_is_larger_than_the_named_maxima() {
        for codec in Codec::ALL {
            assert!(codec.octets(Ptime::MS_60) <= MAX_PAYLOAD_OCTETS);
        }
        for rate in SampleRate::ALL {
            assert!(rate.samples(Ptime::MS_60) <= MAX_PACKET_SAMPLES);
            assert_eq!(SampleRate::from_hz(rate.hz()), Some(rate));
        }
    }

    #[test]
    fn rtpmap_names_a_codec_without_case() {
        assert_eq!(Codec::from_rtpmap("pcmu", 8_000, 1), Some(Codec::Pcmu));
        assert_eq!(Codec::from_rtpmap("g722", 8_000, 1), Some(Codec::G722));
        assert_eq!(Codec::from_rtpmap("G722", 16_000, 1), None, "the clock is 8 kHz for ever");
        assert_eq!(Codec::from_rtpmap("OPUS", 48_000, 2), Some(Codec::Opus));
        assert_eq!(Codec::from_rtpmap("opus", 48_000, 1), None);
        assert_eq!(Codec::from_rtpmap("L16", 8_000, 1), Some(Codec::L16_8k));
        assert_eq!(Codec::from_rtpmap("l16", 16_000, 1), Some(Codec::L16_16k));
        assert_eq!(Codec::from_rtpmap("L16", 8_000, 2), None);
        assert_eq!(Codec::from_rtpmap("L16", 44_100, 1), None);
        assert_eq!(Codec::from_rtpmap("PCMA", 16_000, 1), None);
        assert_eq!(Codec::Opus.to_string(), "opus/48000/2");
    }

    #[test]
    fn a_payload_tells_how_long_it_sounds() {
        for (codec, len, ticks, ms) in [
            (Codec::Pcmu, 160, 160, 20),
            (Codec::G722, 160, 160, 20),
            (Codec::L16_8k, 160, 80, 10),
            (Codec::L16_16k, 640, 320, 20),
            (Codec::Opus, 1, 480, 10),
        ] {
            let payload = vec![0; len];
            assert_eq!((codec.ticks_in(&payload), codec.ms_in(&payload)), (ticks, ms), "{codec}");
        }
    }

    #[test]
    fn opus_packets_have_only_its_own_lengths() {
        let fitting = |codec: Codec, ms: u32| codec.fitting_ptime(Ptime::from_ms(ms).unwrap()).as_ms();
        assert_eq!(
            [10, 15, 20, 30, 39, 40, 50, 60].map(|ms| fitting(Codec::Opus, ms)),
            [10, 10, 20, 20, 20, 40, 40, 60]
        );
        assert_eq!([10, 15, 30, 60].map(|ms| fitting(Codec::G722, ms)), [10, 15, 30, 60]);
        assert_eq!(fitting(Codec::L16_16k, 60), 40);
    }

    #[test]
    fn static_payload_types_agree_both_ways() {
        for codec in Codec::ALL {
            if let Some(payload_type) = codec.static_payload_type() {
                assert_eq!(Codec::from_static_payload_type(payload_type), Some(codec));
            }
        }
        assert_eq!(Codec::from_static_payload_type(3), None);
    }

    #[test]
    fn longest_packets_that_are_sent_fit_a_frame() {
        assert_eq!(
            Codec::ALL.map(Codec::max_ptime),
            [Ptime::MS_60, Ptime::MS_60, Ptime::MS_60, Ptime::MS_60, Ptime::MS_40, Ptime::MS_60]
        );
        for codec in Codec::ALL {
            assert!(codec.octets(codec.max_ptime()) <= MAX_SENT_PAYLOAD_OCTETS, "{codec}");
        }
    }

    #[test]
    fn ticks_become_milliseconds_without_overflow() {
        assert_eq!(ClockRate::HZ_8000.ticks_to_ms(160), 20);
        assert_eq!(ClockRate::HZ_48000.ticks_to_ms(u32::MAX), 89_478_485);
        assert_eq!(ClockRate::new(0), None);
    }
}
