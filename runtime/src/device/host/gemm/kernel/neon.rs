//! The kernel with ARM's 128-bit vectors: four registers hold a line.

use std::arch::aarch64::{float32x4_t, vdupq_n_f32, vfmaq_f32, vld1q_f32, vst1q_f32};

use super::{CHUNK, LANES, Tile};

/// What a register holds.
const QUARTER: usize = LANES / 4;

/// Words of one f32. Only to be called where NEON was detected, with a tile that is sound.
pub(super) fn multiply_add(mut tile: Tile<'_>) {
    for unit in 0..tile.units {
        // SAFETY: a device has this kernel only where `Kernel::runs_here` has detected the instructions.
        #[allow(unsafe_code)]
        unsafe {
            match tile.rows {
                1 => line::<1>(&mut tile, unit),
                2 => line::<2>(&mut tile, unit),
                3 => line::<3>(&mut tile, unit),
                4 => line::<4>(&mut tile, unit),
                5 => line::<5>(&mut tile, unit),
                _ => line::<6>(&mut tile, unit),
            }
        }
    }
}

/// One line of the tile: with six rows its sums take 24 of 32 registers.
#[target_feature(enable = "neon")]
fn line<const R: usize>(tile: &mut Tile<'_>, unit: usize) {
    let Tile { x, lines, units, depth, sums, width, fresh, .. } = tile;
    // SAFETY: `Kernel::run` has asserted that R rows of `x`, all lines at each of `depth` words, and all lines of R rows
    // of `sums` lie within the slices.
    #[allow(unsafe_code)]
    unsafe {
        let mut totals: [[float32x4_t; 4]; R] = std::array::from_fn(|r| {
            let sums = sums.as_ptr().add(r * *width + unit * LANES);
            std::array::from_fn(|quarter| {
                if *fresh { vdupq_n_f32(0.0) } else { vld1q_f32(sums.add(quarter * QUARTER)) }
            })
        });
        for k in 0..*depth {
            let columns = lines.as_ptr().add((k * *units + unit) * LANES).cast::<f32>();
            let columns: [float32x4_t; 4] =
                std::array::from_fn(|quarter| vld1q_f32(columns.add(quarter * QUARTER)));
            for (r, totals) in totals.iter_mut().enumerate() {
                let word = vdupq_n_f32(f32::from_bits(*x.get_unchecked(r * CHUNK + k)));
                for (total, column) in totals.iter_mut().zip(columns) {
                    *total = vfmaq_f32(*total, word, column);
                }
            }
        }
        for (r, totals) in totals.into_iter().enumerate() {
            let sums = sums.as_mut_ptr().add(r * *width + unit * LANES);
            for (quarter, total) in totals.into_iter().enumerate() {
                vst1q_f32(sums.add(quarter * QUARTER), total);
            }
        }
    }
}
