//! Masked attention by head.

use rayon::prelude::*;

use super::Floats;
use crate::device::host::HostDevice;
use crate::device::host::activation::exp;
use crate::device::host::gemm::{Columns, Layout, multiply_values};
use crate::device::host::vectorise::vectorised;

/// Query rows that one task computes.
const ROWS: usize = 64;

/// Queries, keys, values, and what is added to scores.
pub(super) struct Attention {
    pub(super) q: Floats,
    pub(super) k: Floats,
    pub(super) v: Floats,
    pub(super) mask: Option<Floats>,
    pub(super) scale: f32,
}

impl Attention {
    /// `softmax(q · kᵀ · scale + mask) · v`, `[a, heads, queries, width]`. Keys of score −∞ have no share at all. A row
    /// that may attend to nothing is not a number.
    pub(super) fn run(&self, device: &HostDevice) -> Vec<f32> {
        let [_, _, queries, width] = self.q.shape;
        let mut out = vec![0.0; self.q.values.len()];
        device.run(|| {
            out.par_chunks_mut(queries * width).enumerate().for_each(|(head, out)| {
                out.par_chunks_mut(ROWS * width).enumerate().for_each(|(block, out)| {
                    out.copy_from_slice(&self.block(device, head, block * ROWS, out.len() / width));
                });
            });
        });
        out
    }

    /// Some query rows of head `head`, counted over the whole batch.
    fn block(&self, device: &HostDevice, head: usize, first: usize, rows: usize) -> Vec<f32> {
        let [_, heads, queries, width] = self.q.shape;
        let [_, kv_heads, keys, _] = self.k.shape;
        let (batch, shared) = (head / heads, head % heads / (heads / kv_heads));
        let cached = (batch * kv_heads + shared) * keys * width..;
        let q = &self.q.values[(head * queries + first) * width..][..rows * width];
        let layout = Layout::ByColumn(&self.k.values[cached.clone()], width);
        let mut scores = multiply_values(device, q, &Columns { inner: width, columns: keys, layout });
        for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
            let mask = self.mask.as_ref().map(|mask| {
                let batch = if mask.shape[0] == 1 { 0 } else { batch };
                &mask.values[(batch * queries + first + row) * keys..][..keys]
            });
            softmax(scores, mask, self.scale);
        }
        let layout = Layout::ByRow(&self.v.values[cached], width);
        multiply_values(device, &scores, &Columns { inner: keys, columns: width, layout })
    }
}

vectorised! {
    fn softmax(row: &mut [f32], mask: Option<&[f32]>, scale: f32) {
        row.iter_mut().for_each(|x| *x *= scale);
        if let Some(mask) = mask {
            row.iter_mut().zip(mask).for_each(|(x, mask)| *x += mask);
        }
        let highest = row.iter().fold(f32::NEG_INFINITY, |highest, x| highest.max(*x));
        let mut sum = 0.0;
        for x in row.iter_mut() {
            let share = exp(*x - highest);
            // `exp` has a smallest value; a score that is not a number must not become one.
            *x = if x.is_nan() {
                *x
            } else if *x == f32::NEG_INFINITY {
                0.0
            } else {
                share
            };
            sum += *x;
        }
        let factor = 1.0 / sum;
        row.iter_mut().for_each(|x| *x *= factor);
    }
}
