//! Keeps the clock of a live source and our own in step: each counts its own 8 000 samples a second, and 200 in a million
//! more or fewer fill a queue, or run it dry, within minutes.
//!
//! ```text
//!  what waits after each frame ─▶ least of a second ─▶ above 25 ms: frames use up a little more
//!                             below  5 ms, if it was late once: a little less, until 20 ms wait
//! ```
//!
//! A source that leaves nothing waiting and is never late is in step: its sound is left alone, to the sample, and waits no
//! longer than it must. One that is slow is late once, and a frame is silent; from then on 20 ms are kept for it.
//!
//! Only sound that comes in real time is corrected, for 10 s at least: an agent that speaks ahead has its whole answer in
//! the queue, one that pauses begins afresh. One frame in five is made of an eighth of a millisecond more or less, which
//! nobody hears; that is six times faster than clocks drift apart.

use std::collections::VecDeque;

use tandem_audio::format::{Ptime, SampleRate};
use tandem_audio::stretch::{REACH, Stretcher};

/// What should wait after a frame has left: a packet of a talker that is about to be late.
const TARGET_MS: usize = 20;
/// More than that for a second: the source is fast.
const HIGH_MS: usize = 25;
/// Less than that: it is slow.
const LOW_MS: usize = 5;
/// A queue that was ever longer than this is no live one.
const LIVE_MS: usize = 200;
/// Seconds of steady sound before anything is done.
const STEADY_SECONDS: u32 = 10;
/// One frame in so many is corrected.
const EVERY: u32 = 5;
/// The longest frame that is corrected, at the highest rate.
const FRAME_MAX: usize = SampleRate::Hz48000.samples(Ptime::MS_60);
/// The longest step of a correction.
const STEP_MAX: usize = 48 / 8;

/// See the module.
#[derive(Debug)]
pub struct Skew {
    per_ms: usize,
    stretcher: Stretcher,
    /// Samples that left in this second, and what waited after them: least and most.
    second: usize,
    least: usize,
    most: usize,
    steady_seconds: u32,
    /// The queue ran dry in the middle of steady sound: a slow source, or one whose packets come unevenly.
    was_late: bool,
    /// Samples that are to be used up beside those that are played, or fewer.
    owed: isize,
    since_correction: u32,
    corrected: u64,
}

impl Skew {
    /// For a queue of samples at `rate`.
    pub fn new(rate: SampleRate) -> Self {
        Self {
            per_ms: rate.samples_per_ms(),
            stretcher: Stretcher::new(),
            second: 0,
            least: usize::MAX,
            most: 0,
            steady_seconds: 0,
            was_late: false,
            owed: 0,
            since_correction: 0,
            corrected: 0,
        }
    }

    /// Samples dropped or added since the start.
    pub fn corrected(&self) -> u64 {
        self.corrected
    }

    /// A frame is due of what waits. If it is one that is corrected, fills it and says how many samples it used up; 0: it
    /// is to be taken as it is, and [`Skew::hear`] told.
    pub fn take(&mut self, queue: &VecDeque<i16>, frame: &mut [i16]) -> usize {
        let Some(left) = queue.len().checked_sub(frame.len()) else {
            self.was_late |= self.steady_seconds >= STEADY_SECONDS;
            (self.steady_seconds, self.owed) = (0, 0);
            self.begin_second();
            return 0;
        };
        (self.least, self.most) = (self.least.min(left), self.most.max(left));
        self.second += frame.len();
        if self.second >= 1_000 * self.per_ms {
            self.judge();
        }
        self.since_correction += 1;
        if self.owed == 0 || self.since_correction < EVERY || frame.len() > FRAME_MAX {
            return 0;
        }
        let step = (self.per_ms / 8).max(1).min(self.owed.unsigned_abs());
        let used = if self.owed > 0 { frame.len() + step } else { frame.len() - step };
        if used > queue.len() {
            return 0;
        }
        let mut input = [0; FRAME_MAX + STEP_MAX + REACH];
        let len = (used + REACH).min(queue.len());
        for (sample, &waiting) in input.iter_mut().zip(queue.iter().take(len)) {
            *sample = waiting;
        }
        self.stretcher.stretch(&input[..len], used, frame);
        self.owed -= self.owed.signum() * step as isize;
        self.since_correction = 0;
        self.corrected += step as u64;
        used
    }

    /// Sound left as it was.
    pub fn hear(&mut self, frame: &[i16]) {
        self.stretcher.hear(frame);
    }

