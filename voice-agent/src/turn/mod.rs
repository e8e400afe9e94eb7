//! Who has the floor? One conversation's turn-taking, sans-IO: events and `now` in, [`Action`]s and deadlines out.
//!
//! ```text
//!              answered                 first audio                    mark
//!   Waiting ───────────▶ Thinking ─────────────────▶ Agent ────────────────────▶ Listening ──idle──▶ Thinking
//!                           ▲  ▲                       │ speech: clear, cancel       │ speech
//!              silence and  │  └──── nothing to do ─── │ ◀──────────────────────┐    ▼
//!              a transcript └───────────────────────── Caller ◀──────────────────────┘
//!                                                        a goodbye that was sent whole: Agent ▶ Leaving ▶ Over
//! ```
//!
//! Every turn of the agent has a number; what comes late for an old number is ignored here and dropped in the pipeline.
//! Speech-to-text is asked for its result at the first silence, before it is known whether that was the end: when the
//! silence has lasted long enough the text is already there.
//!
//! The shell ([`crate::session`]) must drain [`TurnTaking::poll_action`] after every call.

pub mod endpoint;
pub mod playback;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::Behaviour;
use playback::{Heard, Playback};

/// Speech-to-text owes its result this soon after the end of speech; later the agent apologises.
const FINAL_WAIT: Duration = Duration::from_secs(6);
/// The answer's first audio must come this soon; later the agent apologises.
const ANSWER_WAIT: Duration = Duration::from_secs(15);
/// After the maximum session the closing line may take this long; then the call is cut.
const CLOSING_GRACE: Duration = Duration::from_secs(20);
/// After `hangup` the engine closes the stream; when it has not for this long, we do.
const HANGUP_WAIT: Duration = Duration::from_secs(10);
/// Speech at least this long without a recognised word is asked about; shorter is taken for noise.
const UNCLEAR_SPEECH: Duration = Duration::from_millis(1_200);
/// Turns that may fail in a row before the agent gives up and hangs up.
const FAILURES_MAX: u32 = 3;

/// A line that the agent says by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Line {
    /// At the start.
    Greeting,
    /// Nobody has said anything for a while.
    Idle,
    /// Still nobody: the last words.
    IdleGoodbye,
    /// Time is up: the last words.
    MaxSession,
    /// A vendor failed.
    Error,
}

/// What the shell must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A new utterance for speech-to-text, with the audio kept from before its onset.
    Listen {
        /// Its number.
        utterance: u32,
    },
    /// Ask speech-to-text what was said so far.
    Flush {
        /// The utterance.
        utterance: u32,
        /// Number of this question.
        flush: u32,
    },
    /// The caller's words, to be written down. The same `message` again replaces the text.
    CallerSaid {
        /// The agent's turn that will answer it.
        turn: u32,
        /// Number of the message.
        message: u32,
        /// The words.
        text: String,
        /// When speech began.
        began: Instant,
    },
    /// Speak a line.
    Say {
        /// The agent's turn.
        turn: u32,
        /// Which.
        line: Line,
    },
    /// Let the language model answer.
    Reply {
        /// The agent's turn.
        turn: u32,
        /// What the caller said.
        text: String,
        /// The caller went on speaking: this replaces the request before.
        replaces: bool,
        /// When the caller's speech ended.
        speech_ended: Instant,
    },
    /// Speak again what the caller did not hear of an interrupted turn.
    Resume {
        /// The new turn.
        turn: u32,
        /// The interrupted one.
        interrupted: u32,
    },
    /// Stop working on a turn.
    Cancel {
        /// The agent's turn.
        turn: u32,
    },
    /// Empty the engine's playout queue.
    Clear,
    /// A turn of the agent is over: write it down as far as it was heard.
    AgentHeard(Heard),
    /// End the call when everything said has been heard, or at once.
    HangUp {
        /// Wait for the playout queue.
        drain: bool,
    },
    /// Close the stream.
    Close,
}

