//! What changes of the user's directives mean for servers that run: which they are, what
//! `CONFIG SET` is to be given, and what a server's refusal means. Pure text.

use std::collections::{BTreeMap, BTreeSet};

use super::{DirectiveError, RedisConf, split_words};

/// The user's directives, each with its lines.
pub type Directives = Vec<(String, Vec<String>)>;

/// What replicas log in at primaries with: one without the other would be a wrong login.
const OF_REPLICAS: [&str; 2] = ["masteruser", "masterauth"];

/// Names, in small letters, of the directives that were added, changed or taken away.
pub fn changed(old: &Directives, new: &Directives) -> BTreeSet<String> {
    let by_name = |all: &Directives| -> BTreeMap<String, Vec<String>> {
        all.iter().map(|(name, lines)| (name.to_ascii_lowercase(), lines.clone())).collect()
    };
    let (old, new) = (by_name(old), by_name(new));
    old.keys().chain(new.keys()).filter(|name| old.get(*name) != new.get(*name)).cloned().collect()
}

/// `new`, but with the lines that `old` has of these names, or none where it has none.
pub fn without(new: &Directives, old: &Directives, kept: &BTreeSet<String>) -> Directives {
    let is_kept = |name: &str| kept.contains(&name.to_ascii_lowercase());
    let mut all: Directives = new.iter().filter(|(name, _)| !is_kept(name)).cloned().collect();
    all.extend(old.iter().filter(|(name, _)| is_kept(name)).cloned());
    all
}

/// What a server's refusal of a `CONFIG SET` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The directive can't be changed while a server runs; a start reads it.
    Fixed,
    /// The value can't be used: not at a start either.
    Value,
}

impl Refusal {
    /// By the words of Redis 6.2 to 8 and Valkey.
    pub fn of(said: &str) -> Self {
        let fixed = [
            "immutable config",
            "protected config",
            "Unsupported CONFIG parameter",
            "Unknown option or number of arguments",
            "Unknown option",
        ];
        match fixed.iter().any(|words| said.contains(words)) {
            true => Self::Fixed,
            false => Self::Value,
        }
    }
}

impl RedisConf {
    /// What a running server is told to have `name` (in small letters) as its file says: all
    /// lines of it as one value. `None` where the file says nothing: what the server would
    /// then start with only itself knows.
    ///
    /// # Errors
    /// [`DirectiveError`] of a value that can't be written.
    pub fn live_value(&self, name: &str) -> Result<Option<String>, DirectiveError> {
        let given = self.directives.iter().find(|(user, _)| user.eq_ignore_ascii_case(name));
        if let Some((_, lines)) = given {
            let words: Result<Vec<_>, _> = lines.iter().map(|line| split_words(name, line)).collect();
            return Ok(Some(words?.concat().join(" ")));
        }
        let own = self.defaults().into_iter().find(|(own, _)| *own == name).map(|(_, value)| value);
        let access = || self.access().into_iter().find(|(own, _)| *own == name).map(|(_, value)| value);
        let nobody = || OF_REPLICAS.contains(&name).then(String::new);
        Ok(own.or_else(access).or_else(nobody))
    }

    /// Names that are to be told where these have changed: those that hang together together.
    pub fn told_with(names: &BTreeSet<String>) -> BTreeSet<String> {
        let mut all = names.clone();
        if OF_REPLICAS.iter().any(|name| all.contains(*name)) {
            all.extend(OF_REPLICAS.map(str::to_owned));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use redmesh_api::secret::{RedisSecret, RedisSecrets};

    use super::*;
    use crate::login::Access;

    fn directives(all: &[(&str, &[&str])]) -> Directives {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        all.iter().map(|(name, values)| ((*name).to_owned(), lines(values))).collect()
    }

    fn names(all: &[&str]) -> BTreeSet<String> {
        all.iter().map(|name| (*name).to_owned()).collect()
    }

    fn conf(all: &[(&str, &[&str])], access: Option<Access>) -> RedisConf {
        RedisConf {
            addr: ([10, 0, 0, 1], 6379).into(),
            node_timeout_ms: 5000,
            hz: 10,
            forming: false,
            clients_needed: 5000,
            dir: "/d".into(),
            somaxconn: Some(128),
            directives: directives(all),
            access,
            tls: None,
        }
    }

    #[test]
    fn what_has_changed_is_found_whatever_the_letters() {
        let old = directives(&[("Save", &["900 1"]), ("hz", &["10"]), ("maxmemory", &["1gb"])]);
        let new = directives(&[("save", &["900 1"]), ("HZ", &["20"]), ("appendonly", &["yes"])]);
        assert_eq!(changed(&old, &new), names(&["appendonly", "hz", "maxmemory"]));
        assert_eq!(changed(&old, &old), BTreeSet::new());
        let kept = without(&new, &old, &names(&["hz", "appendonly", "maxmemory"]));
        assert_eq!(changed(&old, &kept), BTreeSet::new(), "all changes are taken back");
        assert_eq!(changed(&new, &without(&new, &old, &names(&["hz"]))), names(&["hz"]));
    }

    #[test]
    fn a_running_server_is_told_what_the_file_says() {
        let limits: &[&str] = &["normal 0 0 0", "replica 256mb 64mb 60"];
        let conf = conf(
            &[("client-output-buffer-limit", limits), ("proc-title-template", &["\"{title} x\""])],
            Some(RedisSecrets::from(RedisSecret::generate().expect("a secret")).into()),
        );
        let value = |name: &str| conf.live_value(name).expect("a value");
        let limits = "normal 0 0 0 replica 256mb 64mb 60";
        assert_eq!(value("client-output-buffer-limit").as_deref(), Some(limits));
        assert_eq!(value("proc-title-template").as_deref(), Some("{title} x"));
        // What was taken away is the agent's own default; what isn't the agent's only the server knows.
        assert_eq!(value("save").as_deref(), Some(""));
        assert_eq!(value("tcp-backlog").as_deref(), Some("128"));
        assert_eq!(value("masteruser").as_deref(), Some("redmesh"));
        assert!(value("requirepass").is_some_and(|password| !password.is_empty()));
        assert_eq!(value("maxmemory"), None);
    }

    #[test]
    fn replicas_logins_change_together() {
        let told = RedisConf::told_with(&names(&["masterauth", "hz"]));
        assert_eq!(told, names(&["hz", "masterauth", "masteruser"]));
        let own = conf(&[("masterauth", &["x"])], None);
        assert_eq!(own.live_value("masterauth").expect("a value").as_deref(), Some("x"));
        assert_eq!(own.live_value("masteruser").expect("a value").as_deref(), Some(""), "nobody's name");
        assert_eq!(RedisConf::told_with(&names(&["hz"])), names(&["hz"]));
    }

    #[test]
    fn a_refusal_is_told_from_a_directive_that_cannot_change() {
        for said in [
            "CONFIG SET failed (possibly related to argument 'tcp-backlog') - can't set immutable config",
            "Unknown option or number of arguments for CONFIG SET - 'user'",
            "Unsupported CONFIG parameter: io-threads",
            "CONFIG SET failed (possibly related to argument 'dir') - can't set protected config",
        ] {
            assert_eq!(Refusal::of(said), Refusal::Fixed, "{said}");
        }
        for said in [
            "CONFIG SET failed (possibly related to argument 'maxmemory') - argument must be a memory value",
            "Invalid argument 'x' for CONFIG SET 'maxmemory'",
        ] {
            assert_eq!(Refusal::of(said), Refusal::Value, "{said}");
        }
    }
}
