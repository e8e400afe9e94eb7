//! Sentences that are known beforehand (greeting, idle prompt, error message), synthesised at start.
//!
//! They begin without delay, and the apology can be spoken even when the vendor has just failed.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;

use super::{SpeechId, TextToSpeech, TtsEvent, TtsInput};

/// Sentences kept: what an agent says by itself is a handful.
const SENTENCES_MAX: usize = 64;
/// A sentence that takes longer to synthesise than this is not kept.
const WARM_TIMEOUT: Duration = Duration::from_secs(30);

/// Shared by all conversations.
#[derive(Debug, Clone, Default)]
pub struct SpeechCache {
    sentences: Arc<RwLock<HashMap<String, Vec<Bytes>>>>,
}

impl SpeechCache {
    /// The audio of a sentence, if it is kept.
    pub fn get(&self, sentence: &str) -> Option<Vec<Bytes>> {
        // A writer that panicked cannot have left a half-made entry: insert is one call.
        let sentences = self.sentences.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        sentences.get(sentence).cloned()
    }

    /// Synthesises what is missing; returns how many sentences could not be.
    pub async fn warm(&self, voice: &dyn TextToSpeech, wanted: &[String]) -> usize {
        let mut failed = 0;
        let mut stream = voice.open();
        for (sentence, text) in (0u16..).zip(wanted.iter().take(SENTENCES_MAX)) {
            if self.get(text).is_some() {
                continue;
            }
            let id = SpeechId { turn: 0, sentence };
            let speak = TtsInput::Speak { id, text: super::normalise::speakable(text) };
            if stream.input.send(speak).await.is_err() {
                return failed + 1;
            }
            match tokio::time::timeout(WARM_TIMEOUT, collect(&mut stream, id)).await {
                Ok(Some(audio)) => self.insert(text.clone(), audio),
                Ok(None) | Err(_) => failed += 1,
            }
        }
        failed
    }

    fn insert(&self, text: String, audio: Vec<Bytes>) {
        let mut sentences = self.sentences.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if sentences.len() < SENTENCES_MAX {
            sentences.insert(text, audio);
        }
    }
}

async fn collect(stream: &mut super::TtsStream, wanted: SpeechId) -> Option<Vec<Bytes>> {
    let mut audio = Vec::new();
    loop {
        match stream.output.recv().await? {
            TtsEvent::Audio { id, pcm } if id == wanted => audio.push(pcm),
            TtsEvent::Done { id } if id == wanted => return Some(audio),
            TtsEvent::Failed { id, .. } if id == wanted => return None,
            _ => {}
        }
    }
}
