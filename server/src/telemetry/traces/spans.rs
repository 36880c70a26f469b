//! A request as OpenTelemetry spans.
//!
//! The server's span holds everything; below it stand `read`, `preprocess`, `queue`, one `pipeline` per attempt and `postprocess`;
//! below `pipeline` what chips did for the request, and what it waited for. What several requests shared is a span in the
//! trace of each, linked to those in the others.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId as OtelTraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tensact::telemetry::{Activity, Attempt, Doing, Leg, Reason, RequestTrace, Segment, TraceId};
use tensact::topology::StageKind;

use super::{Ended, attribute};

/// Name of what makes the spans.
const SCOPE: &str = "tensact";

/// What the pipeline knows of a request.
pub(super) struct InPipeline {
    pub(super) request: Arc<RequestTrace>,
    pub(super) path: Vec<Segment>,
    /// When its pipeline was started.
    pub(super) started: SystemTime,
}

/// All spans of a request, the server's own first.
pub(super) fn spans(ended: &Ended, pipeline: Option<&InPipeline>) -> Vec<SpanData> {
    let number = pipeline.map(|pipeline| pipeline.request.number);
    let trace = Trace {
        id: ended.context.trace,
        root: ended.context.span,
        number,
        scope: InstrumentationScope::builder(SCOPE).build(),
    };
    let mut spans = vec![trace.server(ended)];
    let mut part = |name: &'static str, began: SystemTime, until: SystemTime| {
        if began < until {
            let id = trace.part_id(name, began);
            spans.push(trace.span(id, trace.root, name, began, until, Vec::new()));
        }
    };
    part("read", ended.arrived, ended.read);
    let Some(InPipeline { request, path, started }) = pipeline else { return spans };
    let at = |moment: Duration| *started + moment;
    part("preprocess", at(request.arrived), at(request.submitted));
    let dispatched = request.attempts.first().map_or(request.ended, |attempt| attempt.dispatched);
    part("queue", at(request.submitted), at(dispatched));
    part("postprocess", at(request.ended), ended.answered);
    for (index, attempt) in request.attempts.iter().enumerate() {
        let next = request.attempts.get(index + 1).map_or(request.ended, |next| next.dispatched);
        trace.attempt(&mut spans, index + 1, attempt, next, path, &at);
    }
    spans
}

struct Trace {
    id: TraceId,
    /// The server's span: traces may have several requests.
    root: SpanId,
    /// The request's number in the pipeline.
    number: Option<u64>,
    scope: InstrumentationScope,
}

impl Trace {
    fn server(&self, ended: &Ended) -> SpanData {
        let Ended { context, name, robot, outcome, problem, .. } = ended;
        let mut attributes = vec![KeyValue::new(attribute::OUTCOME, *outcome)];
        attributes.extend(robot.as_ref().map(|robot| KeyValue::new(attribute::ROBOT, robot.to_string())));
        let status = match problem {
            None => Status::Unset,
            Some(problem) => {
                attributes.push(KeyValue::new(attribute::ERROR_TYPE, *outcome));
                Status::error(problem.clone())
            }
        };
        let parent = context.parent.as_ref();
        SpanData {
            span_kind: SpanKind::Server,
            parent_span_id: parent.map_or(SpanId::INVALID, SpanContext::span_id),
            parent_span_is_remote: parent.is_some(),
            status,
            ..self.span(context.span, SpanId::INVALID, *name, ended.arrived, ended.answered, attributes)
        }
    }

