//! The kernels in plain Rust: what the others are held against, and for CPUs that have none of their instructions.

use super::{CHUNK, LANES, Tile};

/// Words of one f32.
pub(super) fn multiply_add(tile: Tile<'_>) {
    each(tile, |sum, x, w| *sum += f32::from_bits(x) * f32::from_bits(w));
}

/// Words of two bf16.
pub(super) fn dot_pairs(tile: Tile<'_>) {
    let low = |word: u32| f32::from_bits(word << 16);
    let high = |word: u32| f32::from_bits(word & 0xffff_0000);
    each(tile, |sum, x, w| {
        *sum += high(x) * high(w);
        *sum += low(x) * low(w);
    });
}

#[inline(always)]
fn each(tile: Tile<'_>, add: impl Fn(&mut f32, u32, u32)) {
    let Tile { x, lines, rows, units, depth, sums, width, .. } = tile;
    for row in 0..rows {
        for (x, columns) in x[row * CHUNK..][..depth].iter().zip(lines.chunks_exact(units * LANES)) {
            for (sum, w) in sums[row * width..].iter_mut().zip(columns) {
                add(sum, *x, *w);
            }
        }
    }
}
