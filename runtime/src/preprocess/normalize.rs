//! Robot units to model units and back, one scale per dimension.
//!
//! Formulas of openpi `transforms.py` (`Normalize`, `Unnormalize`) and LeRobot `normalize_processor.py`, which
//! differ in where they guard against a width of zero; the constructors are named after them. Computed in f64.

/// What openpi adds to a width, both ways.
const OPENPI_EPS: f64 = 1e-6;

/// A scale and an offset for every dimension.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaling {
    dims: Vec<Dim>,
    range: bool,
}

/// `(x - offset) / down` one way, `x * up + offset` the other.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Dim {
    offset: f64,
    down: f64,
    up: f64,
}

/// Whose formulas apply.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Convention {
    /// openpi adds 1e-6 to every width, both ways.
    OpenPi,
    /// LeRobot adds `eps` to a standard deviation one way only, and takes it for a range of zero.
    LeRobot {
        /// `eps` of the processor.
        eps: f64,
    },
}

/// Statistics that give no scale.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScalingError {
    /// Two lists of one feature differ in length.
    #[error("{first} and {second} values in its two lists")]
    Lengths {
        /// Length of the first list.
        first: usize,
        /// Length of the second list.
        second: usize,
    },
    /// A value is NaN or infinite.
    #[error("{value} in dimension {dim}; the checkpoint was saved without statistics")]
    NotFinite {
        /// Which dimension.
        dim: usize,
        /// What stands there.
        value: f64,
    },
    /// A standard deviation or a range is negative.
    #[error("a width of {width} in dimension {dim}")]
    Negative {
        /// Which dimension.
        dim: usize,
        /// What stands there.
        width: f64,
    },
}

impl Scaling {
    /// Leaves all values as they are.
    pub fn identity() -> Self {
        Self { dims: Vec::new(), range: false }
    }

    /// z-score: `(x - mean) / std`.
    ///
    /// # Errors
    /// When the lists differ in length or hold values that give no scale.
    pub fn mean_std(mean: &[f64], std: &[f64], convention: Convention) -> Result<Self, ScalingError> {
        let dims = zip(mean, std, |offset, std| match convention {
            Convention::OpenPi => Dim { offset, down: std + OPENPI_EPS, up: std + OPENPI_EPS },
            Convention::LeRobot { eps } => Dim { offset, down: std + eps, up: std },
        });
        let checked = dims?;
        check_widths(std)?;
        Ok(Self { dims: checked, range: false })
    }

    /// Quantiles or minimum and maximum: `(x - low) / (high - low) * 2 - 1`.
    ///
    /// # Errors
    /// When the lists differ in length or hold values that give no scale.
    pub fn range(low: &[f64], high: &[f64], convention: Convention) -> Result<Self, ScalingError> {
        let dims = zip(low, high, |offset, high| {
            let width = match (convention, high - offset) {
                (Convention::OpenPi, width) => width + OPENPI_EPS,
                (Convention::LeRobot { eps }, 0.0) => eps,
                (Convention::LeRobot { .. }, width) => width,
            };
            Dim { offset, down: width, up: width }
        })?;
        check_widths(&low.iter().zip(high).map(|(low, high)| high - low).collect::<Vec<_>>())?;
        Ok(Self { dims, range: true })
    }

    /// Number of dimensions that are scaled; 0 for the identity.
    pub fn dims(&self) -> usize {
        self.dims.len()
    }

    /// Whether all values stay as they are.
    pub fn is_identity(&self) -> bool {
        self.dims.is_empty()
    }

    /// Robot units to model units. Dimensions without statistics stay as they are.
    pub fn normalise(&self, values: &[f64]) -> Vec<f64> {
        self.each(values, |value, dim| {
            let scaled = (value - dim.offset) / dim.down;
            if self.range { scaled * 2.0 - 1.0 } else { scaled }
        })
    }

    /// Model units to robot units. Dimensions without statistics stay as they are, as in openpi.
    pub fn restore(&self, values: &[f64]) -> Vec<f64> {
        self.each(values, |value, dim| {
            let scaled = if self.range { (value + 1.0) / 2.0 } else { value };
            scaled * dim.up + dim.offset
        })
    }

    fn each(&self, values: &[f64], scale: impl Fn(f64, &Dim) -> f64) -> Vec<f64> {
        let scaled = values.iter().zip(&self.dims).map(|(&value, dim)| scale(value, dim));
        scaled.chain(values.iter().skip(self.dims.len()).copied()).collect()
    }
}

