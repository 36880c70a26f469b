//! Rotary position embedding in Gemma's form: halves of a head are rotated against each other.

use rayon::prelude::*;

use super::{HostDevice, vectorise::vectorised};

/// Rows that are worth a task of their own.
const ROWS: usize = 32;

/// Base of the geometric series of wavelengths.
const THETA: f32 = 10_000.0;

/// Cosines and sines for the positions of a batch's rows.
pub(in crate::device) struct Rotation {
    /// Per row, one value for each pair of a head.
    pub(in crate::device) cos: Vec<f32>,
    /// Likewise.
    pub(in crate::device) sin: Vec<f32>,
    head_dim: usize,
}

impl Rotation {
    /// For rows at these positions.
    pub(in crate::device) fn new(positions: impl Iterator<Item = usize>, head_dim: usize) -> Self {
        let pairs = head_dim / 2;
        let frequencies: Vec<f32> =
            (0..pairs).map(|i| 1.0 / THETA.powf((2 * i) as f32 / head_dim as f32)).collect();
        let angles: Vec<f32> =
            positions.flat_map(|position| frequencies.iter().map(move |f| position as f32 * f)).collect();
        Self {
            cos: angles.iter().map(|angle| angle.cos()).collect(),
            sin: angles.iter().map(|angle| angle.sin()).collect(),
            head_dim,
        }
    }

    /// Rotates every head of rows `[rows, heads × head_dim]` in place.
    pub(super) fn apply(&self, device: &HostDevice, x: &mut [f32]) {
        let pairs = self.head_dim / 2;
        let rows = self.cos.len() / pairs;
        if rows == 0 {
            return;
        }
        let width = x.len() / rows;
        device.run(|| {
            x.par_chunks_exact_mut(width).with_min_len(ROWS).enumerate().for_each(|(row, x)| {
                let (cos, sin) = (&self.cos[row * pairs..][..pairs], &self.sin[row * pairs..][..pairs]);
                rotate(x, cos, sin);
            });
        });
    }
}

vectorised! {
    fn rotate(row: &mut [f32], cos: &[f32], sin: &[f32]) {
        for head in row.chunks_exact_mut(2 * cos.len()) {
            let (low, high) = head.split_at_mut(cos.len());
            for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use proptest::prelude::*;

    use super::*;
    use crate::device::host::ComputeDtype;

    fn device(threads: usize) -> std::sync::Arc<HostDevice> {
        HostDevice::new(NonZeroUsize::new(threads), ComputeDtype::F32).unwrap()
    }

    /// Rows of some heads, in [-1, 1].
    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.731).sin()).collect()
    }

    proptest! {
        #[test]
        fn rotation_agrees_with_f64(
            rows in 1usize..80, first in 0usize..1000, heads in 1usize..4, pairs in 1usize..40,
        ) {
            let (head_dim, width) = (2 * pairs, 2 * pairs * heads);
            let x = values(rows * width);
            let mut found = x.clone();
            Rotation::new(first..first + rows, head_dim).apply(&device(2), &mut found);
            for (i, found) in found.iter().enumerate() {
                let (position, pair) = ((first + i / width) as f64, i % pairs);
                let angle = position / 10_000f64.powf((2 * pair) as f64 / head_dim as f64);
                let is_high = i % head_dim >= pairs;
                let other = f64::from(if is_high { x[i - pairs] } else { x[i + pairs] });
                let turned = if is_high { other * angle.sin() } else { -other * angle.sin() };
                let expected = f64::from(x[i]) * angle.cos() + turned;
                // Angles are f32: their error grows with the position.
                let bound = 1e-6 + 4e-7 * position;
                prop_assert!((f64::from(*found) - expected).abs() < bound, "row {} pair {pair}", i / width);
            }
        }
    }

    #[test]
    fn a_bad_row_spoils_no_other() {
        let (rows, heads, head_dim) = (70, 3, 6);
        let width = heads * head_dim;
        let rotated = |mut x: Vec<f32>| {
            Rotation::new(5..5 + rows, head_dim).apply(&device(2), &mut x);
            x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
        };
        let clean = rotated(values(rows * width));
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = values(rows * width);
            x[33 * width..34 * width].fill(bad);
            let spoiled = rotated(x);
            assert!(clean[..33 * width] == spoiled[..33 * width], "{bad}: rows before");
            assert!(clean[34 * width..] == spoiled[34 * width..], "{bad}: rows behind");
            assert!(spoiled[33 * width..34 * width].iter().all(|x| !f32::from_bits(*x).is_finite()), "{bad}");
        }
    }

    #[test]
    fn rotation_keeps_lengths_and_depends_on_distance_only() {
        let rotated = |position| {
            let mut x = vec![0.3, -1.0, 0.5, 2.0];
            Rotation::new([position].into_iter(), 4).apply(&device(1), &mut x);
            x
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert_eq!(rotated(0), [0.3, -1.0, 0.5, 2.0]);
        assert!((dot(&rotated(7), &rotated(7)) - dot(&rotated(0), &rotated(0))).abs() < 1e-5);
        assert!((dot(&rotated(7), &rotated(9)) - dot(&rotated(107), &rotated(109))).abs() < 1e-4);
        assert!((dot(&rotated(7), &rotated(9)) - dot(&rotated(7), &rotated(12))).abs() > 1e-2);
    }
}
