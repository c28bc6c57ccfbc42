//! The mesh's own certificate authority: `pki init`, `pki issue`, `pki signer`, `pki show`.
//!
//! A CA directory holds `ca.pem`, `ca.key` and `redis.secret`; every identity issued is a
//! directory with `ca.pem`, `cert.pem` and `key.pem` to be carried to its host, a host's
//! also with `redis.secret`, from which the redis-servers' passwords come. Nothing is ever
//! overwritten unasked, and no private key is ever readable by others, not even while it
//! is being written. What is issued is not revoked here: a mesh removes hosts and revokes
//! operators, and by that refuses what was issued to them until then.

mod redis_secret;

#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use redmesh_api::issue::{self, SIGNER_CERT_FILE, SIGNER_KEY_FILE, Validity};
use redmesh_api::secret::{REDIS_SECRET_FILE, RedisSecret, RedisSecrets};
use redmesh_api::tls::{self, NAME_BYTES_MAX, Role};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};

use redis_secret::RedisSecretArgs;

/// Days that a CA is valid unless said otherwise.
pub const CA_DAYS: u32 = 3650;

/// Days that a host's or operator's certificate is valid unless said otherwise.
pub const LEAF_DAYS: u32 = 365;

/// Days that a signer is valid unless said otherwise.
pub const SIGNER_DAYS: u32 = 90;

/// Longest validity that can be asked for, days.
pub const DAYS_MAX: i64 = 36500;

/// `redmeshctl pki …`
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make a mesh's certificate authority
    #[command(after_help = "Examples:\n  redmeshctl pki init --dir pki --mesh prod")]
    Init(InitArgs),
    /// Issue a certificate for a host or for an operator
    #[command(after_help = ISSUE_EXAMPLES)]
    Issue(IssueArgs),
    /// Make a key with which a host's agent signs for hosts that join by token
    #[command(after_help = SIGNER_EXAMPLES)]
    Signer(SignerArgs),
    /// Print what a certificate says
    #[command(after_help = "Examples:\n  redmeshctl pki show pki/db-1\n  redmeshctl pki show pki/ca.pem")]
    Show(ShowArgs),
    /// Print the password that clients of the mesh's redis-servers give
    #[command(after_help = REDIS_PASSWORD_EXAMPLES)]
    RedisPassword(RedisPasswordArgs),
    /// Let another secret take the place of the one that the redis-servers' passwords come from
    #[command(after_help = redis_secret::EXAMPLES)]
    RedisSecret(RedisSecretArgs),
}

const ISSUE_EXAMPLES: &str = "\
Examples:
  redmeshctl pki issue --dir pki --host db-1 --ip 10.0.0.1
  redmeshctl pki issue --dir pki --host db-1 --ip 10.0.0.1 --renew
  redmeshctl pki issue --dir pki --operator alice --out ~/.config/redmesh
  redmeshctl pki issue --dir pki --operator watcher --read-only";

const SIGNER_EXAMPLES: &str = "\
Examples:
  redmeshctl pki signer --dir pki --host db-1
  redmeshctl pki signer --dir pki --host db-1 --renew";

const REDIS_PASSWORD_EXAMPLES: &str = "\
Examples, which keep the password off the command line:
  REDISCLI_AUTH=$(redmeshctl pki redis-password --dir pki) redis-cli -c -h 10.0.0.1

It is the default user's, and may do everything that Redis can. Agents have a user of
their own, and where redis.directives sets requirepass, that is the clients' password.";

/// Arguments of `pki init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Directory to make ca.pem and ca.key in
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Name of the mesh, for people who read the certificate
    #[arg(long, value_name = "NAME", default_value = "redmesh")]
    pub mesh: String,
    /// Days that the CA is valid
    #[arg(long, default_value_t = CA_DAYS, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    pub days: u32,
}

