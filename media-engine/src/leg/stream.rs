//! An agent that is dialled, whatever it is dialled by: one face for the session.
//!
//! ```text
//!   Session ──hear, tell, stop──▶ WebSocket │ Link │ AudioSocket │ gRPC ──poll_stream──▶ worker ──▶ ring
//!           ◀──Said─── handle_bytes, handle_frame ◀────────────────────────────── worker ◀── ring
//! ```
//!
//! A stream writes caller audio straight into the buffer that leaves. Only while that buffer is not to be had, frames wait
//! ([`super::backlog`]). What the caller does before the agent is there is told when it is.

use std::time::Instant;

use tandem_audio::format::SampleRate;
use tandem_audio::pcm;
use tandem_stream::agent as pcm_dialect;
use tandem_stream::{Dialect, link};

use super::audiosocket::AudioSocketStream;
use super::dialect::WebSocketStream;
use super::event::Request;
use super::grpc::GrpcStream;
use super::link::LinkStream;
use super::websocket::Loss;

/// One frame towards an agent, on every kind of stream.
pub const FRAME_MS: u32 = pcm_dialect::FRAME_MS;

/// Samples read or written at a time.
pub(super) const PIECE: usize = 480;

/// Keys that are kept for an agent that is not there yet, the first ones: more than any number or PIN that is dialled ahead.
const EARLY_KEYS_MAX: usize = 32;

/// What an agent says on its stream.
#[derive(Debug)]
pub enum Said<'a> {
    /// The stream is up and the start frame is on its way.
    Ready,
    /// Sound at the dialect's rate.
    Sound(&'a [i16]),
    /// It asks for something.
    Request(Request),
}

/// How the engine tells the agent something; each dialect says it in its own way, or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tell<'a> {
    /// The caller pressed a key.
    Dtmf {
        /// Which.
        digit: char,
        /// How long.
        duration_ms: u32,
    },
    /// A mark was reached.
    Mark {
        /// Its name.
        name: &'a str,
        /// Heard since the start of the stream.
        heard_ms: u64,
    },
    /// The queue was emptied.
    Cleared {
        /// Heard since the start of the stream.
        heard_ms: u64,
    },
    /// The pause was reached.
    Paused {
        /// Heard since the start of the stream.
        heard_ms: u64,
    },
    /// The caller began or ceased to speak.
    Speech {
        /// Began.
        active: bool,
    },
    /// So much silence was kept from the agent; what it hears next comes after it.
    Gap {
        /// How much.
        ms: u64,
    },
    /// The caller put us on hold.
    Hold,
    /// The hold is over.
    Resume,
    /// A call of ours was answered.
    Answered,
    /// How a transfer goes.
    Transfer {
        /// `trying`, `done`, `failed`.
        status: &'a str,
        /// In words.
        reason: &'a str,
    },
}

/// How it is dialled.
#[derive(Debug)]
pub(super) enum Kind {
    /// A WebSocket of its own.
    WebSocket(WebSocketStream),
    /// A call on the core's link.
    Link(LinkStream),
    /// An AudioSocket of its own.
    AudioSocket(AudioSocketStream),
    /// A gRPC call on a connection of its own.
    Grpc(GrpcStream),
}

macro_rules! each {
    ($self:expr, $stream:ident => $body:expr) => {
        match $self {
            Kind::WebSocket($stream) => $body,
            Kind::Link($stream) => $body,
            Kind::AudioSocket($stream) => $body,
            Kind::Grpc($stream) => $body,
        }
    };
}

/// See the module.
#[derive(Debug)]
pub struct Stream {
    kind: Kind,
    early: Early,
}

/// What is to be told to an agent that is not there yet: the keys of a caller who does not wait, and that he put us on hold.
#[derive(Debug, Default)]
struct Early {
    /// Oldest first.
    keys: Vec<(char, u32)>,
    on_hold: bool,
}

impl Early {
    /// Keeps it for later; false: it is of no use then.
    fn keep(&mut self, what: &Tell<'_>) -> bool {
        match what {
            Tell::Dtmf { digit, duration_ms } if self.keys.len() < EARLY_KEYS_MAX => {
                self.keys.push((*digit, *duration_ms));
            }
            Tell::Dtmf { .. } => {}
            Tell::Hold => self.on_hold = true,
            Tell::Resume => self.on_hold = false,
            _ => return false,
        }
        true
    }
}

