//! What is left out or computed once changes nothing: held against the plain masked computation.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::sync::Arc;

use proptest::prelude::*;
use tensact_runtime::Tensor;
use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::checkpoint::synth::{SynthDtype, SynthSize, write};
use tensact_runtime::device::PrefixInput;
use tensact_runtime::device::host::ComputeDtype;
use tensact_runtime::model::ModelInput;
use tensact_runtime::model::flow::{Step, Steps, noise};
use tensact_runtime::policy::{Cuts, Policy, RequestCache, Sample};
use tensact_runtime::verify::Closeness;
use tensact_tests::plain::{Plain, Rows, plain};
use tensact_tests::{checkpoint, device};
use tensact_topology::Variant;

const POLICIES: [&str; 2] = ["tiny_pi0", "tiny_pi05"];
const TOLERANCE: f64 = 3e-5;

struct Case {
    sample: Sample,
    plain: Plain,
    policy: Policy,
}

impl Case {
    fn new(checkpoint: &Checkpoint, cameras: [bool; 3], tokens: usize, steps: usize, seed: u64) -> Self {
        let sizes = checkpoint.sizes();
        let side = sizes.vision.image;
        let wave = |i: usize, camera: usize| (i as f32 * 0.37 + camera as f32 + seed as f32 * 0.11).sin();
        let image = |camera: usize| {
            let data = (0..3 * side * side).map(|i| wave(i, camera)).collect();
            Tensor::new([3, side, side], data).unwrap()
        };
        let input = ModelInput {
            images: (0..3).map(|camera| cameras[camera].then(|| image(camera))).collect(),
            tokens: (0..tokens).map(|i| ((i as u64 * 97 + seed * 31) % 512) as u32).collect(),
            state: (0..sizes.state_dim).map(|i| wave(i, 7)).collect(),
        };
        let sample =
            Sample { input, noise: noise(sizes, seed), steps: Steps::new(steps).unwrap(), guidance: None };
        let policy = Policy::load(&device(2, ComputeDtype::F32), checkpoint, &Cuts::none(sizes)).unwrap();
        Self { plain: plain(checkpoint, &sample), sample, policy }
    }

    fn cache(&self) -> RequestCache {
        let images = self.policy.see(&[&self.sample.input]).unwrap();
        self.policy.read(&[&self.sample.input], &images).unwrap().remove(0)
    }
}

fn error(found: &[f32], expected: impl IntoIterator<Item = f64>) -> f64 {
    let expected: Vec<f32> = expected.into_iter().map(|value| value as f32).collect();
    assert_eq!(found.len(), expected.len());
    Closeness::of(found, &expected).relative_error
}

fn flat(rows: &Rows) -> impl Iterator<Item = f64> {
    rows.iter().flatten().copied()
}

/// Keys and values of layer `layer` as the plain computation has them, for valid tokens only.
fn valid_rows<'a>(plain: &'a Plain, rows: &'a Rows) -> impl Iterator<Item = f64> + 'a {
    rows.iter().zip(&plain.valid).filter(|(_, valid)| **valid).flat_map(|(row, _)| row.iter().copied())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn absent_cameras_and_padding_are_not_missed(
        cameras in any::<[bool; 3]>(), tokens in 1usize..=16, seed in 0u64..1000,
    ) {
        for policy in POLICIES {
            let case = Case::new(&checkpoint(policy, "model.safetensors"), cameras, tokens, 2, seed);
            let actions = &case.policy.infer(std::slice::from_ref(&case.sample)).unwrap().0[0];
            let error = error(actions.data(), flat(&case.plain.actions));
            prop_assert!(error < TOLERANCE, "{policy} {cameras:?} {tokens} tokens: {error:e}");
        }
    }
}