/// Who speaks.
#[derive(Debug)]
enum Floor {
    /// Not answered yet.
    Waiting,
    /// Nobody.
    Listening,
    /// The caller, or just finished.
    Caller(Speech),
    /// The agent is about to: no audio yet.
    Thinking { turn: u32, since: Instant, last: bool, asked: Option<Asked> },
    /// The agent.
    Agent { turn: u32, last: bool },
    /// Nobody any more: the hang-up is on its way.
    Leaving { until: Instant },
    /// The stream is closed or closing.
    Over,
}

/// The caller's speech.
#[derive(Debug)]
struct Speech {
    utterance: u32,
    began: Instant,
    /// Since when there is silence.
    ended: Option<Instant>,
    /// The question that is open, or answered.
    flush: u32,
    /// The answer to it.
    text: Option<String>,
    /// The turn of the agent that it interrupted.
    interrupted: Option<u32>,
    /// Words of before, when the caller went on after we thought it was the end.
    carried: Option<Asked>,
}

/// What the caller said, as far as it went to the language model.
#[derive(Debug, Clone)]
struct Asked {
    text: String,
    message: u32,
    began: Instant,
}

/// One conversation.
#[derive(Debug)]
pub struct TurnTaking {
    idle_timeout: Duration,
    idle_prompts_max: u32,
    max_session: Duration,
    floor: Floor,
    playback: Playback,
    actions: VecDeque<Action>,
    turns: u32,
    utterances: u32,
    flushes: u32,
    /// From when idle time counts: the end of heard speech, of either side.
    idle_from: Option<Instant>,
    idle_prompts: u32,
    session_ends: Option<Instant>,
    closing: bool,
    held_since: Option<Instant>,
    failures: u32,
    /// The turn that says sorry: to hear it is no success.
    apology: Option<u32>,
}

impl TurnTaking {
    /// A conversation that has not begun.
    pub fn new(behaviour: &Behaviour) -> Self {
        Self {
            idle_timeout: behaviour.idle_timeout,
            idle_prompts_max: behaviour.idle_prompts,
            max_session: behaviour.max_session,
            floor: Floor::Waiting,
            playback: Playback::default(),
            actions: VecDeque::new(),
            turns: 0,
            utterances: 0,
            flushes: 0,
            idle_from: None,
            idle_prompts: 0,
            session_ends: None,
            closing: false,
            held_since: None,
            failures: 0,
            apology: None,
        }
    }

    /// Is speech-to-text to be fed?
    pub fn is_hearing(&self) -> bool {
        matches!(self.floor, Floor::Caller(_))
    }

    /// Is the agent's audio out? Then an echo of it may be in the caller's.
    pub fn is_agent_speaking(&self) -> bool {
        self.playback.playing().is_some()
    }

    /// Is the stream to be closed?
    pub fn is_over(&self) -> bool {
        matches!(self.floor, Floor::Over)
    }

    // --- from the engine ---

    /// The call is answered.
    pub fn handle_start(&mut self, now: Instant) {
        if matches!(self.floor, Floor::Waiting) {
            self.session_ends = Some(now + self.max_session);
            self.say(Line::Greeting, now);
        }
    }

    /// The engine played past a turn's end mark.
    pub fn handle_mark(&mut self, turn: u32, heard_ms: u64, now: Instant) {
        let heard = self.playback.marked(turn, heard_ms);
        self.heard(heard, now);
    }

    /// The engine emptied its queue.
    pub fn handle_cleared(&mut self, heard_ms: u64, now: Instant) {
        let heard = self.playback.cleared(heard_ms);
        self.heard(heard, now);
    }

    /// The caller put us on hold: nothing is played and nobody is expected to speak.
    pub fn handle_hold(&mut self, now: Instant) {
        self.held_since.get_or_insert(now);
    }

    /// The hold is over.
    pub fn handle_resume(&mut self, now: Instant) {
        if let Some(since) = self.held_since.take() {
            self.playback.held_for(now - since);
            self.idle_from = Some(now);
            if let Floor::Thinking { since, .. } = &mut self.floor {
                *since = now;
            }
        }
    }

