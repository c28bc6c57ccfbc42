//! What simulations print: figures always, the agents' own lines if asked for.

use std::fmt;
use std::io::Write;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Directives of `tracing`; with one seed only, or nobody can tell whose line is whose.
const VARIABLE: &str = "REDMESH_SIM_LOG";

/// Virtual time.
struct SimTime;

impl FormatTime for SimTime {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        match turmoil::sim_elapsed() {
            Some(now) => write!(w, "{:>8.3}", now.as_secs_f64()),
            None => write!(w, "       -"),
        }
    }
}

/// Logs to stderr what `VARIABLE` asks for.
pub fn start() {
    let Ok(filter) = EnvFilter::try_from_env(VARIABLE) else { return };
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_timer(SimTime);
    // Another test of this process may have been first.
    let _ = format.with_writer(std::io::stderr).try_init();
}

/// A line for whoever runs the tests.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
