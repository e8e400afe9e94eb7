//! One port: REST, gRPC with health and reflection, metrics, and a page for people.
//!
//! ```text
//!   /healthz /readyz /metrics /            nobody needs a key
//!   /v1/telephony…                         a provider's proof        telephony.rs
//!   /v1/calls… /v1/conversations…          x-api-key, JSON          rest.rs
//!   tandem.v1.CallService, …               x-api-key, gRPC (h2c)    grpc.rs
//!                       calls that we place, for both of them        talk.rs
//! ```
//!
//! An unknown path is 404; gRPC clients read that as "unimplemented", as they should.

use std::sync::Arc;

use axum::Router;
use ipnet::IpNet;
use secrecy::SecretString;
use sqlx::SqlitePool;
use tandem_api::v1 as api;
use tokio::net::TcpListener;
use tonic::service::Routes;
use uuid::Uuid;

use crate::call::driver::LiveCalls;
use crate::call::order::FieldError;
use crate::call::registry::placing::PlaceError;
use crate::media::leases::Leases;
use crate::metrics::Metrics;
use crate::provider::Credentials;
use crate::provider::client::RestClient;
use crate::registration::driver::Office;
use crate::sip::SharedCounters;
use crate::sip::guard::SharedGuard;
use crate::store::accounts::{Accounts, KeyHash, Principal};
use crate::store::contexts::Contexts;
use crate::store::contexts::spool::Spool;
use crate::store::refusals::Refusals;
use crate::store::writer::Writer;
use crate::store::{StoreError, calls, conversations};
use crate::trunk::Trunks;
use crate::trunk::bucket::SharedBucket;

mod grpc;
mod listener;
mod refusals;
mod rest;
mod talk;
mod telephony;
mod trunks;
pub mod view;
mod whatsapp;

use listener::{Bounded, Peer};
pub use whatsapp::Desk;

/// What every handler may use.
#[derive(Clone)]
pub struct Shared {
    /// Keys.
    pub accounts: Accounts,
    /// Past calls and what was said.
    pub pool: SqlitePool,
    /// Records on their way to the database.
    pub writer: Writer,
    /// Contexts of calls.
    pub contexts: Spool<Contexts>,
    /// Calls that are not over.
    pub live: LiveCalls,
    /// Over which calls are placed.
    pub trunks: Trunks,
    /// RTP ports of the engines.
    pub ports: Leases,
    /// What telephony providers know us by.
    pub credentials: Credentials,
    /// Towards them.
    pub rest: RestClient,
    /// The URL under which they call back, without a slash at the end.
    pub public_url: Arc<str>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Arc<[IpNet]>,
    /// Conversations in writing.
    pub desk: Desk,
    /// Lines about refused webhooks: more than a person reads, less than fills a disk in a night.
    pub webhook_lines: SharedBucket,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What the SIP endpoint has counted.
    pub sip: SharedCounters,
    /// What is known of sources.
    pub guard: SharedGuard,
    /// The newest refusals without a record.
    pub refusals: Refusals,
    /// Trunks and registered phones.
    pub office: Office,
    /// What our own processes prove themselves with.
    pub service_token: Option<Arc<SecretString>>,
    /// Where callers dial, for the page.
    pub dial: Arc<[String]>,
}

/// Serves until `shutdown` resolves, then lets open requests finish.
pub async fn serve(
    listener: TcpListener,
    shared: Shared,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let service = router(shared).await.into_make_service_with_connect_info::<Peer>();
    axum::serve(Bounded::new(listener), service).with_graceful_shutdown(shutdown).await
}

async fn router(shared: Shared) -> Router {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<grpc::CallServer>().await;
    health.set_serving::<grpc::ConversationServer>().await;
    health.set_serving::<refusals::Server>().await;
    health.set_serving::<grpc::TalkServer>().await;
    health.set_serving::<trunks::Server>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tandem_api::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were made by our own build");
    let grpc = Routes::new(health_service)
        .add_service(reflection)
        .add_service(grpc::call_server(shared.clone()))
        .add_service(grpc::conversation_server(shared.clone()))
        .add_service(refusals::server(shared.clone()))
        .add_service(grpc::talk_server(shared.clone()))
        .add_service(trunks::server(shared.clone()))
        .prepare()
        .into_axum_router()
        // Routes answers every other path as a gRPC error; over REST that must be a plain 404.
        .reset_fallback();
    rest::router(shared).merge(grpc)
}

/// Most calls in one answer.
const PAGE_MAX: u32 = 500;
/// Calls in one answer when nobody says.
const PAGE_DEFAULT: u32 = 50;

/// Why a request cannot be answered. REST and gRPC give it their own status.
#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error("x-api-key is missing or unknown")]
    Unauthenticated,
    #[error("no such call: {0}")]
    NoCall(String),
    #[error("no live call {0}")]
    NotLive(String),
    #[error("no such bulk: {0}")]
    NoBulk(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Fields(Vec<FieldError>),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("{0}")]
    Refused(String),
    #[error("the database does not answer")]
    Store(#[from] StoreError),
}

