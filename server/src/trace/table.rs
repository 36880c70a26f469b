//! A request's critical path as rows, few enough for a screen: the layers or steps of a slice are one, with the transfers and
//! waits between them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tensact::telemetry::{Activity, Doing, Leg, Reason, RequestTrace, Segment};
use tensact::topology::{ChipId, LayerRange, StageKind};

use super::summary::milliseconds;

/// A row: some segments, one after the other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// When it began, in milliseconds since the request's arrival.
    pub from_ms: f64,
    /// When it ended.
    pub to_ms: f64,
    /// How long it took.
    pub ms: f64,
    /// Layers, steps or transfers that it stands for.
    pub times: usize,
    /// What it was.
    pub what: String,
}

/// The path of a request as rows that add up to its latency.
pub fn rows(request: &RequestTrace, path: &[Segment]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut rest = path;
    while let [first, ..] = rest {
        let pass = Pass::of(rest);
        let (count, times, what) = if pass.computed > 1 {
            (pass.segments, pass.computed, pass.words(request.number, &rest[..pass.segments]))
        } else {
            let times = rest.iter().take_while(|next| alike(first, next)).count();
            (times, times, first.leg.words(request.number))
        };
        let (these, others) = rest.split_at(count);
        rows.push(row(request, these, times, what));
        rest = others;
    }
    rows
}

fn row(request: &RequestTrace, segments: &[Segment], times: usize, what: String) -> Row {
    let since = |moment: Option<Duration>| {
        moment.map_or(0.0, |moment| milliseconds(moment.saturating_sub(request.arrived)))
    };
    let from_ms = since(segments.first().map(|segment| segment.began));
    let to_ms = since(segments.last().map(|segment| segment.ended));
    Row { from_ms, to_ms, ms: to_ms - from_ms, times, what }
}

/// Whether two segments are transfers between the same chips.
fn alike(a: &Segment, b: &Segment) -> bool {
    let ends = |segment: &Segment| match &segment.leg {
        Leg::Activity(activity) => match activity.doing {
            Doing::Send { to: other, .. } | Doing::Receive { from: other, .. } => {
                Some((activity.slice, Arc::clone(&activity.chips), activity.doing.name(), other))
            }
            _ => None,
        },
        _ => None,
    };
    std::ptr::eq(a, b) || (ends(a).is_some() && ends(a) == ends(b))
}

/// What a slice computes of a request, with the transfers and waits in between.
#[derive(Default)]
struct Pass {
    segments: usize,
    /// Layers or steps.
    computed: usize,
}

/// What a segment is for a pass.
enum Share {
    Computed,
    /// By the expert, whose first step follows the prefix layer by layer.
    Followed,
    /// With these chips.
    Moved(Vec<ChipId>),
    Waited,
}

impl Pass {
    /// The one that a path begins with.
    fn of(path: &[Segment]) -> Self {
        let mut pass = Self::default();
        let Some(slice) = path.first().and_then(computes) else { return pass };
        for (index, segment) in path.iter().enumerate() {
            match share(slice, segment) {
                Some(Share::Computed) => pass.computed += 1,
                Some(Share::Moved(_) | Share::Followed) => {}
                // What is waited for belongs to what comes behind it.
                Some(Share::Waited) => continue,
                None => break,
            }
            pass.segments = index + 1;
        }
        pass
    }

    fn words(&self, request: u64, segments: &[Segment]) -> String {
        let Some(slice) = segments.first().and_then(computes) else { return String::new() };
        let mut computed = Vec::new();
        let [mut followed, mut moved, mut waited] = [Duration::ZERO; 3];
        let mut others = BTreeSet::new();
        let mut reasons: Vec<String> = Vec::new();
        for segment in segments {
            match share(slice, segment) {
                Some(Share::Computed) => computed.extend(computes(segment)),
                Some(Share::Followed) => followed += segment.took(),
                Some(Share::Moved(chips)) => {
                    moved += segment.took();
                    others.extend(chips);
                }
                Some(Share::Waited) => {
                    waited += segment.took();
                    if let Leg::Wait(reason) = &segment.leg {
                        reasons.push(reason.to_string());
                    }
                }
                None => {}
            }
        }
        let mut words = work(request, &computed);
        if !followed.is_zero() {
            words += &format!("; {:.1} ms of denoising that followed", milliseconds(followed));
        }
        let others: Vec<String> = others.iter().map(ToString::to_string).collect();
        if !others.is_empty() {
            let chips = if others.len() == 1 { "chip" } else { "chips" };
            words +=
                &format!("; {:.1} ms of transfers with {chips} {}", milliseconds(moved), others.join(", "));
        }
        reasons.sort_unstable();
        reasons.dedup();
        match &reasons[..] {
            [] => {}
            [reason] => words += &format!("; {:.1} ms of waiting for {reason}", milliseconds(waited)),
            several => {
                words +=
                    &format!("; {:.1} ms of waiting, for {} reasons", milliseconds(waited), several.len())
            }
        }
        words
    }
}

/// What was computed in a segment, if anything was.
fn computes(segment: &Segment) -> Option<&Arc<Activity>> {
    match &segment.leg {
        Leg::Activity(activity) if activity.doing.computes() => Some(activity),
        _ => None,
    }
}

/// What a segment is for a slice that computes; nothing if it belongs to others.
fn share(slice: &Activity, segment: &Segment) -> Option<Share> {
    let activity = match &segment.leg {
        Leg::Activity(activity) => activity,
        Leg::Wait(Reason::Busy { .. } | Reason::Wake { .. }) => return Some(Share::Waited),
        _ => return None,
    };
    let own =
        (activity.pipeline, activity.slice, &activity.chips) == (slice.pipeline, slice.slice, &slice.chips);
    let follows = slice.stage == StageKind::Prefix
        && activity.stage == StageKind::Expert
        && activity.pipeline == slice.pipeline;
    match activity.doing {
        Doing::Pass { .. } | Doing::Layer { .. } if own => Some(Share::Computed),
        Doing::Layer { .. } if follows => Some(Share::Followed),
        Doing::Receive { .. } if follows => Some(Share::Moved(activity.chips.to_vec())),
        Doing::Send { to: other, .. } | Doing::Receive { from: other, .. } if own => {
            Some(Share::Moved(vec![other]))
        }
        Doing::Send { to: other, .. } | Doing::Receive { from: other, .. }
            if slice.chips.contains(&other) =>
        {
            Some(Share::Moved(activity.chips.to_vec()))
        }
        _ => None,
    }
}

/// What was computed, in words.
fn work(request: u64, computed: &[&Arc<Activity>]) -> String {
    let [first, .., last] = computed else {
        return computed.first().map_or_else(String::new, |activity| activity.words(request));
    };
    let start = computed.iter().map(|activity| activity.layers.start()).min();
    let end = computed.iter().map(|activity| activity.layers.end()).max();
    let layers = start.zip(end).and_then(|(start, end)| LayerRange::new(start, end).ok());
    let layers = layers.unwrap_or(first.layers);
    let on = format!(" on {} {}", if first.chips.len() == 1 { "chip" } else { "chips" }, first.chip_names());
    match (first.stage, first.step_of(request), last.step_of(request)) {
        (StageKind::Expert, Some(first), Some(last)) if first != last => {
            format!("denoising steps {first} to {last}, layers {layers}{on}")
        }
        (StageKind::Expert, Some(step), _) => format!("denoising step {step}, layers {layers}{on}"),
        (stage, ..) => format!("{stage} layers {layers}{on}"),
    }
}
