//! The fit of the model's constants to the rows marked for it.

use super::{Row, Setting, rows};
use crate::Arch;
use crate::cost::{Calibration, PassCost, Program};

/// Constants that make the rows marked `fit` come out best, by least squares on relative errors.
///
/// Every prediction of a fitted row is a sum of parts that scale with one constant each, so this is linear: three
/// constants from the traced Blackhole rows, then one each for the early programs and for lines, two for the host.
pub fn fit(start: &Calibration) -> Calibration {
    let mut fitted = start.clone();
    let rows: Vec<Row> = rows().into_iter().filter(|row| row.fit).collect();
    let group = |test: &dyn Fn(&Setting) -> bool| {
        rows.iter().filter(|row| test(&row.setting)).cloned().collect::<Vec<Row>>()
    };
    let host = |setting: &Setting| setting.arch == Arch::Host;
    let early = |setting: &Setting| setting.program == Program::OpByOp;

    let single = group(&|setting| !host(setting) && !early(setting) && setting.chips == 1);
    let [matmul, weights, launch] =
        scales(&fitted, &single, |parts| [parts.matmul_ms, parts.weights_ms, parts.launch_ms]);
    fitted.fitted.matmul_utilisation /= matmul;
    fitted.fitted.dram_efficiency /= weights;
    fitted.fitted.launch_us *= launch;

    let [launch] = scales(&fitted, &group(&early), |parts| [parts.launch_ms]);
    fitted.fitted.launch_op_by_op_us *= launch;

    let [collective] = scales(&fitted, &group(&|setting| setting.line), |parts| [parts.collective_ms]);
    fitted.fitted.line_collective_factor *= collective;

    let [matmul, launch] =
        scales(&fitted, &group(&host), |parts| [parts.matmul_ms + parts.attention_ms, parts.launch_ms]);
    fitted.fitted.host_utilisation /= matmul;
    fitted.fitted.host_launch_us *= launch;
    fitted
}

/// Factors on the chosen parts that minimise the squared relative errors of the rows.
fn scales<const N: usize>(
    calibration: &Calibration,
    rows: &[Row],
    choose: impl Fn(PassCost) -> [f64; N],
) -> [f64; N] {
    let mut normal = [[0.0; N]; N];
    let mut right = [0.0; N];
    for row in rows {
        let (parts, total) = row.setting.with_model(calibration, |model, pipeline| {
            let cost = model.pipeline(pipeline).expect("published placements are on their boards");
            (model.parts(pipeline).expect("published placements are on their boards"), cost.latency_ms)
        });
        let chosen = choose(parts);
        let rest = (row.published_ms - (total - chosen.iter().sum::<f64>())) / row.published_ms;
        for a in 0..N {
            right[a] += chosen[a] / row.published_ms * rest;
            for b in 0..N {
                normal[a][b] += chosen[a] * chosen[b] / row.published_ms.powi(2);
            }
        }
    }
    solve(normal, right)
}

/// Gaussian elimination; the normal equations of distinct rows are positive definite, so no pivot is zero.
fn solve<const N: usize>(mut matrix: [[f64; N]; N], mut right: [f64; N]) -> [f64; N] {
    for pivot in 0..N {
        let pivot_row = matrix[pivot];
        for row in (0..N).filter(|row| *row != pivot) {
            let factor = matrix[row][pivot] / pivot_row[pivot];
            matrix[row].iter_mut().zip(pivot_row).for_each(|(cell, above)| *cell -= factor * above);
            right[row] -= factor * right[pivot];
        }
    }
    std::array::from_fn(|at| right[at] / matrix[at][at])
}
