//! The context of a call: what a callback, a media socket or another control plane must find by the call's id, and
//! the claim by which a media socket takes a call over.
//!
//! ```text
//!   put(context, Some(claim)) ──▶ record ──get(call_id)───▶ as often as wanted, until finish + grace
//!                                 claim  ──take(claim)────▶ the record, at most once, within five minutes
//! ```
//!
//! *Claim once, remember long*: a claim is consumed by the first who presents it; the record lives until its call is
//! terminal and a grace period is over, for late callbacks, retries and reconnects.
//!
//! Beside them stand **leases**: of all the nodes that want a thing done, the one that holds its lease does it. A lease
//! that is not renewed ends by itself, so a node that dies leaves nothing locked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// How long a claim can be taken.
pub const CLAIM_TTL: Duration = Duration::from_secs(300);
/// How long the record of a finished call is still found.
pub const GRACE: Duration = Duration::from_secs(600);
/// How long a record lives whose call nobody finishes: longer than any call may last.
pub const RECORD_TTL: Duration = Duration::from_secs(2 * 86_400);
/// Records in the embedded store: live calls and those of the grace period, at some 500 octets each. Full: `put`
/// refuses.
pub const RECORDS_MAX: usize = 200_000;
/// Leases in the embedded store: one a trunk that registers. Full: `acquire` refuses.
pub const LEASES_MAX: usize = 10_000;

/// What must be found again by a call's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallContext {
    /// The call.
    pub call_id: Uuid,
    /// Whose it is.
    pub tenant_id: Arc<str>,
    /// Which assistant answers.
    pub assistant_id: Arc<str>,
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// Who calls.
    pub from: String,
    /// Who is called.
    pub to: String,
    /// Which engine carries its media; empty until one does.
    pub engine: String,
}

/// A random token that lets its bearer take a call over, once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim(pub Uuid);

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Claim(…)")
    }
}

/// Who holds a lease: a random value of one process's lifetime, so that a restarted node is somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub Uuid);

/// Why a context could not be kept or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// The embedded store holds as many records as it may.
    #[error("context store is full: {0} records")]
    Full(usize),
    /// The embedded store holds as many leases as it may.
    #[error("context store is full: {0} leases")]
    LeasesFull(usize),
    /// A store outside the process does not answer.
    #[error("context store does not answer: {0}")]
    Unreachable(String),
}

/// Where contexts are kept. Every implementation passes the tests at the end of this file.
pub trait ContextStore: Send + Sync {
    /// Keeps a record under its call's id, over one that is there, and with it a claim.
    fn put(
        &self,
        context: CallContext,
        claim: Option<Claim>,
    ) -> impl Future<Output = Result<(), ContextError>> + Send;

    /// The record, as often as wanted.
    fn get(&self, call_id: Uuid) -> impl Future<Output = Result<Option<CallContext>, ContextError>> + Send;

    /// Consumes a claim and gives its record; `None` to everybody but the first, and after [`CLAIM_TTL`].
    fn take(&self, claim: Claim) -> impl Future<Output = Result<Option<CallContext>, ContextError>> + Send;

    /// The call is terminal: the record goes after [`GRACE`], an untaken claim at once.
    fn finish(&self, call_id: Uuid) -> impl Future<Output = Result<(), ContextError>> + Send;

    /// Takes the lease of this name for `ttl` from now, if nobody else holds it; whoever holds it already holds it
    /// anew. `false`: it is another's.
    fn acquire(
        &self,
        name: &str,
        owner: Owner,
        ttl: Duration,
    ) -> impl Future<Output = Result<bool, ContextError>> + Send;

    /// Holds the lease for `ttl` from now. `false`: it has ended or is another's, and whoever asks must stop.
    fn renew(
        &self,
        name: &str,
        owner: Owner,
        ttl: Duration,
    ) -> impl Future<Output = Result<bool, ContextError>> + Send;

    /// Gives the lease back; one that is another's stays.
    fn release(&self, name: &str, owner: Owner) -> impl Future<Output = Result<(), ContextError>> + Send;
}

/// Contexts in the process: for one control plane with the embedded stores.
pub struct EmbeddedContexts {
    inner: Mutex<Inner>,
    now: Box<dyn Fn() -> Instant + Send + Sync>,
}

#[derive(Default)]
struct Inner {
    records: HashMap<Uuid, Record>,
    claims: HashMap<Claim, (Uuid, Instant)>,
    leases: HashMap<Box<str>, (Owner, Instant)>,
}

struct Record {
    context: CallContext,
    claim: Option<Claim>,
    until: Instant,
}

impl Inner {
    fn sweep(&mut self, now: Instant) {
        self.records.retain(|_, record| now < record.until);
        self.claims.retain(|_, (_, until)| now < *until);
    }
}

impl Default for EmbeddedContexts {
    fn default() -> Self {
        Self::with_clock(Instant::now)
    }
}

