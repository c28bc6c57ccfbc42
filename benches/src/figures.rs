//! Pure arithmetic on what was measured.

/// The middle value; of the middle two the mean, of none NaN.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => (values[even / 2 - 1] + values[even / 2]) / 2.0,
    }
}

/// `y = a·N^b` through points `(N, y)`: least squares of the logarithms. `None` where
/// there are less than two different N, or a value that has no logarithm.
pub fn fit_power(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    if points.iter().any(|&(n, y)| n <= 0.0 || y <= 0.0) {
        return None;
    }
    let logs: Vec<(f64, f64)> = points.iter().map(|(n, y)| (n.ln(), y.ln())).collect();
    let count = logs.len() as f64;
    let (mx, my) =
        (logs.iter().map(|p| p.0).sum::<f64>() / count, logs.iter().map(|p| p.1).sum::<f64>() / count);
    let sxx: f64 = logs.iter().map(|p| (p.0 - mx).powi(2)).sum();
    let sxy: f64 = logs.iter().map(|p| (p.0 - mx) * (p.1 - my)).sum();
    // Not `<=`: also NaN, of no points, is none.
    (sxx > f64::EPSILON).then(|| {
        let b = sxy / sxx;
        ((my - b * mx).exp(), b)
    })
}

/// `y = a·N + b·N²` through points `(N, y)`: least squares. `None` where there are less
/// than two different N.
pub fn fit_square(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let sum = |of: fn(f64, f64) -> f64| points.iter().map(|&(n, y)| of(n, y)).sum::<f64>();
    let (n2, n3, n4) = (sum(|n, _| n.powi(2)), sum(|n, _| n.powi(3)), sum(|n, _| n.powi(4)));
    let (ny, n2y) = (sum(|n, y| n * y), sum(|n, y| n * n * y));
    let det = n2 * n4 - n3 * n3;
    // Relative to its terms: with one N alone only rounding is left of it.
    (det > n2 * n4 * 1e-9).then(|| ((ny * n4 - n2y * n3) / det, (n2 * n2y - n3 * ny) / det))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn fits_find_the_curve_that_points_lie_on() {
        let on = |curve: fn(f64) -> f64| [100.0, 200.0, 300.0, 500.0].map(|n| (n, curve(n)));
        let (a, b) = fit_power(&on(|n| 0.002 * n.powf(1.5))).unwrap();
        assert!((a - 0.002).abs() < 1e-9 && (b - 1.5).abs() < 1e-9, "{a} {b}");
        let (a, b) = fit_square(&on(|n| 2.5 * n + 0.03 * n * n)).unwrap();
        assert!((a - 2.5).abs() < 1e-6 && (b - 0.03).abs() < 1e-8, "{a} {b}");
    }

    #[test]
    fn one_size_alone_has_no_curve() {
        let same = [(100.0, 3.0), (100.0, 4.0)];
        assert_eq!((fit_power(&same), fit_square(&same)), (None, None));
        assert_eq!((fit_power(&[]), fit_square(&[])), (None, None));
        assert_eq!(fit_power(&[(100.0, 0.0), (200.0, 1.0)]), None);
    }
}
