//! What was counted and how long it took: recorders of the load threads, their summary
//! rates, and the mesh-wide sum of tallies.
//!
//! Everything here is either pure or a lock held for microseconds; nothing opens a
//! socket. Percentiles are never averaged: histograms are added, then asked.

pub mod aggregate;
pub mod rates;
pub mod recorder;
pub mod summary;

pub use aggregate::{Life, merge, total};
pub use rates::RateWindow;
pub use recorder::{Recorder, RecorderView};
pub use redmesh_api::histogram::{HistogramError, decode, empty_histogram, encode};
pub use summary::summary;
