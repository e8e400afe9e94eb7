//! The media engines, seen from here: which takes the next call, and which are gone.
//!
//! ```text
//!   client.rs ──News──▶ Fleet ──pick──▶ the engine with the fewest sessions that is up and takes calls
//!   (one task an engine)     └─deadline─▶ an engine that stays away for ENGINE_GRACE has lost its calls
//! ```
//!
//! [`Fleet`] is sans-IO and part of the core of [`crate::call`]; only `client` opens connections.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::store::contexts::Claim;

pub mod client;
mod commands;
pub mod leases;

/// How long an engine's event stream may be gone before its calls are given up. With the silence that is needed to
/// notice ([`client::HEARTBEAT_SILENCE_MAX`]) a caller hears of it within 8 s.
pub const ENGINE_GRACE: Duration = Duration::from_secs(5);

/// Which engine, by its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineId(pub usize);

/// What an engine's event stream says.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// The stream is up; these sessions live there.
    Up {
        /// New at each start of the engine.
        instance_id: String,
        /// Sessions alive, ours and those of an earlier control plane.
        sessions: HashMap<Uuid, Listed>,
        /// Where it is reached.
        addresses: Addresses,
    },
    /// The stream is gone.
    Down,
    /// Load, each second.
    Heartbeat {
        /// Sessions on all cores.
        sessions: u32,
        /// It refuses new ones.
        draining: bool,
    },
    /// A media connection waits for an answer.
    Upgrade(Box<Upgrade>),
    /// Something happened to a session.
    Session {
        /// Which.
        session_id: Uuid,
        /// What.
        event: SessionEvent,
    },
}

/// Where providers and dialplans reach an engine, as HOST:PORT.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses {
    /// Its media WebSockets; empty: an engine that has none.
    pub ws: String,
    /// They are inside TLS.
    pub is_ws_secure: bool,
    /// Its AudioSocket; empty: an engine that has none.
    pub audiosocket: String,
    /// First and last of its RTP ports.
    pub rtp_ports: (u16, u16),
    /// Cores among which it shares them.
    pub cores: usize,
}

impl Addresses {
    /// Where this provider is to bring the media of the call with this claim.
    pub fn media_url(&self, provider: &str, claim: Claim) -> String {
        let scheme = if self.is_ws_secure { "wss" } else { "ws" };
        format!("{scheme}://{}/v1/media/{provider}/{}", self.ws, claim.0)
    }
}

/// A media connection of a provider's that waits for an answer at an engine.
#[derive(Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// Its name at the engine.
    pub upgrade_id: String,
    /// The provider of the route; `audiosocket` for Asterisk's.
    pub provider: String,
    /// What it presents.
    pub claim: Claim,
    /// For signatures: path and query as they came.
    pub path_and_query: String,
    /// By their names in small letters.
    pub headers: HashMap<String, String>,
    /// Where it came from.
    pub source: SocketAddr,
    /// It came inside TLS.
    pub is_secure: bool,
}

/// Without the claim, which is in the path too.
impl std::fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { upgrade_id, provider, source, .. } = self;
        write!(f, "Upgrade({upgrade_id}, {provider}, {source})")
    }
}

/// What a Snapshot says of a provider's connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListedStream {
    /// It is lost, and none has taken its place.
    pub is_dropped: bool,
    /// What its start has named; empty: nothing yet.
    pub provider_call_id: String,
    /// The codec of its start; empty: it has not started.
    pub codec: String,
}

/// What a Snapshot says of a session: what its events have said, for those who were away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// The agent's stream is up.
    pub agent_ready: bool,
    /// Why the agent could not be reached, or its stream broke.
    pub agent_gone: Option<String>,
    /// The agent wants to end the call.
    pub agent_hangup: bool,
    /// Of its RTP leg; 0: it has none.
    pub port: u16,
    /// Of a provider's connection.
    pub stream: Option<ListedStream>,
}

