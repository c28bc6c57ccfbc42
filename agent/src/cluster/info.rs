//! `INFO`'s text as a map.

use std::collections::BTreeMap;

/// Fields that are kept of one reply; a server has some 300, more with many commands
/// or databases.
pub const FIELDS_MAX: usize = 4096;

/// The fields of an `INFO` reply, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InfoMap(BTreeMap<String, String>);

impl InfoMap {
    /// Reads `name:value` lines; headings and anything else are passed over.
    pub fn parse(text: &str) -> Self {
        let fields = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.trim_end().split_once(':'))
            .take(FIELDS_MAX)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Self(fields)
    }

    /// A field's text.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A field as a whole number.
    pub fn u64(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// A field as a number; never infinite or NaN.
    pub fn f64(&self, name: &str) -> Option<f64> {
        self.get(name)?.parse().ok().filter(|n: &f64| n.is_finite())
    }

    /// One part of a field such as `cmdstat_set:calls=1,usec=9` or `db0:keys=3,…`.
    pub fn part(&self, name: &str, part: &str) -> Option<&str> {
        let parts = self.get(name)?.split(',');
        parts.filter_map(|p| p.split_once('=')).find(|(key, _)| *key == part).map(|(_, value)| value)
    }

    /// All fields, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Keys of the database 0, the only one that a cluster has; absent means none.
    pub fn keys(&self) -> u64 {
        self.part("db0", "keys").and_then(|keys| keys.parse().ok()).unwrap_or(0)
    }

    /// Executed calls of `command`; a command that was never called has no field.
    pub fn calls(&self, command: &str) -> u64 {
        let field = format!("cmdstat_{command}");
        self.part(&field, "calls").and_then(|calls| calls.parse().ok()).unwrap_or(0)
    }

    /// `used_cpu_user + used_cpu_sys`, microseconds; absent means 0.
    pub fn cpu_us(&self) -> u64 {
        let seconds = self.f64("used_cpu_user").unwrap_or(0.0) + self.f64("used_cpu_sys").unwrap_or(0.0);
        // A float-to-int cast saturates; a negative figure becomes 0.
        (seconds * 1e6).round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields_and_parts() {
        let info = InfoMap::parse(
            "# Server\r\nrun_id:abc\r\nexecutable:/a:b\r\n\r\n# CPU\r\nused_cpu_sys:0.25\r\nused_cpu_user:1.5\r\n\
             cmdstat_set:calls=12,usec=9,rejected_calls=3\r\ndb0:keys=7,expires=0\r\njunk\r\n",
        );
        assert_eq!(info.get("run_id"), Some("abc"));
        assert_eq!(info.get("executable"), Some("/a:b"));
        assert_eq!((info.calls("set"), info.calls("get"), info.keys()), (12, 0, 7));
        assert_eq!(info.cpu_us(), 1_750_000);
        assert_eq!(info.get("junk"), None);
        assert_eq!(info.iter().count(), 6);
        assert_eq!(InfoMap::parse("").keys(), 0);
    }

    #[test]
    fn odd_figures_are_absent() {
        let info = InfoMap::parse("used_cpu_user:NaN\nused_cpu_sys:-5\na:-1\n");
        assert_eq!((info.cpu_us(), info.u64("a"), info.f64("used_cpu_user")), (0, None, None));
    }
}
