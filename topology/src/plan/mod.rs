//! Chooses a placement: replicas × stages, for a board, a policy and a goal.
//!
//! A candidate is one pipeline on a group of linked chips, repeated over the board. Groups are runs of the board's chain
//! (the snake through a mesh), so that consecutive chips share a link; tensor splits use straight runs. For every group
//! size and batch size the best cuts come from dynamic programming ([`chain`]) and from a short list of other shapes;
//! what breaks a rule of [`check`](crate::check) is dropped.

mod chain;
mod shapes;
mod write;

use std::fmt;

use serde::Serialize;

use crate::check::{Severity, check_placement};
use crate::cost::{Calibration, CostModel, PipelineCost};
use crate::deployment::Batching;
use crate::placement::{DeviceKind, Pipeline, Placement, Slice};
use crate::workload::RequestShape;
use crate::{Arch, Board, ChipId, LayerRange, ModelSizes, StageKind, WeightDtype};

use chain::{Chain, LayerCosts, Objective};

/// Share of a machine's throughput that a deadline goal plans with, so that queues stay short. An engineering margin.
const LOAD_MAX: f64 = 0.8;

/// Latencies this close count as equal, because the model is no better than that; throughput then decides.
const LATENCY_TIE: f64 = 0.01;

/// What a plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The next action chunk of one robot as fast as the board can give it.
    Latency,
    /// As many chunks per second as the board can give.
    Throughput,
    /// A number of robots, each served within a time, on as few chips as will do.
    Slo {
        /// Time from observation to actions.
        slo_ms: f64,
        /// Robots.
        robots: usize,
        /// Time between two requests of one robot.
        replan_ms: f64,
    },
}

/// What to plan.
#[derive(Debug, Clone)]
pub struct PlanRequest<'a> {
    /// Board.
    pub board: &'a Board,
    /// Policy.
    pub sizes: &'a ModelSizes,
    /// What a call asks for; its batch is the planner's to choose.
    pub request: RequestShape,
    /// Goal.
    pub goal: Goal,
    /// Constants of the cost model.
    pub calibration: &'a Calibration,
    /// Form of the weights.
    pub weights: WeightDtype,
    /// What executes the plan.
    pub device: DeviceKind,
    /// Largest batch considered.
    pub batch_max: usize,
    /// Whether a stage may be tensor-split.
    pub tensor_split: bool,
}

impl<'a> PlanRequest<'a> {
    /// The usual request for a board: `bfp8_b` on chips through TT-NN, `bf16` on the host, batches up to 8.
    pub fn new(board: &'a Board, sizes: &'a ModelSizes, goal: Goal, calibration: &'a Calibration) -> Self {
        let (weights, device) = match board.arch() {
            Arch::Host => (WeightDtype::Bf16, DeviceKind::Host),
            Arch::Wormhole | Arch::Blackhole => (WeightDtype::Bfp8B, DeviceKind::Ttnn),
        };
        Self {
            board,
            sizes,
            request: RequestShape::of(sizes),
            goal,
            calibration,
            weights,
            device,
            batch_max: 8,
            tensor_split: false,
        }
    }
}

/// One way to use the board.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanPoint {
    /// Worst latency of a full batch with nothing else in flight.
    pub latency_ms: f64,
    /// Requests per second of all pipelines with enough in flight.
    pub requests_per_s: f64,
    /// Pipelines side by side.
    pub pipelines: usize,
    /// Chips of one pipeline.
    pub chips_per_pipeline: usize,
    /// Requests in one pass.
    pub batch: usize,
    /// One line: what holds it back.
    pub reason: String,
    #[serde(skip)]
    placement: Placement,
}

impl PlanPoint {
    /// What runs where.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Chips in use.
    pub fn chips(&self) -> usize {
        self.pipelines * self.chips_per_pipeline
    }
}

impl fmt::Display for PlanPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} × {} chips, batch {}: {:.1} ms, {:.1} requests/s; {}",
            self.pipelines, self.chips_per_pipeline, self.batch, self.latency_ms, self.requests_per_s, self.reason
        )
    }
}

/// The chosen way, and what else the board offers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Name of the board.
    pub board: String,
    /// The goal it was chosen for.
    pub goal: Goal,
    /// The request it was planned for.
    pub request: RequestShape,
    /// The choice.
    pub chosen: PlanPoint,
    /// No point beats another in both latency and throughput; fastest first.
    pub front: Vec<PlanPoint>,
    /// Whether the goal's deadline and number of robots are met; always true for the other goals.
    pub meets_goal: bool,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{board} cannot run this policy: {reason}")]
pub struct NoPlan {
    /// Name of the board.
    pub board: String,
    /// One sentence.
    pub reason: String,
}

/// Plans a deployment. The same request always gives the same plan.
///
/// # Errors
/// When no placement keeps the rules, with the first rule that the simplest one breaks.
pub fn plan(request: &PlanRequest<'_>) -> Result<Plan, NoPlan> {
    let mut points = Vec::new();
    let chains = request.board.chains();
    for batch in batches(request.batch_max) {
        let mut costs = None;
        for size in group_sizes(request.board.chips().len()) {
            points.extend(Candidates::new(request, batch, size).points(&chains, &mut costs));
        }
    }
    let front = pareto(&points);
    let (chosen, meets_goal) = choose(request, &points).ok_or_else(|| no_plan(request))?;
    let board = request.board.name.clone();
    Ok(Plan { board, goal: request.goal, request: request.request, chosen, front, meets_goal })
}

