//! What the kernel prints under `/proc` and `/sys`, as values. Pure; text that isn't as
//! it should be is `None`, for kernels differ.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// A number that stands alone in a file.
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// First and last of `net.ipv4.ip_local_port_range`.
pub fn port_range(text: &str) -> Option<(u16, u16)> {
    let mut words = text.split_whitespace().map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Some((first, last)),
        _ => None,
    }
}

/// The middle one of `net.ipv4.tcp_mem`, pages.
pub fn tcp_pressure_pages(text: &str) -> Option<u64> {
    text.split_whitespace().nth(1)?.parse().ok()
}

/// `net.ipv4.ip_local_reserved_ports`: `8080,9000-9010`.
pub fn reserved_ports(text: &str) -> Vec<(u16, u16)> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    };
    text.trim().split(',').filter_map(range).collect()
}

/// The choice in brackets: `always [madvise] never`.
pub fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// First word of `fs.file-nr`: files that are open on the machine.
pub fn files_open(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// Threads on the machine: behind the slash of `/proc/loadavg`'s fourth word.
pub fn threads(text: &str) -> Option<u64> {
    text.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// The interface whose route `ip` lies in, by `/proc/net/route`: of those that contain it,
/// the one with the longest mask.
pub fn interface_v4(route: &str, ip: Ipv4Addr) -> Option<String> {
    let word = |text: &str| u32::from_str_radix(text, 16).ok().map(|word| Ipv4Addr::from(word.to_ne_bytes()));
    let routes = route.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (net, mask) = (word(words.get(1)?)?.to_bits(), word(words.get(7)?)?.to_bits());
        (ip.to_bits() & mask == net).then(|| (mask, words[0].to_owned()))
    });
    routes.max_by_key(|(mask, _)| *mask).map(|(_, name)| name)
}

/// The interface that bears `ip`, by `/proc/net/if_inet6`.
pub fn interface_v6(addresses: &str, ip: Ipv6Addr) -> Option<String> {
    let wanted = format!("{:032x}", ip.to_bits());
    let line = addresses.lines().find(|line| line.starts_with(&wanted))?;
    line.split_whitespace().nth(5).map(ToOwned::to_owned)
}

/// Whether `ip` never leaves its machine.
pub fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Files in which a process' control groups may keep a limit, from its own group up to
/// the root; `v1` is the controller and its file's name, `v2` that of the unified hierarchy.
pub fn cgroup_files(own: &str, v1: (&str, &str), v2: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => (PathBuf::from("/sys/fs/cgroup"), v2),
            _ if controllers.split(',').any(|name| name == v1.0) => {
                (PathBuf::from("/sys/fs/cgroup").join(v1.0), v1.1)
            }
            _ => continue,
        };
        let mut dir = root.join(path.trim_start_matches('/'));
        while dir.starts_with(&root) {
            files.push(dir.join(file));
            dir.pop();
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kernels_print() {
        assert_eq!(number("4096\n"), Some(4096));
        assert_eq!(number("max\n"), None);
        assert_eq!(port_range("32768\t60999\n"), Some((32768, 60999)));
        assert_eq!(port_range("32768"), None);
        assert_eq!(reserved_ports("8080,9000-9010\n"), [(8080, 8080), (9000, 9010)]);
        assert_eq!(reserved_ports("\n"), []);
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen("madvise"), None);
        assert_eq!(files_open("1472\t0\t2466177\n"), Some(1472));
        assert_eq!(threads("0.20 0.18 0.12 1/80 11206\n"), Some(80));
        assert_eq!(threads("0.20"), None);
    }

    #[test]
    fn finds_the_interface_of_an_address() {
        let word = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let route = format!(
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
             eth0\t{any}\t{gateway}\t0003\t0\t0\t0\t{any}\t0\t0\t0\n\
             eth1\t{net}\t{any}\t0001\t0\t0\t0\t{mask}\t0\t0\t0\n",
            any = word([0; 4]),
            gateway = word([10, 0, 0, 1]),
            net = word([10, 1, 0, 0]),
            mask = word([255, 255, 0, 0]),
        );
        let of = |ip: [u8; 4]| interface_v4(&route, ip.into());
        assert_eq!(of([10, 1, 2, 3]).as_deref(), Some("eth1"));
        assert_eq!(of([10, 2, 2, 3]).as_deref(), Some("eth0"), "by the default route");
        assert_eq!(interface_v4("Iface\n", [10, 1, 2, 3].into()), None);
        let v6 = "20010db8000000000000000000000001 02 40 00 80     eth2\n";
        assert_eq!(interface_v6(v6, "2001:db8::1".parse().unwrap()).as_deref(), Some("eth2"));
        assert_eq!(interface_v6(v6, "2001:db8::2".parse().unwrap()), None);
        assert!(is_loopback("127.3.0.1".parse().unwrap()) && is_loopback("::1".parse().unwrap()));
    }

    #[test]
    fn walks_up_from_ones_own_control_group() {
        let paths = |own, v2| -> Vec<String> {
            cgroup_files(own, ("pids", "pids.max"), v2)
                .iter()
                .map(|file| file.display().to_string())
                .collect()
        };
        assert_eq!(
            paths("0::/system.slice/redmesh.service\n", "pids.max"),
            [
                "/sys/fs/cgroup/system.slice/redmesh.service/pids.max",
                "/sys/fs/cgroup/system.slice/pids.max",
                "/sys/fs/cgroup/pids.max",
            ]
        );
        let old = "4:memory:/a\n3:pids:/b\n1:name=systemd:/c\n";
        assert_eq!(paths(old, "x"), ["/sys/fs/cgroup/pids/b/pids.max", "/sys/fs/cgroup/pids/pids.max"]);
        assert_eq!(paths("nonsense", "x"), Vec::<String>::new());
    }
}
