//! Statistics of paired samples.
//!
//! A shared machine has fast and slow moments that differ by a factor of two. Whatever is measured is therefore put
//! between two measurements of something plain, and what counts is the ratio of the two: in a slow moment both are slow.
//! Times come from the ratio and the plain thing's fastest moment.

/// A measurement and its plain neighbours, in the same unit.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Mean of the plain measurements before and after.
    pub plain: f64,
    /// What is measured.
    pub measured: f64,
}

impl Pair {
    /// What the measured thing adds, as a multiple of the plain one.
    pub fn extra(self) -> f64 {
        self.measured / self.plain - 1.0
    }
}

/// Median and quartiles.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// A quarter of the values is below.
    pub lower: f64,
    /// Half of the values is below.
    pub median: f64,
    /// A quarter of the values is above.
    pub upper: f64,
}

impl Spread {
    /// Of values in any order; of none: zeros.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |quarter: usize| values.get((values.len().saturating_sub(1) * quarter + 2) / 4).copied();
        let at = |quarter| at(quarter).unwrap_or_default();
        Self { lower: at(1), median: at(2), upper: at(3) }
    }

    /// In another unit.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self { lower: self.lower * factor, median: self.median * factor, upper: self.upper * factor }
    }
}

/// Mean of the middle half of the values: interruptions are outliers, and whole nanoseconds want averaging.
pub fn middle_mean(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let quarter = values.len() / 4;
    let middle = &values[quarter..values.len() - quarter];
    let sum: f64 = middle.iter().sum();
    #[expect(clippy::cast_precision_loss, reason = "thousands of values")]
    let count = middle.len().max(1) as f64;
    sum / count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_few_and_of_no_values() {
        assert_eq!(Spread::of([]), Spread::default());
        assert_eq!(Spread::of([7.0]), Spread { lower: 7.0, median: 7.0, upper: 7.0 });
        assert_eq!(Spread::of([5.0, 1.0, 4.0, 2.0, 3.0]), Spread { lower: 2.0, median: 3.0, upper: 4.0 });
    }

    #[test]
    fn outliers_do_not_count() {
        let mean = middle_mean(vec![3.0, 1_000.0, 2.0, 3.0, -50.0, 4.0, 3.0, 3.0]);
        assert!((mean - 3.0).abs() < 1e-9, "{mean}");
        assert!(middle_mean(Vec::new()).abs() < 1e-9);
    }
}
