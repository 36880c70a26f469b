//! Keys and values in the order in which kernels read them.

use std::ops::Range;

use rayon::prelude::*;

use super::{Heads, Segment, Sequence};
use crate::device::host::HostDevice;
use crate::device::host::gemm::{CHUNK, LANES, PANEL, pieces};
use crate::device::host::scratch::Scratch;

/// Keys of a block: their shares of a row are a chunk of the product with the values.
pub(super) const BLOCK: usize = CHUNK;

/// Keys and values of all key heads of some sequences, packed block by block.
pub(super) struct PackedKeys {
    width: usize,
    key_heads: usize,
    /// For each sequence, where it begins and how many keys it has.
    sequences: Vec<(usize, usize)>,
    data: Scratch,
}

/// Some neighbouring keys of a head, with their values.
pub(super) struct KeyBlock<'a> {
    pub(super) keys: usize,
    /// Panels of keys, by dimension of the head; zeros behind the last key.
    pub(super) key_lines: &'a [u32],
    /// Panels of dimensions, by key; zeros behind the last key.
    pub(super) value_lines: &'a [u32],
}

impl PackedKeys {
    pub(super) fn new(device: &HostDevice, sequences: &[Sequence<'_>], heads: Heads) -> Self {
        let Heads { key_value: key_heads, width, .. } = heads;
        let mut words = 0;
        let places: Vec<(usize, usize)> = sequences
            .iter()
            .map(|sequence| {
                let keys: usize = sequence.segments.iter().map(|s| s.keys.len() / (key_heads * width)).sum();
                assert!(keys > 0, "a sequence attends to something");
                let start = words;
                words += key_heads * words_of(keys, width);
                (start, keys)
            })
            .collect();
        let mut packed = Self { width, key_heads, sequences: places, data: device.scratch.take(words) };
        let mut rest = &mut packed.data[..];
        let mut jobs = Vec::new();
        for (sequence, &(_, keys)) in sequences.iter().zip(&packed.sequences) {
            for head in 0..key_heads {
                for block in pieces(0..keys, BLOCK) {
                    let (room, later) = rest.split_at_mut(words_of(block.len(), width));
                    rest = later;
                    jobs.push((sequence, head, block, room));
                }
            }
        }
        device.run(|| {
            jobs.into_par_iter().for_each(|(sequence, head, block, room)| {
                let (key_lines, value_lines) = room.split_at_mut(padded(block.len()) * width);
                let row = Row {
                    segments: &sequence.segments,
                    stride: key_heads * width,
                    first: head * width,
                    width,
                };
                pack_keys(&row, block.clone(), key_lines);
                pack_values(&row, block, value_lines);
            });
        });
        packed
    }

    /// The blocks of a key head of a sequence.
    pub(super) fn of(&self, sequence: usize, head: usize) -> impl Iterator<Item = KeyBlock<'_>> {
        let (start, keys) = self.sequences[sequence];
        debug_assert!(head < self.key_heads);
        let start = start + head * words_of(keys, self.width);
        pieces(0..keys, BLOCK).map(move |block| {
            // All blocks but the last are whole.
            let words = words_of(block.len(), self.width);
            let data = &self.data[start + words_of(block.start, self.width)..][..words];
            let (key_lines, value_lines) = data.split_at(padded(block.len()) * self.width);
            KeyBlock { keys: block.len(), key_lines, value_lines }
        })
    }
}

fn padded(count: usize) -> usize {
    count.next_multiple_of(LANES)
}

/// Words of the keys and values of one head. A block of keys is a whole number of lines.
fn words_of(keys: usize, width: usize) -> usize {
    padded(keys) * (width + padded(width))
}

/// The keys and values of one head, token by token.
struct Row<'a> {
    segments: &'a [Segment<'a>],
    stride: usize,
    first: usize,
    width: usize,
}

impl<'a> Row<'a> {
    /// Key and value of some neighbouring tokens, counted over all segments.
    fn of(&self, tokens: Range<usize>) -> impl Iterator<Item = (&'a [f32], &'a [f32])> {
        let Row { stride, first, width, .. } = *self;
        let mut start = 0;
        self.segments
            .iter()
            .flat_map(move |segment| {
                let end = start + segment.keys.len() / stride;
                let [from, to] =
                    [tokens.start, tokens.end].map(|token| (token.clamp(start, end) - start) * stride);
                start = end;
                segment.keys[from..to].chunks_exact(stride).zip(segment.values[from..to].chunks_exact(stride))
            })
            .map(move |(key, value)| (&key[first..first + width], &value[first..first + width]))
    }
}

fn pack_keys(row: &Row<'_>, block: Range<usize>, lines: &mut [u32]) {
    let keys = padded(block.len());
    let panels = pieces(0..keys, PANEL).zip(lines.chunks_mut(row.width * PANEL));
    for (panel, lines) in panels {
        let units = panel.len() / LANES;
        for unit in 0..units {
            let first = block.start + panel.start + unit * LANES;
            let last = (first + LANES).min(block.end);
            let mut keys: [&[f32]; LANES] = [&[]; LANES];
            keys.iter_mut().zip(row.of(first.min(last)..last)).for_each(|(slot, (key, _))| *slot = key);
            for (k, lines) in lines.chunks_exact_mut(units * LANES).enumerate() {
                for (word, key) in lines[unit * LANES..][..LANES].iter_mut().zip(&keys) {
                    *word = key.get(k).map_or(0, |x| x.to_bits());
                }
            }
        }
    }
}

fn pack_values(row: &Row<'_>, block: Range<usize>, lines: &mut [u32]) {
    let keys = padded(block.len());
    for (panel, lines) in pieces(0..padded(row.width), PANEL).zip(lines.chunks_mut(keys * PANEL)) {
        let columns = panel.start..panel.end.min(row.width);
        let mut values = row.of(block.clone());
        for line in lines.chunks_exact_mut(panel.len()) {
            let found = values.next().map_or(&[][..], |(_, value)| &value[columns.clone()]);
            line.iter_mut().zip(found).for_each(|(word, value)| *word = value.to_bits());
            line[found.len()..].fill(0);
        }
    }
}
