use tensact_topology::{LayerRange, ModelSizes, Variant, WeightDtype};

use super::*;

fn all(layers: usize) -> LayerRange {
    LayerRange::new(0, layers).unwrap()
}

/// The programs of the base policy on one chip.
fn base(variant: Variant, weights: WeightDtype) -> Vec<Program> {
    let sizes = ModelSizes::base(variant);
    let numerics = Numerics::of(weights);
    let rows = PrefixRows::holding(816);
    let none = Wiring::default;
    let step = StepShape { requests: 2, prefix: rows, steps: 10 };
    let mut programs = vec![
        vision(&sizes.vision, 2048, all(27), 3, 16, numerics, none()).unwrap(),
        prefix_embedding(&sizes, 3, 256, 48, numerics, none()).unwrap(),
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
            eprintln!("{} {:?} {:.3} TFLOP", program.name, footprint(&program), program.flop() / 1e12);
        }
    }
}
