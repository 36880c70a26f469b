//! Matrix product on blocks that fit the caches.
//!
//! Every element of a result is one chain of multiply-adds over the inner dimension, word by word, starting at
//! zero: how rows, columns and threads are split changes no bit (*same-bits*).
//!
//! A task computes some rows of some panels of columns. It goes through the inner dimension in chunks: a panel's part of
//! a chunk stays in the first-level cache while all rows of the task pass by, whose part of the chunk stays in the second.
//! Weights lie in memory as bf16; where the kernel wants f32, a task widens them as it comes to them, once for all its
//! rows.

mod columns;
mod kernel;
mod output;
mod packed;
mod rows;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

pub(in crate::device) use columns::{Columns, Layout};
pub use kernel::Kernel;
use kernel::{Ahead, Tile};
pub(super) use kernel::{CHUNK, LANES, Words};
pub(in crate::device) use output::MatrixWriter;
pub(in crate::device) use packed::Packed;
pub(super) use packed::write_lines;
pub(super) use rows::encode;
pub(in crate::device) use rows::{Rounding, Rows};

use super::HostDevice;
use super::scratch::Values;

/// Columns of a panel.
pub(super) const PANEL: usize = kernel::UNITS * LANES;
/// Rows of a task at most: a chunk of them takes 210 KB of a second-level cache. The prefix of three cameras is two such.
const BLOCK_ROWS: usize = 408;
/// Panels of a task at most: with all rows their sums take 310 KB.
const BLOCK_PANELS: usize = 4;
/// About as many tasks as there are for each thread, where there is enough work.
const TASKS_PER_THREAD: usize = 8;
/// Rows that are not split any further for the sake of more tasks, each of which reads the weights again.
const FEWEST_ROWS: usize = 96;

/// The right-hand operand of a product, `inner × columns`.
pub(in crate::device) trait Right: Sync {
    /// Values that are summed over.
    fn inner(&self) -> usize;

    /// Columns.
    fn columns(&self) -> usize;

    /// Neighbouring panels whose columns reach [`Finish`] together: 1, 2 or 4.
    fn together(&self) -> usize {
        1
    }

    /// Lines side by side in a panel.
    fn units(&self, panel: usize) -> usize {
        (self.columns() - panel * PANEL).div_ceil(LANES).min(PANEL / LANES)
    }

    /// The lines of words `chunk` of a panel, written to `room` unless they lie ready.
    fn lines<'a>(&'a self, words: Words, panel: usize, chunk: Range<usize>, room: &'a mut [u32])
    -> &'a [u32];

    /// The memory that [`Right::lines`] will read.
    fn ahead(&self, _: Words, _: usize, _: Range<usize>) -> &[u32] {
        &[]
    }
}

/// What becomes of some neighbouring columns of a row of the result.
pub(in crate::device) type Finish<'a> = dyn Fn(usize, Range<usize>, &mut [f32]) + Sync + 'a;

thread_local! {
    /// The sums of the task that runs on this thread, and a panel that it has widened.
    static ROOM: RefCell<[Vec<u32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// The product of `x` and `right` on the threads of the device; every row of the result goes to `finish` once, in pieces.
pub(in crate::device) fn multiply(device: &HostDevice, x: &Rows, right: &dyn Right, finish: &Finish<'_>) {
    assert!(
        x.width() == right.inner() && right.inner() > 0,
        "the operands of a product have one inner dimension"
    );
    let panels = right.columns().div_ceil(PANEL);
    let tasks = tasks(x.rows(), panels, right.together(), device.threads());
    let next = AtomicUsize::new(0);
    // Threads take one task after the other, the large ones first.
    let work = |[sums, lines]: &mut [Vec<u32>; 2]| {
        while let Some((rows, panels)) = tasks.get(next.fetch_add(1, Ordering::Relaxed)).cloned() {
            let sums: &mut [f32] = bytemuck::cast_slice_mut(aligned(sums, rows.len() * panels.len() * PANEL));
            write_block(device.kernel(), x, right, rows.clone(), panels.clone(), sums, lines);
            let columns = panels.start * PANEL..(panels.end * PANEL).min(right.columns());
            for (row, sums) in rows.zip(sums.chunks_exact_mut(panels.len() * PANEL)) {
                finish(row, columns.clone(), &mut sums[..columns.len()]);
            }
        }
    };
    let threads = device.threads().min(tasks.len());
    device.run(|| {
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| ROOM.with_borrow_mut(work));
    });
}

/// Rows and panels of each task: as many panels as fit at first, and fewer towards the end, so that all threads end at
/// about the same time. Groups of panels stay together.
fn tasks(rows: usize, panels: usize, together: usize, threads: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let wanted = threads * TASKS_PER_THREAD;
    let height = rows.div_ceil(wanted.div_ceil(panels.max(1))).clamp(FEWEST_ROWS, BLOCK_ROWS);
    let mut tasks = Vec::new();
    let mut start = 0;
    while start < panels {
        let share = (panels - start) / (2 * threads) / together * together;
        let end = (start + share.clamp(together, BLOCK_PANELS)).min(panels);
        tasks.extend(even_pieces(rows, height).map(|rows| (rows, start..end)));
        start = end;
    }
    tasks
}

/// Writes the product of some rows and panels to `sums`.
fn write_block(
    kernel: Kernel,
    x: &Rows,
    right: &dyn Right,
    rows: Range<usize>,
    panels: Range<usize>,
    sums: &mut [f32],
    room: &mut Vec<u32>,
) {
    let words = x.words();
    let width = panels.len() * PANEL;
    let room = aligned(room, CHUNK * PANEL);
    let mut chunks = chunks_of(x.width(), words).peekable();
    while let Some(chunk) = chunks.next() {
        let x = x.chunk(&chunk, rows.clone());
        for panel in panels.clone() {
            let next = if panel + 1 < panels.end {
                Some((panel + 1, &chunk))
            } else {
                chunks.peek().map(|chunk| (panels.start, chunk))
            };
            let ahead =
                next.map(|(panel, chunk)| right.ahead(words, panel, chunk.clone())).unwrap_or_default();
            let tiles = Panel {
                lines: right.lines(words, panel, chunk.clone(), room),
                units: right.units(panel),
                depth: chunk.len(),
                ahead,
                fresh: chunk.start == 0,
            };
            let sums = &mut sums[(panel - panels.start) * PANEL..];
            add_panel(kernel, words, x, &tiles, rows.len(), sums, width);
        }
    }
}

/// A panel's part of a chunk.
pub(super) struct Panel<'a> {
    pub(super) lines: &'a [u32],
    pub(super) units: usize,
    /// Words.
    pub(super) depth: usize,
    /// What will be read next.
    pub(super) ahead: &'a [u32],
    /// Whether sums start at zero, whatever is there.
    pub(super) fresh: bool,
}

