//! Full attention of query rows to key and value rows. No mask: what nobody may attend to is not there.
//!
//! Scores are never written as a whole: a task takes some rows through the keys block by block and keeps the highest
//! score, the sum of the shares and the weighted values of what it has seen (online softmax: Milakov and Gimelshein
//! 2018; with values as in FlashAttention, Dao et al. 2022). A block is [`block_keys`] keys long, however keys are split
//! into segments and rows into tasks (*same-bits*).
//!
//! Queries, keys, values and shares are rounded to the compute type as they enter a product; scores and sums are f32.

mod keys;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::HostDevice;
use super::activation::exp;
use super::band::Band;
use super::gemm::{
    CHUNK, LANES, PANEL, Panel, Rows, Words, add_panel, aligned, chunks_of, encode, even_pieces, pieces,
};
use super::vectorise::vectorised;
use keys::{KeyBlock, PackedKeys, block_keys};

/// Query rows that one task takes through the keys at most: whole tiles of any kernel.
const TASK_ROWS: usize = 72;

/// How the heads of queries, keys and values lie side by side.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    /// Query heads.
    pub(super) query: usize,
    /// Key and value heads; each serves `query / key_value` query heads.
    pub(super) key_value: usize,
    /// Width of a head, an even number.
    pub(super) width: usize,
}

impl Heads {
    fn group(self) -> usize {
        self.query / self.key_value
    }
}

/// Keys and values of neighbouring tokens, `[tokens, key_value × width]` each.
#[derive(Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) keys: Band<'a>,
    pub(super) values: Band<'a>,
}

impl<'a> Segment<'a> {
    /// Those of all tokens, each part by itself, `[tokens, width]`.
    pub(super) fn whole(keys: &'a [f32], values: &'a [f32], width: usize) -> Self {
        Self { keys: Band::whole(keys, width), values: Band::whole(values, width) }
    }

    /// Those of these tokens.
    pub(super) fn rows(self, tokens: Range<usize>) -> Self {
        Self { keys: self.keys.rows(tokens.clone()), values: self.values.rows(tokens) }
    }
}

/// Query tokens, and what they attend to: segments one after the other.
pub(super) struct Sequence<'a> {
    pub(super) tokens: Range<usize>,
    pub(super) segments: Vec<Segment<'a>>,
}

thread_local! {
    /// Queries, scores, shares and weighted values of the task that runs on this thread.
    static ROOM: RefCell<[Vec<u32>; 4]> = const { RefCell::new([const { Vec::new() }; 4]) };
}

/// `softmax(q kᵀ / √width) v` per head of every sequence. `q` is `[tokens, query × width]`, and so is the result, rounded
/// to the compute type.
pub(super) fn attention(device: &HostDevice, q: Band<'_>, sequences: &[Sequence<'_>], heads: Heads) -> Rows {
    let width = heads.query * heads.width;
    let tokens: usize = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
    assert_eq!((tokens, width), (q.height(), q.width()), "every query token belongs to a sequence");
    let mut out = device.rows(tokens, width);
    let packed = PackedKeys::new(device, sequences, heads);
    let tasks: Vec<Task> = sequences
        .iter()
        .enumerate()
        .flat_map(|(sequence, Sequence { tokens, .. })| {
            (0..heads.key_value).flat_map(move |head| {
                even_pieces(tokens.len() * heads.group(), TASK_ROWS).map(move |rows| Task {
                    sequence,
                    head,
                    first_token: tokens.start,
                    rows,
                })
            })
        })
        .collect();
    let writer = out.writer();
    device.run(|| {
        tasks.into_par_iter().with_max_len(1).for_each(|task| {
            ROOM.with_borrow_mut(|room| {
                let keys = packed.of(task.sequence, task.head);
                let group = heads.group();
                attend(device, q, heads, &task, keys, room, |row, values| {
                    let (token, head) = (task.first_token + row / group, task.head * group + row % group);
                    // SAFETY: tasks share no row of a head.
                    #[allow(unsafe_code)]
                    unsafe {
                        writer.write(token, head * heads.width, values);
                    }
                });
            });
        });
    });
    out
}

/// Some rows of the query heads that share a key head. Row `r` is token `r / group` and head `r % group` of them.
struct Task {
    sequence: usize,
    head: usize,
    first_token: usize,
    rows: Range<usize>,
}

