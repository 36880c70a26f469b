//! Full attention of query rows to key and value rows. No mask: what nobody may attend to is not there.

use rayon::prelude::*;

use super::gemm::{Columns, multiply_block};
use super::{HostDevice, activation::exp, vectorise::widest};

/// Score rows that one task computes: with a prefix of 816 tokens they take 420 KB.
const SCORE_ROWS: usize = 128;

/// How the heads of queries, keys and values lie side by side.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    /// Query heads.
    pub(super) query: usize,
    /// Key and value heads; each serves `query / key_value` query heads.
    pub(super) key_value: usize,
    /// Width of a head.
    pub(super) width: usize,
}

/// `softmax(q kᵀ / √width) v` per head: `q` is `[tokens, query × width]`, `k` and `v` are
/// `[keys, key_value × width]`, the result has the shape of `q`.
pub(super) fn attention(device: &HostDevice, q: &[f32], k: &[f32], v: &[f32], heads: Heads) -> Vec<f32> {
    let Heads { query, key_value, width } = heads;
    let group = query / key_value;
    let tokens = q.len() / (query * width);
    let step = (SCORE_ROWS / group).max(1);
    let starts: Vec<usize> = (0..tokens).step_by(step).collect();
    device.pool.install(|| {
        let blocks: Vec<Vec<Vec<f32>>> = starts
            .par_iter()
            .map(|&start| {
                let rows = start..(start + step).min(tokens);
                (0..key_value)
                    .into_par_iter()
                    .map(|head| attend(q, k, v, heads, rows.clone(), head))
                    .collect()
            })
            .collect();
        let mut out = vec![0.0; q.len()];
        out.par_chunks_mut(query * width).enumerate().for_each(|(token, out)| {
            let (block, row) = (&blocks[token / step], token % step);
            for (out, values) in out.chunks_exact_mut(group * width).zip(block) {
                out.copy_from_slice(&values[row * group * width..][..group * width]);
            }
        });
        out
    })
}

/// Some query tokens with all query heads that share one key head: `[tokens, group × width]`.
fn attend(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    Heads { query, key_value, width }: Heads,
    tokens: std::ops::Range<usize>,
    head: usize,
) -> Vec<f32> {
    let group = query / key_value;
    let scale = 1.0 / (width as f32).sqrt();
    let stride = key_value * width;
    let keys = k.len() / stride;
    let mut queries = Vec::with_capacity(tokens.len() * group * width);
    for token in tokens {
        let shared = &q[token * query * width + head * group * width..][..group * width];
        queries.extend(shared.iter().map(|q| q * scale));
    }
    let mut scores = multiply_block(&queries, width, Columns::ByColumn(&k[head * width..], stride), 0..keys);
    for row in scores.chunks_exact_mut(keys) {
        widest(|| softmax(row));
    }
    multiply_block(&scores, keys, Columns::ByRow(&v[head * width..], stride), 0..width)
}

#[inline(always)]
fn softmax(row: &mut [f32]) {
    let highest = row.iter().fold(f32::NEG_INFINITY, |highest, x| highest.max(*x));
    let mut lanes = [0.0f32; 16];
    for chunk in row.chunks_mut(16) {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            // A score that is not a number must not become one.
            *x = if x.is_nan() { *x } else { exp(*x - highest) };
            *lane += *x;
        }
    }
    let scale = 1.0 / lanes.iter().sum::<f32>();
    row.iter_mut().for_each(|x| *x *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::host::ComputeDtype;
    use proptest::prelude::*;

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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn agrees_with_f64_and_with_each_row_alone(
            tokens in 1usize..40, keys in 1usize..70, key_value in 1usize..3, group in 1usize..4,
            half_width in 1usize..12, seed in any::<u64>(),
        ) {
            let heads = Heads { query: key_value * group, key_value, width: 2 * half_width };
            let mut rng = seed | 1;
            let mut values = |count: usize| -> Vec<f32> {
                (0..count).map(|_| {
                    rng = rng.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (rng >> 40) as f32 / (1u64 << 22) as f32 - 2.0
                }).collect()
            };
            let q = values(tokens * heads.query * heads.width);
            let k = values(keys * key_value * heads.width);
            let v = values(keys * key_value * heads.width);
            let device = HostDevice::new(std::num::NonZeroUsize::new(2), ComputeDtype::F32).unwrap();
            let found = attention(&device, &q, &k, &v, heads);
            for (found, expected) in found.iter().zip(in_f64(&q, &k, &v, heads)) {
                prop_assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
            }
            let row = heads.query * heads.width;
            let alone = attention(&device, &q[q.len() - row..], &k, &v, heads);
            prop_assert_eq!(&alone[..], &found[found.len() - row..]);
        }
    }
}
