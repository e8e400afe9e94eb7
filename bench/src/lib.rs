//! tandem-bench: the load generator. It sizes a host, measures at the wire, and refuses to lie.
//!
//! [`stream`], [`marker`], [`sequence`], [`schedule`], [`emodel`], [`distribution`]: one call's account, without I/O.
//! [`ring`], [`host`], [`clock`]: the kernel.

pub mod clock;
pub mod distribution;
pub mod emodel;
pub mod host;
pub mod marker;
pub mod ring;
pub mod schedule;
pub mod sequence;
pub mod stream;
