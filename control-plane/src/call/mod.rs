//! The life of a call.

pub mod agent;
pub mod record;
