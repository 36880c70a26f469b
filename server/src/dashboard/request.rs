//! One request, in full.

use std::sync::Arc;

use axum::Json as Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value as Json, json};
use tensact::telemetry::{Activity, Doing, Journal, Leg, RequestTrace, Segment, TraceId};

use super::milliseconds;
use crate::http::refuse;
use crate::serving::Serving;

/// Digits of a trace id that are enough to ask by.
const DIGITS_MIN: usize = 8;

/// `GET /dashboard/requests/{trace}`: a request that ended lately, by the first digits of its trace id.
pub(super) async fn request(State(serving): State<Arc<Serving>>, Path(digits): Path<String>) -> Response {
    let Some(policy) = serving.policy() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "loading", "the weights are still being loaded");
    };
    if digits.len() < DIGITS_MIN {
        let message = format!("expected at least {DIGITS_MIN} digits of a trace id, not `{digits}`");
        return refuse(StatusCode::BAD_REQUEST, "bad_request", &message);
    }
    let journal = policy.pipeline.journal();
    match find(journal, &digits).as_slice() {
        [] => {
            let message = format!("no request that ended lately has a trace id that begins with {digits}");
            refuse(StatusCode::NOT_FOUND, "not_found", &message)
        }
        [request] => Body(described(request, &journal.path(request))).into_response(),
        several => {
            let message = format!("{} requests have a trace id that begins with {digits}", several.len());
            refuse(StatusCode::CONFLICT, "ambiguous", &message)
        }
    }
}

fn find(journal: &Journal, digits: &str) -> Vec<Arc<RequestTrace>> {
    if let Ok(trace) = digits.parse::<TraceId>() {
        return journal.request(trace).into_iter().collect();
    }
    let digits = digits.to_ascii_lowercase();
    let mut all = journal.requests();
    all.retain(|request| request.trace.to_string().starts_with(&digits));
    all
}

fn described(request: &RequestTrace, path: &[Segment]) -> Json {
    let RequestTrace { trace, robot, outcome, arrived, submitted, ended, attempts, .. } = request;
    let first = attempts.first().map_or(*ended, |attempt| attempt.dispatched);
    let last = attempts.last();
    let activities: Vec<_> = request.activities().cloned().collect();
    let activities = Activity::passes(&activities, std::time::Duration::MAX);
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
            "queue_ms": milliseconds(first.saturating_sub(*submitted)),
            "pipeline_ms": milliseconds(ended.saturating_sub(first)),
        },
        "activities": activities.iter().map(|activity| described_activity(activity, *trace)).collect::<Vec<_>>(),
        "path": path.iter().map(|segment| leg(segment, *trace)).collect::<Vec<_>>(),
    })
}

fn described_activity(activity: &Activity, trace: TraceId) -> Json {
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
        "step": activity.step_of(trace),
        "batch": activity.members.len(),
        "bytes": bytes,
        "transport": transport,
    })
}

fn leg(segment: &Segment, trace: TraceId) -> Json {
    let Segment { began, ended, leg } = segment;
    let (kind, what) = match leg {
        Leg::Wait(reason) => ("wait", reason.to_string()),
        leg => ("activity", leg.words(trace)),
    };
    json!({ "kind": kind, "what": what, "began": milliseconds(*began), "ended": milliseconds(*ended) })
}
