//! Tenants, their API keys and their assistants.
//!
//! Keys are stored as SHA-256 and compared in constant time. A key that was found and an assistant that was found
//! are remembered for [`CACHE_TTL`], so a revoked key works that much longer. A key that was *not* found is remembered for
//! [`MISS_TTL`], in a table of its own, so that guessers cannot push good entries out; a new key works that much later if
//! somebody has tried it just before.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use sqlx::SqlitePool;
use subtle::ConstantTimeEq;

use super::StoreError;
use super::cache::Cache;
use crate::call::admission::{Credential, Proof};
use crate::call::agent::Agent;

/// How long a key or an assistant is believed without asking the database.
pub const CACHE_TTL: Duration = Duration::from_secs(5);
/// How long a wrong key is known to be wrong without asking the database.
pub const MISS_TTL: Duration = Duration::from_secs(2);
/// Entries in each cache: a few hundred octets each, so a few megabytes at most.
const CACHE_ENTRIES: usize = 10_000;
/// Octets of the hash that the index sees.
const LOOKUP_LEN: usize = 8;

/// SHA-256 of an API key. Its Debug shows nothing: a hash of a weak key can be guessed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Hashes a key as a caller gave it.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }
}

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// Whose key it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The tenant that everything of this call belongs to.
    pub tenant_id: Arc<str>,
    /// Which of its keys.
    pub key_id: Arc<str>,
}

/// An assistant as stored. Its agent may be unreadable: that refuses the call, not the lookup.
#[derive(Debug, Clone)]
pub struct Assistant {
    /// Unique in its tenant.
    pub assistant_id: Arc<str>,
    /// Who the caller talks to, or what is wrong with it.
    pub agent: Result<Agent, Arc<str>>,
}

/// What the store knows about a key and the assistant that it asks for. The assistant is looked up only for a
/// valid key.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The key's owner.
    pub principal: Option<Principal>,
    /// The assistant, in that tenant.
    pub assistant: Option<Assistant>,
}

/// Reads accounts through the cache. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Accounts {
    pool: SqlitePool,
    caches: Arc<Mutex<Caches>>,
}

#[derive(Debug)]
struct Caches {
    principals: Cache<KeyHash, Principal>,
    misses: Cache<KeyHash, ()>,
    assistants: Cache<(Arc<str>, Arc<str>), Assistant>,
}

impl Accounts {
    /// Accounts in this database.
    pub fn new(pool: SqlitePool) -> Self {
        let caches = Caches {
            principals: Cache::new(CACHE_ENTRIES, CACHE_TTL),
            misses: Cache::new(CACHE_ENTRIES, MISS_TTL),
            assistants: Cache::new(CACHE_ENTRIES, CACHE_TTL),
        };
        Self { pool, caches: Arc::new(Mutex::new(caches)) }
    }

    /// The answer, if the cache has the whole of it.
    pub fn find_cached(&self, key: KeyHash, assistant_id: &str) -> Option<Found> {
        let now = Instant::now();
        let caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let principal = caches.principals.get(&key, now)?;
        let assistant = caches.assistants.get(&(principal.tenant_id.clone(), assistant_id.into()), now)?;
        Some(Found { principal: Some(principal), assistant: Some(assistant) })
    }

    /// Who owns this key, and their assistant of this name.
    pub async fn find(&self, key: KeyHash, assistant_id: &str) -> Result<Found, StoreError> {
        let Some(principal) = self.principal(key).await? else { return Ok(Found::default()) };
        let assistant = self.assistant(&principal.tenant_id, assistant_id).await?;
        Ok(Found { principal: Some(principal), assistant })
    }

    /// The answer to an admission's question, if the cache has the whole of it.
    pub fn look_up_cached(&self, credential: &Credential) -> Option<Found> {
        match (&credential.proof, credential.principal()) {
            (Proof::Key(key), _) => self.find_cached(*key, &credential.assistant_id),
            (_, None) => None,
            (_, Some(principal)) => {
                let key = (principal.tenant_id.clone(), credential.assistant_id.clone());
                let assistant = self.lock().assistants.get(&key, Instant::now())?;
                Some(Found { principal: Some(principal), assistant: Some(assistant) })
            }
        }
    }

    /// The answer to an admission's question: whose key it is unless the credential says so itself, and the assistant.
    pub async fn look_up(&self, credential: &Credential) -> Result<Found, StoreError> {
        match (&credential.proof, credential.principal()) {
            (Proof::Key(key), _) => self.find(*key, &credential.assistant_id).await,
            (_, None) => Ok(Found::default()),
            (_, Some(principal)) => {
                let assistant = self.assistant(&principal.tenant_id, &credential.assistant_id).await?;
                Ok(Found { principal: Some(principal), assistant })
            }
        }
    }

