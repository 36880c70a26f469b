//! Placements that people made by hand and measured.

use serde::Deserialize;

use crate::placement::{Pipeline, Residence, Slice, Split};
use crate::{ChipId, LayerRange, ModelSizes, StageKind};

/// Which hand placement a measurement was taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandPlacement {
    /// The whole policy on one chip.
    Chip,
    /// The vision tower alone on one chip.
    Vision,
    /// The prefix alone, tensor-split when over several chips.
    Prefill,
    /// The denoising loop alone, its layers over a chain of chips with weights in L1.
    Denoise,
    /// Cameras over a row of eight, tensor-split prefix on the same eight, expert on the first.
    #[serde(rename = "row-of-8")]
    RowOf8,
    /// The same without the expert, which is streamed over the eight chips of the next row.
    #[serde(rename = "two-rows-of-8")]
    TwoRowsOf8,
    /// Four vision chips, one VLM layer on each of eighteen, three expert layers on each of six.
    #[serde(rename = "snake-of-28")]
    SnakeOf28,
}

impl HandPlacement {
    /// The pipeline, on chips numbered row by row in a 2×8 mesh (8×4 for the snake).
    pub fn pipeline(self, sizes: &ModelSizes, chips: u32) -> Pipeline {
        let whole = |stage| Slice::on(stage, all(sizes, stage), ChipId(0));
        let row = |first: u32, count: u32| (first..first + count).map(ChipId).collect::<Vec<_>>();
        let cameras = whole(StageKind::Vision).shared(row(0, 8), Split::Cameras);
        let tensor = |count| whole(StageKind::Prefix).shared(row(0, count), Split::Tensor);
        Pipeline::new(match self {
            HandPlacement::Chip => StageKind::ALL.map(whole).to_vec(),
            HandPlacement::Vision => vec![whole(StageKind::Vision)],
            HandPlacement::Prefill if chips > 1 => vec![tensor(chips)],
            HandPlacement::Prefill => vec![whole(StageKind::Prefix)],
            HandPlacement::Denoise if chips > 1 => streamed(sizes, &row(0, chips)),
            HandPlacement::Denoise => vec![whole(StageKind::Expert)],
            HandPlacement::RowOf8 => vec![cameras, tensor(8), whole(StageKind::Expert)],
            HandPlacement::TwoRowsOf8 => {
                let mut slices = streamed(sizes, &row(8, 8));
                slices.extend([cameras, tensor(8)]);
                slices
            }
            HandPlacement::SnakeOf28 => snake_of_28(sizes),
        })
    }
}

fn all(sizes: &ModelSizes, stage: StageKind) -> LayerRange {
    LayerRange::new(0, sizes.layers(stage)).expect("every stage of a policy has layers")
}

/// Layers of a stage over chips in order, as evenly as they go.
fn spread(sizes: &ModelSizes, stage: StageKind, chips: &[ChipId]) -> Vec<Slice> {
    let layers = sizes.layers(stage);
    let cut = |at: usize| at * layers / chips.len();
    chips
        .iter()
        .enumerate()
        .filter_map(|(at, chip)| Some(Slice::on(stage, LayerRange::new(cut(at), cut(at + 1)).ok()?, *chip)))
        .collect()
}

fn streamed(sizes: &ModelSizes, chips: &[ChipId]) -> Vec<Slice> {
    let resident = |slice| Slice { residence: Residence::L1, ..slice };
    spread(sizes, StageKind::Expert, chips).into_iter().map(resident).collect()
}

/// Prefill snakes through three columns, six rows; denoising goes down the fourth; vision is the row below.
fn snake_of_28(sizes: &ModelSizes) -> Vec<Slice> {
    let at = |row: u32, col: u32| ChipId(4 * row + col);
    let prefix: Vec<ChipId> = (0..6)
        .rev()
        .flat_map(|row: u32| {
            let cols: [u32; 3] = if row % 2 == 1 { [2, 1, 0] } else { [0, 1, 2] };
            cols.map(|col| at(row, col))
        })
        .collect();
    let denoise: Vec<ChipId> = (0..6).rev().map(|row| at(row, 3)).collect();
    let mut slices = spread(sizes, StageKind::Vision, &[at(6, 0), at(6, 1), at(6, 2)]);
    slices.extend(spread(sizes, StageKind::Prefix, &prefix));
    slices.extend(streamed(sizes, &denoise));
    slices
}
