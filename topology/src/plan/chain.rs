//! Cuts of the policy over a chain of chips: layers in order, the whole expert on the last chip.
//!
//! Dynamic programming over (chips used, layers placed). For throughput two numbers describe what happened so far, because
//! the cache of every prefix slice goes to the last chip whatever lies between: the busiest chip and the last chip's time
//! receiving. A state keeps every pair that no other pair beats in both numbers, so the result is the optimum over all cuts.
//! For latency it is one number, the sum of everything that is computed and sent: an upper bound, because that the first
//! denoising step overlaps with the prefix is left out.

use super::write;
use crate::cost::{CostModel, Route};
use crate::placement::{Edge, Payload, Pipeline, Slice};
use crate::workload::slice_memory;
use crate::{ChipId, LayerRange, StageKind};

/// What a cut is to be best in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Objective {
    /// Milliseconds from observation to actions when nothing overlaps.
    Latency,
    /// Milliseconds of the busiest chip.
    Bottleneck,
}

/// What goes on one chip, as a run of units: vision layers, prefix layers, then the expert as one unit.
#[derive(Debug, Clone, Copy)]
struct Segment {
    from: usize,
    to: usize,
}

/// A state's history: the pair of numbers, and where it came from.
#[derive(Debug, Clone, Copy)]
struct Entry {
    pair: (f64, f64),
    from: usize,
    index: usize,
}

/// Milliseconds and bytes of runs of layers on one chip; the same for every chain of equal chips.
pub(crate) struct LayerCosts {
    /// `[start][end - start]` of vision layers.
    vision: Vec<Vec<(f64, u64)>>,
    /// The same of prefix layers.
    prefix: Vec<Vec<(f64, u64)>>,
    expert_ms: f64,
}

impl LayerCosts {
    /// Costs on a chip; nothing when it is not on the board.
    pub(crate) fn new(model: &CostModel<'_>, template: &Slice, chip: ChipId) -> Option<Self> {
        let cost = |stage, start, end| -> Option<(f64, u64)> {
            let layers = LayerRange::new(start, end).ok()?;
            let cost = model.slice(&Slice { stage, layers, chips: vec![chip], ..template.clone() })?;
            Some((cost.total_ms(), cost.memory.total_bytes()))
        };
        let table = |stage| -> Vec<Vec<(f64, u64)>> {
            let layers = model.sizes.layers(stage);
            (0..layers)
                .map(|start| {
                    (start..=layers).map(|end| cost(stage, start, end).unwrap_or((0.0, 0))).collect()
                })
                .collect()
        };
        Some(Self {
            vision: table(StageKind::Vision),
            prefix: table(StageKind::Prefix),
            expert_ms: cost(StageKind::Expert, 0, model.sizes.layers(StageKind::Expert))?.0,
        })
    }
}

/// The problem for one chain of chips.
pub(crate) struct Chain<'a> {
    model: &'a CostModel<'a>,
    template: &'a Slice,
    chips: &'a [ChipId],
    costs: &'a LayerCosts,
    vision: usize,
    prefix: usize,
    /// Memory of the expert, with the cache of as many requests as keep these chips busy.
    expert_bytes: u64,
    /// `[chip][unit]`: handing over to the next chip when the cut lies before the unit.
    hand_over_ms: Vec<Vec<f64>>,
    /// `[chip][layers]`: sending the cache of so many layers to the last chip.
    cache_ms: Vec<Vec<f64>>,
}

