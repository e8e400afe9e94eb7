//! A WebSocket that we dial: TCP connect, upgrade, frames, ping and pong, close. What is said on it is the dialect's
//! business ([`super::agent`]).
//!
//! ```text
//!   Connecting ──connected──▶ Upgrading ──101──▶ Open ──our close──▶ Closing
//!        └─────────────── time out, refused, broken ──────────────▶ Failed
//! ```
//!
//! Control octets (the upgrade request, text frames, pongs, close) wait in a bounded buffer of their own and go before
//! audio. Reading is never stopped: a `clear` may be behind the audio.

use std::time::Instant;

use tandem_stream::websocket::{
    ClientHandshake, FrameReader, Message, Opcode, Role, append_frame, close, write_close,
};

/// Control octets that may wait to be written. An honest agent never makes a tenth of it wait; one that sends pings or
/// marks and does not read is cut off.
pub const CONTROL_OCTETS_MAX: usize = 64 * 1024;

/// Where the connection stands.
#[derive(Debug)]
enum State {
    Connecting,
    /// The upgrade request is out or on its way; what came of the answer so far.
    Upgrading {
        answer: Vec<u8>,
    },
    Open,
    /// Our close frame is out or on its way.
    Closing,
    Failed,
}

/// What a piece of the stream meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// The upgrade succeeded.
    Opened,
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
}

/// How a connection was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// In words.
    pub reason: String,
    /// The agent closed it as one does when all is said (RFC 6455 §7.4.1: normal closure, going away, or no code at all).
    pub is_normal: bool,
}

/// One dialled WebSocket.
#[derive(Debug)]
pub struct Connection {
    state: State,
    handshake: ClientHandshake,
    reader: FrameReader,
    /// Octets to be written before anything else; those before `written` are gone.
    control: Vec<u8>,
    written: usize,
    masks: Masks,
    deadline: Option<Instant>,
    loss: Option<Loss>,
}

/// Masks of the frames that we send. RFC 6455 §10.3 wants them unpredictable so that a page's script cannot write what
/// it likes into a proxy's cache; we mask what a phone says, so a seeded generator does.
#[derive(Debug, Clone, Copy)]
pub struct Masks(u64);

impl Masks {
    /// A generator from a random seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits (SplitMix64).
    pub fn next_bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The next mask.
    pub fn next_mask(&mut self) -> [u8; 4] {
        (self.next_bits() as u32).to_ne_bytes()
    }
}

impl Connection {
    /// A connection that is being dialled; `request` is the upgrade request made by `handshake`.
    pub fn new(handshake: ClientHandshake, request: Vec<u8>, masks: Masks, deadline: Instant) -> Self {
        Self {
            state: State::Connecting,
            handshake,
            reader: FrameReader::new(Role::Client),
            control: request,
            written: 0,
            masks,
            deadline: Some(deadline),
            loss: None,
        }
    }

    /// Messages may be exchanged.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// It is open, or may be yet.
    pub fn is_usable(&self) -> bool {
        matches!(self.state, State::Connecting | State::Upgrading { .. } | State::Open)
    }