/// Arguments of `pki issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// Directory with ca.pem and ca.key
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Name of the host that the certificate is for
    #[arg(long, value_name = "NAME", required_unless_present = "operator", requires = "ip")]
    pub host: Option<String>,
    /// Address that the host's agent is reached at; repeat for further ones
    #[arg(long, value_name = "IP", conflicts_with = "operator")]
    pub ip: Vec<IpAddr>,
    /// Name of the operator that the certificate is for
    #[arg(long, value_name = "NAME", conflicts_with = "host")]
    pub operator: Option<String>,
    /// The operator may look at the mesh and its runs, and change nothing
    #[arg(long, conflicts_with = "host")]
    pub read_only: bool,
    /// Days that the certificate is valid
    #[arg(long, default_value_t = LEAF_DAYS, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    pub days: u32,
    /// Directory to write ca.pem, cert.pem and key.pem into [default: DIR/NAME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replace the certificate and the key that are there
    #[arg(long)]
    pub renew: bool,
    /// Begin the validity so many days ago (for tests of expired certificates)
    #[arg(long, hide = true, value_parser = clap::value_parser!(u32).range(0..=DAYS_MAX))]
    pub valid_from_days_ago: Option<u32>,

    /// End the validity after so many seconds (for tests of certificates that expire in use)
    #[arg(long, hide = true, conflicts_with = "valid_from_days_ago", value_parser = clap::value_parser!(u32).range(1..))]
    pub valid_for_seconds: Option<u32>,
}

/// Arguments of `pki signer`.
#[derive(Debug, Args)]
pub struct SignerArgs {
    /// Directory with ca.pem and ca.key
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Name of the host that is to sign
    #[arg(long, value_name = "NAME")]
    pub host: String,
    /// Days that it may sign
    #[arg(long, default_value_t = SIGNER_DAYS, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    pub days: u32,
    /// Directory to write signer.pem and signer.key into [default: DIR/NAME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replace the signer that is there
    #[arg(long)]
    pub renew: bool,
}

/// Arguments of `pki show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// An identity's directory (cert.pem), a CA's (ca.pem), or a PEM file
    #[arg(value_name = "DIR")]
    pub path: PathBuf,
}

/// Arguments of `pki redis-password`.
#[derive(Debug, Args)]
pub struct RedisPasswordArgs {
    /// Directory that `pki init` made, or a host's identity: it holds redis.secret
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The password of before, while another takes its place (`pki redis-secret --renew`)
    #[arg(long)]
    pub former: bool,
}

/// From now (less a little, since clocks differ) for so long.
fn lasting(duration: Duration) -> Validity {
    let now = OffsetDateTime::now_utc();
    Validity { from: now - tls::BACKDATED, until: now + duration }
}

fn for_days(days: u32) -> Validity {
    lasting(Duration::days(i64::from(days)))
}

/// For `days` from `days_ago` on; over already when that is longer ago.
pub fn days_since(days_ago: u32, days: u32) -> Validity {
    let from = OffsetDateTime::now_utc() - Duration::days(i64::from(days_ago));
    Validity { from, until: from + Duration::days(i64::from(days)) }
}

