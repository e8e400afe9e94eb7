//! What a call has heard: the recording with its arrival instants, when somebody spoke, and how fast they answered.
//!
//! ```text
//!   we said ───────────────────┐ last audible frame leaves
//!   they said                  │      ┌── first audible frame arrives, a second follows: onset
//!                              ◀──────▶ response latency, at the wire
//! ```

use std::time::{Duration, Instant};

use tandem_audio::format::ClockRate;
use tandem_audio::pcm;
use tandem_audio::tone::Digit;
use tandem_rtp::units::Timestamp;

/// A frame at least this loud is audible: well above comfort noise, well below speech.
const AUDIBLE_DBFS: f32 = -45.0;
/// Two audible frames at most so far apart are an onset; a single one is a click.
const ONSET_WITHIN: Duration = Duration::from_millis(100);
/// A pause so long ends an utterance.
const HANGOVER: Duration = Duration::from_millis(400);
/// Sound sooner than this after ours is no response to it: it was on its way already.
const RESPONSE_MIN: Duration = Duration::from_millis(100);
/// The longest recording: ten minutes of 8 kHz. What comes later is heard but not kept.
const RECORDING_MAX: usize = 10 * 60 * 8_000;
/// A jump of the timestamp up to this long was silence or loss and is filled in; a longer one is another stream.
const GAP_MAX_MS: u32 = 10_000;
/// Responses that are measured: more than any test asks for.
const RESPONSES_MAX: usize = 1_000;
/// Keys that are remembered.
const DIGITS_MAX: usize = 256;

/// A packet in the recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeardPacket {
    /// When it arrived.
    pub arrival: Instant,
    /// Its first sample in the recording.
    pub offset: usize,
    /// Its samples.
    pub samples: usize,
}

/// A recording so far.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// 8 kHz PCM16. Packets that were lost are silence.
    pub samples: Vec<i16>,
    /// The packets it was made of, in order.
    pub packets: Vec<HeardPacket>,
    /// The keys that came as telephone-events.
    pub digits: String,
}

/// True when somebody would hear this.
pub(crate) fn is_audible(frame: &[i16]) -> bool {
    pcm::level_dbfs(frame) > AUDIBLE_DBFS
}

/// The listening side of one call.
#[derive(Debug)]
pub(crate) struct Ear {
    record: bool,
    heard: Heard,
    next_timestamp: Option<Timestamp>,
    /// An audible frame that no second one has followed yet.
    candidate: Option<Instant>,
    /// Onset of the utterance that goes on.
    speaking_since: Option<Instant>,
    last_audible: Option<Instant>,
    first_packet: Option<Instant>,
    first_audible: Option<Instant>,
    /// When our last audible frame left, until it is answered.
    we_said: Option<Instant>,
    responses: Vec<Duration>,
}

impl Ear {
    pub(crate) fn new(record: bool) -> Self {
        Ear {
            record,
            heard: Heard::default(),
            next_timestamp: None,
            candidate: None,
            speaking_since: None,
            last_audible: None,
            first_packet: None,
            first_audible: None,
            we_said: None,
            responses: Vec::new(),
        }
    }

    pub(crate) fn heard(&self) -> Heard {
        self.heard.clone()
    }

    pub(crate) fn first_packet(&self) -> Option<Instant> {
        self.first_packet
    }

    pub(crate) fn first_audible(&self) -> Option<Instant> {
        self.first_audible
    }

    pub(crate) fn last_audible(&self) -> Option<Instant> {
        self.last_audible
    }

    pub(crate) fn responses(&self) -> &[Duration] {
        &self.responses
    }

    /// The onset of the utterance that goes on.
    pub(crate) fn speaking_since(&self, now: Instant) -> Option<Instant> {
        self.speaking_since
            .filter(|_| self.last_audible.is_some_and(|last| now.duration_since(last) < HANGOVER))
    }

    /// The stream begins anew: its timestamps have nothing to do with those before.
    pub(crate) fn restart(&mut self) {
        self.next_timestamp = None;
    }

    /// A key came.
    pub(crate) fn handle_digit(&mut self, digit: Digit) {
        if self.heard.digits.len() < DIGITS_MAX {
            self.heard.digits.push(digit.as_char());
        }
    }

    /// An audible frame of ours has left.
    pub(crate) fn handle_said(&mut self, now: Instant) {
        self.we_said = Some(now);
    }

    /// A frame came, in order.
    pub(crate) fn handle_audio(
        &mut self,
        samples: &[i16],
        timestamp: Timestamp,
        ticks: u32,
        clock: ClockRate,
        arrival: Instant,
    ) {
        self.first_packet.get_or_insert(arrival);
        self.keep(samples, timestamp, clock, arrival);
        self.next_timestamp = Some(timestamp.plus(ticks));
        if is_audible(samples) {
            self.handle_audible(arrival);
        }
    }

