//! What changes: twice a second, what happened since the last time.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value as Json, json};
use tensact::telemetry::{Activity, Cursor, Doing, Journal, News, Outcome, RequestTrace};
use tensact::topology::ChipId;
use tensact::{Counts, Pipeline, SliceStats, Stats};

use super::milliseconds;

/// Activities and requests in a tick; what is beyond is counted.
const ACTIVITIES: usize = 6000;
const REQUESTS: usize = 500;

/// Activities that are looked at for a tick, before layers are put together.
const LAYERS: usize = 1 << 15;

/// Layers of a pass with more between them are shown apart: their chip may have done something else.
const GAP: Duration = Duration::from_micros(300);

#[derive(Serialize)]
pub(super) struct Tick {
    now: f64,
    waiting: usize,
    queue_capacity: usize,
    pipelines: Vec<Json>,
    outcomes: BTreeMap<Outcome, u64>,
    slices: Vec<Vec<Json>>,
    chips: BTreeMap<ChipId, f64>,
    answered: Vec<Json>,
    answered_left_out: u64,
    activities: Vec<Json>,
    activities_left_out: u64,
}

impl Tick {
    /// What is new since `cursor`, which moves on.
    pub(super) async fn new(pipeline: &Pipeline, journal: &Journal, cursor: &mut Cursor) -> Self {
        let Stats { counts, waiting, pipelines, chips, .. } = pipeline.stats().await;
        let now = milliseconds(journal.now());
        let News { activities, mut activities_left_out, requests, requests_left_out } =
            journal.since(cursor, LAYERS, REQUESTS);
        let mut passes = Activity::passes(&activities, GAP);
        passes.retain_mut(|activity| {
            if let Doing::Blocked { .. } = activity.doing {
                // Shown where it was held up, though no chip was taken.
                let slice = &pipeline.placement().pipelines[activity.pipeline].slices[activity.slice];
                activity.chips = slice.chips.as_slice().into();
            }
            !activity.chips.is_empty()
        });
        let beyond = passes.len().saturating_sub(ACTIVITIES);
        activities_left_out += beyond as u64;
        Self {
            now,
            waiting,
            queue_capacity: pipeline.queue_capacity(),
            slices: pipelines.iter().map(|pipeline| pipeline.slices.iter().map(slice).collect()).collect(),
            pipelines: pipelines
                .iter()
                .map(|pipeline| json!({ "in_service": pipeline.in_service, "in_flight": pipeline.in_flight }))
                .collect(),
            outcomes: outcomes(counts),
            chips,
            answered: requests.iter().map(|request| answered(request)).collect(),
            answered_left_out: requests_left_out,
            activities: passes[beyond..].iter().map(activity).collect(),
            activities_left_out,
        }
    }
}

/// Requests since the start, by what became of them.
fn outcomes(counts: Counts) -> BTreeMap<Outcome, u64> {
    let Counts { done, queue_full, deadline_impossible, superseded, expired, failed, .. } = counts;
    BTreeMap::from([
        (Outcome::Done, done),
        (Outcome::QueueFull, queue_full),
        (Outcome::DeadlineImpossible, deadline_impossible),
        (Outcome::Superseded, superseded),
        (Outcome::Expired, expired),
        (Outcome::Failed, failed),
        (Outcome::OutOfService, counts.unavailable),
        (Outcome::Cancelled, counts.cancelled),
    ])
}

fn slice(stats: &SliceStats) -> Json {
    let SliceStats { passes, requests, busy_ms, running, restarts, .. } = stats;
    json!({ "passes": passes, "requests": requests, "busy_ms": busy_ms, "running": running, "restarts": restarts })
}

fn answered(request: &RequestTrace) -> Json {
    let RequestTrace { trace, robot, outcome, arrived, ended, .. } = request;
    json!([trace, robot.as_deref(), outcome, milliseconds(*arrived), milliseconds(*ended)])
}

fn activity(activity: &Activity) -> Json {
    let Activity { pipeline, slice, chips, doing, began, ended, members, .. } = activity;
    let kind = match doing {
        Doing::Pass { .. } | Doing::Layer { .. } => "pass",
        Doing::Blocked { .. } => "stall",
        other => other.name(),
    };
    let labels: Vec<String> = members.iter().map(|member| member.trace.label()).collect();
    let step = members.first().and_then(|member| member.step);
    json!([pipeline, slice, **chips, kind, milliseconds(*began), milliseconds(*ended), step, labels])
}
