//! Programs for Tenstorrent chips, interpreted on the host with the chip's rounding: what they compute is what the
//! peers compute, wherever stages are cut and whatever shares a pass.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use tensact_runtime::Tensor;
use tensact_runtime::policy::Sample;
use tensact_runtime::verify::Closeness;
use tensact_tests::driver::{Boundaries, Stages, everywhere, interpreted};
use tensact_tests::{checkpoint, inputs, open};
use tensact_topology::WeightDtype;

const POLICIES: [&str; 2] = ["tiny_pi0", "tiny_pi05"];

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
        for (weights, pcc, norm) in [(WeightDtype::Bf16, 0.999, 0.01), (WeightDtype::Bfp8B, 0.99, 0.02)] {
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
