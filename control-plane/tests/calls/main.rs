//! The life of calls in virtual time: a caller's SIP endpoint, ours, the core of call handling, and an engine and a
//! store that do as the test says. No socket, no sleep.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod answer;
mod bed;
mod early;
mod ending;
mod engines;
mod guest;
mod hold;
mod joins;
mod media;
mod place;
mod providers;
mod refusal;
mod scanners;
mod storm;
mod takeover;
mod transfer;
mod trunks;
