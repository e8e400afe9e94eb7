//! Contexts in Redis: for several control planes, and for one that is restarted under its calls.
//!
//! ```text
//!   tandem:{CALL}:record    hash: context (JSON), claim, ended     lives RECORD_TTL, after the end GRACE
//!   tandem:{CLAIM}:claim    f|t|d, epoch, call: fresh, taken, dropped
//!   tandem:{EVENT}:event    call
//!   tandem:{NAME}:lease     owner
//!   tandem:{NAME}:word      the first that was said
//!   tandem:{ENGINE}:ports   sorted set: RTP ports of an engine's instance, by when each is free      lives PORTS_TTL from its heartbeat
//!   tandem:{ENGINE}:engine  the engine as it says itself (JSON)
//! ```
//!
//! Each operation that decides something is one script over one key, so that it is atomic and runs in a cluster, where the
//! keys of a call lie on several nodes. A record is written before its claim: what can be taken can be read.
//!
//! Nothing is tried twice here. What is not done in [`ANSWER_WITHIN`] is [`ContextError::Unreachable`]: it may have been
//! done or not. Whoever presented a claim is then refused, since somebody else may hold it.
//!
//! A fresh claim remembers which life of the server it was written in. After a failover the new server may not know that
//! one was taken in the old one's last moment, so those of the old one are refused there. (A cluster has several servers;
//! there this is not seen.)

use std::collections::BTreeMap;
use std::time::Duration;

use ::redis::{Cmd, RedisError, Script, Value, cmd};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    CallContext, Claim, ContextError, ContextStore, GRACE, Mint, Owner, ProviderSide, RECORD_TTL, RETAKE_TTL,
};

pub mod link;
#[cfg(test)]
mod tests;

use link::{Connection, Link, Up};
pub use link::{RedisUrl, UrlError};

/// What is not done in this time is not done: a webhook must be answered, and a socket is waiting.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Contexts in Redis.
#[derive(Debug)]
pub struct RedisContexts {
    link: Link,
    scripts: Scripts,
}

#[derive(Debug)]
struct Scripts {
    put: Script,
    restore: Script,
    turn: Script,
    end: Script,
    shorten: Script,
    acquire: Script,
    renew: Script,
    release: Script,
    first_word: Script,
    offer_ports: Script,
    lease_port: Script,
    rest_ports: Script,
    renew_ports: Script,
}

