//! How the shares of a run stand: which are spent, who takes over a lost host's rest, and
//! how the run has ended. Pure; [`super::steps`] asks.

use std::collections::BTreeMap;
use std::time::Duration;

use redmesh_api::ids::HostId;
use redmesh_api::level::ClusterPlan;
use redmesh_api::limits::SHARES_MAX;
use redmesh_api::run::{BEGIN_AHEAD_MAX, Counts, Job, Outcome, Run, RunStage, RunUntil, Share, Tally};

use super::account;
use super::steps::{Seen, Step};
use crate::stats;

/// How long a host may be dead in mid-run before others take over the rest of its share.
pub const TAKEOVER_AFTER: Duration = Duration::from_secs(15);

/// How long a host may be dead before a run is closed without its share.
pub const SHARE_LOST_AFTER: Duration = Duration::from_secs(60);

/// How a share stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ShareState {
    Open,
    Spent,
    Lost(String),
}

/// A run that isn't done, and what is seen of it.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// The run.
    pub run: &'a Run,
    /// The hosts.
    pub seen: &'a BTreeMap<HostId, Seen>,
    /// Its counts.
    pub tallies: &'a [Tally],
    /// The coordinator's clock.
    pub now_unix_ms: u64,
}

impl<'a> Look<'a> {
    fn shares(self) -> impl Iterator<Item = (u16, &'a Share)> {
        (0..).zip(&self.run.shares)
    }

