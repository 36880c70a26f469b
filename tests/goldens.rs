//! The peers' own numbers for tiny policies: every intermediate, the actions, guided sampling, larger images.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::num::NonZeroUsize;

use tensact_runtime::Tensor;
use tensact_runtime::device::host::{ComputeDtype, VisionSlice};
use tensact_runtime::model::flow::{Guidance, Steps, WeightSchedule};
use tensact_runtime::policy::{Cuts, Policy, Sample};
use tensact_runtime::tensor_file::TensorFile;
use tensact_runtime::verify::{Closeness, Comparison, Report, StageSummary, verify};
use tensact_tests::{checkpoint, device, inputs, open};
use tensact_topology::{LayerRange, StageKind};

const POLICIES: [&str; 2] = ["tiny_pi0", "tiny_pi05"];

fn report(policy: &str, weights: &str, dtype: ComputeDtype) -> Report {
    let checkpoint = checkpoint(policy, weights);
    let reference = open(policy, "golden.safetensors");
    let inputs = inputs(&checkpoint, &reference);
    verify(&device(2, dtype), &checkpoint, &reference, &inputs).unwrap()
}

#[test]
fn f32_is_the_peers_f32() {
    for policy in POLICIES {
        for weights in ["model.safetensors", "model_openpi_bf16.safetensors"] {
            let report = report(policy, weights, ComputeDtype::F32);
            for comparison in &report.comparisons {
                let error = comparison.closeness.relative_error;
                assert!(error <= 1e-4, "{policy} {weights} {}: relative error {error:e}", comparison.name);
            }
        }
    }
}

#[test]
fn everything_that_is_computed_is_compared() {
    for policy in POLICIES {
        let report = report(policy, "model.safetensors", ComputeDtype::F32);
        let left: Vec<&str> = report.not_compared.keys().map(String::as_str).collect();
        let unread =
            ["prefix.att_mask_2d", "prefix.att_masks", "prefix.final_norm", "prefix.layer2.hidden_out"];
        let masks = ["prefix.pad_masks", "step0.att_mask_2d", "step0.suffix_att_masks"];
        assert_eq!(left, [&unread[..], &masks[..]].concat(), "{policy}");
        // Sample 0 has no third camera and a padded instruction, so its rows are fewer than those of sample 1.
        let embedded = report.comparisons.iter().find(|c| c.name == "prefix.embs").unwrap();
        assert!(embedded.rows.len() < 2 * 64 && embedded.rows.len() > 64, "{:?}", embedded.rows.len());
    }
}

#[test]
fn bf16_is_as_good_as_the_peers_bf16() {
    for policy in POLICIES {
        let (exact, peer) = (open(policy, "golden.safetensors"), open(policy, "golden_bf16.safetensors"));
        for comparison in report(policy, "model_openpi_bf16.safetensors", ComputeDtype::Bf16).comparisons {
            let name = &comparison.name;
            let Closeness { pcc, norm_ratio, relative_error } = comparison.closeness;
            assert!(pcc >= 0.999 && (norm_ratio - 1.0).abs() <= 0.01, "{policy} {name}: {pcc} {norm_ratio}");
            let width = comparison.values / comparison.rows.len();
            let rows = |file: &TensorFile| -> Vec<f32> {
                let tensor = &file.tensors()[name];
                let values = match tensor.to_integers() {
                    Some(integers) => integers.into_iter().map(|value| value as f32).collect(),
                    None => tensor.to_f32(),
                };
                comparison.rows.iter().flat_map(|row| values[row * width..][..width].to_vec()).collect()
            };
            let peers = Closeness::of(&rows(&peer), &rows(&exact)).relative_error;
            // LeRobot's bf16 mode keeps the vision tower in f32, ours does not, so what is near the tower cannot be
            // compared; what the whole way leads to can.
            if comparison.stage == StageKind::Expert || name.starts_with("prefix.kv.2") {
                let bound = 1.5 * peers + 1e-6;
                assert!(relative_error <= bound, "{policy} {name}: {relative_error:.2e}, peer {peers:.2e}");
            }
        }
    }
}

