//! Layer norm and RMS norm, one pass over each row, in f32.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::gemm::Rows;
use super::{HostDevice, vectorise::vectorised};
use crate::checkpoint::Checkpoint;

/// Added to the variance by SigLIP's and Gemma's norms alike.
const EPSILON: f32 = 1e-6;

/// Sum of `f(x)` over a row, in 16 interleaved partial sums.
#[inline(always)]
pub(in crate::device) fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += f(*x));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane += f(*x));
    lanes.iter().sum()
}

/// Applies `norm` to every row; the results are about to enter a product.
fn by_row(
    device: &HostDevice,
    x: &[f32],
    width: usize,
    norm: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) -> Rows {
    let mut rows = device.rows(x.len() / width, width);
    let writer = rows.writer();
    device.run(|| {
        x.par_chunks(width).enumerate().for_each_init(
            || vec![0.0; width],
            |y, (row, x)| {
                norm(row, x, y);
                // SAFETY: every row is written once.
                #[allow(unsafe_code)]
                unsafe {
                    writer.write(row, 0, y);
                }
            },
        );
    });
    rows
}

/// `(x - mean) / √(variance + ε) · weight + bias`.
pub(super) struct LayerNorm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

impl LayerNorm {
    /// `{name}.weight` and `{name}.bias`.
    pub(super) fn load(checkpoint: &Checkpoint, name: &str) -> Self {
        let read = |part| checkpoint.tensor(&format!("{name}.{part}")).to_f32();
        Self { weight: read("weight"), bias: read("bias") }
    }

    pub(super) fn apply(&self, device: &HostDevice, x: &[f32]) -> Rows {
        let width = self.weight.len();
        by_row(device, x, width, |_, x, y| layer_norm(x, &self.weight, &self.bias, y))
    }
}

vectorised! {
    fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        let mean = sum(x, |x| x) / x.len() as f32;
        let variance = sum(x, |x| (x - mean) * (x - mean)) / x.len() as f32;
        let scale = 1.0 / (variance + EPSILON).sqrt();
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = (x - mean) * scale * w + b;
        }
    }
}

vectorised! {
    fn rms_norm(x: &[f32], scale: &[f32], shift: Option<&[f32]>, y: &mut [f32]) {
        let factor = 1.0 / (sum(x, |x| x * x) / x.len() as f32 + EPSILON).sqrt();
        y.iter_mut().zip(x).zip(scale).for_each(|((y, x), scale)| *y = x * factor * scale);
        if let Some(shift) = shift {
            y.iter_mut().zip(shift).for_each(|(y, shift)| *y += shift);
        }
    }
}

/// What an adaptive norm of π0.5 does at one denoising step, and how far the sublayer behind it is let through.
pub(super) struct Modulation {
    /// `1 + scale`.
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
    pub(super) gate: Vec<f32>,
}

/// An RMS norm: `x / √(mean(x²) + ε) · scale (+ shift)`.
pub(super) enum RmsNorm<'a> {
    /// Gemma's: `scale = 1 + weight`, the same for every row.
    Plain(&'a [f32]),
    /// π0.5's: one modulation per row.
    Adaptive(&'a [&'a Modulation]),
}

impl RmsNorm<'_> {
    /// `1 + {name}.weight`.
    pub(super) fn load_scale(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
        let mut scale = checkpoint.tensor(&format!("{name}.weight")).to_f32();
        scale.iter_mut().for_each(|w| *w += 1.0);
        scale
    }

    pub(super) fn apply(&self, device: &HostDevice, x: &[f32], width: usize) -> Rows {
        by_row(device, x, width, |row, x, y| match self {
            RmsNorm::Plain(scale) => rms_norm(x, scale, None, y),
            RmsNorm::Adaptive(rows) => rms_norm(x, &rows[row].scale, Some(&rows[row].shift), y),
        })
    }

    /// How far the sublayer behind this norm is let through in a row; plain norms have no gate.
    pub(super) fn gate(&self, row: usize) -> Option<&[f32]> {
        match self {
            RmsNorm::Plain(_) => None,
            RmsNorm::Adaptive(rows) => Some(&rows[row].gate),
        }
    }
}
