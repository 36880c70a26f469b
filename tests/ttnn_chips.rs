//! The slices of a policy on Tenstorrent chips, through TT-NN itself. On mock chips
//! (`TT_METAL_MOCK_CLUSTER_DESC_PATH`) TT-NN checks every call, plans every program and allocates all memory, and gives
//! zeros; numbers are compared where there is a real chip.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // a test that cannot go on has failed

use std::collections::BTreeSet;
use std::sync::Arc;

use tensact_runtime::device::host::ComputeDtype;
use tensact_runtime::device::ttnn::executor::{TtnnChip, mocked};
use tensact_runtime::device::ttnn::{Chip, Weights};
use tensact_runtime::verify::Closeness;
use tensact_tests::driver::{Boundaries, across, everywhere, on_chip};
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
    // Its keys and values take fewer rows than those of its company.
    let mut short = samples[0].clone();
    short.input.images[1..].iter_mut().for_each(|image| *image = None);
    short.input.tokens.truncate(3);
    let board = Preset::P150a.board();
    let made = Arc::new(Weights::new(device(2, ComputeDtype::F32), &checkpoint));
    let chips = TtnnChip::open(&board, &[board.chips()[0].id], &BTreeSet::new(), &made).unwrap();
    let [chip] = &chips[..] else { panic!("one chip was asked for") };
    let chip: Arc<dyn Chip> = chip.clone();
    let cut = everywhere(checkpoint.sizes());
    // Handing over on the host, and on the chip.
    for stages in [
        on_chip(&chip, checkpoint.sizes(), weights, &Boundaries::default()),
        on_chip(&chip, checkpoint.sizes(), weights, &cut),
        across(&|_| Arc::clone(&chip), checkpoint.sizes(), weights, &cut),
    ] {
        let actions = stages.cached(&samples);
        let followed = stages.followed(&samples[0]);
        assert_eq!(followed.shape(), actions[0].shape());
        let together = stages.cached(&[samples[0].clone(), short.clone()]);
        assert_eq!(together.len(), 2);
        if mocked().is_some() {
            eprintln!("{policy} {weights}: mock chips compute nothing, so numbers are SKIPPED");
            continue;
        }
        let company = Closeness::of(together[0].data(), actions[0].data());
        assert!(company.reaches(0.98), "{policy} {weights}, in other company: {company:?}");
        let expected = reference.tensors()["out.actions"].to_f32();
        let found: Vec<f32> = actions.iter().flat_map(|actions| actions.data()).copied().collect();
        let closeness = Closeness::of(&found, &expected);
        assert!(closeness.reaches(0.98), "{policy} {weights}: {closeness:?}");
    }
}