#[test]
fn the_summary_names_the_worst_of_each_stage() {
    let comparison = |name: &str, stage, pcc, relative_error, norm_ratio| Comparison {
        name: name.into(),
        stage,
        rows: vec![0],
        values: 1,
        closeness: Closeness { pcc, relative_error, norm_ratio },
    };
    let comparisons = vec![
        comparison("a", StageKind::Vision, 0.99, 0.1, 1.01),
        comparison("b", StageKind::Vision, 0.98, 0.3, 0.98),
        comparison("c", StageKind::Vision, 0.98, 0.2, 1.015),
        comparison("d", StageKind::Expert, 0.5, f64::NAN, 1.0),
        comparison("e", StageKind::Expert, f64::NAN, 7.0, 1.0),
    ];
    let report = Report { comparisons, not_compared: Default::default() };
    let stages = report.stages();
    let worst = |stage| {
        let StageSummary { tensors, pcc, norm_ratio, relative_error } = stages[&stage];
        (tensors, [pcc, norm_ratio, relative_error].map(|worst| worst.tensor))
    };
    assert_eq!(worst(StageKind::Vision), (3, ["b", "b", "b"]));
    assert_eq!(stages[&StageKind::Vision].norm_ratio.value, 0.98);
    assert_eq!(worst(StageKind::Expert), (2, ["e", "d", "d"]));
    assert!(!stages.contains_key(&StageKind::Prefix));
}

/// Actions of all samples of a golden file with these cuts, threads and members.
fn actions(
    policy: &str,
    cuts: impl Fn(&tensact_topology::ModelSizes) -> Cuts,
    threads: usize,
) -> Vec<Tensor> {
    let checkpoint = checkpoint(policy, "model.safetensors");
    let samples = inputs(&checkpoint, &open(policy, "golden.safetensors")).samples;
    let device = device(threads, ComputeDtype::Bf16);
    let policy = Policy::load(&device, &checkpoint, &cuts(checkpoint.sizes())).unwrap();
    policy.infer(&samples).unwrap().0
}

#[test]
fn cuts_and_threads_change_no_bit() {
    for policy in POLICIES {
        let whole = actions(policy, Cuts::none, 2);
        for length in 1..=3 {
            let cut = |sizes: &_| Cuts::every(sizes, NonZeroUsize::new(length).unwrap());
            assert_eq!(whole, actions(policy, cut, 1), "{policy} cut every {length} layers");
        }
        let uneven = |sizes: &_| {
            let range = |start, end| LayerRange::new(start, end).unwrap();
            let (a, b) = (vec![range(0, 2), range(2, 3)], vec![range(0, 1), range(1, 3)]);
            Cuts::new(sizes, a.clone(), b, a).unwrap()
        };
        assert_eq!(whole, actions(policy, uneven, 2), "{policy} cut unevenly");
    }
}

#[test]
fn the_members_of_a_batch_change_no_bit() {
    for policy in POLICIES {
        let checkpoint = checkpoint(policy, "model.safetensors");
        let samples = inputs(&checkpoint, &open(policy, "golden.safetensors")).samples;
        let device = device(2, ComputeDtype::Bf16);
        let loaded = Policy::load(&device, &checkpoint, &Cuts::none(checkpoint.sizes())).unwrap();
        let together = loaded.infer(&samples).unwrap().0;
        let mut poisoned = samples.clone();
        poisoned[1].noise.data_mut().fill(f32::NAN);
        poisoned[1].input.images.iter_mut().flatten().for_each(|image| image.data_mut().fill(f32::INFINITY));
        let beside_poison = loaded.infer(&poisoned).unwrap().0;
        assert!(beside_poison[1].data().iter().all(|action| action.is_nan()));
        assert_eq!(together[0], beside_poison[0], "{policy} beside a poisoned neighbour");
        for (sample, expected) in samples.iter().zip(&together) {
            let alone = loaded.infer(std::slice::from_ref(sample)).unwrap().0;
            assert_eq!(&alone[0], expected, "{policy} alone");
        }
    }
}

#[test]
fn every_member_of_a_mixed_batch_is_what_it_is_alone() {
    for policy in POLICIES {
        let checkpoint = checkpoint(policy, "model.safetensors");
        let mut samples = inputs(&checkpoint, &open(policy, "golden.safetensors")).samples;
        samples.push(samples[1].clone());
        samples[0].steps = Steps::new(3).unwrap();
        samples[1].guidance = Some(Guidance {
            previous: Tensor::zeros([5, 8]),
            delay: 1,
            execution_horizon: 4,
            schedule: WeightSchedule::Exp,
            max_weight: 10.0,
        });
        samples[2].steps = Steps::new(7).unwrap();
        samples[2].input.tokens.truncate(4);
        for image in samples[2].input.images.iter_mut().flatten() {
            *image =
                Tensor::new([3, 84, 84], image.data().iter().cycle().take(3 * 84 * 84).copied().collect())
                    .unwrap();
        }
        let device = device(2, ComputeDtype::Bf16);
        let loaded = Policy::load(&device, &checkpoint, &Cuts::none(checkpoint.sizes())).unwrap();
        let together = loaded.infer(&samples).unwrap().0;
        for (sample, expected) in samples.iter().zip(&together) {
            assert_eq!(&loaded.infer(std::slice::from_ref(sample)).unwrap().0[0], expected, "{policy}");
        }
    }
}

