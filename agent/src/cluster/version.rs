//! Which server a binary is, by its own account, and what follows for its files.

use std::fmt;

/// Who makes the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `redis-server`.
    Redis,
    /// `valkey-server`, forked from Redis 7.2.
    Valkey,
}

/// A server's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerVersion {
    /// Who makes it.
    pub flavour: Flavour,
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// Patch level.
    pub patch: u16,
}

/// Text that is no `--version` output of a known server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not what redis-server --version or valkey-server --version prints; set redis.server to one of them"
)]
pub struct VersionError {
    text: String,
}

impl ServerVersion {
    /// Reads the output of `redis-server --version` or `valkey-server --version`:
    /// `Redis server v=7.0.15 sha=…`, `Valkey server v=8.0.1 sha=…`.
    pub fn parse(text: &str) -> Result<Self, VersionError> {
        let err = || VersionError { text: text.chars().take(120).collect() };
        let mut words = text.split_whitespace();
        let flavour = match words.next() {
            Some("Redis") => Flavour::Redis,
            Some("Valkey") => Flavour::Valkey,
            _ => return Err(err()),
        };
        let version = words.find_map(|w| w.strip_prefix("v=")).ok_or_else(err)?;
        // A release candidate reads "8.0.0-rc1": its digits count.
        let mut numbers = version
            .split(['.', '-'])
            .map(|part| part.bytes().take_while(u8::is_ascii_digit).count())
            .zip(version.split(['.', '-']))
            .map(|(digits, part)| part[..digits].parse::<u16>());
        let mut next = || numbers.next().and_then(Result::ok);
        Ok(Self {
            flavour,
            major: next().ok_or_else(err)?,
            minor: next().ok_or_else(err)?,
            patch: next().unwrap_or(0),
        })
    }

    /// Whether `nodes.conf` bears shard ids (Redis 7.2 and later, every Valkey).
    pub fn writes_shard_ids(self) -> bool {
        match self.flavour {
            Flavour::Redis => (self.major, self.minor) >= (7, 2),
            Flavour::Valkey => true,
        }
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flavour = match self.flavour {
            Flavour::Redis => "Redis",
            Flavour::Valkey => "Valkey",
        };
        write!(f, "{flavour} {}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_flavours() {
        let redis =
            "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d7c971a948f0";
        let version = ServerVersion::parse(redis).unwrap();
        assert_eq!(version, ServerVersion { flavour: Flavour::Redis, major: 7, minor: 0, patch: 15 });
        assert!(!version.writes_shard_ids());
        assert_eq!(version.to_string(), "Redis 7.0.15");
        let valkey =
            ServerVersion::parse("Valkey server v=8.0.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64");
        assert!(valkey.unwrap().writes_shard_ids());
        assert!(ServerVersion::parse("Redis server v=7.2.0-rc1").unwrap().writes_shard_ids());
    }

    #[test]
    fn refuses_other_text() {
        for text in
            ["", "Redis", "Redis server v=", "Redis server v=x.y", "Redis server v=7", "KeyDB v=6.3.4"]
        {
            assert!(ServerVersion::parse(text).is_err(), "{text:?}");
        }
        assert!(ServerVersion::parse("Redis server v=99999999999.0.1").is_err());
    }
}