/// One page of calls.
struct Page {
    calls: Vec<api::Call>,
    next: String,
}

impl Shared {
    /// Whose key this is.
    async fn authenticate(&self, key: Option<&str>) -> Result<Principal, ApiError> {
        let key = key.filter(|key| !key.is_empty()).ok_or(ApiError::Unauthenticated)?;
        self.accounts.principal(KeyHash::of(key)).await?.ok_or(ApiError::Unauthenticated)
    }

    /// Live calls, then past ones, newest first. The token names the last call of the page before, and which of the
    /// two lists it was in.
    async fn list_calls(
        &self,
        principal: &Principal,
        size: u32,
        token: &str,
        live_only: bool,
    ) -> Result<Page, ApiError> {
        let size = if size == 0 { PAGE_DEFAULT } else { size.min(PAGE_MAX) } as usize;
        let (is_past, before) = match token.split_once(':') {
            None if token.is_empty() => (false, ""),
            Some(("live", before)) => (false, before),
            Some(("past", before)) => (true, before),
            _ => return Err(ApiError::Invalid("page token is not one of ours".to_owned())),
        };
        let tenant_id = &principal.tenant_id;
        let live = self.live.list(tenant_id.clone()).await;
        let mut page: Vec<api::Call> = Vec::new();
        if !is_past {
            let rest = live.iter().filter(|call| before.is_empty() || call.call_id.as_str() < before);
            page.extend(rest.take(size + 1).cloned());
            if page.len() > size {
                page.truncate(size);
                let next = page.last().map(|call| format!("live:{}", call.call_id)).unwrap_or_default();
                return Ok(Page { calls: page, next });
            }
        }
        if live_only {
            return Ok(Page { calls: page, next: String::new() });
        }
        let before = if is_past { before } else { "" };
        let wanted = size - page.len();
        let past = self.past_calls(tenant_id, before, wanted + 1, &live).await?;
        let more = past.len() > wanted;
        page.extend(past.into_iter().take(wanted));
        let last = page.last().filter(|_| more && wanted > 0);
        let next = match last {
            Some(call) => format!("past:{}", call.call_id),
            None if more => "past:".to_owned(),
            None => String::new(),
        };
        Ok(Page { calls: page, next })
    }

    /// Calls that are over, newest first: those that wait to be written and those in the database.
    async fn past_calls(
        &self,
        tenant_id: &str,
        before: &str,
        limit: usize,
        live: &[api::Call],
    ) -> Result<Vec<api::Call>, ApiError> {
        let is_live = |call: &api::Call| live.iter().any(|other| other.call_id == call.call_id);
        let mut past = self.writer.of_tenant(tenant_id);
        past.retain(|call| (before.is_empty() || call.call_id.as_str() < before) && !is_live(call));
        // Rows of live calls are skipped, so more may be needed than asked for.
        let rows = u32::try_from(limit + live.len()).unwrap_or(u32::MAX);
        for call in calls::list(&self.pool, tenant_id, before, rows).await? {
            if !is_live(&call) && !past.iter().any(|other| other.call_id == call.call_id) {
                past.push(call);
            }
        }
        past.sort_by(|a, b| b.call_id.cmp(&a.call_id));
        past.truncate(limit);
        Ok(past)
    }

    /// One call of this tenant, wherever it is.
    async fn call(&self, principal: &Principal, call_id: &str) -> Result<api::Call, ApiError> {
        let id: Uuid = call_id.parse().map_err(|_| ApiError::NoCall(call_id.to_owned()))?;
        let call_id = id.to_string();
        if let Some(call) = self.live.get(principal.tenant_id.clone(), id).await {
            return Ok(call);
        }
        if let Some(call) = self.writer.find(&principal.tenant_id, &call_id) {
            return Ok(call);
        }
        let stored = calls::get(&self.pool, &principal.tenant_id, &call_id).await?;
        stored.ok_or(ApiError::NoCall(call_id))
    }

    /// What was said in a call of this tenant.
    async fn conversation(
        &self,
        principal: &Principal,
        call_id: &str,
    ) -> Result<api::Conversation, ApiError> {
        let call = self.call(principal, call_id).await?;
        let messages = conversations::list(&self.pool, &call.call_id).await?;
        Ok(api::Conversation { call_id: call.call_id, messages })
    }

    /// Whether this call exists, whosever it is: for the voice agent, which is no tenant.
    async fn is_known(&self, call_id: Uuid) -> Result<bool, ApiError> {
        let text = call_id.to_string();
        if self.live.knows(call_id).await || self.writer.knows(&text) {
            return Ok(true);
        }
        Ok(calls::tenant_of(&self.pool, &text).await?.is_some())
    }
}
