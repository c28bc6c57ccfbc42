//! Numbers and times as people read them, and as they write them on a command line.
//! Text only: JSON carries plain numbers.

use std::time::Duration;

pub use redmesh_api::{bytes, thousands};

/// As [`thousands`], with a sign.
pub fn thousands_signed(number: i64) -> String {
    let sign = if number < 0 { "-" } else { "" };
    format!("{sign}{}", thousands(number.unsigned_abs()))
}

/// A rate per second, rounded.
pub fn rate(per_s: f64) -> String {
    // `as` saturates, and turns NaN into 0.
    thousands(per_s.round() as u64)
}

/// A count that has to be short: `51234.0` → `51k`.
pub fn short(number: f64) -> String {
    match number {
        n if n >= 999_500.0 => format!("{:.1}M", n / 1e6),
        n if n >= 1000.0 => format!("{:.0}k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

/// Microseconds in the unit that suits them.
pub fn micros(us: u64) -> String {
    match us {
        0..=999 => format!("{us} µs"),
        1_000..=999_999 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// Seconds, one decimal.
pub fn seconds(s: f64) -> String {
    format!("{s:.1} s")
}

/// clap's parser of durations: `90`, `90s`, `2m`, `1500ms`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text).map_err(|error| format!("{error}; write 90, 90s or 2m"))?,
    };
    if parsed.is_zero() || parsed > DURATION_MAX {
        return Err(format!("must be more than 0 and at most {} days", DURATION_MAX.as_secs() / 86_400));
    }
    Ok(parsed)
}

/// Longest duration that a command line may name.
const DURATION_MAX: Duration = Duration::from_secs(365 * 86_400);

/// clap's parser of counts: `1000000000`, `1_000_000`, `1,000,000`, `10k`, `1M`, `1G`.
pub fn parse_count(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a count; write 1000000, 1_000_000 or 1M");
    let plain = text.replace(['_', ','], "");
    let (digits, factor) = match plain.strip_suffix(['k', 'M', 'G']) {
        Some(digits) if plain.ends_with('k') => (digits, 1_000),
        Some(digits) if plain.ends_with('M') => (digits, 1_000_000),
        Some(digits) => (digits, 1_000_000_000),
        None => (plain.as_str(), 1),
    };
    let count: u64 = digits.parse().map_err(|_| bad())?;
    match count.checked_mul(factor) {
        None => Err(format!("{text:?} is too large")),
        Some(0) => Err("must be more than 0".to_owned()),
        Some(count) => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1234567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
        assert_eq!(thousands(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(thousands_signed(-1234), "-1,234");
        assert_eq!(thousands_signed(i64::MIN), "-9,223,372,036,854,775,808");
        assert_eq!(rate(f64::NAN), "0");
        assert_eq!(rate(50_505.4), "50,505");
    }

    #[test]
    fn times_and_sizes_find_their_unit() {
        assert_eq!(micros(0), "0 µs");
        assert_eq!(micros(3_050), "3.0 ms");
        assert_eq!(micros(2_500_000), "2.50 s");
        assert_eq!(short(512.0), "512");
        assert_eq!(short(51_234.0), "51k");
        assert_eq!(short(1_500_000.0), "1.5M");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(bytes(5 << 20), "5 MiB");
    }

    #[test]
    fn durations_take_seconds_or_units() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["0", "", "soon", "-1", "99999999999999999999", "400days"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_take_separators_and_suffixes() {
        assert_eq!(parse_count("1000000000"), Ok(1_000_000_000));
        assert_eq!(parse_count("1_000_000"), Ok(1_000_000));
        assert_eq!(parse_count("10k"), Ok(10_000));
        assert_eq!(parse_count("1M"), Ok(1_000_000));
        assert_eq!(parse_count("1G"), Ok(1_000_000_000));
        for bad in ["0", "", "k", "many", "-5", "99999999999G"] {
            assert!(parse_count(bad).is_err(), "{bad}");
        }
    }
}
