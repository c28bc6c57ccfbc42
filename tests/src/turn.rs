//! How many meshes a test program runs at a time.

use std::sync::{Condvar, Mutex, PoisonError};

/// Tests mostly wait, for elections and timeouts. More would keep two cores from answering in
/// time.
const AT_A_TIME: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// Held by a mesh as long as it runs.
#[derive(Debug)]
pub struct Turn(());

impl Turn {
    /// Waits until there is room for another mesh.
    pub fn take() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = ENDED
            .wait_while(running, |running| *running >= AT_A_TIME)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}
