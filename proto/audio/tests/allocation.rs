//! Sound passes every converter without touching the allocator.

use tandem_audio::dtmf::ToneDetector;
use tandem_audio::format::{Codec, MAX_PACKET_SAMPLES, MAX_PAYLOAD_OCTETS, Ptime, SampleRate};
use tandem_audio::noise::{NoiseGenerator, Sid};
use tandem_audio::pcm::{self, Gain};
use tandem_audio::tone::{Cadence, ProgressTone, Sine};
use tandem_audio::transcode::{Decoder, Encoder, Transcoder};
use tandem_audio::vad::Vad;

/// One second of frames.
const FRAMES: u32 = 50;

#[test]
fn decoding_and_encoding_at_any_rate_allocates_nothing() {
    for codec in Codec::ALL {
        for rate in SampleRate::ALL {
            let mut decoder = Decoder::concealing(codec, rate);
            let mut encoder = Encoder::new(rate, codec);
            let mut payload = [0x3A; MAX_PAYLOAD_OCTETS];
            let mut samples = [0; MAX_PACKET_SAMPLES];
            let mut octets = encoder.encode(&samples[..rate.samples(Ptime::MS_60)], &mut payload);
            let mut count = 0;
            let info = allocation_counter::measure(|| {
                for _ in 0..FRAMES {
                    let len = decoder.decode(&payload[..octets], &mut samples);
                    octets = encoder.encode(&samples[..len], &mut payload);
                    count += len;
                    decoder.conceal(&mut samples[..rate.samples(Ptime::MS_20)]);
                }
            });
            assert_eq!(info.count_total, 0, "{codec} at {rate}");
            assert_eq!(count, FRAMES as usize * rate.samples(Ptime::MS_60));
        }
    }
}

#[test]
fn transcoding_mixing_tones_and_voice_activity_allocate_nothing() {
    let mut transcoder = Transcoder::new(Codec::Pcma, Codec::L16_16k);
    let mut vad = Vad::new(SampleRate::Hz8000);
    let mut tones = vad.clone();
    let mut keys = ToneDetector::new(SampleRate::Hz8000);
    let mut noise = NoiseGenerator::new(1);
    noise.set(&Sid::white(50));
    let mut sine = Sine::new(440.0, 9_000, SampleRate::Hz8000);
    let mut ringback = ProgressTone::new(Cadence::RINGBACK_US, SampleRate::Hz8000);
    let (mut frame, mut other, mut payload) = ([0; 160], [0; 160], [0; 640]);
    let mut heard = false;
    let info = allocation_counter::measure(|| {
        for n in 0..FRAMES {
            sine.fill(&mut frame);
            ringback.fill(&mut other);
            pcm::mix(&mut frame, &other);
            Gain::from_factor(0.5).apply(&mut frame);
            keys.process(&frame, |_| ());
            // Somebody speaks in the second half, as far as a detector knows.
            if n == FRAMES / 2 {
                noise.set(&Sid::white(20));
            }
            noise.fill(&mut other);
            heard |= vad.process(&other).is_some();
            tones.process(&frame);
            transcoder.transcode(&[0x55; 160], &mut payload);
        }
    });
    assert!(heard);
    assert_eq!(info.count_total, 0);
}