    /// Who owns this key.
    pub async fn principal(&self, key: KeyHash) -> Result<Option<Principal>, StoreError> {
        {
            let (caches, now) = (self.lock(), Instant::now());
            if let Some(principal) = caches.principals.get(&key, now) {
                return Ok(Some(principal));
            }
            if caches.misses.get(&key, now).is_some() {
                return Ok(None);
            }
        }
        let rows: Vec<(String, String, Vec<u8>)> = sqlx::query_as(
            "SELECT key_id, tenant_id, hash FROM api_keys WHERE lookup = $1 AND revoked_ms IS NULL",
        )
        .bind(&key.0[..LOOKUP_LEN])
        .fetch_all(&self.pool)
        .await?;
        let owner = rows.into_iter().find(|(_, _, hash)| hash.as_slice().ct_eq(&key.0).into());
        let Some((key_id, tenant_id, _)) = owner else {
            self.lock().misses.put(key, (), Instant::now());
            return Ok(None);
        };
        let principal = Principal { tenant_id: tenant_id.into(), key_id: key_id.into() };
        self.lock().principals.put(key, principal.clone(), Instant::now());
        Ok(Some(principal))
    }

    /// This tenant's assistant of this name.
    pub async fn assistant(&self, tenant_id: &Arc<str>, id: &str) -> Result<Option<Assistant>, StoreError> {
        let cache_key = (tenant_id.clone(), Arc::from(id));
        if let Some(assistant) = self.lock().assistants.get(&cache_key, Instant::now()) {
            return Ok(Some(assistant));
        }
        let row: Option<(String, String)> = sqlx::query_as(
            "SELECT agent_kind, agent_options FROM assistants WHERE tenant_id = $1 AND assistant_id = $2",
        )
        .bind(&**tenant_id)
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        let Some((kind, options)) = row else { return Ok(None) };
        let agent = Agent::from_stored(&kind, &options).map_err(|error| Arc::from(error.to_string()));
        let assistant = Assistant { assistant_id: cache_key.1.clone(), agent };
        self.lock().assistants.put(cache_key, assistant.clone(), Instant::now());
        Ok(Some(assistant))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Caches> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a tenant has this assistant.
pub async fn has_assistant(
    pool: &SqlitePool,
    tenant_id: &str,
    assistant_id: &str,
) -> Result<bool, StoreError> {
    let query = "SELECT count(*) FROM assistants WHERE tenant_id = $1 AND assistant_id = $2";
    let count: i64 = sqlx::query_scalar(query).bind(tenant_id).bind(assistant_id).fetch_one(pool).await?;
    Ok(count > 0)
}

/// Adds a tenant; nothing happens when it is there.
pub async fn put_tenant(pool: &SqlitePool, tenant_id: &str, name: &str) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO tenants (tenant_id, name, created_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
    )
    .bind(tenant_id)
    .bind(name)
    .bind(super::epoch_ms())
    .execute(pool)
    .await?;
    Ok(())
}

/// How a key or an assistant came into the database, and so who may take it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// By the API, the demo, or a test.
    Api,
    /// From tandem.toml: it goes when it is gone from there.
    File,
}

impl Origin {
    const fn word(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::File => "file",
        }
    }
}

/// Takes away all keys and assistants of this origin.
pub async fn remove_of(pool: &SqlitePool, origin: Origin) -> Result<(), StoreError> {
    for query in ["DELETE FROM api_keys WHERE origin = $1", "DELETE FROM assistants WHERE origin = $1"] {
        sqlx::query(query).bind(origin.word()).execute(pool).await?;
    }
    Ok(())
}

/// Adds an API key; nothing happens when its id is there.
pub async fn put_key(pool: &SqlitePool, tenant_id: &str, key_id: &str, key: &str) -> Result<(), StoreError> {
    put_key_of(pool, Origin::Api, tenant_id, key_id, key).await
}

/// The same, with where it came from.
pub async fn put_key_of(
    pool: &SqlitePool,
    origin: Origin,
    tenant_id: &str,
    key_id: &str,
    key: &str,
) -> Result<(), StoreError> {
    let hash = KeyHash::of(key);
    // A quarter of the key at most, so that the prefix of a short key does not give it away.
    let prefix: String = key.chars().take((key.chars().count() / 4).min(8)).collect();
    sqlx::query(
        "INSERT INTO api_keys (key_id, tenant_id, prefix, lookup, hash, created_ms, origin)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
    )
    .bind(key_id)
    .bind(tenant_id)
    .bind(prefix)
    .bind(&hash.0[..LOOKUP_LEN])
    .bind(&hash.0[..])
    .bind(super::epoch_ms())
    .bind(origin.word())
    .execute(pool)
    .await?;
    Ok(())
}

/// Adds an assistant, or gives it another agent.
pub async fn put_assistant(
    pool: &SqlitePool,
    tenant_id: &str,
    assistant_id: &str,
    kind: &str,
    options: &serde_json::Value,
) -> Result<(), StoreError> {
    put_assistant_of(pool, Origin::Api, tenant_id, assistant_id, kind, options).await
}

