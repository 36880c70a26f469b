//! The left operand of a product.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::kernel::{LANES, Words};
use super::{CHUNK, chunks_of};
use crate::device::host::HostDevice;
use crate::device::host::activation::{bf16_pair, round_to_bf16};
use crate::device::host::scratch::{Scratch, ScratchPool};
use crate::device::host::vectorise::vectorised;

/// How values become words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::device) enum Rounding {
    /// As they are.
    F32,
    /// To the nearest bf16, as f32.
    Bf16AsF32,
    /// To the nearest bf16, two in a word.
    Bf16Pairs,
}

impl Rounding {
    pub(in crate::device::host) fn words(self) -> Words {
        if self == Rounding::Bf16Pairs { Words::Pair } else { Words::Single }
    }
}

/// Rows of values `[rows, width]` as kernels read them: pieces of [`CHUNK`] words along the width, and in each of them
/// row after row, the last piece filled up with words that nobody reads.
pub(in crate::device) struct Rows {
    rounding: Rounding,
    rows: usize,
    width: usize,
    data: Scratch,
}

impl Rows {
    /// Rows that the caller writes before they are read.
    pub(in crate::device) fn unwritten(
        pool: &Arc<ScratchPool>,
        rounding: Rounding,
        rows: usize,
        width: usize,
    ) -> Self {
        let words = rounding.words().depth(width).next_multiple_of(CHUNK);
        Self { rounding, rows, width, data: pool.take(rows * words) }
    }

    /// Row-major values of the given width.
    pub(in crate::device) fn of(
        device: &HostDevice,
        rounding: Rounding,
        values: &[f32],
        width: usize,
    ) -> Self {
        let mut rows = Self::unwritten(&device.scratch, rounding, values.len() / width, width);
        let writer = rows.writer();
        device.run(|| {
            values.par_chunks(width).enumerate().for_each(|(row, values)| {
                // SAFETY: every row is written once.
                #[allow(unsafe_code)]
                unsafe {
                    writer.write(row, 0, values);
                }
            });
        });
        rows
    }

    pub(in crate::device) fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub(in crate::device) fn width(&self) -> usize {
        self.width
    }

    /// The values, row-major.
    pub(in crate::device) fn to_values(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.rows * self.width);
        for row in 0..self.rows {
            let end = values.len() + self.width;
            for chunk in chunks_of(self.width, self.words()) {
                let words = &self.chunk(&chunk, row..row + 1)[..chunk.len()];
                match self.words() {
                    Words::Single => values.extend(words.iter().map(|word| f32::from_bits(*word))),
                    Words::Pair => values.extend(
                        words.iter().flat_map(|word| [word << 16, word & 0xffff_0000]).map(f32::from_bits),
                    ),
                }
            }
            values.truncate(end);
        }
        values
    }

    pub(super) fn words(&self) -> Words {
        self.rounding.words()
    }

    /// Words `chunk` of some rows, which are [`CHUNK`] words apart. `chunk` is one of [`super::chunks_of`].
    pub(super) fn chunk(&self, chunk: &Range<usize>, rows: Range<usize>) -> &[u32] {
        let start = chunk.start * self.rows;
        &self.data[start + rows.start * CHUNK..start + rows.end * CHUNK]
    }

    /// What threads write through.
    pub(in crate::device) fn writer(&mut self) -> RowsWriter<'_> {
        RowsWriter {
            data: self.data.as_mut_ptr(),
            rounding: self.rounding,
            rows: self.rows,
            width: self.width,
            borrowed: PhantomData,
        }
    }
}

/// Writes parts of rows from several threads.
pub(in crate::device) struct RowsWriter<'a> {
    data: *mut u32,
    rounding: Rounding,
    rows: usize,
    width: usize,
    borrowed: PhantomData<&'a mut [u32]>,
}

// SAFETY: the only access is `write`, whose callers see to it that no two threads write the same values.
#[allow(unsafe_code)]
unsafe impl Sync for RowsWriter<'_> {}

impl RowsWriter<'_> {
    /// Writes values of a row from column `first` on, an even one. An odd number of them ends the row: the other half of
    /// its last pair becomes zero.
    ///
    /// # Safety
    /// No other thread writes the same values at the same time.
    #[allow(unsafe_code)]
    pub(in crate::device) unsafe fn write(&self, row: usize, first: usize, values: &[f32]) {
        let per_word = self.rounding.words().values();
        assert!(row < self.rows && first + values.len() <= self.width && first.is_multiple_of(per_word));
        let mut values = values;
        let mut word = first / per_word;
        while !values.is_empty() {
            let chunk = word / CHUNK * CHUNK;
            let count = (CHUNK - (word - chunk)).min(values.len().div_ceil(per_word));
            let (now, later) = values.split_at(values.len().min(count * per_word));
            let start = chunk * self.rows + row * CHUNK + (word - chunk);
            // SAFETY: `count` words from `start` on belong to this row and chunk, which lie within the rows as asserted
            // above, and nobody else accesses them, as the caller promises.
            let out = unsafe { std::slice::from_raw_parts_mut(self.data.add(start), count) };
            encode(self.rounding, now, out);
            (values, word) = (later, word + count);
        }
    }
}

vectorised! {
    /// Values as words, the other half of an odd last pair zero.
    pub(in crate::device::host) fn encode(rounding: Rounding, values: &[f32], out: &mut [u32]) {
        match rounding {
            Rounding::F32 => out.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_bits()),
            Rounding::Bf16AsF32 => {
                out.iter_mut().zip(values).for_each(|(out, value)| *out = round_to_bf16(*value).to_bits());
            }
            Rounding::Bf16Pairs => {
                let (whole, rest) = values.as_chunks::<{ 2 * LANES }>();
                let (lines, last) = out.as_chunks_mut::<LANES>();
                lines.iter_mut().zip(whole).for_each(|(line, values)| pairs(values, line));
                if !rest.is_empty() {
                    let mut padded = [0.0; 2 * LANES];
                    padded[..rest.len()].copy_from_slice(rest);
                    let mut line = [0; LANES];
                    pairs(&padded, &mut line);
                    // A row may end within its last line or at the end of it.
                    let out = if last.is_empty() { lines.last_mut().map_or(&mut [][..], |line| line) } else { last };
                    out.iter_mut().zip(line).for_each(|(out, word)| *out = word);
                }
            }
        }
    }
}

/// A line of neighbouring pairs.
#[inline(always)]
fn pairs(values: &[f32; 2 * LANES], line: &mut [u32; LANES]) {
    for (word, [low, high]) in line.iter_mut().zip(values.as_chunks().0) {
        *word = bf16_pair(*low, *high);
    }
}