impl Stream {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, early: Early::default() }
    }

    // --- getters ---

    /// Rate of its sound, both ways.
    pub fn rate(&self) -> SampleRate {
        match &self.kind {
            Kind::WebSocket(stream) => stream.rate(),
            Kind::Link(_) | Kind::Grpc(_) => SampleRate::Hz16000,
            Kind::AudioSocket(stream) => stream.rate(),
        }
    }

    /// It has words for the caller's speech, so it is worth looking for.
    pub fn wants_speech(&self) -> bool {
        match &self.kind {
            Kind::WebSocket(stream) => stream.dialect() == Dialect::Pcm,
            Kind::Link(_) | Kind::Grpc(_) => true,
            Kind::AudioSocket(_) => false,
        }
    }

    /// It has no word for hanging up: an orderly end is one.
    pub fn hangs_up_by_closing(&self) -> bool {
        match &self.kind {
            Kind::WebSocket(stream) => stream.dialect() == Dialect::Twilio,
            Kind::Link(_) | Kind::Grpc(_) => false,
            Kind::AudioSocket(_) => true,
        }
    }

    /// Marks of what was cleared are given back one by one.
    pub fn gives_cleared_marks_back(&self) -> bool {
        matches!(&self.kind, Kind::WebSocket(stream) if stream.dialect() == Dialect::Twilio)
    }

    /// The agent is there.
    pub fn is_open(&self) -> bool {
        each!(&self.kind, stream => stream.is_open())
    }

    /// Nothing more will come of it.
    pub fn has_failed(&self) -> bool {
        each!(&self.kind, stream => stream.has_failed())
    }

    /// Frames that came, frames that went, milliseconds it did not read in time.
    pub fn counters(&self) -> (u64, u64, u64) {
        each!(&self.kind, stream => stream.counters())
    }

    /// Messages that were none of the dialect.
    pub fn malformed(&self) -> u64 {
        each!(&self.kind, stream => stream.malformed())
    }

    /// When the agent must be there.
    pub fn poll_timeout(&self) -> Option<Instant> {
        each!(&self.kind, stream => stream.poll_timeout())
    }

    /// Whether [`Stream::poll_stream`] has something.
    pub fn has_output(&self) -> bool {
        each!(&self.kind, stream => stream.has_output())
    }

    // --- from network and clock ---

    /// The TCP connection is up; for a call on a link: the link is.
    pub fn handle_connected(&mut self) {
        each!(&mut self.kind, stream => stream.handle_connected());
        self.tell_early();
    }

    /// The TCP connection ended, or could not be made. A link says so by [`Stream::handle_link_lost`].
    pub fn handle_ended(&mut self, error: Option<&std::io::Error>) {
        match &mut self.kind {
            Kind::WebSocket(stream) => stream.handle_ended(error),
            Kind::AudioSocket(stream) => stream.handle_ended(error),
            Kind::Grpc(stream) => stream.handle_ended(error),
            Kind::Link(_) => {}
        }
    }

    /// Whether the agent is there since this was last asked; for streams that say so without a message of the agent.
    pub fn take_ready(&mut self) -> bool {
        match &mut self.kind {
            Kind::AudioSocket(stream) => stream.take_ready(),
            Kind::WebSocket(_) | Kind::Link(_) | Kind::Grpc(_) => false,
        }
    }

    /// The link is lost, and why.
    pub fn handle_link_lost(&mut self, reason: &str) {
        if let Kind::Link(stream) = &mut self.kind {
            stream.handle_lost(reason);
        }
    }

    /// The deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        each!(&mut self.kind, stream => stream.handle_timeout(now));
    }

    /// Takes octets of the stream and hands what the agent says to `take`.
    pub fn handle_bytes(&mut self, bytes: &[u8], take: &mut dyn FnMut(Said<'_>)) {
        match &mut self.kind {
            Kind::WebSocket(stream) => stream.handle_bytes(bytes, take),
            Kind::AudioSocket(stream) => stream.handle_bytes(bytes, take),
            Kind::Grpc(stream) => stream.handle_bytes(bytes, take),
            Kind::Link(_) => {}
        }
        self.tell_early();
    }

    /// A TLS handshake waits for its turn.
    pub fn wants_handshake(&self) -> bool {
        match &self.kind {
            Kind::WebSocket(stream) => stream.wants_handshake(),
            Kind::Grpc(stream) => stream.wants_handshake(),
            Kind::Link(_) | Kind::AudioSocket(_) => false,
        }
    }

    /// Goes on with it.
    pub fn handle_handshake(&mut self, take: &mut dyn FnMut(Said<'_>)) {
        match &mut self.kind {
            Kind::WebSocket(stream) => stream.handle_handshake(take),
            Kind::Grpc(stream) => stream.handle_handshake(take),
            Kind::Link(_) | Kind::AudioSocket(_) => {}
        }
        self.tell_early();
    }

    /// Takes a frame of the link.
    pub fn handle_frame(&mut self, message: &link::Message<'_>, take: &mut dyn FnMut(Said<'_>)) {
        if let Kind::Link(stream) = &mut self.kind {
            stream.handle_frame(message, take);
        }
        self.tell_early();
    }

    /// So many milliseconds of the agent's sound wait: what was used may be granted again.
    pub fn handle_waiting(&mut self, ms: u64) {
        match &mut self.kind {
            Kind::Link(stream) => stream.handle_waiting(ms),
            Kind::Grpc(stream) => stream.handle_waiting(ms),
            Kind::WebSocket(_) | Kind::AudioSocket(_) => {}
        }
    }

    // --- what the session wants ---

    /// The call on a link, if it is one.
    pub fn link_mut(&mut self) -> Option<&mut LinkStream> {
        match &mut self.kind {
            Kind::Link(stream) => Some(stream),
            Kind::WebSocket(_) | Kind::AudioSocket(_) | Kind::Grpc(_) => None,
        }
    }

    /// Hears the caller: samples at [`Stream::rate`], in order.
    pub fn hear(&mut self, samples: &[i16]) {
        each!(&mut self.kind, stream => stream.hear(samples));
    }

    /// Tells the agent what its dialect has words for.
    pub fn tell(&mut self, what: &Tell<'_>) {
        if !self.is_open() && self.early.keep(what) {
            return;
        }
        each!(&mut self.kind, stream => stream.tell(what));
    }

    /// The agent may have come: it is told what happened before.
    fn tell_early(&mut self) {
        if !self.is_open() || (self.early.keys.is_empty() && !self.early.on_hold) {
            return;
        }
        let Early { keys, on_hold } = std::mem::take(&mut self.early);
        if on_hold {
            self.tell(&Tell::Hold);
        }
        for (digit, duration_ms) in keys {
            self.tell(&Tell::Dtmf { digit, duration_ms });
        }
    }

    /// The call is over: says why, and good-bye.
    pub fn stop(&mut self, reason: &str) {
        each!(&mut self.kind, stream => stream.stop(reason));
    }

    /// It was never dialled.
    pub fn abandon(&mut self) {
        each!(&mut self.kind, stream => stream.abandon());
    }

    // --- what must leave ---

    /// Writes what is to go into `out`: control octets first, then whole audio frames. Says how many octets.
    pub fn poll_stream(&mut self, out: &mut [u8]) -> usize {
        each!(&mut self.kind, stream => stream.poll_stream(out))
    }

    /// How the stream was lost, once.
    pub fn poll_loss(&mut self) -> Option<Loss> {
        each!(&mut self.kind, stream => stream.poll_loss())
    }
}

