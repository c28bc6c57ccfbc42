//! Splits a share among threads, exactly: workers as evenly as possible, writes in
//! proportion to workers, and both sums are what was to be split.

/// One thread's part of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Index of its first worker within the share.
    pub first_worker: u32,
    /// Its workers, at least 1 unless the share has none.
    pub workers: u32,
    /// Its writes.
    pub writes: u64,
}

/// Splits over at most `threads` threads; no thread is left without a worker, so there
/// may be fewer (but always one).
pub fn split(workers: u32, writes: u64, threads: usize) -> Vec<Part> {
    let parts = u32::try_from(threads).unwrap_or(u32::MAX).clamp(1, workers.max(1));
    // Bounds of part i, so that neighbours share them and nothing is lost to rounding.
    let worker_bound = |i: u32| (u64::from(workers) * u64::from(i) / u64::from(parts)) as u32;
    let write_bound = |i: u32| match worker_bound(i) {
        _ if workers == 0 => u128::from(i) * u128::from(writes) / u128::from(parts),
        bound => u128::from(writes) * u128::from(bound) / u128::from(workers),
    };
    (0..parts)
        .map(|i| Part {
            first_worker: worker_bound(i),
            workers: worker_bound(i + 1) - worker_bound(i),
            writes: (write_bound(i + 1) - write_bound(i)) as u64,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_add_up_and_are_even(workers in 0u32..5000, writes: u64, threads in 0usize..40) {
            let parts = split(workers, writes, threads);
            prop_assert!(!parts.is_empty() && parts.len() <= threads.max(1));
            prop_assert_eq!(parts.iter().map(|p| p.workers).sum::<u32>(), workers);
            prop_assert_eq!(parts.iter().map(|p| u128::from(p.writes)).sum::<u128>(), u128::from(writes));
            let mut next = 0;
            for part in &parts {
                prop_assert_eq!(part.first_worker, next);
                next += part.workers;
                prop_assert!(part.workers > 0 || workers == 0);
            }
            let (min, max) = (parts.iter().map(|p| p.workers).min(), parts.iter().map(|p| p.workers).max());
            prop_assert!(max.unwrap_or(0) - min.unwrap_or(0) <= 1);
        }
    }
}
