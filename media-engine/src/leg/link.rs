//! A call on the core's link to the built-in voice agent. The connection itself is the worker's ([`crate::worker`]).
//!
//! ```text
//!   Waiting ──link is up──▶ Opening ──accepted──▶ Open ──our close──▶ Closing
//!      └───────────── time out, refused, link lost, closed by the agent ──▶ Failed
//! ```
//!
//! Rare frames wait in a bounded buffer of the call and go before its audio. Audio goes as far as the agent's credit for this
//! call reaches ([`tandem_stream::link::credit`]); what is above waits, and in the end the oldest of it is dropped. What
//! the agent may send is granted as the caller hears it.

use std::time::Instant;

use tandem_audio::format::SampleRate;
use tandem_audio::pcm;
use tandem_stream::agent as pcm_dialect;
use tandem_stream::link::credit::{AGENT_WINDOW, CALLER_WINDOW, Granter, Spender};
use tandem_stream::link::{HEADER_OCTETS, Message, append, write_audio};

use super::agent::{CallInfo, LinkParameters};
use super::backlog::Backlog;
use super::event::Request;
use super::stream::{FRAME_MS, PIECE, Said, Tell, event, hear_pcm, request};
use super::websocket::{CONTROL_OCTETS_MAX, Loss};

/// Octets of one millisecond on a link.
const OCTETS_A_MS: u64 = 2 * SampleRate::Hz16000.samples_per_ms() as u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// For the link.
    Waiting,
    /// For the agent's answer.
    Opening,
    Open,
    /// Our close is out or on its way.
    Closing,
    Failed,
}

/// See the module.
#[derive(Debug)]
pub struct LinkStream {
    state: State,
    /// The number of this call on the link.
    call: u32,
    start: pcm_dialect::Start,
    deadline: Option<Instant>,
    backlog: Backlog,
    credit: Spender,
    granter: Granter,
    /// Frames to be written before audio; those before `written` are gone.
    control: Vec<u8>,
    written: usize,
    loss: Option<Loss>,
    frames_in: u64,
    frames_out: u64,
    malformed: u64,
}

impl LinkStream {
    pub(super) fn new(parameters: LinkParameters, call: &CallInfo, now: Instant) -> Self {
        let mut start = pcm_dialect::Start::new(&call.call_id, &call.from, &call.to, &call.direction);
        start.custom = parameters.custom;
        Self {
            state: State::Waiting,
            call: 0,
            start,
            deadline: Some(now + parameters.connect_timeout),
            backlog: Backlog::new(pcm_dialect::FRAME_BYTES, FRAME_MS),
            credit: Spender::new(CALLER_WINDOW),
            granter: Granter::new(AGENT_WINDOW),
            control: Vec::with_capacity(1_024),
            written: 0,
            loss: None,
            frames_in: 0,
            frames_out: 0,
            malformed: 0,
        }
    }

    /// The number that the worker gives this call on the link.
    pub fn set_call(&mut self, call: u32) {
        self.call = call;
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

    fn fail(&mut self, reason: String) {
        self.state = State::Failed;
        self.deadline = None;
        self.control.clear();
        self.written = 0;
        self.backlog.clear();
        self.loss = Some(Loss { reason, is_normal: false });
    }

    fn push(&mut self, message: &Message<'_>) {
        append(&mut self.control, self.call, message);
        if self.control.len() - self.written > CONTROL_OCTETS_MAX {
            self.give_up("agent does not read its calls", "error");
        }
    }

    /// We fail the call, and the agent may hold it yet: it must know that nobody is there. The frames that wait are whole, so those
    /// of other calls are not harmed by their loss.
    fn give_up(&mut self, reason: &str, to_agent: &str) {
        self.fail(reason.to_owned());
        self.state = State::Closing;
        append(&mut self.control, self.call, &Message::Close { reason: to_agent });
    }

    // --- from network and clock ---

    pub(super) fn handle_connected(&mut self) {
        if self.state == State::Waiting {
            self.state = State::Opening;
            let start = pcm_dialect::ToAgent::Start(self.start.clone()).to_json();
            self.push(&Message::Open { start: &start });
        }
    }

    pub(super) fn handle_lost(&mut self, reason: &str) {
        match self.state {
            State::Waiting | State::Opening | State::Open => self.fail(format!("agent {reason}")),
            State::Closing => self.state = State::Failed,
            State::Failed => {}
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            match self.state {
                State::Waiting => self.fail("agent could not be connected in time".into()),
                State::Opening => self.give_up("agent did not accept the call in time", "timeout"),
                _ => self.deadline = None,
            }
        }
    }

    pub(super) fn handle_frame(&mut self, message: &Message<'_>, take: &mut dyn FnMut(Said<'_>)) {
        match (message, self.state) {
            (Message::Accepted, State::Opening) => {
                self.state = State::Open;
                self.deadline = None;
                self.backlog.attach();
                take(Said::Ready);
            }
            (Message::Close { reason }, State::Opening) => {
                self.fail(format!("agent refused the call: {reason}"));
            }
            (Message::Close { reason: "" }, State::Open) => self.fail("agent closed the call".into()),
            (Message::Close { reason }, State::Open) => self.fail(format!("agent closed the call: {reason}")),
            (Message::Credit { octets }, State::Opening | State::Open) => self.credit.grant(*octets),
            (Message::Audio(octets), State::Open) => {
                self.frames_in += 1;
                self.granter.receive(octets.len());
                hear_pcm(octets, take);
            }
            (Message::Clear { .. }, State::Open) => take(Said::Request(Request::Clear)),
            (Message::Mark { name, .. }, State::Open) => {
                take(Said::Request(Request::Mark { name: (*name).to_owned() }));
            }
            (Message::Event(text), State::Open) => match pcm_dialect::FromAgent::parse(text) {
                Ok(Some(event)) => take(Said::Request(request(event))),
                Ok(None) | Err(_) => self.malformed += 1,
            },
            // What was on its way when we closed is of no interest.
            (_, State::Closing | State::Failed) => {}
            _ => self.malformed += 1,
        }
    }

