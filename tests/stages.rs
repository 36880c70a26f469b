//! Slices of host and emulated devices give the same bits wherever they are cut, layer by layer and as a whole.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::subsequence;
use tensact_runtime::Tensor;
use tensact_runtime::checkpoint::synth::SynthSize;
use tensact_runtime::device::emulated::answer;
use tensact_runtime::device::host::ComputeDtype;
use tensact_runtime::device::{PrefixInput, SliceError};
use tensact_runtime::model::flow::{Guidance, Steps, WeightSchedule, noise};
use tensact_runtime::model::{KeyValue, ModelInput};
use tensact_runtime::policy::{Cuts, Policy, Sample};
use tensact_tests::driver::{Boundaries, Stages, emulated, everywhere, host};
use tensact_tests::{checkpoint, device, inputs, open};
use tensact_topology::{ModelSizes, StageKind, Variant};

#[test]
fn following_the_cache_changes_no_bit() {
    for policy in ["tiny_pi0", "tiny_pi05"] {
        let checkpoint = checkpoint(policy, "model.safetensors");
        let mut samples = inputs(&checkpoint, &open(policy, "golden.safetensors")).samples;
        samples[0].steps = Steps::new(3).unwrap();
        let device = device(2, ComputeDtype::Bf16);
        let loaded = Policy::load(&device, &checkpoint, &Cuts::none(checkpoint.sizes())).unwrap();
        let expected = loaded.infer(&samples).unwrap().0;
        let all = everywhere(checkpoint.sizes());
        let cuts = [Boundaries::default(), [vec![1], vec![2], vec![1]], [vec![], vec![1], vec![2]], all];
        for cuts in &cuts {
            let stages = host(policy, cuts);
            assert_eq!(stages.cached(&samples), expected, "{policy} {cuts:?}");
            for (sample, expected) in samples.iter().zip(&expected) {
                assert_eq!(&stages.followed(sample), expected, "{policy} {cuts:?}");
            }
        }
    }
}

fn tensor(shape: impl Into<Vec<usize>>, seed: u64) -> Tensor {
    let shape = shape.into();
    let count = shape.iter().product::<usize>() as u64;
    let value = |i| ((i * 31 + seed * 17) % 101) as f32 / 50.0 - 1.0;
    Tensor::new(shape, (0..count).map(value).collect()).unwrap()
}

fn sample(sizes: &ModelSizes, seed: u64) -> Sample {
    let images = (0..3).map(|camera| (seed % 3 != camera).then(|| tensor([3, 8, 8], seed + camera)));
    Sample {
        input: ModelInput {
            images: images.collect(),
            tokens: (0..2 + seed % 5).map(|i| (i + seed) as u32 % 100).collect(),
            state: tensor([sizes.state_dim], seed).into_data(),
        },
        noise: noise(sizes, seed),
        steps: Steps::new(2 + seed as usize % 4).unwrap(),
        guidance: seed.is_multiple_of(2).then(|| Guidance {
            previous: tensor([sizes.horizon, sizes.action_dim], seed),
            delay: 1,
            execution_horizon: sizes.horizon,
            schedule: WeightSchedule::Linear,
            max_weight: 10.0,
        }),
    }
}

fn check(stages: &Stages, samples: &[Sample]) {
    let expected: Vec<Tensor> = samples.iter().map(|sample| answer(&stages.sizes, sample)).collect();
    assert_eq!(stages.cached(samples), expected);
    for (sample, expected) in samples.iter().zip(&expected) {
        assert!(expected.data().iter().all(|x| x.is_finite()));
        assert_eq!(&stages.followed(sample), expected);
    }
}

#[test]
fn emulated_chips_give_the_answer_wherever_they_are_cut() {
    for variant in [Variant::Pi0, Variant::Pi05] {
        let sizes = ModelSizes::base(variant);
        let samples: Vec<Sample> = (0..3).map(|seed| sample(&sizes, seed)).collect();
        check(&emulated(&sizes, &Boundaries::default()), &samples);
        check(&emulated(&sizes, &everywhere(&sizes)), &samples);
        for stage in 0..3 {
            for boundary in 1..sizes.layers(StageKind::ALL[stage]) {
                let mut cuts = Boundaries::default();
                cuts[stage].push(boundary);
                check(&emulated(&sizes, &cuts), &samples[..1]);
            }
        }
    }
}

