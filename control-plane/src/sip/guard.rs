//! The guard of sources, shared by those who ask it (the shell) and those who tell it (admission, the registrar).

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tandem_sip::Flow;

use crate::trunk::Trunks;
use crate::trunk::guard::{Failure, GuardCounters, GuardSettings, SourceGuard, Verdict};

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SharedGuard(Arc<Mutex<SourceGuard>>);

impl SharedGuard {
    /// A guard that knows these trunks and phones.
    pub fn new(settings: GuardSettings, trunks: Trunks) -> Self {
        Self(Arc::new(Mutex::new(SourceGuard::new(settings, trunks))))
    }

    /// May the endpoint see these bytes? What there is to say about those that it may not is logged.
    pub fn lets_in(&self, bytes: &[u8], flow: Flow, now: Instant) -> bool {
        let mut guard = self.lock();
        let verdict = guard.check(bytes, flow, now);
        let reports: Vec<_> = std::iter::from_fn(|| guard.poll_report()).collect();
        drop(guard);
        for report in reports {
            let (source, reason, dropped) = (report.source, report.why.word(), report.dropped);
            tracing::warn!(step = "source", %source, reason, dropped, "requests dropped in silence");
        }
        verdict == Verdict::Pass
    }

    /// A call or a registration from there was admitted.
    pub fn admitted(&self, source: IpAddr, now: Instant) {
        self.lock().admitted(source, now);
    }

    /// A request from there was refused.
    pub fn refused(&self, source: IpAddr, failure: Failure, now: Instant) {
        self.lock().refused(source, failure, now);
    }

    /// What was counted.
    pub fn counters(&self) -> GuardCounters {
        *self.lock().counters()
    }

    /// Sources that are remembered: good ones and strangers.
    pub fn sources(&self) -> (usize, usize) {
        self.lock().sources()
    }

    fn lock(&self) -> MutexGuard<'_, SourceGuard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for SharedGuard {
    fn default() -> Self {
        Self::new(GuardSettings::default(), Trunks::default())
    }
}
