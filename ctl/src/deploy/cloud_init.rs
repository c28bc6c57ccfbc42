//! `deploy cloud-init`: user data that makes a fresh Debian or Ubuntu host a member.
//!
//! Each host's file holds its own key and the mesh's redis.secret, and is written for its owner
//! alone. What it does on the host may be done again at any time and then changes
//! nothing: joining is the agent's work. The package brings the kernel's settings, the
//! user and the unit.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use redmesh_api::issue::{SIGNER_CERT_FILE, SIGNER_KEY_FILE};
use redmesh_api::join::JoinToken;
use redmesh_api::secret::{REDIS_SECRET_FILE, RedisSecrets};
use serde::Serialize;

use super::hosts::{self, HostSpec};
use crate::exit::Exit;
use crate::output::Output;
use crate::pki;
use crate::session::MESH_PORT_DEFAULT;

/// Examples of `deploy cloud-init`.
pub const EXAMPLES: &str = "\
Examples:
  redmeshctl pki init --dir pki --mesh prod
  redmeshctl deploy cloud-init --pki pki --mesh prod --hosts db-1=10.0.0.1,db-2=10.0.0.2,db-3=10.0.0.3 \\
      --package https://example.com/redmesh-agent_0.1.0-1_amd64.deb --sha256 DIGEST --out user-data
  redmeshctl join-token create --ttl 2h --uses 7 --out join-token
  redmeshctl deploy cloud-init --join-token join-token --mesh prod --hosts db-1=10.0.0.1,db-2=10.0.0.2 \\
      --package /opt/redmesh-agent.deb --out user-data        one file for all new hosts";

/// Hosts that a new one asks first; any that lives will do.
const SEEDS: usize = 3;

/// Port of `/metrics`.
const HTTP_PORT: u16 = 7380;

/// Largest file with further configuration, bytes. Providers take 16 to 32 KB of user data.
const EXTRA_BYTES_MAX: u64 = 8 * 1024;

/// Arguments of `deploy cloud-init`.
#[derive(Debug, Args)]
pub struct CloudInitArgs {
    /// All hosts of the mesh, as name=address; with --join-token those that the new ones ask:
    /// they run already, and have a signer
    #[arg(long, required = true, value_delimiter = ',', value_name = "NAME=IP,…")]
    pub hosts: Vec<HostSpec>,
    /// Name of the mesh
    #[arg(long, default_value = "redmesh", value_name = "NAME")]
    pub mesh: String,
    /// Directory with ca.pem and ca.key, as made by `pki init`; certificates that are there
    /// already are used again
    #[arg(long, value_name = "DIR", required_unless_present = "join_token", conflicts_with = "join_token")]
    pub pki: Option<PathBuf>,
    /// File with a token of `join-token create`: writes one file for all new hosts, which get
    /// their certificates by it, and their names and addresses from the machine
    #[arg(long, value_name = "FILE")]
    pub join_token: Option<PathBuf>,
    /// The agent's package: an https:// address, or an absolute path on the hosts' image
    #[arg(long, value_name = "URL|PATH")]
    pub package: String,
    /// SHA-256 of the package, in hex; needed with an address
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,
    /// Hosts that must see each other before the mesh initialises itself [default: more than
    /// half]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub expect: Option<u16>,
    /// TOML to add to every host's agent.toml, for example [redis.directives]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory to write NAME.yaml into, a file per host, or join.yaml
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// What all hosts have in common.
#[derive(Debug)]
struct Common<'a> {
    mesh: &'a str,
    expect: u16,
    seeds: Vec<SocketAddr>,
    package: Package<'a>,
    extra: &'a str,
}

/// Where the package comes from.
#[derive(Debug)]
enum Package<'a> {
    Url { url: &'a str, sha256: &'a str },
    Path(&'a str),
}

/// What makes a host a member, PEM.
#[derive(Debug)]
struct Certificates {
    ca: String,
    cert: String,
    key: String,
    /// Certificate and key of a signer, where `pki signer` has made one.
    signer: Option<(String, String)>,
    /// No PEM, but the secret of the redis-servers' passwords.
    redis_secret: String,
}

#[derive(Debug, Serialize)]
struct Written {
    host: String,
    ip: IpAddr,
    file: PathBuf,
}

