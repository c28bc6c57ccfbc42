//! Hosts as they are named on the command line: `name=address`.

use std::net::IpAddr;
use std::str::FromStr;

use redmesh_api::tls::{NAME_BYTES_MAX, valid_name};

/// Hosts of one command line at the most; a mesh is far smaller.
pub const HOSTS_MAX: usize = 1000;

/// A host to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    /// Its certificate's name.
    pub name: String,
    /// Where its agent and its instances are reached.
    pub ip: IpAddr,
}

impl FromStr for HostSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, ip) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} is not name=address, for example db-1=10.0.0.1"))?;
        if !valid_name(name) {
            return Err(format!(
                "host name {name:?} must be 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, with no - at either end"
            ));
        }
        let ip: IpAddr =
            ip.parse().map_err(|_| format!("{ip:?} is not an IP address, for example 10.0.0.1"))?;
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(format!("{ip} is not an address that host {name} can be reached at"));
        }
        Ok(Self { name: name.to_owned(), ip })
    }
}

/// Says what is wrong with them together.
pub fn check(hosts: &[HostSpec]) -> anyhow::Result<()> {
    anyhow::ensure!(hosts.len() <= HOSTS_MAX, "{} hosts, and at most {HOSTS_MAX} can be", hosts.len());
    for (i, host) in hosts.iter().enumerate() {
        if let Some(other) = hosts[..i].iter().find(|other| other.name == host.name || other.ip == host.ip) {
            anyhow::bail!(
                "{}={} and {}={}: names and addresses must differ",
                other.name,
                other.ip,
                host.name,
                host.ip
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_and_mistakes_named() {
        let host: HostSpec = "db-1=10.0.0.1".parse().expect("a host");
        assert_eq!((host.name.as_str(), host.ip.to_string().as_str()), ("db-1", "10.0.0.1"));
        for (text, words) in [
            ("db-1", "name=address"),
            ("DB=10.0.0.1", "host name \"DB\""),
            ("a=b", "\"b\" is not an IP address"),
            ("a=0.0.0.0", "0.0.0.0"),
            // It would break out of the file that it is rendered into.
            ("a\nb=10.0.0.1", "host name"),
        ] {
            let error = text.parse::<HostSpec>().expect_err(text);
            assert!(error.contains(words), "{error}");
        }
        let hosts: Vec<HostSpec> = ["a=10.0.0.1", "b=10.0.0.1"].iter().map(|h| h.parse().unwrap()).collect();
        assert!(check(&hosts).expect_err("one address twice").to_string().contains("must differ"));
    }
}
