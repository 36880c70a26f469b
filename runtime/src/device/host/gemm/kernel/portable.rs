//! The kernel in plain Rust, for CPUs that have none of the others' instructions.

use super::{CHUNK, LANES, Tile};

/// Words of one f32.
pub(super) fn multiply_add(tile: Tile<'_>) {
    let Tile { x, lines, rows, units, depth, sums, width, fresh, .. } = tile;
    for row in 0..rows {
        if fresh {
            sums[row * width..][..units * LANES].fill(0.0);
        }
        for (x, columns) in x[row * CHUNK..][..depth].iter().zip(lines.chunks_exact(units * LANES)) {
            for (sum, w) in sums[row * width..].iter_mut().zip(columns) {
                *sum += f32::from_bits(*x) * f32::from_bits(*w);
            }
        }
    }
}
