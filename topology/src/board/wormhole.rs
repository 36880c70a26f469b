//! Boards of Wormhole chips. Link counts: tt-metal `fabric/mesh_graph_descriptors`, one lane is 100 Gb/s.

use super::{Board, Pcie};
use crate::ChipSpec;

const X16: Pcie = Pcie { generation: 4, lanes: 16 }; // docs.tenstorrent.com aibs/wormhole/specifications

pub(super) fn n150() -> Board {
    Board::mesh("n150", (1, 1), 0, ChipSpec::wormhole(), |_| Some(X16))
}

pub(super) fn n300() -> Board {
    // 2 lanes inside the card (n300 mesh graph descriptor); only the left chip has PCIe (tt-umd wormhole_N300.yaml).
    // TT-Metalium may keep one of the two lanes for dispatch to the second chip (Programming_Mesh report).
    Board::mesh("n300", (1, 2), 2, ChipSpec::wormhole(), |id| (id == 0).then_some(X16))
}

pub(super) fn t3000(name: &str) -> Board {
    // 2×4, 2 lanes (t3k mesh graph descriptor). Chips 0, 2, 5 and 7 stand for the four PCIe chips: estimate of
    // where they sit in the mesh, the count is from tt-umd t3k_cluster_desc.yaml.
    Board::mesh(name, (2, 4), 2, ChipSpec::wormhole(), |id| [0, 2, 5, 7].contains(&id).then_some(X16))
}

pub(super) fn galaxy() -> Board {
    // 8×4, 4 lanes (single_galaxy mesh graph descriptor). No core rows harvested (tt-umd 6u_cluster_desc.yaml):
    // 8×10 less the dispatch row. Trays are taken as 4×2 quarters of the mesh, which is an estimate.
    let spec = ChipSpec::wormhole().with_cores(72);
    Board::mesh("galaxy-wh", (8, 4), 4, spec, |id| {
        // One x8 and seven x1 per tray of eight (core/systems/tenstorrent-galaxy/specifications).
        let first_of_tray = [0, 2, 16, 18].contains(&id);
        Some(Pcie { generation: 4, lanes: if first_of_tray { 8 } else { 1 } })
    })
}