/// Adds the product of rows that are [`CHUNK`] words apart and a panel to `sums`, whose rows are `width` apart; writes
/// it where the panel is fresh.
pub(super) fn add_panel(
    kernel: Kernel,
    words: Words,
    x: &[u32],
    panel: &Panel<'_>,
    rows: usize,
    sums: &mut [f32],
    width: usize,
) {
    let Panel { lines, units, depth, ahead, fresh } = *panel;
    let mut ahead = ahead.chunks(depth.div_ceil(2) * LANES);
    for tile in even_pieces(rows, kernel.rows()) {
        let next = tile.end * CHUNK;
        let rows = &x[next.min(x.len())..(next + kernel.rows() * CHUNK).min(x.len())];
        let ahead = Ahead { lines: ahead.next().unwrap_or_default(), rows };
        let (x, sums) = (&x[tile.start * CHUNK..], &mut sums[tile.start * width..]);
        kernel.run(words, Tile { x, lines, rows: tile.len(), units, depth, sums, width, fresh, ahead });
    }
}

/// The chunks of an inner dimension, in words.
pub(super) fn chunks_of(inner: usize, words: Words) -> impl Iterator<Item = Range<usize>> {
    pieces(0..words.depth(inner), CHUNK)
}

/// Consecutive pieces of at most `size`.
pub(super) fn pieces(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..(start + size).min(end))
}

/// As few consecutive pieces of at most `size` as there can be, of about the same length.
pub(super) fn even_pieces(length: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let count = length.div_ceil(size);
    (0..count).map(move |i| i * length / count..(i + 1) * length / count)
}

/// Room for that many words from the start of a cache line on.
pub(super) fn aligned(room: &mut Vec<u32>, words: usize) -> &mut [u32] {
    /// Words of a cache line.
    const LINE: usize = 64 / size_of::<u32>();
    if room.len() < words + LINE {
        room.resize(words + LINE, 0);
    }
    let start = room.as_ptr().align_offset(64).min(LINE);
    &mut room[start..start + words]
}

/// The product of row-major values, `[rows, columns]`.
pub(in crate::device) fn multiply_values(device: &HostDevice, x: &[f32], right: &dyn Right) -> Vec<f32> {
    let x = Rows::of(device, Rounding::F32, x, right.inner());
    let mut out = vec![0.0; x.rows() * right.columns()];
    store_in(device, &x, right, &mut out, &|_, _| ());
    out
}

/// The product as row-major values, `[rows, columns]`, after `change` has seen neighbouring columns of a row.
pub(super) fn store(device: &HostDevice, x: &Rows, right: &dyn Right, change: &Change<'_>) -> Values {
    let mut out = Values::unwritten(&device.scratch, x.rows() * right.columns());
    store_in(device, x, right, &mut out, change);
    out
}

/// What is done to some neighbouring columns of a row of the result before they are stored.
type Change<'a> = dyn Fn(Range<usize>, &mut [f32]) + Sync + 'a;

/// [`store`], where there is room for the product.
fn store_in(device: &HostDevice, x: &Rows, right: &dyn Right, out: &mut [f32], change: &Change<'_>) {
    let writer = MatrixWriter::new(out, right.columns());
    multiply(device, x, right, &|row, columns, sums| {
        change(columns.clone(), sums);
        // SAFETY: `multiply` hands out every element of the result once.
        #[allow(unsafe_code)]
        unsafe {
            writer.part(row, columns).copy_from_slice(sums);
        }
    });
}
