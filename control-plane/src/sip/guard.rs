//! The guard of sources, shared by those who ask it (the shell) and those who tell it (admission, the registrar).

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tandem_sip::endpoint::Knock;

use crate::trunk::Trunks;
use crate::trunk::guard::{Failure, GuardCounters, GuardSettings, Source, SourceGuard, Verdict};

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SharedGuard(Arc<Mutex<SourceGuard>>);

impl SharedGuard {
    /// A guard that knows these trunks and phones.
    pub fn new(settings: GuardSettings, trunks: Trunks) -> Self {
        Self(Arc::new(Mutex::new(SourceGuard::new(settings, trunks))))
    }

    /// May anybody read these bytes? What there is to say about those that are dropped is logged.
    pub fn may_read(&self, bytes: &[u8], source: Source<'_>, now: Instant) -> bool {
        self.ask(|guard| guard.check_source(bytes, source, now))
    }

    /// May the endpoint handle what nobody waits for?
    pub fn lets_in(&self, knock: &Knock<'_>, source: Source<'_>, now: Instant) -> bool {
        self.ask(|guard| guard.check(knock, source, now))
    }

    fn ask(&self, question: impl FnOnce(&mut SourceGuard) -> Verdict) -> bool {
        let mut guard = self.lock();
        let verdict = question(&mut guard);
        let reports: Vec<_> = std::iter::from_fn(|| guard.poll_report()).collect();
        drop(guard);
        for report in reports {
            let (source, reason, dropped) = (report.source, report.why.word(), report.dropped);
            tracing::warn!(step = "source", %source, reason, dropped, "requests dropped in silence");
        }
        verdict == Verdict::Pass
    }

    /// A trunk is called at this address.
    pub fn resolved(&self, trunk: &str, ip: IpAddr, now: Instant) {
        self.lock().resolved(trunk, ip, now);
    }

    /// A call or a registration from there was admitted.
    pub fn admitted(&self, source: IpAddr, now: Instant) {
        self.lock().admitted(source, now);
    }

    /// A request from there was refused.
    pub fn refused(&self, source: Source<'_>, failure: Failure, now: Instant) {
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