impl Scripts {
    fn new() -> Self {
        Self {
            // Gives 1 if there was no record, 1 if its call is over, and the claim that it had. What is over stays so.
            put: Script::new(
                "local was = redis.call('EXISTS', KEYS[1])
                 local ended = redis.call('HEXISTS', KEYS[1], 'ended')
                 local claim = redis.call('HGET', KEYS[1], 'claim')
                 redis.call('HSET', KEYS[1], 'context', ARGV[1])
                 if ended == 1 then return {0, 1, claim or ''} end
                 if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'claim', ARGV[2]) end
                 redis.call('PEXPIRE', KEYS[1], ARGV[3])
                 return {1 - was, 0, claim or ''}",
            ),
            restore: Script::new(
                "if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
                 redis.call('HSET', KEYS[1], 'context', ARGV[1])
                 redis.call('PEXPIRE', KEYS[1], ARGV[2])
                 return 1",
            ),
            // From one state of a claim to another, once, where an epoch is given in that epoch alone: gives the call.
            turn: Script::new(
                "local held = redis.call('GET', KEYS[1])
                 if not held or string.sub(held, 1, 1) ~= ARGV[1] then return false end
                 if ARGV[4] ~= '' and string.sub(held, 2, 9) ~= ARGV[4] then return false end
                 local rest = string.sub(held, 2)
                 redis.call('SET', KEYS[1], ARGV[2] .. rest, 'PX', ARGV[3])
                 return string.sub(rest, 9)",
            ),
            // Gives the claim and the context.
            end: Script::new(
                "if redis.call('EXISTS', KEYS[1]) == 0 then return {false, false} end
                 redis.call('HSET', KEYS[1], 'ended', '1')
                 return redis.call('HMGET', KEYS[1], 'claim', 'context')",
            ),
            shorten: Script::new(
                "if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end",
            ),
            acquire: Script::new(
                "local holder = redis.call('GET', KEYS[1])
                 if holder and holder ~= ARGV[1] then return 0 end
                 redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
                 return 1",
            ),
            renew: Script::new(
                "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
                 return redis.call('PEXPIRE', KEYS[1], ARGV[2])",
            ),
            release: Script::new(
                "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end",
            ),
            // A pool of ports that is not there is made: each free since the beginning of time, in the order given.
            offer_ports: Script::new(
                "local is_new = redis.call('EXISTS', KEYS[1]) == 0
                 if is_new then
                     for number = 4, #ARGV do redis.call('ZADD', KEYS[1], number - 4, ARGV[number]) end
                 end
                 redis.call('PEXPIRE', KEYS[1], ARGV[1])
                 redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
                 return is_new and 1 or 0",
            ),
            // The port that has been free for longest, from then on somebody's for so long.
            lease_port: Script::new(
                "local time = redis.call('TIME')
                 local now = time[1] * 1000 + math.floor(time[2] / 1000)
                 local free = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)
                 if not free[1] then return {redis.call('EXISTS', KEYS[1]), ''} end
                 redis.call('ZADD', KEYS[1], now + ARGV[1], free[1])
                 return {1, free[1]}",
            ),
            rest_ports: Script::new(
                "local time = redis.call('TIME')
                 local now = time[1] * 1000 + math.floor(time[2] / 1000)
                 for number = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], ARGV[number]) end",
            ),
            renew_ports: Script::new(
                "local time = redis.call('TIME')
                 local now = time[1] * 1000 + math.floor(time[2] / 1000)
                 for number = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', 'GT', now + ARGV[1], ARGV[number]) end",
            ),
            first_word: Script::new(
                "local first = redis.call('GET', KEYS[1])
                 if first then return first end
                 redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
                 return ARGV[1]",
            ),
        }
    }
}

/// States of a claim.
const FRESH: &str = "f";
const TAKEN: &str = "t";
const DROPPED: &str = "d";

fn record_key(call_id: Uuid) -> String {
    format!("tandem:{{{call_id}}}:record")
}

fn claim_key(claim: Claim) -> String {
    format!("tandem:{{{}}}:claim", claim.0)
}

fn event_key(event_id: Uuid) -> String {
    format!("tandem:{{{event_id}}}:event")
}

fn lease_key(name: &str) -> String {
    format!("tandem:{{{name}}}:lease")
}

fn word_key(name: &str) -> String {
    format!("tandem:{{{name}}}:word")
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A context as it is written. Fields that a later version adds are ignored by an earlier one.
#[derive(Serialize, Deserialize)]
struct Written {
    call_id: Uuid,
    tenant_id: String,
    assistant_id: String,
    direction: String,
    from: String,
    to: String,
    #[serde(default)]
    engine: String,
    #[serde(default)]
    provider: Option<ProviderSide>,
    #[serde(default)]
    arguments: BTreeMap<String, String>,
}

fn write(context: &CallContext) -> Result<String, ContextError> {
    serde_json::to_string(&Written {
        call_id: context.call_id,
        tenant_id: context.tenant_id.to_string(),
        assistant_id: context.assistant_id.to_string(),
        direction: context.direction.to_owned(),
        from: context.from.clone(),
        to: context.to.clone(),
        engine: context.engine.clone(),
        provider: context.provider.clone(),
        arguments: context.arguments.clone(),
    })
    .map_err(|error| ContextError::Unreadable(error.to_string()))
}

fn read(text: &str) -> Result<CallContext, ContextError> {
    // What it says may be private; where it is wrong is not.
    let written: Written = serde_json::from_str(text)
        .map_err(|error| ContextError::Unreadable(format!("JSON is wrong at column {}", error.column())))?;
    Ok(CallContext {
        call_id: written.call_id,
        tenant_id: written.tenant_id.into(),
        assistant_id: written.assistant_id.into(),
        direction: match &*written.direction {
            "inbound" => "inbound",
            "outbound" => "outbound",
            _ => {
                return Err(ContextError::Unreadable("its direction is neither inbound nor outbound".into()));
            }
        },
        from: written.from,
        to: written.to,
        engine: written.engine,
        provider: written.provider,
        arguments: written.arguments,
    })
}

/// What came of asking for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leased {
    /// This one, which is even; the odd one behind it is its pair.
    Port(u16),
    /// None is free.
    Dry,
    /// There is no pool: the engine has not been heard of.
    NoPool,
}

