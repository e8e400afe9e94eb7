//! Downstream: the agent's sound waits here and leaves one frame a ptime; and the clock it leaves by.
//!
//! ```text
//!   agent ──push──▶ [ … queue, bounded … ] ──take, one frame a tick──▶ encoder ──▶ wire
//!                        ▲ marks at positions        heard: counts samples that left
//! ```
//!
//! Dry: the packet carries silence, and nothing counts as heard. `clear` empties the queue at once, so the packet after
//! it is silent, and what was heard is known to the sample, because only what left was counted.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tandem_audio::format::{Ptime, SampleRate};
use tandem_audio::resample::Resampler;

use super::skew::Skew;

/// Sound of an agent that may wait: a little more than the largest WebSocket message carries (32.8 s of L16 at 16 kHz),
/// so a whole spoken answer may come at once. When it is full, what comes on top is dropped: the caller hears the
/// beginning of an answer whole rather than holes in it.
pub const SPOKEN_MS_MAX: u32 = 40_000;

/// Echoed sound that may wait. It comes in real time, so more than this is clock drift or a burst after a stall: the
/// oldest is dropped, which keeps the echo prompt.
pub const LIVE_MS_MAX: u32 = 200;

/// Marks that may wait. When it is full, further ones are given back, counted, and answered at once.
pub const MARKS_MAX: usize = 256;

/// So many frames leave back to back at most after a late tick: the one that is due and the one before it, which a
/// phone's jitter buffer takes without growing. Those before them are lost; media time passes for them all the same.
pub const CATCH_UP_FRAMES: u32 = 2;

/// How long a pause fades out and in: short enough to stop a word, long enough not to click.
pub const FADE_MS: usize = 20;

/// How long the newest sound has waited, where nobody says what time it is.
const UNKNOWN: Duration = Duration::MAX;

/// Room at the start; it grows when an agent speaks ahead, and stays.
const INITIAL_MS: usize = 200;

/// What is dropped when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// At most [`SPOKEN_MS_MAX`]; the newest is dropped.
    Spoken,
    /// At most [`LIVE_MS_MAX`]; the oldest is dropped.
    Live,
}

#[derive(Debug)]
struct Mark {
    /// Samples pushed before it and not cleared.
    position: u64,
    name: String,
}

/// A mark that was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Played {
    /// As the agent named it.
    pub name: String,
    /// Heard since the start of the stream.
    pub heard_ms: u64,
}

/// Whether the queue moves. A fade is so many samples from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Motion {
    Playing,
    FadingOut { left: usize },
    Paused,
    FadingIn { left: usize },
}

/// See the module.
#[derive(Debug)]
pub struct Playout {
    rate: SampleRate,
    policy: Policy,
    queue: VecDeque<i16>,
    /// Samples that left.
    heard: u64,
    marks: VecDeque<Mark>,
    marks_refused: u64,
    dropped: u64,
    motion: Motion,
    /// The pause was reached and not told yet.
    has_paused: bool,
    /// Of what is pushed and taken, if it was said.
    now: Option<Instant>,
    /// When sound came last.
    pushed: Option<Instant>,
    skew: Skew,
}

impl Playout {
    /// An empty queue of samples at `rate`.
    pub fn new(rate: SampleRate, policy: Policy) -> Self {
        Self {
            rate,
            policy,
            queue: VecDeque::with_capacity(rate.samples_per_ms() * INITIAL_MS),
            heard: 0,
            marks: VecDeque::new(),
            marks_refused: 0,
            dropped: 0,
            motion: Motion::Playing,
            has_paused: false,
            now: None,
            pushed: None,
            skew: Skew::new(rate),
        }
    }

    /// What is pushed and taken from now on comes and leaves at `now`.
    pub fn set_time(&mut self, now: Instant) {
        self.now = Some(now);
    }

    /// Rate of the samples.
    pub fn rate(&self) -> SampleRate {
        self.rate
    }

