//! What load workers do: which commands, on which keys, with which values.
//!
//! A workload is data. Keys and values can be told from each other: a value is its
//! key's text over and over until its size is reached, so whoever reads a key back
//! knows what must be there.

use serde::{Deserialize, Serialize};

/// The built-in workload of the article: unique keys `<uuid>-<n>`, value the key twice.
pub const UUID_COUNTER: &str = "uuid-counter";

/// Longest name of a workload, bytes.
pub const NAME_BYTES_MAX: usize = 32;

/// Largest value, bytes.
pub const VALUE_BYTES_MAX: u32 = 1024 * 1024;

/// Largest command or reply, bytes: what one operation may hold in a buffer.
pub const OPERATION_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Keys in a pool.
pub const POOL_KEYS_MAX: u64 = 1_000_000_000_000;

/// Fields of one hash, keys of one multi-key command.
pub const WIDTH_MAX: u16 = 1000;

/// Sizes in a weighted list.
pub const SIZES_MAX: usize = 64;

/// What workers do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// What it is called; begins the keys of a pool.
    pub name: String,
    /// What is drawn (commands, keys, sizes) follows from it.
    pub seed: u64,
    /// On which keys.
    pub keys: Keys,
    /// Size of the values.
    pub value: ValueBytes,
    /// Which commands, each with its weight; at least one weight is not 0.
    pub mix: Vec<(Verb, u32)>,
    /// Time to live that SET gives with the value and EXPIRE sets, seconds.
    pub ttl_s: Option<u32>,
    /// Fields of each hash that HSET writes.
    pub fields: u16,
    /// Keys of each MSET and MGET.
    pub keys_per_command: u16,
}

/// Which keys there are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    /// `<uuid>-<n>`: a worker's own UUID and its counter from 0. Never the same key
    /// twice, unless the counter wraps.
    Counter {
        /// The counter begins again at 0 after so many keys of one worker.
        wrap: Option<u64>,
    },
    /// `<name>:{<i>}` for i below `count`, shared by all workers; those of multi-key
    /// commands are `<name>:{<i>}:<j>`, so that all of one command lie in one slot.
    Pool {
        /// Number of keys (of groups of keys, for multi-key commands).
        count: u64,
        /// Which of them is next.
        pick: Pick,
    },
}

/// How a key of a pool is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// All alike.
    Uniform,
    /// Key i with a probability proportional to 1/(i+1)^exponent.
    Zipf {
        /// Greater than 0; 0.99 is what caches are tried with (YCSB).
        exponent: f64,
    },
}

/// Size of a value, bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueBytes {
    /// Twice the key's size.
    KeyTwice,
    /// Always the same.
    Fixed(u32),
    /// Any from `min` to `max`, all alike.
    Uniform {
        /// Smallest.
        min: u32,
        /// Largest.
        max: u32,
    },
    /// Sizes, each with its weight.
    Weighted(Vec<(u32, u32)>),
}

/// A command that workers issue. One command is one operation with one reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// `SET key value [EX ttl]`
    Set,
    /// `GET key`
    Get,
    /// `HSET key f0 value f1 value …`
    Hset,
    /// `HGETALL key`
    Hgetall,
    /// `EXPIRE key ttl`
    Expire,
    /// `MSET key value key value …`
    Mset,
    /// `MGET key key …`
    Mget,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Set, Self::Get, Self::Hset, Self::Hgetall, Self::Expire, Self::Mset, Self::Mget];

    /// As Redis names it in `INFO commandstats`, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Get => "get",
            Self::Hset => "hset",
            Self::Hgetall => "hgetall",
            Self::Expire => "expire",
            Self::Mset => "mset",
            Self::Mget => "mget",
        }
    }
}

/// Why a workload can't be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct WorkloadError {
    /// Which field, as workload files name it.
    pub field: &'static str,
    /// The value, what is wrong with it, and the remedy.
    pub problem: String,
}

fn wrong<T>(field: &'static str, problem: impl Into<String>) -> Result<T, WorkloadError> {
    Err(WorkloadError { field, problem: problem.into() })
}

impl Workload {
    /// The article's: each worker sets keys of its own, `<uuid>-<n>`, to the key twice.
    pub fn uuid_counter() -> Self {
        Self {
            name: UUID_COUNTER.to_owned(),
            seed: 0,
            keys: Keys::Counter { wrap: None },
            value: ValueBytes::KeyTwice,
            mix: vec![(Verb::Set, 1)],
            ttl_s: None,
            fields: 1,
            keys_per_command: 1,
        }
    }

    /// Whether no key is ever written twice and none goes by itself, so that the number
    /// of keys is the number of executed writes.
    pub fn counts_by_keys(&self) -> bool {
        matches!(self.keys, Keys::Counter { wrap: None }) && self.ttl_s.is_none()
    }

