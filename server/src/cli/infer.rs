//! `tensact infer`: one observation in, one action chunk out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgGroup, Args};
use miette::miette;
use serde::Serialize;
use tensact::runtime::Tensor;
use tensact::runtime::checkpoint::Checkpoint;
use tensact::runtime::model::flow::Steps;
use tensact::runtime::observation::{Image, Observation};
use tensact::runtime::policy::{Cuts, Policy};
use tensact::runtime::preprocess::statistics::Source;
use tensact::runtime::reference::read_inputs;
use tensact::runtime::tensor_file::TensorFile;
use tensact::{ActionChunk, Options, Pipeline, ProfileChoice, Request, Start, Timings};
use tensact_server::trace::{Full, Recording, Run, Subject};

use super::output::{self, rows};
use super::table::table;
use super::trace::{Recorded, TraceOut, finish};
use super::{HostOptions, open_checkpoint, print_json, progress, runtime, span_of_time, told, warn};

/// Turn camera images, an instruction and a robot state into actions.
#[derive(Args)]
#[command(
    group = ArgGroup::new("input").args(["image", "tensors"]).required(true).multiple(false),
    after_help = "Examples:
  tensact infer --checkpoint ./pi0 --image base=top.png --image left_wrist=wrist.jpg \\
      --state 0.1,0,0,0.2,0,0,0,1 --prompt \"pick up the red block\" --profile libero
  tensact infer --checkpoint lerobot/pi0_base --image base=a.png --state 0,0,0,0,0,0 --prompt \"fold the towel\" \\
      --seed 7 --steps 5 --out actions.npy
  tensact infer --checkpoint ./tiny --tensors golden.safetensors --dtype f32 --out actions.safetensors"
)]
pub(super) struct Infer {
    /// Folder, safetensors file, or Hugging Face id (`owner/name`).
    #[arg(long, value_name = "CHECKPOINT")]
    checkpoint: String,
    /// A camera and its PNG or JPEG file; once for each camera the robot has. `base`, `left_wrist` and `right_wrist`
    /// stand for openpi's cameras; otherwise the checkpoint's or the profile's names.
    #[arg(long, value_name = "CAMERA=FILE", value_parser = camera_file)]
    image: Vec<(String, PathBuf)>,
    /// The robot state in the robot's own units.
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        allow_hyphen_values = true,
        conflicts_with = "tensors"
    )]
    state: Vec<f32>,
    /// The instruction; the profile's default unless given.
    #[arg(long, value_name = "TEXT", conflicts_with = "tensors")]
    prompt: Option<String>,
    /// The robot: libero, droid, aloha, generic, or a TOML file of your own.
    #[arg(long, value_name = "NAME|FILE", default_value = "generic", conflicts_with = "tensors")]
    profile: String,
    /// Tokenizer, if not in the checkpoint's folder: tokenizer.json or SentencePiece's .model.
    #[arg(long, value_name = "FILE", conflicts_with = "tensors")]
    tokenizer: Option<PathBuf>,
    /// Which statistics, where the checkpoint's `assets/` has several.
    #[arg(long, value_name = "ID", conflicts_with = "tensors")]
    asset_id: Option<String>,
    /// Model-level inputs of a batch (`in.image.0`, `in.lang_tokens`, `in.state`, …) instead of an observation.
    #[arg(long, value_name = "FILE", requires = "out", conflicts_with = "trace_out")]
    tensors: Option<PathBuf>,
    /// Seed of the noise; the same seed gives the same actions, bit for bit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Denoising steps; the checkpoint's own unless given.
    #[arg(long, value_name = "N", value_parser = steps)]
    steps: Option<Steps>,
    /// Time to answer, such as 500ms; without one it may take as long as it takes.
    #[arg(long, value_name = "TIME", value_parser = span_of_time, conflicts_with = "tensors")]
    deadline: Option<Duration>,
    #[command(flatten)]
    host: HostOptions,
    /// Where to write the actions: .json, .npy or .safetensors.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    trace: TraceOut,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn steps(text: &str) -> Result<Steps, String> {
    let count = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    Steps::new(count).map_err(|error| error.to_string())
}

fn camera_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((camera, file)) if !camera.is_empty() && !file.is_empty() => Ok((camera.into(), file.into())),
        _ => Err(format!("`{text}` is not CAMERA=FILE, for example base=top.png")),
    }
}

/// What `--json` prints and `--out FILE.json` holds.
#[derive(Serialize)]
struct Answer<'a> {
    actions: Vec<&'a [f32]>,
    timings: Timings,
    warnings: Vec<String>,
}

impl Infer {
    pub(super) fn run(self) -> miette::Result<()> {
        if let Some(out) = &self.out {
            output::check(out)?;
        }
        let trace = self.trace.create()?;
        let checkpoint = Arc::new(open_checkpoint(&self.checkpoint)?);
        match (&self.tensors, &self.out) {
            (Some(tensors), Some(out)) => self.infer_tensors(&checkpoint, tensors, out),
            _ => self.infer_observation(&checkpoint, trace),
        }
    }

