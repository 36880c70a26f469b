//! Linear layers over packed weights, with what follows them.

#[cfg(test)]
mod tests;

use super::activation::{gelu_all, gelu_tanh};
use super::gemm::{LANES, MatrixWriter, Packed, Right, Rounding, Rows, multiply, store};
use super::norm::RmsNorm;
use super::scratch::Values;
use super::{ComputeDtype, HostDevice, vectorise::vectorised};
use crate::checkpoint::Checkpoint;
use crate::tensor_file::StoredTensor;

/// `y = x · weightᵀ (+ bias)`.
pub(super) struct Linear {
    pub(super) weight: Packed,
    pub(super) bias: Option<Vec<f32>>,
}

impl Linear {
    /// `{name}.weight` of some layers that take the same rows, their outputs side by side; without biases.
    pub(super) fn load(device: &HostDevice, checkpoint: &Checkpoint, names: &[String]) -> Self {
        Self { weight: pack(device, checkpoint, names, device.dtype()), bias: None }
    }

    /// The same with `{name}.bias`.
    pub(super) fn load_with_bias(device: &HostDevice, checkpoint: &Checkpoint, names: &[String]) -> Self {
        Self { bias: Some(biases(checkpoint, names)), ..Self::load(device, checkpoint, names) }
    }

    /// One layer with a bias, computed in f32 whatever the device's type: for the small projections at the model's edges.
    pub(super) fn load_in_f32(device: &HostDevice, checkpoint: &Checkpoint, name: &str) -> Self {
        let names = [name.to_owned()];
        let weight = pack(device, checkpoint, &names, ComputeDtype::F32);
        Self { weight, bias: Some(biases(checkpoint, &names)) }
    }

    /// Values that one row takes.
    pub(super) fn inputs(&self) -> usize {
        self.weight.inner()
    }

    /// Values that one row becomes.
    pub(super) fn outputs(&self) -> usize {
        self.weight.columns()
    }

    /// Applies the layer to rows `[rows, inputs]`.
    pub(super) fn apply(&self, device: &HostDevice, x: &Rows) -> Values {
        store(device, x, &self.weight, &|columns, y| self.add_bias(columns.start, y))
    }

    /// Applies a layer that is computed in f32 to row-major values.
    pub(super) fn apply_in_f32(&self, device: &HostDevice, x: &[f32]) -> Vec<f32> {
        self.apply(device, &Rows::of(device, Rounding::F32, x, self.inputs())).to_vec()
    }

    /// Adds what the layer gives to a residual stream `[rows, outputs]`, through the gate of the norm in front of the
    /// sublayer, if it has one.
    pub(super) fn add_to(
        &self,
        device: &HostDevice,
        x: &Rows,
        hidden: &mut [f32],
        norm: Option<&RmsNorm<'_>>,
    ) {
        let writer = MatrixWriter::new(hidden, self.outputs());
        multiply(device, x, &self.weight, &|row, columns, y| {
            self.add_bias(columns.start, y);
            // SAFETY: `multiply` hands out every element of the result once.
            #[allow(unsafe_code)]
            let hidden = unsafe { writer.part(row, columns.clone()) };
            match norm.and_then(|norm| norm.gate(row)) {
                None => add(hidden, y),
                Some(gate) => add_through(hidden, y, &gate[columns]),
            }
        });
    }

    /// `gelu` of what the layer gives, as rows for the next product.
    pub(super) fn apply_gelu(&self, device: &HostDevice, x: &Rows) -> Rows {
        let mut out = device.rows(x.rows(), self.outputs());
        let writer = out.writer();
        multiply(device, x, &self.weight, &|row, columns, y| {
            self.add_bias(columns.start, y);
            gelu_all(y);
            // SAFETY: `multiply` hands out every element of the result once, in pieces that start at even columns.
            #[allow(unsafe_code)]
            unsafe {
                writer.write(row, columns.start, y);
            }
        });
        out
    }

    fn add_bias(&self, first: usize, y: &mut [f32]) {
        if let Some(bias) = &self.bias {
            add(y, &bias[first..]);
        }
    }
}

/// The first half of a gated MLP: `gelu(gate(x)) · up(x)` in one product.
pub(super) struct GatedLinear {
    weight: Packed,
    outputs: usize,
}

impl GatedLinear {
    /// `{gate}.weight` and `{up}.weight`.
    pub(super) fn load(device: &HostDevice, checkpoint: &Checkpoint, gate: &str, up: &str) -> Self {
        let [gate, up] = [gate, up].map(|name| checkpoint.tensor(&format!("{name}.weight")));
        Self::pack(device, gate, up)
    }

    /// Two matrices of one shape, `[outputs, inputs]`.
    pub(super) fn pack(device: &HostDevice, gate: &StoredTensor, up: &StoredTensor) -> Self {
        Self { weight: Packed::in_turn(device, [gate, up], device.dtype()), outputs: gate.shape()[0] }
    }

    /// Applies it to rows, and gives rows for the next product.
    pub(super) fn apply(&self, device: &HostDevice, x: &Rows) -> Rows {
        let mut out = device.rows(x.rows(), self.outputs);
        let writer = out.writer();
        multiply(device, x, &self.weight, &|row, columns, y| {
            gate(y);
            let first = columns.start / 2;
            let y = &y[..(y.len() / 2).min(self.outputs.saturating_sub(first))];
            // SAFETY: `multiply` hands out every element of the result once, and two of them make one of these.
            #[allow(unsafe_code)]
            unsafe {
                writer.write(row, first, y);
            }
        });
        out
    }
}

vectorised! {
    /// `gelu(gate) · up` of lines that stand in turn; the results move together at the front.
    fn gate(y: &mut [f32]) {
        for at in (0..y.len()).step_by(2 * LANES) {
            let (gates, ups) = y[at..at + 2 * LANES].split_at_mut(LANES);
            gates.iter_mut().zip(ups).for_each(|(gate, up)| *gate = gelu_tanh(*gate) * *up);
            y.copy_within(at..at + LANES, at / 2);
        }
    }
}

vectorised! {
    fn add(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    }
}

vectorised! {
    fn add_through(y: &mut [f32], x: &[f32], gate: &[f32]) {
        y.iter_mut().zip(x).zip(gate).for_each(|((y, x), gate)| *y += gate * x);
    }
}

fn pack(device: &HostDevice, checkpoint: &Checkpoint, names: &[String], dtype: ComputeDtype) -> Packed {
    let weights: Vec<StoredTensor> =
        names.iter().map(|name| flat(checkpoint.tensor(&format!("{name}.weight")))).collect();
    let weights: Vec<&StoredTensor> = weights.iter().collect();
    let inner = weights[0].shape()[1];
    Packed::side_by_side(device, &weights, 0..inner, dtype)
}

fn biases(checkpoint: &Checkpoint, names: &[String]) -> Vec<f32> {
    names.iter().flat_map(|name| checkpoint.tensor(&format!("{name}.bias")).to_f32()).collect()
}

/// A weight as a matrix: all dimensions but the first side by side, as a convolution's kernel is.
fn flat(weight: &StoredTensor) -> StoredTensor {
    weight.clone().reshaped(vec![weight.shape()[0], weight.shape()[1..].iter().product()])
}
