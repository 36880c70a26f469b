//! What a simulation found.

use std::time::Duration;

use serde::Serialize;
use tensact_topology::workload::slice_memory;
use tensact_topology::{Calibration, ChipId, CostModel, Pipeline, StageKind};

use super::robots::Sent;
use super::{Busy, PlannedFaults, Scenario, Simulation};
use crate::request::Refusal;
use crate::scheduler::{Counts, Seen};
use crate::ticket::milliseconds;

/// The result of a simulation. The same deployment, scenario and faults give the same report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The board.
    pub board: String,
    /// What robots asked for.
    pub scenario: Scenario,
    /// What went wrong, by plan.
    pub faults: PlannedFaults,
    /// Simulated seconds until the last answer.
    pub elapsed_s: f64,
    /// Requests by what became of them.
    pub counts: Counts,
    /// Requests handed in per second.
    pub offered_per_s: f64,
    /// Action chunks per second.
    pub throughput_per_s: f64,
    /// From observation to actions.
    pub latency_ms: Latencies,
    /// What bounds the throughput.
    pub bound: Option<Bound>,
    /// Chips in the order of their numbers.
    pub chips: Vec<ChipReport>,
    /// Most requests that waited at a time.
    pub waiting_max: usize,
    /// Invariants that did not hold; all zero unless Tensact is wrong.
    pub violations: Violations,
}

/// Percentiles of latencies, in milliseconds; zero when nothing was answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[allow(missing_docs)] // the names say it
pub struct Latencies {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Latencies {
    /// Percentiles of these times in milliseconds, in whatever order they come.
    pub fn of(mut milliseconds: Vec<f64>) -> Self {
        milliseconds.sort_by(f64::total_cmp);
        let Some(max) = milliseconds.last().copied() else { return Self::default() };
        let count = milliseconds.len();
        // The smallest value that the share of all does not exceed.
        let percentile =
            |share: f64| milliseconds[((count as f64 * share).ceil() as usize).clamp(1, count) - 1];
        let mean = milliseconds.iter().sum::<f64>() / count as f64;
        Self { mean, p50: percentile(0.5), p90: percentile(0.9), p99: percentile(0.99), max }
    }
}

/// The throughput that the busiest chips allow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bound {
    /// Requests per second of all pipelines.
    pub requests_per_s: f64,
    /// The busiest chip of the first pipeline.
    pub chip: ChipId,
    /// The stage that keeps it busiest.
    pub stage: StageKind,
    /// How long it works on a request, in milliseconds.
    pub ms: f64,
}

/// One emulated chip.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChipReport {
    /// Its number.
    pub chip: ChipId,
    /// Stages that run on it.
    pub stages: Vec<StageKind>,
    /// Share of the time in which it computed or transferred.
    pub utilisation: f64,
    /// Memory that is set aside on it.
    pub memory_bytes: u64,
}

/// How often invariants were broken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Violations {
    /// *one-outcome*: requests without an outcome.
    pub unanswered: u64,
    /// *own-result*: requests with the actions of another.
    pub mixed_up: u64,
    /// *bounded*: requests that waited beyond the queue.
    pub over_queue: u64,
    /// *nothing-lost*: attempts whose tensors vanished.
    pub lost: u64,
    /// *back-to-start*: attempts of which something is left after the drain.
    pub left_over: u64,
}

impl Violations {
    /// Whether every invariant held.
    pub fn none(&self) -> bool {
        *self == Self::default()
    }
}

impl Report {
    pub(super) fn new(
        simulation: &Simulation,
        scenario: &Scenario,
        faults: &PlannedFaults,
        sent: &[Sent],
        elapsed: Duration,
        busy: Busy,
        seen: Option<Seen>,
    ) -> Self {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let counts = seen.as_ref().map_or_else(Counts::default, |seen| seen.counts);
        let waiting_max = seen.as_ref().map_or(0, |seen| seen.waiting_max);
        let places = simulation.batching.max_in_flight * simulation.placement.pipelines.len();
        let back_in_line = (counts.retried as usize).min(places);
        let violations = Violations {
            unanswered: unanswered(&counts, sent),
            mixed_up: sent.iter().filter(|sent| sent.mixed_up).count() as u64,
            over_queue: waiting_max.saturating_sub(simulation.admission.queue + back_in_line) as u64,
            lost: seen.as_ref().map_or(0, |seen| seen.lost),
            left_over: seen.map_or(0, |seen| seen.pipelines.iter().map(|(_, left)| *left as u64).sum()),
        };
        Self {
            board: simulation.board.name.clone(),
            scenario: scenario.clone(),
            faults: faults.clone(),
            elapsed_s: elapsed.as_secs_f64(),
            counts,
            offered_per_s: counts.requests as f64 / seconds,
            throughput_per_s: counts.done as f64 / seconds,
            latency_ms: latencies(sent),
            bound: bound(simulation),
            chips: chips(simulation, &busy, seconds),
            waiting_max,
            violations,
        }
    }
}

