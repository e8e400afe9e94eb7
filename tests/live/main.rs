//! Live calls: real programs, the real kernel, real peers, real time. `make live` runs them.

mod agents;
mod demo;
mod kamailio;
mod many_calls;
mod refusals;
mod restart;
mod sip_dialog;
mod sip_methods;
mod softphone;
mod websocket;
