//! Tenants, their API keys and their assistants as tandem.toml declares them: `[[tenant]]` and `[[assistant]]`.
//!
//! ```text
//!   tandem.toml ──read──▶ Declared ──apply──▶ accounts (origin = 'file')
//! ```
//!
//! What a file has declared and declares no more is taken away at the next start, so that a key that was removed from
//! the file is no key any more. What came by another way is left alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sqlx::SqlitePool;

use super::StoreError;
use super::accounts::{self, Origin};
use crate::call::agent::Agent;
use crate::settings::section::{Section, Source};

/// The tenant of tables that name none, when the file declares no tenant.
pub const DEFAULT_TENANT: &str = "default";
/// The tenant of the demo data, which the file may name when the demo is on.
pub const DEMO_TENANT: &str = "demo";
/// Octets of a key from the file: a shorter one can be guessed.
const KEY_MIN: usize = 16;

/// What a file declares.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    /// In the file's order.
    pub tenants: Vec<Tenant>,
    /// In the file's order.
    pub assistants: Vec<Assistant>,
}

/// One `[[tenant]]`.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Unique.
    pub tenant_id: Arc<str>,
    /// For people.
    pub name: String,
    /// Name and key, by the name.
    pub keys: Vec<(String, SecretString)>,
}

/// One `[[assistant]]`.
#[derive(Clone)]
pub struct Assistant {
    /// Whose.
    pub tenant_id: Arc<str>,
    /// Unique in its tenant; the user of its SIP URI.
    pub assistant_id: Arc<str>,
    /// As [`Agent::from_stored`] knows it.
    pub kind: String,
    /// Its options; headers may be secret.
    pub options: Value,
}

impl std::fmt::Debug for Assistant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = format_args!("{}/{} ({})", self.tenant_id, self.assistant_id, self.kind);
        f.debug_tuple("Assistant").field(&shown).finish()
    }
}

/// Which tenants tables may name, and which one they mean when they name none.
#[derive(Debug)]
pub struct Tenants {
    known: Vec<Arc<str>>,
    default: Option<Arc<str>>,
}

impl Tenants {
    /// Tenants of these tables; the demo's too when the demo is on.
    fn of(declared: &[Tenant], demo: bool) -> Self {
        let mut known: Vec<Arc<str>> = declared.iter().map(|tenant| tenant.tenant_id.clone()).collect();
        let default = match known.as_slice() {
            [] => Some(Arc::from(DEFAULT_TENANT)),
            [only] => Some(only.clone()),
            _ => None,
        };
        if known.is_empty() {
            known.push(DEFAULT_TENANT.into());
        }
        if demo {
            known.push(DEMO_TENANT.into());
        }
        Self { known, default }
    }

    /// The tenant of a table. `None` is reported.
    pub fn of_section(&self, section: &mut Section<'_>) -> Option<Arc<str>> {
        let listed: Vec<&str> = self.known.iter().map(|tenant| &**tenant).collect();
        let expected = format!("a tenant of this file: {}", listed.join(", "));
        match (&self.default, section.has("tenant")) {
            (Some(default), false) => {
                // So that a misspelt key is told what is near.
                let _ = section.text("tenant", &expected);
                Some(default.clone())
            }
            _ => {
                let name = section.needed("tenant", &expected)?;
                let found = self.known.iter().find(|known| ***known == *name).cloned();
                if found.is_none() {
                    section.wrong(format!(
                        "\"tenant\" = \"{name}\" is not {expected}; declare it in [[tenant]]"
                    ));
                }
                found
            }
        }
    }
}

/// Reads both arrays of tables; mistakes are left in `source`.
pub fn read(source: &Source<'_>, tables: &toml::Table, demo: bool) -> (Declared, Tenants) {
    let mut declared = Declared::default();
    for mut section in Section::all(source, "tenant", "id", tables.get("tenant").cloned()) {
        declared.tenants.extend(read_tenant(&mut section, &declared.tenants));
    }
    let tenants = Tenants::of(&declared.tenants, demo);
    let mut seen = HashSet::new();
    for mut section in Section::all(source, "assistant", "id", tables.get("assistant").cloned()) {
        let Some(assistant) = read_assistant(&mut section, &tenants) else { continue };
        if !seen.insert((assistant.tenant_id.clone(), assistant.assistant_id.clone())) {
            section.wrong("there are two of them in this tenant: give each an id of its own");
        }
        declared.assistants.push(assistant);
    }
    if declared.tenants.is_empty() && !declared.assistants.is_empty() {
        let tenant_id = Arc::from(DEFAULT_TENANT);
        declared.tenants.push(Tenant { tenant_id, name: "Default".to_owned(), keys: Vec::new() });
    }
    (declared, tenants)
}

