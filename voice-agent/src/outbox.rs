//! What is to be sent to the engine: audio and events in order, with two privileges.
//!
//! Audio goes out at most 2.5 s ahead of its playing, so that little is in the connection when the caller
//! interrupts; and `clear` overtakes and removes all audio that waits here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tandem_stream::agent::FromAgent;
use tokio::sync::Notify;

use crate::tts::audio_ms;

/// How far ahead of playing audio is sent: covers the jitter of a busy machine.
const LEAD: Duration = Duration::from_millis(2_500);
/// Audio that may wait here; when it is reached the pipeline is not read until some has left.
const AUDIO_MAX_MS: u64 = 20_000;

/// A frame for the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// L16 little-endian of a turn.
    Audio {
        /// The turn.
        turn: u32,
        /// Whole samples.
        pcm: Bytes,
    },
    /// An event. Its number is bounded by the turns' marks and one hang-up.
    Event(FromAgent),
}

/// The session's and the writer's shared queue.
#[derive(Debug, Clone, Default)]
pub struct Outbox {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Something came in.
    filled: Notify,
    /// Something went out.
    drained: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    waiting_ms: u64,
    /// When all that was sent will have been played.
    played_at: Option<Instant>,
    /// The turn whose first audio was sent last, and when.
    first_sent: Option<(u32, Instant)>,
    /// Events that wait are still sent; audio is not.
    closed: bool,
}

/// What the writer is to do.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Send(Frame),
    WaitUntil(Instant),
    Wait,
    End,
}

impl Outbox {
    /// Queues a frame.
    pub fn push(&self, frame: Frame) {
        let mut queue = self.lock();
        if let Frame::Audio { pcm, .. } = &frame {
            queue.waiting_ms += audio_ms(pcm.len());
        }
        queue.frames.push_back(frame);
        drop(queue);
        self.shared.filled.notify_one();
    }

    /// Removes all audio and marks, and puts `clear` in front.
    pub fn clear(&self) {
        let mut queue = self.lock();
        queue.frames.retain(|frame| {
            !matches!(frame, Frame::Audio { .. } | Frame::Event(FromAgent::Mark { .. } | FromAgent::Clear))
        });
        queue.waiting_ms = 0;
        queue.played_at = None;
        queue.frames.push_front(Frame::Event(FromAgent::Clear));
        drop(queue);
        self.shared.filled.notify_one();
    }

    /// A `clear` waits to be sent: audio that was taken before is of no use any more.
    pub fn is_clearing(&self) -> bool {
        matches!(self.lock().frames.front(), Some(Frame::Event(FromAgent::Clear)))
    }

    /// May more audio be queued?
    pub fn has_room(&self) -> bool {
        self.lock().waiting_ms < AUDIO_MAX_MS
    }

    /// Waits until there may be room again.
    pub async fn room(&self) {
        self.shared.drained.notified().await;
    }

    /// When the first audio of this turn was given to the connection.
    pub fn first_sent(&self, turn: u32) -> Option<Instant> {
        self.lock().first_sent.filter(|(sent, _)| *sent == turn).map(|(_, at)| at)
    }

    /// No more will come: audio that waits is dropped, events are still sent.
    pub fn close(&self) {
        let mut queue = self.lock();
        queue.frames.retain(|frame| matches!(frame, Frame::Event(_)));
        queue.closed = true;
        drop(queue);
        self.shared.filled.notify_one();
    }

    /// The next frame to send; waits until there is one and its time has come. `None` after [`Self::close`]. May be
    /// dropped and called again.
    pub async fn next(&self) -> Option<Frame> {
        loop {
            // Made before the look, so that what comes in after the look wakes it.
            let filled = self.shared.filled.notified();
            let step = self.lock().step(Instant::now());
            match step {
                Step::Send(frame) => {
                    self.shared.drained.notify_one();
                    return Some(frame);
                }
                Step::End => return None,
                Step::Wait => filled.await,
                Step::WaitUntil(at) => tokio::select! {
                    () = filled => {}
                    () = tokio::time::sleep_until(at.into()) => {}
                },
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is consistent after every statement that could panic.
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn step(&mut self, now: Instant) -> Step {
        let Some(Frame::Audio { turn, pcm }) = self.frames.front() else {
            let empty = if self.closed { Step::End } else { Step::Wait };
            return self.frames.pop_front().map_or(empty, Step::Send);
        };
        let played_at = self.played_at.unwrap_or(now).max(now);
        if played_at > now + LEAD {
            return Step::WaitUntil(played_at - LEAD);
        }
        let length_ms = audio_ms(pcm.len());
        if self.first_sent.is_none_or(|(sent, _)| sent != *turn) {
            self.first_sent = Some((*turn, now));
        }
        self.played_at = Some(played_at + Duration::from_millis(length_ms));
        self.waiting_ms = self.waiting_ms.saturating_sub(length_ms);
        self.frames.pop_front().map_or(Step::Wait, Step::Send)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audio(ms: usize) -> Frame {
        Frame::Audio { turn: 1, pcm: Bytes::from(vec![0; ms * 32]) }
    }

    fn mark() -> Frame {
        Frame::Event(FromAgent::Mark { name: "1".into() })
    }

    #[test]
    fn audio_is_not_sent_far_ahead_of_its_playing() {
        let (outbox, t0) = (Outbox::default(), Instant::now());
        for _ in 0..4 {
            outbox.push(audio(1_000));
        }
        let mut queue = outbox.lock();
        for _ in 0..3 {
            assert!(matches!(queue.step(t0), Step::Send(_)));
        }
        assert_eq!(queue.step(t0), Step::WaitUntil(t0 + Duration::from_millis(500)));
        assert!(matches!(queue.step(t0 + Duration::from_millis(500)), Step::Send(_)));
        assert_eq!(queue.step(t0 + Duration::from_millis(500)), Step::Wait);
    }

    #[test]
    fn clear_removes_audio_and_marks_and_goes_first() {
        let outbox = Outbox::default();
        outbox.push(audio(100));
        outbox.push(mark());
        outbox.push(Frame::Event(FromAgent::Dtmf { digits: "1".into() }));
        outbox.clear();
        let mut queue = outbox.lock();
        let now = Instant::now();
        assert_eq!(queue.step(now), Step::Send(Frame::Event(FromAgent::Clear)));
        assert!(matches!(queue.step(now), Step::Send(Frame::Event(FromAgent::Dtmf { .. }))));
        assert_eq!(queue.step(now), Step::Wait);
    }

    #[test]
    fn a_full_outbox_has_no_room_until_some_was_sent() {
        let outbox = Outbox::default();
        outbox.push(audio(20_000));
        assert!(!outbox.has_room());
        let step = outbox.lock().step(Instant::now());
        assert!(matches!(step, Step::Send(_)) && outbox.has_room());
    }

    #[tokio::test]
    async fn a_waiting_writer_is_woken() {
        let outbox = Outbox::default();
        let writer = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.next().await }
        });
        tokio::task::yield_now().await;
        outbox.push(mark());
        assert_eq!(writer.await.unwrap(), Some(mark()));
        outbox.close();
        assert_eq!(outbox.next().await, None);
    }
}
