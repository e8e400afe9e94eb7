//! Contexts in the process: for one control plane without Redis.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{CallContext, Claim, ContextError, ContextStore, GRACE, Mint, Owner, RECORD_TTL, RETAKE_TTL};

/// Records in the embedded store: live calls and those of the grace period, at some 500 octets each. Full: `put`
/// refuses.
pub const RECORDS_MAX: usize = 200_000;
/// Between two looks for expired records in a full store.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Leases in the embedded store: one a trunk that registers. Full: `acquire` refuses.
pub const LEASES_MAX: usize = 10_000;

/// Words in the embedded store: one a call of a provider's that was announced in the last minutes. Full: `first_word` refuses.
pub const WORDS_MAX: usize = 100_000;

/// See the module.
pub struct EmbeddedContexts {
    inner: Mutex<Inner>,
    now: Box<dyn Fn() -> Instant + Send + Sync>,
}

impl std::fmt::Debug for EmbeddedContexts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EmbeddedContexts")
    }
}

#[derive(Default)]
struct Inner {
    records: HashMap<Uuid, Record>,
    claims: HashMap<Claim, Held>,
    events: HashMap<Uuid, Uuid>,
    leases: HashMap<Box<str>, (Owner, Instant)>,
    words: HashMap<Box<str>, (Box<str>, Instant)>,
    /// When expired records were last looked for.
    swept: Option<Instant>,
}

struct Record {
    context: CallContext,
    claim: Option<Claim>,
    until: Instant,
    is_over: bool,
}

/// A claim in one of its three states.
enum Held {
    Fresh { call_id: Uuid, until: Instant },
    Taken { call_id: Uuid },
    Dropped { call_id: Uuid, until: Instant },
}

impl Held {
    /// The call, while the claim lives.
    fn call_id(&self, now: Instant) -> Option<Uuid> {
        match *self {
            Self::Taken { call_id } => Some(call_id),
            Self::Fresh { call_id, until } | Self::Dropped { call_id, until } => {
                (now < until).then_some(call_id)
            }
        }
    }
}

impl Inner {
    fn sweep(&mut self, now: Instant) {
        let gone: Vec<Uuid> =
            self.records.iter().filter(|(_, record)| record.until <= now).map(|(id, _)| *id).collect();
        for call_id in gone {
            self.forget(call_id);
        }
    }

