//! What the generator says into a call, and how it recognises it when it comes back: the in-band marker.
//!
//! ```text
//!  frame k:  │ mark (8 samples) │ silence, or once a second a 19 ms tone burst │
//!             magic, k, check     500 / 1 000 / 1 500 / 2 000 Hz in turn
//! ```
//!
//! **Mark.** Sixteen quiet levels (below −42 dBFS) that survive decoding and encoding, and also from one law of G.711 to the
//! other, carry the frame's number. Where the target echoes whole frames, each one tells its round trip, and a number that never comes back is
//! audio lost on either way, also one that RTP sequence numbers cannot show.
//!
//! **Burst.** Where the audio is resampled or cut into other frames on its way, marks die and the onset of the burst is
//! looked for instead, to the sample; its pitch tells which of the last four seconds it belongs to.
use tandem_audio::g711;

use crate::clock::Mono;

/// Octets and samples of 20 ms of G.711.
pub const FRAME_OCTETS: usize = 160;

/// Frames a second.
pub const FRAMES_PER_S: u64 = 50;

/// Nanoseconds of a sample at 8 kHz.
const SAMPLE_NS: u64 = 125_000;

/// G.711's two laws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Law {
    /// µ-law, payload type 0.
    Pcmu,
    /// A-law, payload type 8.
    Pcma,
}

impl Law {
    /// RFC 3551.
    pub const fn payload_type(self) -> u8 {
        match self {
            Self::Pcmu => 0,
            Self::Pcma => 8,
        }
    }

    /// The encoding name of an rtpmap.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pcmu => "PCMU",
            Self::Pcma => "PCMA",
        }
    }

    fn silence(self) -> u8 {
        match self {
            Self::Pcmu => g711::ULAW_SILENCE,
            Self::Pcma => g711::ALAW_SILENCE,
        }
    }

    fn encode(self, sample: i16) -> u8 {
        match self {
            Self::Pcmu => g711::ulaw_from_linear(sample),
            Self::Pcma => g711::alaw_from_linear(sample),
        }
    }

    fn decode(self, code: u8) -> i16 {
        match self {
            Self::Pcmu => g711::linear_from_ulaw(code),
            Self::Pcma => g711::linear_from_alaw(code),
        }
    }

    /// One of sixteen quiet positive codes: the levels are A-law's quietest, each of which has a µ-law code of its own.
    fn quiet_code(self, nibble: u8) -> u8 {
        self.encode(A_LAW_STEP / 2 + A_LAW_STEP * i16::from(nibble))
    }

    fn nibble_of(self, code: u8) -> Option<u8> {
        (0..16).find(|&nibble| self.quiet_code(nibble) == code)
    }
}

/// Distance between A-law's sixteen quietest levels, in units of linear 16-bit samples.
const A_LAW_STEP: i16 = 16;

/// Samples that a mark takes.
const MARK_SAMPLES: usize = 8;

/// What a mark starts with; silence (0xF, or 0x0 in A-law, all over) never looks like it.
const MAGIC: [u8; 3] = [0xA, 0x3, 0xC];

/// Pitches of the bursts, in turn. All inside the telephone band, far enough apart to be told by their zero crossings.
const BURST_HZ: [f64; 4] = [500.0, 1_000.0, 1_500.0, 2_000.0];

/// Peak of a burst, about −12 dBFS: well above every threshold, well below clipping.
const BURST_PEAK: f64 = 8_000.0;

/// A sample louder than this belongs to a burst; marks and resampling noise are far below.
const LOUD: u16 = 2_000;

/// So much quiet must precede an onset: 100 ms, which no pitch of ours has inside a burst.
const QUIET_SAMPLES: u32 = 800;

/// The samples after the onset in which zero crossings are counted: 16 ms, safely inside the 19 ms of a burst.
const PITCH_SAMPLES: u32 = 128;

/// Frames of a whole round of bursts.
const ROUND: usize = BURST_HZ.len() * FRAMES_PER_S as usize;

/// Every frame that a stream can send, without the marks, and the table to read what comes back. One for all streams.
pub struct Signal {
    law: Law,
    frames: Box<[[u8; FRAME_OCTETS]]>,
    linear: [i16; 256],
    quiet_codes: [u8; 16],
    /// What each code means in a mark.
    nibbles: [Option<u8>; 256],
}

impl Signal {
    /// The signal in one law.
    pub fn new(law: Law) -> Self {
        let mut frames = vec![[law.silence(); FRAME_OCTETS]; ROUND].into_boxed_slice();
        for (kind, hz) in BURST_HZ.into_iter().enumerate() {
            let frame = &mut frames[kind * FRAMES_PER_S as usize];
            for (n, code) in frame[MARK_SAMPLES..].iter_mut().enumerate() {
                // A cosine: the very first sample is loud, so the onset is exact.
                let phase = std::f64::consts::TAU * hz * n as f64 / 8_000.0;
                *code = law.encode((BURST_PEAK * phase.cos()) as i16);
            }
        }
        let linear = std::array::from_fn(|code| law.decode(code as u8));
        Self {
            law,
            frames,
            linear,
            quiet_codes: std::array::from_fn(|nibble| law.quiet_code(nibble as u8)),
            nibbles: std::array::from_fn(|code| law.nibble_of(code as u8)),
        }
    }

