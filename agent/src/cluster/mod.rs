//! The Redis Cluster as data: its layout, its files, and what its instances say.
//!
//! Everything but [`admin`] and [`mod@line`] is pure: plans take their randomness as an argument,
//! renderers return text, parsers take text of any origin and return errors, never
//! panics. Nothing here starts, stops or signals a process; that is the supervisor's,
//! and neither imports the other.

pub mod admin;
pub mod bus;
pub mod formation;
pub mod info;
pub mod line;
pub mod nodes_conf;
pub mod plan;
pub mod redis_conf;
pub mod slots;
pub mod survey;
pub mod topology;
pub mod version;

pub use admin::{AdminError, AdminOptions, AdminPool, Target};
pub use info::InfoMap;
pub use line::{Connections, Line};
pub use nodes_conf::{NodesConfError, render_nodes_conf};
pub use plan::{PlanError, PlanInput, instances, plan};
pub use redis_conf::{DirectiveError, RedisConf, clients_needed};
pub use topology::{ClusterInfo, Topology, TopologyError};
pub use version::{Flavour, NodesConfFormat, ServerVersion, VersionError};
