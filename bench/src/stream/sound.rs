//! Sound without packets: what comes back over a transport that has no RTP, in messages of any length.
//!
//! ```text
//!   message ─▶ codes of 8 kHz ─▶ [ … mark k … ][ mark k+1 … ] ─▶ frames by their own numbers
//! ```
//!
//! The number in a frame's mark stands for the sequence number *and* the timestamp that an RTP packet would have: lost,
//! duplicated and reordered are those of our own frames, and the schedule is `arrival − number × 20 ms` of the last frame in
//! each message, so that messages of 100 ms may keep to theirs. A frame has arrived with the message that completes it. Sound without marks is counted by its length, and its schedule is that of
//! the octets.
use crate::clock::Mono;
use crate::marker::{BurstDetector, FRAME_OCTETS, Signal};
use crate::schedule::InterarrivalJitter;
use crate::sequence::{Arrival, SequenceAccount};

use super::{Listener, Speaker, StreamAccount, Timings, Window};

/// Codes before a frame's end in which a mark may begin that is not yet complete.
const MARK_TAIL: usize = 7;

/// What one call hears.
pub struct SoundListener {
    inner: Listener,
    sequence: SequenceAccount,
    /// Codes not yet cut into frames, shorter than a frame between two messages.
    pending: Vec<u8>,
    has_marks: bool,
    /// Codes without a mark: in all, and in the window.
    unmarked: u64,
    unmarked_inside: u64,
    /// All codes heard, for the schedule of sound without marks.
    heard: u64,
    heard_inside: u64,
    first_at: Option<Mono>,
    /// Timestamp of the last frame that the message under way has completed.
    newest: Option<u32>,
}

impl SoundListener {
    /// One that has heard nothing; `window_frames` is the room for the log.
    pub fn new(window_frames: usize) -> Self {
        Self {
            inner: Listener::new(window_frames),
            sequence: SequenceAccount::new(),
            pending: Vec::with_capacity(16 * FRAME_OCTETS),
            has_marks: false,
            unmarked: 0,
            unmarked_inside: 0,
            heard: 0,
            heard_inside: 0,
            first_at: None,
            newest: None,
        }
    }

    /// When the first sound came.
    pub fn first_at(&self) -> Option<Mono> {
        self.first_at
    }

    /// A message with these codes (8 kHz, in the signal's law) has arrived.
    pub fn hear(
        &mut self,
        speaker: &Speaker,
        signal: &Signal,
        codes: &[u8],
        arrival: Mono,
        window: Option<Window>,
        timings: &mut Timings,
    ) {
        self.first_at.get_or_insert(arrival);
        let inside = window.is_some_and(|window| window.contains(arrival));
        if !self.has_marks {
            self.hear_unmarked(speaker, signal, codes, arrival, inside, timings);
        }
        self.heard += codes.len() as u64;
        self.heard_inside += if inside { codes.len() as u64 } else { 0 };
        self.pending.extend_from_slice(codes);
        let mut at = 0;
        while self.pending.len() - at >= FRAME_OCTETS {
            let ahead = &self.pending[at..];
            if let Some(number) = signal.read_mark(ahead) {
                self.frame(speaker, number, arrival, inside, timings);
                at += FRAME_OCTETS;
                continue;
            }
            // Not where it should be: wherever it is, or nowhere in what has come.
            let is_mark = |from: &usize| {
                signal.may_begin_mark(ahead[*from]) && signal.read_mark(&ahead[*from..]).is_some()
            };
            let skipped = (1..FRAME_OCTETS).find(is_mark).unwrap_or(FRAME_OCTETS - MARK_TAIL);
            self.unmarked += skipped as u64;
            self.unmarked_inside += if inside { skipped as u64 } else { 0 };
            at += skipped;
        }
        self.pending.drain(..at);
        if let Some(timestamp) = self.newest.take() {
            self.inner.jitter.record(arrival, timestamp);
            if inside {
                self.inner.log.record(arrival, timestamp);
            }
        }
    }

    fn hear_unmarked(
        &mut self,
        speaker: &Speaker,
        signal: &Signal,
        codes: &[u8],
        arrival: Mono,
        inside: bool,
        timings: &mut Timings,
    ) {
        // Timestamps wrap as RTP's do.
        self.inner.jitter.record(arrival, self.heard as u32);
        if inside {
            self.inner.log.record(arrival, self.heard as u32);
        }
        if let Some(found) = self.inner.burst.record(signal, codes, arrival) {
            self.inner.burst_came_back(speaker, found.burst.index(), found.at, inside, timings);
        }
    }

    fn frame(&mut self, speaker: &Speaker, number: u16, arrival: Mono, inside: bool, timings: &mut Timings) {
        let Some(frame) = speaker.frame_of(number) else {
            self.inner.account.foreign += 1;
            return;
        };
        if !self.has_marks {
            self.has_marks = true;
            self.inner.log.restart();
            self.inner.jitter = InterarrivalJitter::default();
            self.inner.burst = BurstDetector::default();
        }
        if matches!(self.sequence.record(frame as u16), Arrival::Duplicate | Arrival::Stale) {
            self.inner.account.repeated += u64::from(inside);
            return;
        }
        self.newest = Some((frame as u32).wrapping_mul(FRAME_OCTETS as u32));
        self.inner.marked(speaker, number, arrival, inside, timings);
    }

