//! Between host and chip: types, layouts and memories, and TT-NN's bfp8_b format.
#![cfg(feature = "ttnn")]
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

mod mock;

use half::bf16;
use mock::{empty, has_chip, one_chip, skipped, turn};
use ttnn_sys::{CoreGrid, DataType, Layout, Memory, ShardStrategy, Sharding, Tensor, pack_bfp8, unpack_bfp8};

/// 32-bit words of a bfp8_b tile.
const TILE_WORDS: usize = 272;

fn ramp(count: u32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 - 100.0) / 64.0).collect()
}

#[test]
fn every_type_goes_into_every_memory() {
    let _turn = turn();
    let mesh = one_chip();
    let shape = [1, 1, 128, 256];
    let sharding = Sharding {
        strategy: ShardStrategy::Block,
        shard_height: 64,
        shard_width: 128,
        grid: CoreGrid { x: 2, y: 2 },
    };
    for memory in [Memory::Dram, Memory::L1, Memory::Sharded(sharding)] {
        for dtype in [DataType::Bf16, DataType::F32, DataType::Bfp8B] {
            let x = Tensor::from_f32(&mesh, &ramp(128 * 256), &shape, dtype, Layout::Tile, memory).unwrap();
            assert_eq!((x.shape(), x.dtype(), x.layout()), (&shape[..], dtype, Layout::Tile));
            assert_eq!(
                (x.is_in_l1(), x.is_sharded()),
                (memory != Memory::Dram, memory == Memory::Sharded(sharding))
            );
            x.write_f32(&ramp(128 * 256)).unwrap();
            assert_eq!(x.to_f32().unwrap().len(), 128 * 256);
        }
        let raw = vec![bf16::ONE; 128 * 256];
        let x = Tensor::from_bf16(&mesh, &raw, &shape, Layout::Tile, memory).unwrap();
        x.write_bf16(&raw).unwrap();
    }
    let ids = Tensor::from_u32(&mesh, &[5; 100], &[1, 100], Layout::RowMajor, Memory::Dram).unwrap();
    ids.write_u32(&[6; 100]).unwrap();
    assert_eq!(ids.to_u32().unwrap().len(), 100);
}

#[test]
fn tiles_are_padded_and_row_major_is_not() {
    let _turn = turn();
    let mesh = one_chip();
    let upload = |layout| {
        Tensor::from_f32(&mesh, &ramp(50 * 70), &[1, 1, 50, 70], DataType::Bf16, layout, Memory::Dram)
            .unwrap()
    };
    assert_eq!(upload(Layout::Tile).padded_shape(), [1, 1, 64, 96]);
    assert_eq!(upload(Layout::RowMajor).padded_shape(), [1, 1, 50, 70]);
    assert_eq!(upload(Layout::Tile).to_f32().unwrap().len(), 50 * 70);
}

#[test]
fn bfp8_shares_an_exponent_among_sixteen() {
    let _turn = turn();
    let mesh = one_chip();
    // 1.5 = 1.5 · 2⁰: exponent 127; the mantissa has an explicit leading bit, 7 bits in all: 1.5 · 2⁶ = 96.
    let words = pack_bfp8(&mesh, &[1.5; 1024], &[1, 1, 32, 32]).unwrap();
    assert_eq!(words.len(), TILE_WORDS);
    assert!(words[..16].iter().all(|&exponents| exponents == 0x7f7f_7f7f));
    assert!(words[16..].iter().all(|&values| values == 0x6060_6060));

    let mut values = [1.0; 1024];
    values[0] = -64.0;
    let unpacked = unpack_bfp8(&mesh, &pack_bfp8(&mesh, &values, &[32, 32]).unwrap(), &[32, 32]).unwrap();
    assert_eq!(unpacked[..17], {
        // What shares the exponent of 64 is rounded to multiples of 1.
        let mut row = [1.0; 17];
        row[0] = -64.0;
        row
    });
    let coarse: Vec<f32> = (0..1024).map(|i| if i % 16 == 0 { 100.0 } else { 0.3 }).collect();
    let unpacked = unpack_bfp8(&mesh, &pack_bfp8(&mesh, &coarse, &[32, 32]).unwrap(), &[32, 32]).unwrap();
    assert!(unpacked.iter().enumerate().all(|(i, &x)| x == if i % 16 == 0 { 100.0 } else { 0.0 }));
}

#[test]
fn bfp8_words_are_tiles_in_row_major_order() {
    let _turn = turn();
    let mesh = one_chip();
    let value = |row: usize, column: usize| (row / 32 * 2 + column / 32 + 1) as f32;
    let values: Vec<f32> = (0..64 * 64).map(|i| value(i / 64, i % 64)).collect();
    let words = pack_bfp8(&mesh, &values, &[1, 1, 64, 64]).unwrap();
    for (tile, words) in words.chunks(TILE_WORDS).enumerate() {
        let alone = pack_bfp8(&mesh, &[tile as f32 + 1.0; 1024], &[1, 1, 32, 32]).unwrap();
        assert_eq!(words, alone, "tile {tile}");
    }
}

#[test]
fn raw_bfp8_words_go_up_as_they_are() {
    let _turn = turn();
    let mesh = one_chip();
    let shape = [1, 1, 64, 96];
    let words = pack_bfp8(&mesh, &ramp(64 * 96), &shape).unwrap();
    assert_eq!(words.len(), 6 * TILE_WORDS);
    let x = Tensor::from_bfp8_words(&mesh, &words, &shape, Memory::Dram).unwrap();
    assert_eq!((x.shape(), x.dtype()), (&shape[..], DataType::Bfp8B));
    x.write_bfp8_words(&words).unwrap();
    let few = Tensor::from_bfp8_words(&mesh, &words[1..], &shape, Memory::Dram).unwrap_err();
    assert!(few.to_string().contains("1632 words, not 1631"), "{few}");
}

#[test]
fn what_goes_up_comes_back() {
    let _turn = turn();
    if !has_chip() {
        return skipped("what_goes_up_comes_back", "give zeros back");
    }
    let mesh = one_chip();
    let values = ramp(64 * 96);
    let shape = [1, 1, 64, 96];
    let x = Tensor::from_f32(&mesh, &values, &shape, DataType::F32, Layout::Tile, Memory::Dram).unwrap();
    assert_eq!(x.to_f32().unwrap(), values);
    let packed = empty(&mesh, &shape, DataType::Bfp8B);
    let words = pack_bfp8(&mesh, &values, &shape).unwrap();
    packed.write_bfp8_words(&words).unwrap();
    assert_eq!(packed.to_f32().unwrap(), unpack_bfp8(&mesh, &words, &shape).unwrap());
}
