//! Figures as people read them.

pub use redmesh_api::{bytes, thousands as count};

/// `8.1 Gbit/s`, `12 Mbit/s`.
pub fn bits(n: u64) -> String {
    match n {
        n if n >= 1_000_000_000 => format!("{:.1} Gbit/s", n as f64 / 1e9),
        n if n >= 10_000_000 => format!("{:.0} Mbit/s", n as f64 / 1e6),
        n => format!("{:.1} Mbit/s", n as f64 / 1e6),
    }
}

/// `6379-6478`, `6379`, `80,6379-6478`.
pub fn ranges(ranges: &[(u16, u16)]) -> String {
    let one = |&(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_find_their_unit() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([212_992, 4 << 20, 3 << 29].map(bytes), ["208 KiB", "4 MiB", "1.5 GiB"]);
        let speeds = [1_500_000, 12_000_000, 8_092_000_000].map(bits);
        assert_eq!(speeds, ["1.5 Mbit/s", "12 Mbit/s", "8.1 Gbit/s"]);
        assert_eq!(ranges(&[(80, 80), (6379, 6478)]), "80,6379-6478");
    }
}