/// Takes the rows of a task through all blocks of keys.
fn attend<'a>(
    device: &HostDevice,
    q: Band<'_>,
    heads: Heads,
    task: &Task,
    blocks: impl Iterator<Item = KeyBlock<'a>>,
    [queries, scores, shares, sums]: &mut [Vec<u32>; 4],
    finish: impl Fn(usize, &[f32]),
) {
    let Heads { width, .. } = heads;
    let (rounding, rows) = (device.rounding(), task.rows.len());
    let words = rounding.words();
    let (depth, padded, stride) = (words.depth(width), width.next_multiple_of(LANES), block_keys(rounding));
    let queries = aligned(queries, rows * depth.next_multiple_of(CHUNK));
    gather(device, q, heads, task, queries);
    let scores: &mut [f32] = bytemuck::cast_slice_mut(aligned(scores, rows * stride));
    let shares = aligned(shares, rows * CHUNK);
    let sums: &mut [f32] = bytemuck::cast_slice_mut(aligned(sums, rows * padded));
    sums.fill(0.0);
    let mut state = [State { highest: f32::NEG_INFINITY, sum: 0.0 }; TASK_ROWS];
    let scale = 1.0 / (width as f32).sqrt();
    for block in blocks {
        let keys = block.keys.next_multiple_of(LANES);
        let left = Left { words, x: queries, rows, depth };
        multiply(device, &left, block.key_lines, Sums { fresh: true, values: scores, columns: keys, stride });
        let all = scores.chunks_exact_mut(stride).zip(shares.chunks_exact_mut(CHUNK));
        for (((scores, shares), sums), state) in all.zip(sums.chunks_exact_mut(padded)).zip(&mut state) {
            let scores = &mut scores[..keys];
            see(state, scores, block.keys, scale, sums);
            encode(rounding, scores, &mut shares[..keys / words.values()]);
        }
        let left = Left { words, x: shares, rows, depth: keys / words.values() };
        multiply(
            device,
            &left,
            block.value_lines,
            Sums { fresh: false, values: sums, columns: padded, stride: padded },
        );
    }
    for ((row, sums), state) in task.rows.clone().zip(sums.chunks_exact_mut(padded)).zip(&state) {
        let scale = 1.0 / state.sum;
        sums[..width].iter_mut().for_each(|x| *x *= scale);
        finish(row, &sums[..width]);
    }
}

/// The left operand of a product: words `[rows, depth]`, in chunks.
struct Left<'a> {
    words: Words,
    x: &'a [u32],
    rows: usize,
    depth: usize,
}

/// Where a product goes: columns of rows that are `stride` apart.
struct Sums<'a> {
    /// Whether they are written; otherwise the product is added to them.
    fresh: bool,
    values: &'a mut [f32],
    columns: usize,
    stride: usize,
}

/// The product with all panels of `lines`.
fn multiply(device: &HostDevice, left: &Left<'_>, lines: &[u32], sums: Sums<'_>) {
    let Left { words, x, rows, depth } = *left;
    for (panel, lines) in pieces(0..sums.columns, PANEL).zip(lines.chunks(depth * PANEL)) {
        for chunk in pieces(0..depth, CHUNK) {
            let part = Panel {
                lines: &lines[chunk.start * panel.len()..chunk.end * panel.len()],
                units: panel.len() / LANES,
                depth: chunk.len(),
                ahead: &[],
                fresh: sums.fresh && chunk.start == 0,
            };
            let x = &x[chunk.start * rows..];
            add_panel(device.kernel(), words, x, &part, rows, &mut sums.values[panel.start..], sums.stride);
        }
    }
}

/// The queries of a task, in chunks.
fn gather(device: &HostDevice, q: Band<'_>, heads: Heads, task: &Task, queries: &mut [u32]) {
    let (Heads { width, .. }, rounding) = (heads, device.rounding());
    let words = rounding.words();
    for (index, row) in task.rows.clone().enumerate() {
        let (token, head) = (row / heads.group(), task.head * heads.group() + row % heads.group());
        let q = &q.row(task.first_token + token)[head * width..][..width];
        for (chunk, q) in chunks_of(width, words).zip(q.chunks(CHUNK * words.values())) {
            let start = chunk.start * task.rows.len() + index * CHUNK;
            encode(rounding, q, &mut queries[start..][..chunk.len()]);
        }
    }
}

/// What a row has seen so far.
#[derive(Clone, Copy)]
struct State {
    highest: f32,
    /// Sum of `e^(scale · (score - highest))`.
    sum: f32,
}

vectorised! {
    /// Turns the scores of a block, which are still to be scaled, into shares relative to the highest score so far, and
    /// what was summed before with them. Scores fill whole lines; those behind the last key become next to nothing.
    fn see(state: &mut State, scores: &mut [f32], keys: usize, scale: f32, sums: &mut [f32]) {
        scores[keys..].fill(f32::NEG_INFINITY);
        let (lines, _) = scores.as_chunks_mut::<LANES>();
        let mut lanes = [state.highest; LANES];
        for line in &*lines {
            lanes.iter_mut().zip(line).for_each(|(lane, x)| *lane = lane.max(*x));
        }
        let highest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
        let before = exp((state.highest - highest) * scale);
        let mut lanes = [0.0f32; LANES];
        for line in lines {
            for (lane, x) in lanes.iter_mut().zip(line) {
                let distance = (*x - highest) * scale;
                // A score that is not a number must not become one.
                *x = if distance.is_nan() { distance } else { exp(distance) };
                *lane += *x;
            }
        }
        state.sum = state.sum * before + lanes.iter().sum::<f32>();
        state.highest = highest;
        sums.iter_mut().for_each(|x| *x *= before);
    }
}
