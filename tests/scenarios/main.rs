//! Whole calls in virtual time: both planes, a seeded network, no socket, no sleep. `make sim` runs them.

mod ending;
mod guest;
mod hold;
mod inbound;
mod joins;
mod outbound;
mod takeover;
