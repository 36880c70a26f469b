//! Matrix product in f32 on blocks that fit the caches.
//!
//! Every element of a result is one chain of multiply-adds over the inner dimension in ascending order, starting at
//! zero: how rows, columns and threads are split changes no bit (*same-bits*).

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;
use safetensors::Dtype;

use super::{ComputeDtype, HostDevice, activation::round_to_bf16};
use crate::tensor_file::{StoredTensor, widen};

/// Columns that one micro-kernel call computes: two AVX2 vectors.
const PANEL: usize = 16;
/// Rows that one micro-kernel call computes at most: with two vectors a row they leave four registers of sixteen.
const ROWS: usize = 6;
/// Inner steps between two visits of the result: a panel of this depth takes 16 KB, half of a first-level cache.
const DEPTH: usize = 256;
/// Columns that one task computes: its packed block takes 64 KB and stays in the second-level cache.
const BLOCK: usize = 64;

/// The right-hand operand of a product, `inner × columns`.
#[derive(Clone, Copy)]
pub(in crate::device) enum Columns<'a> {
    /// A weight `[columns, inner]` as it lies in the checkpoint, rounded to the compute type when it is used.
    Stored(&'a StoredTensor, ComputeDtype),
    /// f32 values; element `(k, n)` at `n * stride + k`: keys, by token.
    ByColumn(&'a [f32], usize),
    /// f32 values; element `(k, n)` at `k * stride + n`: values, by token.
    ByRow(&'a [f32], usize),
    /// Whatever writes some columns of a row: weights that are stored in a form of their own.
    Written(&'a WriteRow<'a>),
}

/// Writes the elements `(k, n)` of one row `k` and of these columns.
pub(in crate::device) type WriteRow<'a> = dyn Fn(usize, Range<usize>, &mut [f32]) + Sync + 'a;

impl Columns<'_> {
    /// Writes elements `(k, n)` of the two ranges to `panel[k][n]`, rows of [`PANEL`] with zeros behind the last
    /// column.
    fn pack(&self, inner: Range<usize>, columns: Range<usize>, panel: &mut [f32]) {
        let depth = inner.len();
        if columns.len() < PANEL {
            panel.fill(0.0);
        }
        match *self {
            Columns::Stored(weight, dtype) => {
                let row = weight.shape()[1];
                let width = weight.dtype().bitsize() / 8;
                let mut values = [0.0; DEPTH];
                for (n, column) in columns.enumerate() {
                    let start = (column * row + inner.start) * width;
                    let bytes = &weight.bytes()[start..start + depth * width];
                    widen(weight.dtype(), bytes, &mut values[..depth]);
                    if dtype == ComputeDtype::Bf16 && weight.dtype() != Dtype::BF16 {
                        values[..depth].iter_mut().for_each(|value| *value = round_to_bf16(*value));
                    }
                    scatter(&values[..depth], n, panel);
                }
            }
            Columns::ByColumn(values, stride) => {
                for (n, column) in columns.enumerate() {
                    scatter(&values[column * stride + inner.start..][..depth], n, panel);
                }
            }
            Columns::ByRow(values, stride) => {
                for (k, row) in inner.zip(panel.chunks_exact_mut(PANEL)) {
                    row[..columns.len()]
                        .copy_from_slice(&values[k * stride + columns.start..][..columns.len()]);
                }
            }
            Columns::Written(write) => {
                for (k, row) in inner.zip(panel.chunks_exact_mut(PANEL)) {
                    write(k, columns.clone(), &mut row[..columns.len()]);
                }
            }
        }
    }
}

/// Writes one column of a panel.
fn scatter(values: &[f32], n: usize, panel: &mut [f32]) {
    for (value, row) in values.iter().zip(panel.chunks_exact_mut(PANEL)) {
        row[n] = *value;
    }
}

/// Adds `rows` rows of `x` (each `stride` apart, from `panel.len() / PANEL` inner steps on) times `panel` to `sums`.
type MicroKernel = fn(x: &[f32], stride: usize, panel: &[f32], sums: &mut [[f32; PANEL]]);

/// The fastest kernel of this CPU.
fn micro_kernel() -> MicroKernel {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        return avx2::detected;
    }
    portable::multiply_add
}

thread_local! {
    /// The packed block of the task that runs on this thread.
    static PACKED: RefCell<Vec<f32>> = RefCell::new(vec![0.0; DEPTH * BLOCK]);
}

/// `x [rows, inner]` times the given columns, `[rows, columns.len()]`, on the calling thread.
pub(in crate::device) fn multiply_block(
    x: &[f32],
    inner: usize,
    right: Columns<'_>,
    columns: Range<usize>,
) -> Vec<f32> {
    multiply_block_with(micro_kernel(), x, inner, right, columns)
}

fn multiply_block_with(
    kernel: MicroKernel,
    x: &[f32],
    inner: usize,
    right: Columns<'_>,
    columns: Range<usize>,
) -> Vec<f32> {
    let rows = x.len() / inner;
    let width = columns.len();
    let mut out = vec![0.0; rows * width];
    PACKED.with_borrow_mut(|packed| {
        for block in chunks(columns.clone(), BLOCK) {
            for depth in chunks(0..inner, DEPTH) {
                let panels: Vec<_> = chunks(block.clone(), PANEL).collect();
                for (panel, packed) in panels.iter().zip(packed.chunks_exact_mut(DEPTH * PANEL)) {
                    right.pack(depth.clone(), panel.clone(), &mut packed[..depth.len() * PANEL]);
                }
                for tile in chunks(0..rows, ROWS) {
                    for (panel, packed) in panels.iter().zip(packed.chunks_exact(DEPTH * PANEL)) {
                        let packed = &packed[..depth.len() * PANEL];
                        let at = panel.start - columns.start;
                        let x = &x[tile.start * inner + depth.start..];
                        add_tile(
                            kernel,
                            x,
                            inner,
                            packed,
                            &mut out[tile.start * width..],
                            at,
                            panel.len(),
                            tile.len(),
                            width,
                        );
                    }
                }
            }
        }
    });
    out
}

