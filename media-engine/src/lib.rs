//! The media plane: one thread a core on io_uring carries every call's audio.
//!
//! ```text
//!   gRPC ─▶ control ─▶ mailbox ─▶ worker ─▶ session ─▶ leg::rtp ◀─▶ bridge ◀─▶ leg::agent
//!           (tokio)    (rtrb)     (pinned)   (sans-IO)                 └ playout
//!                                   │
//!                                  ring ─▶ kernel (io_uring, or epoll)
//! ```
//!
//! The way of one packet from a phone to an agent: the kernel puts the datagram into a lent buffer ([`ring`]); the turn
//! begins and `now` is read once ([`worker`]); [`session::Session::handle_datagram`] hands it to [`leg::rtp`], which
//! parses, checks the source, accounts and reorders; [`session::bridge`] decodes to the agent's rate; [`leg::agent`]
//! keeps it as a frame, and writes it into the socket's stage when the worker drains; one submit for the whole turn.
//! The way back waits in [`session::playout`] and leaves one frame a ptime, when the [`wheel`] says so.
//!
//! `session` and `leg` never import `ring`: they run in virtual time, on any system. The program is a thin shell around
//! [`Engine`]; tests and the bench start one in their own process:
//!
//! ```no_run
//! use media_engine::Engine;
//! use media_engine::config::{Config, PortRange};
//!
//! let engine = Engine::start(Config::for_tests(PortRange { min: 41_000, max: 41_999 }))?;
//! println!("commands at http://{}", engine.grpc_address());
//! engine.shutdown();
//! # Ok::<(), media_engine::StartError>(())
//! ```

pub mod config;
pub mod contract;
pub mod control;
pub mod engine;
pub mod http;
pub mod leg;
pub mod mailbox;
pub mod metrics;
pub mod ports;
pub mod recording;
pub mod ring;
pub mod session;
pub mod wheel;
pub mod worker;

pub use engine::{Engine, StartError};