    /// Sound that comes from now on has another rate; what waits is converted.
    pub fn set_rate(&mut self, rate: SampleRate) {
        if rate == self.rate {
            return;
        }
        let scale = |samples: u64| samples * rate.samples_per_ms() as u64 / self.rate.samples_per_ms() as u64;
        let waiting: Vec<i16> = self.queue.drain(..).collect();
        let mut resampler = Resampler::new(self.rate, rate);
        let mut converted = vec![0; resampler.output_len(waiting.len())];
        let len = resampler.process(&waiting, &mut converted);
        for mark in &mut self.marks {
            mark.position = scale(mark.position);
        }
        (self.heard, self.dropped) = (scale(self.heard), scale(self.dropped));
        self.queue.extend(&converted[..len]);
        self.skew = Skew::new(rate);
        self.rate = rate;
    }

    fn limit(&self) -> usize {
        let ms = match self.policy {
            Policy::Spoken => SPOKEN_MS_MAX,
            Policy::Live => LIVE_MS_MAX,
        };
        ms as usize * self.rate.samples_per_ms()
    }

    fn ms(&self, samples: u64) -> u64 {
        samples / self.rate.samples_per_ms() as u64
    }

    /// Appends sound.
    pub fn push(&mut self, samples: &[i16]) {
        self.pushed = self.now;
        let room = self.limit().saturating_sub(self.queue.len());
        let over = samples.len().saturating_sub(room);
        if over > 0 {
            self.dropped += over as u64;
            match self.policy {
                Policy::Spoken => {
                    self.queue.extend(&samples[..samples.len() - over]);
                    return;
                }
                Policy::Live => {
                    let oldest = over.min(self.queue.len());
                    self.queue.drain(..oldest);
                    self.queue.extend(&samples[over - oldest..]);
                    return;
                }
            }
        }
        self.queue.extend(samples);
    }

    /// Sets a mark after what was pushed so far.
    ///
    /// # Errors
    /// The name, when too many wait.
    pub fn mark(&mut self, name: String) -> Result<(), String> {
        if self.marks.len() >= MARKS_MAX {
            self.marks_refused += 1;
            return Err(name);
        }
        let position = self.heard + self.queue.len() as u64;
        self.marks.push_back(Mark { position, name });
        Ok(())
    }

    fn fade(&self) -> usize {
        FADE_MS * self.rate.samples_per_ms()
    }

    /// Fades out within [`FADE_MS`] and holds the rest, until [`Playout::resume`] or [`Playout::clear`].
    pub fn pause(&mut self) {
        self.motion = match self.motion {
            Motion::Playing => Motion::FadingOut { left: self.fade() },
            Motion::FadingIn { left } => Motion::FadingOut { left: self.fade() - left },
            held => held,
        };
        self.settle();
    }

    /// Goes on with the sample after the last that left.
    pub fn resume(&mut self) {
        self.motion = match self.motion {
            Motion::Paused => Motion::FadingIn { left: self.fade() },
            Motion::FadingOut { left } => Motion::FadingIn { left: self.fade() - left },
            moving => moving,
        };
        self.has_paused = false;
    }

    /// A fade that is over, or has nothing left to fade, ends.
    fn settle(&mut self) {
        match self.motion {
            Motion::FadingOut { left } if left == 0 || self.queue.is_empty() => {
                self.motion = Motion::Paused;
                self.has_paused = true;
            }
            Motion::FadingIn { left: 0 } => self.motion = Motion::Playing,
            _ => {}
        }
    }

    /// Where the pause was reached, once: milliseconds heard, the fade included.
    pub fn poll_paused(&mut self) -> Option<u64> {
        std::mem::take(&mut self.has_paused).then(|| self.heard_ms())
    }

    /// Drops everything that has not left, and ends a pause. Marks that wait for it are handed to `passed`, oldest first.
    pub fn clear(&mut self, mut passed: impl FnMut(String)) {
        self.motion = Motion::Playing;
        self.has_paused = false;
        self.queue.clear();
        for mark in self.marks.drain(..) {
            passed(mark.name);
        }
    }

    /// So much of what left last has reached nobody after all, and never will: it does not count as heard.
    pub fn take_back(&mut self, ms: u64) {
        let samples = (ms * self.rate.samples_per_ms() as u64).min(self.heard);
        self.heard -= samples;
        for mark in &mut self.marks {
            mark.position = mark.position.saturating_sub(samples);
        }
    }

