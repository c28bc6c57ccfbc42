//! Benchmarks of redmesh. Everything is in `benches/`; this library only gives them a
//! package. Run them with `cargo bench -p redmesh-benches`. The side-by-side comparison is
//! a program: `src/bin/bench-load`, run by `make bench-load`.
