//! `join-token`: lets hosts without a certificate join, for a while.
//!
//! The secret is made here and shown once; the mesh gets its public key alone.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use redmesh_api::control::TokenCreate;
use redmesh_api::join::{JoinToken, TokenId, TokenRecord, USES_MAX};
use serde::Serialize;

use crate::exit::Exit;
use crate::members::{table, table_text};
use crate::output::Output;
use crate::session::Session;
use crate::units;

const EXAMPLES: &str = "\
Examples:
  redmeshctl join-token create --ttl 2h --uses 9 --out join-token
  redmeshctl join-token list
  redmeshctl join-token revoke 6b0c7e0a91d3f2c4";

/// `redmeshctl join-token …`
#[derive(Debug, Subcommand)]
pub enum JoinTokenCommand {
    /// Make a token by which new hosts get their certificates
    #[command(after_help = EXAMPLES)]
    Create(CreateArgs),
    /// List the tokens that the mesh remembers, and whom they have let in
    #[command(after_help = EXAMPLES)]
    List,
    /// Take a token back: from then on it lets nobody in
    #[command(after_help = EXAMPLES)]
    Revoke(RevokeArgs),
}

/// Arguments of `join-token create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// How long it lets hosts in, in seconds or with a unit; a week at most
    #[arg(long, default_value = "1h", value_parser = units::parse_duration, value_name = "TIME")]
    pub ttl: Duration,
    /// Hosts that it lets in
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(USES_MAX)))]
    pub uses: u16,
    /// File to write it into, for its owner alone, instead of printing it
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Arguments of `join-token revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Id of the token, as `join-token list` shows it
    #[arg(value_name = "ID")]
    pub id: TokenId,
}

#[derive(Debug, Serialize)]
struct Listed {
    id: String,
    state: String,
    created_unix_ms: u64,
    expires_unix_ms: u64,
    uses: u16,
    enrolled: Vec<ListedHost>,
}

#[derive(Debug, Serialize)]
struct ListedHost {
    name: String,
    ip: String,
    at_unix_ms: u64,
}

/// Carries a command out.
pub async fn run(command: JoinTokenCommand, session: &mut Session, output: &Output) -> Result<Exit> {
    match command {
        JoinTokenCommand::Create(args) => create(&args, session, output).await,
        JoinTokenCommand::List => {
            let tokens: Vec<Listed> =
                session.tokens().await?.iter().map(|it| listed(it, now_unix_ms())).collect();
            output.answer(&serde_json::json!({ "tokens": tokens }), || render(&tokens))?;
            Ok(Exit::Ok)
        }
        JoinTokenCommand::Revoke(args) => {
            let token = listed(&session.token_revoke(args.id).await?, now_unix_ms());
            output.answer(&token, || {
                format!(
                    "Revoked {}. Hosts that it let in ({}) keep their certificates.\n",
                    token.id,
                    token.enrolled.len()
                )
            })?;
            Ok(Exit::Ok)
        }
    }
}

async fn create(args: &CreateArgs, session: &mut Session, output: &Output) -> Result<Exit> {
    let members = session.members().await?;
    let mesh = members.mesh.with_context(|| {
        let waiting = members.waiting_for.unwrap_or_else(|| "its coordinator".to_owned());
        format!("the mesh isn't founded yet (it waits for {waiting}), so it can't remember a token")
    })?;
    let ca = session.ca().context("the operator's ca.pem holds no certificate")?;
    let token = JoinToken::generate(mesh, ca)?;
    let ttl_s = u32::try_from(args.ttl.as_secs()).unwrap_or(u32::MAX);
    let create = TokenCreate { key: token.public_key(), mesh, ttl_s, uses: args.uses };
    let made = listed(&session.token_create(create).await?, now_unix_ms());
    let text = token.text();
    if let Some(path) = &args.out {
        write_private(path, &format!("{text}\n"))?;
        output.answer(&made, || {
            format!(
                "Wrote token {} into {}: {}, for {} hosts\n",
                made.id,
                path.display(),
                made.state,
                made.uses
            )
        })?;
    } else {
        let mut value = serde_json::to_value(&made)?;
        value["token"] = text.clone().into();
        output.answer(&value, || format!("{text}\n"))?;
    }
    Ok(Exit::Ok)
}

pub(crate) fn now_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn listed(token: &TokenRecord, now_unix_ms: u64) -> Listed {
    let left_s = token.expires_unix_ms.saturating_sub(now_unix_ms).div_ceil(1000);
    let state = if token.revoked {
        "revoked".to_owned()
    } else if left_s == 0 {
        "expired".to_owned()
    } else if token.enrolled.len() >= usize::from(token.uses) {
        "used up".to_owned()
    } else {
        format!("good for {}", humantime::format_duration(Duration::from_secs(left_s)))
    };
    let host = |host: &redmesh_api::join::Enrolled| ListedHost {
        name: host.name.clone(),
        ip: host.ip.to_string(),
        at_unix_ms: host.at_unix_ms,
    };
    Listed {
        id: token.id.to_string(),
        state,
        created_unix_ms: token.created_unix_ms,
        expires_unix_ms: token.expires_unix_ms,
        uses: token.uses,
        enrolled: token.enrolled.iter().map(host).collect(),
    }
}

fn render(tokens: &[Listed]) -> String {
    if tokens.is_empty() {
        return "There are no join tokens: `redmeshctl join-token create` makes one.\n".to_owned();
    }
    let mut rows = table(&["TOKEN", "STATE", "USED", "HOSTS"]);
    for token in tokens {
        let hosts: Vec<_> = token.enrolled.iter().map(|host| format!("{}={}", host.name, host.ip)).collect();
        rows.add_row([
            token.id.clone(),
            token.state.clone(),
            format!("{}/{}", token.enrolled.len(), token.uses),
            hosts.join(" "),
        ]);
    }
    table_text(&rows)
}

/// A new file for its owner alone; one that is there stays.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    written.with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use redmesh_api::join::Enrolled;

    use super::*;

    #[test]
    fn a_token_is_listed_by_what_it_is_still_good_for() {
        let host =
            Enrolled { name: "db-1".to_owned(), ip: [10, 0, 0, 1].into(), key: [0; 32], at_unix_ms: 5 };
        let key = [1; 32];
        let good = TokenRecord {
            id: TokenId::of(&key),
            key,
            created_unix_ms: 0,
            expires_unix_ms: 3_600_000,
            uses: 2,
            revoked: false,
            enrolled: vec![host.clone()],
        };
        let state = |token: &TokenRecord, now: u64| listed(token, now).state;
        assert_eq!(state(&good, 60_000), "good for 59m");
        assert_eq!(state(&good, 3_600_000), "expired");
        assert_eq!(state(&TokenRecord { revoked: true, ..good.clone() }, 0), "revoked");
        assert_eq!(state(&TokenRecord { uses: 1, ..good.clone() }, 0), "used up");
        let text = render(&[listed(&good, 60_000)]);
        assert!(text.contains("1/2") && text.contains("db-1=10.0.0.1"), "{text}");
    }
}
