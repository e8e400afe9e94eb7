//! Live calls: real programs, the real kernel, real peers, real time. `make live` runs them.

mod agents;
mod browser;
mod demo;
mod guests;
mod kamailio;
mod many_calls;
mod pipecat;
mod providers;
mod refusals;
mod restart;
mod scanners;
mod sip_dialog;
mod sip_methods;
mod sip_outbound;
mod sip_register;
mod sip_timer;
mod sip_tls;
mod sip_transfer;
mod sip_trunk;
mod softphone;
mod srtp;
mod websocket;
