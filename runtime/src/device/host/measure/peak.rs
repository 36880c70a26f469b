//! What the instructions of a kernel reach at most: chains of multiply-adds that wait for nothing but each other, as many
//! as keep all units busy, with all operands in registers.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::{vdupq_n_f32, vfmaq_f32};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512bh, __m512i, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

use super::{HostDevice, Kernel};

/// Steps of every chain between two looks at the clock: some 10 µs.
const STEPS: usize = 1 << 11;
/// Chains where there are 32 registers: two operands need one each.
const CHAINS_OF_32: usize = 24;
/// Chains where there are 16.
const CHAINS_OF_16: usize = 12;

/// Multiplications and additions a second that all threads of the device reach together with the instructions of a
/// kernel, found out in about the given time.
///
/// # Panics
/// When this CPU has no such instructions.
pub fn peak_flops(device: &HostDevice, kernel: Kernel, duration: Duration) -> f64 {
    assert!(Kernel::available().contains(&kernel), "this CPU has no {kernel:?}");
    let each = device.pool.broadcast(|_| {
        let began = Instant::now();
        let mut done = 0;
        while began.elapsed() < duration {
            done += burst(kernel);
        }
        done as f64 / began.elapsed().as_secs_f64()
    });
    each.into_iter().sum()
}

/// Runs all chains for a while, and says how many operations that were. Only to be called where the CPU has the kernel.
fn burst(kernel: Kernel) -> usize {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `peak_flops` has asserted that the CPU has this kernel's instructions.
        #[allow(unsafe_code)]
        Kernel::Avx2 => unsafe { avx2() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: likewise.
        #[allow(unsafe_code)]
        Kernel::Avx512 => unsafe { avx512() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: likewise.
        #[allow(unsafe_code)]
        Kernel::Avx512Bf16 => unsafe { avx512_bf16() },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: likewise.
        #[allow(unsafe_code)]
        Kernel::Neon => unsafe { neon() },
        _ => portable(),
    }
}

/// Vectors of four values, which every compiler finds an instruction for.
fn portable() -> usize {
    let (x, y) = black_box((0.5, 1.0));
    let mut sums = black_box([[y; 4]; CHAINS_OF_16]);
    for _ in 0..STEPS {
        for sum in sums.as_flattened_mut() {
            *sum = *sum * x + y;
        }
    }
    black_box(sums);
    STEPS * CHAINS_OF_16 * 4 * 2
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2() -> usize {
    let (x, y) = black_box((_mm256_set1_ps(0.5), _mm256_set1_ps(1.0)));
    let mut sums = black_box([y; CHAINS_OF_16]);
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, x, y);
        }
    }
    black_box(sums);
    STEPS * CHAINS_OF_16 * 8 * 2
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512() -> usize {
    let (x, y) = black_box((_mm512_set1_ps(0.5), _mm512_set1_ps(1.0)));
    let mut sums = black_box([y; CHAINS_OF_32]);
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, x, y);
        }
    }
    black_box(sums);
    STEPS * CHAINS_OF_32 * 16 * 2
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn avx512_bf16() -> usize {
    // SAFETY: both types are 512 bits for which every pattern is valid.
    #[allow(unsafe_code)]
    let halves = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(0x3f00_3f00)) };
    let (x, y) = black_box((halves, halves));
    let mut sums = black_box([_mm512_setzero_ps(); CHAINS_OF_32]);
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, x, y);
        }
    }
    black_box(sums);
    STEPS * CHAINS_OF_32 * 32 * 2
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon() -> usize {
    let (x, y) = black_box((vdupq_n_f32(0.5), vdupq_n_f32(0.5)));
    let mut sums = black_box([y; CHAINS_OF_32]);
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = vfmaq_f32(*sum, x, y);
        }
    }
    black_box(sums);
    STEPS * CHAINS_OF_32 * 4 * 2
}
