use std::collections::BTreeMap;

use tensact_topology::workload::{Savings, slice_work};
use tensact_topology::{
    ChipId, DecoderSizes, LayerRange, ModelSizes, RequestShape, Slice, StageKind, Variant, VisionSizes,
    WeightDtype,
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
            let Footprint { weights, kept, passing } = footprint(&program);
            let bytes = weights + kept + passing;
            assert!(bytes < 4 << 30, "{}: {} MB in DRAM", program.name, bytes >> 20);
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

/// Sizes of the golden policies: heads of 18 and 16 and an MLP of 136 need padding, a width of 72 is no whole tile.
fn tiny(variant: Variant) -> ModelSizes {
    let decoder = DecoderSizes { width: 128, layers: 3, mlp: 256, heads: 8, kv_heads: 1, head_dim: 16 };
    ModelSizes {
        vision: VisionSizes { width: 72, layers: 3, mlp: 136, heads: 4, patch: 14, table_side: 4, image: 56 },
        vlm: decoder,
        expert: DecoderSizes { width: 64, mlp: 128, ..decoder },
        vocab: 512,
        state_dim: 8,
        action_dim: 8,
        horizon: 10,
        prompt_tokens: 16,
        ..ModelSizes::base(variant)
    }
}

/// All programs of a slice of each stage, with sockets on both sides.
fn programs(
    sizes: &ModelSizes,
    [vision_layers, vlm, expert]: [LayerRange; 3],
    cameras: usize,
) -> Vec<Program> {
    let numerics = Numerics::of(WeightDtype::Bfp8B);
    let (tower, patches) = (&sizes.vision, sizes.vision.patches());
    let grid = tower.image / tower.patch;
    let rows = PrefixRows::holding(cameras * patches.next_multiple_of(TILE) + sizes.prompt_tokens);
    let named = |names: &[&str], layers: LayerRange, socket: u32| {
        let of_layers = layers.iter().flat_map(|l| [format!("keys {l}"), format!("values {l}")]);
        let names = names.iter().map(|name| (*name).to_owned()).chain(of_layers);
        names.map(|name| (name, SocketId(socket))).collect::<BTreeMap<_, _>>()
    };
    let wiring = |layers| Wiring {
        receive: named(&["hidden", "hidden 0", "hidden of 0"], layers, 0),
        send: named(&["hidden", "hidden 0", "hidden of 0", "image 0"], layers, 1),
    };
    let step = StepShape { requests: cameras, prefix: rows, steps: 10 };
    let mut programs = vec![
        vision(tower, sizes.vlm.width, vision_layers, cameras, grid, numerics, wiring(vision_layers))
            .unwrap(),
        prefix_embedding(sizes, cameras, patches, sizes.prompt_tokens, numerics, Wiring::default()).unwrap(),
        prefix_layers(sizes, vlm, rows, numerics, wiring(vlm)).unwrap(),
        expert_step(sizes, expert, step, numerics, wiring(expert)).unwrap(),
    ];
    if sizes.variant == Variant::Pi0 {
        programs.push(expert_state(sizes, expert, rows, numerics, wiring(expert)).unwrap());
    }
    programs
}

#[test]
fn programs_of_all_cameras_and_cuts_hold_together() {
    for variant in [Variant::Pi0, Variant::Pi05] {
        for sizes in [tiny(variant), ModelSizes::base(variant)] {
            let depths = StageKind::ALL.map(|stage| sizes.layers(stage));
            for cameras in 1..=3 {
                for part in 0..3 {
                    // All, the first layer, and all but the first.
                    let cut =
                        |depth| [LayerRange::new(0, depth), LayerRange::new(0, 1), LayerRange::new(1, depth)];
                    let layers = depths.map(|depth| cut(depth)[part].unwrap());
                    for program in programs(&sizes, layers, cameras) {
                        check(&program).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn programs_are_what_they_were() {
    for variant in [Variant::Pi0, Variant::Pi05] {
        for program in programs(&tiny(variant), [all(3), all(3), all(3)], 2) {
            let stage = program.name.split([' ', ',']).next().unwrap().to_owned();
            let name = format!("tiny_{variant}_{stage}_{}", program.segments.len());
            insta::assert_snapshot!(name, program.to_string());
        }
        // Of the base policy one layer in the middle of each stage.
        let middle = LayerRange::new(7, 8).unwrap();
        for program in programs(&ModelSizes::base(variant), [middle; 3], 3) {
            let stage = program.name.split([' ', ',']).next().unwrap().to_owned();
            let name = format!("base_{variant}_{stage}_{}", program.segments.len());
            insta::assert_snapshot!(name, program.to_string());
        }
    }
}

#[test]
fn a_call_that_ttnn_would_refuse_is_named() {
    let mut b = Builder::new("broken".into(), Numerics::of(WeightDtype::Bf16), Wiring::default());
    b.segment("layer 0");
    let x = b.input("x", TensorSpec::tiles([1, 1, 64, 96], Dtype::Bf16)).unwrap();
    let narrow = TensorSpec::tiles([1, 1, 64, 128], Dtype::Bf16);
    let weight = b.weight("w", narrow, Recipe::Zeros { shape: [64, 128] });
    let error = b.linear(x, (weight, None), None).unwrap_err().to_string();
    assert_eq!(
        error,
        "program `broken`, segment `layer 0`, call 0 (linear): weight should be [1, 1, 96, 128], found [1, 1, 64, 128]"
    );
}

#[test]
fn a_program_that_uses_what_it_freed_is_refused() {
    let mut program = base(Variant::Pi05, WeightDtype::Bfp8B).remove(0);
    let call = program.segments[1].calls[3].clone();
    let reads = call.op.reads();
    program.segments[1].calls[2].frees.push(reads[0]);
    let error = check(&program).unwrap_err();
    assert_eq!((error.segment.as_str(), error.call), ("layer 0", 3), "{error}");
    // A result that is declared wrong is seen, too.
    let mut program = base(Variant::Pi05, WeightDtype::Bfp8B).remove(0);
    let made = program.segments[1].calls[3].out[0];
    program.values[made.index()].spec.shape[3] += 32;
    assert!(check(&program).is_err());
}
