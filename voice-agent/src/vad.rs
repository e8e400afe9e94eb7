//! Voice activity: when does the caller begin and cease to speak?
//!
//! earshot's score per frame of 16 ms, behind two gates: energy over the noise floor (which also trims the detector's
//! tail, so that the end of speech is known to some 20 ms) and no signal tone. Begin and end are decided over several
//! frames; the moments reported are those of the first and last voiced frame, not of the decision.

mod tone;

use std::time::{Duration, Instant};

use tone::{FRAME, ToneGuard};

/// One frame.
const FRAME_MS: u64 = 16;
/// earshot's score of a voiced frame: to begin, and to go on.
const SCORE_BEGIN: f32 = 0.5;
const SCORE_GO_ON: f32 = 0.3;
/// Voiced frames among the last [`WINDOW`] that make a beginning (about 100 ms) …
const BEGIN_FRAMES: u32 = 6;
/// … and while the agent speaks, when it may be an echo or a cough (about 190 ms).
const BEGIN_FRAMES_OVER_AGENT: u32 = 12;
const WINDOW: u32 = 16;
/// Unvoiced frames in a row that make an end (about 200 ms): a pause between words is shorter.
const END_FRAMES: u64 = 13;
/// A voiced frame is this much above the noise floor (9 dB) …
const OVER_FLOOR: f32 = 8.0;
/// … and above this at least: −50 dBFS, a mean square of 16-bit samples.
const ENERGY_MIN: f32 = 10_000.0;
/// The floor follows a quieter frame at once and rises by 1 % a frame (3 dB in 1.1 s).
const FLOOR_RISE: f32 = 1.01;
/// The floor is not believed above −32 dBFS: a line that loud is speech.
const FLOOR_MAX: f32 = 700_000.0;

/// What was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VadEvent {
    /// The caller speaks, since `began`.
    Began {
        /// The first voiced frame.
        began: Instant,
    },
    /// The caller is silent, since `ended`.
    Ended {
        /// The end of the last voiced frame.
        ended: Instant,
    },
}

/// The detector of one caller.
pub struct Vad {
    detector: Box<earshot::Detector>,
    tones: ToneGuard,
    frame: [i16; FRAME],
    filled: usize,
    /// The last frames, newest in bit 0: voiced or not.
    recent: u32,
    floor: f32,
    speaking: bool,
    /// Unvoiced frames in a row.
    quiet: u64,
}

impl Default for Vad {
    fn default() -> Self {
        Self {
            detector: Box::default(),
            tones: ToneGuard::default(),
            frame: [0; FRAME],
            filled: 0,
            recent: 0,
            floor: ENERGY_MIN / OVER_FLOOR,
            speaking: false,
            quiet: 0,
        }
    }
}

impl Vad {
    /// Takes caller audio at 16 kHz that arrived `now`; at most one event a call when it is fed a ptime at a time, and
    /// the last one otherwise.
    pub fn handle_audio(
        &mut self,
        samples: impl Iterator<Item = i16>,
        agent_speaks: bool,
        now: Instant,
    ) -> Option<VadEvent> {
        let mut event = None;
        for sample in samples {
            self.frame[self.filled] = sample;
            self.filled += 1;
            if self.filled == FRAME {
                self.filled = 0;
                event = self.handle_frame(agent_speaks, now).or(event);
            }
        }
        event
    }

    /// Is somebody speaking, as far as was noticed?
    pub fn is_speaking(&self) -> bool {
        self.speaking
    }

    fn handle_frame(&mut self, agent_speaks: bool, now: Instant) -> Option<VadEvent> {
        let voiced = self.is_voiced();
        self.recent = (self.recent << 1 | u32::from(voiced)) & ((1 << WINDOW) - 1);
        self.quiet = if voiced { 0 } else { self.quiet + 1 };
        let needed = if agent_speaks { BEGIN_FRAMES_OVER_AGENT } else { BEGIN_FRAMES };
        if !self.speaking && voiced && self.recent.count_ones() >= needed {
            self.speaking = true;
            let first = u64::from(u32::BITS - self.recent.leading_zeros());
            return Some(VadEvent::Began { began: ago(now, first) });
        }
        if self.speaking && self.quiet >= END_FRAMES {
            self.speaking = false;
            self.recent = 0;
            return Some(VadEvent::Ended { ended: ago(now, self.quiet) });
        }
        None
    }