/// Runs a command and returns what to print.
pub fn run(command: &PkiCommand) -> Result<String> {
    match command {
        PkiCommand::Init(args) => {
            init_for(&args.dir, &args.mesh, for_days(args.days))?;
            Ok(format!(
                "Made the CA of mesh {:?} in {dir} (keep {dir}/ca.key to yourself; hosts never need it), and the \
                 secret of its redis-servers' passwords.\nNext: redmeshctl pki issue --dir {dir} --host NAME --ip \
                 ADDRESS",
                args.mesh,
                dir = args.dir.display()
            ))
        }
        PkiCommand::Issue(args) => {
            let subject = match (&args.host, &args.operator) {
                (Some(name), None) => Subject::Host { name, ips: &args.ip },
                (None, Some(name)) => Subject::Operator { name, read_only: args.read_only },
                _ => bail!("give either --host NAME or --operator NAME"),
            };
            let validity = match (args.valid_from_days_ago, args.valid_for_seconds) {
                (Some(ago), _) => days_since(ago, args.days),
                (None, Some(seconds)) => lasting(Duration::seconds(i64::from(seconds))),
                (None, None) => for_days(args.days),
            };
            let out = args.out.clone().unwrap_or_else(|| args.dir.join(subject.name()));
            issue(&args.dir, subject, &out, validity, args.renew)?;
            let files = match subject {
                Subject::Host { .. } => "ca.pem, cert.pem, key.pem and redis.secret",
                Subject::Operator { .. } => "ca.pem, cert.pem and key.pem",
            };
            Ok(format!("Wrote {files} into {}", out.display()))
        }
        PkiCommand::Signer(args) => {
            let out = args.out.clone().unwrap_or_else(|| args.dir.join(&args.host));
            signer(&args.dir, &args.host, &out, for_days(args.days), args.renew)?;
            Ok(format!(
                "Wrote {SIGNER_CERT_FILE} and {SIGNER_KEY_FILE} into {}: in the identity directory of host {} they let \
                 its agent make hosts' certificates (after a restart of the agent)",
                out.display(),
                args.host
            ))
        }
        PkiCommand::Show(args) => show(&args.path),
        PkiCommand::RedisPassword(args) => redis_secret::password(&args.dir, args.former),
        PkiCommand::RedisSecret(args) => redis_secret::run(args),
    }
}

/// Makes a CA in `dir`, and the secret of the mesh's redis-servers.
pub fn init(dir: &Path, mesh: &str) -> Result<()> {
    init_for(dir, mesh, for_days(CA_DAYS))
}

/// Issues a host's identity into `dir/name`, which it returns.
pub fn issue_host(dir: &Path, name: &str, ips: &[IpAddr]) -> Result<PathBuf> {
    let out = dir.join(name);
    issue(dir, Subject::Host { name, ips }, &out, for_days(LEAF_DAYS), false)?;
    Ok(out)
}

/// Issues an operator's identity into `dir/name`, which it returns.
pub fn issue_operator(dir: &Path, name: &str) -> Result<PathBuf> {
    let out = dir.join(name);
    issue(dir, Subject::Operator { name, read_only: false }, &out, for_days(LEAF_DAYS), false)?;
    Ok(out)
}

/// Whom a certificate is for.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// An agent, and every address that it is reached at.
    Host {
        /// Its name.
        name: &'a str,
        /// Its addresses.
        ips: &'a [IpAddr],
    },
    /// A person.
    Operator {
        /// Their name.
        name: &'a str,
        /// Whether they may only look.
        read_only: bool,
    },
}

impl<'a> Subject<'a> {
    fn name(self) -> &'a str {
        match self {
            Self::Host { name, .. } | Self::Operator { name, .. } => name,
        }
    }

    fn role(self) -> Role {
        match self {
            Self::Host { .. } => Role::Host,
            Self::Operator { read_only: false, .. } => Role::Operator,
            Self::Operator { read_only: true, .. } => Role::Reader,
        }
    }
}

/// [`init`] with a validity.
pub fn init_for(dir: &Path, mesh: &str, validity: Validity) -> Result<()> {
    ensure!(
        !mesh.is_empty() && mesh.chars().count() <= 64 && !mesh.chars().any(char::is_control),
        "mesh name {mesh:?} must have 1 to 64 characters and no control characters"
    );
    for file in ["ca.pem", "ca.key", REDIS_SECRET_FILE] {
        let path = dir.join(file);
        ensure!(
            !path.try_exists().with_context(|| format!("can't look for {}", path.display()))?,
            "{} is there already: every certificate of its mesh depends on it, so it is never overwritten. \
             Choose another --dir for another mesh",
            path.display()
        );
    }
    let key = KeyPair::generate().context("can't generate a key")?;
    let mut params = CertificateParams::default();
    // One level of signers may stand below it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::OrganizationName, mesh);
    // Two CAs of meshes of the same name must differ, or the wrong one looks like a forgery.
    let number = uuid::Uuid::new_v4().simple().to_string();
    params.distinguished_name.push(DnType::CommonName, format!("redmesh CA {}", &number[..8]));
    (params.not_before, params.not_after) = (validity.from, validity.until);
    let ca = params.self_signed(&key).context("can't sign the CA's certificate")?;
    make_dir(dir)?;
    let secret = RedisSecret::generate()?;
    create(&dir.join(REDIS_SECRET_FILE), RedisSecrets::from(secret).file_text().as_bytes(), 0o600)?;
    // The key first: a certificate without its key would look like a finished CA.
    create(&dir.join("ca.key"), key.serialize_pem().as_bytes(), 0o600)?;
    create(&dir.join("ca.pem"), ca.pem().as_bytes(), 0o644)
}

