//! An agent that is an AudioSocket server: we dial it and speak as Asterisk does ([`tandem_stream::audiosocket`]).
//!
//! It hears the caller as the packets come, and keys. It can speak and hang up; it has no word for anything else, so it
//! learns nothing of marks or positions. Its sound goes through the playout queue like everybody's, however unevenly it comes.

use std::time::Instant;

use tandem_audio::format::SampleRate;
use tandem_audio::pcm;
use tandem_stream::audiosocket::{Message, Rate, Reader, append, write_audio};

use super::agent::AudioSocketParameters;
use super::backlog::Backlog;
use super::stream::{FRAME_MS, PIECE, Said, Tell, hear_pcm};
use super::websocket::{CONTROL_OCTETS_MAX, Loss};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    /// Our hang-up is out or on its way.
    Closing,
    Failed,
}

/// See the module.
#[derive(Debug)]
pub struct AudioSocketStream {
    state: State,
    id: [u8; 16],
    rate: Rate,
    reader: Reader,
    deadline: Option<Instant>,
    /// The connection was told to the session.
    is_told: bool,
    backlog: Backlog,
    control: Vec<u8>,
    written: usize,
    loss: Option<Loss>,
    frames_in: u64,
    frames_out: u64,
    malformed: u64,
}

impl AudioSocketStream {
    pub(super) fn new(parameters: AudioSocketParameters, now: Instant) -> Self {
        let AudioSocketParameters { id, rate, connect_timeout, .. } = parameters;
        Self {
            state: State::Connecting,
            id,
            rate,
            reader: Reader::default(),
            deadline: Some(now + connect_timeout),
            is_told: false,
            backlog: Backlog::new(rate.frame_octets(), FRAME_MS),
            control: Vec::with_capacity(64),
            written: 0,
            loss: None,
            frames_in: 0,
            frames_out: 0,
            malformed: 0,
        }
    }

    pub(super) fn rate(&self) -> SampleRate {
        // The contract takes only rates that can be resampled.
        SampleRate::from_hz(self.rate.hz()).unwrap_or(SampleRate::Hz8000)
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    pub(super) fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    pub(super) fn counters(&self) -> (u64, u64, u64) {
        (self.frames_in, self.frames_out, self.backlog.dropped_ms())
    }

    pub(super) fn malformed(&self) -> u64 {
        self.malformed
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    pub(super) fn poll_loss(&mut self) -> Option<Loss> {
        self.loss.take()
    }

    /// Whether the connection came up since this was last asked.
    pub(super) fn take_ready(&mut self) -> bool {
        self.state == State::Open && !std::mem::replace(&mut self.is_told, true)
    }

    fn fail(&mut self, reason: String, is_normal: bool) {
        self.state = State::Failed;
        self.deadline = None;
        self.control.clear();
        self.written = 0;
        self.loss = Some(Loss { reason, is_normal });
    }

    pub(super) fn handle_connected(&mut self) {
        if self.state == State::Connecting {
            self.state = State::Open;
            self.deadline = None;
            append(&mut self.control, &Message::Id(self.id));
            self.backlog.attach();
        }
    }

    pub(super) fn handle_ended(&mut self, error: Option<&std::io::Error>) {
        let (what, is_normal) = match self.state {
            State::Connecting => ("could not be connected", false),
            State::Open => ("closed the connection", error.is_none()),
            State::Closing | State::Failed => return,
        };
        let reason = match error {
            Some(error) => format!("agent {what}: {error}"),
            None => format!("agent {what}"),
        };
        self.fail(reason, is_normal);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.fail("agent could not be connected in time".into(), false);
        }
    }

    pub(super) fn handle_bytes(&mut self, bytes: &[u8], take: &mut dyn FnMut(Said<'_>)) {
        if self.state != State::Open {
            return;
        }
        let Self { reader, rate, frames_in, malformed, .. } = self;
        let mut end: Option<(String, bool)> = None;
        let read = reader.handle_bytes(bytes, |message| match message {
            _ if end.is_some() => {}
            Message::Audio { rate: of, samples } if of == *rate => {
                *frames_in += 1;
                hear_pcm(samples, take);
            }
            Message::Hangup => end = Some(("agent hung up".into(), true)),
            Message::Error(code) => {
                end = Some(match code {
                    Some(code) => (format!("agent reported error {code}"), false),
                    None => ("agent reported an error".into(), false),
                });
            }
            // Another rate, an id, a key: nothing that a server sends.
            Message::Audio { .. } | Message::Id(_) | Message::Dtmf(_) | Message::Unknown(_) => {
                *malformed += 1
            }
        });
        if let Err(error) = read {
            end = Some((format!("agent broke the AudioSocket protocol: {error}"), false));
        }
        if let Some((reason, is_normal)) = end {
            self.fail(reason, is_normal);
        }
    }

    pub(super) fn hear(&mut self, samples: &[i16]) {
        if matches!(self.state, State::Closing | State::Failed) {
            return;
        }
        for piece in samples.chunks(PIECE) {
            let mut octets = [0; 2 * PIECE];
            let len = pcm::write_le(piece, &mut octets);
            self.backlog.push(&octets[..len]);
        }
        self.backlog.trim();
    }

    pub(super) fn tell(&mut self, what: &Tell<'_>) {
        if let (State::Open, Tell::Dtmf { digit, .. }) = (self.state, what) {
            append(&mut self.control, &Message::Dtmf(u8::try_from(*digit).unwrap_or_default()));
            if self.control.len() - self.written > CONTROL_OCTETS_MAX {
                self.fail("agent does not read its stream".into(), false);
            }
        }
    }

    pub(super) fn stop(&mut self, _reason: &str) {
        match self.state {
            State::Open => {
                append(&mut self.control, &Message::Hangup);
                self.state = State::Closing;
            }
            State::Connecting => self.state = State::Failed,
            State::Closing | State::Failed => {}
        }
        self.deadline = None;
        self.backlog.clear();
    }

    pub(super) fn abandon(&mut self) {
        self.state = State::Failed;
        self.deadline = None;
    }

    pub(super) fn has_output(&self) -> bool {
        match self.state {
            State::Open => self.written < self.control.len() || self.backlog.has_frame(),
            State::Closing => self.written < self.control.len(),
            State::Connecting | State::Failed => false,
        }
    }

    pub(super) fn poll_stream(&mut self, out: &mut [u8]) -> usize {
        if !self.has_output() {
            return 0;
        }
        let waiting = &self.control[self.written..];
        let mut len = waiting.len().min(out.len());
        out[..len].copy_from_slice(&waiting[..len]);
        self.written += len;
        if self.written < self.control.len() {
            return len;
        }
        self.control.clear();
        self.written = 0;
        while self.state == State::Open && self.backlog.has_frame() {
            let octets = self.backlog.frame_octets();
            let samples = |samples: &mut [u8]| self.backlog.copy(samples);
            let Some(written) = write_audio(&mut out[len..], self.rate, octets, samples) else { break };
            self.backlog.pop();
            self.frames_out += 1;
            len += written;
        }
        len
    }
}
