//! Published measurements, what the cost model says of them, and the fit of its constants.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cost::{Calibration, CostModel, Program};
use crate::placement::{Pipeline, Residence, Slice, Split};
use crate::workload::RequestShape;
use crate::{Arch, Board, ChipId, ChipSpec, LayerRange, ModelSizes, Pcie, StageKind, Variant, WeightDtype};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    row: Vec<Row>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    published_ms: f64,
    #[serde(default)]
    fit: bool,
    source: String,
    setting: Setting,
}

/// Which hand placement a measurement was taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandPlacement {
    /// The whole policy on one chip.
    Chip,
    /// The vision tower alone on one chip.
    Vision,
    /// The prefix alone, tensor-split when over several chips.
    Prefill,
    /// The denoising loop alone, its layers over a chain of chips with weights in L1.
    Denoise,
    /// Cameras over a row of eight, tensor-split prefix on the same eight, expert on the first.
    #[serde(rename = "row-of-8")]
    RowOf8,
    /// The same without the expert, which is streamed over the eight chips of the next row.
    #[serde(rename = "two-rows-of-8")]
    TwoRowsOf8,
    /// Four vision chips, one VLM layer on each of eighteen, three expert layers on each of six.
    #[serde(rename = "snake-of-28")]
    SnakeOf28,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Setting {
    place: HandPlacement,
    only: Option<StageKind>,
    #[serde(default = "one")]
    chips: u32,
    #[serde(default)]
    line: bool,
    #[serde(default = "two")]
    lanes: u32,
    #[serde(default = "blackhole")]
    arch: Arch,
    cores: u32,
    #[serde(default = "fused")]
    program: Program,
    #[serde(default = "pi05")]
    variant: Variant,
    cameras: usize,
    #[serde(default = "padded_prompt")]
    prompt_tokens: usize,
    #[serde(default = "ten")]
    steps: usize,
    horizon: Option<usize>,
    #[serde(default)]
    bf16: bool,
    #[serde(default)]
    point_to_point: bool,
}

fn one() -> u32 {
    1
}
fn two() -> u32 {
    2
}
fn ten() -> usize {
    10
}
fn blackhole() -> Arch {
    Arch::Blackhole
}
fn fused() -> Program {
    Program::Fused
}
fn pi05() -> Variant {
    Variant::Pi05
}
/// The published π0.5 programs pad the instruction to 256 tokens.
fn padded_prompt() -> usize {
    256
}

/// A measurement beside the prediction.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Setting.
    pub name: String,
    /// Measured.
    pub published_ms: f64,
    /// Predicted.
    pub predicted_ms: f64,
    /// Whether constants were fitted to it.
    pub fitted: bool,
    /// Where it was published.
    pub source: String,
}

impl Comparison {
    /// Prediction over measurement, less one.
    pub fn error(&self) -> f64 {
        self.predicted_ms / self.published_ms - 1.0
    }
}

/// All comparisons; prints as a Markdown table.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In the order of the data file.
    pub rows: Vec<Comparison>,
    /// Median size of the error on rows that were not fitted.
    pub median_error: f64,
    /// Largest error on rows that were not fitted.
    pub worst_error: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| setting | predicted ms | published ms | error | used for |")?;
        writeln!(f, "|---|---:|---:|---:|---|")?;
        for row in &self.rows {
            writeln!(
                f,
                "| {} | {:.2} | {:.2} | {:+.1} % | {} |",
                row.name,
                row.predicted_ms,
                row.published_ms,
                100.0 * row.error(),
                if row.fitted { "fit" } else { "validation" }
            )?;
        }
        write!(
            f,
            "\nRows not fitted: median error {:.1} %, worst {:.1} %.",
            100.0 * self.median_error,
            100.0 * self.worst_error
        )
    }
}

