//! RTP ports are leased in Redis, when there is one: several control planes that share engines never ask for the same port, and a
//! port that was closed by one rests for all.
//!
//! ```text
//!   heartbeat ─▶ offer: the pool of an instance, its entry in the registry        both end 15 s after the last one
//!   Open ─▶ lease: the even port that has been free for longest ─▶ local_port ─▶ engine: busy? quarantine it, lease another
//!   session over ─▶ rest 2 s                                                      live ones are renewed
//! ```
//!
//! The engine's core that owns the port opens it, and has the last word. A second leg must be on its session's core, which takes a port
//! of its own share. Where Redis does not answer, or has lost the pool, the engine
//! takes a port of its own choice: no call is refused for that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::client::EngineClient;
use super::{Addresses, EngineId, Listed};
use crate::call::action::{EngineCommand, EngineRefusal, EngineReply};
use crate::store::contexts::redis::{Leased, RedisContexts};
use crate::store::contexts::{ContextError, Contexts};

/// A pool and a registry entry live so long after the engine's last heartbeat.
pub const PORTS_TTL: Duration = Duration::from_secs(15);
/// A lease that nobody renews ends after this: its control plane is gone.
const LEASE_TTL: Duration = Duration::from_secs(300);
/// How often those of live sessions are renewed: heartbeats between two renewals.
const RENEW_EVERY: u32 = 60;
/// A closed port rests, so that stale media never reach the next call; as the engine itself does it.
const REST: Duration = Duration::from_secs(2);
/// A port that the engine could not open is left alone.
const QUARANTINE: Duration = Duration::from_secs(60);
/// Beyond this an engine chooses: a set-up must not wait for a Redis that is slow.
const LEASE_WITHIN: Duration = Duration::from_millis(50);
/// Ports that one session tries.
const TRIES_MAX: u32 = 8;

/// What an engine has said of its ports.
#[derive(Debug, Clone, Default)]
struct Pool {
    instance_id: String,
    /// In the order in which they are given away: by turns of the cores that own them.
    ports: Arc<[u16]>,
    /// Those in use when its stream came up.
    used: Arc<[u16]>,
    url: String,
    beats: u32,
    is_offering: bool,
}

