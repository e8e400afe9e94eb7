//! The life of calls in virtual time: a caller's SIP endpoint, ours, the core of call handling, and an engine and a
//! store that do as the test says. No socket, no sleep.

mod answer;
mod bed;
mod ending;
mod engines;
mod hold;
mod refusal;