    /// Takes the next frame; what is missing is left alone. Says how many samples are sound. What was taken counts as heard:
    /// a little more or less than that while clocks are being reconciled (see [`Skew`]).
    pub fn take(&mut self, frame: &mut [i16]) -> usize {
        let most = match self.motion {
            Motion::Playing | Motion::FadingIn { .. } => frame.len(),
            Motion::FadingOut { left } => left.min(frame.len()),
            Motion::Paused => return 0,
        };
        if self.motion == Motion::Playing {
            let since = self.now.zip(self.pushed).map(|(now, pushed)| now.saturating_duration_since(pushed));
            let taken = self.skew.take(&self.queue, since.unwrap_or(UNKNOWN), frame);
            if taken > 0 {
                self.queue.drain(..taken);
                self.heard += taken as u64;
                return frame.len();
            }
        }
        let len = most.min(self.queue.len());
        let (front, back) = self.queue.as_slices();
        let split = front.len().min(len);
        frame[..split].copy_from_slice(&front[..split]);
        frame[split..len].copy_from_slice(&back[..len - split]);
        self.queue.drain(..len);
        self.heard += len as u64;
        if self.motion != Motion::Playing {
            self.shape(&mut frame[..len]);
        }
        self.skew.hear(&frame[..len]);
        len
    }

    /// Puts the fade over samples that leave.
    fn shape(&mut self, samples: &mut [i16]) {
        let whole = self.fade() as i32;
        let scale =
            |sample: &mut i16, part: usize| *sample = (i32::from(*sample) * part as i32 / whole) as i16;
        match &mut self.motion {
            Motion::FadingOut { left } => {
                for sample in samples {
                    scale(sample, *left);
                    *left = left.saturating_sub(1);
                }
            }
            Motion::FadingIn { left } => {
                for sample in samples.iter_mut().take(*left) {
                    scale(sample, whole as usize - *left);
                    *left -= 1;
                }
            }
            Motion::Playing | Motion::Paused => {}
        }
        self.settle();
    }

    /// A mark that the sound has reached.
    pub fn poll_mark(&mut self) -> Option<Played> {
        if self.marks.front()?.position > self.heard {
            return None;
        }
        let mark = self.marks.pop_front()?;
        Some(Played { name: mark.name, heard_ms: self.ms(mark.position) })
    }

    /// The memory of the next frame of so many samples.
    pub fn next_frame(&self, samples: usize) -> &[i16] {
        let front = self.queue.as_slices().0;
        &front[..samples.min(front.len())]
    }

    /// Nothing leaves: nothing waits, or it is held.
    pub fn is_still(&self) -> bool {
        self.queue.is_empty() || self.motion == Motion::Paused
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Milliseconds that wait.
    pub fn waiting_ms(&self) -> u64 {
        self.ms(self.queue.len() as u64)
    }

    /// Milliseconds that left since the start of the stream.
    pub fn heard_ms(&self) -> u64 {
        self.ms(self.heard)
    }

    /// Milliseconds dropped for want of room.
    pub fn dropped_ms(&self) -> u64 {
        self.ms(self.dropped)
    }

    /// Marks refused for want of room.
    pub fn marks_refused(&self) -> u64 {
        self.marks_refused
    }
}

/// The ptime clock of one stream: an absolute schedule, so lateness never adds up.
#[derive(Debug, Clone, Copy)]
pub struct PtimeClock {
    next: Instant,
    ptime: Duration,
}

impl PtimeClock {
    /// A clock whose first frame is due at `first`.
    pub fn new(first: Instant, ptime: Ptime) -> Self {
        Self { next: first, ptime: ptime.as_duration() }
    }

