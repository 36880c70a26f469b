//! `tensact verify`: a checkpoint held against tensors that somebody else computed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tensact::runtime::model::flow::Steps;
use tensact::runtime::reference::read_inputs;
use tensact::runtime::tensor_file::TensorFile;
use tensact::runtime::verify::{Report, StageSummary, Worst};
use tensact::topology::{StageKind, WeightDtype};

use super::device::{DeviceName, DeviceOptions};
use super::infer::steps;
use super::table::table;
use super::{open_checkpoint, print_json, progress, told};

/// Compute every tensor of a reference and print how close it is; exit with 1 when one is not close enough.
///
/// The reference holds inputs `in.*` and any of the tensors that a policy computes on its way, named as in the golden
/// files of the test suite: `vision.0.projected`, `prefix.kv.3.k`, `step0.v_t`, `out.actions`, …
///
/// With `--device emulated-numerics` the programs for Tenstorrent chips are computed here, with a chip's rounding: what a
/// type of weights costs, stage by stage, before a chip is at hand.
#[derive(Args)]
#[command(after_help = "Examples:
  tensact verify ./tiny_pi0 --reference golden.safetensors --dtype f32 --threshold 0.9999
  tensact verify ./pi0_base --reference mine.safetensors --json
  tensact verify ./pi0_base --reference mine.safetensors --device emulated-numerics --dtype bfp8_b")]
pub(super) struct Verify {
    /// Folder, safetensors file, or Hugging Face id (`owner/name`).
    checkpoint: String,
    /// Safetensors file with inputs and expected tensors.
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// Least correlation of every tensor. Norms may differ by one minus this: correlation cannot see a wrong scale.
    #[arg(long, value_name = "PCC", default_value_t = 0.99, value_parser = correlation)]
    threshold: f64,
    /// Denoising steps; the checkpoint's own unless given.
    #[arg(long, value_name = "N", value_parser = steps)]
    steps: Option<Steps>,
    #[command(flatten)]
    device: DeviceOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn correlation(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

#[derive(Serialize)]
struct Verdict<'a> {
    passed: bool,
    threshold: f64,
    device: DeviceName,
    dtype: WeightDtype,
    stages: BTreeMap<StageKind, StageSummary<'a>>,
    #[serde(flatten)]
    report: &'a Report,
}

impl Verify {
    pub(super) fn run(self) -> miette::Result<()> {
        let device = self.device.device()?;
        let checkpoint = open_checkpoint(&self.checkpoint)?;
        let steps = self.steps.map_or_else(|| Steps::new(checkpoint.sizes().steps), Ok).map_err(told)?;
        let reference = TensorFile::open(&self.reference).map_err(told)?;
        let cameras = &checkpoint.config().cameras;
        let inputs = read_inputs(&reference, checkpoint.sizes(), cameras, steps, 0).map_err(told)?;
        let spinner = progress::spinner("computing");
        let report = device.verify(&checkpoint, &reference, &inputs)?;
        spinner.finish_and_clear();

        let passed = report.reaches(self.threshold);
        let verdict = Verdict {
            passed,
            threshold: self.threshold,
            device: device.name(),
            dtype: device.dtype(),
            stages: report.stages(),
            report: &report,
        };
        if self.json {
            print_json(&verdict)?
        } else {
            print(&verdict)
        }
        if passed { Ok(()) } else { std::process::exit(1) }
    }
}

fn print(Verdict { passed, threshold, device, dtype, stages, report }: &Verdict<'_>) {
    let mut rows = table(&["tensor", "stage", "values", "PCC", "relative error", "norm ratio", ""]);
    for comparison in &report.comparisons {
        let closeness = comparison.closeness;
        rows.add_row([
            comparison.name.clone(),
            comparison.stage.to_string(),
            comparison.values.to_string(),
            pcc(closeness.pcc),
            error(closeness.relative_error),
            ratio(closeness.norm_ratio),
            if closeness.reaches(*threshold) { "ok" } else { "FAR" }.into(),
        ]);
    }
    say!("{rows}");
    for (name, reason) in &report.not_compared {
        say!("not compared: {name} ({reason})");
    }
    let mut rows = table(&["stage", "tensors", "worst PCC", "worst relative error", "worst norm ratio"]);
    let told = |Worst { value, tensor }: Worst<'_>, figure: fn(f64) -> String| {
        format!("{}\n{tensor}", figure(value))
    };
    for (stage, summary) in stages {
        rows.add_row([
            stage.to_string(),
            summary.tensors.to_string(),
            told(summary.pcc, pcc),
            told(summary.relative_error, error),
            told(summary.norm_ratio, ratio),
        ]);
    }
    say!("{rows}");
    let computed = match device {
        DeviceName::Host => format!("on the host in {dtype}"),
        DeviceName::EmulatedNumerics => format!("as chips with {dtype} weights would, emulated on the host"),
    };
    let verdict = if *passed { "all reach" } else { "NOT all reach" };
    say!("computed {computed}");
    say!("{} tensors compared, {verdict} the threshold of {threshold}", report.comparisons.len());
}

fn pcc(value: f64) -> String {
    format!("{value:.6}")
}

fn error(value: f64) -> String {
    format!("{value:.2e}")
}

fn ratio(value: f64) -> String {
    format!("{value:.5}")
}
