//! `/metrics`, `/healthz`, `/readyz`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Exposition;

use crate::control::Control;

/// Content type of Prometheus' text format.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// For answers under way when the agent stops. A client that neither asks nor hangs up
/// must not hold it.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
struct Sources {
    metrics: Exposition,
    control: Control,
}

/// Serves until cancelled.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    exposition: Exposition,
    control: Control,
    cancel: CancellationToken,
) -> io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Sources { metrics: exposition, control });
    let served = axum::serve(listener, routes).with_graceful_shutdown(cancel.clone().cancelled_owned());
    let patience_ends = async {
        cancel.cancelled().await;
        tokio::time::sleep(CLOSE_PATIENCE).await;
    };
    tokio::select! {
        served = served.into_future() => served,
        () = patience_ends => Ok(()),
    }
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
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], sources.metrics.render())
}

async fn ready(State(sources): State<Sources>) -> impl IntoResponse {
    match sources.control.waiting_for() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(words) => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {words}\n")),
    }
}
