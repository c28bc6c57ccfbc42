//! `run list`: the runs that the mesh remembers, newest last.

use redmesh_api::control::RunView;

use super::report::{Names, RunReport};
use crate::exit::Exit;
use crate::members::{table, table_text};
use crate::output::Output;
use crate::session::Session;
use crate::units::{rate, seconds, thousands};

/// The command.
pub async fn run(session: &mut Session, output: &Output) -> anyhow::Result<Exit> {
    let runs = session.runs().await?;
    let names = Names::ask(session).await;
    let reports: Vec<RunReport> = runs.iter().map(|view| RunReport::of(view, &names)).collect();
    output.answer(&serde_json::json!({ "runs": reports }), || render(&runs))?;
    Ok(Exit::Ok)
}

fn render(runs: &[RunView]) -> String {
    if runs.is_empty() {
        return "There are no runs yet: `redmeshctl run start` begins one.\n".to_owned();
    }
    let mut rows = table(&[
        "RUN", "WORKLOAD", "STATE", "WORKERS", "ACKED", "FAILED", "UNKNOWN", "ACKED/S", "TIME", "LEDGER",
    ]);
    for view in runs {
        let report = RunReport::of(view, &Names::default());
        let ledger = match &report.ledger {
            None => "open",
            Some(ledger) if ledger.ok => "OK",
            Some(_) => "NOT OK",
        };
        rows.add_row([
            view.run.id.to_string(),
            report.run.workload,
            report.run.state.to_owned(),
            thousands(report.run.workers.into()),
            thousands(report.run.acked),
            thousands(report.run.failed),
            thousands(report.run.unknown),
            rate(report.run.writes_per_s),
            seconds(report.run.seconds),
            ledger.to_owned(),
        ]);
    }
    for column in rows.column_iter_mut().skip(3).take(6) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    table_text(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::report::tests::done;

    #[test]
    fn runs_are_listed() {
        assert_eq!(
            render(&[done()]),
            "\
RUN       WORKLOAD      STATE      WORKERS      ACKED  FAILED  UNKNOWN  ACKED/S   TIME  LEDGER
3f2a9c1d  uuid-counter  completed    2,000  1,000,000       0        0  500,000  2.0 s  OK
"
        );
        assert!(render(&[]).contains("run start"));
    }
}