impl Listed {
    /// What its provider's connection has said while we were away.
    pub fn stream_events(&self) -> Vec<SessionEvent> {
        let Some(ListedStream { is_dropped, provider_call_id, codec }) = &self.stream else {
            return Vec::new();
        };
        let mut events = Vec::new();
        if !codec.is_empty() {
            let (provider_call_id, codec) = (provider_call_id.clone(), codec.clone());
            events.push(SessionEvent::StreamStarted { provider_call_id, codec });
        }
        if *is_dropped {
            let reason = "lost while this node did not hear its engine".to_owned();
            events.push(SessionEvent::StreamDropped { how: StreamEnd::Drop, leg_may_live: true, reason });
        }
        events
    }

    /// The event that matters now, if there was one. An agent that hangs up may close its stream after that.
    pub fn to_event(&self) -> Option<SessionEvent> {
        match (&self.agent_gone, self.agent_ready) {
            _ if self.agent_hangup => Some(SessionEvent::AgentHangup),
            (Some(reason), _) => Some(SessionEvent::AgentFailed { reason: reason.clone() }),
            (None, true) => Some(SessionEvent::AgentConnected),
            (None, false) => None,
        }
    }
}

/// How a provider's connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// The provider said so.
    Stop,
    /// It was lost, and may come back.
    Drop,
    /// What came on it cannot be carried: the engine has ended it.
    Fault,
}

/// What happened to a session.
#[derive(Debug, Clone, PartialEq)]
pub enum SessionEvent {
    /// The agent's stream is up.
    AgentConnected,
    /// The agent cannot be reached, or its stream broke.
    AgentFailed {
        /// The engine's words.
        reason: String,
    },
    /// The agent wants to end the call.
    AgentHangup,
    /// The agent wants to transfer the call, or to bring somebody in.
    AgentTransfer {
        /// Whom.
        to: String,
        /// How.
        mode: tandem_api::engine::v1::TransferMode,
    },
    /// The agent wants the call answered.
    AgentAnswer,
    /// The agent wants to press keys that RTP cannot carry.
    AgentDtmf {
        /// Which.
        digits: String,
    },
    /// The agent has set headers of the request that will end the call.
    AgentHeaders {
        /// Name and value.
        headers: std::collections::BTreeMap<String, String>,
    },
    /// The first RTP came.
    MediaStarted {
        /// Milliseconds since the session was opened.
        took_ms: u32,
    },
    /// The caller pressed a key.
    Dtmf,
    /// How it goes.
    Report {
        /// Figures until now.
        stats: Box<tandem_api::engine::v1::SessionStats>,
    },
    /// How it goes on its second leg.
    LegReport {
        /// Figures until now.
        stats: Box<tandem_api::engine::v1::SessionStats>,
    },
    /// Nobody has spoken for as long as the assistant allows.
    Idle {
        /// Milliseconds since the last sound that was heard.
        idle_ms: u64,
    },
    /// A provider's connection has said which call it is.
    StreamStarted {
        /// The provider's id of it.
        provider_call_id: String,
        /// What is spoken.
        codec: String,
    },
    /// A provider's connection is gone.
    StreamDropped {
        /// How.
        how: StreamEnd,
        /// The caller may be on the line at the provider still.
        leg_may_live: bool,
        /// In words.
        reason: String,
    },
    /// Nothing comes from the second leg any more, or there is no way to it.
    LegLost {
        /// Which of the two.
        reason: tandem_api::engine::v1::session_ended::Reason,
        /// What the engine adds, in words; mostly empty.
        detail: String,
    },
    /// The engine ended the session by itself.
    Ended {
        /// Why.
        reason: tandem_api::engine::v1::session_ended::Reason,
        /// Final figures.
        stats: Option<tandem_api::engine::v1::SessionStats>,
        /// What the engine adds, in words; mostly empty.
        detail: String,
    },
}

#[derive(Debug, Clone)]
enum Link {
    /// Never seen, or given up.
    Down,
    /// Gone a moment ago; its calls wait for it.
    Lost {
        give_up: Instant,
    },
    Up,
}

