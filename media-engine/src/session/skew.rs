//! Keeps the clock of a live source and our own in step, and takes back what a stall left waiting: each counts its own 8 000
//! samples a second, and 200 in a million more or fewer fill a queue, or run it dry, within minutes.
//!
//! ```text
//!  what waits after each frame ─▶ least of a second ─▶ a whole frame that nobody needs: it is taken out,
//!                                                      by a little at a time, or when it is many by a voice's period
//!                   of a source that was late once ─▶ below 5 ms: frames use up a little less, above 25 ms a little more,
//!                                                      until 20 ms wait
//! ```
//!
//! A source that leaves nothing waiting and is never late is in step: its sound is left alone, to the sample, and waits no
//! longer than it must. One that is fast leaves a frame waiting after minutes, a stall leaves many: as many as the waits
//! of the last seconds differ by are needed, the others go. While what comes next would come at the last moment, one more
//! stays. A source that is slow is late once, and a frame is silent; from then on 20 ms are kept for it.
//!
//! Only sound that comes in real time is corrected, for some seconds at least: an agent that speaks ahead has its whole answer
//! in the queue, one that pauses begins afresh. What is too much goes a period at a time ([`Stretcher::shorten`]): some 80 ms in
//! a second, by a comparison of the sound with itself that costs a few microseconds ten times a second. The last two milliseconds, and
//! what a clock that is off asks for, go by a quarter of a millisecond each third frame, which nobody hears.

use std::collections::VecDeque;
use std::time::Duration;

use tandem_audio::format::{Ptime, SampleRate};
use tandem_audio::stretch::{LAG_TENTHS_MS_MAX, LAG_TENTHS_MS_MIN, REACH, Stretcher};

/// What should wait after a frame has left, of a source that was late: a packet of a talker that is about to be late.
const TARGET_MS: usize = 20;
/// More than that for a second: it is fast, or something stalled.
const HIGH_MS: usize = 25;
/// Less than that: it is slow.
const LOW_MS: usize = 5;
/// So near to its target it is let be.
const CLOSE_MS: usize = 1;
/// Sound that comes so shortly before it is taken comes at the last moment.
const LAST_MOMENT: Duration = Duration::from_millis(3);
/// A queue that was ever longer than this is no live one.
const LIVE_MS: usize = 200;
/// Seconds of steady sound before it counts as late when it fails.
const STEADY_SECONDS: u32 = 10;
/// Seconds of steady sound before anything is taken out.
const SURE_SECONDS: u32 = 3;
/// One frame in so many is corrected by a little.
const EVERY: u32 = 3;
/// One frame in so many loses a period, while more than [`MUCH_MS`] is to go.
const EVERY_PERIOD: u32 = 5;
/// More than a packet: that did not come by a clock.
const MUCH_MS: usize = 20;
/// The longest frame that is corrected, at the highest rate.
const FRAME_MAX: usize = SampleRate::Hz48000.samples(Ptime::MS_60);
/// The most that a frame uses up beyond its length.
const STEP_MAX: usize = 48 * LAG_TENTHS_MS_MAX / 10;

/// See the module.
#[derive(Debug)]
pub struct Skew {
    per_ms: usize,
    stretcher: Stretcher,
    /// Samples that left in this second, and what waited after them: least and most.
    second: usize,
    least: usize,
    most: usize,
    /// What was corrected in it.
    changed: usize,
    /// The shortest that its sound came before it was taken.
    nearest: Duration,
    /// By how much the waits of the last two seconds differed.
    spreads: [usize; 2],
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
            changed: 0,
            nearest: Duration::MAX,
            spreads: [0; 2],
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

    /// A frame is due of what waits, the newest of it for `since`. If it is one that is corrected, fills it and says how many samples it used up; 0: it
    /// is to be taken as it is, and [`Skew::hear`] told.
    pub fn take(&mut self, queue: &VecDeque<i16>, since: Duration, frame: &mut [i16]) -> usize {
        let Some(left) = queue.len().checked_sub(frame.len()) else {
            self.was_late |= self.steady_seconds >= STEADY_SECONDS;
            (self.steady_seconds, self.owed) = (0, 0);
            self.begin_second();
            return 0;
        };
        (self.least, self.most) = (self.least.min(left), self.most.max(left));
        self.nearest = self.nearest.min(since);
        self.second += frame.len();
        if self.second >= 1_000 * self.per_ms {
            self.judge(frame.len());
        }
        self.since_correction += 1;
        if self.owed == 0 || self.since_correction < EVERY || frame.len() > FRAME_MAX {
            return 0;
        }
        // What is fast or slow by its clock goes by little; a frame too many is soon gone, since sound between two packets of
        // its source is cut in another place than it was.
        let much = if self.was_late { MUCH_MS * 10 } else { LAG_TENTHS_MS_MIN };
        let used = match self.owed >= (much * self.per_ms / 10) as isize {
            true if self.since_correction < EVERY_PERIOD => 0,
            true => self.shorten(queue, frame),
            false => self.stretch(queue, frame),
        };
        if used > 0 {
            let more = used as isize - frame.len() as isize;
            self.owed -= more;
            self.since_correction = 0;
            self.changed += more.unsigned_abs();
            self.corrected += more.unsigned_abs() as u64;
        }
        used
    }