/// An id as it may stand in a SIP URI without escapes.
pub fn is_id(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+');
    text.len() <= 64 && text.bytes().all(fits)
}

/// What [`is_id`] wants, for messages.
pub const ID_EXPECTED: &str =
    "a name of at most 64 letters, digits, \"-\", \"_\", \".\" or \"+\", such as \"desk\"";

fn read_tenant(section: &mut Section<'_>, before: &[Tenant]) -> Option<Tenant> {
    let id = section.needed("id", ID_EXPECTED);
    let name = section.text("name", "a text such as \"Acme\"");
    let mut keys: Vec<(String, SecretString)> = Vec::new();
    for mut key in section.sections("key") {
        let key_id = key.needed("id", ID_EXPECTED);
        let is_given = ["key", "key_env", "key_file"].iter().any(|name| key.has(name));
        let secret = key.secret(["key", "key_env", "key_file"]);
        match &secret {
            Some(secret) if secret.expose_secret().len() < KEY_MIN => {
                key.wrong(format!(
                    "the key has fewer than {KEY_MIN} characters: make one with `openssl rand -hex 24`"
                ));
            }
            Some(_) => {}
            None if !is_given => {
                key.wrong("\"key_env\" is missing: the name of a variable that holds the key (or \"key_file\", or \"key\")");
            }
            None => {}
        }
        let (Some(key_id), Some(secret)) = (key_id, secret) else { continue };
        if keys.iter().any(|(other, _)| *other == key_id) {
            key.wrong("there are two of this id: give each an id of its own");
            continue;
        }
        keys.push((key_id, secret));
    }
    let id = id?;
    if !is_id(&id) {
        section.wrong(format!("\"id\" is not {ID_EXPECTED}"));
        return None;
    }
    if id == DEMO_TENANT {
        section.wrong("\"demo\" is the tenant of `--demo`: give this one another id");
        return None;
    }
    if before.iter().any(|tenant| *tenant.tenant_id == *id) {
        section.wrong("there are two of them: give each an id of its own");
        return None;
    }
    Some(Tenant { name: name.unwrap_or_else(|| id.clone()), tenant_id: id.into(), keys })
}

fn read_assistant(section: &mut Section<'_>, tenants: &Tenants) -> Option<Assistant> {
    let tenant_id = tenants.of_section(section);
    let id = section.needed("id", ID_EXPECTED);
    let agent = "\"echo\", \"tone\", \"file\", \"talker\" (the built-in voice agent), \"websocket\", \"grpc\" or \"audiosocket\" (your own)";
    let kind = section.needed("agent", agent)?;
    let options = match kind.as_str() {
        "echo" | "none" | "talker" => json!({}),
        "tone" => {
            let hertz = section.integer("frequency_hz", 20..=20_000);
            json!({ "frequency_hz": f64::from(hertz.unwrap_or(440)) })
        }
        "file" => {
            let path = section.needed("path", "a file in the engine's media folder, such as \"hello.wav\"");
            json!({ "path": path, "repeat": section.flag("repeat").unwrap_or(false) })
        }
        "websocket" => read_websocket(section),
        "grpc" => read_grpc(section),
        "audiosocket" => {
            let address = section.needed("address", "host:port such as \"127.0.0.1:9092\"");
            let hertz = section.integer("sample_rate_hz", 8_000..=48_000).unwrap_or(8_000);
            if ![8_000, 16_000, 24_000, 48_000].contains(&hertz) {
                section.wrong(format!("\"sample_rate_hz\" = {hertz} is not 8000, 16000, 24000 or 48000"));
            }
            json!({ "address": address, "sample_rate_hz": hertz, "speech": read_speech(section) })
        }
        _ => {
            section.wrong(format!("\"agent\" = \"{kind}\" is not one of {agent}"));
            section.skip_rest();
            return None;
        }
    };
    let (tenant_id, id) = (tenant_id?, id?);
    if !is_id(&id) {
        section.wrong(format!("\"id\" is not {ID_EXPECTED}"));
        return None;
    }
    // What is wrong or missing has been said: an agent that cannot be read is not kept.
    Agent::from_stored(&kind, &options.to_string()).ok()?;
    Some(Assistant { tenant_id, assistant_id: id.into(), kind, options })
}

