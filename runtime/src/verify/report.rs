//! How close a policy comes to a reference, tensor by tensor.

use std::collections::BTreeMap;

use serde::Serialize;
use tensact_topology::StageKind;

/// How close two tensors are. All sums are f64.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Closeness {
    /// Pearson's correlation: 1 for equal up to scale and offset, which it cannot see. 1 where both are constant.
    pub pcc: f64,
    /// `‖found - expected‖ / ‖expected‖`.
    pub relative_error: f64,
    /// `‖found‖ / ‖expected‖`.
    pub norm_ratio: f64,
}

impl Closeness {
    /// Of two sequences of the same length. Values that are not numbers make all three not a number.
    pub fn of(found: &[f32], expected: &[f32]) -> Self {
        let n = found.len() as f64;
        let pairs = || found.iter().zip(expected).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let (mean_a, mean_b) = pairs().fold((0.0, 0.0), |(sa, sb), (a, b)| (sa + a / n, sb + b / n));
        let mut sums = [0.0; 6];
        for (a, b) in pairs() {
            let (da, db) = (a - mean_a, b - mean_b);
            let terms = [da * db, da * da, db * db, (a - b) * (a - b), a * a, b * b];
            sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
        }
        let [covariance, variance_a, variance_b, error, norm_a, norm_b] = sums;
        let ratio = |a: f64, b: f64| if a == 0.0 && b == 0.0 { 0.0 } else { (a / b).sqrt() };
        // Below this the differences from the mean are rounding: the tensor is constant.
        let constant = |variance: f64, norm: f64| variance <= 1e-12 * norm;
        let pcc = match (constant(variance_a, norm_a), constant(variance_b, norm_b)) {
            (true, true) => 1.0,
            (false, false) => covariance / (variance_a * variance_b).sqrt(),
            // Not a number is not constant either, so it comes out as what it is.
            _ => 0.0 * covariance,
        };
        Self {
            pcc,
            relative_error: ratio(error, norm_b),
            norm_ratio: if norm_a == norm_b { 1.0 } else { ratio(norm_a, norm_b) },
        }
    }

    /// Whether correlation reaches `threshold` and the norms differ by at most `1 - threshold`.
    pub fn reaches(&self, threshold: f64) -> bool {
        self.pcc >= threshold && (self.norm_ratio - 1.0).abs() <= 1.0 - threshold
    }
}

/// One tensor of a reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Its name in the reference.
    pub name: String,
    /// The stage that computes it.
    pub stage: StageKind,
    /// The rows that were compared: those of valid tokens.
    #[serde(skip)]
    pub rows: Vec<usize>,
    /// Number of values compared.
    pub values: usize,
    /// How close they are.
    #[serde(flatten)]
    pub closeness: Closeness,
}

/// What came of holding a policy against a reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Every tensor that was compared, in the order of computation.
    pub comparisons: Vec<Comparison>,
    /// Tensors of the reference that were not, and why.
    pub not_compared: BTreeMap<String, &'static str>,
}

impl Report {
    /// Whether every tensor is close enough: see [`Closeness::reaches`].
    pub fn reaches(&self, threshold: f64) -> bool {
        self.comparisons.iter().all(|comparison| comparison.closeness.reaches(threshold))
    }

    /// The worst of each stage that something was compared of.
    pub fn stages(&self) -> BTreeMap<StageKind, StageSummary<'_>> {
        let of_stage = |stage| {
            let mut compared = self.comparisons.iter().filter(move |c| c.stage == stage);
            let mut summary = StageSummary::of(compared.next()?);
            compared.for_each(|comparison| summary.add(comparison));
            Some((stage, summary))
        };
        StageKind::ALL.into_iter().filter_map(of_stage).collect()
    }
}

/// The worst tensors of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StageSummary<'a> {
    /// How many were compared.
    pub tensors: usize,
    /// The lowest correlation.
    pub pcc: Worst<'a>,
    /// The norm ratio that is farthest from 1.
    pub norm_ratio: Worst<'a>,
    /// The largest relative error.
    pub relative_error: Worst<'a>,
}

/// A figure of [`Closeness`] and the tensor it belongs to. What is not a number is worse than anything.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Worst<'a> {
    /// The figure.
    pub value: f64,
    /// The first tensor with it, in the order of computation.
    pub tensor: &'a str,
}

impl<'a> StageSummary<'a> {
    fn of(Comparison { name, closeness, .. }: &'a Comparison) -> Self {
        let worst = |value| Worst { value, tensor: name };
        let Closeness { pcc, norm_ratio, relative_error } = *closeness;
        let [pcc, norm_ratio, relative_error] = [pcc, norm_ratio, relative_error].map(worst);
        Self { tensors: 1, pcc, norm_ratio, relative_error }
    }

    fn add(&mut self, comparison: &'a Comparison) {
        let one = Self::of(comparison);
        self.tensors += 1;
        self.pcc.or_worse(one.pcc, |pcc| 1.0 - pcc);
        self.norm_ratio.or_worse(one.norm_ratio, |ratio| (ratio - 1.0).abs());
        self.relative_error.or_worse(one.relative_error, |error| error);
    }
}

impl Worst<'_> {
    /// Takes the place of this one when it is farther off.
    fn or_worse(&mut self, other: Self, distance: impl Fn(f64) -> f64) {
        let far = |value: f64| if value.is_nan() { f64::INFINITY } else { distance(value) };
        if far(other.value) > far(self.value) {
            *self = other;
        }
    }
}