impl<'a> Chain<'a> {
    /// Prepares the cost of every edge; nothing when a chip is not on the board.
    pub(crate) fn new(
        model: &'a CostModel<'a>,
        template: &'a Slice,
        chips: &'a [ChipId],
        costs: &'a LayerCosts,
    ) -> Option<Self> {
        chips.iter().try_for_each(|chip| model.board.chip(*chip).map(|_| ()))?;
        let layers = |stage| model.sizes.layers(stage);
        let (vision, prefix) = (layers(StageKind::Vision), layers(StageKind::Prefix));
        let all = LayerRange::new(0, layers(StageKind::Expert)).ok()?;
        let expert = Slice { stage: StageKind::Expert, layers: all, ..template.clone() };
        let in_flight = write::in_flight(chips.len(), model.request.batch);
        let mut chain = Self {
            model,
            template,
            chips,
            costs,
            vision,
            prefix,
            expert_bytes: slice_memory(model.sizes, &expert, &model.request, in_flight).total_bytes(),
            hand_over_ms: Vec::new(),
            cache_ms: Vec::new(),
        };
        let last = chips.len().checked_sub(1)?;
        chain.hand_over_ms = (0..last)
            .map(|chip| (0..chain.units()).map(|at| chain.hand_over_ms(chip, at)).collect())
            .collect();
        chain.cache_ms = (0..=last)
            .map(|chip| {
                let sent = |layers| {
                    chain.edge_ms(chip, StageKind::Prefix, last, StageKind::Expert, Payload::Cache, layers)
                };
                let none = std::iter::once(0.0);
                none.chain((1..=prefix).map(|layers| sent(layers).unwrap_or(0.0))).collect()
            })
            .collect();
        Some(chain)
    }

    fn units(&self) -> usize {
        self.vision + self.prefix + 1
    }

    /// The best cut, or nothing when the policy does not fit these chips.
    pub(crate) fn best(&self, objective: Objective) -> Option<Pipeline> {
        let (chips, units) = (self.chips.len(), self.units());
        if chips > units {
            return None;
        }
        let mut states: Vec<Vec<Vec<Entry>>> = vec![vec![Vec::new(); units + 1]; chips + 1];
        states[0][0].push(Entry { pair: (0.0, 0.0), from: 0, index: 0 });
        for chip in 0..chips {
            for from in 0..units {
                self.grow(objective, chip, from, &mut states);
            }
        }
        let finished = &states[chips][units];
        let mut index =
            (0..finished.len()).min_by(|a, b| finished[*a].pair.0.total_cmp(&finished[*b].pair.0))?;
        let mut segments = Vec::new();
        let mut to = units;
        for chip in (1..=chips).rev() {
            let entry = states[chip][to][index];
            segments.push(Segment { from: entry.from, to });
            (to, index) = (entry.from, entry.index);
        }
        segments.reverse();
        Some(self.pipeline(&segments))
    }

    /// Every segment that one more chip can take after `from` units.
    fn grow(&self, objective: Objective, chip: usize, from: usize, states: &mut [Vec<Vec<Entry>>]) {
        let units = self.units();
        let (before, after) = states.split_at_mut(chip + 1);
        // The last chip takes all that is left, the others leave something.
        let ends = if chip + 1 == self.chips.len() { units..units + 1 } else { from + 1..units };
        for (index, entry) in before[chip][from].iter().enumerate() {
            for (to, entries) in after[0].iter_mut().enumerate().take(ends.end).skip(ends.start) {
                if let Some(pair) = self.extend(objective, chip, Segment { from, to }, entry.pair) {
                    keep(entries, Entry { pair, from, index });
                }
            }
        }
    }

    /// The pair after one more chip; nothing when its segment does not fit its memory.
    fn extend(
        &self,
        objective: Objective,
        chip: usize,
        segment: Segment,
        pair: (f64, f64),
    ) -> Option<(f64, f64)> {
        let (layers_ms, bytes) = self.layers_cost(segment);
        let last = segment.to == self.units();
        let (expert_ms, expert_bytes) =
            if last { (self.costs.expert_ms, self.expert_bytes) } else { (0.0, 0) };
        if bytes + expert_bytes > self.model.board.chip(self.chips[chip])?.spec.dram_bytes {
            return None;
        }
        let arriving = if segment.from == 0 { 0.0 } else { self.hand_over_ms[chip - 1][segment.from] };
        let sent = self.cache_ms(chip, segment);
        match objective {
            Objective::Latency => Some((pair.0 + arriving + layers_ms + sent + expert_ms, 0.0)),
            Objective::Bottleneck => {
                let leaving = if last { 0.0 } else { self.hand_over_ms[chip][segment.to] };
                let busy = layers_ms + expert_ms + arriving + leaving + sent;
                Some(if last { (pair.0.max(busy + pair.1), 0.0) } else { (pair.0.max(busy), pair.1 + sent) })
            }
        }
    }

