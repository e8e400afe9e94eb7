//! From one leg's format to the other's, chosen once a session.
//!
//! ```text
//!  payload of codec A ──Decoder──▶ PCM16 at the rate that the session wants ──Encoder──▶ payload of codec B
//!  payload of codec A ──────────────────── Transcoder ─────────────────────────────────▶ payload of codec B
//! ```
//!
//! All buffers are the caller's: [`MAX_PACKET_SAMPLES`] samples and
//! [`MAX_PAYLOAD_OCTETS`](crate::format::MAX_PAYLOAD_OCTETS) octets hold any packet of 60 ms. A
//! buffer that is too short takes what fits; nothing here fails. Codecs are told apart by an enum, once a block of
//! samples, never by a trait object.

use std::time::Duration;

use crate::conceal::Concealer;
use crate::format::{Codec, MAX_PACKET_SAMPLES, SampleRate};
use crate::g722::{G722Decoder, G722Encoder};
use crate::noise::NoiseGenerator;
use crate::opus::{OpusDecoder, OpusEncoder, OpusSettings};
use crate::resample::Resampler;
use crate::{g711, pcm};

/// Samples that are converted at once, on the stack.
const BLOCK: usize = 320;
/// Delay of G.722's two filter banks together: 22 samples at 16 kHz.
const G722_DELAY: Duration = Duration::from_nanos(1_375_000);

/// What a decoder keeps of its codec.
#[derive(Debug)]
enum Source {
    Pcmu,
    Pcma,
    L16,
    /// Boxed, as most calls have another.
    G722(Box<G722Decoder>),
    Opus(OpusDecoder),
}

impl Source {
    fn decode(&mut self, payload: &[u8], samples: &mut [i16]) -> usize {
        match self {
            Self::Pcmu => g711::decode_ulaw(payload, samples),
            Self::Pcma => g711::decode_alaw(payload, samples),
            Self::L16 => pcm::read_be(payload, samples),
            Self::G722(decoder) => decoder.decode(payload, samples),
            Self::Opus(decoder) => decoder.decode(payload, samples),
        }
    }
}

/// Payload of one codec → PCM16 at one rate.
#[derive(Debug)]
pub struct Decoder {
    codec: Codec,
    source: Source,
    /// Opus conceals by itself.
    concealer: Option<Concealer>,
    resampler: Resampler,
}

impl Decoder {
    /// A decoder of `codec` that gives samples at `rate`. What is lost becomes silence, but for Opus.
    pub fn new(codec: Codec, rate: SampleRate) -> Self {
        let source = match codec {
            Codec::Pcmu => Source::Pcmu,
            Codec::Pcma => Source::Pcma,
            Codec::L16_8k | Codec::L16_16k | Codec::L16_24k | Codec::L16_48k => Source::L16,
            Codec::G722 => Source::G722(Box::default()),
            Codec::Opus => Source::Opus(OpusDecoder::new(rate)),
        };
        let resampler = Resampler::new(codec.native_rate(rate), rate);
        Self { codec, source, concealer: None, resampler }
    }

    /// The same, but what is lost is concealed.
    pub fn concealing(codec: Codec, rate: SampleRate) -> Self {
        let concealer = (codec != Codec::Opus).then(|| Concealer::new(codec.native_rate(rate)));
        Self { concealer, ..Self::new(codec, rate) }
    }

    /// The codec that is read.
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// The rate of the samples that are given.
    pub const fn rate(&self) -> SampleRate {
        self.resampler.to()
    }

    /// Decodes a payload and returns how many samples were written.
    pub fn decode(&mut self, payload: &[u8], samples: &mut [i16]) -> usize {
        if self.resampler.is_copy() {
            let len = self.source.decode(payload, samples);
            if let Some(concealer) = &mut self.concealer {
                concealer.hear(&mut samples[..len]);
            }
            return len;
        }
        let mut block = [0; BLOCK];
        let mut written = 0;
        for part in payload.chunks(self.codec.octets_in_samples(BLOCK)) {
            let len = self.source.decode(part, &mut block);
            if let Some(concealer) = &mut self.concealer {
                concealer.hear(&mut block[..len]);
            }
            written += self.resampler.process(&block[..len], &mut samples[written..]);
        }
        written
    }