    pub(super) fn handle_waiting(&mut self, ms: u64) {
        if self.state == State::Open
            && let Some(octets) = self.granter.grant(ms * OCTETS_A_MS)
        {
            self.push(&Message::Credit { octets });
        }
    }

    // --- what the session wants ---

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
        if self.state != State::Open {
            return;
        }
        match what {
            Tell::Dtmf { digit, duration_ms } => {
                let digit = u8::try_from(*digit).unwrap_or_default();
                self.push(&Message::Dtmf { digit, duration_ms: *duration_ms });
            }
            Tell::Mark { name, heard_ms } => self.push(&Message::Mark { heard_ms: *heard_ms, name }),
            Tell::Cleared { heard_ms } => self.push(&Message::Clear { heard_ms: *heard_ms }),
            what => self.push(&Message::Event(&event(what).to_json())),
        }
    }

    pub(super) fn stop(&mut self, reason: &str) {
        match self.state {
            State::Opening | State::Open => {
                self.push(&Message::Close { reason });
                self.state = State::Closing;
            }
            State::Waiting => self.state = State::Failed,
            State::Closing | State::Failed => {}
        }
        self.deadline = None;
        self.backlog.clear();
    }

    pub(super) fn abandon(&mut self) {
        self.state = State::Failed;
        self.deadline = None;
    }

    // --- what must leave ---

    pub(super) fn has_output(&self) -> bool {
        match self.state {
            State::Opening | State::Closing => self.written < self.control.len(),
            State::Open => {
                self.written < self.control.len()
                    || (self.backlog.has_frame() && self.credit.left() as usize >= pcm_dialect::FRAME_BYTES)
            }
            State::Waiting | State::Failed => false,
        }
    }

    /// Whole frames only: other calls follow in the same buffer.
    pub(super) fn poll_stream(&mut self, out: &mut [u8]) -> usize {
        let waiting = &self.control[self.written..];
        let mut len = whole_frames(waiting, out.len());
        out[..len].copy_from_slice(&waiting[..len]);
        self.written += len;
        if self.written < self.control.len() {
            return len;
        }
        self.control.clear();
        self.written = 0;
        while self.state == State::Open && self.backlog.has_frame() {
            let octets = self.backlog.frame_octets();
            if (self.credit.left() as usize) < octets {
                break;
            }
            let body = |body: &mut [u8]| self.backlog.copy(body);
            let Some(written) = write_audio(&mut out[len..], self.call, octets, body) else { break };
            self.credit.spend(octets);
            self.backlog.pop();
            self.frames_out += 1;
            len += written;
        }
        len
    }
}

/// How many octets of `frames`, which are ours and whole, fit into `room` without cutting one.
fn whole_frames(frames: &[u8], room: usize) -> usize {
    if frames.len() <= room {
        return frames.len();
    }
    let mut at = 0;
    while let Some([low, high, ..]) = frames.get(at..) {
        let end = at + HEADER_OCTETS + usize::from(u16::from_le_bytes([*low, *high]));
        if end > room {
            break;
        }
        at = end;
    }
    at
}
