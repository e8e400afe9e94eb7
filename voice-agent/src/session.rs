//! One conversation: the shell that moves audio and events between the engine, [`TurnTaking`] and the vendors.
//!
//! ```text
//!   engine ══════▶ caller audio ──▶ Vad ──began, ended──▶ TurnTaking ──Listen, Flush──▶ speech-to-text
//!          ══════▶ mark, cleared, hold ──────────────────▶    │  ▲ ◀──transcript──────────────┘
//!          ◀═════ Outbox ◀──audio── Pipeline ◀──Say, Reply────┘  └──complete, failed── Pipeline
//! ```
//!
//! It speaks the `pcm` agent protocol over whatever [`crate::transport`] it was reached by. It decides nothing: who has the floor
//! is `TurnTaking`'s matter, what is said the pipeline's.

mod ledger;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tandem_stream::agent::{FromAgent, HangupAfter, Start, ToAgent, read_audio};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::watch;

use crate::agent::Agent;
use crate::llm::Request;
use crate::outbox::{Frame, Outbox};
use crate::pipeline::{Output, Pipeline};
use crate::stt::{SttEvent, SttInput, SttStream};
use crate::transport::{Ear, Incoming, Mouth};
use crate::tts::audio_ms;
use crate::turn::{Action, TurnTaking};
use crate::vad::{Vad, VadEvent};
use ledger::Ledger;

/// The `start` event must come this soon.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Audio kept from before speech was noticed: the detector needs about 100 ms, over the agent 200, and words begin
/// softly.
const PREROLL: Duration = Duration::from_millis(500);
/// Frames of it: a ptime is 10 ms at least.
const PREROLL_FRAMES_MAX: usize = 50;
/// When caller audio stops while somebody speaks (silence suppression, hold), silence is put in its place.
const GAP: Duration = Duration::from_millis(100);
/// The goodbye of the connection itself.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Holds the conversation until the call is over, the stream breaks, or `stop` becomes true.
pub async fn run(mut ear: Ear, mouth: Mouth, agent: &Agent, mut stop: watch::Receiver<bool>) {
    let Ok(Some(start)) = tokio::time::timeout(START_TIMEOUT, first_event(&mut ear)).await else {
        tracing::warn!("an engine connected and did not start a conversation");
        return;
    };
    let call_id = start.call_id.clone();
    tracing::info!(call_id, "conversation begins");
    let outbox = Outbox::default();
    let mut writer = tokio::spawn(mouth.speak(outbox.clone()));
    let mut session = Session::new(agent, &start, outbox);
    session.turns.handle_start(Instant::now());
    session.act();
    while !session.turns.is_over() {
        let deadline = session.deadline();
        tokio::select! {
            incoming = ear.next() => match incoming {
                Some(incoming) => session.handle_incoming(incoming, Instant::now()),
                None => session.turns.handle_stop(Instant::now()),
            },
            event = session.stt.output.recv() => session.handle_stt(event, Instant::now()),
            output = session.pipeline.next(), if session.outbox.has_room() => {
                session.handle_output(output, Instant::now());
            }
            () = session.outbox.room(), if !session.outbox.has_room() => {}
            () = sleep_until(deadline) => session.handle_timeout(Instant::now()),
            _ = stop.wait_for(|stop| *stop) => {
                session.outbox.clear();
                session.outbox.push(Frame::Event(FromAgent::Hangup { after: HangupAfter::Now }));
                session.turns.handle_stop(Instant::now());
            }
            // The connection broke while sending.
            _ = &mut writer => session.turns.handle_stop(Instant::now()),
        }
        session.act();
    }
    session.report();
    // The last events may still be on their way out. What comes in is read and dropped: to close a connection with
    // unread octets would reset it, and the engine would lose those events.
    session.outbox.close();
    let is_on_link = matches!(ear, Ear::Link(_));
    let goodbye = async {
        match is_on_link {
            false => while ear.next().await.is_some() {},
            // The connection stays, so nobody answers: all that is to be said is with the link then.
            true if !writer.is_finished() => drop((&mut writer).await),
            true => {}
        }
    };
    // An engine that does not close within this time is left.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await;
    writer.abort();
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn first_event(ear: &mut Ear) -> Option<Start> {
    loop {
        match ear.next().await? {
            Incoming::Event(ToAgent::Start(start)) => return Some(start),
            Incoming::Malformed => {
                tracing::warn!("the first event is not readable");
                return None;
            }
            Incoming::Audio(_) | Incoming::Event(_) => {}
        }
    }
}

struct Session<'a> {
    agent: &'a Agent,
    turns: TurnTaking,
    vad: Vad,
    stt: SttStream,
    pipeline: Pipeline,
    outbox: Outbox,
    ledger: Ledger,
    preroll: VecDeque<Bytes>,
    preroll_ms: u64,
    /// When caller audio came last, or silence was put in its place.
    audio_at: Instant,
    frames_malformed: u64,
    frames_lost: u64,
}

