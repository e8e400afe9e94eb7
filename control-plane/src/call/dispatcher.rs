//! Which queued call may leave next. Sans-IO: `now` comes in, call ids go out.
//!
//! ```text
//!   push ──▶ lanes of a trunk, one for each (bulk, from-number)       ──poll──▶ a call that may dial now
//!             ├─ bulk 7, +4930111   ▢▢▢▢▢▢▢▢        turn by turn:               │
//!             ├─ bulk 7, +4930222   ▢▢▢▢▢            no lane waits for another   ▼
//!             └─ alone,  +4930111   ▢                                         release, when it is over
//! ```
//!
//! A call leaves when its tenant, its trunk and its from-number all have room: calls at once, and calls a second (one call each
//! 1/n s, without bursts: carriers count over short windows). Lanes take turns, so that a bulk of ten thousand does not
//! hold up the one call that a person waits for; within a lane the order is that of the queue.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

/// Calls that wait, of all tenants: some megabytes, and an hour of a busy trunk. Full: a new call is refused.
pub const QUEUED_MAX: usize = 20_000;
/// Of these, of one tenant: nobody can fill the queue for all. Full: a new call is refused.
pub const QUEUED_OF_TENANT_MAX: usize = 10_000;

/// What may leave a trunk, or a from-number. `None`: no limit of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    /// Calls a second.
    pub calls_per_second: Option<f64>,
    /// Calls at once, from INVITE to BYE.
    pub calls_max: Option<u32>,
}

/// A call that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Queued {
    /// Which.
    pub call_id: Uuid,
    /// Whose.
    pub tenant_id: Arc<str>,
    /// Over which trunk.
    pub trunk: Arc<str>,
    /// Of the trunk.
    pub trunk_pace: Pace,
    /// From which number.
    pub from: Arc<str>,
    /// Of each number of the trunk.
    pub number_pace: Pace,
    /// Of which bulk.
    pub bulk: Option<Uuid>,
}

/// The queue holds as many calls as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueFull {
    /// Of everybody.
    #[error("the queue is full: {QUEUED_MAX} calls wait already")]
    All,
    /// Of this tenant.
    #[error("the queue is full: {QUEUED_OF_TENANT_MAX} calls of this tenant wait already")]
    Tenant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct LaneKey {
    tenant_id: Arc<str>,
    bulk: Option<Uuid>,
    trunk: Arc<str>,
    from: Arc<str>,
}

/// One trunk, or one number of it.
#[derive(Debug, Default)]
struct Gate {
    active: u32,
    /// When the next call may leave, by the rate.
    next: Option<Instant>,
}

impl Gate {
    fn has_room(&self, pace: Pace) -> bool {
        pace.calls_max.is_none_or(|max| self.active < max)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    fn pass(&mut self, pace: Pace, now: Instant) {
        self.active += 1;
        self.next = pace.calls_per_second.filter(|rate| *rate > 0.0).map(|rate| {
            // From when it was due, not from when it was noticed: lateness of the clock costs no calls.
            let from =
                self.next.filter(|next| now.saturating_duration_since(*next) < LATE_MAX).unwrap_or(now);
            from + Duration::from_secs_f64((1.0 / rate).min(INTERVAL_MAX.as_secs_f64()))
        });
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.active == 0 && self.is_due(now)
    }
}

/// What the clock of a busy node may be late without costing calls.
const LATE_MAX: Duration = Duration::from_millis(50);
/// The slowest rate there is: one call an hour.
const INTERVAL_MAX: Duration = Duration::from_secs(3_600);

/// See the module.
#[derive(Debug, Default)]
pub struct Dispatcher {
    lanes: HashMap<LaneKey, VecDeque<Queued>>,
    /// Whose turn it is.
    turns: VecDeque<LaneKey>,
    trunks: HashMap<Arc<str>, Gate>,
    numbers: HashMap<(Arc<str>, Arc<str>), Gate>,
    /// Calls that have left and are not over: their trunk and number.
    active: HashMap<Uuid, (Arc<str>, Arc<str>)>,
    waiting: HashMap<Uuid, LaneKey>,
    of_tenant: BTreeMap<Arc<str>, usize>,
}

impl Dispatcher {
    /// Calls that wait.
    pub fn queued(&self) -> usize {
        self.waiting.len()
    }

