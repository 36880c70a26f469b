//! The slices of a policy on Tenstorrent chips, through TT-NN itself. On mock chips
//! (`TT_METAL_MOCK_CLUSTER_DESC_PATH`) TT-NN checks every call, plans every program and allocates all memory, and gives
//! zeros; numbers are compared where there is a real chip.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // a test that cannot go on has failed

use std::sync::Arc;

use tensact_runtime::device::host::ComputeDtype;
use tensact_runtime::device::ttnn::Weights;
use tensact_runtime::device::ttnn::executor::{TtnnChip, mocked};
use tensact_runtime::verify::Closeness;
use tensact_tests::driver::{Boundaries, everywhere, on_chip};
use tensact_tests::{checkpoint, device, inputs, open};
use tensact_topology::{Preset, WeightDtype};

/// One test, because a process opens one board at a time.
#[test]
fn a_request_goes_through_all_stages() {
    for policy in ["tiny_pi0", "tiny_pi05"] {
        for weights in [WeightDtype::Bfp8B, WeightDtype::Bf16] {
            run(policy, weights);
        }
    }
}

fn run(policy: &str, weights: WeightDtype) {
    let checkpoint = checkpoint(policy, "model_openpi_bf16.safetensors");
    let reference = open(policy, "golden.safetensors");
    let samples = inputs(&checkpoint, &reference).samples;
    let board = Preset::P150a.board();
    let made = Arc::new(Weights::new(device(2, ComputeDtype::F32), &checkpoint));
    let chips = TtnnChip::open(&board, &[board.chips()[0].id], &made).unwrap();
    let [chip] = &chips[..] else { panic!("one chip was asked for") };
    let chip = Arc::clone(chip) as _;
    for boundaries in [Boundaries::default(), everywhere(checkpoint.sizes())] {
        let stages = on_chip(&chip, checkpoint.sizes(), weights, &boundaries);
        let actions = stages.cached(&samples);
        let followed = stages.followed(&samples[0]);
        assert_eq!(followed.shape(), actions[0].shape());
        if mocked().is_some() {
            eprintln!("{policy} {weights}: mock chips compute nothing, so numbers are SKIPPED");
            continue;
        }
        let expected = reference.tensors()["out.actions"].to_f32();
        let found: Vec<f32> = actions.iter().flat_map(|actions| actions.data()).copied().collect();
        let closeness = Closeness::of(&found, &expected);
        assert!(closeness.reaches(0.98), "{policy} {weights}: {closeness:?}");
    }
}
