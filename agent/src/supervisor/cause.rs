//! Why a server ended, as far as the machine tells: out of memory, a full disk, or neither.
//!
//! The kernel counts the processes that it has killed for want of memory; it does not say
//! to whoever watches by a pidfd which these were. So a server that ended by SIGKILL while
//! that count rose *probably* was one, and that is what is said.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far back a rise of the count is taken for the end that is being explained, at least.
const WINDOW: Duration = Duration::from_secs(10);

/// With less room than this, bytes, a server can't even write its nodes.conf.
const ROOM_MIN: u64 = 1024 * 1024;

/// The kernel's count, as it was lately.
#[derive(Debug, Default)]
pub(super) struct OomKills {
    window: Mutex<Window>,
}

/// Two looks, the older one at least [`WINDOW`] before the end that it explains.
#[derive(Debug, Default, Clone, Copy)]
struct Window {
    older: Option<u64>,
    newer: Option<(Instant, u64)>,
}

impl Window {
    /// Takes a look at the count; how many are new since the older look.
    fn look(&mut self, count: u64, now: Instant) -> u64 {
        let older = *self.older.get_or_insert(count);
        match self.newer {
            Some((at, newer)) if now.saturating_duration_since(at) >= WINDOW => {
                self.older = Some(newer);
                self.newer = Some((now, count));
            }
            None => self.newer = Some((now, count)),
            Some(_) => {}
        }
        count.saturating_sub(older)
    }
}

impl OomKills {
    /// Looks at the count; how many processes were killed lately. None where the kernel
    /// doesn't tell.
    pub(super) fn lately(&self) -> u64 {
        let count = std::fs::read_to_string("/proc/vmstat").ok().and_then(|text| parse(&text));
        let Some(count) = count else { return 0 };
        // Two numbers: nothing half changed is left behind by a panic.
        self.window.lock().unwrap_or_else(PoisonError::into_inner).look(count, Instant::now())
    }
}

fn parse(vmstat: &str) -> Option<u64> {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// `status` with what the machine adds to it, and the remedy.
pub(super) fn explain(status: String, oom_kills: u64, free: Option<u64>) -> String {
    // Of one that isn't the agent's child the signal is not known.
    let may_be_killed = status == "signal 9" || !(status.starts_with("exit") || status.starts_with("signal"));
    match free {
        _ if may_be_killed && oom_kills > 0 => format!(
            "{status}, while the kernel killed {oom_kills} for want of memory: probably this one; lower \
             maxmemory in redis.directives or the number of instances, or give the host more memory"
        ),
        Some(free) if free < ROOM_MIN => {
            format!("{status}, with {free} bytes free on its disk: free some there, or it will end again")
        }
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rise_of_the_count_explains_what_ends_soon_after_and_nothing_later() {
        let (mut window, began) = (Window::default(), Instant::now());
        let at = |s| began + Duration::from_secs(s);
        assert_eq!(window.look(5, at(0)), 0, "what was before counts for nothing");
        assert_eq!(window.look(6, at(3)), 1);
        assert_eq!(window.look(6, at(9)), 1);
        assert_eq!(window.look(6, at(12)), 1);
        assert_eq!(window.look(6, at(23)), 1, "the older look is the one of the beginning still");
        assert_eq!(window.look(6, at(34)), 0);
    }

    #[test]
    fn only_what_may_have_been_killed_was_out_of_memory() {
        let of = |status: &str, kills, free| explain(status.to_owned(), kills, free);
        assert!(of("signal 9", 1, Some(0)).contains("probably this one"));
        assert!(of("a status known only to its parent", 2, None).contains("killed 2 for want of memory"));
        assert_eq!(of("signal 9", 0, Some(u64::MAX)), "signal 9");
        assert_eq!(of("signal 11", 1, None), "signal 11");
        assert!(of("exit status 1", 1, Some(4096)).starts_with("exit status 1, with 4096 bytes free"));
    }

    #[test]
    fn reads_the_kernels_count() {
        assert_eq!(parse("nr_free_pages 7\noom_kill 36\nnuma_hit 1\n"), Some(36));
        assert_eq!(parse("oom_kill_disable 0\n"), None);
        let real = std::fs::read_to_string("/proc/vmstat").expect("this is Linux");
        assert!(parse(&real).is_some());
    }
}
