//! What the hosts have, looked at before a cluster is planned: which versions of the server,
//! and whether servers that run already will do.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use redmesh_api::control::{Refusal, RefusalKind};
use redmesh_api::level::{ClusterSpec, Formation, PlannedHost, Servers};

use super::refuse;
use crate::census::Census;
use crate::cluster::ServerVersion;
use crate::cluster::formation::{self, Choice};
use crate::cluster::survey::SurveyedServer;
use crate::peer::{self, HostSurvey, PeerReply, PeerRequest};
use crate::transport::Transport;

/// Problems that a refusal lists one by one; the rest are counted.
const PROBLEMS_LISTED_MAX: usize = 50;

/// What follows from a look at all hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// How the cluster is to be formed.
    pub formation: Formation,
    /// `cluster-node-timeout` of servers that run already, where they agree on one.
    pub node_timeout_ms: Option<u32>,
    /// What whoever asked should know.
    pub notes: Vec<String>,
}

/// Asks all `hosts` and weighs what they say.
///
/// # Errors
/// A refusal that names everything that is wrong.
pub async fn survey(
    census: &Census,
    transport: &dyn Transport,
    spec: &ClusterSpec,
    hosts: &[PlannedHost],
) -> Result<Surveyed, Refusal> {
    let known = census.hosts();
    let nodes = hosts.iter().map(|host| u32::from(spec.instances_on(&host.name))).sum();
    let asked = hosts.iter().map(|host| async {
        let addrs = match spec.servers {
            Servers::Supervised => Vec::new(),
            Servers::Existing => addrs(host, spec.instances_on(&host.name)),
        };
        let to = known.get(&host.id).map(|host| host.addr);
        let request = PeerRequest::Survey { addrs, nodes };
        let answer = match peer::ask_known(transport, to, &request, peer::INSTANCES_DEADLINE).await {
            Ok(PeerReply::Survey(survey)) => Ok(survey),
            Ok(other) => Err(format!("answered {other:?}")),
            Err(reason) => Err(reason),
        };
        (host.name.clone(), answer)
    });
    weigh(spec, futures_util::future::join_all(asked).await)
}

/// Ports that don't exist are the planner's to refuse.
fn addrs(host: &PlannedHost, instances: u16) -> Vec<SocketAddr> {
    let ports = (0..instances).filter_map(|nth| host.base_port.checked_add(nth));
    ports.map(|port| SocketAddr::new(host.ip, port)).collect()
}

