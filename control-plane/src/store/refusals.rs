//! Calls that were refused before they had a record: the newest, in memory, so that a stranger cannot fill a disk.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandem_api::v1::RefusedCall;

use crate::call::action::Refusal;

/// Refusals that are kept, at some 2 KiB each. Full: the oldest goes.
pub const REFUSALS_MAX: usize = 1_000;

/// The newest refusals. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<Mutex<VecDeque<RefusedCall>>>);

impl Refusals {
    /// Keeps one.
    pub fn put(&self, refusal: Refusal, at_ms: i64) {
        let refused = RefusedCall {
            call_id: refusal.call_id.to_string(),
            at_ms,
            tenant_id: refusal.tenant_id.as_deref().unwrap_or_default().to_owned(),
            trunk: refusal.trunk.as_deref().unwrap_or_default().to_owned(),
            source: refusal.source.to_string(),
            from: refusal.from,
            to: refusal.to,
            ending: Some(refusal.ending.to_api()),
            decisions: refusal.trace,
        };
        let mut kept = self.lock();
        if kept.len() >= REFUSALS_MAX {
            kept.pop_front();
        }
        kept.push_back(refused);
    }

    /// The newest, of this tenant or (`None`) of everybody and nobody.
    pub fn list(&self, tenant_id: Option<&str>, limit: usize) -> Vec<RefusedCall> {
        let kept = self.lock();
        kept.iter().rev().filter(|refused| is_of(refused, tenant_id)).take(limit).cloned().collect()
    }

    /// The refusal of this call, as above.
    pub fn find(&self, tenant_id: Option<&str>, call_id: &str) -> Option<RefusedCall> {
        let kept = self.lock();
        let mut own = kept.iter().rev().filter(|refused| is_of(refused, tenant_id));
        own.find(|refused| refused.call_id == call_id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<RefusedCall>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of(refused: &RefusedCall, tenant_id: Option<&str>) -> bool {
    tenant_id.is_none_or(|tenant_id| refused.tenant_id == tenant_id)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::call::ending::{Cause, Ending};

    fn refusal(number: u128, tenant: Option<&str>) -> Refusal {
        Refusal {
            call_id: Uuid::from_u128(number),
            tenant_id: tenant.map(Arc::from),
            trunk: None,
            source: "198.51.100.1:5060".parse().unwrap(),
            from: "sip:anna@x".into(),
            to: "sip:desk@tandem".into(),
            step: Default::default(),
            trace: vec![Default::default()],
            is_recorded: false,
            ending: Ending::new(Cause::MissingKey),
        }
    }

    #[test]
    fn newest_are_kept_and_found_and_a_tenant_sees_its_own() {
        let refusals = Refusals::default();
        for number in 0..1_500 {
            refusals.put(refusal(number, (number % 2 == 0).then_some("t1")), 7);
        }
        let all = refusals.list(None, usize::MAX);
        assert_eq!(all.len(), REFUSALS_MAX);
        assert_eq!(all[0].call_id, Uuid::from_u128(1_499).to_string());
        assert_eq!(refusals.list(Some("t1"), 3).len(), 3);
        let strangers = Uuid::from_u128(1_499).to_string();
        assert!(refusals.find(None, &strangers).is_some() && refusals.find(Some("t1"), &strangers).is_none());
        assert!(refusals.find(None, &Uuid::from_u128(1).to_string()).is_none(), "forgotten");
    }
}
