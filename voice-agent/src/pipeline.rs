//! One turn of the agent: language model → sentences → speech, each stage running while the one before still works.
//!
//! ```text
//!   Dialogue ──text──▶ Splitter ──sentence──▶ TextToSpeech ──audio──▶ session
//!      ▲ back-pressure: while SENTENCES_AHEAD sentences wait for their voice, the model is not read
//! ```
//!
//! A turn is cancelled by beginning another or by [`Pipeline::cancel`]. What a vendor still sends for an old turn is
//! dropped here by its number and counted.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::llm::{Dialogue, LlmEvent, Request};
use crate::sentence::Splitter;
use crate::tts::cache::SpeechCache;
use crate::tts::normalise::speakable;
use crate::tts::{SpeechId, TtsEvent, TtsInput, TtsStream};

/// Sentences that may be at the voice at once. More would only be thrown away at an interruption.
const SENTENCES_AHEAD: usize = 3;
/// Sentences of one turn; a model that says more is cut off there.
const SENTENCES_MAX: u16 = 60;

/// What comes out for the turn that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// The model's first words have come.
    FirstText {
        /// The turn.
        turn: u32,
    },
    /// A piece of a sentence's audio.
    Audio {
        /// The turn and sentence.
        id: SpeechId,
        /// L16 little-endian at 16 kHz.
        pcm: Bytes,
        /// The sentence's text, with its first piece.
        text: Option<String>,
    },
    /// Nothing more will come.
    Complete {
        /// The turn.
        turn: u32,
        /// The model wants to hang up after it.
        hang_up: bool,
    },
    /// A vendor failed.
    Failed {
        /// The turn.
        turn: u32,
        /// For the log.
        message: String,
    },
}

/// Where a turn's text comes from.
enum Source {
    Model(mpsc::Receiver<LlmEvent>),
    Ended,
}

/// A sentence between splitter and ear.
struct Sentence {
    id: SpeechId,
    text: String,
    begun: bool,
}

struct Turn {
    number: u32,
    source: Source,
    splitter: Splitter,
    text_came: bool,
    hang_up: bool,
    sentences: u16,
    /// Not given to the voice yet.
    waiting: VecDeque<Sentence>,
    /// At the voice, oldest first.
    voicing: VecDeque<Sentence>,
}

/// One conversation's pipeline.
pub struct Pipeline {
    dialogue: Box<dyn Dialogue>,
    voice: TtsStream,
    cache: SpeechCache,
    turn: Option<Turn>,
    ready: VecDeque<Output>,
    late: u64,
}

impl Pipeline {
    /// A pipeline at rest.
    pub fn new(dialogue: Box<dyn Dialogue>, voice: TtsStream, cache: SpeechCache) -> Self {
        Self { dialogue, voice, cache, turn: None, ready: VecDeque::new(), late: 0 }
    }

    /// Speaks sentences that are known.
    pub fn say(&mut self, number: u32, sentences: Vec<String>) {
        self.begin(number, Source::Ended);
        for sentence in sentences {
            self.enqueue(sentence);
        }
        self.advance();
    }

    /// Lets the model answer.
    pub fn reply(&mut self, number: u32, request: Request) {
        let answer = self.dialogue.respond(request);
        self.begin(number, Source::Model(answer));
    }

    /// Stops a turn, if it is the one under way; gives back its sentences of which no audio came out.
    pub fn cancel(&mut self, number: u32) -> Vec<String> {
        if self.turn.as_ref().is_none_or(|turn| turn.number != number) {
            return Vec::new();
        }
        // Outputs that were not fetched yet count as not come out.
        let unfetched = self.ready.iter().filter_map(|output| match output {
            Output::Audio { text, .. } => text.clone(),
            _ => None,
        });
        let mut silent: Vec<String> = unfetched.collect();
        if let Some(turn) = &self.turn {
            let unbegun = turn.voicing.iter().filter(|sentence| !sentence.begun).chain(&turn.waiting);
            silent.extend(unbegun.map(|sentence| sentence.text.clone()));
        }
        self.stop();
        silent
    }

    /// Packets that came for an old turn and were dropped.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// The next output. Waits forever when no turn is under way; may be dropped and called again at any time.
    pub async fn next(&mut self) -> Output {
        loop {
            if let Some(output) = self.ready.pop_front() {
                return output;
            }
            let Some(turn) = &mut self.turn else {
                // Only late packets can come now.
                match self.voice.output.recv().await {
                    Some(_) => self.late += 1,
                    None => std::future::pending().await,
                }
                continue;
            };
            let room = turn.waiting.is_empty() && turn.voicing.len() < SENTENCES_AHEAD;
            match &mut turn.source {
                Source::Model(answer) if room => tokio::select! {
                    event = answer.recv() => self.model_said(event),
                    event = self.voice.output.recv() => self.voice_said(event),
                },
                _ => {
                    let event = self.voice.output.recv().await;
                    self.voice_said(event);
                }
            }
            self.advance();
        }
    }