#[test]
fn a_cache_that_is_mixed_up_changes_the_answer() {
    let sizes = ModelSizes::base(Variant::Pi05);
    let stages = emulated(&sizes, &[vec![], vec![], vec![9]]);
    let samples = [sample(&sizes, 1), sample(&sizes, 4)];
    let [own, others] = stages.entries(&samples).try_into().unwrap();
    let found = |change: &dyn Fn(&mut Vec<KeyValue>)| {
        let mut entries = own.clone();
        change(&mut entries);
        stages.following(&samples[0], entries)
    };
    let expected = answer(&sizes, &samples[0]);
    assert_eq!(found(&|_| ()), expected);
    for layer in 0..17 {
        assert_ne!(found(&|entries| entries.swap(layer, layer + 1)), expected, "swapped");
        assert_ne!(found(&|entries| entries[layer] = entries[layer + 1].clone()), expected, "twice");
        assert_ne!(found(&|entries| entries[layer].keys = others[layer].keys.clone()), expected, "keys");
        assert_ne!(
            found(&|entries| entries[layer].values = others[layer].values.clone()),
            expected,
            "values"
        );
        let crossed = |KeyValue { keys, values }: &mut KeyValue| std::mem::swap(keys, values);
        assert_ne!(found(&|entries| crossed(&mut entries[layer])), expected, "keys for values");
    }
}

#[test]
fn an_emulated_chip_refuses_what_the_host_refuses() {
    for (policy, variant) in [("tiny_pi0", Variant::Pi0), ("tiny_pi05", Variant::Pi05)] {
        let host = host(policy, &[vec![], vec![1], vec![1]]);
        let emulated = emulated(&host.sizes, &[vec![], vec![1], vec![1]]);
        let step = Steps::new(1).unwrap().iter().next().unwrap();
        for stages in [&host, &emulated] {
            let token = PrefixInput { images: &[], tokens: &[u32::MAX] };
            assert!(matches!(stages.prefix[0].embed(&[token]), Err(SliceError::NoSuchToken { .. })));
            let nothing = PrefixInput { images: &[], tokens: &[] };
            assert!(matches!(stages.prefix[0].embed(&[nothing]), Err(SliceError::Shape { .. })));
            let here = PrefixInput { images: &[], tokens: &[1] };
            assert!(matches!(stages.prefix[1].embed(&[here]), Err(SliceError::NotHere { .. })));
            let expert =
                |x: &Tensor, state| Arc::clone(&stages.expert[0]).follow(x.clone(), state, step).err();
            let noise = noise(&stages.sizes, 0);
            let state = Tensor::zeros([1, stages.sizes.state_dim]);
            assert!(expert(&noise, Some(Tensor::zeros([1, 99]))).is_some());
            let (fits, odd) = if variant == Variant::Pi0 { (Some(state), None) } else { (None, Some(state)) };
            assert_eq!(expert(&noise, fits.clone()), None);
            assert!(expert(&noise, odd).is_some(), "{policy}");
            let wide = expert(&Tensor::zeros([1, 1]), fits.clone());
            assert!(matches!(wide, Some(SliceError::Shape { what: "actions", .. })), "{wide:?}");
            let early = Arc::clone(&stages.expert[0]).follow(noise.clone(), fits.clone(), step).unwrap();
            assert!(matches!(early.finish(), Err(SliceError::Entries { found: 0, .. })));
        }
    }
}

