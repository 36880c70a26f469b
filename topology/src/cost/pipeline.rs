//! Latency and throughput of a whole pipeline.

use std::collections::BTreeMap;

use serde::Serialize;

use super::critical_path::critical_path_ms;
use super::{CostModel, EdgeCost, PassCost, Route, SliceCost};
use crate::placement::{Payload, Pipeline};
use crate::{Arch, ChipId, StageKind};

/// What a pipeline costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PipelineCost {
    /// From observation to actions with nothing else in flight.
    pub latency_ms: f64,
    /// Time per request on the busiest chip.
    pub bottleneck_ms: f64,
    /// The busiest chip.
    pub bottleneck_chip: ChipId,
    /// The slice that keeps it busiest, by its place in the pipeline.
    pub bottleneck_slice: usize,
    /// Requests per second with enough of them in flight.
    pub requests_per_s: f64,
    /// Slices in the order of the pipeline.
    pub slices: Vec<SliceCost>,
    /// Edges.
    pub edges: Vec<EdgeCost>,
}

impl CostModel<'_> {
    /// Latency, throughput and their parts; nothing when a chip is not on the board or there is no slice.
    pub fn pipeline(&self, pipeline: &Pipeline) -> Option<PipelineCost> {
        let slices: Vec<SliceCost> =
            pipeline.slices.iter().map(|slice| self.slice(slice)).collect::<Option<_>>()?;
        let edges: Vec<EdgeCost> = pipeline.edges().iter().map(|edge| self.edge(pipeline, edge)).collect();
        let busy = busy_ms(pipeline, &slices, &edges);
        let (bottleneck_chip, bottleneck_ms) = busy
            .iter()
            .map(|(chip, ms)| (*chip, *ms))
            .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))?;
        let (bottleneck_slice, _) = pipeline
            .slices
            .iter()
            .enumerate()
            .filter(|(_, slice)| slice.chips.contains(&bottleneck_chip))
            .max_by(|a, b| slices[a.0].total_ms().total_cmp(&slices[b.0].total_ms()))?;
        let whole = StageKind::ALL.iter().all(|stage| pipeline.of(*stage).next().is_some());
        let host = self.board.arch() == Arch::Host;
        let io_ms = if whole && !host { self.calibration.published.request_io_ms } else { 0.0 };
        let batch = self.request.batch as f64;
        let alone_ms = if self.layerwise { critical_path_ms } else { stage_by_stage_ms };
        Some(PipelineCost {
            latency_ms: io_ms + alone_ms(pipeline, &slices, &edges),
            bottleneck_ms: bottleneck_ms / batch,
            bottleneck_chip,
            bottleneck_slice,
            requests_per_s: 1e3 * batch / bottleneck_ms,
            slices,
            edges,
        })
    }

    /// Sum of the parts of all passes on one request's way, for fitting and for reports.
    pub fn parts(&self, pipeline: &Pipeline) -> Option<PassCost> {
        pipeline.slices.iter().try_fold(PassCost::default(), |sum, slice| {
            let cost = self.slice(slice)?;
            Some(sum.add(cost.pass.times(cost.passes as f64)))
        })
    }
}

/// Time each chip works on one request: its slices, and both ends of every transfer.
fn busy_ms(pipeline: &Pipeline, slices: &[SliceCost], edges: &[EdgeCost]) -> BTreeMap<ChipId, f64> {
    let mut busy = BTreeMap::new();
    for (slice, cost) in pipeline.slices.iter().zip(slices) {
        for chip in &slice.chips {
            *busy.entry(*chip).or_default() += cost.total_ms();
        }
    }
    for edge in edges.iter().filter(|edge| edge.route != Route::Local) {
        for end in [edge.from, edge.to] {
            for chip in &pipeline.slices[end].chips {
                *busy.entry(*chip).or_default() += edge.transfer_ms * edge.times as f64;
            }
        }
    }
    busy
}