    /// The call is over.
    pub fn handle_stop(&mut self, now: Instant) {
        if let Some(heard) = self.playback.estimate(now) {
            self.actions.push_back(Action::AgentHeard(heard));
        }
        self.cancel_turn();
        self.floor = Floor::Over;
    }

    // --- from voice activity detection and speech-to-text ---

    /// The caller began to speak.
    pub fn handle_speech_began(&mut self, began: Instant, now: Instant) {
        match &mut self.floor {
            Floor::Listening => self.listen(began, None, None),
            Floor::Caller(speech) => speech.ended = None,
            Floor::Thinking { turn, last: false, asked, .. } => {
                let (turn, carried) = (*turn, asked.take());
                self.actions.push_back(Action::Cancel { turn });
                self.listen(began, None, carried);
            }
            Floor::Agent { turn, last: false } => {
                let turn = *turn;
                self.playback.cut(now);
                self.actions.push_back(Action::Clear);
                self.actions.push_back(Action::Cancel { turn });
                self.listen(began, Some(turn), None);
            }
            // Last words are not interrupted: "goodbye" is answered by "goodbye".
            Floor::Thinking { .. } | Floor::Agent { .. } => {}
            Floor::Waiting | Floor::Leaving { .. } | Floor::Over => {}
        }
    }

    /// The caller fell silent at `ended`.
    pub fn handle_speech_ended(&mut self, ended: Instant, now: Instant) {
        if let Floor::Caller(speech) = &mut self.floor {
            self.flushes += 1;
            speech.ended = Some(ended);
            speech.flush = self.flushes;
            speech.text = None;
            self.actions.push_back(Action::Flush { utterance: speech.utterance, flush: speech.flush });
            self.decide(now);
        }
    }

    /// Speech-to-text answered a flush.
    pub fn handle_transcript(&mut self, utterance: u32, flush: u32, text: &str, now: Instant) {
        if let Floor::Caller(speech) = &mut self.floor
            && (speech.utterance, speech.flush) == (utterance, flush)
            && speech.ended.is_some()
        {
            speech.text = Some(text.trim().to_owned());
            self.decide(now);
        }
    }

    /// Speech-to-text failed.
    pub fn handle_listening_failed(&mut self, now: Instant) {
        if matches!(self.floor, Floor::Caller(_)) {
            self.fail(now);
        }
    }

    // --- from the pipeline ---

    /// Audio of a turn was handed to the outbox.
    pub fn handle_audio_sent(&mut self, turn: u32, audio_ms: u64, now: Instant) {
        match &self.floor {
            Floor::Thinking { turn: current, last, .. } if *current == turn => {
                self.floor = Floor::Agent { turn, last: *last };
            }
            Floor::Agent { turn: current, .. } if *current == turn => {}
            _ => return,
        }
        if let Some(heard) = self.playback.sent(turn, audio_ms, now) {
            self.actions.push_back(Action::AgentHeard(heard));
        }
    }

    /// The pipeline has no more for this turn. `hang_up`: those were the last words.
    pub fn handle_turn_complete(&mut self, turn: u32, hang_up: bool, now: Instant) {
        let (last, spoken) = match &self.floor {
            Floor::Thinking { turn: current, last, .. } if *current == turn => (*last, false),
            Floor::Agent { turn: current, last } if *current == turn => (*last, true),
            _ => return,
        };
        self.playback.complete(turn);
        if last || hang_up {
            self.actions.push_back(Action::HangUp { drain: true });
            // The engine plays what it has first, and says nothing until then.
            let played = self.playback.deadline().unwrap_or(now);
            self.floor = Floor::Leaving { until: played.max(now) + HANGUP_WAIT };
        } else if !spoken {
            self.rest(now);
        }
    }