#[test]
fn a_first_step_takes_the_entries_of_its_own_layers_only() {
    for policy in ["tiny_pi0", "tiny_pi05"] {
        for stages in [host(policy, &Boundaries::default()), {
            let sizes = *checkpoint(policy, "model.safetensors").sizes();
            emulated(&sizes, &Boundaries::default())
        }] {
            let tokens = PrefixInput { images: &[], tokens: &[1, 2] };
            let batch = stages.prefix[0].embed(&[tokens]).unwrap();
            let entry =
                Arc::clone(&stages.prefix[0]).begin(batch).unwrap().layer().unwrap().unwrap().remove(0);
            let state =
                (stages.sizes.variant == Variant::Pi0).then(|| Tensor::zeros([1, stages.sizes.state_dim]));
            let step = Steps::new(1).unwrap().iter().next().unwrap();
            let mut first =
                Arc::clone(&stages.expert[0]).follow(noise(&stages.sizes, 0), state, step).unwrap();
            first.layer(entry.clone()).unwrap();
            let short = KeyValue { keys: Tensor::zeros([0, entry.keys.width()]), ..entry.clone() };
            assert!(matches!(first.layer(short), Err(SliceError::Shape { .. })));
            for _ in 1..stages.sizes.expert.layers {
                first.layer(entry.clone()).unwrap();
            }
            assert!(matches!(first.layer(entry), Err(SliceError::Entries { .. })));
            assert!(first.finish().is_ok(), "what was refused left no trace");
        }
    }
}

/// Some boundaries of each stage.
fn boundaries(sizes: &ModelSizes) -> impl Strategy<Value = Boundaries> + use<> {
    everywhere(sizes).map(|all| {
        let count = all.len();
        subsequence(all, 0..=count)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn emulated_chips_give_the_answer(
        cuts in boundaries(&ModelSizes::base(Variant::Pi0)), pi05: bool,
        seeds in prop::collection::vec(0u64..50, 1..4),
    ) {
        let sizes = ModelSizes::base(if pi05 { Variant::Pi05 } else { Variant::Pi0 });
        let samples: Vec<Sample> = seeds.into_iter().map(|seed| sample(&sizes, seed)).collect();
        check(&emulated(&sizes, &cuts), &samples);
    }

    #[test]
    fn whatever_is_changed_changes_the_answer(
        pi05: bool, seed in 0u64..1000, place: prop::sample::Index, bits in 1u32..1 << 20,
    ) {
        let sizes = SynthSize::Tiny.sizes(if pi05 { Variant::Pi05 } else { Variant::Pi0 });
        let original = sample(&sizes, 2 * seed);
        let expected = answer(&sizes, &original);
        // Low bits of a number: one that differs, and is still a number.
        let flip = |values: &mut [f32]| {
            let value = &mut values[place.index(values.len())];
            *value = f32::from_bits(value.to_bits() ^ bits);
        };
        let changed = |change: &dyn Fn(&mut Sample)| {
            let mut sample = original.clone();
            change(&mut sample);
            answer(&sizes, &sample)
        };
        let differs = [
            ("image", changed(&|sample| flip(sample.input.images.iter_mut().flatten().next().unwrap().data_mut()))),
            ("lost image", changed(&|sample| *sample.input.images.iter_mut().find(|image| image.is_some()).unwrap() = None)),
            ("swapped images", changed(&|sample| sample.input.images.reverse())),
            ("token", changed(&|sample| {
                let count = sample.input.tokens.len();
                sample.input.tokens[place.index(count)] ^= bits;
            })),
            ("noise", changed(&|sample| flip(sample.noise.data_mut()))),
            ("steps", changed(&|sample| sample.steps = Steps::new(sample.steps.count() + 1).unwrap())),
            ("guidance", changed(&|sample| sample.guidance = None)),
            ("previous chunk", changed(&|sample| {
                let previous = &mut sample.guidance.as_mut().unwrap().previous;
                previous.data_mut()[place.index(sizes.action_dim)] += 1.0;
            })),
        ];
        for (what, found) in differs {
            prop_assert_ne!(found.data(), expected.data(), "{}", what);
        }
        let state = changed(&|sample| flip(&mut sample.input.state));
        prop_assert_eq!(state.data() == expected.data(), pi05, "π0.5 takes the state as text");
    }
}
