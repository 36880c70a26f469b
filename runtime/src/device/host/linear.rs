//! A linear layer over a weight that stays in the checkpoint's mapping.

use rayon::prelude::*;

use super::gemm::{Columns, multiply};
use super::{ComputeDtype, HostDevice};
use crate::checkpoint::Checkpoint;
use crate::tensor_file::StoredTensor;

/// `y = x · weightᵀ (+ bias)`.
pub(super) struct Linear {
    weight: StoredTensor,
    bias: Option<Vec<f32>>,
    dtype: ComputeDtype,
}

impl Linear {
    /// `{name}.weight` without a bias.
    pub(super) fn load(device: &HostDevice, checkpoint: &Checkpoint, name: &str) -> Self {
        let weight = flat(checkpoint.tensor(&format!("{name}.weight")));
        Self { weight, bias: None, dtype: device.dtype() }
    }

    /// `{name}.weight` and `{name}.bias`.
    pub(super) fn load_with_bias(device: &HostDevice, checkpoint: &Checkpoint, name: &str) -> Self {
        let bias = Some(checkpoint.tensor(&format!("{name}.bias")).to_f32());
        Self { bias, ..Self::load(device, checkpoint, name) }
    }

    /// The same layer computed in f32 whatever the device's type: for the small projections at the model's edges.
    pub(super) fn in_f32(self) -> Self {
        Self { dtype: ComputeDtype::F32, ..self }
    }

    /// Values that one row takes.
    pub(super) fn inputs(&self) -> usize {
        self.weight.shape()[1]
    }

    /// Values that one row becomes.
    pub(super) fn outputs(&self) -> usize {
        self.weight.shape()[0]
    }

    /// Applies the layer to rows `[rows, inputs]`, which the caller has rounded to the compute type where that matters.
    pub(super) fn apply(&self, device: &HostDevice, x: &[f32]) -> Vec<f32> {
        let right = Columns::Stored(&self.weight, self.dtype);
        let mut y = multiply(device, x, self.inputs(), right, self.outputs());
        if let Some(bias) = &self.bias {
            device.pool.install(|| {
                y.par_chunks_mut(bias.len()).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
            });
        }
        y
    }
}

/// A weight as a matrix: all dimensions but the first side by side, as a convolution's kernel is.
fn flat(weight: &StoredTensor) -> StoredTensor {
    weight.clone().reshaped(vec![weight.shape()[0], weight.shape()[1..].iter().product()])
}