fn weigh(
    spec: &ClusterSpec,
    answers: Vec<(String, Result<HostSurvey, String>)>,
) -> Result<Surveyed, Refusal> {
    let (mut versions, mut servers, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for (host, answer) in answers {
        match answer {
            Ok(survey) => {
                let parsed = survey.binary.ok().and_then(|text| ServerVersion::parse(&text).ok());
                versions.extend(parsed.map(|version| (host.clone(), version)));
                let wrong = |server: &SurveyedServer| {
                    let addr = server.addr;
                    let problems = server.problems.iter();
                    problems.map(|problem| format!("{host}: {addr} {problem}")).collect::<Vec<_>>()
                };
                problems.extend(survey.servers.iter().flat_map(wrong));
                servers.extend(survey.servers);
            }
            // One that starts its own servers is awaited when it does; one whose servers
            // are somebody else's must be able to say that they will do.
            Err(reason) if spec.servers == Servers::Existing => {
                problems.push(format!("{host}: can't look at its servers: {reason}"));
            }
            Err(_) => {}
        }
    }
    let Choice { formation, why } =
        formation::choose(spec, &versions).map_err(|reason| Refusal::new(RefusalKind::Invalid, reason))?;
    let timeouts: BTreeSet<u32> = servers.iter().filter_map(|server| server.node_timeout_ms).collect();
    problems.extend(twins(&servers));
    problems.extend(timeout_problem(spec, &timeouts));
    if !problems.is_empty() {
        let more = problems.len().saturating_sub(PROBLEMS_LISTED_MAX);
        problems.truncate(PROBLEMS_LISTED_MAX);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        return refuse(
            RefusalKind::Conflict,
            format!("the servers that run already can't become a cluster:\n  {}", problems.join("\n  ")),
        );
    }
    let mut notes: Vec<String> = why.into_iter().collect();
    let versions: BTreeSet<_> = servers.iter().filter_map(|server| server.version.clone()).collect();
    if versions.len() > 1 {
        let versions: Vec<_> = versions.into_iter().collect();
        notes.push(format!("the servers' versions differ: {}", versions.join(", ")));
    }
    Ok(Surveyed { formation, node_timeout_ms: timeouts.first().copied(), notes })
}

/// Servers that bear one id: a copied `nodes.conf`.
fn twins(servers: &[SurveyedServer]) -> Vec<String> {
    let mut seen = std::collections::BTreeMap::new();
    let twins = servers.iter().filter_map(|server| {
        let first = seen.insert(server.node_id?, server.addr)?;
        Some(format!(
            "{} has the node id of {first}: its nodes.conf is a copy; CLUSTER RESET HARD gives it an own one",
            server.addr
        ))
    });
    twins.collect()
}

/// The node timeout must be the same everywhere: what one takes for dead, others must too.
fn timeout_problem(spec: &ClusterSpec, timeouts: &BTreeSet<u32>) -> Option<String> {
    let set = |wanted: u32| format!("CONFIG SET cluster-node-timeout {wanted} at each of them");
    match (spec.node_timeout_ms, timeouts.first(), timeouts.last()) {
        (_, Some(low), Some(high)) if low != high => Some(format!(
            "the servers' cluster-node-timeout differs, {low} to {high} ms: {}",
            set(spec.node_timeout_ms.unwrap_or(*high))
        )),
        (Some(wanted), Some(have), _) if wanted != *have => Some(format!(
            "a node timeout of {wanted} ms is asked for, but the servers have {have} ms: {}, or leave \
             --node-timeout out",
            set(wanted)
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use redmesh_api::ids::NodeId;

    use super::*;

    fn server(last: u8, node_timeout_ms: u32, problems: &[&str]) -> SurveyedServer {
        SurveyedServer {
            addr: SocketAddr::new([127, 0, 0, last].into(), 6379),
            node_id: Some(NodeId([last; 20])),
            version: Some("7.0.15".to_owned()),
            node_timeout_ms: Some(node_timeout_ms),
            problems: problems.iter().map(ToString::to_string).collect(),
        }
    }

    fn existing(servers: Vec<SurveyedServer>, asked_ms: Option<u32>) -> Result<Surveyed, Refusal> {
        let spec =
            ClusterSpec { servers: Servers::Existing, node_timeout_ms: asked_ms, ..ClusterSpec::default() };
        let survey = HostSurvey { binary: Err("none".to_owned()), servers };
        weigh(&spec, vec![("host-1".to_owned(), Ok(survey))])
    }

    #[test]
    fn servers_that_will_do_are_joined_with_their_own_timeout() {
        let surveyed = existing(vec![server(1, 15_000, &[]), server(2, 15_000, &[])], None);
        let wanted =
            Surveyed { formation: Formation::Meet, node_timeout_ms: Some(15_000), notes: Vec::new() };
        assert_eq!(surveyed, Ok(wanted));
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let twin = SurveyedServer { node_id: Some(NodeId([1; 20])), ..server(3, 5_000, &[]) };
        let all = vec![server(1, 15_000, &["holds 3 keys"]), server(2, 15_000, &["is a replica"]), twin];
        let Refusal { kind, message: words } = existing(all, None).expect_err("refused");
        assert_eq!(kind, RefusalKind::Conflict);
        for part in [
            "host-1: 127.0.0.1:6379 holds 3 keys",
            "127.0.0.2:6379 is a replica",
            "127.0.0.3:6379 has the node id of 127.0.0.1:6379",
            "cluster-node-timeout differs, 5000 to 15000 ms",
        ] {
            assert!(words.contains(part), "lacks {part:?}: {words}");
        }
        let refusal = existing(vec![server(1, 15_000, &[])], Some(5_000)).expect_err("refused");
        assert!(refusal.message.contains("CONFIG SET cluster-node-timeout 5000"), "{refusal}");
    }

    #[test]
    fn a_host_that_can_not_be_asked_matters_only_for_its_existing_servers() {
        let silent = || vec![("host-2".to_owned(), Err("gone".to_owned()))];
        assert_eq!(weigh(&ClusterSpec::default(), silent()).map(|it| it.formation), Ok(Formation::Seeded));
        let spec = ClusterSpec { servers: Servers::Existing, ..ClusterSpec::default() };
        assert!(weigh(&spec, silent()).is_err_and(|refusal| refusal.message.contains("host-2: can't look")));
    }
}
