//! Text-to-speech: sentences in, audio out. One file a vendor.

pub mod cache;
pub mod local;
pub mod normalise;

use bytes::Bytes;
use tokio::sync::mpsc;

/// Requests that may wait for a vendor; the pipeline keeps fewer under way.
pub const INPUT_MAX: usize = 16;
/// Audio packets that may wait for the session: 100 ms each. A vendor waits when it is full.
pub const OUTPUT_MAX: usize = 64;

/// Milliseconds of L16 audio at 16 kHz.
pub const fn audio_ms(octets: usize) -> u64 {
    octets as u64 / 32
}

/// A vendor of text-to-speech.
pub trait TextToSpeech: Send + Sync {
    /// Opens a stream for one agent, at once: what goes wrong comes as [`TtsEvent::Failed`]. The stream ends when
    /// its sender is dropped.
    fn open(&self) -> TtsStream;
}

/// One agent's stream.
#[derive(Debug)]
pub struct TtsStream {
    /// To the vendor.
    pub input: mpsc::Sender<TtsInput>,
    /// From the vendor.
    pub output: mpsc::Receiver<TtsEvent>,
}

/// A sentence of a turn: on every packet, so that late ones can be told and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpeechId {
    /// The agent's turn.
    pub turn: u32,
    /// The sentence in it, from 0.
    pub sentence: u16,
}

/// What a vendor is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TtsInput {
    /// Synthesise; requests are answered in order.
    Speak {
        /// Which sentence.
        id: SpeechId,
        /// Its text.
        text: String,
    },
    /// Nothing asked for so far is wanted any more.
    Cancel,
}

/// What a vendor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TtsEvent {
    /// L16 little-endian at 16 kHz.
    Audio {
        /// Which sentence.
        id: SpeechId,
        /// Whole samples.
        pcm: Bytes,
    },
    /// All audio of the sentence has come.
    Done {
        /// Which sentence.
        id: SpeechId,
    },
    /// The sentence cannot be spoken.
    Failed {
        /// Which sentence.
        id: SpeechId,
        /// For the log.
        message: String,
    },
}
