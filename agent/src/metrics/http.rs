//! `/metrics`, `/healthz`, `/readyz`.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::control::Control;

/// Content type of Prometheus' text format.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, Clone)]
struct Sources {
    prometheus: PrometheusHandle,
    control: Control,
}

/// Serves until cancelled.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    prometheus: PrometheusHandle,
    control: Control,
    cancel: CancellationToken,
) -> io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Sources { prometheus, control });
    axum::serve(listener, routes).with_graceful_shutdown(cancel.cancelled_owned()).await
}

/// Binds the port; its own step so that a taken port stops the agent at its start.
///
/// # Errors
/// With the address and the remedy in words.
pub async fn bind(addr: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(addr)
        .await
        .map_err(|error| format!("http.listen = {addr}: {error}; choose another address, or \"off\""))
}

async fn metrics(State(sources): State<Sources>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], sources.prometheus.render())
}

async fn ready(State(sources): State<Sources>) -> impl IntoResponse {
    match sources.control.waiting_for() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(words) => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {words}\n")),
    }
}