fn ports_key(instance_id: &str) -> String {
    format!("tandem:{{{instance_id}}}:ports")
}

fn engine_key(instance_id: &str) -> String {
    format!("tandem:{{{instance_id}}}:engine")
}

/// What is told of an error: its kind. Not what the server adds, which may repeat a command, and so a claim.
fn said(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("{}: {code}", error.category()),
        None => error.category().to_owned(),
    }
}

/// Whoever was asked is not the right one any more, or is gone.
fn is_lost(error: &RedisError) -> bool {
    // Redis 6 says it inside of another error, when a script wanted to write.
    let is_replica =
        error.code() == Some("READONLY") || error.detail().is_some_and(|detail| detail.contains("READONLY"));
    error.is_unrecoverable_error() || error.is_io_error() || error.is_timeout() || is_replica
}

fn info() -> Cmd {
    let mut info = cmd("INFO");
    info.arg("server");
    info
}

fn incarnation_in(answer: &Value) -> String {
    let mut ids = Vec::new();
    run_ids(answer, &mut ids);
    ids.sort_unstable();
    ids.join(" ")
}

impl RedisContexts {
    /// Contexts there. Connects when something is first asked, so that a control plane starts without its Redis too.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn new(url: &RedisUrl) -> Result<Self, UrlError> {
        Ok(Self { link: Link::new(url)?, scripts: Scripts::new() })
    }

    /// All of an operation, which does not take for ever.
    async fn within<T>(
        &self,
        operation: impl Future<Output = Result<T, ContextError>> + Send,
    ) -> Result<T, ContextError> {
        let generation = self.link.generation();
        match tokio::time::timeout(ANSWER_WITHIN, operation).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.link.give_up(generation);
                Err(ContextError::Unreachable(format!("no answer in {} s", ANSWER_WITHIN.as_secs())))
            }
        }
    }

    async fn up(&self) -> Result<Up, ContextError> {
        self.link.connection().await.map_err(ContextError::Unreachable)
    }

    /// One question.
    async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut Connection) -> Result<T, RedisError>,
    ) -> Result<T, ContextError> {
        let Up { mut connection, generation, .. } = self.up().await?;
        question(&mut connection).await.map_err(|error| {
            if is_lost(&error) {
                self.link.give_up(generation);
            }
            ContextError::Unreachable(said(&error))
        })
    }

    async fn command(&self, command: &Cmd) -> Result<(), ContextError> {
        self.ask(async |connection| command.query_async::<()>(connection).await).await
    }

    /// Turns a claim from one state to the other; gives its call.
    async fn turn(
        &self,
        claim: Claim,
        [from, to]: [&str; 2],
        ttl: Duration,
        epoch: &str,
    ) -> Result<Option<Uuid>, ContextError> {
        let script = &self.scripts.turn;
        let call_id: Option<String> = self
            .ask(async |connection| {
                script
                    .key(claim_key(claim))
                    .arg(from)
                    .arg(to)
                    .arg(ms(ttl))
                    .arg(epoch)
                    .invoke_async(connection)
                    .await
            })
            .await?;
        let call_id = call_id.as_deref().map(Uuid::parse_str).transpose();
        call_id.map_err(|_| ContextError::Unreadable("a claim of no call".into()))
    }

    /// Says that an engine is alive, and keeps the pool of its ports. `true`: there was none, and these are it now, in this order.
    ///
    /// # Errors
    /// No answer.
    pub async fn offer_ports(
        &self,
        instance_id: &str,
        ports: &[u16],
        engine: &str,
        ttl: Duration,
    ) -> Result<bool, ContextError> {
        let script = &self.scripts.offer_ports;
        let is_new: u8 = self
            .within(self.ask(async |connection| {
                let mut call = script.key(ports_key(instance_id));
                call.key(engine_key(instance_id)).arg(ms(ttl)).arg(engine).arg(ms(ttl));
                for port in ports {
                    call.arg(port);
                }
                call.invoke_async(connection).await
            }))
            .await?;
        Ok(is_new == 1)
    }

    /// The port that has been free for longest, for `ttl` from now.
    ///
    /// # Errors
    /// No answer: it may be leased now, and is free again after `ttl`.
    pub async fn lease_port(&self, instance_id: &str, ttl: Duration) -> Result<Leased, ContextError> {
        let script = &self.scripts.lease_port;
        let (has_pool, port): (u8, String) = self
            .within(self.ask(async |connection| {
                script.key(ports_key(instance_id)).arg(ms(ttl)).invoke_async(connection).await
            }))
            .await?;
        match (has_pool, port.parse()) {
            (_, Ok(port)) => Ok(Leased::Port(port)),
            (0, _) => Ok(Leased::NoPool),
            _ => Ok(Leased::Dry),
        }
    }

    /// These are free after `rest`.
    ///
    /// # Errors
    /// No answer.
    pub async fn rest_ports(
        &self,
        instance_id: &str,
        ports: &[u16],
        rest: Duration,
    ) -> Result<(), ContextError> {
        self.set_ports(&self.scripts.rest_ports, instance_id, ports, rest).await
    }

    /// These stay leased for `ttl` from now.
    ///
    /// # Errors
    /// No answer.
    pub async fn renew_ports(
        &self,
        instance_id: &str,
        ports: &[u16],
        ttl: Duration,
    ) -> Result<(), ContextError> {
        self.set_ports(&self.scripts.renew_ports, instance_id, ports, ttl).await
    }

    async fn set_ports(
        &self,
        script: &Script,
        instance_id: &str,
        ports: &[u16],
        time: Duration,
    ) -> Result<(), ContextError> {
        self.within(self.ask(async |connection| {
            let mut call = script.key(ports_key(instance_id));
            call.arg(ms(time));
            for port in ports {
                call.arg(port);
            }
            call.invoke_async(connection).await
        }))
        .await
    }

    async fn shorten(&self, key: String) -> Result<(), ContextError> {
        let script = &self.scripts.shorten;
        self.ask(async |connection| script.key(key).arg(ms(GRACE)).invoke_async(connection).await).await
    }

    async fn read_record(&self, call_id: Uuid) -> Result<Option<CallContext>, ContextError> {
        let mut get = cmd("HGET");
        get.arg(record_key(call_id)).arg("context");
        let text: Option<String> = self.ask(async |connection| get.query_async(connection).await).await?;
        text.map(|text| read(&text)).transpose()
    }

    /// The record of a claim that was turned just now; not of a call that is over.
    async fn claimed(&self, call_id: Option<Uuid>) -> Result<Option<CallContext>, ContextError> {
        let Some(call_id) = call_id else { return Ok(None) };
        let mut get = cmd("HMGET");
        get.arg(record_key(call_id)).arg("context").arg("ended");
        let (text, ended): (Option<String>, Option<String>) =
            self.ask(async |connection| get.query_async(connection).await).await?;
        text.filter(|_| ended.is_none()).map(|text| read(&text)).transpose()
    }

    /// Where callbacks find the call.
    async fn put_event(&self, context: &CallContext) -> Result<(), ContextError> {
        let Some(provider) = &context.provider else { return Ok(()) };
        let mut set = cmd("SET");
        set.arg(event_key(provider.event_id)).arg(context.call_id.to_string()).arg("PX").arg(ms(RECORD_TTL));
        self.command(&set).await
    }

    async fn do_put(&self, context: CallContext, claim: Option<Mint>) -> Result<bool, ContextError> {
        let text = write(&context)?;
        let call_id = context.call_id;
        self.put_event(&context).await?;
        let script = &self.scripts.put;
        let named = claim.map_or_else(String::new, |mint| mint.claim.0.to_string());
        let (is_new, is_over, earlier): (u8, u8, String) = self
            .ask(async |connection| {
                script
                    .key(record_key(call_id))
                    .arg(text)
                    .arg(named)
                    .arg(ms(RECORD_TTL))
                    .invoke_async(connection)
                    .await
            })
            .await?;
        let Some(Mint { claim, ttl }) = claim.filter(|_| is_over == 0) else { return Ok(is_new == 1) };
        if let Ok(earlier) = Uuid::parse_str(&earlier).map(Claim)
            && earlier != claim
        {
            self.command(cmd("DEL").arg(claim_key(earlier))).await?;
        }
        let epoch = self.up().await?.epoch;
        let held = format!("{FRESH}{epoch}{call_id}");
        // One that is there stays what it is: it may be taken.
        self.command(cmd("SET").arg(claim_key(claim)).arg(held).arg("NX").arg("PX").arg(ms(ttl))).await?;
        Ok(is_new == 1)
    }

    /// In such an order that whoever is interrupted can begin again: the record is last to be shortened.
    async fn do_finish(&self, call_id: Uuid) -> Result<(), ContextError> {
        let script = &self.scripts.end;
        let (claim, context): (Option<String>, Option<String>) = self
            .ask(async |connection| script.key(record_key(call_id)).invoke_async(connection).await)
            .await?;
        if let Some(Ok(claim)) = claim.as_deref().map(Uuid::parse_str) {
            self.command(cmd("DEL").arg(claim_key(Claim(claim)))).await?;
        }
        if let Some(Ok(CallContext { provider: Some(provider), .. })) = context.as_deref().map(read) {
            self.shorten(event_key(provider.event_id)).await?;
        }
        self.shorten(record_key(call_id)).await
    }
}