    /// Fills `samples` in the place of packets that did not come, and returns how many were written: all, or for Opus whole
    /// steps of 2.5 ms.
    pub fn conceal(&mut self, samples: &mut [i16]) -> usize {
        if let Source::Opus(decoder) = &mut self.source {
            return decoder.conceal(samples);
        }
        let mut concealer = self.concealer.take();
        let written = self.make_up(samples, |part| match &mut concealer {
            Some(concealer) => concealer.conceal(part),
            None => part.fill(0),
        });
        self.concealer = concealer;
        written
    }

    /// Fills `samples` with comfort noise as the codec would have carried it, and returns how many were written.
    pub fn fill_noise(&mut self, noise: &mut NoiseGenerator, samples: &mut [i16]) -> usize {
        let mut concealer = self.concealer.take();
        let written = self.make_up(samples, |part| {
            noise.fill(part);
            if let Some(concealer) = &mut concealer {
                concealer.hear(part);
            }
        });
        self.concealer = concealer;
        written
    }

    /// Sound at the codec's own rate that came from no payload, through the resampler.
    fn make_up(&mut self, samples: &mut [i16], mut make: impl FnMut(&mut [i16])) -> usize {
        if self.resampler.is_copy() {
            make(samples);
            return samples.len();
        }
        let (from, to) = (self.resampler.from().samples_per_ms(), self.resampler.to().samples_per_ms());
        let mut block = [0; BLOCK];
        let mut left = samples.len() * from / to;
        let mut written = 0;
        while left > 0 {
            let part = &mut block[..left.min(BLOCK)];
            make(part);
            written += self.resampler.process(part, &mut samples[written..]);
            left -= part.len();
        }
        written
    }

    /// The same for one lost packet whose successor has come: Opus may carry its sound a second time. To be followed by
    /// [`Decoder::decode`] of `next`.
    pub fn recover(&mut self, next: &[u8], samples: &mut [i16]) -> usize {
        match &mut self.source {
            Source::Opus(decoder) => decoder.recover(next, samples),
            _ => self.conceal(samples),
        }
    }
}

/// What an encoder keeps of its codec.
#[derive(Debug)]
enum Sink {
    Pcmu,
    Pcma,
    L16,
    /// Boxed, as most calls have another.
    G722(Box<G722Encoder>),
    Opus(OpusEncoder),
}

impl Sink {
    fn encode(&mut self, samples: &[i16], payload: &mut [u8]) -> usize {
        match self {
            Self::Pcmu => g711::encode_ulaw(samples, payload),
            Self::Pcma => g711::encode_alaw(samples, payload),
            Self::L16 => pcm::write_be(samples, payload),
            Self::G722(encoder) => encoder.encode(samples, payload),
            Self::Opus(encoder) => encoder.encode(samples, payload),
        }
    }
}

/// PCM16 at one rate → payload of one codec.
#[derive(Debug)]
pub struct Encoder {
    codec: Codec,
    sink: Sink,
    resampler: Resampler,
    /// Nothing but silence is in the resampler.
    is_quiet: bool,
}

impl Encoder {
    /// An encoder of `codec` that takes samples at `rate`.
    pub fn new(rate: SampleRate, codec: Codec) -> Self {
        Self::with_opus(rate, codec, OpusSettings::default())
    }

    /// The same, with settings in case that it is Opus.
    pub fn with_opus(rate: SampleRate, codec: Codec, settings: OpusSettings) -> Self {
        let sink = match codec {
            Codec::Pcmu => Sink::Pcmu,
            Codec::Pcma => Sink::Pcma,
            Codec::L16_8k | Codec::L16_16k | Codec::L16_24k | Codec::L16_48k => Sink::L16,
            Codec::G722 => Sink::G722(Box::default()),
            Codec::Opus => Sink::Opus(OpusEncoder::new(rate, settings)),
        };
        Self { codec, sink, resampler: Resampler::new(rate, codec.native_rate(rate)), is_quiet: true }
    }

    /// The codec that is written.
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// The rate of the samples that are taken.
    pub const fn rate(&self) -> SampleRate {
        self.resampler.from()
    }

    /// Encodes samples and returns how many octets were written. Opus wants one whole packet's samples
    /// (see [`Codec::fitting_ptime`]) and writes nothing for any other length.
    pub fn encode(&mut self, samples: &[i16], payload: &mut [u8]) -> usize {
        self.is_quiet = false;
        if self.resampler.is_copy() {
            return self.sink.encode(samples, payload);
        }
        // Whole milliseconds, as many as a block can hold on either side: G.722 takes its samples in pairs.
        let (from, to) = (self.rate().samples_per_ms(), self.resampler.to().samples_per_ms());
        let step = BLOCK / from.max(to) * from;
        let mut block = [0; BLOCK];
        let mut written = 0;
        for part in samples.chunks(step) {
            let len = self.resampler.process(part, &mut block);
            written += self.sink.encode(&block[..len], &mut payload[written..]);
        }
        written
    }

