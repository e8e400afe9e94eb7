//! Calls that were asked for together: how far they are.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tandem_api::v1 as api;
use uuid::Uuid;

use super::state::State;

/// Calls of one bulk. More are refused: a request must fit a few megabytes.
pub const BULK_CALLS_MAX: usize = 1_000;
/// Bulks that are remembered, of all tenants; the oldest that is over goes first, then the oldest.
pub const BULKS_MAX: usize = 1_000;

/// One bulk.
#[derive(Debug)]
struct Bulk {
    tenant_id: Arc<str>,
    total: u32,
    queued: HashSet<Uuid>,
    active: HashSet<Uuid>,
    ended: BTreeMap<&'static str, u32>,
    created_ms: i64,
}

impl Bulk {
    fn is_over(&self) -> bool {
        self.queued.is_empty() && self.active.is_empty()
    }
}

/// All bulks of this node.
#[derive(Debug, Default)]
pub struct Bulks {
    bulks: HashMap<Uuid, Bulk>,
    /// Oldest first.
    order: VecDeque<Uuid>,
}

impl Bulks {
    /// A bulk of these calls, all of them queued.
    pub fn add(&mut self, bulk_id: Uuid, tenant_id: Arc<str>, calls: &[Uuid], created_ms: i64) {
        if self.order.len() >= BULKS_MAX {
            let over = self.order.iter().position(|id| self.bulks.get(id).is_none_or(Bulk::is_over));
            if let Some(gone) = self.order.remove(over.unwrap_or(0)) {
                self.bulks.remove(&gone);
            }
        }
        let total = u32::try_from(calls.len()).unwrap_or(u32::MAX);
        let queued = calls.iter().copied().collect();
        let bulk =
            Bulk { tenant_id, total, queued, active: HashSet::new(), ended: BTreeMap::new(), created_ms };
        self.bulks.insert(bulk_id, bulk);
        self.order.push_back(bulk_id);
    }

    /// A call of a bulk has moved on; `word` is that of its ending.
    pub fn handle_change(&mut self, bulk_id: Uuid, call_id: Uuid, to: State, word: Option<&'static str>) {
        let Some(bulk) = self.bulks.get_mut(&bulk_id) else { return };
        if to == State::Queued {
            return;
        }
        let was_known = bulk.queued.remove(&call_id) | bulk.active.contains(&call_id);
        if !to.is_terminal() {
            bulk.active.insert(call_id);
        } else if was_known {
            bulk.active.remove(&call_id);
            *bulk.ended.entry(word.unwrap_or("unknown")).or_default() += 1;
        }
    }

    /// How far it is, for its owner.
    pub fn get(&self, tenant_id: &str, bulk_id: Uuid) -> Option<api::BulkPhoneCall> {
        let bulk = self.bulks.get(&bulk_id).filter(|bulk| &*bulk.tenant_id == tenant_id)?;
        let count = |calls: &HashSet<Uuid>| u32::try_from(calls.len()).unwrap_or(u32::MAX);
        Some(api::BulkPhoneCall {
            bulk_id: bulk_id.to_string(),
            total: bulk.total,
            queued: count(&bulk.queued),
            active: count(&bulk.active),
            ended: bulk.ended.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect(),
            created_ms: bulk.created_ms,
        })
    }

    /// Its calls that still wait, in the order of their ids.
    pub fn queued(&self, tenant_id: &str, bulk_id: Uuid) -> Option<Vec<Uuid>> {
        let bulk = self.bulks.get(&bulk_id).filter(|bulk| &*bulk.tenant_id == tenant_id)?;
        let mut calls: Vec<Uuid> = bulk.queued.iter().copied().collect();
        calls.sort_unstable();
        Some(calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_adds_up_and_belongs_to_its_tenant() {
        let [bulk, a, b, c] = [9, 1, 2, 3].map(Uuid::from_u128);
        let mut bulks = Bulks::default();
        bulks.add(bulk, "t1".into(), &[a, b, c], 5);
        bulks.handle_change(bulk, a, State::Dialing, None);
        bulks.handle_change(bulk, b, State::Ending, Some("busy"));
        bulks.handle_change(bulk, b, State::Failed, Some("busy"));
        let told = bulks.get("t1", bulk).unwrap();
        assert_eq!((told.total, told.queued, told.active), (3, 1, 1));
        assert_eq!(told.ended, [("busy".to_owned(), 1)].into());
        assert_eq!(bulks.get("t2", bulk), None);
        assert_eq!(bulks.queued("t1", bulk).unwrap(), [c]);
    }

    #[test]
    fn table_stays_bounded_and_the_finished_go_first() {
        let mut bulks = Bulks::default();
        let call = Uuid::from_u128(1);
        for n in 0..=BULKS_MAX as u128 {
            bulks.add(Uuid::from_u128(n), "t1".into(), &[call], 0);
            if n == 3 {
                bulks.handle_change(Uuid::from_u128(n), call, State::Failed, Some("busy"));
            }
        }
        assert_eq!(bulks.bulks.len(), BULKS_MAX);
        assert!(bulks.get("t1", Uuid::from_u128(0)).is_some());
        assert!(bulks.get("t1", Uuid::from_u128(3)).is_none());
    }
}
