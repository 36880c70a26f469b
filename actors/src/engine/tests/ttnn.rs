//! Policies on Tenstorrent chips that are interpreted on the host: whatever they hand over, and however, a request gets the
//! actions that it gets on one chip alone.

use std::collections::BTreeSet;

use tensact_runtime::device::ttnn::program::Numerics;
use tensact_runtime::device::ttnn::{Chip, Interpreter};

use super::*;
use crate::telemetry::Transport;
use crate::tenstorrent::Fabric;

/// On the chips of a board, with or without sockets between neighbours; and between which chips there are some.
fn on_chips(
    golden: &Golden,
    first: &Interpreter,
    mut pipelines: Vec<Pipeline>,
    sockets: bool,
) -> (Blueprint, BTreeSet<(ChipId, ChipId)>) {
    let blueprint = blueprint(golden, pipelines.clone(), 3);
    for slice in pipelines.iter_mut().flat_map(|pipeline| &mut pipeline.slices) {
        (slice.device, slice.weights) = (DeviceKind::Ttnn, WeightDtype::Bfp8B);
    }
    let placement = Placement { pipelines };
    let board = Preset::GalaxyBh.board();
    let sizes = *golden.checkpoint.sizes();
    let fabric = Fabric { board: &board, sizes: &sizes, sockets };
    let chips = board.chips().iter().map(|chip| (chip.id, first.chip(chip.id) as Arc<dyn Chip>)).collect();
    let devices = fabric.load(&placement, &RequestShape::of(&sizes), &chips).unwrap();
    let ways = fabric.all_sockets(&placement);
    (Blueprint { board: Arc::new(board), placement, devices, ..blueprint }, ways)
}

/// The placements of all devices, and two that say something about ways. The board has four chips in a row.
fn ways() -> Vec<(&'static str, Vec<Pipeline>)> {
    let mut all = placements();
    let (_, mut host) = all[2].clone();
    host[0].slices.iter_mut().for_each(|slice| slice.transport = tensact_topology::Transport::Host);
    all.push(("every layer, over the host", host));
    let mut fetched = vec![slice(StageKind::Vision, 0, 1, 0), slice(StageKind::Vision, 1, 3, 1)];
    fetched[1] = fetched[1].clone().shared(vec![ChipId(1), ChipId(4)], Split::Cameras);
    fetched.extend([slice(StageKind::Prefix, 0, 3, 5), slice(StageKind::Expert, 0, 3, 5)]);
    all.push(("cameras fetched by two chips", vec![Pipeline::new(fetched)]));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chips_that_hand_over_by_sockets_or_by_the_host_change_no_bit() {
    for policy in POLICIES {
        let mut golden = golden(policy);
        // One whose keys and values take fewer rows than those of its company.
        let mut short = golden.samples[0].clone();
        short.input.images[1..].iter_mut().for_each(|image| *image = None);
        short.input.tokens.truncate(3);
        golden.samples.push(short);
        let first = Interpreter::new(&golden.checkpoint, NonZeroUsize::new(1)).unwrap();
        let chip: Arc<dyn Chip> = first.clone();
        let sizes = golden.checkpoint.sizes();
        let numerics = Numerics::of(WeightDtype::Bfp8B);
        let alone = Policy::on_chip(&chip, sizes, numerics, &Cuts::none(sizes)).unwrap();
        let answer = |sample: &Sample| alone.infer(std::slice::from_ref(sample)).unwrap().0.remove(0);
        golden.answers = golden.samples.iter().map(answer).collect();

        for (name, pipelines) in ways() {
            for sockets in [true, false].into_iter().filter(|sockets| *sockets || name == "every layer") {
                let (blueprint, ways) = on_chips(&golden, &first, pipelines.clone(), sockets);
                let engine = Engine::start(blueprint).await;
                let name = format!("{policy}, {name}, {}", if sockets { "sockets" } else { "no sockets" });
                answers_are_right(&engine, &golden, 2, &name).await;

                let moves = first.take_moves();
                if name.contains("cameras") {
                    // Whoever has time takes an image.
                    assert!(moves.is_subset(&ways) && !moves.is_empty(), "{name}: {moves:?}");
                } else {
                    assert_eq!(moves, ways, "{name}");
                    let links = engine.recorder.links();
                    let told = links.iter().filter(|link| link.transport == Transport::Socket);
                    assert_eq!(
                        told.map(|link| (link.from, link.to)).collect::<BTreeSet<_>>(),
                        ways,
                        "{name}"
                    );
                }
                let nowhere = !sockets || name.contains("one chip") || name.contains("over the host");
                assert_eq!(ways.is_empty(), nowhere, "{name}");
                engine.shut_down(Duration::from_secs(10)).await;
            }
        }
    }
}
