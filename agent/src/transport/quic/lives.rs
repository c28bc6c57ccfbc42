//! The newest life of every host that has said hello, and its connections to us.
//!
//! A host's boot id grows at every start. A hello of an earlier life is refused, and a
//! later one ends the connections of the earlier, so that a message that was on its way
//! when an agent died is never taken for its successor's. Pure; the connection type is a
//! parameter so that tests need none.

use std::collections::HashMap;

use redmesh_api::ids::HostId;

use super::hello::Hello;

/// Hosts remembered; beyond, those without a connection make room.
pub const HOSTS_MAX: usize = 4096;

/// Connections that one host may have to us: one, and room for its successor while
/// the older one has not been missed yet.
pub const CONNECTIONS_PER_HOST_MAX: usize = 4;

struct Life<C> {
    boot_id: u64,
    name: String,
    addr: std::net::SocketAddr,
    /// Oldest first, by the connection's number.
    connections: Vec<(usize, C)>,
}

/// See the module.
pub struct Lives<C> {
    hosts: HashMap<HostId, Life<C>>,
}

impl<C> Default for Lives<C> {
    fn default() -> Self {
        Self { hosts: HashMap::new() }
    }
}

impl<C> Lives<C> {
    /// Takes a connection in, or says why not. What comes back are the connections
    /// that have to be closed because of it, and whether this is a new life.
    pub fn admit(&mut self, hello: &Hello, number: usize, connection: C) -> Result<(Vec<C>, bool), String> {
        if self.hosts.len() >= HOSTS_MAX && !self.hosts.contains_key(&hello.id) {
            self.hosts.retain(|_, life| !life.connections.is_empty());
            if self.hosts.len() >= HOSTS_MAX {
                return Err(format!("{HOSTS_MAX} hosts are connected already"));
            }
        }
        let life = self.hosts.entry(hello.id).or_insert_with(|| Life {
            boot_id: hello.boot_id,
            name: hello.name.clone(),
            addr: hello.addr,
            connections: Vec::new(),
        });
        if hello.boot_id < life.boot_id {
            return Err(format!(
                "{} says that it is life {} of host {}, and its life {} was here already: an older agent still \
                 runs, or the state directory was restored from a backup (then empty it, and join as a new host)",
                hello.name, hello.boot_id, hello.id, life.boot_id
            ));
        }
        let twin = life.name != hello.name || (life.boot_id == hello.boot_id && life.addr != hello.addr);
        if twin && !life.connections.is_empty() {
            return Err(format!(
                "host id {} is {} at {} already, not {} at {}: was a state directory copied? Empty one of the two \
                 and start its agent again",
                hello.id, life.name, life.addr, hello.name, hello.addr
            ));
        }
        let newer = hello.boot_id > life.boot_id;
        let mut closing = Vec::new();
        if newer {
            closing.extend(life.connections.drain(..).map(|(_, connection)| connection));
        } else if life.connections.len() >= CONNECTIONS_PER_HOST_MAX {
            closing.push(life.connections.remove(0).1);
        }
        life.boot_id = hello.boot_id;
        life.name.clone_from(&hello.name);
        life.addr = hello.addr;
        life.connections.push((number, connection));
        Ok((closing, newer))
    }

    /// All connections.
    #[cfg(test)]
    pub fn connections(&self) -> impl Iterator<Item = &C> {
        self.hosts.values().flat_map(|life| life.connections.iter().map(|(_, connection)| connection))
    }

    /// Forgets a connection that has ended. The life stays known.
    pub fn leave(&mut self, id: HostId, number: usize) {
        if let Some(life) = self.hosts.get_mut(&id) {
            life.connections.retain(|(n, _)| *n != number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(boot_id: u64, name: &str, port: u16) -> Hello {
        Hello {
            protocol: super::super::hello::HELLO_PROTOCOL,
            id: HostId(7),
            name: name.into(),
            boot_id,
            addr: ([127, 0, 0, 1], port).into(),
            mesh_name: "m".into(),
            mesh_id: None,
            agent_version: "1".into(),
        }
    }

    #[test]
    fn a_later_life_ends_the_earlier_ones_connections_and_an_earlier_one_is_refused() {
        let mut lives = Lives::default();
        assert_eq!(lives.admit(&hello(3, "a", 1), 1, "x").unwrap(), (vec![], false));
        assert_eq!(lives.admit(&hello(3, "a", 1), 2, "y").unwrap(), (vec![], false));
        assert_eq!(lives.admit(&hello(4, "a", 1), 3, "z").unwrap(), (vec!["x", "y"], true));
        assert!(lives.admit(&hello(3, "a", 1), 4, "w").unwrap_err().contains("older agent"));
        lives.leave(HostId(7), 3);
        assert!(lives.admit(&hello(3, "a", 1), 5, "w").is_err(), "a life is known after its last connection");
    }

    #[test]
    fn one_id_at_two_places_is_refused_while_the_first_is_there() {
        let mut lives = Lives::default();
        lives.admit(&hello(1, "a", 1), 1, ()).unwrap();
        assert!(lives.admit(&hello(1, "a", 2), 2, ()).unwrap_err().contains("state directory copied"));
        assert!(lives.admit(&hello(9, "b", 1), 3, ()).unwrap_err().contains("state directory copied"));
        lives.leave(HostId(7), 1);
        lives.admit(&hello(2, "b", 2), 4, ()).unwrap();
    }

    #[test]
    fn a_host_that_connects_again_and_again_keeps_few_connections() {
        let mut lives = Lives::default();
        let closed: usize = (0..20).map(|n| lives.admit(&hello(1, "a", 1), n, n).unwrap().0.len()).sum();
        assert_eq!(closed, 20 - CONNECTIONS_PER_HOST_MAX);
    }
}