/// By session: on which instance, and which ports.
type Held = HashMap<Uuid, (String, Vec<u16>)>;

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leases {
    contexts: Arc<Contexts>,
    pools: Arc<Mutex<HashMap<EngineId, Pool>>>,
    held: Arc<Mutex<Held>>,
    counts: Arc<Counts>,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Sessions that found no port free.
    pub dry: AtomicU64,
    /// Ports that an engine could not open.
    pub busy: AtomicU64,
    /// Sessions for which Redis did not answer, so that the engine chose.
    pub unleased: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Even ports of a range by turns of the cores that own them, each a contiguous share.
fn in_turns(range: (u16, u16), cores: usize) -> Vec<u16> {
    let first = u32::from(range.0).next_multiple_of(2);
    let pairs = (u32::from(range.1) + 1).saturating_sub(first) as usize / 2;
    let cores = cores.max(1);
    let share = |core: usize| pairs * core / cores..pairs * (core + 1) / cores;
    let longest = (0..cores).map(|core| share(core).len()).max().unwrap_or_default();
    let turns = (0..longest).flat_map(|turn| (0..cores).filter_map(move |core| share(core).nth(turn)));
    turns.filter_map(|pair| u16::try_from(first + 2 * pair as u32).ok()).collect()
}

impl Leases {
    /// Over this store; nothing is leased in one that is not Redis.
    pub fn new(contexts: Arc<Contexts>) -> Self {
        Self { contexts, pools: Arc::default(), held: Arc::default(), counts: Arc::default() }
    }

    /// What is counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    fn redis(&self) -> Option<&RedisContexts> {
        match &*self.contexts {
            Contexts::Redis(redis) => Some(redis),
            Contexts::Embedded(_) => None,
        }
    }

    /// An engine's stream is up, and these sessions live there.
    pub fn handle_up(
        &self,
        engine: EngineId,
        url: &str,
        instance_id: &str,
        at: &Addresses,
        sessions: &HashMap<Uuid, Listed>,
    ) {
        let pool = Pool {
            instance_id: instance_id.to_owned(),
            ports: in_turns(at.rtp_ports, at.cores).into(),
            used: sessions.values().map(|listed| listed.port).filter(|port| *port != 0).collect(),
            url: url.to_owned(),
            beats: 0,
            is_offering: false,
        };
        // Of this engine's sessions those that do not live there any more: nobody has told their end.
        let before = lock(&self.pools).insert(engine, pool);
        let instances = [Some(instance_id.to_owned()), before.map(|before| before.instance_id)];
        let gone: Vec<Uuid> = {
            let held = lock(&self.held);
            let of_engine = |instance: &String| instances.iter().flatten().any(|own| own == instance);
            let own =
                held.iter().filter(|(id, (instance, _))| of_engine(instance) && !sessions.contains_key(id));
            own.map(|(id, _)| *id).collect()
        };
        gone.into_iter().for_each(|session_id| self.release(session_id));
        self.handle_heartbeat(engine, u32::try_from(sessions.len()).unwrap_or(u32::MAX), false);
    }

    /// An engine is alive.
    pub fn handle_heartbeat(&self, engine: EngineId, sessions: u32, draining: bool) {
        if self.redis().is_none() {
            return;
        }
        let pool = {
            let mut pools = lock(&self.pools);
            let Some(pool) = pools.get_mut(&engine).filter(|pool| !pool.ports.is_empty()) else { return };
            // Redis is slow: one is enough.
            if std::mem::replace(&mut pool.is_offering, true) {
                return;
            }
            pool.beats += 1;
            pool.clone()
        };
        let leases = self.clone();
        tokio::spawn(async move {
            leases.offer(&pool, sessions, draining).await;
            if let Some(pool) = lock(&leases.pools).get_mut(&engine) {
                pool.is_offering = false;
            }
        });
    }

    async fn offer(&self, pool: &Pool, sessions: u32, draining: bool) {
        let Some(redis) = self.redis() else { return };
        let Pool { instance_id, ports, used, url, beats, .. } = pool;
        let ends = (ports.iter().min(), ports.iter().max());
        let entry = json!({ "url": url, "sessions": sessions, "draining": draining,
                            "portMin": ends.0, "portMax": ends.1 });
        let offered = redis.offer_ports(instance_id, ports, &entry.to_string(), PORTS_TTL).await;
        let held = || {
            let held = lock(&self.held);
            let own = held.values().filter(|(instance, _)| instance == instance_id);
            own.flat_map(|(_, ports)| ports.clone()).collect::<Vec<u16>>()
        };
        // A pool that was made anew knows of no lease, nor of what was in use before.
        let is_new = matches!(offered, Ok(true));
        if is_new || beats % RENEW_EVERY == 0 {
            let mut held = held();
            held.extend(used.iter().filter(|_| is_new));
            if !held.is_empty() && redis.renew_ports(instance_id, &held, LEASE_TTL).await.is_err() {
                tracing::debug!(instance_id, "leases of ports are not renewed: Redis does not answer");
            }
        }
    }

    /// Performs a command with a port that is leased, where it needs one.
    pub async fn perform(&self, client: &EngineClient, call_id: Uuid, command: EngineCommand) -> EngineReply {
        let instance_id = lock(&self.pools).get(&client.id()).map(|pool| pool.instance_id.clone());
        let (Some(redis), Some(instance_id)) = (self.redis(), instance_id) else {
            return client.perform(call_id, command).await;
        };
        let EngineCommand::Open(request) = command else {
            let is_close = matches!(command, EngineCommand::Close { .. });
            let reply = client.perform(call_id, command).await;
            if is_close {
                self.release(call_id);
            }
            return reply;
        };
        if request.rtp.is_none() {
            return client.perform(call_id, EngineCommand::Open(request)).await;
        }
        for _ in 0..TRIES_MAX {
            // A call does not wait for Redis longer than it would notice.
            let asked = tokio::time::timeout(LEASE_WITHIN, redis.lease_port(&instance_id, LEASE_TTL)).await;
            let late = |_| Err(ContextError::Unreachable("no lease in time".to_owned()));
            let port = match asked.unwrap_or_else(late) {
                Ok(Leased::Port(port)) => port,
                Ok(Leased::Dry) => {
                    self.counts.dry.fetch_add(1, Ordering::Relaxed);
                    let why = "every RTP port of the engine is leased".to_owned();
                    return EngineReply::Opened(Err(EngineRefusal::Full(why)));
                }
                Ok(Leased::NoPool) | Err(_) => break,
            };
            let mut with_port = request.clone();
            if let Some(rtp) = &mut with_port.rtp {
                rtp.local_port = port.into();
            }
            let reply = client.perform(call_id, EngineCommand::Open(with_port)).await;
            match &reply {
                EngineReply::Opened(Ok(_)) => {
                    let mut held = lock(&self.held);
                    let own = held.entry(call_id).or_insert_with(|| (instance_id.clone(), Vec::new()));
                    own.1.push(port);
                    return reply;
                }
                EngineReply::Opened(Err(refusal)) if is_port(refusal, port) => {
                    self.counts.busy.fetch_add(1, Ordering::Relaxed);
                    self.rest(instance_id.clone(), vec![port], QUARANTINE);
                }
                _ => {
                    self.rest(instance_id.clone(), vec![port], REST);
                    return reply;
                }
            }
        }
        self.counts.unleased.fetch_add(1, Ordering::Relaxed);
        client.perform(call_id, EngineCommand::Open(request)).await
    }

    /// A session is over: its ports rest.
    pub fn release(&self, session_id: Uuid) {
        if let Some((instance_id, ports)) = lock(&self.held).remove(&session_id) {
            self.rest(instance_id, ports, REST);
        }
    }

    fn rest(&self, instance_id: String, ports: Vec<u16>, time: Duration) {
        let leases = self.clone();
        tokio::spawn(async move {
            let Some(redis) = leases.redis() else { return };
            // Otherwise the lease ends by itself.
            let _ = redis.rest_ports(&instance_id, &ports, time).await;
        });
    }
}

