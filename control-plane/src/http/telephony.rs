//! Webhooks of telephony providers: somebody calls, and what becomes of a call.
//!
//! ```text
//!   /v1/telephony/{provider}/call/{assistantId} ─▶ proof ─▶ assistant ─▶ room, engine ─▶ record + claim ─▶ document
//!   /v1/telephony/{provider}/event/{eventId} ────▶ record ─▶ proof ─▶ the call's own task; 200
//! ```
//!
//! Nothing is parsed before its proof (see [`crate::provider`]), nothing slow stands before an answer, and whatever a stranger
//! sends is 4xx. A call that is announced twice, at whichever node, gets the same record and claim. Where we cannot take a call
//! the provider is told in its own way: a spoken sentence, busy, or 503 with Retry-After so that another node is tried.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, OriginalUri, Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use secrecy::ExposeSecret;
use uuid::Uuid;

use super::{Peer, Shared};
use crate::call::ending::{Cause, Ending};
use crate::provider::client::{Errand, Plan, TRANSFER_RING_S};
use crate::provider::file::{Credential, is_number};
use crate::provider::webhook::{
    AnswerBy, BODY_MAX, DocumentRequest, Endpoint, InboundCall, StreamEvent, StreamKind, Webhook,
};
use crate::provider::{Account, Decline, Deployment, Document, Refusal, Transfer, WebhookRequest, asterisk};
use crate::store;
use crate::store::accounts::KeyHash;
use crate::store::contexts::{
    ARGUMENTS_MAX, CLAIM_TTL, CallContext, Claim, ContextError, ContextStore, Mint, ProviderSide,
};

/// Credentials of one provider that may lead to one assistant's name, of all tenants; more are not tried, each being a signature to
/// compute for a stranger.
const CANDIDATES_MAX: usize = 32;
/// Seconds after which a provider may come again that was refused because something is away.
const RETRY_AFTER_S: u32 = 5;
/// What a caller hears when we cannot take the call.
const SORRY: &str =
    "We are sorry. We cannot take your call at the moment. Please call again in a few minutes.";

pub(super) fn router() -> Router<Shared> {
    Router::new()
        .route("/v1/telephony/{provider}/call/{assistant_id}", any(call))
        .route("/v1/telephony/{provider}/event/{event_id}", any(event))
        .layer(DefaultBodyLimit::max(BODY_MAX))
}

/// One request as it came.
pub(super) struct Asked<'a> {
    shared: &'a Shared,
    method: &'a Method,
    public_url: String,
    query: &'a str,
    headers: &'a HeaderMap,
    body: &'a [u8],
    source: IpAddr,
}

impl<'a> Asked<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        peer: IpAddr,
        (method, uri): (&'a Method, &'a axum::http::Uri),
        headers: &'a HeaderMap,
        body: &'a [u8],
    ) -> Self {
        let public_url = format!("{}{}", shared.public_url, uri.path());
        let query = uri.query().unwrap_or_default();
        let source = source_of(peer, headers, &shared.trusted_proxies);
        Self { shared, method, public_url, query, headers, body, source }
    }

    /// What this account makes of it.
    pub(super) async fn read(&self, credential: &Credential, endpoint: Endpoint) -> Result<Webhook, Refusal> {
        let has_api_key =
            credential.provider.form.provider == "asterisk" && self.shows_key_of(credential).await;
        credential.account.webhook(&WebhookRequest {
            endpoint,
            method: self.method,
            public_url: &self.public_url,
            query: self.query,
            headers: self.headers,
            body: self.body,
            source: self.source,
            has_api_key,
            now_s: store::epoch_ms() / 1_000,
        })
    }

    /// A live API key of the credential's tenant.
    async fn shows_key_of(&self, credential: &Credential) -> bool {
        let Some(key) = asterisk::api_key(self.headers) else { return false };
        let found = self.shared.accounts.principal(KeyHash::of(key.expose_secret())).await;
        matches!(found, Ok(Some(principal)) if principal.tenant_id == credential.tenant_id)
    }
}

/// The peer; behind proxies that are trusted, whom the nearest of them names that is not one itself.
fn source_of(peer: IpAddr, headers: &HeaderMap, proxies: &[ipnet::IpNet]) -> IpAddr {
    let is_proxy = |address: &IpAddr| proxies.iter().any(|network| network.contains(&address.to_canonical()));
    if !is_proxy(&peer) {
        return peer;
    }
    let values = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let mut hops: Vec<&str> = values.flat_map(|value| value.split(',')).collect();
    hops.reverse();
    let mut nearest = peer;
    for hop in hops {
        // What stands before a hop that nobody can read may be anybody's invention.
        let Some(address) = read_hop(hop.trim()) else { return nearest };
        nearest = address;
        if !is_proxy(&address) {
            break;
        }
    }
    nearest
}

