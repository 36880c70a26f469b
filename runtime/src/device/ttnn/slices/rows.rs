//! Rows of host tensors in the padded shapes of programs, and back.

use tensact_topology::DecoderSizes;

use crate::Tensor;
use crate::device::host::of_shape;
use crate::device::ttnn::program::{HeadLayout, Spread};

/// Rows as wide as `width`, each in the places of a wider one.
pub(super) fn widened(rows: &[f32], width: usize, places: usize) -> Vec<f32> {
    if width == places {
        return rows.to_vec();
    }
    let mut wide = vec![0.0; rows.len() / width * places];
    for (row, wide) in rows.chunks_exact(width).zip(wide.chunks_exact_mut(places)) {
        wide[..width].copy_from_slice(row);
    }
    wide
}

/// Blocks of some rows, each behind the other, in blocks of `padded` rows.
pub(super) fn spread_rows(blocks: &[&[f32]], width: usize, padded: usize) -> Vec<f32> {
    let mut spread = vec![0.0; blocks.len() * padded * width];
    for (block, place) in blocks.iter().zip(spread.chunks_exact_mut(padded * width)) {
        place[..block.len()].copy_from_slice(block);
    }
    spread
}

/// The first rows of padded ones.
pub(super) fn first_rows(padded: &[f32], rows: usize, width: usize) -> Tensor {
    of_shape([rows, width], padded[..rows * width].to_vec())
}

/// Keys, or values, `[tokens, kv_heads · head_dim]` as a program wants them, `[kv_heads, rows, places]`.
pub(super) fn by_head(entry: &[f32], sizes: &DecoderSizes, rows: usize) -> Vec<f32> {
    let Heads { head, places, width } = Heads::of(sizes);
    let mut heads = vec![0.0; sizes.kv_heads * rows * places];
    for (kv_head, block) in heads.chunks_exact_mut(rows * places).enumerate() {
        for (row, token) in block.chunks_exact_mut(places).zip(entry.chunks_exact(width)) {
            let values = &token[kv_head * sizes.head_dim..][..sizes.head_dim];
            head.places_of_values().zip(values).for_each(|(place, value)| row[place] = *value);
        }
    }
    heads
}

/// The first `tokens` rows of what a program gives, `[kv_heads, rows, places]`, as `[tokens, kv_heads · head_dim]`.
pub(super) fn from_heads(heads: &[f32], sizes: &DecoderSizes, tokens: usize) -> Tensor {
    let Heads { head, places, width } = Heads::of(sizes);
    let block = heads.len() / sizes.kv_heads;
    let mut entry = Vec::with_capacity(tokens * width);
    for token in 0..tokens {
        for block in heads.chunks_exact(block) {
            let row = &block[token * places..][..places];
            entry.extend(head.places_of_values().map(|place| row[place]));
        }
    }
    of_shape([tokens, width], entry)
}

struct Heads {
    head: Spread,
    places: usize,
    /// Of all heads of a token on the host.
    width: usize,
}

impl Heads {
    fn of(sizes: &DecoderSizes) -> Self {
        let layout = HeadLayout::of_decoder(sizes);
        Self { head: layout.head, places: layout.places(), width: sizes.kv_width() }
    }
}

/// A mask row: 0 for these places, −∞ for all others.
pub(super) fn mask_row(places: usize, counting: impl IntoIterator<Item = usize>) -> Vec<f32> {
    let mut row = vec![f32::NEG_INFINITY; places];
    counting.into_iter().for_each(|place| row[place] = 0.0);
    row
}