    /// Encodes so many samples of silence and returns how many octets were written. Silence is at once: what the resampler
    /// still holds of the sound before is dropped, but for codecs whose silence must be encoded.
    pub fn encode_silence(&mut self, samples: usize, payload: &mut [u8]) -> usize {
        if let Some(octet) = self.codec.silence_octet() {
            if !std::mem::replace(&mut self.is_quiet, true) {
                self.resampler.reset();
            }
            let (from, to) = (self.rate().samples_per_ms(), self.codec.sample_rate().samples_per_ms());
            let len = self.codec.octets_in_samples(samples * to / from).min(payload.len());
            payload[..len].fill(octet);
            return len;
        }
        let silence = [0; MAX_PACKET_SAMPLES];
        self.encode(&silence[..samples.min(MAX_PACKET_SAMPLES)], payload)
    }

    /// Lets sound pass that was sent already by another encoder, so that this one goes on from it: the resampler hears it.
    /// The codec does not: its peer begins afresh too.
    pub fn prime(&mut self, samples: &[i16]) {
        if self.resampler.is_copy() {
            return;
        }
        let mut block = [0; 6 * BLOCK];
        for part in samples.chunks(BLOCK) {
            self.resampler.process(part, &mut block);
        }
        self.is_quiet = false;
    }

    /// How much later a sound is heard than it was given, for the resampler's and the codec's sake.
    pub fn delay(&mut self) -> Duration {
        let codec = match &mut self.sink {
            Sink::Pcmu | Sink::Pcma | Sink::L16 => Duration::ZERO,
            Sink::G722(_) => G722_DELAY,
            Sink::Opus(encoder) => Duration::from_nanos(
                encoder.lookahead() as u64 * 1_000_000_000 / u64::from(encoder.rate().hz()),
            ),
        };
        self.resampler.group_delay() + codec
    }
}

/// Payload of one codec → payload of another.
#[derive(Debug)]
pub enum Transcoder {
    /// Both legs speak the same: payloads are copied.
    Copy(Codec),
    /// They differ.
    Convert {
        /// Reads the one leg, at the other leg's rate.
        decoder: Decoder,
        /// Writes the other leg.
        encoder: Encoder,
    },
}

impl Transcoder {
    /// A transcoder from one codec to another.
    pub fn new(from: Codec, to: Codec) -> Self {
        if from == to {
            return Self::Copy(from);
        }
        // Opus works at any rate, so the other one's is taken, and nothing is resampled.
        let rate = to.native_rate(from.sample_rate());
        Self::Convert { decoder: Decoder::new(from, rate), encoder: Encoder::new(rate, to) }
    }

