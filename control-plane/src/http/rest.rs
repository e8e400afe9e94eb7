//! REST: health, metrics, and JSON views of calls and conversations.

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::{Router, response::Result};
use serde::Deserialize;
use serde_json::json;

use super::talk::{Bulk, Join, JoinRequest, PhoneCall, Transfer, read_json};
use super::{ApiError, Shared, view};
use crate::call::registry::placing::PlaceError;

pub(super) fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/calls", get(list_calls).post(create_call))
        .route("/v1/calls/{call_id}", get(get_call))
        .route("/v1/calls/{call_id}/hangup", post(hang_up))
        .route("/v1/calls/{call_id}/hold", post(hold))
        .route("/v1/calls/{call_id}/resume", post(resume))
        .route("/v1/calls/{call_id}/transfer", post(transfer))
        .route("/v1/calls/{call_id}/join", post(join))
        .route("/v1/bulks", post(create_bulk))
        .route("/v1/bulks/{bulk_id}", get(get_bulk))
        .route("/v1/bulks/{bulk_id}/cancel", post(cancel_bulk))
        .route("/v1/conversations/{call_id}", get(get_conversation))
        .merge(super::telephony::router())
        .merge(super::whatsapp::router())
        .fallback(|| async { (StatusCode::NOT_FOUND, Json(json!({ "error": "no such path" }))) })
        .with_state(shared)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::NoCall(_) | Self::NotLive(_) | Self::NoBulk(_) => StatusCode::NOT_FOUND,
            Self::Invalid(_) | Self::Fields(_) | Self::Place(PlaceError::BulkSize) => StatusCode::BAD_REQUEST,
            Self::Refused(_) | Self::Place(PlaceError::OtherRequest(_)) => StatusCode::CONFLICT,
            Self::Place(PlaceError::Full(_)) => StatusCode::TOO_MANY_REQUESTS,
            Self::Place(PlaceError::Draining | PlaceError::StoreBehind) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(error) => {
                tracing::error!(%error, "a request could not be answered");
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        let mut body = json!({ "error": self.to_string() });
        if let Self::Fields(errors) = &self {
            let fields = errors.iter().map(|error| json!({ "field": error.field, "problem": error.problem }));
            body["fields"] = fields.collect();
        }
        let body = Json(body);
        match status {
            // RFC 9110 §11.6.1: a 401 says how to authenticate.
            StatusCode::UNAUTHORIZED => {
                (status, [(header::WWW_AUTHENTICATE, "ApiKey header=\"x-api-key\"")], body).into_response()
            }
            _ => (status, body).into_response(),
        }
    }
}

/// 200 while new calls are taken; 503 while draining or without an engine.
async fn readyz(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if shared.metrics.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    if !shared.metrics.is_ready() {
        return (StatusCode::SERVICE_UNAVAILABLE, "no media engine\n");
    }
    (StatusCode::OK, "ready\n")
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let mut text = shared.metrics.render(&shared.sip, &shared.guard, &shared.writer, &shared.contexts);
    text += &crate::metrics::render_ports(shared.ports.counts());
    text += &shared.office.board.render(crate::store::epoch_ms());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    page_size: u32,
    #[serde(default)]
    page_token: String,
    #[serde(default)]
    live_only: bool,
}

fn key(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-api-key")?.to_str().ok()
}

async fn list_calls(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let principal = shared.authenticate(key(&headers)).await?;
    let page = shared.list_calls(&principal, query.page_size, &query.page_token, query.live_only).await?;
    let calls: Vec<_> = page.calls.iter().map(view::call).collect();
    Ok(Json(json!({ "calls": calls, "nextPageToken": page.next })))
}

async fn get_call(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Path(call_id): Path<String>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let principal = shared.authenticate(key(&headers)).await?;
    Ok(Json(view::call(&shared.call(&principal, &call_id).await?)))
}

