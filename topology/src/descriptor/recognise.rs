//! Which preset a descriptor describes.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{BoardType, Cluster, MeshGraph};
use crate::{Arch, Preset};

/// The nearest preset, and what is different from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recognition {
    /// Name of the nearest preset; none when no preset has this architecture and number of chips.
    pub preset: Option<&'static str>,
    /// Differences in words; empty when it is that preset.
    pub differences: Vec<String>,
}

impl Recognition {
    /// Whether the machine is a preset without any difference.
    pub fn is_exact(&self) -> bool {
        self.preset.is_some() && self.differences.is_empty()
    }
}

pub(super) fn cluster(cluster: &Cluster) -> Recognition {
    let board = cluster.board();
    let types: BTreeSet<BoardType> = cluster.chips.values().filter_map(|chip| chip.board).collect();
    let Some(preset) = by_boards(&types, cluster.chips.len()) else {
        let near = by_shape(board.arch(), cluster.chips.len());
        let mut differences =
            vec![format!("no preset is {} chips of {}", cluster.chips.len(), names(&types))];
        differences.extend(near.map(|preset| format!("nearest: {}", preset.title())));
        return Recognition { preset: near.map(Preset::name), differences };
    };
    let mut differences = Vec::new();
    let expected = preset.board();
    if board.shape != expected.shape {
        let wanted = expected.shape.map_or_else(String::new, |(rows, cols)| format!("{rows}×{cols}"));
        differences.push(format!("its {} links do not form the {wanted} mesh", board.links().len()));
    }
    let wraps = board.links().iter().filter(|link| link.wraps).count();
    if wraps > 0 {
        differences.push(format!("{wraps} links close rows or columns into rings"));
    }
    let lanes = |board: &crate::Board| board.links().iter().map(|link| link.lanes).min();
    if lanes(&board) != lanes(&expected) && board.shape == expected.shape {
        let written = |lanes: Option<u32>| lanes.unwrap_or(0);
        differences.push(format!(
            "{} lanes on its thinnest link instead of {}",
            written(lanes(&board)),
            written(lanes(&expected))
        ));
    }
    let cores = |board: &crate::Board| {
        let cores: Vec<u32> = board.chips().iter().map(|chip| chip.spec.cores).collect();
        (cores.iter().copied().min().unwrap_or(0), cores.iter().copied().max().unwrap_or(0))
    };
    if cores(&board) != cores(&expected) {
        let ((low, high), (usual, _)) = (cores(&board), cores(&expected));
        let found = if low == high { low.to_string() } else { format!("{low} to {high}") };
        differences.push(format!("{found} usable cores a chip instead of {usual}"));
    }
    if cluster.remote_links > 0 {
        differences.push(format!("{} links leave the machine", cluster.remote_links));
    }
    Recognition { preset: Some(preset.name()), differences }
}

pub(super) fn mesh_graph(graph: &MeshGraph) -> Recognition {
    let [mesh] = &graph.meshes[..] else {
        let chips = graph.board().chips().len();
        let near = by_shape(graph.meshes[0].descriptor.arch, chips);
        return Recognition {
            preset: near.map(Preset::name),
            differences: vec![format!(
                "{} meshes joined by {} connections",
                graph.meshes.len(),
                graph.joins.len()
            )],
        };
    };
    let descriptor = &mesh.descriptor;
    let (rows, cols) = descriptor.shape;
    let Some(preset) = by_shape(descriptor.arch, (rows * cols) as usize) else {
        return Recognition {
            preset: None,
            differences: vec![format!("no preset is a {rows}×{cols} mesh of {}", descriptor.arch)],
        };
    };
    let mut differences = Vec::new();
    let expected = preset.board();
    if expected.shape != Some(descriptor.shape) {
        differences.push(format!("cut as a {rows}×{cols} mesh"));
    }
    let lanes = expected.links().iter().map(|link| link.lanes).min();
    if lanes.is_some_and(|lanes| lanes != descriptor.channels) {
        differences.push(format!(
            "asks for {} lanes between neighbours instead of {}",
            descriptor.channels,
            lanes.unwrap_or(0)
        ));
    }
    if descriptor.rings.0 || descriptor.rings.1 {
        differences.push("closes rows or columns into rings".to_owned());
    }
    if graph.hosts() > 1 {
        differences.push(format!("spread over {} hosts", graph.hosts()));
    }
    Recognition { preset: Some(preset.name()), differences }
}

fn by_boards(types: &BTreeSet<BoardType>, chips: usize) -> Option<Preset> {
    let one = types.iter().next().filter(|_| types.len() == 1)?;
    match (one, chips) {
        (BoardType::N150, 1) => Some(Preset::N150),
        (BoardType::N300, 2) => Some(Preset::N300),
        (BoardType::N300, 8) => Some(Preset::T3000),
        (BoardType::UbbWormhole, 32) => Some(Preset::GalaxyWh),
        (BoardType::P100, 1) => Some(Preset::P100a),
        (BoardType::P150, 1) => Some(Preset::P150a),
        (BoardType::P150, 4) => Some(Preset::QuietBoxBh),
        (BoardType::P150, 8) => Some(Preset::LoudBoxBh),
        (BoardType::P300, 2) => Some(Preset::P300),
        (BoardType::P300, 4) => Some(Preset::QuietBox2),
        (BoardType::UbbBlackhole, 32) => Some(Preset::GalaxyBh),
        _ => None,
    }
}

fn by_shape(arch: Arch, chips: usize) -> Option<Preset> {
    match (arch, chips) {
        (Arch::Wormhole, 1) => Some(Preset::N150),
        (Arch::Wormhole, 2) => Some(Preset::N300),
        (Arch::Wormhole, 8) => Some(Preset::T3000),
        (Arch::Wormhole, 32) => Some(Preset::GalaxyWh),
        (Arch::Blackhole, 1) => Some(Preset::P150a),
        (Arch::Blackhole, 2) => Some(Preset::P300),
        (Arch::Blackhole, 4) => Some(Preset::QuietBoxBh),
        (Arch::Blackhole, 8) => Some(Preset::LoudBoxBh),
        (Arch::Blackhole, 32) => Some(Preset::GalaxyBh),
        _ => None,
    }
}

fn names(types: &BTreeSet<BoardType>) -> String {
    if types.is_empty() {
        return "unnamed boards".to_owned();
    }
    types.iter().map(|kind| format!("{kind:?}").to_lowercase()).collect::<Vec<_>>().join(" and ")
}
