//! What the next operation is: its command, its key and the size of its values, drawn
//! by weights and distributions from the workload's seed. Nothing here allocates once
//! it is made.

use std::num::NonZeroU64;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};
use redmesh_api::workload::{Keys, Pick, VALUE_BYTES_MAX, ValueBytes, Verb, Workload};

use super::Op;

/// Exponents so near to 1 count as 1: the closed form for others divides by the
/// distance, and no pool is large enough to show the difference.
const EXPONENT_NEAR: f64 = 1e-9;

/// Draws a thread's operations.
#[derive(Debug)]
pub(super) struct Draw {
    rng: SmallRng,
    keys: KeyDraw,
    verbs: Weighted<Verb>,
    sizes: Sizes,
}

impl Draw {
    pub fn new(workload: &Workload, stream: u64) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(mixed(workload.seed).wrapping_add(stream)),
            keys: KeyDraw::new(workload.keys),
            // In the order of the verbs: how the mix is written down changes nothing.
            verbs: Weighted::new(
                Verb::ALL.into_iter().map(|verb| {
                    let of_verb = workload.mix.iter().filter(|(known, _)| *known == verb);
                    (verb, of_verb.map(|(_, weight)| u64::from(*weight)).sum())
                }),
                Verb::Set,
            ),
            sizes: Sizes::new(&workload.value),
        }
    }

    #[inline]
    pub fn next(&mut self, n: u64) -> Op {
        if let KeyDraw::Counter(wrap) = self.keys {
            let key = wrap.map_or(n, |wrap| n % wrap);
            return Op { verb: Verb::Set, key, bytes: self.sizes.draw(&mut self.rng) };
        }
        let verb = self.verbs.draw(&mut self.rng);
        let key = self.keys.draw(&mut self.rng);
        let bytes = match verb {
            Verb::Set | Verb::Hset | Verb::Mset => self.sizes.draw(&mut self.rng),
            Verb::Get | Verb::Hgetall | Verb::Expire | Verb::Mget => 0,
        };
        Op { verb, key, bytes }
    }
}

/// SplitMix64's finaliser, so that seeds 0, 1, 2, … and streams 0, 1, 2, … don't meet.
fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Debug)]
enum KeyDraw {
    Counter(Option<NonZeroU64>),
    Uniform { count: u64 },
    Zipf { zipf: Zipf<f64>, last: u64 },
}

impl KeyDraw {
    /// What [`Workload::check`] refuses is read as the nearest that can be drawn.
    fn new(keys: Keys) -> Self {
        match keys {
            Keys::Counter { wrap } => Self::Counter(wrap.and_then(NonZeroU64::new)),
            Keys::Pool { count, pick } => {
                let count = count.max(1);
                match pick {
                    Pick::Uniform => Self::Uniform { count },
                    Pick::Zipf { exponent } => {
                        let exponent = if (exponent - 1.0).abs() < EXPONENT_NEAR { 1.0 } else { exponent };
                        Zipf::new(count as f64, exponent)
                            .map_or(Self::Uniform { count }, |zipf| Self::Zipf { zipf, last: count - 1 })
                    }
                }
            }
        }
    }

    #[inline]
    fn draw(&self, rng: &mut SmallRng) -> u64 {
        match self {
            Self::Counter(_) => 0,
            Self::Uniform { count } => rng.random_range(0..*count),
            // Ranks begin at 1, and rounding can lead one past the last.
            Self::Zipf { zipf, last } => (zipf.sample(rng) as u64).saturating_sub(1).min(*last),
        }
    }
}

#[derive(Debug)]
enum Sizes {
    KeyTwice,
    Uniform { min: u32, max: u32 },
    Weighted(Weighted<u32>),
}

impl Sizes {
    fn new(value: &ValueBytes) -> Self {
        let bounded = |bytes: u32| bytes.clamp(1, VALUE_BYTES_MAX);
        match value {
            ValueBytes::KeyTwice => Self::KeyTwice,
            ValueBytes::Fixed(bytes) => Self::Uniform { min: bounded(*bytes), max: bounded(*bytes) },
            ValueBytes::Uniform { min, max } => {
                Self::Uniform { min: bounded(*min), max: bounded(*max).max(bounded(*min)) }
            }
            ValueBytes::Weighted(sizes) => Self::Weighted(Weighted::new(
                sizes.iter().map(|(bytes, weight)| (bounded(*bytes), u64::from(*weight))),
                1,
            )),
        }
    }

    #[inline]
    fn draw(&self, rng: &mut SmallRng) -> u32 {
        match self {
            Self::KeyTwice => 0,
            Self::Uniform { min, max } if min == max => *min,
            Self::Uniform { min, max } => rng.random_range(*min..=*max),
            Self::Weighted(sizes) => sizes.draw(rng),
        }
    }
}

/// One of several by their weights. Never empty.
#[derive(Debug)]
struct Weighted<T> {
    /// Each with the sum of the weights up to and with its own.
    sums: Box<[(u64, T)]>,
}

impl<T: Copy> Weighted<T> {
    /// `otherwise` if none has a weight.
    fn new(weights: impl Iterator<Item = (T, u64)>, otherwise: T) -> Self {
        let mut sum = 0;
        let mut sums: Vec<_> = weights
            .filter(|(_, weight)| *weight > 0)
            .map(|(it, weight)| {
                sum += weight;
                (sum, it)
            })
            .collect();
        if sums.is_empty() {
            sums.push((1, otherwise));
        }
        Self { sums: sums.into() }
    }

    #[inline]
    fn draw(&self, rng: &mut SmallRng) -> T {
        match &*self.sums {
            [(_, only)] => *only,
            sums => {
                let at = rng.random_range(0..sums[sums.len() - 1].0);
                sums[sums.partition_point(|(sum, _)| *sum <= at)].1
            }
        }
    }
}