/// Predicts every published measurement.
pub fn report(calibration: &Calibration) -> Report {
    let rows: Vec<Comparison> = rows()
        .into_iter()
        .map(|row| Comparison {
            predicted_ms: row.setting.with_model(calibration, |model, pipeline| {
                model.pipeline(pipeline).expect("published placements are on their boards").latency_ms
            }),
            name: row.name,
            published_ms: row.published_ms,
            fitted: row.fit,
            source: row.source,
        })
        .collect();
    let mut errors: Vec<f64> =
        rows.iter().filter(|row| !row.fitted).map(|row| row.error().abs()).collect();
    errors.sort_by(f64::total_cmp);
    let median_error = errors.get(errors.len() / 2).copied().unwrap_or(f64::NAN);
    let worst_error = errors.last().copied().unwrap_or(f64::NAN);
    Report { rows, median_error, worst_error }
}

fn rows() -> Vec<Row> {
    let file: File =
        toml::from_str(include_str!("published.toml")).expect("the measurements in the source tree are read by every test");
    file.row
}

impl Setting {
    fn sizes(&self) -> ModelSizes {
        let base = ModelSizes::base(self.variant);
        ModelSizes { horizon: self.horizon.unwrap_or(base.horizon), ..base }
    }

    fn board(&self) -> Board {
        let spec = match self.arch {
            Arch::Wormhole => ChipSpec::wormhole(),
            Arch::Blackhole => ChipSpec::blackhole(),
            Arch::Host => ChipSpec::host(),
        };
        let shape = if self.place == HandPlacement::SnakeOf28 { (8, 4) } else { (2, 8) };
        Board::mesh("published", shape, self.lanes, spec.with_cores(self.cores), |_| {
            Some(Pcie { generation: 5, lanes: 16 })
        })
    }

