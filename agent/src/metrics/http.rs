//! `/metrics`, `/healthz`, `/readyz`, and `/sd/targets`: the list of all hosts' ports like
//! this one, for Prometheus.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use redmesh_api::control::Members;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Exposition;

use crate::control::Control;

/// Content type of Prometheus' text format.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// For answers under way when a connection is to end. A client that neither asks nor hangs
/// up must not hold the agent.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// Connections at a time; further ones wait for a place. Anybody who reaches the port may open
/// some, and the agent's descriptors are its servers' as well.
const CONNECTIONS_MAX: usize = 128;

/// A request's head is there by then, or the connection ends; longer than between two scrapes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// No connection lasts longer, however slowly its client reads.
const CONNECTION_MAX: Duration = Duration::from_secs(600);

/// Before the next try where no connection could be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone)]
struct Sources {
    metrics: Exposition,
    control: Control,
}

/// Serves until cancelled.
pub async fn serve(
    listener: TcpListener,
    exposition: Exposition,
    control: Control,
    cancel: CancellationToken,
) {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/sd/targets", get(targets))
        .with_state(Sources { metrics: exposition, control });
    let service = TowerToHyperService::new(routes);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let accept = async || {
        let place = places.clone().acquire_owned().await.ok();
        (listener.accept().await, place)
    };
    loop {
        let (accepted, place) = tokio::select! {
            accepted = accept() => accepted,
            () = cancel.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let served = converse(stream, service.clone(), cancel.clone());
                connections.spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            // No descriptor is free, or the client has gone already.
            Err(error) => {
                debug!(%error, "no HTTP connection accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// One connection, until its client or `cancel` ends it, or its time is over.
async fn converse(stream: TcpStream, service: TowerToHyperService<Router>, cancel: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let over = async {
        let _ = timeout(CONNECTION_MAX, cancel.cancelled()).await;
    };
    // How it ended is its client's affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = over => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(CLOSE_PATIENCE, connection).await;
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

async fn targets(State(sources): State<Sources>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], target_list(&sources.control.members()).to_string())
}

/// What an agent serves as Prometheus' `http_sd_config` reads it. A host that is not heard
/// of stays in the list: that it can't be scraped is what an alert is made of.
fn target_list(members: &Members) -> serde_json::Value {
    let targets = members.members.iter().filter_map(|member| {
        let labels = json!({ "mesh": members.mesh_name, "host": member.name });
        Some(json!({ "targets": [member.http_addr?.to_string()], "labels": labels }))
    });
    targets.collect()
}

#[cfg(test)]
mod tests {
    use redmesh_api::control::{Member, MemberState};
    use redmesh_api::ids::HostId;
    use redmesh_api::level::Stamp;

    use super::*;

    #[test]
    fn targets_are_all_hosts_that_serve_metrics_dead_ones_too() {
        let member = |id, name: &str, http: Option<&str>, state| Member {
            id: HostId(id),
            name: name.to_owned(),
            addr: "10.0.0.1:7379".parse().expect("an address"),
            state,
            voter: false,
            coordinator: false,
            instances_up: 0,
            instances_planned: 0,
            version: "0".to_owned(),
            http_addr: http.map(|addr| addr.parse().expect("an address")),
            problem: None,
            secrets: None,
        };
        let members = Members {
            mesh_name: "prod".to_owned(),
            mesh: None,
            answered_by: HostId(1),
            coordinator: None,
            bootstrap_expect: 1,
            waiting_for: None,
            stamp: Stamp::default(),
            members: vec![
                member(1, "a", Some("10.0.0.1:7380"), MemberState::Alive),
                member(2, "b", Some("10.0.0.2:7380"), MemberState::Dead),
                member(3, "c", None, MemberState::Alive),
            ],
        };
        let expected = json!([
            { "targets": ["10.0.0.1:7380"], "labels": { "mesh": "prod", "host": "a" } },
            { "targets": ["10.0.0.2:7380"], "labels": { "mesh": "prod", "host": "b" } },
        ]);
        assert_eq!(target_list(&members), expected);
    }
}