/// `198.51.100.7`, `198.51.100.7:4444`, `[2001:db8::1]:4444`.
fn read_hop(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    bare.parse().ok().or_else(|| hop.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()))
}

async fn call(
    State(shared): State<Shared>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    Path((provider, assistant_id)): Path<(String, String)>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let asked = Asked::new(&shared, peer.ip(), (&method, &uri), &headers, &body);
    let mut candidates: Vec<&Arc<Deployment>> = Vec::new();
    for deployment in shared.credentials.leading_to(&provider, &assistant_id) {
        if !candidates.iter().any(|other| other.credential.name == deployment.credential.name) {
            candidates.push(deployment);
        }
    }
    let mut refusal = Refusal::UnknownAssistant;
    // One that some proof lets pass, but whose numbers are others: Exotel's addresses are the same for all of its customers.
    let mut stranger = None;
    for deployment in candidates.into_iter().take(CANDIDATES_MAX) {
        match asked.read(&deployment.credential, Endpoint::Call).await {
            Ok(webhook) => match own_number(&shared, deployment, &assistant_id, &webhook) {
                Some(deployment) => return handle_call(&shared, deployment, &assistant_id, webhook).await,
                None => stranger = Some((deployment, webhook)),
            },
            // The first of several says what is wrong.
            Err(error) if refusal == Refusal::UnknownAssistant => refusal = error,
            Err(_) => {}
        }
    }
    if let Some((deployment, webhook)) = stranger {
        return handle_call(&shared, deployment, &assistant_id, webhook).await;
    }
    refused(&shared, &provider, &refusal, &asked)
}

/// The deployment with the number that was called; the given one where nobody was, or where it has no number of its own.
fn own_number<'a>(
    shared: &'a Shared,
    deployment: &'a Arc<Deployment>,
    assistant_id: &str,
    webhook: &Webhook,
) -> Option<&'a Arc<Deployment>> {
    let Webhook::Inbound(inbound) = webhook else { return Some(deployment) };
    let Credential { name, tenant_id, .. } = &*deployment.credential;
    let found = shared.credentials.deployment_of(name, tenant_id, assistant_id, &inbound.to)?;
    (found.phone.is_empty() || is_number(&found.phone, &inbound.to)).then_some(found)
}

pub(super) fn refused(shared: &Shared, provider: &str, refusal: &Refusal, asked: &Asked<'_>) -> Response {
    let known = crate::provider::find(provider).map(|provider| provider.form.provider);
    shared.metrics.count_webhook(known.unwrap_or("unknown"), "refused");
    if shared.webhook_lines.take() {
        tracing::warn!(
            provider = known.unwrap_or("unknown"),
            source = %asked.source,
            status = refusal.status().as_u16(),
            "webhook refused: {refusal}"
        );
    }
    // No body: a dialplan would take it for its answer.
    refusal.status().into_response()
}

async fn handle_call(
    shared: &Shared,
    deployment: &Arc<Deployment>,
    assistant_id: &str,
    webhook: Webhook,
) -> Response {
    let (credential, provider) = (&deployment.credential, deployment.provider());
    let account = &*credential.account;
    shared.metrics.count_webhook(provider, "taken");
    match webhook {
        Webhook::Inbound(inbound) => match take(shared, deployment, assistant_id, &inbound).await {
            Ok(plan) if inbound.answer == AnswerBy::Rest => {
                let (rest, account) = (shared.rest.clone(), credential.account.clone());
                let errand = Errand::Answer { call: inbound.provider_call_id, plan: Box::new(plan) };
                tokio::spawn(async move {
                    let outcome = rest.run(&*account, &errand).await;
                    tracing::debug!(provider, ?outcome, "call answered");
                });
                respond(Document::empty())
            }
            Ok(plan) => answer(account, provider, &plan),
            Err(NotTaken::NoAssistant) => StatusCode::NOT_FOUND.into_response(),
            Err(NotTaken::Ending(ending)) => {
                shared.metrics.count_webhook(provider, "declined");
                tracing::warn!(provider, assistant_id, reason = ending.cause.row().word, "call declined");
                if inbound.answer == AnswerBy::Rest {
                    let (rest, account) = (shared.rest.clone(), credential.account.clone());
                    let errand = Errand::Reject { call: inbound.provider_call_id };
                    tokio::spawn(async move { rest.run(&*account, &errand).await });
                }
                respond(account.decline(decline_of(&ending)))
            }
        },
        Webhook::Document(document) => match find_by_claim(shared, credential, &document).await {
            Ok(Some((context, claim))) => document_of(shared, deployment, &context, claim).await,
            Ok(None) => StatusCode::NOT_FOUND.into_response(),
            Err(_) => respond(account.decline(Decline::Unavailable { retry_after_s: RETRY_AFTER_S })),
        },
        // News of a call on the way by which it came in; without an id of ours nobody can say which it is.
        _ => respond(Document::empty()),
    }
}