impl ContextStore for RedisContexts {
    async fn put(&self, context: CallContext, claim: Option<Mint>) -> Result<bool, ContextError> {
        self.within(self.do_put(context, claim)).await
    }

    async fn restore(&self, context: CallContext) -> Result<bool, ContextError> {
        let text = write(&context)?;
        let key = record_key(context.call_id);
        let script = &self.scripts.restore;
        self.within(async {
            self.put_event(&context).await?;
            self.ask(async |connection| {
                script.key(key).arg(text).arg(ms(RECORD_TTL)).invoke_async(connection).await
            })
            .await
        })
        .await
    }

    async fn get(&self, call_id: Uuid) -> Result<Option<CallContext>, ContextError> {
        self.within(self.read_record(call_id)).await
    }

    async fn by_event(&self, event_id: Uuid) -> Result<Option<CallContext>, ContextError> {
        let mut get = cmd("GET");
        get.arg(event_key(event_id));
        self.within(async {
            let call_id: Option<String> =
                self.ask(async |connection| get.query_async(connection).await).await?;
            match call_id.as_deref().map(Uuid::parse_str) {
                None => Ok(None),
                Some(Ok(call_id)) => self.read_record(call_id).await,
                Some(Err(_)) => Err(ContextError::Unreadable("an event of no call".into())),
            }
        })
        .await
    }