    fn layers_cost(&self, segment: Segment) -> (f64, u64) {
        let part = |costs: &[Vec<(f64, u64)>], first: usize, count: usize| {
            let start = segment.from.clamp(first, first + count) - first;
            let end = segment.to.clamp(first, first + count) - first;
            if start < end { costs[start][end - start] } else { (0.0, 0) }
        };
        let vision = part(&self.costs.vision, 0, self.vision);
        let prefix = part(&self.costs.prefix, self.vision, self.prefix);
        (vision.0 + prefix.0, vision.1 + prefix.1)
    }

    /// Milliseconds to hand over from a chip to the next when the cut lies before unit `at`.
    fn hand_over_ms(&self, chip: usize, at: usize) -> f64 {
        let expert_starts = self.vision + self.prefix;
        if at == expert_starts {
            return 0.0;
        }
        let (from_stage, to_stage, payload) = match at {
            at if at < self.vision => (StageKind::Vision, StageKind::Vision, Payload::Hidden),
            at if at == self.vision => (StageKind::Vision, StageKind::Prefix, Payload::ImageTokens),
            _ => (StageKind::Prefix, StageKind::Prefix, Payload::Hidden),
        };
        self.edge_ms(chip, from_stage, chip + 1, to_stage, payload, 0).unwrap_or(0.0)
    }

    /// Milliseconds to send the segment's cache to the last chip.
    fn cache_ms(&self, chip: usize, segment: Segment) -> f64 {
        let first = self.vision;
        let start = segment.from.clamp(first, first + self.prefix);
        let end = segment.to.clamp(first, first + self.prefix);
        self.cache_ms[chip][end.saturating_sub(start)]
    }

    /// Milliseconds of an edge between two chips of the chain; nothing when they are the same.
    fn edge_ms(
        &self,
        from: usize,
        from_stage: StageKind,
        to: usize,
        to_stage: StageKind,
        payload: Payload,
        layers: usize,
    ) -> Option<f64> {
        let one = LayerRange::new(0, 1).ok()?;
        let slice = |stage, chip: usize| Slice {
            stage,
            layers: one,
            chips: vec![self.chips[chip]],
            ..self.template.clone()
        };
        let pair = Pipeline { slices: vec![slice(from_stage, from), slice(to_stage, to)] };
        let cost = self.model.edge(&pair, &Edge { from: 0, to: 1, payload, layers });
        (cost.route != Route::Local).then_some(cost.transfer_ms * cost.times as f64)
    }

    fn pipeline(&self, segments: &[Segment]) -> Pipeline {
        let mut slices = Vec::new();
        for (segment, chip) in segments.iter().zip(self.chips) {
            let mut part = |stage, first: usize, count: usize| {
                let start = segment.from.clamp(first, first + count) - first;
                let end = segment.to.clamp(first, first + count) - first;
                if let Ok(layers) = LayerRange::new(start, end) {
                    slices.push(Slice { stage, layers, chips: vec![*chip], ..self.template.clone() });
                }
            };
            part(StageKind::Vision, 0, self.vision);
            part(StageKind::Prefix, self.vision, self.prefix);
            if segment.to == self.units() {
                let layers = self.model.sizes.layers(StageKind::Expert);
                if let Ok(layers) = LayerRange::new(0, layers) {
                    slices.push(Slice {
                        stage: StageKind::Expert,
                        layers,
                        chips: vec![*chip],
                        ..self.template.clone()
                    });
                }
            }
        }
        Pipeline::new(slices)
    }
}