    /// The law.
    pub fn law(&self) -> Law {
        self.law
    }

    /// Writes frame number `frame` of a stream.
    pub fn write(&self, frame: u64, payload: &mut [u8; FRAME_OCTETS]) {
        payload.copy_from_slice(&self.frames[(frame % ROUND as u64) as usize]);
        for (code, nibble) in payload.iter_mut().zip(mark(frame as u16)) {
            *code = self.quiet_codes[usize::from(nibble)];
        }
    }

    /// The burst that this frame carries, if it does.
    pub fn burst_in(frame: u64) -> Option<Burst> {
        frame
            .is_multiple_of(FRAMES_PER_S)
            .then(|| Burst((frame / FRAMES_PER_S % BURST_HZ.len() as u64) as u8))
    }

    /// Whether a mark can begin with this code: far cheaper than to read one.
    pub fn may_begin_mark(&self, code: u8) -> bool {
        self.nibbles[usize::from(code)] == Some(MAGIC[0])
    }

    /// The code of a linear sample in this law, and back: for transports of linear sound.
    pub fn code(&self, sample: i16) -> u8 {
        self.law.encode(sample)
    }

    /// The linear sample of a code.
    pub fn sample(&self, code: u8) -> i16 {
        self.linear[usize::from(code)]
    }

    /// The number in the mark at the start of a payload, if there is one.
    pub fn read_mark(&self, payload: &[u8]) -> Option<u16> {
        let codes = payload.get(..MARK_SAMPLES)?;
        let mut nibbles = [0; MARK_SAMPLES];
        for (nibble, &code) in nibbles.iter_mut().zip(codes) {
            *nibble = self.nibbles[usize::from(code)]?;
        }
        let number = nibbles[3..7].iter().fold(0_u16, |number, &nibble| number << 4 | u16::from(nibble));
        (nibbles == mark(number)).then_some(number)
    }
}

/// The nibbles of a mark: magic, four of the number, a check.
fn mark(number: u16) -> [u8; MARK_SAMPLES] {
    let n = |shift: u32| (number >> shift) as u8 & 0xF;
    let [a, b, c] = MAGIC;
    [a, b, c, n(12), n(8), n(4), n(0), n(12) ^ n(8) ^ n(4) ^ n(0) ^ 0x5]
}

/// Which of the four bursts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst(u8);

impl Burst {
    /// 0 to 3.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// How far into its frame a burst begins, nanoseconds.
    pub const OFFSET_NS: u64 = MARK_SAMPLES as u64 * SAMPLE_NS;
}

/// A burst that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub burst: Burst,
    /// When its beginning would be played if its packet were played on arrival.
    pub at: Mono,
    /// When that packet arrived.
    pub arrival: Mono,
}

/// Looks for bursts in the audio of one stream.
#[derive(Debug, Clone, Default)]
pub struct BurstDetector {
    quiet_samples: u32,
    onset: Option<Onset>,
}

#[derive(Debug, Clone, Copy)]
struct Onset {
    /// When the onset would be played if its packet were played on arrival.
    at: Mono,
    /// When its packet arrived.
    arrival: Mono,
    samples: u32,
    crossings: u32,
    negative: bool,
}

impl BurstDetector {
    /// Takes the next payload in order, with its arrival; returns a burst that is complete with it.
    pub fn record(&mut self, signal: &Signal, payload: &[u8], arrival: Mono) -> Option<Found> {
        let mut found = None;
        for (n, &code) in payload.iter().enumerate() {
            let sample = signal.linear[usize::from(code)];
            if let Some(onset) = &mut self.onset {
                onset.samples += 1;
                let negative = sample < 0;
                onset.crossings += u32::from(negative != onset.negative);
                onset.negative = negative;
                if onset.samples >= PITCH_SAMPLES {
                    let Onset { at, arrival, crossings, .. } = *onset;
                    found = burst_of(crossings).map(|burst| Found { burst, at, arrival }).or(found);
                    self.onset = None;
                    self.quiet_samples = 0;
                }
            } else if sample.unsigned_abs() > LOUD {
                if self.quiet_samples >= QUIET_SAMPLES {
                    let at = arrival + n as u64 * SAMPLE_NS;
                    self.onset = Some(Onset { at, arrival, samples: 0, crossings: 0, negative: sample < 0 });
                }
                self.quiet_samples = 0;
            } else {
                self.quiet_samples = self.quiet_samples.saturating_add(1);
            }
        }
        found
    }
}

