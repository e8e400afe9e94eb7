//! What was said in one conversation: the history for the language model, and the messages for the record.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tandem_api::v1::Message;

use crate::llm::{Role, Said};
use crate::record::Recorder;
use crate::sentence::{Spoken, heard_text, unheard};
use crate::turn::playback::Heard;
use crate::waterfall::Waterfall;

/// Messages kept for the language model; the oldest goes first.
const HISTORY_MAX: usize = 100;
/// Turns kept to be resumed or closed: the one that is open, the one that was cut, and one between.
const TURNS_MAX: usize = 4;

/// One turn of the agent.
#[derive(Debug)]
struct Turn {
    /// When its first audio came.
    started: Option<Instant>,
    spoken: Vec<Spoken>,
    /// Sentences that had no audio when it was cancelled.
    silent: Vec<String>,
    heard_ms: u64,
    waterfall: Waterfall,
}

/// A message of the history.
#[derive(Debug)]
struct Entry {
    /// Of a caller's message: its number, by which it may be replaced.
    message: Option<u32>,
    said: Said,
}

/// The book of one conversation.
#[derive(Debug)]
pub(super) struct Ledger {
    call_id: String,
    recorder: Option<Recorder>,
    /// The same moment on both clocks.
    epoch: (Instant, SystemTime),
    history: Vec<Entry>,
    turns: BTreeMap<u32, Turn>,
    count: u32,
    /// When the last transcript came.
    transcript_at: Option<Instant>,
}

impl Ledger {
    pub(super) fn new(call_id: String, recorder: Option<Recorder>, now: Instant) -> Self {
        Self {
            call_id,
            recorder,
            epoch: (now, SystemTime::now()),
            history: Vec::new(),
            turns: BTreeMap::new(),
            count: 0,
            transcript_at: None,
        }
    }

    pub(super) fn call_id(&self) -> &str {
        &self.call_id
    }

    pub(super) fn turns(&self) -> u32 {
        self.count
    }

    /// What was said before the caller's last words.
    pub(super) fn history(&self) -> Vec<Said> {
        let answered = self.history.last().is_some_and(|entry| entry.said.role == Role::Caller);
        let before = self.history.len() - usize::from(answered);
        self.history[..before].iter().map(|entry| entry.said.clone()).collect()
    }

    pub(super) fn transcript_came(&mut self, now: Instant) {
        self.transcript_at = Some(now);
    }

    pub(super) fn caller_said(&mut self, turn: u32, message: u32, text: String, began: Instant) {
        self.put(Message {
            message_id: format!("caller-{message}"),
            turn,
            role: "caller".into(),
            text: text.clone(),
            started_ms: self.unix_ms(began),
            ..Message::default()
        });
        self.history.retain(|entry| entry.message != Some(message));
        self.push(Entry { message: Some(message), said: Said { role: Role::Caller, text } });
    }

    /// A turn of the agent begins; `speech_ended`: of the caller, whom it answers.
    pub(super) fn begin(&mut self, turn: u32, speech_ended: Option<Instant>, now: Instant) {
        self.count += 1;
        let transcript_at = self.transcript_at.filter(|_| speech_ended.is_some());
        let waterfall = Waterfall {
            speech_ended,
            end_decided: speech_ended.map(|_| now),
            stt_final: transcript_at,
            ..Waterfall::default()
        };
        self.turns.insert(
            turn,
            Turn { started: None, spoken: Vec::new(), silent: Vec::new(), heard_ms: 0, waterfall },
        );
        while self.turns.len() > TURNS_MAX {
            self.turns.pop_first();
        }
    }

    pub(super) fn first_text(&mut self, turn: u32, now: Instant) {
        if let Some(turn) = self.turns.get_mut(&turn) {
            turn.waterfall.first_text.get_or_insert(now);
        }
    }

    /// A piece of audio, with the text of its sentence when it is the first.
    pub(super) fn audio(&mut self, turn: u32, audio_ms: u64, text: Option<String>, now: Instant) {
        let Some(turn) = self.turns.get_mut(&turn) else { return };
        turn.started.get_or_insert(now);
        turn.waterfall.first_audio.get_or_insert(now);
        match (text, turn.spoken.last_mut()) {
            (Some(text), _) => turn.spoken.push(Spoken { text, audio_ms }),
            (None, Some(sentence)) => sentence.audio_ms += audio_ms,
            (None, None) => {}
        }
    }

