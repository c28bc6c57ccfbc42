//! Benchmarks of redmesh. Everything is in `benches/`; this library only gives them a
//! package. Run them with `cargo bench -p redmesh-benches`.
