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

/// A gap is filled up to here and no further: nobody wants seconds of silence at once.
const GAP_MS_MAX: u64 = 600;

/// See the module.
#[derive(Debug)]
pub struct Bridge {
    codec: Codec,
    ptime: Ptime,
    /// How long the caller's last packet was; his ptime need not be ours.
    heard_ms: u64,
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
            heard_ms: u64::from(ptime.as_ms()),
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
                self.heard_ms = self.codec.ms_in(payload.len()) as u64;
                for piece in payload.chunks(self.codec.octets(Ptime::MS_20)) {
                    let len = self.decoder.decode(piece, &mut samples);
                    if let Some(vad) = &mut self.vad {
                        changed = vad.process(&samples[..len]).or(changed);
                    }
                    agent(&samples[..len]);
                }
            }
            Heard::Gap { packets } => {
                let missing_ms = packets.saturating_mul(self.heard_ms).min(GAP_MS_MAX) as usize;
                let mut silence = missing_ms * self.rate().samples_per_ms();
                while silence > 0 {
                    let len = silence.min(UP_SAMPLES);
                    agent(&samples[..len]);
                    silence -= len;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn gap_ms(codec: Codec, heard: &[usize], packets: u64) -> usize {
        let mut bridge = Bridge::new(codec, Ptime::MS_20, SampleRate::Hz16000, false);
        for &octets in heard {
            bridge.up(Heard::Sound(&vec![0; octets]), |_| {});
        }
        let mut filled = 0;
        bridge.up(Heard::Gap { packets }, |samples| {
            assert!(samples.iter().all(|sample| *sample == 0));
            filled += samples.len();
        });
        filled / SampleRate::Hz16000.samples_per_ms()
    }

    #[test]
    fn a_gap_is_as_long_as_the_packets_that_the_caller_sends() {
        assert_eq!(gap_ms(Codec::Pcmu, &[160], 3), 60);
        assert_eq!(gap_ms(Codec::Pcmu, &[480], 3), 180);
        assert_eq!(gap_ms(Codec::L16_16k, &[160 * 2], 3), 30);
        assert_eq!(gap_ms(Codec::Pcmu, &[160, 240], 1), 30, "the last packet counts");
        assert_eq!(gap_ms(Codec::Pcmu, &[], 2), 40, "before any packet: ours");
    }

    #[test]
    fn a_gap_of_seconds_is_not_filled() {
        assert_eq!(gap_ms(Codec::Pcmu, &[160], u64::MAX), GAP_MS_MAX as usize);
    }
}