    /// Expired records go when there is need: a look at each of them, once a second at most.
    fn make_room(&mut self, call_id: Uuid, now: Instant) -> Result<(), ContextError> {
        if self.records.len() < RECORDS_MAX || self.records.contains_key(&call_id) {
            return Ok(());
        }
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_EVERY) {
            self.swept = Some(now);
            self.sweep(now);
        }
        match self.records.len() {
            len if len >= RECORDS_MAX => Err(ContextError::Full(len)),
            _ => Ok(()),
        }
    }

    fn forget(&mut self, call_id: Uuid) {
        let Some(record) = self.records.remove(&call_id) else { return };
        if let Some(claim) = record.claim {
            self.claims.remove(&claim);
        }
        if let Some(provider) = record.context.provider {
            self.events.remove(&provider.event_id);
        }
    }

    /// The record of a claim that was turned just now; not of a call that is over.
    fn claimed(&self, call_id: Uuid, now: Instant) -> Option<CallContext> {
        self.records.get(&call_id).filter(|record| !record.is_over)?;
        self.read(call_id, now)
    }

    fn read(&self, call_id: Uuid, now: Instant) -> Option<CallContext> {
        self.records.get(&call_id).filter(|record| now < record.until).map(|record| record.context.clone())
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
    async fn put(&self, context: CallContext, claim: Option<Mint>) -> Result<bool, ContextError> {
        let now = (self.now)();
        let mut inner = self.lock();
        let call_id = context.call_id;
        if inner.records.get(&call_id).is_some_and(|record| record.until <= now) {
            inner.forget(call_id);
        }
        if let Some(record) = inner.records.get_mut(&call_id).filter(|record| record.is_over) {
            record.context = context;
            return Ok(false);
        }
        inner.make_room(call_id, now)?;
        let earlier = inner.records.remove(&call_id);
        let is_new = earlier.is_none();
        let mut kept = None;
        if let Some(earlier) = earlier {
            kept = earlier.claim;
            if let Some(provider) = earlier.context.provider {
                inner.events.remove(&provider.event_id);
            }
        }
        if let Some(Mint { claim, ttl }) = claim {
            if let Some(earlier) = kept.replace(claim).filter(|earlier| *earlier != claim) {
                inner.claims.remove(&earlier);
            }
            inner.claims.entry(claim).or_insert(Held::Fresh { call_id, until: now + ttl });
        }
        if let Some(provider) = &context.provider {
            inner.events.insert(provider.event_id, call_id);
        }
        let record = Record { context, claim: kept, until: now + RECORD_TTL, is_over: false };
        inner.records.insert(call_id, record);
        Ok(is_new)
    }

    async fn restore(&self, context: CallContext) -> Result<bool, ContextError> {
        match self.get(context.call_id).await? {
            Some(_) => Ok(false),
            None => self.put(context, None).await,
        }
    }

    async fn get(&self, call_id: Uuid) -> Result<Option<CallContext>, ContextError> {
        let now = (self.now)();
        Ok(self.lock().read(call_id, now))
    }

    async fn by_event(&self, event_id: Uuid) -> Result<Option<CallContext>, ContextError> {
        let now = (self.now)();
        let inner = self.lock();
        Ok(inner.events.get(&event_id).and_then(|call_id| inner.read(*call_id, now)))
    }

    async fn peek(&self, claim: Claim) -> Result<Option<CallContext>, ContextError> {
        let now = (self.now)();
        let inner = self.lock();
        let call_id = inner.claims.get(&claim).and_then(|held| held.call_id(now));
        Ok(call_id.and_then(|call_id| inner.claimed(call_id, now)))
    }

    async fn claim_of(&self, call_id: Uuid) -> Result<Option<Claim>, ContextError> {
        Ok(self.lock().records.get(&call_id).filter(|record| !record.is_over).and_then(|record| record.claim))
    }

    async fn first_word(&self, name: &str, word: &str, ttl: Duration) -> Result<String, ContextError> {
        let now = (self.now)();
        let mut inner = self.lock();
        if let Some((first, until)) = inner.words.get(name)
            && now < *until
        {
            return Ok(first.to_string());
        }
        if inner.words.len() >= WORDS_MAX {
            inner.words.retain(|_, (_, until)| now < *until);
            if inner.words.len() >= WORDS_MAX {
                return Err(ContextError::WordsFull(inner.words.len()));
            }
        }
        inner.words.insert(name.into(), (word.into(), now + ttl));
        Ok(word.to_owned())
    }

    async fn take(&self, claim: Claim) -> Result<Option<CallContext>, ContextError> {
        let now = (self.now)();
        let mut inner = self.lock();
        let Some(Held::Fresh { call_id, until }) = inner.claims.get(&claim) else { return Ok(None) };
        let (call_id, is_alive) = (*call_id, now < *until);
        if !is_alive {
            inner.claims.remove(&claim);
            return Ok(None);
        }
        inner.claims.insert(claim, Held::Taken { call_id });
        Ok(inner.claimed(call_id, now))
    }

    async fn dropped(&self, claim: Claim) -> Result<(), ContextError> {
        let until = (self.now)() + RETAKE_TTL;
        if let Some(held) = self.lock().claims.get_mut(&claim)
            && let Held::Taken { call_id } = *held
        {
            *held = Held::Dropped { call_id, until };
        }
        Ok(())
    }

    async fn retake(&self, claim: Claim) -> Result<Option<CallContext>, ContextError> {
        let now = (self.now)();
        let mut inner = self.lock();
        let Some(&Held::Dropped { call_id, until }) = inner.claims.get(&claim) else { return Ok(None) };
        if until <= now {
            inner.claims.remove(&claim);
            return Ok(None);
        }
        inner.claims.insert(claim, Held::Taken { call_id });
        Ok(inner.claimed(call_id, now))
    }

    async fn finish(&self, call_id: Uuid) -> Result<(), ContextError> {
        let until = (self.now)() + GRACE;
        let mut inner = self.lock();
        let Some(record) = inner.records.get_mut(&call_id) else { return Ok(()) };
        record.until = record.until.min(until);
        record.is_over = true;
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

    async fn incarnation(&self) -> Result<String, ContextError> {
        Ok("embedded".into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::suite::{self, Bed};
    use super::*;

    struct Embedded {
        store: Arc<EmbeddedContexts>,
        passed: Arc<Mutex<Duration>>,
    }

    impl Embedded {
        fn new() -> Self {
            let passed = Arc::new(Mutex::new(Duration::ZERO));
            let (start, elapsed) = (Instant::now(), passed.clone());
            let store = EmbeddedContexts::with_clock(move || start + *elapsed.lock().unwrap());
            Self { store: Arc::new(store), passed }
        }
    }

    impl Bed for Embedded {
        type Store = EmbeddedContexts;
        fn store(&self) -> Arc<EmbeddedContexts> {
            self.store.clone()
        }
        async fn pass(&self, time: Duration) {
            *self.passed.lock().unwrap() += time;
        }
    }

    #[tokio::test]
    async fn embedded_store_keeps_the_semantics() {
        suite::all(&Embedded::new()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_fifty_who_take_one_claim_at_once_one_gets_it_a_thousand_times() {
        suite::races(&Embedded::new(), 1_000).await;
    }

    #[tokio::test]
    async fn expired_records_make_room_with_all_that_points_to_them() {
        let bed = Embedded::new();
        bed.store.put(suite::context(), Some(Mint::fresh(Duration::ZERO))).await.unwrap();
        bed.pass(RECORD_TTL).await;
        let mut inner = bed.store.lock();
        let now = (bed.store.now)();
        inner.sweep(now);
        assert!(inner.records.is_empty() && inner.claims.is_empty() && inner.events.is_empty());
    }
}
