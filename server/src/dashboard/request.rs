//! One request, in full.

use std::sync::Arc;
use std::time::Duration;

use axum::Json as Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value as Json, json};
use tensact::telemetry::{Activity, Doing, Leg, RequestTrace, Segment};
use tensact::topology::StageKind;

use super::milliseconds;
use crate::http::refuse;
use crate::serving::Serving;

/// Digits of a trace id that are enough to ask by.
const DIGITS_MIN: usize = 8;

/// `GET /dashboard/requests/{trace}`: a request that ended lately, by its trace id or the first or last digits of it; the newest, where a
/// trace has several.
pub(super) async fn request(State(serving): State<Arc<Serving>>, Path(digits): Path<String>) -> Response {
    let Some(policy) = serving.policy() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "loading", "the weights are still being loaded");
    };
    if digits.len() < DIGITS_MIN {
        let message = format!("expected at least {DIGITS_MIN} digits of a trace id, not `{digits}`");
        return refuse(StatusCode::BAD_REQUEST, "bad_request", &message);
    }
    let journal = policy.pipeline.journal();
    let mut called = journal.requests();
    called.retain(|request| request.trace.is_called(&digits));
    let Some(request) = called.last() else {
        let message =
            format!("no request that ended lately has a trace id that begins or ends with {digits}");
        return refuse(StatusCode::NOT_FOUND, "not_found", &message);
    };
    if called.iter().any(|other| other.trace != request.trace) {
        let message = format!("trace ids of several requests begin or end with {digits}");
        return refuse(StatusCode::CONFLICT, "ambiguous", &message);
    }
    Body(described(request, &journal.path(request))).into_response()
}

fn described(request: &RequestTrace, path: &[Segment]) -> Json {
    let RequestTrace { trace, number, robot, outcome, arrived, submitted, ended, attempts, .. } = request;
    let last = attempts.last();
    let first = last.map_or(*ended, |attempt| attempt.dispatched).max(*submitted);
    // When a stage was through with it, and not before the stage in front of it.
    let through = |stage: StageKind, after: Duration| {
        let computed = last.into_iter().flat_map(|attempt| &attempt.activities);
        let computed = computed.filter(|activity| activity.stage == stage && activity.doing.computes());
        computed.map(|activity| activity.ended.min(*ended)).fold(after, Duration::max)
    };
    let seen = through(StageKind::Vision, first);
    let cached = through(StageKind::Prefix, seen);
    let activities: Vec<_> = request.activities().cloned().collect();
    let activities = Activity::passes(&activities, Duration::MAX);
    json!({
        "trace_id": trace,
        "robot": robot.as_deref(),
        "outcome": outcome,
        "began": milliseconds(*arrived),
        "ended": milliseconds(*ended),
        "pipeline": last.map(|attempt| attempt.pipeline),
        "attempts": attempts.len(),
        "parts": {
            "preprocess_ms": milliseconds(*submitted - *arrived),
            "queue_ms": milliseconds(first - *submitted),
            "vision_ms": milliseconds(seen - first),
            "prefix_ms": milliseconds(cached - seen),
            "denoise_ms": milliseconds(*ended - cached),
        },
        "activities": activities.iter().map(|activity| described_activity(activity, *number)).collect::<Vec<_>>(),
        "path": path.iter().map(|segment| leg(segment, *number)).collect::<Vec<_>>(),
    })
}

fn described_activity(activity: &Activity, request: u64) -> Json {
    let (bytes, transport) = match activity.doing {
        Doing::Send { bytes, transport, .. } | Doing::Receive { bytes, transport, .. } => {
            (Some(bytes), Some(transport))
        }
        _ => (None, None),
    };
    let what =
        if activity.doing.computes() { activity.stage.to_string() } else { activity.doing.name().into() };
    json!({
        "what": what,
        "slice": activity.slice,
        "chips": *activity.chips,
        "began": milliseconds(activity.began),
        "ended": milliseconds(activity.ended),
        "step": activity.step_of(request),
        "batch": activity.members.len(),
        "bytes": bytes,
        "transport": transport,
    })
}

fn leg(segment: &Segment, request: u64) -> Json {
    let Segment { began, ended, leg } = segment;
    let (kind, what) = match leg {
        Leg::Wait(reason) => ("wait", reason.to_string()),
        leg => ("activity", leg.words(request)),
    };
    json!({ "kind": kind, "what": what, "began": milliseconds(*began), "ended": milliseconds(*ended) })
}
