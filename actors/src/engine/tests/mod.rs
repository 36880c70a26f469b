//! Real policies through real threads: placements, batches, neighbours and failures change no bit of a result.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use proptest::prelude::*;
use tensact_runtime::Tensor;
use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::device::host::{ComputeDtype, HostDevice};
use tensact_runtime::device::{PrefixInput, PrefixPass, PrefixStage, SliceError, VisionStage};
use tensact_runtime::model::flow::Steps;
use tensact_runtime::policy::{Cuts, Policy};
use tensact_runtime::reference::read_inputs;
use tensact_runtime::tensor_file::TensorFile;
use tensact_topology::{DeviceKind, LayerRange, Preset, RequestShape, Slice, Split, StageKind, WeightDtype};

mod ttnn;

use super::*;
use crate::devices::{Arithmetic, SliceDevice};

const POLICIES: [&str; 2] = ["tiny_pi0", "tiny_pi05"];

struct Golden {
    checkpoint: Checkpoint,
    samples: Vec<Sample>,
    /// What each sample must get, computed alone and in one piece.
    answers: Vec<Tensor>,
}

fn golden(policy: &str) -> Golden {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(policy);
    let checkpoint = Checkpoint::open(&folder.join("model.safetensors")).unwrap();
    let file = TensorFile::open(&folder.join("golden.safetensors")).unwrap();
    let sizes = checkpoint.sizes();
    let steps = Steps::new(sizes.steps).unwrap();
    let mut samples = read_inputs(&file, sizes, &checkpoint.config().cameras, steps, 0).unwrap().samples;
    // One of another length, so that requests leave the batch at different steps.
    samples.push(Sample { steps: Steps::new(3).unwrap(), ..samples[0].clone() });
    let device = HostDevice::new(NonZeroUsize::new(2), ComputeDtype::Bf16).unwrap();
    let whole = Policy::load(&device, &checkpoint, &Cuts::none(sizes)).unwrap();
    let alone = |sample: &Sample| whole.infer(std::slice::from_ref(sample)).unwrap().0.remove(0);
    let answers = samples.iter().map(alone).collect();
    Golden { checkpoint, samples, answers }
}

/// A slice on the host, on so many chips from `chip` on.
fn slice(stage: StageKind, start: usize, end: usize, chip: u32) -> Slice {
    let layers = LayerRange::new(start, end).unwrap();
    Slice { device: DeviceKind::Host, weights: WeightDtype::Bf16, ..Slice::on(stage, layers, ChipId(chip)) }
}

/// Both policies have three layers in each stage.
fn placements() -> Vec<(&'static str, Vec<Pipeline>)> {
    let stage = |stage, cuts: &[usize], chip: u32| -> Vec<Slice> {
        cuts.windows(2).zip(chip..).map(|(cut, chip)| slice(stage, cut[0], cut[1], chip)).collect()
    };
    let pipeline = |cuts: [&[usize]; 3], chips: [u32; 3]| {
        let slices = StageKind::ALL.into_iter().zip(cuts).zip(chips);
        Pipeline::new(slices.flat_map(|((kind, cuts), chip)| stage(kind, cuts, chip)).collect())
    };
    let whole: &[usize] = &[0, 3];
    let layers: &[usize] = &[0, 1, 2, 3];
    let cameras = || {
        let mut pipeline = pipeline([whole, whole, whole], [0, 2, 3]);
        pipeline.slices[0] = pipeline.slices[0].clone().shared(vec![ChipId(0), ChipId(1)], Split::Cameras);
        pipeline
    };
    vec![
        ("one chip", vec![pipeline([whole, whole, whole], [0, 0, 0])]),
        ("three stages", vec![pipeline([whole, whole, whole], [0, 1, 2])]),
        ("every layer", vec![pipeline([layers, layers, layers], [0, 3, 6])]),
        ("uneven, chips shared", vec![pipeline([&[0, 2, 3], &[0, 1, 3], &[0, 2, 3]], [0, 1, 0])]),
        ("cameras over two chips", vec![cameras()]),
        (
            "two replicas",
            vec![pipeline([whole, whole, whole], [0, 1, 2]), pipeline([layers, whole, layers], [3, 6, 7])],
        ),
    ]
}

