//! Joins the two legs and transcodes between them, chosen once a session and again when the codec changes.
//!
//! ```text
//!   payload ─▶ Decoder ─▶ samples at the agent's rate ─▶ agent          (up: at once)
//!   payload ◀─ Encoder ◀─ samples at the agent's rate ◀─ playout queue  (down: when a frame is due)
//! ```

use tandem_audio::format::{Codec, Ptime, SampleRate};
use tandem_audio::transcode::{Decoder, Encoder};
use tandem_audio::vad::{Vad, VadEvent};

use crate::leg::event::Heard;

/// Samples of 20 ms at the highest rate an agent has.
const UP_SAMPLES: usize = SampleRate::Hz16000.samples(Ptime::MS_20);

/// Samples of the longest packet at the highest rate an agent has.
const DOWN_SAMPLES: usize = SampleRate::Hz16000.samples(Ptime::MS_60);

/// A gap of more packets than this is not filled up: nobody wants seconds of silence at once.
const GAP_PACKETS_MAX: u64 = 10;

/// See the module.
#[derive(Debug)]
pub struct Bridge {
    codec: Codec,
    ptime: Ptime,
    decoder: Decoder,
    encoder: Encoder,
    vad: Option<Vad>,
}

impl Bridge {
    /// A bridge between a carrier leg and an agent; `listens` for the begin and end of speech.
    pub fn new(codec: Codec, ptime: Ptime, rate: SampleRate, listens: bool) -> Self {
        Self {
            codec,
            ptime,
            decoder: Decoder::new(codec, rate),
            encoder: Encoder::new(rate, codec),
            vad: listens.then(|| Vad::new(rate)),
        }
    }

    /// The codec of the carrier leg.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// The agent's rate.
    pub fn rate(&self) -> SampleRate {
        self.decoder.rate()
    }

    /// What the caller said, as samples for the agent, and whether speech began or ended with it. What did not come is
    /// filled with silence, so that the agent's sense of time stays right.
    pub fn up(&mut self, heard: Heard<'_>, mut agent: impl FnMut(&[i16])) -> Option<VadEvent> {
        let mut changed = None;
        let mut samples = [0; UP_SAMPLES];
        match heard {
            Heard::Sound(payload) => {
                for piece in payload.chunks(self.codec.octets(Ptime::MS_20)) {
                    let len = self.decoder.decode(piece, &mut samples);
                    if let Some(vad) = &mut self.vad {
                        changed = vad.process(&samples[..len]).or(changed);
                    }
                    agent(&samples[..len]);
                }
            }
            Heard::Gap { packets } => {
                let silence = &samples[..self.rate().samples(Ptime::MS_10)];
                let tens = packets.min(GAP_PACKETS_MAX) * u64::from(self.ptime.as_ms()) / 10;
                for _ in 0..tens {
                    agent(silence);
                }
            }
        }
        changed
    }

    /// Fills a payload: `fill` writes samples at the agent's rate and says how many are sound. None: silence as such.
    pub fn down(&mut self, payload: &mut [u8], fill: impl FnOnce(&mut [i16]) -> usize) {
        let mut samples = [0; DOWN_SAMPLES];
        let wanted = self.rate().samples(self.ptime).min(DOWN_SAMPLES);
        let frame = &mut samples[..wanted];
        if fill(frame) == 0 {
            self.codec.fill_silence(payload);
            return;
        }
        let written = self.encoder.encode(frame, payload);
        if let Some(rest) = payload.get_mut(written..) {
            self.codec.fill_silence(rest);
        }
    }
}