/// How many requests the scheduler and their robots do not agree on. A robot that cancels a request does not learn how it
/// ended, so as many may have ended in any way as were cancelled and not counted so.
fn unanswered(counts: &Counts, sent: &[Sent]) -> u64 {
    let told = |is: fn(&Result<(), Refusal>) -> bool| {
        sent.iter().filter(|sent| !sent.cancelled && is(&sent.outcome)).count() as u64
    };
    let kinds = [
        (counts.done, told(|outcome| outcome.is_ok())),
        (counts.queue_full, told(|outcome| matches!(outcome, Err(Refusal::QueueFull { .. })))),
        (
            counts.deadline_impossible,
            told(|outcome| matches!(outcome, Err(Refusal::DeadlineImpossible { .. }))),
        ),
        (counts.superseded, told(|outcome| matches!(outcome, Err(Refusal::Superseded { .. })))),
        (counts.expired, told(|outcome| matches!(outcome, Err(Refusal::Expired { .. })))),
        (counts.failed, told(|outcome| matches!(outcome, Err(Refusal::Failed { .. })))),
        (
            counts.unavailable,
            told(|outcome| matches!(outcome, Err(Refusal::OutOfService { .. } | Refusal::Closed))),
        ),
    ];
    let cancelled = sent.iter().filter(|sent| sent.cancelled).count() as u64;
    let never_counted: u64 = kinds.iter().map(|(counted, told)| told.saturating_sub(*counted)).sum();
    let never_told: u64 = kinds.iter().map(|(counted, told)| counted.saturating_sub(*told)).sum();
    never_counted
        + (never_told + counts.cancelled).abs_diff(cancelled)
        + (sent.len() as u64).abs_diff(counts.requests)
}

fn latencies(sent: &[Sent]) -> Latencies {
    let done = sent.iter().filter(|sent| sent.outcome.is_ok());
    Latencies::of(done.map(|sent| milliseconds(sent.end - sent.at)).collect())
}

/// What the cost model allows all pipelines together, with full batches.
fn bound(simulation: &Simulation) -> Option<Bound> {
    let Simulation { board, sizes, request, placement, .. } = simulation;
    let model = CostModel::new(board, sizes, *request, Calibration::shipped());
    let costs: Vec<_> =
        placement.pipelines.iter().map(|pipeline| model.pipeline(pipeline)).collect::<Option<_>>()?;
    let first = costs.first()?;
    Some(Bound {
        requests_per_s: costs.iter().map(|cost| cost.requests_per_s).sum(),
        chip: first.bottleneck_chip,
        stage: placement.pipelines[0].slices[first.bottleneck_slice].stage,
        ms: first.bottleneck_ms,
    })
}

fn chips(simulation: &Simulation, busy: &Busy, seconds: f64) -> Vec<ChipReport> {
    let Simulation { sizes, request, placement, .. } = simulation;
    let in_flight = simulation.batching.max_in_flight;
    let mut chips: Vec<ChipReport> = Vec::new();
    for pipeline in &placement.pipelines {
        for chip in Pipeline::chips(pipeline) {
            let here = || pipeline.slices.iter().filter(|slice| slice.chips.contains(&chip));
            let mut stages: Vec<StageKind> = here().map(|slice| slice.stage).collect();
            stages.dedup();
            chips.push(ChipReport {
                chip,
                stages,
                utilisation: busy.get(&chip).map_or(0.0, |busy| busy.as_secs_f64() / seconds),
                memory_bytes: here()
                    .map(|slice| slice_memory(sizes, slice, request, in_flight).total_bytes())
                    .sum(),
            });
        }
    }
    chips.sort_by_key(|report| report.chip);
    chips
}
