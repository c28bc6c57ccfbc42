//! `pki redis-secret`: another secret for the redis-servers' passwords, in two steps with
//! time between them, in which servers accept what comes from either.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use redmesh_api::secret::{REDIS_SECRET_FILE, RedisSecret, RedisSecrets};

use super::replace;

pub(super) const EXAMPLES: &str = "\
Examples:
  redmeshctl pki redis-secret --dir pki             which one is good, by its fingerprint
  redmeshctl pki redis-secret --dir pki --renew     begin: the files hold a new one and the former
  redmeshctl pki redis-secret --dir pki --finish    end it: the files hold the new one alone

After each step copy redis.secret to every host, in any order; running agents take it up within
seconds, and `redmeshctl members` says how far they are. Between the steps give clients the new
password (pki redis-password): both are good.";

/// Arguments of `pki redis-secret`.
#[derive(Debug, Args)]
pub struct RedisSecretArgs {
    /// Directory that `pki init` made
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Make a new secret, and keep the former one beside it
    #[arg(long, conflicts_with = "finish")]
    pub renew: bool,
    /// Take the former secret away, once `redmeshctl members` says that all hosts use the new one
    #[arg(long)]
    pub finish: bool,
}

/// The clients' password.
pub(super) fn password(dir: &Path, former: bool) -> Result<String> {
    let secrets = RedisSecrets::load(dir)?;
    match (former, secrets.former()) {
        (false, _) => Ok(secrets.newest().client_password()),
        (true, Some(former)) => Ok(former.client_password()),
        (true, None) => {
            bail!("{} holds one secret: there is no former one", dir.join(REDIS_SECRET_FILE).display())
        }
    }
}

/// Runs it and returns what to print.
pub(super) fn run(args: &RedisSecretArgs) -> Result<String> {
    let dir = &args.dir;
    let now = RedisSecrets::load(dir)?;
    let newest = now.newest().fingerprint();
    let former = now.former().map(RedisSecret::fingerprint);
    if !args.renew && !args.finish {
        return Ok(match former {
            None => format!("The secret of the redis-servers is {newest}"),
            Some(former) => format!(
                "The secret of the redis-servers is {newest}; {former}, the former one, is still good"
            ),
        });
    }
    ensure!(
        dir.join("ca.key").exists(),
        "{} is no directory that `pki init` made: there is no ca.key, and a secret that one host alone has is of no use",
        dir.display()
    );
    let next = match (args.renew, former) {
        (true, None) => RedisSecrets::with(RedisSecret::generate()?, Some(now.newest().clone())),
        (true, Some(former)) => bail!(
            "{newest} is still taking the place of {former}: end that first (`pki redis-secret --finish`)"
        ),
        (false, Some(_)) => RedisSecrets::from(now.newest().clone()),
        (false, None) => bail!("nothing is to be ended: {newest} is the only secret in {}", dir.display()),
    };
    let copies = copies(dir)?;
    // The CA's first: if it ends here, the same command says what is still to be copied.
    for path in std::iter::once(dir.join(REDIS_SECRET_FILE)).chain(copies.iter().cloned()) {
        replace(&path, next.file_text().as_bytes(), 0o600)?;
    }
    let of = format!(
        "{} and into {} hosts' directories beside it",
        dir.join(REDIS_SECRET_FILE).display(),
        copies.len()
    );
    Ok(match args.renew {
        true => format!(
            "Wrote the new secret {} and the former {newest} into {of}.\nNext: copy {REDIS_SECRET_FILE} to every host, \
             give clients the new password (pki redis-password), and end it with --finish once `redmeshctl members` says \
             that all hosts use it",
            next.newest().fingerprint()
        ),
        false => format!(
            "Wrote the secret {newest} alone into {of}.\nNext: copy {REDIS_SECRET_FILE} to every host; their servers then \
             refuse the former passwords"
        ),
    })
}

/// The copies in hosts' identities that were issued beside the CA.
fn copies(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = || format!("can't list {}", dir.display());
    let mut copies = Vec::new();
    for entry in fs::read_dir(dir).with_context(list)? {
        let path = entry.with_context(list)?.path().join(REDIS_SECRET_FILE);
        if path.is_file() {
            copies.push(path);
        }
    }
    copies.sort();
    Ok(copies)
}
