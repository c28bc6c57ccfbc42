//! `run compare`: two runs side by side, and whether their rates differ by more than
//! they vary by themselves.

use redmesh_api::control::RunDetail;
use redmesh_api::run::Job;
use serde::Serialize;

use super::detail::DetailFigures;
use super::report::{LatencyFigures, Names, Noun, RunReport};
use crate::members::{table, table_text};
use crate::units::{micros, rate};

/// Whole intervals that a run must have for its noise to be told.
const INTERVALS_MIN: usize = 5;

/// Half width of a 95 % confidence interval in standard errors.
const Z_95: f64 = 1.96;

/// Names of the percentiles that are compared.
const PERCENTILES: [&str; 5] = ["p50", "p90", "p99", "p99.9", "max"];

/// Two runs compared.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Ids of the runs.
    pub runs: [String; 2],
    /// What makes them less alike than two runs that are compared should be, in words.
    pub remarks: Vec<String>,
    /// One line each.
    pub figures: Vec<Figure>,
    /// Difference of the rates (B against A) and its noise.
    pub rate: RateDifference,
}

/// One figure of both.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What, with its unit; microseconds if it has none.
    pub name: String,
    #[serde(skip)]
    unit: Unit,
    /// Of A; `None` where not known.
    pub a: Option<f64>,
    /// Of B.
    pub b: Option<f64>,
    /// B against A, percent.
    pub difference_percent: Option<f64>,
}

/// How a figure is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    PerSecond,
    Micros,
    MicrosEach,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::PerSecond => rate(value),
            Self::Micros => micros(value as u64),
            Self::MicrosEach => format!("{value:.2}"),
        }
    }
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
                    "B's rate is {difference:+.1} % against A's, ± {noise:.1} % (95 %, second by second): {verdict}"
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
        let noun = match (Noun::of(&ra.spec.job), Noun::of(&rb.spec.job)) {
            (a, b) if a == b => a,
            _ => Noun::OPERATIONS,
        };
        let figure = |name: String, unit, of: &dyn Fn(&RunReport) -> Option<f64>| {
            let (a, b) = (of(&ra), of(&rb));
            let difference_percent = a.zip(b).filter(|(a, _)| *a > 0.0).map(|(a, b)| (b / a - 1.0) * 100.0);
            Figure { name, unit, a, b, difference_percent }
        };
        let mut figures =
            vec![figure(format!("{}/s", noun.many), Unit::PerSecond, &|r| Some(r.run.writes_per_s))];
        let at = |latency: Option<LatencyFigures>, at: usize| {
            latency.map(|l| [l.p50, l.p90, l.p99, l.p999, l.max][at] as f64)
        };
        for (index, name) in PERCENTILES.into_iter().enumerate() {
            figures.push(figure(name.to_owned(), Unit::Micros, &|r| at(r.run.latency_us, index)));
        }
        if ra.spec.rate.is_some() || rb.spec.rate.is_some() {
            for (index, name) in PERCENTILES.into_iter().enumerate() {
                let name = format!("{name} from intended begin");
                figures.push(figure(name, Unit::Micros, &|r| at(r.run.intended_us, index)));
            }
        }
        let each = |cpu_s: Option<f64>, acked: u64| {
            cpu_s.filter(|_| acked > 0).map(|cpu_s| cpu_s * 1e6 / acked as f64)
        };
        figures.push(figure(format!("client µs/{}", noun.one), Unit::MicrosEach, &|r| {
            each(Some(r.run.client_cpu_s), r.run.acked)
        }));
        figures.push(figure(format!("server µs/{}", noun.one), Unit::MicrosEach, &|r| {
            each(r.run.server_cpu_s, r.run.acked)
        }));
        let rates = |detail: &RunDetail| {
            DetailFigures::of(detail).timeline.whole_rates(detail.view.run.spec.warm_up_s)
        };
        Self {
            rate: RateDifference::of(&rates(a), &rates(b)),
            remarks: remarks(&ra, &rb),
            figures,
            runs: [ra.run.id, rb.run.id],
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let short = |id: &str| id.get(..8).unwrap_or(id).to_owned();
        let headings = [format!("A {}", short(&self.runs[0])), format!("B {}", short(&self.runs[1]))];
        let mut rows = table(&["", &headings[0], &headings[1], "DIFFERENCE"]);
        for figure in &self.figures {
            let show = |value: Option<f64>| value.map_or("-".to_owned(), |value| figure.unit.show(value));
            let difference =
                figure.difference_percent.map_or("-".to_owned(), |percent| format!("{percent:+.1} %"));
            rows.add_row([figure.name.clone(), show(figure.a), show(figure.b), difference]);
        }
        for column in rows.column_iter_mut().skip(1) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
        let remarks: String = self.remarks.iter().map(|remark| format!("{remark}\n")).collect();
        format!("{}{}\n{remarks}", table_text(&rows), self.rate.words())
    }
}

/// Where runs differ in what was asked of them so that their figures mean different things.
fn remarks(a: &RunReport, b: &RunReport) -> Vec<String> {
    let mut remarks = Vec::new();
    if a.run.workload != b.run.workload {
        remarks.push(format!(
            "A ran {}, B ran {}: their operations are not the same work",
            a.run.workload, b.run.workload
        ));
    } else if let (Job::Load(of_a), Job::Load(of_b)) = (&a.spec.job, &b.spec.job)
        && of_a != of_b
    {
        let name = &a.run.workload;
        remarks.push(format!("A and B ran workloads of one name, {name}, that differ in what they do"));
    }
    match (a.spec.rate, b.spec.rate) {
        (None, Some(_)) | (Some(_), None) => {
            remarks.push(
                "one is an open loop and one a closed loop: a schedule bounds the one's rate".to_owned(),
            );
        }
        _ => {}
    }
    remarks
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
    #[test]
    fn runs_of_different_work_are_compared_with_a_remark() {
        let a = detail(&[1, 2, 3]);
        assert!(Comparison::of(&a, &a).remarks.is_empty());
        let mut b = a.clone();
        b.view = crate::run::report::tests::open_loop();
        let comparison = Comparison::of(&a, &b);
        assert_eq!(comparison.remarks.len(), 2);
        let text = comparison.text();
        assert!(text.contains("A ran uuid-counter, B ran cache: "), "{text}");
        for row in ["operations/s", "p50", "p99 from intended begin", "client µs/operation"] {
            assert!(text.lines().any(|line| line.starts_with(row)), "{row} in {text}");
        }
        let mut other = b.clone();
        let Job::Load(workload) = &mut other.view.run.spec.job else { panic!() };
        workload.seed += 1;
        assert!(Comparison::of(&b, &other).remarks[0].contains("that differ"));
    }
}