    fn tallies_of(self, index: u16) -> impl Iterator<Item = &'a Tally> {
        self.tallies.iter().filter(move |tally| tally.share == index)
    }

    fn counts(self, index: u16) -> Counts {
        stats::total(self.tallies_of(index))
    }

    fn name(self, host: HostId) -> String {
        self.seen.get(&host).map_or_else(|| host.to_string(), |seen| seen.name.clone())
    }

    /// How the run has ended, if it has.
    pub fn outcome(self) -> Option<Outcome> {
        let mut lost = Vec::new();
        for (index, share) in self.shares() {
            match self.state(index, share) {
                ShareState::Open => return None,
                ShareState::Spent => {}
                ShareState::Lost(reason) => lost.push(reason),
            }
        }
        Some(match (lost.is_empty(), self.run.stage) {
            (false, _) => Outcome::Incomplete(lost.join("; ")),
            (true, RunStage::Stopping) => Outcome::Stopped,
            (true, _) => Outcome::Completed,
        })
    }

    /// Whether every life of a share has closed its account, or can't any more.
    fn all_closed(self, index: u16) -> bool {
        let over = |tally: &Tally| tally.closed || self.is_lost(index, tally);
        self.tallies_of(index).count() > 0 && self.tallies_of(index).all(over)
    }

    /// Whether the account of a life is lost: a host tells of all its lives on a share at once,
    /// so what a later one leaves open it knows nothing of.
    fn is_lost(self, index: u16, tally: &Tally) -> bool {
        let later = |other: &Tally| other.host == tally.host && other.epoch > tally.epoch;
        !tally.closed && self.tallies_of(index).any(later)
    }

    /// Whether nothing more is to be issued for a share.
    fn issued_all(self, index: u16, share: &Share) -> bool {
        match (self.run.stage, &self.run.spec.job, self.run.spec.until) {
            // Others do, or nobody does.
            _ if share.given_up => true,
            (RunStage::Stopping, _, _) | (_, Job::ReadBack(_), _) => true,
            (_, Job::Load(_), RunUntil::Writes(_)) => self.counts(index).issued >= share.writes.unwrap_or(0),
            (_, Job::Load(_), RunUntil::Seconds(seconds)) => {
                self.now_unix_ms >= self.end_unix_ms(seconds) || self.begins_too_far_ahead()
            }
        }
    }

    fn end_unix_ms(self, seconds: u32) -> u64 {
        self.run.starts_unix_ms.saturating_add(u64::from(seconds) * 1000)
    }

    fn begins_too_far_ahead(self) -> bool {
        let ahead_ms = self.run.starts_unix_ms.saturating_sub(self.now_unix_ms);
        Duration::from_millis(ahead_ms) > BEGIN_AHEAD_MAX
    }

    fn state(self, index: u16, share: &Share) -> ShareState {
        if self.all_closed(index) && self.issued_all(index, share) {
            return match self.tallies_of(index).find(|tally| self.is_lost(index, tally)) {
                None => ShareState::Spent,
                Some(tally) => ShareState::Lost(format!(
                    "{} was restarted without its account of the run; its last gossiped counts are taken",
                    self.name(tally.host)
                )),
            };
        }
        let Some(host) = self.seen.get(&share.host) else {
            return ShareState::Lost(format!("host {} is gone from the mesh", share.host));
        };
        if let Some(lost) = &host.observed.share_lost
            && lost.has(self.run.id, index)
        {
            return ShareState::Lost(format!("{} can't bear its share: {}", host.name, lost.reason));
        }
        // Others have the rest of a share that was given up: nothing is gained by waiting
        // for its host any longer.
        let patience = if share.given_up { TAKEOVER_AFTER } else { SHARE_LOST_AFTER };
        if host.dead_for < patience {
            return ShareState::Open;
        }
        ShareState::Lost(match share.given_up {
            true => self.lost_in_mid_run(index, share),
            false => format!(
                "{} has been silent for {} s; its last gossiped counts are taken",
                host.name,
                host.dead_for.as_secs()
            ),
        })
    }

    /// What can't be said of a run whose lost host never came back.
    fn lost_in_mid_run(self, index: u16, share: &Share) -> String {
        let takers: Vec<_> = self.shares().filter(|(_, taker)| taker.rest_of == Some(index)).collect();
        let mut names: Vec<_> = takers.iter().map(|(_, taker)| self.name(taker.host)).collect();
        names.dedup();
        let taken: u64 = takers.iter().filter_map(|(_, taker)| taker.writes).sum();
        let counts = self.counts(index);
        let accounted = counts.acked + counts.failed + counts.unknown;
        let (what, at_most) = match share.writes {
            Some(writes) => {
                let open = writes.saturating_sub(accounted);
                (format!("{taken} writes of its share"), format!(" (at most {open} writes)"))
            }
            None => ("its share for the rest of the time".to_owned(), String::new()),
        };
        format!(
            "{} was lost in the run: {} took over {what}; what it did after its last word{at_most} is not known",
            self.name(share.host),
            names.join(", ")
        )
    }

    /// The takeover that is due, if one is. One at a time: the next is decided upon with
    /// the shares that this one adds.
    pub fn takeover(self, plan: Option<&ClusterPlan>) -> Option<Step> {
        // A host reads back what it wrote itself; nobody else knows its keys.
        if self.run.stage != RunStage::Running || matches!(self.run.spec.job, Job::ReadBack(_)) {
            return None;
        }
        let known = u16::try_from(self.run.shares.len()).ok()?;
        self.shares().find_map(|(given_up, share)| {
            let dead = self.seen.get(&share.host).is_none_or(|host| host.dead_for > TAKEOVER_AFTER);
            if share.given_up || !dead || self.state(given_up, share) == ShareState::Spent {
                return None;
            }
            let shares = self.rest(given_up, share, &self.takers(share.host, plan))?;
            let fits = self.run.shares.len() + shares.len() <= SHARES_MAX;
            (fits && !shares.is_empty()).then_some(Step::TakeOver {
                run: self.run.id,
                known,
                given_up,
                shares,
            })
        })
    }

    /// Who may take over: the run's other hosts, or else any host of the plan, that are
    /// alive and can bear shares.
    fn takers(self, lost: HostId, plan: Option<&ClusterPlan>) -> Vec<HostId> {
        let able = |id: &HostId| {
            *id != lost
                && self.seen.get(id).is_some_and(|host| {
                    let stuck = host.observed.share_lost.as_ref().is_some_and(|lost| lost.run == self.run.id);
                    host.dead_for.is_zero() && !stuck
                })
        };
        let mut takers: Vec<HostId> = Vec::new();
        for share in self.run.shares.iter().filter(|share| able(&share.host)) {
            if !takers.contains(&share.host) {
                takers.push(share.host);
            }
        }
        if takers.is_empty() {
            let hosts = plan.into_iter().flat_map(|plan| &plan.hosts);
            takers.extend(hosts.map(|host| host.id).filter(able));
        }
        takers
    }

    /// What `lost` has left, split over `takers`; `None` if nothing is.
    fn rest(self, index: u16, lost: &Share, takers: &[HostId]) -> Option<Vec<Share>> {
        let writes = match self.run.spec.until {
            RunUntil::Writes(_) => {
                let left = lost.writes.unwrap_or(0).saturating_sub(self.counts(index).issued);
                Some(left).filter(|left| *left > 0).map(Some)?
            }
            RunUntil::Seconds(seconds) if self.now_unix_ms < self.end_unix_ms(seconds) => None,
            RunUntil::Seconds(_) => return None,
        };
        let split = account::shares(takers, lost.workers, writes);
        let shares = split.into_iter().filter(|share| share.writes != Some(0));
        let first_worker = |share: &Share| share.first_worker + lost.first_worker;
        Some(
            shares
                .map(|share| Share { first_worker: first_worker(&share), rest_of: Some(index), ..share })
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests;
