//! tandem-bench: the load generator. It sizes a host, measures at the wire, and refuses to lie.
//!
//! ```text
//!   main ─▶ calls ──▶ caller (SIP, tandem-sip) ─────────────────────────────────────▶ control plane
//!        │    │  └──▶ generator ─▶ stream ─▶ marker, sequence, schedule ─ ring ─────▶ media engine
//!        │    ├─────▶ agent (--agent): what the calls talk to, over a link or WebSockets ◀─ media engine
//!        │    └─────▶ observe: host, bare timer; scrape: the engine's own figures
//!        ├▶ provider ─▶ webhook, media socket; its own generator ─▶ stream … ───────▶ control plane, media engine
//!        ├▶ bridge ─▶ generator …; the engine's gRPC, or rtpengine's ng protocol
//!        ├▶ floor ──▶ generator … ─────────────────────────────────────────────────▶ a bare echo (child process)
//!        ├▶ setup, idle ──▶ caller; processes: the target's, by pid
//!        ├▶ codec, compare
//!        └▶ verdict (was the generator the bottleneck?) ─▶ report (JSON), table (people)
//! ```
//!
//! * [`calls`], [`provider`], [`bridge`], [`floor`], [`setup`], [`idle`], [`codec`], [`compare`]: the commands
//! * [`plan`], [`progress`], [`report`], [`table`], [`verdict`]: what is asked for, and what is said
//! * [`caller`]: SIP user agent on one socket; [`generator`]: media of all calls on one pinned thread
//! * [`agent`]: an agent that says back what it hears
//! * [`stream`], [`marker`], [`sequence`], [`schedule`], [`emodel`], [`distribution`]: one call's account, without I/O
//! * [`observe`], [`timer`], [`scrape`], [`processes`]: what is watched meanwhile
//! * [`ring`], [`host`], [`clock`]: the kernel

pub mod agent;
pub mod bridge;
pub mod caller;
pub mod calls;
pub mod clock;
pub mod codec;
pub mod compare;
pub mod course;
pub mod distribution;
pub mod emodel;
pub mod floor;
pub mod generator;
pub mod host;
pub mod idle;
pub mod marker;
pub mod observe;
pub mod plan;
pub mod processes;
pub mod progress;
pub mod protection;
pub mod provider;
pub mod report;
pub mod ring;
pub mod schedule;
pub mod scrape;
pub mod sequence;
pub mod setup;
pub mod stream;
pub mod table;
pub mod timer;
pub mod verdict;
