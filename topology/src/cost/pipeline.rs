//! Latency and throughput of a whole pipeline.

use std::collections::BTreeMap;

use serde::Serialize;

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
        Some(PipelineCost {
            latency_ms: io_ms + latency_ms(pipeline, &slices, &edges),
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

/// Finishing times along the graph. The expert starts when the last of its cache has come; that its first step could
/// follow the cache layer by layer is left out, so this is an upper bound there.
fn latency_ms(pipeline: &Pipeline, slices: &[SliceCost], edges: &[EdgeCost]) -> f64 {
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
