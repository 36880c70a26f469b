//! `tensact demo`: the whole way with nothing at hand.

mod live;
mod scene;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use tensact::runtime::checkpoint::Checkpoint;
use tensact::runtime::checkpoint::synth::{SynthDtype, SynthSize};
use tensact::topology::{ModelSizes, StageKind, Variant};
use tensact::{ActionChunk, InferError, Options, Pipeline, ProfileChoice, Request, Stats, Timings};

use super::infer::print_actions;
use super::output::rows;
use super::synth::VariantName;
use super::table::{scaled, table};
use super::{HostOptions, print_json, runtime, synth, told};
use live::Live;

/// Actions that are printed of the last chunk.
const SHOWN_ACTIONS: usize = 5;

/// Run a small random policy for several robots at once: no arguments, no downloads.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tensact demo\n  tensact demo --robots 6 --observations 4\n  tensact demo --variant pi05 --json"
)]
pub(super) struct Demo {
    /// Which policy.
    #[arg(long, value_enum, default_value = "pi0")]
    variant: VariantName,
    /// Robots that are served at the same time.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u8).range(1..=64))]
    robots: u8,
    /// Observations of each; a robot sends the next when it is answered.
    #[arg(long, value_name = "N", default_value = "8")]
    observations: NonZeroUsize,
    #[command(flatten)]
    host: HostOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What robots got.
struct Streamed {
    /// For each robot.
    chunks: Vec<Vec<ActionChunk>>,
    seconds: f64,
    stats: Stats,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    robots: Vec<RobotAnswer<'a>>,
    seconds: f64,
    stats: &'a Stats,
}

#[derive(Serialize)]
struct RobotAnswer<'a> {
    robot: String,
    chunks: Vec<Answered<'a>>,
}

#[derive(Serialize)]
struct Answered<'a> {
    actions: Vec<&'a [f32]>,
    timings: Timings,
}

impl<'a> Answered<'a> {
    fn new(chunk: &'a ActionChunk) -> Self {
        Self { actions: rows(&chunk.actions), timings: chunk.timings }
    }
}

impl Demo {
    pub(super) fn run(self) -> miette::Result<()> {
        let checkpoint = Arc::new(synthetic_checkpoint(Variant::from(self.variant))?);
        let options = Options {
            dtype: self.host.dtype,
            threads: self.host.threads,
            profile: ProfileChoice::Named("libero".into()),
            ..Options::default()
        };
        let runtime = runtime()?;
        let pipeline = Arc::new(runtime.block_on(Pipeline::host(&checkpoint, &options)).map_err(told)?);
        if !self.json {
            introduce(&checkpoint);
        }
        let streamed = runtime.block_on(self.stream(&pipeline))?;
        if self.json {
            return print_answer(&streamed);
        }
        print(&streamed);
        Ok(())
    }

    /// All robots at once.
    async fn stream(&self, pipeline: &Arc<Pipeline>) -> miette::Result<Streamed> {
        let (robots, observations) = (usize::from(self.robots), self.observations.get());
        let live = Live::new(robots * observations);
        let began = Instant::now();
        let robots: Vec<_> = (0..robots)
            .map(|robot| {
                tokio::spawn(ask(Arc::clone(pipeline), robot, observations, live.observations.clone()))
            })
            .collect();
        let answered = async {
            let mut chunks = Vec::new();
            for robot in robots {
                chunks.push(robot.await.map_err(told)?.map_err(told)?);
            }
            Ok::<_, miette::Report>(chunks)
        };
        let chunks = tokio::select! {
            chunks = answered => chunks?,
            never = live.watch(pipeline) => match never {},
        };
        let seconds = began.elapsed().as_secs_f64();
        live.clear();
        Ok(Streamed { chunks, seconds, stats: pipeline.stats().await })
    }
}

/// One robot: sends what it sees, waits for the actions, sends what it sees then.
async fn ask(
    pipeline: Arc<Pipeline>,
    robot: usize,
    observations: usize,
    done: ProgressBar,
) -> Result<Vec<ActionChunk>, InferError> {
    let mut chunks = Vec::new();
    for frame in 0..observations {
        let request = Request { robot: Some(name(robot).into()), ..Request::default() };
        chunks.push(pipeline.infer(scene::observation(robot, frame), request).await?);
        done.inc(1);
    }
    Ok(chunks)
}

fn name(robot: usize) -> String {
    format!("robot {robot}")
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

fn print_answer(Streamed { chunks, seconds, stats }: &Streamed) -> miette::Result<()> {
    let robots = chunks.iter().enumerate().map(|(robot, chunks)| RobotAnswer {
        robot: name(robot),
        chunks: chunks.iter().map(Answered::new).collect(),
    });
    print_json(&Answer { robots: robots.collect(), seconds: *seconds, stats })
}

fn print(Streamed { chunks, seconds, stats }: &Streamed) {
    let mut stages = table(&["stage", "busy %", "passes", "mean batch"]);
    for slice in stats.pipelines.iter().flat_map(|pipeline| &pipeline.slices) {
        stages.add_row([
            live::name(slice.stage).to_owned(),
            format!("{:.0}", slice.busy_ms / seconds / 10.0),
            slice.passes.to_string(),
            format!("{:.2}", slice.requests as f64 / slice.passes.max(1) as f64),
        ]);
    }
    say!("{stages}");
    let mut robots = table(&["robot", "chunks", "mean ms", "max ms"]);
    for (robot, chunks) in chunks.iter().enumerate() {
        let times = || chunks.iter().map(|chunk| chunk.timings.total_ms);
        robots.add_row([
            name(robot),
            chunks.len().to_string(),
            format!("{:.0}", times().sum::<f64>() / chunks.len() as f64),
            format!("{:.0}", times().fold(0.0, f64::max)),
        ]);
    }
    let count: usize = chunks.iter().map(Vec::len).sum();
    say!("{robots}\n{count} chunks in {seconds:.1} s: {:.1} chunks/s", count as f64 / seconds);
    if let Some(last) = chunks.last().and_then(|chunks| chunks.last()) {
        say!("\nlast chunk of {}", name(chunks.len() - 1));
        print_actions(&last.actions, SHOWN_ACTIONS);
    }
}
