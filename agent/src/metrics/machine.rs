//! Gauges of what ends by itself on this machine: the certificate's time, the disks' room.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use tokio_util::sync::CancellationToken;

use crate::enrol::RenewalCounts;
use crate::transport::quic::QuicTransport;

/// Between two updates: well within what a gauge may stand still before it is withdrawn.
const UPDATE_INTERVAL: Duration = Duration::from_secs(10);

const CERTIFICATE_UNTIL: &str = "redmesh_certificate_expiry_timestamp_seconds";
const DISK_FREE: &str = "redmesh_disk_free_bytes";
const DISK_SIZE: &str = "redmesh_disk_size_bytes";

const RENEWED: &str = "redmesh_certificate_renewals_total";
const RENEWALS_FAILED: &str = "redmesh_certificate_renewals_failed_total";
const RENEWED_FOR_OTHERS: &str = "redmesh_certificates_renewed_for_hosts_total";

pub(super) fn describe() {
    describe_counter!(RENEWED, Unit::Count, "Times that this host has renewed its certificate by itself");
    describe_counter!(
        RENEWALS_FAILED,
        Unit::Count,
        "Tries of this host to renew its certificate that failed"
    );
    describe_counter!(
        RENEWED_FOR_OTHERS,
        Unit::Count,
        "Certificates that this host's signer has made for hosts that renew theirs"
    );
    describe_gauge!(CERTIFICATE_UNTIL, Unit::Seconds, "When the agent's certificate expires, Unix time");
    describe_gauge!(DISK_FREE, Unit::Bytes, "Bytes that may still be written below a directory, by its key");
    describe_gauge!(DISK_SIZE, Unit::Bytes, "Size of the file system below a directory, by its key");
}

/// Keeps the gauges current until cancelled; `dirs` are directories by the configuration's
/// keys.
pub async fn update(
    transport: Arc<QuicTransport>,
    dirs: Vec<(&'static str, PathBuf)>,
    renewals: RenewalCounts,
    cancel: CancellationToken,
) {
    let mut ticks = tokio::time::interval(UPDATE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = cancel.cancelled() => return,
        }
        if let Some(until) = transport.certificate_valid_until_unix_s() {
            gauge!(CERTIFICATE_UNTIL).set(until as f64);
        }
        for (name, count) in [
            (RENEWED, &renewals.renewed),
            (RENEWALS_FAILED, &renewals.failed),
            (RENEWED_FOR_OTHERS, &renewals.signed),
        ] {
            counter!(name).absolute(count.load(Ordering::Relaxed));
        }
        for (key, dir) in &dirs {
            let Ok(disk) = rustix::fs::statvfs(dir) else { continue };
            gauge!(DISK_FREE, "dir" => *key).set(disk.f_bavail as f64 * disk.f_frsize as f64);
            gauge!(DISK_SIZE, "dir" => *key).set(disk.f_blocks as f64 * disk.f_frsize as f64);
        }
    }
}
