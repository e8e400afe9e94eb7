//! The built-in voice agent: speech-to-text, language model, text-to-speech, turn-taking.
//!
//! It is a WebSocket server. A media engine dials it once a call and speaks the `pcm` agent protocol: caller
//! audio in, agent audio out, marks that say what the caller has heard.

pub mod config;
pub mod server;

pub use config::Config;
pub use server::{RunError, Server};

/// Runs the agent until `shutdown` resolves: binds the listener, then serves conversations. Conversations that are
/// alive at shutdown are ended.
///
/// # Errors
/// The listener cannot be bound.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    Server::bind(config).await?.serve(shutdown).await
}
