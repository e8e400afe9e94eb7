//! The built-in voice agent: speech-to-text → language model → text-to-speech, and who has the floor.
//!
//! A server of links, and of WebSockets on the same port. Each core of a media engine keeps one link, with all of its calls;
//! both carry the `pcm` agent protocol: caller audio in, agent audio out, marks that say what the caller has heard.
//!
//! ```text
//!   server ─▶ link, transport ─▶ session
//!             session ─▶ vad, turn            who speaks (sans-IO)
//!               │  ▲ ─▶ stt/                  what the caller says
//!               ▼  │ ─▶ pipeline ─▶ llm/ ─▶ sentence ─▶ tts/   what the agent says
//!             outbox  ─▶ ledger ─▶ record     what was said, as heard
//! ```
//!
//! Vendors are behind three traits: [`stt::SpeechToText`], [`llm::LanguageModel`], [`tts::TextToSpeech`]. Those that
//! run without a network are in the child process of [`local_voice`]. The default "language model" is a script.

pub mod agent;
pub mod config;
pub mod link;
pub mod llm;
pub mod local_voice;
pub mod outbox;
pub mod pipeline;
pub mod record;
pub mod sentence;
pub mod server;
pub mod session;
pub mod stt;
pub mod text;
pub mod transport;
pub mod tts;
pub mod turn;
pub mod vad;
pub mod waterfall;

pub use config::Config;
pub use server::{RunError, Server};

/// Runs the agent until `shutdown` resolves: binds the listener, loads the models, serves conversations. Conversations
/// that are alive at shutdown are ended.
///
/// # Errors
/// The listener cannot be bound, or the agent cannot be put together.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    Server::bind(config).await?.serve(shutdown).await
}
