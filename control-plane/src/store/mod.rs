//! What outlives a call, and in part the process.
//!
//! ```text
//!   accounts.rs       tenants, API keys, assistants; read through a bounded cache
//!   declared.rs       those of tandem.toml
//!   writer.rs         records of calls, written behind the calls ──▶ calls.rs
//!   conversations.rs  what was said
//!   refusals.rs       the newest refusals that have no record
//!   contexts.rs       the context of a call and its claim, taken at most once
//! ```
//!
//! Records are in SQLite; contexts are in the process or in Redis, behind one trait. Queries
//! keep to the SQL that PostgreSQL understands too.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, SqlSafeStr};

use crate::config::Database;

pub mod accounts;
pub mod cache;
pub mod calls;
pub mod contexts;
pub mod conversations;
pub mod declared;
pub mod demo;
pub mod refusals;
pub mod writer;

/// Connections to the database: one writes, the others read. SQLite has one writer at a time in any case.
const CONNECTIONS: u32 = 4;
/// How long a query waits for SQLite's lock before it fails.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder of the database cannot be made.
    #[error("cannot make the folder {folder}: {source}; set TANDEM_STATE_DIR to one that can be written")]
    Folder {
        /// The folder.
        folder: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file exists and is not ours, or a migration failed.
    #[error("cannot bring the database up to date: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A query failed.
    #[error("database: {0}")]
    Query(#[from] sqlx::Error),
    /// A column holds JSON that this version does not understand.
    #[error("call {call_id}: column {column} is not readable: {source}")]
    Column {
        /// Whose row.
        call_id: String,
        /// Which column.
        column: &'static str,
        /// What serde said.
        source: serde_json::Error,
    },
}

/// Opens the database and brings its tables up to date.
pub async fn open(database: &Database) -> Result<SqlitePool, StoreError> {
    let (options, connections) = match database {
        Database::File(path) => {
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                std::fs::create_dir_all(folder)
                    .map_err(|source| StoreError::Folder { folder: folder.display().to_string(), source })?;
            }
            (SqliteConnectOptions::new().filename(path).create_if_missing(true), CONNECTIONS)
        }
        // Each connection would be a database of its own.
        Database::Memory => (SqliteConnectOptions::new().in_memory(true), 1),
    };
    // WAL and NORMAL: a crash of the process loses nothing, a power cut at most the last records.
    let options = options
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true);
    let pool = SqlitePoolOptions::new()
        .max_connections(connections)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await?;
    migrations().run(&pool).await?;
    Ok(pool)
}

fn migrations() -> Migrator {
    let files = [
        (1, "accounts", include_str!("../../migrations/0001_accounts.sql")),
        (2, "calls", include_str!("../../migrations/0002_calls.sql")),
        (3, "origin", include_str!("../../migrations/0003_origin.sql")),
        (4, "outbound", include_str!("../../migrations/0004_outbound.sql")),
    ];
    let migrations = files.into_iter().map(|(version, name, sql)| {
        let sql = AssertSqlSafe(sql).into_sql_str();
        Migration::new(version, name.into(), MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(migrations.collect())
}

/// Milliseconds since the Unix epoch, for records.
pub fn epoch_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn database_is_made_and_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::File(folder.path().join("new/tandem.db"));
        for _ in 0..2 {
            let pool = open(&database).await.unwrap();
            let calls: i64 = sqlx::query_scalar("SELECT count(*) FROM calls").fetch_one(&pool).await.unwrap();
            assert_eq!(calls, 0);
            pool.close().await;
        }
    }
}