    /// When the next frame is due.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// If a frame is due, moves on and gives how many frames were lost before it because nobody asked in time.
    pub fn poll_due(&mut self, now: Instant) -> Option<u32> {
        let late = now.checked_duration_since(self.next)?;
        let behind = (late.as_nanos() / self.ptime.as_nanos()) as u32;
        let lost = (behind + 1).saturating_sub(CATCH_UP_FRAMES);
        self.next += self.ptime * (lost + 1);
        Some(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spoken() -> Playout {
        Playout::new(SampleRate::Hz8000, Policy::Spoken)
    }

    #[test]
    fn sound_leaves_in_order_and_counts_as_heard() {
        let mut playout = spoken();
        playout.push(&[1; 100]);
        playout.push(&[2; 100]);
        let mut frame = [9; 160];
        assert_eq!(playout.take(&mut frame), 160);
        assert_eq!((frame[99], frame[100]), (1, 2));
        assert_eq!(playout.heard_ms(), 20);
        let mut frame = [9; 160];
        assert_eq!(playout.take(&mut frame), 40);
        assert_eq!((frame[39], frame[40]), (2, 9));
        assert_eq!(playout.heard_ms(), 25);
        assert_eq!(playout.take(&mut frame), 0);
        assert_eq!(playout.heard_ms(), 25, "silence is not heard");
    }

    #[test]
    fn a_full_queue_of_spoken_sound_keeps_the_beginning() {
        let mut playout = spoken();
        let limit = SPOKEN_MS_MAX as usize * 8;
        playout.push(&vec![1; limit - 80]);
        playout.push(&[2; 160]);
        assert_eq!(playout.waiting_ms(), u64::from(SPOKEN_MS_MAX));
        assert_eq!(playout.dropped_ms(), 10);
    }

    #[test]
    fn a_full_queue_of_live_sound_keeps_the_end() {
        let mut playout = Playout::new(SampleRate::Hz8000, Policy::Live);
        playout.push(&[1; LIVE_MS_MAX as usize * 8]);
        playout.push(&[2; 160]);
        assert_eq!(playout.waiting_ms(), u64::from(LIVE_MS_MAX));
        assert_eq!(playout.dropped_ms(), 20);
        playout.push(&[3; 2 * LIVE_MS_MAX as usize * 8]);
        assert_eq!(playout.waiting_ms(), u64::from(LIVE_MS_MAX));
    }

    #[test]
    fn a_mark_is_reached_when_the_sound_before_it_has_left() {
        let mut playout = spoken();
        playout.push(&[1; 200]);
        assert_eq!(playout.mark("a".into()), Ok(()));
        playout.push(&[1; 200]);
        let mut frame = [0; 160];
        playout.take(&mut frame);
        assert_eq!(playout.poll_mark(), None);
        playout.take(&mut frame);
        assert_eq!(playout.poll_mark(), Some(Played { name: "a".into(), heard_ms: 25 }));
        assert_eq!(playout.poll_mark(), None);
    }

    #[test]
    fn a_mark_on_an_empty_queue_is_reached_at_once() {
        let mut playout = spoken();
        playout.mark("now".into()).unwrap();
        assert!(playout.poll_mark().is_some());
    }

    #[test]
    fn clear_leaves_nothing_and_hands_out_the_marks() {
        let mut playout = spoken();
        playout.push(&[1; 400]);
        playout.mark("a".into()).unwrap();
        let mut frame = [0; 160];
        playout.take(&mut frame);
        let mut passed = Vec::new();
        playout.clear(|name| passed.push(name));
        assert_eq!(passed, ["a"]);
        assert_eq!(playout.take(&mut frame), 0);
        assert_eq!(playout.heard_ms(), 20);
        playout.push(&[1; 160]);
        playout.mark("b".into()).unwrap();
        playout.take(&mut frame);
        assert_eq!(playout.poll_mark(), Some(Played { name: "b".into(), heard_ms: 40 }));
    }

    #[test]
    fn a_pause_fades_out_and_goes_on_with_the_very_next_sample() {
        let mut playout = spoken();
        playout.push(&(0..1_600).map(|n| 10_000 + n).collect::<Vec<i16>>());
        let mut frame = [0; 160];
        playout.take(&mut frame);
        playout.pause();
        assert_eq!(playout.poll_paused(), None, "it fades first");
        assert_eq!(playout.take(&mut frame), 160);
        assert!(frame[0] > 10_000 && frame[159].abs() < 100, "{} {}", frame[0], frame[159]);
        assert!(frame.is_sorted_by(|a, b| a >= b), "ever more quiet");
        assert_eq!(playout.poll_paused(), Some(40));
        assert_eq!(playout.poll_paused(), None, "told once");
        for _ in 0..50 {
            assert_eq!(playout.take(&mut frame), 0);
        }
        assert_eq!((playout.heard_ms(), playout.waiting_ms()), (40, 160));
        playout.resume();
        assert_eq!(playout.take(&mut frame), 160);
        assert!(frame[0].abs() < 100 && frame[159] > 9_900, "{} {}", frame[0], frame[159]);
        assert_eq!(playout.take(&mut frame), 160);
        assert_eq!((frame[0], frame[159]), (10_480, 10_639), "nothing lost, nothing twice");
        assert_eq!(playout.heard_ms(), 80);
    }

    #[test]
    fn a_pause_without_sound_is_reached_at_once_and_clear_ends_it() {
        let mut playout = spoken();
        playout.pause();
        assert_eq!(playout.poll_paused(), Some(0));
        playout.push(&[1_000; 160]);
        let mut frame = [0; 160];
        assert_eq!(playout.take(&mut frame), 0);
        playout.clear(|_| {});
        playout.push(&[1_000; 160]);
        assert_eq!(playout.take(&mut frame), 160);
        assert_eq!(frame, [1_000; 160]);
    }

    #[test]
    fn a_resume_in_the_middle_of_the_fade_turns_it_round() {
        let mut playout = spoken();
        playout.push(&[8_000; 800]);
        playout.pause();
        let mut half = [0; 80];
        playout.take(&mut half);
        playout.resume();
        let mut frame = [0; 160];
        playout.take(&mut frame);
        assert!((i32::from(frame[0]) - i32::from(half[79])).abs() <= 50, "no step");
        assert_eq!(frame[80..], [8_000; 80]);
        assert_eq!(playout.poll_paused(), None);
    }

    #[test]
    fn too_many_marks_are_refused_and_counted() {
        let mut playout = spoken();
        playout.push(&[1; 400]);
        assert!((0..MARKS_MAX).all(|n| playout.mark(n.to_string()).is_ok()));
        assert_eq!(playout.mark("one more".into()), Err("one more".into()));
        assert_eq!(playout.marks_refused(), 1);
    }

    #[test]
    fn lateness_of_the_clock_never_adds_up() {
        let t0 = Instant::now();
        let mut clock = PtimeClock::new(t0, Ptime::MS_20);
        let mut frames = 0;
        for ms in (0..1_000).step_by(7) {
            while let Some(lost) = clock.poll_due(t0 + Duration::from_millis(ms)) {
                assert_eq!(lost, 0);
                frames += 1;
            }
        }
        assert_eq!(frames, 50);
        assert_eq!(clock.next(), t0 + Duration::from_secs(1));
    }

    #[test]
    fn a_long_stall_loses_frames_instead_of_bursting() {
        let t0 = Instant::now();
        let mut clock = PtimeClock::new(t0, Ptime::MS_20);
        assert_eq!(clock.poll_due(t0 + Duration::from_secs(2)), Some(99));
        assert_eq!(clock.poll_due(t0 + Duration::from_secs(2)), Some(0));
        assert_eq!(clock.poll_due(t0 + Duration::from_secs(2)), None);
        assert_eq!(clock.next(), t0 + Duration::from_millis(2_020));
    }

    proptest! {
        #[test]
        fn heard_and_waiting_and_dropped_account_for_all_that_was_pushed(
            steps in proptest::collection::vec((0usize..900, 0usize..400), 0..200)
        ) {
            let mut playout = Playout::new(SampleRate::Hz8000, Policy::Live);
            let mut pushed = 0u64;
            for (push, take) in steps {
                playout.push(&vec![1; push]);
                pushed += push as u64;
                playout.take(&mut vec![0; take]);
                prop_assert_eq!(playout.heard + playout.queue.len() as u64 + playout.dropped, pushed);
            }
        }
    }
}
