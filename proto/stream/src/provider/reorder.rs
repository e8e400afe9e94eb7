//! Sound that may arrive out of order (Telnyx promises none), sorted by chunk number.
//!
//! What comes early is held, [`HELD_MAX`] messages at most; when they are that many, what is missing is given up. A stream in order
//! passes without being held or copied.

/// Most messages that are held: 80 ms of frames of 20 ms, as long as a listener may be kept waiting for one that is lost.
pub(super) const HELD_MAX: usize = 4;
/// A number this far below the next is no late message: the provider has begun to count anew.
const RESTART: u64 = 1_000;

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// It is the next.
    Now,
    /// One before it is missing: hold it.
    Early,
    /// It was given up, or has been heard.
    Late,
}

/// A message held.
#[derive(Debug, Default)]
pub(super) struct Held {
    chunk: u64,
    pub(super) timestamp_ms: Option<u64>,
    pub(super) sound: Vec<u8>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reorder {
    next: Option<u64>,
    held: Vec<Held>,
    /// Buffers to be used again.
    spare: Vec<Held>,
}

impl Reorder {
    /// Looks at the number of a message; after [`Order::Now`] the next one is awaited.
    pub(super) fn accept(&mut self, chunk: u64) -> Order {
        // Chunks count from 1, so a first one slightly above has overtaken its elders.
        let next = self.next.unwrap_or(if chunk <= HELD_MAX as u64 { chunk.min(1) } else { chunk });
        self.next = Some(next);
        if chunk == next || chunk.saturating_add(RESTART) < next {
            self.next = Some(chunk.saturating_add(1));
            Order::Now
        } else if chunk < next || self.held.iter().any(|held| held.chunk == chunk) {
            Order::Late
        } else {
            Order::Early
        }
    }

    /// Holds a message that [`Reorder::accept`] has called early; `write` appends its sound.
    pub(super) fn hold(&mut self, chunk: u64, timestamp_ms: Option<u64>, write: impl FnOnce(&mut Vec<u8>)) {
        let mut held = self.spare.pop().unwrap_or_default();
        (held.chunk, held.timestamp_ms) = (chunk, timestamp_ms);
        held.sound.clear();
        write(&mut held.sound);
        self.held.push(held);
        if self.held.len() >= HELD_MAX {
            self.give_up();
        }
    }

    /// What is missing before the first message held will not be waited for.
    pub(super) fn give_up(&mut self) {
        self.next = self.held.iter().map(|held| held.chunk).min().or(self.next);
    }

    /// The message held whose turn it is; [`Reorder::recycle`] takes it back.
    pub(super) fn poll(&mut self) -> Option<Held> {
        let next = self.next?;
        let at = self.held.iter().position(|held| held.chunk == next)?;
        self.next = Some(next.saturating_add(1));
        Some(self.held.swap_remove(at))
    }

    pub(super) fn recycle(&mut self, held: Held) {
        self.spare.push(held);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn heard(chunks: &[u64]) -> Vec<u64> {
        let (mut reorder, mut heard) = (Reorder::default(), Vec::new());
        for &chunk in chunks {
            match reorder.accept(chunk) {
                Order::Now => heard.push(chunk),
                Order::Early => reorder.hold(chunk, None, |_| {}),
                Order::Late => {}
            }
            while let Some(held) = reorder.poll() {
                heard.push(held.chunk);
                reorder.recycle(held);
            }
        }
        heard
    }

    #[test]
    fn sound_is_heard_in_order() {
        assert_eq!(heard(&[1, 2, 3]), [1, 2, 3]);
        assert_eq!(heard(&[2, 1, 4, 3, 5]), [1, 2, 3, 4, 5]);
        assert_eq!(heard(&[1, 3, 3, 2, 2]), [1, 2, 3], "each once");
        assert_eq!(heard(&[1, 3, 4, 5, 6, 2, 7]), [1, 3, 4, 5, 6, 7], "2 was given up");
        assert_eq!(heard(&[4_000, 4_001, 1, 2]), [4_000, 4_001, 1, 2], "counted anew");
        assert_eq!(heard(&[0, 1, u64::MAX, u64::MAX]), [0, 1]);
    }

    proptest! {
        #[test]
        fn never_is_more_held_than_it_may(chunks in proptest::collection::vec(0u64..40, 0..100)) {
            let mut reorder = Reorder::default();
            for chunk in chunks {
                if reorder.accept(chunk) == Order::Early {
                    reorder.hold(chunk, None, |_| {});
                }
                while let Some(held) = reorder.poll() {
                    reorder.recycle(held);
                }
                prop_assert!(reorder.held.len() < HELD_MAX && reorder.spare.len() <= HELD_MAX);
            }
        }
    }
}