    /// Ends the stream, of which `speaker` is the other direction.
    pub fn finish(
        mut self,
        speaker: &Speaker,
        window: Option<Window>,
        timings: &mut Timings,
    ) -> StreamAccount {
        let frames = |codes: u64| codes / FRAME_OCTETS as u64;
        let mut counts = self.sequence.counts();
        if !self.has_marks {
            counts.received = frames(self.heard);
        }
        let is_silent = self.heard == 0;
        let account = &mut self.inner.account;
        account.sequence = counts;
        account.window_received = frames(self.heard_inside);
        account.filled = frames(self.unmarked_inside);
        let mut account = self.inner.finish(speaker, window, timings);
        account.silent_streams = u64::from(is_silent);
        account
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marker::Law;

    const FRAME_NS: u64 = 20_000_000;
    const START: Mono = Mono(1_000_000_000);
    const WINDOW: Window = Window { begin: START, end: Mono(1_000_000_000_000) };

    struct Call {
        signal: Signal,
        speaker: Speaker,
        listener: SoundListener,
        timings: Timings,
    }

    impl Call {
        fn new() -> Self {
            Self {
                signal: Signal::new(Law::Pcmu),
                speaker: Speaker::new(9),
                listener: SoundListener::new(1_000),
                timings: Timings::default(),
            }
        }

        /// Says a frame at its time and returns its sound.
        fn say(&mut self) -> [u8; FRAME_OCTETS] {
            let mut sound = [0; FRAME_OCTETS];
            let frame = self.speaker.write_sound(&self.signal, &mut sound);
            self.speaker.sent(frame, START + frame * FRAME_NS);
            sound
        }

        fn hear(&mut self, codes: &[u8], arrival: Mono) {
            self.listener.hear(&self.speaker, &self.signal, codes, arrival, Some(WINDOW), &mut self.timings);
        }

        fn finish(mut self) -> (StreamAccount, Timings) {
            let account = self.listener.finish(&self.speaker, Some(WINDOW), &mut self.timings);
            (account, self.timings)
        }
    }

    #[test]
    fn frames_are_found_in_messages_of_any_length() {
        for len in [1, 37, 160, 200, 1_600] {
            let mut call = Call::new();
            let sound: Vec<u8> = (0..100).flat_map(|_| call.say()).collect();
            for piece in sound.chunks(len) {
                call.hear(piece, START + 3_000_000_000);
            }
            let (account, _) = call.finish();
            assert_eq!(account.sequence.received, 100, "messages of {len}");
            assert_eq!((account.sequence.lost, account.filled), (0, 0), "messages of {len}");
        }
    }

    #[test]
    fn sound_of_the_targets_own_before_and_between_is_filled_and_does_not_hide_frames() {
        let mut call = Call::new();
        let frames: Vec<_> = (0..10).map(|_| call.say()).collect();
        let silence = [0xFF; 1_000];
        for frame in &frames {
            call.hear(&silence[..333], START);
            call.hear(frame, START);
        }
        let (account, _) = call.finish();
        assert_eq!(account.sequence.received, 10);
        assert_eq!(account.filled, 3_330 / 160);
    }

    #[test]
    fn frame_that_never_came_is_lost_and_one_that_came_twice_is_a_duplicate() {
        let mut call = Call::new();
        for n in 0..100 {
            let sound = call.say();
            if n % 10 != 5 {
                call.hear(&sound, START + n * FRAME_NS);
            }
            if n == 42 {
                call.hear(&sound, START + n * FRAME_NS);
            }
        }
        let (account, _) = call.finish();
        assert_eq!((account.sequence.received, account.sequence.lost), (90, 10));
        assert_eq!((account.sequence.duplicated, account.repeated), (1, 1));
    }

    #[test]
    fn round_trip_and_schedule_are_those_of_the_frames_numbers() {
        let mut call = Call::new();
        for n in 0..500 {
            let sound = call.say();
            // Each tenth frame 4 ms late; the twentieth is not returned, which shifts nothing.
            let late = if n % 10 == 9 { 4_000_000 } else { 0 };
            if n % 20 != 7 {
                call.hear(&sound, START + n * FRAME_NS + 30_000_000 + late);
            }
        }
        assert_eq!(call.listener.inner.log.len(), 475);
        let (account, timings) = call.finish();
        assert_eq!(account.round_trips, 475);
        assert!((timings.round_trip.percentile_ms(50.0) - 30.0).abs() < 0.1);
        assert!(timings.deviations.both.percentile_ms(50.0) < 0.01);
        assert!((timings.deviations.both.percentile_ms(95.0) - 4.0).abs() < 0.1);
    }

    #[test]
    fn messages_of_five_frames_on_their_own_time_are_on_schedule() {
        let mut call = Call::new();
        for n in 1..=100 {
            let message: Vec<u8> = (0..5).flat_map(|_| call.say()).collect();
            call.hear(&message, START + n * 5 * FRAME_NS);
        }
        let (account, timings) = call.finish();
        assert_eq!((account.sequence.received, account.too_late), (500, 0));
        assert_eq!((timings.deviations.both.count(), timings.deviations.both.max_ms()), (100, 0.0));
    }

    #[test]
    fn sound_whose_marks_have_died_is_counted_by_length_and_timed_by_its_bursts() {
        let mut call = Call::new();
        for n in 0..300 {
            let mut sound = call.say();
            sound[..8].fill(0xFF);
            call.hear(&sound, START + n * FRAME_NS + 50_000_000);
        }
        let (account, timings) = call.finish();
        assert_eq!((account.sequence.received, account.sequence.lost, account.filled), (300, 0, 0));
        assert!(timings.burst_round_trip.count() >= 4, "{}", timings.burst_round_trip.count());
        assert!((timings.burst_round_trip.percentile_ms(50.0) - 50.0).abs() < 1.0);
        assert!(timings.deviations.both.max_ms() < 0.01);
    }

    #[test]
    fn silent_call_is_counted_as_silent() {
        let mut call = Call::new();
        call.say();
        let (account, _) = call.finish();
        assert_eq!((account.silent_streams, account.sequence.received), (1, 0));
    }
}