/// Why an inbound call is not taken.
enum NotTaken {
    NoAssistant,
    Ending(Ending),
}

/// Finds room for a call, keeps its record and claim, and says where its media go.
async fn take(
    shared: &Shared,
    deployment: &Deployment,
    assistant_id: &str,
    inbound: &InboundCall,
) -> Result<Plan, NotTaken> {
    let (credential, provider) = (&deployment.credential, deployment.provider());
    let tenant_id = &credential.tenant_id;
    let store_failed = |why: String| NotTaken::Ending(Ending::with_detail(Cause::StoreFailed, why));
    match shared.accounts.assistant(tenant_id, assistant_id).await {
        Ok(Some(_)) => {}
        Ok(None) => return Err(NotTaken::NoAssistant),
        Err(error) => return Err(store_failed(error.to_string())),
    }
    let place = shared.live.media_place(tenant_id.clone()).await.map_err(NotTaken::Ending)?;
    let mut fresh = Named { call_id: Uuid::now_v7(), claim: Uuid::new_v4(), event_id: Uuid::new_v4() };
    if !inbound.provider_call_id.is_empty() {
        let name = format!("{provider}:{}:{}", credential.name, inbound.provider_call_id);
        let first = shared.contexts.store().first_word(&name, &fresh.write(), CLAIM_TTL).await;
        let first = first.map_err(|error| store_failed(error.to_string()))?;
        if let Some(earlier) = Named::read(&first).filter(|earlier| earlier.claim != fresh.claim) {
            // The same call comes twice in its life where a flow leads it back to us: what is over is not taken up again.
            let kept = shared.contexts.store().get(earlier.call_id).await;
            let claim = shared.contexts.store().claim_of(earlier.call_id).await;
            if !matches!((kept, claim), (Ok(Some(_)), Ok(None))) {
                fresh = earlier;
            }
        }
    }
    let context = CallContext {
        call_id: fresh.call_id,
        tenant_id: tenant_id.clone(),
        assistant_id: assistant_id.into(),
        direction: "inbound",
        from: inbound.from.clone(),
        to: inbound.to.clone(),
        engine: place.engine,
        provider: Some(ProviderSide {
            name: provider.to_owned(),
            credential: credential.name.to_string(),
            call_id: Some(inbound.provider_call_id.clone()).filter(|id| !id.is_empty()),
            event_id: fresh.event_id,
        }),
        arguments: inbound.arguments.iter().take(ARGUMENTS_MAX).cloned().collect(),
    };
    let claim = Claim(fresh.claim);
    let mint = Mint { claim, ttl: CLAIM_TTL };
    shared.contexts.mint(context.clone(), mint).await.map_err(|error| store_failed(error.to_string()))?;
    let plan = Plan {
        media_url: place.addresses.media_url(provider, claim),
        context_id: fresh.claim,
        callback_url: event_url(shared, provider, fresh.event_id),
        number: inbound.to.clone(),
        sample_rate: deployment.sample_rate,
        parameters: inbound.arguments.clone(),
    };
    shared.live.expect(claim, context).await;
    Ok(plan)
}

fn event_url(shared: &Shared, provider: &str, event_id: Uuid) -> String {
    format!("{}/v1/telephony/{provider}/event/{event_id}", shared.public_url)
}

/// The ids of a call that a provider has announced.
struct Named {
    call_id: Uuid,
    claim: Uuid,
    event_id: Uuid,
}

impl Named {
    fn write(&self) -> String {
        format!("{} {} {}", self.call_id, self.claim, self.event_id)
    }

