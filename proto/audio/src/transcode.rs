//! From one leg's format to the other's, chosen once a session.
//!
//! ```text
//!  payload of codec A ──Decoder──▶ PCM16 at the rate that the session wants ──Encoder──▶ payload of codec B
//!  payload of codec A ──────────────────── Transcoder ─────────────────────────────────▶ payload of codec B
//! ```
//!
//! All buffers are the caller's: [`MAX_PACKET_SAMPLES`](crate::format::MAX_PACKET_SAMPLES) samples and
//! [`MAX_PAYLOAD_OCTETS`](crate::format::MAX_PAYLOAD_OCTETS) octets hold any packet of 60 ms. A
//! buffer that is too short takes what fits; nothing here fails. Codecs are told apart by an enum, once a block of
//! samples, never by a trait object.

use crate::format::{Codec, SampleRate};
use crate::resample::Resampler;
use crate::{g711, pcm};

/// Samples that are converted at once, on the stack.
const BLOCK: usize = 320;

/// Payload of one codec → PCM16 at one rate.
#[derive(Debug, Clone)]
pub struct Decoder {
    codec: Codec,
    resampler: Resampler,
}

impl Decoder {
    /// A decoder of `codec` that gives samples at `rate`.
    pub fn new(codec: Codec, rate: SampleRate) -> Self {
        Self { codec, resampler: Resampler::new(codec.sample_rate(), rate) }
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
            return decode_native(self.codec, payload, samples);
        }
        let mut block = [0; BLOCK];
        let mut written = 0;
        for part in payload.chunks(self.codec.octets_in_samples(BLOCK)) {
            let len = decode_native(self.codec, part, &mut block);
            written += self.resampler.process(&block[..len], &mut samples[written..]);
        }
        written
    }

    /// Decodes a payload into the codec's own rate, leaving the resampler alone, and returns how many samples were written.
    pub fn decode_native(&self, payload: &[u8], samples: &mut [i16]) -> usize {
        decode_native(self.codec, payload, samples)
    }

    /// Takes samples at the codec's own rate through the resampler, as [`Decoder::decode`] would after decoding: how
    /// concealed sound joins the stream.
    pub fn resample(&mut self, native: &[i16], samples: &mut [i16]) -> usize {
        self.resampler.process(native, samples)
    }
}

/// PCM16 at one rate → payload of one codec.
#[derive(Debug, Clone)]
pub struct Encoder {
    codec: Codec,
    resampler: Resampler,
}

impl Encoder {
    /// An encoder of `codec` that takes samples at `rate`.
    pub fn new(rate: SampleRate, codec: Codec) -> Self {
        Self { codec, resampler: Resampler::new(rate, codec.sample_rate()) }
    }

    /// The codec that is written.
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// The rate of the samples that are taken.
    pub const fn rate(&self) -> SampleRate {
        self.resampler.from()
    }

    /// Encodes samples and returns how many octets were written.
    pub fn encode(&mut self, samples: &[i16], payload: &mut [u8]) -> usize {
        if self.resampler.is_copy() {
            return encode_native(self.codec, samples, payload);
        }
        // As much as a block can hold when it comes out.
        let (from, to) = (self.rate().samples_per_ms(), self.codec.sample_rate().samples_per_ms());
        let step = (BLOCK * from / to).min(BLOCK);
        let mut block = [0; BLOCK];
        let mut written = 0;
        for part in samples.chunks(step) {
            let len = self.resampler.process(part, &mut block);
            written += encode_native(self.codec, &block[..len], &mut payload[written..]);
        }
        written
    }
}

/// Payload of one codec → payload of another.
#[derive(Debug, Clone)]
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
        let rate = to.sample_rate();
        Self::Convert { decoder: Decoder::new(from, rate), encoder: Encoder::new(rate, to) }
    }

    /// Transcodes a payload and returns how many octets were written.
    pub fn transcode(&mut self, payload: &[u8], output: &mut [u8]) -> usize {
        match self {
            Self::Copy(_) => {
                let len = payload.len().min(output.len());
                output[..len].copy_from_slice(&payload[..len]);
                len
            }
            Self::Convert { decoder, encoder } => {
                // Two samples out for each one in at most, among today's codecs.
                let mut block = [0; 2 * BLOCK];
                let mut written = 0;
                for part in payload.chunks(decoder.codec.octets_in_samples(BLOCK)) {
                    let len = decoder.decode(part, &mut block);
                    written += encoder.encode(&block[..len], &mut output[written..]);
                }
                written
            }
        }
    }
}

