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
