//! REST: health, metrics, and JSON views of calls and conversations.

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use axum::{Router, response::Result};
use serde::Deserialize;
use serde_json::json;

use super::{ApiError, Shared, view};

pub(super) fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/calls", get(list_calls))
        .route("/v1/calls/{call_id}", get(get_call))
        .route("/v1/conversations/{call_id}", get(get_conversation))
        .fallback(|| async { (StatusCode::NOT_FOUND, Json(json!({ "error": "no such path" }))) })
        .with_state(shared)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::NoCall(_) => StatusCode::NOT_FOUND,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Store(error) => {
                tracing::error!(%error, "a request could not be answered");
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        let body = Json(json!({ "error": self.to_string() }));
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
    let mut text = shared.metrics.render(&shared.sip, &shared.writer);
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
