//! Boards of Blackhole chips. Link counts: tt-metal `fabric/mesh_graph_descriptors`, one lane is 400 Gb/s.

use super::{Board, Pcie};
use crate::ChipSpec;

const X16: Pcie = Pcie { generation: 5, lanes: 16 }; // docs.tenstorrent.com aibs/blackhole/specifications
const X8: Pcie = Pcie { generation: 5, lanes: 8 }; // estimate where no source gives the lanes

pub(super) fn p100a() -> Board {
    // 120 Tensix less one dispatch column; 28 GB at 448 GB/s (specifications); no Ethernet ports.
    let spec = ChipSpec {
        dram_bytes: 28_000_000_000,
        dram_gb_per_s: 448.0,
        ..ChipSpec::blackhole().with_cores(110)
    };
    Board::mesh("p100a", (1, 1), 0, spec, |_| Some(X16))
}

pub(super) fn p150a() -> Board {
    Board::mesh("p150a", (1, 1), 0, ChipSpec::blackhole(), |_| Some(X16))
}

pub(super) fn p300() -> Board {
    // 240 Tensix on two chips (specifications), 110 usable each. Both chips have PCIe
    // (tt-umd blackhole_P300_both_mmio.yaml); lanes not published: estimate.
    Board::mesh("p300", (1, 2), 2, ChipSpec::blackhole().with_cores(110), |_| Some(X8))
}

pub(super) fn quietbox() -> Board {
    // 2×2, 4 lanes (p150_x4 mesh graph descriptor); cores as on a p150a (560 Tensix in the system's specification).
    Board::mesh("quietbox-bh", (2, 2), 4, ChipSpec::blackhole(), |_| Some(X16))
}

pub(super) fn quietbox2() -> Board {
    // 2×2, 2 lanes (p300_x2 mesh graph descriptor); 480 Tensix in the system's specification.
    Board::mesh("quietbox2", (2, 2), 2, ChipSpec::blackhole().with_cores(110), |_| Some(X8))
}

pub(super) fn loudbox() -> Board {
    // 2×4, 2 lanes (p150_x8 mesh graph descriptor): ten 800G cables, one per edge of the mesh; 9 × PCIe 5.0 x16.
    Board::mesh("loudbox-bh", (2, 4), 2, ChipSpec::blackhole(), |_| Some(X16))
}

pub(super) fn galaxy() -> Board {
    // 8×4, 2 lanes (single_bh_galaxy mesh graph descriptor). One core column of each chip is harvested
    // (tt-umd blackhole_galaxy.yaml) and one dispatches: 12×10. 1 TB and 16 TB/s of DRAM in all (press) are
    // 32 GB and 512 GB/s a chip. PCIe lanes of the trays are not published: estimate as on the Wormhole Galaxy.
    Board::mesh("galaxy-bh", (8, 4), 2, ChipSpec::blackhole().with_cores(120), |id| {
        let first_of_tray = [0, 2, 16, 18].contains(&id);
        Some(Pcie { generation: 5, lanes: if first_of_tray { 8 } else { 1 } })
    })
}
