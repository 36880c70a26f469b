//! One request through a full-size policy: minutes of work and 7 GB on disk, so only when asked for:
//!
//! `TENSACT_FULL_SIZE=/some/folder cargo test --release -p tensact-tests --test full_size -- --ignored --nocapture`
//!
//! The folder keeps the checkpoint for the next time.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::path::PathBuf;

use tensact_runtime::Tensor;
use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::checkpoint::synth::{SynthDtype, SynthSize, write};
use tensact_runtime::device::host::ComputeDtype;
use tensact_runtime::model::ModelInput;
use tensact_runtime::model::flow::{Steps, noise};
use tensact_runtime::policy::{Cuts, Policy, Sample};
use tensact_runtime::verify::Closeness;
use tensact_tests::device;
use tensact_topology::Variant;

/// Values between -1 and 1 that follow from `seed`.
fn image(side: usize, seed: u32) -> Tensor {
    let wave = |i: usize| ((i as f32 * 0.013).sin() + (i as f32 * 0.000_37 + seed as f32).cos()) / 2.0;
    Tensor::new([3, side, side], (0..3 * side * side).map(wave).collect()).unwrap()
}

/// Most memory this process has held, in bytes.
#[cfg(target_os = "linux")]
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[test]
#[ignore = "takes minutes and 7 GB of disk"]
fn bf16_agrees_with_f32_within_the_memory_of_the_checkpoint() {
    let folder = std::env::var_os("TENSACT_FULL_SIZE").map(PathBuf::from);
    let folder = folder.expect("TENSACT_FULL_SIZE names a folder with 7 GB of room").join("pi0-base");
    let sizes = SynthSize::Base.sizes(Variant::Pi0);
    if Checkpoint::open(&folder).is_err() {
        write(&folder, &sizes, 0, SynthDtype::Bf16, &|_, _| ()).unwrap();
    }
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let sample = Sample {
        input: ModelInput {
            images: (0..3).map(|camera| Some(image(224, camera))).collect(),
            tokens: (0..48).map(|i| if i == 0 { 2 } else { 1000 + 4711 * i }).collect(),
            state: (0..32).map(|i| (i as f32 * 0.7).sin()).collect(),
        },
        noise: noise(&sizes, 0),
        steps: Steps::new(10).unwrap(),
        guidance: None,
    };
    let actions = [ComputeDtype::Bf16, ComputeDtype::F32].map(|dtype| {
        let policy = Policy::load(&device(2, dtype), &checkpoint, &Cuts::none(&sizes)).unwrap();
        let (actions, times) = policy.infer(std::slice::from_ref(&sample)).unwrap();
        println!("{dtype}: {times:?}");
        actions
    });
    let closeness = Closeness::of(actions[0][0].data(), actions[1][0].data());
    println!("bf16 against f32: {closeness:?}");
    assert!(closeness.pcc >= 0.999, "{closeness:?}");
    assert!((closeness.norm_ratio - 1.0).abs() <= 0.01, "{closeness:?}");

    let checkpoint_bytes = std::fs::metadata(folder.join("model.safetensors")).unwrap().len();
    #[cfg(target_os = "linux")]
    if let Some(peak) = peak_memory() {
        let ratio = peak as f64 / checkpoint_bytes as f64;
        println!("peak memory {peak} bytes, {ratio:.2} of the checkpoint");
        assert!(ratio <= 1.35, "peak memory is {ratio:.2} of the checkpoint");
    }
}
