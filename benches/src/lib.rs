//! Benchmarks of redmesh. Criterion's are in `benches/`: `cargo bench -p redmesh-benches`.
//! The comparisons with other tools are programs, `src/bin/bench-load` (`make bench-load`)
//! and `src/bin/bench-formation` (`make bench-formation`); this library is what they share.

pub mod ask;
pub mod children;
pub mod figures;
pub mod machine;