/// Hands little-endian octets on as sound.
pub(super) fn hear_pcm(octets: &[u8], take: &mut dyn FnMut(Said<'_>)) {
    let mut samples = [0; PIECE];
    for piece in octets.chunks(2 * PIECE) {
        let len = pcm::read_le(piece, &mut samples);
        take(Said::Sound(&samples[..len]));
    }
}

/// What an event of the `pcm` dialect asks for.
pub(super) fn request(event: pcm_dialect::FromAgent) -> Request {
    use pcm_dialect::{FromAgent, HangupAfter};
    match event {
        FromAgent::Clear => Request::Clear,
        FromAgent::Mark { name } => Request::Mark { name },
        FromAgent::Pause => Request::Pause,
        FromAgent::Resume => Request::Resume,
        FromAgent::Dtmf { digits } => Request::Dtmf { digits },
        FromAgent::Hangup { after } => Request::Hangup { after_drain: after == HangupAfter::Drain },
        FromAgent::Transfer { to, mode } => Request::Transfer { to, mode },
        FromAgent::Answer => Request::Answer,
        FromAgent::Headers { headers } => Request::Headers { headers },
    }
}

/// The event of the `pcm` dialect that tells this.
pub(super) fn event(what: &Tell<'_>) -> pcm_dialect::ToAgent {
    use pcm_dialect::ToAgent;
    match what {
        Tell::Dtmf { digit, duration_ms } => ToAgent::Dtmf { digit: *digit, duration_ms: *duration_ms },
        Tell::Mark { name, heard_ms } => ToAgent::Mark { name: (*name).to_owned(), heard_ms: *heard_ms },
        Tell::Cleared { heard_ms } => ToAgent::Cleared { heard_ms: *heard_ms },
        Tell::Paused { heard_ms } => ToAgent::Paused { heard_ms: *heard_ms },
        Tell::Speech { active } => ToAgent::Speech { active: *active },
        Tell::Gap { ms } => ToAgent::Gap { ms: *ms },
        Tell::Hold => ToAgent::Hold,
        Tell::Resume => ToAgent::Resume,
        Tell::Answered => ToAgent::Answered,
        Tell::Transfer { status, reason } => {
            ToAgent::Transfer { status: (*status).to_owned(), reason: (*reason).to_owned() }
        }
    }
}
