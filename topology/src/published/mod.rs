//! Published measurements, what the cost model says of them, and the fit of its constants.

mod fit;
mod hand;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use fit::fit;
pub use hand::HandPlacement;

use crate::cost::{Calibration, CostModel, Program};
use crate::placement::Pipeline;
use crate::workload::RequestShape;
use crate::{Arch, Board, ChipSpec, ModelSizes, Pcie, StageKind, Variant, WeightDtype};

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
    let mut errors: Vec<f64> = rows.iter().filter(|row| !row.fitted).map(|row| row.error().abs()).collect();
    errors.sort_by(f64::total_cmp);
    let median_error = errors.get(errors.len() / 2).copied().unwrap_or(f64::NAN);
    let worst_error = errors.last().copied().unwrap_or(f64::NAN);
    Report { rows, median_error, worst_error }
}

fn rows() -> Vec<Row> {
    let file: File = toml::from_str(include_str!("../published.toml"))
        .expect("the measurements in the source tree are read by every test");
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

    fn with_model<T>(
        &self,
        calibration: &Calibration,
        then: impl FnOnce(&CostModel<'_>, &Pipeline) -> T,
    ) -> T {
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
        // No source says that its first step follows the prefix.
        let (program, layerwise) = (self.program, false);
        let model =
            CostModel { program, rings, layerwise, ..CostModel::new(&board, &sizes, request, &calibration) };
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