    /// Transcodes a payload and returns how many octets were written. Into Opus, only packets of a length that it has.
    pub fn transcode(&mut self, payload: &[u8], output: &mut [u8]) -> usize {
        match self {
            Self::Copy(_) => {
                let len = payload.len().min(output.len());
                output[..len].copy_from_slice(&payload[..len]);
                len
            }
            Self::Convert { decoder, encoder }
                if decoder.codec.has_fixed_size() && encoder.codec.has_fixed_size() =>
            {
                // Two samples out for each one in at most, among the codecs of a fixed size.
                let mut block = [0; 2 * BLOCK];
                let mut written = 0;
                for part in payload.chunks(decoder.codec.octets_in_samples(BLOCK)) {
                    let len = decoder.decode(part, &mut block);
                    written += encoder.encode(&block[..len], &mut output[written..]);
                }
                written
            }
            Self::Convert { decoder, encoder } => {
                let mut packet = [0; MAX_PACKET_SAMPLES];
                let len = decoder.decode(payload, &mut packet);
                encoder.encode(&packet[..len], output)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{MAX_PAYLOAD_OCTETS, Ptime};
    use crate::tone::Sine;
    use proptest::prelude::*;

    /// A payload of silence.
    fn silence(codec: Codec, ptime: Ptime) -> Vec<u8> {
        let mut payload = vec![1; MAX_PAYLOAD_OCTETS];
        let len = Encoder::new(codec.sample_rate(), codec).encode_silence(codec.samples(ptime), &mut payload);
        payload.truncate(len);
        payload
    }

    #[test]
    fn a_packet_of_any_codec_becomes_the_right_number_of_samples_and_back() {
        for codec in Codec::ALL {
            for rate in SampleRate::ALL {
                for ptime in (10..=60).filter_map(Ptime::from_ms) {
                    let ptime = codec.fitting_ptime(ptime);
                    let payload = silence(codec, ptime);
                    assert_eq!(codec.ms_in(&payload), ptime.as_ms() as usize);
                    let mut samples = [0; MAX_PACKET_SAMPLES];
                    let len = Decoder::new(codec, rate).decode(&payload, &mut samples);
                    assert_eq!(len, rate.samples(ptime), "{codec} to {rate}, {ptime}");
                    let mut back = [0; MAX_PAYLOAD_OCTETS];
                    let octets = Encoder::new(rate, codec).encode(&samples[..len], &mut back);
                    assert_eq!(
                        codec.ms_in(&back[..octets]),
                        ptime.as_ms() as usize,
                        "{rate} to {codec}, {ptime}"
                    );
                }
            }
        }
    }

    #[test]
    fn silence_stays_silence_through_any_codec_and_rate() {
        for codec in Codec::ALL {
            for rate in SampleRate::ALL {
                let payload = silence(codec, Ptime::MS_20);
                let mut samples = [1; MAX_PACKET_SAMPLES];
                let len = Decoder::new(codec, rate).decode(&payload, &mut samples);
                assert!(samples[..len].iter().all(|&sample| sample.abs() <= 12), "{codec}: {samples:?}");
                // A-law has no zero, and what is nearest to it need not come back as the same of two.
                if codec.silence_octet().is_some() && codec != Codec::Pcma {
                    let mut back = [1; MAX_PAYLOAD_OCTETS];
                    let octets = Encoder::new(rate, codec).encode(&samples[..len], &mut back);
                    assert_eq!(back[..octets], payload);
                }
            }
        }
    }

    /// A second of `signal` through an encoder and a decoder.
    fn through(codec: Codec, rate: SampleRate, signal: &[i16]) -> Vec<i16> {
        let (mut encoder, mut decoder) = (Encoder::new(rate, codec), Decoder::new(codec, rate));
        let mut heard = Vec::new();
        for frame in signal.chunks_exact(rate.samples(Ptime::MS_20)) {
            let (mut payload, mut samples) = ([0; MAX_PAYLOAD_OCTETS], [0; MAX_PACKET_SAMPLES]);
            let octets = encoder.encode(frame, &mut payload);
            let len = decoder.decode(&payload[..octets], &mut samples);
            heard.extend(&samples[..len]);
        }
        heard
    }

    #[test]
    fn a_tone_comes_out_of_every_codec_as_loud_and_as_high_as_it_went_in() {
        for codec in Codec::ALL {
            for rate in SampleRate::ALL {
                let mut signal = vec![0; rate.hz() as usize];
                Sine::new(800.0, 10_000, rate).fill(&mut signal);
                let heard = through(codec, rate, &signal);
                let settled = &heard[heard.len() / 2..];
                let loudness = pcm::rms(settled);
                assert!((loudness - 7_071.0).abs() < 500.0, "{codec} at {rate}: {loudness}");
                let crossings = settled.windows(2).filter(|pair| (pair[0] < 0) != (pair[1] < 0)).count();
                assert!(crossings.abs_diff(800) <= 4, "{codec} at {rate}: {crossings} zero crossings");
            }
        }
    }

    #[test]
    fn a_sweep_over_the_telephone_band_is_never_lost() {
        for codec in Codec::ALL {
            let rate = codec.sample_rate();
            let mut phase = 0.0_f64;
            let signal: Vec<i16> = (0..2 * rate.hz())
                .map(|n| {
                    let hz = 300.0 + 2_900.0 * f64::from(n) / f64::from(2 * rate.hz());
                    phase += std::f64::consts::TAU * hz / f64::from(rate.hz());
                    (phase.sin() * 9_000.0) as i16
                })
                .collect();
            let heard = through(codec, rate, &signal);
            for (n, part) in heard.chunks(rate.samples(Ptime::MS_20)).enumerate().skip(2) {
                let loudness = pcm::rms(part);
                assert!((4_400.0..8_500.0).contains(&loudness), "{codec}: {loudness} after {} ms", n * 20);
            }
        }
    }

    #[test]
    fn what_is_lost_is_concealed_at_any_rate() {
        for codec in Codec::ALL {
            for rate in SampleRate::ALL {
                let mut signal = vec![0; rate.samples(Ptime::MS_20)];
                let mut sine = Sine::new(200.0, 10_000, rate);
                let (mut encoder, mut decoder) =
                    (Encoder::new(rate, codec), Decoder::concealing(codec, rate));
                let (mut payload, mut samples) = ([0; MAX_PAYLOAD_OCTETS], [0; MAX_PACKET_SAMPLES]);
                for _ in 0..10 {
                    sine.fill(&mut signal);
                    let octets = encoder.encode(&signal, &mut payload);
                    decoder.decode(&payload[..octets], &mut samples);
                }
                let gap = rate.samples(Ptime::MS_20);
                assert_eq!(decoder.conceal(&mut samples[..gap]), gap, "{codec} at {rate}");
                let loudness = pcm::rms(&samples[..gap]);
                assert!(loudness > 3_500.0, "{codec} at {rate}: {loudness}");
            }
        }
    }

    #[test]
    fn silence_is_at_once_and_nothing_of_before_comes_after_it() {
        let mut encoder = Encoder::new(SampleRate::Hz16000, Codec::Pcmu);
        let mut payload = [0; 160];
        encoder.encode(&[9_000; 320], &mut payload);
        assert_eq!(encoder.encode_silence(320, &mut payload), 160);
        assert_eq!(payload, [g711::ULAW_SILENCE; 160]);
        encoder.encode(&[0; 320], &mut payload);
        assert_eq!(payload, [g711::ULAW_SILENCE; 160]);
    }

    #[test]
    fn a_tone_survives_a_round_through_the_agents_rate() {
        let mut caller = [0; 160];
        let mut sine = Sine::new(1_000.0, 10_000, SampleRate::Hz8000);
        let mut decoder = Decoder::new(Codec::Pcmu, SampleRate::Hz16000);
        let mut encoder = Encoder::new(SampleRate::Hz16000, Codec::Pcmu);
        let mut loudness = 0.0;
        for _ in 0..10 {
            sine.fill(&mut caller);
            let (mut payload, mut wide, mut narrow) = ([0; 160], [0; 320], [0; 160]);
            g711::encode_ulaw(&caller, &mut payload);
            assert_eq!(decoder.decode(&payload, &mut wide), 320);
            assert_eq!(encoder.encode(&wide, &mut payload), 160);
            g711::decode_ulaw(&payload, &mut narrow);
            loudness = pcm::rms(&narrow);
        }
        assert!((loudness - 7_071.0).abs() < 150.0, "{loudness}");
    }

    #[test]
    fn equal_codecs_are_copied_octet_by_octet() {
        let payload: Vec<u8> = (0..=255).collect();
        let mut output = [0; 256];
        assert_eq!(Transcoder::new(Codec::Pcma, Codec::Pcma).transcode(&payload, &mut output), 256);
        assert_eq!(output[..], payload);
    }

    #[test]
    fn transcoding_keeps_the_length_of_sound() {
        for from in Codec::ALL {
            for to in Codec::ALL {
                let mut output = [0; MAX_PAYLOAD_OCTETS];
                let payload = silence(from, Ptime::MS_60);
                let len = Transcoder::new(from, to).transcode(&payload, &mut output);
                assert_eq!(to.ms_in(&output[..len]), 60, "{from} to {to}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_payload_and_no_buffer_can_make_it_panic(
            payload in proptest::collection::vec(any::<u8>(), 0..2_500), room in 0_usize..3_000, from in 0_usize..6, to in 0_usize..6
        ) {
            let mut transcoder = Transcoder::new(Codec::ALL[from], Codec::ALL[to]);
            let mut output = vec![0; room];
            for _ in 0..2 {
                prop_assert!(transcoder.transcode(&payload, &mut output) <= room);
            }
            let mut samples = vec![0; room];
            prop_assert!(Decoder::new(Codec::ALL[from], SampleRate::ALL[to % 4]).decode(&payload, &mut samples) <= room);
            prop_assert!(Encoder::new(SampleRate::ALL[to % 4], Codec::ALL[from]).encode(&samples, &mut output) <= room);
        }
    }
}
