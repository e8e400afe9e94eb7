//! Live sound between two clocks: what one RTP leg says, on its way to a leg that sends by a ptime clock of its own.
//!
//! ```text
//!   packets of one leg ──push──▶ [ 20 … 60 ms ] ──take, one frame a tick──▶ packets of the other
//! ```
//!
//! The queue gives nothing until [`START_MS`] are there, so that a packet which is a little late does not tear a hole;
//! it runs dry when the other side pauses, and then gathers again. It never holds more than [`WAITING_MS_MAX`]: the
//! oldest is dropped then, and counted.

use std::collections::VecDeque;

use tandem_audio::format::SampleRate;

/// Gathered before the first frame leaves, and again after the queue ran dry.
pub const START_MS: usize = 20;

/// More than this is clock drift, or a burst after a stall.
pub const WAITING_MS_MAX: usize = 60;

/// See the module.
#[derive(Debug)]
pub struct Paced {
    rate: SampleRate,
    queue: VecDeque<i16>,
    is_gathering: bool,
    dropped: u64,
}

impl Paced {
    /// An empty queue of samples at `rate`.
    pub fn new(rate: SampleRate) -> Self {
        // One packet of the longest ptime may come on top before the oldest goes.
        let room = rate.samples_per_ms() * 2 * WAITING_MS_MAX;
        Self { rate, queue: VecDeque::with_capacity(room), is_gathering: true, dropped: 0 }
    }

    fn samples(&self, ms: usize) -> usize {
        ms * self.rate.samples_per_ms()
    }

    /// Appends sound.
    pub fn push(&mut self, samples: &[i16]) {
        let limit = self.samples(WAITING_MS_MAX);
        let newest = &samples[samples.len().saturating_sub(limit)..];
        let over = (self.queue.len() + newest.len()).saturating_sub(limit);
        self.dropped += (over + samples.len() - newest.len()) as u64;
        self.queue.drain(..over.min(self.queue.len()));
        self.queue.extend(newest);
    }

    /// Adds the next frame to what is in `frame` already, and says how many samples were added.
    pub fn mix_into(&mut self, frame: &mut [i16]) -> usize {
        if self.is_gathering {
            if self.queue.len() < self.samples(START_MS).max(frame.len()) {
                return 0;
            }
            self.is_gathering = false;
        }
        let len = frame.len().min(self.queue.len());
        self.is_gathering = len < frame.len();
        for (sample, other) in frame.iter_mut().zip(self.queue.drain(..len)) {
            *sample = sample.saturating_add(other);
        }
        len
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.is_gathering = true;
    }

    /// Milliseconds that wait.
    pub fn waiting_ms(&self) -> usize {
        self.queue.len() / self.rate.samples_per_ms()
    }

    /// Milliseconds dropped for want of room.
    pub fn dropped_ms(&self) -> u64 {
        self.dropped / self.rate.samples_per_ms() as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRAME: usize = 160;

    #[test]
    fn nothing_leaves_before_enough_is_gathered_and_nothing_is_torn_after_that() {
        let mut queue = Paced::new(SampleRate::Hz8000);
        let mut frame = [0; FRAME];
        queue.push(&[7; FRAME / 2]);
        assert_eq!(queue.mix_into(&mut frame), 0);
        queue.push(&[7; FRAME / 2]);
        assert_eq!(queue.mix_into(&mut frame), FRAME);
        assert_eq!(frame, [7; FRAME]);
    }

    #[test]
    fn queue_that_ran_dry_gathers_again() {
        let mut queue = Paced::new(SampleRate::Hz8000);
        queue.push(&[1; FRAME + FRAME / 2]);
        let mut frame = [0; FRAME];
        assert_eq!(queue.mix_into(&mut frame), FRAME);
        assert_eq!(queue.mix_into(&mut frame), FRAME / 2);
        queue.push(&[1; FRAME / 2]);
        assert_eq!(queue.mix_into(&mut frame), 0, "half a frame is not enough to go on");
    }

    #[test]
    fn too_much_loses_the_oldest() {
        let mut queue = Paced::new(SampleRate::Hz8000);
        for n in 1..=4 {
            queue.push(&[n; FRAME]);
        }
        assert_eq!((queue.waiting_ms(), queue.dropped_ms()), (WAITING_MS_MAX, 20));
        let mut frame = [0; FRAME];
        queue.mix_into(&mut frame);
        assert_eq!(frame, [2; FRAME]);
    }

    #[test]
    fn sound_is_added_to_what_is_there_without_wrapping() {
        let mut queue = Paced::new(SampleRate::Hz8000);
        queue.push(&[30_000; FRAME]);
        let mut frame = [10_000; FRAME];
        queue.mix_into(&mut frame);
        assert_eq!(frame, [i16::MAX; FRAME]);
    }

    proptest! {
        #[test]
        fn it_never_holds_more_than_its_bound_and_accounts_for_all(
            steps in proptest::collection::vec((0usize..1_200, 0usize..480), 0..200)
        ) {
            let mut queue = Paced::new(SampleRate::Hz8000);
            let (mut pushed, mut taken) = (0u64, 0u64);
            for (push, take) in steps {
                queue.push(&vec![1; push]);
                pushed += push as u64;
                taken += queue.mix_into(&mut vec![0; take]) as u64;
                prop_assert!(queue.waiting_ms() <= WAITING_MS_MAX);
                prop_assert_eq!(taken + queue.queue.len() as u64 + queue.dropped, pushed);
            }
        }
    }
}