    /// Is there room for so many more of this tenant?
    pub fn check(&self, tenant_id: &str, count: usize) -> Result<(), QueueFull> {
        if self.waiting.len() + count > QUEUED_MAX {
            return Err(QueueFull::All);
        }
        let own = self.of_tenant.get(tenant_id).copied().unwrap_or_default();
        if own + count > QUEUED_OF_TENANT_MAX { Err(QueueFull::Tenant) } else { Ok(()) }
    }

    /// A call waits for its turn.
    pub fn push(&mut self, queued: Queued) -> Result<(), QueueFull> {
        self.check(&queued.tenant_id, 1)?;
        let key = LaneKey {
            tenant_id: queued.tenant_id.clone(),
            bulk: queued.bulk,
            trunk: queued.trunk.clone(),
            from: queued.from.clone(),
        };
        *self.of_tenant.entry(queued.tenant_id.clone()).or_default() += 1;
        self.waiting.insert(queued.call_id, key.clone());
        let lane = self.lanes.entry(key.clone()).or_default();
        if lane.is_empty() {
            self.turns.push_back(key);
        }
        lane.push_back(queued);
        Ok(())
    }

    /// A call does not want to leave any more, or is over.
    pub fn remove(&mut self, call_id: Uuid, now: Instant) {
        if let Some(key) = self.waiting.remove(&call_id) {
            self.forget_waiting(&key.tenant_id);
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.retain(|queued| queued.call_id != call_id);
                if lane.is_empty() {
                    self.lanes.remove(&key);
                    self.turns.retain(|turn| *turn != key);
                }
            }
        }
        if let Some((trunk, from)) = self.active.remove(&call_id) {
            let gates = [self.trunks.get_mut(&trunk), self.numbers.get_mut(&(trunk.clone(), from.clone()))];
            for gate in gates.into_iter().flatten() {
                gate.active = gate.active.saturating_sub(1);
            }
            // A gate that limits nothing now is as good as a new one.
            self.trunks.retain(|name, gate| *name != trunk || !gate.is_idle(now));
            let number = (trunk, from);
            if self.numbers.get(&number).is_some_and(|gate| gate.is_idle(now)) {
                self.numbers.remove(&number);
            }
        }
    }

    fn forget_waiting(&mut self, tenant_id: &Arc<str>) {
        if let Some(count) = self.of_tenant.get_mut(tenant_id) {
            *count -= 1;
            if *count == 0 {
                self.of_tenant.remove(tenant_id);
            }
        }
    }

    /// The next call that may dial now, of the tenants that have room.
    pub fn poll(&mut self, now: Instant, has_room: impl Fn(&str) -> bool) -> Option<Uuid> {
        for _ in 0..self.turns.len() {
            let key = self.turns.pop_front()?;
            let Some(head) = self.lanes.get(&key).and_then(VecDeque::front) else { continue };
            let (trunk, number) = self.gates(head);
            let may_leave = has_room(&head.tenant_id)
                && trunk.has_room(head.trunk_pace)
                && number.has_room(head.number_pace)
                && trunk.is_due(now)
                && number.is_due(now);
            if !may_leave {
                self.turns.push_back(key);
                continue;
            }
            return self.leave(key, now);
        }
        None
    }

    fn leave(&mut self, key: LaneKey, now: Instant) -> Option<Uuid> {
        let lane = self.lanes.get_mut(&key)?;
        let queued = lane.pop_front()?;
        if lane.is_empty() {
            self.lanes.remove(&key);
        } else {
            self.turns.push_back(key);
        }
        self.waiting.remove(&queued.call_id);
        self.forget_waiting(&queued.tenant_id);
        let Queued { call_id, trunk, from, trunk_pace, number_pace, .. } = queued;
        self.trunks.entry(trunk.clone()).or_default().pass(trunk_pace, now);
        self.numbers.entry((trunk.clone(), from.clone())).or_default().pass(number_pace, now);
        self.active.insert(call_id, (trunk, from));
        Some(call_id)
    }