fn blueprint(golden: &Golden, pipelines: Vec<Pipeline>, max_requests: usize) -> Blueprint {
    let placement = Placement { pipelines };
    let sizes = *golden.checkpoint.sizes();
    let board = Preset::LoudBoxBh.board();
    let arithmetic = Arithmetic::Host {
        checkpoint: &golden.checkpoint,
        board: &board,
        request: RequestShape::of(&sizes),
        threads: NonZeroUsize::new(1),
    };
    let devices = Devices::load(&placement, &sizes, &arithmetic).unwrap();
    Blueprint {
        board: Arc::new(board),
        sizes,
        placement,
        limits: Limits { queue: 64, max_in_flight: 5, max_requests },
        devices,
        clock: Clock::real(),
        log: None,
        faults: BTreeMap::new(),
        follows: true,
        on_threads: true,
    }
}

/// Sends all samples several times at once, and compares bits.
async fn answers_are_right(engine: &Engine, golden: &Golden, rounds: usize, name: &str) {
    let pending: Vec<_> = (0..rounds)
        .flat_map(|_| golden.samples.iter().enumerate())
        .map(|(index, sample)| (index, engine.submit(sample.clone(), None, None)))
        .collect();
    for (index, pending) in pending {
        let answer = pending.outcome().await.unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        assert_eq!(answer.actions, golden.answers[index], "{name}, sample {index}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn placements_and_batches_change_no_bit() {
    for policy in POLICIES {
        let golden = golden(policy);
        for (name, pipelines) in placements() {
            for max_requests in [1, 2, 8] {
                let engine = Engine::start(blueprint(&golden, pipelines.clone(), max_requests)).await;
                let name = format!("{policy}, {name}, batches of {max_requests}");
                answers_are_right(&engine, &golden, 4, &name).await;
                engine.shut_down(Duration::from_secs(10)).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn emulated_chips_with_the_hosts_arithmetic_change_no_bit() {
    for policy in POLICIES {
        let golden = golden(policy);
        for (name, mut pipelines) in placements() {
            pipelines.iter_mut().flat_map(|p| &mut p.slices).for_each(|s| s.device = DeviceKind::Emulated);
            let blueprint = blueprint(&golden, pipelines, 3);
            let blueprint = Blueprint { clock: Clock::simulated(), on_threads: false, ..blueprint };
            let engine = Engine::start(blueprint).await;
            answers_are_right(&engine, &golden, 3, name).await;
            assert!(engine.clock.now() > Duration::ZERO, "{name} took no emulated time");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// *own-result*: whatever stands beside a request in its batches, it gets what it gets alone.
    #[test]
    fn neighbours_change_no_bit(
        poison in prop::collection::vec(prop_oneof![
            Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY), Just(f32::MAX), Just(f32::MIN_POSITIVE)
        ], 1..4),
        placement in 0usize..6,
        policy in 0usize..2,
    ) {
        let golden = golden(POLICIES[policy]);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        let (name, pipelines) = placements().swap_remove(placement);
        runtime.block_on(async {
            let engine = Engine::start(blueprint(&golden, pipelines, 4)).await;
            let poisoned: Vec<_> = poison.iter().map(|value| {
                let mut sample = golden.samples[1].clone();
                sample.noise.data_mut().fill(*value);
                sample.input.state.fill(*value);
                sample.input.images.iter_mut().flatten().for_each(|image| image.data_mut().fill(*value));
                engine.submit(sample, None, None)
            }).collect();
            answers_are_right(&engine, &golden, 2, name).await;
            for pending in poisoned {
                pending.outcome().await.unwrap();
            }
        });
    }
}

/// A vision slice that fails when it is told to.
struct Fragile {
    inner: Arc<dyn VisionStage>,
    breaks: Arc<AtomicBool>,
    panics: bool,
}

impl VisionStage for Fragile {
    fn layers(&self) -> LayerRange {
        self.inner.layers()
    }

    fn run(&self, images: &[&Tensor]) -> Result<Vec<Tensor>, SliceError> {
        if self.breaks.swap(false, Ordering::Relaxed) {
            if self.panics {
                std::panic::resume_unwind(Box::new("the device is on fire"));
            }
            return Err(SliceError::NoSuchToken { token: 0, vocab: 0 });
        }
        self.inner.run(images)
    }
}

fn fragile(devices: Devices, breaks: &Arc<AtomicBool>, panics: bool) -> Devices {
    devices.map(|device| match device {
        SliceDevice::Vision(inner) => {
            SliceDevice::Vision(Arc::new(Fragile { inner, breaks: Arc::clone(breaks), panics }))
        }
        other => other,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_that_fails_is_started_again_and_its_requests_run_again() {
    let golden = golden(POLICIES[0]);
    for panics in [true, false] {
        let breaks = Arc::new(AtomicBool::new(true));
        let (name, pipelines) = placements().swap_remove(1);
        let mut blueprint = blueprint(&golden, pipelines, 4);
        blueprint.devices = fragile(blueprint.devices, &breaks, panics);
        let engine = Engine::start(blueprint).await;
        answers_are_right(&engine, &golden, 3, name).await;
        engine.drain().await;
        let seen = engine.look().await.unwrap();
        assert!(seen.counts.retried >= 1 && seen.counts.done == 3 * golden.samples.len() as u64, "{seen:?}");
        assert_eq!(seen.pipelines, [(true, 0)]);
        assert_eq!(engine.recorder.slices(0)[0].restarts, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_nobody_waits_for_is_let_go() {
    let golden = golden(POLICIES[0]);
    let (_, pipelines) = placements().swap_remove(2);
    let engine = Engine::start(blueprint(&golden, pipelines, 1)).await;
    for round in 0..20 {
        drop(engine.submit(golden.samples[round % 3].clone(), None, None));
    }
    answers_are_right(&engine, &golden, 1, "beside cancelled requests").await;
    engine.drain().await;
    let seen = engine.look().await.unwrap();
    assert_eq!((seen.counts.cancelled, seen.waiting, &seen.pipelines[..]), (20, 0, &[(true, 0)][..]));
}

/// A vision slice that cannot take a certain image.
struct Allergic(Arc<dyn VisionStage>);

impl VisionStage for Allergic {
    fn layers(&self) -> LayerRange {
        self.0.layers()
    }

    fn run(&self, images: &[&Tensor]) -> Result<Vec<Tensor>, SliceError> {
        if images.iter().any(|image| image.data().contains(&f32::MAX)) {
            std::panic::resume_unwind(Box::new("this image again"));
        }
        self.0.run(images)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_a_stage_cannot_take_fails_alone() {
    let golden = golden(POLICIES[0]);
    let (name, pipelines) = placements().swap_remove(0);
    let mut blueprint = blueprint(&golden, pipelines, 4);
    blueprint.devices = blueprint.devices.map(|device| match device {
        SliceDevice::Vision(inner) => SliceDevice::Vision(Arc::new(Allergic(inner))),
        other => other,
    });
    let engine = Engine::start(blueprint).await;
    let mut sample = golden.samples[1].clone();
    sample.input.images.iter_mut().flatten().for_each(|image| image.data_mut().fill(f32::MAX));
    let poison: Vec<_> = (0..3).map(|_| engine.submit(sample.clone(), None, None)).collect();
    answers_are_right(&engine, &golden, 3, name).await;
    for poison in poison {
        let refusal = poison.outcome().await.unwrap_err();
        assert!(
            matches!(&refusal, Refusal::Failed { cause, .. } if cause.contains("this image again")),
            "{refusal}"
        );
    }
    assert!(engine.look().await.unwrap().pipelines[0].0, "the pipeline is still in service");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_an_engine_that_was_shut_down_or_dropped_at_work() {
    let golden = golden(POLICIES[0]);
    for gently in [true, false] {
        for (name, pipelines) in placements() {
            let blueprint = blueprint(&golden, pipelines, 1);
            let first = &blueprint.placement.pipelines[0].slices[0];
            let device = match blueprint.devices.of(first, first.chips[0]) {
                SliceDevice::Vision(device) => Arc::downgrade(&device),
                _ => panic!("a pipeline begins with vision"),
            };
            let engine = Engine::start(blueprint).await;
            let pending: Vec<_> =
                (0..20).map(|_| engine.submit(golden.samples[0].clone(), None, None)).collect();
            if gently {
                engine.shut_down(Duration::from_millis(1)).await;
            }
            drop((engine, pending));
            let gone = async {
                while device.upgrade().is_some() {
                    tokio::task::yield_now().await;
                }
            };
            let gone = tokio::time::timeout(Duration::from_secs(20), gone).await;
            assert!(
                gone.is_ok(),
                "{name}: a stage is still there, {}",
                if gently { "shut down" } else { "dropped" }
            );
        }
    }
}

/// A vision slice that waits for a word.
struct Stuck(Arc<dyn VisionStage>, std::sync::Mutex<mpsc::Receiver<()>>);

impl VisionStage for Stuck {
    fn layers(&self) -> LayerRange {
        self.0.layers()
    }

    fn run(&self, images: &[&Tensor]) -> Result<Vec<Tensor>, SliceError> {
        let _ = self.1.lock().unwrap().recv();
        self.0.run(images)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_does_not_wait_for_a_device_that_is_stuck() {
    let golden = golden(POLICIES[0]);
    let (_, pipelines) = placements().swap_remove(1);
    let mut blueprint = blueprint(&golden, pipelines, 1);
    let (release, stuck) = mpsc::channel();
    let stuck = std::sync::Mutex::new(Some(stuck));
    blueprint.devices = blueprint.devices.map(|device| match device {
        SliceDevice::Vision(inner) => {
            let receiver = stuck.lock().unwrap().take().unwrap();
            SliceDevice::Vision(Arc::new(Stuck(inner, std::sync::Mutex::new(receiver))))
        }
        other => other,
    });
    let engine = Engine::start(blueprint).await;
    let pending = engine.submit(golden.samples[0].clone(), None, None);
    engine.shut_down(Duration::from_millis(50)).await;
    assert_eq!(pending.outcome().await.unwrap_err(), Refusal::Closed);
    assert_eq!(
        engine.submit(golden.samples[0].clone(), None, None).outcome().await.unwrap_err(),
        Refusal::Closed
    );
    drop(release);
}

/// A prefix slice that waits for a word before it begins.
struct StuckPrefix(Arc<dyn PrefixStage>, std::sync::Mutex<mpsc::Receiver<()>>);

impl PrefixStage for StuckPrefix {
    fn layers(&self) -> LayerRange {
        self.0.layers()
    }

    fn embed(&self, inputs: &[PrefixInput<'_>]) -> Result<Vec<Tensor>, SliceError> {
        self.0.embed(inputs)
    }

    fn begin(self: Arc<Self>, batch: Vec<Tensor>) -> Result<Box<dyn PrefixPass>, SliceError> {
        let _ = self.1.lock().unwrap().recv();
        Arc::clone(&self.0).begin(batch)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_on_a_full_edge_does_not_outlive_its_engine() {
    let golden = golden(POLICIES[0]);
    let (_, pipelines) = placements().swap_remove(1);
    let mut blueprint = blueprint(&golden, pipelines, 1);
    let (release, stuck) = mpsc::channel();
    let stuck = std::sync::Mutex::new(Some(stuck));
    let vision = std::sync::Mutex::new(None);
    blueprint.devices = blueprint.devices.map(|device| match device {
        SliceDevice::Prefix(inner) => {
            let receiver = stuck.lock().unwrap().take().unwrap();
            SliceDevice::Prefix(Arc::new(StuckPrefix(inner, std::sync::Mutex::new(receiver))))
        }
        SliceDevice::Vision(inner) => {
            *vision.lock().unwrap() = Some(Arc::downgrade(&inner));
            SliceDevice::Vision(inner)
        }
        other => other,
    });
    let engine = Engine::start(blueprint).await;
    let pending: Vec<_> = (0..5).map(|_| engine.submit(golden.samples[0].clone(), None, None)).collect();
    // One is in the prefix and two wait before it: with the fourth, vision waits for a place.
    while engine.recorder.slices(0)[0].passes < 4 {
        tokio::task::yield_now().await;
    }
    drop((engine, pending, release));
    let vision = vision.lock().unwrap().take().unwrap();
    let gone = async {
        while vision.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), gone).await.is_ok(), "vision still waits");
}
