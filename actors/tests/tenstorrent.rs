//! A deployment on Tenstorrent chips, from observations to action chunks. Needs a machine with four Blackhole chips in a
//! 2 × 2 mesh, or TT-NN's mock of one (`TT_METAL_MOCK_CLUSTER_DESC_PATH`), which checks everything and computes nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // a test that cannot go on has failed

use std::path::Path;
use std::time::Duration;

use tensact::runtime::checkpoint::synth;
use tensact::runtime::device::ttnn::executor::mocked;
use tensact::runtime::observation::{Image, Layout, Observation};
use tensact::topology::{Deployment, Variant};
use tensact::{Options, Pipeline, Request, Start};

const STAGES: &str = r#"
board = "quietbox-bh"
checkpoint = "policy"
[batching]
max_requests = 2
max_in_flight = 4
[[pipeline]]
device = "ttnn"
weights = "bfp8_b"
[[pipeline.stage]]
kind = "vision"
chips = [0, 1]
split = "cameras"
[[pipeline.stage]]
kind = "prefix"
layers = "0..2"
chips = [1]
[[pipeline.stage]]
kind = "prefix"
layers = "2..3"
chips = [3]
[[pipeline.stage]]
kind = "expert"
chips = [3]
"#;

fn deployment(folder: &Path, text: &str) -> Deployment {
    let file = folder.join("deployment.toml");
    std::fs::write(&file, text).unwrap();
    Deployment::read(&file).unwrap()
}

fn observation(shade: u8) -> Observation {
    let image = || Image::from_u8(Layout::Hwc, 48, 64, vec![shade; 48 * 64 * 3]).unwrap();
    Observation {
        images: [("base".to_owned(), image()), ("wrist".to_owned(), image())].into(),
        state: vec![f32::from(shade) / 255.0; 8],
        prompt: Some("pick up the red block".into()),
    }
}

/// One test, because a process opens one board at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn observations_become_actions_on_four_chips() {
    let folder = tempfile::tempdir().unwrap();
    for variant in [Variant::Pi0, Variant::Pi05] {
        let sizes = synth::SynthSize::Tiny.sizes(variant);
        let policy = folder.path().join("policy");
        synth::write(&policy, &sizes, 0, synth::SynthDtype::Bf16, &|_, _| ()).unwrap();
        let start =
            async |text: &str| Pipeline::start(&deployment(folder.path(), text), &Options::default()).await;
        if mocked().is_some() {
            let error = start(&STAGES.replace("weights =", "transport = \"socket\"\nweights =")).await.err();
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("mock chips have no sockets"), "{error}");
        }
        let error = start(&STAGES.replace("weights =", "resident = \"l1\"\nweights =")).await.err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("in DRAM for now"), "{error}");
        let error = start(&STAGES.replace("quietbox-bh", "t3000")).await.err().unwrap().to_string();
        assert!(error.contains("t3000"), "{error}");

        let pipeline = start(STAGES).await.unwrap();
        let ask = |seed: u8| {
            let request = Request { start: Start::Seed(seed.into()), ..Request::default() };
            pipeline.infer(observation(seed), request)
        };
        let (a, b, c) = tokio::join!(ask(1), ask(2), ask(3));
        for chunk in [a, b, c] {
            let chunk = chunk.unwrap();
            assert_eq!(chunk.actions.shape()[0], sizes.horizon);
            assert!(chunk.actions.data().iter().all(|value| value.is_finite()));
        }
        pipeline.shutdown(Duration::from_secs(10)).await;
        std::fs::remove_dir_all(policy).unwrap();
    }
    eprintln!("SKIPPED: numbers are compared by the test `ttnn_chips` of tensact-tests, on real chips");
    if mocked().is_some() {
        eprintln!(
            "SKIPPED: sockets between chips, which mock chips do not have: they handed over on the host"
        );
    }
}
