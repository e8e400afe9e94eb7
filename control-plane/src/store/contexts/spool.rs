//! Contexts of calls that need not be awaited: no store stands between an INVITE and its 180, and none that is away for a
//! while costs a record.
//!
//! ```text
//!   call driver ──put, finish──▶ pending: the newest word on each call ──▶ store     again each RETRY_AFTER while it is away
//!   webhooks ────mint (awaited)─────────────────────────────────────────▶ store
//!                                live: contexts of this node's calls ─────▶ store     once more when it has lost its memory
//! ```
//!
//! Nothing is ever dropped: a newer word replaces an older one on the same call, and a call that was admitted always finds
//! room. Above [`PENDING_MAX`] admission refuses new calls. A store that comes back with another incarnation (a restart, a
//! failover) may have forgotten what it had acknowledged: every live call is written again, and those that were gone are
//! counted. Claims are not: one whose outcome is unknown is refused. A call that was only minted here may be another node's by
//! now: its record is written again if there is none, and only while its claim could be taken.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::{CallContext, ContextError, ContextStore, Mint};

/// Calls on which a word waits, beyond which no new call is admitted: at some 700 octets each, 7 MiB.
pub const PENDING_MAX: usize = 10_000;
/// Words that are on their way at once.
const AT_ONCE: usize = 32;
/// How long a spool rests after a failure, and how often it looks whether the store is the same.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// A spool that is closed gives the store so long.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// The end that takes words. Cheap to clone.
pub struct Spool<S> {
    shared: Arc<Shared<S>>,
}

impl<S> Clone for Spool<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<S> std::fmt::Debug for Spool<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spool")
    }
}

struct Shared<S> {
    store: Arc<S>,
    words: Mutex<Words>,
    wake: Notify,
    closing: AtomicBool,
    restored: AtomicU64,
    failures: AtomicU64,
}

#[derive(Default)]
struct Words {
    /// Until the store has taken them.
    pending: HashMap<Uuid, Word>,
    /// Calls that were put here and not finished here, and those whose claim may be taken yet.
    live: HashMap<Uuid, Live>,
    number: u64,
}

/// A context that the store should have.
#[derive(Debug, Clone)]
struct Live {
    context: Arc<CallContext>,
    /// Minted here and not put since: until its claim can be taken no more.
    until: Option<Instant>,
}

/// The newest word on a call.
#[derive(Debug, Clone)]
struct Word {
    /// To be put first.
    put: Option<Arc<CallContext>>,
    /// Then it is over.
    finish: bool,
    /// Which word: a newer one has another number.
    number: u64,
}

impl Words {
    fn say(&mut self, call_id: Uuid, put: Option<Arc<CallContext>>, finish: bool) {
        self.number += 1;
        let earlier = self.pending.remove(&call_id);
        let (earlier_put, earlier_finish) = earlier.map_or((None, false), |word| (word.put, word.finish));
        let word = Word { put: put.or(earlier_put), finish: finish || earlier_finish, number: self.number };
        self.pending.insert(call_id, word);
    }
}

impl<S: ContextStore + 'static> Spool<S> {
    /// A spool and the future that writes; the future ends after [`Spool::close`].
    pub fn new(store: Arc<S>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::new(Shared {
            store,
            words: Mutex::default(),
            wake: Notify::new(),
            closing: AtomicBool::new(false),
            restored: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        });
        (Self { shared: shared.clone() }, run(shared))
    }

    /// The store behind it, for what is awaited.
    pub fn store(&self) -> &Arc<S> {
        &self.shared.store
    }

    /// Keeps a call's context. Never waits, never refuses.
    pub fn put(&self, context: CallContext) {
        let (call_id, context) = (context.call_id, Arc::new(context));
        let mut words = self.shared.lock();
        words.live.insert(call_id, Live { context: context.clone(), until: None });
        words.say(call_id, Some(context), false);
        drop(words);
        self.shared.wake.notify_one();
    }

    /// The call is terminal. Never waits, never refuses.
    pub fn finish(&self, call_id: Uuid) {
        self.shared.finish(call_id);
    }

    /// Keeps a new call's context and its claim, and waits until that is certain.
    ///
    /// # Errors
    /// It is not: the call must be refused. What the store may have of it is taken back; likewise if nobody waits any more.
    pub async fn mint(&self, context: CallContext, mint: Mint) -> Result<(), ContextError> {
        let live = Live { context: Arc::new(context.clone()), until: Some(Instant::now() + mint.ttl) };
        // One that was announced twice may be a call by now: it stays one, and what fails now is not its end.
        let is_known = {
            let mut words = self.shared.lock();
            let is_known = words.live.contains_key(&context.call_id);
            words.live.entry(context.call_id).or_insert(live);
            is_known
        };
        let attempt = Attempt { shared: &*self.shared, call_id: context.call_id, is_kept: is_known };
        self.shared.store.put(context, Some(mint)).await?;
        attempt.keep();
        Ok(())
    }

    /// Whether new calls must be refused until the store has caught up.
    pub fn is_behind(&self) -> bool {
        self.pending() >= PENDING_MAX
    }

    /// Calls on which a word waits.
    pub fn pending(&self) -> usize {
        self.shared.lock().pending.len()
    }

    /// Records that the store had acknowledged and lost, and that were written again.
    pub fn restored(&self) -> u64 {
        self.shared.restored.load(Ordering::Relaxed)
    }

    /// Words that the store did not take at the first try.
    pub fn failures(&self) -> u64 {
        self.shared.failures.load(Ordering::Relaxed)
    }

    /// Lets the future write what waits and end.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }
}