    fn judge(&mut self) {
        if self.most <= LIVE_MS * self.per_ms {
            self.steady_seconds = self.steady_seconds.saturating_add(1);
        } else {
            self.steady_seconds = 0;
        }
        let is_off =
            self.least > HIGH_MS * self.per_ms || (self.was_late && self.least < LOW_MS * self.per_ms);
        // What was begun is finished by what is measured now, not by what was measured then.
        if self.steady_seconds < STEADY_SECONDS {
            self.owed = 0;
        } else if is_off || self.owed != 0 {
            // One sample more than a packet, so that the packet can be late.
            self.owed = self.least as isize - (TARGET_MS * self.per_ms + 1) as isize;
        }
        self.begin_second();
    }

    fn begin_second(&mut self) {
        (self.second, self.least, self.most) = (0, usize::MAX, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::playout::{Playout, Policy};
    use super::*;
    use tandem_audio::tone::Sine;

    /// An hour of a tone from a source whose clock is off, in packets of 20 ms, through the queue: the longest it was, frames
    /// that were not whole in the second half minute and after, and the largest thing heard beside them that is not the tone.
    fn an_hour(rate: SampleRate, off_ppm: f64, policy: Policy) -> (u64, u32, f64) {
        const HZ: f64 = 440.0;
        let mut playout = Playout::new(rate, policy);
        let mut tone = Sine::new(HZ, 10_000, rate);
        let mut packet = vec![0; rate.samples(Ptime::MS_20)];
        let mut frame = packet.clone();
        let mut next_packet_ms = 3.0;
        let cosine = 2.0 * (std::f64::consts::TAU * HZ / f64::from(rate.hz())).cos();
        let (mut before, mut longest, mut short, mut worst) = ([0.0; 2], 0, 0, 0.0_f64);
        let mut was_whole = false;
        for tick in 1..=180_000_u32 {
            let now_ms = f64::from(tick) * 20.0;
            while next_packet_ms <= now_ms {
                tone.fill(&mut packet);
                playout.push(&packet);
                next_packet_ms += 20.0 / (1.0 + off_ppm / 1e6);
            }
            longest = longest.max(playout.waiting_ms());
            let whole = playout.take(&mut frame) == frame.len();
            short += u32::from(tick > 1_500 && !whole);
            if tick > 1_500 && whole && was_whole {
                for &sample in &frame {
                    let sample = f64::from(sample);
                    worst = worst.max((sample + before[0] - cosine * before[1]).abs());
                    before = [before[1], sample];
                }
            } else if whole {
                before = [f64::from(frame[frame.len() - 2]), f64::from(frame[frame.len() - 1])];
            }
            was_whole = whole;
        }
        (longest, short, worst)
    }

    #[test]
    fn a_clock_that_is_off_keeps_the_queue_short_for_an_hour_and_nobody_hears_it() {
        for off_ppm in [200.0, -200.0, 0.0] {
            for (rate, policy) in [(SampleRate::Hz8000, Policy::Live), (SampleRate::Hz16000, Policy::Spoken)]
            {
                let (longest, short, worst) = an_hour(rate, off_ppm, policy);
                assert!(longest <= 60, "{longest} ms waited at {off_ppm} ppm");
                // The first time that a slow source is late.
                let once = u32::from(off_ppm < 0.0);
                assert_eq!(short, once, "frames that were not whole at {off_ppm} ppm");
                // −34 dB of the tone at one sample, where the frequency moves.
                assert!(worst < 200.0, "{worst} of 10 000 that is not the tone at {off_ppm} ppm");
            }
        }
    }

    #[test]
    fn a_source_in_step_is_left_alone_to_the_sample_and_never_waits_longer() {
        let mut playout = Playout::new(SampleRate::Hz8000, Policy::Live);
        let mut frame = [0; 160];
        for n in 0..30_000_u32 {
            let packet: Vec<i16> = (0..160).map(|i| ((n * 160 + i) % 30_000) as i16).collect();
            playout.push(&packet);
            assert_eq!((playout.take(&mut frame), playout.waiting_ms()), (160, 0));
            assert_eq!(frame, packet[..], "frame {n}");
        }
    }

    #[test]
    fn an_agent_that_speaks_ahead_is_left_alone() {
        let mut playout = Playout::new(SampleRate::Hz8000, Policy::Spoken);
        let spoken: Vec<i16> = (0..240_000).map(|n| (n % 1_000) as i16).collect();
        playout.push(&spoken);
        let mut heard = Vec::new();
        let mut frame = [0; 160];
        while playout.take(&mut frame) > 0 {
            heard.extend(frame);
        }
        assert_eq!(heard, spoken);
    }
}
