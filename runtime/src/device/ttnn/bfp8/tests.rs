use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::tensor_file::TensorFile;

/// What TT-NN made of the values of a file that `tests/ttnn-mock/bfp8_reference.py` wrote.
#[test]
fn words_and_values_are_tt_nns_bit_for_bit() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device/ttnn/bfp8/reference.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let tensor = |name: &str| &file.tensors()[name];
    let &[rows, columns] = tensor("values").shape() else { panic!("a matrix") };
    let expected: Vec<u32> =
        tensor("words").bytes().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    let found = encode(rows, columns, &tensor("values").to_f32());
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let (tile, word) = (index / TILE_WORDS, index % TILE_WORDS);
        assert_eq!(found, expected, "word {word} of tile {tile}: {found:08x}, TT-NN {expected:08x}");
    }
    let unpacked = decode(rows, columns, &expected);
    for (index, (found, expected)) in unpacked.iter().zip(tensor("unpacked").to_f32()).enumerate() {
        let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
        assert!(same, "row {}, column {}: {found:e}, TT-NN {expected:e}", index / columns, index % columns);
    }
}

#[test]
fn places_in_tiles_are_those_of_the_format() {
    // Row 17, column 50 of two tiles side by side: tile 1, lower right face, its row 1, its column 2.
    let (rows, columns) = (32, 64);
    let mut values = vec![0.0; rows * columns];
    values[17 * columns + 50] = -1.5;
    let words = encode(rows, columns, &values);
    let bytes: &[u8] = bytemuck::cast_slice(&words);
    let (line, start) = (3 * 16 + 1, TILE_WORDS * 4);
    let set: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    assert_eq!(set, [start + line, start + 64 + line * 16 + 2]);
    assert_eq!((bytes[set[0]], bytes[set[1]]), (127, 0x80 | 96));
}

/// Finite numbers of all magnitudes, near each other or not.
fn row() -> impl Strategy<Value = Vec<f32>> {
    let any = prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO;
    let near = (-1.0f32..1.0, -20i32..20).prop_map(|(x, power)| x * 2f32.powi(power));
    prop_oneof![prop::collection::vec(any, 1..70), prop::collection::vec(near, 1..70)]
}

proptest! {
    #[test]
    fn values_are_kept_to_seven_bits_of_the_largest_of_their_block(row in row()) {
        let mut found = row.clone();
        round(&mut found);
        for (block, found) in row.chunks(BFP8_BLOCK).zip(found.chunks(BFP8_BLOCK)) {
            let largest = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            // A unit is 2^-6 of the largest power of two; sticking to the largest mantissa costs up to a whole one.
            let unit = f64::from(largest) * 2f64.powi(-6);
            for (x, y) in block.iter().zip(found) {
                let error = (f64::from(*x) - f64::from(*y)).abs();
                // The smallest numbers have no mantissa of their own left when they are read back.
                prop_assert!(error <= unit + f64::from(f32::MIN_POSITIVE), "{x:e} became {y:e} beside {largest:e}");
                prop_assert!(*y == 0.0 || x.is_sign_negative() == y.is_sign_negative());
            }
        }
    }

    #[test]
    fn encoding_again_changes_nothing(row in row()) {
        // Where all mantissas can be read back: TT-NN loses bits of numbers near the smallest exponent.
        let row: Vec<f32> = row.into_iter().map(|x| if x.abs() < 1e-30 { 0.0 } else { x }).collect();
        let mut once = row;
        round(&mut once);
        let mut twice = once.clone();
        round(&mut twice);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn a_power_of_two_moves_through(row in prop::collection::vec(-8.0f32..8.0, 1..40), power in -40i32..40) {
        let factor = 2f32.powi(power);
        let mut scaled: Vec<f32> = row.iter().map(|x| x * factor).collect();
        let mut plain = row;
        round(&mut scaled);
        round(&mut plain);
        let expected: Vec<f32> = plain.iter().map(|x| x * factor).collect();
        prop_assert_eq!(scaled, expected);
    }

    #[test]
    fn a_larger_value_is_never_stored_as_a_smaller_one(row in row()) {
        let mut found = row.clone();
        round(&mut found);
        for (block, found) in row.chunks(BFP8_BLOCK).zip(found.chunks(BFP8_BLOCK)) {
            for (i, j) in (0..block.len()).flat_map(|i| (0..block.len()).map(move |j| (i, j))) {
                // The smallest exponents are read back without their leading bit.
                if block[i] < block[j] && block[j].abs().max(block[i].abs()) > 1e-30 {
                    prop_assert!(found[i] <= found[j], "{:e} < {:e}", block[i], block[j]);
                }
            }
        }
    }

    #[test]
    fn a_matrix_is_its_rows(rows in 1usize..70, columns in 1usize..70, seed in any::<u32>()) {
        let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 - 8e6;
        let values: Vec<f32> = (0..rows * columns).map(value).collect();
        let words = encode(rows, columns, &values);
        prop_assert_eq!(words.len(), words_of(rows, columns));
        let mut expected = values;
        expected.chunks_exact_mut(columns).for_each(round);
        prop_assert_eq!(decode(rows, columns, &words), expected);
    }
}

fn words_of(rows: usize, columns: usize) -> usize {
    rows.div_ceil(32) * columns.div_ceil(32) * 272
}

#[test]
fn what_is_lost_is_what_tt_nn_loses() {
    let rounded = |mut row: Vec<f32>| {
        round(&mut row);
        row
    };
    // Beside 1 a unit is 1/64: ties go to even, and what lies below 2^-23 of the tie was shifted out before.
    assert_eq!(rounded(vec![1.0, 1.5 / 64.0, 2.5 / 64.0]), [1.0, 2.0 / 64.0, 2.0 / 64.0]);
    assert_eq!(rounded(vec![1.0, 2.5f32.next_up() / 64.0]), [1.0, 2.0 / 64.0]);
    // No carry into the next exponent.
    assert_eq!(rounded(vec![1.999_999_9]), [127.0 / 64.0]);
    // A zero has no sign, and subnormal numbers are zeros.
    assert!(rounded(vec![-0.0, -1e-40]).iter().all(|x| x.to_bits() == 0));
    let found = rounded(vec![f32::INFINITY, -f32::INFINITY, 1.0]);
    assert_eq!(found, [f32::INFINITY, f32::NEG_INFINITY, 0.0]);
}
