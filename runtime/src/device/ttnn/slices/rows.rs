//! Rows of host tensors in the padded shapes of programs, and back.

use std::ops::Range;

use tensact_topology::DecoderSizes;

use crate::Tensor;
use crate::device::ttnn::program::{HeadLayout, PrefixRows, Spread, TILE, TensorSpec};

/// Which rows of a padded tensor hold something: all others only fill it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ValidRows {
    spans: Vec<Range<usize>>,
    padded: usize,
}

impl ValidRows {
    /// The first ones.
    pub(super) fn first(count: usize, padded: usize) -> Self {
        Self::spans(std::iter::once(0..count), padded)
    }

    /// These ones, in order.
    pub(super) fn spans(all: impl IntoIterator<Item = Range<usize>>, padded: usize) -> Self {
        let mut spans: Vec<Range<usize>> = Vec::new();
        for span in all {
            match spans.last_mut() {
                Some(last) if last.end == span.start => last.end = span.end,
                _ => spans.push(span),
            }
        }
        Self { spans, padded }
    }

    /// The same among another number of rows.
    pub(super) fn among(&self, padded: usize) -> Self {
        Self { spans: self.spans.clone(), padded }
    }

    /// Whether the same rows are valid.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.spans == other.spans
    }

    /// Those of a prefix of so many tokens: where a tensor has them on a chip, or the first ones of a program's rows.
    pub(super) fn of_prefix(tensor: &Tensor, tokens: usize) -> Self {
        match tensor.resident() {
            Some(resident) => resident.form().rows().clone(),
            None => Self::first(tokens, PrefixRows::holding(tokens).count()),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.spans.iter().map(Range::len).sum()
    }

    /// All rows, valid or not.
    pub(super) fn padded(&self) -> usize {
        self.padded
    }

    /// The place of each valid row.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        self.spans.iter().cloned().flatten()
    }

    /// A number for each row: valid ones counted from 0, and 0 for all others.
    pub(super) fn positions(&self) -> Vec<u32> {
        let mut positions = vec![0; self.padded];
        (0..).zip(self.places()).for_each(|(position, place)| positions[place] = position);
        positions
    }
}

/// How a tensor `[tokens, width]` lies in one of a program.
#[derive(Debug, Clone)]
pub(super) enum Form {
    /// `[1, 1, rows, width]`.
    Rows(ValidRows),
    /// Keys, or values, by head: `[1, kv_heads, rows, places]`.
    Heads(ValidRows, Heads),
}

impl Form {
    pub(super) fn rows(&self) -> &ValidRows {
        match self {
            Self::Rows(rows) | Self::Heads(rows, _) => rows,
        }
    }

    /// The same for a single row, in a tile.
    pub(super) fn of_one_row(&self) -> Self {
        let rows = ValidRows::first(1, TILE);
        match self {
            Self::Rows(_) => Self::Rows(rows),
            Self::Heads(_, heads) => Self::Heads(rows, *heads),
        }
    }

    /// Shape on the host of what lies in a program's tensor.
    pub(super) fn shape(&self, spec: TensorSpec) -> [usize; 2] {
        match self {
            Self::Rows(rows) => [rows.count(), spec.shape[3]],
            Self::Heads(rows, heads) => [rows.count(), heads.width()],
        }
    }

    /// Values, row after row, in the places of a program's tensor.
    pub(super) fn spread(&self, values: &[f32]) -> Vec<f32> {
        let rows = self.rows();
        match self {
            Self::Rows(_) => {
                let width = values.len() / rows.count().max(1);
                let mut padded = vec![0.0; rows.padded() * width];
                for (place, row) in rows.places().zip(values.chunks_exact(width.max(1))) {
                    padded[place * width..][..width].copy_from_slice(row);
                }
                padded
            }
            Self::Heads(_, heads) => {
                let places = heads.head.places();
                let mut padded = vec![0.0; heads.count * rows.padded() * places];
                for (head, block) in padded.chunks_exact_mut(rows.padded() * places).enumerate() {
                    for (place, token) in rows.places().zip(values.chunks_exact(heads.width())) {
                        let (row, own) =
                            (&mut block[place * places..][..places], heads.of_token(token, head));
                        heads.head.places_of_values().zip(own).for_each(|(at, value)| row[at] = *value);
                    }
                }
                padded
            }
        }
    }

    /// The values of valid rows, row after row.
    pub(super) fn gather(&self, padded: &[f32], spec: TensorSpec) -> Vec<f32> {
        let [rows, width] = self.shape(spec);
        let mut values = Vec::with_capacity(rows * width);
        match self {
            Self::Rows(rows) => {
                rows.places().for_each(|place| values.extend_from_slice(&padded[place * width..][..width]));
            }
            Self::Heads(rows, heads) => {
                let places = heads.head.places();
                for place in rows.places() {
                    for block in padded.chunks_exact(rows.padded() * places) {
                        let row = &block[place * places..][..places];
                        values.extend(heads.head.places_of_values().map(|at| row[at]));
                    }
                }
            }
        }
        values
    }
}

/// Heads of keys and values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    head: Spread,
    count: usize,
}

impl Heads {
    pub(super) fn of(sizes: &DecoderSizes) -> Self {
        Self { head: HeadLayout::of_decoder(sizes).head, count: sizes.kv_heads }
    }

    /// Of all heads of a token on the host.
    fn width(self) -> usize {
        self.count * self.head.values()
    }

    fn of_token(self, token: &[f32], head: usize) -> &[f32] {
        &token[head * self.head.values()..][..self.head.values()]
    }
}

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

/// A mask row: 0 for these places, −∞ for all others.
pub(super) fn mask_row(places: usize, counting: impl IntoIterator<Item = usize>) -> Vec<f32> {
    let mut row = vec![f32::NEG_INFINITY; places];
    counting.into_iter().for_each(|place| row[place] = 0.0);
    row
}