    /// Nothing more will come of it.
    pub fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed)
    }

    /// The TCP connection is up: the upgrade request may go.
    pub fn handle_connected(&mut self) {
        if matches!(self.state, State::Connecting) {
            self.state = State::Upgrading { answer: Vec::new() };
        }
    }

    /// The TCP connection ended.
    pub fn handle_ended(&mut self, error: Option<&std::io::Error>) {
        let what = match self.state {
            State::Connecting => "could not be connected",
            State::Upgrading { .. } => "closed the connection before the upgrade",
            State::Open => "closed the connection",
            State::Closing | State::Failed => return,
        };
        self.fail(match error {
            Some(error) => format!("agent {what}: {error}"),
            None => format!("agent {what}"),
        });
    }

    /// When the agent must be there.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// The deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            match self.state {
                State::Connecting => self.fail("agent could not be connected in time".into()),
                State::Upgrading { .. } => self.fail("agent did not answer the upgrade in time".into()),
                _ => {}
            }
        }
    }

    /// Takes octets of the stream and hands what they mean to `take`, which gets the connection's writer too.
    pub fn handle_bytes(&mut self, bytes: &[u8], mut take: impl FnMut(Incoming<'_>, &mut Writer<'_>)) {
        let mut rest = bytes;
        let upgraded;
        if let State::Upgrading { answer } = &mut self.state {
            answer.extend_from_slice(bytes);
            let consumed = match self.handshake.read_response(answer) {
                Ok(None) => return,
                Ok(Some(consumed)) => consumed,
                Err(error) => return self.fail(format!("agent refused the upgrade: {error}")),
            };
            upgraded = answer.split_off(consumed);
            self.state = State::Open;
            self.deadline = None;
            take(Incoming::Opened, &mut writer(&mut self.control, &mut self.masks));
            rest = &upgraded;
        }
        while !rest.is_empty() {
            let taken = self.reader.push(rest);
            rest = &rest[taken..];
            loop {
                let mut writer = writer(&mut self.control, &mut self.masks);
                match self.reader.poll_message() {
                    Ok(None) => break,
                    Ok(Some(Message::Text(text))) => take(Incoming::Text(text), &mut writer),
                    Ok(Some(Message::Binary(octets))) => take(Incoming::Binary(octets), &mut writer),
                    Ok(Some(Message::Ping(payload))) => writer.frame(Opcode::Pong, payload),
                    Ok(Some(Message::Pong(_))) => {}
                    Ok(Some(Message::Close { code, reason })) => {
                        let text = match (code, reason) {
                            (None, _) => "agent closed the connection".to_owned(),
                            (Some(code), "") => format!("agent closed the connection with code {code}"),
                            (Some(code), reason) => {
                                format!("agent closed the connection with code {code}: {reason}")
                            }
                        };
                        let mask = writer.masks.next_mask();
                        write_close(writer.out, Some(mask), code.unwrap_or(1_000), "");
                        let is_normal = matches!(code, None | Some(close::NORMAL | close::GOING_AWAY));
                        return self.peer_gone(Loss { reason: text, is_normal });
                    }
                    Err(error) => {
                        let mask = writer.masks.next_mask();
                        write_close(writer.out, Some(mask), error.close_code(), "");
                        let reason = format!("agent broke the WebSocket protocol: {error}");
                        return self.peer_gone(Loss { reason, is_normal: false });
                    }
                }
            }
        }
        self.check_backlog();
    }

    /// Sends a text message.
    pub fn send_text(&mut self, text: &str) {
        if self.is_open() {
            writer(&mut self.control, &mut self.masks).text(text);
            self.check_backlog();
        }
    }

    /// Says good-bye; nothing is written after it.
    pub fn close(&mut self, code: u16) {
        match self.state {
            State::Open => {
                let mask = self.masks.next_mask();
                write_close(&mut self.control, Some(mask), code, "");
                self.state = State::Closing;
            }
            State::Closing | State::Failed => {}
            State::Connecting | State::Upgrading { .. } => self.state = State::Failed,
        }
        self.deadline = None;
    }

    fn check_backlog(&mut self) {
        if self.control.len() - self.written > CONTROL_OCTETS_MAX {
            self.fail("agent does not read its stream".into());
        }
    }

    fn peer_gone(&mut self, loss: Loss) {
        if matches!(self.state, State::Open | State::Upgrading { .. }) {
            self.loss = Some(loss);
        }
        self.state = State::Closing;
    }

    /// What is below it broke.
    pub(super) fn fail(&mut self, reason: String) {
        self.loss = Some(Loss { reason, is_normal: false });
        self.state = State::Failed;
        self.control = Vec::new();
        self.written = 0;
    }

    /// How the connection was lost, once.
    pub fn poll_loss(&mut self) -> Option<Loss> {
        self.loss.take()
    }

    /// Control octets wait.
    pub fn has_control(&self) -> bool {
        self.written < self.control.len() && !matches!(self.state, State::Connecting | State::Failed)
    }

    /// Moves waiting control octets into `out`, as many as fit, and says how many.
    pub fn poll_control(&mut self, out: &mut [u8]) -> usize {
        if !self.has_control() {
            return 0;
        }
        let waiting = &self.control[self.written..];
        let len = waiting.len().min(out.len());
        out[..len].copy_from_slice(&waiting[..len]);
        self.written += len;
        if self.written == self.control.len() {
            self.control.clear();
            self.written = 0;
        }
        len
    }

    /// The mask of a frame that is written straight into the stream.
    pub fn next_mask(&mut self) -> [u8; 4] {
        self.masks.next_mask()
    }
}

fn writer<'a>(out: &'a mut Vec<u8>, masks: &'a mut Masks) -> Writer<'a> {
    Writer { out, masks }
}

/// Appends frames to the control octets.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
    masks: &'a mut Masks,
}

impl Writer<'_> {
    /// A text message.
    pub fn text(&mut self, text: &str) {
        self.frame(Opcode::Text, text.as_bytes());
    }

    fn frame(&mut self, opcode: Opcode, payload: &[u8]) {
        let mask = self.masks.next_mask();
        // It can only fail for a control frame above 125 octets, and a ping that long does not pass the reader.
        let _ = append_frame(self.out, opcode, Some(mask), payload);
    }
}