    /// Whether it can be carried out.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), WorkloadError> {
        let name_ok = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !(1..=NAME_BYTES_MAX).contains(&self.name.len()) || !self.name.bytes().all(name_ok) {
            return wrong(
                "name",
                format!("{:?} must be 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.'", self.name),
            );
        }
        self.check_keys()?;
        self.check_mix()?;
        self.check_value()?;
        if self.ttl_s == Some(0) {
            return wrong("ttl", "0 would expire at once: at least 1 (second), or leave it out");
        }
        for (field, width) in [("fields", self.fields), ("keys_per_command", self.keys_per_command)] {
            if !(1..=WIDTH_MAX).contains(&width) {
                return wrong(field, format!("{width} must be 1 to {WIDTH_MAX}"));
            }
        }
        let most = u64::from(self.value_bytes_max()) * u64::from(self.fields.max(self.keys_per_command));
        if most > OPERATION_BYTES_MAX {
            return wrong(
                "value.bytes",
                format!(
                    "{most} bytes in one command; at most {OPERATION_BYTES_MAX}: fewer fields or keys, or smaller values"
                ),
            );
        }
        Ok(())
    }

    /// Size of the largest value, bytes.
    pub fn value_bytes_max(&self) -> u32 {
        match &self.value {
            ValueBytes::KeyTwice => 2 * (NAME_BYTES_MAX as u32 + 48),
            ValueBytes::Fixed(bytes) => *bytes,
            ValueBytes::Uniform { max, .. } => *max,
            ValueBytes::Weighted(sizes) => sizes.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0),
        }
    }

    fn check_keys(&self) -> Result<(), WorkloadError> {
        match self.keys {
            Keys::Counter { wrap: Some(0) } => wrong("keys.wrap", "0 must be at least 1, or leave it out"),
            Keys::Pool { count, .. } if !(1..=POOL_KEYS_MAX).contains(&count) => {
                wrong("keys.count", format!("{count} must be 1 to {POOL_KEYS_MAX}"))
            }
            Keys::Pool { pick: Pick::Zipf { exponent }, .. } if !(exponent > 0.0 && exponent <= 10.0) => {
                wrong("keys.exponent", format!("{exponent} must be greater than 0 and at most 10"))
            }
            _ => Ok(()),
        }
    }

    fn check_mix(&self) -> Result<(), WorkloadError> {
        let has = |verb| self.mix.iter().any(|(known, weight)| *known == verb && *weight > 0);
        let any = |verbs: &[Verb]| verbs.iter().any(|verb| has(*verb));
        if !any(&Verb::ALL) {
            return wrong("mix", "no command has a weight above 0: give one, like set = 1");
        }
        for (at, (verb, _)) in self.mix.iter().enumerate() {
            if self.mix[..at].iter().any(|(known, _)| known == verb) {
                return wrong("mix", format!("{} stands there twice", verb.name()));
            }
        }
        let others = [Verb::Get, Verb::Hset, Verb::Hgetall, Verb::Expire, Verb::Mset, Verb::Mget];
        if matches!(self.keys, Keys::Counter { .. }) && any(&others) {
            return wrong("mix", "keys of kind \"counter\" take set alone: use kind = \"pool\" for others");
        }
        if any(&[Verb::Set, Verb::Get]) && any(&[Verb::Hset, Verb::Hgetall]) {
            return wrong("mix", "set and get can't share keys with hset and hgetall: use two workloads");
        }
        if has(Verb::Expire) && self.ttl_s.is_none() {
            return wrong("ttl", "expire is in the mix: say ttl = SECONDS");
        }
        if has(Verb::Expire) && any(&[Verb::Mset, Verb::Mget]) {
            return wrong(
                "mix",
                "expire takes single keys, mset and mget have groups of them: use two workloads",
            );
        }
        if self.ttl_s.is_some() && !any(&[Verb::Set, Verb::Expire]) {
            return wrong(
                "ttl",
                "neither set nor expire is in the mix, so nothing would set it: leave it out",
            );
        }
        Ok(())
    }

    fn check_value(&self) -> Result<(), WorkloadError> {
        let bounded = |bytes: u32| match bytes {
            1..=VALUE_BYTES_MAX => Ok(()),
            _ => wrong("value.bytes", format!("{bytes} must be 1 to {VALUE_BYTES_MAX}")),
        };
        match &self.value {
            ValueBytes::KeyTwice => Ok(()),
            ValueBytes::Fixed(bytes) => bounded(*bytes),
            ValueBytes::Uniform { min, max } => {
                bounded(*min)?;
                bounded(*max)?;
                if min > max {
                    return wrong("value.bytes", format!("min = {min} is larger than max = {max}"));
                }
                Ok(())
            }
            ValueBytes::Weighted(sizes) => {
                if !(1..=SIZES_MAX).contains(&sizes.len()) {
                    return wrong("value.bytes", format!("{} sizes, must be 1 to {SIZES_MAX}", sizes.len()));
                }
                if sizes.iter().all(|(_, weight)| *weight == 0) {
                    return wrong("value.bytes", "no size has a weight above 0");
                }
                sizes.iter().try_for_each(|(bytes, _)| bounded(*bytes))
            }
        }
    }
}