/// Issues what is missing and writes the files.
pub fn run(args: &CloudInitArgs, output: &Output) -> Result<Exit> {
    hosts::check(&args.hosts)?;
    let count = u16::try_from(args.hosts.len())?;
    // A host that joins must never found a mesh of its own, so it awaits another one.
    let least = if args.join_token.is_some() { 2 } else { 1 };
    let expect = args.expect.unwrap_or((count / 2 + 1).max(least));
    ensure!(expect >= least, "--expect {expect}: a host that joins must see at least one other");
    ensure!(
        args.join_token.is_some() || (expect <= count && expect > count / 2),
        "--expect {expect} must be more than half of the {count} hosts, and not more than there are"
    );
    let name_ok = args.mesh.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    ensure!(
        name_ok && (1..=63).contains(&args.mesh.len()),
        "--mesh {:?} must be 1 to 63 letters, digits or dashes",
        args.mesh
    );
    let extra = args.config.as_deref().map(extra).transpose()?.unwrap_or_default();
    let seeds = args.hosts.iter().take(SEEDS).map(|host| SocketAddr::new(host.ip, MESH_PORT_DEFAULT));
    let common = Common {
        mesh: &args.mesh,
        expect,
        seeds: seeds.collect(),
        package: package(&args.package, args.sha256.as_deref())?,
        extra: &extra,
    };
    std::fs::create_dir_all(&args.out).with_context(|| format!("can't make {}", args.out.display()))?;
    if let Some(file) = &args.join_token {
        return for_all(args, &common, file, output);
    }
    let Some(pki) = &args.pki else { bail!("--pki DIR, or --join-token FILE") };
    let mut written = Vec::new();
    for host in &args.hosts {
        let text = render(host, &common, &certificates(pki, host)?);
        let file = args.out.join(format!("{}.yaml", host.name));
        write_private(&file, &text)?;
        written.push(Written { host: host.name.clone(), ip: host.ip, file });
    }
    let dir = args.out.display();
    output.answer(&written, || {
        format!(
            "Wrote user data for {count} hosts into {dir}; each file holds its host's private key and the redis-servers' secret.\n\
             Next: give each host its file, then redmeshctl --agent {}:{MESH_PORT_DEFAULT} members\n",
            args.hosts[0].ip
        )
    })?;
    Ok(Exit::Ok)
}

/// The user data of all hosts that join by one token.
fn for_all(args: &CloudInitArgs, common: &Common<'_>, file: &Path, output: &Output) -> Result<Exit> {
    let token = JoinToken::load(file)?;
    let path = args.out.join("join.yaml");
    write_private(&path, &render_join(common, &token))?;
    let said = serde_json::json!({ "token": token.id().to_string(), "file": path });
    output.answer(&said, || {
        format!(
            "Wrote user data for all new hosts into {}; it holds the join token {}.\n\
             Next: give it to each new host while the token is good, then redmeshctl join-token list\n",
            path.display(),
            token.id()
        )
    })?;
    Ok(Exit::Ok)
}

fn package<'a>(package: &'a str, sha256: Option<&'a str>) -> Result<Package<'a>> {
    // Both stand in a shell script.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/%+=?&@,".contains(&b);
    ensure!(package.bytes().all(plain), "--package {package:?} holds characters that no address needs");
    if package.starts_with('/') {
        ensure!(sha256.is_none(), "--sha256 goes with an address; {package} is on the image already");
        return Ok(Package::Path(package));
    }
    ensure!(
        package.starts_with("https://"),
        "--package {package:?} must be an https:// address or an absolute path on the hosts' image"
    );
    let Some(sha256) = sha256 else { bail!("--package with an address needs --sha256 (sha256sum FILE)") };
    ensure!(
        sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit()),
        "--sha256 {sha256:?} must be 64 hex digits"
    );
    Ok(Package::Url { url: package, sha256 })
}

fn extra(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path).with_context(|| format!("can't read {}", path.display()))?.len();
    ensure!(size <= EXTRA_BYTES_MAX, "{} has {size} bytes, more than {EXTRA_BYTES_MAX}", path.display());
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    let table: toml::Table =
        toml::from_str(&text).with_context(|| format!("{} is not TOML", path.display()))?;
    if let Some(section) =
        ["mesh", "http", "join", "identity"].iter().find(|section| table.contains_key(**section))
    {
        bail!("{} has a section [{section}], which is rendered for each host", path.display());
    }
    Ok(text)
}

