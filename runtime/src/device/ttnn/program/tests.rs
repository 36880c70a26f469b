use tensact_topology::workload::{Savings, slice_work};
use tensact_topology::{
    ChipId, LayerRange, ModelSizes, RequestShape, Slice, StageKind, Variant, WeightDtype,
};

use super::*;

fn all(layers: usize) -> LayerRange {
    LayerRange::new(0, layers).unwrap()
}

/// The programs of the base policy on one chip.
fn base(variant: Variant, weights: WeightDtype) -> Vec<Program> {
    let sizes = ModelSizes::base(variant);
    let numerics = Numerics::of(weights);
    let rows = PrefixRows::holding(768 + sizes.prompt_tokens);
    let none = Wiring::default;
    let step = StepShape { requests: 1, prefix: rows, steps: 10 };
    let mut programs = vec![
        vision(&sizes.vision, 2048, all(27), 3, 16, numerics, none()).unwrap(),
        prefix_embedding(&sizes, 3, 256, sizes.prompt_tokens, numerics, none()).unwrap(),
        prefix_layers(&sizes, all(18), rows, numerics, none()).unwrap(),
        expert_step(&sizes, all(18), step, numerics, none()).unwrap(),
    ];
    if variant == Variant::Pi0 {
        programs.push(expert_state(&sizes, all(18), rows, numerics, none()).unwrap());
    }
    programs
}

#[test]
fn programs_of_the_base_policies_hold_together() {
    for variant in [Variant::Pi0, Variant::Pi05] {
        for program in base(variant, WeightDtype::Bfp8B) {
            check(&program).unwrap();
            let Footprint { weights, kept, dram, l1 } = footprint(&program);
            assert!(
                weights + kept + dram < 4 << 30,
                "{}: {} MB in DRAM",
                program.name,
                (weights + kept + dram) >> 20
            );
            // Wormhole's 56 cores, of which circular buffers take most.
            assert!(l1 / 56 < 200_000, "{}: {} bytes of L1 a core", program.name, l1 / 56);
        }
    }
}

/// Of the whole base policy on one Blackhole chip, for a request of three cameras.
fn cost_model(variant: Variant, weights: WeightDtype, stage: StageKind) -> (f64, u64) {
    let sizes = ModelSizes::base(variant);
    let slice = Slice { weights, ..Slice::on(stage, all(sizes.layers(stage)), ChipId(0)) };
    let request = RequestShape::of(&sizes);
    let savings = Savings { last_block_cache_only: true, state_token_once: true };
    let work = slice_work(&sizes, &slice, &request, savings);
    let ops = || work.once.iter().chain(&work.each_step);
    let flop = ops().map(|op| op.flop(true)).sum();
    (flop, weights.bytes(ops().map(|op| op.weights(true)).sum()))
}

/// A program does all that the cost model counts, and little else: heads of the vision tower padded from 72 to 96 (a
/// third of a quarter of its products), prefixes rounded up to 64 rows, the small projections that stay f32, biases and
/// tables.
#[test]
fn the_cost_model_counts_what_programs_do() {
    for (variant, weights) in [(Variant::Pi0, WeightDtype::Bfp8B), (Variant::Pi05, WeightDtype::Bf16)] {
        let programs = base(variant, weights);
        for (stage, program, most) in [
            (StageKind::Vision, &programs[0], [1.12, 1.19]),
            (StageKind::Prefix, &programs[2], [1.04, 1.01]),
            (StageKind::Expert, &programs[3], [1.02, 1.02]),
        ] {
            let (flop, bytes) = cost_model(variant, weights, stage);
            let found = [program.flop() / flop, footprint(program).weights as f64 / bytes as f64];
            let fits = found.iter().zip(most).all(|(found, most)| (1.0..most).contains(found));
            assert!(fits, "{variant} {stage}: {found:?} times the operations and bytes of the cost model");
        }
    }
}