/// Queues a call. The header `idempotency-key` does what the field does.
async fn create_call(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<serde_json::Value>), ApiError> {
    let principal = shared.authenticate(key(&headers)).await?;
    let mut request: tandem_api::v1::CreatePhoneCallRequest = read_json::<PhoneCall>(&body)?.into();
    let given = headers.get("idempotency-key").and_then(|value| value.to_str().ok());
    if let (true, Some(given)) = (request.idempotency_key.is_empty(), given) {
        request.idempotency_key = given.to_owned();
    }
    let call = shared.create_call(&principal, &request).await?;
    Ok((StatusCode::ACCEPTED, Json(view::call(&call))))
}

async fn create_bulk(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<serde_json::Value>), ApiError> {
    let principal = shared.authenticate(key(&headers)).await?;
    let bulk: Bulk = read_json(&body)?;
    let made = shared.create_bulk(&principal, bulk.calls.into_iter().map(Into::into).collect()).await?;
    let calls: Vec<_> = made.calls.iter().map(view::call).collect();
    Ok((StatusCode::ACCEPTED, Json(json!({ "bulkId": made.bulk_id, "calls": calls }))))
}

async fn get_bulk(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Path(bulk_id): Path<String>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let principal = shared.authenticate(key(&headers)).await?;
    Ok(Json(view::bulk(&shared.bulk(&principal, &bulk_id, false).await?)))
}

async fn cancel_bulk(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Path(bulk_id): Path<String>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let principal = shared.authenticate(key(&headers)).await?;
    Ok(Json(view::bulk(&shared.bulk(&principal, &bulk_id, true).await?)))
}

async fn hang_up(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Path(call_id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let principal = shared.authenticate(key(&headers)).await?;
    shared.hang_up(&principal, &call_id).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn hold(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Path(call_id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let principal = shared.authenticate(key(&headers)).await?;
    shared.hold(&principal, &call_id, true).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn resume(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Path(call_id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let principal = shared.authenticate(key(&headers)).await?;
    shared.hold(&principal, &call_id, false).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn transfer(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Path(call_id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let principal = shared.authenticate(key(&headers)).await?;
    let Transfer { to, to_call_id } = read_json(&body)?;
    shared.transfer(&principal, &call_id, &to, &to_call_id).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn join(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Path(call_id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let principal = shared.authenticate(key(&headers)).await?;
    let join: Join = read_json(&body)?;
    match join.into_request(call_id)? {
        JoinRequest::Guest(request) => shared.join(&principal, request).await?,
        JoinRequest::Calls(request) => shared.join_calls(&principal, &request).await?,
    }
    Ok(StatusCode::ACCEPTED)
}

async fn get_conversation(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Path(call_id): Path<String>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let principal = shared.authenticate(key(&headers)).await?;
    Ok(Json(view::conversation(&shared.conversation(&principal, &call_id).await?)))
}

/// What a person sees who opens the port in a browser, until the console is there.
async fn page(State(shared): State<Shared>) -> Html<String> {
    let state = match (shared.metrics.is_draining(), shared.metrics.is_ready()) {
        (true, _) => "going down, takes no new calls",
        (false, false) => "waiting for a media engine",
        (false, true) => "ready for calls",
    };
    let dial: String = shared.dial.iter().map(|line| format!("<li><code>{line}</code></li>")).collect();
    Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Tandem</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}}</style>\
         <h1>Tandem</h1><p>This node is {state}. Live calls: {calls}.</p>\
         <h2>Where to dial</h2><ul>{dial}</ul>\
         <h2>Where to look</h2><p>The console comes here later. Until then: <code>tandem call list</code>, \
         <code>tandem call explain ID</code>, <code>tandem conversation show ID</code>, \
         <a href=\"/metrics\">metrics</a>, <a href=\"/readyz\">readiness</a>.</p></html>",
        calls = shared.metrics.live_calls(),
    ))
}
