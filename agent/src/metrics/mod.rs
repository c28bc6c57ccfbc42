//! Prometheus metrics, and the HTTP port that serves them beside `/healthz` and
//! `/readyz`.
//!
//! Names live in [`own`] (the agent's) and [`instances`] (redis_exporter's, so that
//! dashboards made for it work); nothing else in the agent spells a metric's name.

pub mod http;
pub mod instances;
pub mod own;

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

/// Installs the process's recorder; once per process.
///
/// # Errors
/// [`BuildError`] if a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    own::describe();
    instances::describe();
    Ok(handle)
}