/// The engine could not have this port.
fn is_port(refusal: &EngineRefusal, port: u16) -> bool {
    let (EngineRefusal::Full(why) | EngineRefusal::Invalid(why)) = refusal else { return false };
    // The range may be another one since the instance has told it.
    why.contains(&format!("RTP port {port} ")) || why.contains(&format!("rtp.local_port: {port} "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_come_by_turns_of_the_cores() {
        assert_eq!(in_turns((20_001, 20_012), 2), [20_002, 20_006, 20_004, 20_008, 20_010]);
        assert_eq!(in_turns((20_000, 20_007), 1), [20_000, 20_002, 20_004, 20_006]);
        assert!(in_turns((20_000, 20_000), 1).is_empty(), "the odd one must be in the range, too");
    }

    #[test]
    fn port_is_to_blame_only_where_the_engine_names_it() {
        let busy = EngineRefusal::Full("RTP port 20002 is in use or rests".into());
        assert!(is_port(&busy, 20_002) && !is_port(&busy, 2_000));
        let foreign = EngineRefusal::Invalid("rtp.local_port: 20002 is outside 30000-39999".into());
        assert!(is_port(&foreign, 20_002));
        assert!(!is_port(&EngineRefusal::Full("all 4 sessions are in use".into()), 20_002));
    }
}