    fn is_voiced(&mut self) -> bool {
        let energy = self.frame.iter().map(|sample| f32::from(*sample).powi(2)).sum::<f32>() / FRAME as f32;
        // The detector keeps state: it must see every frame, loud or not.
        let score = self.detector.predict_i16(&self.frame);
        let tone = self.tones.is_tone(&self.frame);
        let loud = energy > ENERGY_MIN.max(self.floor * OVER_FLOOR);
        let threshold = if self.speaking { SCORE_GO_ON } else { SCORE_BEGIN };
        let voiced = loud && !tone && score >= threshold;
        if energy < self.floor {
            self.floor = energy.max(1.0);
        } else if !voiced {
            self.floor = (self.floor * FLOOR_RISE).min(energy.min(FLOOR_MAX)).max(1.0);
        }
        voiced
    }
}

/// `frames` before `now`.
fn ago(now: Instant, frames: u64) -> Instant {
    // Earlier than the clock's beginning is only possible in the first second after boot.
    now.checked_sub(Duration::from_millis(frames * FRAME_MS)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/book.wav");

    /// Feeds 20 ms packets in virtual time; gives the events with their moments in ms from the start.
    fn events(samples: &[i16], agent_speaks: bool) -> Vec<(&'static str, u64)> {
        let (mut vad, start) = (Vad::default(), Instant::now() + Duration::from_secs(60));
        let mut events = Vec::new();
        for (index, packet) in samples.chunks(320).enumerate() {
            let now = start + Duration::from_millis(20 * (index as u64 + 1));
            let at = |moment: Instant| u64::try_from((moment - start).as_millis()).unwrap();
            match vad.handle_audio(packet.iter().copied(), agent_speaks, now) {
                Some(VadEvent::Began { began }) => events.push(("began", at(began))),
                Some(VadEvent::Ended { ended }) => events.push(("ended", at(ended))),
                None => {}
            }
        }
        events
    }

    /// A caller's recording at 16 kHz by doubling each sample, between silences of one second.
    fn speech() -> Vec<i16> {
        let mut samples = vec![0; 16_000];
        for sample in hound::WavReader::open(DEMO).unwrap().samples::<i16>() {
            samples.extend([sample.unwrap(); 2]);
        }
        samples.extend([0; 16_000]);
        samples
    }

    fn tone(frequencies: &[f32]) -> Vec<i16> {
        (0..48_000)
            .map(|n| {
                let t = n as f32 / 16_000.0;
                frequencies.iter().map(|f| 5_000.0 * (std::f32::consts::TAU * f * t).sin()).sum::<f32>()
                    as i16
            })
            .collect()
    }

    #[test]
    fn a_sentence_begins_and_ends_where_it_does() {
        let samples = speech();
        let length_ms = samples.len() as u64 / 16;
        let found = events(&samples, false);
        let (Some(("began", began)), Some(("ended", ended))) = (found.first(), found.last()) else {
            panic!("{found:?}")
        };
        assert!((950..1_250).contains(began), "{found:?}");
        assert!((length_ms - 1_500..length_ms - 950).contains(ended), "{found:?} of {length_ms}");
    }

    #[test]
    fn silence_noise_and_signal_tones_are_no_speech() {
        assert_eq!(events(&[0; 48_000], false), []);
        let mut state = 1u32;
        let noise: Vec<i16> = (0..48_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 16) as i16) / 64
            })
            .collect();
        assert_eq!(events(&noise, false), []);
        for frequencies in [&[350.0, 440.0][..], &[425.0], &[440.0], &[480.0, 620.0], &[770.0, 1_336.0]] {
            assert_eq!(events(&tone(frequencies), false), [], "{frequencies:?}");
        }
    }

    #[test]
    fn over_the_agent_more_speech_is_needed() {
        // 130 ms cut out of the middle of speech: enough in silence, too little over the agent.
        let samples = speech();
        let mut blip = vec![0; 16_000];
        blip.extend(&samples[20_000..22_080]);
        blip.extend([0; 16_000]);
        assert!(!events(&blip, false).is_empty());
        assert_eq!(events(&blip, true), []);
    }
}