impl EmbeddedContexts {
    /// A store that asks this clock, for tests.
    pub fn with_clock(now: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self { inner: Mutex::default(), now: Box::new(now) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ContextStore for EmbeddedContexts {
    async fn put(&self, context: CallContext, claim: Option<Claim>) -> Result<(), ContextError> {
        let now = (self.now)();
        let mut inner = self.lock();
        let call_id = context.call_id;
        if inner.records.len() >= RECORDS_MAX && !inner.records.contains_key(&call_id) {
            // Expired records go when there is need: a look at each of them, once in RECORDS_MAX calls.
            inner.sweep(now);
            if inner.records.len() >= RECORDS_MAX {
                return Err(ContextError::Full(inner.records.len()));
            }
        }
        let earlier = inner.records.remove(&call_id).and_then(|record| record.claim);
        if let Some(claim) = claim {
            if let Some(earlier) = earlier {
                inner.claims.remove(&earlier);
            }
            inner.claims.insert(claim, (call_id, now + CLAIM_TTL));
        }
        let record = Record { context, claim: claim.or(earlier), until: now + RECORD_TTL };
        inner.records.insert(call_id, record);
        Ok(())
    }

    async fn get(&self, call_id: Uuid) -> Result<Option<CallContext>, ContextError> {
        let now = (self.now)();
        let inner = self.lock();
        let record = inner.records.get(&call_id).filter(|record| now < record.until);
        Ok(record.map(|record| record.context.clone()))
    }

    async fn take(&self, claim: Claim) -> Result<Option<CallContext>, ContextError> {
        let now = (self.now)();
        let mut inner = self.lock();
        let Some((call_id, until)) = inner.claims.remove(&claim) else { return Ok(None) };
        if until <= now {
            return Ok(None);
        }
        Ok(inner.records.get(&call_id).filter(|record| now < record.until).map(|r| r.context.clone()))
    }

    async fn finish(&self, call_id: Uuid) -> Result<(), ContextError> {
        let until = (self.now)() + GRACE;
        let mut inner = self.lock();
        let Some(record) = inner.records.get_mut(&call_id) else { return Ok(()) };
        record.until = until;
        if let Some(claim) = record.claim.take() {
            inner.claims.remove(&claim);
        }
        Ok(())
    }

    async fn acquire(&self, name: &str, owner: Owner, ttl: Duration) -> Result<bool, ContextError> {
        let now = (self.now)();
        let mut inner = self.lock();
        if let Some((holder, until)) = inner.leases.get_mut(name) {
            let is_free = *holder == owner || *until <= now;
            if is_free {
                (*holder, *until) = (owner, now + ttl);
            }
            return Ok(is_free);
        }
        if inner.leases.len() >= LEASES_MAX {
            inner.leases.retain(|_, (_, until)| now < *until);
            if inner.leases.len() >= LEASES_MAX {
                return Err(ContextError::LeasesFull(inner.leases.len()));
            }
        }
        inner.leases.insert(name.into(), (owner, now + ttl));
        Ok(true)
    }

    async fn renew(&self, name: &str, owner: Owner, ttl: Duration) -> Result<bool, ContextError> {
        let now = (self.now)();
        let mut inner = self.lock();
        let Some((holder, until)) = inner.leases.get_mut(name) else { return Ok(false) };
        let is_held = *holder == owner && now < *until;
        if is_held {
            *until = now + ttl;
        }
        Ok(is_held)
    }

    async fn release(&self, name: &str, owner: Owner) -> Result<(), ContextError> {
        let mut inner = self.lock();
        if inner.leases.get(name).is_some_and(|(holder, _)| *holder == owner) {
            inner.leases.remove(name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store under test and its clock. Redis will bring its own, with short times to live and a real clock.
    trait Bed {
        type Store: ContextStore;
        fn store(&self) -> &Self::Store;
        async fn pass(&self, time: Duration);
    }

    struct Embedded {
        store: EmbeddedContexts,
        passed: Arc<Mutex<Duration>>,
    }

    impl Embedded {
        fn new() -> Self {
            let passed = Arc::new(Mutex::new(Duration::ZERO));
            let (start, elapsed) = (Instant::now(), passed.clone());
            let store = EmbeddedContexts::with_clock(move || start + *elapsed.lock().unwrap());
            Self { store, passed }
        }
    }

    impl Bed for Embedded {
        type Store = EmbeddedContexts;
        fn store(&self) -> &EmbeddedContexts {
            &self.store
        }
        async fn pass(&self, time: Duration) {
            *self.passed.lock().unwrap() += time;
        }
    }

    fn context() -> CallContext {
        CallContext {
            call_id: Uuid::now_v7(),
            tenant_id: "t1".into(),
            assistant_id: "desk".into(),
            direction: "inbound",
            from: "a".into(),
            to: "b".into(),
            engine: String::new(),
        }
    }

    fn claim() -> Claim {
        Claim(Uuid::new_v4())
    }

    // The semantics, over any implementation.

    async fn claim_is_taken_once_and_the_record_stays(bed: impl Bed) {
        let (context, claim) = (context(), claim());
        bed.store().put(context.clone(), Some(claim)).await.unwrap();
        assert_eq!(bed.store().take(claim).await.unwrap(), Some(context.clone()));
        assert_eq!(bed.store().take(claim).await.unwrap(), None);
        assert_eq!(bed.store().get(context.call_id).await.unwrap(), Some(context));
    }

    async fn claim_expires_before_its_record(bed: impl Bed) {
        let (context, claim) = (context(), claim());
        bed.store().put(context.clone(), Some(claim)).await.unwrap();
        bed.pass(CLAIM_TTL).await;
        assert_eq!(bed.store().take(claim).await.unwrap(), None);
        assert_eq!(bed.store().get(context.call_id).await.unwrap(), Some(context));
    }

    async fn finished_call_is_found_for_its_grace_only_and_cannot_be_claimed(bed: impl Bed) {
        let (context, claim) = (context(), claim());
        bed.store().put(context.clone(), Some(claim)).await.unwrap();
        bed.store().finish(context.call_id).await.unwrap();
        assert_eq!(bed.store().take(claim).await.unwrap(), None);
        bed.pass(GRACE - Duration::from_secs(1)).await;
        assert!(bed.store().get(context.call_id).await.unwrap().is_some());
        bed.pass(Duration::from_secs(1)).await;
        assert_eq!(bed.store().get(context.call_id).await.unwrap(), None);
    }

    async fn new_record_of_a_call_keeps_its_claim(bed: impl Bed) {
        let (mut context, claim) = (context(), claim());
        bed.store().put(context.clone(), Some(claim)).await.unwrap();
        context.engine = "engine-1".into();
        bed.store().put(context.clone(), None).await.unwrap();
        assert_eq!(bed.store().take(claim).await.unwrap(), Some(context));
    }

    async fn unknown_claims_and_calls_are_nothing(bed: impl Bed) {
        assert_eq!(bed.store().take(claim()).await.unwrap(), None);
        assert_eq!(bed.store().get(Uuid::new_v4()).await.unwrap(), None);
        bed.store().finish(Uuid::new_v4()).await.unwrap();
    }

    const TTL: Duration = Duration::from_secs(30);

    fn owner() -> Owner {
        Owner(Uuid::new_v4())
    }

    async fn lease_is_held_by_one_until_it_ends(bed: impl Bed) {
        let (one, other) = (owner(), owner());
        assert!(bed.store().acquire("trunk", one, TTL).await.unwrap());
        assert!(!bed.store().acquire("trunk", other, TTL).await.unwrap());
        assert!(bed.store().acquire("another trunk", other, TTL).await.unwrap());
        bed.pass(TTL / 2).await;
        assert!(bed.store().renew("trunk", one, TTL).await.unwrap());
        bed.pass(TTL - Duration::from_secs(1)).await;
        assert!(!bed.store().acquire("trunk", other, TTL).await.unwrap());
        bed.pass(Duration::from_secs(1)).await;
        assert!(bed.store().acquire("trunk", other, TTL).await.unwrap());
        assert!(!bed.store().renew("trunk", one, TTL).await.unwrap());
    }

    async fn lease_that_has_ended_is_not_renewed_but_can_be_taken_again(bed: impl Bed) {
        let one = owner();
        assert!(bed.store().acquire("trunk", one, TTL).await.unwrap());
        bed.pass(TTL).await;
        assert!(!bed.store().renew("trunk", one, TTL).await.unwrap());
        assert!(bed.store().acquire("trunk", one, TTL).await.unwrap());
    }

    async fn only_its_holder_gives_a_lease_back(bed: impl Bed) {
        let (one, other) = (owner(), owner());
        assert!(bed.store().acquire("trunk", one, TTL).await.unwrap());
        bed.store().release("trunk", other).await.unwrap();
        assert!(!bed.store().acquire("trunk", other, TTL).await.unwrap());
        bed.store().release("trunk", one).await.unwrap();
        assert!(bed.store().acquire("trunk", other, TTL).await.unwrap());
    }

    #[tokio::test]
    async fn embedded_store_keeps_the_semantics() {
        claim_is_taken_once_and_the_record_stays(Embedded::new()).await;
        claim_expires_before_its_record(Embedded::new()).await;
        finished_call_is_found_for_its_grace_only_and_cannot_be_claimed(Embedded::new()).await;
        new_record_of_a_call_keeps_its_claim(Embedded::new()).await;
        unknown_claims_and_calls_are_nothing(Embedded::new()).await;
        lease_is_held_by_one_until_it_ends(Embedded::new()).await;
        lease_that_has_ended_is_not_renewed_but_can_be_taken_again(Embedded::new()).await;
        only_its_holder_gives_a_lease_back(Embedded::new()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_many_who_take_one_claim_at_once_one_gets_it() {
        let store = Arc::new(EmbeddedContexts::default());
        let claim = claim();
        store.put(context(), Some(claim)).await.unwrap();
        let takers: Vec<_> = (0..32)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.take(claim).await.unwrap().is_some() })
            })
            .collect();
        let mut winners = 0;
        for taker in takers {
            winners += u32::from(taker.await.unwrap());
        }
        assert_eq!(winners, 1);
    }

    #[tokio::test]
    async fn claim_is_not_shown() {
        assert_eq!(format!("{:?}", claim()), "Claim(…)");
    }
}
