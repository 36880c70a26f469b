//! Programs for Tenstorrent chips, interpreted on the host with the chip's rounding: what they compute is what the
//! peers compute, wherever stages are cut and whatever shares a pass.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::any::Any;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use safetensors::tensor::TensorView;
use tensact_runtime::Tensor;
use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::device::StepInput;
use tensact_runtime::device::ttnn::program::{Numerics, Op, Program, TensorSpec, ValueId};
use tensact_runtime::device::ttnn::{Chip, ChipError, Interpreter, Kept, LoadedProgram};
use tensact_runtime::model::flow::{Steps, noise};
use tensact_runtime::policy::{Cuts, Policy, Sample};
use tensact_runtime::verify::{Closeness, Report, verify_on_chip};
use tensact_tests::driver::{Boundaries, Stages, across, everywhere, host, interpreted};
use tensact_tests::{checkpoint, golden, inputs, open};
use tensact_topology::{ChipId, WeightDtype};

const POLICIES: [&str; 2] = ["tiny_pi0", "tiny_pi05"];

/// What weights of a type may cost: the least correlation, and how far a norm may be off.
const BOUNDS: [(WeightDtype, f64, f64); 2] =
    [(WeightDtype::Bf16, 0.999, 0.01), (WeightDtype::Bfp8B, 0.99, 0.02)];

fn stages(policy: &str, weights: WeightDtype, boundaries: &Boundaries) -> Stages {
    interpreted(&checkpoint(policy, "model_openpi_bf16.safetensors"), weights, boundaries)
}

fn samples(policy: &str) -> Vec<Sample> {
    let checkpoint = checkpoint(policy, "model_openpi_bf16.safetensors");
    inputs(&checkpoint, &open(policy, "golden.safetensors")).samples
}

fn joined(actions: &[Tensor]) -> Vec<f32> {
    actions.iter().flat_map(Tensor::data).copied().collect()
}

#[test]
fn actions_are_the_peers() {
    for policy in POLICIES {
        let expected = open(policy, "golden.safetensors").tensors()["out.actions"].to_f32();
        for (weights, pcc, norm) in BOUNDS {
            let actions = stages(policy, weights, &Boundaries::default()).cached(&samples(policy));
            let found = Closeness::of(&joined(&actions), &expected);
            let close = found.pcc >= pcc && (found.norm_ratio - 1.0).abs() <= norm;
            assert!(close, "{policy} {weights}: {found:?}");
        }
    }
}

#[test]
fn cuts_and_company_change_nothing() {
    for policy in POLICIES {
        let samples = samples(policy);
        let whole = stages(policy, WeightDtype::Bfp8B, &Boundaries::default());
        let together = whole.cached(&samples);
        let cut = stages(policy, WeightDtype::Bfp8B, &everywhere(&whole.sizes));
        assert_eq!(cut.cached(&samples), together, "{policy}, cut everywhere");
        for (sample, expected) in samples.iter().zip(&together) {
            assert_eq!(&whole.cached(std::slice::from_ref(sample))[0], expected, "{policy}, alone");
            assert_eq!(&whole.followed(sample), expected, "{policy}, following the cache");
            assert_eq!(&cut.followed(sample), expected, "{policy}, following the cache, cut everywhere");
        }
    }
}

/// Values that the host read of programs, by name.
type Reads = Arc<Mutex<BTreeSet<String>>>;

/// An interpreted chip that tells what is read from it.
struct Watched(Arc<dyn Chip>, Reads);

struct WatchedProgram(Box<dyn LoadedProgram>, Reads);

impl Chip for Watched {
    fn id(&self) -> ChipId {
        self.0.id()
    }

    fn load(self: Arc<Self>, program: Arc<Program>) -> Result<Box<dyn LoadedProgram>, ChipError> {
        let program = Arc::clone(&self.0).load(program)?;
        Ok(Box::new(WatchedProgram(program, Arc::clone(&self.1))))
    }
}

impl LoadedProgram for WatchedProgram {
    fn program(&self) -> &Arc<Program> {
        self.0.program()
    }

    fn write(&mut self, input: ValueId, values: &[f32]) -> Result<(), ChipError> {
        self.0.write(input, values)
    }

    fn write_numbers(&mut self, input: ValueId, numbers: &[u32]) -> Result<(), ChipError> {
        self.0.write_numbers(input, numbers)
    }

    fn run(&mut self, segment: usize) -> Result<(), ChipError> {
        self.0.run(segment)
    }

    fn read(&mut self, value: ValueId) -> Result<Vec<f32>, ChipError> {
        let outputs = self.0.program().segments.iter().flat_map(|segment| &segment.outputs);
        let named = outputs.filter(|(_, id)| *id == value).map(|(name, _)| name.clone());
        self.1.lock().unwrap().extend(named);
        self.0.read(value)
    }