    fn stretch(&mut self, queue: &VecDeque<i16>, frame: &mut [i16]) -> usize {
        let step = (self.per_ms / 4).max(1).min(self.owed.unsigned_abs());
        let used = if self.owed > 0 { frame.len() + step } else { frame.len() - step };
        if used > queue.len() {
            return 0;
        }
        let mut input = [0; FRAME_MAX + STEP_MAX + REACH];
        let input = front(queue, used + REACH, &mut input);
        self.stretcher.stretch(input, used, frame);
        used
    }

    fn shorten(&mut self, queue: &VecDeque<i16>, frame: &mut [i16]) -> usize {
        let longest = (self.per_ms * LAG_TENTHS_MS_MAX / 10).min(self.owed.unsigned_abs());
        let lags = self.per_ms * LAG_TENTHS_MS_MIN / 10..=longest;
        let mut input = [0; FRAME_MAX + STEP_MAX + REACH];
        let input = front(queue, frame.len() + lags.end(), &mut input);
        self.stretcher.shorten(input, lags, self.per_ms, frame)
    }

    /// Sound left as it was.
    pub fn hear(&mut self, frame: &[i16]) {
        self.stretcher.hear(frame);
    }

    /// A second is over in which frames of so many samples left.
    fn judge(&mut self, frame: usize) {
        if self.most <= LIVE_MS * self.per_ms {
            self.steady_seconds = self.steady_seconds.saturating_add(1);
        } else {
            self.steady_seconds = 0;
        }
        // Not counting what we did ourselves.
        let spread = (self.most - self.least).saturating_sub(self.changed);
        let needed = spread.max(self.spreads[0]).max(self.spreads[1]);
        self.spreads = [self.spreads[1], spread];
        if self.steady_seconds < SURE_SECONDS {
            self.owed = 0;
        } else if self.was_late {
            // One sample more than a packet, so that the packet can be late.
            let off = self.least as isize - (TARGET_MS * self.per_ms + 1) as isize;
            let is_off = self.least > HIGH_MS * self.per_ms || self.least < LOW_MS * self.per_ms;
            // What was begun is finished by what is measured now, not by what was measured then.
            let goes_on = self.owed != 0 && off.unsigned_abs() > CLOSE_MS * self.per_ms;
            self.owed = if is_off || goes_on { off } else { 0 };
        } else if self.owed == 0 {
            // Whole frames: what comes packet by packet then leaves as it came.
            let kept = needed.div_ceil(frame) + usize::from(self.nearest < LAST_MOMENT);
            self.owed = ((self.least / frame).saturating_sub(kept) * frame) as isize;
        }
        self.begin_second();
    }

    fn begin_second(&mut self) {
        (self.second, self.least, self.most) = (0, usize::MAX, 0);
        (self.changed, self.nearest) = (0, Duration::MAX);
    }
}

/// The first samples of a queue, so many at most.
fn front<'a>(queue: &VecDeque<i16>, len: usize, into: &'a mut [i16]) -> &'a [i16] {
    let len = len.min(queue.len()).min(into.len());
    for (sample, &waiting) in into.iter_mut().zip(queue.iter().take(len)) {
        *sample = waiting;
    }
    &into[..len]
}

#[cfg(test)]
mod tests {
    use super::super::playout::{Playout, Policy};
    use super::*;
    use std::time::Instant;
    use tandem_audio::tone::Sine;

    /// An hour of a tone from a source whose clock is off, in packets of 20 ms, through the queue: the longest it was, frames
    /// that were not whole in the second half minute and after, and the largest thing heard beside them that is not the tone.
    fn an_hour(rate: SampleRate, off_ppm: f64, policy: Policy) -> (u64, u32, f64) {
        const HZ: f64 = 440.0;
        let t0 = Instant::now();
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
                playout.set_time(t0 + Duration::from_secs_f64(next_packet_ms / 1e3));
                playout.push(&packet);
                next_packet_ms += 20.0 / (1.0 + off_ppm / 1e6);
            }
            playout.set_time(t0 + Duration::from_secs_f64(now_ms / 1e3));
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

    /// What waits after so many seconds of a source in real time whose first packets came at once after a stall, and how many
    /// frames were not whole. At some ticks it keeps packets back.
    fn after_a_stall(seconds: u32, stalled: u32, kept_back: fn(u32) -> u32) -> (u64, u32) {
        let mut playout = Playout::new(SampleRate::Hz16000, Policy::Spoken);
        let mut tone = Sine::new(150.0, 10_000, SampleRate::Hz16000);
        let (mut packet, mut frame) = ([0; 320], [0; 320]);
        let (mut owed, mut short) = (stalled, 0);
        for tick in 0..seconds * 50 {
            owed += 1;
            while owed > kept_back(tick) {
                tone.fill(&mut packet);
                playout.push(&packet);
                owed -= 1;
            }
            short += u32::from(playout.take(&mut frame) < frame.len());
        }
        (playout.waiting_ms(), short)
    }

    #[test]
    fn what_a_stall_left_waiting_is_gone_soon() {
        assert_eq!(after_a_stall(2, 5, |_| 0), (100, 0), "nothing is done before it is sure");
        for stalled in [1, 5, 9] {
            let (waiting, short) = after_a_stall(9, stalled, |_| 0);
            assert_eq!((waiting, short), (0, 0), "of {} ms", stalled * 20);
        }
    }

    #[test]
    fn a_source_that_comes_unevenly_keeps_what_it_needs() {
        // Each third packet comes with the next one.
        let (waiting, short) = after_a_stall(60, 7, |tick| u32::from(tick % 3 == 0));
        assert!(waiting <= 45 && short == 0, "{waiting} ms wait, {short} short");
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
