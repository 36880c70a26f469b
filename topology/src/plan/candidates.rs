//! Pipelines worth considering for one group size and batch, repeated over the board.

use super::chain::{Chain, LayerCosts, Objective};
use super::{PlanPoint, PlanRequest, shapes, write};
use crate::check::{Severity, check_placement};
use crate::cost::{CostModel, PipelineCost};
use crate::deployment::Batching;
use crate::placement::{Pipeline, Placement, Slice};
use crate::workload::RequestShape;
use crate::{ChipId, LayerRange, StageKind};

pub(super) struct Candidates<'a> {
    request: &'a PlanRequest<'a>,
    pub(super) shape: RequestShape,
    size: usize,
    pub(super) template: Slice,
}

impl<'a> Candidates<'a> {
    pub(super) fn new(request: &'a PlanRequest<'a>, batch: usize, size: usize) -> Self {
        let any = LayerRange::new(0, 1).expect("one layer");
        let template = Slice {
            weights: request.weights,
            device: request.device,
            ..Slice::on(StageKind::Vision, any, ChipId(0))
        };
        Self { request, shape: RequestShape { batch, ..request.request }, size, template }
    }

    fn model(&self) -> CostModel<'a> {
        CostModel::new(self.request.board, self.request.sizes, self.shape, self.request.calibration)
    }

    /// Best pipelines of this size and batch, repeated over the board. Layer costs are the same for every size.
    pub(super) fn points(&self, chains: &[Vec<ChipId>], costs: &mut Option<LayerCosts>) -> Vec<PlanPoint> {
        let groups: Vec<Vec<ChipId>> =
            chains.iter().flat_map(|chain| chain.chunks_exact(self.size).map(<[ChipId]>::to_vec)).collect();
        let Some(first) = groups.first() else { return Vec::new() };
        let model = self.model();
        let mut found = Vec::new();
        if costs.is_none() {
            *costs = LayerCosts::new(&model, &self.template, first[0]);
        }
        let chain = costs.as_ref().and_then(|costs| Chain::new(&model, &self.template, first, costs));
        if let Some(chain) = chain {
            found.extend([Objective::Latency, Objective::Bottleneck].iter().filter_map(|o| chain.best(*o)));
        }
        found.extend(shapes::shapes(self.request.sizes, &self.template, first));
        let mut points: Vec<PlanPoint> = self.best_of(found, &groups);
        if self.request.tensor_split {
            for abreast in [1, 2] {
                let groups = self.lines(abreast);
                let Some(first) = groups.first() else { continue };
                let shapes = shapes::tensor(self.request.sizes, &self.template, first, self.size);
                points.extend(self.best_of(shapes, &groups));
            }
        }
        points
    }

    /// Straight runs of chips of a mesh, so many side by side: along rows when those are long enough, else along columns.
    fn lines(&self, abreast: u32) -> Vec<Vec<ChipId>> {
        let Some((rows, cols)) = self.request.board.shape else { return Vec::new() };
        let size = self.size as u32;
        let along_rows = size <= cols;
        let (outer, inner) = if along_rows { (rows, cols) } else { (cols, rows) };
        let mut groups = Vec::new();
        for first in (0..outer.saturating_sub(abreast - 1)).step_by(abreast as usize) {
            for start in (0..inner.saturating_sub(size - 1)).step_by(self.size) {
                let place = |line, at| if along_rows { (line, at) } else { (at, line) };
                let group: Option<Vec<ChipId>> = (first..first + abreast)
                    .flat_map(|line| (start..start + size).map(move |at| place(line, at)))
                    .map(|at| self.at(at))
                    .collect();
                groups.extend(group);
            }
        }
        groups
    }

    fn at(&self, (row, col): (u32, u32)) -> Option<ChipId> {
        let here = |chip: &&crate::Chip| chip.at.is_some_and(|at| (at.row, at.col) == (row, col));
        self.request.board.chips().iter().find(here).map(|chip| chip.id)
    }

    /// The fastest and the busiest-chip-best of the pipelines that keep the rules.
    fn best_of(&self, pipelines: Vec<Pipeline>, groups: &[Vec<ChipId>]) -> Vec<PlanPoint> {
        let model = self.model();
        let allowed: Vec<(Pipeline, PipelineCost)> = pipelines
            .into_iter()
            .filter(|pipeline| self.keeps_rules(pipeline))
            .filter_map(|pipeline| Some((model.pipeline(&pipeline)?, pipeline)))
            .map(|(cost, pipeline)| (pipeline, cost))
            .collect();
        let fastest = allowed.iter().min_by(|a, b| a.1.latency_ms.total_cmp(&b.1.latency_ms));
        let lightest = allowed.iter().min_by(|a, b| a.1.bottleneck_ms.total_cmp(&b.1.bottleneck_ms));
        let chosen = [fastest, lightest].into_iter().flatten();
        chosen.filter_map(|(pipeline, _)| self.repeat(pipeline, groups)).collect()
    }

    fn keeps_rules(&self, pipeline: &Pipeline) -> bool {
        let placement = Placement { pipelines: vec![pipeline.clone()] };
        let batching = self.batching(pipeline);
        check_placement(&placement, self.request.board, self.request.sizes, &self.shape, batching)
            .iter()
            .all(|finding| finding.severity < Severity::Error)
    }

    /// As many requests in flight as keep every slice busy, and a ring from filling up.
    fn batching(&self, pipeline: &Pipeline) -> Batching {
        write::batching(pipeline, self.shape.batch)
    }

    /// The pipeline on every group, and its cost there.
    fn repeat(&self, pipeline: &Pipeline, groups: &[Vec<ChipId>]) -> Option<PlanPoint> {
        let first = groups.first()?;
        let model = self.model();
        let moved = |group: &[ChipId]| -> Option<Pipeline> {
            let mut copy = pipeline.clone();
            for slice in &mut copy.slices {
                for chip in &mut slice.chips {
                    *chip = group[first.iter().position(|other| other == chip)?];
                }
            }
            Some(copy)
        };
        let pipelines: Vec<Pipeline> = groups
            .iter()
            .filter_map(|group| moved(group))
            .filter(|pipeline| self.keeps_rules(pipeline))
            .collect();
        let costs: Vec<PipelineCost> =
            pipelines.iter().filter_map(|pipeline| model.pipeline(pipeline)).collect();
        let slowest = costs
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.bottleneck_ms.total_cmp(&b.1.bottleneck_ms).then(b.0.cmp(&a.0)))?;
        let reason = bottleneck(&pipelines[slowest.0], slowest.1, self.shape.batch);
        Some(PlanPoint {
            latency_ms: costs.iter().map(|cost| cost.latency_ms).fold(0.0, f64::max),
            requests_per_s: costs.iter().map(|cost| cost.requests_per_s).sum(),
            pipelines: pipelines.len(),
            chips_per_pipeline: pipelines[slowest.0].chips().len(),
            batch: self.shape.batch,
            reason,
            placement: Placement { pipelines },
        })
    }
}

/// `bottleneck: prefix layers 9..18 on chip 3, 6.1 ms of 8.0 ms a request`.
fn bottleneck(pipeline: &Pipeline, cost: &PipelineCost, batch: usize) -> String {
    let slice = &pipeline.slices[cost.bottleneck_slice];
    let own_ms = cost.slices[cost.bottleneck_slice].total_ms() / batch as f64;
    format!(
        "bottleneck: {} layers {} on chip {}, {own_ms:.1} ms of the {:.1} ms that chip works on a request",
        slice.stage, slice.layers, cost.bottleneck_chip, cost.bottleneck_ms
    )
}