    fn keep(&mut self, value: ValueId, on: ChipId) -> Result<Arc<dyn Kept>, ChipError> {
        Ok(Arc::new(WatchedTensor(self.0.keep(value, on)?, Arc::clone(&self.1))))
    }

    fn make_room(&mut self, value: ValueId, on: ChipId, tensors: usize) -> Result<(), ChipError> {
        self.0.make_room(value, on, tensors)
    }

    fn fill(&mut self, input: ValueId, from: &dyn Kept) -> Result<(), ChipError> {
        let watched = (from as &dyn Any).downcast_ref::<WatchedTensor>().unwrap();
        self.0.fill(input, &*watched.0)
    }
}

struct WatchedTensor(Arc<dyn Kept>, Reads);

impl Kept for WatchedTensor {
    fn spec(&self) -> TensorSpec {
        self.0.spec()
    }

    fn read(&self) -> Result<Vec<f32>, ChipError> {
        self.1.lock().unwrap().insert(format!("a tensor {}", self.0.spec()));
        self.0.read()
    }
}

/// Slices on a chip each that hand over without the host, and what is read of them all the same.
fn apart(policy: &str, weights: WeightDtype, boundaries: &Boundaries) -> (Stages, Reads) {
    let checkpoint = checkpoint(policy, "model_openpi_bf16.safetensors");
    let first = Interpreter::new(&checkpoint, NonZeroUsize::new(2)).unwrap();
    let reads = Reads::default();
    let chip = |number: usize| {
        Arc::new(Watched(first.chip(ChipId(number as u32)), Arc::clone(&reads))) as Arc<dyn Chip>
    };
    (across(&chip, checkpoint.sizes(), weights, boundaries), reads)
}

/// Chips hand over what they would have handed over on the host: no value is rounded differently, though prefixes keep the
/// rows that fill up their images. The host reads velocities and nothing else.
#[test]
fn chips_hand_over_without_the_host() {
    for policy in POLICIES {
        let mut samples = samples(policy);
        // One whose keys and values take fewer rows than those of its company.
        let mut short = samples[0].clone();
        short.input.images[1..].iter_mut().for_each(|image| *image = None);
        short.input.tokens.truncate(3);
        samples.push(short);
        let expected = stages(policy, WeightDtype::Bfp8B, &Boundaries::default()).cached(&samples);
        let sizes = *checkpoint(policy, "model.safetensors").sizes();
        for boundaries in [Boundaries::default(), everywhere(&sizes)] {
            let (apart, reads) = apart(policy, WeightDtype::Bfp8B, &boundaries);
            assert_eq!(apart.cached(&samples), expected, "{policy}, {boundaries:?}");
            for (sample, expected) in samples.iter().zip(&expected) {
                assert_eq!(
                    &apart.followed(sample),
                    expected,
                    "{policy}, {boundaries:?}, following the cache"
                );
            }
            let reads: Vec<String> = reads.lock().unwrap().iter().cloned().collect();
            assert_eq!(reads, ["velocity"], "{policy}, {boundaries:?}");
        }
    }
}

fn interpreter(checkpoint: &Checkpoint) -> Arc<dyn Chip> {
    Interpreter::new(checkpoint, NonZeroUsize::new(2)).unwrap()
}

fn report(policy: &str, chip: &Arc<dyn Chip>, weights: WeightDtype) -> Report {
    let checkpoint = checkpoint(policy, "model_openpi_bf16.safetensors");
    let reference = open(policy, "golden.safetensors");
    let inputs = inputs(&checkpoint, &reference);
    verify_on_chip(chip, checkpoint.sizes(), Numerics::of(weights), &reference, &inputs).unwrap()
}

fn far(report: &Report, pcc: f64, norm: f64) -> Vec<&str> {
    let near = |c: Closeness| c.pcc >= pcc && (c.norm_ratio - 1.0).abs() <= norm;
    let far = report.comparisons.iter().filter(|comparison| !near(comparison.closeness));
    far.map(|comparison| &comparison.name[..]).collect()
}

#[test]
fn every_tensor_between_slices_is_the_peers() {
    // What is left of ten steps' roundings in tiny π0's velocities: at the peers' own x they are as good as the rest, see
    // the next test. LeRobot's own bf16 has 0.99935 here.
    let left = |policy: &str, name: &str| policy == "tiny_pi0" && name.ends_with(".v_t");
    for policy in POLICIES {
        let chip = interpreter(&checkpoint(policy, "model_openpi_bf16.safetensors"));
        for (weights, pcc, norm) in BOUNDS {
            let report = report(policy, &chip, weights);
            let far_by = |pcc| far(&report, pcc, norm);
            let mut far = far_by(pcc);
            far.retain(|name| !left(policy, name) || far_by(pcc - 0.001).contains(name));
            assert!(far.is_empty(), "{policy} {weights}: {far:?}\n{:#?}", report.stages());
        }
    }
}