    /// When [`Dispatcher::poll`] may have another one, if no call ends before. A call that waits for one to end has no
    /// time.
    pub fn poll_timeout(&self, tenant_has_room: impl Fn(&str) -> bool) -> Option<Instant> {
        let heads = self.turns.iter().filter_map(|key| self.lanes.get(key)?.front());
        let times = heads.filter_map(|head| {
            let (trunk, number) = self.gates(head);
            let has_room = tenant_has_room(&head.tenant_id)
                && trunk.has_room(head.trunk_pace)
                && number.has_room(head.number_pace);
            // Both open by now: `poll` has been asked since, or will be at once.
            if has_room { trunk.next.max(number.next) } else { None }
        });
        times.min()
    }

    fn gates(&self, queued: &Queued) -> (&Gate, &Gate) {
        const OPEN: &Gate = &Gate { active: 0, next: None };
        let trunk = self.trunks.get(&queued.trunk).unwrap_or(OPEN);
        let number = self.numbers.get(&(queued.trunk.clone(), queued.from.clone())).unwrap_or(OPEN);
        (trunk, number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        dispatcher: Dispatcher,
        now: Instant,
        next: u128,
        /// Tenants that have as many calls as they may.
        full: Vec<&'static str>,
    }

    impl Bench {
        fn new() -> Self {
            Self { dispatcher: Dispatcher::default(), now: Instant::now(), next: 0, full: Vec::new() }
        }

        fn queue(&mut self, count: usize, change: impl Fn(&mut Queued)) -> Vec<Uuid> {
            let ids: Vec<Uuid> = (0..count).map(|_| self.one(&change)).collect();
            ids
        }

        fn one(&mut self, change: &impl Fn(&mut Queued)) -> Uuid {
            self.next += 1;
            let mut queued = Queued {
                call_id: Uuid::from_u128(self.next),
                tenant_id: "t1".into(),
                trunk: "carrier".into(),
                trunk_pace: Pace::default(),
                from: "+1".into(),
                number_pace: Pace::default(),
                bulk: None,
            };
            change(&mut queued);
            self.dispatcher.push(queued).unwrap();
            Uuid::from_u128(self.next)
        }

        /// What leaves within a time, each with when it did.
        fn run(&mut self, time: Duration) -> Vec<(Uuid, Duration)> {
            let (from, until) = (self.now, self.now + time);
            let mut left = Vec::new();
            loop {
                while let Some(id) = self.dispatcher.poll(self.now, |tenant| !self.full.contains(&tenant)) {
                    left.push((id, self.now - from));
                }
                match self
                    .dispatcher
                    .poll_timeout(|tenant| !self.full.contains(&tenant))
                    .filter(|at| *at <= until)
                {
                    Some(at) => self.now = at,
                    None => break,
                }
            }
            self.now = until;
            left
        }
    }

    fn pace(calls_per_second: f64, calls_max: u32) -> Pace {
        let calls_per_second = (calls_per_second > 0.0).then_some(calls_per_second);
        Pace { calls_per_second, calls_max: (calls_max > 0).then_some(calls_max) }
    }

    #[test]
    fn trunk_of_ten_calls_a_second_places_one_each_100_ms() {
        let mut bench = Bench::new();
        bench.queue(30, |queued| queued.trunk_pace = pace(10.0, 0));
        let left = bench.run(Duration::from_millis(999));
        assert_eq!(left.len(), 10);
        assert!(left.windows(2).all(|pair| pair[1].1 - pair[0].1 == Duration::from_millis(100)), "{left:?}");
    }

    #[test]
    fn calls_at_once_are_bounded_and_each_end_lets_one_more_leave() {
        let mut bench = Bench::new();
        bench.queue(5, |queued| queued.trunk_pace = pace(0.0, 2));
        let left = bench.run(Duration::from_secs(10));
        assert_eq!(left.len(), 2);
        assert_eq!(bench.dispatcher.poll_timeout(|_| true), None);
        bench.dispatcher.remove(left[0].0, bench.now);
        assert_eq!(bench.run(Duration::from_secs(1)).len(), 1);
        assert_eq!(bench.dispatcher.queued(), 2);
    }

    #[test]
    fn number_with_its_own_limit_does_not_hold_up_the_others() {
        let mut bench = Bench::new();
        let slow = bench.queue(10, |queued| queued.number_pace = pace(0.0, 1));
        let other = bench.queue(3, |queued| queued.from = "+2".into());
        let left: Vec<Uuid> = bench.run(Duration::from_secs(1)).into_iter().map(|(id, _)| id).collect();
        assert_eq!(left.len(), 4);
        assert!(left.contains(&slow[0]) && other.iter().all(|id| left.contains(id)));
    }

    #[test]
    fn calls_of_a_tenant_without_room_wait_and_hold_up_nobody_else() {
        let mut bench = Bench::new();
        bench.queue(3, |_| {});
        let others = bench.queue(2, |queued| queued.tenant_id = "t2".into());
        bench.full = vec!["t1"];
        let left: Vec<Uuid> = bench.run(Duration::from_secs(1)).into_iter().map(|(id, _)| id).collect();
        assert_eq!(left, others);
        bench.full.clear();
        assert_eq!(bench.run(Duration::from_secs(1)).len(), 3);
    }

    #[test]
    fn one_call_does_not_wait_behind_a_bulk() {
        let mut bench = Bench::new();
        bench.queue(1_000, |queued| {
            queued.bulk = Some(Uuid::from_u128(7));
            queued.trunk_pace = pace(1.0, 0);
        });
        bench.run(Duration::from_millis(500));
        let alone = bench.queue(1, |queued| queued.trunk_pace = pace(1.0, 0))[0];
        let left = bench.run(Duration::from_secs(2));
        assert!(left.iter().any(|(id, _)| *id == alone), "{left:?}");
    }

    #[test]
    fn call_that_is_taken_out_never_leaves() {
        let mut bench = Bench::new();
        let ids = bench.queue(3, |_| {});
        bench.dispatcher.remove(ids[1], bench.now);
        let left: Vec<Uuid> = bench.run(Duration::from_secs(1)).into_iter().map(|(id, _)| id).collect();
        assert_eq!(left, [ids[0], ids[2]]);
        assert_eq!(bench.dispatcher.queued(), 0);
    }

    #[test]
    fn full_queue_refuses_and_says_whose() {
        let mut bench = Bench::new();
        bench.queue(QUEUED_OF_TENANT_MAX, |_| {});
        assert_eq!(bench.dispatcher.check("t1", 1), Err(QueueFull::Tenant));
        assert_eq!(bench.dispatcher.check("t2", 1), Ok(()));
        bench.queue(QUEUED_MAX - QUEUED_OF_TENANT_MAX, |queued| queued.tenant_id = "t2".into());
        assert_eq!(bench.dispatcher.check("t3", 1), Err(QueueFull::All));
    }

    #[test]
    fn nothing_is_left_of_calls_that_are_over() {
        let mut bench = Bench::new();
        bench.queue(50, |queued| queued.trunk_pace = pace(100.0, 0));
        let left = bench.run(Duration::from_secs(2));
        assert_eq!(left.len(), 50);
        for (id, _) in left {
            bench.dispatcher.remove(id, bench.now);
        }
        let Dispatcher { lanes, turns, trunks, numbers, active, waiting, of_tenant } = bench.dispatcher;
        assert!(lanes.is_empty() && turns.is_empty() && active.is_empty() && waiting.is_empty());
        assert!(trunks.is_empty() && numbers.is_empty() && of_tenant.is_empty());
    }
}