    fn infer_observation(&self, checkpoint: &Arc<Checkpoint>, trace: Option<Recorded>) -> miette::Result<()> {
        let options = Options {
            dtype: self.host.dtype,
            threads: self.host.threads,
            profile: ProfileChoice::from(self.profile.as_str()),
            tokenizer: self.tokenizer.clone(),
            asset: self.asset_id.clone(),
            ..Options::default()
        };
        let runtime = runtime()?;
        let spinner = progress::spinner("loading weights");
        let pipeline = runtime.block_on(Pipeline::host(checkpoint, &options)).map_err(told);
        spinner.finish_and_clear();
        let pipeline = pipeline?;
        if *pipeline.statistics() == Source::Nowhere {
            warn("the checkpoint has no statistics: state and actions pass unscaled");
        }
        let observation = self.observation(&pipeline)?;
        let request = Request {
            start: Start::Seed(self.seed),
            steps: self.steps,
            deadline: self.deadline,
            ..Request::default()
        };
        let recording = trace.map(|trace| record(trace, &pipeline)).transpose()?;
        let spinner = progress::spinner("computing");
        let chunk = runtime.block_on(pipeline.infer(observation, request)).map_err(told);
        spinner.finish_and_clear();
        finish(recording)?;
        let chunk = chunk?;
        self.report(&chunk)
    }

    /// All images that cannot be read, or are of no camera, are named at once.
    fn observation(&self, pipeline: &Pipeline) -> miette::Result<Observation> {
        let mut observation =
            Observation { state: self.state.clone(), prompt: self.prompt.clone(), ..Default::default() };
        let mut problems = Vec::new();
        for (name, file) in &self.image {
            let camera =
                pipeline.preprocessor().camera(name).map_err(|error| problems.push(error.to_string()));
            let image = Image::open(file).map_err(|error| problems.push(error.to_string()));
            if let (Ok(camera), Ok(image)) = (camera, image)
                && observation.images.insert(camera.to_owned(), image).is_some()
            {
                problems.push(format!("camera `{camera}` is given twice"));
            }
        }
        if problems.is_empty() { Ok(observation) } else { Err(miette!("{}", problems.join("\n"))) }
    }

    fn report(&self, chunk: &ActionChunk) -> miette::Result<()> {
        let warnings: Vec<String> = chunk.warnings.iter().map(ToString::to_string).collect();
        let answer =
            Answer { actions: rows(&chunk.actions), timings: chunk.timings, warnings: warnings.clone() };
        if let Some(out) = &self.out {
            output::write(out, "actions", &chunk.actions, &answer)?;
        }
        if self.json {
            return print_json(&answer);
        }
        warnings.iter().for_each(|warning| warn(warning));
        print_actions(&chunk.actions, usize::MAX);
        let Timings { preprocess_ms, queue_ms, vision_ms, prefix_ms, denoise_ms, total_ms } = chunk.timings;
        say!(
            "preprocess {preprocess_ms:.1} ms, queue {queue_ms:.1} ms, vision {vision_ms:.1} ms, prefix {prefix_ms:.1} ms, \
             denoise {denoise_ms:.1} ms, total {total_ms:.1} ms"
        );
        Ok(())
    }

    fn infer_tensors(&self, checkpoint: &Checkpoint, tensors: &Path, out: &Path) -> miette::Result<()> {
        let file = TensorFile::open(tensors).map_err(told)?;
        let sizes = checkpoint.sizes();
        let steps = self.steps.map_or_else(|| Steps::new(sizes.steps), Ok).map_err(told)?;
        let inputs =
            read_inputs(&file, sizes, &checkpoint.config().cameras, steps, self.seed).map_err(told)?;
        let device = self.host.device()?;
        let spinner = progress::spinner("loading weights");
        let policy = Policy::load(&device, checkpoint, &Cuts::none(sizes)).map_err(told)?;
        spinner.set_message("computing");
        let (actions, _) = policy.infer(&inputs.samples).map_err(told)?;
        spinner.finish_and_clear();
        let shape = [actions.len(), sizes.horizon, sizes.action_dim];
        let actions =
            Tensor::new(shape, actions.into_iter().flat_map(Tensor::into_data).collect()).map_err(told)?;
        let members: Vec<Vec<&[f32]>> =
            rows(&actions).chunks(sizes.horizon).map(<[&[f32]]>::to_vec).collect();
        let answer = serde_json::json!({ "actions": members });
        output::write(out, "out.actions", &actions, &answer)?;
        if self.json {
            return print_json(&answer);
        }
        say!("wrote {}", out.display());
        Ok(())
    }
}

/// Writes down what is computed from now on.
fn record(trace: Recorded, pipeline: &Pipeline) -> miette::Result<Recording> {
    let subject = Subject::board(&pipeline.board().name, "in real time", pipeline.placement());
    let recording = trace.start(&Run::new("tensact infer", subject), Full::Wait)?;
    pipeline.journal().listen(recording.listener());
    Ok(recording)
}

/// The first `most` actions of a chunk.
pub(super) fn print_actions(actions: &Tensor, most: usize) {
    let header: Vec<String> =
        std::iter::once("action".into()).chain((0..actions.width()).map(|i| i.to_string())).collect();
    let mut lines = table(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for (index, action) in rows(actions).into_iter().enumerate().take(most) {
        let values = action.iter().map(|value| format!("{value:.4}"));
        lines.add_row(std::iter::once(index.to_string()).chain(values));
    }
    say!("{lines}");
    if actions.rows() > most {
        say!("and {} more actions", actions.rows() - most);
    }
}
