//! Which server a binary is, by its own account, and what follows for its files.
//!
//! What `nodes.conf` looks like is known of the versions named here and of no other: a
//! server that reads a file wrongly may lose slots, so of an unknown one none is written.

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

/// How a version writes the address of a node in `nodes.conf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodesConfFormat {
    /// `ip:port@bus port`, with `,hostname` only where there is one: Redis 6.2 and 7.0.
    Plain,
    /// `ip:port@bus port,hostname,shard-id=…`: Redis 7.2 to 8.2, Valkey 7.2 to 8.1.
    ShardIds,
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
    /// `Redis server v=7.0.15 sha=…`, `Valkey server v=8.0.1 sha=…`, `Server v=7.2.14 sha=…`.
    pub fn parse(text: &str) -> Result<Self, VersionError> {
        let err = || VersionError { text: text.chars().take(120).collect() };
        let mut words = text.split_whitespace();
        let flavour = match words.next() {
            Some("Redis") => Flavour::Redis,
            // What Valkey 7.2 calls itself, too.
            Some("Valkey" | "Server") => Flavour::Valkey,
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

    /// How it writes `nodes.conf`; `None` where that is not known.
    pub fn nodes_conf_format(self) -> Option<NodesConfFormat> {
        match (self.flavour, self.major, self.minor) {
            (Flavour::Redis, 6, 2) | (Flavour::Redis, 7, 0) => Some(NodesConfFormat::Plain),
            (Flavour::Redis, 7, 2 | 4) | (Flavour::Redis, 8, 0 | 2) => Some(NodesConfFormat::ShardIds),
            (Flavour::Valkey, 7, 2) | (Flavour::Valkey, 8, 0 | 1) => Some(NodesConfFormat::ShardIds),
            _ => None,
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
        assert_eq!(version.nodes_conf_format(), Some(NodesConfFormat::Plain));
        assert_eq!(version.to_string(), "Redis 7.0.15");
        let valkey =
            ServerVersion::parse("Valkey server v=8.0.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64");
        assert_eq!(valkey.unwrap().nodes_conf_format(), Some(NodesConfFormat::ShardIds));
    }

    #[test]
    fn only_known_versions_have_a_known_format() {
        let format = |text: &str| ServerVersion::parse(text).unwrap().nodes_conf_format();
        for version in ["Redis server v=6.2.14", "Redis server v=7.0.0"] {
            assert_eq!(format(version), Some(NodesConfFormat::Plain), "{version}");
        }
        for version in [
            "Redis server v=7.2.0-rc1",
            "Redis server v=7.4.2",
            "Redis server v=8.0.3",
            "Redis server v=8.2.3",
            "Server v=7.2.14 sha=00000000:0 malloc=jemalloc-5.3.0",
            "Valkey server v=8.1.0",
        ] {
            assert_eq!(format(version), Some(NodesConfFormat::ShardIds), "{version}");
        }
        for version in [
            "Redis server v=6.0.16",
            "Redis server v=7.1.0",
            "Redis server v=99.0.0",
            "Valkey server v=9.0.0",
        ] {
            assert_eq!(format(version), None, "{version}");
        }
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
