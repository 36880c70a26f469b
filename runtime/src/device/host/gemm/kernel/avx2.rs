//! The kernel with 256-bit vectors and fused multiply-add: two registers hold a line.

use std::arch::x86_64::{
    __m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::{CHUNK, LANES, Tile};

/// Half a line: what a register holds.
const HALF: usize = LANES / 2;

/// Words of one f32. Only to be called where AVX2 and FMA were detected, with a tile that is sound.
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

/// One line of the tile: with six rows its sums take twelve of sixteen registers.
#[target_feature(enable = "avx2,fma")]
fn line<const R: usize>(tile: &mut Tile<'_>, unit: usize) {
    let Tile { x, lines, units, depth, sums, width, fresh, .. } = tile;
    let mut totals = [[_mm256_setzero_ps(); 2]; R];
    // SAFETY: `Kernel::run` has asserted that R rows of `x`, all lines at each of `depth` words, and all lines of R rows
    // of `sums` lie within the slices.
    #[allow(unsafe_code)]
    unsafe {
        // What is there is not read when sums are fresh.
        for (r, totals) in totals.iter_mut().enumerate().take(if *fresh { 0 } else { R }) {
            let sums = sums.as_ptr().add(r * *width + unit * LANES);
            *totals = [_mm256_loadu_ps(sums), _mm256_loadu_ps(sums.add(HALF))];
        }
        for k in 0..*depth {
            let columns = lines.as_ptr().add((k * *units + unit) * LANES).cast::<f32>();
            let columns: [__m256; 2] = [_mm256_loadu_ps(columns), _mm256_loadu_ps(columns.add(HALF))];
            for (r, totals) in totals.iter_mut().enumerate() {
                let word = _mm256_set1_ps(f32::from_bits(*x.get_unchecked(r * CHUNK + k)));
                for (total, column) in totals.iter_mut().zip(columns) {
                    *total = _mm256_fmadd_ps(word, column, *total);
                }
            }
        }
        for (r, totals) in totals.iter().enumerate() {
            let sums = sums.as_mut_ptr().add(r * *width + unit * LANES);
            _mm256_storeu_ps(sums, totals[0]);
            _mm256_storeu_ps(sums.add(HALF), totals[1]);
        }
    }
}
