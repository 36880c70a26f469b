use std::num::NonZeroUsize;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::device::host::activation::round_all_to_bf16;
use crate::device::host::{ComputeDtype, Kernel};

fn in_f64(q: &[f32], k: &[f32], v: &[f32], heads: Heads) -> Vec<f64> {
    let Heads { query, key_value, width } = heads;
    let (q_stride, k_stride) = (query * width, key_value * width);
    let mut out = Vec::new();
    for q in q.chunks(q_stride) {
        for head in 0..query {
            let shared = head / (query / key_value);
            let slice = |x: &[f32], i: usize| -> Vec<f64> {
                x[i * k_stride + shared * width..][..width].iter().map(|x| f64::from(*x)).collect()
            };
            let keys = k.len() / k_stride;
            let scores: Vec<f64> = (0..keys)
                .map(|i| {
                    let dot: f64 =
                        slice(k, i).iter().zip(&q[head * width..]).map(|(k, q)| k * f64::from(*q)).sum();
                    (dot / (width as f64).sqrt()).exp()
                })
                .collect();
            let total: f64 = scores.iter().sum();
            for d in 0..width {
                out.push((0..keys).map(|i| scores[i] / total * slice(v, i)[d]).sum());
            }
        }
    }
    out
}

fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = seed | 1;
    let mut next = || {
        rng = rng.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (rng >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    };
    (0..count).map(|_| next()).collect()
}

fn device(threads: usize, dtype: ComputeDtype, kernel: Kernel) -> Arc<HostDevice> {
    HostDevice::with_kernel(NonZeroUsize::new(threads), dtype, kernel).unwrap()
}

/// Every kernel in every compute type.
fn everything() -> impl Iterator<Item = (Kernel, ComputeDtype)> {
    let both = [ComputeDtype::Bf16, ComputeDtype::F32];
    Kernel::available().into_iter().flat_map(move |kernel| both.map(|dtype| (kernel, dtype)))
}

/// One sequence over one segment.
fn alone(device: &HostDevice, q: &[f32], k: &[f32], v: &[f32], heads: Heads) -> Vec<f32> {
    let tokens = 0..q.len() / (heads.query * heads.width);
    let segments = vec![segment(k, v, heads)];
    let q = Band::whole(q, heads.query * heads.width);
    attention(device, q, &[Sequence { tokens, segments }], heads).to_values()
}

fn segment<'a>(k: &'a [f32], v: &'a [f32], heads: Heads) -> Segment<'a> {
    Segment::whole(k, v, heads.key_value * heads.width)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn agrees_with_f64(
        tokens in 1usize..60, keys in 1usize..500, key_value in 1usize..3, group in 1usize..4,
        half_width in 1usize..140, seed in any::<u64>(),
    ) {
        let heads = Heads { query: key_value * group, key_value, width: 2 * half_width };
        let mut q = values(tokens * heads.query * heads.width, seed);
        let [mut k, mut v] = [1, 2].map(|i| values(keys * key_value * heads.width, seed ^ (i << 20)));
        [&mut q, &mut k, &mut v].into_iter().for_each(|x| round_all_to_bf16(x));
        let expected = in_f64(&q, &k, &v, heads);
        let sizes = in_f64(&q, &k, &v.iter().map(|v| v.abs()).collect::<Vec<f32>>(), heads);
        for kernel in Kernel::available() {
            // Shares and results are rounded to the compute type.
            for (dtype, relative) in [(ComputeDtype::F32, 0.0), (ComputeDtype::Bf16, 2.0 / 256.0)] {
                let device = device(2, dtype, kernel);
                let found = alone(&device, &q, &k, &v, heads);
                for ((found, expected), size) in found.iter().zip(&expected).zip(&sizes) {
                    let error = (f64::from(*found) - expected).abs();
                    prop_assert!(error < 2e-5 + relative * size, "{kernel:?} {dtype:?}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn same_bits_however_rows_keys_and_sequences_are_split(
        tokens in 2usize..60, keys in 2usize..500, cut in 1usize..500, group in 1usize..9, seed in any::<u64>(),
    ) {
        let heads = Heads { query: group, key_value: 1, width: 24 };
        let (row, cut) = (group * heads.width, (cut % (keys - 1) + 1) * heads.width);
        let q = values(tokens * row, seed);
        let [k, v] = [1, 2].map(|i| values(keys * heads.width, seed ^ (i << 20)));
        let segments = || vec![
            segment(&k[..cut], &v[..cut], heads),
            segment(&k[cut..], &v[cut..], heads),
        ];
        let sequences =
            [Sequence { tokens: 0..1, segments: segments() }, Sequence { tokens: 1..tokens, segments: segments() }];
        for (kernel, dtype) in everything() {
            let [one, three] = [1, 3].map(|threads| device(threads, dtype, kernel));
            let whole = alone(&one, &q, &k, &v, heads);
            let last = alone(&three, &q[q.len() - row..], &k, &v, heads);
            prop_assert!(last == whole[whole.len() - row..], "{kernel:?} {dtype}: a row alone");
            let split = attention(&three, Band::whole(&q, row), &sequences, heads).to_values();
            prop_assert!(split == whole, "{kernel:?} {dtype}: two sequences over two segments");
        }
    }
}

#[test]
fn what_is_not_a_number_stays_with_its_row() {
    let heads = Heads { query: 2, key_value: 1, width: 8 };
    let (mut q, k, v) = (values(5 * 16, 1), values(300 * 8, 2), values(300 * 8, 3));
    let (good, bad_part) = (q.clone(), 2 * 16..2 * 16 + 8);
    for (kernel, dtype) in everything() {
        let device = device(1, dtype, kernel);
        let clean = alone(&device, &q, &k, &v, heads);
        for bad in [f32::NAN, f32::INFINITY] {
            q[bad_part.clone()].fill(bad);
            let mut spoiled = alone(&device, &q, &k, &v, heads);
            assert!(spoiled[bad_part.clone()].iter().all(|x| x.is_nan()), "{kernel:?} {dtype} {bad}");
            spoiled[bad_part.clone()].copy_from_slice(&clean[bad_part.clone()]);
            assert!(clean == spoiled, "{kernel:?} {dtype} {bad}: another row");
            q.copy_from_slice(&good);
            assert!(clean == alone(&device, &q, &k, &v, heads), "{kernel:?} {dtype} {bad}: left behind");
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let heads = Heads { query: 1, key_value: 1, width: 2 };
    let device = HostDevice::new(NonZeroUsize::new(1), ComputeDtype::F32).unwrap();
    // The highest score stands in the second block of keys.
    let mut k = vec![0.0; 400 * 2];
    k[2 * 300] = 1e4;
    let v: Vec<f32> = (0..800).map(|i| i as f32).collect();
    assert_eq!(alone(&device, &[1e3, 0.0], &k, &v, heads), [600.0, 601.0]);
}
