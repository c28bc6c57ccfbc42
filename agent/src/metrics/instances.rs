//! The instances' metrics under redis_exporter's names, with an `instance_addr` label.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use redmesh_api::ids::HostId;
use redmesh_api::level::Level;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::standing;
use crate::clock::now_unix_ms;
use crate::cluster::{AdminPool, ClusterInfo, InfoMap};

/// Between two sweeps over this host's instances' `INFO`: half of the usual scrape
/// interval of Prometheus.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// `(metric, INFO field, help)`; gauges.
const GAUGES: &[(&str, &str, &str)] = &[
    ("redis_uptime_in_seconds", "uptime_in_seconds", "Seconds since the server started"),
    ("redis_connected_clients", "connected_clients", "Client connections"),
    ("redis_blocked_clients", "blocked_clients", "Clients in a blocking call"),
    ("redis_cluster_connections", "cluster_connections", "Links of the cluster bus"),
    ("redis_config_maxclients", "maxclients", "Value of maxclients"),
    ("redis_memory_used_bytes", "used_memory", "Bytes allocated by the server"),
    ("redis_memory_used_rss_bytes", "used_memory_rss", "Bytes as the operating system sees them"),
    ("redis_memory_used_peak_bytes", "used_memory_peak", "Most bytes ever allocated"),
    ("redis_memory_max_bytes", "maxmemory", "Value of maxmemory"),
    ("redis_mem_fragmentation_ratio", "mem_fragmentation_ratio", "RSS over allocated bytes"),
    ("redis_loading_dump_file", "loading", "1 while a dump is being loaded"),
    ("redis_rdb_changes_since_last_save", "rdb_changes_since_last_save", "Changes not in the last dump"),
    ("redis_connected_slaves", "connected_slaves", "Connected replicas"),
    ("redis_master_repl_offset", "master_repl_offset", "Replication offset"),
    ("redis_instantaneous_ops_per_sec", "instantaneous_ops_per_sec", "Commands per second lately"),
    ("redis_cluster_enabled", "cluster_enabled", "1 if the server is in cluster mode"),
];

/// `(metric, INFO field, help)`; counters with whole values.
const COUNTERS: &[(&str, &str, &str)] = &[
    ("redis_connections_received_total", "total_connections_received", "Connections accepted"),
    ("redis_rejected_connections_total", "rejected_connections", "Connections refused by maxclients"),
    ("redis_commands_processed_total", "total_commands_processed", "Commands executed"),
    ("redis_net_input_bytes_total", "total_net_input_bytes", "Bytes read"),
    ("redis_net_output_bytes_total", "total_net_output_bytes", "Bytes written"),
    ("redis_expired_keys_total", "expired_keys", "Keys expired"),
    ("redis_evicted_keys_total", "evicted_keys", "Keys evicted"),
    ("redis_keyspace_hits_total", "keyspace_hits", "Reads that found their key"),
    ("redis_keyspace_misses_total", "keyspace_misses", "Reads that did not find their key"),
];

const UP: &str = "redis_up";
const DB_KEYS: &str = "redis_db_keys";
const INFO: &str = "redis_instance_info";
const START: &str = "redis_start_time_seconds";
const CLUSTER_STATE: &str = "redis_cluster_state";
const CPU_SYS: &str = "redis_cpu_sys_seconds_total";
const CPU_USER: &str = "redis_cpu_user_seconds_total";

/// Counters whose values have a fraction.
pub(super) const COUNTERS_OF_SECONDS: [&str; 2] = [CPU_SYS, CPU_USER];

/// Fields of `INFO` that become labels of [`INFO`].
const INFO_LABELS: [&str; 6] =
    ["role", "redis_version", "redis_mode", "maxmemory_policy", "run_id", "process_id"];

type ClusterFigure = fn(&ClusterInfo) -> f64;

