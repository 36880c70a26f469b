//! Placements of one policy that are not a plain chain: cameras side by side, prefix and expert cut alike, tensor splits.

use crate::placement::{Pipeline, Residence, Slice, Split, Transport};
use crate::{ChipId, LayerRange, ModelSizes, StageKind};

/// Those without a tensor split, for a group of linked chips in order.
pub(super) fn shapes(sizes: &ModelSizes, template: &Slice, chips: &[ChipId]) -> Vec<Pipeline> {
    let shapes = Shapes { sizes, template };
    match chips {
        [a, b] => shapes.pairs(*a, *b),
        [a, b, c] => shapes.threes(*a, *b, *c),
        _ => Vec::new(),
    }
}

/// Those with a prefix tensor-split over a straight run of `line` chips; `chips` is that run, or that run and the one
/// beside it.
pub(super) fn tensor(sizes: &ModelSizes, template: &Slice, chips: &[ChipId], line: usize) -> Vec<Pipeline> {
    let shapes = Shapes { sizes, template };
    if line < 2 || chips.len() < line {
        return Vec::new();
    }
    let (line, beside) = chips.split_at(line);
    shapes.tensor(line, beside)
}

struct Shapes<'a> {
    sizes: &'a ModelSizes,
    template: &'a Slice,
}

impl Shapes<'_> {
    fn part(
        &self,
        stage: StageKind,
        start: usize,
        end: usize,
        chips: &[ChipId],
        split: Split,
    ) -> Option<Slice> {
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
        let visions =
            [self.cameras(&[a, b]), self.whole(StageKind::Vision, a), self.whole(StageKind::Vision, b)];
        for expert in [a, b] {
            let slices = [
                self.cameras(&[a, b]),
                self.whole(StageKind::Prefix, a),
                self.whole(StageKind::Expert, expert),
            ];
            found.extend(pipeline(slices));
        }
        let layers = self.sizes.layers(StageKind::Prefix);
        for vision in &visions {
            for cut in 1..layers {
                for residence in [Residence::Dram, Residence::L1] {
                    let decoder =
                        |stage, start, end, chip| self.part(stage, start, end, &[chip], Split::Whole);
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
                pipeline([
                    vision.clone(),
                    self.whole(StageKind::Prefix, b),
                    self.whole(StageKind::Expert, expert),
                ])
            })
            .collect()
    }

    /// Cameras and a tensor-split prefix over a run; the expert on its first chip, or streamed through the L1 of a loop of
    /// neighbours: the first chips of the run there, the chips beside them back; or only of the chips beside, which can
    /// follow the prefix and close their loop over the host. The cache is on every chip of the run and one link from
    /// every chip beside it.
    fn tensor(&self, line: &[ChipId], beside: &[ChipId]) -> Vec<Pipeline> {
        let vision = self.cameras(line);
        let layers = self.sizes.layers(StageKind::Prefix);
        let prefix = self.part(StageKind::Prefix, 0, layers, line, Split::Tensor);
        if beside.is_empty() {
            return pipeline([vision, prefix, self.whole(StageKind::Expert, line[0])]).into_iter().collect();
        }
        let with = |expert: Vec<Slice>| -> Option<Pipeline> {
            let slices = [vision.clone()?, prefix.clone()?].into_iter().chain(expert);
            Some(Pipeline::new(slices.collect()))
        };
        let loops = (1..=line.len()).filter_map(|length| {
            let there = line[..length].iter();
            let back = beside[..length].iter().rev();
            with(self.streamed(&there.chain(back).copied().collect::<Vec<_>>())?)
        });
        // Two beside would close their loop over their own link, but not even a Blackhole holds half the expert in L1.
        let followers = (3..=line.len()).filter_map(|length| {
            let mut expert = self.streamed(&beside[..length])?;
            expert.last_mut()?.transport = Transport::Host;
            with(expert)
        });
        loops.chain(followers).collect()
    }

    /// The expert's layers over chips in order, as evenly as they go, with weights in L1.
    fn streamed(&self, chips: &[ChipId]) -> Option<Vec<Slice>> {
        let layers = self.sizes.layers(StageKind::Expert);
        let cut = |at: usize| at * layers / chips.len();
        let slice = |(at, chip): (usize, &ChipId)| {
            let slice = self.part(StageKind::Expert, cut(at), cut(at + 1), &[*chip], Split::Whole)?;
            Some(Slice { residence: Residence::L1, ..slice })
        };
        chips.iter().enumerate().map(slice).collect()
    }
}

fn pipeline<const N: usize>(slices: [Option<Slice>; N]) -> Option<Pipeline> {
    Some(Pipeline::new(slices.into_iter().collect::<Option<Vec<Slice>>>()?))
}
