//! Policies on Tenstorrent chips that are interpreted on the host: whatever they hand over, and however, a request gets the
//! actions that it gets on one chip alone.

use std::collections::BTreeSet;

use tensact_runtime::device::ttnn::program::Numerics;
use tensact_runtime::device::ttnn::{Chip, Interpreter};

use super::*;
use crate::devices::OnTtnn;
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
    let ways = fabric.sockets(&placement);
    let devices = Devices::interpreted(OnTtnn { devices, sockets });
    (Blueprint { board: Arc::new(board), placement, devices, ..blueprint }, ways)
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

        for (name, pipelines) in placements() {
            let every_layer = name == "every layer";
            for sockets in [true, false].into_iter().filter(|sockets| *sockets || every_layer) {
                let (blueprint, ways) = on_chips(&golden, &first, pipelines.clone(), sockets);
                let engine = Engine::start(blueprint).await;
                let name = format!("{policy}, {name}, {}", if sockets { "sockets" } else { "no sockets" });
                answers_are_right(&engine, &golden, 2, &name).await;
                let links = engine.recorder.links();
                let by_socket = links.iter().filter(|link| link.transport == Transport::Socket);
                let used: BTreeSet<_> = by_socket.map(|link| (link.from, link.to)).collect();
                assert_eq!(used, ways, "{name}: {links:?}");
                assert_eq!(used.is_empty(), !sockets || name.contains("one chip"), "{name}");
                engine.shut_down(Duration::from_secs(10)).await;
            }
        }
    }
}
