//! The whole control plane in this process, on ports of the system's choice: real SIP, HTTP and gRPC, a real phone,
//! and an engine that only says it carries media.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod api;
mod calls;
mod cli;
mod doors;
mod engine;
mod joins;
mod leases;
mod lifecycle;
mod phones;
mod placing;
mod stage;
mod telephony;
mod whatsapp;
mod wire;