/// One tile of the result: out of memory, through the kernel, and back.
#[allow(clippy::too_many_arguments)] // the inner loop of the product, called from one place
fn add_tile(
    kernel: MicroKernel,
    x: &[f32],
    stride: usize,
    packed: &[f32],
    out: &mut [f32],
    at: usize,
    columns: usize,
    rows: usize,
    width: usize,
) {
    let mut sums = [[0.0; PANEL]; ROWS];
    for (row, sums) in sums[..rows].iter_mut().enumerate() {
        sums[..columns].copy_from_slice(&out[row * width + at..][..columns]);
    }
    kernel(x, stride, packed, &mut sums[..rows]);
    for (row, sums) in sums[..rows].iter().enumerate() {
        out[row * width + at..][..columns].copy_from_slice(&sums[..columns]);
    }
}

/// Consecutive pieces of at most `size`.
fn chunks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..(start + size).min(end))
}

/// `x [rows, inner]` times all columns, `[rows, columns]`, on the threads of the device.
pub(in crate::device) fn multiply(
    device: &HostDevice,
    x: &[f32],
    inner: usize,
    right: Columns<'_>,
    columns: usize,
) -> Vec<f32> {
    let rows = x.len() / inner;
    device.pool.install(|| {
        let starts: Vec<usize> = (0..columns).step_by(BLOCK).collect();
        let blocks: Vec<Vec<f32>> = starts
            .par_iter()
            .map(|&start| multiply_block(x, inner, right, start..(start + BLOCK).min(columns)))
            .collect();
        let mut out = vec![0.0; rows * columns];
        out.par_chunks_mut(columns).enumerate().for_each(|(row, out)| {
            for (out, block) in out.chunks_mut(BLOCK).zip(&blocks) {
                out.copy_from_slice(&block[row * out.len()..][..out.len()]);
            }
        });
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Values of a fixed sequence in [-1, 1].
    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn in_f64(x: &[f32], inner: usize, by_column: &[f32], columns: usize) -> Vec<f64> {
        x.chunks(inner)
            .flat_map(|x| {
                (0..columns).map(move |n| {
                    let w = &by_column[n * inner..][..inner];
                    x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>()
                })
            })
            .collect()
    }

    fn assert_close(found: &[f32], expected: &[f64], inner: usize) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            let bound = 1e-6 * (inner as f64).sqrt() + 1e-6 * expected.abs();
            assert!((f64::from(*found) - expected).abs() <= bound, "{found} {expected}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_kernel_and_layout_agrees_with_f64(
            rows in 1usize..20, inner in 1usize..600, columns in 1usize..150, seed in any::<u32>(),
        ) {
            let (x, w) = (values(rows * inner, seed), values(columns * inner, !seed));
            let expected = in_f64(&x, inner, &w, columns);
            let by_row: Vec<f32> = (0..inner * columns).map(|i| w[(i % columns) * inner + i / columns]).collect();
            for kernel in [micro_kernel(), portable::multiply_add] {
                let write = |k: usize, some: Range<usize>, out: &mut [f32]| {
                    out.copy_from_slice(&by_row[k * columns..][some]);
                };
                let layouts = [Columns::ByColumn(&w, inner), Columns::ByRow(&by_row, columns)];
                for right in layouts.into_iter().chain([Columns::Written(&write)]) {
                    let found = multiply_block_with(kernel, &x, inner, right, 0..columns);
                    assert_close(&found, &expected, inner);
                }
            }
        }

        #[test]
        fn same_bits_for_any_rows_columns_and_threads(
            rows in 1usize..20, inner in 1usize..600, columns in 1usize..300, seed in any::<u32>(),
        ) {
            let (x, w) = (values(rows * inner, seed), values(columns * inner, !seed));
            let right = Columns::ByColumn(&w, inner);
            let device = |n| HostDevice::new(std::num::NonZeroUsize::new(n), ComputeDtype::F32).unwrap();
            let whole = multiply(&device(2), &x, inner, right, columns);
            prop_assert_eq!(&whole, &multiply(&device(1), &x, inner, right, columns));
            let last = multiply_block(&x[(rows - 1) * inner..], inner, right, columns - 1..columns);
            prop_assert_eq!(last[0].to_bits(), whole[whole.len() - 1].to_bits());
        }
    }

    #[test]
    fn a_bad_row_spoils_no_other() {
        let (mut x, w) = (values(7 * 40, 1), values(33 * 40, 2));
        let right = Columns::ByColumn(&w, 40);
        let clean = multiply_block(&x, 40, right, 0..33);
        x[3 * 40..4 * 40].fill(f32::NAN);
        let spoiled = multiply_block(&x, 40, right, 0..33);
        assert!(spoiled[3 * 33..4 * 33].iter().all(|value| value.is_nan()));
        assert_eq!((&clean[..3 * 33], &clean[4 * 33..]), (&spoiled[..3 * 33], &spoiled[4 * 33..]));
    }
}