fn read_websocket(section: &mut Section<'_>) -> Value {
    let url_expected = "a URL such as \"ws://127.0.0.1:8766/\"";
    let url = section.needed("url", url_expected);
    if let Some(url) = url.as_deref().filter(|url| !url.starts_with("ws://") && !url.starts_with("wss://")) {
        section.wrong(format!("\"url\" = \"{url}\" is not {url_expected}"));
    }
    let dialect = section.choice("dialect", &[("pcm", "pcm"), ("twilio", "twilio")]);
    let mut headers: HashMap<String, String> =
        section.texts_by_name("headers", "a table such as { X-Team = \"support\" }").into_iter().collect();
    headers.extend(section.secrets_by_name("headers_env"));
    let custom = section.texts_by_name("custom", "a table such as { language = \"en\" }");
    let speech = read_speech(section);
    json!({ "url": url, "dialect": dialect.unwrap_or("pcm"), "headers": headers, "custom": custom, "speech": speech })
}

fn read_grpc(section: &mut Section<'_>) -> Value {
    let url_expected = "a URL such as \"grpc://127.0.0.1:8770\"";
    let url = section.needed("url", url_expected);
    if let Some(url) =
        url.as_deref().filter(|url| !url.starts_with("grpc://") && !url.starts_with("grpcs://"))
    {
        section.wrong(format!("\"url\" = \"{url}\" is not {url_expected}"));
    }
    let mut headers: HashMap<String, String> =
        section.texts_by_name("headers", "a table such as { x-team = \"support\" }").into_iter().collect();
    headers.extend(section.secrets_by_name("headers_env"));
    let custom = section.texts_by_name("custom", "a table such as { language = \"en\" }");
    json!({ "url": url, "headers": headers, "custom": custom, "speech": read_speech(section) })
}

/// What the engine makes of the caller's speech, of an agent of one's own.
fn read_speech(section: &mut Section<'_>) -> Value {
    let barge_in = section.choice("barge_in", &[("off", "off"), ("pause", "pause"), ("clear", "clear")]);
    let idle_seconds = section.integer("idle_seconds", 1..=86_400).unwrap_or(0);
    json!({
        "barge_in": barge_in.unwrap_or("off"),
        "suppress_silence": section.flag("suppress_silence").unwrap_or(false),
        "idle_seconds": idle_seconds,
        "comfort_noise": section.flag("comfort_noise").unwrap_or(false),
    })
}

impl Declared {
    /// Whether this assistant stands in the file.
    pub fn has_assistant(&self, tenant_id: &str, assistant_id: &str) -> bool {
        let is = |assistant: &Assistant| {
            *assistant.tenant_id == *tenant_id && *assistant.assistant_id == *assistant_id
        };
        self.assistants.iter().any(is)
    }