    fn read(text: &str) -> Option<Self> {
        let mut ids = text.split(' ').map(|id| id.parse().ok());
        Some(Self { call_id: ids.next()??, claim: ids.next()??, event_id: ids.next()?? })
    }
}

/// The call whose claim the provider carries for us.
async fn find_by_claim(
    shared: &Shared,
    credential: &Credential,
    document: &DocumentRequest,
) -> Result<Option<(CallContext, Claim)>, ContextError> {
    let Some(claim) = document.context_id.as_deref().and_then(|id| id.parse().ok()).map(Claim) else {
        return Ok(None);
    };
    let found = shared.contexts.store().peek(claim).await?;
    let is_own = |context: &CallContext| {
        context.provider.as_ref().is_some_and(|provider| *provider.credential == *credential.name)
    };
    Ok(found.filter(is_own).map(|context| (context, claim)))
}

/// What leads the media of a call of ours to an engine.
async fn document_of(
    shared: &Shared,
    deployment: &Deployment,
    context: &CallContext,
    claim: Claim,
) -> Response {
    let account = &*deployment.credential.account;
    let Some(provider) = &context.provider else { return StatusCode::NOT_FOUND.into_response() };
    let place = match shared.live.media_place(context.tenant_id.clone()).await {
        Ok(place) => place,
        Err(ending) => return respond(account.decline(decline_of(&ending))),
    };
    let plan = Plan {
        media_url: place.addresses.media_url(deployment.provider(), claim),
        context_id: claim.0,
        callback_url: event_url(shared, deployment.provider(), provider.event_id),
        number: context.from.clone(),
        sample_rate: deployment.sample_rate,
        parameters: context.arguments.clone().into_iter().collect(),
    };
    answer(account, deployment.provider(), &plan)
}

fn answer(account: &dyn Account, provider: &str, plan: &Plan) -> Response {
    let document = account.answer(&plan.as_plan());
    if !document.left_out.is_empty() && provider != "asterisk" {
        tracing::info!(provider, left_out = ?document.left_out, "arguments that the provider cannot carry: our record has them");
    }
    respond(document)
}

/// The provider's own way to say no to this.
fn decline_of(ending: &Ending) -> Decline<'static> {
    match ending.cause {
        Cause::TooManyCalls | Cause::TenantFull => Decline::Busy,
        // Another node may take it.
        Cause::Draining | Cause::NoEngine | Cause::EngineFull => {
            Decline::Unavailable { retry_after_s: RETRY_AFTER_S }
        }
        _ => Decline::Say(SORRY),
    }
}

