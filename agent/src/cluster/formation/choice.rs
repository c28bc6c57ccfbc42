//! Which way a cluster is formed: as asked for, or as its servers allow.

use redmesh_api::level::{ClusterSpec, Formation, Servers};

use crate::cluster::version::ServerVersion;

/// A way of formation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// It.
    pub formation: Formation,
    /// Why it isn't the usual one, where nobody asked for it.
    pub why: Option<String>,
}

/// Chooses for `spec`, given what version of the server each host has, by name. A host
/// whose version can't be told doesn't count: why that is so is said when it prepares.
///
/// # Errors
/// In words, with the remedy: what was asked for can't be.
pub fn choose(spec: &ClusterSpec, versions: &[(String, ServerVersion)]) -> Result<Choice, String> {
    let plain = |formation| Ok(Choice { formation, why: None });
    if spec.servers == Servers::Existing {
        return match spec.formation {
            Some(Formation::Seeded) => {
                Err("servers that run already can't be seeded, for a nodes.conf is read \
                                            at the start: ask for --formation meet, or leave it out"
                    .to_owned())
            }
            Some(Formation::Meet) | None => plain(Formation::Meet),
        };
    }
    let unknown = versions.iter().find(|(_, version)| version.nodes_conf_format().is_none());
    match (spec.formation, unknown) {
        (Some(Formation::Meet), _) => plain(Formation::Meet),
        (Some(Formation::Seeded) | None, None) => plain(Formation::Seeded),
        (Some(Formation::Seeded), Some((host, version))) => Err(format!(
            "the format of nodes.conf of {version} (on {host}) is not known, so it can't be seeded: ask for \
             --formation meet, or set redis.server to Redis 6.2 to 8.0 or Valkey 7.2 to 8.1"
        )),
        (None, Some((host, version))) => Ok(Choice {
            formation: Formation::Meet,
            why: Some(format!(
                "formed by MEET: the format of nodes.conf of {version} (on {host}) is not known, so it can't be \
                 seeded"
            )),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(servers: Servers, formation: Option<Formation>, versions: &[&str]) -> Result<Choice, String> {
        let spec = ClusterSpec { servers, formation, ..ClusterSpec::default() };
        let parse = |text: &&str| ServerVersion::parse(&format!("Redis server v={text}")).expect("a version");
        let versions: Vec<_> = versions.iter().map(|text| ("host-1".to_owned(), parse(text))).collect();
        choose(&spec, &versions)
    }

    #[test]
    fn servers_of_known_versions_are_seeded_unless_asked_otherwise() {
        use Formation::{Meet, Seeded};
        use Servers::{Existing, Supervised};
        let way = |choice: Result<Choice, String>| choice.map(|choice| choice.formation);
        assert_eq!(way(chosen(Supervised, None, &["7.0.15", "7.2.1"])), Ok(Seeded));
        assert_eq!(way(chosen(Supervised, Some(Meet), &["7.0.15"])), Ok(Meet));
        assert_eq!(way(chosen(Supervised, None, &[])), Ok(Seeded));
        assert_eq!(way(chosen(Existing, None, &[])), Ok(Meet));
        assert!(chosen(Existing, Some(Seeded), &[]).is_err_and(|words| words.contains("--formation meet")));
    }

    #[test]
    fn a_version_of_unknown_format_is_joined_and_that_is_said() {
        let choice = chosen(Servers::Supervised, None, &["7.0.15", "99.0.0"]).expect("a choice");
        assert_eq!(choice.formation, Formation::Meet);
        assert!(choice.why.is_some_and(|why| why.contains("99.0.0") && why.contains("host-1")));
        let refused = chosen(Servers::Supervised, Some(Formation::Seeded), &["99.0.0"]).expect_err("refused");
        assert!(refused.contains("99.0.0") && refused.contains("redis.server"), "{refused}");
    }
}
