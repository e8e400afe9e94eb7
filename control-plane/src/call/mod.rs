//! The life of a call.
//!
//! ```text
//!   Initializing ──▶ Ringing ──▶ Connected ⇄ OnHold ──▶ Ending ──▶ Ended | Failed
//! ```
//!
//! The core is sans-IO and deterministic; one tokio task, the [`driver`], performs what it asks:
//!
//! - [`registry`]: all calls, the door to the core
//! - [`machine`]: one call, event by event
//! - [`state`]: its states and timers; [`session`]: its commands to the engine; [`negotiation`]: its offer/answer
//! - [`admission`]: may this caller have this call?; [`agent`]: who answers
//! - [`strays`]: sessions that are still to be closed
//! - [`ending`]: why calls end, one table
//! - [`action`]: what the core wants done; [`record`]: what is remembered

pub mod action;
pub mod admission;
pub mod agent;
pub mod bulk;
pub mod dispatcher;
pub mod driver;
pub mod ending;
pub mod gate;
pub mod headers;
pub mod invite;
pub mod machine;
pub mod negotiation;
pub mod order;
pub mod outcome;
pub mod record;
pub mod registry;
pub mod session;
pub mod state;
pub mod strays;
