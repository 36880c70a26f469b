//! Right-hand operands that are used as they come, and packed panel by panel in the course of the product.

use std::ops::Range;

use super::kernel::{LANES, Words};
use super::{PANEL, Right};

/// f32 values `inner × columns`, however they lie.
#[derive(Clone, Copy)]
pub(in crate::device) struct Columns<'a> {
    pub(in crate::device) inner: usize,
    pub(in crate::device) columns: usize,
    pub(in crate::device) layout: Layout<'a>,
}

/// Where the element of an inner index `k` and a column `n` is found.
#[derive(Clone, Copy)]
pub(in crate::device) enum Layout<'a> {
    /// At `n · stride + k`: keys, by token.
    ByColumn(&'a [f32], usize),
    /// At `k · stride + n`: values, by token.
    ByRow(&'a [f32], usize),
    /// Whatever writes some columns of a row: weights that are stored in a form of their own.
    Written(&'a WriteRow<'a>),
}

/// Writes the elements `(k, n)` of one row `k` and of these columns.
pub(in crate::device) type WriteRow<'a> = dyn Fn(usize, Range<usize>, &mut [f32]) + Sync + 'a;

impl Right for Columns<'_> {
    fn inner(&self) -> usize {
        self.inner
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn lines<'a>(
        &'a self,
        words: Words,
        panel: usize,
        chunk: Range<usize>,
        room: &'a mut [u32],
    ) -> &'a [u32] {
        assert_eq!(words, Words::Single, "f32 values take rows in f32");
        let columns = panel * PANEL..((panel + 1) * PANEL).min(self.columns);
        let width = self.units(panel) * LANES;
        let lines = &mut room[..chunk.len() * width];
        lines.fill(0);
        let out: &mut [f32] = bytemuck::cast_slice_mut(lines);
        match self.layout {
            Layout::ByColumn(values, stride) => {
                for (n, column) in columns.enumerate() {
                    let values = &values[column * stride..][chunk.clone()];
                    values.iter().zip(out.chunks_exact_mut(width)).for_each(|(value, out)| out[n] = *value);
                }
            }
            Layout::ByRow(values, stride) => {
                for (k, out) in chunk.zip(out.chunks_exact_mut(width)) {
                    out[..columns.len()].copy_from_slice(&values[k * stride..][columns.clone()]);
                }
            }
            Layout::Written(write) => {
                for (k, out) in chunk.zip(out.chunks_exact_mut(width)) {
                    write(k, columns.clone(), &mut out[..columns.len()]);
                }
            }
        }
        lines
    }
}
