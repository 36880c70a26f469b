//! A request's critical path as rows. Neighbours that repeat are one row with their number: the layers of a prefix and
//! their sends, the steps of denoising.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tensact::telemetry::{Activity, Doing, Leg, RequestTrace, Segment, TraceId};
use tensact::topology::{LayerRange, StageKind};

use super::summary::milliseconds;

/// Most segments that repeat together.
const PERIOD_MAX: usize = 4;

/// A row: some segments, one after the other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// When it began, since the request's arrival.
    pub from_ms: f64,
    /// When it ended.
    pub to_ms: f64,
    /// How long it took.
    pub ms: f64,
    /// How often what it says happened, one after the other.
    pub times: usize,
    /// What it was.
    pub what: String,
}

/// The path of a request as rows that add up to its latency.
pub fn rows(request: &RequestTrace, path: &[Segment]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        let (period, times) = repeats(rest);
        let (these, others) = rest.split_at(period * times);
        rows.push(row(request, these, period));
        rest = others;
    }
    rows
}

/// How many of the first segments repeat, and how often they stand there: the pattern that covers most.
fn repeats(path: &[Segment]) -> (usize, usize) {
    let times = |period: usize| {
        let alike = |index: usize| path.get(index + period).is_some_and(|next| alike(&path[index], next));
        (0..path.len()).take_while(|index| alike(*index)).count() / period + 1
    };
    let patterns = (1..=PERIOD_MAX.min(path.len())).map(|period| (period, times(period)));
    patterns
        .filter(|(period, times)| *period == 1 || *times > 1)
        .max_by_key(|(period, times)| (period * times, usize::MAX - period))
        .unwrap_or((1, 1))
}

/// Whether two segments differ in nothing but layers, steps, bytes and how long they took.
fn alike(a: &Segment, b: &Segment) -> bool {
    match (&a.leg, &b.leg) {
        (Leg::Activity(a), Leg::Activity(b)) => {
            let place = |activity: &Activity| (activity.pipeline, activity.slice);
            place(a) == place(b) && a.chips == b.chips && kind(a.doing) == kind(b.doing)
        }
        (a, b) => a == b,
    }
}

/// What is done, without how much of it.
fn kind(doing: Doing) -> Doing {
    match doing {
        Doing::Pass { .. } => Doing::Pass { cameras: 0 },
        Doing::Layer { .. } => Doing::Layer { cameras: 0, last: false },
        Doing::Send { to, transport, .. } => Doing::Send { to, bytes: 0, transport },
        Doing::Receive { from, transport, .. } => Doing::Receive { from, bytes: 0, transport },
        Doing::Upload | Doing::Blocked { .. } | Doing::Stall => doing,
    }
}

fn row(request: &RequestTrace, segments: &[Segment], period: usize) -> Row {
    let since = |moment: Duration| milliseconds(moment.saturating_sub(request.arrived));
    let (from_ms, to_ms) = match segments {
        [first, .., last] => (since(first.began), since(last.ended)),
        [only] => (since(only.began), since(only.ended)),
        [] => (0.0, 0.0),
    };
    let what: Vec<String> = (0..period).map(|place| words(request.trace, segments, place, period)).collect();
    let times = segments.len() / period;
    Row { from_ms, to_ms, ms: to_ms - from_ms, times, what: what.join(", then ") }
}

/// What every `period`-th segment from `place` on was.
fn words(trace: TraceId, segments: &[Segment], place: usize, period: usize) -> String {
    let alike: Vec<&Segment> = segments.iter().skip(place).step_by(period).collect();
    let activities: Vec<&Arc<Activity>> = alike
        .iter()
        .filter_map(|segment| match &segment.leg {
            Leg::Activity(activity) if activity.doing.computes() => Some(activity),
            _ => None,
        })
        .collect();
    let [first, .., last] = activities[..] else { return alike[0].leg.words(trace) };
    let layers = |activity: &&Arc<Activity>| (activity.layers.start(), activity.layers.end());
    let (start, end) =
        activities.iter().map(layers).fold(layers(&first), |(a, b), (c, d)| (a.min(c), b.max(d)));
    let layers = LayerRange::new(start, end).unwrap_or(first.layers);
    let steps = [first, last].map(|activity| activity.step_of(trace));
    let chips = if first.chips.len() == 1 { "chip" } else { "chips" };
    let on = format!(" on {chips} {}", first.chip_names());
    match (first.stage, steps) {
        (StageKind::Expert, [Some(first), Some(last)]) if first != last => {
            format!("denoising steps {first} to {last}, layers {layers}{on}")
        }
        (StageKind::Expert, [Some(step), _]) => format!("denoising step {step}, layers {layers}{on}"),
        (stage, _) => format!("{stage} layers {layers}{on}"),
    }
}
