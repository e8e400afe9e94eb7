//! The commands `twilio`, `vonage`, `exotel` and `audiosocket`: N calls over a provider's media, with the bench as the provider.
//!
//! ```text
//!   announce ─webhook, signed─▶ control plane ─document─▶ media URL, or UUID
//!   dial ─────TCP, upgrade────▶ engine
//!   generator: 20 ms of sound in the provider's messages ─▶ engine ─▶ agent ─▶ engine ─▶ marks, round trips
//! ```
//! With `--echo-peer` nothing is announced: given WebSocket servers are dialled as they are, to compare them.
//!
//! * [`announce`]: the webhook that a provider would send, and what the answer says
//! * [`dial`]: the connection
//! * [`wire`]: what is said on it, as octets; no socket and no clock
//! * [`generator`]: all calls on one pinned thread
//! * [`run`]: the command

pub mod announce;
pub mod dial;
pub mod generator;
pub mod run;
pub mod wire;

/// What carries a call's media.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Twilio Media Streams: Base64 µ-law in JSON.
    Twilio,
    /// Vonage's WebSocket: binary L16.
    Vonage,
    /// Exotel's AgentStream: Base64 L16 in JSON, 100 ms a message.
    Exotel,
    /// Asterisk's AudioSocket: L16 over TCP.
    AudioSocket,
}

impl Transport {
    /// The command.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Twilio => "twilio",
            Self::Vonage => "vonage",
            Self::Exotel => "exotel",
            Self::AudioSocket => "audiosocket",
        }
    }

    /// The provider in the webhook's path.
    pub const fn provider(self) -> &'static str {
        match self {
            Self::AudioSocket => "asterisk",
            other => other.name(),
        }
    }

    /// Frames of 20 ms in a message to the target.
    pub const fn frames_a_message(self) -> usize {
        match self {
            Self::Exotel => 5,
            _ => 1,
        }
    }
}