/// Issues an identity into `out`. What is there is replaced with `renew` only.
pub fn issue(dir: &Path, subject: Subject<'_>, out: &Path, validity: Validity, renew: bool) -> Result<()> {
    let (role, name) = (subject.role(), subject.name());
    ensure!(
        tls::valid_name(name),
        "{role} name {name:?} must be 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, with no - at either end"
    );
    if let Subject::Host { ips, .. } = subject {
        ensure!(!ips.is_empty(), "host {name} needs at least one --ip: agents are dialled by address");
        if let Some(ip) = ips.iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
            bail!("{ip} is not an address that host {name} can be reached at");
        }
    }
    let (ca_pem, issuer) = authority(dir)?;
    let secret = match subject {
        Subject::Host { .. } => Some(RedisSecrets::load(dir)?),
        Subject::Operator { .. } => None,
    };
    for file in ["cert.pem", "key.pem"] {
        let path = out.join(file);
        let there = path.try_exists().with_context(|| format!("can't look for {}", path.display()))?;
        ensure!(renew || !there, "{} is there already: --renew replaces it", path.display());
    }
    let key = KeyPair::generate().context("can't generate a key")?;
    let ips = match subject {
        Subject::Host { ips, .. } => ips,
        Subject::Operator { .. } => &[],
    };
    let cert = issue::leaf(&issue::names(role, name, ips), &key, &issuer, validity)
        .context("can't sign the certificate")?;
    make_dir(out)?;
    replace(&out.join("ca.pem"), ca_pem.as_bytes(), 0o644)?;
    if let Some(secret) = secret {
        replace(&out.join(REDIS_SECRET_FILE), secret.file_text().as_bytes(), 0o600)?;
    }
    // Each by a rename; an agent that reads between the two says that they don't match.
    replace(&out.join("key.pem"), key.serialize_pem().as_bytes(), 0o600)?;
    replace(&out.join("cert.pem"), cert.pem().as_bytes(), 0o644)
}

/// Makes a signer for the host `name`, into `out`.
pub fn signer(dir: &Path, name: &str, out: &Path, validity: Validity, renew: bool) -> Result<()> {
    ensure!(tls::valid_name(name), "{name:?} is no host's name: 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -");
    let (_, issuer) = authority(dir)?;
    for file in [SIGNER_CERT_FILE, SIGNER_KEY_FILE] {
        let path = out.join(file);
        let there = path.try_exists().with_context(|| format!("can't look for {}", path.display()))?;
        ensure!(renew || !there, "{} is there already: --renew replaces it", path.display());
    }
    let key = KeyPair::generate().context("can't generate a key")?;
    let cert = issue::signer(name, &key, &issuer, validity).context("can't sign the certificate")?;
    make_dir(out)?;
    replace(&out.join(SIGNER_KEY_FILE), key.serialize_pem().as_bytes(), 0o600)?;
    replace(&out.join(SIGNER_CERT_FILE), cert.pem().as_bytes(), 0o644)
}

