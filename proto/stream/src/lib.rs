//! Media over TCP and WebSocket: framing, and the dialects spoken on it.
//!
//! ```text
//!  socket bytes ─▶ websocket::FrameReader ─▶ Message ─┬─ Binary ─▶ agent::read_audio      (pcm dialect)
//!                                                     ├─ Text ───▶ agent / twilio parse
//!                                                     └─ either ─▶ provider::MediaStream::handle_*
//!  socket bytes ◀─ websocket::write_frame ◀───────────── agent / twilio writers
//! ```
//!
//! * [`websocket`]: RFC 6455, both roles: handshake, frame writer, incremental frame reader.
//! * [`agent`]: the `pcm` dialect, Tandem's own agent stream: binary L16 at 16 kHz and JSON text events.
//! * [`link`]: many calls of the `pcm` dialect over one TCP connection, for the built-in voice agent.
//! * [`grpc`]: one gRPC call over HTTP/2, as its client; the messages on it are somebody else's.
//! * [`audiosocket`]: Asterisk's AudioSocket, a call a TCP connection; the server's side with Asterisk's own rules.
//! * [`provider`]: the telephony providers' media, for calls that they bring us over WebSocket.
//! * [`twilio`]: Twilio Media Streams, which Tandem speaks to a bot as if it were Twilio, and the bot's mirror.
//!
//! No sockets, no clock, no randomness: keys and masks are passed in, buffers belong to the caller. Audio passes without
//! allocation; text events, a few a second at most, may allocate.

pub mod agent;
pub mod audiosocket;
pub mod grpc;
pub mod link;
pub mod provider;
pub mod twilio;
pub mod websocket;

/// How an agent that is reached over WebSocket wants to be spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Tandem's own: binary L16 little-endian at 16 kHz and JSON text events ([`agent`]).
    Pcm,
    /// Twilio Media Streams: base64 mu-law at 8 kHz inside JSON text ([`twilio`]).
    Twilio,
}

impl Dialect {
    /// The rate of the audio on the wire, in samples a second.
    pub const fn sample_rate_hz(self) -> u32 {
        match self {
            Dialect::Pcm => agent::SAMPLE_RATE_HZ,
            Dialect::Twilio => twilio::SAMPLE_RATE_HZ,
        }
    }
}
