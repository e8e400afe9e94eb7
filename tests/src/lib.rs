//! The vocabulary of tests that involve all planes.
//!
//! ```text
//!   live/       real programs, real kernel, real peers          scenarios/   virtual time, one process
//!     stack     `tandem up` on ports and a folder of its own
//!     sipp, baresip, jssip, linphone, pjsua   callers of another family        bot, pipecat   who is called: a WebSocket agent
//!     provider  telephony providers: their APIs, webhooks and media sockets
//!     kamailio, dns, lossy     between us and them               scanner      those whom nobody has asked
//!     caller (peer and media)  a caller written by hand
//!     sound     is what was heard what was said?
//! ```
//!
//! A live test takes free ports and a temporary folder, so it never meets a `make run` on the same machine. It runs
//! alone (see .config/nextest.toml), because it measures real time.

pub mod baresip;
pub mod bot;
pub mod browser;
pub mod caller;
pub mod certificates;
pub mod dns;
pub mod jssip;
pub mod kamailio;
pub mod linphone;
pub mod lossy;
pub mod media;
pub mod namespace;
pub mod network;
pub mod peer;
pub mod pipecat;
pub mod pjsua;
pub mod planes;
pub mod provider;
pub mod redis;
pub mod scanner;
pub mod sipp;
pub mod sound;
pub mod stack;
pub mod world;

use std::time::{Duration, Instant};

/// Looks again and again until something is there; fails with what was waited for.
pub fn eventually<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        anyhow::ensure!(began.elapsed() < within, "not within {} s: {what}", within.as_secs_f32());
        std::thread::sleep(Duration::from_millis(20));
    }
}
