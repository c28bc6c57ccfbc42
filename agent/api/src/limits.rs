//! Bounds that both ends of the wire must agree upon.

/// Largest frame payload that a control request may have, bytes.
pub const CONTROL_REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Largest frame payload of a hello between agents, bytes.
pub const HELLO_BYTES_MAX: usize = 4 * 1024;

/// Largest frame payload of a request to join and of its answer, bytes.
pub const JOIN_BYTES_MAX: usize = 16 * 1024;

/// Largest frame payload otherwise (levels, snapshots, replies), bytes: a plan of
/// 1000 instances is some 100 KB, a run's server samples some 100 KB each way.
pub const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Runs kept in the replicated state; the oldest closed ones make room.
pub const RUNS_KEPT_MAX: usize = 20;

/// Removed hosts that are remembered: each is refused for good.
pub const REMOVED_MAX: usize = 256;

/// Operators that are remembered as revoked: each for good.
pub const REVOKED_MAX: usize = 256;

/// Instances that one host may bear: data ports must stay below the bus ports.
pub const INSTANCES_PER_HOST_MAX: u16 = 1000;

/// Workers of one run over all hosts.
pub const WORKERS_MAX: u32 = 1_000_000;

/// Operations that one worker may have outstanding.
pub const PIPELINE_MAX: u16 = 1024;

/// Operations outstanding in one run over all hosts: workers by pipeline.
pub const OUTSTANDING_MAX: u64 = 1_000_000;

/// Load threads of one share.
pub const THREADS_PER_HOST_MAX: u16 = 256;

/// Shares of one run, those that were taken over or added included.
pub const SHARES_MAX: usize = 10_000;

/// Seconds of a formation's convergence that a plan keeps; later ones count into the last.
pub const CONVERGENCE_S_MAX: usize = 600;
