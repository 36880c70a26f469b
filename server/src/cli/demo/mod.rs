//! `tensact demo`: the whole way with nothing at hand.

mod scene;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use tensact::runtime::checkpoint::Checkpoint;
use tensact::runtime::checkpoint::synth::{SynthDtype, SynthSize};
use tensact::topology::{ModelSizes, StageKind, Variant};
use tensact::{ActionChunk, Options, Pipeline, ProfileChoice, Request, Timings};

use super::infer::print_actions;
use super::output::rows;
use super::synth::VariantName;
use super::table::{scaled, table};
use super::{HostOptions, print_json, progress, runtime, synth, told};

/// Actions that are printed of the last chunk.
const SHOWN_ACTIONS: usize = 5;

/// Run a small random policy on a stream of observations: no arguments, no downloads.
#[derive(Args)]
#[command(after_help = "Examples:\n  tensact demo\n  tensact demo --variant pi05 --observations 20 --json")]
pub(super) struct Demo {
    /// Which policy.
    #[arg(long, value_enum, default_value = "pi0")]
    variant: VariantName,
    /// How many observations.
    #[arg(long, value_name = "N", default_value = "8")]
    observations: NonZeroUsize,
    #[command(flatten)]
    host: HostOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Answered<'a> {
    actions: Vec<&'a [f32]>,
    timings: Timings,
}

impl Demo {
    pub(super) fn run(self) -> miette::Result<()> {
        let variant = Variant::from(self.variant);
        let checkpoint = synthetic_checkpoint(variant)?;
        let options = Options {
            dtype: self.host.dtype,
            threads: self.host.threads,
            profile: ProfileChoice::Named("libero".into()),
            ..Options::default()
        };
        let runtime = runtime()?;
        let checkpoint = Arc::new(checkpoint);
        let pipeline = runtime.block_on(Pipeline::host(&checkpoint, &options)).map_err(told)?;
        if !self.json {
            introduce(&checkpoint);
        }
        let bar = progress::count(self.observations.get(), "observations");
        let mut chunks = Vec::new();
        for frame in 0..self.observations.get() {
            let observation = scene::observation(frame);
            let chunk = runtime.block_on(pipeline.infer(observation, Request::default()));
            chunks.push(chunk.map_err(told)?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        if self.json {
            let answered: Vec<Answered<'_>> = chunks
                .iter()
                .map(|chunk| Answered { actions: rows(&chunk.actions), timings: chunk.timings })
                .collect();
            return print_json(&answered);
        }
        print(&chunks);
        Ok(())
    }
}

/// The demo's checkpoint, out of the cache where a run before this one left it.
fn synthetic_checkpoint(variant: Variant) -> miette::Result<Checkpoint> {
    let name = format!("demo-{variant}-{}", env!("CARGO_PKG_VERSION"));
    let cache = directories::ProjectDirs::from("", "", "tensact")
        .map_or_else(|| std::env::temp_dir().join("tensact"), |folders| PathBuf::from(folders.cache_dir()));
    let folder = cache.join(name);
    if let Ok(checkpoint) = Checkpoint::open(&folder) {
        return Ok(checkpoint);
    }
    synth::write(&folder, &SynthSize::Small.sizes(variant), 0, SynthDtype::Bf16)?;
    Checkpoint::open(&folder).map_err(told)
}

fn introduce(checkpoint: &Checkpoint) {
    let ModelSizes { variant, vision, vlm, expert, horizon, steps, .. } = checkpoint.sizes();
    let parameters: usize = StageKind::ALL.map(|stage| checkpoint.totals(stage).parameters).iter().sum();
    say!(
        "{variant} with {} random weights: the numbers are real, the robot would only twitch",
        scaled(parameters, "").trim()
    );
    say!("checkpoint  {}", checkpoint.path().display());
    say!(
        "stages      vision tower {} layers, VLM {} layers, action expert {} layers",
        vision.layers,
        vlm.layers,
        expert.layers
    );
    say!("observation 2 cameras of 256 pixels, 8 joint values, {:?}", scene::INSTRUCTION);
    say!("answer      {horizon} actions of 7 values in {steps} denoising steps\n");
}

fn print(chunks: &[ActionChunk]) {
    let mut times =
        table(&["observation", "preprocess ms", "vision ms", "prefix ms", "denoise ms", "total ms"]);
    for (index, chunk) in chunks.iter().enumerate() {
        let t = chunk.timings;
        let columns = [t.preprocess_ms, t.vision_ms, t.prefix_ms, t.denoise_ms, t.total_ms];
        times.add_row(
            std::iter::once(index.to_string()).chain(columns.iter().map(|value| format!("{value:.1}"))),
        );
    }
    say!("{times}");
    if let Some(last) = chunks.last() {
        say!("\nlast chunk");
        print_actions(&last.actions, SHOWN_ACTIONS);
    }
}
