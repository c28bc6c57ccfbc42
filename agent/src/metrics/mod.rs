//! Prometheus metrics, and the HTTP port that serves them beside `/healthz` and
//! `/readyz`.
//!
//! Names live in [`own`], [`machine`] and `standing` (the agent's) and [`instances`]
//! (redis_exporter's, so that dashboards made for it work); nothing else in the agent spells a
//! metric's name.

pub mod http;
pub mod instances;
pub mod machine;
pub mod own;
mod standing;

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

/// A series that nobody has set for so long is withdrawn: an instance that does not
/// answer is not to show its last figures for ever, nor a promoted replica its old role.
const STALE_AFTER: Duration = Duration::from_secs(30);

/// What a scrape reads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Exposition(PrometheusHandle);

impl Exposition {
    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = self.0.render();
        // The recorder's counters are whole numbers: one with a fraction is kept as a
        // gauge and called here what it is.
        for name in instances::COUNTERS_OF_SECONDS {
            text = text.replace(&format!("# TYPE {name} gauge"), &format!("# TYPE {name} counter"));
        }
        text
    }
}

/// Installs the process's recorder; once per process.
///
/// # Errors
/// [`BuildError`] if a recorder is installed already.
pub fn install() -> Result<Exposition, BuildError> {
    let builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::ALL, Some(STALE_AFTER));
    let handle = builder.install_recorder()?;
    own::describe();
    instances::describe();
    machine::describe();
    standing::describe();
    Ok(Exposition(handle))
}

#[cfg(test)]
mod tests {
    use metrics::{Unit, describe_gauge, gauge};

    use super::*;

    #[test]
    fn seconds_that_only_grow_are_exposed_as_counters() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            for name in instances::COUNTERS_OF_SECONDS {
                describe_gauge!(name, Unit::Seconds, "help");
                gauge!(name).set(1.25);
            }
        });
        let text = Exposition(recorder.handle()).render();
        for name in instances::COUNTERS_OF_SECONDS {
            assert!(text.contains(&format!("# TYPE {name} counter\n{name} 1.25\n")), "{text}");
        }
    }
}