    async fn peek(&self, claim: Claim) -> Result<Option<CallContext>, ContextError> {
        let mut get = cmd("GET");
        get.arg(claim_key(claim));
        self.within(async {
            let held: Option<String> = self.ask(async |connection| get.query_async(connection).await).await?;
            // One octet of state and eight of an epoch stand before the call.
            let call_id = held.as_deref().and_then(|held| held.get(9..)).map(Uuid::parse_str).transpose();
            self.claimed(call_id.map_err(|_| ContextError::Unreadable("a claim of no call".into()))?).await
        })
        .await
    }

    async fn claim_of(&self, call_id: Uuid) -> Result<Option<Claim>, ContextError> {
        let mut get = cmd("HMGET");
        get.arg(record_key(call_id)).arg("claim").arg("ended");
        self.within(async {
            let (claim, ended): (Option<String>, Option<String>) =
                self.ask(async |connection| get.query_async(connection).await).await?;
            Ok(claim.filter(|_| ended.is_none()).and_then(|claim| claim.parse().ok()).map(Claim))
        })
        .await
    }

    async fn first_word(&self, name: &str, word: &str, ttl: Duration) -> Result<String, ContextError> {
        let script = &self.scripts.first_word;
        self.within(self.ask(async |connection| {
            script.key(word_key(name)).arg(word).arg(ms(ttl)).invoke_async(connection).await
        }))
        .await
    }

