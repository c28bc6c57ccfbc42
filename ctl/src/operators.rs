//! `operators`: whose certificates the mesh refuses; `operators revoke` takes an operator's
//! back.

use clap::{Args, Subcommand, ValueEnum};
use redmesh_api::control::{OperatorRevoke, RevocationCheck};
use redmesh_api::join::TokenRecord;
use redmesh_api::level::RevokedOperator;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::exit::Exit;
use crate::join_token;
use crate::members::{table, table_text};
use crate::output::{Output, note};
use crate::session::Session;

const EXAMPLES: &str = "\
Examples:
  redmeshctl operators revoke bob
  redmeshctl operators list
  redmeshctl pki issue --dir pki --operator bob --renew    another certificate for bob, which is good

Every agent then refuses the certificates of that name which were issued until now, full and
read-only ones, and ends the connections made with them. It can't be undone.";

/// `redmeshctl operators …`
#[derive(Debug, Subcommand)]
pub enum OperatorsCommand {
    /// Refuse the certificates that an operator has had until now
    #[command(after_help = EXAMPLES)]
    Revoke(RevokeArgs),
    /// List the operators whose earlier certificates are refused
    #[command(after_help = EXAMPLES)]
    List,
}

/// Arguments of `operators revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The operator's name, as its certificate has it
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Revoke it although this speaks against it
    #[arg(long, value_enum, value_name = "CHECK")]
    pub force: Vec<ForcedCheck>,
}

/// What can be overridden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ForcedCheck {
    /// It is the name in the certificate that you are asking with
    #[value(name = "self")]
    Itself,
}

impl From<ForcedCheck> for RevocationCheck {
    fn from(check: ForcedCheck) -> Self {
        match check {
            ForcedCheck::Itself => Self::Itself,
        }
    }
}

/// Carries a command out.
pub async fn run(command: OperatorsCommand, session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    match command {
        OperatorsCommand::Revoke(RevokeArgs { name, force }) => {
            let force = force.into_iter().map(RevocationCheck::from).collect();
            let revoked = session.operator_revoke(OperatorRevoke { name, force }).await?;
            output.answer(&revoked, || revoked_text(&revoked))?;
            // Refused where it was its own certificate that was revoked.
            if let Ok(tokens) = session.tokens().await {
                good_tokens(&tokens, join_token::now_unix_ms()).iter().for_each(|words| note(words));
            }
        }
        OperatorsCommand::List => {
            let revoked = session.operators().await?;
            output.answer(&serde_json::json!({ "revoked": revoked }), || render(&revoked))?;
        }
    }
    Ok(Exit::Ok)
}

/// Who has left may know a token, and come back as a host.
fn good_tokens(tokens: &[TokenRecord], now_unix_ms: u64) -> Option<String> {
    let good: Vec<_> =
        tokens.iter().filter(|token| !token.is_over(now_unix_ms)).map(|token| token.id.to_string()).collect();
    (!good.is_empty()).then(|| {
        format!(
            "join tokens that are still good, for whoever has seen them: {}; `redmeshctl join-token revoke {}` takes \
             one back",
            good.join(", "),
            good[0]
        )
    })
}

fn at(operator: &RevokedOperator) -> String {
    let at = i64::try_from(operator.at_unix_ms / 1000)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|at| at.format(&Rfc3339).ok());
    at.unwrap_or_else(|| format!("{} ms", operator.at_unix_ms))
}

fn revoked_text(operator: &RevokedOperator) -> String {
    format!(
        "revoked {name}: every agent refuses the certificates of that name issued until {}; one that is issued from \
         now on (`redmeshctl pki issue --operator {name} --renew`) is good\n",
        at(operator),
        name = operator.name
    )
}

fn render(revoked: &[RevokedOperator]) -> String {
    if revoked.is_empty() {
        return "No operator is revoked: every certificate of this mesh's CA is good until it expires.\n"
            .to_owned();
    }
    let mut rows = table(&["OPERATOR", "REFUSED IF ISSUED UNTIL"]);
    for operator in revoked {
        rows.add_row([operator.name.clone(), at(operator)]);
    }
    table_text(&rows)
}

#[cfg(test)]
mod tests {
    use redmesh_api::join::TokenId;

    use super::*;

    #[test]
    fn who_is_revoked_is_listed_with_the_time() {
        let bob = RevokedOperator { name: "bob".to_owned(), at_unix_ms: 1_700_000_000_999 };
        let text = render(std::slice::from_ref(&bob));
        let last: Vec<&str> = text.lines().last().expect("a row").split_whitespace().collect();
        assert_eq!(last, ["bob", "2023-11-14T22:13:20Z"]);
        assert!(render(&[]).contains("No operator is revoked"));
        let said = revoked_text(&bob);
        assert!(said.contains("revoked bob") && said.contains("--operator bob --renew"), "{said}");
        assert!(at(&RevokedOperator { at_unix_ms: u64::MAX, ..bob }).contains("ms"));
    }

    #[test]
    fn tokens_that_let_nobody_in_are_not_told_of() {
        let token = |n: u8, revoked| TokenRecord {
            id: TokenId::of(&[n; 32]),
            key: [n; 32],
            created_unix_ms: 0,
            expires_unix_ms: 1000,
            uses: 1,
            revoked,
            enrolled: Vec::new(),
        };
        let tokens = [token(1, true), token(2, false)];
        let words = good_tokens(&tokens, 999).expect("one is good");
        assert!(
            words.contains(&tokens[1].id.to_string()) && !words.contains(&tokens[0].id.to_string()),
            "{words}"
        );
        assert_eq!(good_tokens(&tokens, 1000), None);
    }
}