fn authority(dir: &Path) -> Result<(String, Issuer<'static, KeyPair>)> {
    let (pem_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
    let read = |path: &Path| {
        fs::read_to_string(path).with_context(|| match path.try_exists() {
            Ok(false) => format!(
                "{} is missing: make a CA with `redmeshctl pki init --dir {}`, or name the directory that has it",
                path.display(),
                dir.display()
            ),
            _ => format!("can't read {}", path.display()),
        })
    };
    let (ca_pem, key_pem) = (read(&pem_path)?, read(&key_path)?);
    let key = KeyPair::from_pem(&key_pem)
        .with_context(|| format!("{} holds no usable private key", key_path.display()))?;
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map_err(|error| anyhow::anyhow!("{} holds no certificate: {error}", pem_path.display()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der)
        .with_context(|| format!("{} can't be parsed", pem_path.display()))?;
    ensure!(
        parsed.public_key().raw == key.subject_public_key_info(),
        "{} is not the key of {}: a certificate signed with it would be refused by every agent. Restore both from \
         the same `redmeshctl pki init`",
        key_path.display(),
        pem_path.display()
    );
    ensure!(parsed.is_ca(), "{} is not a CA's certificate", pem_path.display());
    let issuer = Issuer::from_ca_cert_der(&der, key)
        .with_context(|| format!("{} can't be used as a CA", pem_path.display()))?;
    Ok((ca_pem, issuer))
}

/// What a certificate says, for people.
pub fn show(path: &Path) -> Result<String> {
    let candidates = [path.join("cert.pem"), path.join("ca.pem")];
    let file = candidates.iter().find(|file| file.is_file()).map_or(path, PathBuf::as_path);
    let pem = fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
    let der = CertificateDer::from_pem_slice(&pem)
        .map_err(|error| anyhow::anyhow!("{} holds no certificate: {error}", file.display()))?;
    let (_, cert) = x509_parser::parse_x509_certificate(&der)
        .with_context(|| format!("{} can't be parsed", file.display()))?;
    let mut lines = vec![format!("file        {}", file.display())];
    match tls::peer_of(std::slice::from_ref(&der)) {
        Ok((Role::Reader, name)) => lines.push(format!("operator    {name} (read-only)")),
        Ok((role, name)) => lines.push(format!("{:<11} {name}", role.to_string())),
        Err(_) if cert.is_ca() => lines.push("role        certificate authority".into()),
        Err(error) => lines.push(format!("role        none: {error}")),
    }
    lines.push(format!("subject     {}", cert.subject()));
    lines.push(format!("issuer      {}", cert.issuer()));
    let sans = cert.subject_alternative_name().ok().flatten();
    for san in sans.iter().flat_map(|sans| &sans.value.general_names) {
        lines.push(match san {
            x509_parser::extensions::GeneralName::DNSName(name) => format!("name        {name}"),
            x509_parser::extensions::GeneralName::IPAddress(bytes) => format!("address     {}", ip(bytes)),
            other => format!("other name  {other:?}"),
        });
    }
    let validity = cert.validity();
    lines.push(format!("valid from  {}", validity.not_before));
    let state = match validity.time_to_expiration() {
        Some(left) if validity.is_valid() => format!("{} days left", left.whole_days()),
        _ if validity.not_before > x509_parser::time::ASN1Time::now() => "not valid yet".into(),
        _ => "EXPIRED".into(),
    };
    lines.push(format!("valid until {} ({state})", validity.not_after));
    Ok(lines.join("\n"))
}

fn ip(bytes: &[u8]) -> String {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(v4).to_string()
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        IpAddr::from(v6).to_string()
    } else {
        format!("{bytes:02x?}")
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("can't make directory {}", dir.display()))
}

/// A file that wasn't there before.
fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    write_new(path, bytes, mode).with_context(|| format!("can't write {}", path.display()))
}

/// A file that is replaced as a whole or not at all.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let temporary = path.with_extension("new");
    let replaced = match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => write_new(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path)),
    };
    replaced.with_context(|| format!("can't write {}", path.display()))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
