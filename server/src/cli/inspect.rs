//! `tensact inspect`: what a checkpoint is.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use tensact::runtime::checkpoint::{Checkpoint, PartTotals};
use tensact::topology::{ModelSizes, StageKind};

use super::table::{scaled, table};
use super::{open_checkpoint, print_json};

/// Show variant, sizes, parameters and types of a checkpoint, or everything that is wrong with it.
#[derive(Args)]
#[command(after_help = "Examples:\n  tensact inspect ./pi0_base\n  tensact inspect lerobot/pi0_base --json")]
pub(super) struct Inspect {
    /// Folder, safetensors file, or Hugging Face id (`owner/name`).
    checkpoint: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Inspection<'a> {
    path: String,
    naming: String,
    sizes: &'a ModelSizes,
    cameras: &'a [String],
    stages: BTreeMap<String, PartTotals>,
    unused: PartTotals,
    unused_tensors: Vec<&'a str>,
}

impl Inspect {
    pub(super) fn run(self) -> miette::Result<()> {
        let checkpoint = open_checkpoint(&self.checkpoint)?;
        let inspection = Inspection {
            path: checkpoint.path().display().to_string(),
            naming: checkpoint.naming().to_string(),
            sizes: checkpoint.sizes(),
            cameras: &checkpoint.config().cameras,
            stages: StageKind::ALL.map(|stage| (stage.to_string(), checkpoint.totals(stage))).into(),
            unused: checkpoint.unused_totals(),
            unused_tensors: checkpoint.unused().map(|(name, _)| name).collect(),
        };
        if self.json { print_json(&inspection) } else { print(&checkpoint, &inspection) }
    }
}

fn print(checkpoint: &Checkpoint, inspection: &Inspection<'_>) -> miette::Result<()> {
    let ModelSizes { variant, vision, vlm, expert, .. } = checkpoint.sizes();
    let sizes = checkpoint.sizes();
    say!("{}: {variant}, tensors named by {}", inspection.path, inspection.naming);
    say!(
        "actions {} × {}, state {}, prompt {} tokens, {} steps, cameras {} of {} pixels\n",
        sizes.horizon,
        sizes.action_dim,
        sizes.state_dim,
        sizes.prompt_tokens,
        sizes.steps,
        inspection.cameras.join(", "),
        vision.image,
    );
    let mut shapes = table(&["stage", "layers", "width", "mlp", "heads", "head dim"]);
    let decoder = |d: &tensact::topology::DecoderSizes| format!("{} / {}", d.heads, d.kv_heads);
    shapes.add_row([
        "vision".into(),
        vision.layers.to_string(),
        vision.width.to_string(),
        vision.mlp.to_string(),
        vision.heads.to_string(),
        vision.head_dim().to_string(),
    ]);
    for (name, d) in [("prefix", vlm), ("expert", expert)] {
        let numbers = [d.layers, d.width, d.mlp].map(|number| number.to_string());
        let [layers, width, mlp] = numbers;
        shapes.add_row([name.into(), layers, width, mlp, decoder(d), d.head_dim.to_string()]);
    }
    say!("{shapes}\n");

    let mut weights = table(&["weights", "tensors", "parameters", "bytes", "types"]);
    let mut all = PartTotals::default();
    let parts = StageKind::ALL.map(|stage| (stage.to_string(), checkpoint.totals(stage)));
    for (name, totals) in parts.iter().chain([&("never read".to_owned(), inspection.unused.clone())]) {
        weights.add_row(row(name, totals));
        all.merge(totals);
    }
    weights.add_row(row("all", &all));
    say!("{weights}");
    Ok(())
}

fn row(name: &str, totals: &PartTotals) -> [String; 5] {
    let types: Vec<String> = totals.dtypes.keys().cloned().collect();
    [
        name.into(),
        totals.tensors.to_string(),
        scaled(totals.parameters, ""),
        scaled(totals.bytes, "B"),
        types.join(" + "),
    ]
}
