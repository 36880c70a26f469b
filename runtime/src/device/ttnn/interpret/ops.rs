//! What each call computes, in f32.

use std::sync::Arc;

use rayon::prelude::*;

use super::attention::Attention;
use super::{Floats, Held, Loaded, rearrange};
use crate::device::host::HostDevice;
use crate::device::host::activation::{gelu_all, round_to_bf16, silu_all};
use crate::device::host::gemm::{Columns, Layout, multiply_values};
use crate::device::host::norm::sum;
use crate::device::ttnn::bfp8;
use crate::device::ttnn::program::{Activation, Dtype, Op, TensorSpec, ValueId};

impl Loaded {
    fn device(&self) -> &HostDevice {
        self.board.weights.device()
    }

    /// Values as a tensor of this dtype holds them.
    pub(super) fn rounded(&self, mut values: Vec<f32>, spec: TensorSpec) -> Held {
        match spec.dtype {
            Dtype::Bf16 => self.each_row(&mut values, spec.shape[3], |_, row| {
                row.iter_mut().for_each(|x| *x = round_to_bf16(*x));
            }),
            Dtype::Bfp8B => self.each_row(&mut values, spec.shape[3], |_, row| bfp8::round(row)),
            Dtype::F32 | Dtype::U32 => {}
        }
        Held::Floats(Arc::new(values))
    }

    /// Changes every row, given by its number, on all threads.
    fn each_row(&self, values: &mut [f32], width: usize, change: impl Fn(usize, &mut [f32]) + Sync) {
        self.device().run(|| {
            values.par_chunks_mut(width.max(1)).enumerate().for_each(|(index, row)| change(index, row));
        });
    }

    /// The results of a call that only computes.
    pub(super) fn compute(&self, op: &Op) -> Result<Vec<Vec<f32>>, String> {
        Ok(vec![match op {
            Op::Linear { x, weight, bias, activation, .. } => self.linear(*x, *weight, *bias, *activation)?,
            Op::LayerNorm { x, weight, bias, epsilon, .. } => {
                let (weight, bias) = (self.floats(*weight)?, self.floats(*bias)?);
                self.layer_norm(&self.floats(*x)?, [&weight.values, &bias.values], *epsilon)
            }
            Op::RmsNorm { x, weight, epsilon, .. } => {
                let weight = weight.map(|weight| self.floats(weight)).transpose()?;
                let weight = weight.as_ref().map(|weight| &weight.values[..]);
                self.rms_norm(&self.floats(*x)?, weight, *epsilon)
            }
            Op::Add { a, b } => self.both(*a, *b, None, |a, b| a + b)?,
            Op::Multiply { a, b, activation } => self.both(*a, *b, *activation, |a, b| a * b)?,
            Op::MultiplyScalar { x, value } => {
                self.by_row(*x, |row| row.iter_mut().for_each(|x| *x *= value))?
            }
            Op::Activate { x, activation } => self.by_row(*x, |row| activate(*activation, row))?,
            Op::Embedding { ids, table } => self.embedding(*ids, *table)?,
            Op::Rotary { x, cos, sin } => {
                self.rotary(&self.floats(*x)?, &self.floats(*cos)?, &self.floats(*sin)?)
            }
            Op::SplitHeads { x, heads, kv_heads } => {
                return Ok(rearrange::split_heads(&self.floats(*x)?, *heads, *kv_heads));
            }
            Op::ConcatHeads { x } => rearrange::concat_heads(&self.floats(*x)?),
            Op::Attention { q, k, v, mask, scale, .. } => {
                let mask = mask.map(|mask| self.floats(mask)).transpose()?;
                let (q, k, v) = (self.floats(*q)?, self.floats(*k)?, self.floats(*v)?);
                Attention { q, k, v, mask, scale: *scale }.run(self.device())
            }
            Op::Concat { parts, dim } => {
                let parts = parts.iter().map(|part| self.floats(*part)).collect::<Result<Vec<_>, _>>()?;
                rearrange::concat(&parts, *dim)
            }
            Op::Slice { x, begin, end } => rearrange::slice(&self.floats(*x)?, begin, end),
            Op::Copy { .. } | Op::Send { .. } | Op::Receive { .. } => {
                return Err("this call makes no tensor".into());
            }
        }])
    }

    fn linear(
        &self,
        x: ValueId,
        weight: ValueId,
        bias: Option<ValueId>,
        activation: Option<Activation>,
    ) -> Result<Vec<f32>, String> {
        let x = self.floats(x)?;
        let columns = self.program.value(weight).spec.shape[3];
        let right = |layout| Columns { inner: x.width(), columns, layout };
        let mut y = match self.held(weight)? {
            Held::Weight(weight) => {
                let write = |row, columns, out: &mut [f32]| weight.read(row, columns, out);
                multiply_values(self.device(), &x.values, &right(Layout::Written(&write)))
            }
            _ => {
                let weight = self.floats(weight)?;
                multiply_values(self.device(), &x.values, &right(Layout::ByRow(&weight.values, columns)))
            }
        };
        let bias = bias.map(|bias| self.floats(bias)).transpose()?;
        self.each_row(&mut y, columns, |_, row| {
            if let Some(bias) = &bias {
                row.iter_mut().zip(bias.values.iter()).for_each(|(y, bias)| *y += bias);
            }
            if let Some(activation) = activation {
                activate(activation, row);
            }
        });
        Ok(y)
    }

