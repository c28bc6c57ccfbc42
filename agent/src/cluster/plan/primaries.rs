//! Which member of each shard is the primary, so that every host bears its part.
//!
//! A host of s of the T instances is due S·s/T of the S primaries, for its number of
//! instances is what says how much it can bear, and primaries do the writing. It gets
//! that rounded down or up; of equal hosts none then has two more than another. There
//! always is such a choice where no two members of a shard share a host, shards have at
//! least c members, and fewer than c instances are left over by S·c: n shards that lie
//! within a set of hosts need n·c of its places, and a set of hosts touches at least
//! (places - left over)/c shards, so neither the upper nor the lower bounds can be
//! in the way (Hall's condition), and then a flow that keeps both exists (Hoffman).

use std::collections::{HashMap, VecDeque};

use super::placement::Ground;

/// Puts each shard's primary first.
pub fn choose(shards: &mut [Vec<usize>], ground: &Ground) {
    let (count, total) = (shards.len(), ground.host_of.len());
    let floor: Vec<usize> = ground.sizes.iter().map(|size| count * size / total).collect();
    let ceil: Vec<usize> = ground.sizes.iter().map(|size| (count * size).div_ceil(total)).collect();

    // Where two hosts share shards, first the one leads and then the other: what a lost
    // host leaves then goes to all that it shares shards with.
    let mut loads = vec![0; ground.sizes.len()];
    let mut led: HashMap<(usize, usize), i64> = HashMap::new();
    for shard in shards.iter_mut() {
        let hosts: Vec<usize> = shard.iter().map(|&place| ground.host_of[place]).collect();
        let led_by = |leader, other| led.get(&(leader, other)).copied().unwrap_or(0);
        let ahead =
            |host: usize| hosts.iter().map(|&other| led_by(host, other) - led_by(other, host)).sum::<i64>();
        let fuller = |&a: &usize, &b: &usize| {
            let (a, b) = (hosts[a], hosts[b]);
            let load = ((loads[a] + 1) * ground.sizes[b]).cmp(&((loads[b] + 1) * ground.sizes[a]));
            ahead(a).cmp(&ahead(b)).then(load)
        };
        let leader = (0..hosts.len()).min_by(fuller).unwrap_or(0);
        shard.swap(0, leader);
        loads[hosts[leader]] += 1;
        hosts.iter().for_each(|&other| *led.entry((hosts[leader], other)).or_default() += 1);
    }
    // Each chain takes one primary from a host that has too many, then brings one to a
    // host that has too few: at most one per primary.
    while let Some(chain) =
        chain(shards, ground, |host| loads[host] > ceil[host], |host| loads[host] < ceil[host])
    {
        follow(&chain, shards, ground, &mut loads);
    }
    while let Some(chain) =
        chain(shards, ground, |host| loads[host] > floor[host], |host| loads[host] < floor[host])
    {
        follow(&chain, shards, ground, &mut loads);
    }
}

/// The primary of `shard` hands its role to `member`.
#[derive(Debug, Clone, Copy)]
struct Handover {
    shard: usize,
    member: usize,
}

fn follow(chain: &[Handover], shards: &mut [Vec<usize>], ground: &Ground, loads: &mut [usize]) {
    for &Handover { shard, member } in chain {
        loads[ground.host_of[shards[shard][0]]] -= 1;
        shards[shard].swap(0, member);
        loads[ground.host_of[shards[shard][0]]] += 1;
    }
}

/// Handovers that take one primary from a host of `from` to one of `to`, all others
/// keeping as many as they have; the shortest, found breadth first.
fn chain(
    shards: &[Vec<usize>],
    ground: &Ground,
    from: impl Fn(usize) -> bool,
    to: impl Fn(usize) -> bool,
) -> Option<Vec<Handover>> {
    let hosts = ground.sizes.len();
    let mut led_by: Vec<Vec<usize>> = vec![Vec::new(); hosts];
    for (number, shard) in shards.iter().enumerate() {
        led_by[ground.host_of[shard[0]]].push(number);
    }
    let mut queue: VecDeque<usize> = (0..hosts).filter(|&host| from(host)).collect();
    let mut seen = vec![false; hosts];
    queue.iter().for_each(|&host| seen[host] = true);
    let mut came_by: Vec<Option<Handover>> = vec![None; hosts];
    while let Some(host) = queue.pop_front() {
        for &shard in &led_by[host] {
            for (member, &place) in shards[shard].iter().enumerate().skip(1) {
                let next = ground.host_of[place];
                if std::mem::replace(&mut seen[next], true) {
                    continue;
                }
                came_by[next] = Some(Handover { shard, member });
                if !to(next) {
                    queue.push_back(next);
                    continue;
                }
                let (mut chain, mut at) = (Vec::new(), next);
                while let Some(step) = came_by[at] {
                    chain.push(step);
                    at = ground.host_of[shards[step.shard][0]];
                }
                return Some(chain);
            }
        }
    }
    None
}
