//! Keys and values in the order in which kernels read them.

use std::ops::Range;

use rayon::prelude::*;

use super::{Heads, Segment, Sequence};
use crate::device::host::HostDevice;
use crate::device::host::activation::bf16_pair;
use crate::device::host::band::Band;
use crate::device::host::gemm::{CHUNK, LANES, PANEL, Rounding, encode, pieces, write_lines};
use crate::device::host::scratch::Scratch;
use crate::device::host::vectorise::vectorised;

/// Keys and values of all key heads of some sequences, packed block by block.
pub(super) struct PackedKeys {
    sizes: HeadSizes,
    /// For each sequence, where it begins and how many keys it has.
    sequences: Vec<(usize, usize)>,
    data: Scratch,
}

/// What the place of a head's keys and values depends on.
#[derive(Clone, Copy)]
struct HeadSizes {
    rounding: Rounding,
    width: usize,
}

/// Some neighbouring keys of a head, with their values.
pub(super) struct KeyBlock<'a> {
    pub(super) keys: usize,
    /// Panels of keys, by dimension of the head; zeros behind the last key.
    pub(super) key_lines: &'a [u32],
    /// Panels of dimensions, by key; zeros behind the last key.
    pub(super) value_lines: &'a [u32],
}

/// Keys of a block: their shares of a row are a chunk of the product with the values.
pub(super) fn block_keys(rounding: Rounding) -> usize {
    CHUNK * rounding.words().values()
}

impl PackedKeys {
    pub(super) fn new(device: &HostDevice, sequences: &[Sequence<'_>], heads: Heads) -> Self {
        let Heads { key_value: key_heads, width, .. } = heads;
        let sizes = HeadSizes { rounding: device.rounding(), width };
        let mut words = 0;
        let places: Vec<(usize, usize)> = sequences
            .iter()
            .map(|sequence| {
                let keys: usize = sequence.segments.iter().map(|segment| segment.keys.height()).sum();
                assert!(keys > 0, "a sequence attends to something");
                let start = words;
                words += key_heads * sizes.words_of(keys);
                (start, keys)
            })
            .collect();
        let mut packed = Self { sizes, sequences: places, data: device.scratch.take(words) };
        let mut rest = &mut packed.data[..];
        let mut jobs = Vec::new();
        for (sequence, &(_, keys)) in sequences.iter().zip(&packed.sequences) {
            for head in 0..key_heads {
                for block in pieces(0..keys, block_keys(sizes.rounding)) {
                    let (room, later) = rest.split_at_mut(sizes.words_of(block.len()));
                    rest = later;
                    jobs.push((&sequence.segments, head, block, room));
                }
            }
        }
        device.run(|| {
            jobs.into_par_iter().with_max_len(1).for_each(|(segments, head, block, room)| {
                let (key_lines, value_lines) = room.split_at_mut(sizes.words_of_keys(block.len()));
                let columns = head * width..(head + 1) * width;
                rayon::join(
                    || pack_keys(sizes, rows(segments, |s| s.keys, &columns, &block), block.len(), key_lines),
                    || pack_values(sizes, || rows(segments, |s| s.values, &columns, &block), value_lines),
                );
            });
        });
        packed
    }

    /// The blocks of a key head of a sequence.
    pub(super) fn of(&self, sequence: usize, head: usize) -> impl Iterator<Item = KeyBlock<'_>> {
        let sizes = self.sizes;
        let (start, keys) = self.sequences[sequence];
        let start = start + head * sizes.words_of(keys);
        pieces(0..keys, block_keys(sizes.rounding)).map(move |block| {
            // All blocks but the last are whole.
            let words = sizes.words_of(block.len());
            let data = &self.data[start + sizes.words_of(block.start)..][..words];
            let (key_lines, value_lines) = data.split_at(sizes.words_of_keys(block.len()));
            KeyBlock { keys: block.len(), key_lines, value_lines }
        })
    }
}

impl HeadSizes {
    /// Words of a head's keys. A block of keys is a whole number of lines.
    fn words_of_keys(self, keys: usize) -> usize {
        padded(keys) * self.rounding.words().depth(self.width)
    }

    /// Words of a head's keys and values.
    fn words_of(self, keys: usize) -> usize {
        self.words_of_keys(keys) + padded(keys) / self.rounding.words().values() * padded(self.width)
    }
}

fn padded(count: usize) -> usize {
    count.next_multiple_of(LANES)
}

/// Some columns of some neighbouring tokens' keys or values, the tokens counted over all segments.
fn rows<'a>(
    segments: &'a [Segment<'a>],
    part: impl Fn(&Segment<'a>) -> Band<'a>,
    columns: &Range<usize>,
    tokens: &Range<usize>,
) -> impl Iterator<Item = &'a [f32]> {
    let mut start = 0;
    segments.iter().flat_map(move |segment| {
        let (band, end) = (part(segment), start + segment.keys.height());
        let [from, to] = [tokens.start, tokens.end].map(|token| token.clamp(start, end) - start);
        start = end;
        let columns = columns.clone();
        (from..to).map(move |token| &band.row(token)[columns.clone()])
    })
}

/// Keys as lines of [`LANES`] keys by dimension.
fn pack_keys<'a>(
    sizes: HeadSizes,
    mut rows: impl Iterator<Item = &'a [f32]>,
    keys: usize,
    lines: &mut [u32],
) {
    let depth = sizes.rounding.words().depth(sizes.width);
    let mut lanes = vec![0; LANES * depth];
    for (panel, lines) in pieces(0..padded(keys), PANEL).zip(lines.chunks_mut(depth * PANEL)) {
        let units = panel.len() / LANES;
        for unit in 0..units {
            for lane in lanes.chunks_exact_mut(depth) {
                match rows.next() {
                    Some(row) => encode(sizes.rounding, row, lane),
                    None => lane.fill(0),
                }
            }
            write_lines(&lanes, unit, units, lines);
        }
    }
}

/// Values as lines of [`LANES`] dimensions by key. `rows` is asked for all of them once per panel.
fn pack_values<'a, I: Iterator<Item = &'a [f32]>>(sizes: HeadSizes, rows: impl Fn() -> I, lines: &mut [u32]) {
    let words = lines.len() / padded(sizes.width);
    for (panel, lines) in pieces(0..padded(sizes.width), PANEL).zip(lines.chunks_mut(words * PANEL)) {
        let columns = panel.start..panel.end.min(sizes.width);
        let mut rows = rows().map(|row| &row[columns.clone()]);
        for line in lines.chunks_exact_mut(panel.len()) {
            let (line, padding) = line.split_at_mut(columns.len());
            padding.fill(0);
            match (rows.next(), sizes.rounding) {
                (None, _) => line.fill(0),
                (Some(low), Rounding::Bf16Pairs) => encode_pairs(low, rows.next().unwrap_or(&[]), line),
                (Some(row), rounding) => encode(rounding, row, line),
            }
        }
    }
}

vectorised! {
    /// Pairs of a value of one row and the value of the next one under it; zeros where there is no next row.
    fn encode_pairs(low: &[f32], high: &[f32], out: &mut [u32]) {
        if high.is_empty() {
            out.iter_mut().zip(low).for_each(|(out, low)| *out = bf16_pair(*low, 0.0));
        } else {
            for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
                *out = bf16_pair(*low, *high);
            }
        }
    }
}
