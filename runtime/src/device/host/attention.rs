//! Full attention of query rows to key and value rows. No mask: what nobody may attend to is not there.
//!
//! Scores are never written as a whole: a task takes some rows through the keys block by block and keeps the highest
//! score, the sum of the shares and the weighted values of what it has seen (online softmax: Milakov and Gimelshein
//! 2018; with values as in FlashAttention, Dao et al. 2022). Blocks begin at every [`BLOCK`]th key, however keys are
//! split into segments and rows into tasks (*same-bits*).

mod keys;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::HostDevice;
use super::activation::exp;
use super::gemm::{
    CHUNK, LANES, PANEL, Panel, Rows, Words, add_panel, aligned, chunks_of, even_pieces, pieces,
};
use super::vectorise::vectorised;
use keys::{BLOCK, KeyBlock, PackedKeys};

/// Query rows that one task takes through the keys: whole tiles of any kernel.
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
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}

/// Query tokens, and what they attend to: segments one after the other.
pub(super) struct Sequence<'a> {
    pub(super) tokens: Range<usize>,
    pub(super) segments: Vec<Segment<'a>>,
}

thread_local! {
    /// Queries, scores and weighted values of the task that runs on this thread.
    static ROOM: RefCell<[Vec<u32>; 3]> = const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

/// `softmax(q kᵀ / √width) v` per head of every sequence. `q` is `[tokens, query × width]`, and so is the result, rounded
/// to the compute type.
pub(super) fn attention(device: &HostDevice, q: &[f32], sequences: &[Sequence<'_>], heads: Heads) -> Rows {
    let width = heads.query * heads.width;
    let tokens: usize = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
    assert_eq!(tokens * width, q.len(), "every query token belongs to a sequence");
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
    q: &[f32],
    heads: Heads,
    task: &Task,
    blocks: impl Iterator<Item = KeyBlock<'a>>,
    [queries, scores, sums]: &mut [Vec<u32>; 3],
    finish: impl Fn(usize, &[f32]),
) {
    let Heads { width, .. } = heads;
    let rows = task.rows.len();
    let padded = width.next_multiple_of(LANES);
    let queries = aligned(queries, rows * width.next_multiple_of(CHUNK));
    gather(q, heads, task, bytemuck::cast_slice_mut(queries));
    let scores: &mut [f32] = bytemuck::cast_slice_mut(aligned(scores, rows * BLOCK));
    let sums: &mut [f32] = bytemuck::cast_slice_mut(aligned(sums, rows * padded));
    sums.fill(0.0);
    let mut state = [State { highest: f32::NEG_INFINITY, sum: 0.0 }; TASK_ROWS];
    for block in blocks {
        let keys = block.keys.next_multiple_of(LANES);
        scores.fill(0.0);
        add_product(device, queries, rows, block.key_lines, width, scores, keys, BLOCK);
        let all = scores.chunks_exact_mut(BLOCK).zip(sums.chunks_exact_mut(padded)).zip(&mut state);
        all.for_each(|((scores, sums), state)| see(state, scores, block.keys, sums));
        let shares: &[u32] = bytemuck::cast_slice(scores);
        add_product(device, shares, rows, block.value_lines, keys, sums, padded, padded);
    }
    for ((row, sums), state) in task.rows.clone().zip(sums.chunks_exact_mut(padded)).zip(&state) {
        let scale = 1.0 / state.sum;
        sums[..width].iter_mut().for_each(|x| *x *= scale);
        finish(row, &sums[..width]);
    }
}

/// Adds the product of `x [rows, inner]`, in chunks, and all panels of `lines` to `sums`: `columns` columns in rows that
/// are `stride` apart.
#[allow(clippy::too_many_arguments)] // both operands and the result with their sizes, as any matrix product has them
fn add_product(
    device: &HostDevice,
    x: &[u32],
    rows: usize,
    lines: &[u32],
    inner: usize,
    sums: &mut [f32],
    columns: usize,
    stride: usize,
) {
    for (panel, lines) in pieces(0..columns, PANEL).zip(lines.chunks(inner * PANEL)) {
        for chunk in chunks_of(inner, Words::Single) {
            let x = &x[chunk.start * rows..];
            let lines = &lines[chunk.start * panel.len()..chunk.end * panel.len()];
            let part = Panel { lines, units: panel.len() / LANES, depth: chunk.len(), ahead: &[] };
            add_panel(device.kernel(), Words::Single, x, &part, rows, &mut sums[panel.start..], stride);
        }
    }
}

/// The scaled queries of a task, in chunks.
fn gather(q: &[f32], heads: Heads, task: &Task, queries: &mut [f32]) {
    let Heads { query, width, .. } = heads;
    let scale = 1.0 / (width as f32).sqrt();
    for (index, row) in task.rows.clone().enumerate() {
        let (token, head) = (row / heads.group(), task.head * heads.group() + row % heads.group());
        let q = &q[((task.first_token + token) * query + head) * width..][..width];
        for chunk in chunks_of(width, Words::Single) {
            let out = &mut queries[chunk.start * task.rows.len() + index * CHUNK..][..chunk.len()];
            out.iter_mut().zip(&q[chunk]).for_each(|(out, q)| *out = q * scale);
        }
    }
}

/// What a row has seen so far.
#[derive(Clone, Copy)]
struct State {
    highest: f32,
    /// Sum of `e^(score - highest)`.
    sum: f32,
}

vectorised! {
    /// Turns the scores of a block into shares relative to the highest score so far, and what was summed before with
    /// them; zero behind the last key.
    fn see(state: &mut State, scores: &mut [f32], keys: usize, sums: &mut [f32]) {
        let (scores, padding) = scores.split_at_mut(keys);
        padding.fill(0.0);
        let highest = highest(scores).max(state.highest);
        let before = exp(state.highest - highest);
        let mut lanes = [0.0f32; LANES];
        for chunk in scores.chunks_mut(LANES) {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                let distance = *x - highest;
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

/// The highest of some scores.
#[inline(always)]
fn highest(scores: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in scores.chunks(LANES) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane = lane.max(*x));
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}