fn respond(document: Document) -> Response {
    let Document { status, content_type, body, retry_after_s, .. } = document;
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    if !content_type.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    if let Some(seconds) = retry_after_s {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

async fn event(
    State(shared): State<Shared>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    Path((provider, event_id)): Path<(String, String)>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let asked = Asked::new(&shared, peer.ip(), (&method, &uri), &headers, &body);
    let Ok(event_id) = event_id.parse() else { return StatusCode::NOT_FOUND.into_response() };
    let context = match shared.contexts.store().by_event(event_id).await {
        Ok(context) => context,
        // It comes again, or the media connection tells.
        Err(_) => return respond(Document::unavailable(RETRY_AFTER_S)),
    };
    let side = context.as_ref().and_then(|context| context.provider.as_ref());
    let Some((context, side)) = context.as_ref().zip(side).filter(|(_, side)| side.name == provider) else {
        shared.metrics.count_webhook("unknown", "unknown_event");
        return StatusCode::NOT_FOUND.into_response();
    };
    let number = if context.direction == "outbound" { &context.from } else { &context.to };
    let (tenant_id, assistant_id) = (&context.tenant_id, &context.assistant_id);
    let found = shared.credentials.deployment_of(&side.credential, tenant_id, assistant_id, number);
    let Some(deployment) = found else { return StatusCode::NOT_FOUND.into_response() };
    match asked.read(&deployment.credential, Endpoint::Event).await {
        Ok(webhook) => {
            shared.metrics.count_webhook(deployment.provider(), "event");
            handle_event(&shared, deployment, context, webhook).await
        }
        Err(refusal) => refused(&shared, &provider, &refusal, &asked),
    }
}

async fn handle_event(
    shared: &Shared,
    deployment: &Deployment,
    context: &CallContext,
    webhook: Webhook,
) -> Response {
    let account = &*deployment.credential.account;
    match webhook {
        Webhook::Status(status) => {
            let is_over = status.status.is_some_and(crate::provider::CallStatus::is_terminal);
            let is_own = context
                .provider
                .as_ref()
                .is_some_and(|side| side.call_id.as_deref().is_none_or(|own| own == status.provider_call_id));
            let provider_call_id = status.provider_call_id.clone();
            let is_here = shared.live.status(context.call_id, status).await;
            // Nobody will come with its claim any more.
            if is_over && is_own && !is_here {
                shared.contexts.finish(context.call_id);
            }
            // A call of ours that is over rings there still: nobody knew its name when it ended.
            if !is_over && !is_here && context.direction == "outbound" && !provider_call_id.is_empty() {
                let claim = shared.contexts.store().claim_of(context.call_id).await;
                if matches!(claim, Ok(None)) {
                    let (rest, account) = (shared.rest.clone(), deployment.credential.account.clone());
                    tokio::spawn(async move {
                        let errand = Errand::HangUp { call: provider_call_id };
                        let outcome = rest.run(&*account, &errand).await;
                        tracing::warn!(?outcome, "a call that is over here was hung up at its provider");
                    });
                }
            }
        }
        Webhook::Document(_) => {
            // The provider fetches what it was told by REST to fetch: whom to put the caller through to.
            if let Some((to, from)) = shared.live.transfer_to(context.call_id).await {
                let event_id = context.provider.as_ref().map(|side| side.event_id).unwrap_or_default();
                let callback = event_url(shared, deployment.provider(), event_id);
                let (result_url, document_url, ring_s) = (&*callback, &*callback, TRANSFER_RING_S);
                let transfer = Transfer { to: &to, from: &from, ring_s, result_url, document_url };
                let document = account.transfer(&transfer);
                return respond(document.unwrap_or_else(|| account.decline(Decline::Say(SORRY))));
            }
            return lead_to_media(shared, deployment, context).await;
        }
        Webhook::Stream(StreamEvent { kind, detail, .. }) => {
            let failure = (kind == StreamKind::Failed)
                .then(|| detail.unwrap_or_else(|| "the provider could not open it".to_owned()));
            shared.live.stream_news(context.call_id, failure).await;
        }
        Webhook::Transferred(_)
        | Webhook::Inbound(_)
        | Webhook::Challenge(_)
        | Webhook::Messages(_)
        | Webhook::Other(_) => {}
    }
    respond(Document::empty())
}

/// Somebody has picked up a call of ours.
async fn lead_to_media(shared: &Shared, deployment: &Deployment, context: &CallContext) -> Response {
    let account = &*deployment.credential.account;
    match shared.contexts.store().claim_of(context.call_id).await {
        Ok(Some(claim)) => document_of(shared, deployment, context, claim).await,
        // It is over here: whoever has picked up is told politely.
        Ok(None) => respond(account.decline(Decline::Say(SORRY))),
        Err(_) => respond(account.decline(Decline::Unavailable { retry_after_s: RETRY_AFTER_S })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_whom_the_nearest_foreign_proxy_names() {
        let proxies: Vec<ipnet::IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let mut headers = HeaderMap::new();
        let at =
            |peer: &str, headers: &HeaderMap| source_of(peer.parse().unwrap(), headers, &proxies).to_string();
        assert_eq!(at("10.1.1.1", &headers), "10.1.1.1");
        headers.insert("x-forwarded-for", HeaderValue::from_static("203.0.113.9, 198.51.100.7, 10.2.2.2"));
        assert_eq!(at("10.1.1.1", &headers), "198.51.100.7");
        assert_eq!(at("192.0.2.1", &headers), "192.0.2.1", "a stranger names nobody");
        headers.insert("x-forwarded-for", HeaderValue::from_static("203.0.113.9, 198.51.100.7:4444"));
        assert_eq!(at("10.1.1.1", &headers), "198.51.100.7", "with its port");
        headers.insert("x-forwarded-for", HeaderValue::from_static("203.0.113.9, unknown"));
        assert_eq!(at("10.1.1.1", &headers), "10.1.1.1", "who stands before an unknown hop may be invented");
    }

    #[test]
    fn ids_come_back_as_they_were_written() {
        let named = Named { call_id: Uuid::now_v7(), claim: Uuid::new_v4(), event_id: Uuid::new_v4() };
        let read = Named::read(&named.write()).unwrap();
        assert_eq!((read.call_id, read.claim, read.event_id), (named.call_id, named.claim, named.event_id));
        assert!(Named::read("one two").is_none());
    }
}
