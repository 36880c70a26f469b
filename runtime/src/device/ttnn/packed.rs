//! Values as a chip stores them, on the host.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::bfp8;
use super::program::{BFP8_BLOCK, Dtype, TILE};
use crate::device::host::HostDevice;

/// Rows of a matrix that are made at a time: whole tiles.
const ROWS: usize = 2 * TILE;

/// A matrix `[rows, columns]` in one of the chip's types.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    rows: usize,
    columns: usize,
    values: Values,
}

/// The values of a [`Packed`] matrix.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Row after row.
    Bf16(Vec<bf16>),
    /// Whole tiles, as [`bfp8`] writes them.
    Bfp8B(Vec<u32>),
    /// Row after row.
    F32(Vec<f32>),
}

impl Packed {
    /// A matrix whose rows `fill` writes, some of them at a time into zeros, on all threads. `None` for a type of
    /// numbers.
    pub(super) fn make(
        device: &HostDevice,
        dtype: Dtype,
        [rows, columns]: [usize; 2],
        fill: &(dyn Fn(Range<usize>, &mut [f32]) + Sync),
    ) -> Option<Self> {
        let blocks = Blocks { device, rows, columns, fill };
        let values = match dtype {
            Dtype::Bf16 => {
                let mut values = vec![bf16::ZERO; rows * columns];
                blocks.each(&mut values, ROWS * columns, |block, out| {
                    out.iter_mut().zip(block).for_each(|(out, x)| *out = to_bf16(*x));
                });
                Values::Bf16(values)
            }
            Dtype::Bfp8B => {
                let mut words = vec![0; bfp8::words(rows, columns)];
                blocks.each(&mut words, bfp8::words(ROWS, columns), |block, out| {
                    for (row, values) in block.chunks_exact(columns).enumerate() {
                        bfp8::encode_row(row, values, out);
                    }
                });
                Values::Bfp8B(words)
            }
            Dtype::F32 => {
                let mut values = vec![0.0; rows * columns];
                blocks.each(&mut values, ROWS * columns, |block, out| out.copy_from_slice(block));
                Values::F32(values)
            }
            Dtype::U32 => return None,
        };
        Some(Self { rows, columns, values })
    }

    /// A matrix out of the words of its tiles.
    ///
    /// # Panics
    /// When these are not the words of such a matrix.
    pub(super) fn of_tiles([rows, columns]: [usize; 2], words: Vec<u32>) -> Self {
        assert_eq!(words.len(), bfp8::words(rows, columns), "a matrix has its tiles");
        Self { rows, columns, values: Values::Bfp8B(words) }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// What is stored.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// Writes some values of a row.
    ///
    /// # Panics
    /// When there is no such row or column.
    pub fn read(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        match &self.values {
            Values::Bf16(values) => {
                let values = &values[row * self.columns..][columns];
                out.iter_mut().zip(values).for_each(|(out, x)| *out = from_bf16(*x));
            }
            Values::F32(values) => out.copy_from_slice(&values[row * self.columns..][columns]),
            Values::Bfp8B(words) => {
                let (mut at, end) = (columns.start, columns.end);
                let mut out = out;
                while at < end {
                    let block = bfp8::decode_block(words, self.columns, row, at / BFP8_BLOCK);
                    let some = (BFP8_BLOCK - at % BFP8_BLOCK).min(end - at);
                    let (now, rest) = out.split_at_mut(some);
                    now.copy_from_slice(&block[at % BFP8_BLOCK..][..some]);
                    (out, at) = (rest, at + some);
                }
            }
        }
    }

    /// All values, row after row.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.columns];
        for (row, out) in values.chunks_exact_mut(self.columns.max(1)).enumerate() {
            self.read(row, 0..self.columns, out);
        }
        values
    }
}

/// A matrix in the making, some rows at a time.
struct Blocks<'a> {
    device: &'a HostDevice,
    rows: usize,
    columns: usize,
    fill: &'a (dyn Fn(Range<usize>, &mut [f32]) + Sync),
}

impl Blocks<'_> {
    /// Packs every block of rows into its `size` elements of `out`.
    fn each<T: Send>(&self, out: &mut [T], size: usize, pack: impl Fn(&[f32], &mut [T]) + Sync) {
        let Self { rows, columns, .. } = *self;
        if rows * columns == 0 {
            return;
        }
        self.device.run(|| {
            out.par_chunks_mut(size).enumerate().for_each_init(
                Vec::new,
                |block: &mut Vec<f32>, (index, out)| {
                    let some = index * ROWS..((index + 1) * ROWS).min(rows);
                    block.clear();
                    block.resize(some.len() * columns, 0.0);
                    (self.fill)(some, block);
                    pack(block, out);
                },
            );
        });
    }
}

/// The nearest bf16, ties to even.
#[inline(always)]
fn to_bf16(x: f32) -> bf16 {
    bf16::from_bits((crate::device::host::activation::round_to_bf16(x).to_bits() >> 16) as u16)
}

#[inline(always)]
fn from_bf16(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}
