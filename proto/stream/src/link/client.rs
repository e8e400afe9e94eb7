//! The engine's side of a link: dialling, greeting, keep-alive, back-off.
//!
//! ```text
//!            dial            connected, hello out           welcome
//!   Down ───────────▶ Dialling ───────────▶ Greeting ───────────────▶ Up
//!    ▲ waits: 100 ms, doubled up to 5 s     │                         │ ping every 3 s; silent for 10 s: lost
//!    └──────── refused, broken, out of time ┴─────────────────────────┘
//! ```
//!
//! The shell dials when [`Client::wants_dial`], feeds [`Client::handle_bytes`], writes what [`Client::poll_control`] gives,
//! and closes the socket when a method returns an error. Calls are the shell's: it tells them when the link is lost.

use std::time::{Duration, Instant};

use super::{Decoder, LinkError, Message, NO_CALL, PREAMBLE, VERSION, append};

/// The first wait between two attempts.
pub const RETRY_MIN: Duration = Duration::from_millis(100);
/// The longest.
pub const RETRY_MAX: Duration = Duration::from_secs(5);
/// Connecting and greeting take no longer.
pub const GREETING_MAX: Duration = Duration::from_secs(5);
/// How often a link that is up is asked whether it lives.
pub const PING_EVERY: Duration = Duration::from_secs(3);
/// A link of which nothing was heard for so long is lost.
pub const SILENT_MAX: Duration = Duration::from_secs(10);

/// Octets that may wait in [`Client::poll_control`]: pings and closes of calls that are over. More wait only for an agent
/// that does not read, and then the link is lost by its silence before long.
pub const CONTROL_OCTETS_MAX: usize = 256 * 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Down { retry_at: Instant },
    Dialling { until: Instant },
    Greeting { until: Instant },
    Up,
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    state: State,
    token: Vec<u8>,
    decoder: Decoder,
    control: Vec<u8>,
    written: usize,
    backoff: Duration,
    dialled_at: Option<Instant>,
    heard_at: Instant,
    ping_at: Instant,
    refused: u64,
}

impl Client {
    /// A link that was not dialled yet.
    pub fn new(token: Vec<u8>, now: Instant) -> Self {
        Self {
            state: State::Down { retry_at: now },
            token,
            decoder: Decoder::default(),
            control: Vec::with_capacity(1_024),
            written: 0,
            backoff: RETRY_MIN,
            dialled_at: None,
            heard_at: now,
            ping_at: now,
            refused: 0,
        }
    }

    /// Calls may be opened.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Not even being dialled.
    pub fn is_down(&self) -> bool {
        matches!(self.state, State::Down { .. })
    }

    /// Control frames that found no room.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// A call waits for the link: the next attempt comes as soon as [`RETRY_MIN`] after the last.
    pub fn hurry(&mut self, now: Instant) {
        if let State::Down { retry_at } = &mut self.state {
            let soonest = self.dialled_at.map_or(now, |at| (at + RETRY_MIN).max(now));
            *retry_at = soonest.min(*retry_at);
        }
    }

    /// It is time to dial.
    pub fn wants_dial(&self, now: Instant) -> bool {
        matches!(self.state, State::Down { retry_at } if retry_at <= now)
    }

    /// The shell dials.
    pub fn dial(&mut self, now: Instant) {
        self.dialled_at = Some(now);
        self.state = State::Dialling { until: now + GREETING_MAX };
    }

    /// The TCP connection is up.
    pub fn handle_connected(&mut self, now: Instant) {
        self.control.clear();
        self.written = 0;
        self.decoder.reset();
        self.control.extend_from_slice(&PREAMBLE);
        append(&mut self.control, NO_CALL, &Message::Hello { version: VERSION, token: &self.token });
        self.state = State::Greeting { until: now + GREETING_MAX };
    }

    /// The TCP connection is gone, or could not be made. The next attempt is due later and later.
    pub fn handle_ended(&mut self, now: Instant) {
        self.state = State::Down { retry_at: now + self.backoff };
        self.backoff = (self.backoff * 2).min(RETRY_MAX);
        self.control.clear();
        self.written = 0;
    }

    /// A piece of the stream: frames of calls are handed to `take`.
    ///
    /// # Errors
    /// The link is of no more use.
    pub fn handle_bytes(
        &mut self,
        bytes: &[u8],
        now: Instant,
        mut take: impl FnMut(u32, Message<'_>),
    ) -> Result<(), LinkError> {
        let Self { state, decoder, control, backoff, ping_at, heard_at, .. } = self;
        *heard_at = now;
        decoder.handle_bytes(bytes, |call, message| {
            match (message, *state == State::Up) {
                (Message::Welcome { version: VERSION }, false) => {
                    *state = State::Up;
                    *backoff = RETRY_MIN;
                    *ping_at = now + PING_EVERY;
                }
                (Message::Welcome { version }, _) => return Err(LinkError::Version(version)),
                (Message::Refused { reason }, _) => return Err(LinkError::Refused(reason.to_owned())),
                (_, false) => return Err(LinkError::Greeting),
                (Message::Ping, true) => append(control, NO_CALL, &Message::Pong),
                (Message::Pong, true) => {}
                (message, true) => take(call, message),
            }
            Ok(())
        })
    }

    /// Queues a frame outside of any call's own queue.
    pub fn push(&mut self, call: u32, message: &Message<'_>) {
        if self.control.len() - self.written < CONTROL_OCTETS_MAX {
            append(&mut self.control, call, message);
        } else {
            self.refused += 1;
        }
    }

    /// Control octets wait.
    pub fn has_control(&self) -> bool {
        self.written < self.control.len()
    }

    /// Moves waiting control octets into `out`, as many as fit, and says how many.
    pub fn poll_control(&mut self, out: &mut [u8]) -> usize {
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

    /// When to come back: to dial, to ping, or to give up.
    pub fn poll_timeout(&self) -> Instant {
        match self.state {
            State::Down { retry_at } => retry_at,
            State::Dialling { until } | State::Greeting { until } => until,
            State::Up => self.ping_at.min(self.heard_at + SILENT_MAX),
        }
    }

    /// A deadline has passed. The reason, when the shell must close the connection.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<&'static str> {
        match self.state {
            State::Dialling { until } if until <= now => Some("could not be connected in time"),
            State::Greeting { until } if until <= now => Some("did not greet in time"),
            State::Up if self.heard_at + SILENT_MAX <= now => Some("was silent for too long"),
            State::Up if self.ping_at <= now => {
                self.ping_at = now + PING_EVERY;
                self.push(NO_CALL, &Message::Ping);
                None
            }
            _ => None,
        }
    }
}