#[test]
fn what_does_not_belong_to_the_policy_is_refused() {
    let checkpoint = checkpoint("tiny_pi0", "model.safetensors");
    let device = device(1, ComputeDtype::F32);
    let mut other = *checkpoint.sizes();
    other.expert.layers = 2;
    assert!(Policy::load(&device, &checkpoint, &Cuts::none(&other)).is_err());
    let loaded = Policy::load(&device, &checkpoint, &Cuts::none(checkpoint.sizes())).unwrap();
    let samples = inputs(&checkpoint, &open("tiny_pi0", "golden.safetensors")).samples;
    let spoil = |change: &dyn Fn(&mut [Sample])| {
        let mut samples = samples.clone();
        change(&mut samples);
        loaded.infer(&samples).unwrap_err().to_string()
    };
    // One value more here and one less there must not shift a state into a neighbour's.
    let states = spoil(&|samples| {
        let moved = samples[1].input.state.pop().unwrap();
        samples[0].input.state.push(moved);
    });
    assert!(states.contains("a state of shape [8], found [9]"), "{states}");
    let noise = spoil(&|samples| samples[1].noise = Tensor::zeros([10, 7]));
    assert!(noise.contains("actions of shape [10, 8], found [10, 7]"), "{noise}");
    let token = spoil(&|samples| samples[0].input.tokens[0] = 512);
    assert!(token.contains("token 512 is not in the table of 512"), "{token}");
    let image = spoil(&|samples| samples[0].input.images[0] = Some(Tensor::zeros([3, 50, 50])));
    assert!(image.contains("S a multiple of 14, at least 56"), "{image}");
}

#[test]
fn guided_sampling_is_the_peers() {
    let schedules = [
        ("linear", WeightSchedule::Linear),
        ("exp", WeightSchedule::Exp),
        ("ones", WeightSchedule::Ones),
        ("zeros", WeightSchedule::Zeros),
    ];
    for policy in POLICIES {
        let checkpoint = checkpoint(policy, "model.safetensors");
        let file = open(policy, "golden_rtc.safetensors");
        let loaded =
            Policy::load(&device(2, ComputeDtype::F32), &checkpoint, &Cuts::none(checkpoint.sizes()))
                .unwrap();
        let previous = &file.tensors()["in.prev_chunk"];
        let [_, rest, width] = previous.shape().try_into().unwrap();
        let previous = previous.to_f32();
        for (name, schedule) in schedules {
            let guidance = |sample: usize| Guidance {
                previous: Tensor::new(
                    [rest, width],
                    previous[sample * rest * width..][..rest * width].to_vec(),
                )
                .unwrap(),
                delay: 2,
                execution_horizon: 6,
                schedule,
                max_weight: 10.0,
            };
            let weights = Closeness::of(
                &guidance(0).weights(10),
                &file.tensors()[&format!("rtc.{name}.weights")].to_f32(),
            );
            assert!(weights.relative_error < 1e-6, "{policy} {name} weights: {weights:?}");
            let samples: Vec<Sample> = (inputs(&checkpoint, &file).samples.into_iter().enumerate())
                .map(|(i, sample)| Sample { guidance: Some(guidance(i)), ..sample })
                .collect();
            let actions = loaded.infer(&samples).unwrap().0;
            let found: Vec<f32> = actions.into_iter().flat_map(Tensor::into_data).collect();
            let expected = file.tensors()[&format!("rtc.{name}.out.actions")].to_f32();
            let closeness = Closeness::of(&found, &expected);
            assert!(closeness.relative_error < 1e-4, "{policy} {name}: {closeness:?}");
        }
    }
}

#[test]
fn larger_images_resize_the_position_table() {
    let checkpoint = checkpoint("tiny_pi0", "model.safetensors");
    let file = open("tiny_pi0", "golden_resize_84.safetensors");
    let layers = LayerRange::new(0, checkpoint.sizes().vision.layers).unwrap();
    let tower = VisionSlice::load(&device(2, ComputeDtype::F32), &checkpoint, layers).unwrap();
    let tensor = |name: &str| {
        let stored = &file.tensors()[name];
        Tensor::new(stored.shape(), stored.to_f32()).unwrap()
    };
    let embedded = tower.embed(&tensor("in.image.0")).unwrap();
    let normed = tower.normalise(&tower.blocks(embedded.clone()).unwrap()).unwrap();
    let projected = tower.project(&normed).unwrap();
    for (name, found) in [("embeddings", embedded), ("tower_out", normed), ("projected", projected)] {
        let closeness = Closeness::of(found.data(), tensor(&format!("vision.0.{name}")).data());
        assert!(closeness.relative_error < 1e-5, "{name}: {closeness:?}");
    }
}