    /// Brings the accounts of the file up to date, and takes away what is no longer in it.
    pub async fn apply(&self, pool: &SqlitePool) -> Result<(), StoreError> {
        accounts::remove_of(pool, Origin::File).await?;
        for tenant in &self.tenants {
            accounts::put_tenant(pool, &tenant.tenant_id, &tenant.name).await?;
            for (key_id, key) in &tenant.keys {
                // Ids are unique in a tenant only; the table wants one for all.
                let key_id = format!("file:{}:{key_id}", tenant.tenant_id);
                accounts::put_key_of(pool, Origin::File, &tenant.tenant_id, &key_id, key.expose_secret())
                    .await?;
            }
        }
        for assistant in &self.assistants {
            let Assistant { tenant_id, assistant_id, kind, options } = assistant;
            accounts::put_assistant_of(pool, Origin::File, tenant_id, assistant_id, kind, options).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Database;
    use crate::store;
    use crate::store::accounts::{Accounts, KeyHash};

    const KEY: &str = "a-long-enough-key";

    fn read_text(text: &str) -> (Declared, Vec<String>) {
        let tables: toml::Table = text.parse().unwrap();
        let environment = |name: &str| (name == "ACME_KEY").then(|| KEY.to_owned());
        let source = Source::new(Path::new("tandem.toml"), &environment);
        let (declared, _) = read(&source, &tables, false);
        (declared, source.into_errors().iter().map(ToString::to_string).collect())
    }

    #[tokio::test]
    async fn declared_accounts_work_and_go_with_the_file() {
        let pool = store::open(&Database::Memory).await.unwrap();
        accounts::put_tenant(&pool, "other", "Other").await.unwrap();
        accounts::put_assistant(&pool, "other", "kept", "echo", &json!({})).await.unwrap();
        let (declared, errors) = read_text(
            "[[tenant]]\nid = 'acme'\n[[tenant.key]]\nid = 'ops'\nkey_env = 'ACME_KEY'\n\
             [[assistant]]\nid = 'desk'\nagent = 'websocket'\nurl = 'ws://127.0.0.1:8766/'\n",
        );
        assert!(errors.is_empty(), "{errors:?}");
        declared.apply(&pool).await.unwrap();
        declared.apply(&pool).await.unwrap();
        let found = Accounts::new(pool.clone()).find(KeyHash::of(KEY), "desk").await.unwrap();
        assert_eq!(&*found.principal.unwrap().tenant_id, "acme");
        assert!(found.assistant.unwrap().agent.is_ok());

        Declared::default().apply(&pool).await.unwrap();
        let found = Accounts::new(pool.clone()).find(KeyHash::of(KEY), "desk").await.unwrap();
        assert!(found.principal.is_none());
        let left: Vec<String> =
            sqlx::query_scalar("SELECT assistant_id FROM assistants").fetch_all(&pool).await.unwrap();
        assert_eq!(left, ["kept"]);
    }

    #[test]
    fn without_tenants_everything_is_the_default_tenants() {
        let (declared, errors) = read_text("[[assistant]]\nid = 'desk'\nagent = 'echo'");
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(&*declared.assistants[0].tenant_id, DEFAULT_TENANT);
        assert_eq!(declared.tenants.len(), 1);
    }

    #[test]
    fn of_several_tenants_each_table_must_name_one_that_is_declared() {
        let tenants =
            "[[tenant]]\nid = 'a'\n[[tenant]]\nid = 'b'\n[[assistant]]\nid = 'desk'\nagent = 'echo'\n";
        let (_, errors) = read_text(tenants);
        assert!(errors[0].ends_with("\"tenant\" is missing: a tenant of this file: a, b"), "{errors:?}");
        let (_, errors) = read_text(&format!("{tenants}tenant = 'c'"));
        assert!(errors[0].contains("\"tenant\" = \"c\" is not a tenant of this file"), "{errors:?}");
    }

    #[test]
    fn mistakes_are_named_and_no_secret_is_shown() {
        for (text, said) in [
            ("[[tenant]]\nid = 'a'\n[[tenant.key]]\nid = 'k'\nkey = 'hunter2'", "fewer than 16 characters"),
            ("[[tenant]]\nid = 'a'\n[[tenant.key]]\nid = 'k'", "\"key_env\" is missing"),
            ("[[tenant]]\nid = 'demo'", "the tenant of `--demo`"),
            ("[[tenant]]\nid = 'a b'", "\"id\" is not a name"),
            ("[[assistant]]\nid = 'x'\nagent = 'parrot'", "\"agent\" = \"parrot\" is not one of \"echo\""),
            ("[[assistant]]\nid = 'x'\nagent = 'echo'\nurl = 'ws://a'", "unknown key \"url\""),
            (
                "[[assistant]]\nid = 'x'\nagent = 'websocket'\nurl = 'http://a'",
                "\"url\" = \"http://a\" is not",
            ),
            ("[[assistant]]\nid = 'x'\nagent = 'websocket'", "\"url\" is missing"),
            (
                "[[assistant]]\nid = 'x'\nagent = 'echo'\n[[assistant]]\nid = 'x'\nagent = 'echo'",
                "two of them",
            ),
        ] {
            let (_, errors) = read_text(text);
            assert!(errors.iter().any(|error| error.contains(said)), "{text}: {errors:?}");
            assert!(errors.iter().all(|error| !error.contains("hunter2")), "{errors:?}");
        }
    }
}