/// Powers of two up to a limit.
fn batches(max: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |batch| Some(batch * 2)).take_while(move |batch| *batch <= max.max(1))
}

/// Every group size up to a dozen chips, then multiples of four: longer chains only lose to hand-overs.
fn group_sizes(chips: usize) -> impl Iterator<Item = usize> {
    (1..=chips).filter(|size| *size <= 12 || size.is_multiple_of(4))
}

struct Candidates<'a> {
    request: &'a PlanRequest<'a>,
    shape: RequestShape,
    size: usize,
    template: Slice,
}

impl<'a> Candidates<'a> {
    fn new(request: &'a PlanRequest<'a>, batch: usize, size: usize) -> Self {
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
    fn points(&self, chains: &[Vec<ChipId>], costs: &mut Option<LayerCosts>) -> Vec<PlanPoint> {
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
        let costs: Vec<PipelineCost> = pipelines.iter().filter_map(|pipeline| model.pipeline(pipeline)).collect();
        let slowest =
            costs.iter().enumerate().max_by(|a, b| a.1.bottleneck_ms.total_cmp(&b.1.bottleneck_ms).then(b.0.cmp(&a.0)))?;
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

/// Points that no other beats in both latency and throughput, fastest first.
fn pareto(points: &[PlanPoint]) -> Vec<PlanPoint> {
    let mut sorted: Vec<&PlanPoint> = points.iter().collect();
    sorted.sort_by(|a, b| {
        a.latency_ms
            .total_cmp(&b.latency_ms)
            .then(b.requests_per_s.total_cmp(&a.requests_per_s))
            .then(a.chips().cmp(&b.chips()))
    });
    let mut best = 0.0;
    let mut front = Vec::new();
    for point in sorted {
        if point.requests_per_s > best {
            best = point.requests_per_s;
            front.push(point.clone());
        }
    }
    front
}

fn choose(request: &PlanRequest<'_>, points: &[PlanPoint]) -> Option<(PlanPoint, bool)> {
    let fastest = || {
        let least_ms = points.iter().map(|point| point.latency_ms).min_by(f64::total_cmp)?;
        let as_fast = |point: &&PlanPoint| point.latency_ms <= least_ms * (1.0 + LATENCY_TIE);
        points.iter().filter(as_fast).min_by(|a, b| {
            b.requests_per_s.total_cmp(&a.requests_per_s).then(a.latency_ms.total_cmp(&b.latency_ms))
        })
    };
    let busiest = |points: &mut dyn Iterator<Item = &PlanPoint>| -> Option<PlanPoint> {
        points
            .min_by(|a, b| {
                b.requests_per_s.total_cmp(&a.requests_per_s).then(a.latency_ms.total_cmp(&b.latency_ms))
            })
            .cloned()
    };
    match request.goal {
        Goal::Latency => Some((fastest()?.clone(), true)),
        Goal::Throughput => Some((busiest(&mut points.iter())?, true)),
        Goal::Slo { slo_ms, robots, replan_ms } => {
            let needed_per_s = robots as f64 * 1e3 / replan_ms;
            let in_time = |point: &&PlanPoint| point.latency_ms <= slo_ms;
            let per_pipeline = |point: &PlanPoint| point.requests_per_s * LOAD_MAX / point.pipelines as f64;
            let enough = points
                .iter()
                .filter(in_time)
                .filter(|point| point.requests_per_s * LOAD_MAX >= needed_per_s)
                .map(|point| ((needed_per_s / per_pipeline(point)).ceil().max(1.0) as usize, point))
                .min_by(|a, b| {
                    (a.0 * a.1.chips_per_pipeline)
                        .cmp(&(b.0 * b.1.chips_per_pipeline))
                        .then(a.1.latency_ms.total_cmp(&b.1.latency_ms))
                });
            match enough {
                Some((pipelines, point)) => Some((point.only(pipelines), true)),
                // In time for as many robots as possible; when nothing is in time, as fast as possible.
                None => {
                    let best = busiest(&mut points.iter().filter(in_time));
                    Some((best.or_else(|| fastest().cloned())?, false))
                }
            }
        }
    }
}

impl PlanPoint {
    /// The same with fewer pipelines.
    fn only(&self, pipelines: usize) -> Self {
        let pipelines = pipelines.min(self.pipelines);
        let mut fewer = self.clone();
        fewer.placement.pipelines.truncate(pipelines);
        fewer.requests_per_s *= pipelines as f64 / self.pipelines as f64;
        fewer.pipelines = pipelines;
        fewer
    }
}

fn no_plan(request: &PlanRequest<'_>) -> NoPlan {
    let candidates = Candidates::new(request, 1, 1);
    let chip = request.board.chips().first().map_or(ChipId(0), |chip| chip.id);
    let slices = StageKind::ALL
        .into_iter()
        .filter_map(|stage| {
            let layers = LayerRange::new(0, request.sizes.layers(stage)).ok()?;
            Some(Slice { stage, layers, chips: vec![chip], ..candidates.template.clone() })
        })
        .collect();
    let placement = Placement { pipelines: vec![Pipeline::new(slices)] };
    let findings =
        check_placement(&placement, request.board, request.sizes, &candidates.shape, Batching::default());
    let reason = findings.first().map_or_else(|| "it has no chips".to_owned(), |finding| finding.message.clone());
    NoPlan { board: request.board.name.clone(), reason }
}

#[cfg(test)]
mod tests;