#[test]
fn velocities_at_the_peers_own_x_are_the_peers() {
    for policy in POLICIES {
        let checkpoint = checkpoint(policy, "model_openpi_bf16.safetensors");
        let reference = open(policy, "golden.safetensors");
        let tensor = |name: String| reference.tensors()[&name].to_f32();
        let samples = inputs(&checkpoint, &reference).samples;
        let observed: Vec<_> = samples.iter().map(|sample| &sample.input).collect();
        let (chip, sizes) = (interpreter(&checkpoint), checkpoint.sizes());
        for (weights, pcc, norm) in BOUNDS {
            let loaded = Policy::on_chip(&chip, sizes, Numerics::of(weights), &Cuts::none(sizes)).unwrap();
            let mut caches = loaded.read(&observed, &loaded.see(&observed).unwrap()).unwrap();
            loaded.cache_states(&observed, &mut caches).unwrap();
            for step in samples[0].steps.iter() {
                let x = tensor(format!("step{}.x_t", step.index()));
                let shape = [sizes.horizon, sizes.action_dim];
                let x = x.chunks(shape[0] * shape[1]).map(|x| Tensor::new(shape, x.to_vec()).unwrap());
                let x: Vec<Tensor> = x.collect();
                let at: Vec<_> = x.iter().zip(&caches).map(|(x, cache)| (step, x, cache)).collect();
                let expected = tensor(format!("step{}.v_t", step.index()));
                let found = Closeness::of(&joined(&loaded.velocities(&at).unwrap()), &expected);
                let close = found.pcc >= pcc && (found.norm_ratio - 1.0).abs() <= norm;
                assert!(close, "{policy} {weights} step {}: {found:?}", step.index());
            }
        }
    }
}

#[test]
fn everything_that_leaves_a_slice_is_compared() {
    for policy in POLICIES {
        let chip = interpreter(&checkpoint(policy, "model_openpi_bf16.safetensors"));
        let report = report(policy, &chip, WeightDtype::Bf16);
        let inside = |name: &&str| report.not_compared[*name].starts_with("inside a slice");
        let left: Vec<&str> = report.not_compared.keys().map(String::as_str).collect();
        let inside: Vec<&str> = left.iter().copied().filter(inside).collect();
        let mut expected = vec!["step0.final_norm", "step0.layer2.hidden_out", "step0.suffix_embs"];
        let tower = (0..3).flat_map(|camera| {
            ["embeddings", "layer2", "tower_out"].map(|part| format!("vision.{camera}.{part}"))
        });
        let tower: Vec<String> = tower.collect();
        expected.extend(tower.iter().map(String::as_str));
        assert_eq!(inside, expected, "{policy}");
        let rest: Vec<&str> =
            left.iter().copied().filter(|n| !inside.contains(n) && !n.contains("adarms_cond")).collect();
        let unread = ["prefix.final_norm", "prefix.layer2.hidden_out"];
        let is_mask = |name: &&str| name.contains("mask");
        assert_eq!(rest.into_iter().filter(|n| !is_mask(n)).collect::<Vec<_>>(), unread, "{policy}");
        for name in ["vision.2.layer1", "prefix.kv.2.v", "step0.layer1.hidden_out", "step9.x_t"] {
            assert!(report.comparisons.iter().any(|c| c.name == name), "{policy}: {name}");
        }
    }
}

/// An interpreted chip on which one scale of a program is wrong.
struct WrongScale(Arc<dyn Chip>);

impl Chip for WrongScale {
    fn id(&self) -> ChipId {
        self.0.id()
    }

    fn load(self: Arc<Self>, program: Arc<Program>) -> Result<Box<dyn LoadedProgram>, ChipError> {
        let mut program = Arc::unwrap_or_clone(program);
        let layer = program.segments.iter_mut().filter(|segment| segment.name == "rest of layer 1");
        for call in layer.flat_map(|segment| &mut segment.calls) {
            if let Op::Attention { scale, .. } = &mut call.op {
                *scale *= 8.0;
            }
        }
        Arc::clone(&self.0).load(Arc::new(program))
    }
}

