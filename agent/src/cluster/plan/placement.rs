//! Which instances make a shard, and which of them is the primary.
//!
//! Instances are *places*, numbered host by host. Hosts that must not bear two copies of
//! one shard make a *domain*: each host one of its own, or all hosts of one address one.
//!
//! A shard of c copies takes a place in c domains. Of S shards a domain of s places can
//! serve at most min(s, S), so S shards are possible exactly if the sum of min(s, S) over
//! all domains is at least c·S. That is enough as well: laid around a circle of S shards
//! one domain after the other, a domain meets no shard twice ([McNaughton's wrap-around
//! rule](https://doi.org/10.1287/mnsc.6.1.1)), and every shard gets its c copies or more.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use rand::Rng;
use rand::seq::SliceRandom;

use super::primaries;

/// Exchanges that are tried per place, to mix which hosts share shards and then to even
/// that out: about as many as it takes until more change nothing (a few log of the size).
const EXCHANGES_PER_PLACE: usize = 16;

/// The hosts on which shards are placed.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Places of each host.
    pub sizes: Vec<usize>,
    /// The host of each place.
    pub host_of: Vec<usize>,
    /// The domain of each host.
    domain_of: Vec<usize>,
}

impl Ground {
    /// Hosts of these sizes and addresses, for `shards`.
    ///
    /// Hosts of one address are most likely one machine: they make one domain, unless
    /// that leaves too few to keep copies apart.
    pub fn new(sizes: Vec<usize>, addresses: &[IpAddr], shards: usize) -> Self {
        let host_of = sizes.iter().enumerate().flat_map(|(host, &size)| vec![host; size]).collect();
        let mut by_address: BTreeMap<IpAddr, (usize, usize)> = BTreeMap::new();
        let mut domain_of = Vec::new();
        for (&address, size) in addresses.iter().zip(&sizes) {
            let next = by_address.len();
            let (domain, total) = by_address.entry(address).or_insert((next, 0));
            *total += size;
            domain_of.push(*domain);
        }
        if by_address.values().any(|&(_, total)| total > shards) {
            domain_of = (0..sizes.len()).collect();
        }
        Self { sizes, host_of, domain_of }
    }

    fn domain(&self, place: usize) -> usize {
        self.domain_of[self.host_of[place]]
    }
}

/// The most shards of `copies` that hosts of these sizes allow, no two copies on one host.
pub fn shards_that_fit(sizes: &[usize], copies: usize) -> usize {
    let fit = |shards: usize| sizes.iter().map(|&size| size.min(shards)).sum::<usize>() >= copies * shards;
    // What is left over, sum min(s, S) - c·S, is concave in S and 0 at S = 0: all numbers
    // up to the most are possible.
    let (mut most, mut too_many) = (0, sizes.iter().sum::<usize>() / copies + 1);
    while most + 1 < too_many {
        let middle = most.midpoint(too_many);
        if fit(middle) {
            most = middle;
        } else {
            too_many = middle;
        }
    }
    most
}

/// Places everything into `count` shards, the primary first; neighbours in the list have
/// their primaries on different hosts as far as may be.
pub fn place(ground: &Ground, count: usize, rng: &mut impl Rng) -> Vec<Vec<usize>> {
    let mut shards = wrap_around(ground, count, rng);
    // Without replicas there is nothing to choose.
    if ground.host_of.len() > count {
        mix(&mut shards, ground, rng);
        primaries::choose(&mut shards, ground);
        spread_replicas(&mut shards, ground, rng);
    }
    in_rows(shards, ground)
}

fn wrap_around(ground: &Ground, count: usize, rng: &mut impl Rng) -> Vec<Vec<usize>> {
    let mut by_domain: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for place in 0..ground.host_of.len() {
        by_domain.entry(ground.domain(place)).or_default().push(place);
    }
    let mut domains: Vec<Vec<usize>> = by_domain.into_values().collect();
    domains.shuffle(rng);
    let mut shards = vec![Vec::new(); count];
    for (at, place) in domains.into_iter().flatten().enumerate() {
        shards[at % count].push(place);
    }
    shards
}