fn zip(first: &[f64], second: &[f64], dim: impl Fn(f64, f64) -> Dim) -> Result<Vec<Dim>, ScalingError> {
    if first.len() != second.len() {
        return Err(ScalingError::Lengths { first: first.len(), second: second.len() });
    }
    for values in [first, second] {
        if let Some((dim, &value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(ScalingError::NotFinite { dim, value });
        }
    }
    Ok(first.iter().zip(second).map(|(&first, &second)| dim(first, second)).collect())
}

fn check_widths(widths: &[f64]) -> Result<(), ScalingError> {
    match widths.iter().enumerate().find(|(_, width)| **width < 0.0) {
        Some((dim, &width)) => Err(ScalingError::Negative { dim, width }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEROBOT: Convention = Convention::LeRobot { eps: 1e-8 };

    #[test]
    fn formulas_are_openpis() {
        let z = Scaling::mean_std(&[1.0], &[2.0], Convention::OpenPi).unwrap();
        assert_eq!(z.normalise(&[5.0]), [4.0 / 2.000_001]);
        assert_eq!(z.restore(&[2.0]), [2.0 * 2.000_001 + 1.0]);
        let q = Scaling::range(&[-1.0], &[3.0], Convention::OpenPi).unwrap();
        assert_eq!(q.normalise(&[1.0]), [2.0 / 4.000_001 * 2.0 - 1.0]);
        assert_eq!(q.restore(&[0.5]), [0.75 * 4.000_001 - 1.0]);
    }

    #[test]
    fn formulas_are_lerobots() {
        let z = Scaling::mean_std(&[1.0, 1.0], &[2.0, 0.0], LEROBOT).unwrap();
        assert_eq!(z.normalise(&[5.0, 1.0]), [4.0 / (2.0 + 1e-8), 0.0]);
        assert_eq!(z.restore(&[2.0, 2.0]), [5.0, 1.0]);
        let q = Scaling::range(&[-1.0, 4.0], &[3.0, 4.0], LEROBOT).unwrap();
        assert_eq!(q.normalise(&[1.0, 4.0]), [0.0, -1.0]);
        assert_eq!(q.restore(&[0.5, -1.0]), [2.0, 4.0]);
    }

    #[test]
    fn a_constant_dimension_divides_by_nothing() {
        for convention in [Convention::OpenPi, LEROBOT] {
            let z = Scaling::mean_std(&[0.5], &[0.0], convention).unwrap();
            let q = Scaling::range(&[0.5], &[0.5], convention).unwrap();
            assert_eq!((z.normalise(&[0.5]), q.normalise(&[0.5])), (vec![0.0], vec![-1.0]));
        }
    }

    #[test]
    fn dimensions_without_statistics_stay() {
        let z = Scaling::mean_std(&[1.0], &[2.0], LEROBOT).unwrap();
        assert_eq!(z.restore(&[2.0, 7.0]), [5.0, 7.0]);
        assert_eq!(Scaling::identity().normalise(&[3.0, -4.0]), [3.0, -4.0]);
    }

    #[test]
    fn bad_statistics_are_named() {
        let mean_std = |mean: &[f64], std: &[f64]| Scaling::mean_std(mean, std, Convention::OpenPi);
        assert_eq!(mean_std(&[0.0], &[1.0, 1.0]), Err(ScalingError::Lengths { first: 1, second: 2 }));
        assert!(matches!(
            mean_std(&[0.0, 0.0], &[1.0, f64::INFINITY]),
            Err(ScalingError::NotFinite { dim: 1, .. })
        ));
        assert_eq!(mean_std(&[0.0], &[-1.0]), Err(ScalingError::Negative { dim: 0, width: -1.0 }));
        assert_eq!(
            Scaling::range(&[1.0], &[-1.0], LEROBOT),
            Err(ScalingError::Negative { dim: 0, width: -2.0 })
        );
    }

    proptest! {
        #[test]
        fn restore_undoes_normalise(
            dims in prop::collection::vec((-10.0..10.0, 0.01..10.0, -10.0..10.0), 0..20),
            range: bool,
            openpi: bool,
        ) {
            let offset: Vec<f64> = dims.iter().map(|dim| dim.0).collect();
            let width: Vec<f64> = dims.iter().map(|dim| dim.1).collect();
            let values: Vec<f64> = dims.iter().map(|dim| dim.2).collect();
            let high: Vec<f64> = offset.iter().zip(&width).map(|(low, width)| low + width).collect();
            let convention = if openpi { Convention::OpenPi } else { LEROBOT };
            let scaling = match range {
                true => Scaling::range(&offset, &high, convention),
                false => Scaling::mean_std(&offset, &width, convention),
            };
            let scaling = scaling.unwrap();
            for (before, after) in values.iter().zip(scaling.restore(&scaling.normalise(&values))) {
                // LeRobot's z-score leaves eps out on the way back: 1e-8 in a width of 0.01.
                prop_assert!((before - after).abs() < 4e-5, "{before} {after}");
            }
        }
    }
}