    fn with_model<T>(&self, calibration: &Calibration, then: impl FnOnce(&CostModel<'_>, &Pipeline) -> T) -> T {
        let (board, sizes) = (self.board(), self.sizes());
        let request = RequestShape {
            cameras: self.cameras,
            prompt_tokens: self.prompt_tokens,
            steps: self.steps,
            batch: 1,
        };
        let mut calibration = calibration.clone();
        if self.point_to_point {
            calibration.published.socket_gb_per_s = calibration.published.point_to_point_gb_per_s;
        }
        let rings = !self.line && self.place != HandPlacement::TwoRowsOf8;
        let program = self.program;
        let model = CostModel { program, rings, ..CostModel::new(&board, &sizes, request, &calibration) };
        let mut pipeline = self.place.pipeline(&sizes, self.chips);
        if let Some(stage) = self.only {
            pipeline.slices.retain(|slice| slice.stage == stage);
        }
        if self.bf16 || self.arch == Arch::Host {
            pipeline.slices.iter_mut().for_each(|slice| slice.weights = WeightDtype::Bf16);
        }
        then(&model, &pipeline)
    }
}

impl HandPlacement {
    /// The pipeline, on chips numbered row by row in a 2×8 mesh (8×4 for the snake).
    pub fn pipeline(self, sizes: &ModelSizes, chips: u32) -> Pipeline {
        let whole = |stage| Slice::on(stage, all(sizes, stage), ChipId(0));
        let row = |first: u32, count: u32| (first..first + count).map(ChipId).collect::<Vec<_>>();
        let cameras = whole(StageKind::Vision).shared(row(0, 8), Split::Cameras);
        let tensor = |count| whole(StageKind::Prefix).shared(row(0, count), Split::Tensor);
        Pipeline::new(match self {
            HandPlacement::Chip => StageKind::ALL.map(whole).to_vec(),
            HandPlacement::Vision => vec![whole(StageKind::Vision)],
            HandPlacement::Prefill if chips > 1 => vec![tensor(chips)],
            HandPlacement::Prefill => vec![whole(StageKind::Prefix)],
            HandPlacement::Denoise if chips > 1 => streamed(sizes, &row(0, chips)),
            HandPlacement::Denoise => vec![whole(StageKind::Expert)],
            HandPlacement::RowOf8 => vec![cameras, tensor(8), whole(StageKind::Expert)],
            HandPlacement::TwoRowsOf8 => {
                let mut slices = streamed(sizes, &row(8, 8));
                slices.extend([cameras, tensor(8)]);
                slices
            }
            HandPlacement::SnakeOf28 => snake_of_28(sizes),
        })
    }
}

fn all(sizes: &ModelSizes, stage: StageKind) -> LayerRange {
    LayerRange::new(0, sizes.layers(stage)).expect("every stage of a policy has layers")
}

/// Layers of a stage over chips in order, as evenly as they go.
fn spread(sizes: &ModelSizes, stage: StageKind, chips: &[ChipId]) -> Vec<Slice> {
    let layers = sizes.layers(stage);
    let cut = |at: usize| at * layers / chips.len();
    chips
        .iter()
        .enumerate()
        .filter_map(|(at, chip)| {
            Some(Slice::on(stage, LayerRange::new(cut(at), cut(at + 1)).ok()?, *chip))
        })
        .collect()
}

fn streamed(sizes: &ModelSizes, chips: &[ChipId]) -> Vec<Slice> {
    let resident = |slice| Slice { residence: Residence::L1, ..slice };
    spread(sizes, StageKind::Expert, chips).into_iter().map(resident).collect()
}

/// Prefill snakes through three columns, six rows; denoising goes down the fourth; vision is the row below.
fn snake_of_28(sizes: &ModelSizes) -> Vec<Slice> {
    let at = |row: u32, col: u32| ChipId(4 * row + col);
    let prefix: Vec<ChipId> = (0..6)
        .rev()
        .flat_map(|row: u32| {
            let cols: [u32; 3] = if row % 2 == 1 { [2, 1, 0] } else { [0, 1, 2] };
            cols.map(|col| at(row, col))
        })
        .collect();
    let denoise: Vec<ChipId> = (0..6).rev().map(|row| at(row, 3)).collect();
    let mut slices = spread(sizes, StageKind::Vision, &[at(6, 0), at(6, 1), at(6, 2)]);
    slices.extend(spread(sizes, StageKind::Prefix, &prefix));
    slices.extend(streamed(sizes, &denoise));
    slices
}

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
    choose: impl Fn(crate::cost::PassCost) -> [f64; N],
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
        for row in 0..N {
            if row != pivot {
                let factor = matrix[row][pivot] / matrix[pivot][pivot];
                for col in 0..N {
                    matrix[row][col] -= factor * matrix[pivot][col];
                }
                right[row] -= factor * right[pivot];
            }
        }
    }
    std::array::from_fn(|at| right[at] / matrix[at][at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_constants_are_the_fitted_ones() {
        let shipped = Calibration::default();
        let refitted = fit(&shipped);
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 5e-3;
        let (a, b) = (&shipped.fitted, &refitted.fitted);
        assert!(
            close(a.matmul_utilisation, b.matmul_utilisation)
                && close(a.dram_efficiency, b.dram_efficiency)
                && close(a.launch_us, b.launch_us)
                && close(a.launch_op_by_op_us, b.launch_op_by_op_us)
                && close(a.line_collective_factor, b.line_collective_factor)
                && close(a.host_utilisation, b.host_utilisation)
                && close(a.host_launch_us, b.host_launch_us),
            "put these into calibration.toml: {b:#?}"
        );
    }

    #[test]
    fn published_results_come_out() {
        let report = report(&Calibration::default());
        let fitted = report.rows.iter().filter(|row| row.fitted).count();
        assert!(2 * fitted <= report.rows.len(), "{fitted} of {} rows are fitted", report.rows.len());
        assert!(report.median_error <= 0.10 && report.worst_error <= 0.25, "{report}");
    }

    #[test]
    fn fitted_constants_are_physical() {
        let fitted = Calibration::default().fitted;
        for share in [fitted.matmul_utilisation, fitted.dram_efficiency, fitted.host_utilisation] {
            assert!(share > 0.2 && share < 1.0, "{fitted:?}");
        }
        assert!(fitted.launch_us > 1.0 && fitted.launch_us < fitted.launch_op_by_op_us, "{fitted:?}");
        assert!(fitted.line_collective_factor >= 1.0, "{fitted:?}");
    }
}