/// A member of a shard.
#[derive(Debug, Clone, Copy)]
struct Seat {
    shard: usize,
    member: usize,
}

/// A random member at `from` or behind it.
fn random_seat(shards: &[Vec<usize>], from: usize, rng: &mut impl Rng) -> Seat {
    let shard = rng.random_range(0..shards.len());
    Seat { shard, member: rng.random_range(from..shards[shard].len()) }
}

/// Whether two members may change places without meeting their own domain.
fn may_exchange(shards: &[Vec<usize>], ground: &Ground, a: Seat, b: Seat) -> bool {
    let domain = |seat: Seat| ground.domain(shards[seat.shard][seat.member]);
    let meets =
        |at: Seat, domain: usize| shards[at.shard].iter().any(|&place| ground.domain(place) == domain);
    a.shard != b.shard && !meets(a, domain(b)) && !meets(b, domain(a))
}

fn exchange(shards: &mut [Vec<usize>], a: Seat, b: Seat) {
    let place = shards[a.shard][a.member];
    shards[a.shard][a.member] = shards[b.shard][b.member];
    shards[b.shard][b.member] = place;
}

/// Random exchanges: the circle alone would let each host share shards with its
/// neighbours only.
fn mix(shards: &mut [Vec<usize>], ground: &Ground, rng: &mut impl Rng) {
    for _ in 0..ground.host_of.len() * EXCHANGES_PER_PLACE {
        let (a, b) = (random_seat(shards, 0, rng), random_seat(shards, 0, rng));
        if may_exchange(shards, ground, a, b) {
            exchange(shards, a, b);
        }
    }
}

/// Exchanges replicas while that makes it more even how many replicas of one host's
/// primaries each other host bears: what a lost host leaves is then taken over by all.
/// Primaries stay where they are.
fn spread_replicas(shards: &mut [Vec<usize>], ground: &Ground, rng: &mut impl Rng) {
    // How many replicas of the first host's primaries the second bears. The sum of the
    // squares is what gets smaller.
    let mut shared: HashMap<(usize, usize), i64> = HashMap::new();
    for shard in shards.iter() {
        for &place in &shard[1..] {
            *shared.entry((ground.host_of[shard[0]], ground.host_of[place])).or_default() += 1;
        }
    }
    for _ in 0..ground.host_of.len() * EXCHANGES_PER_PLACE {
        let (a, b) = (random_seat(shards, 1, rng), random_seat(shards, 1, rng));
        if !may_exchange(shards, ground, a, b) {
            continue;
        }
        let ends = |seat: Seat| {
            (ground.host_of[shards[seat.shard][0]], ground.host_of[shards[seat.shard][seat.member]])
        };
        let ((primary_a, replica_a), (primary_b, replica_b)) = (ends(a), ends(b));
        if primary_a == primary_b || replica_a == replica_b {
            continue;
        }
        let of = |pair| shared.get(&pair).copied().unwrap_or(0);
        let gained = of((primary_a, replica_b)) + of((primary_b, replica_a)) + 2;
        let lost = of((primary_a, replica_a)) + of((primary_b, replica_b));
        // Exchanges that change nothing are made too: they lead out of dead ends.
        if gained <= lost {
            exchange(shards, a, b);
            for (pair, by) in [
                ((primary_a, replica_a), -1),
                ((primary_b, replica_b), -1),
                ((primary_a, replica_b), 1),
                ((primary_b, replica_a), 1),
            ] {
                *shared.entry(pair).or_default() += by;
            }
        }
    }
}

/// Each host's first primary, then each one's second, and so on.
fn in_rows(mut shards: Vec<Vec<usize>>, ground: &Ground) -> Vec<Vec<usize>> {
    shards.sort_unstable_by_key(|shard| shard[0]);
    let mut rows = vec![0usize; ground.sizes.len()];
    let mut keyed: Vec<_> = shards
        .into_iter()
        .map(|shard| {
            let host = ground.host_of[shard[0]];
            rows[host] += 1;
            ((rows[host], host), shard)
        })
        .collect();
    keyed.sort_unstable_by_key(|&(key, _)| key);
    keyed.into_iter().map(|(_, shard)| shard).collect()
}