    /// The turn's model or voice failed.
    pub fn handle_turn_failed(&mut self, turn: u32, now: Instant) {
        match &self.floor {
            Floor::Thinking { turn: current, .. } | Floor::Agent { turn: current, .. }
                if *current == turn =>
            {
                self.fail(now);
            }
            _ => {}
        }
    }

    // --- the clock ---

    /// A deadline of [`Self::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.playback.deadline().is_some_and(|at| at <= now) && self.held_since.is_none() {
            let heard = self.playback.estimate(now);
            self.heard(heard, now);
        }
        if self.session_ends.is_some_and(|at| at <= now) {
            self.time_is_up(now);
        }
        match &self.floor {
            Floor::Caller(_) => self.decide(now),
            Floor::Listening if self.idle_at().is_some_and(|at| at <= now) => self.idle(now),
            Floor::Thinking { since, .. } if *since + ANSWER_WAIT <= now => self.fail(now),
            Floor::Leaving { until } if *until <= now => self.close(now),
            _ => {}
        }
    }

    /// When [`Self::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let floor = match &self.floor {
            Floor::Caller(speech) => speech.ended.map(|ended| match self.silence_needed(speech) {
                Some(silence) => ended + silence,
                None => ended + FINAL_WAIT,
            }),
            Floor::Listening => self.idle_at(),
            Floor::Thinking { since, .. } => Some(*since + ANSWER_WAIT),
            Floor::Leaving { until } => Some(*until),
            Floor::Waiting | Floor::Agent { .. } => None,
            Floor::Over => return None,
        };
        let playback = self.playback.deadline().filter(|_| self.held_since.is_none());
        [floor, playback, self.session_ends].into_iter().flatten().min()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    // --- inside ---

    fn idle_at(&self) -> Option<Instant> {
        if self.held_since.is_some() {
            return None;
        }
        // While the agent can still be heard nobody is idle.
        self.idle_from.filter(|_| self.playback.playing().is_none()).map(|from| from + self.idle_timeout)
    }

    fn next_turn(&mut self) -> u32 {
        self.turns += 1;
        self.turns
    }

    fn listen(&mut self, began: Instant, interrupted: Option<u32>, carried: Option<Asked>) {
        self.utterances += 1;
        let utterance = self.utterances;
        self.actions.push_back(Action::Listen { utterance });
        self.floor = Floor::Caller(Speech {
            utterance,
            began,
            ended: None,
            flush: 0,
            text: None,
            interrupted,
            carried,
        });
    }

    fn silence_needed(&self, speech: &Speech) -> Option<Duration> {
        speech.text.as_deref().map(endpoint::silence_after)
    }

    /// Is the caller's turn over, and what follows?
    fn decide(&mut self, now: Instant) {
        let Floor::Caller(speech) = &self.floor else { return };
        let Some(ended) = speech.ended else { return };
        let Some(silence) = self.silence_needed(speech) else {
            if ended + FINAL_WAIT <= now {
                self.fail(now);
            }
            return;
        };
        if now < ended + silence {
            return;
        }
        let Floor::Caller(speech) = std::mem::replace(&mut self.floor, Floor::Listening) else { return };
        self.caller_finished(speech, ended, now);
    }

    fn caller_finished(&mut self, speech: Speech, ended: Instant, now: Instant) {
        let text = speech.text.unwrap_or_default();
        let no_words = !endpoint::has_words(&text);
        if let Some(interrupted) = speech.interrupted
            && (no_words || endpoint::is_back_channel(&text))
        {
            let turn = self.next_turn();
            self.actions.push_back(Action::Resume { turn, interrupted });
            self.floor = Floor::Thinking { turn, since: now, last: false, asked: None };
            return;
        }
        let replaces = speech.carried.is_some();
        if no_words && !replaces && ended.saturating_duration_since(speech.began) < UNCLEAR_SPEECH {
            // Noise: nobody has the floor, and the idle clock goes on where it was.
            return;
        }
        self.idle_prompts = 0;
        let turn = self.next_turn();
        let asked = match speech.carried {
            Some(before) => Asked { text: format!("{} {text}", before.text).trim().to_owned(), ..before },
            None => Asked { text, message: speech.utterance, began: speech.began },
        };
        if endpoint::has_words(&asked.text) {
            self.actions.push_back(Action::CallerSaid {
                turn,
                message: asked.message,
                text: asked.text.clone(),
                began: asked.began,
            });
        }
        self.actions.push_back(Action::Reply {
            turn,
            text: asked.text.clone(),
            replaces,
            speech_ended: ended,
        });
        self.floor = Floor::Thinking { turn, since: now, last: false, asked: Some(asked) };
    }

    /// A turn was heard, whole or in part.
    fn heard(&mut self, heard: Option<Heard>, now: Instant) {
        let Some(heard) = heard else { return };
        self.actions.push_back(Action::AgentHeard(heard));
        self.idle_from = Some(now);
        if !heard.interrupted && self.apology != Some(heard.turn) {
            self.failures = 0;
        }
        if let Floor::Agent { turn, .. } = &self.floor
            && *turn == heard.turn
        {
            self.rest(now);
        }
    }

    /// Nobody has the floor.
    fn rest(&mut self, now: Instant) {
        self.idle_from = Some(now);
        self.floor = Floor::Listening;
    }

    fn say(&mut self, line: Line, now: Instant) {
        let turn = self.next_turn();
        let last = matches!(line, Line::IdleGoodbye | Line::MaxSession);
        self.actions.push_back(Action::Say { turn, line });
        self.floor = Floor::Thinking { turn, since: now, last, asked: None };
    }

    fn idle(&mut self, now: Instant) {
        if self.idle_prompts < self.idle_prompts_max {
            self.idle_prompts += 1;
            self.say(Line::Idle, now);
        } else {
            self.say(Line::IdleGoodbye, now);
        }
    }

    /// Stops the turn that is under way; what the caller has not heard of it is dropped.
    fn cancel_turn(&mut self) {
        if let Floor::Thinking { turn, .. } | Floor::Agent { turn, .. } = self.floor {
            self.actions.push_back(Action::Cancel { turn });
        }
    }

    fn cut_playback(&mut self, now: Instant) {
        if self.playback.playing().is_some() {
            self.playback.cut(now);
            self.actions.push_back(Action::Clear);
        }
    }

    fn fail(&mut self, now: Instant) {
        self.failures += 1;
        self.cancel_turn();
        let last = matches!(self.floor, Floor::Thinking { last: true, .. } | Floor::Agent { last: true, .. });
        if last || self.failures >= FAILURES_MAX {
            self.actions.push_back(Action::HangUp { drain: false });
            self.floor = Floor::Leaving { until: now + HANGUP_WAIT };
        } else {
            self.cut_playback(now);
            self.say(Line::Error, now);
            self.apology = Some(self.turns);
        }
    }

    fn time_is_up(&mut self, now: Instant) {
        if self.closing {
            // The closing line took too long itself.
            self.session_ends = None;
            self.cancel_turn();
            if !matches!(self.floor, Floor::Leaving { .. } | Floor::Over) {
                self.actions.push_back(Action::HangUp { drain: false });
                self.floor = Floor::Leaving { until: now + HANGUP_WAIT };
            }
            return;
        }
        self.closing = true;
        self.session_ends = Some(now + CLOSING_GRACE);
        match self.floor {
            Floor::Leaving { .. } | Floor::Over => {}
            Floor::Thinking { last: true, .. } | Floor::Agent { last: true, .. } => {}
            _ => {
                self.cancel_turn();
                self.cut_playback(now);
                self.say(Line::MaxSession, now);
            }
        }
    }

    fn close(&mut self, now: Instant) {
        if let Some(heard) = self.playback.estimate(now) {
            self.actions.push_back(Action::AgentHeard(heard));
        }
        self.actions.push_back(Action::Close);
        self.floor = Floor::Over;
    }
}

#[cfg(test)]
mod tests;
