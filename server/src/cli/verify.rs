//! `tensact verify`: a checkpoint held against tensors that somebody else computed.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tensact::runtime::model::flow::Steps;
use tensact::runtime::reference::read_inputs;
use tensact::runtime::tensor_file::TensorFile;
use tensact::runtime::verify::{Report, verify};

use super::infer::steps;
use super::table::table;
use super::{HostOptions, open_checkpoint, print_json, progress, told};

/// Compute every tensor of a reference and print how close it is; exit with 1 when one is not close enough.
///
/// The reference holds inputs `in.*` and any of the tensors that a policy computes on its way, named as in the golden
/// files of the test suite: `vision.0.projected`, `prefix.kv.3.k`, `step0.v_t`, `out.actions`, …
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tensact verify ./tiny_pi0 --reference golden.safetensors --dtype f32 --threshold 0.9999\n  tensact verify ./pi0_base --reference mine.safetensors --json"
)]
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
    host: HostOptions,
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
    #[serde(flatten)]
    report: &'a Report,
}

impl Verify {
    pub(super) fn run(self) -> miette::Result<()> {
        let checkpoint = open_checkpoint(&self.checkpoint)?;
        let steps = self.steps.map_or_else(|| Steps::new(checkpoint.sizes().steps), Ok).map_err(told)?;
        let reference = TensorFile::open(&self.reference).map_err(told)?;
        let cameras = &checkpoint.config().cameras;
        let inputs = read_inputs(&reference, checkpoint.sizes(), cameras, steps, 0).map_err(told)?;
        let spinner = progress::spinner("computing");
        let report = verify(&self.host.device()?, &checkpoint, &reference, &inputs).map_err(told)?;
        spinner.finish_and_clear();

        let passed = report.reaches(self.threshold);
        let verdict = Verdict { passed, threshold: self.threshold, report: &report };
        if self.json {
            print_json(&verdict)?
        } else {
            print(&verdict)
        }
        if passed { Ok(()) } else { std::process::exit(1) }
    }
}

fn print(Verdict { passed, threshold, report }: &Verdict<'_>) {
    let mut rows = table(&["tensor", "stage", "values", "PCC", "relative error", "norm ratio", ""]);
    for comparison in &report.comparisons {
        let closeness = comparison.closeness;
        rows.add_row([
            comparison.name.clone(),
            comparison.stage.to_string(),
            comparison.values.to_string(),
            format!("{:.6}", closeness.pcc),
            format!("{:.2e}", closeness.relative_error),
            format!("{:.5}", closeness.norm_ratio),
            if closeness.reaches(*threshold) { "ok" } else { "FAR" }.into(),
        ]);
    }
    say!("{rows}");
    for (name, reason) in &report.not_compared {
        say!("not compared: {name} ({reason})");
    }
    let verdict = if *passed { "all reach" } else { "NOT all reach" };
    say!("{} tensors compared, {verdict} the threshold of {threshold}", report.comparisons.len());
}
