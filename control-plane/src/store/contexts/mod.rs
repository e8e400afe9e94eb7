//! The context of a call: what a callback, a media socket or another control plane must find by the call's id, and
//! the claim by which a media socket takes a call over.
//!
//! ```text
//!   put(context, Some(claim)) ──▶ record ──get(call_id), by_event(event_id)──▶ as often as wanted, until finish + grace
//!                                 claim  ──take(claim)───▶ the record, at most once, within the claim's life
//!                                   └ taken ──dropped(claim)──▶ retake(claim): once more, within RETAKE_TTL
//! ```
//!
//! *Claim once, remember long*: a claim is consumed by the first who presents it; the record lives until its call is
//! terminal and a grace period is over, for late callbacks, retries and reconnects. The id in a callback's URL is another
//! one than the claim: whoever reads it in a log cannot take the media.
//!
//! Beside them stand **leases**: of all the nodes that want a thing done, the one that holds its lease does it. A lease
//! that is not renewed ends by itself, so a node that dies leaves nothing locked.
//!
//! [`embedded`] keeps them in the process, [`redis`] in Redis; both pass the same tests (`suite.rs`). What need not be
//! awaited goes through [`spool`], which loses nothing while the store is away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

pub mod embedded;
pub mod redis;
pub mod spool;

#[cfg(test)]
mod suite;

pub use embedded::EmbeddedContexts;
pub use redis::RedisContexts;

/// How long a claim can be taken, if nothing else is said.
pub const CLAIM_TTL: Duration = Duration::from_secs(300);
/// After a taken claim's media connection has dropped, so long may the same call come back with it.
pub const RETAKE_TTL: Duration = Duration::from_secs(15);
/// How long the record of a finished call is still found.
pub const GRACE: Duration = Duration::from_secs(600);
/// How long a record lives whose call nobody finishes: longer than any call may last.
pub const RECORD_TTL: Duration = Duration::from_secs(2 * 86_400);
/// Arguments that a webhook may bring for the agent.
pub const ARGUMENTS_MAX: usize = 64;

/// What must be found again by a call's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallContext {
    /// The call.
    pub call_id: Uuid,
    /// Whose it is.
    pub tenant_id: Arc<str>,
    /// Which assistant answers.
    pub assistant_id: Arc<str>,
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// Who calls.
    pub from: String,
    /// Who is called.
    pub to: String,
    /// Which engine carries its media; empty until one does.
    pub engine: String,
    /// The cloud provider or PBX that it comes through; `None` for a call on SIP.
    pub provider: Option<ProviderSide>,
    /// What the webhook or the request brings for the agent, at most [`ARGUMENTS_MAX`].
    pub arguments: BTreeMap<String, String>,
}

/// The provider's part of a context.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProviderSide {
    /// As in the routes: `twilio`, `vonage`, …
    pub name: String,
    /// The credential's name; its secrets are never here.
    pub credential: String,
    /// The provider's own id of the call, once it is known.
    pub call_id: Option<String>,
    /// In the URL of its callbacks.
    pub event_id: Uuid,
}

/// A random token that lets its bearer take a call over, once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim(pub Uuid);

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Claim(…)")
    }
}

/// A claim that is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mint {
    /// Random.
    pub claim: Claim,
    /// How long it can be taken.
    pub ttl: Duration,
}

impl Mint {
    /// A fresh claim for so long, or [`CLAIM_TTL`] if that is longer: an outbound call's waits for whoever rings.
    pub fn fresh(ring_timeout: Duration) -> Self {
        let ttl = (ring_timeout + Duration::from_secs(60)).max(CLAIM_TTL);
        Self { claim: Claim(Uuid::new_v4()), ttl }
    }
}

/// Who holds a lease: a random value of one process's lifetime, so that a restarted node is somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub Uuid);

/// Why a context could not be kept or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// The embedded store holds as many records as it may.
    #[error("context store is full: {0} records")]
    Full(usize),
    /// The embedded store holds as many words as it may.
    #[error("context store is full: {0} words")]
    WordsFull(usize),
    /// The embedded store holds as many leases as it may.
    #[error("context store is full: {0} leases")]
    LeasesFull(usize),
    /// A store outside the process does not answer. What was asked may have been done or not: a claim is lost then.
    #[error("context store does not answer: {0}")]
    Unreachable(String),
    /// A record was written by another version or by somebody else.
    #[error("context store holds an unreadable record: {0}")]
    Unreadable(String),
}

/// Where contexts are kept. Every implementation passes the tests of `suite.rs`.
pub trait ContextStore: Send + Sync {
    /// Keeps a record under its call's id, over one that is there, and with it a claim. `true`: there was none. A call that is
    /// over stays so, and gets no claim. The same claim again stays what it is: one that is taken does not become fresh.
    fn put(
        &self,
        context: CallContext,
        claim: Option<Mint>,
    ) -> impl Future<Output = Result<bool, ContextError>> + Send;

    /// The record whose claim this is, without taking it; `None` where there is none, or its call is over.
    fn peek(&self, claim: Claim) -> impl Future<Output = Result<Option<CallContext>, ContextError>> + Send;

    /// The newest claim of a call that is not over.
    fn claim_of(&self, call_id: Uuid) -> impl Future<Output = Result<Option<Claim>, ContextError>> + Send;

    /// Keeps a word under a name for `ttl`, if there is none yet. Gives the one that is there then: whoever says the same
    /// thing twice, or at two nodes, gets the first word.
    fn first_word(
        &self,
        name: &str,
        word: &str,
        ttl: Duration,
    ) -> impl Future<Output = Result<String, ContextError>> + Send;