    fn handle_audible(&mut self, arrival: Instant) {
        let goes_on = self.speaking_since(arrival).is_some();
        if goes_on {
            self.last_audible = Some(arrival);
            // They talked across the end of our words: what comes next is no response to them.
            self.we_said = self.we_said.filter(|said| *said >= arrival);
            return;
        }
        match self.candidate.take().filter(|first| arrival.duration_since(*first) <= ONSET_WITHIN) {
            Some(onset) => {
                self.speaking_since = Some(onset);
                self.last_audible = Some(arrival);
                self.first_audible.get_or_insert(onset);
                self.handle_onset(onset);
            }
            None => self.candidate = Some(arrival),
        }
    }

    fn handle_onset(&mut self, onset: Instant) {
        let Some(latency) = self.we_said.and_then(|said| onset.checked_duration_since(said)) else {
            return;
        };
        if latency >= RESPONSE_MIN {
            self.we_said = None;
            if self.responses.len() < RESPONSES_MAX {
                self.responses.push(latency);
            }
        }
    }

    fn keep(&mut self, samples: &[i16], timestamp: Timestamp, clock: ClockRate, arrival: Instant) {
        if !self.record {
            return;
        }
        let gap = self.next_timestamp.map_or(0, |expected| timestamp.distance_from(expected));
        if gap > 0 {
            let gap_ms = clock.ticks_to_ms(gap.unsigned_abs());
            if gap_ms <= GAP_MAX_MS {
                let len = self.heard.samples.len() + gap_ms as usize * 8;
                self.heard.samples.resize(len.min(RECORDING_MAX), 0);
            }
        }
        let room = RECORDING_MAX - self.heard.samples.len();
        if samples.is_empty() || room < samples.len() {
            return;
        }
        let offset = self.heard.samples.len();
        self.heard.samples.extend_from_slice(samples);
        self.heard.packets.push(HeardPacket { arrival, offset, samples: samples.len() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_audio::format::SampleRate;
    use tandem_audio::tone::Sine;

    /// An ear on a clock of its own, fed 20 ms frames.
    struct Line {
        ear: Ear,
        start: Instant,
        at_ms: u64,
        timestamp: Timestamp,
        tone: Sine,
    }

    impl Line {
        fn new() -> Self {
            let tone = Sine::new(440.0, 8_000, SampleRate::Hz8000);
            Line {
                ear: Ear::new(true),
                start: Instant::now(),
                at_ms: 0,
                timestamp: Timestamp(u32::MAX - 500),
                tone,
            }
        }

        fn now(&self) -> Instant {
            self.start + Duration::from_millis(self.at_ms)
        }

        /// For so long they are loud or not, and so are we.
        fn pass(&mut self, ms: u64, they: bool, we: bool) {
            for _ in 0..ms / 20 {
                let mut frame = [0; 160];
                if they {
                    self.tone.fill(&mut frame);
                }
                self.ear.handle_audio(&frame, self.timestamp, 160, ClockRate::HZ_8000, self.now());
                if we {
                    self.ear.handle_said(self.now());
                }
                self.timestamp = self.timestamp.plus(160);
                self.at_ms += 20;
            }
        }

        fn latencies_ms(&self) -> Vec<u128> {
            self.ear.responses().iter().map(Duration::as_millis).collect()
        }
    }

    #[test]
    fn latency_is_from_our_last_audible_frame_to_their_first() {
        let mut line = Line::new();
        line.pass(1_000, false, true);
        line.pass(600, false, false);
        line.pass(1_000, true, false);
        assert_eq!(line.latencies_ms(), [620]);
    }

    #[test]
    fn every_turn_is_measured_once() {
        let mut line = Line::new();
        for _ in 0..3 {
            line.pass(500, false, true);
            line.pass(300, false, false);
            line.pass(500, true, false);
            line.pass(200, false, false);
            line.pass(500, true, false);
            line.pass(1_000, false, false);
        }
        assert_eq!(line.latencies_ms(), [320, 320, 320]);
    }

    #[test]
    fn talking_at_the_same_time_is_no_response() {
        let mut line = Line::new();
        line.pass(400, true, true);
        line.pass(400, true, false);
        line.pass(1_000, false, false);
        line.pass(400, true, false);
        assert_eq!(line.latencies_ms(), [0u128; 0]);
    }

    #[test]
    fn barge_in_is_answered_after_they_fell_silent() {
        let mut line = Line::new();
        line.pass(1_000, true, false);
        line.pass(200, true, true);
        line.pass(800, false, true);
        line.pass(400, false, false);
        line.pass(400, true, false);
        assert_eq!(line.latencies_ms(), [420]);
    }

    #[test]
    fn a_click_is_no_speech() {
        let mut line = Line::new();
        line.pass(200, false, false);
        line.pass(20, true, false);
        line.pass(400, false, false);
        assert_eq!(line.ear.first_audible(), None);
        line.pass(40, true, false);
        assert!(line.ear.first_audible().is_some());
    }

    #[test]
    fn lost_packets_are_silence_in_the_recording_even_where_the_timestamp_wraps() {
        let mut line = Line::new();
        line.pass(40, true, false);
        line.timestamp = line.timestamp.plus(2 * 160);
        line.pass(40, true, false);
        let heard = line.ear.heard();
        assert_eq!(heard.samples.len(), 6 * 160);
        assert!(heard.samples[2 * 160..4 * 160].iter().all(|sample| *sample == 0));
        assert_eq!(heard.packets[2].offset, 4 * 160);
    }
}
