//! Chooses a placement: replicas × stages, for a board, a policy and a goal.
//!
//! A candidate is one pipeline on a group of linked chips, repeated over the board. Groups are runs of the board's chain
//! (the snake through a mesh), so that consecutive chips share a link; tensor splits use straight runs. For every group
//! size and batch size the best cuts come from dynamic programming and from a short list of other shapes;
//! what breaks a rule of [`check`](crate::check) is dropped. For latency the programming searches with a bound in which
//! nothing overlaps; candidates are compared, and reported, by the critical path of the cost model.

mod candidates;
mod chain;
mod shapes;
mod write;

use std::fmt;

use serde::Serialize;

use crate::check::check_placement;
use crate::cost::Calibration;
use crate::deployment::Batching;
use crate::placement::{DeviceKind, Pipeline, Placement, Slice};
use crate::workload::RequestShape;
use crate::{Arch, Board, ChipId, LayerRange, ModelSizes, StageKind, WeightDtype};

use candidates::Candidates;

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
            self.pipelines,
            self.chips_per_pipeline,
            self.batch,
            self.latency_ms,
            self.requests_per_s,
            self.reason
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

impl Plan {
    /// One sentence about why a deadline goal is not met; none when it is.
    pub fn shortfall(&self) -> Option<String> {
        let Goal::Slo { slo_ms, robots, replan_ms } = self.goal else { return None };
        if self.meets_goal {
            return None;
        }
        let fastest_ms = self.front.first()?.latency_ms;
        let in_time = self.front.iter().rfind(|point| point.latency_ms <= slo_ms);
        Some(match in_time {
            None => format!("the fastest placement takes {fastest_ms:.1} ms of the {slo_ms} ms allowed"),
            Some(point) => format!(
                "{robots} robots need {:.1} requests/s, and within {slo_ms} ms there are {:.1} at {:.0} % load",
                robots as f64 * 1e3 / replan_ms,
                point.requests_per_s * LOAD_MAX,
                100.0 * LOAD_MAX
            ),
        })
    }
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
/// When the request is out of range, or no placement keeps the rules, with the first rule that the simplest one breaks.
pub fn plan(request: &PlanRequest<'_>) -> Result<Plan, NoPlan> {
    let shape = RequestShape { batch: request.batch_max.max(1), ..request.request };
    shape.validate().map_err(|out| NoPlan { board: request.board.name.clone(), reason: out.to_string() })?;
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
    let reason =
        findings.first().map_or_else(|| "it has no chips".to_owned(), |finding| finding.message.clone());
    NoPlan { board: request.board.name.clone(), reason }
}

#[cfg(test)]
mod tests;