/// A host's identity, issued unless it is there.
fn certificates(pki: &Path, host: &HostSpec) -> Result<Certificates> {
    let dir = pki.join(&host.name);
    if dir.join("key.pem").try_exists().with_context(|| format!("can't look into {}", dir.display()))? {
        let identity = redmesh_api::tls::Identity::load(&dir)?;
        ensure!(
            identity.names_ip(host.ip),
            "the certificate in {} is not for {}: redmeshctl pki issue --dir {} --host {} --ip {} --renew",
            dir.display(),
            host.ip,
            pki.display(),
            host.name,
            host.ip
        );
    } else {
        pki::issue_host(pki, &host.name, &[host.ip])?;
    }
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
    };
    let signer = match dir.join(SIGNER_KEY_FILE).exists() {
        true => Some((read(SIGNER_CERT_FILE)?, read(SIGNER_KEY_FILE)?)),
        false => None,
    };
    // One that is damaged is to be refused here, and not by the host's first start.
    let redis_secret = RedisSecrets::load(&dir)?.file_text();
    Ok(Certificates {
        ca: read("ca.pem")?,
        cert: read("cert.pem")?,
        key: read("key.pem")?,
        signer,
        redis_secret,
    })
}

fn agent_toml(host: &HostSpec, common: &Common<'_>) -> String {
    let seeds: Vec<_> = common.seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
    let mut text = format!(
        "# Host {}, rendered by redmeshctl deploy cloud-init.\n[mesh]\nname = \"{}\"\nlisten = \"{}\"\n\
         seeds = [{}]\nbootstrap_expect = {}\n\n[http]\nlisten = \"{}\"\n",
        host.name,
        common.mesh,
        SocketAddr::new(host.ip, MESH_PORT_DEFAULT),
        seeds.join(", "),
        common.expect,
        SocketAddr::new(host.ip, HTTP_PORT),
    );
    if !common.extra.is_empty() {
        let _ = write!(text, "\n{}\n", common.extra.trim_end());
    }
    text
}

/// Where a host's files lie until the script has put those in their places that are not
/// there yet: what was changed on the host since (a renewed certificate) must stay.
const SEED: &str = "/root/redmesh-seed";

/// The script that installs and starts: each step may be done again.
fn install(package: &Package<'_>, prepare: &str) -> String {
    let fetch = match package {
        Package::Path(path) => format!("  deb={path}\n"),
        Package::Url { url, sha256 } => format!(
            "  deb=/var/cache/redmesh-agent.deb\n\
             \x20 # apt's own way to fetch: it is on every image, and holds the file against its sum.\n\
             \x20 /usr/lib/apt/apt-helper download-file '{url}' \"$deb\" SHA256:{}\n",
            sha256.to_ascii_lowercase()
        ),
    };
    format!(
        "#!/bin/sh\n\
         # Makes this host a member; done again it changes nothing.\n\
         set -eu\n\
         export DEBIAN_FRONTEND=noninteractive\n\
         if ! dpkg-query -W -f '${{db:Status-Status}}' redmesh-agent 2>/dev/null | grep -qx installed; then\n\
         \x20 apt-get update -q\n\
         {fetch}\
         \x20 apt-get install -q -y --no-install-recommends \"$deb\"\n\
         fi\n\
{prepare}\
         # What is there already stays: it may be newer.\n\
         for file in agent.toml join-token identity/ca.pem identity/cert.pem identity/key.pem identity/redis.secret \\\n\
         \x20 identity/signer.pem identity/signer.key; do\n\
         \x20 [ -e \"{SEED}/$file\" ] || continue\n\
         \x20 [ -e \"/etc/redmesh/$file\" ] || cp -p \"{SEED}/$file\" \"/etc/redmesh/$file\"\n\
         done\n\
         systemd-tmpfiles --create redmesh-agent.conf\n\
         systemctl enable --now redmesh-agent\n\
         rm -rf {SEED}\n"
    )
}

