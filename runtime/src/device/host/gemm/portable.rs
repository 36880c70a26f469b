//! The micro-kernel in plain Rust, for every CPU.

use super::PANEL;

/// See [`super::MicroKernel`].
pub(super) fn multiply_add(x: &[f32], stride: usize, panel: &[f32], sums: &mut [[f32; PANEL]]) {
    let depth = panel.len() / PANEL;
    for (row, sums) in sums.iter_mut().enumerate() {
        let x = &x[row * stride..][..depth];
        for (x, column) in x.iter().zip(panel.as_chunks::<PANEL>().0) {
            for (sum, w) in sums.iter_mut().zip(column) {
                *sum += x * w;
            }
        }
    }
}
