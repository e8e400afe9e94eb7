//! Speech-to-text: caller audio in, words out. One file a vendor.

pub mod local;

use bytes::Bytes;
use tokio::sync::mpsc;

/// Messages that may wait for a vendor: 5 s of 20 ms frames. A vendor that is further behind loses audio.
pub const INPUT_MAX: usize = 256;
/// Results that may wait for the session: it reads them at once.
pub const OUTPUT_MAX: usize = 64;

/// A vendor of speech-to-text.
pub trait SpeechToText: Send + Sync {
    /// Opens a stream for one caller, at once: what goes wrong comes as [`SttEvent::Failed`]. The stream ends when
    /// its sender is dropped.
    fn open(&self) -> SttStream;
}

/// One caller's stream.
#[derive(Debug)]
pub struct SttStream {
    /// To the vendor.
    pub input: mpsc::Sender<SttInput>,
    /// From the vendor.
    pub output: mpsc::Receiver<SttEvent>,
}

/// What a vendor is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SttInput {
    /// A new utterance; results of the one before are not wanted any more.
    Begin {
        /// Its number.
        utterance: u32,
    },
    /// Caller audio, L16 little-endian at 16 kHz.
    Audio(Bytes),
    /// Perhaps the end of speech: answer with what was said so far. Audio may follow.
    Flush {
        /// The utterance.
        utterance: u32,
        /// Number of this question.
        flush: u32,
    },
}

/// What a vendor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SttEvent {
    /// A guess while speech goes on.
    Partial {
        /// The utterance.
        utterance: u32,
        /// The words so far.
        text: String,
    },
    /// The answer to a flush.
    Final {
        /// The utterance.
        utterance: u32,
        /// Number of the question.
        flush: u32,
        /// The words.
        text: String,
    },
    /// The vendor failed; a later `Begin` tries again.
    Failed {
        /// For the log.
        message: String,
    },
}