/// The user data of one host.
fn render(host: &HostSpec, common: &Common<'_>, certificates: &Certificates) -> String {
    let mut text = format!(
        "#cloud-config\n\
         # Host {} of mesh {:?}. It holds the host's private key and the\n\
         # secret of the mesh's redis-servers: keep it to yourself.\n\
         write_files:\n",
        host.name, common.mesh
    );
    let mut file = |path: &str, mode: &str, content: &str| add_file(&mut text, path, mode, content);
    file(&format!("{SEED}/agent.toml"), "0640", &agent_toml(host, common));
    file(&format!("{SEED}/identity/ca.pem"), "0644", &certificates.ca);
    file(&format!("{SEED}/identity/cert.pem"), "0644", &certificates.cert);
    file(&format!("{SEED}/identity/key.pem"), "0600", &certificates.key);
    file(&format!("{SEED}/identity/{REDIS_SECRET_FILE}"), "0600", &certificates.redis_secret);
    if let Some((cert, key)) = &certificates.signer {
        file(&format!("{SEED}/identity/{SIGNER_CERT_FILE}"), "0644", cert);
        file(&format!("{SEED}/identity/{SIGNER_KEY_FILE}"), "0600", key);
    }
    file("/usr/local/sbin/redmesh-install", "0755", &install(&common.package, ""));
    text.push_str("runcmd:\n  - [/usr/local/sbin/redmesh-install]\n");
    text
}

/// Stands in the configuration where a host's own address is to be.
const OWN_ADDRESS: &str = "@ADDRESS@";

/// The user data of every host that joins by `token`.
fn render_join(common: &Common<'_>, token: &JoinToken) -> String {
    let seeds: Vec<_> = common.seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
    let mut config = format!(
        "# A host that joins by token, rendered by redmeshctl deploy cloud-init.\n[mesh]\nname = \"{}\"\n\
         listen = \"{OWN_ADDRESS}:{MESH_PORT_DEFAULT}\"\nseeds = [{}]\nbootstrap_expect = {}\n\n[http]\n\
         listen = \"{OWN_ADDRESS}:{HTTP_PORT}\"\n\n[join]\ntoken_file = \"/etc/redmesh/join-token\"\n\n\
         # The agent writes it itself.\n[identity]\ndir = \"/var/lib/redmesh/identity\"\n",
        common.mesh,
        seeds.join(", "),
        common.expect,
    );
    if !common.extra.is_empty() {
        let _ = write!(config, "\n{}\n", common.extra.trim_end());
    }
    let first = common.seeds.first().map(|seed| seed.ip().to_string()).unwrap_or_default();
    let prepare = format!(
        "# The address from which the mesh is reached is this host's in the mesh.\n\
         if [ -e {SEED}/agent.toml ] && ! [ -e /etc/redmesh/agent.toml ]; then\n\
         \x20 address=$(ip -o route get {first} | sed -n 's/.* src \\([0-9a-f.:]*\\).*/\\1/p')\n\
         \x20 [ -n \"$address\" ] || {{ echo \"no route to {first}\" >&2; exit 1; }}\n\
         \x20 case $address in *:*) address=\"[$address]\" ;; esac\n\
         \x20 sed -i \"s/{OWN_ADDRESS}/$address/\" {SEED}/agent.toml\n\
         fi\n"
    );
    let mut text = format!(
        "#cloud-config\n\
         # All new hosts of mesh {:?}. It holds the join token {}: keep it to yourself while that is good.\n\
         write_files:\n",
        common.mesh,
        token.id()
    );
    add_file(&mut text, &format!("{SEED}/agent.toml"), "0640", &config);
    add_file(&mut text, &format!("{SEED}/join-token"), "0600", &token.text());
    add_file(&mut text, "/usr/local/sbin/redmesh-install", "0755", &install(&common.package, &prepare));
    text.push_str("runcmd:\n  - [/usr/local/sbin/redmesh-install]\n");
    text
}

fn add_file(text: &mut String, path: &str, mode: &str, content: &str) {
    let _ = write!(text, "  - path: {path}\n    permissions: '{mode}'\n    content: |\n");
    for line in content.trim_end().lines() {
        // An empty line needs no indentation, and trailing blanks nobody.
        let _ = writeln!(text, "{}", format!("      {line}").trim_end());
    }
}

/// A file that nobody else may read, not even while it is written.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("new");
    let written = || {
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        std::fs::rename(&temporary, path)
    };
    written().with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests;