/// The same, with where it came from: the last who puts it there owns it.
pub async fn put_assistant_of(
    pool: &SqlitePool,
    origin: Origin,
    tenant_id: &str,
    assistant_id: &str,
    kind: &str,
    options: &serde_json::Value,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO assistants (tenant_id, assistant_id, agent_kind, agent_options, created_ms, origin)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (tenant_id, assistant_id)
         DO UPDATE SET agent_kind = excluded.agent_kind, agent_options = excluded.agent_options,
                       origin = excluded.origin",
    )
    .bind(tenant_id)
    .bind(assistant_id)
    .bind(kind)
    .bind(options.to_string())
    .bind(super::epoch_ms())
    .bind(origin.word())
    .execute(pool)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Database;
    use crate::store;

    async fn accounts() -> (SqlitePool, Accounts) {
        let pool = store::open(&Database::Memory).await.unwrap();
        put_tenant(&pool, "t1", "one").await.unwrap();
        put_key(&pool, "t1", "k1", "a-long-enough-key").await.unwrap();
        put_assistant(&pool, "t1", "desk", "echo", &json!({})).await.unwrap();
        (pool.clone(), Accounts::new(pool))
    }

    #[tokio::test]
    async fn right_key_finds_its_tenant_and_assistant() {
        let (_, accounts) = accounts().await;
        let found = accounts.find(KeyHash::of("a-long-enough-key"), "desk").await.unwrap();
        assert_eq!(&*found.principal.unwrap().tenant_id, "t1");
        assert_eq!(found.assistant.unwrap().agent.unwrap(), Agent::Echo);
    }

    #[tokio::test]
    async fn wrong_key_finds_nothing_even_of_assistants_that_exist() {
        let (_, accounts) = accounts().await;
        let found = accounts.find(KeyHash::of("a-long-enough-kez"), "desk").await.unwrap();
        assert!(found.principal.is_none() && found.assistant.is_none());
    }

    #[tokio::test]
    async fn tenant_does_not_see_the_assistants_of_another() {
        let (pool, accounts) = accounts().await;
        put_tenant(&pool, "t2", "two").await.unwrap();
        put_key(&pool, "t2", "k2", "another-key").await.unwrap();
        let found = accounts.find(KeyHash::of("another-key"), "desk").await.unwrap();
        assert!(found.principal.is_some() && found.assistant.is_none());
    }

    #[tokio::test]
    async fn key_with_the_same_index_octets_is_still_another_key() {
        let (pool, accounts) = accounts().await;
        // The row is found by the index, so only the comparison of the whole hash can refuse it.
        sqlx::query("UPDATE api_keys SET hash = $1").bind(&[0u8; 32][..]).execute(&pool).await.unwrap();
        assert!(accounts.principal(KeyHash::of("a-long-enough-key")).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn only_what_was_found_is_remembered() {
        let (pool, accounts) = accounts().await;
        let key = KeyHash::of("a-long-enough-key");
        assert!(accounts.find_cached(key, "desk").is_none());
        accounts.find(key, "desk").await.unwrap();
        assert!(accounts.find_cached(key, "desk").is_some());
        accounts.find(key, "nobody").await.unwrap();
        assert!(accounts.find_cached(key, "nobody").is_none());
        put_assistant(&pool, "t1", "nobody", "tone", &json!({})).await.unwrap();
        assert!(accounts.find(key, "nobody").await.unwrap().assistant.is_some());
    }

    #[tokio::test]
    async fn wrong_key_is_asked_for_once_and_pushes_no_good_one_out() {
        let (pool, accounts) = accounts().await;
        let (good, wrong) = (KeyHash::of("a-long-enough-key"), KeyHash::of("not-yet"));
        accounts.find(good, "desk").await.unwrap();
        assert!(accounts.principal(wrong).await.unwrap().is_none());
        put_key(&pool, "t1", "k2", "not-yet").await.unwrap();
        assert!(accounts.principal(wrong).await.unwrap().is_none(), "known to be wrong for a moment");
        for n in 0..2 * CACHE_ENTRIES {
            accounts.lock().misses.put(KeyHash::of(&n.to_string()), (), Instant::now());
        }
        assert!(accounts.find_cached(good, "desk").is_some());
    }

    #[tokio::test]
    async fn revoked_key_is_no_key() {
        let (pool, accounts) = accounts().await;
        sqlx::query("UPDATE api_keys SET revoked_ms = 1").execute(&pool).await.unwrap();
        assert!(accounts.principal(KeyHash::of("a-long-enough-key")).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn neither_key_nor_hash_is_shown() {
        let (pool, _) = accounts().await;
        assert_eq!(format!("{:?}", KeyHash::of("x")), "KeyHash(…)");
        let prefix: String =
            sqlx::query_scalar("SELECT prefix FROM api_keys").fetch_one(&pool).await.unwrap();
        assert_eq!(prefix, "a-lo");
    }
}
