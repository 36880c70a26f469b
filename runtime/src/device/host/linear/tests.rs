use std::num::NonZeroUsize;
use std::sync::Arc;

use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::device::host::measure::stored;
use crate::device::host::norm::Modulation;
use crate::device::host::{ComputeDtype, Kernel};

fn device(dtype: ComputeDtype, kernel: Kernel) -> Arc<HostDevice> {
    HostDevice::with_kernel(NonZeroUsize::new(2), dtype, kernel).unwrap()
}

/// Values of a fixed sequence in [-1, 1] that bf16 has, so that nothing rounds them.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0).to_f32()
    };
    (0..count).map(|_| next()).collect()
}

fn matrix(values: &[f32], width: usize) -> StoredTensor {
    let bytes: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
    stored([values.len() / width, width], &bytes).unwrap()
}

fn gelu_in_f64(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

/// `x [rows, inner]` times the matrix `[columns, inner]`, plus the bias.
fn in_f64(x: &[f32], inner: usize, weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
    let row = |x| weight.chunks(inner).zip(bias).map(move |(w, b)| dot(x, w) + f64::from(*b));
    x.chunks(inner).flat_map(row).collect()
}

/// Where the found values are further off than the error of an f32 sum, or of rounding to bf16.
fn first_far(found: &[f32], expected: &[f64], dtype: ComputeDtype) -> Option<usize> {
    let relative = if dtype == ComputeDtype::Bf16 { 1.0 / 250.0 } else { 0.0 };
    assert!(found.len() == expected.len(), "as many values as expected");
    let is_far = |(x, y): (&f32, &f64)| (f64::from(*x) - y).abs() > 2e-5 + (relative + 1e-5) * y.abs();
    found.iter().zip(expected).position(is_far)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn gate_agrees_with_f64(lines in 1usize..9, scale in 0.1f32..12.0, seed in any::<u32>()) {
        let x: Vec<f32> = values(lines * 2 * LANES, seed).iter().map(|x| x * scale).collect();
        let mut found = x.clone();
        gate(&mut found);
        for (i, found) in found[..lines * LANES].iter().enumerate() {
            let at = i / LANES * 2 * LANES + i % LANES;
            let expected = gelu_in_f64(x[at].into()) * f64::from(x[at + LANES]);
            // Far below zero only the absolute error is small.
            let bound = 2e-6 * expected.abs() + 1e-6 * f64::from(scale * scale);
            prop_assert!((f64::from(*found) - expected).abs() <= bound, "value {i}");
        }
    }

    #[test]
    fn gated_layers_agree_with_f64(
        rows in 1usize..20, inner in 1usize..100, outputs in 1usize..150, seed in any::<u32>(),
    ) {
        let [gate, up] = [1, 2].map(|i| values(outputs * inner, seed ^ i));
        let x = values(rows * inner, !seed);
        let [gates, ups] = [&gate, &up].map(|weight| in_f64(&x, inner, weight, &vec![0.0; outputs]));
        let expected: Vec<f64> = gates.iter().zip(ups).map(|(gate, up)| gelu_in_f64(*gate) * up).collect();
        let [gate, up] = [gate, up].map(|weight| matrix(&weight, inner));
        for kernel in Kernel::available() {
            for dtype in [ComputeDtype::F32, ComputeDtype::Bf16] {
                let device = device(dtype, kernel);
                let layer = GatedLinear::pack(&device, &gate, &up);
                let found = layer.apply(&device, &device.rows_of(&x, inner)).to_values();
                let far = first_far(&found, &expected, dtype);
                prop_assert!(far.is_none(), "{kernel:?} {dtype}: value {far:?}");
            }
        }
    }

    #[test]
    fn what_follows_a_product_agrees_with_f64(
        rows in 1usize..20, inner in 1usize..100, outputs in 1usize..150, seed in any::<u32>(),
    ) {
        let [weight, bias] = [outputs * inner, outputs].map(|count| values(count, seed));
        let (x, hidden) = (values(rows * inner, !seed), values(rows * outputs, seed ^ 1));
        let product = in_f64(&x, inner, &weight, &bias);
        let modulation = Modulation { scale: vec![], shift: vec![], gate: values(outputs, seed ^ 2) };
        let gated: Vec<&Modulation> = vec![&modulation; rows];
        let weight = matrix(&weight, inner);
        for dtype in [ComputeDtype::F32, ComputeDtype::Bf16] {
            let device = device(dtype, Kernel::fastest());
            let weight = Packed::side_by_side(&device, &[&weight], 0..inner, dtype);
            let layer = Linear { weight, bias: Some(bias.clone()) };
            let x = device.rows_of(&x, inner);

            let expected: Vec<f64> = product.iter().map(|y| gelu_in_f64(*y)).collect();
            let far = first_far(&layer.apply_gelu(&device, &x).to_values(), &expected, dtype);
            prop_assert!(far.is_none(), "gelu {dtype}: value {far:?}");

            let far = first_far(&layer.apply(&device, &x), &product, ComputeDtype::F32);
            prop_assert!(far.is_none(), "nothing {dtype}: value {far:?}");

            for norm in [None, Some(RmsNorm::Adaptive(&gated))] {
                let gate = |i| if norm.is_some() { f64::from(modulation.gate[i % outputs]) } else { 1.0 };
                let expected: Vec<f64> =
                    (0..).zip(&hidden).zip(&product).map(|((i, h), y)| f64::from(*h) + gate(i) * y).collect();
                let mut found = hidden.clone();
                layer.add_to(&device, &x, &mut found, norm.as_ref());
                let far = first_far(&found, &expected, ComputeDtype::F32);
                prop_assert!(far.is_none(), "residual {dtype}: value {far:?}");
            }
        }
    }
}

#[test]
fn gated_layers_give_the_same_bits_on_any_threads() {
    let (rows, inner, outputs) = (450, 40, 150);
    let [gate, up] = [1, 2].map(|seed| matrix(&values(outputs * inner, seed), inner));
    let x = values(rows * inner, 3);
    for kernel in Kernel::available() {
        let [one, three] = [1, 3].map(|threads| {
            let device =
                HostDevice::with_kernel(NonZeroUsize::new(threads), ComputeDtype::Bf16, kernel).unwrap();
            let layer = GatedLinear::pack(&device, &gate, &up);
            layer.apply(&device, &device.rows_of(&x, inner)).to_values()
        });
        assert!(one == three, "{kernel:?}");
    }
}

#[test]
fn a_bad_row_spoils_no_other() {
    let (rows, inner, outputs) = (13, 24, 50);
    let (mut x, weight) = (values(rows * inner, 1), matrix(&values(outputs * inner, 2), inner));
    for kernel in Kernel::available() {
        let device = device(ComputeDtype::Bf16, kernel);
        let layer = GatedLinear::pack(&device, &weight, &weight);
        let bits = |x: &[f32]| -> Vec<u32> {
            let y = layer.apply(&device, &device.rows_of(x, inner)).to_values();
            y.iter().map(|y| y.to_bits()).collect()
        };
        let clean = bits(&x);
        let good = std::mem::replace(&mut x[4 * inner], f32::NAN);
        let spoiled = bits(&x);
        x[4 * inner] = good;
        assert!(clean == bits(&x), "{kernel:?}: left behind");
        let bad = 4 * outputs..5 * outputs;
        assert!(spoiled[bad.clone()].iter().all(|y| f32::from_bits(*y).is_nan()), "{kernel:?}");
        assert!(clean[..bad.start] == spoiled[..bad.start], "{kernel:?}: rows before");
        assert!(clean[bad.end..] == spoiled[bad.end..], "{kernel:?}: rows behind");
    }
}
