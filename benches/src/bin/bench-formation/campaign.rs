//! Who forms what, in which order.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use redmesh_agent::supervisor::find_server;
use redmesh_benches::children::Children;
use redmesh_benches::machine;

use super::Options;
use super::after;
use super::cluster::{Formed, Outcome, Setting};
use super::redis_cli::{self, Settings};
use super::redmesh::{self, Way};
use super::report::{self, Peer, Row};
use super::watch::{Limits, MemoryWatch, anonymous_bytes};

/// Runs everything that `options` ask for; whether redmesh has formed each time.
pub fn run(options: &Options, children: &Children, out: &mut impl Write) -> anyhow::Result<bool> {
    let bin: PathBuf = match &options.bin {
        Some(dir) => dir.clone(),
        None => std::env::current_exe()?.parent().context("this program has no directory")?.to_owned(),
    };
    // It is started in other directories than this one. Not resolved to the end: by its
    // name the binary knows which of its tools it is.
    let server = std::path::absolute(find_server(options.server.as_deref())?)?;
    let setting = |instances: u16| Setting {
        hosts: options.hosts,
        per_host: instances / options.hosts,
        first_ip: options.first_ip,
        server: server.clone(),
        cli: options.cli.clone(),
        bin: bin.clone(),
        deadline: Duration::from_secs(options.deadline.into()),
        memory_floor_bytes: options.memory_floor << 20,
    };
    let (peers, rounds): (&[Peer], u16) = match options.repeat {
        Some(times) => (&[Peer::Redmesh], times),
        None => (&options.by, options.rounds),
    };
    let mut sizes: Vec<(u16, &[Peer])> = options.instances.iter().map(|size| (*size, peers)).collect();
    sizes.extend(options.largest.map(|size| (size, &[Peer::Redmesh] as &[Peer])));

    let mut rows: Vec<Row> = Vec::new();
    for (size, peers) in sizes {
        let setting = setting(size);
        let first = rows.len();
        rows.extend(peers.iter().map(|peer| Row::new(*peer, setting.instances())));
        for round in 1..=rounds {
            for row in &mut rows[first..] {
                let outcome = form(row.peer, &setting, children)?;
                let line = report::line(row.peer, setting.instances(), round, &outcome);
                writeln!(std::io::stderr(), "{line}")?;
                if options.json {
                    writeln!(out, "{}", report::json(row.peer, setting.instances(), round, &outcome))?;
                    out.flush()?;
                }
                row.outcomes.push(outcome);
            }
        }
    }
    if !options.json {
        writeln!(out, "{}, {}\n", machine::describe(&options.cli)?, server.display())?;
        writeln!(out, "{}", report::render(&rows, rounds, options.deadline))?;
    }
    let failed = |row: &Row| row.outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failed(_)));
    Ok(!rows.iter().any(|row| row.peer.is_redmesh() && failed(row)))
}

/// One formation and what must hold after it; all of it is gone when this returns. A
/// formation that fails is an outcome, an interruption an error.
fn form(peer: Peer, setting: &Setting, children: &Children) -> anyhow::Result<Outcome> {
    match try_form(peer, setting, children) {
        Ok(formed) => Ok(Outcome::Formed(formed)),
        Err(error) if children.interrupted() => Err(error),
        Err(error) => Ok(Outcome::Failed(format!("{error:#}"))),
    }
}

fn try_form(peer: Peer, setting: &Setting, children: &Children) -> anyhow::Result<Formed> {
    let memory = MemoryWatch::begin(setting.memory_floor_bytes)?;
    let limits = || Limits::new(children, setting.deadline, &memory);
    // Checked with a deadline of its own, so that it takes none of the formation's.
    let finish = |phases, restart: &mut dyn FnMut() -> anyhow::Result<()>| {
        let peak_bytes = memory.peak_bytes();
        let servers_bytes = anonymous_bytes(&setting.addresses())?;
        after::check(setting, &limits(), children)?;
        let rejoin_s = after::kill_and_rejoin(setting, &limits(), restart)?;
        Ok(Formed { phases, peak_bytes, servers_bytes, rejoin_s })
    };
    match peer {
        Peer::Redmesh | Peer::RedmeshMeet => {
            let way = if peer == Peer::Redmesh { Way::Seeded } else { Way::Meet };
            let (mesh, phases) = redmesh::form(way, setting, &limits(), children)?;
            let formed = finish(phases, &mut || Ok(()));
            drop(mesh);
            formed
        }
        Peer::RedisCli | Peer::RedisCliStock => {
            let settings = if peer == Peer::RedisCli { Settings::AsRedmesh } else { Settings::Stock };
            let (mut servers, phases) = redis_cli::form(settings, setting, &limits(), children)?;
            let last = setting.instances() - 1;
            finish(phases, &mut || servers.restart(last))
        }
    }
}
