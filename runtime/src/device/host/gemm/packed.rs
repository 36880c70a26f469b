//! Weights in the order in which kernels read them, packed once when they are loaded.

use std::ops::Range;

use rayon::prelude::*;
use safetensors::Dtype;

use super::kernel::{LANES, Words};
use super::rows::{Rounding, encode};
use super::{PANEL, Right};
use crate::device::host::pages::Pages;
use crate::device::host::vectorise::vectorised;
use crate::device::host::{ComputeDtype, HostDevice};
use crate::tensor_file::{StoredTensor, widen};

/// Which row of which matrix a column of the packed one is; `None` where it is padding.
type Column = Option<(usize, usize)>;

/// A matrix `inner × columns` of weights: panels of [`PANEL`] columns, in each of them word after word, and at each word
/// the lines of the panel side by side.
pub(in crate::device) struct Packed {
    words: Words,
    inner: usize,
    columns: usize,
    /// Panels that a task takes together.
    together: usize,
    data: Pages,
}

impl Packed {
    /// The rows of some matrices `[columns, inner]` one after the other; of each row only the values `inner`. In the
    /// compute type, where that loses nothing in bf16.
    pub(in crate::device) fn side_by_side(
        device: &HostDevice,
        matrices: &[&StoredTensor],
        inner: Range<usize>,
        dtype: ComputeDtype,
    ) -> Self {
        let columns = matrices
            .iter()
            .enumerate()
            .flat_map(|(matrix, stored)| (0..stored.shape()[0]).map(move |row| Some((matrix, row))))
            .collect();
        Self::pack(device, matrices, inner, columns, dtype)
    }

    /// Two matrices of one shape in turn: a line of the one, a line of the other, and so on; filled up with zeros to whole
    /// lines. Both lines reach `finish` of a product together.
    pub(in crate::device) fn in_turn(
        device: &HostDevice,
        matrices: [&StoredTensor; 2],
        dtype: ComputeDtype,
    ) -> Self {
        let &[rows, inner] = matrices[0].shape() else {
            unreachable!("weights of linear layers are matrices")
        };
        let columns = (0..rows.div_ceil(LANES))
            .flat_map(|line| (0..2).map(move |matrix| (matrix, line * LANES)))
            .flat_map(|(matrix, first)| (first..first + LANES).map(move |row| (matrix, row)))
            .map(|(matrix, row)| (row < rows).then_some((matrix, row)))
            .collect();
        // Two panels of three lines hold three of each.
        Self { together: 2, ..Self::pack(device, &matrices, 0..inner, columns, dtype) }
    }

    fn pack(
        device: &HostDevice,
        matrices: &[&StoredTensor],
        inner: Range<usize>,
        columns: Vec<Column>,
        dtype: ComputeDtype,
    ) -> Self {
        let exact_in_bf16 = matrices.iter().all(|matrix| matrix.dtype() == Dtype::BF16);
        let words = if dtype == ComputeDtype::Bf16 || exact_in_bf16 { Words::Pair } else { Words::Single };
        let depth = words.depth(inner.len());
        let mut data = Pages::new(depth * columns.len().next_multiple_of(LANES));
        device.run(|| {
            let panels = data.par_chunks_mut(PANEL * depth).zip(columns.par_chunks(PANEL));
            panels.for_each(|(panel, columns)| {
                let units = panel.len() / (depth * LANES);
                let mut lanes = vec![0; LANES * depth];
                for (unit, columns) in columns.chunks(LANES).enumerate() {
                    read_columns(matrices, &inner, columns, words, &mut lanes);
                    write_lines(&lanes, unit, units, panel);
                }
            });
        });
        matrices.iter().for_each(|matrix| matrix.release());
        Self { words, inner: inner.len(), columns: columns.len(), together: 1, data }
    }

    /// Words `chunk` of a panel; they lie side by side.
    fn stored(&self, panel: usize, chunk: Range<usize>) -> &[u32] {
        let depth = self.words.depth(self.inner);
        let lines = self.units(panel) * LANES;
        &self.data[panel * PANEL * depth..][chunk.start * lines..chunk.end * lines]
    }
}

/// Writes [`LANES`] columns, given one after the other, as lines: at each word, number `unit` of the `units` that stand side
/// by side in a panel.
pub(in crate::device::host) fn write_lines(lanes: &[u32], unit: usize, units: usize, panel: &mut [u32]) {
    let depth = lanes.len() / LANES;
    for (k, lines) in panel.chunks_exact_mut(units * LANES).enumerate() {
        let line = &mut lines[unit * LANES..][..LANES];
        line.iter_mut().zip(lanes.chunks_exact(depth)).for_each(|(word, lane)| *word = lane[k]);
    }
}

/// Words of some columns, one column after the other; zeros for padding.
fn read_columns(
    matrices: &[&StoredTensor],
    inner: &Range<usize>,
    columns: &[Column],
    words: Words,
    lanes: &mut [u32],
) {
    lanes.fill(0);
    let depth = lanes.len() / LANES;
    let mut values = vec![0.0; inner.len()];
    for (column, lane) in columns.iter().zip(lanes.chunks_exact_mut(depth)) {
        let Some((matrix, row)) = *column else { continue };
        let matrix = matrices[matrix];
        let (width, bytes) = (matrix.shape()[1], matrix.dtype().bitsize() / 8);
        let start = (row * width + inner.start) * bytes;
        widen(matrix.dtype(), &matrix.bytes()[start..start + inner.len() * bytes], &mut values);
        let rounding = match words {
            Words::Single => Rounding::F32,
            Words::Pair => Rounding::Bf16Pairs,
        };
        encode(rounding, &values, lane);
    }
}

impl Right for Packed {
    fn inner(&self) -> usize {
        self.inner
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn together(&self) -> usize {
        self.together
    }

    fn lines<'a>(
        &'a self,
        words: Words,
        panel: usize,
        chunk: Range<usize>,
        room: &'a mut [u32],
    ) -> &'a [u32] {
        if words == self.words {
            return self.stored(panel, chunk);
        }
        assert_eq!(words, Words::Single, "weights in f32 take rows in f32");
        // Chunks of single words start at even indices.
        let pairs = self.stored(panel, chunk.start / 2..chunk.end.div_ceil(2));
        let units = self.units(panel);
        let lines = &mut room[..chunk.len() * units * LANES];
        expand(pairs, units * LANES, lines);
        lines
    }

    fn ahead(&self, words: Words, panel: usize, chunk: Range<usize>) -> &[u32] {
        if words == self.words {
            self.stored(panel, chunk)
        } else {
            self.stored(panel, chunk.start / 2..chunk.end.div_ceil(2))
        }
    }
}

vectorised! {
    /// Words of two bf16 as twice as many of one f32; `lines` words stand side by side. The last odd one is left out where
    /// there is no room for it.
    fn expand(pairs: &[u32], lines: usize, out: &mut [u32]) {
        for (pairs, out) in pairs.chunks_exact(lines).zip(out.chunks_mut(2 * lines)) {
            let (even, odd) = out.split_at_mut(lines);
            if odd.is_empty() {
                even.iter_mut().zip(pairs).for_each(|(even, pair)| *even = pair << 16);
            } else {
                for ((even, odd), pair) in even.iter_mut().zip(odd).zip(pairs) {
                    (*even, *odd) = (pair << 16, pair & 0xffff_0000);
                }
            }
        }
    }
}
