//! Why `tandem up` could not do its work. Each text says what to do about it.

use std::io;
use std::path::PathBuf;

use super::spec::Listener;
use crate::config::ConfigError;

/// Why `tandem up` could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address that is none.
    #[error("{origin}: \"{value}\" is not an address such as 127.0.0.1:7070")]
    Address {
        /// Flag, variable or file.
        origin: String,
        /// As written.
        value: String,
    },
    /// `--demo` with a listener that is reachable from outside.
    #[error(
        "--demo opens a well-known API key, so every listener must be on loopback; {listener} is not. \
         Use 127.0.0.1, or leave --demo out"
    )]
    NotLoopback {
        /// Which.
        listener: String,
    },
    /// The state folder cannot be used.
    #[error("cannot use the state folder {path}: {source}; choose another with TANDEM_STATE_DIR", path = path.display())]
    Folder {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A second supervisor.
    #[error(
        "another `tandem up` is in charge of {path}; end it first, or give this one a folder and ports of its own \
         (TANDEM_STATE_DIR, TANDEM_HTTP_LISTEN, …)",
        path = path.display()
    )]
    InCharge {
        /// Its state folder.
        path: PathBuf,
    },
    /// A secret can neither be read nor made.
    #[error("cannot read or make {file} in the state folder: {source}")]
    Secret {
        /// File in the state folder.
        file: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// /proc/self/exe cannot be read.
    #[error("cannot find my own program: {0}")]
    OwnProgram(io::Error),
    /// Not built, or moved away from `tandem`.
    #[error("{program} is missing: build it with `cargo build -p media-engine`, or put it beside tandem", program = program.display())]
    NoEngine {
        /// Where it was looked for.
        program: PathBuf,
    },
    /// A binary that cannot be looked at.
    #[error("{name}: cannot read {program}: {source}", program = program.display())]
    Program {
        /// Child.
        name: &'static str,
        /// Its binary.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A child that cannot be started.
    #[error("{name}: cannot start {program}: {source}", program = program.display())]
    Start {
        /// Child.
        name: &'static str,
        /// Its binary.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A port that is taken, or an address that is not ours.
    #[error(
        "{name} cannot listen on {transport}:{address}: {source}; set {setting} to another address, or end the \
         program that uses this one",
        transport = if listener.udp { "udp" } else { "tcp" },
        address = listener.address,
        setting = listener.setting
    )]
    Listener {
        /// Child.
        name: &'static str,
        /// What it wanted.
        listener: Listener,
        /// What the system said.
        source: io::Error,
    },
    /// A child that does not come up.
    #[error("{name} does not come up: {how}; its log is {log}{tail}", log = log.display())]
    NeverReady {
        /// Child.
        name: &'static str,
        /// Deaths or time.
        how: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Signals cannot be waited for.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
}
