//! Weights in the order in which kernels read them, packed once when they are loaded.

use std::ops::Range;

use memmap2::MmapMut;
use rayon::prelude::*;
use safetensors::Dtype;

use super::kernel::{LANES, Words};
use super::rows::{Rounding, encode};
use super::{PANEL, Right};
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
    data: Data,
}

impl Packed {
    /// Neighbouring columns of one of two matrices that are packed in turn: two of them fill a line.
    pub(in crate::device) const TURN: usize = LANES / 2;

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

    /// Two matrices of one shape in turn: [`Packed::TURN`] rows of the one, as many of the other, and so on; filled up
    /// with zeros to whole lines.
    pub(in crate::device) fn in_turn(
        device: &HostDevice,
        matrices: [&StoredTensor; 2],
        dtype: ComputeDtype,
    ) -> Self {
        let &[rows, inner] = matrices[0].shape() else {
            unreachable!("weights of linear layers are matrices")
        };
        let columns = (0..rows.div_ceil(Self::TURN))
            .flat_map(|turn| (0..2).map(move |matrix| (matrix, turn * Self::TURN)))
            .flat_map(|(matrix, first)| (first..first + Self::TURN).map(move |row| (matrix, row)))
            .map(|(matrix, row)| (row < rows).then_some((matrix, row)))
            .collect();
        Self::pack(device, &matrices, 0..inner, columns, dtype)
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
        let depth = inner.len().div_ceil(words.values());
        let mut data = Data::new(depth * columns.len().next_multiple_of(LANES));
        device.run(|| {
            let panels = data.as_mut().par_chunks_mut(PANEL * depth).zip(columns.par_chunks(PANEL));
            panels.for_each(|(panel, columns)| {
                let units = panel.len() / (depth * LANES);
                let mut lanes = vec![0; LANES * depth];
                for (unit, columns) in columns.chunks(LANES).enumerate() {
                    read_columns(matrices, &inner, columns, words, &mut lanes);
                    for k in 0..depth {
                        let line = &mut panel[(k * units + unit) * LANES..][..LANES];
                        line.iter_mut()
                            .zip(lanes.chunks_exact(depth))
                            .for_each(|(word, lane)| *word = lane[k]);
                    }
                }
            });
        });
        matrices.iter().for_each(|matrix| matrix.release());
        Self { words, inner: inner.len(), columns: columns.len(), data }
    }

    /// Words `chunk` of a panel; they lie side by side.
    fn stored(&self, panel: usize, chunk: Range<usize>) -> &[u32] {
        let depth = self.inner.div_ceil(self.words.values());
        let lines = self.units(panel) * LANES;
        &self.data.as_ref()[panel * PANEL * depth..][chunk.start * lines..chunk.end * lines]
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

/// Words on pages of their own, large ones where the system has them: a product walks through gigabytes of weights, and
/// every small page costs a miss in the translation buffer.
struct Data(Option<MmapMut>);

impl Data {
    fn new(words: usize) -> Self {
        if words == 0 {
            return Self(None);
        }
        let map = MmapMut::map_anon(words * size_of::<u32>()).expect("the system has memory for the weights");
        #[cfg(target_os = "linux")]
        // Without large pages it works as well.
        let _ = map.advise(memmap2::Advice::HugePage);
        Self(Some(map))
    }

    fn as_ref(&self) -> &[u32] {
        self.0.as_ref().map_or(&[], |map| bytemuck::cast_slice(map))
    }

    fn as_mut(&mut self) -> &mut [u32] {
        self.0.as_mut().map_or(&mut [], |map| bytemuck::cast_slice_mut(map))
    }
}
