//! Calls that move values and compute nothing.

use super::Floats;

/// `[a, 1, tokens, (heads + 2 kv_heads) · width]` to queries, keys and values `[a, heads, tokens, width]`.
pub(super) fn split_heads(x: &Floats, heads: usize, kv_heads: usize) -> Vec<Vec<f32>> {
    let [a, _, tokens, columns] = x.shape;
    let width = columns / (heads + 2 * kv_heads);
    let split = |first: usize, heads: usize| {
        let mut out = Vec::with_capacity(a * heads * tokens * width);
        for batch in 0..a {
            for head in first..first + heads {
                for token in batch * tokens..(batch + 1) * tokens {
                    out.extend_from_slice(&x.values[token * columns + head * width..][..width]);
                }
            }
        }
        out
    };
    vec![split(0, heads), split(heads, kv_heads), split(heads + kv_heads, kv_heads)]
}

/// `[a, heads, tokens, width]` to `[a, 1, tokens, heads · width]`.
pub(super) fn concat_heads(x: &Floats) -> Vec<f32> {
    let [a, heads, tokens, width] = x.shape;
    let mut out = Vec::with_capacity(x.values.len());
    for (batch, token) in (0..a).flat_map(|batch| (0..tokens).map(move |token| (batch, token))) {
        for head in 0..heads {
            let row = (batch * heads + head) * tokens + token;
            out.extend_from_slice(&x.values[row * width..][..width]);
        }
    }
    out
}

/// Tensors one behind the other along a dimension.
pub(super) fn concat(parts: &[Floats], dim: usize) -> Vec<f32> {
    let outer: usize = parts.first().map_or(0, |part| part.shape[..dim].iter().product());
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.values.len()).sum());
    for index in 0..outer {
        for part in parts {
            let size: usize = part.shape[dim..].iter().product();
            out.extend_from_slice(&part.values[index * size..][..size]);
        }
    }
    out
}

/// The part from `begin` up to and without `end`.
pub(super) fn slice(x: &Floats, begin: &[usize; 4], end: &[usize; 4]) -> Vec<f32> {
    let [_, b, rows, width] = x.shape;
    let mut out = Vec::new();
    for i in begin[0]..end[0] {
        for j in begin[1]..end[1] {
            for row in begin[2]..end[2] {
                let start = ((i * b + j) * rows + row) * width;
                out.extend_from_slice(&x.values[start + begin[3]..start + end[3]]);
            }
        }
    }
    out
}
