//! The public way: a checkpoint on disk, a deployment file, observations from many tasks.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tensact::runtime::checkpoint::{Checkpoint, synth};
use tensact::runtime::observation::{Image, Layout, Observation};
use tensact::topology::{Deployment, Variant};
use tensact::{ActionChunk, InferError, Options, Pipeline, Refusal, Request, Start, StartError};

/// Three stages of three layers each on chips of their own, and a second pipeline on one chip.
const STAGES: &str = r#"
board = "loudbox-bh"
checkpoint = "policy"
[batching]
max_requests = 4
max_in_flight = 8
[[pipeline]]
device = "DEVICE"
weights = "bf16"
[[pipeline.stage]]
kind = "vision"
chips = [0]
[[pipeline.stage]]
kind = "prefix"
chips = [1]
[[pipeline.stage]]
kind = "expert"
chips = [2]
[[pipeline]]
chips = [4]
device = "DEVICE"
weights = "bf16"
"#;

fn write_policy(folder: &Path) {
    let sizes = synth::SynthSize::Tiny.sizes(Variant::Pi0);
    synth::write(&folder.join("policy"), &sizes, 0, synth::SynthDtype::Bf16, &|_, _| ()).unwrap();
}

fn deployment(folder: &Path, text: &str) -> Deployment {
    let file = folder.join("deployment.toml");
    std::fs::write(&file, text).unwrap();
    Deployment::read(&file).unwrap()
}

fn observation(shade: u8) -> Observation {
    let image = Image::from_u8(Layout::Hwc, 48, 64, vec![shade; 48 * 64 * 3]).unwrap();
    Observation {
        images: [("base".to_owned(), image)].into(),
        state: vec![f32::from(shade) / 255.0; 8],
        prompt: Some("pick up the red block".into()),
    }
}

/// Eight robots at once, each with its own observation and seed.
async fn chunks(pipeline: &Arc<Pipeline>) -> Vec<ActionChunk> {
    let ask = |robot: u8| {
        let pipeline = Arc::clone(pipeline);
        let request = Request {
            start: Start::Seed(robot.into()),
            robot: Some(format!("arm {robot}").into()),
            deadline: Some(Duration::from_secs(300)),
            ..Request::default()
        };
        tokio::spawn(async move { pipeline.infer(observation(20 * robot), request).await.unwrap() })
    };
    let mut chunks = Vec::new();
    for task in (0..8).map(ask).collect::<Vec<_>>() {
        chunks.push(task.await.unwrap());
    }
    chunks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_give_what_one_machine_gives() {
    let folder = tempfile::tempdir().unwrap();
    write_policy(folder.path());
    let checkpoint = Arc::new(Checkpoint::open(&folder.path().join("policy")).unwrap());
    let alone = Arc::new(Pipeline::host(&checkpoint, &Options::default()).await.unwrap());
    let expected: Vec<_> = chunks(&alone).await.into_iter().map(|chunk| chunk.actions).collect();
    for device in ["host", "emulated"] {
        let deployment = deployment(folder.path(), &STAGES.replace("DEVICE", device));
        let pipeline = Arc::new(Pipeline::start(&deployment, &Options::default()).await.unwrap());
        for (robot, chunk) in chunks(&pipeline).await.into_iter().enumerate() {
            assert_eq!(chunk.actions, expected[robot], "robot {robot} on device {device}");
            let times = chunk.timings;
            let parts =
                times.preprocess_ms + times.queue_ms + times.vision_ms + times.prefix_ms + times.denoise_ms;
            assert!(parts <= times.total_ms + 1e-6, "{times:?}");
        }
        pipeline.drain().await;
        let stats = pipeline.stats().await;
        assert_eq!((stats.counts.done, stats.waiting, stats.pipelines.len()), (8, 0, 2));
        assert!(stats.pipelines.iter().all(|pipeline| pipeline.in_service && pipeline.in_flight == 0));
        let late = pipeline.infer(observation(0), Request::default()).await;
        assert!(matches!(late, Err(InferError::Refused(Refusal::Closed))), "{late:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_request_is_told_what_is_wrong_and_costs_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    write_policy(folder.path());
    let deployment = deployment(folder.path(), &STAGES.replace("DEVICE", "host"));
    let pipeline = Pipeline::start(&deployment, &Options::default()).await.unwrap();
    let ask = |request| pipeline.infer(observation(9), request);
    let noise = tensact::runtime::Tensor::zeros([2, 3]);
    let wrong = ask(Request { start: Start::Noise(noise), ..Request::default() }).await.unwrap_err();
    assert_eq!(wrong.to_string(), "the expert stage takes noise of shape [10, 8], found [2, 3]");
    let late = ask(Request { deadline: Some(Duration::ZERO), ..Request::default() }).await.unwrap_err();
    assert!(matches!(late, InferError::Refused(Refusal::Expired { .. })), "{late}");
    for deadline in [Some(Duration::MAX), None] {
        assert!(ask(Request { deadline, ..Request::default() }).await.is_ok());
    }
    pipeline.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_that_cannot_run_is_refused_with_all_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    write_policy(folder.path());
    let start = async |text: &str| {
        let deployment = deployment(folder.path(), text);
        Pipeline::start(&deployment, &Options::default()).await.err().unwrap()
    };
    let text = STAGES.replace("DEVICE", "host").replace("max_requests = 4", "max_requests = 0");
    let text = text.replace("kind = \"expert\"", "layers = \"1..3\"\nkind = \"expert\"");
    let StartError::Deployment { findings } = start(&text).await else {
        panic!("it is refused as a deployment")
    };
    assert!(
        findings.iter().any(|finding| finding.contains("expert layers 0..1 are on no chip")),
        "{findings:?}"
    );
    assert!(findings.iter().any(|finding| finding.contains("batching.max_requests")), "{findings:?}");
    let error = start(&STAGES.replace("DEVICE", "ttnn")).await;
    assert!(matches!(error, StartError::Device(_)), "{error}");
}