    fn by_row(&self, x: ValueId, change: impl Fn(&mut [f32]) + Sync) -> Result<Vec<f32>, String> {
        let x = self.floats(x)?;
        let mut y = x.values.to_vec();
        self.each_row(&mut y, x.width(), |_, row| change(row));
        Ok(y)
    }

    /// `f(activation(a), b)`, where a dimension of 1 in `b` is repeated.
    fn both(
        &self,
        a: ValueId,
        b: ValueId,
        activation: Option<Activation>,
        f: impl Fn(f32, f32) -> f32 + Sync,
    ) -> Result<Vec<f32>, String> {
        let (a, b) = (self.floats(a)?, self.floats(b)?);
        let [_, j, rows, width] = a.shape;
        let place = |index: usize, dim: usize| if b.shape[dim] == 1 { 0 } else { index };
        let mut y = a.values.to_vec();
        self.each_row(&mut y, width, |row, y| {
            let outer = place(row / (j * rows), 0) * b.shape[1] + place(row / rows % j, 1);
            let start = (outer * b.shape[2] + place(row % rows, 2)) * b.width();
            let b = &b.values[start..][..b.width()];
            if let Some(activation) = activation {
                activate(activation, y);
            }
            match b {
                [only] => y.iter_mut().for_each(|y| *y = f(*y, *only)),
                _ => y.iter_mut().zip(b).for_each(|(y, b)| *y = f(*y, *b)),
            }
        });
        Ok(y)
    }

    fn layer_norm(&self, x: &Floats, [weight, bias]: [&[f32]; 2], epsilon: f32) -> Vec<f32> {
        let width = x.width();
        let mut y = x.values.to_vec();
        self.each_row(&mut y, width, |_, row| {
            let mean = sum(row, |x| x) / width as f32;
            let variance = sum(row, |x| (x - mean) * (x - mean)) / width as f32;
            let factor = 1.0 / (variance + epsilon).sqrt();
            for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
                *x = (*x - mean) * factor * weight + bias;
            }
        });
        y
    }

    fn rms_norm(&self, x: &Floats, weight: Option<&[f32]>, epsilon: f32) -> Vec<f32> {
        let width = x.width();
        let mut y = x.values.to_vec();
        self.each_row(&mut y, width, |_, row| {
            let factor = 1.0 / (sum(row, |x| x * x) / width as f32 + epsilon).sqrt();
            row.iter_mut().for_each(|x| *x *= factor);
            if let Some(weight) = weight {
                row.iter_mut().zip(weight).for_each(|(x, weight)| *x *= weight);
            }
        });
        y
    }

    /// Rows of a table, by numbers.
    fn embedding(&self, ids: ValueId, table: ValueId) -> Result<Vec<f32>, String> {
        let Held::Numbers(ids) = self.held(ids)? else {
            return Err("rows are looked up by numbers, found floats".into());
        };
        let [_, _, rows, width] = self.program.value(table).spec.shape;
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            let name = &self.program.value(table).name;
            return Err(format!("there is no row {id} in `{name}`, which has {rows}"));
        }
        let held = self.held(table)?;
        let mut y = vec![0.0; ids.len() * width];
        for (id, out) in ids.iter().zip(y.chunks_exact_mut(width)) {
            match held {
                Held::Weight(weight) => weight.read(*id as usize, 0..width, out),
                Held::Floats(values) => out.copy_from_slice(&values[*id as usize * width..][..width]),
                Held::Numbers(_) => return Err("a table holds floats, found numbers".into()),
            }
        }
        Ok(y)
    }

    /// Each half of a head with the other, by its token's angles.
    fn rotary(&self, x: &Floats, cos: &Floats, sin: &Floats) -> Vec<f32> {
        let [_, _, tokens, width] = x.shape;
        let mut y = vec![0.0; x.values.len()];
        self.each_row(&mut y, width, |row, y| {
            let x = &x.values[row * width..][..width];
            let [cos, sin] = [cos, sin].map(|table| &table.values[row % tokens * width..][..width]);
            for (i, y) in y.iter_mut().enumerate() {
                let half = width / 2;
                let other = if i < half { -x[i + half] } else { x[i - half] };
                *y = x[i] * cos[i] + other * sin[i];
            }
        });
        y
    }
}

fn activate(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::Gelu => gelu_all(values),
        Activation::Silu => silu_all(values),
    }
}