#[derive(Debug, Clone)]
struct Engine {
    link: Link,
    instance_id: String,
    draining: bool,
    /// By the last heartbeat, and opened by us since.
    sessions: u32,
    opened_since: u32,
    addresses: Addresses,
}

/// All engines.
#[derive(Debug, Clone)]
pub struct Fleet {
    engines: Vec<Engine>,
}

impl Fleet {
    /// So many engines, none of them seen yet.
    pub fn new(count: usize) -> Self {
        let engine = Engine {
            link: Link::Down,
            instance_id: String::new(),
            draining: false,
            sessions: 0,
            opened_since: 0,
            addresses: Addresses::default(),
        };
        Self { engines: vec![engine; count] }
    }

    /// Engines whose event stream is up and that take new sessions.
    pub fn available(&self) -> usize {
        self.engines.iter().filter(|engine| engine.takes_calls()).count()
    }

    /// The instance that answers there, if its stream is up.
    pub fn instance(&self, id: EngineId) -> Option<&str> {
        let engine = self.engines.get(id.0)?;
        matches!(engine.link, Link::Up).then_some(engine.instance_id.as_str())
    }

    /// Where an engine is reached: as it said when its stream last came up.
    pub fn addresses(&self, id: EngineId) -> Option<&Addresses> {
        self.engines.get(id.0).map(|engine| &engine.addresses)
    }

    /// The least loaded engine that takes calls and is not among those tried.
    pub fn pick(&mut self, tried: &[EngineId]) -> Option<EngineId> {
        let candidates = self.engines.iter().enumerate().map(|(index, engine)| (EngineId(index), engine));
        let (id, _) = candidates
            .filter(|(id, engine)| engine.takes_calls() && !tried.contains(id))
            .min_by_key(|(_, engine)| engine.sessions + engine.opened_since)?;
        self.engines[id.0].opened_since += 1;
        Some(id)
    }

    /// The same, of those that providers can dial, and where.
    pub fn pick_for_media(&mut self) -> Option<(EngineId, &Addresses)> {
        let candidates = self.engines.iter().enumerate().map(|(index, engine)| (EngineId(index), engine));
        let (id, _) = candidates
            .filter(|(_, engine)| engine.takes_calls() && !engine.addresses.ws.is_empty())
            .min_by_key(|(_, engine)| engine.sessions + engine.opened_since)?;
        Some((id, &self.engines[id.0].addresses))
    }

    /// Whether this one takes new sessions.
    pub fn takes_calls(&self, id: EngineId) -> bool {
        self.engines.get(id.0).is_some_and(Engine::takes_calls)
    }

    /// A session was opened there that was not picked for it.
    pub fn handle_opened(&mut self, id: EngineId) {
        if let Some(engine) = self.engines.get_mut(id.0) {
            engine.opened_since += 1;
        }
    }

    /// The stream of an engine is up. Calls on an earlier instance are the caller's to end.
    pub fn handle_up(&mut self, id: EngineId, instance_id: &str, sessions: usize, addresses: Addresses) {
        let Some(engine) = self.engines.get_mut(id.0) else { return };
        engine.link = Link::Up;
        engine.instance_id = instance_id.to_owned();
        engine.draining = false;
        engine.sessions = u32::try_from(sessions).unwrap_or(u32::MAX);
        engine.opened_since = 0;
        engine.addresses = addresses;
    }

    /// The stream of an engine is gone.
    pub fn handle_down(&mut self, id: EngineId, now: Instant) {
        let Some(engine) = self.engines.get_mut(id.0) else { return };
        if matches!(engine.link, Link::Up) {
            engine.link = Link::Lost { give_up: now + ENGINE_GRACE };
        }
    }

    /// Load of an engine.
    pub fn handle_heartbeat(&mut self, id: EngineId, sessions: u32, draining: bool) {
        let Some(engine) = self.engines.get_mut(id.0) else { return };
        engine.sessions = sessions;
        engine.opened_since = 0;
        engine.draining = draining;
    }

