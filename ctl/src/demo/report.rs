//! The demo's report: the formation, and the run's own report.

use serde::Serialize;

use crate::run::report::{LedgerFigures, RunFigures, RunReport};
use crate::units::seconds;

/// What a demo has shown.
#[derive(Debug)]
pub struct DemoReport {
    /// Hosts.
    pub hosts: u16,
    /// redis-servers on all of them.
    pub instances: u32,
    /// Name of the coordinator at the end.
    pub coordinator: Option<String>,
    /// How long it took to get there.
    pub formation: Formation,
    /// The run.
    pub report: RunReport,
    /// The hosts' addresses, for people.
    pub addresses: String,
}

/// Times of a formation.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Formation {
    /// From the start of the first agent until all see each other and one coordinates.
    pub start_s: f64,
    /// From the create command until every instance has agreed.
    pub form_s: f64,
    /// From the start of the first agent until every instance has agreed.
    pub total_s: f64,
}

/// The JSON answer.
#[derive(Serialize)]
struct Json<'a> {
    hosts: u16,
    instances: u32,
    coordinator: &'a Option<String>,
    formation: Formation,
    run: &'a RunFigures,
    ledger: &'a Option<LedgerFigures>,
}

impl Serialize for DemoReport {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { hosts, instances, coordinator, formation, report, addresses: _ } = self;
        Json {
            hosts: *hosts,
            instances: *instances,
            coordinator,
            formation: *formation,
            run: &report.run,
            ledger: &report.ledger,
        }
        .serialize(serializer)
    }
}

impl DemoReport {
    /// Whether the account is closed and whole.
    pub fn is_ok(&self) -> bool {
        self.report.is_ok()
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let Formation { start_s, form_s, total_s } = self.formation;
        format!(
            "\
redmesh demo: {} redis-servers on {} hosts ({}), coordinator {}
formation   {} = agents {} + cluster {}

{}",
            self.instances,
            self.hosts,
            self.addresses,
            self.coordinator.as_deref().unwrap_or("none"),
            seconds(total_s),
            seconds(start_s),
            seconds(form_s),
            self.report.text()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::report::Names;
    use crate::run::report::tests::done;

    fn report() -> DemoReport {
        DemoReport {
            hosts: 2,
            instances: 6,
            coordinator: Some("host-2".to_owned()),
            formation: Formation { start_s: 1.25, form_s: 3.5, total_s: 4.75 },
            report: RunReport::of(&done(), &Names::default()),
            addresses: "127.0.0.1 to 127.0.0.2".to_owned(),
        }
    }

    #[test]
    fn the_text_begins_with_the_formation() {
        assert!(report().text().starts_with(
            "\
redmesh demo: 6 redis-servers on 2 hosts (127.0.0.1 to 127.0.0.2), coordinator host-2
formation   4.8 s = agents 1.2 s + cluster 3.5 s

run 3f2a9c1d  uuid-counter, "
        ));
    }

    #[test]
    fn the_json_has_its_documented_keys() {
        let value = serde_json::to_value(report()).unwrap();
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&value), ["coordinator", "formation", "hosts", "instances", "ledger", "run"]);
        assert_eq!(value["coordinator"], "host-2");
        assert_eq!(keys(&value["formation"]), ["form_s", "start_s", "total_s"]);
        for key in [
            "id",
            "workers",
            "issued",
            "acked",
            "failed",
            "unknown",
            "moved",
            "retried",
            "seconds",
            "writes_per_s",
            "latency_us",
            "client_cpu_s",
            "server_cpu_s",
        ] {
            assert!(value["run"].get(key).is_some(), "{key}");
        }
        assert_eq!(keys(&value["run"]["latency_us"]), ["max", "p50", "p90", "p99", "p999"]);
        assert_eq!(value["ledger"]["ok"], true);
    }
}