/// Finishing times along the graph of a program that sends a slice's cache at once and starts the expert when the last of
/// it has come.
fn stage_by_stage_ms(pipeline: &Pipeline, slices: &[SliceCost], edges: &[EdgeCost]) -> f64 {
    let mut finished = vec![0.0_f64; slices.len()];
    for (place, slice) in pipeline.slices.iter().enumerate() {
        if slice.stage == StageKind::Expert {
            continue;
        }
        let started = edges
            .iter()
            .filter(|edge| edge.to == place)
            .map(|edge| finished[edge.from] + edge.transfer_ms)
            .fold(0.0, f64::max);
        finished[place] = started + slices[place].total_ms();
    }
    let cached = edges
        .iter()
        .filter(|edge| edge.payload == Payload::Cache)
        .map(|edge| finished[edge.from] + edge.transfer_ms)
        .fold(0.0, f64::max);
    let start = finished.iter().copied().fold(cached, f64::max);
    let denoising: f64 = pipeline.of(StageKind::Expert).map(|(place, _)| slices[place].total_ms()).sum();
    let steps: f64 = edges
        .iter()
        .filter(|edge| edge.payload == Payload::Step)
        .map(|edge| edge.transfer_ms * edge.times as f64)
        .sum();
    start + denoising + steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::workload::RequestShape;
    use crate::{Calibration, LayerRange, ModelSizes, Preset, Slice, Variant};

    /// Costs of a pipeline that hands over layer by layer, and of one that does not.
    fn both(preset: Preset, slices: Vec<Slice>) -> (PipelineCost, PipelineCost) {
        let (board, sizes) = (preset.board(), ModelSizes::base(Variant::Pi05));
        let model = CostModel::new(&board, &sizes, RequestShape::of(&sizes), Calibration::shipped());
        let pipeline = Pipeline::new(slices);
        let plain = CostModel { layerwise: false, ..model };
        (model.pipeline(&pipeline).unwrap(), plain.pipeline(&pipeline).unwrap())
    }

    fn whole(stage: StageKind, chip: u32) -> Slice {
        let layers = ModelSizes::base(Variant::Pi05).layers(stage);
        Slice::on(stage, LayerRange::new(0, layers).unwrap(), ChipId(chip))
    }

    fn edges_ms(cost: &PipelineCost, test: impl Fn(&EdgeCost) -> bool) -> f64 {
        cost.edges.iter().filter(|edge| test(edge)).map(|edge| edge.transfer_ms * edge.times as f64).sum()
    }

    fn io_ms() -> f64 {
        Calibration::shipped().published.request_io_ms
    }

    #[test]
    fn on_one_chip_nothing_overlaps() {
        let (layerwise, plain) = both(Preset::P150a, StageKind::ALL.map(|stage| whole(stage, 0)).to_vec());
        let sum: f64 = layerwise.slices.iter().map(SliceCost::total_ms).sum();
        assert!((layerwise.latency_ms - io_ms() - sum).abs() < 1e-9);
        assert!((plain.latency_ms - io_ms() - sum).abs() < 1e-9);
        assert!((layerwise.bottleneck_ms - plain.bottleneck_ms).abs() < 1e-9);
    }

    #[test]
    fn three_chips_hide_all_of_the_first_step_but_its_last_layer() {
        let slices =
            vec![whole(StageKind::Vision, 0), whole(StageKind::Prefix, 1), whole(StageKind::Expert, 2)];
        let (layerwise, _) = both(Preset::LoudBoxBh, slices);
        let sum =
            layerwise.slices.iter().map(SliceCost::total_ms).sum::<f64>() + edges_ms(&layerwise, |_| true);
        let step_ms = layerwise.slices[2].pass.total_ms();
        let expected = io_ms() + sum - step_ms * 17.0 / 18.0;
        assert!((layerwise.latency_ms - expected).abs() < 1e-9, "{} {expected}", layerwise.latency_ms);
    }

    #[test]
    fn the_cache_is_sent_in_as_many_transfers_as_it_has_layers() {
        let slices = vec![whole(StageKind::Prefix, 0), whole(StageKind::Expert, 1)];
        let (layerwise, plain) = both(Preset::LoudBoxBh, slices);
        let (each, all) = (layerwise.edges[0], plain.edges[0]);
        assert_eq!((each.times, all.times, each.bytes * 18), (18, 1, all.bytes));
    }

    /// Layers of a stage cut at random places, on random chips.
    fn slices(stage: StageKind) -> impl Strategy<Value = Vec<Slice>> {
        let layers = ModelSizes::base(Variant::Pi05).layers(stage);
        let cuts = prop::collection::btree_set(1..layers, 0..5);
        (cuts, prop::collection::vec(0_u32..8, 5)).prop_map(move |(cuts, chips)| {
            let ends = cuts.iter().copied().chain([layers]);
            let starts = [0].into_iter().chain(cuts.iter().copied());
            let slice = |((start, end), chip): ((usize, usize), &u32)| {
                Slice::on(stage, LayerRange::new(start, end).unwrap(), ChipId(*chip))
            };
            starts.zip(ends).zip(&chips).map(slice).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Layer by layer costs at most what sending costs the chips of the prefix beyond the last one's whole cache.
        #[test]
        fn between_the_longest_slice_and_the_latency_without_overlap(
            vision in slices(StageKind::Vision),
            prefix in slices(StageKind::Prefix),
            expert in slices(StageKind::Expert),
        ) {
            let last = vision.len() + prefix.len() - 1;
            let (layerwise, plain) = both(Preset::LoudBoxBh, [vision, prefix, expert].concat());
            let at_once = plain.edges.iter().filter(|edge| edge.payload == Payload::Cache && edge.from == last);
            let counted_ms = at_once.map(|edge| edge.transfer_ms).fold(0.0, f64::max);
            let sending_ms = edges_ms(&layerwise, |edge| edge.payload == Payload::Cache) - counted_ms;
            prop_assert!(layerwise.latency_ms <= plain.latency_ms + sending_ms + 1e-9);
            let longest_ms = layerwise.slices.iter().map(SliceCost::total_ms).fold(0.0, f64::max);
            prop_assert!(layerwise.latency_ms >= longest_ms + io_ms());
        }
    }
}
