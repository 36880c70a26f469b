//! A request's critical path as rows, few enough for a screen: the layers of a pass and their transfers are one, and so are
//! neighbours that repeat, such as the steps of denoising.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tensact::telemetry::{Activity, Doing, Leg, RequestTrace, Segment, TraceId};
use tensact::topology::{ChipId, LayerRange, StageKind};

use super::summary::milliseconds;

/// Most segments that repeat together.
const PERIOD_MAX: usize = 2;

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
        let pass = pass(rest);
        let (row, count) = if pass.layers > 1 {
            let segments = &rest[..pass.segments];
            (row(request, segments, pass.layers, pass.words(request.trace, segments)), pass.segments)
        } else {
            let (period, times) = repeats(rest);
            let segments = &rest[..period * times];
            let words: Vec<String> = (0..period)
                .map(|place| words(request.trace, segments.iter().skip(place).step_by(period)))
                .collect();
            (row(request, segments, times, words.join(", then ")), segments.len())
        };
        rows.push(row);
        rest = &rest[count..];
    }
    rows
}

fn row(request: &RequestTrace, segments: &[Segment], times: usize, what: String) -> Row {
    let since = |segment: Option<Duration>| {
        milliseconds(segment.unwrap_or(request.arrived).saturating_sub(request.arrived))
    };
    let from_ms = since(segments.first().map(|segment| segment.began));
    let to_ms = since(segments.last().map(|segment| segment.ended));
    Row { from_ms, to_ms, ms: to_ms - from_ms, times, what }
}

/// Layers of a slice, one after the other, with what went to and from its chips meanwhile.
#[derive(Default)]
struct Pass {
    segments: usize,
    layers: usize,
    /// Who was at the other end.
    others: BTreeSet<ChipId>,
}

/// The pass that a path begins with.
fn pass(path: &[Segment]) -> Pass {
    let mut pass = Pass::default();
    let Some(Leg::Activity(first)) = path.first().map(|segment| &segment.leg) else { return pass };
    let own = |activity: &Activity| (activity.pipeline, activity.slice) == (first.pipeline, first.slice);
    for segment in path {
        let Leg::Activity(activity) = &segment.leg else { break };
        match activity.doing {
            Doing::Layer { .. } if own(activity) => pass.layers += 1,
            Doing::Send { to: other, .. } | Doing::Receive { from: other, .. }
                if own(activity) && pass.layers > 0 =>
            {
                pass.others.insert(other);
            }
            Doing::Receive { from, .. } if first.chips.contains(&from) && pass.layers > 0 => {
                pass.others.extend(activity.chips.iter());
            }
            _ => break,
        }
        pass.segments += 1;
    }
    pass
}

impl Pass {
    fn words(&self, trace: TraceId, segments: &[Segment]) -> String {
        let layers = segments.iter().filter(|segment| match &segment.leg {
            Leg::Activity(activity) => activity.doing.computes(),
            _ => false,
        });
        let work = words(trace, layers);
        let others: Vec<String> = self.others.iter().map(ToString::to_string).collect();
        match &others[..] {
            [] => work,
            [one] => format!("{work}, and transfers with chip {one}"),
            several => format!("{work}, and transfers with chips {}", several.join(", ")),
        }
    }
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

/// What segments were that are alike.
fn words<'a>(trace: TraceId, segments: impl Iterator<Item = &'a Segment>) -> String {
    let legs: Vec<&Leg> = segments.map(|segment| &segment.leg).collect();
    let computed: Vec<&Arc<Activity>> = legs
        .iter()
        .filter_map(|leg| match leg {
            Leg::Activity(activity) if activity.doing.computes() => Some(activity),
            _ => None,
        })
        .collect();
    let [first, .., last] = computed[..] else {
        return legs.first().map_or_else(String::new, |leg| leg.words(trace));
    };
    let start = computed.iter().map(|activity| activity.layers.start()).min();
    let end = computed.iter().map(|activity| activity.layers.end()).max();
    let layers = start.zip(end).and_then(|(start, end)| LayerRange::new(start, end).ok());
    let layers = layers.unwrap_or(first.layers);
    let on = format!(" on {} {}", if first.chips.len() == 1 { "chip" } else { "chips" }, first.chip_names());
    match (first.stage, first.step_of(trace), last.step_of(trace)) {
        (StageKind::Expert, Some(first), Some(last)) if first != last => {
            format!("denoising steps {first} to {last}, layers {layers}{on}")
        }
        (StageKind::Expert, Some(step), _) => format!("denoising step {step}, layers {layers}{on}"),
        (stage, ..) => format!("{stage} layers {layers}{on}"),
    }
}