/// A call that is being minted; dropped before it is kept, it is finished.
struct Attempt<'a, S> {
    shared: &'a Shared<S>,
    call_id: Uuid,
    is_kept: bool,
}

impl<S> Attempt<'_, S> {
    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl<S> Drop for Attempt<'_, S> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.shared.finish(self.call_id);
        }
    }
}

impl<S> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, call_id: Uuid) {
        let mut words = self.lock();
        words.live.remove(&call_id);
        words.say(call_id, None, true);
        drop(words);
        self.wake.notify_one();
    }
}

impl<S: ContextStore> Shared<S> {
    async fn say(&self, call_id: Uuid, word: &Word) -> Result<(), ContextError> {
        if let Some(context) = &word.put {
            self.store.put(CallContext::clone(context), None).await?;
        }
        if word.finish {
            self.store.finish(call_id).await?;
        }
        Ok(())
    }

    /// Says what waits, some at a time; false as soon as the store does not answer.
    async fn say_all(&self) -> bool {
        loop {
            let some: Vec<(Uuid, Word)> = {
                let words = self.lock();
                words.pending.iter().take(AT_ONCE).map(|(call_id, word)| (*call_id, word.clone())).collect()
            };
            if some.is_empty() {
                return true;
            }
            let said = some.iter().map(|(call_id, word)| self.say(*call_id, word));
            let outcomes = futures_util::future::join_all(said).await;
            let mut failed = None;
            for ((call_id, word), outcome) in some.into_iter().zip(outcomes) {
                match outcome {
                    Err(error @ ContextError::Unreachable(_)) => {
                        self.failures.fetch_add(1, Ordering::Relaxed);
                        failed = Some(error);
                        continue;
                    }
                    // Another try would fail likewise.
                    Err(error) => tracing::error!(%call_id, %error, "the context of a call is not kept"),
                    Ok(()) => {}
                }
                let mut words = self.lock();
                if words.pending.get(&call_id).is_some_and(|newest| newest.number == word.number) {
                    words.pending.remove(&call_id);
                }
            }
            if let Some(error) = failed {
                tracing::warn!(%error, waiting = self.lock().pending.len(), "contexts of calls wait for their store");
                return false;
            }
        }
    }

    /// Writes every live call again, some at a time; false as soon as the store does not answer.
    async fn restore(&self) -> bool {
        let live: Vec<(Uuid, Live)> = {
            let mut words = self.lock();
            let now = Instant::now();
            words.live.retain(|_, live| live.until.is_none_or(|until| now < until));
            // What waits to be put has not been acknowledged, and comes next.
            let waits = |call_id| words.pending.get(call_id).is_some_and(|word| word.put.is_some());
            words.live.iter().filter(|(id, _)| !waits(id)).map(|(id, live)| (*id, live.clone())).collect()
        };
        let (total, mut lost) = (live.len(), 0);
        for some in live.chunks(AT_ONCE) {
            let written = some.iter().map(|(call_id, Live { context, until })| async move {
                // It may have ended meanwhile: a finished call is not to be revived.
                if !self.lock().live.contains_key(call_id) {
                    return Ok(false);
                }
                match until {
                    None => self.store.put(CallContext::clone(context), None).await,
                    Some(_) => self.store.restore(CallContext::clone(context)).await,
                }
            });
            for outcome in futures_util::future::join_all(written).await {
                match outcome {
                    Ok(was_lost) => lost += u64::from(was_lost),
                    Err(_) => {
                        self.restored.fetch_add(lost, Ordering::Relaxed);
                        return false;
                    }
                }
            }
        }
        self.restored.fetch_add(lost, Ordering::Relaxed);
        tracing::warn!(live = total, lost, "the context store was restarted: live calls were written again");
        true
    }

    /// Minted calls whose claim can be taken no more are not ours.
    fn sweep(&self) {
        let now = Instant::now();
        self.lock().live.retain(|_, live| live.until.is_none_or(|until| now < until));
    }

    /// Whether the store is the one that it was; if not, it gets what it may have lost.
    async fn look(&self, known: &mut Option<String>) {
        // While it is away there is nothing to be seen; what waits says so by itself.
        let Ok(now) = self.store.incarnation().await else { return };
        if known.as_ref() != Some(&now) && (known.is_none() || self.restore().await) {
            *known = Some(now);
        }
    }
}

async fn run<S: ContextStore>(shared: Arc<Shared<S>>) {
    let mut known: Option<String> = None;
    let mut asked: Option<Instant> = None;
    loop {
        let is_closing = shared.closing.load(Ordering::Acquire);
        if is_closing {
            let last = tokio::time::timeout(CLOSE_WITHIN, shared.say_all()).await;
            if !matches!(last, Ok(true)) {
                tracing::error!(
                    lost = shared.lock().pending.len(),
                    "contexts were not written before the end"
                );
            }
            return;
        }
        let is_due = asked.is_none_or(|asked| asked.elapsed() >= RETRY_AFTER);
        if is_due {
            shared.look(&mut known).await;
            shared.sweep();
            asked = Some(Instant::now());
        }
        if !shared.say_all().await {
            tokio::time::sleep(RETRY_AFTER).await;
            continue;
        }
        // A word that comes wakes at once; a store that is restarted is seen soon.
        let _ = tokio::time::timeout(RETRY_AFTER, shared.wake.notified()).await;
    }
}