/// The pitch with so many zero crossings in 16 ms, within a fifth of the distance between two pitches.
fn burst_of(crossings: u32) -> Option<Burst> {
    let crossings_per_hz = 2.0 * f64::from(PITCH_SAMPLES) / 8_000.0;
    (0..BURST_HZ.len() as u8)
        .find(|&kind| {
            let expected = BURST_HZ[usize::from(kind)] * crossings_per_hz;
            (f64::from(crossings) - expected).abs() <= 3.0
        })
        .map(Burst)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recoded(law: Law, payload: &[u8]) -> Vec<u8> {
        payload.iter().map(|&code| law.encode(law.decode(code))).collect()
    }

    fn frame(signal: &Signal, number: u64) -> [u8; FRAME_OCTETS] {
        let mut payload = [0; FRAME_OCTETS];
        signal.write(number, &mut payload);
        payload
    }

    #[test]
    fn mark_survives_decoding_and_encoding_in_both_laws() {
        for law in [Law::Pcmu, Law::Pcma] {
            let signal = Signal::new(law);
            for number in (0..65_536).step_by(13) {
                let payload = recoded(law, &frame(&signal, number));
                assert_eq!(signal.read_mark(&payload), Some(number as u16), "{law:?}");
            }
        }
    }

    #[test]
    fn mark_survives_from_one_law_to_the_other() {
        let [pcmu, pcma] = [Law::Pcmu, Law::Pcma].map(Signal::new);
        for (from, to) in [(&pcmu, &pcma), (&pcma, &pcmu)] {
            for number in (0..65_536).step_by(13) {
                let payload: Vec<u8> =
                    frame(from, number).iter().map(|&code| to.law.encode(from.law.decode(code))).collect();
                assert_eq!(to.read_mark(&payload), Some(number as u16), "{:?} to {:?}", from.law, to.law);
            }
        }
    }

    #[test]
    fn silence_and_short_payloads_bear_no_mark() {
        for law in [Law::Pcmu, Law::Pcma] {
            let signal = Signal::new(law);
            assert_eq!(signal.read_mark(&[law.silence(); FRAME_OCTETS]), None);
            assert_eq!(signal.read_mark(&[]), None);
        }
    }

    #[test]
    fn each_burst_is_found_at_its_first_sample_and_told_by_its_pitch() {
        for law in [Law::Pcmu, Law::Pcma] {
            let signal = Signal::new(law);
            let mut detector = BurstDetector::default();
            let mut found = Vec::new();
            for number in 0..450 {
                let arrival = Mono(1_000_000_000 + number * 20_000_000);
                found.extend(detector.record(&signal, &recoded(law, &frame(&signal, number)), arrival));
            }
            // The first burst has no quiet before it.
            let expected: Vec<_> = (1..9_u64)
                .map(|s| {
                    let arrival = Mono(1_000_000_000 + s * 1_000_000_000);
                    Found { burst: Burst((s % 4) as u8), at: arrival + Burst::OFFSET_NS, arrival }
                })
                .collect();
            assert_eq!(found, expected, "{law:?}");
        }
    }

    #[test]
    fn burst_is_found_when_the_audio_is_cut_into_other_frames() {
        let signal = Signal::new(Law::Pcmu);
        let stream: Vec<u8> = (0..120).flat_map(|number| frame(&signal, number)).collect();
        let mut detector = BurstDetector::default();
        // Shifted by 37 samples: 4 625 µs.
        let found: Vec<_> = stream[37..]
            .chunks(FRAME_OCTETS)
            .enumerate()
            .filter_map(|(n, chunk)| detector.record(&signal, chunk, Mono(n as u64 * 20_000_000)))
            .collect();
        let at = |s: u64| Mono(s * 1_000_000_000 + Burst::OFFSET_NS - 37 * SAMPLE_NS);
        let found: Vec<_> = found.iter().map(|found| (found.burst, found.at)).collect();
        assert_eq!(found, [(Burst(1), at(1)), (Burst(2), at(2))]);
    }

    #[test]
    fn bursts_survive_resampling_to_16_khz_and_back() {
        use tandem_audio::format::SampleRate;
        use tandem_audio::resample::Resampler;
        let signal = Signal::new(Law::Pcmu);
        let mut up = Resampler::new(SampleRate::Hz8000, SampleRate::Hz16000);
        let mut down = Resampler::new(SampleRate::Hz16000, SampleRate::Hz8000);
        let mut detector = BurstDetector::default();
        let mut found = Vec::new();
        for number in 0..220 {
            let linear: Vec<i16> =
                frame(&signal, number).iter().map(|&code| Law::Pcmu.decode(code)).collect();
            let (mut wide, mut narrow) = (vec![0; up.output_len(160)], vec![0; 200]);
            let wide_len = up.process(&linear, &mut wide);
            let narrow_len = down.process(&wide[..wide_len], &mut narrow);
            let payload: Vec<u8> =
                narrow[..narrow_len].iter().map(|&sample| Law::Pcmu.encode(sample)).collect();
            found.extend(detector.record(&signal, &payload, Mono(number * 20_000_000)));
        }
        assert_eq!(found.iter().map(|found| found.burst.0).collect::<Vec<_>>(), [1, 2, 3, 0]);
        for (second, Found { at, .. }) in (1_u64..).zip(&found) {
            let error_ns = at.signed_since(Mono(second * 1_000_000_000 + Burst::OFFSET_NS));
            assert!((0..4_000_000).contains(&error_ns), "onset is {error_ns} ns after the burst");
        }
    }
}