#[test]
fn keys_shared_by_groups_of_heads_find_their_group() {
    for variant in [Variant::Pi0, Variant::Pi05] {
        let mut sizes = SynthSize::Tiny.sizes(variant);
        (sizes.vlm.kv_heads, sizes.expert.kv_heads, sizes.expert.heads) = (2, 2, 4);
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &sizes, 5, SynthDtype::F32, &|_, _| ()).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!((checkpoint.sizes().vlm.kv_heads, checkpoint.sizes().expert.heads), (2, 4));
        let case = Case::new(&checkpoint, [true, false, true], 7, 3, 4);
        let actions = &case.policy.infer(std::slice::from_ref(&case.sample)).unwrap().0[0];
        let error = error(actions.data(), flat(&case.plain.actions));
        assert!(error < TOLERANCE, "{variant}: {error:e}");
    }
}

#[test]
fn the_vlms_last_block_needs_only_keys_and_values() {
    for policy in POLICIES {
        let case = Case::new(&checkpoint(policy, "model.safetensors"), [true, false, true], 9, 1, 1);
        let images = case.policy.see(&[&case.sample.input]).unwrap();
        let parts = PrefixInput { images: &images[0], tokens: &case.sample.input.tokens };
        let slice = &case.policy.prefix_slices()[0];
        let mut pass = Arc::clone(slice).begin(slice.embed(&[parts]).unwrap()).unwrap();
        let mut layers = Vec::new();
        while let Some(entries) = pass.layer().unwrap() {
            layers.push(entries);
        }
        let output = pass.finish().unwrap();
        assert_eq!(output, None, "{policy}: the last block gives nothing but keys and values");
        assert_eq!(layers.len(), case.plain.cache.len());
        for (layer, (entries, (keys, values))) in layers.iter().zip(&case.plain.cache).enumerate() {
            let keys = error(entries[0].keys.data(), valid_rows(&case.plain, keys));
            let values = error(entries[0].values.data(), valid_rows(&case.plain, values));
            assert!(keys < TOLERANCE && values < TOLERANCE, "{policy} layer {layer}: {keys:e} {values:e}");
        }
    }
}

/// Velocities of a case at all its steps, at the places where the plain computation was.
fn velocities(case: &Case, caches: &RequestCache) -> Vec<f64> {
    let mut x = case.sample.noise.clone();
    let steps: Vec<Step> = case.sample.steps.iter().collect();
    (steps.into_iter().zip(&case.plain.velocities))
        .map(|(step, expected)| {
            let v = case.policy.velocities(&[(step, &x, caches)]).unwrap().remove(0);
            let error = error(v.data(), flat(expected));
            let expected = flat(expected).map(|value| value as f32).collect();
            step.advance(&mut x, &Tensor::new(v.shape(), expected).unwrap());
            error
        })
        .collect()
}

#[test]
fn the_state_token_is_the_same_in_every_step() {
    let case = Case::new(&checkpoint("tiny_pi0", "model.safetensors"), [true; 3], 16, 4, 2);
    let mut caches = vec![case.cache()];
    let tokens = caches[0][0].tokens();
    case.policy.cache_states(&[&case.sample.input], &mut caches).unwrap();
    assert_eq!(caches[0][0].tokens(), tokens + 1, "the state token stands behind the prefix");
    for (step, error) in velocities(&case, &caches[0]).into_iter().enumerate() {
        assert!(error < TOLERANCE, "step {step}: {error:e}");
    }
}

#[test]
fn time_tables_hold_what_each_step_would_compute() {
    for policy in POLICIES {
        let checkpoint = checkpoint(policy, "model.safetensors");
        // The table of ten steps is made on loading, the others on first use.
        for steps in [10, 1, 3, 7] {
            let case = Case::new(&checkpoint, [true, true, false], 5, steps, 3);
            let mut caches = vec![case.cache()];
            case.policy.cache_states(&[&case.sample.input], &mut caches).unwrap();
            for (step, error) in velocities(&case, &caches[0]).into_iter().enumerate() {
                assert!(error < TOLERANCE, "{policy} step {step} of {steps}: {error:e}");
            }
        }
    }
}
