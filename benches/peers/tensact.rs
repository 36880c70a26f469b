//! Tensact's side of `benches/peers/run`: writes the checkpoint that both sides read, and answers requests line by line,
//! so that the driver can alternate between the sides.
//!
//! `peers write pi0 base FOLDER` writes a synthetic checkpoint. `peers answer FOLDER THREADS` loads it and prints
//! [`Loaded`]; from then on every line on standard input is a [`Request`], and every line on standard output its
//! [`Answer`].

use std::io::{BufRead, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tensact_runtime::Tensor;
use tensact_runtime::checkpoint::{Checkpoint, synth};
use tensact_runtime::device::host::{ComputeDtype, HostDevice};
use tensact_runtime::model::flow::Steps;
use tensact_runtime::policy::{Cuts, Policy, Sample};
use tensact_runtime::reference::read_inputs;
use tensact_runtime::tensor_file::TensorFile;
use tensact_topology::Variant;

type Failure = Box<dyn std::error::Error>;

/// Told once, before the first request.
#[derive(Serialize)]
struct Loaded {
    load_s: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    /// A safetensors file of inputs: see [`read_inputs`].
    inputs: PathBuf,
    /// How many of its samples make the batch, from the first on.
    samples: usize,
    /// Denoising steps.
    steps: usize,
}

#[derive(Serialize)]
struct Answer {
    vision_s: f64,
    prefix_s: f64,
    denoise_s: f64,
    /// From the batch's inputs to its actions.
    total_s: f64,
    /// Actions of the first sample, `[horizon, action_dim]` row by row.
    actions: Vec<f32>,
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["write", variant, size, folder] => write(variant, size, Path::new(folder)),
        ["answer", folder, threads] => answer_all(Path::new(folder), threads.parse()?),
        _ => Err("expected `write pi0|pi05 tiny|small|base FOLDER` or `answer FOLDER THREADS`".into()),
    }
}

fn write(variant: &str, size: &str, folder: &Path) -> Result<(), Failure> {
    let variant = match variant {
        "pi0" => Variant::Pi0,
        "pi05" => Variant::Pi05,
        other => return Err(format!("no policy `{other}`: expected pi0 or pi05").into()),
    };
    let size = match size {
        "tiny" => synth::SynthSize::Tiny,
        "small" => synth::SynthSize::Small,
        "base" => synth::SynthSize::Base,
        other => return Err(format!("no size `{other}`: expected tiny, small or base").into()),
    };
    Ok(synth::write(folder, &size.sizes(variant), 0, synth::SynthDtype::Bf16, &|_, _| ())?)
}

fn answer_all(folder: &Path, threads: NonZeroUsize) -> Result<(), Failure> {
    let clock = Instant::now();
    let checkpoint = Checkpoint::open(folder)?;
    let device = HostDevice::new(Some(threads), ComputeDtype::Bf16)?;
    let policy = Policy::load(&device, &checkpoint, &Cuts::none(checkpoint.sizes()))?;
    say(&Loaded { load_s: clock.elapsed().as_secs_f64() })?;
    for line in std::io::stdin().lock().lines() {
        let request = serde_json::from_str(&line?)?;
        say(&answer(&policy, &checkpoint, &request)?)?;
    }
    Ok(())
}

fn say(line: &impl Serialize) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", json!(line))?;
    Ok(out.flush()?)
}

fn answer(policy: &Policy, checkpoint: &Checkpoint, request: &Request) -> Result<Answer, Failure> {
    let samples = samples(checkpoint, request)?;
    let clock = Instant::now();
    let (actions, times) = policy.infer(&samples)?;
    let total_s = clock.elapsed().as_secs_f64();
    Ok(Answer {
        vision_s: times.vision.as_secs_f64(),
        prefix_s: times.prefix.as_secs_f64(),
        denoise_s: times.denoise.as_secs_f64(),
        total_s,
        actions: actions.first().map(Tensor::data).unwrap_or_default().to_vec(),
    })
}

fn samples(checkpoint: &Checkpoint, request: &Request) -> Result<Vec<Sample>, Failure> {
    let file = TensorFile::open(&request.inputs)?;
    let cameras = &checkpoint.config().cameras;
    let inputs = read_inputs(&file, checkpoint.sizes(), cameras, Steps::new(request.steps)?, 0)?;
    let found = inputs.samples.len();
    match inputs.samples.get(..request.samples) {
        Some(samples) if !samples.is_empty() => Ok(samples.to_vec()),
        _ => {
            let (wanted, path) = (request.samples, request.inputs.display());
            Err(format!("{wanted} samples wanted of {path}, which holds {found}").into())
        }
    }
}