fn decode_native(codec: Codec, payload: &[u8], samples: &mut [i16]) -> usize {
    match codec {
        Codec::Pcmu => g711::decode_ulaw(payload, samples),
        Codec::Pcma => g711::decode_alaw(payload, samples),
        Codec::L16_8k | Codec::L16_16k => pcm::read_be(payload, samples),
    }
}

fn encode_native(codec: Codec, samples: &[i16], payload: &mut [u8]) -> usize {
    match codec {
        Codec::Pcmu => g711::encode_ulaw(samples, payload),
        Codec::Pcma => g711::encode_alaw(samples, payload),
        Codec::L16_8k | Codec::L16_16k => pcm::write_be(samples, payload),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{MAX_PACKET_SAMPLES, MAX_PAYLOAD_OCTETS, Ptime};
    use crate::tone::Sine;
    use proptest::prelude::*;

    #[test]
    fn a_packet_of_any_codec_becomes_the_right_number_of_samples_and_back() {
        for codec in Codec::ALL {
            for rate in SampleRate::ALL {
                for ptime in (10..=60).filter_map(Ptime::from_ms) {
                    let mut payload = [0; MAX_PAYLOAD_OCTETS];
                    let payload = &mut payload[..codec.octets(ptime)];
                    codec.fill_silence(payload);
                    let mut samples = [0; MAX_PACKET_SAMPLES];
                    let len = Decoder::new(codec, rate).decode(payload, &mut samples);
                    assert_eq!(len, rate.samples(ptime), "{codec} to {rate}, {ptime}");
                    let mut back = [0; MAX_PAYLOAD_OCTETS];
                    let octets = Encoder::new(rate, codec).encode(&samples[..len], &mut back);
                    assert_eq!(octets, payload.len(), "{rate} to {codec}, {ptime}");
                }
            }
        }
    }

    #[test]
    fn silence_of_ulaw_and_l16_stays_silence_through_any_rate() {
        for codec in [Codec::Pcmu, Codec::L16_8k, Codec::L16_16k] {
            for rate in SampleRate::ALL {
                let payload = vec![codec.silence_octet(); codec.octets(Ptime::MS_20)];
                let mut samples = [1; MAX_PACKET_SAMPLES];
                let len = Decoder::new(codec, rate).decode(&payload, &mut samples);
                assert!(samples[..len].iter().all(|&sample| sample == 0));
                let mut back = [1; MAX_PAYLOAD_OCTETS];
                let octets = Encoder::new(rate, codec).encode(&samples[..len], &mut back);
                assert_eq!(back[..octets], payload);
            }
        }
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
                let payload = vec![from.silence_octet(); from.octets(Ptime::MS_60)];
                let len = Transcoder::new(from, to).transcode(&payload, &mut output);
                assert_eq!(len, to.octets(Ptime::MS_60), "{from} to {to}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_payload_and_no_buffer_can_make_it_panic(
            payload in proptest::collection::vec(any::<u8>(), 0..2_500), room in 0_usize..3_000, from in 0_usize..4, to in 0_usize..4
        ) {
            let mut transcoder = Transcoder::new(Codec::ALL[from], Codec::ALL[to]);
            let mut output = vec![0; room];
            for _ in 0..2 {
                prop_assert!(transcoder.transcode(&payload, &mut output) <= room);
            }
            let mut samples = vec![0; room];
            prop_assert!(Decoder::new(Codec::ALL[from], SampleRate::ALL[to]).decode(&payload, &mut samples) <= room);
            prop_assert!(Encoder::new(SampleRate::ALL[to], Codec::ALL[from]).encode(&samples, &mut output) <= room);
        }
    }
}
