//! Registration, in both directions.
//!
//! ```text
//!   phones ──REGISTER──▶ auth.rs ──▶ registrar.rs ──▶ binding.rs ──▶ store.rs ◀── a call to a user
//!   trunks ◀──REGISTER── registrant.rs     one a trunk across nodes, by a lease of store/contexts.rs
//!          ◀──OPTIONS─── trunk/health.rs   is it there?
//!          ◀──────────── check.rs          `tandem trunk check`
//!                driver.rs runs them all; desk.rs brings it what is its own; board.rs shows how all stand
//! ```
//!
//! Registrar, registrant and health are sans-IO. Digest of our own requests, and the next address of a trunk that does not answer, are below them.

pub mod auth;
pub mod binding;
pub mod board;
pub mod check;
pub mod desk;
pub mod driver;
pub mod jitter;
pub mod registrant;
pub mod registrar;
pub mod store;

#[cfg(test)]
mod tests;
