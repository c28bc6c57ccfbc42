//! `run compare`: two runs side by side, and whether their rates differ by more than
//! they vary by themselves.

use redmesh_api::control::RunDetail;
use serde::Serialize;

use super::detail::DetailFigures;
use super::report::{Names, RunReport};
use crate::members::{table, table_text};
use crate::units::{micros, rate};

/// Whole intervals that a run must have for its noise to be told.
const INTERVALS_MIN: usize = 5;

/// Half width of a 95 % confidence interval in standard errors.
const Z_95: f64 = 1.96;

/// Two runs compared.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Ids of the runs.
    pub runs: [String; 2],
    /// One line each.
    pub figures: Vec<Figure>,
    /// Difference of the rates (B against A) and its noise.
    pub rate: RateDifference,
}

/// One figure of both.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What, with its unit.
    pub name: &'static str,
    /// Of A; `None` where not known.
    pub a: Option<f64>,
    /// Of B.
    pub b: Option<f64>,
    /// B against A, percent.
    pub difference_percent: Option<f64>,
}

/// Whether two rates differ.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RateDifference {
    /// Mean rate of B against that of A over whole intervals, percent.
    pub difference_percent: Option<f64>,
    /// Half width of its 95 % confidence interval, percent.
    pub noise_percent: Option<f64>,
}

impl RateDifference {
    fn of(a: &[f64], b: &[f64]) -> Self {
        let unknown = Self { difference_percent: None, noise_percent: None };
        let (Some((mean_a, error_a)), Some((mean_b, error_b))) = (mean_and_error(a), mean_and_error(b))
        else {
            return unknown;
        };
        if mean_a <= 0.0 {
            return unknown;
        }
        Self {
            difference_percent: Some((mean_b / mean_a - 1.0) * 100.0),
            noise_percent: Some(Z_95 * error_a.hypot(error_b) / mean_a * 100.0),
        }
    }

    fn words(self) -> String {
        match (self.difference_percent, self.noise_percent) {
            (Some(difference), Some(noise)) => {
                let verdict = if difference.abs() > noise { "beyond the noise" } else { "within the noise" };
                format!(
                    "B writes {difference:+.1} % against A, ± {noise:.1} % (95 %, second by second): {verdict}"
                )
            }
            _ => format!("too short to tell the noise: {INTERVALS_MIN} whole seconds of each are needed"),
        }
    }
}

/// Mean and its standard error; `None` for too few values.
fn mean_and_error(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < INTERVALS_MIN {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    Some((mean, (variance / n).sqrt()))
}

impl Comparison {
    /// Compares two runs with all that their hosts kept.
    pub fn of(a: &RunDetail, b: &RunDetail) -> Self {
        let report = |detail: &RunDetail| RunReport::of(&detail.view, &Names::default());
        let (ra, rb) = (report(a), report(b));
        let per_write = |cpu_s: Option<f64>, acked: u64| {
            cpu_s.filter(|_| acked > 0).map(|cpu_s| cpu_s * 1e6 / acked as f64)
        };
        let latency = |report: &RunReport| {
            report.run.latency_us.map(|l| [l.p50, l.p90, l.p99, l.p999, l.max].map(|us| us as f64))
        };
        let (la, lb) = (latency(&ra), latency(&rb));
        let mut figures = vec![figure("writes/s", Some(ra.run.writes_per_s), Some(rb.run.writes_per_s))];
        for (at, name) in ["p50", "p90", "p99", "p99.9", "max"].into_iter().enumerate() {
            figures.push(figure(name, la.map(|l| l[at]), lb.map(|l| l[at])));
        }
        figures.push(figure(
            "client µs/write",
            per_write(Some(ra.run.client_cpu_s), ra.run.acked),
            per_write(Some(rb.run.client_cpu_s), rb.run.acked),
        ));
        figures.push(figure(
            "server µs/write",
            per_write(ra.run.server_cpu_s, ra.run.acked),
            per_write(rb.run.server_cpu_s, rb.run.acked),
        ));
        let rates = |detail| DetailFigures::of(detail).timeline.whole_rates();
        Self { runs: [ra.run.id, rb.run.id], figures, rate: RateDifference::of(&rates(a), &rates(b)) }
    }

    /// For people.
    pub fn text(&self) -> String {
        let short = |id: &str| id.get(..8).unwrap_or(id).to_owned();
        let headings = [format!("A {}", short(&self.runs[0])), format!("B {}", short(&self.runs[1]))];
        let mut rows = table(&["", &headings[0], &headings[1], "DIFFERENCE"]);
        for figure in &self.figures {
            let show = |value: Option<f64>| match value {
                None => "-".to_owned(),
                Some(value) if figure.name.starts_with('p') || figure.name == "max" => micros(value as u64),
                Some(value) if figure.name == "writes/s" => rate(value),
                Some(value) => format!("{value:.2}"),
            };
            let difference =
                figure.difference_percent.map_or("-".to_owned(), |percent| format!("{percent:+.1} %"));
            rows.add_row([figure.name.to_owned(), show(figure.a), show(figure.b), difference]);
        }
        for column in rows.column_iter_mut().skip(1) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
        format!("{}{}\n", table_text(&rows), self.rate.words())
    }
}

fn figure(name: &'static str, a: Option<f64>, b: Option<f64>) -> Figure {
    let difference_percent = a.zip(b).filter(|(a, _)| *a > 0.0).map(|(a, b)| (b / a - 1.0) * 100.0);
    Figure { name, a, b, difference_percent }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::detail::tests::share;
    use crate::run::report::tests::done;

    fn detail(rates: &[u64]) -> RunDetail {
        RunDetail { view: done(), details: vec![share(1, 0, rates)], missing: Vec::new() }
    }

    #[test]
    fn a_difference_is_told_from_noise() {
        let steady = detail(&[0, 100, 101, 99, 100, 100, 100, 0]);
        let faster = detail(&[0, 110, 111, 109, 110, 110, 110, 0]);
        let wild = detail(&[0, 20, 190, 100, 180, 30, 110, 0]);
        let beyond = Comparison::of(&steady, &faster).text();
        assert!(beyond.contains("+10.0 %") && beyond.contains("beyond the noise"), "{beyond}");
        let within = Comparison::of(&steady, &wild).text();
        assert!(within.contains("within the noise"), "{within}");
        let short = Comparison::of(&detail(&[1, 2, 3]), &steady).text();
        assert!(short.contains("too short"), "{short}");
    }
}
