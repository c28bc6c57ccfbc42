//! How tasks wait for the disk under the state directory: on a blocking thread, because
//! the runtime must not wait.
//!
//! What a host must not forget (its votes and log, its level, its accounts of runs) is
//! read and written through here, so that a simulation can bring a disk that is slow.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;

/// Says how long the next wait for the disk is.
type Latency = Arc<dyn Fn() -> Duration + Send + Sync>;

/// A host's disk. Cheap to clone.
#[derive(Clone, Default)]
pub struct Disk {
    latency: Option<Latency>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("latency", &self.latency.is_some()).finish()
    }
}

impl Disk {
    /// A disk that takes `latency` longer, asked before each access and after it: what is
    /// interrupted meanwhile has either not been written, or has been and nobody knows.
    pub fn slow(latency: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { latency: Some(Arc::new(latency)) }
    }

    /// Does `work`, which waits for the disk, on a blocking thread.
    ///
    /// # Errors
    /// `work` panicked, or the agent is stopping.
    pub async fn access<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        self.wait().await;
        let done = tokio::task::spawn_blocking(work).await;
        self.wait().await;
        done
    }

    async fn wait(&self) {
        let takes = self.latency.as_ref().map_or(Duration::ZERO, |latency| latency());
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
    }
}