    pub(super) fn cancelled(&mut self, turn: u32, silent: Vec<String>) {
        if let Some(turn) = self.turns.get_mut(&turn) {
            turn.silent = silent;
        }
    }

    /// A turn is closed: it goes into the history and the record, as far as it was heard.
    pub(super) fn heard(&mut self, heard: Heard, first_sent: Option<Instant>) {
        let Some(turn) = self.turns.get_mut(&heard.turn) else { return };
        turn.heard_ms = heard.heard_ms;
        turn.waterfall.first_sent = first_sent;
        let whole_ms = turn.spoken.iter().map(|sentence| sentence.audio_ms).sum();
        let text = heard_text(&turn.spoken, if heard.interrupted { heard.heard_ms } else { whole_ms });
        if text.is_empty() {
            return;
        }
        let timing = turn.waterfall.timing();
        let started = turn.started.unwrap_or(self.epoch.0);
        tracing::info!(
            call_id = self.call_id,
            turn = heard.turn,
            interrupted = heard.interrupted,
            ?timing,
            "agent spoke"
        );
        self.put(Message {
            message_id: format!("agent-{}", heard.turn),
            turn: heard.turn,
            role: "agent".into(),
            text: text.clone(),
            interrupted: heard.interrupted,
            started_ms: self.unix_ms(started),
            heard_ms: u32::try_from(heard.heard_ms).unwrap_or(u32::MAX),
            timing: Some(timing),
        });
        self.push(Entry { message: None, said: Said { role: Role::Agent, text } });
    }

    /// The sentences of a turn that the caller did not hear to their end.
    pub(super) fn unheard(&self, turn: u32) -> Vec<String> {
        let Some(turn) = self.turns.get(&turn) else { return Vec::new() };
        let mut rest = unheard(&turn.spoken, turn.heard_ms);
        rest.extend(turn.silent.iter().cloned());
        rest
    }

    fn push(&mut self, entry: Entry) {
        if self.history.len() >= HISTORY_MAX {
            self.history.remove(0);
        }
        self.history.push(entry);
    }

    fn put(&self, message: Message) {
        if let Some(recorder) = &self.recorder {
            recorder.put(&self.call_id, message);
        }
    }

    fn unix_ms(&self, moment: Instant) -> i64 {
        let (instant, system) = self.epoch;
        let time = match moment.checked_duration_since(instant) {
            Some(after) => system + after,
            None => system - (instant - moment),
        };
        time.duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| i64::try_from(since.as_millis()).ok())
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        Ledger::new("call".into(), None, Instant::now())
    }

    fn heard(turn: u32, heard_ms: u64, interrupted: bool) -> Heard {
        Heard { turn, heard_ms, interrupted }
    }

    fn texts(ledger: &Ledger) -> Vec<&str> {
        ledger.history.iter().map(|entry| entry.said.text.as_str()).collect()
    }

    #[test]
    fn an_interrupted_turn_is_in_the_history_as_it_was_heard() {
        let (mut ledger, now) = (ledger(), Instant::now());
        ledger.begin(1, None, now);
        ledger.audio(1, 600, Some("Hello there, dear caller.".into()), now);
        ledger.audio(1, 400, None, now);
        ledger.cancelled(1, vec!["Never begun.".into()]);
        ledger.heard(heard(1, 550, true), None);
        assert_eq!(texts(&ledger), ["Hello there,"]);
        assert_eq!(ledger.unheard(1), ["Hello there, dear caller.", "Never begun."]);
    }

    #[test]
    fn words_that_went_on_replace_those_before() {
        let (mut ledger, now) = (ledger(), Instant::now());
        ledger.caller_said(1, 7, "My name is".into(), now);
        ledger.caller_said(2, 7, "My name is Anna".into(), now);
        assert_eq!(texts(&ledger), ["My name is Anna"]);
        assert!(ledger.history().is_empty(), "the words to be answered are not history");
    }

    #[test]
    fn only_a_few_turns_are_kept() {
        let mut ledger = ledger();
        for turn in 1..100 {
            ledger.begin(turn, None, Instant::now());
        }
        assert_eq!((ledger.turns.len(), ledger.turns()), (TURNS_MAX, 99));
    }
}
