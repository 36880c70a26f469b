//! What the benches share: a loaded small policy and an observation for it.

use std::sync::Arc;

use tensact_runtime::Tensor;
use tensact_runtime::checkpoint::{Checkpoint, synth};
use tensact_runtime::device::host::{ComputeDtype, HostDevice};
use tensact_runtime::model::ModelInput;
use tensact_runtime::model::flow::{Steps, noise};
use tensact_runtime::policy::{Cuts, Policy, Sample};
use tensact_topology::Variant;

/// The small synthetic policy on all cores, and a sample with three cameras and a full instruction.
pub fn small_policy(variant: Variant, dtype: ComputeDtype) -> (Policy, Sample) {
    let folder = tempfile::tempdir().expect("benches need a temporary folder");
    let sizes = synth::SynthSize::Small.sizes(variant);
    synth::write(folder.path(), &sizes, 0, synth::SynthDtype::Bf16, &|_, _| ()).expect("the folder is new");
    // The mapping outlives the folder.
    let checkpoint = Checkpoint::open(folder.path()).expect("it was just written");
    let device: Arc<HostDevice> = HostDevice::new(None, dtype).expect("a bench machine has threads");
    let policy = Policy::load(&device, &checkpoint, &Cuts::none(&sizes)).expect("no cuts fit any checkpoint");
    let side = sizes.vision.image;
    let wave = |i: usize| (i as f32 * 0.013).sin();
    let image = || {
        let pixels = (0..3 * side * side).map(wave).collect();
        Tensor::new([3, side, side], pixels).expect("three planes of the image's side")
    };
    let sample = Sample {
        input: ModelInput {
            images: (0..3).map(|_| Some(image())).collect(),
            tokens: (0..sizes.prompt_tokens).map(|i| (i * 5 % sizes.vocab) as u32).collect(),
            state: (0..sizes.state_dim).map(wave).collect(),
        },
        noise: noise(&sizes, 0),
        steps: Steps::new(sizes.steps).expect("synthetic policies take ten steps"),
        guidance: None,
    };
    (policy, sample)
}
