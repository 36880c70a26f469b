use std::num::NonZeroUsize;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::device::host::activation::round_to_bf16;
use crate::device::host::{ComputeDtype, Kernel};

fn device(dtype: ComputeDtype, kernel: Kernel) -> Arc<HostDevice> {
    HostDevice::with_kernel(NonZeroUsize::new(2), dtype, kernel).unwrap()
}

fn in_f32() -> Arc<HostDevice> {
    device(ComputeDtype::F32, Kernel::fastest())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// Every norm of this module over rows of one width.
struct Norms {
    layer: LayerNorm,
    plain: Vec<f32>,
    modulations: [Modulation; 2],
}

impl Norms {
    fn random(width: usize, seed: u64) -> Self {
        let mut random = seed;
        let mut next = || values(width, 0.0, 1.0, &mut random);
        Self {
            layer: LayerNorm { weight: next(), bias: next() },
            plain: next(),
            modulations: [(); 2].map(|()| Modulation { scale: next(), shift: next(), gate: next() }),
        }
    }

    /// What layer norm, plain RMS norm and adaptive RMS norm make of rows, whose modulations alternate.
    fn apply(&self, device: &HostDevice, x: &[f32]) -> [Vec<f32>; 3] {
        let width = self.plain.len();
        let rows: Vec<&Modulation> = self.modulations.iter().cycle().take(x.len() / width).collect();
        [
            self.layer.apply(device, x),
            RmsNorm::Plain(&self.plain).apply(device, x, width),
            RmsNorm::Adaptive(&rows).apply(device, x, width),
        ]
        .map(|rows| rows.to_values())
    }

    /// The same in f64, and how far an f32 computation may be off. Without weights, an error of a row's mean or of a
    /// value is as large as the largest value's rounding, times the factor that makes the row's variance one.
    fn in_f64(&self, x: &[f32]) -> [Vec<(f64, f64)>; 3] {
        let width = self.plain.len();
        let mut out = [const { Vec::new() }; 3];
        for (row, x) in x.chunks(width).enumerate() {
            let x = wide(x);
            let largest = x.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
            let mean = x.iter().sum::<f64>() / width as f64;
            let factor = |mean: f64| {
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                1.0 / (variance + 1e-6).sqrt()
            };
            let modulation = &self.modulations[row % 2];
            let norms = [
                (mean, &self.layer.weight, Some(&self.layer.bias)),
                (0.0, &self.plain, None),
                (0.0, &modulation.scale, Some(&modulation.shift)),
            ];
            for (out, (mean, scale, shift)) in out.iter_mut().zip(norms) {
                let factor = factor(mean);
                out.extend(x.iter().zip(wide(scale)).enumerate().map(|(i, (x, scale))| {
                    let shift = shift.map_or(0.0, |shift| f64::from(shift[i]));
                    ((x - mean) * factor * scale + shift, 1e-6 * (1.0 + largest * factor * scale.abs()))
                }));
            }
        }
        out
    }
}

/// Values of a fixed sequence around a mean.
fn values(count: usize, mean: f32, spread: f32, state: &mut u64) -> Vec<f32> {
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        mean + spread * ((*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    (0..count).map(|_| next()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn all_norms_agree_with_f64(
        rows in 1usize..6, width in 1usize..700, mean in -4.0f32..4.0, power in -5i32..5, seed in any::<u64>(),
    ) {
        let (norms, spread) = (Norms::random(width, seed), 10f32.powi(power));
        let x = values(rows * width, mean * spread, spread, &mut seed.clone());
        for (which, (found, expected)) in norms.apply(&in_f32(), &x).iter().zip(norms.in_f64(&x)).enumerate() {
            prop_assert!(found.len() == expected.len());
            let far = found.iter().zip(&expected).position(|(x, (y, bound))| (f64::from(*x) - y).abs() > *bound);
            prop_assert!(far.is_none(), "norm {which}, value {far:?}");
        }
    }

    #[test]
    fn every_kernel_gets_the_same_values_rounded(rows in 1usize..6, width in 1usize..700, seed in any::<u64>()) {
        let norms = Norms::random(width, seed);
        let x = values(rows * width, 0.5, 1.0, &mut seed.clone());
        let exact = norms.apply(&in_f32(), &x);
        for kernel in Kernel::available() {
            let found = norms.apply(&device(ComputeDtype::Bf16, kernel), &x);
            for (found, exact) in found.iter().zip(&exact) {
                let rounded: Vec<f32> = exact.iter().map(|x| round_to_bf16(*x)).collect();
                prop_assert!(bits(found) == bits(&rounded), "{kernel:?}");
            }
        }
    }

    #[test]
    fn a_bad_row_spoils_no_other(rows in 2usize..9, width in 1usize..100, bad in 0usize..9, seed in any::<u64>()) {
        let norms = Norms::random(width, seed);
        let mut x = values(rows * width, 0.0, 1.0, &mut seed.clone());
        let bad = bad % rows * width..(bad % rows + 1) * width;
        for dtype in [ComputeDtype::F32, ComputeDtype::Bf16] {
            let device = device(dtype, Kernel::fastest());
            let clean = norms.apply(&device, &x);
            let good = x[bad.clone()].to_vec();
            x[bad.start] = f32::NAN;
            for (clean, spoiled) in clean.iter().zip(norms.apply(&device, &x)) {
                prop_assert!(spoiled[bad.clone()].iter().all(|x| x.is_nan()));
                prop_assert!(bits(&clean[..bad.start]) == bits(&spoiled[..bad.start]), "rows before");
                prop_assert!(bits(&clean[bad.end..]) == bits(&spoiled[bad.end..]), "rows behind");
            }
            x[bad.clone()].copy_from_slice(&good);
        }
    }
}

#[test]
fn rows_without_variance_give_what_is_added() {
    let norms = Norms::random(33, 1);
    let [layer, ..] = norms.apply(&in_f32(), &[2.0; 3 * 33]);
    assert!(layer.chunks(33).all(|row| bits(row) == bits(&norms.layer.bias)), "equal values");
    let [layer, plain, adaptive] = norms.apply(&in_f32(), &[0.0; 2 * 33]);
    assert!(layer.chunks(33).all(|row| bits(row) == bits(&norms.layer.bias)), "zeros");
    assert!(plain.iter().all(|x| *x == 0.0), "nothing is added");
    assert!(bits(&adaptive[..33]) == bits(&norms.modulations[0].shift), "the first row's shift");
    assert!(bits(&adaptive[33..]) == bits(&norms.modulations[1].shift), "the second row's shift");
}

#[test]
fn only_adaptive_norms_have_a_gate_and_each_row_its_own() {
    let norms = Norms::random(5, 2);
    let rows = [&norms.modulations[1], &norms.modulations[0]];
    assert!(RmsNorm::Plain(&norms.plain).gate(1).is_none());
    assert_eq!(RmsNorm::Adaptive(&rows).gate(0), Some(&norms.modulations[1].gate[..]));
    assert_eq!(RmsNorm::Adaptive(&rows).gate(1), Some(&norms.modulations[0].gate[..]));
}
