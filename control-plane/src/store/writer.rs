//! Records of calls are written behind the calls, so that no disk stands between an INVITE and its 180.
//!
//! ```text
//!   call driver ──put──▶ pending: newest record a call ──each WRITE_WINDOW──▶ one transaction ──▶ SQLite
//!                 ◀─len─ (admission refuses with 503 above PENDING_MAX)
//! ```
//!
//! Nothing is ever dropped: a newer record replaces an older one of the same call, and a call that was admitted always
//! finds room. So `pending` holds at most [`PENDING_MAX`] records and one for each live call. When the database fails,
//! records wait, the writer tries again, and admission closes when too many wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::SqlitePool;
use tandem_api::v1::Call;
use tokio::sync::Notify;

use super::{StoreError, calls};
use crate::call::record::CallRecord;

/// Calls whose record waits to be written, beyond which no new call is admitted: at some 2 KiB each, 20 MiB.
pub const PENDING_MAX: usize = 10_000;
/// Records of one transaction: enough that its cost is shared, few enough that readers do not wait long.
const BATCH_MAX: usize = 500;
/// How long the first record of a batch waits for company. A call that is set up and ended within it costs one
/// write.
const WRITE_WINDOW: Duration = Duration::from_millis(100);
/// How long the writer rests after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The end of the queue that takes records. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Writer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<HashMap<String, CallRecord>>,
    wake: Notify,
    closing: AtomicBool,
}

impl Writer {
    /// A writer and the future that writes; the future ends after [`Writer::close`], when all is written.
    pub fn new(pool: SqlitePool) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::new(Shared::default());
        (Self { shared: shared.clone() }, run(shared, pool))
    }

    /// Takes the newest record of a call. Never waits, never refuses.
    pub fn put(&self, record: CallRecord) {
        self.lock().insert(record.call.call_id.clone(), record);
        self.shared.wake.notify_one();
    }

    /// Whether new calls must be refused until the database has caught up.
    pub fn is_behind(&self) -> bool {
        self.lock().len() >= PENDING_MAX
    }

    /// Records that wait.
    pub fn pending(&self) -> usize {
        self.lock().len()
    }

    /// A record of this tenant that is not written yet.
    pub fn find(&self, tenant_id: &str, call_id: &str) -> Option<Call> {
        let pending = self.lock();
        let record = pending.get(call_id).filter(|record| &*record.tenant_id == tenant_id)?;
        Some(record.call.clone())
    }

    /// Whether a record of this call waits, whosever it is.
    pub fn knows(&self, call_id: &str) -> bool {
        self.lock().contains_key(call_id)
    }

    /// A tenant's records that are not written yet, in no order.
    pub fn of_tenant(&self, tenant_id: &str) -> Vec<Call> {
        let pending = self.lock();
        let own = pending.values().filter(|record| &*record.tenant_id == tenant_id);
        own.map(|record| record.call.clone()).collect()
    }

    /// No more records will come: write what there is and stop.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, CallRecord>> {
        self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(shared: Arc<Shared>, pool: SqlitePool) {
    let writer = Writer { shared: shared.clone() };
    loop {
        let closing = shared.closing.load(Ordering::Acquire);
        let batch: Vec<CallRecord> = writer.lock().values().take(BATCH_MAX).cloned().collect();
        if batch.is_empty() {
            if closing {
                return;
            }
            shared.wake.notified().await;
            if !shared.closing.load(Ordering::Acquire) {
                tokio::time::sleep(WRITE_WINDOW).await;
            }
            continue;
        }
        if let Err(error) = write(&pool, &batch).await {
            tracing::error!(%error, waiting = writer.pending(), "records of calls cannot be written");
            if closing {
                return;
            }
            tokio::time::sleep(RETRY_AFTER).await;
            continue;
        }
        // What has changed since it was copied stays and is written again. Readers look here before the database,
        // so they always see the newest.
        let mut pending = writer.lock();
        for record in &batch {
            if pending.get(&record.call.call_id) == Some(record) {
                pending.remove(&record.call.call_id);
            }
        }
    }
}

async fn write(pool: &SqlitePool, batch: &[CallRecord]) -> Result<(), StoreError> {
    let mut transaction = pool.begin().await?;
    for record in batch {
        calls::put(&mut transaction, record).await?;
    }
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Database;
    use crate::store;

    fn record(call_id: &str, state: &str) -> CallRecord {
        let call = Call { call_id: call_id.into(), state: state.into(), ..Call::default() };
        CallRecord { tenant_id: "t1".into(), call }
    }

    #[tokio::test]
    async fn newest_record_of_a_call_is_written_once() {
        let pool = store::open(&Database::Memory).await.unwrap();
        let (writer, run) = Writer::new(pool.clone());
        writer.put(record("c1", "ringing"));
        writer.put(record("c1", "ended"));
        assert_eq!(writer.pending(), 1);
        writer.close();
        run.await;
        assert_eq!(writer.pending(), 0);
        assert_eq!(calls::get(&pool, "t1", "c1").await.unwrap().unwrap().state, "ended");
    }

    #[tokio::test]
    async fn record_can_be_read_before_it_is_written_but_only_by_its_tenant() {
        let pool = store::open(&Database::Memory).await.unwrap();
        let (writer, _run) = Writer::new(pool);
        writer.put(record("c1", "ringing"));
        assert_eq!(writer.find("t1", "c1").unwrap().state, "ringing");
        assert!(writer.find("t2", "c1").is_none());
    }

    #[tokio::test]
    async fn more_than_a_batch_is_written_and_admission_closes_when_the_database_is_behind() {
        let pool = store::open(&Database::Memory).await.unwrap();
        let (writer, run) = Writer::new(pool.clone());
        for n in 0..PENDING_MAX {
            assert!(!writer.is_behind());
            writer.put(record(&format!("c{n}"), "ended"));
        }
        assert!(writer.is_behind());
        writer.close();
        run.await;
        assert!(!writer.is_behind());
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM calls").fetch_one(&pool).await.unwrap();
        assert_eq!(rows, PENDING_MAX as i64);
    }

    #[tokio::test]
    async fn failing_database_loses_no_record() {
        let pool = store::open(&Database::Memory).await.unwrap();
        sqlx::query("ALTER TABLE calls RENAME TO away").execute(&pool).await.unwrap();
        let (writer, run) = Writer::new(pool.clone());
        writer.put(record("c1", "ended"));
        let run = tokio::spawn(run);
        tokio::time::sleep(WRITE_WINDOW * 3).await;
        assert_eq!(writer.pending(), 1);
        sqlx::query("ALTER TABLE away RENAME TO calls").execute(&pool).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), async {
            while writer.pending() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
        run.abort();
    }
}
