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
    use super::*;
    use crate::device::host::ComputeDtype;

    #[test]
    fn rotation_keeps_lengths_and_depends_on_distance_only() {
        let rotated = |position| {
            let mut x = vec![0.3, -1.0, 0.5, 2.0];
            let device = HostDevice::new(std::num::NonZeroUsize::new(1), ComputeDtype::F32).unwrap();
            Rotation::new([position].into_iter(), 4).apply(&device, &mut x);
            x
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert_eq!(rotated(0), [0.3, -1.0, 0.5, 2.0]);
        assert!((dot(&rotated(7), &rotated(7)) - dot(&rotated(0), &rotated(0))).abs() < 1e-5);
        assert!((dot(&rotated(7), &rotated(9)) - dot(&rotated(107), &rotated(109))).abs() < 1e-4);
        assert!((dot(&rotated(7), &rotated(9)) - dot(&rotated(7), &rotated(12))).abs() > 1e-2);
    }
}