    async fn take(&self, claim: Claim) -> Result<Option<CallContext>, ContextError> {
        self.within(async {
            let epoch = self.up().await?.epoch;
            let call_id = self.turn(claim, [FRESH, TAKEN], RECORD_TTL, &epoch).await?;
            self.claimed(call_id).await
        })
        .await
    }

    async fn dropped(&self, claim: Claim) -> Result<(), ContextError> {
        self.within(self.turn(claim, [TAKEN, DROPPED], RETAKE_TTL, "")).await.map(drop)
    }

    async fn retake(&self, claim: Claim) -> Result<Option<CallContext>, ContextError> {
        self.within(async {
            let call_id = self.turn(claim, [DROPPED, TAKEN], RECORD_TTL, "").await?;
            self.claimed(call_id).await
        })
        .await
    }

    async fn finish(&self, call_id: Uuid) -> Result<(), ContextError> {
        self.within(self.do_finish(call_id)).await
    }

    async fn acquire(&self, name: &str, owner: Owner, ttl: Duration) -> Result<bool, ContextError> {
        let script = &self.scripts.acquire;
        self.within(self.ask(async |connection| {
            script.key(lease_key(name)).arg(owner.0.to_string()).arg(ms(ttl)).invoke_async(connection).await
        }))
        .await
    }

    async fn renew(&self, name: &str, owner: Owner, ttl: Duration) -> Result<bool, ContextError> {
        let script = &self.scripts.renew;
        self.within(self.ask(async |connection| {
            script.key(lease_key(name)).arg(owner.0.to_string()).arg(ms(ttl)).invoke_async(connection).await
        }))
        .await
    }

    async fn release(&self, name: &str, owner: Owner) -> Result<(), ContextError> {
        let script = &self.scripts.release;
        self.within(self.ask(async |connection| {
            script.key(lease_key(name)).arg(owner.0.to_string()).invoke_async(connection).await
        }))
        .await
    }

    /// The run ids of all its servers: a restart or a failover changes one.
    async fn incarnation(&self) -> Result<String, ContextError> {
        self.within(async {
            let answer: Value = self.ask(async |connection| info().query_async(connection).await).await?;
            Ok(incarnation_in(&answer))
        })
        .await
    }
}

/// One text of a single server, a map of them from a cluster.
fn run_ids(answer: &Value, ids: &mut Vec<String>) {
    let mut of = |text: &str| {
        ids.extend(text.lines().filter_map(|line| line.strip_prefix("run_id:")).map(str::to_owned))
    };
    match answer {
        Value::BulkString(octets) => of(&String::from_utf8_lossy(octets)),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => of(text),
        Value::Map(servers) => servers.iter().for_each(|(_, text)| run_ids(text, ids)),
        _ => {}
    }
}
