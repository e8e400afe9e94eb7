//! What a provider takes as one message of sound, and the cutter that makes nothing else.
//!
//! ```text
//!   sound, however long ──▶ Framer ──▶ Frame, Frame, …   whole messages, from where they lie
//!                             tail ──▶ Frame             at the end of an utterance, padded with silence
//! ```
//!
//! A [`Frame`] can be had from a [`Framer`] only, so a dialect cannot write a message that its provider would choke on.

/// How a provider wants sound cut, in octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRule {
    /// A message in mid-utterance.
    pub message: usize,
    /// The last message of an utterance is padded to a multiple of this; 1 is no padding.
    pub unit: usize,
    /// The octet that is silence.
    pub silence: u8,
}

/// One legal message of sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    octets: &'a [u8],
    padding: usize,
}

impl<'a> Frame<'a> {
    /// As on the wire, padding included.
    pub const fn octets(self) -> &'a [u8] {
        self.octets
    }

    /// Octets at the end that nobody said.
    pub const fn padding(self) -> usize {
        self.padding
    }
}

/// Cuts one call's sound by a [`FrameRule`]. What is no whole message yet waits in a buffer of one message.
#[derive(Debug)]
pub struct Framer {
    rule: FrameRule,
    tail: Vec<u8>,
}

impl Framer {
    /// A cutter with nothing in it; the one allocation is here.
    pub fn new(rule: FrameRule) -> Self {
        let unit = rule.unit.max(1);
        let message = rule.message.max(1).next_multiple_of(unit);
        let rule = FrameRule { message, unit, silence: rule.silence };
        Framer { rule, tail: Vec::with_capacity(message) }
    }

    /// The rule, as it is kept.
    pub const fn rule(&self) -> FrameRule {
        self.rule
    }

    /// Octets that wait for more.
    pub const fn waiting(&self) -> usize {
        self.tail.len()
    }

    /// Takes sound and hands out what has become whole messages, in order.
    pub fn push(&mut self, mut sound: &[u8], mut emit: impl FnMut(Frame<'_>)) {
        while !sound.is_empty() {
            if self.tail.is_empty()
                && let Some((octets, rest)) = sound.split_at_checked(self.rule.message)
            {
                emit(Frame { octets, padding: 0 });
                sound = rest;
                continue;
            }
            let (piece, rest) = sound.split_at(sound.len().min(self.rule.message - self.tail.len()));
            self.tail.extend_from_slice(piece);
            sound = rest;
            if self.tail.len() == self.rule.message {
                emit(Frame { octets: &self.tail, padding: 0 });
                self.tail.clear();
            }
        }
    }

    /// Hands out what waits, padded: the utterance is over.
    pub fn flush(&mut self, emit: impl FnOnce(Frame<'_>)) {
        let said = self.tail.len();
        if said == 0 {
            return;
        }
        self.tail.resize(said.next_multiple_of(self.rule.unit), self.rule.silence);
        emit(Frame { octets: &self.tail, padding: self.tail.len() - said });
        self.tail.clear();
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.tail.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_split_of_sound_yields_legal_frames_and_every_octet_once(
            pieces in proptest::collection::vec(proptest::collection::vec(1u8..255, 0..900), 0..12),
            (message, unit) in prop_oneof![
                Just((160, 1)), Just((160, 160)), Just((640, 640)), Just((960, 960)), Just((3_200, 320)), Just((7, 3)),
            ],
        ) {
            let mut framer = Framer::new(FrameRule { message, unit, silence: 0 });
            let rule = framer.rule();
            let (mut said, mut lens) = (Vec::new(), Vec::new());
            for piece in &pieces {
                framer.push(piece, |frame| {
                    assert_eq!(frame.padding(), 0);
                    lens.push(frame.octets().len());
                    said.extend_from_slice(frame.octets());
                });
                prop_assert!(framer.waiting() < rule.message);
            }
            prop_assert!(lens.iter().all(|len| *len == rule.message));
            framer.flush(|frame| {
                let (spoken, padding) = frame.octets().split_at(frame.octets().len() - frame.padding());
                assert!(padding.len() < rule.unit && padding.iter().all(|octet| *octet == 0));
                assert!(frame.octets().len() % rule.unit == 0 && frame.octets().len() <= rule.message);
                said.extend_from_slice(spoken);
            });
            prop_assert_eq!(framer.waiting(), 0);
            prop_assert_eq!(said, pieces.concat());
        }
    }
}
