//! Whole deployments on emulated chips, without weights, in tokio's time.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use tensact::runtime::checkpoint::synth::SynthSize;
use tensact::runtime::observation::{Image, Layout, Observation};
use tensact::runtime::preprocess::statistics::Source;
use tensact::runtime::preprocess::tokenizer::TokenizerError;
use tensact::topology::{Calibration, CostModel, Deployment, ModelSizes, RequestShape, Variant};
use tensact::{
    ActionChunk, InferError, Options, Pipeline, ProfileChoice, Refusal, Request, Start, StartError,
};
use tokio::time::Instant;

const CHIP: &str = "board = 'p150a'\ncheckpoint = 'nowhere/at/all'\n[[pipeline]]\nchips = [0]\n";

/// By how much tokio's timers, which count milliseconds, may mislead.
const GRAIN_MS: f64 = 5.0;

fn deployment(text: &str) -> Deployment {
    Deployment::parse("deployment.toml", text).unwrap()
}

fn sizes() -> ModelSizes {
    ModelSizes::base(Variant::Pi05)
}

fn libero() -> Options {
    Options { profile: ProfileChoice::Named("libero".into()), ..Options::default() }
}

async fn start(text: &str) -> Pipeline {
    Pipeline::emulated(&deployment(text), &sizes(), &libero()).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn refused(text: &str, sizes: &ModelSizes, options: &Options) -> StartError {
    Pipeline::emulated(&deployment(text), sizes, options).await.err().unwrap()
}

fn observation(state: f32) -> Observation {
    let image = || Image::from_u8(Layout::Hwc, 48, 64, vec![100; 48 * 64 * 3]).unwrap();
    let images = ["observation/image", "observation/wrist_image"].map(|name| (name.to_owned(), image()));
    Observation { images: images.into(), state: vec![state; 8], prompt: Some("pick up the red block".into()) }
}

fn seed(seed: u64) -> Request {
    Request { start: Start::Seed(seed), ..Request::default() }
}

/// What the cost model says one of these observations takes on its own.
fn critical_path_ms(pipeline: &Pipeline, text: &str) -> f64 {
    let (deployment, sizes) = (deployment(text), *pipeline.sizes());
    let board = deployment.load_board().unwrap();
    let prompt_tokens = pipeline.preprocessor().prepare(&observation(0.5)).unwrap().input.tokens.len();
    let request = RequestShape { cameras: 2, prompt_tokens, steps: sizes.steps, batch: 1 };
    let placement = deployment.placement(&sizes, board.arch()).placement;
    let model = CostModel::new(&board, &sizes, request, Calibration::shipped());
    model.pipeline(&placement.pipelines[0]).unwrap().latency_ms
}

fn assert_usable(chunk: &ActionChunk) {
    assert_eq!(chunk.actions.shape(), [50, 7]);
    assert!(chunk.actions.data().iter().all(|action| action.is_finite()));
}

#[tokio::test(start_paused = true)]
async fn a_request_takes_the_critical_path_and_gets_its_own_actions() {
    let pipeline = start(CHIP).await;
    let expected_ms = critical_path_ms(&pipeline, CHIP);
    let ask = async |state, number| {
        let began = Instant::now();
        let chunk = pipeline.infer(observation(state), seed(number)).await.unwrap();
        assert_usable(&chunk);
        let (passed_ms, total_ms) = (began.elapsed().as_secs_f64() * 1e3, chunk.timings.total_ms);
        assert!((total_ms - expected_ms).abs() < GRAIN_MS, "{total_ms} ms, critical path {expected_ms} ms");
        assert!((total_ms - passed_ms).abs() < 1e-6, "{total_ms} ms, tokio's clock says {passed_ms} ms");
        chunk.actions
    };
    let first = ask(0.5, 1).await;
    assert_eq!(ask(0.5, 1).await, first);
    assert_ne!(ask(0.5, 2).await, first);
    assert_ne!(ask(-0.5, 1).await, first);
    assert_eq!((pipeline.statistics(), pipeline.stats().await.counts.done), (&Source::Nowhere, 4));
    pipeline.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn what_would_be_late_is_known_before_anything_was_measured() {
    let pipeline = start(CHIP).await;
    let deadline_ms = critical_path_ms(&pipeline, CHIP);
    let ask = |ms: f64| {
        let deadline = Some(Duration::from_secs_f64(ms / 1e3));
        pipeline.infer(observation(0.5), Request { deadline, ..Request::default() })
    };
    let late = ask(deadline_ms - 1.0).await.unwrap_err();
    assert!(matches!(late, InferError::Refused(Refusal::DeadlineImpossible { .. })), "{late}");
    assert_usable(&ask(deadline_ms + GRAIN_MS).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn all_replicas_of_a_galaxy_serve_at_once() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs/galaxy-bh.toml");
    let text = std::fs::read_to_string(file).unwrap();
    let pipeline = start(&text).await;
    let began = Instant::now();
    let chunks = join_all((0..64).map(|robot| pipeline.infer(observation(0.5), seed(robot)))).await;
    let took_ms = began.elapsed().as_secs_f64() * 1e3;
    let answers: BTreeSet<Vec<u32>> = chunks
        .into_iter()
        .map(|chunk| {
            let chunk = chunk.unwrap();
            assert_usable(&chunk);
            chunk.actions.data().iter().map(|action| action.to_bits()).collect()
        })
        .collect();
    assert_eq!(answers.len(), 64, "everybody gets their own");
    let one_ms = critical_path_ms(&pipeline, &text);
    assert!(took_ms < 2.0 * one_ms + 2.0 * GRAIN_MS, "two each take {took_ms} ms, one takes {one_ms} ms");
    let stats = pipeline.stats().await;
    assert_eq!((stats.counts.done, stats.pipelines.len()), (64, 32));
    assert!(stats.pipelines.iter().all(|replica| replica.slices[0].requests == 2), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chips_take_their_time_on_a_clock_that_runs() {
    let pipeline = start(CHIP).await;
    let expected_ms = critical_path_ms(&pipeline, CHIP);
    let began = std::time::Instant::now();
    let chunks = join_all((0..4).map(|robot| pipeline.infer(observation(0.5), seed(robot)))).await;
    let took_ms = began.elapsed().as_secs_f64() * 1e3;
    chunks.into_iter().for_each(|chunk| assert_usable(&chunk.unwrap()));
    assert!(took_ms > 4.0 * expected_ms - 4.0 * GRAIN_MS, "{took_ms} ms, four of {expected_ms} ms");
    pipeline.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn small_policies_of_both_variants_are_emulated() {
    for variant in [Variant::Pi0, Variant::Pi05] {
        let sizes = SynthSize::Tiny.sizes(variant);
        let options = Options::default();
        let pipeline = Pipeline::emulated(&deployment(CHIP), &sizes, &options).await.unwrap();
        let mut observation = observation(0.5);
        observation.images = [("base".to_owned(), observation.images["observation/image"].clone())].into();
        let chunk = pipeline.infer(observation, Request::default()).await.unwrap();
        assert_eq!(chunk.actions.shape(), [10, 8], "{variant}");
    }
}

#[tokio::test]
async fn what_cannot_be_emulated_is_refused() {
    let large = CHIP
        .replace(
            "[[pipeline]]",
            "[batching]\nmax_in_flight = 64\n[[pipeline]]\nweights = 'f32'\ndevice = 'emulated'",
        )
        .replace("p150a", "n150");
    let StartError::Deployment { findings } = refused(&large, &sizes(), &libero()).await else {
        panic!("it is refused as a deployment")
    };
    assert!(findings.iter().any(|finding| finding.contains("memory")), "{findings:?}");
    let missing = CHIP.replace("chips = [0]", "chips = [7]");
    let error = refused(&missing, &sizes(), &libero()).await;
    assert!(matches!(error, StartError::Deployment { .. }), "{error}");
    let error = refused(CHIP, &ModelSizes { vocab: 100, ..sizes() }, &libero()).await;
    assert!(matches!(error, StartError::Tokenizer(TokenizerError::NoSynthetic { vocab: 100 })), "{error}");
    let options = Options { tokenizer: Some("nowhere".into()), ..libero() };
    let error = refused(CHIP, &sizes(), &options).await;
    assert!(matches!(error, StartError::Tokenizer(TokenizerError::Read { .. })), "{error}");
}

#[tokio::test]
async fn stages_that_compute_need_threads() {
    let error = Pipeline::start(&deployment(CHIP), &libero()).await.err().unwrap();
    assert!(matches!(error, StartError::SingleThreaded), "{error}");
}
