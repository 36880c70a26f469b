use std::num::NonZeroUsize;
use std::sync::Arc;

use half::bf16;
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

use super::*;
use crate::device::host::ComputeDtype;
use crate::tensor_file::{StoredTensor, TensorFile};

/// Values of a fixed sequence in [-1, 1].
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
}

/// A matrix as a checkpoint has it.
fn stored(values: &[f32], width: usize, dtype: Dtype) -> StoredTensor {
    let bytes: Vec<u8> = match dtype {
        Dtype::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let view = TensorView::new(dtype, vec![values.len() / width, width], &bytes).unwrap();
    serialize_to_file([("w", view)], None, file.path()).unwrap();
    TensorFile::open(file.path()).unwrap().tensors()["w"].clone()
}

fn device(threads: usize, dtype: ComputeDtype, kernel: Kernel) -> Arc<HostDevice> {
    HostDevice::with_kernel(NonZeroUsize::new(threads), dtype, kernel).unwrap()
}

/// `x [rows, inner]` times the columns `[columns, inner]`.
fn in_f64(x: &[f32], inner: usize, by_column: &[f32]) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
    x.chunks(inner).flat_map(|x| by_column.chunks(inner).map(move |w| dot(x, w))).collect()
}

/// Sums of `inner` products of values in [-1, 1].
fn is_close(found: &[f32], expected: &[f64], inner: usize) -> bool {
    let bound = |expected: f64| 1e-6 * (inner as f64).sqrt() + 1e-6 * expected.abs();
    let close = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs() <= bound(*expected);
    found.len() == expected.len() && found.iter().zip(expected).all(close)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The product of row-major values and a packed weight, rounded as the device does.
fn product(device: &HostDevice, x: &[f32], weight: &Packed) -> Vec<f32> {
    store(device, &device.rows_of(x, weight.inner()), weight, &|_, _| ()).to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_kernel_and_layout_agrees_with_f64(
        rows in 1usize..30, inner in 1usize..600, columns in 1usize..200, seed in any::<u32>(),
    ) {
        // Whole 64ths: their sums are exact in f32, in whatever order, where a long sum of others may round too far.
        let whole = |values: Vec<f32>| -> Vec<f32> { values.iter().map(|x| (x * 64.0).round() / 64.0).collect() };
        let (x, w) = (whole(values(rows * inner, seed)), whole(values(columns * inner, !seed)));
        let expected = in_f64(&x, inner, &w);
        let by_row: Vec<f32> = (0..inner * columns).map(|i| w[(i % columns) * inner + i / columns]).collect();
        let write = |k: usize, some: Range<usize>, out: &mut [f32]| {
            out.copy_from_slice(&by_row[k * columns..][some]);
        };
        for kernel in Kernel::available() {
            let device = device(2, ComputeDtype::F32, kernel);
            let layouts = [Layout::ByColumn(&w, inner), Layout::ByRow(&by_row, columns), Layout::Written(&write)];
            for layout in layouts {
                let found = multiply_values(&device, &x, &Columns { inner, columns, layout });
                prop_assert!(is_close(&found, &expected, inner), "{kernel:?}");
            }
        }
    }

    #[test]
    fn every_kernel_and_stored_type_agrees_with_f64(
        rows in 1usize..30, inner in 1usize..500, columns in 1usize..120, seed in any::<u32>(),
    ) {
        let (x, w) = (values(rows * inner, seed), values(columns * inner, !seed));
        let (near_x, near_w) = (rounded(&x), rounded(&w));
        for kernel in Kernel::available() {
            for kept in [Dtype::BF16, Dtype::F32] {
                let weight = stored(&w, inner, kept);
                for dtype in [ComputeDtype::Bf16, ComputeDtype::F32] {
                    let x = if dtype == ComputeDtype::Bf16 { &near_x } else { &x };
                    let near = dtype == ComputeDtype::Bf16 || kept == Dtype::BF16;
                    let device = device(2, dtype, kernel);
                    let packed = Packed::side_by_side(&device, &[&weight], 0..inner, dtype);
                    let found = product(&device, x, &packed);
                    let expected = in_f64(x, inner, if near { &near_w } else { &w });
                    prop_assert!(is_close(&found, &expected, inner), "{kernel:?} {kept:?} {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn same_bits_for_any_rows_columns_and_threads(
        rows in 1usize..500, inner in 1usize..450, columns in 1usize..300, seed in any::<u32>(),
    ) {
        let (x, w) = (values(rows * inner, seed), values(columns * inner, !seed));
        let last = stored(&w[(columns - 1) * inner..], inner, Dtype::BF16);
        let weight = stored(&w, inner, Dtype::BF16);
        for kernel in Kernel::available() {
            let [one, three] = [1, 3].map(|threads| device(threads, ComputeDtype::Bf16, kernel));
            let packed = Packed::side_by_side(&one, &[&weight], 0..inner, ComputeDtype::Bf16);
            let whole = product(&three, &x, &packed);
            prop_assert!(bits(&whole) == bits(&product(&one, &x, &packed)), "{kernel:?}: threads");
            let alone = Packed::side_by_side(&one, &[&last], 0..inner, ComputeDtype::Bf16);
            let corner = product(&one, &x[(rows - 1) * inner..], &alone);
            prop_assert!(corner[0].to_bits() == whole[whole.len() - 1].to_bits(), "{kernel:?}: rows and columns");
        }
    }

    #[test]
    fn weights_in_turn_are_those_of_both(rows in 1usize..70, inner in 1usize..40, seed in any::<u32>()) {
        let halves = [values(rows * inner, seed), values(rows * inner, !seed)];
        let device = device(1, ComputeDtype::F32, Kernel::Portable);
        let [one, other] = [0, 1].map(|half| stored(&halves[half], inner, Dtype::F32));
        let packed = Packed::in_turn(&device, [&one, &other], ComputeDtype::F32);
        let x = values(inner, 7);
        let found = product(&device, &x, &packed);
        let apart = [0, 1].map(|half| in_f64(&x, inner, &halves[half]));
        for (column, found) in found.iter().enumerate() {
            let (turn, lane) = (column / LANES, column % LANES);
            let expected = apart[turn % 2].get(turn / 2 * LANES + lane).copied().unwrap_or(0.0);
            prop_assert!(is_close(&[*found], &[expected], inner), "column {column}");
        }
    }

    #[test]
    fn rows_give_back_what_was_written(rows in 1usize..9, half_width in 1usize..500, cut in 0usize..500) {
        let width = 2 * half_width;
        let cut = 2 * (cut % half_width);
        let values = values(rows * width, 3);
        let pool = Arc::default();
        for rounding in [Rounding::F32, Rounding::Bf16AsF32, Rounding::Bf16Pairs] {
            let mut written = Rows::unwritten(&pool, rounding, rows, width);
            let writer = written.writer();
            for (row, values) in values.chunks(width).enumerate() {
                for (first, part) in [(cut, &values[cut..]), (0, &values[..cut])] {
                    // SAFETY: one thread writes.
                    #[allow(unsafe_code)]
                    unsafe {
                        writer.write(row, first, part);
                    }
                }
            }
            let expected = if rounding == Rounding::F32 { values.clone() } else { rounded(&values) };
            prop_assert!(bits(&written.to_values()) == bits(&expected), "{rounding:?}");
        }
    }
}

proptest! {
    #[test]
    fn tasks_are_all_rows_and_panels_once(
        rows in 0usize..2000, panels in 0usize..200, together in 1usize..3, threads in 1usize..40,
    ) {
        let mut seen = vec![0; rows * panels];
        for (rows, some) in tasks(rows, panels, together, threads) {
            prop_assert!(rows.len() <= BLOCK_ROWS && some.len() <= BLOCK_PANELS);
            prop_assert!(some.start.is_multiple_of(together), "a group is cut");
            prop_assert!(some.end.is_multiple_of(together) || some.end == panels, "a group is cut");
            rows.for_each(|row| some.clone().for_each(|panel| seen[row * panels + panel] += 1));
        }
        prop_assert!(seen.iter().all(|times| *times == 1));
    }

    #[test]
    fn pairs_are_neighbours(count in 1usize..150, seed in any::<u32>()) {
        let values = values(count, seed);
        let mut words = vec![u32::MAX; count.div_ceil(2)];
        encode(Rounding::Bf16Pairs, &values, &mut words);
        for (word, pair) in words.iter().zip(values.chunks(2)) {
            let half = |index: usize| pair.get(index).map_or(0, |x| u32::from(bf16::from_f32(*x).to_bits()));
            prop_assert!(*word == half(0) | half(1) << 16);
        }
    }
}

#[test]
fn fresh_sums_forget_what_was_there() {
    let singles = Kernel::available().into_iter().map(|kernel| (kernel, Words::Single));
    let pairs = Kernel::available().into_iter().map(|kernel| (kernel, kernel.words_of_bf16()));
    for (kernel, words) in singles.chain(pairs) {
        // Twice one in a word, or one and one.
        let [x, line] = match words {
            Words::Single => [2.0f32.to_bits(), 1.0f32.to_bits()],
            Words::Pair => [0x3f80_3f80; 2],
        };
        for (fresh, expected) in [(true, 6.0), (false, 7.0)] {
            let mut sums = [if fresh { f32::NAN } else { 1.0 }; 3 * 2 * LANES];
            kernel.run(
                words,
                Tile {
                    x: &[x; 3 * CHUNK],
                    lines: &[line; 3 * 2 * LANES],
                    rows: 3,
                    units: 2,
                    depth: 3,
                    sums: &mut sums,
                    width: 2 * LANES,
                    fresh,
                    ahead: Ahead { lines: &[0; LANES], rows: &[0; LANES] },
                },
            );
            assert!(sums.iter().all(|sum| *sum == expected), "{kernel:?}");
        }
    }
}

#[test]
fn a_bad_row_spoils_no_other() {
    let (mut x, w) = (values(7 * 40, 1), values(33 * 40, 2));
    let weight = stored(&w, 40, Dtype::BF16);
    for kernel in Kernel::available() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let device = device(1, ComputeDtype::Bf16, kernel);
            let packed = Packed::side_by_side(&device, &[&weight], 0..40, ComputeDtype::Bf16);
            let clean = product(&device, &x, &packed);
            let good = x.clone();
            x[3 * 40..4 * 40].fill(bad);
            let spoiled = product(&device, &x, &packed);
            x = good;
            assert!(bits(&clean) == bits(&product(&device, &x, &packed)), "{kernel:?} {bad}: left behind");
            assert!(spoiled[3 * 33..4 * 33].iter().all(|value| !value.is_finite()), "{kernel:?} {bad}");
            assert!(bits(&clean[..3 * 33]) == bits(&spoiled[..3 * 33]), "{kernel:?} {bad}");
            assert!(bits(&clean[4 * 33..]) == bits(&spoiled[4 * 33..]), "{kernel:?} {bad}");
        }
    }
}

#[test]
#[should_panic(expected = "a tile that its slices do not hold")]
fn a_tile_that_is_too_short_is_refused() {
    let tile = Tile {
        x: &[0; CHUNK],
        lines: &[0; 8 * LANES],
        rows: 2,
        units: 1,
        depth: 8,
        sums: &mut [0.0; 2 * LANES],
        width: LANES,
        fresh: true,
        ahead: Ahead::default(),
    };
    Kernel::fastest().run(Words::Single, tile);
}
