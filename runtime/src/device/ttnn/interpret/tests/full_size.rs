//! One request through a full-size policy on interpreted chips: minutes of work and 11 GB on disk, so only when asked for:
//!
//! `TENSACT_FULL_SIZE=/some/folder cargo test --release -p tensact-runtime interpret::tests::full_size -- --ignored --nocapture`
//!
//! The folder keeps the checkpoint and the packed weights for the next time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tensact_topology::{LayerRange, RequestShape, Variant, WeightDtype};

use crate::Tensor;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::synth::{SynthDtype, SynthSize, write};
use crate::device::host::{ComputeDtype, HostDevice};
use crate::device::ttnn::interpret::Interpreter;
use crate::device::ttnn::program::Numerics;
use crate::device::ttnn::{
    Destination, Destinations, TtnnExpert, TtnnPrefix, TtnnVision, WeightCache, Weights,
};
use crate::device::{ExpertStage, PrefixInput, PrefixStage, StepInput, VisionStage};
use crate::model::flow::{Steps, noise};
use crate::model::{KvCache, ModelInput};
use crate::policy::{Cuts, Policy, Sample};
use crate::verify::Closeness;

fn sample(checkpoint: &Checkpoint) -> Sample {
    let wave = |i: usize, camera: usize| {
        ((i as f32 * 0.013).sin() + (i as f32 * 0.000_37 + camera as f32).cos()) / 2.0
    };
    let image =
        |camera| Tensor::new([3, 224, 224], (0..3 * 224 * 224).map(|i| wave(i, camera)).collect()).ok();
    Sample {
        input: ModelInput {
            images: (0..3).map(image).collect(),
            tokens: (0..48).map(|i| if i == 0 { 2 } else { 1000 + 4711 * i }).collect(),
            state: (0..32).map(|i| (i as f32 * 0.7).sin()).collect(),
        },
        noise: noise(checkpoint.sizes(), 0),
        steps: Steps::new(10).unwrap(),
        guidance: None,
    }
}

/// The actions, by the slices of one chip.
fn actions(checkpoint: &Checkpoint, sample: &Sample, weights: WeightDtype, cache: &Path) -> Tensor {
    let device = HostDevice::new(None, ComputeDtype::F32).unwrap();
    let cached = Weights::new(device, checkpoint).cached_in(WeightCache::at(cache.into(), 16 << 30));
    let (chip, numerics, sizes) =
        (Interpreter::with_weights(cached), Numerics::of(weights), checkpoint.sizes());
    let all = |layers| LayerRange::new(0, layers).unwrap();
    let request = RequestShape::of(sizes);
    let mut since = Instant::now();
    let mut passed = |what: &str| {
        println!("{weights:?} {what}: {:.1?}", since.elapsed());
        since = Instant::now();
    };
    let vision = TtnnVision::load(
        chip.clone(),
        sizes,
        all(sizes.vision.layers),
        numerics,
        &request,
        Destination::Host,
    )
    .unwrap();
    let prefix = Arc::new(
        TtnnPrefix::load(
            chip.clone(),
            sizes,
            all(sizes.vlm.layers),
            numerics,
            &request,
            Destinations::default(),
        )
        .unwrap(),
    );
    let expert =
        TtnnExpert::load(chip, sizes, all(sizes.expert.layers), numerics, &request, Destination::Host)
            .unwrap();
    passed("load");
    let images: Vec<&Tensor> = sample.input.images.iter().flatten().collect();
    let images = vision.run(&images).unwrap();
    passed("vision");
    let input = PrefixInput { images: &images, tokens: &sample.input.tokens };
    let mut pass = prefix.clone().begin(prefix.embed(&[input]).unwrap()).unwrap();
    let mut entries = Vec::new();
    while let Some(layer) = pass.layer().unwrap() {
        entries.extend(layer);
    }
    passed("prefix");
    let mut cache = KvCache::new(all(sizes.expert.layers), entries).unwrap();
    if sizes.variant == Variant::Pi0 {
        let state = Tensor::new([1, sizes.state_dim], sample.input.state.clone()).unwrap();
        expert.cache_state(&[state], &mut [&mut cache]).unwrap();
    }
    let mut x = sample.noise.clone();
    for step in sample.steps.iter() {
        let velocity = expert.step(&[StepInput { x: &x, step, cache: &cache }]).unwrap().remove(0);
        step.advance(&mut x, &velocity);
    }
    passed("denoising");
    x
}

/// What this process holds that is not a mapped file, in GB.
fn held() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1e6)
}

#[test]
#[ignore = "takes minutes and 11 GB of disk"]
fn interpreted_programs_of_the_base_policies_agree_with_the_host() {
    let folder = std::env::var_os("TENSACT_FULL_SIZE").map(PathBuf::from);
    let folder = folder.expect("TENSACT_FULL_SIZE names a folder with 11 GB of room");
    for variant in [Variant::Pi0, Variant::Pi05] {
        let path = folder.join(format!("{variant}-base"));
        if Checkpoint::open(&path).is_err() {
            write(&path, &SynthSize::Base.sizes(variant), 0, SynthDtype::Bf16, &|_, _| ()).unwrap();
        }
        let checkpoint = Checkpoint::open(&path).unwrap();
        let sample = sample(&checkpoint);
        let device = HostDevice::new(None, ComputeDtype::Bf16).unwrap();
        let policy = Policy::load(&device, &checkpoint, &Cuts::none(checkpoint.sizes())).unwrap();
        let (expected, times) = policy.infer(std::slice::from_ref(&sample)).unwrap();
        println!("{variant} host: {times:?}");
        for (weights, pcc, norm) in [(WeightDtype::Bf16, 0.999, 0.02), (WeightDtype::Bfp8B, 0.99, 0.02)] {
            let found = actions(&checkpoint, &sample, weights, &folder.join("weights"));
            let closeness = Closeness::of(found.data(), expected[0].data());
            println!("{variant} {weights:?}: {closeness:?}, {:?} GB held behind it", held());
            assert!(closeness.pcc >= pcc && (closeness.norm_ratio - 1.0).abs() <= norm, "{closeness:?}");
        }
    }
}
