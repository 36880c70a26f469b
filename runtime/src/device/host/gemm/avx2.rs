//! The micro-kernel with AVX2 and FMA.

use std::arch::x86_64::{
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::{PANEL, ROWS};

/// See [`super::MicroKernel`]. Only to be called where AVX2 and FMA were detected.
pub(super) fn detected(x: &[f32], stride: usize, panel: &[f32], sums: &mut [[f32; PANEL]]) {
    // SAFETY: `micro_kernel`, the only caller, has detected AVX2 and FMA.
    #[allow(unsafe_code)]
    unsafe {
        match sums.len() {
            1 => multiply_add::<1>(x, stride, panel, sums),
            2 => multiply_add::<2>(x, stride, panel, sums),
            3 => multiply_add::<3>(x, stride, panel, sums),
            4 => multiply_add::<4>(x, stride, panel, sums),
            5 => multiply_add::<5>(x, stride, panel, sums),
            _ => multiply_add::<ROWS>(x, stride, panel, sums),
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn multiply_add<const R: usize>(x: &[f32], stride: usize, panel: &[f32], sums: &mut [[f32; PANEL]]) {
    let depth = panel.len() / PANEL;
    assert!(sums.len() == R && depth > 0 && x.len() >= (R - 1) * stride + depth);
    let mut left = [_mm256_setzero_ps(); R];
    let mut right = [_mm256_setzero_ps(); R];
    // SAFETY: every load of `x` lies below (R - 1) * stride + depth and every load of `panel` below depth * PANEL,
    // as asserted above; a row of `sums` holds two vectors of eight.
    #[allow(unsafe_code)]
    unsafe {
        for r in 0..R {
            left[r] = _mm256_loadu_ps(sums[r].as_ptr());
            right[r] = _mm256_loadu_ps(sums[r].as_ptr().add(8));
        }
        for k in 0..depth {
            let w_left = _mm256_loadu_ps(panel.as_ptr().add(k * PANEL));
            let w_right = _mm256_loadu_ps(panel.as_ptr().add(k * PANEL + 8));
            for r in 0..R {
                let value = _mm256_set1_ps(*x.get_unchecked(r * stride + k));
                left[r] = _mm256_fmadd_ps(value, w_left, left[r]);
                right[r] = _mm256_fmadd_ps(value, w_right, right[r]);
            }
        }
        for r in 0..R {
            _mm256_storeu_ps(sums[r].as_mut_ptr(), left[r]);
            _mm256_storeu_ps(sums[r].as_mut_ptr().add(8), right[r]);
        }
    }
}
