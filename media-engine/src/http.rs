//! What a monitor asks over HTTP: `/metrics`, `/healthz`, `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;

use crate::control::Control;
use crate::metrics::{Process, render, resident_octets};
use crate::ring::seconds_on_cpu;

/// The routes.
pub fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(control)
}

/// 503 while draining, so that nobody sends new calls here.
async fn ready(State(control): State<Arc<Control>>) -> impl IntoResponse {
    match control.is_draining() {
        false => (StatusCode::OK, "ready\n"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

async fn metrics(State(control): State<Arc<Control>>) -> impl IntoResponse {
    let cores: Vec<_> = control.cores().iter().map(|core| (core.number(), core.metrics())).collect();
    let process = Process {
        cpu: seconds_on_cpu(),
        resident_octets: resident_octets(),
        sessions_max: control.config().sessions_max as u64,
        draining: control.is_draining(),
        controllers: control.controllers() as u64,
    };
    let mut page = render(&cores, &process);
    control.write_upgrades(&mut page);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], page)
}
