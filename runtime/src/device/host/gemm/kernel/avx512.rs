//! The kernels with 512-bit vectors: a register holds a line.

use std::arch::x86_64::{
    __m512bh, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::{CHUNK, LANES, Tile, UNITS};

/// The loop for the number of rows and lines of a tile, with everything unrolled.
macro_rules! unrolled {
    ($tile:ident, $kernel:ident) => {
        match $tile.rows {
            1 => unrolled!($tile, $kernel, 1),
            2 => unrolled!($tile, $kernel, 2),
            3 => unrolled!($tile, $kernel, 3),
            4 => unrolled!($tile, $kernel, 4),
            5 => unrolled!($tile, $kernel, 5),
            6 => unrolled!($tile, $kernel, 6),
            7 => unrolled!($tile, $kernel, 7),
            8 => unrolled!($tile, $kernel, 8),
            _ => unrolled!($tile, $kernel, 9),
        }
    };
    ($tile:ident, $kernel:ident, $rows:literal) => {
        match $tile.units {
            1 => $kernel::<$rows, 1>($tile),
            2 => $kernel::<$rows, 2>($tile),
            _ => $kernel::<$rows, UNITS>($tile),
        }
    };
}

/// Words of one f32. Only to be called where AVX-512F was detected, with a tile that is sound.
pub(super) fn multiply_add(tile: Tile<'_>) {
    // SAFETY: a device has this kernel only where `Kernel::runs_here` has detected the instructions.
    #[allow(unsafe_code)]
    unsafe {
        unrolled!(tile, singles)
    }
}

/// Words of two bf16. Only to be called where AVX512-BF16 was detected, with a tile that is sound.
pub(super) fn dot_pairs(tile: Tile<'_>) {
    // SAFETY: a device has this kernel only where `Kernel::runs_here` has detected the instructions.
    #[allow(unsafe_code)]
    unsafe {
        unrolled!(tile, pairs)
    }
}

/// Writes the loop over the words of a tile; `$step` adds the product of a row's word and a line to a sum.
macro_rules! tile_loop {
    ($name:ident, $features:literal, $line:expr, $word:expr, $step:expr) => {
        #[target_feature(enable = $features)]
        fn $name<const R: usize, const V: usize>(tile: Tile<'_>) {
            let Tile { x, lines, depth, sums, width, fresh, ahead, .. } = tile;
            let mut totals = [[_mm512_setzero_ps(); V]; R];
            // SAFETY: `Kernel::run` has asserted that R rows of `x`, V lines of `lines` at each of `depth` words, and V
            // lines of R rows of `sums` lie within the slices; prefetching touches no memory.
            #[allow(unsafe_code)]
            unsafe {
                if !fresh {
                    for r in 0..R {
                        for v in 0..V {
                            totals[r][v] = _mm512_loadu_ps(sums.as_ptr().add(r * width + v * LANES));
                        }
                    }
                }
                let (mut lines_ahead, mut rows_ahead) =
                    (ahead.lines.as_ptr_range(), ahead.rows.as_ptr_range());
                let mut word_at = |k: usize| {
                    let columns: [_; V] =
                        std::array::from_fn(|v| $line(lines.as_ptr().add((k * V + v) * LANES)));
                    for r in 0..R {
                        let word = $word(*x.get_unchecked(r * CHUNK + k));
                        for v in 0..V {
                            totals[r][v] = $step(totals[r][v], word, columns[v]);
                        }
                    }
                };
                for k in (0..depth & !1).step_by(2) {
                    if lines_ahead.start < lines_ahead.end {
                        _mm_prefetch::<_MM_HINT_T1>(lines_ahead.start.cast());
                        lines_ahead.start = lines_ahead.start.wrapping_add(LANES);
                    }
                    for _ in 0..2 {
                        if rows_ahead.start < rows_ahead.end {
                            _mm_prefetch::<_MM_HINT_T0>(rows_ahead.start.cast());
                            rows_ahead.start = rows_ahead.start.wrapping_add(LANES);
                        }
                    }
                    word_at(k);
                    word_at(k + 1);
                }
                if depth % 2 == 1 {
                    word_at(depth - 1);
                }
                for r in 0..R {
                    for v in 0..V {
                        _mm512_storeu_ps(sums.as_mut_ptr().add(r * width + v * LANES), totals[r][v]);
                    }
                }
            }
        }
    };
}

tile_loop!(
    singles,
    "avx512f",
    |line: *const u32| _mm512_loadu_ps(line.cast()),
    |word| _mm512_set1_ps(f32::from_bits(word)),
    |sum, x, w| _mm512_fmadd_ps(x, w, sum)
);

tile_loop!(
    pairs,
    "avx512f,avx512bf16",
    |line: *const u32| as_bf16(_mm512_loadu_si512(line.cast())),
    |word: u32| as_bf16(_mm512_set1_epi32(word.cast_signed())),
    |sum, x, w| _mm512_dpbf16_ps(sum, x, w)
);

/// The same bits as bf16 values.
#[inline(always)]
fn as_bf16(bits: std::arch::x86_64::__m512i) -> __m512bh {
    // SAFETY: both types are 512 bits for which every pattern is valid.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::transmute(bits)
    }
}
