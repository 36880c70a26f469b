//! Placements of one policy that are not a plain chain: cameras side by side, prefix and expert cut alike, tensor splits.

use crate::placement::{Pipeline, Residence, Slice, Split};
use crate::{ChipId, LayerRange, ModelSizes, StageKind};

/// All of them for a group of linked chips in order.
pub(super) fn shapes(sizes: &ModelSizes, template: &Slice, chips: &[ChipId], tensor: bool) -> Vec<Pipeline> {
    let shapes = Shapes { sizes, template };
    let mut found = match chips {
        [a, b] => shapes.pairs(*a, *b),
        [a, b, c] => shapes.threes(*a, *b, *c),
        _ => Vec::new(),
    };
    if tensor && chips.len() >= 2 {
        found.extend(shapes.tensor(chips));
    }
    found
}

struct Shapes<'a> {
    sizes: &'a ModelSizes,
    template: &'a Slice,
}

impl Shapes<'_> {
    fn part(&self, stage: StageKind, start: usize, end: usize, chips: &[ChipId], split: Split) -> Option<Slice> {
        let layers = LayerRange::new(start, end).ok()?;
        Some(Slice { stage, layers, chips: chips.to_vec(), split, ..self.template.clone() })
    }

    fn whole(&self, stage: StageKind, chip: ChipId) -> Option<Slice> {
        self.part(stage, 0, self.sizes.layers(stage), &[chip], Split::Whole)
    }

    fn cameras(&self, chips: &[ChipId]) -> Option<Slice> {
        self.part(StageKind::Vision, 0, self.sizes.layers(StageKind::Vision), chips, Split::Cameras)
    }

    /// Cameras over both chips, the rest on either; or the decoder layers of both stages cut at the same layer, so that
    /// no cache moves, with the expert in DRAM or in L1.
    fn pairs(&self, a: ChipId, b: ChipId) -> Vec<Pipeline> {
        let mut found = Vec::new();
        let visions = [self.cameras(&[a, b]), self.whole(StageKind::Vision, a), self.whole(StageKind::Vision, b)];
        for expert in [a, b] {
            let slices = [self.cameras(&[a, b]), self.whole(StageKind::Prefix, a), self.whole(StageKind::Expert, expert)];
            found.extend(pipeline(slices));
        }
        let layers = self.sizes.layers(StageKind::Prefix);
        for vision in &visions {
            for cut in 1..layers {
                for residence in [Residence::Dram, Residence::L1] {
                    let decoder = |stage, start, end, chip| self.part(stage, start, end, &[chip], Split::Whole);
                    let expert = |start, end, chip| {
                        Some(Slice { residence, ..decoder(StageKind::Expert, start, end, chip)? })
                    };
                    found.extend(pipeline([
                        vision.clone(),
                        decoder(StageKind::Prefix, 0, cut, a),
                        decoder(StageKind::Prefix, cut, layers, b),
                        expert(0, cut, a),
                        expert(cut, layers, b),
                    ]));
                }
            }
        }
        found
    }

    /// Cameras over three chips, the prefix on the middle one, the expert on any.
    fn threes(&self, a: ChipId, b: ChipId, c: ChipId) -> Vec<Pipeline> {
        let vision = self.cameras(&[a, b, c]);
        [a, b, c]
            .into_iter()
            .filter_map(|expert| {
                pipeline([vision.clone(), self.whole(StageKind::Prefix, b), self.whole(StageKind::Expert, expert)])
            })
            .collect()
    }

    /// Cameras and a tensor-split prefix over all chips, the expert on one, or on the first two in L1.
    fn tensor(&self, chips: &[ChipId]) -> Vec<Pipeline> {
        let layers = |stage| self.sizes.layers(stage);
        let vision = self.cameras(chips);
        let prefix = self.part(StageKind::Prefix, 0, layers(StageKind::Prefix), chips, Split::Tensor);
        let one = pipeline([vision.clone(), prefix.clone(), self.whole(StageKind::Expert, chips[0])]);
        let half = layers(StageKind::Expert) / 2;
        let resident = |start, end, chip| {
            let slice = self.part(StageKind::Expert, start, end, &[chip], Split::Whole)?;
            Some(Slice { residence: Residence::L1, ..slice })
        };
        let ends = (resident(0, half, chips[0]), resident(half, layers(StageKind::Expert), chips[1]));
        let two = pipeline([vision, prefix, ends.0, ends.1]);
        one.into_iter().chain(two).collect()
    }
}

fn pipeline<const N: usize>(slices: [Option<Slice>; N]) -> Option<Pipeline> {
    Some(Pipeline::new(slices.into_iter().collect::<Option<Vec<Slice>>>()?))
}