/// Adds an entry unless one is at least as good in both numbers; drops those it is at least as good as.
fn keep(entries: &mut Vec<Entry>, new: Entry) {
    let no_worse = |a: (f64, f64), b: (f64, f64)| a.0 <= b.0 && a.1 <= b.1;
    if entries.iter().any(|entry| no_worse(entry.pair, new.pair)) {
        return;
    }
    // Entries of a finished state are never pointed at by index before the state is complete.
    entries.retain(|entry| !no_worse(new.pair, entry.pair));
    entries.push(new);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cost::{PipelineCost, SliceCost};
    use crate::workload::RequestShape;
    use crate::{Calibration, ModelSizes, Preset, Variant};

    /// Everything a chain computes and sends, one after another.
    fn without_overlap_ms(cost: &PipelineCost) -> f64 {
        let slices: f64 = cost.slices.iter().map(SliceCost::total_ms).sum();
        let edges: f64 = cost.edges.iter().map(|edge| edge.transfer_ms * edge.times as f64).sum();
        slices + edges
    }

    /// Every way to cut `units` into `chips` runs.
    fn cuts(units: usize, chips: usize) -> Vec<Vec<Segment>> {
        fn go(from: usize, units: usize, chips: usize, head: &mut Vec<Segment>, out: &mut Vec<Vec<Segment>>) {
            if chips == 1 {
                let mut cut = head.clone();
                cut.push(Segment { from, to: units });
                return out.push(cut);
            }
            for to in from + 1..=units - (chips - 1) {
                head.push(Segment { from, to });
                go(to, units, chips - 1, head, out);
                head.pop();
            }
        }
        let mut out = Vec::new();
        go(0, units, chips, &mut Vec::new(), &mut out);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// The dynamic programme finds what trying every cut finds: in the busiest chip by the cost model's own
        /// reckoning, in latency by a sum that the cost model never exceeds.
        #[test]
        fn optimal_against_brute_force(
            vision in 1_usize..5,
            prefix in 1_usize..5,
            chips in 1_usize..5,
            mlp in 1_usize..64,
            cameras in 1_usize..4,
            steps in 1_usize..12,
            batch in 1_usize..5,
            board in prop::sample::select(vec![Preset::T3000, Preset::LoudBoxBh, Preset::QuietBoxBh]),
        ) {
            let base = ModelSizes::base(Variant::Pi05);
            let mut sizes = base;
            sizes.vision.layers = vision;
            sizes.vlm.layers = prefix;
            sizes.expert.layers = prefix;
            sizes.vlm.mlp = 512 * mlp;
            let board = board.board();
            let calibration = Calibration::default();
            let request = RequestShape { cameras, prompt_tokens: 40, steps, batch };
            let model = CostModel::new(&board, &sizes, request, &calibration);
            let ids = board.chains().remove(0);
            let ids = &ids[..chips.min(ids.len())];
            let template = Slice::on(StageKind::Vision, LayerRange::new(0, 1).unwrap(), ids[0]);
            let costs;
            let chain = {
                costs = LayerCosts::new(&model, &template, ids[0]).unwrap();
                Chain::new(&model, &template, ids, &costs).unwrap()
            };
            for objective in [Objective::Latency, Objective::Bottleneck] {
                let value = |pipeline: &Pipeline| {
                    let cost = model.pipeline(pipeline).unwrap();
                    let bound_ms = without_overlap_ms(&cost);
                    let io_ms = calibration.published.request_io_ms;
                    assert!(cost.latency_ms <= (bound_ms + io_ms) * (1.0 + 1e-9), "{pipeline:?}");
                    match objective {
                        Objective::Latency => bound_ms,
                        Objective::Bottleneck => cost.bottleneck_ms,
                    }
                };
                let found = chain.best(objective).map(|pipeline| value(&pipeline));
                let all = if ids.len() <= chain.units() { cuts(chain.units(), ids.len()) } else { Vec::new() };
                let brute = all.iter().map(|cut| value(&chain.pipeline(cut))).min_by(f64::total_cmp);
                match (found, brute) {
                    (Some(found), Some(brute)) => prop_assert!((found / brute - 1.0).abs() < 1e-9, "{found} against {brute}"),
                    (found, brute) => prop_assert_eq!(found, brute),
                }
            }
        }
    }
}