    fn attempt(
        &self,
        spans: &mut Vec<SpanData>,
        number: usize,
        attempt: &Attempt,
        ended: Duration,
        path: &[Segment],
        at: &impl Fn(Duration) -> SystemTime,
    ) {
        let began = attempt.dispatched;
        let id = self.part_id("pipeline", at(began));
        let attributes = vec![
            KeyValue::new(attribute::PIPELINE, attempt.pipeline as i64),
            KeyValue::new(attribute::ATTEMPT, number as i64),
        ];
        spans.push(self.span(id, self.root, "pipeline", at(began), at(ended), attributes));
        let request = self.number.unwrap_or_default();
        for activity in Activity::passes(&attempt.activities, Duration::MAX) {
            let name = name(&activity);
            let span = activity_id(request, &activity);
            let attributes = attributes_of(&activity, request);
            let mut span = self.span(span, id, name, at(activity.began), at(activity.ended), attributes);
            span.links = self.company(&activity);
            spans.push(span);
        }
        for Segment { began: from, ended: to, leg } in path {
            let inside = began <= *from && *to <= ended;
            if let Leg::Wait(reason @ (Reason::Busy { .. } | Reason::Wake { .. } | Reason::Told)) = leg
                && inside
            {
                let attributes = vec![KeyValue::new(attribute::WAIT_REASON, reason.to_string())];
                let span = self.part_id("wait", at(*from));
                spans.push(self.span(span, id, "wait", at(*from), at(*to), attributes));
            }
        }
    }

    /// Links to what the others in a batch have of it.
    fn company(&self, activity: &Activity) -> SpanLinks {
        let mut links = SpanLinks::default();
        let others = activity.members.iter().filter(|member| Some(member.request) != self.number);
        links.links.extend(
            others.map(|member| {
                Link::with_context(context(member.trace, activity_id(member.request, activity)))
            }),
        );
        links
    }

    fn span(
        &self,
        id: SpanId,
        parent: SpanId,
        name: impl Into<Cow<'static, str>>,
        start_time: SystemTime,
        end_time: SystemTime,
        attributes: Vec<KeyValue>,
    ) -> SpanData {
        SpanData {
            span_context: context(self.id, id),
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time,
            end_time,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }

    /// A span that a trace has once at a time.
    fn part_id(&self, name: &str, began: SystemTime) -> SpanId {
        hashed((self.root, name, began))
    }
}

/// A span of an activity has the same name wherever it is linked from.
fn activity_id(request: u64, activity: &Activity) -> SpanId {
    let Activity { pipeline, slice, chips, doing, began, .. } = activity;
    hashed((request, pipeline, slice, chips, doing.name(), began))
}

fn hashed(what: impl std::hash::Hash) -> SpanId {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    SpanId::from(hasher.finish().max(1))
}

fn context(trace: TraceId, span: SpanId) -> SpanContext {
    let trace = OtelTraceId::from(trace.value());
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default())
}

fn name(activity: &Activity) -> &'static str {
    match (activity.doing.computes(), activity.stage) {
        (true, StageKind::Vision) => "vision",
        (true, StageKind::Prefix) => "prefix",
        (true, StageKind::Expert) => "denoise step",
        (false, _) => activity.doing.name(),
    }
}

fn attributes_of(activity: &Activity, request: u64) -> Vec<KeyValue> {
    let Activity { stage, layers, members, doing, .. } = activity;
    let mut attributes = vec![
        KeyValue::new(attribute::STAGE, stage.to_string()),
        KeyValue::new(attribute::LAYERS, layers.to_string()),
        KeyValue::new(attribute::CHIPS, activity.chip_names()),
        KeyValue::new(attribute::BATCH_SIZE, members.len() as i64),
    ];
    attributes.extend(activity.step_of(request).map(|step| KeyValue::new(attribute::STEP, step as i64)));
    let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    match *doing {
        Doing::Pass { cameras } | Doing::Layer { cameras, .. } => {
            attributes.push(KeyValue::new(attribute::CAMERAS, cameras as i64));
        }
        Doing::Send { to, bytes, transport } => attributes.extend([
            KeyValue::new(attribute::TO, i64::from(to.0)),
            KeyValue::new(attribute::BYTES, number(bytes)),
            KeyValue::new(attribute::TRANSPORT, transport.to_string()),
        ]),
        Doing::Receive { from, bytes, transport } => attributes.extend([
            KeyValue::new(attribute::FROM, i64::from(from.0)),
            KeyValue::new(attribute::BYTES, number(bytes)),
            KeyValue::new(attribute::TRANSPORT, transport.to_string()),
        ]),
        Doing::Blocked { to } => attributes.push(KeyValue::new(attribute::TO, i64::from(to.0))),
        Doing::Upload | Doing::Stall => {}
    }
    attributes
}
