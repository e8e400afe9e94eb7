//! The demo key and assistants of `--demo`. `Config` has checked that every listener is on loopback.

use serde_json::json;
use sqlx::SqlitePool;

use super::StoreError;
use super::accounts::{put_assistant, put_key, put_tenant};

/// The key everybody knows.
pub const DEMO_KEY: &str = "demo-key";
const TENANT: &str = "demo";

/// Puts the demo tenant, key and assistants there; harmless when they are.
pub async fn seed(pool: &SqlitePool) -> Result<(), StoreError> {
    put_tenant(pool, TENANT, "Demo").await?;
    put_key(pool, TENANT, "demo", DEMO_KEY).await?;
    let twilio = json!({ "url": "ws://127.0.0.1:8765/", "dialect": "twilio" });
    let pcm = json!({ "url": "ws://127.0.0.1:8766/", "dialect": "pcm" });
    for (assistant, kind, options) in [
        ("echo", "echo", json!({})),
        ("tone", "tone", json!({ "frequency_hz": 440.0 })),
        ("demo", "talker", json!({})),
        ("ws", "websocket", twilio),
        ("pcm", "websocket", pcm),
        ("null", "none", json!({})),
    ] {
        put_assistant(pool, TENANT, assistant, kind, &options).await?;
    }
    Ok(())
}

/// Takes the demo key away again: a database that was used with `--demo` is safe to serve from.
pub async fn revoke(pool: &SqlitePool) -> Result<u64, StoreError> {
    let gone = sqlx::query("DELETE FROM api_keys WHERE key_id = 'demo' AND tenant_id = 'demo'");
    Ok(gone.execute(pool).await?.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Database;
    use crate::store;
    use crate::store::accounts::{Accounts, KeyHash};

    #[tokio::test]
    async fn demo_assistants_are_all_readable_and_seeding_twice_is_harmless() {
        let pool = store::open(&Database::Memory).await.unwrap();
        seed(&pool).await.unwrap();
        seed(&pool).await.unwrap();
        let accounts = Accounts::new(pool);
        for id in ["echo", "tone", "demo", "ws", "pcm", "null"] {
            let found = accounts.find(KeyHash::of(DEMO_KEY), id).await.unwrap();
            assert!(found.assistant.unwrap().agent.is_ok(), "{id}");
        }
    }

    #[tokio::test]
    async fn demo_key_does_not_outlive_the_demo() {
        let pool = store::open(&Database::Memory).await.unwrap();
        seed(&pool).await.unwrap();
        assert_eq!(revoke(&pool).await.unwrap(), 1);
        assert!(Accounts::new(pool).principal(KeyHash::of(DEMO_KEY)).await.unwrap().is_none());
    }
}