    /// Keeps a record without a claim, if there is none. `true`: there was none.
    fn restore(&self, context: CallContext) -> impl Future<Output = Result<bool, ContextError>> + Send;

    /// The record, as often as wanted.
    fn get(&self, call_id: Uuid) -> impl Future<Output = Result<Option<CallContext>, ContextError>> + Send;

    /// The record whose provider's callbacks have this id.
    fn by_event(
        &self,
        event_id: Uuid,
    ) -> impl Future<Output = Result<Option<CallContext>, ContextError>> + Send;

    /// Consumes a claim and gives its record; `None` to everybody but the first, and after its life.
    fn take(&self, claim: Claim) -> impl Future<Output = Result<Option<CallContext>, ContextError>> + Send;

    /// The media connection of a taken claim has dropped: for [`RETAKE_TTL`] from now it may come back.
    fn dropped(&self, claim: Claim) -> impl Future<Output = Result<(), ContextError>> + Send;

    /// Takes a dropped claim again; `None` to everybody but the first, and after [`RETAKE_TTL`]. Whoever has it is not yet
    /// known to be the same provider's call: until its connection has said so, it is on trial, and [`Self::dropped`] if it fails.
    fn retake(&self, claim: Claim) -> impl Future<Output = Result<Option<CallContext>, ContextError>> + Send;

    /// The call is terminal: the record goes after [`GRACE`], its claim at once.
    fn finish(&self, call_id: Uuid) -> impl Future<Output = Result<(), ContextError>> + Send;

    /// Takes the lease of this name for `ttl` from now, if nobody else holds it; whoever holds it already holds it
    /// anew. `false`: it is another's.
    fn acquire(
        &self,
        name: &str,
        owner: Owner,
        ttl: Duration,
    ) -> impl Future<Output = Result<bool, ContextError>> + Send;

    /// Holds the lease for `ttl` from now. `false`: it has ended or is another's, and whoever asks must stop.
    fn renew(
        &self,
        name: &str,
        owner: Owner,
        ttl: Duration,
    ) -> impl Future<Output = Result<bool, ContextError>> + Send;

    /// Gives the lease back; one that is another's stays.
    fn release(&self, name: &str, owner: Owner) -> impl Future<Output = Result<(), ContextError>> + Send;

    /// Tells one life of the store from another: where it differs from before, what was kept may be lost.
    fn incarnation(&self) -> impl Future<Output = Result<String, ContextError>> + Send;
}

/// The store that the configuration names.
#[derive(Debug)]
pub enum Contexts {
    /// In the process.
    Embedded(EmbeddedContexts),
    /// In Redis.
    Redis(RedisContexts),
}

impl Default for Contexts {
    fn default() -> Self {
        Self::Embedded(EmbeddedContexts::default())
    }
}

/// Hands a call to the store that is there.
macro_rules! either {
    ($self:expr, $store:ident => $call:expr) => {
        match $self {
            Contexts::Embedded($store) => $call.await,
            Contexts::Redis($store) => $call.await,
        }
    };
}

impl ContextStore for Contexts {
    async fn put(&self, context: CallContext, claim: Option<Mint>) -> Result<bool, ContextError> {
        either!(self, store => store.put(context, claim))
    }

    async fn restore(&self, context: CallContext) -> Result<bool, ContextError> {
        either!(self, store => store.restore(context))
    }

    async fn peek(&self, claim: Claim) -> Result<Option<CallContext>, ContextError> {
        either!(self, store => store.peek(claim))
    }

    async fn claim_of(&self, call_id: Uuid) -> Result<Option<Claim>, ContextError> {
        either!(self, store => store.claim_of(call_id))
    }

    async fn first_word(&self, name: &str, word: &str, ttl: Duration) -> Result<String, ContextError> {
        either!(self, store => store.first_word(name, word, ttl))
    }

    async fn get(&self, call_id: Uuid) -> Result<Option<CallContext>, ContextError> {
        either!(self, store => store.get(call_id))
    }

    async fn by_event(&self, event_id: Uuid) -> Result<Option<CallContext>, ContextError> {
        either!(self, store => store.by_event(event_id))
    }

    async fn take(&self, claim: Claim) -> Result<Option<CallContext>, ContextError> {
        either!(self, store => store.take(claim))
    }

    async fn dropped(&self, claim: Claim) -> Result<(), ContextError> {
        either!(self, store => store.dropped(claim))
    }

    async fn retake(&self, claim: Claim) -> Result<Option<CallContext>, ContextError> {
        either!(self, store => store.retake(claim))
    }

    async fn finish(&self, call_id: Uuid) -> Result<(), ContextError> {
        either!(self, store => store.finish(call_id))
    }

    async fn acquire(&self, name: &str, owner: Owner, ttl: Duration) -> Result<bool, ContextError> {
        either!(self, store => store.acquire(name, owner, ttl))
    }

    async fn renew(&self, name: &str, owner: Owner, ttl: Duration) -> Result<bool, ContextError> {
        either!(self, store => store.renew(name, owner, ttl))
    }

    async fn release(&self, name: &str, owner: Owner) -> Result<(), ContextError> {
        either!(self, store => store.release(name, owner))
    }

    async fn incarnation(&self) -> Result<String, ContextError> {
        either!(self, store => store.incarnation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_is_not_shown() {
        assert_eq!(format!("{:?}", Claim(Uuid::new_v4())), "Claim(…)");
    }

    #[test]
    fn claim_of_an_outbound_call_outlives_its_ringing() {
        assert_eq!(Mint::fresh(Duration::from_secs(30)).ttl, CLAIM_TTL);
        assert_eq!(Mint::fresh(Duration::from_secs(600)).ttl, Duration::from_secs(660));
    }
}