    /// When [`Fleet::poll_given_up`] has something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let lost = self.engines.iter().filter_map(|engine| match engine.link {
            Link::Lost { give_up } => Some(give_up),
            Link::Down | Link::Up => None,
        });
        lost.min()
    }

    /// An engine that stayed away for too long; each is given once.
    pub fn poll_given_up(&mut self, now: Instant) -> Option<EngineId> {
        let index = self.engines.iter().position(|engine| match engine.link {
            Link::Lost { give_up } => give_up <= now,
            Link::Down | Link::Up => false,
        })?;
        self.engines[index].link = Link::Down;
        Some(EngineId(index))
    }
}

impl Engine {
    fn takes_calls(&self) -> bool {
        matches!(self.link, Link::Up) && !self.draining
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: EngineId = EngineId(0);
    const B: EngineId = EngineId(1);

    #[test]
    fn least_loaded_engine_takes_the_call_and_new_sessions_count_at_once() {
        let mut fleet = Fleet::new(2);
        fleet.handle_up(A, "a", 1, Addresses::default());
        fleet.handle_up(B, "b", 0, Addresses::default());
        assert_eq!(fleet.pick(&[]), Some(B));
        let next = [fleet.pick(&[]), fleet.pick(&[]), fleet.pick(&[])];
        assert!(next.contains(&Some(A)) && next.contains(&Some(B)), "{next:?}");
        fleet.handle_heartbeat(B, 100, false);
        assert_eq!(fleet.pick(&[]), Some(A));
    }

    #[test]
    fn providers_are_told_where_the_engine_is_reached() {
        let claim = Claim(Uuid::nil());
        let mut addresses = Addresses { ws: "media.example.com:443".to_owned(), ..Addresses::default() };
        let url = addresses.media_url("twilio", claim);
        assert_eq!(url, "ws://media.example.com:443/v1/media/twilio/00000000-0000-0000-0000-000000000000");
        addresses.is_ws_secure = true;
        assert!(addresses.media_url("twilio", claim).starts_with("wss://media.example.com:443/"));
    }

    #[test]
    fn draining_down_and_tried_engines_take_none() {
        let mut fleet = Fleet::new(2);
        assert_eq!(fleet.pick(&[]), None);
        fleet.handle_up(A, "a", 0, Addresses::default());
        fleet.handle_up(B, "b", 9, Addresses::default());
        assert_eq!(fleet.pick(&[A]), Some(B));
        fleet.handle_heartbeat(A, 0, true);
        assert_eq!(fleet.pick(&[]), Some(B));
        fleet.handle_down(B, Instant::now());
        assert_eq!((fleet.pick(&[]), fleet.available()), (None, 0));
    }

    #[test]
    fn engine_is_given_up_once_after_the_grace() {
        let now = Instant::now();
        let mut fleet = Fleet::new(1);
        fleet.handle_up(A, "a", 0, Addresses::default());
        fleet.handle_down(A, now);
        fleet.handle_down(A, now + Duration::from_secs(4));
        assert_eq!(fleet.poll_timeout(), Some(now + ENGINE_GRACE));
        assert_eq!(fleet.poll_given_up(now + Duration::from_secs(4)), None);
        assert_eq!(fleet.poll_given_up(now + ENGINE_GRACE), Some(A));
        assert_eq!(fleet.poll_given_up(now + ENGINE_GRACE), None);
    }

    #[test]
    fn engine_that_comes_back_is_not_given_up() {
        let now = Instant::now();
        let mut fleet = Fleet::new(1);
        fleet.handle_up(A, "a", 0, Addresses::default());
        fleet.handle_down(A, now);
        fleet.handle_up(A, "a", 0, Addresses::default());
        assert_eq!(fleet.poll_given_up(now + ENGINE_GRACE * 2), None);
        assert_eq!(fleet.instance(A), Some("a"));
    }
}