/// `(metric, figure of CLUSTER INFO, help)`; gauges.
const CLUSTER_GAUGES: &[(&str, ClusterFigure, &str)] = &[
    (CLUSTER_STATE, |info| f64::from(u8::from(info.state_ok)), "1 if the instance finds the cluster ok"),
    ("redis_cluster_slots_assigned", |info| info.slots_assigned.into(), "Slots that have a primary"),
    (
        "redis_cluster_slots_ok",
        |info| info.slots_ok.into(),
        "Slots whose primary is neither suspected nor failed",
    ),
    ("redis_cluster_slots_pfail", |info| info.slots_pfail.into(), "Slots whose primary is suspected"),
    ("redis_cluster_slots_fail", |info| info.slots_fail.into(), "Slots whose primary has failed"),
    ("redis_cluster_known_nodes", |info| info.known_nodes.into(), "Nodes that the instance knows"),
    ("redis_cluster_size", |info| info.size.into(), "Primaries that serve slots"),
    ("redis_cluster_current_epoch", |info| info.current_epoch as f64, "Epoch of the cluster"),
    ("redis_cluster_my_epoch", |info| info.my_epoch as f64, "Config epoch of the instance or of its primary"),
];
const CALLS: &str = "redis_commands_total";

pub(super) fn describe() {
    describe_gauge!(UP, Unit::Count, "1 if the instance answered INFO");
    describe_gauge!(DB_KEYS, Unit::Count, "Keys of a database");
    describe_gauge!(CPU_SYS, Unit::Seconds, "CPU used in the kernel");
    describe_gauge!(CPU_USER, Unit::Seconds, "CPU used in user space");
    describe_counter!(CALLS, Unit::Count, "Calls of a command");
    describe_gauge!(INFO, Unit::Count, "1, labelled with what the instance is");
    describe_gauge!(START, Unit::Seconds, "When the server started, Unix time");
    for (name, _, help) in CLUSTER_GAUGES {
        describe_gauge!(*name, Unit::Count, *help);
    }
    for (name, _, help) in GAUGES {
        describe_gauge!(*name, Unit::Count, *help);
    }
    for (name, _, help) in COUNTERS {
        describe_counter!(*name, Unit::Count, *help);
    }
}

/// Sweeps over this host's planned instances until cancelled.
pub async fn sweep(
    host: HostId,
    levels: watch::Receiver<Arc<Level>>,
    admin: AdminPool,
    cancel: CancellationToken,
) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = cancel.cancelled() => return,
        }
        let level = levels.borrow().clone();
        let Some(plan) = &level.plan else { continue };
        let own: Vec<_> = plan.instances_of(host).map(|instance| plan.addr_of(instance)).collect();
        let asked = async { (admin.info_all(own.clone()).await, admin.cluster_info_all(own.clone()).await) };
        let (answers, views) = tokio::select! {
            answers = asked => answers,
            () = cancel.cancelled() => return,
        };
        for (addr, info) in views.into_iter().filter_map(|(addr, view)| Some((addr, view.ok()?))) {
            for (name, figure, _) in CLUSTER_GAUGES {
                gauge!(*name, "instance_addr" => addr.to_string()).set(figure(&info));
            }
        }
        standing::set(host, plan, answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()));
        for (addr, answer) in answers {
            gauge!(UP, "instance_addr" => addr.to_string()).set(if answer.is_ok() { 1.0 } else { 0.0 });
            if let Ok(info) = answer {
                set(addr, &info);
            }
        }
    }
}

fn set(addr: SocketAddr, info: &InfoMap) {
    let label = || ("instance_addr", addr.to_string());
    for (name, field, _) in GAUGES {
        if let Some(value) = info.f64(field) {
            gauge!(*name, &[label()]).set(value);
        }
    }
    for (name, field, _) in COUNTERS {
        if let Some(value) = info.u64(field) {
            counter!(*name, &[label()]).absolute(value);
        }
    }
    for (name, field) in [(CPU_SYS, "used_cpu_sys"), (CPU_USER, "used_cpu_user")] {
        if let Some(value) = info.f64(field) {
            gauge!(name, &[label()]).set(value);
        }
    }
    let said = INFO_LABELS.iter().map(|&field| (field, info.get(field).unwrap_or_default().to_owned()));
    let labels: Vec<_> = said.chain([label()]).collect();
    gauge!(INFO, &labels).set(1.0);
    if let Some(uptime) = info.u64("uptime_in_seconds") {
        gauge!(START, &[label()]).set((now_unix_ms() / 1000).saturating_sub(uptime) as f64);
    }
    gauge!(DB_KEYS, &[label(), ("db", "db0".to_owned())]).set(info.keys() as f64);
    for (field, _) in info.iter() {
        if let Some(command) = field.strip_prefix("cmdstat_") {
            counter!(CALLS, &[label(), ("cmd", command.to_owned())]).absolute(info.calls(command));
        }
    }
}
