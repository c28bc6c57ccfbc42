//! The harness of the end-to-end tests: whole meshes of real agents and redis-servers
//! on loopback addresses of their own, driven by the real `redmeshctl`.
//!
//! A mesh that goes out of scope ends every process that it started, also when its
//! test failed. Meshes of one test binary take turns: two at once would only measure
//! each other's starvation.

pub mod cgroup;
pub mod faults;
pub mod fuzz;
pub mod http;
pub mod mesh;
pub mod net;
pub mod process;
pub mod run;
pub mod sim;
pub mod tools;
pub mod tracer;
mod turn;
pub mod wait;

pub use mesh::{Mesh, MeshBuilder};
pub use process::ServerProcess;
pub use wait::until;
