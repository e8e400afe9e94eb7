//! The control plane: it decides who a call belongs to, where its media goes and when it lives.
//!
//! ```text
//!            sip/ ──events──▶ ┌────────────┐ ──commands─▶ media/ ──gRPC──▶ media engines
//!   sockets, tandem-sip ◀──── │   call/    │ ◀──events─── media/
//!                     verbs   │ sans-IO    │
//!            http/ ─────────▶ │ core and   │ ──records──▶ store/ (SQLite, contexts)
//!   REST, gRPC, metrics       │ its driver │ ◀─lookups─── store/
//!                             └────────────┘
//!                     app.rs builds the parts and joins them by channels
//! ```
//!
//! - [`settings`] and [`config`]: flags, environment and tandem.toml become one checked struct.
//! - [`trunk`]: carriers, PBXs and phones, as tandem.toml names them.
//! - [`provider`]: telephony providers with webhooks and an API: Twilio, Vonage and others.
//! - [`cli`]: the verbs of the `tandem` program.
//! - [`up`]: the supervisor of everything on one machine.
//! - [`telemetry`]: logs, and what must not stand in them.

pub mod app;
pub mod call;
pub mod cli;
pub mod config;
pub mod http;
pub mod media;
pub mod metrics;
pub mod provider;
pub mod registration;
pub mod settings;
pub mod sip;
pub mod store;
pub mod telemetry;
pub mod trunk;
pub mod up;