impl<'a> Session<'a> {
    fn new(agent: &'a Agent, start: &Start, outbox: Outbox) -> Self {
        let vendors = &agent.vendors;
        let now = Instant::now();
        Self {
            agent,
            turns: TurnTaking::new(&agent.behaviour),
            vad: Vad::default(),
            stt: vendors.stt.open(),
            pipeline: Pipeline::new(vendors.llm.open(), vendors.tts.open(), agent.cache.clone()),
            outbox,
            ledger: Ledger::new(start.call_id.clone(), agent.recorder.clone(), now),
            preroll: VecDeque::new(),
            preroll_ms: 0,
            audio_at: now,
            frames_malformed: 0,
            frames_lost: 0,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let gap = self.vad.is_speaking().then_some(self.audio_at + GAP);
        [self.turns.poll_timeout(), gap].into_iter().flatten().min()
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.vad.is_speaking() && self.audio_at + GAP <= now {
            let silent_ms = (now - self.audio_at).as_millis().min(1_000) as usize;
            self.audio_at = now;
            self.handle_voice(&vec![0; silent_ms * 16], now);
        }
        self.turns.handle_timeout(now);
    }

    // --- from the engine ---

    fn handle_incoming(&mut self, incoming: Incoming, now: Instant) {
        match incoming {
            Incoming::Audio(audio) => self.handle_audio(audio, now),
            Incoming::Event(event) => self.handle_event(event, now),
            Incoming::Malformed => self.frames_malformed += 1,
        }
    }

    fn handle_event(&mut self, event: ToAgent, now: Instant) {
        match event {
            ToAgent::Mark { name, heard_ms } => match name.parse() {
                Ok(turn) => self.turns.handle_mark(turn, heard_ms, now),
                Err(_) => self.frames_malformed += 1,
            },
            ToAgent::Cleared { heard_ms } => self.turns.handle_cleared(heard_ms, now),
            ToAgent::Hold => self.turns.handle_hold(now),
            ToAgent::Resume => self.turns.handle_resume(now),
            ToAgent::Stop { reason } => {
                tracing::info!(call_id = self.ledger.call_id(), reason, "the engine ends the conversation");
                self.turns.handle_stop(now);
            }
            // Keys mean nothing to this agent, and it listens with its own detector.
            ToAgent::Start(_) | ToAgent::Dtmf { .. } | ToAgent::Speech { .. } => {}
            // What it says before the answer waits in the engine; it transfers nobody.
            ToAgent::Answered | ToAgent::Transfer { .. } | ToAgent::Paused { .. } | ToAgent::Gap { .. } => {}
        }
    }

    fn handle_audio(&mut self, audio: Bytes, now: Instant) {
        let Ok(samples) = read_audio(&audio) else {
            self.frames_malformed += 1;
            return;
        };
        self.audio_at = now;
        let samples: Vec<i16> = samples.collect();
        // First into the pre-roll or on to the recogniser, then judged: the frame that begins speech is in the pre-roll.
        if self.turns.is_hearing() {
            self.hear(SttInput::Audio(audio), now);
        } else {
            self.keep(audio);
        }
        self.handle_voice(&samples, now);
    }

    fn keep(&mut self, audio: Bytes) {
        self.preroll_ms += audio_ms(audio.len());
        self.preroll.push_back(audio);
        while self.preroll.len() > PREROLL_FRAMES_MAX || u128::from(self.preroll_ms) > PREROLL.as_millis() {
            let Some(oldest) = self.preroll.pop_front() else { break };
            self.preroll_ms -= audio_ms(oldest.len());
        }
    }

    fn handle_voice(&mut self, samples: &[i16], now: Instant) {
        match self.vad.handle_audio(samples.iter().copied(), self.turns.is_agent_speaking(), now) {
            Some(VadEvent::Began { began }) => self.turns.handle_speech_began(began, now),
            Some(VadEvent::Ended { ended }) => self.turns.handle_speech_ended(ended, now),
            None => {}
        }
        self.act();
    }

    // --- to and from the vendors ---

    fn hear(&mut self, input: SttInput, now: Instant) {
        let is_audio = matches!(input, SttInput::Audio(_));
        match self.stt.input.try_send(input) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) if is_audio => self.frames_lost += 1,
            Err(_) => self.turns.handle_listening_failed(now),
        }
    }

    fn handle_stt(&mut self, event: Option<SttEvent>, now: Instant) {
        match event {
            Some(SttEvent::Partial { utterance, text }) => {
                tracing::debug!(call_id = self.ledger.call_id(), utterance, text, "partial transcript");
            }
            Some(SttEvent::Final { utterance, flush, text }) => {
                self.ledger.transcript_came(now);
                self.turns.handle_transcript(utterance, flush, &text, now);
            }
            Some(SttEvent::Failed { message }) => {
                tracing::warn!(call_id = self.ledger.call_id(), message, "speech-to-text failed");
                self.turns.handle_listening_failed(now);
            }
            None => {
                tracing::error!(call_id = self.ledger.call_id(), "speech-to-text is gone");
                self.turns.handle_stop(now);
                self.outbox.push(Frame::Event(FromAgent::Hangup { after: HangupAfter::Now }));
            }
        }
    }

    fn handle_output(&mut self, output: Output, now: Instant) {
        match output {
            Output::FirstText { turn } => self.ledger.first_text(turn, now),
            Output::Audio { id, pcm, text } => {
                let length_ms = audio_ms(pcm.len());
                self.ledger.audio(id.turn, length_ms, text, now);
                self.outbox.push(Frame::Audio { turn: id.turn, pcm });
                self.turns.handle_audio_sent(id.turn, length_ms, now);
            }
            Output::Complete { turn, hang_up } => {
                self.outbox.push(Frame::Event(FromAgent::Mark { name: turn.to_string() }));
                self.turns.handle_turn_complete(turn, hang_up, now);
            }
            Output::Failed { turn, message } => {
                tracing::warn!(call_id = self.ledger.call_id(), turn, message, "a turn failed");
                self.turns.handle_turn_failed(turn, now);
            }
        }
    }

    /// Does what turn-taking asks for.
    fn act(&mut self) {
        while let Some(action) = self.turns.poll_action() {
            let now = Instant::now();
            match action {
                Action::Listen { utterance } => {
                    self.hear(SttInput::Begin { utterance }, now);
                    self.preroll_ms = 0;
                    for audio in std::mem::take(&mut self.preroll) {
                        self.hear(SttInput::Audio(audio), now);
                    }
                }
                Action::Flush { utterance, flush } => self.hear(SttInput::Flush { utterance, flush }, now),
                Action::CallerSaid { turn, message, text, began } => {
                    self.ledger.caller_said(turn, message, text, began);
                }
                Action::Say { turn, line } => {
                    self.ledger.begin(turn, None, now);
                    self.pipeline.say(turn, self.agent.sentences(line));
                }
                Action::Reply { turn, text, replaces, speech_ended } => {
                    self.ledger.begin(turn, Some(speech_ended), now);
                    let history = self.ledger.history();
                    self.pipeline.reply(turn, Request { history, text, replaces });
                }
                Action::Resume { turn, interrupted } => {
                    let rest = self.ledger.unheard(interrupted);
                    self.ledger.begin(turn, None, now);
                    self.pipeline.say(turn, rest);
                }
                Action::Cancel { turn } => {
                    let silent = self.pipeline.cancel(turn);
                    self.ledger.cancelled(turn, silent);
                }
                Action::Clear => self.outbox.clear(),
                Action::AgentHeard(heard) => {
                    let first_sent = self.outbox.first_sent(heard.turn);
                    self.ledger.heard(heard, first_sent);
                }
                Action::HangUp { drain } => {
                    if !drain {
                        self.outbox.clear();
                    }
                    let after = if drain { HangupAfter::Drain } else { HangupAfter::Now };
                    self.outbox.push(Frame::Event(FromAgent::Hangup { after }));
                }
                // The loop ends by itself: turn-taking is over.
                Action::Close => {}
            }
        }
    }

    fn report(&self) {
        tracing::info!(
            call_id = self.ledger.call_id(),
            turns = self.ledger.turns(),
            late_packets = self.pipeline.late(),
            frames_malformed = self.frames_malformed,
            frames_lost = self.frames_lost,
            "conversation is over"
        );
    }
}
