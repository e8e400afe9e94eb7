//! Registration, in both directions.
//!
//! ```text
//!   phones ──REGISTER──▶ registrar.rs ──▶ binding.rs ──▶ store.rs ◀── a call to a user
//!   trunks ◀──REGISTER── registrant.rs     one a trunk across nodes, by a lease of store/contexts.rs
//! ```
//!
//! Both are sans-IO. Digest of our own requests, and the next address of a trunk that does not answer, are below them.

pub mod binding;
pub mod jitter;
pub mod registrant;
pub mod registrar;
pub mod store;