#[test]
fn a_wrong_scale_in_a_program_is_seen_where_it_is() {
    for policy in POLICIES {
        let right = interpreter(&checkpoint(policy, "model_openpi_bf16.safetensors"));
        let wrong: Arc<dyn Chip> = Arc::new(WrongScale(right));
        for (weights, pcc, norm) in BOUNDS {
            let report = report(policy, &wrong, weights);
            assert_eq!(
                far(&report, pcc, norm).first(),
                Some(&"prefix.layer1.hidden_out"),
                "{policy} {weights}"
            );
        }
    }
}

#[test]
fn a_wrong_weight_is_seen_where_it_is() {
    const WRONG: &str = "model.paligemma_with_expert.gemma_expert.model.layers.1.mlp.down_proj.weight";
    for policy in POLICIES {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "dims.json"] {
            std::fs::copy(golden(policy, file), folder.path().join(file)).unwrap();
        }
        let file = open(policy, "model.safetensors");
        let wrong: Vec<u8> = file.tensors()[WRONG]
            .to_f32()
            .into_iter()
            .flat_map(|weight| (1.5 * weight).to_le_bytes())
            .collect();
        let views = file.tensors().iter().map(|(name, tensor)| {
            let bytes = if name == WRONG { &wrong } else { tensor.bytes() };
            (name, TensorView::new(tensor.dtype(), tensor.shape().to_vec(), bytes).unwrap())
        });
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let chip = interpreter(&Checkpoint::open(&path).unwrap());
        for (weights, pcc, norm) in BOUNDS {
            let report = report(policy, &chip, weights);
            assert_eq!(
                far(&report, pcc, norm).first(),
                Some(&"step0.layer1.hidden_out"),
                "{policy} {weights}"
            );
        }
    }
}

/// Requests share a pass in any order, more of them than a program has places, some of them integrating in other numbers of
/// steps: each gets what it gets alone.
#[test]
fn company_of_many_kinds_changes_nothing() {
    for policy in POLICIES {
        let golden = samples(policy);
        let stages = stages(policy, WeightDtype::Bf16, &Boundaries::default());
        let many: Vec<Sample> = (0..12)
            .map(|i| {
                let mut sample = golden[i % 2].clone();
                sample.noise = noise(&stages.sizes, i as u64);
                sample.steps = Steps::new([2, 3][i / 10]).unwrap();
                sample
            })
            .collect();
        let alone = |sample: &Sample| stages.cached(std::slice::from_ref(sample)).remove(0);
        let expected: Vec<Tensor> = many.iter().map(alone).collect();
        assert_eq!(stages.cached(&many), expected, "{policy}");
        let reversed: Vec<Sample> = many.iter().rev().cloned().collect();
        let actions: Vec<Tensor> = stages.cached(&reversed).into_iter().rev().collect();
        assert_eq!(actions, expected, "{policy}, the other way round");
    }
}

/// The places of a pass belong to caches: requests that change their order between two steps keep theirs.
#[test]
fn requests_may_change_places_between_steps() {
    for policy in POLICIES {
        let samples = samples(policy);
        let stages = stages(policy, WeightDtype::Bf16, &Boundaries::default());
        let caches = stages.caches(&samples);
        let step = samples[0].steps.iter().next().unwrap();
        let input = |i: usize| StepInput { x: &samples[i].noise, step, cache: &caches[i][0] };
        let there = stages.expert[0].step(&[input(0), input(1)]).unwrap();
        // Each place is known to hold what lies in it, not what lies in another.
        let twice = stages.expert[0].step(&[input(0), input(0)]).unwrap();
        assert_eq!([&twice[0], &twice[1]], [&there[0]; 2], "{policy}");
        let back = stages.expert[0].step(&[input(1), input(0)]).unwrap();
        assert_eq!([&there[0], &there[1]], [&back[1], &back[0]], "{policy}");
        assert_ne!(there[0], there[1], "{policy}: the two are different requests");
    }
}

/// Behind a prefix of one token a key that only fills a tile would have a tenth of the weight.
#[test]
fn a_short_prefix_has_no_keys_of_nobody() {
    for policy in POLICIES {
        let mut sample = samples(policy).remove(0);
        sample.input.images.iter_mut().for_each(|image| *image = None);
        sample.input.tokens.truncate(1);
        sample.steps = Steps::new(1).unwrap();
        let found = stages(policy, WeightDtype::Bf16, &Boundaries::default()).cached(&[sample.clone()]);
        let expected = host(policy, &Boundaries::default()).cached(&[sample.clone()]);
        // The velocity alone: what is left of the noise would hide it.
        let velocity = |actions: &Tensor| -> Vec<f32> {
            sample.noise.data().iter().zip(actions.data()).map(|(noise, action)| noise - action).collect()
        };
        let found = Closeness::of(&velocity(&found[0]), &velocity(&expected[0]));
        assert!(found.relative_error < 0.04, "{policy}: {found:?}");
    }
}
