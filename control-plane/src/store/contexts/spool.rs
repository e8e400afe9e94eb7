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
//! counted. Claims are not: one whose outcome is unknown is refused.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
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
    pending: HashMap<Uuid, Word>,
    /// Calls of this node that are not finished.
    live: HashMap<Uuid, CallContext>,
}

/// The newest word on a call.
#[derive(Debug, Clone)]
struct Word {
    /// To be put first.
    put: Option<CallContext>,
    /// Then it is over.
    finish: bool,
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
        let mut words = self.shared.lock();
        words.live.insert(context.call_id, context.clone());
        words.pending.insert(context.call_id, Word { put: Some(context), finish: false });
        drop(words);
        self.shared.wake.notify_one();
    }

    /// The call is terminal. Never waits, never refuses.
    pub fn finish(&self, call_id: Uuid) {
        let mut words = self.shared.lock();
        words.live.remove(&call_id);
        words.pending.entry(call_id).or_insert(Word { put: None, finish: true }).finish = true;
        drop(words);
        self.shared.wake.notify_one();
    }

    /// Keeps a new call's context and its claim, and waits until that is certain.
    ///
    /// # Errors
    /// It is not: the call must be refused.
    pub async fn mint(&self, context: CallContext, mint: Mint) -> Result<(), ContextError> {
        self.shared.store.put(context.clone(), Some(mint)).await?;
        self.shared.lock().live.insert(context.call_id, context);
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

impl<S: ContextStore> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn say(&self, call_id: Uuid, word: &Word) -> Result<(), ContextError> {
        if let Some(context) = &word.put {
            self.store.put(context.clone(), None).await?;
        }
        if word.finish {
            self.store.finish(call_id).await?;
        }
        Ok(())
    }

    /// Says what waits; false if the store does not take it.
    async fn say_all(&self) -> bool {
        let pending: Vec<(Uuid, Word)> = self.lock().pending.drain().collect();
        let outcomes = futures_util::stream::iter(pending)
            .map(|(call_id, word)| async move {
                let outcome = self.say(call_id, &word).await;
                (call_id, word, outcome)
            })
            .buffer_unordered(AT_ONCE);
        let mut outcomes = std::pin::pin!(outcomes);
        let mut failed = None;
        while let Some((call_id, word, outcome)) = outcomes.next().await {
            let Err(error) = outcome else { continue };
            self.failures.fetch_add(1, Ordering::Relaxed);
            failed = Some(error);
            self.keep(call_id, word);
        }
        if let Some(error) = &failed {
            tracing::warn!(%error, waiting = self.lock().pending.len(), "contexts of calls wait for their store");
        }
        failed.is_none()
    }

    /// A word that was not taken waits on, under whatever was said since.
    fn keep(&self, call_id: Uuid, word: Word) {
        let mut words = self.lock();
        match words.pending.get_mut(&call_id) {
            None => drop(words.pending.insert(call_id, word)),
            Some(newer) if newer.put.is_none() => newer.put = word.put,
            Some(_) => {}
        }
    }

    /// Writes every live call again; false if the store does not take it.
    async fn restore(&self) -> bool {
        let live: Vec<CallContext> = {
            let words = self.lock();
            // What waits to be put has not been acknowledged, and comes next.
            let waits = |call_id| words.pending.get(call_id).is_some_and(|word| word.put.is_some());
            words
                .live
                .iter()
                .filter(|(call_id, _)| !waits(call_id))
                .map(|(_, context)| context.clone())
                .collect()
        };
        let total = live.len();
        let outcomes = futures_util::stream::iter(live)
            .map(|context| async move {
                // It may have ended meanwhile: a finished call is not to be revived.
                if !self.lock().live.contains_key(&context.call_id) {
                    return Ok(false);
                }
                self.store.put(context, None).await
            })
            .buffer_unordered(AT_ONCE);
        let mut outcomes = std::pin::pin!(outcomes);
        let (mut lost, mut is_done) = (0, true);
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(was_lost) => lost += u64::from(was_lost),
                Err(_) => is_done = false,
            }
        }
        self.restored.fetch_add(lost, Ordering::Relaxed);
        if is_done {
            tracing::warn!(
                live = total,
                lost,
                "the context store was restarted: live calls were written again"
            );
        }
        is_done
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
            if last != Ok(true) {
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
            asked = Some(Instant::now());
        }
        while !shared.lock().pending.is_empty() && !shared.closing.load(Ordering::Acquire) {
            if !shared.say_all().await {
                tokio::time::sleep(RETRY_AFTER).await;
                break;
            }
        }
        // A word that comes wakes at once; a store that is restarted is seen soon.
        let _ = tokio::time::timeout(RETRY_AFTER, shared.wake.notified()).await;
    }
}