    fn begin(&mut self, number: u32, source: Source) {
        self.stop();
        self.turn = Some(Turn {
            number,
            source,
            splitter: Splitter::default(),
            text_came: false,
            hang_up: false,
            sentences: 0,
            waiting: VecDeque::new(),
            voicing: VecDeque::new(),
        });
    }

    fn stop(&mut self) {
        self.ready.clear();
        if let Some(turn) = self.turn.take()
            && !turn.voicing.is_empty()
        {
            // When the vendor's queue is full its late packets are dropped by number all the same.
            let _ = self.voice.input.try_send(TtsInput::Cancel);
        }
    }

    fn model_said(&mut self, event: Option<LlmEvent>) {
        let Some(turn) = &mut self.turn else { return };
        match event {
            Some(LlmEvent::Text(piece)) => {
                if !turn.text_came {
                    turn.text_came = true;
                    self.ready.push_back(Output::FirstText { turn: turn.number });
                }
                for sentence in turn.splitter.push(&piece) {
                    self.enqueue(sentence);
                }
            }
            Some(LlmEvent::HangUp) => turn.hang_up = true,
            Some(LlmEvent::Done) => {
                turn.source = Source::Ended;
                if let Some(sentence) = turn.splitter.finish() {
                    self.enqueue(sentence);
                }
            }
            Some(LlmEvent::Failed { message }) => self.fail(message),
            None => self.fail("the model's stream ended in the middle of an answer".into()),
        }
    }

    fn enqueue(&mut self, text: String) {
        let Some(turn) = &mut self.turn else { return };
        if turn.sentences >= SENTENCES_MAX {
            turn.source = Source::Ended;
            return;
        }
        let id = SpeechId { turn: turn.number, sentence: turn.sentences };
        turn.sentences += 1;
        turn.waiting.push_back(Sentence { id, text, begun: false });
    }

    fn voice_said(&mut self, event: Option<TtsEvent>) {
        let Some(turn) = &mut self.turn else { return };
        let current = turn.voicing.front_mut();
        match event {
            Some(TtsEvent::Audio { id, pcm }) => match current {
                Some(sentence) if sentence.id == id => {
                    let text = (!sentence.begun).then(|| sentence.text.clone());
                    sentence.begun = true;
                    self.ready.push_back(Output::Audio { id, pcm, text });
                }
                _ => self.late += 1,
            },
            Some(TtsEvent::Done { id }) => {
                if current.is_some_and(|sentence| sentence.id == id) {
                    turn.voicing.pop_front();
                }
            }
            Some(TtsEvent::Failed { id, message }) => {
                if id.turn == turn.number {
                    self.fail(message);
                }
            }
            None => self.fail("the voice's stream ended".into()),
        }
    }

    /// Gives waiting sentences to the voice, and ends the turn when there is nothing left.
    fn advance(&mut self) {
        let Some(turn) = &mut self.turn else { return };
        while turn.voicing.len() < SENTENCES_AHEAD {
            let Some(sentence) = turn.waiting.front() else { break };
            if let Some(audio) = self.cache.get(&sentence.text) {
                if !turn.voicing.is_empty() {
                    break; // its turn comes when those before it are done
                }
                let mut text = Some(sentence.text.clone());
                for pcm in audio {
                    self.ready.push_back(Output::Audio { id: sentence.id, pcm, text: text.take() });
                }
                turn.waiting.pop_front();
                continue;
            }
            let speak = TtsInput::Speak { id: sentence.id, text: speakable(&sentence.text) };
            match self.voice.input.try_send(speak) {
                Ok(()) => turn.voicing.extend(turn.waiting.pop_front()),
                // Full: old requests are still being cancelled. The next packet from the voice brings us back.
                Err(mpsc::error::TrySendError::Full(_)) if !turn.voicing.is_empty() => break,
                Err(_) => return self.fail("the voice takes no more".into()),
            }
        }
        if matches!(turn.source, Source::Ended) && turn.waiting.is_empty() && turn.voicing.is_empty() {
            let (number, hang_up) = (turn.number, turn.hang_up);
            self.turn = None;
            self.ready.push_back(Output::Complete { turn: number, hang_up });
        }
    }

    fn fail(&mut self, message: String) {
        if let Some(number) = self.turn.as_ref().map(|turn| turn.number) {
            self.stop();
            self.ready.push_back(Output::Failed { turn: number, message });
        }
    }
}

#[cfg(test)]
mod tests;
